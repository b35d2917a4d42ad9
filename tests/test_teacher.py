"""Conversations of a teacher behind endpoints: what is kept is what verification lets through, whatever the
server does; what was played is never paid for twice."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from fake_server import FakeServer, Reply, chat, error
from mua import speakers
from mua.chat import Message, ToolCall
from mua.coldstart import dataset, judge, teacher
from mua.coldstart.verification import DUPLICATE, RULES, Verification
from mua.config import load_config
from mua.domains import load
from mua.trajectory import Trajectory, read_jsonl
from mua.users.fidelity import LEAKED
from strong_server import StrongModel

RENTAL = load("property_rental")
KINDS = {"pay": 1, "waive": 1, "missing": 2, "insist": 1}
TASKS = [
    task for kind, n in KINDS.items() for task in [t for t in RENTAL.tasks("train") if t.kind == kind][:n]
]
TASKS += [RENTAL.task(name) for name in ("train-0063", "train-0068")]  # both complain, in the same words
SMALL = dataclasses.replace(RENTAL, load_split=lambda split: TASKS if split == "train" else [])
STEADY = ("--agent", "endpoint:strong", "--user", "endpoint:person")
FAST = ("coldstart.teacher.agent.retry_delay=0.01", "coldstart.teacher.user.retry_delay=0.01")


def variants(task, usual: list[Message]) -> list[list[Message]]:
    """Some models act without asking, tell too much at first, write calls that cannot be read."""
    if task.kind == "pay":
        write = max(i for i, m in enumerate(usual) if m.tool_calls)
        return [usual[: write - 2] + usual[write:]]  # neither the question nor the yes
    if task.kind == "missing":
        told = next(m for m in usual[2:] if m.role == "user").content
        opening = dataclasses.replace(usual[1], content=f"{usual[1].content} {told}")
        return [[usual[0], opening, *usual[2:]], usual]
    if task.kind == "waive":
        first = next(i for i, m in enumerate(usual) if m.tool_calls)
        torn = ToolCall(usual[first].tool_calls[0].name, {}, "x", error="torn", raw='{"tenant_id": "T')
        call = Message("assistant", tool_calls=(torn,))
        return [[*usual[:first], call, Message("tool", "Error", tool_call_id="x"), *usual[first:]]]
    return [usual]


@pytest.fixture
def mua(mua, monkeypatch):
    """Runs a command in this process over the one small domain: (exit code, output, errors)."""

    monkeypatch.setattr(dataset, "scenarios", lambda: ([SMALL], ""))
    monkeypatch.setattr(dataset, "smollm2_tokens", lambda: None)
    return mua


def teach(mua, url: str, out: Path, *more: object) -> tuple[int, str, str]:
    return mua("coldstart", "--all", "--out", out, "--base-url", url, *STEADY, *more, *FAST)


def lines(path: Path) -> list[dict]:
    return [data for _, data in read_jsonl(path)]


def test_what_is_kept_is_what_verification_lets_through(mua, tmp_path):
    model = StrongModel([SMALL], variants, faulty=3)
    with FakeServer(model) as server:
        code, shown, err = teach(mua, server.url, tmp_path, "--conversations", "100")
    assert code == 0, err
    kept = lines(tmp_path / "conversations.jsonl")
    played = [line for line in lines(tmp_path / "teacher" / "attempts.jsonl") if "trajectory" in line]
    assert Counter(line["task_id"] for line in played) == model.openings
    causes: Counter[str] = Counter()
    passed = set()
    verification = Verification(SMALL, ("rules", "user"))
    for line in played:
        why, _ = verification.examine(SMALL.task(line["task_id"]), Trajectory.from_dict(line["trajectory"]))
        causes[why] += 1
        passed |= {(line["task_id"], line["attempt"])} if not why else set()
    twins = {("train-0063", 0), ("train-0068", 0)}
    assert len({(k["task_id"], k["attempt"]) for k in kept} & twins) == 1
    assert {(k["task_id"], k["attempt"]) for k in kept} | twins == passed and len(kept) == len(passed) - 1
    dropped = json.loads((tmp_path / "dropped.json").read_text())
    assert {c: n for c, n in dropped.items() if n} == {
        RULES: 3,  # one task, three attempts
        LEAKED: causes[LEAKED],
        DUPLICATE: 1,
    }
    assert causes[LEAKED] > 0 and any(k["kind"] == "missing" and k["attempt"] > 0 for k in kept)
    assert {k["kind"] for k in kept} == {*KINDS, "at_once"} - {"pay"}
    torn = next(k for k in kept if k["kind"] == "waive")
    assert [m["error"] for m in torn["messages"] if "error" in m] == [True]
    assert all(k["agent"] == "strong" and k["user"] == "llm:person" for k in kept)

    spent = json.loads((tmp_path / "teacher.json").read_text())["spent"]
    # One that meets a connection which a fault has closed never arrives.
    assert (
        len(server.requests) <= sum(role["requests"] for role in spent.values()) < len(server.requests) + 20
    )
    card = (tmp_path / "README.md").read_text()
    assert f"agent `strong`: {spent['agent']['requests']:,.0f} requests" in card and "license: other" in card
    assert f"agent: {spent['agent']['requests']:,.0f} requests" in shown
    code, shown, _ = mua("score", tmp_path / "conversations.jsonl")
    assert (code, json.loads(shown.splitlines()[-1])) == (0, {"agree": len(kept), "disagree": 0})


def test_a_spent_budget_ends_it_and_more_of_it_goes_on(mua, tmp_path):
    """A gateway plays both sides; nothing that was played is paid for again, and the set is the same."""
    model = StrongModel([SMALL], variants)
    with FakeServer(model) as server:
        file = tmp_path / "teachers.yaml"

        def teach(out, tokens):
            route = {"base_url": server.url, "model": "strong", "timeout": 20}
            file.write_text(json.dumps({"routes": [route], "budget": {"tokens": tokens}}))
            who = ("--agent", f"gateway:{file}", "--user", f"gateway:{file}")
            return mua("coldstart", "--all", "--out", tmp_path / out, "--conversations", "100", *who)

        code, shown, err = teach("whole", 10**9)
        assert code == 0, err
        assert "Endpoints" in shown and "p99 s" in shown
        whole = lines(tmp_path / "whole" / "conversations.jsonl")
        asked = len(server.requests)
        worst = max(len(json.dumps(body)) for body in server.requests) + 256 + 1024
        code, _, err = teach("short", worst + 15 * asked // 2)
        assert code == 1 and "the budget of gateway" in err and "Traceback" not in err
        assert 0.4 * asked < len(server.requests) - asked < asked
        played = lines(tmp_path / "short" / "teacher" / "attempts.jsonl")
        code, _, err = teach("short", 10**9)
        assert code == 0, err
        assert lines(tmp_path / "short" / "teacher" / "attempts.jsonl")[: len(played)] == played
    assert lines(tmp_path / "short" / "conversations.jsonl") == whole
    assert len(server.requests) - asked < 1.5 * asked


def test_no_more_is_played_than_is_wanted_and_more_can_be_asked_for_later(mua, tmp_path):
    model = StrongModel([SMALL], variants)
    with FakeServer(model) as server:
        assert teach(mua, server.url, tmp_path, "--conversations", "2")[0] == 0
        two, asked = lines(tmp_path / "conversations.jsonl"), len(server.requests)
        last = {k["task_id"]: k["attempt"] for k in two}
        assert len(two) == 2 and all(model.openings[t] == n + 1 for t, n in last.items())
        assert teach(mua, server.url, tmp_path, "--conversations", "2")[0] == 0
        checks = 2  # one small request to each endpoint
        assert len(server.requests) == asked + checks
        assert teach(mua, server.url, tmp_path, "--conversations", "4")[0] == 0
        assert max(model.openings.values()) <= 3
        four = lines(tmp_path / "conversations.jsonl")
        assert len(four) == 4 and [k for k in four if k in two] == two
        code, _, err = teach(mua, server.url, tmp_path, "--conversations", "4", "--seed", "1")
    assert code == 1 and "seed (was 0, now 1)" in err


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from mua import cli
from test_teacher import SMALL, dataset
dataset.scenarios = lambda: ([SMALL], "")
sys.argv = ["mua", *{args!r}]
cli.main()
"""


