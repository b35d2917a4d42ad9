"""What keeps training honest: tasks that evaluation splits share, and tasks that doing nothing solves.

The benchmarks of one family share tasks in other words: most tasks of τ² were tasks of τ¹, and upstream's
own training splits repeat some of their test splits. So tasks are compared by content:

- the same gold calls that change something (in telecom: the same kind of problem, mended by the same
  calls, which is what its tasks of one template family have in common); or
- nearly the same words told to the user.

Invariant: a task that has the content of a held-out one never reaches training unless the configuration
says so (`guards.overlap`).
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..database import canonical_text
from ..domain import Domain, Task
from ..errors import MuaError
from . import PARTS, is_benchmark, load

SIMILAR = 0.7
"""Share of the shorter text's word triples from which on two scenarios are one. Tasks that upstream reworded
between versions have 0.75 and more; different tasks of one person rarely 0.5."""

FAMILY = ("tau1", "tau2", "tau2@0.2")
"""Benchmarks that share tasks."""


@dataclass(frozen=True)
class HeldOut:
    """A task that must stay unseen."""

    where: str
    """`tau2/retail test`."""
    domain: Domain
    task: Task


@dataclass(frozen=True)
class Leak:
    """A training task with the content of a held-out one."""

    task: Task
    where: str
    held_out: str
    """The held-out task's id."""
    why: str

    def __str__(self) -> str:
        return f"{self.task.id} = {self.where} {self.held_out} ({self.why})"


def leaks(domain: Domain, tasks: Sequence[Task], held_out: Sequence[HeldOut]) -> list[Leak]:
    """The tasks that have the content of a held-out one, each once, with the first that it has."""
    index = _Index(held_out)
    return [leak for task in tasks if (leak := index.find(domain, task)) is not None]


class _Index:
    """Held-out tasks by what they could be recognised by."""

    def __init__(self, held_out: Sequence[HeldOut]):
        self.held_out = held_out
        self.by_fingerprint = {h.task.fingerprint: h for h in reversed(held_out)}
        self.by_writes: dict[object, HeldOut] = {}
        self.by_words: dict[tuple[str, ...], list[int]] = {}
        self.words = [_words(h.domain, h.task) for h in held_out]
        for number, held in reversed(list(enumerate(held_out))):
            if content := _content(held.domain, held.task):
                self.by_writes[content] = held
            for triple in self.words[number]:
                self.by_words.setdefault(triple, []).append(number)

    def find(self, domain: Domain, task: Task) -> Leak | None:
        domain = domain.of(task)[0]
        held = self.by_fingerprint.get(task.fingerprint)
        if held is not None:
            return Leak(task, held.where, held.task.id, "the same task")
        content = _content(domain, task)
        if content is not None and (held := self.by_writes.get(content)) is not None:
            why = "the same calls solve both" if _has_words(domain) else "of one template family"
            return Leak(task, held.where, held.task.id, why)
        words = _words(domain, task)
        shared = Counter(n for triple in words for n in self.by_words.get(triple, ()))
        for number, count in shared.most_common(5):
            if count >= SIMILAR * min(len(words), len(self.words[number])) and count > 10:
                held = self.held_out[number]
                return Leak(task, held.where, held.task.id, "nearly the same words")
        return None


def _content(domain: Domain, task: Task) -> object:
    """What equal tasks have in common; None for one that can only be told by its fingerprint."""
    if not _in_family(domain):
        return None
    calls = frozenset(
        canonical_text([a.requestor, a.name, dict(a.arguments)])
        for a in task.actions
        if not _has_words(domain) or _changes(domain, a.requestor, a.name)
    )
    if not calls:
        return None
    return calls if _has_words(domain) else (task.kind, calls)


def _has_words(domain: Domain) -> bool:
    """Telecom's scenarios are all of a few templates: their words tell nothing."""
    return "/telecom" not in domain.name


def _in_family(domain: Domain) -> bool:
    return domain.name.partition("/")[0] in FAMILY


def _changes(domain: Domain, side: str, name: str) -> bool:
    tool = domain.tools("user" if side == "user" else "assistant").get(name)
    return tool is not None and tool.effect == "write"


def _words(domain: Domain, task: Task) -> frozenset[tuple[str, ...]]:
    """Word triples of what the user is told of its case; none where they tell nothing."""
    if not _in_family(domain) or not _has_words(domain):
        return frozenset()
    text = " ".join((task.scenario.goal, *task.scenario.facts.values())).lower()
    words = re.findall(r"[a-z0-9_#']+", text)
    return frozenset(zip(words, words[1:], words[2:], strict=False))


