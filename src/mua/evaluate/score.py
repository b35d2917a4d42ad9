"""Grades stored trajectories again, from their messages alone.

Invariants:
- The verdict is that of the live episode: same replay, same comparison, nothing else is looked at.
- One line is held at a time, so a file of any size can be scored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..domain import Domain
from ..domains import load_stored
from ..errors import MuaError
from ..trajectory import Trajectory, read_jsonl


def score_file(domain: Domain | None, path: str | Path) -> Iterator[dict[str, Any]]:
    """One verdict a line: {"task_id", "reward", "components", "reason", "stored", "agree"}.

    Without a domain, each line is of the one that it names.
    An episode that infrastructure ended has reward None, and agrees when None is stored. Raises MuaError
    naming the line that is no trajectory of this domain.
    """
    for number, data in read_jsonl(path):
        where = f"{path}, line {number}"
        try:
            trajectory = Trajectory.from_dict(data)
        except KeyError as exc:
            raise MuaError(f"{where}: not a trajectory: field {exc} is missing") from None
        except (TypeError, ValueError, AttributeError, MuaError) as exc:
            raise MuaError(f"{where}: not a trajectory: {exc}") from None
        yield _score(domain or _named(trajectory, where), trajectory, where)


def _named(trajectory: Trajectory, where: str) -> Domain:
    try:
        return load_stored(trajectory.domain)
    except MuaError as exc:
        raise MuaError(f"{where}: {exc}") from None


def _score(domain: Domain, trajectory: Trajectory, where: str) -> dict[str, Any]:
    if trajectory.domain and trajectory.domain != domain.name:
        raise MuaError(
            f"{where}: a trajectory of domain '{trajectory.domain}'; score it with "
            f"`mua score {trajectory.domain}`, not with '{domain.name}'."
        )
    try:
        task = domain.task(trajectory.task_id)
    except MuaError as exc:
        raise MuaError(f"{where}: {exc}") from None
    if trajectory.fingerprint and trajectory.fingerprint != task.fingerprint:
        raise MuaError(
            f"{where}: task '{task.id}' was another one when this was played (its content has changed "
            "since); score the file with the version of the domain that played it."
        )
    end = trajectory.termination
    if end.infrastructure:
        reward, components, reason = None, {}, "not scored: infrastructure failed"
    else:
        verdict = domain.grade(task, trajectory.messages, end)
        reward, components, reason = verdict.reward, dict(verdict.components), verdict.reason
    stored = trajectory.reward
    agree = reward == stored if reward is None or stored is None else abs(reward - stored) <= 1e-6
    return {
        "task_id": task.id,
        "reward": reward,
        "components": components,
        "reason": reason,
        "stored": stored,
        "agree": agree,
    }


def score(domain: Domain | None, path: str | Path, write: Callable[[str], object] = print) -> int:
    """Writes a JSON line for each verdict and {"agree", "disagree"} at the end.

    Returns the exit status: 1 when any verdict disagrees with the stored reward, else 0. Raises MuaError for
    a file without a conversation.
    """
    tally = {"agree": 0, "disagree": 0}
    for verdict in score_file(domain, path):
        tally["agree" if verdict["agree"] else "disagree"] += 1
        write(json.dumps(verdict, ensure_ascii=False))
    if not any(tally.values()):
        raise MuaError(f"{path} is empty: there is no conversation to grade.")
    write(json.dumps(tally))
    return int(tally["disagree"] > 0)
