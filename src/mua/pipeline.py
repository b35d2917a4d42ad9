"""The stages of a run, each of which picks up what is there: cold start, SFT, GRPO, evaluation, summary.

Invariant: a stage whose result stands in the run folder is not done again, and a stage that was cut off
goes on (or starts over where it is short); so the same command resumes a run at any point.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .benchmarks import is_benchmark
from .benchmarks.guards import Allowed, Guard, HeldOut, held_out_tasks
from .coldstart.conversations import Dropped, conversations
from .coldstart.verification import Verification
from .config import Config, UserSettings, load_config, may_change, shared
from .domain import Ask, Domain, Task, check_no_noop, check_no_overlap
from .domains import load as load_domain
from .endpoint import EndpointSettings
from .engines import Engine, Sampling
from .errors import MuaError
from .gateway import Gateways, Meter
from .rollout import MakeAgent, MakeUser
from .runfolder import RunFolder
from .seeds import derive_seed
from .train import TrainSettings
from .trajectory import Trajectory, read_trajectories
from .users import User
from .users.personas import mix_name, with_personas

if TYPE_CHECKING:
    from .coldstart.dataset import Dataset
    from .evaluate.run import EvalResult

Report = Callable[[str, int, int, str], None]
"""(stage, done, in all, a few words): what progress bars are drawn from."""


def silent(stage: str, done: int, total: int, words: str) -> None:
    """A `Report` that shows nothing."""


class Stopped(Exception):
    """The run was asked to stop; what was done is saved."""


class Clock:
    """Adds the wall time of a stage to `times.json` now and then: a kill loses a few seconds of it."""

    def __init__(self, run: Run, stage: str):
        self._run, self._stage, self._since = run, stage, time.perf_counter()

    def tick(self, least: float = 5.0) -> None:
        passed = time.perf_counter() - self._since
        if passed >= least:
            self._run.add_seconds(self._stage, passed)
            self._since += passed

    def stop(self) -> None:
        self.tick(0.0)


@dataclasses.dataclass
class Run:
    """A run in progress: its configuration, its folder, and how it reports."""

    config: Config
    folder: RunFolder
    report: Report = silent
    should_stop: Callable[[], bool] = lambda: False
    guard: Guard | None = None
    """Of a run on a benchmark."""
    allowed: Mapping[str, Allowed] = dataclasses.field(default_factory=dict)
    """What the guard lets through, by split."""

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of a split that may be trained on."""
        return self.allowed[split].tasks if split in self.allowed else self.domain.tasks(split)

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def domain(self) -> Domain:
        return load_domain(self.config.domain)

    def model_path(self, name: str) -> Path:
        """`base`, `cold_start`, `user` or `rl` in the run folder."""
        return self.path / "models" / name

    def stop_if_asked(self) -> None:
        """Raises Stopped when the run was asked to stop."""
        if self.should_stop():
            raise Stopped

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Adds to the wall time of a stage; kept over resumes."""
        times = self.seconds()
        times[stage] = times.get(stage, 0.0) + seconds
        self.folder.write_json("times.json", times)

    def seconds(self) -> dict[str, float]:
        path = self.path / "times.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def open_run(config: Config, out: str | Path, **how: Any) -> Run:
    """Opens (or goes on with) a run folder, after the checks that need no model."""
    domain = load_domain(config.domain)
    check_separation(config, domain)
    learned_from = splits_learned_from(config)
    guard = make_guard(config, domain)
    if guard is None:
        held_out = domain.tasks(config.eval.split)[: config.eval.tasks]
        for split in learned_from:
            check_no_overlap(domain.tasks(split), held_out, f"evaluation split '{config.eval.split}'")
        check_no_noop(domain, domain.tasks(config.train_split))
        allowed = {}
    else:
        allowed = {s: guard.allowed(s, live=s == config.train_split) for s in learned_from}
    facts = {
        "seed": config.seed,
        "data": {"domain": domain.name, "database": domain.digest()},
        "tasks": {s: tasks_digest(domain.tasks(s)) for s in (*domain.splits, *learned_from)},
    }
    if allowed:
        facts["left_out"] = {
            s: [*(leak.task.id for leak in a.leaked), *(t.id for t in a.idle)] for s, a in allowed.items()
        }
    run = Run(config, RunFolder(out, config.model_dump(mode="json"), facts, may_change), **how)
    run.guard, run.allowed = guard, allowed
    for split, found in allowed.items():
        if found.leaked or found.idle:
            words = f"left out: {len(found.leaked)} held out, {len(found.idle)} solved by doing nothing"
            run.report(f"tasks {split}", len(found.tasks), len(domain.tasks(split)), words)
    return run


def check_separation(config: Config, domain: Domain) -> None:
    """Raises MuaError when the agent would be evaluated with the simulator that it is trained with."""
    users = [config.train_user, config.eval_user]
    name, other = (user_name(user, personas=False) for user in users)
    addresses = {u.endpoint.place for u in users if u.kind == "endpoint" and u.endpoint}
    prescribed = any(domain.user(task, 0) is not None for task in domain.tasks(config.eval.split)[:1])
    if name == other and len(addresses) < 2 and not prescribed and not config.eval.same_user:
        raise MuaError(
            f"train_user and eval_user are the same simulator ({name}): success would also "
            "count what the agent has learned about its habits. Set one of them to another (kind agenda, "
            "local or endpoint, or another model), or accept it by eval.same_user=true."
        )


def splits_learned_from(config: Config) -> list[str]:
    """The splits that a run trains on in one way or another."""
    named = (config.train_split, config.coldstart.split, config.coldstart.user_split)
    return list(dict.fromkeys(s for s in named if s))


def make_guard(config: Config, domain: Domain) -> Guard | None:
    """What guards a run on a benchmark; other domains are guarded by their tasks' fingerprints alone."""
    if not any(is_benchmark(part.name) for part in domain.members):
        return None
    held_out = [
        held
        for part in domain.members
        for held in held_out_tasks(part, config.eval.split, config.guards.held_out)
    ]
    return Guard(domain, held_out, config.guards.overlap)


