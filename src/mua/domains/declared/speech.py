"""Who speaks in a declared domain without a language model.

The expert plays the gold calls of its task, unlike the experts of other domains, which decide by the policy:
a policy in words is no program. What keeps it honest is that it uses nothing that it could not have known:
it asks for a fact before it uses it, proposes a change before it makes it, and refuses to play a task (so
`mua domain check` finds it) in which a call needs what nobody said and no tool showed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...agents import AgentStep
from ...chat import Message
from ...domain import World
from ...errors import MuaError
from ..script import MORE, Call, Expert, Refused, Say, Script, ScriptUser, pick
from .spec import DomainSpec, TasksSpec, filled
from .tasks import details

_ASK = ("Could you tell me the {}?", "What is the {}?", "May I have the {}?")
_FRAMES = ("I will {}.", "I can do this for you: I will {}.")
_CONFIRM = ("Do you confirm (yes/no)?", "Shall I go ahead (yes/no)?")
_WITHDRAWN = ("All right, I leave everything as it is.", "Fine, nothing is changed.")


def user_of(tasks: TasksSpec) -> type[ScriptUser]:
    """The scripted user of a domain: it knows the names of its facts."""
    first = {next(iter(kind.facts)) for kind in tasks.kinds.values()}
    others = {name for kind in tasks.kinds.values() for name in list(kind.facts)[1:]}
    topics = {"who": "|".join(map(re.escape, sorted(first)))} | {name: re.escape(name) for name in others}
    return type(
        "Person", (ScriptUser,), {"topics": {k: re.compile(rf"\b(?:{v})\b", re.I) for k, v in topics.items()}}
    )


class GoldExpert(Expert):
    """Plays the gold calls of its task; see the module."""

    def __init__(self, world: World, user: Any, seed: int = 0):
        self.spec: DomainSpec = world.domain.spec  # type: ignore[attr-defined]
        self.task = world.task
        self._messages: Sequence[Message] = ()
        super().__init__(world, user, seed)

    async def step(self, messages: Sequence[Message]) -> AgentStep:
        """The next move."""
        self._messages = messages
        return await super().step(messages)

    def serve(self) -> Script:
        """The requests in their order."""
        for wish in self.task.scenario.agenda["requests"]:
            ended = yield from self._wish(wish)
            act = yield Say(f"{ended} {pick(self.rng, MORE)}")
            while act.get("do") == "insist":
                act = yield Say(f"{ended} {pick(self.rng, MORE)}")

    def _wish(self, wish: Mapping[str, Any]) -> Script:
        """Makes the calls of a request; what to say at its end."""
        for name, arguments in wish["calls"]:
            yield from self._learn(name, arguments)
            spec = self.spec.tools[name]
            if spec.writes and not spec.record:
                agreed = yield from self.propose(self._proposal(name, arguments))
                while not agreed and not self.withdrawn and self.user.act.get("do") != "change":
                    agreed = yield from self.propose(self._proposal(name, arguments))
                if not agreed:
                    return (yield from self._instead(wish))
            answer = yield Call(name, dict(arguments))
            if isinstance(answer, Refused):
                raise MuaError(f"{name} was refused: {answer.text}")
        done = [(self.spec.tools[name], arguments) for name, arguments in wish["calls"]]
        spec, arguments = next(((s, a) for s, a in reversed(done) if s.writes), done[-1])
        if spec.done:
            codes = {k: str(v).replace("_", " ") for k, v in arguments.items() if spec.arguments[k].enum}
            return str(filled(spec.done, {**arguments, **codes}))
        return self.sorry("that cannot be done.") if spec.record else "That is done."

    def _instead(self, wish: Mapping[str, Any]) -> Script:
        if not self.withdrawn:
            return (yield from self._wish(wish["change"]))
        for name, arguments in wish["withdrawn"]:
            yield from self._learn(name, arguments)
            yield Call(name, dict(arguments))
        return pick(self.rng, _WITHDRAWN)

    def _proposal(self, name: str, arguments: Mapping[str, Any]) -> str:
        spec = self.spec.tools[name]
        will = str(filled(spec.ask, arguments)) if spec.ask else spec.description.rstrip(".").lower()
        told = [(key, str(arguments[key])) for key in details(self.spec, name) if key in arguments]
        missing = [f"{key}: {value}" for key, value in told if value.lower() not in will.lower()]
        will += f" ({', '.join(missing)})" if missing else ""
        return pick(self.rng, _FRAMES).format(will)

    def _learn(self, name: str, arguments: Mapping[str, Any]) -> Script:
        """Asks for what a call needs and the conversation has not shown. Raises MuaError when there is nobody
        to ask."""
        for key, value in arguments.items():
            about = self.spec.tools[name].arguments[key]
            if about.enum is not None or isinstance(value, bool):
                continue
            while not self._known(str(value)):
                fact = next((f for f, v in self.task.scenario.facts.items() if v == str(value)), None)
                if fact is None:
                    raise MuaError(
                        f"{name} needs {key} = {value}, which the person never says and no call before it "
                        "shows: name it in the wish, make it a fact, or look it up first"
                    )
                yield Say(pick(self.rng, _ASK).format(fact))

    def _known(self, value: str) -> bool:
        pattern = re.compile(rf"(?<![\w.]){re.escape(value)}(?!\w)", re.I)
        shown = (m.content for m in self._messages if m.role in ("user", "tool"))
        return any(pattern.search(text) for text in shown)
