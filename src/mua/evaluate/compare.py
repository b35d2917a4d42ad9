"""Comparisons of evaluations (`mua compare`): what differs, by how much, and how sure that is.

Invariants:
- A task is compared with itself only: the same name and, where it is recorded, the same content. What is left
  out is counted.
- In what they were measured differently is said with every figure (`protocol`).
- A difference is that of an evaluation minus that of the first one named: negative is worse. Same files, same
  numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..audit import LAYERS
from ..benchmarks import paper
from ..errors import MuaError
from . import protocol
from .statistics import (
    Difference,
    Outcomes,
    mean_success,
    paired_difference,
    paired_means,
    pass_k,
    pass_k_intervals,
    rate,
    sign_test,
)
from .stored import STAGES, Evaluation, Place, number, parts_of, read
from .tables import percent

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MOST = len(LETTERS)
"""Evaluations that can be compared with one another."""


Report = Callable[[str, int, int, str], object]
"""What is being done, evaluations done, evaluations in all, words."""


def compare(
    names: Sequence[Path], every_model: bool = False, report: Report = lambda *news: None
) -> dict[str, Any]:
    """All comparisons of what was named, the first being the baseline: {"comparisons": […], "unpaired": […],
    "notes": […]}.

    Of a run folder, the last model (RL, else the cold start, else the base) or, with `every_model`, each one;
    of other folders and files, all evaluations. JSON values only; rates, not per cent. Raises MuaError where
    nothing may be compared, or where two evaluations share no task.
    """
    if len(names) < 2:
        raise MuaError(
            "a comparison needs two or more runs, folders or evaluations; of two models of one run: "
            "`mua compare RUN/eval/cold_start_t1.json RUN/eval/rl_t1.json`."
        )
    places = read(names)
    groups = _matched(places, every_model)
    done, in_all = itertools.count(1), sum(map(len, groups))
    return {
        "comparisons": [
            _comparison(group, lambda e: report("compare", next(done), in_all, e.label)) for group in groups
        ],
        "unpaired": _unpaired(places, groups),
        "notes": [*(f"{p.label}: {note}" for p in places for note in p.notes), *_left_out(places, groups)],
    }


# ---------------------------------------------------------------- what is compared with what


def _matched(places: Sequence[Place], every_model: bool) -> list[list[Evaluation]]:
    """Lists of evaluations to compare, each with its baseline first.

    Files are compared whatever they are. Of folders, an evaluation goes with that of the same conditions in
    the first place: of the same model if there is one, else of its last model.
    """
    if all(place.single for place in places):
        group = [e for place in places for e in place.evaluations]
        if len(group) > MOST:
            raise MuaError(f"at most {MOST} evaluations can be compared at once; name fewer.")
        return [group]
    first, *others = ([*p.evaluations] if every_model else _last(p.evaluations) for p in places)
    groups = [[e] for e in first]
    for evaluations in others:
        for e in evaluations:
            fitting = [group for group in groups if group[0].conditions == e.conditions]
            if fitting:
                max(fitting, key=lambda group: _likeness(group[0], e)).append(e)
    # What most readers want to see comes first: later models before earlier ones.
    groups = sorted((g for g in groups if len(g) > 1), key=lambda g: _stage(g[0]), reverse=True)
    if not groups:
        there = "; ".join(f"{p.label} has {_conditions_in_words(p.evaluations)}" for p in places)
        raise MuaError(
            f"nothing may be compared: {there}. Evaluate on the same domain, split, temperature and faults, "
            "or name two files eval/NAME.json to compare them all the same."
        )
    if max(map(len, groups)) > MOST:
        raise MuaError(f"at most {MOST} evaluations can be compared at once; name fewer.")
    return groups


def _last(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Without the earlier models of a run, where a later one was measured alike."""
    latest: dict[tuple[Any, ...], int] = {}
    for e in evaluations:
        if e.model in STAGES:
            stage = STAGES.index(e.model)
            latest[e.conditions] = max(stage, latest.get(e.conditions, 0))
    return [e for e in evaluations if e.model not in STAGES or STAGES.index(e.model) == latest[e.conditions]]


