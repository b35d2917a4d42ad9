"""Supervised fine-tuning on token traces: how the agent (and a local user) learns the grammar of the job.

Invariant: the batches are a function of data, settings and step; stopping at any step and going on with the
same optimizer gives the same weights as never having stopped.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import MuaError
from ..seeds import derive_seed
from ..trajectory import Segment
from . import SftSettings, TrainSettings
from .activations import recomputing
from .batching import batches_for, denominators, token_logprobs, trained_length
from .optimizer import adamw

WINDOW_BATCHES = 16
"""Batches whose sequences are sorted by length together: little padding, and still a random order."""


@dataclass(frozen=True)
class SftResult:
    step: int
    """Steps done, earlier ones of a resumed run included."""
    loss: float
    """Of the last step, nats a token."""
    tokens: int
    """Tokens read in this call, padding left out."""
    seconds: float
    stopped: bool
    """`should_stop` ended it before the last step."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def total_steps(settings: SftSettings, sequences: int) -> int:
    if settings.steps is not None:
        return settings.steps
    return max(1, math.ceil(settings.epochs * math.ceil(sequences / settings.batch_size)))


def learning_rate(settings: SftSettings | TrainSettings, step: int, steps: int) -> float:
    """The rate of step 1..steps: a linear rise over the warm-up, then constant or half a cosine to 0."""
    if step <= settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.lr
    done = (step - 1 - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * done))


def batch_order(lengths: Sequence[int], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Indices of the sequences of each batch, without end; every epoch is a new shuffle of all.

    Within a window of batches the sequences are grouped by length and the batches shuffled again.
    """
    window = WINDOW_BATCHES * batch_size
    for epoch in itertools.count():
        rng = random.Random(derive_seed(seed, "order", epoch))
        order = list(range(len(lengths)))
        rng.shuffle(order)
        for start in range(0, len(order), window):
            part = sorted(order[start : start + window], key=lambda i: lengths[i])
            batches = [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
            rng.shuffle(batches)
            yield from batches


def train_sft(
    model: Any,
    segments: Sequence[Segment],
    settings: SftSettings,
    *,
    optimizer: torch.optim.AdamW | None = None,
    start_step: int = 0,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> SftResult:
    """Trains the model in place on the tokens with mask 1 (see `SftSettings.all_tokens_until`).

    The loss of a step is the mean over all its tokens. To be able to resume, make the optimizer with
    `adamw`, save it with the model (from `on_step`, say), and pass both again with the step as
    `start_step`. `on_step` gets step, steps, loss, lr, grad_norm, tokens (of the step), seconds.
    Raises MuaError when no segment has a token to train on, or when the loss is no longer a number.
    """
    segments = [s for s in segments if trained_length(s)]
    if not segments:
        raise MuaError("there is no token to train on: every segment's mask is 0. Check the SFT set.")
    whole = [Segment(s.ids, [1] * len(s.ids), s.logprobs) for s in segments]
    optimizer = optimizer or adamw(model, settings)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = parameters[0].device
    steps = total_steps(settings, len(segments))
    order = batch_order([len(s.ids) for s in segments], settings.batch_size, settings.seed)
    model.train()
    step, loss_value, tokens, stopped = start_step, float("nan"), 0, False
    began = time.perf_counter()
    for picked in itertools.islice(order, start_step, steps):
        if should_stop is not None and should_stop():
            stopped = True
            break
        step_began = time.perf_counter()
        step += 1
        source = whole if step <= settings.all_tokens_until * steps else segments
        batches = batches_for(model, [source[i] for i in picked], settings.micro_batch_tokens)
        count = denominators(batches).tokens
        loss = torch.zeros((), device=device)
        for batch in batches:
            with recomputing(model, batch.recompute, training=True):
                logprobs_BT, _ = token_logprobs(model, batch.ids_BT, batch.mask_BT, tree=batch.tree)
                part = -logprobs_BT.sum() / count
                part.backward()
            loss += part.detach()
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, settings.grad_clip)
        loss_value = loss.item()
        if not math.isfinite(loss_value) or not bool(grad_norm.isfinite()):
            raise MuaError(
                f"SFT step {step}: the loss is {loss_value} and the gradient's norm {float(grad_norm)}; "
                f"training diverged. Lower the learning rate (now {settings.lr})."
            )
        rate = learning_rate(settings, step, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        read = sum(batch.tokens for batch in batches)
        tokens += read
        if on_step is not None:
            on_step(
                {
                    "step": step,
                    "steps": steps,
                    "loss": loss_value,
                    "lr": rate,
                    "grad_norm": float(grad_norm),
                    "tokens": read,
                    "seconds": time.perf_counter() - step_began,
                }
            )
    model.eval()
    return SftResult(step, loss_value, tokens, time.perf_counter() - began, stopped)
