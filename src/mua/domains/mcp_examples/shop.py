"""Orders of a mail-order shop: 40 products and 160 orders, twelve kinds of tasks, over mcp-server-sqlite.

Invariant: as of the package; every gold solution follows shop.md.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import random
import re
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mua.domain import Action, Task
from mua.domains import script
from mua.domains.mcp_examples import NAMES, call, request, splits, task
from mua.domains.script import Call, Refused, Say, Script, ScriptUser

_THINGS = ("lamp", "kettle", "rug", "shelf", "clock", "vase", "stool", "basket")
_COLOURS = ("red", "blue", "green", "white", "black")
_STREETS = ("Mill Lane", "Park Road", "Hill Street", "Quay Row", "Station Road")


@functools.cache
def tables() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Products and orders."""
    rng = random.Random("shop")
    names = [f"{colour} {thing}" for thing in _THINGS for colour in _COLOURS]
    products = [
        {
            "sku": f"P{100 + n}",
            "name": name,
            "price_cents": rng.randrange(500, 9000, 50),
            "stock": rng.randrange(12),
        }
        for n, name in enumerate(names)
    ]
    orders = [
        {
            "number": 1001 + n,
            "customer": rng.choice(NAMES),
            "sku": rng.choice(products)["sku"],
            "quantity": rng.randint(1, 4),
            "status": rng.choice(("placed", "placed", "sent")),
            "street": _street(rng),
        }
        for n in range(160)
    ]
    return products, orders


def make_state(folder: Path) -> None:
    products, orders = tables()
    with contextlib.closing(sqlite3.connect(folder / "shop.db")) as db, db:
        db.execute(
            "CREATE TABLE products (sku TEXT PRIMARY KEY, name TEXT NOT NULL, price_cents INTEGER NOT NULL, "
            "stock INTEGER NOT NULL)"
        )
        db.execute(
            "CREATE TABLE orders (number INTEGER PRIMARY KEY, customer TEXT NOT NULL, sku TEXT NOT NULL, "
            "quantity INTEGER NOT NULL, status TEXT NOT NULL, street TEXT NOT NULL)"
        )
        db.executemany("INSERT INTO products VALUES (:sku, :name, :price_cents, :stock)", products)
        db.executemany(
            "INSERT INTO orders VALUES (:number, :customer, :sku, :quantity, :status, :street)", orders
        )


def _street(rng: random.Random) -> str:
    return f"{rng.randint(1, 90)} {rng.choice(_STREETS)}"


# ---------------------------------------------------------------- what is written


def cancel_sql(order: Mapping[str, Any]) -> list[str]:
    return [
        f"UPDATE orders SET status = 'cancelled' WHERE number = {order['number']}",
        f"UPDATE products SET stock = stock + {order['quantity']} WHERE sku = '{order['sku']}'",
    ]


def quantity_sql(order: Mapping[str, Any], quantity: int) -> list[str]:
    return [
        f"UPDATE orders SET quantity = {quantity} WHERE number = {order['number']}",
        f"UPDATE products SET stock = stock - {quantity - order['quantity']} WHERE sku = '{order['sku']}'",
    ]


def street_sql(order: Mapping[str, Any], street: str) -> list[str]:
    return [f"UPDATE orders SET street = '{street}' WHERE number = {order['number']}"]


# ---------------------------------------------------------------- tasks

Wish = tuple[dict[str, Any], list[str], str]
"""A request, the SQL that fulfils it, and whose order it is about."""


def _stock(order: Mapping[str, Any]) -> int:
    return next(p["stock"] for p in tables()[0] if p["sku"] == order["sku"])


def _order(
    rng: random.Random, status: str = "placed", fits: Callable[[Any], bool] = lambda order: True
) -> Any:
    return rng.choice([o for o in tables()[1] if o["status"] == status and fits(o)])


def _wish(rng: random.Random, do: str, order: Mapping[str, Any], quantity: int = 0) -> Wish:
    number = order["number"]
    data: dict[str, Any] = {"do": do, "order": number}
    if do == "cancel":
        return request(f"cancel order {number}", [str(number)], data), cancel_sql(order), order["customer"]
    if do == "street":
        street = _street(rng)
        say = f"have order {number} sent to {street}"
        return (
            request(say, [str(number), street], {**data, "street": street}),
            street_sql(order, street),
            order["customer"],
        )
    say = f"change the quantity of order {number} to {quantity}"
    wish = request(say, [str(number), str(quantity)], {**data, "quantity": quantity})
    return wish, quantity_sql(order, quantity), order["customer"]


def _another(rng: random.Random, order: Mapping[str, Any]) -> int:
    """A quantity that the stock allows."""
    return rng.choice(
        [q for q in range(1, order["quantity"] + _stock(order) + 1) if q != order["quantity"]][:6]
    )


def _any_wish(rng: random.Random) -> Wish:
    do = rng.choice(("cancel", "street", "quantity"))
    order = _order(rng, fits=lambda o: _stock(o) > 1)
    return _wish(rng, do, order, _another(rng, order) if do == "quantity" else 0)


def _writes(statements: list[str]) -> list[Action]:
    return [call("write_query", query=s) for s in statements]


def _plain(do: str) -> Callable[[random.Random], Task]:
    def make(rng: random.Random) -> Task:
        order = _order(rng, fits=lambda o: _stock(o) > 1)
        wish, statements, who = _wish(rng, do, order, _another(rng, order))
        return task(do, who, [wish], _writes(statements), rng)

    return make


