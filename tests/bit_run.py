"""A training run so small that a test can afford many: one token decides what the agent does."""

from __future__ import annotations

import asyncio
import copy
import json
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

import torch

from mua import episode
from mua.agents import AgentStep
from mua.chat import Message, ToolCall
from mua.engines import Sampling
from mua.engines.slots import SlotEngine
from mua.episode import Limits
from mua.errors import MuaError
from mua.models import tiny_llama
from mua.rollout import RolloutSettings
from mua.runfolder import RunFolder
from mua.seeds import derive_seed
from mua.train import GrpoSettings, TrainSettings, checkpoint, trainer
from mua.train.trainer import accumulator, make_reference, peak_mb, player, scorer, train
from mua.train.workers import follow_parent, serve
from mua.trajectory import TokenTrace, Usage
from mua.users import STOP, UserTurn
from toy import toy_domain

VOCAB = 24
SETTINGS = TrainSettings(
    steps=6,
    lr=3e-3,
    micro_batch_tokens=40,
    checkpoint_every=2,
    seed=5,
    grpo=GrpoSettings(kl_coefficient=0.01),
    rollout=RolloutSettings(groups=3, group_size=4, concurrency=8),
)


class BitAgent:
    """Cancels the customer's order when the first token it samples is even; else it only talks."""

    def __init__(self, engine, task, session, seed):
        self.engine, self.session, self.seed = engine, session, seed
        self.order = task.scenario.facts["order number"]
        self.trace = TokenTrace()
        self.acted = False

    async def step(self, messages):
        segment = self.trace.current
        segment.add_context([1, 2 + len(messages[-1].content) % 20, 3 + int(self.order[1:])])
        sampling = Sampling(max_tokens=3, stop_ids=(0,), seed=derive_seed(self.seed, len(segment.ids)))
        completion = await self.engine.generate(segment.ids, sampling, self.session)
        segment.add_sampled(completion.token_ids, completion.logprobs)
        even, n = completion.token_ids[0] % 2 == 0, len(completion.token_ids)
        if even and not self.acted:
            self.acted = True
            return AgentStep(
                Message("assistant", tool_calls=(ToolCall("cancel_order", {"order_id": self.order}),)),
                tokens=n,
            )
        return AgentStep(Message("assistant", "Well."), tokens=n)

    def close(self):
        self.engine.release(self.session)


class Caller:
    """Opens with words of its own choice, then stops after one or two answers."""

    name = "caller"

    def __init__(self, seed):
        self.rng = random.Random(seed)

    async def reply(self, view):
        stop = bool(view) and self.rng.random() < 0.5
        return UserTurn(
            STOP if stop else "x" * self.rng.randrange(1, 20), stop=stop, usage=Usage(user_tokens=1)
        )


def start_model(seed=0, context=64, **how):
    return tiny_llama(
        VOCAB, layers=2, hidden=32, heads=4, kv_heads=2, intermediate=48, context=context, seed=seed,
        initializer_range=0.1, **how,
    )  # fmt: skip


def run_training(folder: Path, settings=SETTINGS, model=None, **options):
    """Trains (or goes on) in `folder`; returns the model."""
    torch.set_num_threads(1)
    model = model or start_model()
    domain = options.pop("domain", None) or toy_domain()
    tasks = options.pop("tasks", None) or domain.tasks("train")
    actor = copy.deepcopy(model) if settings.staleness else None
    engine = options.pop("engine", None) or SlotEngine(actor or model, slots=8)
    options.setdefault("make_agent", lambda task, session, seed: BitAgent(engine, task, session, seed))
    options.setdefault("make_user", _calls)
    config = {"train": settings.model_dump(mode="json")}
    with RunFolder(folder, config) as run:
        options |= {"settings": settings, "run": run, "actor": actor}
        asyncio.run(train(model, None, engine, domain, tasks, **options))
    return model


def _calls(task, seed):
    return Caller(seed)


def bit_worker(connection, settings, make_user=_calls):
    """A process of `train.workers` for `run_training`."""
    follow_parent()
    torch.set_num_threads(1)
    model, domain = start_model(), toy_domain()
    engine, reference = SlotEngine(model, slots=8), make_reference(model, settings)
    with asyncio.Runner() as runner:
        serve(
            connection,
            model,
            {task.id: task for task in domain.tasks("train")},
            player(
                domain,
                lambda task, session, seed: BitAgent(engine, task, session, seed),
                make_user,
                settings,
                Limits(),
            ),
            accumulator(model, reference, settings),
            scorer(model, reference, settings),
            engine.clear_cache,
            peak_mb,
            runner,
        )


KILL_POINTS = {
    "episode": (episode, "Trajectory"),  # made when an episode has ended
    "gradient": (trainer, "grpo_loss"),
    "optimizer": (torch.optim.AdamW, "step"),
    "record": (RunFolder, "append"),
    "checkpoint file": (checkpoint, "save_file"),
    "checkpoint in place": (checkpoint, "_point"),
}
"""Where a run can be killed: just before a call of this."""


def killed_run(folder: Path, point: str, count: int, settings=SETTINGS):
    """In a process of its own: trains, and is killed with SIGKILL at the `count`-th call of a kill point."""
    owner, name = KILL_POINTS[point]
    real, calls = getattr(owner, name), 0

    def counting(*args, **how):
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **how)

    setattr(owner, name, counting)
    run_training(folder, settings)


def run_and_kill(folder: Path, point: str, count: int, settings=SETTINGS) -> int | None:
    """The exit code of a process that ran `killed_run`."""
    context = multiprocessing.get_context("forkserver")  # imports torch once for all of them
    context.set_forkserver_preload(["bit_run"])
    process = context.Process(target=killed_run, args=(folder, point, count, settings))
    process.start()
    process.join()
    return process.exitcode


def full_disk_run(folder: Path) -> str:
    """Trains in `folder`, a disk of its own that runs full for a while; the words of the error.

    The disk is filled up after the second step's checkpoint, and emptied again after the error.
    """
    stops = iter([False, False, True])
    run_training(folder, should_stop=lambda: next(stops))
    ballast, room = folder / "ballast", os.statvfs(folder)
    with ballast.open("wb") as file:
        file.write(bytes(room.f_bavail * room.f_frsize - 100_000))
    try:
        run_training(folder)
        words = ""
    except MuaError as exc:
        words = str(exc)
    left = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert left == ["best", "step_000002"] and checkpoint.damage(folder / "checkpoints" / left[1]) is None
    ballast.unlink()
    run_training(folder)
    return words


if __name__ == "__main__":
    print(full_disk_run(Path(sys.argv[1])))
    checkpoint_folder = Path(sys.argv[1]) / "checkpoints" / "step_000006"
    print(json.loads((checkpoint_folder / "state.json").read_text())["files"]["model/model.safetensors"])
