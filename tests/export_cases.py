"""What every export is tested with: tasks, moves of an agent, and how our own episode of them ends."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from dataclasses import dataclass

from mua.agents import AgentStep
from mua.chat import Message, ToolCall
from mua.coldstart.conversations import play_expert
from mua.domain import Limits, Task
from mua.episode import play
from mua.exports.stepwise import Setting, setting
from mua.seeds import derive_seed
from mua.trajectory import Trajectory

DOMAINS = ("library:desk", "meeting_rooms")


@dataclass
class Case:
    setting: Setting
    task: Task
    seed: int
    moves: list[Message]
    ours: Trajectory
    """The same moves in `episode.play`."""


class Replay:
    """Makes the given moves; after the last it only says goodbye."""

    trace = None

    def __init__(self, moves: list[Message]):
        self.moves = list(moves)

    async def step(self, messages) -> AgentStep:
        message = self.moves.pop(0) if self.moves else Message("assistant", "Goodbye.")
        return AgentStep(message, text=message.content)

    def close(self) -> None:
        pass


_setting = functools.cache(setting)


def case(domain: str, number: int, damage: str = "", seed: int = 7, **settings) -> Case:
    """The expert's moves on a task of `train`, perhaps damaged so that the end is another one."""
    made = _setting(domain) if not settings else setting(domain, "train", **settings)
    task = made.tasks[number]
    expert = asyncio.run(play_expert(made.domain, task, derive_seed("user", seed), Limits()))
    assert expert.reward == 1.0
    moves = [
        Message("assistant", m.content, tuple(ToolCall(c.name, c.arguments) for c in m.tool_calls))
        for m in expert.messages
        if m.role == "assistant"
    ]
    writes = [n for n, m in enumerate(moves) if m.tool_calls]
    if damage == "idle":  # talks, and calls nothing
        moves = [m for m in moves if not m.tool_calls]
    elif damage == "wrong":  # its last call has a broken argument, and one that no tool has
        calls = tuple(dataclasses.replace(c, arguments={"card": 7}) for c in moves[writes[-1]].tool_calls)
        moves[writes[-1]] = Message("assistant", "", (*calls, ToolCall("no_such_tool", {})))
    ours = asyncio.run(
        play(made.domain, task, Replay(moves), made.user(task, seed), limits=made.limits, seed=seed)
    )
    return Case(made, task, seed, moves, ours)


@functools.cache
def cases() -> tuple[Case, ...]:
    """Right and wrong ends of two domains, and one that is cut short."""
    found = [
        case(d, n, damage, 100 + n) for d in DOMAINS for n in (0, 5, 9) for damage in ("", "idle", "wrong")
    ]
    found.append(case("library:desk", 0, limits={"steps": 1}))
    assert {c.ours.reward for c in found} == {0.0, 1.0}
    assert {c.ours.termination.value for c in found} >= {"user_stop", "turn_cap"}
    return tuple(found)
