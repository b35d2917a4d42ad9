"""Episodes played while the weights are updated: which weights they see, and that no timing matters."""

from __future__ import annotations

import asyncio
import time

import pytest

from bit_run import SETTINGS, Caller, run_and_kill, run_training, start_model
from mua.engines.slots import SlotEngine
from mua.seeds import derive_seed
from mua.train import GrpoSettings, TrainSettings, checkpoint, trainer
from test_trainer import lines, same_weights, untimed

STALE = SETTINGS.model_copy(
    update={"staleness": 1, "grpo": GrpoSettings(kl_coefficient=0.01, correction="token")}
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An unbroken run: (folder, model)."""
    folder = tmp_path_factory.mktemp("stale")
    return folder, run_training(folder, STALE)


def digest(model):
    return sum(float(p.detach().double().abs().sum()) for p in model.parameters())


def test_each_step_plays_with_the_weights_of_the_last_update_but_one(tmp_path, monkeypatch):
    settings = STALE.model_copy(update={"checkpoint_every": 1, "keep_checkpoints": 9})
    step_of = {derive_seed(settings.seed, "rollout", step, 0): step for step in range(1, 7)}
    seen: dict[int, set[float]] = {}

    class Watched(SlotEngine):
        async def generate(self, prompt_ids, sampling, session):
            step = step_of.get(int(session.split("/")[0]))
            if step is not None:  # a refill has another seed
                seen.setdefault(step, set()).add(digest(self.model))
            return await super().generate(prompt_ids, sampling, session)

    def engine_of(model, slots):
        return Watched(model, slots=slots)

    monkeypatch.setattr("bit_run.SlotEngine", engine_of)
    model = run_training(tmp_path, settings)
    after = {0: digest(start_model())}
    for step in range(1, 7):
        loaded = start_model()
        checkpoint._load_model(tmp_path / "checkpoints" / f"step_{step:06d}" / "model", loaded)
        after[step] = digest(loaded)
    assert after[6] == digest(model) and len(set(after.values())) > 4
    assert seen == {step: {after[max(0, step - 2)]} for step in range(1, 7)}


@pytest.mark.parametrize(("point", "count"), [("episode", 40), ("gradient", 30), ("checkpoint file", 5)])
def test_kill_9_and_resume_change_nothing(whole, tmp_path, point, count):
    assert run_and_kill(tmp_path, point, count, STALE) == -9
    assert 0 < len(lines(tmp_path)) < 6
    model = run_training(tmp_path, STALE)
    assert same_weights(model, whole[1])
    assert untimed(tmp_path) == untimed(whole[0])
    assert lines(tmp_path, "trajectories") == lines(whole[0], "trajectories")


def sampled(run):
    """The trajectories, and of their recorded tokens all but the log-probabilities."""
    out = lines(run, "trajectories")
    for line in out:
        for segment in line.get("trace", ()):
            del segment["logprobs"]
    return out


@pytest.mark.parametrize("slow", ["update", "user"])
def test_neither_a_slow_update_nor_slow_users_change_a_bit(whole, tmp_path, monkeypatch, slow):
    options = {}
    if slow == "update":
        update = trainer.update

        def late(*args, **how):
            time.sleep(0.3)
            return update(*args, **how)

        monkeypatch.setattr(trainer, "update", late)
    else:

        class Slow(Caller):
            async def reply(self, view):
                await asyncio.sleep(0.01)
                return await super().reply(view)

        options["make_user"] = lambda task, seed: Slow(seed)
    model = run_training(tmp_path, STALE, **options)
    if slow == "update":
        assert same_weights(model, whole[1]) and untimed(tmp_path) == untimed(whole[0])
        assert lines(tmp_path, "trajectories") == lines(whole[0], "trajectories")
    # Users that answer after a while make other batches, so last bits may differ; the tokens do not here.
    assert sampled(tmp_path) == sampled(whole[0])


def test_stopping_leaves_nothing_running_and_the_end_is_the_same(whole, tmp_path):
    stops = iter([False] * 3 + [True])
    run_training(tmp_path, STALE, should_stop=lambda: next(stops))
    assert len(lines(tmp_path)) == 3
    assert same_weights(run_training(tmp_path, STALE), whole[1])
    assert untimed(tmp_path) == untimed(whole[0])


def test_it_learns_other_things_than_without(whole, tmp_path):
    fresh = run_training(tmp_path, STALE.model_copy(update={"staleness": 0}))
    assert not same_weights(fresh, whole[1])
    gaps = [line["sampling_gap"] or 0.0 for line in lines(whole[0])]
    none = [line["sampling_gap"] or 0.0 for line in lines(tmp_path)]
    # The first step is played with the weights that are updated; every later one lags by an update.
    assert max(none) < 1e-4 and gaps[0] < 1e-4 and min(gap for gap in gaps[1:] if gap) > 1e-4


def test_several_processes_do_not_overlap():
    with pytest.raises(ValueError, match="set processes to 1"):
        TrainSettings(staleness=1, processes=2)
