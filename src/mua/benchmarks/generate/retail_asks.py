"""What a customer of the shop can ask for: requests that policy grants, information, and what it forbids.

Invariant: a gold write is one that upstream's policy allows and that the words of the request determine
alone. So a modification of a pending order names one item: with several, upstream's function gives all of
them the last one's price and options, and the result would depend on an order of items that nobody said.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...domains.script import pick
from .words import Ask, action, listed, money, options_text

Json = dict[str, Any]
Maker = Callable[[random.Random, Json, set[str]], Ask | None]
"""Draws a request of a person that touches none of the given entities; None when there is none."""

REASONS = {
    "no longer needed": "{I} no longer need it",
    "ordered by mistake": "{I} ordered it by mistake",
}
_OTHER_REASONS = (
    "{I} found it cheaper elsewhere",
    "the delivery takes too long",
    "{I} do not like the color",
)
_STREETS = (
    "Birch Row",
    "Harbor Street",
    "Mill Lane",
    "Quarry Road",
    "Sparrow Court",
    "Tulip Avenue",
    "Weir Path",
)


class ShopAsks:
    """Draws requests over the database. Each method takes a person of it and what is not to be touched."""

    def __init__(self, db: Json):
        self.orders: dict[str, Json] = db["orders"]
        self.products: dict[str, Json] = db["products"]
        self.places = sorted({(u["address"]["city"], u["address"]["state"]) for u in db["users"].values()})
        self.writes: tuple[Maker, ...] = (
            self.cancel,
            self.send_back,
            self.exchange,
            self.exchange,
            self.modify_items,
            self.modify_items,
            self.modify_address,
            self.modify_payment,
        )

    # ------------------------------------------------------------ requests that are granted

    def cancel(self, rng: random.Random, user: Json, used: set[str]) -> Ask | None:
        order = self._order(rng, user, used, "pending")
        if order is None:
            return None
        number, reason = order["order_id"], pick(rng, tuple(REASONS))
        return Ask(
            f"cancel {{my}} order {number} because {REASONS[reason]}",
            {"do": "cancel", "order": number, "reason": reason},
            [action("cancel_pending_order", order_id=number, reason=reason)],
            must=(number,),
            uses=(number,),
        )

    def send_back(self, rng: random.Random, user: Json, used: set[str]) -> Ask | None:
        order = self._order(rng, user, used, "delivered")
        if order is None:
            return None
        number, items = order["order_id"], order["items"]
        count = len(items) if rng.random() < 0.35 else rng.randint(1, len(items))
        chosen = rng.sample(items, count) if count < len(items) else list(items)
        refs = [_reference(order, i) for i in chosen]
        if None in refs and len(chosen) < len(items):
            return None
        pays = [p for p in user["payment_methods"].values() if p["source"] == "gift_card"]
        original = order["payment_history"][0]["payment_method_id"]
        pays += [p for p in user["payment_methods"].values() if p["id"] == original and p not in pays]
        pay = self._pay(rng, user, pays, original)
        if pay is None:
            return None
        words, data, method = pay
        every = len(chosen) == len(items)
        what = "everything" if every else f"the {listed([r['words'] for r in refs if r])}"
        return Ask(
            f"return {what} in {{my}} order {number} and get the refund using {words}",
            {
                "do": "return",
                "order": number,
                "items": "all" if every else [r["data"] for r in refs if r],
                "pay": data,
            },
            [
                action(
                    "return_delivered_order_items",
                    order_id=number,
                    item_ids=[i["item_id"] for i in chosen],
                    payment_method_id=method,
                )
            ],
            must=(number, *(() if every else (i["name"] for i in chosen))),
            uses=(number,),
        )

    def exchange(self, rng: random.Random, user: Json, used: set[str]) -> Ask | None:
        return self._swap(rng, user, used, "delivered", rng.choice((1, 1, 2)))

    def modify_items(self, rng: random.Random, user: Json, used: set[str]) -> Ask | None:
        return self._swap(rng, user, used, "pending", 1)

    def _swap(self, rng: random.Random, user: Json, used: set[str], status: str, most: int) -> Ask | None:
        order = self._order(rng, user, used, status)
        if order is None:
            return None
        number = order["order_id"]
        swaps: list[tuple[Json, Json, Json]] = []
        for item in rng.sample(order["items"], len(order["items"])):
            ref, new = _reference(order, item), self._variant(rng, item, True)
            if ref and new and len(swaps) < most:
                swaps.append((item, ref, new))
        if not swaps:
            return None
        difference = round(sum(new["price"] - item["price"] for item, _, new in swaps), 2)
        able = [p for p in user["payment_methods"].values() if p.get("balance", difference) >= difference]
        pay = self._pay(rng, user, able, order["payment_history"][0]["payment_method_id"])
        if pay is None:
            return None
        words, data, method = pay
        changes = [_changed_options(item, new) for item, _, new in swaps]
        wishes = [
            f"the {ref['words']} for one with {options_text(change)}"
            for (_, ref, _), change in zip(swaps, changes, strict=True)
        ]
        verb, do, name = (
            ("exchange", "exchange", "exchange_delivered_order_items")
            if status == "delivered"
            else ("switch", "modify", "modify_pending_order_items")
        )
        return Ask(
            f"{verb} {listed(wishes)} (and otherwise the same) in {{my}} order {number}, settling any price "
            f"difference using {words}",
            {
                "do": do,
                "order": number,
                "items": [
                    {**ref["data"], "want": change}
                    for (_, ref, _), change in zip(swaps, changes, strict=True)
                ],
                "pay": data,
            },
            [
                action(
                    name,
                    order_id=number,
                    item_ids=[item["item_id"] for item, _, _ in swaps],
                    new_item_ids=[new["item_id"] for _, _, new in swaps],
                    payment_method_id=method,
                )
            ],
            must=(number, *(item["name"] for item, _, _ in swaps)),
            uses=(number,),
        )

    def modify_address(self, rng: random.Random, user: Json, used: set[str]) -> Ask | None:
        order = self._order(rng, user, used, "pending")
        if order is None:
            return None
        number = order["order_id"]
        home = order["address"] != user["address"] and rng.random() < 0.5
        address = dict(user["address"]) if home else self._new_address(rng)
        words = "the default address in {my} profile" if home else address_text(address)
        return Ask(
            f"have {{my}} order {number} shipped to {words}",
            {"do": "address", "order": number, "address": "default" if home else address},
            [action("modify_pending_order_address", order_id=number, **address)],
            must=(number, address["address1"], address["zip"]),
            uses=(number, *(("profile",) if home else ())),
        )

    def modify_payment(self, rng: random.Random, user: Json, used: set[str]) -> Ask | None:
        order = self._order(rng, user, used, "pending")
        if order is None or len(order["payment_history"]) != 1:
            return None
        paid = order["payment_history"][0]
        able = [
            p
            for p in user["payment_methods"].values()
            if p["id"] != paid["payment_method_id"] and p.get("balance", paid["amount"]) >= paid["amount"]
        ]
        pay = self._pay(rng, user, able, "")
        if pay is None:
            return None
        words, data, method = pay
        number = order["order_id"]
        return Ask(
            f"change how {{I}} pay for {{my}} order {number}, using {words}",
            {"do": "payment", "order": number, "pay": data},
            [action("modify_pending_order_payment", order_id=number, payment_method_id=method)],
            must=(number,),
            uses=(number,),
        )

    def default_address(self, rng: random.Random, user: Json, used: set[str]) -> Ask | None:
        if "profile" in used:
            return None
        address = self._new_address(rng)
        return Ask(
            f"change the default address in {{my}} profile to {address_text(address)}",
            {"do": "profile", "address": address},
            [action("modify_user_address", user_id=user["user_id"], **address)],
            must=(address["address1"], address["zip"]),
            uses=("profile",),
        )

    # ------------------------------------------------------------ information

    def tracking(self, rng: random.Random, user: Json) -> Ask | None:
        found = [
            o for o in self._mine(user) if o["fulfillments"] and len(o["fulfillments"][0]["tracking_id"]) == 1
        ]
        if not found:
            return None
        order = pick(rng, found)
        return Ask(
            f"know the tracking number of {{my}} order {order['order_id']}",
            {"do": "tell", "what": "tracking", "order": order["order_id"]},
            [],
            tell=[order["fulfillments"][0]["tracking_id"][0]],
        )

    def price(self, rng: random.Random, user: Json) -> Ask | None:
        order = pick(rng, self._mine(user))
        item = pick(rng, order["items"])
        ref = _reference(order, item)
        if ref is None or not _telling(item["price"]):
            return None
        return Ask(
            f"know what the {ref['words']} in {{my}} order {order['order_id']} cost",
            {"do": "tell", "what": "price", "order": order["order_id"], "items": [ref["data"]]},
            [],
            tell=[money(item["price"])],
            uses=(order["order_id"],),  # a modification would change the price
        )

    def refund(self, rng: random.Random, user: Json) -> Ask | None:
        ask = self.send_back(rng, user, set())
        if ask is None:
            return None
        ids = list(ask.gold[0]["arguments"]["item_ids"])
        prices = {i["item_id"]: i["price"] for i in self.orders[ask.uses[0]]["items"]}
        total = round(sum(prices[i] for i in ids), 2)
        if len(ids) < 2 or not _telling(total):
            return None
        ask.want += ", and to know how much {I} will get back in all"
        ask.tell = [money(total)]
        return ask

    # ------------------------------------------------------------ what policy forbids

    def forbidden(self, rng: random.Random, user: Json) -> Ask | None:
        """A request that the agent has to refuse; nothing is written for it."""
        makers: tuple[tuple[Callable[..., Ask | None], tuple[str, ...]], ...] = (
            (self._cancel_late, ("processed", "delivered")),
            (self._cancel_reason, ("pending",)),
            (self._return_early, ("pending", "processed")),
            (self._return_elsewhere, ("delivered",)),
            (self._other_product, ("pending", "delivered")),
            (self._sold_out, ("pending", "delivered")),
            (self._poor_card, ("pending",)),
            (self._address_late, ("processed", "delivered")),
        )
        make, statuses = pick(rng, makers)
        order = self._order(rng, user, set(), *statuses)
        return None if order is None else make(rng, user, order)

    def _cancel_late(self, rng: random.Random, user: Json, order: Json) -> Ask | None:
        reason = pick(rng, tuple(REASONS))
        want = f"cancel {{my}} order {order['order_id']} because {REASONS[reason]}"
        return _denied(order, want, do="cancel", reason=reason)

    def _cancel_reason(self, rng: random.Random, user: Json, order: Json) -> Ask | None:
        why = pick(rng, _OTHER_REASONS)
        want = f"cancel {{my}} order {order['order_id']} because {why} (this is {{my}} only reason)"
        return _denied(order, want, do="cancel", reason="other")

    def _return_early(self, rng: random.Random, user: Json, order: Json) -> Ask | None:
        want = f"return everything in {{my}} order {order['order_id']}"
        return _denied(order, want, do="return", items="all", pay="same")

    def _return_elsewhere(self, rng: random.Random, user: Json, order: Json) -> Ask | None:
        """To a card that did not pay and is no gift card."""
        original = order["payment_history"][0]["payment_method_id"]
        methods = user["payment_methods"].values()
        pay = self._pay(
            rng, user, [p for p in methods if p["id"] != original and p["source"] != "gift_card"], ""
        )
        if pay is None:
            return None
        want = (
            f"return everything in {{my}} order {order['order_id']} and get the refund using {pay[0]}, and "
            "no other way"
        )
        return _denied(order, want, do="return", items="all", pay=pay[1])

    def _other_product(self, rng: random.Random, user: Json, order: Json) -> Ask | None:
        item = pick(rng, order["items"])
        ref = _reference(order, item)
        other = pick(rng, sorted(p["name"] for p in self.products.values() if p["name"] != item["name"]))
        if ref is None:
            return None
        want = f"get a {other} instead of the {ref['words']} in {{my}} order {order['order_id']}"
        return _denied(
            order, want, do=_swapping(order), items=[{**ref["data"], "product": other}], pay="same"
        )

    def _sold_out(self, rng: random.Random, user: Json, order: Json) -> Ask | None:
        item = pick(rng, order["items"])
        ref, new = _reference(order, item), self._variant(rng, item, False)
        if ref is None or new is None:
            return None
        change = _changed_options(item, new)
        want = (
            f"swap the {ref['words']} in {{my}} order {order['order_id']} for one with "
            f"{options_text(change)} (and otherwise the same, nothing else will do)"
        )
        items = [{**ref["data"], "want": change}]
        return _denied(order, want, do=_swapping(order), items=items, pay="same")

    def _poor_card(self, rng: random.Random, user: Json, order: Json) -> Ask | None:
        paid = order["payment_history"][0]
        poor = [
            p
            for p in user["payment_methods"].values()
            if p.get("balance", paid["amount"]) < paid["amount"] and p["id"] != paid["payment_method_id"]
        ]
        pay = self._pay(rng, user, poor, "")
        if pay is None or len(order["payment_history"]) != 1:
            return None
        return _denied(
            order,
            f"change how {{I}} pay for {{my}} order {order['order_id']}, using {pay[0]}",
            do="payment",
            pay=pay[1],
        )

    def _address_late(self, rng: random.Random, user: Json, order: Json) -> Ask | None:
        address = self._new_address(rng)
        want = f"have {{my}} order {order['order_id']} shipped to {address_text(address)}"
        return _denied(order, want, do="address", address=address)

    # ------------------------------------------------------------ parts

    def _mine(self, user: Json) -> list[Json]:
        return [self.orders[o] for o in user["orders"]]

    def _order(self, rng: random.Random, user: Json, used: set[str], *statuses: str) -> Json | None:
        found = [o for o in self._mine(user) if o["status"] in statuses and o["order_id"] not in used]
        return pick(rng, found) if found else None

    def _variant(self, rng: random.Random, item: Json, available: bool) -> Json | None:
        """Another variant of the item's product that differs in one or two options."""
        variants: list[Json] = list(self.products[item["product_id"]]["variants"].values())
        near = [
            v
            for v in variants
            if v["available"] is available
            and v["options"].keys() == item["options"].keys()
            and 1 <= len(_changed_options(item, v)) <= 2
        ]
        return pick(rng, sorted(near, key=lambda v: v["item_id"])) if near else None

    def only_there(self, user: Json, order: Json, name: str) -> bool:
        holders = [o for o in self._mine(user) if any(i["name"] == name for i in o["items"])]
        return holders == [order]

    def _pay(
        self, rng: random.Random, user: Json, able: Sequence[Json], original: str
    ) -> tuple[str, Any, str] | None:
        """One of the payment methods: words, data and id. None when none of them has a name of its own."""
        named = [(p, *named_method(user, p)) for p in able]
        named = [(p, words, data) for p, words, data in named if words]
        if not named:
            return None
        method, words, data = pick(rng, named)
        if method["id"] == original and rng.random() < 0.5:
            return "the payment method {I} paid that order with", "same", method["id"]
        return words, data, method["id"]

    def _new_address(self, rng: random.Random) -> dict[str, str]:
        city, state = self.places[rng.randrange(len(self.places))]
        return {
            "address1": f"{rng.randint(11, 989)} {pick(rng, _STREETS)}",
            "address2": f"{rng.choice(('Apt', 'Suite', 'Unit'))} {rng.randint(2, 940)}",
            "city": city,
            "state": state,
            "country": "USA",
            "zip": f"{rng.randint(10001, 99899)}",
        }


