"""Reads a run folder, whatever there is of it, and writes the report page.

Invariants:
- Numbers are taken from the run's files as they are; nothing is computed here that a file already says.
- The page is data and one hashed script: its content policy forbids the network and every other script,
  and the data cannot leave its block (`<`, `>`, `&` and all non-ASCII characters are escaped).
- No secret reaches the page: values under keys such as `api_key` and strings that look like keys are hidden.

What it looks for, each part optional: summary.json (run, domain, model, parameters, seed, train_user,
eval_user, seconds as a number or by stage, peak_mb, rl_steps), config.yaml and manifest.json (the same names;
train.steps, train.rollout, coldstart.conversations; versions, device), metrics.jsonl, sft_agent.jsonl,
sft_user.jsonl, eval/*.json with eval/*.jsonl, trajectories.jsonl.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ..errors import MuaError
from ..evaluate.statistics import paired_difference
from . import conversations as talks

MAX_POINTS = 2_000
"""Of a curve; longer ones are thinned evenly."""

MODELS = {"base": "Base", "cold_start": "Cold start", "rl": "RL"}
"""The stages of a run in order, with the names that the page shows."""


def build_report(run: Path, out: Path | None = None) -> Path:
    """Writes the report of a run folder to `out` (default: RUN/report.html) and returns that path.

    Any part of the run may be missing or cut off: the page says what is not there. Raises MuaError when
    `run` is no folder, or when the page cannot be written.
    """
    run = Path(run)
    if not run.is_dir():
        raise MuaError(f"{run} is not a folder, so there is no run to report on; give the folder of a run.")
    page = render(collect(run))
    out = Path(out) if out is not None else run / "report.html"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_name(out.name + ".part")
        part.write_text(page, encoding="utf-8", newline="\n")
        part.replace(out)
    except OSError as exc:
        raise MuaError(
            f"the report cannot be written to {out}: {exc.strerror}; choose another place."
        ) from None
    return out


# ---------------------------------------------------------------- the page


def render(data: Mapping[str, Any]) -> str:
    """The whole page. `data` is what `collect` returns."""
    here = files("mua.report")
    css, script, page = (
        (here / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html")
    )
    parts = {
        "TITLE": _html(f"{data['title']} · mua"),
        "POLICY": f"default-src 'none'; style-src '{_digest(css)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'",
        "STYLE": css,
        "DATA": embed(data),
        "SCRIPT": script,
    }
    # One pass, so that a placeholder's name inside the data stays what it is.
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page)
    return page


def embed(data: Any) -> str:
    """JSON that can stand in an HTML `<script>` block: pure ASCII, so U+2028 and lone surrogates too."""
    text = json.dumps(hide_secrets(finite(data)), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _html(text: str) -> str:
    return "".join(c if c.isascii() and c not in "<>&\"'" else f"&#{ord(c)};" for c in text)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def finite(value: Any) -> Any:
    """The value as JSON can hold it: NaN and infinities, which a diverged run logs, become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


_SECRET_KEY = re.compile(
    r"(api_?key|access_?key|private_?key|secret|passw|credential|authorization|(^|_)token$)", re.I
)
_SECRET_TEXT = re.compile(
    r"\b(?:sk|pk|rk)-[\w-]{16,}|\b(?:hf|ghp|gho|glpat)[_-]\w{16,}|\bBearer\s+[\w.~+/=-]{12,}|(?<=//)[^/\s:@]+:[^/\s@]+(?=@)"
)
HIDDEN = "[hidden]"


