"""Users: whoever the agent talks to. A language model, a program, a person.

Invariant: a user sees only what a person would see (`chat.user_view`), never the agent's calls, their
answers or its thinking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..chat import Message, ToolCall
from ..trajectory import Usage

STOP = "###STOP###"
"""What a user writes to end the conversation."""

ASIDE = "aside"
"""What a scripted user does (`act["do"]`) when it neither answers nor asks for anything: the agent has to say
again what it said last. `act["asks"]` is about what: its `meaning`, an `exception` from it, `time` for it."""


@dataclass(frozen=True)
class UserTurn:
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    stop: bool = False
    """The conversation ends with this turn."""
    usage: Usage = field(default_factory=Usage)
    """What this turn cost (the `user_*` fields)."""


class User(Protocol):
    """One user of one episode; it may keep state between turns."""

    name: str
    """Which kind of user, for records: `agenda`, `llm:MODEL`, `local:FOLDER`, `human`."""

    async def reply(self, view: Sequence[Message]) -> UserTurn:
        """The next turn. `view` is empty when the user opens the conversation.

        Raises InfrastructureError when the user cannot answer (endpoint down, nonsense after retries).
        """
        ...
