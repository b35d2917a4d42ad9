"""The conversations of a run: where each one stands, and what one is in the page's own form.

Invariants:
- What is left out is counted, never silently dropped; a broken line costs that line only.
- A line is read in full only for its body: of a file of any size, what is kept is bounded by `MAX_LINES`.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..chat import Message
from ..errors import MuaError
from ..evaluate.statistics import succeeded
from ..trajectory import Termination, Trajectory

MAX_LINES = 100_000
"""Trajectories of one file that are indexed; of more, evenly spread steps."""
MAX_TEXT = 2_000_000
"""Characters of one message or tool answer; the page says how long the whole was."""
MAX_FIRST = 90
"""Characters of the first words that the list shows."""
MAX_PAIRS = 20

Note = Callable[[str], object]
UNUSABLE = (MuaError, LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""What reading a line of an unforeseen form may raise."""


@dataclass(slots=True)
class Line:
    """Where a trajectory stands, and what the list of the page shows, filters and sorts by."""

    source: int
    """Number of its file in the reading (`File.number`)."""
    offset: int
    task: str
    sample: int
    kind: str
    step: int
    reward: float | None
    termination: str
    user: str
    persona: str
    domain: str
    length: int
    """Messages."""
    turns: int
    calls: int
    errors: int
    tokens: int
    tools: tuple[str, ...]
    """Names of the tools that the agent called, sorted."""
    first: str
    """The first words of the user."""
    traced: bool
    """The file has its exact tokens."""
    broken: tuple[str, ...] | None = None
    """`layer/rule` of each rule broken; None where it was not audited."""

    @property
    def solved(self) -> bool:
        return self.reward is not None and succeeded(self.reward)

    @property
    def normal(self) -> bool:
        return self.termination in _NORMAL

    @property
    def place(self) -> tuple[int, int]:
        return self.source, self.offset


_NORMAL = {t.value for t in Termination if t.normal}


def json_lines(path: Path, note: Note) -> Iterator[tuple[int, dict[str, Any]]]:
    """(offset, object) of each whole line; a torn last line (a run in progress) and broken ones are noted."""
    broken = 0
    try:
        with path.open("rb") as file:
            while True:
                offset = file.tell()
                raw = file.readline()
                if not raw:
                    break
                data = _parse(raw)
                if data is None:
                    broken += bool(raw.strip())
                else:
                    yield offset, data
    except OSError as exc:
        note(f"{path.name} cannot be read: {exc.strerror}.")
    note_broken(path.name, broken, note)


def note_broken(name: str, broken: int, note: Note) -> None:
    if broken:
        note(f"{name}: {broken} line{'s' * (broken > 1)} cut off or not valid JSON, left out.")


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


# ---------------------------------------------------------------- files

_STEP = re.compile(rb'"step": ?(-?\d+)')
"""The step of a line, without parsing it: inside a JSON text, quotes would be escaped."""


