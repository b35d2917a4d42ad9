"""What a report costs: seconds and memory to build, size, and how soon a reader can use it.

    python perf/report.py --json                        # made-up runs of 1,000, 10,000 and 100,000 rollouts
    python perf/report.py --run runs/quickstart-seed0   # a real one: its conversations are audited, too

`interactive` is from opening the file in headless Chromium until the page is drawn and shows a conversation,
with what a key press then takes in `key`; `search` reads every conversation for words that one of them has.
Medians of `--rounds`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

INTERACTIVE = 2.0
"""Seconds that a page of 10,000 conversations may take."""
BUILD = (
    "import sys, time, resource; from pathlib import Path; from mua.report import build_report;"
    "wall, cpu = time.perf_counter(), time.process_time();"
    "build_report(Path(sys.argv[1]), Path(sys.argv[2]));"
    "print(time.perf_counter() - wall, time.process_time() - cpu,"
    " resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
)
NEEDLE = "there is a needle here"


def build(run: Path, page: Path) -> dict[str, float]:
    """In a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(run), str(page)], capture_output=True, text=True, check=True
    )
    wall, cpu, peak = map(float, done.stdout.split())
    return {"build_s": wall, "build_cpu_s": cpu, "peak_mb": peak, "size_mb": page.stat().st_size / 1e6}


def read(browser: Any, page: Path, words: str) -> dict[str, float]:
    """A reader opens the page, takes the next conversation, and searches."""
    from browser import Watched, until

    watched = Watched(browser)
    began = time.perf_counter()
    tab = watched.open(page)
    tab.locator("#browse .talk").wait_for()
    interactive = time.perf_counter() - began
    tab.locator("#browse [role=listbox]").focus()
    first = tab.locator("#browse .talk").get_attribute("data-conversation")
    began = time.perf_counter()
    tab.keyboard.press("End")
    until(tab, f"document.querySelector('#browse .talk').dataset.conversation !== {json.dumps(first)}")
    key = time.perf_counter() - began
    tab.get_by_role("button", name="Clear filters").click()
    rows = tab.evaluate("ROWS.length")
    began = time.perf_counter()
    tab.get_by_role("searchbox", name="Search").fill(words)
    until(tab, "!document.querySelector('#browse progress').hidden", 5)
    until(tab, "document.querySelector('#browse progress').hidden", 300)
    search = time.perf_counter() - began
    watched.close(page)
    return {"conversations": rows, "interactive_s": interactive, "key_s": key, "search_s": search}


def measure(run: Path, words: str, rounds: int) -> dict[str, float]:
    from browser import chromium

    with tempfile.TemporaryDirectory() as place, chromium() as browser:
        page = Path(place) / "report.html"
        found = [{**build(run, page), **read(browser, page, words)} for _ in range(rounds)]
    return {k: round(statistics.median(f[k] for f in found), 3) for k in found[0]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--run", type=Path, help="a run folder; default: made-up ones")
    options.add_argument("--sizes", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    results = {}
    if args.run is not None:
        results[args.run.name] = measure(args.run, "no words of anybody's", args.rounds)
    else:
        from fake_run import add_rollouts, make_run

        for size in args.sizes:
            with tempfile.TemporaryDirectory() as place:
                run = make_run(Path(place), steps=100, tasks=40, samples=1)
                add_rollouts(run, size)
                with (run / "trajectories.jsonl").open("a+") as file:
                    file.seek(0)
                    last = json.loads(file.readline())
                    last["messages"][-1]["content"] = NEEDLE
                    file.write(json.dumps(last) + "\n")
                results[f"{size:,} rollouts"] = measure(run, NEEDLE, args.rounds)
    print(json.dumps(results, indent=1) if args.json else "")
    for name, r in results.items():
        print(
            f"{name}: {r['conversations']:,.0f} conversations, {r['size_mb']:.1f} MB, built in "
            f"{r['build_s']:.1f} s ({r['peak_mb']:.0f} MB), interactive in {r['interactive_s']:.2f} s, "
            f"searched in {r['search_s']:.2f} s",
            file=sys.stderr,
        )
    slow = [
        n for n, r in results.items() if r["conversations"] <= 12_000 and r["interactive_s"] > INTERACTIVE
    ]
    if slow:
        sys.exit(f"not interactive within {INTERACTIVE} s: {', '.join(slow)}")


if __name__ == "__main__":
    main()
