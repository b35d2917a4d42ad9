"""`mua` with a fault plan put under it: engine, tool servers, disk, clock, and what ends the process.

    python -m mua.testing.child PLAN FOLDER START -- MUA'S OWN ARGUMENTS

START is how many of the plan's interruptions have come: it decides which comes next. The user's
faults are the endpoint's own (`people`).
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import errno
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..seeds import derive_seed
from .plan import Dice, FaultPlan, append, read_plan


def main() -> None:
    plan_path, folder, start, _, *arguments = sys.argv[1:]
    plan, place = read_plan(Path(plan_path)), Path(folder)
    if plan.engine.rate:
        spoil_engine(Dice(plan, "engine", place))
    pass_by = spoil_clock(Dice(plan, "clock", place), plan.seed) if plan.clock.rate else None
    spoil_disk(plan, place, int(start), pass_by)
    from .. import cli

    sys.argv = ["mua", *arguments]
    with spoil_tools(Path(plan_path).resolve(), place) if plan.tools.rate else contextlib.nullcontext():
        cli.main()


@contextlib.contextmanager
def spoil_tools(plan: Path, folder: Path) -> Iterator[None]:
    """Every MCP server over standard input and output is started behind `mcp_proxy`, from now on."""
    from ..domains.mcp import servers

    proxy = (sys.executable, "-m", "mua.testing.mcp_proxy", str(plan), str(folder), "--")
    real = servers.Connection.__init__

    def init(self: Any, name: str, start: servers.Start, *rest: Any) -> None:
        if not start.url:
            first = servers.program(start.command[0]) or start.command[0]
            start = dataclasses.replace(start, command=(*proxy, first, *start.command[1:]))
        real(self, name, start, *rest)

    servers.Connection.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        servers.Connection.__init__ = real  # type: ignore[method-assign]


def spoil_engine(dice: Dice) -> None:
    """Generations are aborted, get logits that are no numbers, or find no memory."""
    import torch

    from ..engines.slots import SlotEngine
    from ..errors import InfrastructureError

    generate, forward, draw = SlotEngine.generate, SlotEngine._forward, SlotEngine._draw
    unsound: set[str] = set()
    """Sessions whose next logits are no numbers."""
    short: list[str] = []
    """One entry for each forward that will find no memory."""

    async def spoiled(self: Any, prompt_ids: Any, sampling: Any, session: str) -> Any:
        kind = dice.draw([session, len(prompt_ids)])
        if kind == "abort":
            raise InfrastructureError("The request was aborted by the engine.")
        if kind == "not_finite":
            unsound.add(session)
        if kind == "out_of_memory":
            short.append(session)
        return await generate(self, prompt_ids, sampling, session)

    def spoiled_forward(self: Any, *rest: Any) -> Any:
        if short:
            short.pop()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, *rest)

    def spoiled_draw(self: Any, logits_NV: Any, requests: Any) -> Any:
        bad = [n for n, request in enumerate(requests) if request.session in unsound]
        if bad:
            logits_NV = logits_NV.clone()
            logits_NV[bad] = float("nan")
            unsound.difference_update(requests[n].session for n in bad)
        return draw(self, logits_NV, requests)

    SlotEngine.generate, SlotEngine._forward = spoiled, spoiled_forward  # type: ignore[method-assign]
    SlotEngine._draw = spoiled_draw  # type: ignore[method-assign]


class Writes:
    """Counts the writes of this process to its run folder, and spoils some."""

    def __init__(
        self, plan: FaultPlan, folder: Path, start: int, pass_by: Callable[[], object] | None = None
    ):
        """`pass_by` is called at each."""
        self._pass_by = pass_by
        self._dice, self._slow = Dice(plan, "disk", folder), plan.slow_seconds
        self._folder, self._start = folder, start
        self._event = plan.interruptions[start] if start < len(plan.interruptions) else ""
        self._left = random.Random(derive_seed(plan.seed, "interruption", start)).randint(*plan.at)

    def __call__(self, data: bytes | str, write: Any) -> Any:
        """Writes `data` by `write`, or does what the plan says instead."""
        self._left -= 1
        if self._pass_by is not None:
            self._pass_by()
        if self._dice.draw(["write", self._start, self._left]) == "slow":
            time.sleep(self._slow)
        if self._left != 0 or not self._event:
            return write(data)
        append(self._folder / "faults.jsonl", {"part": "process", "kind": self._event, "what": self._start})
        if self._event == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if self._event == "read_only":
            raise OSError(errno.EROFS, "Read-only file system")
        if self._event in ("torn", "kill"):
            if self._event == "torn":
                write(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        if self._event == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        if self._event == "interrupt_twice":
            os.kill(os.getpid(), signal.SIGINT)
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        return write(data)


class _File:
    """An open file whose writes go through `Writes`."""

    def __init__(self, file: Any, writes: Writes):
        self._file, self._writes = file, writes

    def write(self, data: Any) -> Any:
        return self._writes(data, self._file.write)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def spoil_disk(
    plan: FaultPlan, folder: Path, start: int, pass_by: Callable[[], object] | None = None
) -> None:
    """Records, JSON files and checkpoints of the run folder are written through `Writes`."""
    from ..train import checkpoint

    writes = spoil_records(Writes(plan, folder, start, pass_by))
    real_save = checkpoint.save_file

    def spoiled_save(tensors: Any, path: Any, *rest: Any) -> Any:
        return writes("", lambda _: real_save(tensors, path, *rest))

    checkpoint.save_file = spoiled_save


def spoil_records(writes: Writes) -> Writes:
    """Records and JSON files alone."""
    from .. import runfolder

    def spoiled_open(path: Any, mode: str = "r", *rest: Any, **how: Any) -> Any:
        file = builtins.open(path, mode, *rest, **how)  # noqa: SIM115
        # A lock is no record.
        return _File(file, writes) if "w" in mode or ("+" in mode and "b" in mode) else file

    runfolder.open = spoiled_open  # type: ignore[attr-defined]
    return writes


def spoil_clock(dice: Dice, seed: int) -> Callable[[], float]:
    """The wall clock jumps at a look at it; the monotonic one does not, as on every system. What is returned
    looks at it: a program hardly does."""
    real, real_gmtime, real_localtime = time.time, time.gmtime, time.localtime
    state = {"offset": 0.0, "looks": 0}

    def jumping() -> float:
        state["looks"] += 1
        kind = dice.draw(["look", int(state["looks"])])
        if kind:
            far = random.Random(derive_seed(seed, "jump", int(state["looks"]))).uniform(0, 86_400)
            state["offset"] += far if kind == "forward" else -far
        return real() + state["offset"]

    time.time = jumping
    time.time_ns = lambda: int(jumping() * 1e9)
    time.gmtime = lambda at=None: real_gmtime(jumping() if at is None else at)
    time.localtime = lambda at=None: real_localtime(jumping() if at is None else at)
    return jumping


if __name__ == "__main__":
    main()
