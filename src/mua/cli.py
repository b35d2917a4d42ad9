"""The command line: one thin function a command.

Invariant: nothing heavy is imported before a command needs it (`mua --help` answers at once), and whatever
a person can mend ends as one paragraph on standard error, without a traceback.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shlex
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import __version__
from .errors import MuaError

if TYPE_CHECKING:
    from .config import Config
    from .domain import Domain, Task
    from .pipeline import Run

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback is a bug in mua; it is shown as Python shows it
    rich_markup_mode=None,
    help="Trains and evaluates language-model agents that work with a person over tools.",
)

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

_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
    # Spinning threads stand still wherever another process wants their core. Small models have one thread.
    "OMP_WAIT_POLICY": "PASSIVE",
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main() -> None:
    """The entry point `mua`."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries; what concerns the person is said in mua's own words
    try:
        app()
    except MuaError as exc:
        _fail(str(exc))
    except BrokenPipeError:  # `mua score … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as exc:
        if not _disk_full(exc):
            raise
        _fail(
            f"there is no room left to write: {exc}. What was written before is whole. Make room on the disk "
            "(or raise the limit on file sizes), then run the same command again to go on."
        )


def _fail(text: str) -> None:
    from .display import error

    error(text)
    sys.exit(1)


def _disk_full(exc: BaseException | None) -> bool:
    """Also where a library has wrapped the system's error into its own."""
    while exc is not None:
        if isinstance(exc, OSError) and exc.errno in _FULL:
            return True
        if any(f"os error {number}" in str(exc) for number in _FULL):  # safetensors
            return True
        exc = exc.__cause__ or exc.__context__
    return False


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


# ---------------------------------------------------------------- runs


@app.command()
def quickstart(
    overrides: Overrides = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Everything random is derived from it.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The run folder; default: runs/quickstart-seedN.", show_default=False
        ),
    ] = None,
    config: ConfigFile = "quickstart",
) -> None:
    """Cold start, SFT, GRPO, evaluation and report in one.

    The same command goes on with a run that was stopped.
    """
    from . import display, pipeline

    settings = _config(config, overrides, {} if seed is None else {"seed": seed})
    out = out or Path("runs") / f"{Path(config).stem}-seed{settings.seed}"
    display.summary(_in_run(settings, out, pipeline.everything, pipeline.preflight))
    display.endpoints(pipeline.endpoint_figures(out))
    print(f"report: {out / 'report.html'}")


@app.command()
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
    import functools

    from . import display, pipeline, speakers
    from .coldstart.verification import dropped_table, occurring

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
        settings = _config(None, overrides, more)
        own = [o for o in overrides or () if not o.startswith(_OF_A_SET)]
        if (own or more) and settings.coldstart.teacher is None:
            raise MuaError(f"'{(own or ['this'])[0]}' is of a teacher; name one: --agent endpoint:NAME.")
        return _coldstart_all(out, conversations, seed or 0, settings)
    if conversations is not None or seed is not None:
        raise MuaError(
            "--conversations and --seed go with --all; for a run set coldstart.conversations=N, seed=N."
        )
    checks = functools.partial(pipeline.preflight, users=False)
    settings = _run_config(config, out, overrides, more)
    kept = _in_run(settings, out, pipeline.coldstart, checks)
    table = occurring(*dropped_table(pipeline.coldstart_counts(out)))
    display.table("Conversations kept, and dropped by cause", *table)
    display.endpoints(pipeline.teacher_figures(out))
    print(f"{len(kept)} conversations in {out / 'coldstart.jsonl'}; next: mua sft --out {out}")
    if len(kept) < settings.coldstart.conversations:
        print(f"{settings.coldstart.conversations} were asked for", file=sys.stderr)


_OF_A_SET = ("coldstart.personas", "coldstart.faults")
_OF_A_TEACHER = ("coldstart.teacher.", *_OF_A_SET, "limits.", "gateways.")


def _coldstart_all(out: Path, count: int | None, seed: int, config: Config) -> None:
    """`coldstart --all`: the data set in `out`, and its table."""
    import time

    from . import display, pipeline
    from .coldstart import dataset
    from .coldstart.verification import occurring

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

    made = _watched(work)
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


