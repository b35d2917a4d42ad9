"""Many endpoints as one, against real local servers: rates, failover, breakers, budgets, the cache, keys."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bit_run import SETTINGS, bit_worker, run_training
from fake_server import FakeServer, Reply, chat, error
from mua import pipeline
from mua.config import load_config, shared
from mua.domain import Scenario
from mua.endpoint import Endpoint, EndpointSettings
from mua.errors import InfrastructureError, MuaError
from mua.gateway import (
    Breaker,
    BreakerSettings,
    BudgetSpent,
    Cache,
    CacheSettings,
    Gateways,
    GatewaySettings,
    Route,
    Seconds,
    Window,
    asking,
)
from mua.train.checkpoint import latest
from mua.train.workers import Workers
from mua.users.llm import LlmUser
from token_server import until
from toy import toy_domain

KEYS = {"KEY_A": "sk-planted-aaaaaaaa", "KEY_B": "sk-planted-bbbbbbbb"}
HI = [{"role": "user", "content": "hi"}]
ROOT = Path(__file__).resolve().parents[1]


def routes(*servers, **more):
    return [{"base_url": s.url, "model": "m", "timeout": 20, **more} for s in servers]


def told(*servers, each=None, **more) -> GatewaySettings:
    """Settings of a gateway over servers."""
    return GatewaySettings.model_validate({"routes": routes(*servers, **(each or {})), **more})


def endpoint(gateways, **more) -> Endpoint:
    values = {"gateway": "g", "retry_delay": 0.001, "max_tokens": 20, "retries": 4, **more}
    return Endpoint(EndpointSettings.model_validate(values), "user", gateways)


def using(settings, work, *, ledger=None, **more):
    """Runs `work(endpoint, gateway)`."""

    async def go():
        gateways = Gateways({"g": settings}, ledger)
        try:
            return await work(endpoint(gateways, **more), gateways.get("g"))
        finally:
            await gateways.close()

    return asyncio.run(go())


@pytest.fixture
def serve():
    with ExitStack() as stack:
        yield lambda answer=None: stack.enter_context(
            FakeServer(answer if answer is not None else [chat("fine")])
        )


# ---------------------------------------------------------------- rates


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(3, 12), st.integers(0, 3))
def test_in_no_window_is_more_taken_than_the_limit(amounts, most, work):
    """On a virtual clock; and nothing waits longer than it must."""
    window, now, taken = Window(most, 10), 0, []
    for amount in amounts:
        wait = window.wait(amount, now)
        if wait:  # a moment before, it would have been too much
            held = sum(a for at, a in taken if at >= now + wait - 10)
            assert held + min(amount, most) > most
        now += wait
        assert window.wait(amount, now) == 0
        window.take(amount, now)
        taken.append((now, amount))
        inside = [a for at, a in taken if at > now - 10]
        assert sum(inside) <= most or len(inside) == 1
        now += work


def test_requests_a_minute_are_those_of_the_key(serve, monkeypatch):
    """Two routes with one key share its limit; another key has its own. The minute is half a second here."""
    monkeypatch.setattr(asking, "MINUTE", 0.5)
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    begun = {name: [] for name in KEYS}
    original = Route.begin

    def note(route, now, tokens):
        begun[route.settings.api_key_env].append(now)
        return original(route, now, tokens)

    monkeypatch.setattr(Route, "begin", note)
    server = serve(lambda body: chat("fine"))
    settings = GatewaySettings.model_validate(
        {
            "routes": [
                *routes(server, server, api_key_env="KEY_A", requests_per_minute=6),
                *routes(server, api_key_env="KEY_B", requests_per_minute=3),
            ]
        }
    )

    async def work(user, _):
        began = time.monotonic()
        await asyncio.gather(*(user.chat(HI, seed=n) for n in range(27)))
        return time.monotonic() - began

    seconds = using(settings, work)
    sent = Counter(headers["authorization"] for headers in server.headers)
    for name, most in (("KEY_A", 6), ("KEY_B", 3)):
        times = begun[name]
        assert len(times) == sent[f"Bearer {KEYS[name]}"] >= most
        assert all(later - earlier >= 0.5 for earlier, later in zip(times, times[most:], strict=False))
    assert sum(sent.values()) == 27 and 1.0 <= seconds < 20


def test_tokens_a_minute_count_what_was_billed(serve, monkeypatch):
    monkeypatch.setattr(asking, "MINUTE", 1.2)
    server = serve([chat("fine", usage=(30, 20))])
    settings = told(server, each={"tokens_per_minute": 220})

    async def work(user, _):
        began, times = time.monotonic(), []
        for n in range(8):
            await user.chat(HI, seed=n)
            times.append(time.monotonic() - began)
        return times

    times = using(settings, work)
    # 50 tokens each; the first is taken for all of its bytes until its bill is there, later ones for 30 and
    # 20: four in each 1.2 s.
    assert times[4] > 1.19 and times[7] < 10
    assert times[3] < times[4] - 0.2  # four went without waiting


def test_two_limits_of_one_key_are_refused():
    both = [{"base_url": "http://a/v1", "requests_per_minute": n} for n in (1, 2)]
    with pytest.raises(ValueError, match="limits are of a key"):
        GatewaySettings.model_validate({"routes": both})


# ---------------------------------------------------------------- failover and breakers


def test_failover_takes_the_routes_in_order_and_spreads_by_load(serve):
    first, second, third = serve([error(500, "boom")]), serve([error(503, "busy")]), serve()
    done = using(told(first, second, third), lambda user, _: user.chat(HI))
    assert done.text == "fine"
    assert [len(s.requests) for s in (first, second, third)] == [1, 1, 1]
    assert first.requests == second.requests == third.requests

    gate = threading.Event()

    def slow(body):
        gate.wait(10)
        return chat("fine")

    one, two = serve(slow), serve(slow)
    settings = GatewaySettings.model_validate(
        {"routes": [*routes(one, concurrency=2), *routes(two, concurrency=4)]}
    )

    async def work(user, _):
        tasks = [asyncio.create_task(user.chat(HI, seed=n)) for n in range(9)]
        await until(lambda: len(one.requests) + len(two.requests) >= 6)
        await asyncio.sleep(0.05)
        counts = len(one.requests), len(two.requests)
        gate.set()
        await asyncio.gather(*tasks)
        return counts

    assert using(settings, work) == (2, 4)  # as many as each may have; three wait


def test_a_route_that_refuses_is_not_asked_twice_for_one_request(serve):
    refusing, good = (
        serve([error(404, "no such model")]),
        serve([error(500, "x"), error(500, "x"), chat("ok")]),
    )
    done = using(told(refusing, good), lambda user, _: user.chat(HI))
    assert done.text == "ok" and (len(refusing.requests), len(good.requests)) == (1, 3)
    alone = serve([error(404, "no such model")])
    with pytest.raises(InfrastructureError, match="no such model"):
        using(told(alone, alone), lambda user, _: user.chat(HI))
    assert len(alone.requests) == 2


def test_a_breaker_opens_half_opens_and_closes(serve):
    broken = serve([error(500, "boom")])
    settings = told(broken, breaker={"failures": 3, "seconds": 1.0})

    async def work(user, g):
        for n in range(3):
            with pytest.raises(InfrastructureError, match="boom"):
                await user.chat(HI, seed=n)
        assert len(broken.requests) == 3
        with pytest.raises(InfrastructureError, match=r"left alone for a while; it failed \(500"):
            await user.chat(HI)
        assert len(broken.requests) == 3  # it was not asked
        await asyncio.sleep(1.02)
        with pytest.raises(InfrastructureError):  # half open: one asks, it fails, it is open again
            await user.chat(HI)
        assert len(broken.requests) == 4
        broken._replies[:] = [chat("fine")]
        await asyncio.sleep(1.02)
        gate = asyncio.gather(*(user.chat(HI, seed=n) for n in range(5)))
        answers = await gate
        assert [a.text for a in answers] == ["fine"] * 5 and len(broken.requests) == 9
        assert g.routes[0].breaker.wait(time.monotonic()) == 0

    using(settings, work, retries=0)


def test_while_one_request_tries_a_route_the_others_wait_for_it(serve):
    """Half open is one request, however many are waiting."""
    inside, together = [], threading.Barrier(6)

    def answer(body):
        inside.append(server.in_flight)
        if len(inside) <= 6:
            together.wait(30)
        time.sleep(0.05)
        return chat("fine") if len(inside) > 8 else error(500, "boom")

    server = serve(answer)
    settings = told(server, breaker={"failures": 2, "seconds": 0.1})

    async def work(user, _):
        return await asyncio.gather(*(user.chat(HI, seed=n) for n in range(6)), return_exceptions=True)

    found = using(settings, work, retries=20)
    assert all(getattr(f, "text", None) == "fine" for f in found), found
    # All six are on their way when the first fails; then one at a time, until one is answered.
    assert inside[6:9] == [1, 1, 1] and len(inside) == 14


def test_breaker_by_hand():
    breaker = Breaker(BreakerSettings(failures=2, seconds=10))
    breaker.failed(0)
    breaker.succeeded()
    breaker.failed(1)
    assert breaker.wait(1) == 0
    breaker.failed(2)
    assert (breaker.wait(2), breaker.wait(11), breaker.wait(12)) == (10, 1, 0)
    breaker.begin()
    assert breaker.wait(12) == float("inf")
    breaker.failed(13)
    assert breaker.wait(13) == 10


def test_a_server_that_asks_for_time_gets_it_from_everybody(serve):
    asked = []

    def answer(body):
        asked.append(time.monotonic())
        return error(429, "slow down", retry_after="0.4") if len(asked) == 1 else chat("fine")

    server = serve(answer)

    async def work(user, _):
        first = asyncio.create_task(user.chat(HI, seed=1))
        await until(lambda: user.meter.errors["busy"])
        await asyncio.gather(first, user.chat(HI, seed=2))

    using(told(server), work)
    assert len(asked) == 3 and asked[1] - asked[0] > 0.38


# ---------------------------------------------------------------- budgets


def test_a_budget_in_tokens_ends_before_the_request_that_might_not_fit(serve, tmp_path):
    """Each request is billed 15 tokens, and may be billed its bytes + 256 + 20."""
    server = serve([chat("fine", usage=(10, 5))])
    size = using(told(server), lambda user, _: size_of(user))
    bound = size + 256 + 20
    budget = 15 * 7 + bound  # seven are paid, and an eighth fits exactly
    server.requests.clear()

    async def work(user, _):
        done = 0
        with pytest.raises(BudgetSpent) as caught:
            while True:
                await user.chat(HI, seed=0)
                done += 1
        assert not isinstance(caught.value, InfrastructureError)
        assert "gateways.g.budget" in str(caught.value) and "the same command again" in str(caught.value)
        return done

    ledger = tmp_path / "spent.sqlite"
    settings = told(server, budget={"tokens": budget})
    assert using(settings, work, ledger=ledger) == len(server.requests) == 8
    assert using(settings, work, ledger=ledger) == 0  # another command of the run
    more = told(server, budget={"tokens": budget + 15 * 2})
    assert using(more, work, ledger=ledger) == 2
    assert using(settings, work) == 8  # no ledger: this process only


@pytest.mark.parametrize("concurrency", [1, 16])
def test_a_budget_in_dollars_is_never_exceeded_whatever_is_in_flight(concurrency, serve, tmp_path):
    def bill(body):  # up to what a request may cost
        time.sleep(0.005)
        n = body["seed"] % 20
        return chat("fine", usage=(40 + 8 * n, n))

    server = serve(bill)
    settings = told(
        server,
        each={"concurrency": concurrency},
        prices={"m": {"prompt": 100.0, "completion": 1000.0}},
        budget={"dollars": 0.3},
    )

    async def work(user, g):
        async def one(n):
            for i in range(40):
                await user.chat(HI, seed=100 * n + i)

        ends = await asyncio.gather(*(one(n) for n in range(12)), return_exceptions=True)
        assert all(isinstance(end, BudgetSpent) for end in ends)
        return g.ledger.dollars

    spent = using(settings, work, ledger=tmp_path / "spent.sqlite")
    billed = [body["seed"] % 20 for body in server.requests]
    assert spent == pytest.approx(sum(100 * (40 + 8 * n) + 1000 * n for n in billed) / 1e6)
    worst = (100 * (200 + 256) + 1000 * 20) / 1e6
    assert 0.3 - worst < spent <= 0.3


def test_a_budget_needs_to_know_prices_and_the_longest_answer(serve):
    server = serve()
    with pytest.raises(MuaError, match="no price of m"):
        using(told(server, budget={"dollars": 1}), lambda user, _: user.chat(HI))
    with pytest.raises(MuaError, match="max_tokens"):
        using(told(server, budget={"tokens": 10**6}), lambda user, _: user.chat(HI), max_tokens=None)


def test_a_request_whose_asker_went_away_is_paid_and_kept(serve, tmp_path):
    gate = threading.Event()

    def answer(body):
        gate.wait(10)
        return chat("late", usage=(10, 5))

    server = serve(answer)
    settings = told(server, cache={"folder": str(tmp_path)}, budget={"tokens": 10_000})

    async def work(user, g):
        task = asyncio.create_task(user.chat(HI))
        await until(lambda: server.requests)
        task.cancel()
        gate.set()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.wait(g._working)
        return g.ledger.tokens, (await user.chat(HI)).text

    assert using(settings, work) == (15, "late") and len(server.requests) == 1


class People:
    """Makes users that end by what the gateway says. Processes are given copies."""

    def __init__(self, settings, ledger):
        self.settings, self.ledger = settings, ledger
        self.gateways = None

    def __call__(self, task, seed):
        if self.gateways is None:
            self.gateways = Gateways({"g": self.settings}, self.ledger)
            self.endpoint = endpoint(self.gateways)
        return Caller(self.endpoint, task, seed)


class Caller(LlmUser):
    async def reply(self, view):
        turn = await super().reply(view)
        stop = bool(view) and len(turn.text) > 9
        return type(turn)(turn.text, stop=stop, usage=turn.usage)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_spent_budget_ends_training_after_saving_and_more_of_it_goes_on(processes, serve, tmp_path):
    """The run that was stopped by its budget ends with the bits of one that had enough; the budget is that of
    all processes together."""
    server = serve(lambda body: chat("x" * (body["seed"] % 19 + 1), usage=(1000, 10)))
    few = SETTINGS.rollout.model_copy(update={"groups": 2, "refill_rounds": 0})
    how = SETTINGS.model_copy(update={"steps": 4, "checkpoint_every": 100, "rollout": few})

    def play(folder, tokens):
        settings = told(server, budget={"tokens": tokens} if tokens else {})
        people = People(settings, folder / "spent.sqlite")
        workers = Workers(processes, bit_worker, (how, people)) if processes > 1 else None
        try:
            return run_training(folder, how, make_user=people, workers=workers)
        finally:
            if workers is not None:
                workers.close()
            if people.gateways is not None:
                asyncio.run(people.gateways.close())

    whole = play(tmp_path / "whole", None)
    asked = len(server.requests)
    assert ledger_of(tmp_path / "whole") == (asked, 1010 * asked)
    budget = 1010 * asked * 2 // 3
    with pytest.raises(BudgetSpent, match=r"raise gateways\.g\.budget"):
        play(tmp_path / "short", budget)
    sent = len(server.requests) - asked
    assert ledger_of(tmp_path / "short") == (sent, 1010 * sent) and budget - 6000 < 1010 * sent <= budget
    done = len((tmp_path / "short" / "metrics.jsonl").read_text().splitlines())
    assert 1 <= done < 4
    kept = latest(tmp_path / "short" / "checkpoints")
    assert kept is not None and kept.name == f"step_{done:06d}"
    again = play(tmp_path / "short", 10**9)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-5  # answers over HTTP come in any order, which the last bits show
    lines = [json.loads(x) for x in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all("cost_per_task" not in line for line in lines)  # no prices, no cost


def ledger_of(folder):
    """(requests, tokens) that stand in a run folder's ledger."""
    database = sqlite3.connect(folder / "spent.sqlite")
    try:
        return database.execute(
            "SELECT sum(requests), sum(prompt_tokens + completion_tokens) FROM spent"
        ).fetchone()
    finally:
        database.close()


