"""τ²-bench: retail, airline and telecom (with a user who has tools, or solo) as domains.

Upstream's domain functions run from where they are installed; state, episode and scoring are ours.

Invariant: the same conversation gets the same reward as from upstream's evaluator, component by component.
"""

from __future__ import annotations

import functools
import tomllib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from ...audit import Conduct
from ...audit import read as read_conduct
from ...chat import Message, Side, ToolCall, carried_out
from ...domain import Ask, Domain, Limits, Task, ToolResult, Verdict, World
from ...errors import MuaError
from ...tools import Tool
from ...trajectory import Termination, Trajectory
from ...users import STOP, UserTurn
from .. import paper
from ..store import installed
from . import judge, scoring
from .state import Originals
from .state import Path as ChangePath
from .tasks import Tasks, Tau2Task, agent_prompt, read_json
from .upstream import Upstream, Uuids, load
from .world import DONE, Tau2World

GREETING = "Hi! How can I help you today?"
"""What upstream's agent says before anybody else."""
LIMITS = Limits(turns=10_000, steps=10_000, errors=10, hops=200)
"""Upstream's command line: 200 messages in all, 10 failed calls of both sides together."""
MARKERS = (STOP, "###TRANSFER###", "###OUT-OF-SCOPE###")
_CACHED = 512
"""Initial states kept; one costs some kilobytes."""


@dataclass
class Parts:
    """Upstream's classes for one part, and what is known of its tools."""

    ids: Uuids
    kits: dict[str, Any]
    """Toolkit classes by side (`agent`, `user`)."""
    environment_class: Any
    effects: dict[str, dict[str, str]]
    """Tools by side: `read` or `write`."""
    tools: dict[str, dict[str, Tool]]
    to_text: Callable[[Any], str]
    """What a tool returned, as the text that is observed."""

    def environment(self, kits: dict[str, Any]) -> Any:
        """Something with upstream's `sync_tools` over these toolkits (filled in later), or None."""
        if "user" not in self.kits:
            return None
        return _Sync(self.environment_class.sync_tools, kits)


class _Sync:
    """Upstream's environment as far as its `sync_tools` looks at it."""

    __slots__ = ("_kits", "_sync")

    def __init__(self, sync: Callable[[Any], None], kits: dict[str, Any]):
        self._sync, self._kits = sync, kits

    tools = property(lambda self: self._kits["agent"])
    user_tools = property(lambda self: self._kits["user"])

    def sync_tools(self) -> None:
        self._sync(self)


class SoloUser:
    """Stands where there is no user: it starts the agent, and ends the episode when the agent speaks."""

    name = "none"

    async def reply(self, view: Sequence[Message]) -> UserTurn:
        if any(m.role == "user" for m in view):
            return UserTurn(STOP, stop=True)
        return UserTurn("Work on the ticket. Nobody answers here; use your tools.")


