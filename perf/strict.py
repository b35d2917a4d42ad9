"""What each strict option does to the scores of stored τ¹ and τ² conversations, and to doing nothing.

Every conversation is graded by the plain benchmark and by the variant with one option, then with all of
them; counted is which verdicts change, and the mean reward before and after. Nothing here is timed.

    python perf/strict.py SHARED --json

SHARED is the folder that holds conformance/; tau1 and tau2 must be installed.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mua.benchmarks import load
from mua.benchmarks.strict import ALL, OPTIONS
from mua.benchmarks.tau1 import results as tau1
from mua.benchmarks.tau2 import results as tau2
from mua.chat import Message, ToolCall
from mua.trajectory import Termination

CONTROLS = ("tau1/retail", "tau1/airline", "tau2/retail", "tau2/airline", "tau2/telecom")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shared", type=Path, help="the folder that holds conformance/")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    result = {"stored": stored(args.shared / "conformance"), "controls": controls()}
    show(result)
    if args.json:
        print(json.dumps(result))


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    """By option and domain: conversations, successes before and after, verdicts that turned either way."""
    before = {where: reward for where, _, reward in _rewards(folder, "")}
    out: dict[str, dict[str, Any]] = {}
    for option in (*OPTIONS, ALL):
        rows: dict[str, Counter[str]] = {}
        for where, domain, reward in _rewards(folder, f"+{option}"):
            row = rows.setdefault(domain.partition("+")[0], Counter())
            was, now = before[where] >= 1, reward >= 1
            row.update({"n": 1, "before": was, "after": now, "lost": was and not now, "won": now and not was})
        out[option] = {domain: dict(row) for domain, row in rows.items()}
    return out


def _rewards(folder: Path, options: str) -> Iterator[tuple[str, str, float]]:
    for name, module in (("tau1", tau1), ("tau2", tau2)):
        for path in sorted((folder / name).glob("*.jsonl.gz")):
            for number, verdict in enumerate(module.verdicts(f"{name}{options}", path)):
                yield f"{path.name} {number}", verdict["domain"], verdict["reward"] or 0.0


def controls() -> dict[str, dict[str, dict[str, float]]]:
    """By domain and option ("" is the plain one): how many tasks a silent agent earns, one that hands over at
    once, and one that plays the gold actions, of how many. Assertions in natural language are not judged."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for name in CONTROLS:
        for option in ("", *OPTIONS, ALL):
            domain = load(f"{name}+{option}" if option else name)
            tasks = domain.tasks("test" if name.startswith("tau1") else "base")
            row = {"tasks": float(len(tasks)), "nothing": 0.0, "transfer": 0.0, "gold": 0.0}
            for task in tasks:
                row["nothing"] += domain.grade(task, _said(), Termination.USER_STOP).reward
                call = ToolCall("transfer_to_human_agents", {"summary": "x"}, "t")
                handed = [*_said(), *_called("assistant", call)]
                row["transfer"] += domain.grade(task, handed, Termination.USER_STOP).reward
                gold = _said(*(getattr(task, "outputs", None) or _communicated(task)))
                for number, action in enumerate(task.actions):
                    gold += _called(action.requestor, ToolCall(action.name, action.arguments, str(number)))
                row["gold"] += domain.grade(task, gold, Termination.USER_STOP).reward
            out.setdefault(name, {})[option or "plain"] = row
    return out


def _said(*texts: str) -> list[Message]:
    return [Message("assistant", " ".join(("Hello.", *texts)))]


def _called(side: Any, call: ToolCall) -> list[Message]:
    return [
        Message(side, tool_calls=(call,)),
        Message("tool", "ok", tool_call_id=call.id, requestor=side),
    ]


def _communicated(task: Any) -> list[str]:
    criteria = getattr(task, "criteria", None) or {}
    return [str(text) for text in criteria.get("communicate_info") or ()]


def show(result: dict[str, Any]) -> None:
    """Both tables in markdown."""
    domains = sorted({d for row in result["stored"].values() for d in row})
    some = next(iter(result["stored"].values()))
    print("| option | " + " | ".join(f"{d} ({some[d]['n']})" for d in domains) + " |")
    print("|---" * (len(domains) + 1) + "|")
    print("| none: solved | " + " | ".join(f"{some[d]['before']}" for d in domains) + " |")
    for option, row in result["stored"].items():
        cells = (f"{row[d]['after']} (−{row[d]['lost']}, +{row[d]['won']})" for d in domains)
        print(f"| {option} | " + " | ".join(cells) + " |")
    print()
    print("| control | " + " | ".join(("plain", *OPTIONS, ALL)) + " |")
    print("|---" * (len(OPTIONS) + 3) + "|")
    for name, rows in result["controls"].items():
        for control in ("nothing", "transfer", "gold"):
            cells = (f"{row[control]:.0f}" for row in rows.values())
            print(f"| {name}, {control} ({rows['plain']['tasks']:.0f}) | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
