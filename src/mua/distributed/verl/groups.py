"""The episodes of a row of verl's batch, played together as `rollout` plays a group.

verl starts one session for each of the `n` samples of a row, all in one process and one after the other; each
asks for its own episode. The first to ask starts `rollout.play_groups` for all of them, so that everything
that holds on one machine holds here: one opening a group, the same weather for all, retries with other seeds,
and no infrastructure failure in anybody's reward.

Invariants:
- The same configuration, row, step and number of samples give the same seeds, whichever process plays them.
- An episode without a score has no row in the batch; a group in which fewer than two are left has none at all
  (verl would take the reward of a single one for its advantage).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...agents.model import ModelAgent
from ...audit import LAYERS, audit
from ...config import Config
from ...domain import Domain, Task
from ...engines import Sampling
from ...errors import InfrastructureError, MuaError
from ...formats import ChatFormat
from ...rollout import Group, MakeUser, RolloutSettings, play_groups
from ...seeds import derive_seed
from ...trajectory import TokenTrace, Trajectory
from .engine import ServerEngine, Spent

AGENT = "mua"
"""The name of our agent loop in verl's registry and in the data set's `agent_name`."""


@dataclass(frozen=True)
class Row:
    """What a session knows of the row that it plays a sample of."""

    uid: str
    """verl's name for the row in this step."""
    session: int
    """Which of its samples."""
    step: int
    index: int
    """The row's number in the data set."""
    task_id: str
    fingerprint: str
    split: str
    held_out: bool
    """A row of the evaluation: other user, other faults, nothing to learn from."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Row:
        """From the keyword arguments of `AgentLoopBase.run`. Raises MuaError for rows of other data sets."""
        if "session_id" not in fields or "uid" not in fields:
            raise MuaError(
                "verl started a sample of a row without saying which (session_id): mua needs its V1 trainer. "
                "Leave trainer.use_v1 true."
            )
        info = fields.get("extra_info") or {}
        try:
            return cls(
                uid=str(fields["uid"]),
                session=int(fields["session_id"]),
                step=int(fields["global_steps"]),
                index=int(info["index"]),
                task_id=str(info["task_id"]),
                fingerprint=str(info["fingerprint"]),
                split=str(info["split"]),
                held_out=bool(info["held_out"]),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise MuaError(
                f"the row {info or dict(fields)!r:.200} is not of a data set that mua wrote ({exc!r}): give "
                "data.train_files and data.val_files those of RUN/verl."
            ) from None


@dataclass(frozen=True)
class Sample:
    """One sequence of verl's batch. `response`, `mask`, `logprobs` have one length; no `prompt` is empty."""

    prompt: list[int]
    """Everything before the first sampled id."""
    response: list[int]
    """From the first sampled id to the last."""
    mask: list[int]
    """1 exactly on sampled ids."""
    logprobs: list[float]
    """As sampled; 0.0 where the mask is 0."""


def samples(trace: TokenTrace | None, filler: int) -> list[Sample]:
    """The sequences of an episode: one a segment in which something was sampled.

    An episode in which the agent never spoke still counts in its group's mean, so it is one sequence of which
    nothing is trained on (two `filler` ids).
    """
    found = []
    for segment in trace.segments if trace else ():
        if 1 not in segment.mask:
            continue
        first = segment.mask.index(1)
        end = len(segment.mask) - segment.mask[::-1].index(1)
        if first == 0:
            raise ValueError("a segment begins with a sampled id, so verl has no prompt for it")
        ids, mask, logprobs = segment.ids[first:end], segment.mask[first:end], segment.logprobs[first:end]
        found.append(Sample(segment.ids[:first], ids, mask, logprobs))
    return found or [Sample([filler], [filler], [0], [0.0])]


@dataclass(frozen=True)
class Played:
    """An episode that has a score, and what its requests took."""

    trajectory: Trajectory
    spent: Spent
    seconds: float
    """Wall time of its group."""
    figures: dict[str, float]
    """For verl's validation and for whoever reads the batch; the same names for every episode."""

    @property
    def reward(self) -> float:
        """What is learned from."""
        shaped = self.trajectory.shaped
        reward = self.trajectory.reward if shaped is None else shaped
        assert reward is not None  # those without one are left out
        return reward


@dataclass
class _Together:
    """The sessions of one row."""

    sessions: list[int] = field(default_factory=list)
    playing: asyncio.Task[list[Played]] | None = None
    left: int = 0


