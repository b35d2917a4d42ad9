"""The way to an entry's answer, read off the answer: a scripted agent for tests, timings and cold starts.

Invariant: the steps lead to a verdict of 1 in every entry, exact and strict, in both languages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...agents import AgentStep
from ...chat import Message
from . import facts
from .checker import MISSPELT
from .codec import encode
from .data import Entry, Start


def solution(entry: Entry, start: Start) -> list[str]:
    """The steps of an agent that knows the answer, one call each; a traveller's are its milestones."""
    gold = {MISSPELT.get(name, name): state for world in entry.gold for name, state in world.items()}
    if "Travel" in gold:
        return list(entry.milestones[0])
    calls: list[tuple[str, dict[str, Any]]] = []
    if gold["BaseApi"]["logged_in"] and not entry.config.get("logged_in", True):
        calls.append(("login_device", {}))
    if gold["BaseApi"]["wifi"] and not entry.config.get("wifi", False):
        calls.append(("turn_on_wifi", {}))
    if "FoodPlatform" in gold:
        users = facts.food_users()
        for name in gold["FoodPlatform"]["logged_in_users"]:
            calls.append(("login_food_platform", {"username": name, "password": users[name]["password"]}))
        for order in gold["FoodPlatform"]["orders"]:
            items = [{"product": i["product"], "quantity": i["quantity"]} for i in order["items"]]
            place = {"username": order["user_name"], "merchant_name": order["merchant_name"]}
            calls.append(("add_food_delivery_order", {**place, "items": items}))
    if "MessageApi" in gold:
        inbox = {int(key): row for key, row in gold["MessageApi"]["inbox"].items()}
        names = {user_id: name for name, user_id in facts.message_users().items()}
        first = start.rows["inbox"]
        calls += [("delete_message", {"message_id": key}) for key in first if key not in inbox]
        for row in (inbox[key] for key in sorted(inbox) if key not in first):
            ends = {"sender_name": names[row["sender_id"]], "receiver_name": names[row["receiver_id"]]}
            calls.append(("send_message", {**ends, "message": row["message"]}))
    if "ReminderApi" in gold:
        for row in gold["ReminderApi"]["reminder_list"].values():
            if row not in start.rows["reminder_list"].values():
                calls.append(("add_reminder", {k: row[k] for k in ("title", "description", "time")}))
    return [f"[{encode(*call)}]" for call in calls]


class Oracle:
    """The agent that writes a solution and then ends the conversation."""

    trace = None

    def __init__(self, steps: Sequence[str]):
        self._steps = iter(steps)

    async def step(self, messages: Sequence[Message]) -> AgentStep:
        return AgentStep(Message("assistant", next(self._steps, "finish conversation")))

    def close(self) -> None:
        """Nothing is held."""
