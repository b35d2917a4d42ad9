"""The beginning of somebody's own domain: a copy of `skeleton`, or of the example of `declared`. Both work
and are meant to be changed."""

from __future__ import annotations

import keyword
import re
import shutil
from importlib.resources import as_file, files
from pathlib import Path

from ..errors import MuaError
from . import MCP_EXAMPLES, NAMES


def check_name(name: str) -> None:
    """Raises MuaError for what cannot be the name of a domain."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise MuaError(f"'{name}' cannot name a domain; take lower-case letters, digits and _: gym_desk.")
    if name in {*NAMES, *MCP_EXAMPLES}:
        raise MuaError(f"mua has a domain '{name}' itself; take another name.")


def new(name: str, out: Path, yaml: bool = False) -> Path:
    """Makes the folder OUT/NAME, of Python or (`yaml`) of data. Raises MuaError for a name that cannot be
    one, or that is taken."""
    check_name(name)
    place = out / name
    if place.exists():
        raise MuaError(f"{place} is there already; take another name, or another --out.")
    # Made beside it and moved: a domain that is cut off halfway would fail in odd ways.
    fresh = out / f".{name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    source = files("mua.domains.declared") / "example" if yaml else files("mua.domains.skeleton")
    with as_file(source) as skeleton:
        shutil.copytree(skeleton, fresh, ignore=shutil.ignore_patterns("__pycache__"))
    start = fresh / "__init__.py"
    if not yaml:
        text = start.read_text(encoding="utf-8").replace('"skeleton"', f'"{name}"')
        start.write_text(text, encoding="utf-8")
    fresh.replace(place)
    return place
