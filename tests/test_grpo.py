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
from mua.train.grpo import Denominators, add_metrics, group_advantages, grpo_loss, kl_estimate
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


def naive_objective(sequences, s):
    """The objective as it is written, over single sequences and single tokens.

    `sequences` are lists of (log π, engine's, start's, reference's, advantage) of the sampled tokens.
    """
    losses = []
    for tokens in sequences:
        if not tokens:
            continue
        base = [old if s.correction == "none" else start for _, old, start, _, _ in tokens]
        mean = sum(new - b for (new, *_), b in zip(tokens, base, strict=True)) / len(tokens)
        product = math.exp(sum(float(start - old) for _, old, start, _, _ in tokens))
        of_one = []
        for (new, old, start, ref, advantage), b in zip(tokens, base, strict=True):
            ratio = torch.exp(new - b)
            if s.ratio == "sequence":
                ratio = torch.exp(mean)
            elif s.ratio == "sequence_token":
                ratio = torch.exp(mean).detach() * torch.exp(new) / torch.exp(new).detach()
            clipped = min(max(ratio, 1 - s.clip_low), 1 + s.clip_high)
            gain = torch.minimum(ratio * advantage, torch.as_tensor(clipped * advantage))
            if advantage < 0 and s.dual_clip is not None:
                gain = torch.maximum(gain, torch.as_tensor(s.dual_clip * advantage))
            if s.correction != "none":
                weight = product if s.correction == "sequence" else math.exp(float(start - old))
                gain = gain * min(weight, s.correction_cap)
            d = new - ref
            kl = {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) + d - 1}[s.kl]
            of_one.append(-gain + (s.kl_coefficient * kl if s.kl_in == "loss" else 0))
        losses.append(of_one)
    if s.aggregation == "token_mean":
        return sum(itertools.chain(*losses)) / sum(map(len, losses))
    if s.aggregation == "sequence_mean":
        return sum(sum(x) / len(x) for x in losses) / len(losses)
    return sum(sum(x) / s.constant_length for x in losses) / len(losses)


def naive_loss(model, ref, segments, advantages, *, s, temperature):
    """The objective over full forwards of single sequences; π_start is the model as it is."""
    sequences = []
    for segment, advantage in zip(segments, advantages, strict=True):
        new = naive_logprobs(model, segment, temperature)
        with torch.no_grad():
            refs = naive_logprobs(ref, segment, temperature)
        sequences.append(
            [
                (new[t - 1], segment.logprobs[t], new[t - 1].detach(), refs[t - 1], advantage)
                for t in range(1, len(segment.ids))
                if segment.mask[t]
            ]
        )
    return naive_objective(sequences, s)


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
        add_metrics(totals, metrics)
    return totals, [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "changes",
    [
        {"kl": "k1"},
        {"preset": "paper", "kl": "k2"},
        {"preset": "gspo", "ratio": "sequence_token"},
        {"preset": "dr_grpo", "constant_length": 9},
    ],
    ids=["token", "paper", "gspo", "dr_grpo"],
)
def test_loss_and_gradient_equal_the_naive_loop(changes):
    """From the ids to the parameters' gradients, however the segments are cut into micro-batches."""
    s = GrpoSettings(**{"kl_coefficient": 0.05, **changes})
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


