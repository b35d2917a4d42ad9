"""The figures of a run: its evaluations, which of them may be compared, the five layers, what it cost.

Invariant: a number that a file of the run holds is taken as it is; computed here is only what no file says
(differences of two files with their intervals, intervals of rates, sums over steps).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..audit import LAYERS
from ..evaluate.statistics import paired_difference, wilson
from ..train import MEANING
from . import conversations as talks
from .records import json_object, look, number

MODELS = {"base": "Base", "cold_start": "Cold start", "rl": "RL"}
"""The stages of a run in order, with the names that the page shows."""


def evaluations(run: Path, note: talks.Note) -> list[dict[str, Any]]:
    """The evaluations with figures, stages in order."""
    evals = []
    folder = run / "eval"
    for path in sorted(folder.glob("*.jsonl")):
        if not path.with_suffix(".json").exists():
            note(f"eval/{path.name}: this evaluation is not finished, so it has no figures yet.")
    for path in sorted(folder.glob("*.json")):
        data = json_object(path, note)
        success = number(data.get("success"))
        if success is None:
            if data:
                note(f"eval/{path.name} has no success rate, left out.")
            continue
        model = str(data.get("model") or path.stem.rsplit("_", 1)[0])
        ci = data.get("ci95")
        whole = isinstance(ci, list) and len(ci) == 2 and all(number(x) is not None for x in ci)
        entry = {
            **{k: number(data.get(k)) for k in ("n", "samples", "excluded", "seconds", "turns")},
            **{k: number(data.get(k)) for k in ("agent_tokens_per_episode", "user_cost", "agent_cost")},
            **{k: data[k] if isinstance(data.get(k), dict) else {} for k in ("pass_k", "terminations")},
            **{k: str(data.get(k) or "") for k in ("split", "domain", "user")},
            **{
                k: {name: v for name, v in (data.get(k) or {}).items() if isinstance(v, dict)}
                for k in ("by_kind", "by_domain")
            },
            "name": path.stem,
            "model": model,
            "label": MODELS.get(model, model),
            "success": success,
            "ci95": ci if whole else None,
            "temperature": number(data.get("temperature")),
            "faults": _fault_figures(data.get("faults")),
            "audit": audit_figures(data.get("audit")),
        }
        evals.append(entry)
    order = list(MODELS)
    evals.sort(
        key=lambda e: (
            order.index(e["model"]) if e["model"] in order else len(order),
            e["temperature"] != 1.0,
            e["name"],
        )
    )
    return evals


def audit_figures(found: Any) -> dict[str, Any] | None:
    """The five layers and their rules with Wilson's intervals, from `evaluate.audit.Figures`; rules by the
    share of conversations that broke them, most first. None where nothing was audited."""
    if not isinstance(found, Mapping) or not isinstance(found.get("layers"), Mapping):
        return None
    layers = {layer: line for layer in LAYERS if (line := _rate(look((layer, found["layers"]))))}
    rules = [
        {"layer": layer, "rule": str(name), "breaches": number(look(("breaches", value))) or 0, **line}
        for layer in LAYERS
        for name, value in (look((f"rules.{layer}", found)) or {}).items()
        if (line := _rate(value))
    ]
    rules.sort(key=lambda r: (r["rate"] if r["rate"] is not None else 2, r["layer"], r["rule"]))
    behaviour = found.get("behaviour")
    counted = behaviour.items() if isinstance(behaviour, Mapping) else ()
    return {
        "trajectories": number(found.get("trajectories")),
        "layers": layers,
        "rules": rules,
        "behaviour": {str(k): n for k, v in counted if (n := number(v)) is not None},
    }


def _rate(found: Any) -> dict[str, Any] | None:
    n = number(look(("n", found)))
    if n is None:
        return None
    rate = number(look(("rate", found)))
    low, high = (None, None) if rate is None or n < 1 else wilson(rate * n, int(n))
    return {"rate": rate, "n": n, "low": low, "high": high, "unmeasured": number(look(("unmeasured", found)))}


def _fault_figures(found: Any) -> dict[str, Any] | None:
    """What an evaluation's file says of its faults; None for one without any."""
    if not isinstance(found, Mapping) or not found:
        return None
    counts = found.get("counts")
    counted = counts.items() if isinstance(counts, Mapping) else ()
    rates = {}
    for name in ("hit", "spared"):
        rates[name] = {k: number(look((f"{name}.{k}", found))) for k in ("episodes", "success")}
    return {
        "label": str(found.get("label") or "on"),
        "counts": {str(k): n for k, v in counted if (n := number(v)) is not None},
        **rates,
    }


