"""The generation engine for large models: transformers' continuous batching, with a paged, shared cache.

Finished blocks of keys and values are shared by content, so that a later step of an episode, and every
other episode with the same system prompt, finds its prefix without a session. The forwards run in a thread.

Sampling is ours (`sampling.draw`, hooked in as the last logits processor): transformers 5.23 has one
temperature-or-greedy switch and one seed for a whole manager and reports log-probabilities after top_p;
this way each request has its own settings and seed, in one batch, and log-probabilities before top_p. The
price is no CUDA graph and no overlap of host and device, so a step takes what its kernels take to launch.

Invariants:
- Keys and values never outlive the weights they were computed with: when a parameter was written in place
  (noticed as in `slots`), or after `clear_cache()`, the cache is thrown away before the next request.
- Which requests share a forward depends on the timing of threads. A request's random numbers do not, but
  its logits may differ in the last bits from run to run; only `SlotEngine` repeats bit for bit.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
)

from ..errors import InfrastructureError, MuaError
from . import Completion, Sampling
from .sampling import NOT_FINITE, Uniforms, check, draw
from .weights import fingerprint

_PAGE = 64
"""Tokens a block; a prefix is shared in whole blocks."""


@dataclass(eq=False)
class _Request:
    sampling: Sampling
    uniforms: Uniforms
    future: asyncio.Future[Any]
    logprobs: list[float] = field(default_factory=list)

    def settle(self, output: Any) -> None:
        """Gives the waiting call its output, or its error. Runs in the event loop."""
        if self.future.done():
            return
        if isinstance(output, Exception):
            self.future.set_exception(output)
        else:
            self.future.set_result(output)


class ContinuousEngine:
    """Engine over a Hugging Face causal LM that transformers can batch continuously, on its own device.

    `cache_tokens` sizes the paged cache; by default transformers takes most of a GPU's free memory, and a
    CPU gets room for 16 full contexts or 32,768 tokens. The cache exists from the first request to
    `clear_cache` or `close`, so that a trainer has the memory in between. `tokenizer` is not needed; the
    parameter is there so that all engines can be made alike.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        context: int | None = None,
        cache_tokens: int | None = None,
    ):
        del tokenizer
        self.model = model
        self._base = model.get_base_model() if hasattr(model, "get_base_model") else model
        if not hasattr(self._base, "init_continuous_batching"):
            raise MuaError(
                f"{type(self._base).__name__} cannot be batched continuously by this version of "
                "transformers: use the slot engine (kind='slots')."
            )
        config = self._base.config.get_text_config()
        most = getattr(config, "max_position_embeddings", None) or context
        if most is None:
            raise MuaError("The model's config names no context length: set `context` for the engine.")
        self.context = most if context is None else context
        if not 2 <= self.context <= most:
            raise MuaError(
                f"A context of {context} tokens does not fit the model, which was made for {most}: "
                f"set it between 2 and {most}, or leave it out."
            )
        self._vocab = config.vocab_size
        if cache_tokens is None and self._base.device.type == "cpu":
            cache_tokens = max(self.context, min(16 * self.context, 32768))
        self._cache_tokens = cache_tokens
        self._names = itertools.count()
        self._requests: dict[str, _Request] = {}
        self._manager: Any = None
        self._weights: Any = None
        self._idle = asyncio.Event()
        self._stale = False
        self._closed = False
        self._was_training = False

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, session: str) -> Completion:
        """See `Engine.generate`. `session` is not needed: prefixes are found by content."""
        del session
        if self._closed:
            raise InfrastructureError("The engine was closed; make a new one.")
        check(sampling)
        prompt = [int(token) for token in prompt_ids]
        if not 0 < len(prompt) < self.context:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens leaves no room in a context of {self.context}"
                if prompt
                else "an empty prompt has nothing to continue"
            )
        if min(prompt) < 0 or max(prompt) >= self._vocab:
            raise ValueError(f"the prompt holds ids outside the vocabulary of {self._vocab}")
        while self._stale and self._requests:  # the cache goes as soon as the requests using it are through
            await self._idle.wait()
        manager = self._ready()
        limit = min(sampling.max_tokens, self.context - len(prompt))
        name = f"mua_{next(self._names)}"
        if not self._requests:
            self._idle = asyncio.Event()
        request = _Request(
            sampling, Uniforms(sampling.seed, limit), asyncio.get_running_loop().create_future()
        )
        self._requests[name] = request
        manager.register_result_handler(name, request.settle)
        try:
            accepted = manager.add_request(
                prompt, request_id=name, max_new_tokens=limit, eos_token_id=list(sampling.stop_ids)
            )
            if accepted is None:
                raise InfrastructureError("The generation thread has stopped; the next request restarts it.")
            output = await request.future
        except BaseException:
            manager.cancel_request(name)
            raise
        finally:
            self._forget(manager, name)
        if output.error is not None:
            raise InfrastructureError(f"The model failed while generating ({output.error}).")
        token_ids = [int(token) for token in output.generated_tokens]
        if len(token_ids) != len(request.logprobs):
            raise InfrastructureError(
                f"transformers returned {len(token_ids)} tokens where {len(request.logprobs)} were sampled; "
                "this version does not fit the engine: use transformers 5.23 or kind='slots'."
            )
        stopped = token_ids[-1] in sampling.stop_ids
        return Completion(token_ids, request.logprobs, "stop" if stopped else "length")

    def release(self, session: str) -> None:
        """Nothing to do: unused blocks are reclaimed when room is needed."""

    def clear_cache(self) -> None:
        """Drops all cached keys and values, and their memory. Call after every change of the weights.

        With requests on their way, it happens once they are through; new ones wait for that.
        """
        self._stale = True
        if not self._requests:
            self._stop()

    async def close(self) -> None:
        """Ends the engine and frees its memory; requests on their way get an InfrastructureError."""
        self._closed = True
        self._stop(hard=True)
        while self._requests:  # each gets its failure from the thread on its way out
            await self._idle.wait()

    def _spoil(self) -> None:
        """The cache may hold NaN, which would spread even from masked positions: drop it when idle."""
        self._stale = True

    def _forget(self, manager: Any, name: str) -> None:
        with manager.output_router._lock:
            manager.output_router.result_handlers.pop(name, None)
        self._requests.pop(name, None)
        if not self._requests:
            self._idle.set()
            if self._was_training:
                self.model.train()

    def _ready(self) -> Any:
        """The running manager, made anew when there is none, it died, or the weights are others."""
        if not self._requests:
            self._was_training = self.model.training
            if self._stale or self._weights != fingerprint(self.model):
                self._stop()
        if self.model.training:
            self.model.eval()
        if self._manager is None or not self._manager.is_running():
            self._stop()
            self._manager = self._start()
            self._weights = fingerprint(self.model)
            self._stale = False
        return self._manager

    def _start(self) -> Any:
        blocks = None if self._cache_tokens is None else -(-self._cache_tokens // _PAGE)
        try:
            manager = self._base.init_continuous_batching(
                generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=1),
                continuous_batching_config=ContinuousBatchingConfig(
                    page_size=_PAGE,
                    num_blocks=blocks,
                    use_async_batching=False,
                    use_cuda_graph=False,
                    max_blocks_per_request=0,
                    auto_switch_to_flash=False,  # it would fetch kernels from a hub
                ),
            )
            processors = manager.logit_processor
            processors.logits_processor.append(_Sampler(self._requests, self._spoil))
            processors.tensors_required += 1
            processors.do_processing = True
            manager.background_thread_status.clear()
            # Not manager.start(): its thread is no daemon, so a program that forgot to close would hang.
            manager._generation_thread = threading.Thread(
                target=manager._run_generation_loop, name="mua-continuous", daemon=True
            )
            manager._generation_thread.start()
        except (AttributeError, TypeError, ValueError) as exc:
            raise MuaError(
                f"Continuous batching cannot serve this model ({type(exc).__name__}: {exc}): load it with "
                "attention='sdpa', use transformers 5.23, or use kind='slots'."
            ) from exc
        return manager

    def _stop(self, hard: bool = False) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.stop(block=True, timeout=60, hard_stop=hard)
            manager.destroy()


