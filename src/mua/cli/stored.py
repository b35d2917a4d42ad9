"""Conversations that were stored, ours or others': `mua import`, `mua audit`, `mua score`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import MuaError
from .options import ApiKeyEnv, BaseUrl, DomainName
from .running import watched


def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.jsonl", help="Conversations in OpenAI's chat format, one a line.")
    ],
    domain: Annotated[
        str, typer.Option("--domain", metavar="D", help="Whose tools they used: a name, or a Python file.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where all that comes of them goes.")],
    database: Annotated[
        Literal["redact", "keep"],
        typer.Option(help="What the domain's database holds of people; keep it where they are made up."),
    ] = "redact",
    region: Annotated[
        str, typer.Option(metavar="CC", help="Country of phone numbers that do not say theirs.")
    ] = "US",
    teacher: Annotated[
        str,
        typer.Option(
            metavar="endpoint:NAME",
            help="Drafts the scenarios from the redacted conversations; without one, rules do.",
            show_default=False,
        ),
    ] = "",
    base_url: BaseUrl = "",
    api_key_env: ApiKeyEnv = "",
) -> None:
    """Real conversations: redacted, audited, and made into personas and scenarios to train with.

    The same command gives the same files, and goes on with what a teacher has answered.
    """
    from .. import display, pipeline, speakers
    from ..config import Config
    from ..domains import load
    from ..transcripts import build

    place = load(domain)

    async def work(report: pipeline.Report, should_stop: Callable[[], bool]) -> Any:
        players = pipeline.Players()
        try:
            ask = None
            if teacher:
                ask = await speakers.teacher_maker(Config(), teacher, players, base_url, api_key_env)
            options = build.Options(database, region)
            return await build.run(file, place, out, options, ask, report, should_stop, pipeline.Stopped)
        finally:
            await players.close()

    made = watched(work)
    display.audit(str(file), made.audit)
    display.imported(made.figures, made.mix)
    print(f"{made.figures['conversations']} conversations, {made.tasks} of them tasks, in {out}; next:")
    print(f"  train_user.personas={out / 'personas.json'}")
    if made.figures["rejected"]:
        print(
            f"{made.figures['rejected']} lines could not be read: they and the reasons are in "
            f"{out / build.REJECTED}, NOT redacted; the first: {'; '.join(made.rejected[:3])}",
            file=sys.stderr,
        )


def audit(
    place: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_FILE",
            help="A run folder (its evaluations and its training episodes), or a file of trajectories.",
            show_default=False,
        ),
    ],
    domain: DomainName = "",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The audit trail: one JSON line for each rule that applied to a trajectory.",
            show_default=False,
        ),
    ] = None,
    judge: Annotated[
        str,
        typer.Option(
            metavar="endpoint:NAME",
            help="Asked about obligations that words do not decide; without one, the words alone count.",
            show_default=False,
        ),
    ] = "",
    base_url: BaseUrl = "",
    api_key_env: ApiKeyEnv = "",
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
) -> None:
    """Measures stored trajectories in five layers: outcome, policy, communication, safety, recovery."""
    import asyncio
    import json

    from .. import display
    from ..domains import load
    from ..evaluate import audit as auditing

    files = auditing.trajectory_files(place)
    own = load(domain) if domain else None

    async def work() -> dict[str, Any]:
        with display.progress() as report:
            if not judge:
                return await auditing.run(files, own, out, report=report)
            from .. import pipeline, speakers
            from ..config import Config

            players = pipeline.Players()
            try:
                _, ask = await speakers.judge_maker(Config(), judge, players, base_url, api_key_env)
                return await auditing.run(files, own, out, ask, report)
            finally:
                await players.close()

    found = asyncio.run(work())
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    display.audit(str(place), found)
    if out is not None:
        print(f"audit trail: {out}")


def score(
    domain: Annotated[
        str,
        typer.Argument(
            metavar="[DOMAIN]",
            help="See `mua tasks`; or a benchmark, for upstream's files. Left out: the domain that each line "
            "names.",
        ),
    ],
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Stored trajectories: .jsonl, .jsonl.gz.", show_default=False),
    ] = None,
    category: Annotated[
        str, typer.Option(help="Of a benchmark: the category that the file is of.", show_default=False)
    ] = "",
    mode: Annotated[
        str,
        typer.Option(
            help="Of bfcl: how calls are written, fc, prompt or hermes; default: as the file shows.",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Grades stored trajectories from their messages.

    One JSON verdict a line, and the tally at the end. Exit code 1 when a verdict disagrees with the stored
    reward.
    """
    from .. import benchmarks as known
    from ..domains import load
    from ..evaluate.score import score as score_all

    how: dict[str, Any] = {name: value for name, value in (("category", category), ("mode", mode)) if value}
    if file is None:
        if not Path(domain).is_file():
            raise MuaError(f"there is no file {domain}; it is `mua score FILE` or `mua score DOMAIN FILE`.")
        raise typer.Exit(score_all(None, Path(domain)))
    if domain.partition("+")[0] in known.SCORERS:
        raise typer.Exit(known.score(domain, file, **how))
    if how:
        raise MuaError(f"--{next(iter(how))} is of benchmarks; '{domain}' is a domain, leave it out.")
    raise typer.Exit(score_all(load(domain), file))
