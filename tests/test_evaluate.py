"""Evaluation: statistics against enumeration, resume, exclusion of failures, grading again."""

import asyncio
import gzip
import itertools
import json
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mua
from fake_server import FakeServer, chat
from mua.agents.endpoint import EndpointAgent
from mua.endpoint import Endpoint, EndpointSettings
from mua.episode import Limits
from mua.errors import InfrastructureError, MuaError
from mua.evaluate.run import EvalSettings, evaluate
from mua.evaluate.score import score, score_file
from mua.evaluate.statistics import (
    bootstrap_mean,
    paired_difference,
    pass_hat_k,
    pass_k,
    pass_k_intervals,
    success_rate,
    wilson,
)
from mua.trajectory import read_trajectories
from mua.users.llm import LlmUser
from toy import ScriptAgent, ScriptUser, toy_domain

# --- statistics -------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_hat_k_is_the_share_of_subsets_that_all_succeed(results, data):
    k = data.draw(st.integers(1, len(results)))
    subsets = list(itertools.combinations(results, k))
    expected = sum(map(all, subsets)) / len(subsets)
    assert pass_hat_k(sum(results), len(results), k) == pytest.approx(expected, abs=1e-12)


def test_pass_k_averages_over_the_tasks_that_have_k_samples():
    outcomes = {"a": [1.0, 1.0, 0.0, 1.0], "b": [1.0, 0.0], "c": [0.0, 0.0, 0.0, 0.9999]}
    assert pass_k(outcomes) == {
        1: pytest.approx((3 / 4 + 1 / 2 + 0) / 3),
        2: pytest.approx((3 / 6 + 0 + 0) / 3),
        3: pytest.approx((1 / 4 + 0) / 2),
        4: 0.0,
    }
    for c, n, k in ((3, 2, 1), (1, 2, 3), (1, 2, 0)):
        with pytest.raises(ValueError, match="not defined"):
            pass_hat_k(c, n, k)


def test_wilson_has_its_published_values():
    # Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29.
    for r, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(r, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_bootstrap_agrees_with_all_resamples():
    values = [0.0, 0.11, 0.47, 0.8, 1.0]
    means = [statistics.mean(r) for r in itertools.product(values, repeat=5)]
    low, high = bootstrap_mean(values, seed=3)
    assert low == pytest.approx(np.quantile(means, 0.025), abs=0.03)
    assert high == pytest.approx(np.quantile(means, 0.975), abs=0.03)
    assert bootstrap_mean(values, seed=3) == (low, high)


def test_the_interval_resamples_tasks_not_samples():
    # Ten tasks, each always or never solved: 40 episodes say no more than ten do.
    outcomes = {str(i): [float(i < 5)] * 4 for i in range(10)}
    mean, (low, high) = success_rate(outcomes)
    assert mean == 0.5 and (low, high) == (0.2, 0.8)  # the binomial's own 2.5 % and 97.5 % points
    assert success_rate({k: v[:1] for k, v in outcomes.items()})[1] == wilson(5, 10)
    assert success_rate({str(i): [1.0] * 4 for i in range(10)})[1] == wilson(10, 10)


def test_tasks_that_agree_are_no_certainty():
    # Each task solved in one of two samples: resampling them gives the same mean each time.
    for n in (1, 10):
        outcomes = {f"t{i}": [1.0, 0.0] for i in range(n)}
        assert success_rate(outcomes) == (0.5, wilson(n / 2, n))
        assert pass_k_intervals(outcomes)[1] == wilson(n / 2, n)


def test_paired_difference_takes_each_task_with_itself():
    a = {str(i): [float(i % 2)] for i in range(20)} | {"only a": [1.0]}
    b = {k: [0.0, 1.0] if v == [0.0] else v for k, v in a.items() if k != "only a"}
    d = paired_difference(a, b)
    assert (d.mean, d.tasks, d.left_out) == (0.25, 20, 1) and 0 < d.low < 0.25 < d.high
    same = paired_difference(a, a)
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)
    with pytest.raises(MuaError, match="share no task"):
        paired_difference({"x": [1.0]}, {"y": [1.0]})


# --- running ----------------------------------------------------------------------------------------

DOMAIN = toy_domain()
TASKS = DOMAIN.tasks("test")
HARD = {"cancel_12"}