@app.command()
def sft(out: Out, overrides: Overrides = None, config: AnyConfig = "") -> None:
    """Trains agent and user model on the conversations."""
    from . import pipeline

    _need(out, "coldstart.jsonl", "mua coldstart", "cold-start conversations")
    _need(out, "models/base", "mua coldstart", "base model")

    async def work(run: Run) -> None:
        pipeline.sft(run, await pipeline.coldstart(run))

    _in_run(_run_config(config, out, overrides), out, work)
    print(f"the cold-start model is in {out / 'models' / 'cold_start'}; next: mua train --out {out}")


@app.command()
def train(
    out: Out,
    overrides: Overrides = None,
    config: AnyConfig = "",
    engine: Annotated[
        Literal["mua", "verl"],
        typer.Option(help="Who trains: mua, on this machine, or verl, on a Ray cluster (docs/scale-out.md)."),
    ] = "mua",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="verl: writes RUN/verl and prints the command that would start.")
    ] = False,
) -> None:
    """Trains the agent by GRPO in live conversations."""
    from . import display, pipeline

    settings = _run_config(config, out, overrides)
    if engine == "verl":
        from .distributed.verl import launch

        checks = functools.partial(launch.preflight, dry=dry_run)
        made = _in_run(settings, out, lambda run: launch.train(run, dry_run), checks)
        if dry_run:
            print(made.shown)
            return
    elif dry_run:
        raise MuaError(
            "--dry-run is for --engine verl: on this machine nothing is handed to another program."
        )
    else:
        if settings.sft is not None:
            _need(out, "models/cold_start", "mua sft", "cold-start model")
        else:
            _need(out, "models/base", "mua coldstart", "base model")
        if settings.train_user.kind == "local" and not settings.train_user.model:
            _need(out, "models/user", "mua sft", "user model")
        _in_run(settings, out, pipeline.train)
        display.endpoints(pipeline.endpoint_figures(out))
    print(f"the trained model is in {out / 'models' / 'rl'}; next: mua eval {out}, mua report {out}")


