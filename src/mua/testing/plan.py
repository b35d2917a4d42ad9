"""What a campaign breaks, how often and when: a YAML file with a seed.

Invariant: whether something is broken depends on the seed, on what is asked and on how often it was asked
before; never on a clock. So a plan that is run again breaks the same things, as far as the program that is
tested asks the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..errors import MuaError
from ..seeds import derive_seed

KINDS: Mapping[str, Mapping[str, float]] = {
    "user": {
        "stall": 1, "late": 1, "busy": 1, "busy_with_retry_after": 1, "busy_until": 1, "failed": 1,
        "unavailable": 1, "empty": 1, "null": 1, "half_json": 1, "cut": 1, "reset": 1, "html": 1,
        "wrong_model": 1, "echoes_key": 1,
    },
    "tools": {
        "crash": 2, "hang": 1, "garbage": 2, "no_utf8": 1, "slow": 4, "half_line": 1, "echoes": 1,
        "mutated": 0,  # may still be an answer, but a wrong one: for fuzzing, not for runs to be compared
    },
    # Out of memory takes all requests on their way with it, the others one each.
    "engine": {"abort": 4, "not_finite": 4, "out_of_memory": 1},
    "disk": {"slow": 1},
    "clock": {"forward": 1, "back": 1},
}  # fmt: skip
"""Part → what can go wrong there, with its weight unless a plan says otherwise."""

Interruption = Literal["kill", "terminate", "interrupt_twice", "full", "read_only", "torn"]


class Part(BaseModel):
    """How often one part of the system goes wrong."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: float = Field(default=0.0, ge=0, le=1, description="Share of what is asked of it that goes wrong.")
    kinds: dict[str, float] = Field(default={}, description="What goes wrong, by weight; none: everything.")


class FaultPlan(BaseModel):
    """A campaign's faults (docs/reliability.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, ge=0)
    user: Part = Field(default=Part(), description="Requests to the endpoint that plays the user.")
    tools: Part = Field(default=Part(), description="Calls of the tools of an MCP server.")
    engine: Part = Field(default=Part(), description="Generations of the model that is trained.")
    disk: Part = Field(default=Part(), description="Writes to the run folder.")
    clock: Part = Field(
        default=Part(),
        description="Looks at the wall clock and writes to the run folder: it jumps by up to a day.",
    )
    interruptions: tuple[Interruption, ...] = Field(
        default=(),
        description="What ends the process, one after the other; the same command goes on each time.",
    )
    at: tuple[int, int] = Field(
        default=(4, 60), description="Writes of a process to its run folder before it is interrupted."
    )
    stall_seconds: float = Field(default=4.0, ge=0, description="How long a stalled endpoint says nothing.")
    timeout_seconds: float = Field(
        default=2.0,
        gt=0,
        description="A request of the run is given up after it; late answers take 1.5 times that.",
    )
    slow_seconds: float = Field(default=0.05, ge=0, description="Delay of a slow tool server or disk.")

    @field_validator("user", "tools", "engine", "disk", "clock")
    @classmethod
    def _known(cls, part: Part, info: Any) -> Part:
        if unknown := sorted(part.kinds.keys() - KINDS[info.field_name].keys()):
            raise ValueError(f"kinds: no {', '.join(unknown)}; there are {', '.join(KINDS[info.field_name])}")
        return part

    def without_faults(self) -> FaultPlan:
        """The same plan with nothing in it that goes wrong."""
        return FaultPlan(seed=self.seed)


def read_plan(path: Path) -> FaultPlan:
    """The plan in a YAML file. Raises MuaError that names the field."""
    try:
        return FaultPlan.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as exc:
        raise MuaError(f"the fault plan {path} cannot be read: {' '.join(str(exc).split())}") from None
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise MuaError(f"the fault plan {path}: {where}: {first['msg']}") from None


class Dice:
    """Draws the faults of one part, and writes down which came.

    With a `folder`, how often something was asked is counted there, for all processes together.
    """

    def __init__(self, plan: FaultPlan, part: str, folder: Path | None = None):
        self._seed, self._part, self._folder = plan.seed, part, folder
        settings: Part = getattr(plan, part)
        self._rate = settings.rate
        kinds = settings.kinds or KINDS[part]
        self._kinds, self._weights = list(kinds), list(kinds.values())
        self._asked: Counter[str] = Counter()

    def draw(self, what: Any) -> str:
        """The fault of what is asked now, "" for none."""
        if not self._rate:
            return ""
        key = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]
        rng = random.Random(derive_seed(self._seed, self._part, key, self._count(key)))
        if rng.random() >= self._rate:
            return ""
        kind = rng.choices(self._kinds, self._weights)[0]
        if self._folder is not None:
            append(self._folder / "faults.jsonl", {"part": self._part, "kind": kind, "what": key})
        return kind

    def _count(self, key: str) -> int:
        if self._folder is None:
            self._asked[key] += 1
            return self._asked[key]
        place = self._folder / "asked"
        place.mkdir(exist_ok=True)
        handle = os.open(place / f"{self._part}-{key}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, b".")
            return os.fstat(handle).st_size
        finally:
            os.close(handle)


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line to a file that several processes write to: one system call."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, (json.dumps(line) + "\n").encode())
    finally:
        os.close(handle)
