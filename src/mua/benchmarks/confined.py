"""Bounds for a benchmark's own functions that run in mua's own process: τ²-bench's.

They are pure functions over dictionaries, from an archive with a pinned hash, and a call of one takes less
than its way to another process and back. So they stay here, and what they have no use for is taken away.

Invariants:
- Code below a confined folder, and whatever it calls, writes no file, opens no socket, starts no program,
  loads no library: it gets a PermissionError. Other code of the process is not affected.
- A call by `limited` ends after so much CPU time of its thread, with a TimeoutError.

It is no sandbox: code that set out to get around it could. Memory and the reading of files are not bounded.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from .bfcl.child import refused

T = TypeVar("T")
SECONDS = 10.0
"""CPU time of one call; it takes a thousandth of a second, or less."""
_LOOKS = 0.5
"""Seconds between two looks at the calls that are running."""
_IDLE = 20
"""Looks without a call after which nobody looks any more, until there is one."""
_PACKAGE = str(Path(__file__).resolve().parents[1]) + os.sep
_FINALIZER = weakref.finalize.__call__.__code__
_folders: list[str] = []


# ---------------------------------------------------------------- what is out of reach


def confine(folder: Path) -> None:
    """From now on, code in files of this folder reaches nothing outside the process."""
    place = str(folder) + os.sep
    if place in _folders:
        return
    if not _folders:
        sys.addaudithook(_audit)
    _folders.append(place)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    words = refused(event, args)
    if words and _asked_by_confined(sys._getframe(1)):
        raise PermissionError(words)


def _asked_by_confined(frame: FrameType | None) -> bool:
    """Going out from where it is asked, confined code comes before mua's, which is nearer where a signal is
    handled, and before a finalizer, which the collector runs wherever it likes."""
    folders = tuple(_folders)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(folders):
            return True
        if name.startswith(_PACKAGE) or frame.f_code is _FINALIZER:
            return False
        frame = frame.f_back
    return False


# ---------------------------------------------------------------- how long a call may take


class _Late(BaseException):
    """Raised in the thread of a call that takes too long; no `except Exception` on the way keeps it."""


class _Running:
    """A call that is limited, from the first look at it: to ask for the time at each would cost more than
    many a call does."""

    __slots__ = ("ended", "seconds", "until")

    def __init__(self, seconds: float):
        self.seconds, self.until, self.ended = seconds, 0.0, False

    def over(self, thread: int) -> bool:
        """It has had its time."""
        now = time.clock_gettime(time.pthread_getcpuclockid(thread))
        self.until = self.until or now + self.seconds
        return now > self.until


class _Watch:
    """The calls that are running, by thread, and the thread that ends them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: dict[int, _Running] = {}
        self._looking = False

    def begin(self, me: int, call: _Running) -> None:
        with self.lock:
            self.running[me] = call
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look, name="mua-limits", daemon=True).start()

    def end(self, me: int, call: _Running) -> None:
        with self.lock:
            self.running.pop(me, None)
            if call.ended:  # it may still be on its way
                _set_exception(me, None)

    def _look(self) -> None:
        idle = 0
        while True:
            time.sleep(_LOOKS)
            with self.lock:
                for thread, call in self.running.items():
                    if not call.ended and call.over(thread):
                        call.ended = True
                        _set_exception(thread, _Late)
                idle = 0 if self.running else idle + 1
                if idle >= _IDLE:
                    self._looking = False
                    return


def _set_exception(thread: int, kind: type[BaseException] | None) -> None:
    """Raises an exception in another thread, or takes back the one that has not been raised yet."""
    what = None if kind is None else ctypes.py_object(kind)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)


_watch = _Watch()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_watch.__init__)  # its thread is not there any more


def limited(function: Callable[[], T], seconds: float = SECONDS) -> T:
    """What the function returns; it may take so much CPU time of this thread. Raises TimeoutError when it
    takes more. Within another one the outer limit holds; what Python cannot interrupt ends when it returns.
    """
    me = threading.get_ident()
    if me in _watch.running or not hasattr(time, "pthread_getcpuclockid"):
        return function()
    call = _Running(seconds)
    try:
        _watch.begin(me, call)
        try:
            return function()
        finally:
            _watch.end(me, call)
    except _Late:
        _watch.end(me, call)  # it came on the way out
        raise TimeoutError(f"the call took more than {seconds:g} s of CPU time") from None
