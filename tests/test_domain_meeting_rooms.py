"""The service desk for meeting rooms: tasks, limits by hand, two sides on one database, conduct."""

import dataclasses
import itertools
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
from mua.chat import Message, ToolCall, agent_view, user_view
from mua.domain import Change, Scenario, Task, World
from mua.domains import load
from mua.domains.meeting_rooms import policy
from mua.domains.meeting_rooms.data import WORKS
from mua.domains.meeting_rooms.speech import errand
from mua.errors import MuaError

DOMAIN = load("meeting_rooms")
violations = DOMAIN.violations


@pytest.fixture(scope="module")
def talks():
    return expert_talks(DOMAIN)


def test_it_is_as_large_as_it_says():
    tables = DOMAIN.base.tables
    assert (len(DOMAIN.tools()), len(DOMAIN.tools("user"))) == (15, 11)
    assert (len(tables["rooms"]), len(tables["employees"]), len(tables["bookings"])) == (60, 240, 601)
    assert len({t.kind for t in DOMAIN.tasks("test")}) == 39
    with pytest.raises(MuaError, match="no profile 'tiny'"):
        load("meeting_rooms:tiny")


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


def test_no_two_bookings_of_a_room_overlap():
    by_room = {}
    for row in DOMAIN.base.tables["bookings"].values():
        by_room.setdefault((row["room"], row["day"]), []).append(row)
    for rows in by_room.values():
        rows.sort(key=lambda r: r["start"])
        assert all(not policy.overlap(a, b) for a, b in itertools.pairwise(rows))


# ---------------------------------------------------------------- two sides, one database


def test_most_tasks_need_the_person_to_act():
    """And none of those is solved by what the person does alone."""
    tasks = [t for split in DOMAIN.splits for t in DOMAIN.tasks(split)]
    dual = [t for t in tasks if any(a.requestor == "user" for a in t.actions)]
    assert len(dual) > len(tasks) / 3
    for task in dual:
        world = DOMAIN.open(task)
        for action in task.actions:
            if action.requestor == "user":
                assert not world.call("user", ToolCall(action.name, action.arguments)).error
        assert not world.db.equals(DOMAIN.gold(task)), task.id


def test_each_side_sees_only_its_own_tools(talks):
    task, talk = next((t, k) for t, k in talks if t.kind == "check_in_panel")
    own = set(DOMAIN.tools("user"))
    agent, user = agent_view(talk.messages), user_view(talk.messages)
    assert {c.name for m in talk.messages for c in m.tool_calls} & own
    assert not {c.name for m in agent for c in m.tool_calls} & own
    assert all(m.requestor == "assistant" for m in agent)
    assert {c.name for m in user for c in m.tool_calls} <= own
    assert all(m.role != "tool" or m.requestor == "user" for m in user)
    world = DOMAIN.open(task)
    assert "there is no tool" in world.call("assistant", ToolCall("press_check_in", {})).content
    assert "there is no tool" in world.call("user", ToolCall("list_bookings", {})).content


def in_room(port="hdmi", room="A1-01", booking=None, **wrong):
    """A world with employee E1 in a room where this is wrong."""
    me = {"employee_id": "E1", "room": room, "port": port, "adapter": "none"}
    setup = [
        Change("employees", "E1", {"employee_id": "E1", "email": "e1@example.com", "lead": False}),
        Change("presence", "me", me),
        Change("devices", room, {"room": room, **WORKS, **wrong}),
        Change(
            "rooms",
            room,
            {"room": room, "building": "A", "seats": 4, "board_room": False, "adapters": ["usb-c"]},
        ),
    ]
    if booking:
        row = {
            "booking_id": "B9000",
            "employee_id": "E1",
            "room": room,
            "day": policy.TODAY,
            "status": "booked",
        }
        setup.append(Change("bookings", "B9000", {**row, **booking}))
    return World(DOMAIN, Task("t", "t", Scenario(""), (), tuple(setup)))


def calls(world):
    def call(side, name, **arguments):
        result = world.call(side, ToolCall(name, arguments))
        return result.content if result.error or side == "user" else json.loads(result.content)

    return call


def test_both_sides_act_on_one_database():
    call = calls(
        world := in_room(booking={"start": "10:00", "end": "11:00"}, panel="frozen", conference="hung")
    )
    assert "frozen" in call("user", "look_at_panel")
    assert "no button" in call("user", "press_check_in")
    assert "button to check in" in call("user", "restart_panel")
    assert call("user", "press_check_in") == "The panel says: checked in."
    assert call("assistant", "list_bookings", employee_id="E1")[0]["status"] == "checked_in"
    assert "checked in already" in call("assistant", "check_in_remotely", booking_id="B9000")
    assert "no sound" in call("user", "test_sound")
    call("assistant", "reset_conference_unit", room="A1-01")
    assert "hear me" in call("user", "test_sound")
    assert "red" in call("user", "press_mute_button") and "hear me" in call("user", "press_mute_button")
    assert call("user", "select_input", source="wireless").endswith("no signal on wireless.")
    call("assistant", "report_fault", room="A1-01", part="panel")
    assert call("assistant", "get_room", room="A1-01")["reported"] == ["panel"]
    assert world.db.get("bookings", "B9000")["status"] == "checked_in"


