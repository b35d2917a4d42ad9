"""The tools of τ¹ airline over our database; see `retail` for why they are ours, and what they keep.

Upstream's own gaps stay: a change of flights does not change the cabin, seats are never taken or given
back, and a fourth certificate is silently not sent.
"""

from __future__ import annotations

import copy
import json
from typing import Any, Literal

from typing_extensions import TypedDict

from ...tools import reads, writes
from .retail import Toolkit, refuse

Cabin = Literal["basic_economy", "economy", "business"]

_CITIES = {
    "SFO": "San Francisco",
    "JFK": "New York",
    "LAX": "Los Angeles",
    "ORD": "Chicago",
    "DFW": "Dallas",
    "DEN": "Denver",
    "SEA": "Seattle",
    "ATL": "Atlanta",
    "MIA": "Miami",
    "BOS": "Boston",
    "PHX": "Phoenix",
    "IAH": "Houston",
    "LAS": "Las Vegas",
    "MCO": "Orlando",
    "EWR": "Newark",
    "CLT": "Charlotte",
    "MSP": "Minneapolis",
    "DTW": "Detroit",
    "PHL": "Philadelphia",
    "LGA": "LaGuardia",
}


class FlightDate(TypedDict):
    flight_number: str
    date: str


class Passenger(TypedDict):
    first_name: str
    last_name: str
    dob: str


class Payment(TypedDict):
    payment_id: str
    amount: float


