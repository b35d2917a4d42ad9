"""A training step, event by event, on a clock of its own.

Invariants:
- Time only goes forward, and ties are settled by the order in which things were asked for: a plan is a
  function of its inputs.
- Every conversation that is begun is played to its end; nobody is served before who came earlier, at the
  places that have a queue.
"""

from __future__ import annotations

import heapq
import itertools
import math
import statistics
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..config import Config
from ..errors import MuaError
from ..seeds import derive_seed
from .conversations import Conversation, Move
from .rates import EngineRates, Rates


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
    user_requests: float
    user_tokens: float
    """Prompts and answers of the user model, a step."""
    user_cost: float
    user_wait: float
    """Mean time that a user's answer took, its queue included."""
    steps: int
    """Of the run."""
    hours: float
    cost: float
    """Of the run's users."""
    assumed: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Clock:
    """Events by time; of equal times, the earlier asked for first."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(when, self.now), next(self._numbers), what))

    def run(self) -> None:
        while self._events:
            self.now, _, what = heapq.heappop(self._events)
            what()


@dataclass(order=True)
class _Sequence:
    end: float
    """The replica's count of decoding steps at which it has all its tokens."""
    number: int
    context: int = field(compare=False)
    engine: EngineRates = field(compare=False)
    then: Callable[[], None] = field(compare=False)


class _Replica:
    """Decodes all its sequences together, and stops that to read prompts."""

    def __init__(self, clock: _Clock):
        self._clock = clock
        self._active: list[_Sequence] = []
        self._waiting: list[tuple[int, float, _Sequence]] = []
        """(prompt tokens, own work, what follows)."""
        self._done = 0.0
        """Decoding steps so far: each gives every active sequence a token."""
        self._since = 0.0
        self._reading = False
        self._version = 0
        self._numbers = itertools.count()
        self._counts: dict[int, list[float]] = {}
        """By engine: [sequences, tokens in their caches]."""
        self._engines: dict[int, EngineRates] = {}
        self.busy = 0.0
        self.prompts: set[int] = set()
        """Lengths of the prompts that its cache holds: those of the domains that it has played."""

    def ask(
        self, engine: EngineRates, new: int, context: int, tokens: int, work: float, then: Callable[[], None]
    ) -> None:
        """`tokens` after a prompt of which `new` are to be read; `work` is what the program does itself."""
        sequence = _Sequence(tokens, next(self._numbers), context, engine, then)
        self._waiting.append((new, work, sequence))
        # Whoever asks at this same moment joins in.
        self._clock.at(self._clock.now, self._settle)

    def _cycle(self) -> float:
        """Seconds of a decoding step of all engines."""
        total = 0.0
        for key, (count, context) in self._counts.items():
            if count:
                rates = self._engines[key]
                total += rates.forward + rates.sequence * count + rates.context * context / 1000
        return total

    def _advance(self) -> None:
        now = self._clock.now
        if not self._reading and self._active:
            self._done += (now - self._since) / self._cycle()
            self.busy += now - self._since
        self._since = now

    def _settle(self) -> None:
        """Decides what is done next, after something has changed."""
        if self._reading:
            return
        self._advance()
        self._version += 1
        if self._waiting and self._enough():
            self._read()
        elif self._active:
            version = self._version
            steps = self._active[0].end - self._done
            if self._waiting:
                patience = max(r.patience for _, _, s in self._waiting for r in (s.engine,))
                steps = min(steps, patience / len(self._waiting))
            self._clock.at(self._clock.now + max(0.0, steps) * self._cycle(), lambda: self._wake(version))

    def _enough(self) -> bool:
        """Whether those who wait are read now: each time costs a forward, so few wait for more."""
        patience = max(s.engine.patience for _, _, s in self._waiting)
        return not self._active or not patience or len(self._waiting) >= len(self._active) // 8

    def _wake(self, version: int) -> None:
        if version != self._version:
            return
        self._advance()
        ended = []
        while self._active and self._active[0].end <= self._done + 1e-9:
            ended.append(heapq.heappop(self._active))
        for sequence in ended:
            count = self._counts[id(sequence.engine)]
            count[0] -= 1
            count[1] -= sequence.context
        if not ended and self._waiting:
            self._version += 1
            self._read()
            return
        for sequence in ended:
            sequence.then()
        self._settle()

    def _read(self) -> None:
        self._reading = True
        taken, self._waiting = self._waiting, []
        engines = {id(s.engine): s.engine for _, _, s in taken}
        seconds = sum(e.forward for e in engines.values())
        seconds += sum(new / s.engine.prefill + work for new, work, s in taken)
        self._clock.at(self._clock.now + seconds, lambda: self._have_read(taken))

    def _have_read(self, taken: list[tuple[int, float, _Sequence]]) -> None:
        self.busy += self._clock.now - self._since
        self._since = self._clock.now
        self._reading = False
        for _, _, sequence in taken:
            key = id(sequence.engine)
            self._engines[key] = sequence.engine
            count = self._counts.setdefault(key, [0, 0])
            count[0] += 1
            count[1] += sequence.context
            # The first token comes with the prompt.
            sequence.end = self._done + max(0, sequence.end - 1)
            heapq.heappush(self._active, sequence)
        self._settle()


