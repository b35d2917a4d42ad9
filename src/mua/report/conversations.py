"""Which of a run's conversations go into its report, in the page's own short form.

Invariant: what is left out is counted, never silently dropped; a broken line costs that line only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..chat import Message
from ..errors import MuaError
from ..evaluate.statistics import succeeded
from ..trajectory import Trajectory

MAX_SHOWN = 400
MAX_CHARACTERS = 10_000_000
"""Of all embedded conversations together; a browser opens such a page at once."""
MAX_TEXT = 6_000
"""Of one message or tool answer; the page says how long the whole was."""
MAX_PAIRS = 20
TAIL_BYTES = 4_000_000

Note = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Line:
    """Where a trajectory stands, and what is needed to choose it."""

    source: int
    """Index of its evaluation."""
    offset: int
    task: str
    sample: int
    kind: str
    reward: float | None
    normal: bool
    length: int

    @property
    def solved(self) -> bool:
        return self.reward is not None and succeeded(self.reward)


def json_lines(path: Path, note: Note, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """(offset, object) of each whole line; a torn last line (a run in progress) and broken ones are noted."""
    broken = 0
    try:
        with path.open("rb") as file:
            file.seek(start)
            if start:
                file.readline()  # a line cut by the seek
            while True:
                offset = file.tell()
                raw = file.readline()
                if not raw:
                    break
                try:
                    data = json.loads(raw)
                except (ValueError, RecursionError):
                    broken += bool(raw.strip())
                    continue
                if isinstance(data, dict):
                    yield offset, data
                else:
                    broken += 1
    except OSError as exc:
        note(f"{path.name} cannot be read: {exc.strerror}.")
    if broken:
        note(f"{path.name}: {broken} line{'s' * (broken > 1)} cut off or not valid JSON, left out.")


def index(source: int, path: Path, note: Note, tail: bool = False) -> list[Line]:
    """The trajectories of a file; with `tail` only those at its end (training files grow large)."""
    start = max(0, path.stat().st_size - TAIL_BYTES) if tail else 0
    out = []
    for offset, data in json_lines(path, note, start):
        reward, messages = data.get("reward"), data.get("messages")
        scored = isinstance(reward, (int, float)) and math.isfinite(reward)
        sample = data.get("sample")
        out.append(
            Line(
                source,
                offset,
                str(data.get("task_id", "")),
                sample if isinstance(sample, int) else 0,
                str(data.get("kind", "")),
                float(reward) if scored and reward is not None else None,
                data.get("termination") in ("user_stop", "agent_transfer"),
                len(messages) if isinstance(messages, list) else 0,
            )
        )
    return out


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


def choose(files: Sequence[Sequence[Line]], wanted: Sequence[Line]) -> list[Line]:
    """`wanted`, then the others by sample and task, all evaluations of a task together."""
    rank: dict[str, int] = {}
    for lines in files:
        for line in lines:
            rank.setdefault(line.task, len(rank))
    rest = sorted((x for lines in files for x in lines), key=lambda x: (x.sample, rank[x.task], x.source))
    return list(dict.fromkeys([*wanted, *rest]))[:MAX_SHOWN]


def load(
    lines: Sequence[Line], paths: Mapping[int, Path], prompts: dict[str, int]
) -> dict[Line, dict[str, Any]]:
    """The conversations at these lines, as the page reads them, until `MAX_CHARACTERS` are reached.

    `prompts` collects the distinct system prompts: they are the bulk of most files.
    """
    found: dict[Line, dict[str, Any]] = {}
    budget = MAX_CHARACTERS
    files = {source: path.open("rb") for source, path in paths.items()}
    try:
        for line in lines:
            file = files[line.source]
            file.seek(line.offset)
            try:
                trajectory = Trajectory.from_dict(json.loads(file.readline()))
            except (MuaError, LookupError, TypeError, ValueError, AttributeError):
                continue
            item = _conversation(trajectory, line, prompts)
            budget -= sum(len(str(m)) for m in item["messages"])
            if budget < 0 and found:
                break
            found[line] = item
    finally:
        for file in files.values():
            file.close()
    return found


def _conversation(t: Trajectory, line: Line, prompts: dict[str, int]) -> dict[str, Any]:
    messages = list(t.messages)
    prompt = None
    if messages and messages[0].role == "system":
        prompt = prompts.setdefault(messages.pop(0).content, len(prompts))
    return {
        "eval": line.source,
        "task": t.task_id,
        "kind": t.kind,
        "sample": t.sample,
        "step": t.step,
        "user": t.user,
        "reward": line.reward,
        "solved": line.solved,
        "termination": t.termination.value,
        "normal": t.termination.normal,
        "reason": t.reason,
        "detail": t.detail if t.detail not in t.reason else "",
        "components": dict(t.components),
        "attempts": t.attempts,
        "steps": t.usage.agent_steps,
        "tokens": t.usage.agent_tokens,
        "calls": t.usage.tool_calls,
        "errors": t.usage.tool_errors,
        "prompt": prompt,
        "messages": [_message(m) for m in messages],
    }


def _message(m: Message) -> dict[str, Any]:
    out: dict[str, Any] = {"role": m.role, "text": _cut(m.content)}
    if m.thinking:
        out["thinking"] = _cut(m.thinking)
    if m.tool_calls:
        # Arguments go as text: a browser's numbers would turn 3.0 into 3 and round long ids.
        out["calls"] = [
            {
                "id": c.id,
                "name": c.name,
                "arguments": _cut(c.raw if c.error else json.dumps(dict(c.arguments), ensure_ascii=False)),
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


def _cut(text: str) -> str:
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]}\n… cut here: {len(text):,} characters in all"
