"""Tasks of the library, made from a seed, and the expert's answer to each.

Invariants:
- All tasks of a profile come from one stream of distinct contents and are dealt to the splits in order,
  so no two splits share a task.
- Every task's gold actions change the state: refusals and handovers are writes too.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...database import Base, Database
from ...domain import Action, Scenario, Task
from .data import BRANCHES, CARDS, MAX_FINES, MAX_RENEWALS, MAX_RESERVATIONS
from .tools import LibraryDesk

Agenda = dict[str, Any]
"""What the member wants, as data:

`identify`: {by: card|name|unknown, volunteer: bool, wrong: card given by mistake first or None}
`requests`: [{intent, title?, branch?, words?, contact?, late_title?: bool, twist?}], where `twist` is
{do: switch|withdraw, title?}
"""

HANDOVERS = ("complaint", "interlibrary", "disputed_fine", "name_change")
"""Intents that the policy hands over; each is also the reason to give."""


# ---------------------------------------------------------------- the expert's decisions


def refusal(db: Database, card: str, request: Mapping[str, Any]) -> str | None:
    """Why the policy refuses the request in this state, or None when it may be granted."""
    intent, title = request["intent"], request.get("title", "")
    if intent not in ("renew", "reserve"):
        return None
    member = db.get("members", card)
    assert member is not None
    if member["status"] == "expired":
        return "expired"
    if member["fines_due"] > MAX_FINES:
        return "fines"
    if intent == "renew":
        loan = db.get("loans", f"{card}/{title}")
        assert loan is not None
        if loan["renewals"] >= MAX_RENEWALS:
            return "limit"
        return "waiting" if loan["waiting"] else None
    entry = db.get("titles", title)
    assert entry is not None
    if entry["reference_only"]:
        return "reference"
    return "limit" if len(db.where("reservations", card=card)) >= MAX_RESERVATIONS else None


def granted(db: Database, card: str, request: Mapping[str, Any]) -> list[Action]:
    """The writes that grant a request."""
    intent, title = request["intent"], request.get("title", "")
    if intent == "renew":
        return [Action("renew_loan", {"card": card, "title": title})]
    if intent == "reserve":
        branch = {"branch": request["branch"]} if "branch" in request else {}
        return [Action("reserve_title", {"card": card, "title": title, **branch})]
    if intent == "cancel":
        return [Action("cancel_reservation", {"card": card, "title": title})]
    if intent == "contact":
        return [Action("update_contact", {"card": card, "contact": request["contact"]})]
    assert intent == "pay", intent
    fines = db.where("fines", card=card, paid=False)
    return [Action("pay_fine", {"card": card, "fine_id": key}) for key, _ in fines]


def solve(base: Base, card: str, agenda: Mapping[str, Any]) -> list[Action]:
    """The writes that follow from agenda and policy: the gold actions."""
    if agenda["identify"]["by"] == "unknown":
        return [Action("transfer_to_human", {"reason": "not_identified"})]
    db = base.open()
    desk = LibraryDesk(db)
    actions: list[Action] = []
    for wanted in agenda["requests"]:
        request = wanted
        if request["intent"] in HANDOVERS:
            return [*actions, Action("transfer_to_human", {"reason": request["intent"]})]
        if request["intent"] == "pay" and any(
            row["reason"] == "damage" for _, row in db.where("fines", card=card, paid=False)
        ):
            return [*actions, Action("transfer_to_human", {"reason": "damage_fine"})]
        twist = request.get("twist") or {}
        reason = refusal(db, card, request)
        if reason is None and twist.get("do") == "switch":
            request = {**request, "title": twist["title"]}
            reason = refusal(db, card, request)
        if reason is not None or twist.get("do") == "withdraw":
            outcome = ("refused", reason) if reason else ("withdrawn", "changed_mind")
            arguments = {
                "card": card,
                "request": request["intent"],
                "outcome": outcome[0],
                "reason": outcome[1],
            }
            new = [Action("record_case", arguments)]
        else:
            new = granted(db, card, request)
        for action in new:
            arguments = dict(action.arguments)
            if action.name == "update_contact":
                arguments["contact"] = _contact(arguments["contact"])
            getattr(desk, action.name)(**arguments)
        actions += new
    return actions


def _contact(data: Mapping[str, Any]) -> Any:
    from .tools import Contact

    return Contact.model_validate(data)


# ---------------------------------------------------------------- drawing tasks


class Pool:
    """What the generator draws from: members by what the policy would say to them."""

    def __init__(self, base: Base):
        self.base = base
        tables = base.tables
        self.titles = [t for t, row in tables["titles"].items() if not row["reference_only"]]
        self.reference = [t for t, row in tables["titles"].items() if row["reference_only"]]
        self.loans: dict[str, list[str]] = {}
        self.reserved: dict[str, list[str]] = {}
        for row in tables["loans"].values():
            self.loans.setdefault(row["card"], []).append(row["title"])
        for row in tables["reservations"].values():
            self.reserved.setdefault(row["card"], []).append(row["title"])
        fines: dict[str, list[str]] = {}
        for row in tables["fines"].values():
            fines.setdefault(row["card"], []).append(row["reason"])
        members = tables["members"]
        self.cards = list(members)
        self.good = [c for c, m in members.items() if m["status"] == "active" and m["fines_due"] <= MAX_FINES]
        self.expired = [c for c in members if members[c]["status"] == "expired"]
        self.owing = [c for c, m in members.items() if m["status"] == "active" and m["fines_due"] > MAX_FINES]
        self.payers = [c for c in fines if "damage" not in fines[c]]
        self.damaged = [c for c in fines if "damage" in fines[c]]

    def loans_where(self, card: str, reason: str | None) -> list[str]:
        """The member's loans whose renewal is refused for `reason` (None: granted)."""
        db = self.base.open()
        return [t for t in self.loans[card] if refusal(db, card, {"intent": "renew", "title": t}) == reason]

    def new_title(self, rng: random.Random, card: str, *but: str) -> str:
        """A lendable title that the member neither has nor reserved."""
        taken = {*self.loans.get(card, ()), *self.reserved.get(card, ()), *but}
        while True:
            title = rng.choice(self.titles)
            if title not in taken:
                return title


