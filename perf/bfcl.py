"""BFCL multi turn, ours against upstream's: scoring answers, and the whole scripted harness.

Both score and play the ground truth of the same entries, category by category, taking turns. Scoring is
upstream's decoding and checker against ours, with our process for the backends and the pipe to it. The
harness is upstream's OpenAI handler with a model that answers from a script, the result written, read and
scored, against ours: the episode with an agent that answers from the same script, scored, and its line of
JSON made. Upstream runs in an interpreter of its own, its times are taken inside, and it is given fresh
instances each time.

Times are the mean of an entry, on the clock and in CPU time (of both our processes): on a busy machine the
clock says how the machine is shared. A ratio is upstream / ours in one round.

    python perf/bfcl.py --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CATEGORIES = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")
ORACLE = Path(__file__).parents[1] / "tests" / "bfcl_upstream.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entries", type=int, default=50, help="of each category")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--benchmark", default="bfcl", choices=("bfcl", "bfcl-v3"))
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    result = measure(args)
    show(result)
    if args.json:
        print(json.dumps(result))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds an entry of both sides by category, and their ratios."""
    from mua.benchmarks.bfcl import upstream
    from mua.domains import load

    source = upstream(args.benchmark)
    out: dict[str, Any] = {"benchmark": args.benchmark, "entries": args.entries, "rounds": args.rounds}
    command = [sys.executable, "-P", "-s", "-B", str(ORACLE), str(source.folder)]
    oracle = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        with asyncio.Runner() as runner:
            for category in CATEGORIES:
                out[category] = _category(load(f"{args.benchmark}/{category}"), args, oracle, runner)
    finally:
        oracle.kill()
        oracle.communicate()
    return out


def _category(domain: Any, args: argparse.Namespace, oracle: Any, runner: asyncio.Runner) -> dict[str, Any]:
    from mua.benchmarks.bfcl import results

    tasks = list(domain.tasks("all"))[: args.entries]
    # One entry of V3 has fewer turns than its ground truth: nobody can play it to its end.
    tasks = [t for t in tasks if len(domain.entry(t).turns) == len(domain.entry(t).gold)]
    answers = {task.id: _answer(domain, task) for task in tasks}

    def theirs(**more: Any) -> dict[str, float]:
        total = {"clock": 0.0, "cpu": 0.0}
        for entry_id, result in answers.items():
            request = {"id": entry_id, "result": result, "mode": "fc", "here": True, **more}
            print(json.dumps(request), file=oracle.stdin, flush=True)
            reply = json.loads(oracle.stdout.readline())
            assert reply["valid"], reply
            total["clock"] += reply["seconds"]
            total["cpu"] += reply["cpu"]
        return total

    def ours(work: Callable[[], None]) -> dict[str, float]:
        began, worked = time.perf_counter(), _cpu(domain)
        work()
        return {"clock": time.perf_counter() - began, "cpu": _cpu(domain) - worked}

    def score() -> None:
        assert all(v["valid"] for v in results.verdicts_on(domain.upstream, list(answers.items()), "fc"))

    def harness() -> None:
        for task in tasks:
            _play(domain, task, runner)

    rounds: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {"score": [], "harness": []}
    for number in range(args.rounds + 1):
        pairs = (theirs(), ours(score)), (theirs(play=True), ours(harness))
        if number:  # the first round warms both sides up
            rounds["score"].append(pairs[0])
            rounds["harness"].append(pairs[1])
    scale = 1e3 / len(tasks)
    return {
        what: {
            measure: {
                "upstream_ms": _spread([a[measure] * scale for a, _ in pairs]),
                "ours_ms": _spread([b[measure] * scale for _, b in pairs]),
                "ratio": _spread([a[measure] / b[measure] for a, b in pairs]),
            }
            for measure in ("clock", "cpu")
        }
        for what, pairs in rounds.items()
    }


def _cpu(domain: Any) -> float:
    """CPU seconds of this process and of those for the backends."""
    import psutil

    times = (psutil.Process(pid).cpu_times() for pid in domain.upstream.pool.processes)
    return time.process_time() + sum(t.user + t.system for t in times)


def _play(domain: Any, task: Any, runner: asyncio.Runner) -> None:
    from mua.episode import play

    agent = domain.gold_agent(task, together=True)
    trajectory = runner.run(play(domain, task, agent, domain.user(task, 0)))
    json.dumps(trajectory.to_dict())
    assert trajectory.reward == 1.0, trajectory.reason


def _answer(domain: Any, task: Any) -> list[Any]:
    """The ground truth as a result file has it: the calls of a turn, then words."""
    turns: list[Any] = []
    steps: list[Any] = []
    for message in domain.gold_agent(task, together=True).script:
        calls = [{c.name: json.dumps(dict(c.arguments))} for c in message.tool_calls]
        steps.append(calls or message.content)
        if not calls:
            turns.append(steps)
            steps = []
    return turns


def _spread(values: list[float]) -> dict[str, float]:
    found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: round(value, 3) for name, value in found.items()}


def show(result: dict[str, Any]) -> None:
    for what in ("score", "harness"):
        for measure in ("clock", "cpu"):
            print(f"{what}, ms an entry by {measure}")
            for category in CATEGORIES:
                found = result[category][what][measure]
                a, b, ratio = (found[name]["median"] for name in ("upstream_ms", "ours_ms", "ratio"))
                print(f"  {category:<26} upstream {a:7.2f}   ours {b:7.2f}   ratio {ratio:5.1f}")


if __name__ == "__main__":
    main()
