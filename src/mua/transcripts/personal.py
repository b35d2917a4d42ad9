"""What is personal in a conversation: where it stands, by its form, and by what a database holds.

Numbers are checked by libraries: phones by `phonenumbers` (Google's libphonenumber), card numbers, IBANs and
social security numbers by their check digits (`python-stdnum`), addresses of machines by `ipaddress`. Fields
of arguments and answers count by their names, names in words by what stands before them. No language model is
needed; names that nothing of this points at are not found (docs/from-transcripts.md has the recall).

Invariant: finding is a pure function of the text (and of region and database); nothing is replaced here.
"""

from __future__ import annotations

import datetime
import functools
import ipaddress
import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..audit.wording import leaves
from ..domain import Domain
from ..errors import MuaError

NAME, EMAIL, PHONE, CARD, IBAN = "name", "email", "phone", "card number", "IBAN"
NATIONAL, MACHINE, ADDRESS, POSTCODE = "national number", "machine address", "address", "postcode"
BIRTH, ID, SECRET = "date of birth", "id of a person", "secret"
KINDS = (NAME, EMAIL, PHONE, CARD, IBAN, NATIONAL, MACHINE, ADDRESS, POSTCODE, BIRTH, ID, SECRET)

# ---------------------------------------------------------------- where it stands: fields

_FIELDS = (
    (NAME, r"(?:first|last|full|given|family|middle|sur|maiden|user|customer|member|guest|patient|passenger|"
     r"tenant|client|contact|account_?holder|card_?holder|recipient|holder|owner)_?name|surname|holder"),
    (EMAIL, r"(?:\w+_)?e?_?mail(?:_address)?"),
    (PHONE, r"(?:\w+_)?(?:phone|mobile|cell|telephone|fax)(?:_?(?:number|no))?|tel"),
    (BIRTH, r"(?:date_of_birth|birth_?date|birth_?day|dob|born)"),
    (POSTCODE, r"(?:\w+_)?(?:zip|postcode|postal_?code|zip_?code|post_?code)"),
    (ADDRESS, r"(?:\w+_)?(?:street|address_?(?:line)?_?\d?|street_address)"),
    (NATIONAL, r"ssn|social_security(?:_?number)?|passport(?:_?(?:no|number))?|national_id|tax_id|"
     r"drivers?_licen[cs]e(?:_?number)?"),
    (CARD, r"card_?number|credit_card(?:_?number)?"),
    (IBAN, r"iban"),
    (MACHINE, r"ip|ip_?addr(?:ess)?"),
    (ID, r"(?:user|customer|member|client|patient|guest|person|passenger|tenant|student|employee|applicant)"
     r"_?(?:id|no|number)|account_?number"),
    (SECRET, r"password|passwd|passcode|pin|cvv|cvc|secret|(?:api|access)_?(?:key|token)|token"),
)  # fmt: skip
_FIELD = [(kind, re.compile(rf"(?:{pattern})", re.I)) for kind, pattern in _FIELDS]
_PERSON = re.compile(
    r"(?:user|customer|member|guest|patient|passenger|person|client|tenant|student|employee|applicant|contact|"
    r"owner|holder|recipient|traveller|traveler)s?",
    re.I,
)


def kind_of(key: str) -> str:
    """The kind of personal data under a key of this name; "" for other keys."""
    return _kind_of(key) if len(key) <= _LONGEST_KEY else ""


_LONGEST_KEY = 60


@functools.lru_cache(maxsize=4096)
def _kind_of(key: str) -> str:
    snake = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", key).replace("-", "_").replace(" ", "_")
    return next((kind for kind, pattern in _FIELD if pattern.fullmatch(snake)), "")


