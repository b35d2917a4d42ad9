"""How fast ACEBench is scored and played, beside upstream's own code where that can be run.

The agent knows the answer and the user says one sentence, so that what is timed is the harness alone.
Upstream's endpoint is a script; the table of each conversation that it writes to a file is left out, unless
`--tables` asks for it. Both run in this process and their CPU time counts, so that what else the machine does
hits neither; a ratio is taken per round.

    python perf/acebench.py --json [--upstream CHECKOUT [--tables]]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="times that every entry is played and scored")
    parser.add_argument("--upstream", default="", help="checkout; default: what is installed, if it is whole")
    parser.add_argument(
        "--tables", action="store_true", help="upstream writes its tables too (wants wcwidth)"
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    result = measure(args.rounds, args.upstream, args.tables)
    show(result)
    if args.json:
        print(json.dumps(result))


def measure(rounds: int, checkout: str, tables: bool) -> dict[str, Any]:
    """Milliseconds of CPU time an entry, by round, and upstream's as a multiple of ours."""
    import acebench_upstream as oracle
    from mua.benchmarks import load
    from mua.benchmarks.acebench import checker
    from mua.benchmarks.acebench.data import CATEGORIES, entries
    from mua.benchmarks.acebench.oracle import Oracle, solution
    from mua.benchmarks.store import installed
    from mua.episode import play

    found = installed("acebench")
    whole = Path(checkout or found.path).resolve()
    upstream = oracle.Upstream(whole, tables) if (whole / "eval_main.py").is_file() else None
    ours: dict[str, Callable[[], Any]] = {}
    theirs: dict[str, Callable[[], Any]] = {}
    count = 0
    jobs: list[tuple[Any, ...]] = []
    for mode, language in CATEGORIES:
        domain = load(f"acebench/{mode}_{language}")
        for entry in entries(found.path, mode, language):
            steps = solution(entry, domain.start())  # type: ignore[attr-defined]
            task = domain.task(entry.id)
            answer = oracle.raw(whole, entry, True) if upstream else {}
            config = oracle.raw(whole, entry, False)["initial_config"] if upstream else {}
            apis = domain.apis(task)  # type: ignore[attr-defined]
            for step in steps:
                apis.run(step)
            jobs.append((domain, task, entry, steps, apis.states, answer, config))
            count += 1

    def user(domain: Any, task: Any) -> Any:
        return domain.user(task, 0) or oracle.ScriptedUser(oracle.Script(["go on"]))

    async def played() -> list[Any]:
        return [
            await play(domain, task, Oracle(steps), user(domain, task)) for domain, task, _, steps, *_ in jobs
        ]

    def scored() -> list[bool]:
        out = []
        for _, _, entry, steps, states, *_ in jobs:
            valid = checker.end_to_end(entry, states).valid
            checker.process(entry, steps, valid)
            out.append(valid)
        return out

    ours["harness"] = lambda: [t.reward == 1.0 for t in asyncio.run(played())]
    ours["scoring"] = scored
    if upstream is not None:
        theirs["harness"] = lambda: [
            upstream.play(entry, [*steps, "finish conversation"], ["go on"], config)[0] is not None
            for _, _, entry, steps, _, _, config in jobs
        ]
        theirs["scoring"] = lambda: [
            upstream.grade(entry, answer, {"result": states, "process": steps})[0]
            for _, _, entry, steps, states, answer, _ in jobs
        ]
    spent: dict[str, list[float]] = {}
    for number in range(rounds + 1):  # the first one warms up
        for name in ours:
            for side, what in (("ours", ours), ("upstream", theirs)):
                if name in what:
                    began = time.process_time()
                    right = what[name]()
                    passed = 1000 * (time.process_time() - began) / count
                    if not all(right):
                        sys.exit(f"{side}: not every entry was solved in {name}")
                    if number:
                        spent.setdefault(f"{name}, {side}", []).append(passed)
    ratios = {
        name: spread_of(
            [u / o for o, u in zip(spent[f"{name}, ours"], spent[f"{name}, upstream"], strict=True)]
        )
        for name in theirs
    }
    return {
        "entries": count,
        "rounds": rounds,
        "version": found.version,
        "tables": tables,
        "cpu_ms_an_entry": {name: spread_of(values) for name, values in spent.items()},
        "upstream_to_ours": ratios,
    }


def spread_of(values: list[float]) -> dict[str, float]:
    return {
        "min": round(min(values), 4),
        "median": round(statistics.median(values), 4),
        "max": round(max(values), 4),
    }


def show(result: dict[str, Any]) -> None:
    out = sys.stdout
    out.write(f"{result['entries']} entries, {result['rounds']} rounds, ACEBench {result['version']}\n")
    tables = (("CPU ms an entry", "cpu_ms_an_entry"), ("upstream : ours", "upstream_to_ours"))
    for title, key in tables:
        out.write(f"{title:<24}{'min':>10}{'median':>10}{'max':>10}\n")
        for name, row in result[key].items():
            out.write(f"  {name:<22}{row['min']:>10}{row['median']:>10}{row['max']:>10}\n")
    if not result["upstream_to_ours"]:
        out.write("  (upstream's code is not here; give its checkout: --upstream DIR)\n")


if __name__ == "__main__":
    main()
