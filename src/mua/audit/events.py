"""A conversation as the rules read it: words and calls, one after the other.

Invariant: an event points into the messages it was made from; nothing of the agent's calls, thinking or
words beside a call is taken for something the person heard.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..chat import Message, Side, ToolCall, carried_out, strict_json
from ..domain import Domain, Task

Kind = Literal["user", "agent", "call"]
_NO_CALL = ToolCall("")


@dataclass(frozen=True)
class Event:
    """Words of one side, or a call with its answer."""

    kind: Kind
    at: int
    """Index of the message."""
    place: int
    """Index of the event itself."""
    text: str = ""
    """What was said; of a call, its answer."""
    call: ToolCall = _NO_CALL
    side: Side = "assistant"
    """Who called."""
    error: bool = False
    """The call failed, or was never answered."""
    fault: str = ""
    """How the environment misbehaved at the call."""
    first: bool = True
    """The first call of its message."""
    answer_at: int | None = None
    """Index of the message that answers the call."""

    @property
    def name(self) -> str:
        """The tool that was called."""
        return self.call.name

    @property
    def arguments(self) -> Mapping[str, Any]:
        return self.call.arguments

    @functools.cached_property
    def answer(self) -> Any:
        """The answer of a call: JSON where it is JSON (and not absurdly deep), else the text."""
        try:
            return strict_json(self.text)
        except ValueError:
            return self.text


def events(messages: Sequence[Message]) -> list[Event]:
    """The events of a conversation, in order."""
    answers = {m.tool_call_id: (i, m) for i, m in enumerate(messages) if m.role == "tool"}
    out: list[Event] = []
    for at, message in enumerate(messages):
        if message.role not in ("user", "assistant"):
            continue
        heard = message.role == "user" or not message.tool_calls
        if heard and message.content.strip():
            kind: Kind = "user" if message.role == "user" else "agent"
            out.append(Event(kind, at, len(out), message.content))
        for number, call in enumerate(message.tool_calls):
            place, answer = answers.get(call.id, (None, None))
            out.append(
                Event(
                    "call",
                    at,
                    len(out),
                    answer.content if answer else "",
                    call,
                    message.role,  # type: ignore[arg-type]
                    answer is None or answer.error,
                    answer.fault if answer else "",
                    number == 0,
                    place,
                )
            )
    return out


def state_changes(domain: Domain, task: Task, messages: Sequence[Message]) -> dict[int, list[str]]:
    """What the calls of each message changed in the database: index of the message → differences in words
    (`here` after it, `there` before it). Replays the conversation in a fresh world; empty where a state
    cannot be kept and compared."""
    domain, task = domain.of(task)
    world = domain.open(task)
    if not hasattr(getattr(world, "db", None), "fork"):
        return {}
    found: dict[int, list[str]] = {}
    for message in carried_out(messages):
        if not message.tool_calls:
            continue
        side: Side = "user" if message.role == "user" else "assistant"
        if side == "assistant":
            world.begin_step(message)
        before, ended = world.db.fork(), False
        for call in message.tool_calls:
            ended = world.call(side, call).ends and side == "assistant"
            if ended:
                break
        if changed := world.db.diff(before):
            calls = {call.id for call in message.tool_calls}
            at = next(i for i, m in enumerate(messages) if calls & {call.id for call in m.tool_calls})
            found[at] = changed
        if ended:
            break
    return found
