"""What the agent did when things changed: another wish, a correction, a failed call, a handover.

Invariant: as of `rules`. The layer says whether the agent changed its plan, and whether the episode came to
a good end all the same; it never breaks a rule of policy twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from . import wording
from .events import Event
from .reading import Reading
from .rules import Breach, Verdict

_NUMBER = r"[#\w][\w@.:/#-]*\d[\w@.:/#-]*"
_NOT_THIS = re.compile(
    rf"\bnot\s+(?:the\s+)?(?P<a>{_NUMBER})|(?:instead of|rather than)\s+(?P<b>{_NUMBER})",
    re.I,
)
_MISTAKE = re.compile(
    r"\b(sorry|apolog\w+|mistake|mistyped|typo|meant|misread|mixed up|misremembered|wrong|should be|misspoke|"
    r"correct(?:ion| (?:one|number))|in fact)\b",
    re.I,
)
_REPEATS = re.compile(r"\?\s*$|\b(?:what do you mean|say (?:it|that) again|repeat|pardon|explain)\b", re.I)


def check(reading: Reading, outcome: float | None) -> list[Verdict]:
    """Verdicts of recovery; `outcome` is the reward of the episode."""
    out: list[Verdict] = []
    causes: list[Event] = []
    for name, breaches, events in (
        ("changed_goal", _changed(reading), _changes(reading)),
        ("tool_error", _errors(reading), _failed(reading)),
        ("correction", _corrections(reading), [e for e, _ in _corrected(reading)]),
    ):
        found = list(breaches)
        out += _verdicts(name, found)
        causes += events if found else []
    if causes and outcome is not None:
        good = outcome >= 1 - 1e-6
        at = min(e.at for e in causes)
        told = "" if good else "the episode failed after a change, an error or a correction"
        out.append(Verdict("recovery", "succeeded", "pass" if good else "violation", at, told))
    else:
        out.append(Verdict("recovery", "succeeded", "not_applicable"))
    return out + _verdicts("handover_summary", list(_summaries(reading)))


def _verdicts(name: str, found: list[Breach]) -> list[Verdict]:
    broken = [Verdict("recovery", name, "violation", b[0].at, b[1]) for b in found if b is not None]
    return broken or [Verdict("recovery", name, "pass" if found else "not_applicable")]


# ---------------------------------------------------------------- another wish


def _refused(reading: Reading) -> list[Event]:
    """The person's answers to a proposal that are no yes, and ask for nothing but to be told."""
    found = []
    asked = False
    for event in reading.events:
        if event.kind == "agent":
            asked = wording.asks_to_confirm(event.text)
        elif event.kind == "user":
            other = wording.is_change(event.text) or not _REPEATS.search(event.text)
            if asked and not wording.is_yes(event.text) and other:
                found.append(event)
            asked = False
    return found


def _changes(reading: Reading) -> list[Event]:
    """Those of them that say another wish, or none."""
    return [event for event in _refused(reading) if wording.is_change(event.text)]


def _changed(reading: Reading) -> Iterator[Breach]:
    """A plan that was not agreed to is given up: it is neither carried out nor proposed in the same words."""
    for event in _refused(reading):
        before = next(e for e in reversed(reading.events[: event.place]) if e.kind == "agent")
        breach = _kept_plan(reading, event, before)
        if breach is not None:
            yield breach
        elif wording.is_change(event.text) and event.place + 1 < len(reading.events):
            yield None


def _kept_plan(reading: Reading, event: Event, before: Event) -> Breach:
    for later in reading.events[event.place + 1 :]:
        if later.kind == "user":
            return None
        if later.kind == "agent":
            same = wording.normal(later.text) == wording.normal(before.text)
            return (later, "proposed again what the person had turned down") if same else None
        acts = later.side == "assistant" and not later.error and reading.is_write(later.name)
        if acts and reading.needs_yes(later.name) and not _asked_for(event, later):
            return later, f"{later.name} although the person had not agreed to it"
    return None


