"""When a route may be asked: so much in a minute, and not while it is broken.

Invariant: in no window is more taken than its limit, but for one request that is larger than all of it.
"""

from __future__ import annotations

import collections
import math

from .settings import BreakerSettings


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
