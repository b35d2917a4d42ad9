"""Meetings across time zones: fourteen zones, eight kinds of tasks, over mcp-server-time.

The server converts by the rules of the day on which it is asked, so none of the zones changes its clocks: a
task has one solution all the year.

Invariant: as of the package; every gold solution follows meetings.md.
"""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Callable, Mapping
from typing import Any
from zoneinfo import ZoneInfo

from mua.domain import Action, Task
from mua.domains import script
from mua.domains.mcp_examples import NAMES, call, request, splits, task
from mua.domains.script import Call, Say, Script, ScriptUser

_ZONES = (
    "Africa/Johannesburg", "Africa/Lagos", "Africa/Nairobi", "America/Bogota", "America/Lima",
    "America/Phoenix", "Asia/Dubai", "Asia/Kathmandu", "Asia/Kolkata", "Asia/Shanghai", "Asia/Singapore",
    "Asia/Tokyo", "Australia/Brisbane", "Pacific/Honolulu",
)  # fmt: skip
_OPENS, _CLOSES = "08:00", "18:00"


def _there(here: str, there: str, time: str) -> tuple[str, str]:
    """Time and day on the other side, as the server will say them."""
    day = datetime.datetime.now(ZoneInfo(here)).date()
    start = datetime.datetime.combine(day, datetime.time.fromisoformat(time), ZoneInfo(here))
    end = start.astimezone(ZoneInfo(there))
    return end.strftime("%H:%M"), _day(end.date(), day)


def _day(there: datetime.date, here: datetime.date) -> str:
    return {-1: "before", 0: "same", 1: "after"}[(there - here).days]


def _fits(time: str) -> bool:
    return _OPENS <= time <= _CLOSES


def _wish(rng: random.Random, fits: bool, edge: bool = False) -> tuple[dict[str, Any], list[Action]]:
    """A meeting; at the edge, one that is at the last minute or one after it."""
    while True:
        here, there = rng.sample(_ZONES, 2)
        time = f"{rng.randrange(24):02}:{rng.choice((0, 15, 30, 45)):02}"
        if edge:
            time = _there(there, here, rng.choice((_OPENS, _CLOSES) if fits else ("07:59", "18:01")))[0]
        at, day = _there(here, there, time)
        if _fits(at) == fits:
            break
    say = f"arrange a call at {time} of my time in {here} with somebody in {there}"
    wish = request(say, [at, there], {"here": here, "there": there, "time": time})
    if fits:
        return wish, [call("record_meeting", timezone=there, time=at, day=day)]
    return wish, [call("record_refusal", timezone=there, reason="outside_hours")]


def _plain(kind: str, fits: bool, edge: bool = False) -> Callable[[random.Random], Task]:
    def make(rng: random.Random) -> Task:
        wish, actions = _wish(rng, fits, edge)
        return task(kind, rng.choice(NAMES), [wish], actions, rng)

    return make


def _no_zone(rng: random.Random) -> Task:
    wish, actions = _wish(rng, True)
    here = wish["data"]["here"]
    later = {"zone": {"say": f"my time zone is {here}", "data": {"here": here}}}
    vague = {**wish, "say": wish["say"].replace(f" in {here}", ""), "data": {**wish["data"], "here": None}}
    return task("no_zone", rng.choice(NAMES), [{**vague, "later": later}], actions, rng)


def _switch(rng: random.Random) -> Task:
    (first, _), (other, actions) = _wish(rng, True), _wish(rng, True)
    return task("switch", rng.choice(NAMES), [{**first, "change": other}], actions, rng)


def _withdraw(rng: random.Random) -> Task:
    wish, _ = _wish(rng, True)
    record = call("record_refusal", timezone=wish["data"]["there"], reason="withdrawn")
    return task("withdraw", rng.choice(NAMES), [{**wish, "withdraw": True}], [record], rng)


def _two(rng: random.Random) -> Task:
    (one, first), (two, second) = _wish(rng, True), _wish(rng, False)
    return task("two", rng.choice(NAMES), [one, two], [*first, *second], rng)


def tasks() -> dict[str, list[Task]]:
    return splits(
        "meetings",
        {
            "fits": _plain("fits", True),
            "outside": _plain("outside", False),
            "just_fits": _plain("just_fits", True, edge=True),
            "just_outside": _plain("just_outside", False, edge=True),
            "no_zone": _no_zone,
            "switch": _switch,
            "withdraw": _withdraw,
            "two": _two,
        },
    )


# ---------------------------------------------------------------- who speaks


class User(ScriptUser):
    topics = {"zone": re.compile(r"\byour (own )?time zone\b", re.I)}  # noqa: RUF012


class Expert(script.Expert):
    """Follows meetings.md."""

    def once(self) -> Script:
        wanted: Mapping[str, Any] = self.request or {}
        while wanted.get("here") is None:
            yield Say("What is your time zone?")
            wanted = self.request or {}
        here, there = wanted["here"], wanted["there"]
        asked = {"source_timezone": here, "time": wanted["time"], "target_timezone": there}
        answer = yield Call("convert_time", asked)
        start, end = (
            datetime.datetime.fromisoformat(answer[side]["datetime"]) for side in ("source", "target")
        )
        time, day = end.strftime("%H:%M"), _day(end.date(), start.date())
        if not _fits(time):
            record = Call("record_refusal", {"timezone": there, "reason": "outside_hours"})
            return (yield from self.refuse(record, f"it would be {time} in {there} then."))
        meeting = Call("record_meeting", {"timezone": there, "time": time, "day": day})
        withdrawn = Call("record_refusal", {"timezone": there, "reason": "withdrawn"})
        when = {"before": "the day before", "same": "the same day", "after": "the day after"}[day]
        text = f"That is {time} in {there}, {when}. I will record the meeting."
        return (yield from self.settle(text, [meeting], "The meeting is recorded.", withdrawn))
