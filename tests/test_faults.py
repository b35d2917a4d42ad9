"""Misbehaving environments: each fault by hand, its bounds, and that grading is not fooled by any of them."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from browser import Dom, needs_chromium, open_page, shown
from fake_run import make_run
from fault_experts import Stubborn, measure
from mua import speakers
from mua.chat import Message, ToolCall, carried_out
from mua.config import load_config
from mua.domain import Limits
from mua.domains import load
from mua.endpoint import wire
from mua.episode import play
from mua.errors import MuaError
from mua.evaluate.run import EvalSettings, evaluate
from mua.evaluate.score import score_file
from mua.faults import FaultSettings, FaultyWorld, misbehaving
from mua.report.build import build_report, collect
from mua.rollout import RolloutSettings, play_groups
from mua.speakers import Speaker
from toy import ScriptAgent, ScriptUser, toy_domain

LOOK = ("get_order", {"order_id": "o11"})
CANCEL = ("cancel_order", {"order_id": "o11"})


def world(seed: int = 0, domain=None, **rates) -> FaultyWorld:
    domain = domain or toy_domain()
    found = misbehaving(domain, domain.tasks("test")[0], FaultSettings(**rates), seed)
    assert isinstance(found, FaultyWorld)
    return found


def calls(w, name: str, arguments: dict, times: int) -> list:
    return [w.call("assistant", ToolCall(name, arguments)) for _ in range(times)]


def talk(domain, steps, seed: int = 0, **rates):
    task = domain.tasks("test")[0]
    w = misbehaving(domain, task, FaultSettings(**rates), seed)
    user = ScriptUser("please", "yes")
    return asyncio.run(play(domain, task, ScriptAgent(*steps), user, world=w))


# ---------------------------------------------------------------- each fault


def test_a_passing_failure_refuses_a_bounded_number_of_times_and_changes_nothing():
    w = world(transient=1.0, in_a_row=2)
    found = calls(w, *CANCEL, times=4)
    assert [(r.error, r.unrun, r.fault) for r in found[:2]] == [(True, True, "transient")] * 2
    assert "Try again" in found[0].content
    assert found[2].content == "cancelled" and not found[2].fault
    assert found[3].unrun and w.faults == {"transient": 3}
    first = world(transient=1.0)
    calls(first, *CANCEL, times=2)
    assert first.db.equals(first.domain.open(first.task).db)


def test_an_episode_has_a_bounded_number_of_refusals():
    w = world(transient=1.0, timeout=0.5, in_a_row=2, most=5)
    found = calls(w, *LOOK, times=30)
    assert sum(r.unrun for r in found) == 5
    assert not any(r.error for r in found[8:])


def test_what_the_agent_got_wrong_is_answered_as_ever():
    w = world(transient=1.0)
    plain = w.domain.open(w.task)
    for call in (ToolCall("fly"), ToolCall("get_order", error="not JSON")):
        assert w.call("assistant", call) == plain.call("assistant", call)
    assert not w.faults


def test_a_timeout_tells_the_same_whether_the_write_has_happened_or_not():
    lost, ran = world(timeout=1.0), world(timeout=1.0, timeout_ran=1.0)
    a, b = (calls(w, *CANCEL, times=1)[0] for w in (lost, ran))
    assert a.content == b.content and a.error and b.error
    assert (a.unrun, b.unrun) == (True, False)
    assert lost.db.get("orders", "o11")["status"] == "open"
    assert ran.db.get("orders", "o11")["status"] == "cancelled"
    assert (lost.faults, ran.faults) == ({"timeout": 1, "seconds": 30.0}, {"timeout_ran": 1, "seconds": 30.0})
    # Only writes: a handover that nobody has seen would be no end.
    assert all(calls(ran, *c, times=1)[0].unrun for c in (LOOK, ("hand_over", {"summary": "x"})))


def test_permission_is_lacking_at_first_and_for_good_where_the_tool_is_spare():
    w = world(permission=1.0, in_a_row=3)
    assert [r.error for r in calls(w, *LOOK, times=6)] == [True] * 3 + [False] * 3
    w = world(permission=1.0, spare=("get_order", "cancel_order"))
    assert all(r.fault == "permission" and r.unrun for r in calls(w, *LOOK, times=20))
    assert not calls(w, *CANCEL, times=3)[-1].error  # no reading tool, and gold needs it


def test_a_stale_read_is_of_the_start_and_no_fault_where_nothing_changed():
    w = world(stale=1.0, in_a_row=2)
    assert not any(r.fault for r in calls(w, *LOOK, times=5))
    calls(w, *CANCEL, times=1)
    found = calls(w, *LOOK, times=4)
    assert [json.loads(r.content)["status"] for r in found] == ["open", "open", "cancelled", "open"]
    assert [r.fault for r in found] == ["stale", "stale", "", "stale"]
    assert w.db.get("orders", "o11")["status"] == "cancelled"


def test_fields_are_renamed_and_added_alike_all_episode_long():
    row = {"status": "sent", "items": 3, "gift": False}
    names = set()
    for seed in range(20):
        w = world(seed, renamed=1.0, added=1.0)
        a, b = (json.loads(r.content) for r in calls(w, "get_order", {"order_id": "o3"}, times=2))
        assert a == b and list(a.values())[:3] == list(row.values()) and 4 <= len(a) <= 5
        assert not row.keys() & set(list(a)[:3])
        names.add(tuple(a))
        written = calls(w, *CANCEL, times=1)[0]
        assert (written.content, written.fault) == ("cancelled", "")
    assert len(names) > 10
    some = [json.loads(calls(world(s, renamed=0.5), *LOOK, times=1)[0].content) for s in range(100)]
    assert 100 < sum(key in found for found in some for key in row) < 200


def test_a_new_name_never_hides_another_field():
    w = world(renamed=1.0)
    for key in ("order_id", "items"):
        new = w._name(key)
        fields, found = w._fields({key: 1, new: 2}, {})
        assert sorted(fields.values()) == [1, 2] and "renamed" in found


def test_latency_is_counted_and_cannot_be_seen():
    w = world(latency=1.0, latency_seconds=4.0)
    found = calls(w, *LOOK, times=10)
    assert found == calls(w.domain.open(w.task), *LOOK, times=10)
    assert w.faults["latency"] == 10 and 20 < w.faults["seconds"] < 60
    asleep = world(latency=1.0, latency_seconds=0.02, sleep=True)
    began = asyncio.new_event_loop().time()
    calls(asleep, *LOOK, times=3)
    assert asyncio.new_event_loop().time() - began >= asleep.faults["seconds"]


# ---------------------------------------------------------------- seeds and episodes


def test_same_seed_same_faults_and_a_raised_rate_only_adds_some():
    def pattern(seed, **rates):
        return [r.fault for r in calls(world(seed, in_a_row=99, most=999, **rates), *LOOK, times=200)]

    assert pattern(1, transient=0.2) == pattern(1, transient=0.2) != pattern(2, transient=0.2)
    few, more = pattern(1, transient=0.1), pattern(1, transient=0.3)
    assert 8 < sum(map(bool, few)) < 35 and 40 < sum(map(bool, more)) < 85
    assert all(b for a, b in zip(few, more, strict=True) if a)
    both = pattern(1, transient=0.1, timeout=0.2)
    assert all(b for a, b in zip(few, both, strict=True) if a)


def test_a_fault_is_no_mistake_of_the_agents_and_stands_in_the_record():
    domain = toy_domain()
    found = talk(domain, [LOOK, LOOK, LOOK, CANCEL, CANCEL, CANCEL, "Done."], transient=1.0)
    assert found.reward == 1.0 and found.faults == {"transient": 4}
    assert (found.usage.tool_calls, found.usage.tool_errors) == (6, 0)
    marked = [m for m in found.messages if m.unrun]
    assert len(marked) == 4 and all(m.error and m.fault == "transient" for m in marked)
    again = type(found).from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.to_dict() == found.to_dict() and again.messages == found.messages
    assert not any(key in m for m in wire(found.messages) for key in ("fault", "unrun", "error"))
    kept = carried_out(found.messages)
    assert [c.name for m in kept for c in m.tool_calls] == ["get_order", "cancel_order"]
    assert carried_out(kept) == kept


def test_calls_of_one_step_meet_their_own_faults():
    w = world(seed=3, transient=0.5, in_a_row=9, most=99)
    step = Message("assistant", tool_calls=tuple(ToolCall(*LOOK, id=f"c{n}") for n in range(20)))
    w.begin_step(step)
    together = [w.call("assistant", call) for call in step.tool_calls]
    alone = calls(world(seed=3, transient=0.5, in_a_row=9, most=99), *LOOK, times=20)
    assert together == alone and 3 < sum(r.unrun for r in together) < 17


def test_nothing_changes_without_a_rate(tmp_path: Path):
    domain = load("library:desk")
    assert misbehaving(domain, domain.tasks("test")[0], None, 0) is None
    assert misbehaving(domain, domain.tasks("test")[0], FaultSettings(in_a_row=5, sleep=True), 0) is None
    files = []
    for name, faults in (("a", None), ("b", FaultSettings(most=3))):
        asyncio.run(measure(domain, 6, 0, faults, tmp_path / name, "expert"))
        folder = tmp_path / name / "eval"
        figures = json.loads((folder / "expert.json").read_text())
        assert "faults" not in figures
        stored = [(folder / f"expert.{kind}").read_bytes() for kind in ("jsonl", "settings")]
        files.append([*stored, figures.keys()])
    assert files[0] == files[1] and b"fault" not in b"".join(files[0][:2])


def test_an_agent_without_tools_of_its_own_is_told(monkeypatch: pytest.MonkeyPatch):
    domain = toy_domain()
    monkeypatch.setattr(type(domain), "task_tools", lambda *_: {})
    with pytest.raises(MuaError, match="has no faults"):
        world(domain=domain, transient=0.1)


def test_episodes_of_a_group_have_the_same_weather():
    domain = toy_domain()
    steps = [LOOK] * 8 + [CANCEL, "Done."]
    (one, two) = asyncio.run(
        play_groups(
            domain,
            domain.tasks("train")[:2],
            lambda task, session, seed: ScriptAgent(*steps),
            lambda task, seed: ScriptUser("please", "yes"),
            RolloutSettings(group_size=4),
            faults=FaultSettings(transient=0.5, in_a_row=9),
        )
    )
    patterns = [[m.fault for m in t.messages] for t in one.trajectories]
    assert any(patterns[0]) and patterns == [patterns[0]] * 4
    assert patterns[0] != [m.fault for m in two.trajectories[0].messages]


# ---------------------------------------------------------------- grading


rates = st.builds(
    FaultSettings,
    **{
        name: st.sampled_from([0.0, 0.3, 1.0])
        for name in ("transient", "timeout", "timeout_ran", "permission", "stale", "renamed", "added")
    },
    latency=st.just(0.5),
    in_a_row=st.integers(1, 3),
)
orders = st.fixed_dictionaries({"order_id": st.sampled_from(["o1", "o11", "nowhere"])})
steps = st.one_of(
    st.tuples(st.just("get_order"), orders),
    st.tuples(st.just("cancel_order"), orders),
    st.tuples(st.just("set_items"), orders.map(lambda a: {**a, "count": 5})),
    st.tuples(st.just("hand_over"), st.just({"summary": "x"})),
)


@given(st.lists(steps, max_size=12), rates, st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_a_replay_ends_where_the_episode_ended(moves, faults, seed):
    domain = toy_domain()
    before = domain.base.recompute_sum()
    task = domain.tasks("test")[0]
    w = misbehaving(domain, task, faults, seed) or domain.open(task)
    found = asyncio.run(
        play(domain, task, ScriptAgent(*moves), ScriptUser("please"), world=w, limits=Limits(errors=99))
    )
    stored = [Message.from_dict(json.loads(json.dumps(m.to_dict()))) for m in found.messages]
    assert domain.replay(task, stored).db.equals(w.db)
    assert domain.grade(task, stored, found.termination).reward == found.reward
    assert domain.base.recompute_sum() == before


@pytest.mark.parametrize("name", ["library", "property_rental", "meeting_rooms"])
def test_stored_verdicts_agree_and_who_tries_again_gets_there(name, tmp_path: Path):
    domain = load(name)
    before = domain.base.recompute_sum()
    faults = FaultSettings(transient=0.2, timeout=0.1, permission=0.2, latency=0.2, added=0.3)
    result = asyncio.run(measure(domain, 60, 2, faults, tmp_path, "stubborn"))
    assert result.success == 1.0 and result.faults["hit"]["episodes"] > 40
    wild = faults.model_copy(update={"timeout_ran": 0.7, "stale": 0.3, "renamed": 0.05})
    hurt = asyncio.run(measure(domain, 60, 0, wild, tmp_path, "wild"))
    assert hurt.success < 0.7
    for path in (tmp_path / "eval").glob("*.jsonl"):
        assert all(verdict["agree"] for verdict in score_file(domain, path))
    assert domain.base.recompute_sum() == before
    assert sum(result.faults["counts"].values()) > 60 and result.faults["settings"]["timeout"] == 0.1


def installed(name: str):
    try:
        return load(name)
    except MuaError as exc:
        pytest.skip(f"{name} is not here: {exc}")


@pytest.mark.parametrize("name", ["tau1/retail", "tau2/retail", "tau2/airline", "tau2/retail+rollback"])
def test_benchmarks_grade_what_was_carried_out(name):
    domain = installed(name)
    everything = FaultSettings(transient=0.3, timeout=0.3, timeout_ran=0.3, stale=0.3, permission=0.2)
    hits = 0.0
    for number, task in enumerate(domain.tasks("test")[:12]):
        w = misbehaving(domain, task, everything, number)
        assert w is not None
        gold = [(a.name, dict(a.arguments)) for a in task.actions if a.requestor == "assistant"]
        agent = Stubborn(ScriptAgent(*gold), 0 if number % 2 else 2)
        found = asyncio.run(play(domain, task, agent, ScriptUser("please"), world=w))
        stored = [Message.from_dict(m.to_dict()) for m in found.messages]
        assert domain.grade(task, stored, found.termination).reward == found.reward
        live: Any = w.db
        again: Any = domain.replay(task, stored).db
        assert not live.diff(again) if "tau1" in name else live.changes() == again.changes()
        hits += sum(n for kind, n in found.faults.items() if kind != "seconds")
    assert hits > 10


def test_bfcl_grades_what_was_carried_out():
    domain = installed("bfcl/multi_turn_base")
    for number, task in enumerate(domain.tasks("test")[:6]):
        w = misbehaving(domain, task, FaultSettings(transient=0.5, timeout=0.2), number)
        agent = Stubborn(domain.gold_agent(task), 2)  # type: ignore[attr-defined]
        found = asyncio.run(play(domain, task, agent, domain.user(task, 0), world=w))
        assert found.faults and found.reward == 1.0, found.reason
        stored = [Message.from_dict(m.to_dict()) for m in found.messages]
        assert domain.grade(task, stored, found.termination).reward == 1.0


# ---------------------------------------------------------------- evaluations and the report


def test_an_evaluation_with_faults_has_its_own_name_and_is_not_mixed(tmp_path: Path):
    usual = load_config()
    bad = load_config(overrides=["eval.faults.transient=0.2", "eval.faults.in_a_row=1"])
    none = load_config(overrides=["eval.faults.in_a_row=1"])
    names = [
        speakers.eval_name(Speaker("rl"), a, b, 0.0) for a, b in ((bad, usual), (none, usual), (usual, bad))
    ]
    assert names == ["rl_greedy_faults-transient0.2-in_a_row1", "rl_greedy", "rl_greedy_no-faults"]
    with pytest.raises(MuaError, match="transient"):
        load_config(overrides=["eval.faults.transiet=0.2"])
    assert load_config(overrides=["train.faults.stale=0.1"]).train.faults == FaultSettings(stale=0.1)

    domain = toy_domain()

    async def run(faults):
        return await evaluate(
            domain,
            domain.tasks("test")[:2],
            lambda task, session, seed: ScriptAgent(CANCEL, "Done."),
            lambda task, seed: ScriptUser("please", "yes"),
            EvalSettings(faults=faults),
            out=tmp_path,
        )

    result = asyncio.run(run(FaultSettings(transient=1.0)))
    assert result.faults == {
        "label": "transient1",
        "settings": {"transient": 1.0},
        "counts": {"transient": 2},
        "hit": {"episodes": 2, "success": 0.0},
        "spared": {"episodes": 0, "success": None},
    }
    with pytest.raises(MuaError, match="different: faults"):
        asyncio.run(run(None))


@pytest.fixture
def faulty_run(tmp_path: Path) -> Path:
    """A run of which the RL model was evaluated with faults, too: it lost what a seed says."""
    run = make_run(tmp_path / "run", steps=2, tasks=20, samples=1)
    name = "rl_greedy_faults-transient0.2"
    figures = json.loads((run / "eval" / "rl_greedy.json").read_text())
    draw, lines, lost = random.Random(1), [], 0
    for line in (run / "eval" / "rl_greedy.jsonl").read_text().splitlines():
        played = json.loads(line)
        if played["reward"] and draw.random() < 0.4:
            played["reward"], lost = 0.0, lost + 1
        answer = next((m for m in played["messages"] if m["role"] == "tool"), None)
        if answer:
            answer.update(error=True, fault="transient", unrun=True)
        lines.append(json.dumps(played))
    (run / "eval" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    faults = {
        "label": "transient0.2",
        "counts": {"transient": 31, "latency": 4, "seconds": 90.0},
        "hit": {"episodes": 12, "success": 0.25},
        "spared": {"episodes": 8, "success": 0.875},
    }
    figures.update(name=name, success=figures["success"] - lost / 20, faults=faults)
    (run / "eval" / f"{name}.json").write_text(json.dumps(figures))
    return run


def test_the_report_pairs_evaluations_with_and_without_faults(faulty_run: Path):
    data = collect(faulty_run)
    (row,) = data["faults"]
    plain, bad = (data["evals"][row[k]] for k in ("without", "with"))
    assert (plain["name"], bad["name"]) == ("rl_greedy", "rl_greedy_faults-transient0.2")
    assert row["change"]["points"] == bad["success"] - plain["success"] < 0
    assert row["change"]["low"] <= row["change"]["points"] <= row["change"]["high"]
    # Nobody mistakes the one for the other: the group of faults stands apart, and comes last.
    assert [g["faults"] for g in data["groups"]] == ["", "", "transient0.2"]
    assert data["headline"] == collect_without(faulty_run)["headline"]


def collect_without(run: Path):
    copy = shutil.copytree(run, run.with_name("plain"))
    for path in copy.glob("eval/*faults*"):
        path.unlink()
    data = collect(copy)
    assert data["faults"] == []
    return data


def test_the_report_survives_odd_figures_of_faults(faulty_run: Path):
    path = faulty_run / "eval" / "rl_greedy_faults-transient0.2.json"
    figures = json.loads(path.read_text())
    for odd in (3, [], {"x": 1}, {"label": None, "counts": [1], "hit": 4}, {"counts": {"a": "b"}}):
        path.write_text(json.dumps({**figures, "faults": odd}))
        build_report(faulty_run)


@needs_chromium
def test_browser_shows_success_with_and_without_faults(faulty_run: Path):
    dom = Dom(open_page(build_report(faulty_run)))
    assert dom.tags("html")[0].get("data-ready") == "true"
    with_, without = (
        json.loads((faulty_run / "eval" / f"rl_greedy{x}.json").read_text())["success"]
        for x in ("_faults-transient0.2", "")
    )
    (row,) = dom.rows("faults")
    assert row[:4] == ["RL · greedy", "transient0.2", shown(without), shown(with_)]
    assert row[4].startswith("\u2212") and " to " in row[4]
    assert row[5:7] == ["25.0% of 12", "87.5% of 8"]
    assert row[7].startswith("transient 31, latency 4, ")
