"""The activations of an update: how many fit, and when they are computed twice instead of kept.

Invariant: recomputing changes memory and time, not one bit of the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

CPU_BYTES = 2 << 30
"""What the activations of a micro-batch may take on a CPU; on a GPU it is a quarter of its memory."""


def kept_tokens(model: Any, *, recomputed: bool = False) -> int:
    """Tokens whose activations fit the device: all of them kept, or only what each layer starts from."""
    config, weight = model.config.get_text_config(), next(model.parameters())
    hidden, layers = config.hidden_size, config.num_hidden_layers
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or hidden // heads)
    # Elements that a layer of Llama's kind keeps of each token, counted with saved-tensor hooks.
    layer = 8 * hidden + 6 * width + 4 * getattr(config, "intermediate_size", 4 * hidden)
    kept = layers * hidden + layer if recomputed else layers * layer
    room = CPU_BYTES
    if weight.device.type == "cuda":
        room = torch.cuda.get_device_properties(weight.device).total_memory // 4
    return max(1, room // (kept * weight.element_size()))


def recomputes(model: Any) -> bool:
    """Whether the model's layers recompute their activations in the backward."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def recompute(model: Any, on: bool) -> None:
    """Switches recomputing of the layers' activations."""
    verb = "enable" if on else "disable"
    # The second is what transformers called it before, and has deprecated.
    names = f"activation_checkpointing_{verb}", f"gradient_checkpointing_{verb}"
    switch = next(getattr(model, name) for name in names if hasattr(model, name))
    # The other way of PyTorch's gives no gradient where a layer's input needs none, as below adapters.
    switch(*[{"use_reentrant": False}] * on)


@contextmanager
def recomputing(model: Any, on: bool, *, training: bool = False) -> Iterator[None]:
    """For a forward and its backward: recompute if `on`, or if the model always does.

    The model is in evaluation mode meanwhile unless it recomputes (layers do that in training mode only) or
    `training`: without dropout, the log-probabilities are those of the model that was sampled from.
    """
    always, mode = recomputes(model), model.training
    if on and not always:
        recompute(model, True)
    model.train(training or on or always)
    try:
        yield
    finally:
        if on and not always:
            recompute(model, False)
        model.train(mode)


def has_dropout(model: Any) -> bool:
    """Whether training mode would change what the model computes."""
    return any(
        float(getattr(module, name, 0.0) or 0.0) > 0
        for module in model.modules()
        for name in ("p", "attention_dropout", "dropout")
        if isinstance(getattr(module, name, None), float)
    )
