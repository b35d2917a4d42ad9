"""Evaluations as a run folder keeps them: figures, settings and episodes, read back to be compared.

Invariant: what is torn, missing or unfinished costs that part only, and a note says so; what cannot be an
evaluation at all is refused with its path.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..audit import LAYERS, audit
from ..benchmarks import is_benchmark
from ..benchmarks.guards import FAMILY
from ..domain import Domain
from ..domains import comes_with_mua, load
from ..domains.mixture import PREFIX, parse
from ..errors import MuaError, unreadable
from ..trajectory import Trajectory
from .statistics import Outcomes

STAGES = ("base", "cold_start", "rl")
"""Models of a run, in their order."""


@dataclass(frozen=True, slots=True)
class Episode:
    """What a comparison needs of a stored trajectory."""

    task: str
    fingerprint: str
    kind: str
    sample: float | None
    """None where the file does not number its samples."""
    reward: float | None
    turns: float
    tokens: float
    """Of the agent."""
    offset: int
    """Where its line begins, in bytes."""


@dataclass(eq=False)
class Evaluation:
    """One eval/NAME.json with what lies beside it."""

    path: Path
    label: str
    """The run, folder or file that was named, as short as it is still unlike the others; with the model,
    unless this one file was named."""
    figures: Mapping[str, Any]
    """NAME.json."""
    settings: Mapping[str, Any]
    """NAME.settings; empty where it is not there."""
    episodes: Sequence[Episode]
    """NAME.jsonl; empty where it is not there."""
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def model(self) -> str:
        return str(self.figures.get("model") or "")

    @property
    def domain(self) -> str:
        return str(self.figures.get("domain") or "")

    @property
    def conditions(self) -> tuple[Any, ...]:
        """What two evaluations of a folder must have in common to be compared."""
        faults = self.figures.get("faults")
        label = faults.get("label") if isinstance(faults, Mapping) else None
        split = self.figures.get("split")
        return self.domain, str(split or ""), number(self.figures.get("temperature")), str(label or "")

    @property
    def run(self) -> Path | None:
        """The run folder that it lies in."""
        place = self.path.resolve().parent.parent
        return place if (place / "config.yaml").is_file() else None

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Content hash by task, of the tasks with an episode, scored or not."""
        return {e.task: e.fingerprint for e in self.episodes}

    @functools.cached_property
    def outcomes(self) -> dict[str, list[float]]:
        """Rewards of the scored samples by task."""
        return self.by_task(lambda e: e.reward or 0.0)

    def by_task(self, value: Callable[[Episode], float]) -> dict[str, list[float]]:
        """A value of each scored episode, by task, in the order of the file."""
        out: dict[str, list[float]] = {}
        for e in self.episodes:
            if e.reward is not None:
                out.setdefault(e.task, []).append(value(e))
        return out

    @functools.cached_property
    def kinds(self) -> dict[str, str]:
        """Kind by task."""
        return {e.task: e.kind for e in self.episodes}

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Domain by task, of a mixture; empty of anything else."""
        names = self.figures.get("by_domain")
        if not isinstance(names, Mapping):
            return {}
        by_length = sorted(map(str, names), key=len, reverse=True)
        found = {t: next((n for n in by_length if t.startswith(f"{n}/")), "") for t in self.kinds}
        return {task: name for task, name in found.items() if name}

    @functools.cached_property
    def layers(self) -> dict[str, Outcomes]:
        """By layer of the audit and by task: 1.0 for each episode in which the layer's rules held, 0.0 for
        each in which one did not; episodes that it says nothing about are left out.

        The stored conversations are audited with the rules of today; empty, with a note, where their domain
        may not be loaded (`_load`) or its tasks are others by now.
        """
        found: dict[str, dict[str, list[float]]] = {layer: {} for layer in LAYERS}
        scored = [e for e in self.episodes if e.reward is not None]
        try:
            domain = self._load()
            with self.path.with_suffix(".jsonl").open("rb") as file:
                for e in scored:
                    task = domain.task(e.task)
                    if e.fingerprint and task.fingerprint != e.fingerprint:
                        raise MuaError(f"task '{e.task}' is another one by now")
                    file.seek(e.offset)
                    verdicts = audit(domain, task, Trajectory.from_dict(json.loads(file.readline())))
                    for layer in LAYERS:
                        status = verdicts.layer(layer)
                        if status in ("pass", "violation"):
                            found[layer].setdefault(e.task, []).append(float(status == "pass"))
        except (MuaError, OSError, LookupError, TypeError, ValueError, AttributeError) as exc:
            why = str(exc) if isinstance(exc, MuaError) else f"{type(exc).__name__}: {exc}"
            self.notes.append(f"its conversations could not be audited, so layers have no difference: {why}")
            return {}
        return {layer: by_task for layer, by_task in found.items() if by_task}

    @property
    def version_of_run(self) -> str:
        """The version of mua that made the run it lies in; empty where that is not known."""
        versions = _mapping(self.run / "manifest.json").get("versions") if self.run else None
        return str(versions.get("mua") or "") if isinstance(versions, Mapping) else ""

    def _load(self) -> Domain:
        """Its domain. Raises MuaError for one that neither comes with mua nor is named by the run's own
        configuration: a file of figures cannot name code to be run."""
        if comes_with_mua(self.domain):
            return load(self.domain)
        named = _mapping(self.run / "config.yaml").get("domain") if self.run else None
        if isinstance(named, str) and not named.endswith(".yaml"):  # no server of an MCP domain is started
            domain = load(named)
            if domain.name == self.domain:
                return domain
        raise MuaError(f"the domain '{self.domain}' does not come with mua, and no configuration names it")

    @functools.cached_property
    def trained_on(self) -> frozenset[str] | None:
        """What the run trained on, as `home` names it, from its config.yaml and manifest.json; None where the
        evaluation lies in no run folder, or in one whose configuration cannot be read."""
        config = _mapping(self.run / "config.yaml") if self.run else {}
        if self.run is None or "domain" not in config:
            return None
        data = _mapping(self.run / "manifest.json").get("data")
        named = [config["domain"]]
        if isinstance(data, Mapping) and data.get("domain"):
            named.append(data["domain"])  # the domain's own name, where the configuration has a path
        return frozenset(home(part) for name in named for part in parts_of(name))


def parts_of(domain: Any) -> list[str]:
    """The domains of a mixture, or the domain itself. Raises MuaError for a mixture that cannot be read."""
    if isinstance(domain, Mapping):
        return [str(name) for name in domain]
    return list(parse(domain)) if str(domain).startswith(PREFIX) else [str(domain)]


def home(domain: str) -> str:
    """A domain without profile, mode, options and version; parts of benchmarks that share tasks are one."""
    name = domain.partition("+")[0]
    if is_benchmark(name):
        benchmark, _, part = name.partition("/")
        if benchmark in FAMILY:
            return f"tau/{part.partition(':')[0].partition('-')[0]}"
        return benchmark.partition("-")[0]
    name = name.partition(":")[0]
    return Path(name).stem if "/" in name or name.endswith((".py", ".yaml")) else name


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class Place:
    """What was named on the command line."""

    path: Path
    label: str
    evaluations: tuple[Evaluation, ...]
    single: bool
    """It is one evaluation's file."""
    notes: tuple[str, ...] = ()


