"""One OpenAI-compatible chat endpoint: asked with bounded concurrency, answers checked, cost counted.

Invariants:
- What comes back is a usable answer, or an `InfrastructureError` that names the endpoint, the cause
  and the fix. Nonsense (null, empty, cut, HTML) is asked for again, never passed on.
- The key is read from the environment and appears in no text that leaves this module.
- No failure touches anybody's random numbers: the jitter has its own.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from .chat import Message, ToolCall, parse_arguments
from .errors import InfrastructureError, MuaError
from .tools import Tool

_LONGEST_WAIT = 120.0
"""Seconds; a server that asks for more is treated as down."""
_SHORTEST_KEY = 8
"""Shorter "keys" are fillers for local servers (`none`, `EMPTY`), not secrets: they are not redacted."""


class EndpointSettings(BaseModel):
    """Where a chat model is served and how it is asked."""

    # Inputs stay out of validation errors: a key put into the wrong field must not be printed.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    base_url: str = Field(
        default="https://api.openai.com/v1", description="Address up to /v1, without any key."
    )
    model: str = Field(description="Model name as the endpoint knows it.")
    api_key_env: str = Field(
        default="", description="NAME of the environment variable that holds the key; empty sends none."
    )
    timeout: float = Field(default=120.0, gt=0, description="Seconds for one whole request.")
    concurrency: int = Field(default=16, ge=1, description="Most requests in flight.")
    retries: int = Field(
        default=4, ge=0, description="Further attempts after a failure or an unusable answer."
    )
    retry_delay: float = Field(
        default=0.5,
        ge=0,
        description="Seconds before the first retry; doubles up to 16 times this, with jitter.",
    )
    temperature: float | None = Field(default=0.0, ge=0, description="null leaves it to the server.")
    max_tokens: int | None = Field(
        default=1024,
        ge=1,
        description="Longest answer in tokens; null leaves it to the server "
        "(models that want max_completion_tokens get that by extra_body).",
    )
    prompt_price: float = Field(default=0.0, ge=0, description="US dollars per million prompt tokens.")
    completion_price: float = Field(
        default=0.0, ge=0, description="US dollars per million completion tokens."
    )
    seed: int | None = Field(
        default=0,
        description="Mixed into each request's seed; null sends no seed (some servers refuse the field).",
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="Further fields of the request, sent as they are."
    )

    @field_validator("base_url")
    @classmethod
    def _no_secret_in_url(cls, url: str) -> str:
        if not re.match(r"https?://[^/?#@]+(/[^?#]*)?$", url):
            raise ValueError(
                "must look like http://host:port/v1, without user name, password or query; "
                "a key belongs into the environment variable that api_key_env names"
            )
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if name and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("must be the NAME of an environment variable, never the key itself")
        return name


@dataclass(frozen=True)
class Answer:
    """A checked answer."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    thinking: str = ""
    truncated: bool = False
    """It ran into max_tokens; text and calls may then be empty or incomplete."""
    raw: str = ""
    """`text` to the letter: its ends are not stripped."""
    prompt_tokens: int = 0
    """Tokens and cost are those of all attempts: unusable answers are paid for as well."""
    completion_tokens: int = 0
    cost: float = 0.0


class ContextOverflow(InfrastructureError):
    """The conversation is longer than the model's context: no retry can help."""


@dataclass(frozen=True)
class _Fault:
    what: str
    fix: str
    retry: bool = True
    wait: float | None = None
    """Seconds that the server asked us to wait."""
    overflow: bool = False
    usage: tuple[int, int] = (0, 0)


