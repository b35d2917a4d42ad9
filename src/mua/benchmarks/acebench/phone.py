"""The phone and what runs on it: messages, reminders, food delivery.

Invariant: as `worlds` says; an object shares nothing with another one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

from . import facts
from .facts import Language

CAPACITY = 6
"""Messages that the inbox holds, and reminders that the list holds."""


class BaseApi:
    """The phone: Wi-Fi and whether somebody is logged in. Three of the other worlds have both as well."""

    _SAVED: ClassVar[tuple[str, ...]] = ("wifi", "logged_in")
    _ONLY_ZH: ClassVar[frozenset[str]] = frozenset()
    """Functions that the Chinese worlds have and the English ones lack."""

    def __init__(
        self,
        language: Language,
        texts: Mapping[str, str],
        config: Mapping[str, Any],
        rows: Mapping[str, Mapping[int, Mapping[str, Any]]],
    ):
        """`config` is the entry's `BaseApi` part; `rows` are `data.Start.rows`: the first messages and
        reminders."""
        self._language: Language = language
        self._texts = texts
        self.wifi = config.get("wifi", False)
        self.logged_in = config.get("logged_in", True)
        self._begin(config, rows)

    def _begin(self, config: Mapping[str, Any], rows: Any) -> None:
        pass

    @classmethod
    @functools.cache
    def _functions(cls, language: Language) -> frozenset[str]:
        public = {n for c in cls.__mro__[:-1] for n in vars(c) if not n.startswith("_")}
        return frozenset(public if language == "zh" else public - cls._ONLY_ZH)

    def _state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._SAVED}

    def _text(self, key: str, *values: Any) -> str:
        return self._texts[key].format(*values)

    def _no(self, key: str, *values: Any) -> dict[str, Any]:
        return {"status": False, "message": self._text(key, *values)}

    def _yes(self, key: str, *values: Any) -> dict[str, Any]:
        return {"status": True, "message": self._text(key, *values)}

    def turn_on_wifi(self):
        self.wifi = True
        return self._yes("turn_on_wifi.done")

    def login_device(self):
        self.logged_in = True
        return self._yes("login_device.done")


class MessageApi(BaseApi):
    """Text messages. The inbox is one for everybody, and is full from the start."""

    _SAVED = ("inbox",)

    def _begin(self, config: Mapping[str, Any], rows: Any) -> None:
        self.inbox = {key: dict(row) for key, row in rows["inbox"].items()}
        self._people = facts.message_users()
        self._count = CAPACITY

    def send_message(self, sender_name, receiver_name, message):
        if not self.logged_in:
            return self._no("send_message.logged_out")
        if not self.wifi:
            return self._no("send_message.no_wifi")
        if len(self.inbox) >= CAPACITY:
            return self._no("send_message.full")
        if sender_name not in self._people or receiver_name not in self._people:
            return self._no("send_message.nobody")
        self._count += 1
        # A sent message has no time, which the functions that look at times then stumble over.
        self.inbox[self._count] = {
            "sender_id": self._people[sender_name],
            "receiver_id": self._people[receiver_name],
            "message": message,
        }
        return self._yes("send_message.done", receiver_name)

    def delete_message(self, message_id):
        if not self.logged_in:
            return self._no("delete_message.logged_out")
        if message_id not in self.inbox:
            return self._no("delete_message.missing")
        del self.inbox[message_id]
        return self._yes("delete_message.done", message_id)

    def view_messages_between_users(self, sender_name, receiver_name):
        if not self.logged_in:
            return self._no("view_messages_between_users.logged_out")
        if sender_name not in self._people:
            return self._no("view_messages_between_users.no_sender")
        if receiver_name not in self._people:
            return self._no("view_messages_between_users.no_receiver")
        pair = self._people[sender_name], self._people[receiver_name]
        found = [
            {"id": key, "sender": sender_name, "receiver": receiver_name, "message": row["message"]}
            for key, row in self.inbox.items()
            if (row["sender_id"], row["receiver_id"]) == pair
        ]
        return {"status": True, "messages": found} if found else self._no("view_messages_between_users.none")

    def search_messages(self, user_name, keyword):
        if user_name not in self._people:
            return self._no("search_messages.nobody")
        who = self._people[user_name]
        found = []
        for key, row in self.inbox.items():
            ends = row["sender_id"], row["receiver_id"]
            if who in ends and keyword.lower() in row["message"].lower():
                found.append(
                    {"id": key, "sender_id": ends[0], "receiver_id": ends[1], "message": row["message"]}
                )
        return {"status": True, "messages": found} if found else self._no("search_messages.none")

    def get_all_message_times_with_ids(self):
        if not self.logged_in:
            return self._no("get_all_message_times_with_ids.logged_out")
        return {key: row["time"] for key, row in self.inbox.items()}

    def get_latest_message_id(self):
        return self._extreme("get_latest_message_id", newest=True)

    def get_earliest_message_id(self):
        return self._extreme("get_earliest_message_id", newest=False)

    def _extreme(self, name: str, newest: bool) -> dict[str, Any]:
        if not self.logged_in:
            return self._no(f"{name}.logged_out")
        if not self.inbox:
            return self._no(f"{name}.empty")
        times = {key: datetime.strptime(row["time"], "%Y-%m-%d") for key, row in self.inbox.items()}
        key = (max if newest else min)(times, key=lambda k: times[k])  # the first of equal ones
        return {**self._yes(f"{name}.done", key), "message_id": key}


class ReminderApi(BaseApi):
    """Reminders, by a running number."""

    _SAVED = ("reminder_list",)
    _ONLY_ZH = frozenset({"mark_as_notified", "search_reminders"})

    def _begin(self, config: Mapping[str, Any], rows: Any) -> None:
        self.reminder_list = {key: dict(row) for key, row in rows["reminder_list"].items()}
        self._count = len(self.reminder_list)

    def view_reminder_by_title(self, title):
        if not self.logged_in:
            return self._no("view_reminder_by_title.logged_out")
        for row in self.reminder_list.values():
            if row["title"] == title:
                return {"status": True, "reminder": row}
        return self._no("view_reminder_by_title.none", title)

    def add_reminder(self, title, description, time):
        if not self.logged_in:
            return self._no("add_reminder.logged_out")
        if len(self.reminder_list) >= CAPACITY:
            return self._no("add_reminder.full")
        self._count += 1
        self.reminder_list[self._count] = {
            "reminder_id": self._count,
            "title": title,
            "description": description,
            "time": time,
            "notified": False,
        }
        return self._yes("add_reminder.done", title)

    def delete_reminder(self, reminder_id):
        if not self.logged_in:
            return self._no("delete_reminder.logged_out")
        if reminder_id not in self.reminder_list:
            return self._no("delete_reminder.missing")
        del self.reminder_list[reminder_id]
        return self._yes("delete_reminder.done", reminder_id)

    def view_all_reminders(self):
        if not self.reminder_list:
            return self._no("view_all_reminders.empty")
        shown = ("title", "description", "time", "notified")
        return {
            "status": True,
            "reminders": [{key: row[key] for key in shown} for row in self.reminder_list.values()],
        }

    def mark_as_notified(self, reminder_id):
        if reminder_id not in self.reminder_list:
            return self._no("mark_as_notified.missing")
        self.reminder_list[reminder_id]["notified"] = True
        return self._yes("mark_as_notified.done", reminder_id)

    def search_reminders(self, keyword):
        for row in self.reminder_list.values():
            if keyword.lower() in row["title"].lower() or keyword.lower() in row["description"].lower():
                # Upstream asks the time for its date format here, which no time that is a text has.
                raise AttributeError(f"'{type(row['time']).__name__}' object has no attribute 'strftime'")
        return self._no("search_reminders.none")


class FoodPlatform(BaseApi):
    """Food delivery, paid from a balance."""

    _SAVED = ("users", "logged_in_users", "orders")

    def _begin(self, config: Mapping[str, Any], rows: Any) -> None:
        self.users = facts.food_users()
        self._menus = facts.menus(self._language)
        self.logged_in_users = list(config.get("logged_in_users", ()))
        self.orders: list[dict[str, Any]] = []

    def login_food_platform(self, username, password):
        if not self.wifi:
            return self._no("login_food_platform.no_wifi")
        if username not in self.users:
            return self._no("login_food_platform.nobody")
        if self.users[username]["password"] != password:
            return self._no("login_food_platform.password")
        if username in self.logged_in_users:
            return self._no("login_food_platform.already", username)
        self.logged_in_users.append(username)
        return self._yes("login_food_platform.done", username)

    def view_logged_in_users(self):
        if not self.logged_in_users:
            return self._no("view_logged_in_users.none")
        return {"status": True, "logged_in_users": self.logged_in_users}

    def check_balance(self, user_name):
        return self.users[user_name]["balance"] if user_name in self.users else 0.0

    def add_food_delivery_order(self, username, merchant_name, items):
        if username not in self.logged_in_users:
            return self._no("add_food_delivery_order.logged_out", username)
        if merchant_name not in self._menus:
            return self._no("add_food_delivery_order.no_merchant")
        total, lines = 0.0, []
        for item in items:
            product, quantity = item.get("product"), item.get("quantity", 1)
            if not isinstance(quantity, int) or quantity <= 0:
                return self._no("add_food_delivery_order.quantity", quantity, product)
            price = next((p["price"] for p in self._menus[merchant_name] if p["product"] == product), None)
            if price is None:
                return self._no("add_food_delivery_order.no_product", product, merchant_name)
            total += price * quantity
            lines.append({"product": product, "quantity": quantity, "price_per_unit": price})
        user = self.users[username]
        # The Chinese platform wants a yuan to be left, the English one does not.
        if total > user["balance"] or (self._language == "zh" and total == user["balance"]):
            return self._no("add_food_delivery_order.balance")
        user["balance"] -= total
        self.orders.append(
            {"user_name": username, "merchant_name": merchant_name, "items": lines, "total_price": total}
        )
        return self._yes("add_food_delivery_order.done", merchant_name, total)

    def get_products(self, merchant_name):
        return self._menus.get(merchant_name) or self._no("get_products.missing", merchant_name)

    def view_orders(self, user_name):
        found = [order for order in self.orders if order["user_name"] == user_name]
        return {"status": True, "orders": found} if found else self._no("view_orders.none")

    def search_orders(self, keyword):
        found = []
        for order in self.orders:
            hit = keyword.lower() in order["merchant_name"].lower()
            if not hit and self._language == "zh" and order["items"]:
                # Upstream's Chinese platform takes the lines of an order for texts.
                raise AttributeError("'dict' object has no attribute 'lower'")
            if hit or any(keyword.lower() in line["product"].lower() for line in order["items"]):
                found.append(order)
        return {"status": True, "orders": found} if found else self._no("search_orders.none")
