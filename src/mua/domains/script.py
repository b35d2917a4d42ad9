"""Who speaks when a task is played without a language model: a scripted user and an expert, for any domain.

The scripted user follows the agenda of its task and reads the agent's words by keywords; it is made to be
served by an expert of the same domain (cold-start conversations, proof that a task can be solved), and is a
plain stand-in for a language-model user elsewhere. A subclass of each, with the domain's topics and
policy, is all that a domain writes.

An agenda is data: `who` the person is ({"say", "data"}, and the same as "wrong" when it gives that first, by
mistake), and `requests` in their order:

    {"say": "cancel my order #W1", "data": {"do": "cancel", "order": "#W1"},
     "must": ["#W1"],                      what a proposal has to name before the person agrees to it
     "later": {"reason": {"say", "data"}}, what it tells when it is asked about that topic
     "change": {another request},          what it wants instead, once it is asked to confirm
     "withdraw": true,                     that it wants nothing, once it is asked to confirm
     "insist": true}                       that it asks for an exception, once, when it is refused

Invariant: an expert never reads the task. It learns what is wanted from the user's turns (as data,
`ScriptUser.act`, which says no more than the words do) and all else from its tools.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from ..agents import AgentStep
from ..chat import Message, ToolCall
from ..domain import Task, World
from ..trajectory import TokenTrace
from ..users import ASIDE, STOP, UserTurn

T = TypeVar("T")

_YES = ("Yes, please.", "Yes, go ahead.", "Yes, that is right.", "Yes, I confirm.")
_OPEN = ("Hi, I want to {want}.", "Hello! I would like to {want}.", "Hi there. I want to {want}, please.")
_NEXT = ("Yes. I also want to {want}.", "There is: I want to {want}.", "Yes, I would also like to {want}.")
_INSTEAD = ("All right. Then I want to {want}.", "I see. In that case I would like to {want}.")
_CHANGE = ("Wait, I changed my mind. I would rather {want}.", "Actually no: I would rather {want}.")
_WITHDRAW = (
    "Actually no, leave it.",
    "On second thought, no. Forget it.",
    "No, I changed my mind, do not do it.",
)
_INSIST = (
    "That cannot be right. Please make an exception.",
    "Please, just this once. I really need it.",
    "I do not accept that. Do it anyway.",
)
_BYE = ("No, that is all. Thank you.", "No, thanks, that was it.", "That is everything, bye.")

_CONFIRM = re.compile(r"\(yes/no\)|do you confirm|shall i (go ahead|proceed)|please confirm", re.I)
_MORE = re.compile(r"anything else|what else|something else", re.I)
_HANDED_OVER = re.compile(r"transferred to a human|please hold on", re.I)


def pick(rng: random.Random, things: Sequence[T]) -> T:
    """One of them."""
    return things[rng.randrange(len(things))]


class ScriptUser:
    """Plays the person of a task by its agenda."""

    name = "agenda"
    topics: ClassVar[Mapping[str, re.Pattern[str]]] = {}
    """What a question is about; `who` asks for the person. The first that fits and of which the person has
    something to say counts."""
    handed_over: ClassVar[str] = STOP
    """What the person says when it hears that it is handed over."""

    def __init__(self, task: Task, seed: int = 0):
        self.rng = random.Random(f"{task.id}-{seed}")
        agenda = task.scenario.agenda
        self.who: Mapping[str, Any] = agenda["who"]
        self.requests: list[Mapping[str, Any]] = list(agenda["requests"])
        self.position = 0
        self.request: Mapping[str, Any] = self.requests[0]
        self.patience = 6
        self.act: dict[str, Any] = {}
        """What the last turn meant, as data; the expert reads it instead of the words."""

    async def reply(self, view: Sequence[Message]) -> UserTurn:
        """The next turn; opens the conversation when it has not spoken yet."""
        self.act = {}
        spoke = any(m.role == "user" for m in view)
        said = [m.content for m in view if m.role == "assistant"]
        wrong = self.who.get("wrong")
        if wrong and any(_sentence(wrong["say"]) in m.content for m in view if m.role == "user"):
            self.who = {k: v for k, v in self.who.items() if k != "wrong"}
        if not spoke or not said:
            return self._words(self._open())
        return self._words(self._answer(said[-1]))

    def _words(self, text: str) -> UserTurn:
        return UserTurn(text, stop=STOP in text or text == self.handed_over)

    def _open(self) -> str:
        self.act = {"do": "request", "request": dict(self.request["data"])}
        text = pick(self.rng, _OPEN).format(want=self.request["say"])
        if self.rng.random() < 0.3:
            text += f" {self._tell_who(self.act)}"
        return text

    def _tell_who(self, act: dict[str, Any]) -> str:
        """Says who it is; `act` is told too."""
        who = self.who.get("wrong", self.who)
        act["who"] = dict(who["data"])
        return _sentence(who["say"])

    def _answer(self, text: str) -> str:
        if _HANDED_OVER.search(text):
            self.act = {"do": "stop"}
            return self.handed_over
        if _CONFIRM.search(text):
            return self._confirm(text)
        if _MORE.search(text):
            return self._go_on(refused="sorry" in text.lower())
        question = next((s for s in reversed(re.split(r"(?<=[.?!])\s+", text)) if "?" in s), text)
        later = self.request.get("later", {})
        for topic, pattern in self.topics.items():
            if not pattern.search(question):
                continue
            if topic == "who":
                self.act = {"do": "who"}
                return self._tell_who(self.act)
            if topic in later:
                self.act = {"do": "tell", "tell": dict(later[topic]["data"])}
                return _sentence(later[topic]["say"])
        return self._again()

    def _again(self) -> str:
        """Nothing that was understood: says what is wanted, and gives up after some time."""
        self.patience -= 1
        if self.patience < 0:
            return self._stop()
        self.act = {"do": "request", "request": dict(self.request["data"])}
        return f"I want to {self.request['say']}."

    def _confirm(self, text: str) -> str:
        missing = [m for m in self.request["must"] if m.lower() not in text.lower()]
        if missing:
            return self._again()
        if "change" in self.request:
            self.request = self.request["change"]
            self.act = {"do": "change", "request": dict(self.request["data"])}
            return pick(self.rng, _CHANGE).format(want=self.request["say"])
        if self.request.get("withdraw"):
            self.act = {"do": "withdraw"}
            return pick(self.rng, _WITHDRAW)
        self.act = {"do": "yes"}
        return pick(self.rng, _YES)

    def _go_on(self, refused: bool) -> str:
        if refused and self.request.get("insist"):
            self.request = {**self.request, "insist": False}
            self.act = {"do": "insist"}
            return pick(self.rng, _INSIST)
        if self.position + 1 == len(self.requests):
            return self._stop()
        self.position += 1
        self.request = self.requests[self.position]
        self.act = {"do": "request", "request": dict(self.request["data"])}
        return pick(self.rng, _INSTEAD if refused else _NEXT).format(want=self.request["say"])

    def _stop(self) -> str:
        self.act = {"do": "stop"}
        return f"{pick(self.rng, _BYE)} {STOP}"


def _sentence(text: str) -> str:
    text = text[0].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


# ---------------------------------------------------------------- the expert


@dataclass(frozen=True)
class Say:
    text: str


@dataclass(frozen=True)
class Call:
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Refused:
    """The answer to a call that failed."""

    text: str


Script = Generator[Say | Call, Any, Any]
"""Yields what the expert does. A call is sent its answer (parsed JSON, or text, or `Refused`); words are
sent the user's act."""

