"""Servers that speak the Model Context Protocol, kept in a pool, each with a folder for the state.

`Courier` runs the SDK in one background thread with an event loop, because a world's calls are plain
calls. `Server` is a process (or an address) with its session. `Pool` hands servers to episodes: a server
works for one `Session` (one episode's state) at a time, and changes over by moving folders.

Invariants:
- What an episode does to its state is seen by no other episode: each has a folder of its own, which
  stands in the server's place only while the server works for that episode.
- A request gets an answer, or an InfrastructureError; it never hangs. After one, the server is given up
  and its session is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import posixpath
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypeVar
from urllib.parse import urlsplit

from ...errors import InfrastructureError, MuaError
from ...redaction import secret_forms
from ...runfolder import REDACTED, SHORTEST_SECRET, is_secret_name, take_lock

log = logging.getLogger(__name__)
T = TypeVar("T")
_PREFIX = "mua-mcp-"
"""Of the folders of pools, among the system's temporary files."""
_OWNER = ".owner"
"""A file in each that its process has locked."""
_CLOSED = "Connection closed"
"""The SDK's answer to a request when the connection ends; servers use its code for other things."""


@dataclass(frozen=True)
class Start:
    """How a server is started, or where it is."""

    command: tuple[str, ...] = ()
    """Program and arguments, with `{state}` for the folder of the state and `{port}` for a free port."""
    url: str = ""
    """Where it is reached over HTTP (`{port}` as above); over its standard input and output without one."""
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    timeout: float = 30.0
    """Seconds for one request."""
    start_timeout: float = 120.0
    """Seconds until it has started (`npx` may have to fetch it first)."""

    def redact(self, text: str) -> str:
        """A text of the server without the secrets in its environment: it may repeat them in its answers."""
        for name, value in self.env.items():
            if is_secret_name(name) and len(value) >= SHORTEST_SECRET:
                for form in secret_forms(value):
                    text = text.replace(form, REDACTED)
        return text


@dataclass(frozen=True)
class Answer:
    text: str
    error: bool


