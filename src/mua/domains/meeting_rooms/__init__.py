"""The service desk for meeting rooms, where the person in the room has tools of its own (dual control).

15 tools of the agent and 11 of the person, 60 rooms, 240 employees, 39 kinds of tasks.
"""

from __future__ import annotations

import functools
from importlib.resources import files

from ...audit import read
from ...database import Base
from ...domain import Domain
from ...errors import MuaError
from .data import make_tables
from .speech import Expert, Person
from .tasks import SIZES, all_tasks
from .tools import InTheRoom, ServiceDesk


@functools.cache
def _base() -> Base:
    return Base(make_tables())


def make(profile: str = "full") -> Domain:
    """The domain. Raises MuaError for a profile that it does not have."""
    if profile != "full":
        raise MuaError(f"meeting_rooms has no profile '{profile}'; it has full")
    return Domain(
        name="meeting_rooms",
        policy=(files("mua.domains.meeting_rooms") / "policy.md").read_text(encoding="utf-8"),
        load_base=_base,
        load_split=lambda split: all_tasks(_base())[split],
        splits=tuple(SIZES),
        toolkits={"assistant": ServiceDesk, "user": InTheRoom},
        expert=Expert,
        agenda_user=Person,
        conduct=read(files("mua.domains.meeting_rooms") / "audit.yaml"),
    )
