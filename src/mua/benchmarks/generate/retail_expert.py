"""The expert program of the shop: upstream's retail policy as code.

Invariant: it writes only after it has looked up what the policy asks to check, listed the details, and got
a yes; what policy forbids it refuses, and never tries.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from .retail_asks import REASONS, address_text
from .script import Call, Expert, Refused, Say, Script
from .words import money, options_text

Json = dict[str, Any]
Looked = Generator[Say | Call, Any, Any]


class RetailExpert(Expert):
    """Serves one customer of the shop."""

    user_id = ""

    def identify(self) -> Script:
        """By e-mail, or by name and zip code; asked again until somebody is found."""
        while True:
            if "email" in self.who:
                found = yield Call("find_user_id_by_email", {"email": self.who["email"]})
            elif "zip" in self.who:
                found = yield Call("find_user_id_by_name_zip", dict(self.who))
            else:
                yield Say("To find you: what is your e-mail address, or your full name and zip code?")
                continue
            if not isinstance(found, Refused):
                self.user_id = found
                return
            self.who = {}
            yield Say("I cannot find you by that. What is your e-mail address, or your name and zip code?")

    def once(self) -> Script:
        """One look at the request as it stands; AGAIN when the person changed its mind."""
        wish = self.request
        assert wish is not None
        person = yield Call("get_user_details", {"user_id": self.user_id})
        if wish["do"] == "profile":
            return (yield from self._profile(wish, person))
        order = yield from self._find(wish, person)
        if isinstance(order, str):
            return order
        if order["user_id"] != self.user_id:
            return self.sorry("that order is not yours, so I cannot do anything about it.")
        return (yield from getattr(self, f"_{wish['do']}")(wish, person, order))

    def _find(self, wish: Json, person: Json) -> Looked:
        """The order that the request is about."""
        if "has" in wish:
            for number in person["orders"]:
                order = yield Call("get_order_details", {"order_id": number})
                if any(i["name"] == wish["has"] for i in order["items"]):
                    return order
            return self.sorry("none of your orders has that.")
        while "order" not in wish:
            yield Say("Which order is it? What is the order number?")
            wish = self.request or wish
        order = yield Call("get_order_details", {"order_id": wish["order"]})
        return self.sorry("there is no such order.") if isinstance(order, Refused) else order

    # ------------------------------------------------------------ requests

    def _profile(self, wish: Json, person: Json) -> Looked:
        address = wish["address"]
        return (
            yield from self.do(
                f"I will change your default address to {address_text(address)}.",
                "modify_user_address",
                {"user_id": self.user_id, **address},
                "Your default address is changed.",
            )
        )

    def _tell(self, wish: Json, person: Json, order: Json) -> Looked:
        yield from ()
        if wish["what"] == "tracking":
            return f"The tracking number of order {order['order_id']} is {_tracking(order)}."
        item = _item(order, wish["items"][0])
        if item is None:
            return self.sorry("that item is not in the order.")
        return f"The {item['name']} cost ${money(item['price'])}."

    def _cancel(self, wish: Json, person: Json, order: Json) -> Looked:
        number = order["order_id"]
        if order["status"] != "pending":
            return self.sorry(f"order {number} is {order['status']}; only pending orders can be cancelled.")
        if wish["reason"] not in REASONS:
            return self.sorry(f"that is not a reason for which order {number} can be cancelled.")
        return (
            yield from self.do(
                f"I will cancel order {number} (reason: {wish['reason']}). The total goes back to how you "
                "paid: at once to a gift card, else within 5 to 7 business days.",
                "cancel_pending_order",
                {"order_id": number, "reason": wish["reason"]},
                f"Order {number} is cancelled.",
            )
        )

    def _return(self, wish: Json, person: Json, order: Json) -> Looked:
        number = order["order_id"]
        if order["status"] != "delivered":
            return self.sorry(f"order {number} is {order['status']}; only delivered orders can be returned.")
        refs = wish["items"] if wish["items"] != "all" else order["items"]
        items = [i for ref in refs if (i := _item(order, ref))]
        if len(items) < len(refs):
            return self.sorry("some of these items are not in the order.")
        method = yield from self._method(wish, person, order)
        if method is None:
            return self.sorry("I do not find that payment method in your profile.")
        original = order["payment_history"][0]["payment_method_id"]
        if method["source"] != "gift_card" and method["id"] != original:
            return self.sorry("a refund can only go to the original payment method or to a gift card.")
        total = round(sum(i["price"] for i in items), 2)
        names = "; ".join(f"{i['name']} ({options_text(i['options'])})" for i in items)
        return (
            yield from self.do(
                f"I will return these items of order {number}: {names}. The refund of ${money(total)} goes "
                "to "
                f"{method['id']}.",
                "return_delivered_order_items",
                {
                    "order_id": number,
                    "item_ids": [i["item_id"] for i in items],
                    "payment_method_id": method["id"],
                },
                "The return is requested; you will get an e-mail that says how to send the items back.",
            )
        )

    def _exchange(self, wish: Json, person: Json, order: Json) -> Looked:
        return (yield from self._swap(wish, person, order, "delivered", "exchange_delivered_order_items"))

    def _modify(self, wish: Json, person: Json, order: Json) -> Looked:
        return (yield from self._swap(wish, person, order, "pending", "modify_pending_order_items"))

    def _swap(self, wish: Json, person: Json, order: Json, status: str, name: str) -> Looked:
        number = order["order_id"]
        if order["status"] != status:
            return self.sorry(f"order {number} is {order['status']}, not {status}.")
        pairs: list[tuple[Json, Json]] = []
        for ref in wish["items"]:
            item = _item(order, ref)
            if item is None:
                return self.sorry("that item is not in the order.")
            if "product" in ref:
                return self.sorry("an item can only be changed to another option of the same product.")
            product = yield Call("get_product_details", {"product_id": item["product_id"]})
            options = {**item["options"], **ref["want"]}
            new = next((v for v in product["variants"].values() if v["options"] == options), None)
            if new is None or not new["available"]:
                return self.sorry(f"the {item['name']} is not available with {options_text(ref['want'])}.")
            pairs.append((item, new))
        method = yield from self._method(wish, person, order)
        if method is None:
            return self.sorry("I do not find that payment method in your profile.")
        difference = round(sum(new["price"] - item["price"] for item, new in pairs), 2)
        if method.get("balance", difference) < difference:
            return self.sorry("your gift card does not cover the price difference.")
        changes = "; ".join(f"{i['name']} to {options_text(n['options'])}" for i, n in pairs)
        said = f"You pay ${money(difference)}" if difference > 0 else f"You get back ${money(-difference)}"
        return (
            yield from self.do(
                f"For order {number} I will change {changes}. {said} by {method['id']}. This can be done "
                "only "
                "once for an order, so are these all the items?",
                name,
                {
                    "order_id": number,
                    "item_ids": [i["item_id"] for i, _ in pairs],
                    "new_item_ids": [n["item_id"] for _, n in pairs],
                    "payment_method_id": method["id"],
                },
                f"That is done for order {number}.",
            )
        )

    def _address(self, wish: Json, person: Json, order: Json) -> Looked:
        number = order["order_id"]
        if order["status"] != "pending":
            return self.sorry(f"order {number} is {order['status']}; its address cannot be changed any more.")
        address = person["address"] if wish["address"] == "default" else wish["address"]
        return (
            yield from self.do(
                f"I will ship order {number} to {address_text(address)}.",
                "modify_pending_order_address",
                {"order_id": number, **address},
                f"Order {number} has the new address.",
            )
        )

    def _payment(self, wish: Json, person: Json, order: Json) -> Looked:
        number = order["order_id"]
        if order["status"] != "pending":
            return self.sorry(f"order {number} is {order['status']}; its payment cannot be changed any more.")
        method = yield from self._method(wish, person, order)
        paid = order["payment_history"][0]
        if method is None or method["id"] == paid["payment_method_id"]:
            return self.sorry("that is not another payment method of your profile.")
        if method.get("balance", paid["amount"]) < paid["amount"]:
            return self.sorry("your gift card does not have enough balance for that order.")
        return (
            yield from self.do(
                f"I will charge ${money(paid['amount'])} for order {number} to {method['id']}, and refund "
                f"{paid['payment_method_id']}.",
                "modify_pending_order_payment",
                {"order_id": number, "payment_method_id": method["id"]},
                f"The payment of order {number} is changed.",
            )
        )

    def _method(self, wish: Json, person: Json, order: Json) -> Looked:
        """The payment method of the person's profile that it named; None when there is no such."""
        while "pay" not in wish:
            yield Say("Which payment method do you want to use?")
            wish = self.request or wish
        if wish["pay"] == "same":
            return person["payment_methods"].get(order["payment_history"][0]["payment_method_id"])
        fits = (m for m in person["payment_methods"].values() if wish["pay"].items() <= m.items())
        return next(fits, None)


def _item(order: Mapping[str, Any], ref: Mapping[str, Any]) -> Json | None:
    return next(
        (
            i
            for i in order["items"]
            if i["name"] == ref["name"] and ref.get("options", i["options"]) == i["options"]
        ),
        None,
    )


def _tracking(order: Mapping[str, Any]) -> str:
    return order["fulfillments"][0]["tracking_id"][0]
