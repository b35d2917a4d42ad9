"""The registrar's office of a university: scheduling conflicts, requirements, full sections, waiting lists.

15 tools, 320 students, 195 sections of 80 courses, 35 kinds of tasks.
"""

from __future__ import annotations

import functools
from importlib.resources import files

from ...audit import read
from ...database import Base
from ...domain import Domain
from ...errors import MuaError
from .data import make_tables
from .speech import Expert, Student
from .tasks import SIZES, all_tasks
from .tools import Registrar


@functools.cache
def _base() -> Base:
    return Base(make_tables())


def make(profile: str = "full") -> Domain:
    """The domain. Raises MuaError for a profile that it does not have."""
    if profile != "full":
        raise MuaError(f"course_registration has no profile '{profile}'; it has full")
    return Domain(
        name="course_registration",
        policy=(files("mua.domains.course_registration") / "policy.md").read_text(encoding="utf-8"),
        load_base=_base,
        load_split=lambda split: all_tasks(_base())[split],
        splits=tuple(SIZES),
        toolkits={"assistant": Registrar},
        expert=Expert,
        agenda_user=Student,
        conduct=read(files("mua.domains.course_registration") / "audit.yaml"),
    )
