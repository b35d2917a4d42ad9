"""BFCL multi turn as a domain: scripted users, tools that appear at a later turn, upstream's verdict.

Invariant: the verdict is a pure function of the entry and of the agent's messages. The world that the
agent acted on is not looked at: the calls are run again, beside the ground truth, as upstream does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...chat import Message, Side, ToolCall, carried_out
from ...database import Base
from ...domain import Action, Domain, Limits, Scenario, Task, ToolResult, Verdict, World
from ...errors import MuaError
from ...tools import Tool
from ...trajectory import Termination, Trajectory
from ...users import STOP, UserTurn
from .. import paper
from . import codec
from .agents import GoldAgent, Native, Prompted
from .child import plain_call
from .data import CATEGORIES, Entry, Upstream
from .pool import Exceeded

ALL = "multi_turn"
"""The part that holds all four categories."""

SPLITS = ("all", "train", "test")
"""`all` is the whole category, which is what upstream reports. `train` (even numbers) and `test` (odd) are
its halves, for training; the halves of all categories belong together, because their entries do."""


@dataclass(frozen=True)
class BfclTool(Tool):
    """A tool as upstream describes it, its answer included."""

    response: Mapping[str, Any] | None = None

    def schema(self) -> dict[str, Any]:
        out = super().schema()
        if self.response is not None:
            out["function"]["response"] = dict(self.response)
        return out


@dataclass(frozen=True)
class BfclDomain(Domain):
    """One category of one version, or all of them together, in one mode."""

    upstream: Upstream = dataclasses.field(kw_only=True)
    categories: tuple[str, ...] = CATEGORIES
    prompted: bool = False
    """Prompt mode; else function calling."""

    def entry(self, task: Task) -> Entry:
        return self.upstream.entry(task.id)

    def system_prompt(self, task: Task) -> str:
        """Upstream's in prompt mode, tools included; none in function-calling mode."""
        return (
            self.upstream.system_prompt(self.upstream.functions(self.entry(task), 0)) if self.prompted else ""
        )

    def user(self, task: Task, seed: int) -> ScriptedUser:
        entry, later = self.entry(task), {}
        for turn in entry.held_back:
            later[turn] = self.upstream.more_tools
            if self.prompted:
                before = self.upstream.functions(entry, turn - 1)
                new = self.upstream.functions(entry, turn)[len(before) :]
                later[turn] = self.upstream.more_tools_prompted(new)
        return ScriptedUser([later.get(i, said) for i, said in enumerate(entry.turns)])

    def agent(self, task: Task, agent: Any) -> Native | Prompted:
        return Prompted(agent, self.upstream.v3) if self.prompted else Native(agent)

    def open(self, task: Task) -> BfclWorld:
        return BfclWorld(self, task)

    def tools(self, side: Side = "assistant") -> dict[str, Tool]:
        """The tools of all tasks; a task has those of its backends (`task_tools`)."""
        if side == "user" or self.prompted:
            return {}
        found: dict[str, Tool] = {}
        for task in self.tasks("all"):
            found |= self.tools_at(task, len(self.entry(task).turns))
        return found

    def task_tools(self, task: Task, side: Side = "assistant") -> dict[str, Tool]:
        return self.tools_at(task, 0) if side == "assistant" else {}

    def tools_at(self, task: Task, turn: int) -> dict[str, Tool]:
        """The agent's tools at a turn; in prompt mode they stand in the conversation instead."""
        if self.prompted:
            return {}
        made = self.__dict__.setdefault("_tools_made", {})
        entry = self.entry(task)
        when = sum(later <= turn for later in entry.held_back)
        if (entry.id, when) not in made:
            functions = self.upstream.functions(entry, turn)
            made[entry.id, when] = {f["name"]: self._tool(f) for f in functions}
        return made[entry.id, when]

    def _tool(self, function: Mapping[str, Any]) -> Tool:
        made = self.__dict__.setdefault("_made", {})
        known = function["name"], function["description"]
        if known not in made:
            shown = self.upstream.openai_function(function)
            made[known] = BfclTool(
                shown["name"], shown["description"], shown["parameters"], "write", dict, shown.get("response")
            )
        return made[known]

    def gold(self, task: Task) -> Any:
        raise MuaError(f"'{self.name}' compares each turn's state, so a task has no one gold database.")

    def is_noop(self, task: Task) -> bool:
        return bool(self.upstream.verdict(task.id, [[] for _ in self.entry(task).gold])["valid"])

    def grade(
        self, task: Task, messages: Sequence[Message], termination: Termination, world: World | None = None
    ) -> Verdict:
        """Upstream's verdict. An answer that used up its steps in the last turn is scored like any other."""
        if termination is Termination.TOKEN_CAP:
            return Verdict(0.0, {"valid": 0.0}, "multi_turn:inference_error: longer than the model's context")
        turns = self.answer(messages, termination)
        verdict = self.upstream.verdict(task.id, turns)
        if verdict["valid"]:
            return Verdict(1.0, {"valid": 1.0}, "valid")
        return Verdict(0.0, {"valid": 0.0}, f"{verdict['error_type']}: {verdict['error_message']}")

    def answer(self, messages: Sequence[Message], termination: Termination) -> list[list[list[str]]]:
        """The agent's answer as upstream has it: turns of steps of call texts."""
        turns: list[list[list[str]]] = []
        for message in carried_out(messages):
            if message.role == "user":
                turns.append([])
            elif message.role == "assistant" and turns:
                turns[-1].append(
                    codec.decode(message.content, "prompt", self.upstream.v3)
                    if self.prompted
                    else [codec.text_of(call) for call in message.tool_calls]
                )
        # The user's last word is its stop.
        return turns[:-1] if termination is Termination.USER_STOP else turns

    def summary(self, trajectories: Iterable[Trajectory]) -> dict[str, Any]:
        """The unweighted mean of the categories' accuracies, what it is made of, and every verdict."""
        rewards: dict[str, list[float]] = {}
        reasons: dict[str, list[str]] = {}
        for t in trajectories:
            reasons.setdefault(t.task_id, []).append(t.reason)
            if t.reward is not None:
                rewards.setdefault(t.task_id.rpartition("_")[0], []).append(t.reward)
        rates = {name: sum(of) / len(of) for name, of in rewards.items()}
        return {
            "version": self.upstream.version,
            "data_hash": self.upstream.data_hash,
            "categories": rates,
            "mean_of_categories": sum(rates.values()) / len(rates) if rates else None,
            "verdicts": {task: of[0] if len(of) == 1 else of for task, of in reasons.items()},
            "paper": paper.columns(self.name),
        }

    def gold_agent(self, task: Task, together: bool = False) -> GoldAgent:
        """An agent that plays the ground truth, call by call, or all calls of a turn together."""
        steps = 1 if together else self.upstream.turn_steps
        return GoldAgent(self.gold_calls(self.entry(task)), self.prompted, steps)

    def gold_calls(self, entry: Entry) -> list[list[ToolCall]]:
        """The ground truth as native calls, by turn: positional arguments take the names they stand for."""
        made = self.__dict__.setdefault("_gold_made", {})
        if entry.id in made:
            return made[entry.id]
        functions = self.upstream.functions(entry, len(entry.turns))
        parameters = {f["name"]: tuple(f["parameters"]["properties"]) for f in functions}
        found: list[list[ToolCall]] = []
        for texts in entry.gold:
            found.append([])
            for name, positional, named in map(plain_call, texts):
                given = dict(zip(parameters.get(name, ()), positional, strict=False))
                found[-1].append(ToolCall(name, {**given, **named}))
        made[entry.id] = found
        return found


