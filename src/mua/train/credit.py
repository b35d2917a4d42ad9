"""From the episodes of a group to an advantage for every sampled token: shaped rewards, credit of steps.

Sources: soft overlong punishment (DAPO, arXiv 2503.14476), advantages of turns beside that of the outcome
(MT-GRPO, 2505.11821; its turn is our step: one generation and the answers to its calls).

Invariant: pure functions of the trajectories and the settings. With the defaults, every token of an episode
has the advantage of its episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MuaError
from ..rollout import Group
from ..trajectory import Segment, Trajectory
from . import GrpoSettings
from .grpo import group_advantages, kl_estimate


@dataclass
class Signals:
    """What the update knows of some segments beside their ids: for each a float32 tensor of values at its
    `sampled` tokens."""

    advantages: list[Tensor]
    start_logprobs: list[Tensor] | None = None
    """Of the trained model before the first update of the step; None: where they are computed on the way."""
    ref_logprobs: list[Tensor] | None = None
    """Of the reference; None: where they are computed on the way, or not at all."""

    def of(self, picked: Sequence[int]) -> Signals:
        """Those of some of the segments."""
        parts = (self.advantages, self.start_logprobs, self.ref_logprobs)
        return Signals(*(None if p is None else [p[i] for i in picked] for p in parts))  # type: ignore[arg-type]


def sampled(segment: Segment) -> Tensor:
    """bool [L], true on the tokens that are trained on: sampled ones, but for the first of the segment,
    which nothing predicts."""
    mask_L = torch.tensor(segment.mask, dtype=torch.bool)
    mask_L[:1] = False
    return mask_L


def segments_of(trajectory: Trajectory) -> list[Segment]:
    if trajectory.trace is None:
        raise ValueError("the agent keeps no token trace, so it cannot be trained")
    return trajectory.trace.segments


def token_advantages(
    group: Group, settings: GrpoSettings, penalties: Sequence[float] | None = None
) -> list[Tensor]:
    """One float32 tensor for each segment of each trajectory, in their order: advantages of its `sampled`
    tokens.

    `penalties`, one a trajectory, are taken from the rewards (the KL, where it is in the reward). With G
    episodes of n_i steps, shaped rewards R_i and `group_advantages` f:

        A_i = f(R)_i,   Q_ik = f(q)_ik over all steps of the group, q_ik = - failed calls / calls of step k
        advantage of each token of step k = credit_discount^(n_i - k) · A_i + failed_call_weight · Q_ik

    q is 0 for a step without calls. Calls that failed because the environment misbehaved, or that were
    never run, are not the agent's failures.
    """
    rewards = shaped_rewards(group, settings)
    if penalties is not None:
        rewards = [r - p for r, p in zip(rewards, penalties, strict=True)]
    outcomes = group_advantages(rewards, settings.advantages).tolist()
    if settings.credit_discount == 1.0 and not settings.failed_call_weight:
        return [
            torch.full((int(sampled(s).sum()),), a)
            for t, a in zip(group.trajectories, outcomes, strict=True)
            for s in segments_of(t)
        ]
    steps = [_steps(t) for t in group.trajectories]
    counts = [int(max((s.max() for s in of_one if s.numel()), default=-1)) + 1 for of_one in steps]
    credit = [
        torch.tensor([a * settings.credit_discount ** (n - 1 - k) for k in range(n)])
        for a, n in zip(outcomes, counts, strict=True)
    ]
    if settings.failed_call_weight:
        failures = [failed_calls(t, n) for t, n in zip(group.trajectories, counts, strict=True)]
        all_Q = group_advantages([-q for of_one in failures for q in of_one], settings.advantages)
        credit = [
            c + settings.failed_call_weight * q for c, q in zip(credit, all_Q.split(counts), strict=True)
        ]
    return [c[s] for c, of_one in zip(credit, steps, strict=True) for s in of_one]


def shaped_rewards(group: Group, settings: GrpoSettings) -> list[float]:
    """The group's rewards, with the soft overlong punishment where that is asked for.

    With n sampled tokens, 0 up to overlong_length - overlong_buffer, then falling linearly to -1 at
    overlong_length.
    """
    if settings.overlong_length is None:
        return group.rewards
    out = []
    for trajectory, reward in zip(group.trajectories, group.rewards, strict=True):
        n = sum(sum(s.mask) for s in segments_of(trajectory))
        over = (n - settings.overlong_length + settings.overlong_buffer) / settings.overlong_buffer
        out.append(reward - min(1.0, max(0.0, over)))
    return out


def kl_penalties(
    groups: Sequence[Group], ref_logprobs: Sequence[Tensor], settings: GrpoSettings
) -> list[list[float]]:
    """kl_coefficient · Σ_t KL estimate of each episode, by group, between the engine's log-probabilities and
    the reference's (`ref_logprobs`: of the `sampled` tokens, one tensor for each segment of all groups)."""
    found = iter(ref_logprobs)
    out = []
    for group in groups:
        of_group = []
        for trajectory in group.trajectories:
            total = 0.0
            for segment in segments_of(trajectory):
                ref = next(found)
                old = torch.tensor(segment.logprobs)[sampled(segment)]
                total += float(kl_estimate(old.double(), ref.double(), settings.kl).sum())
            of_group.append(settings.kl_coefficient * total)
        out.append(of_group)
    return out


def _steps(trajectory: Trajectory) -> list[Tensor]:
    """For each segment, the step (0, 1, …, of the whole episode) of each of its `sampled` tokens.

    A step is an unbroken run of sampled ids: between two steps there is always some context.
    """
    out, before = [], 0
    for segment in segments_of(trajectory):
        mask_L = torch.tensor(segment.mask, dtype=torch.int64)
        begins_L = mask_L.diff(prepend=mask_L.new_zeros(1)) == 1
        step_L = before - 1 + begins_L.cumsum(0)
        before += int(begins_L.sum())
        out.append(step_L[sampled(segment)])
    return out


def failed_calls(trajectory: Trajectory, steps: int) -> list[float]:
    """Share of failed calls among those of each of the agent's sampled steps.

    Raises MuaError when the steps cannot be told apart in the messages (an agent of one's own that samples
    more than once a message).
    """
    messages = trajectory.messages
    first = next((i for i, m in enumerate(messages) if m.role != "assistant"), 0)  # a greeting is no step
    shares, calls = [], {}
    for message in messages[first:]:
        if message.role == "assistant":
            shares.append(0.0)
            calls = {call.id: len(message.tool_calls) for call in message.tool_calls}
        elif message.role == "tool" and message.tool_call_id in calls:
            failed = message.error and not message.fault and not message.unrun
            shares[-1] += failed / calls[message.tool_call_id]
    # A step for which the context had no room left is a message without a token.
    if not 0 <= len(shares) - steps <= 1:
        raise MuaError(
            f"task {trajectory.task_id}: {steps} sampled steps, but {len(shares)} messages of the agent, so "
            "train.grpo.failed_call_weight cannot tell which step a failed call belongs to. Set it to 0."
        )
    return shares[:steps]
