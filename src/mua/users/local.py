"""A language model behind an engine, played as the user.

The conversation is mirrored for it: the person's words are the model's (`assistant`), the agent's words
are the `user`'s. The cold start trains on the same mirror.

Invariant: `user_trace` of a stored conversation lays out the tokens as `LocalUser` did while it was
played; a rejected reply leaves no mark on the tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from ..chat import Message, user_view
from ..domain import Scenario, Task
from ..engines import Engine, Sampling
from ..errors import InfrastructureError
from ..formats import ChatFormat, TokenChat, Tools
from ..seeds import derive_seed
from ..tools import Tool
from ..trajectory import TokenTrace, Usage
from . import STOP, UserTurn

OPENING = "(you speak first)"
"""Stands where the agent's words would, when the user opens the conversation."""

SILENCE = "(no answer)"
"""Stands for the agent's words when it ended its turn without any."""

ATTEMPTS = 9
"""Replies sampled, each with its own seed, before an empty one is an infrastructure failure."""


PromptStyle = Literal["full", "brief"]
"""`brief` leaves out the instructions: for a small model that learned its part in the cold start."""


def user_prompt(scenario: Scenario, style: PromptStyle = "full") -> str:
    """What the model is told of the person it plays; a benchmark's own prompt where it has one."""
    if scenario.prompt:
        return scenario.prompt
    if style == "brief":
        # In the words that introduce the fact when it is spoken ("my card is"): a small model copies what
        # followed them. After "card:" one seed in three learned to give wrong first digits.
        facts = (f"Your {k} is {v}." for k, v in scenario.facts.items())
        return " ".join([scenario.persona, scenario.goal, *facts])
    parts = ["You are a person who talks to a service agent. Say one short thing at a time."]
    if scenario.persona:
        parts.append(f"How you speak: {scenario.persona.strip()}")
    parts.append(f"What you want: {scenario.goal.strip()}")
    if scenario.facts:
        facts = "; ".join(f"{key}: {value}" for key, value in scenario.facts.items())
        parts.append(f"What you know, and tell when asked: {facts}")
    parts.append(f"Make nothing up. When it is done, or cannot be done, write {STOP}")
    return "\n".join(parts)


def mirror(
    messages: Sequence[Message],
    scenario: Scenario,
    opening: str = OPENING,
    style: PromptStyle = "full",
) -> list[Message]:
    """The user's side of a conversation as a chat in which the user is the `assistant`.

    Of a longer conversation, the mirror starts with the mirror of its beginning, so that it can be kept
    as tokens. Between two turns of the user stands something the agent said, or a marker.
    """
    out = [Message("system", user_prompt(scenario, style))]
    for m in user_view(messages):
        if m.role == "user":
            if out[-1].role in ("system", "assistant"):
                out.append(_marker(out, opening))
            out.append(Message("assistant", m.content, m.tool_calls))
        elif m.role == "tool":
            out.append(m)
        else:
            out.append(Message("user", m.content))
    return out


def _marker(mirrored: Sequence[Message], opening: str) -> Message:
    return Message("user", opening if len(mirrored) == 1 else SILENCE)


def user_trace(
    format: ChatFormat,
    messages: Sequence[Message],
    scenario: Scenario,
    tools: Tools | None = None,
    style: PromptStyle = "full",
) -> TokenTrace:
    """The trace of a stored conversation with mask 1 on the user's tokens, for the cold start."""
    return format.trace_of(mirror(messages, scenario, style=style), tools or {}, side="user")


class LocalUser:
    """Plays the user of one episode.

    `sampling` gives temperature, top_p and the most tokens of a turn. `session` is the engine's sticky
    key, by default made of task and seed: give one when the same pair plays twice at once. `tools` are
    those of the user's side, if it has any.
    """

    def __init__(
        self,
        format: ChatFormat,
        engine: Engine,
        task: Task,
        *,
        seed: int,
        sampling: Sampling = Sampling(max_tokens=256),
        session: str | None = None,
        opening: str = OPENING,
        tools: Mapping[str, Tool] | None = None,
        name: str = "local",
        style: PromptStyle = "full",
    ):
        self.name = name
        self.format = format
        self.engine = engine
        self.scenario = task.scenario
        self.seed = seed
        self.sampling = dataclasses.replace(sampling, stop_ids=format.stop_ids)
        self.session = session or f"user/{task.id}/{seed}"
        self.opening = opening
        self.style: PromptStyle = style
        self.tools = dict(tools or {})
        self._chat = TokenChat(format)
        self._turns = 0

    @property
    def trace(self) -> TokenTrace:
        """The user's own exact tokens."""
        return self._chat.trace

    async def reply(self, view: Sequence[Message]) -> UserTurn:
        """The next turn; its text keeps the stop marker. A turn cut by the token limit is taken as it is.

        Raises InfrastructureError when the model says nothing in `ATTEMPTS` attempts, when the conversation
        has outgrown its context, or when the engine fails.
        """
        messages = mirror(view, self.scenario, self.opening, self.style)
        if messages[-1].role in ("system", "assistant"):
            messages.append(_marker(messages, self.opening))
        prompt = self._chat.prompt(messages, self.tools)
        room = self.engine.context - len(prompt)
        if room <= 0:
            raise InfrastructureError(
                f"the conversation of {len(prompt)} tokens fills the user model's context of "
                f"{self.engine.context}. Use a user model with a longer context, or fewer turns."
            )
        usage = Usage()
        for attempt in range(ATTEMPTS):
            sampling = dataclasses.replace(
                self.sampling,
                max_tokens=min(self.sampling.max_tokens, room),
                seed=derive_seed(self.seed, "user", self._turns, attempt),
            )
            completion = await self.engine.generate(prompt, sampling, self.session)
            usage.user_prompt_tokens += len(prompt)
            usage.user_tokens += len(completion.token_ids)
            said = self.format.decode(completion.token_ids, calls=bool(self.tools))
            if said.content or said.tool_calls:
                break
        else:
            raise InfrastructureError(
                f"the user model answered nothing in {ATTEMPTS} attempts. Train it longer, or use another."
            )
        self._chat.add(completion.token_ids, completion.logprobs)
        self._turns += 1
        if said.tool_calls:
            # Ids must be unique in the conversation. A stop beside a call is premature: the calls run first.
            calls = tuple(
                dataclasses.replace(call, id=f"user_{self._turns}_{i}")
                for i, call in enumerate(said.tool_calls)
            )
            return UserTurn(said.content.replace(STOP, "").strip(), calls, usage=usage)
        stop = STOP in said.content
        if stop:
            self.close()
        return UserTurn(said.content, stop=stop, usage=usage)

    def close(self) -> None:
        """Releases the engine's cache of this conversation."""
        self.engine.release(self.session)
