"""The local engines: exact against a naive forward, independent of their company, sound after faults."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Qwen2Config, Qwen2ForCausalLM

from mua.engines import Completion, Sampling
from mua.engines.continuous import ContinuousEngine
from mua.engines.kv import SlotCache
from mua.engines.local import make_engine
from mua.engines.sampling import Uniforms, draw
from mua.engines.slots import SlotEngine
from mua.errors import InfrastructureError, MuaError
from mua.models import load_model, save_model, tiny_llama

VOCAB = 97


def llama(**kwargs):
    # Wide initial weights: with the usual ones all logits are alike and a wrong position would not show.
    return tiny_llama(
        VOCAB, layers=2, hidden=32, heads=4, kv_heads=2, intermediate=48, context=128,
        initializer_range=0.2, **kwargs,
    )  # fmt: skip


def qwen2():
    torch.manual_seed(1)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=1, max_position_embeddings=128, initializer_range=0.2,
        )
    ).eval()  # fmt: skip


def neox(attention="sdpa"):
    torch.manual_seed(2)
    config = GPTNeoXConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, initializer_range=0.2,
    )  # fmt: skip
    config._attn_implementation = attention
    return GPTNeoXForCausalLM(config).eval()


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, length).tolist() for length in lengths]


def hf_greedy(model, prompt: Sequence[int], count: int) -> list[int]:
    ids = torch.tensor([list(prompt)])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),  # else it takes id 0 for padding
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def naive_logprobs(model, prompt: Sequence[int], completion: Completion, temperature=1.0) -> list[float]:
    ids = [*prompt, *completion.token_ids]
    with torch.no_grad():
        table = (model(torch.tensor([ids])).logits[0].float() / temperature).log_softmax(-1)
    return [table[len(prompt) - 1 + i, t].item() for i, t in enumerate(completion.token_ids)]


def greedy(count=12, **kwargs) -> Sampling:
    return Sampling(temperature=0, max_tokens=count, **kwargs)


def run_all(engine, requests: Sequence[tuple[Sequence[int], Sampling, str]]) -> list[Completion]:
    async def go():
        return await asyncio.gather(*(engine.generate(*request) for request in requests))

    return asyncio.run(go())


# Exactness


@pytest.mark.parametrize("make", [llama, qwen2, neox, lambda: neox("eager")])
def test_greedy_is_what_generate_gives_for_prompts_batched_together(make):
    model = make()
    batch = prompts(1, 5, 33, 17, 60)
    done = run_all(SlotEngine(model, slots=8), [(p, greedy(), f"s{i}") for i, p in enumerate(batch)])
    for prompt, completion in zip(batch, done, strict=True):
        assert completion.token_ids == hf_greedy(model, prompt, 12)
        assert completion.stop_reason == "length"
        assert completion.logprobs == pytest.approx(naive_logprobs(model, prompt, completion), abs=1e-4)


async def chat(engine, name: str, seed: int, steps: int) -> list[tuple[list[int], Completion]]:
    """A conversation: each prompt is the last one, the answer, and a few new ids."""
    rng = np.random.default_rng(seed)
    # Two system prompts, one a part of the other, so that prefixes are shared to different depths.
    ids = prompts(24)[0][: 12 + 12 * (seed % 2)] + rng.integers(0, VOCAB, rng.integers(1, 12)).tolist()
    out = []
    for step in range(steps):
        sampling = Sampling(temperature=0.8, max_tokens=int(rng.integers(1, 20)), seed=100 * seed + step)
        done = await engine.generate(ids, sampling, name)
        out.append((ids, done))
        ids = ids + done.token_ids + rng.integers(0, VOCAB, rng.integers(1, 6)).tolist()
        for _ in range(rng.integers(0, 40)):  # its user thinks, and its row lies idle among busy ones
            await asyncio.sleep(0)
    engine.release(name)
    return out


_MODEL = llama()
_SCHEDULED = {"swap": 0, "copy": 0, "one prefix": 0, "several": 0}


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    chats=st.integers(1, 9),
    slots=st.integers(1, 10),
    budget=st.integers(1, 200),
    patience=st.sampled_from([0, 2, 16]),
    share=st.sampled_from([1, 8, 32]),
    reads=st.sampled_from([1, 20, 4096]),
)
def _conversations(chats, slots, budget, patience, share, reads):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mua.engines.slots._PATIENCE", patience)
        patch.setattr("mua.engines.slots._SHARE", share)
        patch.setattr("mua.engines.slots._SHARED_READS", reads)
        swap, copy, find = SlotEngine._swap, SlotCache.copy, SlotEngine._find_shared

        def counted_find(self, *rows):
            found = find(self, *rows)
            if found is not None:
                _SCHEDULED["one prefix" if len(found.clusters) == 1 else "several"] += 1
            return found

        def counted_swap(self, left, right):
            _SCHEDULED["swap"] += 1
            swap(self, left, right)

        def counted_copy(self, targets, sources, length):
            _SCHEDULED["copy"] += 1
            copy(self, targets, sources, length)

        patch.setattr(SlotEngine, "_find_shared", counted_find)
        patch.setattr(SlotEngine, "_swap", counted_swap)
        patch.setattr(SlotCache, "copy", counted_copy)

        async def go():
            engine = SlotEngine(_MODEL, slots=slots, prefill_tokens=budget)
            return engine, await asyncio.gather(*(chat(engine, f"c{i}", i, 3) for i in range(chats)))

        engine, played = asyncio.run(go())
    assert not engine._busy.any() and not engine._waiting and not engine._pending
    assert engine._rows == {}
    for number, conversation in enumerate(played):
        for prompt, done in conversation:
            assert done.logprobs == pytest.approx(naive_logprobs(_MODEL, prompt, done, 0.8), abs=1e-4)
        assert [done.token_ids for _, done in conversation] == alone(number)


@functools.cache
def alone(number: int) -> list[list[int]]:
    return [d.token_ids for _, d in asyncio.run(chat(SlotEngine(_MODEL, slots=1), "x", number, 3))]


def test_conversations_equal_fresh_computation_however_they_are_scheduled():
    """Eviction, queues, holes, compaction, prefix copies: nothing may change tokens or log-probabilities."""
    _conversations()
    # The moves that could go wrong did happen (a copy of a swap counts in both).
    assert _SCHEDULED["swap"] > 2 and _SCHEDULED["copy"] > _SCHEDULED["swap"] + 5
    assert _SCHEDULED["one prefix"] > 5 and _SCHEDULED["several"] > 5


def test_the_next_step_of_a_session_computes_only_what_is_new():
    engine = SlotEngine(_MODEL, slots=4)
    (first,) = prompts(40)
    (answer,) = run_all(engine, [(first, greedy(6), "a")])
    assert (engine.stats.prefilled, engine.stats.reused, engine.stats.decoded) == (40, 0, 6)
    second = first + answer.token_ids + [1, 2, 3]
    run_all(engine, [(second, greedy(6), "a")])
    # The last sampled id was never fed to the model, so it is computed with the three new ones.
    assert (engine.stats.prefilled, engine.stats.reused) == (40 + 4, 45)
    # A history that was rewritten reuses what is left of it.
    rewritten = second[:20] + [9] * 10
    (done,) = run_all(engine, [(rewritten, greedy(6), "a")])
    assert (engine.stats.prefilled, engine.stats.reused) == (44 + 10, 45 + 20)
    assert done.token_ids == hf_greedy(_MODEL, rewritten, 6)


def test_sessions_with_the_same_system_prompt_compute_it_once():
    engine = SlotEngine(_MODEL, slots=8)
    (system,) = prompts(50)
    batch = [[*system, i, i + 1, i + 2] for i in range(6)]
    done = run_all(engine, [(p, greedy(5), f"s{i}") for i, p in enumerate(batch)])
    assert engine.stats.prefilled == 53 + 5 * 3 and engine.stats.reused == 5 * 50
    assert [d.token_ids for d in done] == [hf_greedy(_MODEL, p, 5) for p in batch]
    # Two more, in one batch, with parts of different length of what different rows hold.
    before = engine.stats.reused
    batch = [[*batch[0], *done[0].token_ids[:3], 5, 6], [*system[:40], 7, 8]]
    more = run_all(engine, [(p, greedy(5), f"m{i}") for i, p in enumerate(batch)])
    assert engine.stats.reused - before == 56 + 40
    assert [d.token_ids for d in more] == [hf_greedy(_MODEL, p, 5) for p in batch]


def test_changed_weights_never_meet_old_keys():
    model = llama()
    engine = SlotEngine(model, slots=4)
    (prompt,) = prompts(30)
    run_all(engine, [(prompt, greedy(4), "a")])
    with torch.no_grad():  # what an optimizer does; noticed without being told
        for parameter in model.parameters():
            parameter.mul_(1.5)
    (done,) = run_all(engine, [(prompt, greedy(8), "a")])
    assert engine.stats.reused == 0
    assert done.token_ids == hf_greedy(model, prompt, 8)
    for parameter in model.parameters():  # behind the version counters: the caller has to tell
        parameter.data.mul_(0.7)
    engine.clear_cache()
    (done,) = run_all(engine, [(prompt, greedy(8), "a")])
    assert engine.stats.reused == 0 and done.token_ids == hf_greedy(model, prompt, 8)


@pytest.mark.parametrize("session", ["a", "b"])
def test_a_cache_cleared_while_a_request_decodes_serves_nobody(session):
    async def go():
        engine = SlotEngine(_MODEL, slots=4)
        (prompt,) = prompts(40)
        task = asyncio.create_task(engine.generate(prompt, greedy(30), "a"))
        for _ in range(12):
            await asyncio.sleep(0)
        assert 0 < engine.stats.decoded < 30
        engine.clear_cache()
        if session == "a":
            await task
        await engine.generate(prompt, greedy(2), session)  # b would copy from the row that still decodes
        await task
        return engine.stats.reused

    assert asyncio.run(go()) == 0


# Sampling


def test_a_seed_gives_the_same_tokens_alone_and_in_company():
    company = [
        (p, Sampling(temperature=1.3, max_tokens=20, seed=i), f"s{i}")
        for i, p in enumerate(prompts(*range(3, 60, 3)))
    ]
    target = (prompts(25, seed=5)[0], Sampling(max_tokens=30, top_p=0.9, seed=42), "t")
    (alone,) = run_all(SlotEngine(_MODEL), [target])
    (*_, among) = run_all(SlotEngine(_MODEL), [*company, target])
    assert alone.token_ids == among.token_ids
    assert alone.logprobs == pytest.approx(among.logprobs, abs=1e-4)
    # The log-probabilities are those before top_p.
    assert alone.logprobs == pytest.approx(naive_logprobs(_MODEL, target[0], alone), abs=1e-4)
    (other,) = run_all(SlotEngine(_MODEL), [(target[0], Sampling(max_tokens=30, top_p=0.9, seed=43), "t")])
    assert other.token_ids != alone.token_ids


def test_frequencies_follow_the_distribution():
    logits_V = torch.tensor([0.0, 1.0, 2.0, -torch.inf, 1.0])
    n = 20_000
    uniform_N = np.array(
        [u.next() for seed in range(n // 50) for u in [Uniforms(seed, 50)] for _ in range(50)]
    )
    for temperature, top_p in [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7)]:
        probs_V = torch.softmax(logits_V / temperature, -1).numpy()
        if top_p < 1:  # 0.575 + 0.212 reaches 0.7: ids 2 and, of two equals, the lower
            probs_V = np.where([False, True, True, False, False], probs_V, 0)
            probs_V = probs_V / probs_V.sum()
        ids, logprobs, sound = draw(
            logits_V.expand(n, -1), np.full(n, temperature), np.full(n, top_p), uniform_N
        )
        counts_V = np.bincount(ids, minlength=5)
        expected_V = n * probs_V
        assert (counts_V[expected_V == 0] == 0).all()
        kept = expected_V > 0
        chi2 = ((counts_V - expected_V)[kept] ** 2 / expected_V[kept]).sum()
        assert chi2 < 20  # four degrees of freedom at most: 1 in 2,000; and the seeds are fixed
        assert all(sound)
        want = torch.log_softmax(logits_V / temperature, -1)[ids]
        assert logprobs == pytest.approx(want.tolist(), abs=1e-6)


def test_drawing_at_the_edges():
    one_N = np.ones(3)
    top = np.nextafter(np.float32(1), np.float32(0))
    # The first id with mass at 0, the last one with mass at the largest number below 1.
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]] * 3)
    assert draw(logits, one_N, one_N, np.array([0.0, top, 0.5], np.float32))[0] == [1, 2, 2]
    # Greedy takes the lowest of equals, in a batch with sampling rows too; its log-probability is at T = 1.
    ids, logprobs, _ = draw(
        torch.tensor([[1.0, 3.0, 3.0]] * 3), np.array([0.0, 1.0, 0.0]), one_N, np.array([0.9, 0.99, 0.9])
    )
    assert (ids[0], ids[2]) == (1, 1) and ids[1] == 2
    assert logprobs[0] == pytest.approx(torch.tensor([1.0, 3.0, 3.0]).log_softmax(-1)[1].item())
    bad = torch.tensor([[0.0, torch.nan, 1.0], [0.0, torch.inf, 1.0], [0.0, 1.0, -torch.inf]])
    assert draw(bad, np.array([1.0, 0.0, 1.0]), one_N, np.zeros(3))[2] == [False, False, True]


# Limits


def test_stop_ids_limits_and_bad_requests():
    engine = SlotEngine(_MODEL, slots=4)
    (prompt,) = prompts(20)
    full = hf_greedy(_MODEL, prompt, 10)
    stop = full[4]
    cut = full[: full.index(stop) + 1]
    (done,) = run_all(engine, [(prompt, greedy(10, stop_ids=(stop,)), "a")])
    assert (done.token_ids, done.stop_reason) == (cut, "stop")
    (long,) = prompts(engine.context - 3)
    (done,) = run_all(engine, [(long, greedy(10), "b")])
    assert done.stop_reason == "length" and len(done.token_ids) == 3
    for bad, sampling in [
        (prompts(engine.context)[0], greedy()),
        ([], greedy()),
        ([VOCAB], greedy()),
        (prompt, Sampling(temperature=-1)),
        (prompt, Sampling(top_p=0)),
        (prompt, greedy(0)),
    ]:
        with pytest.raises(ValueError):
            run_all(engine, [(bad, sampling, "c")])
    assert run_all(engine, [(prompt, greedy(10), "d")])[0].token_ids == full


def test_fewer_slots_than_sessions():
    engine = SlotEngine(_MODEL, slots=2)
    batch = prompts(*range(10, 20))
    for _ in range(2):
        done = run_all(engine, [(p, greedy(6), f"s{i}") for i, p in enumerate(batch)])
        assert [d.token_ids for d in done] == [hf_greedy(_MODEL, p, 6) for p in batch]
    assert engine.stats.evicted == 18
    # The least recently used session goes first: c takes b's row, a keeps its own.
    for name, prompt in [("a", batch[0]), ("b", batch[1]), ("a", batch[0]), ("c", batch[2])]:
        run_all(engine, [(prompt, greedy(6), name)])
    before = engine.stats.reused
    run_all(engine, [(batch[0], greedy(6), "a")])
    assert engine.stats.reused - before == len(batch[0]) - 1


def test_two_calls_of_one_session_run_one_after_the_other():
    engine = SlotEngine(_MODEL, slots=4)
    one, two = prompts(12, 30)
    done = run_all(engine, [(one, greedy(8), "same"), (two, greedy(8), "same")])
    assert [d.token_ids for d in done] == [hf_greedy(_MODEL, p, 8) for p in (one, two)]


# Faults


def test_cancelling_frees_the_row_and_leaves_the_others_alone():
    async def go():
        engine = SlotEngine(_MODEL, slots=2)
        batch = prompts(10, 11, 12)
        tasks = [asyncio.create_task(engine.generate(p, greedy(40), f"s{i}")) for i, p in enumerate(batch)]
        for _ in range(12):
            await asyncio.sleep(0)
        tasks[0].cancel()  # decoding; the third waits for its row
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        done = await asyncio.gather(*tasks[1:])
        waiting = asyncio.create_task(engine.generate(batch[0], greedy(40), "w"))
        await asyncio.sleep(0)
        waiting.cancel()  # before it got a row
        await asyncio.gather(waiting, return_exceptions=True)
        assert not engine._busy.any() and not engine._waiting
        return batch, done

    batch, done = asyncio.run(go())
    assert [d.token_ids for d in done] == [hf_greedy(_MODEL, p, 40) for p in batch[1:]]


def _poison(model, value):
    """Makes one row's logits bad: the embedding of id 3."""
    with torch.no_grad():
        model.get_input_embeddings().weight[3] = value


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_fail_the_request_and_leave_the_engine_usable(value):
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    healthy = model.get_input_embeddings().weight[3].clone().detach()
    engine = SlotEngine(model, slots=4)
    # Prompts with and without the poisoned id; one meets it only when decoding, after its prompt.
    clean, other = [[t for t in p if t != 3] for p in prompts(30, 20)]
    _poison(model, value)

    async def go():
        return await asyncio.gather(
            engine.generate([3, *clean], greedy(5), "bad"),
            engine.generate(clean, greedy(5), "good"),
            engine.generate(other, greedy(5), "other"),
            return_exceptions=True,
        )

    bad, good, _ = asyncio.run(go())
    assert isinstance(bad, InfrastructureError) and "not finite" in str(bad)
    # Its neighbour in the batch keeps its keys and values.
    assert isinstance(good, Completion) and good.token_ids == hf_greedy(model, clean, 5)
    _poison(model, healthy)
    for _ in range(2):  # all rows get used again, the wiped ones too
        batch = prompts(60, 7, 21, 9, seed=4)  # short ones in rows that held long ones
        done = run_all(engine, [(p, greedy(6), f"n{i}") for i, p in enumerate(batch)])
        assert [d.token_ids for d in done] == [hf_greedy(model, p, 6) for p in batch]


