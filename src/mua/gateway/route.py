"""One route at work: whether it may be asked now, how much is on its way there, what it last did.

Invariant: whatever begins is taken from the limits of the route's key before it is sent.
"""

from __future__ import annotations

import math
from typing import Any

from ..transport import LONGEST_WAIT, Fault, Server
from .limits import Breaker, Window
from .settings import BreakerSettings, RouteSettings


class Route:
    """A route at work."""

    def __init__(
        self,
        settings: RouteSettings,
        number: int,
        breaker: BreakerSettings | None,
        who: str,
        key: str | None = None,
    ):
        self.settings = settings
        self.number = number
        self.server = Server(settings.base_url, settings.api_key_env, settings.timeout, who, key)
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
