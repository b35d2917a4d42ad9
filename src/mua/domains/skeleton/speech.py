"""Who speaks at the repair desk without a language model: the customer and the expert."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from mua.domains.casework import Clerk, Desk
from mua.domains.script import ScriptUser

from .decide import DESK


class Customer(ScriptUser):
    """The customer of a task."""

    topics: ClassVar[Mapping[str, re.Pattern[str]]] = {
        "who": re.compile(r"customer number|who (are you|am i)", re.I),
        "day": re.compile(r"which day|what day|when|date", re.I),
    }


class RepairExpert(Clerk):
    """The expert of the repair desk."""

    desk: ClassVar[Desk] = DESK
    who_question: ClassVar[Sequence[str]] = (
        "What is your customer number?",
        "May I have your customer number?",
    )
    questions: ClassVar[Mapping[str, Sequence[str]]] = {
        "day": ("Which day is it about?", "Which day do you mean?"),
    }
    why: ClassVar[Mapping[str, str]] = {
        "unpaid": "you have an unpaid bill.",
        "limit": "you have two bookings already.",
        "full": "no place is free on that day.",
        "no_booking": "you have no booking on that day.",
        "too_late": "a booking cannot be cancelled on the day itself.",
    }
