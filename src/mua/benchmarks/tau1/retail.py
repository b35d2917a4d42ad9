"""The tools of τ¹ retail over our database.

No package ships τ¹'s functions, and those of τ² differ from them (a looser test of pending orders, values
made whole, unknown keys dropped), so these are ours. Invariant: on any arguments, the end state and the
answer are upstream's; tests/test_tau1.py has the proof. That is why checks come in this order, why nothing
is validated, and why changes made before an exception stay.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from ...database import Database
from ...tools import ends, reads, writes
from ..calculate import ALLOWED, calculate
from .rows import Table


class Refusal(Exception):
    """An answer that begins with `Error:`."""


def refuse(why: str) -> NoReturn:
    raise Refusal(why)


class Toolkit:
    """What both domains have. An instance lives as long as its episode."""

    tables: tuple[str, ...]

    def __init__(self, db: Database):
        self._tables = {name: Table(db, name) for name in self.tables}

    def save(self) -> None:
        """Ends a call: what it changed goes to the database."""
        for table in self._tables.values():
            table.save()

    def table(self, name: str) -> Table:
        return self._tables[name]

    @reads
    def calculate(self, expression: str) -> str:
        """Works out a sum, to two digits.

        Args:
            expression: Numbers, + - * /, parentheses and spaces, for example '3 * (2 + 1.5)'.
        """
        if not all(char in ALLOWED for char in expression):
            refuse("invalid characters in expression")
        return calculate(expression)

    @reads
    def think(self, thought: str) -> str:
        """Writes a thought down. Looks nothing up and changes nothing.

        Args:
            thought: The thought.
        """
        return ""

    @ends
    def transfer_to_human_agents(self, summary: str) -> str:
        """Hands the user over to a person, which ends your part.

        Only for users who ask for a person, or whose request your tools and rules cannot meet.

        Args:
            summary: What the user wants, and how far you came.
        """
        return "Transfer successful"


class Retail(Toolkit):
    """Orders, users and products of a shop."""

    tables = ("orders", "users", "products")

    # ------------------------------------------------------------ looking up

    @reads
    def find_user_id_by_email(self, email: str) -> str:
        """Finds a user by email address.

        Args:
            email: The address.
        """
        for user_id, user in self.table("users").rows():
            if user["email"].lower() == email.lower():
                return user_id
        refuse("user not found")

    @reads
    def find_user_id_by_name_zip(self, first_name: str, last_name: str, zip: str) -> str:
        """Finds a user by name and zip code, for those who are not found by email.

        Args:
            first_name: First name.
            last_name: Last name.
            zip: Zip code, as text.
        """
        for user_id, user in self.table("users").rows():
            name = user["name"]
            if (
                name["first_name"].lower() == first_name.lower()
                and name["last_name"].lower() == last_name.lower()
                and user["address"]["zip"] == zip
            ):
                return user_id
        refuse("user not found")

    @reads
    def get_order_details(self, order_id: str) -> str:
        """Shows an order: items, address, status, payments.

        Args:
            order_id: The order's id; it begins with '#'.
        """
        return self._show("orders", order_id, "order not found")

    @reads
    def get_product_details(self, product_id: str) -> str:
        """Shows a product type with all its variants: item ids, options, prices, what is in stock.

        Args:
            product_id: The product's id, which is not an item's.
        """
        return self._show("products", product_id, "product not found")

    @reads
    def get_user_details(self, user_id: str) -> str:
        """Shows a user: name, addresses, payment methods, orders.

        Args:
            user_id: The user's id.
        """
        return self._show("users", user_id, "user not found")

    def _show(self, table: str, key: str, otherwise: str) -> str:
        if key not in self.table(table):
            refuse(otherwise)
        return json.dumps(self.table(table)[key])

    @reads
    def list_all_product_types(self) -> str:
        """Lists the names of all product types with their product ids."""
        named = {row["name"]: row["product_id"] for _, row in self.table("products").rows()}
        return json.dumps(named, sort_keys=True)

    # ------------------------------------------------------------ pending orders

    @writes
    def cancel_pending_order(self, order_id: str, reason: str) -> str:
        """Cancels an order that is still pending and refunds it: to a gift card at once, else in days.

        Tell the user what will happen and get a yes first.

        Args:
            order_id: The order's id; it begins with '#'.
            reason: Either 'no longer needed' or 'ordered by mistake'.
        """
        order = self._order(order_id, "pending", "non-pending order cannot be cancelled")
        if reason not in ["no longer needed", "ordered by mistake"]:
            refuse("invalid reason")
        refunds = []
        for payment in order["payment_history"]:
            method = payment["payment_method_id"]
            refunds.append(_payment("refund", payment["amount"], method))
            if "gift_card" in method:
                self._credit(order, method, payment["amount"])
        order["status"] = "cancelled"
        order["cancel_reason"] = reason
        order["payment_history"].extend(refunds)
        return json.dumps(order)

    @writes
    def modify_pending_order_address(
        self, order_id: str, address1: str, address2: str, city: str, state: str, country: str, zip: str
    ) -> str:
        """Changes where a pending order is sent.

        Tell the user what will happen and get a yes first.

        Args:
            order_id: The order's id; it begins with '#'.
            address1: First line.
            address2: Second line, or ''.
            city: City.
            state: State, in two letters.
            country: Country.
            zip: Zip code, as text.
        """
        order = self._order(order_id, "pending", "non-pending order cannot be modified")
        order["address"] = _address(address1, address2, city, state, country, zip)
        return json.dumps(order)

    @writes
    def modify_pending_order_items(
        self, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
    ) -> str:
        """Changes items of a pending order to others of the same product types. Only once an order.

        Tell the user what will happen and get a yes first.

        Args:
            order_id: The order's id; it begins with '#'.
            item_ids: The items to change; one twice if two of it are meant.
            new_item_ids: What each of them becomes, in the same order.
            payment_method_id: What pays, or is paid back, the difference.
        """
        order = self._order(order_id, "pending", "non-pending order cannot be modified")
        difference = self._price_difference(order, item_ids, new_item_ids)
        method = self._method(order, payment_method_id)
        gift = method["source"] == "gift_card"
        if gift and method["balance"] < difference:
            refuse("insufficient gift card balance to pay for the new item")
        kind = "payment" if difference > 0 else "refund"
        order["payment_history"].append(_payment(kind, abs(difference), payment_method_id))
        if gift:
            self._credit(order, payment_method_id, -difference)
        for old, new in zip(item_ids, new_item_ids, strict=False):
            item = _item(order, old)
            variant = self.table("products")[item["product_id"]]["variants"][new]
            item["item_id"] = new
            item["price"] = variant["price"]
            item["options"] = variant["options"]
        order["status"] = "pending (item modified)"
        return json.dumps(order)

    @writes
    def modify_pending_order_payment(self, order_id: str, payment_method_id: str) -> str:
        """Changes how a pending order is paid.

        Tell the user what will happen and get a yes first.

        Args:
            order_id: The order's id; it begins with '#'.
            payment_method_id: The user's other payment method.
        """
        order = self._order(order_id, "pending", "non-pending order cannot be modified")
        method = self._method(order, payment_method_id)
        history = order["payment_history"]
        if len(history) > 1 or history[0]["transaction_type"] != "payment":
            refuse("there should be exactly one payment for a pending order")
        before, amount = history[0]["payment_method_id"], history[0]["amount"]
        if before == payment_method_id:
            refuse("the new payment method should be different from the current one")
        if method["source"] == "gift_card" and method["balance"] < amount:
            refuse("insufficient gift card balance to pay for the order")
        history.append(_payment("payment", amount, payment_method_id))
        history.append(_payment("refund", amount, before))
        if method["source"] == "gift_card":
            self._credit(order, payment_method_id, -amount)
        if "gift_card" in before:
            self._credit(order, before, amount)
        return json.dumps(order)

    # ------------------------------------------------------------ delivered orders

    @writes
    def exchange_delivered_order_items(
        self, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
    ) -> str:
        """Asks for the exchange of items of a delivered order for others of the same product types.

        An order can be exchanged or returned once. Tell the user what will happen and get a yes first.

        Args:
            order_id: The order's id; it begins with '#'.
            item_ids: The items to exchange; one twice if two of it are meant.
            new_item_ids: What each of them becomes, in the same order.
            payment_method_id: What pays, or is paid back, the difference.
        """
        order = self._order(order_id, "delivered", "non-delivered order cannot be exchanged")
        difference = round(self._price_difference(order, item_ids, new_item_ids), 2)
        method = self._method(order, payment_method_id)
        if method["source"] == "gift_card" and method["balance"] < difference:
            refuse("insufficient gift card balance to pay for the price difference")
        order["status"] = "exchange requested"
        order["exchange_items"] = sorted(item_ids)
        order["exchange_new_items"] = sorted(new_item_ids)
        order["exchange_payment_method_id"] = payment_method_id
        order["exchange_price_difference"] = difference
        return json.dumps(order)

    @writes
    def return_delivered_order_items(self, order_id: str, item_ids: list[str], payment_method_id: str) -> str:
        """Asks for the return of items of a delivered order; the user is told by email how to send them.

        An order can be exchanged or returned once. Tell the user what will happen and get a yes first.

        Args:
            order_id: The order's id; it begins with '#'.
            item_ids: The items to return; one twice if two of it are meant.
            payment_method_id: Where the refund goes: the original payment method or a gift card.
        """
        order = self._order(order_id, "delivered", "non-delivered order cannot be returned")
        self._method(order, payment_method_id)
        original = order["payment_history"][0]["payment_method_id"]
        if "gift_card" not in payment_method_id and payment_method_id != original:
            refuse("payment method should be either the original payment method or a gift card")
        if _surplus(order, item_ids):
            refuse("some item not found")
        order["status"] = "return requested"
        order["return_items"] = sorted(item_ids)
        order["return_payment_method_id"] = payment_method_id
        return json.dumps(order)

    # ------------------------------------------------------------ users

    @writes
    def modify_user_address(
        self, user_id: str, address1: str, address2: str, city: str, state: str, country: str, zip: str
    ) -> str:
        """Changes a user's default address.

        Tell the user what will happen and get a yes first.

        Args:
            user_id: The user's id.
            address1: First line.
            address2: Second line, or ''.
            city: City.
            state: State, in two letters.
            country: Country.
            zip: Zip code, as text.
        """
        if user_id not in self.table("users"):
            refuse("user not found")
        user = self.table("users")[user_id]
        user["address"] = _address(address1, address2, city, state, country, zip)
        return json.dumps(user)

    # ------------------------------------------------------------ shared steps

    def _order(self, order_id: str, status: str, otherwise: str) -> dict[str, Any]:
        if order_id not in self.table("orders"):
            refuse("order not found")
        order = self.table("orders")[order_id]
        if order["status"] != status:
            refuse(otherwise)
        return order

    def _methods(self, order: dict[str, Any]) -> dict[str, Any]:
        return self.table("users")[order["user_id"]]["payment_methods"]

    def _method(self, order: dict[str, Any], method_id: str) -> dict[str, Any]:
        methods = self._methods(order)
        if method_id not in methods:
            refuse("payment method not found")
        return methods[method_id]

    def _credit(self, order: dict[str, Any], method_id: str, amount: float) -> None:
        method = self._methods(order)[method_id]
        method["balance"] += amount
        method["balance"] = round(method["balance"], 2)

    def _price_difference(self, order: dict[str, Any], old: list[str], new: list[str]) -> float:
        for missing in _surplus(order, old):
            refuse(f"{missing} not found")
        if len(old) != len(new):
            refuse("the number of items to be exchanged should match")
        difference = 0
        for item_id, new_id in zip(old, new, strict=True):
            item = _item(order, item_id)
            variants = self.table("products")[item["product_id"]]["variants"]
            if not (new_id in variants and variants[new_id]["available"]):
                refuse(f"new item {new_id} not found or available")
            difference += variants[new_id]["price"] - item["price"]
        return difference


def _surplus(order: dict[str, Any], item_ids: list[str]) -> list[str]:
    """The items that are wanted more often than the order has them."""
    held = [item["item_id"] for item in order["items"]]
    return [i for i in item_ids if item_ids.count(i) > held.count(i)]


def _item(order: dict[str, Any], item_id: str) -> dict[str, Any]:
    return [item for item in order["items"] if item["item_id"] == item_id][0]  # noqa: RUF015 - upstream's IndexError


def _payment(kind: str, amount: float, method_id: str) -> dict[str, Any]:
    return {"transaction_type": kind, "amount": amount, "payment_method_id": method_id}


def _address(*lines: str) -> dict[str, str]:
    keys = ("address1", "address2", "city", "state", "country", "zip")
    return dict(zip(keys, lines, strict=True))
