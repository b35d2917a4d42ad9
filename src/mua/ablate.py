"""Ablations: arms of one configuration over several seeds, what they share made once, compared by seed.

Each arm of a seed is an ordinary run folder, OUT/seedN/ARM, which resumes as any other. Two arms need no run:
the base and the cold-start model of `both` are evaluated there.

Invariants:
- What an arm takes over from `both` (conversations, models, evaluations) is what it would have made itself,
  to the bit: it is taken over only where no setting that it depends on differs.
- An arm that fails loses nothing of the others, and is named in the table.
- Arms are compared on the seeds that both of them have, the one with the other seed by seed.
"""

from __future__ import annotations

import json
import os
import shutil
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from . import pipeline
from .config import Config, load_config
from .errors import MuaError, unreadable
from .evaluate.statistics import t_interval
from .report.intervals import Mark, Row, intervals_svg

BOTH = "both"
"""The arm whose parts the others share, and with which most are compared."""


@dataclass(frozen=True)
class Arm:
    """One way to train: what differs from the configuration."""

    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keys and values, as in `config.load_config`."""
    against: str = BOTH
    """The arm that it is compared with."""


PAPER = {
    BOTH: Arm("cold start + RL"),
    # It may earn nothing from the first step to the last, which would end a run that is watched.
    "rl_only": Arm("RL only", {"sft": None, "train.anomalies.stop_after_no_signal": None}),
}
"""The paper's ablation, beside `STAGES`."""

STAGES = {"base": "base", "cold_start": "cold start only"}
"""Arms that are stages of `both`."""

_SEVERAL: dict[str, Any] = {"train.minibatches": 4}
_BATCHED = "minibatches"
_GSPO_CLIP = {"train.grpo.clip_low": 3e-4, "train.grpo.clip_high": 4e-4}
VARIANTS = {
    "no_refill": Arm("no dynamic sampling", {"train.rollout.refill_rounds": 0}),
    "faithful": Arm("unfaithful users dropped", {"train.rollout.unfaithful": "drop"}),
    "curriculum": Arm("curriculum", {"train.curriculum": {}}),
    "sequence_mean": Arm("mean over sequences", {"train.grpo.aggregation": "sequence_mean"}),
    # With one update a step the ratio is 1 and nothing is clipped, so clips are compared with several.
    "minibatches": Arm("4 updates a step", _SEVERAL),
    "clip_higher": Arm("4 updates, clip 0.2 / 0.28", {**_SEVERAL, "train.grpo.clip_high": 0.28}, _BATCHED),
    "sequence_ratio": Arm(
        "4 updates, sequence ratio",  # with the clip of GSPO (arXiv 2507.18071)
        {**_SEVERAL, "train.grpo.ratio": "sequence", **_GSPO_CLIP},
        _BATCHED,
    ),
}
"""Ours: each from the same cold start as `both`."""

MEASURES = {"success": "T = 1", "success_greedy": "greedy"}
"""Keys of a stage in summary.json."""


