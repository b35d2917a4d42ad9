"""Many servers of chat models as one: who is asked next, at what rate, at what price, and what is known
already.

A gateway has routes (an address, a key, a model). Every request takes the least busy one that may be asked
now; a route that fails is left for another. A plain endpoint is a gateway with one route and nothing else.

Invariants:
- In no minute does a key get more requests, or tokens as far as they are known, than its limits say.
- A budget is never exceeded, as long as a server bills no more than a token a byte of the request and
  `max_tokens` for the answer: a request that might not fit is not sent, and the run ends.
- An answer in the cache was whole when it was written; for one request, all processes and all later runs get
  the same one, the first that was written.
- What was spent is on disk before the answer is used, and survives a kill.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import math
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import MuaError
from .transport import LONGEST_WAIT, Fault, Reply, Server, checked_env, checked_url, status_fault

MINUTE = 60.0
_FILES = (".yaml", ".yml")
_TEMPLATE = 256
"""Tokens that a server's chat template may add beyond a token for each byte of the request."""
_FINISH = 60.0
"""Seconds that requests on their way are given at the end, so that what they cost is known."""


class BudgetSpent(MuaError):
    """The next request might cost more than what is left of the budget."""


class _Settings(BaseModel):
    # Inputs stay out of validation errors: a key put into the wrong field must not be printed.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class RouteSettings(_Settings):
    """One way to an answer: an address, a key, a model."""

    base_url: str = Field(description="Address up to /v1, without any key.")
    api_key_env: str = Field(
        default="", description="NAME of the environment variable that holds the key; empty sends none."
    )
    model: str = Field(default="", description="Model name there; empty: the name that is asked for.")
    timeout: float = Field(default=120.0, gt=0, description="Seconds for one whole request.")
    concurrency: int = Field(default=16, ge=1, description="Most requests in flight.")
    requests_per_minute: int | None = Field(
        default=None, ge=1, description="Of the key, over all routes that have it; null: any."
    )
    tokens_per_minute: int | None = Field(default=None, ge=1, description="Likewise, prompt and answer.")

    @field_validator("base_url")
    @classmethod
    def _no_secret_in_url(cls, url: str) -> str:
        return checked_url(url)

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        return checked_env(name)

    @property
    def key(self) -> tuple[str, str]:
        """What a limit is of."""
        return self.base_url, self.api_key_env


class Price(_Settings):
    """US dollars per million tokens."""

    prompt: float = Field(default=0.0, ge=0)
    completion: float = Field(default=0.0, ge=0)


class BreakerSettings(_Settings):
    """When a route is left alone for a while."""

    failures: int = Field(default=5, ge=1, description="Failures in a row after which it is not asked.")
    seconds: float = Field(
        default=30.0, gt=0, description="Until one request tries it again; the others wait for that one."
    )


class CacheSettings(_Settings):
    """Answers that are kept."""

    folder: str = Field(description="Where; on a disk of this machine. Processes may share it.")
    megabytes: int = Field(
        default=2000, ge=1, description="What was not used for longest goes when it is full."
    )


class BudgetSettings(_Settings):
    """What a run may spend, all its commands together."""

    tokens: int | None = Field(default=None, ge=1, description="Prompt and answers; null: any number.")
    dollars: float | None = Field(default=None, gt=0, description="By `prices`; null: any sum.")


class GatewaySettings(_Settings):
    """Servers that are asked as one (docs/scale-out.md)."""

    routes: tuple[RouteSettings, ...] = Field(
        description="Of equals in load, the first is asked; a failure goes on to the next."
    )
    prices: dict[str, Price] = Field(default={}, description="By model name, as the routes have it.")
    budget: BudgetSettings = Field(default=BudgetSettings())
    cache: CacheSettings | None = Field(default=None, description="null keeps no answers.")
    breaker: BreakerSettings | None = Field(default=BreakerSettings(), description="null never leaves off.")

    @model_validator(mode="after")
    def _one_limit_a_key(self) -> GatewaySettings:
        if not self.routes:
            raise ValueError("routes is empty: a gateway needs at least one")
        limits: dict[tuple[str, str], tuple[int | None, int | None]] = {}
        for route in self.routes:
            mine = route.requests_per_minute, route.tokens_per_minute
            if limits.setdefault(route.key, mine) != mine:
                raise ValueError(
                    f"two routes to {route.base_url} have one key and different limits a minute: limits are "
                    "of a key, so give both the same"
                )
        return self


