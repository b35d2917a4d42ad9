"""Environments that misbehave: tools that are slow, down, forbidden, out of date or answer in another shape.

A wrapped world (`misbehaving`) treats some of the agent's calls badly. Settings are rates, all 0 unless asked
for (`eval.faults`, `train.faults`); what happens derives from a seed of the episode.

- `permission`: a tool without permission refuses its first calls; a `spare` one all of them.
- `transient`: a call is refused with an error that says to try again.
- `timeout`: no answer but an error. The call has not run, or, for a share `timeout_ran` of writes, it has:
  the words are the same.
- `stale`: a read answers as it would have at the start of the episode, where that is something else.
- `renamed`: fields of a read's JSON answer (of each object, in a list) have other names, all episode long.
- `added`: a read's JSON answers have fields more, the same ones all episode long.
- `latency`: the answer takes seconds, which are counted, and with `sleep` waited for.

Rates of transient, timeout, stale and latency are per call; of permission and added per tool and episode; of
renamed per name of a field and episode. Draws are numbered by the agent's calls and do not share random
numbers, so a raised rate adds faults and moves none, as long as no bound is met.

A task stays solvable by whoever tries again: refusals of one tool come at most `in_a_row` times before a call
of it is let through, stale answers likewise, and together they come at most `most` times an episode. They are
no mistakes of the agent's and do not count against `Limits.errors`; but every try costs a step. With
`timeout_ran` a write may have happened that is told as failed, and who repeats it blindly does it twice: a
task then stays solvable only where a read of the domain shows what was written. With `spare` it does only if
the tools are spare indeed; what the task's gold calls never is.

What the agent got wrong (no such tool, unreadable arguments) is answered as ever, and the user's own tools
work. Tools of unknown effect (BFCL's) count as writes, so their answers keep their shape.

Invariants:
- Gold states and replays meet no fault. A call that was kept from running is marked in the conversation
  (`Message.unrun`) and left out where it is graded (`chat.carried_out`): stored verdicts are the live ones.
- Same seed and same calls, same faults; and nothing reaches a shared database.
- Without a rate above 0 there is no wrapper, and nothing changes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from .chat import Message, Side, ToolCall
from .domain import Domain, Task, ToolResult, World
from .errors import MuaError
from .seeds import derive_seed
from .tools import Tool, render_result
from .trajectory import Termination

Rate = Annotated[float, Field(ge=0, le=1)]


class FaultSettings(BaseModel):
    """How often the environment misbehaves, and how badly; the module says what each fault does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    transient: Rate = Field(default=0.0, description="Share of calls refused by a passing failure.")
    timeout: Rate = Field(default=0.0, description="Share of calls that are given up as too slow.")
    permission: Rate = Field(default=0.0, description="Chance of a tool to lack permission at first.")
    stale: Rate = Field(default=0.0, description="Share of reads answered from the start of the episode.")
    renamed: Rate = Field(default=0.0, description="Chance of a field to have another name.")
    added: Rate = Field(default=0.0, description="Chance of a reading tool to answer with more fields.")
    latency: Rate = Field(default=0.0, description="Share of calls that take `latency_seconds`, roughly.")
    timeout_ran: Rate = Field(
        default=0.0, description="Share of timed-out writes that have happened all the same."
    )
    in_a_row: int = Field(
        default=2, ge=1, description="Most refusals, or stale answers, of one tool in a row."
    )
    most: int = Field(default=10, ge=1, description="Most refusals and stale answers of an episode.")
    spare: tuple[str, ...] = Field(
        default=(),
        description="Reading tools that every task can do without: they may lack permission for good.",
    )
    latency_seconds: float = Field(default=5.0, ge=0, description="Mean wait; from half of it to 1.5 times.")
    timeout_seconds: float = Field(default=30.0, ge=0, description="Wait before a call is given up.")
    sleep: bool = Field(default=False, description="Really wait; else only count.")

    @property
    def active(self) -> bool:
        """Some fault can happen."""
        return any(getattr(self, kind) > 0 for kind in KINDS)

    @property
    def label(self) -> str:
        """What differs from the defaults, short, for names: `transient0.2-in_a_row1`."""
        return "-".join(f"{k}{_short(v)}" for k, v in self.model_dump(exclude_defaults=True).items())


KINDS = ("permission", "transient", "timeout", "stale", "renamed", "added", "latency")
"""The faults that have a rate of their own."""


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return ""
    return "+".join(value) if isinstance(value, tuple) else f"{value:g}"


def active(settings: FaultSettings | None) -> FaultSettings | None:
    """The settings, None where no fault can happen."""
    return settings if settings is not None and settings.active else None


def misbehaving(domain: Domain, task: Task, settings: FaultSettings | None, seed: int) -> World | None:
    """A fresh world of the task that misbehaves; None when it would not (play then opens one as ever).

    Raises MuaError for a task whose calls are no tool calls (prompt mode), which nothing here could hit.
    """
    if active(settings) is None:
        return None
    assert settings is not None
    if not domain.task_tools(task):
        raise MuaError(
            f"'{domain.name}' has no faults: its agent writes calls as text, so there are no tools that "
            "could fail. Set the rates of the faults to 0, or take a domain with tools."
        )
    return FaultyWorld(domain.open(task), settings, seed)


