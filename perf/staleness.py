"""What playing the next step's episodes during the update gains (`train.staleness: 1`), and when.

    python perf/staleness.py RUN --latency 0 1 --json

RUN is a quickstart's folder: its cold-start model learns for a few steps in one process, with the domain's
agenda user, which answers after `latency` seconds as an endpoint would, once with staleness 0 and once with
1, in turns. Reported are seconds a step (from the second on, where there is something to overlap) and their
ratio. The two runs learn from other episodes, so their updates differ a little in size; the reward is given.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from mua import pipeline
from mua.chat import Message
from mua.config import load_config
from mua.domains import load as load_domain
from mua.rollout import RolloutSettings
from mua.runfolder import RunFolder
from mua.train import GrpoSettings
from mua.train.trainer import train
from mua.users import User, UserTurn


class Far:
    """A user whose answers take a while to come."""

    def __init__(self, user: User, latency: float):
        self.user, self.latency, self.name = user, latency, user.name

    async def reply(self, view: Sequence[Message]) -> UserTurn:
        await asyncio.sleep(self.latency)
        return await self.user.reply(view)


async def run_once(config: Any, path: Path, staleness: int, latency: float, steps: int) -> dict[str, Any]:
    """Seconds of each step after the first, and the mean reward."""
    domain = load_domain(config.domain)
    players = pipeline.Players()
    model, format, engine = await asyncio.to_thread(pipeline.load_agent, config, path, players)
    actor = model if staleness else None
    model = copy.deepcopy(model) if staleness else model
    assert domain.agenda_user is not None
    agenda = domain.agenda_user
    settings = config.train.model_copy(
        update={
            "steps": steps,
            "staleness": staleness,
            "rollout": RolloutSettings(groups=8, group_size=8, refill_rounds=0),
            "grpo": GrpoSettings(correction="token"),
            "checkpoint_every": steps,
            "schedule": "constant",
        }
    )
    ends: list[float] = []
    rewards: list[float] = []

    def on_step(line: dict[str, Any]) -> None:
        ends.append(time.perf_counter())
        rewards.append(line["reward"])

    with tempfile.TemporaryDirectory() as folder, RunFolder(Path(folder) / "run", {}) as run:
        await train(
            model,
            format,
            engine,
            domain,
            domain.tasks(config.train_split),
            make_user=lambda task, seed: Far(agenda(task, seed), latency),
            settings=settings,
            run=run,
            limits=config.limits,
            actor=actor,
            on_step=on_step,
        )
    await players.close()
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    return {"seconds": seconds, "reward": sum(rewards) / len(rewards)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a quickstart's folder")
    parser.add_argument("--latency", type=float, nargs="+", default=[0.0, 1.0], help="seconds an answer")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    options = parser.parse_args()
    config = load_config("quickstart")
    path = options.run / "models" / "cold_start"
    table = []
    for latency in options.latency:
        ratios: list[float] = []
        median: dict[int, list[float]] = {0: [], 1: []}
        reward: dict[int, list[float]] = {0: [], 1: []}
        for _ in range(options.rounds):
            for staleness in (0, 1):
                found = asyncio.run(run_once(config, path, staleness, latency, options.steps))
                median[staleness].append(statistics.median(found["seconds"]))
                reward[staleness].append(round(found["reward"], 3))
                print(
                    f"latency {latency}, staleness {staleness}: {median[staleness][-1]:.1f} s",
                    file=sys.stderr,
                )
            ratios.append(median[0][-1] / median[1][-1])
        table.append(
            {
                "latency": latency,
                "seconds_a_step": {
                    f"staleness_{s}": [round(x, 2) for x in each] for s, each in median.items()
                },
                "speedup": [round(ratio, 2) for ratio in sorted(ratios)],
                "reward": {f"staleness_{s}": each for s, each in reward.items()},
            }
        )
    result = {"name": "staleness", "steps": options.steps, "rounds": options.rounds, "table": table}
    if options.json:
        print(json.dumps(result))
        return
    for row in table:
        print(f"latency {row['latency']} s: {row['seconds_a_step']}, times as fast: {row['speedup']}")


if __name__ == "__main__":
    main()
