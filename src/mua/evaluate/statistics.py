"""Success rates with their uncertainty: pass^k, intervals, paired differences.

Invariants:
- The task is the unit of chance: samples of one task are not independent, so intervals resample tasks.
- Same outcomes, same numbers: resampling is seeded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ..errors import MuaError

Outcomes = Mapping[str, Sequence[float]]
"""Task id → rewards of its scored samples (at least one)."""

_DRAWS = 10_000


def succeeded(reward: float) -> bool:
    """τ-bench's rule: |reward − 1| ≤ 1e-6."""
    return abs(reward - 1.0) <= 1e-6


def pass_hat_k(successes: int, samples: int, k: int) -> float:
    """Chance that k samples drawn without replacement from a task's `samples` all succeed: C(c,k)/C(n,k).

    Raises ValueError unless 0 ≤ successes ≤ samples and 1 ≤ k ≤ samples.
    """
    if not 0 <= successes <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass^{k} of {successes} successes in {samples} samples is not defined")
    return math.comb(successes, k) / math.comb(samples, k)


def pass_k(outcomes: Outcomes) -> dict[int, float]:
    """pass^k for each k up to the most samples of a task: the mean over the tasks with k samples or more."""
    counts = [(sum(map(succeeded, rewards)), len(rewards)) for rewards in outcomes.values()]
    out = {}
    for k in range(1, max((n for _, n in counts), default=0) + 1):
        values = [pass_hat_k(c, n, k) for c, n in counts if n >= k]
        out[k] = sum(values) / len(values)
    return out


def pass_k_intervals(outcomes: Outcomes, seed: int = 0) -> dict[int, tuple[float, float]]:
    """95 % interval of each `pass_k`, by `success_rate`'s rule, over the tasks with k samples or more."""
    counts = [(sum(map(succeeded, rewards)), len(rewards)) for rewards in outcomes.values()]
    out = {}
    for k in pass_k(outcomes):
        values = [pass_hat_k(c, n, k) for c, n in counts if n >= k]
        out[k] = _interval(values, k == 1 and all(n == 1 for _, n in counts), seed)
    return out


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; (0, 1) when n is 0."""
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Rounding must not keep the ends from being reached.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return low, 1.0 if successes == n else min(1.0, centre + half)


def bootstrap_mean(values: Sequence[float], seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean of `values`, one a task, from resampling tasks."""
    x_N = np.asarray(values, dtype=np.float64)
    if x_N.size == 0:
        raise ValueError("no values to resample")
    rng = np.random.default_rng(seed)
    means = np.empty(_DRAWS)
    for start in range(0, _DRAWS, 500):  # in parts: a large benchmark must not need a large matrix
        picked_BN = rng.integers(0, x_N.size, size=(500, x_N.size))
        means[start : start + 500] = x_N[picked_BN].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of the mean of independent values, such as one a seed; None with fewer than two.

    Values that all agree give an interval of no width.
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    x_N = np.asarray(values, dtype=np.float64)
    half = float(t.ppf(0.5 + level / 2, x_N.size - 1) * x_N.std(ddof=1) / math.sqrt(x_N.size))
    mean = float(x_N.mean())
    return mean - half, mean + half


def success_rate(outcomes: Outcomes, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """Mean success over tasks, and its 95 % interval.

    Wilson's interval with one sample a task; with several, the bootstrap over tasks. Where every task
    has the same rate, resampling would claim certainty: Wilson over tasks again, which is wide enough for
    whatever rates have that mean.
    """
    rates = list(map(rate, outcomes.values()))
    single = all(len(r) == 1 for r in outcomes.values())
    return mean_success(outcomes), _interval(rates, single, seed)


def mean_success(outcomes: Outcomes) -> float:
    """Mean over tasks of the share of successful samples."""
    return sum(map(rate, outcomes.values())) / len(outcomes)


def _interval(values: Sequence[float], single: bool, seed: int) -> tuple[float, float]:
    if single or len(set(values)) == 1:
        return wilson(sum(values), len(values))
    return bootstrap_mean(values, seed)


@dataclass(frozen=True)
class Difference:
    """How much better b is than a on the same tasks."""

    mean: float
    low: float
    """95 % interval, bootstrap over tasks."""
    high: float
    tasks: int
    """Tasks compared."""
    left_out: int
    """Tasks that only one of the two has scored."""


def paired_difference(a: Outcomes, b: Outcomes, seed: int = 0) -> Difference:
    """Success of `b` minus success of `a`, task by task. Raises MuaError when they share no task."""
    return paired_means({t: rate(x) for t, x in a.items()}, {t: rate(x) for t, x in b.items()}, seed)


def paired_means(a: Mapping[str, float], b: Mapping[str, float], seed: int = 0) -> Difference:
    """Mean of `b` minus mean of `a` over the tasks of both, in the unit of the values, one a task. Raises
    MuaError when there is no such task."""
    both = [task for task in a if task in b]
    if not both:
        raise MuaError(
            "the two evaluations share no task, so they cannot be compared; run both on the same split."
        )
    gaps = [b[t] - a[t] for t in both]
    low, high = bootstrap_mean(gaps, seed)
    return Difference(sum(gaps) / len(gaps), low, high, len(both), len(set(a) ^ set(b)))


def sign_test(better: int, worse: int) -> float:
    """Two-sided p of the exact sign test: how likely so uneven a count is when better and worse are equally
    likely. With one sample a task, McNemar's exact test; 1.0 where no task differs."""
    if better + worse == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(better, better + worse).pvalue)


def rate(rewards: Sequence[float]) -> float:
    """Share of the samples of one task that succeeded."""
    return sum(map(succeeded, rewards)) / len(rewards)
