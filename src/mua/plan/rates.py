"""How fast the parts of a run are: from a file, from a device's data sheet, or measured (`measure`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..config import problems
from ..errors import MuaError, unreadable


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Latency(_Part):
    """A log-normal waiting time."""

    median: float = Field(ge=0, description="Seconds.")
    p90: float = Field(ge=0, description="Seconds that nine of ten stay below.")

    @model_validator(mode="after")
    def _order(self) -> Latency:
        if self.p90 < self.median:
            raise ValueError("p90 must not be below median")
        return self

    def at(self, normal: float) -> float:
        """The time that belongs to a draw of the standard normal distribution."""
        if self.median == 0:
            return 0.0
        power = normal * (math.log(self.p90) - math.log(self.median)) / 1.2815515655446004
        return self.median * math.exp(min(power, 500.0))


class EngineRates(_Part):
    """One replica of a generation engine."""

    forward: float = Field(gt=0, description="Seconds of a decoding step, whatever is in it.")
    sequence: float = Field(default=0, ge=0, description="Seconds more for each sequence in it.")
    context: float = Field(
        default=0, ge=0, description="Seconds more for each 1,000 tokens of cache that it reads."
    )
    prefill: float = Field(gt=0, description="Prompt tokens read a second.")
    patience: float = Field(
        default=0, ge=0, description="Decoding steps that newcomers wait, together, for others to join them."
    )


class EndpointRates(_Part):
    """A hosted model that plays the user."""

    latency: Latency = Field(description="Of a request, before its tokens.")
    tokens: float = Field(default=100.0, gt=0, description="Tokens of an answer a second.")
    concurrency: int | None = Field(
        default=None, ge=1, description="Requests at once; null: as configured for the run."
    )
    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0, description="Prompt and answer together.")
    prompt_price: float | None = Field(
        default=None, ge=0, description="US dollars per million; null: as configured for the run."
    )
    completion_price: float | None = Field(default=None, ge=0)


class UpdateRates(_Part):
    """The gradient step."""

    tokens: float = Field(gt=0, description="Tokens read a second, forward and backward, by each process.")
    batch: float = Field(default=0, ge=0, description="Seconds besides for each micro-batch.")
    base: float = Field(default=0, ge=0, description="Seconds besides, a step: optimizer, weights handed on.")
    serial: float = Field(
        default=0,
        ge=0,
        description="Seconds besides for each 1,000 tokens of conversations: laid out and sent by one.",
    )
    processes: int = Field(default=1, ge=1, description="That share the micro-batches.")
    shared_prefix: bool = Field(
        default=True, description="What the conversations of a group share is read once, as our trainer does."
    )
    most: int | None = Field(
        default=None,
        ge=1,
        description="Tokens of a micro-batch, where more at once are no faster; null: a step is one for each "
        "process.",
    )
    kept: int | None = Field(
        default=None, ge=1, description="Tokens of a micro-batch whose activations fit; null: any."
    )
    recomputed: int = Field(
        default=0, ge=0, description="Tokens that fit when activations are computed twice; 0: never."
    )


class PlayRates(_Part):
    """Whatever plays the conversations."""

    replicas: int = Field(default=1, ge=1, description="Copies of the agent's engine.")
    agent: EngineRates
    user_engine: EngineRates | None = Field(
        default=None, description="For a local user model: it takes turns with the agent's engine."
    )
    overhead: float = Field(
        default=0,
        ge=0,
        description="Seconds of the program's own work for each step of an agent; the replica's cores do it.",
    )


class Rates(PlayRates):
    """Everything a plan needs to know of the machines."""

    evaluation: PlayRates | None = Field(
        default=None,
        description="Of evaluation, which one process plays while the others rest; null: as in training.",
    )
    user: EndpointRates | None = Field(default=None, description="For a user behind an endpoint.")
    tools: Latency | None = Field(default=None, description="Of a tool call; null: at once.")
    update: UpdateRates
    assumed: tuple[str, ...] = Field(default=(), description="What of this was not measured, in words.")

    def to_yaml(self) -> str:
        """As `read_rates` reads it."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)


