"""The stages of a run, each of which picks up what is there: cold start, SFT, GRPO, evaluation, summary.

Invariant: a stage whose result stands in the run folder is not done again, and a stage that was cut off
goes on (or starts over where it is short); so the same command resumes a run at any point.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .coldstart.conversations import Dropped, conversations, verify
from .config import Config, UserSettings
from .domain import Domain, Task, check_no_noop, check_no_overlap
from .domains import load as load_domain
from .engines import Engine, Sampling
from .errors import MuaError
from .rollout import MakeAgent, MakeUser
from .runfolder import RunFolder
from .seeds import derive_seed
from .trajectory import Trajectory, read_trajectories
from .users import User

Report = Callable[[str, int, int, str], None]
"""(stage, done, in all, a few words): what progress bars are drawn from."""


def silent(stage: str, done: int, total: int, words: str) -> None:
    """A `Report` that shows nothing."""


class Stopped(Exception):
    """The run was asked to stop; what was done is saved."""


@dataclasses.dataclass
class Run:
    """A run in progress: its configuration, its folder, and how it reports."""

    config: Config
    folder: RunFolder
    report: Report = silent
    should_stop: Callable[[], bool] = lambda: False

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def domain(self) -> Domain:
        return load_domain(self.config.domain)

    def model_path(self, name: str) -> Path:
        """`base`, `cold_start`, `user` or `rl` in the run folder."""
        return self.path / "models" / name

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
    set_threads(config.threads)
    domain = load_domain(config.domain)
    held_out = domain.tasks(config.eval.split)[: config.eval.tasks]
    for split in dict.fromkeys((config.train_split, config.coldstart.split)):
        check_no_overlap(domain.tasks(split), held_out, f"evaluation split '{config.eval.split}'")
    check_no_noop(domain, domain.tasks(config.train_split))
    facts = {
        "seed": config.seed,
        "data": {"domain": domain.name, "database": domain.base.open().digest()},
        "tasks": {s: tasks_digest(domain.tasks(s)) for s in domain.splits},
    }
    return Run(config, RunFolder(out, config.model_dump(mode="json"), facts), **how)


def tasks_digest(tasks: Sequence[Task]) -> str:
    """A hash of the tasks' contents, in their order."""
    return f"{derive_seed(*(t.fingerprint for t in tasks)):016x}"


def set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))


# ---------------------------------------------------------------- cold start


async def coldstart(run: Run) -> list[Trajectory]:
    """Verified conversations in `coldstart.jsonl`, and the base model in `models/base`."""
    kept = await _conversations(run)
    if not run.model_path("base").exists():
        _make_base(run, kept)
    return kept


async def _conversations(run: Run) -> list[Trajectory]:
    config, path = run.config.coldstart, run.path / "coldstart.jsonl"
    if path.exists():
        return list(read_trajectories(path))
    began = time.perf_counter()
    dropped = Dropped()
    if config.file:
        kept = []
        for trajectory in read_trajectories(config.file):
            why = verify(run.domain, run.domain.task(trajectory.task_id), trajectory)
            if why:
                dropped.reasons[why] += 1
            else:
                kept.append(trajectory)
        kept = kept[: config.conversations]
    else:
        kept = await conversations(
            run.domain,
            run.domain.tasks(config.split),
            config.conversations,
            derive_seed(run.config.seed, "coldstart"),
            limits=run.config.limits,
            dropped=dropped,
            on_progress=lambda done: run.report("conversations", done, config.conversations, ""),
        )
    if not kept:
        raise MuaError(f"not one conversation could be kept: {dict(dropped.reasons)}")
    fresh = path.with_name(".coldstart.jsonl.new")
    with fresh.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(t.to_dict(), ensure_ascii=False) + "\n" for t in kept)
    fresh.replace(path)
    run.folder.write_json("coldstart.json", {"kept": len(kept), "dropped": dict(dropped.reasons)})
    run.add_seconds("conversations", time.perf_counter() - began)
    return kept


def _make_base(run: Run, kept: Sequence[Trajectory]) -> None:
    from .models import load_model, save_model

    settings = run.config.model
    if settings.base == "tiny":
        model, tokenizer = _tiny(run, kept)
    else:
        model, tokenizer = load_model(settings.base, settings.dtype, settings.device)
    save_model(model, tokenizer, run.model_path("base"))


