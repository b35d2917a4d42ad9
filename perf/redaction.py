"""How much personal data `mua import` finds, and how much it takes that is none.

    python perf/redaction.py [CONVERSATIONS]        needs `pip install faker`

Planted: conversations in which people say who they are, in several ways and with data made by faker in eight
locales; each planted value is known. Recall is the share of the planted values of a kind of which nothing is
left after redaction. Clean: the same conversations' other words, and conversations of own domains (with their
database left alone), in which nothing is personal but what their database holds: whatever is replaced there
is wrong. Precision is planted values among all values that were replaced in the planted conversations.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter

from faker import Faker

from mua.chat import Message, ToolCall
from mua.coldstart.conversations import play_expert
from mua.domains import load
from mua.episode import Limits
from mua.transcripts.personal import known_people
from mua.transcripts.redact import Redactor

LOCALES = ("en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "pl_PL", "en_IN")
DATES = ("%Y-%m-%d", "%B %d, %Y", "%d/%m/%Y")
REGION = {"en_US": "US", "en_GB": "GB", "de_DE": "DE", "fr_FR": "FR", "es_ES": "ES", "it_IT": "IT", "pl_PL":
"PL", "en_IN": "IN"}  # fmt: skip
SAYS = {
    "name": (
        "My name is {}.", "Hello, I'm {} and I need help.", "This is {} speaking.", "my name's {}, hi",
        "Is it under the name of {}?", "It's under the name {}, I think.", "Thanks,\n{}",
    ),
    "email": ("You can write to {}.", "{} is my mail", "it's {}, ok?"),
    "phone": ("Call me at {}.", "My phone number is {}", "{} is where you reach me"),
    "card number": ("My card is {}.", "charge {} please"),
    "IBAN": ("Refund it to {}.", "IBAN {}"),
    "national number": ("My SSN is {}.", "social security number {}"),
    "address": ("I live at {}.", "Send it to {}, please."),
    "date of birth": ("I was born on {}.", "Date of birth: {}", "dob {}"),
    "postcode": ("The zip code is {}.", "postcode {}"),
    "machine address": ("My router says {}.",),
}  # fmt: skip
FILLER = (
    "I ordered a blue lamp, order #W4412906, on 2024-05-15 at 10:30.", "The price was 1,234.50 and not "
    "1,499.00.",
    "I want to return item 1656367028.", "Flight HAT170 leaves on 05/20/2024, doesn't it?",
    "Is version 1.2.3.4 out yet?", "Thank You Very Much for the help.", "Hi There, Good Morning!",
    "I am Sorry about that, Best Regards.", "Booking ZFA04Y, seat 12A, gate 7, two bags.",
    "I am American and I like New York and Hollow Palace.", "The model is XPS-9310, serial 8841-2207-11.",
    "This is Great News, will it work in May?", "Please put 3 x 4.99 into case 2024-118.",
)  # fmt: skip


def value(fake: Faker, kind: str, rng: random.Random) -> str:
    make = {
        "name": lambda: f"{fake.first_name()} {fake.last_name()}",
        "email": fake.email,
        "phone": fake.phone_number,
        "card number": lambda: fake.credit_card_number(rng.choice(("visa", "mastercard", "amex"))),
        "IBAN": lambda: Faker(rng.choice(("de_DE", "en_GB", "fr_FR"))).iban(),
        "national number": lambda: Faker("en_US").ssn(),
        "address": fake.street_address,
        "date of birth": lambda: fake.date_of_birth().strftime(rng.choice(DATES)),
        "postcode": fake.postcode,
        "machine address": lambda: rng.choice((fake.ipv4_public(), fake.ipv6())),
    }
    return make[kind]().replace("\n", ", ")


def planted(number: int) -> tuple[list[Message], list[tuple[str, str, str]], str]:
    """(a conversation, (kind, where, value) of what is planted, region)."""
    rng = random.Random(number)
    locale = LOCALES[number % len(LOCALES)]
    fake = Faker(locale)
    fake.seed_instance(number)
    Faker.seed(number)
    messages, there = [Message("system", "Help the customer.")], []
    for turn in range(rng.randrange(3, 7)):
        kind = rng.choice(list(SAYS))
        text = value(fake, kind, rng)
        there.append((kind, "words", text))
        said = [rng.choice(SAYS[kind]).format(text), rng.choice(FILLER)]
        rng.shuffle(said)
        if kind == "name" and rng.random() < 0.3:
            messages.append(Message("assistant", "May I have your name, please?"))
            said = [rng.choice((text, f"Sure: {text}.", f"{text}, thanks"))]
        messages.append(Message("user", " ".join(said)))
        if turn % 2:
            name, mail = value(fake, "name", rng), value(fake, "email", rng)
            there += [("name", "fields", name), ("email", "fields", mail)]
            answer = {
                "customer": {"name": name, "email": mail},
                "items": [{"name": "Blue Lamp", "id": 1656367028}],
            }
            messages.append(Message("assistant", "", (ToolCall("find", {"order": "#W4412906"}, f"c{turn}"),)))
            messages.append(Message("tool", json.dumps(answer), tool_call_id=f"c{turn}"))
            messages.append(Message("assistant", f"Thank you, {name.split()[0]}. Is {mail} right?"))
        else:
            messages.append(Message("assistant", rng.choice(FILLER)))
    return messages, there, REGION[locale]


def main(count: int) -> None:
    found, total, wrong, replaced = Counter(), Counter(), Counter(), 0
    for number in range(count):
        messages, there, region = planted(number)
        redactor = Redactor(number, region)
        redactor.learn(messages)
        after = "\n".join(json.dumps(redactor.message(m).to_dict(), ensure_ascii=False) for m in messages)
        values = [v for _, _, v in there]
        for kind, where, text in there:
            total[kind, where] += 1
            found[kind, where] += text not in after
        for text in redactor.replaced():
            hit = any(text.casefold() in v.casefold() or v.casefold() in text.casefold() for v in values)
            replaced += 1
            wrong[text] += not hit
    for (kind, where), n in sorted(total.items()):
        print(f"{kind:<16} {where:<7} recall {found[kind, where] / n:.3f} of {n}")
    print(f"all              recall {found.total() / total.total():.3f} of {total.total()}")
    shown = [w for w, n in wrong.most_common(12) if n]
    print(f"precision {1 - wrong.total() / replaced:.3f} of {replaced}; wrong: {shown}")
    clean = Counter()
    for name in ("library", "course_registration", "meeting_rooms", "property_rental", "job_application"):
        domain = load(name)
        known = known_people(domain)
        for number, task in enumerate(domain.tasks("test")[:60]):
            played = asyncio.run(play_expert(domain, task, number, Limits()))
            redactor = Redactor(number, known=known, keep=True)
            redactor.learn(played.messages)
            clean["conversations"] += 1
            clean["replaced"] += len(redactor.replaced())
            for text in redactor.replaced():
                clean[f"{name}: {text}"] += 1
    print(f"own domains: {dict(clean.most_common(12))}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
