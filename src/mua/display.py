"""What the command line shows: progress while a run works, tables of results, errors as one paragraph.

Invariant: results go to standard output, everything else to standard error; text from elsewhere is shown
as text, without markup and without control characters.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

PLAIN_SECONDS = 15.0
"""Where there is no terminal: seconds between two lines of one stage."""


def error(text: str) -> None:
    """One paragraph on standard error, wrapped to the terminal if it is one."""
    from rich.console import Console
    from rich.text import Text

    words = " ".join("".join(c for c in text if c.isprintable() or c.isspace()).split())
    console = Console(stderr=True)
    if not console.is_terminal:  # a log is easier to search without line breaks
        print(f"error: {words}", file=sys.stderr)
        return
    console.print(Text.assemble(("error: ", "bold red"), words), width=min(console.width, 100))


# ---------------------------------------------------------------- progress


@contextmanager
def progress() -> Iterator[Callable[[str, int, int, str], None]]:
    """A `pipeline.Report`: a bar a stage on a terminal, else a line now and then."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bars = Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}"),
        console=console,
        refresh_per_second=4,
    )
    stages: dict[str, Any] = {}
    with bars:

        def report(stage: str, done: int, total: int, words: str) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=total, words=words)
            bars.update(stages[stage], completed=done, total=total, words=words)

        yield report


def _plain_lines() -> Callable[[str, int, int, str], None]:
    shown: dict[str, float] = {}
    ended: set[str] = set()

    def report(stage: str, done: int, total: int, words: str) -> None:
        now = time.monotonic()
        last = done >= total and stage not in ended
        if last or (stage not in ended and now - shown.get(stage, -PLAIN_SECONDS) >= PLAIN_SECONDS):
            shown[stage] = now
            print(f"{stage} {done}/{total} {words}".rstrip(), file=sys.stderr, flush=True)
        if last:
            ended.add(stage)

    return report


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """`should_stop` for a run: true once Ctrl-C or SIGTERM came. A second one ends the process at once.

    Ending at once is safe: every file of a run is written whole, or cut back to whole lines on resuming.
    """
    asked = threading.Event()

    def tell() -> None:
        print("stopping after this step; once more stops at once", file=sys.stderr, flush=True)

    def handle(number: int, frame: Any) -> None:
        if asked.is_set():
            if sys.stderr.isatty():
                os.write(2, b"\x1b[?25h\n")  # the cursor, which progress bars hide
            os._exit(130)
        asked.set()
        # From a thread: whoever was interrupted may hold the lock of the display.
        threading.Thread(target=tell, daemon=True).start()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------- tables


def percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """`62.5 %`, with its interval as `62.5 % (55.6-68.9)`."""
    if value is None:
        return "-"
    text = f"{100 * value:.1f} %"
    return f"{text} ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})" if interval else text


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; columns after the first are right-aligned."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        out.add_column(Text(name), justify="right" if i else "left", no_wrap=True)
    for row in rows:
        out.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file or a pipe has no width to fit into
    console.print(out, highlight=False)


MODELS = {"base": "base", "cold_start": "cold start", "rl": "RL"}


def summary(data: Mapping[str, Any]) -> None:
    """The table of a finished run, from summary.json."""
    rows = []
    for key, name in MODELS.items():
        row = data.get(key)
        if row:
            rows.append(
                [
                    name,
                    percent(row["success"], row["ci95"] if row["success"] is not None else None),
                    percent(row["success_greedy"], row["ci95_greedy"]),
                    str(row["n"]),
                ]
            )
    table(
        f"Held-out success (user: {data['eval_user']}; 95 % intervals)",
        ["model", "temperature 1", "greedy", "tasks"],
        rows,
    )
    gain = data.get("gain_greedy")
    if gain:
        low, mean, high = (100 * gain[k] for k in ("low", "mean", "high"))
        print(f"RL - cold start, greedy, paired by task: {mean:+.1f} points ({low:+.1f} to {high:+.1f})")
    print(
        f"{data['rl_steps']} RL steps; training took {data['seconds_train'] / 60:.1f} min, "
        f"{data['peak_mb'] / 1000:.1f} GB at most"
    )


