"""The tasks of a declared domain: rows are drawn, and who wants what, and what is right, follows from them.

Invariant: that of `drawing`: one stream of distinct contents is dealt to the splits.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from ...database import Base, Row
from ...domain import Action, Task
from ..drawing import Draft, Wish, deal
from .spec import Calls, Condition, DomainSpec, Drawn, Kind, TasksSpec, Want, filled, sentence, unbraced
from .tools import holds, key_of

Values = dict[str, Any]


def make_splits(name: str, domain: DomainSpec, tasks: TasksSpec, base: Base) -> dict[str, list[Task]]:
    """The tasks of every split. Raises RuntimeError naming a kind of which not enough can be drawn."""
    kinds = {kind: _draw(domain, spec, base) for kind, spec in tasks.kinds.items()}
    return deal(kinds, tasks.splits, name, gold)


def gold(draft: Draft) -> Sequence[Action]:
    """The calls that are right, of what the person wants in the end."""
    calls = [call for wish in draft.wishes for call in _in_the_end(wish)]
    return [Action(name, dict(arguments)) for name, arguments in calls]


def _in_the_end(wish: Wish) -> Any:
    if wish.change is not None:
        return wish.change.more["calls"]
    return wish.more["withdrawn"] if wish.withdraw else wish.more["calls"]


def _draw(domain: DomainSpec, kind: Kind, base: Base) -> Any:
    rows = {table: list(base.tables[table].items()) for table in domain.tables}

    def draw(rng: random.Random) -> Draft | None:
        try:
            return once(rng)
        except KeyError:  # a row that lacks a field which others have
            return None

    def once(rng: random.Random) -> Draft | None:
        values: Values = {}
        drawn: dict[str, Row] = {}
        taken: set[tuple[str, str]] = set()
        for name, source in kind.draw.items():
            if isinstance(source, Drawn):
                table, key = source.find, key_of(domain.tables[source.find], source.key, values)
                row = base.tables[table].get(key)
            else:
                table, (key, row) = source, rng.choice(rows[source]) if rows[source] else ("", None)
                if (table, key) in taken:
                    return None  # two names stand for two rows
            if row is None:
                return None
            taken.add((table, key))
            drawn[name] = row
            values[name] = key
            values.update({f"{name}.{field}": value for field, value in row.items()})
        if not all(_fulfilled(c, domain, drawn, values, base) for c in kind.where):
            return None
        return _draft(domain, kind, values)

    return draw


def _fulfilled(
    condition: Condition, domain: DomainSpec, drawn: Mapping[str, Row], values: Values, base: Base
) -> bool:
    if condition.of:
        return holds(drawn[condition.of], condition, values)
    table = condition.exists or condition.absent
    row = base.tables[table].get(key_of(domain.tables[table], condition.key, values))
    if condition.absent:
        return row is None
    return row is not None and holds(row, condition, values)


def _draft(domain: DomainSpec, kind: Kind, values: Values) -> Draft:
    facts = {name: str(filled(value, values)) for name, value in kind.facts.items()}
    (who, number), *others = facts.items()
    later = {name: (unbraced(f"the {name} is {value}"), {name: value}) for name, value in others}
    wishes = [_wish(domain, want, values, later) for want in kind.wants]
    return Draft((f"my {who} is {number}", {who: number}), facts, wishes)


def _wish(domain: DomainSpec, want: Want, values: Values, later: Mapping[str, Any]) -> Wish:
    calls = _calls(want.calls, values)
    more: Values = {"calls": calls}
    change = None
    if want.instead is not None and want.instead.want:
        other = _calls(want.instead.calls, values)
        words = sentence(want.instead.want, values)
        change = Wish(words, {}, must_name(domain, other), dict(later), more={"calls": other})
    elif want.instead is not None:
        more["withdrawn"] = _calls(want.instead.calls, values)
    return Wish(
        sentence(want.want, values),
        {},
        must_name(domain, calls),
        dict(later),
        change=change,
        withdraw="withdrawn" in more,
        insist=want.insist,
        more=more,
    )


def _calls(calls: Calls, values: Values) -> list[list[Any]]:
    return [
        [name, {key: filled(value, values) for key, value in arguments.items()}]
        for call in calls
        for name, arguments in call.items()
    ]


def must_name(domain: DomainSpec, calls: Sequence[Sequence[Any]]) -> list[str]:
    """What a proposal of the first change among the calls has to name."""
    for name, arguments in calls:
        if domain.tools[name].writes and not domain.tools[name].record:
            return [str(arguments[key]) for key in details(domain, name) if key in arguments]
    return []


def details(domain: DomainSpec, tool: str) -> list[str]:
    """The arguments of a change that a person would know by their values: neither its own id nor a code."""
    return [
        name
        for name, about in domain.tools[tool].arguments.items()
        if about.type == "string" and about.enum is None and name != domain.person.id
    ]
