"""BFCL multi turn: upstream's entries, backends and verdicts, in our harness.

`bfcl` is the current version, `bfcl-v3` the last one of V3. Each category is a domain, such as
`bfcl/multi_turn_base`, by function calling; `bfcl/multi_turn_base:prompt` is its prompt mode.

Invariant: nothing of upstream is in mua. Data and backends come from the package that was installed, and
the backends run in a process of their own (`child`).
"""

from __future__ import annotations

import functools

from ...domain import Domain
from ...errors import MuaError
from ..store import installed
from .data import CATEGORIES, Upstream

__all__ = ["CATEGORIES", "Upstream", "make", "upstream"]


def make(benchmark: str, part: str) -> Domain:
    """The domain of a category, with `:prompt` behind it in prompt mode."""
    from .domain import make as make_domain

    category, _, mode = part.partition(":")
    if mode not in ("", "prompt"):
        raise MuaError(f"'{benchmark}/{part}': there is no mode '{mode}'; leave it out, or write ':prompt'.")
    return make_domain(upstream(benchmark), f"{benchmark}/{part}", category, mode == "prompt")


def upstream(benchmark: str) -> Upstream:
    """The installed version. The same object for all its categories, which share processes and data.

    Raises MuaError when it is not installed.
    """
    found = installed(benchmark)
    return _upstream(benchmark, found.data_hash)


@functools.cache
def _upstream(benchmark: str, data_hash: str) -> Upstream:
    return Upstream(installed(benchmark))
