"""The tools of the service desk, and those of the person in the room. Both act on one database.

A tool refuses only what makes no sense in the database. Whether a request may be granted is the policy's
matter and the agent's: a tool books a room that is taken, and the end state shows it. What the person sees
of a room follows from `devices` and `presence`; the agent cannot see it.
"""

from __future__ import annotations

import re
from typing import Literal

from ...database import Database, Row, thaw
from ...tools import ToolError, ends, reads, writes
from ..records import add_case, add_handover
from ..times import minutes
from . import policy

Request = Literal["screen", "sound", "check_in", "book", "extend", "move", "cancel"]
Outcome = Literal["solved", "refused", "withdrawn"]
Reason = Literal[
    "restart",
    "input",
    "cable",
    "adapter",
    "unmute",
    "reset",
    "checked_in",
    "known_fault",
    "no_booking",
    "too_early",
    "too_late",
    "too_long",
    "limit",
    "taken",
    "too_small",
    "restricted",
    "no_room",
    "not_yours",
    "started",
    "changed_mind",
]
HandoverReason = Literal["safety", "lost_property", "dispute", "complaint", "not_identified"]
Part = Literal["screen", "adapter", "conference", "panel"]


class ServiceDesk:
    """The agent's tools."""

    def __init__(self, db: Database):
        self.db = db

    @reads
    def find_employee(self, employee_id: str) -> dict:
        """Find an employee by number.

        Args:
            employee_id: Employee number: E and four digits.
        """
        row = self.db.get("employees", employee_id)
        if row is None:
            raise ToolError(f"no employee has the number {employee_id[:20]}")
        return thaw(row)

    @reads
    def find_employee_by_email(self, email: str) -> dict:
        """Find an employee by e-mail address.

        Args:
            email: E-mail address.
        """
        for _, row in self.db.where("employees", email=email):
            return thaw(row)
        raise ToolError(f"no employee has the e-mail address {email[:60]}")

    @reads
    def list_bookings(self, employee_id: str) -> list[dict]:
        """The bookings of an employee from today on, in the order of time.

        Args:
            employee_id: Employee number.
        """
        self.find_employee(employee_id)
        rows = [thaw(row) for _, row in self.db.where("bookings", employee_id=employee_id)]
        return sorted(rows, key=lambda r: (r["day"], r["start"], r["booking_id"]))

    @reads
    def get_room(self, room: str) -> dict:
        """A room: building, seats, board room or not, adapters that lie in it, parts reported as broken.

        Args:
            room: Room, such as B2-03.
        """
        row = thaw(self._room(room))
        reported = sorted(fault["part"] for _, fault in self.db.where("faults", room=room))
        return {**row, "reported": reported}

    @reads
    def get_room_bookings(self, room: str, day: str) -> list[dict]:
        """When a room is booked on a day, in the order of time.

        Args:
            room: Room.
            day: Day, such as 2026-02-17.
        """
        self._room(room)
        keys = ("booking_id", "start", "end")
        return sorted(
            ({k: row[k] for k in keys} for _, row in self.db.where("bookings", room=room, day=day)),
            key=lambda r: (r["start"], r["booking_id"]),
        )

    @reads
    def find_rooms(
        self, building: Literal["A", "B", "C"], day: str, start: str, end: str, seats: int
    ) -> list[dict]:
        """The rooms of a building that are free all that time and have enough seats.

        Args:
            building: Building.
            day: Day, such as 2026-02-17.
            start: Start, such as 09:30.
            end: End, such as 11:00.
            seats: How many people need a seat.
        """
        wish = {"start": _time(start), "end": _time(end)}
        free = []
        for key, row in self.db.where("rooms", building=building):
            taken = [other for _, other in self.db.where("bookings", room=key, day=day)]
            if row["seats"] >= seats and not any(policy.overlap(wish, other) for other in taken):
                free.append({k: row[k] for k in ("room", "seats", "board_room")})
        return free

    @writes
    def book_room(self, employee_id: str, room: str, day: str, start: str, end: str) -> dict:
        """Book a room.

        Args:
            employee_id: Employee number.
            room: Room.
            day: Day, such as 2026-02-17.
            start: Start, such as 09:30.
            end: End, such as 11:00.
        """
        self.find_employee(employee_id)
        self._room(room)
        if minutes(_time(start)) >= minutes(_time(end)):
            raise ToolError(f"a booking cannot end at {end} when it begins at {start}")
        key = f"B{max(int(k[1:]) for k in self.db.keys('bookings')) + 1}"
        row = {"booking_id": key, "employee_id": employee_id, "room": room, "day": day}
        self.db.put("bookings", key, {**row, "start": start, "end": end, "status": "booked"})
        return {"booked": key, "room": room}

    @writes
    def extend_booking(self, booking_id: str, end: str) -> dict:
        """Let a booking end later.

        Args:
            booking_id: Booking, such as B1040.
            end: The new end.
        """
        if minutes(_time(end)) <= minutes(self._booking(booking_id)["end"]):
            raise ToolError(f"{end} is not later than the booking's end")
        self.db.update("bookings", booking_id, end=end)
        return {"extended": booking_id, "end": end}

    @writes
    def move_booking(self, booking_id: str, room: str) -> dict:
        """Move a booking to another room.

        Args:
            booking_id: Booking.
            room: The new room.
        """
        self._room(room)
        if self._booking(booking_id)["room"] == room:
            raise ToolError(f"{booking_id} is in {room} already")
        self.db.update("bookings", booking_id, room=room)
        return {"moved": booking_id, "room": room}

    @writes
    def cancel_booking(self, booking_id: str) -> dict:
        """Cancel a booking.

        Args:
            booking_id: Booking.
        """
        self._booking(booking_id)
        self.db.delete("bookings", booking_id)
        return {"cancelled": booking_id}

    @writes
    def check_in_remotely(self, booking_id: str) -> dict:
        """Check a booking in without the panel of the room.

        Args:
            booking_id: Booking.
        """
        if self._booking(booking_id)["status"] == "checked_in":
            raise ToolError(f"{booking_id} is checked in already")
        self.db.update("bookings", booking_id, status="checked_in")
        return {"checked_in": booking_id}

    @writes
    def reset_conference_unit(self, room: str) -> dict:
        """Reset the conference unit of a room from afar; a call that runs there is cut off.

        Args:
            room: Room.
        """
        self._room(room)
        devices = self.db.get("devices", room)
        assert devices is not None
        # Whether that helped is heard in the room only.
        if devices["conference"] == "hung":
            self.db.update("devices", room, conference="ok")
        return {"reset": room}

    @writes
    def report_fault(self, room: str, part: Part) -> dict:
        """Report a broken or missing part of a room to the technicians.

        Args:
            room: Room.
            part: What is broken, or missing.
        """
        self._room(room)
        if self.db.get("faults", f"{room}/{part}"):
            raise ToolError(f"the {part} of {room} is reported already")
        self.db.put("faults", f"{room}/{part}", {"room": room, "part": part})
        return {"reported": part, "room": room}

    @writes
    def record_case(self, employee_id: str, request: Request, outcome: Outcome, reason: Reason) -> dict:
        """Record how a request ended, unless a change or a report already shows it.

        Args:
            employee_id: Employee number.
            request: What was asked for.
            outcome: How it ended.
            reason: Why, or what helped.
        """
        self.find_employee(employee_id)
        return add_case(self.db, employee_id=employee_id, request=request, outcome=outcome, reason=reason)

    @ends
    def transfer_to_human(self, reason: HandoverReason, summary: str = "") -> dict:
        """Hand the conversation over to a colleague; it ends here.

        Args:
            reason: Why a colleague must take over.
            summary: What the colleague needs to know.
        """
        return add_handover(self.db, reason)

    def _room(self, room: str) -> Row:
        row = self.db.get("rooms", room)
        if row is None:
            raise ToolError(f"there is no room {room[:20]}; find_rooms lists the rooms of a building")
        return row

    def _booking(self, booking_id: str) -> Row:
        row = self.db.get("bookings", booking_id)
        if row is None:
            raise ToolError(f"there is no booking {booking_id[:20]}; list_bookings shows an employee's")
        return row


