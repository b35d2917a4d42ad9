"""The registrar's office: its tasks, its limits by hand, and what breaks its rules of conduct."""

import dataclasses
import json

import pytest

from domain_checks import (
    check_blind_expert,
    check_idle_agents,
    check_same_everywhere,
    check_talks,
    check_tasks,
    expert_talks,
)
from mua.audit.wording import is_yes
from mua.chat import Message, ToolCall
from mua.domain import World
from mua.domains import load
from mua.domains.course_registration import policy
from mua.errors import MuaError

DOMAIN = load("course_registration")
violations = DOMAIN.violations


@pytest.fixture(scope="module")
def talks():
    return expert_talks(DOMAIN)


def test_it_is_as_large_as_it_says():
    tables = DOMAIN.base.tables
    assert (len(DOMAIN.tools()), len(tables["students"]), len(tables["sections"])) == (15, 320, 195)
    assert len({t.kind for t in DOMAIN.tasks("test")}) == 35
    with pytest.raises(MuaError, match="no profile 'tiny'"):
        load("course_registration:tiny")


def test_tasks_are_distinct_and_need_something_done():
    check_tasks(DOMAIN)


def test_the_expert_solves_every_task_within_the_rules(talks):
    check_talks(DOMAIN, talks, violations, errors={"wrong_number", "unknown"})


def test_the_expert_cannot_read_the_task():
    check_blind_expert(DOMAIN)


def test_who_does_nothing_earns_nothing():
    check_idle_agents(DOMAIN)


def test_everything_is_the_same_in_another_process():
    check_same_everywhere(DOMAIN)


def test_the_database_is_sound():
    """Counts are those of the rows, waiting lists have no gaps, and nobody is enrolled against the policy."""
    tables = DOMAIN.base.tables
    taken, waiting = {}, {}
    for row in tables["enrolments"].values():
        taken.setdefault(row["section_id"], []).append(row)
    for row in tables["waits"].values():
        waiting.setdefault(row["section_id"], []).append(row["position"])
    for section, row in tables["sections"].items():
        assert row["enrolled"] == len(taken.get(section, [])) <= row["seats"]
        assert sorted(waiting.get(section, [])) == list(range(1, len(waiting.get(section, [])) + 1))
    world = World(DOMAIN, DOMAIN.tasks("dev")[0])
    for student in tables["students"]:
        table = json.loads(
            world.call("assistant", ToolCall("get_timetable", {"student_id": student})).content
        )
        assert len(table["waiting"]) <= 2 and table["credits"] <= 21
        for one in table["sections"]:
            assert not any(policy.clash(one, other) for other in table["sections"] if other is not one)


# ---------------------------------------------------------------- the limits, by hand


def section(start="10:00", end="11:00", days=("Mon",), campus="North", **more):
    known = {"section_id": "CS201-1", "course": "CS201", "seats": 10, "enrolled": 0, "waiting": 0}
    return {"days": list(days), "start": start, "end": end, "campus": campus, **known, **more}


def mine(*sections, credits=0, waiting=()):
    rows = [{**s, "section_id": f"MA101-{i}", "course": "MA101"} for i, s in enumerate(sections)]
    return {"sections": rows, "credits": credits, "waiting": list(waiting)}


COURSE = {"course": "CS201", "credits": 3, "department": "CS", "requires": ["CS101"]}
RECORD = {"grades": {"CS101": "C"}, "gpa": 3.0, "department": "MA"}
ON_LIST = [{"section_id": "CS201-1", "position": 2}]


@pytest.mark.parametrize(
    ("reason", "record", "timetable", "wanted"),
    [
        (None, {}, mine(), {}),
        ("prerequisite", {"grades": {"CS101": "D"}}, mine(), {}),
        ("prerequisite", {"grades": {}}, mine(), {}),
        ("passed", {"grades": {"CS101": "A", "CS201": "C"}}, mine(), {}),
        ("passed", {"grades": {"CS201": "C"}}, mine(), {}),
        (None, {"grades": {"CS101": "A", "CS201": "D"}}, mine(), {}),
        (None, {"grades": {"CS101": "A", "CS201": "F"}}, mine(), {}),
        (None, {}, mine(credits=15), {}),
        ("credits", {}, mine(credits=16), {}),
        ("credits", {"gpa": 3.49}, mine(credits=16), {}),
        (None, {"gpa": 3.5}, mine(credits=18), {}),
        ("credits", {"gpa": 3.5}, mine(credits=19), {}),
        # on one campus back to back is fine, a minute is not
        (None, {}, mine(section("09:00", "10:00")), {}),
        ("conflict", {}, mine(section("09:00", "10:01")), {}),
        (None, {}, mine(section("11:00", "12:00")), {}),
        ("conflict", {}, mine(section("10:59", "12:00")), {}),
        ("conflict", {}, mine(section("10:15", "10:30")), {}),
        (None, {}, mine(section("10:15", "10:30", days=("Tue", "Thu"))), {}),
        # between campuses it takes 30 minutes
        (None, {}, mine(section("09:00", "09:30", campus="South")), {}),
        ("conflict", {}, mine(section("09:00", "09:31", campus="South")), {}),
        (None, {}, mine(section("11:30", "12:00", campus="South")), {}),
        ("conflict", {}, mine(section("11:29", "12:00", campus="South")), {}),
        # seats are first of all for those who wait
        (None, {}, mine(), {"enrolled": 9}),
        ("full", {}, mine(), {"enrolled": 10}),
        ("full", {}, mine(), {"enrolled": 9, "waiting": 1}),
        (None, {}, mine(), {"enrolled": 8, "waiting": 1}),
        ("full", {}, mine(waiting=ON_LIST), {"enrolled": 9, "waiting": 4}),
        (None, {}, mine(waiting=ON_LIST), {"enrolled": 8, "waiting": 4}),
        # the first reason counts
        ("prerequisite", {"grades": {}}, mine(section(), credits=18), {"enrolled": 10}),
        ("credits", {}, mine(section(), credits=18), {"enrolled": 10}),
        ("conflict", {}, mine(section()), {"enrolled": 10}),
    ],
)
def test_enrolling_by_hand(reason, record, timetable, wanted):
    assert policy.enrol_refusal({**RECORD, **record}, timetable, COURSE, section(**wanted)) == reason


