"""The tools of a declared domain: their schemas, and what a call does, step by step.

Invariant: a call does all of its steps or none; it fails only in words that say what to do (`otherwise`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...chat import Side
from ...database import Database, Row, same, thaw
from ...domain import ToolResult, World
from ...errors import InfrastructureError
from ...tools import Tool, render_result, tidy_schema
from ..records import add_record
from .data import RECORDS
from .spec import Asked, DomainSpec, Keys, Step, Table, ToolSpec, filled, names_in

Values = Mapping[str, Any]
TESTS = ("equals", "at_least", "at_most")


class Cannot(Exception):
    """A step cannot be done; the text goes to the agent."""


def make_tool(name: str, spec: ToolSpec) -> Tool:
    """The tool as a model is shown it."""
    properties: dict[str, Any] = {}
    for argument, about in spec.arguments.items():
        schema: dict[str, Any] = {"type": about.type}
        for key in ("description", "enum", "minimum", "maximum"):
            if (value := getattr(about, key)) not in (None, ""):
                schema[key] = list(value) if key == "enum" else value
        properties[argument] = schema
    required = [argument for argument, about in spec.arguments.items() if not about.optional]
    schema = tidy_schema({"type": "object", "properties": properties, "required": required})
    effect = "end" if spec.ends else "write" if spec.writes else "read"
    return Tool(name, spec.description, schema, effect, dict)


class DeclaredWorld(World):
    """The state of one episode."""

    def execute(self, side: Side, tool: Tool, arguments: Mapping[str, Any]) -> ToolResult:
        """Runs one call. One that fails leaves the state as it was."""
        domain: DomainSpec = self.domain.spec  # type: ignore[attr-defined]
        spec = domain.tools[tool.name]
        if spec.record:
            add_record(self.db, RECORDS, tool.name, arguments, spec.ungraded)
            return ToolResult("Recorded.", ends=spec.ends)
        saved, answer = self.db.fork(), "Done."
        try:
            for step in spec.steps:
                found = run(self.db, domain.tables[step.table], step, arguments)
                answer = answer if spec.writes else render_result(found)
        except Cannot as exc:
            self.db.restore(saved)
            return ToolResult(f"Error: {exc}", error=True)
        except Exception as exc:  # a bug of the domain is the domain's, never the agent's
            self.db.restore(saved)
            raise InfrastructureError(
                f"tool '{tool.name}' of domain '{self.domain.name}' is broken: {type(exc).__name__}: {exc}"
            ) from exc
        return ToolResult(answer)


def run(db: Database, table: Table, step: Step, arguments: Values) -> Any:
    """One step; what it answers, None where it answers nothing. Raises Cannot."""
    asked = step.model_copy(update={name: _filled_in(getattr(step, name), arguments) for name in TESTS})
    if step.kind == "list":
        return [_shown(row, step) for _, row in db.where(step.table) if holds(row, asked, arguments)]
    key = key_of(table, step.key, arguments)
    row = db.get(step.table, key)
    if step.kind == "insert":
        if row is not None:
            raise Cannot(step.otherwise or f"{step.table} has {key[:60]} already")
        db.put(step.table, key, arguments if step.row is None else _filled_in(step.row, arguments))
        return None
    if row is None:
        raise Cannot(step.otherwise or f"there is no {key[:60]} in {step.table}")
    if not holds(row, asked, arguments):
        raise Cannot(step.otherwise or f"{key[:60]} in {step.table} is not as it must be for this")
    if step.kind == "delete":
        db.delete(step.table, key)
    elif step.kind == "update":
        changed = _filled_in(step.set, arguments)
        for field, value in _filled_in(step.add, arguments).items():
            changed[field] = _sum(row.get(field), value, step, field)
        db.put(step.table, key, {**thaw(row), **changed})
    else:
        return _shown(row, step)
    return None


def key_of(table: Table, key: Keys, values: Values) -> str:
    """The key of a row; without one, what is called as the table's key fields are."""
    if key is None:
        return "/".join(str(values[field]) for field in table.keys)
    parts = key if isinstance(key, tuple) else (key,)
    return "/".join(str(filled(part, values)) for part in parts)


def holds(row: Row, test: Asked, values: Values) -> bool:
    """The row is as asked; numbers are compared as numbers, texts (dates) as texts, and nothing else."""
    equal = (same(row.get(f), filled(v, values)) for f, v in test.equals.items())
    least = (_in_order(filled(v, values), row.get(f)) for f, v in test.at_least.items())
    most = (_in_order(row.get(f), filled(v, values)) for f, v in test.at_most.items())
    return all(equal) and all(least) and all(most)


def _in_order(low: Any, high: Any) -> bool:
    number = (int, float)
    if isinstance(low, bool) or isinstance(high, bool):
        return False
    if isinstance(low, number) and isinstance(high, number):
        return low <= high
    return isinstance(low, str) and isinstance(high, str) and low <= high


def _filled_in(fields: Values, arguments: Values) -> dict[str, Any]:
    return {f: filled(v, arguments) for f, v in fields.items() if _given(v, arguments)}


def _given(value: Any, arguments: Values) -> bool:
    """An optional argument that was left out asks for nothing, and changes nothing."""
    return all(name in arguments for name, _ in names_in(value))


def _sum(before: Any, more: Any, step: Step, field: str) -> Any:
    numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in (before, more)]
    if not all(numbers):
        raise Cannot(f"{field} of {step.table} is no number to add to")
    return before + more


def _shown(row: Row, step: Step) -> dict[str, Any]:
    plain = thaw(row)
    return {f: plain[f] for f in step.show if f in plain} if step.show else plain
