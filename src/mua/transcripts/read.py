"""Stored conversations in OpenAI's chat format: each line of a file → messages, or what is wrong with it.

A line is `{"messages": [...]}` or the list itself. Taken as it comes: tool calls with arguments as JSON text
or as an object, several calls in a message, calls without an answer, the older `function_call` with answers
of role `function`, role `developer`, contents in parts, null contents, refusals, names.

Invariant: every line of a file comes out once, as a transcript or as a reason that names the field; nothing
is guessed at silently (`notes` counts what was mended).
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..chat import Message, Side, ToolCall, parse_arguments, strict_json, whole_characters
from ..errors import MuaError, unreadable

LONGEST = 32 * 2**20
"""Bytes of a line that is still read; a conversation is some thousands."""
_TEXT_PARTS = ("text", "input_text", "output_text")
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class Wrong(ValueError):
    """What is wrong with a line: `field` says where in it, "" for all of it."""

    def __init__(self, field: str, reason: str):
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field, self.reason = field, reason


@dataclass(frozen=True)
class Transcript:
    """A conversation as it was stored."""

    messages: list[Message]
    names: tuple[str, ...] = ()
    """What stood in `name` of messages of the user: who it is."""
    tools: frozenset[str] = frozenset()
    """The tools that the agent was offered, where the line says it."""
    notes: Counter[str] = field(default_factory=Counter)
    """What was mended or left out, and how often."""


def size(path: Path) -> int:
    """Bytes of a file, as it stands on the disk. Raises MuaError when there is none."""
    try:
        return path.stat().st_size
    except OSError as exc:
        raise MuaError(f"{path} cannot be read: {unreadable(exc)}") from None


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of the lines of a `.jsonl` or `.jsonl.gz` file that are not blank, without a byte order
    mark at the beginning and without line ends. Raises MuaError when the file cannot be read."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if number == 1:
                    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                        raise MuaError(f"{path} is UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8.")
                    raw = raw.removeprefix(b"\xef\xbb\xbf")  # noqa: PLW2901
                if raw.strip():
                    yield number, raw.rstrip(b"\r\n")
    except (OSError, EOFError, zlib.error) as exc:
        raise MuaError(f"{path} cannot be read: {unreadable(exc)}") from None


def read(raw: bytes) -> Transcript:
    """The conversation of one line. Raises Wrong."""
    if len(raw) > LONGEST:
        raise Wrong("", f"the line has {len(raw):,} bytes; at most {LONGEST:,} are read")
    try:
        data = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise Wrong("", f"byte {exc.start} is not UTF-8") from None
    except RecursionError:
        raise Wrong("", "not valid JSON: nested too deeply") from None
    except ValueError as exc:
        raise Wrong("", f"not valid JSON: {exc}") from None
    return conversation(data)


def conversation(data: Any) -> Transcript:
    """The conversation in a JSON value. Raises Wrong."""
    if isinstance(data, list):
        if any(isinstance(item, dict) and "messages" in item for item in data):
            raise Wrong("", "a list of conversations; write each on a line of its own")
        data = {"messages": data}
    if not isinstance(data, dict):
        raise Wrong("", "an object with messages, or a list of messages, is expected")
    if "messages" not in data:
        raise Wrong("messages", "is missing")
    stored = data["messages"]
    if not isinstance(stored, list) or not stored:
        raise Wrong("messages", "must be a list of one message or more")
    reader = _Reader()
    for number, message in enumerate(stored):
        reader.add(message, f"messages[{number}]")
    if not any(m.role == "user" and m.content.strip() for m in reader.messages):
        raise Wrong("messages", "no message of the user has words")
    if unanswered := len(reader.open):
        reader.notes["calls without an answer"] += unanswered
    return Transcript(reader.messages, tuple(reader.names), _offered(data), reader.notes)


def _offered(data: Mapping[str, Any]) -> frozenset[str]:
    """Names of the tools in `tools` or `functions`, in whatever of OpenAI's forms."""
    found = set()
    for key in ("tools", "functions"):
        offered = data.get(key)
        for tool in offered if isinstance(offered, list) else ():
            inner = tool.get("function", tool) if isinstance(tool, dict) else None
            if isinstance(inner, dict) and isinstance(inner.get("name"), str):
                found.add(inner["name"])
    return frozenset(found)


