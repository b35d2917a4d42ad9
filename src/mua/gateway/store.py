"""What a gateway keeps on disk: answers, and what was spent. Both are SQLite files that processes share.

Invariants:
- An answer in the cache was whole when it was written; for one request, all processes and all later runs get
  the same one, the first that was written.
- What a request may cost is set aside on disk before it is sent, and what it did cost stands there before its
  answer is used: no process spends what another one needs, and a kill loses nothing.
"""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from ..errors import MuaError
from .settings import BudgetSettings, CacheSettings


class Cache:
    """Answers by the hash of what was asked, in one SQLite file."""

    def __init__(self, settings: CacheSettings):
        self._most = settings.megabytes * 1_000_000
        folder = Path(settings.folder).expanduser()
        self.path = folder / "answers.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise MuaError(f"the cache {folder} cannot be made ({exc}); set cache.folder.") from None
        with self._safe():
            self._db = _connect(self.path)
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS answers "
                "(key BLOB PRIMARY KEY, body TEXT NOT NULL, size INTEGER NOT NULL, used REAL NOT NULL)"
            )
            self._db.execute("CREATE INDEX IF NOT EXISTS by_use ON answers (used)")
            (size,) = self._db.execute("SELECT coalesce(sum(size), 0) FROM answers").fetchone()
            self._written = 0
            self._room = self._most - size

    def get(self, key: bytes) -> str | None:
        """The answer, if there is one."""
        with self._safe():
            found = self._db.execute("SELECT body FROM answers WHERE key = ?", (key,)).fetchone()
            if found is None:
                return None
            self._db.execute("UPDATE answers SET used = ? WHERE key = ?", (time.time(), key))
            return found[0]

    def put(self, key: bytes, body: str) -> str:
        """Keeps an answer unless there is one, and returns the one that counts."""
        size = len(body) + 200  # what a row and its two places in indexes take beside it
        with self._safe():
            row = (key, body, size, time.time())
            added = self._db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", row).rowcount
            if not added:
                return self.get(key) or body
            self._room -= size
            self._written += 1
            if self._room < 0 or self._written % 1000 == 0:
                self._shrink()
        return body

    def close(self) -> None:
        self._db.close()

    def _shrink(self) -> None:
        """Makes a tenth of the room free, counting what other processes wrote."""
        with _alone(self._db):
            (size,) = self._db.execute("SELECT coalesce(sum(size), 0) FROM answers").fetchone()
            if size > self._most:
                rows = self._db.execute("SELECT rowid, size FROM answers ORDER BY used")
                gone = []
                for rowid, mine in rows:
                    if size <= 0.9 * self._most:
                        break
                    size -= mine
                    gone.append((rowid,))
                rows.close()
                self._db.executemany("DELETE FROM answers WHERE rowid = ?", gone)
        self._room = self._most - size

    def _safe(self) -> AbstractContextManager[None]:
        return _told(f"the cache {self.path}", ", remove the file, or set cache: null")