def read_arms(path: Path) -> dict[str, Arm]:
    """Arms from a YAML file: `name: {key: value, …}`, with keys such as train.lr. Raises MuaError."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as exc:
        raise MuaError(f"the arms in {path} cannot be read: {unreadable(exc)}") from None
    if not isinstance(data, dict) or not all(isinstance(v, dict) and v for v in data.values()):
        raise MuaError(
            f"{path} must hold one arm or more as `name: {{key: value}}`, such as "
            "`higher: {train.grpo.clip_high: 0.28}`."
        )
    taken = {*PAPER, *STAGES, *VARIANTS} & {str(name) for name in data}
    odd = [name for name in data if not str(name).replace("_", "").replace("-", "").isalnum()]
    if taken or odd:
        raise MuaError(
            f"{path}: '{[*sorted(taken), *odd][0]}' cannot be the name of an arm: "
            + ("it is one of mua's own." if taken else "use letters, digits, '_' and '-'.")
        )
    return {
        str(name): Arm(", ".join(f"{k}={v}" for k, v in settings.items()), settings)
        for name, settings in data.items()
    }


@dataclass(frozen=True)
class Job:
    """One arm of one seed."""

    name: str
    seed: int
    config: Config
    folder: Path

    @property
    def key(self) -> str:
        return f"seed{self.seed}/{self.name}"


def plan(
    source: str, overrides: Sequence[str], arms: Mapping[str, Arm], seeds: Sequence[int], out: Path
) -> list[Job]:
    """The runs in their order: the paper's arms of every seed first, then one variant after the other.

    Raises MuaError for a setting of an arm that does not exist.
    """
    jobs = []
    for names in ([n for n in arms if n in PAPER], *([n] for n in arms if n not in PAPER)):
        for seed in seeds:
            for name in names:
                more = {"seed": seed, **arms[name].settings}
                try:
                    config = load_config(source, overrides, more)
                except MuaError as exc:
                    raise MuaError(f"arm '{name}': {exc}") from None
                jobs.append(Job(name, seed, config, out / f"seed{seed}" / name))
    return jobs


async def run_all(
    jobs: Sequence[Job],
    after: Callable[[dict[str, str]], object],
    report: pipeline.Report = pipeline.silent,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, str]:
    """Runs what is not there yet; returns what failed, by job, with the reason.

    `after` hears what has failed so far, after each run. Raises Stopped; the same call goes on.
    """
    donors = {job.seed: job for job in jobs if job.name == BOTH}
    failed: dict[str, str] = {}
    for number, job in enumerate(jobs):
        try:
            await _run(job, donors.get(job.seed), number, len(jobs), report, should_stop)
        except pipeline.Stopped:
            raise
        except MuaError as exc:
            failed[job.key] = str(exc)
        except Exception as exc:  # whatever it is, the other arms go on
            failed[job.key] = f"{type(exc).__name__}: {exc}"
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        words = f"failed: {failed[job.key]}" if job.key in failed else "done"
        report("arms", number + 1, len(jobs), f"{job.key} {words}")
        after(failed)
    return failed


async def _run(
    job: Job,
    donor: Job | None,
    number: int,
    count: int,
    report: pipeline.Report,
    should_stop: Callable[[], bool],
) -> None:
    def on_news(stage: str, done: int, total: int, words: str) -> None:
        report("arms", number, count, f"{job.key}: {stage} {done}/{total} {words}".rstrip())

    if should_stop():
        raise pipeline.Stopped
    if donor is not None and donor is not job:
        take_over(donor, job)
    await pipeline.preflight(job.config, job.folder)
    run = pipeline.open_run(job.config, job.folder, report=on_news, should_stop=should_stop)
    with run.folder:  # opened even when it is done: its configuration may be another
        if not (job.folder / "report.html").exists():
            await pipeline.everything(run)


# ---------------------------------------------------------------- what arms share

_AFTER_COLD_START = {"train", "train_user", "train_split"}
"""Settings that nothing before GRPO depends on."""


def shared_parts(a: Config, b: Config) -> list[tuple[str, list[str]]]:
    """What a run with configuration `a` has that one with `b` would make alike: a path whose existence says
    that the part is whole, and the files of the part, which may be patterns."""
    changed = {name for name in Config.model_fields if getattr(a, name) != getattr(b, name)}
    changed -= _AFTER_COLD_START
    if changed - {"sft", "user_sft"}:
        return []
    models = ["base"] if "sft" in changed else ["base", "cold_start"]
    parts = [("models/base", ["coldstart.json*", "coldstart_user.json*", "models/base"])]
    if "user_sft" not in changed:
        parts.append(("models/user", ["models/user", "sft_user.jsonl"]))
    if "sft" not in changed:
        parts.append(("models/cold_start", ["models/cold_start", "sft_agent.jsonl"]))
    names = [f"eval/{pipeline.eval_name(model, t)}" for model in models for t in a.eval.temperatures]
    return parts + [(f"{name}.json", [f"{name}.*"]) for name in names]


def take_over(donor: Job, job: Job) -> None:
    """Puts the shared parts that `donor` has finished into the folder of `job`, where they are not there yet.

    Links where the file system can, else copies.
    """
    for proof, patterns in shared_parts(donor.config, job.config):
        if not (donor.folder / proof).exists():
            continue
        for part in sorted(p for pattern in patterns for p in donor.folder.glob(pattern)):
            target = job.folder / part.relative_to(donor.folder)
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh = target.with_name(f".{target.name}.new")
            if part.is_dir():
                shutil.rmtree(fresh, ignore_errors=True)
                shutil.copytree(part, fresh, copy_function=_link)
            else:
                fresh.unlink(missing_ok=True)
                _link(part, fresh)
            fresh.replace(target)


def _link(source: Any, target: Any) -> None:
    """No file of a run is changed in place once its stage is done, so two runs may have one file."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


# ---------------------------------------------------------------- what came out


