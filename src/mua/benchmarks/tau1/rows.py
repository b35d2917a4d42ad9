"""τ¹'s world as its tools see it: tables of plain dicts, of which an episode owns copies.

Invariants:
- The base never changes: a tool is given its own copy of each row that it reaches by key, and reads all
  others as immutable values.
- Whatever a tool changed stands in the database when its call is over, also when it raised midway, as in
  upstream.
- Two states are equal exactly when upstream's hash says so: by the text of values in nested tuples, so
  that 2, 2.0 and True differ and key order does not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ...database import Database, Row, thaw


class Table:
    """One table during one call."""

    def __init__(self, db: Database, name: str):
        self._db, self._name = db, name
        self._drafts: dict[str, dict[str, Any]] = {}

    def __contains__(self, key: object) -> bool:
        hash(key)  # a list is a TypeError here, as in a dict
        return isinstance(key, str) and (key in self._drafts or self._db.get(self._name, key) is not None)

    def __getitem__(self, key: str) -> dict[str, Any]:
        """The row as a dict of its own, kept until the call ends. Raises KeyError."""
        if key not in self:
            raise KeyError(key)
        if key not in self._drafts:
            self._drafts[key] = thaw(self._db.get(self._name, key))
        return self._drafts[key]

    def __setitem__(self, key: str, row: dict[str, Any]) -> None:
        self._drafts[key] = row

    def read(self, key: str) -> Row:
        """The row as it stood when the call began; to be read only. Raises KeyError."""
        row = self._db.get(self._name, key)
        if row is None:
            raise KeyError(key)
        return row

    def rows(self) -> Iterator[tuple[str, Row]]:
        """All rows as they stood when the call began, in their order; to be read only."""
        return ((key, row) for key in self._db.keys(self._name) if (row := self._db.get(self._name, key)))

    def save(self) -> None:
        """Puts the drafts that changed into the database."""
        for key, draft in self._drafts.items():
            before = self._db.get(self._name, key)
            if before is None or hashed(before) != hashed(draft):
                self._db.put(self._name, key, _storable(draft))
        self._drafts.clear()


def _storable(value: Any) -> Any:
    """Infinities (of absurd amounts) as text: JSON has none, and equal to gold they are in neither form."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {k: _storable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(v) for v in value]
    return value


def hashable(value: Any) -> Any:
    """Upstream's form of a value: pairs sorted by key for an object, a tuple for a list."""
    if isinstance(value, Mapping):
        return tuple((k, hashable(value[k])) for k in sorted(value))
    if isinstance(value, list | tuple):
        return tuple(hashable(v) for v in value)
    return value


def hashed(value: Any) -> str:
    """The text of a value within that which upstream's SHA-256 is taken of: '3' and 3 differ in it."""
    return repr(hashable(value))


def differences(here: Database, there: Database) -> list[str]:
    """`table.key.field: here X, there Y` for all that upstream's hash tells apart; of one base."""
    out: list[str] = []
    for table, key in sorted({*here.overlaid(), *there.overlaid()}):
        out += _compare(f"{table}.{key}", here.get(table, key), there.get(table, key))
    return out


_NOTHING = object()


def _compare(name: str, a: Any, b: Any) -> Iterator[str]:
    """What differs, as deep in as both sides have the same shape."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted({*a, *b}):
            yield from _compare(f"{name}.{key}", a.get(key, _NOTHING), b.get(key, _NOTHING))
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
        for n in range(max(len(a), len(b))):
            yield from _compare(f"{name}.{n}", *(x[n] if n < len(x) else _NOTHING for x in (a, b)))
    elif a is not b and (_NOTHING in (a, b) or hashed(a) != hashed(b)):
        yield f"{name}: here {_short(a)}, there {_short(b)}"


def _short(value: Any) -> str:
    text = "nothing" if value is _NOTHING or value is None else repr(thaw(value))
    return text if len(text) <= 100 else f"{text[:97]}…"
