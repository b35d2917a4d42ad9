"""Personal data → made-up data of the same shape, the same throughout one conversation.

What `personal` finds once is replaced wherever it stands in that conversation: words, arguments and their
names, answers, JSON inside JSON, calls that are no JSON; in every spelling of a number or a date (spaces,
dashes, digits of any script, escapes, with a country's code or without). What stays: a name in small letters
that was found with a capital (it may be a word), and a part of an address.

Invariants:
- What a value becomes depends on its kind, its shape and its place among those of its kind, never on the
  value itself: nothing can be computed back.
- Made-up card numbers, IBANs, social security numbers and phones are invalid, addresses of mail and machines
  are from the ranges that are set aside for examples: they belong to nobody.
- Redacting what was redacted changes nothing: where made-up data beside what is left looks personal once
  more, it is redacted again until it does not.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
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
    PHONE,
    POSTCODE,
    SECRET,
    STREETS,
    WORD,
    Known,
    answered_name,
    code_ends,
    dates,
    days,
    fields,
    has_card,
    has_iban,
    has_phone,
    is_phone,
    is_ssn,
    letters,
    pairs,
    patterns,
    plain,
    spellings,
    views,
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
_START = re.compile(r"\d+|[^\W\d]+|[^\w\s]")
_WHOLE = re.compile(r"\w+")
_PIECE = re.compile(r"\d+|[^\W\d_]+")
_MARKED = 4
"""Characters by which a value is looked up that begins with a mark: `+1 4`, `(415`."""
_APART = 3
"""Characters there may be between two pieces of one value: `) - `."""
_LONG = 7
"""A number of so many digits is one of its kind, also where a letter touches it: `x4155552671`."""
_AGAIN = 8
"""Redactions of one conversation at the most."""
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
    _rows: dict[str, list[str]] = field(default_factory=dict)
    """First letters or digits → long numbers that were found, the longest first."""
    _seen: list[str] = field(default_factory=list)
    """What was read, in plain spelling."""
    _kinds: dict[str, str] = field(default_factory=dict)
    """Text as it was found → its kind, of all but names."""
    _next: Redactor | None = None
    """What redacts once more."""
    _turn: int = 1

    def learn(self, messages: Sequence[Message], names: Sequence[str] = ()) -> None:
        """Finds what is personal in a conversation; `names` are known to be a person's."""
        self._learn(messages, names)
        if not self._found or self._turn == _AGAIN:
            return
        once = [self._message(m) for m in messages]
        again = Redactor(self.number, self.region, self.known, self.keep, _turn=self._turn + 1)
        again.learn(once)
        if [again.message(m) for m in once] != once:
            self._next = again

    def _learn(self, messages: Sequence[Message], names: Sequence[str]) -> None:
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
        self._learn_logins()
        self._learn_spellings()
        self._compile()

    def also(self, texts: Sequence[str]) -> None:
        """Finds what is personal in texts about the conversation, in which nobody speaks: what it changed."""
        for text in texts:
            self._learn_text(text, names=False)
        self._learn_spellings()
        self._compile()
        if self._next is not None:
            self._next.also([self._text(text) for text in texts])

    def _compile(self) -> None:
        self._starts, self._rows = {}, {}
        for found in sorted(self._found, key=lambda w: (-len(w), w)):
            first = _WHOLE.match(found)
            self._starts.setdefault(first[0] if first else found[:_MARKED], []).append(found)
            if first and _is_long(found) and "@" not in found and (row := _START.match(found)):
                self._rows.setdefault(row[0], []).append(found)

    def _learn_logins(self) -> None:
        """Ids that are made of the names that were found: mia_li_3668."""
        if not self._names:
            return
        for token in (m[0] for text in self._seen for m in _LOGIN.finditer(text)):
            if any(part.casefold() in self._names for part in re.split(r"[_.]", token)):
                self._add(ID, token)

    def _learn_spellings(self) -> None:
        """What was found stands elsewhere in other spellings: (415) 555-2671, +14155552671."""
        known: dict[str, tuple[str, str]] = {}
        for found, kind in self._kinds.items():
            for spelled in spellings(kind, found, self.region):
                known.setdefault(spelled, (kind, found))
        longest = max(map(len, known), default=0)
        born = {day: found for found, kind in self._kinds.items() if kind == BIRTH for day in days(found)}
        for text in dict.fromkeys(self._seen):
            pieces = list(_PIECE.finditer(text)) if longest else []
            for number, piece in enumerate(pieces):
                whole, end = "", piece.start()
                for last in pieces[number:]:
                    whole += last[0].casefold()
                    if last.start() - end > _APART or len(whole) > longest:
                        break
                    end = last.end()
                    if (same := known.get(whole)) and (found := text[piece.start() : end]) not in self._found:
                        self._keep(same[0], found, same[1])
            if born:
                for date in dates(text):
                    if date not in self._found and (same_day := days(date) & born.keys()):
                        self._keep(BIRTH, date, born[min(same_day)])
        self._seen.clear()

    def _learn_answer(self, text: str) -> None:
        value = _inner(text)
        if value is not None:
            self._learn_value(value)
        else:
            self._learn_text(text)

    def _learn_value(self, value: Any) -> None:
        for kind, text in fields(value):
            self._add(kind, text)
        for text in _texts(value):
            self._learn_text(text)
            if (inner := _inner(text)) is not None:
                self._learn_value(inner)

    def _learn_text(self, text: str, names: bool = True) -> None:
        if not text:
            return
        for view, _ in views(text):
            self._seen.append(view)
            if self.known is not None and not self.keep:
                for kind, found in self.known.spans(view):
                    self._add(kind, found)
            for kind, found in pairs(view):
                self._add(kind, found)
            for kind, found, sure in patterns(view, self.region, names):
                if sure:
                    self._add(kind, found)
                else:
                    self._place(kind, found)

    def _add(self, kind: str, text: str) -> None:
        text = plain(text).strip()
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
            self._keep(kind, text, text)

    def _keep(self, kind: str, text: str, same: str) -> None:
        """Keeps what a text becomes, which is another spelling of the `same` value."""
        self._kinds[text] = kind
        self._found[text] = self._made_up(kind, text, self._place(kind, same))

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
        own = letters(text)
        if own not in of_kind:
            of_kind[own] = max(of_kind.values(), default=-1) + 1
            for spelled in spellings(kind, text, self.region):
                of_kind.setdefault(spelled, of_kind[own])
        return of_kind[own]

    def _made_up(self, kind: str, text: str, place: int) -> str:
        """What a value becomes. Other spellings of the same value become the same."""
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
        stays = code_ends(text, self.region) if kind == PHONE else 0
        made = text
        for attempt in range(200):
            rng = random.Random(f"{self.number}-{kind}-{place}-{attempt}")
            made = text[:stays] + _shaped(rng, text[stays:])
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
        made = self._text(text)
        return self._next.text(made) if self._next is not None else made

    def message(self, message: Message) -> Message:
        """The message with all that was found replaced."""
        made = self._message(message)
        return self._next.message(made) if self._next is not None else made

    def _text(self, text: str) -> str:
        if not self._starts:
            return text
        level = 0
        while True:
            seen = next(itertools.islice(views(text), level, None), None)
            if seen is None:
                return text
            view, at = seen
            out, last = [], 0
            for start, end, becomes in self._spans(view):
                escaped = json.dumps(becomes, ensure_ascii=False)[1:-1] if level else becomes
                out += [text[last : at[start]], escaped]
                last = at[end]
            text = "".join([*out, text[last:]])
            level += 1

    def _spans(self, text: str) -> Iterator[tuple[int, int, str]]:
        """(begin, end, what it becomes) of what was found: whole words, from left to right, the longest."""
        last = 0
        for start in _START.finditer(text):
            at = start.start()
            if at < last:
                continue
            there: list[str] = []
            if not _is_word(text[at]):
                for n in range(_MARKED, 1, -1):
                    there += self._starts.get(text[at : at + n], ())
            elif (at == 0 or not _is_word(text[at - 1])) and (whole := _WHOLE.match(text, at)):
                there += self._starts.get(whole[0], ())
            if rows := self._rows.get(start[0]):
                there = sorted({*there, *rows}, key=lambda w: (-len(w), w))
            for found in there:
                end = at + len(found)
                if text.startswith(found, at) and not _is_part(text, at, end):
                    yield at, end, self._found[found]
                    last = end
                    break

    def _value(self, value: Any) -> Any:
        """A JSON value with all that was found replaced, in keys and in numbers, too."""
        if isinstance(value, Mapping):
            return {self._text(str(k)): self._value(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._value(v) for v in value]
        if isinstance(value, str):
            return self._text(value)
        if number := _whole_number(value):
            made = self._text(number)
            return type(value)(int(made)) if made.removeprefix("-").isdigit() else value
        return value

    def _message(self, message: Message) -> Message:
        content = self._answer(message.content) if message.role == "tool" else self._text(message.content)
        calls = tuple(self._call(call) for call in message.tool_calls)
        return dataclasses.replace(
            message, content=content, tool_calls=calls, thinking=self._text(message.thinking)
        )

    def _call(self, call: ToolCall) -> ToolCall:
        return dataclasses.replace(
            call,
            name=self._text(call.name),
            arguments=self._value(call.arguments),
            raw=self._text(call.raw),
            error=self._text(call.error),
        )

    def _answer(self, text: str) -> str:
        """An answer of a tool: as JSON where escapes could hide what was found in it, else as text."""
        made = self._text(text)
        if "\\" not in text and made == text and not any(c.isdigit() for c in text):
            return text
        value = _inner(text)
        if value is None:
            return made
        redacted = self._value(value)
        return text if redacted == value else json.dumps(redacted, ensure_ascii=False)


def _inner(text: str) -> dict[str, Any] | list[Any] | None:
    """The object or list that a text is the JSON of; None of other texts."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return strict_json(text)
    except ValueError:
        return None


def _is_long(text: str) -> bool:
    return sum(c.isdigit() for c in text) >= _LONG


def _is_part(text: str, start: int, end: int) -> bool:
    """Whether what stands here is a part of a longer word, or of a longer number."""
    long = _is_long(text[start:end])

    def one(a: str, b: str) -> bool:
        return _is_word(a) and _is_word(b) and (not long or a.isdigit() == b.isdigit())

    return (start > 0 and one(text[start - 1], text[start])) or (
        end < len(text) and one(text[end - 1], text[end])
    )


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
    elif number := _whole_number(value):
        yield number


def _whole_number(value: Any) -> str:
    """The digits of a number without a fraction; nothing of other values."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def _like(word: str, becomes: str) -> str:
    if word.isupper() and len(word) > 1:
        return becomes.upper()
    return becomes.lower() if word.islower() else becomes


def _shaped(rng: random.Random, text: str) -> str:
    """Other digits in the same places; a number keeps its length. The last digit is drawn first: a number
    with something before it (a country's code) has the same end."""
    drawn = [
        c if not c.isdigit() else str(rng.randrange(1 if n == 0 and c != "0" else 0, 10))
        for n, c in reversed(list(enumerate(text)))
    ]
    return "".join(reversed(drawn))


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
    day = day.replace(day=min(day.day, 12))  # so that no order of day and month is impossible
    if found := re.fullmatch(r"(\d{4})([-/.])\d\d?[-/.]\d\d?", text):
        return day.strftime(f"%Y{found[2]}%m{found[2]}%d")
    if found := re.fullmatch(r"\d\d?([-/.])\d\d?[-/.](\d+)", text):
        mark = found[1]
        return f"{day.day:02d}{mark}{day.month:02d}{mark}{str(day.year)[-len(found[2]) :]}"
    if re.match(r"\d", text):
        return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"
    return f"{_MONTHS[day.month - 1]} {day.day}, {day.year}"