def test_kill_9_and_resume_give_the_same_file_and_pay_nothing_twice(mua, tmp_path):
    model = StrongModel([SMALL], variants, faulty=5)

    record = tmp_path / "killed" / "teacher" / "attempts.jsonl"
    until, gate = [10**6], threading.Event()

    def stopping(body) -> Reply:
        """Answers nothing any more once the record has so many lines, so that the kill comes in time."""
        if record.exists() and record.read_bytes().count(b"\n") >= until[0]:
            gate.wait(20)
            return error(500, "nobody listens")
        return model(body)

    with FakeServer(stopping) as server:
        assert teach(mua, server.url, tmp_path / "whole", "--conversations", "100")[0] == 0
        whole, openings = (tmp_path / "whole" / "conversations.jsonl").read_bytes(), Counter(model.openings)
        model.openings.clear()
        out = tmp_path / "killed"
        args = ["coldstart", "--all", "--out", str(out), "--base-url", server.url, *STEADY]
        args += ["--conversations", "100", *FAST, "coldstart.teacher.concurrency=2"]
        code = KILLED.format(tests=str(Path(__file__).parent), args=args)
        for least in (2, 5):
            until[0] = least
            gate.clear()
            running = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
            while not record.exists() or record.read_bytes().count(b"\n") < until[0]:
                assert running.poll() is None
                time.sleep(0.02)
            os.kill(running.pid, signal.SIGKILL)
            assert running.wait() == -signal.SIGKILL
            until[0] = 10**6
            gate.set()
            with record.open("ab") as file:
                file.write(b'{"domain": "property_rental", "task')  # torn, as by a full disk
        before = Counter(line["task_id"] for line in lines_but_the_torn(record) if "trajectory" in line)
        again = Counter(model.openings)
        assert teach(mua, server.url, out, "--conversations", "100")[0] == 0
    assert (out / "conversations.jsonl").read_bytes() == whole
    played = [line for line in lines(record) if "trajectory" in line]
    assert len({(p["task_id"], p["attempt"]) for p in played}) == len(played)
    assert model.openings - again == openings - before  # only what was not there
    assert sum(again.values()) <= sum(before.values()) + 2 * 2  # what was in flight at each kill


