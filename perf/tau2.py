"""τ²-bench scripted episodes, ours against upstream's: time, memory, and a thousand at once.

Both play the gold actions of the same tasks, round by round: open an environment, list the tools that both
sides are given, run every call, grade the conversation by what each itself grades with (upstream's
`evaluate_simulation`; assertions in natural language, which need a judge, are left out on both sides).
Upstream runs in an interpreter of its own (it needs much that mua does not), one task after the other.
Times are CPU times, taken inside each process: both are single-threaded, and whatever else the machine does
must not count as theirs. A ratio is that of one task, by the median of its rounds on each side (now and then
Python's collector walks all databases, in either); `total` is that of everything together.

    python perf/tau2.py --json --python UPSTREAM-PYTHON --upstream CHECKOUT/src

Without `--upstream` only our own side is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from typing import Any

PARTS = ("retail", "airline", "telecom")

UPSTREAM = r"""
import json, sys, time
from importlib import import_module
from loguru import logger
logger.remove()
from tau2.data_model.message import AssistantMessage, ToolCall, UserMessage
from tau2.data_model.simulation import SimulationRun, TerminationReason
from tau2.data_model.tasks import RewardType, Task
from tau2.evaluator.evaluator import EvaluationType, evaluate_simulation

def episode(part, get_environment, task, said):
    environment = get_environment()
    tools = [environment.get_tools(), environment.get_user_tools() if environment.user_tools else []]
    [tool.openai_schema for side in tools for tool in side]
    state = task.initial_state
    environment.set_state(
        initialization_data=state.initialization_data if state else None,
        initialization_actions=state.initialization_actions if state else None,
        message_history=[],
    )
    messages = [AssistantMessage(role="assistant", content="Hi! How can I help you today?")]
    for i, action in enumerate(task.evaluation_criteria.actions or []):
        call = ToolCall(id=str(i), name=action.name, arguments=action.arguments, requestor=action.requestor)
        speaker = UserMessage if action.requestor == "user" else AssistantMessage
        messages.append(speaker(role=action.requestor, tool_calls=[call]))
        messages.append(environment.get_response(call))
    messages.append(AssistantMessage(role="assistant", content=said))
    messages.append(UserMessage(role="user", content="###STOP###"))
    simulation = SimulationRun(
        id="0", task_id=task.id, start_time="0", end_time="0", duration=0.0, messages=messages,
        termination_reason=TerminationReason.USER_STOP,
    )
    evaluate_simulation(simulation, task, EvaluationType.ALL, False, part, strict_replay=False)

for line in sys.stdin:
    job = json.loads(line)
    get_environment = import_module(f"tau2.domains.{job['part']}.environment").get_environment
    task = Task.model_validate(job["task"])
    basis = task.evaluation_criteria.reward_basis
    task.evaluation_criteria.reward_basis = [b for b in basis if b != RewardType.NL_ASSERTION]
    started = time.process_time()
    episode(job["part"], get_environment, task, job["said"])
    print(time.process_time() - started, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=8, help="tasks of each part")
    parser.add_argument("--rounds", type=int, default=3, help="times that each task is played by both")
    parser.add_argument("--episodes", type=int, default=1000, help="concurrent retail episodes")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has upstream")
    parser.add_argument("--upstream", default="", help="folder that holds the package tau2")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    result = measure(args)
    show(result)
    if args.json:
        print(json.dumps(result))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    from mua.benchmarks import load

    # Concurrency first: the peak of the process is then that of these episodes.
    result: dict[str, Any] = {"concurrent": concurrent(load("tau2/retail"), args.episodes)}
    upstream = Upstream(args.python, args.upstream) if args.upstream else None
    for part in PARTS:
        domain: Any = load(f"tau2/{part}")
        base = domain.base
        before = base.recompute_hash()
        tasks = domain.tasks("base")[:: max(1, len(domain.tasks("base")) // args.tasks)][: args.tasks]
        for task in tasks:
            play(domain, task)  # a first one each: gold states, lazy imports
            if upstream:
                upstream.play(part, task)
        times: dict[str, dict[str, list[float]]] = {"ours": {}, "upstream": {}}
        for _ in range(args.rounds):
            for task in tasks:
                started = time.process_time()
                reward = play(domain, task)
                times["ours"].setdefault(task.id, []).append(1e3 * (time.process_time() - started))
                assert reward == 1.0, f"{part} {task.id}: gold actions earn {reward}"
                if upstream:
                    times["upstream"].setdefault(task.id, []).append(1e3 * upstream.play(part, task))
        found: dict[str, Any] = {"tasks": len(tasks), "live_kb": live_memory(domain, tasks)}
        every = {side: [t for rounds in by.values() for t in rounds] for side, by in times.items()}
        found["cpu_milliseconds"] = {side: spread_of(all_) for side, all_ in every.items() if all_}
        if upstream:
            middle = {s: [statistics.median(r) for r in by.values()] for s, by in times.items()}
            ratios = [a / b for a, b in zip(middle["upstream"], middle["ours"], strict=True)]
            found["ratio"] = spread_of(ratios)
            found["ratio"]["total"] = round(sum(every["upstream"]) / sum(every["ours"]), 2)
        found["base_unchanged"] = base.recompute_hash() == before
        result[part] = found
    return result


def said(task: Any) -> str:
    return " ".join(task.criteria.get("communicate_info") or ["Done."])


def play(domain: Any, task: Any) -> float:
    """Opens a world, lists both sides' tools, runs the gold actions and grades the conversation."""
    from mua.benchmarks.tau2 import GREETING, scoring
    from mua.chat import Message, ToolCall

    world = domain.open(task)
    for side in ("assistant", "user"):
        for tool in world.tools(side).values():
            tool.schema()
    messages = [Message("assistant", GREETING)]
    for i, action in enumerate(task.actions):
        call = ToolCall(action.name, action.arguments, str(i))
        messages.append(Message(action.requestor, "", (call,)))
        content = world.call(action.requestor, call).content
        messages.append(Message("tool", content, tool_call_id=str(i), requestor=action.requestor))
    messages += [Message("assistant", said(task)), Message("user", "###STOP###")]
    return domain.score(task, messages, [True] * len(scoring.assertions_of(task))).reward


def live_memory(domain: Any, tasks: list[Any]) -> dict[str, float]:
    """Kilobytes that a live world holds after all its calls; messages are not in it."""
    from mua.chat import ToolCall

    sizes = []
    for task in tasks:
        gc.collect()
        tracemalloc.start()
        world = domain.open(task)
        for action in task.actions:
            world.call(action.requestor, ToolCall(action.name, action.arguments))
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0] / 1024)
        tracemalloc.stop()
        del world
    return spread_of(sizes)


