"""ACEBench Agent as domains: a category in a language, or both categories of it; exact or strict.

Upstream grades whatever a conversation left when it ended, whoever ended it; so every end but a failure of
infrastructure is graded here too.

Invariant: the live episode and the replay of its stored messages have the same states, for both run the
texts of the steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...chat import Message, Side, ToolCall
from ...database import Base
from ...domain import Domain, Limits, Scenario, Task, ToolResult, Verdict, World
from ...errors import MuaError
from ...tools import Tool
from ...trajectory import Termination, Trajectory
from .. import paper
from ..store import Installed
from .apis import Apis
from .checker import end_to_end, process
from .codec import encode
from .data import Entry, Language, Mode, Start, entries, start
from .view import AceAgent, Nudger, View, contents, rounds
from .words import Words, load

MESSAGES = 40
"""Messages after the user's first: steps of the agent, what the calls gave, words of the user."""
FINISH = "finish conversation"
"""Ends the conversation when either side says it, from the third of those messages on."""


@dataclass(frozen=True)
class AceDomain(Domain):
    """One category in one language."""

    modes: tuple[Mode, ...] = ("multi_turn", "multi_step")
    language: Language = "en"
    strict: bool = False
    folder: Path = Path()
    """Where the benchmark is installed."""
    words: Mapping[Language, Words] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    """Version and hash of what is installed, for results."""

    def entry(self, task: Task) -> Entry:
        """The entry of a task. Raises MuaError when the domain has none of its name."""
        for mode in self.modes:
            for entry in entries(self.folder, mode, self.language):
                if entry.id == task.id:
                    return entry
        raise MuaError(f"domain '{self.name}' has no entry '{task.id}'")

    def start(self) -> Start:
        """The rows that every world starts from."""
        return start(self.folder, self.language)

    def apis(self, task: Task) -> Apis:
        """Fresh worlds of an entry."""
        return Apis(self.entry(task), self.start(), self.words[self.language], self.strict)

    def system_prompt(self, task: Task) -> str:
        return ""  # the agent is shown its prompts at every step, see `view`

    def task_tools(self, task: Task, side: Side = "assistant") -> dict[str, Tool]:
        return {}  # the functions are part of those prompts

    def agent(self, task: Task, agent: Any) -> Any:
        entry = self.entry(task)
        view = View(entry, self.words[self.language], self.strict)
        chinese = entry.mode == "multi_step" and not self.strict
        over_api = View(entry, self.words["zh"], self.strict) if chinese else view
        return AceAgent(agent, view, over_api)

    def user(self, task: Task, seed: int) -> Any:
        entry = self.entry(task)
        if entry.mode == "multi_turn":
            return None
        return Nudger(entry.question, self.words[self.language].prompts["nudge"])

    def open(self, task: Task) -> World:
        return AceWorld(self, task)

    def is_noop(self, task: Task) -> bool:
        """One step that changes nothing would do."""
        world = AceWorld(self, task)
        world.apis.run("[done]")
        return end_to_end(world.apis.entry, world.apis.states, self.strict).valid

    def grade(
        self, task: Task, messages: Sequence[Message], termination: Termination, world: World | None = None
    ) -> Verdict:
        if not isinstance(world, AceWorld):
            world = self.replay(task, messages)
        assert isinstance(world, AceWorld)
        verdict = verdict_of(world.apis, steps(messages, world.apis.entry.mode))
        ended = "" if termination.normal else f" (the conversation ended by {termination.value})"
        return Verdict(verdict.reward, verdict.components, verdict.reason + ended)

    def summary(self, trajectories: Iterable[Trajectory]) -> dict[str, Any]:
        """Both accuracies of each category, and the agent score: the unweighted mean of the end-to-end ones,
        where both categories were played."""
        shares: dict[str, dict[str, list[float]]] = {"end_to_end": {}, "process": {}}
        for t in trajectories:
            if t.reward is None:
                continue
            for name, by_mode in shares.items():
                by_mode.setdefault(t.kind, []).append(t.components[name])
        means = {n: {m: sum(v) / len(v) for m, v in by.items()} for n, by in shares.items()}
        ends = means["end_to_end"]
        both = len(self.modes) == 2
        return {
            **self.about,
            "words": self.words[self.language].source,
            **means,
            "agent_score": sum(ends.values()) / 2 if both and len(ends) == 2 else None,
            "paper": paper.columns(self.name),
        }