def fields(value: Any, key: str = "", person: bool = False) -> Iterator[tuple[str, str]]:
    """(kind, text) of the personal fields inside a JSON value. `name` counts where it is a person's: beside
    other personal fields, or under a key such as `customer`."""
    if isinstance(value, Mapping):
        kinds = {k: kind_of(str(k)) for k in value}
        person = person or bool(_PERSON.fullmatch(key)) or any(kinds.values())
        for k, inner in value.items():
            kind = kinds[k] or (NAME if person and str(k).lower() == "name" else "")
            if kind and isinstance(inner, str | int) and not isinstance(inner, bool):
                yield kind, str(inner)
            elif kind and isinstance(inner, Mapping | list | tuple):
                yield from _all_of(inner, kind)
            else:
                yield from fields(inner, str(k))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from fields(inner, key)


def _all_of(value: Any, kind: str) -> Iterator[tuple[str, str]]:
    """What is inside a personal field: {"address": {"street": …, "city": …}}, {"name": {"first": …}}."""
    items = value.items() if isinstance(value, Mapping) else ((None, inner) for inner in value)
    for k, inner in items:
        if isinstance(inner, Mapping | list | tuple):
            yield from _all_of(inner, kind)
        elif isinstance(inner, str):
            own = kind_of(str(k)) if k is not None else ""
            if own or kind in (NAME, EMAIL, PHONE):
                yield own or kind, inner


_PAIR = re.compile(
    r"""(["'])(?P<key>[\w -]{1,60})\1\s*:\s*(?:"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)'|"""
    r"""(?P<number>\d+)(?![\w.]))"""
)


