"""Grades stored τ¹ conversations: upstream's results files, lines of the same records, trajectories of ours.

Invariant: a conversation is graded by the task that it embeds, so a file from any time is graded by its own
criteria; both its end state and gold's come from the installed database.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...chat import Message
from ...domain import Domain, Verdict
from ...errors import MuaError
from ...trajectory import Termination, Trajectory, read_jsonl
from .. import PARTS, load
from .data import read_task
from .domain import TOOLKITS, TRANSFER, Tau1Domain, make_task


def score(benchmark: str, path: Path, write: Callable[[str], object] = print) -> int:
    """Writes a JSON line for each verdict and the tally at the end, as `mua score` does.

    Returns the exit status: 1 when any verdict disagrees with the stored one, else 0.
    """
    tally = {"agree": 0, "disagree": 0}
    for verdict in verdicts(benchmark, path):
        tally["agree" if verdict["agree"] else "disagree"] += 1
        write(json.dumps(verdict, ensure_ascii=False))
    write(json.dumps(tally))
    return int(tally["disagree"] > 0)


def verdicts(benchmark: str, path: Path) -> Iterator[dict[str, Any]]:
    """One verdict a conversation: {"domain", "task_id", "reward", "components", "reason", "stored", "agree"}.

    `agree` compares the reward, and the component that upstream stored beside it. Raises MuaError naming
    the file and the place in it.
    """
    for where, data in _records(path):
        try:
            yield _own(data) if "fingerprint" in data else _foreign(benchmark, where, data)
        except MuaError as exc:
            raise MuaError(f"{where}: {exc}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            what = f"field {exc} is missing" if isinstance(exc, KeyError) else str(exc)
            raise MuaError(f"{where}: not a τ¹ conversation: {what}") from None


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        for number, data in read_jsonl(path):
            yield f"{path}, line {number}", data
        return
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise MuaError(f"{path} cannot be read: {exc}") from None
    if not isinstance(whole, list) or not all(isinstance(r, dict) for r in whole):
        raise MuaError(f"{path} is no results file of τ¹: it must hold a list of records")
    yield from ((f"{path}, record {number}", data) for number, data in enumerate(whole))


def _foreign(benchmark: str, where: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """One of upstream's records: `task_id`, `reward`, `info` (with the task), `traj`."""
    stored = float(data["reward"])
    info = data["info"]
    if not data["traj"]:  # upstream scores its own failures 0 and keeps nothing of them
        why = f"not scored: upstream's run failed ({str(info.get('error', 'no conversation'))[:100]})"
        return _line("", data["task_id"], Verdict(0.0, {}, why), stored, stored == 0.0)
    task = make_task(read_task(Path(where), 0, info["task"]), str(data["task_id"]))
    messages = [Message.from_dict(m) for m in data["traj"]]
    domain = load(f"{benchmark}/{_part(benchmark, info['task'], messages)}")
    verdict = domain.grade(task, messages, _end(messages))
    agree = abs(verdict.reward - stored) <= 1e-6
    kept = ((info.get("reward_info") or {}).get("info")) or {}
    for name, component in (("r_actions", "state"), ("r_outputs", "outputs")):
        if name in kept:
            agree = agree and float(kept[name]) == verdict.components.get(component)
    return _line(domain.name, task.id, verdict, stored, agree)


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


def _own(data: Mapping[str, Any]) -> dict[str, Any]:
    """A trajectory of ours; its task is found by name."""
    trajectory = Trajectory.from_dict(data)
    domain: Domain = load(trajectory.domain)
    if not isinstance(domain, Tau1Domain):
        raise MuaError(f"a trajectory of domain '{trajectory.domain}', which is none of τ¹")
    task = domain.task(trajectory.task_id)
    if trajectory.fingerprint and trajectory.fingerprint != task.fingerprint:
        raise MuaError(f"task '{task.id}' was another one when this was played")
    stored = trajectory.reward
    if trajectory.termination.infrastructure:
        none = Verdict(0.0, {}, "not scored: infrastructure failed")
        return {**_line(domain.name, task.id, none, stored, stored is None), "reward": None}
    verdict = domain.grade(task, trajectory.messages, trajectory.termination)
    agree = stored is not None and abs(verdict.reward - stored) <= 1e-6
    return _line(domain.name, task.id, verdict, stored, agree)


def _line(domain: str, task_id: Any, verdict: Verdict, stored: float | None, agree: bool) -> dict[str, Any]:
    return {
        "domain": domain,
        "task_id": str(task_id),
        "reward": verdict.reward,
        "components": dict(verdict.components),
        "reason": verdict.reason,
        "stored": stored,
        "agree": agree,
    }
