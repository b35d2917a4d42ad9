"""A comparison as tables: the same cells for a terminal and for Markdown.

Invariant: no cell is cut. A table that is too wide for where it is shown becomes several, each with the first
columns of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

_KS = (2, 3, 4, 8, 16)


@dataclass(frozen=True)
class Table:
    """A title, named columns, and rows of as many cells."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    keep: int = 1
    """The first so many columns say what a row is."""

    def blocks(self, width: int) -> Iterator[Table]:
        """Tables of at most `width` cells as `display.table` draws them (three between columns, one at each
        end), as far as single columns allow it."""
        from rich.cells import cell_len

        sizes = [max(map(cell_len, column)) + 3 for column in zip(self.columns, *self.rows, strict=True)]
        fixed = sum(sizes[: self.keep])
        start = self.keep
        while start < len(sizes) or start == self.keep:
            end, used = start, fixed
            while end < len(sizes) and (end == start or used + sizes[end] <= width + 1):
                used += sizes[end]
                end += 1
            chosen = [*range(self.keep), *range(start, end)]
            pick = [[row[i] for i in chosen] for row in (self.columns, *self.rows)]
            more = "" if start == self.keep else " (continued)"
            yield Table(f"{self.title}{more}", pick[0], pick[1:], self.keep)
            start = max(end, start + 1)