def lines_but_the_torn(path: Path) -> list[dict]:
    return [json.loads(raw) for raw in path.read_bytes().split(b"\n")[:-1]]


# ---------------------------------------------------------------- the judge


def test_a_judge_vetoes_with_its_reason_and_its_failures_drop_nothing(mua, tmp_path):
    def opinion(body) -> Reply:
        text = body["messages"][-1]["content"]
        if "<conversation>" not in text:
            return chat("ready")
        return (
            chat('Well: {"veto": true, "reason": "it was curt"}'),
            chat('```json\n{"veto": false, "reason": "fine"}\n```'),
            chat("I like it."),
            error(500, "down"),
        )[kind_of(text)]

    def kind_of(text: str) -> int:
        goal = text.partition("<wish>")[2].partition("</wish>")[0].strip()
        return [t.scenario.goal for t in TASKS].index(goal) % 4

    expected = Counter()
    with FakeServer(StrongModel([SMALL])) as server, FakeServer(opinion) as judging:
        more = ("--judge", "endpoint:strict", "--judge-base-url", judging.url, "--conversations", "100")
        more += ("coldstart.teacher.judge.retries=0", "coldstart.teacher.attempts=1")
        assert teach(mua, server.url, tmp_path, *more)[0] == 0
        kept = lines(tmp_path / "conversations.jsonl")
        dropped = json.loads((tmp_path / "dropped.json").read_text())
        for task in TASKS:
            expected[kind_of(f"<wish>{task.scenario.goal}</wish>")] += 1
        assert all(expected[kind] > 0 for kind in range(4))
        assert dropped["vetoed by the judge"] == expected[0]
        assert len(kept) + expected[0] + dropped[DUPLICATE] == len(TASKS)
        assert all(kind_of(f"<wish>{k['goal']}</wish>") for k in kept)
        figures = json.loads((tmp_path / "teacher.json").read_text())["judge"]
        failed = expected[2] + expected[3]
        assert figures == {"read": len(TASKS), "vetoed": expected[0], "failed": failed}
        record = lines(tmp_path / "teacher" / "attempts.jsonl")
        assert {r["reason"] for r in record if r.get("veto")} == {"it was curt"}
        asked = len(judging.requests)
        assert teach(mua, server.url, tmp_path, *more)[0] == 0
        # those that said nothing are asked again: once each where it is down, twice for junk, and the check
        assert len(judging.requests) == asked + expected[3] + 2 * expected[2] + 1
    rules = [r["messages"][-1]["content"] for r in judging.requests if "<rules>" in str(r)]
    assert all(RENTAL.policy.strip() in text and "PERSON: " in text for text in rules)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"veto": true, "reason": "x  y"}', judge.Opinion(True, "x y")),
        ('{"veto": false}', judge.Opinion(False, "")),
        ('{"veto": "yes", "reason": "x"}', None),
        ("[true]", None),
        ("", None),
        ("{" * 5000, None),
    ],
)
def test_what_is_an_opinion(text, found):
    assert judge.read(text) == found


