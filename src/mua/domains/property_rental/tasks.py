"""Tasks of the tenants' desk, drawn from a seed.

The boundary kinds set rows so that a deciding amount or day is just below, at or just above its limit.

Invariant: wording depends on the content of a request alone, so that no two tasks differ in words only.
"""

from __future__ import annotations

import datetime
import functools
import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ...database import Base, Row, canonical_text, thaw
from ...domain import Change, Task
from ..casework import Desk, Json, gold
from ..drawing import Draft, Draw, Wish, deal
from ..pool import GRANTED, HANDED_OVER, REFUSED, Pool
from ..today import in_days
from .decide import LARGEST_REFUND, euros, full_years, share
from .speech import DESK

SIZES = {"train": 986, "dev": 136, "test": 204}


# ---------------------------------------------------------------- words

_WANT = {
    "pay": ("pay {part}{charge}", "settle {part}{charge}"),
    "pay something": ("make a payment for {charge}",),
    "waive": ("have {charge} waived, a late fee", "get rid of {charge}, a late fee"),
    "deposit": ("get {{my}} deposit back{lease}", "have {{my}} deposit paid out{lease}"),
    "notice": ("end {{my}} lease{number}{date}", "move out and end {{my}} lease{number}{date}"),
    "plan": ("pay {{my}} arrears{lease}{rates}", "settle what {{I}} owe{lease}{rates}"),
    "credit": (
        "get money back{outage}{lease}",
        "have {{my}} rent reduced afterwards{outage}{lease}",
    ),
    "legal": ("talk about a letter that {{my}} lawyer wrote",),
    "complaint": ("complain about the noise of {{my}} neighbours", "complain about the caretaker"),
    "rent_increase": ("object to the rent increase that was announced to {{me}}",),
    "emergency": ("report water that is running through the ceiling", "report a smell of gas in the flat"),
    "disputed_damage": ("say that the damage in the inspection report was not {{my}} doing",),
}
_TOPICS = {
    "charge": "charge {}",
    "lease": " for lease {}",
    "date": " on {}",
    "rates": " in {} monthly rates",
    "outage": " for the days without {}",
}
_UNTOLD = {"charge": "one of {my} charges", "rates": " in rates", "outage": " for an outage"}
_LATER = {
    "charge": "it is charge {}",
    "lease": "it is lease {}",
    "amount": "it shall be {}",
    "date": "on {}",
    "rates": "in {} monthly rates",
    "outage": "it was the {}",
}


def make_wish(data: Json, late: Sequence[str] = (), **more: Any) -> Wish:
    """A request in words; the topics in `late` are told only when the person is asked."""
    told = {k: v for k, v in data.items() if k not in late}
    texts = {k: _TOPICS[k].format(_said(k, told[k])) if k in told else _UNTOLD.get(k, "") for k in _TOPICS}
    amount = told.get("amount")
    part = "all of " if amount == "all" else f"{euros(amount)} of " if amount else ""
    number = f" {told['lease']}" if "lease" in told else ""
    rng = random.Random(canonical_text([data, list(late)]))
    do = "pay something" if "amount" in late else data["do"]
    want = rng.choice(_WANT[do]).format(part=part, number=number, **texts)
    must = [str(told[k]) for k in ("charge", "lease", "date") if k in told]
    must += [euros(amount).removesuffix(" euros")] if isinstance(amount, int) else []
    must += [f" {data['rates']} "] if "rates" in data else []
    must += [_said("outage", data["outage"])] if "outage" in data else []
    later = {k: (_LATER[k].format(_said(k, data[k])), {k: data[k]}) for k in late}
    return Wish(want, told, must, later, **more)


def _said(topic: str, value: Any) -> str:
    if topic == "amount":
        return "all of it" if value == "all" else euros(value)
    return str(value).replace("_", " ")


# ---------------------------------------------------------------- what there is to ask for


