"""What is kept of an episode: its messages, its exact tokens, how it ended and what it earned.

Invariants:
- A trace is append-only. Its ids are exactly those the engine read and sampled, in order; the mask is 1
  on sampled ids and 0 on all others; nothing is decoded and encoded again.
- A trajectory is one JSON line; `from_dict(to_dict(x)) == x`.
"""

from __future__ import annotations

import enum
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .chat import Message
from .errors import MuaError, unreadable


class Termination(enum.StrEnum):
    """Why an episode ended. The names are what files and reports show."""

    USER_STOP = "user_stop"
    """The user ended the conversation."""
    AGENT_TRANSFER = "agent_transfer"
    """The agent handed over to a human by a tool that ends the episode."""

    AGENT_STOP = "agent_stop"
    """The agent, working without a user, said that it was done."""

    TURN_CAP = "turn_cap"
    """The agent used all its steps."""
    TOKEN_CAP = "token_cap"
    """A step ran into its token limit, or the conversation into the context limit."""
    TOO_MANY_ERRORS = "too_many_errors"
    """Too many of the agent's calls failed."""

    USER_FAILED = "user_failed"
    """The user model was down or answered nothing usable."""
    TOOLS_FAILED = "tools_failed"
    """A tool or its server was out of order."""
    ENGINE_FAILED = "engine_failed"
    """The engine gave no completion."""

    @property
    def normal(self) -> bool:
        """Scored by the end state."""
        return self in (Termination.USER_STOP, Termination.AGENT_TRANSFER, Termination.AGENT_STOP)

    @property
    def infrastructure(self) -> bool:
        """Retried, then left out of the batch and counted; never scored."""
        return self in (Termination.USER_FAILED, Termination.TOOLS_FAILED, Termination.ENGINE_FAILED)