@app.command()
def ablate(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where the arms and the table go.")
    ] = Path("runs/ablation"),
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(metavar="N,N,…", help="Seeds of every arm.")] = "0,1,2,3,4",
    variants: Annotated[
        bool,
        typer.Option(
            "--variants",
            help="Also arms from the same cold start: without dynamic sampling, without unfaithful users, "
            "with a curriculum, with other clips, ratios and means.",
        ),
    ] = False,
    arms: Annotated[
        Path | None,
        typer.Option(
            "--arms",
            metavar="FILE.yaml",
            help="Also arms of your own: `name: {train.lr: 1.0e-5}`, one or more.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = "quickstart",
) -> None:
    """Base, cold start only, RL only and both, over several seeds: which part gives what.

    Leaves DIR/table.json, table.md, ablation.svg, and each arm as a run folder. The same command goes on
    where it was stopped. Exit code 1 when an arm failed; the others are in the table all the same.
    """
    from . import ablate as ablation
    from . import display, pipeline

    try:
        numbers = list(dict.fromkeys(int(part) for part in seeds.split(",")))
    except ValueError:
        raise MuaError(f"--seeds {seeds}: give numbers with commas between them, such as 0,1,2.") from None
    chosen = {**ablation.PAPER, **(ablation.VARIANTS if variants else {})}
    chosen.update(ablation.read_arms(arms) if arms else {})
    jobs = ablation.plan(config, overrides or (), chosen, numbers, out)
    title = f"Ablation of {Path(config).stem}, {jobs[0].config.domain}"

    def write(failed: dict[str, str]) -> tuple[list[str], list[list[str]]]:
        return ablation.write(ablation.collect(jobs, chosen, failed), title, out)

    async def work(report: pipeline.Report, should_stop: Callable[[], bool]) -> dict[str, str]:
        return await ablation.run_all(jobs, write, report, should_stop)

    failed = _watched(work)
    display.table(f"{title} (per cent; 95 % t intervals over seeds)", *write(failed))
    print(f"{out / 'table.json'}, {out / 'table.md'}, {out / 'ablation.svg'}")
    if failed:
        raise MuaError(
            f"{len(failed)} of {len(jobs)} runs failed; the first, {next(iter(failed))}: "
            f"{next(iter(failed.values()))} The same command runs them again."
        )


def _config(source: str | Path | None, overrides: list[str] | None, more: dict[str, Any]) -> Config:
    from .config import load_config

    return load_config(source, overrides or (), more)


def _run_config(
    config: str, out: Path, overrides: list[str] | None, more: dict[str, Any] | None = None
) -> Config:
    """The configuration that is named, else the run's own, else that of the quickstart."""
    own = out / "config.yaml"
    return _config(config or (own if own.is_file() else "quickstart"), overrides, more or {})


def _need(out: Path, path: str, command: str, what: str) -> None:
    """Raises MuaError when an earlier stage has not left what this one starts from."""
    if not (out / path).exists():
        raise MuaError(f"the run folder {out} has no {what} yet; run `{command} --out {out}` first.")


def _in_run(
    config: Config,
    out: Path,
    work: Callable[[Run], Coroutine[Any, Any, Any]],
    checks: Callable[[Config, Path], Coroutine[Any, Any, None]] | None = None,
) -> Any:
    """Does `work` in the run folder, after `checks`, so that what they refuse leaves no folder behind."""
    from . import pipeline

    async def start(report: pipeline.Report, should_stop: Callable[[], bool]) -> Any:
        if checks:
            await checks(config, out)
        run = pipeline.open_run(config, out, report=report, should_stop=should_stop)
        with run.folder:
            return await work(run)

    return _watched(start)


def _watched(start: Callable[..., Coroutine[Any, Any, Any]]) -> Any:
    """Runs `start(report, should_stop)` with progress shown; Ctrl-C stops it where it can go on later."""
    import asyncio

    from . import display, pipeline

    try:
        with display.interruptible() as should_stop, display.progress() as report:
            return asyncio.run(start(report, should_stop))
    except pipeline.Stopped:
        print("stopped; run the same command again to go on", file=sys.stderr)
        raise typer.Exit(130) from None


# ---------------------------------------------------------------- looking at models and runs


@app.command("eval")
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model folder, a run folder (base, cold start and RL), smollm2, or endpoint:NAME for any "
            "OpenAI-compatible endpoint (gateway:NAME: several as one).",
            show_default=False,
        ),
    ] = "",
    overrides: Overrides = None,
    agent: Annotated[
        str, typer.Option(metavar="MODEL", help="The same as the argument MODEL.", show_default=False)
    ] = "",
    domain: DomainName = "",
    benchmark: Annotated[
        str,
        typer.Option(
            metavar="B/PART",
            help="A domain of `mua benchmarks list`: all of its tasks, and published results beside ours.",
            show_default=False,
        ),
    ] = "",
    split: Annotated[
        str,
        typer.Option(
            help="Default: test; with --benchmark, the one whose score upstream reports.", show_default=False
        ),
    ] = "",
    user: UserName = "",
    config: AnyConfig = "",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where eval/NAME.json and .jsonl go; default: the run folder of the model, else runs/eval.",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(min=0, help="May be given several times.", show_default=False)
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            "--trials",
            min=1,
            help="Episodes a task; pass^k needs k of them.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many tasks.", show_default=False)
    ] = None,
    judge: Annotated[
        str,
        typer.Option(
            metavar="endpoint:NAME",
            help="Decides about criteria in natural language; without one, they are left out and said so.",
            show_default=False,
        ),
    ] = "",
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Compare with an earlier evaluation: its run folder, its folder, or its eval/NAME.json.",
            show_default=False,
        ),
    ] = None,
    fail_below: FailBelow = None,
    confident: Confident = False,
    base_url: BaseUrl = "",
    api_key_env: ApiKeyEnv = "",
) -> None:
    """Plays held-out tasks and counts, with intervals.

    The same command goes on with an evaluation that was stopped. With --against, exit code 1 says that
    success fell below --fail-below, and 2 that something is wrong.
    """
    from . import display, pipeline, speakers

    if against is None and (fail_below is not None or confident):
        raise MuaError("--fail-below and --confident need --against PATH, the evaluation to compare with.")
    if confident and fail_below is None:
        raise MuaError("--confident goes with --fail-below POINTS.")
    with _bad_input() if against else contextlib.nullcontext():
        if agent and "=" in model:  # the first override stands where the model would
            model, overrides = "", [model, *(overrides or ())]
        if bool(agent) == bool(model):
            raise MuaError("name the one model to evaluate, as MODEL or by --agent.")
        if benchmark and domain:
            raise MuaError("--benchmark names a domain; leave --domain out.")
        found = speakers.find(model or agent)
        run = found[0].run
        if benchmark:
            from .benchmarks import reported_split
            from .domains import load

            domain, split = benchmark, split or reported_split(load(benchmark))
        more = speakers.user_overrides(user, run, base_url, api_key_env) if user else {}
        if temperature:
            more["eval.temperatures"] = temperature
        elif found[0].endpoint:
            more["eval.temperatures"] = [0.0]
        given = {"domain": domain, "eval.split": split, "eval.samples": samples, "eval.tasks": tasks}
        more.update({key: value for key, value in given.items() if value})
        usual = _config(config or (run and run / "config.yaml"), None, {})
        settings = _config(config or (run and run / "config.yaml"), overrides, more)
        where = out or run or Path("runs") / "eval"
        made = [
            where / "eval" / f"{speakers.eval_name(speaker, settings, usual, t)}.json"
            for speaker in found
            for t in settings.eval.temperatures
        ]
        if against is not None:
            _check_against(against, made, settings)

        async def start(report: pipeline.Report, should_stop: Callable[[], bool]) -> Any:
            return await speakers.evaluate(
                settings,
                usual,
                found,
                where,
                base_url=base_url,
                api_key_env=api_key_env,
                judge=judge,
                report=report,
                should_stop=should_stop,
            )

        display.evaluations(_watched(start))
        print(f"conversations: {where / 'eval'}")
        if against is not None:
            fell = _compare_with(against, made, settings, fail_below, confident)
            raise typer.Exit(int(fell))


