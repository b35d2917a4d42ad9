"""The engine on servers: the ids of the local engine, whatever fails on the way; who is asked, exactly."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
from collections import Counter
from contextlib import ExitStack

import pytest
import torch

from bit_run import SETTINGS, VOCAB, run_training, start_model
from fake_server import FakeServer, Reply, error
from mua.engines import Sampling
from mua.engines.served import ServerSettings, open_engine
from mua.engines.slots import SlotEngine
from mua.errors import InfrastructureError, MuaError
from mua.models import save_model, tiny_llama
from mua.tokenizer import train_tokenizer
from token_server import TokenServer, until

KINDS = ("vllm", "sglang")
MODEL = start_model()
PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture
def serve():
    """Starts servers: (kind, how many) → list of them."""
    with ExitStack() as stack:

        def start(kind: str = "vllm", count: int = 1, model=MODEL) -> list[TokenServer]:
            return [stack.enter_context(TokenServer(kind, model)) for _ in range(count)]

        yield start


def settings(servers, **more) -> ServerSettings:
    values = {"urls": [s.root for s in servers], "retry_delay": 0.01, "rest": 0.2, "timeout": 20}
    return ServerSettings.model_validate({**values, **more})


def using(servers, work, temperature=1.0, **more):
    """Runs `work(engine)` with an engine over the servers."""

    async def go():
        folder = more.pop("handed_over", None)
        engine = await open_engine(
            servers[0].kind, settings(servers, **more), folder=folder, temperature=temperature
        )
        for server in servers:
            server.asked.clear()
            server.paths.clear()
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(go())


def local(prompt, sampling):
    return asyncio.run(SlotEngine(MODEL, slots=4).generate(prompt, sampling, "s"))


SAMPLINGS = [
    Sampling(0.0, max_tokens=12),
    Sampling(0.0, max_tokens=40, stop_ids=tuple(range(8))),
    *(Sampling(t, max_tokens=30, stop_ids=(0, 7), seed=2**40 + n) for n, t in enumerate((1.0, 1.0, 0.7))),
]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_logprobs_and_reasons_are_those_of_the_local_engine(kind, serve):
    # SGLang's seeds have 31 bits.
    samplings = [s if kind == "vllm" else dataclasses.replace(s, seed=s.seed % 2**31) for s in SAMPLINGS]

    async def work(engine):
        return [await engine.generate(PROMPT, s, f"{n}") for n, s in enumerate(samplings)], engine.context

    found, context = using(serve(kind), work)
    assert context == MODEL.config.max_position_embeddings
    wanted = [local(PROMPT, s) for s in samplings]
    assert [f.token_ids for f in found] == [w.token_ids for w in wanted]
    assert [f.stop_reason for f in found] == [w.stop_reason for w in wanted]
    assert {f.stop_reason for f in found} == {"stop", "length"}
    for f, w in zip(found, wanted, strict=True):
        assert f.logprobs == pytest.approx(w.logprobs, abs=1e-6)


def ids_gone(answer):
    if "choices" in answer:
        del answer["choices"][0]["token_ids"]
    else:
        del answer["meta_info"]["output_token_logprobs"]


def logprob_gone(answer):
    if "choices" in answer:
        answer["choices"][0]["logprobs"]["token_logprobs"].pop()
    else:
        answer["meta_info"]["output_token_logprobs"].pop()


def logprob_odd(answer):
    if "choices" in answer:
        answer["choices"][0]["logprobs"]["token_logprobs"][0] = None
    else:
        answer["meta_info"]["output_token_logprobs"][0][0] = 3.5


def other_prompt(answer):
    if "choices" in answer:
        answer["choices"][0]["prompt_token_ids"][0] += 1
    else:
        answer["meta_info"]["prompt_tokens"] -= 1


def stopped_nowhere(answer):
    if "choices" in answer:
        answer["choices"][0]["finish_reason"] = "stop"
    else:
        answer["meta_info"]["finish_reason"] = {"type": "stop", "matched": 2}


def no_answer(answer):
    answer.clear()


BENT = {
    "no ids": (ids_gone, "answered without"),
    "too few log-probabilities": (logprob_gone, "log-probabilities"),
    "no log-probability": (logprob_odd, "log-probabilities that are none"),
    "another prompt": (other_prompt, "prompt"),
    "a stop of its own": (stopped_nowhere, "none of the stop ids"),
    "nothing": (no_answer, "no completion"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bend", "words"), BENT.values(), ids=BENT)
def test_an_answer_that_is_not_whole_is_refused_in_words(kind, bend, words, serve):
    servers = serve(kind)

    async def work(engine):
        servers[0].bend = bend
        with pytest.raises(InfrastructureError, match=words) as caught:
            await engine.generate(PROMPT, Sampling(0.0, max_tokens=5), "s")
        assert servers[0].root in str(caught.value)

    using(servers, work, retries=1, rest=0)
    assert len(servers[0].asked) == 2
    with pytest.raises(MuaError, match=words) as caught:  # and before anything is played
        using(servers, work)
    assert not isinstance(caught.value, InfrastructureError)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_after_a_stop_id_are_refused(kind, serve):
    servers = serve(kind)
    greedy = local(PROMPT, Sampling(0.0, max_tokens=6)).token_ids

    async def work(engine):
        servers[0].always = None
        original = servers[0]._tokens

        def deaf(body):  # a server that does not know the field
            how = body if kind == "vllm" else body["sampling_params"]
            how["stop_token_ids"] = []
            return original(body)

        servers[0]._tokens = deaf
        with pytest.raises(InfrastructureError, match="went on after a stop id"):
            await engine.generate(PROMPT, Sampling(0.0, max_tokens=6, stop_ids=(greedy[1],)), "s")

    using(servers, work, retries=0)


def ended(reason, **more):
    choice = {"token_ids": [], "prompt_token_ids": PROMPT, "finish_reason": reason, **more}
    return json.dumps({"choices": [choice]})


HTTP = {
    "500": error(500, "boom"),
    "503": Reply("busy", 503, content_type="text/plain"),
    "429": error(429, "slow down", retry_after="0.05"),
    "reset": Reply(reset=True),
    "cut": Reply(json.dumps({"choices": [1] * 50}), cut=True),
    "slow": Reply(stall=True),
    "html": Reply("<html>proxy</html>", content_type="text/html"),
    "cut json": Reply('{"choices": [{"tok'),
    "aborted": Reply(ended("abort", logprobs={})),
    "no token": Reply(ended("length", logprobs={"token_logprobs": []})),
}


@pytest.mark.parametrize("fault", HTTP.values(), ids=HTTP)
def test_failover_is_to_the_other_replica_with_the_same_seed(fault, serve):
    first, second = serve(count=2)
    sampling = Sampling(1.0, max_tokens=8, seed=99)

    async def work(engine):
        first.always = fault
        found = await engine.generate(PROMPT, sampling, "s")
        again = await engine.generate(PROMPT, sampling, "s")  # the session stays where it went
        return found, again, engine.stats

    found, again, stats = using([first, second], work, timeout=2 if fault.stall else 20)
    assert found.token_ids == again.token_ids == local(PROMPT, sampling).token_ids
    assert len(first.asked) == 1 and len(second.asked) == 2
    assert first.asked[0] == second.asked[0] == second.asked[1]
    assert stats.moved == 1 and sum(stats.faults.values()) == 1 and stats.requests == {second.root: 2}


@pytest.mark.parametrize("fault", HTTP.values(), ids=HTTP)
def test_after_the_stated_limit_it_is_an_infrastructure_failure(fault, serve):
    servers = serve(count=2)

    async def work(engine):
        for server in servers:
            server.always = fault
        with pytest.raises(InfrastructureError) as caught:
            await engine.generate(PROMPT, Sampling(max_tokens=3), "s")
        assert any(server.root in str(caught.value) for server in servers)

    using(servers, work, retries=3, timeout=0.2 if fault.stall else 20, rest=0.05)
    assert [len(s.asked) for s in servers] == [2, 2]


def test_a_refusal_is_not_repeated(serve):
    servers = serve(count=2)

    async def work(engine):
        for server in servers:
            server.always = error(400, "no such field")
        with pytest.raises(InfrastructureError, match="no such field"):
            await engine.generate(PROMPT, Sampling(max_tokens=3), "s")

    using(servers, work)
    assert [len(s.asked) for s in servers] == [1, 1]


def test_sessions_stay_where_they_are_and_new_ones_go_where_least_is_going_on(serve):
    servers = serve(count=3)

    async def work(engine):
        async def episode(name):
            ids = list(PROMPT)
            for _ in range(4):
                done = await engine.generate(ids, Sampling(max_tokens=2, seed=len(ids)), name)
                ids += done.token_ids
            return name

        await asyncio.gather(*(episode(f"s{n}") for n in range(9)))
        for n in range(3):  # all of one replica's sessions end: new ones go there
            engine.release(f"s{n * 3}")
        for server in servers:
            server.asked.clear()
        await episode("late")

    marks = {}

    def note(server):
        def bend(answer):
            marks.setdefault(tuple(answer["choices"][0]["prompt_token_ids"]), set()).add(server.root)

        server.bend = bend

    for server in servers:
        note(server)
    using(servers, work)
    assert sum(len(s.asked) for s in servers) == 4
    assert sorted(len(s.asked) for s in servers) == [0, 0, 4]


def test_requests_are_shared_out_exactly(serve):
    servers = serve(count=3)

    async def work(engine):
        async def episode(name):
            for step in range(4):
                await engine.generate([*PROMPT, step], Sampling(max_tokens=2, seed=int(name)), name)

        await asyncio.gather(*(episode(f"{n}") for n in range(9)))
        return {name: replica.number for name, replica in engine._of.items()}

    where = using(servers, work)
    assert Counter(where.values()) == {0: 3, 1: 3, 2: 3}
    for number, server in enumerate(servers):
        seeds = Counter(body["seed"] for body in server.asked)
        assert seeds == {int(name): 4 for name, at in where.items() if at == number}


def test_backpressure_is_a_line_in_order_of_arrival(serve):
    servers = serve(count=1)
    servers[0].engine.slots = 16

    async def work(engine):
        order = []

        async def one(n):
            await engine.generate([*PROMPT, n], Sampling(max_tokens=1, seed=n), f"{n}")
            order.append(n)

        servers[0].gate.clear()
        tasks = [asyncio.create_task(one(n)) for n in range(12)]
        await until(lambda: len(servers[0].asked) >= 2)
        await asyncio.sleep(0.05)
        assert len(servers[0].asked) == 2  # not one more, however many wait
        tasks[3].cancel()  # whoever goes away in the line takes no place
        await asyncio.sleep(0)
        servers[0].gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert engine._replicas[0].running == 0 and not engine._replicas[0].line
        return order

    order = using(servers, work, in_flight=2)
    assert servers[0].max_in_flight <= 2
    arrived = [body["seed"] for body in servers[0].asked]
    assert sorted(order) == sorted(arrived) == [n for n in range(12) if n != 3]
    assert all(abs(n - at - (n > 3)) <= 2 for at, n in enumerate(arrived) if n > 3) or arrived == order


def test_a_line_moves_on_when_its_replica_is_down(serve):
    first, second = serve(count=2)

    async def work(engine):
        first.gate.clear()
        tasks = [
            asyncio.create_task(engine.generate(PROMPT, Sampling(max_tokens=2, seed=n), f"{n}"))
            for n in range(8)
        ]
        await until(lambda: len(first.asked) == 1)
        first.always = Reply(reset=True)  # from the next request on
        first.gate.set()
        found = await asyncio.wait_for(asyncio.gather(*tasks), 20)
        return [f.token_ids for f in found]

    found = using([first, second], work, in_flight=1, rest=60)
    wanted = [local(PROMPT, Sampling(max_tokens=2, seed=n)).token_ids for n in range(8)]
    assert found == wanted
    assert (len(first.asked), len(second.asked)) == (2, 7)  # one answered, one reset, and nobody waits for it


def changed(seed=1):
    model = copy.deepcopy(MODEL)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


UPDATE = {
    "vllm": ["/weight_info", "/pause?mode=abort", "/collective_rpc", "/reset_prefix_cache",
             "/update_weight_version", "/resume"],
    "sglang": ["/model_info", "/update_weights_from_disk"],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_weights_take_effect_on_every_replica_and_requests_wait_for_them(kind, serve, tmp_path):
    servers = serve(kind, 2)
    other = changed()
    greedy = Sampling(0.0, max_tokens=10)

    async def work(engine):
        await engine.load(MODEL)
        assert len(list(tmp_path.iterdir())) == 1
        before = await engine.generate(PROMPT, greedy, "a")
        for server in servers:
            server.paths.clear()
        loading = asyncio.create_task(engine.load(other))
        await asyncio.sleep(0)
        after = await asyncio.gather(*(engine.generate(PROMPT, greedy, s) for s in "abcd"))
        assert loading.done()
        assert len(list(tmp_path.iterdir())) == 1  # the older weights are gone
        return before, after

    before, after = using(servers, work, handed_over=tmp_path)
    mine = asyncio.run(SlotEngine(other, slots=2).generate(PROMPT, greedy, "s"))
    assert before.token_ids == local(PROMPT, greedy).token_ids != mine.token_ids
    assert all(found.token_ids == mine.token_ids for found in after)
    assert not list(tmp_path.iterdir())
    generate = "/v1/completions" if kind == "vllm" else "/generate"
    for server in servers:
        # The first is compared with the model itself.
        assert server.paths == [*UPDATE[kind], generate, generate, generate]
        assert server.version.startswith("mua-") and server.version.endswith("-2")


@pytest.mark.parametrize("kind", KINDS)
def test_a_replica_that_was_away_gets_the_weights_before_it_is_asked(kind, serve, tmp_path, caplog):
    first, second = serve(kind, 2)
    other = changed()
    greedy = Sampling(0.0, max_tokens=10)

    async def work(engine):
        await engine.load(other)
        first.faults.append(Reply(reset=True))  # it was restarted, with the weights of its start
        first._load(str(start))
        first.paths.clear()
        one = await engine.generate(PROMPT, greedy, "a")
        await asyncio.sleep(0.25)
        engine.release("a")
        second.always = error(500, "boom")
        two = await engine.generate(PROMPT, greedy, "b")
        return one, two

    start = tmp_path / "start"
    save_model(MODEL, None, start)
    one, two = using([first, second], work, handed_over=tmp_path / "w")
    mine = asyncio.run(SlotEngine(other, slots=2).generate(PROMPT, greedy, "s"))
    assert one.token_ids == two.token_ids == mine.token_ids
    update = UPDATE[kind][1:]
    generate = "/v1/completions" if kind == "vllm" else "/generate"
    assert first.paths == [generate, *update, generate]
    assert first.root in caplog.text and "rests" in caplog.text


def test_one_replica_that_does_not_load_is_left_out_and_none_is_an_error(serve, tmp_path, caplog):
    first, second = serve("vllm", 2)

    async def work(engine):
        first._load = lambda folder: error(500, "CUDA out of memory")
        await engine.load(changed())
        assert "CUDA out of memory" in caplog.text and first.root in caplog.text
        assert first.paths[-1] == "/resume"  # not left paused
        for n in range(4):
            await engine.generate(PROMPT, Sampling(max_tokens=1), f"{n}")
        second._load = lambda folder: error(500, "disk gone")
        with pytest.raises(InfrastructureError, match=r"out of memory|disk gone"):
            await engine.load(changed(2))

    using([first, second], work, handed_over=tmp_path, rest=60)
    assert len(first.asked) == 0 and len(second.asked) == 1 + 4


def test_an_update_without_effect_is_noticed(serve, tmp_path):
    servers = serve()
    other = changed()
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(5)

    async def work(engine):
        await engine.load(MODEL)
        servers[0]._load = lambda folder: None  # says that it did
        with pytest.raises(MuaError, match="computes something else"):
            await engine.load(other)

    using(servers, work, handed_over=tmp_path)


@pytest.mark.parametrize(
    "models", ["[1]", "{}", "null", '{"data": 3}', '{"data": [1, null]}', "[" * 10**5, "7"]
)
def test_a_list_of_models_that_is_none_is_told(models):
    with FakeServer([Reply(models)]) as server, pytest.raises(MuaError, match="the generation server http"):
        asyncio.run(open_engine("vllm", ServerSettings(urls=(server.url.removesuffix("/v1"),))))


def test_what_cannot_work_is_told_at_the_start(serve, tmp_path):
    servers = serve()

    async def nothing(engine):
        await engine.load(MODEL)

    servers[0].development = False
    with pytest.raises(InfrastructureError, match="VLLM_SERVER_DEV_MODE=1"):
        using(servers, nothing, handed_over=tmp_path)
    with pytest.raises(MuaError, match=r"serves agent; set servers\.model"):
        using(servers, nothing, model="other")
    with pytest.raises(MuaError, match=r"servers\.folder"):
        using(servers, nothing)

    def raw(answer):  # log-probabilities of the model, whatever the temperature
        choice = answer["choices"][0]
        choice["logprobs"]["token_logprobs"] = [-1.25]

    servers[0].bend = raw
    with pytest.raises(MuaError, match="logprobs-mode processed_logprobs"):
        using(servers, nothing, temperature=0.7)
    servers[0].bend = lambda answer: None
    servers[0].development = True

    async def narrow(engine):
        with pytest.raises(ValueError, match="top_p"):
            await engine.generate(PROMPT, Sampling(top_p=0.5), "s")
        with pytest.raises(ValueError, match="no room"):
            await engine.generate([1] * engine.context, Sampling(), "s")
        long = await engine.generate([1] * (engine.context - 2), Sampling(max_tokens=50), "s")
        assert (len(long.token_ids), long.stop_reason) == (2, "length")

    using(servers, narrow, temperature=0.7)
    wrong = [
        {"urls": []},
        {"urls": ["http://a:1/v1"]},
        {"urls": ["http://u:p@a:1"]},
        {"urls": ["http://a:1", "http://a:1/"]},
        {"urls": ["http://a:1"], "api_key_env": "sk-1"},
    ]
    for values in wrong:
        with pytest.raises(ValueError):
            ServerSettings.model_validate(values)


def test_eval_on_servers_is_eval_with_the_local_engine(mua, serve, tmp_path):
    tokenizer = train_tokenizer(["Hello, what can I do for you? Please renew my book."], 400, [])
    big = {"layers": 1, "hidden": 32, "heads": 2, "kv_heads": 1, "intermediate": 32, "context": 4096}
    model, other = (tiny_llama(len(tokenizer), **big, seed=n, initializer_range=0.1) for n in (0, 1))
    save_model(model, tokenizer, tmp_path / "model")
    servers = serve("vllm", 2, model=other)  # they were started with something else

    def conversations(out, *more):
        how = ("--domain", "library:desk", "--tasks", 3, "--temperature", 1, "max_step_tokens=12")
        code, _, err = mua("eval", tmp_path / "model", *how, "--out", tmp_path / out, *more)
        assert code == 0, err
        text = (tmp_path / out / "eval" / "model_t1_library-desk_n3.jsonl").read_text()
        return [json.loads(line)["messages"] for line in text.splitlines()]

    urls = ",".join(s.root for s in servers)
    served = conversations("served", "model.engine=vllm", f"model.servers.urls=[{urls}]")
    assert served == conversations("local")
    assert all(s.asked for s in servers)
    code, _, err = mua("eval", tmp_path / "model", "model.engine=vllm")
    assert code == 1 and "model.servers.urls" in err
    code, _, err = mua("eval", tmp_path / "model", f"model.servers.urls=[{urls}]")
    assert code == 1 and "set model.engine" in err


def test_no_key_is_told(serve, monkeypatch):
    servers = serve()
    monkeypatch.setenv("PLANTED", "sk-planted-0123456789")

    async def work(engine):
        servers[0].always = Reply("you sent Bearer sk-planted-0123456789", 500)
        with pytest.raises(InfrastructureError) as caught:
            await engine.generate(PROMPT, Sampling(max_tokens=1), "s")
        assert "planted" not in str(caught.value) and "[key]" in str(caught.value)

    using(servers, work, api_key_env="PLANTED", retries=0)
    assert servers[0].headers[-1]["authorization"] == "Bearer sk-planted-0123456789"


@pytest.mark.parametrize("staleness", [0, 1])
def test_training_through_servers_is_training_with_the_local_engine(staleness, serve, tmp_path):
    """Two replicas, each with a model of its own that it gets through files; the same steps all the same."""
    changes = {"steps": 3, "staleness": staleness}
    if staleness:
        changes["processes"] = 1
    how = SETTINGS.model_copy(update=changes)
    wanted = run_training(tmp_path / "local", how)
    servers = serve("vllm", 2, model=start_model(5))  # they were started with something else
    engine = asyncio.run(open_engine("vllm", settings(servers), folder=tmp_path / "handed"))
    model = run_training(tmp_path / "served", how, engine=engine)
    asyncio.run(engine.close())
    for a, b in zip(model.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    local_lines, served_lines = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("local", "served")
    )
    for a, b in zip(served_lines, local_lines, strict=True):
        assert a["reward"] == b["reward"] and a["agent_tokens"] == b["agent_tokens"]
        assert a["seconds_weights"] > 0 and a["sampling_gap"] == pytest.approx(b["sampling_gap"], abs=1e-5)
    first, second = (len(s.asked) for s in servers)
    assert first > 20 and second > 20
    assert engine.stats.updates == 4 and VOCAB == 24
