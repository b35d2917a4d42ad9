"""How fast this machine is with a configuration's model: engine, update, and the program's own work.

Invariants:
- As many processes measure at once as the run would have, so that what they take from one another is in the
  rates; what one process does while the others rest is measured so, too.
- The update is the trainer's: its micro-batches, its workers, its optimizer, on conversations of the lengths
  that are planned with.
"""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import os
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import numpy as np

from ..config import Config
from ..domain import Domain, Task
from ..domains import load
from ..engines import Completion, Sampling
from ..errors import MuaError
from ..formats import ChatFormat
from ..seeds import derive_seed
from ..trajectory import Trajectory
from .conversations import Conversation
from .groups import Drawn, Pools, segments, tokens_of
from .rates import EngineRates, PlayRates, Rates, UpdateRates

BATCHES = (1, 8, 32)
"""Sequences of a decoding step."""
SHORT, LONG = 8, 40
"""Tokens generated."""
OWN = 64
"""Tokens of a prompt that no other has."""
EPISODES = 24
"""Played for the program's own work."""
UPDATES = (0.25, 1.0, 0.25, 1.0)
"""Shares of a step's groups in the updates that are timed, behind one that warms up."""
MOST_GROUPS = 64
"""Of a measured update."""
LONG_ENOUGH = 10.0
"""Seconds after which no update is timed a second time."""
SLOWEST_START = 600.0
"""Seconds in which all processes must have made their models."""
PATIENCE = 16
"""The slot engine's."""
SECONDS = "seconds "
"""Begins the names of what the processes of a measured update tell."""


def measure(
    config: Config, conversations: Sequence[Conversation], signal: float, model: Path | None = None
) -> Rates:
    """Measures this machine, for half a minute with a small model.

    The `conversations` that are planned with say how long contexts and updates are. `model` is a folder whose
    weights stand for the run's; without one, `model.base` is made or loaded. Raises MuaError where the engine
    is elsewhere, or the domain has no programs to measure with.
    """
    from .. import pipeline

    if config.model.engine in ("vllm", "sglang"):
        raise MuaError(
            f"this machine can be measured, {config.model.engine} servers cannot: give --device or --rates."
        )
    domain = load(config.domain)
    if domain.expert is None or domain.agenda_user is None:
        raise MuaError(
            f"domain '{domain.name}' has no expert program and agenda user to measure the program's own work "
            "with; give --device or --rates."
        )
    folder = str(model) if model else None
    probe, _ = _model(config, domain, folder, ())
    parameters = sum(p.numel() for p in probe.parameters())
    processes = pipeline.processes_for(config, config.train, probe, parameters)
    del probe
    settings = config.model_dump(mode="json")
    arguments = (settings, folder, _contexts(conversations))
    context = multiprocessing.get_context("spawn")
    local = "local" in (config.train_user.kind, config.eval_user.kind)

    def play_rates(found: Sequence[Mapping[str, float]]) -> PlayRates:
        mean = {key: sum(f[key] for f in found) / len(found) for key in found[0]}
        overhead = mean.pop("overhead")
        engine = EngineRates(**mean, patience=PATIENCE)
        user = engine if local else None
        return PlayRates(replicas=len(found), agent=engine, user_engine=user, overhead=overhead)

    if processes == 1:
        together, alone = play_rates([_playing(*arguments)]), None
    else:
        # A barrier, so that each process takes one share, and all begin at the same moment.
        barrier = context.Barrier(processes, timeout=SLOWEST_START)
        try:
            with ProcessPoolExecutor(processes, context, _meet_at, (barrier,)) as pool:
                shares = [pool.submit(_playing, *arguments) for _ in range(processes)]
                together = play_rates([share.result() for share in shares])
                alone = play_rates([pool.submit(_playing, *arguments, False).result()])
        except (BrokenProcessPool, BrokenBarrierError):
            raise MuaError(
                f"one of {processes} processes that measure this machine ended by itself (usually for "
                "memory), or was not ready in time; set train.processes=1, or give --rates."
            ) from None
    groups = _planned_groups(config, conversations, signal)
    update = _update(settings, folder, processes, groups)
    return Rates(**together.model_dump(), evaluation=alone, update=update)


def _contexts(conversations: Sequence[Conversation]) -> tuple[int, int]:
    """A short and a long context of the agent's steps: nine of ten are longer, and shorter."""
    found = []
    for talk in conversations:
        length = 0
        for move in talk.moves:
            found.append(length + move.new)
            length += move.new + move.sampled
    found.sort()
    short, long = (found[int(share * (len(found) - 1))] for share in (0.1, 0.9))
    return short, max(long, 2 * short)


