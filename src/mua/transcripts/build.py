"""`mua import`: a file of real conversations → redacted, audited, with a mix of personas and scenarios.

What a folder has afterwards:

    conversations.jsonl   the redacted conversations, as trajectories without a score
    personas.json         how the users behave, with counts and intervals: a mix for `train_user.personas`
    scenarios.json        what they wanted; those whose end is known are tasks, for `train_split`
    audit.json            figures of the five layers; trail.jsonl has a line for each rule that applied
    import.json           what was read, mended, redacted, replayed and left out
    rejected/             lines that could not be read, as they came (not redacted), and why
    teacher.jsonl         what a teacher answered

Nobody has written down what the end state of a real conversation should have been. Where the domain's own
tools, on the domain's own database, answer each call as it was answered, the state that they leave is
recorded by its digest; elsewhere the end is unknown, and says why.

Invariants:
- Every line ends up in `conversations.jsonl` or in `rejected/`, once.
- The same file and options give the same bytes, however often the command was stopped before; files are
  replaced when all of them are whole.
- Audit and replay read what really was said; what they leave behind is redacted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..audit import Audit, audit
from ..audit.events import state_changes
from ..chat import Message, Side
from ..coldstart.duplicates import Seen
from ..database import same
from ..domain import Action, Ask, Domain, Scenario, Task, World, scenario_task
from ..domains import load
from ..errors import InfrastructureError, MuaError
from ..evaluate.audit import Figures
from ..trajectory import Termination, Trajectory, read_trajectories
from . import behave, draft, personal, read
from .redact import Redactor

KIND = "imported"
REJECTED = "rejected"
FILES = ("conversations.jsonl", "personas.json", "scenarios.json", "audit.json", "trail.jsonl", "import.json")
Report = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Options:
    """How a file is imported."""

    database: Literal["redact", "keep"] = "redact"
    """What the domain's database holds of people is personal data, or (of a made-up database) is not."""
    region: str = "US"
    """Where phone numbers without a country code are from."""


@dataclass(frozen=True)
class End:
    """What is known of the end state of a conversation."""

    digest: str = ""
    """Of the state; empty where it is unknown."""
    why: str = ""
    """Why it is unknown."""


@dataclass
class Imported:
    """What came of a file; `import.json` without the lists."""

    figures: dict[str, Any] = field(default_factory=dict)
    mix: dict[str, Any] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    tasks: int = 0
    """Scenarios that can be trained on."""
    rejected: list[str] = field(default_factory=list)
    """What is wrong with each line that could not be read."""


async def run(
    path: Path,
    domain: Domain,
    out: Path,
    options: Options = Options(),
    teacher: tuple[str, Ask] | None = None,
    report: Report = lambda *news: None,
    should_stop: Callable[[], bool] = lambda: False,
    stopped: type[Exception] = InterruptedError,
) -> Imported:
    """Imports a file into a folder. Raises MuaError, and `stopped` once it should stop."""
    _check_domain(domain)
    _check_other(path, out)
    personal.need_libraries()
    region = personal.check_region(options.region)
    known = personal.known_people(domain)
    with contextlib.ExitStack() as stack:
        folder = _Folder(out, stack)
        one = _Import(domain, known, region, options.database == "keep", folder)
        total, done = read.size(path), 0
        for number, raw in read.lines(path):
            if should_stop():
                raise stopped
            one.take(number, raw)
            done += len(raw) + 1
            report("import", min(done, total), total, f"{one.read} read")
        one.check(path)
        report("import", total, total, f"{one.read} read")
        if teacher is not None:
            await _teach(one, teacher, out, folder, report, should_stop, stopped)
        made = one.finish(path, options)
        folder.finish()
    return made


def _check_domain(domain: Domain) -> None:
    """Raises MuaError for a domain whose tools nobody has without one of its tasks."""
    if len(domain.members) > 1:
        raise MuaError(f"'{domain.name}' is several domains; import the conversations of each by itself.")
    try:
        domain.task_tools(Task(KIND, KIND, Scenario(""), ()))
    except Exception as exc:
        raise MuaError(
            f"in '{domain.name}' every task has tools of its own ({exc}); conversations without one of its "
            "tasks cannot be imported."
        ) from None