# ---------------------------------------------------------------- a run's own cold start, and what goes wrong


def test_a_run_takes_its_cold_start_from_a_teacher(monkeypatch, tmp_path):
    from mua import pipeline

    monkeypatch.setattr(pipeline, "load_domain", lambda name: RENTAL_OF_ONE_RUN)
    more = {
        "domain": "property_rental",
        "eval.tasks": 4,
        "eval.split": "test",
        "coldstart.conversations": 100,
        "train_user.kind": "agenda",
        "eval.same_user": True,
    }
    with FakeServer(StrongModel([SMALL], variants, faulty=4)) as server:
        for role, model in (("agent", "strong"), ("user", "person")):
            how = {"model": model, "base_url": server.url, "retry_delay": 0.01}
            more |= {f"coldstart.teacher.{role}.{key}": value for key, value in how.items()}
        config = load_config(None, (), more)
        run = pipeline.open_run(config, tmp_path)
        with run.folder:
            kept = asyncio.run(pipeline._conversations(run, "coldstart", "train"))
    assert {t.kind for t in kept} == {*KINDS, "at_once"} - {"pay"}
    assert json.loads((tmp_path / "coldstart.json").read_text())["dropped"][RULES] == 3
    assert json.loads((tmp_path / "coldstart_teacher.json").read_text())["spent"]["user"]["requests"] > 15
    assert len(lines(tmp_path / "coldstart.jsonl")) == len(kept)


RENTAL_OF_ONE_RUN = dataclasses.replace(
    RENTAL, load_split=lambda split: TASKS if split == "train" else RENTAL.tasks(split)
)


def test_an_endpoint_that_dies_ends_it_and_the_same_command_goes_on(mua, tmp_path):
    model = StrongModel([SMALL])
    alive = [30]

    def dying(body) -> Reply:
        alive[0] -= 1
        return model(body) if alive[0] > 0 else error(500, "gone")

    more = ("coldstart.teacher.agent.retries=0", "coldstart.teacher.user.retries=0")
    more += ("coldstart.teacher.concurrency=3",)
    with FakeServer(dying) as server:
        code, _, err = teach(mua, server.url, tmp_path, *more)
        assert code == 1 and "conversations in a row could not be played" in err and "goes on" in err
        assert not (tmp_path / "conversations.jsonl").exists()
        alive[0] = 10**6
        begun = Counter(model.openings)
        done = {
            line["task_id"] for line in lines(tmp_path / "teacher" / "attempts.jsonl") if "trajectory" in line
        }
        assert teach(mua, server.url, tmp_path, *more)[0] == 0
    assert done and not done & (model.openings - begun).keys()


