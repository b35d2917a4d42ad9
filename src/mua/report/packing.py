"""Conversations in the page: a light index of them, and their bodies in compressed blocks.

A block is the JSON of a list, deflated, in base64; the page inflates one when it needs it. Exact tokens stand
in blocks of their own, the text of each token once.

Invariant: the blocks of a page hold at most `MAX_CHARACTERS` and `MAX_TRACES` characters (but always one
block); what does not fit is left out from the least important on.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .conversations import Line
from .shell import safe_json

MAX_CHARACTERS = 24_000_000
"""Of all conversation blocks of a page, as they stand in the file: a browser opens such a page at once."""
MAX_TRACES = 6_000_000
"""Likewise of the blocks with exact tokens."""
BLOCK = 256_000
"""Characters of JSON in a block; one is inflated in some milliseconds."""

Place = tuple[int, int]
"""(block, place in its list)."""


def deflate(text: str) -> str:
    """ASCII text in the form of a block."""
    return base64.b64encode(zlib.compress(text.encode("ascii"), 6)).decode()


class Blocks:
    """Blocks of one sort, until their room is used up."""

    def __init__(self, most: int):
        self.texts: list[str] = []
        self.full = False
        self._room = most
        self._items: list[str] = []
        self._size = 0

    def add(self, value: Any) -> Place:
        """Where the value will be, unless that block is the first that does not fit (`has`)."""
        text = safe_json(value)
        if self._items and self._size + len(text) > BLOCK:
            self.close()
        self._items.append(text)
        self._size += len(text)
        return len(self.texts), len(self._items) - 1

    def close(self) -> None:
        """Ends the block that is being filled; it counts only if there is room for it."""
        if not self._items or self.full:
            return
        text = deflate("[" + ",".join(self._items) + "]")
        self._items, self._size = [], 0
        self._room -= len(text)
        self.full = self._room < 0 and bool(self.texts)
        if not self.full:
            self.texts.append(text)

    def has(self, place: Place) -> bool:
        """After `close`: whether the value of that place is in a block."""
        return place[0] < len(self.texts)


_TEXTS = ("task", "kind", "termination", "user", "persona", "domain", "first")
_LISTS = ("tools", "broken")
_NUMBERS = ("offset", "sample", "step", "reward", "length", "turns", "calls", "errors", "tokens")


def index(
    lines: Sequence[Line],
    sources: Mapping[int, int],
    bodies: Mapping[tuple[int, int], Place] | None = None,
    traces: Mapping[tuple[int, int], Place] | None = None,
) -> dict[str, Any]:
    """The lines by column: {"n", "words", "columns"}. Texts are numbers into `words` of their column, lists
    of texts too (-1: not known). `sources` gives each file's place among the page's sources. With `bodies`,
    `block` and `place` say where each body is, `tblock` and `tplace` its tokens (-1: none)."""
    columns: dict[str, list[Any]] = {name: [getattr(x, name) for x in lines] for name in _NUMBERS}
    columns["source"] = [sources[x.source] for x in lines]
    words: dict[str, list[Any]] = {}
    for name in _TEXTS:
        words[name], columns[name] = _coded(getattr(x, name) for x in lines)
    for name in _LISTS:
        words[name], columns[name] = _coded(getattr(x, name) for x in lines)
    columns["traced"] = [int(x.traced) for x in lines]
    for prefix, places in (("", bodies), ("t", traces)):
        if places is not None:
            found = [places.get(x.place, (-1, -1)) for x in lines]
            columns[f"{prefix}block"], columns[f"{prefix}place"] = ([p[k] for p in found] for k in (0, 1))
    return {"n": len(lines), "words": words, "columns": columns}


def _coded(values: Iterable[Any]) -> tuple[list[Any], list[int]]:
    """The distinct values, and the number of each value among them; None is -1."""
    known: dict[Any, int] = {}
    numbers = [-1 if v is None else known.setdefault(v, len(known)) for v in values]
    return [list(v) if isinstance(v, tuple) else v for v in known], numbers