class Airline(Toolkit):
    """Flights, reservations and users of an airline."""

    tables = ("flights", "reservations", "users")

    # ------------------------------------------------------------ looking up

    @reads
    def get_user_details(self, user_id: str) -> str:
        """Shows a user: name, address, payment methods, saved passengers, membership, reservations.

        Args:
            user_id: The user's id.
        """
        if user_id not in self.table("users"):
            refuse("user not found")
        return json.dumps(self.table("users")[user_id])

    @reads
    def get_reservation_details(self, reservation_id: str) -> str:
        """Shows a reservation: flights, cabin, passengers, baggage, payments.

        Args:
            reservation_id: The reservation's id.
        """
        if reservation_id not in self.table("reservations"):
            refuse("user not found")  # upstream's words
        return json.dumps(self.table("reservations")[reservation_id])

    @reads
    def list_all_airports(self) -> str:
        """Lists all airports with their cities."""
        return json.dumps(_CITIES)

    @reads
    def search_direct_flight(self, origin: str, destination: str, date: str) -> str:
        """Finds the flights between two airports that can be booked on a day.

        Args:
            origin: Airport code in three letters.
            destination: Airport code in three letters.
            date: The day as YYYY-MM-DD.
        """
        found = []
        for _, flight in self.table("flights").rows():
            if flight["origin"] == origin and flight["destination"] == destination:
                day = flight["dates"].get(date)
                if day is not None and day["status"] == "available":
                    found.append(_on(flight, date))
        return json.dumps(found, default=dict)

    @reads
    def search_onestop_flight(self, origin: str, destination: str, date: str) -> str:
        """Finds pairs of flights with one stop between two airports that can be booked on a day.

        Args:
            origin: Airport code in three letters.
            destination: Airport code in three letters.
            date: The day of the first flight as YYYY-MM-DD.
        """
        flights = [flight for _, flight in self.table("flights").rows()]
        seconds: dict[str, list[Any]] = {}
        for flight in flights:
            if flight["destination"] == destination:
                seconds.setdefault(flight["origin"], []).append(flight)
        found = []
        for first in flights:
            if first["origin"] != origin:
                continue
            for second in seconds.get(first["destination"], ()):
                arrives = first["scheduled_arrival_time_est"]
                overnight = "+1" in arrives
                day = f"2024-05-{int(date[-2:]) + 1}" if overnight else date
                if arrives > second["scheduled_departure_time_est"]:
                    continue
                if date in first["dates"] and day in second["dates"]:
                    both = (first["dates"][date], second["dates"][day])
                    if all(each["status"] == "available" for each in both):
                        # Upstream shows the second flight as on the first day, under its own date.
                        pair = ({**_on(first, date), "date": date}, {**_on(second, date), "date": day})
                        found.append(pair)
        return json.dumps(found, default=dict)

    # ------------------------------------------------------------ booking

    @writes
    def book_reservation(
        self,
        user_id: str,
        origin: str,
        destination: str,
        flight_type: Literal["one_way", "round_trip"],
        cabin: Cabin,
        flights: list[FlightDate],
        passengers: list[Passenger],
        payment_methods: list[Payment],
        total_baggages: int,
        nonfree_baggages: int,
        insurance: Literal["yes", "no"],
    ) -> str:
        """Books a reservation.

        Args:
            user_id: Who books.
            origin: Airport code in three letters.
            destination: Airport code in three letters.
            flight_type: One way, or there and back.
            cabin: The cabin of all flights.
            flights: Number and day (YYYY-MM-DD) of each flight.
            passengers: Name and day of birth (YYYY-MM-DD) of each passenger.
            payment_methods: What each payment method of the user pays; together the whole price.
            total_baggages: Pieces of baggage in all.
            nonfree_baggages: How many of them are paid for.
            insurance: Whether there is travel insurance.
        """
        if user_id not in self.table("users"):
            refuse("user not found")
        user, reservations = self.table("users")[user_id], self.table("reservations")
        new_id = next((i for i in ("HATHAT", "HATHAU") if i not in reservations), "HATHAV")
        reservation = {
            "reservation_id": new_id,
            "user_id": user_id,
            "origin": origin,
            "destination": destination,
            "flight_type": flight_type,
            "cabin": cabin,
            "flights": copy.deepcopy(flights),
            "passengers": passengers,
            "payment_history": payment_methods,
            "created_at": "2024-05-15T15:00:00",
            "total_baggages": total_baggages,
            "nonfree_baggages": nonfree_baggages,
            "insurance": insurance,
        }
        price = 0
        for flight in reservation["flights"]:
            self._book(flight, cabin, len(passengers))
            price += flight["price"] * len(passengers)
        if insurance == "yes":
            price += 30 * len(passengers)
        price += 50 * nonfree_baggages
        methods = user["payment_methods"]
        for payment in payment_methods:
            payment_id, amount = payment["payment_id"], payment["amount"]
            if payment_id not in methods:
                refuse(f"payment method {payment_id} not found")
            limited = methods[payment_id]["source"] in ["gift_card", "certificate"]
            if limited and methods[payment_id]["amount"] < amount:
                refuse(f"not enough balance in payment method {payment_id}")
        paid = sum(payment["amount"] for payment in payment_methods)
        if paid != price:
            refuse(f"payment amount does not add up, total price is {price}, but paid {paid}")
        for payment in payment_methods:
            payment_id, amount = payment["payment_id"], payment["amount"]
            if methods[payment_id]["source"] == "gift_card":
                methods[payment_id]["amount"] -= amount
            elif methods[payment_id]["source"] == "certificate":
                del methods[payment_id]
        reservations[new_id] = reservation
        user["reservations"].append(new_id)
        return json.dumps(reservation)

    @writes
    def cancel_reservation(self, reservation_id: str) -> str:
        """Cancels a whole reservation.

        Args:
            reservation_id: The reservation's id.
        """
        reservation = self._reservation(reservation_id)
        history = reservation["payment_history"]
        history.extend([{"payment_id": p["payment_id"], "amount": -p["amount"]} for p in history])
        reservation["status"] = "cancelled"
        return json.dumps(reservation)

    @writes
    def send_certificate(self, user_id: str, amount: float) -> str:
        """Gives a user a certificate. Think twice.

        Args:
            user_id: Who gets it.
            amount: What it is worth, in dollars.
        """
        if user_id not in self.table("users"):
            refuse("user not found")
        methods = self.table("users")[user_id]["payment_methods"]
        for number in (3221322, 3221323, 3221324):
            payment_id = f"certificate_{number}"
            if payment_id not in methods:
                methods[payment_id] = {"source": "certificate", "amount": amount, "id": payment_id}
                return f"Certificate {payment_id} added to user {user_id} with amount {amount}."
        return ""

    # ------------------------------------------------------------ changes

    @writes
    def update_reservation_baggages(
        self, reservation_id: str, total_baggages: int, nonfree_baggages: int, payment_id: str
    ) -> str:
        """Changes the baggage of a reservation.

        Args:
            reservation_id: The reservation's id.
            total_baggages: Pieces of baggage in all, after the change.
            nonfree_baggages: How many of them are paid for, after the change.
            payment_id: What pays for it.
        """
        reservation = self._reservation(reservation_id)
        price = 50 * max(0, nonfree_baggages - reservation["nonfree_baggages"])
        method = self._method(reservation, payment_id, price)
        reservation["total_baggages"] = total_baggages
        reservation["nonfree_baggages"] = nonfree_baggages
        _pay(reservation, method, payment_id, price)
        return json.dumps(reservation)

    @writes
    def update_reservation_flights(
        self, reservation_id: str, cabin: Cabin, flights: list[FlightDate], payment_id: str
    ) -> str:
        """Changes the flights of a reservation.

        Args:
            reservation_id: The reservation's id.
            cabin: The cabin of all flights.
            flights: All flights after the change, those that stay included.
            payment_id: What pays, or is paid back, the difference.
        """
        reservation = self._reservation(reservation_id)
        people = len(reservation["passengers"])
        price = 0
        flights = copy.deepcopy(flights)
        for flight in flights:
            flown: Any = flight
            for kept in reservation["flights"]:
                same = kept["flight_number"] == flown["flight_number"] and kept["date"] == flown["date"]
                if same and cabin == reservation["cabin"]:
                    flown.update({key: kept[key] for key in ("price", "origin", "destination")})
                    break
            else:
                self._book(flown, cabin, people)
            price += flown["price"] * people
        price -= sum(flight["price"] for flight in reservation["flights"]) * people
        method = self._method(reservation, payment_id, price)
        _pay(reservation, method, payment_id, price)
        reservation["flights"] = flights
        return json.dumps(reservation)

    @writes
    def update_reservation_passengers(self, reservation_id: str, passengers: list[Passenger]) -> str:
        """Changes the passengers of a reservation; their number stays.

        Args:
            reservation_id: The reservation's id.
            passengers: Name and day of birth (YYYY-MM-DD) of each passenger after the change.
        """
        reservation = self._reservation(reservation_id)
        if len(passengers) != len(reservation["passengers"]):
            refuse("number of passengers does not match")
        reservation["passengers"] = passengers
        return json.dumps(reservation)

    # ------------------------------------------------------------ shared steps

    def _reservation(self, reservation_id: str) -> dict[str, Any]:
        if reservation_id not in self.table("reservations"):
            refuse("reservation not found")
        return self.table("reservations")[reservation_id]

    def _book(self, flight: Any, cabin: str, people: int) -> None:
        """Writes price, origin and destination into `flight`, if it has so many seats on its day."""
        number = flight["flight_number"]
        if number not in self.table("flights"):
            refuse(f"flight {number} not found")
        found = self.table("flights").read(number)
        date = flight["date"]
        if date not in found["dates"]:
            refuse(f"flight {number} not found on date {date}")
        day = found["dates"][date]
        if day["status"] != "available":
            refuse(f"flight {number} not available on date {date}")
        if day["available_seats"][cabin] < people:
            refuse(f"not enough seats on flight {number}")
        flight["price"] = day["prices"][cabin]
        flight["origin"] = found["origin"]
        flight["destination"] = found["destination"]

    def _method(self, reservation: dict[str, Any], payment_id: str, price: float) -> dict[str, Any]:
        """The payment method of a change that costs `price`."""
        methods = self.table("users")[reservation["user_id"]]["payment_methods"]
        if payment_id not in methods:
            refuse("payment method not found")
        method = methods[payment_id]
        if method["source"] == "certificate":
            refuse("certificate cannot be used to update reservation")
        if method["source"] == "gift_card" and method["amount"] < price:
            refuse("gift card balance is not enough")
        return method


def _pay(reservation: dict[str, Any], method: dict[str, Any], payment_id: str, price: float) -> None:
    if method["source"] == "gift_card":
        method["amount"] -= price
    if price != 0:
        reservation["payment_history"].append({"payment_id": payment_id, "amount": price})


def _on(flight: Any, date: str) -> dict[str, Any]:
    """A flight without its calendar, with what holds on one day."""
    return {**{key: value for key, value in flight.items() if key != "dates"}, **flight["dates"][date]}
