"""What the MUA-RL paper published (arXiv 2508.18669), to stand beside our own figures.

Invariant: percent, as printed there; the mean of four runs on τ-bench and τ²-bench, agent temperature 0.
"""

from __future__ import annotations

_COLUMNS = (
    "tau1/retail",
    "tau1/airline",
    "tau2/retail",
    "tau2/airline",
    "tau2/telecom",
    "telecom completion rate",
    "bfcl-v3/multi_turn",
    "acebench/agent",
)
_ROWS: dict[str, tuple[float | None, ...]] = {
    "GPT-4.1": (66.5, 42.5, 70.2, 53.0, 38.9, None, 40.5, 86.7),
    "DeepSeek-V3-0324": (70.4, 42.4, 64.7, 37.0, 32.9, None, 29.8, 74.2),
    "Qwen3-235B-A22B": (65.2, 32.0, 64.9, 36.0, 24.6, None, 30.0, 71.7),
    "Qwen3-8B": (40.0, 11.0, 41.0, 12.5, 19.1, 22.9, 11.8, 39.2),
    "8B cold start": (36.7, 12.0, 31.4, 16.0, 9.0, 12.1, None, None),
    "MUA-RL-8B": (56.5, 29.5, 49.8, 19.0, 21.8, 25.2, 14.6, 53.3),
    "Qwen3-14B": (46.9, 13.0, 43.1, 14.8, 29.9, 46.6, 17.6, 60.0),
    "14B cold start": (50.8, 23.0, 53.7, 24.0, 23.5, 32.9, None, None),
    "MUA-RL-14B": (65.9, 42.0, 66.0, 38.0, 33.4, 54.3, 25.3, 78.3),
    "Qwen3-32B": (47.6, 18.5, 50.2, 23.5, 24.8, 23.7, 19.6, 72.5),
    "32B cold start": (58.9, 36.0, 58.2, 31.1, 19.3, 21.6, 26.0, None),
    "32B RL without cold start": (None, None, 61.6, 41.0, 28.1, None, 19.3, None),
    "MUA-RL-32B": (72.6, 46.5, 67.3, 45.4, 28.3, 45.1, 28.4, 82.5),
}

COMPLETION = "telecom completion rate"
"""The column of criteria met over criteria in all."""


def rows(column: str) -> dict[str, float]:
    """The published percentages of a column (`tau2/retail`, …) by model; empty for an unknown one.

    The paper evaluated the task files of its time: `tau2@0.2/retail` has the rows of `tau2/retail`.
    """
    benchmark, _, part = column.partition("/")
    name = f"{benchmark.partition('@')[0]}/{part}" if part else column
    if name not in _COLUMNS:
        return {}
    place = _COLUMNS.index(name)
    return {model: value for model, row in _ROWS.items() if (value := row[place]) is not None}
