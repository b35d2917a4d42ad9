"""Ten thousand conversations at once in one process: what they cost, and whether scheduling is fair.

    python perf/scale.py                       # 10,000 episodes in flight, 20,000 in all
    python perf/scale.py --json --episodes 1000 --rounds 1

The scheduler, the episodes, worlds, tools, grading and traces are the real ones (`rollout.play_groups`,
`agents.model.ModelAgent`). What waits is simulated: a model server with so many places, a user endpoint
with so many connections, tools; each answer takes a time from a log-normal distribution, drawn by what
is asked and not by when. The clock is virtual: when nothing can go on, it jumps to the next event, so
hours pass in minutes and every run has the same times.

What comes out:

- throughput: episodes a virtual second, and how busy the places were; and the CPU time of the process
  for each step, which bounds what one process can do however fast the servers are;
- memory: growth of the process for each episode (all are kept until the batch is complete), and what of it
  are its messages;
- fairness: how long episodes wait for places, and the longest wait against the median.

The exit code is 1 when an episode costs more than 100 kB beyond its messages, when one waited longer than
`STARVED` times the median, or when an episode did not end as it does alone.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import selectors
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import psutil

from mua.agents.model import ModelAgent
from mua.chat import Message
from mua.coldstart.conversations import play_expert
from mua.domain import Domain, Limits, Task, ToolResult, World
from mua.domains import load
from mua.engines import Completion, Sampling
from mua.formats import ChatFormat
from mua.rollout import Group, RolloutSettings, play_groups
from mua.seeds import derive_seed
from mua.tokenizer import train_tokenizer
from mua.trajectory import Termination, Trajectory
from mua.users import UserTurn

MOST_MEMORY = 100_000
"""Bytes of an episode beyond its messages."""
FAILING = 0.3
"""Share of episodes whose agent does nothing."""
STARVED = 4.0
"""The longest total wait of an episode, in medians."""


# ---------------------------------------------------------------- a clock that jumps


class _Jump(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Does not wait: it moves the clock on by what would have been waited."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing can go on and nothing is awaited: the scheduler has lost an episode")
        self.loop.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only while everybody waits."""

    def __init__(self) -> None:
        self.now = 0.0
        selector = _Jump()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


# ---------------------------------------------------------------- what is simulated


@dataclass
class Server:
    """So many places, first come, first served; an answer takes a log-normal time."""

    places: int
    median: float
    """Seconds."""
    spread: float
    """Standard deviation of the logarithm."""
    waits: dict[str, float] = field(default_factory=dict)
    """By episode: seconds in line."""
    busy: float = 0.0
    requests: int = 0

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(self.places)

    async def answer(self, episode: str, *what: str | int) -> None:
        """Waits for a place, and then for the answer."""
        drawn = random.Random(derive_seed(episode, *what)).lognormvariate(0.0, self.spread)
        seconds = self.median * drawn
        loop = asyncio.get_running_loop()
        asked = loop.time()
        async with self._free:
            self.waits[episode] = self.waits.get(episode, 0.0) + loop.time() - asked
            await asyncio.sleep(seconds)
        self.busy += seconds
        self.requests += 1


@dataclass
class Script:
    """What agent and user of a task say, from a conversation of its expert; ready as tokens."""

    moves: list[list[int]]
    turns: list[Message]
    stops: bool
    """The user ended it, with the last turn; else the agent handed over."""


class Engine:
    """A model server that says what the script of an episode's task says next, or in `FAILING` of the
    episodes only goodbye: groups need a signal."""

    context = 1 << 20

    def __init__(self, server: Server, scripts: dict[str, Script], format: ChatFormat):
        self.server = server
        self.scripts = scripts
        self.said: dict[str, int] = {}
        self.failing: set[str] = set()
        self._goodbye = format.encode_assistant(Message("assistant", "Goodbye."))

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, session: str) -> Completion:
        number = self.said.get(session, 0)
        await self.server.answer(session, "agent", number)
        self.said[session] = number + 1
        if number == 0 and derive_seed("fails", session) % 1000 < 1000 * FAILING:
            self.failing.add(session)
        moves = self.scripts[session.split("/")[1]].moves
        ids = self._goodbye if session in self.failing or number >= len(moves) else moves[number]
        return Completion(list(ids), [-0.5 - 1e-6 * n for n in range(len(ids))], "stop")

    def release(self, session: str) -> None:
        self.said.pop(session, None)

    async def close(self) -> None:
        pass