def groups(evals: Sequence[Mapping[str, Any]], lines: Sequence[Sequence[talks.Line]]) -> list[dict[str, Any]]:
    """Evaluations that may be compared: same domain, split, temperature and faults; without faults and at
    temperature 1 first."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for i, e in enumerate(evals):
        fault = e["faults"]["label"] if e["faults"] else ""
        found.setdefault((e["domain"], e["split"], e["temperature"], fault), []).append(i)
    out = []
    for (domain, split, temperature, fault), members in found.items():
        kind = "Greedy" if temperature == 0 else "Sampled"
        title = kind if temperature is None or temperature == 0 else f"Temperature {temperature:g}"
        title += f" · faults {fault}" if fault else ""
        best = {evals[i]["model"]: i for i in reversed(members)}
        before = next((best[m] for m in ("cold_start", "base") if m in best), None)
        after = best.get("rl")
        group: dict[str, Any] = {"domain": domain, "split": split, "temperature": temperature, "title": title}
        group["faults"] = fault
        group.update(evals=members, before=before, after=after, gain=None)
        if before is not None and after is not None:
            group["gain"] = _gain(evals[before], evals[after], lines[before], lines[after])
        stages = [best[m] for m in MODELS if m in best] or members
        group["kinds"] = [
            row for by in ("by_domain", "by_kind") for row in _by_kind(evals, stages, before, after, by)
        ]
        group["domains"] = len({k for i in stages for k in evals[i]["by_domain"]})
        out.append(group)
    out.sort(
        key=lambda g: (
            bool(g["faults"]),
            -len(g["evals"]),
            g["temperature"] != 1.0,
            g["temperature"] != 0,
            g["faults"],
        )
    )
    for group in out:
        if (group["domain"], group["split"]) != (out[0]["domain"], out[0]["split"]):
            group["title"] += f" · {group['domain']} {group['split']}".rstrip()
    return out


def faults(evals: Sequence[Mapping[str, Any]], lines: Sequence[Sequence[talks.Line]]) -> list[dict[str, Any]]:
    """A row for each evaluation with faults that was made without them, too: the rest the same."""

    def what(e: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(e[k] for k in ("domain", "split", "temperature", "model", "user", "samples"))

    without = {what(e): i for i, e in reversed(list(enumerate(evals))) if not e["faults"]}
    rows = []
    for i, e in enumerate(evals):
        plain = without.get(what(e))
        if e["faults"] and plain is not None:
            change = _gain(evals[plain], e, lines[plain], lines[i])
            rows.append({"without": plain, "with": i, "change": change})
    return rows


def _gain(
    a: Mapping[str, Any], b: Mapping[str, Any], before: Sequence[talks.Line], after: Sequence[talks.Line]
) -> dict[str, Any]:
    """How much better b is; with an interval where both files hold the same tasks that the figures count."""
    out: dict[str, Any] = {"points": b["success"] - a["success"], "low": None, "high": None}
    x, y = talks.outcomes(before), talks.outcomes(after)
    if x and x.keys() == y.keys() and len(x) == a["n"] == b["n"]:
        difference = paired_difference(x, y)
        if abs(difference.mean - out["points"]) < 1e-9:
            out.update(low=difference.low, high=difference.high)
    return out


def _by_kind(
    evals: Sequence[Mapping[str, Any]],
    stages: Sequence[int],
    before: int | None,
    after: int | None,
    by: str,
) -> list[dict[str, Any]]:
    """A row for each kind of task (`by_kind`), or for each domain of a mixture; largest gain first."""
    rows = []
    for kind in dict.fromkeys(k for i in stages for k in evals[i][by]):
        cells = {i: evals[i][by].get(kind) or {} for i in stages}
        values = {str(i): number(c.get("success")) for i, c in cells.items()}
        gain = None
        if before is not None and after is not None:
            a, b = values[str(before)], values[str(after)]
            gain = None if a is None or b is None else b - a
        n = next((m for c in reversed(cells.values()) if (m := number(c.get("n"))) is not None), None)
        rows.append({"kind": kind, "n": n, "values": values, "gain": gain, "share": None})
    in_all = sum(r["n"] or 0 for r in rows)
    for row in rows:
        if row["gain"] is not None and row["n"]:
            # Success is the mean over tasks, so these add up to the gain where all kinds are measured.
            row["share"] = row["gain"] * row["n"] / in_all
    rows.sort(key=lambda r: (r["gain"] is None, -(r["gain"] or 0), r["kind"]))
    return rows


def facts(
    summary: Mapping[str, Any],
    config: Mapping[str, Any],
    manifest: Mapping[str, Any],
    evals: Sequence[Mapping[str, Any]],
    metrics: Sequence[Mapping[str, Any]],
) -> list[list[Any]]:
    """[label, value, unit] of the header; the page formats numbers by their unit."""
    everywhere = (summary, config, manifest)

    def find(*names: str) -> Any:
        return look(*((name, place) for place in everywhere for name in names))

    last = metrics[-1] if metrics else {}
    peaks = [p for m in metrics if (p := number(m.get("peak_mb"))) is not None]
    rollout = look(("train.rollout", config)) or {}
    each = [
        number(rollout.get(k)) if isinstance(rollout, Mapping) else None for k in ("groups", "group_size")
    ]
    steps = number(look(("train.steps", config), ("rl_steps", summary)))
    if steps and all(each):
        rl = f"{steps:g} steps of {each[0]:g} × {each[1]:g} episodes"
    else:
        rl = f"{done:g} steps" if (done := steps or last.get("step")) else None
    any_eval = evals[0] if evals else {}
    cpus = number(find("versions.cpus"))
    rows = [
        ["Domain", find("domain") or any_eval.get("domain"), ""],
        ["Model", _name(find("model")), ""],
        ["Parameters", number(find("parameters")), "count"],
        ["Training user", _name(find("train_user")), ""],
        ["Evaluation user", _name(find("eval_user")) or any_eval.get("user"), ""],
        ["Cold-start set", number(find("coldstart.conversations")), "count"],
        ["RL", rl, ""],
        ["Seed", find("seed"), ""],
        ["Wall time", _seconds(find("seconds")), "seconds"],
        ["Peak memory", number(find("peak_mb")) or max(peaks, default=None), "mb"],
        ["Device", _name(find("device")) or (f"{cpus} CPU cores" if cpus else None), ""],
        ["mua", find("versions.mua"), ""],
    ]
    return [row for row in rows if row[1] not in (None, "", {}, [])]


def _seconds(value: Any) -> float | int | None:
    """A run's seconds, or their sum where they are kept by stage."""
    if isinstance(value, Mapping):
        return sum(n for v in value.values() if (n := number(v)) is not None) or None
    return number(value)


