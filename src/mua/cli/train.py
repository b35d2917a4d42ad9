"""The stages of a run, and many runs: `mua quickstart`, `mua sft`, `mua train`, `mua ablate`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import MuaError
from .options import AnyConfig, ConfigFile, Out, Overrides
from .running import configure, in_run, need, run_config, watched

if TYPE_CHECKING:
    from ..pipeline import Run


def quickstart(
    overrides: Overrides = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Everything random is derived from it.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The run folder; default: runs/quickstart-seedN.", show_default=False
        ),
    ] = None,
    config: ConfigFile = "quickstart",
) -> None:
    """Cold start, SFT, GRPO, evaluation and report in one.

    The same command goes on with a run that was stopped.
    """
    from .. import display, pipeline

    settings = configure(config, overrides, {} if seed is None else {"seed": seed})
    out = out or Path("runs") / f"{Path(config).stem}-seed{settings.seed}"
    display.summary(in_run(settings, out, pipeline.everything, pipeline.preflight))
    display.endpoints(pipeline.endpoint_figures(out))
    print(f"report: {out / 'report.html'}")


def sft(out: Out, overrides: Overrides = None, config: AnyConfig = "") -> None:
    """Trains agent and user model on the conversations."""
    from .. import pipeline

    need(out, "coldstart.jsonl", "mua coldstart", "cold-start conversations")
    need(out, "models/base", "mua coldstart", "base model")

    async def work(run: Run) -> None:
        pipeline.sft(run, await pipeline.coldstart(run))

    in_run(run_config(config, out, overrides), out, work)
    print(f"the cold-start model is in {out / 'models' / 'cold_start'}; next: mua train --out {out}")


def train(
    out: Out,
    overrides: Overrides = None,
    config: AnyConfig = "",
    engine: Annotated[
        Literal["mua", "verl"],
        typer.Option(help="Who trains: mua, on this machine, or verl, on a Ray cluster (docs/scale-out.md)."),
    ] = "mua",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="verl: writes RUN/verl and prints the command that would start.")
    ] = False,
) -> None:
    """Trains the agent by GRPO in live conversations."""
    from .. import display, pipeline

    settings = run_config(config, out, overrides)
    if engine == "verl":
        from ..distributed.verl import launch

        checks = functools.partial(launch.preflight, dry=dry_run)
        made = in_run(settings, out, lambda run: launch.train(run, dry_run), checks)
        if dry_run:
            print(made.shown)
            return
    elif dry_run:
        raise MuaError(
            "--dry-run is for --engine verl: on this machine nothing is handed to another program."
        )
    else:
        if settings.sft is not None:
            need(out, "models/cold_start", "mua sft", "cold-start model")
        else:
            need(out, "models/base", "mua coldstart", "base model")
        if settings.train_user.kind == "local" and not settings.train_user.model:
            need(out, "models/user", "mua sft", "user model")
        in_run(settings, out, pipeline.train)
        display.endpoints(pipeline.endpoint_figures(out))
    print(f"the trained model is in {out / 'models' / 'rl'}; next: mua eval {out}, mua report {out}")


def ablate(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where the arms and the table go.")
    ] = Path("runs/ablation"),
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(metavar="N,N,…", help="Seeds of every arm.")] = "0,1,2,3,4",
    variants: Annotated[
        bool,
        typer.Option(
            "--variants",
            help="Also arms from the same cold start: without dynamic sampling, without unfaithful users, "
            "with a curriculum, with other clips, ratios and means.",
        ),
    ] = False,
    arms: Annotated[
        Path | None,
        typer.Option(
            "--arms",
            metavar="FILE.yaml",
            help="Also arms of your own: `name: {train.lr: 1.0e-5}`, one or more.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = "quickstart",
) -> None:
    """Base, cold start only, RL only and both, over several seeds: which part gives what.

    Leaves DIR/table.json, table.md, ablation.svg, and each arm as a run folder. The same command goes on
    where it was stopped. Exit code 1 when an arm failed; the others are in the table all the same.
    """
    from .. import ablate as ablation
    from .. import display, pipeline
    from ..runfolder import check_writable

    check_writable(out)
    try:
        numbers = list(dict.fromkeys(int(part) for part in seeds.split(",")))
    except ValueError:
        raise MuaError(f"--seeds {seeds}: give numbers with commas between them, such as 0,1,2.") from None
    chosen = {**ablation.PAPER, **(ablation.VARIANTS if variants else {})}
    chosen.update(ablation.read_arms(arms) if arms else {})
    jobs = ablation.plan(config, overrides or (), chosen, numbers, out)
    title = f"Ablation of {Path(config).stem}, {jobs[0].config.domain}"

    def write(failed: dict[str, str]) -> tuple[list[str], list[list[str]]]:
        return ablation.write(ablation.collect(jobs, chosen, failed), title, out)

    async def work(report: pipeline.Report, should_stop: Callable[[], bool]) -> dict[str, str]:
        return await ablation.run_all(jobs, write, report, should_stop)

    failed = watched(work)
    display.table(f"{title} (per cent; 95 % t intervals over seeds)", *write(failed))
    print(f"{out / 'table.json'}, {out / 'table.md'}, {out / 'ablation.svg'}")
    if failed:
        raise MuaError(
            f"{len(failed)} of {len(jobs)} runs failed; the first, {next(iter(failed))}: "
            f"{next(iter(failed.values()))} The same command runs them again."
        )
