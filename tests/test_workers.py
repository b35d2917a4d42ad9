"""A step shared by several processes, with a real training run in each test."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from bit_run import SETTINGS, bit_worker, run_training
from mua.errors import MuaError
from mua.rollout import RolloutSettings
from mua.train.workers import Workers
from mua.trajectory import read_trajectories


@pytest.fixture
def workers():
    made = []

    def make(count, settings=SETTINGS):
        made.append(Workers(count, bit_worker, (settings,)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def played(folder):
    return [
        (t.task_id, t.sample, t.messages, t.reward) for t in read_trajectories(folder / "trajectories.jsonl")
    ]


def figures(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])


SPARE = RolloutSettings(
    groups=3, group_size=4, spare_groups=3, spare_episodes=2, refill_rounds=None, refill_budget=9
)


# With the KL in the reward, the processes share the reference's forwards before the update, too.
IN_REWARD = SETTINGS.grpo.model_copy(update={"kl_in": "reward"})


@pytest.mark.parametrize("changes", [{}, {"rollout": SPARE, "grpo": IN_REWARD}], ids=["plain", "spare"])
def test_three_processes_play_and_learn_what_one_does(tmp_path, workers, changes):
    settings = SETTINGS.model_copy(update={"steps": 1, **changes})
    alone = run_training(tmp_path / "alone", settings)
    shared = run_training(tmp_path / "shared", settings, workers=workers(3, settings))
    assert played(tmp_path / "shared") == played(tmp_path / "alone")
    assert (figures(tmp_path / "alone")["cut"] > 0) == ("rollout" in changes)
    for name in ("groups_played", "groups_trained", "cut", "reward"):
        assert figures(tmp_path / "shared")[name] == figures(tmp_path / "alone")[name]
    # The same sums in another order: equal but for rounding, where AdamW's first step is about lr in size.
    assert torch.allclose(weights(shared), weights(alone), rtol=0, atol=SETTINGS.lr * 1e-3)


def test_a_killed_process_loses_nothing_and_the_bits_stay(tmp_path, workers):
    whole = run_training(tmp_path / "whole", workers=workers(2))
    doomed = workers(2)

    def on_step(line):
        if line["step"] == 3:
            os.kill(doomed._children[0][0].pid, signal.SIGKILL)

    with pytest.raises(MuaError, match=r"exit code -9.*goes on from the last checkpoint"):
        run_training(tmp_path / "cut", workers=doomed, on_step=on_step)
    resumed = run_training(tmp_path / "cut", workers=workers(2))
    assert torch.equal(weights(resumed), weights(whole))
    assert played(tmp_path / "cut") == played(tmp_path / "whole")


def test_the_words_of_a_process_that_fails_are_heard(tmp_path, workers):
    there = workers(2)
    there._send([("play", ["no such task"], 1, 0, 1, (1, 2))])
    with pytest.raises(MuaError, match=r"a training process failed: KeyError: 'no such task'"):
        there._receive()
    # It is still there for the next request.
    run_training(tmp_path / "next", SETTINGS.model_copy(update={"steps": 1}), workers=there)