SPENDER = """
import asyncio, sys
from pathlib import Path
from mua.endpoint import Endpoint, EndpointSettings
from mua.gateway import BudgetSpent, Gateways, GatewaySettings
settings = GatewaySettings.model_validate(
    {"routes": [{"base_url": sys.argv[1], "model": "m"}], "budget": {"tokens": int(sys.argv[3])}}
)
async def go():
    gateways = Gateways({"g": settings}, Path(sys.argv[2]))
    user = Endpoint(EndpointSettings(gateway="g", max_tokens=20), "user", gateways)
    async def one(n):
        while True:
            await user.chat([{"role": "user", "content": "hi"}], seed=n)
            print("paid", flush=True)
    ends = await asyncio.gather(*(one(n) for n in range(8)), return_exceptions=True)
    assert all(isinstance(end, BudgetSpent) for end in ends), ends
    await gateways.close()
asyncio.run(go())
"""


def test_processes_share_a_budget_to_the_token_and_a_killed_ones_requests_count(serve, tmp_path):
    """Eight requests at a time in each of three processes, billed a tenth of what they might have been."""
    gate = threading.Event()

    def answer(body):
        if not gate.is_set():
            gate.wait(30)
        time.sleep(0.003)
        return chat("fine", usage=(30, 10))

    server = serve(answer)
    script = tmp_path / "spender.py"
    script.write_text(SPENDER)
    words = [sys.executable, str(script), server.url, str(tmp_path / "spent.sqlite"), "20000"]
    bound = using(told(server), lambda user, _: size_of(user)) + 256 + 20

    def start():
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    killed = start()
    while len(server.requests) < 8:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    gate.set()
    together = [start() for _ in range(3)]
    paid = sum(p.communicate(timeout=60)[0].count("paid") for p in together)
    assert [p.returncode for p in together] == [0] * 3
    requests, tokens = ledger_of(tmp_path)
    assert requests == len(server.requests) == paid + 8
    assert tokens == 8 * bound + 40 * paid  # the dead one's: whatever they may have cost
    assert 20_000 - bound < tokens <= 20_000


