"""One episode driven from outside, move by move: what all exports but TRL's are built on.

Invariants:
- The conversation is `episode.play` itself, waiting inside its agent for the next move. So limits, user,
  world and verdict are those of any episode.
- An infrastructure failure is raised and never becomes a reward.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..agents import AgentStep
from ..benchmarks import guards, is_benchmark
from ..chat import Message, agent_view
from ..domain import Domain, Limits, Task, check_no_noop, check_no_overlap
from ..domains import load
from ..endpoint import Endpoint, EndpointSettings, wire
from ..episode import play
from ..errors import InfrastructureError, MuaError
from ..formats import hermes_message
from ..seeds import derive_seed
from ..tools import Tool
from ..trajectory import TokenTrace, Trajectory
from ..users import User

HELD_OUT = "test"
"""The split that training must not see, unless it is told to."""


@dataclass(frozen=True)
class Setting:
    """What episodes are played from: a domain, some of its tasks, and who plays the user."""

    domain: Domain
    tasks: tuple[Task, ...]
    make_user: Callable[[Task, int], User]
    limits: Limits
    endpoint: Endpoint | None = None
    """Of the users, where a model plays them."""

    def task(self, which: str | int) -> Task:
        """A task by its position or its name. Raises MuaError when it is not among `tasks`."""
        if isinstance(which, int):
            if not 0 <= which < len(self.tasks):
                raise MuaError(f"there is no task {which}: the setting has tasks 0 to {len(self.tasks) - 1}.")
            return self.tasks[which]
        found = next((task for task in self.tasks if task.id == which), None)
        if found is None:
            raise MuaError(f"'{which}' is not among the {len(self.tasks)} tasks of this setting.")
        return found

    def draw(self, seed: int) -> Task:
        """The task of an episode for which none is named."""
        return self.tasks[derive_seed("task", seed) % len(self.tasks)]

    def episode(self, task: Task, seed: int) -> Stepwise:
        """A new episode, not yet begun."""
        return Stepwise(self.domain, task, self.user(task, seed), self.limits, seed)

    def user(self, task: Task, seed: int) -> User:
        """The user of an episode of that seed."""
        return self.make_user(task, derive_seed("user", seed))

    async def close(self) -> None:
        """Closes the connections to the user's endpoint."""
        if self.endpoint is not None:
            await self.endpoint.close()


def setting(
    domain: str = "library",
    split: str = "train",
    user: str = "agenda",
    *,
    base_url: str = "",
    api_key_env: str = "",
    limits: Mapping[str, Any] | None = None,
    evaluate: bool = False,
) -> Setting:
    """The setting that these words name, as exports take them.

    `user` is `agenda` (the domain's program) or `endpoint:MODEL` at `base_url`, with the key in the
    environment variable `api_key_env`. `limits` are fields of `domain.Limits`. Without `evaluate`, a split
    that has tasks of the held-out one is refused, by content; so are tasks that doing nothing solves.
    Raises MuaError.
    """
    found = load(domain)
    tasks = found.tasks(split) if evaluate else _trainable(found, split)
    try:
        checked = Limits.model_validate(dict(limits or {}))
    except ValueError as exc:
        raise MuaError(f"limits: {_problems(exc)}") from None
    make: Any
    endpoint = None
    if user == "agenda":
        if found.agenda_user is None and any(found.user(task, 0) is None for task in tasks[:1]):
            raise MuaError(f"domain '{domain}' has no agenda user; name one: user='endpoint:MODEL'.")
        make = found.agenda_user
    elif user.startswith("endpoint:") and user != "endpoint:":
        from ..users.llm import LlmUser

        data = {"model": user.removeprefix("endpoint:"), "api_key_env": api_key_env}
        try:
            settings = EndpointSettings.model_validate(data | ({"base_url": base_url} if base_url else {}))
        except ValueError as exc:
            raise MuaError(f"{user}: {_problems(exc)}") from None
        asked = endpoint = Endpoint(settings)

        def llm_user(task: Task, seed: int) -> User:
            return LlmUser(asked, task, seed, tools=found.task_tools(task, "user"))

        make = llm_user
    else:
        raise MuaError(f"user '{user}': say agenda, or endpoint:MODEL with base_url.")
    if user == "agenda" and base_url:
        raise MuaError("base_url is the address of a user endpoint; name its model: user='endpoint:MODEL'.")
    return Setting(
        found,
        tuple(tasks),
        lambda task, seed: found.user(task, seed) or make(task, seed),
        checked,
        endpoint,
    )


