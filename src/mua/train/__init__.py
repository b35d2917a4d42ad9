"""Training: the settings of GRPO, of supervised fine-tuning and of the loop.

The settings stand here, apart from the code that uses torch, so that a configuration can be read and
checked without importing it. Defaults are those of the MUA-RL paper (arXiv 2508.18669) and its code.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..faults import FaultSettings
from ..order import CurriculumSettings
from ..rollout import RolloutSettings

PRESETS: dict[str, dict[str, Any]] = {
    "code": {},
    "paper": {"ratio": "sequence", "aggregation": "sequence_mean", "dual_clip": None},
    "gspo": {
        "ratio": "sequence",
        "aggregation": "sequence_mean",
        "clip_low": 3e-4,
        "clip_high": 4e-4,
        "dual_clip": None,
        "kl_coefficient": 0.0,
    },
    "dr_grpo": {"advantages": "none", "aggregation": "constant", "dual_clip": None, "kl_coefficient": 0.0},
    "dapo": {"clip_high": 0.28, "dual_clip": None, "kl_coefficient": 0.0},
}
"""What a `preset` of GrpoSettings sets; the rest are the defaults."""

MEANING = {
    "loss": "the loss is not a finite number",
    "gradient": "the gradient is not finite",
    "ratio": "the mean importance ratio is beyond train.anomalies.max_ratio",
    "kl": "the KL to the reference is beyond train.anomalies.max_kl",
    "empty": "the episodes hold not one sampled token",
    "no_signal": "no group has both good and bad episodes, so nothing is learned",
}
"""What can be wrong with a step, so that it makes no update (`train.anomalies`), in words."""


class GrpoSettings(BaseModel):
    """The objective: advantages within a group, a clipped ratio, a KL term. `train.grpo` has the formulas."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Literal["code", "paper", "gspo", "dr_grpo", "dapo"] | None = Field(
        default=None,
        description="Published settings by name, for the fields that are not set: the code (the defaults) or "
        "the paper of MUA-RL, GSPO, Dr. GRPO, DAPO.",
    )
    advantages: Literal["std", "none", "leave_one_out"] = Field(
        default="std",
        description="How rewards of a group become advantages: (r - mean) / std, r - mean, or RLOO.",
    )
    ratio: Literal["token", "sequence", "sequence_token"] = Field(
        default="token",
        description="Importance ratio of each token, or one a sequence (geometric mean over its tokens; "
        "GSPO), or that of the sequence with the gradient of the token (GSPO-token).",
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
    kl_coefficient: float = Field(default=0.001, ge=0, description="Weight of the KL term.")
    kl_in: Literal["loss", "reward"] = Field(
        default="loss",
        description="The KL is a term of the loss, or its sum over an episode's sampled tokens is taken from "
        "the episode's reward.",
    )
    entropy_coefficient: float = Field(default=0.0, description="Weight of the entropy bonus.")
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = Field(
        default="token_mean",
        description="Mean over all tokens of the step, or over sequences of their token means, or over "
        "sequences of their token sums divided by `constant_length`.",
    )
    constant_length: int | None = Field(
        default=None, ge=1, description="Tokens that `aggregation: constant` divides by."
    )
    correction: Literal["none", "token", "sequence"] = Field(
        default="none",
        description="Truncated importance correction for the gap between the engine's probabilities and "
        "those of training: of each token, or the product over a sequence.",
    )
    correction_cap: float = Field(
        default=2.0, gt=0, description="Largest weight of the correction; larger ones are cut to it."
    )

    credit_discount: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Credit of steps: the advantage of the outcome falls by this factor for every step that "
        "lies between a step and the end of the episode. 1: all steps alike.",
    )
    failed_call_weight: float = Field(
        default=0.0,
        ge=0,
        description="Credit of steps: weight of the advantage that a step has for how few of its tool calls "
        "failed, compared with all steps of its group. 0: only the outcome counts.",
    )
    overlong_length: int | None = Field(
        default=None,
        ge=1,
        description="Soft overlong punishment: an episode of this many sampled tokens loses 1 of its reward.",
    )
    overlong_buffer: int = Field(
        default=1024,
        ge=1,
        description="Tokens below `overlong_length` over which the punishment grows from 0.",
    )

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, data: Any) -> Any:
        preset = data.get("preset") if isinstance(data, dict) else None
        return {**PRESETS.get(preset, {}), **data} if isinstance(preset, str) else data

    @model_validator(mode="after")
    def _has_a_length(self) -> GrpoSettings:
        if self.aggregation == "constant" and self.constant_length is None:
            raise ValueError(
                "aggregation 'constant' needs constant_length, the number of tokens to divide by (the most "
                "that an episode samples, say)"
            )
        return self


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
        description="Most tokens per forward, what is shared counted once; null: as many as fit, by the "
        "model's size.",
    )
    seed: int = Field(default=0, description="Order of the data.")


