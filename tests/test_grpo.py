"""The objective against hand-computed values and against a naive loop over single sequences."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mua.train import GrpoSettings
from mua.train.batching import denominators, micro_batches, token_logprobs, trained_length
from mua.train.grpo import Denominators, group_advantages, grpo_loss, kl_estimate
from mua.trajectory import Segment

VOCAB = 61


def tiny():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def ragged():
    """Segments of several lengths whose masks have gaps, as conversations have."""
    g = torch.Generator().manual_seed(0)
    out = []
    for length in (7, 33, 12, 12, 40, 5, 21):
        ids = torch.randint(0, VOCAB, (length,), generator=g).tolist()
        mask = [0, *(torch.rand(length - 1, generator=g) < 0.5).int().tolist()]
        mask[2] = 1
        logprobs = [-4 + 2 * float(torch.rand(1, generator=g)) if m else 0.0 for m in mask]
        out.append(Segment(ids, mask, logprobs))
    out.append(Segment([1, 2, 3], [0, 0, 0], [0.0] * 3))
    return out


def naive_logprobs(model, segment, temperature):
    """Full logits of one sequence, token by token."""
    logits = model(torch.tensor([segment.ids])).logits[0] / temperature
    return [torch.log_softmax(logits[t - 1], -1)[segment.ids[t]] for t in range(1, len(segment.ids))]


def naive_loss(model, ref, segments, advantages, *, s, temperature):
    """The objective as it is written, over single sequences and single tokens."""
    sequences = []
    for segment, advantage in zip(segments, advantages, strict=True):
        at = [t for t in range(1, len(segment.ids)) if segment.mask[t]]
        if not at:
            continue
        new = naive_logprobs(model, segment, temperature)
        with torch.no_grad():
            refs = naive_logprobs(ref, segment, temperature)
        mean = sum(new[t - 1] - segment.logprobs[t] for t in at) / len(at)
        losses = []
        for t in at:
            ratio = torch.exp(mean if s.ratio == "sequence" else new[t - 1] - segment.logprobs[t])
            clipped = min(max(ratio, 1 - s.clip_low), 1 + s.clip_high)
            gain = torch.minimum(ratio * advantage, torch.as_tensor(clipped * advantage))
            if advantage < 0 and s.dual_clip is not None:
                gain = torch.maximum(gain, torch.tensor(s.dual_clip * advantage))
            d = new[t - 1] - refs[t - 1]
            kl = {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) + d - 1}[s.kl]
            losses.append(-gain + s.kl_coefficient * kl)
        sequences.append(losses)
    if s.aggregation == "token_mean":
        return sum(itertools.chain(*sequences)) / sum(map(len, sequences))
    return sum(sum(x) / len(x) for x in sequences) / len(sequences)


def batched(model, ref, segments, advantages, *, s, temperature=1.0, max_tokens=100):
    """Loss (as a number), gradients and metrics of the fast path, cut into micro-batches."""
    model.zero_grad()
    batches = micro_batches(segments, max_tokens)
    count = denominators(batches)
    totals: dict[str, float] = {}
    for batch in batches:
        new, entropy = token_logprobs(
            model,
            batch.ids_BT,
            batch.mask_BT,
            temperature,
            entropy=True,
            entropy_gradient=True,
            chunk_elements=5 * VOCAB,
        )
        with torch.no_grad():
            refs, _ = token_logprobs(ref, batch.ids_BT, batch.mask_BT, temperature)
        rows = torch.tensor([advantages[r] for r in batch.rows])
        loss, metrics = grpo_loss(
            new,
            batch.old_logprobs_BT,
            refs,
            rows,
            batch.mask_BT,
            settings=s,
            denominators=count,
            entropy_BT=entropy,
        )
        loss.backward()
        for key, value in metrics.items():
            totals[key] = totals.get(key, 0.0) + value.item()
    return totals, [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_loss_and_gradient_equal_the_naive_loop(ratio, aggregation, kl):
    s = GrpoSettings(ratio=ratio, aggregation=aggregation, kl=kl, kl_coefficient=0.05)
    model, ref, segments = tiny(), tiny(), ragged()
    with torch.no_grad():
        for p in ref.parameters():
            p.add_(0.02 * torch.randn_like(p))
    advantages = [1.3, -0.7, 0.4, -1.1, 0.9, -2.0, 0.2, 5.0]
    expected = naive_loss(model, ref, segments, advantages, s=s, temperature=0.7)
    expected.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    seen = []
    for max_tokens in (1, 60, 10_000):
        totals, found = batched(model, ref, segments, advantages, s=s, temperature=0.7, max_tokens=max_tokens)
        assert totals["loss"] == pytest.approx(expected.item(), abs=1e-5)
        for a, b in zip(found, gradients, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
        seen.append(totals)
    for key in seen[0]:  # metrics, too, do not depend on how the step was cut
        assert seen[0][key] == pytest.approx(seen[2][key], abs=1e-5), key
    # the cases must be met at all for the comparison to mean something
    assert 0 < seen[0]["clip_fraction"] < 1 and seen[0]["ratio"] != pytest.approx(1, abs=0.01)


def test_entropy_bonus_moves_the_entropy_up_and_is_the_full_distributions():
    model, segments = tiny(), ragged()[:2]
    advantages = [0.0, 0.0]
    s = GrpoSettings(kl_coefficient=0.0, entropy_coefficient=1.0)
    totals, gradients = batched(model, model, segments, advantages, s=s)
    at = [(x, t) for x in segments for t in range(1, len(x.ids)) if x.mask[t]]
    entropies = []
    for x, t in at:
        p = torch.softmax(model(torch.tensor([x.ids])).logits[0, t - 1].detach(), -1)
        entropies.append(-(p * p.log()).sum().item())
    assert totals["entropy"] == pytest.approx(sum(entropies) / len(at), abs=1e-4)
    assert totals["loss"] == pytest.approx(-totals["entropy"], abs=1e-5)
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradients, strict=True):
            p.sub_(1e-3 * g)
    assert batched(model, model, segments, advantages, s=s)[0]["entropy"] > totals["entropy"]


def test_a_model_that_scales_its_logits_takes_the_full_path():
    from transformers import CohereConfig, CohereForCausalLM

    torch.manual_seed(0)
    config = CohereConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        logit_scale=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = CohereForCausalLM(config).eval()
    segment = ragged()[1]
    (batch,) = micro_batches([segment], 100)
    found, _ = token_logprobs(model, batch.ids_BT, batch.mask_BT)
    expected = naive_logprobs(model, segment, 1.0)
    for t in range(1, trained_length(segment)):
        assert found[0, t].item() == pytest.approx(expected[t - 1].item() if segment.mask[t] else 0, abs=1e-5)


def test_advantages():
    assert group_advantages([1, 0, 0, 0], "none").tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25])
    loo = group_advantages([1, 0, 0, 0], "leave_one_out")
    assert loo.tolist() == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])
    std = math.sqrt((0.75**2 + 3 * 0.25**2) / 3)  # over G - 1
    assert group_advantages([1, 0, 0, 0]).tolist() == pytest.approx(
        [0.75 / (std + 1e-6), *[-0.25 / (std + 1e-6)] * 3]
    )
    for constant in ([1.0] * 8, [0.1] * 7, [0.0], []):
        for mode in ("std", "none", "leave_one_out"):
            assert group_advantages(constant, mode).tolist() == [0.0] * len(constant)


def one_token(ratio, advantage, **changes):
    """Loss and its derivative by log π for a single token of that ratio."""
    logprob = torch.tensor([[0.0, math.log(ratio)]], requires_grad=True)
    loss, metrics = grpo_loss(
        logprob,
        torch.zeros(1, 2),
        None,
        torch.tensor([float(advantage)]),
        torch.tensor([[0, 1]]),
        settings=GrpoSettings(**changes),
        denominators=Denominators(1, 1),
    )
    (gradient,) = torch.autograd.grad(loss, logprob)
    assert gradient[0, 0] == 0
    return loss.item(), gradient[0, 1].item(), metrics["clip_fraction"].item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0),
        (1.5, 2.0, -2.4, 0.0, 1),  # good and already likelier: held at 1.2
        (0.5, 2.0, -1.0, -1.0, 0),  # good but less likely: pulled up in full
        (0.5, -2.0, 1.6, 0.0, 1),  # bad and already unlikelier: held at 0.8
        (2.0, -2.0, 4.0, 4.0, 0),  # bad and likelier: pushed down in full
        (5.0, -2.0, 6.0, 0.0, 0),  # … up to the dual clip
    ],
)
def test_clips(ratio, advantage, loss, gradient, clipped):
    assert one_token(ratio, advantage) == pytest.approx((loss, gradient, clipped), abs=1e-5)


def test_without_the_dual_clip_a_likely_bad_token_counts_in_full():
    assert one_token(5.0, -2.0, dual_clip=None)[:2] == pytest.approx((10.0, 10.0), abs=1e-4)


def test_an_absurd_log_ratio_stays_finite():
    for advantage in (1.0, -1.0):
        old = torch.tensor([[0.0, -300.0]])
        loss, _ = grpo_loss(
            torch.zeros(1, 2, requires_grad=True),
            old,
            old,
            torch.tensor([advantage]),
            torch.tensor([[0, 1]]),
            settings=GrpoSettings(dual_clip=None),
            denominators=Denominators(1, 1),
        )
        assert loss.isfinite()


@examples(deadline=None, max_examples=50)
@given(st.lists(st.floats(-5, 0), min_size=2, max_size=5))
def test_kl_estimators(weights):
    """Over the policy's own distribution k1 and k3 average to the KL; k3 is never negative."""
    policy = torch.log_softmax(torch.tensor(weights, dtype=torch.float64), 0)
    ref = policy.flip(0)
    exact = (policy.exp() * (policy - ref)).sum().item()
    for kind in ("k1", "k3"):
        assert (policy.exp() * kl_estimate(policy, ref, kind)).sum().item() == pytest.approx(exact, abs=1e-9)
    assert bool((kl_estimate(policy, ref, "k3") >= -1e-12).all())


@examples(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=30), min_size=1, max_size=12), st.integers(1, 90)
)
def test_micro_batches_hold_every_sampled_token_once(masks, max_tokens):
    segments = []
    for n, mask in enumerate(masks):
        bits = [0, *map(int, mask)]
        segments.append(Segment([n * 31 + t + 1 for t in range(len(bits))], bits, [-0.5 * b for b in bits]))
    batches = micro_batches(segments, max_tokens)
    seen = []
    for batch in batches:
        assert batch.ids_BT.numel() <= max_tokens or batch.ids_BT.shape[0] == 1
        for b, row in enumerate(batch.rows):
            n = trained_length(segments[row])
            assert batch.ids_BT[b, :n].tolist() == segments[row].ids[:n]
            assert not batch.mask_BT[b, n:].any()
        seen += batch.ids_BT[batch.mask_BT].tolist()
        assert (batch.old_logprobs_BT[batch.mask_BT] == -0.5).all()
    assert sorted(seen) == sorted(i for s in segments for i, m in zip(s.ids, s.mask, strict=True) if m)
    if batches:
        count = denominators(batches)
        assert count == (len(seen), sum(1 for s in segments if any(s.mask)))
