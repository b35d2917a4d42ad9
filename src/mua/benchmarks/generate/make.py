"""Makes the tasks: draws them, keeps those that are new, disjoint from what is held out, and proven.

Invariants:
- The n-th task depends on the seed and on n only, as long as the tasks before it are the same: the first
  hundred of two thousand are the hundred that `count=100` gives.
- No two tasks have the same gold, and none has that of any upstream task (`key`). People whom an upstream
  task mentions are not used at all; a telecom task is of no family (`telecom.families`) of a held-out one.
- Every gold action was replayed on a fresh world and succeeded; neither doing nothing nor an immediate
  transfer earns the reward.
"""

from __future__ import annotations

import collections
import json
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ...domains.script import pick
from ...errors import MuaError
from ...seeds import derive_seed
from .airline import Airline
from .retail import Retail
from .telecom import Telecom, families
from .words import PERSONAS, upstream_task

Json = dict[str, Any]

ATTEMPTS = 60
"""Draws of one kind before another kind takes its place."""
_READS = ("find_", "get_", "list_", "search_", "check_", "run_", "can_", "calculate", "think", "transfer_")
"""How the names of upstream's tools that change nothing begin."""

DRAWERS: dict[str, Callable[[Json, set[str]], Any]] = {
    "retail": Retail,
    "airline": Airline,
    "telecom": Telecom,
}


@dataclass(frozen=True)
class Source:
    """What tasks are made from and kept apart from, as upstream's files have it."""

    part: str
    """retail, airline or telecom."""
    db: Json
    """The agent's database; telecom's as lists of rows."""
    tasks: list[Json]
    """All upstream tasks of this domain, of every split."""
    held_out: frozenset[str]
    """Ids of those that are evaluated on."""


@dataclass
class Generated:
    """Tasks, and what it took."""

    tasks: list[Json]
    dropped: dict[str, int] = field(default_factory=dict)
    """Draws that were not kept, by reason."""
    seconds: float = 0.0
    """Of this call; what was made before costs nothing."""

    @property
    def kinds(self) -> dict[str, int]:
        return dict(collections.Counter(t["mua"]["kind"] for t in self.tasks).most_common())

    @property
    def several(self) -> float:
        """Share of tasks with more than one request."""
        return sum(len(t["mua"]["agenda"]["requests"]) > 1 for t in self.tasks) / max(1, len(self.tasks))


class Maker:
    """Makes the tasks of one source and seed, one after the other; more of them at any time."""

    def __init__(self, source: Source, seed: int = 0, prove: Callable[[Json], str] = lambda task: ""):
        """`prove` replays a task and says what is wrong with it, or ""."""
        self.part, self.seed, self.prove = source.part, seed, prove
        self.guard = Guard(source)
        self.drawer = DRAWERS[source.part](source.db, mentioned(source))
        self.tasks: list[Json] = []
        self.dropped: collections.Counter[str] = collections.Counter()
        """Draws that were not kept, by reason."""

    def upto(self, count: int, on_progress: Callable[[int], object] = lambda done: None) -> Generated:
        """The first `count` tasks. Raises MuaError when the database does not give that many."""
        began = time.perf_counter()
        while len(self.tasks) < count:
            self.tasks.append(self._next(len(self.tasks)))
            on_progress(len(self.tasks))
        return Generated(self.tasks[:count], dict(self.dropped), time.perf_counter() - began)

    def _next(self, n: int) -> Json:
        kinds, weights = list(self.drawer.kinds), list(self.drawer.kinds.values())
        kind = kinds[0]
        for number in range(ATTEMPTS * len(kinds)):
            rng = random.Random(derive_seed(self.seed, self.part, n, number))
            if number % ATTEMPTS == 0:
                kind = rng.choices(kinds, weights)[0]
            draft = self.drawer.draw(rng, kind)
            if draft is None:
                self.dropped["nothing to draw from"] += 1
                continue
            name = f"{self.part}-generated-{self.seed}-{n:05d}"
            task = upstream_task(draft, self.part, name, pick(rng, PERSONAS))
            why = self.guard.objection(task) or self.prove(task)
            if not why:
                self.guard.add(task)
                return task
            self.dropped[why] += 1
        raise MuaError(
            f"the database of {self.part} gives no more than {n} distinct tasks with seed {self.seed}; ask "
            f"for fewer. Draws that were not kept: {dict(self.dropped)}"
        )


class Guard:
    """Keeps tasks apart from each other and from upstream's."""

    def __init__(self, source: Source):
        self.part = source.part
        self.upstream = {key(t) for t in source.tasks}
        self.keys: set[str] = set()
        held_out = [t for t in source.tasks if t["id"] in source.held_out]
        self.writes = {w for t in source.tasks for w in writes(t)} if source.part != "telecom" else set()
        self.families = {f for t in held_out for f in families(t)} if source.part == "telecom" else set()

    def objection(self, task: Json) -> str:
        """Why a task must not be kept, or ""."""
        own = key(task)
        if own in self.keys:
            return "as one before"
        if own in self.upstream:
            return "as an upstream task"
        if self.writes & set(writes(task)):
            return "a write of an upstream task"
        if self.families and families(task) & self.families:
            return "of a held-out family"
        return ""

    def add(self, task: Json) -> None:
        self.keys.add(key(task))


def writes(task: Json) -> Iterator[str]:
    """The gold writes of a task in upstream's format, each as one line."""
    for a in task["evaluation_criteria"].get("actions") or ():
        if not a["name"].startswith(_READS):
            # Upstream sorts lists of items, so their order makes no difference.
            told = {k: sorted(v) if _texts(v) else v for k, v in a["arguments"].items()}
            yield _line([a.get("requestor", "assistant"), a["name"], told])


def key(task: Json) -> str:
    """What a task is about: what is broken at its start, what is written, and what is asserted at its end.

    Neither words nor order nor the task's name count, so two tasks with one key ask for the same thing.
    The entities (people, orders, reservations, lines) stand in the writes.
    """
    state = task.get("initial_state") or {}
    setup = sorted(_line(c) for c in state.get("initialization_actions") or ())
    asserted = sorted(_line(a["arguments"]) for a in task["evaluation_criteria"].get("env_assertions") or ())
    return _line([setup, sorted(writes(task)), asserted])


def mentioned(source: Source) -> set[str]:
    """People of the database whom any upstream task names, by id, e-mail, or something they own."""
    if source.part == "telecom":
        return set()
    words = {w.strip(".'") for t in _strings(source.tasks) for w in re.findall(r"[#\w.@'-]+", t)}
    owned = "orders" if source.part == "retail" else "reservations"
    return {name for name, user in source.db["users"].items() if words & {name, user["email"], *user[owned]}}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def overlap(tasks: Iterable[Json], others: Iterable[Json]) -> list[str]:
    """Ids of tasks that have the key of one of the others: the same content, whatever the words."""
    known = {key(t) for t in others}
    return [t["id"] for t in tasks if key(t) in known]


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _line(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