class Ledger:
    """What a gateway has spent by now, and what requests on their way may cost: in a file that all processes
    of a run share, or of this process only."""

    def __init__(self, path: Path | None, name: str):
        self.path, self.name = path, name
        self.tokens, self.dollars = 0, 0.0
        """Spent by all processes, when this one last looked."""
        self.promised = 0
        """Requests on their way for which something is set aside, likewise."""
        self._users = None
        with self._safe():
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = _connect(path)
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS spent (gateway TEXT, route TEXT, requests INTEGER, prompt_tokens "
                "INTEGER, completion_tokens INTEGER, dollars REAL, PRIMARY KEY (gateway, route))"
            )
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS promised "
                "(id INTEGER PRIMARY KEY, gateway TEXT, route TEXT, tokens INTEGER, dollars REAL)"
            )
            if path is not None:
                self._join(path)
            self._look()

    def promise(self, route: str, tokens: int, dollars: float, budget: BudgetSettings) -> int | None:
        """Sets aside what a request may cost; the number is for `add`. None: it does not fit now."""
        with self._safe(), _alone(self._db):
            self._look()
            found = self._db.execute(
                "SELECT coalesce(sum(tokens), 0), coalesce(sum(dollars), 0.0) FROM promised "
                "WHERE gateway = ?",
                (self.name,),
            ).fetchone()
            if not budget.allows(self.tokens + found[0] + tokens, self.dollars + found[1] + dollars):
                return None
            row = (self.name, route, tokens, dollars)
            return self._db.execute(
                "INSERT INTO promised (gateway, route, tokens, dollars) VALUES (?, ?, ?, ?)", row
            ).lastrowid

    def add(self, route: str, usage: tuple[int, int], dollars: float, promise: int | None = None) -> None:
        """Counts one request, in place of what was set aside for it."""
        with self._safe(), _alone(self._db):
            self._count(self.name, route, usage, dollars)
            if promise is not None:
                self._db.execute("DELETE FROM promised WHERE id = ?", (promise,))
            self._look()

    def give_up(self, promise: int) -> None:
        """Counts all that was set aside for a request whose bill will never be known."""
        with self._safe(), _alone(self._db):
            self._bill("id = ?", promise)
            self._look()

    def close(self) -> None:
        self._db.close()
        if self._users is not None:
            self._users.close()

    def _count(self, gateway: str, route: str, usage: tuple[int, int], dollars: float) -> None:
        self._db.execute(
            "INSERT INTO spent VALUES (?, ?, 1, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "requests = requests + 1, prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
            "completion_tokens = completion_tokens + excluded.completion_tokens, "
            "dollars = dollars + excluded.dollars",
            (gateway, route, *usage, dollars),
        )

    def _bill(self, which: str, value: int) -> None:
        """Counts what was set aside as spent."""
        rows = self._db.execute(
            f"SELECT gateway, route, tokens, dollars FROM promised WHERE {which}", (value,)
        ).fetchall()
        for gateway, route, tokens, dollars in rows:
            self._count(gateway, f"{route} (given up)", (tokens, 0), dollars)
        self._db.execute(f"DELETE FROM promised WHERE {which}", (value,))

    def _join(self, path: Path) -> None:
        """Whoever finds itself alone counts what processes that ended in the middle had on its way: it may
        have been billed. The lock says who is there; the system drops it when a process ends."""
        self._users = open(path.with_name(path.name + ".users"), "a", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass
        else:
            with _alone(self._db):
                self._bill("?", True)
        fcntl.flock(self._users, fcntl.LOCK_SH)

    def _look(self) -> None:
        """Other processes of the run may have spent, too."""
        self.tokens, self.dollars = self._db.execute(
            "SELECT coalesce(sum(prompt_tokens + completion_tokens), 0), coalesce(sum(dollars), 0.0) "
            "FROM spent WHERE gateway = ?",
            (self.name,),
        ).fetchone()
        (self.promised,) = self._db.execute(
            "SELECT count(*) FROM promised WHERE gateway = ?", (self.name,)
        ).fetchone()

    def _safe(self) -> AbstractContextManager[None]:
        return _told(str(self.path), "")


@contextmanager
def _told(what: str, otherwise: str) -> Iterator[None]:
    """Failures of the disk or the file, in words."""
    try:
        yield
    except (sqlite3.Error, OSError) as exc:
        raise MuaError(f"{what} cannot be used ({exc}). Make room on the disk{otherwise}.") from None


@contextmanager
def _alone(database: sqlite3.Connection) -> Iterator[None]:
    """No other process writes meanwhile."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if database.in_transaction:  # a full disk has ended it already
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _connect(path: Path | None) -> sqlite3.Connection:
    """Crash-safe, and shared by processes: a write-ahead log. Without a path it is in memory."""
    # Used by one thread at a time, though not always by the one that made it.
    database = sqlite3.connect(
        path or ":memory:", timeout=60.0, isolation_level=None, check_same_thread=False
    )
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    return database
