"""Stricter rules for τ¹ and τ², each by name and off unless asked for: `tau2/retail+rollback+arguments`.

A variant is a domain of its own, under its own name, so its scores never meet those of the benchmark in one
file. `+strict` stands for all options.

Invariants:
- Without an option nothing differs from upstream; with one, only what `OPTIONS` says of it.
- Gold states are those of the plain benchmark; so is what counts as a task that doing nothing solves, unless
  doing nothing earns nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..chat import Message, Side, ToolCall
from ..database import Database, canonical_text
from ..domain import Domain, Task, ToolResult, Verdict, World
from ..errors import MuaError
from ..tools import Tool, toolkit_tools
from ..trajectory import Termination
from .tau1.domain import Tau1Domain
from .tau2 import Tau2Domain, scoring
from .tau2.tasks import Tau2Task

OPTIONS: dict[str, str] = {
    "numbers": "end states are compared by the value of numbers: 2 equals 2.0",
    "arguments": "a call must satisfy its tool's whole schema, nested objects included; else it is not run",
    "rollback": "a call that fails changes nothing",
    "collateral": "telecom: nothing in the operator's database may change but what perfect play changes",
    "idle": "an episode in which no call that looks up or changes anything succeeded earns nothing",
}
ALL = "strict"
_IDLE = frozenset({"think", "calculate", "transfer_to_human_agents", "done"})
"""Tools by which nothing is looked up and nothing is changed."""


def parse(text: str) -> frozenset[str]:
    """The options in `numbers+idle`. Raises MuaError for an unknown one."""
    found = frozenset(text.split("+"))
    unknown = sorted(found - {*OPTIONS, ALL})
    if unknown:
        raise MuaError(
            f"there is no strict option '{unknown[0]}'; there are {', '.join(OPTIONS)}, and {ALL} for all of "
            "them, each after a '+': tau2/retail+rollback."
        )
    return frozenset(OPTIONS) if ALL in found else found


def strict(domain: Domain, options: frozenset[str]) -> Domain:
    """The variant of a domain of τ¹ or τ² with these options. Raises MuaError for another domain."""
    suffix = ALL if options == frozenset(OPTIONS) else "+".join(o for o in OPTIONS if o in options)
    kinds = {Tau2Domain: StrictTau2, Tau1Domain: StrictTau1}
    for kind, variant in kinds.items():
        if isinstance(domain, kind):
            kept = {f.name: getattr(domain, f.name) for f in dataclasses.fields(domain)}
            kept.update(name=f"{domain.name}+{suffix}", plain=domain, strict=options)
            # One database and one list of tasks in memory, however many variants there are.
            kept.update(load_base=lambda: domain.base, load_split=domain.tasks)
            return variant(**kept)
    raise MuaError(f"'{domain.name}' has no strict options; only the domains of tau1 and tau2 have.")


# ---------------------------------------------------------------- what both have in common


def _refusal(tool: Tool | None, call: ToolCall) -> ToolResult | None:
    """The answer to a call whose arguments break the schema."""
    if tool is None or call.error or not (problems := tool.problems(call.arguments)):
        return None
    return ToolResult(f"Error: {call.name} was not called: {'; '.join(problems)}", error=True)


def worked(messages: Iterable[Message]) -> bool:
    """True when a call that looks up or changes something succeeded, on either side."""
    names: dict[str, str] = {}
    for message in messages:
        names.update({call.id: call.name for call in message.tool_calls})
        failed = message.error or message.content.startswith("Error")
        name = names.get(message.tool_call_id, "think") if message.role == "tool" else "think"
        if name not in _IDLE and not failed:
            return True
    return False


_NOTHING_DONE = "no credit for doing nothing: no call that looks up or changes anything succeeded"


# ---------------------------------------------------------------- τ¹


@dataclass(frozen=True)
class StrictTau1(Tau1Domain):
    """A domain of τ¹ with strict options."""

    plain: Any = None
    strict: frozenset[str] = frozenset()

    def before_call(self, world: Any, side: Side, call: ToolCall) -> Any:
        known = toolkit_tools(self.toolkits["assistant"])
        tool = known.get(call.name) if "arguments" in self.strict else None
        if refusal := _refusal(tool, call):
            return refusal
        return world.db.fork() if "rollback" in self.strict else None

    def after_failure(self, world: Any, saved: Any) -> None:
        if saved is not None:
            world.db.restore(saved)

    def gold(self, task: Task) -> Database:
        return self.plain.gold(task)

    def is_noop(self, task: Task) -> bool:
        return "idle" not in self.strict and self.plain.is_noop(task)

    def differences(self, here: Database, there: Database) -> list[str]:
        return here.diff(there) if "numbers" in self.strict else super().differences(here, there)

    def grade(
        self, task: Task, messages: Sequence[Message], termination: Termination, world: World | None = None
    ) -> Verdict:
        found = super().grade(task, messages, termination, world)
        if "idle" in self.strict and found.reward > 0 and not worked(messages):
            return Verdict(0.0, {**found.components, "worked": 0.0}, _NOTHING_DONE)
        return found


# ---------------------------------------------------------------- τ²


@dataclass(frozen=True)
class StrictTau2(Tau2Domain):
    """A domain of τ² with strict options."""

    plain: Any = None
    strict: frozenset[str] = frozenset()

    def before_call(self, world: Any, side: Side, call: ToolCall) -> Any:
        tool = self._tight_tools(side).get(call.name) if "arguments" in self.strict else None
        if refusal := _refusal(tool, call):
            return refusal
        return world.fork_state() if "rollback" in self.strict else None

    def after_failure(self, world: Any, saved: Any) -> None:
        if saved is not None:
            world.restore_state(saved)

    def _tight_tools(self, side: Side) -> Mapping[str, Tool]:
        key = f"tight {side}"
        kept = self.__dict__.setdefault("_tight", {})
        if key not in kept:
            kept[key] = {
                name: dataclasses.replace(tool, parameters=tight(tool.parameters))
                for name, tool in self.tools(side).items()
            }
        return kept[key]

    def gold_changes(self, task: Tau2Task) -> dict[Any, Any]:
        return self.plain.gold_changes(task)

    def is_noop(self, task: Task) -> bool:
        return "idle" not in self.strict and self.plain.is_noop(task)

    def checks(self, task: Tau2Task, messages: Sequence[Message]) -> list[scoring.Check]:
        found = super().checks(task, messages)
        failed = [c for c in found if c.component == "db" and not c.met]
        if "numbers" in self.strict and failed:
            here, gold = self.replay(task, messages).db, self.gold_changes(task)
            mine, texts = here.changes(), here.originals.text
            pairs = ((mine.get(p, texts(p)), gold.get(p, texts(p))) for p in {*mine, *gold})
            if all(_by_value(a) == _by_value(b) for a, b in pairs):
                equal = scoring.Check("db", True, "the databases equal gold's by the value of numbers")
                return [equal if c in failed else c for c in found]
        return found

    def score(
        self, task: Tau2Task, messages: Sequence[Message], judged: Sequence[bool] | None = None
    ) -> scoring.Scored:
        found = super().score(task, messages, judged)
        if found.reward <= 0 or task.criteria is None:
            return found
        if "idle" in self.strict and not worked(messages):
            return scoring.Scored(0.0, {**found.components, "worked": 0.0}, _NOTHING_DONE)
        if "collateral" in self.strict and "DB" not in task.basis:
            damage = sorted(self._changed(self.replay(task, messages)) - self._allowed(task))
            if damage:
                text = "; ".join(damage[:4]) + ("; …" if len(damage) > 4 else "")
                components = {**found.components, "collateral": 0.0}
                return scoring.Scored(0.0, components, f"changed beside what the task needs: {text}")
        return found

    def _allowed(self, task: Tau2Task) -> set[str]:
        """What the gold actions change, played as an episode plays them; kept per task."""
        kept = self.__dict__.setdefault("_allowed_by_task", {})
        if task.key not in kept:
            world = self.plain.open(task)
            for action in task.actions:
                world.call(action.requestor, ToolCall(action.name, action.arguments))
            kept[task.key] = self._changed(world)
        return kept[task.key]

    @staticmethod
    def _changed(world: Any) -> set[str]:
        """Places in the operator's database that differ from its start."""
        changes, texts = world.db.changes(), world.db.originals.text
        found: set[str] = set()
        for path, text in changes.items():
            if path[0] == "agent":
                before = texts(path)
                found |= set(
                    _places(
                        ".".join(path[1:]),
                        json.loads(before) if before else None,
                        json.loads(text) if text else None,
                    )
                )
        return found


