"""The YAML file that makes a domain of an MCP server, and what keeps it from doing so, in words.

Invariant: a file that is read has every field that it needs, of the right type; else a MuaError names file
and field.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...audit import Conduct
from ...errors import MuaError, unreadable
from .servers import program


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSpec(_Part):
    """How the server is started, or where it is."""

    command: tuple[str, ...] = Field(
        default=(), description="Program and arguments; {state}, {port}, {here} are filled in."
    )
    url: str = Field(
        default="", pattern=r"^$|^https?://", description="For streamable HTTP; {port} is filled in."
    )
    env: dict[str, str] = Field(default={}, description="Environment beside PATH, HOME and their like.")
    timeout: float = Field(default=30.0, gt=0, description="Seconds for one request.")
    start_timeout: float = Field(default=120.0, gt=0, description="Seconds until it has started.")
    servers: int = Field(default=1, ge=1, description="Most processes at once.")
    restart: bool = Field(
        default=False, description="A new process for each episode: it remembers more than its state."
    )

    @model_validator(mode="after")
    def _reachable(self) -> ServerSpec:
        if not self.command and not self.url:
            raise ValueError("give a command that starts the server, or the url of one that runs")
        if self.url and self.servers > 1 and "{port}" not in self.url:
            raise ValueError("servers must be 1 when the url has no {port}: there is one address")
        if not self.command and self.restart:
            raise ValueError("restart is of servers that mua starts; give a command")
        return self


class StateSpec(_Part):
    """What the server changes."""

    kind: Literal["none", "file", "folder", "sqlite"] = "none"
    path: str = Field(
        default="",
        description="The file in {state}; of a server that mua does not start, where it really is.",
    )
    initial: str = Field(
        default="", description="File or folder with the initial state; for sqlite also a script (.sql)."
    )
    ignore: tuple[str, ...] = Field(
        default=(), description="What does not count: file patterns, or table.column."
    )

    @model_validator(mode="after")
    def _named(self) -> StateSpec:
        if self.kind in ("file", "sqlite") and not self.path:
            raise ValueError(f"a state of kind {self.kind} needs a path: the file's name in {{state}}")
        return self


class RecordSpec(_Part):
    """A tool of ours beside the server's: what it is called with becomes a graded row."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str
    arguments: dict[str, dict[str, Any]] = Field(
        default={}, description="JSON Schema by argument; all are required."
    )
    ungraded: tuple[str, ...] = Field(default=(), description="Arguments that do not count (free text).")
    ends: bool = Field(default=False, description="It hands the conversation over: the episode ends.")


class TaskSpec(_Part):
    id: str
    kind: str = "task"
    goal: str
    facts: dict[str, str] = {}
    persona: str = ""
    agenda: dict[str, Any] = {}
    setup: tuple[dict[str, Any], ...] = Field(
        default=(), description="Rows of the initial state: table, key, row."
    )
    calls: tuple[dict[str, dict[str, Any]], ...] = Field(
        min_length=1, description="Gold calls: {tool: arguments}."
    )


class DomainSpec(_Part):
    """The whole file."""

    name: str = ""
    policy: str = Field(description="The policy, or the name of a file (.md) that holds it.")
    server: ServerSpec
    tools: tuple[str, ...] = Field(
        default=(), description="The server's tools that the agent has; all without a list."
    )
    reads: tuple[str, ...] = Field(
        default=(), description="Tools that change nothing, where the server does not say so."
    )
    errors: str = Field(
        default="", description="Pattern of answers that are errors, where the server does not say so."
    )
    root: str = Field(
        default="/data", pattern=r"^/[^/].*[^/]$", description="What the agent sees instead of {state}."
    )
    paths: tuple[str, ...] = Field(default=(), description="Arguments that are paths below root.")
    records: tuple[RecordSpec, ...] = ()
    state: StateSpec = StateSpec()
    code: str = Field(
        default="", description="Python file with make_state, tasks, User and Expert, each of them optional."
    )
    audit: Conduct | None = Field(
        default=None, description="Rules of conduct, as any domain's audit.yaml states them (docs/audit.md)."
    )
    tasks: dict[str, tuple[TaskSpec, ...]] = Field(default={}, description="Tasks by split.")


def read_spec(path: Path) -> DomainSpec:
    """The file, checked. Raises MuaError that names file, field and fix."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MuaError(
            f"there is no domain file {path}; name a YAML file of an MCP server's domain."
        ) from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as exc:
        raise MuaError(f"the domain file {path} cannot be read: {unreadable(exc)}") from None
    if not isinstance(data, dict):
        raise wrong(path, "", "must be a mapping with at least policy, server and tasks (or code)")
    try:
        spec = DomainSpec.model_validate(data)
    except ValidationError as exc:
        errors = exc.errors(include_url=False, include_input=False)
        said = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in errors[:5])
        raise MuaError(
            f"the domain file {path} is not right: {said}. docs/wrap-my-mcp-server.md has the fields."
        ) from None
    _check(path, spec)
    return spec


def _check(path: Path, spec: DomainSpec) -> None:
    """What holds between the fields, and between them and this machine."""
    server, state = spec.server, spec.state
    if server.command and program(server.command[0]) is None:
        raise wrong(
            path,
            "server.command",
            f"there is no program '{server.command[0]}' on PATH or beside this Python; install the server "
            "(pip install mcp-server-…; for npx: Node.js), or write the whole path of the program",
        )
    if not server.command and state.kind != "none" and not Path(state.path).is_absolute():
        raise wrong(
            path,
            "state.path",
            "a server that mua does not start keeps its state somewhere: write the whole path",
        )
    if server.command and Path(state.path).is_absolute():
        raise wrong(
            path, "state.path", "a server that mua starts has its state in {state}: write a name in it"
        )
    if state.initial and not (path.parent / state.initial).exists():
        raise wrong(path, "state.initial", f"there is no {path.parent / state.initial}")
    if state.kind != "none" and not state.initial and not spec.code and server.command:
        raise wrong(
            path, "state.initial", "the episodes start from something: name a file or folder (or code)"
        )
    if spec.code and not (path.parent / spec.code).is_file():
        raise wrong(path, "code", f"there is no {path.parent / spec.code}")
    if not spec.tasks and not spec.code:
        raise wrong(path, "tasks", "there are none; write some, or name code that makes them")
    try:
        re.compile(spec.errors)
    except re.error as exc:
        raise wrong(path, "errors", f"is no pattern: {exc}") from None


def wrong(path: Path, at: str, what: str) -> MuaError:
    said = " ".join(what.split())  # it may quote the file
    return MuaError(f"the domain file {path} is not right: {f'{at}: ' if at else 'it '}{said}.")
