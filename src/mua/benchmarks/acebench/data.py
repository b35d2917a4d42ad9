"""The installed entries: what is asked, what the world starts from, what must be true at the end.

Invariant: everything here is read from upstream's own files, in whichever of the two layouts (the repository,
or its data folders alone) they are installed; a file that is not as expected is a `MuaError` naming it.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import MuaError
from .facts import Language
from .phone import CAPACITY
from .worlds import CLASSES

Mode = Literal["multi_turn", "multi_step"]

CATEGORIES: tuple[tuple[Mode, Language], ...] = (
    ("multi_turn", "en"),
    ("multi_turn", "zh"),
    ("multi_step", "en"),
    ("multi_step", "zh"),
)


@dataclass(frozen=True)
class Entry:
    """One entry with its answer."""

    id: str
    """`agent_multi_turn_0`; the same in both languages."""
    mode: Mode
    language: Language
    question: str
    """What the user wants, in the second person; in multi_step, what is asked of the agent."""
    config: Mapping[str, Any]
    """The `BaseApi` part of the initial configuration, which is all that upstream uses of it."""
    functions: Sequence[Mapping[str, Any]]
    """The functions that the agent is told of."""
    classes: tuple[str, ...]
    """The worlds involved, in the order in which a call reaches them."""
    gold: Sequence[Mapping[str, Mapping[str, Any]]]
    """World → attribute → value, one world an item; spelt as upstream spells it."""
    milestones: Sequence[Sequence[str]]
    """The ways to go, each a sequence of steps."""
    one_way: bool
    """The answer lists one way only; its process accuracy is then not rounded."""

    @functools.cached_property
    def shown(self) -> str:
        """The functions as the agent is shown them: as Python writes a list."""
        return str(self.functions)


@dataclass(frozen=True)
class Start:
    """The rows of one language that hold sentences, as they are before anything happens."""

    rows: Mapping[str, Mapping[int, Mapping[str, Any]]]
    """`inbox` and `reminder_list`: number → row."""


@functools.cache
def entries(folder: Path, mode: Mode, language: Language) -> tuple[Entry, ...]:
    """The entries of a category, in upstream's order. `folder` is where the benchmark is installed."""
    name = f"data_agent_{mode}.json"
    place = _place(folder, language)
    tasks, answers = _lines(place / name), _lines(place / "possible_answer" / name)
    if [t.get("id") for t in tasks] != [a.get("id") for a in answers]:
        raise MuaError(f"{place / name} and its possible_answer do not list the same entries; install again.")
    found = []
    for task, answer in zip(tasks, answers, strict=True):
        try:
            found.append(_entry(task, answer, mode, language))
        except (KeyError, TypeError, IndexError, AttributeError) as exc:
            raise MuaError(
                f"{place / name}, entry {task.get('id')}: it is not as expected ({type(exc).__name__}: "
                f"{exc}); install the benchmark again."
            ) from None
    return tuple(found)


@functools.cache
def start(folder: Path, language: Language) -> Start:
    """The first messages and reminders: the rows that most answers still show.

    Upstream writes them into its code, which the data folders lack; but every answer that has an inbox or
    a list of reminders shows what was left of them, and each row is left in more answers than not.
    """
    seen: dict[tuple[str, int], Counter[str]] = {}
    for mode, other in CATEGORIES:
        if other != language:
            continue
        for entry in entries(folder, mode, language):
            for world in entry.gold:
                for attributes in world.values():
                    for name in ("inbox", "reminder_list"):
                        for key, row in attributes.get(name, {}).items():
                            seen.setdefault((name, int(key)), Counter())[json.dumps(row)] += 1
    wanted = {"inbox": CAPACITY, "reminder_list": 3}
    missing = [f"{name} {i}" for name, n in wanted.items() for i in range(1, n + 1) if (name, i) not in seen]
    if missing:
        raise MuaError(f"the answers in {_place(folder, language)} show no {missing[0]}; install again.")
    return Start(
        {
            name: {i: json.loads(seen[name, i].most_common(1)[0][0]) for i in range(1, n + 1)}
            for name, n in wanted.items()
        }
    )


def _entry(task: Mapping[str, Any], answer: Mapping[str, Any], mode: Mode, language: Language) -> Entry:
    functions, gold, stones = task["function"], answer["ground_truth"], answer["mile_stone"]
    classes = tuple(task["involved_classes"])
    if unknown := [c for c in classes if c not in CLASSES]:
        raise KeyError(f"unknown class {unknown[0]}")
    one_way = not isinstance(stones[0], list)
    return Entry(
        id=task["id"],
        mode=mode,
        language=language,
        question=task["question"],
        config=task["initial_config"].get("BaseApi", {}),
        functions=functions if isinstance(functions, list) else [functions],
        classes=classes,
        gold=gold if isinstance(gold, list) else [gold],
        milestones=[stones] if one_way else stones,
        one_way=one_way,
    )


def _place(folder: Path, language: Language) -> Path:
    for place in (folder / f"data_{language}", folder / "data_all" / f"data_{language}"):
        if place.is_dir():
            return place
    raise MuaError(
        f"{folder} has no data_{language}; install ACEBench again: `mua benchmarks install acebench`."
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError) as exc:
        raise MuaError(
            f"{path} cannot be read ({exc}); install again: `mua benchmarks install acebench`."
        ) from None