def _likeness(a: Evaluation, b: Evaluation) -> tuple[Any, ...]:
    same = [a.figures.get(key) == b.figures.get(key) for key in ("model", "user", "samples", "n")]
    return (same[0], a.name == b.name, *same[1:], _stage(a))


def _stage(e: Evaluation) -> int:
    return STAGES.index(e.model) if e.model in STAGES else len(STAGES)


def _conditions_in_words(evaluations: Sequence[Evaluation]) -> str:
    return ", ".join(dict.fromkeys(title(e) for e in evaluations))


def title(e: Evaluation) -> str:
    """`library, split test, T = 0`, and its faults."""
    domain, split, temperature, faults = e.conditions
    parts = [domain, f"split {split}", "" if temperature is None else f"T = {temperature:g}"]
    return ", ".join(filter(None, [*parts, f"faults {faults}" if faults else ""]))


def _left_out(places: Sequence[Place], groups: Sequence[Sequence[Evaluation]]) -> list[str]:
    """Of each place, what nothing else was measured like."""
    used = {e.path for group in groups for e in group}
    known = {(e.conditions, e.model in STAGES) for group in groups for e in group}
    out = []
    for place in places:
        rest = [e for e in place.evaluations if e.path not in used]
        rest = [e for e in rest if (e.conditions, e.model in STAGES) not in known]
        if rest:
            what = ", ".join(dict.fromkeys(f"{e.name} ({title(e)})" for e in rest))
            out.append(f"{place.label}: nothing to compare with {what}")
    return out


def _unpaired(places: Sequence[Place], groups: Sequence[Sequence[Evaluation]]) -> list[dict[str, Any]]:
    """The domains of the baseline with which nothing of a later folder was compared."""
    first, *others = places
    wanted = dict.fromkeys(domain for e in first.evaluations for domain in parts_of(e.domain))
    out = []
    for place in others:
        met = {
            domain
            for baseline, *rest in groups
            if any(e is own for e in rest for own in place.evaluations)
            for domain in parts_of(baseline.domain)
        }
        trained = place.evaluations[0].trained_on
        about = {"label": place.label, "trained_on": None if trained is None else sorted(trained)}
        out += [{**about, "domain": d} for d in wanted if not place.single and d not in met]
    return out


# ---------------------------------------------------------------- one comparison


def _comparison(group: Sequence[Evaluation], report: Callable[[Evaluation], object]) -> dict[str, Any]:
    baseline = group[0]
    letters = dict(zip(LETTERS, group, strict=False))
    labels = [e.label for e in group]
    rows = []
    for letter, e in letters.items():
        label = e.label if labels.count(e.label) == 1 else f"{e.label} {e.name}"
        rows.append({"letter": letter, "label": label, **_row(baseline, e)})
        report(e)
    published = {}
    if rows_of_paper := paper.columns(baseline.domain):
        published = {
            "rows": rows_of_paper,
            "protocol": {
                letter: paper.differences(baseline.domain, protocol.about(e)) for letter, e in letters.items()
            },
        }
    notes = [
        f"{letter} {e.label}: {note}" for letter, e in letters.items() for note in dict.fromkeys(e.notes)
    ]
    return {
        "title": title(baseline),
        "domain": baseline.domain,
        "evaluations": rows,
        "protocol": protocol.differences(letters),
        "unrecorded": protocol.unrecorded(group),
        "published": published,
        "notes": notes,
    }


