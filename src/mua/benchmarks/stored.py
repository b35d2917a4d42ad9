"""What grading stored conversations of τ¹ and τ² has in common: files, our own trajectories, verdict lines.

Invariant: every verdict has the same fields, and whatever cannot be read ends as a MuaError that names the
file and the place in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..domain import Verdict
from ..errors import MuaError, unreadable
from ..trajectory import Trajectory, read_jsonl
from . import load

Json = dict[str, Any]
TOLERANCE = 1e-6
"""Rewards that differ by no more are equal, as upstream has it."""


def write_all(verdicts: Iterable[Json], write: Callable[[str], object]) -> int:
    """Writes a JSON line for each verdict and the tally at the end, as `mua score` does.

    Returns the exit status: 1 when any verdict disagrees with the stored one, else 0. A conversation that
    is stored without a verdict has `agree` null.
    """
    tally = {"agree": 0, "disagree": 0, "no stored verdict": 0}
    for verdict in verdicts:
        agree = verdict["agree"]
        tally["no stored verdict" if agree is None else "agree" if agree else "disagree"] += 1
        write(json.dumps(verdict, ensure_ascii=False))
    if not tally["no stored verdict"]:
        del tally["no stored verdict"]
    write(json.dumps(tally))
    return int(tally["disagree"] > 0)


def verdicts(
    path: Path,
    what: str,
    whole: Callable[[Path, Any], Iterator[tuple[str, Json]]],
    grade: Callable[[str, Json], Json],
) -> Iterator[Json]:
    """One verdict a conversation: {"domain", "task_id", "reward", "components", "reason", "stored", "agree"}.

    Lines of a `.jsonl[.gz]` are conversations; `whole` gives (place, conversation) of any other JSON file,
    and `grade` the verdict on one that is not our own trajectory. `what` names the benchmark in errors.
    """
    for where, data in _records(path, whole):
        try:
            yield own(data, what) if "fingerprint" in data else grade(where, data)
        except MuaError as exc:
            raise MuaError(f"{where}: {exc}") from None
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as exc:
            why = f"field {exc} is missing" if isinstance(exc, KeyError) else str(exc)
            raise MuaError(f"{where}: not a {what} conversation: {why}") from None


def _records(
    path: Path, whole: Callable[[Path, Any], Iterator[tuple[str, Json]]]
) -> Iterator[tuple[str, Json]]:
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        for number, data in read_jsonl(path):
            yield f"{path}, line {number}", data
        return
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise MuaError(f"{path} cannot be read: {unreadable(exc)}") from None
    yield from whole(path, data)


def own(data: Mapping[str, Any], what: str) -> Json:
    """The verdict on a trajectory of ours; its task is found by name."""
    trajectory = Trajectory.from_dict(data)
    domain = load(trajectory.domain)
    if domain.name.partition("/")[0].partition("@")[0] != what:
        raise MuaError(f"a trajectory of domain '{trajectory.domain}', which is none of {what}")
    task = domain.task(trajectory.task_id)
    if trajectory.fingerprint and trajectory.fingerprint != task.fingerprint:
        raise MuaError(f"task '{task.id}' was another one when this was played")
    stored = trajectory.reward
    if trajectory.termination.infrastructure:
        none = Verdict(0.0, {}, "not scored: infrastructure failed")
        return {**line(domain.name, task.id, none, stored, agree=stored is None), "reward": None}
    verdict = domain.grade(task, trajectory.messages, trajectory.termination)
    return line(domain.name, task.id, verdict, stored)


def line(
    domain: str, task_id: str, verdict: Verdict, stored: float | None, agree: bool | None = None
) -> Json:
    """A verdict as it is written; `agree` is found by the rewards unless it is given."""
    if agree is None and stored is not None:
        agree = abs(verdict.reward - stored) <= TOLERANCE
    return {
        "domain": domain,
        "task_id": task_id,
        "reward": verdict.reward,
        "components": dict(verdict.components),
        "reason": verdict.reason,
        "stored": stored,
        "agree": agree,
    }
