"""Means with intervals, one row a name, as one SVG file; the single runs are drawn as small dots.

Invariant: nothing is drawn that was not given; a mark without an interval has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#2563a8", "#c2541b", "#3a7d44", "#8a3ea8")
"""Told apart by eyes that confuse red and green; each series has its own place in a row, too."""

_LEFT, _RIGHT, _TOP, _ROW = 210, 24, 66, 34
_WIDTH = 720


@dataclass(frozen=True)
class Mark:
    """One mean of a row; shares between 0 and 1."""

    series: str
    mean: float
    interval: Sequence[float] | None = None
    single: Sequence[float] = ()
    """What it is the mean of."""


@dataclass(frozen=True)
class Row:
    label: str
    marks: Sequence[Mark]


def intervals_svg(title: str, axis: str, rows: Sequence[Row]) -> str:
    """The text of the file: an axis from 0 to 100 per cent, the rows from the top."""
    series = list(dict.fromkeys(mark.series for row in rows for mark in row.marks))
    bottom = _TOP + _ROW * len(rows)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom + 44}" width="{_WIDTH}" '
        f'height="{bottom + 44}" font-family="system-ui, sans-serif" font-size="12" fill="#222">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{bottom + 44}" fill="#fff"/>',
        _text(12, 22, title, size=14),
    ]
    for number, name in enumerate(series):
        x = _LEFT + 110 * number
        out += [_dot(x + 5, 42, 4, _colour(number)), _text(x + 14, 46, name)]
    for tick in range(0, 101, 20):
        x = _across(tick / 100)
        out += [_line(x, _TOP - 6, x, bottom, "#ddd"), _text(x, bottom + 16, str(tick), "middle")]
    out.append(_text(_across(0.5), bottom + 36, axis, "middle"))
    for place, row in enumerate(rows):
        middle = _TOP + _ROW * (place + 0.5)
        out.append(_text(_LEFT - 12, middle + 4, row.label, "end"))
        for mark in row.marks:
            number = series.index(mark.series)
            y = middle + 11 * (number - (len(series) - 1) / 2)
            colour = _colour(number)
            out += [_dot(_across(x), y, 2, colour, 0.35) for x in mark.single]
            if mark.interval is not None:
                low, high = (_across(min(1.0, max(0.0, x))) for x in mark.interval)
                out.append(_line(low, y, high, y, colour, 2))
            out.append(_dot(_across(mark.mean), y, 4, colour))
    return "\n".join([*out, "</svg>"]) + "\n"


def _across(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _dot(x: float, y: float, radius: float, colour: str, opacity: float = 1.0) -> str:
    shade = f' fill-opacity="{opacity:g}"' if opacity < 1 else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}"{shade}/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width:g}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
