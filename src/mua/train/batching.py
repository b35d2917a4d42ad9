"""From token traces to micro-batches, and log-probabilities only where they are needed.

Invariant: the log-probabilities (and their gradient) equal those of one full forward per sequence; how the
segments are cut into micro-batches changes nothing but speed.

The model reads a micro-batch as one row without padding in which every shared prefix stands once
(`train.tree`), or, if its attention cannot do that, as rows padded on the right: the models are causal, so no
sampled token attends to padding and no mask is needed. What comes out, and all that the objective sees, is
padded rows [B, T] in both cases.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..trajectory import Segment
from .activations import has_dropout, kept_tokens
from .grpo import Denominators
from .tree import MIN_SHARED, Tree, build, forward, shared

log = logging.getLogger(__name__)

MOST_TOKENS = {"cpu": 8192, "cuda": 16384}
"""Of a micro-batch by default: more at once are no faster. On a CPU, 16,384 took a small model a fifth longer
than 4,096 to 8,192 (log.md)."""
LEAST_TOKENS = 1024
"""Of a micro-batch where several processes share them: fewer at once are slower."""
RECOMPUTED = 4 / 3
"""Time of an update that computes its activations twice, in units of one that keeps them."""
CHUNK_ELEMENTS = 1 << 25
"""Most logits (positions × vocabulary) held at once: 128 MiB in float32."""


@dataclass(frozen=True)
class MicroBatch:
    """Some segments of a step as padded tensors. B rows, T positions."""

    ids_BT: Tensor
    """int64, padded on the right with 0."""
    mask_BT: Tensor
    """bool, true on sampled ids; false on padding."""
    old_logprobs_BT: Tensor
    """float32, as sampled; 0 elsewhere."""
    rows: tuple[int, ...]
    """Which of the given segments each row is."""
    tokens: int
    """Real tokens, padding left out."""
    tree: Tree | None = None
    """The same segments without their last tokens as one row; None: the model reads the padded rows."""
    recompute: bool = False
    """Its activations would not fit, so they are computed twice instead of kept (`train.activations`)."""

    @property
    def read(self) -> int:
        """Tokens that the model reads, padding included and what is shared counted once."""
        return self.ids_BT.numel() if self.tree is None else len(self.tree.ids_P)

    @property
    def work(self) -> float:
        """Its time, in tokens read once with their activations kept."""
        return self.read * (RECOMPUTED if self.recompute else 1)


def trained_length(segment: Segment) -> int:
    """Tokens up to the last sampled one; what follows it has no influence on any loss. 0: none sampled."""
    for at in range(len(segment.mask) - 1, 0, -1):
        if segment.mask[at]:
            return at + 1
    return 0


@dataclass(frozen=True)
class Room:
    """How many tokens a micro-batch may have by itself, for one model on its device."""

    most: int
    """More at once are no faster."""
    kept: int
    """So many fit with all their activations."""
    recomputed: int = 0
    """So many with activations that are computed twice; 0: that would change the result (dropout)."""

    @classmethod
    def of(cls, model: Any) -> Room:
        most = MOST_TOKENS.get(next(model.parameters()).device.type, MOST_TOKENS["cuda"])
        recomputed = 0 if has_dropout(model) else kept_tokens(model, recomputed=True)
        return cls(most, kept_tokens(model), recomputed)


def batches_for(
    model: Any, segments: Sequence[Segment], max_tokens: int | None = None, shares: int = 1
) -> list[MicroBatch]:
    """`lay_out` as suits the model, on its device."""
    device = next(model.parameters()).device
    return lay_out(segments, Room.of(model), max_tokens, shares, device=device, kind=layout(model))


def lay_out(
    segments: Sequence[Segment],
    room: Room,
    max_tokens: int | None = None,
    shares: int = 1,
    *,
    device: torch.device | str = "cpu",
    kind: Literal["flex", "stretches", "rows"] = "rows",
) -> list[MicroBatch]:
    """`micro_batches` of the size that is fastest.

    `max_tokens` None: as many as fit. Where larger micro-batches share so much more that they are faster
    although they compute their activations twice, they are made and do; so does any that would not fit. Where
    several processes take `shares` of them, they are small enough to be alike.
    """
    sizes = [max_tokens] if max_tokens else [min(room.most, room.kept)]
    if not max_tokens and room.recomputed:
        sizes.append(min(room.most, room.recomputed))
    plans = []
    for size in dict.fromkeys(sizes):
        batches = micro_batches(segments, size, device, kind=kind)
        if not max_tokens and shares > 1:
            alike = max(LEAST_TOKENS, sum(b.read for b in batches) // (4 * shares))
            batches = micro_batches(segments, min(size, alike), device, kind=kind)
        batches = [replace(b, recompute=b.read > room.kept and room.recomputed > 0) for b in batches]
        plans.append((sum(b.work for b in batches), len(plans), batches))
    return min(plans)[2]


def micro_batches(
    segments: Sequence[Segment],
    max_tokens: int,
    device: torch.device | str = "cpu",
    *,
    kind: Literal["flex", "stretches", "rows"] = "rows",
) -> list[MicroBatch]:
    """The segments in as few micro-batches as hold about `max_tokens` each.

    Where the model reads trees (`layout`), a prefix that several segments of a micro-batch have counts once;
    rows are padded, longest first. A segment longer than `max_tokens` stands alone. Segments without a
    sampled token are left out, and the context after the last sampled token is cut. The same segments always
    give the same batches.
    """
    lengths = [trained_length(s) for s in segments]
    rows = [i for i, n in enumerate(lengths) if n]
    padded = kind == "rows"
    parts = _by_length(lengths, rows, max_tokens) if padded else _alike(segments, lengths, rows, max_tokens)
    return [_batch(segments, lengths, part, device, kind) for part in parts]


def _by_length(lengths: Sequence[int], rows: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    order = sorted(rows, key=lambda i: (-lengths[i], i))
    start = 0
    while start < len(order):
        part = order[start : start + max(1, max_tokens // lengths[order[start]])]
        yield part
        start += len(part)


def _alike(
    segments: Sequence[Segment], lengths: Sequence[int], rows: Sequence[int], max_tokens: int
) -> Iterator[list[int]]:
    """Neighbours in the order of their tokens share most."""
    order = sorted(rows, key=lambda i: (segments[i].ids[: lengths[i]], i))
    part: list[int] = []
    tokens = 0
    for row in order:
        new = lengths[row]
        if part:
            both = shared(segments[part[-1]].ids[: lengths[part[-1]]], segments[row].ids[: lengths[row]])
            new -= both if both >= MIN_SHARED else 0
        if part and tokens + new > max_tokens:
            yield part
            part, tokens, new = [], 0, lengths[row]
        part.append(row)
        tokens += new
    if part:
        yield part


def _batch(
    segments: Sequence[Segment], lengths: Sequence[int], rows: Sequence[int], device: Any, kind: str
) -> MicroBatch:
    width = max(lengths[row] for row in rows)
    ids_BT = torch.zeros(len(rows), width, dtype=torch.int64)
    mask_BT = torch.zeros(len(rows), width, dtype=torch.bool)
    old_BT = torch.zeros(len(rows), width, dtype=torch.float32)
    for b, row in enumerate(rows):
        n, segment = lengths[row], segments[row]
        ids_BT[b, :n] = torch.tensor(segment.ids[:n])
        mask_BT[b, :n] = torch.tensor(segment.mask[:n], dtype=torch.bool)
        old_BT[b, :n] = torch.tensor(segment.logprobs[:n])
    inputs = [segments[row].ids[: lengths[row] - 1] for row in rows]
    mask_BT[:, 0] = False  # nothing predicts the first token of a row
    return MicroBatch(
        ids_BT.to(device),
        mask_BT.to(device),
        old_BT.to(device),
        tuple(rows),
        tokens=sum(lengths[row] for row in rows),
        tree=None if kind == "rows" else build(inputs, flex=kind == "flex"),
    )


def denominators(batches: Sequence[MicroBatch]) -> Denominators:
    """The denominators of a whole step."""
    counts = [batch.mask_BT.sum(1) for batch in batches]
    return Denominators(
        tokens=int(sum(c.sum() for c in counts)), sequences=int(sum((c > 0).sum() for c in counts))
    )


def token_logprobs(
    model: Any,
    ids_BT: Tensor,
    mask_BT: Tensor,
    temperature: float = 1.0,
    *,
    tree: Tree | None = None,
    entropy: bool = False,
    entropy_gradient: bool = False,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor | None]:
    """log π(ids[b, t] | ids[b, :t]) at the positions with mask 1, and 0 elsewhere: [B, T] float32.

    `tree`, if given, is what the model reads instead: the same rows, laid out as one. With `entropy`, also
    the entropy of the distribution at the same positions (nats), without gradient unless `entropy_gradient`.
    Logits are divided by `temperature` first, as the engine does when sampling.
    They are computed at those positions only, and in recomputed chunks where there are many: with a
    vocabulary of 150,000 the full logits of a long batch would not fit.
    """
    shape = ids_BT.shape
    wanted_BT = mask_BT[:, 1:]
    targets_N = ids_BT[:, 1:][wanted_BT]
    split = decoder_and_head(model)
    if split is None:
        rows_ND = model(input_ids=ids_BT[:, :-1], use_cache=False).logits[wanted_BT]
        head = _identity
    elif tree is None:
        decoder, head = split
        rows_ND = decoder(input_ids=ids_BT[:, :-1], use_cache=False)[0][wanted_BT]
    else:
        decoder, head = split
        rows_ND = forward(decoder, tree)[_sources(tree, wanted_BT)]
    width = rows_ND.shape[1] if split is None else model.config.get_text_config().vocab_size
    size = max(1, chunk_elements // width)
    score = functools.partial(
        _score, head=head, temperature=temperature, entropy=entropy, gradient=entropy_gradient
    )
    if rows_ND.shape[0] <= size:
        logprobs_N, entropy_N = score(rows_ND, targets_N)
    else:
        parts = []
        for part_ND, part_N in zip(rows_ND.split(size), targets_N.split(size), strict=True):
            if torch.is_grad_enabled():
                parts.append(checkpoint(score, part_ND, part_N, use_reentrant=False))
            else:
                parts.append(score(part_ND, part_N))
        logprobs_N = torch.cat([p[0] for p in parts])
        entropy_N = torch.cat([p[1] for p in parts]) if entropy else None

    at_BT = torch.zeros(shape, dtype=torch.bool, device=ids_BT.device)
    at_BT[:, 1:] = wanted_BT
    logprobs_BT = logprobs_N.new_zeros(shape).masked_scatter(at_BT, logprobs_N)
    if entropy_N is None:
        return logprobs_BT, None
    return logprobs_BT, entropy_N.new_zeros(shape).masked_scatter(at_BT, entropy_N)


def _sources(tree: Tree, wanted_BT: Tensor) -> Tensor:
    """[N] the token of the tree's row that each wanted token follows, in the order of `wanted_BT`."""
    wanted_BT = wanted_BT.cpu()
    parts = []
    for row, wanted_T in enumerate(wanted_BT):
        places = tree.places(row)
        parts.append(places[wanted_T[: len(places)]])
    return torch.cat(parts)