@dataclass(frozen=True)
class View:
    """Where the other side sees the state: its real place differs from server to server."""

    root: str = "/data"
    names: tuple[str, ...] = ()
    """The arguments that are paths; nothing else is touched, so contents stay what they are."""

    def problem(self, arguments: Mapping[str, Any]) -> str:
        """What is wrong with a path, or ""."""
        for name, path in self._paths(arguments):
            inner = posixpath.normpath(posixpath.join(self.root, path))
            if inner != self.root and not inner.startswith(f"{self.root}/"):
                return f"'{name}': {path!r:.100} is not in {self.root}"
        return ""

    def inward(self, arguments: Mapping[str, Any], place: Path | None) -> dict[str, Any]:
        """The arguments as the server is sent them."""
        if place is None or not self.names:
            return dict(arguments)

        def real(path: Any) -> Any:
            if isinstance(path, list):
                return [real(p) for p in path]
            if not isinstance(path, str):
                return path
            inner = posixpath.normpath(posixpath.join(self.root, path))
            return f"{place}{inner[len(self.root) :]}"

        return {k: real(v) if k in self.names else v for k, v in arguments.items()}

    def outward(self, text: str, place: Path | None) -> str:
        """A text of the server as the other side reads it."""
        return text if place is None else text.replace(str(place), self.root)

    def _paths(self, arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        for name in self.names:
            value = arguments.get(name)
            yield from (
                (name, p) for p in (value if isinstance(value, list) else [value]) if isinstance(p, str)
            )


def program(command: str) -> str | None:
    """Where the program is: beside this Python first, as nobody has to have activated its environment."""
    beside = shutil.which(command, path=str(Path(sys.executable).parent))
    return beside or shutil.which(command)


# ---------------------------------------------------------------- one server


class Courier:
    """The thread in which the SDK runs."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self._live, name="mua-mcp", daemon=True).start()
        # Lines that are no messages are reported as exceptions; the SDK prints them as well.
        logging.getLogger("mcp").addHandler(logging.NullHandler())

    def _live(self) -> None:
        self.loop.run_forever()
        self.loop.close()  # its sockets would outlive it

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for something that the thread does. The work limits its own time."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()


class Connection:
    """A session of the SDK. Its methods run in the courier's thread."""

    def __init__(self, name: str, start: Start, place: Path | None, folder: Path):
        self.name = name
        self._start, self._place, self._folder = start, place, folder
        self._log = folder / "stderr.txt"
        self._stop = asyncio.Event()
        self._broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._session: Any = None
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Starts the server. Raises InfrastructureError when it does not come up."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(ready))
        await self._first(ready, self._start.start_timeout, "does not start")

    async def tools(self) -> list[dict[str, Any]]:
        """What the server says of its tools."""
        found: list[dict[str, Any]] = []
        cursor = None
        while True:
            listed = (await self._ask(self._session.list_tools(cursor))).model_dump(
                by_alias=True, mode="json"
            )
            found += listed["tools"]
            cursor = listed.get("nextCursor")
            if cursor is None:
                return found

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Answer:
        """The answer to a call, an error of the tool's included."""
        from mcp import McpError

        try:
            result = await self._ask(self._session.call_tool(name, dict(arguments)))
        except McpError as exc:  # the server's answer: it could not make sense of the call
            return Answer(self._start.redact(f"Error: {exc}"), True)
        said = result.model_dump(by_alias=True, mode="json")
        parts = [p["text"] if p["type"] == "text" else f"[{p['type']}]" for p in said["content"]]
        return Answer(self._start.redact("\n".join(parts)), bool(said["isError"]))

    async def close(self) -> None:
        """Ends the session and the process; returns at once."""
        self._stop.set()
        if self._task is not None and self._session is None:  # it waits for a server that does not come up
            self._task.cancel()

    @property
    def ended(self) -> bool:
        return self._task is not None and self._task.done()

    async def closed(self) -> None:
        """Waits until it has ended."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=10)

    async def _ask(self, request: Coroutine[Any, Any, T]) -> T:
        from mcp import McpError

        try:
            return await self._first(asyncio.ensure_future(request), self._start.timeout, "does not answer")
        except (InfrastructureError, McpError) as exc:
            if isinstance(exc, InfrastructureError) or str(exc) != _CLOSED:
                raise
            await asyncio.wait([self._broken], timeout=0.5)  # why it is gone, if that is known in a moment
            why = self._broken.result() if self._broken.done() else f"is gone: {exc}"
            raise self._failed(why) from None
        except Exception as exc:  # an answer that breaks the protocol
            raise self._failed(f"sends what is no answer: {exc}") from exc

    async def _first(self, wanted: asyncio.Future[T], seconds: float, what: str) -> T:
        """`wanted`, unless the connection breaks or time is up before."""
        await asyncio.wait({wanted, self._broken}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if wanted.done() and not self._broken.done():
            return wanted.result()
        wanted.cancel()
        why = self._broken.result() if self._broken.done() else f"{what} within {seconds:g} seconds"
        raise self._failed(why)

    def _failed(self, why: str) -> InfrastructureError:
        with contextlib.suppress(OSError):
            said = self._log.read_text(errors="replace").strip().splitlines()
            why += f"; it said: {said[-1][:300]}" if said else ""
        return InfrastructureError(self._start.redact(f"the MCP server of '{self.name}' {why}"))

    async def _live(self, ready: asyncio.Future[None]) -> None:
        """The whole life of the connection: the SDK wants one task to open and close it."""
        from mcp import ClientSession

        async def heard(message: Any) -> None:
            if isinstance(message, Exception):
                self._break(f"sends what is no message: {_short(message)}")

        try:
            async with (
                self._streams() as (read, write),
                ClientSession(read, write, message_handler=heard) as it,
            ):
                await it.initialize()
                self._session = it
                ready.set_result(None)
                await self._stop.wait()
            self._break("was closed")
        except Exception as exc:
            self._break(f"is gone: {_short(exc)}")
        except BaseException:
            self._break("was closed")
            raise

    def _break(self, why: str) -> None:
        if not self._broken.done():
            self._broken.set_result(why)

    @contextlib.asynccontextmanager
    async def _streams(self) -> AsyncIterator[tuple[Any, Any]]:
        """What a session reads from and writes to."""
        from mcp import StdioServerParameters
        from mcp.client.stdio import stdio_client
        from mcp.client.streamable_http import streamable_http_client

        start, port = self._start, _free_port() if "{port}" in self._start.url else 0
        command = [_filled(part, self._place, port) for part in start.command]
        if command:
            command[0] = program(command[0]) or command[0]
        env = {"PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))}
        env |= {name: _filled(value, self._place, port) for name, value in start.env.items()}
        cwd = start.cwd or str(self._folder)
        with self._log.open("w") as log:
            if not start.url:
                parameters = StdioServerParameters(command=command[0], args=command[1:], env=env, cwd=cwd)
                async with stdio_client(parameters, errlog=log) as (read, write):
                    yield read, write
                return
            url = _filled(start.url, self._place, port)
            with _process(command, env, cwd, log) as process:
                if process is not None:
                    await _listening(urlsplit(url).port or 80, process)
                async with streamable_http_client(url, terminate_on_close=process is None) as streams:
                    yield streams[0], streams[1]


def _short(exc: BaseException) -> str:
    """The first real exception of a group, in a line."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return f"{type(exc).__name__}: {' '.join(str(exc).split())[:200]}"


def _filled(text: str, place: Path | None, port: int) -> str:
    return text.replace("{state}", str(place or "")).replace("{port}", str(port))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def _process(command: Sequence[str], env: Mapping[str, str], cwd: str, log: Any) -> Iterator[Any]:
    """A server that is reached over HTTP, if it is ours to start."""
    from mcp.client.stdio import get_default_environment

    if not command:
        yield None
        return
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**get_default_environment(), **env},
        cwd=cwd,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # with what it has started; its state is no longer of interest
        process.wait()


