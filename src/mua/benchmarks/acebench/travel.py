"""The airline's desk.

Invariant: as `worlds` says; an object shares nothing with another one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from . import facts
from .facts import Language
from .phone import BaseApi

NOW = datetime(2024, 7, 14, 6)
"""The moment at which flights are cancelled."""


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
