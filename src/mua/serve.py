"""A model of ours behind the chat API that everybody speaks: `mua serve`.

For other harnesses, and for local endpoints where a page speaks of one. Requests share the engine's
batches, and what they have in common with earlier ones (a system prompt, a conversation so far) is not
computed again.

Invariant: an answer is what the same model would have said in an episode with the same seed of sampling;
whatever a request holds, it gets a JSON answer, and the server goes on.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from .chat import Message
from .engines import Engine, Sampling
from .errors import InfrastructureError, MuaError
from .formats import ChatFormat
from .tools import Tool

MAX_TOKENS = 1024
"""Of an answer, when a request does not say."""


class _Refused(Exception):
    """The request cannot be answered; the words say why."""

    def __init__(self, text: str, code: str = "invalid_request"):
        super().__init__(text)
        self.code = code


def make_app(format: ChatFormat, engine: Engine, name: str) -> Starlette:
    """The application: `/v1/models` and `/v1/chat/completions`, for one model that is called `name`."""
    sessions = itertools.count()

    async def models(request: Request) -> JSONResponse:
        entry = {"id": name, "object": "model", "created": 0, "owned_by": "mua"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def complete(request: Request) -> JSONResponse:
        session = f"request {next(sessions)}"
        work = asyncio.ensure_future(_complete(format, engine, name, await _body(request), session))
        try:
            # Nobody waits for the rest of an answer whose client has gone.
            while not (await asyncio.wait([work], timeout=0.5))[0]:
                if await request.is_disconnected():
                    work.cancel()
                    return _error(499, "the client has gone", "client_closed_request")
            return JSONResponse(work.result())
        finally:
            engine.release(session)

    async def refused(request: Request, exc: Exception) -> JSONResponse:
        return _error(400, str(exc), getattr(exc, "code", "invalid_request"))

    async def failed(request: Request, exc: Exception) -> JSONResponse:
        return _error(500, str(exc), "server_error")

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/chat/completions", complete, methods=["POST"]),
        ],
        exception_handlers={_Refused: refused, MuaError: refused, InfrastructureError: failed},
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


async def _complete(
    format: ChatFormat, engine: Engine, name: str, body: Mapping[str, Any], session: str
) -> dict[str, Any]:
    messages, tools = _messages(body), _tools(body)
    if body.get("stream") or body.get("n") not in (None, 1):
        raise _Refused("this server gives one whole answer: leave stream and n out")
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
        done = await engine.generate(prompt, sampling, session)
    except ValueError as exc:  # settings that mean nothing
        raise _Refused(str(exc)) from None
    said = format.decode(done.token_ids, calls=bool(tools))
    message: dict[str, Any] = {"role": "assistant", "content": said.content}
    if said.thinking:
        message["reasoning_content"] = said.thinking
    if said.tool_calls:
        calls = [call.to_dict() for call in said.tool_calls]
        for number, call in enumerate(calls):
            call.pop("error", None)
            call["id"] = f"call_{session.removeprefix('request ')}_{number}"
        message.update(content=said.content or None, tool_calls=calls)
    cut = done.stop_reason == "length"
    return {
        "id": f"chatcmpl-{session.removeprefix('request ')}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": name,
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": "length" if cut else "tool_calls" if said.tool_calls else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(done.token_ids),
            "total_tokens": len(prompt) + len(done.token_ids),
        },
    }


def _messages(body: Mapping[str, Any]) -> list[Message]:
    given = body.get("messages")
    if not isinstance(given, list) or not given or not all(isinstance(m, dict) for m in given):
        raise _Refused("messages must be a list of at least one message")
    try:
        return [Message.from_dict(m) for m in given]
    except (AttributeError, TypeError, ValueError) as exc:
        raise _Refused(f"a message cannot be read: {exc}") from None


def _tools(body: Mapping[str, Any]) -> dict[str, Tool]:
    found = {}
    for entry in body.get("tools") or ():
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
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _Refused(f"{name} must be a number, not {value!r}")
        return value
    return default


def _error(status: int, text: str, code: str) -> JSONResponse:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse({"error": {"message": text, "type": kind, "code": code}}, status)
