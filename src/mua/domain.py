"""Domains, tasks and worlds.

A domain is policy text, a database, a toolkit for each side and tasks in named splits. A world is the
live state of one episode: an overlay of the database and the toolkits bound to it.

Invariants:
- A failed call changes nothing, and its text says what to do instead.
- A verdict is a pure function of domain, task and conversation: grading stored messages again gives
  the same verdict as the live episode.
- Training on a task that stands in an evaluation split is refused, by content, not by name.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from .chat import Message, Side, ToolCall, carried_out
from .database import Base, Database, Row, canonical_text
from .errors import InfrastructureError, MuaError, unreadable
from .tools import ArgumentError, Tool, ToolError, render_result, toolkit_tools
from .trajectory import Termination, Trajectory


@dataclass(frozen=True)
class Scenario:
    """What the simulated person knows and wants; a language-model user is told all of it, in words."""

    goal: str
    """What the person wants, in the second person, with what to do at each turn of events."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What the person can tell when asked: card number, postcode, …"""
    persona: str = ""
    """How the person speaks."""
    agenda: Mapping[str, Any] = field(default_factory=dict)
    """The same goal as data, for the domain's agenda user and its expert program. JSON values only."""
    prompt: str = ""
    """The whole system prompt of a language-model user, where a benchmark prescribes one."""
    greeting: str = ""
    """What an endpoint that plays the user is shown as the agent's first words, where a benchmark prescribes
    it; the agent never said them."""
    own_role: Literal["assistant", "system"] = "assistant"
    """The role in which an endpoint that plays the user is shown its own earlier turns."""


@dataclass(frozen=True)
class Change:
    """One row of the initial state that a task sets (or, with None, removes)."""

    table: str
    key: str
    row: Row | None


@dataclass(frozen=True)
class Action:
    """A gold call: replayed on the initial state, the calls make the gold end state."""

    name: str
    arguments: Mapping[str, Any]
    requestor: Side = "assistant"


@dataclass(frozen=True)
class Task:
    id: str
    kind: str
    """The family the task belongs to; results are broken down by it."""
    scenario: Scenario
    actions: tuple[Action, ...]
    setup: tuple[Change, ...] = ()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of what makes the task what it is: initial state, goal and gold actions; neither its
        name nor its persona. Equal fingerprints mean the same task."""
        content = {
            "setup": [[c.table, c.key, c.row] for c in self.setup],
            "goal": dict(self.scenario.agenda) or self.scenario.goal,
            "facts": dict(self.scenario.facts),
            "actions": [[a.requestor, a.name, a.arguments] for a in self.actions],
        }
        return hashlib.sha256(canonical_text(content).encode()).hexdigest()


@dataclass(frozen=True)
class ToolResult:
    content: str
    error: bool = False
    ends: bool = False
    """The episode ends with this call: it handed the conversation over."""
    done: bool = False
    """Beside `ends`: the agent says that the work is done, there was nobody to hand over to."""
    fault: str = ""
    """How the environment misbehaved (`faults`)."""
    unrun: bool = False
    """A fault kept the call from running."""


@dataclass(frozen=True)
class Verdict:
    """What an episode earned, and why."""

    reward: float
    components: Mapping[str, float]
    reason: str
    """One line in words: what differs from gold, or how the episode failed."""


T = TypeVar("T")
REPLAYS = 5
"""Times that calls which nobody waits for in a conversation (gold ones, stored ones) are begun before an
infrastructure failure counts."""


def persistently(work: Callable[[], T]) -> T:
    """What `work` gives; begun again where infrastructure broke it, which a replay from the start allows."""
    for _ in range(REPLAYS - 1):
        with contextlib.suppress(InfrastructureError):
            return work()
    return work()


Ask = Callable[[Sequence[Message]], Awaitable[str]]
"""A judge: messages → what it answers."""

Toolkit = Callable[[Database], Any]
"""A class of tool methods that is given the episode's database."""