def pairs(text: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of the personal fields in text that is JSON, nearly JSON, or has some in it."""
    if ":" in text:
        for found in _PAIR.finditer(text):
            value = found["double"] or found["single"] or found["number"]
            if value and (kind := kind_of(found["key"])):
                yield kind, value


# ---------------------------------------------------------------- how it is spelled


class _Plain(dict[int, str]):
    """Character → how it is written plainly: digits of all scripts, wide letters, spaces and hyphens."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if 0xFF01 <= code <= 0xFF5E:
            plain = chr(code - 0xFEE0)
        elif char.isdecimal():
            plain = str(unicodedata.decimal(char))
        elif unicodedata.category(char) == "Zs" or char in "\u200b\u2060\ufeff":
            plain = " "
        elif char in "\u2010\u2011\u2012\u2212":
            plain = "-"
        elif char in "\u2019\u02bc":
            plain = "'"
        else:
            plain = char
        self[code] = plain
        return plain


_PLAIN = _Plain()
_DASH = re.compile(r"(\d ?)[\u2013\u2014](?= ?\d)")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|([\"\\/bfnrt]))|((?:%[0-9a-fA-F]{2})+)")
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_LEVELS = 4
"""JSON in JSON in JSON: so often are escapes looked through."""


def plain(text: str) -> str:
    """The text as long as it is, character by character in the plainest spelling."""
    return text if text.isascii() else _DASH.sub(r"\1-", text.translate(_PLAIN))


def views(text: str) -> Iterator[tuple[str, Sequence[int]]]:
    """(plain text, where each of its characters begins) of a text, and of what its escapes stand for, those
    of JSON and of URLs: a value may stand behind `\\n`, `\\u0041` or `%20`, or in JSON in JSON."""
    at: Sequence[int] = range(len(text) + 1)
    yield plain(text), at
    for _ in range(_LEVELS):
        if "\\" not in text and "%" not in text:
            return
        out, starts, last = [], [], 0
        for found in _ESCAPE.finditer(text):
            code, mark, octets = found.groups()
            if octets:
                chars = bytes.fromhex(octets.replace("%", "")).decode("utf-8", "replace")
                widths = [3 * len(c.encode()) for c in chars]
                if sum(widths) != len(octets):  # no text
                    continue
            else:
                chars, widths = chr(int(code, 16)) if code else _ESCAPED.get(mark, mark), [1]
            out += [text[last : found.start()], chars]
            starts += at[last : found.start()]
            starts += (at[found.start() + sum(widths[:n])] for n in range(len(chars)))
            last = found.end()
        if not out:
            return
        text, at = "".join([*out, text[last:]]), [*starts, *at[last:]]
        yield plain(text), at


def letters(text: str) -> str:
    """Letters and digits alone, in small letters: all that two spellings of one value share."""
    return re.sub(r"[\W_]", "", plain(text)).casefold()


def spellings(kind: str, text: str, region: str) -> Iterator[str]:
    """Letters and digits of a value, as they may be written elsewhere: a phone number with its country's code
    or without. Nothing for values too short to be known from them."""
    own = letters(text)
    if kind in (SECRET, EMAIL):
        return
    if _digits(own) >= _FEWEST or (len(own) > 4 and not own.isdigit()):
        yield own
    if kind == PHONE and (parts := _phone_parts(text, region)):
        code, number = parts
        if len(number) >= _FEWEST:
            for before in ("", "0", code, f"{code}0", f"00{code}", f"011{code}"):
                yield before + number


def _phone_parts(text: str, region: str) -> tuple[str, str] | None:
    """(country's code, the rest) of a phone number; None where it cannot be read as one."""
    import phonenumbers

    try:
        parsed = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return None
    return str(parsed.country_code), phonenumbers.national_significant_number(parsed)


def code_ends(text: str, region: str) -> int:
    """Where the country's code, or the zero in its place, ends in a phone number: the same for everybody."""
    lead = re.match(r"\(?(?:\+|00)", text)
    if not lead:
        return text.index("0") + 1 if text.lstrip("(").startswith("0") else 0
    code = (_phone_parts(text, region) or ("", ""))[0]
    end = lead.end()
    return end + len(code) if code and text.startswith(code, end) else end


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def dates(text: str) -> Iterator[str]:
    """The dates in a text, as they stand there."""
    if any(c.isdigit() for c in text):
        yield from (m[0] for m in re.finditer(rf"(?<!\w){_DATE}(?!\w)", text, re.I))


def days(text: str) -> frozenset[datetime.date]:
    """What a date may mean: with numbers alone, the day or the month may stand first."""
    month = next((n for n, m in enumerate(_MONTHS, 1) if m in text.casefold()), 0)
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    if month:
        numbers.insert(1, month)
    if len(numbers) != 3:
        return frozenset()
    a, b, c = numbers
    orders = [(a, b, c)] if a > 31 else [(c, b, a)] if month else [(c, b, a), (c, a, b)]
    found = set()
    for year, of_year, day in orders:
        years = (year,) if year > 99 else (1900 + year, 2000 + year)
        for whole in years:
            try:
                found.add(datetime.date(whole, of_year, day))
            except ValueError:
                continue
    return frozenset(found)


# ---------------------------------------------------------------- where it stands: words

_MAIL = re.compile(r"(?<![\w.+'%-])[\w.+'%-]++@[\w-]+(?:\.[\w-]+)+")
_PHONE = re.compile(
    r"(?<![\w.#/+-])(?:\+|\(|00)?\d[\d ().\-/]{5,22}\d(?: ?(?:x|ext\.?) ?\d{1,5})?(?![\w-])", re.I
)
_PHONE_WORD = re.compile(
    r"\b(?:phone|call|mobile|cell|tel|telephone|number to reach|text|fax|whatsapp)\b", re.I
)
_DATE_LIKE = re.compile(r"\d{4}[-/.]\d\d?[-/.]\d\d?|\d\d?[-/.]\d\d?[-/.](?:\d{4}|\d\d)")
_DIGITS = re.compile(r"(?<![\w.])(?:\d[ -]?){12,}\d(?![\w])")
_IBAN = re.compile(r"\b[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b")
_SSN = re.compile(r"(?<![\w-])\d{3}-\d\d-\d{4}(?![\w-])")
_IP = re.compile(
    r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]\d|\d)|(?<![\w:])(?:[0-9a-f]{1,4}:){3,7}[0-9a-f:]*", re.I
)
_VERSION = re.compile(r"(?:version|release|v)\s?$", re.I)
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sept?|oct|nov|dec)[a-z]*\.?"
_DAY = r"\d\d?(?:st|nd|rd|th)?"
_DATE = rf"(?:{_DATE_LIKE.pattern}|{_MONTH} {_DAY},? \d{{4}}|{_DAY}(?: of)? {_MONTH},? \d{{4}})"
_BORN = re.compile(rf"\b(?:born|birth(?:day|date)?|dob|d\.o\.b\.?)\b[^.?!\n\d]{{0,30}}?({_DATE})", re.I)
STREETS = (
    r"(?:Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Way|Place|Pl|Square|Terrace|Close|"
    r"Crescent|Parkway|Highway|Quay)"
)
_STREET = re.compile(
    rf"\b\d{{1,5}}[a-z]? (?:[A-Z][\w'’.-]* ){{1,4}}{STREETS}\b\.?"
    r"(?:,? (?:Apt|Apartment|Suite|Unit|Flat|#)\.? ?\w+)?|"
    r"\b[A-ZÄÖÜ][a-zäöüß-]+(?:straße|strasse|str\.|weg|platz|allee|gasse) \d+ ?[a-z]?\b|"
    r"\b\d{1,4},? rue (?:de |du |des |la )*[A-ZÀ-Ý][\w'’-]+"
)
_LIVES = re.compile(
    r"\b(?:live|living|reside|residing|address(?: is|:)|moved|ship(?:ped)?(?: it| them)?|"
    r"deliver(?:ed)?(?: it| them)?|send(?: it| them)?) (?:at |in |to )?([^.;!?\n]{4,80})",
    re.I,
)
_PLEASE = re.compile(r",? (?:please|thanks|thank you|and|but|instead|because)\b.*", re.I)
_POST = re.compile(
    r"\b(?:zip|postcode|post ?code|postal code)(?: code)?(?: is|:|,|\s)+"
    r"([A-Z]{0,2}\d[\dA-Z]*(?: ?\d[A-Z]{2}| ?-?\d{3,4})?)\b",
    re.I,
)
_NUMBERED = re.compile(
    r"\b(?:social security|ssn|passport|national id|tax id|driver'?s? licen[cs]e|licen[cs]e)"
    r"(?: card)?(?: number| no\.?| nr\.?)?(?: is|:|,|\s)+([A-Z]{0,3}[-\d][\dA-Z-]{4,})\b",
    re.I,
)
WORD = r"[^\W\d_][\w'’-]*"
_CAPITAL = r"[A-ZÀ-ÖØ-ÞŁŚŻŹŽŠČĆĐ](?:[^\W\d_]|['’-])*"
_PARTICLES = (
    "van",
    "von",
    "de",
    "der",
    "den",
    "la",
    "da",
    "di",
    "del",
    "bin",
    "al",
    "le",
    "du",
    "dos",
    "ten",
    "zu",
)
_PARTICLE = rf"(?:(?:{'|'.join(_PARTICLES)}) )*"
_FULL = rf"{_CAPITAL}(?: (?:[A-Z]\. )?{_PARTICLE}{_CAPITAL}){{0,3}}"
_CALLED = re.compile(
    rf"\b(?:my (?:full |last |first )?name(?:'s|’s| is)?|(?:name|surname)(?: is|:)|i am called|they call me|"
    r"call me|(?:under|in) the name(?: of)?)"
    rf"[,:]? (?:is )?((?:{WORD})(?: {WORD}){{0,3}})",
    re.I,
)
_TITLE = re.compile(rf"\b(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Herr|Frau|Madame|Monsieur|Señora?)\.? ({_FULL})")
_ADDRESSED = re.compile(
    r"\b(?:[Hh]i|[Hh]ello|[Dd]ear|[Tt]hanks?|[Tt]hank you|[Ww]elcome(?: back)?|[Ss]orry|[Rr]egards|"
    rf"[Ss]incerely|[Bb]est|[Cc]heers),?\s+({_FULL})(?=[,.!\n]|$)"
)
_I_AM = re.compile(
    r"\b(?:I am|I'm|I’m|[Tt]his is|[Ss]peaking with|on behalf of|[Ii]t's)\s+"
    rf"({_CAPITAL}(?: (?:[A-Z]\. )?{_PARTICLE}{_CAPITAL}){{1,3}})"
)
NO_NAME = frozenset(
    re.findall(
        r"\w+",
        "a about account after again all also always am an and any are as at back because before but by can "
        "card could customer date do does english everyone excellent fine first folks for friend from german "
        "gone good got great guys happy has have he hello help here hi how i id if in interested is it just "
        "know last let like looking madam made many me member morning my need new no not now number of ok "
        "okay on one or order our over please problem ready really right service she sir so something sorry "
        "still support sure team thank thanks that the their them then there they this to today tomorrow too "
        "trying us very wait want was we well what when where which who why will with wrong yes yet you your "
        "monday tuesday wednesday thursday friday saturday sunday january february march april may june july "
        "august september october november december assistant agent afternoon evening "
        "mr mrs ms miss mx dr prof wishes regards only "
        "actually still unable able afraid calling writing trying currently american british french spanish "
        "italian dutch european indian chinese canadian australian",
    )
)


