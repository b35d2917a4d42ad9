"""τ¹ as a domain: its episode, its dispatch and its reward.

Invariants:
- The reward is upstream's: the end state's hash equals that of the replayed gold calls, and each of the
  task's outputs was said to the user.
- Nothing is validated: a call reaches its function as it was written, what raises answers `Error: …`, and
  what it changed before that stays.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...chat import Message, Side, ToolCall, carried_out
from ...database import Base, Database
from ...domain import Action, Domain, Limits, Scenario, Task, ToolResult, Verdict, World
from ...errors import MuaError
from ...tools import Tool
from ...trajectory import Termination, Trajectory
from .. import paper
from ..tau2 import conduct
from .airline import Airline
from .data import SPLITS, Data
from .retail import Refusal, Retail
from .rows import differences

TOOLKITS: dict[str, type] = {"retail": Retail, "airline": Airline}
TRANSFER = "transfer_to_human_agents"
LIMITS = Limits(turns=31, steps=30, errors=1_000)
"""30 steps of the agent, calls included; the user may still answer the last one, and stop."""


@dataclass(frozen=True)
class Tau1Task(Task):
    """A task of τ¹."""

    user_id: str = ""
    outputs: tuple[str, ...] = ()
    """What must be said to the user, in a message without calls."""


@dataclass(frozen=True)
class Tau1Domain(Domain):
    """One of the two domains."""

    descriptions: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Upstream's own tool descriptions, where they are installed."""
    version: str = ""
    data_hash: str = ""

    def summary(self, trajectories: Iterable[Trajectory]) -> dict[str, Any]:
        return {"version": self.version, "data_hash": self.data_hash, "paper": paper.columns(self.name)}

    def system_prompt(self, task: Task) -> str:
        return self.policy  # to the letter

    def tools(self, side: Side = "assistant") -> dict[str, Tool]:
        return self._described if side == "assistant" else {}

    @functools.cached_property
    def _described(self) -> dict[str, Tool]:
        """The tools, in upstream's words and order where they are installed, else in ours."""
        ours = super().tools()
        return {
            name: dataclasses.replace(
                ours[name], description=told["description"], parameters=told["parameters"]
            )
            for name, told in self.descriptions.items()
            if name in ours
        } or ours

    def agent(self, task: Task, agent: Any) -> Any:
        return FirstCallOnly(agent)

    def open(self, task: Task) -> World:
        return Tau1World(self, task)

    def gold(self, task: Task) -> Database:
        """The end state of the gold calls, those that fail included; kept per task."""
        cache = self.__dict__.setdefault("_gold", {})
        if task.fingerprint not in cache:
            world = self.open(task)
            for action in task.actions:
                if action.name != TRANSFER:
                    world.call("assistant", ToolCall(action.name, action.arguments))
            cache[task.fingerprint] = world.db
        return cache[task.fingerprint]

    def before_call(self, world: Tau1World, side: Side, call: ToolCall) -> Any:
        """For stricter variants: a ToolResult answers the call instead of the tool; anything else is handed
        to `after_failure`."""
        return None

    def after_failure(self, world: Tau1World, saved: Any) -> None:
        """For stricter variants: a call failed; upstream leaves what it changed."""

    def differences(self, here: Database, there: Database) -> list[str]:
        """What keeps two end states from being the same, in words."""
        return differences(here, there)

    def is_noop(self, task: Task) -> bool:
        """True when an episode without one call can earn the reward by its end state alone."""
        return not _outputs(task) and not differences(self.gold(task), self.base.open())

    def replay(self, task: Task, messages: Iterable[Message]) -> World:
        world = self.open(task)
        for message in carried_out(messages):
            calls = message.tool_calls if message.role == "assistant" else ()
            if calls and world.call("assistant", calls[0]).ends:
                break
        return world

    def grade(
        self, task: Task, messages: Sequence[Message], termination: Termination, world: World | None = None
    ) -> Verdict:
        parts = ("state", "outputs") if _outputs(task) else ("state",)
        if termination not in (Termination.USER_STOP, Termination.AGENT_TRANSFER):
            why = f"not scored: the episode ended by {termination.value}"
            return Verdict(0.0, dict.fromkeys(parts, 0.0), why)
        world = world or self.replay(task, messages)
        reasons = []
        found = self.differences(world.db, self.gold(task))
        if found:
            text = "; ".join(found[:4]) + ("; …" if len(found) > 4 else "")
            reasons.append(f"end state (here) differs from gold (there): {text}")
        said = [m.content.lower().replace(",", "") for m in messages if _to_user(m)]
        missing = [o for o in _outputs(task) if not any(o.lower() in text for text in said)]
        if missing:
            reasons.append(f"never said to the user: {', '.join(map(repr, missing))}")
        values = {"state": float(not found), "outputs": float(not missing)}
        components = {part: values[part] for part in parts}
        return Verdict(float(not reasons), components, "; ".join(reasons) or "end state equals gold")


