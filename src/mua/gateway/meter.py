"""What was asked of endpoints, by role: counts, tokens, cost, seconds.

Invariants:
- A meter only counts; nothing that is decided depends on it.
- Its size does not depend on how much it has counted: a run asks millions of times, and each of its processes
  sends its meters along with every share of episodes.
"""

from __future__ import annotations

import collections
import math
from dataclasses import dataclass, field
from typing import Any


class Seconds(collections.Counter[int]):
    """How many requests took how long, in steps of one per cent from a tenth of a millisecond on."""

    _LEAST, _STEP = 1e-4, math.log(1.01)

    def took(self, seconds: float) -> None:
        """Counts one request."""
        self[max(0, round(math.log(max(seconds, self._LEAST) / self._LEAST) / self._STEP))] += 1

    def percentile(self, percent: float) -> float | None:
        """The nearest rank: what at least `percent` per cent did not exceed, to half a per cent; None when
        nothing was counted."""
        rank, passed = max(1, math.ceil(self.total() * percent / 100)), 0
        for step in sorted(self):
            passed += self[step]
            if passed >= rank:
                return self._LEAST * math.exp(step * self._STEP)
        return None


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
    seconds: Seconds = field(default_factory=Seconds)
    """Of each request that was sent, failures included; without waiting for its turn."""

    def add(self, other: Meter) -> None:
        """Takes in what another one counted."""
        self.requests += other.requests
        self.cached += other.cached
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.cost += other.cost
        self.errors.update(other.errors)
        self.seconds.update(other.seconds)

    def figures(self) -> dict[str, Any]:
        """For records: counts, and percentiles of the seconds (null before the first request)."""
        return {
            "requests": self.requests,
            "cached": self.cached,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "dollars": self.cost,
            "errors": dict(sorted(self.errors.items())),
            **{f"p{p}": self.seconds.percentile(p) for p in (50, 90, 99)},
        }
