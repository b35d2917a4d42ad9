"""Tasks as τ²-bench's files hold them, as tasks of ours.

Invariant: nothing of a task is lost or reworded: `Tau2Task.data` is upstream's own record, and the user's
prompt is upstream's text, read from what is installed.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...chat import Side
from ...domain import Action, Scenario, Task
from ...errors import MuaError
from .upstream import Upstream

DEFAULT_BASIS = ("DB", "COMMUNICATE")
"""What a task without a reward basis is scored by."""


@dataclass(frozen=True)
class Tau2Task(Task):
    """A task of τ²-bench."""

    data: Mapping[str, Any] = field(default_factory=dict)
    """Upstream's record: user scenario, ticket, initial state, evaluation criteria."""

    @property
    def criteria(self) -> Mapping[str, Any] | None:
        """Upstream's evaluation criteria; None where the task has none."""
        return self.data.get("evaluation_criteria")

    @property
    def basis(self) -> tuple[str, ...]:
        """The components whose product is the reward."""
        found = (self.criteria or {}).get("reward_basis")
        return DEFAULT_BASIS if found is None else tuple(found)

    @property
    def initial(self) -> Mapping[str, Any]:
        """Upstream's initial state: `initialization_data`, `initialization_actions`."""
        return self.data.get("initial_state") or {}

    @functools.cached_property
    def key(self) -> str:
        """Hash of all that the verdict depends on: initial state and criteria."""
        return hashlib.sha256(json.dumps([self.initial, self.criteria], sort_keys=True).encode()).hexdigest()


class Tasks:
    """The tasks of one part of an installed benchmark."""

    def __init__(self, part: str, folder: Path, guidelines: Path, upstream: Upstream, *, user_tools: bool):
        """`folder` holds tasks.json and split_tasks.json; `guidelines` those of the simulated user."""
        self.part = part
        self.folder = folder
        self.guidelines = guidelines / f"simulation_guidelines{'_tools' if user_tools else ''}.md"
        self.upstream = upstream

    @functools.cached_property
    def splits(self) -> dict[str, list[str]]:
        """Task ids by split, in the file's order of splits; `base` is all that upstream evaluates on."""
        found = read_json(self.folder / "split_tasks.json")
        order = ("base", "train", "test")
        return {
            s: found[s] for s in [*(o for o in order if o in found), *(s for s in found if s not in order)]
        }

    @functools.cached_property
    def records(self) -> dict[str, Mapping[str, Any]]:
        """Upstream's records by id."""
        found = read_json(self.folder / "tasks.json")
        return {str(r["id"]): r for r in (found["tasks"] if isinstance(found, dict) else found)}

    def split(self, name: str) -> list[Tau2Task]:
        """The tasks of a split, in the order of the task file, as upstream plays them."""
        wanted = set(map(str, self.splits[name]))
        return [self.make(record) for key, record in self.records.items() if key in wanted]

    def make(self, record: Mapping[str, Any]) -> Tau2Task:
        """A task of ours from one of upstream's records. Raises MuaError when it is none."""
        try:
            scenario = self._scenario(record)
            criteria = record.get("evaluation_criteria") or {}
            actions = tuple(
                Action(a["name"], a.get("arguments") or {}, _side(a.get("requestor")))
                for a in criteria.get("actions") or ()
            )
            name = str(record["id"])
            ours = record.get("mua") or {}  # a generated task
            kind = ours.get("kind") or self._kind(name)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise MuaError(
                f"a task of τ²-bench {self.part} cannot be read: {type(exc).__name__}: {exc}"
            ) from None
        return Tau2Task(name, kind, scenario, actions, data=record)

    def _kind(self, name: str) -> str:
        """Telecom's ids say what family of problem they are: `[mms_issue]…`; other parts have one kind."""
        return name[1:].partition("]")[0] if name.startswith("[") else self.part

    def _scenario(self, record: Mapping[str, Any]) -> Scenario:
        scenario = record["user_scenario"]
        instructions = scenario["instructions"]
        told = str(self.upstream.get("data_model.tasks", "UserScenario").model_validate(scenario))
        facts: dict[str, str] = {}
        if isinstance(instructions, Mapping):
            goal = "\n".join(
                str(instructions[k])
                for k in ("reason_for_call", "task_instructions")
                if instructions.get(k) is not None
            )
            for name in ("known_info", "unknown_info"):
                if instructions.get(name):
                    facts[name.replace("_", " ")] = str(instructions[name])
        else:
            goal = str(instructions)
        return Scenario(
            goal=goal,
            facts=facts,
            persona=str(scenario.get("persona") or ""),
            agenda={
                "instructions": instructions,
                "initial_state": record.get("initial_state"),
                **((record.get("mua") or {}).get("agenda") or {}),
            },
            prompt=self._template.replace("{instructions}", told),
        )

    @functools.cached_property
    def _template(self) -> str:
        """The user's system prompt with the guidelines filled in."""
        template = self.upstream.constant("user/user_simulator.py", "SYSTEM_PROMPT")
        head, _, rest = template.partition("{")
        _, _, tail = rest.partition("}")
        try:
            return head + self.guidelines.read_text(encoding="utf-8") + tail
        except OSError as exc:
            raise MuaError(
                f"{self.guidelines} cannot be read ({exc}). Install the benchmark again."
            ) from None


def _side(requestor: Any) -> Side:
    return "user" if requestor == "user" else "assistant"


def read_json(path: Path) -> Any:
    """The content of a data file. Raises MuaError naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise MuaError(f"{path} cannot be read: {exc}. Install the benchmark again.") from None


def agent_prompt(upstream: Upstream, policy: str, ticket: str | None) -> str:
    """The agent's system prompt, upstream's text; with a `ticket`, that of solo work."""
    file = "agent/llm_agent.py"
    solo = "_SOLO" if ticket is not None else ""
    told = upstream.constant(file, f"AGENT{solo}_INSTRUCTION")
    parts = {
        "{agent_instruction}": told.replace("{stop_function_name}", "done"),
        "{domain_policy}": policy,
        "{ticket}": str(ticket),
    }
    prompt = upstream.constant(file, f"SYSTEM_PROMPT{solo}")
    return "".join(parts.get(piece, piece) for piece in _pieces(prompt, parts))


def _pieces(text: str, marks: Sequence[str] | Mapping[str, str]) -> list[str]:
    import re

    return re.split("(" + "|".join(map(re.escape, marks)) + ")", text)
