"""Who speaks at the library without a language model: the agenda user and the expert.

The agenda user reads any agent's words; the expert knows only what has been said and what the tools
answered. Together they play the verified conversations of the cold start.

Invariant: the expert never reads the task. It learns the member's wishes from the user's turns (as
data, `AgendaUser.act`), so what it does could have been known from the conversation.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...agents import AgentStep
from ...chat import Message, ToolCall
from ...domain import Task, World
from ...trajectory import TokenTrace
from ...users import ASIDE, STOP, UserTurn
from ..script import ON_ASIDE
from .data import BRANCHES, MAX_FINES, MAX_RENEWALS, MAX_RESERVATIONS
from .tasks import HANDOVERS, wish

# ---------------------------------------------------------------- the user

_GREETINGS = {
    "brief": ("", "", "Hi. "),
    "polite": ("Good morning. ", "Hello there. ", "Excuse me. "),
    "hurry": ("Quick one: ", "In a hurry here. ", ""),
    "chatty": ("Hello! Lovely day. ", "Hi, me again! ", "Hello! "),
}
_ASK = (
    "I want to {wish}.",
    "Please {wish}.",
    "I would like to {wish}.",
    "Can you {wish}?",
    "Could you please {wish}?",
)
_ASK_FIRST_PERSON = ("I want to {wish}.", "I would like to {wish}.", "I need to {wish}.")
_VAGUE = {
    "renew": ("I want to renew a book.", "Can you renew a loan for me?", "A renewal, please."),
    "reserve": ("I want to reserve a book.", "Can you reserve something for me?", "A reservation, please."),
}
_CARD = ("My card is {card}.", "Card {card}.", "My card number is {card}.")
_CARD_AGAIN = ("Sorry, it is {card}.", "Oh, my mistake: {card}.", "I misread it. It is {card}.")
_CARD_INSIST = ("It is {card}, I am sure.", "No, it really is {card}.")
_NAME = (
    "I have no card with me. I am {name}, postcode {postcode}.",
    "My name is {name}, postcode {postcode}.",
)
_TITLE = ('"{title}".', 'It is "{title}".', 'The title is "{title}".')
_YES = ("Yes.", "Yes, please.", "Yes, go ahead.", "Please do.", "Sure.")
_SWITCH = (
    'Actually, make it "{title}" instead.',
    'Wait, make it "{title}".',
    'No, sorry, make it "{title}" instead.',
    'Hmm, please make it "{title}".',
)
_WITHDRAW = (
    "Actually no, leave it.",
    "I changed my mind, do not do it.",
    "No, forget it.",
    "On second thought, no.",
)
_CORRECT = ("No. I want to {wish}.", "That is not it. I want to {wish}.")
_NEXT = ("Yes. I also want to {wish}.", "One more thing: I want to {wish}.", "I would also like to {wish}.")
_BYE = ("No, thanks.", "That is all.", "No, bye.", "Thanks, bye.")

# What `heard` looks for, in one lower-case sentence at a time. `_ASKS` marks a request that is no question.
_ASKS = re.compile(
    r"\b(please|kindly|(can|could|would) you|(may|can|could) i|let me know|need|require|what is|what's)\b|"
    r"^\W*(provide|give|tell|share|enter|send|state)\b"
)
_CONFIRM = re.compile(
    r"shall i|should i|may i|can i go|go ahead|proceed|do you want me|would you like me|do you confirm|"
    r"please confirm|(can|could|would) you (please )?confirm|to confirm|"
    r"is (that|this|it|everything) (right|correct|ok|okay|fine)|do you agree|did you mean|"
    r"\b(ok|okay|right|correct)\?|do (it|this|that) for you\?"
)
_CONFIRM_UNASKED = re.compile(
    r"please confirm|\(yes ?/ ?no\)|\b(reply|answer|respond|say|type|write)\b.*\byes\b|"
    r"please .*\bto confirm\b|\bneed your (confirmation|approval|permission|ok)\b|"
    r"please let me know .*\bproceed|"
    r"\blet me know (if|whether) (that|this|i should|you(?:'d| would)? (like|want|agree|confirm))"
)
_IDENTITY = re.compile(
    r"\bcards?\b|postcode|your (full )?name|who (you are|am i)|identify|membership number|"
    r"\b(right|correct|valid|(check|what is|what's) the) number"
)
_WHO = re.compile(
    r"\b(have|get|need|require|provide|tell|give|share|send|enter|state|verify|check|confirm|know|what is|"
    r"what's) (me |us |with |(one of )?the following:[\W\d]*)*(your|the) (\w+ ){0,3}?"
    r"(cards?\b|postcode|full name|name and|identity|membership number)|"
    r"your (\w+ )?card( number)?,? please|identify yourself|who (you are|am i)"
)
_WHICH = re.compile(r"\bwhich\b|\bwhat\b.*\b(title|book|renew|reserve)|\btitle\b|name of the (book|title)")
_WHICH_UNASKED = re.compile(
    r"\b(tell|give|provide|share|specify|state|need|know)\b.*\b(title\b|which (book|one)|name of the book)"
)
_BRANCH = re.compile(r"\bbranch|where (would|do|should|will|shall)\b.*\b(collect|pick)|pick-?up location")
_MORE = re.compile(
    r"(anything|something|what|how) else|else i can|anything (more|other|further)|more i can|any other|"
    r"other (questions?|requests?)|further (help|assist|question|request)|(help|assist)\w*( you)? further"
)
_OFFER_OF_HELP = re.compile(r"what can i do|how (can|may) i (help|assist)|how can i be of")
_WAIT = re.compile(
    r"one moment|let me (check|look|see|verify|find|pull)|just a (moment|second|minute)|please wait|hold on|"
    r"bear with me|give me a (moment|second|minute)|i(?:'ll| will) (now )?(check|look)\b"
)
_VERBS = {
    "renew": re.compile(r"\brenew"),
    "reserve": re.compile(r"\breserve\b|place a (reservation|hold)"),
    "cancel": re.compile(r"\bcancel"),
}
_SENTENCE = re.compile(r"(?<=[.?!])\s+|(?<=[.?!][\"')])\s+|\n+(?!\s*(?:-|\d+\.) )")
_QUOTES = str.maketrans({c: '"' for c in "“”„«»"} | {"’": "'", "‘": "'"})


def plain(text: str) -> str:
    """An agent's words in lower case, with plain quotation marks (for bold type, too) and no other marks."""
    text = re.sub(r"\*\*([^*\n]+ [^*\n]*[^*:\n])\*\*", r'"\1"', text.translate(_QUOTES))
    return re.sub(r"[*`#]|__", "", text.replace('""', '"')).lower()


