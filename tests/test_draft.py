"""Domains that are all data: the example is sound, what is wrong is said, nothing of a draft is run; and a
teacher's drafts are accepted only when they pass."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_server import FakeServer, chat
from mua.chat import ToolCall
from mua.coldstart.conversations import play_expert
from mua.coldstart.drafting import PROBLEMS, problems, read
from mua.coldstart.verification import DUPLICATE, Verification
from mua.domains import declared, load
from mua.episode import Limits
from mua.errors import MuaError

EXAMPLE = Path(declared.__file__).parent / "example"
CAMP = declared.make(EXAMPLE)


@pytest.fixture
def mua(mua, monkeypatch, tmp_path):
    """Runs a command in this process and in a folder of its own: (exit code, output, errors)."""

    monkeypatch.chdir(tmp_path)
    return mua


def copy(tmp_path: Path, **changes) -> Path:
    """The example with other texts: name of a file (without its end) → function of its text."""
    place = tmp_path / "camp"
    place.mkdir(parents=True, exist_ok=True)
    for name in declared.FILES:
        text = small((EXAMPLE / name).read_text(encoding="utf-8"))
        change = changes.get(name.partition(".")[0], lambda text: text)
        (place / name).write_text(change(text), encoding="utf-8")
    return place


def swap(old: str, new: str):
    def change(text: str) -> str:
        assert old in text, old
        return text.replace(old, new)

    return change


def small(text: str) -> str:
    return text.replace("{train: 220, dev: 40, test: 80}", "{train: 30, test: 10}")


# ---------------------------------------------------------------- the example


def test_its_conversations_are_such_as_the_cold_start_keeps():
    verification, causes = Verification(CAMP), Counter()
    for task in CAMP.tasks("test"):
        causes[verification.examine(task, asyncio.run(play_expert(CAMP, task, 1, Limits())))[0]] += 1
    assert causes.keys() <= {"", DUPLICATE} and causes[DUPLICATE] <= 4, causes


def test_a_new_folder_of_data_is_sound_and_can_be_named_wherever_a_domain_can(mua, tmp_path):
    assert mua("domain", "new", "camp", "--yaml")[0] == 0
    assert sorted(p.name for p in (tmp_path / "camp").iterdir()) == sorted(declared.FILES)
    code, out, _ = mua("domain", "check", "./camp", "--json")
    found = json.loads(out)
    assert (code, found["domain"], found["sound"]) == (0, "camp", True)
    assert found["tasks"] == {"train": 220, "dev": 40, "test": 80}
    assert len(found["checks"]) == 7 and all(c["passed"] == c["asked"] > 0 for c in found["checks"].values())
    assert len({t.kind for t in load("./camp").tasks("dev")}) == 10
    assert mua("tasks", "./camp", "--show", "dev-0003")[0] == 0
    code, _, err = mua("tasks", "./camp:small")
    assert code == 1 and "has no profiles" in err


def test_the_same_files_make_the_same_tasks(tmp_path):
    again = declared.make(copy(tmp_path / "a"))
    other = declared.make(copy(tmp_path / "b"))
    assert again.base.open().digest() == other.base.open().digest()
    assert [t.fingerprint for t in again.tasks("test")] == [t.fingerprint for t in other.tasks("test")]


# ---------------------------------------------------------------- what tools do


def world():
    return CAMP.open(CAMP.tasks("test")[0])


def stored(world, table, key) -> dict:
    """A row that must be there."""
    row = world.db.get(table, key)
    assert row is not None
    return dict(row)


def call(world, name, **arguments):
    result = world.call("assistant", ToolCall(name, arguments))
    return result.error, result.content


def test_steps_do_what_they_say_and_a_call_does_all_of_them_or_none():
    w = world()
    (_, guest), *_ = w.db.where("guests", unpaid_cents=0)
    (free, _), *_ = w.db.where("pitches", status="free")
    number = guest["guest_number"]
    assert call(w, "find_guest", guest_number=number) == (False, json.dumps(dict(guest)))
    assert call(w, "find_guest", guest_number="G0") == (True, "Error: no guest has this number")
    assert call(w, "book_pitch", guest_number=number, pitch=free, nights=3) == (False, "Done.")
    row = stored(w, "stays", f"{number}/{free}")
    assert row == {"guest_number": number, "pitch": free, "nights": 3, "arrived": False}
    assert stored(w, "pitches", free)["status"] == "taken"
    again = call(w, "book_pitch", guest_number=number, pitch=free, nights=3)
    assert again == (True, "Error: the guest has this pitch already")
    assert call(w, "change_nights", guest_number=number, pitch=free, nights=9) == (False, "Done.")
    assert stored(w, "stays", f"{number}/{free}")["nights"] == 9
    listed = json.loads(call(w, "list_stays", guest_number=number)[1])
    assert {"guest_number": number, "pitch": free, "nights": 9, "arrived": False} in listed
    assert all(stay["guest_number"] == number for stay in listed)
    assert set(json.loads(call(w, "list_pitches", kind="tent")[1])[0]) == {"pitch"}
    assert call(w, "cancel_stay", guest_number=number, pitch=free) == (False, "Done.")
    assert w.db.get("stays", f"{number}/{free}") is None and stored(w, "pitches", free)["status"] == "free"
    assert "maximum" in call(w, "book_pitch", guest_number=number, pitch=free, nights=15)[1]


NUMBERS = st.sampled_from([*list(CAMP.base.tables["guests"])[:4], "G00000", "x"])
PITCHES = st.sampled_from([*list(CAMP.base.tables["pitches"])[:4], "P9999", ""])
MADE = st.tuples(
    st.sampled_from(["book_pitch", "cancel_stay", "change_nights", "list_stays", "record_case"]),
    st.fixed_dictionaries(
        {"guest_number": NUMBERS}, optional={"pitch": PITCHES, "nights": st.integers(0, 20)}
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(MADE, max_size=8))
def test_a_call_that_fails_changes_nothing_and_the_base_never_changes(calls):
    w, base = world(), CAMP.base.recompute_sum()
    for name, arguments in calls:
        before = w.db.digest()
        failed, _ = call(w, name, **arguments)
        assert not failed or w.db.digest() == before
    assert CAMP.base.recompute_sum() == base


def test_braces_in_values_are_text(tmp_path):
    def braces(text: str) -> str:
        return swap('number of nights: "4"', 'number of nights: "4", code: "{0.__class__}"')(text)

    domain = declared.make(copy(tmp_path, tasks=braces))
    task = next(t for t in domain.tasks("test") if t.kind == "book")
    assert (
        "the code is (0.__class__)" in task.scenario.goal and task.scenario.facts["code"] == "{0.__class__}"
    )
    assert asyncio.run(play_expert(domain, task, 0, Limits())).reward == 1.0


def test_adding_optional_arguments_and_comparisons(tmp_path):
    def more(text: str) -> str:
        tools = {
            "charge": {
                "description": "Charge a guest.",
                "arguments": {"guest_number": {}, "cents": {"type": "integer"}, "note": {"optional": True}},
                "steps": [
                    {"update": "guests", "at_most": {"unpaid_cents": 1000}, "add": {"unpaid_cents": "$cents"},
                     "set": {"note": "$note"}, "otherwise": "too much"},
                ],
            },
            "debtors": {
                "description": "Who owes.",
                "arguments": {"least": {"type": "integer", "optional": True}},
                "steps": [
                    {"list": "guests", "at_least": {"unpaid_cents": "$least"}, "show": ["unpaid_cents"]},
                ],
            },
        }  # fmt: skip
        data = yaml.safe_load(text)
        data["tools"] |= tools
        data["tables"]["guests"]["fields"]["note"] = {"choose": [""]}
        return yaml.safe_dump(data, sort_keys=False)

    domain = declared.make(copy(tmp_path, domain=more))
    w = domain.open(domain.tasks("test")[0])
    (number, guest), *_ = w.db.where("guests", unpaid_cents=0)
    assert call(w, "charge", guest_number=number, cents=700) == (False, "Done.")
    assert stored(w, "guests", number) == {**guest, "unpaid_cents": 700}
    assert call(w, "charge", guest_number=number, cents=700, note="late") == (False, "Done.")
    assert stored(w, "guests", number) == {**guest, "unpaid_cents": 1400, "note": "late"}
    assert call(w, "charge", guest_number=number, cents=1) == (True, "Error: too much")
    assert len(json.loads(call(w, "debtors")[1])) == 150
    assert {g["unpaid_cents"] for g in json.loads(call(w, "debtors", least=1500)[1])} == {1500, 4000}


# ---------------------------------------------------------------- what is wrong is said

WRONG = [
    ("domain", swap("table: guests, found_by", "table: gusts, found_by"), "there is no table 'gusts'"),
    ("domain", swap("find: pitches, otherwise", "find: p, otherwise"), "show_pitch.steps.0: there is no"),
    ("domain", swap("nights: $nights}, otherwise", "nights: $night}, otherwise"), "no argument 'night'"),
    ("domain", swap("set: {status: taken}", "set: {state: taken}"), "there is no field 'state'"),
    ("domain", swap("after: [show_pitch]", "after: [look]"), "book_pitch.after: there is no tool 'look'"),
    ("domain", swap("digits: 5", "digits: 99"), "digits: Input should be less than or equal to 12"),
    ("domain", swap("prefix: P, digits: 3", "digits: 1"), "count 40, but its fields make only 10 different"),
    ("domain", swap("pick: guests.guest_number", "pick: stays.pitch"), "there is no table above it 'stays'"),
    ("domain", swap("record: true\n    ends", "ends"), "give either steps, or record: true"),
    ("domain", swap("{list: stays,", "{list: stays, find: stays,"), "give exactly one of find, list"),
    ("domain", swap("count: 150", "count: 10000000"), "less than or equal to 5000"),
    ("domain", swap("kind: {enum", "kind: {pattern: '(a+)+$', enum"), "pattern: Extra inputs are not"),
    ("domain", lambda text: "a: &a [1]\nb: *a\n", "anchors and aliases are not for this file"),
    ("domain", lambda text: text + "\ntools: {}\n", "the key 'tools' stands twice"),
    ("domain", lambda text: "- 1\n", "the file: Input should be a valid dictionary"),
    ("domain", lambda text: "x: [\n", "cannot be read"),
    ("domain", lambda text: "[" * 50_000, "more than 20 levels deep"),
    ("domain", lambda text: "!!python/object/apply:os.system ['touch ran']\n", "cannot be read"),
    ("tasks", swap("want: book pitch $pitch\n", "want: book $pich\n"), "there is no drawn row 'pich'"),
    ("tasks", swap("$stay.pitch", "$stay.place"), "there is no field 'place'"),
    ("tasks", swap("- show_pitch: {pitch: $other}", "- peek: {pitch: $other}"), "there is no tool 'peek'"),
    ("tasks", swap("{hand_over: {reason: complaint}}", "{hand_over: {}}"), "argument 'reason' is missing"),
    ("tasks", swap("at_least: {unpaid_cents: 1}", "at_least: {unpaid_cents: 9999}"), "task of kind 'unpaid'"),
    ("tasks", swap("train: 30", "train: 0"), "splits.train: from 1 to 5000 tasks"),
    ("tasks", swap("want: complain", "want: !!python/name:os.system complain"), "cannot be read"),
    ("tasks", swap("want: complain about pitch", "want: complain {my.__class__}"), None),
    ("domain", swap("G and five digits\"", "G and five digits\", optional: true"), "give key"),
    ("domain", swap("{delete: stays,", "{delete: stays, key: [$guest_number, $pit],"), "'pit'"),
    ("policy", lambda text: "Be nice.", "the policy says hardly anything"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "change", "said"), WRONG)
def test_what_is_wrong_is_said_and_nothing_is_run(file, change, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = copy(tmp_path, **{file: change})
    found = asyncio.run(problems(place))
    if said is None:  # it is a word like any other
        assert not any("__class__" in p for p in found)
        goals = [
            t.scenario.goal for t in declared.make(place).tasks("train") if "__class__" in t.scenario.goal
        ]
        assert goals and "complain (my.__class__)" in goals[0]
    else:
        assert len(found) == 1 and said in found[0], found
        assert str(tmp_path) not in found[0]
    assert not (tmp_path / "ran").exists()


def test_many_mistakes_are_said_at_once(tmp_path):
    place = copy(tmp_path, tasks=lambda t: t.replace("{guest: guests,", "{guest: guest,"))
    with pytest.raises(MuaError) as said:
        declared.make(place)
    text = str(said.value)
    assert text.count("there is no table 'guest'") == 5 and text.startswith(f"{place}/tasks.yaml: kinds.book")


LOOK = "          - show_pitch: {pitch: $pitch}\n"
FIND = "          - find_guest: {guest_number: $guest}\n"
UNSOUND = [
    (swap("record_case: {guest_number: $guest, request: book, reason: unpaid}", "list_pitches: {kind: tent}"),
     "doing nothing solves no task: train"),
    (swap("number of nights: \"4\"", "number of nights: \"5\""),
     "book_pitch needs nights = 4, which the person never says and no call before it shows"),
    (swap(LOOK, ""), "book_pitch without show_pitch before it"),
    (swap(f"{FIND}{LOOK}          - book", f"{LOOK}          - book"), "before the person was found"),
    (swap("          - show_pitch: {pitch: $other}\n", ""), None),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), UNSOUND)
def test_an_unsound_draft_is_told(change, said, tmp_path):
    found = asyncio.run(problems(copy(tmp_path, tasks=change)))
    assert bool(found) is (said is not None), found
    assert said is None or any(said in problem for problem in found), found


# ---------------------------------------------------------------- a teacher drafts


def answer(**changes) -> str:
    parts = []
    for name in declared.FILES:
        text = small((EXAMPLE / name).read_text(encoding="utf-8"))
        text = changes.get(name.partition(".")[0], lambda text: text)(text)
        if text:
            parts.append(f"Here is {name}:\n```{name}\n{text}```")
    return "\n\n".join(parts)


def drafted(*answers: str):
    """A teacher that gives these answers one after the other; it says `ready` to the check before."""
    left = list(answers)

    def reply(body):
        return chat(left.pop(0) if len(body["messages"]) > 1 else "ready", usage=(3000, 2000))

    return reply


def draft(mua, url, *more):
    return mua("domain", "draft", "a campsite's desk", "--teacher", "endpoint:t", "--base-url", url, *more)


def test_a_draft_is_mended_until_it_passes(mua, tmp_path):
    first = answer(tasks=lambda t: t.replace("$stay.pitch", "$stay.place"))
    second = answer(domain=lambda t: "", policy=lambda t: "", tasks=UNSOUND[0][0])
    third = answer(domain=lambda t: "", policy=lambda t: "")
    with FakeServer(drafted("I would love to!", first, second, third)) as server:
        code, out, err = draft(mua, server.url)
    assert (code, out.splitlines()[0]) == (0, "4 rounds, 15,000 + 10,000 tokens"), err
    assert [p.name for p in tmp_path.iterdir()] == ["campsite_desk"]
    place = tmp_path / "campsite_desk"
    assert sorted(p.name for p in place.iterdir()) == sorted(declared.FILES)
    assert small((EXAMPLE / "tasks.yaml").read_text()) == (place / "tasks.yaml").read_text()
    assert mua("domain", "check", "./campsite_desk")[0] == 0
    asked = [r["messages"][1]["content"] for r in server.requests if len(r["messages"]) > 1]
    assert "The domain: a campsite's desk" in asked[0] and "not accepted" not in asked[0]
    assert "held no file" in asked[1] and "there is no field 'place'" in asked[2]
    assert "doing nothing solves no task: train" in asked[3] and "```policy.md" in asked[3]
    system = server.requests[1]["messages"][0]["content"]
    assert all(f"```{name}\n" in system for name in declared.FILES) and "`record: true`" in system
    assert draft(mua, server.url)[0] == 1  # nothing is written over


def test_what_is_not_accepted_stays_and_a_person_or_the_teacher_goes_on(mua, tmp_path):
    bad = answer(tasks=lambda t: t.replace("$stay.pitch", "$stay.place"))
    with FakeServer(drafted(bad, "no", bad, answer())) as server:
        code, out, err = draft(mua, server.url, "--out", "desk", "--rounds", "2")
        work = tmp_path / "desk.not_accepted"
        assert code == 1 and "not accepted after 2 rounds" in err and "held no file" in out
        assert not (tmp_path / "desk").exists()
        assert sorted(p.name for p in (work / "answers").iterdir()) == ["1.md", "2.md"]
        assert (work / "answers" / "1.md").read_text() == bad
        assert "held no file" in (work / PROBLEMS).read_text()
        code, out, err = draft(mua, server.url, "--out", "desk", "--rounds", "1")
        assert code == 1 and "there is no field 'place'" in (work / PROBLEMS).read_text()
        assert sorted(p.name for p in (work / "answers").iterdir()) == ["1.md", "2.md", "3.md"]
        code, _, err = mua("domain", "check", "./desk.not_accepted")
        assert code == 1 and "there is no field 'place'" in err

        mended = (work / "tasks.yaml").read_text().replace("$stay.place", "$stay.pitch")
        (work / "tasks.yaml").write_text(mended)
        asked = len(server.requests)
        code, out, err = draft(mua, server.url, "--out", "desk", "--rounds", "1")
    assert code == 0 and out.startswith("0 rounds") and len(server.requests) == asked + 1
    assert not work.exists() and load("./desk").name == "desk"


def test_a_teacher_that_is_down_loses_nothing(mua, tmp_path):
    code, _, err = draft(mua, "http://127.0.0.1:1/v1")
    assert code == 1 and "is down" in err
    code, _, err = mua("domain", "draft", "x y", "--teacher", "smollm2")
    assert code == 1 and "endpoint:NAME" in err
    code, _, err = draft(mua, "http://127.0.0.1:1/v1", "--out", "library")
    assert code == 1 and "mua has a domain 'library' itself" in err


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("```yaml domain.yaml\na\n```", ["domain.yaml"]),
        ("**policy.md**\n```markdown\na\n```", ["policy.md"]),
        ("```../../domain.yaml\na\n```", ["domain.yaml"]),
        ("```\na\n```", []),
        ("```domain.yaml\nnever closed", []),
    ],
)
def test_files_in_an_answer(text, names):
    found, wrong = read(text)
    assert list(found) == names and bool(wrong) is not bool(names)