class RentalPool(Pool):
    """What tenants could ask for."""

    desk: ClassVar[Desk] = DESK
    table: ClassVar[str] = "tenants"
    number: ClassVar[str] = "tenant number"

    def suggested(self, rng: random.Random, person: str) -> Sequence[Json]:
        out: list[Json] = []
        for lease in self.leases(person):
            for charge, row in self.charges(lease):
                rest = row["open_cents"]
                part = rng.choice((500, 1999, 2000, rest // 2 // 100 * 100, rest - 1, rest + 1, rest + 5000))
                out += [{"do": "pay", "charge": charge, "amount": a} for a in ("all", max(part, 100))]
                if row["kind"] == "late_fee" or rng.random() < 0.1:
                    out.append({"do": "waive", "charge": charge})
            out.append({"do": "deposit", "lease": lease})
            for _ in range(2):
                days = rng.choice((rng.randrange(1, 14), rng.randrange(14, 60), rng.randrange(60, 200)))
                out.append({"do": "notice", "lease": lease, "date": in_days(days)})
                out.append({"do": "plan", "lease": lease, "rates": rng.choice((1, 2, 3, 4, 5, 6, 6, 7, 12))})
            recorded = [row["kind"] for _, row in self.rows("outages", lease, "lease_id")]
            for what in (rng.choice(("heating", "hot_water", "lift")), *recorded):
                out.append({"do": "credit", "lease": lease, "outage": what})
        return out

    def wish(self, data: Json, late: Sequence[str] = (), **more: Any) -> Wish:
        return make_wish(data, late, **more)

    def short(self, rng: random.Random, person: str, data: Json) -> Json:
        """Without the lease, where the tenant has only one, half of the time."""
        if len(self.leases(person)) > 1 or rng.random() < 0.5:
            return data
        return {k: v for k, v in data.items() if k != "lease"}

    def leases(self, person: str) -> list[str]:
        return [key for key, _ in self.rows("leases", person)]

    def charges(self, lease: str) -> list[tuple[str, Row]]:
        return self.rows("charges", lease, "lease_id")


# ---------------------------------------------------------------- kinds


def make_kinds(base: Base) -> dict[str, Draw]:
    """Every kind of task, by name."""
    pool = RentalPool(base)

    def part(rng: random.Random):
        tenant, data = pool.draw(rng, "pay", GRANTED)
        return pool.draft(tenant, make_wish(data)) if data["amount"] != "all" else None

    def not_yours(rng: random.Random):
        tenant = rng.choice(pool.people)
        owner, data = pool.draw(rng, rng.choice(("pay", "waive", "deposit", "plan")), GRANTED)
        if owner == tenant:
            return None
        if data["do"] in ("deposit", "plan"):
            data = {**data, "lease": pool.leases(owner)[0]}
        return pool.draft(tenant, make_wish(data, insist=rng.random() < 0.5))

    def missing(rng: random.Random):
        tenant, data = pool.any(rng)
        known = [k for k in data if k != "do" and (k != "lease" or len(pool.leases(tenant)) > 1)]
        return pool.draft(tenant, make_wish(data, [rng.choice(known)])) if known else None

    def change(rng: random.Random):
        tenant, data = pool.draw(rng, rng.choice(("pay", "notice", "plan")), GRANTED)
        other = dict(data)
        if data["do"] == "pay":
            rest = pool.tables["charges"][data["charge"]]["open_cents"]
            other["amount"] = rng.choice((2000, 2500, 4000, rest // 200 * 100 or 100))
        elif data["do"] == "notice":
            other["date"] = in_days(rng.randrange(5, 150))
        else:
            other["rates"] = rng.choice((2, 3, 4, 5, 6, 7))
        return pool.draft(tenant, make_wish(data, change=make_wish(other))) if other != data else None

    def at_most(rng: random.Random):
        """The tenant has a price in mind; whether the fee is above it shows only in the proposal."""
        tenant, data = pool.draw(rng, "notice", GRANTED)
        limit = rng.choice((10_000, 25_000, 50_000, 75_000, 100_000, 150_000))
        note = f"You agree to that only if the fee is at most {euros(limit)}; else say that you leave it."
        return pool.draft(tenant, make_wish(data, more={"at_most": limit}, note=note))

    def clear_the_way(rng: random.Random):
        """What stands in the way of the last request is paid first."""
        do, reason = rng.choice((("pay", "older_open"), ("waive", "rent_open")))
        tenant, blocked = pool.draw(rng, do, reason)
        row = pool.tables["charges"][blocked["charge"]]
        unpaid = [(r["due"], k) for k, r in pool.charges(row["lease_id"]) if r["open_cents"]]
        before = [k for due, k in sorted(unpaid) if due < row["due"]]
        if not 1 <= len(before) <= 3:
            return None
        first = [make_wish({"do": "pay", "charge": key, "amount": "all"}) for key in before]
        return pool.draft(tenant, *first, make_wish(blocked))

    requests = ("pay", "waive", "deposit", "notice", "plan", "credit")
    return {
        **{do: pool.one(do, GRANTED) for do in requests},
        **{f"{do}_refused": pool.one(do, REFUSED) for do in requests},
        **{f"{do}_boundary": draw for do, draw in _boundaries(pool).items()},
        "pay_part": part,
        "too_much_for_the_desk": pool.one(None, HANDED_OVER),
        "not_yours": not_yours,
        "missing": missing,
        "change": change,
        "at_most": at_most,
        "clear_the_way": clear_the_way,
        **pool.common(),
    }


# ---------------------------------------------------------------- boundaries


def _boundaries(pool: RentalPool) -> dict[str, Draw]:
    """Kinds whose deciding amount or day is just below, at or just above a limit."""
    tables = pool.tables
    active = [k for k, r in tables["leases"].items() if r["status"] == "active" and not r["plan"]]
    fees = [k for k, r in tables["charges"].items() if r["kind"] == "late_fee" and r["open_cents"]]
    unpaid = [k for k, r in tables["charges"].items() if r["open_cents"] > 2001]

    def row(table: str, key: str, **changes: Any) -> Change:
        return Change(table, key, thaw(tables[table][key]) | changes)

    def draft(rng: random.Random, lease: str, data: Json, *setup: Change) -> Draft:
        tenant = tables["leases"][lease]["tenant_id"]
        data = pool.short(rng, tenant, {**data, "lease": lease} if "charge" not in data else data)
        return pool.draft(tenant, make_wish(data), setup=setup)

    def arrears(lease: str, cents: int) -> list[Change]:
        """Rows that make the arrears of a lease just so."""
        first, *others = pool.charges(lease)
        return [row("charges", first[0], amount_cents=cents, open_cents=cents)] + [
            row("charges", key, open_cents=0) for key, r in others if r["open_cents"]
        ]

    def pay(rng: random.Random):
        key = rng.choice(unpaid)
        lease, rest = tables["charges"][key]["lease_id"], tables["charges"][key]["open_cents"]
        others = [
            row("charges", k, open_cents=0) for k, r in pool.charges(lease) if r["open_cents"] and k != key
        ]
        amount = rng.choice((1999, 2000, 2001, rest - 1, rest, rest + 1))
        if rng.random() < 0.3:  # a rest below the least payment can be paid, but only whole
            others.append(row("charges", key, open_cents=1500))
            amount = rng.choice((1499, 1500, 1501))
        return draft(rng, lease, {"do": "pay", "charge": key, "amount": amount}, *others)

    def waive(rng: random.Random):
        key = rng.choice(fees)
        fee = tables["charges"][key]
        rent = next(
            k for k, r in pool.charges(fee["lease_id"]) if (r["kind"], r["month"]) == ("rent", fee["month"])
        )
        size, waived = rng.choice(
            ((4999, None), (5000, None), (5001, None), (3000, -366), (3000, -365), (3000, -364))
        )
        return draft(
            rng,
            fee["lease_id"],
            {"do": "waive", "charge": key},
            row("charges", key, amount_cents=size, open_cents=size),
            row("charges", rent, open_cents=0),
            row("leases", fee["lease_id"], last_waiver=in_days(waived) if waived else None),
        )

    def deposit(rng: random.Random):
        lease = rng.choice(list(tables["inspections"]))
        home = tables["leases"][lease]
        anniversary = rng.choice((None, -1, 0, 1))
        start = home["start"]
        if anniversary is not None:
            moved = datetime.date.fromisoformat(home["move_out"])
            if (moved.month, moved.day) == (2, 29):
                return None
            start = (moved.replace(year=moved.year - 2) + datetime.timedelta(days=anniversary)).isoformat()
        whole = home["deposit_cents"] + share(home["deposit_cents"], full_years(start, home["move_out"]), 100)
        whole += home["credit_cents"] - sum(r["open_cents"] for _, r in pool.charges(lease))
        left = rng.choice((-1, 0, 1, LARGEST_REFUND - 1, LARGEST_REFUND, LARGEST_REFUND + 1))
        if anniversary is not None:
            left = min(whole, 60_000)
        if left > whole:
            return None
        return draft(
            rng,
            lease,
            {"do": "deposit"},
            row("leases", lease, refunded_cents=None, start=start, fixed_until=home["move_out"]),
            row("inspections", lease, damage_cents=whole - left, cleaning_cents=0),
        )

    def notice(rng: random.Random):
        lease = rng.choice(active)
        rent = tables["leases"][lease]["rent_cents"]
        days, term, owed = 70, -10, 0
        which = rng.randrange(4)
        if which == 0:
            days = rng.choice((13, 14, 15))
        elif which == 1:
            days = rng.choice((59, 60, 61))
        elif which == 2:
            term = rng.choice((-1, 0, 1))
        else:
            owed = rent + rng.choice((-1, 0, 1))
        home = row("leases", lease, fixed_until=in_days(days + term))
        return draft(rng, lease, {"do": "notice", "date": in_days(days)}, home, *arrears(lease, owed))

    def plan(rng: random.Random):
        lease = rng.choice(active)
        rent = tables["leases"][lease]["rent_cents"]
        owed, rates = 10_000 + rng.choice((-1, 0, 1)), rng.choice((2, 3))
        if rng.random() < 0.3:
            owed = 3 * rent + rng.choice((-1, 0, 1))
        elif rng.random() < 0.5:
            owed, rates = rng.randrange(20_000, rent), rng.choice((1, 2, 6, 7))
        return draft(rng, lease, {"do": "plan", "rates": rates}, *arrears(lease, owed))

    def credit(rng: random.Random):
        lease, what = rng.choice(list(tables["leases"])), rng.choice(("heating", "hot_water", "lift"))
        days, ago = rng.choice(
            ((2, 9), (3, 9), (4, 9), (7, 89), (7, 90), (7, 91), (59, 30), (60, 30), (61, 30))
        )
        outage = {
            "lease_id": lease,
            "kind": what,
            "first_day": in_days(-ago - days + 1),
            "last_day": in_days(-ago),
            "credited_cents": None,
        }
        return draft(
            rng, lease, {"do": "credit", "outage": what}, Change("outages", f"{lease}/{what}", outage)
        )

    return {"pay": pay, "waive": waive, "deposit": deposit, "notice": notice, "plan": plan, "credit": credit}


@functools.cache
def make_splits(base: Base) -> Mapping[str, Sequence[Task]]:
    """The tasks of every split."""
    kinds = make_kinds(base)
    return deal(kinds, SIZES, "property-rental", lambda draft: gold(DESK, base, draft))
