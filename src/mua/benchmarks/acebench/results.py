"""Upstream's result files and sequences of calls, graded.

A line is one entry: `{"id", "result", "process"}` as upstream writes it, `result` being the final states
(`[{"BaseApi": {"wifi": true, …}}, …]`) and `process` the texts of the steps, which may be missing; or
`{"id", "calls"}`, the texts as an agent wrote them (`["[turn_on_wifi()]", …]`), which are run here. The
language is that of the field `language`, else of `--category`, else of a `_en` or `_zh` in the last three
parts of the path (upstream's `result_zh/MODEL/…`), else English.

Invariant: a line's verdict depends on nothing but the line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import MuaError
from ...trajectory import read_jsonl
from ..store import Installed, installed
from .apis import Apis
from .checker import EndToEnd, end_to_end, process
from .data import CATEGORIES, Entry, entries, start
from .facts import Language
from .words import own


def score(
    benchmark: str, path: Path, write: Callable[[str], object] = print, category: str = "", mode: Any = None
) -> int:
    """Writes a JSON line for each verdict, and the accuracies at the end; returns 0.

    Accuracies are rounded as upstream rounds them and are of the lines in the file; `missing` are entries
    of its categories without a line; `agent_score` is the unweighted mean of the two end-to-end accuracies
    of a language, where both categories are there.
    """
    source = installed("acebench")
    ends: dict[str, list[bool]] = {}
    shares: dict[str, list[float]] = {}
    for line in verdicts(benchmark, source, path, category):
        name = f"{line['category']}_{line['language']}"
        ends.setdefault(name, []).append(line["valid"])
        shares.setdefault(name, []).append(line["process"])
        write(json.dumps(line, ensure_ascii=False))
    if not ends:
        raise MuaError(f"{path} has no line to score.")
    rates = {name: sum(v) / len(v) for name, v in ends.items()}
    whole = {f"{m}_{x}": len(entries(source.path, m, x)) for m, x in CATEGORIES}
    scores = {
        language: (rates[f"multi_turn_{language}"] + rates[f"multi_step_{language}"]) / 2
        for language in ("en", "zh")
        if {f"multi_turn_{language}", f"multi_step_{language}"} <= set(rates)
    }
    valid = sum(map(sum, ends.values()))
    total = sum(map(len, ends.values()))
    tally = {
        "valid": valid,
        "invalid": total - valid,
        "end_to_end_accuracy": {name: round(rate, 3) for name, rate in rates.items()},
        "process_accuracy": {name: round(sum(v) / len(v), 3) for name, v in shares.items()},
        "agent_score": scores,
        "missing": sum(whole[name] for name in ends) - total,
        "benchmark": benchmark,
        "version": source.version,
        "data_hash": source.data_hash,
    }
    write(json.dumps(tally))
    return 0


def verdicts(benchmark: str, source: Installed, path: Path, category: str = "") -> Iterator[dict[str, Any]]:
    """{"id", "language", "category", "valid", "error_type", "errors", "process"} of each line.

    Raises MuaError naming the line that is no such file's, that has an entry twice, or that belongs to
    another category than `category`.
    """
    names = [f"{m}_{x}" for m, x in CATEGORIES]
    wanted = category.removeprefix("agent_")
    if wanted and wanted not in {*names, *(m for m, _ in CATEGORIES)}:
        raise MuaError(f"{benchmark} has no category '{category}'; it has {', '.join(names)}.")
    usual = _language_of(path, wanted)
    strict = benchmark == "acebench-strict"
    seen: set[tuple[str, str]] = set()
    for number, data in read_jsonl(path):
        where = f"{path}, line {number}"
        language = data.get("language", usual)
        entry = _entry(source.path, data, language, where)
        if wanted and not f"{entry.mode}_{language}".startswith(wanted):
            raise MuaError(f"{where}: '{entry.id}' ({language}) is no entry of the category {category}.")
        if (entry.id, language) in seen:
            raise MuaError(f"{where}: entry '{entry.id}' ({language}) stands in the file twice.")
        seen.add((entry.id, language))
        found, share = _verdict(source.path, entry, data, strict, where)
        yield {
            "id": entry.id,
            "language": language,
            "category": entry.mode,
            "valid": found.valid,
            "error_type": found.error_type,
            "errors": list(found.errors),
            "process": share,
        }


def _verdict(
    folder: Path, entry: Entry, data: Mapping[str, Any], strict: bool, where: str
) -> tuple[EndToEnd, float]:
    """(end-to-end verdict, process accuracy) of a line."""
    if "calls" in data:
        texts = _texts(data, "calls", where)
        apis = Apis(entry, start(folder, entry.language), own(entry.language), strict)
        for text in texts:
            if apis.is_step(text):
                apis.run(text)
        texts = apis.steps
        try:
            found = end_to_end(entry, apis.states, strict)
        except ValueError as exc:
            found = EndToEnd(False, "states unwritable", (str(exc),))
    else:
        states = data["result"]
        if not isinstance(states, list) or not all(_is_world(world) for world in states):
            raise MuaError(
                f"{where}: field 'result' must be a list of the final states, one world an item: "
                '[{"BaseApi": {"wifi": true, "logged_in": true}}, …].'
            )
        texts = _texts(data, "process", where) if "process" in data else []
        found = end_to_end(entry, states, strict)
    return found, process(entry, texts, found.valid)


def _is_world(world: Any) -> bool:
    return isinstance(world, dict) and all(isinstance(state, dict) for state in world.values())


def _texts(data: Mapping[str, Any], field: str, where: str) -> list[str]:
    texts = data[field]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise MuaError(f"{where}: field '{field}' must be a list of texts, as the agent wrote its steps.")
    return texts


def _entry(folder: Path, data: Mapping[str, Any], language: Any, where: str) -> Entry:
    if language not in ("en", "zh"):
        raise MuaError(f"{where}: field 'language' is {language!r}; it must be en or zh.")
    if "messages" in data:
        raise MuaError(
            f"{where}: this is a conversation of mua; score it by its domain, such as "
            f"`mua score {data.get('domain') or 'acebench/multi_turn_en'} FILE`."
        )
    if "id" not in data or not {"result", "calls"} & set(data):
        missing = "id" if "id" not in data else "result"
        raise MuaError(
            f"{where}: field '{missing}' is missing; a line has an id and either result (final states) or "
            "calls (the steps as they were written)."
        )
    for mode, other in CATEGORIES:
        if other == language:
            for entry in entries(folder, mode, language):
                if entry.id == data["id"]:
                    return entry
    raise MuaError(f"{where}: there is no entry {data['id']!r}; ids are such as 'agent_multi_turn_0'.")


def _language_of(path: Path, category: str) -> Language:
    for text in (category, *reversed(path.resolve().parts[-3:])):
        found = re.findall(r"(?:^|_)(en|zh)(?=$|[_.])", text)
        if found:
            return found[-1]
    return "en"