def named_method(user: Mapping[str, Any], method: Mapping[str, Any]) -> tuple[str, Json]:
    """How the person calls one of its payment methods, and the same as data; "" when another is called so."""
    same = [p for p in user["payment_methods"].values() if p["source"] == method["source"]]
    if method["source"] == "credit_card":
        last_four = method["last_four"]
        if sum(p["last_four"] == last_four for p in same) > 1:
            return "", {}
        words = f"{{my}} {method['brand']} card ending in {last_four}"
        return words, {"source": "credit_card", "last_four": last_four}
    if len(same) > 1:
        return "", {}
    what = {"paypal": "PayPal account", "gift_card": "gift card"}[method["source"]]
    return f"{{my}} {what}", {"source": method["source"]}


def address_text(address: Mapping[str, str]) -> str:
    """`12 Mill Lane, Apt 3, Denver, CO 80279, USA`."""
    a = address
    return f"{a['address1']}, {a['address2']}, {a['city']}, {a['state']} {a['zip']}, {a['country']}"


def _reference(order: Mapping[str, Any], item: Mapping[str, Any]) -> Json | None:
    """How to name one item of an order: by its name, with options where that is not enough."""
    same = [i for i in order["items"] if i["name"] == item["name"]]
    if len(same) == 1:
        return {"words": item["name"], "data": {"name": item["name"]}}
    if sum(i["options"] == item["options"] for i in same) > 1:
        return None
    words = f"{item['name']} ({options_text(item['options'])})"
    return {"words": words, "data": {"name": item["name"], "options": item["options"]}}


def _denied(order: Json, want: str, **data: Any) -> Ask:
    """A request about an order that is refused."""
    return Ask(want, {**data, "order": order["order_id"]}, [], uses=(order["order_id"],))


def _swapping(order: Json) -> str:
    return "exchange" if order["status"] == "delivered" else "modify"


def _changed_options(item: Mapping[str, Any], variant: Mapping[str, Any]) -> dict[str, str]:
    return {k: v for k, v in variant["options"].items() if item["options"].get(k) != v}


def _telling(amount: float) -> bool:
    """An amount that people write one way only, and that no other number contains by chance."""
    text = money(amount)
    return text[-1] != "0" and len(text) >= 5
