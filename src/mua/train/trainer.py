"""The GRPO loop: play groups, keep those with a signal, one exact update, record, checkpoint.

It knows nothing of benchmarks or of any one domain: tasks, users and limits are given to it.

Invariants:
- Same seed, configuration and machine on CPU: same trajectories and same weights, also across kill -9 and
  resume. All that a step depends on is the weights, the optimizer, the step's number and the count of tasks
  drawn so far.
- The tokens trained on are the sampled ones, and their old log-probabilities those of the engine.
- Infrastructure failures have no part in any reward or gradient; they are counted.
- With staleness 1, the episodes of step k are sampled with the weights of update k - 2, whatever takes how
  long.
- Training on a task of an evaluation split, or on one that doing nothing solves, is refused at the start.
- An update that went wrong changes no weight (`anomalies`).
"""

from __future__ import annotations

import asyncio
import copy
import functools
import itertools
import logging
import random
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..agents.model import ModelAgent
from ..domain import Domain, Task, check_no_noop, check_no_overlap
from ..engines import Engine, Sampling
from ..episode import Limits
from ..errors import InfrastructureError
from ..formats import ChatFormat
from ..gateway import BudgetSpent
from ..order import Order
from ..rollout import Group, MakeAgent, MakeUser, in_time, play_groups
from ..runfolder import RunFolder
from ..seeds import derive_seed
from ..trajectory import Trajectory
from . import TrainSettings, anomalies, checkpoint
from .activations import recomputing
from .batching import MicroBatch, batches_for, denominators, token_logprobs, trained_length
from .credit import Signals, kl_penalties, sampled, segments_of, token_advantages
from .grpo import Denominators, add_metrics, grpo_loss
from .optimizer import adamw
from .sft import learning_rate
from .workers import Accumulate, Play, Score, Workers, trained_parameters

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where the loop is; saved with every checkpoint."""

    step: int = 0
    """Steps done."""
    drawn: int = 0
    """Tasks drawn so far, over all steps and refills."""
    broken: int = 0
    """Steps in a row, up to this one, whose update was left out; those without a signal not counted."""
    no_signal: int = 0
    """Steps in a row, up to this one, in which every group's rewards were all equal."""
    rewards: list[float] = field(default_factory=list)
    """Mean rewards of the last `best_window` steps."""
    results: dict[str, list[float]] = field(default_factory=dict)
    """What a curriculum knows of the tasks (`order.Order.state`)."""


