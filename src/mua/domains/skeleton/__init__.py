"""The repair desk of a bicycle workshop: seven tools, 120 customers, sixteen kinds of tasks.

Start from here: change policy.md and decide.py together, then tools, data, tasks and words, and ask
`mua domain check` whether everything still holds.
"""

from __future__ import annotations

from pathlib import Path

from mua.audit import read
from mua.domain import Domain

from .data import base
from .speech import Customer, RepairExpert
from .tasks import SIZES, make_splits
from .tools import RepairDesk


def make(profile: str = "full") -> Domain:
    """The domain."""
    return Domain(
        name="skeleton",
        policy=Path(__file__).with_name("policy.md").read_text(encoding="utf-8"),
        load_base=base,
        load_split=lambda split: make_splits(base())[split],
        splits=tuple(SIZES),
        toolkits={"assistant": RepairDesk},
        expert=RepairExpert,
        agenda_user=Customer,
        conduct=read(Path(__file__).with_name("audit.yaml")),
    )
