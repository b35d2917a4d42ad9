"""What people and agents say, as far as the rules have to understand it: a yes, a proposal, a value.

Invariant: matching is tolerant of form and strict about content. `1,234.50`, `$1234.5` and `1234.50 euros`
are one amount, `2026-03-02`, `March 2nd` and `2 March` one date; 12 is never found in 120, nor B1 in B12.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

# ---------------------------------------------------------------- yes and no

_FINE = r"(?:good|great|fine|right|perfect|correct)"
# Each word one way only ("thank you" is "thank" and "you"): two ways would take 2**n steps for n of them.
_COURTESY = (
    r"(?:\W|\b(?:great|perfect|thanks?|you|very much|so much|well|ah|oh|uh|um|alright|all right|so|"
    r"and|excellent|wonderful|good|fine|of course|hi|hello|understood|i understand|i see|got it|great choice|"
    rf"(?:that )?(?:sounds|looks) {_FINE}|that would be {_FINE}|that works(?: for me)?|confirmation)\b)*"
)
_YES = re.compile(
    rf"{_COURTESY}\b(yes|yep|yeah|yup|sure|okay|ok|(?:please |you can )?(?:go ahead|proceed)|go for it|"
    r"please do|do it|(?:i )?(?:do |can )?(?:confirm|agree|accept)(?:ed)?|agreed|absolutely|definitely|"
    r"certainly|exactly|i(?:'d| would) like (?:you )?to (?:proceed|go ahead)|"
    r"i(?:'ll| will) (?:proceed|go ahead|take (?:it|that))|let's (?:do it|do that|proceed|go ahead)|"
    r"(?:that is|that's|that all is|everything is|it is|it's)(?: all)? (?:right|correct)|(?:all )?correct)\b",
    re.I,
)
_GO_AHEAD = re.compile(r"\bplease (?:do )?(?:go ahead|proceed)\b|\b(?:go ahead|proceed) (?:and|with)\b", re.I)
_NOT = (
    r"instead|rather|wait|changed my mind|hold on|"
    r"(?:do not|don't) (?:do|proceed|go|change|cancel|book|make|touch|charge|renew|reserve|enrol)"
)
_BUT = re.compile(rf"\b({_NOT}|but|not that|except|unless|if yes|no longer(?! needed))\b", re.I)
_TAKEN_BACK = re.compile(
    rf"\b({_NOT}|actually,? no)\b|"
    r"^\W*no(?:\W*$|[.!;:]|,(?! (?:thanks|thank you|that's (?:okay|ok|fine|all)))|"
    r" (?:i|we|do|not|stop|leave)\b)",
    re.I,
)
_OTHERWISE = re.compile(
    r"\b(no|nope|nah|not?|instead|rather|changed my mind|forget (?:it|that|about)|scratch that|leave it|"
    r"hold off|hold on|wait|stop|actually|second thoughts?|never ?mind|don't|do not|cancel that|no longer|"
    r"different(?:ly)?|after all|drop (?:it|that)|skip (?:it|that)|on reflection|sooner|prefer|any ?more|"
    r"any longer|(?:thought|think|thinking) (?:about it|again|it over)|the other one|another one|"
    r"(?:as|the way) (?:it|they|things) (?:is|are|was|were)|pass on (?:it|this|that)|"
    r"(?:first|second|third|other|last) (?:option|one|choice))\b",
    re.I,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+|(?:\\n)+")
_ASKS = re.compile(
    r"\?|\b(?:do you |please |and |to )confirm\b|\bconfirm (?:by|with|that|you|the|these|this)\b|\(yes\b|"
    r"\b(?:reply|respond|answer|say)\b.{0,12}\byes\b",
    re.I,
)
_OPEN = re.compile(r"\W*(?:and |so |now )?(?:what|which|when|where|who|whose|how|why)\b", re.I)
"""A question that no yes answers."""
_ELSE = re.compile(r"\b(?:any|some)thing (?:else|more)\b|\bwhat else\b|\bhow (?:else )?(?:can|may) I\b", re.I)
_CONFIRMATION = re.compile(
    r"\(yes ?/ ?no\)|\b(shall|should|may) I\b|\bdo you (?:confirm|want me to|agree)\b|\bplease confirm\b|"
    r"\bwould you like (?:me )?to (?:proceed|go ahead|continue|confirm)\b|"
    r"\b(?:confirm|proceed|go ahead)\b[^.]{0,500}\?|\bis that (?:right|correct|okay|ok|all right)\b",
    re.I,
)


def is_yes(text: str) -> bool:
    """The words are a clear yes, to just what was asked."""
    sentences = [s for s in _SENTENCE.split(text.replace("’", "'")) if s.strip(" .!#*")]
    for number, sentence in enumerate(sentences):
        if _YES.match(sentence.lstrip("0123456789.)- ")) or _GO_AHEAD.search(sentence):
            others = sentences[:number] + sentences[number + 1 :]
            back = (_TAKEN_BACK.search(other) for other in others if not other.rstrip().endswith("?"))
            return not _BUT.search(sentence) and not any(back)
    return False


def is_change(text: str) -> bool:
    """Words that answer a proposal with another wish, or with none."""
    return not is_yes(text) and bool(_OTHERWISE.search(text.replace("’", "'")))


def asks(text: str) -> bool:
    """The agent's words ask something that a yes answers, and not only whether there is anything else."""
    questions = [s for s in _SENTENCE.split(text) if _ASKS.search(s) and not _ELSE.search(s)]
    closed = [s for s in questions if not _OPEN.match(s)]
    return any(map(asks_to_confirm, closed)) or bool(closed and closed[-1] is questions[-1])