async def size_of(user):
    return len(user._body("m", HI, [], 0, 0))


def test_processes_of_a_run_share_its_limits_and_are_counted_together(serve, tmp_path):
    """A real training step in two processes."""

    def answer(body):
        time.sleep(0.2)
        return chat("Hello.", usage=(50, 9))

    server = serve(answer)
    route = f"{{base_url: {server.url}, model: m, concurrency: 4, requests_per_minute: 1001}}"
    more = [
        *("model.tiny.layers=2", "model.tiny.vocab_size=600", "sft=null", "user_sft=null", "threads=1"),
        *("coldstart.conversations=20", 'coldstart.user_split=""', "train.steps=1", "train.processes=2"),
        *("train.rollout.groups=12", "train.rollout.group_size=2", "train.rollout.refill_rounds=0"),
        "train.max_step_tokens=6",
        f"gateways={{people: {{routes: [{route}], budget: {{tokens: 1000000}}}}}}",
        "train_user={kind: endpoint, endpoint: {gateway: people, max_tokens: 20}}",
    ]
    config = load_config("quickstart", more)
    (mine,) = shared(config, 2, one_ledger=True).gateways["people"].routes
    assert (mine.concurrency, mine.requests_per_minute) == (2, 500)
    with pytest.raises(MuaError, match=r"3 processes cannot share requests_per_minute=2 of http"):
        mine.model_copy(update={"requests_per_minute": 2}).share(3)

    async def work():
        run = pipeline.open_run(config, tmp_path / "run")
        await pipeline.coldstart(run)
        await pipeline.train(run)
        run.folder.close()

    asyncio.run(work())
    (line,) = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    asked = len(server.requests)
    # Each looks whether it is there; each group has one opening; the agent knows no words yet.
    assert asked >= 2 + 12 and server.max_in_flight <= 4
    assert line["endpoints"]["user"]["requests"] == asked
    assert ledger_of(tmp_path / "run") == (asked, 59 * asked)