class BfclWorld(World):
    """The backends of one episode. They live in a process of the pool; here is only what was called.

    When that process is gone (a call took too much, somebody ended it), the next one plays the calls again.
    """

    _numbers = itertools.count()

    def __init__(self, domain: BfclDomain, task: Task):
        super().__init__(domain, task)
        self._upstream = domain.upstream
        self._tools_at = functools.partial(domain.tools_at, task)
        self._turn = 0
        self._key = f"{os.getpid()}-{next(self._numbers)}"
        self._done: list[str] = []
        self._ready: list[tuple[str, str]] = []

    def tools(self, side: Side = "assistant") -> dict[str, Tool]:
        return self._tools_at(self._turn) if side == "assistant" else {}

    def begin_turn(self, turn: int) -> None:
        self._turn = turn

    def begin_step(self, message: Message) -> None:
        """Runs the calls of a step together: one way to the process and back, instead of one for each."""
        texts = [codec.text_of(call) for call in message.tool_calls]
        self._ready = []
        with contextlib.suppress(Exceeded):  # then one by one, to find out which it was
            self._ready = list(zip(texts, self._run(texts), strict=True))

    def call(self, side: Side, call: ToolCall) -> ToolResult:
        """Runs one call and answers with upstream's text; a call that takes too much has not happened."""
        text = codec.text_of(call)
        try:
            if self._ready and self._ready[0][0] == text:
                result = self._ready.pop(0)[1]
            else:
                (result,) = self._run([text])
        except Exceeded as exc:
            return ToolResult(f"Error during execution: the call was given up: {exc}", error=True)
        return ToolResult(result, error=result.startswith(("Error during execution:", '{"error":')))

    def _run(self, texts: list[str]) -> list[str]:
        """The results of calls. Raises Exceeded when they took too much; then none has happened."""
        request = {"entry": self.task.id, "world": self._key, "done": len(self._done), "calls": texts}
        pool = self._upstream.pool
        reply = pool.ask(request)
        if reply.get("again"):
            reply = pool.ask({**request, "history": self._done})
        self._done += texts
        return reply["results"]


