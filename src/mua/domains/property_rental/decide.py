"""The policy of the tenants' desk as code: what to look up, and what it comes to.

Invariant: amounts are computed from whole cents and rounded once, so that every decision is exact.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Generator, Mapping
from typing import Any

from ..casework import Grant, HandOver, Json, Need, Refuse, Steps
from ..script import Call, Refused
from ..today import TODAY

AT_ONCE = frozenset({"legal", "complaint", "rent_increase", "emergency", "disputed_damage"})
LEAST_PAYMENT = 2000
LARGEST_WAIVER = 5000
LARGEST_REFUND = 250_000
NOTICE_DAYS = 60
SHORTEST_NOTICE_DAYS = 14
LEAST_ARREARS = 10_000
PERCENT = {"heating": 50, "hot_water": 25, "lift": 10}
LEAST_OUTAGE_DAYS = 3
CLAIM_DAYS = 90

Looked = Generator[Call | Need, Any, Any]


def share(cents: int, numerator: int, denominator: int) -> int:
    """That fraction of an amount, to the nearest cent, half a cent upwards."""
    return (2 * cents * numerator + denominator) // (2 * denominator)


def euros(cents: int) -> str:
    """`845.50 euros`."""
    return f"{cents // 100}.{cents % 100:02d} euros"


def decide(tenant: Json, request: Json) -> Steps:
    """What the policy says to a request of the tenant who was found."""
    return _POLICIES[request["do"]](tenant, request)


# ---------------------------------------------------------------- charges


def _pay(tenant: Json, request: Json) -> Steps:
    charge = yield from _charge(tenant, request)
    if charge is None:
        return Refuse("not_yours")
    rest = charge["open_cents"]
    if rest <= 0:
        return Refuse("not_open")
    unpaid = yield Call("list_open_charges", {"lease_id": charge["lease_id"]})
    if any(c["due"] < charge["due"] for c in unpaid):
        return Refuse("older_open")
    wanted = request.get("amount") or (yield Need("amount"))
    amount = rest if wanted == "all" else wanted
    if amount > rest:
        return Refuse("too_much")
    if amount < min(LEAST_PAYMENT, rest):
        return Refuse("minimum")
    number = charge["charge_id"]
    what = f"{charge['kind']} {charge['month']}".replace("_", " ")
    return Grant(
        "pay_charge",
        {"charge_id": number, "amount_cents": amount},
        f"take {euros(amount)} from your bank account for charge {number}, {what}",
        f"{euros(amount)} of charge {number} are paid.",
    )


def _waive(tenant: Json, request: Json) -> Steps:
    charge = yield from _charge(tenant, request)
    if charge is None:
        return Refuse("not_yours")
    if charge["kind"] != "late_fee":
        return Refuse("not_late_fee")
    if charge["open_cents"] <= 0:
        return Refuse("not_open")
    unpaid = yield Call("list_open_charges", {"lease_id": charge["lease_id"]})
    if any(c["kind"] == "rent" and c["month"] == charge["month"] for c in unpaid):
        return Refuse("rent_open")
    lease = yield Call("get_lease", {"lease_id": charge["lease_id"]})
    if lease["last_waiver"] and lease["last_waiver"] > _a_year_before(TODAY).isoformat():
        return Refuse("waived_before")
    if charge["amount_cents"] > LARGEST_WAIVER:
        return Refuse("too_large")
    number = charge["charge_id"]
    return Grant(
        "waive_fee",
        {"charge_id": number},
        f"waive the late fee {number} of {euros(charge['open_cents'])}",
        f"The late fee {number} is waived.",
    )


def _charge(tenant: Json, request: Json) -> Looked:
    """The charge that the request is about; None when it is not the tenant's."""
    number = request.get("charge") or (yield Need("charge"))
    charge = yield Call("get_charge", {"charge_id": number})
    return None if isinstance(charge, Refused) or charge["lease_id"] not in tenant["leases"] else charge


# ---------------------------------------------------------------- leases


def _deposit(tenant: Json, request: Json) -> Steps:
    lease = yield from _lease(tenant, request)
    if lease is None:
        return Refuse("not_yours")
    if lease["status"] != "ended":
        return Refuse("not_ended")
    if lease["refunded_cents"] is not None:
        return Refuse("refunded")
    number = lease["lease_id"]
    inspection = yield Call("get_inspection", {"lease_id": number})
    if not inspection["recorded"]:
        return Refuse("no_inspection")
    unpaid = yield Call("list_open_charges", {"lease_id": number})
    deposit = lease["deposit_cents"]
    added = share(deposit, full_years(lease["start"], lease["move_out"]), 100)
    taken = inspection["damage_cents"] + inspection["cleaning_cents"]
    owed = sum(c["open_cents"] for c in unpaid)
    amount = deposit + added + lease["credit_cents"] - taken - owed
    if amount <= 0:
        return Refuse("nothing_left")
    if amount > LARGEST_REFUND:
        return HandOver("large_refund")
    return Grant(
        "refund_deposit",
        {"lease_id": number, "amount_cents": amount},
        f"pay back {euros(amount)} for lease {number}: {euros(deposit)} deposit, plus {euros(added)} for "
        f"full years, plus {euros(lease['credit_cents'])} credit, minus {euros(taken)} damage and cleaning, "
        f"minus {euros(owed)} open charges",
        f"{euros(amount)} are on their way to you.",
    )


