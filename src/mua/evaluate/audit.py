"""Audits of many trajectories: figures of an evaluation, and the trail of a run or a file (`mua audit`).

Invariant: one trajectory is held at a time, so a file of any size can be audited; a trajectory whose task is
another one by now, or unknown, is refused with its place in the file.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..audit import LAYERS, Audit, audit
from ..audit.events import state_changes
from ..audit.judge import settle
from ..database import MISSING, thaw
from ..domain import Ask, Domain, Task
from ..domains import load_stored
from ..errors import MuaError
from ..trajectory import Trajectory, read_trajectories


class Figures:
    """What many audits come to."""

    def __init__(self) -> None:
        self.trajectories = 0
        self._layers: dict[str, Counter[str]] = {layer: Counter() for layer in LAYERS}
        self._rules: dict[tuple[str, str], Counter[str]] = {}
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: Counter[str] = Counter()

    def add(self, found: Audit) -> None:
        self.trajectories += 1
        for layer in LAYERS:
            self._layers[layer][found.layer(layer)] += 1
        by_rule: dict[tuple[str, str], set[str]] = {}
        for verdict in found.verdicts:
            by_rule.setdefault((verdict.layer, verdict.rule), set()).add(verdict.status)
            self._rules.setdefault((verdict.layer, verdict.rule), Counter())["breaches"] += (
                verdict.status == "violation"
            )
        for key, statuses in by_rule.items():
            worst = next(s for s in ("violation", "unmeasured", "pass", "not_applicable") if s in statuses)
            self._rules[key][worst] += 1
        for name, value in found.behaviour.items():
            self._sums[name] += value
            self._counts[name] += 1

    def to_dict(self) -> dict[str, Any]:
        """`layers`: of the trajectories in which some rule of the layer applied (`n`), the share without a
        violation (`rate`). `rules`: the same by rule, with the number of `breaches`. `behaviour`: means."""
        rules: dict[str, dict[str, Any]] = {layer: {} for layer in LAYERS}
        for (layer, name), counts in self._rules.items():
            if line := _line(counts):
                rules[layer][name] = {**line, "breaches": counts["breaches"]}
        return {
            "trajectories": self.trajectories,
            "layers": {layer: _line(counts) for layer, counts in self._layers.items()},
            "rules": rules,
            "behaviour": {name: self._sums[name] / self._counts[name] for name in self._sums},
        }


def _line(counts: Counter[str]) -> dict[str, Any]:
    """{"rate", "n"} and, where there are some, "unmeasured"; empty where nothing applied."""
    n = counts["pass"] + counts["violation"]
    if not n and not counts["unmeasured"]:
        return {}
    line: dict[str, Any] = {"rate": counts["pass"] / n if n else None, "n": n}
    if counts["unmeasured"]:
        line["unmeasured"] = counts["unmeasured"]
    return line


def figures(domain: Domain, tasks: Iterable[Task], trajectories: Iterable[Trajectory]) -> dict[str, Any]:
    """`Figures` of an evaluation's scored trajectories."""
    known = {task.id: task for task in tasks}
    found = Figures()
    for trajectory in trajectories:
        if trajectory.reward is not None:
            found.add(audit(domain, known[trajectory.task_id], trajectory))
    return found.to_dict()


# ---------------------------------------------------------------- files


def trajectory_files(place: Path) -> list[Path]:
    """The trajectories of a run folder (its evaluations and its training steps), or the file itself.
    Raises MuaError where there are none."""
    if place.is_file():
        return [place]
    found = [*sorted(place.glob("eval/*.jsonl")), *place.glob("trajectories.jsonl")]
    if not found:
        raise MuaError(
            f"{place} has no trajectories: name a run folder (with eval/*.jsonl or trajectories.jsonl in "
            "it), or a file .jsonl or .jsonl.gz of trajectories."
        )
    return found