def _row(baseline: Evaluation, e: Evaluation) -> dict[str, Any]:
    """The figures of an evaluation, and its differences to the baseline (None for the baseline itself)."""
    figures = e.figures
    ks, intervals = pass_k(e.outcomes), pass_k_intervals(e.outcomes) if e.outcomes else {}
    row: dict[str, Any] = {
        "file": str(e.path),
        "name": e.name,
        "model": e.model,
        "user": figures.get("user"),
        "n": figures.get("n"),
        "samples": figures.get("samples"),
        "excluded": figures.get("excluded"),
        "success": figures["success"],
        "ci95": figures.get("ci95"),
        "pass_k": {str(k): {"value": v, "ci95": list(intervals[k])} for k, v in ks.items()}
        or {k: {"value": v, "ci95": None} for k, v in (figures.get("pass_k") or {}).items()},
        "terminations": figures.get("terminations") or {},
        "turns": figures.get("turns"),
        "tokens": figures.get("agent_tokens_per_episode"),
        "cost": (number(figures.get("user_cost")) or 0.0) + (number(figures.get("agent_cost")) or 0.0),
        "trained_on": sorted(e.trained_on) if e.trained_on is not None else None,
        "measures": {m: _measure(figures, m) for m in paper.columns(baseline.domain)},
        "difference": None,
    }
    same = [] if e is baseline else _shared(baseline, e)
    if same:
        a, b = _only(baseline.outcomes, same), _only(e.outcomes, same)
        if a.keys() & b.keys():
            all_tasks = baseline.outcomes.keys() | e.outcomes.keys()
            row["difference"] = _success(a, b, len(all_tasks) - len(a.keys() & b.keys()))
            row["turns_difference"] = _means(baseline, e, same, lambda x: x.turns)
            row["tokens_difference"] = _means(baseline, e, same, lambda x: x.tokens)
    elif e is not baseline and _same_tasks(baseline, e):
        # Without the episodes the two rates remain, of which nobody can say how sure their difference is.
        gap = figures["success"] - baseline.figures["success"]
        row["difference"] = {"mean": gap, "low": None, "high": None, "tasks": None, "left_out": None}
    row["kinds"] = _by(baseline, e, same, lambda x: x.kinds, "by_kind")
    row["domains"] = _by(baseline, e, same, lambda x: x.parts, "by_domain")
    row["layers"] = _layers(baseline, e, same)
    return row


def _same_tasks(a: Evaluation, b: Evaluation) -> bool:
    """Whether the two were played on the same tasks, as far as it is recorded beside the episodes."""
    known = [e.settings.get("tasks") for e in (a, b)]
    alike = a.conditions[:2] == b.conditions[:2] and a.figures["n"] == b.figures["n"]
    if alike and (None in known or known[0] == known[1]):
        return True
    b.notes.append("not the tasks of the baseline, so there is no difference")
    return False


def _measure(figures: Mapping[str, Any], measure: str) -> float | None:
    """A figure that published results are of."""
    return number(
        figures["success"] if measure == "success" else (figures.get("benchmark") or {}).get(measure)
    )


def _shared(a: Evaluation, b: Evaluation) -> list[str]:
    """Tasks of both, with the same content as far as that is recorded; empty where one has no episodes.

    Raises MuaError when both have episodes and share no task.
    """
    if not a.episodes or not b.episodes:
        return []
    named = [t for t in a.fingerprints if t in b.fingerprints]
    same = [t for t in named if not (x := a.fingerprints[t]) or not (y := b.fingerprints[t]) or x == y]
    if not same:
        why = (
            f"the {len(named)} tasks of the same name have another content in each"
            if named
            else "no task of one is a task of the other"
        )
        raise MuaError(
            f"{a.path} ({title(a)}) and {b.path} ({title(b)}) cannot be compared: {why}. Run both on the "
            "same split of the same version of the domain."
        )
    if changed := len(named) - len(same):
        b.notes.append(
            f"{changed} task{'s' * (changed > 1)} of the same name with another content than in the "
            "baseline, left out"
        )
    return same


def _only(outcomes: Outcomes, tasks: Sequence[str]) -> dict[str, Sequence[float]]:
    return {t: outcomes[t] for t in tasks if t in outcomes}


