"""Evaluations side by side and the gate of a build, users side by side: `mua compare`, `mua users compare`.

Invariant: exit code 1 says that a gate failed and nothing else; what a person can mend is exit code 2.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import MuaError
from .options import AnyConfig, ApiKeyEnv, BaseUrl, Confident, DomainName, FailBelow, Overrides
from .running import configure, watched, write_file

if TYPE_CHECKING:
    from .. import pipeline
    from ..config import Config


def compare(
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_A RUN_B…",
            help="Run folders, folders of evaluations, or single files eval/NAME.json; the first is the "
            "baseline.",
            show_default=False,
        ),
    ],
    every_model: Annotated[
        bool,
        typer.Option("--all-models", help="Of a run also base and cold start, and not only its last model."),
    ] = False,
    fail_below: FailBelow = None,
    confident: Confident = False,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            "--gate",
            metavar="DOMAIN",
            help="With --fail-below: a domain to look at, such as tau2/airline; may be given several times. "
            "Default: those that a run did not train on.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        str,
        typer.Option(
            "--json", metavar="FILE", help="All figures as JSON; - prints them.", show_default=False
        ),
    ] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="The tables as Markdown.")] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="One page that needs nothing else.", show_default=False),
    ] = None,
) -> None:
    """Compares evaluations task by task, with intervals, and can fail a build.

    Exit code 0: compared, and the gate holds; 1: something fell below the limit; 2: nothing could be
    compared or looked at.
    """
    import json

    from .. import display
    from ..evaluate.compare import compare as compare_all
    from ..evaluate.gate import Gate

    with bad_input():
        if fail_below is None and (gate or confident):
            raise MuaError("--gate and --confident go with --fail-below POINTS.")
        # A comparison is quick, or somebody waits for it at a terminal.
        watched = display.progress() if sys.stderr.isatty() else contextlib.nullcontext(lambda *news: None)
        with watched as report:
            found = compare_all(places, every_model, report)
        if fail_below is not None:
            found["gate"] = Gate(fail_below, confident, tuple(gate or ())).check(found)
        if html is not None:
            from ..report.comparison import build_comparison

            print(build_comparison(found, html), file=sys.stderr)
        if as_json and as_json != "-":
            write_file(Path(as_json), json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    if as_json == "-":
        print(json.dumps(found, ensure_ascii=False))
    elif markdown:
        display.comparison_markdown(found)
    else:
        display.comparison(found)
    if "gate" in found:
        if as_json == "-":
            display.gate_sentences(found["gate"])
        else:
            display.gate(found["gate"], markdown)
        raise typer.Exit(int(bool(found["gate"]["fallen"])))


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """Exit code 2 for what a person can mend: where 1 says that a gate failed, it must say nothing else."""
    from .. import display

    try:
        yield
    except MuaError as exc:
        display.error(str(exc))
        raise typer.Exit(2) from None


def check_against(against: Path, made: list[Path], config: Config) -> None:
    """Refuses an evaluation to compare with that will not do, before anything is played."""
    from ..domains import load
    from ..evaluate.stored import read

    (place,) = read([against])
    if {e.path.resolve() for e in place.evaluations} & {path.resolve() for path in made}:
        raise MuaError(
            f"--against {against}: this command makes that evaluation, or goes on with it, so there would be "
            "nothing to compare; give this one another place by --out DIR."
        )
    name = load(config.domain).name
    wanted = {(name, config.eval.split, t) for t in config.eval.temperatures}
    if not place.single and not wanted & {e.conditions[:3] for e in place.evaluations}:
        raise MuaError(
            f"--against {against} has no evaluation of {name}, split {config.eval.split}, at one of the "
            "temperatures that are played; name its eval/NAME.json to compare all the same."
        )


def compare_with(
    against: Path, made: list[Path], config: Config, fail_below: float | None, confident: bool
) -> bool:
    """Shows what differs from an earlier evaluation; whether the gate failed, which looks at all of it."""
    from .. import display
    from ..domains import load
    from ..evaluate.compare import compare as compare_all
    from ..evaluate.gate import Gate

    compared = compare_all([against, *made], every_model=True)
    gate = None
    if fail_below is not None:
        played = tuple(part.name for part in load(config.domain).members)
        gate = Gate(fail_below, confident, played).check(compared)
    display.comparison(compared)
    if gate is None:
        return False
    display.gate(gate)
    return bool(gate["fallen"])


users = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Compares simulated users.")


@users.command("compare")
def users_compare(
    agent: Annotated[
        str,
        typer.Argument(
            metavar="AGENT",
            help="A model folder, a run folder (its last model), smollm2, or endpoint:NAME.",
        ),
    ],
    names: Annotated[
        str,
        typer.Option(
            "--users",
            metavar="U,U…",
            help="As --user of `mua eval`, with commas; USER+PERSONAS behaves so, such as agenda+difficult.",
        ),
    ],
    overrides: Overrides = None,
    domain: DomainName = "",
    split: Annotated[str, typer.Option(help="Default: test.", show_default=False)] = "",
    config: AnyConfig = "",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where eval/*.json and .jsonl go; default: the run folder of the agent, else runs/eval.",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Of the agent.")] = 0.0,
    samples: Annotated[int | None, typer.Option(min=1, help="Episodes a task.", show_default=False)] = None,
    tasks: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many tasks.", show_default=False)
    ] = None,
    imported: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="An import (`mua import`): how far each user is from the people in it.",
            show_default=False,
        ),
    ] = None,
    embed: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="With --imported: folder of a local model whose embeddings are compared; default: topics.",
            show_default=False,
        ),
    ] = "",
    base_url: BaseUrl = "",
    api_key_env: ApiKeyEnv = "",
) -> None:
    """Plays one agent against several users.

    The same held-out tasks for each; success, turns and how true the users stayed to their scenarios. With
    --imported, also how far they are from real ones.
    """
    from .. import display, speakers

    speaker = speakers.find(agent)[-1]
    run = speaker.run
    source = config or (run and run / "config.yaml")
    given = {"domain": domain, "eval.split": split, "eval.samples": samples, "eval.tasks": tasks}
    more = {key: value for key, value in given.items() if value} | {"eval.temperatures": [temperature]}
    settings = {}
    for name in filter(None, (n.strip() for n in names.split(","))):
        user, behaving = speakers.with_personas(name)
        chosen = speakers.user_overrides(user, run, base_url, api_key_env)
        settings[name] = configure(source, overrides, {**more, **chosen, **behaving})
    if not settings:
        raise MuaError("--users is empty; name some with commas: agenda,endpoint:NAME,path/to/model.")
    usual = configure(source, None, {})
    where = out or run or Path("runs") / "eval"
    if embed and imported is None:
        raise MuaError("--embed says how to compare with imported conversations; name them by --imported.")
    people = []
    if imported is not None:
        from ..transcripts.build import read_import

        people = read_import(imported, next(iter(settings.values())).domain)

    async def start(report: pipeline.Report, should_stop: Callable[[], bool]) -> Any:
        found = await speakers.compare(
            settings,
            usual,
            speaker,
            where,
            base_url=base_url,
            api_key_env=api_key_env,
            report=report,
            should_stop=should_stop,
        )
        far = speakers.against_imported(found, speaker.label, where, people, embed) if people else {}
        return found, far

    found, far = watched(start)
    display.users(found)
    if far:
        display.distances(far, str(imported), len(people))
    print(f"figures and conversations: {where / 'eval'}")