def trained_on(run: Path) -> list[HeldOut]:
    """The tasks that the models of a run on a benchmark have learned from; none for other domains."""
    config = load_config(run / "config.yaml")
    domain = load_domain(config.domain)
    if not any(is_benchmark(part.name) for part in domain.members):
        return []
    manifest = _json(run / "manifest.json") or {}
    seen = []
    for split in splits_learned_from(config):
        left_out = set((manifest.get("left_out") or {}).get(split, ()))
        for task in domain.tasks(split):
            if task.id not in left_out:
                part, own = domain.of(task)
                seen.append(HeldOut(f"{part.name} {split}", part, own))
    return seen


def tasks_digest(tasks: Sequence[Task]) -> str:
    """A hash of the tasks' contents, in their order."""
    return f"{derive_seed(*(t.fingerprint for t in tasks)):016x}"


SMALL = 20_000_000
"""Parameters below which a second thread gains nothing: each operation waits for it as long as it saves."""


def set_threads(threads: int) -> None:
    """PyTorch's threads, for the operations of this process."""
    import torch

    torch.set_num_threads(threads)


def cores() -> int:
    """Cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(allowed(0)) if allowed else os.cpu_count() or 1


# ---------------------------------------------------------------- cold start


async def coldstart(run: Run) -> list[Trajectory]:
    """Verified conversations in `coldstart.jsonl`, and the base model in `models/base`."""
    made = run.model_path("base").exists()
    if not made and run.config.model.base != "tiny":  # first: a missing folder shows at once
        _make_base(run, ())
        made = True
    kept = await _conversations(run, "coldstart", run.config.coldstart.split)
    if run.config.user_sft is not None and run.config.coldstart.user_split:
        await _conversations(run, "coldstart_user", run.config.coldstart.user_split)
    if not made:
        _make_base(run, kept)
    return kept


def coldstart_counts(path: Path) -> dict[str, Any]:
    """What was kept and dropped of a run's conversations, by the name of their file."""
    found = {name: _json(path / f"{name}.json") for name in ("coldstart", "coldstart_user")}
    return {f"{name}.jsonl": counts for name, counts in found.items() if counts}


def user_conversations(config: Config, path: Path) -> Path:
    """The file of the conversations that the user model learns from."""
    return path / ("coldstart_user.jsonl" if config.coldstart.user_split else "coldstart.jsonl")


async def _conversations(run: Run, name: str, split: str) -> list[Trajectory]:
    config, path = run.config.coldstart, run.path / f"{name}.jsonl"
    if path.exists():
        return list(read_trajectories(path))
    began = time.perf_counter()
    dropped = Dropped()

    def on_progress(done: int, words: str = "") -> None:
        run.report("conversations", done, config.conversations, words)
        run.stop_if_asked()

    if config.file:
        kept = []
        verification = Verification(run.domain, config.checks)
        held_out = _held_out_in(run, config.file)
        for trajectory in read_trajectories(config.file):
            if trajectory.domain not in ("", run.domain.name):
                why = "of another domain"
            elif trajectory.task_id in held_out:
                why = "held out"
            else:
                why, _ = verification.examine(run.domain.task(trajectory.task_id), trajectory)
            if why:
                dropped.reasons[why] += 1
            else:
                kept.append(trajectory)
        kept = kept[: config.conversations]
    elif config.teacher is not None:
        if config.teacher.user is None:
            check_agenda(run.domain, split)
        kept = await _taught(run, name, run.tasks(split), dropped, on_progress)
    else:
        check_agenda(run.domain, split)
        kept = await conversations(
            run.domain,
            run.tasks(split),
            config.conversations,
            derive_seed(run.config.seed, name),
            limits=run.config.limits,
            hasty=config.hasty if name == "coldstart" else 0.0,
            personas=config.personas,
            faults=config.faults,
            checks=config.checks,
            dropped=dropped,
            on_progress=on_progress,
        )
    if not kept:
        causes = ", ".join(f"{n} {cause}" for cause, n in dropped.reasons.items())
        raise MuaError(f"not one conversation could be kept ({causes or 'there were none'}).")
    fresh = path.with_name(f".{name}.jsonl.new")
    with fresh.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(t.to_dict(), ensure_ascii=False) + "\n" for t in kept)
    fresh.replace(path)
    run.folder.write_json(
        f"{name}.json", {"kept": len(kept), "dropped": dict(dropped.reasons), "checks": config.checks}
    )
    run.add_seconds("conversations", time.perf_counter() - began)
    return kept


async def _taught(
    run: Run, name: str, tasks: Sequence[Task], dropped: Dropped, on_progress: Callable[[int, str], None]
) -> list[Trajectory]:
    """The conversations of a run's own teacher; what it played stands in `NAME_attempts.jsonl`."""
    from .coldstart.record import Record
    from .coldstart.teacher import Teacher

    config = run.config.coldstart
    assert config.teacher is not None
    teacher = Teacher(config.teacher, Gateways(run.config.gateways, run.path / SPENT))
    record = Record(run.folder, f"{name}_attempts")
    try:
        kept = await teacher.conversations(
            run.domain,
            tasks,
            config.conversations,
            derive_seed(run.config.seed, name),
            record,
            limits=run.config.limits,
            personas=config.personas,
            faults=config.faults,
            checks=config.checks,
            dropped=dropped.reasons,
            on_progress=on_progress,
        )
        about = teacher.about(record)
        figures = {**about.figures, "endpoints": teacher.figures()}
        run.folder.write_json(f"{name}_teacher.json", figures)
    finally:
        await teacher.close()
    return [k.trajectory for k in kept]