class Limits(BaseModel):
    """When an episode is cut short. The paper's: 30 turns of at most 1,024 tokens a step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    turns: int = Field(default=30, ge=1, description="User turns that the agent may answer.")
    steps: int = Field(default=60, ge=1, description="Agent steps, calls included.")
    turn_steps: int | None = Field(default=None, ge=1, description="Agent steps within one turn.")
    errors: int = Field(default=10, ge=1, description="Failed calls of the agent.")
    hops: int | None = Field(
        default=None, ge=1, description="Steps of agent, user and tools together, as τ²-bench counts them."
    )


@dataclass(frozen=True)
class Domain:
    """A domain; a benchmark's is a subclass that overrides what it prescribes."""

    name: str
    policy: str
    """The rules the agent must follow, shown to it as part of the system prompt."""
    load_base: Callable[[], Base]
    load_split: Callable[[str], Sequence[Task]]
    """Tasks of one split; called once a split and kept."""
    splits: tuple[str, ...]
    toolkits: Mapping[Side, type]
    tool_names: Mapping[Side, tuple[str, ...]] = field(default_factory=dict)
    """The tools each side is given, where that is fewer than its toolkit has."""
    expert: Callable[[World, Any, int], Any] | None = None
    """Makes the expert program that plays the agent in verified conversations: (world, user, seed)."""
    hasty_expert: Callable[[World, Any, int], Any] | None = None
    """Makes an expert without manners, which acts before it looks and asks (`coldstart.hasty`)."""
    agenda_user: Callable[[Task, int], Any] | None = None
    """Makes the program that plays the user: (task, seed) → User."""
    conduct: Any = None
    """The rules of conduct in the domain's `audit.yaml` (`audit.Conduct`), None where it has none."""
    violations: Callable[[Task, Sequence[Message]], list[str]] | None = None
    """Breaches of the policy in a stored conversation that its end state cannot show; those of `conduct`,
    unless a function is given."""
    limits: Limits | None = None
    """What an episode may take, where a benchmark prescribes it."""
    greeting: str = ""
    """What the agent has said when the user first speaks; it is no step of the agent."""
    stop_markers: tuple[str, ...] = ()
    """What ends the conversation when a user says it, beside the user's own stop."""
    user_errors: bool = False
    """Failed calls of the user count against `Limits.errors` too."""
    user_asides: bool = True
    """The agent hears what the user writes beside its tool calls."""
    load_extra: Callable[[str], Sequence[Task] | None] | None = None
    """Tasks beyond `splits`, made on demand or read from a file, by the name of a split or of one task; None
    when the name means nothing here."""

    weights: Mapping[str, float] = field(default_factory=dict)
    """Of a mixture: how often tasks of each of its `members` are drawn, in proportion."""

    def __post_init__(self) -> None:
        if self.conduct is not None and (self.violations is None or isinstance(self.violations, _Violations)):
            object.__setattr__(self, "violations", _Violations(self))

    def record(self, table: str, key: str) -> Mapping[str, Any] | None:
        """A row of the database as it is before any task; None where there is no such table or row."""
        return self.base.tables.get(table, {}).get(key)

    @property
    def members(self) -> tuple[Domain, ...]:
        """The domain itself; of a mixture, the domains that it is made of."""
        return (self,)

    def of(self, task: Task) -> tuple[Domain, Task]:
        """The one of `members` that a task is of, and the task as that one knows it."""
        return self, task

    def digest(self) -> str:
        """A hash of the database as it is before any task."""
        return self.base.open().digest()

    def system_prompt(self, task: Task) -> str:
        """What the agent is told before the conversation; the tools are added by its chat template. With
        an empty one there is no system message."""
        return self.policy.strip()

    def user(self, task: Task, seed: int) -> Any:
        """The user that the task prescribes (a script), whoever else is configured; None: nobody."""
        return None

    def agent(self, task: Task, agent: Any) -> Any:
        """The agent of one episode as the domain prescribes it: a benchmark wraps the given one, where it
        shows the conversation, or reads calls, in a way of its own."""
        return agent

    def open(self, task: Task) -> World:
        """A fresh world for one episode."""
        return World(self, task)

    @functools.cached_property
    def base(self) -> Base:
        return self.load_base()

    @functools.cached_property
    def _tasks(self) -> dict[str, tuple[Task, ...]]:
        return {}

    def tasks(self, split: str) -> tuple[Task, ...]:
        if split not in self._tasks:
            more = self.load_extra(split) if split not in self.splits and self.load_extra else None
            if more is None and split not in self.splits and split.endswith(".json"):
                more = read_scenarios(Path(split), self.name)
            if split not in self.splits and more is None:
                raise MuaError(
                    f"domain '{self.name}' has no split '{split}'; it has {', '.join(self.splits)}"
                    + (", generated:COUNT:SEED, and files of generated tasks" if self.load_extra else "")
                )
            self._tasks[split] = tuple(self.load_split(split) if more is None else more)
        return self._tasks[split]

    def task(self, task_id: str) -> Task:
        """The task of that name in any split. Raises MuaError when there is none."""
        for split in (*self.splits, *(s for s in self._tasks if s not in self.splits)):
            found = self._by_id(split).get(task_id)
            if found:
                return found
        if self.load_extra and (more := self.load_extra(task_id)):
            return more[0]
        raise MuaError(
            f"domain '{self.name}' has no task {task_id!r:.100}; `mua tasks {self.name}` lists them"
        )

    def _by_id(self, split: str) -> dict[str, Task]:
        index = self.__dict__.setdefault("_ids", {})
        if split not in index:
            index[split] = {t.id: t for t in self.tasks(split)}
        return index[split]

    def tools(self, side: Side = "assistant") -> dict[str, Tool]:
        """The tools of one side, by name."""
        if side not in self.toolkits:
            return {}
        every = toolkit_tools(self.toolkits[side])
        names = self.tool_names.get(side)
        return {n: every[n] for n in names} if names else every

    def is_scripted(self, task: Task) -> bool:
        """The expert and the agenda user can play this task."""
        return self.expert is not None and self.agenda_user is not None

    def task_tools(self, task: Task, side: Side = "assistant") -> dict[str, Tool]:
        """The tools that a side has when an episode of the task begins."""
        return self.tools(side)

    def gold(self, task: Task) -> Database:
        """The end state that the task asks for, from replaying its gold actions; kept per task.

        Raises MuaError when a gold action fails: the task is broken.
        """
        # By content: a task that was changed under its old name has another gold state.
        cache = self.__dict__.setdefault("_gold", {})
        if task.fingerprint not in cache:
            cache[task.fingerprint] = persistently(lambda: self._gold_end(task))
        return cache[task.fingerprint]

    def _gold_end(self, task: Task) -> Database:
        world = self.open(task)
        for action in task.actions:
            result = world.call(action.requestor, ToolCall(action.name, action.arguments))
            if result.error:
                raise MuaError(
                    f"task '{task.id}' of domain '{self.name}' is broken: its gold action "
                    f"{action.name} fails: {result.content}"
                )
        return world.db

    def is_noop(self, task: Task) -> bool:
        """True when doing nothing already gives the gold state: such a task must not be trained on."""
        return self.gold(task).equals(self.open(task).db)

    def grade(
        self, task: Task, messages: Sequence[Message], termination: Termination, world: World | None = None
    ) -> Verdict:
        """The verdict on an episode. `world` is its live world, if that still stands; else one is made by
        replay, with the same verdict. Only a normal end can earn anything.
        """
        if not termination.normal:
            return Verdict(0.0, {"state": 0.0}, f"not scored: the episode ended by {termination.value}")
        world = world or self.replay(task, messages)
        differences = world.db.diff(self.gold(task))
        if differences:
            text = "; ".join(differences[:4]) + ("; …" if len(differences) > 4 else "")
            return Verdict(0.0, {"state": 0.0}, f"end state (here) differs from gold (there): {text}")
        return Verdict(1.0, {"state": 1.0}, "end state equals gold")

    async def settle(self, task: Task, trajectory: Trajectory, ask: Ask) -> None:
        """Completes the verdict on a scored episode by asking a judge (`mua eval --judge`), where the
        benchmark has criteria that only a reader can decide. Raises InfrastructureError without an answer."""

    def summary(self, trajectories: Iterable[Trajectory]) -> dict[str, Any]:
        """Figures of an evaluation beside its success rate, for its JSON."""
        return {}

    def replay(self, task: Task, messages: Iterable[Message]) -> World:
        """A new world after every call of a stored conversation, in order.

        As in the live episode, nothing runs after the agent's call that hands over, not even calls of
        the same message; nor what a fault kept from running.
        """
        messages = list(messages)
        return persistently(lambda: self._replayed(task, messages))

    def _replayed(self, task: Task, messages: Sequence[Message]) -> World:
        world = self.open(task)
        for message in carried_out(messages):
            side: Side = "user" if message.role == "user" else "assistant"
            if message.tool_calls and side == "assistant":
                world.begin_step(message)
            for call in message.tool_calls:
                if world.call(side, call).ends and side == "assistant":
                    return world
        return world