# ---------------------------------------------------------------- the cache


def conversation(user: Endpoint, seeds) -> list[str]:
    task = toy_domain().tasks("test")[0]
    scenario = Scenario("You want a refund.", {"order": "o1"})

    async def go():
        out = []
        for seed in seeds:
            person = LlmUser(user, type(task)(**{**vars(task), "scenario": scenario}), seed)
            out.append((await person.reply([])).text)
        return out

    return go()


def test_a_second_run_asks_nothing_and_hears_the_same(serve, tmp_path):
    count = iter(range(1000))
    lock = threading.Lock()

    def answer(body):
        with lock:
            return chat(f"words {next(count)}")

    server = serve(answer)
    settings = told(server, cache={"folder": str(tmp_path / "answers")})

    async def work(user, _):
        await user.check()
        return await conversation(user, range(6)), user.meter.figures()

    first, figures = using(settings, work, seed=None)
    assert len(set(first)) == 6 and figures["requests"] == 7 and figures["cached"] == 0
    assert "seed" not in server.requests[0]  # not sent, and yet told apart
    second, figures = using(settings, work, seed=None)
    assert second == first and len(server.requests) == 7
    assert figures["requests"] == 0 and figures["cached"] == 7 and figures["p99"] is None

    async def others(user, _):
        return await conversation(user, range(6, 8))

    assert not set(using(settings, others, seed=None)) & set(first)
    assert not set(using(settings, others, seed=None, temperature=0.5)) & set(first)


