"""The two accuracies of ACEBench Agent, as upstream computes them, or strict: without its faults.

Invariant: pure functions of an entry and what an episode left: its final states (JSON values, one world an
item) and the texts of its steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .data import Entry
from .worlds import CLASSES

State = Mapping[str, Mapping[str, Any]]
"""One world: its name → attribute → value."""

MISSPELT = {"Reminderpi": "ReminderApi", "ReminderAPI": "ReminderApi", "BaseAPI": "BaseApi"}
"""World names in upstream's answers that no world has."""


@dataclass(frozen=True)
class EndToEnd:
    """The verdict on the final states."""

    valid: bool
    error_type: str = ""
    """`wrong number of class`, `class attributes wrong` or, strict only, `wrong classes`."""
    errors: tuple[str, ...] = ()


def end_to_end(entry: Entry, states: Sequence[State], strict: bool = False) -> EndToEnd:
    """Whether the final states are those asked for."""
    return _strict(entry, states) if strict else _exact(entry, states)


def process(entry: Entry, steps: Sequence[str], valid: bool) -> float:
    """The share of milestones met, in their order and to the letter, on the best way; 1 if `valid`.

    A milestone that is missed uses up all the steps, so that none after it is met.
    """
    if valid:
        return 1.0
    shares = [_met(stones, steps) for stones in entry.milestones]
    return shares[0] if entry.one_way else max(round(share, 3) for share in shares)


def _met(stones: Sequence[str], steps: Sequence[str]) -> float:
    if not stones:
        return 1.0
    met, at = 0, 0
    for stone in stones:
        while at < len(steps) and steps[at].strip() != stone.strip():
            at += 1
        if at == len(steps):
            break
        met, at = met + 1, at + 1
    return met / len(stones)


def _exact(entry: Entry, states: Sequence[State]) -> EndToEnd:
    """Upstream's verdict: a world of the answer that no state is named after is not looked at."""
    if len(entry.gold) != len(states):
        return EndToEnd(
            False, "wrong number of class", (f"{len(states)} worlds, where {len(entry.gold)} are expected",)
        )
    errors: list[str] = []
    for gold in entry.gold:
        state = next((s for s in states if set(s) == set(gold)), None)
        if state:
            errors += _differences(next(iter(gold)), next(iter(gold.values())), next(iter(state.values())))
    return EndToEnd(not errors, "class attributes wrong" if errors else "", tuple(errors))


def _differences(world: str, gold: Mapping[str, Any], state: Any) -> list[str]:
    """How a world differs: attributes that the answer lacks are wrong; of dictionaries, only the answer's
    keys count."""
    if not isinstance(state, Mapping):
        return [f"{world} is no object"]
    errors = []
    for name, value in state.items():
        if name not in gold:
            errors.append(f"{world}.{name} is not part of the answer")
        elif isinstance(gold[name], Mapping) and isinstance(value, Mapping):
            for key, wanted in gold[name].items():
                if key not in value:
                    errors.append(f"{world}.{name} has no {key}")
                elif wanted != value[key]:
                    errors.append(f"{world}.{name}.{key} is {value[key]}, not {wanted}")
        elif gold[name] != value:
            errors.append(f"{world}.{name} is {value}, not {gold[name]}")
    return errors


def _strict(entry: Entry, states: Sequence[State]) -> EndToEnd:
    """The verdict without upstream's faults: names are read as they were meant, and all must be there."""
    gold = {MISSPELT.get(name, name): value for world in entry.gold for name, value in world.items()}
    found = {MISSPELT.get(name, name): value for world in states for name, value in world.items()}
    if set(gold) != set(found) or len(states) != len(entry.gold):
        there, wanted = ", ".join(sorted(found)) or "no worlds", ", ".join(sorted(gold))
        return EndToEnd(False, "wrong classes", (f"{there}, where {wanted} are expected",))
    errors: list[str] = []
    for name, wanted in gold.items():
        state = found[name]
        if not isinstance(state, Mapping) or set(state) != set(CLASSES[name]._SAVED):
            errors.append(f"{name} does not have just {', '.join(CLASSES[name]._SAVED)}")
        elif name == "ReminderApi" and _stale(wanted["reminder_list"]):
            errors += _reminders(wanted["reminder_list"], state["reminder_list"])
        else:
            errors += _differences(name, wanted, state)
    return EndToEnd(not errors, "class attributes wrong" if errors else "", tuple(errors))


def _stale(rows: Mapping[str, Any]) -> bool:
    """An answer that gives a new reminder a number that the world never gives: that of one which is there
    from the start, and which no function offered deletes."""
    return any(row["reminder_id"] <= 3 for row in rows.values())


def _reminders(wanted: Mapping[str, Any], found: Any) -> list[str]:
    """Reminders compared without their numbers, and their titles without regard to capitals."""

    def plain(row: Mapping[str, Any]) -> Any:
        rest = {k: v for k, v in row.items() if k != "reminder_id"}
        return {**rest, "title": str(rest.get("title")).casefold()}

    rows = found.values() if isinstance(found, Mapping) else ()
    there = [plain(row) for row in rows if isinstance(row, Mapping)]
    return [
        f"ReminderApi.reminder_list has no '{row['title']}' as asked for"
        for row in wanted.values()
        if plain(row) not in there
    ]
