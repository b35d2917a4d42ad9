"""Benchmarks as domains: upstream's data and scoring, in our harness.

A name such as `tau2/retail` is a benchmark that is installed (`store`) and a part of it.

Invariant: nothing of a benchmark is imported before it is asked for by name; what is missing ends as a
`MuaError` that says how to install it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..domain import Domain
from ..errors import MuaError
from .store import cache_folder, installed

MAKERS: dict[str, str] = {
    "tau2": "mua.benchmarks.tau2:make",
    "tau2@0.2": "mua.benchmarks.tau2:make",
    "tau1": "mua.benchmarks.tau1:make",
    "bfcl": "mua.benchmarks.bfcl:make",
    "bfcl-v3": "mua.benchmarks.bfcl:make",
    "acebench": "mua.benchmarks.acebench:make",
    "acebench-strict": "mua.benchmarks.acebench:make",
}
"""Benchmark → "module:function"; the function is given (benchmark, part) and returns the Domain."""

EXTRAS: dict[str, str] = {
    "tau2": "mua.benchmarks.generate:attach",
    "tau2@0.2": "mua.benchmarks.generate:attach",
}
"""Benchmark → "module:function"; the function is given the Domain and returns it with what we have beyond
upstream's: generated tasks, an expert and a scripted user for these."""

_BFCL = (
    "multi_turn",
    "multi_turn_base",
    "multi_turn_miss_func",
    "multi_turn_miss_param",
    "multi_turn_long_context",
)
_ACEBENCH = ("multi_turn_en", "multi_step_en", "agent_en", "multi_turn_zh", "multi_step_zh", "agent_zh")

PARTS: dict[str, tuple[str, ...]] = {
    "tau2": ("retail", "airline", "telecom", "telecom-solo"),
    "tau2@0.2": ("retail", "airline", "telecom", "telecom-solo"),
    "tau1": ("retail", "airline"),
    "bfcl": _BFCL,
    "bfcl-v3": _BFCL,
    "acebench": _ACEBENCH,
    "acebench-strict": _ACEBENCH,
}
"""The parts of each benchmark, each of them a domain; `:MODE` may follow where it has several modes."""

SCORERS: dict[str, str] = {
    "tau2": "mua.benchmarks.tau2.results:score",
    "tau2@0.2": "mua.benchmarks.tau2.results:score",
    "tau1": "mua.benchmarks.tau1.results:score",
    "bfcl": "mua.benchmarks.bfcl.results:score",
    "bfcl-v3": "mua.benchmarks.bfcl.results:score",
    "acebench": "mua.benchmarks.acebench.results:score",
    "acebench-strict": "mua.benchmarks.acebench.results:score",
}
"""Benchmark → "module:function" that grades a file in upstream's formats: (benchmark, path, write) → exit
status, as `evaluate.score.score`."""

INSTALLED_AS: dict[str, str] = {"acebench-strict": "acebench"}
"""Benchmarks that are another reading of what is installed under another name."""


def _halves(name: str) -> tuple[str, str]:
    benchmark, _, part = name.partition("/")
    return benchmark, part


def is_benchmark(name: str) -> bool:
    """True for `BENCHMARK/PART` with a benchmark that mua knows."""
    return name.partition("/")[0] in MAKERS and "/" in name and not name.endswith(".py")


def names() -> list[str]:
    """The domains of all benchmarks, installed or not."""
    return [f"{benchmark}/{part}" for benchmark, parts in PARTS.items() for part in parts]


def load(name: str) -> Domain:
    """The domain `BENCHMARK/PART`, or `BENCHMARK/PART+OPTION…` with strict options (`strict.OPTIONS`); the
    same one each time.

    Raises MuaError for what is unknown or not installed.
    """
    # `BENCHMARK+OPTION/PART` too, which is how a file is scored with options.
    (benchmark, _, given), (part, _, options) = (x.partition("+") for x in _halves(name))
    known = PARTS.get(benchmark, (part,))
    if benchmark not in MAKERS or (part not in known and part.partition(":")[0] not in known):
        near = [n for n in names() if n.startswith(f"{benchmark}/")] or names()
        raise MuaError(f"there is no benchmark '{name}'; there are {', '.join(near)}.")
    installed(INSTALLED_AS.get(benchmark, benchmark))
    return _load(benchmark, part, str(cache_folder()), options or given)


def reported_split(domain: Domain) -> str:
    """The split whose score is reported: all tasks where upstream has it so, else the test split."""
    return next((s for s in ("base", "all", "test") if s in domain.splits), domain.splits[0])


def score(benchmark: str, path: Path, write: Callable[[str], object] = print, **how: Any) -> int:
    """Grades a file of stored conversations of a benchmark in `SCORERS` (`tau2+rollback`: with strict
    options); returns the exit status.

    `how` is what that benchmark's scorer takes beside. Raises MuaError for anything else.
    """
    plain = benchmark.partition("+")[0]
    installed(INSTALLED_AS.get(plain, plain))
    module, _, function = SCORERS[plain].partition(":")
    scorer = getattr(importlib.import_module(module), function)
    if unknown := [name for name in how if name not in inspect.signature(scorer).parameters]:
        raise MuaError(f"--{unknown[0]} means nothing for the files of '{benchmark}'; leave it out.")
    return scorer(benchmark, path, write, **how)


@functools.cache
def _load(benchmark: str, part: str, cache: str, options: str) -> Domain:
    if options:
        strict, parse = (_function(f"mua.benchmarks.strict:{name}") for name in ("strict", "parse"))
        return strict(_load(benchmark, part, cache, ""), parse(options))
    domain = _function(MAKERS[benchmark])(benchmark, part)
    return _function(EXTRAS[benchmark])(domain) if benchmark in EXTRAS else domain


def _function(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)
