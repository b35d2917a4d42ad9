"""The plan of a configuration: its training steps and its evaluations, simulated, with what they cost.

Invariant: a plan is a function of its inputs, and takes nothing for granted that it does not name.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..config import Config, UserSettings
from ..errors import MuaError
from ..seeds import derive_seed
from .conversations import Conversation
from .groups import Drawn, Pools, update_time
from .rates import Rates
from .simulate import Stage
from .users import Terms, terms

MOST_EPISODES = 1_000_000
"""Of a step, or of an evaluation, that are simulated."""


@dataclass(frozen=True)
class Plan:
    """Means over the planned steps. Times are in seconds, money in US dollars."""

    step: float
    rollout: float
    update: float
    idle: float
    """Share of the devices' time in which they neither generate nor train: they wait for users, tools and
    the last conversations of a step."""
    episodes: float
    """Played a step, those of refills included."""
    agent_tokens: float
    """Sampled a step."""
    agent_tokens_per_second: float
    """During rollouts, over all replicas."""
    trained_tokens: float
    """Read by the update of a step, in one pass."""
    user_requests: float
    user_tokens: float
    """Prompts and answers of the user model, a step."""
    user_cost: float
    user_wait: float
    """Mean time that a user's answer took, its queue included."""
    steps: int
    """Of the run."""
    hours: float
    """Of all steps."""
    evaluation: float | None
    """Of one model at one temperature; None: nobody knows how long its user takes."""
    evaluations: int
    """Of the run."""
    evaluation_cost: float
    cost: float
    """Of the run's users, in training and evaluation."""
    warnings: tuple[str, ...]
    """Budgets that do not last."""
    assumed: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(
    config: Config,
    rates: Rates,
    conversations: Sequence[Conversation],
    *,
    signal: float,
    steps: int = 5,
    assumed: Sequence[str] = (),
    eval_tasks: int = 0,
    evaluated: Sequence[Sequence[Conversation]] = (),
) -> Plan:
    """The plan of a configuration's GRPO steps and evaluations.

    `signal` is the share of groups with different rewards, where `conversations` hold no whole groups.
    Averages are over `steps` simulated steps. `eval_tasks` is how many tasks an evaluation has, `evaluated`
    the conversations of earlier ones, each by itself; without any, those of training stand for them. Raises
    MuaError when the rates lack what the configuration's user needs, and for steps too large to simulate.
    """
    seat = _seat(config, config.train_user, rates)
    if seat is None:
        raise MuaError(_missing(config.train_user))
    played = [_step(config, rates, conversations, signal, seat, number) for number in range(steps)]
    stages = [stage for stage, _ in played]
    tallies = [stage.tally for stage in stages]
    found = [update_time(config, rates.update, groups) for _, groups in played]
    rollout, update = _mean(s.seconds for s in stages), _mean(seconds for _, seconds in found)
    busy = _mean(s.busy for s in stages)
    # With staleness the next rollout runs beside the update, on devices of its own.
    overlap = bool(config.train.staleness)
    seconds = max(rollout, update) if overlap else rollout + update
    working = (busy + update) / 2 if overlap else busy + update
    prompt, answer = _mean(t.user_prompt_tokens for t in tallies), _mean(t.user_tokens for t in tallies)
    sampled, requests = _mean(t.agent_tokens for t in tallies), _mean(t.user_requests for t in tallies)
    spent = _Spent(seat[0], prompt, answer)
    evaluation, spent_there = _evaluation(config, rates, evaluated or [conversations], eval_tasks)
    evaluations = (2 + (config.sft is not None)) * len(config.eval.temperatures)
    if any(s.terms and not (s.terms.prompt_price or s.terms.completion_price) for s in (spent, spent_there)):
        assumed = (*assumed, "users behind an endpoint for nothing: no price of theirs is known")
    if evaluation is None:
        assumed = (*assumed, f"nothing of the evaluation: {_missing(config.eval_user)}")
    return Plan(
        step=seconds,
        rollout=rollout,
        update=update,
        idle=max(0.0, 1 - working / seconds) if seconds else 0.0,
        episodes=_mean(t.episodes for t in tallies),
        agent_tokens=sampled,
        agent_tokens_per_second=sampled / rollout if rollout else 0.0,
        trained_tokens=_mean(tokens for tokens, _ in found),
        user_requests=requests,
        user_tokens=prompt + answer,
        user_cost=spent.dollars,
        user_wait=_mean(t.user_wait for t in tallies) / requests if requests else 0.0,
        steps=config.train.steps,
        hours=config.train.steps * seconds / 3600,
        evaluation=evaluation,
        evaluations=evaluations,
        evaluation_cost=spent_there.dollars,
        cost=config.train.steps * spent.dollars + evaluations * spent_there.dollars,
        warnings=tuple(_budgets(config.train.steps, spent, evaluations, spent_there)),
        assumed=(*rates.assumed, *assumed),
    )


def _mean(values: Iterator[float]) -> float:
    return statistics.fmean(values)