def test_a_second_section_of_a_course_is_a_duplicate():
    taken = {**mine(), "sections": [section(days=("Fri",))]}
    assert policy.enrol_refusal(RECORD, taken, COURSE, section(days=("Mon",))) == "duplicate"


def test_the_other_limits_by_hand():
    free, last, late = ({"drop_until": f"2026-02-{day}"} for day in (20, 16, 15))
    rows = [{"section_id": "A-1", "credits": 4}, {"section_id": "B-1", "credits": 9}]
    table = {"sections": rows, "credits": 13, "waiting": []}
    for full_time, wanted, reason in (
        (True, {"section_id": "A-1", **free}, None),  # 9 are left
        (True, {"section_id": "A-1", **last}, None),
        (True, {"section_id": "A-1", **late}, "deadline"),
        (True, {"section_id": "B-1", **free}, "minimum"),
        (True, {"section_id": "B-1", **late}, "deadline"),
        (False, {"section_id": "B-1", **free}, None),
    ):
        assert policy.drop_refusal({"full_time": full_time}, table, wanted) == reason
    eight = {**table, "sections": [rows[0], {"section_id": "B-1", "credits": 8}]}
    assert policy.drop_refusal({"full_time": True}, eight, {"section_id": "A-1", **free}) == "minimum"

    def may_wait(waiting, *lists):
        return policy.may_wait(mine(waiting=[{"section_id": s} for s in lists]), section(waiting=waiting))

    assert may_wait(4) and may_wait(4, "X-1")
    assert not may_wait(5) and not may_wait(0, "X-1", "Y-1") and not may_wait(2, "CS201-1")

    old = mine(section("10:00", "11:00"))
    assert policy.swap_refusal(old, "MA101-0", section("10:30", "11:30")) is None
    assert policy.swap_refusal(old, "MA101-1", section("10:30", "11:30")) == "conflict"
    assert policy.swap_refusal(old, "MA101-0", section(enrolled=10)) == "full"

    def grading(wanted, *others, department="MA"):
        rows = [{"section_id": f"S-{i}", "grading": g} for i, g in enumerate(("letter", *others))]
        record = {"department": department}
        return policy.grading_refusal(record, {"sections": rows}, COURSE, "S-0", wanted)

    assert grading("pass/fail") is None and grading("pass/fail", "letter") is None
    assert grading("pass/fail", "pass/fail") == "limit"
    assert grading("pass/fail", "pass/fail", department="CS") == "own_department"
    assert grading("letter", "pass/fail", department="CS") is None

    for status, hold, reason in (
        ("active", "none", None),
        ("active", "unpaid_fees", "hold"),
        ("on_leave", "unpaid_fees", "not_active"),
    ):
        assert policy.standing({"status": status, "hold": hold}) == reason


def test_without_a_section_the_lowest_that_fits_is_taken():
    busy = mine(section("10:00", "11:00"))
    one, two, three = section(), section("12:00", "13:00"), section("14:00", "15:00")
    assert policy.choose(RECORD, busy, COURSE, [one, two, three]) == (two, None)
    assert policy.choose(RECORD, busy, COURSE, [one, {**two, "enrolled": 10}]) == (one, "conflict")


# ---------------------------------------------------------------- the tools


