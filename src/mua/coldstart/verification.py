"""The one verification of conversations, whoever played them: for a run's cold start, for a file that
somebody brings, for the set of all domains.

Invariants:
- A conversation is kept only if a replay of what is stored earns the whole reward of its task. `CHECKS` come
  on top, and are the same wherever they are asked for.
- Nothing here reads who played, nor what a file claims about itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from ..domain import Domain, Task, World
from ..trajectory import Trajectory
from ..users import fidelity
from ..users.fidelity import AS_AGENT, EARLY, INVENTED, LATE, LEAKED
from .duplicates import Seen

Check = Literal["rules", "user", "duplicates"]
CHECKS: tuple[Check, ...] = ("rules", "user", "duplicates")
"""The rules of conduct hold (`Domain.violations`); the user stayed true to its scenario (`users.fidelity`);
no kept conversation of the domain is nearly the same."""

NOT_GOLD = "end state differs from gold on replay"
NOT_SOLVED = "not solved on replay"
RULES = "a rule of the policy was broken"
DUPLICATE = "near-duplicate of another conversation"
CAUSES = {
    NOT_GOLD: "not gold",
    RULES: "policy",
    LEAKED: "leaked",
    INVENTED: "invented",
    EARLY: "too early",
    LATE: "too late",
    AS_AGENT: "as agent",
    DUPLICATE: "duplicate",
}
"""Cause → as the head of a column. Ways in which an episode can end badly come beside them if they occur."""


def verify(domain: Domain, task: Task, trajectory: Trajectory, replayed: World | None = None) -> str:
    """Why the conversation did not solve its task, or "". `replayed` is its replay, if there is one."""
    if not trajectory.termination.normal:
        return trajectory.termination.value
    verdict = domain.grade(task, trajectory.messages, trajectory.termination, replayed)
    if verdict.reward >= 1.0:
        return ""
    return NOT_GOLD if "state" in verdict.components else NOT_SOLVED


def dropped_table(counts: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of what was kept, and dropped by cause: name → {"kept": n, "dropped": {cause: n}}."""
    causes = dict.fromkeys([*CAUSES, *(c for found in counts.values() for c in found["dropped"])])
    rows = [
        [name, str(found["kept"]), *(str(found["dropped"].get(c, 0)) for c in causes)]
        for name, found in counts.items()
    ]
    return ["", "kept", *(CAUSES.get(c, c) for c in causes)], rows


def occurring(columns: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns of causes that never came: for a terminal, which is narrow."""
    heads = set(CAUSES.values())
    kept = [i for i, head in enumerate(columns) if head not in heads or any(row[i] != "0" for row in rows)]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


class Verification:
    """Of one domain's conversations; remembers those that it let through, to compare later ones with."""

    def __init__(self, domain: Domain, checks: Collection[Check] = CHECKS):
        self.domain = domain
        self.checks = frozenset(checks)
        self._seen = Seen() if "duplicates" in self.checks else None
        self._passed = 0

    def examine(self, task: Task, trajectory: Trajectory) -> tuple[str, World | None]:
        """("", the world at its end) of a conversation that passes, else (why it does not, None)."""
        domain, messages = self.domain, trajectory.messages
        world = domain.replay(task, messages) if trajectory.termination.normal else None
        if why := verify(domain, task, trajectory, world):
            return why, None
        if "rules" in self.checks and domain.violations and domain.violations(task, messages):
            return RULES, None
        if "user" in self.checks and (strayed := fidelity.check(domain, task, trajectory)):
            return fidelity.cause(strayed[0]), None
        if self._seen is not None and self._seen.twin(f"{task.id}/{self._passed}", messages):
            return DUPLICATE, None
        self._passed += 1
        return "", world