@dataclass(frozen=True, eq=False)
class _Violations:
    """`Domain.violations` by the domain's own rules; a changed copy of the domain gets one of its own."""

    domain: Domain = field(repr=False)

    def __call__(self, task: Task, messages: Sequence[Message]) -> list[str]:
        return self.domain.conduct.violations(self.domain, task, messages)


class World:
    """The live state of one episode. Holds no global: any number can be open at once."""

    faults: Mapping[str, float] = MappingProxyType({})
    """How often the environment has misbehaved, by kind (`faults`)."""

    def __init__(self, domain: Domain, task: Task):
        self.domain = domain
        self.task = task
        self.db = domain.base.open()
        for change in task.setup:
            try:
                if change.row is None:
                    self.db.delete(change.table, change.key)
                else:
                    self.db.put(change.table, change.key, change.row)
            except (KeyError, TypeError) as exc:
                raise MuaError(
                    f"task '{task.id}' of domain '{domain.name}' is broken: its initial state cannot be "
                    f"set: {exc.args[0]}"
                ) from None
        self._kits = {side: kit(self.db) for side, kit in domain.toolkits.items()}

    def tools(self, side: Side = "assistant") -> dict[str, Tool]:
        """The tools that this side may call now."""
        return self.domain.task_tools(self.task, side)

    def begin_turn(self, turn: int) -> None:
        """The user has spoken for the `turn`-th time (from 0): the moment at which tools may change."""

    def begin_step(self, message: Message) -> None:
        """The agent has written `message`, whose calls run next, one by one."""

    def over(self, messages: Sequence[Message]) -> Termination | None:
        """How the conversation ends here by a rule of the world's own (a count of messages, a word), if it
        does. Asked after every message of the user and of the agent (before its calls run), and after the
        calls of a step."""
        return None

    def call(self, side: Side, call: ToolCall) -> ToolResult:
        """Runs one call. Never raises for what a model did; an error leaves the state as it was.

        Raises InfrastructureError when a tool itself is out of order.
        """
        tools = self.tools(side)
        if call.error:
            return ToolResult(f"Error: this is not a valid tool call: {call.error}", error=True)
        tool = tools.get(call.name)
        if tool is None:
            return ToolResult(
                f"Error: there is no tool '{call.name[:80]}'. The tools are: {', '.join(tools)}.", error=True
            )
        if problems := tool.problems(call.arguments):
            return _not_called(tool, "; ".join(problems))
        return self.execute(side, tool, call.arguments)

    async def perform(self, side: Side, call: ToolCall) -> ToolResult:
        """`call`, as a live episode asks for it. A world whose tools wait for something else (a service far
        away) awaits it here, and the other episodes of the process go on meanwhile; replays use `call`."""
        return self.call(side, call)

    def execute(self, side: Side, tool: Tool, arguments: Mapping[str, Any]) -> ToolResult:
        """Runs a tool with arguments that satisfy its schema; fails as `call` does."""
        saved = self.db.fork()
        try:
            value = getattr(self._kits[side], tool.name)(**tool.convert(arguments))
            content = render_result(value)
        except ArgumentError as exc:
            return _not_called(tool, str(exc))
        except ToolError as exc:
            self.db.restore(saved)
            return ToolResult(f"Error: {exc}", error=True)
        except InfrastructureError:
            self.db.restore(saved)
            raise
        except Exception as exc:  # a bug in a tool is the tool's, never the agent's
            self.db.restore(saved)
            raise InfrastructureError(
                f"tool '{tool.name}' of domain '{self.domain.name}' is broken: {type(exc).__name__}: {exc}"
            ) from exc
        return ToolResult(content, ends=tool.effect == "end")


