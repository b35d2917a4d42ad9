"""The policy as code: what to look up for a request, and what it comes to.

The expert follows it in the conversation and the tasks' gold solutions are made by it, so the two cannot
disagree (`mua.domains.casework`).
"""

from __future__ import annotations

from mua.domains.casework import Desk, Grant, Json, Need, Refuse, Steps
from mua.domains.script import Call

from .data import DAYS
from .tools import RepairDesk

AT_ONCE = frozenset({"complaint", "accident"})
MOST_BOOKINGS = 2


def decide(customer: Json, request: Json) -> Steps:
    """What the policy says to a request of the customer who was found."""
    number = customer["customer_id"]
    day = request.get("day") or (yield Need("day"))
    mine = yield Call("list_bookings", {"customer_id": number})
    if request["do"] == "cancel":
        if day not in mine:
            return Refuse("no_booking")
        if day == DAYS[0]:
            return Refuse("too_late")
        will, done = f"cancel your booking on {day}", f"Your booking on {day} is cancelled."
        return Grant("cancel_booking", {"customer_id": number, "day": day}, will, done)
    if customer["unpaid_cents"] > 0:
        return Refuse("unpaid")
    if len(mine) >= MOST_BOOKINGS:
        return Refuse("limit")
    found = yield Call("get_day", {"day": day})
    if found["free"] < 1:
        return Refuse("full")
    will, done = f"book a repair on {day}", f"Your repair on {day} is booked."
    return Grant("book_day", {"customer_id": number, "day": day}, will, done)


DESK = Desk(
    toolkit=RepairDesk,
    person="customer_id",
    finders={"customer_id": "find_customer"},
    decide=decide,
    at_once=AT_ONCE,
)
