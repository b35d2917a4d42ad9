"""The policy as code: decisions over what the tools answer.

The gold solutions and the expert both decide by these functions, each from answers that it got from the
tools itself: what decides must therefore be in the tools' answers. Every limit is tested by hand.

Invariant: pure functions; a decision is the first reason of the policy's order, or None.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from ..times import minutes

TODAY = datetime.date(2026, 2, 16)
MAX_CREDITS = 18
HONOURS_CREDITS = 21
HONOURS_GPA = 3.5
MIN_CREDITS = 9
PASSED = ("A", "B", "C")
MAX_LISTS = 2
LIST_LENGTH = 5
WAY_BETWEEN_CAMPUSES = 30

Facts = Mapping[str, Any]
"""A tool's answer: `find_student`, `get_record`, `get_timetable`, `get_course` or `get_section`."""


def standing(student: Facts) -> str | None:
    """Why the student may only drop and leave."""
    if student["status"] != "active":
        return "not_active"
    return None if student["hold"] == "none" else "hold"


def not_ready(record: Facts, course: Facts) -> str | None:
    """Why the student may not take the course at all: it is passed, or a required one is not."""
    passed = {c for c, grade in record["grades"].items() if grade in PASSED}
    if course["course"] in passed:
        return "passed"
    return None if passed.issuperset(course["requires"]) else "prerequisite"


def clash(one: Facts, other: Facts) -> bool:
    """The two sections cannot both be attended."""
    if not set(one["days"]) & set(other["days"]):
        return False
    way = 0 if one["campus"] == other["campus"] else WAY_BETWEEN_CAMPUSES
    return (
        minutes(one["start"]) < minutes(other["end"]) + way
        and minutes(other["start"]) < minutes(one["end"]) + way
    )


def is_full(timetable: Facts, section: Facts) -> bool:
    """No place of the section is free for this student."""
    ahead = section["waiting"]
    for mine in timetable["waiting"]:
        if mine["section_id"] == section["section_id"]:
            ahead = mine["position"] - 1
    return section["seats"] - section["enrolled"] <= ahead


def enrol_refusal(record: Facts, timetable: Facts, course: Facts, section: Facts) -> str | None:
    """Why a student of good standing may not enrol in the section."""
    not_now = not_ready(record, course)
    if not_now == "passed":
        return not_now
    if any(mine["course"] == course["course"] for mine in timetable["sections"]):
        return "duplicate"
    if not_now:
        return not_now
    limit = HONOURS_CREDITS if record["gpa"] >= HONOURS_GPA else MAX_CREDITS
    if timetable["credits"] + course["credits"] > limit:
        return "credits"
    if any(clash(mine, section) for mine in timetable["sections"]):
        return "conflict"
    return "full" if is_full(timetable, section) else None


def may_wait(timetable: Facts, section: Facts) -> bool:
    """The waiting list of a full section can be offered."""
    lists = [mine["section_id"] for mine in timetable["waiting"]]
    return section["waiting"] < LIST_LENGTH and len(lists) < MAX_LISTS and section["section_id"] not in lists


def choose(
    record: Facts, timetable: Facts, course: Facts, sections: Sequence[Facts]
) -> tuple[Facts, str | None]:
    """The section for a student who names only the course, with why it is refused, if it is."""
    reasons = [(s, enrol_refusal(record, timetable, course, s)) for s in sections]
    return next((found for found in reasons if found[1] is None), reasons[0])


def drop_refusal(student: Facts, timetable: Facts, section: Facts) -> str | None:
    """Why the student may not drop one of its sections."""
    if datetime.date.fromisoformat(section["drop_until"]) < TODAY:
        return "deadline"
    left = sum(
        mine["credits"] for mine in timetable["sections"] if mine["section_id"] != section["section_id"]
    )
    return "minimum" if student["full_time"] and left < MIN_CREDITS else None


def swap_refusal(timetable: Facts, old: str, new: Facts) -> str | None:
    """Why a student of good standing may not have the section `new` for its section `old`."""
    if any(clash(mine, new) for mine in timetable["sections"] if mine["section_id"] != old):
        return "conflict"
    return "full" if is_full(timetable, new) else None


def grading_refusal(
    record: Facts, timetable: Facts, course: Facts, section_id: str, grading: str
) -> str | None:
    """Why a student of good standing may not have this grading for its section."""
    if grading == "letter":
        return None
    if course["department"] == record["department"]:
        return "own_department"
    others = [mine for mine in timetable["sections"] if mine["section_id"] != section_id]
    return "limit" if any(mine["grading"] == "pass/fail" for mine in others) else None