async def teach_all(
    config: Config,
    domains: Sequence[Domain],
    count: int,
    seed: int,
    out: Path,
    report: Report = silent,
    should_stop: Callable[[], bool] = lambda: False,
) -> Dataset:
    """A data set over the domains, played by the teacher of the configuration; goes on with what stands in
    OUT/teacher. Raises Stopped."""
    from .coldstart import dataset
    from .coldstart.record import Record
    from .coldstart.teacher import Teacher

    settings = config.coldstart.teacher
    assert settings is not None
    teacher = Teacher(settings, Gateways(config.gateways, out / "teacher" / SPENT))
    facts = {
        "seed": seed,
        **{role: _played_by(getattr(settings, role)) for role in ("agent", "user")},
        "personas": config.coldstart.personas,
        "faults": config.coldstart.faults and config.coldstart.faults.model_dump(mode="json"),
        "limits": config.limits.model_dump(mode="json"),
    }
    try:
        await teacher.check(domains[0])
        with RunFolder(out / "teacher", facts) as folder:
            record = Record(folder, "attempts")

            async def taught(domain: Domain, share: int) -> Any:
                def on_progress(done: int, words: str) -> None:
                    report(domain.name, done, share, words)
                    if should_stop():
                        raise Stopped

                return await teacher.lines(
                    domain,
                    share,
                    seed,
                    record,
                    limits=config.limits,
                    personas=config.coldstart.personas,
                    faults=config.coldstart.faults,
                    on_progress=on_progress,
                )

            made = await dataset.build(domains, count, seed, taught=taught)
            made.about = teacher.about(record)
            made.endpoints = teacher.figures()
            folder.write_json("endpoints.json", made.endpoints)
            return made
    finally:
        await teacher.close()


_HOW_IT_IS_ASKED = {
    *("timeout", "concurrency", "retries", "retry_delay", "prompt_price", "completion_price", "api_key_env"),
}


def _played_by(endpoint: EndpointSettings | None) -> dict[str, Any] | None:
    """What makes an endpoint another player."""
    return endpoint and endpoint.model_dump(mode="json", exclude=_HOW_IT_IS_ASKED)


def _held_out_in(run: Run, file: str) -> set[str]:
    """Ids of the tasks of stored conversations that a benchmark's guard keeps out."""
    if run.guard is None:
        return set()
    names = dict.fromkeys(t.task_id for t in read_trajectories(file) if t.domain in ("", run.domain.name))
    return {leak.task.id for leak in run.guard.leaked([run.domain.task(n) for n in names], f"'{file}'")}


def _make_base(run: Run, kept: Sequence[Trajectory]) -> None:
    from .models import load_model, save_model

    settings = run.config.model
    set_threads(run.config.threads or cores())  # sums in the weights' making depend on it
    if settings.base == "tiny":
        model, tokenizer = tiny_model(run.config, run.domain, kept)
    else:
        model, tokenizer = load_model(settings.base, settings.dtype, settings.device)
    save_model(model, tokenizer, run.model_path("base"))


def tiny_model(config: Config, domain: Domain, kept: Sequence[Trajectory]) -> tuple[Any, Any]:
    """(model, tokenizer) made on the spot, with a tokenizer of what will be said to it and to the user
    model."""
    from .formats import hermes_text
    from .models import tiny_llama
    from .tokenizer import FRAMES, train_tokenizer
    from .users.local import OPENING, user_prompt

    tiny = config.model.tiny
    texts = [OPENING]
    for trajectory in kept[:1500]:
        texts += [m.content + hermes_text(m.tool_calls) for m in trajectory.messages]
        texts.append(user_prompt(domain.task(trajectory.task_id).scenario, "brief"))
    tokenizer = train_tokenizer(texts, tiny.vocab_size, [*FRAMES, *domain.tools()])
    model = tiny_llama(
        len(tokenizer),
        tiny.layers,
        tiny.hidden,
        tiny.heads,
        tiny.kv_heads,
        tiny.intermediate,
        tiny.context,
        seed=derive_seed(config.seed, "model"),
        pad_id=tokenizer.pad_token_id,
        eos_id=tokenizer.eos_token_id,
        head_dim=tiny.head_dim,
        initializer_range=tiny.initializer_range,
        rope_theta=tiny.rope_theta,
        copying=tiny.copying,
    )
    return model, tokenizer


# ---------------------------------------------------------------- SFT