class Groups:
    """Plays the rows that a process of verl is given. `make_user` and `make_held_out_user` are the users of
    training and evaluation; `on_episode` hears of every finished episode, those without a score too."""

    def __init__(
        self,
        config: Config,
        domain: Domain,
        format: ChatFormat,
        make_user: MakeUser,
        make_held_out_user: MakeUser,
        on_episode: Callable[[Trajectory], None] = lambda trajectory: None,
    ):
        self.config = config
        self.domain = domain
        self.format = format
        self._make_user = {False: make_user, True: make_held_out_user}
        self._on_episode = on_episode
        self._open: dict[str, _Together] = {}

    async def play(self, row: Row, engine: ServerEngine, sampling: Mapping[str, Any]) -> Played | None:
        """The session's episode; None when it has no score and stays out of the batch.

        Raises InfrastructureError when the whole group is to stay out, and MuaError for a task that the
        domain has not, or not any more.
        """
        together = self._open.setdefault(row.uid, _Together())
        if together.playing is not None:
            raise MuaError(f"session {row.session} of {row.task_id} came after its group had begun to play")
        together.sessions.append(row.session)
        try:
            await asyncio.sleep(0)  # verl has made the tasks of all sessions before the first one runs
            if together.playing is None:
                together.sessions.sort()
                size = len(together.sessions)
                together.playing = asyncio.ensure_future(self._group(row, size, engine, sampling))
            played = await asyncio.shield(together.playing)
        finally:
            together.left += 1
            if together.left == len(together.sessions):
                del self._open[row.uid]
                if together.playing is not None and not together.playing.done():
                    together.playing.cancel()  # verl gave all of its sessions up
        place = together.sessions.index(row.session)
        return played[place] if place < len(played) else None

    def task(self, row: Row) -> Task:
        """The task of a row, of which the domain here must have the same content as the data set."""
        task = next((t for t in self.domain.tasks(row.split) if t.id == row.task_id), None)
        if task is None or task.fingerprint != row.fingerprint:
            what = "has no such task" if task is None else "has another task of that name"
            raise MuaError(
                f"the data set has {self.domain.name} {row.split} {row.task_id}, but the domain on this "
                f"machine {what}: install the same version of mua and of the domain on all machines, then "
                "write the data set again (mua train --engine verl)."
            )
        return task

    async def _group(
        self, row: Row, size: int, engine: ServerEngine, sampling: Mapping[str, Any]
    ) -> list[Played]:
        config, domain, task = self.config, self.domain, self.task(row)
        made: list[tuple[TokenTrace, str]] = []
        how = Sampling(
            temperature=float(sampling.get("temperature", 1.0)),
            top_p=float(sampling.get("top_p", 1.0)),
            max_tokens=config.max_step_tokens if row.held_out else config.train.max_step_tokens,
        )

        def make_agent(task: Task, session: str, seed: int) -> ModelAgent:
            tools = domain.task_tools(task)
            agent = ModelAgent(self.format, engine, tools, sampling=how, session=session, seed=seed)
            made.append((agent.trace, session))
            return agent

        began = asyncio.get_running_loop().time()
        (group,) = await play_groups(
            domain,
            [task],
            make_agent,
            self._make_user[row.held_out],
            _settings(config, size, row.held_out),
            limits=config.limits,
            seed=derive_seed("verl", config.seed, config.train.seed, row.split, row.index, row.step),
            step=row.step,
            faults=config.eval.faults if row.held_out else config.train.faults,
            on_episode=self._on_episode,
        )
        seconds = asyncio.get_running_loop().time() - began
        if not row.held_out and size > 1 and len(group.trajectories) < 2:
            raise InfrastructureError(_why(group, size))

        def spent(trajectory: Trajectory) -> Spent:
            session = next((name for trace, name in made if trace is trajectory.trace), "")
            return engine.spent.get(session, Spent())

        return [
            Played(t, spent(t), seconds, figures(domain, task, t))
            for t in group.trajectories
            if t.reward is not None
        ]


def _settings(config: Config, size: int, held_out: bool) -> RolloutSettings:
    """Held-out episodes are measured: none shares an opening, is left out or shaped."""
    if held_out:
        return RolloutSettings(group_size=size, freeze_opening=False)
    return config.train.rollout.model_copy(update={"group_size": size})


def _why(group: Group, size: int) -> str:
    details = {t.detail for t in group.failed if t.detail}
    return (
        f"of {size} episodes of {group.task.id} {len(group.trajectories)} have a score ({group.excluded} "
        f"broken by infrastructure, {len(group.unfaithful)} left out for their user): the group is left out"
        + (f": {'; '.join(sorted(details))[:300]}" if details else "")
    )


def figures(domain: Domain, task: Task, trajectory: Trajectory) -> dict[str, float]:
    """Numbers of an episode, by name: outcome, end, cost, and per layer of the audit 1.0 where it has a
    violation. Names do not depend on the episode: verl wants the same for all."""
    found = audit(domain, task, trajectory)
    usage = dataclasses.asdict(trajectory.usage)
    return {
        "outcome": float(trajectory.reward or 0.0),
        "normal_end": float(trajectory.termination.normal),
        "attempts": float(trajectory.attempts),
        "fault_seconds": float(trajectory.faults.get("seconds", 0.0)),
        **{name: float(value) for name, value in usage.items()},
        **{f"{layer}_violation": float(found.layer(layer) == "violation") for layer in LAYERS},
    }
