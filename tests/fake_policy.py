"""A model's stand-in behind verl's server client: it reads the prompt's text and writes an agent's next step.

`serve` is what verl's `LLMServerClient` offers to an agent loop. Everything that went in and out is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from mua.formats import ChatFormat

CALL = '<tool_call>{{"name": "cancel_order", "arguments": {{"order_id": "{}"}}}}</tool_call>'


class FakePolicy:
    """Cancels the order that the toy shop's user names, then says so; where `lazy(session)` is true it only
    talks. `break_at(session)` may raise, as a server does that is gone."""

    def __init__(
        self,
        format: ChatFormat,
        lazy: Callable[[str], bool] = lambda session: False,
        break_at: Callable[[str], None] = lambda session: None,
    ):
        self.format, self.lazy, self.break_at = format, lazy, break_at
        self.asked: list[tuple[str, list[int], dict[str, Any]]] = []
        self.said: dict[str, list[tuple[list[int], list[int], list[float]]]] = {}
        """Session → (prompt, sampled ids, their log-probabilities) of each request."""

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]
    ) -> Any:
        self.asked.append((request_id, prompt_ids, sampling_params))
        self.break_at(request_id)
        text = self.format.tokenizer.decode(prompt_ids)
        order = re.findall(r"my order (o\d+)", text)[-1]
        words = "Done." if self.lazy(request_id) or "cancelled" in text else CALL.format(order)
        # Each character by itself: a spelling that no tokenizer would choose, and that must survive.
        ids = [i for c in words for i in self.format.tokenizer.encode(c, add_special_tokens=False)]
        ids.append(self.format.stop_ids[0])
        logprobs = [-0.125 * (1 + n % 7) for n in range(len(ids))]
        self.said.setdefault(request_id, []).append((list(prompt_ids), ids, logprobs))
        version = len(self.said[request_id])
        return SimpleNamespace(
            token_ids=ids,
            log_probs=logprobs,
            stop_reason="completed",
            num_preempted=1,
            extra_fields={"min_global_steps": version, "max_global_steps": version},
        )