class AnomalySettings(BaseModel):
    """What counts as an update gone wrong, and what happens then: it is left out, its data is saved in
    `anomalies/`, and the run ends when it goes on like that."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_ratio: float | None = Field(
        default=10.0,
        gt=1,
        description="Largest mean importance ratio of an update (1 is expected); null: any.",
    )
    max_kl: float | None = Field(
        default=10.0, gt=0, description="Largest mean KL to the reference, in nats a token; null: any."
    )
    stop_after: int | None = Field(
        default=3, ge=1, description="The run ends after so many broken steps in a row; null: never."
    )
    stop_after_no_signal: int | None = Field(
        default=25,
        ge=1,
        description="The run ends after so many steps in a row in which no group had unequal rewards; "
        "null: never.",
    )
    keep: int = Field(default=5, ge=0, description="Steps whose data is kept in `anomalies/`: the newest.")


class TrainSettings(BaseModel):
    """The GRPO loop: how many steps of what, and how each updates the weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=150, ge=1, description="Steps: each plays groups and learns from them.")
    epochs: int = Field(default=1, ge=1, description="Passes over the episodes of a step.")
    minibatches: int = Field(
        default=1,
        ge=1,
        description="Updates in a pass, each of its share of the groups, drawn anew each pass.",
    )
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
        description="Most tokens per forward, what is shared counted once; null: as many as fit, by the "
        "model's size.",
    )
    processes: int = Field(
        default=0,
        ge=0,
        description="Processes that share the episodes and gradients of each step, each with its own copy of "
        "the models. 0: one a core (at most 4) for a small model on CPU whose user is no endpoint, else one.",
    )
    staleness: int = Field(
        default=0,
        ge=0,
        le=1,
        description="1: the next step's episodes are played while the weights are updated, so with weights "
        "one update older; it pays where episodes wait (user endpoints) or a core is idle. Runs in one "
        "process, with a second copy of the weights. `grpo.correction: token` goes with it.",
    )
    measure_kl: bool = Field(
        default=True, description="Keep the reference and log the KL even where kl_coefficient is 0."
    )
    checkpoint_every: int = Field(
        default=5, ge=1, description="Steps between checkpoints; the last step has one."
    )
    keep_checkpoints: int = Field(
        default=2, ge=1, description="Newest checkpoints kept, beside the best; older ones are removed."
    )
    record_tokens: int = Field(
        default=1,
        ge=0,
        description="Groups of each step whose exact tokens, masks and log-probabilities stay in "
        "trajectories.jsonl, where the report shows them; those of all would multiply its size.",
    )
    best_window: int = Field(
        default=5,
        ge=1,
        description="The best checkpoint is the one with the highest mean reward of its last so many steps.",
    )
    seed: int = Field(default=0, description="Everything random in the run is derived from it.")
    grpo: GrpoSettings = Field(default=GrpoSettings(), description="The objective.")
    anomalies: AnomalySettings = Field(
        default=AnomalySettings(), description="Updates gone wrong (docs/train-my-domain.md)."
    )
    rollout: RolloutSettings = Field(default=RolloutSettings(), description="The episodes of a step.")
    curriculum: CurriculumSettings | None = Field(
        default=None,
        description="Draw tasks by their measured difficulty (docs/train-my-domain.md); null: all alike.",
    )
    faults: FaultSettings | None = Field(
        default=None, description="How the environment misbehaves in the episodes (docs/faults.md)."
    )

    @model_validator(mode="after")
    def _one_process_overlaps(self) -> TrainSettings:
        if self.staleness and self.processes > 1:
            raise ValueError(
                "staleness 1 plays and learns at the same time in one process: set processes to 1 (or 0) "
                "with it, or staleness to 0 for several processes"
            )
        return self