def _time(text: str) -> str:
    """The text, if it is a time of a day."""
    if not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", text):
        raise ToolError(f"'{text[:20]}' is not a time such as 09:30")
    return text


class InTheRoom:
    """The person's own tools: what it can see and touch where it is."""

    def __init__(self, db: Database):
        self.db = db

    @reads
    def look_at_screen(self) -> str:
        """Look at what the screen of the room shows."""
        devices = self._devices()
        if devices["screen"] != "ok":
            return "The screen shows a frozen picture."
        if devices["input"] != "hdmi" or devices["cable"] == "loose" or not self._fits():
            return f"The screen shows: no signal on {devices['input']}."
        return "The screen shows the picture of my laptop."

    @writes
    def restart_screen(self) -> str:
        """Switch the screen off and on again."""
        if self._devices()["screen"] == "frozen":
            self._set(screen="ok")
        return f"It was off for a moment. {self.look_at_screen()}"

    @writes
    def select_input(self, source: Literal["hdmi", "wireless"]) -> str:
        """Select the screen's input on its remote control.

        Args:
            source: The input.
        """
        self._set(input=source)
        return self.look_at_screen()

    @reads
    def check_cable(self) -> str:
        """Look at the HDMI cable between the screen and the laptop."""
        if self._devices()["cable"] == "loose":
            return "The cable is loose."
        port = self._me()["port"]
        return (
            "The cable is in." if self._fits() else f"The cable does not fit my laptop: it has a {port} port."
        )

    @writes
    def plug_in_cable(self) -> str:
        """Push the HDMI cable firmly into the screen."""
        self._set(cable="plugged")
        return f"The cable is firmly in now. {self.look_at_screen()}"

    @writes
    def plug_in_adapter(self, port: Literal["usb-c", "displayport"]) -> str:
        """Take an adapter from the drawer of the room and put it between cable and laptop.

        Args:
            port: The port of the laptop that the adapter is for.
        """
        me = self._me()
        room = self.db.get("rooms", me["room"])
        assert room is not None
        if port not in room["adapters"]:
            raise ToolError(f"there is no adapter for {port} in the drawer")
        self.db.update("presence", "me", adapter=port)
        return f"The adapter is in. {self.look_at_screen()}"

    @reads
    def test_sound(self) -> str:
        """Say something and see whether the others in the call hear it."""
        devices = self._devices()
        if devices["conference"] != "ok":
            return "There is no sound at all."
        return "The light of the microphone is red." if devices["muted"] else "The others can hear me."

    @writes
    def press_mute_button(self) -> str:
        """Press the mute button of the microphone."""
        self._set(muted=not self._devices()["muted"])
        return f"The button clicked. {self.test_sound()}"

    @reads
    def look_at_panel(self) -> str:
        """Look at the panel at the door."""
        if self._devices()["panel"] != "ok":
            return "The panel is frozen."
        return (
            "The panel shows a button to check in." if self._mine() else "The panel shows no booking of mine."
        )

    @writes
    def restart_panel(self) -> str:
        """Hold the button at the side of the panel until it starts again."""
        if self._devices()["panel"] == "frozen":
            self._set(panel="ok")
        return f"It started again. {self.look_at_panel()}"

    @writes
    def press_check_in(self) -> str:
        """Press the button to check in on the panel."""
        mine = self._mine()
        if self._devices()["panel"] != "ok" or mine is None:
            raise ToolError("the panel shows no button to check in")
        self.db.update("bookings", mine, status="checked_in")
        return "The panel says: checked in."

    def _me(self) -> Row:
        row = self.db.get("presence", "me")
        if row is None:
            raise ToolError("you are not in a room")
        return row

    def _devices(self) -> Row:
        row = self.db.get("devices", self._me()["room"])
        assert row is not None
        return row

    def _set(self, **fields: str | bool) -> None:
        self.db.update("devices", self._me()["room"], **fields)

    def _fits(self) -> bool:
        me = self._me()
        return me["port"] in ("hdmi", me["adapter"])

    def _mine(self) -> str | None:
        """The booking that the panel lets the person check in to."""
        me = self._me()
        rows = [row for _, row in self.db.where("bookings", employee_id=me["employee_id"], room=me["room"])]
        booking = policy.todays(rows, me["room"])
        if booking is None or booking["status"] == "checked_in" or policy.check_in_refusal(booking):
            return None
        return booking["booking_id"]
