"""Made-up people for the databases of domains."""

from __future__ import annotations

import datetime
import random

_FIRST = (
    *("Alma", "Boris", "Celia", "Denis", "Emma", "Felix", "Gina", "Henrik", "Ida", "Jakob"),
    *("Karin", "Lars", "Mina", "Noel", "Olive", "Peter", "Ruth", "Stefan", "Tilda", "Urs"),
)
_LAST = (
    *("Adler", "Baum", "Cramer", "Dietz", "Ebert", "Falk", "Graf", "Hahn", "Imhof", "Junker"),
    *("Kern", "Lang", "Moser", "Nagel", "Otto", "Pohl", "Reuter", "Seidel", "Thiel", "Vogt"),
)


def full_names(rng: random.Random) -> list[str]:
    """400 different names in random order."""
    names = [f"{first} {last}" for first in _FIRST for last in _LAST]
    rng.shuffle(names)
    return names


def birthday(rng: random.Random) -> str:
    """A date of birth between 1950 and 2001."""
    return (datetime.date(1950, 1, 1) + datetime.timedelta(days=rng.randrange(19000))).isoformat()
