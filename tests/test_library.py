"""The library: its size, its tasks, the expert's manners, and a user that understands other agents too."""

import asyncio
import collections
import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mua.chat import Message, ToolCall
from mua.coldstart.conversations import Dropped, conversations, play_expert
from mua.domain import Scenario, Task, World, check_no_noop, check_no_overlap
from mua.domains import load
from mua.domains.library import speech
from mua.domains.library.data import BRANCHES
from mua.domains.library.speech import AgendaUser, Expert, heard
from mua.domains.library.tasks import KINDS
from mua.episode import Limits, play
from mua.errors import MuaError
from mua.trajectory import Termination
from mua.users import STOP
from toy import ScriptAgent

FULL, DESK = load("library"), load("library:desk")


def every_task(domain):
    return [task for split in domain.splits for task in domain.tasks(split)]


@pytest.fixture(scope="module")
def talks():
    """(domain, task, conversation) of expert and agenda user: all of `library`, a part of the desk."""

    async def go():
        chosen = [(FULL, t) for t in every_task(FULL)] + [(DESK, t) for t in every_task(DESK)[::7]]
        return [(d, t, await play_expert(d, t, 11, Limits())) for d, t in chosen]

    return asyncio.run(go())


# ---------------------------------------------------------------- size and tasks


def test_it_is_as_large_as_it_says():
    tables = FULL.base.tables
    assert (len(FULL.tools()), len(tables["members"]), len(tables["titles"])) == (16, 880, 1200)
    assert len(KINDS) == 24 and {t.kind for t in every_task(FULL)} == set(KINDS)
    assert len(DESK.tools()) == 6 and set(DESK.tools()) < set(FULL.tools())
    assert len({t.fingerprint for t in every_task(FULL)}) >= 2000
    with pytest.raises(MuaError, match="no profile 'tiny'; it has full, desk"):
        load("library:tiny")
    with pytest.raises(MuaError, match="no split 'validation'; it has train, dev, test"):
        FULL.tasks("validation")


@pytest.mark.parametrize("domain", [FULL, DESK], ids=lambda d: d.name)
def test_tasks_are_distinct_and_need_something_done(domain):
    tasks = every_task(domain)
    assert len({t.fingerprint for t in tasks}) == len({t.id for t in tasks}) == len(tasks)
    for split in domain.splits:
        others = [t for s in domain.splits if s != split for t in domain.tasks(s)]
        check_no_overlap(domain.tasks(split), others, split)
    check_no_noop(domain, tasks)
    assert all(a.name in domain.tools() for t in tasks for a in t.actions)
    assert domain.task(tasks[-1].id) is tasks[-1]


@pytest.mark.parametrize("domain", [FULL, DESK], ids=lambda d: d.name)
def test_who_does_nothing_earns_nothing(domain):
    agents = {
        "goodbye": lambda: ScriptAgent("Sorry, I cannot help you. Goodbye!"),
        "lies": lambda: ScriptAgent("Done, it is all taken care of. Have a nice day!"),
        "silent": lambda: ScriptAgent(*[""] * 9),
    }

    async def rewards(make, tasks):
        talks = [await play(domain, t, make(), AgendaUser(t, 1), limits=Limits(turns=4)) for t in tasks]
        return {t.reward for t in talks}, {t.termination for t in talks}

    tasks = every_task(domain)
    assert asyncio.run(rewards(agents["goodbye"], tasks)) == ({0.0}, {Termination.USER_STOP})
    assert asyncio.run(rewards(agents["lies"], tasks[::9])) == ({0.0}, {Termination.USER_STOP})
    assert asyncio.run(rewards(agents["silent"], tasks[::50]))[0] == {0.0}


