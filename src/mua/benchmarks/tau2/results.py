"""Grades stored τ²-bench conversations: upstream's results files, lines with a task in them, our own.

Invariant: each conversation is graded by the task that stands beside it, so a file from any time is
graded by its own criteria.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...chat import Message
from ...domain import Verdict
from ...errors import MuaError
from .. import load, stored
from .tasks import Tau2Task

_NORMAL = ("user_stop", "agent_stop")


@dataclass(frozen=True)
class Conversation:
    """One stored conversation of upstream's."""

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
    """Writes the verdicts and their tally; see `stored.write_all`."""
    return stored.write_all(verdicts(benchmark, path), write)


def verdicts(benchmark: str, path: Path) -> Iterator[dict[str, Any]]:
    """One verdict a conversation, see `stored.verdicts`. `agree` compares the reward, and the database match
    where one is stored."""
    return stored.verdicts(path, "tau2", _whole, lambda where, data: _foreign(benchmark, _conversation(data)))


def _foreign(benchmark: str, found: Conversation) -> dict[str, Any]:
    domain: Any = load(f"{benchmark}/{found.part}")
    task: Tau2Task = domain.make_task(found.task)
    if found.termination in _NORMAL:
        scored = domain.score(task, found.messages, found.judged)
        verdict = Verdict(scored.reward, scored.components, scored.reason)
    else:
        verdict = Verdict(0.0, {}, f"not scored: the episode ended by {found.termination}")
    agree = None
    if found.reward is not None:
        agree = abs(verdict.reward - found.reward) <= stored.TOLERANCE
        if found.db_match is not None and "db" in verdict.components:
            agree = agree and bool(verdict.components["db"]) == found.db_match
    return stored.line(domain.name, task.id, verdict, found.reward, agree)


# ---------------------------------------------------------------- formats


def _whole(path: Path, data: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of each simulation of a results file."""
    if not isinstance(data, dict) or not isinstance(data.get("simulations"), list):
        raise MuaError(f"{path} is no results file of τ²-bench: it has no list of simulations")
    tasks = {str(t.get("id")): t for t in data.get("tasks") or ()}
    info = data.get("info") or {}
    domain = (info.get("environment_info") or {}).get("domain_name")
    solo = "solo" in str((info.get("agent_info") or {}).get("implementation"))
    for number, simulation in enumerate(data["simulations"]):
        where = f"{path}, simulation {number}"
        task = tasks.get(str(simulation.get("task_id")))
        if task is None:
            raise MuaError(f"{where}: the file has no task '{simulation.get('task_id')}'")
        yield where, {"domain": domain, "solo": solo, "task": task, **simulation}


def _conversation(data: Mapping[str, Any]) -> Conversation:
    domain = str(data["domain"]).partition("-workflow")[0]
    info = data.get("reward_info") or {}
    reward = data.get("reward", info.get("reward"))
    match = data.get("db_match", (info.get("db_check") or {}).get("db_match"))
    return Conversation(
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
