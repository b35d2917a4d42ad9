"""A copy-on-write database of JSON rows.

`Base` is built once and shared by every episode. A `Database` is a view of it with an overlay of the
rows that one episode touched.

Invariants:
- The base is made of immutable values and never changes; its digest proves it.
- Opening, forking, comparing two ends and taking a digest cost what was touched, not what is stored.
- Two states are equal exactly when a full comparison says so: 3 equals 3.0; "3" and True do not;
  list order matters, key order does not.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from .errors import MuaError

Row = Mapping[str, Any]
"""An immutable JSON object: mapping proxies for objects, tuples for lists."""


def freeze(value: Any) -> Any:
    """An immutable deep copy of a JSON value.

    Raises TypeError for what JSON cannot hold (NaN and infinities included).
    """
    if value is None or isinstance(value, bool):
        return value
    # Subclasses (enum members, numpy's float) become the plain value that JSON would show.
    if isinstance(value, str):
        return value if type(value) is str else str.__str__(value)
    if isinstance(value, int):
        return value if type(value) is int else int.__int__(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value} is not a JSON number")
        return float.__float__(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"object keys must be strings, not {type(key).__name__}")
        return MappingProxyType({k: freeze(v) for k, v in value.items()})
    if isinstance(value, list | tuple):
        return tuple(freeze(v) for v in value)
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def thaw(value: Any) -> Any:
    """A plain, mutable copy of a frozen value: dicts and lists."""
    if isinstance(value, Mapping):
        return {k: thaw(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return [thaw(v) for v in value]
    return value


def canonical(value: Any) -> Any:
    """A form in which equal JSON values, and only they, have equal text.

    Integral floats become integers (exactly, at any size); everything else keeps its type.
    """
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        return {k: canonical(value[k]) for k in sorted(value)}
    return [canonical(v) for v in value]


def canonical_text(value: Any) -> str:
    return json.dumps(canonical(value), sort_keys=True, ensure_ascii=True, separators=(",", ":"))


def same(a: Any, b: Any) -> bool:
    """JSON equality: numbers by value, booleans apart from numbers, list order counts."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return len(a) == len(b) and all(k in b and same(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, str) and isinstance(b, str):
        return a == b
    return a is None and b is None


MISSING: Any = object()
"""Stands for a row or a field that is not there."""

_MODULUS = 1 << 256


def _row_hash(table: str, key: str, row: Row) -> int:
    text = canonical_text([table, key, row])
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


class Base:
    """The pristine tables: `{table: {key: row}}`, frozen on the way in.

    The digest is a sum of row hashes modulo 2**256, so an overlay can adjust it by its own rows only.
    """

    def __init__(self, tables: Mapping[str, Mapping[str, Any]]):
        frozen = {}
        for table, rows in tables.items():
            try:
                frozen[table] = freeze(rows)
            except TypeError as exc:
                raise MuaError(f"table '{table}' cannot be loaded: {exc}") from None
            if not isinstance(rows, Mapping):
                raise MuaError(f"table '{table}' cannot be loaded: it must be an object of rows by key")
            for key, row in frozen[table].items():
                if not isinstance(row, Mapping):
                    raise MuaError(f"table '{table}', row '{key}': a row must be an object")
        self.tables: Mapping[str, Mapping[str, Row]] = MappingProxyType(frozen)
        self._sum: int | None = None
        self._indexes: dict[tuple[str, str], dict[Any, tuple[str, ...]]] = {}

    def digest_sum(self) -> int:
        if self._sum is None:
            self._sum = self.recompute_sum()
        return self._sum

    def recompute_sum(self) -> int:
        """The sum from scratch, whatever was cached: what tests compare with to prove nothing changed."""
        hashes = (_row_hash(t, k, r) for t, rows in self.tables.items() for k, r in rows.items())
        return sum(hashes) % _MODULUS

    def index(self, table: str, field: str) -> Mapping[Any, tuple[str, ...]]:
        """Keys of the base rows by the value of one field; built once, on first use."""
        name = (table, field)
        if name not in self._indexes:
            found: dict[Any, list[str]] = {}
            for key, row in self.tables[table].items():
                found.setdefault(_index_key(row.get(field)), []).append(key)
            self._indexes[name] = {v: tuple(keys) for v, keys in found.items()}
        return self._indexes[name]

    def open(self) -> Database:
        return Database(self)


def _index_key(value: Any) -> Any:
    return value if isinstance(value, str) else canonical_text(value)


