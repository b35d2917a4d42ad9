"""The limits of the policy as code, over what the tools answer.

Invariant: pure functions; a decision is the first reason of the policy's order, or None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..times import minutes

TODAY = "2026-02-16"
NOW = "10:05"
EARLY, LATE = 15, 10
"""Minutes before and after the start of a booking in which one can check in."""
MAX_HOURS = 4
MAX_BOOKINGS = 3

Facts = Mapping[str, Any]


def overlap(one: Facts, other: Facts) -> bool:
    """The two times of one day meet; back to back they do not."""
    return minutes(one["start"]) < minutes(other["end"]) and minutes(other["start"]) < minutes(one["end"])


def upcoming(bookings: Sequence[Facts]) -> list[Facts]:
    """The bookings that are not over yet."""
    return [b for b in bookings if (b["day"], minutes(b["end"])) > (TODAY, minutes(NOW))]


def todays(bookings: Sequence[Facts], room: str) -> Facts | None:
    """The booking of the room for today that is not over; the earliest."""
    mine = [b for b in upcoming(bookings) if b["day"] == TODAY and b["room"] == room]
    return min(mine, key=lambda b: minutes(b["start"]), default=None)


def running(bookings: Sequence[Facts], room: str) -> Facts | None:
    """The booking of the room that has begun and is not over."""
    mine = todays(bookings, room)
    return mine if mine and minutes(mine["start"]) <= minutes(NOW) else None


def check_in_refusal(booking: Facts | None) -> str | None:
    """Why one cannot check in to today's booking."""
    if booking is None:
        return "no_booking"
    since = minutes(NOW) - minutes(booking["start"])
    return "too_early" if since < -EARLY else "too_late" if since > LATE else None


def too_long(start: str, end: str) -> bool:
    """It is longer than a booking may be."""
    return minutes(end) - minutes(start) > 60 * MAX_HOURS


def book_refusal(bookings: Sequence[Facts], wish: Facts) -> str | None:
    """Why nothing can be booked, whatever the room."""
    if too_long(wish["start"], wish["end"]):
        return "too_long"
    return "limit" if len(upcoming(bookings)) >= MAX_BOOKINGS else None


def room_refusal(employee: Facts, room: Facts, taken: Sequence[Facts], wish: Facts) -> str | None:
    """Why this room cannot be booked; `taken` are its bookings of that day."""
    if any(overlap(wish, other) for other in taken):
        return "taken"
    if room["seats"] < wish["people"]:
        return "too_small"
    return "restricted" if room["board_room"] and not employee["lead"] else None


def choose(employee: Facts, free: Sequence[Facts]) -> Facts | None:
    """The room to book among free ones that are large enough."""
    mine = [r for r in free if employee["lead"] or not r["board_room"]]
    return min(mine, key=lambda r: (r["seats"], r["room"]), default=None)


def extend_refusal(booking: Facts | None, taken: Sequence[Facts], end: str) -> str | None:
    """Why the running booking cannot go on until `end`; `taken` are the room's bookings of today."""
    if booking is None:
        return "no_booking"
    if too_long(booking["start"], end):
        return "too_long"
    more = {"start": booking["end"], "end": end}
    return "taken" if any(overlap(more, other) for other in taken) else None


def cancel_refusal(bookings: Sequence[Facts], booking_id: str) -> str | None:
    """Why a booking cannot be cancelled by the employee with these bookings."""
    booking = next((b for b in bookings if b["booking_id"] == booking_id), None)
    if booking is None:
        return "not_yours"
    begun = (booking["day"], minutes(booking["start"])) <= (TODAY, minutes(NOW))
    return "started" if begun else None
