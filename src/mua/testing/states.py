"""Random calls against the worlds of any domain: what holds of states, whatever an agent does.

For each episode of a few that take turns on shared data, `check` holds that

- `base`: what all episodes share is what it was, and a world opened anew is as the first one was;
- `isolated`: an episode's calls are answered, and it ends, as when it is played alone;
- `rejected`: a call that was answered with an error changed nothing (where the domain promises that);
- `equality`: two states are equal by what was touched exactly when all of their rows are (where states are
  overlays: not BFCL's, which live in another process, nor ACEBench's, which are whole);
- `replay`: the messages, through JSON and back, played on a fresh world, end in the same state;
- `reward`: the verdict on the live world is the one on the stored messages;
- `bounded`: no call took longer than `SLOWEST` seconds.

Domains are driven through their own words: gold calls, gold calls with other arguments, and calls made up
from the tools' schemas.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..chat import Message, Side, ToolCall
from ..database import Database, same
from ..domain import Domain, Task, World
from ..errors import InfrastructureError, MuaError
from ..seeds import derive_seed
from ..trajectory import Termination, Trajectory

SLOWEST = 20.0
"""Seconds that a call may take; a pool of processes on a busy machine takes its time."""
_WORDS = ("", " ", "x", "0", "#W1", "none", "2024-05-15", "a@b.c", "../x", "é", "9" * 40, "DROP TABLE t")


@dataclass
class Outcome:
    """What was tried on one domain, and what did not hold."""

    domain: str
    episodes: int = 0
    calls: int = 0
    errors: int = 0
    changed: int = 0
    """Episodes whose end state is not their first one."""
    compared: int = 0
    equal: int = 0
    """Of the pairs of states that were compared."""
    rewarded: int = 0
    slowest: float = 0.0
    problems: list[str] = field(default_factory=list)

    def problem(self, promise: str, what: str) -> None:
        if len(self.problems) < 20:
            self.problems.append(f"{promise}: {what[:400]}")


def check(
    domain: Domain, seed: int, rounds: int = 10, together: int = 4, most: int = 12, seconds: float = math.inf
) -> Outcome:
    """Plays `rounds` times `together` episodes that take turns, with up to `most` calls each; no round begins
    after so many seconds."""
    out = Outcome(domain.name)
    tasks = [task for split in domain.splits for task in domain.tasks(split)[:200]]
    before = fingerprint_of_base(domain)
    began = time.monotonic()
    for number in range(rounds):
        if number and time.monotonic() - began > seconds:
            break
        rng = random.Random(derive_seed(seed, domain.name, number))
        chosen = [rng.choice(tasks) for _ in range(together)]
        chosen[-1] = chosen[0]  # two episodes of one task have something to be mixed up
        plays = [_Play(domain, task, rng) for task in chosen]
        for _ in range(most):
            for play in rng.sample(plays, len(plays)):
                if rng.random() < 0.8:
                    play.step(out)
        for play in plays:
            play.finish(out)
        _compare(plays, out)
    if fingerprint_of_base(domain) != before:
        out.problem("base", "the shared data has changed")
    return out


def fingerprint_of_base(domain: Domain) -> Any:
    """A hash of what all episodes share, taken from scratch, and the state of a world opened anew."""
    base: Any = domain.base
    again = getattr(base, "recompute_sum", None) or getattr(base, "recompute_hash", None)
    first = domain.tasks(next(split for split in domain.splits if domain.tasks(split)))[0]
    return (again() if again else None), _state(domain.open(first))


class _Play:
    """One episode: an agent that draws its calls, and a user with tools who draws some, too."""

    def __init__(self, domain: Domain, task: Task, rng: random.Random):
        self.domain, self.task, self.rng = domain, task, random.Random(rng.random())
        self.world = domain.open(task)
        self.start = _state(self.world)
        self.messages: list[Message] = [Message("user", "please")]
        self.ended = Termination.USER_STOP
        self.over = False
        self.gold: list[tuple[Side, str, dict[str, Any]]] = [
            (a.requestor, a.name, dict(a.arguments)) for a in task.actions
        ]
        self.answers: list[tuple[str, bool]] = []
        self.end: Any = None

    def step(self, out: Outcome) -> None:
        """The next step of this episode, which others interrupt."""
        if self.over:
            return
        message = self._draw()
        side: Side = "user" if message.role == "user" else "assistant"
        atomic = promises_atomic(self.domain)
        self.messages.append(message)
        if side == "assistant":
            self.world.begin_step(message)
        for call in message.tool_calls:
            before = self.world.db.digest() if atomic else ""
            began = time.monotonic()
            result = self.world.call(side, call)
            out.slowest = max(out.slowest, time.monotonic() - began)
            out.calls += 1
            out.errors += result.error
            self.answers.append((result.content, result.error))
            self.messages.append(
                Message("tool", result.content, tool_call_id=call.id, requestor=side, error=result.error)
            )
            if result.error and atomic and self.world.db.digest() != before:
                out.problem("rejected", f"{self.task.id}: {call.name}({dict(call.arguments)!r})")
            if result.ends and side == "assistant":
                self.ended = Termination.AGENT_STOP if result.done else Termination.AGENT_TRANSFER
                self.over = True
                return

    def _draw(self) -> Message:
        """One call of the agent, or of a user with tools."""
        rng, number = self.rng, f"c{len(self.messages)}"
        if hasattr(self.world, "apis"):
            return self._text(number)
        if self.gold and rng.random() < 0.6:
            side, name, arguments = self.gold.pop(0)
            if rng.random() < 0.3:
                arguments = _bent(arguments, rng)
            return Message(side, tool_calls=(ToolCall(name, arguments, id=number),))
        sides: list[Side] = ["assistant"]
        if self.world.tools("user"):
            sides.append("user")
        side = rng.choice(sides)
        tools = self.world.tools(side)
        if not tools or rng.random() < 0.03:
            return Message(side, tool_calls=(ToolCall("no_such_tool", {"a": 1}, id=number),))
        tool = rng.choice(list(tools.values()))
        arguments = made_up(tool.parameters, rng, self._known())
        return Message(side, tool_calls=(ToolCall(tool.name, arguments, id=number),))

    def _text(self, number: str) -> Message:
        """A step of ACEBench, whose calls are a text: one of a way to the goal, or a call made up."""
        from ..benchmarks.acebench.apis import calls_in
        from ..benchmarks.acebench.codec import encode

        rng, entry = self.rng, self.domain.entry(self.task)  # type: ignore[attr-defined]
        if rng.random() < 0.6:
            text = rng.choice(rng.choice(entry.milestones))
        else:
            function = rng.choice(entry.functions)
            text = f"[{encode(function['name'], made_up(function['parameters'], rng))}]"
        found = calls_in(text) or ()
        calls = tuple(ToolCall("call", id=f"{number}.{n}") for n, _ in enumerate(found))
        return Message("assistant", text, calls)

    def _known(self) -> Sequence[Any]:
        """Values that mean something in this task."""
        values = [v for a in self.task.actions for v in a.arguments.values()]
        return [*values, *self.task.scenario.facts.values()]

    def finish(self, out: Outcome) -> None:
        """What holds at the end of an episode."""
        out.episodes += 1
        self.end = end = _state(self.world)
        out.changed += end != self.start
        self.messages.append(Message("user", "bye"))
        live = self.domain.grade(self.task, self.messages, self.ended, self.world)
        stored = Trajectory.from_dict(
            json.loads(
                json.dumps(
                    Trajectory(
                        self.domain.name, self.task.id, self.task.kind, self.task.fingerprint,
                        self.messages, self.ended, 0, live.reward,
                    ).to_dict(), ensure_ascii=False,
                ).encode().decode()
            )
        )  # fmt: skip
        if stored.messages != self.messages:
            out.problem("replay", f"{self.task.id}: the messages are others after a way through JSON")
        again = self.domain.replay(self.task, stored.messages)
        if (found := _state(again)) != end and not _graded_by_messages(self.domain):
            out.problem("replay", f"{self.task.id}: {_difference(end, found)}")
        graded = self.domain.grade(self.task, stored.messages, stored.termination)
        if (graded.reward, dict(graded.components)) != (live.reward, dict(live.components)):
            out.problem("reward", f"{self.task.id}: {live} live, {graded} from disk")
        out.rewarded += live.reward > 0
        if out.slowest > SLOWEST:
            out.problem("bounded", f"a call took {out.slowest:.1f} s")
        alone, answers = self.domain.open(self.task), []
        for message in self.messages:
            side: Side = "user" if message.role == "user" else "assistant"
            if message.tool_calls and side == "assistant":
                alone.begin_step(message)
            answers += [alone.call(side, call) for call in message.tool_calls]
        if _state(alone) != end:
            out.problem("isolated", f"{self.task.id}: {_difference(end, _state(alone))}")
        told = [(a.content, a.error) for a in answers][: len(self.answers)]
        if told != self.answers and not hasattr(self.domain, "pool"):  # MCP servers tell the time
            out.problem("isolated", f"{self.task.id}: its calls are answered otherwise when it is alone")


def _compare(plays: Sequence[_Play], out: Outcome) -> None:
    """Promise `equality`, of each pair of end states, and of each end state and its first one."""
    for n, one in enumerate(plays):
        others = [(play.world, play.end) for play in plays[n + 1 :]]
        others.append((one.domain.open(one.task), one.start))
        for world, state in others:
            a, b = one.world.db, world.db
            if one.end is None or hasattr(one.world, "apis"):
                continue  # BFCL's and ACEBench's states are not compared by overlays
            by_touched, by_rows = a.equals(b), one.end == state
            out.compared += 1
            out.equal += by_touched
            if by_touched != by_rows:
                out.problem("equality", f"{one.task.id}: {by_touched} by overlays, {by_rows} by rows")
            if hasattr(a, "digest") and (a.digest() == b.digest()) != by_rows:
                out.problem("equality", f"{one.task.id}: the digests say {a.digest() == b.digest()}")


# ---------------------------------------------------------------- states


def _state(world: World) -> Any:
    """The whole state of a world as one comparable value, read in full: no overlay, no digest."""
    apis = getattr(world, "apis", None)  # ACEBench
    if apis is not None:
        return _plain(apis.states)
    db: Any = world.db
    if isinstance(db, Database):
        return _Rows(db)
    sides = getattr(db, "sides", None)  # τ²
    if sides is not None:
        from ..benchmarks.tau2 import cow

        return {side: cow.text(model) for side, model in sides.items()}
    return None


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, sort_keys=True, default=lambda v: getattr(v, "__dict__", str(v))))


class _Rows:
    """All rows of a database. Rows that two states share are one object, so reading all of it is fast."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, db: Database):
        self.rows = {(t, k): db.get(t, k) for t in db.base.tables for k in db.keys(t)}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Rows) or self.rows.keys() != other.rows.keys():
            return False
        return not any(True for _ in self.differences(other))

    def differences(self, other: _Rows) -> Iterator[str]:
        """Where they differ, in words."""
        for at in {**self.rows, **other.rows}:
            a, b = self.rows.get(at), other.rows.get(at)
            if a is not b and (a is None or b is None or not same(a, b)):
                yield f"{'.'.join(at)}: {a!r:.150} and {b!r:.150}"


