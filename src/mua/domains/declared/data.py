"""The database of a declared domain.

Invariant: the same files give the same tables on any machine.
"""

from __future__ import annotations

import random
from typing import Any

from ...database import Base
from ..people import full_names
from .spec import Maker, Table

RECORDS = "records"
"""The table of what was recorded by tools with `record: true`."""

Rows = dict[str, dict[str, Any]]


def make_base(name: str, tables: dict[str, Table]) -> Base:
    """The tables, in the order of the file. Raises ValueError naming the table of which not so many different
    rows can be made."""
    made: dict[str, Rows] = {RECORDS: {}}
    for table, spec in tables.items():
        made[table] = _rows(f"{name}-{table}", table, spec, made)
    return Base(made)


def row_key(spec: Table, row: dict[str, Any]) -> str:
    """The key of a row."""
    return "/".join(str(row[field]) for field in spec.keys)


def _rows(seed: str, table: str, spec: Table, made: dict[str, Rows]) -> Rows:
    rng = random.Random(seed)
    names = iter(full_names(rng))
    rows = {row_key(spec, row): dict(row) for row in spec.rows}
    wanted = len(rows) + spec.count
    for _ in range(20 * spec.count + 100):
        if len(rows) >= wanted:
            return rows
        try:
            row = {field: _value(rng, maker, names, made) for field, maker in spec.fields.items()}
        except StopIteration:
            raise ValueError(f"tables.{table}: there are 400 made-up names, count must not be more") from None
        rows.setdefault(row_key(spec, row), row)
    if len(rows) < wanted:
        raise ValueError(
            f"tables.{table}: count {spec.count}, but its fields make only {len(rows)} different keys"
        )
    return rows


def _value(rng: random.Random, maker: Maker, names: Any, made: dict[str, Rows]) -> Any:
    if "digits" in maker.model_fields_set:
        return maker.prefix + "".join(rng.choice("0123456789") for _ in range(maker.digits))
    if "between" in maker.model_fields_set:
        return rng.randint(*sorted(maker.between))
    if maker.pick:
        table, _, field = maker.pick.partition(".")
        return rng.choice(list(made[table].values()))[field]
    return next(names) if maker.person else rng.choice(maker.choose)