def answered_name(question: str, answer: str) -> Iterator[str]:
    """Names in the answer to a question for a name: words with capitals, or all of a short answer."""
    if re.search(r"\bname\b[^.!\n]*\?", question, re.I):
        for found in re.finditer(rf"(?<![\w@])({_FULL})", answer):
            if len((name := _name(found[1].split(), capital=True)).split()) > 1:
                yield name
        if len(words := answer.strip(" .!").split()) <= 3 and (name := _name(words, capital=False)):
            yield name


def _names(text: str) -> Iterator[str]:
    for found in _CALLED.finditer(text):
        if name := _name(found[1].split(), capital=False):
            yield name
    for pattern, least in ((_TITLE, 1), (_ADDRESSED, 1), (_I_AM, 2)):
        for found in pattern.finditer(text):
            name = _name(found[1].split(), capital=True)
            if len(name.split()) >= least:
                yield name


def _name(words: Sequence[str], capital: bool) -> str:
    """The words at the beginning that can be a name. After "my name is", small letters are taken, too, but
    not beside words with a capital: "my name is Ann and" ends at "and", "ann smith" has two words."""
    kept: list[str] = []
    for word in words:
        bare = word.strip("'’-.")
        small = bare[:1].islower() and not (kept and bare in _PARTICLES)
        if (
            not bare
            or bare.casefold() in NO_NAME
            or (small and (capital or (kept and kept[0][:1].isupper())))
        ):
            break
        kept.append(word)
        if small and len(kept) == 2:
            break
    while kept and kept[-1] in _PARTICLES:
        kept.pop()
    return " ".join(kept).strip("'’-")


