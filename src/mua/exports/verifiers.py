"""Our episodes as an environment of verifiers (its `v1` interface), for prime-rl and whoever else trains
on those.

`mua env verifiers` writes a package that binds what is here to one domain. A harness of verifiers is any
program whose model calls go through the address it is given: ours is `episode.play` with an endpoint
agent. So the episode, its tools and its user are ours, and tokens, log-probabilities and weights are the
trainer's business.

Invariants:
- The reward is that of our own episode; everything else is recorded as a metric, without weight.
- What infrastructure broke (user, tools, model server) fails the rollout and is never scored.
"""

# Its package is not in the environment that is checked.
# pyright: reportMissingImports=false
from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import verifiers.v1 as vf
from pydantic import Field

from ..agents import AgentStep
from ..agents.endpoint import EndpointAgent
from ..audit import LAYERS, audit
from ..chat import Message
from ..domain import Task
from ..endpoint import Endpoint, EndpointSettings
from ..episode import play
from ..errors import InfrastructureError
from ..seeds import derive_seed
from ..trajectory import Trajectory
from .stepwise import Setting, setting


class EpisodesConfig(vf.TasksetConfig):
    """What is played (`--env.taskset.*`); the fields are those of `stepwise.setting`."""

    domain: str = "library"
    split: str = "train"
    """Tasks of the held-out split are refused, unless `evaluate` is set."""
    evaluate: bool = False
    user: str = "agenda"
    """`agenda`: the domain's program; `endpoint:MODEL`: a model at `base_url` plays the user."""
    base_url: str = ""
    api_key_env: str = ""
    """NAME of the environment variable that holds the user endpoint's key."""
    limits: dict[str, int] = Field(default_factory=dict)
    """Fields of `mua.domain.Limits`: turns, steps, errors."""
    seed: int = 0
    """The user's. All rollouts of a task meet the same user, who opens in the same words."""


class EpisodeData(vf.TaskData):
    """One task, and all that a worker elsewhere needs to play it."""

    domain: str
    task_id: str
    kind: str
    split: str
    evaluate: bool
    user: str
    base_url: str
    api_key_env: str
    limits: dict[str, int]
    seed: int


class EpisodeState(vf.State):
    """How the episode ended."""

    reward: float = 0.0
    termination: str = ""
    reason: str = ""
    measured: dict[str, float] = Field(default_factory=dict)


class EpisodeTask(vf.Task[EpisodeData, EpisodeState, vf.TaskConfig]):
    """Scored by what the harness left in the state."""

    @property
    def key(self) -> str:
        return f"{self.data.domain}/{self.data.task_id}"

    @vf.reward(weight=1.0)
    async def outcome(self, trace: vf.Trace) -> float:
        """The reward of the episode."""
        return trace.state.reward

    @vf.metric
    async def measured(self, trace: vf.Trace) -> dict[str, float]:
        """Violations by layer of the audit, parts of the reward, counts."""
        return trace.state.measured


class Episodes(vf.Taskset[EpisodeTask, EpisodesConfig]):
    """The tasks of one split of a domain."""

    def load(self) -> Iterable[EpisodeTask]:
        """Raises MuaError for what cannot be played, and for held-out tasks."""
        shared = self.config.model_dump(include={*_WORDS, "seed"})
        for task in _setting(self.config).tasks:
            # The user opens, inside the episode; verifiers wants a prompt, so it is an empty conversation.
            data = EpisodeData(name=task.id, prompt=[], task_id=task.id, kind=task.kind, **shared)
            yield EpisodeTask(data, self.config.task)


_WORDS = ("domain", "split", "evaluate", "user", "base_url", "api_key_env", "limits")
"""What both configuration and data say of a setting."""


def _setting(said: EpisodesConfig | EpisodeData) -> Setting:
    return _made(json.dumps(said.model_dump(include=set(_WORDS)), sort_keys=True))


@functools.lru_cache(maxsize=64)
def _made(words: str) -> Setting:
    """Kept, so that all rollouts in a process share tasks and connections."""
    return setting(**json.loads(words))


