"""Grades stored τ¹ conversations: upstream's results files, lines of the same records, trajectories of ours.

Invariant: a conversation is graded by the task that it embeds, so a file from any time is graded by its own
criteria; both its end state and gold's come from the installed database.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...chat import Message
from ...domain import Verdict
from ...errors import MuaError
from ...trajectory import Termination
from .. import PARTS, load, stored
from .data import read_task
from .domain import TOOLKITS, TRANSFER, make_task


def score(benchmark: str, path: Path, write: Callable[[str], object] = print) -> int:
    """Writes the verdicts and their tally; see `stored.write_all`."""
    return stored.write_all(verdicts(benchmark, path), write)


def verdicts(benchmark: str, path: Path) -> Iterator[dict[str, Any]]:
    """One verdict a conversation, see `stored.verdicts`. `agree` compares the reward, and the components that
    upstream stored beside it."""
    return stored.verdicts(path, "tau1", _whole, functools.partial(_foreign, benchmark))


def _whole(path: Path, data: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(data, list) or not all(isinstance(r, dict) for r in data):
        raise MuaError(f"{path} is no results file of τ¹: it must hold a list of records")
    yield from ((f"{path}, record {number}", record) for number, record in enumerate(data))


def _foreign(benchmark: str, where: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """One of upstream's records: `task_id`, `reward`, `info` (with the task), `traj`."""
    reward, info = float(data["reward"]), data["info"]
    if not data["traj"]:  # upstream scores its own failures 0 and keeps nothing of them
        why = f"not scored: upstream's run failed ({str(info.get('error', 'no conversation'))[:100]})"
        return stored.line("", str(data["task_id"]), Verdict(0.0, {}, why), reward)
    task = make_task(read_task(Path(where), 0, info["task"]), str(data["task_id"]))
    messages = [Message.from_dict(m) for m in data["traj"]]
    domain = load(f"{benchmark}/{_part(benchmark, info['task'], messages)}")
    verdict = domain.grade(task, messages, _end(messages))
    agree = abs(verdict.reward - reward) <= stored.TOLERANCE
    kept = ((info.get("reward_info") or {}).get("info")) or {}
    for name, component in (("r_actions", "state"), ("r_outputs", "outputs")):
        if name in kept:
            agree = agree and float(kept[name]) == verdict.components.get(component)
    return stored.line(domain.name, task.id, verdict, reward, agree)


def _end(messages: list[Message]) -> Termination:
    """How upstream's episode ended: by the user's stop, a handover, or when its steps were used up."""
    last = messages[-1]
    if last.role == "user" and "###STOP###" in last.content:
        return Termination.USER_STOP
    calls = next((m.tool_calls for m in reversed(messages) if m.role == "assistant"), ())
    if last.role == "tool" and calls and calls[0].name == TRANSFER:
        return Termination.AGENT_TRANSFER
    return Termination.TURN_CAP


def _part(benchmark: str, task: Mapping[str, Any], messages: list[Message]) -> str:
    """Upstream's records do not say of which domain they are: by the tools, else by the user's id."""
    names = {a["name"] for a in task["actions"]} | {m.tool_calls[0].name for m in messages if m.tool_calls}
    parts = PARTS[benchmark.partition("+")[0]]
    found = [p for p in parts if names & _only(p)]
    if len(found) != 1:
        found = [p for p in parts if str(task["user_id"]) in load(f"{benchmark}/{p}").base.tables["users"]]
    if len(found) != 1:
        raise MuaError(f"neither its tools nor its user tell whether this is of {' or '.join(parts)}")
    return found[0]


@functools.cache
def _only(part: str) -> frozenset[str]:
    """The tools that only this part has."""
    tools = {p: set(_names(p)) for p in TOOLKITS}
    return frozenset(tools[part].difference(*(names for p, names in tools.items() if p != part)))


def _names(part: str) -> list[str]:
    from ...tools import toolkit_tools

    return list(toolkit_tools(TOOLKITS[part]))