def patterns(text: str, region: str, names: bool = True) -> Iterator[tuple[str, str, bool]]:
    """(kind, text, sure) of what is personal by its form, or by the words around it; `names` are left out of
    texts in which nobody speaks. What looks like a number of its kind and fails the check is not sure."""
    if "@" in text:
        yield from ((EMAIL, m[0].rstrip(".-"), True) for m in _MAIL.finditer(text))
    if any(c.isdigit() for c in text):
        yield from _numbers(text, region)
        yield from ((BIRTH, m[1], True) for m in _BORN.finditer(text))
        yield from ((ADDRESS, m[0], True) for m in _STREET.finditer(text))
        yield from ((ADDRESS, home, True) for home in _homes(text))
        yield from ((POSTCODE, m[1], True) for m in _POST.finditer(text))
        yield from ((NATIONAL, m[1], True) for m in _NUMBERED.finditer(text))
    if names:
        yield from ((NAME, name, True) for name in _names(text))


def _homes(text: str) -> Iterator[str]:
    """What follows "I live at": with a number and a name in it, it is an address."""
    for found in _LIVES.finditer(text):
        words = _PLEASE.sub("", found[1]).strip(" ,")
        if re.search(r"\d", words) and re.search(r"(?<![#\w])[A-ZÀ-Þ][a-zß-ÿ]{2}", words):
            yield words


