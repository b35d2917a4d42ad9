"""`python -m mua.testing chaos|fuzz|states|soak`; see the package."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import MuaError
from . import chaos, fuzz, soak, states


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mua.testing", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    one = commands.add_parser("chaos", help="training runs under faults")
    one.add_argument("--plan", type=Path, default=chaos.HERE / "plan.yaml", help="a fault plan (YAML)")
    one.add_argument("--config", type=Path, default=chaos.HERE / "run.yaml", help="the run that is disturbed")
    one.add_argument("--minutes", type=float, default=30.0, help="after which it is given up")
    two = commands.add_parser("fuzz", help="hostile output and input")
    two.add_argument("--count", type=int, default=100_000, help="agent messages of each format")
    two.add_argument("--seed", type=int, default=0)
    three = commands.add_parser("states", help="random calls against every domain")
    three.add_argument("domains", nargs="*", help="names; none: all whose data is here")
    three.add_argument("--rounds", type=int, default=10, help="each of four episodes at once")
    three.add_argument("--seconds", type=float, default=20.0, help="after which a domain begins no round")
    three.add_argument("--seed", type=int, default=0)
    four = commands.add_parser("soak", help="episodes for an hour")
    four.add_argument("--minutes", type=float, default=60.0)
    for command, name in ((one, "chaos"), (two, "chaos"), (three, "chaos"), (four, "soak")):
        command.add_argument("--out", type=Path, default=Path("runs") / name, help="folder of the results")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    do: Mapping[str, Callable[[argparse.Namespace], bool]] = {
        "chaos": _chaos, "fuzz": _fuzz, "states": _states, "soak": _soak
    }  # fmt: skip
    try:
        passed = do[given.what](given)
    except MuaError as exc:
        print(f"error: {exc}", file=sys.stderr)
        sys.exit(1)
    print("passed" if passed else "FAILED")
    sys.exit(0 if passed else 1)


def _chaos(given: argparse.Namespace) -> bool:
    place = Path(tempfile.mkdtemp(prefix="mua-chaos-")) / "campaign"
    result = chaos.campaign(given.plan, place, given.config, given.minutes)
    _write(given.out / "chaos.json", result)
    for name, run in result["runs"].items():
        print(f"{name}: {len(run['starts'])} starts, {run['seconds']:.0f} s, {json.dumps(run['figures'])}")
        print(f"  faults {json.dumps(run['faults'])}")
        _tell(run["problems"])
    print(f"everything is in {place}")
    return result["passed"]


def _fuzz(given: argparse.Namespace) -> bool:
    from ..domains import load

    domain, lockers = load("library:desk"), chaos.HERE / "domain.yaml"
    count, seed, folder = given.count, given.seed, Path(tempfile.mkdtemp(prefix="mua-fuzz-"))
    jobs: list[Callable[[], fuzz.Outcome]] = [
        *(lambda kind=kind: fuzz.agent_messages(kind, count, seed, domain) for kind in fuzz.readers()),
        lambda: fuzz.marks(count // 20, seed),
        lambda: fuzz.endpoint_answers(count // 5, seed),
        lambda: fuzz.configurations(count // 50, seed, folder),
        lambda: fuzz.domain_files(count // 50, seed, folder),
        lambda: fuzz.trajectories(count // 20, seed, folder, domain),
        lambda: fuzz.mcp_answers(count // 100, seed, folder, lockers),
    ]
    return _all(given.out / "fuzz.json", jobs)


def _states(given: argparse.Namespace) -> bool:
    from ..domains import load

    names = given.domains or [*states.everything(), str(chaos.HERE / "domain.yaml")]

    def job(name: str) -> states.Outcome:
        return states.check(load(name), given.seed, given.rounds, seconds=given.seconds)

    jobs = [functools.partial(job, name) for name in names]
    return _all(given.out / "states.json", jobs)


def _all(path: Path, jobs: list[Callable[[], Any]]) -> bool:
    """Does them one after the other; what there is by then stands in the file."""
    found = []
    for job in jobs:
        began = time.monotonic()
        outcome = job()
        seconds = time.monotonic() - began
        found.append({**vars(outcome), "seconds": seconds})
        shown = {k: v for k, v in found[-1].items() if k not in ("problems", "seconds")}
        print(f"{seconds:.0f} s {json.dumps(shown)}", flush=True)
        _tell({"": outcome.problems} if outcome.problems else {})
        _write(path, {"outcomes": found, "passed": not any(o["problems"] for o in found)})
    return not any(o["problems"] for o in found)


def _soak(given: argparse.Namespace) -> bool:
    result = soak.soak(given.minutes, given.out)
    print(json.dumps({k: v for k, v in result.items() if k != "samples"}, indent=1))
    return result["passed"]


def _tell(problems: Mapping[str, list[str]]) -> None:
    for promise, texts in problems.items():
        for text in texts:
            print(f"  BROKEN {promise}: {text}", flush=True)


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
