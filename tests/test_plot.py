"""The charts of `perf/`: whole XML, every point drawn where it belongs."""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "perf"))

from plot import Panel, svg

SVG = "{http://www.w3.org/2000/svg}"


def test_points_are_drawn_in_order_and_in_scale():
    panel = Panel("turns", "times < as fast", {"a & b": [(20, 4, 3.5, 4.5), (5, 2), (10, 0)]}, line=3)
    root = ET.fromstring(
        svg("Growth", [panel, Panel("x", "y", {"c": [(1, 1), (10, 1), (100, 1)]}, log_x=True)])
    )
    first, second = (
        [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        for line in root.iter(f"{SVG}polyline")
    )
    xs, ys = zip(*first, strict=True)
    assert list(xs) == sorted(xs) and xs[2] - xs[1] == pytest.approx(2 * (xs[1] - xs[0]), abs=0.2)
    assert ys[1] > ys[0] > ys[2] and ys[1] - ys[0] == pytest.approx(ys[0] - ys[2], abs=0.2)
    # Equal factors are equal distances on a logarithmic axis.
    assert second[1][0] - second[0][0] == pytest.approx(second[2][0] - second[1][0], abs=0.2)
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert {"Growth", "times < as fast", "a & b", "c", "turns", "100"} <= set(words)


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="at least one point"):
        svg("Growth", [Panel("x", "y", {"a": []})])