class Endpoint:
    """One endpoint, shared by all episodes of a run; totals in `requests`, `prompt_tokens`,
    `completion_tokens` and `cost`."""

    def __init__(self, settings: EndpointSettings, role: str = "user"):
        """`role` names the endpoint in messages (user, agent, judge).

        Raises MuaError when the environment variable that should hold the key is not set.
        """
        self.settings = settings
        self.role = role
        self.requests = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cost = 0.0
        self._jitter = random.Random()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: Any = None
        self._key = os.environ.get(settings.api_key_env, "").strip() if settings.api_key_env else ""
        if settings.api_key_env and not (self._key and self._key.isascii() and self._key.isprintable()):
            raise MuaError(
                f"the {role} endpoint {settings.base_url} takes its key from the environment variable "
                f"{settings.api_key_env}, which is not set (or holds characters that no key has); export it, "
                "or leave api_key_env empty for a server that wants no key."
            )

    def redact(self, text: str) -> str:
        """The text without the key."""
        if len(self._key) < _SHORTEST_KEY:
            return text
        return re.sub(re.escape(self._key), "[key]", text, flags=re.IGNORECASE)

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Tool] = (),
        seed: int | None = None,
    ) -> Answer:
        """Asks for the next message of a conversation in OpenAI's form (see `wire`).

        Raises ContextOverflow when the conversation is too long, InfrastructureError otherwise.
        """
        result = await self._ask(messages, tools, seed, self.settings.retries)
        if isinstance(result, Answer):
            return result
        kind = ContextOverflow if result.overflow else InfrastructureError
        raise kind(self._paragraph(result))

    async def check(self, tools: Sequence[Tool] = ()) -> None:
        """One small request before a run, with the tools if the run will send any.

        Raises MuaError saying what to mend: address, model name, key, tool support.
        """
        probe = [{"role": "user", "content": "Hello! Please answer with one word."}]
        result = await self._ask(probe, tools, 0, min(1, self.settings.retries))
        if isinstance(result, _Fault):
            raise MuaError(self._paragraph(result))

    async def close(self) -> None:
        """Closes the connections; the next request opens new ones."""
        session, self._session, self._loop = self._session, None, None
        if session is not None:
            await session.close()

    async def _ask(self, messages, tools, seed, retries: int) -> Answer | _Fault:
        await self._bind()
        prompt_tokens = completion_tokens = 0
        result: Answer | _Fault = _Fault("was not asked", "", retry=False)
        for attempt in range(retries + 1):
            # A new seed for each attempt: the old one could bring the same nonsense again.
            async with self._slots:
                result = await self._attempt(self._body(messages, tools, seed, attempt))
            used = result.usage if isinstance(result, _Fault) else _usage(result)
            prompt_tokens += used[0]
            completion_tokens += used[1]
            if isinstance(result, Answer) or not result.retry or attempt == retries:
                break
            await asyncio.sleep(self._delay(attempt, result.wait))
        cost = self.settings.prompt_price * prompt_tokens + self.settings.completion_price * completion_tokens
        cost /= 1e6
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        self.cost += cost
        if isinstance(result, Answer):
            return replace(
                result, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cost=cost
            )
        return result

    async def _bind(self) -> None:
        """Connections and semaphore belong to one event loop; a caller with a new loop gets new ones."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        import aiohttp

        before, self._loop = self._session, loop
        self._slots = asyncio.Semaphore(self.settings.concurrency)
        self._url, self._proxy = _address(self.settings.base_url)
        self._session = aiohttp.ClientSession(
            # No limit but ours: `_slots`.
            connector=aiohttp.TCPConnector(limit=0, ssl=_tls() if self._url.startswith("https") else True),
            timeout=aiohttp.ClientTimeout(total=self.settings.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={
                # Never a key of somebody else's choice: OPENAI_API_KEY must not go to some other server.
                "authorization": f"Bearer {self._key or 'none'}",
                "content-type": "application/json",
                "accept": "application/json",
            },
        )
        if before is not None:
            await before.close()

    def _body(self, messages, tools: Sequence[Tool], seed: int | None, attempt: int) -> bytes:
        """The request as JSON text. A tool's part of it is made once: its agent sends it at each step."""
        s = self.settings
        body: dict[str, Any] = {"model": s.model, "messages": list(messages)}
        if s.temperature is not None:
            body["temperature"] = s.temperature
        if s.max_tokens is not None:
            body["max_tokens"] = s.max_tokens
        if s.seed is not None:
            body["seed"] = (s.seed * 1_000_003 + (seed or 0) + attempt * 7_919) % 2**31
        text = json.dumps(body | s.extra_body)
        if tools and "tools" not in s.extra_body:
            text = f'{text[:-1]}, "tools": [{", ".join([tool.schema_json for tool in tools])}]}}'
        return text.encode()

    def _delay(self, attempt: int, wait: float | None) -> float:
        """Seconds until the next attempt: what the server asked for, else doubling with jitter."""
        if wait is not None:
            return wait
        return self.settings.retry_delay * min(2**attempt, 16) * self._jitter.uniform(0.75, 1.25)

    async def _attempt(self, body: bytes) -> Answer | _Fault:
        """One request. Exceptions end here, so that no chained one carries the key into a traceback."""
        import aiohttp

        self.requests += 1
        try:
            async with self._session.post(self._url, data=body, proxy=self._proxy) as response:
                text = self.redact((await response.read()).decode("utf-8", "replace"))
        except TimeoutError:
            return _Fault(
                f"gave no answer within {self.settings.timeout:g} s", "raise timeout, or lower concurrency"
            )
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            cause = self.redact(str(getattr(exc, "os_error", exc)))[:200] or type(exc).__name__
            return _Fault(f"is down: {cause}", "start it, or set base_url to where it runs")
        if 200 <= response.status < 300:
            return _read(text)
        return self._status_fault(response.status, response.headers, text)

    def _status_fault(self, status: int, headers: Mapping[str, str], body: str) -> _Fault:
        s = self.settings
        said = " ".join(body.split())[:300]
        text = f"{status}: {said}" if said else str(status)
        if status in (401, 403):
            fix = "set api_key_env to the NAME of the environment variable that holds the key"
            if s.api_key_env:
                fix = f"check the key in {s.api_key_env}, and that it may use this model"
            return _Fault(f"refused the key ({text})", fix, retry=False)
        if status == 404:
            fix = "set model to a name that it serves, and base_url to its address up to /v1"
            return _Fault(f"does not know the model or the path ({text})", fix, retry=False)
        if status in (400, 413, 422) and _OVERFLOW.search(said):
            return _Fault(
                f"says that the conversation is too long ({text})",
                "serve the model with a longer context, or lower max_tokens",
                retry=False,
                overflow=True,
            )
        if status in (408, 409, 429) or status >= 500:
            wait = _retry_after(headers)
            fix = (
                "lower concurrency, or check the account's quota"
                if status == 429
                else "look at the server's log"
            )
            return _Fault(f"failed ({text})", fix, wait is None or wait <= _LONGEST_WAIT, wait)
        fix = "check that it supports what the request holds (tools, seed: null leaves the seed out)"
        return _Fault(f"refused the request ({text})", fix, retry=False)

    def _paragraph(self, fault: _Fault) -> str:
        s = self.settings
        return f"the {self.role} endpoint {s.base_url} (model '{s.model}') {fault.what}; {fault.fix}."


