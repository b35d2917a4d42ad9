"""The policy in steps: what is looked up for a request, and what comes of it."""

from __future__ import annotations

from ..casework import Desk, Grant, Json, Need, Refuse, Steps
from ..script import Call
from . import policy
from .tools import Registrar

HANDOVERS = ("grade_dispute", "leaving", "accommodation", "waiver")


def decide(student: Json, request: Json) -> Steps:
    """Looks up what the policy asks to check, and decides."""
    do = request["do"]
    if do in ("enrol", "swap", "grading") and (reason := policy.standing(student)):
        return Refuse(reason)
    if do == "enrol":
        return (yield from _enrol(student, request))
    section_id = request["section"] if "section" in request else (yield Need("section"))
    about = {"student_id": student["student_id"], "section_id": section_id}
    if do == "leave_list":
        return Grant(
            "leave_waiting_list",
            about,
            f"take you off the waiting list of {section_id}",
            f"You are off the waiting list of {section_id}.",
        )
    timetable = yield Call("get_timetable", {"student_id": student["student_id"]})
    if do == "drop":
        section = yield Call("get_section", {"section_id": section_id})
        reason = policy.drop_refusal(student, timetable, section)
        grant = Grant("drop", about, f"drop {section_id} for you", f"I have dropped {section_id}.")
    elif do == "swap":
        section = yield Call("get_section", {"section_id": request["new"]})
        reason = policy.swap_refusal(timetable, section_id, section)
        grant = Grant(
            "swap_section",
            {**about, "new_section_id": request["new"]},
            f"move you from {section_id} to {request['new']} ({_times(section)})",
            f"You are now enrolled in {request['new']}.",
        )
    else:
        grading = request["grading"]
        record = yield Call("get_record", {"student_id": student["student_id"]})
        course = yield Call("get_course", {"course": section_id.rsplit("-", 1)[0]})
        reason = policy.grading_refusal(record, timetable, course, section_id, grading)
        grant = Grant(
            "set_grading",
            {**about, "grading": grading},
            f"set the grading of {section_id} to {grading}",
            f"The grading of {section_id} is now {grading}.",
        )
    return Refuse(reason) if reason else grant


def _enrol(student: Json, request: Json) -> Steps:
    about = {"student_id": student["student_id"]}
    if "title" in request:
        hits = yield Call("search_courses", {"words": request["title"]})
        named = {"course": hits[0]["course"]}
    elif "course" in request:
        named = {"course": request["course"]}
    else:
        named = {"section": request["section"] if "section" in request else (yield Need("section"))}
    course_id = named["course"] if "course" in named else named["section"].rsplit("-", 1)[0]
    record = yield Call("get_record", about)
    timetable = yield Call("get_timetable", about)
    course = yield Call("get_course", {"course": course_id})
    sections = []
    for section_id in [named["section"]] if "section" in named else course["sections"]:
        sections.append((yield Call("get_section", {"section_id": section_id})))
    section, reason = policy.choose(record, timetable, course, sections)
    section_id = section["section_id"]
    place = {**about, "section_id": section_id}
    if reason == "full" and policy.may_wait(timetable, section):
        position = section["waiting"] + 1
        return Grant(
            "join_waiting_list",
            place,
            f"put you on the waiting list of {section_id}, at place {position}, as no place is free",
            f"You are now on the waiting list of {section_id}.",
        )
    if reason:
        return Refuse(reason)
    what = f"{section_id} ({course['title']}, {_times(section)}, {course['credits']} credits)"
    return Grant("enrol", place, f"enrol you in {what}", f"You are now enrolled in {section_id}.")


def _times(section: Json) -> str:
    return f"{'/'.join(section['days'])} {section['start']} to {section['end']}, {section['campus']} campus"


def declines(wish: Json, proposal: str) -> bool:
    """The student wanted a place, not to wait for one."""
    return wish["data"]["do"] == "enrol" and "waiting list" in proposal and not wish.get("wait")


DESK = Desk(
    toolkit=Registrar,
    person="student_id",
    finders={"student_id": "find_student", "name": "find_student_by_name"},
    decide=decide,
    at_once=frozenset(HANDOVERS),
    declines=declines,
)
