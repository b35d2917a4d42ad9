"""What the state of a server is, as rows that can be compared: a file, a folder, an SQLite database, nothing.

Invariant: two states have the same rows exactly when they mean the same. What only says when or in which
order something was done is not read: times of files and commits, hashes that hold them, the pages of a
database, the order of lines in a .jsonl file, the end of line at the end of a text.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import math
import os
import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...database import Row, canonical_text
from ...errors import InfrastructureError

Tables = dict[str, dict[str, dict[str, Any]]]
_SHOWN = 20_000
"""Characters of a text up to which it is kept whole: the words for a difference can then quote it."""


class State:
    """No state: what a server that only reads has."""

    tables: ClassVar[tuple[str, ...]] = ()
    """The tables of `read`."""

    def __init__(self, name: str = "", ignore: Sequence[str] = ()):
        self.name = name
        self.ignore = tuple(ignore)

    def make(self, source: Path, root: Path) -> None:
        """Lays the initial state, kept in `source`, into an empty folder."""
        shutil.copytree(source, root, symlinks=True, dirs_exist_ok=True)

    def read(self, root: Path) -> Tables:
        """The state in a folder, as rows. Raises InfrastructureError when it cannot be read."""
        return {}

    def put(self, root: Path, table: str, key: str, row: Row | None) -> None:
        """Sets or removes one row. Raises ValueError when there can be no such row."""
        raise ValueError("a server without a state has no rows to set")


class FolderState(State):
    """Everything in a folder, but git repositories by what they say: branches, history, index."""

    tables = ("files", "folders", "git")

    def read(self, root: Path) -> Tables:
        out: Tables = {name: {} for name in self.tables}
        for place, folders, files in os.walk(root):
            here = Path(place)
            if ".git" in folders:
                folders.remove(".git")
                name = here.relative_to(root).as_posix()
                out["git"].update(_repository(here, "" if name == "." else f"{name}: "))
            for name in sorted((*folders, *files)):
                path = here / name
                key = path.relative_to(root).as_posix()
                if any(fnmatch.fnmatch(key, pattern) for pattern in self.ignore):
                    continue
                if path.is_symlink():
                    out["files"][key] = {"link": os.readlink(path)}
                elif path.is_dir():
                    out["folders"][key] = {}
                else:
                    out["files"][key] = _content(path)
        return out

    def put(self, root: Path, table: str, key: str, row: Row | None) -> None:
        path = root / key
        if not path.resolve().is_relative_to(root.resolve()) or table not in ("files", "folders"):
            raise ValueError(f"only files and folders can be set, not {table} '{key}'")
        if row is None:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif table == "folders":
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(row["text"], encoding="utf-8")


class FileState(State):
    """One file: JSON by value, JSON lines in any order, other text by its text."""

    tables = ("file",)

    def make(self, source: Path, root: Path) -> None:
        shutil.copy(source, root / self.name)

    def read(self, root: Path) -> Tables:
        path = root / self.name
        if not path.exists():
            return {"file": {}}
        with contextlib.suppress(ValueError):
            if path.suffix == ".json":
                return {"file": {self.name: {"json": json.loads(path.read_text(encoding="utf-8"))}}}
            if path.suffix == ".jsonl":
                lines = path.read_text(encoding="utf-8").splitlines()
                return {"file": dict(_counted({"line": json.loads(s)} for s in lines if s.strip()))}
        return {"file": {self.name: _content(path)}}

    def put(self, root: Path, table: str, key: str, row: Row | None) -> None:
        if row is None:
            (root / self.name).unlink()
        else:
            (root / self.name).write_text(row["text"], encoding="utf-8")


class SqliteState(State):
    """The rows of a database's tables, by primary key; `ignore` names `table.column`s that do not count."""

    tables = ("schema", "rows")

    def make(self, source: Path, root: Path) -> None:
        """From a database file, or from a script of SQL."""
        if source.suffix != ".sql":
            shutil.copy(source, root / self.name)
            return
        with self._open(root) as db:
            db.executescript(source.read_text(encoding="utf-8"))

    def read(self, root: Path) -> Tables:
        out: Tables = {name: {} for name in self.tables}
        if not (root / self.name).exists():
            return out
        try:
            with self._open(root) as db:
                named = (
                    "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
                )
                for kind, name, sql in db.execute(named).fetchall():
                    if kind == "table":
                        out["schema"][name], rows = self._table(db, name)
                        out["rows"].update(rows)
                    else:
                        out["schema"][f"{kind} {name}"] = {"sql": " ".join((sql or "").split())}
        except sqlite3.Error as exc:
            raise InfrastructureError(
                f"the database {self.name} of the server cannot be read: {exc}"
            ) from exc
        return out

    def put(self, root: Path, table: str, key: str, row: Row | None) -> None:
        """`table` is `rows`, `key` is TABLE/PRIMARY KEY."""
        name = key.partition("/")[0]
        try:
            with self._open(root) as db, db:
                if row is None:
                    keys = [c[1] for c in db.execute(f"PRAGMA table_info({_quoted(name)})") if c[5]]
                    where = " AND ".join(f"{_quoted(k)} = ?" for k in keys)
                    db.execute(f"DELETE FROM {_quoted(name)} WHERE {where}", key.split("/")[1:])
                else:
                    columns, marks = ", ".join(map(_quoted, row)), ", ".join("?" * len(row))
                    values = list(row.values())
                    db.execute(f"INSERT OR REPLACE INTO {_quoted(name)} ({columns}) VALUES ({marks})", values)
        except sqlite3.Error as exc:
            raise ValueError(f"'{key}': {exc}") from None

    def _table(self, db: sqlite3.Connection, name: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """The columns of a table, and its rows."""
        described = db.execute(f"PRAGMA table_info({_quoted(name)})").fetchall()
        columns = {c[1]: {"type": c[2], "required": bool(c[3]), "key": c[5]} for c in described}
        counted = [c for c in columns if f"{name}.{c}" not in self.ignore]
        keys = sorted((c for c in columns if columns[c]["key"]), key=lambda c: columns[c]["key"])
        shown = ", ".join(map(_quoted, counted))
        rows = [
            dict(zip(counted, map(_value, values), strict=True))
            for values in (db.execute(f"SELECT {shown} FROM {_quoted(name)}") if counted else ())
        ]
        if keys and set(keys) <= set(counted):
            return columns, {"/".join([name, *(str(row[k]) for k in keys)]): row for row in rows}
        return columns, {f"{name}/{key}": row for key, row in _counted(rows)}

    @contextlib.contextmanager
    def _open(self, root: Path) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(root / self.name)) as db:
            db.text_factory = lambda text: text.decode(errors="replace")
            yield db


