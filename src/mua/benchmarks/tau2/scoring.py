"""τ²-bench's reward, component by component, as its evaluator computes it.

Invariant: a verdict is a pure function of task and conversation, and equals that of upstream's evaluator
(1.0.1) on the same conversation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...chat import Message, ToolCall
from .state import GONE, Path, differences
from .tasks import Tau2Task
from .world import Tau2World


@dataclass(frozen=True)
class Check:
    """One criterion."""

    component: str
    """`db`, `env_assertion`, `action`, `communicate` or `nl_assertion`."""
    met: bool
    text: str
    """What was wanted, and what was found instead."""


def db_checks(world: Tau2World, gold: Mapping[Path, str]) -> list[Check]:
    """Both databases equal those after the gold actions."""
    here = world.db.changes()
    if here == gold:
        return [Check("db", True, "the databases equal gold's")]
    found = differences(here, gold, world.db.originals)
    text = "; ".join(found[:4]) + ("; …" if len(found) > 4 else "")
    return [Check("db", False, f"end state (here) differs from gold (there): {text}")]


def assertion_checks(world: Tau2World, task: Tau2Task) -> list[Check]:
    """Upstream's assertions, run on the world in their order; each synchronises the sides afterwards."""
    out = []
    for wanted in (task.criteria or {}).get("env_assertions") or ():
        expected = wanted.get("assert_value", True)
        name = f"{wanted['func_name']}({_arguments(wanted.get('arguments') or {})})"
        try:
            value = world.function(wanted)
        except Exception as exc:
            out.append(Check("env_assertion", False, f"{name} failed: {exc}"))
            continue
        met = isinstance(value, bool) and value == expected
        out.append(Check("env_assertion", met, f"{name} is {value}, wanted {expected}"))
    return out


def action_checks(task: Tau2Task, messages: Iterable[Message]) -> list[Check]:
    """Each gold action matches some call of either side, whatever became of it."""
    calls = [c for m in messages for c in m.tool_calls if not c.error]
    out = []
    for action in (task.criteria or {}).get("actions") or ():
        met = any(_matches(action, call) for call in calls)
        text = f"{action['name']}({_arguments(action.get('arguments') or {})})"
        out.append(Check("action", met, f"{text} was {'called' if met else 'not called'}"))
    return out


def _matches(action: Mapping[str, Any], call: ToolCall) -> bool:
    if action["name"] != call.name:
        return False
    keys = action.get("compare_args")
    keys = call.arguments.keys() if keys is None else keys
    wanted = action.get("arguments") or {}
    return {k: v for k, v in call.arguments.items() if k in keys} == {
        k: v for k, v in wanted.items() if k in keys
    }


def communicate_checks(task: Tau2Task, messages: Sequence[Message]) -> list[Check]:
    """Each text stands in some message of the agent, without regard to case and to its commas."""
    said = [
        m.content.lower().replace(",", "") for m in messages if m.role == "assistant" and m.content.strip()
    ]
    out = []
    for wanted in (task.criteria or {}).get("communicate_info") or ():
        met = any(wanted.lower() in text for text in said)
        out.append(Check("communicate", met, f"'{wanted}' was {'said' if met else 'not said'}"))
    return out


def assertions_of(task: Tau2Task) -> list[str]:
    """The assertions in natural language; a judge decides about them."""
    return list((task.criteria or {}).get("nl_assertions") or ())


@dataclass(frozen=True)
class Scored:
    """All components of a conversation, and what came of them."""

    reward: float
    components: dict[str, float]
    """Value of each component, in the basis or not; `nl_assertion` only when it was judged. `criteria` and
    `criteria_met` count the single criteria of the basis."""
    reason: str


def combine(task: Tau2Task, checks: Sequence[Check], judged: Sequence[bool] | None) -> Scored:
    """The reward from all checks. `judged` are the verdicts on `assertions_of(task)`, None without a judge:
    the rest of the basis then decides, and the reason says so."""
    wanted = assertions_of(task)
    nl = [
        Check("nl_assertion", met, f"assertion '{text}' was {'met' if met else 'not met'}")
        for text, met in zip(wanted, judged or (), strict=False)
    ]
    checks = [*checks, *nl]
    components: dict[str, float] = {}
    for name in ("db", "env_assertion", "action", "communicate"):
        components[name] = float(all(c.met for c in checks if c.component == name))
    if judged is not None or not wanted:
        components["nl_assertion"] = float(all(judged or ()))
    basis = [b.lower() for b in task.basis]
    reward = 1.0
    for name in basis:
        reward *= components.get(name, 1.0)
    counted = [c for c in checks if c.component in basis]
    components["criteria"] = float(len(counted))
    components["criteria_met"] = float(sum(c.met for c in counted))
    failed = [c.text for c in counted if not c.met]
    reason = "; ".join([*failed[:4], *(["…"] if len(failed) > 4 else [])]) or "all criteria are met"
    if "nl_assertion" in basis and wanted and judged is None:
        reason += f"; {len(wanted)} assertion(s) in natural language were not judged"
    return Scored(reward, components, reason)


def _arguments(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in arguments.items())[:120]


__all__ = ["GONE", "Check", "Scored", "combine"]