def _planned_groups(config: Config, conversations: Sequence[Conversation], signal: float) -> list[Drawn]:
    """As many groups as a step trains on at best; those without signal only where no other is there."""
    rollout = config.train.rollout
    pools = Pools(conversations, rollout.group_size, signal)
    count = min(rollout.groups, MOST_GROUPS)
    drawn = pools.draw(4 * count, np.random.default_rng(derive_seed("measure", config.seed)))
    return sorted(drawn, key=lambda group: not group.signal)[:count]


def _talks(config: Config, domain: Domain) -> tuple[list[Task], list[Trajectory]]:
    """Some tasks, and how the domain's programs play them."""
    from ..coldstart.conversations import play_expert

    tasks = [t for t in domain.tasks(config.train_split) if domain.is_scripted(t)][:EPISODES]

    async def played() -> list[Trajectory]:
        return [await play_expert(domain, task, n, config.limits) for n, task in enumerate(tasks)]

    return tasks, asyncio.run(played())


def _model(config: Config, domain: Domain, folder: str | None, talks: Sequence[Trajectory]) -> Any:
    """(model, tokenizer): from the folder, or the configuration's base."""
    from .. import pipeline
    from ..models import load_model

    if folder is None and config.model.base == "tiny":
        return pipeline.tiny_model(config, domain, talks)
    return load_model(folder or config.model.base, config.model.dtype, config.model.device)


def _set_threads(config: Config, model: Any) -> None:
    """As the run does."""
    from .. import pipeline

    parameters = sum(p.numel() for p in model.parameters())
    pipeline.set_threads(config.threads or (1 if parameters < pipeline.SMALL else pipeline.cores()))


# ---------------------------------------------------------------- playing

_meeting: list[Any] = []
"""The barrier of a process that others measure beside."""


def _meet_at(barrier: Any) -> None:
    _meeting.append(barrier)


def _playing(
    settings: dict[str, Any], folder: str | None, contexts: tuple[int, int], meet: bool = True
) -> dict[str, float]:
    """The rates of one process, with a model of its own."""
    config = Config.model_validate(settings)
    domain = load(config.domain)
    tasks, talks = _talks(config, domain)
    model, tokenizer = _model(config, domain, folder, talks)
    _set_threads(config, model)
    format = ChatFormat.of(tokenizer, tool_style=config.model.tool_style, thinking=config.model.thinking)
    if meet and _meeting:
        _meeting[0].wait()
    found = asyncio.run(_engine(config, model, contexts))
    return found | {"overhead": asyncio.run(_own_work(config, domain, tasks, talks, format))}


async def _engine(config: Config, model: Any, contexts: tuple[int, int]) -> dict[str, float]:
    """Seconds of a forward, of each sequence in it, of each 1,000 tokens of cache that it reads, and of each
    token of a prompt, fitted to the times of some batches."""
    from scipy.optimize import nnls

    from ..engines.local import make_engine

    rng = random.Random(0)
    vocabulary = model.config.get_text_config().vocab_size
    kind = config.model.engine
    assert kind not in ("vllm", "sglang")  # `measure` has looked
    engine = make_engine(model, kind, slots=config.model.slots)
    most = min(config.model.slots, max(config.train.rollout.concurrency, config.eval.concurrency))

    rows: list[list[float]] = []
    seconds: list[float] = []

    async def together(count: int, context: int, tokens: int) -> None:
        """Prompts that share all but their last tokens, as those of one domain do."""
        shared = [rng.randrange(vocabulary) for _ in range(max(0, context - OWN))]
        prompts = [
            shared + [rng.randrange(vocabulary) for _ in range(min(OWN, context))] for _ in range(count)
        ]
        sampling = Sampling(temperature=1.0, max_tokens=tokens)
        stats: Any = getattr(engine, "stats", None)  # the slot engine counts
        before = copy.copy(stats)
        began = time.perf_counter()
        await asyncio.gather(*(engine.generate(p, sampling, str(n)) for n, p in enumerate(prompts)))
        seconds.append(time.perf_counter() - began)
        for n in range(count):
            engine.release(str(n))
        forwards, read = tokens, count * context
        if stats is not None:
            forwards = stats.forwards - before.forwards
            read = stats.prefilled - before.prefilled
        # The first token comes with the prompt.
        sequences = count * (tokens - 1)
        rows.append([forwards, sequences, sequences * context / 1000, read])

    await together(2, 50, SHORT)
    room = max(1, engine.context - LONG - 1)
    for count in sorted({min(b, most) for b in BATCHES}):
        for context in sorted({min(c, room) for c in contexts}):
            for tokens in (SHORT, LONG):
                await together(count, context, tokens)
    await engine.close()
    # Each time weighs alike, however short: rounding a small batch's off would spoil the small batches.
    weighted = np.asarray(rows[1:]) / np.asarray(seconds[1:])[:, None]
    (forward, sequence, context, token), _ = nnls(weighted, np.ones(len(weighted)))
    return {
        "forward": max(float(forward), 1e-9),
        "sequence": float(sequence),
        "context": float(context),
        "prefill": 1 / max(float(token), 1e-12),
    }


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