def sft(run: Run, kept: Sequence[Trajectory]) -> None:
    """`models/cold_start` from the agent's side and, if configured, `models/user` from the user's.

    The two are independent, so on a machine with several cores and no GPU they train at the same time.
    """
    import multiprocessing

    sides = {"cold_start": run.config.sft, "user": run.config.user_sft}
    wanted = [side for side, settings in sides.items() if settings and not run.model_path(side).exists()]
    if not wanted:
        return
    clock = Clock(run, "sft")

    def report(*news: Any) -> None:
        run.report(*news)
        clock.tick()

    threads = run.config.threads or cores()
    shared = all(sides.values()) and threads > 1 and not _on_gpu(run.config)
    # By configuration, not by what is left to do: a resumed side must add up its sums in the same order.
    share = {"cold_start": threads - threads // 2, "user": threads // 2} if shared else {}
    try:
        if shared and len(wanted) == 2:
            # The child shares nothing but files: it writes its own model, checkpoints and loss curve.
            child = multiprocessing.get_context("spawn").Process(
                target=_sft_child, args=(run.config, str(run.path), share["user"]), daemon=True
            )
            child.start()
            set_threads(share["cold_start"])
            try:
                _sft_side(run.config, run.path, "cold_start", kept, run.domain, report, run.should_stop)
                while child.is_alive() and not run.should_stop():
                    child.join(0.5)
                    report("sft user", *_curve_position(run.path / "sft_user.jsonl"), "")
            finally:
                _end(child)
            run.stop_if_asked()
            if child.exitcode:
                raise MuaError(_why_child_failed(run.path / "sft_user.log", child.exitcode))
        else:
            for side in wanted:
                set_threads(share.get(side, threads))
                if side == "user":
                    kept = list(read_trajectories(user_conversations(run.config, run.path)))
                _sft_side(run.config, run.path, side, kept, run.domain, report, run.should_stop)
    finally:
        clock.stop()


def _on_gpu(config: Config) -> bool:
    import torch

    return config.model.device.startswith("cuda") or (
        config.model.device == "auto" and torch.cuda.is_available()
    )


def _sft_child(config: Config, path: str, threads: int) -> None:
    import signal
    import sys
    import threading

    from .train.workers import follow_parent

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    follow_parent()
    with open(Path(path) / "sft_user.log", "w", encoding="utf-8", buffering=1) as log:
        sys.stdout = sys.stderr = log
        set_threads(threads)
        kept = list(read_trajectories(user_conversations(config, Path(path))))
        try:
            _sft_side(config, Path(path), "user", kept, load_domain(config.domain), silent, stop.is_set)
        except Stopped:
            print("stopped")
        except MuaError as exc:
            print(exc)
            sys.exit(1)


def _end(child: Any) -> None:
    """Lets the child save a checkpoint, if it still runs, and waits for it."""
    if child.is_alive():
        child.terminate()
        child.join(60)
    if child.is_alive():
        child.kill()
    child.join()


def _why_child_failed(log: Path, code: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")
    return (
        f"training the user model failed: {last} (more in {log}). Mend that, then run the same command again."
    )


SFT_CHECKPOINT_SECONDS = 30.0


def _sft_side(
    config: Config,
    path: Path,
    side: str,
    kept: Sequence[Trajectory],
    domain: Domain,
    report: Report,
    should_stop: Callable[[], bool],
) -> None:
    from .formats import ChatFormat
    from .models import load_model, merged, save_model
    from .train import checkpoint
    from .train.activations import recompute
    from .train.optimizer import adamw
    from .train.sft import train_sft
    from .users.local import user_trace

    settings = config.sft if side == "cold_start" else config.user_sft
    assert settings is not None
    model, tokenizer = load_model(path / "models" / "base", config.model.dtype, config.model.device)
    format = ChatFormat.of(tokenizer, tool_style=config.model.tool_style, thinking=config.model.thinking)
    segments = []
    for trajectory in kept:
        if side == "user":
            task = domain.task(trajectory.task_id)
            tools = domain.task_tools(task, "user")
            trace = user_trace(format, trajectory.messages, task.scenario, tools, prompt_style(config))
        else:
            trace = format.trace_of(trajectory.messages, _tools_by_turn(domain, trajectory))
        segments += trace.segments
    model = _adapted(config, model, side)
    if config.model.gradient_checkpointing:
        recompute(model, True)
    curve = path / ("sft_agent.jsonl" if side == "cold_start" else "sft_user.jsonl")
    checkpoints = path / "checkpoints" / f"sft_{side}"
    optimizer = adamw(model, settings)
    start = 0
    found = checkpoint.latest(checkpoints)
    if found is not None:
        start, _ = checkpoint.load(found, model, optimizer)
    lines = [line for line in _curve_lines(curve) if line["step"] <= start]
    saved = time.monotonic()
    with curve.open("w", encoding="utf-8", buffering=1) as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)

        def on_step(line: dict[str, Any]) -> None:
            nonlocal saved
            line["tokens_per_second"] = line["tokens"] / max(1e-9, line["seconds"])
            file.write(json.dumps(line) + "\n")
            report(
                f"sft {'agent' if side == 'cold_start' else 'user'}",
                line["step"],
                line["steps"],
                f"loss {line['loss']:.3f}",
            )
            if time.monotonic() - saved > SFT_CHECKPOINT_SECONDS or should_stop():
                checkpoint.save(checkpoints, line["step"], model, optimizer, keep=1)
                saved = time.monotonic()

        result = train_sft(
            model,
            segments,
            settings.model_copy(update={"seed": derive_seed(config.seed, "sft", settings.seed)}),
            optimizer=optimizer,
            start_step=start,
            on_step=on_step,
            should_stop=should_stop,
        )
    if result.stopped:
        raise Stopped
    save_model(merged(model), tokenizer, path / "models" / side)
    shutil.rmtree(checkpoints, ignore_errors=True)


def _tools_by_turn(domain: Domain, trajectory: Trajectory) -> Callable[[int], Mapping[str, Any]]:
    """What the agent was given at each turn of a stored conversation."""
    world = domain.open(domain.task(trajectory.task_id))

    def at(turn: int) -> Mapping[str, Any]:
        world.begin_turn(turn)
        return world.tools()

    return at


def prompt_style(config: Config) -> Any:
    """The tiny user model learns its part and needs no instructions."""
    return "brief" if config.model.base == "tiny" else "full"


def _curve_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def _curve_position(path: Path) -> tuple[int, int]:
    lines = _curve_lines(path)
    return (lines[-1]["step"], lines[-1]["steps"]) if lines else (0, 1)


# ---------------------------------------------------------------- players


@dataclasses.dataclass
class Players:
    """Loaded models, ready to play: makers of agents and users, and what must be closed afterwards."""

    engines: list[Engine] = dataclasses.field(default_factory=list)
    endpoints: list[Any] = dataclasses.field(default_factory=list)
    gateways: Gateways = dataclasses.field(default_factory=Gateways)
    largest: int = 0
    """Parameters of the largest model."""

    @classmethod
    def of(cls, config: Config, out: Path | None = None) -> Players:
        """With the gateways of a configuration; what they spend stands in the run folder `out`."""
        return cls(gateways=Gateways(config.gateways, out and out / SPENT))

    def endpoint(self, settings: EndpointSettings, role: str = "user") -> Any:
        """An endpoint, which is closed with the rest. Raises MuaError when its key is missing."""
        from .endpoint import Endpoint

        made = Endpoint(settings, role, self.gateways)
        self.endpoints.append(made)
        return made

    def meters(self) -> dict[str, Meter]:
        """Role → what was asked of its endpoints."""
        roles: dict[str, Meter] = {}
        for endpoint in self.endpoints:
            roles.setdefault(endpoint.role, Meter()).add(endpoint.meter)
        return roles

    def figures(self, others: Iterable[Mapping[str, Meter]] = ()) -> dict[str, Any]:
        """Role → what was asked of its endpoints, how long that took, what went wrong, what it cost; here and
        in other processes, whose `meters` these are."""
        roles = self.meters()
        for other in others:
            for role, meter in other.items():
                roles.setdefault(role, Meter()).add(meter)
        return {role: meter.figures() for role, meter in roles.items() if meter.requests or meter.cached}

    async def close(self) -> None:
        for part in (*self.engines, *self.endpoints, self.gateways):
            await part.close()


SPENT = "spent.sqlite"
"""File of a run folder: what its gateways have cost by now."""


def weights_digest(folder: Path) -> str:
    """A hash of a model's weight files."""
    import hashlib

    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]