def test_everything_is_the_same_in_another_process():
    script = """
import asyncio, hashlib, json
from mua.domains import load
from mua.coldstart.conversations import Dropped, conversations, play_expert
from mua.episode import Limits
for name in ("library", "library:desk"):
    domain = load(name)
    print(domain.base.open().digest())
    for split in domain.splits:
        tasks = domain.tasks(split)
        told = [[t.id, t.kind, t.fingerprint, t.scenario.goal, t.scenario.persona] for t in tasks]
        print(split, len(tasks), hashlib.sha256(json.dumps(told).encode()).hexdigest())
    talks = [asyncio.run(play_expert(domain, t, 3, Limits())).to_dict() for t in tasks[:20]]
    print(hashlib.sha256(json.dumps(talks).encode()).hexdigest())
"""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    one, two = (run.communicate(timeout=300)[0] for run in runs)
    assert one == two and one.count("\n") == 2 + len(FULL.splits) + len(DESK.splits) + 2


# ---------------------------------------------------------------- the expert


def test_the_expert_solves_every_task_and_a_replay_agrees(talks):
    for domain, task, talk in talks:
        assert talk.reward == 1.0, (domain.name, task.id, talk.reason)
        again = domain.grade(task, talk.messages, talk.termination)
        assert (again.reward, again.reason) == (talk.reward, talk.reason)
        if task.kind not in ("unknown", "wrong_card"):
            assert not talk.usage.tool_errors
    assert FULL.base.recompute_sum() == FULL.base.digest_sum()


YES = set(speech._YES)
GRANTS = {
    "renew_loan": "renew",
    "reserve_title": "reserve",
    "cancel_reservation": "cancel",
    "pay_fine": "charge",
    "update_contact": "change",
}


def test_the_expert_keeps_to_the_policy(talks):
    seen = collections.Counter()
    for domain, task, talk in talks:
        known, proposal, answer, paid = None, "", "", collections.Counter()
        for i, message in enumerate(talk.messages):
            if message.role == "user":
                proposal, answer = talk.messages[i - 1].content, message.content
            for call in message.tool_calls:
                result = talk.messages[i + 1]
                if call.name.startswith("find_member") and not result.error:
                    known = json.loads(result.content)["card"]
                effect = domain.tools()[call.name].effect
                if effect == "read" or call.name == "transfer_to_human":
                    continue
                # nothing is changed or recorded but for the member who was found
                assert call.arguments["card"] == known is not None, (task.id, call)
                if call.name not in GRANTS:
                    assert answer not in YES
                    continue
                # and nothing is granted but what was proposed in so many words and agreed to
                assert answer in YES, (task.id, answer)
                assert GRANTS[call.name] in proposal.lower()
                seen[call.name] += 1
                if "title" in call.arguments:
                    assert f'"{call.arguments["title"]}"' in proposal
                if "branch" in call.arguments:
                    assert call.arguments["branch"] in proposal
                if call.name == "pay_fine":
                    paid[proposal] += json.loads(result.content)["amount"]
                if call.name == "update_contact":
                    (value,) = call.arguments["contact"].values()
                    values = value.values() if isinstance(value, dict) else [value]
                    assert all(v in proposal for v in values)
        assert all(f"You owe {amount:.2f} in " in proposal for proposal, amount in paid.items())
    assert set(seen) == set(GRANTS) and min(seen.values()) > 30


def test_haste_is_kept_only_where_nobody_would_have_objected():
    """Filtering by outcome cannot see manners: what a hasty teacher did right by luck stays in the set."""
    dropped = Dropped()
    hasty = {"hasty": 0.75, "checks": ["user"]}
    kept = asyncio.run(conversations(DESK, DESK.tasks("cold"), 300, 3, dropped=dropped, **hasty))

    def asked(talk):
        return any(heard(m.content)[0] == "confirm" for m in talk.messages if m.role == "assistant")

    assert set(dropped.reasons) == {"end state differs from gold on replay"}
    changed = [t for t in kept if t.kind in ("switch", "withdraw")]
    plain = [t for t in kept if t.kind in ("renew", "reserve")]
    assert changed and all(map(asked, changed))
    assert 0.15 < sum(map(asked, plain)) / len(plain) < 0.35
    careful = asyncio.run(conversations(DESK, DESK.tasks("train"), 100, 3, dropped=dropped))
    assert all(asked(t) for t in careful if t.kind in ("renew", "reserve", "switch", "withdraw"))
    with pytest.raises(MuaError, match=r"has no hasty expert; set coldstart\.hasty to 0"):
        bare = dataclasses.replace(DESK, hasty_expert=None)
        asyncio.run(conversations(bare, bare.tasks("cold"), 9, 3, hasty=1.0))