def heard(text: str) -> tuple[str, str]:
    """What an agent's words ask of the user, and the sentence that does it.

    One of `confirm` (may I do this?), `identity`, `branch`, `title`, `question` (some other one), `wait`,
    and `done`: nothing is asked, or only whether there is anything else.
    """
    sentences = [s for s in _SENTENCE.split(plain(text)) if s.strip()]

    def find(asked: re.Pattern[str], unasked: re.Pattern[str] | None = None, but: str = "(?!)") -> str:
        """The first sentence that asks for it, as a question or (`unasked`) as a request."""
        for s in sentences:
            pattern = asked if "?" in s else unasked
            if pattern and pattern.search(s) and s != who and not _MORE.search(s) and not re.search(but, s):
                return s
        return ""

    # "May I have your card?" asks for the card, "Shall I charge the card?" for permission.
    who = next((s for s in sentences if _ASKS.search(s) and _WHO.search(s) and not _WAIT.search(s)), "")
    offer = find(_CONFIRM, _CONFIRM_UNASKED)
    if offer:
        return "confirm", offer
    who = who or find(_IDENTITY, but="would you like|do you want")
    if who:
        return "identity", who
    for meaning, asked, unasked in (("branch", _BRANCH, None), ("title", _WHICH, _WHICH_UNASKED)):
        sentence = find(asked, unasked)
        if sentence:
            return meaning, sentence
    question = next((s for s in sentences if "?" in s), "")
    if not question and any(_WAIT.search(s) for s in sentences):
        return "wait", ""
    if any(_MORE.search(s) for s in sentences):
        return "done", ""
    question = question or next((s for s in sentences if _OFFER_OF_HELP.search(s)), "")
    return ("question", question) if question else ("done", "")