def load_agent(config: Config, path: str | Path, players: Players) -> tuple[Any, Any, Engine]:
    """(model, format, local engine) of a model folder."""
    from .engines.local import make_engine

    model, format = _load(config, path, players)
    kind = "auto" if config.model.servers else config.model.engine
    engine = make_engine(model, kind, slots=config.model.slots)  # pyright: ignore[reportArgumentType]
    players.engines.append(engine)
    return model, format, engine


def _load(config: Config, path: str | Path, players: Players) -> tuple[Any, Any]:
    from .formats import ChatFormat
    from .models import load_model

    model, tokenizer = load_model(path, config.model.dtype, config.model.device)
    format = ChatFormat.of(tokenizer, tool_style=config.model.tool_style, thinking=config.model.thinking)
    players.largest = max(players.largest, sum(p.numel() for p in model.parameters()))
    set_threads(config.threads or (1 if players.largest < SMALL else cores()))
    return model, format


async def ready_agent(config: Config, path: str | Path, players: Players) -> tuple[Any, Engine]:
    """(format, engine) to play with the model of a folder: here, or on servers, which then load it."""
    if config.model.servers is None:
        return load_agent(config, path, players)[1:]
    from .formats import ChatFormat
    from .models import SMOLLM2, check_model, load_tokenizer

    check_model(path)
    if str(path) == SMOLLM2:
        raise MuaError(
            f"servers load a model from its folder, and {SMOLLM2} has none here: name the folder of a model, "
            "or set model.engine=auto."
        )
    tokenizer = load_tokenizer(path)
    format = ChatFormat.of(tokenizer, tool_style=config.model.tool_style, thinking=config.model.thinking)
    engine = await _served(config, players, None, max(config.eval.temperatures, default=1.0))
    await engine.load(Path(path))
    return format, engine


async def _served(config: Config, players: Players, folder: Path | None, temperature: float) -> Any:
    """The engine on servers, asked whether they are there."""
    from .engines.served import open_engine

    assert config.model.servers is not None
    engine = await open_engine(
        config.model.engine, config.model.servers, folder=folder, temperature=temperature
    )
    players.engines.append(engine)
    return engine


def agent_maker(config: Config, domain: Domain, format: Any, engine: Engine, temperature: float) -> MakeAgent:
    """Agents of evaluation and play."""
    from .agents.model import ModelAgent

    sampling = Sampling(temperature=temperature, max_tokens=config.max_step_tokens)
    return lambda task, session, seed: ModelAgent(
        format, engine, domain.task_tools(task), sampling=sampling, session=session, seed=seed
    )


async def user_maker(
    run_path: Path | None, config: Config, settings: UserSettings, players: Players
) -> tuple[MakeUser, str]:
    """Makes users, and their name for the records. An endpoint is asked once whether it is there.

    Where the domain prescribes a task's user, that one plays.
    """
    domain = load_domain(config.domain)
    make, name = await _configured_user(domain, run_path, config, settings, players)
    if settings.personas:
        # The tiny model learned its part and reads no instructions: a program acts around it.
        own = settings.kind == "local" and not settings.model and prompt_style(config) == "brief"
        instructed = settings.kind != "agenda" and not own
        make = with_personas(make, settings.personas, config.seed, instructed=instructed)
        name = f"{name} as {mix_name(settings.personas)}"
    return lambda task, seed: domain.user(task, seed) or make(task, seed), name


def check_agenda(domain: Domain, split: str) -> None:
    """Raises MuaError where a program cannot play the users of a split: imported scenarios are words only."""
    if split.endswith(".json") and domain.load_extra is None:
        raise MuaError(
            f"the scenarios of {split} are words, which no program can play: let a model play their users "
            "(kind endpoint, or kind local with a model that reads instructions), and a teacher the agent of "
            "a cold start (coldstart.teacher)."
        )


