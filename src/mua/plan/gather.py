"""Where a plan's conversations come from: a run that was made, a file, or the domain's own programs."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Config
from ..domains import load
from ..errors import MuaError
from ..trajectory import Trajectory, read_trajectories
from .conversations import CHARACTERS, Conversation, Tokens, read_conversations
from .rates import SIZES, EndpointRates, Latency, ModelSize, Rates, from_device, read_rates
from .steps import Plan, make_plan

EXPERT_TASKS = 100
MOST_SECONDS = 86_400
"""That an answer may take."""
NEWEST = 4_000
"""Trajectories of a run that are looked at: those of its last steps."""
SIGNAL = 0.6
"""Share of groups with different rewards, where nobody knows: about what cold-started models have."""


@dataclass(frozen=True)
class Gathered:
    conversations: list[Conversation]
    signal: float
    assumed: tuple[str, ...]


def from_expert(config: Config, tokens: Tokens | None = None) -> Gathered:
    """Conversations of the domain's expert program with its agenda user.

    Raises MuaError when the domain has none: a run or a file is needed then.
    """
    from ..coldstart.conversations import play_expert

    domain = load(config.domain)
    tasks = [t for t in domain.tasks(config.train_split) if domain.is_scripted(t)][:EXPERT_TASKS]
    if domain.expert is None or domain.agenda_user is None or not tasks:
        raise MuaError(
            f"domain '{domain.name}' has no programs that play its '{config.train_split}' tasks, so nobody "
            "knows how long its conversations are; name a run or a file of trajectories: --from RUN."
        )

    async def play_all() -> list[Trajectory]:
        return [await play_expert(domain, task, n, config.limits) for n, task in enumerate(tasks)]

    found = read_conversations(domain, asyncio.run(play_all()), tokens, config.model.tool_style)
    return Gathered(
        found,
        SIGNAL,
        (
            f"conversations as the expert program and the agenda user of {domain.name} hold them",
            f"{SIGNAL:.0%} of the groups have a signal",
        ),
    )


def from_trajectories(config: Config, place: Path, tokens: Tokens | None = None) -> Gathered:
    """Conversations of a run's training steps, or of a file of trajectories.

    The share of groups with a signal is that of the episodes of one task and step.
    """
    path = place / "trajectories.jsonl" if place.is_dir() else place
    if not path.is_file():
        raise MuaError(f"{path} is not there; name a run that has trained, or a file of trajectories.")
    domain = load(config.domain)
    newest = list(read_trajectories(path))[-NEWEST:]
    rewards: dict[tuple[str, int], list[float]] = defaultdict(list)
    for t in newest:
        if t.reward is not None:
            rewards[t.task_id, t.step].append(t.reward)
    groups = [r for r in rewards.values() if len(r) > 1]
    signal = sum(len(set(r)) > 1 for r in groups) / len(groups) if groups else SIGNAL
    assumed = () if groups else (f"{SIGNAL:.0%} of the groups have a signal",)
    try:
        found = read_conversations(domain, newest, tokens, config.model.tool_style)
    except MuaError as exc:
        raise MuaError(f"{path}: {exc}") from None
    return Gathered(found, signal, assumed)


def tokenizer_of(model: Path | None) -> Tokens | None:
    """By the tokenizer of a model folder; None without one."""
    if model is None or not (model / "tokenizer_config.json").exists():
        return None
    from ..models import load_tokenizer

    tokenizer = load_tokenizer(model)
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def seconds_of(run: Path) -> dict[str, float]:
    """Median seconds of a run's steps: `rollout`, `update`; and the mean of its evaluations: `evaluation`.
    What it has not done is missing."""
    found = {}
    lines = _json_lines(run / "metrics.jsonl")
    for name in ("rollout", "update"):
        values = [x[f"seconds_{name}"] for x in lines if x.get(f"seconds_{name}") is not None]
        if values:
            found[name] = statistics.median(values)
    times = [json.loads(p.read_text(encoding="utf-8")).get("seconds") for p in _evaluations(run)]
    if times and all(times):
        found["evaluation"] = statistics.fmean(times)
    return found


def _evaluations(run: Path) -> list[Path]:
    """Figures of a run's finished evaluations; its conversations stand beside them."""
    return sorted(p for p in run.glob("eval/*.json") if p.with_suffix(".jsonl").is_file())


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """A run may be writing the file: half a line at its end is no line."""
    if not path.is_file():
        return []
    out = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            out.append(json.loads(text))
        except ValueError:
            break
    return out


