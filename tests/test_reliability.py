"""Updates that go wrong, several updates a step, the best checkpoint, a disk that runs full."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bit_run import SETTINGS, BitAgent, run_and_kill, run_training, start_model
from mua.engines.slots import SlotEngine
from mua.errors import MuaError
from mua.models import with_adapters
from mua.rollout import RolloutSettings
from mua.train import AnomalySettings, GrpoSettings, anomalies, checkpoint
from mua.train.activations import recompute
from mua.train.optimizer import adamw
from mua.train.trainer import _parts
from mua.trajectory import read_trajectories

SMALL = SETTINGS.model_copy(
    update={
        "checkpoint_every": 1,
        "keep_checkpoints": 9,
        "rollout": RolloutSettings(groups=2, group_size=4, refill_rounds=0),
    }
)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder, step):
    return load_file(folder / "checkpoints" / f"step_{step:06d}" / "model" / "model.safetensors")


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def planting(*steps):
    """A NaN in the log-probabilities of one episode of each group in those steps."""

    def on_episode(trajectory):
        if trajectory.step in steps and trajectory.sample == 0:
            segment = trajectory.trace.segments[0]
            segment.logprobs[segment.mask.index(1)] = math.nan

    return on_episode


def test_a_planted_nan_changes_no_weight_and_leaves_its_data(tmp_path):
    run_training(tmp_path, SMALL, on_episode=planting(3))
    found = lines(tmp_path)
    assert [line["problems"] for line in found] == [[], [], ["loss", "ratio"], [], [], []]
    assert found[2]["loss"] is None and found[2]["groups_trained"] > 0 and found[2]["updates"] == 1
    assert same(weights(tmp_path, 3), weights(tmp_path, 2))
    assert not same(weights(tmp_path, 4), weights(tmp_path, 3))
    (place,) = (tmp_path / "anomalies").iterdir()
    told = json.loads((place / "anomaly.json").read_text())
    assert place.name == "step_000003" and list(told["problems"]) == ["loss", "ratio"]
    assert told["train"] == SMALL.model_dump(mode="json") and told["figures"]["step"] == 3
    tensors = load_file(place / "tensors.safetensors")
    kept = list(read_trajectories(place / "trajectories.jsonl"))
    assert [t.reward for t in kept] == [r for rewards in told["rewards"].values() for r in rewards]
    segments = [s for t in kept for s in t.trace.segments]
    for n, segment in enumerate(segments):
        assert {tensors[f"{kind}.{n}"].shape for kind in ("advantages", "engine", "model", "reference")} == {
            (sum(segment.mask),)
        }
        assert torch.isfinite(tensors[f"model.{n}"]).all()
    # The engine's numbers are there as they were, so it can be seen where the NaN came from.
    bad = sum(int(tensors[f"engine.{n}"].isnan().sum()) for n in range(len(segments)))
    assert bad == found[2]["groups_trained"]


def test_broken_steps_in_a_row_end_the_run_with_the_last_good_weights(tmp_path):
    settings = SMALL.model_copy(update={"steps": 9})
    with pytest.raises(MuaError, match=r"3 steps in a row.*made no update \(the loss is not a finite"):
        run_training(tmp_path, settings, on_episode=planting(*range(2, 9)))
    last = lines(tmp_path)[-1]["step"]
    assert last < 7 and same(weights(tmp_path, last), weights(tmp_path, 1))
    with pytest.raises(MuaError, match="4 steps in a row"):  # the same command tries once more
        run_training(tmp_path, settings, on_episode=planting(*range(2, 9)))
    assert same(weights(tmp_path, lines(tmp_path)[-1]["step"]), weights(tmp_path, 1))
    run_training(tmp_path, settings)
    assert lines(tmp_path)[-1]["step"] == 9 and not same(weights(tmp_path, 9), weights(tmp_path, 1))


def test_steps_without_a_signal_end_the_run_too(tmp_path):
    class Silent(BitAgent):
        async def step(self, messages):
            self.acted = True
            return await super().step(messages)

    model = start_model()
    engine = SlotEngine(model, slots=8)
    settings = SMALL.model_copy(
        update={"anomalies": AnomalySettings(stop_after_no_signal=2, stop_after=1, keep=1)}
    )
    with pytest.raises(MuaError, match=r"2 steps in a row, up to 2.*no group has both"):
        run_training(
            tmp_path,
            settings,
            model,
            engine=engine,
            make_agent=lambda task, session, seed: Silent(engine, task, session, seed),
        )
    assert [line["problems"] for line in lines(tmp_path)] == [["no_signal"]] * 2
    (place,) = (tmp_path / "anomalies").iterdir()  # the newest
    assert place.name == "step_000002" and not (place / "tensors.safetensors").exists()


def test_what_counts_as_broken():
    fine = {"loss": 0.1, "ratio": 1.0, "kl": 0.2}
    s = AnomalySettings()
    assert anomalies.problems(fine, 3.0, s) == []
    assert anomalies.problems(fine, math.nan, s) == anomalies.problems(fine, math.inf, s) == ["gradient"]
    assert anomalies.problems({**fine, "loss": math.inf}, 3.0, s) == ["loss"]
    assert anomalies.problems({**fine, "ratio": 10.1, "kl": 11.0}, 3.0, s) == ["ratio", "kl"]
    assert anomalies.problems({**fine, "kl": math.nan}, 3.0, s) == ["kl"]
    assert anomalies.problems({"loss": 0.0, "ratio": 1.0}, 0.0, s) == []  # no reference
    off = AnomalySettings(max_ratio=None, max_kl=None)
    assert anomalies.problems({**fine, "ratio": 99.0, "kl": 99.0}, 3.0, off) == []


SEVERAL = SMALL.model_copy(
    update={
        "steps": 4,
        "epochs": 2,
        "minibatches": 2,
        "lr": 1e-2,
        "grpo": GrpoSettings(correction="token", kl_in="reward", kl_coefficient=0.01),
    }
)


def test_several_updates_a_step_move_away_from_the_samples_and_resume_bit_for_bit(tmp_path):
    whole = run_training(tmp_path / "whole", SEVERAL)
    assert run_and_kill(tmp_path / "cut", "optimizer", 6, SEVERAL) == -9
    resumed = run_training(tmp_path / "cut", SEVERAL)
    assert same(whole.state_dict(), resumed.state_dict())
    one = run_training(tmp_path / "one", SEVERAL.model_copy(update={"epochs": 1, "minibatches": 1}))
    assert not same(whole.state_dict(), one.state_dict())
    for line in lines(tmp_path / "whole"):
        if line["groups_trained"]:
            assert line["updates"] == 2 * min(2, line["groups_trained"])
            assert line["sampling_gap_max"] < 1e-4 and line["truncated"] == 0  # of the first update
            assert line["ratio_max"] > 1.001  # the clip has something to do
    for line in lines(tmp_path / "one"):
        assert line["updates"] == bool(line["groups_trained"])
        if line["updates"]:
            assert line["ratio_max"] == pytest.approx(1, abs=1e-6)


def trainee(dtype, lora, recomputed):
    model = start_model().to(dtype)
    if lora:
        model = with_adapters(model, 4, 8.0, ["q_proj", "v_proj", "down_proj"], seed=1)
    if recomputed:
        recompute(model, True)
    return model


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_every_way_of_training_resumes_bit_for_bit(tmp_path, dtype, lora):
    """Full and with adapters, in float32 and bfloat16; and recomputed activations change no bit."""
    settings = SMALL.model_copy(update={"steps": 3, "lr": 1e-2})
    straight = run_training(tmp_path / "straight", settings, trainee(dtype, lora, False))
    stops = iter([False, True])
    cut = trainee(dtype, lora, True)
    run_training(tmp_path / "cut", settings, cut, should_stop=lambda: next(stops))
    resumed = run_training(tmp_path / "cut", settings, trainee(dtype, lora, True))
    assert same(straight.state_dict(), resumed.state_dict())
    assert not same(straight.state_dict(), cut.state_dict())
    timed = {"seconds_rollout", "seconds_update", "peak_mb"}
    a, b = (
        [{k: v for k, v in line.items() if k not in timed} for line in lines(tmp_path / name)]
        for name in ("straight", "cut")
    )
    assert a == b and any(line["kl"] and line["kl"] > 0 for line in a)
    start = start_model().to(dtype).model.layers[0].self_attn.k_proj.weight
    own = straight.get_base_model() if lora else straight
    assert torch.equal(own.model.layers[0].self_attn.k_proj.weight, start) == lora  # adapters alone


def test_each_pass_holds_every_segment_once_in_whole_groups(tmp_path):
    class Fake:
        def __init__(self, sizes):
            self.trajectories = [
                type("T", (), {"trace": type("R", (), {"segments": [0] * n})})() for n in sizes
            ]

    groups = [Fake([1, 2]), Fake([3]), Fake([1]), Fake([2, 2]), Fake([1])]
    of_group = [{0, 1, 2}, {3, 4, 5}, {6}, {7, 8, 9, 10}, {11}]
    settings = SETTINGS.model_copy(update={"epochs": 3, "minibatches": 2})
    parts = list(_parts(groups, settings, 1))
    assert len(parts) == 6 and len({tuple(p) for p in parts}) > 2  # drawn anew
    for first, second in zip(parts[::2], parts[1::2], strict=True):
        assert sorted(first + second) == list(range(12))
        assert all(g <= set(first) or g <= set(second) for g in of_group)
    assert parts == list(_parts(groups, settings, 1)) != list(_parts(groups, settings, 2))
    many = SETTINGS.model_copy(update={"minibatches": 9})
    assert len(list(_parts(groups, many, 1))) == 5


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path):
    model = start_model()
    optimizer = adamw(model, SETTINGS)
    for step, score in enumerate([0.1, 0.9, 0.5, 0.9, 0.2], 1):
        checkpoint.save(tmp_path, step, model, optimizer, keep=2, score=score)
    assert (tmp_path / "best").resolve().name == "step_000002"
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"best", "step_000002", "step_000004", "step_000005"}
    found = checkpoint.latest(tmp_path)
    assert found is not None and found.name == "step_000005"
    checkpoint.save(tmp_path, 6, model, optimizer, keep=2, score=0.95)
    assert (tmp_path / "best").resolve().name == "step_000006"
    assert not (tmp_path / "step_000002").exists()


def test_a_run_says_how_good_its_checkpoints_were(tmp_path):
    run_training(tmp_path, SMALL.model_copy(update={"best_window": 2}))
    rewards = [line["reward"] for line in lines(tmp_path)]
    scores = {}
    for step in range(1, 7):
        state = json.loads((tmp_path / "checkpoints" / f"step_{step:06d}" / "state.json").read_text())
        scores[step] = state["score"]
        window = rewards[max(0, step - 2) : step]
        assert state["score"] == pytest.approx(sum(window) / len(window))
    best = int((tmp_path / "checkpoints" / "best").resolve().name[-6:])
    assert best == min(s for s in scores if scores[s] == max(scores.values()))


def test_a_full_disk_ends_the_run_with_the_last_good_state(tmp_path):
    """On a real small disk, mounted for one process."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, to mount a small disk")
    place = tmp_path / "disk"
    place.mkdir()
    mount = f"mount -t tmpfs -o size=8m none {place}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], check=False, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    program = Path(__file__).with_name("bit_run.py")
    command = f"{mount} && exec {sys.executable} {program} {place}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    words, digest = done.stdout.splitlines()[-2:]
    assert "cannot be written" in words and "No space left" in words and "go on from there" in words
    run_training(tmp_path / "whole")
    state = json.loads((tmp_path / "whole" / "checkpoints" / "step_000006" / "state.json").read_text())
    assert digest == state["files"]["model/model.safetensors"]
