"""Our episodes behind an OpenEnv server: `mua env openenv --domain library:desk`.

A WebSocket session (`/ws`) is one environment: any number of episodes, one after the other. Sessions
share the domain's read-only base and nothing else.

Invariant: an observation that is not the last has no reward; the last has that of our own episode. What
infrastructure broke is an error in the session and never a reward.
"""

# Its package is not in the environment that is checked.
# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
import secrets
import uuid
from typing import Any

from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, ConcurrencyConfig, EnvironmentMetadata, Observation, State
from pydantic import Field

from ..errors import InfrastructureError, MuaError
from ..trajectory import Trajectory
from .stepwise import Setting, Stepwise, View, outcome, read_move, shown

LARGEST = 1 << 20
"""Bytes of one message to the server."""


class Move(Action):
    """The agent's message."""

    content: str | None = Field(
        default=None,
        description='Words to the user. Without `tool_calls`, calls may stand in it as <tool_call>{"name": '
        '…, "arguments": {…}}</tool_call>.',
    )
    tool_calls: list[dict[str, Any]] | None = Field(default=None, description="Calls in OpenAI's form.")


class Seen(Observation):
    """What the agent sees. When `done`, `metadata` says how the episode ended (`stepwise.outcome`)."""

    messages: list[dict[str, Any]] = Field(description="The whole conversation, in OpenAI's form.")
    tools: list[dict[str, Any]] = Field(description="The tools that it may call now, in OpenAI's form.")


class Told(State):
    """Where the session's episode is."""

    task_id: str = ""
    kind: str = ""
    seed: int | None = None
    done: bool = False
    outcome: dict[str, Any] = Field(default={}, description="How it ended; empty before that.")


class Session(Environment[Move, Seen, Told]):
    """One session's environment."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, setting: Setting, split: str):
        super().__init__()
        self._setting = setting
        self._split = split
        self._episode: Stepwise | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = Told()
        self._closed = False

    async def reset_async(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        task: str | int | None = None,
        split: str | None = None,
        index: int | None = None,
    ) -> Seen:
        """A new episode; what is left of the last one is dropped.

        `task` is a task's name or position; `split` and `index` are OpenEnv's words for the same.
        Without one, the seed draws it; without a seed, chance does.
        """
        self._check_open()
        if split not in (None, self._split):
            raise MuaError(f"this server plays the split '{self._split}'; start one for '{split}'.")
        seed = secrets.randbits(31) if seed is None else seed
        which = index if task is None else task
        chosen = self._setting.draw(seed) if which is None else self._setting.task(which)
        if self._episode is not None:
            await self._episode.close()
        self._loop = asyncio.get_running_loop()
        self._episode = self._setting.episode(chosen, seed)
        self._told = Told(
            episode_id=episode_id or uuid.uuid4().hex, task_id=chosen.id, kind=chosen.kind, seed=seed
        )
        return self._seen(await self._episode.begin())

    async def step_async(self, action: Move, timeout_s: float | None = None) -> Seen:
        """The agent's move. Raises InfrastructureError when user or tools failed: reset then."""
        self._check_open()
        if self._episode is None:
            raise MuaError(
                "there is no episode: call reset first, in the same WebSocket session (requests to /step "
                "have none)."
            )
        if action.content is None and action.tool_calls is None:
            raise MuaError("the move is empty: give content, tool_calls or both.")
        text = action.content or ""
        move = text if action.tool_calls is None else {"content": text, "tool_calls": action.tool_calls}
        try:
            reached = await asyncio.wait_for(self._episode.move(read_move(move)), timeout_s)
        except TimeoutError:
            await self._episode.close()
            raise InfrastructureError(f"no answer within {timeout_s:g} s; the episode is over.") from None
        self._told.step_count += 1
        return self._seen(reached)

    def _seen(self, reached: View | Trajectory) -> Seen:
        if isinstance(reached, View):
            return Seen(**shown(reached))
        assert self._episode is not None
        self._told.done, self._told.outcome = True, outcome(reached)
        view = self._episode.last(reached)
        return Seen(**shown(view), done=True, reward=reached.reward, metadata=self._told.outcome)

    def _check_open(self) -> None:
        if self._closed:
            raise MuaError("the session has expired; connect again.")

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Seen:
        """As `reset_async`, for whoever has no event loop."""
        raise NotImplementedError("episodes are played in an event loop: await reset_async.")

    def step(self, action: Move, timeout_s: float | None = None, **kwargs: Any) -> Seen:
        """As `step_async`, for whoever has no event loop."""
        raise NotImplementedError("episodes are played in an event loop: await step_async.")

    @property
    def state(self) -> Told:
        """A copy."""
        return self._told.model_copy(deep=True)

    def get_metadata(self) -> EnvironmentMetadata:
        """What this server plays."""
        words = (
            f"Conversations of an agent with a simulated user over tools ({len(self._setting.tasks)} tasks)"
        )
        return EnvironmentMetadata(name=f"mua {self._setting.domain.name}", description=words)

    def close(self) -> None:
        """Ends the episode. The server calls it from a thread of its own, when a session ends or expires."""
        self._closed = True
        if self._episode is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._episode.cancel)

    # OpenEnv's task API: names and kinds only, nothing of what a task asks for.

    def list_splits(self) -> list[str]:
        """The one split of this server."""
        return [self._split]

    def num_tasks(self, split: str) -> int:
        """How many tasks `reset(index=…)` chooses from."""
        return len(self._setting.tasks) if split == self._split else 0

    def list_tasks(self, split: str) -> list[dict[str, Any]]:
        """All of them."""
        return [self.get_task(split, index) for index in range(self.num_tasks(split))]

    def get_task(self, split: str, index: int) -> dict[str, Any]:
        """Raises IndexError."""
        if not 0 <= index < self.num_tasks(split):
            raise IndexError(f"{split} has no task {index}")
        task = self._setting.tasks[index]
        return {"id": task.id, "index": index, "kind": task.kind}


def make_app(setting: Setting, split: str, sessions: int = 256, idle: float | None = 3600.0) -> Any:
    """The FastAPI application. At most `sessions` at once; one unused for `idle` seconds expires."""
    from fastapi import Request
    from fastapi.responses import JSONResponse

    app = create_fastapi_app(
        lambda: Session(setting, split),
        Move,
        Seen,
        concurrency_config=ConcurrencyConfig(max_concurrent_envs=sessions, session_timeout=idle),
        env_name="mua",
        state_cls=Told,
        mode="simulation",
    )

    async def refused(request: Request, exc: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(exc)}, 503 if isinstance(exc, InfrastructureError) else 400)

    app.add_exception_handler(MuaError, refused)
    return app


def run(setting: Setting, split: str, host: str, port: int, sessions: int, idle: float | None) -> None:
    """Serves until it is interrupted. Raises MuaError when the address cannot be had."""
    import socket

    import uvicorn

    try:
        taken = socket.create_server((host, port))
    except OSError as exc:
        raise MuaError(f"{host}:{port} cannot be had ({exc}); choose another: --port 0.") from None
    where = f"http://{host}:{taken.getsockname()[1]}"
    print(f"{setting.domain.name} {split}: {where} (Ctrl-C ends it)", flush=True)
    app = make_app(setting, split, sessions, idle)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", ws_max_size=LARGEST)).run([taken])
