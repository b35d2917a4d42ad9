"""The quickstart on several seeds: what RL adds to the cold start, and what it takes.

    python perf/quickstart.py --seeds 0 1 2 --out runs --json

Runs `mua quickstart` for each seed whose summary is not there yet, prints a table, and (with --json) ends
with one JSON line: gains in points, seconds and memory, each as min / median / max over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path


def run(seed: int, out: Path, overrides: list[str]) -> dict:
    folder = out / f"quickstart-seed{seed}"
    if not (folder / "summary.json").exists():
        command = [sys.executable, "-m", "mua", "quickstart", "--seed", str(seed), "--out", str(folder)]
        subprocess.run([*command, *overrides], check=True, stdout=sys.stderr)
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", help="key=value, passed on")
    args = parser.parse_args()
    rows = [run(seed, args.out, args.overrides) for seed in args.seeds]
    print("| seed | base | cold start | RL | gain | greedy: base | cold start | RL | gain [95 %] | s | MB |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    gains, greedy = [], []
    for row in rows:
        base, cold, rl = (row[name] for name in ("base", "cold_start", "rl"))
        gains.append(100 * (rl["success"] - cold["success"]))
        greedy.append(100 * (rl["success_greedy"] - cold["success_greedy"]))
        paired = row["gain_greedy"]
        print(
            f"| {row['seed']} | {base['success']:.3f} | {cold['success']:.3f} | {rl['success']:.3f} "
            f"| {gains[-1]:+.1f} | {base['success_greedy']:.3f} | {cold['success_greedy']:.3f} "
            f"| {rl['success_greedy']:.3f} | {greedy[-1]:+.1f} "
            f"[{100 * paired['low']:+.1f}, {100 * paired['high']:+.1f}] "
            f"| {row['seconds_train']:.0f} | {row['peak_mb']:.0f} |"
        )
    sampled, best = statistics.mean(gains), statistics.mean(greedy)
    print(f"\nmean gain in points: {sampled:+.1f} at T = 1, {best:+.1f} greedy")
    if args.json:
        figures = {
            "gain_points": spread(gains),
            "gain_points_greedy": spread(greedy),
            "seconds_train": spread([row["seconds_train"] for row in rows]),
            "peak_mb": spread([row["peak_mb"] for row in rows]),
        }
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
