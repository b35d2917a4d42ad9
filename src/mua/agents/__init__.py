"""Agents: whoever works for the user. A local model, an endpoint, an expert program, a person.

Invariant: an agent acts only through `AgentStep`: words to the user or tool calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..chat import Message
from ..trajectory import TokenTrace


@dataclass(frozen=True)
class AgentStep:
    """One generation of the agent."""

    message: Message
    """Role `assistant`. With tool calls it goes to the world, else its content goes to the user."""
    tokens: int = 0
    """Tokens sampled in this step."""
    truncated: bool = False
    """The step hit a token limit: the message is incomplete and the episode ends."""
    text: str | None = None
    """What a language model wrote, to the letter, before calls and thinking were read out of it and its
    ends were stripped; for benchmarks with a syntax of their own. None for other agents."""
    cost: float = 0.0
    """US dollars."""


class Agent(Protocol):
    """One agent of one episode; it may keep state between steps."""

    @property
    def trace(self) -> TokenTrace | None:
        """The exact tokens, for agents that are trained."""
        ...

    async def step(self, messages: Sequence[Message]) -> AgentStep:
        """The next step, given the whole conversation so far (`messages[0]` is the system prompt).

        Raises InfrastructureError when the engine or endpoint fails.
        """
        ...

    def close(self) -> None:
        """Frees what the episode held (KV cache, sessions)."""
        ...
