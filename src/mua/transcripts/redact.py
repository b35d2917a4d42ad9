"""Personal data → made-up data of the same shape, the same throughout one conversation.

What `personal` finds once is replaced wherever it stands in that conversation: words, arguments, answers.

Invariants:
- What a value becomes depends on its kind, its shape and its place among those of its kind, never on the
  value itself: nothing can be computed back.
- Made-up card numbers, IBANs, social security numbers and phones are invalid, addresses of mail and machines
  are from the ranges that are set aside for examples: they belong to nobody.
- Redacting what was redacted changes nothing.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..chat import Message, ToolCall, strict_json
from .personal import (
    ADDRESS,
    BIRTH,
    EMAIL,
    ID,
    MACHINE,
    NAME,
    NO_NAME,
    POSTCODE,
    SECRET,
    STREETS,
    WORD,
    Known,
    answered_name,
    fields,
    has_card,
    has_iban,
    has_phone,
    is_phone,
    is_ssn,
    patterns,
)

_FIRST = (
    *("Velmira", "Dorvin", "Ostelle", "Karvo", "Minshe", "Tolvar", "Brilka", "Feodrin", "Ysandra", "Quelto"),
    *("Zarvik", "Hellune", "Ambrit", "Solvej", "Crispo", "Nerida", "Uldrik", "Wenova", "Pashka", "Ivelin"),
)
_LAST = (
    *(
        "Toskan",
        "Keltash",
        "Brundel",
        "Ovarro",
        "Fenwold",
        "Mardune",
        "Szelko",
        "Habrecht",
        "Nivorra",
        "Quistrom",
    ),
    *(
        "Dalverk",
        "Ruscoth",
        "Emberlo",
        "Zantheim",
        "Corvale",
        "Lutzmar",
        "Wexholt",
        "Pradoune",
        "Yarnsbee",
        "Ilvastre",
    ),
)
"""Made-up names that hardly anybody has."""
_LOGIN = re.compile(r"(?<![\w@.])[^\W\d_]+(?:[_.][^\W_]+)+(?![\w@])")
_START = re.compile(r"\w+|[^\w\s]")
_MARKED = 4
"""Characters by which a value is looked up that begins with a mark: `+1 4`, `(415`."""
_LETTERS = "ABCDEFGHJKLMNPRSTUWXYZ"


@dataclass
class Redactor:
    """Of one conversation; tell it all of it by `learn` first."""

    number: int = 0
    """The conversation's place in its file: people of different ones get different names."""
    region: str = "US"
    """Where phone numbers without a country code are from (ISO 3166)."""
    known: Known | None = None
    """What the database knows: redacted, or with `keep` left alone."""
    keep: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    """Kind → different values that were found."""
    _found: dict[str, str] = field(default_factory=dict)
    """Text as it was found → what it becomes."""
    _names: dict[str, str] = field(default_factory=dict)
    _places: dict[str, dict[str, int]] = field(default_factory=dict)
    """Kind → plain value → its place among those of its kind."""
    _made: set[tuple[str, int]] = field(default_factory=set)
    """Kind and place of what was replaced."""
    _starts: dict[str, list[str]] = field(default_factory=dict)
    """First word (or first characters, of what begins with a mark) → what was found, the longest first."""

    def learn(self, messages: Sequence[Message], names: Sequence[str] = ()) -> None:
        """Finds what is personal in a conversation; `names` are known to be a person's."""
        for name in names:
            self._add(NAME, name)
        asked = ""
        for message in messages:
            if message.role == "tool":
                self._learn_answer(message.content)
            else:
                spoken = message.role != "system"  # a policy speaks of names, and has none
                self._learn_text(message.content, spoken)
                self._learn_text(message.thinking)
            if message.role == "user":
                for name in answered_name(asked, message.content):
                    self._add(NAME, name)
            elif message.role == "assistant":
                asked = message.content
            for call in message.tool_calls:
                self._learn_value(call.arguments)
                self._learn_text(call.raw)
        self._learn_logins(messages)
        self._compile()

    def also(self, texts: Sequence[str]) -> None:
        """Finds what is personal in texts about the conversation, in which nobody speaks: what it changed."""
        for text in texts:
            self._learn_text(text, names=False)
        self._compile()

    def _compile(self) -> None:
        self._starts = {}
        for found in sorted(self._found, key=lambda w: (-len(w), w)):
            first = _START.match(found)
            key = first[0] if first and _is_word(found[0]) else found[:_MARKED]
            self._starts.setdefault(key, []).append(found)

    def _learn_logins(self, messages: Sequence[Message]) -> None:
        """Ids that are made of the names that were found: mia_li_3668."""
        if not self._names:
            return
        for message in messages:
            texts = [message.content, *(t for c in message.tool_calls for t in _texts(c.arguments))]
            for token in (m[0] for text in texts for m in _LOGIN.finditer(text)):
                if any(part.casefold() in self._names for part in re.split(r"[_.]", token)):
                    self._add(ID, token)

    def _learn_answer(self, text: str) -> None:
        try:
            value = strict_json(text)
        except ValueError:
            value = text
        if isinstance(value, dict | list):
            self._learn_value(value)
        else:
            self._learn_text(text)

    def _learn_value(self, value: Any) -> None:
        for kind, text in fields(value):
            self._add(kind, text)
        for text in _texts(value):
            self._learn_text(text)

    def _learn_text(self, text: str, names: bool = True) -> None:
        if not text:
            return
        if self.known is not None and not self.keep:
            for kind, found in self.known.spans(text):
                self._add(kind, found)
        for kind, found, sure in patterns(text, self.region, names):
            if sure:
                self._add(kind, found)
            else:
                self._place(kind, found)

    def _add(self, kind: str, text: str) -> None:
        text = text.strip()
        if len(text) < 2 or text in self._found or (text.isdigit() and len(text) < 3):
            return
        telling = any(c.isdigit() for c in text) or (kind == ID and _LOGIN.fullmatch(text))
        if kind not in (NAME, ADDRESS, EMAIL, SECRET) and not telling:
            return
        if self.keep and self.known is not None and text in self.known:
            return
        if kind == NAME:
            self._add_name(text)
        else:
            self._found[text] = self._made_up(kind, text)

    def _add_name(self, text: str) -> None:
        words = [w for w in re.findall(WORD, text) if len(w) > 1 or w.isupper()]
        if not words:
            return
        if not any(w.casefold() in self._names for w in words):
            self.counts[NAME] += 1
        made = [self._name_part(word, first=n == 0 and len(words) > 1) for n, word in enumerate(words)]
        whole = " ".join(made)
        self._found[text] = whole
        if len(words) > 1:
            self._found.setdefault(text.upper(), whole.upper())
            self._found.setdefault(text.lower(), whole.lower())
        for word, becomes in zip(words, made, strict=True):
            if len(word) > 2 and word.casefold() not in NO_NAME:
                forms = {word, word.capitalize(), word.upper()} if word.isalpha() else {word}
                for form in forms:
                    self._found.setdefault(form, _like(form, becomes))

    def _name_part(self, word: str, first: bool) -> str:
        low = word.casefold()
        if low not in self._names:
            given = {w.casefold() for w in (*_FIRST, *_LAST)}
            used = len(self._names)
            names = _FIRST if first or used % 2 == 0 else _LAST
            self._names[low] = (
                low if low in given else names[(self.number * 7 + used // 2) % len(names)].casefold()
            )
        return _like(word, self._names[low].capitalize())

    def _place(self, kind: str, text: str) -> int:
        """A value's place among those of its kind. Numbers that fail their kind's check have one, too:
        made-up ones do, and so those behind them keep their places when a text is redacted again."""
        of_kind = self._places.setdefault(kind, {})
        return of_kind.setdefault(re.sub(r"[\W_]", "", text).casefold(), len(of_kind))

    def _made_up(self, kind: str, text: str) -> str:
        """What a value becomes. Other spellings of the same value (spaces, dashes, case) become the same."""
        place = self._place(kind, text)
        if (kind, place) not in self._made:
            self._made.add((kind, place))
            self.counts[kind] += 1
        rng = random.Random(f"{self.number}-{kind}-{place}")
        if kind == EMAIL:
            return f"person{place + 1}@example.com"
        if kind == MACHINE:
            return f"2001:db8::{place + 1}" if ":" in text else f"192.0.2.{place % 254 + 1}"
        if kind == ADDRESS:
            return _street(rng, text)
        if kind == BIRTH:
            return _date(rng, text)
        if kind == SECRET:
            return "[redacted]"
        if kind == ID:
            return _shaped(rng, _renamed(rng, text, self._names))
        if kind == POSTCODE:
            return "".join(rng.choice(_LETTERS) if c.isalpha() else c for c in _shaped(rng, text))
        made = text
        for _ in range(200):
            made = _shaped(rng, text)
            if not self._real(made):
                return made
        return re.sub(r"\d", "0", made)

    def _real(self, text: str) -> bool:
        """Whether a made-up number could be somebody's, as whatever it is read."""
        return (
            has_card(text)
            or has_iban(text)
            or is_ssn(text)
            or is_phone(text, self.region)
            or has_phone(text, self.region)
        )

    def replaced(self) -> list[str]:
        """What was found, as it stands in the conversation."""
        return list(self._found)

    # ------------------------------------------------------------ replacing

    def text(self, text: str) -> str:
        """The text with all that was found replaced."""
        if not self._starts:
            return text
        out, last = [], 0
        for start in _START.finditer(text):
            at = start.start()
            if at < last or (at and _is_word(text[at - 1])):
                continue
            marked = [text[at : at + n] for n in range(_MARKED, 1, -1)]
            keys = [start[0]] if _is_word(text[at]) else marked
            for found in (one for key in keys for one in self._starts.get(key, ())):
                end = at + len(found)
                if text.startswith(found, at) and not (end < len(text) and _is_word(text[end])):
                    out += [text[last:at], self._found[found]]
                    last = end
                    break
        return "".join([*out, text[last:]])

    def value(self, value: Any) -> Any:
        """A JSON value with all that was found replaced, in keys and in numbers, too."""
        if isinstance(value, Mapping):
            return {self.text(str(k)): self.value(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(v) for v in value]
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, int) and not isinstance(value, bool) and str(value) in self._found:
            made = self._found[str(value)]
            return int(made) if made.isdigit() else value
        return value

    def message(self, message: Message) -> Message:
        """The message with all that was found replaced."""
        content = self._answer(message.content) if message.role == "tool" else self.text(message.content)
        calls = tuple(self._call(call) for call in message.tool_calls)
        return dataclasses.replace(
            message, content=content, tool_calls=calls, thinking=self.text(message.thinking)
        )

    def _call(self, call: ToolCall) -> ToolCall:
        return dataclasses.replace(
            call,
            arguments=self.value(call.arguments),
            raw=self.text(call.raw),
            error=self.text(call.error),
        )

    def _answer(self, text: str) -> str:
        """An answer of a tool: as JSON where escapes could hide what was found in it, else as text."""
        made = self.text(text)
        if "\\" not in text and made == text and not any(c.isdigit() for c in text):
            return text
        try:
            value = strict_json(text)
        except ValueError:
            return made
        if not isinstance(value, dict | list):
            return made
        redacted = self.value(value)
        return text if redacted == value else json.dumps(redacted, ensure_ascii=False)


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for k, v in value.items():
            yield str(k)
            yield from _texts(v)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _texts(v)
    elif isinstance(value, str):
        yield value


def _like(word: str, becomes: str) -> str:
    if word.isupper() and len(word) > 1:
        return becomes.upper()
    return becomes.lower() if word.islower() else becomes


def _shaped(rng: random.Random, text: str) -> str:
    """Other digits in the same places; a number keeps its length."""
    return "".join(
        c if not c.isdigit() else str(rng.randrange(1 if n == 0 and c != "0" else 0, 10))
        for n, c in enumerate(text)
    )


def _renamed(rng: random.Random, text: str, known: Mapping[str, str]) -> str:
    """An id that is made of names (mia_li_3668) gets others, those that the person has in the words where it
    has some; prefixes of numbers (K1234) stay."""
    parts = re.split(r"([_.\s-])", text)
    if sum(p.isalpha() for p in parts) < 2:
        return text
    made = []
    for number, part in enumerate(parts):
        other = rng.choice(_FIRST if number == 0 else _LAST)
        made.append(_like(part, known.get(part.casefold(), other)) if part.isalpha() else part)
    return "".join(made)


def _street(rng: random.Random, text: str) -> str:
    made = _shaped(rng, text)
    name = rng.choice(_LAST)
    kind = re.search(rf"(?<= ){STREETS}\b.*", made)
    number = re.match(r"\d+[a-z]?", made)
    if kind and number:
        return f"{number[0]} {name} {kind[0]}"
    last = re.search(r"\d+ ?[a-z]?$", made)
    return f"{name}weg {last[0]}" if last else f"{rng.randrange(1, 99)} {name} Street"


_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)


def _date(rng: random.Random, text: str) -> str:
    """Another date in the same form."""
    day = datetime.date(1950, 1, 1) + datetime.timedelta(days=rng.randrange(18_000))
    if found := re.fullmatch(r"(\d{4})([-/.])\d\d?[-/.]\d\d?", text):
        return day.strftime(f"%Y{found[2]}%m{found[2]}%d")
    if found := re.fullmatch(r"\d\d?([-/.])\d\d?[-/.](\d+)", text):
        mark = found[1]
        return f"{min(day.day, 12):02d}{mark}{day.month:02d}{mark}{str(day.year)[-len(found[2]) :]}"
    if re.match(r"\d", text):
        return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"
    return f"{_MONTHS[day.month - 1]} {day.day}, {day.year}"
