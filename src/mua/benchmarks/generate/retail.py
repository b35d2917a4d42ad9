"""New retail tasks: who asks, what for, and what happens on the way (a change of mind, a refusal, a detail
that is told late or not known).

Invariant: every task has a write that is granted, so that doing nothing solves none.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from ...domains.script import pick
from .retail_asks import Maker, ShopAsks
from .words import Ask, Draft

Json = dict[str, Any]

KINDS: dict[str, int] = {
    "cancel": 8,
    "return": 10,
    "exchange": 13,
    "modify_items": 11,
    "modify_address": 7,
    "modify_payment": 6,
    "default_address": 4,
    "several": 15,
    "changed_mind": 9,
    "not_allowed": 9,
    "missing_information": 8,
    "information": 8,
}
"""Kind → its share of the tasks, out of about a hundred."""


class Retail:
    """Draws drafts of retail tasks. `taken` are the ids of people whom upstream's tasks mention."""

    domain = "retail"
    kinds = KINDS

    def __init__(self, db: Json, taken: set[str]):
        self.users: dict[str, Json] = db["users"]
        self.asks = ShopAsks(db)
        self.people = [u for u in self.users if u not in taken]
        self.shoppers = [u for u in self.people if self.users[u]["orders"]]

    def draw(self, rng: random.Random, kind: str) -> Draft | None:
        """A draft of that kind, or None when the person drawn has nothing for it."""
        person = pick(rng, self.people if kind == "default_address" else self.shoppers)
        user = self.users[person]
        asks, unknown = self._asks(rng, kind, user)
        if not asks:
            return None
        name = f"{user['name']['first_name']} {user['name']['last_name']}"
        zip_code = user["address"]["zip"]
        known = [f"You are {name}."]
        if rng.random() < 0.55:
            who = (f"{{my}} e-mail address is {user['email']}", {"email": user["email"]})
            known.append(f"Your e-mail address is {user['email']}.")
        else:
            who = (
                f"{{I}} {{am}} {name}, and {{my}} zip code is {zip_code}",
                {
                    "first_name": name.split(maxsplit=1)[0],
                    "last_name": user["name"]["last_name"],
                    "zip": zip_code,
                },
            )
            known.append(f"Your zip code is {zip_code}.")
            unknown = "You do not remember which e-mail address you signed up with. " + unknown
        return Draft(kind, person, who, known, asks, unknown.strip())

    # ------------------------------------------------------------ by kind

    def _asks(self, rng: random.Random, kind: str, user: Json) -> tuple[list[Ask], str]:
        single: dict[str, Maker] = {
            "cancel": self.asks.cancel,
            "return": self.asks.send_back,
            "exchange": self.asks.exchange,
            "modify_items": self.asks.modify_items,
            "modify_address": self.asks.modify_address,
            "modify_payment": self.asks.modify_payment,
            "default_address": self.asks.default_address,
        }
        if kind in single:
            return _all([single[kind](rng, user, set())]), ""
        if kind == "several":
            return self._several(rng, user), ""
        if kind == "changed_mind":
            return self._changed(rng, user), ""
        if kind == "not_allowed":
            return self._refused(rng, user), ""
        if kind == "missing_information":
            return self._missing(rng, user)
        return self._information(rng, user), ""

    def _several(self, rng: random.Random, user: Json) -> list[Ask]:
        asks: list[Ask] = []
        wanted = rng.choice((2, 2, 3))
        for _ in range(8):
            make = self.asks.default_address if rng.random() < 0.12 else pick(rng, self.asks.writes)
            used = {e for a in asks for e in a.uses}
            ask = make(rng, user, used)
            if ask is not None and not used & set(ask.uses):
                asks.append(ask)
            if len(asks) == wanted:
                return asks
        return asks if len(asks) == 2 else []

    def _changed(self, rng: random.Random, user: Json) -> list[Ask]:
        """The person proposes one thing and wants another when asked to confirm: of the same order."""
        make = pick(rng, self.asks.writes)
        before = make(rng, user, set())
        if before is None:
            return []
        others = {o for o in user["orders"] if o not in before.uses}
        for _ in range(6):
            other = pick(rng, self.asks.writes) if rng.random() < 0.4 else make
            after = other(rng, user, others)
            if after and after.uses == before.uses and after.gold != before.gold:
                before.change = after
                return [before]
        return []

    def _refused(self, rng: random.Random, user: Json) -> list[Ask]:
        refused = self.asks.forbidden(rng, user)
        if refused is None:
            return []
        for _ in range(6):
            make = self.asks.default_address if rng.random() < 0.15 else pick(rng, self.asks.writes)
            after = make(rng, user, set(refused.uses))
            if after:
                return [refused, after]
        return []

    def _missing(self, rng: random.Random, user: Json) -> tuple[list[Ask], str]:
        """The order number, or how to pay, comes only when asked for, or not at all."""
        make = pick(rng, self.asks.writes)
        ask = make(rng, user, set())
        if ask is None:
            return [], ""
        order = self.asks.orders[ask.uses[0]]
        number = order["order_id"]
        unique = [i for i in order["items"] if self.asks.only_there(user, order, i["name"])]
        if unique and rng.random() < 0.5:
            items = ask.data.get("items", "all")
            item = unique[0]["name"] if items == "all" else items[0]["name"]
            if not self.asks.only_there(user, order, item):
                return [], ""
            ask.data = {**ask.data, "has": item}
            del ask.data["order"]
            ask.want = ask.want.replace(f"order {number}", f"order with the {item}")
            ask.must = tuple(m for m in ask.must if m != number)
            return [ask], "You do not know the order number."
        if "pay" in ask.data and ask.data["pay"] != "same" and " using " in ask.want:
            head, _, tail = ask.want.rpartition(" using ")
            ask.later = {"pay": (f"Use {tail}.", {"pay": ask.data["pay"]})}
            ask.want, ask.data = head.removesuffix(","), {k: v for k, v in ask.data.items() if k != "pay"}
            return [ask], ""
        ask.later = {"order": (f"It is order {number}.", {"order": number})}
        ask.want = ask.want.replace(f"order {number}", "order")
        ask.data = {k: v for k, v in ask.data.items() if k != "order"}
        return [ask], ""

    def _information(self, rng: random.Random, user: Json) -> list[Ask]:
        """Something that the agent must tell, beside something that it must do."""
        told = pick(rng, (self.asks.tracking, self.asks.price, self.asks.refund))(rng, user)
        if told is None:
            return []
        if told.gold:
            return [told]
        make = pick(rng, self.asks.writes)
        for _ in range(4):
            ask = make(rng, user, set(told.uses))
            if ask:
                return [told, ask] if rng.random() < 0.6 else [ask, told]
        return []


def _all(asks: Sequence[Ask | None]) -> list[Ask]:
    return [a for a in asks if a] if all(asks) else []
