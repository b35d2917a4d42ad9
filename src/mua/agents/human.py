"""A person at the terminal plays the agent for a simulated user.

Invariant: the person sees what an agent sees (policy, tools, their answers, the user's words), and acts
only by words and valid calls: a mistyped call is asked for again, it does not count as an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..chat import Message
from ..tools import Tool
from ..trajectory import TokenTrace
from ..users.human import Ask, HumanQuit, Show, card, console_show, parse_call, plain, tool_list, typed
from . import AgentStep

_HELP = """Type what you say to the customer, or call a tool:
  TOOL key=value other="two words"    or    TOOL {"key": "value"}
/tools   the tools        /policy   the rules you work under
/say TEXT   say a text that begins like a tool call
/quit    leave without a score (end of input does the same)"""

_CALL = re.compile(r"[A-Za-z]\w*\s+(?:\{|[A-Za-z_]\w*=)|[A-Za-z]+(?:_[A-Za-z]+)+(?:\s|$)")
"""A line that looks like a call: words that a customer should not hear because of a mistyped name."""


class HumanAgent:
    """The agent of one episode. Typing blocks the event loop: nothing else runs in such a session."""

    trace: TokenTrace | None = None

    def __init__(self, tools: Mapping[str, Tool], *, ask: Ask = input, show: Show | None = None):
        self.tools = dict(tools)
        self._ask = ask
        self._show = show or console_show()
        self._seen = 0

    async def step(self, messages: Sequence[Message]) -> AgentStep:
        """What the person types: words or one call. Raises HumanQuit when they leave."""
        if not self._seen:
            self._show(self._policy(messages))
            self._show(tool_list(self.tools))
            self._show(plain(_HELP))
        for message in messages[self._seen :]:
            if message.role == "user":
                self._show(card("customer", message.content))
            elif message.role == "tool":
                self._show(plain(f"→ {message.content}"))
        self._seen = len(messages)
        while True:
            line = typed(self._ask, "agent> ")
            if line is None:
                raise HumanQuit
            match line.split(maxsplit=1):
                case []:
                    continue
                case ["/quit"]:
                    raise HumanQuit
                case ["/tools"]:
                    self._show(tool_list(self.tools))
                case ["/policy"]:
                    self._show(self._policy(messages))
                case ["/say", text]:
                    return AgentStep(Message("assistant", text))
                case [word, *_] if word.startswith("/"):
                    self._show(plain(_HELP))
                case [word, *_] if word in self.tools or _CALL.match(line):
                    try:
                        # The episode numbers the call.
                        return AgentStep(Message("assistant", tool_calls=(parse_call(line, self.tools),)))
                    except ValueError as exc:
                        self._show(plain(f"{exc}\n(/say TEXT says it to the customer instead)"))
                case _:
                    return AgentStep(Message("assistant", line))

    @staticmethod
    def _policy(messages: Sequence[Message]) -> Any:
        return card("policy", messages[0].content if messages else "")

    def close(self) -> None:
        """Nothing is held."""
