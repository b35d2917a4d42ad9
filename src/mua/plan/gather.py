"""Where a plan's conversations come from: a run that was made, a file, or the domain's own programs."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import Config
from ..domains import load
from ..errors import MuaError
from ..trajectory import Trajectory, read_trajectories
from .conversations import CHARACTERS, Conversation, Count, read_conversations
from .rates import SIZES, EndpointRates, Latency, ModelSize, Rates, from_device, read_rates
from .simulate import Plan, make_plan

EXPERT_TASKS = 100
NEWEST = 4_000
"""Trajectories of a run that are looked at: those of its last steps."""
SIGNAL = 0.6
"""Share of groups with different rewards, where nobody knows: about what cold-started models have."""


@dataclass(frozen=True)
class Gathered:
    conversations: list[Conversation]
    signal: float
    assumed: tuple[str, ...]


def from_expert(config: Config, count: Count | None = None) -> Gathered:
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

    found = read_conversations(domain, asyncio.run(play_all()), count, config.model.tool_style)
    return Gathered(
        found,
        SIGNAL,
        (
            f"conversations as the expert program and the agenda user of {domain.name} hold them",
            f"{SIGNAL:.0%} of the groups have a signal",
        ),
    )


def from_trajectories(config: Config, place: Path, count: Count | None = None) -> Gathered:
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
    return Gathered(read_conversations(domain, newest, count, config.model.tool_style), signal, assumed)


def tokens_of(model: Path | None) -> Count | None:
    """Counts by the tokenizer of a model folder; None without one."""
    if model is None or not (model / "tokenizer_config.json").exists():
        return None
    from ..models import load_tokenizer

    tokenizer = load_tokenizer(model)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def seconds_of(run: Path) -> dict[str, float]:
    """Median seconds of a run's steps: rollout, update. Empty where it has none."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return {}
    lines: Sequence[dict[str, float]] = [json.loads(x) for x in path.read_text(encoding="utf-8").splitlines()]
    found = {}
    for name in ("rollout", "update"):
        values = [x[f"seconds_{name}"] for x in lines if x.get(f"seconds_{name}") is not None]
        if values:
            found[name] = statistics.median(values)
    return found


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
    model = (
        source / "models" / "base" if source is not None and (source / "models" / "base").is_dir() else None
    )
    if rates is not None:
        used = read_rates(rates)
    elif device:
        used = from_device(device, _size(config, model), devices, per_replica)
        if config.train_user.kind == "endpoint":
            latency = Latency(median=user_latency, p90=3 * user_latency)
            used = used.model_copy(
                update={
                    "user": EndpointRates(latency=latency),
                    "assumed": (
                        *used.assumed,
                        f"a user's answer takes {latency.median:g} s, one in ten more than "
                        f"{latency.p90:g} s, and 0.01 s a token",
                    ),
                }
            )
    else:
        from .measure import measure

        used = measure(config, model)
        if config.train_user.kind == "endpoint":
            raise MuaError(
                "this machine can be measured, an endpoint's user cannot: write the rates down with "
                "--write-rates (train_user.kind=agenda), add `user: {latency: {median: …, p90: …}}` to them, "
                "and give them as --rates."
            )
    count = tokens_of(model)
    found = from_expert(config, count) if source is None else from_trajectories(config, source, count)
    assumed = found.assumed
    if count is None:
        assumed += (f"a token has {CHARACTERS} characters",)
    plan = make_plan(config, used, found.conversations, signal=found.signal, steps=steps, assumed=assumed)
    return plan, seconds_of(source) if source is not None and source.is_dir() else {}, used


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
