"""Draws the next token of every row of a batch.

Invariant: what a row draws depends on its own logits, settings and uniform number only, never on the
other rows. (Logits themselves may differ in the last bits with the size of the batch.)
"""

from __future__ import annotations

import numpy as np
import torch

from . import Sampling

NOT_FINITE = (
    "The model's logits are not finite (NaN or infinity), so no token can be sampled. Its weights have "
    "probably diverged: resume from an earlier checkpoint with a lower learning rate."
)
"""What a request is told whose row `draw` finds unsound."""

_BLOCK = 64


class Uniforms:
    """The random numbers of one request: one float32 in [0, 1) a token, fixed by the seed.

    Philox is counter-based: making a generator costs microseconds, so every request has its own.
    """

    __slots__ = ("_at", "_block", "_generator", "_size")

    def __init__(self, seed: int, tokens: int):
        self._generator = np.random.Generator(np.random.Philox(key=seed % 2**64))
        self._size = min(_BLOCK, tokens)
        self._block: list[float] = []
        self._at = 0

    def next(self) -> float:
        if self._at == len(self._block):
            self._block = self._generator.random(self._size, dtype=np.float32).tolist()
            self._size = _BLOCK
            self._at = 0
        self._at += 1
        return self._block[self._at - 1]


def check(sampling: Sampling) -> None:
    """Raises ValueError for settings that mean nothing."""
    if not (sampling.temperature == 0 or 1e-4 <= sampling.temperature <= 1e4):
        raise ValueError(f"temperature must be 0 (greedy) or within 1e-4 to 1e4, not {sampling.temperature}")
    if not 0 < sampling.top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {sampling.top_p}")
    if sampling.max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {sampling.max_tokens}")


def draw(
    logits_NV: torch.Tensor, temperature_N: np.ndarray, top_p_N: np.ndarray, uniform_N: np.ndarray
) -> tuple[list[int], list[float], list[bool]]:
    """(id, log-probability, sound) for each of N rows.

    Temperature 0 takes the most likely id (the lowest of equals); the others invert the cumulative
    distribution at `uniform`. The log-probability is that of the temperature-scaled distribution (T = 1
    for greedy rows), before top_p, in float32. A row is not sound when its distribution is not a
    distribution (NaN or +inf among the logits, or all of them -inf); its id then means nothing.
    """
    device = logits_NV.device
    logits_NV = logits_NV.float()
    greedy_N = temperature_N == 0
    if ((temperature_N != 1) & ~greedy_N).any():
        scale_N = np.where(greedy_N, 1, temperature_N).astype(np.float32)
        logprobs_NV = torch.log_softmax(logits_NV / torch.from_numpy(scale_N).to(device)[:, None], -1)
    else:
        logprobs_NV = torch.log_softmax(logits_NV, -1)
    if greedy_N.all():
        ids_N = logits_NV.argmax(-1)
    else:
        probs_NV = logprobs_NV.exp()
        narrow = np.flatnonzero((top_p_N < 1) & ~greedy_N)
        if len(narrow):
            rows_M = torch.from_numpy(narrow).to(device)
            top_p_M = torch.from_numpy(top_p_N[narrow].astype(np.float32)).to(device)
            probs_NV[rows_M] = _nucleus(probs_NV[rows_M], top_p_M)
        # A GPU's parallel scan is not monotone to the last bit of a float32; in float64 that hits nobody.
        cumulative_NV = probs_NV.cumsum(-1, dtype=None if device.type == "cpu" else torch.float64)
        # The uniforms have 24 bits and are below 1, so the point never rounds up to the total.
        point_N1 = torch.from_numpy(uniform_N.astype(np.float32)).to(device)[:, None] * cumulative_NV[:, -1:]
        ids_N = torch.searchsorted(cumulative_NV, point_N1, right=True)[:, 0]
        if greedy_N.any():
            rows_M = torch.from_numpy(np.flatnonzero(greedy_N)).to(device)
            ids_N[rows_M] = logits_NV[rows_M].argmax(-1)
    ids_N = ids_N.clamp(max=logits_NV.shape[-1] - 1)  # beyond only in rows that are not sound
    # log_softmax turns a bad row into NaN as a whole, so one column tells.
    table_3N = torch.stack(
        (ids_N.double(), logprobs_NV.gather(1, ids_N[:, None])[:, 0].double(), logprobs_NV[:, 0].double())
    )
    ids, logprobs, witness = table_3N.cpu().numpy()
    return ids.astype(np.int64).tolist(), logprobs.tolist(), (~np.isnan(witness)).tolist()


def _nucleus(probs_MV: torch.Tensor, top_p_M: torch.Tensor) -> torch.Tensor:
    """Zeroes all but the smallest set of most likely ids whose mass reaches `top_p`."""
    sorted_MV, order_MV = probs_MV.sort(dim=-1, descending=True, stable=True)
    before_MV = sorted_MV.cumsum(-1) - sorted_MV
    drop_MV = before_MV >= top_p_M[:, None]
    drop_MV[:, 0] = False
    return torch.zeros_like(probs_MV).scatter_(-1, order_MV, sorted_MV.masked_fill(drop_MV, 0))
