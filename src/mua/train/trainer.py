"""The GRPO loop: play groups, keep those with a signal, one exact update, record, checkpoint.

It knows nothing of benchmarks or of any one domain: tasks, users and limits are given to it.

Invariants:
- Same seed, configuration and machine on CPU: same trajectories and same weights, also across kill -9 and
  resume. All that a step depends on is the weights, the optimizer, the step's number and the count of tasks
  drawn so far.
- The tokens trained on are the sampled ones, and their old log-probabilities those of the engine.
- Infrastructure failures have no part in any reward or gradient; they are counted.
- Training on a task of an evaluation split, or on one that doing nothing solves, is refused at the start.
"""

from __future__ import annotations

import copy
import logging
import math
import random
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ..agents.model import ModelAgent
from ..domain import Domain, Task, check_no_noop, check_no_overlap
from ..engines import Engine, Sampling
from ..episode import Limits
from ..errors import InfrastructureError
from ..formats import ChatFormat
from ..rollout import Group, MakeAgent, MakeUser, play_groups
from ..runfolder import RunFolder
from ..seeds import derive_seed
from ..trajectory import Segment, Trajectory
from . import TrainSettings, checkpoint
from .batching import MicroBatch, denominators, micro_batches, token_logprobs
from .grpo import Denominators, group_advantages, grpo_loss
from .optimizer import adamw
from .sft import learning_rate
from .workers import Accumulate, Play, Workers

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where the loop is; saved with every checkpoint."""

    step: int = 0
    """Steps done."""
    drawn: int = 0
    """Tasks drawn so far, over all steps and refills."""


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
    on_step: Callable[[dict[str, Any]], None] | None = None,
    on_episode: Callable[[Trajectory], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Progress:
    """Trains `model` in place; `engine` samples from the same weights.

    `model` must be the cold-start model, on resuming too: it is the reference of the KL; the newest
    checkpoint of `run` is then loaded over it. `held_out` are the evaluation tasks by name of their split.
    `make_agent` replaces the standard agent (then `format` may be None). `other_engines` (a local user's)
    forget their caches after each step, too, so that a resumed run finds them as an unbroken one does.
    `workers` take their shares of each step (`on_episode` hears of this process's episodes only).
    `should_stop` is asked after each step: what was done is saved. Raises MuaError for tasks that must not
    be trained on, and InfrastructureError when not one episode of a step could be played (after saving).
    """
    for name, evaluated in (held_out or {}).items():
        check_no_overlap(tasks, evaluated, f"evaluation split '{name}'")
    check_no_noop(domain, tasks)
    make_agent = make_agent or model_agents(format, engine, domain, settings)
    reference = make_reference(model, settings)
    optimizer = adamw(model, settings)
    progress = resume(run, model, optimizer)
    saved = progress.step
    clear_caches([engine, *other_engines])
    if workers is not None:
        workers.load(model)
    own = player(domain, make_agent, make_user, settings, limits, on_episode)

    def play(picked: Sequence[Task], step: int, seed: int) -> Awaitable[list[Group]]:
        return workers.play(picked, step, seed, own) if workers else own(picked, step, seed, (0, 1))

    def save() -> None:
        nonlocal saved
        if saved != progress.step:
            tokenizer = format.tokenizer if format is not None else None
            checkpoint.save(
                run.checkpoints,
                progress.step,
                model,
                optimizer,
                state={"drawn": progress.drawn},
                tokenizer=tokenizer,
                keep=settings.keep_checkpoints,
            )
            saved = progress.step

    while progress.step < settings.steps and not (should_stop and should_stop()):
        step, began = progress.step + 1, time.perf_counter()
        groups, drawn = await play_step(tasks, settings, step, progress.drawn, play)
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
        if not trained:
            log.warning("step %d: no group has both good and bad episodes, so nothing is learned", step)
        rate = learning_rate(settings, step, settings.steps)
        figures = update(model, reference, optimizer, trained, settings=settings, rate=rate, workers=workers)
        clear_caches([engine, *other_engines])
        if workers is not None:
            workers.load(model)
        line = {
            "step": step,
            **rollout_metrics(domain, groups),
            **figures,
            "lr": rate,
            "groups_trained": len(trained),
            "seconds_rollout": played - began,
            "seconds_update": time.perf_counter() - played,
            "peak_mb": peak_mb() + (workers.peak_mb if workers else 0.0),
        }
        for group in groups:
            kept = [*group.trajectories, *group.unfaithful, *group.failed]
            for trajectory in sorted(kept, key=lambda t: t.sample):
                run.append("trajectories", _record(trajectory))
        run.append("metrics", line)
        progress.step, progress.drawn = step, drawn
        if step % settings.checkpoint_every == 0 or step == settings.steps:
            save()
        if on_step is not None:
            on_step(line)
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

    def play(tasks: Sequence[Task], step: int, seed: int, share: tuple[int, int]) -> Awaitable[list[Group]]:
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
            share=share,
            faults=settings.faults,
            on_episode=on_episode,
        )

    return play


def draw_task(tasks: Sequence[Task], at: int, seed: int) -> Task:
    """The task at position `at` of an endless sequence in which every epoch is a new shuffle of all."""
    epoch, place = divmod(at, len(tasks))
    order = list(range(len(tasks)))
    random.Random(derive_seed(seed, "tasks", epoch)).shuffle(order)
    return tasks[order[place]]


async def play_step(
    tasks: Sequence[Task],
    settings: TrainSettings,
    step: int,
    drawn: int,
    play: Callable[[Sequence[Task], int, int], Awaitable[list[Group]]],
) -> tuple[list[Group], int]:
    """All groups played for one step, and the new count of tasks drawn; `play` takes tasks, step and seed.

    Groups without signal are made up for by further tasks, for at most `refill_rounds` rounds.
    """
    rollout = settings.rollout
    groups: list[Group] = []
    for attempt in range(1 + rollout.refill_rounds):
        missing = rollout.groups - sum(not group.constant for group in groups)
        if not missing or (attempt and not any(group.rewards for group in groups)):
            break
        picked = [draw_task(tasks, drawn + i, settings.seed) for i in range(missing)]
        drawn += missing
        groups += await play(picked, step, derive_seed(settings.seed, "rollout", step, attempt))
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
    workers: Workers | None = None,
) -> dict[str, float | None]:
    """One optimizer step on the groups, and its metrics (null when there is nothing to learn from).

    Micro-batches add up to the whole step exactly: see `grpo.Denominators`.
    """
    segments, advantages = _trained_segments(groups, settings)
    batches = micro_batches(segments, settings.micro_batch_tokens, next(model.parameters()).device)
    if not batches:
        return dict.fromkeys(_METRICS)
    totals = denominators(batches)
    accumulate = accumulator(model, reference, settings)
    if workers is not None:
        sums = workers.gradients(model, batches, advantages, totals, accumulate)
    else:
        sums = accumulate(batches, advantages, totals)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(trained, settings.grad_clip))
    if math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    else:
        log.warning("the gradient is not finite; this step's update is left out")
    optimizer.zero_grad(set_to_none=True)
    return {name: sums.get(name) for name in _METRICS} | {"grad_norm": norm}


_METRICS = ("loss", "kl", "entropy", "clip_fraction", "sampling_gap", "grad_norm")


def accumulator(model: Any, reference: Any, settings: TrainSettings) -> Accumulate:
    """Adds the gradients of micro-batches to those in `model`."""

    def accumulate(
        batches: Sequence[MicroBatch], advantages: Sequence[float], totals: Denominators
    ) -> Counter[str]:
        # No dropout: the log-probabilities must be those of the model that was sampled from. (Activation
        # checkpointing works in training mode only; such models must come without dropout.)
        model.train(any(getattr(module, "gradient_checkpointing", False) for module in model.modules()))
        sums: Counter[str] = Counter()
        for batch in batches:
            at = (batch.ids_BT, batch.mask_BT, settings.temperature)
            ref_BT = None
            if reference is not None:
                with torch.no_grad(), reference.disable_adapter() if reference is model else nullcontext():
                    ref_BT, _ = token_logprobs(reference, *at)
            logprobs_BT, entropy_BT = token_logprobs(
                model, *at, entropy=True, entropy_gradient=bool(settings.grpo.entropy_coefficient)
            )
            loss, metrics = grpo_loss(
                logprobs_BT,
                batch.old_logprobs_BT,
                ref_BT,
                torch.tensor([advantages[row] for row in batch.rows], device=batch.ids_BT.device),
                batch.mask_BT,
                settings=settings.grpo,
                denominators=totals,
                entropy_BT=entropy_BT,
            )
            loss.backward()
            for name, value in metrics.items():
                sums[name] += value.item()  # type: ignore[assignment]
        model.eval()
        return sums

    return accumulate


def _trained_segments(groups: Sequence[Group], settings: TrainSettings) -> tuple[list[Segment], list[float]]:
    """Every segment of every scored episode, each with the advantage of its episode."""
    segments: list[Segment] = []
    advantages: list[float] = []
    for group in groups:
        values = group_advantages(group.rewards, settings.grpo.advantages).tolist()
        for trajectory, advantage in zip(group.trajectories, values, strict=True):
            if trajectory.trace is None:
                raise ValueError("the agent keeps no token trace, so it cannot be trained")
            segments += trajectory.trace.segments
            advantages += [advantage] * len(trajectory.trace.segments)
    return segments, advantages


def resume(run: RunFolder, model: Any, optimizer: torch.optim.Optimizer) -> Progress:
    """Loads the run's newest whole checkpoint, if any, and cuts the records back to it."""
    progress = Progress()
    path = checkpoint.latest(run.checkpoints)
    if path is not None:
        progress.step, state = checkpoint.load(path, model, optimizer)
        progress.drawn = int(state["drawn"])
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
    for t in scored:
        kinds[t.kind].append(t.reward or 0.0)
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
        "groups_played": len(groups),
        "excluded": sum(group.excluded for group in groups),
        "unfaithful": sum(len(group.unfaithful) for group in groups),
        "retried": sum(group.retried for group in groups),
        "agent_tokens": sum(u.agent_tokens for u in usages),
        "user_tokens": sum(u.user_tokens for u in usages),
        "user_cost": sum(u.user_cost for u in usages),
    }


def _record(trajectory: Trajectory) -> dict[str, Any]:
    out = trajectory.to_dict()
    out.pop("trace", None)
    return out


def clear_caches(engines: Sequence[Any]) -> None:
    """Tells the engines that cache anything that the weights have changed."""
    for engine in engines:
        clear = getattr(engine, "clear_cache", None)
        if clear is not None:
            clear()


def peak_mb() -> float:
    """Peak resident memory of this process, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
