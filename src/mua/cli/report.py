"""The page of a run, as a file or served while the run trains: `mua report`, `mua view`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="The run folder.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: DIR/report.html.", show_default=False)
    ] = None,
) -> None:
    """Makes the page of a run.

    Of whatever there is of it; one HTML file that needs nothing else.
    """
    from ..report import build_report

    print(build_report(run, out))


def view(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="The run folder; it may be training.")],
    host: Annotated[
        str, typer.Option(help="Address; 0.0.0.0 lets other machines in, with a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8420,
    browser: Annotated[bool, typer.Option("--open", help="Also opens it in the browser.")] = False,
) -> None:
    """Serves the page of a run while it trains, without reloading.

    On this machine only, unless --host says otherwise; then the address holds a token that it asks for.
    """
    import asyncio
    import webbrowser

    from ..report.live import serving

    async def serve() -> None:
        async with serving(run, host, port) as address:
            print(f"{run}: {address} (Ctrl-C ends it)", flush=True)
            if browser:
                await asyncio.to_thread(webbrowser.open, address)
            await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())