def asks_to_confirm(text: str) -> bool:
    """The agent's words ask for a yes to something that it would do."""
    return bool(_CONFIRMATION.search(text))


# ---------------------------------------------------------------- values

_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)")
_TIME = re.compile(r"(\d\d):(\d\d)(?::\d\d)?")
_FIGURE = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w]|\.\d)")
_NAMED_NUMBER = re.compile(r"([a-z]+(?:_[a-z]+)*)_(\d+)")


def normal(text: str) -> str:
    """Text in one form: lower case, plain quotes and dashes, no thousands separators, marks or `_`."""
    return _normal(text) if len(text) < _LONG else _normal.__wrapped__(text)


@functools.lru_cache(maxsize=2048)
def _normal(text: str) -> str:
    text = text.casefold().translate(_PLAIN)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return " ".join(text.split())


_LONG = 20_000
"""Characters of a text that is not kept for the next question about it."""
_PLAIN = str.maketrans(
    {
        "’": "'",
        "‘": "'",
        "“": '"',
        "”": '"',
        "–": "-",
        "—": "-",
        "‑": "-",
        "−": "-",
        "_": " ",
        "*": None,
        "`": None,
    }
)


def names(text: str, value: Any, cents: bool = False) -> bool:
    """The text names the value: a word or phrase, a number, a date, a time. `cents`: an amount in hundredths,
    of which the text says the whole."""
    if isinstance(value, bool) or value is None:
        return True
    said = normal(text)
    if isinstance(value, int | float):
        wanted = value / 100 if cents else float(value)
        found = any(abs(float(f) - wanted) < 0.005 for f in _figures(said))
        whole = int(wanted) if wanted == int(wanted) and 0 <= wanted <= 12 else None
        return found or (whole is not None and _phrase(said, _NUMBERS[whole]))
    text_value = str(value)
    if date := _DATE.fullmatch(text_value):
        return bool(_date(*map(int, date.groups())).search(said))
    if time := _TIME.fullmatch(text_value):
        return bool(_time(int(time[1]), int(time[2])).search(said))
    if number := _NAMED_NUMBER.fullmatch(
        text_value
    ):  # credit_card_123: "the credit card" names it, if no other
        kind = number[1].replace("_", " ")
        others = {m[1] for m in re.finditer(rf"{kind} #?(\d{{4,}})", said)}
        return _phrase(said, kind) and (not others or number[2] in others)
    return _phrase(said, normal(text_value).lstrip("#"))


def _figures(said: str) -> list[str]:
    return _FIGURE.findall(said)


def _phrase(said: str, phrase: str) -> bool:
    at = said.find(phrase) if phrase else 0
    while at >= 0:
        end = at + len(phrase)
        before = said[at - 1] if at else " "
        after = said[end] if end < len(said) else " "
        if not (phrase and ((_word(before) and _word(phrase[0])) or (_word(after) and _word(phrase[-1])))):
            return True
        at = said.find(phrase, at + 1)
    return False


def _word(char: str) -> bool:
    return char.isalnum()


@functools.lru_cache(maxsize=4096)
def _date(year: int, month: int, day: int) -> re.Pattern[str]:
    name = _MONTHS[(month - 1) % 12]
    word = rf"{name[:3]}(?:{name[3:]}|t)?\.?"
    number = rf"0?{day}(?:st|nd|rd|th)?"
    return re.compile(
        rf"\b(?:{year:04d}[-/.]{month:02d}[-/.]{day:02d}|{word} {number}|{number} (?:of )?{word}|"
        rf"0?{month}/0?{day}(?:/(?:{year}|{year % 100:02d}))?|0?{day}\.0?{month}\.(?:{year})?)(?!\d)"
    )


@functools.lru_cache(maxsize=4096)
def _time(hour: int, minute: int) -> re.Pattern[str]:
    twelve, half = (hour - 1) % 12 + 1, "a" if hour < 12 else "p"
    short = "" if minute else rf"|{twelve} ?{half}\.?m"
    return re.compile(rf"(?<!\d)(?:0?{hour}:{minute:02d}|{twelve}:{minute:02d} ?{half}\.?m{short})")


def leaves(value: Any) -> Iterator[Any]:
    """The plain values inside a JSON value."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from leaves(inner)
    elif value is not None:
        yield value
