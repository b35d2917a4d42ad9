"""A model behind the OpenAI chat API: `mua serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import MuaError
from .options import AnyConfig, Overrides
from .running import configure


def serve(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model folder, a run folder (its last model), or smollm2."),
    ],
    overrides: Overrides = None,
    host: Annotated[str, typer.Option(help="Address; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[
        str, typer.Option(help="What clients call it; default: the model's own.", show_default=False)
    ] = "",
    config: AnyConfig = "",
) -> None:
    """Serves a model behind the OpenAI chat API.

    For `--user endpoint:NAME --base-url http://127.0.0.1:8000/v1`, or for other programs.
    """
    from .. import pipeline, speakers

    try:
        from ..serve import run
    except ImportError:
        raise MuaError("serving needs two small packages: pip install 'mua[serve]'.") from None
    speaker = speakers.find(model)[-1]
    if speaker.endpoint:
        raise MuaError(f"'{model}' is served already; name a model folder or a run folder.")
    settings = configure(config or (speaker.run and speaker.run / "config.yaml"), overrides, {})
    players = pipeline.Players()
    _, format, engine = pipeline.load_agent(settings, speaker.path, players)
    run(format, engine, name or speaker.label, host, port)