class ScriptedUser:
    """Says the entry's turns, one after the other, then ends the conversation."""

    name = "script"

    def __init__(self, turns: Sequence[str]):
        self._turns = list(turns)

    async def reply(self, view: Sequence[Message]) -> UserTurn:
        """The next turn, whatever the agent said."""
        return UserTurn(self._turns.pop(0)) if self._turns else UserTurn(STOP, stop=True)


def make(upstream: Upstream, name: str, part: str, prompted: bool) -> BfclDomain:
    """The domain of one category, or with `multi_turn` of all of them, whose entries then take turns."""
    categories = CATEGORIES if part == ALL else (part,)

    def load_split(split: str) -> list[Task]:
        groups = zip(*(upstream.entries(c).values() for c in categories), strict=True)
        number = {"train": 0, "test": 1}.get(split)
        chosen = [e for group in groups for e in group if number is None or _number(e) % 2 == number]
        return [_task(domain, e) for e in chosen]

    source = {"version": upstream.version, "data": upstream.data_hash, "package": upstream.prefix}
    turns = 1 + max(len(e.turns) for c in categories for e in upstream.entries(c).values())
    limits = Limits(
        turns=turns,
        steps=turns * upstream.turn_steps,
        turn_steps=upstream.turn_steps,
        errors=turns * upstream.turn_steps * 10_000,  # upstream counts none
    )
    domain = BfclDomain(
        name=name,
        policy="",
        load_base=lambda: Base({"benchmark": {upstream.name: source}}),
        load_split=load_split,
        splits=SPLITS,
        toolkits={},
        limits=limits,
        agenda_user=lambda task, seed: domain.user(task, seed),  # noqa: PLW0108 - not made yet
        # For the cold start, whose conversations are laid out as native calls.
        expert=None if prompted else lambda world, user, seed: domain.gold_agent(world.task),
        upstream=upstream,
        categories=categories,
        prompted=prompted,
    )
    return domain


def _number(entry: Entry) -> int:
    """The number within the category; entries of one number are variants of one another."""
    return int(entry.id.rpartition("_")[2])


def _task(domain: BfclDomain, entry: Entry) -> Task:
    """The entry as a task. Its content is initial state and ground truth: the entries of one number in
    several categories share it, and so do the ones that differ in the user's words alone."""
    calls = [Action(c.name, c.arguments) for turn in domain.gold_calls(entry) for c in turn]
    goal = "\n".join(f"{i + 1}. {said or '(more tools appear)'}" for i, said in enumerate(entry.turns))
    return Task(
        id=entry.id,
        kind="+".join(entry.classes) if len(domain.categories) == 1 else entry.id.rpartition("_")[0],
        scenario=Scenario(goal=goal, agenda={"initial_config": entry.config}),
        actions=tuple(calls),
    )
