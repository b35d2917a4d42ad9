"""The library's borrowing desk: 16 tools, 880 members, 1,200 titles, 24 kinds of tasks.

`library` is the whole of it; `library:desk` is a small profile (six tools, a short policy) of the same
code for models of a few million parameters.
"""

from __future__ import annotations

import functools
from importlib.resources import files

from ...audit import read
from ...database import Base
from ...domain import Domain
from ...errors import MuaError
from .data import make_tables
from .speech import AgendaUser, Expert
from .tasks import PROFILES, profile_tasks
from .tools import LibraryDesk


@functools.cache
def _base() -> Base:
    return Base(make_tables())


def make(profile: str = "full") -> Domain:
    """The domain in one of its profiles. Raises MuaError for an unknown one."""
    if profile not in PROFILES:
        raise MuaError(f"the library has no profile '{profile}'; it has {', '.join(PROFILES)}")
    settings = PROFILES[profile]
    return Domain(
        name="library" if profile == "full" else f"library:{profile}",
        policy=(files("mua.domains.library") / settings.policy_file).read_text(encoding="utf-8"),
        load_base=_base,
        load_split=lambda split: profile_tasks(profile, _base())[split],
        splits=tuple(settings.mixes),
        toolkits={"assistant": LibraryDesk},
        tool_names={"assistant": settings.tools} if settings.tools else {},
        expert=Expert,
        hasty_expert=functools.partial(Expert, hasty=True),
        agenda_user=AgendaUser,
        conduct=read(files("mua.domains.library") / "audit.yaml"),
    )
