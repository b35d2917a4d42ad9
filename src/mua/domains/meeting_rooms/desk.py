"""The policy in steps: what is looked up for a request, what the person is asked to do, what comes of it."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from ..casework import Desk, Errand, Grant, Json, Need, Refuse, Solved, Steps
from ..script import Call
from . import policy
from .tools import InTheRoom, ServiceDesk

_NAMES = {
    "screen": "screen",
    "adapter": "missing adapter",
    "conference": "conference unit",
    "panel": "panel",
}
HANDOVERS = ("safety", "lost_property", "dispute", "complaint")


def decide(employee: Json, request: Json) -> Steps:
    """Looks up what the policy asks to check, has the person try what helps, and decides."""
    return (yield from _POLICIES[request["do"]](employee, request))


Looked = Generator[Any, Any, Any]
"""Steps to something else than a decision."""


def _room_of(request: Json) -> Looked:
    return request["room"] if "room" in request else (yield Need("room"))


def _bookings(employee: Json) -> Looked:
    return (yield Call("list_bookings", {"employee_id": employee["employee_id"]}))


# ---------------------------------------------------------------- trouble in a room


def _report(room: str, part: str) -> Grant:
    return Grant(
        "report_fault",
        {"room": room, "part": part},
        f"report the {_NAMES[part]} of {room} to the technicians",
        f"I am sorry that I could not solve it. The {_NAMES[part]} of {room} is reported to the technicians.",
    )


def _screen(employee: Json, request: Json) -> Steps:
    room = yield from _room_of(request)
    known = yield Call("get_room", {"room": room})
    if {"screen", "adapter"} & set(known["reported"]):
        return Refuse("known_fault")
    helped = ""
    saw = yield Errand("look_at_screen", {}, "look at the screen")
    while "picture of my laptop" not in saw:
        if "frozen" in saw:
            if helped == "restart":
                return _report(room, "screen")
            helped = "restart"
            saw = yield Errand("restart_screen", {}, "restart the screen")
        elif "hdmi" not in saw:
            helped = "input"
            saw = yield Errand("select_input", {"source": "hdmi"}, "select the input hdmi on the screen")
        else:
            cable = yield Errand("check_cable", {}, "check the cable")
            if "loose" in cable:
                helped = "cable"
                saw = yield Errand("plug_in_cable", {}, "plug in the cable")
                continue
            port = "usb-c" if "usb-c" in cable else "displayport"
            if port not in known["adapters"]:
                return _report(room, "adapter")
            helped = "adapter"
            saw = yield Errand("plug_in_adapter", {"port": port}, f"plug in the adapter for {port}")
    return Solved(helped, "Very good, the screen works.")


def _sound(employee: Json, request: Json) -> Steps:
    room = yield from _room_of(request)
    known = yield Call("get_room", {"room": room})
    if "conference" in known["reported"]:
        return Refuse("known_fault")
    helped = ""
    saw = yield Errand("test_sound", {}, "test the sound")
    while "hear me" not in saw:
        if "red" in saw:
            helped = "unmute"
            saw = yield Errand("press_mute_button", {}, "press the mute button")
            continue
        if helped == "reset":
            return _report(room, "conference")
        helped = "reset"
        yield Grant(
            "reset_conference_unit", {"room": room}, f"reset the conference unit of {room}", "It is reset."
        )
        saw = yield Errand("test_sound", {}, "test the sound")
    return Solved(helped, "Very good, the sound works.")


# ---------------------------------------------------------------- bookings


def _check_in(employee: Json, request: Json) -> Steps:
    room = yield from _room_of(request)
    booking = policy.todays((yield from _bookings(employee)), room)
    if (reason := policy.check_in_refusal(booking)) or booking is None:
        return Refuse(reason or "no_booking")
    saw = yield Errand("look_at_panel", {}, "look at the panel at the door")
    if "frozen" in saw:
        saw = yield Errand("restart_panel", {}, "restart the panel")
    if "frozen" not in saw:
        yield Errand("press_check_in", {}, "press the button to check in")
        return Solved("checked_in", "Very good, you are checked in.")
    yield _report(room, "panel")
    number = booking["booking_id"]
    return Grant(
        "check_in_remotely",
        {"booking_id": number},
        f"check in your booking {number} from here",
        f"I have checked in {number}.",
    )


def _book(employee: Json, request: Json) -> Steps:
    reason = policy.book_refusal((yield from _bookings(employee)), request)
    if reason:
        return Refuse(reason)
    times = {k: request[k] for k in ("day", "start", "end")}
    if "room" in request:
        room = yield Call("get_room", {"room": request["room"]})
        taken = yield Call("get_room_bookings", {"room": request["room"], "day": request["day"]})
        reason = policy.room_refusal(employee, room, taken, request)
        if reason:
            return Refuse(reason)
    else:
        wanted = {"building": request["building"], **times, "seats": request["people"]}
        room = policy.choose(employee, (yield Call("find_rooms", wanted)))
        if room is None:
            return Refuse("no_room")
    name = room["room"]
    when = f"on {request['day']} from {request['start']} to {request['end']}"
    return Grant(
        "book_room",
        {"employee_id": employee["employee_id"], "room": name, **times},
        f"book {name} ({room['seats']} seats) for you {when}",
        f"I have booked {name} for you.",
    )


def _extend(employee: Json, request: Json) -> Steps:
    room = yield from _room_of(request)
    booking = policy.running((yield from _bookings(employee)), room)
    taken = yield Call("get_room_bookings", {"room": room, "day": policy.TODAY})
    if (reason := policy.extend_refusal(booking, taken, request["end"])) or booking is None:
        return Refuse(reason or "no_booking")
    number = booking["booking_id"]
    return Grant(
        "extend_booking",
        {"booking_id": number, "end": request["end"]},
        f"extend your booking {number} of {room} until {request['end']}",
        f"I have extended {number}.",
    )


def _move(employee: Json, request: Json) -> Steps:
    room = yield from _room_of(request)
    booking = policy.running((yield from _bookings(employee)), room)
    if booking is None:
        return Refuse("no_booking")
    times = {"day": policy.TODAY, "start": policy.NOW, "end": booking["end"]}
    wanted = {"building": room[0], **times, "seats": request["people"]}
    new = policy.choose(employee, (yield Call("find_rooms", wanted)))
    if new is None:
        return Refuse("no_room")
    number = booking["booking_id"]
    return Grant(
        "move_booking",
        {"booking_id": number, "room": new["room"]},
        f"move your booking {number} from {room} to {new['room']} ({new['seats']} seats)",
        f"I have moved {number} to {new['room']}.",
    )


def _cancel(employee: Json, request: Json) -> Steps:
    number = request["booking"]
    reason = policy.cancel_refusal((yield from _bookings(employee)), number)
    if reason:
        return Refuse(reason)
    return Grant(
        "cancel_booking",
        {"booking_id": number},
        f"cancel your booking {number}",
        f"I have cancelled {number}.",
    )


_POLICIES = {
    "screen": _screen,
    "sound": _sound,
    "check_in": _check_in,
    "book": _book,
    "extend": _extend,
    "move": _move,
    "cancel": _cancel,
}

DESK = Desk(
    toolkit=ServiceDesk,
    own=InTheRoom,
    person="employee_id",
    finders={"employee_id": "find_employee", "email": "find_employee_by_email"},
    decide=decide,
    at_once=frozenset(HANDOVERS),
)
