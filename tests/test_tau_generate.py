"""New training tasks over τ²: new, apart from what is evaluated on, solvable, and never for free."""

import asyncio
import copy
import dataclasses
import json

import pytest

from fake_server import FakeServer, chat
from mua.benchmarks import generate as made
from mua.benchmarks import guards, load, store
from mua.benchmarks.generate import make, reword
from mua.benchmarks.generate.script import ScriptUser
from mua.benchmarks.generate.telecom import families
from mua.benchmarks.generate.telecom_expert import STEPS
from mua.chat import Message, ToolCall
from mua.cli import app
from mua.coldstart.conversations import conversations, play_expert
from mua.coldstart.verification import verify
from mua.domain import Scenario, Task, check_no_noop, check_no_overlap
from mua.domains.script import _YES
from mua.episode import Limits
from mua.errors import MuaError
from mua.trajectory import Termination

try:
    store.installed("tau2")
except MuaError as exc:
    pytest.skip(f"τ²-bench is not here: {exc}", allow_module_level=True)

PARTS = made.PARTS
COUNT = 24


@pytest.fixture(params=PARTS)
def domain(request):
    return load(f"tau2/{request.param}")


def drawn(domain, seed=0, count=COUNT):
    return made.generate(domain, count, seed).tasks


def test_a_seed_gives_the_same_tasks_whatever_the_count(domain):
    fresh = make.Maker(made.source(domain), 0, lambda record: made.prove(domain, record))
    assert fresh.upto(6).tasks == drawn(domain)[:6]
    assert [t["id"] for t in fresh.tasks] == [t["id"] for t in drawn(domain)[:6]]
    assert not {make.key(t) for t in drawn(domain, 1, 6)} & {make.key(t) for t in drawn(domain)}


def test_tasks_are_new_and_apart_from_upstreams(domain):
    records = drawn(domain)
    source = made.source(domain)
    tasks = [domain.make_task(r) for r in records]
    assert len({make.key(r) for r in records}) == len({t.fingerprint for t in tasks}) == COUNT
    assert make.overlap(records, source.tasks) == []
    check_no_overlap(tasks, domain.tasks("test"), "test")
    check_no_noop(domain, tasks)
    assert guards.leaks(domain, tasks, list(guards.held_out_tasks(domain, "test", None))) == []
    if source.part == "telecom":
        held_out = {f for t in source.tasks if t["id"] in source.held_out for f in families(t)}
        assert not held_out & {f for r in records for f in families(r)}
    else:
        people = {r["mua"]["person"] for r in records}
        text = json.dumps(source.tasks)
        assert people <= set(source.db["users"])
        assert not [p for p in people if p in text]
        assert not {w for r in records for w in make.writes(r)} & {
            w for t in source.tasks for w in make.writes(t)
        }


def test_gold_replays_and_nothing_is_earned_for_nothing(domain):
    for record in drawn(domain):
        task, world = domain.make_task(record), domain.open(domain.make_task(record))
        start = world.db.digest()
        for a in task.actions:
            result = world.call(a.requestor, ToolCall(a.name, a.arguments))
            assert not result.error, (record["id"], a, result.content)
        assert world.db.digest() != start
        assert domain.grade(task, [], Termination.USER_STOP).reward == 0
        handover = ToolCall("transfer_to_human_agents", {"summary": "x"}, "1")
        at_once = [Message("assistant", "", (handover,))]
        assert domain.grade(task, at_once, Termination.USER_STOP).reward == 0


def test_expert_solves_them_and_asks_before_it_writes(domain):
    writes = {n for n, effect in domain.parts.effects["agent"].items() if effect == "write"}
    writes -= {"send_payment_request", "resume_line", "enable_roaming"}  # policy asks no consent for these
    kinds = set()
    for record in drawn(domain):
        task = domain.make_task(record)
        trajectory = asyncio.run(play_expert(domain, task, 5, Limits()))  # in other words than when proven
        assert trajectory.reward == 1.0, (record["id"], trajectory.reason)
        assert verify(domain, task, trajectory) == ""
        assert not [m for m in trajectory.messages if m.error]
        for before, message in zip(trajectory.messages, trajectory.messages[1:], strict=False):
            if any(c.name in writes for c in message.tool_calls if message.role == "assistant"):
                assert before.role == "user"
                assert before.content in _YES
        kinds.add(task.kind)
    assert len(kinds) >= 5


