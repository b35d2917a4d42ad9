"""Comparisons of evaluations: each task with itself, every difference of protocol named, and a gate that
never passes by looking away."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from browser import Watched, chromium, needs_chromium
from fake_run import make_run
from fake_server import FakeServer, chat
from mua.benchmarks import paper
from mua.errors import MuaError
from mua.evaluate import stored
from mua.evaluate.compare import compare
from mua.evaluate.gate import Gate
from mua.evaluate.run import EvalSettings, evaluate
from mua.evaluate.statistics import pass_k, pass_k_intervals, success_rate, wilson
from mua.evaluate.tables import Table, lines, markdown, percent, signed, tables
from mua.report.comparison import build_comparison, collect
from toy import ScriptAgent, ScriptUser, toy_domain

SETTINGS = {"seed": 0, "turns": 30, "steps": 60, "errors": 10, "step": 64, "tasks": "t", "policy": "p"}


def made(
    folder: Path,
    rewards: Mapping[str, Sequence[float | None]],
    name: str = "rl_greedy",
    *,
    kinds: Mapping[str, str] = {},
    content: Mapping[str, str] = {},
    protocol: Mapping[str, Any] | None = SETTINGS,
    usage: tuple[int, int] = (3, 50),
    **figures: Any,
) -> Path:
    """An evaluation as `evaluate` leaves it, with every figure computed from `rewards`."""
    scored = {t: [r for r in rs if r is not None] for t, rs in rewards.items()}
    scored = {t: rs for t, rs in scored.items() if rs}
    success, interval = success_rate(scored)
    by_kind = {}
    for kind in sorted({kinds.get(t, "renew") for t in scored}):
        own = {t: rs for t, rs in scored.items() if kinds.get(t, "renew") == kind}
        by_kind[kind] = {"success": success_rate(own)[0], "n": len(own)}
    data = {
        "name": name,
        "model": name.rpartition("_")[0],
        "domain": "library:desk",
        "split": "test",
        "user": "agenda",
        "temperature": 0.0,
        "n": len(scored),
        "samples": max(map(len, rewards.values())),
        "success": success,
        "ci95": list(interval),
        "pass_k": {str(k): v for k, v in pass_k(scored).items()},
        "by_kind": by_kind,
        "terminations": {"user_stop": sum(map(len, rewards.values()))},
        "excluded": sum(r is None for rs in rewards.values() for r in rs),
        "turns": usage[0],
        "agent_tokens_per_episode": usage[1],
        "user_cost": 0.5,
        "mua": "1",
        **figures,
    }
    path = folder / "eval" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    episodes = [
        {
            "domain": data["domain"],
            "task_id": t,
            "kind": kinds.get(t, "renew"),
            "fingerprint": content.get(t, f"content of {t}"),
            "termination": "user_stop" if r is not None else "user_failed",
            "reward": r,
            "sample": n,
            "usage": {"user_turns": usage[0], "agent_tokens": usage[1]},
            "messages": [],
        }
        for t, rs in rewards.items()
        for n, r in enumerate(rs)
    ]
    text = "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in episodes)
    path.with_suffix(".jsonl").write_text(text, encoding="utf-8")
    if protocol is not None:
        about = {"model": data["model"], "weights": str(folder), **protocol}
        path.with_suffix(".settings").write_text(json.dumps(about), encoding="utf-8")
    return path


def run_folder(folder: Path, domain: Any) -> None:
    """Makes it the folder of a run that trained on this domain."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"domain": domain}), encoding="utf-8")