def test_the_expert_tells_refusals_after_recording_them(talks):
    for _, task, talk in talks:
        recorded = [c for m in talk.messages for c in m.tool_calls if c.name == "record_case"]
        for call in recorded:
            at = next(i for i, m in enumerate(talk.messages) if call in m.tool_calls)
            assert not talk.messages[at + 1].error
            assert talk.messages[at + 2].role == "assistant" and talk.messages[at + 2].content, task.id


def words_of(value):
    if isinstance(value, dict):
        return {w for v in value.values() for w in words_of(v)}
    return set(str(value).replace(",", " ").split())


def test_the_expert_uses_only_what_the_conversation_told(talks):
    enums = {
        value
        for tool in FULL.tools().values()
        for spec in tool.parameters["properties"].values()
        for value in spec.get("enum", ())
    }
    for _, task, talk in talks:
        told = ""
        for message in talk.messages[1:]:
            for call in message.tool_calls:
                unknown = {w for w in words_of(call.arguments) - enums if w not in told}
                assert not unknown, (task.id, call)
            told += " " + message.content


def test_the_expert_cannot_read_the_task():
    """It gets a world that hides the task, and of the user only the acts."""

    class Behind:
        name = "behind"

        def __init__(self, user):
            self.__user = user

        @property
        def act(self):
            return self.__user.act

        async def reply(self, view):
            return await self.__user.reply(view)

    first = {t.kind: t for t in reversed(FULL.tasks("test"))}
    assert set(first) == set(KINDS)
    for task in first.values():
        world, user = World(FULL, task), Behind(AgendaUser(task, 5))
        world.task = SimpleNamespace(id="hidden")
        talk = asyncio.run(play(FULL, task, Expert(world, user, 5), user, world=world))
        assert talk.reward == 1.0, (task.id, talk.reason)


# ---------------------------------------------------------------- the agenda user


def person(*requests, volunteer=False, wrong=None, by="card"):
    facts = {"card": "1234"} if by == "card" else {"name": "Ada Novak", "postcode": "B123"}
    agenda = {"identify": {"by": by, "volunteer": volunteer, "wrong": wrong}, "requests": list(requests)}
    return Task("t", "t", Scenario("", facts, "You are brief.", agenda), ())


RENEW = {"intent": "renew", "title": "Silent Harbour"}
RESERVE = {"intent": "reserve", "title": "Silent Harbour"}


def answer(task, text, seed=0, before=()):
    """(act, words) of a user that opened and then heard `before` and `text`."""

    async def go():
        user = AgendaUser(task, seed)
        view = [Message("user", (await user.reply([])).text)]
        for said in (*before, text):
            view.append(Message("assistant", said))
            turn = await user.reply(view)
            view.append(Message("user", turn.text))
        assert turn.stop == (STOP in turn.text) == (user.act.get("do") == "stop")
        return user.act, turn.text

    return asyncio.run(go())


