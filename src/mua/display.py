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

from .evaluate import tables as cells
from .evaluate.tables import ks, percent, rounded, signed

PLAIN_SECONDS = 15.0
"""Where there is no terminal: seconds between two lines of one stage."""


def error(text: str) -> None:
    """One paragraph on standard error, wrapped to the terminal if it is one."""
    from rich.console import Console
    from rich.text import Text

    words = _plain(text)
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


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Prints a table; columns after the first `left` are right-aligned. A terminal that is too narrow gets
    several."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file or a pipe has no width to fit into
    for block in cells.Table(title, columns, rows, left).blocks(console.width):
        out = Table(title=Text(block.title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(block.columns):
            out.add_column(Text(name), justify="right" if i >= left else "left", no_wrap=True)
        for row in block.rows:
            out.add_row(*map(Text, row))
        console.print(out, highlight=False)


def endpoints(figures: Mapping[str, Any]) -> None:
    """What was asked of endpoints, by role (`gateway.Meter.figures`); nothing without any."""
    rows = []
    for role, f in figures.items():
        if role == "cost_per_task":
            continue
        errors = ", ".join(f"{n} {kind}" for kind, n in f["errors"].items()) or "-"
        times = ["-" if f[p] is None else f"{f[p]:.2f}" for p in ("p50", "p90", "p99")]
        tokens = f"{f['prompt_tokens']:,} + {f['completion_tokens']:,}"
        rows.append(
            [role, f"{f['requests']:,}", f"{f['cached']:,}", *times, tokens, f"${f['dollars']:.4f}", errors]
        )
    if rows:
        columns = ["requests", "cached", "p50 s", "p90 s", "p99 s", "tokens", "cost", "errors"]
        table("Endpoints", ["role", *columns], rows)
    if "cost_per_task" in figures:
        print(f"${figures['cost_per_task']:.4f} per trained task")


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
        interval = f"{signed(low)} to {signed(high)}"
        print(f"RL - cold start, greedy, paired by task: {signed(mean)} points ({interval})")
    print(
        f"{data['rl_steps']} RL steps; training took {data['seconds_train'] / 60:.1f} min, "
        f"{data['peak_mb'] / 1000:.1f} GB at most"
    )


def comparison(found: Mapping[str, Any]) -> None:
    """The tables of `mua compare`, as wide as the terminal, and what is said beside them."""
    from .evaluate.tables import lines, printable, tables

    for one in found["comparisons"]:
        for whole in tables(one):
            rows = [list(map(printable, row)) for row in whole.rows]
            table(printable(whole.title), [*map(printable, whole.columns)], rows, whole.keep)
        print("\n".join(map(printable, lines(one))))
        print()
    for note in found["notes"]:
        print(f"note: {printable(note)}")


def comparison_markdown(found: Mapping[str, Any]) -> None:
    """The same as Markdown."""
    from .evaluate.tables import lines, markdown, printable, tables

    for one in found["comparisons"]:
        print("\n".join(map(markdown, tables(one))))
        said = map(printable, [*lines(one), *(f"note: {note}" for note in found["notes"])])
        print("\n".join(line if line.startswith("- ") else f"\n{line}\n" for line in said), end="\n\n")


def gate(found: Mapping[str, Any], in_markdown: bool = False) -> None:
    """What a gate looked at; what fell goes to standard error, a sentence each."""
    from .evaluate.tables import gate_table, markdown, printable

    looked = gate_table(found)
    if in_markdown:
        print(markdown(looked))
    else:
        table(looked.title, looked.columns, [list(map(printable, row)) for row in looked.rows], 2)
    gate_sentences(found)


def gate_sentences(found: Mapping[str, Any]) -> None:
    """What fell, on standard error."""
    for sentence in found["fallen"]:
        print(f"regression: {_plain(sentence)}", file=sys.stderr)


def _own_measure(result: Any, measure: str) -> list[str]:
    """Our row of a table of published results."""
    value = result.success if measure == "success" else result.benchmark.get(measure)
    split = f"{result.split}, {result.n} tasks x {result.samples}, user {result.user}"
    return [f"ours: {result.model} ({split})", "-" if value is None else rounded(100 * value)]


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


def conversation_audit(found: Any, messages: Sequence[Any]) -> None:
    """The rules that applied to one conversation (`audit.Audit`), and the message that broke each; the words
    wrap in a narrow window."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Table(title=Text("Audit"), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("layer", "rule", "verdict"):
        out.add_column(Text(name), overflow="fold")
    layer = ""
    for verdict in found.verdicts:
        if verdict.status == "not_applicable":
            continue
        words = Text({"pass": "kept", "violation": "BROKEN", "unmeasured": "not measured"}[verdict.status])
        if verdict.status == "violation" and verdict.layer == "outcome":
            words.append(", as said above")
        elif verdict.status == "violation":
            words.append(f": {_plain(verdict.evidence)}")
            if verdict.at is not None and verdict.at < len(messages):
                words.append(f"\n  message {verdict.at}, {_event(messages[verdict.at])}")
        out.add_row("" if verdict.layer == layer else verdict.layer, verdict.rule, words)
        layer = verdict.layer
    console = Console()
    console.print(out, highlight=False, width=min(console.width, 120))


def imported(figures: Mapping[str, Any], mix: Mapping[str, Any], most: int = 12) -> None:
    """The tables of an import: what was done to the conversations, and how their users behave."""
    rows = [[name, str(figures[name])] for name in ("lines", "conversations", "rejected")]
    rows += [["exact copies", str(figures["copies"])], ["near-duplicates", str(figures["near_duplicates"])]]
    for title, found in (("mended", "mended"), ("redacted", "redacted"), ("end state", "end_states")):
        rows += [[f"{title}: {name}", str(count)] for name, count in figures[found].items()]
    rows += [[f"scenarios by {by}", str(count)] for by, count in figures["drafted_by"].items()]
    rows.append(["scenarios with a known end", str(figures["tasks"])])
    table(f"Import of {figures['file']}", ["", "number"], rows)
    for title in ("personas", "behaviours"):
        found = list(mix[title].items())
        rows = [
            [name, str(one["count"]), percent(one["share"], (one["low"], one["high"]))]
            for name, one in found[:most]
        ]
        if found[most:]:
            rows.append([f"and {len(found) - most} more", str(sum(o["count"] for _, o in found[most:])), ""])
        table(f"{title.capitalize()} (95 % intervals)", ["", "number", "share"], rows)


def _event(message: Any) -> str:
    who = {"user": "user", "assistant": "agent"}.get(message.role, message.role)
    calls = [f"{c.name} {dict(c.arguments)}" for c in message.tool_calls]
    text = _plain(f"{who}: {'; '.join(calls) or message.content}")
    return text if len(text) <= 160 else f"{text[:160]}…"


def _plain(text: str) -> str:
    return " ".join("".join(c for c in text if c.isprintable() or c.isspace()).split())


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


def plan(made: Any, measured: Mapping[str, float]) -> None:
    """A `plan.Plan`, beside the seconds of the run that it was made from, and what it takes for granted."""

    def beside(name: str, seconds: float) -> list[str]:
        found = measured.get(name)
        return [_seconds(seconds), *([_seconds(found)] if found else [""] * bool(measured))]

    if {"rollout", "update"} <= measured.keys():
        measured = {**measured, "step": measured["rollout"] + measured["update"]}
    columns = ["a step", "planned", *(["measured"] * bool(measured))]
    blank = [""] * bool(measured)
    rows = [
        ["rollout", *beside("rollout", made.rollout)],
        ["update", *beside("update", made.update)],
        ["step", *beside("step", made.step)],
        ["devices wait", f"{made.idle:.0%}", *blank],
        ["episodes", f"{made.episodes:,.0f}", *blank],
        ["agent tokens", f"{made.agent_tokens:,.0f} ({made.agent_tokens_per_second:,.0f}/s)", *blank],
        ["tokens trained on", f"{made.trained_tokens:,.0f}", *blank],
        ["user's answers", f"{made.user_requests:,.0f}, {_seconds(made.user_wait)} each", *blank],
        ["user's tokens", f"{made.user_tokens:,.0f}", *blank],
    ]
    if made.user_cost:
        rows.append(["users cost", f"${made.user_cost:,.2f}", *blank])
    if made.evaluation is not None:
        rows.append([f"an evaluation, of {made.evaluations}", *beside("evaluation", made.evaluation)])
    if made.evaluation_cost:
        rows.append(["its users cost", f"${made.evaluation_cost:,.2f}", *blank])
    cost = f", ${made.cost:,.0f} for users" if made.cost else ""
    table(f"{made.steps} steps: {made.hours:,.1f} h{cost}", columns, rows)
    for text in made.warnings:
        print(f"warning: {text}")
    for text in made.assumed:
        print(f"assumed: {text}")


def _seconds(value: float) -> str:
    return f"{value:,.2f} s" if value < 100 else f"{value:,.0f} s"


def differences_to_paper(result: Any) -> list[str]:
    """In what an `EvalResult` was measured otherwise than the published rows."""
    from .benchmarks import paper

    about = {key: getattr(result, key) for key in ("user", "samples", "temperature", "n")}
    about["faults"] = result.faults.get("label")
    about["benchmark_version"] = result.benchmark.get("version")
    return paper.differences(result.domain, about)


def distances(found: Mapping[str, Sequence[Any]], imported: str, count: int) -> None:
    """How far users are from imported ones (`transcripts.distance`): name of the user → `Distance`s."""
    rows = []
    for name, measures in found.items():
        for d in measures:
            means = "" if d.here is None else f"{d.here:.1f} : {d.there:.1f}"
            told = f"{d.distance:.3f} ({d.low:.3f}-{d.high:.3f})"
            rows.append([name, d.measure, means, told, f"{d.floor:.3f} (to {d.floor_high:.3f})"])
            rows[-1].append("yes" if d.differs else "")
            name = ""  # noqa: PLW2901 - said once
    columns = ["user", "measure", "user : imported", "distance (95 %)", "two halves", "differs"]
    table(f"Distance from the {count} conversations of {imported}", columns, rows)


def evaluations(results: Sequence[Any]) -> None:
    """Tables of `EvalResult`s: success with intervals and pass^k, then success by kind of task."""
    shown = ks([k for r in results for k in r.pass_k])
    rows = [
        [
            r.model,
            f"{r.temperature:g}",
            percent(r.success, r.ci95),
            *(percent(r.pass_k.get(k), r.pass_k_ci95.get(k)) for k in shown),
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
        ["model", "T", "success", *(f"pass^{k}" for k in shown), "tasks", "turns", "tokens", "excluded"],
        rows,
    )
    for r in results:
        if r.endpoints:
            endpoints(r.endpoints)
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
    for r in results if first.benchmark.get("paper") else ():
        if told := differences_to_paper(r):
            print(f"{r.model} T={r.temperature:g} beside the paper's rows: {'; '.join(told)}")
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
