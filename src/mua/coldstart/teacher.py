"""Conversations played by models behind endpoints, verified like all others.

One endpoint plays the agent; another, or the domain's agenda user, plays the person; the tools run for real.
A task gets several attempts, until one passes `verification` (and the judge, if there is one).

Invariants:
- What was played stands in a record, whole lines only, before anything is made of it: after a kill nothing
  that was finished is played, or paid for, again.
- Which conversations are kept depends on the answers alone, never on the order in which they came: tasks
  are decided in the order that the seed gives them, and none is begun that could be one too many.
- A judge that fails drops nothing. What infrastructure broke is no attempt: it is played again, by a later
  call too; when it goes on failing, all ends with what there is.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..agents.endpoint import EndpointAgent
from ..domain import Domain, Task
from ..endpoint import Endpoint
from ..episode import Limits, play
from ..errors import InfrastructureError, MuaError
from ..faults import FaultSettings, misbehaving
from ..gateway import Gateways
from ..rollout import MakeUser
from ..seeds import derive_seed
from ..trajectory import Termination, Trajectory
from ..users.llm import LlmUser
from ..users.personas import Mix, with_personas
from . import TeacherSettings, judge
from .dataset import SPLIT, About, line
from .duplicates import Seen
from .record import Counts, Key, Record, add_up
from .verification import CHECKS, DUPLICATE, Check, Verification

VETOED = "vetoed by the judge"
PLAYS = 3
"""Times that an attempt is begun before an infrastructure failure ends its task."""

PATIENCE = 50
"""Tasks of a domain after which it is given up when nothing was kept."""

_LICENCE = (
    "Policies, tools, tasks and the words of programs: Apache-2.0, as mua. What the models wrote is under "
    "the terms of whoever serves them: look whether they let you train on it."
)


@dataclass(frozen=True)
class Kept:
    """A conversation that passed."""

    task: Task
    trajectory: Trajectory
    final: str
    """Digest of its end state."""
    attempt: int


@dataclass(frozen=True)
class Outcome:
    """What became of a task."""

    kept: Kept | None
    causes: Sequence[str]
    """Why its other conversations were dropped."""


class Teacher:
    """The endpoints, shared by all conversations. Close it afterwards.

    Raises MuaError when the environment variable of a key is not set.
    """

    def __init__(self, settings: TeacherSettings, gateways: Gateways | None = None):
        """`gateways` has those that the settings name; they are closed with the teacher."""
        self.settings = settings
        self._gateways = gateways or Gateways()
        self.agent = Endpoint(settings.agent, "agent", self._gateways)
        self.user = Endpoint(settings.user, "user", self._gateways) if settings.user else None
        self.judge = Endpoint(settings.judge, "judge", self._gateways) if settings.judge else None
        self.judged = collections.Counter[str]()
        """`read`, `vetoed`, and `failed`: no opinion was to be had, so the conversation was kept."""
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._failures = 0
        """Conversations that infrastructure broke, one after the other."""
        self._stopping = False

    @property
    def names(self) -> dict[str, str]:
        """Role → model, of those that take part."""
        return {e.role: e.settings.model for e in self._endpoints()}

    def _endpoints(self) -> list[Endpoint]:
        return [e for e in (self.agent, self.user, self.judge) if e is not None]

    async def check(self, domain: Domain) -> None:
        """Asks each endpoint once, those that play with the tools of the domain. Raises MuaError."""
        sides = {"agent": domain.tools("assistant"), "user": domain.tools("user")}
        for endpoint in self._endpoints():
            await endpoint.check(list(sides.get(endpoint.role, {}).values()))

    async def close(self) -> None:
        for endpoint in self._endpoints():
            await endpoint.close()
        await self._gateways.close()

    def figures(self) -> dict[str, Any]:
        """Role → what was asked of its endpoint by this call, how long that took, what went wrong."""
        return {e.role: e.meter.figures() for e in self._endpoints()}

    def spent(self) -> dict[str, Counts]:
        """Role → what its endpoint has cost by now, failed requests included."""
        return {
            e.role: {
                "requests": e.requests,
                "prompt_tokens": e.prompt_tokens,
                "completion_tokens": e.completion_tokens,
                "dollars": e.cost,
            }
            for e in self._endpoints()
        }

    def can_play(self, domain: Domain, task: Task) -> bool:
        """Somebody plays the user of this task."""
        return self.user is not None or domain.is_scripted(task) or domain.user(task, 0) is not None

    # ------------------------------------------------------------ many

    async def conversations(
        self,
        domain: Domain,
        tasks: Sequence[Task],
        count: int,
        seed: int,
        record: Record,
        *,
        limits: Limits = Limits(),
        personas: Mix | None = None,
        faults: FaultSettings | None = None,
        checks: Collection[Check] = CHECKS,
        dropped: collections.Counter[str] | None = None,
        on_progress: Callable[[int, str], None] = lambda done, words: None,
    ) -> list[Kept]:
        """Up to `count` conversations over the tasks, each at most once, in an order that the seed decides;
        none when the first `PATIENCE` tasks brought none.

        `dropped` counts the others by cause. `on_progress` hears of each news and once a second; when it
        raises, the conversations that were begun are ended and recorded first. Raises MuaError when the
        endpoints go on failing.
        """
        dropped = dropped if dropped is not None else collections.Counter()
        verification = Verification(domain, [c for c in checks if c != "duplicates"])
        seen = Seen() if "duplicates" in checks else None
        order = [task for task in tasks if self.can_play(domain, task)]
        random.Random(derive_seed(seed, "order", domain.name)).shuffle(order)
        upcoming = iter(order[: self.settings.tasks])

        def begin(task: Task, attempt: int) -> Awaitable[Trajectory]:
            own = derive_seed(seed, "teacher", domain.name, task.id, attempt)
            return self._play(domain, task, own, limits, personas, faults)

        async def one(task: Task) -> Outcome:
            async with self._slots:
                return await self._attempts(domain, task, verification, record, begin)

        kept: list[Kept] = []
        window: collections.deque[asyncio.Task[Outcome]] = collections.deque()
        tried = 0
        try:
            while True:
                hopeful = sum(not w.done() or w.result().kept is not None for w in window)
                while len(kept) + hopeful < count and (task := next(upcoming, None)) is not None:
                    window.append(asyncio.create_task(one(task)))
                    hopeful += 1
                if not window:
                    return kept
                if not window[0].done():
                    running = [w for w in window if not w.done()]
                    await asyncio.wait(running, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                while window and window[0].done():
                    outcome = window.popleft().result()
                    dropped.update(outcome.causes)
                    tried += 1
                    found = outcome.kept
                    if found and seen and seen.twin(found.task.id, found.trajectory.messages):
                        dropped[DUPLICATE] += 1
                    elif found:
                        kept.append(found)
                    if not kept and tried == PATIENCE:  # whatever else has ended by now: no clock decides
                        break
                on_progress(len(kept), self._words(dropped, record))
                if not kept and tried >= PATIENCE:
                    return kept
        except Exception:
            self._stopping = True
            await asyncio.gather(*window, return_exceptions=True)
            raise
        finally:
            for left in window:
                left.cancel()

    def _words(self, dropped: Mapping[str, int], record: Record) -> str:
        total = add_up([record.spent, self.spent()])
        tokens = sum(c["prompt_tokens"] + c["completion_tokens"] for c in total.values())
        words = f"{sum(dropped.values())} dropped, {tokens:,.0f} tokens"
        dollars = sum(c["dollars"] for c in total.values())
        return f"{words}, ${dollars:.2f}" if dollars else words

    # ------------------------------------------------------------ one

    async def _attempts(
        self,
        domain: Domain,
        task: Task,
        verification: Verification,
        record: Record,
        begin: Callable[[Task, int], Awaitable[Trajectory]],
    ) -> Outcome:
        """Attempts at a task until one passes all but the comparison with others."""
        causes: list[str] = []
        for attempt in range(self.settings.attempts):
            key = (domain.name, task.id, attempt)
            found = record.played.get(key)
            if found is None or found.fingerprint != task.fingerprint:
                found = await self._played(key, record, lambda: begin(task, attempt))  # noqa: B023
            if found is None:
                break
            why, world = verification.examine(task, found)
            if world is not None:
                final = world.db.digest()
                if not await self._vetoed(domain, task, found, key, record):
                    return Outcome(Kept(task, found, final, attempt), causes)
                why = VETOED
            causes.append(why)
            if found.termination.infrastructure:
                break
        return Outcome(None, causes)

    async def _played(
        self, key: Key, record: Record, begin: Callable[[], Awaitable[Trajectory]]
    ) -> Trajectory | None:
        """The attempt, recorded; the last of `PLAYS` tries where infrastructure broke them all, which is not
        recorded as one. None when all is about to end."""
        found = None
        for _ in range(PLAYS):
            if self._stopping:
                return None
            found = await begin()
            if not found.termination.infrastructure:
                self._failures = 0
                record.add(key, self.spent(), trajectory=found.to_dict())
                break
            record.add(key, self.spent(), failed=found.detail)
            self._failures += 1
            if self._failures >= 2 * max(PLAYS, self.settings.concurrency):
                raise MuaError(
                    f"{self._failures} conversations in a row could not be played: {found.detail} What was "
                    f"played is in {record.folder.path / record.name}.jsonl; mend that and run the same "
                    "command again, which goes on."
                )
        return found

    async def _play(
        self,
        domain: Domain,
        task: Task,
        seed: int,
        limits: Limits,
        personas: Mix | None,
        faults: FaultSettings | None,
    ) -> Trajectory:
        """One conversation; what infrastructure broke says so in its termination."""
        make_user: MakeUser | None = domain.agenda_user
        if self.user is not None:
            tools = domain.task_tools(task, "user")
            make_user = functools.partial(LlmUser, self.user, tools=tools)
        if make_user is not None and personas:
            make_user = with_personas(make_user, personas, seed, instructed=self.user is not None)
        try:
            user = domain.user(task, seed)
            if user is None:
                assert make_user is not None  # `can_play`
                user = make_user(task, seed)
            agent = EndpointAgent(self.agent, domain.task_tools(task), derive_seed(seed, "agent"))
            world = misbehaving(domain, task, faults, derive_seed(seed, "faults"))
            return await play(domain, task, agent, user, limits=limits, seed=seed, world=world)
        except InfrastructureError as exc:  # the world could not even be opened
            broken = Termination.TOOLS_FAILED
            return Trajectory(
                domain.name, task.id, task.kind, task.fingerprint, [], broken, seed, detail=str(exc)
            )

    async def _vetoed(self, domain: Domain, task: Task, found: Trajectory, key: Key, record: Record) -> bool:
        if self.judge is None:
            return False
        self.judged["read"] += 1
        name = self.names["judge"]
        opinion = record.opinions.get((key, name))
        if opinion is None:
            opinion = await judge.ask(self.judge, domain, task, found.messages)
            if opinion is None:
                self.judged["failed"] += 1
                return False
            record.add(key, self.spent(), judge=name, veto=opinion.veto, reason=opinion.reason)
        self.judged["vetoed"] += opinion.veto
        return opinion.veto

    # ------------------------------------------------------------ a data set

    async def lines(
        self, domain: Domain, count: int, seed: int, record: Record, **how: Any
    ) -> tuple[list[dict[str, Any]], collections.Counter[str]]:
        """Up to `count` lines of one domain for `dataset.build`, and what was dropped; `how` goes to
        `conversations`."""
        dropped: collections.Counter[str] = collections.Counter()
        kept = await self.conversations(
            domain, domain.tasks(SPLIT), count, seed, record, dropped=dropped, **how
        )
        found = [
            {
                **line(domain, k.task, k.trajectory, k.final),
                "agent": self.names["agent"],
                "attempt": k.attempt,
            }
            for k in kept
        ]
        return found, dropped

    def about(self, record: Record) -> About:
        """What the card says of a set that this teacher played."""
        names = self.names
        agent = f"`{names['agent']}`"
        user = f"`{names['user']}`" if "user" in names else "a program that follows the task's agenda"
        how = (
            f"The model {agent}, behind an OpenAI-compatible endpoint, played the agent, {user} the person; "
            f"the tools ran for real. Only tasks of the train splits were played, each in up to "
            f"{self.settings.attempts} attempts, until one passed; `teacher/attempts.jsonl` has all of them. "
            "A model's answers differ from call to call: the command goes on where it was stopped, and makes "
            "the same files only from the same answers."
        )
        spent = add_up([record.spent, self.spent()])
        rows = [
            f"- {role} `{names[role]}`: {c['requests']:,.0f} requests, {c['prompt_tokens']:,.0f} prompt and "
            f"{c['completion_tokens']:,.0f} completion tokens, ${c['dollars']:.2f}"
            for role, c in spent.items()
            if role in names
        ]
        how += "\n\nWhat that took, dropped conversations included:\n\n" + "\n".join(rows)
        if self.judge is not None:
            how += (
                f"\n\n`{names['judge']}` read the {self.judged['read']} conversations that passed the checks "
                f"below and vetoed {self.judged['vetoed']}; {self.judged['failed']} times it gave no opinion "
                "that could be read, and the conversation was kept."
            )
        return About(how, _LICENCE, {"models": names, "spent": spent, "judge": dict(self.judged)})
