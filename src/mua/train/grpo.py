"""GRPO as pure functions on tensors: advantages of a group, and the loss of a batch.

Sources: MUA-RL (arXiv 2508.18669), GRPO (2402.03300), PPO's clip (1707.06347), dual clip (1912.09729),
leave-one-out (2402.14740), mean-only advantages (2503.20783), the sequence ratio (2507.18071), the KL
estimators k1-k3 (joschu.net/blog/kl-approx.html).

Invariant: the losses and metrics of a step's micro-batches add up to those of the whole step, however it
is cut, because every mean is taken over the step's `Denominators`; loss and gradient equal a naive loop
over single sequences.

Shapes: B rows (one trace segment each), T positions. Entry [b, t] speaks of the token at t given those
before it; only positions with mask 1 (sampled ids) count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import GrpoSettings

MAX_LOG_RATIO = 20.0
"""Log-ratios are cut here before they are exponentiated, so that one broken token is no infinity."""


class Denominators(NamedTuple):
    """What the means of a whole step are taken over, all its micro-batches together."""

    tokens: int
    """Sampled tokens."""
    sequences: int
    """Rows with at least one sampled token."""


def group_advantages(
    rewards: Sequence[float] | Tensor,
    mode: Literal["std", "none", "leave_one_out"] = "std",
    eps: float = 1e-6,
) -> Tensor:
    """Advantages [G] (float32) of the rewards [G] of one group.

    - `std`: (r - mean) / (std + eps), with the sample standard deviation (G - 1), as in the paper's code
    - `none`: r - mean
    - `leave_one_out`: r - mean of the others = (r - mean) · G / (G - 1)

    A constant group, a single member included, gives zeros: it says nothing.
    """
    rewards_G = torch.as_tensor(rewards, dtype=torch.float64)
    count = rewards_G.numel()
    if count < 2 or bool((rewards_G == rewards_G[0]).all()):
        return torch.zeros(count)
    centred_G = rewards_G - rewards_G.mean()
    if mode == "std":
        centred_G = centred_G / (rewards_G.std() + eps)
    elif mode == "leave_one_out":
        centred_G = centred_G * (count / (count - 1))
    return centred_G.float()


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: Literal["k1", "k2", "k3"]) -> Tensor:
    """KL(policy || reference) at each sampled token, same shape as the inputs. With d = log π - log π_ref:

    - `k1`: d, unbiased, but its gradient as a loss is zero in expectation: for measuring only
    - `k2`: d² / 2
    - `k3`: exp(-d) + d - 1, unbiased and never negative (GRPO, "low_var_kl")
    """
    d = (logprobs - ref_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if kind == "k1":
        return d
    if kind == "k2":
        return 0.5 * d * d
    return torch.exp(-d) + d - 1


def grpo_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    ref_logprobs_BT: Tensor | None,
    advantages: Tensor,
    mask_BT: Tensor,
    *,
    settings: GrpoSettings,
    denominators: Denominators,
    entropy_BT: Tensor | None = None,
    start_logprobs_BT: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one micro-batch (a scalar to call `backward` on) and its metrics (detached scalars).

    `old_logprobs_BT` are the engine's, as sampled (μ). `advantages` are [B], one a row, or [B, T], one a
    token. `start_logprobs_BT` are those of the trained model before the first update of the step (π_start);
    without them, the current ones, which they equal where a step makes one update.

    Per sampled token, with advantage A and ratio ρ = π / μ:

        L = max(-A ρ, -A clip(ρ, 1 - low, 1 + high)),  and where A < 0: L = min(L, -A · dual_clip)
        L + kl_coefficient · KL(π || π_ref) - entropy_coefficient · H(π)

    `ratio = "sequence"` replaces ρ by s, the geometric mean of the row's token ratios (the plain product
    would over- or underflow over thousands of tokens); `"sequence_token"` by sg(s) · π / sg(π), which has the
    value of s and the gradient of the token (sg: no gradient). With a `correction`, ρ = π / π_start and L is
    weighted by w = min(π_start / μ, cap), without gradient: of each token, or the product over the row.

    `token_mean` divides the sum over tokens by `denominators.tokens`; `sequence_mean` sums each row's
    mean and divides by `denominators.sequences`; `constant` divides the sum over tokens by `sequences` times
    `constant_length`. The denominators count the whole step, so that results of micro-batches are added
    (`add_metrics`), never averaged.

    Metrics, each a share of the step's mean over tokens: `policy`, `kl`, `entropy`, `clip_fraction`
    (tokens where the clip decides), `ratio`; how far training disagrees with the engine before the first
    update: `sampling_gap` (|log π_start - log μ|), `sampling_kl` (k3 estimate of KL(μ || π_start)) and
    `truncated` (tokens whose w is, or would be, cut by the cap); and `loss`. `ratio_max` and
    `sampling_gap_max` are the largest over the tokens.
    """
    mask_BT = mask_BT.bool()
    zero_BT = torch.zeros_like(logprobs_BT)
    counts_B = mask_BT.sum(1).clamp(min=1)
    start_BT = (logprobs_BT if start_logprobs_BT is None else start_logprobs_BT).detach()
    gap_BT = torch.where(mask_BT, start_BT - old_logprobs_BT, zero_BT)
    base_BT = old_logprobs_BT if settings.correction == "none" else start_BT

    log_ratio_BT = torch.where(mask_BT, logprobs_BT - base_BT, zero_BT)
    if settings.ratio != "token":
        mean_BT = (log_ratio_BT.sum(1) / counts_B)[:, None].expand_as(logprobs_BT)
        if settings.ratio == "sequence_token":
            mean_BT = mean_BT.detach() + torch.where(mask_BT, logprobs_BT - logprobs_BT.detach(), zero_BT)
        log_ratio_BT = mean_BT
    ratio_BT = log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()

    minus_BT = -(advantages[:, None] if advantages.dim() == 1 else advantages).to(zero_BT)
    free_BT = minus_BT * ratio_BT
    clipped_BT = minus_BT * ratio_BT.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    policy_BT = torch.maximum(free_BT, clipped_BT)
    if settings.dual_clip is not None:
        bound_BT = minus_BT * settings.dual_clip
        policy_BT = torch.where(minus_BT > 0, torch.minimum(policy_BT, bound_BT), policy_BT)

    log_weight_BT = gap_BT.sum(1)[:, None] if settings.correction == "sequence" else gap_BT
    weight_BT = log_weight_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if settings.correction != "none":
        policy_BT = policy_BT * weight_BT.clamp(max=settings.correction_cap)

    loss_BT = policy_BT
    kl_BT = None
    if ref_logprobs_BT is not None:
        kl_BT = kl_estimate(logprobs_BT, ref_logprobs_BT, settings.kl)
        if settings.kl_coefficient and settings.kl_in == "loss":
            loss_BT = loss_BT + settings.kl_coefficient * kl_BT
    if settings.entropy_coefficient:
        if entropy_BT is None:
            raise ValueError("an entropy coefficient needs entropy_BT")
        loss_BT = loss_BT - settings.entropy_coefficient * entropy_BT

    loss_BT = torch.where(mask_BT, loss_BT, zero_BT)
    if settings.aggregation == "token_mean":
        loss = loss_BT.sum() / denominators.tokens
    elif settings.aggregation == "sequence_mean":
        loss = (loss_BT.sum(1) / counts_B).sum() / denominators.sequences
    else:
        assert settings.constant_length is not None  # GrpoSettings sees to it
        loss = loss_BT.sum() / (denominators.sequences * settings.constant_length)

    def share(values_BT: Tensor) -> Tensor:
        return torch.where(mask_BT, values_BT.detach().to(zero_BT), zero_BT).sum() / denominators.tokens

    metrics = {
        "loss": loss.detach(),
        "policy": share(policy_BT),
        "clip_fraction": share(clipped_BT > free_BT),
        "ratio": share(ratio_BT),
        "ratio_max": torch.where(mask_BT, ratio_BT.detach(), zero_BT).max(),
        "sampling_gap": share(gap_BT.abs()),
        "sampling_gap_max": gap_BT.abs().max(),
        "sampling_kl": share(kl_estimate(-gap_BT, zero_BT, "k3")),
        "truncated": share(weight_BT > settings.correction_cap),
    }
    if kl_BT is not None:
        metrics["kl"] = share(kl_BT)
    if entropy_BT is not None:
        metrics["entropy"] = share(entropy_BT)
    return loss, metrics


def add_metrics(sums: dict[str, float], more: Mapping[str, float | Tensor]) -> None:
    """Adds a micro-batch's metrics to those of others of its step; of names in `_max`, keeps the largest."""
    if not more:
        return
    # In one piece: each number fetched from a GPU by itself would wait for all that is under way there.
    numbers = torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in more.values()]).tolist()
    for name, number in zip(more, numbers, strict=True):
        if name.endswith("_max"):
            before = sums[name] if name in sums else float(number)
            sums[name] = before if math.isnan(before) or number <= before else number
        else:
            sums[name] = sums.get(name, 0.0) + number
