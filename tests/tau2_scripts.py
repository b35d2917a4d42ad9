"""Scripted τ²-bench conversations for tests: gold, perturbed in every way that a model goes wrong.

    python tests/tau2_scripts.py --oracle PYTHON --upstream UPSTREAM/src --count 5000

compares our verdicts on perturbed scripts with those of upstream's own evaluator, component by component.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mua.benchmarks import load
from mua.benchmarks.tau2 import GREETING, scoring
from mua.chat import Message

PARTS = ("retail", "airline", "telecom", "telecom-solo")
Call = tuple[str, str, dict[str, Any]]
"""(side, name, arguments)"""


def gold(task: Any, solo: bool = False) -> list[Call]:
    return [("assistant" if solo else a.requestor, a.name, dict(a.arguments)) for a in task.actions]


def messages(calls: list[Call], said: list[str], solo: bool = False) -> list[dict[str, Any]]:
    """A conversation in upstream's form; the tools' answers are left to the replay."""
    out: list[dict[str, Any]] = [] if solo else [{"role": "assistant", "content": GREETING}]
    for i, (side, name, arguments) in enumerate(calls):
        call = {"id": f"c{i}", "name": name, "arguments": arguments, "requestor": side}
        out.append({"role": side, "content": None, "tool_calls": [call]})
        out.append({"role": "tool", "id": f"c{i}", "content": "", "requestor": side})
    out += [{"role": "assistant", "content": text} for text in said]
    if not solo:
        out.append({"role": "user", "content": "###STOP###"})
    return out


def _retype(value: Any, rng: random.Random) -> Any:
    """A value of another type, as models write them."""
    if isinstance(value, bool):
        return rng.choice([str(value), int(value)])
    if isinstance(value, int):
        return rng.choice([float(value), str(value), value + 1, bool(value)])
    if isinstance(value, float):
        return rng.choice([int(value), str(value), value + 0.01])
    if isinstance(value, str):
        return rng.choice([value.upper(), value + " ", "", [value], None, 7])
    if isinstance(value, list):
        return rng.choice([value[::-1], value[:-1], value + value[:1], {}, json.dumps(value)])
    return rng.choice([None, [value], str(value)])


def perturb(calls: list[Call], others: list[Call], tools: dict[str, list[str]], rng: random.Random) -> None:
    """One change in place: drop, duplicate, swap, retype, other arguments, unknown or foreign tools, …"""
    calls[:] = [(s, n, copy.deepcopy(a)) for s, n, a in calls]
    i = rng.randrange(len(calls)) if calls else 0
    kind = rng.choice(["drop", "twice", "swap", "type", "type", "key", "name", "side", "insert", "insert"])
    if kind == "insert" or not calls:
        calls.insert(rng.randint(0, len(calls)), copy.deepcopy(rng.choice(others)))
        return
    side, name, arguments = calls[i]
    if kind == "drop":
        del calls[i]
    elif kind == "twice":
        calls.insert(rng.randint(i, len(calls)), copy.deepcopy(calls[i]))
    elif kind == "swap":
        j = rng.randrange(len(calls))
        calls[i], calls[j] = calls[j], calls[i]
    elif kind == "type" and arguments:
        key = rng.choice(sorted(arguments))
        arguments[key] = _retype(arguments[key], rng)
    elif kind == "key" and arguments:
        key = rng.choice(sorted(arguments))
        value = arguments.pop(key)
        if rng.random() < 0.5:
            arguments[key + "_"] = value
    elif kind == "name":
        calls[i] = (side, rng.choice([*tools[side], "no_such_tool", "get_db_hash"]), arguments)
    elif kind == "side":
        calls[i] = ("user" if side == "assistant" else "assistant", name, arguments)


def conversations(part: str, count: int, seed: int, split: str = "base") -> Iterator[dict[str, Any]]:
    """Perturbed gold scripts of a part, as the oracle reads them."""
    domain: Any = load(f"tau2/{part}")
    rng = random.Random(f"{seed}/{part}")
    tasks = domain.tasks(split)
    pool = [call for task in tasks for call in gold(task, domain.solo)]
    tools = {"assistant": [*domain.tools()], "user": [*domain.tools("user"), "none"]}
    tools["assistant"] = [t for t in tools["assistant"] if t not in ("done", "get_item_details")]
    pool += [(s, n, {}) for s in tools for n in tools[s] if s == "assistant" or not domain.solo]
    for n in range(count):
        task = tasks[n % len(tasks)]
        calls = gold(task, domain.solo)
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            perturb(calls, pool, tools, rng)
        if domain.solo:  # there is no user whose calls could be stored
            calls = [("assistant", name, arguments) for _, name, arguments in calls]
        said = [*(task.criteria.get("communicate_info") or [])]
        if said and rng.random() < 0.3:
            said[0] = rng.choice([said[0].upper(), f"It is {said[0]}, as you see.", "nothing"])
        nl = [rng.random() < 0.8 for _ in scoring.assertions_of(task)]
        yield {
            "domain": part.removesuffix("-solo"),
            "solo": domain.solo,
            "task": task.data,
            "messages": messages(calls, said, domain.solo),
            "termination": "user_stop",
            "nl": nl,
        }


def ours(line: dict[str, Any]) -> dict[str, Any]:
    """Our verdict in the oracle's form."""
    domain: Any = load(f"tau2/{line['domain']}" + ("-solo" if line["solo"] else ""))
    task = domain.make_task(line["task"])
    said = [Message.from_dict(m) for m in line["messages"]]
    checks = domain.checks(task, said)
    found = scoring.combine(task, checks, line["nl"])
    names = ("db", "env_assertion", "action", "communicate")
    return {
        "reward": found.reward,
        **{n: found.components[n] for n in names},
        "env_checks": [c.met for c in checks if c.component == "env_assertion"],
    }


def oracle(python: str, upstream: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Upstream's verdicts on the lines, from one process of its own."""
    script = Path(__file__).with_name("tau2_oracle.py")
    done = subprocess.run(
        [python, str(script)],
        input="".join(json.dumps(line) + "\n" for line in lines),
        env={**os.environ, "PYTHONPATH": upstream, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(text) for text in done.stdout.splitlines()]


def compare(python: str, upstream: str, counts: dict[str, int], seed: int) -> tuple[Counter[str], list[str]]:
    """(tally, differences in words) over so many perturbed scripts of each part."""
    tally: Counter[str] = Counter()
    wrong: list[str] = []
    for part, count in counts.items():
        lines = list(conversations(part, count, seed))
        for line, theirs in zip(lines, oracle(python, upstream, lines), strict=True):
            mine = ours(line)
            if "error" in theirs:  # upstream's evaluator itself broke: there is no verdict to compare
                tally[f"{part}: upstream's evaluator raised {theirs['error'][:90]}"] += 1
            elif mine == theirs:
                tally[f"{part}: equal, reward {mine['reward']:g}"] += 1
            else:
                tally[f"{part}: different"] += 1
                calls = [c for m in line["messages"] for c in m.get("tool_calls") or ()]
                wrong.append(f"{part} {line['task']['id']}: ours {mine}, upstream {theirs}; {calls}")
    return tally, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--oracle", default=sys.executable, help="a Python that can import upstream")
    parser.add_argument("--upstream", required=True, help="folder that holds the package tau2")
    parser.add_argument("--count", type=int, default=200, help="scripts in all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    counts = {part: args.count // len(PARTS) for part in PARTS}
    tally, wrong = compare(args.oracle, args.upstream, counts, args.seed)
    for name, n in sorted(tally.items()):
        print(f"{n:>6}  {name}")
    print("\n".join(wrong[:20]))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