def _problems(exc: ValueError) -> str:
    """What pydantic found, field by field."""
    errors = getattr(exc, "errors", list)()
    return "; ".join(f"'{'.'.join(map(str, e['loc']))}': {e['msg']}" for e in errors) or str(exc)


def _trainable(domain: Domain, split: str) -> Sequence[Task]:
    """The tasks of a split, which may be trained on. Raises MuaError where they may not."""
    domain.tasks(split)  # an unknown split is told first
    more = "; to evaluate on it, and never to train, set evaluate."
    try:
        if any(is_benchmark(part.name) for part in domain.members):
            held = [h for part in domain.members for h in guards.held_out_tasks(part, HELD_OUT, None)]
            return guards.Guard(domain, held, "refuse").allowed(split).tasks
        if HELD_OUT in domain.splits:
            check_no_overlap(domain.tasks(split), domain.tasks(HELD_OUT), f"the held-out split '{HELD_OUT}'")
    except MuaError as exc:
        raise MuaError(str(exc).rstrip(".") + more) from None
    check_no_noop(domain, domain.tasks(split))
    return domain.tasks(split)


# ---------------------------------------------------------------- one episode


@dataclass(frozen=True)
class View:
    """What the agent sees when it is its turn."""

    messages: tuple[Message, ...]
    """The whole conversation so far, the system prompt first."""
    tools: Mapping[str, Tool]
    """The tools it may call now."""


class _Outside:
    """The agent of a stepwise episode: it waits for somebody's move."""

    trace: TokenTrace | None = None
    over_api = True
    """It is shown what an agent behind an API is (some benchmarks have two prompts)."""

    def __init__(self, tools: Mapping[str, Tool]):
        self.tools = tools
        self.asked: asyncio.Queue[View] = asyncio.Queue()
        self.moves: asyncio.Queue[AgentStep | InfrastructureError] = asyncio.Queue()

    def use_tools(self, tools: Mapping[str, Tool]) -> None:
        self.tools = tools

    async def step(self, messages: Sequence[Message]) -> AgentStep:
        self.asked.put_nowait(View(tuple(messages), self.tools))
        move = await self.moves.get()
        if isinstance(move, InfrastructureError):
            raise move
        return move

    def close(self) -> None:
        """Nothing is held."""