def full_years(start: str, end: str) -> int:
    """Full years from one date to another; the anniversary completes the year."""
    return int(end[:4]) - int(start[:4]) - (end[5:] < start[5:])


def _notice(tenant: Json, request: Json) -> Steps:
    lease = yield from _lease(tenant, request)
    if lease is None:
        return Refuse("not_yours")
    if lease["status"] != "active":
        return Refuse("not_active")
    date = request.get("date") or (yield Need("date"))
    days = (datetime.date.fromisoformat(date) - TODAY).days
    if days < SHORTEST_NOTICE_DAYS:
        return Refuse("too_short")
    number, rent = lease["lease_id"], lease["rent_cents"]
    if (yield from _arrears(number)) > rent:
        return Refuse("arrears")
    # In sixtieths of the rent, so that the sum is rounded once.
    sixtieths = 2 * max(0, NOTICE_DAYS - days) + (90 if date < lease["fixed_until"] else 0)
    fee = share(rent, sixtieths, 60)
    return Grant(
        "end_lease",
        {"lease_id": number, "move_out": date, "fee_cents": fee},
        f"end lease {number} on {date}, " + (f"for a fee of {euros(fee)}" if fee else "free of charge"),
        f"Lease {number} ends on {date}.",
    )


def _plan(tenant: Json, request: Json) -> Steps:
    lease = yield from _lease(tenant, request)
    if lease is None:
        return Refuse("not_yours")
    if lease["plan"]:
        return Refuse("plan_running")
    number = lease["lease_id"]
    arrears = yield from _arrears(number)
    if arrears < LEAST_ARREARS:
        return Refuse("too_small")
    if arrears > 3 * lease["rent_cents"]:
        return HandOver("large_arrears")
    rates = request.get("rates") or (yield Need("rates"))
    if not 2 <= rates <= 6:
        return Refuse("rates")
    rate = arrears // rates
    last = arrears - rate * (rates - 1)
    return Grant(
        "set_payment_plan",
        {"lease_id": number, "rates": rates, "rate_cents": rate, "last_rate_cents": last},
        f"let you pay the arrears of lease {number}, {euros(arrears)}, in {rates} monthly rates: "
        f"{rates - 1} of {euros(rate)} and a last one of {euros(last)}",
        f"The plan of {rates} rates is set up.",
    )


def _credit(tenant: Json, request: Json) -> Steps:
    lease = yield from _lease(tenant, request)
    if lease is None:
        return Refuse("not_yours")
    what = request.get("outage") or (yield Need("outage"))
    number = lease["lease_id"]
    outages = yield Call("list_outages", {"lease_id": number})
    outage = next((o for o in outages if o["kind"] == what), None)
    if outage is None:
        return HandOver("unrecorded_defect")
    if outage["last_day"] is None:
        return Refuse("ongoing")
    if outage["credited_cents"] is not None:
        return Refuse("credited")
    first, last = (datetime.date.fromisoformat(outage[k]) for k in ("first_day", "last_day"))
    days = (last - first).days + 1
    if days < LEAST_OUTAGE_DAYS:
        return Refuse("too_brief")
    if (TODAY - last).days > CLAIM_DAYS:
        return Refuse("too_late")
    amount = min(share(lease["rent_cents"], days * PERCENT[what], 3000), lease["rent_cents"])
    name = what.replace("_", " ")
    return Grant(
        "credit_rent",
        {"lease_id": number, "outage": what, "amount_cents": amount},
        f"credit {euros(amount)} to lease {number} for {days} days without {name}",
        f"{euros(amount)} are credited to your lease.",
    )


def _lease(tenant: Json, request: Json) -> Looked:
    """The lease that the request is about; None when it is not the tenant's."""
    mine = tenant["leases"]
    number = request.get("lease") or (mine[0] if len(mine) == 1 else (yield Need("lease")))
    if number not in mine:
        return None
    return (yield Call("get_lease", {"lease_id": number}))


def _arrears(lease: str) -> Looked:
    unpaid = yield Call("list_open_charges", {"lease_id": lease})
    return sum(c["open_cents"] for c in unpaid if c["due"] < TODAY.isoformat())


def _a_year_before(day: datetime.date) -> datetime.date:
    return day.replace(year=day.year - 1)


_POLICIES: Mapping[str, Callable[[Json, Json], Steps]] = {
    "pay": _pay,
    "waive": _waive,
    "deposit": _deposit,
    "notice": _notice,
    "plan": _plan,
    "credit": _credit,
}
