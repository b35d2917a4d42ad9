"""Upstream's own result files, graded.

A line is `{"id", "result"}`, the result a list of turns of steps. A step is a list of `{name: arguments}`
(function calling), text with a Python list of calls (prompt mode), text with Hermes tags, or words.

Invariant: a line's verdict is upstream's, whatever else stands in the file and however often it is scored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from ...errors import MuaError
from ...trajectory import read_jsonl
from . import codec, upstream
from .data import CATEGORIES, Upstream


def verdicts(
    source: Upstream, path: Path, category: str = "", mode: codec.Mode | None = None
) -> Iterator[dict[str, Any]]:
    """{"id", "valid", "error_type", "error_message"} of each line, in the order of the file.

    With a `category`, every line must belong to it. The mode is found out from the whole file, unless given.
    Raises MuaError naming the line that cannot be one of upstream's.
    """
    if category and category not in CATEGORIES:
        raise MuaError(f"{source.name} has no category '{category}'; it has {', '.join(CATEGORIES)}.")
    lines = []
    for number, data in read_jsonl(path):
        where = f"{path}, line {number}"
        missing = [key for key in ("id", "result") if key not in data]
        if missing:
            raise MuaError(
                f"{where}: field '{missing[0]}' is missing; upstream's results have id and result."
            )
        try:
            source.entry(str(data["id"]))
        except MuaError as exc:
            raise MuaError(f"{where}: {exc}") from None
        if category and data["id"].rpartition("_")[0] != category:
            raise MuaError(
                f"{where}: '{data['id']}' is no entry of {category}; give the category of the file, or none."
            )
        lines.append((data["id"], data["result"]))
    mode = mode or codec.mode_of(result for _, result in lines)
    for start in range(0, len(lines), _PART):
        part = lines[start : start + _PART]
        for (entry_id, _), found in zip(part, verdicts_on(source, part, mode), strict=True):
            yield {"id": entry_id, **found}


_PART = 100


def verdicts_on(
    source: Upstream, answers: Sequence[tuple[str, Any]], mode: codec.Mode
) -> list[dict[str, Any]]:
    """Upstream's verdicts on (id, result) pairs, in their order."""
    lists = [_is_answer(result) for _, result in answers]
    decoded = [
        (entry_id, [[codec.decode(step, mode, source.v3) for step in turn] for turn in result])
        for (entry_id, result), fits in zip(answers, lists, strict=True)
        if fits
    ]
    checked = iter(source.verdicts(decoded))
    return [
        next(checked)
        if fits
        else {
            "valid": False,
            "error_type": "multi_turn:inference_error",
            "error_message": f"the result is no list of turns: {str(result)[:200]}",
        }
        for (_, result), fits in zip(answers, lists, strict=True)
    ]


def _is_answer(result: Any) -> bool:
    return isinstance(result, list) and all(isinstance(turn, list | str | dict) for turn in result)


def score(
    benchmark: str,
    path: Path,
    write: Callable[[str], object] = print,
    category: str = "",
    mode: str = "",
) -> int:
    """Writes a JSON line for each verdict, and {"valid", "invalid", "accuracy", …} at the end; returns 0.

    `accuracy` is of the lines in the file; where those are of several categories, it is the unweighted mean
    of the categories' accuracies, as upstream reports it. `missing` are entries without a line.
    """
    source = upstream(benchmark)
    if mode and mode not in get_args(codec.Mode):
        raise MuaError(f"there is no mode '{mode}'; there are {', '.join(get_args(codec.Mode))}.")
    found: dict[str, dict[str, bool]] = {}
    for line in verdicts(source, path, category, cast(codec.Mode, mode or None)):
        found.setdefault(line["id"].rpartition("_")[0], {})[line["id"]] = line["valid"]
        write(json.dumps(line, ensure_ascii=False))
    if not found:
        raise MuaError(f"{path} has no line to score.")
    rates = {name: sum(of.values()) / len(of) for name, of in found.items()}
    valid = sum(sum(of.values()) for of in found.values())
    total = sum(map(len, found.values()))
    tally = {
        "valid": valid,
        "invalid": total - valid,
        "accuracy": sum(rates.values()) / len(rates),
        "categories": rates,
        "missing": sum(len(source.entries(name)) for name in found) - total,
        "benchmark": benchmark,
        "version": source.version,
        "data_hash": source.data_hash,
    }
    write(json.dumps(tally))
    return 0