def _check_against(against: Path, made: list[Path], config: Config) -> None:
    """Refuses an evaluation to compare with that will not do, before anything is played."""
    from .domains import load
    from .evaluate.stored import read

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


def _compare_with(
    against: Path, made: list[Path], config: Config, fail_below: float | None, confident: bool
) -> bool:
    """Shows what differs from an earlier evaluation; whether the gate failed, which looks at all of it."""
    from . import display
    from .domains import load
    from .evaluate.compare import compare as compare_all
    from .evaluate.gate import Gate

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


@contextlib.contextmanager
def _bad_input() -> Iterator[None]:
    """Exit code 2 for what a person can mend: where 1 says that a gate failed, it must say nothing else."""
    from . import display

    try:
        yield
    except MuaError as exc:
        display.error(str(exc))
        raise typer.Exit(2) from None


@app.command()
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

    from . import display
    from .evaluate.compare import compare as compare_all
    from .evaluate.gate import Gate

    with _bad_input():
        if fail_below is None and (gate or confident):
            raise MuaError("--gate and --confident go with --fail-below POINTS.")
        # A comparison is quick, or somebody waits for it at a terminal.
        watched = display.progress() if sys.stderr.isatty() else contextlib.nullcontext(lambda *news: None)
        with watched as report:
            found = compare_all(places, every_model, report)
        if fail_below is not None:
            found["gate"] = Gate(fail_below, confident, tuple(gate or ())).check(found)
        if html is not None:
            from .report.comparison import build_comparison

            print(build_comparison(found, html), file=sys.stderr)
        if as_json and as_json != "-":
            _write(Path(as_json), json.dumps(found, ensure_ascii=False, indent=1) + "\n")
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


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise MuaError(f"{path} cannot be written: {exc.strerror}.") from None


users = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Compares simulated users.")
app.add_typer(users, name="users")


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
    from . import display, pipeline, speakers

    speaker = speakers.find(agent)[-1]
    run = speaker.run
    source = config or (run and run / "config.yaml")
    given = {"domain": domain, "eval.split": split, "eval.samples": samples, "eval.tasks": tasks}
    more = {key: value for key, value in given.items() if value} | {"eval.temperatures": [temperature]}
    settings = {}
    for name in filter(None, (n.strip() for n in names.split(","))):
        user, behaving = speakers.with_personas(name)
        chosen = speakers.user_overrides(user, run, base_url, api_key_env)
        settings[name] = _config(source, overrides, {**more, **chosen, **behaving})
    if not settings:
        raise MuaError("--users is empty; name some with commas: agenda,endpoint:NAME,path/to/model.")
    usual = _config(source, None, {})
    where = out or run or Path("runs") / "eval"
    if embed and imported is None:
        raise MuaError("--embed says how to compare with imported conversations; name them by --imported.")
    people = []
    if imported is not None:
        from .transcripts.build import read_import

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

    found, far = _watched(start)
    display.users(found)
    if far:
        display.distances(far, str(imported), len(people))
    print(f"figures and conversations: {where / 'eval'}")


@app.command()
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
    from .export import export as write

    print(f"{write(run, out, which, dtype, adapter)}: {out}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="The run folder.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: DIR/report.html.", show_default=False)
    ] = None,
) -> None:
    """Makes the page of a run.

    Of whatever there is of it; one HTML file that needs nothing else.
    """
    from .report import build_report

    print(build_report(run, out))


@app.command()
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
        float, typer.Option(min=0, help="With --device: median seconds of an endpoint's user.")
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
    """How long a training step would take, and what it would cost.

    Simulates the rollouts of a configuration with conversations as long as those played. Without --rates or
    --device, this machine is measured.
    """
    from . import display
    from .plan.gather import plan_for

    made, measured, used = plan_for(
        _config(config or (source / "config.yaml" if source and source.is_dir() else None), overrides, {}),
        source,
        rates=rates,
        device=device,
        devices=devices,
        per_replica=per_replica,
        user_latency=user_latency,
        steps=steps,
    )
    if write_rates is not None:
        write_rates.write_text(used.to_yaml(), encoding="utf-8")
    if as_json:
        import json

        print(json.dumps({**made.to_dict(), "measured": measured}))
    else:
        display.plan(made, measured)


@app.command()
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

    from .report.live import serving

    async def serve() -> None:
        async with serving(run, host, port) as address:
            print(f"{run}: {address} (Ctrl-C ends it)", flush=True)
            if browser:
                await asyncio.to_thread(webbrowser.open, address)
            await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


@app.command()
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
    from . import pipeline, speakers

    try:
        from .serve import run
    except ImportError:
        raise MuaError("serving needs two small packages: pip install 'mua[serve]'.") from None
    speaker = speakers.find(model)[-1]
    if speaker.endpoint:
        raise MuaError(f"'{model}' is served already; name a model folder or a run folder.")
    settings = _config(config or (speaker.run and speaker.run / "config.yaml"), overrides, {})
    players = pipeline.Players()
    _, format, engine = pipeline.load_agent(settings, speaker.path, players)
    run(format, engine, name or speaker.label, host, port)


