"""Tasks of the repair desk, drawn from a seed.

Invariant: wording depends on the content of a request alone, so that no two tasks differ in words only.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mua.database import Base
from mua.domain import Task
from mua.domains.casework import Desk, Json, gold
from mua.domains.drawing import Draw, Wish, deal
from mua.domains.pool import GRANTED, REFUSED, Pool

from .data import DAYS
from .decide import DESK

SIZES = {"train": 240, "dev": 40, "test": 80}
_WANT = {
    "book": "have {{my}} bicycle repaired{day}",
    "cancel": "cancel {{my}} repair{day}",
    "complaint": "complain about a repair",
    "accident": "report an accident with a bicycle that you repaired",
}


class RepairPool(Pool):
    """What customers could ask for."""

    desk: ClassVar[Desk] = DESK
    table: ClassVar[str] = "customers"
    number: ClassVar[str] = "customer number"

    def suggested(self, rng: random.Random, person: str) -> Sequence[Json]:
        mine = [row["day"] for _, row in self.rows("bookings", person)]
        free = [day for day in DAYS if day not in mine]
        out = [{"do": "book", "day": day} for day in rng.sample(free, 6)]
        return out + [{"do": "cancel", "day": day} for day in (*mine, rng.choice(free))]

    def wish(self, data: Json, late: Sequence[str] = (), **more: Any) -> Wish:
        told = {k: v for k, v in data.items() if k not in late}
        want = _WANT[data["do"]].format(day=f" on {told['day']}" if "day" in told else "")
        later = {topic: (f"on {data[topic]}", {topic: data[topic]}) for topic in late}
        return Wish(want, told, [data["day"]] if "day" in data else [], later, **more)

    def kinds(self) -> Mapping[str, Draw]:
        """Kinds of tasks, by name: those that every desk has (but nobody is found by name), and its own."""
        common = {name: draw for name, draw in self.common().items() if name != "by_name"}
        return {
            **common,
            "book": self.one("book", GRANTED),
            "unpaid": self.one("book", "unpaid"),
            "limit": self.one("book", "limit"),
            "full": self.one("book", "full"),
            "cancel": self.one("cancel", GRANTED),
            "cancel_refused": self.one("cancel", REFUSED),
            "no_day": self._no_day,
            "change": self._change,
        }

    def _no_day(self, rng: random.Random):
        person, data = self.draw(rng, None, GRANTED, REFUSED)
        return self.draft(person, self.wish(data, late=["day"]))

    def _change(self, rng: random.Random):
        person, data = self.draw(rng, "book", GRANTED)
        other = rng.choice([d for d in DAYS if d != data["day"]])
        if {"customer_id": person, "day": other} in [dict(row) for _, row in self.rows("bookings", person)]:
            return None
        return self.draft(person, self.wish(data, change=self.wish({"do": "book", "day": other})))


@functools.cache
def make_splits(base: Base) -> Mapping[str, Sequence[Task]]:
    """The tasks of every split."""
    return deal(RepairPool(base).kinds(), SIZES, "repair-desk", lambda draft: gold(DESK, base, draft))