Draw = Callable[[random.Random, Pool], "tuple[str, Agenda] | None"]
"""One attempt at a task of a kind: (card, agenda), or None when the draw does not fit."""


def _agenda(
    *requests: dict[str, Any], volunteer: bool = True, wrong: str | None = None, by: str = "card"
) -> Agenda:
    return {"identify": {"by": by, "volunteer": volunteer, "wrong": wrong}, "requests": list(requests)}


def _request(rng: random.Random, pool: Pool, card: str, intent: str | None = None) -> dict[str, Any] | None:
    """A request that will be granted."""
    intent = intent or rng.choice(("renew", "reserve"))
    if intent == "reserve":
        return {"intent": "reserve", "title": pool.new_title(rng, card)}
    fitting = pool.loans_where(card, None)
    return {"intent": "renew", "title": rng.choice(fitting)} if fitting else None


def _plain(intent: str | None = None, **how: Any) -> Draw:
    def draw(rng: random.Random, pool: Pool):
        card = rng.choice(pool.good)
        request = _request(rng, pool, card, intent)
        return (card, _agenda(request, **how)) if request else None

    return draw


def _no_title(rng: random.Random, pool: Pool):
    card = rng.choice(pool.good)
    request = _request(rng, pool, card)
    return (card, _agenda({**request, "late_title": True})) if request else None


def _wrong_card(rng: random.Random, pool: Pool):
    card = rng.choice(pool.good)
    request = _request(rng, pool, card)
    i = rng.randrange(3)
    mistake = card[:i] + card[i + 1] + card[i] + card[i + 2 :]  # two digits swapped, as people do
    if request is None or mistake in pool.base.tables["members"]:
        return None
    return card, _agenda(request, wrong=mistake)


