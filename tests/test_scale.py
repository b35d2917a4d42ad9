"""Many conversations at once: the simulation of `perf/scale.py`, small, and what it rests on."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from mua.domain import ToolResult, World
from mua.episode import play
from mua.faults import FaultSettings, misbehaving
from mua.rollout import RolloutSettings, play_groups
from toy import ScriptAgent, ScriptUser, toy_domain

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "perf"))
import scale


def figures(capsys, monkeypatch, *options: str) -> dict:
    small = ["--domain", "library:desk", "--tasks", "10", "--agent-places", "24", "--user-places", "8"]
    monkeypatch.setattr(sys, "argv", ["scale.py", "--json", "--episodes", "64", *small, *options])
    scale.main()  # its exit code is about memory, of which 64 episodes say nothing
    return json.loads(capsys.readouterr().out)


def test_a_simulated_batch_is_right_fair_and_the_same_each_time(capsys, monkeypatch):
    first, again = (figures(capsys, monkeypatch) for _ in range(2))
    assert first["right"] and first["episodes"] == 128 and first["in_flight"] == 64
    assert first["waits"]["longest_in_medians"] < scale.STARVED
    for name in ("virtual_seconds", "waits", "busy", "agent_steps", "tool_calls", "constant_groups"):
        assert first[name] == again[name], name
    other = figures(capsys, monkeypatch, "--seed", "1")
    assert other["virtual_seconds"] != first["virtual_seconds"]


def test_the_clock_says_when_an_episode_was_lost():
    async def lost() -> None:
        await asyncio.get_running_loop().create_future()

    with asyncio.Runner(loop_factory=scale.VirtualLoop) as runner:
        runner.run(asyncio.sleep(3600))  # at once
        with pytest.raises(RuntimeError, match="the scheduler has lost an episode"):
            runner.run(lost())


def test_a_tool_that_waits_keeps_nobody_else_waiting():
    domain = toy_domain()

    class Slow(World):
        async def perform(self, side, call) -> ToolResult:
            await asyncio.sleep(60)
            return await super().perform(side, call)

    async def episode(task) -> float:
        calls = [("get_order", {"order_id": "o1"})] * 3
        t = await play(domain, task, ScriptAgent(*calls), ScriptUser("Hello."), world=Slow(domain, task))
        assert t.usage.tool_calls == 3
        return asyncio.get_running_loop().time()

    async def both() -> list[float]:
        return await asyncio.gather(*(episode(task) for task in domain.tasks("train")))

    with asyncio.Runner(loop_factory=scale.VirtualLoop) as runner:
        assert runner.run(both()) == pytest.approx([180.0] * 4)


def test_faults_that_sleep_hold_up_their_own_episode_only():
    domain = toy_domain()
    settings = FaultSettings(latency=1.0, latency_seconds=100.0, sleep=True)

    async def episode(task) -> float:
        world = misbehaving(domain, task, settings, 0)
        assert world is not None
        await play(
            domain, task, ScriptAgent(("get_order", {"order_id": "o1"})), ScriptUser("Hi."), world=world
        )
        assert world.faults["seconds"] > 0
        return asyncio.get_running_loop().time() - world.faults["seconds"]

    async def all_of_them() -> list[float]:
        return await asyncio.gather(*(episode(task) for task in domain.tasks("train")))

    with asyncio.Runner(loop_factory=scale.VirtualLoop) as runner:
        assert runner.run(all_of_them()) == pytest.approx([0.0] * 4, abs=1e-3)


def test_groups_with_a_signal_do_not_ask_all_the_others(monkeypatch):
    """Asking each group whenever one was through made a batch cost the square of its size."""
    from mua import rollout

    looks = 0
    look = rollout._Run.look

    def counted(self) -> None:
        nonlocal looks
        looks += 1
        look(self)

    monkeypatch.setattr(rollout._Run, "look", counted)
    domain = toy_domain()

    def agent(task, session, seed):
        order = {"order_id": task.scenario.agenda["order"]}
        return ScriptAgent(*([("cancel_order", order)] if session.split("/")[3] == "0" else ["No."]))

    groups = asyncio.run(
        play_groups(
            domain,
            domain.tasks("train") * 25,
            agent,
            lambda task, seed: ScriptUser("Cancel it, please."),
            RolloutSettings(group_size=2, freeze_opening=False),
        )
    )
    assert sum(not group.constant for group in groups) == 100
    assert looks < 1000
