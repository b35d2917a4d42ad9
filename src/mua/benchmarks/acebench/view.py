"""What the agent of an ACEBench episode is shown, and how its words are read.

Every step is a conversation of its own: one system and one user message, which holds the functions and a
flat transcript. In multi_step the transcript leaves out what the agent itself wrote.

Invariant: the messages of a step are a pure function of the entry and the conversation so far.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...agents import Agent, AgentStep
from ...chat import Message, ToolCall
from ...trajectory import TokenTrace
from ...users import UserTurn
from .apis import CallResult, StepResult, calls_in, heard
from .codec import encode, has_brackets
from .data import Entry
from .words import Words

NOTHING = "no_call"
"""Stands as the call of a step that reaches the worlds and calls nothing, such as `[done]`."""


class View:
    """The agent's side of one entry."""

    def __init__(self, entry: Entry, words: Words, strict: bool):
        self.entry = entry
        self.words = words
        self.strict = strict
        prompts, turn = words.prompts, entry.mode == "multi_turn"
        system = prompts["turn_system" if turn else "step_system"]
        if turn and "Travel" in entry.classes:
            system += prompts["travel"]
        if turn and "BaseApi" in entry.classes:
            system += prompts["base"]
        self._system = Message("system", system)
        self._user = prompts["turn_user" if turn else "step_user"]

    def messages(self, conversation: Sequence[Message]) -> list[Message]:
        """The two messages of the next step."""
        text = self._user.format(functions=self.entry.shown, history=self.transcript(conversation))
        return [self._system, Message("user", text)]

    def transcript(self, conversation: Sequence[Message]) -> str:
        """The conversation as one text."""
        turn = self.entry.mode == "multi_turn"
        run = "execution:" if turn else "execution result:"
        lines = []
        for said, results in rounds(conversation):
            if said.role == "user":
                # In multi_step there is no user: after the question, what it says is the nudge.
                lines.append(f"user:{said.content}" if turn or not lines else f"{run}{said.content}")
            elif turn:
                lines.append(f"agent:{said.content}")
            if results:
                lines.append(f"{run}{told(said, results, turn, self.strict)}")
        return "".join(f"{line}\n" for line in lines)

    def read(self, text: str) -> tuple[ToolCall, ...]:
        """The calls of a text for the record; none when it goes to the user, or is answered by the nudge."""
        if self.entry.mode == "multi_turn" and not has_brackets(text):
            return ()
        calls = calls_in(text)
        if calls is None:
            return ()
        return tuple(ToolCall(c.name, _as_json(c.arguments)) for c in calls) or (ToolCall(NOTHING),)


def rounds(conversation: Sequence[Message]) -> list[tuple[Message, list[Message]]]:
    """(what was said, the answers of the tools to it), from the user's first words on."""
    out: list[tuple[Message, list[Message]]] = []
    for message in conversation:
        if message.role == "tool":
            out[-1][1].append(message)
        elif out or message.role == "user":
            out.append((message, []))
    return out


def contents(result: StepResult) -> list[tuple[str, bool]]:
    """(content, error) of the tools' answers for the record: one a call, JSON."""
    return [(_dump(r.value), r.error) for r in result.results] or [("[]", False)]


def told(said: Message, answers: Sequence[Message], turn: bool, strict: bool) -> Any:
    """What the agent was told of a step, from the answers in the record."""
    if said.tool_calls and said.tool_calls[0].name == NOTHING:
        return []
    return heard([CallResult(_load(a.content), a.error) for a in answers], turn, strict)


_load = functools.lru_cache(maxsize=1024)(json.loads)  # every step tells of all the steps before it


class AceAgent:
    """Shows an agent the conversation as the benchmark prescribes, and reads its words as calls."""

    def __init__(self, inner: Agent, view: View, over_api: View):
        """`over_api` is the view of agents behind an endpoint, which upstream shows other prompts."""
        self.inner = inner
        self.view = over_api if getattr(inner, "over_api", False) else view
        getattr(inner, "use_tools", lambda tools: None)({})  # the functions stand in the prompt

    @property
    def trace(self) -> TokenTrace | None:
        """The exact tokens; every step is a segment."""
        return self.inner.trace

    async def step(self, messages: Sequence[Message]) -> AgentStep:
        """The next step. One that a token limit cut is read as far as it goes, as upstream does."""
        step = await self.inner.step(self.view.messages(messages))
        text = _words(step)
        message = Message("assistant", text, self.view.read(text), thinking=step.message.thinking)
        return dataclasses.replace(step, message=message, truncated=step.truncated and not text)

    def close(self) -> None:
        self.inner.close()


def _words(step: AgentStep) -> str:
    """What the agent wrote, to the letter, but without its thinking; structured calls are written out."""
    if step.text is None:
        calls = step.message.tool_calls
        if not calls:
            return step.message.content
        return f"[{', '.join(encode(c.name, c.arguments) for c in calls)}]"
    text = step.text
    if "</think>" in text:
        return text.rpartition("</think>")[2].lstrip("\n")
    if text.lstrip().startswith("<think>"):
        return ""  # cut while it thought
    return text.lstrip("\n") if step.message.thinking else text


class Nudger:
    """Stands where multi_step has no user: it asks the question, then answers every text that is no call with
    the same sentence."""

    name = "none"

    def __init__(self, question: str, nudge: str):
        self.question = question
        self.nudge = nudge

    async def reply(self, view: Sequence[Message]) -> UserTurn:
        return UserTurn(self.nudge if any(m.role == "user" for m in view) else self.question)


def _as_json(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as JSON values, which records need: what has no such form is written as it is in Python."""
    text = json.dumps({k: _keyed(v) for k, v in arguments.items()}, default=repr, ensure_ascii=False)
    return json.loads(text.encode("utf-8", "replace").decode())


def _keyed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k if isinstance(k, str) else repr(k): _keyed(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_keyed(v) for v in value]
    return value


def _dump(value: Any) -> str:
    """JSON that any file can hold: lone surrogates stay escaped."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)
    return text