OTHER_WORDS = [
    ("identify", "Of course! Could you please provide your library card number so I can look you up?"),
    ("identify", "Please give me your card number."),
    ("identify", "I'll need your library card number to proceed."),
    ("identify", "Before I proceed, could you tell me your card number?"),
    ("identify", "Could you please confirm your library card number first?"),
    (
        "identify",
        "Happy to help!\n\nPlease provide **one** of the following:\n- your card number\n- your full name",
    ),
    ("identify", "I couldn't find a member with that card. Could you double-check the number and try again?"),
    ("identify", "One moment please. Could you tell me your card number?"),
    (
        "identify",
        "For security reasons I must verify your identity. Please share your full name and postcode.",
    ),
    ("yes", 'I found your loan of "Silent Harbour". Would you like me to renew it until 2026-03-23?'),
    ("yes", 'Can you confirm that you want to renew "Silent Harbour"?'),
    ("yes", "I will renew **Silent Harbour** for card 1234 (new due date: 2026-03-23). Is this correct?"),
    ("yes", 'Please reply "yes" to confirm that I should renew “Silent Harbour”.'),
    ("yes", "**Renewal details:**\n- Title: Silent Harbour\n- Due: 23 March\n\nPlease confirm (yes/no)."),
    ("yes", "Let me know if you'd like me to proceed with the renewal."),
    ("yes", 'You have 2 loans: "Red River" and "Silent Harbour". You\'re eligible. Shall I go ahead?'),
    ("yes", "Just to confirm, you want to renew Silent Harbour, right?"),
    ("stop", "I'm sorry, but I can't renew this loan because another member is waiting for it."),
    ("stop", "Your card has expired. Please visit the desk to renew it."),
    (
        "stop",
        "Unfortunately your membership has expired, so I am unable to renew this title. Please renew your "
        "membership at the desk first. Is there anything else I can help you with?",
    ),
    (
        "stop",
        'I\'ve renewed "Silent Harbour" for you. ✅ Would you like me to help with anything else today?',
    ),
    ("stop", "Thank you, I have your card number. The loan is now due on 23 March. Have a nice day!"),
    ("stop", "Done! If you need any further assistance, just let me know."),
    ("stop", "I'm happy to confirm that your book has been renewed."),
    ("wait", "One moment please while I check that for you."),
    ("wait", "I'll look up your card now, please hold on."),
    ("wait", "Please wait while I verify your card."),
    ("title", "Which book would you like to renew?"),
    ("title", "Sure, please tell me the exact title."),
    ("request", "Hello! How can I help you today?"),
    ("request", "What can I do for you?"),
    ("request", "Are you looking for a novel?"),
    # what it does not want, it does not agree to
    ("request", 'Shall I renew "Red River"?'),
    ("request", "Would you like me to renew **Red River**?"),
    ("request", 'You borrowed "Silent Harbour". Shall I renew "Red River"?'),
    ("request", 'Shall I reserve "Silent Harbour" for you?'),
]


@pytest.mark.parametrize(("act", "text"), OTHER_WORDS)
def test_the_user_understands_other_agents(act, text):
    got, words = answer(person(RENEW), text)
    assert got.get("do", "wait") == act, words
    if act == "identify":
        assert got["card"] == "1234" and "1234" in words
    if act == "yes":
        assert words in YES
    if act in ("title", "request"):
        assert "Silent Harbour" in words


def test_the_user_understands_every_phrase_of_the_expert():
    for meaning, phrases in {
        "identity": speech._ASK_CARD + speech._NOT_FOUND,
        "title": speech._ASK_TITLE,
        "confirm": [p for group in speech._PROPOSE.values() for p in group],
        "done": [f"{e} {m}" for e in speech._WITHDRAWN for m in speech._MORE_PHRASES]
        + [f"{p} {m}" for g in speech._DONE.values() for p in g for m in speech._MORE_PHRASES]
        + [f"{p} {m}" for g in speech._REFUSED.values() for p in g for m in speech._MORE_PHRASES],
    }.items():
        for phrase in phrases:
            for title in ("Silent Harbour", "Open Letter", "Wild Year"):
                values = {"title": title, "branch": "Central", "amount": 4.5, "count": 1}
                text = phrase.format(**values, what="phone", value="5551234")
                assert heard(text)[0] == meaning, text


def test_the_user_says_the_branch_and_agrees_to_no_other():
    ask = "At which branch would you like to collect it: Central, Northside or Riverside?"
    northside = {**RESERVE, "branch": "Northside"}
    assert answer(person(RESERVE), ask)[0] == {"do": "branch", "branch": BRANCHES[0]}
    assert answer(person(northside), ask) == ({"do": "branch", "branch": "Northside"}, "Northside, please.")
    for request, branch, act in (
        (RESERVE, "Central", "yes"),
        (RESERVE, "Riverside", "request"),
        (northside, "Northside", "yes"),
        (northside, "Central", "request"),
    ):
        text = f'I will reserve "Silent Harbour" for collection at {branch}. Is that correct?'
        assert answer(person(request), text)[0]["do"] == act


