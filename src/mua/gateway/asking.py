"""Who is asked next: the least busy route that may be asked now; a route that fails is left for another.

Invariants:
- First come, first served; a request is sent only when limits, breaker, concurrency and budget all let it.
- A failure says nothing of what the model would say, so the same request goes out again, seed included; only
  an answer of the model's that cannot be used (`Fault.redraw`) is asked for with another one.
- Whatever was sent is counted, whether or not somebody still waits for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import MuaError
from ..transport import Fault, Reply, status_fault
from .limits import Window
from .meter import Meter
from .route import Route
from .settings import GatewaySettings, Price, gateway_settings, is_file
from .store import Cache, Ledger

MINUTE = 60.0
_TEMPLATE = 256
"""Tokens that a server's chat template may add beyond a token for each byte of the request."""
_FINISH = 60.0
"""Seconds that requests on their way are given at the end, so that what they cost is known."""
_LOOK = 0.2
"""Seconds after which the ledger is looked at again, for what other processes do not need after all."""


class BudgetSpent(MuaError):
    """The next request might cost more than what is left of the budget."""


@dataclass(frozen=True)
class Question:
    """A request in whatever shape a route wants it."""

    body: Callable[[str, int], bytes]
    """(model name, n) → the request, with the seed of its n-th draw."""
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


@dataclass(frozen=True)
class _Place:
    """A route that one request may take now, and what is held for it."""

    route: Route
    body: bytes
    promise: int | None
    """Of the ledger; None without a budget."""
    entry: list[float] | None
    """Of the window of tokens."""


