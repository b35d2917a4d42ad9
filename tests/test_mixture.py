"""Mixtures of domains: every episode is one of the task's own domain, whoever asks."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys

import pytest

from mua import pipeline
from mua.benchmarks import store
from mua.coldstart.conversations import play_expert
from mua.config import load_config
from mua.domain import check_no_noop, check_no_overlap
from mua.domains import load
from mua.errors import MuaError
from mua.evaluate.score import score
from mua.trajectory import read_trajectories
from test_cli import MICRO

NAME = "mix:library:desk=2,meeting_rooms=1,property_rental=1"
PARTS = ("library:desk", "meeting_rooms", "property_rental")


def test_an_episode_of_a_mixture_is_an_episode_of_the_part():
    mix = load(NAME)
    assert (mix.name, [p.name for p in mix.members]) == (NAME, list(PARTS))
    assert load(NAME) is mix
    for name in PARTS:
        part = load(name)
        own = part.tasks("test")[3]
        task = mix.task(f"{name}/{own.id}")
        assert (task.kind, task.fingerprint) == (f"{name}/{own.kind}", own.fingerprint)
        assert mix.of(task) == (part, own)
        assert mix.task_tools(task) == part.task_tools(own)
        mine = asyncio.run(play_expert(mix, task, 5, part.limits or load_config().limits))
        theirs = asyncio.run(play_expert(part, own, 5, part.limits or load_config().limits))
        assert mine.messages == theirs.messages
        assert mine.messages[0].content == part.policy.strip()
        assert (mine.reward, mine.task_id, mine.domain) == (1.0, task.id, NAME)
        assert mix.grade(task, mine.messages, mine.termination).reward == 1.0
        assert mix.grade(task, mine.messages[:2], mine.termination).reward == 0.0
        assert mix.replay(task, mine.messages).db.equals(part.gold(own))


def test_splits_are_interleaved_by_weight_and_hold_everything():
    mix = load(NAME)
    assert mix.splits == ("train", "dev", "test")
    for split in mix.splits:
        names = [task.id for task in mix.tasks(split)]
        assert sorted(names) == sorted(f"{p}/{t.id}" for p in PARTS for t in load(p).tasks(split))
    first = [mix.of(task)[0].name for task in mix.tasks("test")[:80]]
    assert [first.count(name) for name in PARTS] == [40, 20, 20]
    with pytest.raises(MuaError, match="domain 'meeting_rooms' has no split 'cold'"):
        mix.tasks("cold")
    with pytest.raises(MuaError, match="has no task 'test-0000'; its tasks are named library:desk/…"):
        mix.task("test-0000")


def test_guards_see_through_the_names():
    mix, part = load(NAME), load("meeting_rooms")
    held_out = mix.tasks("test")
    check_no_overlap(mix.tasks("train"), held_out, "test")
    check_no_noop(mix, mix.tasks("test")[:12])
    leaked = part.tasks("test")[0]
    with pytest.raises(MuaError, match=f"{leaked.id} = meeting_rooms/{leaked.id}"):
        check_no_overlap([leaked], held_out, "test")
    task = next(t for t in mix.tasks("train") if t.id.startswith("meeting_rooms/"))
    with pytest.raises(MuaError, match=f"solved by doing nothing: {task.id}"):
        check_no_noop(mix, [dataclasses.replace(task, actions=())])


def test_a_benchmark_in_a_mixture_is_guarded():
    try:
        store.installed("tau2")
    except MuaError as exc:
        pytest.skip(f"τ²-bench is not here: {exc}")
    config = load_config(
        None,
        ["domain={tau2/retail: 2, library: 1}", "coldstart.split=train", "guards.held_out=[]"],
        {"guards.overlap": "drop"},
    )
    mix = load(config.domain)
    guard = pipeline.make_guard(config, mix)
    assert guard is not None
    allowed = guard.allowed("train")
    assert len(allowed.leaked) == 17  # those of retail's train split that repeat its test split
    assert {mix.of(leak.task)[0].name for leak in allowed.leaked} == {"tau2/retail"}
    kept = [mix.of(task)[0].name for task in allowed.tasks]
    assert kept.count("library") == len(load("library").tasks("train"))
    with pytest.raises(
        MuaError, match=r"17 training task.s. of .* are also in tau2/retail test: tau2/retail/"
    ):
        dataclasses.replace(guard, overlap="refuse").allowed("train")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mix:library", "is no mixture"),
        ("mix:library=0,meeting_rooms=1", "'library=0' has no weight"),
        ("mix:library=many,meeting_rooms", "'library=many' has no weight"),
        ("mix:library=1,library=2", "the domain 'library' twice"),
        ("mix:library=1,library:full=2", "a domain twice: library, library"),
        ("mix:library=1,nowhere=2", "there is no domain 'nowhere'"),
    ],
)
def test_what_is_no_mixture(name, said):
    with pytest.raises(MuaError, match=said):
        load(name)


def test_weights_may_be_written_as_a_mapping():
    assert load_config(None, ["domain={library: 2, meeting_rooms: 1.5}"]).domain == (
        "mix:library=2,meeting_rooms=1.5"
    )
    assert load_config(None, ["domain={library: 1}"]).domain == "library"


def test_a_whole_run_on_two_domains(tmp_path, capsys):
    out = tmp_path / "run"
    settings = [
        *MICRO,
        "domain={library:desk: 2, meeting_rooms: 1}",
        "coldstart.split=train",
        "coldstart.user_split=''",
        "coldstart.checks=[user]",
        "coldstart.hasty=0",
        "model.tiny.context=2048",
        "train.rollout.groups=3",
        "train.processes=2",
        "eval.tasks=6",
        "eval.temperatures=[1.0]",
        "train.curriculum={}",
    ]
    command = [sys.executable, "-m", "mua", "quickstart", "--out", str(out), "--seed", "3", *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    # The weights hold in the cold start, in training and in the evaluation.
    kept = [t.task_id.rpartition("/")[0] for t in read_trajectories(out / "coldstart.jsonl")]
    assert [kept.count(n) for n in PARTS[:2]] == [40, 20]
    for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()):
        assert set(line["by_domain"]) == {"library:desk", "meeting_rooms"}
        assert {kind.rpartition("/")[0] for kind in line["by_kind"]} == set(line["by_domain"])
    played = [t.task_id.rpartition("/")[0] for t in read_trajectories(out / "trajectories.jsonl")]
    assert played.count("library:desk") == 2 * played.count("meeting_rooms") == 3 * 2 * 2
    result = json.loads((out / "eval" / "rl_t1.json").read_text())
    assert {name: rates["n"] for name, rates in result["by_domain"].items()} == {
        "library:desk": 4,
        "meeting_rooms": 2,
    }
    assert "library:desk/" in (out / "report.html").read_text()
    # Stored conversations are graded again under the mixture's name.
    assert score(None, out / "eval" / "rl_t1.jsonl") == 0
    assert score(load(result["domain"]), out / "eval" / "rl_t1.jsonl") == 0
    capsys.readouterr()
