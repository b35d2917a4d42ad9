"""τ-bench, the first: retail (train, dev, test) and airline (test), with its own rules and exact scores.

Invariant: rewards equal upstream's on the same conversation; see `domain`.
"""

from __future__ import annotations

from ...domain import Domain
from ..store import installed


def make(benchmark: str, part: str) -> Domain:
    """The domain `part` (`retail` or `airline`) of what is installed as `benchmark`."""
    from .domain import tau1_domain

    found = installed(benchmark)
    name = f"{benchmark}/{part}"
    return tau1_domain(found.path, part, name, found.version, found.data_hash)