class _Reader:
    """The messages of one conversation so far."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.names: list[str] = []
        self.notes: Counter[str] = Counter()
        self.open: list[tuple[str, ToolCall, Side]] = []
        """(its stored id, the call, who made it) of the calls that have no answer yet."""
        self._calls = 0

    def add(self, stored: Any, at: str) -> None:
        if not isinstance(stored, dict):
            raise Wrong(at, "a message must be an object")
        role = stored.get("role")
        if role not in _ROLES:
            raise Wrong(f"{at}.role", f"{role!r:.40} is none of {', '.join(_ROLES)}")
        if role in ("tool", "function"):
            return self._answer(stored, at)
        if role == "developer":
            role = "system"
        name = stored.get("name")
        if name is not None and not isinstance(name, str):
            raise Wrong(f"{at}.name", "must be text")
        if name and role == "user":
            self.names.append(whole_characters(name))
        text = self._text(stored.get("content"), f"{at}.content")
        if not text and role == "assistant":
            text = self._text(stored.get("refusal"), f"{at}.refusal")
        calls = self._made(stored, role, at)
        thinking = stored.get("reasoning_content")
        thinking = whole_characters(thinking) if isinstance(thinking, str) else ""
        self.messages.append(Message(role, text, tuple(calls), thinking=thinking))

    def _text(self, content: Any, at: str) -> str:
        if content is None:
            return ""
        if isinstance(content, str):
            return whole_characters(content)
        if not isinstance(content, list):
            raise Wrong(at, f"must be text, a list of parts or null, not {type(content).__name__}")
        texts = []
        for number, part in enumerate(content):
            if isinstance(part, str):
                texts.append(part)
                continue
            kind = part.get("type") if isinstance(part, dict) else None
            if not isinstance(part, dict) or not isinstance(kind, str):
                raise Wrong(f"{at}[{number}]", "a part must be an object with a type")
            if kind in _TEXT_PARTS or kind == "refusal":
                words = part.get("refusal" if kind == "refusal" else "text")
                if not isinstance(words, str):
                    raise Wrong(f"{at}[{number}].text", "must be text")
                texts.append(words)
            else:
                self.notes[f"parts of type {kind[:40]} left out"] += 1
                texts.append(f"[{kind[:40]}]")
        return whole_characters("\n".join(texts))

    def _made(self, stored: Mapping[str, Any], role: str, at: str) -> list[ToolCall]:
        """The calls of a message, with ids of our own: some programs leave them out, or begin anew."""
        made = stored.get("tool_calls")
        if made is not None and not isinstance(made, list):
            raise Wrong(f"{at}.tool_calls", "must be a list")
        found: list[tuple[str, Any]] = [(f"{at}.tool_calls[{n}]", call) for n, call in enumerate(made or ())]
        if stored.get("function_call") is not None:
            found.append((f"{at}.function_call", {"function": stored["function_call"]}))
        if found and role == "system":
            raise Wrong(found[0][0], f"role {stored['role']} calls no tools")
        side: Side = "user" if role == "user" else "assistant"
        calls = []
        for where, call in found:
            self._calls += 1
            read = _call(call, where, f"call_{self._calls}")
            own = call.get("id")
            self.open.append((own if isinstance(own, str) else "", read, side))
            calls.append(read)
        return calls

    def _answer(self, stored: Mapping[str, Any], at: str) -> None:
        own = stored.get("tool_call_id")
        if own is not None and not isinstance(own, str):
            raise Wrong(f"{at}.tool_call_id", "must be text")
        name = stored.get("name")
        if own:
            fitting = [one for one in self.open if one[0] == own]
            if not fitting:
                raise Wrong(
                    f"{at}.tool_call_id", f"'{own[:60]}' is the id of no call that waits for an answer"
                )
        else:
            fitting = [one for one in self.open if not name or one[1].name == name]
            if not fitting:
                raise Wrong(at, "answers no call before it")
            if stored["role"] == "tool":
                self.notes["answers without an id, given to the first call that waits"] += 1
        one = fitting[0]
        self.open.remove(one)
        content = stored.get("content")
        text = _json(content) if isinstance(content, dict) else self._text(content, f"{at}.content")
        error = stored.get("error") is True or _failed(text)
        call, side = one[1], one[2]
        self.messages.append(
            Message("tool", text, tool_call_id=call.id, requestor=side, error=error)  # type: ignore[arg-type]
        )


def _call(stored: Any, at: str, call_id: str) -> ToolCall:
    if not isinstance(stored, dict):
        raise Wrong(at, "a call must be an object")
    if isinstance(custom := stored.get("custom"), dict):  # a tool that takes text
        if not isinstance(custom.get("name"), str) or not isinstance(custom.get("input"), str):
            raise Wrong(f"{at}.custom", "must have a name and an input, both text")
        return ToolCall(
            whole_characters(custom["name"]), {"input": whole_characters(custom["input"])}, call_id
        )
    function = stored.get("function", stored)
    if not isinstance(function, dict):
        raise Wrong(f"{at}.function", "must be an object")
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        raise Wrong(f"{at}.function.name", "must be the name of a tool")
    if arguments is not None and not isinstance(arguments, str | dict):
        raise Wrong(f"{at}.function.arguments", "must be JSON text or an object")
    text = whole_characters(arguments) if isinstance(arguments, str) else _json(arguments or {})
    # Text that is no JSON is what the agent wrote: a call that failed, and no fault of the file.
    return parse_arguments(whole_characters(name), text, call_id)


def _json(value: Any) -> str:
    return whole_characters(json.dumps(value, ensure_ascii=False))


def _failed(text: str) -> bool:
    """How tools say that a call failed: a text that begins with "error", or an object with an `error`."""
    start = text.lstrip()[:20].casefold()
    if start.startswith(("error", '"error', "exception")):
        return True
    if not start.startswith("{") or '"error"' not in text:
        return False
    try:
        found = strict_json(text)
    except ValueError:
        return False
    return isinstance(found, dict) and bool(found.get("error"))
