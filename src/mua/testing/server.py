"""A real HTTP server on 127.0.0.1 that speaks the chat API and misbehaves as told.

It is given a function from request to `Reply`, or a list of replies that are used up in order (the last one
stays). Faults are real ones: sockets are reset, bodies are cut, answers never come.
"""

from __future__ import annotations

import http.server
import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Reply:
    body: str = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    reset: bool = False
    """Close the connection with a TCP reset instead of answering."""
    stall: bool = False
    """Never answer, until the server closes."""
    after: float = 0.0
    """Seconds before it is answered."""
    cut: bool = False
    """Promise the whole body, send half of it, hang up."""
    drip: bool = False
    """Send a byte now and then, so that no single read ever takes long."""


def chat(
    text: str | None = None,
    calls: Sequence[tuple[str, Any]] = (),
    finish: str | None = None,
    usage: tuple[int, int] = (10, 5),
    **message: Any,
) -> Reply:
    """A chat completion; each call is (name, arguments), as a mapping or as raw text."""
    if calls:
        message["tool_calls"] = [
            {
                "id": f"c{i}",
                "type": "function",
                "function": {"name": name, "arguments": a if isinstance(a, str) else json.dumps(a)},
            }
            for i, (name, a) in enumerate(calls)
        ]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": finish or ("tool_calls" if calls else "stop"),
    }
    return Reply(
        json.dumps(
            {
                "id": "x",
                "object": "chat.completion",
                "choices": [choice],
                "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]},
            }
        )
    )


def error(status: int, text: str, **headers: str) -> Reply:
    """An error in OpenAI's form; `retry_after="1"` becomes the header `retry-after`."""
    body = json.dumps({"error": {"message": text, "type": "error"}})
    return Reply(body, status, {k.replace("_", "-"): v for k, v in headers.items()})


class FakeServer:
    """Use as a context manager; `url` is the base_url."""

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], Reply] | Sequence[Reply],
        *,
        stall: float = 60.0,
        keep: bool = True,
    ):
        """`stall` is how many seconds a stalled answer takes before its connection is reset; without `keep`,
        `requests`, `paths` and `headers` stay empty."""
        replies = None if callable(answer) else list(answer)
        self._answer = answer if callable(answer) else None
        self._replies = replies
        self.requests: list[dict[str, Any]] = []
        """Bodies, in order of arrival."""
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = 0
        self.max_in_flight = 0
        self.lock = threading.Lock()
        self._closing = threading.Event()
        self._stall, self._keep = stall, keep
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format, *args):
                pass

            def do_POST(self):
                server._serve(self)

            def do_GET(self):
                server._serve(self)

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                pass  # a client that is killed resets its connections

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def reply(self, path: str, body: dict[str, Any]) -> Reply:
        """What is answered; a server with several paths has its own."""
        assert self._answer is not None
        return self._answer(body)

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()

    def _serve(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers.get("content-length") or 0)) or b"{}")
        with self.lock:
            if self._keep:
                self.requests.append(body)
                self.paths.append(request.path)
                self.headers.append({k.lower(): v for k, v in request.headers.items()})
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
            reply = None
            if self._replies is not None:
                reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        try:
            if reply is None:
                reply = self.reply(request.path, body)
        finally:
            with self.lock:
                self.in_flight -= 1
        if reply.after:
            self._closing.wait(reply.after)
        if reply.stall:
            self._closing.wait(self._stall)
            reply = Reply(reset=True)
        if reply.reset:
            linger = struct.pack("ii", 1, 0)
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            request.close_connection = True
            request.connection.close()
            return
        data = reply.body.encode()
        request.send_response(reply.status)
        request.send_header("content-type", reply.content_type)
        request.send_header("content-length", str(len(data)))
        for name, value in reply.headers.items():
            request.send_header(name, value)
        request.end_headers()
        for i in range(len(data) if reply.drip else 0):
            try:
                request.wfile.write(data[i : i + 1])
            except OSError:  # the client has given up
                return
            self._closing.wait(0.01)
        if reply.drip:
            return
        request.wfile.write(data[: len(data) // 2] if reply.cut else data)
        if reply.cut:
            request.close_connection = True
