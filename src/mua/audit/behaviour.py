"""How an agent worked, in figures: what it looked up in vain, repeated, handed over, and what it cost.

Invariant: figures of one trajectory are plain numbers that can be added up and averaged over many.
"""

from __future__ import annotations

import json
import re

from ..domain import Task
from ..trajectory import Trajectory
from . import wording
from .reading import Reading
from .rules import Verdict

_THINKING = ("think", "calculate")


def behaviour(
    reading: Reading, task: Task, trajectory: Trajectory, verdicts: list[Verdict]
) -> dict[str, float]:
    """Figures by name. Counts, but for `confirmed` (share of the writes that need a yes that got one to just
    that; absent where there is none), and tokens and US dollars."""
    calls = [e for e in reading.events if e.kind == "call" and e.side == "assistant"]
    handovers = [e for e in reading.calls if reading.hands_over(e.name)]
    wanted = any(reading.hands_over(a.name) for a in task.actions)
    generic = {*_THINKING, *reading.conduct.unneeded}
    needing = [w for w in reading.writes if reading.needs_yes(w.event.name)]
    improper = {
        v.at
        for v in verdicts
        if v.status == "violation" and v.rule in ("consent", "consent_to_details", "one_change_a_yes")
    }
    usage = trajectory.usage
    out = {
        "tool_calls": len(calls),
        "failed_calls": sum(e.error and not e.fault for e in calls),
        "unnecessary_calls": _unnecessary(reading),
        "think_calls": sum(e.name == "think" for e in calls),
        "calculate_calls": sum(e.name == "calculate" for e in calls),
        "generic_calls": sum(e.name in generic for e in calls) + len(handovers),
        "handovers": len(handovers),
        "premature_handovers": 0 if wanted else len(handovers),
        "repeated_questions": _repeated(reading),
        "writes": len(reading.writes),
        "catastrophic": len(_catastrophic(reading, task, trajectory)),
        "turns": sum(e.kind == "user" for e in reading.events),
        "agent_steps": usage.agent_steps,
        "agent_tokens": usage.agent_tokens,
        "cost": usage.agent_cost,
        "user_cost": usage.user_cost,
    }
    if needing:
        out["confirmed"] = sum(w.event.at not in improper for w in needing) / len(needing)
    return out


def _unnecessary(reading: Reading) -> int:
    """Reads whose answer the agent has already: the same call, with no write of either side in between."""
    seen: set[str] = set()
    count = 0
    own = reading.domain.task_tools(reading.task, "user")
    for event in reading.events:
        if event.kind != "call":
            continue
        if event.side == "user":
            if event.name not in own or own[event.name].effect != "read":
                seen.clear()
        elif not event.error:
            if reading.is_write(event.name):
                seen.clear()
            elif not reading.hands_over(event.name):
                key = f"{event.name} {json.dumps(event.arguments, sort_keys=True, default=str)}"
                count += key in seen
                seen.add(key)
    return count


def _repeated(reading: Reading) -> int:
    """Questions of the agent that it had asked before, since when the person had answered it."""
    asked: set[str] = set()
    count = 0
    for event in reading.events:
        if event.kind == "agent":
            for sentence in re.split(r"(?<=[.?!])\s+", event.text):
                question = wording.normal(sentence)
                # Short ones ("What do you see?") go with what was said before them.
                plain = len(question.split()) > 4 and "else" not in question
                if question.endswith("?") and plain and not wording.asks_to_confirm(sentence):
                    count += question in asked
                    asked.add(question)
        elif event.kind == "call" and event.error:
            asked.clear()  # what it was told did not help: it has to ask again
    return count


def _catastrophic(reading: Reading, task: Task, trajectory: Trajectory) -> list[int]:
    """Messages with writes that cannot be undone, are not in the gold solution, and spoiled the episode."""
    if trajectory.reward is None or trajectory.reward >= 1 - 1e-6:
        return []
    chosen = reading.conduct.irreversible
    gold = {_key(a.name, a.arguments) for a in task.actions if a.requestor == "assistant"}
    return [
        w.event.at
        for w in reading.writes
        if (reading.needs_yes(w.event.name) if chosen is None else w.event.name in chosen)
        and _key(w.event.name, w.event.arguments) not in gold
    ]


def _key(name: str, arguments: object) -> str:
    return f"{name} {json.dumps(arguments, sort_keys=True, default=str)}"