def read_rates(path: Path) -> Rates:
    """Raises MuaError naming the file and the field."""
    try:
        return Rates.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as exc:
        raise MuaError(f"the rates {path} cannot be read ({unreadable(exc)}); check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as exc:
        raise MuaError(f"{path} is not YAML: {unreadable(exc)}") from None
    except ValidationError as exc:
        raise MuaError(f"{path}: {'; '.join(problems(exc, Rates))}") from None


# ---------------------------------------------------------------- from data sheets


@dataclass(frozen=True)
class Device:
    flops: float
    """Dense bfloat16 operations a second."""
    bandwidth: float
    """Bytes of memory a second."""


DEVICES = {
    "a100": Device(312e12, 2.04e12),
    "h100": Device(989e12, 3.35e12),
    "h200": Device(989e12, 4.8e12),
    "b200": Device(2250e12, 8.0e12),
    "l40s": Device(362e12, 0.864e12),
}
"""Data sheets of the 80 GB (A100, H100) and larger SXM variants."""

DECODE, PREFILL, TRAIN = 0.6, 0.45, 0.35
"""Shares of the sheet's bandwidth in decoding and of its operations in prefill and training that are reached:
usual figures of well-set engines, to be replaced by measured rates."""


@dataclass(frozen=True)
class ModelSize:
    parameters: float
    cache_bytes: float
    """Of keys and values, a token."""
    bytes: int = 2
    """A parameter's."""

    @classmethod
    def of(cls, config: Any) -> ModelSize:
        """From a transformers configuration (`AutoConfig`) of a dense decoder with gated MLPs."""
        layers, width = config.num_hidden_layers, config.hidden_size
        head = getattr(config, "head_dim", None) or width // config.num_attention_heads
        kv = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        attention = width * head * (2 * config.num_attention_heads + 2 * kv)
        block = attention + 3 * width * config.intermediate_size
        words = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
        return cls(layers * block + words, 2 * layers * kv * head * 2)


SIZES = {
    "smollm2": ModelSize(134.5e6, 2 * 30 * 3 * 64 * 2),
    "qwen3-8b": ModelSize(8.2e9, 2 * 36 * 8 * 128 * 2),
    "qwen3-14b": ModelSize(14.8e9, 2 * 40 * 8 * 128 * 2),
    "qwen3-32b": ModelSize(32.8e9, 2 * 64 * 8 * 128 * 2),
}


def from_device(
    name: str, size: ModelSize, devices: int = 8, per_replica: int = 1, *, reference: bool = True
) -> Rates:
    """Rates of an engine that is limited by memory when it decodes and by arithmetic otherwise.

    `per_replica` devices hold one copy. A trained token costs 6 operations a parameter, 2 more for the
    reference's forward and 2 for the forward that is made again instead of kept.
    """
    if name.lower() not in DEVICES:
        raise MuaError(f"there is no data sheet of '{name}'; known: {', '.join(DEVICES)}. Or give --rates.")
    if devices < 1 or per_replica < 1 or devices % per_replica:
        raise MuaError(f"{devices} devices cannot hold replicas of {per_replica}; choose a divisor.")
    device = DEVICES[name.lower()]
    bandwidth, flops = device.bandwidth * DECODE * per_replica, device.flops * per_replica
    operations = 8 + 2 * reference
    base = 30.0 * min(1.0, size.parameters / 8e9)
    return Rates(
        replicas=devices // per_replica,
        agent=EngineRates(
            forward=size.parameters * size.bytes / bandwidth,
            sequence=2 * size.parameters / (flops * PREFILL),
            context=1000 * size.cache_bytes / bandwidth,
            prefill=flops * PREFILL / (2 * size.parameters),
        ),
        update=UpdateRates(
            tokens=device.flops * devices * TRAIN / (operations * size.parameters),
            base=base,
            shared_prefix=False,
        ),
        assumed=(
            f"{name.upper()}'s data sheet, of which decoding reaches {DECODE:.0%} of the bandwidth, prefill "
            f"{PREFILL:.0%} and training {TRAIN:.0%} of the operations",
            f"{base:.2g} s an update for the optimizer, the reference's set-up and handing the weights on",
        ),
    )