def _success(a: Outcomes, b: Outcomes, left_out: int) -> dict[str, Any]:
    """The paired difference, the `rates` over the tasks of both that it is between, the counts behind it, and
    the p of the sign test on them."""
    found = _difference(paired_difference(a, b))
    gaps = {t: rate(b[t]) - rate(a[t]) for t in a if t in b}
    better, worse = (sum(sign * gap > 1e-9 for gap in gaps.values()) for sign in (1, -1))
    return {
        **found,
        "left_out": left_out,
        "rates": [mean_success(_only(side, list(gaps))) for side in (a, b)],
        "p": sign_test(better, worse),
        "better": better,
        "worse": worse,
        "only_this": sum(rate(a[t]) == 0 < rate(b[t]) for t in gaps),
        "only_baseline": sum(rate(b[t]) == 0 < rate(a[t]) for t in gaps),
    }


FEW = 6
"""Tasks from which on the sign test can be sure (two-sided, 5 %) when all of them agree."""


def _difference(found: Difference) -> dict[str, Any]:
    """Without an interval where tasks are few: resampling them claims more than they can say. Of four that
    differ by chance, one set in fifteen has an interval without 0."""
    out = dataclasses.asdict(found)
    if found.tasks < FEW:
        out["low"] = out["high"] = None
    return out


def _means(
    a: Evaluation, b: Evaluation, tasks: Sequence[str], value: Callable[[Any], float]
) -> dict[str, Any]:
    x, y = ({t: sum(v) / len(v) for t, v in _only(e.by_task(value), tasks).items()} for e in (a, b))
    return _difference(paired_means(x, y))


def _by(
    baseline: Evaluation,
    e: Evaluation,
    same: Sequence[str],
    home_of: Callable[[Evaluation], Mapping[str, str]],
    key: str,
) -> dict[str, Any]:
    """Success by kind of task or by domain of a mixture, from the figures; with paired differences."""
    out: dict[str, Any] = {}
    recorded = e.figures.get(key)
    homes = home_of(e)
    for name, found in (recorded if isinstance(recorded, Mapping) else {}).items():
        if not isinstance(found, Mapping):
            continue
        out[name] = {"success": number(found.get("success")), "n": number(found.get("n")), "difference": None}
        tasks = [t for t in same if homes.get(t) == name and t in baseline.outcomes and t in e.outcomes]
        if tasks:
            a, b = _only(baseline.outcomes, tasks), _only(e.outcomes, tasks)
            either = {t for x in (baseline, e) for t in x.outcomes if home_of(x).get(t) == name}
            out[name]["difference"] = _success(a, b, len(either) - len(tasks))
    return out


def _layers(baseline: Evaluation, e: Evaluation, same: Sequence[str]) -> dict[str, Any]:
    """The share of episodes in which each layer held, of those it says something about, with paired
    differences. Recorded rates come first; what was never audited is audited now."""
    recorded = (e.figures.get("audit") or {}).get("layers") or {}
    out = {}
    for layer in LAYERS:
        own = e.layers.get(layer, {})
        rate, n = _pooled(own)
        line = recorded.get(layer) or {}
        if number(line.get("rate")) is not None:
            if rate is not None and abs(line["rate"] - rate) > 1e-9:
                e.notes.append(
                    f"layer {layer} was {percent(line['rate'])} when it was played and is "
                    f"{percent(rate)} by the rules of today, which are compared"
                )
            else:
                rate, n = line["rate"], line.get("n", n)
        if rate is None:
            continue
        out[layer] = {"rate": rate, "n": n, "difference": None}
        other = baseline.layers.get(layer, {})
        if e is not baseline and any(t in own and t in other for t in same):
            out[layer]["difference"] = _difference(paired_difference(_only(other, same), _only(own, same)))
    return out


def _pooled(by_task: Outcomes) -> tuple[float | None, int]:
    values = [x for values in by_task.values() for x in values]
    return (sum(values) / len(values) if values else None), len(values)