def _step(
    config: Config,
    rates: Rates,
    conversations: Sequence[Conversation],
    signal: float,
    seat: tuple[Terms | None, bool],
    number: int,
) -> tuple[Stage, list[Drawn]]:
    """(where a step's conversations were played, the groups that it trains on); as `trainer.play_step`."""
    rollout = config.train.rollout
    rng = np.random.default_rng(derive_seed("plan", config.seed, number))
    pools = Pools(conversations, rollout.group_size + rollout.spare_episodes, signal)
    stage = Stage(
        rates,
        rates,
        rng,
        concurrency=rollout.concurrency,
        terms=seat[0],
        local=seat[1],
        frozen=rollout.freeze_opening,
    )
    trained: list[Drawn] = []
    played = 0
    for attempt in itertools.count():
        count = rollout.groups - len(trained) + rollout.spare_groups
        if rollout.refill_budget is not None:
            count = min(count, rollout.refill_budget - played)
        over = rollout.refill_rounds is not None and attempt > rollout.refill_rounds
        if over or len(trained) >= rollout.groups or count <= 0:
            break
        _check_size("a step", (played + count) * (rollout.group_size + rollout.spare_episodes))
        groups = pools.draw(count, rng)
        played += count
        stage.play(group.conversations for group in groups)
        trained += [group for group in groups if group.signal]
    return stage, [group.first(rollout.group_size) for group in trained[: rollout.groups]]


def _check_size(what: str, episodes: int) -> None:
    if episodes > MOST_EPISODES:
        raise MuaError(
            f"{what} of {episodes:,} episodes is more than a plan simulates ({MOST_EPISODES:,}); plan a "
            "smaller one (train.rollout.groups, group_size, refill_budget; eval.tasks, samples) and multiply."
        )


def _evaluation(
    config: Config, rates: Rates, evaluated: Sequence[Sequence[Conversation]], tasks: int
) -> tuple[float | None, _Spent]:
    """(mean seconds of one evaluation, what its user costs)."""
    seat = _seat(config, config.eval_user, rates)
    if seat is None:
        return None, _Spent(None, 0.0, 0.0)
    settings, playing = config.eval, rates.evaluation or rates
    count = min(tasks, settings.tasks or tasks) * settings.samples
    _check_size("an evaluation", count)
    stages = []
    for number, conversations in enumerate(evaluated):
        rng = np.random.default_rng(derive_seed("plan", config.seed, "evaluation", number))
        whole = len(conversations) == count
        picked = range(count) if whole else rng.integers(0, len(conversations), count)
        stage = Stage(
            rates, playing, rng, concurrency=settings.concurrency, terms=seat[0], local=seat[1]
        )  # fmt: skip
        stage.play([conversations[n]] for n in picked)
        stages.append(stage)
    tallies = [s.tally for s in stages]
    prompt, answer = _mean(t.user_prompt_tokens for t in tallies), _mean(t.user_tokens for t in tallies)
    return _mean(s.seconds for s in stages), _Spent(seat[0], prompt, answer)


# ---------------------------------------------------------------- users


def _seat(config: Config, user: UserSettings, rates: Rates) -> tuple[Terms | None, bool] | None:
    """(an endpoint's terms, whether a local engine plays); None where the rates do not know the user."""
    if user.kind == "endpoint":
        return None if rates.user is None else (terms(config, user, rates.user), False)
    local = user.kind == "local"
    return None if local and rates.user_engine is None else (None, local)


def _missing(user: UserSettings) -> str:
    if user.kind == "endpoint":
        return (
            "the user is behind an endpoint, and the rates say nothing of it: add `user: {latency: "
            "{median: 1.0, p90: 3.0}}` to the rates."
        )
    return (
        "the user is a local model, and the rates have no `user_engine`: add it, with what `agent` has. "
        "(Rates measured on this machine have it.)"
    )


@dataclass(frozen=True)
class _Spent:
    """What users read and said in one step or evaluation, at their terms."""

    terms: Terms | None
    prompt: float
    answer: float

    @property
    def dollars(self) -> float:
        return self.terms.cost(self.prompt, self.answer) if self.terms else 0.0

    @property
    def tokens(self) -> float:
        return self.prompt + self.answer


def _budgets(steps: int, step: _Spent, evaluations: int, evaluation: _Spent) -> Iterator[str]:
    """Of gateways' budgets that are spent before the run has ended."""
    stages = [("step", steps, step), ("evaluation", evaluations, evaluation)]
    for gateway in dict.fromkeys(s.terms.gateway for _, _, s in stages if s.terms and s.terms.gateway):
        mine = [stage for stage in stages if stage[2].terms and stage[2].terms.gateway == gateway]
        first = mine[0][2].terms
        assert first is not None
        for unit, budget in (("dollars", first.budget_dollars), ("tokens", first.budget_tokens)):
            needed = sum(count * getattr(spent, unit) for _, count, spent in mine)
            if budget is None or needed <= budget:
                continue
            left, when = float(budget), ""
            for name, count, spent in mine:
                each = getattr(spent, unit)
                if left < count * each:
                    when = f"in {name} {int(left // each) + 1} of {count}"
                    break
                left -= count * each
            yield (
                f"the budget of gateway '{gateway}' ({budget:,.6g} {unit}) is spent {when}; the run takes "
                f"{needed:,.6g} {unit}: raise budget.{unit}, or plan a smaller run."
            )