@app.command()
def play(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="The agent you talk to: a model folder, a run folder (its last model), or endpoint:NAME.",
            show_default=False,
        ),
    ] = "",
    overrides: Overrides = None,
    side: Annotated[
        Literal["user", "agent"],
        typer.Option("--as", help="Who you are: the user of MODEL, or the agent of a simulated user."),
    ] = "user",
    domain: DomainName = "",
    split: Annotated[str, typer.Option(help="Split that the task is drawn from.")] = "test",
    kind: Annotated[str, typer.Option(help="Only tasks of this kind.", show_default=False)] = "",
    task: Annotated[str, typer.Option(metavar="ID", help="This task, instead of a random one.")] = "",
    user: UserName = "",
    config: AnyConfig = "",
    temperature: Annotated[float, typer.Option(min=0, help="Of MODEL.")] = 0.0,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.jsonl", help="The conversation is added to it.")
    ] = Path("runs/play.jsonl"),
    base_url: BaseUrl = "",
    api_key_env: ApiKeyEnv = "",
) -> None:
    """One conversation in the terminal, you on one side; saved, graded and audited at its end."""
    import asyncio
    import json
    import random

    from . import pipeline, speakers
    from .agents.human import HumanAgent
    from .domains import load
    from .episode import play as play_episode
    from .users.human import LEFT, HumanUser, leavable

    if side == "agent" and "=" in model:  # no model is named then, so the first override stands there
        model, overrides = "", [model, *(overrides or ())]
    if side == "user" and not model:
        raise MuaError(
            "name the one model that you want to talk to: its folder, a run folder, or endpoint:NAME. "
            "To be the agent yourself: `mua play --as agent`."
        )
    if side == "agent" and model:
        raise MuaError(f"you are the agent, so there is no place for '{model}'; name the user by --user.")
    if side == "user" and user:
        raise MuaError("you are the user yourself; leave --user out, or be the agent: --as agent.")
    speaker = speakers.find(model)[-1] if model else None
    run = speaker.run if speaker else speakers.run_of(user)
    more = speakers.user_overrides(user, run, base_url, api_key_env) if user else {}
    if domain:
        more["domain"] = domain
    settings = _config(config or (run and run / "config.yaml"), overrides, more)
    place = load(settings.domain)
    chosen = place.task(task) if task else _random_task(place, split, kind)
    seed = random.randrange(2**31)

    async def converse() -> Any:
        players = pipeline.Players.of(settings)
        try:
            if speaker:
                at, _ = await speakers.agent_makers(settings, place, speaker, players, base_url, api_key_env)
                agent: Any = at(temperature)(chosen, "play", seed)
                customer: Any = HumanUser(chosen, tools=place.task_tools(chosen, "user"))
                agent.step = leavable(agent.step)
            else:
                make_user, _ = await pipeline.user_maker(run, settings, settings.eval_user, players)
                agent, customer = HumanAgent(place.task_tools(chosen)), make_user(chosen, seed)
                customer.reply = leavable(customer.reply)
            return await play_episode(place, chosen, agent, customer, limits=settings.limits, seed=seed)
        finally:
            await players.close()

    _line_editing()
    with _added_to(out) as add:
        try:
            played = asyncio.run(converse())
        except KeyboardInterrupt:  # before anything was said, or a second time
            print(f"\n{LEFT}; it was not scored.")
            return
        add(json.dumps(played.to_dict(), ensure_ascii=False))
    _played(place, chosen, played)
    print(f"saved: {out}")


def _line_editing() -> None:
    """Lines as people type them: edited, of any length, and with bytes that are no text replaced."""
    with contextlib.suppress(ImportError):  # not every Python has it
        import readline  # noqa: F401
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]


