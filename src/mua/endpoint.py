"""One OpenAI-compatible chat endpoint: asked with bounded concurrency, answers checked, cost counted.

It is a gateway (`gateway`) with one route, or asks one that many share.

Invariants:
- What comes back is a usable answer, or an `InfrastructureError` that names the endpoint, the cause
  and the fix. Nonsense (null, empty, cut, HTML) is asked for again, never passed on.
- The key, read from the environment or handed over, appears in no text that leaves this module.
- No failure touches anybody's random numbers: the jitter has its own, and a request that failed goes out
  again as it was. Only where the model itself answered nothing does the next attempt have another seed.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .chat import Message, ToolCall, parse_arguments, whole_characters
from .errors import InfrastructureError, MuaError
from .gateway import BudgetSettings, Gateway, Gateways, GatewaySettings, Meter, Price, Question, RouteSettings
from .tools import Tool
from .transport import Fault, checked_env, checked_url

log = logging.getLogger(__name__)


class EndpointSettings(BaseModel):
    """Where a chat model is served and how it is asked."""

    # Inputs stay out of validation errors: a key put into the wrong field must not be printed.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    base_url: str = Field(
        default="https://api.openai.com/v1", description="Address up to /v1, without any key."
    )
    model: str = Field(description="Model name as the endpoint knows it; with a gateway: its routes' own.")
    gateway: str = Field(
        default="",
        description="Name of a gateway under `gateways`, or a YAML file of one, that is asked instead of "
        "base_url; addresses, keys, limits and prices are then its routes'.",
    )
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

    @model_validator(mode="before")
    @classmethod
    def _one_place(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not data.get("gateway"):
            return data
        own = _OF_A_ROUTE & data.keys()
        both = sorted(n for n in own if data[n] not in (None, cls.model_fields[n].default))
        if both:
            raise ValueError(f"{', '.join(both)}: with a gateway, its routes say that; leave it out here")
        return {"model": Path(str(data["gateway"])).stem, **data}

    @field_validator("base_url")
    @classmethod
    def _no_secret_in_url(cls, url: str) -> str:
        return checked_url(url)

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        return checked_env(name)

    @property
    def place(self) -> str:
        """Where it is asked, for records: an address, or a gateway."""
        return f"gateway:{self.gateway}" if self.gateway else self.base_url


_OF_A_ROUTE = {"base_url", "api_key_env", "timeout", "concurrency", "prompt_price", "completion_price"}


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

    @property
    def usage(self) -> tuple[int, int]:
        """Tokens of prompt and completion."""
        return self.prompt_tokens, self.completion_tokens


class ContextOverflow(InfrastructureError):
    """The conversation is longer than the model's context: no retry can help."""