def right_agent(task, session, seed):
    """Solves every task but the hard ones."""
    action = task.actions[0]
    return ScriptAgent() if task.id in HARD else ScriptAgent((action.name, dict(action.arguments)))


def user(task, seed):
    return ScriptUser("Please do it.")


def run(settings=EvalSettings(), make_agent=right_agent, make_user=user, **more):
    return asyncio.run(evaluate(DOMAIN, TASKS, make_agent, make_user, settings, **more))


def test_the_figures_of_an_evaluation(tmp_path):
    seen = []
    result = run(
        EvalSettings(samples=2, concurrency=3),
        out=tmp_path,
        name="base",
        model="base",
        on_progress=lambda done, total, t: seen.append((done, total)),
    )
    assert sorted(seen) == [(i, 10) for i in range(1, 11)]
    data = json.loads((tmp_path / "eval/base.json").read_text())
    assert data == json.loads(json.dumps(result.to_dict()))
    assert data.pop("seconds") >= 0 and data.pop("ci95")[0] < 0.8
    assert data.pop("fidelity")["faithful"] == pytest.approx(0.4)  # three never say their wish
    assert data.pop("audit")["layers"]["outcome"] == {"rate": 0.8, "n": 10}
    assert data.pop("pass_k_ci95") == {"1": list(result.ci95), "2": list(result.ci95)}
    assert data.pop("mua") == mua.__version__
    assert data == {
        "name": "base",
        "model": "base",
        "domain": "toy",
        "split": "test",
        "user": "script",
        "temperature": 0.0,
        "n": 5,
        "samples": 2,
        "success": 0.8,
        "pass_k": {"1": 0.8, "2": 0.8},
        "by_kind": {
            "cancel": {"success": pytest.approx(2 / 3), "n": 3},
            "items": {"success": 1.0, "n": 2},
        },
        "terminations": {"user_stop": 10},
        "excluded": 0,
        "agent_tokens_per_episode": pytest.approx(0.8 * 6 + 0.2 * 1),
        "turns": 2.0,
        "user_cost": 0.0,
        "agent_cost": 0.0,
    }
    stored = list(read_trajectories(tmp_path / "eval/base.jsonl"))
    assert [(t.task_id, t.sample) for t in stored] == [(t.id, s) for t in TASKS for s in range(2)]
    assert len({t.seed for t in stored}) == 10


def test_infrastructure_failures_are_played_again_then_left_out():
    tries: dict[str, int] = {}

    def flaky(task, seed):
        tries[task.id] = tries.get(task.id, 0) + 1
        broken = task.id == "cancel_11" or (task.id == "cancel_13" and tries[task.id] < 3)
        return ScriptUser(InfrastructureError("down") if broken else "Please do it.")

    def unmade(task, session, seed):
        if task.id == "items_14":
            raise InfrastructureError("no engine")
        return right_agent(task, session, seed)

    result = run(make_user=flaky, make_agent=unmade)
    assert tries["cancel_11"] == 3 and tries["cancel_13"] == 3 and tries["cancel_12"] == 1
    assert (result.n, result.excluded, result.success) == (3, 2, pytest.approx(2 / 3))
    assert result.terminations == {"user_failed": 1, "user_stop": 3, "engine_failed": 1}
    assert "cancel_11" not in result.outcomes and result.by_kind["cancel"]["n"] == 2
    assert [t.attempts for t in result.trajectories] == [3, 1, 3, 3, 1]


def test_nothing_scored_is_an_error_that_says_why():
    with pytest.raises(InfrastructureError, match=r"not one of 5 episodes could be .*the line is cut"):
        run(make_user=lambda task, seed: ScriptUser(InfrastructureError("the line is cut")))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_evaluate as t
made = []
def agent(task, session, seed):
    made.append(task)
    if len(made) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return t.right_agent(task, session, seed)