def concurrent(domain: Any, count: int) -> dict[str, Any]:
    """So many scripted retail episodes in one event loop, all open at the same time."""
    from mua.agents import AgentStep
    from mua.chat import Message, ToolCall
    from mua.episode import play as play_episode
    from mua.users import UserTurn

    tasks = [t for t in domain.tasks("base") if t.actions]
    started = asyncio.Event()
    waiting = 0

    class Agent:
        trace = None

        def __init__(self, task: Any):
            self.moves = [(a.name, a.arguments) for a in task.actions]
            self.last = said(task)

        async def step(self, messages: Any) -> AgentStep:
            await asyncio.sleep(0)  # everybody else gets a turn between two calls
            if self.moves:
                return AgentStep(Message("assistant", "", (ToolCall(*self.moves.pop(0)),)))
            nonlocal waiting
            waiting += 1
            if waiting == count:
                started.set()
            await started.wait()  # all are alive, and have done their work
            return AgentStep(Message("assistant", self.last))

        def close(self) -> None:
            pass

    class User:
        name = "script"

        async def reply(self, view: Any) -> UserTurn:
            return UserTurn("###STOP###", stop=True) if len(view) > 1 else UserTurn("Hello.")

    async def all_of_them() -> list[Any]:
        chosen = [tasks[i % len(tasks)] for i in range(count)]
        return await asyncio.gather(*(play_episode(domain, t, Agent(t), User()) for t in chosen))

    before = domain.base.recompute_hash()
    began = time.perf_counter()
    played = asyncio.run(all_of_them())
    seconds = time.perf_counter() - began
    return {
        "episodes": count,
        "solved": sum(t.reward == 1.0 for t in played),
        "seconds": round(seconds, 2),
        "peak_mb": round(peak_mb(), 1),
        "base_unchanged": domain.base.recompute_hash() == before,
    }


def peak_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1024 if sys.platform != "darwin" else 1 << 20
    )


class Upstream:
    """Upstream in a process of its own, asked for one episode at a time."""

    def __init__(self, python: str, path: str):
        environment = {**os.environ, "PYTHONPATH": path, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [python, "-P", "-c", UPSTREAM],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def play(self, part: str, task: Any) -> float:
        """CPU seconds of one episode there."""
        assert self._process.stdin is not None and self._process.stdout is not None
        job = {"part": part, "task": task.data, "said": said(task)}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            sys.exit(f"upstream failed on {part} {task.id}: {self._said.read()[-2000:]}")
        return float(line)


def spread_of(values: list[float]) -> dict[str, float]:
    return {
        "min": round(min(values), 2),
        "median": round(statistics.median(values), 2),
        "max": round(max(values), 2),
    }


def show(result: dict[str, Any]) -> None:
    out = sys.stdout
    at_once = result["concurrent"]
    out.write(
        f"{at_once['episodes']} retail episodes at once: {at_once['solved']} solved in "
        f"{at_once['seconds']} s, peak {at_once['peak_mb']} MB, base unchanged: {at_once['base_unchanged']}\n"
    )
    for part in PARTS:
        out.write(f"{part}\n{'':<24}{'min':>10}{'median':>10}{'max':>10}\n")
        rows = {f"{k}, CPU ms": v for k, v in result[part]["cpu_milliseconds"].items()}
        rows |= {"live world, kB": result[part]["live_kb"]}
        rows |= {"times faster": result[part]["ratio"]} if "ratio" in result[part] else {}
        for name, row in rows.items():
            out.write(f"  {name:<22}{row['min']:>10}{row['median']:>10}{row['max']:>10}\n")


if __name__ == "__main__":
    main()
