"""Training: the settings of GRPO, of supervised fine-tuning and of the loop.

The settings stand here, apart from the code that uses torch, so that a configuration can be read and
checked without importing it. Defaults are those of the MUA-RL paper (arXiv 2508.18669) and its code.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..faults import FaultSettings
from ..rollout import RolloutSettings


class GrpoSettings(BaseModel):
    """The objective: advantages within a group, a clipped ratio, a KL term. `train.grpo` has the formulas."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    advantages: Literal["std", "none", "leave_one_out"] = Field(
        default="std",
        description="How rewards of a group become advantages: (r - mean) / std, r - mean, or RLOO.",
    )
    ratio: Literal["token", "sequence"] = Field(
        default="token",
        description="Importance ratio of each token, or one a sequence (geometric mean over its tokens).",
    )
    clip_low: float = Field(
        default=0.2, ge=0, lt=1, description="The ratio is clipped below at 1 - clip_low."
    )
    clip_high: float = Field(default=0.2, ge=0, description="The ratio is clipped above at 1 + clip_high.")
    dual_clip: float | None = Field(
        default=3.0,
        gt=1,
        description="Bound of the ratio where the advantage is negative; null turns it off.",
    )
    kl: Literal["k1", "k2", "k3"] = Field(default="k3", description="Estimator of KL(policy || reference).")
    kl_coefficient: float = Field(default=0.001, ge=0, description="Weight of the KL term in the loss.")
    entropy_coefficient: float = Field(default=0.0, description="Weight of the entropy bonus.")
    aggregation: Literal["token_mean", "sequence_mean"] = Field(
        default="token_mean",
        description="Mean over all tokens of the step, or over sequences of their token means.",
    )


class SftSettings(BaseModel):
    """Supervised fine-tuning on verified conversations (the cold start)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lr: float = Field(default=5e-6, gt=0, description="Peak learning rate of AdamW.")
    steps: int | None = Field(default=None, ge=1, description="Optimizer steps; when null, `epochs` counts.")
    epochs: float = Field(default=2.0, gt=0, description="Passes over the data, when `steps` is null.")
    batch_size: int = Field(default=128, ge=1, description="Sequences per optimizer step.")
    warmup_steps: int = Field(default=0, ge=0, description="Steps over which the learning rate rises from 0.")
    schedule: Literal["cosine", "constant"] = Field(default="cosine", description="What follows the warm-up.")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW betas.")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW weight decay.")
    grad_clip: float = Field(default=1.0, gt=0, description="Largest norm of the gradient.")
    all_tokens_until: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the steps, from the start, whose loss is on all tokens, context included: "
        "a model made from nothing learns to copy names that way; a pretrained one needs none of it.",
    )
    micro_batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Most tokens, padding included, per forward; null: 1,024 on CPU, 16,384 on a GPU.",
    )
    seed: int = Field(default=0, description="Order of the data.")


class TrainSettings(BaseModel):
    """The GRPO loop: how many steps of what, and how each updates the weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=150, ge=1, description="Steps: each plays groups and makes one update.")
    lr: float = Field(default=1e-6, gt=0, description="Learning rate of AdamW.")
    warmup_steps: int = Field(default=0, ge=0, description="Steps over which the learning rate rises from 0.")
    schedule: Literal["cosine", "constant"] = Field(
        default="constant",
        description="What follows the warm-up: a constant rate or half a cosine to 0.",
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW betas.")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW weight decay.")
    grad_clip: float = Field(default=1.0, gt=0, description="Largest norm of the gradient.")
    temperature: float = Field(
        default=1.0,
        gt=0,
        description="Sampling temperature of the agent; the update scales its logits by the same.",
    )
    max_step_tokens: int = Field(default=1024, ge=1, description="Most tokens the agent samples in a step.")
    micro_batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Most tokens, padding included, per forward; null: 1,024 on CPU, 16,384 on a GPU.",
    )
    processes: int = Field(
        default=0,
        ge=0,
        description="Processes that share the episodes and gradients of each step, each with its own copy of "
        "the models. 0: one a core (at most 4) for a small model on CPU whose user is no endpoint, else one.",
    )
    measure_kl: bool = Field(
        default=True, description="Keep the reference and log the KL even where kl_coefficient is 0."
    )
    checkpoint_every: int = Field(
        default=5, ge=1, description="Steps between checkpoints; the last step has one."
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="Checkpoints kept; older ones are removed.")
    seed: int = Field(default=0, description="Everything random in the run is derived from it.")
    grpo: GrpoSettings = Field(default=GrpoSettings(), description="The objective.")
    rollout: RolloutSettings = Field(default=RolloutSettings(), description="The episodes of a step.")
    faults: FaultSettings | None = Field(
        default=None, description="How the environment misbehaves in the episodes (docs/faults.md)."
    )
