"""A conversation as the rules read it: words and calls, one after the other.

Invariant: an event points into the messages it was made from; nothing of the agent's calls, thinking or
words beside a call is taken for something the person heard.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
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


def replayed(domain: Domain, task: Task, messages: Sequence[Message]) -> Iterator[tuple[int, int, Any, Any]]:
    """Each call that the environment carried out, made again in a fresh world: (index of its message, its
    place in it, the database before, the database after). Nothing where a state cannot be kept and compared.
    """
    domain, task = domain.of(task)
    world = domain.open(task)
    if not hasattr(getattr(world, "db", None), "fork"):
        return
    places = iter(enumerate(messages))
    for message in carried_out(messages):
        if not message.tool_calls:
            continue
        calls = {call.id for call in message.tool_calls}
        # Ids may come twice in a conversation, so the search goes on from the last message found.
        at, whole = next((i, m) for i, m in places if calls <= {call.id for call in m.tool_calls})
        place = {id(call): n for n, call in enumerate(whole.tool_calls)}
        side: Side = "user" if message.role == "user" else "assistant"
        if side == "assistant":
            world.begin_step(message)
        for call in message.tool_calls:
            before = world.db.fork()
            ends = world.call(side, call).ends and side == "assistant"
            yield at, place[id(call)], before, world.db
            if ends:
                return


def state_changes(domain: Domain, task: Task, messages: Sequence[Message]) -> dict[int, list[str]]:
    """What the calls of each message changed in the database: index of the message → differences in words
    (`here` after it, `there` before it)."""
    found: dict[int, list[str]] = {}
    starts: dict[int, Any] = {}
    for at, _, before, after in replayed(domain, task, messages):
        found[at] = after.diff(starts.setdefault(at, before))
    return {at: changed for at, changed in found.items() if changed}