def _own_measure(result: Any, measure: str) -> list[str]:
    """Our row of a table of published results."""
    value = result.success if measure == "success" else result.benchmark.get(measure)
    split = f"{result.split}, {result.n} tasks x {result.samples}, user {result.user}"
    return [f"ours: {result.model} ({split})", "-" if value is None else f"{100 * value:.1f}"]


def audit(place: str, found: Mapping[str, Any]) -> None:
    """The tables of an audit (`evaluate.audit.Figures`): rules by layer, then behaviour."""
    rows = []
    for layer, figures in found["layers"].items():
        rows.append([layer, *_kept(figures), ""])
        rows += [
            [f"  {rule}", *_kept(one), str(one["breaches"])] for rule, one in found["rules"][layer].items()
        ]
    columns = ["layer and rule", "kept", "trajectories", "unmeasured", "breaches"]
    table(f"{place}: {found['trajectories']} trajectories", columns, rows)
    behaviour = found["behaviour"]
    table("Behaviour (mean)", ["", "mean"], [[n.replace("_", " "), f"{v:.3g}"] for n, v in behaviour.items()])


def _kept(figures: Mapping[str, Any]) -> list[str]:
    if not figures:
        return ["-", "0", ""]
    return [percent(figures["rate"]), str(figures["n"]), str(figures.get("unmeasured", ""))]


def layers(found: Mapping[str, Any]) -> str:
    """The layers of an evaluation in one line."""
    return ", ".join(f"{name} {percent(one.get('rate'))}" for name, one in found["layers"].items())


def users(found: Mapping[str, Sequence[Any]]) -> None:
    """The table of one agent with several users: name of the user → `EvalResult`s."""
    from .users.fidelity import CAUSES

    short = dict(zip(CAUSES, ("leaked", "invented", "too early", "too late", "as agent"), strict=True))
    rows = [
        [
            name,
            f"{r.temperature:g}",
            percent(r.success, r.ci95),
            f"{r.turns:.1f}",
            *(percent(r.fidelity.get(key)) for key in ("faithful", *CAUSES)),
            f"{r.n} x {r.samples}",
            str(r.excluded),
        ]
        for name, results in found.items()
        for r in results
    ]
    first = next(iter(found.values()))[0]
    table(
        f"{first.model} on {first.domain}, split {first.split} (95 % intervals)",
        ["user", "T", "success", "turns", "faithful", *short.values(), "tasks", "excluded"],
        rows,
    )


def evaluations(results: Sequence[Any]) -> None:
    """Tables of `EvalResult`s: success with intervals and pass^k, then success by kind of task."""
    top = max(k for r in results for k in r.pass_k)
    ks = [k for k in (2, 3, 4, 8, 16) if k < top] + ([top] if top > 1 else [])
    rows = [
        [
            r.model,
            f"{r.temperature:g}",
            percent(r.success, r.ci95),
            *(percent(r.pass_k.get(k)) for k in ks),
            f"{r.n} x {r.samples}",
            f"{r.turns:.1f}",
            f"{r.agent_tokens_per_episode:.0f}",
            str(r.excluded),
        ]
        for r in results
    ]
    first = results[0]
    table(
        f"{first.domain}, split {first.split}, user {first.user} (95 % intervals)",
        ["model", "T", "success", *(f"pass^{k}" for k in ks), "tasks", "turns", "tokens", "excluded"],
        rows,
    )
    for r in results:
        if r.audit:
            print(f"layers kept, {r.model} T={r.temperature:g}: {layers(r.audit)}")
    for measure, rows in (first.benchmark.get("paper") or {}).items():
        if rows:
            ours = [_own_measure(r, measure) for r in results]
            table(
                f"Beside published results ({measure.replace('_', ' ')}, percent)",
                ["model", "percent"],
                [*ours, *([model, f"{value:.1f}"] for model, value in rows.items())],
            )
    for title, found in (
        ("By domain", [r.by_domain for r in results]),
        ("By kind of task", [r.by_kind for r in results]),
    ):
        names = sorted({name for rates in found for name in rates})
        rows = [
            [
                name,
                str(max(int(rates[name]["n"]) for rates in found if name in rates)),
                *(percent(rates[name]["success"]) if name in rates else "-" for rates in found),
            ]
            for name in names
        ]
        if rows:
            columns = [title.split()[1], "tasks", *(f"{r.model} T={r.temperature:g}" for r in results)]
            table(title, columns, rows)