def test_failures_are_not_kept_and_a_retry_that_worked_is(serve, tmp_path):
    server = serve([error(500, "x"), chat(None), chat("good"), chat("other")])
    settings = told(server, cache={"folder": str(tmp_path)})
    assert using(settings, lambda user, _: user.chat(HI)).text == "good"
    assert using(settings, lambda user, _: user.chat(HI)).text == "good"
    assert len(server.requests) == 3


CHILD = """
import asyncio, sys
from mua.endpoint import Endpoint, EndpointSettings
from mua.gateway import Gateways, GatewaySettings
settings = GatewaySettings.model_validate(
    {"routes": [{"base_url": sys.argv[1], "model": "m"}], "cache": {"folder": sys.argv[2]}}
)
async def go():
    gateways = Gateways({"g": settings})
    user = Endpoint(EndpointSettings(gateway="g", retry_delay=0.01), "user", gateways)
    async def one(n):
        print(n, (await user.chat([{"role": "user", "content": "hi"}], seed=n)).text, flush=True)
    slots = asyncio.Semaphore(4)
    async def in_turn(n):
        async with slots:
            await one(n)
    await asyncio.gather(*(in_turn(n) for n in range(int(sys.argv[3]))))
    await gateways.close()
asyncio.run(go())
"""


def test_processes_share_the_cache_and_a_kill_loses_nothing(serve, tmp_path):
    count = iter(range(100_000))
    lock = threading.Lock()

    def answer(body):
        time.sleep(0.002)
        with lock:
            return chat(f"answer-{next(count)}")

    server = serve(answer)
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    words = [sys.executable, str(script), server.url, str(tmp_path / "answers")]

    def start(number):
        return subprocess.Popen([*words, str(number)], stdout=subprocess.PIPE, text=True, cwd=ROOT)

    killed = start(100_000)
    seen = {}
    assert killed.stdout is not None
    for line in killed.stdout:
        number, text = line.split()
        seen[int(number)] = text
        if len(seen) == 40:
            os.kill(killed.pid, signal.SIGKILL)
            break
    killed.wait()
    pair = [start(60), start(60)]
    outputs = [dict(line.split() for line in p.communicate(timeout=60)[0].splitlines()) for p in pair]
    assert outputs[0] == outputs[1] and len(outputs[0]) == 60  # two at once: the first answer counts for both
    assert all(outputs[0][str(n)] == text for n, text in seen.items() if n < 60)
    asked = Counter(body["seed"] for body in server.requests)
    assert sum(asked.values()) <= 40 + 4 + 2 * 20 + 4 and max(asked.values()) <= 3


