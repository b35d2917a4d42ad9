"""ACEBench Agent: two categories in two languages, with upstream's verdicts or without its faults.

`acebench/PART` reproduces upstream, `acebench-strict/PART` mends the faults that docs/benchmarks-acebench.md
lists. The five worlds are our own implementation; entries and answers are read from what is installed.

Invariant: nothing is evaluated that a model wrote.
"""

from __future__ import annotations

from ...domain import Domain
from ...errors import MuaError
from ..store import installed
from .data import Mode
from .facts import Language

_MODES: dict[str, tuple[Mode, ...]] = {
    "multi_turn": ("multi_turn",),
    "multi_step": ("multi_step",),
    "agent": ("multi_turn", "multi_step"),
}
_LANGUAGES: tuple[Language, ...] = ("en", "zh")

PARTS = tuple(f"{part}_{language}" for language in _LANGUAGES for part in _MODES)
"""`agent_*` has the entries of both categories; its agent score is what papers report."""


def make(benchmark: str, part: str) -> Domain:
    """The domain `BENCHMARK/PART`. Raises MuaError when the benchmark is not installed."""
    from .domain import make as made

    for language in _LANGUAGES:
        for name, modes in _MODES.items():
            if part == f"{name}_{language}":
                strict = benchmark == "acebench-strict"
                return made(f"{benchmark}/{part}", modes, language, strict, installed("acebench"))
    raise MuaError(f"{benchmark} has no part '{part}'; it has {', '.join(PARTS)}.")
