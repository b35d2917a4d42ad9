"""Domains of your own, checked, started and drafted: `mua domain`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import MuaError
from .options import ApiKeyEnv, BaseUrl
from .running import first_lines, watched

domains = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Checks and starts domains.")


@domains.command("check")
def domain_check(
    domain: Annotated[
        str,
        typer.Argument(
            metavar="DOMAIN", help="A name (see `mua tasks`), a Python file, or a package's folder."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the table.")] = False,
) -> None:
    """Proves that a domain is sound; exit code 1 if anything is wrong.

    Gold solutions replay, doing nothing solves no task, no task stands in two splits, every tool is used and
    has a valid schema, and the expert solves every task with the agenda user and keeps to the policy.
    """
    import asyncio
    import json

    from .. import display
    from ..coldstart.soundness import check_domain
    from ..domains import load

    place = load(domain)
    with display.progress() as report:
        found = asyncio.run(check_domain(place, report))
    if as_json:
        checks = {
            name: {"passed": check.passed, "asked": check.asked, "problems": check.problems}
            for name, check in found.checks.items()
        }
        sizes = {s: len(place.tasks(s)) for s in place.splits}
        print(
            json.dumps(
                {"domain": place.name, "sound": not found.problems, "tasks": sizes, "checks": checks},
                ensure_ascii=False,
            )
        )
    else:
        rows = [
            [name, f"{check.passed}/{check.asked}", "" if check.passed == check.asked else "WRONG"]
            for name, check in found.checks.items()
        ]
        display.table(f"Domain {place.name}", ["check", "passed", ""], rows)
        first_lines(found.problems)
        print(f"{place.name} is {'NOT sound' if found.problems else 'sound'}")
    if found.problems:
        raise typer.Exit(1)


@domains.command("new")
def domain_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits and _.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the folder NAME goes.")] = Path(),
    yaml: Annotated[
        bool, typer.Option("--yaml", help="All data, no Python: docs/draft-a-domain.md.")
    ] = False,
) -> None:
    """Makes the folder of a small domain that works, for you to edit."""
    from ..domains.new import new

    place = new(name, out, yaml)
    shown = place if place.is_absolute() else f"./{place}"
    print(f"{place} is a domain; next: mua domain check {shown}")


@domains.command("draft")
def domain_draft(
    about: Annotated[str, typer.Argument(metavar="ABOUT", help='What it is about: "a gym\'s front desk".')],
    teacher: Annotated[str, typer.Option(metavar="endpoint:NAME", help="The model that drafts it.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="The domain's folder; default: its name.", show_default=False
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Answers of the teacher; what is wrong with one goes into the next.")
    ] = 6,
    base_url: BaseUrl = "",
    api_key_env: ApiKeyEnv = "",
) -> None:
    """Lets a teacher model draft a domain (policy, data, tools, tasks), for you to edit.

    It is accepted when `mua domain check` passes; until then it is in DIR.not_accepted, with the list of what
    is wrong, and the same command goes on from there. A draft is data: nothing of it is run.
    """
    import re

    from .. import pipeline, speakers
    from ..coldstart.drafting import PROBLEMS, draft
    from ..domains.new import check_name

    words = [w for w in re.findall(r"[a-z0-9]+", about.lower()) if w not in ("a", "an", "the", "of", "s")]
    place = out or Path("_".join(words)[:40].strip("_"))
    check_name(place.name)

    async def work(report: pipeline.Report, should_stop: Callable[[], bool]) -> Any:
        def on_round(number: int, problems: int) -> None:
            report("draft", number, rounds, f"{problems} problems")
            if should_stop():
                raise pipeline.Stopped

        players = pipeline.Players()
        try:
            ask, endpoint = await speakers.draftsman(teacher, players, base_url, api_key_env)
            return await draft(about, place, ask, rounds, on_round), endpoint
        finally:
            await players.close()

    made, endpoint = watched(work)
    print(f"{made.rounds} rounds, {endpoint.prompt_tokens:,} + {endpoint.completion_tokens:,} tokens")
    shown = made.place if made.place.is_absolute() else f"./{made.place}"
    if made.problems:
        first_lines(made.problems)
        raise MuaError(
            f"not accepted after {made.rounds} rounds; draft and {PROBLEMS} are in {made.place}. Mend it by "
            f"hand (mua domain check {shown}) or not; the same command goes on from there."
        )
    print(f"{made.place} is a domain; read its policy and tasks, then: mua tasks {shown} --split test")
