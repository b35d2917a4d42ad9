"""A run with adapters in all its stages, as small as a run can be; what it leaves is loaded and served."""

from __future__ import annotations

import asyncio
import json
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mua import pipeline
from mua.config import load_config
from mua.train.checkpoint import _sha256

MICRO = [
    "model.tiny.layers=2",
    "model.tiny.vocab_size=600",
    "model.slots=32",
    "model.lora.rank=4",
    "model.lora.targets=[q_proj, v_proj, down_proj]",
    "model.gradient_checkpointing=true",
    "coldstart.conversations=60",
    'coldstart.user_split=""',
    "sft.steps=4",
    "sft.batch_size=2",
    "sft.lr=0.01",
    "user_sft=null",
    "train_user.kind=agenda",
    "eval.same_user=true",
    "train.steps=2",
    "train.lr=0.02",
    "train.checkpoint_every=1",
    "train.rollout.groups=2",
    "train.rollout.group_size=2",
    "train.rollout.refill_rounds=0",
    "train.max_step_tokens=12",
    "train.anomalies.stop_after_no_signal=null",
    "train.processes=1",
    "max_step_tokens=12",
    "limits.turns=3",
    "limits.steps=6",
    "threads=1",
]


def lora_run(folder: Path) -> Path:
    """The folder of a run through cold start, SFT and GRPO, all with adapters and recomputed activations."""
    tracked = ["track=[tensorboard]"] if find_spec("tensorboard") else []
    config = load_config("quickstart", MICRO + tracked)

    async def work():
        run = pipeline.open_run(config, folder)
        kept = await pipeline.coldstart(run)
        pipeline.sft(run, kept)
        await pipeline.train(run)
        run.folder.close()

    asyncio.run(work())
    # The model earns nothing in so few steps, and so learns nothing: its adapters are moved by hand.
    place = folder / "checkpoints" / "step_000002"
    adapters = load_file(place / "model" / "adapter_model.safetensors")
    torch.manual_seed(0)
    moved = {name: t + 0.3 * torch.randn_like(t) for name, t in adapters.items()}
    save_file(moved, place / "model" / "adapter_model.safetensors", {"format": "pt"})
    state = json.loads((place / "state.json").read_text())
    state["files"]["model/adapter_model.safetensors"] = _sha256(place / "model" / "adapter_model.safetensors")
    (place / "state.json").write_text(json.dumps(state))
    return folder
