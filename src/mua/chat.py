"""Chat messages: one immutable form for every model family, endpoint and file.

Invariant: `Message.from_dict(m.to_dict()) == m`, and `to_dict()` is the OpenAI chat format plus keys
that such endpoints ignore, so stored conversations can be sent or graded as they are.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import MuaError

Role = Literal["system", "user", "assistant", "tool"]
Side = Literal["assistant", "user"]
"""Who may call tools: the agent speaks as `assistant`, the simulated person as `user`."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call as its caller wrote it."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Parsed arguments; empty when `error` is set."""
    id: str = ""
    """Ties the tool's answer to the call; unique within a conversation."""
    error: str = ""
    """Why the text could not be read as a call. The world answers such a call with this text."""
    raw: str = ""
    """The caller's own text, kept when it could not be parsed."""

    def to_dict(self) -> dict[str, Any]:
        arguments = self.raw if self.error else json.dumps(self.arguments, ensure_ascii=False)
        out: dict[str, Any] = {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": arguments},
        }
        if self.error:
            out["error"] = self.error
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ToolCall:
        """Reads OpenAI's form, and the flat `{name, arguments}` of stored benchmark conversations."""
        function = data.get("function", data)
        raw = function.get("arguments")
        call_id = str(data.get("id") or "")
        name = str(function.get("name") or "")
        if data.get("error"):
            return cls(name, {}, call_id, str(data["error"]), raw if isinstance(raw, str) else "")
        return parse_arguments(name, raw, call_id)


def parse_arguments(name: str, raw: Any, call_id: str = "") -> ToolCall:
    """A call from a name and arguments that may be a mapping, JSON text or junk."""
    text = raw if isinstance(raw, str) else ""
    if isinstance(raw, str):
        try:
            raw = strict_json(raw) if raw.strip() else {}
        except ValueError as exc:
            return ToolCall(name, {}, call_id, f"the arguments are not valid JSON: {exc}", text)
    if raw is None:
        raw = {}
    if not isinstance(raw, Mapping):
        return ToolCall(name, {}, call_id, "the arguments must be a JSON object", text)
    return ToolCall(name, raw, call_id)


def whole_characters(text: str) -> str:
    """The text with every half of a character (a lone surrogate) replaced: no file could hold it."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


MAX_DEPTH = 64
"""Deeper JSON is refused where it enters: it would exhaust the stack of whatever walks it later (a tool,
the database), and so let an agent make an episode fail as if by infrastructure."""


def strict_json(text: str) -> Any:
    """`json.loads` that refuses NaN, Infinity, duplicate keys, lone surrogates and absurd depth.

    Raises ValueError for all of them: each is a way for a model's text to mean two things.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in items:
            if key in out:
                raise ValueError(f"duplicate key {key!r}")
            out[key] = value
        return out

    def constant(text: str) -> Any:
        raise ValueError(f"{text} is not a JSON number")

    def floating(text: str) -> float:
        value = float(text)
        if value in (float("inf"), float("-inf")):
            raise ValueError(f"number out of range: {text[:20]}")
        return value

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=constant, parse_float=floating)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    try:
        # Escapes such as "\ud800" parse, but no later step could encode them.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("text holds a lone surrogate") from None
    return value


def _depth(value: Any) -> int:
    """Levels of nesting of a JSON value, found without recursion."""
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, dict | list)]:
        depth += 1
        level = [x for v in level for x in (v.values() if isinstance(v, dict) else v)]
    return depth


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation, seen from the agent: the agent is `assistant`."""

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls made with this message; by the agent, or by a user that has tools of its own."""
    tool_call_id: str = ""
    """On a tool's answer: the call it answers."""
    requestor: Side = "assistant"
    """On a tool's answer: which side called. Each side sees only its own tool traffic."""
    thinking: str = ""
    """The agent's hidden reasoning; never shown to the user."""
    error: bool = False
    """On a tool's answer: the call failed and changed nothing (after a `fault`: so it was told)."""
    fault: str = ""
    """On a tool's answer: how the environment misbehaved, kinds joined by `+` (`faults`)."""
    unrun: bool = False
    """On a tool's answer: a fault kept the call from running."""

    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            out["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        if self.role == "tool":
            out["tool_call_id"] = self.tool_call_id
            if self.requestor != "assistant":
                out["requestor"] = self.requestor
            if self.error:
                out["error"] = True
            if self.fault:
                out["fault"] = self.fault
            if self.unrun:
                out["unrun"] = True
        if self.thinking:
            out["reasoning_content"] = self.thinking
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Message:
        role = data.get("role")
        if role not in ("system", "user", "assistant", "tool"):
            raise MuaError(f"a message has role {role!r}; it must be system, user, assistant or tool")
        return cls(
            role=role,
            content=_text(data.get("content")),
            tool_calls=tuple(ToolCall.from_dict(c) for c in data.get("tool_calls") or ()),
            tool_call_id=str(data.get("tool_call_id") or data.get("id") or "") if role == "tool" else "",
            requestor="user" if role == "tool" and data.get("requestor") == "user" else "assistant",
            thinking=str(data.get("reasoning_content") or ""),
            error=bool(data.get("error")) if role == "tool" else False,
            fault=str(data.get("fault") or "") if role == "tool" else "",
            unrun=bool(data.get("unrun")) if role == "tool" else False,
        )


def _text(content: Any) -> str:
    """Message content as text: endpoints also send null and lists of parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(p.get("text", "") for p in content if isinstance(p, Mapping))
    return str(content)


def carried_out(messages: Iterable[Message]) -> list[Message]:
    """The conversation as far as the environment carried it out: without the calls that a fault kept from
    running, and their answers. What replays and grades a conversation reads this."""
    messages = list(messages)
    unrun = {m.tool_call_id for m in messages if m.unrun}
    if not unrun:
        return messages
    out = []
    for m in messages:
        kept = tuple(call for call in m.tool_calls if call.id not in unrun)
        if m.unrun or (m.tool_calls and not kept and not m.content.strip()):
            continue
        out.append(m if len(kept) == len(m.tool_calls) else dataclasses.replace(m, tool_calls=kept))
    return out


def user_view(messages: Iterable[Message]) -> list[Message]:
    """What the user may see: both sides' words and its own tool traffic; never the agent's calls,
    their answers, its thinking or the system prompt."""
    seen: list[Message] = []
    for m in messages:
        if m.role == "user" or (m.role == "tool" and m.requestor == "user"):
            seen.append(m)
        elif m.role == "assistant" and m.content.strip() and not m.tool_calls:
            seen.append(Message("assistant", m.content))
    return seen


def agent_view(messages: Iterable[Message], asides: bool = True) -> list[Message]:
    """What the agent may see: everything but the user's own tool traffic. `asides` are words that the user
    wrote beside its calls."""
    seen: list[Message] = []
    for m in messages:
        if m.role == "tool" and m.requestor == "user":
            continue
        if m.role != "user" or not m.tool_calls:
            seen.append(m)
        elif asides and m.content.strip():
            seen.append(Message("user", m.content))
    return seen