ON_ASIDE: Mapping[str, Sequence[str]] = {
    "meaning": ("Let me say it again.", "Of course, once more."),
    "exception": ("I have to keep to the rules.", "That I cannot do, the rules are the same for all."),
    "time": ("Of course, take your time.", "There is no hurry."),
}
"""What an expert says to an aside of the person (`act["asks"]`), before it repeats its last words."""

AGAIN = "again"
"""Stands where an expert's words at the end of a request would, when the request is another one now."""
MORE = ("Is there anything else I can help you with?", "Is there anything else I can do for you?")
_CONFIRMATIONS = ("Do you confirm (yes/no)?", "Shall I go ahead (yes/no)?")
_WITHDRAWN = ("All right, I leave everything as it is.", "Fine, nothing is changed.")
_SORRY = ("I am sorry, but", "Sorry, but", "I am afraid, and sorry, that")


class Expert:
    """An expert program as an agent; the subclasses know the policies. `user` plays in the same episode."""

    def __init__(self, world: World, user: ScriptUser, seed: int = 0):
        self.user = user
        self.rng = random.Random(f"expert-{world.task.id}-{seed}")
        self.trace: TokenTrace | None = None
        self.who: dict[str, Any] = {}
        self.request: dict[str, Any] | None = None
        self.withdrawn = False
        """The person wants nothing of what was proposed last."""
        self._script: Script = self.serve()
        self._started = False
        self._said = ""

    def close(self) -> None:
        self._script.close()

    async def step(self, messages: Sequence[Message]) -> AgentStep:
        """The next move of the script, given the answer to the last one."""
        last = messages[-1]
        answer: Any = self.user.act
        if last.role == "user":
            if answer.get("do") == ASIDE:
                words = pick(self.rng, ON_ASIDE[answer["asks"]])
                return AgentStep(Message("assistant", f"{words} {self._said}"))
            self._hear(answer)
        else:
            answer = Refused(last.content) if last.error else parsed(last.content)
        move = self._script.send(answer if self._started else None)
        self._started = True
        if isinstance(move, Say):
            self._said = move.text
            return AgentStep(Message("assistant", move.text))
        return AgentStep(Message("assistant", tool_calls=(ToolCall(move.name, move.arguments),)))

    def _hear(self, act: Mapping[str, Any]) -> None:
        self.who.update(act.get("who", {}))
        if "request" in act:
            self.request = dict(act["request"])
        if self.request is not None:
            self.request.update(act.get("tell", {}))

    # ------------------------------------------------------------ for the subclasses

    def serve(self) -> Script:
        """The whole conversation."""
        yield from self.identify()
        while True:
            if self.request is None:
                yield Say("What can I do for you?")
                continue
            ended = yield from self.handle()
            if ended is None:
                return
            self.request = None
            act = yield Say(f"{ended} {pick(self.rng, MORE)}")
            while act.get("do") == "insist":  # the answer stays the same, and is not recorded again
                act = yield Say(f"{ended} {pick(self.rng, MORE)}")

    def identify(self) -> Script:
        """Finds out who the person is; here that is known, or nobody's business."""
        yield from ()

    def handle(self) -> Script:
        """Deals with one request; returns what to say at its end, None when the person was handed over."""
        while True:
            ended = yield from self.once()
            if ended != AGAIN:
                return ended

    def once(self) -> Script:
        """One look at the request as it stands; as `handle`, or AGAIN when the person changed its mind."""
        raise NotImplementedError

    def do(self, text: str, name: str, arguments: dict[str, Any], done: str) -> Script:
        """`settle` for one call, where nobody withdraws anything."""
        return (yield from self.settle(text, [Call(name, arguments)], done))

    def settle(self, text: str, calls: Sequence[Call], done: str, withdrawn: Call | None = None) -> Script:
        """Proposes writes and, on a yes, makes them; `withdrawn` records that the person then wants nothing
        any more. Returns what to say, or AGAIN."""
        if not (yield from self.propose(text)):
            return (yield from self.left(withdrawn))
        for one in calls:
            answer = yield one
            if isinstance(answer, Refused):
                return self.sorry(f"that did not work: {answer.text}")
        return done

    def left(self, withdrawn: Call | None) -> Script:
        """What follows a proposal that was not agreed to: AGAIN, or the record that nothing is wanted."""
        if withdrawn is None or not self.withdrawn:
            return AGAIN
        yield withdrawn
        return pick(self.rng, _WITHDRAWN)

    def refuse(self, record: Call, why: str) -> Script:
        """Records a refusal, then tells it."""
        yield record
        return self.sorry(why)

    def propose(self, text: str) -> Generator[Say | Call, Any, bool]:
        """Lists what will be done and asks; true when the person agrees, else the request is another one, or
        withdrawn (`withdrawn` says so)."""
        act = yield Say(f"{text} {pick(self.rng, _CONFIRMATIONS)}")
        self.withdrawn = act.get("do") == "withdraw"
        return act.get("do") == "yes"

    def sorry(self, why: str) -> str:
        return f"{pick(self.rng, _SORRY)} {why}"


def parsed(content: str) -> Any:
    """A tool's answer: JSON where it is JSON, else the text."""
    try:
        return json.loads(content)
    except ValueError:
        return content