def test_a_forward_that_raises_fails_its_requests_only():
    model = llama()
    engine = SlotEngine(model, slots=4)
    (prompt,) = prompts(20)
    forward = model.forward
    calls = 0

    def failing(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("out of memory")
        return forward(*args, **kwargs)

    model.forward = failing
    with pytest.raises(InfrastructureError, match="out of memory"):
        run_all(engine, [(prompt, greedy(8), "a")])
    (done,) = run_all(engine, [(prompt, greedy(8), "a")])
    model.forward = forward
    assert done.token_ids == hf_greedy(model, prompt, 8)


def test_the_training_flag_comes_back():
    model = llama()
    model.train()
    engine = SlotEngine(model)
    run_all(engine, [(prompts(5)[0], greedy(3), "a")])
    assert model.training and not any(p.is_inference() for p in model.parameters())


def test_closing_fails_what_is_on_its_way():
    async def go():
        engine = SlotEngine(_MODEL)
        task = asyncio.create_task(engine.generate(prompts(5)[0], greedy(100), "a"))
        await asyncio.sleep(0)
        await engine.close()
        with pytest.raises(InfrastructureError):
            await task
        with pytest.raises(InfrastructureError):
            await engine.generate([1], greedy(), "a")

    asyncio.run(go())


def test_two_engines_in_one_loop_play_against_each_other():
    """Agent and user models: episodes hop between the engines; the loop's other tasks get their turns."""
    agent, user = SlotEngine(_MODEL, slots=6), SlotEngine(llama(seed=1), slots=3)

    async def episode(i: int) -> list[int]:
        ids = prompts(8, seed=i)[0]
        for step in range(6):
            engine = (agent, user)[step % 2]
            done = await engine.generate(ids, Sampling(max_tokens=1 + (i + step) % 5, seed=step), f"e{i}")
            ids = ids + done.token_ids
        return ids

    async def go():
        ticks = 0

        async def clock():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(clock())
        ids = await asyncio.wait_for(asyncio.gather(*(episode(i) for i in range(8))), 60)
        ticking.cancel()
        return ids, ticks, agent.stats.forwards + user.stats.forwards

    first = asyncio.run(go())
    assert first[1] >= first[2]
    assert asyncio.run(go())[0] == first[0]


# The continuous engine


def test_continuous_engine_equals_generate_and_the_slot_engine():
    batch = prompts(5, 40, 17, 90)
    mixed = [
        greedy(8),
        Sampling(max_tokens=8, seed=3),
        Sampling(temperature=0.7, top_p=0.5, max_tokens=8, seed=4),
        greedy(8, stop_ids=(hf_greedy(_MODEL, batch[3], 3)[2],)),
    ]
    requests = [(p, s, f"s{i}") for i, (p, s) in enumerate(zip(batch, mixed, strict=True))]
    model = llama()
    model.train()

    async def go():
        engine = ContinuousEngine(model)
        try:
            first = await asyncio.gather(*(engine.generate(*request) for request in requests))
            assert model.training
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.3)
            changed = await engine.generate(batch[3], greedy(8), "s3")
            task = asyncio.create_task(engine.generate(batch[0], greedy(100), "x"))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            _poison(model, torch.nan)
            with pytest.raises(InfrastructureError, match="not finite"):
                await engine.generate([3, 4], greedy(50), "n")
        finally:
            await engine.close()
        return first, changed

    first, changed = asyncio.run(go())
    assert first[0].token_ids == hf_greedy(_MODEL, batch[0], 8)
    same = run_all(SlotEngine(_MODEL), requests)
    assert [(d.token_ids, d.stop_reason) for d in first] == [(d.token_ids, d.stop_reason) for d in same]
    for ours, theirs in zip(first, same, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    scaled = llama()
    with torch.no_grad():
        for parameter in scaled.parameters():
            parameter.mul_(1.3)
    assert changed.token_ids == hf_greedy(scaled, batch[3], 8)


def test_make_engine():
    assert isinstance(make_engine(_MODEL), SlotEngine)
    assert isinstance(make_engine(_MODEL, "continuous"), ContinuousEngine)
    with pytest.raises(MuaError, match="auto, slots or continuous"):
        make_engine(_MODEL, "vllm")  # type: ignore[arg-type]
    windowed = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, use_sliding_window=True, sliding_window=16,
            max_window_layers=0,
        )
    )  # fmt: skip
    with pytest.raises(MuaError, match="full attention"):
        make_engine(windowed)
    make_engine(windowed, context=16)


