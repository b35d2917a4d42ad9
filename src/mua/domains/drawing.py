"""Tasks of a domain, drawn from a seed: wishes in words and as data, dealt to splits.

A wish is written once: "drop {my} section", which the goal tells in the second person ("You want to drop
your section") and the scripted user says in the first. The agenda is that of `domains.script`.

Invariant: all tasks of a domain come from one stream of distinct contents and are dealt to the splits in
order, every kind in equal shares, so that no two splits share a task.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..domain import Action, Change, Scenario, Task

Json = dict[str, Any]

PERSONAS = (
    "You are brief.",
    "You are polite and thank the agent for each step.",
    "You are in a hurry and answer just what you are asked.",
    "You are chatty, but you stay with what you came for.",
    "You are careful and read every proposal before you agree.",
    "You write in plain, simple sentences.",
)
_FIRST = {"my": "my", "me": "me", "I": "I", "am": "am"}
_SECOND = {"my": "your", "me": "you", "I": "you", "am": "are"}


@dataclass
class Wish:
    """One thing that the person wants, and how it behaves about it."""

    want: str
    """In the infinitive, with {my}, {me}, {I} and {am} for the person: "drop {my} section CS201-2"."""
    data: Json
    """The same as data: what an expert learns from these words."""
    must: Sequence[str] = ()
    """What a proposal has to name before the person agrees to it."""
    later: Mapping[str, tuple[str, Json]] = field(default_factory=dict)
    """Topic → (words, data) that the person tells only when asked."""
    change: Wish | None = None
    """What it wants instead, once it is asked to confirm."""
    withdraw: bool = False
    """It wants nothing any more, once it is asked to confirm."""
    insist: bool = False
    """It asks for an exception, once, when it is refused."""
    more: Json = field(default_factory=dict)
    """Further keys of the request in the agenda, which the domain's own scripted user reads."""
    note: str = ""
    """What the goal says beyond these, in the second person."""

    def request(self) -> Json:
        """The wish as a request of an agenda."""
        out: Json = {"say": self.want.format(**_FIRST), "data": self.data, "must": list(self.must)}
        if self.later:
            out["later"] = {
                topic: {"say": words.format(**_FIRST), "data": data}
                for topic, (words, data) in self.later.items()
            }
        if self.change:
            out["change"] = self.change.request()
        if self.withdraw:
            out["withdraw"] = True
        if self.insist:
            out["insist"] = True
        return out | self.more

    def told(self) -> str:
        """The wish as the end of "You want to"."""
        return self.want.format(**_SECOND)

    def notes(self) -> list[str]:
        """What the goal says of it beyond `told`."""
        out = [f"Say only when you are asked: {w.format(**_FIRST)}." for w, _ in self.later.values()]
        out += [self.note] if self.note else []
        if self.change:
            out.append(f"When you are asked to confirm that, say that you would rather {self.change.told()}.")
            out += self.change.notes()
        if self.withdraw:
            out.append("When you are asked to confirm that, say that you changed your mind and want nothing.")
        if self.insist:
            out.append("If you are refused, ask once for an exception, then accept the answer.")
        return out


@dataclass
class Draft:
    """A task to be: who asks for what, in which state."""

    who: tuple[str, Json]
    """How the person says who it is, in the first person, and the same as data."""
    facts: Mapping[str, str]
    wishes: Sequence[Wish]
    wrong: tuple[str, Json] | None = None
    """What it says of itself the first time, by mistake."""
    setup: Sequence[Change] = ()
    notes: Sequence[str] = ()
    """What the goal says at its end, in the second person."""

    def scenario(self, persona: str) -> Scenario:
        """The draft in words and as an agenda."""
        who: Json = {"say": self.who[0], "data": self.who[1]}
        parts = []
        for i, wish in enumerate(self.wishes):
            parts.append(f"{'After that, you' if i else 'You'} want to {wish.told()}.")
            parts += wish.notes()
        if self.wrong:
            who["wrong"] = {"say": self.wrong[0], "data": self.wrong[1]}
            parts.append(f'When you first say who you are, you get it wrong: "{self.wrong[0]}".')
        goal = " ".join([*parts, *self.notes])
        return Scenario(
            goal, dict(self.facts), persona, {"who": who, "requests": [w.request() for w in self.wishes]}
        )


Draw = Callable[[random.Random], "Draft | None"]
"""One attempt at a task of a kind; None when what was drawn does not go together."""


def deal(
    kinds: Mapping[str, Draw],
    sizes: Mapping[str, int],
    seed: str,
    gold: Callable[[Draft], Sequence[Action]],
) -> dict[str, list[Task]]:
    """The tasks of every split; `gold` gives the calls that solve a draft."""
    rng = random.Random(seed)
    seen: set[str] = set()
    splits: dict[str, list[Task]] = {}
    for split, size in sizes.items():
        rounds = [list(kinds) for _ in range(-(-size // len(kinds)))]
        for names in rounds:
            rng.shuffle(names)
        order = [name for names in rounds for name in names][:size]
        splits[split] = []
        for number, kind in enumerate(order):
            task = _new(rng, kind, kinds[kind], f"{split}-{number:04d}", gold, seen)
            seen.add(task.fingerprint)
            splits[split].append(task)
    return splits


def _new(
    rng: random.Random,
    kind: str,
    draw: Draw,
    task_id: str,
    gold: Callable[[Draft], Sequence[Action]],
    seen: set[str],
) -> Task:
    """A task of the kind that is not in `seen`."""
    for _ in range(500):
        draft = draw(rng)
        if draft is None:
            continue
        actions = tuple(gold(draft))
        task = Task(task_id, kind, draft.scenario(rng.choice(PERSONAS)), actions, tuple(draft.setup))
        if task.fingerprint not in seen:
            return task
    raise RuntimeError(f"500 draws gave no new task of kind '{kind}'")