@dataclass(frozen=True)
class Tau2Domain(Domain):
    """A part of τ²-bench."""

    solo: bool = False
    """The agent works alone, with the tools of both sides, on a ticket."""
    version: str = ""
    data_hash: str = ""
    upstream: Any = None
    tasks_source: Any = None
    parts: Any = None
    caches: dict[str, Any] = field(default_factory=dict, compare=False)

    def system_prompt(self, task: Task) -> str:
        ticket = str(_own(task).data.get("ticket") or "") if self.solo else None
        return agent_prompt(self.upstream, self.policy, ticket)

    def user(self, task: Task, seed: int) -> Any:
        return SoloUser() if self.solo else None

    def record(self, table: str, key: str) -> Mapping[str, Any] | None:
        """A row of the agent's database; where a table is a list (telecom), by the row's first field."""
        rows = vars(self.base.sides["agent"]).get(table, {})  # type: ignore[attr-defined]
        if isinstance(rows, list):
            kept = self.caches.setdefault("records", {})
            if table not in kept:
                kept[table] = {next(iter(vars(row).values())): row for row in rows}
            rows = kept[table]
        row = rows.get(key)
        return None if row is None else vars(row)

    def is_scripted(self, task: Task) -> bool:
        """Only generated tasks have an agenda."""
        return not self.solo and "requests" in task.scenario.agenda

    def make_task(self, record: Mapping[str, Any]) -> Tau2Task:
        """A task from upstream's record of one: stored conversations carry theirs with them."""
        return self.tasks_source.make(record)

    def tools(self, side: Side = "assistant") -> dict[str, Tool]:
        if self.solo:
            return self.parts.tools["solo"] if side == "assistant" else {}
        return self.parts.tools.get("user" if side == "user" else "agent", {})

    # --- worlds ---------------------------------------------------------------------------------

    def open(self, task: Task) -> World:
        return Tau2World(self, _own(task))

    def initial(self, task: Tau2Task) -> Tau2World | None:
        """A world of the task that nobody has played in, kept to be copied; None where tasks start from the
        databases as they are."""
        if not any(task.initial.get(k) for k in ("initialization_data", "initialization_actions")):
            return None
        kept: OrderedDict[str, Tau2World] = self.caches.setdefault("initial", OrderedDict())
        found = kept.pop(task.key, None)
        if found is None:
            found = Tau2World(self, task, fresh=True)
            found.db.prune()
        kept[task.key] = found
        while len(kept) > _CACHED:
            kept.popitem(last=False)
        return found

    def before_call(self, world: Tau2World, side: Side, call: ToolCall) -> Any:
        """For stricter variants: a ToolResult answers the call instead of the tool; anything else is handed
        to `after_failure`."""
        return None

    def after_failure(self, world: Tau2World, saved: Any) -> None:
        """For stricter variants: a call failed; upstream leaves what it changed."""

    # --- scoring --------------------------------------------------------------------------------

    def gold(self, task: Task) -> Any:
        """The state after the gold actions."""
        world = Tau2World(self, _own(task), gold=True)
        world.replay_gold()
        return world.db

    def gold_changes(self, task: Tau2Task) -> dict[ChangePath, str]:
        """What the gold actions change; kept per task."""
        kept = self.caches.setdefault("gold", {})
        if task.key not in kept:
            kept[task.key] = self.gold(task).changes()
        return kept[task.key]

    def is_noop(self, task: Task) -> bool:
        """True when an agent that only greets earns the whole reward."""
        return self.grade(task, [Message("assistant", GREETING)], Termination.USER_STOP).reward >= 1.0

    def grade(
        self, task: Task, messages: Sequence[Message], termination: Termination, world: World | None = None
    ) -> Verdict:
        """Upstream's verdict. `world` is not looked at: what counts is the replay of what was written."""
        if not termination.normal:
            return Verdict(0.0, {}, f"not scored: the episode ended by {termination.value}")
        if self.solo and termination == Termination.USER_STOP:
            return Verdict(0.0, {}, "not scored: the agent wrote a message instead of using its tools")
        found = self.score(_own(task), messages)
        return Verdict(found.reward, found.components, found.reason)

    def score(
        self, task: Tau2Task, messages: Sequence[Message], judged: Sequence[bool] | None = None
    ) -> scoring.Scored:
        """All components of a conversation that ended normally. `judged` as of `scoring.combine`."""
        if task.criteria is None:
            return scoring.Scored(1.0, {}, "the task has no criteria")
        return scoring.combine(task, self.checks(task, messages), judged)

    def checks(self, task: Tau2Task, messages: Sequence[Message]) -> list[scoring.Check]:
        """Every criterion that needs no judge."""
        messages = carried_out(messages)
        criteria = task.criteria or {}
        found = [*scoring.action_checks(task, messages), *scoring.communicate_checks(task, messages)]
        if criteria.get("actions") is None and criteria.get("env_assertions") is None:
            return [scoring.Check("db", True, "no end state is asked for"), *found]
        world = self.replay(task, messages)
        states = scoring.db_checks(world, self.gold_changes(task))
        return [*states, *scoring.assertion_checks(world, task), *found]

    def replay(self, task: Task, messages: Iterable[Message]) -> Tau2World:
        world = Tau2World(self, _own(task))
        world.replay(carried_out(messages))
        return world

    def summary(self, trajectories: Iterable[Any]) -> dict[str, Any]:
        """Figures of an evaluation beside its success rate: the mean of each component over scored episodes,
        and the task completion rate (criteria met over criteria in all)."""
        total: Counter[str] = Counter()
        count: Counter[str] = Counter()
        for t in trajectories:
            for name, value in (t.components if t.reward is not None else {}).items():
                total[name] += value
                count[name] += 1
        out: dict[str, Any] = {n: total[n] / count[n] for n in count if n not in ("criteria", "criteria_met")}
        rate = total["criteria_met"] / total["criteria"] if total["criteria"] else None
        return {
            "version": self.version,
            "data_hash": self.data_hash,
            "database": self.base.hashes,  # type: ignore[attr-defined]
            "components": out,
            "task_completion_rate": rate,
            "paper": paper.columns(self.name),
        }

    async def settle(self, task: Task, trajectory: Trajectory, ask: Ask) -> None:
        """Lets a judge decide about assertions in natural language, with upstream's instructions to it."""
        own = _own(task)
        wanted = scoring.assertions_of(own)
        if "NL_ASSERTION" not in own.basis or not wanted or "criteria" not in trajectory.components:
            return
        file = "evaluator/evaluator_nl_assertions.py"
        prompt = self.upstream.constant(file, "system_prompt")
        judged = await judge.verdicts(prompt, trajectory.messages, wanted, ask)
        found = self.score(own, trajectory.messages, judged)
        trajectory.reward, trajectory.reason = found.reward, found.reason
        trajectory.components = found.components


