"""Many episodes at once: groups of one task, limits, retries of what infrastructure broke.

Invariants:
- Each episode's seeds derive from what it is (run, task, sample, attempt), so neither a failure nor the
  order in which episodes end changes the random numbers of another.
- An episode that infrastructure broke is played again; when that does not help, it is left out of its
  group and counted, never scored.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from .agents import Agent
from .chat import Message
from .domain import Domain, Task
from .episode import Limits, play
from .errors import InfrastructureError
from .faults import FaultSettings, misbehaving
from .seeds import derive_seed
from .trajectory import Trajectory, Usage
from .users import User, fidelity

MakeAgent = Callable[[Task, str, int], Agent]
"""(task, session, seed) → the agent of one episode; the session names it to the engine."""
MakeUser = Callable[[Task, int], User]
"""(task, seed) → the user of one episode."""


class RolloutSettings(BaseModel):
    """How many episodes a training step plays, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    groups: int = Field(default=16, ge=1, description="Tasks, and so groups, that a step wants to train on.")
    group_size: int = Field(default=8, ge=1, description="Episodes of one task in one step.")
    refill_rounds: int = Field(
        default=1,
        ge=0,
        description="Extra rounds of tasks played when groups have no signal (all rewards equal).",
    )
    max_attempts: int = Field(
        default=3,
        ge=1,
        description="Times an episode is played before an infrastructure failure excludes it.",
    )
    concurrency: int = Field(default=128, ge=1, description="Most episodes in flight.")
    unfaithful: Literal["keep", "drop"] = Field(
        default="keep",
        description="Episodes whose user strayed from its scenario (docs/users.md): train on them, or leave "
        "them out and count them.",
    )
    freeze_opening: bool = Field(
        default=True,
        description="All episodes of a group start from one first user message, as in the paper.",
    )


@dataclass
class Group:
    """The episodes of one task in one step."""

    task: Task
    trajectories: list[Trajectory] = field(default_factory=list)
    """The scored ones, by sample."""
    failed: list[Trajectory] = field(default_factory=list)
    """Last attempts of the excluded ones, where they got as far as a conversation; they have no reward."""
    unfaithful: list[Trajectory] = field(default_factory=list)
    """Scored ones that are left out because the user strayed from its scenario."""
    excluded: int = 0
    """Episodes left out because infrastructure failed each time."""
    retried: int = 0
    """Attempts beyond the first, the opening's included."""
    opening: str | None = None
    """The frozen first user message."""
    opening_usage: Usage = field(default_factory=Usage)
    """What the frozen opening cost."""

    @property
    def rewards(self) -> list[float]:
        return [t.reward for t in self.trajectories if t.reward is not None]

    @property
    def constant(self) -> bool:
        """All rewards are equal (or there are fewer than two): no signal for GRPO."""
        return len(set(self.rewards)) < 2

    @property
    def all_correct(self) -> bool:
        return bool(self.rewards) and min(self.rewards) >= 1.0

    @property
    def all_wrong(self) -> bool:
        return bool(self.rewards) and max(self.rewards) <= 0.0


async def play_groups(
    domain: Domain,
    tasks: Sequence[Task],
    make_agent: MakeAgent,
    make_user: MakeUser,
    settings: RolloutSettings,
    *,
    limits: Limits = Limits(),
    seed: int = 0,
    step: int = -1,
    share: tuple[int, int] = (0, 1),
    faults: FaultSettings | None = None,
    on_episode: Callable[[Trajectory], None] | None = None,
) -> list[Group]:
    """Plays `group_size` episodes of each task, all at once, and returns the groups in the tasks' order.

    `share` (number, count) plays every count-th task only, from the number-th on: the others are somebody
    else's, and their seeds are the same whoever plays them. `faults` are drawn alike for all episodes of a
    group: they are compared with one another, and none should have had the worse weather.

    `seed` must differ between calls that are to differ (derive it from run seed, step and round); the same
    task twice in one call is told apart. `on_episode` hears of each finished episode, in any order.
    Infrastructure failures stay in their episode; any other exception is a bug and ends the call.
    """
    slots = asyncio.Semaphore(settings.concurrency)
    seen: Counter[str] = Counter()
    names = []
    for task in tasks:
        names.append((task.id, seen[task.id]))
        seen[task.id] += 1

    async def one(group: Group, name: tuple[str, int], sample: int) -> Trajectory | None:
        for attempt in range(1, settings.max_attempts + 1):
            parts = (seed, *name, sample, attempt)
            session = "/".join(map(str, parts))
            last = attempt == settings.max_attempts
            group.retried += attempt > 1
            try:
                async with slots:
                    agent = make_agent(group.task, session, derive_seed("agent", *parts))
                    user = make_user(group.task, derive_seed("user", *parts))
                    trajectory = await play(
                        domain,
                        group.task,
                        agent,
                        user,
                        limits=limits,
                        seed=derive_seed("episode", *parts),
                        opening=group.opening,
                        world=misbehaving(domain, group.task, faults, derive_seed("faults", seed, *name)),
                    )
                    _close(user)
            except InfrastructureError:  # the agent or the user could not even be made
                continue
            trajectory.sample, trajectory.step, trajectory.attempts = sample, step, attempt
            if not trajectory.termination.infrastructure or last:
                if on_episode is not None:
                    on_episode(trajectory)
                return trajectory
        return None

    async def opened(group: Group, name: tuple[str, int]) -> bool:
        """Sets the group's frozen opening; false when no user could give one.

        A user that opens with a tool call or a stop cannot be frozen (its tools need a world): each
        episode then opens for itself.
        """
        for attempt in range(1, settings.max_attempts + 1):
            group.retried += attempt > 1
            try:
                async with slots:
                    user = make_user(group.task, derive_seed("opening", seed, *name, attempt))
                    greeting = [Message("assistant", domain.greeting)] if domain.greeting else []
                    turn = await user.reply(greeting)
                    _close(user)
            except InfrastructureError:
                continue
            group.opening_usage = turn.usage
            if not turn.tool_calls and not turn.stop:
                group.opening = turn.text
            return True
        return False

    async def whole(task: Task, name: tuple[str, int]) -> Group:
        group = Group(task)
        if settings.freeze_opening and not await opened(group, name):
            group.excluded = settings.group_size
            return group
        async with asyncio.TaskGroup() as together:
            running = [together.create_task(one(group, name, s)) for s in range(settings.group_size)]
        for trajectory in (r.result() for r in running):
            if trajectory is None or trajectory.reward is None:
                group.excluded += 1
                group.failed += [trajectory] if trajectory else []
            elif settings.unfaithful == "drop" and (strayed := fidelity.check(domain, task, trajectory)):
                trajectory.unfaithful = strayed
                group.unfaithful.append(trajectory)
            else:
                group.trajectories.append(trajectory)
        return group

    try:
        async with asyncio.TaskGroup() as together:
            first, count = share
            picked = list(zip(tasks, names, strict=True))[first::count]
            running = [together.create_task(whole(task, name)) for task, name in picked]
    except BaseExceptionGroup as problems:
        raise _first(problems) from None
    return [r.result() for r in running]


def _close(user: User) -> None:
    """Frees what a user holds in an engine; most users hold nothing and have no `close`."""
    close = getattr(user, "close", None)
    if close is not None:
        close()


def _first(problems: BaseExceptionGroup) -> BaseException:
    """The first real exception in a tree of groups, so that callers see a plain one."""
    inner = problems.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