def test_proof_finds_a_broken_task(domain):
    record = next(r for r in drawn(domain) if made.prove(domain, r) == "")
    empty = copy.deepcopy(record)
    empty["evaluation_criteria"]["actions"] = []
    assert made.objection(domain, empty) != ""
    broken = copy.deepcopy(record)
    broken["evaluation_criteria"]["actions"][0]["arguments"] = {"nonsense": "1"}
    assert made.objection(domain, broken).startswith("a gold action fails")
    # A gold that the words do not say: the expert, who hears only these, ends elsewhere.
    others = [r for r in drawn(domain) if r["mua"]["person"] != record["mua"]["person"]]
    other = next(r for r in others if r["mua"]["kind"] in ("cancel", "book", "account"))
    mixed = {**record, "mua": {**record["mua"], "agenda": other["mua"]["agenda"]}}
    assert made.played(domain, mixed) != ""


def test_guard_knows_a_test_task_in_other_words(domain):
    source = made.source(domain)
    writing = [t for t in source.tasks if t["id"] in source.held_out and list(make.writes(t))]
    leak = copy.deepcopy(writing[0])
    leak["id"] = "new"
    leak["user_scenario"]["instructions"]["reason_for_call"] = "Something else entirely."
    assert make.Guard(source).objection(leak) == "as an upstream task"
    if source.part != "telecom":
        extended = copy.deepcopy(drawn(domain)[0])
        extended["evaluation_criteria"]["actions"] += leak["evaluation_criteria"]["actions"]
        assert make.Guard(source).objection(extended) == "a write of an upstream task"


def test_guard_knows_a_held_out_telecom_family_on_another_line():
    source = made.source(load("tau2/telecom"))
    guard, moved = make.Guard(source), 0
    for task in (t for t in source.tasks if t["id"] in source.held_out):
        text = json.dumps(task).replace("L1002", "L1004").replace("C1001", "C1002")
        other = json.loads(text.replace("2g_only", "3g_only").replace('"pin"', '"puk"'))
        if other != task:
            moved += 1
            assert guard.objection(other) == "of a held-out family"
    assert moved > 20


def test_splits_by_name_file_and_task(domain, tmp_path):
    split = domain.tasks("generated:4:3")
    assert [t.id for t in split] == [t["id"] for t in drawn(domain, 3, 4)]
    assert domain.task(split[2].id).fingerprint == split[2].fingerprint
    fresh = dataclasses.replace(domain)
    assert fresh.task(split[3].id).fingerprint == split[3].fingerprint  # of a split that was not loaded
    path = tmp_path / "tasks.json"
    made.write(path, drawn(domain, 3, 4))
    assert [t.fingerprint for t in domain.tasks(str(path))] == [t.fingerprint for t in split]
    with pytest.raises(MuaError, match="no split 'generate'"):
        domain.tasks("generate")


def test_files_that_must_not_be_trained_on(domain, tmp_path):
    source, path = made.source(domain), tmp_path / "tasks.json"
    leak = copy.deepcopy(next(t for t in source.tasks if t["id"] in source.held_out and list(make.writes(t))))
    leak["mua"] = drawn(domain)[0]["mua"]
    made.write(path, [*drawn(domain)[:2], leak])
    with pytest.raises(MuaError, match="as an upstream task"):
        made.read(path, domain)
    made.write(path, [drawn(domain)[0]] * 2)
    with pytest.raises(MuaError, match="as one before"):
        made.read(path, domain)
    other = next(p for p in PARTS if p != source.part)
    made.write(path, drawn(load(f"tau2/{other}"))[:1])
    with pytest.raises(MuaError, match=f"are of {other}, not of {source.part}"):
        made.read(path, domain)
    for text in ("{", "[1]", json.dumps(source.tasks[:1])):
        path.write_text(text)
        with pytest.raises(MuaError, match="mua benchmarks generate"):
            made.read(path, domain)


def test_cold_start_takes_generated_tasks_and_refuses_upstreams():
    domain = load("tau2/retail")
    kept = asyncio.run(conversations(domain, domain.tasks("generated:4"), 6, 0))
    assert [t.reward for t in kept] == [1.0] * 6
    with pytest.raises(MuaError, match=r"coldstart\.split=generated"):
        asyncio.run(conversations(domain, domain.tasks("train"), 1, 0))
    with pytest.raises(MuaError, match="no agenda"):
        made.agenda_user(domain.tasks("train")[0], 0)