def _own(task: Task) -> Tau2Task:
    if not isinstance(task, Tau2Task):
        raise MuaError(f"task '{task.id}' is none of τ²-bench; take tasks from the domain itself.")
    return task


# ---------------------------------------------------------------- making a domain


def make(benchmark: str, part: str) -> Tau2Domain:
    """The domain of one part (`retail`, `airline`, `telecom`, `telecom-solo`) of an installed τ²-bench."""
    found = installed(benchmark)
    solo = part.endswith("-solo")
    name = part.removesuffix("-solo")
    root = next((p for p in (found.path / "src" / "tau2", found.path / "tau2") if p.is_dir()), found.path)
    folder = _folder(found.path, name)
    upstream = _load(str(root))
    guidelines = next(
        (p for p in _data(found.path, "user_simulator") if p.is_dir()), found.path / "user_simulator"
    )
    tasks = Tasks(name, folder, guidelines, upstream, user_tools=name == "telecom")
    return Tau2Domain(
        name=f"{benchmark}/{part}",
        policy=_policy(folder, name, solo),
        load_base=functools.partial(_base, str(root), str(folder), name),  # type: ignore[arg-type]
        load_split=tasks.split,
        splits=tuple(tasks.splits),
        toolkits={},
        limits=LIMITS,
        greeting="" if solo else GREETING,
        stop_markers=MARKERS,
        user_errors=True,
        user_asides=False,
        solo=solo,
        version=found.version,
        data_hash=found.data_hash,
        conduct=None if solo else conduct(part),
        upstream=upstream,
        tasks_source=tasks,
        parts=_parts(upstream, name, newest=benchmark == "tau2"),
    )


def conduct(part: str) -> Conduct:
    """The rules of conduct of a part (τ¹'s are the same), in our own words."""
    return read_conduct(files(__name__) / "audit" / f"{part}.yaml")


def _data(path: Path, name: str) -> list[Path]:
    return [path / "data" / "tau2" / name, path / "tau2" / "data" / "tau2" / name]


def _folder(path: Path, part: str) -> Path:
    """The data folder of a part: that of a package of its own, where there is one, is the newest."""
    places = [path / f"tau2_{part}_mcp" / "data" / "tau2" / "domains" / part]
    places += [p / part for p in _data(path, "domains")]
    for place in places:
        if (place / "tasks.json").is_file():
            return place
    raise MuaError(
        f"the installed τ²-bench in {path} has no tasks of {part}. Install it again: "
        "mua benchmarks install tau2."
    )


