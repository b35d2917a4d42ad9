"""The rooms of a company, made from a seed: employees, rooms, what is in them, bookings of three days.

Invariants:
- The same seed gives the same tables on any machine, so nothing needs to be stored.
- No two bookings of a room overlap, and everything in the rooms works: a task sets what does not.
"""

from __future__ import annotations

import random
from typing import Any

from ..people import full_names
from ..times import clock, minutes
from . import policy

Json = dict[str, Any]
Tables = dict[str, dict[str, Json]]

EMPLOYEES = 240
DAYS = (policy.TODAY, "2026-02-17", "2026-02-18")
BUILDINGS = ("A", "B", "C")
PORTS = ("usb-c", "displayport")
"""Ports of laptops that the HDMI cables of the rooms do not fit."""
WORKS: Json = {
    "screen": "ok",
    "input": "hdmi",
    "cable": "plugged",
    "panel": "ok",
    "muted": False,
    "conference": "ok",
}
"""What is in a room when nothing is wrong."""


def make_tables(seed: int = 0) -> Tables:
    """All tables as plain JSON values: `{table: {key: row}}`."""
    rng = random.Random(f"meeting-rooms-{seed}")
    employees: dict[str, Json] = {}
    names = full_names(rng)[:EMPLOYEES]
    for number, name in zip(rng.sample(range(1000, 10000), EMPLOYEES), names, strict=True):
        employees[f"E{number}"] = {
            "employee_id": f"E{number}",
            "name": name,
            "email": f"{name.lower().replace(' ', '.')}@example.com",
            "building": rng.choice(BUILDINGS),
            "lead": rng.random() < 0.2,
        }
    rooms: dict[str, Json] = {}
    for building in BUILDINGS:
        for floor in (1, 2, 3, 4):
            for door in (1, 2, 3, 4, 5):
                room = f"{building}{floor}-{door:02}"
                seats = rng.choice((4, 4, 6, 6, 8, 10, 12, 20))
                rooms[room] = {
                    "room": room,
                    "building": building,
                    "seats": seats,
                    "board_room": seats >= 10 and rng.random() < 0.4,
                    "adapters": sorted(rng.sample(PORTS, rng.choice((0, 1, 1, 2)))),
                }
    return {
        "employees": employees,
        "rooms": rooms,
        "devices": {room: {"room": room, **WORKS} for room in rooms},
        "bookings": _bookings(rng, list(employees), list(rooms)),
        "faults": {},
        "presence": {},
        "cases": {},
        "handovers": {},
    }


def _bookings(rng: random.Random, employees: list[str], rooms: list[str]) -> dict[str, Json]:
    bookings: dict[str, Json] = {}
    mine: dict[str, list[Json]] = {e: [] for e in employees}
    for day in DAYS:
        for room in rooms:
            start = 8 * 60 + rng.choice((0, 30, 60))
            while start < 17 * 60:
                end = start + rng.choice((30, 60, 60, 90, 120))
                who = rng.choice(employees)
                key = f"B{1001 + len(bookings)}"
                begun = day == policy.TODAY and start <= minutes(policy.NOW)
                row = {
                    "booking_id": key,
                    "employee_id": who,
                    "room": room,
                    "day": day,
                    "start": clock(start),
                    "end": clock(end),
                    "status": "checked_in" if begun else "booked",
                }
                meets = any(b["day"] == day and policy.overlap(b, row) for b in mine[who])
                if not meets and len(mine[who]) < policy.MAX_BOOKINGS:
                    bookings[key] = row
                    mine[who].append(row)
                start = end + rng.choice((0, 0, 30, 60, 120))
    return bookings