def test_a_teacher_that_solves_nothing_leaves_the_causes_and_talks_to_the_agenda_user(mua, tmp_path):
    with FakeServer([chat("Hello! What can I do?")]) as server:
        code, _, err = mua(
            *("coldstart", "--all", "--out", tmp_path, "--agent", "endpoint:weak", "--base-url", server.url),
            *("coldstart.teacher.attempts=2", "limits.turns=3", "coldstart.personas=terse"),
        )
    assert code == 1 and "not one conversation could be kept" in err and "dropped.json" in err
    dropped = json.loads((tmp_path / "dropped.json").read_text())
    assert {cause: n for cause, n in dropped.items() if n} == {"turn_cap": 2 * len(TASKS)}
    record = lines(tmp_path / "teacher" / "attempts.jsonl")
    assert {line["trajectory"]["user"] for line in record} == {"agenda"}
    assert {line["attempt"] for line in record} == {0, 1}
    assert {line["trajectory"]["persona"] for line in record} == {"terse"}
    assert (tmp_path / "conversations.jsonl").read_bytes() == b""


def test_a_domain_that_brings_nothing_is_given_up(monkeypatch, mua, tmp_path):
    monkeypatch.setattr(teacher, "PATIENCE", 3)
    how = ("coldstart", "--all", "--agent", "endpoint:weak", "coldstart.teacher.attempts=1", "limits.turns=1")
    with FakeServer([chat("Hello!")]) as server:
        how = (*how, "--base-url", server.url)
        assert mua(*how, "--conversations", "3", "--out", tmp_path / "a")[0] == 1
        assert mua(*how, "--out", tmp_path / "b", "coldstart.teacher.tasks=2")[0] == 1
    for name, tried in (("a", 3), ("b", 2)):
        assert json.loads((tmp_path / name / "dropped.json").read_text())["turn_cap"] == tried


def test_options_of_a_teacher(mua, tmp_path):
    code, _, err = mua("coldstart", "--all", "--out", tmp_path, "--agent", "smollm2")
    assert code == 1 and "--agent smollm2: a teacher is a model behind an endpoint: endpoint:NAME" in err
    code, _, err = mua("coldstart", "--all", "--out", tmp_path, "coldstart.teacher.attempts=2")
    assert code == 1 and "coldstart.teacher.agent" in err
    code, _, err = mua("coldstart", "--all", "--out", tmp_path, *STEADY, "sft.lr=1")
    assert code == 1 and "--all is no stage of a run" in err
    code, _, err = mua(
        "coldstart", "--all", "--out", tmp_path, *STEADY, "--base-url", "http://127.0.0.1:1/v1"
    )
    assert code == 1 and "127.0.0.1:1" in err and "is down" in err
    assert not (tmp_path / "teacher").exists()
    code, _, err = mua("coldstart", "--all", "--out", tmp_path, "--base-url", "http://127.0.0.1:1/v1")
    assert code == 1 and "name one: --agent endpoint:NAME" in err


def test_no_key_goes_to_another_address():
    keys = {"agent": "AGENTS_KEY", "user": "", "judge": "JUDGES_KEY"}
    names = {"agent": "endpoint:a", "user": "endpoint:b", "judge": "endpoint:c"}
    here = {"agent": "http://here/v1", "user": "", "judge": ""}
    found = speakers.teacher_overrides(names, here, keys)
    assert found["coldstart.teacher.user.api_key_env"] == "AGENTS_KEY"
    assert (
        found["coldstart.teacher.user.base_url"]
        == found["coldstart.teacher.judge.base_url"]
        == "http://here/v1"
    )
    assert found["coldstart.teacher.judge.api_key_env"] == "JUDGES_KEY"
    found = speakers.teacher_overrides(names, {**here, "user": "http://there/v1"}, keys)
    assert found["coldstart.teacher.user.base_url"] == "http://there/v1"
    assert "coldstart.teacher.user.api_key_env" not in found
