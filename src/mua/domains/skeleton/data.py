"""The database of the repair desk, made from a seed: customers, days, bookings.

Invariant: the same seed gives the same tables on any machine, so nothing needs to be stored.
"""

from __future__ import annotations

import datetime
import functools
import random
from typing import Any

from mua.database import Base

TODAY = datetime.date(2026, 3, 2)
DAYS = [(TODAY + datetime.timedelta(days=n)).isoformat() for n in range(28)]


@functools.cache
def base() -> Base:
    """The tables as all episodes share them."""
    return Base(make_tables())


def make_tables(seed: int = 0) -> dict[str, dict[str, dict[str, Any]]]:
    """All tables as plain JSON values: `{table: {key: row}}`."""
    rng = random.Random(f"repair-desk-{seed}")
    numbers = sorted(f"K{n}" for n in rng.sample(range(1000, 10000), 120))
    customers = {n: {"customer_id": n, "unpaid_cents": rng.choice((0, 0, 0, 4500))} for n in numbers}
    days = {day: {"day": day, "places": rng.choice((4, 8, 16))} for day in DAYS}
    bookings: dict[str, dict[str, Any]] = {}
    for customer in customers:
        for day in rng.sample(DAYS, rng.choice((0, 1, 1, 2))):
            if sum(b["day"] == day for b in bookings.values()) < days[day]["places"]:
                bookings[f"{customer}/{day}"] = {"customer_id": customer, "day": day}
    return {"customers": customers, "days": days, "bookings": bookings, "cases": {}, "handovers": {}}