async def _configured_user(
    domain: Domain, run_path: Path | None, config: Config, settings: UserSettings, players: Players
) -> tuple[MakeUser, str]:
    if settings.kind == "agenda":
        for user, split in (
            (config.train_user, config.train_split),
            (config.eval_user, config.eval.split),
        ):
            if user == settings:
                check_agenda(domain, split)
        if domain.agenda_user is not None:
            return domain.agenda_user, "agenda"
        if all(domain.user(task, 0) is not None for task in domain.tasks(config.eval.split)):
            return domain.user, "none"
        raise MuaError(f"domain '{domain.name}' has no agenda user; choose kind local or endpoint")
    tools = domain.tools("user")
    if settings.kind == "endpoint":
        from .users.llm import LlmUser

        assert settings.endpoint is not None
        endpoint = players.endpoint(settings.endpoint)
        await endpoint.check(list(tools.values()))
        return (
            lambda task, seed: LlmUser(endpoint, task, seed, tools=domain.task_tools(task, "user"))
        ), f"llm:{settings.endpoint.model}"
    from .users.local import LocalUser

    own = not settings.model
    if own and run_path is None:
        raise MuaError("a local user needs `model`, a folder of a user model")
    path = run_path / "models" / "user" if own and run_path else settings.model
    _, format, engine = load_agent(config, path, players)
    sampling = Sampling(temperature=settings.temperature, max_tokens=settings.max_tokens)
    style = prompt_style(config) if own else "full"
    name = "local:user" if own else f"local:{Path(settings.model).name}"

    def make(task: Task, seed: int) -> User:
        tools = domain.task_tools(task, "user")
        return LocalUser(
            format, engine, task, seed=seed, sampling=sampling, tools=tools, name=name, style=style
        )

    return make, name


async def preflight(config: Config, out: Path, users: bool = True) -> None:
    """Looks for the models and endpoints of all stages, before a folder is made or minutes are spent.

    Only for what is not done yet in the run folder `out`. Raises MuaError for the first that is missing.
    """
    from .models import check_model

    check_trackers(config)
    if config.model.base != "tiny" and not (out / "models" / "base").exists():
        check_model(config.model.base)
    if config.coldstart.teacher is not None and not (out / "coldstart.jsonl").exists():
        from .coldstart.teacher import Teacher

        teacher = Teacher(config.coldstart.teacher, Gateways(config.gateways))
        try:
            await teacher.check(load_domain(config.domain))
        finally:
            await teacher.close()
    if not users:
        return
    later = [] if (out / "models" / "rl").exists() else [config.train_user]
    if any(missing_evaluations(config, out, model) for model in stages(config)):
        later.append(config.eval_user)
    for settings in later:
        if settings.kind == "local" and settings.model:
            check_model(settings.model)
        elif settings.kind == "endpoint":
            players = Players.of(config)
            try:
                await user_maker(None, config, settings, players)
            finally:
                await players.close()


# ---------------------------------------------------------------- GRPO


def check_trackers(config: Config) -> None:
    """Raises MuaError when the library of a tracker that is asked for is not there."""
    import importlib.util

    for name in config.track:
        if importlib.util.find_spec(name) is None:
            raise MuaError(f"track: {name} is not installed; pip install 'mua[{name}]', or leave it out.")


async def train(run: Run) -> None:
    """GRPO from `models/cold_start` (without a cold start: `models/base`) to `models/rl`."""
    if run.model_path("rl").exists():
        return
    from .models import merged, save_model
    from .train.track import Trackers
    from .train.trainer import train as grpo
    from .train.workers import Workers

    # Where one user endpoint is asked by several processes, all see the ledger in the run folder.
    config, domain = shared(run.config, run.config.train.processes, one_ledger=True), run.domain
    check_trackers(config)
    clock = Clock(run, "grpo")
    trackers = Trackers(config.track, run.folder, config.track_project)

    def on_step(line: dict[str, Any]) -> None:
        trackers.log(line)
        run.report("grpo", line["step"], settings.steps, f"reward {line['reward']:.2f}")
        clock.tick()

    players = Players.of(config, run.path)
    settings = _train_settings(config)
    workers = None
    try:
        model, format, engine, make_user = await _trainee(config, run.path, players)
        actor = model if settings.staleness else None
        model = copy.deepcopy(model) if settings.staleness else model
        count = processes_for(config, settings, model, players.largest)
        if count > 1:
            workers = Workers(count, _train_worker, (config, str(run.path)))
        progress = await grpo(
            model,
            format,
            engine,
            domain,
            run.tasks(config.train_split),
            make_user=make_user,
            settings=settings,
            run=run.folder,
            limits=config.limits,
            other_engines=[e for e in players.engines if e is not engine],
            workers=workers,
            actor=actor,
            held_out=_held_out(run),
            on_step=on_step,
            should_stop=run.should_stop,
            more_figures=lambda: _more_figures(players, engine, workers.told if workers else ()),
        )
    finally:
        if workers is not None:
            workers.close()
        await players.close()
        trackers.close()
        clock.stop()
    if progress.step < settings.steps:
        raise Stopped
    save_model(merged(model), format.tokenizer, run.model_path("rl"))


def _more_figures(players: Players, engine: Any, others: Iterable[Mapping[str, Meter]]) -> dict[str, Any]:
    """What a step's record has of endpoints and of servers, since the command began; `others` are the meters
    of the other processes."""
    found = {"endpoints": players.figures(others)}
    if hasattr(engine, "figures"):
        found["servers"] = engine.figures()
    return {name: figures for name, figures in found.items() if figures}


