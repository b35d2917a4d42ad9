"""The agent that is trained: a language model behind an engine.

Invariant: its trace holds exactly the ids that the engine read and sampled for this episode, in order;
a request that gave nothing leaves no mark on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..chat import Message
from ..engines import Engine, Sampling
from ..formats import ChatFormat, TokenChat, Tools
from ..seeds import derive_seed
from ..trajectory import TokenTrace
from . import AgentStep


class ModelAgent:
    """Plays the agent of one episode.

    `tools` are those of the agent's side; when `use_tools` sets other ones, the next step starts a new
    segment. `sampling` gives temperature, top_p and the most tokens of a step; its stop ids
    and seed are replaced. `session` must be unique among the engine's live sessions.
    """

    def __init__(
        self,
        format: ChatFormat,
        engine: Engine,
        tools: Tools,
        *,
        sampling: Sampling,
        session: str,
        seed: int,
    ):
        self.format = format
        self.engine = engine
        self.tools = tools
        self.sampling = dataclasses.replace(sampling, stop_ids=format.stop_ids)
        self.session = session
        self.seed = seed
        self._chat = TokenChat(format)
        self._steps = 0

    @property
    def trace(self) -> TokenTrace:
        return self._chat.trace

    def use_tools(self, tools: Tools) -> None:
        """The tools from the next step on."""
        self.tools = tools

    async def step(self, messages: Sequence[Message]) -> AgentStep:
        """One generation. It is truncated when a token limit cut it, the engine's context included.

        Raises InfrastructureError when the engine fails; the step can then be tried again, and gets the
        same seed.
        """
        prompt = self._chat.prompt(messages, self.tools)
        room = self.engine.context - len(prompt)
        if room <= 0:
            return AgentStep(Message("assistant"), truncated=True)
        sampling = dataclasses.replace(
            self.sampling,
            max_tokens=min(self.sampling.max_tokens, room),
            seed=derive_seed(self.seed, "agent", self._steps),
        )
        completion = await self.engine.generate(prompt, sampling, self.session)
        self._chat.add(completion.token_ids, completion.logprobs)
        self._steps += 1
        return AgentStep(
            self.format.decode(completion.token_ids),
            tokens=len(completion.token_ids),
            truncated=completion.stop_reason == "length",
            text=self.format.text(completion.token_ids),
        )

    def close(self) -> None:
        """Releases the engine's cache of this episode."""
        self.engine.release(self.session)
