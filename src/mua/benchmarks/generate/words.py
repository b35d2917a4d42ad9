"""The words of generated scenarios: whose they are, how a person speaks, and what a scenario says in all.

A request is written once, with `{my}`, `{I}`, `{me}`, `{am}` and `{have}` in it; a scenario tells it to the
user model in the second person ("your order"), the scripted user says it in the first ("my order").

Invariant: all wording here is mua's own; the only things taken from upstream are the facts of its databases
(names, ids, prices), which come from what the person installed.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_SECOND = {"my": "your", "I": "you", "me": "you", "am": "are", "have": "have", "was": "were"}
_THIRD = {"my": "their", "I": "they", "me": "them", "am": "are", "have": "have", "was": "were"}
_FIRST = {"my": "my", "I": "I", "me": "me", "am": "am", "have": "have", "was": "was"}


def second(text: str) -> str:
    """The text as it is told to whoever plays the person."""
    return text.format(**_SECOND)


def third(text: str) -> str:
    """The text as it is told of the person."""
    return text.format(**_THIRD)


def first(text: str) -> str:
    """The text as the person says it."""
    return text.format(**_FIRST)


PERSONAS = (
    "You write in short sentences and want to be done quickly.",
    "You are polite and a little chatty, but you stay with what you came for.",
    "You are tired after a long shift and answer just what you are asked.",
    "You are careful: you read every proposal before you agree to it.",
    "You are friendly and patient, and thank the agent for each step.",
    "You are somewhat annoyed that you have to ask for this at all, without being rude.",
    "You write without capital letters and rarely use full stops.",
    "You like to know what happens next and say so.",
    "You are not used to chatting with support and keep your sentences simple.",
    "You are matter-of-fact and give numbers exactly as you have them.",
    "You are in a noisy place, so you keep every message to one line.",
    "You are cheerful and use everyday words instead of technical ones.",
)


@dataclass
class Ask:
    """One thing that a person wants of the agent, and what it should come to."""

    want: str
    """In the infinitive, with the placeholders of this module: "cancel {my} order #W1"."""
    data: dict[str, Any]
    """The same as data: what the expert program learns when these words are said."""
    gold: list[dict[str, Any]]
    """The writes that do it, as upstream writes actions; empty when policy forbids it."""
    must: tuple[str, ...] = ()
    """What a proposal must name before the person agrees to it."""
    later: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    """Topic → (words, data) that the person tells only when asked."""
    change: Ask | None = None
    """What the person wants instead, when asked to confirm for the first time."""
    tell: list[str] = field(default_factory=list)
    """What the agent must have said to the person (the COMMUNICATE component)."""
    uses: tuple[str, ...] = ()
    """Entities that it touches; two requests of one task never share one."""

    @property
    def final(self) -> Ask:
        """What it comes to, after the change of mind."""
        return self.change or self

    @property
    def refused(self) -> bool:
        return not self.final.gold and not self.tell


@dataclass
class Draft:
    """A task in the making."""

    kind: str
    person: str
    """Key of the person in the database; part of what makes two tasks the same."""
    who: tuple[str, dict[str, Any]]
    """How the person identifies itself, in words and as data."""
    known: list[str]
    """What the person knows, in the second person, a sentence each."""
    asks: list[Ask]
    unknown: str = ""
    setup: list[dict[str, Any]] = field(default_factory=list)
    """Initialization actions, as upstream writes them."""
    assertions: list[dict[str, Any]] = field(default_factory=list)
    basis: tuple[str, ...] = ("DB",)
    notes: list[str] = field(default_factory=list)
    """Further instructions for the person, in the second person."""
    opening: str = ""
    """Why the person writes, where the requests do not say it themselves."""
    ticket: str = ""
    """The same in the third person, for an agent that works alone."""


def upstream_task(draft: Draft, domain: str, name: str, persona: str) -> dict[str, Any]:
    """The draft as a task in upstream's own format, with our data under the key `mua`.

    Invariant: the scripted user's data says nothing that the words do not.
    """
    actions = [a for ask in draft.asks for a in ask.final.gold]
    tell = [t for ask in draft.asks for t in ask.final.tell]
    basis = [*draft.basis, *(["COMMUNICATE"] if tell else [])]
    instructions = {
        "domain": domain,
        "reason_for_call": draft.opening or f"You want to {second(draft.asks[0].want)}.",
        "known_info": " ".join(draft.known),
        "unknown_info": draft.unknown or None,
        "task_instructions": " ".join([*_course(draft), *draft.notes]) or "There is nothing else you want.",
    }
    return {
        "id": name,
        "description": {"purpose": f"generated: {draft.kind}", "relevant_policies": None, "notes": None},
        "user_scenario": {"persona": persona, "instructions": instructions},
        "ticket": draft.ticket or None,
        "initial_state": (
            {"initialization_data": None, "initialization_actions": draft.setup, "message_history": None}
            if draft.setup
            else None
        ),
        "evaluation_criteria": {
            "actions": [{"action_id": f"{name}_{i}", **a} for i, a in enumerate(actions)],
            "env_assertions": draft.assertions or None,
            "communicate_info": tell,
            "nl_assertions": None,
            "reward_basis": basis,
        },
        "mua": {"kind": draft.kind, "person": draft.person, "agenda": _agenda(draft)},
    }


def _course(draft: Draft) -> list[str]:
    """What to do at each turn of events, in order."""
    out: list[str] = []
    for i, ask in enumerate(draft.asks):
        if i or draft.opening:
            before = draft.asks[i - 1] if i else None
            if before is not None and before.refused:
                out.append(
                    f"When the agent tells you that this is not possible, accept it and ask for something "
                    f"else: you want to {second(ask.want)}."
                )
            elif before is not None:
                out.append(f"When that is done, and not before, you also want to {second(ask.want)}.")
            else:
                out.append(f"You want to {second(ask.want)}.")
        for words, _ in ask.later.values():
            out.append(f"Do not mention this before you are asked for it: {second(words).removesuffix('.')}.")
        if ask.change:
            out.append(
                "As soon as the agent asks you to confirm this, you change your mind: you would rather "
                f"{second(ask.change.want)} instead. Confirm that, and stay with it."
            )
    if draft.asks and draft.asks[-1].refused:
        out.append("If the agent says that the last of these is not possible, accept that.")
    return out


def _agenda(draft: Draft) -> dict[str, Any]:
    return {
        "who": {"say": first(draft.who[0]), "data": draft.who[1]},
        "requests": [_request(a) for a in draft.asks],
    }


def _request(ask: Ask) -> dict[str, Any]:
    out: dict[str, Any] = {"say": first(ask.want), "data": ask.data, "must": list(ask.must)}
    if ask.later:
        out["later"] = {t: {"say": first(words), "data": data} for t, (words, data) in ask.later.items()}
    if ask.change:
        out["change"] = _request(ask.change)
    return out


# ---------------------------------------------------------------- small phrases


def day(date: str) -> str:
    """`May 18` of `2024-05-18`."""
    found = datetime.date.fromisoformat(date)
    return f"{found:%B} {found.day}"


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def options_text(options: Mapping[str, str]) -> str:
    """`color red, size M`."""
    return ", ".join(f"{k} {v}" for k, v in options.items())


def money(amount: float) -> str:
    """Two digits after the point, no thousands separator: what COMMUNICATE looks for."""
    return f"{amount:.2f}"


def action(name: str, requestor: str = "assistant", /, **arguments: Any) -> dict[str, Any]:
    """A gold action in upstream's format."""
    return {
        "requestor": requestor,
        "name": name,
        "arguments": arguments,
        "info": None,
        "compare_args": None,
    }
