"""Held-out tasks played by a model: `mua eval`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import MuaError
from .compare import bad_input, check_against, compare_with
from .options import AnyConfig, ApiKeyEnv, BaseUrl, Confident, DomainName, FailBelow, Overrides, UserName
from .running import configure, watched

if TYPE_CHECKING:
    from .. import pipeline


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model folder, a run folder (base, cold start and RL), smollm2, or endpoint:NAME for any "
            "OpenAI-compatible endpoint (gateway:NAME: several as one).",
            show_default=False,
        ),
    ] = "",
    overrides: Overrides = None,
    agent: Annotated[
        str, typer.Option(metavar="MODEL", help="The same as the argument MODEL.", show_default=False)
    ] = "",
    domain: DomainName = "",
    benchmark: Annotated[
        str,
        typer.Option(
            metavar="B/PART",
            help="A domain of `mua benchmarks list`: all of its tasks, and published results beside ours.",
            show_default=False,
        ),
    ] = "",
    split: Annotated[
        str,
        typer.Option(
            help="Default: test; with --benchmark, the one whose score upstream reports.", show_default=False
        ),
    ] = "",
    user: UserName = "",
    config: AnyConfig = "",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where eval/NAME.json and .jsonl go; default: the run folder of the model, else runs/eval.",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(min=0, help="May be given several times.", show_default=False)
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            "--trials",
            min=1,
            help="Episodes a task; pass^k needs k of them.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many tasks.", show_default=False)
    ] = None,
    judge: Annotated[
        str,
        typer.Option(
            metavar="endpoint:NAME",
            help="Decides about criteria in natural language; without one, they are left out and said so.",
            show_default=False,
        ),
    ] = "",
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Compare with an earlier evaluation: its run folder, its folder, or its eval/NAME.json.",
            show_default=False,
        ),
    ] = None,
    fail_below: FailBelow = None,
    confident: Confident = False,
    base_url: BaseUrl = "",
    api_key_env: ApiKeyEnv = "",
) -> None:
    """Plays held-out tasks and counts, with intervals.

    The same command goes on with an evaluation that was stopped. With --against, exit code 1 says that
    success fell below --fail-below, and 2 that something is wrong.
    """
    from .. import display, speakers

    if against is None and (fail_below is not None or confident):
        raise MuaError("--fail-below and --confident need --against PATH, the evaluation to compare with.")
    if confident and fail_below is None:
        raise MuaError("--confident goes with --fail-below POINTS.")
    with bad_input() if against else contextlib.nullcontext():
        if agent and "=" in model:  # the first override stands where the model would
            model, overrides = "", [model, *(overrides or ())]
        if bool(agent) == bool(model):
            raise MuaError("name the one model to evaluate, as MODEL or by --agent.")
        if benchmark and domain:
            raise MuaError("--benchmark names a domain; leave --domain out.")
        found = speakers.find(model or agent)
        run = found[0].run
        if benchmark:
            from ..benchmarks import reported_split
            from ..domains import load

            domain, split = benchmark, split or reported_split(load(benchmark))
        more = speakers.user_overrides(user, run, base_url, api_key_env) if user else {}
        if temperature:
            more["eval.temperatures"] = temperature
        elif found[0].endpoint:
            more["eval.temperatures"] = [0.0]
        given = {"domain": domain, "eval.split": split, "eval.samples": samples, "eval.tasks": tasks}
        more.update({key: value for key, value in given.items() if value})
        usual = configure(config or (run and run / "config.yaml"), None, {})
        settings = configure(config or (run and run / "config.yaml"), overrides, more)
        where = out or run or Path("runs") / "eval"
        made = [
            where / "eval" / f"{speakers.eval_name(speaker, settings, usual, t)}.json"
            for speaker in found
            for t in settings.eval.temperatures
        ]
        if against is not None:
            check_against(against, made, settings)

        async def start(report: pipeline.Report, should_stop: Callable[[], bool]) -> Any:
            return await speakers.evaluate(
                settings,
                usual,
                found,
                where,
                base_url=base_url,
                api_key_env=api_key_env,
                judge=judge,
                report=report,
                should_stop=should_stop,
            )

        display.evaluations(watched(start))
        print(f"conversations: {where / 'eval'}")
        if against is not None:
            fell = compare_with(against, made, settings, fail_below, confident)
            raise typer.Exit(int(fell))
