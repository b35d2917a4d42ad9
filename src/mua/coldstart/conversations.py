"""Verified conversations: the expert program and the agenda user play a domain's tasks.

Invariant: a conversation is kept only if it passes the checks (`verification`); what was dropped is counted
by cause. Without personas and faults nothing is drawn for them.
"""

from __future__ import annotations

import collections
import itertools
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from ..agents.retrying import Retrying
from ..domain import Domain, Task
from ..episode import Limits, play
from ..errors import MuaError
from ..faults import FaultSettings, misbehaving
from ..order import Order
from ..seeds import derive_seed
from ..trajectory import Trajectory
from ..users.personas import Mix, with_personas
from .verification import CHECKS, DUPLICATE, RULES, Check, Verification


@dataclass
class Dropped:
    """How many conversations were not kept, and why."""

    reasons: collections.Counter[str] = field(default_factory=collections.Counter)


async def play_expert(
    domain: Domain,
    task: Task,
    seed: int,
    limits: Limits,
    *,
    hasty: bool = False,
    personas: Mix | None = None,
    faults: FaultSettings | None = None,
) -> Trajectory:
    """One conversation between the domain's expert (the `hasty` one on request) and its agenda user.

    `personas` are a mix to draw the user's behaviour from. Where the environment may misbehave, the expert
    tries again what was refused for the moment.
    """
    if domain.expert is None or domain.agenda_user is None or not domain.is_scripted(task):
        raise MuaError(
            f"domain '{domain.name}' has no expert program or no agenda user for the task '{task.id}', so it "
            "cannot play its own cold-start conversations of it; take tasks that can be played (of a "
            "benchmark: coldstart.split=generated), or give coldstart.file a file of conversations"
        )
    make_expert = domain.hasty_expert if hasty else domain.expert
    if make_expert is None:
        raise MuaError(f"domain '{domain.name}' has no hasty expert; set coldstart.hasty to 0")
    if faults is not None and faults.renamed:
        raise MuaError(
            "an expert program reads fields by their names and is lost where they have others; set "
            "coldstart.faults.renamed to 0, or let a model play (coldstart.teacher)"
        )
    make_user = domain.agenda_user
    if personas:
        make_user = with_personas(make_user, personas, seed, instructed=False)
    user = make_user(task, seed)
    world = misbehaving(domain, task, faults, derive_seed(seed, "faults"))
    expert = make_expert(world or domain.open(task), user, seed)
    if world is not None:
        expert = Retrying(expert, world.tools())
    return await play(domain, task, expert, user, limits=limits, seed=seed, world=world)


PLAYS = 5
"""Times that a conversation is begun before an infrastructure failure drops it."""

LEAST = 0.05
"""Share of a whole pass over the tasks that must be new, or there are no more."""


async def conversations(
    domain: Domain,
    tasks: Sequence[Task],
    count: int,
    seed: int,
    *,
    limits: Limits = Limits(),
    hasty: float = 0.0,
    personas: Mix | None = None,
    faults: FaultSettings | None = None,
    checks: Collection[Check] = CHECKS,
    dropped: Dropped | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Trajectory]:
    """`count` verified conversations over the tasks, in an order that the seed decides. A share `hasty`
    of the attempts is played by the hasty expert.

    With more conversations than tasks, tasks come again in other words; when that brings hardly anything but
    near-duplicates, fewer are returned. Raises MuaError when most attempts fail: the domain's expert is
    broken then.
    """
    dropped = dropped if dropped is not None else Dropped()
    verification = Verification(domain, checks)
    kept: list[Trajectory] = []
    before = 0
    order = Order(domain, tasks, seed, label="order")
    for number in itertools.count():
        (task,) = order.draw(number, 1)
        if number and number % len(tasks) == 0:
            if dropped.reasons[DUPLICATE] and len(kept) - before < LEAST * len(tasks):
                break
            before = len(kept)
        if len(kept) == count:
            break
        own = derive_seed(seed, "coldstart", number)
        in_haste = random.Random(derive_seed(own, "hasty")).random() < hasty
        for _ in range(PLAYS):  # the same one again, where infrastructure broke it
            trajectory = await play_expert(
                domain, task, own, limits, hasty=in_haste, personas=personas, faults=faults
            )
            if not trajectory.termination.infrastructure:
                break
        why, _ = verification.examine(task, trajectory)
        if not why:
            kept.append(trajectory)
            on_progress(len(kept))
            continue
        dropped.reasons[why] += 1
        if sum(dropped.reasons.values()) - dropped.reasons[DUPLICATE] > max(50, count):
            hint = (
                "; a hasty expert breaks rules on purpose: leave 'rules' out of coldstart.checks"
                if hasty and dropped.reasons[RULES]
                else ""
            )
            raise MuaError(
                f"the expert of domain '{domain.name}' fails too often: {dict(dropped.reasons)}; "
                f"last on task '{task.id}' ({trajectory.reason}){hint}"
            )
    return kept
