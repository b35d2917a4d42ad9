"""Benchmarks, installed and listed, and new tasks over their databases: `mua benchmarks`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import MuaError
from .options import ApiKeyEnv, BaseUrl

benchmarks = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Installs and lists benchmarks.")


@benchmarks.command("install")
def benchmarks_install(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="See `mua benchmarks list`.")],
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="DIR", help="Take it from this checkout or folder.", show_default=False
        ),
    ] = None,
) -> None:
    """Fetches benchmarks: upstream's packages, without their dependencies, checked against their hashes."""
    from ..benchmarks.store import install

    for name in names:
        found = install(name, source, lambda text, name=name: print(f"{name}: {text}", file=sys.stderr))
        print(f"{name} {found.version} (data {found.data_hash[:12]}) in {found.path}")


@benchmarks.command("generate")
def benchmarks_generate(
    name: Annotated[str, typer.Argument(metavar="BENCHMARK/PART", help="tau2/retail, tau2/airline, …")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.json", help="Where the tasks go.")],
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same tasks.")] = 0,
    teacher: Annotated[
        str,
        typer.Option(
            metavar="endpoint:NAME",
            help="Rewords the scenarios; a wording that loses a fact is not taken.",
            show_default=False,
        ),
    ] = "",
    base_url: BaseUrl = "",
    api_key_env: ApiKeyEnv = "",
) -> None:
    """Makes new training tasks over a benchmark's database, apart from all of its own tasks.

    `train_split: FILE.json` trains on them; `train_split: generated:COUNT:SEED` makes the same (not reworded)
    without a file.
    """
    import asyncio

    from .. import display, pipeline, speakers
    from ..benchmarks import generate, is_benchmark
    from ..domains import load

    domain: Any = load(name)
    if not is_benchmark(name) or domain.load_extra is None:
        raise MuaError(
            f"tasks are generated for {', '.join(f'tau2/{p}' for p in generate.PARTS)}, not '{name}'."
        )
    if out.suffix != ".json":
        raise MuaError(f"--out {out}: the name of a file of tasks ends in .json.")

    async def reword(report: pipeline.Report) -> Any:
        from ..benchmarks.generate.reword import reword_all
        from ..config import Config

        players = pipeline.Players()
        try:
            who, ask = await speakers.teacher_maker(Config(), teacher, players, base_url, api_key_env)
            return await reword_all(made.tasks, ask, who, lambda n: report("reword", n, count, ""))
        finally:
            await players.close()

    with display.progress() as report:
        made = generate.generate(domain, count, seed, lambda n: report("generate", n, count, ""))
        tasks, kept = asyncio.run(reword(report)) if teacher else (made.tasks, 0)
    generate.write(out, tasks)
    display.table("Generated tasks", ["kind", "tasks"], [[k, str(n)] for k, n in made.kinds.items()])
    print(f"{len(tasks)} tasks in {out}, {100 * made.several:.0f} % of them with more than one request")
    if teacher:
        print(f"{len(tasks) - kept} reworded, {kept} kept as they were: the teacher lost a fact each time")


@benchmarks.command("list")
def benchmarks_list() -> None:
    """What is installed: version, hash of the files, splits with their sizes."""
    from .. import display
    from ..benchmarks import INSTALLED_AS, PARTS, load
    from ..benchmarks.store import SOURCES, installed

    rows = []
    for name in SOURCES:
        try:
            found = installed(name)
        except MuaError:
            rows.append([name, "-", "-", f"mua benchmarks install {name}"])
            continue
        version, digest = found.version, found.data_hash[:12]
        also = [alias for alias, one in INSTALLED_AS.items() if one == name]
        for full in [f"{each}/{part}" for each in (name, *also) for part in PARTS.get(each, ())]:
            try:
                domain = load(full)
                sizes = ", ".join(f"{s} {len(domain.tasks(s))}" for s in domain.splits)
            except MuaError as exc:
                sizes = str(exc)
            rows.append([full, version, digest, sizes])
        if name not in PARTS:
            rows.append([name, version, digest, ""])
    display.table("Benchmarks", ["benchmark", "version", "data", "tasks by split"], rows)