def _difference(a: Any, b: Any) -> str:
    if isinstance(a, _Rows):
        return next(a.differences(b), "nothing")
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            if a.get(key) != b.get(key):
                return f"{key}.{_difference(a.get(key), b.get(key))}"
    return f"{a!r:.150} and {b!r:.150}"


def promises_atomic(domain: Domain) -> bool:
    """A call that fails changes nothing there. Upstream's benchmarks keep what a failing call had changed,
    and so must we, but for the variants that roll it back."""
    name = domain.name
    return not name.startswith(("tau1", "tau2", "bfcl", "acebench")) or "rollback" in name or "strict" in name


def _graded_by_messages(domain: Domain) -> bool:
    """The state is the scorer's own (BFCL), or only what counts is replayed (τ²: no calls that read)."""
    return domain.name.startswith("bfcl")


# ---------------------------------------------------------------- calls


def made_up(parameters: Mapping[str, Any], rng: random.Random, known: Sequence[Any] = ()) -> dict[str, Any]:
    """Arguments drawn from a schema, with values of the task where they fit; sometimes wrong ones."""
    properties = parameters.get("properties", {})
    required = set(parameters.get("required", ()))
    out = {
        name: _value(schema, rng, known)
        for name, schema in properties.items()
        if (name in required and rng.random() < 0.97) or rng.random() < 0.4
    }
    if rng.random() < 0.03:
        out["unknown"] = rng.choice(_WORDS)
    return out