def test_the_cache_keeps_to_its_size_and_drops_what_was_not_used_for_longest(tmp_path):
    cache = Cache(CacheSettings(folder=str(tmp_path), megabytes=1))
    body = "x" * 9_800  # 10 kB with its places in the indexes
    for n in range(99):
        assert cache.put(bytes([n]), body) == body
        time.sleep(0.0002)
    assert cache.get(bytes([0])) == body  # used again
    for n in range(99, 140):
        cache.put(bytes([n]), body)
        time.sleep(0.0002)
    held = [n for n in range(140) if cache.get(bytes([n]))]
    assert 0 in held and 1 not in held and held[-1] == 139 and 85 <= len(held) <= 100
    assert cache.put(bytes([139]), "another") == body  # the first that was written counts
    cache.close()
    (tmp_path / "answers.sqlite").write_bytes(b"nonsense" * 1000)
    with pytest.raises(MuaError, match=r"answers\.sqlite cannot be used"):
        Cache(CacheSettings(folder=str(tmp_path)))


# ---------------------------------------------------------------- figures, names, keys


def test_figures_have_percentiles_and_errors_by_kind(serve):
    server = serve(
        [error(500, "x"), error(429, "y", retry_after_ms="1"), Reply("<html>"), chat("a", usage=(7, 3))]
    )
    settings = told(server, prices={"m": {"prompt": 10.0, "completion": 100.0}})

    async def work(user, _):
        answer = await user.chat(HI)
        return answer, user.meter.figures()

    answer, figures = using(settings, work)
    assert figures["errors"] == {"busy": 1, "failed": 1, "nonsense": 1} and figures["requests"] == 4
    assert figures["dollars"] == answer.cost == pytest.approx((7 * 10 + 3 * 100) / 1e6)
    assert 0 < figures["p50"] <= figures["p90"] <= figures["p99"]