class AgendaUser:
    """A program with the interface of a language-model user. It follows the task's agenda and reads the
    agent's words by keywords; it sees nothing else."""

    name = "agenda"

    def __init__(self, task: Task, seed: int):
        self.rng = random.Random(f"{task.id}-{seed}")
        self.facts = dict(task.scenario.facts)
        agenda = task.scenario.agenda
        self.identify = agenda["identify"]
        self.requests: list[dict[str, Any]] = [dict(r) for r in agenda["requests"]]
        persona = task.scenario.persona
        self.style = next((s for s in _GREETINGS if s in persona), "brief")
        self.position = 0
        self.twist = self.requests[0].get("twist")
        self.patience = 4
        self.times_identified = 0
        self.opened = False
        self.act: dict[str, Any] = {}
        """What the last turn meant, as data; the expert reads it instead of the words."""

    @property
    def request(self) -> dict[str, Any]:
        return self.requests[self.position]

    async def reply(self, view: Sequence[Message]) -> UserTurn:
        said = [m for m in view if m.role == "assistant"]
        if said and not self.opened:
            self._take_over(next((m.content for m in view if m.role == "user"), ""))
        self.opened = True
        text = self._answer(said[-1].content) if said else self._open()
        return UserTurn(text, stop=STOP in text)

    def _pick(self, phrases: Sequence[str], **values: Any) -> str:
        return self.rng.choice(phrases).format(**values)

    def _wish_text(self) -> str:
        # What people ask for themselves sounds odd as a request to the agent.
        plain = self.request["intent"] in HANDOVERS or "words" in self.request
        return self._pick(_ASK_FIRST_PERSON if plain else _ASK, wish=_first_person(wish(self.request)))

    def _open(self) -> str:
        request = self.request
        vague = bool(request.get("late_title"))
        self.act = {"do": "request", "request": _visible(request, without_title=vague)}
        ask = self._pick(_VAGUE[request["intent"]]) if vague else self._wish_text()
        greeting = self.rng.choice(_GREETINGS[self.style])
        if not self.identify["volunteer"]:
            return greeting + ask
        who = self._identity()
        return greeting + (f"{ask} {who}" if self.rng.random() < 0.7 else f"{who} {ask}")

    def _take_over(self, opening: str) -> None:
        """Goes on after an opening that was frozen: what it told is told already, a wrong card included."""
        known = (self.identify["wrong"], self.facts.get("card"), self.facts.get("name"))
        self.times_identified = int(any(fact and fact in opening for fact in known))

    def _identity(self) -> str:
        self.times_identified += 1
        if self.identify["by"] == "name":
            self.act = {
                "do": "identify",
                **self.act,
                "name": self.facts["name"],
                "postcode": self.facts["postcode"],
            }
            return self._pick(_NAME, **self.facts)
        wrong = self.identify["wrong"]
        if wrong and self.times_identified == 1:
            self.act = {"do": "identify", **self.act, "card": wrong}
            return self._pick(_CARD, card=wrong)
        card = self.facts["card"]
        self.act = {"do": "identify", **self.act, "card": card}
        if self.times_identified == 1:
            return self._pick(_CARD, card=card)
        return self._pick(_CARD_AGAIN if wrong else _CARD_INSIST, card=card)

    def _answer(self, text: str) -> str:
        meaning, sentence = heard(text)
        self.act = {}
        if meaning == "wait":
            return self._lose_patience("OK.")
        if meaning == "identity":
            return self._identity() if self.times_identified < 3 else self._stop()
        if meaning == "confirm":
            return self._confirm(plain(text), sentence)
        if meaning == "branch" and self.request["intent"] == "reserve":
            branch = self.request.get("branch", BRANCHES[0])
            self.act = {"do": "branch", "branch": branch}
            return self._lose_patience(f"{branch}, please.")
        # Who remembers one word of a title cannot name it.
        if meaning == "title" and "title" in self.request and "words" not in self.request:
            self.act = {"do": "title", "title": self.request["title"]}
            return self._pick(_TITLE, title=self.request["title"])
        if meaning != "done":
            self.act = {"do": "request", "request": _visible(self.request)}
            return self._lose_patience(self._wish_text())
        return self._go_on()

    def _agrees(self, low: str, sentence: str) -> bool:
        """Whether what is proposed is what the user wants, as far as keywords tell."""
        title, branch = self.request.get("title", "").lower(), self.request.get("branch", BRANCHES[0])
        for words in (sentence, low):
            quoted = [q for q in re.findall(r'"([^"]+)"', words) if q not in ("yes", "no")]
            if title and quoted and title not in words:
                return False
            if quoted:
                break
        intent = self.request["intent"]
        verbs = sorted((hit.start(), verb) for verb, p in _VERBS.items() if (hit := p.search(sentence)))
        if verbs and intent in _VERBS and verbs[0][1] != intent:
            return False
        other = any(b.lower() in low for b in BRANCHES if b != branch)
        return not (intent == "reserve" and other and branch.lower() not in low)

    def _confirm(self, low: str, sentence: str) -> str:
        if not self._agrees(low, sentence):
            self.act = {"do": "request", "request": _visible(self.request)}
            return self._lose_patience(self._pick(_CORRECT, wish=_first_person(wish(self.request))))
        twist, self.twist = self.twist, None
        if twist and twist["do"] == "switch":
            self.requests[self.position] = {**self.request, "title": twist["title"]}
            self.act = {"do": "switch", "title": twist["title"]}
            return self._pick(_SWITCH, title=twist["title"])
        if twist:
            self.act = {"do": "withdraw"}
            return self._pick(_WITHDRAW)
        self.act = {"do": "yes"}
        return self._pick(_YES)

    def _go_on(self) -> str:
        """The agent has dealt with the request, one way or another: the next one, or goodbye."""
        if self.position + 1 < len(self.requests):
            self.position += 1
            self.twist = self.request.get("twist")
            self.act = {"do": "request", "request": _visible(self.request)}
            return self._pick(_NEXT, wish=_first_person(wish(self.request)))
        return self._stop()

    def _lose_patience(self, text: str) -> str:
        self.patience -= 1
        return text if self.patience > 0 else self._stop()

    def _stop(self) -> str:
        self.act = {"do": "stop"}
        return f"{self._pick(_BYE)} {STOP}"


