"""Supervised fine-tuning: what is learned, in which order, and that stopping costs nothing."""

import math
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mua.errors import MuaError
from mua.train import SftSettings
from mua.train.optimizer import adamw
from mua.train.sft import batch_order, learning_rate, total_steps, train_sft
from mua.trajectory import Segment


def tiny():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config)


def conversations(count=24):
    g = torch.Generator().manual_seed(0)
    out = []
    for n in range(count):
        segment = Segment()
        segment.add_context([1, *torch.randint(8, 32, (3 + n % 5,), generator=g).tolist()])
        segment.add_sampled([2, 3, 4, 5], [0.0] * 4)
        segment.add_context(torch.randint(8, 32, (2,), generator=g).tolist())
        segment.add_sampled([6, 7], [0.0] * 2)
        out.append(segment)
    return out


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


FAST = SftSettings(lr=1e-2, steps=30, batch_size=8, warmup_steps=3, seed=4)


def test_it_learns_what_the_mask_marks_and_reports_each_step():
    model, lines = tiny(), []
    result = train_sft(model, conversations(), FAST, on_step=lines.append)
    assert [line["step"] for line in lines] == list(range(1, 31)) and result.step == 30
    assert lines[0]["loss"] == pytest.approx(math.log(32), abs=0.3) and result.loss < 0.3
    assert result.tokens == sum(line["tokens"] for line in lines) and not result.stopped
    assert lines[0]["lr"] == pytest.approx(1e-2 / 3) and lines[2]["lr"] == 1e-2 and lines[-1]["lr"] < 1e-4
    # random context cannot be learned: with all tokens in the loss it stays high
    everything = train_sft(tiny(), conversations(), FAST.model_copy(update={"all_tokens_until": 1.0}))
    assert everything.loss > 1.0


def test_all_tokens_count_only_until_their_share_of_the_steps():
    lines = []
    train_sft(
        tiny(), conversations(), FAST.model_copy(update={"all_tokens_until": 0.5}), on_step=lines.append
    )
    assert lines[14]["loss"] > 1.0 > lines[15]["loss"] + 0.3


def test_micro_batches_change_nothing():
    runs = []
    for tokens in (1, 10_000):
        model = tiny()
        train_sft(
            model,
            conversations(),
            SftSettings(lr=1e-3, steps=3, batch_size=8, micro_batch_tokens=tokens, schedule="constant"),
        )
        runs.append(weights(model))
    for key in runs[0]:
        torch.testing.assert_close(runs[0][key], runs[1][key], atol=1e-5, rtol=1e-4)


def test_stop_and_resume_give_the_same_weights():
    straight = tiny()
    train_sft(straight, conversations(), FAST)

    model = tiny()
    optimizer = adamw(model, FAST)
    seen = []
    first = train_sft(
        model,
        conversations(),
        FAST,
        optimizer=optimizer,
        on_step=seen.append,
        should_stop=lambda: len(seen) == 11,
    )
    assert first.stopped and first.step == 11
    fresh = tiny()  # as a new process would: weights and optimizer state from a file
    fresh.load_state_dict(weights(model))
    again = adamw(fresh, FAST)
    again.load_state_dict(optimizer.state_dict())
    last = train_sft(fresh, conversations(), FAST, optimizer=again, start_step=first.step)
    assert last.step == 30 and same(weights(straight), weights(fresh))


@examples(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 99), min_size=1, max_size=80), st.integers(1, 9), st.integers(0, 5))
def test_every_epoch_holds_every_sequence_once(lengths, batch_size, seed):
    per_epoch = math.ceil(len(lengths) / batch_size)
    batches = list(islice(batch_order(lengths, batch_size, seed), 2 * per_epoch))
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(len(lengths)))
    assert batches == list(islice(batch_order(lengths, batch_size, seed), 2 * per_epoch))


def test_steps_and_rates():
    assert total_steps(SftSettings(epochs=2, batch_size=10), 25) == 6
    assert total_steps(SftSettings(steps=7, batch_size=10), 25) == 7
    constant = SftSettings(lr=1.0, schedule="constant", warmup_steps=4)
    assert [learning_rate(constant, s, 9) for s in (1, 4, 9)] == [0.25, 1.0, 1.0]
    cosine = SftSettings(lr=1.0)
    assert [learning_rate(cosine, s, 4) for s in (1, 3)] == pytest.approx([1.0, 0.5])


def test_nothing_to_train_on_and_divergence_are_said_in_words():
    with pytest.raises(MuaError, match="no token to train on"):
        train_sft(tiny(), [Segment([1, 2], [0, 0], [0.0, 0.0])], FAST)
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(MuaError, match=r"diverged.*Lower the learning rate"):
        train_sft(model, conversations(), FAST)
