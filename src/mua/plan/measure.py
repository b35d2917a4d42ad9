"""How fast this machine is with a configuration's model: engine, update, and the program's own work.

Invariant: as many processes measure at once as the run would have, so that what they take from one another is
in the rates.
"""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import Config
from ..domain import Domain, Task
from ..engines import Completion, Sampling
from ..errors import MuaError
from ..formats import ChatFormat
from ..trajectory import Trajectory
from .rates import EngineRates, Rates, UpdateRates

BATCHES = (1, 8, 32)
CONTEXTS = (100, 500)
"""Sequences of a decoding step, and tokens in the cache of each."""
SHORT, LONG = 8, 40
"""Tokens generated: the difference is decoding alone."""
EPISODES = 24


def measure(config: Config, model: Path | None = None) -> Rates:
    """Measures this machine, for half a minute with a small model.

    `model` is a folder whose weights stand for the run's; without one, `model.base` is made or loaded.
    """
    from .. import pipeline
    from ..domains import load

    if config.model.engine in ("vllm", "sglang"):
        raise MuaError(
            f"this machine can be measured, {config.model.engine} servers cannot: give --device or --rates."
        )
    domain = load(config.domain)
    if domain.expert is None or domain.agenda_user is None:
        raise MuaError(
            f"domain '{domain.name}' has no expert program and agenda user to measure the program's own work "
            "with; give --rates."
        )
    probe, _ = _model(config, domain, model, ())
    parameters = sum(p.numel() for p in probe.parameters())
    processes = pipeline.processes_for(config, config.train, probe, parameters)
    settings = config.model_dump(mode="json")
    del probe
    arguments = (settings, str(model) if model else None)
    if processes == 1:
        found = [_measure_here(*arguments)]
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            found = pool.starmap(_measure_here, [arguments] * processes)

    def mean(key: str) -> float:
        return sum(f[key] for f in found) / len(found)

    engine = EngineRates(
        forward=mean("forward"),
        sequence=mean("sequence"),
        context=mean("context"),
        prefill=mean("prefill"),
        patience=16,
    )
    return Rates(
        replicas=processes,
        agent=engine,
        user_engine=engine if config.train_user.kind == "local" else None,
        overhead=mean("overhead"),
        update=UpdateRates(tokens=processes * mean("update"), base=mean("optimizer")),
    )


def _model(
    config: Config, domain: Domain, folder: Path | None, talks: Sequence[Trajectory]
) -> tuple[Any, Any]:
    """(model, tokenizer): from the folder, or the configuration's base."""
    from .. import pipeline
    from ..models import load_model

    if folder is None and config.model.base == "tiny":
        return pipeline.tiny_model(config, domain, talks)
    return load_model(folder or config.model.base, config.model.dtype, config.model.device)


def _measure_here(settings: dict[str, Any], folder: str | None) -> dict[str, float]:
    """The rates of one process, with a model of its own."""
    from .. import pipeline
    from ..coldstart.conversations import play_expert
    from ..domains import load

    config = Config.model_validate(settings)
    domain = load(config.domain)
    tasks = [t for t in domain.tasks(config.train_split) if domain.is_scripted(t)][:EPISODES]

    async def played() -> list[Any]:
        return [await play_expert(domain, task, n, config.limits) for n, task in enumerate(tasks)]

    pipeline.set_threads(1)
    conversations = asyncio.run(played())
    model, tokenizer = _model(config, domain, Path(folder) if folder else None, conversations)
    parameters = sum(p.numel() for p in model.parameters())
    pipeline.set_threads(config.threads or (1 if parameters < pipeline.SMALL else pipeline.cores()))
    format = ChatFormat.of(tokenizer, tool_style=config.model.tool_style, thinking=config.model.thinking)
    found = asyncio.run(_engine(config, model))
    found |= {"overhead": asyncio.run(_own_work(config, domain, tasks, conversations, format))}
    return found | _update(config, domain, model, conversations, format)


