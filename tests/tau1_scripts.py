"""Perturbed call scripts for τ¹: what an agent could do wrong, drawn from the gold calls of its tasks.

A script is a list of `{"name", "kwargs"}`, upstream's form of an action; `respond` speaks to the user. The
same seed gives the same script. Used by the tests and by tau1_upstream.py, which plays them in upstream.
"""

import copy
import json
import random

from mua.benchmarks.tau1.domain import TOOLKITS
from mua.database import thaw
from mua.tools import toolkit_tools

STOP = "###STOP###"


def script(domain, tasks, seed):
    """(task, steps): the task's own calls, bent in up to five ways, with some words in between."""
    rng = random.Random(f"{domain.name}/{seed}")
    task = rng.choice(tasks)
    steps = [{"name": a.name, "kwargs": thaw(copy.deepcopy(a.arguments))} for a in task.actions]
    for _ in range(rng.choice((0, 1, 1, 2, 3, 5))):
        _bend(rng, steps, domain, tasks)
    for text in (*task.outputs, "It is 1,234.5 dollars.", "Done"):
        if rng.random() < 0.6:
            words = rng.choice(("{}", "that makes {} in all", "${}!")).format(text)
            steps.insert(rng.randint(0, len(steps)), {"name": "respond", "kwargs": {"content": words}})
    return task, json.loads(json.dumps(steps))


def _bend(rng, steps, domain, tasks):
    """One change of the script."""
    way = rng.choice(
        ("drop", "twice", "swap", "other", "value", "value", "value", "tool", "random", "random")
    )
    here = rng.randrange(len(steps)) if steps else None
    if way == "random" or here is None:
        steps.insert(rng.randint(0, len(steps)), _random_call(rng, domain))
    elif way == "drop":
        del steps[here]
    elif way == "twice":
        steps.insert(rng.randint(here, len(steps)), copy.deepcopy(steps[here]))
    elif way == "swap":
        there = rng.randrange(len(steps))
        steps[here], steps[there] = steps[there], steps[here]
    elif way == "other":
        others = rng.choice(tasks).actions
        steps[here:here] = [{"name": a.name, "kwargs": thaw(copy.deepcopy(a.arguments))} for a in others]
    elif way == "tool":
        names = [*toolkit_tools(TOOLKITS[domain.name.split("/")[1]]), "no_such_tool", "get_flight_status"]
        steps[here]["name"] = rng.choice(names)
    else:
        bent = _bend_value(rng, steps[here]["kwargs"])
        steps[here]["kwargs"] = bent if isinstance(bent, dict) else {}


def _bend_value(rng, value):
    """The value with something in it changed."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        value = dict(value)
        key = rng.choice(sorted(value))
        if rng.random() < 0.12:
            del value[key]
        elif rng.random() < 0.12:
            value[rng.choice(("note", "price", "seat"))] = rng.choice((1, "x", None))
        else:
            value[key] = _bend_value(rng, value[key])
        return value
    if isinstance(value, list) and value and rng.random() < 0.9:
        value = list(value)
        at = rng.randrange(len(value))
        match rng.randrange(4):
            case 0:
                value.append(value[at])
            case 1:
                del value[at]
            case 2:
                value.reverse()
            case _:
                value[at] = _bend_value(rng, value[at])
        return value
    if isinstance(value, bool | int | float) and rng.random() < 0.9:
        return rng.choice((float(value), str(value), value + 1, -value, bool(value), value * 10**6, 0))
    if isinstance(value, str) and rng.random() < 0.8:
        return rng.choice(
            (value.upper(), value.lower(), value + " ", value[1:], f"#{value}", "yes", "business")
        )
    return rng.choice((None, [], {}, "", 0, 1.5, True, [value], {"a": value}))


def _random_call(rng, domain):
    """A call that may well succeed, on somebody's data."""
    part = domain.name.split("/")[1]
    kwargs = _retail(rng, domain.base.tables) if part == "retail" else _airline(rng, domain.base.tables)
    name = rng.choice(sorted(kwargs))
    return {"name": name, "kwargs": thaw(copy.deepcopy(kwargs[name]))}


