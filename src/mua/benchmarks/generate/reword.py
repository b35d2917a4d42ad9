"""Scenarios in other words, from a teacher model: what a person is told, never what must come of it.

Invariant: a new wording is taken only when every fact of the old one (ids, numbers, names, dates, the
options and rules that decide the gold) still stands in it; else the old wording stays, and is counted.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...chat import Message
from ...domain import Ask

Json = dict[str, Any]

ATTEMPTS = 3
FIELDS = ("reason_for_call", "task_instructions")
"""What is reworded. What the person knows is a list of bare facts, and stays."""

_PROMPT = """\
You reword instructions for somebody who plays a customer in a chat with a service agent. You get a JSON
object with the texts "reason_for_call" and "task_instructions". Answer with a JSON object with the same two
keys and nothing else.
- Say the same in other words: natural, varied, in the second person ("you").
- Keep every id, number, date, name, address, product and option letter by letter, digits as digits.
- Keep every condition and the order of events: what is wanted first, what only after something else
  happened, what is not said before it is asked for, when a change of mind comes, what is accepted in the end.
- Add nothing: no new facts, wishes, reasons or feelings."""

_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_FACT = re.compile(rf"(?:{'|'.join(_MONTHS)}) \d+|[#@\w][\w.@#'-]*\d[\w.@#-]*|[#\d][\w.@#-]*|\S+@\S+")
_DECISIVE = (
    "no longer need",
    "by mistake",
    "cheapest",
    "earliest",
    "outbound",
    "return flight",
    "one way",
    "round trip",
    "basic economy",
    "economy",
    "business",
    "insurance",
    "credit card",
    "gift card",
    "paypal",
    "certificate",
    "everything",
    "default address",
    "excellent",
    "abroad",
    "overdue",
    "roaming",
)
"""Words on which the gold hangs, beside ids and numbers."""
_OWN_WORDS = ("say", "do", "what", "why", "source", "trip_type")
"""Keys of the scripted user's data that hold sentences, or words of ours."""


def facts(record: Json) -> list[str]:
    """What a wording of the scenario must hold, each once, in the order of the text."""
    text = _text(record)
    found = [f.rstrip(".,'") for f in _FACT.findall(text)]
    low = text.lower()
    found += [w for w in _DECISIVE if w in low]
    found += [
        v
        for v in _strings(record["mua"]["agenda"]["requests"])
        if len(v) > 2 and v not in ("all", "same") and _holds(text, v)
    ]
    return list(dict.fromkeys(f for f in found if f))


def lost(record: Json, wording: Json) -> list[str]:
    """The facts of a task that a new wording has lost."""
    text = " ".join(str(wording.get(k) or "") for k in FIELDS)
    return [f for f in facts(record) if not _holds(text, f)]


async def reword_all(
    tasks: Sequence[Json], ask: Ask, name: str, on_progress: Callable[[int], object] = lambda done: None
) -> tuple[list[Json], int]:
    """The tasks in other words, in their order, and how many kept their own. `name` is the teacher's.

    Raises InfrastructureError when the teacher fails.
    """
    done = 0

    async def one(task: Json) -> tuple[Json, bool]:
        nonlocal done
        found = await reword(task, ask, name)
        done += 1
        on_progress(done)
        return found

    results = await asyncio.gather(*(one(t) for t in tasks))
    return [t for t, _ in results], sum(not new for _, new in results)


async def reword(record: Json, ask: Ask, name: str = "") -> tuple[Json, bool]:
    """The task in other words and True; or as it was and False, when no answer kept all facts."""
    instructions = record["user_scenario"]["instructions"]
    request = json.dumps({k: instructions[k] for k in FIELDS}, ensure_ascii=False)
    messages = [Message("system", _PROMPT), Message("user", request)]
    for _ in range(ATTEMPTS):
        answer = await ask(messages)
        wording = _read(answer)
        missing = lost(record, wording) if wording else []
        if wording and not missing:
            new = copy.deepcopy(record)
            new["user_scenario"]["instructions"].update(wording)
            new["mua"]["reworded"] = name
            return new, True
        complaint = (
            f"these are missing: {'; '.join(missing)}" if missing else "this is not the JSON object asked for"
        )
        messages = [*messages[:2], Message("assistant", answer), Message("user", f"Once more, {complaint}.")]
    return record, False


def _read(answer: str) -> Json:
    """The two texts of an answer; empty when it is something else."""
    start, end = answer.find("{"), answer.rfind("}")
    try:
        found = json.loads(answer[start : end + 1])
    except ValueError:
        return {}
    if not isinstance(found, dict) or not all(
        isinstance(found.get(k), str) and found[k].strip() for k in FIELDS
    ):
        return {}
    return {k: found[k] for k in FIELDS}


def _text(record: Json) -> str:
    return " ".join(str(record["user_scenario"]["instructions"][k]) for k in FIELDS)


def _holds(text: str, fact: str) -> bool:
    """The fact stands in the text as words of their own, in any case."""
    return re.search(rf"(?<![\w.#]){re.escape(fact)}(?![\w]|\.\d)", text, re.I) is not None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in _OWN_WORDS:
                yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