@dataclass
class File:
    """The trajectories of one file, which may still grow: `refresh` reads what was added."""

    number: int
    """How the page asks for it (`conversation/NUMBER/OFFSET`); stays the same while the run is looked at."""
    key: str
    """How a link names it; the same in every page of the run."""
    path: Path
    lines: dict[int, Line] = field(default_factory=dict)
    """By offset."""
    torn: bool = False
    """The last line is not whole yet."""
    _unusable: set[int] = field(default_factory=set)
    """Offsets of the lines that are no trajectories."""
    _heads: list[tuple[int, int]] = field(default_factory=list)
    """(offset, step) of each line."""
    _end: int = 0
    _inode: int = 0

    def __len__(self) -> int:
        """How many there are, those that are not indexed included."""
        return len(self._heads) - self.broken

    @property
    def broken(self) -> int:
        """Lines that are no trajectories."""
        return len(self._unusable)

    def refresh(self) -> bool:
        """Reads what is new; True where something is. A file that shrank or was replaced is read anew.

        Raises OSError when it cannot be read.
        """
        status = self.path.stat()
        if status.st_size < self._end or status.st_ino != self._inode:
            self._heads, self._end, self._inode, self._unusable = [], 0, status.st_ino, set()
            self.lines = {}
        if status.st_size == self._end:
            self.torn = False
            return False
        before = len(self._heads)
        with self.path.open("rb") as file:
            file.seek(self._end)
            self.torn = False
            while raw := file.readline():
                if not raw.endswith(b"\n") and _parse(raw) is None:
                    self.torn = True  # half a line: it is read again when it is whole
                    break
                if raw.strip():
                    found = _STEP.search(raw)
                    self._heads.append((self._end, int(found[1]) if found else -1))
                self._end += len(raw)
            for offset, _ in self._chosen():
                if offset not in self.lines and offset not in self._unusable:
                    self._index(file, offset)
        return len(self._heads) > before

    def _chosen(self) -> list[tuple[int, int]]:
        """The lines to index: all, or those of evenly spread steps."""
        if len(self._heads) <= MAX_LINES:
            return self._heads
        steps: dict[int, int] = {}
        for _, step in self._heads:
            steps[step] = steps.get(step, 0) + 1
        kept, room = set(), MAX_LINES
        for step in spread(sorted(steps)):
            if steps[step] <= room:
                kept.add(step)
                room -= steps[step]
        chosen = [head for head in self._heads if head[1] in kept] or self._heads[:MAX_LINES]
        offsets = {offset for offset, _ in chosen}
        self.lines = {offset: line for offset, line in self.lines.items() if offset in offsets}
        return chosen

    def _index(self, file: Any, offset: int) -> None:
        file.seek(offset)
        data = _parse(file.readline())
        with contextlib.suppress(*UNUSABLE):
            if data is not None:
                self.lines[offset] = _line(self.number, offset, data)
                return
        self._unusable.add(offset)

    def ordered(self) -> list[Line]:
        return [self.lines[offset] for offset in sorted(self.lines)]


def spread(items: Sequence[int]) -> list[int]:
    """The items in an order of which every beginning is spread over all: last, first, middle, quarters, …"""
    if len(items) < 3:
        return list(reversed(items))
    out = [items[-1], items[0]]
    gaps = [(0, len(items) - 1)]
    while gaps:
        halves = []
        for low, high in gaps:
            if high - low > 1:
                middle = (low + high) // 2
                out.append(items[middle])
                halves += [(low, middle), (middle, high)]
        gaps = halves
    return out


