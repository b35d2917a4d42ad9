"""The expert program of the airline: upstream's airline policy as code.

Invariant: it writes only after it has looked up what the policy asks to check (the tools check little of
it), listed the details, and got a yes; what policy forbids it refuses, and never tries.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from .airline_asks import DAY_AGO, TODAY, free_bags
from .script import Call, Expert, Refused, Say, Script

Json = dict[str, Any]
Looked = Generator[Say | Call, Any, Any]

_CABIN_WORDS = {"basic_economy": "basic economy", "economy": "economy", "business": "business class"}


class AirlineExpert(Expert):
    """Serves one customer of the airline."""

    person: Json

    def identify(self) -> Script:
        """By user id; asked again until it is known."""
        while True:
            if "user_id" not in self.who:
                yield Say("What is your user id?")
                continue
            found = yield Call("get_user_details", {"user_id": self.who["user_id"]})
            if not isinstance(found, Refused):
                self.person = found
                return
            self.who = {}
            yield Say("I do not find that user id. What is your user id?")

    def once(self) -> Script:
        wish = self.request
        assert wish is not None
        # Balances, bookings and certificates change during a conversation.
        self.person = yield Call("get_user_details", {"user_id": self.who["user_id"]})
        if wish["do"] == "book":
            return (yield from self._book(wish))
        trip = yield from self._find(wish)
        if isinstance(trip, str):
            return trip
        if wish["do"] in ("fewer_bags", "insurance", "people"):
            why = {
                "fewer_bags": "checked bags can be added, but not taken off a reservation.",
                "insurance": "insurance cannot be added after the booking.",
                "people": "the number of passengers of a reservation cannot be changed.",
            }
            return self.sorry(why[wish["do"]])
        return (yield from getattr(self, f"_{wish['do']}")(wish, trip))

    def _find(self, wish: Json) -> Looked:
        """The reservation that the request is about."""
        if "trip" in wish:
            for number in self.person["reservations"]:
                trip = yield Call("get_reservation_details", {"reservation_id": number})
                way = {
                    "origin": trip["origin"],
                    "destination": trip["destination"],
                    "leaves": trip["flights"][0]["date"],
                }
                if way == wish["trip"]:
                    return trip
            return self.sorry("I do not find such a trip among your reservations.")
        while "reservation" not in wish:
            yield Say("Which reservation is it? What is the reservation number?")
            wish = self.request or wish
        trip = yield Call("get_reservation_details", {"reservation_id": wish["reservation"]})
        if isinstance(trip, Refused) or trip["user_id"] != self.person["user_id"]:
            return self.sorry("you have no such reservation.")
        return trip

    def _statuses(self, trip: Json) -> Looked:
        """Status of each flight up to today; later ones have not left."""
        out: list[str] = []
        for f in trip["flights"]:
            if f["date"] <= TODAY:
                arguments = {"flight_number": f["flight_number"], "date": f["date"]}
                out.append((yield Call("get_flight_status", arguments)))
        return out

    # ------------------------------------------------------------ requests

    def _cancel(self, wish: Json, trip: Json) -> Looked:
        number = trip["reservation_id"]
        statuses = yield from self._statuses(trip)
        if {"landed", "flying"} & set(statuses):
            yield from self.transfer(f"Wants to cancel reservation {number}, of which a part has been flown.")
            return None
        covered = trip["insurance"] == "yes" and wish["reason"] in ("weather", "health")
        if not (
            trip["created_at"] >= DAY_AGO or "cancelled" in statuses or trip["cabin"] == "business" or covered
        ):
            return self.sorry(
                f"reservation {number} cannot be cancelled: it is older than a day, not in business class, "
                "not "
                "cancelled by us, and the reason is not covered by an insurance."
            )
        return (
            yield from self.do(
                f"I will cancel reservation {number}; the refund goes to how you paid within 5 to 7 "
                "business days.",
                "cancel_reservation",
                {"reservation_id": number},
                f"Reservation {number} is cancelled.",
            )
        )

    def _flights(self, wish: Json, trip: Json) -> Looked:
        if trip["cabin"] == "basic_economy":
            return self.sorry("flights in basic economy cannot be changed.")
        flights = [{"flight_number": f["flight_number"], "date": f["date"]} for f in trip["flights"]]
        old = trip["flights"][wish["leg"]]
        new = yield from self._choose(
            (old["origin"], old["destination"], wish["date"]),
            trip["cabin"],
            len(trip["passengers"]),
            wish["rule"],
        )
        if new is None:
            return self.sorry("there is no such flight with enough seats.")
        flights[wish["leg"]] = {"flight_number": new["flight_number"], "date": wish["date"]}
        difference = (new["prices"][trip["cabin"]] - old["price"]) * len(trip["passengers"])
        return (yield from self._update(wish, trip, trip["cabin"], flights, difference, new["flight_number"]))

    def _cabin(self, wish: Json, trip: Json) -> Looked:
        if {"landed", "flying"} & set((yield from self._statuses(trip))):
            return self.sorry("the cabin cannot be changed when a part of the trip has been flown.")
        difference, count = 0, len(trip["passengers"])
        for f in trip["flights"]:
            found = yield Call(
                "search_direct_flight",
                {"origin": f["origin"], "destination": f["destination"], "date": f["date"]},
            )
            same = next((x for x in found if x["flight_number"] == f["flight_number"]), None)
            if same is None or same["available_seats"][wish["cabin"]] < count:
                return self.sorry("there are not enough seats in that cabin.")
            difference += (same["prices"][wish["cabin"]] - f["price"]) * count
        flights = [{"flight_number": f["flight_number"], "date": f["date"]} for f in trip["flights"]]
        words = _CABIN_WORDS[wish["cabin"]]
        return (yield from self._update(wish, trip, wish["cabin"], flights, difference, words))

    def _update(
        self, wish: Json, trip: Json, cabin: str, flights: list[Json], difference: int, what: str
    ) -> Looked:
        method = yield from self._method(wish, difference)
        if isinstance(method, str):
            return method
        cost = f"You pay ${difference}" if difference >= 0 else f"You get ${-difference} back"
        days = ", ".join(f"{f['flight_number']} on {f['date']}" for f in flights)
        return (
            yield from self.do(
                f"I will change reservation {trip['reservation_id']} to {what}: {days}, "
                f"{_CABIN_WORDS[cabin]}. {cost} by {method['id']}.",
                "update_reservation_flights",
                {
                    "reservation_id": trip["reservation_id"],
                    "cabin": cabin,
                    "flights": flights,
                    "payment_id": method["id"],
                },
                f"Reservation {trip['reservation_id']} is changed.",
            )
        )

    def _bags(self, wish: Json, trip: Json) -> Looked:
        number, total = trip["reservation_id"], trip["total_baggages"] + wish["more"]
        free = free_bags(self.person, trip["cabin"], len(trip["passengers"]))
        paid = max(0, total - free)
        price = 50 * max(0, paid - trip["nonfree_baggages"])
        method = yield from self._method(wish, price)
        if isinstance(method, str):
            return method
        return (
            yield from self.do(
                f"I will add {wish['more']} checked bags to reservation {number}, {total} in all, of which "
                f"{paid} "
                f"are not free. That costs ${price} by {method['id']}.",
                "update_reservation_baggages",
                {
                    "reservation_id": number,
                    "total_baggages": total,
                    "nonfree_baggages": paid,
                    "payment_id": method["id"],
                },
                "The bags are added.",
            )
        )

    def _passenger(self, wish: Json, trip: Json) -> Looked:
        number = trip["reservation_id"]
        people = [dict(p) for p in trip["passengers"]]
        at = next((p for p in people if [p["first_name"], p["last_name"]] == wish["old"]), None)
        if at is None:
            return self.sorry("there is no such passenger in that reservation.")
        at.update(wish["new"])
        names = ", ".join(f"{p['first_name']} {p['last_name']} ({p['dob']})" for p in people)
        return (
            yield from self.do(
                f"The passengers of reservation {number} will be {names}.",
                "update_reservation_passengers",
                {"reservation_id": number, "passengers": people},
                "The passengers are changed.",
            )
        )

    def _compensate(self, wish: Json, trip: Json) -> Looked:
        count = len(trip["passengers"])
        entitled = (
            self.person["membership"] != "regular"
            or trip["insurance"] == "yes"
            or trip["cabin"] == "business"
        )
        statuses = yield from self._statuses(trip)
        if wish["why"] not in statuses:
            return self.sorry(f"no flight of that reservation was {wish['why']}.")
        if not entitled:
            return self.sorry("you are not entitled to a compensation for that reservation.")
        if wish["why"] == "delayed" and trip.get("status") != "cancelled":
            return self.sorry("that is possible only when the reservation is changed or cancelled.")
        amount = (100 if wish["why"] == "cancelled" else 50) * count
        return (
            yield from self.do(
                f"I checked it, and I am sorry for the trouble. I can send you a certificate of ${amount}.",
                "send_certificate",
                {"user_id": self.person["user_id"], "amount": amount},
                f"The certificate of ${amount} is in your profile.",
            )
        )

    def _book(self, wish: Json) -> Looked:
        user = self.person
        me = {**user["name"], "dob": user["dob"]}
        people = [{k: p[k] for k in ("first_name", "last_name", "dob")} for p in (me, *wish["others"])]
        way = tuple(wish["route"])
        legs = [(*way, wish["dates"][0])]
        if wish["trip_type"] == "round_trip":
            legs.append((*way[::-1], wish["dates"][1]))
        flights: list[Json] = []
        price = 0
        for leg in legs:
            new = yield from self._choose(leg, wish["cabin"], len(people), wish["rule"])
            if new is None:
                return self.sorry("there is no such flight with enough seats.")
            flights.append({"flight_number": new["flight_number"], "date": leg[2]})
            price += new["prices"][wish["cabin"]] * len(people)
        paid_bags = max(0, wish["bags"] - free_bags(user, wish["cabin"], len(people)))
        price += 50 * paid_bags + (30 * len(people) if wish["insurance"] == "yes" else 0)
        method = yield from self._method(wish, 0)
        if isinstance(method, str):
            return method
        payments: list[Json] = []
        paper = user["payment_methods"].get((self.request or wish)["pay"].get("certificate", ""))
        if paper:
            payments.append({"payment_id": paper["id"], "amount": min(price, int(paper["amount"]))})
        rest = price - sum(p["amount"] for p in payments)
        if rest:
            payments.append({"payment_id": method["id"], "amount": rest})
        numbers = ", ".join(f"{f['flight_number']} on {f['date']}" for f in flights)
        names = ", ".join(f"{p['first_name']} {p['last_name']} ({p['dob']})" for p in people)
        paying = " and ".join(f"${p['amount']} by {p['payment_id']}" for p in payments)
        return (
            yield from self.do(
                f"I will book {way[0]} to {way[1]} ({wish['trip_type'].replace('_', ' ')}), {numbers}, "
                f"{_CABIN_WORDS[wish['cabin']]}, for {names}; {wish['bags']} checked bags, of which "
                f"{paid_bags} are "
                f"not free; travel insurance: {wish['insurance']}. The price is ${price}: {paying}.",
                "book_reservation",
                {
                    "user_id": user["user_id"],
                    "origin": way[0],
                    "destination": way[1],
                    "flight_type": wish["trip_type"],
                    "cabin": wish["cabin"],
                    "flights": flights,
                    "passengers": people,
                    "payment_methods": payments,
                    "total_baggages": wish["bags"],
                    "nonfree_baggages": paid_bags,
                    "insurance": wish["insurance"],
                },
                "The trip is booked.",
            )
        )

    def _choose(self, leg: tuple[str, str, str], cabin: str, count: int, rule: str) -> Looked:
        """The direct flight that the person's rule picks among those found."""
        found = yield Call("search_direct_flight", {"origin": leg[0], "destination": leg[1], "date": leg[2]})
        able = [f for f in found if f["available_seats"][cabin] >= count]
        if rule == "cheapest":
            return min(able, key=lambda f: f["prices"][cabin], default=None)
        return min(able, key=lambda f: f["scheduled_departure_time_est"], default=None)

    def _method(self, wish: Json, price: int) -> Looked:
        """The person's payment method, or why it cannot be used."""
        while "pay" not in wish:
            yield Say("Which payment method do you want to use?")
            wish = self.request or wish
        method: Mapping[str, Any] | None = self.person["payment_methods"].get(wish["pay"]["id"])
        if method is None:
            return self.sorry("that payment method is not in your profile.")
        if method["source"] == "certificate":
            return self.sorry("a certificate cannot be used for a change.")
        if method.get("amount", price) < price:
            return self.sorry("that gift card does not cover the price.")
        return method