def _not_eligible(which: str) -> Draw:
    def draw(rng: random.Random, pool: Pool):
        card = rng.choice(getattr(pool, which))
        if rng.random() < 0.5:
            return card, _agenda({"intent": "reserve", "title": pool.new_title(rng, card)})
        return card, _agenda({"intent": "renew", "title": rng.choice(pool.loans[card])})

    return draw


def _no_renewal(reason: str) -> Draw:
    def draw(rng: random.Random, pool: Pool):
        card = rng.choice(pool.good)
        fitting = pool.loans_where(card, reason)
        return (card, _agenda({"intent": "renew", "title": rng.choice(fitting)})) if fitting else None

    return draw


def _reference(rng: random.Random, pool: Pool):
    return rng.choice(pool.good), _agenda({"intent": "reserve", "title": rng.choice(pool.reference)})


def _switch(rng: random.Random, pool: Pool):
    card = rng.choice(pool.good)
    request = _request(rng, pool, card)
    if request is None:
        return None
    if request["intent"] == "reserve":
        other = pool.new_title(rng, card, request["title"])
    else:
        fitting = [t for t in pool.loans_where(card, None) if t != request["title"]]
        if not fitting:
            return None
        other = rng.choice(fitting)
    return card, _agenda({**request, "twist": {"do": "switch", "title": other}})


def _withdraw(rng: random.Random, pool: Pool):
    card = rng.choice(pool.good)
    request = _request(rng, pool, card)
    return (card, _agenda({**request, "twist": {"do": "withdraw"}})) if request else None


def _two(rng: random.Random, pool: Pool):
    card = rng.choice(pool.good)
    first, second = _request(rng, pool, card), _request(rng, pool, card)
    if first is None or second is None or first["title"] == second["title"]:
        return None
    return card, _agenda(first, second)


def _handover(rng: random.Random, pool: Pool):
    reason = rng.choice(("complaint", "interlibrary", "disputed_fine"))
    return rng.choice(pool.cards), _agenda({"intent": reason}, volunteer=rng.random() < 0.5)


def _name_change(rng: random.Random, pool: Pool):
    return rng.choice(pool.cards), _agenda({"intent": "name_change"})


def _cancel(rng: random.Random, pool: Pool):
    card = rng.choice(pool.cards)
    mine = pool.reserved.get(card)
    return (card, _agenda({"intent": "cancel", "title": rng.choice(mine)})) if mine else None


def _pay(rng: random.Random, pool: Pool):
    return rng.choice(pool.payers), _agenda({"intent": "pay"}, volunteer=rng.random() < 0.5)


def _damage(rng: random.Random, pool: Pool):
    """Often after another request, as few members have such a fine and each task must be new."""
    card = rng.choice(pool.damaged)
    first = (
        []
        if rng.random() < 0.3
        else [{"intent": "contact", "contact": {"phone": f"555{rng.randint(1000, 9999)}"}}]
    )
    return card, _agenda(*first, {"intent": "pay"}, volunteer=rng.random() < 0.5)


def _pay_first(rng: random.Random, pool: Pool):
    """Fines stand in the way; the member pays them first, then the request can be granted."""
    card = rng.choice([c for c in pool.owing if c in pool.payers])
    return card, _agenda({"intent": "pay"}, {"intent": "reserve", "title": pool.new_title(rng, card)})


def _contact_change(rng: random.Random, pool: Pool):
    card = rng.choice(pool.cards)
    what = rng.choice(("email", "phone", "address"))
    contact: dict[str, Any]
    if what == "email":
        contact = {"email": f"reader{rng.randint(100, 9999)}@example.net"}
    elif what == "phone":
        contact = {"phone": f"555{rng.randint(1000, 9999)}"}
    else:
        other = pool.base.tables["members"][rng.choice(pool.cards)]["address"]
        contact = {"address": dict(other)}
    return card, _agenda({"intent": "contact", "contact": contact})