KINDS: Mapping[str, type[State]] = {
    "none": State,
    "file": FileState,
    "folder": FolderState,
    "sqlite": SqliteState,
}


def _content(path: Path) -> dict[str, Any]:
    """A file as a row. An end of line at the end of a text does not count."""
    raw = path.read_bytes()
    with contextlib.suppress(UnicodeDecodeError):
        text = raw.decode().rstrip("\n")
        if len(text) <= _SHOWN:
            return {"text": text}
        raw = text.encode()
    return {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}


def _counted(rows: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows without a key under their content; the same one again has a number."""
    seen: Counter[str] = Counter()
    for row in rows:
        key = canonical_text(row)
        seen[key] += 1
        yield (key if seen[key] == 1 else f"{key} #{seen[key]}"), row


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _value(value: Any) -> Any:
    """A value of SQLite as one of JSON."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------- git

_GIT = ("git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "safe.directory=*")
"""Reading a repository runs nothing of what it may name."""
_COMMIT = "%H%x00%T%x00%P%x00%an <%ae>%x00%B%x01"


def _repository(path: Path, prefix: str) -> dict[str, dict[str, Any]]:
    """Head, references and index of a repository. A commit is what it says: tree, author, message, and the
    same of its parents."""
    meaning: dict[str, str] = {}
    rows: dict[str, dict[str, Any]] = {}
    log = _git(path, "log", "--all", "--topo-order", "--reverse", f"--format={_COMMIT}")
    for entry in log.split("\x01")[:-1]:
        commit, tree, parents, author, message = entry.lstrip("\n").split("\x00")
        before = [meaning.get(p, p) for p in parents.split()]
        said = {"tree": tree, "parents": before, "author": author, "message": message.strip()}
        meaning[commit] = hashlib.sha256(canonical_text(said).encode()).hexdigest()[:16]
        rows[commit] = {**said, "parents": len(before), "history": meaning[commit]}
    head = (
        _content(path / ".git" / "HEAD").get("text", "") if (path / ".git" / "HEAD").exists() else "nothing"
    )
    at = head.removeprefix("ref: refs/heads/")
    out: dict[str, dict[str, Any]] = {
        f"{prefix}HEAD": {"at": f"commit {meaning[at]}" if at in meaning else at}
    }
    references = _git(path, "for-each-ref", "--format=%(refname) %(objectname) %(*objectname)")
    for line in references.splitlines():
        name, *objects = line.split()
        out[f"{prefix}{name}"] = rows.get(objects[-1], {"object": objects[-1]})
    for line in _git(path, "ls-files", "--stage", "-z").split("\0")[:-1]:
        described, _, file = line.partition("\t")
        mode, blob, stage = described.split()
        out[f"{prefix}index {file}" + (f" ({stage})" if stage != "0" else "")] = {"mode": mode, "blob": blob}
    return out


def _git(path: Path, *arguments: str) -> str:
    """What git says; nothing when it fails."""
    environment = {"PATH": os.environ.get("PATH", ""), "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    environment |= {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_DIR": str(path / ".git"),
    }
    try:
        done = subprocess.run(
            [*_GIT, "-C", str(path), *arguments],
            check=False,
            capture_output=True,
            env=environment,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise InfrastructureError(f"the git repository of the server cannot be read: {exc}") from exc
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""
