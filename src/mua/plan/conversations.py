"""What a conversation asks of engines, users and tools: counts of tokens and calls, in their order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..domain import Domain
from ..errors import MuaError
from ..formats import describe_tools, hermes_text
from ..trajectory import Trajectory

CHARACTERS = 3.8
"""A token's, where no tokenizer is at hand."""
FRAME = 5
"""Tokens that a chat template puts around a message."""

Count = Callable[[str], float]
"""Text → its tokens."""


@dataclass(frozen=True)
class Move:
    """One step of the agent, and what it waits for afterwards. Tokens are counts."""

    new: int
    """Context that has come since the agent's last step: what the engine must read."""
    sampled: int
    calls: int
    """Tool calls, one after the other; 0: the user is asked (or the conversation is over)."""
    user_prompt: int = 0
    """What the user model reads before it answers."""
    user_tokens: int = 0
    """What it says; 0 where the conversation ended with this move."""


@dataclass(frozen=True)
class Conversation:
    """Of one task."""

    task: str
    prompt: int
    """Policy and tools, in tokens: the same in all conversations of a domain."""
    opening: int
    """The user's first words."""
    moves: tuple[Move, ...]
    solved: bool
    step: int = -1
    """The training step that it was played in: with the task, its group."""
    marks: tuple[tuple[int, int], ...] = ()
    """For each move, a mark of all that was said before the agent's words, and one of that with them. Equal
    marks are equal beginnings."""

    @property
    def own(self) -> int:
        """Tokens after the prompt that all conversations share."""
        return sum(move.new + move.sampled for move in self.moves) - self.prompt


def by_characters(text: str) -> float:
    return len(text) / CHARACTERS


def read_conversations(
    domain: Domain, trajectories: Iterable[Trajectory], count: Count | None = None, style: str = "schema"
) -> list[Conversation]:
    """The shapes of trajectories. Counts of tokens that a trajectory recorded win over those of its texts.

    `count` is the agent's tokenizer; without one, texts are counted by characters. `style` says how tools
    stand in the prompt (`model.tool_style`). Raises MuaError when there is no conversation among them.
    """
    tokens = count or by_characters
    described: dict[str, float] = {}
    out = []
    for trajectory in trajectories:
        messages = trajectory.messages
        if not any(m.role == "assistant" for m in messages) or trajectory.reward is None:
            continue
        own = domain.of(domain.task(trajectory.task_id))[0]
        if own.name not in described:
            described[own.name] = 0.0 if style == "none" else tokens(describe_tools(own.tools(), style))  # type: ignore[arg-type]
        out.append(_conversation(trajectory, tokens, described[own.name]))
    if not out:
        raise MuaError("there is no scored conversation to plan with; name a run or a file that has some.")
    return out


def _conversation(trajectory: Trajectory, tokens: Count, tools: float) -> Conversation:
    used = trajectory.usage
    lengths = [
        FRAME + tokens(m.content + hermes_text(m.tool_calls) + m.thinking) for m in trajectory.messages
    ]
    prompt = tools + sum(n for m, n in zip(trajectory.messages, lengths, strict=True) if m.role == "system")
    sampled = sum(n for m, n in zip(trajectory.messages, lengths, strict=True) if m.role == "assistant")
    said = [n for m, n in zip(trajectory.messages, lengths, strict=True) if m.role == "user" and m.content]
    by_agent = used.agent_tokens / sampled if used.agent_tokens else 1.0
    by_user = used.user_tokens / sum(said) if used.user_tokens and said else 1.0
    reads = used.user_prompt_tokens / len(said) if used.user_prompt_tokens and said else None

    moves: list[Move] = []
    marks: list[tuple[int, int]] = []
    said_so_far = 0
    heard, new, opening = 0.0, prompt, 0
    last: dict[str, float] | None = None

    def close(user_tokens: float = 0) -> None:
        nonlocal last
        if last is not None:
            asks = reads if reads is not None else heard
            moves.append(
                Move(
                    math.ceil(last["new"]),
                    max(1, round(last["sampled"])),
                    int(last["calls"]),
                    math.ceil(asks) if user_tokens else 0,
                    math.ceil(user_tokens),
                )
            )
        last = None

    for message, n in zip(trajectory.messages, lengths, strict=True):
        if message.role == "system":
            continue
        before = said_so_far
        said_so_far = hash((before, message.content, hermes_text(message.tool_calls)))
        if message.role == "assistant":
            close()
            marks.append((before, said_so_far))
            last = {"new": new, "sampled": n * by_agent, "calls": len(message.tool_calls)}
            new, heard = 0.0, heard + (n if message.content else 0)
            continue
        if message.role == "user":
            if last is None:
                opening = math.ceil(n * by_user)
            else:
                close(n * by_user)
            heard += n
        new += n
    close()
    return Conversation(
        trajectory.task_id,
        math.ceil(prompt),
        opening,
        tuple(moves),
        trajectory.reward is not None and trajectory.reward >= 1.0 - 1e-6,
        trajectory.step,
        tuple(marks),
    )
