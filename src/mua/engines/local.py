"""Picks the local engine for a model.

Invariant: both engines answer alike (same protocol, same random numbers); the choice is one of speed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ..errors import MuaError

if TYPE_CHECKING:
    from .continuous import ContinuousEngine
    from .slots import SlotEngine

LARGE = 1_000_000_000
"""Parameters from which `auto` takes the continuous engine on a GPU."""


def make_engine(
    model: Any,
    kind: Literal["auto", "slots", "continuous"] = "auto",
    *,
    tokenizer: Any = None,
    slots: int = 128,
    context: int | None = None,
    cache_tokens: int | None = None,
) -> SlotEngine | ContinuousEngine:
    """The engine for a model; `auto` goes by device and size.

    Measured with `perf/generate.py` (one CPU thread, 1.9 M-parameter Llama, 64 conversations of 5 rounds):
    the slot engine generates about 13 times what the continuous one does, and 5 times what plain `generate`
    does, because the difference is the work around the model, which a small model does not hide. Hence
    slots on every CPU and for small models. With a large model on a GPU memory counts instead: slots
    reserve rows as long as the longest, pages hold what is used. That bound (1 G parameters) is reasoned,
    not measured: on a GPU at hand, run the benchmark and set `kind`.

    `slots` is for the slot engine, `cache_tokens` for the continuous one; see there. Raises MuaError for an
    unknown kind.
    """
    if kind not in ("auto", "slots", "continuous"):
        raise MuaError(f"Unknown engine kind {kind!r}: use auto, slots or continuous.")
    if kind == "auto":
        size = sum(parameter.numel() for parameter in model.parameters())
        on_cpu = model.get_input_embeddings().weight.device.type == "cpu"
        kind = "slots" if on_cpu or size < LARGE else "continuous"
    if kind == "slots":
        from .slots import SlotEngine

        return SlotEngine(model, slots=slots, context=context)
    from .continuous import ContinuousEngine

    return ContinuousEngine(model, tokenizer, context=context, cache_tokens=cache_tokens)
