"""The campaign of docs/reliability.md: a small, seeded part of each kind, and that its checks can fail."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import html
import itertools
import json
import os
import re
import subprocess
import sys
import time
import urllib.parse
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mua.chat import Message, ToolCall
from mua.coldstart.conversations import conversations
from mua.domain import REPLAYS, ToolResult, World
from mua.domains import load
from mua.endpoint import Endpoint, EndpointSettings
from mua.errors import InfrastructureError, MuaError
from mua.redaction import secret_forms
from mua.testing import chaos, child, fuzz, soak, states
from mua.testing.people import People
from mua.testing.plan import KINDS, Dice, FaultPlan, read_plan
from mua.testing.secrets import decoded
from mua.testing.server import FakeServer
from mua.trajectory import Termination, read_jsonl, read_trajectories
from mua.users.llm import LlmUser
from toy import toy_domain

LOCKERS = chaos.HERE / "domain.yaml"


def lockers():
    pytest.importorskip("mcp")
    return load(str(LOCKERS))


# ---------------------------------------------------------------- plans


def test_a_plan_says_what_is_wrong_with_it_and_draws_the_same_again(tmp_path):
    plan = read_plan(chaos.HERE / "plan.yaml")
    assert plan.user.rate == 0.1 and plan.interruptions.count("kill") == 2
    assert not any(getattr(plan.without_faults(), part).rate for part in KINDS)
    (tmp_path / "p.yaml").write_text("user: {rate: 0.1, kinds: {explode: 1}}")
    with pytest.raises(MuaError, match=r"p\.yaml: user: .*no explode; there are stall"):
        read_plan(tmp_path / "p.yaml")

    def drawn(folder: Path | None) -> list[str]:
        dice = Dice(plan, "user", folder)
        return [dice.draw(n % 50) for n in range(1000)]

    found = drawn(None)
    (tmp_path / "a").mkdir()
    assert found == drawn(None) == drawn(tmp_path / "a") and 60 < sum(map(bool, found)) < 140
    assert {f for f in found if f} <= KINDS["user"].keys() and len({*found}) > 8
    # Two processes that share a folder go on counting where the other one is.
    assert drawn(tmp_path / "a") != found
    lines = (tmp_path / "a" / "faults.jsonl").read_text().splitlines()
    assert len(lines) > sum(map(bool, found)) and json.loads(lines[0])["part"] == "user"


# ---------------------------------------------------------------- faults


def test_who_asks_again_is_told_what_it_would_have_been_told(monkeypatch):
    """The person behind an endpoint of which every second answer is spoiled says the same words."""
    import asyncio

    monkeypatch.setenv("KEY_OF_IT", secret := "sk-planted-77")
    domain = lockers()
    task = domain.tasks("train")[0]
    heard: list[Message] = []

    async def talk(url: str) -> list[str]:
        how = {"retries": 60, "retry_delay": 0.0, "timeout": 5.0, "api_key_env": "KEY_OF_IT"}
        endpoint = Endpoint(EndpointSettings(base_url=url, model="m", **how))
        said, view = [], []
        for words in ("What is your name?", "Done. Anything else?"):
            for _ in range(40):
                user = LlmUser(endpoint, task)
                try:
                    turn = await user.reply(view)
                    break
                except InfrastructureError as exc:  # what no retry of the request can mend
                    assert secret not in str(exc)
            said.append(turn.text)
            view += [Message("user", turn.text), Message("assistant", words)]
        heard.extend(view)
        await endpoint.close()
        return said

    slow = ("stall", "late", "busy_with_retry_after")
    kinds = {k: 1.0 for k in KINDS["user"] if k not in slow}
    plan = FaultPlan.model_validate({"seed": 3, "user": {"rate": 0.5, "kinds": kinds}})
    found = []
    for each in (FaultPlan(), plan):
        people = People(domain, each, secret=secret)
        with FakeServer(people) as server:
            found.append(asyncio.run(talk(server.url)))
    assert found[0] == found[1] and "name" in found[0][1] and len(heard) == 8


def test_calls_that_nobody_waits_for_are_begun_again():
    """Gold states, replays and the expert's conversations outlive tools that fail now and then."""
    domain, left = toy_domain(), {"failures": 0}

    class Flaky(World):
        def call(self, side, call) -> ToolResult:
            if left["failures"]:
                left["failures"] -= 1
                raise InfrastructureError("the server is gone")
            return super().call(side, call)

    object.__setattr__(domain, "open", lambda task: Flaky(domain, task))
    task = domain.tasks("test")[0]
    talk = [
        Message("user", "x"),
        Message("assistant", tool_calls=(ToolCall("cancel_order", {"order_id": "o11"}),)),
    ]
    left["failures"] = REPLAYS - 1
    assert domain.gold(task).get("orders", "o11")["status"] == "cancelled"
    left["failures"] = REPLAYS - 1
    assert domain.grade(task, talk, Termination.USER_STOP).reward == 1.0
    left["failures"] = REPLAYS
    with pytest.raises(InfrastructureError, match="gone"):
        domain.replay(task, talk)


