"""Prefix trees: one row that shares what sequences share gives what one forward a sequence gives."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mua.train import activations
from mua.train import tree as trees
from mua.train.batching import batches_for, layout, micro_batches, token_logprobs
from mua.train.tree import build, shared
from mua.trajectory import Segment

VOCAB = 61


def model(kind="Llama", **more):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        **more,
    )
    return getattr(transformers, f"{kind}ForCausalLM")(config).double().eval()


def family(seed=0):
    """Segments as a step has them: groups under one system prompt, one of them rewritten in the middle, one
    the beginning of another, two equal, and one without anything sampled."""
    rng = random.Random(seed)

    def words(n):
        return [rng.randrange(VOCAB) for _ in range(n)]

    system, out = words(40), []
    for _ in range(2):
        opening = [*system, *words(20)]
        out += [opening + words(rng.randrange(10, 40)) for _ in range(3)]
    out += [out[0] + words(9), out[0][:70] + words(30), list(out[1]), words(25), system + words(4)]
    segments = []
    for ids in out:
        mask = [0, 0, 1, *(int(rng.random() < 0.5) for _ in ids[3:])]
        segments.append(Segment(ids, mask, [-2.0 if m else 0.0 for m in mask]))
    return [*segments, Segment(words(20), [0] * 20, [0.0] * 20)]


def score(model, batches, weights):
    """Weighted sum of all log-probabilities, its gradient, and the log-probabilities by segment."""
    model.zero_grad()
    found = {}
    for batch in batches:
        with activations.recomputing(model, batch.recompute):
            logprobs_BT, _ = token_logprobs(model, batch.ids_BT, batch.mask_BT, 1.3, tree=batch.tree)
            sum(weights[row] * logprobs_BT[b].sum() for b, row in enumerate(batch.rows)).backward()
        assert batch.tree is None or "_masks" not in vars(batch.tree)  # a step's trees are all alive at once
        for b, row in enumerate(batch.rows):
            found[row] = logprobs_BT[b][batch.mask_BT[b]].detach()
    return found, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def naive(model, segments, weights):
    """One forward a sequence, with the logits of all its tokens."""
    model.zero_grad()
    found = {}
    for row, segment in enumerate(segments):
        if not any(segment.mask):
            continue
        all_TV = (model(torch.tensor([segment.ids]), use_cache=False).logits[0] / 1.3).log_softmax(-1)
        wanted = [t for t, m in enumerate(segment.mask) if m]
        logprobs = torch.stack([all_TV[t - 1, segment.ids[t]] for t in wanted])
        (weights[row] * logprobs.sum()).backward()
        found[row] = logprobs.detach()
    return found, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def lora(base):
    from peft import LoraConfig, get_peft_model

    out = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    for name, p in out.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.2)
    return out.double().eval()


def checkpointed(base):
    activations.recompute(base, True)
    return base.train()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(model, id="llama"),
        pytest.param(lambda: model("Qwen3", head_dim=16), id="qwen3"),
        pytest.param(lambda: model("Qwen2", tie_word_embeddings=True), id="tied"),
        pytest.param(lambda: lora(model()), id="lora"),
        pytest.param(lambda: checkpointed(model()), id="checkpointed"),
    ],
)
@pytest.mark.parametrize("max_tokens", [1, 150, 10_000])
def test_log_probabilities_and_gradients_are_those_of_single_forwards(make, max_tokens):
    trained, segments = make(), family()
    weights = [random.Random(i).uniform(-2, 2) for i in range(len(segments))]
    assert layout(trained) == "stretches"
    batches = micro_batches(segments, max_tokens, kind="stretches")
    found, gradients = score(trained, batches, weights)
    right, expected = naive(trained, segments, weights)
    assert found.keys() == right.keys()
    for row in right:
        torch.testing.assert_close(found[row].double(), right[row], rtol=1e-5, atol=1e-5)
    assert gradients.keys() == expected.keys()
    for name in expected:
        scale = max(1.0, float(expected[name].abs().max()))
        torch.testing.assert_close(gradients[name] / scale, expected[name] / scale, rtol=0, atol=1e-6)


def test_flex_attention_gives_the_same(monkeypatch):
    """The GPU's way, uncompiled: PyTorch refuses its gradient on a CPU because the compiler has none."""
    import transformers.integrations.flex_attention as theirs
    from torch.nn.attention import flex_attention as flex

    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(
        theirs,
        "compile_friendly_flex_attention",
        lambda q, k, v, training=False, **how: flex.flex_attention(q, k, v, **how),
    )
    trained, segments = model().float(), family()
    weights = [1.0] * len(segments)
    batches = micro_batches(segments, 150, kind="flex")
    assert all(batch.tree.flex for batch in batches)
    found, gradients = score(trained, batches, weights)
    right, expected = naive(trained, segments, weights)
    for row in right:
        torch.testing.assert_close(found[row], right[row], rtol=1e-4, atol=1e-4)
    for name in expected:
        torch.testing.assert_close(gradients[name], expected[name], rtol=1e-4, atol=1e-3)


def test_what_is_shared_is_computed_once():
    segments = family()
    (batch,) = micro_batches(segments, 10_000, kind="stretches")
    inputs = [s.ids[: max(t for t, m in enumerate(s.mask) if m)] for s in segments if any(s.mask)]
    prefixes = {tuple(ids[: n + 1]) for ids in inputs for n in range(len(ids))}
    # Shared stretches shorter than MIN_SHARED are the only ones computed twice.
    assert len(prefixes) <= len(batch.tree.ids_P) < len(prefixes) + 5 * trees.MIN_SHARED
    assert len(prefixes) < 0.6 * batch.tokens