def _tiny(run: Run, kept: Sequence[Trajectory]) -> tuple[Any, Any]:
    """The model made on the spot, with a tokenizer of what will be said to it and to the user model."""
    from .formats import hermes_text
    from .models import tiny_llama
    from .tokenizer import FRAMES, train_tokenizer
    from .users.local import OPENING, user_prompt

    tiny, domain = run.config.model.tiny, run.domain
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
        seed=derive_seed(run.config.seed, "model"),
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
    began = time.perf_counter()
    cores = run.config.threads or len(os.sched_getaffinity(0))
    if len(wanted) == 2 and cores > 1 and not _on_gpu(run.config):
        # The child shares nothing but files: it writes its own model, checkpoints and loss curve.
        child = multiprocessing.get_context("spawn").Process(
            target=_sft_child, args=(run.config, str(run.path), cores // 2), daemon=True
        )
        child.start()
        set_threads(cores - cores // 2)
        try:
            _sft_side(run.config, run.path, "cold_start", kept, run.domain, run.report, run.should_stop)
            while child.is_alive():
                child.join(0.5)
                run.report("sft user", *_curve_position(run.path / "sft_user.jsonl"), "")
        finally:
            if child.is_alive():
                child.terminate()
                child.join()
            set_threads(run.config.threads)
        if run.should_stop():
            raise Stopped
        if child.exitcode:
            raise MuaError(
                f"training the user model ended with exit code {child.exitcode}; see {run.path}/sft_user.log"
            )
    else:
        for side in wanted:
            _sft_side(run.config, run.path, side, kept, run.domain, run.report, run.should_stop)
    run.add_seconds("sft", time.perf_counter() - began)


def _on_gpu(config: Config) -> bool:
    import torch

    return config.model.device.startswith("cuda") or (
        config.model.device == "auto" and torch.cuda.is_available()
    )


def _sft_child(config: Config, path: str, threads: int) -> None:
    import signal
    import sys

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    with open(Path(path) / "sft_user.log", "w", encoding="utf-8", buffering=1) as log:
        sys.stdout = sys.stderr = log
        set_threads(threads)
        kept = list(read_trajectories(Path(path) / "coldstart.jsonl"))
        _sft_side(config, Path(path), "user", kept, load_domain(config.domain), silent, lambda: False)


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
    from .models import load_model, save_model
    from .train import checkpoint
    from .train.sft import adamw, train_sft
    from .users.local import user_trace

    settings = config.sft if side == "cold_start" else config.user_sft
    assert settings is not None
    model, tokenizer = load_model(path / "models" / "base", config.model.dtype, config.model.device)
    format = ChatFormat.of(tokenizer, tool_style=config.model.tool_style, thinking=config.model.thinking)
    segments = []
    for trajectory in kept:
        if side == "user":
            scenario = domain.task(trajectory.task_id).scenario
            trace = user_trace(
                format, trajectory.messages, scenario, domain.tools("user"), prompt_style(config)
            )
        else:
            trace = format.trace_of(trajectory.messages, domain.tools())
        segments += trace.segments
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable()
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
    save_model(model, tokenizer, path / "models" / side)
    shutil.rmtree(checkpoints, ignore_errors=True)


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

    async def close(self) -> None:
        for part in (*self.engines, *self.endpoints):
            await part.close()


def weights_digest(folder: Path) -> str:
    """A hash of a model's weight files."""
    import hashlib

    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]


def load_agent(config: Config, path: str | Path, players: Players) -> tuple[Any, Any, Engine]:
    """(model, format, engine) of a model folder."""
    from .engines.local import make_engine
    from .formats import ChatFormat
    from .models import load_model

    model, tokenizer = load_model(path, config.model.dtype, config.model.device)
    format = ChatFormat.of(tokenizer, tool_style=config.model.tool_style, thinking=config.model.thinking)
    engine = make_engine(model, config.model.engine, slots=config.model.slots)
    players.engines.append(engine)
    return model, format, engine


def agent_maker(config: Config, domain: Domain, format: Any, engine: Engine, temperature: float) -> MakeAgent:
    """Agents of evaluation and play."""
    from .agents.model import ModelAgent

    sampling = Sampling(temperature=temperature, max_tokens=config.max_step_tokens)
    tools = domain.tools()
    return lambda task, session, seed: ModelAgent(
        format, engine, tools, sampling=sampling, session=session, seed=seed
    )


async def user_maker(
    run_path: Path | None, config: Config, settings: UserSettings, players: Players
) -> tuple[MakeUser, str]:
    """Makes users, and their name for the records. An endpoint is asked once whether it is there."""
    domain = load_domain(config.domain)
    if settings.kind == "agenda":
        if domain.agenda_user is None:
            raise MuaError(f"domain '{domain.name}' has no agenda user; choose kind local or endpoint")
        return domain.agenda_user, "agenda"
    tools = domain.tools("user")
    if settings.kind == "endpoint":
        from .endpoint import Endpoint
        from .users.llm import LlmUser

        assert settings.endpoint is not None
        endpoint = Endpoint(settings.endpoint)
        await endpoint.check(list(tools.values()))
        players.endpoints.append(endpoint)
        return (
            lambda task, seed: LlmUser(endpoint, task, seed, tools=tools)
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
        return LocalUser(
            format, engine, task, seed=seed, sampling=sampling, tools=tools, name=name, style=style
        )

    return make, name


# ---------------------------------------------------------------- GRPO


async def train(run: Run) -> None:
    """GRPO from `models/cold_start` to `models/rl`."""
    if run.model_path("rl").exists():
        return
    from .models import save_model
    from .train.trainer import train as grpo

    config, domain = run.config, run.domain
    began = time.perf_counter()
    players = Players()
    model, format, engine = load_agent(config, run.model_path("cold_start"), players)
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    make_user, _ = await user_maker(run.path, config, config.train_user, players)
    settings = config.train.model_copy(update={"seed": derive_seed(config.seed, "grpo", config.train.seed)})
    try:
        progress = await grpo(
            model,
            format,
            engine,
            domain,
            domain.tasks(config.train_split),
            make_user=make_user,
            settings=settings,
            run=run.folder,
            limits=config.limits,
            other_engines=[e for e in players.engines if e is not engine],
            held_out={config.eval.split: domain.tasks(config.eval.split)[: config.eval.tasks]},
            on_step=lambda line: run.report(
                "grpo", line["step"], settings.steps, f"reward {line['reward']:.2f}"
            ),
            should_stop=run.should_stop,
        )
    finally:
        await players.close()
        run.add_seconds("grpo", time.perf_counter() - began)
    if progress.step < settings.steps:
        raise Stopped
    save_model(model, format.tokenizer, run.model_path("rl"))


# ---------------------------------------------------------------- evaluation

NAMES = {1.0: "t1", 0.0: "greedy"}


def eval_name(model: str, temperature: float) -> str:
    return f"{model}_{NAMES.get(temperature, f't{temperature:g}')}"


async def evaluate_model(run: Run, model: str) -> None:
    """Evaluates `models/MODEL` at each temperature of the configuration, into `eval/`."""
    from .evaluate.run import EvalSettings, evaluate

    config, domain = run.config, run.domain
    missing = [
        t
        for t in config.eval.temperatures
        if not (run.path / "eval" / f"{eval_name(model, t)}.json").exists()
    ]
    if not missing:
        return
    began = time.perf_counter()
    players = Players()
    _, format, engine = load_agent(config, run.model_path(model), players)
    make_user, user = await user_maker(run.path, config, config.eval_user, players)
    try:
        for temperature in missing:
            if run.should_stop():
                raise Stopped
            name = eval_name(model, temperature)
            settings = EvalSettings(
                split=config.eval.split,
                tasks=config.eval.tasks,
                samples=config.eval.samples,
                temperature=temperature,
                seed=config.seed,
                concurrency=config.eval.concurrency,
            )
            await evaluate(
                domain,
                domain.tasks(config.eval.split),
                agent_maker(config, domain, format, engine, temperature),
                make_user,
                settings,
                config.limits,
                out=run.path,
                name=name,
                model=model,
                identity={
                    "user": user,
                    "weights": weights_digest(run.model_path(model)),
                    "step": config.max_step_tokens,
                },
                on_progress=lambda done, total, _: run.report(f"eval {name}", done, total, ""),  # noqa: B023
            )
    finally:
        await players.close()
        run.add_seconds("eval", time.perf_counter() - began)


# ---------------------------------------------------------------- all of it


def summarize(run: Run) -> dict[str, Any]:
    """Writes `summary.json`: success of base, cold start and RL, and what it took."""
    times = run.seconds()
    metrics = _curve_lines(run.path / "metrics.jsonl")
    out: dict[str, Any] = {}
    for model in ("base", "cold_start", "rl"):
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
        peak_mb=_peak_mb(metrics),
        rl_steps=len(metrics),
    )
    gain = _greedy_gain(run.path)
    if gain:
        out["gain_greedy"] = gain
    run.folder.write_json("summary.json", out)
    return out


def user_name(settings: UserSettings) -> str:
    if settings.kind == "endpoint" and settings.endpoint:
        return f"llm:{settings.endpoint.model}"
    if settings.kind == "local":
        return f"local:{Path(settings.model).name or 'user'}"
    return settings.kind


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
    for model in ("base", "cold_start", "rl"):
        await evaluate_model(run, model)
    summary = summarize(run)
    build_report(run.path)
    return summary
