"""How the users of imported conversations behave, in the terms of `users.personas`, and how often.

A behaviour is recognised by rules over what the user says and what it answers to; docs/results.md has how
often the rules are right, on users whose behaviour is known. Recognised together, the behaviours of one
conversation are its persona; the shares of the personas are the mix that training users are drawn from.

Invariant: a pure function of the conversation; the counts of a mix add up to its conversations.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import mean, median
from typing import Any

from ..audit import wording
from ..chat import Message
from ..evaluate.statistics import wilson
from ..users import STOP
from ..users.personas import BEHAVIOURS, PLAIN

TERSE_WORDS = 8
"""The median turn of a terse user has no more words, and none of its turns has a courtesy or a whole sentence
for a wish."""
RAMBLING_WORDS = 30
"""The mean turn of a rambling user has this many, or one in three has small talk."""

_IMPATIENT = re.compile(
    r"\b(?:hurry|asap|quick(?:er|ly)?|fast(?:er)?|speed (?:this|it|things) up|short of time|no time|"
    r"(?:taking|takes|took) (?:so|too|way too|for)\b|how (?:much )?long(?:er)?|far too long|been (?:waiting|"
    r"at this)|"
    r"wast(?:e|ing) (?:of )?my time|come on|get on with it|not got all day|ridiculous|right now|immediately|"
    r"still waiting|last time)\b",
    re.I,
)
_EMOTIONAL = re.compile(
    r"\b(?:begging|beg you|tears?|crying|cry|desperate(?:ly)?|heart ?broken|devastated|means everything|"
    r"means? the world|last hope|could not sleep|couldn't sleep|so (?:upset|scared|worried|stressed)|"
    r"please,? please|as (?:one )?human|panic\w*|terrible (?:day|week|time)|falling apart|ruin(?:ed|s)?)\b",
    re.I,
)
_CONFUSED = re.compile(
    r"\b(?:(?:do not|don't|didn't|did not) (?:really |quite )?(?:understand|follow|get (?:it|that|what))|"
    r"what do you mean|lost me|(?:am|I'm) (?:confused|lost|not sure (?:what|that I follow|I follow))|"
    r"(?:say|explain) (?:that|it|this) again|not following|makes no sense|what is that|what does that mean|"
    r"huh)\b",
    re.I,
)
_MENDED = re.compile(
    r"\b(?:sorry|oops|my mistake|mistyped|typo|misread|i meant|i mean|correction|wrong)\b[^.!?\n]{0,400}\d|"
    r"\d[^.!?\n]{0,40}\b(?:no wait|sorry|i mean|i meant|not \S*\d)\b",
    re.I,
)
_EXCEPTION = re.compile(
    r"\b(?:exception|just (?:this )?once|this one time|skip (?:that|the|it|this)|leave (?:that|it|this) out|"
    r"do (?:we|i) have to|is that (?:really )?necessary|nobody would know|"
    r"bend the rules?|waive|bypass|look the other way|can(?:'t| ?not| you not) (?:you )?(?:just )?(?:skip|"
    r"ignore))\b",
    re.I,
)
_AUTHORITY = re.compile(
    r"\b(?:i(?:'m| am)? (?:also )?work (?:here|there|for (?:you|this|the (?:company|department|same)))|"
    r"(?:this is|i am|i'm) (?:your|the|a|head of|calling (?:for|on behalf of)) ?(?:the )?"
    r"(?:supervisor|manager|boss|head|director|ceo|administrator|admin|it department|police|security|"
    r"support team)|"
    r"(?:your|my) (?:manager|supervisor|boss) (?:said|told|allowed|approved|already)|need not (?:check|"
    r"verify)|"
    r"(?:colleague|employee|staff member) of yours|i am staff|authori[sz]ed (?:by|me))\b",
    re.I,
)
_SMALL_TALK = re.compile(
    r"\b(?:by the way|you know|i was (?:just )?(?:telling|saying|talking)|my (?:neighbou?r|sister|brother|"
    r"mother|"
    r"husband|wife|friend|dog|cat|son|daughter|aunt|uncle|cousin)\b(?!'s (?:order|account|card|name))|"
    r"the weather|"
    r"one thing led to another|funny (?:story|thing)|long story|used to do|those (?:days|weeks)|anyway)\b",
    re.I,
)
_COMMANDS = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\b[^.\n]{0,60}\b(?:instructions?|rules?|polic\w+|prompt|"
    r"guidelines?)\b|"
    r"[<\[(#*]\s*/?(?:system|developer|admin\w*|assistant)\b|"
    r"^[ \t]*(?:system|developer)(?: note| message)?\s*:|"
    r"\byou are now (?:an?|in|the)\b|\bnew (?:policy|instructions?|system prompt)\s*:",
    re.I | re.M,
)
_WHOLE = re.compile(
    r"\b(?:hi|hello|hey|good (?:morning|afternoon|evening)|please|could you|can you|would you|"
    r"i(?:'d| would)? (?:also )?(?:want|like|need|wish|have|am)|i(?:'m|'ve)|my name is)\b",
    re.I,
)
_COURTESY = re.compile(
    r"\b(?:thanks?|thank you|thx|ty|cheers|(?:good)?bye|that(?:'s| is| was| will be) (?:all|it|everything)|"
    r"have a (?:good|nice|great)|great|perfect|awesome|no,? (?:that|thanks|i'm good|nothing))\b",
    re.I,
)


def behaviours(messages: Sequence[Message]) -> tuple[str, ...]:
    """The behaviours that the user of a conversation shows, in the order of `BEHAVIOURS`."""
    answers = turns(messages)
    said = [text for _, text in answers]
    words = [len(text.split()) for text in said]
    found = set()
    if said and median(words) <= TERSE_WORDS and not any(map(_WHOLE.search, said)):
        found.add("terse")
    small = sum(bool(_SMALL_TALK.search(text)) for text in said)
    if said and (mean(words) >= RAMBLING_WORDS or small * 3 >= len(said)) and "terse" not in found:
        found.add("rambling")
    for name, pattern, least in (
        ("impatient", _IMPATIENT, 1),
        ("emotional", _EMOTIONAL, 1),
        ("slips", _MENDED, 1),
        ("asks_forbidden", _EXCEPTION, 1),
        ("social_engineering", _AUTHORITY, 1),
    ):
        if sum(bool(pattern.search(text)) for text in said) >= least:
            found.add(name)
    if any("?" in before and _CONFUSED.search(text) for before, text in answers):
        found.add("confused")
    if any(_COMMANDS.search(text) for text in said):
        found.add("injects")
    if any(wording.asks_to_confirm(before) and wording.is_change(text) for before, text in answers):
        found.add("changes_goal")
    if _left(messages):
        found.add("leaves")
    return tuple(name for name in BEHAVIOURS if name in found)


def turns(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """(what the agent had said, what the user then said)."""
    out, before = [], ""
    for message in messages:
        text = message.content.replace(STOP, "").strip()
        if message.role == "assistant" and text and not message.tool_calls:
            before = text
        elif message.role == "user" and text:
            out.append((before, text))
            before = ""
    return out


def _left(messages: Sequence[Message]) -> bool:
    """The user's last words are neither thanks nor a goodbye, and the agent spoke last, without a call."""
    spoken = [m for m in messages if m.role in ("user", "assistant") and (m.content.strip() or m.tool_calls)]
    said = [m.content.replace(STOP, "").strip() for m in spoken if m.role == "user"]
    if not said or _COURTESY.search(said[-1]):
        return False
    if said[-1] == "":  # a simulated user, which says nothing but that it stops
        return True
    return spoken[-1].role == "assistant" and not spoken[-1].tool_calls


def persona(names: Sequence[str]) -> str:
    """Behaviours as the name of a persona."""
    return "+".join(names) or PLAIN


def mix(found: Iterable[Sequence[str]]) -> dict[str, Any]:
    """The behaviours of some conversations → `personas` and `behaviours`, each by name with its `count`, its
    `share` and the 95 % interval of that (Wilson's), the most frequent first."""
    found = list(found)
    return {
        "conversations": len(found),
        "personas": _shares(Counter(map(persona, found)), len(found)),
        "behaviours": _shares(Counter(name for names in found for name in names), len(found)),
    }


def _shares(counts: Counter[str], total: int) -> dict[str, dict[str, float]]:
    out = {}
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        low, high = wilson(count, total)
        out[name] = {"count": count, "share": count / total, "low": low, "high": high}
    return out
