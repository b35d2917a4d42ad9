"""The five worlds of ACEBench Agent, as upstream's behave, faults of their bookkeeping included.

An API object is what an agent's calls reach: each of its public methods is a function of the benchmark,
called with keyword arguments of any literal type. What a method raises is an error that the agent hears of;
what it had changed by then stays changed, as upstream's does.

Invariant: an object shares nothing with another one, and `_state()` shows exactly the attributes that
upstream grades.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar

from . import facts
from .facts import Language

CAPACITY = 6
"""Messages that the inbox holds, and reminders that the list holds."""
NOW = datetime(2024, 7, 14, 6)
"""The moment at which flights are cancelled."""


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


class Travel(BaseApi):
    """An airline's desk. It is no phone: it has neither Wi-Fi nor a login."""

    _SAVED = ("users", "reservations")

    def _begin(self, config: Mapping[str, Any], rows: Any) -> None:
        self.users = facts.travellers()
        self.reservations = facts.reservations(self._language)
        self._flights = facts.flights(self._language)
        cabins = facts.ECONOMY[self._language], facts.BUSINESS[self._language]
        self._economy = cabins[0]
        self._free = {level: dict(zip(cabins, n, strict=True)) for level, n in facts.FREE_BAGS.items()}

    @classmethod
    @functools.cache
    def _functions(cls, language: Language) -> frozenset[str]:
        return frozenset(n for n in vars(cls) if not n.startswith("_"))

    def _wrong(self, key: str) -> dict[str, Any]:
        return {"status": "error", "message": self._text(key)}

    def _flight(self, number: Any) -> dict[str, Any] | None:
        return next((f for f in self._flights if f["flight_no"] == number), None)

    def get_flight_details(self, origin=None, destination=None):
        found = [
            dict(flight)
            for flight in self._flights
            if (not origin or flight["origin"] == origin)
            and (not destination or flight["destination"] == destination)
        ]
        return found or self._text("get_flight_details.none")

    def get_user_details(self, user_id, password):
        user = self.users.get(user_id)
        if user and user["password"] == password:
            return {key: value for key, value in user.items() if key != "password"}
        return self._wrong("get_user_details.wrong")

    def get_reservation_details(self, reservation_id=None, user_id=None):
        if reservation_id:
            found = [r for r in self.reservations if r["reservation_id"] == reservation_id]
        elif user_id:
            found = [r for r in self.reservations if r["user_id"] == user_id]
        else:
            return self._wrong("get_reservation_details.which")
        return [{**r, "flight_info": self._flight(r["flight_no"])} for r in found]

    def authenticate_user(self, user_id, password):
        user = self.users.get(user_id)
        return user if user and user["password"] == password else self._wrong("authenticate_user.wrong")

    def get_baggage_allowance(self, membership_level, cabin_class):
        return self._free.get(membership_level, {}).get(cabin_class, 0)

    def find_transfer_flights(self, origin_city, transfer_city, destination_city):
        def legs(start: Any, end: Any) -> list[dict[str, Any]]:
            return [f for f in self._flights if f["origin"] == start and f["destination"] == end]

        found = [
            {"first_leg": first, "second_leg": second}
            for first in legs(origin_city, transfer_city)
            for second in legs(transfer_city, destination_city)
            if first["arrival_time"] < second["depart_time"]  # both are sortable texts
        ]
        return found or self._text("find_transfer_flights.none")

    def calculate_baggage_fee(self, membership_level, cabin_class, baggage_count):
        return max(baggage_count - self._free[membership_level][cabin_class], 0) * 50

    def update_balance(self, user, payment_method, amount):
        purse = {"cash": "cash_balance", "bank": "bank_balance"}
        for method, key in purse.items():
            if payment_method == method:
                if user[key] + amount < 0:
                    return False
                user[key] += amount
        return True  # also where the method is no purse: then nothing is paid

    def reserve_flight(self, user_id, password, flight_no, cabin, payment_method, baggage_count):
        # A wrong password is not refused here: the refusal is no traveller, and asking it for its
        # membership below is an error.
        user = self.authenticate_user(user_id, password)
        flight = self._flight(flight_no)
        if flight is None:
            raise TypeError("'NoneType' object is not subscriptable")
        cost = flight["economy_price" if cabin == self._economy else "business_price"]
        cost += self.calculate_baggage_fee(user["membership_level"], cabin, baggage_count)
        if payment_method not in ("cash", "bank"):
            return self._text("reserve_flight.payment")
        purse = f"{payment_method}_balance"
        if cost > user[purse]:
            return self._text(f"reserve_flight.{payment_method}")
        user[purse] -= cost
        flight["seats_available"] -= 1
        reservation_id = f"res_{len(self.reservations) + 1}"
        self.reservations.append(
            {
                "reservation_id": reservation_id,
                "user_id": user_id,
                "flight_no": flight_no,
                "payment_method": payment_method,
                "cabin": cabin,
                "baggage": baggage_count,
            }
        )
        return self._text("reserve_flight.done", reservation_id, cost)

    def _reservation(self, reservation_id: Any, user_id: Any) -> dict[str, Any] | None:
        return next(
            (
                r
                for r in self.reservations
                if r["reservation_id"] == reservation_id and r["user_id"] == user_id
            ),
            None,
        )

    def modify_flight(
        self,
        user_id,
        reservation_id,
        new_flight_no=None,
        new_cabin=None,
        add_baggage=0,
        new_payment_method=None,
    ):
        booked = self._reservation(reservation_id, user_id)
        if not booked:
            return self._text("modify_flight.no_reservation")
        flight = self._flight(booked["flight_no"])
        if not flight:
            return self._text("modify_flight.no_flight")
        payment = new_payment_method or booked["payment_method"]
        user = self.users[user_id]
        said = []
        if new_flight_no and new_flight_no != booked["flight_no"]:
            other = self._flight(new_flight_no)
            route = ("origin", "destination")
            if not other or any(other[end] != flight[end] for end in route):
                return self._text("modify_flight.wrong_flight")
            booked["flight_no"] = new_flight_no
            said.append(self._text("modify_flight.flight"))
        if new_cabin and new_cabin != booked["cabin"]:
            # The prices are those of the flight as it was booked before.
            more = self.calculate_price_difference(flight, booked["cabin"], new_cabin)
            booked["cabin"] = new_cabin  # also where the difference cannot be paid
            if more > 0:
                paid = self.update_balance(user, payment, -more)
                said.append(
                    self._text("modify_flight.cabin", more) if paid else self._text("modify_flight.poor")
                )
            elif more < 0:
                self.update_balance(user, payment, -more)
                said.append(self._text("modify_flight.refund", -more))
        if add_baggage > 0:
            free = self.get_baggage_allowance(user["membership_level"], booked["cabin"])
            pieces = booked["baggage"] + add_baggage
            fee = max(0, pieces - free) * 50
            if fee > 0:
                paid = self.update_balance(user, payment, -fee)
                said.append(
                    self._text("modify_flight.bags", fee) if paid else self._text("modify_flight.bags_poor")
                )
            booked["baggage"] = pieces
        return " ".join(said or [self._text("modify_flight.nothing")])

    def cancel_reservation(self, user_id, reservation_id, reason):
        user = self.users.get(user_id)
        if not user:
            return self._text("cancel_reservation.nobody")
        booked = self._reservation(reservation_id, user_id)
        if not booked:
            return self._text("cancel_reservation.no_reservation")
        flight = self._flight(booked["flight_no"])
        if not flight:
            return self._text("cancel_reservation.no_flight")
        left = datetime.strptime(flight["depart_time"], "%Y-%m-%d %H:%M:%S") - NOW
        if left < timedelta(0):
            return self._text("cancel_reservation.used")
        price = flight["economy_price" if booked["cabin"] == self._economy else "business_price"]
        # The reservation itself stays in the list whatever happens.
        if reason == facts.AIRLINE_CANCELLED[self._language]:
            self.process_refund(user, price)
            return self._text("cancel_reservation.airline", price)
        if left > timedelta(days=1):
            self.process_refund(user, price)
            return self._text("cancel_reservation.free", price)
        fee = price * 0.1
        self.process_refund(user, price - fee)
        return self._text("cancel_reservation.late", fee, price - fee)

    def process_refund(self, user, amount):
        user["cash_balance"] += amount

    def calculate_price_difference(self, flight, old_cabin, new_cabin):
        economy, business = facts.ECONOMY[self._language], facts.BUSINESS[self._language]
        prices = {economy: flight["economy_price"], business: flight["business_price"]}
        return prices.get(new_cabin, 0) - prices.get(old_cabin, 0)


CLASSES: dict[str, type[BaseApi]] = {
    c.__name__: c for c in (BaseApi, MessageApi, ReminderApi, FoodPlatform, Travel)
}
"""The worlds by the names that the data use."""
