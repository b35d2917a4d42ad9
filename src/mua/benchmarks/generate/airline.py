"""New airline tasks: who asks, what for, and what happens on the way (a change of mind, a refusal, a detail
that is told late or not known, a handover).

Invariant: every task has a write that is granted, so that doing nothing solves none.
"""

from __future__ import annotations

import random
from typing import Any

from ...domains.script import pick
from .airline_asks import Maker, TripAsks
from .words import Ask, Draft, action, day

Json = dict[str, Any]

KINDS: dict[str, int] = {
    "book": 16,
    "cancel": 9,
    "change_flights": 13,
    "change_cabin": 10,
    "add_bags": 9,
    "change_passenger": 8,
    "compensation": 4,
    "several": 11,
    "changed_mind": 7,
    "not_allowed": 9,
    "missing_information": 8,
    "transfer": 5,
}


class Airline:
    """Draws drafts of airline tasks. `taken` are the ids of people whom upstream's tasks mention."""

    domain = "airline"
    kinds = KINDS

    def __init__(self, db: Json, taken: set[str]):
        self.users: dict[str, Json] = db["users"]
        self.asks = TripAsks(db)
        self.people = [u for u in self.users if u not in taken]
        self.travellers = [u for u in self.people if self.users[u]["reservations"]]
        self.disrupted = [
            (u, r)
            for u in self.travellers
            for r in self.users[u]["reservations"]
            if {"cancelled", "delayed"} & set(self.asks.statuses(self.asks.reservations[r]))
        ]

    def draw(self, rng: random.Random, kind: str) -> Draft | None:
        """A draft of that kind, or None when the person drawn has nothing for it."""
        person = pick(rng, self.people if kind == "book" else self.travellers)
        if kind == "compensation":
            person, _ = pick(rng, self.disrupted)
        user = self.users[person]
        asks, unknown, basis = self._asks(rng, kind, user)
        if not asks:
            return None
        known = [
            f"You are {user['name']['first_name']} {user['name']['last_name']}.",
            f"Your user id is {person}.",
        ]
        who = (f"{{my}} user id is {person}", {"user_id": person})
        return Draft(kind, person, who, known, asks, unknown, basis=basis)

    # ------------------------------------------------------------ by kind

    def _asks(self, rng: random.Random, kind: str, user: Json) -> tuple[list[Ask], str, tuple[str, ...]]:
        single: dict[str, Maker] = {
            "book": self.asks.book,
            "cancel": self.asks.cancel,
            "change_flights": self.asks.change_flights,
            "change_cabin": self.asks.change_cabin,
            "add_bags": self.asks.add_bags,
            "change_passenger": self.asks.change_passenger,
        }
        db, none = ("DB",), ([], "", ("DB",))
        if kind in single:
            ask = single[kind](rng, user, set())
            return ([ask], "", db) if ask else none
        if kind == "compensation":
            return self._compensation(rng, user), "", db
        if kind == "changed_mind":
            return self._changed(rng, user), "", db
        if kind == "missing_information":
            return self._missing(rng, user)
        if kind == "several":
            first = self._writing(rng, user, set())
            again = first and self._writing(rng, user, set(first.uses))
            return ([first, again], "", db) if first and again else none
        if kind == "not_allowed":
            refused = self.asks.forbidden(rng, user)
            after = refused and self._writing(rng, user, set(refused.uses))
            return ([refused, after], "", db) if refused and after else none
        flown = self.asks.flown(rng, user)
        before = flown and self._writing(rng, user, set(flown.uses))
        return ([before, flown], "", ("DB", "ACTION")) if flown and before else none

    def _writing(self, rng: random.Random, user: Json, used: set[str]) -> Ask | None:
        """Something that is granted: a change most times, else a booking."""
        for _ in range(4):
            make = self.asks.book if rng.random() < 0.2 else pick(rng, self.asks.writes)
            ask = make(rng, user, used)
            if ask:
                return ask
        return None

    def _changed(self, rng: random.Random, user: Json) -> list[Ask]:
        make = pick(
            rng,
            (
                self.asks.book,
                self.asks.change_flights,
                self.asks.change_cabin,
                self.asks.add_bags,
                self.asks.cancel,
            ),
        )
        before = make(rng, user, set())
        if before is None:
            return []
        for _ in range(8):
            if make == self.asks.book:
                after = self.asks.book(rng, user, set(), route=before.data["route"])
            else:
                others = {r for r in user["reservations"] if r not in before.uses}
                other = make if make != self.asks.cancel else pick(rng, self.asks.writes)
                after = other(rng, user, others)
            if after and after.uses == before.uses and after.gold != before.gold:
                before.change = after
                return [before]
        return []

    def _missing(self, rng: random.Random, user: Json) -> tuple[list[Ask], str, tuple[str, ...]]:
        """The reservation number or how to pay is told only when asked for, or not known at all."""
        ask = pick(rng, (*self.asks.writes, self.asks.book, self.asks.book))(rng, user, set())
        none: tuple[list[Ask], str, tuple[str, ...]] = ([], "", ("DB",))
        if ask is None:
            return none
        head, using, tail = ask.want.rpartition(" using ")
        if using and rng.random() < (1.0 if ask.data["do"] == "book" else 0.4):
            ask.later = {"pay": (f"Use {tail}.", {"pay": ask.data["pay"]})}
            ask.want, ask.data = head, {k: v for k, v in ask.data.items() if k != "pay"}
            return [ask], "", ("DB",)
        if ask.data["do"] == "book":
            return none
        number = ask.data["reservation"]
        trip = self.asks.reservations[number]
        date = trip["flights"][0]["date"]
        same = [
            r
            for r in map(self.asks.reservations.__getitem__, user["reservations"])
            if (r["origin"], r["destination"], r["flights"][0]["date"])
            == (trip["origin"], trip["destination"], date)
        ]
        if len(same) > 1 or trip["origin"] == trip["destination"]:
            return none
        route = {"origin": trip["origin"], "destination": trip["destination"], "leaves": date}
        words = f"trip from {trip['origin']} to {trip['destination']} that starts on {day(date)}"
        ask.want = ask.want.replace(f"reservation {number}", words)
        ask.data = {**{k: v for k, v in ask.data.items() if k != "reservation"}, "trip": route}
        ask.must = tuple(m for m in ask.must if m != number)
        return [ask], "You do not know your reservation number.", ("DB",)

    def _compensation(self, rng: random.Random, user: Json) -> list[Ask]:
        """A certificate for a disrupted trip, if the policy gives one; else a refusal and something else."""
        found = [(u, r) for u, r in self.disrupted if u == user["user_id"]]
        number = pick(rng, found)[1]
        trip = self.asks.reservations[number]
        statuses = self.asks.statuses(trip)
        entitled = (
            user["membership"] != "regular" or trip["insurance"] == "yes" or trip["cabin"] == "business"
        )
        if "cancelled" in statuses:
            amount = 100 * len(trip["passengers"])
            ask = Ask(
                f"complain about the cancelled flight in {{my}} reservation {number} and get a "
                "compensation for it",
                {"do": "compensate", "reservation": number, "why": "cancelled"},
                [action("send_certificate", user_id=user["user_id"], amount=amount)] if entitled else [],
                must=(str(amount),),
                uses=(number,),
            )
            other = self._writing(rng, user, {number})
            if entitled and (other is None or rng.random() < 0.4):
                return [ask]
            return [ask, other] if other else []
        # Of a delayed trip, only after it was changed or cancelled.
        cancel = self.asks.cancel(rng, user, {r for r in user["reservations"] if r != number})
        if cancel is None or not entitled:
            return []
        amount = 50 * len(trip["passengers"])
        claim = Ask(
            f"get a compensation for the delayed flight in {{my}} reservation {number}",
            {"do": "compensate", "reservation": number, "why": "delayed"},
            [action("send_certificate", user_id=user["user_id"], amount=amount)],
            must=(str(amount),),
        )
        return [cancel, claim]
