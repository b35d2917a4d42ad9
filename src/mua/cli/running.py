"""What commands share: a configuration, a run folder, progress and Ctrl-C, files and lists.

Invariant: what a check refuses leaves no folder behind, and Ctrl-C ends where the same command goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import MuaError

if TYPE_CHECKING:
    from ..config import Config
    from ..pipeline import Run


def configure(source: str | Path | None, overrides: list[str] | None, more: dict[str, Any]) -> Config:
    """A recipe or file, then KEY=VALUE as typed, then what options stand for. Raises MuaError."""
    from ..config import load_config

    return load_config(source, overrides or (), more)


def run_config(
    config: str, out: Path, overrides: list[str] | None, more: dict[str, Any] | None = None
) -> Config:
    """The configuration that is named, else the run's own, else that of the quickstart."""
    own = out / "config.yaml"
    return configure(config or (own if own.is_file() else "quickstart"), overrides, more or {})


def need(out: Path, path: str, command: str, what: str) -> None:
    """Raises MuaError when an earlier stage has not left what this one starts from."""
    if not (out / path).exists():
        raise MuaError(f"the run folder {out} has no {what} yet; run `{command} --out {out}` first.")


def in_run(
    config: Config,
    out: Path,
    work: Callable[[Run], Coroutine[Any, Any, Any]],
    checks: Callable[[Config, Path], Coroutine[Any, Any, None]] | None = None,
) -> Any:
    """Does `work` in the run folder, after `checks`, so that what they refuse leaves no folder behind."""
    from .. import pipeline

    async def start(report: pipeline.Report, should_stop: Callable[[], bool]) -> Any:
        if checks:
            await checks(config, out)
        run = pipeline.open_run(config, out, report=report, should_stop=should_stop)
        with run.folder:
            return await work(run)

    return watched(start)


def watched(start: Callable[..., Coroutine[Any, Any, Any]]) -> Any:
    """Runs `start(report, should_stop)` with progress shown; Ctrl-C stops it where it can go on later."""
    import asyncio

    from .. import display, pipeline

    try:
        with display.interruptible() as should_stop, display.progress() as report:
            return asyncio.run(start(report, should_stop))
    except pipeline.Stopped:
        print("stopped; run the same command again to go on", file=sys.stderr)
        raise typer.Exit(130) from None


def write_file(path: Path, text: str) -> None:
    """Writes a file, with its folder. Raises MuaError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise MuaError(f"{path} cannot be written: {exc.strerror}.") from None


def first_lines(problems: list[str], most: int = 50) -> None:
    """Prints the first of a list, and how many more there are."""
    for line in problems[:most]:
        print(line)
    if len(problems) > most:
        print(f"… and {len(problems) - most} more")
