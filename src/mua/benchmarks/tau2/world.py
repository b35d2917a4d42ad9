"""The live state of one episode: upstream's functions over copy-on-write databases.

Invariants:
- Calls are dispatched, answered and failed as upstream does it: arguments are not checked, an exception
  becomes `Error: …`, changes made before it stay, and both sides are synchronised after every success.
- The shared databases are never written (`cow`), no call takes long, and none reaches out of the process
  (`confined`); `calculate` is ours, for upstream's evaluates powers.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ...chat import Message, Side, ToolCall
from ...domain import ToolResult, World
from ...errors import MuaError
from ..calculate import calculate
from ..confined import limited
from . import cow
from .state import State
from .tasks import Tau2Task
from .upstream import Ids

if TYPE_CHECKING:
    from . import Tau2Domain

DONE = "done"
"""The call by which an agent that works alone ends the episode."""

_KIT_SIDE = {"assistant": "agent", "user": "user"}


class Tau2World(World):
    """One episode. Its database is a `State`: `world.db.diff`, `.equals`, `.digest` as of any world."""

    def __init__(self, domain: Tau2Domain, task: Tau2Task, *, gold: bool = False, fresh: bool = False):
        """`gold` makes the world in which gold actions are replayed: never solo, with ids of its own.
        `fresh` takes no initial state from the domain's cache, and makes none."""
        self.domain: Tau2Domain = domain
        self.task: Tau2Task = task
        self.solo = domain.solo and not gold
        self._ids = Ids("gold" if gold else "episode")
        first = None if fresh else domain.initial(task)
        self.db: Any = first.db.fork() if first else domain.base.open()
        self._kits: dict[str, Any] = {}
        self._unsynced = True
        self._env = domain.parts.environment(self._kits)
        for side in self.db.sides:
            self._kits[side] = domain.parts.kits[side](self.db.sides[side])
        self._share_defaults(first)
        if first is None:
            self._initialise()

    def _share_defaults(self, first: Tau2World | None) -> None:
        """Upstream keeps one VPN profile on the class, and breaking the VPN breaks it for the whole process.
        Here each world has its own; it is the same object as the connected one wherever upstream's is."""
        name = "default_vpn_details"
        for side, kit in self._kits.items():
            if not hasattr(type(kit), name):
                continue
            before = getattr(first._kits[side] if first else type(kit), name)
            shared = first is not None and first.db.sides[side].device.vpn_details is before
            setattr(kit, name, kit.db.device.vpn_details if shared else cow.fork(before))

    def _initialise(self) -> None:
        initial = self.task.initial
        data = initial.get("initialization_data") or {}
        for side, kit in self._kits.items():
            if data.get(f"{side}_data") is not None:
                kit.update_db(data[f"{side}_data"])
                self.db.sides[side] = kit.db
        for action in initial.get("initialization_actions") or ():
            try:
                self.function(action)
            except Exception as exc:
                raise MuaError(
                    f"task '{self.task.id}' of domain '{self.domain.name}' is broken: its initial action "
                    f"{action.get('func_name')} fails: {exc}"
                ) from None
        self.sync()

    # --- calls ----------------------------------------------------------------------------------

    def call(self, side: Side, call: ToolCall) -> ToolResult:
        """Runs one call, as upstream's environment does. Never raises for what a model did."""
        result = self._answer(side, call)
        if not result.error:
            self.db.prune()
        return result

    def _answer(self, side: Side, call: ToolCall) -> ToolResult:
        if call.error:
            return ToolResult(f"Error: this is not a valid tool call: {call.error}", error=True)
        if self.solo and side == "assistant" and call.name == DONE:
            return ToolResult("###STOP###", ends=True, done=True)
        saved = self.domain.before_call(self, side, call)
        if isinstance(saved, ToolResult):
            return saved
        try:
            value = self.run(side, call.name, call.arguments)
            self.sync()
        except Exception as exc:
            self.domain.after_failure(self, saved)
            return ToolResult(f"Error: {exc}", error=True)
        return ToolResult(self.domain.parts.to_text(value))

    def run(self, side: Side, name: str, arguments: Mapping[str, Any]) -> Any:
        """What the tool returns; raises what it raises. Does not synchronise the sides."""
        kit_side = self._side_of(side, name)
        if name not in self.domain.parts.effects.get(kit_side, {}):
            raise ValueError(f"Tool '{name}' not found.")
        kit = self._kits[kit_side]
        arguments = copy.deepcopy(dict(arguments))
        if name == "calculate":  # upstream's evaluates powers: `9**9**9` would hang the process
            return calculate(**arguments)
        if self.domain.parts.effects[kit_side][name] == "read":
            kit.db = cow.Reader(kit.db)
            try:
                return limited(functools.partial(getattr(kit, name), **arguments))
            finally:
                kit.db = self.db.sides[kit_side]
        self._unsynced = True
        with self.domain.parts.ids.of(self._ids):
            return limited(functools.partial(getattr(kit, name), **arguments))

    def _side_of(self, side: Side, name: str) -> str:
        """Whose tools answer: working alone, the agent has both sets, the user's first."""
        if self.solo:
            if side == "user":
                raise ValueError("User tool calls are not allowed in solo mode")
            return "user" if name in self.domain.parts.effects.get("user", {}) else "agent"
        found = _KIT_SIDE[side]
        if found not in self._kits:
            raise ValueError("User tools not available")
        return found

    def function(self, call: Mapping[str, Any]) -> Any:
        """Runs one of upstream's environment functions (no tools): `env_type`, `func_name`, `arguments`."""
        kit = self._kits[_KIT_SIDE[call["env_type"]]]
        self._unsynced = True
        with self.domain.parts.ids.of(self._ids):
            arguments = copy.deepcopy(dict(call.get("arguments") or {}))
            value = limited(functools.partial(getattr(kit, call["func_name"]), **arguments))
            self.sync()
        return value

    def sync(self) -> None:
        """Lets each side see what the other did, by upstream's own function. Nothing to do after reads: it
        would find what it left."""
        if self._unsynced and self._env is not None:
            limited(self._env.sync_tools)
        self._unsynced = False

    # --- replay ---------------------------------------------------------------------------------

    def replay(self, messages: Iterable[Message]) -> None:
        """Every call of a stored conversation that can change something, in order, as upstream grades it:
        calls of unknown names and of reading tools are skipped, and what fails, fails again."""
        effects = self.domain.parts.effects
        for message in messages:
            calls = message.tool_calls
            if self.solo and any(c.name == DONE for c in calls):
                continue
            for call in calls:
                if call.error:
                    continue
                known = [tools[call.name] for tools in effects.values() if call.name in tools]
                if known and known[0] == "write":
                    self._answer("user" if message.role == "user" else "assistant", call)
        self.sync()
        self.db.prune()  # once: nobody waits for the memory in between

    def replay_gold(self) -> None:
        """The gold actions, without synchronisation; one that fails is passed over, as upstream does."""
        for action in self.task.actions:
            try:
                self.run(action.requestor, action.name, action.arguments)
            except Exception:
                continue
        self.db.prune()

    def fork_state(self) -> State:
        return self.db.fork()

    def restore_state(self, saved: State) -> None:
        """Goes back to a state taken by `fork_state`."""
        self.db.sides.update(saved.sides)
        for side, kit in self._kits.items():
            kit.db = self.db.sides[side]