def _numbers(text: str, region: str) -> Iterator[tuple[str, str, bool]]:
    for found in _DIGITS.finditer(text):
        yield CARD, found[0], _is_card(found[0])
        yield from ((CARD, found[0][a:b], sure) for a, b, sure in _cards(found[0]))
    for found in _IBAN.finditer(text):
        yield IBAN, found[0], has_iban(found[0])
        yield from ((IBAN, one, True) for one in _ibans(found[0]) if one != found[0])
    yield from ((NATIONAL, m[0], is_ssn(m[0])) for m in _SSN.finditer(text))
    for found in _IP.finditer(text):
        if _is_machine(found[0]) and not _VERSION.search(text[: found.start()]):
            yield MACHINE, found[0], True
    for found in _PHONE.finditer(text):
        said = found[0].strip()
        if not _DATE_LIKE.match(said):
            near = _PHONE_WORD.search(text[max(0, found.start() - 40) : found.start()])
            likely = bool(near) or said.startswith(("+", "("))
            there = list(_phones(said, region, likely))
            yield PHONE, said, (0, len(said)) in there
            yield from ((PHONE, said[a:b], True) for a, b in there)
            for (a, end), (begin, b) in itertools.pairwise(there):
                if begin < end:  # nobody can say which of the two it is
                    yield PHONE, said[a:b], True


def has_phone(text: str, region: str, likely: bool = False) -> bool:
    """Whether numbers in a row have a phone number among them ("415-555-2671 2 times")."""
    return next(_phones(text, region, likely), None) is not None


def _phones(text: str, region: str, likely: bool) -> Iterator[tuple[int, int]]:
    """(begin, end) of the phone numbers in a row of numbers, the longest of those that stand in each other.
    Where one is likely, any of a possible length counts that stands first; else one that may be in use, in
    parts."""
    starts = [m.start() for m in _FIRST_DIGIT.finditer(text)]
    ends = [m.end() for m in _LAST_DIGIT.finditer(text)]
    last = 0
    for start in starts:
        for end in reversed(ends):
            part = text[start:end]
            if end <= last or _digits(part) < _FEWEST:
                break
            first = likely and start == starts[0]
            if (first and _is_possible(text[:end], region)) or (
                _PARTED.search(part) and is_phone(part, region)
            ):
                yield (0 if first else start), end
                last = end
                break


def _digits(text: str) -> int:
    return sum(c.isdigit() for c in text)


_FIRST_DIGIT = re.compile(r"[+(]*(?<!\d)\d")
_LAST_DIGIT = re.compile(r"\d(?!\d)")
_PARTED = re.compile(r"\d[ ).-]+\d")
_FEWEST = 7
"""Digits of the shortest phone number: fewer are a number of something."""


def is_phone(text: str, region: str) -> bool:
    import phonenumbers

    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(text, region))
    except phonenumbers.NumberParseException:
        return False


def _is_possible(text: str, region: str) -> bool:
    """As long as a number there is, whether or not it is given to anybody."""
    import phonenumbers

    try:
        return phonenumbers.is_possible_number(phonenumbers.parse(text, region))
    except phonenumbers.NumberParseException:
        return False


def has_card(text: str) -> bool:
    """Whether numbers in a row are a card number, or have one among them, written as cards are: whole, or in
    groups of four, or of four, six and the rest."""
    return _is_card(text) or any(sure for _, _, sure in _cards(text))


def _cards(text: str) -> Iterator[tuple[int, int, bool]]:
    """(begin, end, whether it is one) of what may be a card in a row of numbers, and of cards that overlap:
    one of them is one by chance, and nobody can say which."""
    start = end = 0
    for found in _CARD.finditer(text):
        sure = _is_card(found[1])
        yield found.start(1), found.end(1), sure
        if sure and found.start(1) < end:
            yield start, found.end(1), True
        elif sure:
            start = found.start(1)
        end = max(end, found.end(1)) if sure else end


_CARD = re.compile(r"(?<!\d)(?=(\d{13,19}|\d{4}([ -])\d{4}\2\d{4}\2\d{1,4}|\d{4}([ -])\d{6}\3\d{4,5})(?!\d))")


