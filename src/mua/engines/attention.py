"""Attention over the slot engine's cache.

While every row decodes one token, attention is bound by reading keys and values; so a prefix that rows have
in common (the system prompt, the prompt of a group) is read once for all of them, and each row reads only
the rest for itself. Where several query heads use one head of keys, nothing is copied for them either.

Invariant: for every row that decodes, the result is that of masked attention over its own cache, up to
rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .kv import DecodePlan, PrefillPlan, SharedPrefix

_NAME = "mua_slots"
_PLAN: ContextVar[DecodePlan | PrefillPlan | None] = ContextVar("plan", default=None)


@contextmanager
def attending(model: Any, plan: DecodePlan | PrefillPlan) -> Iterator[None]:
    """The model's forward inside takes this attention, if it would have taken SDPA."""
    config = model.config.get_text_config()
    if config._attn_implementation != "sdpa":
        yield
        return
    token = _PLAN.set(plan)
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
        _PLAN.reset(token)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [N, heads, Q, D], key, value [N, kv_heads, L, D], mask [N, 1, Q, L] to add → [N, Q, heads, D]"""
    plan = _PLAN.get()
    plain = not any(value is not None for name, value in kwargs.items() if name in _CHANGES)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if plain and isinstance(plan, DecodePlan) and plan.shared is not None and attention_mask is not None:
        return _decode(query, key, value, attention_mask, scale, plan.shared), None
    # A GPU has no fast masked kernel for grouped heads; there, SDPA's way (copies) is left as it is.
    if plain and query.shape[1] != key.shape[1] and query.shape[2] > 1 and query.device.type == "cpu":
        out = F.scaled_dot_product_attention(query, key, value, attention_mask, scale=scale, enable_gqa=True)
        return out.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )


_CHANGES = ("softcap", "s_aux", "position_bias", "sliding_window")
"""Arguments with which a model asks for more than plain attention."""

AttentionInterface.register(_NAME, _attention)


def _decode(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, shared: SharedPrefix
) -> Tensor:
    """One query a row: [N, heads, 1, D] → [N, 1, heads, D]. Heads of one key-value head are its queries."""
    rows, heads, _, width = query.shape
    kv_heads, start = key.shape[1], shared.length
    query_NHGD = query.view(rows, kv_heads, heads // kv_heads, width) * scale
    out, weight = _part(query_NHGD, key[:, :, start:], value[:, :, start:], mask[..., start:])
    common, common_weight = torch.empty_like(out), torch.empty_like(weight)
    for leader, members in shared.clusters:
        mine_MHGD = query_NHGD if members is None else query_NHGD[members]
        # The queries of all rows side by side: one matrix product over the prefix for each head of keys.
        apart = mine_MHGD.shape[:1] + mine_MHGD.shape[2:3]
        queries_HQD = mine_MHGD.transpose(0, 1).flatten(1, 2)
        parts = _part(queries_HQD, key[leader, :, :start], value[leader, :, :start], None)
        found, weights = (part.unflatten(1, apart).transpose(0, 1) for part in parts)
        if members is None:
            common, common_weight = found, weights
        else:
            common[members], common_weight[members] = found, weights
    # Softmax over both parts: each part's own, weighed by its share of the sum.
    both = torch.lerp(common.float(), out.float(), torch.sigmoid(weight - common_weight))
    return both.to(query.dtype).reshape(rows, 1, heads, width)


def _part(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention within some positions, and the logarithm of its sum of exponentials, [..., Q, 1]."""
    scores = torch.matmul(query, key.transpose(-1, -2)).float()
    if mask is not None:
        scores = scores + mask
    weight = scores.logsumexp(-1, keepdim=True)
    return torch.matmul((scores - weight).exp().to(value.dtype), value), weight
