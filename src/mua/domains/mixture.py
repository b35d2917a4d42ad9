"""Several domains as one, with weights: `mix:library=2,meeting_rooms=1`.

Invariant: an episode of a mixture is an episode of the task's own domain: its policy, tools, world, users and
verdict. Only the names of tasks and kinds say which domain they are of.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..chat import Message, Side
from ..database import Database
from ..domain import Ask, Domain, Task, Verdict, World
from ..errors import MuaError
from ..tools import Tool
from ..trajectory import Termination, Trajectory

PREFIX = "mix:"


def parse(name: str) -> dict[str, float]:
    """Names and weights of `mix:NAME=WEIGHT,…`; a name without a weight has 1. Raises MuaError."""
    found: dict[str, float] = {}
    for text in filter(None, (part.strip() for part in name.removeprefix(PREFIX).split(","))):
        domain, equals, weight = text.rpartition("=")
        try:
            value = float(weight) if equals else 1.0
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise MuaError(f"'{name}': '{text}' has no weight; write NAME=NUMBER, such as library=2")
        domain = domain if equals else weight
        if domain in found:
            raise MuaError(f"'{name}' has the domain '{domain}' twice")
        found[domain] = value
    if len(found) < 2:
        raise MuaError(f"'{name}' is no mixture; write mix:NAME=WEIGHT,NAME=WEIGHT with two domains or more")
    return found


def make(name: str, load: Callable[[str], Domain]) -> Mixture:
    """The mixture of that name, of the domains that `load` makes. Raises MuaError."""
    shares = parse(name)
    parts = tuple(map(load, shares))
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise MuaError(f"'{name}' has a domain twice: {', '.join(names)}")
    weights = dict(zip(names, shares.values(), strict=True))

    def of(task: Task) -> tuple[Domain, Task]:
        return _of(parts, task)

    def expert(world: World, user: Any, seed: int) -> Any:
        return world.domain.expert(world, user, seed)  # pyright: ignore[reportOptionalCall] - see is_scripted

    def hasty_expert(world: World, user: Any, seed: int) -> Any:
        return world.domain.hasty_expert(world, user, seed)  # pyright: ignore[reportOptionalCall] - all have one

    def agenda_user(task: Task, seed: int) -> Any:
        part, own = of(task)
        return part.agenda_user(own, seed)  # pyright: ignore[reportOptionalCall] - all have one

    def violations(task: Task, messages: Sequence[Message]) -> list[str]:
        part, own = of(task)
        return part.violations(own, messages) if part.violations else []

    def load_extra(name: str) -> Sequence[Task]:
        """One task by its name, or a split that not all parts have to list."""
        part = next((p for p in parts if name.startswith(f"{p.name}/")), None)
        if part is None:
            return interleaved(parts, weights, name)
        return [_renamed(part, part.task(name.removeprefix(f"{part.name}/")))]

    return Mixture(
        name=PREFIX + ",".join(f"{n}={w:g}" for n, w in weights.items()),
        policy="\n\n".join(part.policy for part in parts),
        load_base=parts[0].load_base,
        load_split=lambda split: interleaved(parts, weights, split),
        splits=tuple(s for s in parts[0].splits if all(s in part.splits for part in parts)),
        toolkits={},
        expert=expert if any(part.expert for part in parts) else None,
        hasty_expert=hasty_expert if all(part.hasty_expert for part in parts) else None,
        agenda_user=agenda_user if all(part.agenda_user for part in parts) else None,
        violations=violations,
        load_extra=load_extra,
        weights=weights,
        mixed=parts,
    )


def interleaved(parts: Sequence[Domain], weights: Mapping[str, float], split: str) -> list[Task]:
    """All tasks of a split of every part, so that the first n are shared out by weight as long as every part
    has some left: `eval.tasks: 100` is a test of the mixture.

    Raises MuaError when a part has no such split.
    """
    left = {part.name: list(part.tasks(split))[::-1] for part in parts}
    by_name = {part.name: part for part in parts}
    taken = dict.fromkeys(left, 0)
    out = []
    while left:
        name = min(left, key=lambda n: (taken[n] + 0.5) / weights[n])
        out.append(_renamed(by_name[name], left[name].pop()))
        taken[name] += 1
        left = {n: tasks for n, tasks in left.items() if tasks}
    return out


def _renamed(part: Domain, task: Task) -> Task:
    return dataclasses.replace(task, id=f"{part.name}/{task.id}", kind=f"{part.name}/{task.kind}")


@dataclass(frozen=True)
class Mixture(Domain):
    """What `make` makes. Whoever asks for something of a task is answered by the task's own domain."""

    mixed: tuple[Domain, ...] = ()

    @property
    def members(self) -> tuple[Domain, ...]:
        return self.mixed

    def of(self, task: Task) -> tuple[Domain, Task]:
        return _of(self.mixed, task)

    def digest(self) -> str:
        return hashlib.sha256("".join(part.digest() for part in self.mixed).encode()).hexdigest()

    def task(self, task_id: str) -> Task:
        if not any(task_id.startswith(f"{part.name}/") for part in self.mixed):
            names = " or ".join(f"{part.name}/…" for part in self.mixed)
            raise MuaError(f"domain '{self.name}' has no task '{task_id}'; its tasks are named {names}")
        return super().task(task_id)

    def tools(self, side: Side = "assistant") -> dict[str, Tool]:
        """All tools of all parts; of two with one name, the first. An episode has those of its own domain."""
        return {n: t for part in reversed(self.mixed) for n, t in part.tools(side).items()}

    def system_prompt(self, task: Task) -> str:
        part, own = self.of(task)
        return part.system_prompt(own)

    def user(self, task: Task, seed: int) -> Any:
        part, own = self.of(task)
        return part.user(own, seed)

    def agent(self, task: Task, agent: Any) -> Any:
        part, own = self.of(task)
        return part.agent(own, agent)

    def open(self, task: Task) -> World:
        part, own = self.of(task)
        return part.open(own)

    def is_scripted(self, task: Task) -> bool:
        part, own = self.of(task)
        return part.is_scripted(own)

    def task_tools(self, task: Task, side: Side = "assistant") -> dict[str, Tool]:
        part, own = self.of(task)
        return part.task_tools(own, side)

    def gold(self, task: Task) -> Database:
        part, own = self.of(task)
        return part.gold(own)

    def is_noop(self, task: Task) -> bool:
        part, own = self.of(task)
        return part.is_noop(own)

    def grade(
        self, task: Task, messages: Sequence[Message], termination: Termination, world: World | None = None
    ) -> Verdict:
        part, own = self.of(task)
        return part.grade(own, messages, termination, world)

    async def settle(self, task: Task, trajectory: Trajectory, ask: Ask) -> None:
        part, own = self.of(task)
        await part.settle(own, trajectory, ask)

    def replay(self, task: Task, messages: Iterable[Message]) -> World:
        part, own = self.of(task)
        return part.replay(own, messages)


def _of(parts: Sequence[Domain], task: Task) -> tuple[Domain, Task]:
    """The part that a task of the mixture is of, and the task as that part knows it."""
    for part in parts:
        if task.id.startswith(f"{part.name}/"):
            cut = len(part.name) + 1
            return part, dataclasses.replace(task, id=task.id[cut:], kind=task.kind[cut:])
    raise MuaError(f"the task '{task.id}' is of none of {', '.join(part.name for part in parts)}")