@functools.cache
def _load(root: str) -> Upstream:
    return load(Path(root))


@functools.cache
def _base(root: str, folder: str, part: str) -> Originals:
    """The pristine databases; one in memory whatever domains use them."""
    upstream, place = _load(root), Path(folder)
    module = f"domains.{part}.data_model"
    if part == "telecom":
        agent = upstream.get(module, "TelecomDB").model_validate(_toml(place / "db.toml"))
        user = upstream.get("domains.telecom.user_data_model", "TelecomUserDB")
        return Originals(agent, user.model_validate(_toml(place / "user_db.toml")))
    cls = {"retail": "RetailDB", "airline": "FlightDB"}[part]
    return Originals(upstream.get(module, cls).model_validate(read_json(place / "db.json")))


def _toml(path: Path) -> Any:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise MuaError(f"{path} cannot be read: {exc}. Install the benchmark again.") from None


def _policy(folder: Path, part: str, solo: bool) -> str:
    """The policy as upstream composes it."""
    try:
        if part != "telecom":
            return (folder / "policy.md").read_text(encoding="utf-8")
        main = (folder / f"main_policy{'_solo' if solo else ''}.md").read_text(encoding="utf-8")
        manual = (folder / "tech_support_manual.md").read_text(encoding="utf-8")
    except OSError as exc:
        raise MuaError(f"a policy of τ²-bench cannot be read ({exc}). Install it again.") from None
    wrapped = (
        f"<{tag}>\n{text}\n</{tag}>" for tag, text in (("main_policy", main), ("tech_support_policy", manual))
    )
    return "\n".join(wrapped)


def _parts(upstream: Upstream, part: str, newest: bool) -> Parts:
    kits: dict[str, Any] = {}
    name = {"retail": "RetailTools", "airline": "AirlineTools", "telecom": "TelecomTools"}[part]
    kits["agent"] = upstream.get(f"domains.{part}.tools", name)
    environment = upstream.get("environment.environment", "Environment")
    to_text = environment.to_json_str
    if part == "telecom":
        kits["user"] = upstream.get("domains.telecom.user_tools", "TelecomUserTools")
        environment = upstream.get("domains.telecom.environment", "TelecomEnvironment")
    if part == "retail" and newest and not hasattr(kits["agent"], "get_item_details"):
        kits["agent"] = _with_item_details(upstream, kits["agent"])
    effects: dict[str, dict[str, str]] = {}
    tools: dict[str, dict[str, Tool]] = {}
    for side, kit in kits.items():
        blank = kit(None)
        made = blank.get_tools()
        writes = upstream.get("environment.toolkit", "ToolType").WRITE
        effects[side] = {n: "write" if blank.tool_type(n) == writes else "read" for n in made}
        tools[side] = {n: _tool(t, effects[side][n]) for n, t in made.items()}
    if "user" in kits:

        def done() -> str:
            """Call this function when you are done with the task."""
            return STOP

        stop = _tool(upstream.get("environment.tool", "as_tool")(done), "end")
        tools["solo"] = {**tools["user"], **tools["agent"], DONE: stop}
    return Parts(upstream.ids, kits, environment, effects, tools, to_text)


def _tool(tool: Any, effect: Any) -> Tool:
    """One of upstream's tools as ours: its own description and schema, word for word."""
    function = tool.openai_schema["function"]
    return Tool(function["name"], function["description"], function["parameters"], effect, dict)


def _with_item_details(upstream: Upstream, kit: Any) -> Any:
    """The retail toolkit with the lookup that came with 1.0, where the installed functions are older."""
    is_tool = upstream.get("environment.toolkit", "is_tool")

    def get_item_details(self: Any, item_id: str) -> Any:
        """Look up one item: its options, its price and whether it is in stock.

        Args:
            item_id: The item id, such as '6086499569'. It is not the product id.
        """
        for product in self.db.products.values():
            if item_id in product.variants:
                return product.variants[item_id]
        raise ValueError("Item not found")

    return type(kit)(kit.__name__, (kit,), {"get_item_details": is_tool()(get_item_details)})


__all__ = ["Tau2Domain", "ToolResult", "make"]
