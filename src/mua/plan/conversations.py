"""What a conversation asks of engines, users and tools: counts of tokens and calls, in their order."""

from __future__ import annotations

import math
import zlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..domain import Domain
from ..errors import MuaError
from ..formats import describe_tools, hermes_text
from ..trajectory import Trajectory

CHARACTERS = 4
"""A token's, where no tokenizer is at hand."""
FRAME = 5
"""Tokens that a chat template puts around a message."""

Tokens = Callable[[str], Sequence[int]]
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
    reward: float
    step: int = -1
    """The training step that it was played in: with the task, its group."""
    words: tuple[tuple[bytes, bytes], ...] = ()
    """For each move, the tokens heard since the last one (behind the prompt) and those said, as `packed`; so
    that what conversations have in common is known. Empty: nobody knows."""

    @property
    def own(self) -> int:
        """Tokens after the prompt that all conversations share."""
        return sum(move.new + move.sampled for move in self.moves) - self.prompt


def packed(tokens: Iterable[int]) -> bytes:
    """Tokens in four bytes each."""
    return array("i", tokens).tobytes()


def by_characters(text: str) -> list[int]:
    """Tokens of `CHARACTERS` each: equal beginnings of texts are equal beginnings of these."""
    parts = (text[at : at + CHARACTERS] for at in range(0, len(text), CHARACTERS))
    return [zlib.crc32(part.encode("utf-8", "surrogatepass")) >> 1 for part in parts]


def read_conversations(
    domain: Domain, trajectories: Iterable[Trajectory], tokens: Tokens | None = None, style: str = "schema"
) -> list[Conversation]:
    """The shapes of trajectories. Counts of tokens that a trajectory recorded win over those of its texts.

    `tokens` is the agent's tokenizer; without one, texts are counted by characters. `style` says how tools
    stand in the prompt (`model.tool_style`). Raises MuaError when there is no conversation among them.
    """
    tokens = tokens or by_characters
    described: dict[str, int] = {}
    out = []
    for trajectory in trajectories:
        messages = trajectory.messages
        if not any(m.role == "assistant" for m in messages) or trajectory.reward is None:
            continue
        own = domain.of(domain.task(trajectory.task_id))[0]
        if own.name not in described:
            described[own.name] = 0 if style == "none" else len(tokens(describe_tools(own.tools(), style)))  # type: ignore[arg-type]
        out.append(_conversation(trajectory, tokens, described[own.name]))
    if not out:
        raise MuaError("there is no scored conversation to plan with; name a run or a file that has some.")
    return out


def _conversation(trajectory: Trajectory, tokens: Tokens, tools: int) -> Conversation:
    used = trajectory.usage
    texts = [tokens(m.content + hermes_text(m.tool_calls) + m.thinking) for m in trajectory.messages]
    lengths = [FRAME + len(text) for text in texts]
    prompt = tools + sum(n for m, n in zip(trajectory.messages, lengths, strict=True) if m.role == "system")
    sampled = sum(n for m, n in zip(trajectory.messages, lengths, strict=True) if m.role == "assistant")
    said = [n for m, n in zip(trajectory.messages, lengths, strict=True) if m.role == "user" and m.content]
    by_agent = used.agent_tokens / sampled if used.agent_tokens else 1.0
    by_user = used.user_tokens / sum(said) if used.user_tokens and said else 1.0
    reads = used.user_prompt_tokens / len(said) if used.user_prompt_tokens and said else None

    moves: list[Move] = []
    words: list[tuple[bytes, bytes]] = []
    context: list[int] = []
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

    for message, text, n in zip(trajectory.messages, texts, lengths, strict=True):
        if message.role == "system":
            continue
        if message.role == "assistant":
            close()
            words.append((packed(context), packed(text)))
            context = []
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
        context += [*[0] * FRAME, *text]
    close()
    reward = trajectory.reward if trajectory.shaped is None else trajectory.shaped
    assert reward is not None  # `read_conversations` has looked
    return Conversation(
        trajectory.task_id,
        math.ceil(prompt),
        opening,
        tuple(moves),
        reward,
        trajectory.step,
        tuple(words),
    )