async def train(
    model: Any,
    format: ChatFormat | None,
    engine: Engine,
    domain: Domain,
    tasks: Sequence[Task],
    *,
    make_user: MakeUser,
    settings: TrainSettings,
    run: RunFolder,
    limits: Limits = Limits(),
    held_out: Mapping[str, Sequence[Task]] | None = None,
    make_agent: MakeAgent | None = None,
    other_engines: Sequence[Engine] = (),
    workers: Workers | None = None,
    actor: Any = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    on_episode: Callable[[Trajectory], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    more_figures: Callable[[], Mapping[str, Any]] = dict,
) -> Progress:
    """Trains `model` in place; `engine` samples from the same weights, or, with staleness, from `actor`: a
    copy of `model`, which gets the weights of each update one step later.

    `model` must be the cold-start model, on resuming too: it is the reference of the KL; the newest
    checkpoint of `run` is then loaded over it. `held_out` are the evaluation tasks by name of their split.
    `make_agent` replaces the standard agent (then `format` may be None). `other_engines` (a local user's)
    forget their caches after each step, too, so that a resumed run finds them as an unbroken one does.
    `workers` take their shares of each step (`on_episode` hears of this process's episodes only).
    `more_figures` is asked after each step for what else its record should have. `should_stop` is asked after
    each step: what was done is saved. A gateway's budget that is spent ends the loop after saving. Raises
    MuaError for tasks that must not be trained on and when too many steps in a row made no update, and
    InfrastructureError when not one episode of a step could be played (both after saving).
    """
    for name, evaluated in (held_out or {}).items():
        check_no_overlap(tasks, evaluated, f"evaluation split '{name}'")
    check_no_noop(domain, tasks)
    make_agent = make_agent or model_agents(format, engine, domain, settings)
    reference = make_reference(model, settings)
    optimizer = adamw(model, settings)
    progress = resume(run, model, optimizer, actor)
    order = Order(domain, tasks, settings.seed, settings.curriculum)
    order.restore(progress.results)
    saved = progress.step
    if (actor is not None) != bool(settings.staleness) or (actor is not None and workers is not None):
        raise ValueError("an actor goes with staleness, and workers with neither")
    clear_caches([engine, *other_engines])
    await hand_over(engine, model if actor is None else actor)
    if workers is not None:
        workers.load(model)
    own = player(domain, make_agent, make_user, settings, limits, on_episode)
    ahead: asyncio.Task[tuple[list[Group], int]] | None = None
    """The next step's episodes, played with the actor while the model is updated."""

    def play(picked: Sequence[Task], step: int, seed: int, wanted: int) -> Awaitable[list[Group]]:
        if workers is not None:
            return workers.play(picked, step, seed, wanted, own)
        return own(picked, step, seed, wanted, (0, 1))

    async def renew() -> float:
        """Episodes from now on are sampled with the weights as they are now. Returns the seconds it took
        servers to load them."""
        if actor is not None:
            with torch.no_grad():
                pairs = zip(trained_parameters(actor), trained_parameters(model), strict=True)
                for theirs, ours in pairs:
                    theirs.copy_(ours)
        clear_caches([engine, *other_engines])
        seconds = await hand_over(engine, model if actor is None else actor)
        if workers is not None:
            workers.load(model)
        return seconds

    def save() -> None:
        nonlocal saved
        if saved != progress.step:
            tokenizer = format.tokenizer if format is not None else None
            checkpoint.save(
                run.checkpoints,
                progress.step,
                model,
                optimizer,
                state={name: value for name, value in vars(progress).items() if name != "step"},
                tokenizer=tokenizer,
                keep=settings.keep_checkpoints,
                score=sum(progress.rewards) / len(progress.rewards),
                actor=actor,
            )
            saved = progress.step

    try:
        while progress.step < settings.steps and not (should_stop and should_stop()):
            step, began = progress.step + 1, time.perf_counter()
            playing = ahead or play_step(order, settings, step, progress.drawn, play)
            ahead = None
            groups, drawn = await playing
            if not any(group.rewards for group in groups):
                save()
                details = [t.detail for group in groups for t in group.failed]
                details += [t.unfaithful[0] for group in groups for t in group.unfaithful]
                lost = sum(group.excluded + len(group.unfaithful) for group in groups)
                raise InfrastructureError(
                    f"Step {step}: not one of {lost} episodes could be used "
                    f"({details[0] if details else 'no user or agent could be made'}). Mend that and run the "
                    "same command again: it goes on from the last step."
                )
            played = time.perf_counter()
            trained = [group for group in groups if not group.constant]
            rate = learning_rate(settings, step, settings.steps)
            order.observe((group.task, group.rewards) for group in groups)
            one_update = functools.partial(
                update, model, reference, optimizer, trained, settings=settings, rate=rate, step=step
            )
            if actor is None:
                figures = one_update(workers=workers)
                loading = await renew()
            else:
                # Before the update: the next episodes have the weights of the last one.
                loading = await renew()
                if step < settings.steps:
                    coming = play_step(order, settings, step + 1, drawn, play)
                    ahead = asyncio.create_task(coming)
                figures = await asyncio.to_thread(one_update)
            found = figures["problems"] = figures["problems"] if trained else ["no_signal"]
            line = {
                "step": step,
                **rollout_metrics(domain, groups),
                **figures,
                "lr": rate,
                "groups_trained": len(trained),
                "seconds_rollout": played - began,
                "seconds_update": time.perf_counter() - played,
                **({"seconds_weights": loading} if loading else {}),
                "peak_mb": peak_mb() + (workers.peak_mb if workers else 0.0),
                **more_figures(),
            }
            if line["user_cost"] and trained:
                line["cost_per_task"] = line["user_cost"] / len(trained)
            for number, group in enumerate(groups):
                kept = [*group.trajectories, *group.unfaithful, *group.failed]
                for trajectory in sorted(kept, key=lambda t: t.sample):
                    whole = number < settings.record_tokens
                    run.append("trajectories", trajectory.to_dict() if whole else _record(trajectory))
            if found:
                log.warning("step %d: %s; no update", step, "; ".join(anomalies.MEANING[p] for p in found))
                signals = None
                if trained:
                    signals = signals_for(model, reference, trained, settings, several=True)
                anomalies.save(run, step, found, trained or groups, line, settings, signals)
            run.append("metrics", line)
            progress.step, progress.drawn, progress.results = step, drawn, order.state()
            if trained:  # a step without signal says nothing of whether updates work again
                progress.broken = progress.broken + 1 if found else 0
            progress.no_signal = 0 if trained else progress.no_signal + 1
            progress.rewards = [*progress.rewards, line["reward"]][-settings.best_window :]
            if step % settings.checkpoint_every == 0 or step == settings.steps:
                save()
            if on_step is not None:
                on_step(line)
            count, most = progress.no_signal, settings.anomalies.stop_after_no_signal
            if trained:
                count, most = progress.broken, settings.anomalies.stop_after
            if most is not None and count >= most and step < settings.steps:
                save()
                raise anomalies.gone_on_too_long(run, step, found, count)
    except BudgetSpent:
        save()
        raise
    finally:
        if ahead is not None:  # stopped, or something failed: these episodes are played again
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)
    save()
    return progress