t.run(t.EvalSettings(samples=2, concurrency=1), make_agent=agent, out=Path(sys.argv[2]), name="e")
"""


def test_a_killed_evaluation_goes_on_where_it_stopped(tmp_path):
    settings = EvalSettings(samples=2, concurrency=1)
    whole = run(settings, out=tmp_path / "whole", name="e")
    path = tmp_path / "cut/eval/e.jsonl"
    tests = str(Path(__file__).parent)
    killed = subprocess.run([sys.executable, "-c", KILLED, tests, str(tmp_path / "cut")], check=False)
    assert killed.returncode == -signal.SIGKILL
    text = path.read_text()
    assert text.count("\n") == 4 and text.endswith("\n")  # whole lines, at once
    path.write_text(text + text[:300])  # what a kill in the middle of a write leaves

    played = []

    def agent(task, session, seed):
        played.append((task.id, seed))
        return right_agent(task, session, seed)

    resumed = run(settings, make_agent=agent, out=tmp_path / "cut", name="e")
    assert len(played) == 6
    assert path.read_bytes() == (tmp_path / "whole/eval/e.jsonl").read_bytes()
    assert resumed.outcomes == whole.outcomes and resumed.ci95 == whole.ci95
    run(settings, make_agent=agent, out=tmp_path / "cut", name="e")
    assert len(played) == 6


def test_what_infrastructure_broke_gets_another_chance_on_resume(tmp_path):
    def broken(task, seed):
        return ScriptUser(InfrastructureError("down")) if task.kind == "items" else user(task, seed)

    assert run(make_user=broken, out=tmp_path).excluded == 2
    assert run(out=tmp_path).excluded == 0
    assert len(list(read_trajectories(tmp_path / "eval/eval.jsonl"))) == 5


def test_lines_of_another_evaluation_are_refused(tmp_path):
    run(out=tmp_path, name="e", identity={"checkpoint": "aaa"})
    for settings, identity, what in (
        (EvalSettings(seed=1), "aaa", "seed"),
        (EvalSettings(samples=2), "aaa", "samples"),
        (EvalSettings(), "bbb", "checkpoint"),
        (EvalSettings(tasks=3), "aaa", "tasks"),
    ):
        with pytest.raises(MuaError, match=f"another evaluation .different: {what}.*another name"):
            run(settings, out=tmp_path, name="e", identity={"checkpoint": identity})
    with pytest.raises(MuaError, match="different: checkpoint, turns"):
        run(out=tmp_path, name="e", limits=Limits(turns=3))
    run(EvalSettings(concurrency=1), out=tmp_path, name="e", identity={"checkpoint": "aaa"})
    with pytest.raises(MuaError, match="cannot be the name"):
        run(out=tmp_path, name="../e")


def test_a_bug_stops_the_evaluation_as_itself_and_keeps_what_is_done(tmp_path):
    def buggy(task, session, seed):
        return ScriptAgent(ZeroDivisionError()) if task.kind == "items" else right_agent(task, session, seed)

    with pytest.raises(ZeroDivisionError):
        run(EvalSettings(concurrency=1), make_agent=buggy, out=tmp_path)
    assert len(list(read_trajectories(tmp_path / "eval/eval.jsonl"))) == 3


def test_results_do_not_depend_on_concurrency(tmp_path):
    def noisy(task, seed):
        return ScriptUser(f"Please do it. {seed}")

    for n in (1, 7):
        run(EvalSettings(samples=3, concurrency=n), make_user=noisy, out=tmp_path / str(n))
    assert (tmp_path / "1/eval/eval.jsonl").read_bytes() == (tmp_path / "7/eval/eval.jsonl").read_bytes()


def test_an_evaluation_over_http():
    def answer(request):
        said = [m for m in request["messages"] if m["role"] == "assistant"]
        if request["model"] == "user":
            return chat("I want it." if not said else "###STOP###")
        order = json.dumps(request["messages"]).split("ORDER ")[1][:3]
        return chat(None, [("cancel_order", {"order_id": order})]) if not said else chat("Done.")

    async def go(url):
        values = {"base_url": url, "completion_price": 1e6}
        person = Endpoint(EndpointSettings.model_validate({**values, "model": "user"}))
        model = Endpoint(EndpointSettings.model_validate({**values, "model": "agent"}), role="agent")

        def opening(task, seed):
            told = LlmUser(person, task, seed)
            told.endpoint = person
            return _WithOrder(told, task.scenario.facts["order number"])

        return await evaluate(
            DOMAIN,
            TASKS,
            lambda task, session, seed: EndpointAgent(model, DOMAIN.tools(), seed),
            opening,
            EvalSettings(),
            Limits(),
        )

    with FakeServer(answer) as server:
        result = asyncio.run(go(server.url))
    assert result.by_kind == {"cancel": {"success": 1.0, "n": 3}, "items": {"success": 0.0, "n": 2}}
    assert result.user == "llm:user" and result.user_cost == 5 * 2 * 5.0


class _WithOrder:
    """Adds the order's number to what the scripted model says."""

    def __init__(self, inner: LlmUser, order: str):
        self.inner, self.order, self.name = inner, order, inner.name

    async def reply(self, view):
        turn = await self.inner.reply(view)
        return type(turn)(f"{turn.text} ORDER {self.order}", stop=turn.stop, usage=turn.usage)