def _line(source: int, offset: int, data: Mapping[str, Any]) -> Line:
    """The index entry of a trajectory; whatever its file says in a wrong form is taken as not said."""
    reward, messages, usage = data.get("reward"), data.get("messages"), data.get("usage")
    scored = isinstance(reward, (int, float)) and math.isfinite(reward)
    messages = [m for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    usage = usage if isinstance(usage, dict) else {}
    said = (m.get("content") for m in messages if m.get("role") == "user")
    first = next((text for text in said if isinstance(text, str) and text.strip()), "")
    return Line(
        source,
        offset,
        task=str(data.get("task_id", "")),
        sample=_whole(data.get("sample")),
        kind=str(data.get("kind", "")),
        step=_whole(data.get("step", -1), -1),
        reward=float(reward) if scored and reward is not None else None,
        termination=str(data.get("termination", "")),
        user=str(data.get("user") or ""),
        persona=str(data.get("persona") or ""),
        domain=str(data.get("domain") or ""),
        length=len(messages),
        turns=_whole(usage.get("user_turns")),
        calls=_whole(usage.get("tool_calls")),
        errors=_whole(usage.get("tool_errors")),
        tokens=_whole(usage.get("agent_tokens")),
        tools=_tools(messages),
        first=" ".join(first[: 4 * MAX_FIRST].split())[:MAX_FIRST],
        traced=isinstance(data.get("trace"), list) and bool(data["trace"]),
    )


def _whole(value: Any, default: int = 0) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
    return value if good else default


def _tools(messages: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    found = set()
    for message in messages:
        if message.get("role") != "assistant":
            continue
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function", call) if isinstance(call, dict) else None
            if isinstance(function, dict) and isinstance(function.get("name"), str):
                found.add(function["name"])
    return tuple(sorted(found))


def read(path: Path, offset: int) -> Trajectory | None:
    """The trajectory that begins there; None where none can be read."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = _parse(file.readline())
        return None if data is None else Trajectory.from_dict(data)
    except (OSError, *UNUSABLE):
        return None


# ---------------------------------------------------------------- which ones


def outcomes(lines: Sequence[Line]) -> dict[str, list[float]]:
    """Rewards by task, as `evaluate.statistics` takes them."""
    out: dict[str, list[float]] = {}
    for line in lines:
        if line.reward is not None:
            out.setdefault(line.task, []).append(line.reward)
    return out


def find_pairs(
    before: Sequence[Line], after: Sequence[Line]
) -> tuple[list[tuple[Line, Line]], list[tuple[Line, Line]]]:
    """Tasks that only `after` solves, and those that only `before` solves, by the first scored samples.

    Kinds take turns, those with most such tasks first; within a kind, conversations that ended normally
    come first and short ones next: they show best what was learned.
    """

    def first(lines: Sequence[Line]) -> dict[str, Line]:
        out: dict[str, Line] = {}
        for line in sorted(lines, key=lambda x: x.sample):
            if line.reward is not None:
                out.setdefault(line.task, line)
        return out

    a, b = first(before), first(after)
    both = [(a[t], b[t]) for t in a if t in b]
    return (
        _take_turns([p for p in both if p[1].solved and not p[0].solved]),
        _take_turns([p for p in both if p[0].solved and not p[1].solved]),
    )


def _take_turns(pairs: list[tuple[Line, Line]]) -> list[tuple[Line, Line]]:
    kinds: dict[str, list[tuple[Line, Line]]] = {}
    for pair in sorted(pairs, key=lambda p: (not (p[0].normal and p[1].normal), p[0].length + p[1].length)):
        kinds.setdefault(pair[0].kind, []).append(pair)
    order = sorted(kinds.values(), key=len, reverse=True)
    return [kind[n] for n in range(max(map(len, order), default=0)) for kind in order if n < len(kind)]


def by_importance(
    featured: Sequence[Line], evals: Sequence[Sequence[Line]], others: Sequence[Sequence[Line]]
) -> list[Line]:
    """All lines, those first that a page with little room should have: `featured`, the evaluations by sample
    and task (all models of a task together), then the other files by steps that are spread over the run."""
    rank: dict[str, int] = {}
    for lines in evals:
        for line in lines:
            rank.setdefault(line.task, len(rank))
    out = {line.place: line for line in featured}
    rest = sorted(
        (x for lines in evals for x in lines), key=lambda x: (x.sample, rank[x.task], x.source, x.offset)
    )
    out.update((line.place, line) for line in rest)
    for lines in others:
        steps: dict[int, list[Line]] = {}
        for line in lines:
            steps.setdefault(line.step, []).append(line)
        for step in spread(sorted(steps)):
            out.update((line.place, line) for line in steps[step])
    return list(out.values())


# ---------------------------------------------------------------- one of them


def body(t: Trajectory) -> dict[str, Any]:
    """What the page shows of a trajectory beside its `Line`: JSON values. `messages` is without the system
    prompt, which is `system`."""
    messages = list(t.messages)
    system = messages.pop(0).content if messages and messages[0].role == "system" else None
    return {
        "system": system,
        "reason": t.reason,
        "detail": t.detail if t.detail not in t.reason else "",
        "components": dict(t.components),
        "shaped": t.shaped,
        "attempts": t.attempts,
        "unfaithful": list(t.unfaithful),
        "faults": dict(t.faults),
        "usage": {
            "steps": t.usage.agent_steps,
            "user_tokens": t.usage.user_tokens,
            "cost": t.usage.user_cost + t.usage.agent_cost,
        },
        "seed": str(t.seed),  # a browser's numbers would round it
        "messages": [_message(m) for m in messages],
    }


def _message(m: Message) -> dict[str, Any]:
    out: dict[str, Any] = {"role": m.role, "text": cut(m.content)}
    if m.thinking:
        out["thinking"] = cut(m.thinking)
    if m.tool_calls:
        # Arguments go as text: a browser's numbers would turn 3.0 into 3 and round long ids.
        out["calls"] = [
            {
                "id": c.id,
                "name": c.name,
                "arguments": cut(c.raw if c.error else json.dumps(dict(c.arguments), ensure_ascii=False)),
                "error": c.error,
            }
            for c in m.tool_calls
        ]
    if m.role == "tool":
        out["call"] = m.tool_call_id
        if m.error:
            out["error"] = True
        if m.fault:
            out["fault"] = m.fault
        if m.requestor == "user":
            out["by"] = "user"
    return out


def cut(text: str, most: int = MAX_TEXT) -> str:
    return text if len(text) <= most else f"{text[:most]}\n… cut here: {len(text):,} characters in all"
