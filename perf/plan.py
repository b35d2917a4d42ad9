"""How far plans are off: a short run, and right after it a plan of it, at several sizes.

    python perf/plan.py                             # quickstart and laptop size: ten minutes on quiet cores
    python perf/plan.py --size laptop --json        # one line of JSON
    python perf/plan.py --size quickstart --out DIR # keeps the runs in DIR, and goes on with what is there

Each run is a whole one (cold start, SFT, GRPO, evaluation), shortened where length teaches a plan nothing.
The plan takes the run's conversations and measures the machine anew, so both have the same machine only as
long as nothing else begins or ends on it meanwhile. A run's figures are the medians of its steps and the mean
of its evaluations; an error is what the plan says too much, in percent of what was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BOUND = 25.0
"""Percent that a phase may be off: what the project asks of itself."""
PHASES = ("rollout", "update", "evaluation")

SIZES: dict[str, list[str]] = {
    "quickstart": ["sft.steps=600", "user_sft.steps=600", "train.steps=8"],
    "laptop": [
        *("--config", str(ROOT / "recipes" / "laptop.yaml")),
        *("coldstart.conversations=60", "sft.steps=6", "limits.turns=4", "limits.steps=8"),
        *("train.steps=3", "eval.tasks=10", "eval.temperatures=[1.0]"),
    ],
    "micro": [
        *("coldstart.conversations=40", "sft.steps=2", "user_sft.steps=2", "train.steps=1"),
        *("train.rollout.groups=2", "train.rollout.group_size=2", "train.rollout.refill_rounds=0"),
        *("train.processes=1", "train.max_step_tokens=8", "max_step_tokens=8", "limits.turns=2"),
        *("eval.tasks=4", "eval.temperatures=[1.0]", "train_user.max_tokens=8"),
    ],
}
"""Arguments of `mua quickstart`, by size. `micro` shows that it works, and measures nothing."""


def mua(*arguments: str) -> str:
    """What a command of mua prints. Ends with its words if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "mua", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"mua {' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def compare(plan: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Phase → planned and measured seconds, and the error in percent, of what `mua plan --json` prints."""
    out = {}
    for phase in PHASES:
        planned, measured = plan[phase], plan["measured"].get(phase)
        error = 100 * (planned / measured - 1) if planned is not None and measured else None
        out[phase] = {"planned": planned, "measured": measured, "error_percent": error}
    return out


def measure(size: str, folder: Path) -> dict[str, Any]:
    began = time.perf_counter()
    mua("quickstart", "--out", str(folder), *SIZES[size])
    ran = time.perf_counter()
    plan = json.loads(mua("plan", "--from", str(folder), "--json").splitlines()[-1])
    phases = compare(plan)
    errors = [p["error_percent"] for p in phases.values()]
    return {
        "phases": phases,
        "within": all(e is not None and abs(e) <= BOUND for e in errors),
        "load": os.getloadavg()[0],
        "seconds_run": ran - began,
        "seconds_plan": time.perf_counter() - ran,
    }


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["| size | phase | planned, s | measured, s | error, % |", "|---|---|---|---|---|"]
    for size, result in found.items():
        for phase, p in result["phases"].items():
            cells = [
                "" if p[k] is None else format(p[k], spec)
                for k, spec in (("planned", ".2f"), ("measured", ".2f"), ("error_percent", "+.0f"))
            ]
            lines.append(f"| {' | '.join([size, phase, *cells])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["quickstart", "laptop"])
    parser.add_argument("--out", type=Path, help="keeps the runs in this folder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for size in options.size:
            found[size] = measure(size, (options.out or Path(folder)) / size)
            print(table({size: found[size]}), file=sys.stderr)  # kept when the next one fails
    print(json.dumps(found) if options.json else table(found))


if __name__ == "__main__":
    main()