@dataclass(frozen=True)
class _Plan:
    """What is going to happen to one call, as far as it is known before."""

    refusal: str = ""
    """permission, transient or timeout."""
    ran: bool = False
    """It timed out, and has run all the same."""
    lasting: bool = False
    """A permission that does not come back."""
    stale: float = 1.0
    """Draws, each to be compared with its rate."""
    latency: float = 1.0
    length: float = 0.0


class FaultyWorld(World):
    """A world of which some calls of the agent go wrong. Its state is that of the world it wraps."""

    def __init__(self, world: World, settings: FaultSettings, seed: int):
        self.world = world
        self.domain, self.task = world.domain, world.task
        self._settings, self._seed = settings, seed
        self._hits: Counter[str] = Counter()
        self._seconds = 0.0
        self._due = 0.0
        """Seconds of the call that is made, to be waited for."""
        self._number = 0
        self._spent = 0
        self._refused: Counter[str] = Counter()  # in a row, by tool
        self._outdated: Counter[str] = Counter()  # likewise
        self._granted: set[str] = set()
        self._planned: deque[tuple[ToolCall, _Plan]] = deque()
        self._past: World | None = None

    @property
    def db(self) -> Any:  # type: ignore[override]
        """The state of the wrapped world."""
        return self.world.db

    @property
    def faults(self) -> Mapping[str, float]:  # type: ignore[override]
        """How often each fault has happened, and the seconds that calls took for it."""
        seconds = {"seconds": round(self._seconds, 3)} if self._seconds else {}
        return {**{kind: self._hits[kind] for kind in sorted(self._hits)}, **seconds}

    def tools(self, side: Side = "assistant") -> dict[str, Tool]:
        return self.world.tools(side)

    def begin_turn(self, turn: int) -> None:
        self.world.begin_turn(turn)

    def begin_step(self, message: Message) -> None:
        """Decides at once about all calls of the step: a world may run them together, now."""
        self._planned = deque((call, self._plan(call)) for call in message.tool_calls)
        runs = tuple(call for call, plan in self._planned if not plan.refusal or plan.ran)
        if runs:
            self.world.begin_step(dataclasses.replace(message, tool_calls=runs))

    def over(self, messages: Sequence[Message]) -> Termination | None:
        return self.world.over(messages)

    def call(self, side: Side, call: ToolCall) -> ToolResult:
        result = self._called(side, call)
        time.sleep(self._wait())
        return result

    async def perform(self, side: Side, call: ToolCall) -> ToolResult:
        """As `call`; the other episodes go on while this one waits."""
        result = self._called(side, call)
        if seconds := self._wait():
            await asyncio.sleep(seconds)
        return result

    def _wait(self) -> float:
        seconds, self._due = self._due, 0.0
        return seconds if self._settings.sleep else 0.0

    def _called(self, side: Side, call: ToolCall) -> ToolResult:
        if side != "assistant":
            return self.world.call(side, call)
        known = self._planned and self._planned[0][0] == call
        plan = self._planned.popleft()[1] if known else self._plan(call)
        if plan.refusal:
            return self._refuse(call, plan)
        result = self.world.call(side, call)
        tool = self.world.tools().get(call.name)
        if tool is None or call.error:
            return result
        if plan.latency < self._settings.latency:
            self._hit("latency", self._settings.latency_seconds * (0.5 + plan.length))
        if result.ends or tool.effect != "read":
            return result
        result = self._as_it_was(call, result, plan)
        return result if result.error else self._reshaped(tool, result)

    # ------------------------------------------------------------ deciding

    def _plan(self, call: ToolCall) -> _Plan:
        number, self._number = self._number, self._number + 1
        tool = self.world.tools().get(call.name)
        if tool is None or call.error:
            return _Plan()
        settings, name = self._settings, tool.name
        draw = random.Random(derive_seed(self._seed, "call", number)).random
        timeout, ran, transient, stale, latency, length = (draw() for _ in range(6))
        if self._lacks_permission(tool) and self._is_spare(tool):
            return _Plan("permission", lasting=True)
        kind = ""
        if name not in self._granted and self._lacks_permission(tool):
            kind = "permission"
        elif timeout < settings.timeout:
            kind = "timeout"
        elif transient < settings.transient:
            kind = "transient"
        if kind and self._refused[name] < settings.in_a_row and self._spent < settings.most:
            self._refused[name] += 1
            self._spent += 1
            return _Plan(kind, kind == "timeout" and tool.effect == "write" and ran < settings.timeout_ran)
        self._refused[name] = 0
        self._granted.add(name)
        return _Plan(stale=stale, latency=latency, length=length)

    def _lacks_permission(self, tool: Tool) -> bool:
        return self._draw("permission", tool.name).random() < self._settings.permission

    def _is_spare(self, tool: Tool) -> bool:
        """What gold calls is never spare, whatever the settings say."""
        spare = tool.effect == "read" and tool.name in self._settings.spare
        return spare and all(action.name != tool.name for action in self.task.actions)

    def _draw(self, what: str, name: str) -> random.Random:
        """Random numbers for one thing, the same all episode long."""
        return random.Random(derive_seed(self._seed, what, name))

    # ------------------------------------------------------------ happening

    def _hit(self, kind: str, seconds: float = 0.0) -> None:
        self._hits[kind] += 1
        self._seconds += seconds
        self._due += seconds

    def _refuse(self, call: ToolCall, plan: _Plan) -> ToolResult:
        if plan.refusal == "timeout":
            if plan.ran:
                self.world.call("assistant", call)
            kind = "timeout_ran" if plan.ran else "timeout"
            self._hit(kind, self._settings.timeout_seconds)
            # The same words for both: who is told of a timeout does not know.
            text = (
                f"Error: {call.name} did not answer within {self._settings.timeout_seconds:g} seconds. It "
                "may have been carried out or not; look before you change anything again."
            )
            return ToolResult(text, error=True, fault=kind, unrun=not plan.ran)
        self._hit(plan.refusal)
        if plan.refusal == "transient":
            text = f"Error: {call.name} is unavailable for the moment, nothing was changed. Try again."
        elif plan.lasting:
            text = f"Error: you have no permission for {call.name}, nothing was changed. Use other tools."
        else:
            text = f"Error: you have no permission for {call.name} yet, nothing was changed. Try again."
        return ToolResult(text, error=True, fault=plan.refusal, unrun=True)

    def _as_it_was(self, call: ToolCall, result: ToolResult, plan: _Plan) -> ToolResult:
        """The answer of the episode's start, where it is to be stale and differs."""
        drawn = plan.stale < self._settings.stale
        if (
            drawn
            and self._outdated[call.name] < self._settings.in_a_row
            and self._spent < self._settings.most
        ):
            if self._past is None:
                self._past = self.domain.open(self.task)
            old = self._past.call("assistant", call)
            if (old.content, old.error) != (result.content, result.error):
                self._outdated[call.name] += 1
                self._spent += 1
                self._hit("stale")
                return dataclasses.replace(old, fault="stale")
        self._outdated[call.name] = 0
        return result

    def _reshaped(self, tool: Tool, result: ToolResult) -> ToolResult:
        """The answer with renamed and added fields; as it is, to the letter, where none is."""
        settings = self._settings
        if not (settings.renamed or settings.added):
            return result
        try:
            value = json.loads(result.content)
        except ValueError:
            return result
        rows = value if isinstance(value, list) else [value]
        if not rows or not all(isinstance(row, dict) for row in rows):
            return result
        draw = self._draw("added", tool.name)
        extra = {}
        if draw.random() < settings.added:
            extra = {field: _EXTRA[field] for field in draw.sample(sorted(_EXTRA), draw.randint(1, 2))}
        made = [self._fields(row, extra) for row in rows]
        kinds = [kind for kind in ("renamed", "added") if any(kind in found for _, found in made)]
        if not kinds:
            return result
        for kind in kinds:
            self._hit(kind)
        out = [row for row, _ in made]
        fault = "+".join([*([result.fault] if result.fault else []), *kinds])
        content = render_result(out if isinstance(value, list) else out[0])
        return dataclasses.replace(result, content=content, fault=fault)

    def _fields(
        self, row: Mapping[str, Any], extra: Mapping[str, Any]
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """One object with its fields renamed and others added, and which of the two happened."""
        names = {key: self._name(key) for key in row}
        taken = Counter([*row, *(new for key, new in names.items() if new != key)])
        names = {key: new if new == key or taken[new] == 1 else key for key, new in names.items()}
        out = {new: row[key] for key, new in names.items()}
        more = {field: value for field, value in extra.items() if field not in out}
        found = {"renamed"} if any(new != key for key, new in names.items()) else set()
        return {**out, **more}, frozenset(found | ({"added"} if more else set()))

    def _name(self, key: str) -> str:
        """What a field is called in this episode."""
        draw = self._draw("renamed", key)
        if draw.random() >= self._settings.renamed:
            return key
        first, *rest = key.split("_")
        camel = first + "".join(part.capitalize() for part in rest)
        return draw.choice([f"current_{key}", f"{key}_value", *([camel] if camel != key else [])])


_EXTRA: Mapping[str, Any] = {
    "api_version": "2.4",
    "cached": False,
    "deprecated_fields": [],
    "request_id": "7f3a-19c2",
    "served_by": "node-4",
    "total_rows": None,
}
"""Fields that a newer version of a server might add; none says anything about what is asked."""


def counts(faults: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The faults of several episodes together."""
    total: Counter[str] = Counter()
    for of_one in faults:
        for kind, n in of_one.items():
            total[kind] += n  # type: ignore[assignment]
    return {kind: round(total[kind], 3) for kind in sorted(total)}


def was_hit(faults: Mapping[str, float]) -> bool:
    """The agent could see something of it: a wait alone cannot be seen."""
    return any(kind not in ("latency", "seconds") for kind in faults)