async def _listening(port: int, process: subprocess.Popen[bytes]) -> None:
    """Waits until somebody answers at the port; whoever calls limits the time."""
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        if process.poll() is not None:
            raise OSError(f"it ended with exit code {process.returncode}")
        await asyncio.sleep(0.02)


# ---------------------------------------------------------------- many


class Session:
    """The state of one episode, and what was done to it."""

    _numbers = itertools.count()

    def __init__(self, parked: Path, prepare: Callable[[Path], None]):
        self.parked = parked / str(next(self._numbers))
        """Where the state is while no server works on it."""
        self.prepare = prepare
        """Makes the initial state at a path."""
        self.server: Server | None = None
        self.calls: list[tuple[str, Mapping[str, Any]]] = []
        self.lost = ""
        """Why it cannot go on."""
        self._made = False

    def where(self) -> Path:
        """The state as it is now."""
        if self.server is not None:
            assert self.server.place is not None
            return self.server.place
        if not self._made:
            self.prepare(self.parked)
            self._made = True
        return self.parked

    def forget(self) -> None:
        """Back to before the beginning: the state is made anew when it is wanted."""
        _remove(self.parked)
        self._made = False


class Server:
    """One server of a pool, and whose state it works on."""

    def __init__(self, pool: Pool, number: int):
        self._pool = pool
        self.folder = pool.folder / f"server{number}"
        self.folder.mkdir()
        self.place = pool.place or (self.folder / "state" if pool.stateful else None)
        self.session: Session | None = None
        self.busy = False
        self.used = 0.0
        self._connection: Connection | None = None

    def take(self, session: Session) -> None:
        """Lets `session` be the one whose state it works on."""
        if self.session is session:
            return
        self.put_away()
        if self.place is not None:
            state = session.where()
            _remove(self.place)
            shutil.move(state, self.place)
            session.server = self
        self.session = session
        if self._pool.restart:
            self._again(session)

    def put_away(self) -> None:
        """Gives the state back to the session that it worked for."""
        session, self.session = self.session, None
        if session is None:
            return
        if session.server is self:
            session.server = None
            assert self.place is not None
            shutil.move(self.place, session.parked)
        if self._pool.restart:  # its memory is lost: the calls are made again
            session.forget()

    def call(self, name: str, arguments: Mapping[str, Any]) -> Answer:
        """The answer to a call, both as the agent sees things."""
        view = self._pool.view
        sent = view.inward(arguments, self.place)
        answer = self._pool.courier.run(self._connected().call(name, sent))
        return Answer(view.outward(answer.text, self.place), answer.error)

    def attempt(
        self, name: str, arguments: Mapping[str, Any], errors: re.Pattern[str] | None, *, writes: bool
    ) -> Answer:
        """A call of the session's; one that fails, as the server or `errors` (a pattern of answers) says, is
        undone."""
        assert self.session is not None
        before = _traces(self.place) if writes else None
        answer = self.call(name, arguments)
        if errors is not None and errors.search(answer.text):
            answer = Answer(answer.text, True)
        if not answer.error:
            self.session.calls.append((name, arguments))
        elif before is not None and _traces(self.place) != before:
            self._again(self.session)
        return answer

    def _again(self, session: Session) -> None:
        """Makes the state again, from the beginning and the calls that did not fail. Few calls change
        something and fail, so this is cheaper than to keep a copy before each."""
        if self.place is not None:
            _remove(self.place)
            session.prepare(self.place)
        if self._pool.restart:
            self.stop(wait=True)
        for name, arguments in session.calls:
            self.call(name, arguments)

    def tools(self) -> list[dict[str, Any]]:
        """What the server says of its tools."""
        said = json.dumps(self._pool.courier.run(self._connected().tools()))
        return json.loads(self._pool.view.outward(said, self.place))

    def stop(self, wait: bool = False) -> None:
        """Ends the process; the next request starts another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.courier.run(connection.close())
            if wait:
                self._pool.courier.run(connection.closed())

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._pool.courier.run(self._open())
        return self._connection

    async def _open(self) -> Connection:
        connection = Connection(self._pool.name, self._pool.start, self.place, self.folder)
        opened = self._pool.connections
        opened[:] = [connection, *(c for c in opened if not c.ended)]
        try:
            await connection.open()
        except BaseException:
            await connection.close()
            raise
        return connection


class Pool:
    """The servers of a domain.

    `place` is where the state is when the server is somebody else's; of our own servers each has a place
    in its folder. `make` lays the initial state to a path; without one the servers have no state. With
    `restart` a server is started anew for each episode (it remembers things outside its state).
    """

    def __init__(
        self,
        name: str,
        start: Start,
        make: Callable[[Path], None] | None,
        *,
        view: View = View(),
        size: int = 1,
        restart: bool = False,
        place: Path | None = None,
    ):
        self.name, self.start, self.view, self.restart, self.size = name, start, view, restart, size
        self.stateful = make is not None
        self.make = make or (lambda path: None)
        self.place = place
        remove_stale(Path(tempfile.gettempdir()))
        # The real path: servers resolve links, and their answers are searched for it.
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()
        held = _claim(self.folder)
        self.parked = self.folder / "parked"
        self.parked.mkdir()
        self.courier = Courier()
        self._servers: list[Server] = []
        self._numbers = itertools.count()
        self._free = threading.Condition()
        self._owner = os.getpid()
        self.connections: list[Connection] = []
        """All that have not ended, also those given up: a server that hangs takes some seconds to end."""
        self._finalizer = weakref.finalize(
            self, _close, self.connections, self.courier, self.folder, held, place, self._owner
        )
        self.kept = self.folder / "kept"
        """What was at somebody else's place; it is put back in the end."""
        if place is not None and place.exists():
            shutil.copytree(place, self.kept, symlinks=True)

    def session(self, prepare: Callable[[Path], None]) -> Session:
        """A fresh state for one episode; nothing is made before it is used."""
        return Session(self.parked, prepare)

    @contextlib.contextmanager
    def working(self, session: Session) -> Iterator[Server]:
        """A server that works on this session's state. Raises InfrastructureError when that is lost."""
        if session.lost:
            raise InfrastructureError(session.lost)
        if self._owner != os.getpid() or not self._finalizer.alive:
            raise MuaError(f"the servers of '{self.name}' are closed, or another process's; load it again.")
        server = self._take(session)
        try:
            server.take(session)
            yield server
        except BaseException as exc:
            # What it still writes or says belongs to nobody: its folder is not used again.
            session.lost = str(exc) or type(exc).__name__
            server.stop()
            server.put_away()
            if self.place is None:
                with self._free:
                    self._servers.remove(server)
            raise
        finally:
            with self._free:
                server.busy = False
                self._free.notify_all()

    def tools(self) -> list[dict[str, Any]]:
        """The tools as a server describes them. Raises InfrastructureError."""
        session = self.session(self.make)
        try:
            with self.working(session) as server:
                return server.tools()
        finally:
            self.end(session)

    def end(self, session: Session) -> None:
        """The episode is over: its state is removed."""
        session.lost = session.lost or "the episode is over"
        with self._free:
            for server in self._servers:
                if server.session is session and not server.busy:
                    server.session = None
        _remove(session.parked)

    def close(self) -> None:
        """Ends all servers and removes their folders."""
        self._finalizer()

    def _take(self, session: Session) -> Server:
        """The server that has the session's state, else an idle one, a new one, or the one that has waited
        longest for its episode to go on."""
        with self._free:
            while True:
                own = next((s for s in self._servers if s.session is session), None)
                idle = [own] if own else [s for s in self._servers if not s.busy]
                vacant = next((s for s in idle if s.session is None or s is own), None)
                if vacant is None and own is None and len(self._servers) < self.size:
                    vacant = Server(self, next(self._numbers))
                    self._servers.append(vacant)
                chosen = vacant or min(idle, key=lambda s: s.used, default=None)
                if chosen is not None and not chosen.busy:
                    chosen.busy, chosen.used = True, time.monotonic()
                    return chosen
                self._free.wait()


