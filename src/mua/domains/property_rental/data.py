"""The database of the tenants' desk, made from a seed: tenants, leases, charges, inspections, outages.

Invariant: all money is whole cents, and the same seed gives the same tables on any machine.
"""

from __future__ import annotations

import datetime
import functools
import random
from typing import Any

from ...database import Base
from ..people import birthday, full_names
from ..today import TODAY

TENANTS = 300

Tables = dict[str, dict[str, dict[str, Any]]]

_STREETS = ("Canal Street", "Orchard Road", "Mill Lane", "Station Square", "Linden Avenue", "North Quay")
_CITIES = ("Alton", "Berwick", "Calder")
MONTHS = ("2025-12", "2026-01", "2026-02")
_DAY = {"rent": 1, "utilities": 10, "late_fee": 15, "repair": 20}
"""Day of the month on which a charge of each kind is due."""
_LATE_FEES = (1500, 2500, 3500, 4999, 5000, 5001, 6500)


@functools.cache
def base() -> Base:
    """The tables as all episodes share them."""
    return Base(make_tables())


def make_tables(seed: int = 0) -> Tables:
    """All tables as plain JSON values: `{table: {key: row}}`."""
    rng = random.Random(f"property-rental-{seed}")
    tables: Tables = {
        name: {} for name in ("tenants", "leases", "charges", "inspections", "outages", "cases", "handovers")
    }
    names = full_names(rng)
    for number, name in zip(sorted(rng.sample(range(1000, 10000), TENANTS)), names, strict=False):
        tenant = f"T{number}"
        tables["tenants"][tenant] = {
            "tenant_id": tenant,
            "name": name,
            "date_of_birth": birthday(rng),
            "email": f"{name.lower().replace(' ', '.')}@example.org",
        }
        statuses = [rng.choice(("active", "active", "active", "notice", "ended", "ended"))]
        if rng.random() < 0.25:  # who moved house, or rents a garage
            statuses.append(rng.choice(("active", "ended")))
        for status in statuses:
            _add_lease(tables, rng, tenant, status)
    return tables


def _add_lease(tables: Tables, rng: random.Random, tenant: str, status: str) -> None:
    lease = f"L{1001 + len(tables['leases'])}"
    rent = rng.randrange(38000, 145000, 5) + rng.choice((0, 0, 1, 3))
    start = TODAY - datetime.timedelta(days=rng.randrange(200, 2600))
    move_out = None
    if status == "notice":
        move_out = TODAY + datetime.timedelta(days=rng.randrange(5, 80))
    elif status == "ended":
        move_out = TODAY - datetime.timedelta(days=rng.randrange(3, 60))
    tables["leases"][lease] = {
        "lease_id": lease,
        "tenant_id": tenant,
        "flat": f"{rng.randint(1, 99)} {rng.choice(_STREETS)}, {rng.choice(_CITIES)}",
        "status": status,
        "rent_cents": rent,
        "deposit_cents": rent * rng.choice((1, 2, 2, 3)),
        "start": start.isoformat(),
        "fixed_until": (start + datetime.timedelta(days=rng.choice((365, 730, 1095)))).isoformat(),
        "move_out": move_out.isoformat() if move_out else None,
        "credit_cents": rng.choice((0, 0, 0, 2500, 4317)),
        "last_waiver": (
            (TODAY - datetime.timedelta(days=rng.randrange(60, 700))).isoformat()
            if rng.random() < 0.5
            else None
        ),
        "plan": {"rates": 3, "rate_cents": 12000, "last_rate_cents": 12001} if rng.random() < 0.1 else None,
        "refunded_cents": rent if status == "ended" and rng.random() < 0.15 else None,
    }
    owing = rng.random()
    for month in MONTHS:
        # Some owe nothing, most something of the last month, a few hardly pay at all.
        behind = owing > (0.95 if month == "2025-12" else 0.8 if month == "2026-01" else 0.35)
        _add_charge(tables, rng, lease, "rent", month, rent, behind and rng.random() < 0.6)
        if rng.random() < 0.5:
            _add_charge(tables, rng, lease, "utilities", month, rng.randrange(1900, 16000), behind)
        if behind or rng.random() < 0.2:
            _add_charge(tables, rng, lease, "late_fee", month, rng.choice(_LATE_FEES), rng.random() < 0.8)
    if rng.random() < 0.2:
        _add_charge(tables, rng, lease, "repair", "2026-02", rng.randrange(3000, 40000), True)
    if status == "ended" and rng.random() < 0.85:
        tables["inspections"][lease] = {
            "lease_id": lease,
            "damage_cents": rng.choice((0, 0, rng.randrange(1000, 60000), rent * 3)),
            "cleaning_cents": rng.choice((0, 9900, rng.randrange(2000, 20000))),
        }
    for kind in rng.sample(("heating", "hot_water", "lift"), rng.choice((0, 1, 1, 2))):
        first = TODAY - datetime.timedelta(days=rng.randrange(4, 150))
        last = first + datetime.timedelta(days=rng.choice((0, 1, 2, 3, 5, 8, 13, 30, 80)))
        tables["outages"][f"{lease}/{kind}"] = {
            "lease_id": lease,
            "kind": kind,
            "first_day": first.isoformat(),
            "last_day": last.isoformat() if last < TODAY else None,
            "credited_cents": 5000 if rng.random() < 0.15 else None,
        }


def _add_charge(
    tables: Tables, rng: random.Random, lease: str, kind: str, month: str, amount: int, is_open: bool
) -> None:
    charge = f"C{20001 + len(tables['charges'])}"
    tables["charges"][charge] = {
        "charge_id": charge,
        "lease_id": lease,
        "kind": kind,
        "month": month,
        "due": f"{month}-{_DAY[kind]:02d}",
        "amount_cents": amount,
        "open_cents": (amount if kind == "late_fee" or rng.random() < 0.7 else amount // 3) if is_open else 0,
    }
