"""The package for verifiers, by verifiers itself: `make test-exports` (it pins its own versions)."""

# ruff: noqa: E402 - nothing else is imported where the library is missing

import asyncio
import dataclasses
import functools
import importlib
import json
import sys

import pytest

vf = pytest.importorskip("verifiers.v1", reason="verifiers is missing: make test-exports")

from export_cases import DOMAINS, Case, case
from fake_server import FakeServer, Reply, chat, error
from mua.chat import agent_view
from mua.domains import load
from mua.endpoint import wire
from mua.errors import MuaError
from mua.exports.package import write
from mua.seeds import derive_seed


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Imports the exported package of a domain."""
    out = tmp_path_factory.mktemp("envs")

    @functools.cache
    def of(domain: str):
        name, folder = write(domain, out)
        sys.path.insert(0, str(folder))
        return importlib.import_module(name)

    yield of
    sys.path[:] = [path for path in sys.path if not path.startswith(str(out))]


def says(c: Case, body: dict) -> Reply:
    """What the scripted model of a case says next: the agent's messages of our own episode, in order."""
    said = sum(m["role"] == "assistant" for m in body["messages"])
    lines = [wire([m])[0] for m in c.ours.messages if m.role == "assistant"]
    line = lines[said] if said < len(lines) else {"content": "Goodbye."}
    extra = {"tool_calls": line["tool_calls"]} if "tool_calls" in line else {}
    return whole(chat(line["content"] or "", finish="tool_calls" if extra else "stop", **extra))


def whole(reply: Reply) -> Reply:
    """With what verifiers insists on and we do not."""
    data = json.loads(reply.body)
    data |= {"created": 0, "model": "m", "usage": {**data["usage"], "total_tokens": 15}}
    return dataclasses.replace(reply, body=json.dumps(data))


def play(module, url: str, task_id: str, model: str, **taskset):
    """One rollout as verifiers' own runner makes it."""
    env = module.load_environment(**taskset)
    task = next(t for t in env.taskset if t.data.task_id == task_id)
    client = vf.EvalClientConfig(base_url=url, api_key_var="MUA_TEST_NO_KEY")

    async def run():
        async with env.serving():
            (slot,) = env.slots(task)
            return await env.run_slot(slot, vf.ModelContext(model=model, client=client))

    return asyncio.run(run())


def test_rollouts_of_verifiers_earn_what_our_episodes_do(packages):
    modules = {domain: packages(domain) for domain in DOMAINS}
    found = [
        case(domain, number, damage, seed=derive_seed(0, setting_task(domain, number)))
        for domain in DOMAINS
        for number, damage in ((0, ""), (5, "idle"), (9, "wrong"))
    ]
    script = {f"case-{n}": c for n, c in enumerate(found)}
    with FakeServer(lambda body: says(script[body["model"]], body)) as server:
        for name, c in script.items():
            episode = play(modules[c.setting.domain.name], server.url, c.task.id, name)
            (trace,) = episode.traces
            assert episode.ok, trace.errors
            assert trace.reward == c.ours.reward and set(trace.rewards) == {"outcome"}
            assert trace.state.termination == c.ours.termination.value
            assert trace.num_turns == c.ours.usage.agent_steps
            told = wire(agent_view(c.ours.messages))
            seen = [plain(m) for m in trace.messages]
            assert seen == [plain_wire(m) for m in told[: len(seen)]]
            assert len(told) - len(seen) <= 1 + sum(len(m.tool_calls) for m in c.ours.messages[-2:])
            assert trace.metrics["reward/state"] == c.ours.components["state"]
            assert trace.metrics["agent_steps"] == c.ours.usage.agent_steps
            assert {f"violations/{layer}" for layer in ("policy", "safety", "recovery")} <= set(trace.metrics)
    assert {c.ours.reward for c in found} == {0.0, 1.0}
    assert all("seed" not in body for body in server.requests)
    assert all(body["tools"] for body in server.requests)


def setting_task(domain: str, number: int) -> str:
    return load(domain).tasks("train")[number].id


def plain(message) -> tuple:
    """A message of a trace as (role, words, calls)."""
    calls = tuple((c.name, json.loads(c.arguments)) for c in getattr(message, "tool_calls", None) or ())
    return message.role, message.content or "", calls