@contextlib.contextmanager
def _added_to(path: Path) -> Iterator[Callable[[str], None]]:
    """Adds whole lines to a file. It is opened first: that it cannot be written shows before the work."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab", buffering=0)
    except OSError as exc:
        raise MuaError(f"{path} cannot be written ({exc}); choose another --out.") from None

    def add(line: str) -> None:
        file.write(f"{line}\n".encode("utf-8", "backslashreplace"))

    with file:
        yield add
    if not path.stat().st_size:
        path.unlink()  # nothing was added


def _played(place: Domain, task: Task, played: Any) -> None:
    """What became of a conversation: its verdict, the state that is not as it should be, the audit."""
    from . import display
    from .audit import audit as audit_one
    from .evaluate.audit import missed
    from .users.human import LEFT

    print(f"\ntask {task.id} ({task.kind}); the conversation ended by {played.termination.value}")
    if played.reward is None:
        print(f"{LEFT}; it was not scored." if played.detail == LEFT else played.reason)
    else:
        differences = missed(place, played) if played.termination.normal and played.reward < 1 else []
        why = "the end state is not what the task asks for:" if differences else played.reason
        why = why.removeprefix("not scored: ")
        print(f"{'SOLVED' if played.reward >= 1 else 'NOT SOLVED'}: {why}")
        _first([f"  {words}" for words in differences], 10)
    if any(m.role == "user" for m in played.messages):
        display.conversation_audit(audit_one(place, task, played), played.messages)


def _random_task(domain: Domain, split: str, kind: str) -> Task:
    import random

    return random.choice(_of_kind(domain, split, kind))


def _of_kind(domain: Domain, split: str, kind: str) -> list[Task]:
    found = [t for t in domain.tasks(split) if kind in ("", t.kind)]
    if not found:
        kinds = ", ".join(sorted({t.kind for t in domain.tasks(split)}))
        raise MuaError(
            f"split '{split}' of domain '{domain.name}' has no task of kind '{kind}'; it has {kinds}"
        )
    return found


@app.command("import")
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
    from . import display, pipeline, speakers
    from .config import Config
    from .domains import load
    from .transcripts import build

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

    made = _watched(work)
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


@app.command()
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

    from . import display
    from .domains import load
    from .evaluate import audit as auditing

    files = auditing.trajectory_files(place)
    own = load(domain) if domain else None

    async def work() -> dict[str, Any]:
        with display.progress() as report:
            if not judge:
                return await auditing.run(files, own, out, report=report)
            from . import pipeline, speakers
            from .config import Config

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


@app.command()
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
    from . import benchmarks as known
    from .domains import load
    from .evaluate.score import score as score_all

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


# ---------------------------------------------------------------- benchmarks

benchmarks = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Installs and lists benchmarks.")
app.add_typer(benchmarks, name="benchmarks")


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
    from .benchmarks.store import install

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

    from . import display, pipeline, speakers
    from .benchmarks import generate, is_benchmark
    from .domains import load

    domain: Any = load(name)
    if not is_benchmark(name) or domain.load_extra is None:
        raise MuaError(
            f"tasks are generated for {', '.join(f'tau2/{p}' for p in generate.PARTS)}, not '{name}'."
        )
    if out.suffix != ".json":
        raise MuaError(f"--out {out}: the name of a file of tasks ends in .json.")

    async def reword(report: pipeline.Report) -> Any:
        from .benchmarks.generate.reword import reword_all
        from .config import Config

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
    from . import display
    from .benchmarks import INSTALLED_AS, PARTS, load
    from .benchmarks.store import SOURCES, installed

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


# ---------------------------------------------------------------- tasks


@app.command()
def tasks(
    domain: Annotated[
        str, typer.Argument(metavar="DOMAIN", help="Without one: the domains.", show_default=False)
    ] = "",
    split: Annotated[str, typer.Option(help="List the tasks of this split.", show_default=False)] = "",
    kind: Annotated[str, typer.Option(help="Only tasks of this kind.", show_default=False)] = "",
    show: Annotated[str, typer.Option(metavar="ID", help="All of one task.", show_default=False)] = "",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Replay every gold solution, look for tasks that doing nothing solves, and let the expert "
            "play every task; exit code 1 if anything is wrong.",
        ),
    ] = False,
    noop: Annotated[
        bool, typer.Option("--noop", help="List the tasks that doing nothing solves, and their number.")
    ] = False,
    leaks: Annotated[
        bool,
        typer.Option(
            "--leaks",
            help="Of a benchmark: list the tasks of --split (default: train) that have the content of test "
            "tasks, its own or those of benchmarks that share tasks with it.",
        ),
    ] = False,
) -> None:
    """Lists domains and tasks, and checks that they are sound."""
    from . import display
    from .domains import NAMES, load

    if not domain:
        rows = []
        for name in NAMES:
            found = load(name)
            sizes = ", ".join(f"{s} {len(found.tasks(s))}" for s in found.splits)
            rows.append([name, str(len(found.tools())), sizes])
        display.table("Domains", ["domain", "tools", "tasks by split"], rows)
        return
    place = load(domain)
    if show:
        _show(place.task(show))
    elif noop:
        _noops(place, [split] if split else list(place.splits))
    elif leaks:
        _leaks(place, split or "train")
    elif verify:
        _verify(place, [split] if split else list(place.splits), kind)
    elif split or kind:
        for s in [split] if split else place.splits:
            for t in _of_kind(place, s, kind):
                print(f"{t.id:<20} {t.kind:<14} {t.scenario.goal}")
    else:
        kinds = sorted({t.kind for s in place.splits for t in place.tasks(s)})
        rows = [[k, *(str(sum(t.kind == k for t in place.tasks(s))) for s in place.splits)] for k in kinds]
        rows.append(["all", *(str(len(place.tasks(s))) for s in place.splits)])
        display.table(f"Tasks of {domain} by kind and split", ["kind", *place.splits], rows)


def _noops(domain: Domain, splits: list[str]) -> None:
    from .benchmarks.guards import noops

    for split in splits:
        found = noops(domain, split)
        for t in found:
            print(f"{split:<10} {t.id:<20} {t.kind}")
        print(f"{split}: doing nothing solves {len(found)} of {len(domain.tasks(split))} tasks")


def _leaks(domain: Domain, split: str) -> None:
    from .benchmarks import guards, is_benchmark

    if not is_benchmark(domain.name):
        raise MuaError("--leaks is of benchmarks; tasks of other domains are compared when training starts.")
    held_out = [h for h in guards.held_out_tasks(domain, "test", None) if h.where != f"{domain.name} {split}"]
    found = guards.leaks(domain, domain.tasks(split), held_out)
    for leak in found:
        print(leak)
    counts = ", ".join(f"{n} with {where}" for where, n in Counter(leak.where for leak in found).items())
    print(f"{split}: {len(found)} of {len(domain.tasks(split))} tasks are held out: {counts or 'none'}")


def _show(task: Task) -> None:
    import json

    print(f"{task.id} ({task.kind})\n\n{task.scenario.goal}")
    for name, value in task.scenario.facts.items():
        print(f"  {name}: {value}")
    if task.scenario.persona:
        print(f"speaks: {task.scenario.persona}")
    if task.setup:
        print("\nsets up")
    for change in task.setup:
        print(f"  {change.table} {change.key}: {json.dumps(change.row, default=dict, ensure_ascii=False)}")
    print("\ngold solution")
    for action in task.actions:
        print(f"  {action.name} {json.dumps(action.arguments, default=dict, ensure_ascii=False)}")


def _verify(domain: Domain, splits: list[str], kind: str) -> None:
    """Prints a table of sound tasks by kind and split, and each problem; exits with 1 if there is one."""
    import asyncio

    from . import display
    from .coldstart.soundness import check_tasks

    chosen = {s: _of_kind(domain, s, kind) if kind else domain.tasks(s) for s in splits}
    with display.progress() as report:
        found = asyncio.run(check_tasks(domain, chosen, report))
    sound, problems = found.sound, found.problems

    def cell(kind: str, split: str) -> str:
        results = sound.get((kind, split), [])
        return f"{sum(results)}/{len(results)}" if results else "-"

    kinds = sorted({k for k, _ in sound})
    display.table(
        f"Sound tasks of {domain.name}",
        ["kind", *splits],
        [[k, *(cell(k, s) for s in splits)] for k in kinds],
    )
    _first(problems)
    print(f"{sum(map(len, sound.values()))} tasks, {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


def _first(problems: list[str], most: int = 50) -> None:
    for line in problems[:most]:
        print(line)
    if len(problems) > most:
        print(f"… and {len(problems) - most} more")


# ---------------------------------------------------------------- environments

environments = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Episodes as environments of other trainers (docs/other-trainers.md).",
)
app.add_typer(environments, name="env")
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
    from .exports.package import write

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
    from .exports.stepwise import setting

    made = setting(domain, split, user, base_url=base_url, api_key_env=api_key_env, evaluate=evaluate)
    try:
        from .exports.openenv import run
    except ImportError:
        raise MuaError("serving OpenEnv needs its package: pip install 'mua[openenv]'.") from None
    run(made, split, host, port, sessions, idle)


# ---------------------------------------------------------------- domains

domains = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Checks and starts domains.")
app.add_typer(domains, name="domain")


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

    from . import display
    from .coldstart.soundness import check_domain
    from .domains import load

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
        _first(found.problems)
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
    from .domains.new import new

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

    from . import pipeline, speakers
    from .coldstart.drafting import PROBLEMS, draft
    from .domains.new import check_name

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

    made, endpoint = _watched(work)
    print(f"{made.rounds} rounds, {endpoint.prompt_tokens:,} + {endpoint.completion_tokens:,} tokens")
    shown = made.place if made.place.is_absolute() else f"./{made.place}"
    if made.problems:
        _first(made.problems)
        raise MuaError(
            f"not accepted after {made.rounds} rounds; draft and {PROBLEMS} are in {made.place}. Mend it by "
            f"hand (mua domain check {shown}) or not; the same command goes on from there."
        )
    print(f"{made.place} is a domain; read its policy and tasks, then: mua tasks {shown} --split test")