def _first_person(text: str) -> str:
    """`wish` speaks to the user model in the second person; users speak of themselves."""
    text = re.sub(r"\byou only remember\b", "I only remember", text)
    text = re.sub(r"\bas you got\b", "as I got", text)
    text = re.sub(r"\bthat you think\b", "that I think", text)
    return re.sub(r"\byour\b", "my", text)


def _visible(request: Mapping[str, Any], without_title: bool = False) -> dict[str, Any]:
    """The part of a request that the words give away."""
    hidden = {"twist", "late_title"}
    if without_title or "words" in request:
        hidden.add("title")
    return {k: v for k, v in request.items() if k not in hidden}


# ---------------------------------------------------------------- the expert


@dataclass(frozen=True)
class _Say:
    text: str


@dataclass(frozen=True)
class _Call:
    name: str
    arguments: dict[str, Any]


Script = Generator[_Say | _Call, Any, None]
"""Yields what the expert does; a call is sent its answer (parsed; None after an error), words are sent
the user's act."""

_ASK_CARD = ("What is your card number?", "May I have your card number?", "Your card number, please?")
_ASK_TITLE = ("Which title is it?", "Which title, please?", "What is the title?")
_NOT_FOUND = (
    "I cannot find that card. What is the right number?",
    "That card is not known. Could you check your card number?",
)
_PROPOSE = {
    "renew": (
        'Shall I renew "{title}"?',
        'I can renew "{title}". Shall I?',
        'Renew "{title}", shall I go ahead?',
    ),
    "reserve": (
        'Shall I reserve "{title}"?',
        'I can reserve "{title}". Shall I?',
        'Reserve "{title}", shall I go ahead?',
    ),
    "reserve_at": ('Shall I reserve "{title}" for collection at {branch}?',),
    "cancel": ('Shall I cancel your reservation of "{title}"?', 'Cancel "{title}", shall I go ahead?'),
    "pay": ("You owe {amount:.2f} in {count} fine(s). Shall I charge the card on file?",),
    "contact": ("I will change your {what} to {value}. Shall I go ahead?",),
}
_DONE = {
    "renew": ("Renewed.", "It is renewed.", "Done, renewed for 21 days."),
    "reserve": ("Reserved.", "It is reserved.", "Done, reserved."),
    "cancel": ("Cancelled.", "The reservation is cancelled."),
    "pay": ("Paid, thank you.", "The fines are paid."),
    "contact": ("Your data is updated.", "Changed."),
}
_REFUSED = {
    "fines": ("Sorry, you owe too much in fines.", "I cannot do that while your fines are unpaid."),
    "expired": ("Sorry, your membership has expired.", "I cannot do that, your card has expired."),
    "limit": ("Sorry, the limit is reached.", "I cannot do that, you are at the limit."),
    "waiting": ("Sorry, another member is waiting for it.", "I cannot renew it, somebody is waiting."),
    "reference": ("Sorry, that title is for reference only.",),
}
_WITHDRAWN = ("All right, nothing changed.", "Fine, I leave it.")
_MORE_PHRASES = ("Anything else?", "Anything else I can do?", "Something else?")


