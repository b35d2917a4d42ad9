"""Audit: what the reward does not show, in five layers, measured on every trajectory.

outcome        the end state is right
policy         the domain's rules of conduct, as its `audit.yaml` states them (`conduct`, `rules`)
communication  what must be said, and what must not
safety         other people's data, writes nobody asked for, tools out of bounds, instructions in data
recovery       after another wish, a failed call, a correction; handing over so that somebody can go on

Invariant: `audit` is a pure function of domain, task and trajectory. It plays nothing, asks nobody and never
changes a reward; every violation names the message that caused it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..domain import Domain, Task
from ..trajectory import Trajectory
from . import recovery, rules
from .behaviour import behaviour
from .conduct import LAYERS, Conduct, Layer, read
from .reading import Reading
from .rules import Status, Verdict

__all__ = ["LAYERS", "Audit", "Conduct", "Layer", "Status", "Verdict", "audit", "read"]

_WORST_FIRST: tuple[Status, ...] = ("violation", "unmeasured", "pass")
_PLAIN = Conduct()
"""Of a domain without `audit.yaml`: outcome, recovery, tools and injections are measured all the same."""


@dataclass(frozen=True)
class Audit:
    """What was found in one trajectory."""

    verdicts: tuple[Verdict, ...]
    behaviour: dict[str, float] = field(default_factory=dict)

    @property
    def violations(self) -> list[Verdict]:
        return [v for v in self.verdicts if v.status == "violation"]

    def layer(self, layer: Layer) -> Status:
        """The worst that a layer's rules say; not_applicable where none applied."""
        found = {v.status for v in self.verdicts if v.layer == layer}
        for status in _WORST_FIRST:
            if status in found:
                return status
        return "not_applicable"

    def to_dict(self) -> dict[str, Any]:
        """JSON values only: the layers, every rule that applied, the figures of behaviour."""
        return {
            "layers": {layer: self.layer(layer) for layer in LAYERS},
            "verdicts": [dataclasses.asdict(v) for v in self.verdicts if v.status != "not_applicable"],
            "behaviour": dict(self.behaviour),
        }

    def trail(
        self, trajectory: Trajectory, changes: Mapping[int, Sequence[str]] = MappingProxyType({})
    ) -> Iterator[dict[str, Any]]:
        """A line for each rule that applied: whose conversation, which rule and message, what evidence.
        `changes` are what the messages changed in the database (`events.state_changes`)."""
        about = {
            "domain": trajectory.domain,
            "task_id": trajectory.task_id,
            "kind": trajectory.kind,
            "sample": trajectory.sample,
            "step": trajectory.step,
            "user": trajectory.user,
            "persona": trajectory.persona,
        }
        for verdict in self.verdicts:
            if verdict.status == "not_applicable":
                continue
            line = {**about, **dataclasses.asdict(verdict)}
            del line["question"]
            if verdict.at is not None and verdict.at < len(trajectory.messages):
                message = trajectory.messages[verdict.at]
                words = (m.content for m in reversed(trajectory.messages[: verdict.at]) if m.role == "user")
                line["asked"] = next((text for text in words if text.strip()), "")
                line["role"] = message.role
                line["said"] = message.content
                line["calls"] = [{"name": c.name, "arguments": dict(c.arguments)} for c in message.tool_calls]
                if verdict.at in changes:
                    line["changed"] = list(changes[verdict.at])
            yield line


def audit(domain: Domain, task: Task, trajectory: Trajectory) -> Audit:
    """All five layers and the figures of behaviour of one trajectory."""
    domain, task = domain.of(task)  # of a mixture, the domain that it belongs to
    reading = Reading(domain, domain.conduct or _PLAIN, task, trajectory.messages)
    verdicts = [_outcome(trajectory), *rules.check(reading), *recovery.check(reading, trajectory.reward)]
    return Audit(tuple(verdicts), behaviour(reading, task, trajectory, verdicts))


def _outcome(trajectory: Trajectory) -> Verdict:
    if trajectory.reward is None:
        return Verdict("outcome", "end_state", "not_applicable")
    if trajectory.reward >= 1 - 1e-6:
        return Verdict("outcome", "end_state", "pass")
    last = len(trajectory.messages) - 1
    return Verdict("outcome", "end_state", "violation", max(0, last), trajectory.reason)