class _Sampler(ContinuousBatchingLogitsProcessor):
    """Draws each request's token and leaves only that one possible, so that the argmax behind it takes it."""

    supported_kwargs: dict[str, type] = {}  # noqa: RUF012 - declared so by the base class
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self, requests: dict[str, _Request], spoil: Callable[[], None]):
        self._requests = requests
        self._spoil = spoil
        self._batch: list[_Request | None] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list) -> torch.Tensor:
        """Called in the generation thread before each forward, in the order of the rows of its logits."""
        self._batch = [self._requests.get(each.state.request_id) for each in requests_with_new_token]
        return torch.zeros(len(self._batch), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """scores [N, vocabulary] → 0 at the drawn id and -inf elsewhere."""
        batch = self._batch
        if not batch:
            return scores
        # A request may have been cancelled a moment ago; its token is dropped, whatever it is.
        settings = [Sampling(temperature=0) if each is None else each.sampling for each in batch]
        ids, logprobs, sound = draw(
            scores[: len(batch)],
            np.array([sampling.temperature for sampling in settings], np.float32),
            np.array([sampling.top_p for sampling in settings], np.float32),
            np.array([0.0 if each is None else each.uniforms.next() for each in batch], np.float32),
        )
        for request, logprob, good in zip(batch, logprobs, sound, strict=True):
            if request is None:
                continue
            request.logprobs.append(logprob)
            if not good:
                self._spoil()
                error = InfrastructureError(NOT_FINITE)
                request.future.get_loop().call_soon_threadsafe(request.settle, error)
        forced = torch.full_like(scores, -torch.inf)
        forced[: len(batch)].scatter_(1, torch.tensor(ids, device=scores.device)[:, None], 0.0)
        return forced