def steps(messages: Sequence[Message], mode: Mode) -> list[str]:
    """The texts of the agent that reached the worlds. In multi_step all do, but one that ended it all."""
    told = rounds(messages)
    return [
        said.content
        for i, (said, results) in enumerate(told)
        if said.role == "assistant" and (results or (mode == "multi_step" and i + 1 < len(told)))
    ]


def verdict_of(apis: Apis, texts: Sequence[str]) -> Verdict:
    """The verdict on the worlds as they are, after steps of these texts."""
    try:
        found = end_to_end(apis.entry, apis.states, apis.strict)
        why = f"{found.error_type}: {'; '.join(found.errors[:3])}" if not found.valid else ""
        valid = found.valid
    except ValueError as exc:
        valid, why = False, str(exc)
    share = process(apis.entry, texts, valid)
    components = {"end_to_end": float(valid), "process": share}
    return Verdict(float(valid), components, why or "final states equal gold")


class AceWorld(World):
    """The worlds of one episode behind the harness's calls: a step is run as a whole when it begins."""

    def __init__(self, domain: AceDomain, task: Task):
        super().__init__(domain, task)
        self.apis = domain.apis(task)
        self._answers: list[tuple[str, bool]] = []

    def begin_step(self, message: Message) -> None:
        self._answers = contents(self.apis.run(message.content))

    def call(self, side: Side, call: ToolCall) -> ToolResult:
        """The answer to the next call of the step that has begun; a call on its own is a step of its own."""
        if not self._answers:
            self._answers = contents(self.apis.run(f"[{encode(call.name, call.arguments)}]"))
        content, error = self._answers.pop(0)
        return ToolResult(content, error)

    def over(self, messages: Sequence[Message]) -> Termination | None:
        last = messages[-1]
        # The user's first message does not count, nor does the greeting before it.
        number = -1 - (messages[0].role == "assistant")
        before = "user"
        for message in messages:
            number += message.role != "tool" or before != "tool"
            before = message.role
        if number > 2 and last.role != "tool" and FINISH in last.content:
            return Termination.USER_STOP if last.role == "user" else Termination.AGENT_STOP
        return Termination.TURN_CAP if number >= MESSAGES else None


def make(
    name: str, modes: tuple[Mode, ...], language: Language, strict: bool, benchmark: Installed
) -> AceDomain:
    """The domain of one language, with one category or both."""
    folder = benchmark.path
    words: dict[Language, Words] = {each: load(folder, each) for each in ("en", "zh")}
    own = words[language]

    def split(which: str) -> tuple[Task, ...]:
        found = [entry for mode in modes for entry in entries(folder, mode, language)]
        if which == "test":
            return tuple(_task(entry, own) for entry in found)
        # Entries that ask the same, from another start, stay together; and in all domains alike.
        side = 0 if which == "train" else 1
        tasks = [_task(e, own) for e in found if sha256(e.question.encode()).digest()[0] % 2 == side]
        return tuple(t for t in tasks if not domain.is_noop(t))

    domain = AceDomain(
        name=name,
        policy="\n\n".join(f"{k} ({own.source})\n{v}" for k, v in own.prompts.items()),
        load_base=lambda: Base({}),
        load_split=split,
        splits=("test", "train", "dev"),
        toolkits={},
        limits=Limits(turns=MESSAGES, steps=MESSAGES, errors=10**6),
        greeting=own.prompts["greeting"] if "multi_turn" in modes else "",
        modes=modes,
        language=language,
        strict=strict,
        folder=folder,
        words=words,
        about={"version": benchmark.version, "data_hash": benchmark.data_hash},
    )
    return domain


def _task(entry: Entry, words: Words) -> Task:
    prompt = ""
    if entry.mode == "multi_turn":
        kind = "user_base" if "BaseApi" in entry.classes else "user_travel"
        prompt = words.prompts[kind].format(instruction=entry.question)
    agenda = {
        "question": entry.question,
        "config": entry.config,
        "classes": entry.classes,
        "gold": entry.gold,
    }
    return Task(
        id=entry.id,
        kind=entry.mode,
        scenario=Scenario(
            goal=entry.question,
            agenda=agenda,
            prompt=prompt,
            own_role="system" if entry.mode == "multi_turn" else "assistant",
        ),
        actions=(),
    )
