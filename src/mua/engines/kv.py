"""The keys and values of all slots of a `SlotEngine`: one preallocated tensor a layer.

Invariant: position p of row r holds the key and value of the token that the engine recorded at (r, p),
or something finite that no query may see. A forward writes only the positions its plan names.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers.cache_utils import Cache


@dataclass(frozen=True)
class SharedPrefix:
    """The first `length` positions hold the same tokens in all rows of a cluster."""

    length: int
    clusters: list[tuple[int, torch.Tensor | None]]
    """(a row that has the prefix, the rows that attend to it), counted from the plan's first row; None: all.
    Every row is in one cluster."""


@dataclass(frozen=True)
class DecodePlan:
    """One new token for each row of the contiguous range [first, last)."""

    first: int
    last: int
    rows_N: torch.Tensor
    """first … last - 1, as an index tensor."""
    positions_N: torch.Tensor
    """Where each row's token is written."""
    length: int
    """Attention sees positions below this."""
    shared: SharedPrefix | None = None


@dataclass(frozen=True)
class PrefillPlan:
    """The rest of the prompts of N rows, left-padded to Q queries; T tokens in all, without the padding."""

    rows_N: torch.Tensor
    contiguous: bool
    """The rows are consecutive, so that a view does."""
    batch_T: torch.Tensor
    query_T: torch.Tensor
    write_rows_T: torch.Tensor
    write_positions_T: torch.Tensor
    length: int


class SlotCache(Cache):
    """What a Hugging Face model gets as `past_key_values`; it obeys the plan set before the forward.

    Storage per layer: keys and values [rows, kv_heads, length, head_dim], allocated when the first forward
    shows their shapes, grown by doubling.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.plan: DecodePlan | PrefillPlan | None = None
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._rows = 0
        self._length = 0

    def reserve(self, rows: int, length: int, most_rows: int, most_length: int) -> None:
        """Makes room for at least `rows` x `length`; grows by doubling up to the `most_` sizes."""
        if rows <= self._rows and length <= self._length:
            return
        old_rows, old_length = self._rows, self._length
        if rows > self._rows:
            rows = min(most_rows, max(rows, 2 * self._rows, 8))
        if length > self._length:
            length = min(most_length, max(length, 2 * self._length, 128))
        rows, length = max(rows, old_rows), max(length, old_length)
        grown: list[list[torch.Tensor]] = []
        for store in (self._keys, self._values):
            grown.append([_zeros(old, rows, length) for old in store])
            for old, new in zip(store, grown[-1], strict=True):
                new[:old_rows, :, :old_length] = old
        # Only now, so that running out of memory on the way leaves everything as it was.
        self._keys, self._values = grown
        self._rows, self._length = rows, length

    def update(  # type: ignore[override]
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores the new states [N, kv_heads, Q, head_dim]; returns all that the plan's rows may see."""
        if layer_idx == len(self._keys):
            self._keys.append(_zeros(key_states, self._rows, self._length))
            self._values.append(_zeros(value_states, self._rows, self._length))
        plan = self.plan
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if isinstance(plan, DecodePlan):
            keys[plan.rows_N, :, plan.positions_N] = key_states[:, :, 0]
            values[plan.rows_N, :, plan.positions_N] = value_states[:, :, 0]
            # Views: copying 128 rows x 300 tokens every step would cost as much as the attention itself.
            return keys[plan.first : plan.last, :, : plan.length], values[
                plan.first : plan.last, :, : plan.length
            ]
        assert isinstance(plan, PrefillPlan)
        keys[plan.write_rows_T, :, plan.write_positions_T] = key_states[plan.batch_T, :, plan.query_T]
        values[plan.write_rows_T, :, plan.write_positions_T] = value_states[plan.batch_T, :, plan.query_T]
        keys, values = keys[:, :, : plan.length], values[:, :, : plan.length]
        if plan.contiguous:
            first = int(plan.rows_N[0])
            return keys[first : first + len(plan.rows_N)], values[first : first + len(plan.rows_N)]
        return keys.index_select(0, plan.rows_N), values.index_select(0, plan.rows_N)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Only asked for by models that build what we pass (positions, mask); the longest visible length."""
        return 0 if self.plan is None else self.plan.length

    def copy(self, targets: np.ndarray, sources: np.ndarray, length: int) -> None:
        """Row targets[i] becomes sources[i] up to `length`; all are read before any is written."""
        for store in (*self._keys, *self._values):
            target = torch.from_numpy(targets).to(store.device)
            source = torch.from_numpy(sources).to(store.device)
            store[target, :, :length] = store[source, :, :length]

    def zero(self, rows: np.ndarray) -> None:
        """Wipes rows that may hold NaN."""
        for store in (*self._keys, *self._values):
            store[torch.from_numpy(rows).to(store.device)] = 0

    @property
    def bytes(self) -> int:
        """Memory held by keys and values."""
        return sum(store.numel() * store.element_size() for store in (*self._keys, *self._values))


def _zeros(like: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    """Zeros, not empty: masked positions are still multiplied by zero, and zero times NaN is NaN."""
    _, heads, _, dim = like.shape
    return like.new_zeros((rows, heads, length, dim))
