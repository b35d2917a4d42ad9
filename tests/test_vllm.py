"""A real vLLM behind the engine. Not part of the usual tests: `make test-vllm` installs it and runs them."""

from __future__ import annotations

import asyncio
import copy
import json
import os

import pytest
import torch
from peft import PeftModel

from bit_run import SETTINGS, run_training, start_model
from lora_run import lora_run
from mua.engines import Sampling
from mua.engines.local import make_engine
from mua.engines.served import ServerSettings, open_engine
from mua.errors import InfrastructureError
from mua.export import export
from mua.models import load_model, merged, save_model
from mua.tokenizer import train_tokenizer
from vllm_server import BLOCK, VllmServer

PYTHON = os.environ.get("MUA_VLLM", "")
pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="MUA_VLLM names no Python with vLLM: make test-vllm"),
    pytest.mark.timeout(900),
]
PROMPT = [7, 3, 11, 19, 2] * 20


def random_model(seed):
    """A Llama that vLLM serves on a CPU: heads of 32, and an output layer of its own, for there a tied one
    keeps what it was started with."""
    model = start_model(seed, head_dim=32, context=512)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(4 * model.lm_head.weight.detach().clone())
    return model.eval()


MODEL = random_model(0)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Two replicas, started with other weights than those that the tests give them."""
    folder = tmp_path_factory.mktemp("vllm")
    tokenizer = train_tokenizer(["a b c"], 300, [])
    save_model(random_model(9), tokenizer, folder / "model")
    with (
        VllmServer(PYTHON, folder / "model", folder / "one.log") as one,
        VllmServer(PYTHON, folder / "model", folder / "two.log") as two,
    ):
        yield one, two


@pytest.mark.parametrize("form", ["checkpoint and adapter", "merged"])
def test_what_a_run_writes_is_served_by_vllm(form, tmp_path):
    """The folder of a stage, the adapters of a checkpoint beside it, and the merged export, as they are:
    greedy ids and their log-probabilities are those of transformers (with peft) and of our own engine."""
    run = lora_run(tmp_path / "run")
    cold, step = run / "models" / "cold_start", run / "checkpoints" / "step_000002" / "model"
    plain, tokenizer = load_model(cold)
    learned = merged(PeftModel.from_pretrained(load_model(cold)[0], step)).eval()
    prompts = [tokenizer.encode(f"I want to renew {title}.") for title in ("The Winter Atlas", "Moss")]
    if form == "merged":
        export(run, tmp_path / "out")
        server = VllmServer(PYTHON, tmp_path / "out", tmp_path / "log")
        expected = {"agent": learned}
    else:
        server = VllmServer(PYTHON, cold, tmp_path / "log", adapters={"learned": step})
        expected = {"agent": plain.eval(), "learned": learned}

    async def sampled(name):
        engine = await open_engine("vllm", ServerSettings(urls=(server.root,), model=name), folder=tmp_path)
        own = make_engine(expected[name], "auto", slots=4)
        try:
            greedy = Sampling(0.0, max_tokens=24)
            return [
                [await e.generate(p, greedy, f"{n}") for e in (engine, own)] for n, p in enumerate(prompts)
            ]
        finally:
            await engine.close()
            await own.close()

    with server:
        found = {name: asyncio.run(sampled(name)) for name in expected}
    for name, model in expected.items():
        for prompt, (served, own) in zip(prompts, found[name], strict=True):
            logprobs, best = forward(model, prompt, served.token_ids, 0)
            assert served.token_ids == best == own.token_ids and len(best) == 24
            assert served.logprobs == pytest.approx(logprobs, abs=2e-5)
            assert served.logprobs == pytest.approx(own.logprobs, abs=2e-5)
    first = [[served.token_ids for served, _ in pairs] for pairs in found.values()]
    assert form == "merged" or first[0] != first[1]  # the adapters do something


def using(servers, folder, work, **more):
    async def go():
        settings = ServerSettings(urls=tuple(s.root for s in servers), **more)
        engine = await open_engine("vllm", settings, folder=folder, temperature=0.7)
        try:
            await engine.load(MODEL)
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(go())


@torch.no_grad()
def forward(model, prompt, ids, temperature):
    """transformers' log-probabilities of ids after a prompt, and its own choice at each of their places."""
    logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] / (temperature or 1.0)
    return torch.log_softmax(logits, -1)[range(len(ids)), ids].tolist(), logits.argmax(-1).tolist()