def _score(
    rows_ND: Tensor, targets_N: Tensor, *, head: Any, temperature: float, entropy: bool, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    logits_NV = head(rows_ND)
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    if temperature != 1.0:
        logits_NV = logits_NV / temperature
    all_NV = torch.log_softmax(logits_NV, dim=-1)
    logprobs_N = all_NV.gather(1, targets_N[:, None])[:, 0]
    if not entropy:
        return logprobs_N, None
    with torch.set_grad_enabled(gradient and torch.is_grad_enabled()):
        # A banned token has log-probability -inf; 0 · -inf must count as 0.
        finite_NV = all_NV.clamp(min=torch.finfo(all_NV.dtype).min)
        return logprobs_N, -(all_NV.exp() * finite_NV).sum(-1)


def _identity(x: Tensor) -> Tensor:
    return x


_kinds: weakref.WeakKeyDictionary[Any, Literal["flex", "stretches", "rows"]] = weakref.WeakKeyDictionary()


def layout(model: Any) -> Literal["flex", "stretches", "rows"]:
    """What the model reads: a tree by FlexAttention (GPU), a tree stretch by stretch, or padded rows.

    A tree needs full attention in every layer, through transformers' interface. Whether it gives what rows
    give, gradient included, is tried once a model on a few tokens; what fails or differs is not used.
    """
    if model not in _kinds:
        _kinds[model] = "rows"
        flex = next(model.parameters()).device.type == "cuda"
        for kind in ("flex", "stretches") if flex else ("stretches",):
            if _reads_trees(model, flex=kind == "flex"):
                _kinds[model] = kind
                break
        if _kinds[model] != "flex" and (flex or _kinds[model] == "rows"):
            log.warning("updates of this model read %s: see docs/scale-out.md", _kinds[model])
    return _kinds[model]


def _reads_trees(model: Any, flex: bool) -> bool:
    split = decoder_and_head(model)
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if split is None or kinds - {"full_attention"} or (not kinds and getattr(config, "sliding_window", None)):
        return False
    decoder = split[0]
    if decoder.config._attn_implementation != "sdpa":
        return False
    rows = [[i % config.vocab_size for i in (*range(MIN_SHARED + 4), *more)] for more in ((5, 3), (7, 9))]
    trained = [p for p in decoder.parameters() if p.requires_grad]
    probe = min(trained, key=torch.numel) if trained else None
    training = model.training
    model.eval()
    try:
        with torch.set_grad_enabled(probe is not None):
            tree = build(rows, flex=flex)
            found_BTD = forward(decoder, tree)[torch.stack([tree.places(b) for b in range(len(rows))])]
            ids_BT = torch.tensor(rows, device=found_BTD.device)
            right_BTD = decoder(input_ids=ids_BT, use_cache=False)[0]
            pairs = [(found_BTD, right_BTD)]
            if probe is not None:
                weights_D = torch.linspace(-1, 1, right_BTD.shape[-1]).to(right_BTD)
                pairs.append(
                    tuple(
                        torch.autograd.grad((x @ weights_D).sum(), probe)[0] for x in (found_BTD, right_BTD)
                    )
                )
            return all(_close(found, right) for found, right in pairs)
    except Exception as exc:  # an optional kernel may fail in any way; without it all goes on
        log.warning("this model cannot read prefix trees (flex=%s): %s", flex, exc)
        return False
    finally:
        model.train(training)


def _close(found: Tensor, right: Tensor) -> bool:
    # Norms are computed in float32 whatever the model's dtype.
    eps = max(torch.finfo(right.dtype).eps, torch.finfo(torch.float32).eps)
    tolerance = eps**0.5 * right.detach().abs().max()
    return bool((found - right).detach().abs().max() <= tolerance)


_splits: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def decoder_and_head(model: Any) -> tuple[Any, Any] | None:
    """The parts of a causal LM whose composition gives its logits; None when it has no such parts.

    Some models scale or cap their logits after the head. One forward of two tokens per model tells: the
    parts are used only if they give exactly the model's own logits.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    try:
        decoder, head = base.get_decoder(), base.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    if decoder is None or head is None or decoder is base:
        return None
    if model not in _splits:
        training = model.training
        model.eval()
        with torch.no_grad():
            ids_BT = torch.tensor([[0, 1]], device=head.weight.device)
            whole = model(input_ids=ids_BT, use_cache=False).logits
            try:
                _splits[model] = torch.equal(head(decoder(input_ids=ids_BT, use_cache=False)[0]), whole)
            except (TypeError, RuntimeError):
                _splits[model] = False
        model.train(training)
    return (decoder, head) if _splits[model] else None
