"""What other programs take, models as folders and episodes as environments: `mua export`, `mua env`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import MuaError


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new or empty folder.")],
    which: Annotated[
        str,
        typer.Option(
            metavar="W", help="last, best or a step's number of GRPO; or base, cold_start, rl, user."
        ),
    ] = "last",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="Of the weights; auto: as they are stored.")
    ] = "auto",
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The LoRA adapters alone, for peft, instead of merging them.")
    ] = False,
) -> None:
    """Writes a model of a run as a plain Hugging Face folder.

    Adapters are merged; tokenizer, chat template and generation settings are with it.
    """
    from ..export import export as write

    print(f"{write(run, out, which, dtype, adapter)}: {out}")


environments = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Episodes as environments of other trainers (docs/other-trainers.md).",
)

EnvDomain = Annotated[str, typer.Option("--domain", help="Name of a domain (see `mua tasks`).")]

EnvSplit = Annotated[str, typer.Option("--split", help="Split whose tasks are played.")]

EnvUser = Annotated[
    str, typer.Option("--user", metavar="USER", help="Who plays the user: agenda or endpoint:MODEL.")
]


@environments.command("verifiers")
def env_verifiers(
    domain: EnvDomain,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the package's folder is made.")],
    split: EnvSplit = "train",
    user: EnvUser = "agenda",
) -> None:
    """Writes a package with which verifiers, and so prime-rl, plays episodes of a domain."""
    from ..exports.package import write

    package, folder = write(domain, out, split, user)
    print(f"{folder}: install it beside mua with `pip install {folder}`; its id is {package}.")


@environments.command("openenv")
def env_openenv(
    domain: EnvDomain,
    split: EnvSplit = "train",
    user: EnvUser = "agenda",
    base_url: Annotated[str, typer.Option(help="Address of the endpoint that plays the user.")] = "",
    api_key_env: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable that holds its key.")
    ] = "",
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Serves held-out tasks, too: never train on them.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    sessions: Annotated[int, typer.Option(min=1, help="Most sessions at once.")] = 256,
    idle: Annotated[float, typer.Option(min=1, help="Seconds after which an unused session expires.")] = 3600,
) -> None:
    """Serves episodes of a domain to clients of OpenEnv, each session for itself."""
    from ..exports.stepwise import setting

    made = setting(domain, split, user, base_url=base_url, api_key_env=api_key_env, evaluate=evaluate)
    try:
        from ..exports.openenv import run
    except ImportError:
        raise MuaError("serving OpenEnv needs its package: pip install 'mua[openenv]'.") from None
    run(made, split, host, port, sessions, idle)