def test_ids_and_logprobs_are_those_of_the_model(servers, tmp_path):
    samplings = [Sampling(0.0, max_tokens=40)]
    samplings += [Sampling(t, max_tokens=40, seed=2**60 + n) for n, t in enumerate((1.0, 1.0, 0.7, 1.3))]
    samplings += [Sampling(1.0, max_tokens=40, seed=n, stop_ids=(1, 5, 7)) for n in range(4)]

    async def work(engine):
        one = [await engine.generate(PROMPT, s, f"{n}") for n, s in enumerate(samplings)]
        again = await asyncio.gather(
            *(engine.generate(PROMPT, s, f"again {n}") for n, s in enumerate(samplings))
        )
        return one, again

    one, again = using(servers, tmp_path, work)
    for sampling, found in zip(samplings, one, strict=True):
        logprobs, best = forward(MODEL, PROMPT, found.token_ids, sampling.temperature)
        assert found.logprobs == pytest.approx(logprobs, abs=2e-5)
        if not sampling.temperature:
            assert found.token_ids == best
        stopped = found.token_ids[-1] in sampling.stop_ids
        assert found.stop_reason == ("stop" if stopped else "length")
        assert stopped or len(found.token_ids) == 40
    assert "stop" in {found.stop_reason for found in one}
    # The other replica, in a batch, with the same seeds: the same tokens.
    assert [f.token_ids for f in again] == [f.token_ids for f in one]


def test_sessions_find_their_prefix_in_the_cache_of_their_replica(servers, tmp_path):
    hits = [s.metric("vllm:prefix_cache_hits_total") for s in servers]

    async def work(engine):
        async def episode(name, first):
            ids = [first, *PROMPT]
            for step in range(4):
                done = await engine.generate(ids, Sampling(max_tokens=16, seed=step), name)
                ids += done.token_ids
            return ids

        await asyncio.gather(*(episode(f"s{n}", n) for n in range(8)))

    using(servers, tmp_path, work)
    for server, before in zip(servers, hits, strict=True):
        # Four sessions each; a later step finds all full blocks of what was computed before: the last token
        # that was sampled was not.
        computed = [len(PROMPT) + 1 + 16 * step - 1 for step in (1, 2, 3)]
        expected = 4 * sum(tokens // BLOCK * BLOCK for tokens in computed)
        assert server.metric("vllm:prefix_cache_hits_total") - before == expected


def test_weights_take_effect_and_a_failed_update_is_mended(servers, tmp_path):
    other = random_model(4)
    greedy = Sampling(0.0, max_tokens=20)

    async def work(engine):
        before = await engine.generate(PROMPT, greedy, "s")
        await engine.load(other)
        after = [await engine.generate(PROMPT, greedy, f"{n}") for n in range(4)]
        with pytest.raises(InfrastructureError, match=r"collective_rpc|500"):
            await engine.load(tmp_path / "nothing here")
        await engine.load(MODEL)
        return before, after, await engine.generate(PROMPT, greedy, "s")

    before, after, mended = using(servers, tmp_path / "w", work, rest=0.0)
    assert before.token_ids == mended.token_ids == forward(MODEL, PROMPT, before.token_ids, 0)[1]
    for found in after:
        logprobs, best = forward(other, PROMPT, found.token_ids, 0)
        assert found.token_ids == best and found.logprobs == pytest.approx(logprobs, abs=2e-5)
    assert before.token_ids != after[0].token_ids


def test_grpo_steps_over_vllm(servers, tmp_path):
    """The engine's log-probabilities are those of the model that is trained, before each update."""
    settings = ServerSettings(urls=tuple(s.root for s in servers))
    engine = asyncio.run(open_engine("vllm", settings, folder=tmp_path / "w"))
    model = copy.deepcopy(MODEL)
    how = SETTINGS.model_copy(update={"steps": 3})
    run_training(tmp_path / "run", how, model, engine=engine)
    asyncio.run(engine.close())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert any(line["groups_trained"] for line in lines)
    for line in lines:
        assert line["seconds_weights"] > 0 and line["excluded"] == 0
        if line["groups_trained"]:
            assert line["sampling_gap"] < 1e-4 and line["grad_norm"] > 0
    assert any((a != b).any() for a, b in zip(model.parameters(), MODEL.parameters(), strict=True))