def _address(base_url: str) -> tuple[str, str | None]:
    """(where to post, the HTTP proxy that the environment names for it)."""
    import urllib.parse
    import urllib.request

    url = f"{base_url}/chat/completions"
    parts = urllib.parse.urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc):
        return url, None
    proxies = urllib.request.getproxies()
    return url, proxies.get(parts.scheme) or proxies.get("all")


def _tls() -> Any:
    """The system's certificates and certifi's: not every system has some where Python looks for them."""
    import ssl

    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


_OVERFLOW = re.compile(r"context.{0,3}(length|window|size)|max_model_len|(prompt|input) is too long", re.I)


def _usage(answer: Answer) -> tuple[int, int]:
    return answer.prompt_tokens, answer.completion_tokens


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of `retry-after-ms` or `retry-after` (a number or an HTTP date); None when not given."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if seconds >= 0:  # false for NaN
            return seconds
    try:
        when = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except (TypeError, ValueError):
        return None
    return max(0.0, when.timestamp() - time.time())


def _read(text: str) -> Answer | _Fault:
    """The answer in a response body, or why there is none."""
    fix = "check that base_url is an OpenAI-compatible chat endpoint and that the model can answer this"

    def junk(why: str, usage: tuple[int, int] = (0, 0)) -> _Fault:
        return _Fault(f"answered nothing usable: {why}", fix, usage=usage)

    def sample() -> str:
        return " ".join(text.split())[:200]

    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return junk(f"not JSON: {sample()}" if text.strip() else "an empty body")
    choices = data.get("choices") if isinstance(data, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return junk(f"no chat completion: {sample()}")
    used = data.get("usage")
    used = used if isinstance(used, dict) else {}
    usage = (_count(used.get("prompt_tokens")), _count(used.get("completion_tokens")))

    words = _words(message.get("content")) or _words(message.get("refusal"))
    thinking = _words(message.get("reasoning_content")) or _words(message.get("reasoning"))
    if "</think>" in words:  # a server without a reasoning parser
        thought, words = words.rsplit("</think>", 1)
        thinking = thinking or thought.replace("<think>", "").strip()
    finish = choice.get("finish_reason")
    calls = message.get("tool_calls")
    answer = Answer(
        text=words.strip(),
        raw=words,
        tool_calls=tuple(_call(c) for c in calls) if isinstance(calls, list) else (),
        thinking=thinking,
        truncated=finish == "length",
        prompt_tokens=usage[0],
        completion_tokens=usage[1],
    )
    if not answer.text and not answer.tool_calls and not answer.truncated:
        return junk(f"neither words nor calls (finish_reason {finish!r})", usage)
    return answer


def _words(content: Any) -> str:
    """Content as text: a string, or the text parts of a list; anything else is none."""
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return _clean("".join(text for text in texts if isinstance(text, str)))


def _call(data: Any) -> ToolCall:
    """A tool call; what cannot be read as one becomes a call with an `error`."""
    function = data.get("function") if isinstance(data, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        return ToolCall("", error="the call names no function", raw=json.dumps(data))
    raw = function.get("arguments")
    raw = _clean(raw) if isinstance(raw, str) else "{}" if raw is None else json.dumps(raw)
    call_id = data.get("id")
    return parse_arguments(_clean(function["name"]), raw, _clean(call_id) if isinstance(call_id, str) else "")


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _clean(text: str) -> str:
    """The text without lone surrogates (half an emoji at a token limit), which no file could hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def wire(messages: Sequence[Message], speaker: str = "assistant") -> list[dict[str, Any]]:
    """A conversation as strict OpenAI messages, without our own keys.

    `speaker` is the side that the endpoint plays: its words become role `assistant`, the other side's
    `user`. Arguments that were not JSON are sent as `{}`: servers parse them, and the tool's answer in
    the conversation says what was wrong.
    """
    out: list[dict[str, Any]] = []
    for m in messages:
        if m.role == "tool":
            out.append({"role": "tool", "tool_call_id": m.tool_call_id, "content": m.content})
            continue
        role = m.role if m.role == "system" else "assistant" if m.role == speaker else "user"
        entry: dict[str, Any] = {"role": role, "content": m.content}
        if m.tool_calls:
            entry["content"] = m.content or None
            entry["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": re.sub(r"[^A-Za-z0-9_-]", "_", call.name)[:64] or "unknown",
                        "arguments": "{}" if call.error else call.to_dict()["function"]["arguments"],
                    },
                }
                for call in m.tool_calls
            ]
        out.append(entry)
    return out
