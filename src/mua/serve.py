"""A model of ours behind the chat API that everybody speaks: `mua serve`.

For other harnesses, and for local endpoints where a page speaks of one. Requests share the engine's
batches, and what they have in common with earlier ones (a system prompt, a conversation so far) is not
computed again.

Invariant: an answer is what the same model would have said in an episode with the same seed of sampling,
streamed or whole; whatever a request holds, it gets a JSON answer, and the server goes on; nothing is
generated for a client that has gone.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .chat import Message
from .engines import Completion, Engine, Sampling
from .errors import InfrastructureError, MuaError
from .formats import ChatFormat
from .tools import Tool

log = logging.getLogger(__name__)

MAX_TOKENS = 1024
"""Of an answer, when a request does not say."""


class _Refused(Exception):
    """The request cannot be answered; the words say why."""

    def __init__(self, text: str, code: str = "invalid_request"):
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class _Asked:
    """A request that can be answered."""

    prompt: list[int]
    sampling: Sampling
    calls: bool
    """Tools were offered, so what looks like a call is one."""
    stream: bool
    usage: bool
    """The stream ends with what it cost."""


def make_app(format: ChatFormat, engine: Engine, name: str) -> Starlette:
    """The application: `/v1/models` and `/v1/chat/completions`, for one model that is called `name`."""
    numbers = itertools.count()

    async def models(request: Request) -> Response:
        entry = {"id": name, "object": "model", "created": 0, "owned_by": "mua"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def complete(request: Request) -> Response:
        asked = _asked(format, engine, await _body(request))
        number = next(numbers)
        head = {"id": f"chatcmpl-{number}", "created": int(time.time()), "model": name}
        if asked.stream:
            events = _events(request, format, engine, asked, number, head)
            return StreamingResponse(
                events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
        done = await _generate(request, engine, asked, number)
        if done is None:
            return _error(499, "the client has gone", "client_closed_request")
        message, reason = _message(format, asked, done, number)
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return JSONResponse(
            {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(asked, done)}
        )

    async def refused(request: Request, exc: Exception) -> Response:
        return _error(400, str(exc), getattr(exc, "code", "invalid_request"))

    async def elsewhere(request: Request, exc: Exception) -> Response:
        status = getattr(exc, "status_code", 404)
        text = f"there is no {request.method} {request.url.path} here"
        return _error(status, text, "not_found" if status == 404 else "invalid_request")

    async def failed(request: Request, exc: Exception) -> Response:
        return _error(500, _words(exc), "server_error")

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/chat/completions", complete, methods=["POST"]),
        ],
        exception_handlers={
            _Refused: refused,
            MuaError: refused,
            InfrastructureError: failed,
            HTTPException: elsewhere,
            Exception: failed,  # a bug of ours: the traceback still goes to standard error
        },
    )


def run(format: ChatFormat, engine: Engine, name: str, host: str, port: int) -> None:
    """Serves until it is interrupted. Raises MuaError when the address cannot be had."""
    import socket

    import uvicorn

    try:
        taken = socket.create_server((host, port))
    except OSError as exc:
        raise MuaError(f"{host}:{port} cannot be had ({exc}); choose another: --port 0.") from None
    print(f"{name}: http://{host}:{taken.getsockname()[1]}/v1 (Ctrl-C ends it)", flush=True)
    settings = uvicorn.Config(make_app(format, engine, name), log_level="warning")
    uvicorn.Server(settings).run([taken])


async def _body(request: Request) -> Mapping[str, Any]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as exc:
        raise _Refused(f"the body is not JSON: {exc}") from None
    if not isinstance(body, dict):
        raise _Refused("the body must be a JSON object")
    return body


def _asked(format: ChatFormat, engine: Engine, body: Mapping[str, Any]) -> _Asked:
    """Reads a request whole, so that whatever is wrong with it is said before anything else is."""
    from .engines.sampling import check

    messages, tools = _messages(body), _tools(body)
    if body.get("n") not in (None, 1):
        raise _Refused("this server gives one answer: leave n out")
    stream, options = body.get("stream") or False, body.get("stream_options")
    if not isinstance(stream, bool):
        raise _Refused(f"stream must be true or false, not {stream!r}")
    if options is not None and not (stream and isinstance(options, dict)):
        raise _Refused("stream_options must be an object, and goes with stream: true")
    prompt = format.initial_ids(messages, tools)
    room = engine.context - len(prompt)
    if room <= 0:
        raise _Refused(
            f"This model's maximum context length is {engine.context} tokens, and the messages have "
            f"{len(prompt)}.",
            "context_length_exceeded",
        )
    most = _number(body, ("max_completion_tokens", "max_tokens"), MAX_TOKENS)
    sampling = Sampling(
        temperature=_number(body, ("temperature",), 1.0),
        top_p=_number(body, ("top_p",), 1.0),
        max_tokens=min(int(most), room),
        stop_ids=format.stop_ids,
        seed=int(_number(body, ("seed",), random.randrange(2**31))),
    )
    try:
        check(sampling)
    except ValueError as exc:  # settings that mean nothing
        raise _Refused(str(exc)) from None
    return _Asked(prompt, sampling, bool(tools), stream, bool((options or {}).get("include_usage")))


async def _generate(request: Request, engine: Engine, asked: _Asked, number: int) -> Completion | None:
    """None when the client has gone: nobody waits for the rest of its answer, so that is not generated."""
    session = f"request {number}"
    work = asyncio.ensure_future(engine.generate(asked.prompt, asked.sampling, session))
    try:
        while not (await asyncio.wait([work], timeout=0.5))[0]:
            if await request.is_disconnected():
                return None
        return work.result()
    finally:
        work.cancel()
        engine.release(session)


async def _events(
    request: Request, format: ChatFormat, engine: Engine, asked: _Asked, number: int, head: dict[str, Any]
) -> AsyncIterator[str]:
    """The server-sent events of an answer. An engine gives whole steps, so its text comes in one piece."""

    def event(delta: dict[str, Any] | None, reason: str | None = None, usage: Any = None) -> str:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
        data = {**head, "object": "chat.completion.chunk", "choices": choices}
        if asked.usage:
            data["usage"] = usage
        return f"data: {json.dumps(data)}\n\n"

    yield event({"role": "assistant", "content": ""})
    try:
        done = await _generate(request, engine, asked, number)
        if done is None:
            return
        message, reason = _message(format, asked, done, number)
    except Exception as exc:  # the status has been sent, so it is too late for another
        if not isinstance(exc, MuaError):
            log.exception("a streamed answer failed")
        yield f"data: {json.dumps(_problem(500, _words(exc), 'server_error'))}\n\n"
        return
    for delta in _deltas(message):
        yield event(delta)
    yield event({}, reason)
    if asked.usage:
        yield event(None, usage=_usage(asked, done))
    yield "data: [DONE]\n\n"


def _deltas(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The parts of a message after its role: of each call first the name, then the arguments."""
    for part in ("reasoning_content", "content"):
        if message.get(part):
            yield {part: message[part]}
    for index, call in enumerate(message.get("tool_calls", ())):
        function = call["function"]
        yield {"tool_calls": [{"index": index, **call, "function": {**function, "arguments": ""}}]}
        yield {"tool_calls": [{"index": index, "function": {"arguments": function["arguments"]}}]}


