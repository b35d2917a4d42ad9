"""Any OpenAI-compatible endpoint plays the user.

Invariant: the model is told its scenario and what a person would hear (`chat.user_view`), and nothing
else: no policy, no agent's tools, no gold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ..chat import Message
from ..domain import Scenario, Task
from ..endpoint import Endpoint, wire
from ..errors import InfrastructureError
from ..tools import Tool
from ..trajectory import Usage
from . import STOP, UserTurn

GREETING = "Hello! How can I help you today?"
"""Said to the model before its first message: many chat templates want the other side to begin."""

SILENCE = "(The agent sent an empty message.)"
"""Stands where the agent said nothing: the two sides must alternate, and the agent's side speak last."""

_RULES = f"""\
# How to play
- You are the customer, never the agent. You do not help, advise, look things up for the other side, or
  speak about being a model, a role, a scenario or these rules.
- Write only what this person would type now: one short message in plain text, in this person's manner.
  No headings, no lists, no stage directions, no quotation of this text.
- Open with what you want, in your own words, without the details.
- Bring up one thing at a time. Give a detail only when you are asked for it, or when the conversation
  cannot go on without it.
- Everything you may claim stands above. When you are asked for something that does not, say that you do
  not know it or do not have it. Never invent a name, number, date, price, order or preference.
- Stick to what you want. Correct the agent when it misunderstood you. When it proposes something, compare
  it with what you want before you agree; when it asks you to confirm, answer clearly yes or no.
- When what you want depends on something (a price, an answer, a refusal), wait until that happens; then
  do what is written above for that case, a change of mind included. Not before.
- Do not say that something is done unless the agent said so, and do not end while it still has something
  to do or to ask for you.

# How it ends
Write {STOP} alone, as your whole message, as soon as one of these is true:
- everything you want is done, and the agent said so;
- the agent made it clear that it will not or cannot do it, and nothing above tells you what to do then;
- the agent hands you over to somebody else;
- the conversation goes in circles."""


def llm_user_prompt(scenario: Scenario) -> str:
    """The system prompt for a general model that plays this person; a benchmark's own where it has one."""
    if scenario.prompt:
        return scenario.prompt
    parts = ["You play a person who writes to a service by chat. The other side is the service's agent."]
    if scenario.persona:
        parts.append(f"# Who you are\n{scenario.persona.strip()}")
    parts.append(f"# What you want\n{scenario.goal.strip()}")
    facts = "\n".join(f"- {name}: {value}" for name, value in scenario.facts.items())
    parts.append(f"# What you know\n{facts or '- nothing else'}")
    parts.append(_RULES)
    return "\n\n".join(parts)


class LlmUser:
    """The user of one episode; the endpoint is shared by all of them."""

    def __init__(
        self, endpoint: Endpoint, task: Task, seed: int = 0, tools: Mapping[str, Tool] | None = None
    ):
        """`tools` are the user's own (`domain.tools("user")`), for domains that give it some."""
        self.name = f"llm:{endpoint.settings.model}"
        self.endpoint = endpoint
        self.seed = seed
        self.tools = list((tools or {}).values())
        self._system = Message("system", llm_user_prompt(task.scenario))
        self._own_role = task.scenario.own_role
        self._greeting = task.scenario.greeting or GREETING
        self._turns = 0

    async def reply(self, view: Sequence[Message]) -> UserTurn:
        """The next turn. Raises InfrastructureError when the endpoint gives none that can be used."""
        self._turns += 1
        messages = wire([self._system, *_alternating(view, self._greeting)], speaker="user")
        for message in messages:
            if message["role"] == "assistant":
                message["role"] = self._own_role
        answer = await self.endpoint.chat(messages, self.tools, self.seed + self._turns)
        if answer.truncated and (answer.tool_calls or not answer.text):
            raise InfrastructureError(
                f"the user model '{self.endpoint.settings.model}' used up max_tokens "
                f"({self.endpoint.settings.max_tokens}) before it said anything; raise max_tokens, or "
                "turn its thinking off."
            )
        usage = Usage(
            user_prompt_tokens=answer.prompt_tokens,
            user_tokens=answer.completion_tokens,
            user_cost=answer.cost,
        )
        if answer.tool_calls:
            # Ids must be unique in the conversation; some servers leave them out.
            calls = tuple(
                dataclasses.replace(call, id=call.id or f"user_{self._turns}_{i}")
                for i, call in enumerate(answer.tool_calls)
            )
            # A stop beside a call is premature: the calls run first, then the model is asked again.
            return UserTurn(answer.text.replace(STOP, "").strip(), calls, usage=usage)
        return UserTurn(answer.text, stop=STOP in answer.text, usage=usage)


def _alternating(view: Sequence[Message], greeting: str = GREETING) -> list[Message]:
    """The view with a greeting before the user's opening and a note wherever the agent was silent."""
    out = [] if view and view[0].role == "assistant" else [Message("assistant", greeting)]
    for message in view:
        if message.role == "user" and out[-1].role == "user":
            out.append(Message("assistant", SILENCE))
        out.append(message)
    if out[-1].role == "user":
        out.append(Message("assistant", SILENCE))
    return out