# ---------------------------------------------------------------- updating


def _trainee(settings: dict[str, Any], folder: str | None) -> tuple[Config, Any, Any, Any]:
    """(config, model as it is trained, reference, the trainer's accumulator, which tells its seconds)."""
    from ..models import with_adapters
    from ..train.activations import recompute
    from ..train.trainer import accumulator, make_reference

    config = Config.model_validate(settings)
    domain = load(config.domain)
    model, _ = _model(config, domain, folder, _talks(config, domain)[1])
    _set_threads(config, model)
    lora = config.model.lora
    if lora is not None:
        model = with_adapters(model, lora.rank, lora.alpha, lora.targets, 0)
    if config.model.gradient_checkpointing:
        recompute(model, True)
    model.eval()
    reference = make_reference(model, config.train)
    inner = accumulator(model, reference, config.train)

    def accumulate(batches: Any, signals: Any, totals: Any) -> dict[str, float]:
        began = _now(model)
        inner(batches, signals, totals)
        return {f"{SECONDS}{os.getpid()}": _now(model) - began}

    return config, model, reference, accumulate


def _now(model: Any) -> float:
    """The time at which the model's device has done all that it was asked."""
    if model.device.type == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def _update(
    settings: dict[str, Any], folder: str | None, processes: int, groups: Sequence[Drawn]
) -> UpdateRates:
    """Updates of some sizes, with the workers of a run, taken apart into what each process and what the main
    one alone has to do."""
    import torch
    from scipy.optimize import nnls

    from ..train.batching import Room, batches_for, denominators, layout
    from ..train.credit import Signals
    from ..train.optimizer import adamw
    from ..train.workers import Workers

    config, model, _, accumulate = _trainee(settings, folder)
    optimizer = adamw(model, config.train)
    vocabulary = model.config.get_text_config().vocab_size
    workers = None
    inside, outside = [], []
    try:
        if processes > 1:
            workers = Workers(processes, _update_worker, (settings, folder))
            workers.load(model)
        start = time.perf_counter()
        for number, share in enumerate((UPDATES[0], *UPDATES)):
            if number > 2 and time.perf_counter() - start > LONG_ENOUGH:
                break
            some = groups[: max(1, round(share * len(groups)))]
            found = segments(some, vocabulary)
            began = _now(model)
            signals = Signals([torch.full((sum(s.mask),), 0.1) for s in found])
            batches = batches_for(model, found, config.train.micro_batch_tokens, processes)
            totals = denominators(batches)
            if workers is None:
                sums = accumulate(batches, signals, totals)
            else:
                sums = workers.gradients(model, batches, signals, totals, accumulate)
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.grad_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if workers is not None:
                workers.load(model)
            passed = _now(model) - began
            # In the processes' order.
            times = [seconds for name, seconds in sums.items() if name.startswith(SECONDS)]
            for n, seconds in enumerate(times):
                mine = batches[n::processes]
                inside.append(([len(mine), sum(b.work for b in mine)], seconds))
            outside.append(([1.0, tokens_of(some) / 1000], max(1e-6, passed - max(times))))
    finally:
        if workers is not None:
            workers.close()

    def fit(points: Sequence[tuple[list[float], float]]) -> tuple[float, float]:
        (first, second), _ = nnls(*map(np.asarray, zip(*points, strict=True)))
        return float(first), float(second)

    batch, token = fit([point for point in inside[processes:] if point[0][0]])
    base, serial = fit(outside[1:])
    room = Room.of(model)
    return UpdateRates(
        tokens=1 / max(token, 1e-12),
        batch=batch,
        base=base,
        serial=serial,
        processes=processes,
        shared_prefix=layout(model) != "rows",
        most=room.most,
        kept=room.kept,
        recomputed=room.recomputed,
    )


def _update_worker(connection: Any, settings: dict[str, Any], folder: str | None) -> None:
    """A process that takes its share of the measured updates."""
    from ..train.trainer import peak_mb, scorer
    from ..train.workers import follow_parent, serve

    follow_parent()
    config, model, reference, accumulate = _trainee(settings, folder)
    with asyncio.Runner() as runner:
        serve(
            connection,
            model,
            {},
            _plays_nothing,
            accumulate,
            scorer(model, reference, config.train),
            lambda: None,
            peak_mb,
            runner,
        )


def _plays_nothing(*_: Any) -> Any:
    raise NotImplementedError("updates are measured here")
