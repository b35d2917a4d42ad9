"""What the five worlds hold before an entry changes anything: names, numbers, prices, timetables.

Facts observed by running upstream; its sentences (the messages in the inbox, the reminders) are not here
but are read from the installed data, see `data.Start`.

Invariant: every function returns fresh objects, so that a world may change what it is given.
"""

from __future__ import annotations

from typing import Any, Literal

Language = Literal["en", "zh"]

NAMES = ("Eve", "Frank", "Grace", "Helen", "Isaac", "Jack")
"""The people, in order: the i-th is USR10i in the inbox and U10i on the food platform."""
_PASSWORDS = ("password123", "password456", "password789", "password321", "password654", "password654")
_BALANCES = (500.0, 300.0, 150.0, 800.0, 400.0, 120.0)

_MERCHANTS: dict[Language, tuple[tuple[str, tuple[tuple[str, float], ...]], ...]] = {
    "en": (
        ("Domino's", (("Margherita Pizza", 68.0), ("Super Supreme Pizza", 88.0))),
        ("Rice Village Bibimbap", (("Stone Pot Bibimbap", 35.0), ("Korean Beef Bibimbap", 45.0))),
        ("Haidilao", (("Beef Rolls", 68.0), ("Seafood Platter", 88.0))),
        ("Heytea", (("Cheese Milk Tea", 25.0), ("Four Seasons Spring Milk Tea", 22.0))),
        ("Hema Fresh", (("Organic Vegetable Pack", 15.0), ("Fresh Gift Pack", 99.0))),
        ("Jiutian BBQ", (("Korean Grilled Beef", 128.0), ("Grilled Pork Belly", 78.0))),
    ),
    "zh": (
        ("达美乐", (("玛格丽特披萨", 68.0), ("超级至尊披萨", 88.0))),
        ("米村拌饭", (("石锅拌饭", 35.0), ("韩式牛肉拌饭", 45.0))),
        ("海底捞", (("牛肉卷", 68.0), ("海鲜拼盘", 88.0))),
        ("喜茶", (("芝士奶茶", 25.0), ("四季春奶茶", 22.0))),
        ("盒马生鲜", (("有机蔬菜包", 15.0), ("生鲜大礼包", 99.0))),
        ("九田家烤肉", (("韩式烤牛肉", 128.0), ("烤五花肉", 78.0))),
    ),
}

_CITIES: dict[str, str] = {
    "Beijing": "北京",
    "Shanghai": "上海",
    "Nanjing": "南京",
    "Shenzhen": "深圳",
    "Xiamen": "厦门",
    "Chengdu": "成都",
    "Fuzhou": "福州",
}
ECONOMY: dict[Language, str] = {"en": "Economy Class", "zh": "经济舱"}
BUSINESS: dict[Language, str] = {"en": "Business Class", "zh": "商务舱"}
AIRLINE_CANCELLED: dict[Language, str] = {
    "en": "The airline has canceled the flight.",
    "zh": "航空公司取消航班",
}
"""The one reason for cancelling, as the caller must spell it, that is always free."""

FREE_BAGS = {"regular": (1, 2), "silver": (2, 3), "gold": (3, 3)}
"""Pieces of free baggage by membership: economy, business."""

# number, from, to, day of July 2024, departs, arrives, seats, economy, business
_FLIGHTS = (
    ("CA1234", "Beijing", "Shanghai", 15, "08:00", "10:30", 5, 1200, 3000),
    ("MU5678", "Shanghai", "Beijing", 16, "09:00", "11:30", 3, 1900, 3000),
    ("CZ4321", "Shanghai", "Beijing", 16, "20:00", "22:00", 8, 2500, 4000),
    ("CZ4352", "Shanghai", "Beijing", 17, "20:00", "22:00", 8, 1600, 2500),
    ("MU3561", "Beijing", "Nanjing", 18, "08:00", "10:00", 8, 1500, 4000),
    ("MU1566", "Beijing", "Nanjing", 18, "20:00", "22:00", 8, 1500, 4000),
    ("CZ1765", "Nanjing", "Shenzhen", 17, "20:30", "22:00", 8, 1500, 2500),
    ("CZ1765", "Nanjing", "Shenzhen", 18, "12:30", "15:00", 8, 1500, 2500),
    ("MH1765", "Xiamen", "Chengdu", 17, "12:30", "15:00", 8, 1500, 2500),
    ("MH2616", "Chengdu", "Xiamen", 18, "18:30", "21:00", 8, 1500, 2500),
    ("MH2616", "Chengdu", "Fuzhou", 16, "18:30", "21:00", 8, 1500, 2500),
)
# number, traveller, flight, economy, from, to; number 4 names a flight that does not exist
_RESERVATIONS = (
    (1, "user1", "CA1234", True, "Beijing", "Shanghai"),
    (2, "user1", "MU5678", False, "Shanghai", "Beijing"),
    (3, "user2", "MH1765", False, "Xiamen", "Chengdu"),
    (4, "user2", "MU2616", False, "Chengdu", "Xiamen"),
)
# password, cash, bank, membership; the travellers are the first three of NAMES
_TRAVELLERS = ((2000.0, 50000.0, "regular"), (8000.0, 8000.0, "silver"), (1000.0, 5000.0, "gold"))


def message_users() -> dict[str, str]:
    """Name → the id under which the inbox knows the person."""
    return {name: f"USR{100 + i}" for i, name in enumerate(NAMES)}


def food_users() -> dict[str, dict[str, Any]]:
    """Name → user_id, password, balance on the food platform."""
    rows = zip(NAMES, _PASSWORDS, _BALANCES, strict=True)
    return {
        name: {"user_id": f"U{100 + i}", "password": password, "balance": balance}
        for i, (name, password, balance) in enumerate(rows)
    }


def menus(language: Language) -> dict[str, list[dict[str, Any]]]:
    """Merchant → its products with their prices in yuan."""
    return {
        merchant: [{"product": product, "price": price} for product, price in menu]
        for merchant, menu in _MERCHANTS[language]
    }


def _city(name: str, language: Language) -> str:
    return name if language == "en" else _CITIES[name]


def flights(language: Language) -> list[dict[str, Any]]:
    """The timetable; numbers are not unique in it, and the first one counts where only a number is given."""
    return [
        {
            "flight_no": number,
            "origin": _city(origin, language),
            "destination": _city(destination, language),
            "depart_time": f"2024-07-{day} {departs}:00",
            "arrival_time": f"2024-07-{day} {arrives}:00",
            "status": "available",
            "seats_available": seats,
            "economy_price": economy,
            "business_price": business,
        }
        for number, origin, destination, day, departs, arrives, seats, economy, business in _FLIGHTS
    ]


def travellers() -> dict[str, dict[str, Any]]:
    """User id → the traveller's profile."""
    return {
        f"user{i + 1}": {
            "user_name": NAMES[i],
            "password": _PASSWORDS[i],
            "cash_balance": cash,
            "bank_balance": bank,
            "membership_level": level,
        }
        for i, (cash, bank, level) in enumerate(_TRAVELLERS)
    }


def reservations(language: Language) -> list[dict[str, Any]]:
    """What is booked before anything happens."""
    return [
        {
            "reservation_id": f"res_{number}",
            "user_id": user,
            "flight_no": flight,
            "payment_method": "bank",
            "cabin": (ECONOMY if economy else BUSINESS)[language],
            "baggage": 1,
            "origin": _city(origin, language),
            "destination": _city(destination, language),
        }
        for number, user, flight, economy, origin, destination in _RESERVATIONS
    ]
