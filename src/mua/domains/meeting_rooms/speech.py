"""The person in the room by its agenda, with tools of its own, and the expert, in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ...chat import Message, ToolCall
from ...users import UserTurn
from ..casework import Clerk, Desk
from ..script import ScriptUser, pick
from .desk import DESK

_ASKS = re.compile(r"\b(please|could you|can you|try to|you should)\b", re.I)
_CONFIRMS = re.compile(r"\(yes/no\)|shall i|confirm", re.I)
_ERRANDS = tuple(
    (name, re.compile(pattern, re.I))
    for name, pattern in (
        ("press_check_in", r"(press|tap|push)\b.{0,40}check[- ]?in"),
        ("restart_panel", r"restart.{0,20}panel"),
        ("look_at_panel", r"(look at|check|see|what).{0,40}panel"),
        ("restart_screen", r"restart.{0,20}(screen|display)"),
        ("select_input", r"(select|choose|switch|set).{0,20}input.{0,20}\b(?P<source>hdmi|wireless)"),
        ("plug_in_adapter", r"adapter.{0,20}\b(?P<port>usb-c|displayport)"),
        ("plug_in_cable", r"(plug in|push in|reconnect).{0,20}cable"),
        ("check_cable", r"(check|look at).{0,20}cable"),
        ("look_at_screen", r"(look at|check|see|what).{0,40}screen"),
        ("press_mute_button", r"(press|push|unmute).{0,20}(mute|microphone)"),
        ("test_sound", r"(test|check|try).{0,20}(sound|microphone)"),
    )
)
"""What an agent may ask the person to do, and the tool it does it with."""
_DID = ("{}", "All right. {}", "I did that. {}", "OK. {}")


class Person(ScriptUser):
    """Plays the employee of a task. Does in the room what it is asked to do, and says what it saw."""

    topics: ClassVar[Mapping[str, re.Pattern[str]]] = {
        "who": re.compile(r"employee number|e-?mail|who (you are|are you)|your name", re.I),
        "room": re.compile(r"(which|what) room|room number|where are you", re.I),
    }

    async def reply(self, view: Sequence[Message]) -> UserTurn:
        """The next turn: what it saw after an errand, an errand it was asked for, or words."""
        last = view[-1] if view else None
        if last is not None and last.role == "tool":
            saw = last.content.removeprefix("Error: ")
            self.act = {"do": "did", "saw": saw}
            return UserTurn(pick(self.rng, _DID).format(saw))
        call = errand(last.content) if last is not None and last.role == "assistant" else None
        return UserTurn("", tool_calls=(call,)) if call else await super().reply(view)


def errand(text: str) -> ToolCall | None:
    """What the agent asks the person to do in the room, as a call."""
    if _CONFIRMS.search(text) or not _ASKS.search(text):
        return None
    for name, pattern in _ERRANDS:
        if found := pattern.search(text):
            return ToolCall(name, {k: v.lower() for k, v in found.groupdict().items()})
    return None


class Expert(Clerk):
    """The expert of the service desk."""

    desk: ClassVar[Desk] = DESK
    who_question: ClassVar[Sequence[str]] = (
        "What is your employee number or your e-mail address?",
        "May I have your employee number, or your e-mail address?",
        "I have to find you first. Could you give me your employee number or e-mail address?",
    )
    questions: ClassVar[Mapping[str, Sequence[str]]] = {
        "room": ("Which room is it?", "In which room are you?", "What room is that, please?"),
    }
    why: ClassVar[Mapping[str, str]] = {
        "known_fault": "that fault is reported already, and the technicians are at it.",
        "no_booking": "you have no booking of that room now.",
        "too_early": "you can check in from 15 minutes before your booking begins.",
        "too_late": "one can check in until 10 minutes after the beginning only.",
        "too_long": "a booking is for 4 hours at most.",
        "limit": "you have 3 bookings already.",
        "taken": "the room is booked at that time.",
        "too_small": "that room has not enough seats.",
        "restricted": "board rooms are for leads only.",
        "no_room": "no room that is large enough is free then.",
        "not_yours": "that is not a booking of yours.",
        "started": "that booking has begun already.",
    }
