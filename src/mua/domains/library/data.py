"""The library's database, made from a seed: members, titles, loans, reservations, fines.

Invariant: the same seed gives the same tables on any machine, so nothing needs to be stored.
"""

from __future__ import annotations

import datetime
import random
from typing import Any

TODAY = datetime.date(2026, 3, 2)
LOAN_DAYS = 21
MAX_RENEWALS = 2
MAX_FINES = 10.0
MAX_RESERVATIONS = 5
BRANCHES = ("Central", "Northside", "Riverside")

MEMBERS = 880
TITLES = 1200

_FIRST = [
    "Ada",
    "Bela",
    "Carla",
    "Dario",
    "Edda",
    "Farid",
    "Greta",
    "Hugo",
    "Iris",
    "Jonas",
    "Kira",
    "Leo",
    "Mara",
    "Nils",
    "Olga",
    "Pavel",
    "Quinn",
    "Rosa",
    "Sami",
    "Tara",
    "Ugo",
    "Vera",
    "Wanda",
    "Xenia",
    "Yusuf",
    "Zoe",
    "Anton",
    "Britt",
    "Cyril",
    "Dora",
]
_LAST = [
    "Abbott",
    "Brandt",
    "Costa",
    "Dreyer",
    "Egan",
    "Fischer",
    "Gallo",
    "Hansen",
    "Ivanov",
    "Jensen",
    "Keller",
    "Lopez",
    "Mendes",
    "Novak",
    "Okafor",
    "Petrov",
    "Quist",
    "Romano",
    "Sato",
    "Toth",
    "Ueda",
    "Varga",
    "Weber",
    "Xu",
    "Yilmaz",
    "Zeller",
    "Arnold",
    "Becker",
    "Conti",
    "Duarte",
]
_ADJECTIVES = [
    "Silent",
    "Red",
    "Hidden",
    "Broken",
    "Golden",
    "Distant",
    "Frozen",
    "Crooked",
    "Endless",
    "Gentle",
    "Hollow",
    "Iron",
    "Jade",
    "Lonely",
    "Marble",
    "Narrow",
    "Open",
    "Paper",
    "Quiet",
    "Restless",
    "Silver",
    "Tangled",
    "Upper",
    "Velvet",
    "Wild",
    "Yellow",
    "Amber",
    "Bitter",
    "Copper",
    "Dusty",
    "Early",
    "Faded",
    "Green",
    "Humble",
    "Ivory",
    "Little",
]
_NOUNS = [
    "Harbour",
    "River",
    "Garden",
    "Mirror",
    "Forest",
    "Letter",
    "Winter",
    "Tower",
    "Bridge",
    "Island",
    "Journey",
    "Kitchen",
    "Lantern",
    "Meadow",
    "Night",
    "Ocean",
    "Palace",
    "Road",
    "Season",
    "Train",
    "Umbrella",
    "Valley",
    "Window",
    "Year",
    "Anchor",
    "Beacon",
    "Castle",
    "Desert",
    "Engine",
    "Field",
    "Glacier",
    "Horizon",
    "Inn",
    "Jungle",
    "Kingdom",
    "Lighthouse",
]
CARDS = [c for c in map(str, range(1000, 10000)) if len(set(c)) == 4]
"""Every well-formed card number: four different digits."""
_STREETS = [
    "Mill Lane",
    "High Street",
    "Station Road",
    "Church Walk",
    "Park Avenue",
    "Bridge Street",
    "Elm Road",
    "Harbour View",
]
_CITIES = ["Alton", "Berwick", "Calder", "Dunmore"]


def make_tables(seed: int = 0) -> dict[str, dict[str, dict[str, Any]]]:
    """All tables as plain JSON values: `{table: {key: row}}`."""
    rng = random.Random(f"library-{seed}")
    authors = [f"{f} {last}" for f in _FIRST for last in _LAST]
    rng.shuffle(authors)
    names = [f"{a} {n}" for a in _ADJECTIVES for n in _NOUNS]
    rng.shuffle(names)
    titles = {
        name: {
            "title": name,
            "author": authors[rng.randrange(300)],
            "year": rng.randint(1950, 2025),
            "copies": rng.randint(1, 4),
            "reference_only": rng.random() < 0.06,
        }
        for name in names[:TITLES]
    }
    lendable = [t for t, row in titles.items() if not row["reference_only"]]

    cards = rng.sample(CARDS, MEMBERS)
    people = [f"{f} {last}" for f in _FIRST for last in _LAST]
    rng.shuffle(people)
    members: dict[str, dict[str, Any]] = {}
    loans: dict[str, dict[str, Any]] = {}
    reservations: dict[str, dict[str, Any]] = {}
    fines: dict[str, dict[str, Any]] = {}
    for card, name in zip(cards, people, strict=False):
        street = f"{rng.randint(1, 99)} {rng.choice(_STREETS)}"
        owing = rng.random()
        first, last = name.lower().split()
        members[card] = {
            "card": card,
            "name": name,
            "status": "expired" if rng.random() < 0.1 else "active",
            "fines_due": 0.0,
            "email": f"{first}.{last}@example.org",
            "phone": f"555{rng.randint(1000, 9999)}",
            "address": {
                "street": street,
                "city": rng.choice(_CITIES),
                "postcode": f"{rng.choice('ABCDEFGH')}{rng.randint(100, 999)}",
            },
        }
        total = 0.0
        if owing < 0.22:  # more than the limit: this member must settle first
            total = _add_fine(fines, rng, card, rng.choice((10.5, 12.0, 14.5, 18.0, 23.5)))
            if rng.random() < 0.4:
                total += _add_fine(fines, rng, card, rng.choice((2.0, 3.5)))
        elif owing < 0.42:  # a little, within the limit
            total = _add_fine(fines, rng, card, rng.choice((1.5, 2.0, 4.5, 6.0, 8.5)))
        members[card]["fines_due"] = total
        mine = rng.sample(lendable, 6)
        for title in mine[: rng.randint(2, 4)]:
            loans[f"{card}/{title}"] = {
                "card": card,
                "title": title,
                "due": (TODAY + datetime.timedelta(days=rng.randint(-6, 16))).isoformat(),
                "renewals": rng.choice((0, 0, 0, 1, 1, 2)),
                "waiting": rng.choice((0, 0, 0, 0, 0, 1)),
            }
        for title in mine[4 : 4 + rng.randint(0, 2)]:
            reservations[f"{card}/{title}"] = {
                "card": card,
                "title": title,
                "branch": rng.choice(BRANCHES),
                "status": rng.choice(("waiting", "waiting", "ready")),
            }
    return {
        "members": members,
        "titles": titles,
        "loans": loans,
        "reservations": reservations,
        "fines": fines,
        "cases": {},
        "handovers": {},
    }


def _add_fine(fines: dict[str, dict[str, Any]], rng: random.Random, card: str, amount: float) -> float:
    key = f"F{1001 + len(fines)}"
    fines[key] = {
        "fine_id": key,
        "card": card,
        "amount": amount,
        "reason": rng.choice(("late", "late", "late", "damage")),
        "paid": False,
    }
    return amount