def test_the_tools_let_mistakes_happen_and_refuse_nonsense():
    world = World(DOMAIN, DOMAIN.tasks("dev")[0])
    tables = DOMAIN.base.tables

    def call(name, **arguments):
        result = world.call("assistant", ToolCall(name, arguments))
        return result.content if result.error else json.loads(result.content)

    first = min((r for r in tables["waits"].values() if r["position"] == 1), key=lambda r: r["student_id"])
    full, student = first["section_id"], first["student_id"]
    behind = {r["student_id"]: r["position"] for r in tables["waits"].values() if r["section_id"] == full}
    before = call("get_section", section_id=full)
    assert call("enrol", student_id=student, section_id=full) == {"enrolled": full}
    after = call("get_section", section_id=full)
    assert after["enrolled"] == before["enrolled"] + 1 and after["waiting"] == before["waiting"] - 1
    for other in set(behind) - {student}:
        assert world.db.get("waits", f"{other}/{full}")["position"] == behind[other] - 1
    assert "already enrolled" in call("enrol", student_id=student, section_id=full)
    assert "no section" in call("enrol", student_id=student, section_id="XX101-1")
    assert "no student" in call("enrol", student_id="S1", section_id=full)
    assert "not on the waiting list" in call("leave_waiting_list", student_id=student, section_id=full)
    assert "same course" in call(
        "swap_section",
        student_id=student,
        section_id=full,
        new_section_id=next(s for s in tables["sections"] if s[:5] != full[:5]),
    )
    assert "already letter" in call("set_grading", student_id=student, section_id=full, grading="letter")
    call("drop", student_id=student, section_id=full)
    assert call("join_waiting_list", student_id=student, section_id=full)["position"] == before["waiting"]
    assert "not enrolled" in call("drop", student_id=student, section_id=full)
    born = tables["students"][student]["born"]
    assert call("find_student", student_id=student, born=born)["student_id"] == student
    assert "no student" in call("find_student", student_id=student, born="1990-01-01")


# ---------------------------------------------------------------- conduct


@pytest.fixture(scope="module")
def enrolled(talks):
    """A plain conversation: found, looked up, proposed, yes, enrolled."""
    task, talk = next((t, k) for t, k in talks if t.kind == "enrol")
    return task, list(talk.messages)


def at(messages, name):
    """Where a tool is called."""
    return next(i for i, m in enumerate(messages) if any(c.name == name for c in m.tool_calls))


def changed(messages, i, **fields):
    return [*messages[:i], dataclasses.replace(messages[i], **fields), *messages[i + 1 :]]


def test_what_is_a_clear_yes():
    for text in ("Yes, please.", "yes", "Sure, go ahead!", "OK.", "I confirm.", "That is right."):
        assert is_yes(text), text
    for text in ("", "No.", "Not yet.", "Yesterday it was full.", "Yes, but not that one.", "Okay, wait."):
        assert not is_yes(text), text


def test_planted_violations_are_found(enrolled):
    task, talk = enrolled
    assert violations(task, talk) == []
    student = task.scenario.facts["student number"]
    wanted = task.actions[0].arguments["section_id"]
    find, enrol = at(talk, "find_student"), at(talk, "enrol")
    again = dataclasses.replace(talk[enrol].tool_calls[0], id="again")

    def found(messages, *texts):
        got = violations(task, messages)
        assert all(any(text in v for v in got) for text in texts), got
        assert len(got) == len(texts), got

    for words in ("Hm, what else is there?", "No.", "Yes, but on Monday instead.", "Wait."):
        found(changed(talk, enrol - 1, content=words), "enrol without a yes")
    found(changed(talk, enrol - 2, content=f"I enrol you in {wanted}."), "enrol without a yes")
    found([*talk[: enrol - 2], *talk[enrol:]], "enrol without a yes")
    found([*talk[:find], *talk[find + 2 :]], "before the person was found")
    look = at(talk, "get_timetable")
    found([*talk[:look], *talk[look + 2 :]], "without get_timetable")
    found(
        changed(talk, enrol - 2, content="I will enrol you in CS999-1. OK (yes/no)?"), f"section_id {wanted}"
    )
    other = next(s for s in DOMAIN.base.tables["students"] if s != student)
    call = dataclasses.replace(
        talk[enrol].tool_calls[0], arguments={"student_id": other, "section_id": wanted}
    )
    found(changed(talk, enrol, tool_calls=(call,)), f"enrol for {other}")
    twice = [Message("assistant", tool_calls=(again,)), Message("tool", "{}", tool_call_id="again")]
    found([*talk[: enrol + 2], *twice, *talk[enrol + 2 :]], "on a yes that another change was made on")
    failed = [twice[0], dataclasses.replace(twice[1], error=True)]
    found([*talk[: enrol + 2], *failed, *talk[enrol + 2 :]])  # a failed call changes nothing
    found([*talk, Message("assistant", f"{other} is in it too.")], f"told {other}")
    found([*talk, Message("assistant", f"Your number is {student}.")])
    found([*talk, Message("assistant", "You are now enrolled in CS999-1.")], "which was not done")
    found([*talk[:enrol], *talk[enrol + 2 :]], "which was not done")
    # a refusal is recorded without a yes, but not for somebody whom nobody looked for
    record = ToolCall("record_case", {"student_id": student}, id="r")
    case = [Message("assistant", tool_calls=(record,)), Message("tool", "{}", tool_call_id="r")]
    found([*talk, *case])
    found([*talk[:find], *case], "record_case before the person was found")