class Database:
    """One episode's state: the base plus an overlay of touched rows."""

    __slots__ = ("_overlay", "base")

    def __init__(self, base: Base, overlay: dict[tuple[str, str], Row | None] | None = None):
        self.base = base
        self._overlay: dict[tuple[str, str], Row | None] = overlay if overlay is not None else {}

    def fork(self) -> Database:
        """An independent copy; rows are immutable, so sharing them is safe."""
        return Database(self.base, dict(self._overlay))

    def restore(self, saved: Database) -> None:
        """Goes back to `saved`, a fork taken earlier."""
        self._overlay = dict(saved._overlay)

    def get(self, table: str, key: str) -> Row | None:
        """The row, or None. Rows are immutable: change one by `put` or `update`."""
        at = (table, key)
        if at in self._overlay:
            return self._overlay[at]
        return self._table(table).get(key)

    def put(self, table: str, key: str, row: Mapping[str, Any]) -> None:
        """Inserts or replaces a whole row. Raises TypeError when it is not a JSON object."""
        self._table(table)
        if not isinstance(row, Mapping) or not isinstance(key, str):
            raise TypeError(
                f"a row of {table} must be an object under a string key, not {type(row).__name__}"
            )
        self._overlay[table, key] = freeze(row)

    def update(self, table: str, key: str, **changes: Any) -> None:
        """Replaces some fields of a row. Raises KeyError when there is no such row."""
        row = self.get(table, key)
        if row is None:
            raise KeyError(f"{table} has no row '{key}'")
        self.put(table, key, {**row, **changes})

    def delete(self, table: str, key: str) -> None:
        """Removes a row. Raises KeyError when there is no such row."""
        if self.get(table, key) is None:
            raise KeyError(f"{table} has no row '{key}'")
        self._overlay[table, key] = None

    def keys(self, table: str) -> Iterator[str]:
        """Keys of a table: the base's in their order, then the episode's own."""
        rows = self._table(table)
        for key in rows:
            if self._overlay.get((table, key), rows) is not None:
                yield key
        for (name, key), row in self._overlay.items():
            if name == table and row is not None and key not in rows:
                yield key

    def where(self, table: str, **fields: Any) -> list[tuple[str, Row]]:
        """Rows whose fields equal the given values, by index on the first field: no table scan."""
        if not fields:
            return [(k, row) for k in self.keys(table) if (row := self.get(table, k)) is not None]
        first, value = next(iter(fields.items()))
        found = list(self.base.index(table, first).get(_index_key(value), ()))
        known = set(found)
        found += [k for (t, k) in self._overlay if t == table and k not in known]
        out = []
        for key in found:
            row = self.get(table, key)
            if row is not None and all(f in row and same(row[f], v) for f, v in fields.items()):
                out.append((key, row))
        return out

    def overlaid(self) -> list[tuple[str, str]]:
        """(table, key) of every row that was written, also where it is what it was before."""
        return list(self._overlay)

    def touched(self) -> list[tuple[str, str]]:
        """(table, key) of every row that differs from the base, sorted."""
        return sorted(at for at in self._overlay if self._changed(at))

    def digest(self) -> str:
        """Hex digest of the whole state; equal states have equal digests, whatever their history."""
        total = self.base.digest_sum()
        for table, key in self._overlay:
            before = self.base.tables[table].get(key)
            after = self._overlay[table, key]
            if before is not None:
                total -= _row_hash(table, key, before)
            if after is not None:
                total += _row_hash(table, key, after)
        return f"{total % _MODULUS:064x}"

    def differences(self, other: Database) -> Iterator[tuple[str, str, str | None, Any, Any]]:
        """(table, key, field, value here, value in `other`) of all that differs. Where a whole row is missing
        on one side, the field is None; what is missing is `MISSING`."""
        if self.base is other.base:
            at = sorted({*self._overlay, *other._overlay})
        else:
            at = sorted({(t, k) for db in (self, other) for t in db.base.tables for k in db.keys(t)})
        for table, key in at:
            here = self.get(table, key) if table in self.base.tables else None
            there = other.get(table, key) if table in other.base.tables else None
            if here is None and there is None:
                continue
            if here is None or there is None:
                a, b = (MISSING if row is None else row for row in (here, there))
                yield table, key, None, a, b
                continue
            for field in sorted({*here, *there}):
                a, b = here.get(field, MISSING), there.get(field, MISSING)
                if a is MISSING or b is MISSING or not same(a, b):
                    yield table, key, field, a, b

    def diff(self, other: Database) -> list[str]:
        """Differences in words, `table.key.field: here X, there Y`; empty when the states are equal."""
        out: list[str] = []
        for table, key, field, here, there in self.differences(other):
            if field is None:
                side, row = ("only there", there) if here is MISSING else ("only here", here)
                out.append(f"{table}.{key}: {side} ({canonical_text(row)[:200]})")
                continue
            a, b = ("nothing" if v is MISSING else canonical_text(v)[:100] for v in (here, there))
            out.append(f"{table}.{key}.{field}: here {a}, there {b}")
        return out

    def equals(self, other: Database) -> bool:
        return not self.diff(other)

    def _changed(self, at: tuple[str, str]) -> bool:
        before, after = self.base.tables[at[0]].get(at[1]), self._overlay[at]
        return not (before is after or (before is not None and after is not None and same(before, after)))

    def _table(self, table: str) -> Mapping[str, Row]:
        try:
            return self.base.tables[table]
        except KeyError:
            known = ", ".join(self.base.tables)
            raise KeyError(f"there is no table '{table}'; the tables are {known}") from None