def _not_called(tool: Tool, problems: str) -> ToolResult:
    return ToolResult(f"Error: {tool.name} was not called: {problems}. Usage: {tool.usage()}", error=True)


def read_scenarios(path: Path, domain: str) -> list[Task]:
    """The tasks in the `scenarios.json` of an import (`mua import`): the scenarios whose end state is known.

    They have no agenda, so a language model has to play their users. Raises MuaError when there are none.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        of, found = data["domain"], [s for s in data["scenarios"] if s["task"]]
        tasks = [scenario_task(s) for s in found]
    except OSError as exc:
        raise MuaError(f"the scenarios {path} cannot be read: {unreadable(exc)}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise MuaError(
            f"{path} holds no scenarios ({type(exc).__name__}: {exc}); name the scenarios.json that "
            "`mua import` leaves in its folder."
        ) from None
    if of != domain:
        raise MuaError(f"{path} is of domain '{of}', not of '{domain}'; import the conversations for that.")
    if not tasks:
        raise MuaError(
            f"{path} has no scenario whose end state is known, so none can be trained on; each says `why`. "
            "Its personas can be used all the same (train_user.personas=…/personas.json)."
        )
    return tasks


def scenario_task(data: Mapping[str, Any]) -> Task:
    """The task in one scenario of such a file."""
    actions = tuple(Action(a["name"], a["arguments"], a["requestor"]) for a in data["actions"])
    return Task(data["id"], data["kind"], Scenario(data["goal"], dict(data["facts"])), actions)


def check_no_overlap(train: Iterable[Task], held_out: Iterable[Task], where: str) -> None:
    """Raises MuaError when a training task has the content of a held-out one."""
    known = {t.fingerprint: t.id for t in held_out}
    both = [(t.id, known[t.fingerprint]) for t in train if t.fingerprint in known]
    if both:
        shown = ", ".join(f"{a} = {b}" for a, b in both[:5])
        raise MuaError(
            f"{len(both)} training task(s) are also in {where}: {shown}. Training on evaluation tasks "
            "makes the evaluation worthless; choose another split, or take these tasks out."
        )


def check_no_noop(domain: Domain, tasks: Iterable[Task]) -> None:
    """Raises MuaError when doing nothing would earn the reward of a task.

    GRPO finds such tasks at once: it learns to refuse everyone, every group becomes constant, and
    training stops (docs/log.md has the experiment).
    """
    idle = [t.id for t in tasks if domain.is_noop(t)]
    if idle:
        raise MuaError(
            f"{len(idle)} task(s) of domain '{domain.name}' are solved by doing nothing: "
            f"{', '.join(idle[:5])}. Give them an end state that differs from the start "
            "(a refusal can write a case record), or leave them out."
        )