def plan_for(
    config: Config,
    source: Path | None,
    *,
    rates: Path | None = None,
    device: str = "",
    devices: int = 8,
    per_replica: int = 1,
    user_latency: float = 1.5,
    steps: int = 5,
) -> tuple[Plan, dict[str, float], Rates]:
    """(plan, measured seconds of the run it was made from, rates) for `mua plan`."""
    if rates is not None and device:
        raise MuaError("--rates and --device both say how fast the machines are; give one of them.")
    run = source if source is not None and source.is_dir() else None
    model = run / "models" / "base" if run is not None and (run / "models" / "base").is_dir() else None
    domain = load(config.domain)
    used = _given_rates(config, model, rates, device, devices, per_replica, user_latency)
    tokens = tokenizer_of(model)
    found = from_expert(config, tokens) if source is None else from_trajectories(config, source, tokens)
    if used is None:
        from .measure import measure

        used = measure(config, found.conversations, found.signal, model)
        if config.train_user.kind == "endpoint" or config.eval_user.kind == "endpoint":
            used = _with_user(used, user_latency)
    assumed = found.assumed
    if tokens is None:
        assumed += (f"a token has {CHARACTERS} characters",)
    evaluated = []
    for path in _evaluations(run) if run is not None else ():
        played = read_trajectories(path.with_suffix(".jsonl"))
        evaluated.append(read_conversations(domain, played, tokens, config.model.tool_style))
    if not evaluated:
        assumed += ("conversations of an evaluation are like those of training",)
    plan = make_plan(
        config,
        used,
        found.conversations,
        signal=found.signal,
        steps=steps,
        assumed=assumed,
        eval_tasks=len(domain.tasks(config.eval.split)),
        evaluated=evaluated,
    )
    return plan, seconds_of(run) if run is not None else {}, used


def _given_rates(
    config: Config,
    model: Path | None,
    rates: Path | None,
    device: str,
    devices: int,
    per_replica: int,
    user_latency: float,
) -> Rates | None:
    """Those of a file or a data sheet; None: measure them."""
    if rates is not None:
        return read_rates(rates)
    if not device:
        return None
    reference = bool(config.train.grpo.kl_coefficient or config.train.measure_kl)
    size = _size(config, model)
    found = from_device(device, size, devices, per_replica, reference=reference)
    endpoint = "endpoint" in (config.train_user.kind, config.eval_user.kind)
    return _with_user(found, user_latency) if endpoint else found


def _with_user(rates: Rates, latency: float) -> Rates:
    """With an endpoint that answers as most do."""
    if not 0 <= latency <= MOST_SECONDS:
        raise MuaError(f"--user-latency {latency:g}: give the seconds of an answer, 0 to {MOST_SECONDS:,}.")
    user = EndpointRates(latency=Latency(median=latency, p90=3 * latency))
    words = (
        f"a user's answer takes {latency:g} s, one in ten more than {3 * latency:g} s, and "
        f"{1 / user.tokens:g} s a token"
    )
    return rates.model_copy(update={"user": user, "assumed": (*rates.assumed, words)})


def _size(config: Config, model: Path | None) -> ModelSize:
    """Of the model to train: known by name, or read from its folder."""
    name = Path(config.model.base).name.lower()
    if name in SIZES:
        return SIZES[name]
    folder = model or Path(config.model.base)
    if not (folder / "config.json").is_file():
        raise MuaError(
            f"the size of '{config.model.base}' is not known: set model.base to its folder, or to one of "
            f"{', '.join(SIZES)}; or give --rates."
        )
    from transformers import AutoConfig

    return ModelSize.of(AutoConfig.from_pretrained(folder))
