"""Any OpenAI-compatible endpoint as the agent, by native tool calling.

Invariant: what the model got wrong stays the agent's (an unreadable call, a cut answer, a conversation
longer than its context); only what the endpoint got wrong is an `InfrastructureError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..chat import Message
from ..endpoint import ContextOverflow, Endpoint, wire
from ..tools import Tool
from ..trajectory import TokenTrace
from . import AgentStep


class EndpointAgent:
    """The agent of one episode; the endpoint is shared by all of them."""

    trace: TokenTrace | None = None
    over_api = True
    """Some benchmarks show agents behind an API other prompts than local models."""

    def __init__(self, endpoint: Endpoint, tools: Mapping[str, Tool], seed: int = 0):
        self.endpoint = endpoint
        self.tools = list(tools.values())
        self.seed = seed
        self._steps = 0

    def use_tools(self, tools: Mapping[str, Tool]) -> None:
        """The tools from the next step on."""
        self.tools = list(tools.values())

    async def step(self, messages: Sequence[Message]) -> AgentStep:
        """The endpoint's next message. Raises InfrastructureError when it gives none."""
        self._steps += 1
        try:
            answer = await self.endpoint.chat(wire(messages), self.tools, self.seed + self._steps)
        except ContextOverflow:
            return AgentStep(Message("assistant"), truncated=True)
        message = Message("assistant", answer.text, answer.tool_calls, thinking=answer.thinking)
        return AgentStep(message, answer.completion_tokens, answer.truncated, answer.raw, answer.cost)

    def close(self) -> None:
        """Nothing is held."""
