"""The page of a comparison: what `evaluate.compare` found, the training curves of the runs over one another,
and the conversations of each task side by side.

Invariants:
- Its numbers are those of `compare`; nothing is computed here.
- What holds of every page holds of this one (`shell`): no network, one script, no secret.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluate.tables import rounded, signed
from . import conversations as talks
from . import packing, replay, shell
from .figures import MODELS
from .records import curve, thinned, yaml_object

SCRIPTS = (
    *("core", "rows", "charts", "results", "behaviour", "talk", "tokens", "pairs", "list", "browse"),
    *("links", "frame", "comparison"),
)
"""Files of page/, in the order in which they need each other."""


def build_comparison(found: Mapping[str, Any], out: Path) -> Path:
    """Writes the page of what `evaluate.compare.compare` returned (with a `gate`, if there is one) to `out`,
    and returns that path. Raises MuaError when it cannot be written."""
    data, blocks = collect(found)
    page = shell.render(data, shell="comparison.html", scripts=SCRIPTS, blocks=blocks)
    return shell.write_page(page, Path(out), "the comparison")


def collect(found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Everything the page shows, and the blocks that hold the conversations (`packing`)."""
    comparisons, notes = found["comparisons"], [*found["notes"]]
    rows = [(number, row) for number, c in enumerate(comparisons) for row in c["evaluations"]]
    titles = _telling([c["title"].split(", ") for c in comparisons])
    evals, sources, files = [], [], []
    for n, (number, row) in enumerate(rows):
        label = f"{row['letter']} {row['label']}"
        if titles[number]:
            label += f" · {titles[number]}"
        file = talks.File(n, f"{number + 1}{row['letter']}", Path(row["file"]).with_suffix(".jsonl"))
        with contextlib.suppress(OSError):  # `compare` has said that they are not there
            file.refresh()
        files.append(file)
        evals.append({"model": row["model"], "label": label})
        sources.append({"id": n, "key": file.key, "label": label, "eval": n, "n": len(file)})
    before, after, pairs, in_all = _pairs(files)
    blocks, audited = _pack(files, [row for _, row in rows], pairs, notes)
    data = {
        "title": _title(list(dict.fromkeys(row["label"] for _, row in rows))),
        "headline": _headline(comparisons[0]),
        "live": False,
        "models": MODELS,
        "comparisons": comparisons,
        "gate": found.get("gate"),
        "curves": _curves(comparisons, notes),
        "evals": evals,
        "groups": [],
        "sources": sources,
        "conversations_in_all": sum(map(len, files)),
        "pairs": [
            {"before": [a.source, a.offset], "after": [b.source, b.offset], "gained": up, "task": a.task,
             "kind": a.kind}
            for a, b, up in pairs
        ],
        "pair_evals": [before, after],
        "pairs_in_all": in_all,
        "audited": audited,
        "notes": list(dict.fromkeys(notes)),
    }  # fmt: skip
    return data, blocks


def _title(labels: Sequence[str]) -> str:
    if len(labels) > 3:
        return f"{', '.join(labels[:2])} and {len(labels) - 2} more"
    return " and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))


def _telling(titles: Sequence[Sequence[str]]) -> list[str]:
    """Of each title the parts that not all of them have."""
    common = set.intersection(*map(set, titles))
    return [", ".join(part for part in parts if part not in common) for parts in titles]


def _headline(comparison: Mapping[str, Any]) -> dict[str, str]:
    """The first comparison in a sentence: the evaluation that differs most from the baseline."""
    baseline, *others = comparison["evaluations"]
    measured = [row for row in others if row["difference"] is not None]
    if not measured:
        return {"text": f"{baseline['label']} and {len(others)} others.", "how": comparison["title"]}
    row = max(measured, key=lambda r: abs(r["difference"]["mean"]))
    d = row["difference"]
    before, after = d.get("rates") or (baseline["success"], row["success"])
    rates = f"{row['label']} solves {rounded(100 * after)}% of the tasks"
    if abs(d["mean"]) < 1e-9:
        text = f"{rates}, as many as {baseline['label']}."
    elif d["low"] is not None and d["low"] <= 0 <= d["high"]:
        text = f"{rates}, {baseline['label']} {rounded(100 * before)}%: that may be chance."
    else:
        way = "more" if d["mean"] > 0 else "fewer"
        text = f"{rates}, {rounded(abs(100 * d['mean']))} points {way} than {baseline['label']}."
    how = comparison["title"]
    if d["low"] is not None:
        low, high = signed(100 * d["low"]), signed(100 * d["high"])
        interval = f"{low} to {high}".replace("-", "\N{MINUS SIGN}")  # as the page writes it
        how += f"; 95% interval of the difference {interval} points"
    if d["tasks"] is not None:
        how += f", paired over {d['tasks']} tasks"
    return {"text": text, "how": f"{how}."}