def read(names: Sequence[Path]) -> list[Place]:
    """The evaluations of runs, of folders and of single files NAME.json or NAME.jsonl.

    Raises MuaError for a place with no finished evaluation, and for a file that is none.
    """
    return [_place(path, label) for path, label in zip(names, short_names(names), strict=True)]


def short_names(names: Sequence[Path]) -> list[str]:
    """The ends of some paths, each as long as it takes to tell them apart; a path named twice is numbered."""
    parts = []
    for path in names:
        whole = path.expanduser().resolve()
        if whole.suffix in (".json", ".jsonl"):
            whole = whole.with_suffix("")
        parts.append([p for p in whole.parts if p not in ("eval", whole.anchor)] or [whole.anchor])
    out: list[str] = []
    for own in parts:
        others = [p for p in parts if p != own]
        length = next((n for n in range(1, len(own)) if all(p[-n:] != own[-n:] for p in others)), len(own))
        label = "/".join(own[-length:])
        seen = sum(p == own for p in parts[: len(out)])
        out.append(f"{label} ({seen + 1})" if seen else label)
    return out


def _place(named: Path, label: str) -> Place:
    path = named.expanduser()
    if path.suffix == ".jsonl" and path.with_suffix(".json").is_file():
        path = path.with_suffix(".json")
    if path.is_file():
        return Place(path, label, (_evaluation(path, lambda _: label),), single=True)
    if not path.is_dir():
        raise MuaError(f"there is no run, folder or evaluation {named}; name a run folder or eval/NAME.json.")
    folder = path / "eval" if (path / "eval").is_dir() else path
    found, notes = [], []
    for file in sorted(folder.glob("*.json")):
        if file.name.startswith("users_") and "success" not in _mapping(file):
            continue  # of `mua users compare`; the evaluations themselves lie beside it
        try:
            found.append(_evaluation(file, lambda model: f"{label} {model}"))
        except MuaError as exc:
            notes.append(f"left out: {exc}")
    for file in sorted(folder.glob("*.jsonl")):
        if folder != path and not file.with_suffix(".json").exists():
            notes.append(f"left out: {file} is not finished, so it has no figures yet.")
    if not found:
        why = f" ({notes[0]})" if notes else ""
        raise MuaError(
            f"{named} holds no finished evaluation{why}; make one with `mua eval`, or name another folder."
        )
    return Place(path, label, tuple(found), single=False, notes=tuple(notes))