def test_the_user_follows_its_agenda():
    switch = {**RENEW, "twist": {"do": "switch", "title": "Red River"}}
    offer = 'Shall I renew "Silent Harbour"?'
    act, words = answer(person(switch), offer)
    assert act == {"do": "switch", "title": "Red River"} and "Red River" in words
    assert answer(person(switch), offer, before=[offer])[0]["do"] == "request"  # it has changed its mind
    assert answer(person(switch), 'Shall I renew "Red River"?', before=[offer])[0]["do"] == "yes"
    assert answer(person({**RENEW, "twist": {"do": "withdraw"}}), offer)[0] == {"do": "withdraw"}
    # one thing after the other
    act, words = answer(person(RENEW, RESERVE), "It is renewed. Anything else?", before=[offer])
    assert act == {"do": "request", "request": RESERVE} and "reserve" in words
    # it tells what it knows, and never a title that it only remembers in part
    vague = {**RENEW, "late_title": True}
    assert "Harbour" not in answer(person(vague), "One moment please.")[1]
    partly = {**RESERVE, "words": "Silent Ada Abbott"}
    act, words = answer(person(partly), "Which title is it?")
    assert act["do"] == "request" and "title" not in act["request"] and "Harbour" not in words
    act, words = answer(person(RENEW, by="name"), "Your card number, please?")
    assert act["name"] == "Ada Novak" and "B123" in words
    # and does not go on for ever
    loop = ["Are you sure about the weather?"] * 3
    assert answer(person(RENEW), loop[0], before=loop)[0] == {"do": "stop"}
    assert answer(person(RENEW), "Your card?", before=["Your card?"] * 3)[0] == {"do": "stop"}


def test_a_frozen_opening_is_remembered():
    """In training the opening is fixed beforehand: another user object goes on from it."""
    task = person(RENEW, volunteer=True, wrong="1243")

    def second(opening):
        user = AgendaUser(task, 2)
        view = [Message("user", opening), Message("assistant", "That card is not known. What is the number?")]
        return asyncio.run(user.reply(view)).text

    assert "1234" in second("I want to renew it. Card 1243.")
    assert "1243" in second("I want to renew it.")

    # and so such tasks can be solved from there
    async def go():
        for task in [t for t in FULL.tasks("test") if t.kind == "wrong_card"]:
            opening = (await AgendaUser(task, 1).reply([])).text
            user = AgendaUser(task, 2)
            world = World(FULL, task)
            talk = await play(FULL, task, Expert(world, user, 2), user, world=world, opening=opening)
            assert talk.reward == 1.0, talk.reason

    asyncio.run(go())


# ---------------------------------------------------------------- arguments of every kind