@pytest.mark.parametrize(
    ("wrong", "shows", "helps"),
    [
        ({}, "picture of my laptop", None),
        ({"screen": "frozen"}, "frozen", "restart_screen"),
        ({"input": "wireless"}, "no signal on wireless", "select_input"),
        ({"cable": "loose"}, "no signal on hdmi", "plug_in_cable"),
        ({"port": "usb-c"}, "no signal on hdmi", "plug_in_adapter"),
        ({"port": "displayport"}, "no signal on hdmi", None),
        ({"screen": "broken"}, "frozen", None),
    ],
)
def test_what_the_screen_shows_and_what_helps(wrong, shows, helps):
    arguments = {"select_input": {"source": "hdmi"}, "plug_in_adapter": {"port": wrong.get("port", "usb-c")}}
    for tool in ("restart_screen", "select_input", "plug_in_cable", "plug_in_adapter"):
        call = calls(in_room(**wrong))
        assert shows in call("user", "look_at_screen")
        saw = call("user", tool, **arguments.get(tool, {}))
        works = "picture of my laptop" in call("user", "look_at_screen")
        assert works == (helps in (None, tool) and not (helps is None and wrong)), (tool, saw)
    assert "no adapter for displayport" in calls(in_room())("user", "plug_in_adapter", port="displayport")


def test_the_person_does_what_other_agents_ask_too():
    for text, name in (
        ("Could you please restart the display?", "restart_screen"),
        ("Please press the **Check-in** button on the panel.", "press_check_in"),
        ("Can you tell me what the panel at the door shows?", "look_at_panel"),
        ("Please unmute the microphone.", "press_mute_button"),
        ("Please push in the HDMI cable firmly.", "plug_in_cable"),
        ("Shall I report the screen of A1-01? Please confirm (yes/no).", None),
        ("I have restarted nothing; the panel is yours.", None),
        ("Which room is it, please?", None),
    ):
        call = errand(text)
        assert (call.name if call else None) == name, text
    assert errand("Please select the input HDMI.").arguments == {"source": "hdmi"}
    assert errand("Please use the adapter for USB-C.").arguments == {"port": "usb-c"}


# ---------------------------------------------------------------- the limits, by hand (it is 10:05)


def booking(start, end, room="A1-01", day=policy.TODAY, number="B1"):
    return {"booking_id": number, "room": room, "day": day, "start": start, "end": end}


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        ("09:54", "too_late"),
        ("09:55", None),
        ("10:05", None),
        ("10:20", None),
        ("10:21", "too_early"),
    ],
)
def test_checking_in_by_hand(start, reason):
    mine = policy.todays([booking(start, "12:00"), booking(start, "12:00", room="B1-01")], "A1-01")
    assert policy.check_in_refusal(mine) == reason
    panel = calls(in_room(booking={"start": start, "end": "12:00"}))("user", "look_at_panel")
    assert ("button" in panel) == (reason is None)


def test_which_booking_counts():
    assert policy.todays([booking("08:00", "10:05")], "A1-01") is None  # over
    assert policy.todays([booking("08:00", "10:06")], "A1-01")
    assert policy.todays([booking("10:00", "11:00", day="2026-02-17")], "A1-01") is None
    assert policy.todays([booking("10:00", "11:00", room="A1-02")], "A1-01") is None
    assert policy.check_in_refusal(None) == "no_booking"
    first, second = booking("10:00", "10:30"), booking("10:30", "11:00")
    assert policy.todays([second, first], "A1-01") == first
    assert policy.running([booking("10:05", "11:00")], "A1-01")
    assert policy.running([booking("10:06", "11:00")], "A1-01") is None


