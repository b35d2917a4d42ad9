"""Tasks of the service desk, made from a seed.

In most of them the person is in a room where something does not work, and has to act there before the agent
can finish. The kinds named `edge_…` lie on the two sides of a limit of the policy.

Invariant: a task's gold calls, the person's own among them, are what `casework.gold` makes of it by the
policy; every outcome is a write.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...database import Base
from ...domain import Change, Task
from ..casework import Grant, Refuse, decision_on, gold
from ..drawing import Draft, Draw, Wish, deal
from ..times import clock, minutes
from . import policy
from .data import BUILDINGS, DAYS, PORTS, WORKS
from .desk import DESK
from .tools import ServiceDesk

SIZES = {"train": 1170, "dev": 117, "test": 234}
NOW = minutes(policy.NOW)

Json = dict[str, Any]

_WANTS = {
    "screen": (
        "have {my} slides on the screen of room {room}",
        "get a picture of {my} laptop on the screen of {room}",
    ),
    "sound": (
        "be heard in {my} call in room {room}",
        "get the sound of {my} video call in {room} to work",
    ),
}
_HANDOVERS = {
    "safety": ("report that the ceiling of {room} comes down", "get help, as somebody is hurt in {room}"),
    "lost_property": (
        "find the bag that {I} left in {room}",
        "get back the jacket that {I} forgot in {room}",
    ),
    "dispute": (
        "get the people out of {room} who will not leave it",
        "have somebody talk to the people who stay in {room} in {my} time",
    ),
    "complaint": ("complain about the air in {room}", "complain about how dirty {room} is"),
}
_IN_THE_ROOM = (
    "You are in room {room}, with your laptop. Look at things and touch them only by your tools, and only "
    "when the agent asks you to, one step at a time; then say what you saw. Never make up what you saw."
)


class Drawer:
    """Draws drafts over the rooms and bookings of the database."""

    def __init__(self, base: Base):
        self.tables = base.tables
        self.kit = ServiceDesk(base.open())
        self.employees = list(self.tables["employees"])
        self.rooms = list(self.tables["rooms"])
        self.board_rooms = [r for r in self.rooms if self.tables["rooms"][r]["board_room"]]
        self.bookings = list(self.tables["bookings"].values())
        self.running = [
            b
            for b in self.bookings
            if b["day"] == policy.TODAY and minutes(b["start"]) <= NOW < minutes(b["end"])
        ]
        self.new_booking = f"B{max(int(k[1:]) for k in self.tables['bookings']) + 1}"

    # ------------------------------------------------------------ parts of a draft

    def draft(
        self, employee: str, *wishes: Wish, setup: Sequence[Change] = (), room: str = "", by: str = "number"
    ) -> Draft:
        """The employee asks for this, in the room if one is given."""
        row = self.tables["employees"][employee]
        number = (f"my employee number is {employee}", {"employee_id": employee})
        email = (f"my e-mail address is {row['email']}", {"email": row["email"]})
        facts = {"employee number": employee, "name": row["name"], "e-mail address": row["email"]}
        notes = [_IN_THE_ROOM.format(room=room)] if room else []
        if by == "email":
            del facts["employee number"]
            notes.append("You do not know your employee number.")
        return Draft(number if by == "number" else email, facts, wishes, setup=setup, notes=notes)

    def there(self, employee: str, room: str, port: str = "hdmi", **wrong: Any) -> list[Change]:
        """The employee is in the room, where this is wrong."""
        me = {"employee_id": employee, "room": room, "port": port, "adapter": "none"}
        return [
            Change("presence", "me", me),
            Change("devices", room, {"room": room, **WORKS, **wrong}),
        ]

    def booked(self, employee: str, room: str, start: int, end: int) -> Change:
        """One more booking of today, by minutes since midnight."""
        row = {"booking_id": self.new_booking, "employee_id": employee, "room": room, "day": policy.TODAY}
        times = {"start": clock(start), "end": clock(end), "status": "booked"}
        return Change("bookings", self.new_booking, {**row, **times})

    def free(self, room: str, start: int, end: int) -> bool:
        """The room is free today at that time, by minutes since midnight."""
        wish = {"start": clock(start), "end": clock(end)}
        taken = [b for b in self.bookings if b["room"] == room and b["day"] == policy.TODAY]
        return not any(policy.overlap(wish, other) for other in taken)

    def outcome(self, employee: str, data: Json) -> str | None:
        """Why the request is refused; None when it is granted. For requests without errands."""
        person = self.tables["employees"][employee]
        decision = decision_on(DESK, self.kit, person, {"data": data})
        assert isinstance(decision, Grant | Refuse)
        return decision.reason if isinstance(decision, Refuse) else None

    def trouble(self, rng: random.Random, what: str, room: str, **how: Any) -> Wish:
        want = rng.choice(_WANTS[what]).replace("{room}", room)
        return Wish(want, {"do": what, "room": room}, must=[room], **how)

    def booking(self, data: Json, **how: Any) -> Wish:
        where = f"room {data['room']}" if "room" in data else f"a room in building {data['building']}"
        times = [data["day"], data["start"], data["end"]]
        want = f"book {where} for {data['people']} people on {times[0]} from {times[1]} to {times[2]}"
        must = [*times, data["room"]] if "room" in data else times
        return Wish(want, {"do": "book", **data}, must=must, **how)

    def extending(self, room: str, end: str, **how: Any) -> Wish:
        want = f"keep room {room} until {end}, longer than {{my}} booking that runs there now"
        return Wish(want, {"do": "extend", "room": room, "end": end}, must=[room, end], **how)

    def moving(self, room: str, people: int) -> Wish:
        want = f"move {{my}} meeting in room {room} to another room for {people} people"
        return Wish(want, {"do": "move", "room": room, "people": people}, must=[room])

    def cancelling(self, booking_id: str, **how: Any) -> Wish:
        want = f"cancel booking {booking_id}"
        return Wish(want, {"do": "cancel", "booking": booking_id}, must=[booking_id], **how)

    def checking_in(self, room: str, **how: Any) -> Wish:
        return Wish(f"check in to {{my}} booking of room {room}", {"do": "check_in", "room": room}, **how)

    # ------------------------------------------------------------ kinds: trouble in a room

    def broken(self, what: str, **wrong: Any) -> Draw:
        """Something that does not work, of which no adapter is part."""

        def draw(rng: random.Random) -> Draft:
            employee, room = rng.choice(self.employees), rng.choice(self.rooms)
            setup = self.there(employee, room, **wrong)
            return self.draft(employee, self.trouble(rng, what, room), setup=setup, room=room)

        return draw

    def adapter(self, there: bool) -> Draw:
        """The cable does not fit the laptop, and the adapter is in the room or not."""

        def draw(rng: random.Random) -> Draft | None:
            employee, room, port = rng.choice(self.employees), rng.choice(self.rooms), rng.choice(PORTS)
            if (port in self.tables["rooms"][room]["adapters"]) != there:
                return None
            wrong = {} if rng.random() < 0.5 else rng.choice(({"input": "wireless"}, {"screen": "frozen"}))
            setup = self.there(employee, room, port=port, **wrong)
            return self.draft(employee, self.trouble(rng, "screen", room), setup=setup, room=room)

        return draw

    def several(self, rng: random.Random) -> Draft | None:
        employee, room = rng.choice(self.employees), rng.choice(self.rooms)
        wrong: Json = dict(rng.sample((("screen", "frozen"), ("input", "wireless"), ("cable", "loose")), 2))
        port = rng.choice(("hdmi", *self.tables["rooms"][room]["adapters"]))
        if rng.random() < 0.3:
            wrong |= {"screen": "frozen", "input": "wireless", "cable": "loose"}
        setup = self.there(employee, room, port=port, **wrong)
        return self.draft(employee, self.trouble(rng, "screen", room), setup=setup, room=room)

    def known_fault(self, rng: random.Random) -> Draft:
        """Somebody has reported it; a fault of another part is none of it."""
        employee, room = rng.choice(self.employees), rng.choice(self.rooms)
        what, part = rng.choice((("screen", "screen"), ("sound", "conference"), ("screen", "conference")))
        wrong = {"conference": "broken"} if what == "sound" else {"screen": "broken"}
        setup = [
            *self.there(employee, room, **wrong),
            Change("faults", f"{room}/{part}", {"room": room, "part": part}),
        ]
        return self.draft(employee, self.trouble(rng, what, room), setup=setup, room=room)

    def which_room(self, rng: random.Random) -> Draft:
        employee, room = rng.choice(self.employees), rng.choice(self.rooms)
        what = rng.choice(("screen", "sound"))
        wrong: Json = (
            {"muted": True} if what == "sound" else rng.choice(({"input": "wireless"}, {"cable": "loose"}))
        )
        wants = {"screen": "have {my} slides on the screen of a room", "sound": "be heard in {my} call"}
        wish = Wish(wants[what], {"do": what}, must=[room])
        wish.later = {"room": (f"it is room {room}", {"room": room})}
        return self.draft(employee, wish, setup=self.there(employee, room, **wrong), room=room)

    # ------------------------------------------------------------ kinds: checking in

    def check_in(self, *offsets: int, panel: str = "ok") -> Draw:
        """A booking that begins so many minutes from now."""

        def draw(rng: random.Random) -> Draft | None:
            employee, room = rng.choice(self.employees), rng.choice(self.rooms)
            start = NOW + rng.choice(offsets)
            end = start + rng.choice((30, 45, 60, 90))
            if not self.free(room, start, end) or end <= NOW:
                return None
            if any(b["room"] == room and b["employee_id"] == employee for b in self.bookings):
                return None
            setup = [*self.there(employee, room, panel=panel), self.booked(employee, room, start, end)]
            return self.draft(employee, self.checking_in(room), setup=setup, room=room)

        return draw

    def check_in_refused(self, rng: random.Random) -> Draft | None:
        if rng.random() < 0.6:
            return self.check_in(-40, -30, -20, -15, 20, 25, 40, 55)(rng)
        employee, room = rng.choice(self.employees), rng.choice(self.rooms)
        if any(b["room"] == room and b["employee_id"] == employee for b in self.bookings):
            return None
        return self.draft(employee, self.checking_in(room), setup=self.there(employee, room), room=room)

    # ------------------------------------------------------------ kinds: bookings

    def wish_to_book(self, rng: random.Random, named: bool) -> tuple[str, Json]:
        """An employee, and what it wants to book."""
        employee = rng.choice(self.employees)
        start = 60 * rng.randint(11, 16) + rng.choice((0, 15, 30, 45))
        end = start + rng.choice((30, 45, 60, 90, 120, 180))
        people = rng.randint(2, 12)
        where: Json = {"room": rng.choice(self.rooms)} if named else {"building": rng.choice(BUILDINGS)}
        times = {"day": rng.choice(DAYS), "start": clock(start), "end": clock(end)}
        return employee, {**where, "people": people, **times}

    def book(self, named: bool, **how: Any) -> Draw:
        """Something to book that is granted."""

        def draw(rng: random.Random) -> Draft | None:
            employee, data = self.wish_to_book(rng, named)
            if self.outcome(employee, {"do": "book", **data}):
                return None
            return self.draft(employee, self.booking(data, **how))

        return draw

    def book_refused(self, rng: random.Random) -> Draft | None:
        return self._book_refused(rng)

    def insist(self, rng: random.Random) -> Draft | None:
        return self._book_refused(rng, insist=True)

    def _book_refused(self, rng: random.Random, **how: Any) -> Draft | None:
        """Every reason as often as the others."""
        reason = rng.choice(("too_long", "limit", "taken", "too_small", "restricted", "no_room"))
        employee, data = self.wish_to_book(rng, named=reason in ("taken", "too_small", "restricted"))
        if reason in ("too_small", "restricted"):
            rooms = self.board_rooms if reason == "restricted" else self.rooms
            data["room"] = rng.choice(rooms)
            seats = self.tables["rooms"][data["room"]]["seats"]
            data["people"] = seats + rng.choice((1, 2, 4)) if reason == "too_small" else seats - 1
        if reason == "too_long":
            data["end"] = clock(minutes(data["start"]) + rng.choice((255, 270, 300)))
        if reason == "no_room":
            data["people"] = rng.randint(13, 24)
        if self.outcome(employee, {"do": "book", **data}) != reason:
            return None
        return self.draft(employee, self.booking(data, **how))

    def edge_book(self, rng: random.Random) -> Draft | None:
        """4 hours or a minute more; right after another booking or a minute before its end."""
        employee, data = self.wish_to_book(rng, named=False)
        if rng.random() < 0.5:
            end = minutes(data["start"]) + 240 + rng.choice((0, 1))
            data = {**data, "end": clock(end)}
        else:
            other = rng.choice(self.bookings)
            start = minutes(other["end"]) - rng.choice((0, 1))
            times = {"day": other["day"], "start": clock(start), "end": clock(start + 30)}
            data = {"room": other["room"], "people": 2, **times}
            if other["day"] == policy.TODAY and start < NOW:
                return None
        if self.outcome(employee, {"do": "book", **data}) not in (None, "too_long", "taken"):
            return None  # another reason than the one whose limit this is
        return self.draft(employee, self.booking(data))

    def extend(self, refused: bool, **how: Any) -> Draw:
        def draw(rng: random.Random) -> Draft | None:
            mine = rng.choice(self.running)
            employee, room = mine["employee_id"], mine["room"]
            if refused and rng.random() < 0.3:
                employee = rng.choice(self.employees)
            end = clock(minutes(mine["end"]) + rng.choice((15, 20, 30, 40, 45, 60, 90, 180, 240)))
            wish = self.extending(room, end, **how)
            return self.draft(employee, wish) if refused == bool(self.outcome(employee, wish.data)) else None

        return draw

    def edge_extend(self, rng: random.Random) -> Draft | None:
        """To the very start of the next booking or 4 hours in all, or a minute more."""
        mine = rng.choice(self.running)
        room, more = mine["room"], rng.choice((0, 1))
        taken = self.kit.get_room_bookings(room, policy.TODAY)
        later = [b["start"] for b in taken if minutes(b["start"]) > minutes(mine["end"])]
        limit = minutes(mine["start"]) + 240
        if later and minutes(later[0]) < limit:
            limit = minutes(later[0])
        if limit <= minutes(mine["end"]):
            return None
        return self.draft(mine["employee_id"], self.extending(room, clock(limit + more)))

    def move(self, rng: random.Random) -> Draft:
        mine = rng.choice(self.running)
        return self.draft(mine["employee_id"], self.moving(mine["room"], rng.randint(2, 14)))

    def cancel(self, rng: random.Random) -> Draft | None:
        mine = rng.choice(self.bookings)
        wish = self.cancelling(mine["booking_id"])
        return None if self.outcome(mine["employee_id"], wish.data) else self.draft(mine["employee_id"], wish)

    def cancel_refused(self, rng: random.Random) -> Draft | None:
        mine = rng.choice(self.bookings)
        employee = mine["employee_id"] if rng.random() < 0.5 else rng.choice(self.employees)
        wish = self.cancelling(mine["booking_id"])
        return self.draft(employee, wish) if self.outcome(employee, wish.data) else None

    def edge_cancel(self, rng: random.Random) -> Draft | None:
        """It begins this minute, or the next."""
        employee, room = rng.choice(self.employees), rng.choice(self.rooms)
        start = NOW + rng.choice((0, 1))
        if not self.free(room, start, start + 60):
            return None
        wish = self.cancelling(self.new_booking)
        return self.draft(employee, wish, setup=[self.booked(employee, room, start, start + 60)])

    # ------------------------------------------------------------ kinds: several things, changes of mind

    def trouble_then_move(self, rng: random.Random) -> Draft:
        """The room cannot be made to work, so the meeting goes elsewhere."""
        mine = rng.choice(self.running)
        employee, room = mine["employee_id"], mine["room"]
        what, wrong = rng.choice((("screen", {"screen": "broken"}), ("sound", {"conference": "broken"})))
        wishes = [self.trouble(rng, what, room), self.moving(room, rng.randint(2, 8))]
        return self.draft(employee, *wishes, setup=self.there(employee, room, **wrong), room=room)

    def two(self, rng: random.Random) -> Draft | None:
        mine = rng.choice(self.running)
        employee, room = mine["employee_id"], mine["room"]
        troubles: tuple[tuple[str, Json], ...] = (
            ("screen", {"input": "wireless"}),
            ("screen", {"screen": "frozen"}),
            ("sound", {"muted": True}),
        )
        what, wrong = rng.choice(troubles)
        end = clock(minutes(mine["end"]) + rng.choice((15, 30, 60)))
        wishes = [self.trouble(rng, what, room), self.extending(room, end)]
        rng.shuffle(wishes)
        return self.draft(employee, *wishes, setup=self.there(employee, room, **wrong), room=room)

    def change(self, rng: random.Random) -> Draft | None:
        """Another room or time at the confirmation, for which all is checked again."""
        employee, data = self.wish_to_book(rng, rng.random() < 0.5)
        _, other = self.wish_to_book(rng, rng.random() < 0.5)
        if self.outcome(employee, {"do": "book", **data}):
            return None
        return self.draft(employee, self.booking(data, change=self.booking(other)))

    def withdraw(self, rng: random.Random) -> Draft | None:
        what = rng.choice(("book", "extend", "cancel", "report"))
        if what == "book":
            return self.book(named=rng.random() < 0.5, withdraw=True)(rng)
        if what == "extend":
            return self.extend(refused=False, withdraw=True)(rng)
        draft = self.cancel(rng) if what == "cancel" else self.broken("screen", screen="broken")(rng)
        if draft:
            draft.wishes[0].withdraw = True
        return draft

    # ------------------------------------------------------------ kinds: who asks, and handovers

    def any_trouble(self, rng: random.Random) -> Draft | None:
        wrong = rng.choice(({"input": "wireless"}, {"cable": "loose"}, {"screen": "frozen"}))
        return self.broken("screen", **wrong)(rng)

    def by_email(self, rng: random.Random) -> Draft | None:
        draft = rng.choice((self.any_trouble, self.book(named=False)))(rng)
        if draft is None:
            return None
        room = draft.setup[0].row["room"] if draft.setup and draft.setup[0].row else ""
        employee = draft.facts["employee number"]
        return self.draft(employee, *draft.wishes, setup=draft.setup, room=room, by="email")

    def wrong_number(self, rng: random.Random) -> Draft | None:
        draft = rng.choice((self.any_trouble, self.book(named=True)))(rng)
        if draft is None:
            return None
        employee = draft.facts["employee number"]
        i = rng.randrange(1, 4)
        mistake = employee[:i] + employee[i + 1] + employee[i] + employee[i + 2 :]  # two digits swapped
        if mistake in self.tables["employees"]:
            return None
        draft.wrong = (f"my employee number is {mistake}", {"employee_id": mistake})
        return draft

    def unknown(self, rng: random.Random) -> Draft | None:
        """Nobody whom the company knows, and sure that it does."""
        number = f"E{rng.randint(1000, 9999)}"
        if number in self.tables["employees"]:
            return None
        _, data = self.wish_to_book(rng, named=False)
        return Draft(
            (f"my employee number is {number}", {"employee_id": number}),
            {"employee number": number},
            [self.booking(data)],
            notes=["You insist that this number is right, and have no e-mail address."],
        )

    def handover(self, rng: random.Random) -> Draft:
        reason = rng.choice(list(_HANDOVERS))
        want = rng.choice(_HANDOVERS[reason]).replace("{room}", rng.choice(self.rooms))
        return self.draft(rng.choice(self.employees), Wish(want, {"do": reason}))

    def late_handover(self, rng: random.Random) -> Draft | None:
        """What was asked for before is done first."""
        draft = self.any_trouble(rng)
        if draft:
            draft.wishes = [*draft.wishes, self.handover(rng).wishes[0]]
        return draft

    # ------------------------------------------------------------ all of them

    def kinds(self) -> dict[str, Callable[[random.Random], Draft | None]]:
        """Every kind of task, by name."""
        return {
            "screen_frozen": self.broken("screen", screen="frozen"),
            "screen_input": self.broken("screen", input="wireless"),
            "screen_cable": self.broken("screen", cable="loose"),
            "screen_adapter": self.adapter(there=True),
            "screen_several": self.several,
            "screen_broken": self.broken("screen", screen="broken"),
            "screen_no_adapter": self.adapter(there=False),
            "sound_muted": self.broken("sound", muted=True),
            "sound_hung": self.broken("sound", conference="hung"),
            "sound_both": self.broken("sound", conference="hung", muted=True),
            "sound_broken": self.broken("sound", conference="broken"),
            "known_fault": self.known_fault,
            "which_room": self.which_room,
            "check_in": self.check_in(-8, -5, -3, 0, 5, 10),
            "check_in_panel": self.check_in(-8, -5, -3, 0, 5, 10, panel="frozen"),
            "check_in_broken": self.check_in(-8, -5, -3, 0, 5, 10, panel="broken"),
            "check_in_refused": self.check_in_refused,
            "edge_check_in": self.check_in(-11, -10, 15, 16),
            "book": self.book(named=False),
            "book_named": self.book(named=True),
            "book_refused": self.book_refused,
            "edge_book": self.edge_book,
            "extend": self.extend(refused=False),
            "extend_refused": self.extend(refused=True),
            "edge_extend": self.edge_extend,
            "move": self.move,
            "cancel": self.cancel,
            "cancel_refused": self.cancel_refused,
            "edge_cancel": self.edge_cancel,
            "trouble_then_move": self.trouble_then_move,
            "two": self.two,
            "change": self.change,
            "withdraw": self.withdraw,
            "insist": self.insist,
            "by_email": self.by_email,
            "wrong_number": self.wrong_number,
            "unknown": self.unknown,
            "handover": self.handover,
            "late_handover": self.late_handover,
        }


@functools.cache
def all_tasks(base: Base) -> Mapping[str, Sequence[Task]]:
    """The tasks of every split."""
    return deal(Drawer(base).kinds(), SIZES, "meeting-rooms-tasks", lambda draft: gold(DESK, base, draft))