@given(st.lists(st.floats(1e-4, 3600), min_size=1, max_size=200), st.sampled_from([1, 50, 90, 99, 100]))
def test_percentiles_are_the_nearest_rank_to_half_a_per_cent_and_meters_stay_small(times, percent):
    seconds = Seconds()
    assert seconds.percentile(50) is None
    for took in times:
        seconds.took(took)
    exact = sorted(times)[max(0, math.ceil(len(times) * percent / 100) - 1)]
    assert seconds.percentile(percent) == pytest.approx(exact, rel=0.00501)
    assert len(seconds) <= 1750  # from a tenth of a millisecond to an hour, however many there are


def test_check_names_the_route_that_refuses_and_leaves_one_that_is_down(serve, caplog):
    good, wrong = serve(), serve([error(401, "no")])
    down = FakeServer([chat("x")])
    down._http.server_close()
    with pytest.raises(MuaError, match=rf"{wrong.url} \(model 'm'\) refused the key"):
        using(told(good, wrong), lambda user, _: user.check())
    using(told(good, down), lambda user, _: user.check())
    assert down.url in caplog.text and "other routes" in caplog.text
    with pytest.raises(MuaError, match="is down"):
        using(told(down), lambda user, _: user.check())


def test_names_and_files_and_what_goes_wrong_with_them(serve, tmp_path, monkeypatch):
    server = serve()
    file = tmp_path / "people.yaml"
    file.write_text(f"routes: [{{base_url: {server.url}, model: m}}]\n")
    user = Endpoint(EndpointSettings.model_validate({"gateway": str(file)}))
    assert user.settings.model == "people" and asyncio.run(user.chat(HI)).text == "fine"
    assert server.requests[0]["model"] == "m"
    for text, words in (("routes: []", "routes"), ("route: 1", "route"), ("[", "cannot be read")):
        file.write_text(text)
        with pytest.raises(MuaError, match=words):
            Endpoint(EndpointSettings.model_validate({"gateway": str(file)}))
    with pytest.raises(ValueError, match=r"concurrency.*routes say that"):
        EndpointSettings.model_validate({"gateway": "g", "concurrency": 4})
    with pytest.raises(MuaError, match=r"eval_user.endpoint: there is no gateway 'nobody'"):
        load_config(None, ["eval_user.kind=endpoint", "eval_user.endpoint.gateway=nobody"])
    with pytest.raises(MuaError, match="NAME of an environment variable") as caught:
        route = {"base_url": "http://a/v1", "api_key_env": "sk-x-1"}
        load_config(None, [], {"gateways": {"g": {"routes": [route]}}})
    assert "sk-x-1" not in str(caught.value)
    monkeypatch.delenv("KEY_A", raising=False)
    with pytest.raises(MuaError, match="KEY_A, which is not set"):
        using(told(server, each={"api_key_env": "KEY_A"}), lambda user, _: user.chat(HI))


