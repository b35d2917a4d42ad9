"""`mua view`: the report of a run that still changes, served from this machine.

Invariants:
- Nothing is written, and no request names a file: a conversation is asked for by its place in an index that
  the server made.
- Who may not read gets nothing: without a token only this machine is listened to, and only under its own
  names, so that a foreign page cannot come in by a name that it lets point here (DNS rebinding); with one,
  every request shows it. Requests that another site's page makes are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hmac
import ipaddress
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ..errors import MuaError
from . import build

POLL_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0
WATCHED = ("*.json", "*.jsonl", "*.yaml", "eval/*.json", "eval/*.jsonl")
"""What the page is made of, in a run folder."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Live:
    """A run folder as it is at the moment; one reading of it serves everybody who looks."""

    def __init__(self, run: Path):
        self.run = run
        self._source = build.Source(run)
        self._reading = asyncio.Lock()
        self._read: tuple[str, str] | None = None
        self._audited = 0
        self._rounds = 0
        """Readings after which there was more to audit: a reading audits for some seconds only."""

    def version(self) -> str:
        """Changes whenever one of the files does; the page's data holds that of what it was made of."""
        found = []
        for path in sorted(path for pattern in WATCHED for path in self.run.glob(pattern)):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((path.name, status.st_ino, status.st_size, status.st_mtime_ns))
        return f"{hash(tuple(found)):x}.{self._rounds}"

    async def data(self) -> str:
        """The page's data as JSON, of the files as they are."""
        async with self._reading:
            version = self.version()
            if self._read is None or self._read[0] != version:
                self._read = version, await asyncio.to_thread(self._collect, version)
            return self._read[1]

    def _collect(self, version: str) -> str:
        data = self._source.collect()
        if self._audited < data["audited"] < data["index"]["n"]:
            self._rounds += 1  # whoever looks is told to read again
        self._audited = data["audited"]
        return build.embed({**data, "version": version})

    async def body(self, source: int, offset: int) -> str | None:
        """One conversation as JSON; None where the index has none."""
        async with self._reading:
            found = await asyncio.to_thread(self._source.body, source, offset)
            return None if found is None else build.embed(found)


def make_app(run: Path, token: str | None = None) -> web.Application:
    """The application: the page, its data, its conversations, and news of changes.

    Without a token, only requests to this machine's own names are answered.
    """
    if not run.is_dir():
        raise MuaError(f"{run} is not a folder, so there is no run to look at; give the folder of a run.")
    live = Live(run)
    news = asyncio.Condition()
    version = live.version()

    async def page(request: web.Request) -> web.StreamResponse:
        if token is not None and "token" in request.query:
            # The address with the token must not stay in the browser's bar and history.
            answer = web.Response(status=303, headers={"Location": request.path})
            answer.set_cookie(_cookie(request), token, httponly=True, samesite="Strict", path="/")
            return answer
        text = build.render(json.loads(await live.data()), live=True)
        return _text(request, text, "text/html")

    async def data(request: web.Request) -> web.StreamResponse:
        return _text(request, await live.data(), "application/json")

    async def conversation(request: web.Request) -> web.StreamResponse:
        found = await live.body(int(request.match_info["source"]), int(request.match_info["offset"]))
        if found is None:
            raise web.HTTPNotFound(text="there is no such conversation in this run")
        return _text(request, found, "application/json")

    async def events(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
        await answer.prepare(request)
        # The first news is what there is: something may have changed since the page was made.
        sent = request.headers.get("Last-Event-ID", "")
        with contextlib.suppress(ConnectionError):
            while True:
                if sent == version:
                    await answer.write(b": still here\n\n")
                else:
                    sent = version
                    await answer.write(f"id: {version}\ndata: {version}\n\n".encode())
                async with news:
                    if sent == version:
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(news.wait(), timeout=HEARTBEAT_SECONDS)
        return answer

    async def watch(app: web.Application) -> AsyncIterator[None]:
        async def look() -> None:
            nonlocal version
            while True:
                await asyncio.sleep(POLL_SECONDS)
                found = await asyncio.to_thread(live.version)
                if found != version:
                    version = found
                    async with news:
                        news.notify_all()

        task = asyncio.create_task(look())
        yield
        task.cancel()

    app = web.Application(middlewares=[_guard(token)])
    app.router.add_get("/", page)
    app.router.add_get("/data.json", data)
    app.router.add_get(r"/conversation/{source:\d{1,9}}/{offset:\d{1,18}}", conversation)
    app.router.add_get("/events", events)
    app.cleanup_ctx.append(watch)
    return app


def _text(request: web.Request, text: str, kind: str) -> web.Response:
    raw = text.encode()
    answer = web.Response(headers=HEADERS, content_type=kind, charset="utf-8", body=raw)
    if len(raw) > 2_000 and "gzip" in request.headers.get("Accept-Encoding", ""):
        answer.body = gzip.compress(raw, 3)
        answer.headers["Content-Encoding"] = "gzip"
    return answer


# ---------------------------------------------------------------- who may read


def _cookie(request: web.Request) -> str:
    """Cookies are shared by all ports of a host, so the port is in the name."""
    return f"mua_view_{urlsplit('//' + request.host).port or 80}"


def _guard(token: str | None) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        reason = _refusal(request, token)
        if reason:
            return web.Response(status=403, text=reason, headers=HEADERS)
        return await handler(request)

    return guard


def _refusal(request: web.Request, token: str | None) -> str:
    """Why this request is not answered; empty when it is."""
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != request.host.lower():
        return "requests from the pages of other sites are not answered"
    navigates = request.path == "/" and request.headers.get("Sec-Fetch-Dest") == "document"
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin") and not navigates:
        return "requests from the pages of other sites are not answered"
    if token is None:
        try:
            name = urlsplit("//" + request.host).hostname
        except ValueError:
            name = None
        if name is None or not is_local(name):
            return "without a token, this server answers to localhost, 127.0.0.1 and [::1] only"
        return ""
    shown = request.query.get("token") or request.cookies.get(_cookie(request), "")
    if not hmac.compare_digest(shown.encode(errors="replace"), token.encode()):
        return "open the address that `mua view` printed, with its token"
    return ""


def is_local(host: str) -> bool:
    """Whether that is a name of this machine that no other machine reaches."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# ---------------------------------------------------------------- serving


@contextlib.asynccontextmanager
async def serving(run: Path, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serves the run; gives the address to open, with a token where other machines can reach it.

    Raises MuaError when the address cannot be listened on.
    """
    token = None if is_local(host) else secrets.token_urlsafe(24)
    runner = web.AppRunner(make_app(run, token), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as exc:
            raise MuaError(
                f"{host}:{port} cannot be listened on ({exc.strerror or exc}); choose another --port (0 "
                "takes a free one) or --host."
            ) from None
        yield _address(runner, host, token)
    finally:
        await runner.cleanup()


def _address(runner: web.AppRunner, host: str, token: str | None) -> str:
    port = runner.addresses[0][1]
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")
