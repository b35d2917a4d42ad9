"""Layers as reward terms: what GRPO learns from where the configuration says so.

Invariant: a term only takes away, and never from an episode that earned nothing (unless `least` says so):
nobody is paid for doing nothing without a breach. With all weights 0 the reward is the outcome, untouched.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from ..domain import Domain, Task
from ..trajectory import Trajectory
from . import audit
from .conduct import Layer


class RewardSettings(BaseModel):
    """What a violation in a layer costs (docs/audit.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: float = Field(default=0.0, ge=0, le=1, description="Taken off when a rule of policy was broken.")
    communication: float = Field(default=0.0, ge=0, le=1, description="Likewise, for what must be said.")
    safety: float = Field(default=0.0, ge=0, le=1, description="Likewise; 1 leaves nothing of the reward.")
    recovery: float = Field(default=0.0, ge=0, le=1, description="Likewise, for what comes after a change.")
    least: float = Field(
        default=0.0,
        ge=-4,
        le=0,
        description="The lowest reward; below 0, failed episodes pay for breaches too.",
    )

    @property
    def weights(self) -> dict[Layer, float]:
        """Layer → what a violation in it costs; empty where the outcome is all."""
        found: dict[Layer, float] = {
            "policy": self.policy,
            "communication": self.communication,
            "safety": self.safety,
            "recovery": self.recovery,
        }
        return {layer: weight for layer, weight in found.items() if weight}


def shaped(settings: RewardSettings, domain: Domain, task: Task, trajectory: Trajectory) -> float | None:
    """The reward with its terms; None where there are none, or the episode has no reward."""
    if trajectory.reward is None or not settings.weights:
        return None
    found = audit(domain, task, trajectory)
    cost = sum(weight for layer, weight in settings.weights.items() if found.layer(layer) == "violation")
    return max(min(settings.least, trajectory.reward), trajectory.reward - cost)