# ---------------------------------------------------------------- limits


class Window:
    """At most `most` units in any `seconds`: what was taken counts for exactly so long."""

    def __init__(self, most: float, seconds: float):
        self.most, self.seconds = most, seconds
        self._taken: collections.deque[list[float]] = collections.deque()
        self._sum = 0.0

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` fits (0: now). More than `most` fits when nothing else does."""
        while self._taken and self._taken[0][0] <= now - self.seconds:
            self._sum -= self._taken.popleft()[1]
        if not self._taken:
            self._sum = 0.0  # no rest of rounding
        over = self._sum + min(amount, self.most) - self.most
        for at, taken in self._taken:
            if over <= 0:
                break
            over -= taken
            if over <= 0:
                return at + self.seconds - now
        return 0.0

    def take(self, amount: float, now: float) -> list[float]:
        """Takes it; the entry is for `settle`."""
        entry = [now, amount]
        self._taken.append(entry)
        self._sum += amount
        return entry

    def settle(self, entry: list[float], amount: float) -> None:
        """What an entry turned out to be."""
        if self._taken and entry[0] >= self._taken[0][0]:  # else it is out of the window
            self._sum += amount - entry[1]
            entry[1] = amount


class Breaker:
    """Closed, open after failures in a row, and half open: one request tries."""

    def __init__(self, settings: BreakerSettings):
        self._settings = settings
        self._failures = 0
        self._opened: float | None = None
        self.trying = False

    def wait(self, now: float) -> float:
        """Seconds until it may be asked; infinity while another request tries."""
        if self._opened is None:
            return 0.0
        return math.inf if self.trying else max(0.0, self._opened + self._settings.seconds - now)

    def begin(self) -> None:
        self.trying = self._opened is not None

    def succeeded(self) -> None:
        self._failures, self._opened, self.trying = 0, None, False

    def failed(self, now: float) -> None:
        self._failures += 1
        if self.trying or self._failures >= self._settings.failures:
            self._opened, self.trying = now, False


# ---------------------------------------------------------------- what is on disk


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
        self._db.execute("BEGIN IMMEDIATE")
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
        self._db.execute("COMMIT")
        self._room = self._most - size

    @contextmanager
    def _safe(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise MuaError(
                f"the cache {self.path} cannot be used ({exc}). Make room on the disk, remove the file, or "
                "set cache: null."
            ) from None


class Ledger:
    """What a gateway has spent by now: in a file of the run, or of this process only."""

    def __init__(self, path: Path | None, name: str):
        self.path, self.name = path, name
        self.tokens = 0
        self.dollars = 0.0
        if path is None:
            self._db = None
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._safe():
            self._db = _connect(path)
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS spent (gateway TEXT, route TEXT, requests INTEGER, prompt_tokens "
                "INTEGER, completion_tokens INTEGER, dollars REAL, PRIMARY KEY (gateway, route))"
            )
            self._look()

    def add(self, route: str, usage: tuple[int, int], dollars: float) -> None:
        """Counts one request."""
        self.tokens += sum(usage)
        self.dollars += dollars
        if self._db is None:
            return
        with self._safe():
            self._db.execute(
                "INSERT INTO spent VALUES (?, ?, 1, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "requests = requests + 1, prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
                "completion_tokens = completion_tokens + excluded.completion_tokens, "
                "dollars = dollars + excluded.dollars",
                (self.name, route, *usage, dollars),
            )
            self._look()

    def close(self) -> None:
        if self._db is not None:
            self._db.close()

    def _look(self) -> None:
        """Other processes of the run may have spent, too."""
        assert self._db is not None
        self.tokens, self.dollars = self._db.execute(
            "SELECT coalesce(sum(prompt_tokens + completion_tokens), 0), coalesce(sum(dollars), 0.0) "
            "FROM spent WHERE gateway = ?",
            (self.name,),
        ).fetchone()

    @contextmanager
    def _safe(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise MuaError(f"{self.path} cannot be used ({exc}). Make room on the disk.") from None


def _connect(path: Path) -> sqlite3.Connection:
    """Crash-safe, and shared by processes: a write-ahead log."""
    database = sqlite3.connect(path, timeout=60.0, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    return database


# ---------------------------------------------------------------- asking


@dataclass
class Meter:
    """What one role (user, agent, judge) has asked for, and got. Tokens and cost are of failures, too."""

    requests: int = 0
    """Sent; retries included, answers from the cache not."""
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """US dollars."""
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    """By `Fault.kind`."""
    seconds: list[float] = field(default_factory=list)
    """Of each request that was sent, failures included; without waiting for its turn."""

    def add(self, other: Meter) -> None:
        """Takes in what another one counted."""
        self.requests += other.requests
        self.cached += other.cached
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.cost += other.cost
        self.errors.update(other.errors)
        self.seconds += other.seconds

    def figures(self) -> dict[str, Any]:
        """For records: counts, and percentiles of the seconds (null before the first request)."""
        ordered = sorted(self.seconds)
        return {
            "requests": self.requests,
            "cached": self.cached,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "dollars": self.cost,
            "errors": dict(sorted(self.errors.items())),
            **{f"p{p}": percentile(ordered, p) for p in (50, 90, 99)},
        }


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """The smallest value that at least `percent` per cent of them do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else None


@dataclass(frozen=True)
class Question:
    """A request in whatever shape a route wants it."""

    body: Callable[[str, int], bytes]
    """(model name, number of the attempt) → the request."""
    read: Callable[[str], Any]
    """An answer's text → something with `usage` (tokens of prompt and completion), or a Fault."""
    model: str
    """Name that is asked for where a route names none."""
    most: int | None
    """Most tokens of the answer."""
    seed: int
    missing: str = ""
    """What to mend when the server does not know the model; `refused` likewise for other refusals."""
    refused: str = ""


class Route:
    """A route at work."""

    def __init__(self, settings: RouteSettings, number: int, breaker: BreakerSettings | None, who: str):
        self.settings = settings
        self.number = number
        self.server = Server(settings.base_url, settings.api_key_env, settings.timeout, who)
        self.in_flight = 0
        self.windows: tuple[Window | None, Window | None] = (None, None)
        """Requests and tokens of its key."""
        self.breaker = Breaker(breaker) if breaker else None
        self.paused = -math.inf
        """Not asked before then: the server said so."""
        self.last: Fault | None = None
        """Its latest failure."""
        self.ratio = 1.0
        """Prompt tokens a byte: the most that was seen, a bound before that."""
        self._seen = False

    def estimate(self, size: int, most: int | None) -> float:
        """Tokens that a request of `size` bytes is taken for until its bill is known."""
        return size * self.ratio + (most or 0)

    def wait(self, now: float, tokens: float) -> float:
        """Seconds until limits, breaker and server let it be asked; infinity: until some request is done."""
        if self.in_flight >= self.settings.concurrency:
            return math.inf
        waits = [max(0.0, self.paused - now), self.breaker.wait(now) if self.breaker else 0.0]
        for window, amount in zip(self.windows, (1, tokens), strict=True):
            waits.append(window.wait(amount, now) if window else 0.0)
        return max(waits)

    def shut(self, now: float) -> float:
        """Seconds until its breaker lets a request through."""
        return self.breaker.wait(now) if self.breaker else 0.0

    def begin(self, now: float, tokens: float) -> list[float] | None:
        """Takes the place of a request; returns the entry of its tokens."""
        self.in_flight += 1
        if self.breaker:
            self.breaker.begin()
        if self.windows[0]:
            self.windows[0].take(1, now)
        return self.windows[1].take(tokens, now) if self.windows[1] else None

    def learn(self, size: int, prompt_tokens: int) -> None:
        """What a request's bill says of the next ones."""
        if prompt_tokens:
            self.ratio = prompt_tokens / size if not self._seen else max(self.ratio, prompt_tokens / size)
            self._seen = True

    def heard(self, result: Any, now: float) -> None:
        """An answer, or none."""
        kind = ""
        if isinstance(result, Fault):
            kind, self.last = result.kind, result
        if isinstance(result, Fault) and result.wait is not None:
            self.paused = now + min(result.wait, LONGEST_WAIT)
        if self.breaker:
            if kind in ("timeout", "down", "failed", "nonsense"):
                self.breaker.failed(now)
            else:
                self.breaker.succeeded()


class Gateway:
    """The routes, shared by all that ask. `ledger` is the file that says what the run has spent by now."""

    def __init__(
        self, settings: GatewaySettings, name: str = "", *, ledger: Path | None = None, who: str = ""
    ):
        """Raises MuaError when a key is not in the environment, or a price is missing that a budget needs."""
        self.settings = settings
        self.name = name
        who = who or f"gateway '{name}' at"
        self.routes = [Route(s, n, settings.breaker, who) for n, s in enumerate(settings.routes)]
        windows: dict[tuple[str, str], tuple[Window | None, Window | None]] = {}
        for route in self.routes:
            limits = route.settings.requests_per_minute, route.settings.tokens_per_minute
            made = tuple(Window(limit, MINUTE) if limit else None for limit in limits)
            route.windows = windows.setdefault(route.settings.key, made)  # pyright: ignore[reportArgumentType]
        if settings.budget.dollars is not None:
            unknown = sorted({s.model for s in settings.routes} - settings.prices.keys())
            if unknown:
                raise MuaError(
                    f"gateway '{name}' has a budget in dollars and no price of {', '.join(unknown) or 'it'}: "
                    "give every route a model and each model its price: "
                    "prices: {MODEL: {prompt: 2.0, completion: 8.0}}."
                )
        self.cache = Cache(settings.cache) if settings.cache else None
        self.ledger = Ledger(ledger, name)
        self._reserved = [0, 0.0]
        """Tokens and dollars of requests on their way."""
        self._working: set[asyncio.Future[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def ask(
        self, question: Question, meter: Meter, *, retries: int, delay: float, only: Route | None = None
    ) -> tuple[Any, tuple[int, int], float, Route]:
        """(answer or last fault, tokens of all attempts, their dollars, the route that was asked last). An
        answer from the cache has its tokens, and costs nothing.

        Each attempt has a seed of its own; the first pause is `delay` seconds at most. `only` asks one route.
        Raises BudgetSpent.
        """
        self._bind()
        key = self._key(question, only)
        if self.cache is not None and (found := self.cache.get(key)) is not None:
            answer = question.read(found)
            if not isinstance(answer, Fault):
                meter.cached += 1
                return answer, answer.usage, 0.0, only or self.routes[0]
        routes = [only] if only else self.routes
        prompt_tokens = completion_tokens = 0
        dollars = 0.0
        route, result = routes[0], None
        failed: set[Route] = set()
        """In this round; `refused`: of no use to this request."""
        refused: set[Route] = set()
        for attempt in range(retries + 1):
            able = [r for r in routes if r not in refused]
            place = await self._place(question, attempt, able, failed)
            if isinstance(place, Fault):
                result = place
            else:
                route = place[0]
                result, cost = await self._sent(question, key, meter, *place)
                prompt_tokens += result.usage[0]
                completion_tokens += result.usage[1]
                dollars += cost
            if not isinstance(result, Fault) or result.overflow:
                break
            if result.kind != "open":
                (failed if result.retry else refused).add(route)
            able = [r for r in routes if r not in refused]
            if not able or attempt == retries:
                break
            if result.kind == "open" or failed.issuperset(able):  # else another one is asked at once
                failed.clear()
                await asyncio.sleep(self._delay(key, attempt, delay, result.wait))
        meter.prompt_tokens += prompt_tokens
        meter.completion_tokens += completion_tokens
        meter.cost += dollars
        return result, (prompt_tokens, completion_tokens), dollars, route

    def redact(self, text: str) -> str:
        """The text without the key of any route."""
        for route in self.routes:
            text = route.server.redact(text)
        return text

    async def close(self) -> None:
        """Waits a while for what is on its way, then closes connections and files."""
        if self._working:
            _, late = await asyncio.wait(self._working, timeout=_FINISH)
            for work in late:
                work.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for route in self.routes:
            await route.server.close()
        if self.cache is not None:
            self.cache.close()
        self.ledger.close()

    # One request

    async def _place(
        self, question: Question, attempt: int, routes: Sequence[Route], failed: set[Route]
    ) -> tuple[Route, bytes, tuple[int, float], list[float] | None] | Fault:
        """A route that may be asked now, with the request for it and what is reserved for it; a Fault when
        all breakers are open. First come, first served."""
        async with self._queue:
            while True:
                self._freed.clear()
                now = time.monotonic()
                closed = [r for r in routes if not r.shut(now)]
                able = [r for r in closed if r not in failed] or closed
                soonest = min(routes, key=lambda r: r.shut(now))
                if not able and math.isfinite(soonest.shut(now)):
                    why = soonest.last
                    return Fault(
                        f"is left alone for a while; it {why.what if why else 'failed'}",
                        why.fix if why else "look at its log",
                        "open",
                        wait=soonest.shut(now),
                    )
                body = {r: question.body(r.settings.model or question.model, attempt) for r in able}
                waits = {r: r.wait(now, r.estimate(len(body[r]), question.most)) for r in able}
                free = [r for r in able if not waits[r]]
                largest = max(map(len, body.values()), default=0)
                if free and (reserved := self._reserve(largest, question.most)) is not None:
                    route = min(free, key=lambda r: (r.in_flight / r.settings.concurrency, r.number))
                    entry = route.begin(now, route.estimate(len(body[route]), question.most))
                    return route, body[route], reserved, entry
                delay = math.inf if free or not waits else min(waits.values())
                try:
                    async with asyncio.timeout(delay if math.isfinite(delay) else None):
                        await self._freed.wait()
                except TimeoutError:
                    pass

    def _reserve(self, size: int, most: int | None) -> tuple[int, float] | None:
        """Sets aside what a request may cost; None: not before others are paid. Raises BudgetSpent."""
        budget = self.settings.budget
        if budget.tokens is None and budget.dollars is None:
            return 0, 0.0
        if most is None:
            raise MuaError(
                f"gateway '{self.name}' has a budget, and a request without max_tokens may cost anything: "
                "set max_tokens of every endpoint that uses it."
            )
        prices = [self._price(r) for r in self.routes]
        prompt = size + _TEMPLATE
        dollars = max(p.prompt * prompt + p.completion * most for p in prices) / 1e6
        tokens = prompt + most
        if (
            budget.tokens is not None and self.ledger.tokens + self._reserved[0] + tokens > budget.tokens
        ) or (
            budget.dollars is not None and self.ledger.dollars + self._reserved[1] + dollars > budget.dollars
        ):
            if self._reserved[0]:
                return None
            spent = [f"{self.ledger.tokens:,} of {budget.tokens:,} tokens"] if budget.tokens else []
            spent += (
                [f"${self.ledger.dollars:.4f} of ${budget.dollars:.2f}"] if budget.dollars is not None else []
            )
            where = f"gateways.{self.name}.budget"
            if self.name.endswith(_FILES):
                where = f"`budget` in {self.name}"
            raise BudgetSpent(
                f"the budget of gateway '{self.name}' is spent ({', '.join(spent)}): the next request may "
                f"take {tokens:,} tokens{f', ${dollars:.4f}' if dollars else ''}. What was done is kept: "
                f"raise {where}, and run the same command again to go on."
            )
        self._reserved[0] += tokens
        self._reserved[1] += dollars
        return tokens, dollars

    async def _sent(
        self,
        question: Question,
        key: bytes,
        meter: Meter,
        route: Route,
        body: bytes,
        reserved: tuple[int, float],
        entry: list[float] | None,
    ) -> tuple[Any, float]:
        """The result of one request, and its dollars. Whoever asked may go away: what it costs has to be
        known where there is a budget, and its answer is kept where there is a cache."""
        sending = self._send(question, key, meter, route, body, reserved, entry)
        if self.cache is None and not reserved[0]:
            return await sending
        work = asyncio.ensure_future(sending)
        self._working.add(work)
        work.add_done_callback(self._working.discard)
        return await asyncio.shield(work)

    async def _send(
        self,
        question: Question,
        key: bytes,
        meter: Meter,
        route: Route,
        body: bytes,
        reserved: tuple[int, float],
        entry: list[float] | None,
    ) -> tuple[Any, float]:
        meter.requests += 1
        began = time.monotonic()
        result: Any = None
        try:
            reply = await route.server.send("/chat/completions", body)
            now = time.monotonic()
            meter.seconds.append(now - began)
            if isinstance(reply, Reply):
                reply = replace(reply, text=self.redact(reply.text))
            result = reply
            if isinstance(reply, Reply) and 200 <= reply.status < 300:
                result = question.read(reply.text)
            elif isinstance(reply, Reply):
                name = route.settings.api_key_env
                result = status_fault(reply, name, missing=question.missing, refused=question.refused)
            route.heard(result, now)
            if isinstance(result, Fault):
                meter.errors[result.kind] += 1
            elif self.cache is not None and isinstance(reply, Reply):
                result = question.read(self.cache.put(key, reply.text))
            price, usage = self._price(route), result.usage
            cost = (price.prompt * usage[0] + price.completion * usage[1]) / 1e6
            self.ledger.add(
                f"{route.settings.base_url} {route.settings.model or question.model}", usage, cost
            )
            route.learn(len(body), usage[0])
            if entry is not None and route.windows[1] and sum(usage):
                route.windows[1].settle(entry, sum(usage))
            return result, cost
        finally:
            if result is None and route.breaker is not None:  # given up: it says nothing
                route.breaker.trying = False
            if result is None and reserved[0]:  # given up with a budget: it may have been billed
                self.ledger.add(f"{route.settings.base_url} (given up)", (reserved[0], 0), reserved[1])
            route.in_flight -= 1
            self._reserved[0] -= reserved[0]
            self._reserved[1] -= reserved[1]
            if not self._reserved[0]:
                self._reserved[1] = 0.0  # no rest of rounding
            self._freed.set()

    # Small things

    def _price(self, route: Route) -> Price:
        return self.settings.prices.get(route.settings.model) or Price()

    def _key(self, question: Question, only: Route | None) -> bytes:
        """What is asked of which models, and with which seed: also where a seed is not sent."""
        models = sorted({r.settings.model for r in self.routes})
        about = f"{self.name} {models} {question.seed} {only.number if only else ''}".encode()
        return hashlib.sha256(about + b"\0" + question.body(question.model, 0)).digest()

    @staticmethod
    def _delay(key: bytes, attempt: int, delay: float, wait: float | None) -> float:
        """Seconds until the next attempt: what the server asked for, else anything up to a bound that doubles
        (full jitter, drawn from what is asked: the same in every run, different for every request)."""
        if wait is not None:
            return wait
        return random.Random(key + bytes([attempt])).uniform(0, delay * min(2**attempt, 16))

    def _bind(self) -> None:
        """Queues belong to one event loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._queue, self._freed = asyncio.Lock(), asyncio.Event()
            self._working.clear()
            for route in self.routes:
                route.in_flight = 0


class Gateways:
    """The gateways of a configuration, made when they are first asked for; a name may be a YAML file."""

    def __init__(self, settings: Mapping[str, GatewaySettings] | None = None, ledger: Path | None = None):
        """`ledger` says what the run has spent, all its commands together; None: this process only."""
        self._settings = settings or {}
        self._ledger = ledger
        self._made: dict[str, Gateway] = {}

    def get(self, name: str) -> Gateway:
        """Raises MuaError when there is none of that name, or its file is wrong."""
        if name not in self._made:
            settings = gateway_settings(name, self._settings)
            self._made[name] = Gateway(settings, name, ledger=self._ledger)
        return self._made[name]

    async def close(self) -> None:
        """Closes those that were made."""
        for gateway in self._made.values():
            await gateway.close()
        self._made.clear()


def gateway_settings(name: str, known: Mapping[str, GatewaySettings]) -> GatewaySettings:
    """Those of a name in the configuration, or of a YAML file. Raises MuaError."""
    if name in known:
        return known[name]
    if not name.endswith(_FILES):
        there = f"it has {', '.join(known)}" if known else "it has none"
        raise MuaError(
            f"there is no gateway '{name}' under `gateways` of the configuration ({there}); add it there, or "
            "name a YAML file with its settings: gateway:FILE.yaml."
        )
    import yaml

    try:
        data = yaml.safe_load(Path(name).expanduser().read_text(encoding="utf-8"))
        return GatewaySettings.model_validate(data)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as exc:
        raise MuaError(f"the gateway {name} cannot be read ({' '.join(str(exc).split())}).") from None
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise MuaError(f"the gateway {name}: {where}: {first['msg'].removeprefix('Value error, ')}") from None
