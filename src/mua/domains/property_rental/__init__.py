"""A property company's desk for tenants: rents, deposits, fees and refunds, in whole cents.

What is hard here is arithmetic: the agent computes the amounts, and the end state holds them.
"""

from __future__ import annotations

from importlib.resources import files

from ...audit import read
from ...domain import Domain
from ...errors import MuaError
from .data import base
from .speech import Tenant, TenantsExpert
from .tasks import SIZES, make_splits
from .tools import TenantsDesk


def make(profile: str = "full") -> Domain:
    """The domain. Raises MuaError for an unknown profile."""
    if profile != "full":
        raise MuaError(f"property_rental has no profile '{profile}'; it has full")
    return Domain(
        name="property_rental",
        policy=(files("mua.domains.property_rental") / "policy.md").read_text(encoding="utf-8"),
        load_base=base,
        load_split=lambda split: make_splits(base())[split],
        splits=tuple(SIZES),
        toolkits={"assistant": TenantsDesk},
        expert=TenantsExpert,
        agenda_user=Tenant,
        conduct=read(files("mua.domains.property_rental") / "audit.yaml"),
    )
