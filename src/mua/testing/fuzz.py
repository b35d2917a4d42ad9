"""Hostile text from models, servers and files: agent messages in every tool-call format, the answers of
endpoints and of MCP servers, configurations, domain files, stored trajectories.

What is promised, of each text: reading it ends, soon, in a value or in the one error that says what is wrong;
what was read can be stored and read again; and a call that is refused changes nothing.

Texts come from a grammar with a seed: mostly right, wrong in one or two places, and now and then nothing like
what was asked for.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..chat import Message, ToolCall
from ..database import Database
from ..domain import Domain, Limits
from ..episode import play
from ..errors import InfrastructureError, MuaError
from ..seeds import derive_seed
from .spoil import NASTY, PIECES, mutated, spoiled
from .states import made_up

SECONDS = 2.0
"""CPU time that reading one text, of a megabyte if need be, and running its calls may take."""
MEGABYTES = 400.0
"""That a whole round of texts may add to the peak memory of the process."""


@dataclass
class Outcome:
    """What was read, and what did not hold."""

    name: str
    texts: int = 0
    calls: int = 0
    refused: int = 0
    accepted: int = 0
    slowest: float = 0.0
    longest: int = 0
    """Characters of the longest text."""
    ends: Counter[str] = field(default_factory=Counter)
    """How reading ended, or how an episode did."""
    peak_mb: float = 0.0
    """By how much the process's peak memory grew."""
    problems: list[str] = field(default_factory=list)

    def problem(self, what: str, text: str) -> None:
        if len(self.problems) < 20:
            self.problems.append(f"{what}: {text[:300]!r}")


# ---------------------------------------------------------------- the grammar


