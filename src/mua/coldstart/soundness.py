"""Is a domain sound? What `mua tasks --verify` and `mua domain check` look at.

Invariant: a task that passes can be solved, by the policy's own expert and not by doing nothing; a domain
that passes has no task in two splits, and no tool that nobody needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..chat import Message, Side
from ..domain import Domain, Task
from ..domains import place_of
from ..episode import Limits
from ..errors import MuaError
from .conversations import play_expert
from .verification import verify

GOLD = "gold solutions replay"
NOOP = "doing nothing solves no task"
EXPERT = "the expert solves every task"
CONDUCT = "the expert breaks no rule of the policy"
SPLITS = "no task stands in two splits or twice"
TOOLS = "every tool is used"
SCHEMAS = "every tool has a valid schema"

OnProgress = Callable[[str, int, int, str], None]


@dataclass
class Check:
    """One question about a domain, asked of many tasks (tools, …)."""

    asked: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def passed(self) -> int:
        return max(0, self.asked - len(self.problems))


@dataclass
class Soundness:
    """What was found."""

    checks: dict[str, Check] = field(default_factory=dict)
    sound: dict[tuple[str, str], list[bool]] = field(default_factory=dict)
    """(kind, split) → whether each of its tasks is sound."""
    used: set[tuple[Side, str]] = field(default_factory=set)
    """(side, tool) of every call in a gold solution or a conversation of the expert."""

    @property
    def problems(self) -> list[str]:
        """All problems, in words."""
        return [problem for check in self.checks.values() for problem in check.problems]

    def ask(self, name: str, problem: str = "") -> bool:
        """Counts one answer to a question; true when there is no problem."""
        check = self.checks.setdefault(name, Check())
        check.asked += 1
        check.problems += [problem] if problem else []
        return not problem


async def check_tasks(
    domain: Domain, chosen: Mapping[str, Sequence[Task]], on_progress: OnProgress = lambda *news: None
) -> Soundness:
    """Each of the tasks, by split, and whether one is there twice."""
    found = Soundness()
    for split, tasks in chosen.items():
        for number, task in enumerate(tasks, 1):
            sound = await _check_task(domain, split, task, found)
            found.sound.setdefault((task.kind, split), []).append(sound)
            on_progress(f"verify {split}", number, len(tasks), f"{len(found.problems)} problems")
    seen: dict[str, str] = {}
    for split in chosen:
        for task in domain.tasks(split):
            where = seen.setdefault(task.fingerprint, f"{split} {task.id}")
            other = where != f"{split} {task.id}"
            found.ask(SPLITS, f"{split} {task.id}: has the content of {where}" if other else "")
    return found


async def check_domain(domain: Domain, on_progress: OnProgress = lambda *news: None) -> Soundness:
    """All tasks of all splits, and the tools."""
    found = await check_tasks(domain, {s: domain.tasks(s) for s in domain.splits}, on_progress)
    if domain.expert is None or domain.agenda_user is None:
        found.ask(EXPERT, "the domain has no expert program or no agenda user")
    sides: tuple[Side, ...] = ("assistant", "user")
    for side in sides:
        for name, tool in domain.tools(side).items():
            whose = "" if side == "assistant" else "the user's "
            unused = f"{whose}{name}: no gold solution and no expert's conversation uses it"
            found.ask(TOOLS, "" if (side, name) in found.used else unused)
            wrong = _schema_problem(tool.parameters)
            found.ask(SCHEMAS, wrong and f"{whose}{name}: {wrong}")
    return found


async def _check_task(domain: Domain, split: str, task: Task, found: Soundness) -> bool:
    def ask(check: str, problem: str) -> bool:
        return found.ask(check, problem and f"{split} {task.id}: {problem}")

    try:
        domain.gold(task)
    except Exception as exc:  # whatever somebody's own code raises is a problem of this task
        return ask(GOLD, _in_words(exc))
    ask(GOLD, "")
    found.used |= {(action.requestor, action.name) for action in task.actions}
    if not ask(NOOP, "doing nothing solves it" if domain.is_noop(task) else ""):
        return False
    if not domain.is_scripted(task):
        return True
    try:
        talk = await play_expert(domain, task, 0, Limits())
        why = verify(domain, task, talk)
    except Exception as exc:
        return ask(EXPERT, _in_words(exc))
    if not ask(EXPERT, f"the expert fails: {why} ({talk.detail or talk.reason})" if why else ""):
        return False
    found.used |= _calls(talk.messages)
    if domain.violations is None:
        return True
    broken = domain.violations(task, talk.messages)
    return ask(CONDUCT, f"the expert breaks a rule: {broken[0]}" if broken else "")


def _in_words(exc: Exception) -> str:
    return str(exc) if isinstance(exc, MuaError) else f"{type(exc).__name__}: {exc}{place_of(exc)}"


def _calls(messages: Sequence[Message]) -> set[tuple[Side, str]]:
    """(side, tool) of every call that succeeded."""
    failed = {m.tool_call_id for m in messages if m.error}
    return {
        ("user" if m.role == "user" else "assistant", call.name)
        for m in messages
        for call in m.tool_calls
        if call.id not in failed
    }


def _schema_problem(schema: Any) -> str:
    """Why it is no JSON Schema, or ""."""
    import jsonschema

    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as exc:
        return f"its arguments are no valid JSON Schema: {exc.message:.200}"
    return ""
