"""The databases of one domain: the pristine ones, shared, and one episode's state over them.

Invariants:
- The pristine databases never change; `Originals.recompute_hash` proves it.
- Two states are equal exactly when upstream's hashes of the whole databases are; what is compared, and
  what it costs, is what was touched.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from . import cow

Path = tuple[str, ...]
"""(side, table) or (side, table, key) of a part of a state that is compared as one."""

GONE = ""
"""The text of a row that is not there."""


class Originals:
    """The pristine databases: the agent's and, where the user has tools, the user's."""

    def __init__(self, agent: BaseModel, user: BaseModel | None = None):
        sides = {"agent": agent} | ({"user": user} if user else {})
        self.sides: Mapping[str, BaseModel] = {side: cow.freeze(db) for side, db in sides.items()}
        self._texts: dict[Path, str] = {}

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """Upstream's hash of each database, by side."""
        return self.recompute_hash()

    def recompute_hash(self) -> dict[str, str]:
        """The hashes from scratch, whatever was cached: what tests compare with to prove nothing changed."""
        return {side: _sha(cow.text(db)) for side, db in self.sides.items()}

    def text(self, path: Path) -> str:
        """The text of a part, as `cow.text`; GONE when the originals have no such row."""
        if path not in self._texts:
            value = self.sides[path[0]].__dict__.get(path[1])
            if len(path) > 2:
                value = value.get(path[2], GONE) if isinstance(value, dict) else GONE
            self._texts[path] = GONE if isinstance(value, str) and value == GONE else cow.text(value)
        return self._texts[path]

    def open(self) -> State:
        return State(self, {side: cow.view(db) for side, db in self.sides.items()})


class State:
    """One episode's databases."""

    __slots__ = ("originals", "sides")

    def __init__(self, originals: Originals, sides: dict[str, Any]):
        self.originals = originals
        self.sides = sides
        """Views by side, `agent` and perhaps `user`. An upstream function may put a whole new model here."""

    def fork(self) -> State:
        return State(self.originals, {side: cow.fork(db) for side, db in self.sides.items()})

    def prune(self) -> None:
        """Lets go of what was only read. To be called between calls."""
        for db in self.sides.values():
            if cow.is_view(db):
                cow.prune(db)

    def changes(self) -> dict[Path, str]:
        """The parts that differ from the originals, with their texts (GONE for a removed row)."""
        found: dict[Path, str] = {}
        for path, value in self._touched():
            text = GONE if value is None else cow.text(value[0])
            if text != self.originals.text(path):
                found[path] = text
        return found

    def _touched(self) -> Iterator[tuple[Path, tuple[Any] | None]]:
        """(path, (value,) or None when it is gone) of each part that may differ."""
        for side, db in self.sides.items():
            for name, value in list(db.__dict__.items()):
                if isinstance(value, cow.Rows):
                    for key in value.touched():
                        yield (side, name, key), (value.own[key],) if key in value.own else None
                    continue
                if not cow.is_view(db) and isinstance(value, dict):
                    was = self.originals.sides[side].__dict__[name]
                    for key in {**was, **value}:
                        yield (side, name, key), (value[key],) if key in value else None
                    continue
                yield (side, name), (value,)

    def digest(self) -> str:
        """Hex digest of the whole state; equal states have equal digests, whatever their history."""
        changes = sorted(self.changes().items())
        whole = json.dumps([sorted(self.originals.hashes.items()), changes])
        return _sha(whole)

    def equals(self, other: State) -> bool:
        return self.changes() == other.changes()

    def diff(self, other: State) -> list[str]:
        """Differences in words, `table.key.field: here X, there Y`; empty when the states are equal."""
        return differences(self.changes(), other.changes(), self.originals)


def differences(here: Mapping[Path, str], there: Mapping[Path, str], originals: Originals) -> list[str]:
    """What differs between two sets of changes, in words."""
    out: list[str] = []
    for path in sorted({*here, *there}):
        a = here.get(path) if path in here else originals.text(path)
        b = there.get(path) if path in there else originals.text(path)
        if a == b:
            continue
        name = ".".join(path[1:] if path[0] == "agent" else path)
        out += _compare(name, json.loads(a) if a else None, json.loads(b) if b else None)
    return out


def _compare(name: str, a: Any, b: Any) -> Iterator[str]:
    """Field by field in rows, row by row in lists of rows; whole values otherwise."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(k for k in b if k not in a)]:
            if key not in a or key not in b or _dumps(a[key]) != _dumps(b[key]):
                inner = isinstance(a.get(key), dict) and isinstance(b.get(key), dict) and len(a[key]) > 8
                if inner:
                    yield from _compare(f"{name}.{key}", a[key], b[key])
                else:
                    yield f"{name}.{key} differs: here {_short(a, key)}, there {_short(b, key)}"
        return
    if isinstance(a, list) and isinstance(b, list) and any(isinstance(r, dict) for r in [*a, *b]):
        for i in range(max(len(a), len(b))):
            row = a[i] if i < len(a) else b[i]
            label = (
                next((str(v) for k, v in row.items() if k.endswith("_id")), i) if isinstance(row, dict) else i
            )
            if i >= len(a) or i >= len(b):
                yield f"{name}.{label}: only {'there' if i >= len(a) else 'here'} ({_dumps(row)[:160]})"
            elif _dumps(a[i]) != _dumps(b[i]):
                yield from _compare(f"{name}.{label}", a[i], b[i])
        return
    if a is None or b is None:
        yield f"{name}: only {'there' if a is None else 'here'} ({_dumps(b if a is None else a)[:160]})"
    else:
        yield f"{name} differs: here {_dumps(a)[:100]}, there {_dumps(b)[:100]}"


def _short(row: Mapping[str, Any], key: str) -> str:
    return _dumps(row[key])[:100] if key in row else "nothing"


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
