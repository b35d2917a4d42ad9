"""The generation engine for small models: every session keeps a row of one big KV cache.

A forward costs a small model little more than its Python, so what counts is that all active requests
share each forward and that nothing is computed or copied twice: a session's next prompt reuses what its
row holds, a new session copies the prefix it shares with any other row (the system prompt), and attention
reads views of the cache, never copies, and a prefix that rows share only once (`attention`).

Invariants:
- A position is reused only while its ids are those of the new prompt and the weights are those it was
  computed with. In-place updates through PyTorch (optimizers, `copy_`, `load_state_dict`) are noticed by
  the parameters' version counters; whoever writes past them (`.data`, another process) must call
  `clear_cache()`, and the trainer calls it after every update anyway.
- Everything runs inside the caller's event loop: same calls in the same order, same forwards, same tokens.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from ..errors import InfrastructureError, MuaError
from . import Completion, Sampling
from .attention import attending
from .kv import DecodePlan, PrefillPlan, SharedPrefix, SlotCache
from .sampling import NOT_FINITE, Uniforms, check, draw
from .weights import fingerprint

_SHARE = 32
"""Tokens of prefix below which copying from another row, or waiting to copy, does not pay."""
_SHARED_READS = 4096
"""Row-positions that a decoding step must save for attention to read a shared prefix apart: what its extra
operations cost."""
_MOST_CLUSTERS = 4
_PATIENCE = 16
"""Row-steps that a finished row or a waiting request may idle before compaction or prefill (each costs
about as much as that; so at most twice the best schedule's time is lost)."""


@dataclass
class Stats:
    """What the engine did since it was made. Tokens are counts."""

    prefilled: int = 0
    """Prompt tokens computed."""
    reused: int = 0
    """Prompt tokens found in the cache: the session's own, or copied from another row."""
    decoded: int = 0
    """Tokens sampled."""
    forwards: int = 0
    evicted: int = 0
    """Sessions that lost their row to another one."""


@dataclass(eq=False)
class _Request:
    prompt_P: np.ndarray
    sampling: Sampling
    session: str
    future: asyncio.Future[Completion]
    limit: int
    """Most tokens to sample: the request's, or what the context leaves."""
    uniforms: Uniforms
    row: int = -1
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class SlotEngine:
    """Engine over a Hugging Face causal LM with full attention, on its own device.

    `slots` rows of cache: as many sessions are remembered, and as many requests run at once; more wait in
    line, and the least recently used idle session is evicted. Memory grows with the longest row, up to
    slots x context. `context` is at most the model's. `prefill_tokens` bounds the tokens, padding included,
    of one prefill forward (one longer prompt still goes alone). `pad_id` fills unused places; its logits
    are never looked at. Raises MuaError for models whose attention it cannot batch.
    """

    def __init__(
        self,
        model: Any,
        *,
        slots: int = 128,
        context: int | None = None,
        prefill_tokens: int = 4096,
        pad_id: int | None = None,
    ):
        config = model.config.get_text_config()
        most = getattr(config, "max_position_embeddings", None) or context
        if most is None:
            raise MuaError("The model's config names no context length: set `context` for the engine.")
        self.context = most if context is None else context
        if not 2 <= self.context <= most:
            raise MuaError(
                f"A context of {context} tokens does not fit the model, which was made for {most}: "
                f"set it between 2 and {most}, or leave it out."
            )
        if slots < 1 or prefill_tokens < 1:
            raise MuaError("The engine needs at least one slot and one prefill token.")
        _check_attention(config, self.context)
        self.model = model
        self.slots = slots
        self.stats = Stats()
        self._prefill_tokens = prefill_tokens
        self._vocab = config.vocab_size
        self._pad_id = pad_id if pad_id is not None else (getattr(config, "pad_token_id", None) or 0)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._last_only = (
            {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}
        )
        self._weights = fingerprint(model)

        # Per row: what it holds and who uses it.
        self._cache = SlotCache()
        self._ids = np.zeros((slots, self.context), np.int32)
        """The tokens whose keys and values the row holds, in its first `_length` places."""
        self._length = np.zeros(slots, np.int64)
        self._tick = np.zeros(slots, np.int64)
        """When the row was last used, for eviction."""
        self._stale = np.zeros(slots, bool)
        """The cache was cleared while the row was decoding: forget it afterwards."""
        self._owner: list[str | None] = [None] * slots
        self._rows: dict[str, int] = {}
        # Per row: the request it works for, and its next input.
        self._request: list[_Request | None] = [None] * slots
        self._busy = np.zeros(slots, bool)
        self._decoding = np.zeros(slots, bool)
        self._token = np.zeros(slots, np.int64)
        self._temperature = np.ones(slots, np.float32)
        self._top_p = np.ones(slots, np.float32)

        self._waiting: deque[_Request] = deque()
        """Submitted, without a row."""
        self._pending: list[_Request] = []
        """With a row, prompt not computed yet."""
        self._clock = 0
        self._wait_debt = 0
        self._hole_debt = 0
        self._shared: SharedPrefix | None = None
        self._shared_for: tuple[object, ...] = ()
        """What `_shared` was found for: the decoding requests, by row."""
        self._submitted = 0
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    # The protocol

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, session: str) -> Completion:
        """See `Engine.generate`. Two calls of one session run one after the other."""
        if self._closed:
            raise InfrastructureError("The engine was closed; make a new one.")
        check(sampling)
        prompt_P = np.asarray(prompt_ids, np.int32)
        if not 0 < len(prompt_P) < self.context:
            raise ValueError(
                f"a prompt of {len(prompt_P)} tokens leaves no room in a context of {self.context}"
                if len(prompt_P)
                else "an empty prompt has nothing to continue"
            )
        if prompt_P.min() < 0 or prompt_P.max() >= self._vocab:
            raise ValueError(f"the prompt holds ids outside the vocabulary of {self._vocab}")
        limit = min(sampling.max_tokens, self.context - len(prompt_P))
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._forget_requests()  # what an earlier, interrupted loop may have left behind
            self._task = loop.create_task(self._run())
        request = _Request(
            prompt_P, sampling, session, loop.create_future(), limit, Uniforms(sampling.seed, limit)
        )
        self._waiting.append(request)
        self._submitted += 1
        try:
            return await request.future
        finally:
            if request.row >= 0 or request in self._waiting:  # cancelled on the way
                self._drop(request)

    def release(self, session: str) -> None:
        """Gives the session's row back. Until overwritten, its tokens may serve as a prefix for others."""
        row = self._rows.pop(session, None)
        if row is not None:
            self._owner[row] = None

    def clear_cache(self) -> None:
        """Drops all cached keys and values. Call after every change of the weights.

        Requests that are decoding at this moment go on with what they have, and it is dropped afterwards.
        """
        self._stale |= self._decoding
        self._length[~self._decoding] = 0
        self._weights = fingerprint(self.model)

    async def close(self) -> None:
        """Ends the engine and frees its memory; requests on their way get an InfrastructureError."""
        self._closed = True
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._fail(self._all_requests(), "The engine was closed.")
        self._cache = SlotCache()
        self._length[:] = 0

    # The scheduler

    async def _run(self) -> None:
        """Forward after forward until nothing is left; a later `generate` starts it again."""
        was_training = self.model.training
        try:
            await self._settle(3)
            while self._waiting or self._pending or self._decoding.any():
                self._admit()
                ended = self._prefill() if self._pending else self._decode()
                await self._settle(3 if ended else 1)
        except Exception as exc:
            self._fail(
                self._all_requests(), f"The generation engine failed: {type(exc).__name__}: {exc}", exc
            )
        finally:
            if was_training:
                self.model.train()

    async def _settle(self, rounds: int) -> None:
        """Lets the rest of the program run: at least `rounds` turns of the event loop, and on while new
        requests keep coming, so that episodes which just got an answer join the next forward.

        An answer needs one round to reach its `generate` call and one for each task or gather around it.
        """
        for count in range(1, 17):
            before = self._submitted
            await asyncio.sleep(0)
            if count >= rounds and self._submitted == before:
                return

    def _admit(self) -> None:
        """Gives rows to waiting requests, in order, once enough of them wait to be worth a forward."""
        if not self._waiting or self._busy.all():
            return
        decoding = int(self._decoding.sum())
        if decoding and not self._pending:
            self._wait_debt += len(self._waiting)
            if len(self._waiting) < decoding // 8 and self._wait_debt < _PATIENCE:
                return
        self._wait_debt = 0
        blocked: deque[_Request] = deque()
        wanted = {request.session for request in self._waiting}
        while self._waiting:
            request = self._waiting.popleft()
            row = self._place(request, wanted)
            if row is None:
                blocked.append(request)
                continue
            self._occupy(row, request)
        self._waiting = blocked

    def _place(self, request: _Request, wanted: set[str]) -> int | None:
        """The row for a request: its session's, a free one, or that of the session idle for longest."""
        own = self._rows.get(request.session)
        if own is not None:
            return None if self._busy[own] else own
        idle = np.flatnonzero(~self._busy)
        if not len(idle):
            return None
        free = [row for row in idle if self._owner[row] is None]
        if free:
            # A row that holds part of the prompt already saves the copy; of equals, the lowest.
            return int(free[int(self._common(request.prompt_P, np.asarray(free)).argmax())])
        unwanted = [row for row in idle if self._owner[row] not in wanted]
        row = int(min(unwanted or idle, key=lambda r: self._tick[r]))
        self._rows.pop(self._owner[row] or "", None)
        self.stats.evicted += 1
        return row

    def _occupy(self, row: int, request: _Request) -> None:
        self._owner[row] = request.session
        self._rows[request.session] = row
        self._request[row] = request
        self._busy[row] = True
        self._temperature[row] = request.sampling.temperature
        self._top_p[row] = request.sampling.top_p
        request.row = row
        self._pending.append(request)

    # The forwards

    def _prefill(self) -> bool:
        """Computes the prompts of some pending requests and samples their first tokens.

        True when a request ended (whoever waits for it may have something new to submit).
        """
        if fingerprint(self.model) != self._weights:
            self.clear_cache()
        batch = self._next_batch()
        copies = [(request.row, donor, start) for request, start, donor in batch if donor != request.row]
        rows_N = np.array([request.row for request, _, _ in batch])
        starts_N = np.array([start for _, start, _ in batch])
        news_N = np.array([len(request.prompt_P) for request, _, _ in batch]) - starts_N
        count, queries, longest = len(batch), int(news_N.max()), int((starts_N + news_N).max())
        requests = [request for request, _, _ in batch]
        try:
            self._cache.reserve(int(rows_N.max()) + 1, longest, self.slots, self.context)
            if copies:
                targets, donors, lengths = (np.array(column) for column in zip(*copies, strict=True))
                self._cache.copy(targets, donors, int(lengths.max()))
            # The last query of every row is its last token, so that one column of logits is enough.
            offset_NQ = np.arange(queries)[None] - (queries - news_N)[:, None]
            position_NQ = starts_N[:, None] + offset_NQ
            batch_T, query_T = np.nonzero(offset_NQ >= 0)
            token_NQ = np.full((count, queries), self._pad_id)
            token_NQ[batch_T, query_T] = np.concatenate(
                [request.prompt_P[start:] for request, start, _ in batch]
            )
            position_NQ = np.where(offset_NQ >= 0, position_NQ, 0)  # padding sees position 0: finite, unread
            plan = PrefillPlan(
                rows_N=self._tensor(rows_N),
                contiguous=bool((np.diff(rows_N) == 1).all()),
                batch_T=self._tensor(batch_T),
                query_T=self._tensor(query_T),
                write_rows_T=self._tensor(rows_N[batch_T]),
                write_positions_T=self._tensor(position_NQ[batch_T, query_T]),
                length=longest,
            )
            # Until the forward is through, only what was there before it counts.
            self._length[rows_N] = 0
            logits_NV = self._forward(token_NQ, position_NQ, plan)
            ids, logprobs, sound = self._draw(logits_NV, requests)
        except Exception as exc:
            self._scrub(rows_N)
            self._abort(requests, exc)
            return True
        self.stats.prefilled += int(news_N.sum())
        self.stats.reused += int(starts_N.sum())
        for request in requests:
            row, length = request.row, len(request.prompt_P)
            self._ids[row, :length] = request.prompt_P
            self._length[row] = length
            self._decoding[row] = True
        self._pending = [request for request in self._pending if not self._decoding[request.row]]
        if not all(sound):
            self._reject(requests, sound, rows_N)
        return self._advance(requests, ids, logprobs, sound)

    def _next_batch(self) -> list[tuple[_Request, int, int]]:
        """(request, tokens reused, row they are taken from) of the next prefill, by row.

        Requests that share a long prefix with an earlier one of the batch are left for the next, when they
        can copy it. Prompts of similar length go together, because all are padded to the longest.
        """
        plans: list[tuple[_Request, int, int]] = []
        leaders: list[_Request] = []
        every = np.arange(self.slots)
        for request in self._pending:
            prompt_P, row = request.prompt_P, request.row
            start, donor = int(self._common(prompt_P, np.array([row]))[0]), row
            if len(prompt_P) - 1 - start >= _SHARE:
                common_S = self._common(prompt_P, every)
                best = int(common_S.argmax())
                if common_S[best] >= start + _SHARE:
                    start, donor = int(common_S[best]), best
                if any(_shared(prompt_P, other.prompt_P) >= start + _SHARE for other in leaders):
                    continue
                leaders.append(request)
            plans.append((request, start, donor))
        plans.sort(key=lambda plan: len(plan[0].prompt_P) - plan[1])
        size = 0
        for count, (request, start, _) in enumerate(plans, 1):
            if count > 1 and count * (len(request.prompt_P) - start) > self._prefill_tokens:
                break
            size = count
        return sorted(plans[:size], key=lambda plan: plan[0].row)

    def _decode(self) -> bool:
        """One token for every decoding row. True when a request ended."""
        self._compact()
        active_N = np.flatnonzero(self._decoding)
        first, last = int(active_N[0]), int(active_N[-1]) + 1
        here = slice(first, last)
        # Rows in between that are not decoding go through the forward too: they see their position 0, write
        # behind their last token, where nobody looks, and their logits are not read.
        on_R = self._decoding[here]
        length_R = self._length[here]
        requests = [self._request[row] for row in active_N]
        assert all(request is not None for request in requests)
        live: list[_Request] = requests  # type: ignore[assignment]
        longest = int(self._length[active_N].max()) + 1
        try:
            self._cache.reserve(last, int(length_R.max()) + 1, self.slots, self.context)
            plan = DecodePlan(
                first=first,
                last=last,
                rows_N=torch.arange(first, last, device=self._device),
                positions_N=self._tensor(length_R),
                length=longest,
                shared=self._shared_prefix(active_N, first, last),
            )
            tokens_R1 = np.where(on_R, self._token[here], self._pad_id)[:, None]
            logits_RV = self._forward(tokens_R1, np.where(on_R, length_R, 0)[:, None], plan)
            if len(live) < last - first:
                logits_RV = logits_RV[self._tensor(active_N - first)]
            ids, logprobs, sound = self._draw(logits_RV, live)
        except Exception as exc:
            self._scrub(np.arange(first, last))
            self._abort(live, exc)
            return True
        self._ids[active_N, self._length[active_N]] = self._token[active_N]
        self._length[active_N] += 1
        if not all(sound):
            self._reject(live, sound, np.arange(first, last))
        return self._advance(live, ids, logprobs, sound)

    def _forward(self, tokens_NQ: np.ndarray, positions_NQ: np.ndarray, plan: Any) -> torch.Tensor:
        """Logits [N, vocabulary] of the last query of each row."""
        if self.model.training:
            self.model.eval()
        with (
            torch.no_grad()
        ):  # not inference_mode: the model may keep what it computes here (long RoPE tables)
            positions = self._tensor(positions_NQ)
            visible = torch.arange(plan.length, device=self._device) <= positions[:, :, None]
            mask = torch.zeros(visible.shape, dtype=self._dtype, device=self._device)
            mask.masked_fill_(~visible, torch.finfo(self._dtype).min)
            self._cache.plan = plan
            self.stats.forwards += 1
            with attending(self.model, plan):
                logits = self.model(
                    input_ids=self._tensor(tokens_NQ),
                    attention_mask=mask[:, None],
                    position_ids=positions,
                    past_key_values=self._cache,
                    use_cache=True,
                    **(self._last_only if tokens_NQ.shape[1] > 1 else {}),
                ).logits
            return logits[:, -1]

    def _draw(self, logits_NV: torch.Tensor, requests: list[_Request]):
        rows_N = np.array([request.row for request in requests])
        uniform_N = np.array([request.uniforms.next() for request in requests], np.float32)
        with torch.no_grad():
            return draw(logits_NV, self._temperature[rows_N], self._top_p[rows_N], uniform_N)

    def _advance(
        self, requests: list[_Request], ids: list[int], logprobs: list[float], sound: list[bool]
    ) -> bool:
        """Records one sampled token a request; ends those that are done."""
        ended = not all(sound)
        for request, token, logprob, good in zip(requests, ids, logprobs, sound, strict=True):
            if not good:
                continue
            self.stats.decoded += 1
            request.token_ids.append(token)
            request.logprobs.append(logprob)
            if token in request.sampling.stop_ids:
                self._complete(request, "stop")
            elif len(request.token_ids) == request.limit:
                self._complete(request, "length")
            else:
                self._token[request.row] = token
                continue
            ended = True
        return ended

    # Rows

    def _common(self, prompt_P: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """For each row, how many leading tokens of the prompt it holds; one is always left to compute."""
        most = len(prompt_P) - 1
        same = self._ids[rows, :most] == prompt_P[:most]
        first_difference = np.where(same.all(1), most, same.argmin(1)) if most else np.zeros(len(rows), int)
        return np.where(self._stale[rows], 0, np.minimum(first_difference, self._length[rows]))

    def _shared_prefix(self, active_N: np.ndarray, first: int, last: int) -> SharedPrefix | None:
        """The prefix that the decoding rows share (with several system prompts: each with some others), if it
        is worth reading apart. Rows that do not decode go with the first cluster; nobody reads theirs."""
        if self._stale[active_N].any():  # rows with old weights have the same tokens, but other keys
            return None
        found_for = tuple((row, self._request[row]) for row in active_N.tolist())
        if found_for != self._shared_for:
            self._shared_for = found_for
            self._shared = self._find_shared(active_N, first, last)
        return self._shared

    def _find_shared(self, active_N: np.ndarray, first: int, last: int) -> SharedPrefix | None:
        left, length, clusters = active_N, self.context, []
        while len(left):
            if len(clusters) == _MOST_CLUSTERS:
                return None
            leader = left[0]
            most = int(self._length[leader])
            same = self._ids[left, :most] == self._ids[leader, :most]
            common = np.where(same.all(1), most, same.argmin(1)) if most else np.zeros(len(left), int)
            common = np.minimum(common, self._length[left])
            # The cut that saves most: rows that have it, times its length.
            order = np.sort(common)[::-1]
            cut = int(order[int((order * np.arange(len(order))).argmax())])
            length = min(length, cut)
            clusters.append((int(leader) - first, left[common >= cut]))
            left = left[common < cut]
        if (len(active_N) - len(clusters)) * length < _SHARED_READS:
            return None
        if len(clusters) == 1:
            return SharedPrefix(length, [(clusters[0][0], None)])
        others = np.setdiff1d(np.arange(first, last), active_N)
        clusters[0] = (clusters[0][0], np.concatenate((clusters[0][1], others)))
        return SharedPrefix(length, [(at, self._tensor(rows - first)) for at, rows in clusters])

    def _compact(self) -> None:
        """Moves decoding rows together once the idle rows between them have cost more than the move.

        Often it never comes to that: a session whose step ended returns to its row a few forwards later.
        """
        active = np.flatnonzero(self._decoding)
        count, holes = len(active), int(active[-1] - active[0]) + 1 - len(active)
        if not holes:
            self._hole_debt = 0
            return
        self._hole_debt += holes
        if self._hole_debt < _PATIENCE:
            return
        # The window of `count` rows that holds most of them already.
        sums = np.concatenate(([0], np.cumsum(self._decoding)))
        inside = sums[count:] - sums[: len(sums) - count]
        first = int(inside.argmax())
        moves = count - int(inside[first])
        if self._hole_debt < _PATIENCE * moves:
            return
        self._hole_debt = 0
        window = np.arange(first, first + count)
        into = window[~self._decoding[window]]
        out = active[(active < first) | (active >= first + count)]
        self._swap(into, out)

    def _swap(self, left: np.ndarray, right: np.ndarray) -> None:
        """Exchanges rows, with all that is known of them."""
        to, source = np.concatenate((left, right)), np.concatenate((right, left))
        self._cache.reserve(int(to.max()) + 1, 1, self.slots, self.context)
        longest = int(self._length[to].max())
        self._cache.copy(to, source, longest)
        self._ids[to, :longest] = self._ids[source, :longest]
        for column in (
            self._length,
            self._tick,
            self._stale,
            self._busy,
            self._decoding,
            self._token,
            self._temperature,
            self._top_p,
        ):
            column[to] = column[source]
        owners = [self._owner[row] for row in source]
        requests = [self._request[row] for row in source]
        for row, owner, request in zip(to.tolist(), owners, requests, strict=True):
            self._owner[row], self._request[row] = owner, request
            if owner is not None:
                self._rows[owner] = row
            if request is not None:
                request.row = row

    def _vacate(self, request: _Request) -> None:
        """The request no longer uses its row; what the row holds stays for the session's next call."""
        row, request.row = request.row, -1
        self._clock += 1
        self._tick[row] = self._clock
        self._request[row] = None
        self._busy[row] = self._decoding[row] = False
        if self._stale[row]:
            self._length[row] = 0
            self._stale[row] = False

    def _scrub(self, rows: np.ndarray) -> None:
        """Wipes rows whose storage may hold NaN, which would spread even from masked positions."""
        self._length[rows] = 0
        self._cache.zero(rows)

    # How requests end

    def _complete(self, request: _Request, reason: Literal["stop", "length"]) -> None:
        self._vacate(request)
        if not request.future.done():
            request.future.set_result(Completion(request.token_ids, request.logprobs, reason))

    def _fail(self, requests: list[_Request], text: str, cause: Exception | None = None) -> None:
        for request in requests:
            self._drop(request)
            if not request.future.done() and not request.future.get_loop().is_closed():
                error = InfrastructureError(text)
                error.__cause__ = cause
                request.future.set_exception(error)

    def _abort(self, requests: list[_Request], exc: Exception) -> None:
        """A forward raised (out of memory, say): its requests fail, the engine stays."""
        count = len(requests)
        text = f"The model failed while generating for {count} requests ({type(exc).__name__}: {exc})."
        self._fail(requests, text, exc)

    def _reject(self, requests: list[_Request], sound: list[bool], touched: np.ndarray) -> None:
        """Fails the requests without a distribution; wipes what the forward touched, but for sound rows."""
        bad = [request for request, good in zip(requests, sound, strict=True) if not good]
        kept = [request.row for request, good in zip(requests, sound, strict=True) if good]
        self._scrub(np.setdiff1d(touched, kept))
        self._fail(bad, NOT_FINITE)

    def _drop(self, request: _Request) -> None:
        """Takes the request out wherever it is."""
        if request in self._waiting:
            self._waiting.remove(request)
        if request in self._pending:
            self._pending.remove(request)
        if request.row >= 0:
            self._vacate(request)

    def _all_requests(self) -> list[_Request]:
        return [*self._waiting, *(request for request in self._request if request is not None)]

    def _forget_requests(self) -> None:
        for request in self._all_requests():
            self._drop(request)

    # Small things

    @property
    def _device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def _dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.int64)).to(self._device)


def _shared(left: np.ndarray, right: np.ndarray) -> int:
    """Length of the common prefix."""
    most = min(len(left), len(right))
    same = left[:most] == right[:most]
    return most if same.all() else int(same.argmin())


def _check_attention(config: Any, context: int) -> None:
    """Raises MuaError for a model that a masked, position-indexed cache cannot serve."""
    implementation = getattr(config, "_attn_implementation", "sdpa")
    if implementation not in ("sdpa", "eager"):
        raise MuaError(
            f"The slot engine masks rows by hand, which {implementation} attention does not support: load "
            "the model with attention='sdpa', or use the continuous engine."
        )
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    windowed = bool(window) and window < context and (not kinds or "sliding_attention" in kinds)
    if windowed or kinds - {"full_attention", "sliding_attention"}:
        raise MuaError(
            "The slot engine needs full attention in every layer; this model has "
            f"{', '.join(sorted(kinds)) or 'sliding_attention'} (window {window}, context {context}). Set a "
            "context within the window, or use the continuous engine."
        )
