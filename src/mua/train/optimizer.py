"""AdamW, with float32 copies of the weights where the model's own are coarser.

Invariant: an update that is too small for a bfloat16 weight is not lost. Gradients add up, and weights
move, in float32; the model gets the rounded result. Without that, a learning rate of 1e-6 moves hardly
any weight of a bfloat16 model: next to 0.05 its step is 0.0002.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import MuaError


def adamw(model: Any, settings: Any) -> torch.optim.AdamW:
    """AdamW on the parameters that are trained, with the settings' lr, betas and weight decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise MuaError("no parameter of the model requires a gradient, so there is nothing to train.")
    how = {"lr": settings.lr, "betas": settings.betas, "weight_decay": settings.weight_decay, "fused": True}
    if all(p.dtype == torch.float32 for p in trained):
        return torch.optim.AdamW(trained, **how)
    return MasterAdamW(trained, **how)


class MasterAdamW(torch.optim.AdamW):
    """AdamW on float32 copies of `parameters`, the masters; they are what `param_groups` holds.

    A gradient moves to its master as soon as a backward pass has made it, so several passes add up in
    float32, and the model's own `.grad` is always None. Costs 4 bytes a parameter more.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], **how: Any):
        self._live = list(parameters)
        self._masters = [p.detach().to(torch.float32, copy=True).requires_grad_() for p in self._live]
        super().__init__(self._masters, **how)
        for live, master in zip(self._live, self._masters, strict=True):
            live.register_post_accumulate_grad_hook(_mover(master))

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        out = super().step(closure)
        for live, master in zip(self._live, self._masters, strict=True):
            live.copy_(master)
        return out

    def state_dict(self) -> dict[str, Any]:
        """AdamW's own, with each parameter's `master` beside its moments."""
        out = super().state_dict()
        # A copy, because the entries are those of the live optimizer.
        state = {i: {**out["state"].get(i, {}), "master": m.detach()} for i, m in enumerate(self._masters)}
        return {**out, "state": state}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        moments = {}
        for i, entry in state_dict["state"].items():
            self._masters[i].copy_(entry["master"])
            if len(entry) > 1:
                moments[i] = {k: v for k, v in entry.items() if k != "master"}
        super().load_state_dict({**state_dict, "state": moments})
        for live, master in zip(self._live, self._masters, strict=True):
            live.copy_(master)


def _mover(master: Tensor) -> Any:
    def move(live: Tensor) -> None:
        assert live.grad is not None
        if master.grad is None:
            master.grad = live.grad.float()
        else:
            master.grad += live.grad
        live.grad = None

    return move
