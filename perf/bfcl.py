"""BFCL multi turn, ours against upstream's: scoring answers, and the whole scripted harness.

Both sides get the ground truth of the same entries as the model's answers, a call a step, category by
category, taking turns. Three things are measured:

- `score`: upstream's decoding and checker against ours, with our process for the backends and the pipe to it.
- `client`: the harness as its user runs it, on whole categories: a model behind an OpenAI-compatible endpoint
  (a local server that answers from the script at once), upstream's `bfcl generate` and `bfcl evaluate`
  against `mua eval`. One conversation at a time, 16, and each side's default. See `bfcl_client.py`.
- `harness`: the same without HTTP: upstream's handler with a model that answers inside its process, the
  result written, read and scored; ours: episodes with such an agent, scored, their lines of JSON made.

`score` and `harness` run upstream's code in an interpreter of its own with its heavy imports replaced; its
times are taken inside, and it is given fresh instances each time. `client` runs upstream as it is, which
needs an environment with all that it depends on; without `--python` only our side of it is measured.

Times are the mean of an entry, on the clock and in CPU time (of our child processes as well): on a busy
machine the clock says how the machine is shared. A ratio is upstream / ours in one round.

    python perf/bfcl.py --json
    python perf/bfcl.py --json --python UPSTREAM-PYTHON
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CATEGORIES = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")
ORACLE = Path(__file__).parents[1] / "tests" / "bfcl_upstream.py"
CLIENT = Path(__file__).with_name("bfcl_client.py")
AT_ONCE = {"one": (1, 1), "sixteen": (16, 16), "defaults": (1, 64)}
"""Conversations at once in `client`, upstream's and ours. By default upstream asks a hosted model one by one;
`mua eval` plays 64 with at most 16 requests in flight."""
Cost = dict[str, float]
"""{"clock", "cpu"} in seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entries", type=int, default=200, help="of each category, in `score` and `harness`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--benchmark", default="bfcl", choices=("bfcl", "bfcl-v3"))
    parser.add_argument("--python", default="", help="interpreter with bfcl-eval and its dependencies")
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
    about = _upstreams(args.python, source.version)
    out: dict[str, Any] = {"benchmark": args.benchmark, "entries": args.entries, "rounds": args.rounds}
    out["upstream_client"] = about
    command = [sys.executable, "-P", "-s", "-B", str(ORACLE), str(source.folder)]
    oracle = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        with asyncio.Runner() as runner:
            for category in CATEGORIES:
                domain = load(f"{args.benchmark}/{category}")
                out[category] = {
                    **_inside(domain, args, oracle, runner),
                    "client": _client(domain, args, runner, bool(about.get("versions"))),
                }
    finally:
        oracle.kill()
        oracle.communicate()
    return out


# ---------------------------------------------------------------- inside one process


def _inside(domain: Any, args: argparse.Namespace, oracle: Any, runner: asyncio.Runner) -> dict[str, Any]:
    from mua.benchmarks.bfcl import results

    tasks = list(domain.tasks("all"))[: args.entries]
    # One entry of V3 has fewer turns than its ground truth: nobody can play it to its end.
    tasks = [t for t in tasks if len(domain.entry(t).turns) == len(domain.entry(t).gold)]
    answers = {task.id: _answer(domain, task) for task in tasks}

    def theirs(**more: Any) -> Cost:
        total = {"clock": 0.0, "cpu": 0.0}
        for entry_id, result in answers.items():
            request = {"id": entry_id, "result": result, "mode": "fc", "here": True, **more}
            print(json.dumps(request), file=oracle.stdin, flush=True)
            reply = json.loads(oracle.stdout.readline())
            assert reply["valid"], reply
            total["clock"] += reply["seconds"]
            total["cpu"] += reply["cpu"]
        return total

    def ours(work: Callable[[], None]) -> Cost:
        began, worked = time.perf_counter(), _cpu(domain)
        work()
        return {"clock": time.perf_counter() - began, "cpu": _cpu(domain) - worked}

    def score() -> None:
        assert all(v["valid"] for v in results.verdicts_on(domain.upstream, list(answers.items()), "fc"))

    def harness() -> None:
        runner.run(_play(domain, tasks))

    rounds: dict[str, list[tuple[Cost, Cost]]] = {"score": [], "harness": []}
    for number in range(args.rounds + 1):
        pairs = (theirs(), ours(score)), (theirs(play=True), ours(harness))
        if number:  # the first round warms both sides up
            rounds["score"].append(pairs[0])
            rounds["harness"].append(pairs[1])
    return {what: _compared(pairs, len(tasks)) for what, pairs in rounds.items()}


def _cpu(domain: Any) -> float:
    """CPU seconds of this process and of those for the backends."""
    import psutil

    times = (psutil.Process(pid).cpu_times() for pid in domain.upstream.pool.processes)
    return time.process_time() + sum(t.user + t.system for t in times)


async def _play(domain: Any, tasks: list[Any]) -> None:
    from mua.episode import play

    for task in tasks:
        trajectory = await play(domain, task, domain.gold_agent(task), domain.user(task, 0))
        json.dumps(trajectory.to_dict())
        assert trajectory.reward == 1.0, trajectory.reason


def _answer(domain: Any, task: Any) -> list[Any]:
    """The ground truth as a result file has it: a call a step, then words."""
    turns: list[Any] = []
    steps: list[Any] = []
    for message in domain.gold_agent(task).script:
        calls = [{c.name: json.dumps(dict(c.arguments))} for c in message.tool_calls]
        steps.append(calls or message.content)
        if not calls:
            turns.append(steps)
            steps = []
    return turns


