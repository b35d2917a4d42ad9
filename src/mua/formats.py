"""How messages become token ids, and sampled ids become messages.

A `ChatFormat` speaks one model family, found from the tokenizer's own chat template: Qwen/Hermes calls,
Llama-3 calls, a template that knows no tools, or no template at all (the built-in format). A `TokenChat`
keeps the exact tokens of one speaker's side of a conversation.

Invariants:
- Sampled ids are never encoded again. What follows them is rendered around a placeholder, so it does not
  depend on what they decode to.
- `decode` reads anything: whatever is not a call becomes text or a `ToolCall` with an `error` that says
  what to write instead.
- Text inside a message never becomes a mark of the format: a tool's answer cannot end the turn.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from .chat import Message, Side, ToolCall, agent_view, parse_arguments, strict_json, whole_characters
from .engines import Completion
from .errors import MuaError
from .tokenizer import ASSISTANT, END, MARKS, SYSTEM, TOOL, USER
from .tools import Tool
from .trajectory import TokenTrace
from .users import STOP

ToolStyle = Literal["schema", "brief", "none"]
"""How tools are described where the template does not do it: full JSON Schema, one usage line each, or
names only (for a model that learned its tools in the cold start)."""

Tools = Mapping[str, Tool]

MAX_CALLS = 32
"""Calls read from one step; the rest is answered with an error. Bounds the time spent on hostile text."""

_STOP_NAMES = ("<|eom_id|>", "<|endoftext|>", "<|end_of_text|>")
"""Tokens by which some models end a step besides their end-of-turn token."""


class ChatFormat:
    """One model family's way of writing a conversation; made by `ChatFormat.of`. Holds no conversation."""

    stop_ids: tuple[int, ...]
    """Ids that end a step; the first is the template's own end of turn."""
    rewrites_on: frozenset[str]
    """Roles of new messages after which the template drops earlier thinking from its rendering."""

    def __init__(
        self,
        tokenizer: Any,
        calls: Literal["hermes", "llama"],
        *,
        native_tools: bool,
        template: str | None,
        tool_style: ToolStyle,
        thinking: bool,
    ):
        self.tokenizer = tokenizer
        self.calls = calls
        self.native_tools = native_tools
        self.template = template
        self.tool_style: ToolStyle = tool_style
        self.thinking = thinking
        marks = sorted({t for t in tokenizer.all_special_tokens if t != STOP}, key=len, reverse=True)
        self._marks = re.compile("|".join(map(re.escape, marks)) or r"(?!)")
        self._ask = [Message("user", "-")]
        """The shortest conversation that a template accepts; deltas and targets are rendered after it."""
        self._opening = self._render(self._ask, {}, generation=True)
        self._header, tail = self._around([])
        self._opens_thinking = self._opening.rstrip().endswith("<think>")
        self._closes_thinking = self._opening.rstrip().endswith("</think>")
        self.stop_ids = self._find_stops(tail)
        self._thinking_field, self.rewrites_on = self._probe_thinking()

    @classmethod
    def of(cls, tokenizer: Any, *, tool_style: ToolStyle = "schema", thinking: bool = False) -> ChatFormat:
        """The format of a tokenizer, from its chat template.

        `thinking` switches the thinking mode of templates that have one. Raises MuaError when the
        template cannot be used: it has no end of turn, or writes calls in a way that is not read here.
        """
        template = tokenizer.chat_template
        style: dict[str, Any] = {"tool_style": tool_style, "thinking": thinking}
        if isinstance(template, Mapping):
            template = template.get("tool_use") or template.get("default")
        if not template:
            unknown = [m for m in MARKS if m not in tokenizer.get_vocab()]
            if unknown:
                raise MuaError(
                    f"the tokenizer has no chat template and lacks {', '.join(unknown)}: it is not a chat "
                    "model's. Use an instruct model, or a tokenizer from mua.tokenizer.train_tokenizer."
                )
            return cls(tokenizer, "hermes", native_tools=False, template=None, **style)
        if "tools" in template and "<tool_call>" in template:
            made = cls(tokenizer, "hermes", native_tools=True, template=template, **style)
        elif "ipython" in template or "python_tag" in template:
            made = cls(tokenizer, "llama", native_tools=True, template=template, **style)
        else:
            made = cls(tokenizer, "hermes", native_tools=False, template=template, **style)
        probe = ToolCall("probe", {"a": "b", "n": [1, {}]})
        target = made.encode_assistant(Message("assistant", tool_calls=(probe,)))
        if made.decode(target).tool_calls != (probe,):
            raise MuaError(
                "the tokenizer's chat template writes tool calls in a form that mua does not read; it reads "
                "Hermes (<tool_call>{json}</tool_call>) and Llama-3 JSON. Set tokenizer.chat_template to one "
                "of these, or use another model."
            )
        return made

    @property
    def rewrites_history(self) -> bool:
        """The template drops earlier thinking after new messages: a trace then needs a new segment."""
        return bool(self.rewrites_on)

    # --- messages to ids ------------------------------------------------------------------------

    def initial_ids(self, messages: Sequence[Message], tools: Tools) -> list[int]:
        """The whole conversation rendered as a prompt, up to where the assistant speaks."""
        return self._encode(self._render(messages, tools, generation=True))

    def delta_ids(self, messages: Sequence[Message], new_from: int, stopped: bool) -> list[int]:
        """What the template puts between the ids sampled last and the next ones.

        `messages[new_from:]` are the messages since; the sampled message itself is not looked at.
        `stopped` says that the sampled ids ended with a stop id, so that the end of turn is not repeated.
        """
        ids = self._encode(self._around(messages[new_from:])[1])
        if stopped and ids and ids[0] in self.stop_ids:
            return ids[1:]
        return ids

    def encode_assistant(self, message: Message) -> list[int]:
        """An assistant message as the ids that a model should sample for it, its stop id included."""
        thinking = message.thinking.strip()
        if self._closes_thinking:  # thinking is switched off: the prompt ends after an empty thought
            thinking = ""
        field = thinking if self._thinking_field else ""
        message = dataclasses.replace(message, thinking=field)
        text = self._render([*self._ask, message], {}, generation=False)
        whole = text.startswith(self._opening)
        if whole:
            text = text[len(self._opening) :]
        elif self._opening.startswith(self._header) and text.startswith(self._header):
            text = text[len(self._header) :]
        else:
            raise MuaError(
                "the tokenizer's chat template opens an assistant message in the history in another way "
                "than in its generation prompt, so no training target can be made. Mend the template."
            )
        if self._opens_thinking and not whole:  # the prompt opens a thought; the target must close it
            text = f"{thinking}\n</think>\n\n{text}"
        elif thinking and not field:
            text = f"<think>\n{thinking}\n</think>\n\n{text}"
        ids = self._encode(text)
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return [*ids[:end], self.stop_ids[0]]

    def trace_of(
        self,
        messages: Sequence[Message],
        tools: Tools | Callable[[int], Tools],
        side: Side = "assistant",
    ) -> TokenTrace:
        """The trace of a stored conversation: mask 1 on the assistant's tokens, log-probabilities 0.

        Laid out exactly as a live episode lays it out. For side `assistant`, `messages` is the episode's
        own list; for side `user`, the mirrored chat of `users.local.mirror`. Where tools change, `tools`
        says which they are by turn, from 0.
        """
        if side == "assistant":
            messages = agent_view(messages)
        chat = TokenChat(self)
        for i, message in enumerate(messages):
            if message.role == "assistant":
                turn = max(0, sum(m.role == "user" for m in messages[:i]) - 1)
                chat.prompt(messages[:i], tools(turn) if callable(tools) else tools)
                ids = self.encode_assistant(message)
                chat.add(ids, [0.0] * len(ids))
        return chat.trace

    # --- ids to messages ------------------------------------------------------------------------

    def decode(self, ids: Sequence[int], calls: bool = True) -> Message:
        """The assistant message that sampled ids stand for; never raises.

        With `calls` false, a call is left in the text (for speakers that have no tools).
        """
        return self.parse(self.text(ids), calls)

    def text(self, ids: Sequence[int]) -> str:
        """Sampled ids as text, to the letter, without the end of turn."""
        keep = len(ids)
        while keep and ids[keep - 1] in self.stop_ids:
            keep -= 1
        text = self.tokenizer.decode(
            list(ids[:keep]), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return ("<think>" if self._opens_thinking else "") + text

    def parse(self, text: str, calls: bool = True) -> Message:
        """`decode` for text that is at hand already."""
        if self.calls == "hermes":
            return hermes_message(text, calls)
        content, thinking, found = _scan(whole_characters(text), calls=False)
        if calls:
            content, found = _llama_calls(content)
        return Message("assistant", content.strip(), tuple(found), thinking=thinking.strip())

    # --- rendering ------------------------------------------------------------------------------

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _around(self, after: Sequence[Message]) -> tuple[str, str]:
        """What the template writes before and after an assistant's words that `after` follows; the
        second part ends with the generation prompt when there is something in `after`."""
        place = "mua-words-mua"  # partition takes the first, so `after` may hold the same text
        history = [*self._ask, Message("assistant", place), *after]
        head, found, tail = self._render(history, {}, generation=bool(after)).partition(place)
        if not found:
            raise MuaError(
                "the tokenizer's chat template leaves out what the assistant said. Mend the template."
            )
        return head, tail

    def _render(self, messages: Sequence[Message], tools: Tools, generation: bool) -> str:
        messages = [self._clean(m) for m in messages]
        if self.template is None:
            return self._builtin(messages, tools, generation)
        listed = None
        if self.native_tools:
            listed = [tool.schema() for tool in tools.values()] or None
        else:
            messages = _with_tools(messages, describe_tools(tools, self.tool_style), "\n\n")
        try:
            return self.tokenizer.apply_chat_template(
                self._plain(messages),
                tools=listed,
                chat_template=self.template,
                add_generation_prompt=generation,
                tokenize=False,
                enable_thinking=self.thinking,
                # Llama-3.2's template would else print today's date into every prompt.
                date_string="26 Jul 2024",
            )
        except Exception as exc:  # jinja's errors and whatever a template's own code raises
            raise MuaError(
                f"the tokenizer's chat template refuses the conversation ({type(exc).__name__}: {exc}). "
                "mua needs system, user, assistant and user again, in this order; mend the template."
            ) from exc

    def _builtin(self, messages: Sequence[Message], tools: Tools, generation: bool) -> str:
        """Our own template: one token a role mark, an end only where the assistant must sample one."""
        mark = {"system": SYSTEM, "user": USER, "tool": TOOL}
        out = []
        for m in _with_tools(messages, describe_tools(tools, self.tool_style), "\n"):
            if m.role == "assistant":
                thinking = f"<think>{m.thinking}</think>" if m.thinking else ""
                out.append(ASSISTANT + thinking + m.content + hermes_text(m.tool_calls) + END)
            else:
                out.append(mark[m.role] + m.content)
        return "".join(out) + (ASSISTANT if generation else "")

    def _plain(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Messages as a chat template takes them."""
        out: list[dict[str, Any]] = []
        for m in messages:
            if m.role == "tool" and not self.native_tools:
                block = f"<tool_response>\n{m.content}\n</tool_response>"
                if out and out[-1].get("answers"):
                    out[-1]["content"] += "\n" + block
                else:
                    out.append({"role": "user", "content": block, "answers": True})
                continue
            item: dict[str, Any] = {"role": m.role, "content": m.content}
            if m.tool_calls and self.calls == "llama":
                # Its template takes one call a message and drops the words beside it; this is its own text.
                item["content"] = "; ".join(_llama_text(c) for c in m.tool_calls)
            elif m.tool_calls and (not self.native_tools or any(c.error for c in m.tool_calls)):
                item["content"] = "\n".join(filter(None, (m.content, hermes_text(m.tool_calls, "\n"))))
            elif m.tool_calls:
                item["tool_calls"] = [
                    {"type": "function", "function": {"name": c.name, "arguments": _dict(c.arguments)}}
                    for c in m.tool_calls
                ]
            if m.thinking:
                item["reasoning_content"] = m.thinking
            out.append(item)
        return out

    def _clean(self, message: Message) -> Message:
        """The message with every mark of the format spelled harmlessly (`< |end|>`)."""

        def clean(value: Any) -> Any:
            if isinstance(value, str):
                return self._marks.sub(lambda m: f"{m[0][0]} {m[0][1:]}", value)
            if isinstance(value, Mapping):
                return {clean(k): clean(v) for k, v in value.items()}
            if isinstance(value, list | tuple):
                return [clean(v) for v in value]
            return value

        calls = tuple(
            dataclasses.replace(c, name=clean(c.name), arguments=clean(c.arguments), raw=clean(c.raw))
            for c in message.tool_calls
        )
        return dataclasses.replace(
            message, content=clean(message.content), thinking=clean(message.thinking), tool_calls=calls
        )

    # --- what the template does -----------------------------------------------------------------

    def _find_stops(self, tail: str) -> tuple[int, ...]:
        """The end of turn that follows the assistant's words, then the tokenizer's own ends."""
        found = []
        ids = self._encode(tail)
        if ids and ids[0] in self.tokenizer.all_special_ids:
            found.append(ids[0])
        if self.tokenizer.eos_token_id is not None:
            found.append(self.tokenizer.eos_token_id)
        special = set(self.tokenizer.all_special_tokens)
        found += [self.tokenizer.convert_tokens_to_ids(n) for n in _STOP_NAMES if n in special]
        if not found:
            raise MuaError(
                "the chat format has no token that ends a turn: the tokenizer has no eos_token and its "
                "template puts no special token after the assistant's words. Set tokenizer.eos_token."
            )
        return tuple(dict.fromkeys(found))

    def _probe_thinking(self) -> tuple[bool, frozenset[str]]:
        """Whether the template takes thinking as a field, and after which new messages it drops it."""
        secret = "mua-thought-mua"
        as_field = Message("assistant", "-", thinking=secret)
        as_text = Message("assistant", f"<think>\n{secret}\n</think>\n\n-")
        field = secret in self._render([*self._ask, as_field], {}, generation=False)
        spoken = as_field if field else as_text
        dropped = [
            role
            for role in ("user", "tool")
            if secret not in self._render([*self._ask, spoken, Message(role, "-")], {}, generation=True)
        ]
        return field, frozenset(dropped)


class TokenChat:
    """The exact tokens of one speaker: asks for a prompt, adds what was sampled, and so on.

    Nothing enters the trace until `add`: a request that failed or was thrown away leaves it as it was.
    """

    def __init__(self, format: ChatFormat):
        self.format = format
        self.trace = TokenTrace()
        self._known: list[Message] | None = None
        """The messages that the trace holds; None before the first sampled ids."""
        self._tools: Tools = {}
        self._stopped = True
        self._thought = False
        self._pending: tuple[list[int], bool, list[Message], Tools, bool] | None = None

    def prompt(self, messages: Sequence[Message], tools: Tools) -> list[int]:
        """The prompt of the next generation, `messages` being the conversation so far.

        It extends the last segment when the conversation extends what that holds; else (thinking dropped,
        other tools, another history) it is rendered whole and `add` starts a new segment.
        """
        messages = list(messages)
        known = self._known
        n = len(known) if known is not None else 0
        extends = (
            known is not None
            and len(messages) > n
            and messages[n].role == "assistant"
            and messages[:n] == known
            and dict(tools) == dict(self._tools)
        )
        thought = extends and (self._thought or bool(messages[n].thinking))
        if thought and any(m.role in self.format.rewrites_on for m in messages[n + 1 :]):
            extends, thought = False, False
        if extends:
            context = self.format.delta_ids(messages, n + 1, self._stopped)
        else:
            context = self.format.initial_ids(messages, tools)
        self._pending = (context, extends, messages, dict(tools), thought)
        return [*self.trace.current.ids, *context] if extends else context

    def add(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Keeps the last prompt and the ids sampled for it."""
        if self._pending is None:
            raise ValueError("add() without a prompt() before it")
        context, extends, self._known, self._tools, self._thought = self._pending
        self._pending = None
        segment = self.trace.current
        if not extends and segment.ids:
            segment = self.trace.start_segment()
        segment.add_context(context)
        segment.add_sampled(ids, logprobs)
        self._stopped = bool(ids) and ids[-1] in self.format.stop_ids

    def add_completion(self, completion: Completion) -> None:
        self.add(completion.token_ids, completion.logprobs)


_BUILTIN_TOLD = {
    "none": """Tools: {{ tools | map(attribute="function.name") | join(", ") }}""",
    "schema": """\
{{- "# Tools\\n\\nYou can call these tools, described by JSON Schema:\\n<tools>\\n" }}
{%- for t in tools %}{{ t.function | tojson }}{{ "\\n" }}{% endfor -%}
{{- "</tools>\\n\\nTo call a tool, write its name and arguments as JSON, and wait for its answer:\\n" }}
{{- '<tool_call>{"name": "NAME", "arguments": {"ARGUMENT": "VALUE"}}</tool_call>' }}""",
}
_BUILTIN = """\
{%- set told -%}{%- if tools -%}TOLD{%- endif -%}{%- endset -%}
{%- if told and messages[0].role != "system" -%}<|system|>{{ told }}{%- endif -%}
{%- for m in messages -%}
{%- if m.role == "assistant" -%}<|assistant|>
{%- if m.reasoning_content -%}<think>{{ m.reasoning_content }}</think>{%- endif -%}
{{ m.content or "" }}
{%- for c in m.tool_calls or [] -%}
{%- set arguments = c.function.arguments -%}
<tool_call>{"name": {{ c.function.name | tojson }}, "arguments": {{ "" -}}
{{ arguments if arguments is string else arguments | tojson }}}</tool_call>
{%- endfor -%}<|end|>
{%- elif m.role == "system" -%}<|system|>{{ m.content }}
{%- if told and loop.first -%}{{ "\\n" if m.content else "" }}{{ told }}{%- endif -%}
{%- elif m.role == "tool" -%}<|tool|>{{ m.content }}
{%- else -%}<|user|>{{ m.content }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""


def builtin_template(style: ToolStyle) -> str:
    """Our own format as a Jinja chat template, for programs that know no other form.

    It renders what `ChatFormat` renders without a template of the tokenizer, tools included; but for the
    style `brief`, whose description of the tools must stand in the system prompt already.
    """
    return _BUILTIN.replace("TOLD", _BUILTIN_TOLD.get(style, ""))


# --- tools and calls as text ------------------------------------------------------------------------


def describe_tools(tools: Tools, style: ToolStyle) -> str:
    """The part of the system prompt that tells of the tools; empty when there are none."""
    if not tools:
        return ""
    if style == "none":
        return f"Tools: {', '.join(tools)}"
    if style == "brief":
        lines = "\n".join(tool.usage() for tool in tools.values())
        how = 'Call one by <tool_call>{"name": "NAME", "arguments": {…}}</tool_call>'
        return f"Tools:\n{lines}\n{how}"
    lines = "\n".join(json.dumps(t.schema()["function"], ensure_ascii=False) for t in tools.values())
    return (
        "# Tools\n\nYou can call these tools, described by JSON Schema:\n"
        f"<tools>\n{lines}\n</tools>\n\n"
        "To call a tool, write its name and arguments as JSON, and wait for its answer:\n"
        '<tool_call>{"name": "NAME", "arguments": {"ARGUMENT": "VALUE"}}</tool_call>'
    )


def _with_tools(messages: Sequence[Message], described: str, gap: str) -> Sequence[Message]:
    """The messages with the tools told at the end of the system prompt."""
    if not described:
        return messages
    if messages and messages[0].role == "system":
        text = gap.join(filter(None, (messages[0].content, described)))
        return [dataclasses.replace(messages[0], content=text), *messages[1:]]
    return [Message("system", described), *messages]


def hermes_text(calls: Sequence[ToolCall], gap: str = "") -> str:
    """Calls as `<tool_call>{"name": …, "arguments": …}</tool_call>`; unreadable ones as they were."""
    return gap.join(
        f"<tool_call>{c.raw if c.error else _json({'name': c.name, 'arguments': c.arguments})}</tool_call>"
        for c in calls
    )


def hermes_message(text: str, calls: bool = True) -> Message:
    """The assistant message that a text in Hermes' syntax stands for; never raises."""
    content, thinking, found = _scan(whole_characters(text), calls)
    return Message("assistant", content.strip(), tuple(found), thinking=thinking.strip())


def _llama_text(call: ToolCall) -> str:
    return call.raw if call.error else _json({"name": call.name, "parameters": call.arguments})


def _json(value: Any) -> str:
    return json.dumps(_dict(value), ensure_ascii=False)


def _dict(value: Any) -> Any:
    """A plain copy of JSON data that may hold proxies and tuples."""
    if isinstance(value, Mapping):
        return {k: _dict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_dict(v) for v in value]
    return value


# --- text to calls ----------------------------------------------------------------------------------

_MARK = re.compile(r"<think>|<tool_call>")
_SPACE = re.compile(r"\s*")
_NAME = re.compile(r'"name"\s*:\s*"([^"\\]{1,64})"')
_DECODER = json.JSONDecoder()
_CLOSE_CALL, _CLOSE_THINK = "</tool_call>", "</think>"


def _scan(text: str, calls: bool) -> tuple[str, str, list[ToolCall]]:
    """(words, thinking, calls) of Hermes text, in one pass from left to right."""
    words: list[str] = []
    thoughts: list[str] = []
    found: list[ToolCall] = []
    at = 0
    first = _MARK.search(text)
    early = text.find(_CLOSE_THINK, 0, first.start() if first else len(text))
    if early >= 0:  # the opening mark stood in the prompt
        thoughts.append(text[:early])
        at = early + len(_CLOSE_THINK)
    mark = _MARK if calls else re.compile("<think>")
    while hit := mark.search(text, at):
        words.append(text[at : hit.start()])
        at = hit.end()
        if hit[0] == "<think>":
            end = text.find(_CLOSE_THINK, at)
            thoughts.append(text[at : end if end >= 0 else len(text)])
            at = end + len(_CLOSE_THINK) if end >= 0 else len(text)
        elif len(found) == MAX_CALLS:
            error = f"more than {MAX_CALLS} calls in one step; make them in several steps"
            found.append(ToolCall("invalid", {}, "", error, text[at : at + 200]))
            at = len(text)
        else:
            body, at, closed = _call_body(text, at)
            found.append(_call(body) if closed else _broken(body, "it is not closed with </tool_call>"))
    words.append(text[at:])
    return "".join(words), "\n".join(thoughts), found


def _call_body(text: str, start: int) -> tuple[str, int, bool]:
    """(text of the call, where to read on, whether it was closed) of a call that starts at `start`.

    Reads the JSON first, so that `</tool_call>` inside a string does not end the call.
    """
    start = _after_space(text, start)
    end = _json_end(text, start)
    if end is not None and text.startswith(_CLOSE_CALL, _after_space(text, end)):
        return text[start:end], _after_space(text, end) + len(_CLOSE_CALL), True
    close = text.find(_CLOSE_CALL, start if end is None else end)
    if close < 0:
        return text[start:], len(text), False
    return text[start:close], close + len(_CLOSE_CALL), True


def _llama_calls(text: str) -> tuple[str, list[ToolCall]]:
    """(words, calls) of Llama-3 text: JSON objects, several parted by `;`, perhaps after a tag."""
    words, tag, rest = text.partition("<|python_tag|>")
    if not tag:
        words, rest = "", text.strip()
        if not rest.startswith("{") or not _NAME.search(rest[:500]):
            return text, []
    found: list[ToolCall] = []
    at = _after_space(rest, 0)
    while at < len(rest):
        end = _json_end(rest, at)
        if end is None or len(found) == MAX_CALLS:
            if found and rest[at] != "{" and end is None:
                return words + rest[at:], found  # words after the calls
            found.append(_call(rest[at:]) if end is None else _broken(rest[at : at + 200], "too many calls"))
            break
        found.append(_call(rest[at:end]))
        at = _after_space(rest, end)
        while rest.startswith(";", at):
            at = _after_space(rest, at + 1)
    return words, found or [_broken("", "nothing follows the tag")]


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _json_end(text: str, at: int) -> int | None:
    """Where the JSON value that starts at `at` ends; None when there is none."""
    try:
        return _DECODER.raw_decode(text, at)[1]
    except (ValueError, RecursionError):
        return None


def _call(body: str) -> ToolCall:
    """One call from its JSON text."""
    try:
        data = strict_json(body)
    except ValueError as exc:
        return _broken(body, f"it is not valid JSON: {str(exc)[:200]}")
    if not isinstance(data, dict):
        return _broken(body, 'it must be a JSON object with "name" and "arguments"')
    name = data.get("name")
    if not isinstance(name, str) or not name.strip():
        return _broken(body, 'it has no "name"')
    key = "arguments" if "arguments" in data else "parameters"
    if key not in data and len(data) > 1:
        return _broken(body, 'its arguments must stand in an object under "arguments"')
    call = parse_arguments(name, data.get(key))
    return dataclasses.replace(call, raw=body) if call.error else call


def _broken(body: str, error: str) -> ToolCall:
    name = _NAME.search(body[:500])
    return ToolCall(name[1] if name else "invalid", {}, "", error, body)
