"""A training step in several processes: each plays its share of the groups with its own copy of the models,
and adds up the gradients of its share of the micro-batches.

Invariants:
- The weights are the main process's: workers are given them after each update, and never step themselves.
- Which process plays and computes what depends on the number of processes and on nothing else, and shares
  are added up in their order; so the bits of a run depend on that number, but on no timing.
- A worker that fails ends the step with one error that has its words; what says itself what to do (a budget
  that is spent) comes through as it is. Workers end with their parent, however it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from ..domain import Task
from ..errors import MuaError
from ..rollout import Group
from .batching import MicroBatch
from .credit import Signals
from .grpo import Denominators, add_metrics

Play = Callable[[Sequence[Task], int, int, int, tuple[int, int]], Awaitable[list[Group]]]
"""(tasks, step, seed, groups wanted of all, share) → the groups of that share of the tasks
(`rollout.play_groups`)."""
Accumulate = Callable[[Sequence[MicroBatch], Signals, Denominators], Mapping[str, float]]
"""(micro-batches, what is known of all segments, denominators) → sums of the metrics; gradients add up in
the model."""
Score = Callable[[Sequence[MicroBatch]], list[tuple[torch.Tensor, torch.Tensor | None]]]
"""Micro-batches → log-probabilities of their sampled tokens by model and reference."""


def trained_parameters(model: Any) -> list[torch.nn.Parameter]:
    """The parameters that an update changes, in their order."""
    return [p for p in model.parameters() if p.requires_grad]


class Workers:
    """The other processes of a training run, seen from the main one, whose number is 0."""

    def __init__(self, count: int, target: Callable[..., object], args: tuple[Any, ...]):
        """Starts `count` - 1 processes that run `target(connection, *args)`, which ends in `serve`."""
        self.count = count
        self.peak_mb = 0.0
        """Peak memory of all workers together, as far as they have told."""
        self.told: list[Any] = []
        """What each said of itself with its last episodes (`serve`'s `tell`)."""
        self._children = []
        context = multiprocessing.get_context("spawn")
        for _ in range(1, count):
            here, there = context.Pipe()
            process = context.Process(target=target, args=(there, *args), daemon=True)
            process.start()
            there.close()
            self._children.append((process, here))

    def load(self, model: Any) -> None:
        """Gives the weights to all workers, whose caches are void then."""
        # Copies: plain pickle, since shared memory would have to outlive both sides.
        weights = [p.detach().cpu().clone() for p in trained_parameters(model)]
        self._send([("load", weights)] * (self.count - 1))
        self._receive()

    async def play(self, tasks: Sequence[Task], step: int, seed: int, wanted: int, play: Play) -> list[Group]:
        """All groups in the tasks' order; `play` plays this process's share."""
        names = [task.id for task in tasks]
        self._send([("play", names, step, seed, wanted, (n, self.count)) for n in range(1, self.count)])
        # In a thread, so that the episodes of this process go on; it is joined whatever becomes of them.
        others = asyncio.create_task(asyncio.to_thread(self._receive))
        try:
            own = await play(tasks, step, seed, wanted, (0, self.count))
        finally:
            await asyncio.wait([others])
            others.exception()  # noted: where both have failed, ours is told
        groups: list[Group | None] = [None] * len(tasks)
        groups[0 :: self.count] = own
        self.told = [told for _, told in others.result()]
        for number, (fields, _) in enumerate(others.result(), 1):
            mine = tasks[number :: self.count]
            groups[number :: self.count] = [Group(t, **f) for t, f in zip(mine, fields, strict=True)]
        return [group for group in groups if group is not None]

    def gradients(
        self,
        model: Any,
        batches: Sequence[MicroBatch],
        signals: Signals,
        totals: Denominators,
        accumulate: Accumulate,
    ) -> dict[str, float]:
        """Sums of the metrics over all micro-batches, whose gradients are in `model` afterwards."""
        shares = [batches[n :: self.count] for n in range(self.count)]
        self._send([("gradients", share, signals, totals) for share in shares[1:]])
        sums = dict(accumulate(shares[0], signals, totals))
        self.peak_mb = 0.0
        for found, gradients, peak in self._receive():
            add_metrics(sums, found)
            self.peak_mb += peak
            for parameter, gradient in zip(trained_parameters(model), gradients, strict=True):
                if gradient is not None:
                    added = gradient.to(parameter.device)
                    parameter.grad = added if parameter.grad is None else parameter.grad + added
        return sums

    def scores(
        self, batches: Sequence[MicroBatch], score: Score
    ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Those of all micro-batches, in their order; `score` gives this process's share."""
        self._send([("scores", batches[n :: self.count]) for n in range(1, self.count)])
        out: list[Any] = [None] * len(batches)
        out[0 :: self.count] = score(batches[0 :: self.count])
        for number, found in enumerate(self._receive(), 1):
            out[number :: self.count] = found
        return out

    def close(self) -> None:
        """Ends the workers."""
        for process, connection in self._children:
            connection.close()
            process.terminate()
        for process, _ in self._children:
            process.join()

    def _send(self, requests: Sequence[Any]) -> None:
        for (process, connection), request in zip(self._children, requests, strict=True):
            try:
                connection.send_bytes(pickle.dumps(request))
            except OSError:
                raise _gone(process) from None

    def _receive(self) -> list[Any]:
        """One reply of each worker, in their order."""
        replies = []
        for process, connection in self._children:
            try:
                replies.append(pickle.loads(connection.recv_bytes()))
            except (EOFError, OSError):
                raise _gone(process) from None
        for reply in replies:  # when nobody's is left in its pipe
            if isinstance(reply, MuaError):
                raise reply
        return replies


def _gone(process: Any) -> MuaError:
    process.join(5)
    return MuaError(
        f"a training process ended by itself (exit code {process.exitcode}; -9 is usually the system, short "
        "of memory). Run the same command again: it goes on from the last checkpoint; train.processes=1 "
        "needs least memory."
    )


# ---------------------------------------------------------------- the other side


def serve(
    connection: Connection,
    model: Any,
    tasks: Mapping[str, Task],
    play: Play,
    accumulate: Accumulate,
    score: Score,
    clear_caches: Callable[[], None],
    peak_mb: Callable[[], float],
    runner: asyncio.Runner,
    tell: Callable[[], Any] = lambda: None,
) -> None:
    """Answers requests until the connection ends. `runner` has the loop that the engines live in; what `tell`
    returns goes along with every share of episodes."""
    parameters = trained_parameters(model)
    while True:
        try:
            what, *request = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            reply: Any = None
            if what == "load":
                with torch.no_grad():
                    for parameter, weights in zip(parameters, request[0], strict=True):
                        parameter.copy_(weights)
                clear_caches()
            elif what == "play":
                names, *how = request
                groups = runner.run(_all(play([tasks[n] for n in names], *how)))
                # Without the tasks, which may hold what cannot be sent, and are known over there.
                reply = [{k: v for k, v in vars(g).items() if k != "task"} for g in groups], tell()
            elif what == "scores":
                reply = score(*request)
            else:
                for parameter in parameters:
                    parameter.grad = None
                found = accumulate(*request)
                reply = dict(found), [p.grad for p in parameters], peak_mb()
            answer = pickle.dumps(reply)
        except MuaError as exc:
            answer = pickle.dumps(exc)
        except Exception as exc:
            words = "".join(traceback.format_exception_only(exc)).strip()
            at = traceback.extract_tb(exc.__traceback__)[-1]
            where = f"{os.path.basename(at.filename)}, line {at.lineno}"
            answer = pickle.dumps(MuaError(f"a training process failed: {words} ({where})"))
        with contextlib.suppress(OSError):
            connection.send_bytes(answer)


async def _all(groups: Awaitable[list[Group]]) -> list[Group]:
    return await groups


def follow_parent() -> None:
    """For a process that `multiprocessing` started: leaves Ctrl-C to its parent, and ends when that is gone.

    A parent that was killed must leave no second writer for the run that resumes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
