"""How evaluations were measured, and in what they were measured differently, in words.

Invariant: every setting that is recorded of one of them is compared, those that mua does not know by name
included; one that only some have recorded is a difference, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .stored import Evaluation

_WORDS = {
    "domain": "domain",
    "split": "split",
    "tasks": "tasks",
    "n": "number of tasks",
    "samples": "episodes a task",
    "temperature": "temperature of the agent",
    "user": "user",
    "seed": "seed of users and agent",
    "faults": "faults of the environment",
    "judge": "judge",
    "turns": "most turns of the user",
    "steps": "most steps of the agent",
    "turn_steps": "most steps of the agent in a turn",
    "errors": "most failed calls",
    "hops": "most hops",
    "step": "longest step, tokens",
    "policy": "policy text",
    "database": "database",
    "tools": "tools",
    "benchmark_version": "version of the benchmark",
    "benchmark_data": "data of the benchmark",
    "mua": "version of mua",
}
"""Settings in words, in the order in which they are told."""
_HASHES = ("tasks", "policy", "database", "tools", "benchmark_data")
_OPTIONAL = ("turn_steps", "hops", "judge")
"""What was not asked for is not written down."""
_NOT_PROTOCOL = ("model", "weights")
"""What is compared, and not how."""
_MISSING = object()


def about(e: Evaluation) -> dict[str, Any]:
    """How an evaluation was measured: NAME.settings, and what its figures and its run say beside."""
    figures, out = e.figures, dict(e.settings)
    for key in ("domain", "split", "samples", "temperature", "user", "n", "mua"):
        if figures.get(key) is not None:
            out.setdefault(key, figures[key])
    if version := e.version_of_run:
        out.setdefault("mua", version)
    faults = figures.get("faults")
    if isinstance(faults, Mapping):
        out["faults"] = faults.get("label") or "on"
    elif isinstance(out.get("faults"), Mapping):
        out["faults"] = "on"
    else:
        out["faults"] = "none"
    benchmark = figures.get("benchmark")
    if isinstance(benchmark, Mapping):
        out["benchmark_version"], out["benchmark_data"] = benchmark.get("version"), benchmark.get("data_hash")
    return {key: value for key, value in out.items() if key not in _NOT_PROTOCOL}


def differences(letters: Mapping[str, Evaluation]) -> list[dict[str, Any]]:
    """Every setting in which the evaluations differ: its name, a sentence, and the value of each."""
    known = {letter: about(e) for letter, e in letters.items()}
    keys = [*_WORDS, *sorted({key for one in known.values() for key in one} - _WORDS.keys())]
    out = []
    for key in keys:
        groups: list[tuple[Any, list[str]]] = []
        for letter, one in known.items():
            value = one.get(key, _MISSING)
            if key in _OPTIONAL and value is _MISSING:
                value = None
            place = next((who for seen, who in groups if seen is value or seen == value), None)
            if place is None:
                groups.append((value, [letter]))
            else:
                place.append(letter)
        if len(groups) < 2:
            continue
        words = _WORDS.get(key, key.replace("_", " "))
        values = {letter: _plain(value) for value, who in groups for letter in who}
        out.append({"setting": key, "words": f"{words}: {_told(key, groups)}", "values": values})
    return out


def unrecorded(group: Sequence[Evaluation]) -> list[str]:
    """The settings, in words, that none of the evaluations has recorded."""
    known = {key for e in group for key in about(e)}
    beside = (*_OPTIONAL, "benchmark_version", "benchmark_data")
    return [words for key, words in _WORDS.items() if key not in known and key not in beside]


def _plain(value: Any) -> Any:
    return None if value is _MISSING else value


def _told(key: str, groups: Sequence[tuple[Any, Sequence[str]]]) -> str:
    """`0 (A), 1 (B, C)`; of hashes only who has the same."""
    there = [(value, who) for value, who in groups if value is not _MISSING]
    missing = [letter for value, who in groups if value is _MISSING for letter in who]
    parts = []
    if key in _HASHES and len(there) > 1:
        parts.append("not the same in " + " / ".join(", ".join(who) for _, who in there))
    elif there:
        parts += [f"{_value(value)} ({', '.join(who)})" for value, who in there]
        if key in _HASHES:
            parts = [f"recorded for {', '.join(there[0][1])}"]
    if missing:
        parts.append(f"not recorded ({', '.join(missing)})")
    return ", ".join(parts)


def _value(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
