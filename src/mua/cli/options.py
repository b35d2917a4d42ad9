"""Arguments and options that several commands have, so that they are called and explained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings on top of the configuration, such as train.steps=20; the config.yaml of a run folder "
        "lists all of them.",
        show_default=False,
    ),
]

ConfigFile = Annotated[str, typer.Option("--config", metavar="C", help="A recipe by name, or a YAML file.")]

AnyConfig = Annotated[
    str,
    typer.Option(
        "--config",
        metavar="C",
        help="A recipe by name, or a YAML file; default: the configuration of the run.",
        show_default=False,
    ),
]

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="The run folder.")]

BaseUrl = Annotated[
    str,
    typer.Option(help="Where endpoint:NAME is served: the address up to /v1.", show_default=False),
]

ApiKeyEnv = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="The environment variable that holds the key of endpoint:NAME.",
        show_default=False,
    ),
]

DomainName = Annotated[
    str,
    typer.Option(
        "--domain", metavar="D", help="A name (see `mua tasks`) or a Python file.", show_default=False
    ),
]

UserName = Annotated[
    str,
    typer.Option(
        "--user",
        metavar="U",
        help="Who plays the user: agenda, endpoint (as configured), endpoint:NAME, gateway:NAME, or a model "
        "folder.",
        show_default=False,
    ),
]

FailBelow = Annotated[
    float | None,
    typer.Option(
        "--fail-below",
        metavar="POINTS",
        help="Exit code 1 when success minus that of the baseline is below this, in points: -2 lets it fall "
        "by two, 0 not at all, 3 asks for a gain of three.",
        show_default=False,
    ),
]

Confident = Annotated[
    bool,
    typer.Option(
        "--confident",
        help="With --fail-below: fail only if the whole 95 % interval of the difference is below it.",
    ),
]
