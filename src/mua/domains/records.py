"""What every desk writes when it does not do what was asked: cases and handovers, as graded rows.

Invariant: rows hold codes only, so that equal outcomes are equal states; what was recorded twice is seen by
its count.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..database import Database, canonical_text


def add_case(db: Database, **case: Any) -> dict[str, Any]:
    """Adds one to the count of a case in the table `cases`; its fields, in their order, are its key."""
    key = "/".join(map(str, case.values()))
    before = db.get("cases", key)
    db.put("cases", key, {**case, "count": before["count"] + 1 if before else 1})
    return {"recorded": case["outcome"]}


def add_handover(db: Database, reason: str) -> dict[str, Any]:
    """Notes in the table `handovers` why a colleague takes over. A summary for people is in the conversation,
    not in the graded state."""
    db.put("handovers", reason, {"reason": reason})
    return {"transferred": reason}


def add_record(
    db: Database, table: str, tool: str, arguments: Mapping[str, Any], ungraded: Collection[str] = ()
) -> None:
    """Adds one to the count of a call of a tool that only records; `ungraded` arguments are left out."""
    graded = {k: v for k, v in arguments.items() if k not in ungraded}
    key = canonical_text([tool, graded])
    before = db.get(table, key)
    db.put(table, key, {"tool": tool, "arguments": graded, "count": before["count"] + 1 if before else 1})
