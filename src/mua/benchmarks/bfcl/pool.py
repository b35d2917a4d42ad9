"""The processes that upstream's backends run in, seen from outside.

Invariants:
- A request gets a reply, or an exception that says whose fault it was: `Exceeded` when what it asked to
  run was too much, `InfrastructureError` when the machine or the installation is out of order. It never
  hangs.
- A process serves one request at a time and is handed on; one that died is replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import InfrastructureError

SECONDS = 2.0
"""CPU time of one request; an entry takes a few thousandths of it."""
MEMORY = 1 << 30
"""Bytes of address space."""
_PATIENCE = 120.0
"""Seconds on the clock before a silent process is given up: CPU time is what normally ends it."""
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TZ")
"""What a process is told of the environment; no keys, no tokens."""


class Exceeded(Exception):
    """The request took too much time or memory, or brought down the process each time it was tried."""


class _Died(Exception):
    """The process ended; negative numbers are signals."""

    def __init__(self, code: int | None, words: str = ""):
        super().__init__(words or f"exit code {code}")
        self.code = code


class Child:
    """One process. Not for two threads at once."""

    def __init__(self, command: Sequence[str]):
        environment = {k: os.environ[k] for k in _KEPT if k in os.environ}
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**environment, "PYTHONHASHSEED": "0"},
                start_new_session=True,  # Ctrl-C in the terminal is not for it
            )
        except OSError as exc:
            raise InfrastructureError(f"the process for BFCL's backends cannot be started: {exc}") from exc
        assert self._process.stdout is not None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        try:
            self._reply(_PATIENCE)
        except _Died as exc:
            said = self._last_words()
            raise InfrastructureError(
                f"the process for BFCL's backends ended as it started ({exc}); it said: {said or 'nothing'}. "
                "Install the benchmark again (`mua benchmarks install`), or free some memory."
            ) from None

    @property
    def id(self) -> int:
        return self._process.pid

    def ask(self, request: Mapping[str, Any], patience: float = _PATIENCE) -> dict[str, Any]:
        """The reply. Raises _Died when the process ends instead, or says nothing for so long."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except (BrokenPipeError, ValueError):
            raise _Died(self._ended()) from None
        return self._reply(patience)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _reply(self, patience: float) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        deadline = time.monotonic() + patience
        parts: list[bytes] = []
        while not parts or not parts[-1].endswith(b"\n"):  # a reply is one line, and nothing follows it
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                self._process.kill()
                raise _Died(None, f"silent for {patience:.0f} seconds")
            part = os.read(stdout.fileno(), 1 << 20)
            if not part:
                raise _Died(self._ended())
            parts.append(part)
        return json.loads(b"".join(parts).decode())

    def _ended(self) -> int | None:
        try:
            return self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _last_words(self) -> str:
        stderr = self._process.stderr
        lines = stderr.read().decode(errors="replace").strip().splitlines() if stderr else []
        return lines[-1][:300] if lines else ""


class Pool:
    """As many processes as there are requests at once; they are kept for the next ones."""

    def __init__(self, folder: Path, prefix: str, seconds: float = SECONDS, memory: int = MEMORY):
        script = Path(__file__).with_name("child.py")
        # -P, -s: nothing of the current folder or of the user's own packages is importable.
        self._command = [sys.executable, "-P", "-s", "-B", "-W", "ignore", str(script)]
        self._command += [str(folder), prefix, str(seconds), str(memory)]
        self.seconds = seconds
        self._idle: list[Child] = []
        self._lock = threading.Lock()
        self._owner = os.getpid()
        weakref.finalize(self, _close, self._idle, self._owner)

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a request (child.Server.answer). Raises Exceeded and InfrastructureError."""
        died: list[_Died] = []
        while len(died) < 2:  # twice: somebody else may have ended the first
            child = self._take()
            try:
                reply = child.ask(request)
            except _Died as exc:
                child.close()
                if exc.code == -_PROFILED:
                    raise Exceeded(f"more than {self.seconds:g} s of CPU time") from None
                died.append(exc)
                continue
            except BaseException:
                child.close()  # its reply would be taken for the next one's
                raise
            if "exceeded" in reply:
                child.close()
                raise Exceeded(reply["exceeded"])
            with self._lock:
                self._idle.append(child)
            if "failed" in reply:
                raise InfrastructureError(f"BFCL's backends are out of order: {reply['failed']}")
            return reply
        if any(d.code is None for d in died):
            raise InfrastructureError(f"the process for BFCL's backends does not answer: {died[-1]}")
        raise Exceeded(f"it ended the process ({died[-1]})")

    @property
    def processes(self) -> list[int]:
        """Ids of the processes that wait for a request."""
        with self._lock:
            return [child.id for child in self._idle]

    def close(self) -> None:
        """Ends the processes that are idle; others are started when there is something to do."""
        with self._lock:
            _close(self._idle, self._owner)

    def _take(self) -> Child:
        with self._lock:
            if self._owner != os.getpid():  # after a fork: those pipes are the parent's
                self._idle.clear()
                self._owner = os.getpid()
            if self._idle:
                return self._idle.pop()
        return Child(self._command)


def _close(idle: list[Child], owner: int) -> None:
    while idle and os.getpid() == owner:
        idle.pop().close()


_PROFILED = int(getattr(signal, "SIGPROF", 0))
"""SIGPROF, by which the system ends a process that has used up its CPU time."""
