"""Domains and their tasks, listed and verified: `mua tasks`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import MuaError
from .running import first_lines

if TYPE_CHECKING:
    from ..domain import Domain, Task


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
    from .. import display
    from ..domains import NAMES, load

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
            for t in of_kind(place, s, kind):
                print(f"{t.id:<20} {t.kind:<14} {t.scenario.goal}")
    else:
        kinds = sorted({t.kind for s in place.splits for t in place.tasks(s)})
        rows = [[k, *(str(sum(t.kind == k for t in place.tasks(s))) for s in place.splits)] for k in kinds]
        rows.append(["all", *(str(len(place.tasks(s))) for s in place.splits)])
        display.table(f"Tasks of {domain} by kind and split", ["kind", *place.splits], rows)


def of_kind(domain: Domain, split: str, kind: str) -> list[Task]:
    found = [t for t in domain.tasks(split) if kind in ("", t.kind)]
    if not found:
        kinds = ", ".join(sorted({t.kind for t in domain.tasks(split)}))
        raise MuaError(
            f"split '{split}' of domain '{domain.name}' has no task of kind '{kind}'; it has {kinds}"
        )
    return found


def _noops(domain: Domain, splits: list[str]) -> None:
    from ..benchmarks.guards import noops

    for split in splits:
        found = noops(domain, split)
        for t in found:
            print(f"{split:<10} {t.id:<20} {t.kind}")
        print(f"{split}: doing nothing solves {len(found)} of {len(domain.tasks(split))} tasks")


def _leaks(domain: Domain, split: str) -> None:
    from ..benchmarks import guards, is_benchmark

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

    from .. import display
    from ..coldstart.soundness import check_tasks

    chosen = {s: of_kind(domain, s, kind) if kind else domain.tasks(s) for s in splits}
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
    first_lines(problems)
    print(f"{sum(map(len, sound.values()))} tasks, {len(problems)} problems")
    if problems:
        raise typer.Exit(1)
