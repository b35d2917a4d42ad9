"""What stands between an agent and BFCL: its two modes, and the agent that plays the ground truth.

Invariant: a step is either calls that all run, or words. Upstream reads a step as a whole: what it cannot
read ends the turn, and a step that a token limit cut is a step like any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ...agents import Agent, AgentStep
from ...chat import Message, ToolCall
from ...trajectory import TokenTrace
from . import codec


class Native:
    """Function-calling mode: the model's own calls. One that cannot be read makes the step words."""

    def __init__(self, agent: Agent):
        self.agent = agent

    @property
    def trace(self) -> TokenTrace | None:
        return self.agent.trace

    def use_tools(self, tools: Mapping[str, Any]) -> None:
        """The tools from the next step on."""
        getattr(self.agent, "use_tools", lambda tools: None)(tools)

    async def step(self, messages: Sequence[Message]) -> AgentStep:
        """The agent's step."""
        step = await self.agent.step(messages)
        message = step.message
        if any(call.error for call in message.tool_calls):
            message = dataclasses.replace(message, content=_words(message), tool_calls=())
        return dataclasses.replace(step, message=message, truncated=step.truncated and _empty(message))

    def close(self) -> None:
        self.agent.close()


class Prompted:
    """Prompt mode: tools in the system prompt, calls as a Python list, answers in a user message.

    The agent must have been given no tools of its own.
    """

    def __init__(self, agent: Agent, v3: bool):
        self.agent = agent
        self._v3 = v3

    @property
    def trace(self) -> TokenTrace | None:
        return self.agent.trace

    async def step(self, messages: Sequence[Message]) -> AgentStep:
        """The agent's step, its calls read out of its words."""
        step = await self.agent.step(_as_text(messages))
        said = step.message
        text = step.text if step.text is not None and not said.thinking else _words(said)
        calls = tuple(codec.call_of(t) for t in codec.decode(text, "prompt", self._v3))
        message = Message("assistant", text, calls, thinking=said.thinking)
        return dataclasses.replace(step, message=message, truncated=step.truncated and _empty(message))

    def close(self) -> None:
        self.agent.close()


def _words(message: Message) -> str:
    """All that the message says, calls included, as words."""
    from ...formats import hermes_text

    return message.content + hermes_text(message.tool_calls)


def _empty(message: Message) -> bool:
    """There was no room for a single token: the conversation is longer than the model's context."""
    return not (message.content or message.tool_calls or message.thinking)


def _as_text(messages: Sequence[Message]) -> list[Message]:
    """The conversation as prompt mode has it."""
    out: list[Message] = []
    names: dict[str, str] = {}
    answers: list[dict[str, str]] = []
    for message in messages:
        if message.role == "tool":
            name = names.get(message.tool_call_id, "")
            answers.append({"role": "tool", "name": name, "content": message.content})
            continue
        if answers:
            out.append(Message("user", repr(answers)))
            answers = []
        if message.tool_calls:
            names.update((call.id, codec.text_of(call)) for call in message.tool_calls)
        out.append(dataclasses.replace(message, tool_calls=()) if message.tool_calls else message)
    if answers:
        out.append(Message("user", repr(answers)))
    return out


class GoldAgent:
    """Plays the ground truth of an entry: each turn's calls one by one, then a word. All at once where one
    by one would exceed the steps of a turn."""

    trace: TokenTrace | None = None

    def __init__(self, turns: Sequence[Sequence[ToolCall]], prompted: bool, turn_steps: int):
        self.script: list[Message] = []
        for calls in turns:
            steps = [[call] for call in calls] if len(calls) < turn_steps else [list(calls)]
            for step in steps:
                said = f"[{', '.join(map(codec.text_of, step))}]" if prompted else ""
                self.script.append(Message("assistant", said, () if prompted else tuple(step)))
            self.script.append(Message("assistant", "Done."))

    async def step(self, messages: Sequence[Message]) -> AgentStep:
        """The next line of the script."""
        return AgentStep(self.script.pop(0))

    def close(self) -> None:
        """Nothing is held."""
