"""Line charts as one SVG file, for the figures of `perf/`; needs nothing but the standard library.

from plot import Panel, write_svg
write_svg(path, "title", [Panel("turns", "times as fast", {"ours : generate": [(5, 2.1), (20, 4.3)]})])

python perf/plot.py figures.json out.svg     # {"title": …, "panels": [{"x": …, "y": …, "series": {…}}]}
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

Point = tuple[float, float] | tuple[float, float, float, float]
"""(x, y), or (x, y, least, greatest) with the spread drawn as a bar."""

COLOURS = ("#2563a8", "#c2541b", "#3a7d44", "#8a3ea8", "#6b6b6b")
"""Told apart by eyes that confuse red and green; each series has its own mark, too."""

_WIDTH, _HEIGHT = 340, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 30, 44
_LEGEND_LINE = 16


@dataclass
class Panel:
    """One chart: `series` by name; `line` draws a horizontal one, such as a target."""

    x: str
    y: str
    series: Mapping[str, Sequence[Point]]
    line: float | None = None
    title: str = ""
    log_x: bool = False
    """Equal distances for equal factors; all x are positive then."""


def write_svg(path: Path | str, title: str, panels: Sequence[Panel]) -> None:
    """Draws the panels side by side, with one legend. Raises ValueError when there is nothing to draw."""
    Path(path).write_text(svg(title, panels), encoding="utf-8")


def svg(title: str, panels: Sequence[Panel]) -> str:
    """The text of the file."""
    if not panels or not all(any(points for points in panel.series.values()) for panel in panels):
        raise ValueError("every panel needs at least one point")
    keys = list(dict.fromkeys(name for panel in panels for name in panel.series))
    width, height = _WIDTH * len(panels), 34 + _HEIGHT + _LEGEND_LINE * len(keys) + 10
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="11" fill="#222">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _text(12, 22, title, size=14),
    ]
    for number, panel in enumerate(panels):
        out.append(f'<g transform="translate({number * _WIDTH} 34)">')
        out += _panel(panel, keys)
        out.append("</g>")
    for number, name in enumerate(keys):
        y = 34 + _HEIGHT + _LEGEND_LINE * (number + 0.5)
        out += [*_mark(24, y, number), _text(36, y + 4, name)]
    return "\n".join([*out, "</svg>"]) + "\n"


def _panel(panel: Panel, keys: Sequence[str]) -> list[str]:
    points = [point for series in panel.series.values() for point in series]
    xs = [point[0] for point in points]
    tops = [value for point in points for value in point[1:]]
    high = max(_nice(max([*tops, panel.line or 0.0])), 1e-9)
    first, last = min(xs), max(xs)

    def across(x: float) -> float:
        if first == last:
            share = 0.5
        elif panel.log_x:
            share = math.log(x / first) / math.log(last / first)
        else:
            share = (x - first) / (last - first)
        return _LEFT + 10 + share * (_WIDTH - _LEFT - _RIGHT - 20)

    def up(y: float) -> float:
        return _HEIGHT - _BOTTOM - y / high * (_HEIGHT - _TOP - _BOTTOM)

    out = [_text(_LEFT, 18, panel.title or panel.y)]
    for tick in (0.0, high / 4, high / 2, high * 3 / 4, high):
        y = up(tick)
        out.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, "#ddd"))
        out.append(_text(_LEFT - 6, y + 4, f"{tick:g}", anchor="end"))
    for x in sorted(set(xs)):
        out.append(_text(across(x), _HEIGHT - _BOTTOM + 16, f"{x:g}", anchor="middle"))
    out.append(_text((_LEFT + _WIDTH) / 2, _HEIGHT - 8, panel.x, anchor="middle"))
    if panel.line is not None:
        out.append(_line(_LEFT, up(panel.line), _WIDTH - _RIGHT, up(panel.line), "#888", dash="4 3"))
    for name, series in panel.series.items():
        number = keys.index(name)
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{across(p[0]):.1f},{up(p[1]):.1f}" for p in sorted(series))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        for point in series:
            x = across(point[0])
            if len(point) == 4:
                out.append(_line(x, up(point[2]), x, up(point[3]), colour))
            out += _mark(x, up(point[1]), number)
    return out


def _nice(value: float) -> float:
    """The next of 1, 2, 4, 5, 8, 10 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if value <= step * power * (1 + 1e-9))


def _mark(x: float, y: float, number: int) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    if number % 2:
        return [f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" fill="{colour}"/>']
    return [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="{colour}"/>']


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashes}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    data = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    write_svg(sys.argv[2], data["title"], [Panel(**panel) for panel in data["panels"]])


if __name__ == "__main__":
    main()
