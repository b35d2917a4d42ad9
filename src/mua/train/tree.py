"""Several sequences in one row, with every prefix that they share in it once.

The sequences of a step are alike: all begin with one system prompt, those of a group with one opening, and
those whose template rewrote history with all that came before. Laid out as a tree in depth-first order, each
token attending to its ancestors and itself, the row gives the hidden states of one forward a sequence, for
fewer tokens and without padding. Sequences that share nothing are a tree too, and so simply packed.

Invariant: hidden states and gradients are those of one full forward a sequence; no sequence attends to
another.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward

MIN_SHARED = 16
"""Shorter common stretches are computed for each sequence: an attention call of their own costs more."""
BLOCK = 128
"""FlexAttention's blocks: a row's length is made a multiple of it."""


@dataclass(frozen=True)
class Tree:
    """Sequences as one row: P tokens in S stretches, each stretch one edge of the tree."""

    ids_P: Tensor
    """int64, depth-first."""
    positions_P: Tensor
    """int64, the place of each token in its sequence."""
    lengths: tuple[int, ...]
    """[S] tokens of each stretch, in the row's order."""
    paths: tuple[tuple[int, ...], ...]
    """[S] the stretches that each one attends to, from the root to itself."""
    leaves: tuple[int, ...]
    """The stretch that each of the given sequences ends with; -1 for an empty sequence."""
    flex: bool = False
    """Attend by FlexAttention, one kernel for the whole row (GPU), and not stretch by stretch."""

    @functools.cached_property
    def starts(self) -> tuple[int, ...]:
        """[S] where each stretch begins in the row."""
        return tuple(itertools.accumulate(self.lengths, initial=0))[:-1]

    @functools.cached_property
    def ends_P(self) -> Tensor:
        """int64, the place behind the last token that attends to each token: its subtree's end."""
        ends = [0] * len(self.lengths)
        for path, start, length in zip(self.paths, self.starts, self.lengths, strict=True):
            for stretch in path:
                ends[stretch] = max(ends[stretch], start + length)
        return torch.tensor(ends).repeat_interleave(torch.tensor(self.lengths))

    @functools.cached_property
    def _masks(self) -> dict[tuple[int, int, torch.dtype], Tensor]:
        return {}

    def mask(self, length: int, whole: int, like: Tensor) -> Tensor:
        """[length, whole], what is added to the scores of a stretch that ends a path of `whole` tokens. Kept:
        all layers need it."""
        key = (length, whole, like.dtype)
        if key not in self._masks:
            later = torch.ones(length, whole, dtype=torch.bool, device=like.device).triu_(whole - length + 1)
            self._masks[key] = like.new_zeros(length, whole).masked_fill_(later, float("-inf"))
        return self._masks[key]

    def places(self, sequence: int) -> Tensor:
        """int64 [length of the sequence]: where its tokens are in the row."""
        path = self.paths[self.leaves[sequence]] if self.leaves[sequence] >= 0 else ()
        parts = [torch.arange(self.starts[s], self.starts[s] + self.lengths[s]) for s in path]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


def shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common prefix."""
    most = min(len(left), len(right))
    if left[:most] == right[:most]:
        return most
    low, high = 0, most  # the first `low` are equal, the first `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low


def build(sequences: Sequence[list[int]], *, flex: bool = False) -> Tree:
    """The tree of some sequences, in any order."""
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    common = [shared(sequences[a], sequences[b]) for a, b in itertools.pairwise(order)]
    ids: list[int] = []
    positions: list[int] = []
    lengths: list[int] = []
    paths: list[tuple[int, ...]] = []
    leaves = [-1] * len(sequences)
    # Ranges of `order` that agree up to a depth, with the stretches so far; the last is taken first.
    work: list[tuple[int, int, int, tuple[int, ...]]] = [(0, len(order), 0, ())] if sequences else []
    while work:
        first, last, depth, path = work.pop()
        sequence, single = sequences[order[first]], last - first == 1
        end = len(sequence) if single else min(common[first : last - 1])
        if end - depth >= (1 if single else MIN_SHARED):
            path = (*path, len(lengths))
            ids += sequence[depth:end]
            positions += range(depth, end)
            lengths.append(end - depth)
            paths.append(path)
            depth = end
        if single:
            leaves[order[first]] = path[-1] if path else -1
            continue
        cuts = [first, *(at + 1 for at in range(first, last - 1) if common[at] == end), last]
        work += [(a, b, depth, path) for a, b in itertools.pairwise(cuts)][::-1]
    return Tree(torch.tensor(ids), torch.tensor(positions), tuple(lengths), tuple(paths), tuple(leaves), flex)


def forward(decoder: Any, tree: Tree) -> Tensor:
    """The decoder's hidden states [P, D] of the whole row, with gradient. Its attention must be "sdpa"."""
    device = next(decoder.parameters()).device
    count = len(tree.ids_P)
    more = -count % BLOCK if tree.flex else 0
    ids_1P, positions_1P = (pad(x, (0, more))[None].to(device) for x in (tree.ids_P, tree.positions_P))
    # Transformers hands a mask of four dimensions through as it is; without one it would make [P, P].
    mask = _block_mask(tree, more, device) if tree.flex else ids_1P.new_zeros(1, 1, 1, 1)
    # A copy, so that the masks of its stretches go when the gradient has been taken: a step keeps its trees.
    out = decoder(
        input_ids=ids_1P, position_ids=positions_1P, attention_mask=mask, use_cache=False, tree=replace(tree)
    )
    return out[0][0, :count]


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    tree: Tree | None = None,
    **more: Any,
) -> tuple[Tensor, Tensor | None]:
    """Transformers' "sdpa" that also knows trees.

    The tree comes as an argument, and is no setting of the model, because activation checkpointing calls
    layers again in the backward.
    """
    if tree is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    if tree.flex:
        return flex_attention_forward(module, query, key, value, attention_mask, **more)
    return _by_stretches(query, key, value, tree, more["scaling"]), None


AttentionInterface.register("sdpa", _attention)


def _by_stretches(query: Tensor, key: Tensor, value: Tensor, tree: Tree, scaling: float) -> Tensor:
    """query [1, H, P, E], key and value [1, K, P, E]; gives [1, P, H, E]."""
    repeats = query.shape[1] // key.shape[1]
    # One split for all stretches: its gradient is one concatenation, and each slice's would be a whole row.
    q, k, v = (x.split(tree.lengths, dim=2) for x in (query, key, value))
    parts = []
    for own, path in enumerate(tree.paths):
        keys = torch.cat([k[s] for s in path], dim=2) if len(path) > 1 else k[own]
        values = torch.cat([v[s] for s in path], dim=2) if len(path) > 1 else v[own]
        if repeats > 1:
            keys, values = keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
        # Behind other stretches: all of them, and itself causally.
        mask = tree.mask(tree.lengths[own], keys.shape[2], query) if len(path) > 1 else None
        parts.append(
            scaled_dot_product_attention(q[own], keys, values, mask, is_causal=mask is None, scale=scaling)
        )
    return torch.cat(parts, dim=2).transpose(1, 2)


def _block_mask(tree: Tree, more: int, device: torch.device) -> Any:
    """FlexAttention's mask of a row with `more` tokens of padding behind it, which attend to themselves."""
    from torch.nn.attention.flex_attention import create_block_mask

    count = len(tree.ids_P)
    ends = torch.cat([tree.ends_P, torch.arange(count + 1, count + more + 1)]).to(device)

    def attends(batch: Any, head: Any, q: Any, kv: Any) -> Any:
        return (q >= kv) & (q < ends[kv])

    return create_block_mask(attends, None, None, count + more, count + more, device=str(device))