def one(found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Baseline and the other of the only comparison."""
    (comparison,) = found["comparisons"]
    first, second = comparison["evaluations"]
    return first, second


# ---------------------------------------------------------------- figures


def test_every_figure_of_two_small_evaluations(tmp_path):
    kinds = {"t0": "fines", "t1": "fines"}
    a = made(tmp_path / "a", {f"t{n}": [1.0] if n < 4 else [0.0] for n in range(10)}, kinds=kinds)
    b = made(
        tmp_path / "b", {f"t{n}": [0.0] if n < 1 else [1.0] for n in range(10)}, kinds=kinds, usage=(4, 40)
    )
    first, second = one(compare([a, b]))
    assert (first["success"], second["success"]) == (0.4, 0.9)
    assert first["difference"] is None and first["label"] == "a/rl_greedy"
    d = second["difference"]
    assert d["mean"] == pytest.approx(0.5) and 0 <= d["low"] < 0.5 < d["high"] <= 1
    assert [d[k] for k in ("tasks", "left_out", "better", "worse", "only_this", "only_baseline")] == [
        10, 0, 6, 1, 6, 1,
    ]  # fmt: skip
    assert d["p"] == pytest.approx(2 * (1 + 7) / 2**7)  # McNemar's exact test of 1 against 6
    assert second["pass_k"] == {"1": {"value": 0.9, "ci95": list(wilson(9, 10))}}
    assert second["turns_difference"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "tasks": 10, "left_out": 0}
    assert second["tokens_difference"]["mean"] == -10.0
    fines, renew = (second["kinds"][k] for k in ("fines", "renew"))
    assert (fines["success"], fines["n"], fines["difference"]["mean"]) == (0.5, 2, -0.5)
    assert (renew["success"], renew["n"], renew["difference"]["mean"]) == (1.0, 8, 0.75)
    assert second["cost"] == 0.5 and second["layers"] == {}


def test_several_samples_and_reliability(tmp_path):
    a = made(tmp_path / "a", {"x": [1, 1, 0, 0], "y": [0, 0, 0, 0], "z": [1, 1, 1, 1]})
    b = made(tmp_path / "b", {"x": [1, 0, 0, 0], "y": [1, 1, 0, None], "z": [1, 1, 1, 1]})
    first, second = one(compare([a, b]))
    assert {k: v["value"] for k, v in first["pass_k"].items()} == {
        "1": 0.5, "2": pytest.approx((1 / 6 + 1) / 3), "3": pytest.approx(1 / 3), "4": pytest.approx(1 / 3),
    }  # fmt: skip
    assert all(v["ci95"][0] <= v["value"] <= v["ci95"][1] for v in first["pass_k"].values())
    d = second["difference"]
    assert d["mean"] == pytest.approx((-0.25 + 2 / 3 + 0) / 3)
    assert (d["better"], d["worse"], d["only_this"], d["only_baseline"], d["p"]) == (1, 1, 1, 0, 1.0)
    assert second["excluded"] == 1


def test_intervals_of_pass_k_follow_the_rule_of_success():
    outcomes = {"a": [1.0, 1.0], "b": [1.0, 0.0], "c": [0.0, 0.0], "d": [1.0, 1.0]}
    found = pass_k_intervals(outcomes)
    assert found[1] == success_rate(outcomes)[1]
    assert found[2][0] <= pass_k(outcomes)[2] == 0.5 <= found[2][1]
    single = {str(i): [float(i < 3)] for i in range(10)}
    assert pass_k_intervals(single) == {1: wilson(3, 10)}
    assert pass_k_intervals({"a": [1.0, 1.0], "b": [1.0, 1.0]})[2] == wilson(2, 2)


def test_tasks_are_paired_by_name_and_content(tmp_path):
    a = made(tmp_path / "a", {"x": [0], "y": [0], "z": [1], "only a": [1]})
    b = made(tmp_path / "b", {"only b": [0], "z": [1], "y": [1], "x": [1]}, content={"x": "another x"})
    found = compare([a, b])
    _, second = one(found)
    d = second["difference"]
    assert (d["mean"], d["tasks"], d["left_out"]) == (0.5, 2, 3)  # y and z; x and the two others are not
    assert "1 task of the same name with another content" in " ".join(found["comparisons"][0]["notes"])
    assert "2 compared" in tables(found["comparisons"][0])[0].rows[1][7]


def test_what_shares_no_task_is_an_error(tmp_path):
    a = made(tmp_path / "a", {"x": [0], "y": [0]})
    b = made(tmp_path / "b", {"v": [1], "w": [1]})
    c = made(tmp_path / "c", {"x": [1], "y": [1]}, content={"x": "new", "y": "new"})
    with pytest.raises(MuaError, match="no task of one is a task of the other"):
        compare([a, b])
    with pytest.raises(MuaError, match="the 2 tasks of the same name have another content"):
        compare([a, c])
    with pytest.raises(MuaError, match="two or more"):
        compare([a])


def test_torn_and_missing_conversations(tmp_path):
    rewards = {f"t{n}": [float(n % 2)] for n in range(8)}
    a, b = made(tmp_path / "a", rewards), made(tmp_path / "b", {t: [1.0] for t in rewards})
    file = b.with_suffix(".jsonl")
    file.write_bytes(file.read_bytes()[:-40] + b'\n[1]\n\xff{"task_id": 3}\n')
    found = compare([a, b])
    _, second = one(found)
    assert second["difference"]["tasks"] == 7 and second["success"] == 1.0
    said = " ".join(found["comparisons"][0]["notes"])
    assert "3 lines of its conversations cut off" in said and "7 scored tasks, its figures are of 8" in said
    file.unlink()
    found = compare([a, b])
    d = one(found)[1]["difference"]
    assert (d["mean"], d["low"], d["high"], d["tasks"]) == (0.5, None, None, None)
    assert "nothing can be compared task by task" in " ".join(found["comparisons"][0]["notes"])
    assert "+50.0" in markdown(tables(found["comparisons"][0])[0])
    about = b.with_suffix(".settings")
    about.write_text(json.dumps({**SETTINGS, "tasks": "others"}))
    found = compare([a, b])
    assert one(found)[1]["difference"] is None
    assert "not the tasks of the baseline" in " ".join(found["comparisons"][0]["notes"])
    with pytest.raises(MuaError, match="cannot look at library:desk of b/rl_greedy"):
        Gate(0).check(found)
    odd = {"success": 0.5, "audit": [], "by_kind": {"x": 3}, "ci95": ["a", None], "pass_k": 1, "faults": "on"}
    b.write_text(json.dumps({**odd, "terminations": {"user_stop": "many"}, "benchmark": "b", "n": "all"}))
    for file in (b.with_suffix(".settings"), a.with_suffix(".settings")):
        file.write_text("[1")
    found = compare([a, b])["comparisons"][0]
    assert [t.title for t in tables(found)] and found["evaluations"][1]["ci95"] is None
    b.write_text('{"success": "much"}')
    with pytest.raises(MuaError, match="no number 'success'"):
        compare([a, b])
    b.write_text("{torn")
    with pytest.raises(MuaError, match="cannot be read as JSON"):
        compare([a, b])


def test_layers_are_paired_over_audited_conversations(tmp_path, monkeypatch):
    domain = toy_domain()
    monkeypatch.setattr(stored, "load", lambda name: domain)
    for name in ("a", "b"):
        run_folder(tmp_path / name, "./toy.py")

    def agent(right: bool):
        def make(task, session, seed):
            action = task.actions[0]
            return ScriptAgent((action.name, dict(action.arguments))) if right else ScriptAgent()

        return make

    for name, right in (("a", False), ("b", True)):
        parts = domain, domain.tasks("test"), agent(right), lambda task, seed: ScriptUser("Please do it.")
        asyncio.run(evaluate(*parts, EvalSettings(), out=tmp_path / name, name="rl_greedy", model="rl"))
    first, second = one(compare([tmp_path / "a", tmp_path / "b"]))
    assert first["layers"]["outcome"] == {"rate": 0.0, "n": 5, "difference": None}
    outcome = second["layers"]["outcome"]
    assert (outcome["rate"], outcome["n"], outcome["difference"]["mean"]) == (1.0, 5, 1.0)
    assert outcome["difference"]["low"] is None  # five tasks that all agree are too few for an interval
    # An evaluation may not name code to be run: outside its run, this domain is not loaded.
    shutil.move(tmp_path / "b" / "eval", tmp_path / "loose")
    found = compare([tmp_path / "a", tmp_path / "loose"])
    assert one(found)[1]["layers"]["outcome"] == {"rate": 1.0, "n": 5, "difference": None}
    assert any("'toy' does not come with mua" in note for note in found["comparisons"][0]["notes"])


def test_absurd_numbers_and_samples_that_stand_twice(tmp_path):
    a = made(tmp_path / "a", {"x": [1], "y": [0], "z": [1]}, domain="toy")
    b = made(tmp_path / "b", {"x": [1], "y": [0], "z": [1]}, domain="toy")
    lines = b.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    again = lines[1].replace('"reward": 0', '"reward": 1')
    absurd = lines[2].replace('"reward": 1', f'"reward": 1{"0" * 400}')
    b.with_suffix(".jsonl").write_text("\n".join([*lines[:2], absurd, again]), encoding="utf-8")
    b.write_text(json.dumps(json.loads(b.read_text()) | {"turns": 10**400}), encoding="utf-8")
    found = compare([a, b])
    assert one(found)[1]["turns"] is None
    difference = one(found)[1]["difference"]
    assert (difference["mean"], difference["tasks"], difference["left_out"]) == (0.5, 2, 1)
    assert difference["low"] is None  # two tasks are too few for an interval
    notes = " ".join(found["comparisons"][0]["notes"])
    assert "1 of its samples of a task stand there again" in notes and "1 line of its conversations" in notes
    b.write_text(json.dumps(json.loads(b.read_text()) | {"success": 10**400}), encoding="utf-8")
    with pytest.raises(MuaError, match="no number 'success'"):
        compare([a, b])


def test_a_part_of_a_mixture_counts_what_is_left_out(tmp_path):
    domain = "mix:books=1,rooms=1"
    parts = {"books": {"success": 1.0, "n": 6}, "rooms": {"success": 0.0, "n": 1}}
    rewards = {**{f"books/{n}": [1] for n in range(6)}, "rooms/0": [0]}
    a = made(tmp_path / "a", {**rewards, "books/old": [0]}, domain=domain, by_domain=parts)
    b = made(tmp_path / "b", {**rewards, "books/new": [1]}, domain=domain, by_domain=parts)
    found = Gate(0, names=("books",)).check(compare([a, b]))
    (checked,) = found["checked"]
    assert (checked["tasks"], checked["left_out"], checked["success"]) == (6, 2, [1.0, 1.0])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=3)] * 2),
        min_size=1,
        max_size=12,
    )
)
def test_with_itself_all_is_zero_and_swapping_negates(tmp_path_factory, pairs):
    place = tmp_path_factory.mktemp("pairs")
    x, y = (
        made(place / name, {f"t{n}": pair[i] for n, pair in enumerate(pairs)})
        for i, name in enumerate(("x", "y"))
    )
    same = one(compare([x, x]))[1]["difference"]
    assert (same["mean"], same["better"], same["worse"], same["p"]) == (0.0, 0, 0, 1.0)
    assert {same["low"], same["high"]} <= {0.0, None}
    ab, ba = one(compare([x, y]))[1], one(compare([y, x]))[1]
    for p, q in ((ab, ba), (ab["kinds"]["renew"], ba["kinds"]["renew"])):
        d, e = p["difference"], q["difference"]
        assert d["mean"] == pytest.approx(-e["mean"], abs=1e-12)
        if d["low"] is None:
            assert e["low"] is None
        else:
            assert (d["low"], d["high"]) == pytest.approx((-e["high"], -e["low"]), abs=1e-9)
    d, e = ab["difference"], ba["difference"]
    assert (d["better"], d["worse"], d["only_this"]) == (e["worse"], e["better"], e["only_baseline"])
    assert d["p"] == e["p"]


# ---------------------------------------------------------------- what goes with what, how it was measured


def test_runs_are_compared_by_their_last_model_or_by_every_one(tmp_path):
    tasks = {"x": [0], "y": [1]}
    for run in ("old", "new"):
        for name in ("base_greedy", "cold_start_greedy", "rl_greedy"):
            made(tmp_path / run, tasks, name)
        made(tmp_path / run, tasks, "rl_t1", temperature=1.0)
    made(tmp_path / "new", tasks, "rl_greedy_library_dev", split="dev")
    runs = [tmp_path / "old", tmp_path / "new"]
    names = [[e["name"] for e in c["evaluations"]] for c in compare(runs)["comparisons"]]
    assert names == [["rl_greedy"] * 2, ["rl_t1"] * 2]
    assert compare(runs)["notes"] == [
        "new: nothing to compare with rl_greedy_library_dev (library:desk, split dev, T = 0)"
    ]
    names = [[e["name"] for e in c["evaluations"]] for c in compare(runs, every_model=True)["comparisons"]]
    assert names == [["rl_greedy"] * 2, ["rl_t1"] * 2, ["cold_start_greedy"] * 2, ["base_greedy"] * 2]
    twice = compare([tmp_path / "old", tmp_path / "old"])["comparisons"][0]["evaluations"]
    assert [e["label"] for e in twice] == ["old rl", "old (2) rl"] and twice[1]["difference"]["mean"] == 0
    # An endpoint has no namesake in the run: it is compared with the last model.
    made(tmp_path / "hosted", tasks, "gpt_greedy")
    first, second = one(compare([tmp_path / "old", tmp_path / "hosted"]))
    assert (first["name"], second["name"], second["label"]) == ("rl_greedy", "gpt_greedy", "hosted gpt")
    with pytest.raises(MuaError, match=r"nothing may be compared: .*T = 1.*eval/NAME\.json"):
        shutil.copytree(tmp_path / "old" / "eval", tmp_path / "warm")
        for path in (tmp_path / "warm").glob("*_greedy.*"):
            path.unlink()
        compare([tmp_path / "hosted", tmp_path / "warm"])
    # Two files are compared all the same, and the difference is named.
    found = compare([tmp_path / "warm" / "rl_t1.json", tmp_path / "hosted" / "eval" / "gpt_greedy.jsonl"])
    assert "temperature of the agent: 1 (A), 0 (B)" in [
        p["words"] for p in found["comparisons"][0]["protocol"]
    ]


def test_places_without_an_evaluation_are_refused_and_unfinished_ones_told(tmp_path):
    made(tmp_path / "a", {"x": [1]})
    made(tmp_path / "b", {"x": [1]})
    (tmp_path / "b/eval/rl_t1.jsonl").write_text("{}\n")
    (tmp_path / "b/eval/users_rl.json").write_text('{"agent": "rl", "users": {}}')
    notes = compare([tmp_path / "a", tmp_path / "b"])["notes"]
    assert len(notes) == 1 and "rl_t1.jsonl is not finished" in notes[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(MuaError, match=r"empty holds no finished evaluation"):
        compare([tmp_path / "a", tmp_path / "empty"])
    with pytest.raises(MuaError, match=r"there is no run, folder or evaluation .*gone"):
        compare([tmp_path / "a", tmp_path / "gone"])


def test_every_difference_of_protocol_is_named(tmp_path):
    tasks = {"x": [0, 1], "y": [1, 1]}
    a = made(tmp_path / "a", tasks)
    same = compare([a, made(tmp_path / "same", tasks)])["comparisons"][0]
    assert same["protocol"] == [] and "measured alike, as far as settings are recorded" in lines(same)
    other = {**SETTINGS, "seed": 7, "turns": 20, "policy": "q", "judge": "url m", "faults": {"timeout": 1}}
    b = made(
        tmp_path / "b",
        {"x": [0], "y": [1]},
        protocol=other,
        user="llm:gpt",
        split="dev",
        temperature=1.0,
        mua="2",
        benchmark={"version": "1.0", "data_hash": "abc"},
    )
    words = [p["words"] for p in compare([a, b])["comparisons"][0]["protocol"]]
    assert words == [
        "split: test (A), dev (B)",
        "episodes a task: 2 (A), 1 (B)",
        "temperature of the agent: 0 (A), 1 (B)",
        "user: agenda (A), llm:gpt (B)",
        "seed of users and agent: 0 (A), 7 (B)",
        "faults of the environment: none (A), on (B)",
        "judge: none (A), url m (B)",
        "most turns of the user: 30 (A), 20 (B)",
        "policy text: not the same in A / B",
        "version of the benchmark: 1.0 (B), not recorded (A)",
        "data of the benchmark: recorded for B, not recorded (A)",
        "version of mua: 1 (A), 2 (B)",
    ]
    bare = made(tmp_path / "c", tasks, protocol=None)
    (c,) = compare([a, made(tmp_path / "same", tasks), bare])["comparisons"]
    assert "most failed calls: 10 (A, B), not recorded (C)" in [p["words"] for p in c["protocol"]]
    assert c["unrecorded"] == ["database", "tools"]
    (c,) = compare([bare, made(tmp_path / "bare", tasks, protocol=None)])["comparisons"]
    assert c["protocol"] == [] and {"seed of users and agent", "policy text"} <= set(c["unrecorded"])
    assert any(line.startswith("recorded by none: tasks, seed of users and agent") for line in lines(c))


def test_the_papers_rows_come_with_their_differences():
    assert paper.columns("tau2@0.2/airline+rollback")["success"]["MUA-RL-32B"] == 45.4
    assert paper.columns("bfcl/multi_turn:prompt")["mean_of_categories"]["MUA-RL-8B"] == 14.6
    assert paper.columns("bfcl-v3/multi_turn_base") == {"success": {"MUA-RL-32B": 42.0}}
    assert paper.columns("acebench-strict/agent_en")["agent_score"]["GPT-4.1"] == 86.7
    assert paper.columns("library:desk") == {} == paper.columns("gym")
    alike = {"user": "llm:gpt-4.1", "samples": 4, "temperature": 0.0, "n": 50, "faults": "none"}
    assert paper.differences("tau2@0.2/airline", alike) == []
    assert paper.differences("tau2/airline+rollback", {**alike, "benchmark_version": "1.0"}) == [
        "today's task files (1.0), the paper's are those of tau2@0.2",
        "strict options (rollback), the paper's score is upstream's",
    ]
    other = {"user": "agenda", "samples": 1, "temperature": 1.0, "n": 20, "faults": "on"}
    assert paper.differences("tau1/retail", other) == [
        "user agenda, the paper's gpt-4.1",
        "agent temperature 1, the paper's 0",
        "episodes a task 1, the paper's is the mean of 4 runs",
        "20 tasks, the paper's are 115",
        "the environment misbehaves (faults), the paper's does not",
    ]


def test_published_rows_stand_in_a_comparison(tmp_path):
    how = {"domain": "tau2@0.2/telecom", "benchmark": {"task_completion_rate": 0.25}}
    a, b = (made(tmp_path / name, {"x": [1], "y": [0]}, **how) for name in "ab")
    (c,) = compare([a, b])["comparisons"]
    assert c["published"]["rows"]["success"]["MUA-RL-32B"] == 28.3
    shown = {t.title: t.rows for t in tables(c)}
    rows = shown["Beside published results (task completion rate, per cent)"]
    assert rows[0] == ["A a/rl_greedy", "25.0"] and ["MUA-RL-14B", "54.3"] in rows
    assert any(
        line.startswith("B beside the paper's rows: user agenda, the paper's gpt-4.1") for line in lines(c)
    )


# ---------------------------------------------------------------- the gate


def gated(tmp_path: Path, fell: int, tasks: int = 40, **how: Any) -> list[Path]:
    """An evaluation, and one in which `fell` tasks more fail."""
    half = tasks // 2
    a = made(tmp_path / "a", {f"t{n}": [float(n < half)] for n in range(tasks)}, **how)
    b = made(tmp_path / "b", {f"t{n}": [float(n < half - fell)] for n in range(tasks)}, **how)
    return [a, b]


@pytest.mark.parametrize(
    ("fell", "below", "confident", "holds"),
    [
        (0, 0, False, True),
        (1, 0, False, False),
        (1, -2.5, False, True),  # 2.5 points is what may be lost, to the point
        (1, -2.4, False, False),
        (-1, 2.5, False, True),
        (-1, 3, False, False),  # a gain is asked for
        (1, 0, True, True),  # it fell, but one task of 40 may be chance: the upper end is 0
        (9, 0, True, False),  # nine are not
        (9, -25, True, True),
    ],
)
def test_the_gate_is_on_the_difference_in_points(tmp_path, fell, below, confident, holds):
    found = Gate(below, confident).check(compare(gated(tmp_path, fell)))
    assert [c["holds"] for c in found["checked"]] == [holds]
    assert bool(found["fallen"]) == (not holds)


def test_the_gates_sentence_says_what_fell_by_how_much(tmp_path):
    (said,) = Gate(-2).check(compare(gated(tmp_path, 9, domain="tau2/airline", user="llm:gpt-4.1")))["fallen"]
    assert said.startswith(
        "tau2/airline, split test, T = 0: b/rl_greedy fell by 22.5 points against a/rl_greedy (27.5 % after "
        "50.0 %; 95 % interval -35.0 to -10.0, 40 tasks); the difference must not be below -2."
    )
    # The rates it names are those of the tasks that were compared.
    a, b = gated(tmp_path, 4)
    made(tmp_path / "b", {f"t{n}": [float(n < 16)] for n in range(20)})
    (said,) = Gate(0).check(compare([a, b]))["fallen"]
    assert "fell by 20.0 points" in said and "80.0 % after 100.0 %" in said and "20 tasks" in said
    assert said.endswith("must not be below 0.")
    (said,) = Gate(5).check(compare(gated(tmp_path, -1)))["fallen"]
    assert "rose by only 2.5 points" in said and "must not be below +5" in said
    (said,) = Gate(1).check(compare(gated(tmp_path, 0)))["fallen"]
    assert "did not move against" in said


def test_the_gate_looks_outside_the_training_domains(tmp_path):
    for name, domain in (("a", "library"), ("b", {"library:desk": 2, "tau2/retail": 1})):
        run_folder(tmp_path / name, domain)
        for n, evaluated in enumerate(("library:desk", "tau1/retail", "tau2@0.2/airline", "bfcl/multi_turn")):
            made(tmp_path / name, {"x": [1], "y": [name == "a"]}, f"rl_t{n}", domain=evaluated)
    runs = [tmp_path / "a", tmp_path / "b"]
    found = Gate(0).check(compare(runs))
    # tau1/retail shares its tasks with tau2/retail, which b trained on.
    assert [c["domain"] for c in found["checked"]] == ["tau2@0.2/airline", "bfcl/multi_turn"]
    assert len(found["fallen"]) == 2
    found = Gate(0, names=("library", "tau2/airline")).check(compare(runs))
    assert [c["domain"] for c in found["checked"]] == ["library:desk", "tau2@0.2/airline"]
    with pytest.raises(MuaError, match="--gate tau2/telecom names no domain of this comparison"):
        Gate(0, names=("tau2/telecom", "library")).check(compare(runs))
    only = [r / "eval/rl_t0.json" for r in runs]
    with pytest.raises(MuaError, match="every domain of this comparison is one that the run trained on"):
        Gate(0).check(compare(only))
    # Where an evaluation lies in no run, nothing is known to be trained on.
    shutil.copytree(tmp_path / "b" / "eval", tmp_path / "loose")
    assert len(Gate(0).check(compare([tmp_path / "a", tmp_path / "loose"]))["checked"]) == 4


def test_a_mixture_is_gated_by_its_domains(tmp_path):
    run_folder(tmp_path / "b", "mix:library=2,meeting_rooms=1")
    mix = {"domain": "mix:library=1,drones=1", "by_domain": {}}
    for name in "ab":
        lost = float(name == "a")
        rewards = {"library/1": [1.0], "library/2": [lost], "drones/1": [1.0], "drones/2": [1.0]}
        mix["by_domain"] = {
            "library": {"success": (1 + lost) / 2, "n": 2}, "drones": {"success": 1.0, "n": 2},
        }  # fmt: skip
        made(tmp_path / name, rewards, **mix)
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert found["comparisons"][0]["evaluations"][1]["domains"]["library"]["difference"]["mean"] == -0.5
    checked = Gate(0).check(found)["checked"]
    assert [(c["domain"], c["mean"], c["holds"]) for c in checked] == [("drones", 0.0, True)]
    (said,) = Gate(0, names=("library",)).check(found)["fallen"]
    assert said.startswith("library in mix:library=1,drones=1, split test")


def test_a_gate_does_not_pass_by_looking_away(tmp_path, mua):
    for name in "ab":
        made(tmp_path / name, {"x": [1]}, "rl_t1", domain="bfcl/multi_turn")
        made(tmp_path / name, {"x": [1]}, "rl_t2", domain="tau2/airline", split=name)
    runs = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(MuaError, match="cannot look at tau2/airline: b has no evaluation of it"):
        Gate(0).check(compare(runs))  # it was measured on another split
    assert len(Gate(0, names=("bfcl/multi_turn",)).check(compare(runs))["checked"]) == 1
    with pytest.raises(MuaError, match="nan"):
        Gate(float("nan")).check(compare(runs))
    # A domain of a mixture of which nothing could be scored.
    mix = {"domain": "mix:library=1,drones=1"}
    sizes = {n: {"success": 1.0, "n": 1} for n in ("library", "drones")}
    a = made(tmp_path / "c", {"library/1": [1.0], "drones/1": [1.0]}, **mix, by_domain=sizes)
    sizes = {"library": {"success": 1.0, "n": 1}}
    b = made(tmp_path / "d", {"library/1": [1.0], "drones/1": [None]}, **mix, by_domain=sizes)
    with pytest.raises(MuaError, match="cannot look at drones of d/rl_greedy: no task of it was scored"):
        Gate(0).check(compare([a, b]))
    code, out, _ = mua("compare", a, b, "--fail-below", "0", "--gate", "library")
    assert code == 0 and out.rstrip().splitlines()[-1].split()[-2:] == ["1", "holds"]


def test_a_gate_cannot_be_confident_without_an_interval(tmp_path):
    a, b = gated(tmp_path, 5)
    b.with_suffix(".jsonl").unlink()
    assert Gate(-2).check(compare([a, b]))["fallen"]
    with pytest.raises(MuaError, match="cannot be confident about library:desk"):
        Gate(-2, confident=True).check(compare([a, b]))


# ---------------------------------------------------------------- the commands


def test_exit_codes_and_formats(mua, tmp_path):
    a, b = gated(tmp_path / "Größe 大", 9, domain="tau2/airline")
    code, out, err = mua("compare", a, b)
    assert (code, err) == (0, "") and "Größe" not in out and "b/rl_greedy" in out
    code, out, err = mua("compare", a, b, "--fail-below", "-2")
    assert code == 1 and "FELL" in out
    assert err.startswith("regression: tau2/airline, split test, T = 0: b/rl_greedy fell by 22.5 points")
    assert mua("compare", a, b, "--fail-below=-22.5")[0] == 0
    assert mua("compare", b, a, "--fail-below", "0", "--confident")[0] == 0
    code, out, err = mua("compare", a, b, "--fail-below", "0", "--json", "-")
    assert code == 1 and json.loads(out)["gate"]["fallen"] == [err.removeprefix("regression: ").strip()]
    code, out, _ = mua("compare", a, b, "--markdown", "--fail-below", "-30")
    assert code == 0 and "| B | b/rl_greedy | 27.5 %" in out and "### Gate" in out
    odd = shutil.copytree(b.parent, tmp_path / "大|<Größe>\n") / b.name
    code, out, _ = mua("compare", a, odd, "--markdown")
    assert code == 0 and "| B | 大\\|&lt;Größe> /rl_greedy | 27.5 %" in out
    file = tmp_path / "new" / "all.json"
    assert mua("compare", a, b, "--json", file)[0] == 0
    assert json.loads(file.read_text())["comparisons"][0]["evaluations"][1]["difference"]["tasks"] == 40
    for bad in (
        ["compare", a],
        ["compare", a, tmp_path / "gone"],
        ["compare", a, b, "--gate", "tau2/airline"],
        ["compare", a, b, "--fail-below", "-2", "--gate", "tau2/retail"],
        ["compare", a, b, "--fail-below", "much"],
        ["compare", a, b, "--json", tmp_path],
    ):
        code, out, err = mua(*bad)
        assert (code, out) == (2, "") and err.lower().count("error") == 1, bad


def test_halves_are_rounded_as_the_pages_script_rounds_them():
    # 57 of 80 tasks: `toFixed` says 71.3, Python's format 71.2. 0.15 lies below the half, and both say 0.1.
    assert percent(57 / 80, (0.0625, 0.8125)) == "71.3 % (6.3-81.3)"
    assert [signed(x) for x in (0.25, -0.25, 0.15, -0.04, 2.0)] == ["+0.3", "-0.3", "+0.1", "0.0", "+2.0"]


def test_ten_runs_stay_readable_in_eighty_columns(mua, tmp_path, monkeypatch):
    kinds = {f"t{n}": f"kind_{n}" for n in range(6)}
    paths = [
        made(tmp_path / f"experiment-{i}", {t: [float(n < i)] for n, t in enumerate(kinds)}, kinds=kinds)
        for i in range(10)
    ]
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = mua("compare", *paths)
    drawn = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert code == 0 and "…" not in drawn
    assert (
        max(len(line) for line in drawn.splitlines() if "experiment-9/rl" in line and "100.0 %" in line) <= 80
    )
    heads = [line.split() for line in drawn.partition("By kind")[2].partition("How episodes")[0].splitlines()]
    letters = [
        word for words in heads if words[:2] == ["tasks", "A"] or set(words) & set("DGHJ") for word in words
    ]
    assert [w for w in letters if len(w) == 1 and w.isupper()] == [*"ABCDEFGHIJ"]
    whole = Table("t", ["", "long column"], [["x", "y" * 200]])
    assert list(whole.blocks(80)) == [whole]  # a cell is never cut


@pytest.fixture
def endpoint():
    """An agent that hands every case over at once."""

    def answer(request):
        if any(m["role"] == "tool" for m in request["messages"]):
            return chat("done")
        return chat(calls=[("transfer_to_human", {"reason": "handover"})])

    with FakeServer(answer) as server:
        yield server


def test_eval_has_the_same_gate(mua, tmp_path, endpoint):
    command = ["eval", "endpoint:m", "--base-url", endpoint.url, "--domain", "library:desk", "--tasks", 3]
    command += ["--samples", 2]
    code, out, _ = mua(*command, "--out", tmp_path / "old")
    assert (
        code == 0 and len(re.findall(r"\d % \(\d+\.\d-\d+\.\d\)", out.splitlines()[4])) == 2
    )  # success, pass^2
    earlier = next((tmp_path / "old/eval").glob("*.json"))
    asked = len(endpoint.requests)
    for bad, words in (
        (["--out", tmp_path / "new", "--fail-below", "0"], "need --against"),
        (["--out", tmp_path / "old", "--against", earlier], "this command makes that evaluation"),
        (["--out", tmp_path / "new", "--against", tmp_path / "none"], "there is no run"),
        (
            ["--out", tmp_path / "new", "--against", tmp_path / "old", "--split", "dev"],
            "has no evaluation of",
        ),
    ):
        code, _, err = mua(*command, *bad)
        assert code == (1 if "need" in words else 2) and words in err
    assert len(endpoint.requests) == asked  # refused before anything is played
    gate = ["--against", tmp_path / "old", "--fail-below"]
    code, out, _ = mua(*command, "--out", tmp_path / "new", *gate, "0")
    assert code == 0 and "holds" in out
    code, out, err = mua(*command, "--out", tmp_path / "new", *gate, "1")
    assert code == 1 and "did not move" in err


# ---------------------------------------------------------------- the page

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u2028"
)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory) -> list[Path]:
    """Two made-up runs; the second solves other tasks, trains longer, and has texts that want to be run."""

    def edit(name: str, played: list[Any]) -> None:
        for t in played[::4]:
            t.reward = 1.0 - t.reward
        played[0].messages[1] = dataclasses.replace(played[0].messages[1], content=HOSTILE)

    place = tmp_path_factory.mktemp("runs")
    for name in ("a", "b"):
        make_run(place / name, steps=10, tasks=24, samples=2, edit=edit if name == "b" else lambda *_: None)
        for path in (place / name / "eval").glob("*.json"):
            figures = json.loads(path.read_text())
            path.write_text(json.dumps({**figures, "user": f"agenda {HOSTILE}" if name == "b" else "agenda"}))
    metrics = place / "a" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:8]))
    return [place / "a", place / "b"]


def test_the_pages_data_are_those_of_the_comparison(two_runs, tmp_path):
    found = compare(two_runs)
    data, blocks = collect(found)
    assert data["comparisons"] == found["comparisons"]
    assert [len(run["metrics"]) for run in data["curves"]] == [8, 10]
    assert [s["key"] for s in data["sources"]] == ["1A", "1B", "2A", "2B"]
    assert data["conversations_in_all"] == sum(s["n"] for s in data["sources"]) == 2 * 24 * (2 + 1)
    assert "index" in blocks and "b0" in blocks
    assert collect(compare([two_runs[0]] * 2))[0]["headline"]["text"].endswith(", as many as a rl.")
    pages = [build_comparison(found, tmp_path / name).read_bytes() for name in ("x.html", "y.html")]
    assert pages[0] == pages[1]
    shell = re.sub(rb'(id="data">).*?(</script)', rb"\1\2", pages[0], flags=re.S)
    shell = re.sub(rb'(octet-stream" id="\w+">).*?(</script)', rb"\1\2", shell, flags=re.S)
    assert set(re.findall(rb"https?://[^\s\"'`]+", shell)) == {b"http://www.w3.org/2000/svg"}
    assert b"innerHTML" not in shell and b"default-src 'none'; style-src" in pages[0]
    with pytest.raises(MuaError, match="the comparison cannot be written"):
        build_comparison(found, two_runs[0] / "config.yaml" / "page.html")


@needs_chromium
def test_a_browser_shows_the_comparison(two_runs, tmp_path):
    found = compare(two_runs)
    found["gate"] = Gate(1000, names=("library",)).check(found)
    file = build_comparison(found, tmp_path / "c.html")
    with chromium() as opened:
        watched = Watched(opened)
        read_by_a_person(watched.open(file), found)
        watched.close(file)


def read_by_a_person(page: Any, found: Mapping[str, Any]) -> None:
    assert page.locator("html[data-ready=true]").count() == 1

    def cells(name: str) -> list[list[str]]:
        rows = page.locator(f'[data-table="{name}"] tbody tr').all()
        return [row.locator("th, td").all_inner_texts() for row in rows]

    for n, comparison in enumerate(found["comparisons"]):
        for shown, e in zip(cells(f"success-{n}"), comparison["evaluations"], strict=True):
            assert shown[0] == f"{e['letter']} {e['label']}"
            assert float(shown[1].rstrip("%")) == pytest.approx(100 * e["success"], abs=0.051)
        heads = page.locator(f'[data-table="success-{n}"] thead th').all_inner_texts()
        shown, d = (
            dict(zip(heads, cells(f"success-{n}")[1], strict=True)),
            comparison["evaluations"][1]["difference"],
        )
        assert float(shown["difference"].replace("−", "-")) == pytest.approx(100 * d["mean"], abs=0.051)
        assert shown["only this solves"] == str(d["only_this"])
        assert shown["only A solves"] == str(d["only_baseline"])
    kinds = {row[0]: row for row in cells("kinds")}
    assert kinds.keys() == found["comparisons"][0]["evaluations"][0]["kinds"].keys()
    assert f"user: agenda (A), agenda {HOSTILE[:9]}" in page.locator("#protocol").inner_text()
    assert page.locator("#curves figure").count() >= 6
    assert page.locator("#curves figure").first.locator(".legend button").count() == 2
    assert page.locator("[data-figure=gate]").inner_text() == "gate failed: 2 fell"
    # Two conversations of one task, and on to the next pair.
    sides = page.locator("#compare .columns article.talk")
    sides.nth(1).wait_for()
    keys = [side.get_attribute("data-conversation") for side in sides.all()]
    assert [key.split("/")[0] for key in keys] == ["1A", "1B"]
    page.keyboard.press("n")
    page.locator(f'#compare article:first-child:not([data-conversation="{keys[0]}"])').wait_for()
    # What was said is shown and never run.
    page.locator("#browse input[type=search]").fill("onerror")
    page.locator("#browse article.talk").filter(has_text="onerror").wait_for()
    assert page.title() == "a rl and b rl · mua"
    page.emulate_media(media="print", color_scheme="dark")
    assert len(page.pdf()) > 10_000


def test_the_command_writes_the_page(mua, two_runs, tmp_path):
    code, out, err = mua("compare", *two_runs, "--html", tmp_path / "c.html")
    assert code == 0 and "success" in out and err.strip() == str(tmp_path / "c.html")
    assert (tmp_path / "c.html").stat().st_size > 50_000
    assert mua("compare", *two_runs, "--html", two_runs[0] / "config.yaml" / "c.html")[0] == 2