def _message(format: ChatFormat, asked: _Asked, done: Completion, number: int) -> tuple[dict[str, Any], str]:
    """(the assistant's message, why it ends there)."""
    said = format.decode(done.token_ids, calls=asked.calls)
    message: dict[str, Any] = {"role": "assistant", "content": said.content}
    if said.thinking:
        message["reasoning_content"] = said.thinking
    if said.tool_calls:
        calls = [call.to_dict() for call in said.tool_calls]
        for place, call in enumerate(calls):
            call.pop("error", None)
            call["id"] = f"call_{number}_{place}"
        message.update(content=said.content or None, tool_calls=calls)
    cut = done.stop_reason == "length"
    return message, "length" if cut else "tool_calls" if said.tool_calls else "stop"


def _usage(asked: _Asked, done: Completion) -> dict[str, int]:
    prompt, answer = len(asked.prompt), len(done.token_ids)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _messages(body: Mapping[str, Any]) -> list[Message]:
    given = body.get("messages")
    if not isinstance(given, list) or not given or not all(isinstance(m, dict) for m in given):
        raise _Refused("messages must be a list of at least one message")
    try:
        return [Message.from_dict(m) for m in given]
    except (AttributeError, TypeError, ValueError) as exc:
        raise _Refused(f"a message cannot be read: {exc}") from None


def _tools(body: Mapping[str, Any]) -> dict[str, Tool]:
    found, given = {}, body.get("tools") or []
    if not isinstance(given, list):
        raise _Refused("tools must be a list")
    for entry in given:
        try:
            f = entry["function"]
            found[f["name"]] = Tool(
                f["name"], f.get("description", ""), f.get("parameters", {}), "read", dict
            )
        except (KeyError, TypeError, AttributeError):
            raise _Refused("each of tools must be {type: function, function: {name, …}}") from None
    return found


def _number(body: Mapping[str, Any], names: tuple[str, ...], default: float) -> float:
    for name in names:
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _Refused(f"{name} must be a number, not {value!r}")
        return value
    return default


def _words(exc: Exception) -> str:
    return str(exc) if isinstance(exc, MuaError) else "the server failed at this"


def _problem(status: int, text: str, code: str) -> dict[str, Any]:
    """An error as OpenAI writes it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": text, "type": kind, "param": None, "code": code}}


def _error(status: int, text: str, code: str) -> JSONResponse:
    return JSONResponse(_problem(status, text, code), status)