CONFIG = """
domain: library
gateways:
  people:
    routes:
      - {{base_url: {one}, model: small, api_key_env: KEY_A}}
      - {{base_url: {two}, model: small, api_key_env: KEY_B}}
    prices: {{small: {{prompt: 1.0, completion: 2.0}}}}
    cache: {{folder: {cache}}}
    budget: {{dollars: {dollars}}}
eval: {{tasks: 4, temperatures: [0.0], concurrency: 2}}
limits: {{turns: 2, steps: 3}}
"""


def test_eval_through_a_gateway_stops_goes_on_repeats_and_keeps_keys_to_itself(
    serve, tmp_path, mua, monkeypatch
):
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    lock = threading.Lock()
    numbers = iter(range(10_000))

    def answer(body):  # says its keys, and never the same thing twice
        with lock:
            return chat(f"Hello {next(numbers)} {KEYS['KEY_A']} {KEYS['KEY_B']}", usage=(50, 9))

    one, two = serve(answer), serve(answer)

    def run(out, dollars, cache="answers"):
        text = CONFIG.format(one=one.url, two=two.url, cache=tmp_path / cache, dollars=dollars)
        (tmp_path / "c.yaml").write_text(text)
        words = ("eval", "gateway:people", "--user", "gateway:people", "--config", tmp_path / "c.yaml")
        return mua(*words, "--out", tmp_path / out)

    def conversations(out):
        text = (tmp_path / out / "eval" / "people_greedy_llm-people.jsonl").read_text()
        found = [json.loads(line) for line in text.splitlines()]
        for trajectory in found:  # what is cached costs nothing
            trajectory["usage"].update(user_cost=0, agent_cost=0)
        return found

    code, _, err = run("first", 0.005)
    assert code == 1 and "the budget of gateway 'people' is spent" in err and "Traceback" not in err
    before = len(one.requests) + len(two.requests)
    code, shown, err = run("first", 5)
    assert code == 0, err
    assert "Endpoints" in shown and "p99 s" in shown and "user" in shown
    asked = len(one.requests) + len(two.requests)
    assert 0 < before < asked and len(one.requests) and len(two.requests)
    data = json.loads((tmp_path / "first" / "eval" / "people_greedy_llm-people.json").read_text())
    assert data["endpoints"]["agent"]["requests"] > 0 and data["user_cost"] > 0

    code, _, err = run("second", 5)
    assert code == 0, err
    assert len(one.requests) + len(two.requests) == asked  # not one request
    assert conversations("second") == conversations("first")
    for file in tmp_path.rglob("*"):
        if file.is_file():
            text = file.read_bytes()
            assert not any(key.encode() in text for key in KEYS.values()), file