# ---------------------------------------------------------------- with a client


def _upstreams(python: str, version: str) -> dict[str, Any]:
    """{"versions"} of upstream's environment, or what is {"missing"} and how to get it."""
    how = (
        f"upstream's own client was not run: it needs bfcl-eval {version} with its dependencies, which do "
        "not go with ours. Make an environment for it with Python 3.12 or older (`python -m venv UP; "
        f"UP/bin/pip install bfcl-eval=={version} soundfile`), and give `--python UP/bin/python`."
    )
    if not python:
        return {"missing": how}
    check = (
        "import json, importlib.metadata as m, bfcl_eval._llm_response_generation; "
        "print(json.dumps({n: m.version(n) for n in ('bfcl-eval', 'openai')}))"
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [python, "-c", check],
                capture_output=True,
                text=True,
                check=False,
                env={**_environment(), "BFCL_PROJECT_ROOT": folder},
            )
        except OSError as exc:
            sys.exit(f"{how}\n{python} cannot be run: {exc.strerror}.")
    if done.returncode:
        sys.exit(f"{how}\n{python} said: {done.stderr.strip().splitlines()[-1]}")
    versions = json.loads(done.stdout.splitlines()[-1])
    if versions["bfcl-eval"] != version:
        sys.exit(f"{how}\n{python} has bfcl-eval {versions['bfcl-eval']}.")
    return {"versions": versions}


def _client(domain: Any, args: argparse.Namespace, runner: asyncio.Runner, both: bool) -> dict[str, Any]:
    """Both sides over HTTP, in processes of their own, on all entries of the category."""
    tasks = list(domain.tasks("all"))
    category = domain.name.partition("/")[2]
    script = [
        {
            "users": runner.run(_said(domain.user(task, 0))),
            "turns": [[_pairs(step) for step in turn] for turn in _answer(domain, task)],
        }
        for task in tasks
    ]
    pairs: dict[str, list[tuple[Cost | None, Cost]]] = {name: [] for name in AT_ONCE}
    with _server(script) as url:

        def run(python: str, side: str, what: str, number: int) -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as folder:
                command = [python, str(CLIENT), side, what, str(number), folder, url]
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, env=_environment()
                )
            if done.returncode:
                sys.exit(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
            return json.loads(done.stdout.splitlines()[-1])

        for _ in range(args.rounds):
            theirs: dict[int, Any] = {}
            mine: dict[int, Any] = {}
            for name, (number, own) in AT_ONCE.items():
                if both and number not in theirs:
                    theirs[number] = run(args.python, "upstream", category, number)
                if own not in mine:
                    mine[own] = run(sys.executable, "mua", domain.name, own)
                pairs[name].append((theirs.get(number), mine[own]))
            accuracies = {found["accuracy"] for found in (*theirs.values(), *mine.values())}
            assert len(accuracies) == 1 and min(accuracies) > 0.99, (theirs, mine)
    return {name: _compared(rounds, len(tasks)) for name, rounds in pairs.items()}


async def _said(user: Any) -> list[str]:
    """All that a scripted user says."""
    lines = []
    while not (turn := await user.reply([])).stop:
        lines.append(turn.text)
    return lines


def _pairs(step: Any) -> Any:
    """A step for the server: words, or (name, arguments) pairs."""
    return step if isinstance(step, str) else [pair for call in step for pair in call.items()]


@contextlib.contextmanager
def _server(script: list[Any]) -> Iterator[str]:
    """The address of a server that answers from the script; it ends with the block."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(script, file)
        file.flush()
        command = [sys.executable, str(CLIENT), "server", file.name]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
        finally:
            server.kill()
            server.communicate()


def _environment() -> dict[str, str]:
    """One thread a process: both sides are compared by what they do, not by how they share the machine."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


# ---------------------------------------------------------------- figures


def _compared(pairs: list[tuple[Cost | None, Cost]], entries: int) -> dict[str, Any]:
    """{"clock", "cpu"} → {"upstream_ms", "ours_ms", "ratio"} over the rounds; or ours alone."""
    scale = 1e3 / entries
    out: dict[str, Any] = {}
    for how in ("clock", "cpu"):
        out[how] = {"ours_ms": _spread([ours[how] * scale for _, ours in pairs])}
        both = [(theirs[how], ours[how]) for theirs, ours in pairs if theirs is not None]
        if both:
            out[how]["upstream_ms"] = _spread([a * scale for a, _ in both])
            out[how]["ratio"] = _spread([a / b for a, b in both])
    return out


def _spread(values: list[float]) -> dict[str, float]:
    found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: round(value, 3) for name, value in found.items()}


def show(result: dict[str, Any]) -> None:
    about = result["upstream_client"]
    print(about.get("missing") or f"upstream's client: {about['versions']}")
    for what in ("score", "harness", *AT_ONCE):
        for how in ("clock", "cpu"):
            lines = []
            for category in CATEGORIES:
                found = result[category].get(what) or result[category]["client"].get(what)
                if found:
                    lines.append(f"  {category:<26} {_line(found[how])}")
            if lines:
                name = what if what in ("score", "harness") else f"client, {_AT_ONCE[what]}"
                print(f"{name}: ms an entry by {how}", *lines, sep="\n")


_AT_ONCE = {"one": "one at a time", "sixteen": "16 at once", "defaults": "each side's default"}


def _line(found: dict[str, Any]) -> str:
    ours = f"ours {found['ours_ms']['median']:7.2f}"
    if "ratio" not in found:
        return ours
    return f"upstream {found['upstream_ms']['median']:7.2f}   {ours}   ratio {found['ratio']['median']:5.1f}"


if __name__ == "__main__":
    main()