# ---------------------------------------------------------------- what is held out


def held_out_tasks(domain: Domain, split: str, others: Iterable[str] | None) -> Iterator[HeldOut]:
    """The tasks of the split that a run is evaluated on and of the domain's own test split, then those of the
    test splits of `others`.

    `others` are domains by name (`tau1/retail`); None takes those that are installed and of the same family
    and part. Raises MuaError for one that is named and not there.
    """
    places = {(domain.name, s): domain for s in (split, "test") if s == split or s in domain.splits}
    for name in _relatives(domain.name) if others is None else others:
        with contextlib.suppress(MuaError) if others is None else contextlib.nullcontext():
            if not is_benchmark(name):
                raise MuaError(
                    f"guards.held_out: '{name}' is no domain of a benchmark (mua benchmarks list)."
                )
            other = load(name)
            if "test" in other.splits:
                places.setdefault((other.name, "test"), other)
    for (name, held), place in places.items():
        for task in place.tasks(held):
            yield HeldOut(f"{name} {held}", place, task)


def _relatives(name: str) -> list[str]:
    """Domains whose tasks may be the same."""
    benchmark, _, part = name.partition("+")[0].partition("/")
    if benchmark not in FAMILY:
        return []
    part = part.removesuffix("-solo")
    return [f"{b}/{part}" for b in FAMILY if part in PARTS.get(b, ())]


# ---------------------------------------------------------------- what may be trained on


def noops(domain: Domain, split: str) -> list[Task]:
    """The tasks of a split whose whole reward an agent earns that only greets."""
    return [task for task in domain.tasks(split) if domain.is_noop(task)]


@dataclass(frozen=True)
class Allowed:
    """The tasks of a split that may be trained on, and what was left out."""

    tasks: tuple[Task, ...]
    leaked: tuple[Leak, ...] = ()
    idle: tuple[Task, ...] = ()
    """Solved by doing nothing."""


@dataclass(frozen=True)
class Guard:
    """Decides for one run what may be trained on."""

    domain: Domain
    held_out: Sequence[HeldOut]
    overlap: str
    """`refuse`, `drop` or `allow`."""

    def leaked(self, tasks: Sequence[Task], what: str) -> list[Leak]:
        """Those that are held out. Raises MuaError naming them, when that is to be refused."""
        found = leaks(self.domain, tasks, self.held_out) if self.overlap != "allow" else []
        if found and self.overlap == "refuse":
            raise MuaError(_refusal(what, found))
        return found

    def allowed(self, split: str, live: bool = True) -> Allowed:
        """What of a split may be trained on. Tasks that doing nothing solves are left out too, unless they
        are not `live`: an expert's conversations about them are harmless.

        Raises MuaError when tasks are refused, or none is left.
        """
        tasks = self.domain.tasks(split)
        leaked = self.leaked(tasks, f"'{self.domain.name}' {split}")
        out = {leak.task.id for leak in leaked}
        idle = [t for t in tasks if t.id not in out and self.domain.is_noop(t)] if live else []
        out.update(t.id for t in idle)
        kept = tuple(t for t in tasks if t.id not in out)
        if not kept:
            raise MuaError(
                f"no task of '{self.domain.name}' {split} is left to train on: of {len(tasks)}, "
                f"{len(leaked)} are held out and {len(idle)} are solved by doing nothing; choose another "
                "split."
            )
        return Allowed(kept, tuple(leaked), tuple(idle))


def _refusal(what: str, found: Sequence[Leak]) -> str:
    places = ", ".join(dict.fromkeys(leak.where for leak in found))
    return (
        f"{len(found)} training task(s) of {what} are also in {places}: {_some(map(str, found))}. Training "
        "on evaluation tasks makes the evaluation worthless. Set guards.overlap=drop to train without them, "
        "or choose another split; or, if you will not report scores on all of these, name those that you "
        "will: guards.held_out=[tau2/retail]."
    )


def check_unseen(domain: Domain, split: str, seen: Sequence[HeldOut]) -> None:
    """Raises MuaError when tasks of a split have the content of what a model was trained on (`seen`)."""
    found = leaks(domain, domain.tasks(split), seen)
    if found:
        raise MuaError(
            f"{len(found)} of the {len(domain.tasks(split))} tasks of '{domain.name}' {split} were trained "
            f"on: {_some(map(str, found))}. Their score would say nothing about new tasks. Evaluate another "
            "split, or set guards.overlap=allow to see it all the same."
        )


def _some(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