class Gateway:
    """The routes, shared by all that ask. `ledger` is the file that says what the run has spent by now."""

    def __init__(
        self,
        settings: GatewaySettings,
        name: str = "",
        *,
        ledger: Path | None = None,
        who: str = "",
        key: str | None = None,
    ):
        """`key` is that of all routes, in place of the variables that they name.

        Raises MuaError when a key is not in the environment, or a price is missing that a budget needs.
        """
        self.settings = settings
        self.name = name
        who = who or f"gateway '{name}' at"
        self.routes = [Route(s, n, settings.breaker, who, key) for n, s in enumerate(settings.routes)]
        windows: dict[tuple[str, str], tuple[Window | None, Window | None]] = {}
        for route in self.routes:
            requests, tokens = route.settings.requests_per_minute, route.settings.tokens_per_minute
            made = Window(requests, MINUTE) if requests else None, Window(tokens, MINUTE) if tokens else None
            route.windows = windows.setdefault(route.settings.key, made)
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
        self._working: set[asyncio.Future[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def ask(
        self, question: Question, meter: Meter, *, retries: int, delay: float, only: Route | None = None
    ) -> tuple[Any, tuple[int, int], float, Route]:
        """(answer or last fault, tokens of all attempts, their dollars, the route that was asked last). An
        answer from the cache has its tokens, and costs nothing.

        The first pause is `delay` seconds at most. `only` asks one route. Raises BudgetSpent.
        """
        self._bind()
        key = self._key(question, only)
        if self.cache is not None and (found := self.cache.get(key)) is not None:
            answer = question.read(found)
            if not isinstance(answer, Fault):
                meter.cached += 1
                return answer, answer.usage, 0.0, only or self.routes[0]
        routes = [only] if only else self.routes
        prompt_tokens = completion_tokens = draw = 0
        dollars = 0.0
        route, result = routes[0], None
        failed: dict[Route, Fault] = {}
        """In this round; `refused`: of no use to this request."""
        refused: set[Route] = set()
        for attempt in range(retries + 1):
            able = [r for r in routes if r not in refused]
            place = await self._place(question, draw, able, failed)
            if isinstance(place, Fault):
                result = place
            else:
                route = place.route
                result, cost = await self._sent(question, key, meter, place)
                prompt_tokens += result.usage[0]
                completion_tokens += result.usage[1]
                dollars += cost
            if not isinstance(result, Fault) or result.overflow:
                break
            draw += result.redraw
            if result.kind != "open":
                if result.retry:
                    failed[route] = result
                else:
                    refused.add(route)
            able = [r for r in routes if r not in refused]
            if not able or attempt == retries:
                break
            if result.kind == "open" or all(r in failed for r in able):  # else another one is asked at once
                waits = [result.wait] if result.kind == "open" else [failed[r].wait for r in able]
                told = [wait for wait in waits if wait is not None]
                # One that named no time may be asked soon; `_place` leaves the others alone for theirs.
                wait = min(told) if len(told) == len(waits) else None
                failed.clear()
                await asyncio.sleep(self._delay(key, attempt, delay, wait))
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
        self, question: Question, draw: int, routes: Sequence[Route], failed: Mapping[Route, Fault]
    ) -> _Place | Fault:
        """A route that may be asked now; a Fault when all breakers are open. First come, first served."""
        async with self._queue:
            poor: float | None = None
            """When the budget first did not allow it."""
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
                body = {r: question.body(r.settings.model or question.model, draw) for r in able}
                waits = {r: r.wait(now, r.estimate(len(body[r]), question.most)) for r in able}
                free = [r for r in able if not waits[r]]
                if free:
                    route = min(free, key=lambda r: (r.in_flight / r.settings.concurrency, r.number))
                    # However others ended: what they had on its way then is answered or given up by now.
                    longest = _LOOK + max(r.settings.timeout for r in self.routes)
                    in_vain = poor is not None and now - poor > longest
                    affordable, promise = self._promise(route, question, len(body[route]), in_vain)
                    if affordable:
                        entry = route.begin(now, route.estimate(len(body[route]), question.most))
                        return _Place(route, body[route], promise, entry)
                    delay, poor = _LOOK, now if poor is None else poor
                else:
                    delay = min(waits.values(), default=math.inf)
                try:
                    async with asyncio.timeout(delay if math.isfinite(delay) else None):
                        await self._freed.wait()
                except TimeoutError:
                    pass

    def _promise(self, route: Route, question: Question, size: int, in_vain: bool) -> tuple[bool, int | None]:
        """(whether the budget allows the request now, what the ledger holds for it). Raises BudgetSpent when
        it does not, and nothing is on its way that may turn out cheaper, or was waited for `in_vain`."""
        budget, most = self.settings.budget, question.most
        if not budget.is_set:
            return True, None
        if most is None:
            raise MuaError(
                f"gateway '{self.name}' has a budget, and a request without max_tokens may cost anything: "
                "set max_tokens of every endpoint that uses it."
            )
        price, tokens = self._price(route, question), size + _TEMPLATE + most
        dollars = (price.prompt * (tokens - most) + price.completion * most) / 1e6
        promise = self.ledger.promise(self._line(route, question), tokens, dollars, budget)
        if promise is not None or (self.ledger.promised and not in_vain):
            return promise is not None, promise
        spent = [f"{self.ledger.tokens:,} of {budget.tokens:,} tokens"] if budget.tokens else []
        spent += (
            [f"${self.ledger.dollars:.4f} of ${budget.dollars:.2f}"] if budget.dollars is not None else []
        )
        where = f"`budget` in {self.name}" if is_file(self.name) else f"gateways.{self.name}.budget"
        raise BudgetSpent(
            f"the budget of gateway '{self.name}' is spent ({', '.join(spent)}): the next request may take "
            f"{tokens:,} tokens{f', ${dollars:.4f}' if dollars else ''}. What was done is kept: raise "
            f"{where}, and run the same command again to go on."
        )

    async def _sent(self, question: Question, key: bytes, meter: Meter, place: _Place) -> tuple[Any, float]:
        """The result of one request, and its dollars. Whoever asked may go away: what it costs has to be
        known where there is a budget, and its answer is kept where there is a cache."""
        sending = self._send(question, key, meter, place)
        if self.cache is None and place.promise is None:
            return await sending
        work = asyncio.ensure_future(sending)
        self._working.add(work)
        work.add_done_callback(self._working.discard)
        return await asyncio.shield(work)

    async def _send(self, question: Question, key: bytes, meter: Meter, place: _Place) -> tuple[Any, float]:
        route = place.route
        meter.requests += 1
        began = time.monotonic()
        result: Any = None
        try:
            reply = await route.server.send("/chat/completions", place.body)
            now = time.monotonic()
            meter.seconds.took(now - began)
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
            price, usage = self._price(route, question), result.usage
            cost = (price.prompt * usage[0] + price.completion * usage[1]) / 1e6
            self.ledger.add(self._line(route, question), usage, cost, place.promise)
            meter.prompt_tokens += usage[0]
            meter.completion_tokens += usage[1]
            meter.cost += cost
            route.learn(len(place.body), usage[0])
            if place.entry is not None and route.windows[1] and sum(usage):
                route.windows[1].settle(place.entry, sum(usage))
            return result, cost
        finally:
            if result is None and route.breaker is not None:  # given up: it says nothing
                route.breaker.trying = False
            if result is None and place.promise is not None:  # likewise: it may have been billed
                self.ledger.give_up(place.promise)
            route.in_flight -= 1
            self._freed.set()

    # Small things

    @staticmethod
    def _line(route: Route, question: Question) -> str:
        """Where the ledger counts it."""
        return f"{route.settings.base_url} {route.settings.model or question.model}"

    def _price(self, route: Route, question: Question) -> Price:
        return self.settings.prices.get(route.settings.model or question.model) or Price()

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