def _claim(folder: Path) -> TextIO:
    """Marks a folder as that of a process that lives: with a lock, which the system lets go when it ends."""
    held = take_lock(folder / ".claimed", f"{folder} is somebody else's.")
    os.rename(folder / ".claimed", folder / _OWNER)  # it is never there without being locked
    return held


def remove_stale(root: Path) -> None:
    """Removes the folders of this user's pools whose processes were killed. One that keeps what stood in the
    place of somebody else's server is told of instead: there is no other copy."""
    for folder in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, MuaError):  # others remove, too; and who holds its lock is alive
            about = folder.lstat()
            owner = folder / _OWNER
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or owner.is_symlink():
                continue
            if not owner.is_file():
                continue
            with take_lock(owner, ""):
                if (folder / "kept").exists():
                    log.warning(
                        "%s/kept is what stood in the place of an MCP server's state before a process was "
                        "killed; put it back where it was, and remove the folder.",
                        folder,
                    )
                else:
                    shutil.rmtree(folder, ignore_errors=True)


def _close(
    connections: list[Connection],
    courier: Courier,
    folder: Path,
    held: TextIO,
    place: Path | None,
    owner: int,
) -> None:
    if os.getpid() != owner:  # after a fork: they are the parent's
        return
    for connection in connections:
        courier.run(connection.close())
    for connection in connections:
        courier.run(connection.closed())
    if place is not None and (folder / "kept").exists():
        _remove(place)
        shutil.move(folder / "kept", place)
    shutil.rmtree(folder, ignore_errors=True)
    held.close()
    courier.loop.call_soon_threadsafe(courier.loop.stop)


def _traces(place: Path | None) -> dict[str, tuple[int, ...]] | None:
    """By what one sees that something was written there; None where there is no state."""
    if place is None:
        return None
    found = {}
    for folder, folders, files in os.walk(place):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            at = os.lstat(path)
            found[path] = (at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_mode)
    return found


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