def teacher_figures(path: Path) -> dict[str, Any]:
    """Role → what the call that played a run's conversations asked of its teacher; empty without one."""
    return (_json(path / "coldstart_teacher.json") or {}).get("endpoints") or {}


def endpoint_figures(path: Path) -> dict[str, Any]:
    """Role → what GRPO's last call in a run folder asked of its endpoints, and under `cost_per_task` the US
    dollars of all steps by the tasks that were trained on; empty without endpoints."""
    lines = _curve_lines(path / "metrics.jsonl")
    found = dict(lines[-1].get("endpoints") or {}) if lines else {}
    trained = sum(line.get("groups_trained") or 0 for line in lines)
    cost = sum(line.get("user_cost") or 0.0 for line in lines)
    return {**found, "cost_per_task": cost / trained} if found and trained else found


def _train_settings(config: Config) -> TrainSettings:
    return config.train.model_copy(update={"seed": derive_seed(config.seed, "grpo", config.train.seed)})


async def _trainee(config: Config, path: Path, players: Players) -> tuple[Any, Any, Engine, MakeUser]:
    """(model, format, engine, maker of users) of GRPO: the model it starts from, and whoever talks to it."""
    from .train.activations import recompute

    start = path / "models" / stages(config)[-2]
    if config.model.servers is None:
        model, format, engine = load_agent(config, start, players)
    else:  # which get the weights from the trainer
        model, format = _load(config, start, players)
        engine = await _served(config, players, path / "served", config.train.temperature)
    model = _adapted(config, model, "grpo")
    if config.model.gradient_checkpointing:
        recompute(model, True)
    make_user, _ = await user_maker(path, config, config.train_user, players)
    return model, format, engine, make_user


def _adapted(config: Config, model: Any, stage: str) -> Any:
    """The model with what is trained in place of its weights, if the configuration says so."""
    lora = config.model.lora
    if lora is None:
        return model
    from .models import with_adapters

    return with_adapters(model, lora.rank, lora.alpha, lora.targets, derive_seed(config.seed, "lora", stage))


def processes_for(config: Config, settings: TrainSettings, model: Any, largest: int) -> int:
    """Processes for GRPO: those asked for, else as many as pay for themselves. A larger model uses the cores
    by threads, and its copies cost memory; an endpoint's users are waited for."""
    import torch

    if settings.processes > 1 and model.dtype != torch.float32:
        raise MuaError(
            f"train.processes={settings.processes} adds up gradients in the model's own numbers, and "
            f"{str(model.dtype).removeprefix('torch.')} is too coarse for that; set model.dtype=float32, or "
            "train.processes=1."
        )
    if settings.processes > 1 and config.model.servers is not None:
        raise MuaError(
            f"train.processes={settings.processes} is for engines in these processes; with model.servers the "
            "replicas share the work: set train.processes=1, or leave it out."
        )
    if settings.processes or settings.staleness:
        return settings.processes or 1
    small = largest < SMALL and model.dtype == torch.float32 and model.device.type == "cpu"
    elsewhere = config.train_user.kind == "endpoint" or config.model.servers is not None
    return min(cores(), MOST_PROCESSES) if small and not elsewhere else 1


MOST_PROCESSES = 4


def _train_worker(connection: Any, config: Config, path: str) -> None:
    """A process of `train.workers`: everything that `train` has, but for optimizer and records."""
    from .train.trainer import (
        accumulator,
        clear_caches,
        make_reference,
        model_agents,
        peak_mb,
        player,
        scorer,
    )
    from .train.workers import follow_parent, serve

    follow_parent()
    domain, settings = load_domain(config.domain), _train_settings(config)
    players = Players.of(config, Path(path))
    with asyncio.Runner() as runner:
        model, format, engine, make_user = runner.run(_trainee(config, Path(path), players))
        make_agent = model_agents(format, engine, domain, settings)
        reference = make_reference(model, settings)
        serve(
            connection,
            model,
            {task.id: task for task in domain.tasks(config.train_split)},
            player(domain, make_agent, make_user, settings, config.limits),
            accumulator(model, reference, settings),
            scorer(model, reference, settings),
            lambda: clear_caches(players.engines),
            peak_mb,
            runner,
            players.meters,
        )


def _held_out(run: Run) -> dict[str, Sequence[Task]]:
    """The evaluation tasks, unless the configuration says that they may be trained on."""
    config = run.config
    if run.guard is not None and run.guard.overlap == "allow":
        return {}
    return {config.eval.split: run.domain.tasks(config.eval.split)[: config.eval.tasks]}


# ---------------------------------------------------------------- evaluation

NAMES = {1.0: "t1", 0.0: "greedy"}
STAGES = ("base", "cold_start", "rl")
"""The models of a run that are evaluated, in order."""


def stages(config: Config) -> tuple[str, ...]:
    """Those of `STAGES` that a run with this configuration has."""
    return STAGES if config.sft is not None else ("base", "rl")


def eval_name(model: str, temperature: float) -> str:
    return f"{model}_{NAMES.get(temperature, f't{temperature:g}')}"


def missing_evaluations(config: Config, path: Path, model: str) -> list[float]:
    """The temperatures at which a model of the run folder `path` has not been evaluated yet."""
    place = path / "eval"
    return [t for t in config.eval.temperatures if not (place / f"{eval_name(model, t)}.json").exists()]


