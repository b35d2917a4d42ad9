"""A domain made of any MCP server by a YAML file: its tools, its state, tasks over them.

The world of an episode is a state of the server's own kind (a folder, a database file), laid anew for each
episode, on which one of a few servers works whenever the episode makes a call. The end state is read from
it as rows, so gold states, verdicts and their reasons are those of any other domain.

Invariants: those of `mua.domain`; and of `servers`: no episode sees what another wrote, and whatever goes
wrong with a server is an InfrastructureError, never the agent's.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ...chat import Side
from ...database import Base, Database, same
from ...domain import Action, Change, Domain, Scenario, Task, ToolResult, World
from ...errors import InfrastructureError, MuaError, unreadable
from ...tools import Tool, tidy_schema
from ..records import add_record
from ..script import ScriptUser
from .servers import Pool, Session, Start, View
from .spec import DomainSpec, RecordSpec, TaskSpec, read_spec, wrong
from .state import KINDS, State

RECORDS = "records"
"""The table of what was recorded by the tools that are ours."""


@dataclass(frozen=True)
class McpDomain(Domain):
    """The domain of one YAML file."""

    pool: Any = field(kw_only=True, compare=False)
    state: State = field(kw_only=True, compare=False)
    agent_tools: Mapping[str, Tool] = field(kw_only=True, compare=False)
    records: Mapping[str, RecordSpec] = field(kw_only=True, compare=False)
    errors: re.Pattern[str] | None = field(default=None, kw_only=True, compare=False)

    def open(self, task: Task) -> McpWorld:
        return McpWorld(self, task)

    def tools(self, side: Side = "assistant") -> dict[str, Tool]:
        return dict(self.agent_tools) if side == "assistant" else {}

    def is_scripted(self, task: Task) -> bool:
        return super().is_scripted(task) and "requests" in task.scenario.agenda


class McpWorld(World):
    """The state of one episode. No server works for it before its first call."""

    def __init__(self, domain: McpDomain, task: Task):
        self._domain, self._pool = domain, domain.pool
        self._stale = False
        super().__init__(domain, task)
        self._stale = bool(task.setup)  # how the server's own state shows such a row is read from there
        self._session: Session = self._pool.session(functools.partial(_prepare, domain, task))
        weakref.finalize(self, self._pool.end, self._session)

    @property
    def db(self) -> Database:
        """The state as it is now, with what was recorded."""
        if self._stale:
            self._read()
        return self._db

    @db.setter
    def db(self, value: Database) -> None:
        self._db = value

    def execute(self, side: Side, tool: Tool, arguments: Mapping[str, Any]) -> ToolResult:
        """Runs one call on a server. A call that fails leaves the state as it was."""
        record = self._domain.records.get(tool.name)
        if record is not None:
            return self._record(record, arguments)
        if problem := self._pool.view.problem(arguments):
            return ToolResult(f"Error: {tool.name} was not called: {problem}.", error=True)
        with self._pool.working(self._session) as server:
            answer = server.attempt(tool.name, arguments, self._domain.errors, writes=tool.effect != "read")
        self._stale = self._pool.stateful
        return ToolResult(answer.text, error=answer.error)

    def _record(self, record: RecordSpec, arguments: Mapping[str, Any]) -> ToolResult:
        add_record(self._db, RECORDS, record.name, arguments, record.ungraded)
        return ToolResult("Recorded.", ends=record.ends)

    def _read(self) -> None:
        if self._pool.restart and self._session.calls:  # it may have to be made again first
            with self._pool.working(self._session) as server:
                tables = self._domain.state.read(server.place)
        else:
            tables = self._domain.state.read(self._session.where())
        for table, rows in tables.items():
            for key in [k for k in self._db.keys(table) if k not in rows]:
                self._db.delete(table, key)
            for key, row in rows.items():
                if not same(self._db.get(table, key), row):
                    self._db.put(table, key, row)
        self._stale = False


def _prepare(domain: McpDomain, task: Task, path: Path) -> None:
    """Lays the initial state of a task to a path."""
    domain.pool.make(path)
    for change in task.setup:
        try:
            domain.state.put(path, change.table, change.key, change.row)
        except (OSError, KeyError, TypeError, ValueError) as exc:
            raise MuaError(
                f"task '{task.id}' of domain '{domain.name}' is broken: its initial state cannot be "
                f"set: {exc}"
            ) from None


# ---------------------------------------------------------------- making a domain


def make(path: Path, load_code: Callable[[Path], ModuleType]) -> McpDomain:
    """The domain of a YAML file; starts a server to learn its tools. Raises MuaError that names the file,
    the field and what to do."""
    if importlib.util.find_spec("mcp") is None:
        raise MuaError(f"{path} is a domain of an MCP server, which needs the SDK: pip install 'mua[mcp]'.")
    spec = read_spec(path)
    code = load_code(path.parent / spec.code) if spec.code else ModuleType("nothing")
    pool, state = _pool(path, spec, code)
    try:
        return _domain(path, spec, code, pool, state)
    except BaseException:
        pool.close()
        raise


def _pool(path: Path, spec: DomainSpec, code: ModuleType) -> tuple[Pool, State]:
    """The servers, which start from the initial state."""
    server, kept = spec.server, Path(spec.state.path)
    foreign = None
    if kept.is_absolute():
        foreign = kept if spec.state.kind == "folder" else kept.parent
    state = KINDS[spec.state.kind](kept.name, spec.state.ignore)
    here = str(path.parent)

    def lay(to: Path) -> None:
        shutil.copytree(initial, to, symlinks=True)

    pool = Pool(
        spec.name or path.stem,
        Start(
            command=tuple(part.replace("{here}", here) for part in server.command),
            url=server.url,
            env={k: v.replace("{here}", here) for k, v in server.env.items()},
            timeout=server.timeout,
            start_timeout=server.start_timeout,
        ),
        None if spec.state.kind == "none" else lay,
        view=View(spec.root, spec.paths),
        size=server.servers,
        restart=server.restart,
        place=foreign,
    )
    initial = pool.folder / "initial"
    initial.mkdir()
    source = path.parent / spec.state.initial
    if spec.state.kind == "none":
        pass
    elif spec.state.initial:
        shutil.copytree(source, initial, dirs_exist_ok=True) if source.is_dir() else state.make(
            source, initial
        )
    elif hasattr(code, "make_state"):
        code.make_state(initial)
    elif pool.kept.exists():
        shutil.copytree(pool.kept, initial, symlinks=True, dirs_exist_ok=True)
    else:
        raise wrong(
            path, "state", "there is no initial state: name one (initial), or define make_state in the code"
        )
    return pool, state


def _domain(path: Path, spec: DomainSpec, code: ModuleType, pool: Pool, state: State) -> McpDomain:
    tables: dict[str, Any] = {name: {} for name in state.tables}
    tables |= state.read(pool.folder / "initial")
    base = Base({**tables, RECORDS: {}})
    tools = _tools(path, spec, pool)
    splits = {split: tuple(map(_task, tasks)) for split, tasks in spec.tasks.items()}
    if hasattr(code, "tasks"):
        splits |= {split: tuple(tasks) for split, tasks in code.tasks().items()}
    if not any(splits.values()):
        raise wrong(path, "tasks", "there are none; write some, or define tasks() in the code")
    _check_calls(path, splits, tools)
    agendas = any("requests" in t.scenario.agenda for tasks in splits.values() for t in tasks)
    return McpDomain(
        name=pool.name,
        policy=_policy(path, spec),
        load_base=lambda: base,
        load_split=lambda split: splits[split],
        splits=tuple(splits),
        toolkits={},
        expert=getattr(code, "Expert", None),
        agenda_user=getattr(code, "User", ScriptUser if agendas else None),
        conduct=spec.audit,
        pool=pool,
        state=state,
        agent_tools=tools,
        records={record.name: record for record in spec.records},
        errors=re.compile(spec.errors) if spec.errors else None,
    )


def _policy(path: Path, spec: DomainSpec) -> str:
    if "\n" in spec.policy or not spec.policy.endswith(".md"):
        return spec.policy
    try:
        return (path.parent / spec.policy).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise wrong(path, "policy", f"cannot be read: {unreadable(exc)}") from None


def _tools(path: Path, spec: DomainSpec, pool: Pool) -> dict[str, Tool]:
    """The agent's tools: the server's, in the order of the file, and those that record."""
    try:
        listed = {tool["name"]: tool for tool in pool.tools()}
    except InfrastructureError as exc:
        what = "server.command" if spec.server.command else "server.url"
        raise wrong(path, what, f"{exc}. Start it by hand to see more") from exc
    for at, names in (("tools", spec.tools), ("reads", spec.reads)):
        for name in names:
            if name not in listed:
                raise wrong(path, at, f"the server has no tool '{name}'; it has {', '.join(listed)}")
    found = {name: _tool(path, listed[name], spec) for name in spec.tools or listed}
    for record in spec.records:
        if record.name in found:
            raise wrong(path, f"records.{record.name}", "the server has a tool of that name; take another")
        schema = {"type": "object", "properties": record.arguments, "required": list(record.arguments)}
        described = {"name": record.name, "description": record.description, "inputSchema": schema}
        found[record.name] = _tool(path, described, spec, "end" if record.ends else "write")
    return found


def _tool(path: Path, listed: Mapping[str, Any], spec: DomainSpec, effect: Any = None) -> Tool:
    import jsonschema

    name = listed["name"]
    hints = listed.get("annotations") or {}
    schema = {k: v for k, v in listed["inputSchema"].items() if k != "$schema"}
    try:
        schema = tidy_schema({"type": "object", "properties": {}, **schema})
        jsonschema.Draft202012Validator.check_schema(schema)
    except (TypeError, KeyError, jsonschema.SchemaError) as exc:
        raise wrong(
            path, f"tools.{name}", f"its schema cannot be used: {_why(exc)}; leave the tool out"
        ) from None
    reads = name in spec.reads or hints.get("readOnlyHint") is True
    return Tool(
        name, listed.get("description") or name, schema, effect or ("read" if reads else "write"), dict
    )


def _why(exc: Exception) -> str:
    return " ".join(str(getattr(exc, "message", exc)).split())[:200]


def _task(spec: TaskSpec) -> Task:
    return Task(
        id=spec.id,
        kind=spec.kind,
        scenario=Scenario(goal=spec.goal, facts=spec.facts, persona=spec.persona, agenda=spec.agenda),
        actions=tuple(Action(name, arguments) for call in spec.calls for name, arguments in call.items()),
        setup=tuple(Change(str(c.get("table")), str(c.get("key")), c.get("row")) for c in spec.setup),
    )


def _check_calls(path: Path, splits: Mapping[str, tuple[Task, ...]], tools: Mapping[str, Tool]) -> None:
    """Gold calls that cannot be made show now, not in an episode."""
    for split, tasks in splits.items():
        for task in tasks:
            for action in task.actions:
                at = f"tasks.{split}, task {task.id}"
                if action.name not in tools:
                    raise wrong(path, at, f"there is no tool '{action.name}'; there are {', '.join(tools)}")
                if problems := tools[action.name].problems(action.arguments):
                    raise wrong(path, at, f"{action.name} cannot be called so: {'; '.join(problems)}")
