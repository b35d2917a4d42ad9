"""What a teacher played, as it is finished: so that a call that is stopped, or killed, is gone on with.

Invariant: a line is written whole when a conversation (or an opinion of the judge) is there, and says what
all has cost by then; what stands in the record is never paid for again.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import MuaError
from ..runfolder import RunFolder
from ..trajectory import Trajectory
from .judge import Opinion

Key = tuple[str, str, int]
"""(domain, task id, attempt)"""
Counts = dict[str, float]


@dataclass
class Record:
    """What was played and said about it so far, as `NAME.jsonl` of a folder."""

    folder: RunFolder
    name: str
    played: dict[Key, Trajectory] = field(default_factory=dict)
    opinions: dict[tuple[Key, str], Opinion] = field(default_factory=dict)
    """(what was read, by which model) → what it said."""
    spent: dict[str, Counts] = field(default_factory=dict)
    """Role → requests, tokens and dollars of all calls before this one."""

    def __post_init__(self) -> None:
        path = self.folder.path / f"{self.name}.jsonl"
        text = path.read_bytes() if path.exists() else b""
        for number, raw in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), 1):  # a kill tears the last
            try:
                line = json.loads(raw)
                key = (line["domain"], line["task_id"], line["attempt"])
                if "trajectory" in line:
                    self.played[key] = Trajectory.from_dict(line["trajectory"])
                elif "veto" in line:
                    self.opinions[key, line["judge"]] = Opinion(line["veto"], line["reason"])
                self.spent = line["spent"]
            except (KeyError, TypeError, ValueError, AttributeError, MuaError) as exc:
                raise MuaError(
                    f"{path}, line {number}: not what was played here ({type(exc).__name__}: {exc}); remove "
                    "the line, which costs one conversation, or take another folder."
                ) from None

    def add(self, key: Key, spent: Mapping[str, Counts], **what: Any) -> None:
        """Writes one line; `spent` comes on top of what was spent before."""
        domain, task_id, attempt = key
        line = {"domain": domain, "task_id": task_id, "attempt": attempt, **what}
        self.folder.append(self.name, {**line, "spent": add_up([self.spent, spent])})


def add_up(parts: Iterable[Mapping[str, Counts]]) -> dict[str, Counts]:
    """Sums by role and count."""
    total: dict[str, collections.Counter[str]] = {}
    for part in parts:
        for role, counts in part.items():
            total.setdefault(role, collections.Counter()).update(counts)
    return {role: dict(counts) for role, counts in total.items()}
