"""The settings of a run on verl: how the machines are shared out.

Invariant: what is learned (objective, batch, lengths of a step, users) stands where it does on one machine,
under `train`, `model` and `limits`; here stands only what a cluster adds.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class VerlSettings(BaseModel):
    """A cluster, and how verl uses it (`mua train --engine verl`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: int = Field(default=1, ge=1, description="Machines of the Ray cluster.")
    gpus: int = Field(default=8, ge=1, description="GPUs of each.")
    server: Literal["vllm", "sglang"] = Field(default="vllm", description="What samples.")
    tensor_parallel: int = Field(default=1, ge=1, description="GPUs that share one copy of it.")
    sequence_parallel: int = Field(
        default=1, ge=1, description="GPUs that share one sequence in the update (Ulysses)."
    )
    prompt_tokens: int = Field(default=5000, ge=1, description="What verl sets aside for the first prompt.")
    response_tokens: int = Field(
        default=27_768,
        ge=1,
        description="What it sets aside for the rest of the conversation; the sum is the context.",
    )
    update_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Tokens that a GPU reads at once in the update; null: the context, shared by "
        "`sequence_parallel`.",
    )
    gpu_memory: float = Field(
        default=0.6, gt=0, lt=1, description="Share of a GPU's memory for the server while it samples."
    )
    offload: bool = Field(
        default=False,
        description="Weights and moments wait in the machines' memory while the server samples.",
    )
    workers: int = Field(default=8, ge=1, description="Processes that play episodes, over all machines.")
    validate_every: int | None = Field(
        default=None, ge=1, description="Steps between plays of the evaluation tasks; null: none in training."
    )
    options: dict[str, Any] = Field(
        default={},
        description="Further options of verl's own, such as {trainer.device: npu}; they win over what mua "
        "sets. A + before a name adds one that verl's configuration does not list.",
    )

    @property
    def context(self) -> int:
        """Most tokens of a conversation."""
        return self.prompt_tokens + self.response_tokens

    @model_validator(mode="after")
    def _fits(self) -> VerlSettings:
        for name in ("tensor_parallel", "sequence_parallel"):
            if (self.nodes * self.gpus) % getattr(self, name):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, which does not divide nodes x gpus = "
                    f"{self.nodes * self.gpus}"
                )
        if self.update_tokens is not None and self.update_tokens * self.sequence_parallel < self.context:
            raise ValueError(
                f"update_tokens x sequence_parallel is {self.update_tokens * self.sequence_parallel}, but a "
                f"conversation may have {self.context} tokens (prompt_tokens + response_tokens)"
            )
        return self
