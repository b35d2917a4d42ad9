"""What a run would take, and cost: `mua plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AnyConfig, Overrides
from .running import configure, write_file


def plan(
    overrides: Overrides = None,
    config: AnyConfig = "",
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="A run, or a file of trajectories, whose conversations are planned with; default: those of "
            "the domain's expert program.",
            show_default=False,
        ),
    ] = None,
    rates: Annotated[
        Path | None,
        typer.Option(metavar="FILE.yaml", help="How fast the machines are.", show_default=False),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="Instead: rates of the data sheet of a100, h100, h200, b200, l40s.", show_default=False
        ),
    ] = "",
    devices: Annotated[int, typer.Option(min=1, help="How many of them.")] = 8,
    per_replica: Annotated[int, typer.Option(min=1, help="How many hold one copy of the model.")] = 1,
    user_latency: Annotated[
        float, typer.Option(min=0, help="Without --rates: median seconds of an endpoint's user.")
    ] = 1.5,
    write_rates: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.yaml", help="Writes the rates, to keep or correct them.", show_default=False
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Simulated steps that are averaged.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """How long a training step and an evaluation would take, and what they would cost.

    Simulates the configuration with conversations as long as those played. Without --rates or --device, this
    machine is measured.
    """
    from .. import display
    from ..plan.gather import plan_for

    made, measured, used = plan_for(
        configure(config or (source / "config.yaml" if source and source.is_dir() else None), overrides, {}),
        source,
        rates=rates,
        device=device,
        devices=devices,
        per_replica=per_replica,
        user_latency=user_latency,
        steps=steps,
    )
    if write_rates is not None:
        write_file(write_rates, used.to_yaml())
    if as_json:
        import json

        print(json.dumps({**made.to_dict(), "measured": measured}))
    else:
        display.plan(made, measured)
