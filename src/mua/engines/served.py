"""The generation engine on other machines: replicas of a vLLM or SGLang server, asked over HTTP.

A session stays with the replica that it began on, whose cache has its prefix; a new one goes where the least
is going on. What fails on one replica is asked of another, with the same seed.

Invariants:
- Ids are passed on as they were sampled; an answer that lacks an id or a log-probability, went on after a
  stop id or ended where nobody asked it to is refused (`dialects`), never repaired.
- A replica is asked only while it has the newest weights: one that was away gets them first.
- Each replica has at most `in_flight` requests; the others wait in line, first come, first served.
"""

from __future__ import annotations

import asyncio
import collections
import json
import logging
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..errors import InfrastructureError, MuaError
from ..transport import LONGEST_WAIT, Fault, Reply, Server, checked_env, checked_url, status_fault
from . import Completion, Sampling
from .dialects import DIALECTS, Busy, Call, Refused

log = logging.getLogger(__name__)

_PATIENCE = 3
"""Failures in a row after which a replica rests; when it cannot be reached, it rests at once."""
_PROBE = (0, 1, 2)
_GAP = 1.0
"""Nats between a server's log-probability and the trained model's: far beyond what number formats do."""


class ServerSettings(BaseModel):
    """Servers that generate for us: each has the whole model (docs/scale-out.md says how to start them)."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    urls: tuple[str, ...] = Field(description="One a replica, such as http://node1:8000, without /v1.")
    model: str = Field(default="", description="Name that vLLM serves it by; empty: the first that it lists.")
    api_key_env: str = Field(
        default="", description="NAME of the environment variable that holds their key; empty sends none."
    )
    folder: str = Field(
        default="",
        description="Folder, at the same path here and there, through which weights are handed over; empty: "
        "`served` in the run folder.",
    )
    in_flight: int = Field(default=64, ge=1, description="Most requests at one replica; more wait in line.")
    timeout: float = Field(default=600.0, gt=0, description="Seconds for one request.")
    update_timeout: float = Field(default=1800.0, gt=0, description="Seconds for loading weights.")
    retries: int = Field(default=4, ge=0, description="Further attempts after a failure.")
    retry_delay: float = Field(
        default=1.0, ge=0, description="Seconds before all replicas are tried again; doubles up to 16 times."
    )
    rest: float = Field(
        default=15.0, ge=0, description="Seconds for which a replica that failed is left alone."
    )

    @field_validator("urls")
    @classmethod
    def _plain(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        plain = tuple(checked_url(url, "http://host:port") for url in urls)
        if not urls or any(url.endswith("/v1") for url in plain) or len(set(plain)) < len(plain):
            raise ValueError("must be one or more addresses without /v1 at their end, each once")
        return plain

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        return checked_env(name)


@dataclass
class Stats:
    """What the engine did since it was made."""

    requests: collections.Counter[str] = field(default_factory=collections.Counter)
    """Answered, by address."""
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    """By `transport.Fault.kind`."""
    moved: int = 0
    """Sessions that went on at another replica."""
    updates: int = 0
    tokens: int = 0
    """Sampled."""


class _Replica:
    def __init__(self, url: str, number: int, settings: ServerSettings):
        self.server = Server(url, settings.api_key_env, settings.timeout, "generation server")
        self.number = number
        self.running = 0
        self.line: collections.deque[asyncio.Future[bool]] = collections.deque()
        """Who waits for a place; told False when the replica is no longer to be asked."""
        self.sessions = 0
        self.failures = 0
        self.until = 0.0
        """It rests until then (monotonic seconds)."""
        self.version = ""
        """Of the weights that it was given."""
        self.mending: asyncio.Lock | None = None

    @property
    def load(self) -> tuple[int, int, int]:
        return self.running + len(self.line), self.sessions, self.number


class ServedEngine:
    """An `Engine` of several servers. Make it with `open_engine`, which has asked them what they serve."""

    def __init__(self, kind: str, settings: ServerSettings, *, folder: Path | None = None):
        """`folder` is where weights are handed over when the settings name none."""
        self.settings = settings
        self.context = 0
        self.stats = Stats()
        self._dialect = DIALECTS[kind]
        self._folder = Path(settings.folder).expanduser() if settings.folder else folder
        self._model = settings.model
        self._replicas = [_Replica(url, n, settings) for n, url in enumerate(settings.urls)]
        self._of: dict[str, _Replica] = {}
        """Session → its replica."""
        self._weights: tuple[str, str] = ("", "")
        """(folder, version) that every replica must have; none: what they were started with."""
        self._run = uuid.uuid4().hex[:8]
        self._ready: asyncio.Event | None = None
        """Not set while weights are loaded."""
        self._left = asyncio.Event()
        """Set when a replica has one request less."""
        self._closed = False

    async def open(self, temperature: float = 1.0) -> None:
        """Asks every replica for its model's name and context, and for one token.

        Raises MuaError naming the first that cannot be used, and what to mend.
        """
        contexts = []
        for replica in self._replicas:
            data = await self._need(replica, "/v1/models")
            entries = data.get("data") if isinstance(data, dict) else None
            listed = [m for m in entries if isinstance(m, dict)] if isinstance(entries, list) else []
            names = [str(m.get("id")) for m in listed]
            if not names or (self._model and self._model not in names and self._dialect.kind == "vllm"):
                raise self._unusable(replica, f"serves {', '.join(names) or 'no model'}", "set servers.model")
            self._model = self._model or names[0]
            served = listed[names.index(self._model)] if self._model in names else listed[0]
            if served.get("max_model_len") is None and served.get("parent") in names:  # an adapter
                served = listed[names.index(str(served["parent"]))]
            if not isinstance(served.get("max_model_len"), int):
                raise self._unusable(replica, "does not say its max_model_len", "use a newer version of it")
            contexts.append(served["max_model_len"])
        self.context = min(contexts)
        for replica in self._replicas:
            greedy, cold = (Sampling(t, max_tokens=1) for t in (0.0, 0.01))
            probes = []
            for sampling in (greedy, cold) if temperature not in (0.0, 1.0) else (greedy,):
                found = await self._ask(replica, _PROBE, sampling, 1)
                if isinstance(found, Fault):
                    raise self._unusable(replica, found.what, found.fix)
                probes.append(found)
            if len(probes) == 2:
                same = probes[0].token_ids == probes[1].token_ids
                if same and probes[0].logprobs[0] < -0.01 and abs(probes[1].logprobs[0]) > 0.01:
                    raise self._unusable(
                        replica, "gives log-probabilities before temperature", self._dialect.same_scale
                    )

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, session: str) -> Completion:
        """See `Engine.generate`. Raises ValueError for settings that mean nothing, too."""
        from .sampling import check

        check(sampling)
        if sampling.top_p < 1 and sampling.temperature and not self._dialect.before_top_p:
            raise ValueError(f"{self._dialect.kind} gives no log-probabilities before top_p: leave it at 1")
        prompt = [int(token) for token in prompt_ids]
        if not 0 < len(prompt) < self.context:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens leaves no room in a context of {self.context}"
                if prompt
                else "an empty prompt has nothing to continue"
            )
        most = min(sampling.max_tokens, self.context - len(prompt))
        fault: Fault | None = None
        failed: set[_Replica] = set()
        replica = self._replicas[0]
        for attempt in range(self.settings.retries + 1):
            await self._until_ready()
            await self._pause(failed, fault, attempt)
            replica = self._route(session, failed)
            async with self._place(replica) as admitted:
                if not admitted:  # it failed while we waited in line
                    found: Completion | Fault = fault or Fault("is down", "look at its log", "down")
                else:
                    found = await self._current(replica) or await self._ask(replica, prompt, sampling, most)
                    if isinstance(found, Fault):  # before the next in line has the place
                        self.stats.faults[found.kind] += 1
                        self._blame(replica, found)
            if isinstance(found, Completion):
                replica.failures = 0
                self.stats.requests[replica.server.base_url] += 1
                self.stats.tokens += len(found.token_ids)
                return found
            fault = found
            failed.add(replica)
            if found.overflow or (not found.retry and len(failed) == len(self._replicas)):
                break
        assert fault is not None
        raise InfrastructureError(self._sentence(replica, fault))

    def release(self, session: str) -> None:
        """Forgets where the session was; its tokens stay in that server's cache until room is needed."""
        replica = self._of.pop(session, None)
        if replica is not None:
            replica.sessions -= 1

    async def load(self, source: Any) -> None:
        """Gives all replicas these weights: a folder that they can read, or a model (adapters are added to
        the weights of a copy), which is written to the folder that they share with us.

        Requests wait meanwhile. Raises InfrastructureError when not one replica has them afterwards; one that
        could not be reached gets them before it is asked again.
        """
        self._ready = asyncio.Event()
        try:
            while any(r.running for r in self._replicas):
                self._left.clear()
                await self._left.wait()
            await self._notice_restarts()
            self.stats.updates += 1
            before, written = self._weights[0], not isinstance(source, str | Path)
            version = f"mua-{self._run}-{self.stats.updates}"
            if written:
                folder = await asyncio.to_thread(self._write, source, version)
            else:
                folder = _absolute(source)
            self._weights = (str(folder), version)
            results = await asyncio.gather(*(self._update(r) for r in self._replicas))
            faults = [f for f in results if f is not None]
            if len(faults) == len(self._replicas):
                raise InfrastructureError(self._sentence(self._replicas[0], faults[0]))
            if written:
                await self._compare(source)
            if self._folder and Path(before).parent == self._folder.absolute():
                await asyncio.to_thread(shutil.rmtree, before, ignore_errors=True)
        finally:
            self._ready.set()

    async def close(self) -> None:
        """Closes the connections and removes the weights that were written for the servers."""
        self._closed = True
        for replica in self._replicas:
            self._send_away(replica)
            await replica.server.close()
        folder = Path(self._weights[0])
        if self._folder and self._weights[0] and folder.parent == self._folder.absolute():
            shutil.rmtree(folder, ignore_errors=True)

    def figures(self) -> dict[str, Any]:
        """For records: what `stats` says."""
        s = self.stats
        counts = {"requests": dict(s.requests), "faults": dict(s.faults)}
        return {**counts, "moved": s.moved, "updates": s.updates, "tokens": s.tokens}

    # Which replica

    def _awake(self) -> list[_Replica]:
        now = time.monotonic()
        return [r for r in self._replicas if r.until <= now]

    def _route(self, session: str, failed: set[_Replica]) -> _Replica:
        """The session's replica, else the one with the least to do; of those that just failed, none unless
        nothing else is left."""
        awake = self._awake() or sorted(self._replicas, key=lambda r: r.until)[:1]
        able = [r for r in awake if r not in failed] or awake
        own = self._of.get(session)
        if own in able:
            return own
        if own is not None:
            own.sessions -= 1
            self.stats.moved += 1
        chosen = min(able, key=lambda r: r.load)
        chosen.sessions += 1
        self._of[session] = chosen
        return chosen

    async def _pause(self, failed: set[_Replica], fault: Fault | None, attempt: int) -> None:
        """Waits where no replica is left to go on with: all rest, or each has failed this request."""
        awake = self._awake()
        if not awake:
            soonest = min(r.until for r in self._replicas)
            await asyncio.sleep(max(0.0, soonest - time.monotonic()))
        elif failed.issuperset(awake):
            asked = fault.wait if fault else None
            wait = self.settings.retry_delay * min(2 ** max(0, attempt - 1), 16) if asked is None else asked
            await asyncio.sleep(min(wait, LONGEST_WAIT))
        else:
            return
        failed.clear()

    @asynccontextmanager
    async def _place(self, replica: _Replica) -> AsyncIterator[bool]:
        """A place at the replica, in the order of arrival; yields False when it is no longer to be asked."""
        admitted = True
        if replica.running >= self.settings.in_flight or replica.line:
            turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            replica.line.append(turn)
            try:
                admitted = await turn
            except asyncio.CancelledError:
                if turn in replica.line:
                    replica.line.remove(turn)
                elif turn.done() and not turn.cancelled() and turn.result():
                    self._leave(replica)
                raise
        elif self._closed:
            admitted = False
        else:
            replica.running += 1
        try:
            yield admitted
        finally:
            if admitted:
                self._leave(replica)

    def _leave(self, replica: _Replica) -> None:
        """Gives the place to the next in line."""
        while replica.line:
            turn = replica.line.popleft()
            if not turn.done():
                turn.set_result(True)
                return
        replica.running -= 1
        self._left.set()

    def _send_away(self, replica: _Replica) -> None:
        """Whoever waits for the replica looks for another."""
        while replica.line:
            turn = replica.line.popleft()
            if not turn.done():
                turn.set_result(False)

    def _blame(self, replica: _Replica, fault: Fault) -> None:
        """Lets a replica rest, when the failure says something about it."""
        now = time.monotonic()
        if fault.wait is not None:
            replica.until = max(replica.until, now + min(fault.wait, LONGEST_WAIT))
        if fault.kind == "busy" or fault.overflow:
            return
        replica.failures += 1
        if fault.kind == "down" or replica.failures >= _PATIENCE:
            replica.until = max(replica.until, now + self.settings.rest)
            replica.failures = 0
            if fault.kind == "down":
                replica.version = ""  # it may come back with the weights that it was started with
            self._send_away(replica)
            log.warning("%s It rests for %g s.", self._sentence(replica, fault), self.settings.rest)

    # Asking

    async def _until_ready(self) -> None:
        while self._ready is not None and not self._ready.is_set():
            await self._ready.wait()
        if self._closed:
            raise InfrastructureError("The engine was closed; make a new one.")

    async def _ask(
        self, replica: _Replica, prompt: Sequence[int], sampling: Sampling, most: int
    ) -> Completion | Fault:
        dialect = self._dialect
        body = json.dumps(dialect.body(list(prompt), sampling, most, self._model)).encode()
        data = await self._json(replica, dialect.generate_path, body)
        if isinstance(data, Fault):
            return data
        try:
            ids, logprobs, reason = dialect.read(data, prompt)
            stops = [i for i, token in enumerate(ids) if token in sampling.stop_ids]
            if len(ids) > most or (stops and stops[0] < len(ids) - 1):
                raise Refused(f"went on after {'a stop id' if stops else f'{most} tokens'}")
            if reason == "stop" and not stops:
                raise Refused(
                    f"stopped at id {ids[-1]}, which is none of the stop ids {list(sampling.stop_ids)}: its "
                    "model's configuration stops elsewhere"
                )
        except Refused as exc:
            fix = f"check that it is a {dialect.kind} server of a version that was tested (docs/scale-out.md)"
            return Fault(str(exc), fix, "failed" if isinstance(exc, Busy) else "nonsense")
        return Completion(ids, logprobs, "stop" if stops else "length")

    async def _json(
        self,
        replica: _Replica,
        path: str,
        body: bytes | None,
        method: str = "POST",
        seconds: float | None = None,
    ) -> Any:
        """What it answered, or a Fault."""
        reply = await replica.server.send(path, body, method=method, seconds=seconds)
        if isinstance(reply, Fault):
            return reply
        if not 200 <= reply.status < 300:
            return status_fault(
                reply,
                self.settings.api_key_env,
                missing=f"set servers.urls and servers.model to what it serves; {self._dialect.update_help}",
                refused=f"check that it is a {self._dialect.kind} server (model.engine)",
            )
        return _parsed(reply)

    async def _need(self, replica: _Replica, path: str) -> Any:
        data = await self._json(replica, path, None, "GET")
        if isinstance(data, Fault):
            raise self._unusable(replica, data.what, data.fix)
        return data

    # Weights

    async def _current(self, replica: _Replica) -> Fault | None:
        """Gives a replica that was away the weights that the others have."""
        if replica.version == self._weights[1]:
            return None
        replica.mending = replica.mending or asyncio.Lock()
        async with replica.mending:
            return None if replica.version == self._weights[1] else await self._update(replica)

    async def _update(self, replica: _Replica) -> Fault | None:
        folder, version = self._weights
        fault = await self._calls(replica, self._dialect.update(folder, version))
        if fault is not None:
            await self._calls(replica, self._dialect.after_failure())
            replica.version = ""
            replica.until = time.monotonic() + self.settings.rest
            log.warning("Weights: %s It gets them before it is asked again.", self._sentence(replica, fault))
            return fault
        replica.version = version
        return None

    async def _calls(self, replica: _Replica, calls: Sequence[Call]) -> Fault | None:
        for path, body in calls:
            data = await self._json(
                replica, path, json.dumps(body).encode(), seconds=self.settings.update_timeout
            )
            if isinstance(data, Fault):
                return data
            if isinstance(data, dict) and data.get("success") is False:
                return Fault(f"did not do {path}: {json.dumps(data)[:200]}", "look at its log", "failed")
        return None

    async def _notice_restarts(self) -> None:
        """A replica that came back between two requests has sampled from the weights that it started with:
        their log-probabilities are true to that, but whoever runs it should know."""
        if not self._weights[1]:
            return
        for replica in self._awake():
            data = await self._json(replica, self._dialect.version_path, None, "GET")
            if not isinstance(data, Fault) and self._dialect.version(data) != replica.version:
                log.warning(
                    "The generation server %s has other weights than it was given (%s): it was restarted, "
                    "and some completions of the last step may come from those that it started with.",
                    replica.server.base_url,
                    self._dialect.version(data),
                )

    async def _compare(self, model: Any) -> None:
        """Asks each replica for a token, and the model for its log-probability: an update that had no effect,
        or only on a part of the weights, shows. (Smaller gaps are in `sampling_gap` of every step.)"""
        import torch

        for replica in self._replicas:
            if replica.version != self._weights[1]:
                continue
            found = await self._ask(replica, _PROBE, Sampling(0.0, max_tokens=1), 1)
            if isinstance(found, Fault):
                continue
            was_training = model.training
            model.eval()
            with torch.no_grad():
                ids = torch.tensor([_PROBE], device=model.get_input_embeddings().weight.device)
                ours = torch.log_softmax(model(ids).logits[0, -1].float(), -1)[found.token_ids[0]].item()
            model.train(was_training)
            if abs(ours - found.logprobs[0]) > _GAP:
                raise MuaError(
                    f"the generation server {replica.server.base_url} has loaded the weights that it was "
                    f"given and computes something else: log-probability {found.logprobs[0]:.3f} of a token "
                    f"that has {ours:.3f}. Start it with a model of this architecture. (vLLM 0.32 on a CPU "
                    "does not update output embeddings that are tied to the input's.)"
                )

    def _write(self, model: Any, version: str) -> Path:
        """The model as a folder of its own, complete before its name is there."""
        import copy

        from ..models import merged, save_model

        if self._folder is None:
            raise MuaError("the servers need a folder through which weights are handed over: servers.folder.")
        plain = merged(copy.deepcopy(model)) if hasattr(model, "merge_and_unload") else model
        folder = self._folder.absolute() / version
        try:
            save_model(plain, None, folder)
        except OSError as exc:
            raise MuaError(
                f"weights cannot be written to {folder} ({exc}). Make room, or set model.servers.folder."
            ) from None
        return folder

    # Words

    def _sentence(self, replica: _Replica, fault: Fault) -> str:
        where = f"{replica.server.base_url} ({self._dialect.kind})"
        return f"the generation server {where} {fault.what}; {fault.fix}."

    def _unusable(self, replica: _Replica, what: str, fix: str) -> MuaError:
        return MuaError(self._sentence(replica, Fault(what, fix)))


def _absolute(folder: str | Path) -> Path:
    return Path(folder).expanduser().absolute()


def _parsed(reply: Reply) -> Any:
    """JSON; None for an empty body. What is neither is a Fault."""
    if not reply.text.strip():
        return None
    try:
        return json.loads(reply.text)
    except (ValueError, RecursionError):
        words = " ".join(reply.text.split())[:200]
        return Fault(f"answered no JSON: {words}", "check that servers.urls leads to it", "nonsense")


async def open_engine(
    kind: str, settings: ServerSettings, *, folder: Path | None = None, temperature: float = 1.0
) -> ServedEngine:
    """An engine whose servers were asked whether they can be used. Raises MuaError."""
    engine = ServedEngine(kind, settings, folder=folder)
    try:
        await engine.open(temperature)
    except BaseException:
        await engine.close()
        raise
    return engine