def test_booking_by_hand():
    wish = {"start": "12:00", "end": "16:00", "people": 4}
    three = [booking("11:00", "12:00", number=f"B{i}") for i in range(3)]
    assert policy.book_refusal([], wish) is None
    assert policy.book_refusal([], {**wish, "end": "16:01"}) == "too_long"
    assert policy.book_refusal(three[:2], wish) is None and policy.book_refusal(three, wish) == "limit"
    assert policy.book_refusal([*three[:2], booking("08:00", "10:05")], wish) is None
    assert policy.book_refusal(three, {**wish, "end": "16:01"}) == "too_long"

    room = {"room": "A1-01", "seats": 4, "board_room": False}
    staff, lead = {"lead": False}, {"lead": True}

    def refusal(who=staff, taken=(), **more):
        return policy.room_refusal(who, {**room, **more}, [booking(*t) for t in taken], wish)

    assert refusal(taken=[("11:00", "12:00"), ("16:00", "17:00")]) is None  # back to back
    assert refusal(taken=[("11:00", "12:01")]) == "taken" and refusal(taken=[("15:59", "17:00")]) == "taken"
    assert refusal(seats=3) == "too_small" and refusal(seats=3, taken=[("12:00", "13:00")]) == "taken"
    assert refusal(board_room=True) == "restricted" and refusal(lead, board_room=True) is None

    free = [
        {**room, "room": n, "seats": s, "board_room": b}
        for n, s, b in (("C", 6, False), ("A", 4, True), ("B", 6, False))
    ]
    assert policy.choose(staff, free)["room"] == "B" and policy.choose(lead, free)["room"] == "A"
    assert policy.choose(staff, free[1:2]) is None


def test_extending_and_cancelling_by_hand():
    mine = booking("09:00", "11:00")
    taken = [mine, booking("12:30", "13:30", number="B2")]
    assert policy.extend_refusal(mine, taken, "12:30") is None
    assert policy.extend_refusal(mine, taken, "12:31") == "taken"
    assert policy.extend_refusal(mine, [mine], "13:00") is None
    assert policy.extend_refusal(mine, taken, "13:01") == "too_long"
    assert policy.extend_refusal(None, taken, "11:30") == "no_booking"
    for start, day, reason in (
        ("10:06", policy.TODAY, None),
        ("10:05", policy.TODAY, "started"),
        ("09:00", "2026-02-17", None),
    ):
        assert policy.cancel_refusal([booking(start, "12:00", day=day)], "B1") == reason
    assert policy.cancel_refusal([mine], "B7") == "not_yours"


def test_the_tools_let_mistakes_happen_and_refuse_nonsense():
    call = calls(world := in_room(booking={"start": "10:00", "end": "11:00"}))
    when = {"day": policy.TODAY, "start": "10:00", "end": "18:00"}
    made = call("assistant", "book_room", employee_id="E1", room="A1-01", **when)  # taken, too long
    assert made == {"booked": "B9001", "room": "A1-01"} and world.db.get("bookings", "B9001")
    assert "cannot end" in call(
        "assistant", "book_room", employee_id="E1", room="A1-01", **{**when, "end": "10:00"}
    )
    assert "not a time" in call("assistant", "extend_booking", booking_id="B9000", end="25:00")
    assert "not later" in call("assistant", "extend_booking", booking_id="B9000", end="11:00")
    assert "no room" in call("assistant", "move_booking", booking_id="B9000", room="Z")
    assert "in A1-01 already" in call("assistant", "move_booking", booking_id="B9000", room="A1-01")
    assert call("assistant", "report_fault", room="A1-01", part="screen")["reported"] == "screen"
    assert "reported already" in call("assistant", "report_fault", room="A1-01", part="screen")
    assert call("assistant", "get_room", room="A1-01")["reported"] == ["screen"]
    assert call("assistant", "cancel_booking", booking_id="B9000") == {"cancelled": "B9000"}
    assert "no booking" in call("assistant", "cancel_booking", booking_id="B9000")


# ---------------------------------------------------------------- conduct


def test_planted_violations_are_found(talks):
    """What is the domain's own; the shared rules are tested with course_registration."""
    task, talk = next((t, k) for t, k in talks if t.kind == "screen_broken")
    messages = list(talk.messages)
    assert violations(task, messages) == []
    tried = next(i for i, m in enumerate(messages) if any(c.name == "restart_screen" for c in m.tool_calls))
    without = [*messages[:tried], *messages[tried + 2 :]]
    assert violations(task, without) == ["report_fault before the person tried restart_screen"]
    report = next(i for i, m in enumerate(messages) if any(c.name == "report_fault" for c in m.tool_calls))
    unasked = [dataclasses.replace(messages[report - 1], content="Fine."), *messages[report:]]
    got = violations(task, [*messages[: report - 1], *unasked])
    assert got == ["report_fault without a yes right before it"]
    lie = Message("assistant", "I have booked C4-05 for you.")
    assert violations(task, [*messages, lie]) == ["said 'I have booked C4-05', which was not done"]

    task, talk = next((t, k) for t, k in talks if t.kind == "check_in_broken")
    messages = [m for m in talk.messages if m.role != "user" or not m.tool_calls]
    assert violations(task, messages) == [
        "report_fault before the person tried restart_panel",
        "check_in_remotely before the person tried restart_panel",
    ]