class Person:
    """A user behind an endpoint, who says what the script says next."""

    name = "scripted"

    def __init__(self, server: Server, script: Script, episode: str):
        self.server = server
        self.script = script
        self.episode = episode
        self.turn = 0

    async def reply(self, view: Sequence[Message]) -> UserTurn:
        # With a frozen opening the first turn is somebody else's.
        number = max(self.turn, sum(m.role == "user" for m in view))
        await self.server.answer(self.episode, "user", number)
        self.turn = number + 1
        if number >= len(self.script.turns):
            return UserTurn("Bye.", stop=True)
        turn = self.script.turns[number]
        last = self.turn == len(self.script.turns)
        return UserTurn(turn.content, turn.tool_calls, stop=self.script.stops and last)


@dataclass
class Casting:
    """Tells users and worlds whose they are: an episode makes its agent, its user and its world in one go."""

    agent: str = ""
    """Session of an agent whose user is not made yet."""
    episode: str = ""
    openings: int = 0

    def user(self) -> str:
        """The name of the next user: the episode's, or an opening's."""
        if not self.agent:
            self.openings += 1
            return f"opening {self.openings}"
        self.episode, self.agent = self.agent, ""
        return self.episode


def far_away(domain: Domain, server: Server, casting: Casting) -> Domain:
    """The domain with tools behind a network."""

    class Far(World):
        def __init__(self, domain: Domain, task: Task):
            super().__init__(domain, task)
            self.episode = casting.episode
            self.calls = 0

        async def perform(self, side: Any, call: Any) -> ToolResult:
            self.calls += 1
            await server.answer(self.episode, "tool", self.calls)
            return self.call(side, call)

    class Remote(type(domain)):  # type: ignore[misc]
        def open(self, task: Task) -> World:
            return Far(self, task)

    fields = {name: getattr(domain, name) for name in domain.__dataclass_fields__}
    return Remote(**fields)


def write_scripts(domain: Domain, tasks: Sequence[Task]) -> tuple[dict[str, Script], ChatFormat]:
    """A script for each task, and the format of a tokenizer made for them."""
    played = [asyncio.run(play_expert(domain, task, 1, Limits())) for task in tasks]
    texts = [m.content for t in played for m in t.messages]
    format = ChatFormat.of(train_tokenizer(texts, 2000), tool_style="brief")
    scripts = {}
    for t in played:
        moves = [format.encode_assistant(m) for m in t.messages if m.role == "assistant"]
        turns = [m for m in t.messages if m.role == "user"]
        scripts[t.task_id] = Script(moves, turns, t.termination == Termination.USER_STOP)
    return scripts, format


# ---------------------------------------------------------------- the run


@dataclass
class Seen:
    """What was seen of the process while it played."""

    before: int = 0
    peak: int = 0
    """Bytes of the process with every place taken, least and most."""
    in_flight: int = 0
    failing: int = 0
    messages: float = 0.0
    """Mean bytes of an episode's messages."""
    tokens: float = 0.0
    ends: list[float] = field(default_factory=list)
    """When episodes ended, in virtual seconds."""


def size_of(messages: Sequence[Message]) -> int:
    """Bytes of what an episode said: texts, arguments and the objects around them."""
    total = sys.getsizeof(messages)
    for m in messages:
        total += sys.getsizeof(m) + sys.getsizeof(m.content) + sys.getsizeof(m.tool_calls)
        total += sum(sys.getsizeof(c) + 2 * len(json.dumps(dict(c.arguments))) for c in m.tool_calls)
    return total


