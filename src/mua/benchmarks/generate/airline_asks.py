"""What a customer of the airline can ask for: requests that policy grants, and what it forbids.

Invariant: a gold write is one that upstream's policy allows and that the words of the request determine
alone (dates, flights by a rule with one answer, passengers in order, bags, how to pay).
"""

from __future__ import annotations

import datetime
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

from ...domains.script import pick
from .words import Ask, action, day, listed

Json = dict[str, Any]
Maker = Callable[[random.Random, Json, set[str]], Ask | None]
"""Draws a request of a person that touches none of the given entities; None when there is none."""

NOW = "2024-05-15T15:00:00"
"""Upstream's clock of this domain, as its policy tells the agent."""
DAY_AGO = "2024-05-14T15:00:00"
TODAY = "2024-05-15"
CABINS = ("basic_economy", "economy", "business")
FREE_BAGS = {"regular": (0, 1, 2), "silver": (1, 2, 3), "gold": (2, 3, 4)}
"""Membership → free checked bags of each passenger, by cabin."""

_CABIN_WORDS = {"basic_economy": "basic economy", "economy": "economy", "business": "business class"}
_REASONS = {
    "change of plan": "{my} plans have changed",
    "weather": "the weather at the destination is bad",
    "health": "{I} {am} ill and cannot travel",
}
_FIRST_NAMES = ("Alba", "Bruno", "Carla", "Dario", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas")
_LAST_NAMES = ("Arden", "Bellamy", "Castell", "Dufour", "Ekholm", "Farrow", "Grieg", "Holt")


class TripAsks:
    """Draws requests over the database. Each method takes a person of it and what is not to be touched."""

    def __init__(self, db: Json):
        self.reservations: dict[str, Json] = db["reservations"]
        self.flights: dict[str, Json] = db["flights"]
        self.routes: dict[tuple[str, str], list[Json]] = {}
        for flight in self.flights.values():
            self.routes.setdefault((flight["origin"], flight["destination"]), []).append(flight)
        self.writes: tuple[Maker, ...] = (
            self.cancel,
            self.change_flights,
            self.change_flights,
            self.change_cabin,
            self.add_bags,
            self.change_passenger,
        )

    # ------------------------------------------------------------ requests that are granted

    def book(
        self, rng: random.Random, user: Json, used: set[str], route: Sequence[str] | None = None
    ) -> Ask | None:
        if "booking" in used:
            return None
        origin, destination = route or pick(rng, sorted(r for r in self.routes if r[::-1] in self.routes))
        out = _date(rng, "2024-05-16", 13)
        trip = rng.choice(("one_way", "round_trip"))
        cabin = pick(rng, CABINS)
        people = [_passenger({**user["name"], "dob": user["dob"]})]
        saved = [p for p in user["saved_passengers"] if _passenger(p) != people[0]]
        people += [_passenger(p) for p in rng.sample(saved, rng.randint(0, min(2, len(saved))))]
        legs = [(origin, destination, out)]
        if trip == "round_trip":
            legs.append((destination, origin, _date(rng, out, 5)))
        rule = rng.choice(("cheapest", "earliest"))
        flights = [self.choose(leg, cabin, len(people), rule) for leg in legs]
        if None in flights:
            return None
        total = sum(f["price"] for f in flights if f) * len(people)
        insurance = rng.choice(("yes", "no", "no"))
        total += 30 * len(people) if insurance == "yes" else 0
        free = free_bags(user, cabin, len(people))
        bags = rng.choice((0, rng.randint(0, free), free + rng.randint(1, 2)))
        paid_bags = max(0, bags - free)
        total += 50 * paid_bags
        pay = self._pay_booking(rng, user, total)
        if pay is None:
            return None
        words, data, payments = pay
        others = [f"{p['first_name']} {p['last_name']} (born {p['dob']})" for p in people[1:]]
        who = f" for {listed(['{me}', *others])}" if others else " for {me} alone"
        when = f"on {day(out)}" if trip == "one_way" else f"on {day(out)} and back on {day(legs[1][2])}"
        return Ask(
            f"book a {trip.replace('_', ' ')} flight from {origin} to {destination} {when} in "
            f"{_CABIN_WORDS[cabin]}{who}, with the {rule} direct flight{'s' if len(legs) > 1 else ''}, "
            f"{_bags_text(bags)} and {'' if insurance == 'yes' else 'no '}travel insurance, using {words}",
            {
                "do": "book",
                "route": [origin, destination],
                "trip_type": trip,
                "dates": [leg[2] for leg in legs],
                "cabin": cabin,
                "others": people[1:],
                "rule": rule,
                "bags": bags,
                "insurance": insurance,
                "pay": data,
            },
            [
                action(
                    "book_reservation",
                    user_id=user["user_id"],
                    origin=origin,
                    destination=destination,
                    flight_type=trip,
                    cabin=cabin,
                    flights=[
                        {"flight_number": f["flight_number"], "date": leg[2]}
                        for f, leg in zip(flights, legs, strict=True)
                        if f
                    ],
                    passengers=people,
                    payment_methods=payments,
                    total_baggages=bags,
                    nonfree_baggages=paid_bags,
                    insurance=insurance,
                )
            ],
            must=(origin, destination, *(f["flight_number"] for f in flights if f)),
            uses=("booking",),
        )

    def cancel(self, rng: random.Random, user: Json, used: set[str]) -> Ask | None:
        reasons: dict[str, list[str]] = {}
        for r in self._upcoming(user, used):
            allowed = list(_REASONS) if r["created_at"] >= DAY_AGO or r["cabin"] == "business" else []
            if r["insurance"] == "yes" and not allowed:
                allowed = ["weather", "health"]
            if "cancelled" in self.statuses(r):
                allowed = ["airline"]
            if allowed:
                reasons[r["reservation_id"]] = allowed
        if not reasons:
            return None
        number = pick(rng, list(reasons))
        reason = pick(rng, reasons[number])
        words = _REASONS.get(reason, "the airline cancelled one of its flights")
        return Ask(
            f"cancel {{my}} reservation {number} because {words}",
            {"do": "cancel", "reservation": number, "reason": reason},
            [action("cancel_reservation", reservation_id=number)],
            must=(number,),
            uses=(number,),
        )

    def change_flights(self, rng: random.Random, user: Json, used: set[str]) -> Ask | None:
        """One leg on another day."""
        found = [
            r
            for r in self._upcoming(user, used)
            if r["cabin"] != "basic_economy" and is_direct(r) and set(self.statuses(r)) == {"available"}
        ]
        if not found:
            return None
        trip = pick(rng, found)
        number, flights = trip["reservation_id"], trip["flights"]
        leg = rng.randrange(len(flights))
        old = flights[leg]
        date = _date(rng, "2024-05-16", 14)
        if (leg == 1 and date < flights[0]["date"]) or (
            leg == 0 and len(flights) == 2 and date > flights[1]["date"]
        ):
            return None
        rule = rng.choice(("cheapest", "earliest"))
        new = self.choose(
            (old["origin"], old["destination"], date), trip["cabin"], len(trip["passengers"]), rule
        )
        if new is None or date == old["date"]:
            return None
        difference = (new["price"] - old["price"]) * len(trip["passengers"])
        pay = self._pay_change(rng, user, difference)
        if pay is None:
            return None
        words, data, method = pay
        which = "flight" if len(flights) == 1 else ("outbound flight", "return flight")[leg]
        chosen = [{"flight_number": f["flight_number"], "date": f["date"]} for f in flights]
        chosen[leg] = {"flight_number": new["flight_number"], "date": date}
        return Ask(
            f"move the {which} of {{my}} reservation {number} to {day(date)}, taking the {rule} direct "
            "flight of "
            f"that day in the same cabin, and settle the difference using {words}",
            {
                "do": "flights",
                "reservation": number,
                "leg": leg,
                "date": date,
                "rule": rule,
                "pay": data,
            },
            [
                action(
                    "update_reservation_flights",
                    reservation_id=number,
                    cabin=trip["cabin"],
                    flights=chosen,
                    payment_id=method,
                )
            ],
            must=(number, new["flight_number"]),
            uses=(number,),
        )

    def change_cabin(self, rng: random.Random, user: Json, used: set[str]) -> Ask | None:
        found = [r for r in self._upcoming(user, used) if set(self.statuses(r)) == {"available"}]
        if not found:
            return None
        trip = pick(rng, found)
        number, count = trip["reservation_id"], len(trip["passengers"])
        cabin = pick(rng, [c for c in CABINS if c != trip["cabin"]])
        difference = 0
        for f in trip["flights"]:
            state = self.flights[f["flight_number"]]["dates"][f["date"]]
            if state["available_seats"][cabin] < count:
                return None
            difference += (state["prices"][cabin] - f["price"]) * count
        pay = self._pay_change(rng, user, difference)
        if pay is None:
            return None
        words, data, method = pay
        return Ask(
            f"change {{my}} reservation {number} to {_CABIN_WORDS[cabin]} on the same flights, settling the "
            f"difference using {words}",
            {"do": "cabin", "reservation": number, "cabin": cabin, "pay": data},
            [
                action(
                    "update_reservation_flights",
                    reservation_id=number,
                    cabin=cabin,
                    flights=[
                        {"flight_number": f["flight_number"], "date": f["date"]} for f in trip["flights"]
                    ],
                    payment_id=method,
                )
            ],
            must=(number, _CABIN_WORDS[cabin].split()[0]),
            uses=(number,),
        )

    def add_bags(self, rng: random.Random, user: Json, used: set[str]) -> Ask | None:
        found = self._upcoming(user, used)
        if not found:
            return None
        trip = pick(rng, found)
        number, more = trip["reservation_id"], rng.randint(1, 3)
        total = trip["total_baggages"] + more
        paid = max(0, total - free_bags(user, trip["cabin"], len(trip["passengers"])))
        pay = self._pay_change(rng, user, 50 * max(0, paid - trip["nonfree_baggages"]))
        if pay is None:
            return None
        words, data, method = pay
        return Ask(
            f"add {more} checked bag{'s' if more > 1 else ''} to {{my}} reservation {number}, paying what "
            "it may "
            f"cost using {words}",
            {"do": "bags", "reservation": number, "more": more, "pay": data},
            [
                action(
                    "update_reservation_baggages",
                    reservation_id=number,
                    total_baggages=total,
                    nonfree_baggages=paid,
                    payment_id=method,
                )
            ],
            must=(number,),
            uses=(number,),
        )

    def change_passenger(self, rng: random.Random, user: Json, used: set[str]) -> Ask | None:
        found = self._upcoming(user, used)
        if not found:
            return None
        trip = pick(rng, found)
        number = trip["reservation_id"]
        people = [_passenger(p) for p in trip["passengers"]]
        if len({(p["first_name"], p["last_name"]) for p in people}) < len(people):
            return None
        position = rng.randrange(len(people))
        old = people[position]
        new = dict(old)
        if rng.random() < 0.5:
            new["last_name"] = pick(rng, _LAST_NAMES)
            want = (
                f"change the last name of passenger {old['first_name']} {old['last_name']} in {{my}} "
                "reservation "
                f"{number} to {new['last_name']}"
            )
        else:
            born = f"{rng.randint(1950, 2003)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
            new = {"first_name": pick(rng, _FIRST_NAMES), "last_name": pick(rng, _LAST_NAMES), "dob": born}
            want = (
                f"replace passenger {old['first_name']} {old['last_name']} in {{my}} reservation {number} by "
                f"{new['first_name']} {new['last_name']}, born {born}"
            )
        people[position] = new
        return Ask(
            want,
            {
                "do": "passenger",
                "reservation": number,
                "old": [old["first_name"], old["last_name"]],
                "new": {k: v for k, v in new.items() if old[k] != v or k != "dob"},
            },
            [action("update_reservation_passengers", reservation_id=number, passengers=people)],
            must=(number, new["last_name"]),
            uses=(number,),
        )

    # ------------------------------------------------------------ what policy forbids

    def forbidden(self, rng: random.Random, user: Json) -> Ask | None:
        """A request that the agent has to refuse; nothing is written for it."""
        trips = self._upcoming(user, set())
        if not trips:
            return None
        trip = pick(rng, trips)
        number = trip["reservation_id"]
        makes: dict[str, tuple[bool, str, Json]] = {
            "cancel": (
                trip["cabin"] != "business"
                and trip["created_at"] < DAY_AGO
                and "cancelled" not in self.statuses(trip),
                f"cancel {{my}} reservation {number} because {_REASONS['change of plan']}",
                {"reason": "change of plan"},
            ),
            "flights": (
                trip["cabin"] == "basic_economy",
                f"move the first flight of {{my}} reservation {number} to the next day, in the same cabin",
                {"leg": 0, "date": "next", "rule": "cheapest"},
            ),
            "fewer_bags": (
                trip["total_baggages"] > 0,
                f"take one checked bag off {{my}} reservation {number} and get the money back",
                {},
            ),
            "insurance": (
                trip["insurance"] == "no",
                f"add travel insurance to {{my}} reservation {number}",
                {},
            ),
            "people": (True, f"add one more passenger to {{my}} reservation {number}", {}),
        }
        do = pick(rng, list(makes))
        fits, want, data = makes[do]
        return Ask(want, {"do": do, "reservation": number, **data}, [], uses=(number,)) if fits else None

    def flown(self, rng: random.Random, user: Json) -> Ask | None:
        """Cancelling a trip that has begun: the agent has to hand over."""
        found = [
            r
            for r in map(self.reservations.__getitem__, user["reservations"])
            if {"landed", "flying"} & set(self.statuses(r)) and r["flights"][-1]["date"] > TODAY
        ]
        if not found:
            return None
        number = pick(rng, found)["reservation_id"]
        handover = action("transfer_to_human_agents", summary="cancellation of a trip that has begun")
        return Ask(
            f"cancel the rest of {{my}} reservation {number}, of which {{I}} flew the first part already, "
            "because "
            f"{_REASONS['change of plan']}",
            {"do": "cancel", "reservation": number, "reason": "change of plan"},
            [{**handover, "compare_args": []}],
            uses=(number,),
        )

    # ------------------------------------------------------------ parts

    def statuses(self, trip: Json) -> list[str]:
        return [self.flights[f["flight_number"]]["dates"][f["date"]]["status"] for f in trip["flights"]]

    def _upcoming(self, user: Json, used: set[str]) -> list[Json]:
        """Reservations of which nothing has been flown."""
        mine = (self.reservations[r] for r in user["reservations"] if r not in used)
        return [r for r in mine if not {"landed", "flying"} & set(self.statuses(r))]

    def choose(self, leg: tuple[str, str, str], cabin: str, count: int, rule: str) -> Json | None:
        """The direct flight that a rule gives, with its price; None when there is none, or a tie."""
        origin, destination, date = leg
        found = []
        for flight in self.routes.get((origin, destination), ()):
            state = flight["dates"].get(date)
            if state and state["status"] == "available":
                found.append(
                    {**flight, "price": state["prices"][cabin], "seats": state["available_seats"][cabin]}
                )
        if not found:
            return None
        by = "price" if rule == "cheapest" else "scheduled_departure_time_est"
        best = min(f[by] for f in found)
        same = [f for f in found if f[by] == best]
        # A flight without seats would leave room for two readings of the rule.
        return same[0] if len(same) == 1 and all(f["seats"] >= count for f in found) else None

    def _pay_booking(self, rng: random.Random, user: Json, total: int) -> tuple[str, Json, list[Json]] | None:
        cards = [p for p in user["payment_methods"].values() if p["source"] == "credit_card"]
        gifts = [
            p for p in user["payment_methods"].values() if p["source"] == "gift_card" and p["amount"] >= total
        ]
        papers = [
            p
            for p in user["payment_methods"].values()
            if p["source"] == "certificate" and p["amount"] < total
        ]
        ways: list[tuple[str, Json, list[Json]]] = []
        for p in cards:
            ways.append((_method(p), {"id": p["id"]}, [{"payment_id": p["id"], "amount": total}]))
        for p in gifts:
            ways.append((_method(p), {"id": p["id"]}, [{"payment_id": p["id"], "amount": total}]))
        for paper, card in itertools.product(papers, cards):
            ways.append(
                (
                    f"{_method(paper)} for as much as it is worth and {_method(card)} for the rest",
                    {"certificate": paper["id"], "id": card["id"]},
                    [
                        {"payment_id": paper["id"], "amount": int(paper["amount"])},
                        {"payment_id": card["id"], "amount": total - int(paper["amount"])},
                    ],
                )
            )
        return pick(rng, ways) if ways else None

    def _pay_change(self, rng: random.Random, user: Json, difference: int) -> tuple[str, Json, str] | None:
        able = [
            p
            for p in user["payment_methods"].values()
            if p["source"] != "certificate" and p.get("amount", difference) >= difference
        ]
        if not able:
            return None
        method = pick(rng, able)
        return _method(method), {"id": method["id"]}, method["id"]


def free_bags(user: Json, cabin: str, passengers: int) -> int:
    """Checked bags that cost nothing, for a reservation of this member."""
    return FREE_BAGS[user["membership"]][CABINS.index(cabin)] * passengers


def is_direct(trip: Json) -> bool:
    """One flight, or one there and one back."""
    legs = [(f["origin"], f["destination"]) for f in trip["flights"]]
    way = (trip["origin"], trip["destination"])
    return legs == ([way] if trip["flight_type"] == "one_way" else [way, way[::-1]])


def _passenger(person: Json) -> Json:
    return {k: person[k] for k in ("first_name", "last_name", "dob")}


def _method(method: Json) -> str:
    what = {"credit_card": "credit card", "gift_card": "gift card", "certificate": "travel certificate"}
    return f"{{my}} {what[method['source']]} {method['id']}"


def _bags_text(bags: int) -> str:
    return "no checked bags" if bags == 0 else f"{bags} checked bag{'s' if bags > 1 else ''} in all"


def _date(rng: random.Random, first: str, days: int) -> str:
    """One of the `days` days that begin with `first`, not beyond the last day of upstream's data."""
    found = datetime.date.fromisoformat(first) + datetime.timedelta(days=rng.randrange(days))
    return min(found.isoformat(), "2024-05-30")
