"""A hospital's desk for applicants: applications and the documents that belong to them.

What is hard here is to say no: three of five tasks hold something that must be refused or handed over.
"""

from __future__ import annotations

from importlib.resources import files

from ...audit import read
from ...domain import Domain
from ...errors import MuaError
from .data import base
from .speech import Applicant, ApplicantsExpert
from .tasks import SIZES, make_splits
from .tools import ApplicantsDesk


def make(profile: str = "full") -> Domain:
    """The domain. Raises MuaError for an unknown profile."""
    if profile != "full":
        raise MuaError(f"job_application has no profile '{profile}'; it has full")
    return Domain(
        name="job_application",
        policy=(files("mua.domains.job_application") / "policy.md").read_text(encoding="utf-8"),
        load_base=base,
        load_split=lambda split: make_splits(base())[split],
        splits=tuple(SIZES),
        toolkits={"assistant": ApplicantsDesk},
        expert=ApplicantsExpert,
        agenda_user=Applicant,
        conduct=read(files("mua.domains.job_application") / "audit.yaml"),
    )
