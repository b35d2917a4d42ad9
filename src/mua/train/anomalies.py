"""Updates gone wrong: what counts as one, and what is kept of it.

Rule: an update whose loss or gradient is not finite, or whose mean ratio or KL is beyond its bound, is left
out, and so are the further updates of its step; a step without a sampled token, or whose groups all had
equal rewards, has none to make. The step is recorded like any other, with its `problems`; its episodes
and what the update made of them are saved. After so many such steps in a row (`AnomalySettings`), the run
ends with the last good weights saved.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import MuaError
from ..rollout import Group
from ..runfolder import RunFolder
from . import MEANING, AnomalySettings, TrainSettings
from .credit import Signals, sampled, segments_of


def problems(sums: Mapping[str, float], norm: float, settings: AnomalySettings) -> list[str]:
    """What is wrong with an update, as keys of `MEANING`, from its metrics and its gradient's norm."""
    found = [] if math.isfinite(sums["loss"]) else ["loss"]
    found += [] if math.isfinite(norm) else ["gradient"]
    for name, most in (("ratio", settings.max_ratio), ("kl", settings.max_kl)):
        value = sums.get(name)
        # Written so that a NaN is beyond every bound.
        if most is not None and value is not None and not value <= most:
            found.append(name)
    return found


def save(
    run: RunFolder,
    step: int,
    found: Sequence[str],
    groups: Sequence[Group],
    figures: Mapping[str, Any],
    settings: TrainSettings,
    signals: Signals | None,
) -> None:
    """Writes `anomalies/step_NNNNNN/`, and removes all but the newest `keep` of such folders.

    `anomaly.json` has the problems, the step's figures, the rewards and the settings; `trajectories.jsonl`
    the episodes with their exact tokens; `tensors.safetensors`, where there was an update, `advantages.N` and
    the log-probabilities `engine.N`, `model.N` and `reference.N` of the sampled tokens of the N-th segment:
    there a number that is not finite can be seen, for which JSON has null.
    """
    keep = settings.anomalies.keep
    if not keep:
        return
    place = run.path / "anomalies"
    name = f"step_{step:06d}"
    shutil.rmtree(place / name, ignore_errors=True)  # of a run that was cut off and has come here again
    run.write_json(
        f"anomalies/{name}/anomaly.json",
        {
            "step": step,
            "problems": {p: MEANING[p] for p in found},
            "figures": figures,
            "rewards": {f"{n} {group.task.id}": group.rewards for n, group in enumerate(groups)},
            "train": settings.model_dump(mode="json"),
        },
    )
    record = f"anomalies/{name}/trajectories"
    for group in groups:
        for trajectory in group.trajectories:
            run.append(record, trajectory.to_dict())
    run.finish(record)
    if signals is not None:
        tensors = {f"advantages.{n}": a for n, a in enumerate(signals.advantages)}
        segments = [s for group in groups for t in group.trajectories for s in segments_of(t)]
        tensors |= {f"engine.{n}": torch.tensor(s.logprobs)[sampled(s)] for n, s in enumerate(segments)}
        tensors |= {f"model.{n}": t for n, t in enumerate(signals.start_logprobs or ())}
        tensors |= {f"reference.{n}": t for n, t in enumerate(signals.ref_logprobs or ())}
        file = place / name / "tensors.safetensors"
        try:
            save_file({k: t.contiguous() for k, t in tensors.items()}, file)
        except (OSError, SafetensorError) as exc:
            raise MuaError(f"{file} cannot be written ({exc}). Make room on the disk.") from exc
    for old in sorted(place.glob("step_*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def gone_on_too_long(run: RunFolder, step: int, found: Sequence[str], in_a_row: int) -> MuaError:
    """The error that ends the run."""
    if found == ["no_signal"]:
        fix = (
            "The tasks are too hard or too easy for the model: a better cold start, other tasks or larger "
            "groups help. The same command tries one more step; train.anomalies.stop_after_no_signal, in a "
            "new run folder, allows more"
        )
    else:
        fix = (
            "Their data is in anomalies/, the weights of the last good update in checkpoints/. A lower "
            "train.lr in a new run folder may help; train.anomalies says what counts as broken. The same "
            "command tries one more step"
        )
    what = "; ".join(MEANING[p] for p in found)
    return MuaError(f"{run.path}: {in_a_row} steps in a row, up to {step}, made no update ({what}). {fix}.")