def _value(schema: Any, rng: random.Random, known: Sequence[Any]) -> Any:
    if not isinstance(schema, dict):
        return rng.choice(_WORDS)
    if rng.random() < 0.05:
        return rng.choice([None, True, -1, 1e300, 2**70, [], {}, "x" * 5000, [[[[]]]]])
    if "enum" in schema:
        return rng.choice(schema["enum"])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return _value(rng.choice(schema[union]), rng, known)
    kinds: dict[str, Callable[[], Any]] = {
        "string": lambda: (
            rng.choice([v for v in known if isinstance(v, str)] or _WORDS)
            if rng.random() < 0.7
            else rng.choice(_WORDS)
        ),
        "integer": lambda: rng.choice([0, 1, 2, 3, 10, -1, 2**53 + 1]),
        "number": lambda: rng.choice([0, 1.5, 3, 3.0, -0.0, 1e-9, 123456.78]),
        "boolean": lambda: rng.random() < 0.5,
        "array": lambda: [_value(schema.get("items"), rng, known) for _ in range(rng.randrange(3))],
        "object": lambda: {
            k: _value(v, rng, known) for k, v in schema.get("properties", {}).items() if rng.random() < 0.8
        },
        "null": lambda: None,
    }
    kind = schema.get("type", "string")
    kind = rng.choice(kind) if isinstance(kind, list) else kind
    return kinds.get(kind, kinds["string"])()


def _bent(arguments: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Gold arguments with one that is another."""
    if not arguments:
        return {"x": 1}
    key = rng.choice(list(arguments))
    return {**arguments, key: _value({"type": "string"}, rng, list(arguments.values()))}


def everything() -> list[str]:
    """Names of all domains and benchmark parts whose data is on this machine."""
    from .. import benchmarks
    from ..domains import MCP_EXAMPLES, NAMES, load

    names = [*NAMES, *MCP_EXAMPLES]
    for family, parts in benchmarks.PARTS.items():
        names += [f"{family}/{part}" for part in parts]
    names += ["tau2/retail+rollback", "tau2/telecom+strict", "tau1/retail+strict"]
    found = []
    for name in names:
        try:
            load(name)
        except (MuaError, InfrastructureError):
            continue
        found.append(name)
    return found
