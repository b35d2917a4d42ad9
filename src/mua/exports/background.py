"""An event loop in a thread, for exports whose callers are synchronous or have a loop of their own (a
notebook).

Invariant: there is one in each process, so that whatever belongs to a loop (connections, engines) stays
usable from call to call; a forked process, which inherits no threads, gets its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_loops: dict[int, asyncio.AbstractEventLoop] = {}


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, or what it raised. An interrupted wait (Ctrl-C) ends the work, too."""
    loop = _loops.get(os.getpid())
    if loop is None:
        fresh = asyncio.new_event_loop()
        loop = _loops.setdefault(os.getpid(), fresh)  # threads that come first together get the same one
        if loop is fresh:
            threading.Thread(target=loop.run_forever, name="mua-episodes", daemon=True).start()
        else:
            fresh.close()
    found = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return found.result()
    except BaseException:
        found.cancel()
        raise
