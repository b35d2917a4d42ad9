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

from collections.abc import Sequence
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
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    settings: GrpoSettings,
    denominators: Denominators,
    entropy_BT: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one micro-batch (a scalar to call `backward` on) and its metrics (detached scalars).

    Per sampled token, with ratio ρ = π / π_old and advantage A:

        L = max(-A ρ, -A clip(ρ, 1 - low, 1 + high)),  and where A < 0: L = min(L, -A · dual_clip)
        L + kl_coefficient · KL(π || π_ref) - entropy_coefficient · H(π)

    `ratio = "sequence"` replaces ρ by the geometric mean of the row's token ratios (the plain product
    would over- or underflow over thousands of tokens). `token_mean` divides the sum over tokens by
    `denominators.tokens`; `sequence_mean` sums each row's mean and divides by `denominators.sequences`.
    Both denominators count the whole step, so that results of micro-batches are summed, never averaged.

    Metrics, each a share of the step's mean over tokens: `policy`, `kl`, `entropy`, `clip_fraction`
    (tokens where the clip decides), `ratio`, `sampling_gap` (|log π - log π_old|: how far training
    disagrees with the engine when nothing was updated in between); and `loss`.
    """
    mask_BT = mask_BT.bool()
    zero_BT = torch.zeros_like(logprobs_BT)
    log_ratio_BT = torch.where(mask_BT, logprobs_BT - old_logprobs_BT, zero_BT)
    gap_BT = log_ratio_BT.detach().abs()
    counts_B = mask_BT.sum(1).clamp(min=1)
    if settings.ratio == "sequence":
        log_ratio_BT = (log_ratio_BT.sum(1) / counts_B)[:, None].expand_as(logprobs_BT)
    ratio_BT = log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()

    minus_BT = -advantages_B[:, None].to(ratio_BT)
    free_BT = minus_BT * ratio_BT
    clipped_BT = minus_BT * ratio_BT.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    policy_BT = torch.maximum(free_BT, clipped_BT)
    if settings.dual_clip is not None:
        bound_BT = minus_BT * settings.dual_clip
        policy_BT = torch.where(minus_BT > 0, torch.minimum(policy_BT, bound_BT), policy_BT)

    loss_BT = policy_BT
    kl_BT = None
    if ref_logprobs_BT is not None:
        kl_BT = kl_estimate(logprobs_BT, ref_logprobs_BT, settings.kl)
        if settings.kl_coefficient:
            loss_BT = loss_BT + settings.kl_coefficient * kl_BT
    if settings.entropy_coefficient:
        if entropy_BT is None:
            raise ValueError("an entropy coefficient needs entropy_BT")
        loss_BT = loss_BT - settings.entropy_coefficient * entropy_BT

    loss_BT = torch.where(mask_BT, loss_BT, zero_BT)
    if settings.aggregation == "token_mean":
        loss = loss_BT.sum() / denominators.tokens
    else:
        loss = (loss_BT.sum(1) / counts_B).sum() / denominators.sequences

    def share(values_BT: Tensor) -> Tensor:
        return torch.where(mask_BT, values_BT.detach().to(zero_BT), zero_BT).sum() / denominators.tokens

    metrics = {
        "loss": loss.detach(),
        "policy": share(policy_BT),
        "clip_fraction": share(clipped_BT > free_BT),
        "ratio": share(ratio_BT),
        "sampling_gap": share(gap_BT),
    }
    if kl_BT is not None:
        metrics["kl"] = share(kl_BT)
    if entropy_BT is not None:
        metrics["entropy"] = share(entropy_BT)
    return loss, metrics
