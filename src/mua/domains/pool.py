"""What the tasks of a casework domain are drawn from: requests, by how the policy ends them.

A domain's `Pool` says which requests its database suggests; the policy is asked about each of them once, so
that a kind of task draws from requests of which it knows the end. The kinds that every desk has (who is
asked, changes of mind, insisting, handovers, …) are made here; the domain adds its own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..database import Base, Row
from .casework import Desk, Grant, HandOver, Json, decision_on
from .drawing import Draft, Draw, Wish

GRANTED, REFUSED, HANDED_OVER = "granted", "refused", "handed over"


class Pool:
    """Requests that a database suggests."""

    desk: ClassVar[Desk]
    table: ClassVar[str]
    """Where the persons are."""
    number: ClassVar[str]
    """What a person calls its key in that table: "tenant number"."""
    usual: ClassVar[Sequence[str]] = (GRANTED, REFUSED)
    """How the requests end of kinds that are about something else, each equally likely."""

    def __init__(self, base: Base):
        self.base = base
        self.tables = base.tables
        self.people = list(self.tables[self.table])
        self.requests: dict[tuple[str, str], list[tuple[str, Json]]] = {}
        """(what is asked for, the reason of a refusal or handover, or "granted") → (person, request)."""
        self.granted: dict[str, list[Json]] = {}
        """Person → what it would be granted."""
        self._ways: dict[tuple[str, str], str] = {}
        kit = self.desk.toolkit(base.open())
        rng = random.Random(f"{self.table}-pool")
        for person in self.people:
            found = getattr(kit, self.desk.finders[self.desk.person])(person)
            for data in self.suggested(rng, person):
                decision = decision_on(self.desk, kit, found, {"data": data})
                end, way = (GRANTED, GRANTED) if isinstance(decision, Grant) else (decision.reason, REFUSED)
                self.requests.setdefault((data["do"], end), []).append((person, data))
                self._ways[data["do"], end] = HANDED_OVER if isinstance(decision, HandOver) else way
                if way == GRANTED:
                    self.granted.setdefault(person, []).append(data)

    # ------------------------------------------------------------ what a domain says

    def suggested(self, rng: random.Random, person: str) -> Sequence[Json]:
        """Requests that the person could make, with all that they are about."""
        raise NotImplementedError

    def wish(self, data: Json, late: Sequence[str] = (), **more: Any) -> Wish:
        """A request in words, by its content alone; the topics in `late` are told when they are asked for."""
        raise NotImplementedError

    def short(self, rng: random.Random, person: str, data: Json) -> Json:
        """The request without what need not be said."""
        return data

    # ------------------------------------------------------------ drawing

    def rows(self, table: str, person: str, field: str = "") -> list[tuple[str, Row]]:
        """Rows of the initial database that belong to a person (or to what `field` names)."""
        keys = self.base.index(table, field or self.desk.person).get(person, ())
        return [(key, self.tables[table][key]) for key in keys]

    def draw(self, rng: random.Random, do: str | None, *ends: str) -> tuple[str, Json]:
        """A request that ends in one of the ways or for one of the reasons, each of them equally likely."""
        fitting = [
            key for key, way in self._ways.items() if do in (None, key[0]) and (way in ends or key[1] in ends)
        ]
        person, data = rng.choice(self.requests[rng.choice(fitting)])
        return person, self.short(rng, person, data)

    def any(self, rng: random.Random) -> tuple[str, Json]:
        """A request that ends in one of the usual ways."""
        return self.draw(rng, None, rng.choice(self.usual))

    def draft(self, person: str, *wishes: Wish, **more: Any) -> Draft:
        """The person, by its number, with its wishes."""
        return Draft(self._who(person), {self.number: person}, wishes, **more)

    def _who(self, person: str) -> tuple[str, dict[str, Any]]:
        return f"my {self.number} is {person}", {self.desk.person: person}

    def one(self, do: str | None, *ends: str) -> Draw:
        """Tasks of one request that ends in one of the ways."""

        def draw(rng: random.Random):
            person, data = self.draw(rng, do, *ends)
            return self.draft(person, self.wish(data))

        return draw

    # ------------------------------------------------------------ kinds that every desk has

    def common(self) -> Mapping[str, Draw]:
        """Kinds of tasks, by name."""
        return {
            "insist": self._insist,
            "withdraw": self._withdraw,
            "two": self._two,
            "after_refusal": self._after_refusal,
            "wrong_id": self._wrong_id,
            "by_name": self._by_name,
            "unknown": self._unknown,
            "at_once": self._at_once,
            "then_handover": self._then_handover,
        }

    def _insist(self, rng: random.Random):
        person, data = self.draw(rng, None, REFUSED)
        return self.draft(person, self.wish(data, insist=True))

    def _withdraw(self, rng: random.Random):
        person, data = self.draw(rng, None, GRANTED)
        return self.draft(person, self.wish(data, withdraw=True))

    def _two(self, rng: random.Random):
        return self._and_another(rng, *self.draw(rng, None, GRANTED))

    def _after_refusal(self, rng: random.Random):
        return self._and_another(rng, *self.draw(rng, None, REFUSED))

    def _and_another(self, rng: random.Random, person: str, first: Json):
        others = [d for d in self.granted.get(person, ()) if d["do"] != first["do"]]
        if not others:
            return None
        second = self.short(rng, person, rng.choice(others))
        return self.draft(person, self.wish(first), self.wish(second))

    def _wrong_id(self, rng: random.Random):
        person, data = self.any(rng)
        i = rng.randrange(1, len(person) - 1)
        mistake = person[:i] + person[i + 1] + person[i] + person[i + 2 :]  # two digits swapped
        if mistake in self.tables[self.table]:
            return None
        return self.draft(person, self.wish(data), wrong=self._who(mistake))

    def _by_name(self, rng: random.Random):
        person, data = self.any(rng)
        row = self.tables[self.table][person]
        name, born = row["name"], row["date_of_birth"]
        facts = {"name": name, "date of birth": born, self.number: "you do not know it"}
        who = (f"I am {name}, born on {born}", {"name": name, "date_of_birth": born})
        return Draft(who, facts, [self.wish(data)])

    def _unknown(self, rng: random.Random):
        number = f"{self.people[0][0]}{rng.randrange(1000, 10000)}"
        if number in self.tables[self.table]:
            return None
        _, data = self.any(rng)
        return self.draft(number, self.wish(data), notes=[f"You are sure that your {self.number} is right."])

    def _at_once(self, rng: random.Random):
        return self.draft(rng.choice(self.people), self.wish({"do": self._reason(rng)}))

    def _then_handover(self, rng: random.Random):
        person, data = self.draw(rng, None, GRANTED, REFUSED)
        return self.draft(person, self.wish(data), self.wish({"do": self._reason(rng)}))

    def _reason(self, rng: random.Random) -> str:
        return rng.choice(sorted(self.desk.at_once))
