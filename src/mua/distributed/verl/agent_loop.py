"""What verl's agent-loop workers load: one row of the data set → one of our episodes → verl's samples.

`RUN/verl/agent_loop.yaml` names `EpisodeLoop` and RUN/verl, which `launch` wrote. verl makes one
`EpisodeLoop` for each sample of each row; what they share is made once a process.

Invariant: `prompt_ids` and `response_ids` of a sample are the ids that the server read and sampled,
unchanged, and `response_mask` is 1 exactly on the sampled ones.
"""

from __future__ import annotations

import asyncio
import socket
import uuid
import weakref
from pathlib import Path
from typing import Any

from verl.experimental.agent_loop import AgentLoopBase, AgentLoopOutput  # pyright: ignore[reportMissingImports]

from ... import pipeline
from ...config import load_config, shared
from ...domains import load
from ...formats import ChatFormat
from ...runfolder import RunFolder
from ...trajectory import Trajectory
from .engine import ServerEngine
from .groups import Groups, Played, Row, samples

EPISODES = "episodes"


class EpisodeLoop(AgentLoopBase):
    """One sample of one row.

    `run` returns one output a segment of the episode's trace (more than one where the chat template rewrites
    history), all with the episode's reward: verl's V1 trainer gives them one advantage. It returns none for
    an episode that infrastructure broke for good: such a sample is in no batch.
    """

    def __init__(self, *args: Any, folder: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._folder = Path(folder)

    async def run(self, sampling_params: dict[str, Any], **fields: Any) -> list[AgentLoopOutput]:
        row = Row.of(fields)
        rollout = self.rollout_config
        groups = await _groups(self._folder, self.tokenizer, rollout.agent.num_workers)
        context = rollout.max_model_len or rollout.prompt_length + rollout.response_length
        engine = ServerEngine(self.server_manager, context, sampling_params, rollout.full_determinism)
        played = await groups.play(row, engine, sampling_params)
        return [] if played is None else outputs(played, groups.format.stop_ids[0], row.step)


def outputs(played: Played, filler: int, step: int) -> list[AgentLoopOutput]:
    """An episode as verl takes it; `step` stands in for the weights' version where the server says none."""
    trajectory, spent = played.trajectory, played.spent
    about = {
        "task": trajectory.task_id,
        "kind": trajectory.kind,
        "termination": trajectory.termination.value,
        "detail": trajectory.detail,
        "reason": trajectory.reason,
        "components": dict(trajectory.components),
        "faults": dict(trajectory.faults),
        "seed": trajectory.seed,
    }
    return [
        AgentLoopOutput(
            prompt_ids=sample.prompt,
            response_ids=sample.response,
            response_mask=sample.mask,
            response_logprobs=sample.logprobs,
            reward_score=played.reward,
            num_turns=sum(m.role != "system" for m in trajectory.messages),
            metrics={
                "generate_sequences": spent.seconds,
                # what is not sampling: tools, the user, waiting for the group
                "tool_calls": max(0.0, played.seconds - spent.seconds),
                "num_preempted": spent.preempted,
            },
            extra_fields={
                "reward_extra_info": dict(played.figures),
                "mua": about,
                "min_global_steps": step if spent.first_version is None else spent.first_version,
                "max_global_steps": step if spent.last_version is None else spent.last_version,
            },
        )
        for sample in samples(trajectory.trace, filler)
    ]


_made: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Path, asyncio.Future[Groups]]] = (
    weakref.WeakKeyDictionary()
)
"""Clients of endpoints belong to an event loop, and so does what has them."""


async def _groups(folder: Path, tokenizer: Any, workers: int) -> Groups:
    """The process's `Groups` of a folder; whoever asks first makes them."""
    made = _made.setdefault(asyncio.get_running_loop(), {})
    if folder not in made or (made[folder].done() and made[folder].exception()):
        made[folder] = asyncio.ensure_future(_make(folder, tokenizer, workers))
    return await asyncio.shield(made[folder])


async def _make(folder: Path, tokenizer: Any, workers: int) -> Groups:
    config = shared(load_config(folder.parent / "config.yaml"), workers)
    domain = load(config.domain)
    format = ChatFormat.of(tokenizer, tool_style=config.model.tool_style, thinking=config.model.thinking)
    place = folder / EPISODES / f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    players = pipeline.Players.of(config, place)
    make_user, _ = await pipeline.user_maker(None, config, config.train_user, players)
    make_held_out_user = make_user
    if config.verl.validate_every is not None:
        make_held_out_user, _ = await pipeline.user_maker(None, config, config.eval_user, players)
    record = RunFolder(place, config.model_dump(mode="json"))

    def on_episode(trajectory: Trajectory) -> None:
        line = trajectory.to_dict()
        line.pop("trace", None)  # verl has the tokens
        record.append("trajectories", line)

    return Groups(config, domain, format, make_user, make_held_out_user, on_episode)
