"""A person at the terminal plays the user; and what both terminal players share.

Invariants: the person sees the scenario and what a user would hear, nothing else. Text from models is
shown as text: neither rich markup nor terminal escapes in it take effect.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import re
import signal
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ..chat import Message, ToolCall, strict_json
from ..domain import Task
from ..errors import InfrastructureError
from ..tools import Tool
from . import STOP, UserTurn

Ask = Callable[[str], str]
"""Prompt → the line that the person typed, as `input` does. Raises EOFError at the end of input."""
Show = Callable[[Any], None]
"""Prints a rich renderable."""


LEFT = "you left the conversation"


class HumanQuit(InfrastructureError):
    """The person left the conversation. As when any other player fails, it is over without a score, and what
    was said until then is kept."""

    def __init__(self) -> None:
        super().__init__(LEFT)


def leavable(answer: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    """`answer` of the other side; Ctrl-C while the person waits for it leaves the conversation, where it
    would otherwise end the program and lose what was said."""

    async def answered(view: Any) -> Any:
        try:
            return await answer(view)
        except asyncio.CancelledError:
            raise HumanQuit from None

    return answered


def console_show() -> Show:
    """Prints on the terminal."""
    from rich.console import Console

    return Console().print


def plain(text: str) -> Any:
    """Text from elsewhere as a rich renderable, without markup, and without control characters."""
    from rich.text import Text

    return Text("".join(c for c in text if c in "\n\t" or ((c.isprintable() or c.isspace()) and c > "\x1f")))


def typed(ask: Ask, prompt: str) -> str | None:
    """The line that the person types, None at the end of input. Raises HumanQuit on Ctrl-C.

    An event loop takes Ctrl-C for itself and would let `input` wait on: the handler is ours meanwhile.
    """
    handler = None
    if threading.current_thread() is threading.main_thread():
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        # A terminal can pass bytes that are no UTF-8; no file could hold what they become.
        return ask(prompt).strip().encode("utf-8", "replace").decode("utf-8")
    except EOFError:
        return None
    except KeyboardInterrupt:
        raise HumanQuit from None
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)


def card(title: str, text: str) -> Any:
    """A box with a title."""
    from rich.panel import Panel

    return Panel(plain(text), title=plain(title), title_align="left")


def parse_call(line: str, tools: Mapping[str, Tool], call_id: str = "") -> ToolCall:
    """The call in `tool key=value key2="quoted value"` or `tool {"key": "value"}`.

    Values take the type that the tool's schema asks for; lists and objects are written as JSON without
    spaces, or the whole call as JSON. Raises ValueError in words when the line is no valid call.
    """
    name, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    tool = tools.get(name)
    if tool is None:
        near = difflib.get_close_matches(name, tools, n=1)
        hint = f", did you mean '{near[0]}'?" if near else ";"
        raise ValueError(f"there is no tool '{name}'{hint} /tools lists them")
    if rest.startswith("{"):
        try:
            arguments = strict_json(rest)
        except ValueError as exc:
            raise ValueError(f"the arguments are not valid JSON: {exc}. Usage: {tool.usage()}") from None
    else:
        arguments = {}
        while rest:
            found = _PAIR.match(rest)
            if not found:
                raise ValueError(f"cannot read '{rest}' as key=value. Usage: {tool.usage()}")
            key, value = found.groups()
            if key in arguments:
                raise ValueError(f"'{key}' is given twice")
            arguments[key] = _value(value, tool.parameters.get("properties", {}).get(key, {}))
            rest = rest[found.end() :]
    problems = tool.problems(arguments)
    if problems:
        raise ValueError(f"{'; '.join(problems)}. Usage: {tool.usage()}")
    return ToolCall(name, arguments, call_id)


_PAIR = re.compile(r"""([A-Za-z_]\w*)=("(?:[^"\\]|\\.)*"|'[^']*'|[^\s"']\S*|)(?:\s+|$)""")


def _value(text: str, spec: Mapping[str, Any]) -> Any:
    if text[:1] == "'":
        return text[1:-1]
    if text[:1] == '"':
        return json.loads(text, strict=False)
    options = [spec, *spec.get("anyOf", ())]
    if any(o.get("type") == "string" or isinstance((o.get("enum") or [0])[0], str) for o in options):
        nullable = any(o.get("type") == "null" for o in options)
        return None if nullable and text == "null" else text
    try:
        return strict_json(text)
    except ValueError:
        return text  # the schema says what is wrong with it


def tool_list(tools: Mapping[str, Tool]) -> Any:
    """The tools, one line of usage and one of description each."""
    return plain(
        "\n".join(f"{t.usage()}\n    {t.description.splitlines()[0]}" for t in tools.values()) or "no tools"
    )


_HELP = """Type what you say to the agent, as the person on the card.
/stop    you are done: the conversation ends and is scored (end of input does the same)
/quit    leave without a score
/card    show the card again"""
_TOOL_HELP = """
/tools   what you can do on your side
/do TOOL key=value    do it"""


class HumanUser:
    """The user of one episode. Typing blocks the event loop: nothing else runs in such a session."""

    name = "human"

    def __init__(
        self,
        task: Task,
        *,
        ask: Ask = input,
        show: Show | None = None,
        tools: Mapping[str, Tool] | None = None,
    ):
        self.task = task
        self.tools = dict(tools or {})
        self._ask = ask
        self._show = show or console_show()
        self._seen = 0
        self._calls = 0
        self._greeted = False

    async def reply(self, view: Sequence[Message]) -> UserTurn:
        """What the person types. Raises HumanQuit when they leave."""
        if not self._greeted:
            self._greeted = True
            self._show(self._card())
            self._show(self._help())
        for message in view[self._seen :]:
            if message.role == "assistant":
                self._show(card("agent", message.content))
            elif message.role == "tool":
                self._show(plain(f"→ {message.content}"))
        self._seen = len(view)
        while True:
            line = typed(self._ask, "you> ")
            if line is None:
                return UserTurn(STOP, stop=True)
            match line.split(maxsplit=1):
                case []:
                    continue
                case ["/stop"]:
                    return UserTurn(STOP, stop=True)
                case ["/quit"]:
                    raise HumanQuit
                case ["/card"]:
                    self._show(self._card())
                case ["/tools"] if self.tools:
                    self._show(tool_list(self.tools))
                case ["/do", call] if self.tools:
                    try:
                        self._calls += 1
                        return UserTurn("", (parse_call(call, self.tools, f"user_{self._calls}"),))
                    except ValueError as exc:
                        self._show(plain(str(exc)))
                case [word, *_] if word.startswith("/"):
                    self._show(self._help())
                case _:
                    return UserTurn(line, stop=STOP in line)

    def _card(self) -> Any:
        scenario = self.task.scenario
        parts = [scenario.goal]
        if scenario.facts:
            parts.append("You know:\n" + "\n".join(f"  {k}: {v}" for k, v in scenario.facts.items()))
        if scenario.persona:
            parts.append(f"How you speak: {scenario.persona}")
        return card("you are the customer", "\n\n".join(parts))

    def _help(self) -> Any:
        return plain(_HELP + (_TOOL_HELP if self.tools else ""))