def _asked_for(words: Event, call: Event) -> bool:
    """The person's words name what the call is made with: that is what it wants now."""
    values = (v for v in wording.leaves(call.arguments) if isinstance(v, str) and len(v) > 3)
    return any(wording.names(words.text, v) for v in values)


# ---------------------------------------------------------------- errors and corrections


def _key(event: Event) -> str:
    return f"{event.name} {json.dumps(event.arguments, sort_keys=True, default=str)}"


def _failed(reading: Reading) -> list[Event]:
    """The agent's calls that failed by its own doing."""
    return [
        e
        for e in reading.events
        if e.kind == "call" and e.side == "assistant" and e.error and not e.fault and e.answer_at is not None
    ]


def _errors(reading: Reading) -> Iterator[Breach]:
    """A call that failed is not made again as it was, as long as nothing has changed."""
    for event in _failed(reading):
        later = _next(reading.events[event.place + 1 :])
        if later is not None:
            same = later.kind == "call" and _key(later) == _key(event)
            yield (later, f"{later.name} again as it had failed") if same else None


def _next(events: Iterable[Event]) -> Event | None:
    """The agent's next move."""
    return next(
        (e for e in events if e.kind == "agent" or (e.kind == "call" and e.side == "assistant")), None
    )


def _corrected(reading: Reading) -> list[tuple[Event, str]]:
    """(the person's words, the value that they take back)."""
    found: list[tuple[Event, str]] = []
    failed: Event | None = None
    for event in reading.events:
        if event.kind == "call" and event.side == "assistant":
            failed = event if event.error and not event.fault and not reading.is_write(event.name) else None
        elif event.kind == "user":
            found += [(event, (m["a"] or m["b"]).rstrip(".,:;!?")) for m in _NOT_THIS.finditer(event.text)]
            finding = failed is not None and failed.name in reading.conduct.person.found_by
            if failed is not None and (finding or _MISTAKE.search(event.text)):
                for value in wording.leaves(failed.arguments):
                    telling = isinstance(value, str) and any(c.isdigit() for c in value)
                    figures = re.search(r"\d", event.text)
                    if telling and figures and not wording.names(event.text, value):
                        found.append((event, str(value)))
                        break
    return found


def _corrections(reading: Reading) -> Iterator[Breach]:
    """A value that the person has taken back is not used any more."""
    for event, value in _corrected(reading):
        moves = [e for e in reading.events[event.place + 1 :] if e.kind == "call" and e.side == "assistant"]
        said = wording.normal(value).lstrip("#")
        wrong = next(
            (
                e
                for e in moves
                if any(
                    isinstance(v, str) and wording.normal(v).lstrip("#") == said
                    for v in wording.leaves(e.arguments)
                )
            ),
            None,
        )
        if wrong is not None:
            yield wrong, f"{wrong.name} with {value}, which the person had corrected"
        elif _next(reading.events[event.place + 1 :]) is not None:
            yield None


# ---------------------------------------------------------------- handover


def _summaries(reading: Reading) -> Iterator[Breach]:
    """A handover with a summary says what it is about: words of the person, or of what was looked up."""
    for event in reading.calls:
        if not reading.hands_over(event.name) or "summary" not in event.arguments:
            continue
        tool = reading.tools.get(event.name)
        summary = str(event.arguments["summary"])
        if not summary and tool is not None and "summary" not in tool.parameters.get("required", ()):
            continue
        heard = set(_stems(" ".join(e.text for e in reading.events[: event.place] if e.kind != "agent")))
        stems = _stems(summary)
        useful = len(stems) >= 3 and len(heard & set(stems)) >= 2
        yield None if useful else (event, f"handed over with the summary '{summary[:80]}'")


def _stems(text: str) -> list[str]:
    return [w[:5] for w in re.findall(r"[^\W_]{3,}", text.casefold()) if w[:5] not in _EMPTY]


_EMPTY = frozenset(
    word[:5]
    for word in re.findall(
        r"\w+",
        "the and for who was has not can her his are but all any user customer person agent human request "
        "help needs wants transfer please issue this that with from have their they would like about "
        "assistance problem further being unable situation matter case support",
    )
)
