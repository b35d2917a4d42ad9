"""What others published, to stand beside our own figures: the MUA-RL paper (arXiv 2508.18669), and what
measured its models again or went on from it.

Invariant: percent, as printed there; nothing stands beside a figure of ours without the differences in how
the two were measured (`differences`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

_OTHERS: dict[str, dict[str, float]] = {
    # A recipe that tunes the user model first, then GRPO on synthetic tasks (arXiv 2601.22607).
    "tau2/airline": {"arXiv 2601.22607": 73.0},
    "tau2/telecom": {"arXiv 2601.22607": 98.3},
    # The released models, measured by a third party; of which version is not said.
    "bfcl-v3/multi_turn": {"Qwen3-8B, third party": 39.38, "MUA-RL-8B, third party": 24.75},
    # The paper's own, by category.
    "bfcl-v3/multi_turn_base": {"MUA-RL-32B": 42.0},
    "bfcl-v3/multi_turn_miss_func": {"MUA-RL-32B": 20.0},
    "bfcl-v3/multi_turn_miss_param": {"MUA-RL-32B": 30.0},
    "bfcl-v3/multi_turn_long_context": {"MUA-RL-32B": 21.5},
    "acebench/multi_turn": {"MUA-RL-32B": 70.0},
    "acebench/multi_step": {"MUA-RL-32B": 95.0},
}

_TAU: dict[str, Any] = {"user": "gpt-4.1", "samples": 4, "temperature": 0.0}
_PROTOCOL: dict[str, dict[str, Any]] = {
    "tau1/retail": {**_TAU, "n": 115},
    "tau1/airline": {**_TAU, "n": 50},
    "tau2/retail": {**_TAU, "n": 114},
    "tau2/airline": {**_TAU, "n": 50},
    "tau2/telecom": {**_TAU, "n": 114},
    "bfcl-v3/multi_turn": {"temperature": 0.0, "n": 800},
    "acebench/agent": {"temperature": 0.0, "n": 50},
}
"""How the paper measured, as far as it is known: its user, runs, agent temperature, tasks."""


def rows(column: str) -> dict[str, float]:
    """The published percentages of a column (`tau2/retail`, …) by model; empty for an unknown one."""
    found = {}
    if column in _COLUMNS:
        place = _COLUMNS.index(column)
        found = {model: value for model, row in _ROWS.items() if (value := row[place]) is not None}
    return {**found, **_OTHERS.get(column, {})}


def columns(domain: str) -> dict[str, dict[str, float]]:
    """The published rows of a benchmark's domain by measure: `success`, or a figure of `Domain.summary`;
    empty for other domains. Another version, mode or option of a benchmark has the same rows."""
    column = _column(domain)
    measure = {"bfcl-v3/multi_turn": "mean_of_categories", "acebench/agent": "agent_score"}.get(
        column, "success"
    )
    out = {measure: rows(column)}
    if column == "tau2/telecom":
        out["task_completion_rate"] = rows(COMPLETION)
    return {measure: found for measure, found in out.items() if found}


def differences(domain: str, about: Mapping[str, Any]) -> list[str]:
    """In what an evaluation was measured otherwise than the paper's rows, in words.

    `about` has the evaluation's `user`, `samples`, `temperature`, `n` (tasks) and, if any, `faults` and
    `benchmark_version`.
    """
    column = _column(domain)
    theirs = _PROTOCOL.get(column, {})
    out = []
    for key, words in (("user", "user"), ("temperature", "agent temperature")):
        ours = about.get(key)
        if key in theirs and _plain(ours) != theirs[key]:
            shown = "not recorded" if ours is None else f"{ours:g}" if isinstance(ours, float) else ours
            there = theirs[key] if key == "user" else f"{theirs[key]:g}"
            out.append(f"{words} {shown}, the paper's {there}")
    if "samples" in theirs and about.get("samples") != theirs["samples"]:
        out.append(
            f"episodes a task {about.get('samples')}, the paper's is the mean of {theirs['samples']} runs"
        )
    if "n" in theirs and about.get("n") != theirs["n"]:
        out.append(f"{about.get('n')} tasks, the paper's are {theirs['n']}")
    benchmark, _, part = domain.partition("/")
    version = f" ({about['benchmark_version']})" if about.get("benchmark_version") else ""
    if benchmark == "tau2" and column in ("tau2/retail", "tau2/airline"):
        out.append(f"today's task files{version}, the paper's are those of tau2@0.2")
    if benchmark == "bfcl":
        out.append(f"today's BFCL{version}, the paper's is most likely that of bfcl-v3")
    if benchmark == "acebench-strict":
        out.append("upstream's faults are mended (acebench-strict), the paper's score is upstream's")
    if "+" in part:
        out.append(f"strict options ({part.partition('+')[2]}), the paper's score is upstream's")
    if about.get("faults") not in (None, "none", {}):
        out.append("the environment misbehaves (faults), the paper's does not")
    return out


def _plain(value: Any) -> Any:
    return value.removeprefix("llm:") if isinstance(value, str) else value


def _column(domain: str) -> str:
    """The column of a domain: without version, mode, options and language."""
    benchmark, _, part = domain.partition("/")
    part = part.partition("+")[0].partition(":")[0]
    name = benchmark.partition("@")[0].removesuffix("-strict")
    if name == "acebench":
        part = part.rpartition("_")[0] or part
    return f"{'bfcl-v3' if name == 'bfcl' else name}/{part}" if part else domain
