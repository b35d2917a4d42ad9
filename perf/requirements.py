"""Whether this Python has what mua needs: names what is missing and exits with 2; installs nothing.

python perf/requirements.py
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

OPTIONAL = {"pip", "openai", "datasketch"}
"""Of endpoints, benchmarks and the data set of the cold start: no run on a local model touches them."""


def numbers(version: str) -> tuple[int, ...]:
    """`2.11.0+cu130` as (2, 11, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def problem(requirement: str) -> str:
    """What is wrong with `name>=1,<2`, in words; empty when it is met. Only >= and < are known here."""
    name, bounds = re.match(r"([\w.-]+)\s*(.*)", requirement).groups()  # type: ignore[union-attr]
    if name in OPTIONAL:
        return ""
    try:
        here = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement} (not installed)"
    for bound in filter(None, bounds.split(",")):
        least, wanted = bound.startswith(">="), numbers(bound)
        if (numbers(here) < wanted) if least else (numbers(here) >= wanted):
            return f"{requirement} (here: {here})"
    return ""


def main() -> None:
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))
    missing = list(filter(None, map(problem, project["project"]["dependencies"])))
    if missing:
        names = " ".join(f"'{text.partition(' (')[0]}'" for text in missing)
        version = ".".join(map(str, sys.version_info[:2]))
        sys.exit(
            f"{sys.executable} (Python {version}) lacks: {'; '.join(missing)}. Where there is a network: "
            f"python -m pip download -d wheels --only-binary=:all: --python-version {version} {names}; keep "
            "from it what is not here yet, and run again with --wheels wheels."
        )


if __name__ == "__main__":
    try:
        main()
    except SystemExit as exc:
        print(exc, file=sys.stderr)
        sys.exit(2 if exc.code else 0)
