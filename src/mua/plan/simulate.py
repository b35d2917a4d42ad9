"""Conversations played on a clock of their own, event by event.

Invariants:
- Time only goes forward, and ties are settled by the order in which things were asked for: what comes out is
  a function of the inputs.
- Every conversation that is begun is played to its end; nobody is served before who came earlier, at the
  places that have a queue.
"""

from __future__ import annotations

import heapq
import itertools
import statistics
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .conversations import Conversation, Move
from .rates import EndpointRates, EngineRates, PlayRates, Rates
from .users import Terms


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
                steps = min(steps, self._patience() / len(self._waiting))
            steps = max(0.0, steps)
            goal = self._done + steps
            self._clock.at(self._clock.now + steps * self._cycle(), lambda: self._wake(version, goal))

    def _enough(self) -> bool:
        """Whether those who wait are read now: each time costs a forward, so few wait for more."""
        few = len(self._waiting) < len(self._active) // 8
        return not self._active or not self._patience() or not few

    def _patience(self) -> float:
        return max(sequence.engine.patience for _, _, sequence in self._waiting)

    def _wake(self, version: int, goal: float) -> None:
        if version != self._version:
            return
        self._advance()
        self._done = max(self._done, goal)  # a late hour and a short step: the clock may not have moved
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

    def __init__(self, clock: _Clock, rates: EndpointRates, terms: Terms, rng: np.random.Generator):
        self._clock, self._rates, self._terms, self._rng = clock, rates, terms, rng
        self._ends: list[float] = []
        """Of each place that was ever taken."""
        self._next = 0.0

    def ask(self, prompt: int, answer: int, then: Callable[[], None]) -> None:
        rates, terms = self._rates, self._terms
        full = len(self._ends) >= terms.concurrency
        start = max(self._clock.now, heapq.heappop(self._ends) if full else 0.0, self._next)
        pause = [0.0]
        if terms.requests_per_minute:
            pause.append(60 / terms.requests_per_minute)
        if terms.tokens_per_minute:
            pause.append(60 * (prompt + answer) / terms.tokens_per_minute)
        self._next = start + max(pause)
        end = start + rates.latency.at(float(self._rng.standard_normal())) + answer / rates.tokens
        heapq.heappush(self._ends, end)
        self._clock.at(end, then)


@dataclass
class Tally:
    """What was played, and asked of users."""

    episodes: int = 0
    agent_tokens: int = 0
    user_requests: int = 0
    user_prompt_tokens: int = 0
    user_tokens: int = 0
    user_wait: float = 0.0


class Stage:
    """Where conversations are played: replicas, users, tools, and one clock.

    `concurrency` bounds the conversations in flight. `terms` are those of an endpoint's user, whose rates
    and the tools' are in `rates`; None, and `local` false, is a user that answers at once. `frozen`: a
    group's first words are asked for once.
    """

    def __init__(
        self,
        rates: Rates,
        playing: PlayRates,
        rng: np.random.Generator,
        *,
        concurrency: int,
        terms: Terms | None = None,
        local: bool = False,
        frozen: bool = False,
    ):
        self._rates, self._playing, self._rng = rates, playing, rng
        self._frozen = frozen
        self._user_engine = playing.user_engine if local else None
        self._clock = _Clock()
        self._replicas = [_Replica(self._clock) for _ in range(playing.replicas)]
        self._free = concurrency
        self._queue: deque[Callable[[], None]] = deque()
        self._endpoint = None
        if terms is not None:
            assert rates.user is not None
            self._endpoint = _Endpoint(self._clock, rates.user, terms, rng)
        self.tally = Tally()

    @property
    def seconds(self) -> float:
        return self._clock.now

    @property
    def busy(self) -> float:
        """Mean seconds in which a replica had something to do."""
        return statistics.fmean(replica.busy for replica in self._replicas)

    def play(self, groups: Iterable[Sequence[Conversation]]) -> None:
        """All conversations of the groups, from now until the last has ended."""
        for number, group in enumerate(groups):
            home = self._replicas[number % len(self._replicas)]
            if self._frozen:
                self._enter(self._group(group, home))
            else:
                self._begin(group, home)
        self._clock.run()

    def _group(self, group: Sequence[Conversation], home: _Replica) -> Generator[Any, None, None]:
        """What comes before the conversations of a group."""
        first = group[0]
        opening = Move(0, 0, 0, first.prompt // 4, max(1, first.opening))
        yield lambda then: self._user(opening, home, then)
        self._begin(group, home)

    def _begin(self, group: Sequence[Conversation], home: _Replica) -> None:
        for conversation in group:
            self._enter(self._episode(conversation, home))

    def _episode(self, talk: Conversation, home: _Replica) -> Generator[Any, None, None]:
        self.tally.episodes += 1
        playing, tools, context = self._playing, self._rates.tools, 0
        for number, move in enumerate(talk.moves):
            known = not number and talk.prompt in home.prompts
            home.prompts.add(talk.prompt)
            new = max(1, move.new - talk.prompt * known)
            context += move.new + move.sampled
            self.tally.agent_tokens += move.sampled
            yield lambda then, n=new, m=move, c=context: home.ask(
                playing.agent, n, c, m.sampled, playing.overhead, then
            )
            if move.calls and tools is not None:
                seconds = sum(tools.at(float(x)) for x in self._rng.standard_normal(move.calls))
                yield lambda then, s=seconds: self._clock.at(self._clock.now + s, then)
            if move.user_tokens:
                yield lambda then, m=move: self._user(m, home, then)

    def _user(self, move: Move, home: _Replica, then: Callable[[], None]) -> None:
        self.tally.user_requests += 1
        self.tally.user_prompt_tokens += move.user_prompt
        self.tally.user_tokens += move.user_tokens
        began = self._clock.now

        def answered() -> None:
            self.tally.user_wait += self._clock.now - began
            then()

        if self._endpoint is not None:
            self._endpoint.ask(move.user_prompt, move.user_tokens, answered)
        elif self._user_engine is not None:
            # Its own earlier words are in its cache: what is new is about the agent's last message.
            home.ask(self._user_engine, 20, move.user_prompt, move.user_tokens, 0.0, answered)
        else:
            self._clock.at(self._clock.now, answered)

    def _enter(self, process: Generator[Any, None, None]) -> None:
        """Starts something that takes one of the places for conversations."""

        def go() -> None:
            try:
                wait = next(process)
            except StopIteration:
                if self._queue:  # who is next has the place
                    self._clock.at(self._clock.now, self._queue.popleft())
                else:
                    self._free += 1
                return
            wait(go)

        if self._free > 0:
            self._free -= 1
            go()
        else:
            self._queue.append(go)