token = st.integers(0, 2)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12), st.lists(token, max_size=9)), max_size=9),
    st.integers(1, 5),
    st.integers(1, 40),
)
@examples(max_examples=200, deadline=None)
def test_trees_hold_every_sequence(parts, least, max_tokens):
    """Each sequence grows from a beginning of an earlier one; small alphabets make more of them alike."""
    sequences = [[]]
    for source, keep, more in parts:
        sequences.append(sequences[source % len(sequences)][:keep] + more)
    before, trees.MIN_SHARED = trees.MIN_SHARED, least
    try:
        tree = build(sequences)
    finally:
        trees.MIN_SHARED = before
    count = len(tree.ids_P)
    assert count <= sum(map(len, sequences))
    attends = torch.zeros(count, count, dtype=torch.bool)  # by the paths, token by token
    starts = tree.starts
    for path in tree.paths:
        own = torch.cat([torch.arange(starts[s], starts[s] + tree.lengths[s]) for s in path])
        for at, place in enumerate(own.tolist()):
            attends[place, own[: at + 1]] = True
    for number, ids in enumerate(sequences):
        places = tree.places(number)
        assert tree.ids_P[places].tolist() == ids
        assert tree.positions_P[places].tolist() == list(range(len(ids)))
        if ids:
            assert attends[places[-1]].nonzero()[:, 0].tolist() == places.tolist()
    if count:  # FlexAttention's rule says the same
        at = torch.arange(count)
        assert torch.equal((at[:, None] >= at) & (at[:, None] < tree.ends_P), attends)

    segments = [Segment(ids, [0, *[1] * (len(ids) - 1)], [0.0] * len(ids)) for ids in sequences if ids]
    batches = micro_batches(segments, max_tokens, kind="stretches")
    rows = sorted(row for batch in batches for row in batch.rows)
    assert rows == [i for i, s in enumerate(segments) if len(s.ids) > 1]
    assert all(len(batch.rows) == 1 or len(batch.tree.ids_P) <= max_tokens + 16 for batch in batches)


@given(st.lists(token, max_size=20), st.lists(token, max_size=20))
def test_common_prefixes(left, right):
    n = shared(left, right)
    assert left[:n] == right[:n]
    assert n == min(len(left), len(right)) or left[n] != right[n]


def test_models_that_cannot_share_read_rows(caplog):
    windowed = model("Mistral", sliding_window=8)
    assert layout(windowed) == "rows"
    segments = family()
    batches = batches_for(windowed, segments, 10_000)
    assert all(batch.tree is None for batch in batches)
    weights = [1.0] * len(segments)
    found, _ = score(windowed, batches, weights)
    right, _ = naive(windowed, segments, weights)
    for row in right:
        torch.testing.assert_close(found[row].double(), right[row], rtol=1e-5, atol=1e-5)


def test_attention_that_is_not_what_it_should_be_is_found_out(monkeypatch):
    monkeypatch.setattr(trees, "_by_stretches", lambda q, k, v, tree, scaling: q.transpose(1, 2))
    assert layout(model()) == "rows"
    eager = model()
    eager.set_attn_implementation("eager")
    assert layout(eager) == "rows"


def test_what_does_not_fit_is_computed_twice(monkeypatch):
    """Bit for bit the same. Larger micro-batches that must do so are made where they share enough to pay."""
    rng = random.Random(0)
    system = [rng.randrange(VOCAB) for _ in range(180)]
    alike = [system + [rng.randrange(VOCAB) for _ in range(20)] for _ in range(8)]
    segments = [Segment(ids, [0] * 185 + [1] * 15, [0.0] * 200) for ids in alike]
    weights = [rng.uniform(-2, 2) for _ in segments]
    one = 10 << 10  # bytes of a token's activations in this model; 5.5 KB are left when they are recomputed

    def made(tokens):
        monkeypatch.setattr(activations, "CPU_BYTES", tokens * one)
        trained = model()
        out = batches_for(trained, segments)
        assert not activations.recomputes(trained)
        return out, score(trained, out, weights)

    whole, (found, gradients) = made(400)
    assert [(b.read, b.recompute) for b in whole] == [(180 + 8 * 19, False)]
    twice, (found2, gradients2) = made(230)
    assert [(b.read, b.recompute) for b in twice] == [(180 + 8 * 19, True)]
    assert all(torch.equal(found[row], found2[row]) for row in found)
    assert all(torch.equal(gradients[name], gradients2[name]) for name in gradients)
    single, _ = made(100)  # not one fits, even so
    assert [(b.read, b.recompute) for b in single] == [(199, True)] * 8


def test_a_model_with_dropout_is_never_switched_to_training_mode(monkeypatch):
    monkeypatch.setattr(activations, "CPU_BYTES", 1)
    assert not any(b.recompute for b in batches_for(model(attention_dropout=0.1), family()))


def test_several_processes_get_shares_alike():
    batches = batches_for(model(), [s for seed in range(60) for s in family(seed)], shares=2)
    sizes = [sum(b.read for b in batches[n::2]) for n in range(2)]
    assert len(batches) > 2 and max(sizes) < 1.35 * min(sizes)
