"""Engines: token ids in, token ids and log-probabilities out.

Invariant: what an engine samples for a request depends on the prompt, the sampling settings (its seed
included) and the weights; not on which other requests happen to be in flight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Sampling:
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    max_tokens: int = 1024
    stop_ids: tuple[int, ...] = ()
    """Generation ends after any of these; the stop id is part of the completion."""
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    token_ids: list[int]
    logprobs: list[float]
    """Log-probability of each id under the temperature-scaled distribution, before top_p; same length."""
    stop_reason: Literal["stop", "length"]


class Engine(Protocol):
    """A generator of tokens. Many `generate` calls run at once and are batched."""

    context: int
    """Most tokens, prompt and completion together, that one request may hold."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, session: str) -> Completion:
        """Samples a continuation.

        `session` is a sticky key: a later call of the same session whose prompt extends the ids seen
        so far reuses their KV cache. Raises InfrastructureError when no completion can be had, and
        ValueError when the prompt leaves no room in the context.
        """
        ...

    def release(self, session: str) -> None:
        """Forgets what is cached for the session. Unknown sessions are fine."""
        ...

    async def close(self) -> None: ...
