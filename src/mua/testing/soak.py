"""Episodes for as long as one likes, as fast as the machine gives: what grows, and what is left behind.

The users are a chat endpoint in a process of its own (`people`), half of the tools are those of a real MCP
server in another, the agent is a program that makes the gold calls; all between them is what a run uses.

What is promised: memory is flat (after the first fifth, the slope's 95 % interval holds 0, or the growth by
it is below `MOST_GROWTH` of the memory), files, sockets, threads, tasks and processes do not become more,
and when everything is closed nothing is left.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import math
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..agents import AgentStep
from ..chat import Message, ToolCall
from ..domain import Domain, Limits, Task
from ..domains import load
from ..endpoint import Endpoint, EndpointSettings
from ..episode import play
from ..users.llm import LlmUser
from .people import People
from .plan import FaultPlan
from .server import FakeServer

LOCKERS = str(Path(__file__).parent / "lockers" / "domain.yaml")
DOMAINS = (LOCKERS, "library:desk")
TOGETHER = 16
"""Episodes at once."""
MOST_GROWTH = 0.02
"""Share of the memory; a slope is only told from 0 by such a lot of samples that any is."""
_KEPT = 6
"""Files that libraries open once and keep: random numbers, the way to the resource tracker."""
_BLOCKS = 12
"""Of samples, whose means the slope is taken of: samples that follow one another are alike."""


class GoldAgent:
    """Asks for the name, makes the gold calls, and asks whether there is anything else."""

    trace = None

    def __init__(self, task: Task):
        calls = [ToolCall(a.name, dict(a.arguments)) for a in task.actions if a.requestor == "assistant"]
        self._moves: list[Any] = ["What is your name?", *calls]

    async def step(self, messages: Sequence[Message]) -> AgentStep:
        move = self._moves.pop(0) if self._moves else "Done. Is there anything else I can help you with?"
        if isinstance(move, str):
            return AgentStep(Message("assistant", move), tokens=8)
        return AgentStep(Message("assistant", tool_calls=(move,)), tokens=8)

    def close(self) -> None:
        pass


def _serve(connection: Any) -> None:
    """The process of the people of all domains."""
    everybody = [People(load(name), FaultPlan()) for name in DOMAINS]

    def answer(body: dict[str, Any]) -> Any:
        known = next((p for p in everybody if p.knows(body)), everybody[0])
        return known(body)

    with FakeServer(answer, keep=False) as server:
        connection.send(server.url)
        connection.recv()  # until the other side is through


@dataclasses.dataclass
class Sample:
    """The process at one moment."""

    seconds: float
    episodes: int
    rss_mb: float
    servers_mb: float
    """The MCP servers."""
    people_mb: float
    """The endpoint, which is a part of this harness."""
    children: int
    files: int
    sockets: int
    threads: int
    tasks: int


def soak(minutes: float, out: Path) -> dict[str, Any]:
    """Plays for so long; writes OUT/soak.json, and OUT/soak-plot.json for perf/plot.py."""
    out.mkdir(parents=True, exist_ok=True)
    before = _now(0.0, 0, 0, 0)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    people = context.Process(target=_serve, args=(there,), daemon=True)
    people.start()
    there.close()
    url = here.recv()
    domains = [load(name) for name in DOMAINS]
    assert people.pid is not None
    samples, ends = asyncio.run(_play(minutes * 60, url, domains, people.pid))
    for domain in domains:
        if pool := getattr(domain, "pool", None):
            pool.close()
    here.send("done")
    people.join(10)
    here.close()
    gc.collect()
    time.sleep(0.5)
    after = _now(samples[-1].seconds, samples[-1].episodes, 0, people.pid)
    result = figures(samples, ends, before, after)
    (out / "soak.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "soak-plot.json").write_text(json.dumps(_plot(samples), indent=1) + "\n", encoding="utf-8")
    return result


async def _play(
    seconds: float, url: str, domains: Sequence[Domain], people: int
) -> tuple[list[Sample], Counter[str]]:
    endpoint = Endpoint(EndpointSettings(base_url=url, model="people", timeout=30))
    began, ends, number = time.monotonic(), Counter[str](), 0
    samples: list[Sample] = []
    tasks = [
        (d, t)
        for pair in zip(*(d.tasks("train")[:72] for d in domains), strict=False)
        for d, t in zip(domains, pair, strict=True)
    ]

    async def worker() -> None:
        nonlocal number
        while time.monotonic() - began < seconds:
            domain, task = tasks[number % len(tasks)]
            number += 1
            user = LlmUser(endpoint, task, 0, tools=domain.task_tools(task, "user"))
            played = await play(domain, task, GoldAgent(task), user, limits=Limits(turns=8))
            ends[f"{domain.name} {played.termination.value} {played.reward}"] += 1
            await asyncio.sleep(0)

    async def watch() -> None:
        pause = min(5.0, max(0.2, seconds / 240))
        while time.monotonic() - began < seconds:
            await asyncio.sleep(pause)
            samples.append(
                _now(time.monotonic() - began, sum(ends.values()), len(asyncio.all_tasks()), people)
            )

    await asyncio.gather(watch(), *(worker() for _ in range(TOGETHER)))
    await endpoint.close()
    return samples, ends


def _now(seconds: float, episodes: int, tasks: int, people: int) -> Sample:
    import psutil

    me = psutil.Process()
    # The resource tracker is Python's own: it lives as long as the process.
    every = me.children(recursive=True)
    children = [child for child in every if "resource_tracker" not in " ".join(_command(child))]
    memory = {True: 0.0, False: 0.0}
    for child in children:
        try:
            memory[child.pid == people] += child.memory_info().rss / 2**20
        except psutil.Error:
            continue
    links = [os.readlink(f"/proc/self/fd/{n}") for n in _open_files()]
    return Sample(
        seconds=round(seconds, 2),
        episodes=episodes,
        rss_mb=me.memory_info().rss / 2**20,
        servers_mb=memory[False],
        people_mb=memory[True],
        children=len(children),
        files=len(links),
        sockets=sum(link.startswith("socket:") for link in links),
        threads=threading.active_count(),
        tasks=tasks,
    )


def _command(process: Any) -> list[str]:
    import psutil

    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _open_files() -> list[str]:
    """Descriptors of this process that are open now."""
    out = []
    for name in os.listdir("/proc/self/fd"):
        try:
            os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        out.append(name)
    return out


# ---------------------------------------------------------------- figures


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """(least squares slope, low, high) with its 95 % interval, from the means of `_BLOCKS` blocks."""
    from scipy import stats

    size = max(1, len(points) // _BLOCKS)
    blocks = [points[n : n + size] for n in range(0, size * (len(points) // size), size)]
    xs = [sum(x for x, _ in block) / len(block) for block in blocks]
    ys = [sum(y for _, y in block) / len(block) for block in blocks]
    if len(xs) < 4:
        return math.nan, math.nan, math.nan
    fit: Any = stats.linregress(xs, ys)
    half = float(stats.t.ppf(0.975, len(xs) - 2)) * float(fit.stderr)
    return float(fit.slope), float(fit.slope) - half, float(fit.slope) + half


def figures(samples: Sequence[Sample], ends: Counter[str], before: Sample, after: Sample) -> dict[str, Any]:
    """What the samples say, and which promise was broken."""
    last = samples[-1]
    warm = [s for s in samples if s.seconds > 0.2 * last.seconds]
    problems: list[str] = []
    growth = {}
    for what in ("rss_mb", "servers_mb", "people_mb"):
        per_second, low, high = slope([(s.seconds, getattr(s, what)) for s in warm])
        mean = sum(getattr(s, what) for s in warm) / len(warm)
        growth[what] = {
            "mb_an_hour": per_second * 3600,
            "low": low * 3600,
            "high": high * 3600,
            "mean_mb": mean,
        }
        if low > 0 and per_second * last.seconds > MOST_GROWTH * mean:
            problems.append(f"{what} grows by {per_second * 3600:.1f} MB an hour")
    for what in ("children", "files", "sockets", "threads", "tasks"):
        early = max(getattr(s, what) for s in warm[: len(warm) // 4 + 1])
        late = max(getattr(s, what) for s in warm[-(len(warm) // 4) - 1 :])
        growth[what] = {"early": early, "late": late}
        if late > early + (TOGETHER if what == "tasks" else 2):  # a worker asks, or does not
            problems.append(f"{what} grow from {early} to {late}")
    for what, most in (("children", 0), ("files", _KEPT), ("sockets", 0)):
        if getattr(after, what) > getattr(before, what) + most:
            problems.append(f"{getattr(after, what) - getattr(before, what)} {what} are left")
    unscored = sum(n for end, n in ends.items() if end.endswith("None"))
    if unscored:
        problems.append(f"{unscored} episodes were broken by infrastructure")
    return {
        "minutes": last.seconds / 60,
        "episodes": last.episodes,
        "episodes_an_hour": last.episodes / last.seconds * 3600,
        "ends": dict(sorted(ends.items())),
        "growth": growth,
        "before": dataclasses.asdict(before),
        "after": dataclasses.asdict(after),
        "problems": problems,
        "passed": not problems,
        "samples": [dataclasses.asdict(s) for s in samples],
    }


def _plot(samples: Sequence[Sample]) -> dict[str, Any]:
    """The input of perf/plot.py: means of blocks with the least and the greatest value."""
    size = max(1, math.ceil(len(samples) / _BLOCKS))
    blocks = [samples[n : n + size] for n in range(0, len(samples), size)]
    digits = 0 if samples[-1].seconds > 60 * 2 * _BLOCKS else 1  # as many as have room under the axis

    def series(what: str) -> list[tuple[float, float, float, float]]:
        out = []
        for block in blocks:
            values = [getattr(s, what) for s in block]
            middle = round(sum(s.seconds for s in block) / len(block) / 60, digits)
            out.append((middle, sum(values) / len(values), min(values), max(values)))
        return out

    return {
        "title": f"{samples[-1].episodes:,} episodes in {samples[-1].seconds / 60:.0f} minutes",
        "panels": [
            {
                "x": "minutes",
                "y": "MB",
                "series": {"this process": series("rss_mb"), "MCP servers": series("servers_mb")},
            },
            {
                "x": "minutes",
                "y": "open",
                "series": {n: series(n) for n in ("files", "sockets", "threads", "children")},
            },
        ],
    }
