"""Many episodes at once: groups of one task, limits, retries of what infrastructure broke.

Invariants:
- Each episode's seeds derive from what it is (run, task, sample), so neither a failure nor the order in which
  episodes end changes the random numbers of any.
- An episode that infrastructure broke is played again with the same seeds: the same episode, not another
  draw, which would favour those that end before something breaks. When that does not help, it is left out
  of its group and counted, never scored.
- Where more is played than is needed, what counts is decided by the tokens that the agents sampled, never by
  a clock: fewer come first, of equals the earlier drawn. So what counts is the same however fast anything
  ran, and what is stopped early is only what could not have counted any more.
"""

from __future__ import annotations

import asyncio
import bisect
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .agents import Agent
from .audit.terms import RewardSettings, shaped
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


FIRST = 1
"""The attempt whose seeds all attempts have."""


class RolloutSettings(BaseModel):
    """How many episodes a training step plays, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    groups: int = Field(default=16, ge=1, description="Tasks, and so groups, that a step wants to train on.")
    group_size: int = Field(default=8, ge=1, description="Episodes of one task in one step.")
    refill_rounds: int | None = Field(
        default=1,
        ge=0,
        description="Extra rounds of tasks played when groups have no signal (all rewards equal); null: "
        "until the batch is full or `refill_budget` is spent.",
    )
    refill_budget: int | None = Field(
        default=None, ge=1, description="Most groups that a step plays, its refills included; null: any."
    )
    spare_episodes: int = Field(
        default=0,
        ge=0,
        description="Over-sampling: each group plays so many episodes more, and the `group_size` whose "
        "agent needed the fewest tokens count; the others are stopped as soon as that is certain.",
    )
    spare_groups: int = Field(
        default=0,
        ge=0,
        description="Over-sampling: each round plays so many groups more than are missing, and those with a "
        "signal whose longest episode has the fewest agent tokens count; the others are stopped.",
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
    reward: RewardSettings = Field(
        default=RewardSettings(),
        description="Layers of the audit as reward terms (docs/audit.md); the outcome alone by default.",
    )
    freeze_opening: bool = Field(
        default=True,
        description="All episodes of a group start from one first user message, as in the paper.",
    )

    @model_validator(mode="after")
    def _ends(self) -> RolloutSettings:
        if self.refill_rounds is None and self.refill_budget is None:
            raise ValueError(
                "refill_rounds null plays until the batch is full, which a model that solves everything (or "
                "nothing) never reaches: set refill_budget, the most groups of a step, too"
            )
        return self


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
    cut: int = 0
    """Spare episodes: stopped, or not counted, because enough others needed fewer tokens."""
    length: float = math.inf
    """Agent tokens of the longest episode that counts."""
    retried: int = 0
    """Attempts beyond the first, the opening's included."""
    opening: str | None = None
    """The frozen first user message."""
    opening_usage: Usage = field(default_factory=Usage)
    """What the frozen opening cost."""

    @property
    def rewards(self) -> list[float]:
        """What the group is compared by: the outcomes, or the shaped rewards where there are some."""
        return [t.reward if t.shaped is None else t.shaped for t in self.trajectories if t.reward is not None]

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


class _Race:
    """Who comes in first, by tokens and then by number.

    What a runner has spent only grows, so one that is behind the last place has lost for good, and who wins
    does not depend on who ran faster.
    """

    def __init__(self, places: int):
        self.places = places
        self._finished: list[tuple[float, int]] = []

    def finish(self, tokens: float, number: int) -> None:
        bisect.insort(self._finished, (tokens, number))

    @property
    def full(self) -> bool:
        """As many have come in as there are places; better ones may still take theirs."""
        return len(self._finished) >= self.places

    def lost(self, tokens: float, number: int) -> bool:
        """A runner that has spent so much cannot come in any more."""
        return self.full and (tokens, number) > self._finished[self.places - 1]