def _evaluation(path: Path, label: Callable[[str], str]) -> Evaluation:
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise MuaError(f"{path} cannot be read as JSON: {unreadable(exc)}.") from None
    if not isinstance(figures, dict) or number(figures.get("success")) is None:
        raise MuaError(f"{path} is no evaluation: it has no number 'success'. Name an eval/NAME.json.")
    figures = _clean(figures)
    notes: list[str] = []
    episodes = _episodes(path.with_suffix(".jsonl"), notes)
    n, scored = number(figures.get("n")), len({e.task for e in episodes if e.reward is not None})
    if episodes and n is not None and scored != n:
        notes.append(f"its file of conversations has {scored} scored tasks, its figures are of {n:g}")
    settings = _mapping(path.with_suffix(".settings"))
    label_ = label(str(figures.get("model") or path.stem))
    return Evaluation(path, label_, figures, settings, episodes, notes)


_MAPPINGS = ("pass_k", "by_kind", "by_domain", "terminations", "audit", "benchmark", "faults")


def _clean(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures without those that are of another form than `evaluate` gives them."""
    out = {k: v for k, v in figures.items() if k not in _MAPPINGS or isinstance(v, Mapping)}
    ci = out.get("ci95")
    if not (isinstance(ci, list) and len(ci) == 2 and all(number(x) is not None for x in ci)):
        out["ci95"] = None
    for key in ("n", "samples", "excluded", "turns", "agent_tokens_per_episode", "user_cost", "agent_cost"):
        out[key] = number(out.get(key))
    for key in ("pass_k", "terminations"):
        out[key] = {k: v for k, v in out.get(key, {}).items() if number(v) is not None}
    layers = out.get("audit", {}).get("layers")
    whole = isinstance(layers, Mapping) and all(isinstance(line, Mapping) for line in layers.values())
    return {**out, "audit": {"layers": layers} if whole else {}}


def _episodes(path: Path, notes: list[str]) -> list[Episode]:
    out, broken, offset = [], 0, 0
    try:
        with path.open("rb") as file:
            for raw in file:
                start, offset = offset, offset + len(raw)
                try:
                    data = json.loads(raw)
                    out.append(_episode(data, start))
                except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
                    broken += bool(raw.strip())
    except FileNotFoundError:
        notes.append("its conversations are not there, so nothing can be compared task by task")
    except OSError as exc:
        notes.append(f"its conversations cannot be read ({exc.strerror})")
    last = {(e.task, e.sample): e for e in out if e.reward is not None and e.sample is not None}
    once = [e for e in out if e.reward is None or last.get((e.task, e.sample), e) is e]
    if twice := len(out) - len(once):
        notes.append(f"{twice} of its samples of a task stand there again; the last time counts")
    if broken:
        notes.append(f"{broken} line{'s' * (broken > 1)} of its conversations cut off or not valid, left out")
    return once


def _episode(data: Mapping[str, Any], offset: int) -> Episode:
    usage = data.get("usage") or {}
    reward = None if data.get("reward") is None else float(data["reward"])
    if reward is not None and number(reward) is None:
        raise ValueError("reward")
    return Episode(
        task=str(data["task_id"]),
        fingerprint=str(data.get("fingerprint") or ""),
        kind=str(data.get("kind") or ""),
        sample=number(data.get("sample")),
        reward=reward,
        turns=float(number(usage.get("user_turns")) or 0),
        tokens=float(number(usage.get("agent_tokens")) or 0),
        offset=offset,
    )


def _mapping(path: Path) -> dict[str, Any]:
    """A file of JSON or YAML; empty where it is not there, torn or something else."""
    try:
        data = (
            yaml.safe_load(path.read_text(encoding="utf-8"))
            if path.suffix == ".yaml"
            else json.loads(path.read_text(encoding="utf-8"))
        )
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return data if isinstance(data, dict) else {}


def number(value: Any) -> float | None:
    """A finite number, else None."""
    # The bounds keep out NaN, infinities, and integers that no float can hold.
    good = isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300
    return value if good else None