class Endpoint:
    """One endpoint in one role, shared by all episodes of a run; `meter` has what it took."""

    def __init__(
        self,
        settings: EndpointSettings,
        role: str = "user",
        gateways: Gateways | None = None,
        key: str | None = None,
    ):
        """`role` names the endpoint in messages (user, agent, judge); `gateways` has the one that the
        settings name, which stays open when this is closed. `key` is a key that the caller was handed, in
        place of the variable that the settings name.

        Raises MuaError when the environment variable that should hold the key is not set, or when there is
        no such gateway.
        """
        self.settings = settings
        self.role = role
        self.meter = Meter()
        self._shared = bool(settings.gateway)
        if settings.gateway:
            self._gateway = (gateways or Gateways()).get(settings.gateway)
            return
        route = RouteSettings(
            base_url=settings.base_url,
            api_key_env=settings.api_key_env,
            model=settings.model,
            timeout=settings.timeout,
            concurrency=settings.concurrency,
        )
        price = Price(prompt=settings.prompt_price, completion=settings.completion_price)
        one = GatewaySettings(
            routes=(route,), prices={settings.model: price}, budget=BudgetSettings(), breaker=None
        )
        self._gateway = Gateway(one, who=f"{role} endpoint", key=key)

    @property
    def requests(self) -> int:
        """Sent, retries included."""
        return self.meter.requests

    @property
    def prompt_tokens(self) -> int:
        return self.meter.prompt_tokens

    @property
    def completion_tokens(self) -> int:
        return self.meter.completion_tokens

    @property
    def cost(self) -> float:
        """US dollars."""
        return self.meter.cost

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Tool] = (),
        seed: int | None = None,
    ) -> Answer:
        """Asks for the next message of a conversation in OpenAI's form (see `wire`).

        Raises ContextOverflow when the conversation is too long, BudgetSpent when the gateway's budget does
        not allow it, InfrastructureError otherwise.
        """
        result, usage, cost, route = await self._gateway.ask(
            self._question(messages, tools, seed),
            self.meter,
            retries=self.settings.retries,
            delay=self.settings.retry_delay,
        )
        if isinstance(result, Fault):
            kind = ContextOverflow if result.overflow else InfrastructureError
            raise kind(self._paragraph(result, route.settings))
        return replace(result, prompt_tokens=usage[0], completion_tokens=usage[1], cost=cost)

    async def check(self, tools: Sequence[Tool] = ()) -> None:
        """One small request to each route before a run, with the tools if the run will send any; what is in
        the cache is not asked again.

        Raises MuaError saying what to mend (address, model name, key, tool support) when a route refuses, or
        none answers. Of several, one that is down is left to the others.
        """
        probe = [{"role": "user", "content": "Hello! Please answer with one word."}]
        retries = min(1, self.settings.retries)
        faults = []
        for route in self._gateway.routes:
            result, *_ = await self._gateway.ask(
                self._question(probe, tools, 0), self.meter, retries=retries, delay=0.5, only=route
            )
            if isinstance(result, Fault):
                paragraph = self._paragraph(result, route.settings)
                if result.kind == "refused":
                    raise MuaError(paragraph)
                faults.append(paragraph)
        if len(faults) == len(self._gateway.routes):
            raise MuaError(faults[0])
        for paragraph in faults:
            log.warning("%s The other routes are asked meanwhile.", paragraph)

    async def close(self) -> None:
        """Closes the connections; the next request opens new ones."""
        if not self._shared:
            await self._gateway.close()

    def _question(self, messages: Sequence[Any], tools: Sequence[Tool], seed: int | None) -> Question:
        s = self.settings

        @functools.cache
        def body(model: str, draw: int) -> bytes:
            return self._body(model, messages, tools, seed, draw)

        return Question(
            body,
            functools.partial(_read, most=s.max_tokens),
            s.model,
            s.max_tokens,
            (s.seed or 0) * 1_000_003 + (seed or 0),
            missing="set model to a name that it serves, and base_url to its address up to /v1",
            refused="check that it supports what the request holds (tools, seed: null leaves the seed out)",
        )

    def _body(
        self, model: str, messages: Sequence[Any], tools: Sequence[Tool], seed: int | None, draw: int
    ) -> bytes:
        """The request as JSON text, with the seed of its n-th `draw`. A tool's part of it is made once: its
        agent sends it at each step."""
        s = self.settings
        body: dict[str, Any] = {"model": model, "messages": list(messages)}
        if s.temperature is not None:
            body["temperature"] = s.temperature
        if s.max_tokens is not None:
            body["max_tokens"] = s.max_tokens
        if s.seed is not None:
            body["seed"] = (s.seed * 1_000_003 + (seed or 0) + draw * 7_919) % 2**31
        text = json.dumps(body | s.extra_body)
        if tools and "tools" not in s.extra_body:
            text = f'{text[:-1]}, "tools": [{", ".join([tool.schema_json for tool in tools])}]}}'
        return text.encode()

    def redact(self, text: str) -> str:
        """The text without the key."""
        return self._gateway.redact(text)

    def _paragraph(self, fault: Fault, route: RouteSettings) -> str:
        model = route.model or self.settings.model
        return f"the {self.role} endpoint {route.base_url} (model '{model}') {fault.what}; {fault.fix}."


_LONGEST_TOKEN = 256
"""Characters: the longest tokens in use are 128 spaces."""


def _read(text: str, most: int | None = None) -> Answer | Fault:
    """The answer, of `most` tokens, in a response body; or why there is none."""
    fix = "check that base_url is an OpenAI-compatible chat endpoint and that the model can answer this"

    def junk(why: str, usage: tuple[int, int] = (0, 0), *, by_model: bool = False) -> Fault:
        return Fault(f"answered nothing usable: {why}", fix, usage=usage, redraw=by_model)

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
        return junk(f"no chat completion: {sample()}", by_model=choices is not None)
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
    if most is not None and len(words) > most * _LONGEST_TOKEN:  # the other side could not read on
        return junk(f"{len(words):,} characters, which are more than {most} tokens", usage)
    if not answer.text and not answer.tool_calls and not answer.truncated:
        return junk(f"neither words nor calls (finish_reason {finish!r})", usage, by_model=True)
    return answer


def _words(content: Any) -> str:
    """Content as text: a string, or the text parts of a list; anything else is none."""
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return whole_characters("".join(text for text in texts if isinstance(text, str)))


def _call(data: Any) -> ToolCall:
    """A tool call; what cannot be read as one becomes a call with an `error`."""
    function = data.get("function") if isinstance(data, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        return ToolCall("", error="the call names no function", raw=json.dumps(data))
    raw = function.get("arguments")
    raw = whole_characters(raw) if isinstance(raw, str) else "{}" if raw is None else json.dumps(raw)
    call_id = data.get("id")
    return parse_arguments(
        whole_characters(function["name"]), raw, whole_characters(call_id) if isinstance(call_id, str) else ""
    )


def _count(value: Any) -> int:
    """A number of tokens; what cannot be one counts as none."""
    return value if type(value) is int and 0 < value < 10**9 else 0


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
