"""TRL's GRPOTrainer as the other side of `update.py` and `memory.py`: its loss, its backward, its options.

The trainer is made as a user makes it; what is timed is its `compute_loss` on batches laid out as its own
rollout lays them out (prompts padded on the left, completions on the right, tokens of the environment masked
by `tool_mask`), and `backward`. Making the batches is not timed.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from mua.train.activations import recompute
from mua.trajectory import Segment


def make(model: Any, device: str = "cpu") -> Any:
    """A GRPOTrainer with the objective of `update.py`: token ratio, clip 0.2, mean over tokens, no KL."""
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1, "[PAD]": 2, "[EOS]": 3}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", eos_token="[EOS]", unk_token="[UNK]"
    )
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="mua-perf-"),
        report_to=[],
        use_cpu=device == "cpu",
        bf16=False,
        loss_type="bnpo",  # the mean over the tokens of the batch
        beta=0.0,
        num_generations=2,
        per_device_train_batch_size=2,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["a"] * 4}),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


_trainers: dict[int, Any] = {}


def switched(model: Any, checkpointing: bool, device: str) -> Any:
    """The model's one trainer (it changes the model's forward), with activation checkpointing or without."""
    trainer = _trainers.get(id(model)) or _trainers.setdefault(id(model), make(model, device=device))
    recompute(model, checkpointing)
    model.train()
    return trainer


def batches(
    segments: Sequence[Segment], advantages: Sequence[float], rows: int, device: str = "cpu"
) -> list[tuple[dict[str, Any], float]]:
    """Inputs of `compute_loss` for `rows` sequences each, and each one's share of the sampled tokens."""
    total = sum(sum(s.mask) for s in segments)
    out = []
    for start in range(0, len(segments), rows):
        some = segments[start : start + rows]
        prompts = [s.mask.index(1) for s in some]
        left, right = max(prompts), max(len(s.ids) - n for s, n in zip(some, prompts, strict=True))
        prompt_ids, prompt_mask = (
            torch.full((len(some), left), 2),
            torch.zeros(len(some), left, dtype=torch.long),
        )
        ids = torch.full((len(some), right), 2)
        mask, sampled, old = (torch.zeros(len(some), right) for _ in range(3))
        for row, (segment, n) in enumerate(zip(some, prompts, strict=True)):
            prompt_ids[row, left - n :], prompt_mask[row, left - n :] = torch.tensor(segment.ids[:n]), 1
            own = len(segment.ids) - n
            ids[row, :own], mask[row, :own] = torch.tensor(segment.ids[n:]), 1
            sampled[row, :own] = torch.tensor(segment.mask[n:]).float()
            old[row, :own] = torch.tensor(segment.logprobs[n:])
        inputs = {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "completion_ids": ids,
            "completion_mask": mask.long(),
            "tool_mask": sampled.long(),
            "old_per_token_logps": old,
            "advantages": torch.tensor(advantages[start : start + rows]),
        }
        share = sum(sum(s.mask) for s in some) / total
        out.append(({name: value.to(device) for name, value in inputs.items()}, share))
    return out


def update(trainer: Any, made: Sequence[tuple[dict[str, Any], float]]) -> float:
    """The loss of the whole step, whose gradient is in the model afterwards."""
    value = 0.0
    for inputs, share in made:
        loss = trainer.compute_loss(trainer.model, inputs) * share
        loss.backward()
        value += loss.item()
    return value