def _pairs(
    files: Sequence[talks.File],
) -> tuple[int | None, int | None, list[tuple[talks.Line, talks.Line, bool]], dict[str, int]]:
    """Tasks that one of the first two evaluations solves and the other does not."""
    if len(files) < 2 or not files[0].lines or not files[1].lines:
        return None, None, [], {"gained": 0, "lost": 0}
    gained, lost = talks.find_pairs(files[0].ordered(), files[1].ordered())
    shown = [(a, b, True) for a, b in gained[: talks.MAX_PAIRS]]
    shown += [(a, b, False) for a, b in lost[: talks.MAX_PAIRS]]
    return 0, 1, shown, {"gained": len(gained), "lost": len(lost)}


def _pack(
    files: Sequence[talks.File],
    rows: Sequence[Mapping[str, Any]],
    pairs: Sequence[tuple[talks.Line, talks.Line, bool]],
    notes: list[str],
) -> tuple[dict[str, str], int]:
    """The blocks of the conversations, those of the pairs first, and how many of them were audited."""
    configs = (yaml_object(Path(r["file"]).parent.parent / "config.yaml", notes.append) for r in rows)
    named = [str(config.get("domain") or "") for config in configs]
    replayers = {name: replay.Replayer(name, replay.SECONDS / len(set(named))) for name in named}
    bodies = packing.Blocks(packing.MAX_CHARACTERS)
    places: dict[tuple[int, int], packing.Place] = {}
    prompts: dict[str, int] = {}
    featured = [line for a, b, _ in pairs for line in (a, b)]
    for line in talks.by_importance(featured, [f.ordered() for f in files], []):
        if bodies.full:
            break
        trajectory = talks.read(files[line.source].path, line.offset)
        if trajectory is None:
            continue
        body = talks.body(trajectory)
        replayer = replayers[named[line.source]]
        audit = replayer.look(trajectory)
        replay.annotate(body, trajectory, audit, replayer.changes(trajectory) if audit else None)
        line.broken = None if audit is None else replay.broken(audit)
        system = body.pop("system")
        if system is not None:
            body["prompt"] = prompts.setdefault(system, len(prompts))
        places[line.place] = bodies.add(body)
    bodies.close()
    places = {line: place for line, place in places.items() if bodies.has(place)}
    shown = [line for file in files for line in file.ordered() if line.place in places]
    index = packing.index(shown, {n: n for n in range(len(files))}, places, {})
    index["prompts"] = list(prompts)
    notes.extend(note for replayer in replayers.values() for note in replayer.notes())
    blocks = {"index": packing.deflate(packing.safe_json(index))}
    blocks.update((f"b{n}", text) for n, text in enumerate(bodies.texts))
    return blocks, sum(line.broken is not None for line in shown)


def _curves(comparisons: Sequence[Mapping[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """The training of each run, once: {"label", "metrics"}."""
    out: dict[Path, dict[str, Any]] = {}
    for comparison in comparisons:
        for row in comparison["evaluations"]:
            run = Path(row["file"]).resolve().parent.parent
            if run in out or not (run / "metrics.jsonl").is_file():
                continue
            lines = thinned(curve(run / "metrics.jsonl", notes.append), "metrics.jsonl", notes.append)
            label = row["label"].removesuffix(f" {row['model']}")
            if lines:
                out[run] = {"label": label, "letter": row["letter"], "metrics": lines}
    return list(out.values())