DB = FULL.base.open()
CARD = next(
    card
    for card in DB.keys("members")
    if DB.where("loans", card=card) and DB.where("reservations", card=card) and DB.where("fines", card=card)
)
LOAN, RESERVED = (DB.where(table, card=CARD)[0][1]["title"] for table in ("loans", "reservations"))
FREE = next(t for t in DB.keys("titles") if not DB.get("reservations", f"{CARD}/{t}"))
FINE = DB.where("fines", card=CARD)[0][0]
MEMBER = DB.get("members", CARD)
GOOD = {
    "find_member_by_card": {"card": CARD},
    "find_member_by_name": {"name": MEMBER["name"], "postcode": MEMBER["address"]["postcode"]},
    "get_contact": {"card": CARD},
    "search_titles": {"words": LOAN.lower()},
    "check_title": {"title": LOAN},
    "list_loans": {"card": CARD},
    "check_loan": {"card": CARD, "title": LOAN},
    "list_reservations": {"card": CARD},
    "list_fines": {"card": CARD},
    "renew_loan": {"card": CARD, "title": LOAN},
    "reserve_title": {"card": CARD, "title": FREE},
    "cancel_reservation": {"card": CARD, "title": RESERVED},
    "pay_fine": {"card": CARD, "fine_id": FINE},
    "update_contact": {"card": CARD, "contact": {"email": "a@example.org"}},
    "record_case": {"card": CARD, "request": "renew", "outcome": "refused", "reason": "limit"},
    "transfer_to_human": {"reason": "complaint"},
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
address = {"street": "1", "city": "2", "postcode": "3"}
pieces = [CARD, "0000", LOAN, RESERVED, FINE, "renew", "Riverside", "refused", "withdrawn", "fines", "", " "]
contacts = [{"phone": "1"}, {"address": address}, {"address": {**address, "city": 2}}, {"phone": None}, {}]
NAMES = sorted({name for good in GOOD.values() for name in good} | {"branch", "summary", "x"})


@pytest.mark.parametrize("name", list(FULL.tools()))
def test_no_arguments_break_a_tool(name):
    tool = FULL.tools()[name]

    def new_world():
        return World(FULL, FULL.tasks("train")[0])

    def call(world, arguments):
        before = world.db.digest()
        result = world.call("assistant", ToolCall(name, arguments))
        changed = world.db.digest() != before
        if result.error:
            assert result.content.startswith("Error: ") and not changed and not result.ends
        else:
            json.loads(result.content)
        assert not changed or tool.effect != "read"
        assert result.ends == (tool.effect == "end" and not result.error)
        return result

    assert not call(new_world(), GOOD[name]).error

    values = st.sampled_from([*pieces, *contacts]) | json_values
    bent = st.dictionaries(st.sampled_from(list(GOOD[name])), values, max_size=2).map(
        lambda d: GOOD[name] | d
    )

    @given(st.lists(bent | st.dictionaries(st.sampled_from(NAMES), values, max_size=4), max_size=4))
    @settings(max_examples=25, deadline=None)
    def calls(program):
        world = new_world()
        for arguments in program:
            call(world, arguments)

    calls()
    assert FULL.base.recompute_sum() == FULL.base.digest_sum()


def test_the_tools_of_the_desk_refuse_what_makes_no_sense():
    world = World(FULL, FULL.tasks("train")[0])
    card, title, free, fine = CARD, LOAN, FREE, FINE
    row = DB.get("fines", fine)

    def call(name, **arguments):
        result = world.call("assistant", ToolCall(name, arguments))
        return result.content if result.error else json.loads(result.content)

    assert "no member has card 0000" in call("renew_loan", card="0000", title=title)
    assert "no loan" in call("renew_loan", card=card, title=free)
    due = world.db.get("loans", f"{card}/{title}")["renewals"]
    assert call("renew_loan", card=card, title=title)["due"] == "2026-03-23"
    assert world.db.get("loans", f"{card}/{title}")["renewals"] == due + 1
    assert call("reserve_title", card=card, title=free)["branch"] == "Central"
    assert "already has" in call("reserve_title", card=card, title=free)
    assert call("cancel_reservation", card=card, title=free) == {"cancelled": free}
    assert "no reservation" in call("cancel_reservation", card=card, title=free)
    other = next(c for c in DB.keys("members") if c != card)
    assert f"has no fine {fine}" in call("pay_fine", card=other, fine_id=fine)
    owed = world.db.get("members", row["card"])["fines_due"]
    assert call("pay_fine", card=row["card"], fine_id=fine) == {"paid": fine, "amount": row["amount"]}
    assert world.db.get("members", row["card"])["fines_due"] == owed - row["amount"]
    assert "already paid" in call("pay_fine", card=row["card"], fine_id=fine)
    assert "nothing to change" in call("update_contact", card=card, contact={"email": None})
    # the same outcome twice is not the same as once
    case = {"card": card, "request": "renew", "outcome": "refused", "reason": "limit"}
    call("record_case", **case)
    once = world.db.digest()
    call("record_case", **case)
    assert world.db.digest() != once
