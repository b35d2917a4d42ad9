"""Files of a run folder as the report reads them.

Invariant: a file that is missing, cut off or of another form is read as far as it goes, and a note says so;
nothing here raises.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..evaluate.stored import number
from .conversations import Note, json_lines

MAX_POINTS = 2_000
"""Of a curve; longer ones are thinned evenly."""


def json_object(path: Path, note: Note) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as exc:
        note(f"{path.name} cannot be read ({type(exc).__name__}), left out.")
        return {}
    if not isinstance(data, dict):
        note(f"{path.name} is not a JSON object, left out.")
        return {}
    return data


def yaml_object(path: Path, note: Note) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as exc:
        note(f"{path.name} cannot be read ({type(exc).__name__}), left out.")
        return {}
    return data if isinstance(data, dict) else {}


def curve(path: Path, note: Note) -> list[dict[str, Any]]:
    """The lines of a metrics file by step. A resumed run logs some steps twice: the last one counts."""
    if not path.exists():
        return []
    by_step = {
        data["step"]: data for _, data in json_lines(path, note) if number(data.get("step")) is not None
    }
    return [_short(by_step[step]) for step in sorted(by_step)]


def thinned(lines: list[dict[str, Any]], name: str, note: Note) -> list[dict[str, Any]]:
    """The lines that the charts draw."""
    if len(lines) <= MAX_POINTS:
        return lines
    note(f"{name}: {len(lines):,} steps, thinned to about {MAX_POINTS:,} for the charts.")
    stride = math.ceil(len(lines) / MAX_POINTS)
    return lines[::stride] + ([] if (len(lines) - 1) % stride == 0 else lines[-1:])


def _short(value: Any) -> Any:
    """Floats to six digits: more than any chart shows, half the size."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    return value


def look(*places: tuple[str, Any]) -> Any:
    """The first value found of dotted names in nested mappings."""
    for dotted, value in places:
        found = value
        for key in dotted.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None:
            return found
    return None