class PlayConfig(vf.HarnessConfig):
    """Nothing beyond the base's."""


class Play(vf.Harness[PlayConfig]):
    """Plays the episode in this process; the model is called where verifiers says."""

    APPENDS_SYSTEM_PROMPT = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        """Raises InfrastructureError when the episode has no score."""
        assert isinstance(data, EpisodeData)
        found = _setting(data)
        task = found.task(data.task_id)
        seed = derive_seed(data.seed, task.id)
        model = _model(endpoint, ctx.model, secret)
        agent = _Prompted(EndpointAgent(model, found.domain.task_tools(task)), data.system_prompt)
        try:
            trajectory = await play(
                found.domain, task, agent, found.user(task, seed), limits=found.limits, seed=seed
            )
        finally:
            await model.close()
        if trace.stop_condition is not None:  # verifiers' own limits: what was played so far earns nothing
            trace.state.termination = trace.stop_condition
        elif trajectory.termination.infrastructure:
            raise InfrastructureError(f"{trajectory.termination.value}: {trajectory.detail}")
        else:
            _record(trace.state, found, task, trajectory)
        return vf.ProgramResult(exit_code=0, stdout=trajectory.reason, stderr="")


def _model(url: str, model: str, secret: str) -> Endpoint:
    """The model of one rollout. Sampling belongs to the trainer, which overlays it; a seed of ours would make
    a group's rollouts equal."""
    settings = EndpointSettings(
        base_url=url, model=model, temperature=None, max_tokens=None, seed=None, timeout=86_400
    )
    return Endpoint(settings, "agent", key=secret)  # good for this rollout only; never in the environment


def _record(state: EpisodeState, found: Setting, task: Task, trajectory: Trajectory) -> None:
    assert trajectory.reward is not None
    state.reward, state.reason = trajectory.reward, trajectory.reason
    state.termination = trajectory.termination.value
    seen = audit(found.domain, task, trajectory)
    usage = trajectory.usage
    state.measured = {
        **{f"reward/{name}": float(value) for name, value in trajectory.components.items()},
        **{f"violations/{layer}": float(sum(v.layer == layer for v in seen.violations)) for layer in LAYERS},
        "agent_steps": float(usage.agent_steps),
        "user_turns": float(usage.user_turns),
        "tool_calls": float(usage.tool_calls),
        "tool_errors": float(usage.tool_errors),
    }


class _Prompted:
    """An agent that is shown another system prompt, where there is one (`--env.taskset.system-prompt`)."""

    over_api = True
    trace = None

    def __init__(self, agent: EndpointAgent, system_prompt: str | None):
        self.agent = agent
        self.system_prompt = system_prompt

    def use_tools(self, tools: Mapping[str, Any]) -> None:
        self.agent.use_tools(tools)

    async def step(self, messages: Sequence[Message]) -> AgentStep:
        if self.system_prompt is not None:
            rest = messages[1:] if messages and messages[0].role == "system" else messages
            messages = [Message("system", self.system_prompt), *rest]
        return await self.agent.step(messages)

    def close(self) -> None:
        self.agent.close()


class ConversationConfig(vf.EnvConfig):
    """One agent. Nothing of it is executed, so it needs no sandbox."""

    agent: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())


class Conversation(vf.Env[ConversationConfig]):
    """One task, one episode, one trace."""

    async def run(self, task: vf.Task, agents: vf.Agents) -> None:
        """Plays the episode."""
        await agents.agent.run(task)

    async def stop(self) -> None:
        """Closes the users' connections."""
        assert isinstance(self.taskset.config, EpisodesConfig)
        await _setting(self.taskset.config).close()


def environment(package: str, **taskset: Any) -> Conversation:
    """The environment of an exported package in this process; `taskset` are fields of `EpisodesConfig`."""
    config = vf.resolve_env_config({"taskset": {"id": package, **taskset}})
    found = vf.load_environment(config)
    assert isinstance(found, Conversation)
    return found