def _by_value(text: str | None) -> str:
    return canonical_text(json.loads(text)) if text else ""


def _places(name: str, a: Any, b: Any) -> Iterator[str]:
    """Names of what differs between two JSON values: fields, and rows of lists by their ids."""
    if canonical_text(a) == canonical_text(b):
        return
    if isinstance(a, list) and isinstance(b, list) and all(isinstance(r, dict) for r in [*a, *b]):
        a, b = ({_row_name(r): r for r in rows} for rows in (a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            yield from _places(f"{name}.{key}", a.get(key), b.get(key))
    else:
        yield name


def _row_name(row: Mapping[str, Any]) -> str:
    return next((str(v) for k, v in row.items() if k.endswith("_id")), canonical_text(row))


def tight(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema without its loopholes: no unknown keys, and where a model is described, no bare object
    beside it as an alternative."""

    def walk(node: Any) -> Any:
        if isinstance(node, list):
            return [walk(item) for item in node]
        if not isinstance(node, dict):
            return node
        out = {key: walk(value) for key, value in node.items()}
        options = out.get("anyOf")
        if isinstance(options, list):
            described = [o for o in options if isinstance(o, dict) and ("$ref" in o or "properties" in o)]
            if described:
                bare = [o for o in options if o.get("type") == "object" and "properties" not in o]
                out["anyOf"] = [o for o in options if o not in bare]
        if out.get("type") == "object" and isinstance(out.get("properties"), dict):
            out["additionalProperties"] = False
        return out

    found = walk(dict(schema))
    found.setdefault("additionalProperties", False)
    return found