def _edge(extra: int, kind: str) -> Callable[[random.Random], Task]:
    """All of the stock (0 extra), or one more than there is."""

    def make(rng: random.Random) -> Task:
        order = _order(rng, fits=lambda o: _stock(o) > 0)
        wish, statements, who = _wish(rng, "quantity", order, order["quantity"] + _stock(order) + extra)
        refusal = [call("record_refusal", order=order["number"], reason="no_stock")]
        return task(kind, who, [wish], refusal if extra else _writes(statements), rng)

    return make


def _refused(reason: str) -> Callable[[random.Random], Task]:
    def make(rng: random.Random) -> Task:
        order = _order(rng, "sent" if reason == "sent" else "placed")
        wish, _, who = _wish(rng, rng.choice(("cancel", "street")), order)
        if reason == "not_yours":
            who = rng.choice([n for n in NAMES if n != who])
        return task(reason, who, [wish], [call("record_refusal", order=order["number"], reason=reason)], rng)

    return make


def _switch(rng: random.Random) -> Task:
    order = _order(rng, fits=lambda o: _stock(o) > 1)
    first, _, who = _wish(rng, "cancel", order)
    other, statements, _ = _wish(rng, rng.choice(("street", "quantity")), order, _another(rng, order))
    return task("switch", who, [{**first, "change": other}], _writes(statements), rng)


def _withdraw(rng: random.Random) -> Task:
    wish, _, who = _any_wish(rng)
    record = call("record_refusal", order=wish["data"]["order"], reason="withdrawn")
    return task("withdraw", who, [{**wish, "withdraw": True}], [record], rng)


def _two(rng: random.Random) -> Task:
    one = _any_wish(rng)
    orders = [o for o in tables()[1] if o["customer"] == one[2] and o["status"] == "placed"]
    others = [o for o in orders if o["number"] != one[0]["data"]["order"]]
    two = _wish(rng, rng.choice(("cancel", "street")), rng.choice(others))
    return task("two", one[2], [one[0], two[0]], _writes([*one[1], *two[1]]), rng)


def _handover(rng: random.Random) -> Task:
    order, reason = _order(rng, "sent"), rng.choice(("damaged", "refund"))
    what = {"damaged": "complain that order {} came damaged", "refund": "have my money back for order {}"}[
        reason
    ]
    wish = request(what.format(order["number"]), [], {"do": "complain", "reason": reason})
    return task("handover", order["customer"], [wish], [call("hand_over", reason=reason)], rng)


def _no_number(rng: random.Random) -> Task:
    wish, statements, who = _any_wish(rng)
    number = wish["data"]["order"]
    vague = {
        **wish,
        "say": wish["say"].replace(f"order {number}", "an order"),
        "data": {**wish["data"], "order": None},
        "later": {"order": {"say": f"it is order {number}", "data": {"order": number}}},
    }
    return task("no_number", who, [vague], _writes(statements), rng)


def tasks() -> dict[str, list[Task]]:
    return splits(
        "shop",
        {
            "cancel": _plain("cancel"),
            "street": _plain("street"),
            "quantity": _plain("quantity"),
            "all_stock": _edge(0, "all_stock"),
            "no_stock": _edge(1, "no_stock"),
            "sent": _refused("sent"),
            "not_yours": _refused("not_yours"),
            "switch": _switch,
            "withdraw": _withdraw,
            "two": _two,
            "handover": _handover,
            "no_number": _no_number,
        },
    )


# ---------------------------------------------------------------- who speaks


class User(ScriptUser):
    topics = {"who": re.compile(r"\byour( full)? name\b", re.I), "order": re.compile(r"\border\b", re.I)}  # noqa: RUF012


class Expert(script.Expert):
    """Follows shop.md."""

    def identify(self) -> Script:
        while "name" not in self.who:
            yield Say("May I have your name, please?")

    def once(self) -> Script:
        wanted = self.request or {}
        if wanted["do"] == "complain":
            yield Call("hand_over", {"reason": wanted["reason"]})
            return None
        while wanted.get("order") is None:
            yield Say("Which order is it? Please tell me its number.")
            wanted = self.request or {}
        number = wanted["order"]
        if self.rng.random() < 0.3:  # the policy names the columns; some clerks look all the same
            yield Call("list_tables", {})
            yield Call("describe_table", {"table_name": "orders"})
        order = yield from self.row(f"SELECT * FROM orders WHERE number = {number}")
        refusal = functools.partial(self.refused, number)
        if order["customer"] != self.who["name"]:
            return (yield from self.refuse(refusal("not_yours"), f"order {number} is not in your name."))
        if order["status"] != "placed":
            return (yield from self.refuse(refusal("sent"), f"order {number} has been sent already."))
        product = yield from self.row(f"SELECT name, stock FROM products WHERE sku = '{order['sku']}'")
        what = f"{order['quantity']} x {product['name']}"
        if wanted["do"] == "cancel":
            text, statements = f"I will cancel order {number} ({what}).", cancel_sql(order)
        elif wanted["do"] == "street":
            text = f"I will have order {number} ({what}) sent to {wanted['street']}."
            statements = street_sql(order, wanted["street"])
        else:
            if wanted["quantity"] - order["quantity"] > product["stock"]:
                return (yield from self.refuse(refusal("no_stock"), "there is not enough in stock."))
            text = f"I will change order {number} from {what} to {wanted['quantity']}."
            statements = quantity_sql(order, wanted["quantity"])
        calls = [Call("write_query", {"query": s}) for s in statements]
        return (yield from self.settle(text, calls, f"Order {number} is changed.", refusal("withdrawn")))

    def refused(self, number: int, reason: str) -> Call:
        return Call("record_refusal", {"order": number, "reason": reason})

    def row(self, query: str) -> Script:
        """The first row of an answer; the server writes rows as Python does."""
        answer = yield Call("read_query", {"query": query})
        assert not isinstance(answer, Refused)
        return ast.literal_eval(answer)[0] if isinstance(answer, str) else answer[0]