def _name(value: Any) -> str | None:
    """A short name of a setting that may be plain or a mapping."""
    if isinstance(value, Mapping):
        parts = (value.get(k) for k in ("name", "kind", "base", "model"))
        named = [part for part in parts if part and isinstance(part, str)]
        return " · ".join(dict.fromkeys(named)) or None
    return None if value is None else str(value)


def cost(
    summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the run took: seconds by stage, tokens and dollars of training and of each evaluation."""
    seconds = summary.get("seconds")
    stages = (
        [[str(k), n] for k, v in seconds.items() if (n := number(v))] if isinstance(seconds, dict) else []
    )
    keys = ("agent_tokens", "user_tokens", "user_cost", "seconds_rollout", "seconds_update")
    sums = {}
    for key in keys:
        values = [n for line in metrics if (n := number(line.get(key))) is not None]
        sums[key] = math.fsum(values) if values else None
    rows = []
    for e in evals:
        episodes = sum(number(v) or 0 for v in e["terminations"].values())
        scored = episodes - (e["excluded"] or 0)
        each = e["agent_tokens_per_episode"]
        rows.append(
            {
                "name": e["name"],
                "episodes": episodes or None,
                "agent_tokens": None if each is None or not scored else round(each * scored),
                **{k: e[k] for k in ("seconds", "user_cost", "agent_cost")},
            }
        )
    return {"stages": stages, "training": {"steps": len(metrics), **sums}, "evals": rows}


def tool_errors(lines: Sequence[talks.Line]) -> list[dict[str, float]]:
    """Of each training step whose rollouts are known: the agent's calls, and the share that failed."""
    steps: dict[int, list[int]] = {}
    for line in lines:
        if line.step >= 0:
            counts = steps.setdefault(line.step, [0, 0])
            counts[0] += line.calls
            counts[1] += line.errors
    return [
        {"step": step, "calls": calls, "share": errors / calls if calls else 0.0}
        for step, (calls, errors) in sorted(steps.items())
    ]


def problems(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The steps without an update: {"step", "problems": [key of `MEANING` and its words]}."""
    out = []
    for line in metrics:
        found = line.get("problems")
        if isinstance(found, list) and found:
            out.append({"step": line["step"], "problems": [[str(p), MEANING.get(str(p), "")] for p in found]})
    return out
