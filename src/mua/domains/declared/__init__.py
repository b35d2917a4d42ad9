"""A domain that is all data: a folder with domain.yaml, policy.md and tasks.yaml (docs/draft-a-domain.md).

Made for domains that a model drafts (`mua domain draft`) and a person edits; nothing in such a folder is run.

Invariant: a folder that is loaded has only names that exist: tables, fields, tools, arguments, drawn rows.
All that is wrong is said at once, with file and place.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...audit.conduct import Conduct, Consent, Detail, Person
from ...domain import Domain, Task
from ...errors import MuaError, unreadable
from ...tools import Tool
from .data import RECORDS, make_base
from .spec import (
    Calls,
    DomainSpec,
    Drawn,
    Kind,
    Step,
    TasksSpec,
    ToolSpec,
    names_in,
    read,
    wrong,
)
from .speech import GoldExpert, user_of
from .tasks import details, make_splits
from .tools import DeclaredWorld, make_tool

FILES = ("domain.yaml", "policy.md", "tasks.yaml")
MOST_TASKS = 5000


@dataclass(frozen=True)
class DeclaredDomain(Domain):
    """The domain of one folder."""

    spec: Any = field(kw_only=True, compare=False)
    agent_tools: Mapping[str, Tool] = field(kw_only=True, compare=False)

    def open(self, task: Task) -> DeclaredWorld:
        return DeclaredWorld(self, task)

    def tools(self, side: Any = "assistant") -> dict[str, Tool]:
        return dict(self.agent_tools) if side == "assistant" else {}


def make(folder: Path) -> DeclaredDomain:
    """The domain of a folder. Raises MuaError that says all that is wrong, with file and place."""
    domain_file, policy_file, tasks_file = (folder / name for name in FILES)
    spec, tasks = read(domain_file, DomainSpec), read(tasks_file, TasksSpec)
    try:
        policy = policy_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise MuaError(f"{policy_file} cannot be read: {unreadable(exc)}") from None
    if len(policy.split()) < 20:
        raise wrong(
            policy_file, ["the policy says hardly anything; write the rules that the agent must follow"]
        )
    if problems := list(_in_domain(spec)):
        raise wrong(domain_file, problems)
    if problems := list(_in_tasks(spec, tasks)):
        raise wrong(tasks_file, problems)
    name = folder.name.partition(".")[0]
    try:
        base = make_base(name, spec.tables)
    except ValueError as exc:
        raise wrong(domain_file, [str(exc)]) from None

    @functools.cache
    def splits() -> dict[str, list[Task]]:
        try:
            return make_splits(name, spec, tasks, base)
        except RuntimeError as exc:
            what = f"{exc}; widen what it draws from or its conditions, or lower the splits"
            raise wrong(tasks_file, [what]) from None

    return DeclaredDomain(
        name=name,
        policy=policy,
        load_base=lambda: base,
        load_split=lambda split: splits()[split],
        splits=tuple(tasks.splits),
        toolkits={},
        expert=GoldExpert,
        agenda_user=user_of(tasks),
        conduct=conduct(spec),
        spec=spec,
        agent_tools={name: make_tool(name, tool) for name, tool in spec.tools.items()},
    )


def conduct(spec: DomainSpec) -> Conduct:
    """The rules of conduct: find the person, look where a tool says `after`, ask before every change by what
    it is about."""
    changes = [name for name, tool in spec.tools.items() if tool.writes and not tool.record]
    return Conduct(
        person=Person(
            found_by={spec.person.found_by: spec.person.id},
            arguments=(spec.person.id,),
            records={spec.person.table: spec.person.id},
        ),
        consent=Consent(
            free=tuple(name for name, tool in spec.tools.items() if tool.record),
            details={name: tuple(Detail(argument=d) for d in details(spec, name)) for name in changes},
        ),
        looks={name: tool.after for name, tool in spec.tools.items() if tool.after},
    )


# ---------------------------------------------------------------- what is wrong


def _unknown(what: str, name: str, known: Iterable[str], at: str) -> Iterator[str]:
    known = list(known)
    if name not in known:
        yield f"{at}: there is no {what} '{name}'; there are {', '.join(known)}"


def _in_domain(spec: DomainSpec) -> Iterator[str]:
    above: list[str] = []
    for name, table in spec.tables.items():
        at = f"tables.{name}"
        if name == RECORDS:
            yield f"{at}: the name is taken by what tools record"
        if not table.count and not table.rows and not table.fields:
            yield f"{at}: say its fields, even when it has no rows in the beginning"
        for key in table.keys:
            yield from _unknown("field", key, table.fields or table.known - {*table.keys}, f"{at}.key")
        for number, row in enumerate(table.rows):
            missing = [key for key in table.keys if key not in row]
            yield from (f"{at}.rows.{number}: the key field '{key}' is missing" for key in missing)
        for field_, maker in table.fields.items():
            if maker.pick:
                other, _, of = maker.pick.partition(".")
                yield from _unknown("table above it", other, above, f"{at}.fields.{field_}.pick")
                if other in above:
                    yield from _unknown("field", of, spec.tables[other].known, f"{at}.fields.{field_}.pick")
        above.append(name)
    yield from _unknown("table", spec.person.table, spec.tables, "person.table")
    yield from _unknown("tool", spec.person.found_by, spec.tools, "person.found_by")
    if spec.person.table in spec.tables and spec.tables[spec.person.table].keys != (spec.person.id,):
        yield f"person.id: must be the key of the table {spec.person.table}"
    for name, tool in spec.tools.items():
        yield from _in_tool(spec, name, tool)


def _in_tool(spec: DomainSpec, name: str, tool: ToolSpec) -> Iterator[str]:
    at = f"tools.{name}"
    arguments = tool.arguments
    if not name.isidentifier() or len(name) > 60:
        yield f"{at}: a tool's name is made of letters, digits and _"
    for other in tool.after:
        yield from _unknown("tool", other, spec.tools, f"{at}.after")
    for other in tool.ungraded:
        yield from _unknown("argument", other, arguments, f"{at}.ungraded")
    for used, of in names_in([tool.ask, tool.done]):
        yield from _unknown("argument", f"{used}.{of}" if of else used, arguments, f"{at}.ask and done")
    for number, step in enumerate(tool.steps):
        here = f"{at}.steps.{number}"
        if step.table not in spec.tables:
            yield from _unknown("table", step.table, spec.tables, here)
            continue
        yield from _in_step(spec, step, arguments, here)


def _in_step(spec: DomainSpec, step: Step, arguments: Mapping[str, Any], at: str) -> Iterator[str]:
    table = spec.tables[step.table]
    values = (step.key, step.row, step.set, step.add, step.equals, step.at_least, step.at_most)
    for used, of in names_in([v for v in values if v]):
        yield from _unknown("argument", f"{used}.{of}" if of else used, arguments, at)
    for used, _ in names_in(step.key):
        if used in arguments and arguments[used].optional:
            yield f"{at}.key: the argument '{used}' is optional, so no row can be found by it"
    if step.key is None and step.kind != "list":
        for key in table.keys:
            if key not in arguments or arguments[key].optional:
                yield f"{at}: no argument is called as the key field '{key}' is; give key"
    fields = [f for f, _ in step.mentions()] + [*step.set, *step.add, *step.show, *(step.row or ())]
    for field_ in fields:
        yield from _unknown("field", field_, table.known, at)
    if step.kind == "insert":
        given = arguments if step.row is None else step.row
        yield from (f"{at}: the new row lacks the key field '{k}'" for k in table.keys if k not in given)
        if step.row is None:
            for name in arguments:
                yield from _unknown("field", name, table.known, f"{at} (its row is the arguments)")


def _in_tasks(spec: DomainSpec, tasks: TasksSpec) -> Iterator[str]:
    for split, size in tasks.splits.items():
        if not 1 <= size <= MOST_TASKS:
            yield f"splits.{split}: from 1 to {MOST_TASKS} tasks"
    for name, kind in tasks.kinds.items():
        yield from _in_kind(spec, kind, f"kinds.{name}")


def _in_kind(spec: DomainSpec, kind: Kind, at: str) -> Iterator[str]:
    drawn: dict[str, str] = {}

    def check(value: Any, where: str) -> Iterator[str]:
        for used, of in names_in(value):
            yield from _unknown("drawn row", used, drawn, where)
            if of and used in drawn and drawn[used] in spec.tables:
                yield from _unknown("field", of, spec.tables[drawn[used]].known, f"{where}, ${used}")

    for name, source in kind.draw.items():
        table = source.find if isinstance(source, Drawn) else source
        yield from _unknown("table", table, spec.tables, f"{at}.draw.{name}")
        if isinstance(source, Drawn):
            yield from check(source.key, f"{at}.draw.{name}")
        drawn[name] = table
    for number, condition in enumerate(kind.where):
        here = f"{at}.where.{number}"
        table = condition.exists or condition.absent
        if condition.of:
            yield from _unknown("drawn row", condition.of, drawn, here)
            table = drawn.get(condition.of, "")
        else:
            yield from _unknown("table", table, spec.tables, here)
            if condition.key is None:
                yield f"{here}: give the key of the row"
        yield from check(condition.key, here)
        for field_, value in condition.mentions():
            if table in spec.tables:
                yield from _unknown("field", field_, spec.tables[table].known, here)
            yield from check(value, here)
    yield from check(kind.facts, f"{at}.facts")
    for number, want in enumerate(kind.wants):
        here = f"{at}.wants.{number}"
        yield from check(want.want, here)
        yield from _in_calls(spec, want.calls, here, check)
        if want.instead is not None:
            yield from check(want.instead.want, f"{here}.instead")
            yield from _in_calls(spec, want.instead.calls, f"{here}.instead", check)
            if not any(_changes(spec, call) for call in want.calls):
                yield f"{here}: nobody is asked to confirm anything here, so `instead` has no place"


def _changes(spec: DomainSpec, call: Mapping[str, Any]) -> bool:
    return any(n in spec.tools and spec.tools[n].writes and not spec.tools[n].record for n in call)


def _in_calls(spec: DomainSpec, calls: Calls, at: str, check: Any) -> Iterator[str]:
    for number, call in enumerate(calls):
        here = f"{at}.calls.{number}"
        if len(call) != 1:
            yield f"{here}: one tool with its arguments"
        for name, arguments in call.items():
            if name not in spec.tools:
                yield from _unknown("tool", name, spec.tools, here)
                continue
            known = spec.tools[name].arguments
            for argument, value in arguments.items():
                yield from _unknown("argument", argument, known, f"{here}.{name}")
                yield from check(value, f"{here}.{name}.{argument}")
            for argument, about in known.items():
                if argument not in arguments and not about.optional:
                    yield f"{here}.{name}: the argument '{argument}' is missing"