async def _engine(config: Config, model: Any) -> dict[str, float]:
    """Decoding by batch and context, by least squares; prefill beside it."""
    import numpy as np
    from scipy.optimize import nnls

    from ..engines.local import make_engine

    rng = random.Random(0)
    vocabulary = model.config.get_text_config().vocab_size
    kind = config.model.engine
    assert kind not in ("vllm", "sglang")  # `measure` has looked
    engine = make_engine(model, kind, slots=config.model.slots)
    most = min(config.model.slots, config.train.rollout.concurrency)

    async def together(count: int, context: int, tokens: int, name: str) -> float:
        prompts = [[rng.randrange(vocabulary) for _ in range(context)] for _ in range(count)]
        sampling = Sampling(temperature=1.0, max_tokens=tokens)
        began = time.perf_counter()
        await asyncio.gather(*(engine.generate(p, sampling, f"{name} {n}") for n, p in enumerate(prompts)))
        return time.perf_counter() - began

    rows, seconds, reads = [], [], []
    await together(2, 50, SHORT, "warm")
    room = engine.context - LONG - 1
    for count in sorted({min(b, most) for b in BATCHES}):
        for context in sorted({min(c, room) for c in CONTEXTS}):
            name = f"{count} {context}"
            first = await together(count, context, SHORT, name)
            second = await together(count, context, LONG, name + "'")
            step = max(1e-9, (second - first) / (LONG - SHORT))
            rows.append([1.0, count, count * context / 1000])
            seconds.append(step)
            reads.append((count * context, max(1e-9, first - (SHORT - 1) * step)))
            for n in range(count):
                engine.release(f"{name} {n}")
                engine.release(f"{name}' {n}")
    await engine.close()
    # Each time weighs alike, however short: rounding a small batch's off would spoil the small batches.
    weights = 1 / np.asarray(seconds)
    (forward, sequence, context), _ = nnls(np.asarray(rows) * weights[:, None], np.ones(len(rows)))
    forward = max(float(forward), 1e-9)
    prefill = sum(n for n, _ in reads) / max(1e-9, sum(max(0.0, s - forward) for _, s in reads))
    return {"forward": forward, "sequence": float(sequence), "context": float(context), "prefill": prefill}


class _Scripted:
    """An engine that knows what will be said."""

    def __init__(self, answers: dict[str, list[list[int]]], context: int):
        self.context = context
        self._answers = answers

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, session: str) -> Completion:
        ids = self._answers[session].pop(0)
        await asyncio.sleep(0)
        return Completion(list(ids), [0.0] * len(ids), "stop")

    def release(self, session: str) -> None:
        pass

    async def close(self) -> None:
        pass


async def _own_work(
    config: Config,
    domain: Domain,
    tasks: Sequence[Task],
    conversations: Sequence[Trajectory],
    format: ChatFormat,
) -> float:
    """Seconds of a step of the agent that are not the model's: user program, tools, tokens, records."""
    from ..agents.model import ModelAgent
    from ..episode import play

    answers = {
        str(n): [format.encode_assistant(m) for m in talk.messages if m.role == "assistant"]
        for n, talk in enumerate(conversations)
    }
    make_user = domain.agenda_user
    assert make_user is not None  # `measure` has looked
    engine = _Scripted(answers, 10**9)
    steps = sum(map(len, answers.values()))

    async def one(number: int, task: Any) -> None:
        agent = ModelAgent(
            format, engine, domain.task_tools(task), sampling=Sampling(), session=str(number), seed=number
        )
        user = make_user(task, number)
        await play(domain, task, agent, user, limits=config.limits, seed=number)

    began = time.perf_counter()
    await asyncio.gather(*(one(n, task) for n, task in enumerate(tasks)))
    return (time.perf_counter() - began) / max(1, steps)


def _update(
    config: Config, domain: Domain, model: Any, conversations: Sequence[Trajectory], format: ChatFormat
) -> dict[str, float]:
    """Tokens trained on a second, prefixes once, and seconds of the optimizer's step."""
    import torch

    from ..train.batching import batches_for, denominators
    from ..train.credit import Signals
    from ..train.optimizer import adamw
    from ..train.trainer import accumulator, make_reference

    size = config.train.rollout.group_size
    segments = []
    for talk in conversations[: max(2, 64 // size)]:
        task = domain.task(talk.task_id)
        (segment,) = format.trace_of(talk.messages, domain.task_tools(task)).segments
        # What a group shares is its prompt and opening; behind them each goes its own way.
        shared = next((i for i, m in enumerate(segment.mask) if m), 0)
        for number in range(size):
            rng = random.Random(number)
            ids = [i if k < shared else rng.choice(segment.ids) for k, i in enumerate(segment.ids)]
            segments.append(dataclasses.replace(segment, ids=ids))
    reference = make_reference(model, config.train)
    optimizer = adamw(model, config.train)
    values = [torch.full((sum(s.mask),), 0.1) for s in segments]
    accumulate = accumulator(model, reference, config.train)
    model.eval()
    seconds, read = [], 0
    for _ in range(2):  # the first warms up
        batches = batches_for(model, segments, config.train.micro_batch_tokens)
        read = sum(batch.read for batch in batches)
        began = time.perf_counter()
        accumulate(batches, Signals(values), denominators(batches))
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.grad_clip)
    optimizer.step()
    return {"update": read / seconds[-1], "optimizer": time.perf_counter() - began}