def model_agents(
    format: ChatFormat | None, engine: Engine, domain: Domain, settings: TrainSettings
) -> MakeAgent:
    """The standard agent: the model behind the engine, with the domain's tools."""
    if format is None:
        raise ValueError("train needs a format or make_agent")
    sampling = Sampling(temperature=settings.temperature, max_tokens=settings.max_step_tokens)

    def make(task: Task, session: str, seed: int) -> ModelAgent:
        tools = domain.task_tools(task)
        return ModelAgent(format, engine, tools, sampling=sampling, session=session, seed=seed)

    return make


def player(
    domain: Domain,
    make_agent: MakeAgent,
    make_user: MakeUser,
    settings: TrainSettings,
    limits: Limits,
    on_episode: Callable[[Trajectory], None] | None = None,
) -> Play:
    """Plays the groups of one process's share of some tasks."""

    def play(
        tasks: Sequence[Task], step: int, seed: int, wanted: int, share: tuple[int, int]
    ) -> Awaitable[list[Group]]:
        rollout = settings.rollout
        return play_groups(
            domain,
            tasks,
            make_agent,
            make_user,
            rollout.model_copy(update={"concurrency": max(1, rollout.concurrency // share[1])}),
            limits=limits,
            seed=seed,
            step=step,
            wanted=wanted,
            share=share,
            faults=settings.faults,
            on_episode=on_episode,
        )

    return play


async def play_step(
    order: Order,
    settings: TrainSettings,
    step: int,
    drawn: int,
    play: Callable[[Sequence[Task], int, int, int], Awaitable[list[Group]]],
) -> tuple[list[Group], int]:
    """All groups played for one step, and the new count of tasks drawn; `play` takes tasks, step, seed and
    how many groups with a signal are wanted.

    Groups without signal are made up for by further tasks, for at most `refill_rounds` rounds and
    `refill_budget` groups. Spare groups that came too late are in the list, but empty.
    """
    rollout = settings.rollout
    groups: list[Group] = []
    for attempt in itertools.count():
        missing = rollout.groups - sum(not group.constant for group in groups)
        count = missing + rollout.spare_groups
        if rollout.refill_budget is not None:
            count = min(count, rollout.refill_budget - len(groups))
        over = rollout.refill_rounds is not None and attempt > rollout.refill_rounds
        if over or not missing or count <= 0 or (attempt and not any(group.rewards for group in groups)):
            break
        picked = order.draw(drawn, count)
        drawn += count
        seed = derive_seed(settings.seed, "rollout", step, attempt)
        groups += in_time(await play(picked, step, seed, missing), missing)
    return groups, drawn


def make_reference(model: Any, settings: TrainSettings) -> Any:
    """The frozen model of the KL term: a copy, the model itself for a PEFT adapter (switched off when it
    is read), or None when the KL is neither used nor measured."""
    if not (settings.grpo.kl_coefficient or settings.measure_kl):
        return None
    if hasattr(model, "disable_adapter"):
        return model
    reference = copy.deepcopy(model).eval()
    return reference.requires_grad_(False)


def update(
    model: Any,
    reference: Any,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Group],
    *,
    settings: TrainSettings,
    rate: float,
    step: int = 0,
    workers: Workers | None = None,
) -> dict[str, Any]:
    """The optimizer steps on the groups, and their metrics (null when there is nothing to learn from).

    `epochs` passes in `minibatches` updates each; metrics are means over the updates (`_max`: the largest),
    but what is said of the engine's probabilities is of the first. Micro-batches add up to a whole update
    exactly: see `grpo.Denominators`. An update with `problems` (`anomalies.problems`) is left out, and so are
    those that would have followed it.
    """
    figures: dict[str, Any] = {**dict.fromkeys(_METRICS), "updates": 0, "problems": []}
    segments = [s for group in groups for t in group.trajectories for s in segments_of(t)]
    if not any(trained_length(s) for s in segments):
        return figures | {"problems": ["empty"] if groups else []}
    several = settings.epochs * settings.minibatches > 1
    signals = signals_for(model, reference, groups, settings, several=several, workers=workers)
    accumulate = accumulator(model, reference, settings)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    for picked in _parts(groups, settings, step):
        batches = batches_for(
            model, [segments[i] for i in picked], settings.micro_batch_tokens, workers.count if workers else 1
        )
        if not batches:
            continue
        totals, chosen = denominators(batches), signals.of(picked)
        if figures["updates"] and workers is not None:
            workers.load(model)
        if workers is not None:
            sums = workers.gradients(model, batches, chosen, totals, accumulate)
        else:
            sums = accumulate(batches, chosen, totals)
        norm = float(torch.nn.utils.clip_grad_norm_(trained, settings.grad_clip))
        figures["problems"] = anomalies.problems(sums, norm, settings.anomalies)
        figures["updates"] += 1
        _mean_in(figures, {**sums, "grad_norm": norm})
        if not figures["problems"]:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if figures["problems"]:
            break
    return figures


_FIRST = ("sampling_gap", "sampling_gap_max", "sampling_kl", "truncated")
"""Metrics of a step's first update: later ones have moved the model away from the engine's on purpose."""
_METRICS = ("loss", "kl", "entropy", "clip_fraction", "ratio", "ratio_max", "grad_norm", *_FIRST)


def _mean_in(figures: dict[str, Any], found: Mapping[str, float]) -> None:
    """Takes the metrics of the newest of `updates` updates into those of the step."""
    count = figures["updates"]
    for name in _METRICS:
        before, value = figures[name], found.get(name)
        if value is None or (count > 1 and name in _FIRST):
            continue
        if count == 1:
            figures[name] = value
        elif name.endswith("_max"):
            figures[name] = max(before, value)
        else:
            figures[name] = before + (value - before) / count


def _parts(groups: Sequence[Group], settings: TrainSettings, step: int) -> Iterator[list[int]]:
    """For each update of a step, the segments of its share of the groups (whole groups, so that what they
    share stays together)."""
    ends = list(itertools.accumulate(sum(len(segments_of(t)) for t in g.trajectories) for g in groups))
    ranges = [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    count = min(settings.minibatches, len(groups))
    for epoch in range(settings.epochs):
        order = list(range(len(groups)))
        if count > 1:
            random.Random(derive_seed(settings.seed, "minibatches", step, epoch)).shuffle(order)
        for n in range(count):
            yield [i for group in sorted(order[n::count]) for i in ranges[group]]


def signals_for(
    model: Any,
    reference: Any,
    groups: Sequence[Group],
    settings: TrainSettings,
    *,
    several: bool = False,
    workers: Workers | None = None,
) -> Signals:
    """Advantages of every segment of the groups and, where they are needed before the first update
    (`several` updates, or the KL in the reward), the log-probabilities of model and reference."""
    grpo = settings.grpo
    in_reward = grpo.kl_in == "reward" and bool(grpo.kl_coefficient)
    start = ref = None
    if several or in_reward:
        segments = [s for group in groups for t in group.trajectories for s in segments_of(t)]
        batches = batches_for(model, segments, settings.micro_batch_tokens)
        score = scorer(model, reference, settings)
        found = workers.scores(batches, score) if workers is not None else score(batches)
        start = [torch.zeros(0)] * len(segments)
        ref = None if reference is None else list(start)
        for batch, scores in zip(batches, found, strict=True):
            counts = [int(sampled(segments[row]).sum()) for row in batch.rows]
            for into, values_N in zip((start, ref), scores, strict=True):
                if into is not None and values_N is not None:
                    for row, values in zip(batch.rows, values_N.split(counts), strict=True):
                        into[row] = values
    penalties = kl_penalties(groups, ref, grpo) if in_reward and ref is not None else [None] * len(groups)
    advantages = [a for g, p in zip(groups, penalties, strict=True) for a in token_advantages(g, grpo, p)]
    return Signals(advantages, start, ref)


def accumulator(model: Any, reference: Any, settings: TrainSettings) -> Accumulate:
    """Adds the gradients of micro-batches to those in `model`."""

    def accumulate(batches: Sequence[MicroBatch], signals: Signals, totals: Denominators) -> dict[str, float]:
        sums: dict[str, float] = {}
        for batch in batches:
            if signals.ref_logprobs is None:
                ref_BT = _reference_logprobs(model, reference, batch, settings)
            else:
                ref_BT = _spread(batch, signals.ref_logprobs)
            start_BT = _spread(batch, signals.start_logprobs) if signals.start_logprobs else None
            with recomputing(model, batch.recompute):
                logprobs_BT, entropy_BT = token_logprobs(
                    model,
                    batch.ids_BT,
                    batch.mask_BT,
                    settings.temperature,
                    tree=batch.tree,
                    entropy=True,
                    entropy_gradient=bool(settings.grpo.entropy_coefficient),
                )
                loss, metrics = grpo_loss(
                    logprobs_BT,
                    batch.old_logprobs_BT,
                    ref_BT,
                    _spread(batch, signals.advantages),
                    batch.mask_BT,
                    settings=settings.grpo,
                    denominators=totals,
                    entropy_BT=entropy_BT,
                    start_logprobs_BT=start_BT,
                )
                loss.backward()
            add_metrics(sums, metrics)
        return sums

    return accumulate


def scorer(model: Any, reference: Any, settings: TrainSettings) -> Score:
    """Log-probabilities of the sampled tokens of micro-batches by model and reference, without gradient."""

    @torch.no_grad()
    def score(batches: Sequence[MicroBatch]) -> list[tuple[Tensor, Tensor | None]]:
        out = []
        for batch in batches:
            start_BT, _ = token_logprobs(
                model, batch.ids_BT, batch.mask_BT, settings.temperature, tree=batch.tree
            )
            ref_BT = _reference_logprobs(model, reference, batch, settings)
            ref_N = None if ref_BT is None else ref_BT[batch.mask_BT].cpu()
            out.append((start_BT[batch.mask_BT].cpu(), ref_N))
        return out

    return score


@torch.no_grad()
def _reference_logprobs(
    model: Any, reference: Any, batch: MicroBatch, settings: TrainSettings
) -> Tensor | None:
    if reference is None:
        return None
    with reference.disable_adapter() if reference is model else nullcontext():
        return token_logprobs(reference, batch.ids_BT, batch.mask_BT, settings.temperature, tree=batch.tree)[
            0
        ]


def _spread(batch: MicroBatch, values: Sequence[Tensor]) -> Tensor:
    """Values of the sampled tokens of each segment, at their places in the batch, and 0 elsewhere."""
    mine = torch.cat([values[row] for row in batch.rows]).to(batch.mask_BT.device)
    return mine.new_zeros(batch.mask_BT.shape).masked_scatter(batch.mask_BT, mine)


def resume(run: RunFolder, model: Any, optimizer: torch.optim.Optimizer, actor: Any = None) -> Progress:
    """Loads the run's newest whole checkpoint, if any, and cuts the records back to it."""
    progress = Progress()
    path = checkpoint.latest(run.checkpoints)
    if path is not None:
        step, state = checkpoint.load(path, model, optimizer, actor)
        progress = Progress(step, **state)
    run.rewind("metrics", progress.step)
    run.rewind("trajectories", progress.step)
    return progress


def rollout_metrics(domain: Domain, groups: Sequence[Group]) -> dict[str, Any]:
    """What the episodes of a step say, the groups without signal included. Means are over scored episodes."""
    scored = [t for group in groups for t in group.trajectories]
    failed = [t for group in groups for t in (*group.failed, *group.unfaithful)]
    graded = [group for group in groups if group.rewards]
    episodes, steps = len(scored), sum(t.usage.agent_steps for t in scored)
    tokens = sum(t.usage.agent_tokens for t in scored)
    kinds: dict[str, list[float]] = defaultdict(list)
    domains: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        for t in group.trajectories:
            kinds[t.kind].append(t.reward or 0.0)
            domains[domain.of(group.task)[0].name].append(t.reward or 0.0)
    known = domain.tools()
    calls = Counter(
        call.name if call.name in known else "(unknown)"
        for t in scored
        for m in t.messages
        if m.role == "assistant"
        for call in m.tool_calls
    )
    usages = [t.usage for t in (*scored, *failed)] + [group.opening_usage for group in groups]
    # A frozen opening is no user turn of the episode's own, but the conversation has it.
    turns = sum(
        t.usage.user_turns + (group.opening is not None) for group in graded for t in group.trajectories
    )
    return {
        "reward": sum(t.reward or 0.0 for t in scored) / episodes,
        "all_correct": sum(group.all_correct for group in graded) / len(graded),
        "all_wrong": sum(group.all_wrong for group in graded) / len(graded),
        "turns": turns / episodes,
        "agent_steps": steps / episodes,
        "tokens_per_step": tokens / max(1, steps),
        "tool_calls": {name: calls[name] / episodes for name in (*known, "(unknown)") if name in calls},
        "terminations": dict(sorted(Counter(t.termination.value for t in (*scored, *failed)).items())),
        "by_kind": {kind: sum(r) / len(r) for kind, r in sorted(kinds.items())},
        # Of a mixture only: its groups, and their mean reward.
        **(
            {"by_domain": {n: sum(r) / len(r) for n, r in sorted(domains.items())}}
            if len(domain.members) > 1
            else {}
        ),
        "groups_played": len(groups),
        "excluded": sum(group.excluded for group in groups),
        "cut": sum(group.cut for group in groups),
        "unfaithful": sum(len(group.unfaithful) for group in groups),
        "retried": sum(group.retried for group in groups),
        "agent_tokens": sum(u.agent_tokens for u in usages),
        "user_tokens": sum(u.user_tokens for u in usages),
        "user_cost": sum(u.user_cost for u in usages),
    }


def _record(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory without its tokens, which would multiply the file's size."""
    out = trajectory.to_dict()
    out.pop("trace", None)
    return out


def clear_caches(engines: Sequence[Any]) -> None:
    """Tells the engines that cache anything that the weights have changed."""
    for engine in engines:
        clear = getattr(engine, "clear_cache", None)
        if clear is not None:
            clear()


async def hand_over(engine: Any, model: Any) -> float:
    """Gives the weights to an engine that has its own copy of them (servers); the seconds that took."""
    load = getattr(engine, "load", None)
    if load is None:
        return 0.0
    began = time.perf_counter()
    await load(model)
    return time.perf_counter() - began


def peak_mb() -> float:
    """Peak resident memory of this process, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
