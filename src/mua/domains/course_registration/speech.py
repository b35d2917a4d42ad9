"""The student by its agenda, and the expert, in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..casework import Clerk, Desk
from ..script import ScriptUser, pick
from .desk import DESK, declines

_NO_LIST = (
    "No, I do not want to wait for a place. Leave it, then.",
    "No, then rather not. I do not want to be on a list.",
)


class Student(ScriptUser):
    """Plays the student of a task. A waiting list it accepts only if it wants one ("wait")."""

    topics: ClassVar[Mapping[str, re.Pattern[str]]] = {
        "who": re.compile(r"student (number|id)|date of birth|full name|who (you are|are you)", re.I),
        "section": re.compile(r"(which|what) (section|course)|section number", re.I),
    }

    def _confirm(self, text: str) -> str:
        named = all(m.lower() in text.lower() for m in self.request["must"])
        if named and declines(self.request, text.lower()):
            self.act = {"do": "withdraw"}
            return pick(self.rng, _NO_LIST)
        return super()._confirm(text)


class Expert(Clerk):
    """The expert of the registrar's office."""

    desk: ClassVar[Desk] = DESK
    who_question: ClassVar[Sequence[str]] = (
        "What is your student number, and your date of birth?",
        "May I have your student number and your date of birth?",
        "I have to find you first. Could you give me your student number and your date of birth?",
    )
    questions: ClassVar[Mapping[str, Sequence[str]]] = {
        "section": ("Which section is it?", "Which section do you mean?", "What section is that, please?"),
    }
    why: ClassVar[Mapping[str, str]] = {
        "not_active": "your enrolment at the university is not active.",
        "hold": "there is a hold on your account.",
        "passed": "you have passed that course already.",
        "duplicate": "you are in another section of that course.",
        "prerequisite": "you have not passed a course that it requires.",
        "credits": "that would be more credits than you may take in a term.",
        "conflict": "it conflicts with another section of your timetable.",
        "full": "no place is free, and I cannot put you on the waiting list.",
        "deadline": "the last day for dropping it is over.",
        "minimum": "a full-time student must keep 9 credits.",
        "own_department": "courses of your own department are graded by letters.",
        "limit": "you have another section with pass/fail this term.",
    }
