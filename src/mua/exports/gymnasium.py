"""Our episodes as a Gymnasium environment, `mua/Episode-v0`; importing this module registers it.

Action: the agent's message. A text, with calls as `<tool_call>{"name": …, "arguments": {…}}</tool_call>`,
or a message as OpenAI writes it. Observation: JSON text of what the agent sees, `messages` and `tools`.

Invariant: the reward is 0.0 until the last step, where it is that of our own episode. What infrastructure
broke is raised and never rewarded.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from typing import Any

import gymnasium
from gymnasium import spaces

from ..errors import MuaError
from ..trajectory import Termination, Trajectory
from .background import run
from .stepwise import Stepwise, View, outcome, read_move, setting, shown

_CUT = (Termination.TURN_CAP, Termination.TOKEN_CAP)
"""Cut short from outside, so `truncated`; all other ends are the conversation's own, so `terminated`."""


class Episode(gymnasium.Env[str, str | Mapping[str, Any]]):
    """One conversation an episode. The keywords are those of `stepwise.setting`, and `max_chars`: the longest
    observation, which Gymnasium wants to know beforehand."""

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self,
        domain: str = "library",
        split: str = "train",
        user: str = "agenda",
        *,
        max_chars: int = 1 << 18,
        render_mode: None = None,
        **settings: Any,
    ):
        if render_mode is not None:
            raise MuaError("a conversation has no render_mode; leave it out.")
        self.setting = setting(domain, split, user, **settings)
        # JSON in ASCII, so that any conversation fits the space.
        self.observation_space = self._observable = spaces.Text(max_chars, charset=string.printable)
        self.action_space = spaces.Text(1 << 16, min_length=0, charset=string.printable)
        self._episode: Stepwise | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """A new episode. `options={"task": …}` names the task or its position; else the seed draws it.

        Raises InfrastructureError when the user does not answer.
        """
        super().reset(seed=seed)
        seed = int(self.np_random.integers(2**31)) if seed is None else seed
        which = (options or {}).get("task")
        task = self.setting.draw(seed) if which is None else self.setting.task(which)
        self._end()
        self._episode = self.setting.episode(task, seed)
        reached = run(self._episode.begin())
        if isinstance(reached, Trajectory):  # Gymnasium has no episode without a step
            raise MuaError(f"the user of task '{task.id}' left before the agent spoke; take another seed.")
        return self._observed(reached), {"task_id": task.id, "kind": task.kind, "seed": seed}

    def step(self, action: str | Mapping[str, Any]) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """The agent's move. After the last one, the information has what `stepwise.outcome` says.

        Raises InfrastructureError when user or tools failed (reset then), MuaError for what is no move.
        """
        if self._episode is None:
            raise MuaError("there is no episode; call reset first.")
        reached = run(self._episode.move(read_move(action)))
        if isinstance(reached, View):
            return self._observed(reached), 0.0, False, False, {}
        assert reached.reward is not None
        cut = reached.termination in _CUT
        return self._observed(self._episode.last(reached)), reached.reward, not cut, cut, outcome(reached)

    def _observed(self, view: View) -> str:
        text = json.dumps(shown(view))
        if len(text) > self._observable.max_length:
            raise MuaError(
                f"the conversation has {len(text)} characters and max_chars is "
                f"{self._observable.max_length}; raise it, or lower limits."
            )
        return text

    def _end(self) -> None:
        episode, self._episode = self._episode, None
        if episode is not None:
            run(episode.close())

    def close(self) -> None:
        """Ends the episode and closes the connections to the user's endpoint."""
        self._end()
        if self.setting.endpoint is not None:
            run(self.setting.close())


gymnasium.register("mua/Episode-v0", entry_point=f"{__name__}:Episode")