def hide_secrets(value: Any) -> Any:
    """The value with everything that looks like a key or a password replaced."""
    if isinstance(value, str):
        return _SECRET_TEXT.sub(HIDDEN, value)
    if isinstance(value, dict):
        return {
            hide_secrets(k): HIDDEN if v and isinstance(v, str) and _is_secret(k) else hide_secrets(v)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [hide_secrets(v) for v in value]
    return value


def _is_secret(key: Any) -> bool:
    return bool(_SECRET_KEY.search(str(key))) and not str(key).lower().endswith("_env")


# ---------------------------------------------------------------- the data


def collect(run: Path) -> dict[str, Any]:
    """Everything the page shows, from the files of a run."""
    notes: list[str] = []
    summary, manifest = (_json_object(run / name, notes.append) for name in ("summary.json", "manifest.json"))
    config = _yaml_object(run / "config.yaml", notes.append)
    metrics = _curve(run / "metrics.jsonl", notes.append)
    sft = {side: _curve(run / f"sft_{side}.jsonl", notes.append) for side in ("agent", "user")}
    evals, files_ = _evals(run, notes.append)
    groups = _groups(evals, files_)
    shown = _conversations(run, evals, files_, groups, notes.append)
    total = _number(_look(("train.steps", config), ("rl_steps", summary)))
    facts = _facts(summary, config, manifest, evals, metrics)
    data = {
        "title": str(_look(("run", summary), ("run", manifest), ("name", config)) or run.resolve().name),
        "finished": bool(summary),
        "steps": {"done": metrics[-1]["step"] if metrics else 0, "planned": total},
        "facts": facts,
        "models": MODELS,
        "evals": evals,
        "groups": groups,
        "faults": _faults(evals, files_),
        "metrics": metrics,
        "sft": sft,
        **shown,
        "setup": {"config": _dump(config), "manifest": manifest, "summary": summary},
        "notes": list(dict.fromkeys(notes)),
    }
    return {**data, "headline": headline(data)}


def headline(data: Mapping[str, Any]) -> dict[str, str]:
    """The result of the run in a sentence, and how it was measured in another."""
    for group in data["groups"]:
        best = {data["evals"][i]["model"]: data["evals"][i] for i in reversed(group["evals"])}
        last = next((m for m in ("rl", "cold_start", "base") if m in best), None)
        if last is None:
            continue
        e = best[last]
        text = f"{MODELS[last]} solves {_percent(e['success'])} of {e['n']} {group['split']} tasks".replace(
            "  ", " "
        )
        before = next((m for m in ("cold_start", "base") if m in best and m != last), None)
        if before and (last == "rl" or before == "base"):
            old = best[before]["success"]
            way = "up from" if e["success"] > old else "down from" if e["success"] < old else "the same as"
            named = {"cold_start": "the cold start", "base": "the base model"}[before]
            text += f", {way} {_percent(old)} for {named}" if way != "the same as" else f", {way} {named}"
        how = f"Domain {group['domain']}, {group['title'].lower()}"
        if e.get("user"):
            how += f", user played by {e['user']}"
        return {"text": text + ".", "how": how + "."}
    if data["metrics"]:
        first, last = data["metrics"][0].get("reward"), data["metrics"][-1].get("reward")
        done, planned = data["steps"]["done"], data["steps"]["planned"]
        text = f"RL has done step {done}" + (f" of {planned:g}" if planned else "")
        if isinstance(first, float) and isinstance(last, float):
            text += f"; mean reward {last:.2f}, {first:.2f} at step {data['metrics'][0]['step']}"
        return {"text": text + ".", "how": "No evaluation yet: these are training rewards."}
    if data["sft"]["agent"] or data["sft"]["user"]:
        return {"text": "Cold start is being trained.", "how": "No evaluation and no RL step yet."}
    return {"text": "Nothing measured yet.", "how": "The run folder holds no metrics and no evaluation."}


def _percent(x: float) -> str:
    """As the page's script rounds it, halves away from zero, so that one number never shows as two."""
    return f"{Decimal(100 * x).quantize(Decimal('0.1'), ROUND_HALF_UP)}%"


def _json_object(path: Path, note: talks.Note) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as exc:
        note(f"{path.name} cannot be read ({type(exc).__name__}), left out.")
        return {}
    if not isinstance(data, dict):
        note(f"{path.name} is not a JSON object, left out.")
        return {}
    return data


def _yaml_object(path: Path, note: talks.Note) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as exc:
        note(f"{path.name} cannot be read ({type(exc).__name__}), left out.")
        return {}
    return data if isinstance(data, dict) else {}


def _dump(config: Mapping[str, Any]) -> str:
    """The configuration as text, from its parsed form: a secret may span lines in the file."""
    safe = hide_secrets(finite(config))
    return yaml.safe_dump(safe, sort_keys=False, allow_unicode=True) if safe else ""


def _curve(path: Path, note: talks.Note) -> list[dict[str, Any]]:
    """The lines of a metrics file by step. A resumed run logs some steps twice: the last one counts."""
    if not path.exists():
        return []
    by_step = {
        data["step"]: data
        for _, data in talks.json_lines(path, note)
        if isinstance(data.get("step"), (int, float)) and math.isfinite(data["step"])
    }
    lines = [_short(by_step[step]) for step in sorted(by_step)]
    if len(lines) > MAX_POINTS:
        note(f"{path.name}: {len(lines):,} steps, thinned to about {MAX_POINTS:,} for the charts.")
        stride = math.ceil(len(lines) / MAX_POINTS)
        lines = lines[::stride] + ([] if (len(lines) - 1) % stride == 0 else lines[-1:])
    return lines


def _short(value: Any) -> Any:
    """Floats to six digits: more than any chart shows, half the size."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    return value


def _evals(run: Path, note: talks.Note) -> tuple[list[dict[str, Any]], list[list[talks.Line]]]:
    """The evaluations with figures, stages in order, and the trajectories of each."""
    evals = []
    folder = run / "eval"
    for path in sorted(folder.glob("*.jsonl")):
        if not path.with_suffix(".json").exists():
            note(f"eval/{path.name}: this evaluation is not finished, so it has no figures yet.")
    for path in sorted(folder.glob("*.json")):
        data = _json_object(path, note)
        success = _number(data.get("success"))
        if success is None:
            if data:
                note(f"eval/{path.name} has no success rate, left out.")
            continue
        model = str(data.get("model") or path.stem.rsplit("_", 1)[0])
        ci = data.get("ci95")
        whole = isinstance(ci, list) and len(ci) == 2 and all(_number(x) is not None for x in ci)
        entry = {
            **{k: _number(data.get(k)) for k in ("n", "samples", "excluded", "seconds", "turns")},
            **{k: _number(data.get(k)) for k in ("agent_tokens_per_episode", "user_cost")},
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
            "temperature": _number(data.get("temperature")),
            "faults": _fault_figures(data.get("faults")),
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
    lines = []
    for number, entry in enumerate(evals):
        path = folder / f"{entry['name']}.jsonl"
        lines.append(talks.index(number, path, note) if path.exists() else [])
    return evals, lines


def _fault_figures(found: Any) -> dict[str, Any] | None:
    """What an evaluation's file says of its faults; None for one without any."""
    if not isinstance(found, Mapping) or not found:
        return None
    counts = found.get("counts")
    counted = counts.items() if isinstance(counts, Mapping) else ()
    rates = {}
    for name in ("hit", "spared"):
        rates[name] = {k: _number(_look((f"{name}.{k}", found))) for k in ("episodes", "success")}
    return {
        "label": str(found.get("label") or "on"),
        "counts": {str(k): n for k, v in counted if (n := _number(v)) is not None},
        **rates,
    }


def _groups(
    evals: Sequence[Mapping[str, Any]], lines: Sequence[Sequence[talks.Line]]
) -> list[dict[str, Any]]:
    """Evaluations that may be compared: same domain, split, temperature and faults; without faults and at
    temperature 1 first."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for number, e in enumerate(evals):
        faults = e["faults"]["label"] if e["faults"] else ""
        found.setdefault((e["domain"], e["split"], e["temperature"], faults), []).append(number)
    groups = []
    for (domain, split, temperature, faults), members in found.items():
        kind = "Greedy" if temperature == 0 else "Sampled"
        title = kind if temperature is None or temperature == 0 else f"Temperature {temperature:g}"
        title += f" · faults {faults}" if faults else ""
        best = {evals[i]["model"]: i for i in reversed(members)}
        before = next((best[m] for m in ("cold_start", "base") if m in best), None)
        after = best.get("rl")
        group: dict[str, Any] = {"domain": domain, "split": split, "temperature": temperature, "title": title}
        group["faults"] = faults
        group.update(evals=members, before=before, after=after, gain=None)
        if before is not None and after is not None:
            group["gain"] = _gain(evals[before], evals[after], lines[before], lines[after])
        stages = [best[m] for m in MODELS if m in best] or members
        group["kinds"] = [
            row for by in ("by_domain", "by_kind") for row in _by_kind(evals, stages, before, after, by)
        ]
        groups.append(group)
    groups.sort(
        key=lambda g: (
            bool(g["faults"]),
            -len(g["evals"]),
            g["temperature"] != 1.0,
            g["temperature"] != 0,
            g["faults"],
        )
    )
    for group in groups:
        if (group["domain"], group["split"]) != (groups[0]["domain"], groups[0]["split"]):
            group["title"] += f" · {group['domain']} {group['split']}".rstrip()
    return groups


def _faults(
    evals: Sequence[Mapping[str, Any]], lines: Sequence[Sequence[talks.Line]]
) -> list[dict[str, Any]]:
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
        values = {str(i): _number(c.get("success")) for i, c in cells.items()}
        gain = None
        if before is not None and after is not None:
            a, b = values[str(before)], values[str(after)]
            gain = None if a is None or b is None else b - a
        n = next((c["n"] for c in reversed(cells.values()) if c.get("n") is not None), None)
        rows.append({"kind": kind, "n": n, "values": values, "gain": gain})
    rows.sort(key=lambda r: (r["gain"] is None, -(r["gain"] or 0), r["kind"]))
    return rows


def _conversations(
    run: Path,
    evals: list[dict[str, Any]],
    lines: list[list[talks.Line]],
    groups: Sequence[Mapping[str, Any]],
    note: talks.Note,
) -> dict[str, Any]:
    """The pairs and the conversations that are embedded. Without evaluations: the last training rollouts."""
    titles = {i: g["title"] for g in groups for i in g["evals"]}
    sources = [f"{e['label']} · {titles[i].lower()}" for i, e in enumerate(evals)]
    paths = {n: run / "eval" / f"{e['name']}.jsonl" for n, e in enumerate(evals) if lines[n]}
    training = run / "trajectories.jsonl"
    tail = False
    if not any(lines) and training.exists():
        # A run in progress: let people read what is being played.
        tail = True
        lines = [*lines, talks.index(len(sources), training, note, tail=True)[::-1]]
        paths[len(sources)] = training
        sources.append("Training rollouts")
    gained: list[tuple[talks.Line, talks.Line]] = []
    lost: list[tuple[talks.Line, talks.Line]] = []
    models: tuple[int | None, int | None] = (None, None)
    for group in groups:
        if group["gain"] is not None:
            models = (group["before"], group["after"])
            gained, lost = talks.find_pairs(lines[group["before"]], lines[group["after"]])
            if gained:
                break
    shown_pairs = [(p, True) for p in gained[: talks.MAX_PAIRS]] + [
        (p, False) for p in lost[: talks.MAX_PAIRS // 2]
    ]
    wanted = lines[-1] if tail else [line for pair, _ in shown_pairs for line in pair]
    prompts: dict[str, int] = {}
    items = talks.load(talks.choose(lines, wanted), paths, prompts)
    newest_first = -1 if tail else 1
    order = sorted(items, key=lambda x: (x.source, newest_first * x.offset))
    place = {line: n for n, line in enumerate(order)}
    return {
        "sources": sources,
        "conversations": [items[line] for line in place],
        "conversations_in_all": sum(map(len, lines)),
        "tail_only": tail,
        "prompts": list(prompts),
        "pairs": [
            {"before": place[a], "after": place[b], "gained": up}
            for (a, b), up in shown_pairs
            if a in place and b in place
        ],
        "pair_evals": models,
        "pairs_in_all": {"gained": len(gained), "lost": len(lost)},
    }


# ---------------------------------------------------------------- what was run


def _facts(
    summary: Mapping[str, Any],
    config: Mapping[str, Any],
    manifest: Mapping[str, Any],
    evals: Sequence[Mapping[str, Any]],
    metrics: Sequence[Mapping[str, Any]],
) -> list[list[Any]]:
    """[label, value, unit] of the header; the page formats numbers by their unit."""
    everywhere = (summary, config, manifest)

    def find(*names: str) -> Any:
        return _look(*((name, place) for place in everywhere for name in names))

    last = metrics[-1] if metrics else {}
    peaks = [p for m in metrics if (p := _number(m.get("peak_mb"))) is not None]
    rollout = _look(("train.rollout", config)) or {}
    each = [
        _number(rollout.get(k)) if isinstance(rollout, Mapping) else None for k in ("groups", "group_size")
    ]
    steps = _number(_look(("train.steps", config), ("rl_steps", summary)))
    if steps and all(each):
        rl = f"{steps:g} steps of {each[0]:g} × {each[1]:g} episodes"
    else:
        rl = f"{done:g} steps" if (done := steps or last.get("step")) else None
    any_eval = evals[0] if evals else {}
    cpus = _number(find("versions.cpus"))
    rows = [
        ["Domain", find("domain") or any_eval.get("domain"), ""],
        ["Model", _name(find("model")), ""],
        ["Parameters", _number(find("parameters")), "count"],
        ["Training user", _name(find("train_user")), ""],
        ["Evaluation user", _name(find("eval_user")) or any_eval.get("user"), ""],
        ["Cold-start set", _number(find("coldstart.conversations")), "count"],
        ["RL", rl, ""],
        ["Seed", find("seed"), ""],
        ["Wall time", _seconds(find("seconds")), "seconds"],
        ["Peak memory", _number(find("peak_mb")) or max(peaks, default=None), "mb"],
        ["Device", _name(find("device")) or (f"{cpus} CPU cores" if cpus else None), ""],
        ["mua", find("versions.mua"), ""],
    ]
    return [row for row in rows if row[1] not in (None, "", {}, [])]


def _seconds(value: Any) -> float | int | None:
    """A run's seconds, or their sum where they are kept by stage."""
    if isinstance(value, Mapping):
        return sum(n for v in value.values() if (n := _number(v)) is not None) or None
    return _number(value)


def _look(*places: tuple[str, Any]) -> Any:
    """The first value found of dotted names in nested mappings."""
    for dotted, value in places:
        found = value
        for key in dotted.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None:
            return found
    return None


def _name(value: Any) -> str | None:
    """A short name of a setting that may be plain or a mapping."""
    if isinstance(value, Mapping):
        parts = (value.get(k) for k in ("name", "kind", "base", "model"))
        named = [part for part in parts if part and isinstance(part, str)]
        return " · ".join(dict.fromkeys(named)) or None
    return None if value is None else str(value)


def _number(value: Any) -> float | int | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None