def _retail(rng, tables):
    order_id = rng.choice(sorted(tables["orders"]))
    order = tables["orders"][order_id]
    user = tables["users"][order["user_id"]]
    method = rng.choice(sorted(user["payment_methods"]))
    items = [rng.choice(order["items"]) for _ in range(rng.choice((1, 1, 2)))]
    new = [rng.choice(sorted(tables["products"][i["product_id"]]["variants"])) for i in items]
    swap = {"order_id": order_id, "item_ids": [i["item_id"] for i in items], "new_item_ids": new}
    place = dict(address1="1 Any St", address2="", city="X", state="TX", country="USA", zip="70001")
    name = user["name"]
    return {
        "cancel_pending_order": {"order_id": order_id, "reason": "no longer needed"},
        "modify_pending_order_items": {**swap, "payment_method_id": method},
        "exchange_delivered_order_items": {**swap, "payment_method_id": method},
        "return_delivered_order_items": {
            "order_id": order_id,
            "item_ids": swap["item_ids"],
            "payment_method_id": rng.choice((method, order["payment_history"][0]["payment_method_id"])),
        },
        "modify_pending_order_payment": {"order_id": order_id, "payment_method_id": method},
        "modify_pending_order_address": {"order_id": order_id, **place},
        "modify_user_address": {"user_id": order["user_id"], **place},
        "find_user_id_by_email": {"email": rng.choice((user["email"].upper(), "nobody@example.com"))},
        "find_user_id_by_name_zip": {
            "first_name": name["first_name"].lower(),
            "last_name": name["last_name"],
            "zip": user["address"]["zip"],
        },
        "get_order_details": {"order_id": order_id},
        "get_product_details": {"product_id": items[0]["product_id"]},
        "list_all_product_types": {},
        "calculate": {"expression": rng.choice(SUMS)},
        "transfer_to_human_agents": {"summary": "x"},
    }


SUMS = (
    "2 + 3 * 4",
    "(1.005 - 1) / 3",
    "7 // 2",
    "1 / 0",
    "2 +",
    "(",
    "",
    " 1",
    "-(3) - -2",
    "a",
    "()",
    "1 2",
    ".5.",
)


def _airline(rng, tables):
    reservation_id = rng.choice(sorted(tables["reservations"]))
    reservation = tables["reservations"][reservation_id]
    user_id = reservation["user_id"]
    user = tables["users"][user_id]
    method = rng.choice(sorted(user["payment_methods"]))
    legs = [{"flight_number": f["flight_number"], "date": f["date"]} for f in reservation["flights"]]
    if rng.random() < 0.6:
        legs[rng.randrange(len(legs))]["date"] = f"2024-05-{rng.randint(14, 31)}"
    cabin = rng.choice((reservation["cabin"], "economy", "business", "first"))
    bags = rng.choice((0, 1, 3, 2.0))
    people = [dict(p) for p in reservation["passengers"]]
    price = 0
    for leg in legs:
        day = tables["flights"][leg["flight_number"]]["dates"].get(leg["date"], {})
        price += day.get("prices", {}).get(cabin, 0) * len(people)
    paid = [{"payment_id": method, "amount": price + 50 * bags}]
    if rng.random() < 0.2:
        paid.append({"payment_id": method, "amount": 0})
    end = tables["flights"][legs[-1]["flight_number"]]["destination"]
    book = {
        "user_id": user_id,
        "origin": reservation["origin"],
        "destination": end,
        "flight_type": "one_way",
        "cabin": cabin,
        "flights": legs,
        "passengers": people,
        "payment_methods": paid,
        "total_baggages": 3,
        "nonfree_baggages": bags,
        "insurance": "no",
    }
    day = f"2024-05-{rng.randint(1, 31):02}"
    change = {"reservation_id": rng.choice((reservation_id, reservation_id, "HATHAT"))}
    return {
        "book_reservation": book,
        "cancel_reservation": change,
        "send_certificate": {"user_id": user_id, "amount": rng.choice((100, 50.5))},
        "update_reservation_baggages": {
            **change,
            "total_baggages": 4,
            "nonfree_baggages": bags,
            "payment_id": method,
        },
        "update_reservation_flights": {**change, "cabin": cabin, "flights": legs, "payment_id": method},
        "update_reservation_passengers": {**change, "passengers": people[::-1]},
        "search_direct_flight": {"origin": reservation["origin"], "destination": end, "date": day},
        "search_onestop_flight": {"origin": reservation["origin"], "destination": end, "date": day},
        "get_user_details": {"user_id": user_id},
        "get_reservation_details": change,
        "list_all_airports": {},
        "calculate": {"expression": rng.choice(SUMS)},
        "transfer_to_human_agents": {"summary": "x"},
    }