class Expert:
    """The expert program as an agent. `user` must be the agenda user of the same episode.

    A `hasty` one does not ask before it writes. Where the member wanted just that, the end state is right
    all the same.
    """

    def __init__(self, world: World, user: AgendaUser, seed: int = 0, *, hasty: bool = False):
        self.world = world
        self.user = user
        self.hasty = hasty
        self.rng = random.Random(f"expert-{world.task.id}-{seed}")
        self.trace: TokenTrace | None = None
        self.script = self._serve_all()
        self.started = False
        self.said = ""
        self.request: dict[str, Any] | None = None
        self.identity: dict[str, str] | None = None
        self.member: dict[str, Any] | None = None

    def close(self) -> None:
        self.script.close()

    async def step(self, messages: Sequence[Message]) -> AgentStep:
        last = messages[-1]
        if last.role == "user" and self.user.act.get("do") == ASIDE:
            words = self._pick(ON_ASIDE[self.user.act["asks"]])
            return AgentStep(Message("assistant", f"{words} {self.said}"))
        if last.role == "user":
            self._hear(self.user.act)
            answer: Any = self.user.act
        else:
            answer = None if last.error else json.loads(last.content)
        move = self.script.send(answer if self.started else None)
        self.started = True
        if isinstance(move, _Say):
            self.said = move.text
            return AgentStep(Message("assistant", move.text))
        return AgentStep(Message("assistant", tool_calls=(ToolCall(move.name, move.arguments),)))

    def _hear(self, act: Mapping[str, Any]) -> None:
        """Takes in what a user's turn told."""
        if "card" in act:
            self.identity = {"card": act["card"]}
        elif "name" in act:
            self.identity = {"name": act["name"], "postcode": act["postcode"]}
        if "request" in act:
            self.request = dict(act["request"])
        elif act.get("do") in ("title", "switch") and self.request is not None:
            self.request["title"] = act["title"]

    def _pick(self, phrases: Sequence[str], **values: Any) -> str:
        return self.rng.choice(phrases).format(**values)

    def _serve_all(self) -> Script:
        failures = 0
        while True:
            request = self.request
            if request is None:
                yield _Say("What can I do for you?")
                continue
            if request["intent"] in HANDOVERS:
                yield _Call("transfer_to_human", {"reason": request["intent"]})
                return
            if self.identity is None:
                yield _Say(self._pick(_ASK_CARD))
                continue
            if self.member is None:
                by = "card" if "card" in self.identity else "name"
                self.member = yield _Call(f"find_member_by_{by}", dict(self.identity))
                if self.member is None:
                    failures += 1
                    if failures == 2:
                        yield _Call("transfer_to_human", {"reason": "not_identified"})
                        return
                    yield _Say(self._pick(_NOT_FOUND))
                    continue
            if "words" in request and "title" not in request:
                hits = yield _Call("search_titles", {"words": request["words"]})
                request["title"] = hits[0]["title"]
            if request["intent"] in ("renew", "reserve", "cancel") and "title" not in request:
                if request["intent"] == "renew" and "list_loans" in self.world.tools():
                    loans = yield _Call("list_loans", {"card": self.member["card"]})
                    if len(loans) == 1:
                        request["title"] = loans[0]["title"]
                        continue
                yield _Say(self._pick(_ASK_TITLE))
                continue
            ended = yield from self._serve()
            if ended is None:
                return
            self.request = None
            yield _Say(f"{ended} {self._pick(_MORE_PHRASES)}")

    def _serve(self) -> Generator[_Say | _Call, Any, str | None]:
        """Deals with one request up to its end; returns what to say then, None after a handover."""
        assert self.member is not None
        card = self.member["card"]
        fines: list[dict[str, Any]] = []
        while True:
            request = self.request
            assert request is not None
            intent = request["intent"]
            reason = yield from self._refusal(card, request)
            if reason:
                yield _Call(
                    "record_case", {"card": card, "request": intent, "outcome": "refused", "reason": reason}
                )
                return self._pick(_REFUSED[reason])
            if intent == "pay":
                fines = yield _Call("list_fines", {"card": card})
                if any(f["reason"] == "damage" for f in fines):
                    yield _Call("transfer_to_human", {"reason": "damage_fine"})
                    return None
            if intent == "contact" and "get_contact" in self.world.tools():
                yield _Call("get_contact", {"card": card})  # what it is now
            act = {"do": "yes"} if self.hasty else (yield _Say(self._proposal(request, fines)))
            if act.get("do") == "yes":
                yield from self._grant(card, request, fines)
                return self._pick(_DONE[intent])
            if act.get("do") == "withdraw":
                yield _Call(
                    "record_case",
                    {"card": card, "request": intent, "outcome": "withdrawn", "reason": "changed_mind"},
                )
                return self._pick(_WITHDRAWN)

    def _refusal(self, card: str, request: Mapping[str, Any]) -> Generator[_Call, Any, str | None]:
        """Looks up what decides, in the policy's order; with the small profile only what it has tools for."""
        assert self.member is not None
        intent = request["intent"]
        if intent not in ("renew", "reserve"):
            return None
        if self.member["status"] == "expired":
            return "expired"
        if self.member["fines_due"] > MAX_FINES:
            return "fines"
        if intent == "renew":
            loan = yield _Call("check_loan", {"card": card, "title": request["title"]})
            if loan["renewals"] >= MAX_RENEWALS:
                return "limit"
            return "waiting" if loan["waiting"] else None
        tools = self.world.tools()
        if "check_title" in tools:
            entry = yield _Call("check_title", {"title": request["title"]})
            if entry["reference_only"]:
                return "reference"
        if "list_reservations" in tools:
            mine = yield _Call("list_reservations", {"card": card})
            if len(mine) >= MAX_RESERVATIONS:
                return "limit"
        return None

    def _proposal(self, request: Mapping[str, Any], fines: Sequence[Mapping[str, Any]]) -> str:
        intent = request["intent"]
        if intent == "pay":
            return self._pick(_PROPOSE["pay"], amount=sum(f["amount"] for f in fines), count=len(fines))
        if intent == "contact":
            what, value = next(iter(request["contact"].items()))
            if what == "address":
                value = f"{value['street']}, {value['city']}, {value['postcode']}"
            return self._pick(_PROPOSE["contact"], what="e-mail" if what == "email" else what, value=value)
        if "branch" in request:
            return self._pick(_PROPOSE["reserve_at"], **request)
        return self._pick(_PROPOSE[intent], title=request["title"])

    def _grant(
        self, card: str, request: Mapping[str, Any], fines: Sequence[Mapping[str, Any]]
    ) -> Generator[_Call, Any, None]:
        intent = request["intent"]
        if intent == "pay":
            for fine in fines:
                yield _Call("pay_fine", {"card": card, "fine_id": fine["fine_id"]})
            self.member = None  # what was looked up before the payment is stale now
        elif intent == "contact":
            yield _Call("update_contact", {"card": card, "contact": request["contact"]})
        elif intent == "reserve":
            branch = {"branch": request["branch"]} if "branch" in request else {}
            yield _Call("reserve_title", {"card": card, "title": request["title"], **branch})
        else:
            name = {"renew": "renew_loan", "cancel": "cancel_reservation"}[intent]
            yield _Call(name, {"card": card, "title": request["title"]})