def test_solo_work_has_a_ticket():
    domain = load("tau2/telecom-solo")
    task = domain.tasks("generated:2")[1]
    ticket = task.data["ticket"]
    assert task.data["mua"]["person"] in ticket
    assert ticket in domain.system_prompt(task)
    assert not domain.is_scripted(task)


def test_phone_user_hears_each_step_as_the_expert_means_it():
    tools = load("tau2/telecom").tools("user")
    for name, (words, _) in STEPS.items():
        said = words.format(permission="storage")
        heard = next(n for n, (_, pattern) in STEPS.items() if pattern.search(said))
        assert heard == name
        given = STEPS[name][1].search(said).groupdict()
        assert set(given) == set(tools[name].parameters.get("properties", {})), name


def test_scripted_user_agrees_only_to_what_it_wants():
    record = next(r for r in drawn(load("tau2/retail")) if r["mua"]["agenda"]["requests"][0]["must"])
    agenda = record["mua"]["agenda"]
    user = ScriptUser(Task("x", "x", Scenario("x", agenda=agenda), ()), 0)
    view = [Message("user", "Hi.")]
    wrong = asyncio.run(
        user.reply([*view, Message("assistant", "I will cancel #W0. Do you confirm (yes/no)?")])
    )
    assert wrong.text == f"I want to {agenda['requests'][0]['say']}."
    right = f"I will do it: {' '.join(agenda['requests'][0]['must'])}. Do you confirm (yes/no)?"
    assert (
        asyncio.run(user.reply([*view, Message("assistant", right)])).text in _YES or "change" in user.request
    )
    assert asyncio.run(user.reply([*view, Message("assistant", "Please hold on.")])).stop


# ---------------------------------------------------------------- other words


def test_facts_of_a_scenario_are_all_that_decides_its_gold(domain):
    for record in drawn(domain):
        found = reword.facts(record)
        assert reword.lost(record, record["user_scenario"]["instructions"]) == []
        text = json.dumps([record["mua"]["agenda"]["requests"]], ensure_ascii=False)
        told = record["user_scenario"]["instructions"]["reason_for_call"]
        for word in told.split():
            bare = word.strip(".,()'")
            if any(c.isdigit() for c in bare) and bare in text:
                assert any(bare in f for f in found), (bare, found)


def test_a_number_is_not_found_in_another():
    record = {
        "user_scenario": {
            "instructions": {"reason_for_call": "Add 1.5 GB to #W12 on May 1.", "task_instructions": ""}
        },
        "mua": {"agenda": {"requests": []}},
    }
    assert reword.facts(record) == ["1.5", "#W12", "May 1"]
    new = {"reason_for_call": "Add 11.5 GB to #W123 on May 18.", "task_instructions": "5 or 1.5x"}
    assert reword.lost(record, new) == ["1.5", "#W12", "May 1"]


def test_teacher_rewords_through_the_command_line(tmp_path, capsys, monkeypatch):
    """A wording that loses a fact is asked for again, with what is missing, and then not taken."""
    plain = drawn(load("tau2/retail"), 0, 3)

    def answer(body):
        asked = body["messages"]
        if len(asked) == 1:
            return chat("yes")
        texts = json.loads(asked[1]["content"])
        if plain[0]["user_scenario"]["instructions"]["reason_for_call"] == texts["reason_for_call"]:
            return chat('{"reason_for_call": "You want something.", "task_instructions": "Nothing."}')
        if len(asked) == 2:
            return chat("Sure!")
        new = {k: f"In other words: {v}" for k, v in texts.items()}
        return chat(f"```json\n{json.dumps(new)}\n```")

    out = tmp_path / "new.json"
    with FakeServer(answer) as server:
        arguments = ["benchmarks", "generate", "tau2/retail", "--out", str(out), "--count", "3"]
        app([*arguments, "--teacher", "endpoint:t", "--base-url", server.url], standalone_mode=False)
    tasks = made.read(out, load("tau2/retail"))
    assert tasks[0] == plain[0]
    for new, old in zip(tasks[1:], plain[1:], strict=True):
        told = old["user_scenario"]["instructions"]["reason_for_call"]
        assert new["user_scenario"]["instructions"]["reason_for_call"] == f"In other words: {told}"
        assert make.key(new) == make.key(old)
        assert new["mua"]["reworded"].endswith(" t")
        assert made.prove(load("tau2/retail"), new) == ""
    assert "2 reworded, 1 kept as they were" in capsys.readouterr().out