class Stepwise:
    """One episode: `begin`, then `move` until a trajectory comes back instead of a view.

    All calls must be made in one event loop. `close` ends it wherever it is.
    """

    def __init__(self, domain: Domain, task: Task, user: User, limits: Limits = Limits(), seed: int = 0):
        self.domain = domain
        self.task = task
        self.seed = seed
        self._user = user
        self._limits = limits
        self._agent = _Outside(domain.task_tools(task))
        self._playing: asyncio.Task[Trajectory] | None = None
        self._waits = False
        """It is the agent's turn, and whoever drives has been told so."""

    async def begin(self) -> View | Trajectory:
        """Plays until the agent is to speak. Raises InfrastructureError as `move` does."""
        if self._playing is not None:
            raise MuaError("the episode has begun already; make a new one.")
        self._playing = asyncio.create_task(
            play(self.domain, self.task, self._agent, self._user, limits=self._limits, seed=self.seed)
        )
        return await self._until_asked()

    async def move(self, step: AgentStep) -> View | Trajectory:
        """Plays the agent's step, and on until it is to speak again or the episode is over.

        Raises InfrastructureError when user or tools failed: the episode is over then and has no reward.
        Raises MuaError when it is not the agent's turn.
        """
        if self._playing is None or self._playing.done():
            raise MuaError(f"the episode {'is over' if self._playing else 'has not begun'}; begin a new one.")
        if not self._waits:
            raise MuaError(
                "it is not the agent's turn: the move before this one is still being answered, or its answer "
                "was given up. Wait for it, or begin a new episode."
            )
        self._waits = False
        self._agent.moves.put_nowait(step)
        return await self._until_asked()

    async def _until_asked(self) -> View | Trajectory:
        assert self._playing is not None
        asked = asyncio.create_task(self._agent.asked.get())
        try:
            await asyncio.wait((asked, self._playing), return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                self._waits = True
                return asked.result()
        finally:
            asked.cancel()
        if self._playing.cancelled():
            raise MuaError("the episode was closed meanwhile; begin a new one.")
        trajectory = self._playing.result()
        if trajectory.termination.infrastructure:
            raise InfrastructureError(f"{trajectory.termination.value}: {trajectory.detail}")
        return trajectory

    def last(self, trajectory: Trajectory) -> View:
        """What the agent would see now that the episode is over."""
        return View(tuple(agent_view(trajectory.messages, self.domain.user_asides)), self._agent.tools)

    def cancel(self) -> None:
        """Ends the episode soon, if it is still on its way. Nothing of it is scored."""
        if self._playing is not None:
            self._playing.cancel()

    async def close(self) -> None:
        """As `cancel`, and waits for the end."""
        self.cancel()
        if self._playing is not None:
            await asyncio.wait((self._playing,))


# ---------------------------------------------------------------- what others write and read


def read_move(move: str | Mapping[str, Any]) -> AgentStep:
    """The agent's step from a text or a message.

    A text may hold calls as `<tool_call>{"name": …, "arguments": {…}}</tool_call>` and hidden reasoning
    between `<think>` and `</think>`. A message is OpenAI's: `content`, `tool_calls`, `reasoning_content`.
    Broken calls stay calls and are answered with what is wrong with them, as in any episode. Raises MuaError
    for anything else.
    """
    if isinstance(move, str):
        return AgentStep(hermes_message(move), text=move)
    if not isinstance(move, Mapping) or not move.keys() & {"content", "tool_calls"}:
        raise MuaError("the agent's move must be a text, or a message with 'content' or 'tool_calls'.")
    try:
        calls = [_plain_call(call) for call in move.get("tool_calls") or ()]
        message = Message.from_dict({**move, "role": "assistant", "tool_calls": calls})
    except (TypeError, ValueError, AttributeError, RecursionError) as exc:
        raise MuaError(f"the agent's move is not a message in OpenAI's form: {exc}") from None
    return AgentStep(message, text=message.content)


def _plain_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call with its arguments as JSON text: objects then pass the same checks as a model's (depth, NaN)."""
    function = call.get("function", call)
    raw = function.get("arguments")
    if isinstance(raw, Mapping):
        raw = json.dumps(raw, ensure_ascii=False)
    return {"id": call.get("id"), "function": {"name": function.get("name"), "arguments": raw}}


def shown(view: View) -> dict[str, Any]:
    """What the agent sees, in OpenAI's form and without anything of ours: `messages` and `tools`."""
    return {
        "messages": wire(view.messages),
        "tools": [json.loads(tool.schema_json) for tool in view.tools.values()],
    }


def outcome(trajectory: Trajectory) -> dict[str, Any]:
    """How an episode ended, in JSON values."""
    return {
        "reward": trajectory.reward,
        "termination": trajectory.termination.value,
        "reason": trajectory.reason,
        "components": dict(trajectory.components),
        "task_id": trajectory.task_id,
        "kind": trajectory.kind,
        "seed": trajectory.seed,
    }
