"""One conversation, read once for all rules: who had been found by when, and what led to each write.

Invariant: made of the domain's rules and the messages alone. A call that failed changes nothing here: nobody
is found by it and nothing written.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..chat import Message
from ..domain import Domain, Task
from . import wording
from .conduct import Conduct
from .events import Event, events


@dataclass(frozen=True)
class Write:
    """A successful write of the agent, and what led to it."""

    event: Event
    proposal: str
    """The agent's last words before the person's, and as many before them as make up a proposal."""
    asked: str
    """The last of them: what the person answered."""
    answer: str
    """The person's last words."""
    first: bool
    """No other write that needs a yes (and does not go `together` with this one) has come since."""


class Reading:
    """What the rules look at."""

    def __init__(self, domain: Domain, conduct: Conduct, task: Task, messages: Sequence[Message]):
        self.domain, self.conduct, self.task, self.messages = domain, conduct, task, messages
        self.events = events(messages)
        self.tools = domain.task_tools(task)
        self.people: list[str | None] = []
        """Who had been found before each event."""
        self.writes: list[Write] = []
        self._read()

    def _read(self) -> None:
        conduct, person = self.conduct, None
        said: list[Event] = []
        proposal: list[Event] = []
        answer, heard = "", ""
        made: set[str] = set()
        for event in self.events:
            self.people.append(person)
            if event.kind == "agent":
                said.append(event)
            elif event.kind == "user":
                proposal, answer, made = said[-conduct.consent.messages :], event.text, set()
                heard += f" {event.text}"
            elif event.side == "assistant" and not event.error:
                if event.name in conduct.person.found_by:
                    found = self.found_by(event)
                    told = not conduct.person.told or (found is not None and wording.names(heard, found))
                    person = found if found is not None and told else person
                elif self.is_write(event.name):
                    together = {event.name} & set(conduct.consent.together)
                    self.writes.append(
                        Write(
                            event,
                            "\n".join(e.text for e in proposal),
                            proposal[-1].text if proposal else "",
                            answer,
                            made <= together or not conduct.consent.one_each,
                        )
                    )
                    made |= {event.name} - set(conduct.consent.free)

    def found_by(self, event: Event) -> str | None:
        """The id of the person whom a call found; None where it is no such call."""
        name = self.conduct.person.found_by.get(event.name)
        if name is None:
            return None
        return field(event.answer, name) or field(event.arguments, name or "?")

    # ---------------------------------------------------------------- the tools

    def is_write(self, name: str) -> bool:
        """The tool changes something, and does not hand over."""
        tool = self.tools.get(name)
        return tool is not None and tool.effect == "write" and name not in self.conduct.handover

    def hands_over(self, name: str) -> bool:
        tool = self.tools.get(name)
        return name in self.conduct.handover or (tool is not None and tool.effect == "end")

    def needs_yes(self, name: str) -> bool:
        return self.conduct.consent.required and name not in self.conduct.consent.free

    @functools.cached_property
    def calls(self) -> list[Event]:
        """The agent's calls that succeeded."""
        return [e for e in self.events if e.kind == "call" and e.side == "assistant" and not e.error]

    def beside(self, event: Event) -> str:
        """What the agent wrote beside a call; the person does not hear it."""
        return self.messages[event.at].content.strip()

    # ---------------------------------------------------------------- whose

    def owner(self, number: str) -> str | None:
        """The id of the person whose record has this number; None where nobody's has."""
        key, found = number, False
        for _ in range(len(self.conduct.person.records) + 1):
            for table, column in self.conduct.person.records.items():
                row = self.domain.record(table, key)
                if row is not None:
                    leads = str(row.get(column, key))
                    if leads == key:  # a person's own row
                        return key
                    key, found = leads, True
                    break
            else:
                break
        return key if found else None

    def current(self, read: str, event: Event) -> Any:
        """The latest answer of a read, before a call, about what the call is about; None without one."""
        about = {str(v) for v in event.arguments.values() if isinstance(v, str)}
        for e in reversed(self.calls):
            if e.place < event.place and e.name == read and about & {str(v) for v in e.arguments.values()}:
                return e.answer
        return None

    def described(self, number: Any, within: str, before: int) -> Mapping[str, Any]:
        """The values in the field `within` of the record that some answer before an event showed under that
        id; empty where none did."""
        event = self._shown(number, before)
        for record in _records(event.answer, str(number)) if event else ():
            value = record.get(within)
            if isinstance(value, Mapping):
                return value
            if value is not None:
                return {within: value}
        return {}

    def alternatives(self, number: Any, within: str, key: str, before: int) -> set[str]:
        """What else stands under a key of the field `within`, in the answer that showed a record."""
        event = self._shown(number, before)
        found = _all(event.answer, within) if event else ()
        return {str(one[key]) for one in found if isinstance(one, Mapping) and key in one}

    def _shown(self, number: Any, before: int) -> Event | None:
        for event in reversed(self.events[:before]):
            told = event.kind == "call" and not event.error and str(number) in event.text
            if told and next(_records(event.answer, str(number)), None) is not None:
                return event
        return None


def shows(value: Any, field: str, wanted: Any) -> bool:
    """An answer has a field of that name with that value, at any depth."""
    return wanted in _all(value, field)


def _records(value: Any, number: str) -> Iterator[Mapping[str, Any]]:
    """Objects inside an answer that have the id, as their key or as a field."""
    if isinstance(value, Mapping):
        if isinstance(value.get(number), Mapping):
            yield value[number]
        if any(v == number for k, v in value.items() if k.endswith("id")):
            yield value
        for inner in value.values():
            yield from _records(inner, number)
    elif isinstance(value, list):
        for inner in value:
            yield from _records(inner, number)


def _all(value: Any, field: str) -> Iterator[Any]:
    """Every value of a field of that name, at any depth."""
    if isinstance(value, Mapping):
        if field in value:
            yield value[field]
        for inner in value.values():
            yield from _all(inner, field)
    elif isinstance(value, list):
        for inner in value:
            yield from _all(inner, field)


def inside(value: Any, path: Sequence[str]) -> Any:
    """What is at a path of keys inside a JSON value; of a list, what is there in each of its items."""
    if not path or value is None:
        return value
    if isinstance(value, list | tuple):
        return [inside(item, path) for item in value]
    return inside(value.get(path[0]), path[1:]) if isinstance(value, Mapping) else None


def field(answer: Any, name: str) -> str | None:
    """A field of a tool's answer (the whole of it without a name); None when it is not there."""
    value = answer if not name else answer.get(name) if isinstance(answer, Mapping) else None
    return None if value is None else str(value)


_COMPARISON = re.compile(r"(<=|>=|<|>|!=)\s*(-?\d+(?:\.\d+)?)")


def fits(data: Any, conditions: Mapping[str, Any]) -> bool:
    """The fields are as the conditions say; a field that is not there fits nothing."""
    return all(isinstance(data, Mapping) and _is(data.get(key), wanted) for key, wanted in conditions.items())


def _is(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list | tuple):
        return any(_is(value, one) for one in wanted)
    if isinstance(wanted, str) and (found := _COMPARISON.fullmatch(wanted)):
        try:
            number, limit = float(value), float(found[2])
        except (TypeError, ValueError):
            return False
        return {
            "<=": number <= limit,
            ">=": number >= limit,
            "<": number < limit,
            ">": number > limit,
            "!=": number != limit,
        }[found[1]]
    return value == wanted or (not isinstance(value, str) and str(value) == wanted)