# Models


def test_tiny_llama_is_made_by_its_seed_alone():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, two, other = llama(), llama(), llama(seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [model.get_input_embeddings().weight for model in (one, two, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert one.lm_head.weight is weights[0]


def test_a_saved_model_comes_back_and_a_failed_save_leaves_the_old_one(tmp_path, monkeypatch):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    )
    folder = tmp_path / "model"
    save_model(_MODEL, tokenizer, folder)
    model, loaded = load_model(folder)
    assert loaded.get_vocab() == tokenizer.get_vocab() and not model.training
    for name, tensor in _MODEL.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    save_model(llama(seed=1), tokenizer, folder)  # replaces
    assert torch.equal(load_model(folder)[0].lm_head.weight, llama(seed=1).lm_head.weight)

    def full_disk(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full_disk)
    with pytest.raises(OSError):
        save_model(_MODEL, tokenizer, folder)
    monkeypatch.undo()
    assert torch.equal(load_model(folder)[0].lm_head.weight, llama(seed=1).lm_head.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_what_is_no_model_is_said_in_words(tmp_path, monkeypatch):
    with pytest.raises(MuaError, match="no model folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(MuaError, match=r"no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(MuaError, match="not valid JSON"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(MuaError, match="cannot be loaded"):
        load_model(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MuaError, match=r"mua\[smollm\]"):
        load_model("smollm2")