def _to_user(message: Message) -> bool:
    return message.role == "assistant" and not message.tool_calls


def _outputs(task: Task) -> tuple[str, ...]:
    return task.outputs if isinstance(task, Tau1Task) else ()


class Tau1World(World):
    """One episode's state and its toolkit."""

    def __init__(self, domain: Tau1Domain, task: Task):
        super().__init__(domain, task)
        self.domain: Tau1Domain = domain
        self._kit: Any = self._kits["assistant"]

    def call(self, side: Side, call: ToolCall) -> ToolResult:
        if side != "assistant":
            return ToolResult("Error: the user has no tools here", error=True)
        if call.error:
            return ToolResult(f"Error: this is not a valid tool call: {call.error}", error=True)
        tool = self.domain.tools().get(call.name)
        if tool is None:
            return ToolResult(f"Unknown action {call.name}", error=True)
        saved = self.domain.before_call(self, side, call)
        if isinstance(saved, ToolResult):
            return saved
        error = True
        try:
            content = getattr(self._kit, tool.name)(**call.arguments)
            error = False
        except Refusal as exc:
            content = f"Error: {exc}"
        except Exception as exc:  # upstream answers every exception so, whatever raised it
            content = f"Error: {_as_upstream(exc, self._kit, tool.name)}"
        finally:
            self._kit.save()
        if error:
            self.domain.after_failure(self, saved)
        # A handover ends the episode whatever its arguments.
        ends = tool.effect == "end"
        return ToolResult(content, error=error and not ends, ends=ends)


def _as_upstream(exc: Exception, kit: Any, tool: str) -> str:
    """Wrong arguments name the function, which upstream has as `CancelPendingOrder.invoke`."""
    upstream = "".join(part.capitalize() for part in tool.split("_"))
    return str(exc).replace(f"{getattr(type(kit), tool).__qualname__}()", f"{upstream}.invoke()")


class FirstCallOnly:
    """An agent of whose messages only the first call counts, as τ¹ has it; the rest is as if not written."""

    def __init__(self, agent: Any):
        self._agent = agent

    async def step(self, messages: Sequence[Message]) -> Any:
        step = await self._agent.step(messages)
        if len(step.message.tool_calls) < 2:
            return step
        message = dataclasses.replace(step.message, tool_calls=step.message.tool_calls[:1])
        return dataclasses.replace(step, message=message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)


def make_task(task: Mapping[str, Any], task_id: str, prompt: str = "", greeting: str = "") -> Tau1Task:
    """A task of ours from one of upstream's (`data.Data.tasks`), with the user's prompt and first words that
    upstream prescribes, where they are known."""
    actions = tuple(Action(a["name"], a["kwargs"]) for a in task["actions"])
    return Tau1Task(
        id=task_id,
        kind=_kind(actions),
        scenario=Scenario(goal=task["instruction"], prompt=prompt, greeting=greeting),
        actions=actions,
        user_id=task["user_id"],
        outputs=tuple(task["outputs"]),
    )


def _kind(actions: Sequence[Action]) -> str:
    """By how much there is to change."""
    effects = {t.name: t.effect for kit in TOOLKITS.values() for t in _tools(kit).values()}
    writes = sum(effects.get(a.name) == "write" for a in actions)
    return ("no change", "one change")[writes] if writes < 2 else "several changes"


def _tools(kit: type) -> dict[str, Tool]:
    from ...tools import toolkit_tools

    return toolkit_tools(kit)


def tau1_domain(root: Path, part: str, name: str = "", version: str = "", data_hash: str = "") -> Tau1Domain:
    """The domain from the folder of an installation (or any folder of the same layout)."""
    data = Data(root, part)
    if part not in TOOLKITS:
        raise MuaError(f"τ¹ has no domain '{part}'; it has {', '.join(TOOLKITS)}.")

    @functools.cache
    def split(which: str) -> list[Task]:
        hello = data.user_greeting()
        made = enumerate(data.tasks(which))
        return [make_task(t, f"{which}_{n}", data.user_prompt(t["instruction"]), hello) for n, t in made]

    return Tau1Domain(
        name=name or f"tau1/{part}",
        policy=data.policy(),
        load_base=lambda: Base(data.tables()),
        load_split=split,
        splits=SPLITS[part],
        toolkits={"assistant": TOOLKITS[part]},
        limits=LIMITS,
        stop_markers=("###STOP###",),
        conduct=conduct(part),
        descriptions=data.tools(),
        version=version,
        data_hash=data_hash,
    )