# --- scoring again ----------------------------------------------------------------------------------


def test_scoring_again_agrees_with_the_live_verdicts(tmp_path):
    def agent(task, session, seed):
        if task.id == "cancel_13":
            return ScriptAgent(("hand_over", {"summary": "x"}))
        if task.id == "items_15":
            return ScriptAgent(*[("nonsense", {})] * 20)
        return right_agent(task, session, seed)

    def person(task, seed):
        return ScriptUser(InfrastructureError("down")) if task.id == "items_14" else user(task, seed)

    run(make_agent=agent, make_user=person, out=tmp_path)
    path = tmp_path / "eval/eval.jsonl"
    verdicts = list(score_file(DOMAIN, path))
    assert [v["reward"] for v in verdicts] == [1.0, 0.0, 0.0, None, 0.0]
    assert all(v["agree"] for v in verdicts) and "too_many_errors" in verdicts[4]["reason"]
    assert set(verdicts[0]) == {"task_id", "reward", "components", "reason", "stored", "agree"}

    zipped = tmp_path / "e.jsonl.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    lines: list[str] = []
    assert score(DOMAIN, zipped, lines.append) == 0
    assert json.loads(lines[-1]) == {"agree": 5, "disagree": 0} and len(lines) == 6


def test_disagreements_are_told(tmp_path):
    run(out=tmp_path)
    path = tmp_path / "eval/eval.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["reward"], rows[1]["reward"], rows[2]["reward"] = 0.0, 1.0, None
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    lines: list[str] = []
    assert score(DOMAIN, path, lines.append) == 1
    assert [json.loads(line).get("agree") for line in lines] == [False, False, False, True, True, 2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task_id": "cancel_99"}, "has no task 'cancel_99'"),
        ({"domain": "retail"}, "a trajectory of domain 'retail'"),
        ({"fingerprint": "0"}, "its content has changed"),
        ({"termination": "boredom"}, "not a trajectory: 'boredom'"),
        ({"messages": [{"role": "ghost"}]}, "role 'ghost'"),
        ({"messages": 3}, "not a trajectory"),
        ({"messages": ["x"]}, "not a trajectory"),
    ],
)
def test_a_line_that_cannot_be_scored_is_named(tmp_path, change, words):
    run(out=tmp_path)
    path = tmp_path / "eval/eval.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1].update(change)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    verdicts = score_file(DOMAIN, path)
    assert next(verdicts)["agree"]
    with pytest.raises(MuaError, match=f"line 2: .*{words}"):
        next(verdicts)


def test_a_damaged_archive_is_named(tmp_path):
    run(out=tmp_path)
    data = bytearray(gzip.compress((tmp_path / "eval/eval.jsonl").read_bytes() * 20))
    data[40] ^= 0xFF
    path = tmp_path / "e.jsonl.gz"
    for damaged in (data, data[:100], b"no gzip"):
        path.write_bytes(damaged)
        with pytest.raises(MuaError, match=r"e\.jsonl\.gz"):
            list(score_file(DOMAIN, path))


def test_scoring_streams(tmp_path):
    run(out=tmp_path)
    path = tmp_path / "eval/eval.jsonl"
    line = path.read_text().splitlines()[0] + "\n"
    path.write_text(line * 3 + "{torn")
    verdicts = score_file(DOMAIN, path)
    assert [next(verdicts)["agree"] for _ in range(3)] == [True] * 3  # before the bad line is even read


def test_evaluation_and_endpoints_need_no_torch():
    code = (
        "import sys, mua.evaluate.run, mua.evaluate.score, mua.endpoint, mua.users.llm, mua.users.human, "
        "mua.agents.endpoint, mua.agents.human; "
        "print([m for m in ('torch', 'transformers', 'aiohttp', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