@examples(deadline=None, max_examples=150)
@given(data=st.data())
def test_every_objective_equals_the_naive_loop(data):
    s = GrpoSettings(
        ratio=data.draw(st.sampled_from(["token", "sequence", "sequence_token"])),
        clip_low=data.draw(st.sampled_from([0.2, 3e-4])),
        clip_high=data.draw(st.sampled_from([0.2, 0.28, 4e-4])),
        dual_clip=data.draw(st.sampled_from([None, 3.0, 1.2])),
        kl=data.draw(st.sampled_from(["k1", "k2", "k3"])),
        kl_coefficient=data.draw(st.sampled_from([0.0, 0.1])),
        kl_in=data.draw(st.sampled_from(["loss", "reward"])),
        aggregation=data.draw(st.sampled_from(["token_mean", "sequence_mean", "constant"])),
        constant_length=data.draw(st.integers(1, 9)),
        correction=data.draw(st.sampled_from(["none", "token", "sequence"])),
        correction_cap=data.draw(st.sampled_from([0.5, 1.5])),
    )
    masks = data.draw(
        st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4).filter(
            lambda rows: any(map(any, rows))
        )
    )
    mask = torch.tensor(masks)
    seed = data.draw(st.integers(0, 2**32 - 1))
    g = torch.Generator().manual_seed(seed)
    new, old, start, ref = (
        -1 + 0.7 * torch.randn(mask.shape, generator=g, dtype=torch.float64) for _ in range(4)
    )
    one_update = data.draw(st.booleans())
    if one_update:
        start = new
    by_token = data.draw(st.booleans())
    advantages = torch.randn(mask.shape if by_token else mask.shape[:1], generator=g, dtype=torch.float64)
    each = advantages if by_token else advantages[:, None].expand(mask.shape)
    count = Denominators(int(mask.sum()), int(mask.any(1).sum()))

    leaf = new.clone().requires_grad_()
    totals: dict[str, float] = {}
    for rows in (slice(0, 1), slice(1, None)):  # in two micro-batches
        if mask[rows].numel():
            loss, metrics = grpo_loss(
                leaf[rows], old[rows], ref[rows], advantages[rows], mask[rows],
                settings=s, denominators=count, start_logprobs_BT=None if one_update else start[rows],
            )  # fmt: skip
            loss.backward()
            add_metrics(totals, metrics)

    naive = new.clone().requires_grad_()
    sequences = [
        [(naive[b, t], old[b, t], start[b, t], ref[b, t], each[b, t]) for t in range(5) if mask[b, t]]
        for b in range(len(mask))
    ]
    expected = naive_objective(sequences, s)
    expected.backward()
    assert totals["loss"] == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(leaf.grad, naive.grad, atol=1e-5, rtol=1e-5)

    gaps = [float(start[b, t] - old[b, t]) for b, t in mask.nonzero()]
    assert totals["sampling_gap"] == pytest.approx(sum(map(abs, gaps)) / len(gaps))
    assert totals["sampling_gap_max"] == pytest.approx(max(map(abs, gaps)))
    assert totals["sampling_kl"] == pytest.approx(sum(math.exp(x) - 1 - x for x in gaps) / len(gaps))
    if s.correction != "sequence":
        over = sum(math.exp(x) > s.correction_cap for x in gaps)
        assert totals["truncated"] == pytest.approx(over / len(gaps))


def test_the_correction_makes_the_expectation_that_of_the_trained_model():
    """With w = π_start / μ, Σ_a μ(a) w(a) g(a) = Σ_a π_start(a) g(a): sampled from the wrong probabilities,
    the gradient is right. Without the correction it is not."""
    engine = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    advantages = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)

    def gradient(behaviour, **changes):
        total = torch.zeros(3, dtype=torch.float64)
        for action, share in enumerate(behaviour):
            logits = torch.tensor([0.1, 0.4, -0.3], dtype=torch.float64, requires_grad=True)
            new = torch.log_softmax(logits, 0)[action].reshape(1, 1)
            loss, _ = grpo_loss(
                new, share.log().reshape(1, 1), None, advantages[action : action + 1],
                torch.ones(1, 1), settings=GrpoSettings(**changes), denominators=Denominators(1, 1),
            )  # fmt: skip
            loss.backward()
            total += share * logits.grad
        return total

    trained = torch.softmax(torch.tensor([0.1, 0.4, -0.3], dtype=torch.float64), 0)
    right = gradient(trained)
    torch.testing.assert_close(gradient(engine, correction="token", correction_cap=100.0), right)
    assert not torch.allclose(gradient(engine, correction="token", correction_cap=0.5), right)
    assert not torch.allclose(gradient(engine), right)  # the clip cuts what the gap made look like an update


def test_presets_set_what_is_not_set():
    assert GrpoSettings(preset="code") == GrpoSettings(
        preset="code", **GrpoSettings().model_dump(exclude={"preset"})
    )
    gspo = GrpoSettings(preset="gspo", kl_coefficient=0.5)
    assert (gspo.ratio, gspo.clip_low, gspo.clip_high, gspo.kl_coefficient) == ("sequence", 3e-4, 4e-4, 0.5)
    assert GrpoSettings.model_validate(gspo.model_dump()) == gspo
    with pytest.raises(ValueError, match="needs constant_length"):
        GrpoSettings(preset="dr_grpo")


def test_the_largest_of_a_metric_is_kept_and_a_nan_is_not_lost():
    sums: dict[str, float] = {}
    for loss, most in ((1.0, 3.0), (2.0, math.nan), (3.0, 5.0)):
        add_metrics(sums, {"loss": loss, "ratio_max": most})
    assert sums["loss"] == 6.0 and math.isnan(sums["ratio_max"])


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