def collect(jobs: Sequence[Job], arms: Mapping[str, Arm], failed: Mapping[str, str]) -> dict[str, Any]:
    """What table.json holds: each arm with its mean over seeds, and its difference to the arm `against`.

    Rates, not per cent. An interval is null with fewer than two seeds.
    """
    values: dict[str, dict[str, dict[int, float]]] = {}
    cost: dict[str, list[dict[str, float]]] = {}
    tasks = set()
    for job in jobs:
        path = job.folder / "summary.json"
        if job.key in failed or not path.exists():
            continue
        summary = json.loads(path.read_text(encoding="utf-8"))
        stages = {name: name for name in STAGES} if job.name == BOTH else {}
        for name, stage in {**stages, job.name: "rl"}.items():
            for measure in MEASURES:
                if summary.get(stage) and summary[stage][measure] is not None:
                    values.setdefault(name, {}).setdefault(measure, {})[job.seed] = summary[stage][measure]
                    tasks.add(summary[stage]["n"])
        cost.setdefault(job.name, []).append(_cost(job, summary))
    labels = {**STAGES, **{name: arm.label for name, arm in arms.items()}}
    order = [*STAGES, *(n for n in ("rl_only", BOTH) if n in arms), *(n for n in arms if n not in PAPER)]
    found: dict[str, Any] = {}
    for name in order:
        entry: dict[str, Any] = {"label": labels[name]}
        entry["settings"] = dict(arms[name].settings) if name in arms else {}
        entry["against"] = None if name == BOTH else arms[name].against if name in arms else BOTH
        for measure in MEASURES:
            own = values.get(name, {}).get(measure, {})
            other = values.get(entry["against"] or "", {}).get(measure, {})
            entry[measure] = _mean(own)
            entry[f"{measure}_difference"] = _mean({s: v - other[s] for s, v in own.items() if s in other})
        for key in ("episodes", "seconds_grpo"):
            rows = [c[key] for c in cost.get(name, ())]
            entry[key] = sum(rows) / len(rows) if rows else None
        found[name] = entry
    return {
        "arms": found,
        "interval": "95 %, Student's t of the mean over seeds",
        "tasks": sorted(tasks),
        "failed": dict(failed),
        "missing": [
            job.key for job in jobs if job.key not in failed and not (job.folder / "summary.json").exists()
        ],
    }


def _mean(by_seed: Mapping[int, float]) -> dict[str, Any] | None:
    if not by_seed:
        return None
    numbers = [by_seed[seed] for seed in sorted(by_seed)]
    interval = t_interval(numbers)
    return {
        "mean": sum(numbers) / len(numbers),
        "ci95": interval and list(interval),
        "by_seed": {str(seed): by_seed[seed] for seed in sorted(by_seed)},
    }


def _cost(job: Job, summary: Mapping[str, Any]) -> dict[str, float]:
    """Episodes played in GRPO, those without a score included, and its seconds."""
    size = job.config.train.rollout.group_size
    lines = (job.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    played = sum(json.loads(line)["groups_played"] for line in lines)
    return {"episodes": float(played * size), "seconds_grpo": summary["seconds"].get("grpo", 0.0)}


def write(table: Mapping[str, Any], title: str, out: Path) -> tuple[list[str], list[list[str]]]:
    """Writes table.json, table.md and ablation.svg; returns the columns and rows of the table."""
    columns = [
        "arm",
        "against",
        "T = 1",
        "difference",
        "greedy",
        "difference",
        "seeds",
        "episodes",
        "GRPO, min",
    ]
    rows, marks = [], []
    for entry in table["arms"].values():
        cells = [entry["label"], table["arms"][entry["against"]]["label"] if entry["against"] else "-"]
        for measure in MEASURES:
            cells += [_cell(entry[measure]), _cell(entry[f"{measure}_difference"], signed=True)]
        seeds = next((entry[m]["by_seed"] for m in MEASURES if entry[m]), {})
        cells.append(",".join(seeds) or "-")
        cells.append("-" if entry["episodes"] is None else f"{entry['episodes']:.0f}")
        cells.append("-" if entry["seconds_grpo"] is None else f"{entry['seconds_grpo'] / 60:.1f}")
        rows.append(cells)
        points = [
            Mark(name, x["mean"], x["ci95"], list(x["by_seed"].values()))
            for measure, name in MEASURES.items()
            if (x := entry[measure])
        ]
        if points:
            marks.append(Row(entry["label"], points))
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        f"# {title}",
        "",
        f"Success in per cent: mean over seeds ({table['interval']}). Differences are in points, to the arm "
        "in the second column, paired by seed.",
        "",
        *("| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows)),
        *("" for _ in table["failed"]),
        *(f"Failed: {job}: {why}" for job, why in table["failed"].items()),
    ]
    _replace(out / "table.json", json.dumps(table, indent=1) + "\n")
    _replace(out / "table.md", "\n".join(lines) + "\n")
    if marks:
        _replace(out / "ablation.svg", intervals_svg(title, "success on held-out tasks, per cent", marks))
    return columns, rows


def _cell(value: Mapping[str, Any] | None, signed: bool = False) -> str:
    if value is None:
        return "-"
    sign = "+" if signed else ""
    text = f"{100 * value['mean']:{sign}.1f}"
    if value["ci95"] is None:
        return text
    low, high = (f"{100 * x:{sign}.1f}" for x in value["ci95"])
    return f"{text} ({low} to {high})"


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
