"""verl's server client as an `Engine`.

Invariant: what the server sampled is handed on as it came, or the request has failed: never half an answer,
never ids without their log-probabilities.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...engines import Completion, Sampling
from ...errors import InfrastructureError


@dataclass
class Spent:
    """What the requests of one session took."""

    seconds: float = 0.0
    preempted: int = -1
    """Times the server put the session's requests back; -1: it does not say."""
    first_version: int | None = None
    """Number of the weights that sampled the session's first tokens; None: the server does not say."""
    last_version: int | None = None

    def count(self, seconds: float, preempted: int | None, first: int | None, last: int | None) -> None:
        self.seconds += seconds
        if preempted is not None:
            self.preempted = max(0, self.preempted) + preempted
        if first is not None and (self.first_version is None or first < self.first_version):
            self.first_version = first
        if last is not None and (self.last_version is None or last > self.last_version):
            self.last_version = last


class ServerEngine:
    """Asks `client.generate(request_id=…, prompt_ids=…, sampling_params=…)` of verl's `LLMServerClient`.

    The session is the request id, so verl's router keeps an episode on the server that has its prefix.
    `context` is the server's; one token of it is left free, as SGLang wants. `params` are the sampling
    settings that verl passes to an agent loop (top_k, repetition_penalty, logprobs); those of a request win
    over them. With `seeded`, each request has its own seed: servers that draw from one stream for all
    requests are not slowed down by it, and a run does then not repeat.
    """

    def __init__(self, client: Any, context: int, params: Mapping[str, Any], seeded: bool = False):
        self.context = context - 1
        self.spent: dict[str, Spent] = {}
        self._client = client
        self._params = params
        self._seeded = seeded

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, session: str) -> Completion:
        room = self.context - len(prompt_ids)
        if room <= 0:
            raise ValueError(f"a prompt of {len(prompt_ids)} tokens leaves no room in {self.context}")
        most = min(sampling.max_tokens, room)
        params = {
            **self._params,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": most,
            "stop_token_ids": list(sampling.stop_ids),
            "logprobs": True,
        }
        if self._seeded:
            params["seed"] = sampling.seed
        began = time.perf_counter()
        try:
            answer = await self._client.generate(
                request_id=session, prompt_ids=list(prompt_ids), sampling_params=params
            )
        except Exception as exc:  # dead actors, timeouts, refusals: Ray has no common class for them
            raise InfrastructureError(f"verl's server failed: {type(exc).__name__}: {exc}"[:500]) from exc
        more = answer.extra_fields
        spent = self.spent.setdefault(session, Spent())
        spent.count(
            time.perf_counter() - began,
            answer.num_preempted,
            more.get("min_global_steps"),
            more.get("max_global_steps"),
        )
        ids, logprobs = list(answer.token_ids), answer.log_probs
        if answer.stop_reason in ("aborted", "abort") or not ids:
            raise InfrastructureError(f"verl's server gave no tokens (stop reason {answer.stop_reason})")
        if logprobs is None or len(logprobs) != len(ids) or not all(map(math.isfinite, logprobs)):
            raise InfrastructureError(
                f"verl's server gave {len(ids)} tokens without a sound log-probability for each; it needs "
                "actor_rollout_ref.rollout.calculate_log_probs=true"
            )
        if len(ids) > most:
            raise InfrastructureError(f"verl's server gave {len(ids)} tokens where {most} were asked for")
        # It says `completed` for both ends. One that is shorter than asked for was ended by a stop id, be it
        # one of the model's own that the chat format does not know.
        cut = len(ids) == most and ids[-1] not in sampling.stop_ids
        return Completion(ids, [float(x) for x in logprobs], "length" if cut else "stop")

    def release(self, session: str) -> None:
        """Nothing to do: the servers forget by themselves."""

    async def close(self) -> None:
        """Nothing to do: verl owns the servers."""