def _check_other(path: Path, out: Path) -> None:
    """Raises MuaError when the folder holds what came of another file: nothing of that is written over."""
    try:
        before = json.loads((out / "import.json").read_text(encoding="utf-8"))["file"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if before != path.name:
        raise MuaError(f"{out} holds the import of {before}; take another --out for {path}.")


class _Folder:
    """The files of an import while they are written; they take their names all at once, at the end."""

    def __init__(self, out: Path, stack: contextlib.ExitStack):
        self.out = out
        try:
            (out / REJECTED).mkdir(parents=True, exist_ok=True)
            self._files = {
                name: (out / f".{name}.part").open("wb") for name in ("conversations.jsonl", "trail.jsonl")
            }
            for name in ("lines.jsonl", "reasons.jsonl"):
                part = out / REJECTED / f".{name}.part"
                # Not redacted: for nobody else's eyes.
                private = os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
                self._files[f"{REJECTED}/{name}"] = os.fdopen(private, "wb")
        except OSError as exc:
            raise MuaError(f"{out} cannot be written ({exc}); choose another --out.") from None
        for file in self._files.values():
            stack.enter_context(file)
        stack.callback(self._clean)

    def raw(self, name: str, data: bytes) -> None:
        self._files[name].write(data)

    def line(self, name: str, data: Mapping[str, Any]) -> None:
        self._files[name].write(_json_line(data))

    def whole(self, name: str, data: Any) -> None:
        (self.out / f".{name}.part").write_bytes(
            (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "backslashreplace")
        )

    def flush(self) -> None:
        for file in self._files.values():
            file.flush()

    def finish(self) -> None:
        for file in self._files.values():
            file.close()
        for part in [*self.out.glob(".*.part"), *(self.out / REJECTED).glob(".*.part")]:
            part.replace(part.with_name(part.name[1:].removesuffix(".part")))
        if not (self.out / REJECTED / "lines.jsonl").stat().st_size:
            for left in (self.out / REJECTED).iterdir():
                left.unlink()
            (self.out / REJECTED).rmdir()

    def _clean(self) -> None:
        for part in [*self.out.glob(".*.part"), *(self.out / REJECTED).glob(".*.part")]:
            part.unlink(missing_ok=True)
        for empty in (self.out / REJECTED, self.out):
            with contextlib.suppress(OSError):
                empty.rmdir()


def _json_line(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


@dataclass
class _Import:
    """The import so far, line by line."""

    domain: Domain
    known: personal.Known
    region: str
    keep: bool
    folder: _Folder
    read: int = 0
    rejected: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    redacted: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    """Calls of the agents, by the name of the tool."""
    copies: int = 0
    twins: int = 0
    shown: list[tuple[str, ...]] = field(default_factory=list)
    """Behaviours of each conversation that is no copy of another."""
    scenarios: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._figures = Figures()
        self._seen, self._exact = Seen(), set[bytes]()
        self._tools = {
            side: self.domain.task_tools(Task(KIND, KIND, Scenario(""), ()), side)
            for side in ("assistant", "user")
        }

    # ------------------------------------------------------------ a line

    def take(self, number: int, raw: bytes) -> None:
        """One line of the file, into the folder."""
        try:
            transcript = read.read(raw)
        except read.Wrong as exc:
            self.rejected.append(f"line {number}: {exc}")
            self.folder.raw(f"{REJECTED}/lines.jsonl", raw + b"\n")
            reason = {"line": number, "field": exc.field, "reason": exc.reason}
            self.folder.line(f"{REJECTED}/reasons.jsonl", reason)
            return
        place = self.read
        self.read += 1
        self.notes.update(transcript.notes)
        name = f"{KIND}-{place + 1:06}"
        redactor = Redactor(place, self.region, self.known, self.keep)
        redactor.learn(transcript.messages, transcript.names)
        self.redacted.update(redactor.counts)
        messages = [redactor.message(m) for m in transcript.messages]
        self.calls.update(c.name for m in transcript.messages if m.role == "assistant" for c in m.tool_calls)
        end = replayed(self.domain, transcript.messages)
        self.ends["replayed" if end.digest else end.why] += 1
        shown = behave.behaviours(messages)
        scenario = self._scenario(name, number, transcript.messages, messages, end, shown)
        trajectory = self._trajectory(scenario, messages, end, shown)
        self._audit(transcript.messages, trajectory, redactor)
        self.folder.line("conversations.jsonl", trajectory.to_dict())
        content = hashlib.sha256(json.dumps([m.to_dict() for m in transcript.messages]).encode()).digest()
        if content in self._exact:
            self.copies += 1
            return
        self._exact.add(content)
        self.shown.append(shown)
        if self._seen.twin(name, transcript.messages):
            self.twins += 1
            return
        self.scenarios.append(scenario)

    def _scenario(
        self,
        name: str,
        line: int,
        original: Sequence[Message],
        messages: Sequence[Message],
        end: End,
        shown: tuple[str, ...],
    ) -> dict[str, Any]:
        drafted = draft.by_rules(messages, shown)
        out: dict[str, Any] = {
            "id": name,
            "line": line,
            "kind": KIND,
            "goal": drafted.goal,
            "facts": dict(drafted.facts),
            "behaviours": list(shown),
            "drafted_by": drafted.by,
            "actions": [
                {"name": a.name, "arguments": dict(a.arguments), "requestor": a.requestor}
                for a in self._writes(messages)
            ],
            "digest": end.digest,
        }
        out["task"], out["why"] = self._is_task(out, original, messages, end)
        return out

    def _writes(self, messages: Sequence[Message]) -> Iterator[Action]:
        """The calls that changed something, as far as the tools say so."""
        failed = {m.tool_call_id for m in messages if m.role == "tool" and m.error}
        for message in messages:
            side: Side = "user" if message.role == "user" else "assistant"
            for call in message.tool_calls:
                tool = self._tools[side].get(call.name)
                if tool is not None and tool.effect != "read" and call.id not in failed and not call.error:
                    yield Action(call.name, call.arguments, side)

    def _is_task(
        self, scenario: Mapping[str, Any], original: Sequence[Message], messages: Sequence[Message], end: End
    ) -> tuple[bool, str]:
        """Whether a scenario can be trained on, and why it cannot."""
        if not end.digest:
            return False, end.why
        before, after = ([c.arguments for m in side for c in m.tool_calls] for side in (original, messages))
        if not same(before, after):
            return False, "redaction changed the calls; --database keep leaves what the database holds"
        try:
            gold = self.domain.gold(scenario_task(scenario))
        except MuaError:
            return False, "the changes alone do not lead to the end of the conversation"
        if gold.digest() != end.digest:
            return False, "the changes alone do not lead to the end of the conversation"
        if not scenario["actions"] or end.digest == self.domain.digest():
            return False, "nothing was changed, so doing nothing would solve it"
        return True, ""

    def _trajectory(
        self, scenario: Mapping[str, Any], messages: list[Message], end: End, shown: tuple[str, ...]
    ) -> Trajectory:
        handed = any(
            (tool := self._tools["assistant"].get(c.name)) is not None and tool.effect == "end"
            for m in messages[-2:]
            for c in m.tool_calls
        )
        return Trajectory(
            domain=self.domain.name,
            task_id=scenario["id"],
            kind=KIND,
            fingerprint=scenario_task(scenario).fingerprint,
            messages=messages,
            termination=Termination.AGENT_TRANSFER if handed else Termination.USER_STOP,
            seed=0,
            reason=f"replayed, end state {end.digest}" if end.digest else f"end state unknown: {end.why}",
            user=KIND,
            persona=behave.persona(shown),
        )

    def _audit(self, original: list[Message], trajectory: Trajectory, redactor: Redactor) -> None:
        """The layers of what really was said; the trail of what is kept."""
        domain = self.domain
        task = Task(trajectory.task_id, KIND, Scenario(""), tuple(self._writes(original)))
        found = audit(domain, task, dataclasses.replace(trajectory, messages=original))
        self._figures.add(found)
        changes: Mapping[int, list[str]] = {}
        if found.violations:
            with contextlib.suppress(Exception):  # where no world opens without a task of its own
                changes = state_changes(domain, task, original)
        redactor.also(
            [*(v.evidence for v in found.violations), *(t for texts in changes.values() for t in texts)]
        )
        verdicts = tuple(
            dataclasses.replace(v, evidence=redactor.text(v.evidence), question=redactor.text(v.question))
            for v in found.verdicts
        )
        redacted = {at: [redactor.text(text) for text in texts] for at, texts in changes.items()}
        for line in Audit(verdicts, found.behaviour).trail(trajectory, redacted):
            self.folder.line("trail.jsonl", line)

    # ------------------------------------------------------------ the end

    def check(self, path: Path) -> None:
        """Raises MuaError when there is nothing, or nothing of this domain; bad lines are kept all the
        same."""
        if not self.read and not self.rejected:
            raise MuaError(f"{path} has no conversation: it has no line that is not blank.")
        if not self.read:
            self._keep_rejected()
            raise MuaError(
                f"not one of the {len(self.rejected)} lines of {path} can be read; {self.rejected[0]}. They "
                f"are in {self.folder.out / REJECTED}, with what is wrong with each."
            )
        own = {*self._tools["assistant"], *self._tools["user"]}
        others = {n: c for n, c in self.calls.items() if n not in own}
        if 2 * sum(others.values()) > sum(self.calls.values()):
            names = ", ".join(sorted(others, key=lambda n: (-others[n], n))[:5])
            raise MuaError(
                f"{path} is not of domain '{self.domain.name}': {sum(others.values())} of "
                f"{sum(self.calls.values())} calls are of tools that it does not have ({names}). Name the "
                "domain whose tools they are by --domain; docs/wrap-my-mcp-server.md makes one of a server's."
            )

    def _keep_rejected(self) -> None:
        self.folder.flush()
        for name in ("lines.jsonl", "reasons.jsonl"):
            part = self.folder.out / REJECTED / f".{name}.part"
            part.replace(part.with_name(name))

    def finish(self, path: Path, options: Options) -> Imported:
        """Writes what is known when all lines were taken."""
        mix = behave.mix(tuple(s) for s in self.shown)
        found = self._figures.to_dict()
        tasks = sum(s["task"] for s in self.scenarios)
        figures = {
            "file": path.name,
            "domain": self.domain.name,
            "database": self.domain.digest(),
            "options": dataclasses.asdict(options),
            "lines": self.read + len(self.rejected),
            "conversations": self.read,
            "rejected": len(self.rejected),
            "copies": self.copies,
            "near_duplicates": self.twins,
            "mended": dict(sorted(self.notes.items())),
            "redacted": dict(sorted(self.redacted.items())),
            "end_states": dict(sorted(self.ends.items())),
            "scenarios": len(self.scenarios),
            "tasks": tasks,
            "drafted_by": dict(Counter(s["drafted_by"] for s in self.scenarios)),
        }
        self.folder.whole("personas.json", {"domain": self.domain.name, **mix})
        self.folder.whole("scenarios.json", {"domain": self.domain.name, "scenarios": self.scenarios})
        self.folder.whole("audit.json", found)
        self.folder.whole("import.json", figures)
        return Imported(figures, mix, found, tasks, self.rejected)


# ---------------------------------------------------------------- end states


def replayed(domain: Domain, messages: Sequence[Message]) -> End:
    """What the domain's tools make of the calls on its database: the digest of the state, if each answered
    as it did in the conversation."""
    answers = {m.tool_call_id: m for m in messages if m.role == "tool"}
    made = [(m, c) for m in messages for c in m.tool_calls]
    if not made:
        return End(why="nothing was called")
    try:
        world: World = domain.open(Task("", KIND, Scenario(""), ()))
    except Exception as exc:  # of a benchmark, whose tasks hold more than ours
        return End(why=f"the domain opens no world without a task of its own ({type(exc).__name__})")
    for message, call in made:
        side: Side = "user" if message.role == "user" else "assistant"
        answer = answers.get(call.id)
        if answer is None:
            return End(why="a call has no answer")
        try:
            result = world.call(side, call)
        except InfrastructureError:
            return End(why="a tool of the domain is out of order")
        if result.error != answer.error or not _same_answer(result.content, answer.content):
            return End(why="a tool answers otherwise on the domain's database")
    return End(digest=world.db.digest())


def _same_answer(here: str, there: str) -> bool:
    if here.strip() == there.strip():
        return True
    try:
        return same(json.loads(here), json.loads(there))
    except (ValueError, RecursionError):
        return False


# ---------------------------------------------------------------- scenarios


async def _teach(
    one: _Import,
    teacher: tuple[str, Ask],
    out: Path,
    folder: _Folder,
    report: Report,
    should_stop: Callable[[], bool],
    stopped: type[Exception],
) -> None:
    """Lets the teacher draft the scenarios; personas stay those of the rules, which are measured."""
    name, ask = teacher
    folder.flush()
    wanted = {s["id"] for s in one.scenarios}
    stored = read_trajectories(out / ".conversations.jsonl.part")
    conversations = [t.messages for t in stored if t.task_id in wanted]

    def on_progress(done: int) -> None:
        report("draft", done, len(conversations), "")
        if should_stop():
            raise stopped

    answers = draft.Answers(out / "teacher.jsonl")
    try:
        drafts = await draft.by_teacher(name, ask, conversations, answers, on_progress)
    finally:
        answers.close()
    for scenario, made in zip(one.scenarios, drafts, strict=True):
        if made is not None:
            scenario.update(
                goal=made.goal, facts=dict(made.facts), behaviours=list(made.behaviours), drafted_by=made.by
            )


def read_import(folder: Path, domain: str) -> list[Trajectory]:
    """The conversations of an import. Raises MuaError when the folder is none, or of another domain."""
    path = folder / "conversations.jsonl"
    try:
        figures = json.loads((folder / "import.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise MuaError(
            f"{folder} is no import; `mua import FILE --domain D --out {folder}` makes one."
        ) from None
    if _family(figures["domain"]) != _family(load(domain).name):
        raise MuaError(
            f"the conversations in {folder} are of domain '{figures['domain']}', not of '{domain}'; name "
            "theirs by --domain."
        )
    return list(read_trajectories(path))


def _family(domain: str) -> str:
    """A domain's name without its profile: the people of all profiles are the same."""
    return domain.partition(":")[0]