async def run(
    files: Sequence[Path],
    domain: Domain | None = None,
    out: Path | None = None,
    ask: Ask | None = None,
    report: Callable[[str, int, int, str], None] = lambda *news: None,
) -> dict[str, Any]:
    """`Figures` of all trajectories in some files; their trail goes to `out`, which is there whole or not at
    all. `ask` is a judge. Raises MuaError where no file has a conversation."""
    found = Figures()
    fresh = out.with_name(f".{out.name}.part") if out is not None else None
    with contextlib.ExitStack() as stack:
        trail = None
        if fresh is not None and out is not None:
            trail = stack.enter_context(_writing(fresh, out))
            stack.callback(fresh.unlink, missing_ok=True)  # of an audit that was broken off
        for number, path in enumerate(files):
            for own, trajectory, plain in audits(path, domain):
                full = plain if ask is None else await settle(plain, trajectory.messages, ask)
                found.add(full)
                if trail is not None:
                    trail.writelines(
                        json.dumps({"file": path.name, **line}, ensure_ascii=False) + "\n"
                        for line in full.trail(trajectory, _changes(own, trajectory, full))
                    )
                report("audit", number, len(files), f"{found.trajectories} trajectories")
            report("audit", number + 1, len(files), f"{found.trajectories} trajectories")
        if not found.trajectories:
            raise MuaError(f"there is no conversation in {', '.join(map(str, files))}.")
        if trail is not None and fresh is not None and out is not None:
            trail.close()
            os.replace(fresh, out)
    return found.to_dict()


def _changes(domain: Domain, trajectory: Trajectory, found: Audit) -> dict[int, list[str]]:
    """What the messages with a breach changed; without one, nothing is replayed."""
    if not any(v.layer != "outcome" for v in found.violations):
        return {}
    return state_changes(domain, domain.task(trajectory.task_id), trajectory.messages)


def missed(domain: Domain, trajectory: Trajectory) -> list[str]:
    """How the end state of a conversation differs from what its task asks for, in words; empty where it does
    not, or where the states of a domain cannot be compared."""
    domain, task = domain.of(domain.task(trajectory.task_id))
    world = domain.replay(task, trajectory.messages)
    if not hasattr(getattr(world, "db", None), "differences"):
        return []
    out = []
    for table, key, field, here, there in world.db.differences(domain.gold(task)):
        if here is MISSING and field is None:
            out.append(f"{table} {key} is not there, and should be: {_shown(there)}")
        elif there is MISSING and field is None:
            out.append(f"{table} {key} is there, and should not be: {_shown(here)}")
        else:
            out.append(f"{table} {key}, {field}: is {_shown(here)}, should be {_shown(there)}")
    return out


def _shown(value: Any) -> str:
    text = "not there" if value is MISSING else json.dumps(thaw(value), ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _writing(path: Path, out: Path) -> TextIO:
    if out.is_dir():
        raise MuaError(f"the audit trail cannot be written to {out}, which is a folder; name a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # What UTF-8 cannot hold (half a surrogate pair) is written as its escape, which JSON has, too.
        return path.open("w", encoding="utf-8", errors="backslashreplace")
    except OSError as exc:
        raise MuaError(
            f"the audit trail cannot be written to {path.parent} ({exc}); choose another --out."
        ) from None


def audits(path: Path, domain: Domain | None = None) -> Iterator[tuple[Domain, Trajectory, Audit]]:
    """Each trajectory of a file that got as far as a conversation, its domain and its audit. Without a
    domain, each is of the one that it names. Raises MuaError naming the trajectory that is of no such task.
    """
    for number, trajectory in enumerate(read_trajectories(path), 1):
        if not trajectory.messages:
            continue
        where = f"{path}, trajectory {number}"
        if domain is not None and trajectory.domain not in ("", domain.name):
            raise MuaError(
                f"{where}: a trajectory of domain '{trajectory.domain}', not of '{domain.name}'; leave "
                "--domain out, and each is audited by its own domain."
            )
        try:
            own = domain or load_stored(trajectory.domain)
            task = own.task(trajectory.task_id)
        except MuaError as exc:
            raise MuaError(f"{where}: {exc}") from None
        if trajectory.fingerprint and trajectory.fingerprint != task.fingerprint:
            raise MuaError(
                f"{where}: task '{task.id}' was another one when this was played; audit the file with "
                "the version of the domain that played it."
            )
        yield own, trajectory, audit(own, task, trajectory)
