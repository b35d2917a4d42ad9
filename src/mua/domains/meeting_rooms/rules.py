"""What the end state cannot show: how the service desk worked with the person in the room."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ...chat import Message, ToolCall
from ...domain import Task
from ...tools import toolkit_tools
from ..rules import Claim, Conduct, changes, effects_of
from ..rules import violations as shared
from .tools import ServiceDesk

CONDUCT = Conduct(
    effects=effects_of(toolkit_tools(ServiceDesk)),
    identifies={"find_employee": "employee_id", "find_employee_by_email": "employee_id"},
    person="employee_id",
    unasked=frozenset({"record_case"}),
    named={
        "book_room": ("room", "day", "start", "end"),
        "extend_booking": ("booking_id", "end"),
        "move_booking": ("booking_id", "room"),
        "cancel_booking": ("booking_id",),
        "check_in_remotely": ("booking_id",),
        "reset_conference_unit": ("room",),
        "report_fault": ("room", "part"),
    },
    looks={
        "book_room": ("list_bookings",),
        "extend_booking": ("list_bookings", "get_room_bookings"),
        "move_booking": ("list_bookings", "find_rooms"),
        "cancel_booking": ("list_bookings",),
        "check_in_remotely": ("list_bookings",),
    },
    claims=(
        Claim(re.compile(r"I have booked (?P<what>[A-C]\d-\d\d)", re.I), ("book_room",)),
        Claim(re.compile(r"I have extended (?P<what>B\d+)", re.I), ("extend_booking",)),
        Claim(re.compile(r"I have moved (?P<what>B\d+)", re.I), ("move_booking",)),
        Claim(re.compile(r"I have cancelled (?P<what>B\d+)", re.I), ("cancel_booking",)),
        Claim(re.compile(r"I have checked in (?P<what>B\d+)", re.I), ("check_in_remotely",)),
        Claim(
            re.compile(
                r"the (missing )?(?P<what>screen|adapter|conference|panel)( unit)? of \S+ is reported", re.I
            ),
            ("report_fault",),
        ),
    ),
    private=re.compile(r"\bE\d{4}\b"),
    owner=str,
)
_TRIED = {
    "screen": "restart_screen",
    "adapter": "check_cable",
    "conference": "test_sound",
    "panel": "restart_panel",
}
"""What the person must have tried before a part is reported."""


def violations(task: Task, messages: Sequence[Message]) -> list[str]:
    """Every breach of the policy's rules of conduct in a stored conversation."""
    return [*shared(CONDUCT, messages), *_untried(messages)]


def _untried(messages: Sequence[Message]) -> Iterator[str]:
    """Reports and check-ins from afar, without the person having tried what the policy asks of it."""
    made = {change.call.id for change in changes(CONDUCT, messages)}
    tried: set[str] = set()
    for message in messages:
        for call in message.tool_calls:
            if message.role == "user":
                tried.add(call.name)
            elif call.id in made and (first := _first(call)) and first not in tried:
                yield f"{call.name} before the person tried {first}"


def _first(call: ToolCall) -> str | None:
    if call.name == "check_in_remotely":
        return _TRIED["panel"]
    return _TRIED.get(str(call.arguments.get("part"))) if call.name == "report_fault" else None
