"""Verified conversations, as the first stage of a run or as a data set over all domains: `mua coldstart`."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import MuaError
from .options import AnyConfig, ApiKeyEnv, BaseUrl, Out, Overrides
from .running import configure, in_run, run_config, watched

if TYPE_CHECKING:
    from ..config import Config

_OF_A_SET = ("coldstart.personas", "coldstart.faults")

_OF_A_TEACHER = ("coldstart.teacher.", *_OF_A_SET, "limits.", "gateways.")


def coldstart(
    out: Out,
    overrides: Overrides = None,
    config: AnyConfig = "",
    every: Annotated[
        bool,
        typer.Option(
            "--all", help="A data set over all domains that come with mua, instead of the stage of a run."
        ),
    ] = False,
    conversations: Annotated[
        int | None,
        typer.Option(min=1, help="With --all: how many; default: 2400.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="With --all: everything random is derived from it.", show_default=False),
    ] = None,
    agent: Annotated[
        str,
        typer.Option(
            metavar="endpoint:NAME",
            help="A teacher that plays the agent, not the expert.",
            show_default=False,
        ),
    ] = "",
    user: Annotated[
        str,
        typer.Option(
            metavar="endpoint:NAME",
            help="With --agent: who plays the user; default: the agenda user.",
            show_default=False,
        ),
    ] = "",
    judge: Annotated[
        str,
        typer.Option(
            metavar="endpoint:NAME",
            help="With --agent: reads what was verified, and may veto it.",
            show_default=False,
        ),
    ] = "",
    base_url: BaseUrl = "",
    api_key_env: ApiKeyEnv = "",
    user_base_url: Annotated[
        str, typer.Option(help="Where the user is served; default: --base-url.", show_default=False)
    ] = "",
    user_api_key_env: Annotated[str, typer.Option(metavar="NAME", show_default=False)] = "",
    judge_base_url: Annotated[
        str, typer.Option(help="Where the judge is served; default: --base-url.", show_default=False)
    ] = "",
    judge_api_key_env: Annotated[str, typer.Option(metavar="NAME", show_default=False)] = "",
) -> None:
    """Makes verified conversations and the base model.

    The domain's expert program talks to its agenda user, or a teacher model to another (--agent, --user);
    what verification does not confirm is dropped. The same command goes on with what a teacher has played.
    """
    from .. import display, pipeline, speakers
    from ..coldstart.verification import dropped_table, occurring

    more = speakers.teacher_overrides(
        {"agent": agent, "user": user, "judge": judge},
        {"agent": base_url, "user": user_base_url, "judge": judge_base_url},
        {"agent": api_key_env, "user": user_api_key_env, "judge": judge_api_key_env},
    )
    if every:
        if config or any(not o.startswith(_OF_A_TEACHER) for o in overrides or ()):
            raise MuaError(
                "--all is no stage of a run and takes no other settings than coldstart.personas and "
                "coldstart.faults; leave them out. With --agent it takes those of "
                f"{', '.join(f'{name}*' for name in _OF_A_TEACHER)}."
            )
        settings = configure(None, overrides, more)
        own = [o for o in overrides or () if not o.startswith(_OF_A_SET)]
        if (own or more) and settings.coldstart.teacher is None:
            raise MuaError(f"'{(own or ['this'])[0]}' is of a teacher; name one: --agent endpoint:NAME.")
        return _coldstart_all(out, conversations, seed or 0, settings)
    if conversations is not None or seed is not None:
        raise MuaError(
            "--conversations and --seed go with --all; for a run set coldstart.conversations=N, seed=N."
        )
    checks = functools.partial(pipeline.preflight, users=False)
    settings = run_config(config, out, overrides, more)
    kept = in_run(settings, out, pipeline.coldstart, checks)
    table = occurring(*dropped_table(pipeline.coldstart_counts(out)))
    display.table("Conversations kept, and dropped by cause", *table)
    display.endpoints(pipeline.teacher_figures(out))
    print(f"{len(kept)} conversations in {out / 'coldstart.jsonl'}; next: mua sft --out {out}")
    if len(kept) < settings.coldstart.conversations:
        print(f"{settings.coldstart.conversations} were asked for", file=sys.stderr)


def _coldstart_all(out: Path, count: int | None, seed: int, config: Config) -> None:
    """`coldstart --all`: the data set in `out`, and its table."""
    import time

    from .. import display, pipeline
    from ..coldstart import dataset
    from ..coldstart.verification import occurring
    from ..runfolder import check_writable

    check_writable(out)
    count, cold = count or dataset.COUNT, config.coldstart
    domains, left_out = dataset.scenarios()
    if left_out:
        print(f"left out: {left_out}", file=sys.stderr)
    began = time.perf_counter()

    async def work(report: pipeline.Report, should_stop: Callable[[], bool]) -> dataset.Dataset:
        if cold.teacher is not None:
            return await pipeline.teach_all(config, domains, count, seed, out, report, should_stop)

        def on_progress(domain: str, done: int, share: int) -> None:
            report(domain, done, share, "")
            if should_stop():
                raise pipeline.Stopped

        mix = cold.personas if "personas" in cold.model_fields_set else dataset.PERSONAS
        faults = cold.faults if "faults" in cold.model_fields_set else dataset.FAULTS
        return await dataset.build(domains, count, seed, personas=mix, faults=faults, on_progress=on_progress)

    made = watched(work)
    command = f"mua coldstart --all --out {out} --conversations {count} --seed {seed}"
    if cold.teacher is not None or cold.model_fields_set:
        command = f"mua {shlex.join(sys.argv[1:])}"
    seconds = time.perf_counter() - began
    dataset.write(made, out, command, left_out, dataset.smollm2_tokens())
    display.table("Conversations kept, and dropped by cause", *occurring(*dataset.rows(made)))
    print(f"{sum(made.causes().values())} were dropped")
    display.endpoints(made.endpoints)
    for role, cost in made.about.figures.get("spent", {}).items():
        tokens = f"{cost['prompt_tokens']:,.0f} + {cost['completion_tokens']:,.0f} tokens"
        print(f"{role}: {cost['requests']:,.0f} requests, {tokens}, ${cost['dollars']:.2f}")
    print(
        f"{len(made.lines)} conversations ({len(made.lines) / seconds:.0f} a second) in "
        f"{out / 'conversations.jsonl'}; next: mua score {out / 'conversations.jsonl'}"
    )
    if not made.lines:
        raise MuaError(f"not one conversation could be kept; {out / 'dropped.json'} says why.")
    if len(made.lines) < count:
        print(f"{count} were asked for; there are no more train tasks to play", file=sys.stderr)
