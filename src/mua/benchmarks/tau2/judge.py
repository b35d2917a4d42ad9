"""Verdicts on assertions in natural language, from a language model that reads the conversation.

Invariant: an answer that cannot be read is asked for again, then it is an infrastructure failure; it never
becomes a verdict.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ...chat import Message
from ...domain import Ask
from ...errors import InfrastructureError

_ATTEMPTS = 3


async def verdicts(
    prompt: str, messages: Sequence[Message], wanted: Sequence[str], ask: Ask
) -> tuple[bool, ...]:
    """Whether each assertion is met. `prompt` are upstream's instructions to the judge.

    Upstream takes all verdicts of the list it gets, and an empty list as all met; so does this. Raises
    InfrastructureError when no answer of three can be read.
    """
    said = "\n".join(f"{m.role}: {m.content or None}" for m in messages if m.role != "system")
    request = f"conversation:\n{said}\n\nexpectedOutcomes:\n{list(wanted)}"
    why = ""
    for _ in range(_ATTEMPTS):
        answer = await ask([Message("system", prompt), Message("user", request)])
        try:
            return _read(answer, len(wanted))
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            why = f"{type(exc).__name__}: {exc}"
    raise InfrastructureError(f"the judge gave no answer that can be read ({why}); choose another model.")


def _read(answer: str, count: int) -> tuple[bool, ...]:
    start, end = answer.find("{"), answer.rfind("}")
    results: Any = json.loads(answer[start : end + 1])["results"]
    found = [r["metExpectation"] for r in results]
    if not all(isinstance(f, bool) for f in found):
        raise ValueError("metExpectation is not true or false")
    if len(found) == count:
        return tuple(found)
    return (all(found),) * count
