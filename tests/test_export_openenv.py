"""The OpenEnv server, by OpenEnv's own client: `make test-exports` (it brings a lot with it)."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest

pytest.importorskip("openenv.core", reason="openenv is missing: make test-exports")

import httpx
import uvicorn
import websockets
from openenv.core.generic_client import GenericEnvClient

from export_cases import Case, Replay, case, cases
from fake_server import FakeServer, error
from mua.chat import agent_view
from mua.endpoint import wire
from mua.exports import openenv as server
from mua.exports.stepwise import Setting, outcome, setting


@contextlib.contextmanager
def served(made: Setting, **how):
    """The address of a server in a thread of this process."""
    app = server.make_app(made, "train", **how)
    taken = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(app, log_level="error", ws_max_size=server.LARGEST))
    thread = threading.Thread(target=running.run, args=([taken],))
    thread.start()
    try:
        while not running.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(10)


async def played(client, c: Case):
    """The last result of a case's moves, every second one as text."""
    result = await client.reset(seed=c.seed, task=c.task.id)
    assert [m["role"] for m in result.observation["messages"]] == ["system", "user"]
    agent = Replay(c.moves)
    while not result.done:
        assert result.reward is None
        message = (await agent.step([])).message
        move = wire([message])[0]
        move.pop("role")
        result = await client.step(move)
    return result


def check(c: Case, result) -> None:
    assert result.reward == c.ours.reward
    assert result.observation["messages"] == wire(agent_view(c.ours.messages))
    assert result.observation["metadata"] == outcome(c.ours)


def test_sessions_at_once_each_end_as_our_episode_does():
    found = [c for c in cases() if c.setting.domain.name == "library:desk" and c.setting.limits.steps > 1]

    async def session(url: str, c: Case):
        async with GenericEnvClient(base_url=url) as client:
            results = [await played(client, c) for _ in range(2)]  # one after the other, in one session
            state = await client.state()
            assert (state["task_id"], state["done"], state["step_count"]) == (
                c.task.id,
                True,
                c.ours.usage.agent_steps,
            )
            return results

    async def everybody(url: str):
        return await asyncio.gather(*(session(url, c) for c in found * 8))

    with served(found[0].setting, sessions=80) as url:
        for c, results in zip(found * 8, asyncio.run(everybody(url)), strict=True):
            for result in results:
                check(c, result)


def test_sessions_are_limited_expire_and_are_not_shared(monkeypatch):
    made = setting("library:desk")
    sleep = asyncio.sleep

    async def soon(seconds: float) -> None:  # OpenEnv looks for idle sessions every 5 s at most
        await sleep(min(seconds, 0.05))

    from openenv.core.env_server import http_server

    class Impatient:
        def __getattr__(self, name):
            return soon if name == "sleep" else getattr(asyncio, name)

    monkeypatch.setattr(http_server, "asyncio", Impatient())

    async def run(url: str) -> None:
        async with GenericEnvClient(base_url=url) as one, GenericEnvClient(base_url=url) as two:
            first = await one.reset(seed=1, task=0)
            second = await two.reset(seed=2, task=1)
            assert first.observation["messages"] != second.observation["messages"]
            assert (await one.state())["task_id"] == made.tasks[0].id
            with pytest.raises(Exception, match="capacity"):
                async with GenericEnvClient(base_url=url) as three:
                    await three.reset()
            await sleep(1.2)
            with pytest.raises(Exception, match="session has expired"):
                await one.step({"content": "Hello?"})
            with pytest.raises(Exception, match="session has expired"):
                await two.reset()
        async with GenericEnvClient(base_url=url) as again:
            assert (await again.reset()).observation["messages"]

    with served(made, sessions=2, idle=0.5) as url:
        asyncio.run(run(url))


def test_what_is_wrong_is_said_and_the_session_goes_on():
    c = case("library:desk", 0)

    async def run(url: str) -> None:
        async with GenericEnvClient(base_url=url) as client:
            for move, told in (
                ({"content": "Hi"}, "call reset first"),
                ({}, "call reset first"),
                ({"words": "Hi"}, "Invalid message"),
            ):
                with pytest.raises(Exception, match=told):
                    await client.step(move)
            for reset, told in (
                ({"task": "nobody"}, "'nobody' is not among the 1500 tasks"),
                ({"task": 1500}, "there is no task 1500"),
                ({"split": "test"}, "plays the split 'train'"),
            ):
                with pytest.raises(Exception, match=told):
                    await client.reset(**reset)
            await client.reset(task=0)
            for move, told in (
                ({}, "the move is empty"),
                ({"tool_calls": [{"x": 1}, "f"]}, "Invalid message"),
            ):
                with pytest.raises(Exception, match=told):
                    await client.step(move)
            check(c, await played(client, c))
            with pytest.raises(Exception, match="the episode is over"):
                await client.step({"content": "Hello?"})
            check(c, await played(client, c))
        address = url.replace("http", "ws", 1) + "/ws"
        async with websockets.connect(f"{address}?session_id=nobodys") as socket_:
            assert "Unknown session_id" in json.loads(await socket_.recv())["data"]["message"]
        async with websockets.connect(address) as socket_:
            await socket_.send("no JSON")
            assert json.loads(await socket_.recv())["data"]["code"] == "INVALID_JSON"
            with pytest.raises(websockets.ConnectionClosed, match="1009"):  # too big
                await socket_.send("x" * (server.LARGEST + 1))
                await socket_.recv()

    with served(c.setting) as url:
        asyncio.run(run(url))
        assert httpx.get(f"{url}/health").json()["status"] == "healthy"
        reset = httpx.post(f"{url}/reset", json={"seed": c.seed, "task": c.task.id}).json()
        assert reset["reward"] is None and len(reset["observation"]["messages"]) == 2
        answer = httpx.post(f"{url}/step", json={"action": {"content": "Hi"}})
        assert (answer.status_code, "call reset first" in answer.json()["detail"]) == (400, True)
        assert httpx.get(f"{url}/mua/splits").json()[0]["name"] == "train"
        told = httpx.post(f"{url}/mua/task", json={"split": "train", "index": 3}).json()
        assert c.setting.tasks[3].id in str(told) and "goal" not in str(told)


def test_what_infrastructure_breaks_is_no_reward():
    async def run(url: str) -> None:
        async with GenericEnvClient(base_url=url) as client:
            with pytest.raises(Exception, match="user_failed: the user endpoint"):
                await client.reset(seed=1)
            assert (await client.state())["outcome"] == {}

    with FakeServer(lambda body: error(400, "no such model")) as user:
        made = setting("library:desk", user="endpoint:person", base_url=user.url)
        with served(made) as url:
            asyncio.run(run(url))