def plain_wire(message: dict) -> tuple:
    calls = tuple(
        (c["function"]["name"], json.loads(c["function"]["arguments"])) for c in message.get("tool_calls", ())
    )
    return message["role"], message["content"] or "", calls


def test_an_env_server_plays_them_from_what_came_over_the_wire(packages):
    """The way of prime-rl: its workers get a task's data, and no taskset."""
    from verifiers.v1.serve import EnvClient, EnvServer

    module = packages("library:desk")
    task_id = setting_task("library:desk", 0)
    c = case("library:desk", 0, seed=derive_seed(0, task_id))
    env = module.load_environment()
    data = next(t for t in env.taskset if t.data.task_id == task_id).data.model_dump(mode="json")

    async def run(url: str):
        server = EnvServer(env.config, "tcp://127.0.0.1:0")
        serving = asyncio.create_task(server.run())
        client = EnvClient(server.address)
        config = vf.EvalClientConfig(base_url=url, api_key_var="MUA_TEST_NO_KEY")
        try:
            await client.wait_for_server_startup(20, 0.1)
            runs = (client.run(config, "m", vf.SamplingConfig(temperature=0.5), data) for _ in range(6))
            return await asyncio.gather(*runs)
        finally:
            await client.close()
            serving.cancel()
            await asyncio.wait((serving,))

    with FakeServer(lambda body: says(c, body)) as server:
        episodes = asyncio.run(run(server.url))
    assert [e.traces[0].reward for e in episodes] == [1.0] * 6 and all(e.ok for e in episodes)
    assert all(body["temperature"] == 0.5 for body in server.requests)  # sampling is the trainer's
    assert len(server.requests) == 6 * c.ours.usage.agent_steps


def test_what_infrastructure_breaks_is_no_reward(packages):
    module = packages("library:desk")
    task_id = setting_task("library:desk", 0)
    with FakeServer(lambda body: error(400, "no such model")) as server:
        user = {"user": "endpoint:person", "base_url": server.url}
        episode = play(module, server.url, task_id, "m", **user)  # the user fails
        (trace,) = episode.traces
        assert not episode.ok and not trace.ok and "user_failed" in trace.last_error.message
        assert trace.rewards.get("outcome") is None
        episode = play(module, server.url, task_id, "m")  # the model fails
        (trace,) = episode.traces
        assert not trace.ok and trace.last_error.type == "ProviderError"
        assert "no such model" in trace.last_error.message and trace.rewards.get("outcome") is None


def test_limits_and_prompts_of_verifiers_hold(packages, tmp_path):
    module = packages("meeting_rooms")
    with FakeServer([whole(chat("What exactly do you want?"))]) as server:
        (tmp_path / "prompt.txt").write_text("Be quick.", encoding="utf-8")
        env = module.load_environment(system_prompt=str(tmp_path / "prompt.txt"))
        env.config.agent.max_turns = 1
        task = next(iter(env.taskset))
        client = vf.EvalClientConfig(base_url=server.url, api_key_var="MUA_TEST_NO_KEY")

        async def run():
            async with env.serving():
                return await env.run_slot(env.slots(task)[0], vf.ModelContext(model="m", client=client))

        (trace,) = asyncio.run(run()).traces
    assert (trace.ok, trace.reward, trace.stop_condition) == (True, 0.0, "max_turns")
    assert trace.state.termination == "max_turns" and trace.num_turns == 1
    assert [m["role"] for m in server.requests[0]["messages"]] == ["system", "user"]
    assert server.requests[0]["messages"][0]["content"] == "Be quick."


def test_held_out_tasks_are_refused_unless_one_evaluates(packages, tmp_path):
    module = packages("library:desk")
    with pytest.raises(MuaError, match="held-out split 'test'"):
        list(module.load_environment(split="test").taskset)
    tasks = list(module.load_environment(split="test", evaluate=True).taskset)
    assert len(tasks) == 300 and len({task.key for task in tasks}) == 300
    with pytest.raises(MuaError, match="held-out split 'test'"):
        write("library:desk", tmp_path, split="test")
    write("library:desk", tmp_path)
    with pytest.raises(MuaError, match="is there already"):
        write("library:desk", tmp_path)
    for place in (str(tmp_path / "mine.py"), "mine.py:small", "mine.yaml", "mix:library:desk=1,mine.py=2"):
        with pytest.raises(MuaError, match=r"mine\.(py|yaml) is a place .* install the domain as a module"):
            write(place, tmp_path)