@dataclass
class Segment:
    """A run of tokens that the engine saw as one sequence. All three lists have length L."""

    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    """1 exactly on sampled ids."""
    logprobs: list[float] = field(default_factory=list)
    """Log-probability of each sampled id when it was sampled (after temperature); 0.0 elsewhere."""

    def add_context(self, ids: Sequence[int]) -> None:
        self.ids.extend(ids)
        self.mask.extend([0] * len(ids))
        self.logprobs.extend([0.0] * len(ids))

    def add_sampled(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        if len(ids) != len(logprobs):
            raise ValueError(f"{len(ids)} sampled ids with {len(logprobs)} log-probabilities")
        self.ids.extend(ids)
        self.mask.extend([1] * len(ids))
        self.logprobs.extend(logprobs)


@dataclass
class TokenTrace:
    """The tokens of an episode. A new segment starts where the chat template rewrites history."""

    segments: list[Segment] = field(default_factory=lambda: [Segment()])

    @property
    def current(self) -> Segment:
        return self.segments[-1]

    def start_segment(self) -> Segment:
        self.segments.append(Segment())
        return self.segments[-1]

    @property
    def sampled(self) -> int:
        """Tokens sampled, over all segments."""
        return sum(sum(s.mask) for s in self.segments)


@dataclass
class Usage:
    """What an episode cost. Tokens are counts; cost is in US dollars."""

    agent_steps: int = 0
    agent_tokens: int = 0
    user_turns: int = 0
    user_prompt_tokens: int = 0
    user_tokens: int = 0
    user_cost: float = 0.0
    agent_cost: float = 0.0
    tool_calls: int = 0
    tool_errors: int = 0


@dataclass
class Trajectory:
    """The record of an episode."""

    domain: str
    task_id: str
    kind: str
    fingerprint: str
    messages: list[Message]
    termination: Termination
    seed: int
    reward: float | None = None
    """None when an infrastructure failure left the episode without a score."""
    components: Mapping[str, float] = field(default_factory=dict)
    shaped: float | None = None
    """What training learns from, where the configuration makes layers of the audit reward terms
    (`audit.terms`); None: the reward."""
    reason: str = ""
    usage: Usage = field(default_factory=Usage)
    trace: TokenTrace | None = None
    """None when the agent was not a local or token-level engine (an endpoint, the expert)."""
    detail: str = ""
    """The failure in words, for terminations that are not normal."""
    sample: int = 0
    """Index within the group."""
    step: int = -1
    """Training step that played it; -1 outside training."""
    user: str = ""
    """Which kind of user it was played with."""
    persona: str = ""
    """How that user behaved (`users.personas`); empty where no persona was drawn."""
    unfaithful: list[str] = field(default_factory=list)
    """How the user strayed from its scenario (`users.fidelity`), where that was checked."""
    attempts: int = 1
    """How often it was played because of infrastructure failures."""
    faults: Mapping[str, float] = field(default_factory=dict)
    """How often its environment misbehaved, by kind, and the `seconds` that took (`faults`)."""

    def to_dict(self) -> dict[str, Any]:
        out = {
            "domain": self.domain,
            "task_id": self.task_id,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "termination": self.termination.value,
            "reward": self.reward,
            "components": dict(self.components),
            "reason": self.reason,
            "detail": self.detail,
            "seed": self.seed,
            "sample": self.sample,
            "step": self.step,
            "user": self.user,
            "attempts": self.attempts,
            "usage": asdict(self.usage),
            "messages": [m.to_dict() for m in self.messages],
        }
        if self.shaped is not None:
            out["shaped"] = self.shaped
        if self.faults:
            out["faults"] = dict(self.faults)
        if self.persona:
            out["persona"] = self.persona
        if self.unfaithful:
            out["unfaithful"] = list(self.unfaithful)
        if self.trace is not None:
            out["trace"] = [asdict(s) for s in self.trace.segments]
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trajectory:
        trace = data.get("trace")
        reward = data.get("reward")
        return cls(
            domain=str(data.get("domain", "")),
            task_id=str(data["task_id"]),
            kind=str(data.get("kind", "")),
            fingerprint=str(data.get("fingerprint", "")),
            messages=[Message.from_dict(m) for m in data["messages"]],
            termination=Termination(data["termination"]),
            seed=int(data.get("seed", 0)),
            reward=None if reward is None else float(reward),
            components=dict(data.get("components") or {}),
            shaped=None if data.get("shaped") is None else float(data["shaped"]),
            reason=str(data.get("reason", "")),
            detail=str(data.get("detail", "")),
            usage=Usage(**data["usage"]) if data.get("usage") else Usage(),
            trace=TokenTrace([Segment(**s) for s in trace]) if trace is not None else None,
            sample=int(data.get("sample", 0)),
            step=int(data.get("step", -1)),
            user=str(data.get("user", "")),
            persona=str(data.get("persona", "")),
            unfaithful=list(data.get("unfaithful") or ()),
            attempts=int(data.get("attempts", 1)),
            faults=dict(data.get("faults") or {}),
        )


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line of a `.jsonl` or `.jsonl.gz` file; blank lines are skipped.

    Raises MuaError naming file and line for anything that is not a JSON object.
    """
    path = Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    data = json.loads(line)
                    if "\\ud" in line.lower():  # an escape may be half of a character
                        json.dumps(data, ensure_ascii=False).encode()
                except UnicodeEncodeError:
                    raise MuaError(
                        f"{path}, line {number}: it has half of a character (a lone surrogate, \\ud800 to "
                        "\\udfff), which cannot be stored again; replace it"
                    ) from None
                except (ValueError, RecursionError) as exc:
                    raise MuaError(f"{path}, line {number}: not valid JSON ({exc})") from None
                if not isinstance(data, dict):
                    raise MuaError(f"{path}, line {number}: a JSON object is expected on each line")
                yield number, data
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as exc:
        raise MuaError(f"{path} cannot be read: {unreadable(exc)}") from None


def read_trajectories(path: str | Path) -> Iterator[Trajectory]:
    """The trajectories of a file. Raises MuaError naming the line and the field that is wrong."""
    for number, data in read_jsonl(path):
        try:
            yield Trajectory.from_dict(data)
        except (KeyError, TypeError, ValueError, AttributeError, MuaError) as exc:
            what = f"field {exc} is missing" if isinstance(exc, KeyError) else str(exc)
            raise MuaError(f"{path}, line {number}: not a trajectory: {what}") from None
