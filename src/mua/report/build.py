"""Reads a run folder, whatever there is of it, and makes the report page of it.

Invariants:
- Numbers are taken from the run's files as they are; nothing is computed here that a file already says.
- What holds of every page holds of this one (`shell`): no network, one script, no secret.
- Same run folder, same bytes; unless the time for audits and replays is used up (`replay.SECONDS`), which the
  page says.

What it looks for, each part optional: summary.json (run, domain, model, parameters, seed, train_user,
eval_user, seconds as a number or by stage, peak_mb, rl_steps), config.yaml and manifest.json (the same names;
train.steps, train.rollout, coldstart.conversations; versions, device), metrics.jsonl, sft_agent.jsonl,
sft_user.jsonl, eval/*.json with eval/*.jsonl, trajectories.jsonl, anomalies/*/trajectories.jsonl, and a
tokenizer.json of its models.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..audit import Audit
from ..errors import MuaError
from ..evaluate.audit import Figures
from ..evaluate.tables import rounded
from ..trajectory import Trajectory
from . import conversations as talks
from . import figures, packing, replay, shell
from .figures import MODELS
from .records import curve, json_object, look, number, thinned, yaml_object
from .shell import embed, finite, hide_secrets
from .tokens import Pieces, segments

__all__ = ["Source", "build_report", "collect", "embed", "render"]

SCRIPTS = (
    *("core", "rows", "charts", "results", "behaviour", "training", "cost", "talk", "tokens", "pairs"),
    *("list", "browse", "setup", "links", "frame", "report"),
)
"""Files of page/, in the order in which they need each other."""
LOOK_SECONDS = 2.0
"""What the audits of a run that is looked at may take each time: the others follow the next time."""
TRAINING = "training"
"""The key of trajectories.jsonl; evaluations are `eval-NAME`, episodes of broken updates `anomaly-STEP`."""


def build_report(run: Path, out: Path | None = None) -> Path:
    """Writes the report of a run folder to `out` (default: RUN/report.html) and returns that path.

    Any part of the run may be missing or cut off: the page says what is not there. Raises MuaError when
    `run` is no folder, or when the page cannot be written.
    """
    run = Path(run)
    if not run.is_dir():
        raise MuaError(f"{run} is not a folder, so there is no run to report on; give the folder of a run.")
    data, blocks = Source(run).pack()
    page = shell.render(data, scripts=SCRIPTS, blocks=blocks)
    return shell.write_page(page, Path(out) if out is not None else run / "report.html")


def collect(run: Path) -> dict[str, Any]:
    """Everything that the page of a run shows but its conversations (`Source.collect`)."""
    return Source(run).collect()


def render(data: Mapping[str, Any], *, live: bool = False) -> str:
    """The page of what `Source.collect` returned. A `live` one asks its own server for conversations and
    news (`data.json`, `conversation/NUMBER/OFFSET`, `events`)."""
    policy = shell.SAME_ORIGIN if live else shell.NOTHING
    return shell.render({**data, "live": live}, scripts=SCRIPTS, policy=policy)


# ---------------------------------------------------------------- the data


class Source:
    """A run folder, read as far as it is there. Reading it again costs what has been added."""

    def __init__(self, run: Path, seconds: float = replay.SECONDS):
        """`seconds` are for the audits and replays of a page."""
        self.run = run
        self._seconds = seconds
        self._files: dict[str, talks.File] = {}
        self._numbers = itertools.count()
        self._figures: dict[int, Figures] = {}
        self._pieces = Pieces(run)
        self._replayer = replay.Replayer("", seconds)

    def collect(self) -> dict[str, Any]:
        """Everything the page shows but the conversations themselves, as JSON values; `index` lists them."""
        data, lines, sources = self._collect(audits=True)
        data["index"] = packing.index(lines, sources)
        return data

    def body(self, source: int, offset: int) -> dict[str, Any] | None:
        """One conversation of the index, by its source's number; None where there is no such."""
        file = next((f for f in self._files.values() if f.number == source), None)
        line = file.lines.get(offset) if file is not None else None
        trajectory = talks.read(file.path, offset) if file is not None and line is not None else None
        if trajectory is None:
            return None
        self._replayer.seconds = self._seconds
        try:
            body = self._body(trajectory)[0]
            if trajectory.trace is not None:
                trace = trajectory.trace
                body["trace"] = {"segments": segments(trace), "pieces": self._pieces.of(trace)}
        except talks.UNUSABLE:
            return None
        return body

    def pack(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Everything the page shows, and the blocks that hold the conversations (`packing`)."""
        data, lines, sources = self._collect(audits=False)
        featured = {tuple(p[side]) for p in data["pairs"] for side in ("before", "after")}
        bodies, traces = packing.Blocks(packing.MAX_CHARACTERS), packing.Blocks(packing.MAX_TRACES)
        places: dict[tuple[int, int], packing.Place] = {}
        tokens: dict[tuple[int, int], packing.Place] = {}
        prompts: dict[str, int] = {}
        by_number = {f.number: f for f in self._files.values()}
        order = talks.by_importance(
            [x for x in lines if (sources[x.source], x.offset) in featured],
            [self._files[key].ordered() for key in self._files if key.startswith("eval-")],
            [f.ordered() for key, f in sorted(self._files.items()) if not key.startswith("eval-")],
        )
        unreadable = 0
        for line in order:
            if bodies.full:
                break
            trajectory = talks.read(by_number[line.source].path, line.offset)
            try:
                if trajectory is None:
                    raise ValueError("no trajectory")
                body, line.broken = self._body(trajectory, line.source)
                system = body.pop("system")
                if system is not None:
                    body["prompt"] = prompts.setdefault(system, len(prompts))
                places[line.place] = bodies.add(body)
                if trajectory.trace is not None and not traces.full:
                    self._pieces.note(trajectory.trace)
                    tokens[line.place] = traces.add(segments(trajectory.trace))
            except talks.UNUSABLE:
                unreadable += line.place not in places
        bodies.close()
        traces.close()
        places = {k: v for k, v in places.items() if bodies.has(v)}
        tokens = {k: v for k, v in tokens.items() if traces.has(v) and k in places}
        shown = [line for line in lines if line.place in places]
        index = packing.index(shown, sources, places, tokens)
        index["prompts"] = list(prompts)
        if unreadable:
            plural = "s" * (unreadable > 1)
            data["notes"].append(f"{unreadable:,} conversation{plural} cannot be read, left out.")
        self._finish(data, shown)
        blocks = {"index": packing.deflate(shell.safe_json(index))}
        if tokens:
            blocks["pieces"] = packing.deflate(shell.safe_json(self._pieces.known))
        blocks.update((f"b{n}", text) for n, text in enumerate(bodies.texts))
        blocks.update((f"t{n}", text) for n, text in enumerate(traces.texts))
        return data, blocks

    def _body(
        self, trajectory: Trajectory, source: int | None = None
    ) -> tuple[dict[str, Any], tuple[str, ...] | None]:
        """A conversation with its audit and its changes, and the rules it broke. With `source`, its audit
        counts in the figures of that file."""
        body = talks.body(trajectory)
        found = self._replayer.look(trajectory)
        replay.annotate(body, trajectory, found, self._replayer.changes(trajectory) if found else None)
        return body, self._count(found, trajectory, source)

    def _count(
        self, found: Audit | None, trajectory: Trajectory, source: int | None
    ) -> tuple[str, ...] | None:
        """The rules broken; with a source, the audit counts in the figures of that file, too."""
        if found is None:
            return None
        if source is not None and trajectory.reward is not None:
            with contextlib.suppress(*talks.UNUSABLE):  # absurd figures in the file
                self._figures.setdefault(source, Figures()).add(found)
        return replay.broken(found)

    # ------------------------------------------------------------ parts

    def _collect(self, audits: bool) -> tuple[dict[str, Any], list[talks.Line], dict[int, int]]:
        run, notes = self.run, list[str]()
        summary, manifest = (json_object(run / n, notes.append) for n in ("summary.json", "manifest.json"))
        config = yaml_object(run / "config.yaml", notes.append)
        seconds = min(LOOK_SECONDS, self._seconds) if audits else self._seconds
        self._replayer = replay.Replayer(str(config.get("domain") or ""), seconds)
        metrics = curve(run / "metrics.jsonl", notes.append)
        sft = {
            side: thinned(curve(run / name, notes.append), name, notes.append)
            for side, name in (("agent", "sft_agent.jsonl"), ("user", "sft_user.jsonl"))
        }
        evals = figures.evaluations(run, notes.append)
        self._refresh(notes.append)
        files = [self._files.get(f"eval-{e['name']}") for e in evals]
        by_eval = [f.ordered() if f is not None else [] for f in files]
        groups = figures.groups(evals, by_eval)
        listed, sources, labels = self._sources(evals, groups)
        rollouts = self._files[TRAINING].ordered() if TRAINING in self._files else []
        lines = [line for key in listed for line in self._files[key].ordered()]
        if audits:
            self._audit(lines)
        total = number(look(("train.steps", config), ("rl_steps", summary)))
        data = {
            "title": str(look(("run", summary), ("run", manifest), ("name", config)) or run.resolve().name),
            "live": False,
            "finished": bool(summary),
            "steps": {"done": metrics[-1]["step"] if metrics else 0, "planned": total},
            "facts": figures.facts(summary, config, manifest, evals, metrics),
            "models": MODELS,
            "evals": evals,
            "groups": groups,
            "faults": figures.faults(evals, by_eval),
            "problems": figures.problems(metrics),
            "tool_errors": figures.tool_errors(rollouts),
            "cost": figures.cost(summary, metrics, evals),
            "metrics": thinned(metrics, "metrics.jsonl", notes.append),
            "sft": sft,
            "sources": labels,
            "conversations_in_all": sum(map(len, self._files.values())),
            **_pairs(groups, by_eval, sources),
            "setup": {"config": _dump(config), "manifest": manifest, "summary": summary},
            "notes": notes,
        }
        if audits:
            self._finish(data, lines)
        return {**data, "headline": headline(data)}, lines, sources

    def _refresh(self, note: talks.Note) -> None:
        """Finds the run's files of trajectories, and reads what is new in them."""
        found = {f"eval-{p.stem}": p for p in sorted((self.run / "eval").glob("*.jsonl"))}
        for path in sorted((self.run / "anomalies").glob("step_*/trajectories.jsonl")):
            found[f"anomaly-{path.parent.name.removeprefix('step_')}"] = path
        if (self.run / "trajectories.jsonl").exists():
            found[TRAINING] = self.run / "trajectories.jsonl"
        for key, path in found.items():
            if key not in self._files:
                self._files[key] = talks.File(next(self._numbers), key, path)
        for key, file in list(self._files.items()):
            try:
                file.refresh()
            except OSError as exc:
                del self._files[key]  # an anomaly's folder makes room for a newer one
                if key in found:
                    note(f"{file.path.name} cannot be read: {exc.strerror}.")
                continue
            talks.note_broken(file.path.name, file.broken + file.torn, note)

    def _sources(
        self, evals: Sequence[dict[str, Any]], groups: Sequence[Mapping[str, Any]]
    ) -> tuple[list[str], dict[int, int], list[dict[str, Any]]]:
        """Files in the order of the page, the place of each in it by its number, and what the page says."""
        titles = {i: g["title"] for g in groups for i in g["evals"]}
        labels: dict[str, tuple[str, int | None]] = {}
        for i, e in enumerate(evals):
            labels[f"eval-{e['name']}"] = f"{e['label']} · {titles[i].lower()}", i
            e["title"] = labels[f"eval-{e['name']}"][0]
        for key in self._files:
            if key.startswith("eval-"):
                labels.setdefault(key, (f"{key.removeprefix('eval-')} · not finished", None))
        labels[TRAINING] = "Training rollouts", None
        for key in sorted(self._files):
            if key.startswith("anomaly-"):
                labels[key] = f"Step {key.removeprefix('anomaly-').lstrip('0') or '0'} · no update", None
        listed = [key for key in labels if key in self._files]
        return (
            listed,
            {self._files[key].number: n for n, key in enumerate(listed)},
            [
                {"id": f.number, "key": key, "label": labels[key][0], "eval": labels[key][1], "n": len(f)}
                for key in listed
                for f in [self._files[key]]
            ],
        )

    def _audit(self, lines: Sequence[talks.Line]) -> None:
        """Audits the lines that have not been, the newest first, as long as the time lasts."""
        by_number = {f.number: f for f in self._files.values()}
        for line in reversed(lines):
            if self._replayer.seconds <= 0:
                self._replayer.late += sum(x.broken is None for x in lines)
                return
            if line.broken is None and (t := talks.read(by_number[line.source].path, line.offset)):
                line.broken = self._count(self._replayer.look(t), t, line.source)

    def _finish(self, data: dict[str, Any], shown: Sequence[talks.Line]) -> None:
        """What is known only after the conversations were read: figures of audits, notes."""
        for e in data["evals"]:
            file = self._files.get(f"eval-{e['name']}")
            found = self._figures.get(file.number) if file is not None else None
            scored = sum(x.reward is not None for x in file.ordered()) if file is not None else 0
            if e["audit"] is None and found is not None and found.trajectories == scored:
                e["audit"] = figures.audit_figures(found.to_dict())
        data["audited"] = sum(x.broken is not None for x in shown)
        data["notes"] = list(dict.fromkeys([*data["notes"], *self._replayer.notes()]))


def _pairs(
    groups: Sequence[Mapping[str, Any]], by_eval: Sequence[Sequence[talks.Line]], sources: Mapping[int, int]
) -> dict[str, Any]:
    """The tasks that one of two models solves and the other does not; conversations by (source, offset)."""
    gained: list[tuple[talks.Line, talks.Line]] = []
    lost: list[tuple[talks.Line, talks.Line]] = []
    models: tuple[int | None, int | None] = (None, None)
    for group in groups:
        if group["gain"] is not None:
            models = (group["before"], group["after"])
            gained, lost = talks.find_pairs(by_eval[group["before"]], by_eval[group["after"]])
            if gained:
                break
    shown = [(p, True) for p in gained[: talks.MAX_PAIRS]]
    shown += [(p, False) for p in lost[: talks.MAX_PAIRS // 2]]
    return {
        "pairs": [
            {
                "before": [sources[a.source], a.offset],
                "after": [sources[b.source], b.offset],
                "gained": up,
                "kind": a.kind,
                "task": a.task,
            }
            for (a, b), up in shown
        ],
        "pair_evals": list(models),
        "pairs_in_all": {"gained": len(gained), "lost": len(lost)},
    }


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
    return f"{rounded(100 * x)}%"


def _dump(config: Mapping[str, Any]) -> str:
    """The configuration as text, from its parsed form: a secret may span lines in the file."""
    safe = hide_secrets(finite(config))
    return yaml.safe_dump(safe, sort_keys=False, allow_unicode=True) if safe else ""