async def evaluate_model(run: Run, model: str) -> None:
    """Evaluates `models/MODEL` at each temperature of the configuration, into `eval/`."""
    config = run.config
    missing = missing_evaluations(config, run.path, model)
    if not missing:
        return
    clock = Clock(run, "eval")

    def report(*news: Any) -> None:
        run.report(*news)
        clock.tick()

    players = Players.of(config, run.path)
    try:
        format, engine = await ready_agent(config, run.model_path(model), players)
        make_user, user = await user_maker(run.path, config, config.eval_user, players)
        for temperature in missing:
            await evaluate_agent(
                config,
                run.path,
                agent_maker(config, run.domain, format, engine, temperature),
                make_user,
                temperature=temperature,
                name=eval_name(model, temperature),
                model=model,
                user=user,
                weights=weights_digest(run.model_path(model)),
                report=report,
                should_stop=run.should_stop,
                endpoints=players.figures,
            )
    finally:
        await players.close()
        clock.stop()


async def evaluate_agent(
    config: Config,
    out: Path,
    make_agent: MakeAgent,
    make_user: MakeUser,
    *,
    temperature: float,
    name: str,
    model: str,
    user: str,
    weights: str,
    report: Report = silent,
    should_stop: Callable[[], bool] = lambda: False,
    judge: tuple[str, Ask] | None = None,
    endpoints: Callable[[], dict[str, Any]] = dict,
) -> EvalResult:
    """One evaluation as `config.eval` says, into OUT/eval/NAME.*; goes on with what is there.

    `user` and `weights` identify who plays; `judge` is the name of a judge, and the judge. Raises Stopped;
    what is finished by then stands in the file.
    """
    from .evaluate.run import EvalSettings, evaluate

    domain = load_domain(config.domain)

    def on_progress(done: int, total: int, _: Trajectory) -> None:
        report(f"eval {name}", done, total, "")
        if should_stop():
            raise Stopped

    if should_stop():
        raise Stopped
    return await evaluate(
        domain,
        domain.tasks(config.eval.split),
        make_agent,
        make_user,
        EvalSettings(
            split=config.eval.split,
            tasks=config.eval.tasks,
            samples=config.eval.samples,
            temperature=temperature,
            seed=config.seed,
            concurrency=config.eval.concurrency,
            faults=config.eval.faults,
        ),
        config.limits,
        out=out,
        name=name,
        model=model,
        identity={
            "user": user,
            "weights": weights,
            "step": config.max_step_tokens,
            **({"judge": judge[0]} if judge else {}),
        },
        on_progress=on_progress,
        judge=judge[1] if judge else None,
        endpoints=endpoints,
    )


# ---------------------------------------------------------------- all of it


def summarize(run: Run) -> dict[str, Any]:
    """Writes `summary.json`: success of base, cold start and RL, and what it took."""
    times = run.seconds()
    metrics = _curve_lines(run.path / "metrics.jsonl")
    before = _json(run.path / "summary.json") or {}
    out: dict[str, Any] = {}
    for model in STAGES:
        rows = {
            key: _json(run.path / "eval" / f"{eval_name(model, t)}.json")
            for key, t in (("success", 1.0), ("success_greedy", 0.0))
        }
        first = rows["success"] or rows["success_greedy"]
        if first:
            out[model] = {
                "success": rows["success"] and rows["success"]["success"],
                "success_greedy": rows["success_greedy"] and rows["success_greedy"]["success"],
                "ci95": first["ci95"],
                "ci95_greedy": rows["success_greedy"] and rows["success_greedy"]["ci95"],
                "n": first["n"],
            }
    out.update(
        domain=run.config.domain,
        model=run.config.model.base,
        train_user=user_name(run.config.train_user),
        eval_user=user_name(run.config.eval_user),
        seed=run.config.seed,
        seconds_train=sum(times.get(s, 0.0) for s in ("conversations", "sft", "grpo")),
        seconds=times,
        peak_mb=max(_peak_mb(metrics), before.get("peak_mb", 0.0)),  # a finished run that is opened again
        rl_steps=len(metrics),
    )
    gain = _greedy_gain(run.path)
    if gain:
        out["gain_greedy"] = gain
    run.folder.write_json("summary.json", out)
    return out


def user_name(settings: UserSettings, personas: bool = True) -> str:
    """A user in a few words, with or without how it behaves."""
    name: str = settings.kind
    if settings.kind == "endpoint" and settings.endpoint:
        name = f"llm:{settings.endpoint.model}"
    elif settings.kind == "local":
        name = f"local:{Path(settings.model).name or 'user'}"
    return f"{name} as {mix_name(settings.personas)}" if personas and settings.personas else name


def _greedy_gain(path: Path) -> dict[str, Any] | None:
    """The gain of RL over the cold start at temperature 0, paired by task, with its interval."""
    from .evaluate.run import outcomes
    from .evaluate.statistics import paired_difference

    files = [path / "eval" / f"{m}_greedy.jsonl" for m in ("cold_start", "rl")]
    if not all(f.exists() for f in files):
        return None
    before, after = (outcomes(list(read_trajectories(f))) for f in files)
    difference = paired_difference(before, after)
    return dataclasses.asdict(difference)


def _peak_mb(metrics: Sequence[Mapping[str, Any]]) -> float:
    import resource

    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    # The user model is trained beside the agent's: at worst both peaks came together.
    return max([own + children, *(m.get("peak_mb") or 0.0 for m in metrics)])


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


async def everything(run: Run) -> dict[str, Any]:
    """Cold start, SFT, GRPO, evaluations, summary, report. Raises Stopped when asked to stop."""
    from .report import build_report

    kept = await coldstart(run)
    sft(run, kept)
    await train(run)
    for model in stages(run.config):
        await evaluate_model(run, model)
    summary = summarize(run)
    build_report(run.path)
    return summary
