"""Who speaks at the applicants' desk without a language model: the applicant and the expert."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..casework import Clerk, Desk
from ..script import ScriptUser
from .decide import AT_ONCE, decide
from .tools import ApplicantsDesk

DESK = Desk(
    toolkit=ApplicantsDesk,
    person="applicant_id",
    finders={"applicant_id": "find_applicant", "name": "find_applicant_by_name"},
    decide=decide,
    at_once=AT_ONCE,
)


class Applicant(ScriptUser):
    """The applicant of a task."""

    topics: ClassVar[Mapping[str, re.Pattern[str]]] = {
        "who": re.compile(r"applicant number|date of birth|who (are you|am i)|your (full )?name", re.I),
        "position": re.compile(r"which position|position number", re.I),
        "application": re.compile(r"which application|application number", re.I),
        "letter": re.compile(r"which letter", re.I),
        "new": re.compile(r"new document|new one", re.I),
        "document": re.compile(r"which document|document number", re.I),
    }


class ApplicantsExpert(Clerk):
    """The expert of the applicants' desk."""

    desk: ClassVar[Desk] = DESK
    who_question: ClassVar[Sequence[str]] = (
        "What is your applicant number, or your full name and date of birth?",
        "To find you, I need your applicant number, or your full name and date of birth. Who are you?",
    )
    questions: ClassVar[Mapping[str, Sequence[str]]] = {
        "position": ("Which position is it?", "What is the position number?"),
        "application": ("Which application is it?", "What is the application number?"),
        "letter": ("Which letter do you need: the receipt, the invitation or the rejection?",),
        "new": ("What is the number of the new document?", "And which is the new one?"),
        "document": ("Which document is it?", "What is the document number?"),
    }
    why: ClassVar[Mapping[str, str]] = {
        "not_yours": "I can only serve you for applications and documents of your own.",
        "unknown_position": "there is no such position.",
        "internal": "that position is open to our own staff only.",
        "closed": "that position no longer takes applications.",
        "already_applied": "you have already applied for that position.",
        "too_soon": "you can apply for that position again six months after a rejection.",
        "limit": "you cannot have more than three applications under way.",
        "missing_document": "the position requires a {document}, and you have none on file.",
        "unverified_document": "your {document} is not verified.",
        "expired_document": "your {document} is not valid until the deadline.",
        "stale_document": "your {document} was issued more than 90 days ago.",
        "language": "your {document} is below the level that the position requires.",
        "experience": "your {document} does not show the experience that the position requires.",
        "not_attached": "that document does not belong to the application.",
        "wrong_kind": "a document can only be replaced by one of the same kind.",
        "under_review": "the documents of that application can no longer be changed.",
        "finished": "that application is no longer under way.",
        "not_invited": "you are not invited on that application.",
        "not_rejected": "that application is not rejected.",
        "already_sent": "that letter was already sent to you.",
        "in_use": "that document belongs to an application that is under way.",
        "no_extension": "deadlines are the same for everybody.",
        "confidential": "that is confidential.",
    }

    def sorry(self, why: str) -> str:
        return super().sorry(why.replace("_", " "))