def _search(rng: random.Random, pool: Pool):
    """The member knows the author and one word of the title; together they fit one title only."""
    card = rng.choice(pool.good)
    title = pool.new_title(rng, card)
    author = pool.base.tables["titles"][title]["author"]
    words = f"{rng.choice(title.split())} {author}"
    if len(LibraryDesk(pool.base.open()).search_titles(words)) != 1:
        return None
    return card, _agenda({"intent": "reserve", "title": title, "words": words})


def _branch(rng: random.Random, pool: Pool):
    card = rng.choice(pool.good)
    return card, _agenda(
        {"intent": "reserve", "title": pool.new_title(rng, card), "branch": rng.choice(BRANCHES[1:])}
    )


def _unknown(rng: random.Random, pool: Pool):
    card = rng.choice(CARDS)
    if card in pool.base.tables["members"]:
        return None
    return card, _agenda({"intent": "reserve", "title": rng.choice(pool.titles)}, by="unknown")


KINDS: dict[str, Draw] = {
    "renew": _plain("renew"),
    "reserve": _plain("reserve"),
    "no_card": _plain(volunteer=False),
    "no_title": _no_title,
    "wrong_card": _wrong_card,
    "fines": _not_eligible("owing"),
    "expired": _not_eligible("expired"),
    "limit": _no_renewal("limit"),
    "waiting": _no_renewal("waiting"),
    "switch": _switch,
    "withdraw": _withdraw,
    "two": _two,
    "handover": _handover,
    "by_name": _plain(by="name"),
    "reference": _reference,
    "cancel": _cancel,
    "pay": _pay,
    "pay_first": _pay_first,
    "damage": _damage,
    "contact": _contact_change,
    "name_change": _name_change,
    "search": _search,
    "branch": _branch,
    "unknown": _unknown,
}
"""Every kind of task, by name."""


@dataclass(frozen=True)
class Mix:
    """How many tasks a split has, and the weight of each kind in it."""

    size: int
    weights: Mapping[str, float]


def make_splits(base: Base, mixes: Mapping[str, Mix], seed: str) -> dict[str, list[Task]]:
    """Tasks for every split: distinct contents over all of them."""
    rng = random.Random(f"library-tasks-{seed}")
    pool = Pool(base)
    seen: set[str] = set()
    splits: dict[str, list[Task]] = {}
    for split, mix in mixes.items():
        tasks: list[Task] = []
        kinds, weights = list(mix.weights), list(mix.weights.values())
        while len(tasks) < mix.size:
            kind = rng.choices(kinds, weights)[0]
            task = None
            for _ in range(200):
                drawn = KINDS[kind](rng, pool)
                if drawn is None:
                    continue
                task = make_task(f"{split}-{len(tasks):04d}", kind, base, *drawn, rng)
                if task.fingerprint not in seen:
                    break
                task = None
            if task is None:
                raise RuntimeError(f"200 draws gave no new task of kind '{kind}'")
            seen.add(task.fingerprint)
            tasks.append(task)
        splits[split] = tasks
    return splits


PERSONAS = (
    "You are brief.",
    "You are polite.",
    "You are in a hurry.",
    "You are chatty.",
)


def make_task(task_id: str, kind: str, base: Base, card: str, agenda: Agenda, rng: random.Random) -> Task:
    identify = agenda["identify"]
    member = base.tables["members"].get(card)
    if identify["by"] == "name":
        assert member is not None
        facts = {"name": member["name"], "postcode": member["address"]["postcode"]}
    else:
        facts = {"card": card}
    scenario = Scenario(goal=goal_text(agenda), facts=facts, persona=rng.choice(PERSONAS), agenda=agenda)
    return Task(task_id, kind, scenario, tuple(solve(base, card, agenda)))


# ---------------------------------------------------------------- the goal in words

