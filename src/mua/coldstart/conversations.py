"""Verified conversations: the expert program and the agenda user play a domain's tasks.

Invariant: a conversation is kept only if its stored messages, replayed on a fresh world, earn the whole
reward of its task; what was dropped is counted by reason.
"""

from __future__ import annotations

import collections
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ..domain import Domain, Task, World
from ..episode import Limits, play
from ..errors import MuaError
from ..seeds import derive_seed
from ..trajectory import Trajectory


@dataclass
class Dropped:
    """How many conversations were not kept, and why."""

    reasons: collections.Counter[str] = field(default_factory=collections.Counter)


def verify(domain: Domain, task: Task, trajectory: Trajectory, replayed: World | None = None) -> str:
    """Why the conversation cannot be used, or "" when it can. `replayed` is its replay, if there is one."""
    if not trajectory.termination.normal:
        return trajectory.termination.value
    verdict = domain.grade(task, trajectory.messages, trajectory.termination, replayed)
    if verdict.reward >= 1.0:
        return ""
    return f"{'end state differs from gold' if 'state' in verdict.components else 'not solved'} on replay"


async def play_expert(
    domain: Domain, task: Task, seed: int, limits: Limits, *, hasty: bool = False
) -> Trajectory:
    """One conversation between the domain's expert (the `hasty` one on request) and its agenda user."""
    if domain.expert is None or domain.agenda_user is None or not domain.is_scripted(task):
        raise MuaError(
            f"domain '{domain.name}' has no expert program or no agenda user for the task '{task.id}', so it "
            "cannot play its own cold-start conversations of it; take tasks that can be played (of a "
            "benchmark: coldstart.split=generated), or give coldstart.file a file of conversations"
        )
    make_expert = domain.hasty_expert if hasty else domain.expert
    if make_expert is None:
        raise MuaError(f"domain '{domain.name}' has no hasty expert; set coldstart.hasty to 0")
    user = domain.agenda_user(task, seed)
    world = domain.open(task)
    expert = make_expert(world, user, seed)
    return await play(domain, task, expert, user, limits=limits, seed=seed, world=world)


async def conversations(
    domain: Domain,
    tasks: Sequence[Task],
    count: int,
    seed: int,
    *,
    limits: Limits = Limits(),
    hasty: float = 0.0,
    dropped: Dropped | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Trajectory]:
    """`count` verified conversations over the tasks, in an order that the seed decides. A share `hasty`
    of the attempts is played by the hasty expert.

    With more conversations than tasks, tasks come again in other words. Raises MuaError when most
    attempts fail: the domain's expert is broken then.
    """
    dropped = dropped if dropped is not None else Dropped()
    kept: list[Trajectory] = []
    for number, task in _endless(tasks, seed):
        if len(kept) == count:
            break
        own = derive_seed(seed, "coldstart", number)
        in_haste = random.Random(derive_seed(own, "hasty")).random() < hasty
        trajectory = await play_expert(domain, task, own, limits, hasty=in_haste)
        why = verify(domain, task, trajectory)
        if why:
            dropped.reasons[why] += 1
            if sum(dropped.reasons.values()) > max(50, count):
                raise MuaError(
                    f"the expert of domain '{domain.name}' fails too often: {dict(dropped.reasons)}; "
                    f"last on task '{task.id}' ({trajectory.reason})"
                )
            continue
        kept.append(trajectory)
        on_progress(len(kept))
    return kept


def _endless(tasks: Sequence[Task], seed: int) -> Iterator[tuple[int, Task]]:
    if not tasks:
        raise MuaError("there are no tasks to make conversations of; choose a split that has some")
    number = 0
    for epoch in range(10**9):
        order = list(tasks)
        random.Random(derive_seed(seed, "order", epoch)).shuffle(order)
        for task in order:
            yield number, task
            number += 1