async def play(
    options: argparse.Namespace,
    domain: Domain,
    tasks: Sequence[Task],
    scripts: dict[str, Script],
    format: ChatFormat,
) -> tuple[list[Group], Seen, dict[str, Server], float]:
    """The groups, what was seen meanwhile, the servers, and how long it took by the virtual clock."""
    loop = asyncio.get_running_loop()
    servers = {
        "agent": Server(options.agent_places, options.agent_seconds, 0.8),
        "user": Server(options.user_places, options.user_seconds, 0.6),
        "tool": Server(options.tool_places, options.tool_seconds, 1.0),
    }
    casting = Casting()
    world = far_away(domain, servers["tool"], casting)
    engine = Engine(servers["agent"], scripts, format)
    process, seen = psutil.Process(), Seen()
    tools = {task.id: world.task_tools(task) for task in tasks}
    for task in tasks:  # what is made once for all episodes of a task
        world.gold(task)
    gc.collect()
    seen.before = process.memory_info().rss

    def agent(task: Task, session: str, seed: int) -> ModelAgent:
        seen.in_flight += 1
        casting.agent = session
        return ModelAgent(format, engine, tools[task.id], sampling=Sampling(), session=session, seed=seed)

    def user(task: Task, seed: int) -> Person:
        return Person(servers["user"], scripts[task.id], casting.user())

    most = 0

    def ended(trajectory: Trajectory) -> None:
        nonlocal most
        most = max(most, seen.in_flight)
        seen.in_flight -= 1
        seen.ends.append(loop.time())
        if len(seen.ends) % 500 == 1:
            seen.peak = max(seen.peak, process.memory_info().rss)
            if not options.json:
                print(
                    f"{len(seen.ends)} ended, virtual {loop.time():.0f} s, process {seen.peak >> 20} MB",
                    flush=True,
                )

    groups = await play_groups(
        world,
        tasks,
        agent,
        user,
        RolloutSettings(group_size=options.group, concurrency=options.episodes),
        seed=options.seed,
        on_episode=ended,
    )
    seen.peak = max(seen.peak, process.memory_info().rss)
    seen.in_flight, seen.failing = most, len(engine.failing)
    played = [t for group in groups for t in group.trajectories]
    seen.messages = statistics.mean(size_of(t.messages) for t in played[:200])
    seen.tokens = statistics.mean(len(s.ids) for t in played[:200] if t.trace for s in t.trace.segments)
    return groups, seen, servers, loop.time()


def spread(waits: Sequence[float]) -> dict[str, float]:
    """Percentiles of the total waits of episodes, in virtual seconds."""
    ordered = sorted(waits)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    median = at(0.5)
    return {
        "median": median,
        "p95": at(0.95),
        "p99": at(0.99),
        "longest": ordered[-1],
        "longest_in_medians": ordered[-1] / median if median else float(ordered[-1] > 0),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domain", default="library")
    parser.add_argument("--episodes", type=int, default=10_000, help="in flight at once")
    parser.add_argument("--rounds", type=int, default=2, help="episodes in all, as a multiple of --episodes")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=200, help="different ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--agent-places", type=int, default=4096, help="sequences that the model server decodes"
    )
    parser.add_argument("--agent-seconds", type=float, default=4.0, help="median of a step")
    parser.add_argument(
        "--user-places", type=int, default=1024, help="requests in flight at the user endpoint"
    )
    parser.add_argument("--user-seconds", type=float, default=1.5, help="median of a turn")
    parser.add_argument("--tool-places", type=int, default=10_000)
    parser.add_argument("--tool-seconds", type=float, default=0.2, help="median of a call")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    domain = load(options.domain)
    different = domain.tasks("train")[: options.tasks]
    scripts, format = write_scripts(domain, different)
    count = options.episodes * options.rounds // options.group
    tasks = [different[n % len(different)] for n in range(count)]
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        start = time.process_time()
        groups, seen, servers, seconds = runner.run(play(options, domain, tasks, scripts, format))
        cpu = time.process_time() - start
    played = [t for group in groups for t in group.trajectories]
    names = servers["agent"].waits
    waits = [sum(s.waits.get(name, 0.0) for s in servers.values()) for name in names]
    steps = sum(t.usage.agent_steps for t in played)
    memory = (seen.peak - seen.before) / len(played)  # the batch keeps those that have ended
    figures = {
        "episodes": len(played),
        "in_flight": seen.in_flight,
        "agent_steps": steps,
        "user_turns": servers["user"].requests,
        "tool_calls": servers["tool"].requests,
        "virtual_seconds": seconds,
        "episodes_a_second": len(played) / seconds,
        "busy": {name: s.busy / (s.places * seconds) for name, s in servers.items()},
        "cpu_seconds": cpu,
        "cpu_ms_a_step": 1e3 * cpu / steps,
        "steps_a_cpu_second": steps / cpu,
        "bytes_an_episode": memory,
        "bytes_of_its_messages": seen.messages,
        "tokens_an_episode": seen.tokens,
        "waits": spread(waits),
        "constant_groups": sum(group.constant for group in groups),
        "right": len(played) == count * options.group
        and sum(t.reward == 0.0 for t in played) == seen.failing
        and sum(t.reward == 1.0 for t in played) == len(played) - seen.failing,
    }
    print(json.dumps(figures, indent=1))
    starved = figures["waits"]["longest_in_medians"] > STARVED
    return int(memory - seen.messages > MOST_MEMORY or starved or not figures["right"])


if __name__ == "__main__":
    sys.exit(main())