_WISH = {
    "renew": 'renew your loan of "{title}"',
    "reserve": 'reserve "{title}" for a visit',
    "cancel": 'cancel your reservation of "{title}"',
    "pay": "pay all your fines",
    "complaint": "make a complaint about the opening hours",
    "interlibrary": "borrow a book from another library",
    "disputed_fine": "dispute a fine that you think is wrong",
    "name_change": "have your name changed, as you got married",
}


def wish(request: Mapping[str, Any]) -> str:
    """A request as the end of a sentence: `renew "Silent Harbour"`."""
    if request["intent"] == "contact":
        what, value = next(iter(request["contact"].items()))
        if what == "address":
            value = f"{value['street']}, {value['city']}, {value['postcode']}"
        return f"change your {'e-mail' if what == 'email' else what} to {value}"
    if "words" in request:
        word, author = request["words"].split(" ", 1)
        return f"reserve a book by {author}; you only remember the word {word} of its title"
    text = _WISH[request["intent"]].format(**request)
    return f"{text} for collection at {request['branch']}" if "branch" in request else text


def goal_text(agenda: Mapping[str, Any]) -> str:
    """The agenda as instructions for a language-model user."""
    identify, requests = agenda["identify"], agenda["requests"]
    parts = [f"You want to {wish(requests[0])}."]
    if identify["by"] == "unknown":
        parts.append("You insist that your card number is right.")
    elif identify["wrong"]:
        parts.append(f"First give {identify['wrong']} as your card by mistake.")
    if not identify["volunteer"]:
        parts.append("Say who you are only when asked.")
    for i, request in enumerate(requests):
        if i:
            parts.append(f"After that, {wish(request)}.")
        if request.get("late_title"):
            parts.append("Name the title only when asked.")
        twist = request.get("twist")
        if twist and twist["do"] == "switch":
            parts.append(f'When asked to confirm, make it "{twist["title"]}" instead.')
        elif twist:
            parts.append("When asked to confirm, say you changed your mind and want nothing.")
    return " ".join(parts)


# ---------------------------------------------------------------- profiles


@dataclass(frozen=True)
class Profile:
    """A size of the domain: which tools, which policy text, which tasks."""

    policy_file: str
    tools: tuple[str, ...]
    mixes: Mapping[str, Mix]


# Weights of the kinds at the small desk. What needs care (looking first, asking first) is frequent among
# the tasks of the cold start, as haste solves none of them and verification drops those attempts.
_DESK_COLD = {
    "renew": 16,
    "reserve": 20,
    "two": 14,
    "no_card": 4,
    "no_title": 3,
    "wrong_card": 8,
    "fines": 6,
    "expired": 6,
    "limit": 5,
    "waiting": 4,
    "switch": 22,
    "withdraw": 26,
    "handover": 4,
}
_DESK_LIVE = {
    "renew": 7,
    "reserve": 11,
    "no_card": 2,
    "no_title": 2,
    "wrong_card": 5,
    "fines": 3,
    "expired": 3,
    "limit": 3,
    "waiting": 3,
    "switch": 30,
    "withdraw": 26,
    "two": 2,
    "handover": 3,
}


PROFILES: dict[str, Profile] = {
    "full": Profile(
        "policy.md",
        (),
        {
            "train": Mix(2000, dict.fromkeys(KINDS, 1.0)),
            "dev": Mix(120, dict.fromkeys(KINDS, 1.0)),
            "test": Mix(240, dict.fromkeys(KINDS, 1.0)),
        },
    ),
    # For models of a few million parameters.
    "desk": Profile(
        "desk.md",
        (
            "find_member_by_card",
            "check_loan",
            "renew_loan",
            "reserve_title",
            "record_case",
            "transfer_to_human",
        ),
        {
            "cold": Mix(3000, _DESK_COLD),
            "train": Mix(1500, _DESK_LIVE),
            "dev": Mix(200, _DESK_LIVE),
            "test": Mix(300, _DESK_LIVE),
        },
    ),
}


@functools.cache
def profile_tasks(name: str, base: Base) -> Mapping[str, Sequence[Task]]:
    return make_splits(base, PROFILES[name].mixes, name)