def arguments_text(rng: random.Random, value: Mapping[str, Any]) -> str:
    """JSON of arguments, often spoiled: a key twice, no number, half of a character, depth, a megabyte."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    draw = rng.randrange(40)
    if draw == 0:
        depth = rng.choice((60, 70, 1_000, 50_000))
        return '{"a": ' + rng.choice(("[" * depth + "]" * depth, '{"b":' * depth + "1" + "}" * depth)) + "}"
    if draw == 1 and value:
        key = json.dumps(rng.choice(list(value)))
        return f"{text[:-1]}, {key}: 1}}"
    if draw == 2:
        return (
            text[:-1] + f', "n": {rng.choice(("NaN", "-Infinity", "1e999", "9" * 5_000, "1" + "0" * 320))}}}'
        )
    if draw == 3:
        return text[:-1] + ', "s": "\\ud800"}'
    if draw == 4:
        return text[: rng.randrange(len(text) + 1)]
    if draw == 5:
        return json.dumps(text)  # arguments as a string, which some models write
    if draw == 6:
        return text.replace('"', "'")
    if draw == 7 and rng.random() < 0.02:
        return json.dumps({**value, "pad": rng.choice(("x", "[", "\\", '"', "é")) * 1_000_000})
    if draw == 8:
        return rng.choice(("[]", "1", "null", '"x"', "", "{}{}", text + ",", text + "// done"))
    if draw == 9 and value:
        return json.dumps({**value, rng.choice(list(value)): rng.choice(NASTY)})
    return text


def call_text(rng: random.Random, tools: Sequence[Any], known: Sequence[Any], kind: str) -> str:
    """One call in the syntax of a format, near to what it should be."""
    tool = rng.choice(tools)
    name = (
        tool.name
        if rng.random() < 0.9
        else rng.choice(("no_such_tool", "", "__class__", tool.name + " ", "é"))
    )
    given = arguments_text(rng, made_up(tool.parameters, rng, known))
    key = "arguments" if kind == "hermes" else "parameters"
    if rng.random() < 0.05:
        key = rng.choice(("arguments", "parameters", "args", "Arguments"))
    body = f'{{"name": {json.dumps(name)}, "{key}": {given}}}'
    if rng.random() < 0.03:
        body = f'{{"{key}": {given}, "name": {json.dumps(name)}, "name": "x"}}'
    if kind == "hermes":
        return f"<tool_call>{body}" + ("" if rng.random() < 0.05 else "</tool_call>")
    return body


def message_text(rng: random.Random, tools: Sequence[Any], known: Sequence[Any], kind: str) -> str:
    """A message of an agent."""
    draw = rng.random()
    if draw < 0.1:  # nothing like a message
        return "".join(rng.choices(PIECES, k=rng.randrange(1, 40)))
    calls = [
        call_text(rng, tools, known, kind)
        for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 5)) if rng.random() < 0.99 else 40)
    ]
    text = (";" if kind == "llama" else rng.choice(("", "\n"))).join(calls)
    if kind == "llama" and rng.random() < 0.5:
        text = f"<|python_tag|>{text}"
    if rng.random() < 0.2:
        text = (
            f"<think>{rng.choice(('hm', '<tool_call>', ''))}"
            + ("</think>" if rng.random() < 0.8 else "")
            + text
        )
    if rng.random() < 0.3:
        text = rng.choice((f"One moment. {text}", f"{text} Done.", f"{text}{text}"))
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(PIECES) + text[at + rng.randrange(3) :]
    return text


# ---------------------------------------------------------------- agent messages


def readers() -> dict[str, Callable[[str], Message]]:
    """Format → how its text is read."""
    from ..formats import ChatFormat, hermes_message

    llama = object.__new__(ChatFormat)  # reading needs no tokenizer
    llama.calls = "llama"
    return {"hermes": hermes_message, "llama": llama.parse}


def agent_messages(kind: str, count: int, seed: int, domain: Domain) -> Outcome:
    """Reads `count` messages of an agent and makes their calls; one in fifty in an episode of its own."""
    out, read = Outcome(kind), readers()[kind]
    tools = list(domain.tools().values())
    tasks = domain.tasks("train")
    rng = random.Random(derive_seed(seed, "fuzz", kind))
    before = _peak_mb()
    world, known = domain.open(tasks[0]), []
    for number in range(count):
        if number % 50 == 0:
            task = rng.choice(tasks)
            world = domain.open(task)
            known = [*task.scenario.facts.values(), *(v for a in task.actions for v in a.arguments.values())]
        text = message_text(rng, tools, known, kind)
        began = time.process_time()
        try:
            message = read(text)
            _stored(message)
            for call in message.tool_calls:
                _called(out, world, call, text)
            if number % 50 == 0:
                _episode(out, domain, task, message, read, rng, tools, known, kind)
        except Exception as exc:  # nothing at all may come out of it
            out.problem(f"{type(exc).__name__}: {exc}", text)
        _timed(out, text, began)
    if domain.base.recompute_sum() != domain.base.digest_sum():
        out.problem("the shared database has changed", "")
    return _measured(out, before)


def _stored(message: Message) -> None:
    line = json.dumps(message.to_dict(), ensure_ascii=False).encode()
    assert Message.from_dict(json.loads(line)) == message, "it is another message when it is read from a file"


def _called(out: Outcome, world: Any, call: ToolCall, text: str) -> None:
    db: Database = world.db
    digest = db.digest()
    result = world.call("assistant", call)
    out.calls += 1
    out.refused += result.error
    out.accepted += not result.error
    if result.error and db.digest() != digest:
        out.problem("a refused call has changed something", text)
    if call.error and not result.error:
        out.problem("an unreadable call was made", text)
    if len(result.content) > 20_000:
        out.problem(f"an answer of {len(result.content)} characters", text)


class _Babbler:
    """An agent that says these messages; and a user that goes on regardless."""

    trace = None
    name = "babbler"

    def __init__(self, messages: Sequence[Message]):
        self._left = list(messages)

    async def step(self, messages: Sequence[Message]) -> Any:
        from ..agents import AgentStep

        return AgentStep(self._left.pop(0) if self._left else Message("assistant", "Done."), tokens=1)

    async def reply(self, view: Sequence[Message]) -> Any:
        from ..users import STOP, UserTurn

        said = sum(m.role == "user" for m in view)
        return UserTurn(STOP if said > 3 else rude(said), stop=said > 3)

    def close(self) -> None:
        pass


def rude(number: int) -> str:
    """Words of a person who tries to be the system."""
    return str([v for v in NASTY if isinstance(v, str) and "\ud83d" not in v][number % 12])


def _episode(
    out: Outcome,
    domain: Domain,
    task: Any,
    first: Message,
    read: Callable[[str], Message],
    rng: random.Random,
    tools: Sequence[Any],
    known: Sequence[Any],
    kind: str,
) -> None:
    more = [read(message_text(rng, tools, known, kind)) for _ in range(5)]
    agent = _Babbler([first, *more])
    played = asyncio.run(play(domain, task, agent, _Babbler([]), limits=Limits(errors=1000)))
    out.ends[played.termination.value] += 1
    if played.reward is None:
        out.problem(f"an agent made an episode fail as if by infrastructure: {played.detail}", str(first))
    again = domain.grade(task, [Message.from_dict(m.to_dict()) for m in played.messages], played.termination)
    if again.reward != played.reward:
        out.problem("another reward when it is graded again", str(first))


def marks(count: int, seed: int) -> Outcome:
    """Injections in tools' answers and users' words: rendered, they hold no mark of the format."""
    from ..formats import ChatFormat
    from ..tokenizer import train_tokenizer

    out = Outcome("injected marks")
    rng, before = random.Random(derive_seed(seed, "marks")), _peak_mb()
    tokenizer = train_tokenizer(
        ["hello there", *(v for v in NASTY if isinstance(v, str) and v.isascii())], 400
    )
    format = ChatFormat.of(tokenizer)
    special = set(tokenizer.all_special_ids)

    def found(text: str) -> int:
        call = ToolCall("look", {"q": text}, "c1")
        said = [
            Message("system", "s"), Message("user", text), Message("assistant", text, (call,)),
            Message("tool", text, tool_call_id="c1"),
        ]  # fmt: skip
        return sum(i in special for i in format.initial_ids(said, {}))

    plain = found("hello")
    for _ in range(count):
        text = "".join(
            rng.choices([*tokenizer.all_special_tokens, *PIECES, "hello "], k=rng.randrange(1, 12))
        )
        text = text.replace("###STOP###", "").encode("utf-8", "replace").decode()
        began = time.process_time()
        if found(text) != plain:
            out.problem("a mark of the format came out of a text", text)
        _timed(out, text, began)
    return _measured(out, before)


# ---------------------------------------------------------------- other inputs


def texts(
    name: str,
    samples: Sequence[Any],
    read: Callable[[str], str],
    count: int,
    seed: int,
    dump: Callable[[Any], str] = json.dumps,
    allowed: tuple[type[Exception], ...] = (MuaError,),
) -> Outcome:
    """Reads mutations of `samples` (JSON data), written by `dump`; `read` tells how it went in a word."""
    out, rng, before = Outcome(name), random.Random(derive_seed(seed, "fuzz", name)), _peak_mb()
    for _ in range(count):
        sample = rng.choice(samples)
        text = dump(sample) if rng.random() < 0.3 else dump(mutated(rng, sample))
        if rng.random() < 0.3:
            text = spoiled(rng, text)
        began = time.process_time()
        try:
            out.ends[read(text)] += 1
        except allowed as exc:
            out.ends["refused"] += 1
            if "\n" in str(exc).strip() or not str(exc).strip():
                out.problem(f"an error of several paragraphs: {exc}", text)
        except Exception as exc:
            out.problem(f"{type(exc).__name__}: {exc}", text)
        _timed(out, text, began)
    return _measured(out, before)


def endpoint_answers(count: int, seed: int) -> Outcome:
    """Bodies of a chat endpoint."""
    from ..endpoint import Answer, _read
    from .server import chat

    calls = [("pay_fine", {"card": "1", "fine_id": "2"}), ("look", '{"a": 1')]
    samples = [json.loads(chat("Hello.").body), json.loads(chat(None, calls).body)]
    samples.append(json.loads(chat("x", reasoning_content="hm").body))

    def read(text: str) -> str:
        found = _read(text)
        if isinstance(found, Answer):
            _stored(Message("assistant", found.text, found.tool_calls, thinking=found.thinking))
            return "answer"
        json.dumps(found.what, ensure_ascii=False).encode("utf-8", "replace")
        return "fault"

    return texts("endpoint answers", samples, read, count, seed, allowed=())


def configurations(count: int, seed: int, folder: Path) -> Outcome:
    """Configuration files."""
    from importlib.resources import files

    from ..config import load_config

    samples = [yaml.safe_load((files("mua") / "recipes" / f"{n}.yaml").read_text()) for n in ("quickstart",)]
    path = folder / "config.yaml"

    def read(text: str) -> str:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        load_config(path)
        return "read"

    return texts("configurations", samples, read, count, seed, dump=_yaml)


def domain_files(count: int, seed: int, folder: Path) -> Outcome:
    """Domain files of MCP servers, with tasks."""
    from ..domains.mcp.spec import read_spec

    here = Path(__file__).parent / "lockers"
    task = {"id": "a", "goal": "g", "calls": [{"rent_locker": {"name": "Ada Park"}}], "facts": {"name": "x"}}
    spec = {**yaml.safe_load((here / "domain.yaml").read_text()), "tasks": {"test": [task]}}
    spec["server"]["command"] = [sys.executable, "x"]
    spec.pop("code")
    spec["state"] = {"kind": "none"}
    path = folder / "domain.yaml"

    def read(text: str) -> str:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        read_spec(path)
        return "read"

    return texts("domain files", [spec], read, count, seed, dump=_yaml)


def trajectories(count: int, seed: int, folder: Path, domain: Domain) -> Outcome:
    """Stored conversations, read and graded."""
    from ..coldstart.conversations import play_expert
    from ..trajectory import read_trajectories

    tasks = domain.tasks("train")[:3]
    samples = [asyncio.run(play_expert(domain, t, 0, Limits())).to_dict() for t in tasks]
    path = folder / "trajectories.jsonl"

    def read(text: str) -> str:
        path.write_bytes(text.encode("utf-8", "surrogatepass") + b"\n")
        for t in read_trajectories(path):
            task = domain.task(t.task_id)
            domain.grade(task, t.messages, t.termination)
            json.dumps(t.to_dict(), ensure_ascii=False).encode()
        return "read"

    return texts("trajectories", samples, read, count, seed)


def mcp_answers(count: int, seed: int, folder: Path, file: Path) -> Outcome:
    """What an MCP server answers to calls: that of a domain file, every second answer of which is spoiled."""
    from ..domains import load
    from .child import spoil_tools

    plan = folder / "plan.yaml"
    kinds = {"mutated": 20, "garbage": 1, "half_line": 1, "crash": 1, "no_utf8": 1}
    plan.write_text(yaml.safe_dump({"seed": seed, "tools": {"rate": 0.5, "kinds": kinds}}), encoding="utf-8")
    with spoil_tools(plan, folder):
        return _mcp_answers(count, seed, load(str(file)))


def _mcp_answers(count: int, seed: int, domain: Any) -> Outcome:
    out, rng, before = Outcome("MCP answers"), random.Random(derive_seed(seed, "mcp")), _peak_mb()
    tasks = domain.tasks("train")
    for _ in range(count):
        task = rng.choice(tasks)
        world = domain.open(task)
        began = time.monotonic()
        try:
            for action in task.actions:
                result = world.call("assistant", ToolCall(action.name, action.arguments))
                _stored(Message("tool", result.content, tool_call_id="c1", error=result.error))
                out.ends["error" if result.error else "answer"] += 1
        except InfrastructureError:
            out.ends["infrastructure"] += 1
        except Exception as exc:
            out.problem(f"{type(exc).__name__}: {exc}", task.id)
        if domain.base.recompute_sum() != domain.base.digest_sum():
            out.problem("the shared state has changed", task.id)
        out.slowest = max(out.slowest, time.monotonic() - began)
        out.texts += 1
    return _measured(out, before)


def _yaml(data: Any) -> str:
    return yaml.safe_dump(data, allow_unicode=True) if isinstance(data, dict) else str(data)


def _timed(out: Outcome, text: str, began: float) -> None:
    seconds = time.process_time() - began
    out.texts += 1
    out.longest = max(out.longest, len(text))
    out.slowest = max(out.slowest, seconds)
    if seconds > SECONDS:
        out.problem(f"it took {seconds:.1f} s", text)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1 << 20 if sys.platform == "darwin" else 1 << 10
    )


def _measured(out: Outcome, before: float) -> Outcome:
    out.peak_mb = _peak_mb() - before
    if out.peak_mb > MEGABYTES:
        out.problem(f"the peak of memory grew by {out.peak_mb:.0f} MB", "")
    return out