def test_conversations_are_the_same_with_a_server_that_fails():
    import asyncio

    domain = lockers()
    tasks, real, calls = domain.tasks("train")[:6], domain.pool.working, {"n": 0}

    def made() -> list:
        return asyncio.run(conversations(domain, tasks, 6, 4, checks=()))

    before = made()

    def flaky(session):
        calls["n"] += 1
        if calls["n"] % 5 == 0:
            session.lost = "out of order"
        return real(session)

    domain.pool.working = flaky
    try:
        after = made()
    finally:
        domain.pool.working = real
    assert calls["n"] > 12
    assert [t.messages for t in before] == [t.messages for t in after]


def test_a_tool_server_keeps_its_key():
    domain = lockers()
    world = domain.open(domain.tasks("train")[0])
    answer = world.call("assistant", ToolCall("find_locker", {"name": "Nobody"}))
    assert answer.error and "asked with key [redacted], Basic " in answer.content
    assert not any(chaos.IN_THE_DOMAIN.encode() in view for view in decoded(answer.content.encode()))
    assert chaos.IN_THE_DOMAIN in LOCKERS.read_text()


def test_a_disk_that_fails_and_a_kill_leave_whole_lines(tmp_path):
    """The child's own injector, at a record: the error is told, and the line is not there, or not twice."""
    for kind in ("full", "read_only", "torn", "kill"):
        plan = tmp_path / f"{kind}.yaml"
        plan.write_text(f"seed: 2\ninterruptions: [{kind}]\nat: [6, 6]\n")
        place = tmp_path / kind
        place.mkdir()
        code = (
            "import sys\nfrom pathlib import Path\nfrom mua.testing import child, plan\n"
            f"chosen = plan.read_plan(Path({str(plan)!r}))\n"
            f"child.spoil_records(child.Writes(chosen, Path({str(place)!r}), int(sys.argv[1])))\n"
            "from mua.runfolder import RunFolder\n"
            f"with RunFolder({str(place / 'run')!r}, {{'a': 1}}) as run:\n"
            "    for n in range(run.rewind('m', 99), 10):\n        run.append('m', {'step': n})\n"
        )
        ended = []
        for start in (0, 1):
            command = [sys.executable, "-c", code, str(start)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            ended.append(done.returncode)
            if kind in ("full", "read_only") and not start:
                assert "cannot be written" in done.stderr and "Make room on the disk" in done.stderr
        assert ended == [1 if kind in ("full", "read_only") else -9, 0], kind
        lines = [json.loads(x)["step"] for x in (place / "run" / "m.jsonl").read_text().splitlines()]
        assert lines == list(range(10)), kind


# ---------------------------------------------------------------- what is checked can fail


@pytest.fixture
def run(tmp_path) -> Path:
    """Records of a finished run of two steps, whose episodes are an expert's."""
    import asyncio

    domain, folder = lockers(), tmp_path / "run"
    talks = asyncio.run(conversations(domain, domain.tasks("train")[:4], 4, 0, checks=()))
    (folder / "eval").mkdir(parents=True)
    for n, talk in enumerate(talks):
        talk.step, talk.sample = n // 2 + 1, n % 2
    lines = [json.dumps(t.to_dict()) + "\n" for t in talks]
    (folder / "trajectories.jsonl").write_text("".join(lines))
    (folder / "eval" / "rl_t1.jsonl").write_text(lines[0])
    one = {"groups_played": 1, "excluded": 0, "cut": 0, "unfaithful": 0, "retried": 0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": s, **one}) + "\n" for s in (1, 2)))
    config = {"train": {"steps": 2, "rollout": {"group_size": 2}}, "eval": {"tasks": 1, "samples": 1}}
    (folder / "config.yaml").write_text(json.dumps(config))
    for name in ("report.html", "summary.json"):
        (folder / name).write_text("x")
    return folder


def found_in(run: Path) -> dict[str, list[str]]:
    found = chaos.Finding("x")
    chaos.check_records(found, lockers(), run)
    return found.problems


def test_a_wrong_reward_a_lost_and_a_doubled_episode_are_found(run):
    assert found_in(run) == {}
    path = run / "trajectories.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace('"reward": 1.0', '"reward": 0.0', 1))
    assert "stored 0.0, graded again 1.0" in found_in(run)["rewards"][0]
    path.write_text("".join(whole.splitlines(keepends=True)[1:]))
    assert found_in(run) == {"whole": ["step 1 has 1 episodes of 2"]}
    path.write_text(whole + whole.splitlines(keepends=True)[0])
    assert "twice" in found_in(run)["whole"][0]
    path.write_text(whole[:-30])
    assert "not valid JSON" in found_in(run)["whole"][0]


def test_episodes_that_differ_and_secrets_are_found(run, tmp_path):
    other = tmp_path / "other"
    (other / "eval").mkdir(parents=True)
    talks = [dataclasses.replace(t) for t in read_trajectories(run / "trajectories.jsonl")]
    talks[1].reward = 0.0
    (other / "trajectories.jsonl").write_text("".join(json.dumps(t.to_dict()) + "\n" for t in talks[:3]))
    found = chaos.Finding("x")
    chaos.compare(found, run, other)
    assert found.figures["compared"] == 3 and found.figures["other_rewards"] == 1
    assert (
        len(found.problems["equal"]) == 1 and "reward 1.0 without faults, 0.0" in found.problems["equal"][0]
    )
    assert chaos.leaks(run, chaos.SECRETS.values()) == []
    (run / "said.txt").write_text(f"Bearer {chaos.SECRETS['MUA_CHAOS_KEY']}\n")
    assert [p.name for p, _ in chaos.leaks(run, chaos.SECRETS.values())] == ["said.txt"]


def test_secrets_are_found_however_they_are_spelt_or_packed(tmp_path):
    secret = chaos.SECRETS["MUA_CHAOS_PASSWORD"]
    in_json = json.dumps({"a": secret})
    login = base64.b64encode(f"people:{secret}".encode())
    page = base64.b64encode(zlib.compress(json.dumps({"a": login.decode()}).encode()))
    spelt = {
        "json": in_json.encode(),
        "twice": json.dumps(in_json).encode(),
        "go": re.sub("[&<>]", lambda found: f"\\u{ord(found[0]):04x}", in_json).encode(),
        "address": urllib.parse.quote(secret).encode(),
        "form": urllib.parse.quote_plus(secret).encode(),
        "html": html.escape(secret).encode(),
        "basic": b"Authorization: Basic " + login,
        "urlsafe": base64.urlsafe_b64encode(secret.encode()),
        "gzip": gzip.compress(b"words " + secret.encode()),
        "page": b"<script>" + page + b"</script>",
        **{f"offset {n}": base64.b64encode(b"x" * n + secret.encode() + b"y") for n in range(4)},
    }
    for name, data in spelt.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "none").write_text(secret[:-1] + base64.b64encode(secret[1:].encode()).decode())
    assert {path.name for path, _ in chaos.leaks(tmp_path, [secret])} == spelt.keys()
    # What is written takes all of them out that are texts.
    for name, data in spelt.items():
        if name not in ("gzip", "page", "twice"):
            text = data.decode()
            for form in secret_forms(secret):
                text = text.replace(form, "[redacted]")
            assert not any(secret.encode() in view for view in decoded(text.encode())), name


def test_the_wall_clock_jumps_both_ways_and_waits_do_not(monkeypatch):
    for name in ("time", "time_ns", "gmtime", "localtime"):
        monkeypatch.setattr(time, name, getattr(time, name))  # put back afterwards
    plan = FaultPlan.model_validate({"seed": 1, "clock": {"rate": 0.5}})
    real, began = time.time, time.monotonic()
    look = child.spoil_clock(Dice(plan, "clock"), plan.seed)
    offsets = [look() - real() for _ in range(40)]
    steps = [b - a for a, b in itertools.pairwise(offsets) if abs(b - a) > 1]
    assert len(steps) > 10 and min(steps) < -3600 and max(steps) > 3600
    assert abs(time.time_ns() / 1e9 - real()) > 1 and time.monotonic() - began < 60


def test_growth_is_told_from_noise():
    def sample(n: int, mb: float, files: int = 9) -> soak.Sample:
        rest = {"servers_mb": 1.0, "people_mb": 1.0, "children": 1, "sockets": 1, "threads": 1, "tasks": 1}
        return soak.Sample(seconds=n, episodes=n, rss_mb=mb, files=files, **rest)

    def problems(samples: list[soak.Sample], after: soak.Sample) -> list[str]:
        ends = soak.Counter({"d user_stop 1.0": 3})
        return soak.figures(samples, ends, sample(0, 1), after)["problems"]

    noise = [sample(n, 100 + (n * 7919 % 13) / 10) for n in range(240)]
    assert problems(noise, sample(0, 1)) == []
    assert "rss_mb grows by 360" in problems([sample(n, 100 + n / 10) for n in range(240)], sample(0, 1))[0]
    assert problems([sample(n, 100, 9 + n // 20) for n in range(240)], sample(0, 1)) == [
        "files grow from 13 to 20"
    ]
    assert problems(noise, sample(0, 1, files=16)) == ["7 files are left"]


# ---------------------------------------------------------------- hostile text


@pytest.mark.parametrize("kind", ["hermes", "llama"])
def test_hostile_messages_of_an_agent(kind):
    found = fuzz.agent_messages(kind, 400, 5, load("library:desk"))
    assert found.problems == [] and found.texts == 400 and found.refused > 100 and found.accepted > 30


@given(
    st.text(st.characters(), max_size=200) | st.text('<tool_call>{}"name:argumts/,\\ud8\ud800', max_size=80)
)
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_and_can_be_stored(text):
    for read in fuzz.readers().values():
        fuzz._stored(read(text))


def test_hostile_answers_files_and_marks(tmp_path):
    domain = load("library:desk")
    for found in (
        fuzz.marks(100, 1),
        fuzz.endpoint_answers(300, 1),
        fuzz.configurations(25, 1, tmp_path),
        fuzz.domain_files(25, 1, tmp_path),
        fuzz.trajectories(200, 1, tmp_path, domain),
    ):
        assert found.problems == [], found.name
        assert len(found.ends) == 2 or found.name == "injected marks", (found.name, found.ends)


def test_half_of_a_character_is_told_where_it_stands(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "\\ud83d\\ude00"}\n{"a": "\\ud83d"}\n')
    with pytest.raises(MuaError, match=r"a\.jsonl, line 2: it has half of a character"):
        list(read_jsonl(path))
    path.write_text("[" * 100_000 + "\n")
    with pytest.raises(MuaError, match="line 1: not valid JSON"):
        list(read_jsonl(path))


# ---------------------------------------------------------------- states

NAMES = [
    *("library:desk", "course_registration", "meeting_rooms", "property_rental", "job_application"),
    *("shop", "tau1/retail", "tau1/airline", "tau1/retail+strict", "tau2/airline", "tau2/telecom"),
    *("bfcl/multi_turn_base", "acebench/agent_en", "acebench-strict/agent_zh"),
]


@pytest.mark.parametrize("name", NAMES)
def test_random_calls_of_concurrent_episodes(name):
    try:
        domain = load(name)
    except MuaError as exc:
        pytest.skip(f"{name} is not here: {exc}")
    found = states.check(domain, seed=2, rounds=1, together=3, most=8)
    assert found.problems == [] and found.episodes == 3 and found.calls > 8


def test_what_is_shared_and_what_a_refused_call_changes_is_found():
    class Leaky(World):
        """A refused call changes something, in all episodes at once."""

        log: list[str] = []  # noqa: RUF012

        def call(self, side, call) -> ToolResult:
            result = super().call(side, call)
            if result.error:
                self.log.append(call.name)
                self.db.put("cases", "leak", {"calls": list(self.log)})
            return result

    domain = toy_domain()
    object.__setattr__(domain, "open", lambda task: Leaky(domain, task))
    found = {text.partition(":")[0] for text in states.check(domain, 1, rounds=3).problems}
    assert {"rejected", "isolated", "replay"} <= found


def test_the_command_leaves_its_json(tmp_path):
    command = [
        sys.executable,
        "-m",
        "mua.testing",
        "states",
        "library:desk",
        "--rounds",
        "1",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0 and done.stdout.endswith("passed\n"), done.stderr
    (one,) = json.loads((tmp_path / "states.json").read_text())["outcomes"]
    assert one["domain"] == "library:desk" and one["episodes"] == 4 and one["problems"] == []
    assert SimpleNamespace(**one).calls > 10