def rounded(value: float, digits: int = 1) -> str:
    """`71.3` for 71.25: halves away from zero, as the pages' script rounds, so that one number never shows as
    two."""
    if not math.isfinite(value):
        return str(value)
    return str(Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """`62.5 %`, with its interval as `62.5 % (55.6-68.9)`."""
    if value is None:
        return "-"
    text = f"{rounded(100 * value)} %"
    return f"{text} ({rounded(100 * interval[0])}-{rounded(100 * interval[1])})" if interval else text


def points(found: Mapping[str, Any] | None, scale: float = 100, digits: int = 1) -> str:
    """`+4.0 (-1.0 to +9.0)`, a difference with its interval, if that has a width; `-` for none."""
    if not found:
        return "-"
    text = signed(scale * found["mean"], digits)
    if found["low"] is None or found["low"] == found["high"]:  # all tasks agree: chance has nothing to say
        return text
    return f"{text} ({signed(scale * found['low'], digits)} to {signed(scale * found['high'], digits)})"


def signed(value: float, digits: int = 1) -> str:
    """`+4.0`; zero has no sign."""
    text = rounded(value, digits)
    if float(text) == 0:
        return text.removeprefix("-")
    return f"+{text}" if value > 0 else text


def limit(points: float) -> str:
    """`-2`, `0`, `+3`."""
    return f"{points:+g}" if points else "0"


def ks(available: Sequence[int]) -> list[int]:
    """The k of pass^k that are shown beside pass^1: 2, 3, 4, 8, 16 and the largest."""
    top = max(available, default=1)
    return [k for k in _KS if k < top] + ([top] if top > 1 else [])


def tables(comparison: Mapping[str, Any]) -> list[Table]:
    """The tables of one comparison, as `compare.compare` returns it."""
    rows = comparison["evaluations"]
    out = [_success(comparison["title"], rows)]
    if any(len(r["pass_k"]) > 1 for r in rows):
        out.append(_reliability(rows))
    for title, key in (("By domain", "domains"), ("By kind of task", "kinds"), ("Layers kept", "layers")):
        if any(r[key] for r in rows):
            out.append(_shares(title, key, rows))
    out += [_endings(rows), _effort(rows)]
    for measure, published in (comparison["published"].get("rows") or {}).items():
        out.append(_published(measure, published, rows))
    return [table for table in out if table.rows]


def lines(comparison: Mapping[str, Any]) -> list[str]:
    """What is said beside the tables: how it was measured, and what is missing."""
    first = comparison["evaluations"][0]
    out = [
        f"differences are to {first['letter']}, {first['label']}, in points; * where the interval has no 0"
    ]
    if comparison["protocol"]:
        out.append("measured differently:")
        out += [f"- {one['words']}" for one in comparison["protocol"]]
    else:
        out.append("measured alike, as far as settings are recorded")
    if comparison["unrecorded"]:
        out.append(f"recorded by none: {', '.join(comparison['unrecorded'])}")
    for letter, told in (comparison["published"].get("protocol") or {}).items():
        if told:
            out.append(f"{letter} beside the paper's rows: {'; '.join(told)}")
    return [*out, *(f"note: {note}" for note in comparison["notes"])]


def gate_table(found: Mapping[str, Any]) -> Table:
    """What a gate looked at."""
    measured = "upper end of the interval" if found["confident"] else "difference"
    rows = [
        [c["title"], c["label"], points(c), _compared(c), "holds" if c["holds"] else "FELL"]
        for c in found["checked"]
    ]
    title = f"Gate: {measured} not below {limit(found['below'])} points"
    return Table(title, ["", "evaluation", "difference", "tasks", ""], rows, keep=2)


def _compared(found: Mapping[str, Any]) -> str:
    if found["tasks"] is None:
        return "?"
    return f"{found['tasks']}" + (f", {found['left_out']} left out" if found["left_out"] else "")


def markdown(table: Table) -> str:
    """A table in GitHub's Markdown."""
    head = "| " + " | ".join(map(_cell, table.columns)) + " |"
    rule = "|" + "|".join(["---"] * table.keep + ["---:"] * (len(table.columns) - table.keep)) + "|"
    body = ["| " + " | ".join(map(_cell, row)) + " |" for row in table.rows]
    return "\n".join([f"### {printable(table.title)}", "", head, rule, *body, ""])


def _cell(text: str) -> str:
    return printable(text).strip().replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def printable(text: str) -> str:
    """Without control characters and line breaks."""
    return "".join(c if c.isprintable() else " " for c in text)


# ---------------------------------------------------------------- one table each


def _success(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = ["", "evaluation", "success", "difference", "p", "only this", "only A", "tasks", "excluded"]
    cells = []
    for r in rows:
        d = r["difference"] or {}
        counted = d.get("p") is not None
        tasks = (
            f"{r['n'] if r['n'] is not None else '?'} x {r['samples'] if r['samples'] is not None else '?'}"
        )
        if counted and d["left_out"]:
            tasks += f", {d['tasks']} compared"
        cells.append(
            [
                r["letter"],
                r["label"],
                percent(r["success"], r["ci95"]),
                "baseline" if r is rows[0] else _marked(d),
                _p(d["p"]) if counted else "-",
                str(d["only_this"]) if counted else "-",
                str(d["only_baseline"]) if counted else "-",
                tasks,
                "-" if r["excluded"] is None else str(r["excluded"]),
            ]
        )
    return Table(f"{title} (95 % intervals)", columns, cells, keep=2)


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _marked(found: Mapping[str, Any] | None) -> str:
    """The difference with its interval, and a star where that has no 0."""
    return points(found) + (_star(found) or "  ")


def _star(found: Mapping[str, Any] | None) -> str:
    sure = found and found["low"] is not None and (found["low"] > 0 or found["high"] < 0)
    return " *" if sure else ""


def _reliability(rows: Sequence[Mapping[str, Any]]) -> Table:
    shown = [1, *ks([int(k) for r in rows for k in r["pass_k"]])]
    cells = []
    for r in rows:
        found = [r["pass_k"].get(str(k)) for k in shown]
        cells.append(
            [f"{r['letter']} {r['label']}", *(percent(x["value"], x["ci95"]) if x else "-" for x in found)]
        )
    return Table("Reliability: all of k episodes succeed", ["", *(f"pass^{k}" for k in shown)], cells)


def _shares(title: str, key: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each kind, domain or layer: its rate in each evaluation, with differences to the first."""
    value = "rate" if key == "layers" else "success"
    names = dict.fromkeys(name for r in rows for name in r[key])
    two = len(rows) == 2
    columns = ["", "episodes" if key == "layers" else "tasks", *(r["letter"] for r in rows)]
    cells = []
    for name in names:
        found = [r[key].get(name) for r in rows]
        sizes = dict.fromkeys(f"{x['n']:g}" for x in found if x and x["n"] is not None)
        line = [name, "/".join(sizes)]
        for x in found:
            text = percent(x[value] if x else None)
            d = x["difference"] if x and not two else None
            line.append(f"{text} {signed(100 * d['mean']):>6}{_star(d).strip() or ' '}" if d else text)
        if two:
            line.append(_marked(found[1]["difference"] if found[1] else None))
        cells.append(line)
    cells.sort(key=lambda row: row[0]) if key != "layers" else None
    return Table(title, [*columns, *(["difference"] if two else [])], cells)


def _endings(rows: Sequence[Mapping[str, Any]]) -> Table:
    names = dict.fromkeys(name for r in rows for name in r["terminations"])
    totals = [sum(r["terminations"].values()) for r in rows]
    cells = [
        [
            name,
            *(
                percent(r["terminations"].get(name, 0) / total) if total else "-"
                for r, total in zip(rows, totals, strict=True)
            ),
        ]
        for name in names
    ]
    return Table("How episodes ended", ["", *(r["letter"] for r in rows)], cells)


def _effort(rows: Sequence[Mapping[str, Any]]) -> Table:
    cells = []
    for name, key, digits in (("turns of the user", "turns", 2), ("tokens of the agent", "tokens", 1)):
        line = [name]
        for r in rows:
            d = r.get(f"{key}_difference")
            text = "-" if r[key] is None else f"{r[key]:.{digits}f}"
            line.append(f"{text} ({signed(d['mean'], digits)}{_star(d)})" if d else text)
        cells.append(line)
    cells.append(["cost, US dollars", *(f"{r['cost']:.2f}" for r in rows)])
    return Table("Effort an episode, and cost of all", ["", *(r["letter"] for r in rows)], cells)


def _published(measure: str, published: Mapping[str, float], rows: Sequence[Mapping[str, Any]]) -> Table:
    ours = [
        [f"{r['letter']} {r['label']}", "-" if value is None else rounded(100 * value)]
        for r in rows
        for value in [r["measures"].get(measure)]
    ]
    theirs = [[model, f"{value:.1f}"] for model, value in published.items()]
    title = f"Beside published results ({measure.replace('_', ' ')}, per cent)"
    return Table(title, ["", "per cent"], [*ours, *theirs])