def in_time(groups: Sequence[Group], wanted: int) -> list[Group]:
    """The groups, emptied of what does not count: those that came after the `wanted`-th with a signal."""
    race = _Race(wanted)
    for number, group in enumerate(groups):
        if not group.constant:
            race.finish(group.length, number)

    def episodes(group: Group) -> int:
        return len(group.trajectories) + len(group.unfaithful) + group.excluded + group.cut

    return [
        Group(group.task, cut=episodes(group)) if race.lost(group.length, number) else group
        for number, group in enumerate(groups)
    ]


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
    wanted: int | None = None,
    share: tuple[int, int] = (0, 1),
    faults: FaultSettings | None = None,
    on_episode: Callable[[Trajectory], None] | None = None,
) -> list[Group]:
    """Plays `group_size` episodes of each task, all at once, and returns the groups in the tasks' order.

    `wanted` is how many groups with a signal are enough: the others are stopped when it is certain which
    these are, and `in_time` says what counts. With `spare_episodes`, the same holds within a group.

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
    race = _Race(len(tasks) if wanted is None else wanted)
    runs: list[_Run] = []

    async def one(run: _Run, name: tuple[str, int], sample: int) -> None:
        group = run.group
        for attempt in range(1, settings.max_attempts + 1):
            parts = (seed, *name, sample, FIRST)
            session = "/".join(map(str, (seed, *name, sample, attempt)))
            last = attempt == settings.max_attempts
            group.retried += attempt > 1
            run.begin(sample)
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
                        on_step=lambda tokens: run.spend(sample, tokens),
                    )
                    _close(user)
            except InfrastructureError:  # the agent or the user could not even be made
                continue
            trajectory.sample, trajectory.step, trajectory.attempts = sample, step, attempt
            trajectory.shaped = shaped(settings.reward, domain, group.task, trajectory)
            if not trajectory.termination.infrastructure or last:
                if on_episode is not None:
                    on_episode(trajectory)
                if trajectory.reward is not None and settings.unfaithful == "drop":
                    trajectory.unfaithful = fidelity.check(domain, group.task, trajectory)
                run.end(sample, trajectory)
                return
        run.end(sample, None)

    async def opened(group: Group, name: tuple[str, int]) -> bool:
        """Sets the group's frozen opening; false when no user could give one.

        A user that opens with a tool call or a stop cannot be frozen (its tools need a world): each
        episode then opens for itself.
        """
        for attempt in range(1, settings.max_attempts + 1):
            group.retried += attempt > 1
            try:
                async with slots:
                    user = make_user(group.task, derive_seed("opening", seed, *name, FIRST))
                    words = domain.of(group.task)[0].greeting
                    greeting = [Message("assistant", words)] if words else []
                    turn = await user.reply(greeting)
                    _close(user)
            except InfrastructureError:
                continue
            group.opening_usage = turn.usage
            if not turn.tool_calls and not turn.stop:
                group.opening = turn.text
            return True
        return False

    async def whole(run: _Run, name: tuple[str, int]) -> Group:
        group = run.group
        if settings.freeze_opening and not await opened(group, name):
            group.excluded, group.length = settings.group_size, 0
            return group
        async with asyncio.TaskGroup() as together:
            for sample in range(len(run.spent)):
                run.episodes.append(together.create_task(one(run, name, sample)))
        run.settle()
        if not group.constant:
            race.finish(group.length, run.number)
            if race.full:  # before that nobody can have lost, and asking all would be quadratic
                for other in runs:
                    other.look()
        return group

    try:
        async with asyncio.TaskGroup() as together:
            first, count = share
            for number in range(first, len(tasks), count):
                runs.append(_Run(Group(tasks[number]), number, settings, race))
            for run in runs:
                run.task = together.create_task(whole(run, names[run.number]))
    except BaseExceptionGroup as problems:
        raise _first(problems) from None
    return [Group(run.group.task, cut=len(run.spent)) if run.stopped else run.group for run in runs]


class _Run:
    """A group on its way: what its episodes have spent, and who of them can still count."""

    def __init__(self, group: Group, number: int, settings: RolloutSettings, race: _Race):
        self.group = group
        self.number = number
        """Its place among the tasks of the round."""
        self.spent: list[float] = [0] * (settings.group_size + settings.spare_episodes)
        """Agent tokens, by sample: of the attempt that went furthest."""
        self._now: list[float] = [0] * len(self.spent)
        """Of the attempt that is played."""
        self.episodes: list[asyncio.Task[None]] = []
        self.task: asyncio.Task[Group] | None = None
        self.stopped = False
        self._ended: dict[int, Trajectory | None] = {}
        """By sample; None: not one attempt got as far as a conversation."""
        self._among_groups = race
        self._within = _Race(settings.group_size)

    def begin(self, sample: int) -> None:
        """An attempt at an episode begins. It has the seeds of the one before, so it comes as far again
        before it spends more."""
        self._now[sample] = 0

    def spend(self, sample: int, tokens: int) -> None:
        """An episode went on; it, or the whole group, may have lost by that."""
        self._now[sample] += tokens
        self.spent[sample] = max(self.spent[sample], self._now[sample])
        if self._within.lost(self.spent[sample], sample):
            self.episodes[sample].cancel()
        self.look()

    def end(self, sample: int, trajectory: Trajectory | None) -> None:
        """An episode is through; others may have lost by that."""
        self._ended[sample] = trajectory
        if not _counts(trajectory):
            return
        self._within.finish(self.spent[sample], sample)
        for other, task in enumerate(self.episodes):
            if other not in self._ended and self._within.lost(self.spent[other], other):
                task.cancel()

    def look(self) -> None:
        """Stops the group when it cannot come in any more, whatever its episodes still do."""
        if self.task is None or self.task.done() or self.stopped:
            return
        able = [n for n in range(len(self.spent)) if n not in self._ended or _counts(self._ended[n])]
        least = sorted(self.spent[n] for n in able)[: self._within.places]
        if least and self._among_groups.lost(least[-1], self.number):
            self.stopped = self.task.cancel()

    def settle(self) -> None:
        """Sorts the episodes, which are all through or stopped, into the group."""
        group = self.group
        group.length = 0
        for sample, spent in enumerate(self.spent):
            if self._within.lost(spent, sample):
                group.cut += 1
                continue
            trajectory = self._ended[sample]
            if trajectory is None or trajectory.reward is None:
                group.excluded += 1
                group.failed += [trajectory] if trajectory else []
            elif trajectory.unfaithful:
                group.unfaithful.append(trajectory)
            else:
                group.trajectories.append(trajectory)
                group.length = max(group.length, spent)


def _counts(trajectory: Trajectory | None) -> bool:
    """It can be one of the episodes of its group."""
    return trajectory is not None and trajectory.reward is not None and not trajectory.unfaithful


def _close(user: User) -> None:
    """Frees what a user holds in an engine; most users hold nothing and have no `close`."""
    close = getattr(user, "close", None)
    if close is not None:
        close()


def _first(problems: BaseExceptionGroup) -> BaseException:
    """The first real exception in a tree of groups, so that callers see a plain one."""
    inner = problems.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
