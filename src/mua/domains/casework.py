"""Casework: domains in which every request of a person ends as a grant, a refusal or a handover.

Such a domain writes its policy once, as code: `Desk.decide` looks up, with the agent's own tools, what the
policy text asks to check, and comes to a decision. The expert (`Clerk`) follows it in the conversation, and
`gold` follows it on the bare database, which makes the gold calls of a task.

Invariant: expert and gold cannot disagree about the policy. That it is the policy of the text is held by
hand-written expectations in the domain's tests.

Where the person has tools of its own (dual control), a policy asks it for errands. In `gold` they run on the
same database; in the conversation the person does them, and tells the agent what it saw.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..database import Base, Database
from ..domain import Action, Change
from ..tools import ToolError, render_result, toolkit_tools
from .drawing import Draft
from .script import Call, Expert, Refused, Say, Script, parsed, pick

Json = Mapping[str, Any]


# ---------------------------------------------------------------- decisions


@dataclass(frozen=True)
class Need:
    """Something that the person has not told; whoever follows the policy sends it."""

    topic: str


@dataclass(frozen=True)
class Errand:
    """What the person has to do with a tool of its own; whoever follows the policy sends what it saw."""

    name: str
    arguments: dict[str, Any]
    please: str
    """What it is asked, after "Please"."""


@dataclass(frozen=True)
class Grant:
    """The call that does what was asked for, with the words that propose and report it."""

    name: str
    arguments: dict[str, Any]
    will: str
    """What will be done, after "I will": all that the person has to know before it agrees."""
    done: str
    """What has been done, as a sentence."""


@dataclass(frozen=True)
class Refuse:
    reason: str
    about: Mapping[str, str] = field(default_factory=dict)
    """What else `record_case` is told."""


@dataclass(frozen=True)
class HandOver:
    reason: str


@dataclass(frozen=True)
class Solved:
    """It is done, by errands of the person; that is recorded too."""

    reason: str
    done: str


Decision = Grant | Refuse | HandOver | Solved
Steps = Generator[Call | Need | Errand | Grant, Any, Decision]
"""Yields a call (is sent its answer, `Refused` when it fails), what it needs to know (is sent that), an
errand (is sent what the person saw), or a change on the way, which is asked for like one at the end."""


@dataclass(frozen=True)
class Desk:
    """What a domain is to this module."""

    toolkit: Callable[[Database], Any]
    person: str
    """The field of a found person that identifies it; also the argument of `record_case`."""
    finders: Mapping[str, str]
    """A key of what the person tells about itself → the tool that finds the person by all it told."""
    decide: Callable[[Json, Json], Steps]
    """The policy: (the person found, the request) → steps."""
    at_once: frozenset[str]
    """Requests that are handed over without a look, each for the reason of its own name."""
    own: type | None = None
    """The toolkit of the person, where it has one."""
    declines: Callable[[Json, str], bool] = lambda request, proposal: False
    """Whether the person turns down what is proposed, by a wish such as not to pay more than so much."""

    def finder(self, who: Json) -> Call:
        """The call that finds the person."""
        return Call(next(tool for key, tool in self.finders.items() if key in who), dict(who))

    def refusal(self, person: Json, request: Json, why: Refuse) -> Call:
        """The call that records a refusal."""
        return self._record(person, request, outcome="refused", reason=why.reason, **why.about)

    def withdrawal(self, person: Json, request: Json) -> Call:
        """The call that records that the person wants nothing any more."""
        return self._record(person, request, outcome="withdrawn", reason="changed_mind")

    def solution(self, person: Json, request: Json, decision: Solved) -> Call:
        """The call that records that errands of the person did it."""
        return self._record(person, request, outcome="solved", reason=decision.reason)

    def _record(self, person: Json, request: Json, **case: str) -> Call:
        about = {self.person: person[self.person], "request": request["do"]}
        return Call("record_case", about | case)


def gold(desk: Desk, base: Base, draft: Draft) -> list[Action]:
    """The calls that the policy makes of a draft, from its initial state on."""
    db = opened(base, draft.setup)
    kit = desk.toolkit(db)
    agenda = draft.scenario("").agenda
    actions: list[Action] = []

    def act(call: Call) -> None:
        answer = _run(kit, call)
        assert not isinstance(answer, Refused), (call, answer)
        actions.append(Action(call.name, call.arguments))

    def do(step: Grant | Errand) -> Any:
        if isinstance(step, Grant):
            return act(Call(step.name, step.arguments))
        assert desk.own is not None
        saw = _run(desk.own(db), Call(step.name, step.arguments))
        if toolkit_tools(desk.own)[step.name].effect != "read":
            actions.append(Action(step.name, step.arguments, "user"))
        return saw

    person: Any = None
    for request in agenda["requests"]:
        wish = request
        if wish["data"]["do"] in desk.at_once:
            act(Call("transfer_to_human", {"reason": wish["data"]["do"]}))
            return actions
        person = person or _run(kit, desk.finder(agenda["who"]["data"]))
        if isinstance(person, Refused):
            act(Call("transfer_to_human", {"reason": "not_identified"}))
            return actions
        decision = decision_on(desk, kit, person, wish, do)
        if isinstance(decision, Grant) and "change" in wish:
            wish = wish["change"]
            decision = decision_on(desk, kit, person, wish, do)
        if isinstance(decision, HandOver):
            act(Call("transfer_to_human", {"reason": decision.reason}))
            return actions
        if isinstance(decision, Refuse):
            act(desk.refusal(person, wish["data"], decision))
        elif isinstance(decision, Solved):
            act(desk.solution(person, wish["data"], decision))
        elif wish.get("withdraw") or desk.declines(wish, decision.will):
            act(desk.withdrawal(person, wish["data"]))
        else:
            act(Call(decision.name, decision.arguments))
    return actions


def opened(base: Base, setup: Sequence[Change]) -> Database:
    """The initial state of a task that sets these rows."""
    db = base.open()
    for change in setup:
        assert change.row is not None
        db.put(change.table, change.key, change.row)
    return db


def decision_on(
    desk: Desk, kit: Any, person: Json, wish: Json, do: Callable[[Grant | Errand], Any] | None = None
) -> Decision:
    """What the policy says to one request of an agenda; `kit` is the toolkit over the state it meets;
    `do` makes the changes and runs the errands that come before the decision."""
    steps = desk.decide(person, wish["data"])
    answer: Any = None
    while True:
        try:
            move = steps.send(answer)
        except StopIteration as end:
            return end.value
        if isinstance(move, Need):
            answer = wish["later"][move.topic]["data"][move.topic]
        elif isinstance(move, Call):
            answer = _run(kit, move)
        else:
            assert do is not None
            answer = do(move)


def _run(kit: Any, call: Call) -> Any:
    """A call without a world, answered as the agent would read it."""
    try:
        return parsed(render_result(getattr(kit, call.name)(**call.arguments)))
    except ToolError as exc:
        return Refused(str(exc))


# ---------------------------------------------------------------- the expert

_FRAMES = ("I will {}.", "I can do this for you: I will {}.", "Here is what I would do. I will {}.")
_PLEASE = ("Please", "Now please", "Could you do something for me? Please")
_NOT_FOUND = "I cannot find you by that."


class Clerk(Expert):
    """The expert of a desk."""

    desk: ClassVar[Desk]
    who_question: ClassVar[Sequence[str]]
    questions: ClassVar[Mapping[str, Sequence[str]]]
    """How to ask for what a policy needs, by topic."""
    why: ClassVar[Mapping[str, str]]
    """Reason of a refusal → how it is told, after "Sorry, but"; what else it is about stands in braces."""

    person: Json

    def identify(self) -> Script:
        """By what the person tells of itself; who is not found twice is handed over."""
        failures = 0
        while True:
            if self.request is not None and self.request["do"] in self.desk.at_once:
                return
            if not self.who:
                again = f"{_NOT_FOUND} " if failures else ""
                yield Say(again + pick(self.rng, self.who_question))
                continue
            found = yield self.desk.finder(self.who)
            if not isinstance(found, Refused):
                self.person = found
                return
            failures += 1
            self.who = {}
            if failures == 2:
                yield Call("transfer_to_human", {"reason": "not_identified"})

    def once(self) -> Script:
        """Looks, decides and, where it may be granted, asks; refusals are recorded before they are told."""
        wish = self.request
        assert wish is not None
        decision: Decision | None = HandOver(wish["do"])
        if wish["do"] not in self.desk.at_once:
            decision = yield from self._decide(wish)
        if isinstance(decision, HandOver):
            yield Call("transfer_to_human", {"reason": decision.reason})
            return None
        if isinstance(decision, Refuse):
            record = self.desk.refusal(self.person, wish, decision)
            return (yield from self.refuse(record, self.why[decision.reason].format(**decision.about)))
        if isinstance(decision, Solved):
            yield self.desk.solution(self.person, wish, decision)
            return decision.done
        withdrawn = self.desk.withdrawal(self.person, wish)
        if decision is not None:
            call = Call(decision.name, decision.arguments)
            return (yield from self.settle(self._will(decision), [call], decision.done, withdrawn))
        return (yield from self.left(withdrawn))

    def _will(self, grant: Grant) -> str:
        return pick(self.rng, _FRAMES).format(grant.will)

    def _granted(self, grant: Grant) -> Generator[Say | Call, Any, bool]:
        """Makes a change on the way, if the person agrees."""
        agreed = yield from self.propose(self._will(grant))
        if agreed:
            yield Call(grant.name, grant.arguments)
        return agreed

    def _decide(self, wish: Json) -> Generator[Say | Call, Any, Decision | None]:
        """The decision; None when the person did not agree to a change on the way."""
        steps = self.desk.decide(self.person, wish)
        answer: Any = None
        while True:
            try:
                move = steps.send(answer)
            except StopIteration as end:
                return end.value
            if isinstance(move, Call):
                answer = yield move
                continue
            if isinstance(move, Grant):
                if not (yield from self._granted(move)):
                    return None
                answer = None
                continue
            if isinstance(move, Errand):
                act: Json = {}
                while "saw" not in act:
                    act = yield Say(f"{pick(self.rng, _PLEASE)} {move.please}. What do you see?")
                answer = act["saw"]
                continue
            while move.topic not in (self.request or {}):
                yield Say(pick(self.rng, self.questions[move.topic]))
            answer = (self.request or {})[move.topic]
