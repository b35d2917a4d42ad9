"""Who comes to the desk of lockers, what they want, and who serves them.

Invariant: no two tasks have the same content, and what is held out is never trained on.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

from mua.domain import Action, Scenario, Task
from mua.domains import script
from mua.domains.script import Call, Say, Script, ScriptUser

_FIRST = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gail", "Hugo", "Ines", "Jon", "Kim", "Lars")
_SECOND = ("Park", "Moss", "Ruiz", "Weiss", "Lund", "Sato", "Roy", "Okoye")
PEOPLE = tuple(f"{first} {second}" for first, second in itertools.product(_FIRST, _SECOND))
HELD_OUT = 4
"""Every fourth person is of the test split."""


def make_state(folder: Path) -> None:
    """Every second person has a locker."""
    lockers = {name: (n // 2 + 1 if n % 2 else 0) for n, name in enumerate(PEOPLE)}
    (folder / "lockers.json").write_text(json.dumps(lockers), encoding="utf-8")


def _task(number: int, name: str) -> Task:
    tool = "return_locker" if number % 2 else "rent_locker"
    want = "give my locker back" if number % 2 else "rent a locker"
    agenda = {
        "who": {"say": f"my name is {name}", "data": {"name": name}},
        "requests": [{"say": want, "data": {"tool": tool}, "must": []}],
    }
    goal = f"You want to {want.replace('my', 'your')}. You say your name when you are asked for it."
    scenario = Scenario(goal, {"name": name}, "You are brief.", agenda)
    return Task(f"{tool}-{number}", tool, scenario, (Action(tool, {"name": name}),))


def tasks() -> dict[str, list[Task]]:
    every = [_task(number, name) for number, name in enumerate(PEOPLE)]
    test = [t for n, t in enumerate(every) if (n // 2) % HELD_OUT == 0]
    return {"train": [t for t in every if t not in test], "test": test}


class User(ScriptUser):
    topics = {"who": re.compile(r"\byour name\b", re.I)}  # noqa: RUF012


class Expert(script.Expert):
    """Follows policy.md."""

    def identify(self) -> Script:
        while "name" not in self.who:
            yield Say("What is your name?")

    def once(self) -> Script:
        wanted = self.request or {}
        answer = yield Call(wanted["tool"], {"name": self.who["name"]})
        return self.sorry(f"{answer.text}.") if isinstance(answer, script.Refused) else f"Done. {answer}"