class _Endpoint:
    """Places that serve one request each, in the order of asking, and limits by the minute."""

    def __init__(self, clock: _Clock, rates: Any, concurrency: int, rng: np.random.Generator):
        self._clock = clock
        self._rates = rates
        self._free = [0.0] * concurrency
        self._next = 0.0
        self._rng = rng

    def ask(self, prompt: int, answer: int, then: Callable[[], None]) -> None:
        rates = self._rates
        start = max(self._clock.now, heapq.heappop(self._free), self._next)
        pause = [0.0]
        if rates.requests_per_minute:
            pause.append(60 / rates.requests_per_minute)
        if rates.tokens_per_minute:
            pause.append(60 * (prompt + answer) / rates.tokens_per_minute)
        self._next = start + max(pause)
        end = start + rates.latency.at(float(self._rng.standard_normal())) + answer / rates.tokens
        heapq.heappush(self._free, end)
        self._clock.at(end, then)


@dataclass
class _Tally:
    """What a step came to."""

    episodes: int = 0
    agent_tokens: int = 0
    user_requests: int = 0
    user_prompt_tokens: int = 0
    user_tokens: int = 0
    user_wait: float = 0.0


class _Step:
    """The rollout of one step."""

    def __init__(self, config: Config, rates: Rates, rng: np.random.Generator):
        self.config, self.rates, self.rng = config, rates, rng
        self.clock = _Clock()
        self.replicas = [_Replica(self.clock) for _ in range(rates.replicas)]
        self.tally = _Tally()
        self._slots = config.train.rollout.concurrency
        self._queue: list[Callable[[], None]] = []
        self.endpoint = None
        if config.train_user.kind == "endpoint":
            settings, user = config.train_user.endpoint, rates.user
            assert user is not None and settings is not None
            self.endpoint = _Endpoint(self.clock, user, user.concurrency or settings.concurrency, rng)

    def play(self, groups: Sequence[Sequence[Conversation]]) -> None:
        """All conversations of the groups, from now until the last has ended."""
        for number, group in enumerate(groups):
            home = self.replicas[number % len(self.replicas)]
            self._enter(self._group(group, home))
        self.clock.run()

    def _group(self, group: Sequence[Conversation], home: _Replica) -> Generator[Any, None, None]:
        first = group[0]
        opening = Move(0, 0, 0, first.prompt // 4, max(1, first.opening))
        if self.config.train.rollout.freeze_opening:
            yield lambda then: self._user(opening, home, then)
        for conversation in group:
            self._enter(self._episode(conversation, home))

    def _episode(self, talk: Conversation, home: _Replica) -> Generator[Any, None, None]:
        self.tally.episodes += 1
        rates, context = self.rates, 0
        for number, move in enumerate(talk.moves):
            known = not number and talk.prompt in home.prompts
            home.prompts.add(talk.prompt)
            new = max(1, move.new - talk.prompt * known)
            context += move.new + move.sampled
            self.tally.agent_tokens += move.sampled
            work = rates.overhead
            yield lambda then, n=new, m=move, c=context, w=work: home.ask(
                rates.agent, n, c, m.sampled, w, then
            )
            if move.calls and rates.tools is not None:
                draws = self.rng.standard_normal(move.calls)
                seconds = sum(rates.tools.at(float(x)) for x in draws)
                yield lambda then, s=seconds: self.clock.at(self.clock.now + s, then)
            if move.user_tokens:
                yield lambda then, m=move: self._user(m, home, then)

    def _user(self, move: Move, home: _Replica, then: Callable[[], None]) -> None:
        self.tally.user_requests += 1
        self.tally.user_prompt_tokens += move.user_prompt
        self.tally.user_tokens += move.user_tokens
        began = self.clock.now

        def answered() -> None:
            self.tally.user_wait += self.clock.now - began
            then()

        if self.endpoint is not None:
            self.endpoint.ask(move.user_prompt, move.user_tokens, answered)
        elif self.rates.user_engine is not None:
            # Its own earlier words are in its cache: what is new is about the agent's last message.
            home.ask(self.rates.user_engine, 20, move.user_prompt, move.user_tokens, 0.0, answered)
        else:
            self.clock.at(self.clock.now, answered)

    def _enter(self, process: Generator[Any, None, None]) -> None:
        """Starts something that takes one of the places for conversations."""

        def begin() -> None:
            self._slots -= 1
            go()

        def go() -> None:
            try:
                wait = next(process)
            except StopIteration:
                self._slots += 1
                if self._queue:
                    self._queue.pop(0)()
                return
            wait(go)

        if self._slots > 0:
            begin()
        else:
            self._queue.append(begin)


def make_plan(
    config: Config,
    rates: Rates,
    conversations: Sequence[Conversation],
    *,
    signal: float,
    steps: int = 5,
    assumed: Sequence[str] = (),
) -> Plan:
    """The plan of a configuration's GRPO steps.

    `signal` is the share of groups with different rewards; groups are drawn from conversations of one task
    where there are enough of it, else of several. Averages are over `steps` simulated steps. Raises MuaError
    when the rates lack what the configuration's user needs.
    """
    _check(config, rates)
    rollout = config.train.rollout
    size = rollout.group_size + rollout.spare_episodes
    pools = _pools(conversations, size)
    found = []
    for number in range(steps):
        rng = np.random.default_rng(derive_seed("plan", config.seed, number))
        step = _Step(config, rates, rng)

        def draw(count: int, rng: np.random.Generator = rng) -> list[list[Conversation]]:
            groups = []
            for number in rng.choice(len(pools), count):
                pool = pools[number]
                whole = len(pool) >= size
                groups.append(pool[:size] if whole else [pool[i] for i in rng.integers(0, len(pool), size)])
            return groups

        trained: list[list[Conversation]] = []
        played = 0
        for attempt in itertools.count():
            count = rollout.groups - len(trained) + rollout.spare_groups
            if rollout.refill_budget is not None:
                count = min(count, rollout.refill_budget - played)
            over = rollout.refill_rounds is not None and attempt > rollout.refill_rounds
            if over or len(trained) >= rollout.groups or count <= 0:
                break
            groups = draw(count)
            played += count
            step.play(groups)
            good = rng.random(count) < signal
            trained += [g for g, keep in zip(groups, good, strict=True) if keep]
        trained = [group[: rollout.group_size] for group in trained[: rollout.groups]]
        found.append((step, _tokens(trained, rates)))
    return _averages(config, rates, found, assumed)


def _pools(conversations: Sequence[Conversation], size: int) -> list[list[Conversation]]:
    """What groups are drawn from: groups as they were played, where there are whole ones; else tasks."""
    groups: dict[tuple[str, int], list[Conversation]] = {}
    tasks: dict[str, list[Conversation]] = {}
    for c in conversations:
        groups.setdefault((c.task, c.step), []).append(c)
        tasks.setdefault(c.task, []).append(c)
    whole = [groups[key] for key in sorted(groups) if len(groups[key]) >= size]
    return whole or [tasks[name] for name in sorted(tasks)]


def _check(config: Config, rates: Rates) -> None:
    kind = config.train_user.kind
    if kind == "endpoint" and rates.user is None:
        raise MuaError(
            "the training user is behind an endpoint, and the rates say nothing of it: add `user: {latency: "
            "{median: 1.0, p90: 3.0}}` to the rates."
        )
    if kind == "local" and rates.user_engine is None:
        raise MuaError(
            "the training user is a local model, and the rates have no `user_engine`; measure them "
            "(--measure), or add it."
        )


def _tokens(groups: Sequence[Sequence[Conversation]], rates: Rates) -> int:
    """What the update reads of these groups."""
    total = 0
    for group in groups:
        if not rates.update.shared_prefix:
            total += sum(c.prompt + c.own for c in group)
        elif len({id(c) for c in group}) == len(group):
            # Played together: what several of them say alike is read once.
            seen: dict[int, int] = {}
            for c in group:
                for move, (before, after) in zip(c.moves, c.marks, strict=True):
                    seen[before], seen[after] = move.new, move.sampled
            total += sum(seen.values())
        else:  # copies of one another: only the beginning is sure to be shared
            once = group[0].prompt + group[0].opening
            total += sum(c.prompt + c.own for c in group) - once * (len(group) - 1)
    return total


def _averages(
    config: Config, rates: Rates, found: Sequence[tuple[_Step, int]], assumed: Sequence[str]
) -> Plan:
    def mean(values: Sequence[float]) -> float:
        return statistics.fmean(values)

    epochs = config.train.epochs
    rollout = mean([s.clock.now for s, _ in found])
    tokens = mean([t for _, t in found])
    update = rates.update.base + epochs * tokens / rates.update.tokens if tokens else 0.0
    busy = mean([mean([r.busy for r in s.replicas]) for s, _ in found])
    # With staleness the next rollout runs beside the update, on devices of its own.
    overlap = bool(config.train.staleness)
    seconds = max(rollout, update) if overlap else rollout + update
    working = (busy + update) / 2 if overlap else busy + update
    tallies = [s.tally for s, _ in found]
    prompt, answer = (mean([getattr(t, k) for t in tallies]) for k in ("user_prompt_tokens", "user_tokens"))
    cost = 0.0
    if config.train_user.kind == "endpoint":
        settings, user = config.train_user.endpoint, rates.user
        assert settings is not None and user is not None
        prices = [
            given if given is not None else configured
            for given, configured in (
                (user.prompt_price, settings.prompt_price),
                (user.completion_price, settings.completion_price),
            )
        ]
        cost = (prompt * prices[0] + answer * prices[1]) / 1e6
    sampled = mean([t.agent_tokens for t in tallies])
    requests = mean([t.user_requests for t in tallies])
    return Plan(
        step=seconds,
        rollout=rollout,
        update=update,
        idle=max(0.0, 1 - working / seconds) if seconds else 0.0,
        episodes=mean([t.episodes for t in tallies]),
        agent_tokens=sampled,
        agent_tokens_per_second=sampled / rollout if rollout else math.nan,
        trained_tokens=tokens,
        user_requests=requests,
        user_tokens=prompt + answer,
        user_cost=cost,
        user_wait=mean([t.user_wait for t in tallies]) / requests if requests else 0.0,
        steps=config.train.steps,
        hours=config.train.steps * seconds / 3600,
        cost=config.train.steps * cost,
        assumed=(*rates.assumed, *assumed),
    )