def _is_card(text: str) -> bool:
    from stdnum import luhn

    digits = re.sub(r"\D", "", text)
    return 13 <= len(digits) <= 19 and digits[0] in "23456" and luhn.is_valid(digits)


def has_iban(text: str) -> bool:
    """Whether an IBAN stands first in letters and numbers in a row ("AT61 1904 3002 3457 3201 20 items")."""
    return next(_ibans(text), None) is not None


def _ibans(text: str) -> Iterator[str]:
    from stdnum import iban

    yield from (text[: m.end()] for m in re.finditer(r"\w\b", text) if iban.is_valid(text[: m.end()]))


def is_ssn(text: str) -> bool:
    from stdnum.us import ssn

    return ssn.is_valid(text)


def _is_machine(text: str) -> bool:
    try:
        return not ipaddress.ip_address(text).is_unspecified
    except ValueError:
        return False


# ---------------------------------------------------------------- what the database knows


@dataclass(frozen=True)
class Known:
    """What a domain's database holds of people, to compare with."""

    kinds: Mapping[tuple[str, ...], str]
    """Words of a value, in small letters → its kind."""
    longest: int
    """Words of the longest one."""
    everything: str = ""
    """All texts of the database, as words in small letters with spaces between."""

    def spans(self, text: str) -> Iterator[tuple[str, str]]:
        """(kind, text) of the values that occur in a text, whole words only."""
        words = list(_TOKEN.finditer(text))
        low = [w[0].casefold() for w in words]
        for start in range(len(words)):
            for count in range(min(self.longest, len(words) - start), 0, -1):
                if kind := self.kinds.get(tuple(low[start : start + count])):
                    yield kind, text[words[start].start() : words[start + count - 1].end()]
                    break

    def __contains__(self, text: str) -> bool:
        words = _plain(text)
        return bool(words) and f" {words} " in self.everything


_TOKEN = re.compile(r"[^\W_](?:[\w.@+'’#-]*\w)?|\+\d[\w-]*")


def known_people(domain: Domain) -> Known:
    """The personal values of a domain's database: personal fields of any table, and the ids of its people."""
    found: dict[tuple[str, ...], str] = {}
    everything: dict[str, None] = {}
    for part in domain.members:
        ids = _id_fields(part)
        for table, rows in getattr(part.base, "tables", {}).items():
            for row in rows.values():
                own = [(ID, row[ids[table]])] if table in ids and isinstance(row.get(ids[table]), str) else []
                everything.update((_plain(str(leaf)), None) for leaf in leaves(row))
                for kind, text in [*own, *fields(row)]:
                    words = tuple(_plain(text).split())
                    if len("".join(words)) > 2:
                        found.setdefault(words, kind)
    return Known(found, max(map(len, found), default=0), f" {' | '.join(everything)} ")


def _plain(text: str) -> str:
    return " ".join(w.casefold() for w in _TOKEN.findall(text))


def _id_fields(domain: Domain) -> dict[str, str]:
    """Table → the field that is the person's own id, of the tables whose rows are people."""
    person = getattr(domain.conduct, "person", None)
    records = dict(getattr(person, "records", {}))
    out = {}
    for table, column in records.items():
        rows = getattr(domain.base, "tables", {}).get(table, {})
        first = next(iter(rows.items()), None)
        if first is not None and first[1].get(column) == first[0]:
            out[table] = column
    return out


def need_libraries() -> None:
    """Raises MuaError when the libraries that check numbers are not installed."""
    try:
        import phonenumbers  # noqa: F401
        import stdnum  # noqa: F401
    except ImportError:
        raise MuaError("redacting needs two small libraries: pip install 'mua[import]'.") from None


def check_region(region: str) -> str:
    """A region as `phonenumbers` knows it. Raises MuaError."""
    import phonenumbers

    if region.upper() not in phonenumbers.SUPPORTED_REGIONS:
        raise MuaError(f"--region {region}: give a country in two letters (ISO 3166), such as US, GB or DE.")
    return region.upper()
