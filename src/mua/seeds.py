"""Seeds for every part of a run, derived by hash from the run's one seed.

Invariant: a derived seed depends on its parts only, never on the order in which seeds are asked for, so
that a retry or a failure elsewhere cannot change anybody's random numbers.
"""

from __future__ import annotations

import hashlib
import json


def derive_seed(*parts: int | str) -> int:
    """A seed of 63 bits from its parts; `derive_seed(1, "a")` and `derive_seed("1", "a")` differ."""
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
