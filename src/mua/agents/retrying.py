"""An agent that tries again what an environment refused for the moment (`faults`), around one that does not.

Domains' experts know no lost calls. With this around them they play conversations of a world that
misbehaves, from which a model learns to look at an error and to try again instead of giving up or claiming
success.

Invariant: it reads only what any agent can read, the words of the answer; an error of the caller's own
making (a wrong argument, a refusal by the domain) reaches the inner agent at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..chat import Message, ToolCall
from ..tools import Tool
from ..trajectory import TokenTrace
from . import Agent, AgentStep

PASSING = re.compile(r"\bTry again\.|\bdid not answer within\b")
"""How an error says that the same call may work later."""
UNSURE = re.compile(r"may have been carried out or not")


class Retrying:
    """Repeats a call up to `most` times before the inner agent hears of its failure. After a write of which
    nobody knows whether it has happened, it first looks again at what it read last, as the error tells it
    to."""

    def __init__(self, agent: Agent, tools: Mapping[str, Tool], most: int = 10):
        self.agent = agent
        self.tools = tools
        self.most = most
        self._tries = 0
        self._read: tuple[ToolCall, ...] = ()
        """The last call that only read, and was answered."""
        self._after: tuple[ToolCall, ...] = ()
        """What is to be repeated after a look."""

    @property
    def trace(self) -> TokenTrace | None:
        """The inner agent's."""
        return self.agent.trace

    def close(self) -> None:
        """Closes the inner agent."""
        self.agent.close()

    async def step(self, messages: Sequence[Message]) -> AgentStep:
        """The last call again, where it may work now; else the inner agent's move."""
        last = messages[-1]
        if last.role == "tool":
            calls = messages[-2].tool_calls if len(messages) > 1 else ()
            if last.error and PASSING.search(last.content) and self._tries < self.most and len(calls) == 1:
                self._tries += 1
                if UNSURE.search(last.content) and self._read and not self._reads(calls):
                    self._after, calls = calls, self._read
                return _calling(calls)
            if not last.error and self._reads(calls):
                self._read = calls
            if self._after:
                calls, self._after = self._after, ()
                return _calling(calls)
        self._tries = 0
        return await self.agent.step(messages)

    def _reads(self, calls: Sequence[ToolCall]) -> bool:
        tools = [self.tools.get(call.name) for call in calls]
        return bool(tools) and all(tool is not None and tool.effect == "read" for tool in tools)


def _calling(calls: Sequence[ToolCall]) -> AgentStep:
    return AgentStep(Message("assistant", tool_calls=tuple(ToolCall(c.name, c.arguments) for c in calls)))
