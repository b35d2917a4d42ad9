"""Groups of conversations as a training step draws them, and what its update reads of them.

Invariant: what stands for the trainer's segments is laid out by the trainer's own `lay_out`; nothing about
micro-batches is reckoned here a second time.
"""

from __future__ import annotations

import bisect
import itertools
from array import array
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..config import Config
from ..trajectory import Segment
from .conversations import Conversation
from .rates import UpdateRates

VOCABULARY = 1 << 20
"""Of made-up tokens, where no model is to read them."""

LAID_OUT = 2_000_000
"""Tokens of a step that are laid out; what is beyond them takes as long in proportion."""


@dataclass(frozen=True)
class Drawn:
    """The conversations of one task in one step."""

    conversations: tuple[Conversation, ...]
    signal: bool
    """Their rewards differ, so they are trained on."""
    together: bool
    """They were played together: what several of them say alike is alike."""

    def first(self, count: int) -> Drawn:
        """Without the spare ones."""
        return replace(self, conversations=self.conversations[:count])


class Pools:
    """What groups are drawn from: groups as they were played, where there are whole ones; else tasks.

    Groups as they were played have the signal that they had; of others, a share of `signal` has one.
    """

    def __init__(self, conversations: Iterable[Conversation], size: int, signal: float):
        groups: dict[tuple[str, int], list[Conversation]] = {}
        tasks: dict[str, list[Conversation]] = {}
        for c in conversations:
            groups.setdefault((c.task, c.step), []).append(c)
            tasks.setdefault(c.task, []).append(c)
        self._whole = [groups[key][:size] for key in sorted(groups) if size <= len(groups[key])]
        self._tasks = [tasks[name] for name in sorted(tasks)]
        self._size, self._signal = size, signal

    def draw(self, count: int, rng: np.random.Generator) -> list[Drawn]:
        if self._whole:
            picked = (self._whole[n] for n in rng.choice(len(self._whole), count))
            return [Drawn(tuple(g), len({c.reward for c in g}) > 1, True) for g in picked]
        out = []
        for number in rng.choice(len(self._tasks), count):
            pool = self._tasks[number]
            members = tuple(pool[i] for i in rng.integers(0, len(pool), self._size))
            out.append(Drawn(members, bool(rng.random() < self._signal), False))
        return out


def segments(groups: Sequence[Drawn], vocabulary: int = VOCABULARY) -> list[Segment]:
    """Tokens that are alike where the conversations are alike: prompts of one length and, for groups that
    were played together, all that was said alike. In other groups each goes its own way after the opening."""
    numbers: dict[Hashable, int] = {}

    def tokens(count: int, *of: Hashable) -> list[int]:
        """Alike for what is the same."""
        rng = np.random.default_rng(numbers.setdefault(of, len(numbers)))
        return rng.integers(0, vocabulary, count).tolist()

    def spelt(known: bytes) -> list[int]:
        return [x % vocabulary for x in array("i", known)]

    out = []
    for g, group in enumerate(groups):
        for n, talk in enumerate(group.conversations):
            segment = Segment()
            segment.add_context(tokens(talk.prompt, "prompt", talk.prompt))
            known = group.together and talk.words
            for m, move in enumerate(talk.moves):
                if known:
                    # Not as many as were counted: a mean that is rounded otherwise would end what is alike.
                    heard, said = map(spelt, talk.words[m])
                    said.append(0)
                else:
                    new = move.new if m else move.new - talk.prompt
                    heard = tokens(new, "heard", g, *((n, m) if m else ()))
                    said = tokens(move.sampled, "said", g, n, m)
                segment.add_context(heard)
                segment.add_sampled(said, [0.0] * len(said))
            out.append(segment)
    return out


def tokens_of(groups: Sequence[Drawn]) -> int:
    """All tokens of the groups, what they share counted for each."""
    return sum(c.prompt + c.own for group in groups for c in group.conversations)


def update_time(config: Config, rates: UpdateRates, groups: Sequence[Drawn]) -> tuple[int, float]:
    """(tokens that the update reads, its seconds), by `train.trainer.update` and `train.workers`."""
    whole = tokens_of(groups)
    if not whole:
        return 0, 0.0
    read, longest = whole, whole / rates.processes / rates.tokens
    if rates.shared_prefix or rates.most:
        read, longest = _laid_out(config, rates, groups)
    settings = config.train
    updates = settings.epochs * min(settings.minibatches, len(groups))
    passes = float(settings.epochs)
    if settings.epochs * settings.minibatches > 1:
        # The start's and the reference's log-probabilities are then computed once, before the first update:
        # forwards, of which a pass has one, a backward that is worth two and otherwise the reference's.
        reference = bool(settings.grpo.kl_coefficient or settings.measure_kl)
        passes = (settings.epochs * 3 + 1 + reference) / (3 + reference)
    handled = settings.epochs * rates.serial * whole / 1000
    return read, updates * rates.base + handled + passes * longest


def _laid_out(config: Config, rates: UpdateRates, groups: Sequence[Drawn]) -> tuple[int, float]:
    """(tokens read once, seconds of the process that has most to do). Of very many, a part is laid out."""
    from ..train.batching import Room, lay_out

    ends = list(itertools.accumulate(tokens_of([group]) for group in groups))
    part = max(1, bisect.bisect_right(ends, LAID_OUT))
    most = rates.most or ends[-1]
    batches = lay_out(
        segments(groups[:part]),
        Room(most, rates.kept or most, rates.recomputed),
        config.train.micro_batch_tokens,
        rates.processes,
        kind="stretches" if rates.shared_prefix else "rows",
    )
    shares = (
        sum(rates.batch + b.work / rates.tokens for b in batches[n :: rates.processes])
        for n in range(rates.processes)
    )
    more = ends[-1] / ends[part - 1]
    return round(more * sum(b.read for b in batches)), more * max(shares)
