"""Grades stored τ²-bench conversations: upstream's results files, lines with a task in them, our own.

Invariant: each conversation is graded by the task that stands beside it, so a file from any time is
graded by its own criteria.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...chat import Message
from ...domain import Task
from ...errors import MuaError
from ...trajectory import Trajectory, read_jsonl
from .. import load
from .tasks import Tau2Task

_NORMAL = ("user_stop", "agent_stop")


@dataclass(frozen=True)
class Stored:
    """One stored conversation."""

    part: str
    """`retail`, …, `telecom-solo`."""
    task: Mapping[str, Any]
    messages: list[Message]
    termination: str
    reward: float | None
    """Upstream's verdict, where the file has one."""
    db_match: bool | None
    judged: tuple[bool, ...] | None
    """Upstream's verdicts on assertions in natural language."""


def score(benchmark: str, path: Path, write: Callable[[str], object] = print) -> int:
    """Writes a JSON line for each verdict and the tally at the end, as `mua score` does.

    Returns the exit status: 1 when any verdict disagrees with the stored one, else 0. A conversation that
    is stored without a verdict has `agree` null.
    """
    tally = {"agree": 0, "disagree": 0, "no stored verdict": 0}
    for verdict in verdicts(benchmark, path):
        agree = verdict["agree"]
        tally["no stored verdict" if agree is None else "agree" if agree else "disagree"] += 1
        write(json.dumps(verdict, ensure_ascii=False))
    if not tally["no stored verdict"]:
        del tally["no stored verdict"]
    write(json.dumps(tally))
    return int(tally["disagree"] > 0)


def verdicts(benchmark: str, path: Path) -> Iterator[dict[str, Any]]:
    """One verdict a conversation: {"domain", "task_id", "reward", "components", "reason", "stored", "agree"}.

    `agree` compares the reward, and the database match where one is stored. Raises MuaError naming the
    file and the place in it.
    """
    for where, data in _records(path):
        try:
            verdict = _own(data) if "fingerprint" in data else _foreign(benchmark, _stored(data))
        except MuaError as exc:
            raise MuaError(f"{where}: {exc}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            what = f"field {exc} is missing" if isinstance(exc, KeyError) else str(exc)
            raise MuaError(f"{where}: not a τ²-bench conversation: {what}") from None
        yield verdict


def _foreign(benchmark: str, stored: Stored) -> dict[str, Any]:
    domain: Any = load(f"{benchmark}/{stored.part}")
    task: Tau2Task = domain.make_task(stored.task)
    if stored.termination in _NORMAL:
        found = domain.score(task, stored.messages, stored.judged)
        reward, components, reason = found.reward, found.components, found.reason
    else:
        reward, components, reason = 0.0, {}, f"not scored: the episode ended by {stored.termination}"
    agree = None
    if stored.reward is not None:
        agree = abs(reward - stored.reward) <= 1e-6
        if stored.db_match is not None and "db" in components:
            agree = agree and bool(components["db"]) == stored.db_match
    return {**_head(domain, task), **_tail(reward, components, reason, stored.reward, agree)}


def _own(data: Mapping[str, Any]) -> dict[str, Any]:
    """A trajectory of ours; its task is found by name."""
    trajectory = Trajectory.from_dict(data)
    domain = load(trajectory.domain)
    task = domain.task(trajectory.task_id)
    if trajectory.fingerprint and trajectory.fingerprint != task.fingerprint:
        raise MuaError(f"task '{task.id}' was another one when this was played")
    stored = trajectory.reward
    if trajectory.termination.infrastructure:
        reason = "not scored: infrastructure failed"
        return {**_head(domain, task), **_tail(None, {}, reason, stored, stored is None)}
    verdict = domain.grade(task, trajectory.messages, trajectory.termination)
    agree = None if stored is None else abs(verdict.reward - stored) <= 1e-6
    return {
        **_head(domain, task),
        **_tail(verdict.reward, dict(verdict.components), verdict.reason, stored, agree),
    }


def _head(domain: Any, task: Task) -> dict[str, Any]:
    return {"domain": domain.name, "task_id": task.id}


def _tail(
    reward: float | None, components: Mapping[str, float], reason: str, stored: Any, agree: bool | None
) -> dict[str, Any]:
    return {
        "reward": reward,
        "components": components,
        "reason": reason,
        "stored": stored,
        "agree": agree,
    }


# ---------------------------------------------------------------- formats


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of each conversation: lines of a `.jsonl[.gz]`, or simulations of a results file."""
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        for number, data in read_jsonl(path):
            yield f"{path}, line {number}", data
        return
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise MuaError(f"{path} cannot be read: {exc}") from None
    if not isinstance(whole, dict) or not isinstance(whole.get("simulations"), list):
        raise MuaError(f"{path} is no results file of τ²-bench: it has no list of simulations")
    tasks = {str(t.get("id")): t for t in whole.get("tasks") or ()}
    info = whole.get("info") or {}
    domain = (info.get("environment_info") or {}).get("domain_name")
    solo = "solo" in str((info.get("agent_info") or {}).get("implementation"))
    for number, simulation in enumerate(whole["simulations"]):
        where = f"{path}, simulation {number}"
        task = tasks.get(str(simulation.get("task_id")))
        if task is None:
            raise MuaError(f"{where}: the file has no task '{simulation.get('task_id')}'")
        yield where, {"domain": domain, "solo": solo, "task": task, **simulation}


def _stored(data: Mapping[str, Any]) -> Stored:
    domain = str(data["domain"]).partition("-workflow")[0]
    info = data.get("reward_info") or {}
    reward = data.get("reward", info.get("reward"))
    match = data.get("db_match", (info.get("db_check") or {}).get("db_match"))
    return Stored(
        part=f"{domain}-solo" if data.get("solo") else domain,
        task=data["task"],
        messages=[Message.from_dict(m) for m in data["messages"]],
        termination=str(data.get("termination") or data["termination_reason"]),
        reward=None if reward is None else float(reward),
        db_match=match,
        judged=_judged(data["task"], info.get("nl_assertions")),
    )


def _judged(task: Mapping[str, Any], found: Sequence[Mapping[str, Any]] | None) -> tuple[bool, ...] | None:
    """Upstream's verdicts in the order of the task's assertions; an empty list counts as all met there."""
    if found is None:
        return None
    wanted = (task.get("evaluation_criteria") or {}).get("nl_assertions") or ()
    if len(found) == len(wanted):
        return tuple(bool(f["met"]) for f in found)
    met = all(bool(f["met"]) for f in found)
    return tuple(met for _ in wanted)
