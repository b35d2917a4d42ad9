"""One evaluation: every task of a split, some samples each, resumable at any moment.

Invariants:
- An episode's seeds depend on the evaluation's seed, its task and its sample only: neither concurrency,
  nor a kill and resume, nor somebody else's failure changes what is played.
- Infrastructure failures are played again, then left out and counted; they never become a score.
- Lines are written whole, lines of two different evaluations never meet in one file, and no two processes
  play one evaluation into one folder at once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from .. import __version__
from ..domain import Ask, Domain, Task
from ..episode import Limits, play
from ..errors import InfrastructureError, MuaError
from ..faults import FaultSettings, active, counts, misbehaving, was_hit
from ..rollout import MakeAgent, MakeUser
from ..runfolder import take_lock
from ..seeds import derive_seed
from ..trajectory import Termination, Trajectory, read_trajectories
from ..users import fidelity
from . import audit
from .statistics import mean_success, pass_k, pass_k_intervals, success_rate

Progress = Callable[[int, int, Trajectory], None]
"""(episodes done, episodes in all, the one just done)."""


class EvalSettings(BaseModel):
    """What is evaluated on, and how often."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: str = Field(default="test", description="Split of the domain.")
    tasks: int | None = Field(default=None, ge=1, description="Only the first so many tasks; null takes all.")
    samples: int = Field(default=1, ge=1, description="Episodes of each task; pass^k needs k of them.")
    temperature: float = Field(default=0.0, ge=0, description="Of the agent; make_agent applies it.")
    seed: int = Field(default=0, description="All seeds of the evaluation derive from it.")
    concurrency: int = Field(default=16, ge=1, description="Most episodes in flight.")
    max_attempts: int = Field(
        default=3,
        ge=1,
        description="Times an episode is played before an infrastructure failure excludes it.",
    )
    faults: FaultSettings | None = Field(default=None, description="How the environment misbehaves.")


@dataclass
class EvalResult:
    """The figures of an evaluation; `to_dict` is eval/NAME.json."""

    name: str
    model: str
    domain: str
    split: str
    user: str
    temperature: float
    n: int
    """Tasks with at least one scored episode."""
    samples: int
    """Episodes asked for of each task."""
    success: float
    """Mean over tasks of the share of successful samples; equals pass^1."""
    ci95: tuple[float, float]
    pass_k: dict[int, float]
    pass_k_ci95: dict[int, tuple[float, float]]
    by_kind: dict[str, dict[str, float]]
    terminations: dict[str, int]
    """All episodes, the excluded ones included."""
    excluded: int
    """Episodes without a score, because infrastructure failed each time."""
    seconds: float
    """Of this call; a resumed evaluation does not know what came before."""
    agent_tokens_per_episode: float
    turns: float
    """Mean user turns of the scored episodes."""
    user_cost: float
    """US dollars, all episodes together."""
    agent_cost: float = 0.0
    """Likewise; 0 for an agent that is not paid for by the token."""
    benchmark: dict[str, Any] = field(default_factory=dict)
    """What only the domain knows: components, a completion rate, published rows (`Domain.summary`)."""
    faults: dict[str, Any] = field(default_factory=dict)
    """Of an environment that misbehaves: `settings`, `counts` by kind over all scored episodes, and success
    of the episodes that were `hit` and `spared` (a wait alone is no hit)."""
    fidelity: dict[str, float] = field(default_factory=dict)
    """Share of the scored episodes whose user was `faithful`, and of those in which it strayed, by cause."""
    by_domain: dict[str, dict[str, float]] = field(default_factory=dict)
    """As `by_kind`; of a mixture of domains."""
    by_persona: dict[str, dict[str, float]] = field(default_factory=dict)
    """As `by_kind`; of users with personas."""
    audit: dict[str, Any] = field(default_factory=dict)
    """The five layers, their rules and the figures of behaviour, over scored episodes (`evaluate.audit`)."""
    endpoints: dict[str, Any] = field(default_factory=dict)
    """Role → what this call asked of its endpoints (`gateway.Meter.figures`)."""
    trajectories: list[Trajectory] = field(default_factory=list, repr=False)
    """By task, then by sample."""

    def to_dict(self) -> dict[str, Any]:
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "trajectories"}
        for name in ("benchmark", "faults", "by_domain", "by_persona", "endpoints"):
            if not out[name]:
                del out[name]
        return {
            **out,
            "ci95": list(self.ci95),
            "pass_k": {str(k): v for k, v in self.pass_k.items()},
            "pass_k_ci95": {str(k): list(v) for k, v in self.pass_k_ci95.items()},
            "mua": __version__,
        }

    @property
    def outcomes(self) -> dict[str, list[float]]:
        """Rewards of the scored samples by task id, for `statistics.paired_difference`."""
        return outcomes(self.trajectories)


def outcomes(trajectories: Sequence[Trajectory]) -> dict[str, list[float]]:
    """Rewards by task id; excluded episodes, and tasks that have no other, are left out."""
    out: dict[str, list[float]] = {}
    for t in trajectories:
        if t.reward is not None:
            out.setdefault(t.task_id, []).append(t.reward)
    return out


async def evaluate(
    domain: Domain,
    tasks: Sequence[Task],
    make_agent: MakeAgent,
    make_user: MakeUser,
    settings: EvalSettings,
    limits: Limits = Limits(),
    *,
    out: Path | None = None,
    name: str = "eval",
    model: str = "",
    identity: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
    judge: Ask | None = None,
    endpoints: Callable[[], dict[str, Any]] = dict,
) -> EvalResult:
    """Plays `settings.samples` episodes of each of the first `settings.tasks` tasks, and counts.

    With `out` (a run folder) every finished episode goes to out/eval/NAME.jsonl at once, a later call
    plays only what is missing there, and the figures go to out/eval/NAME.json. `model` says what is
    evaluated, for records; `identity` is whatever else makes this evaluation what it is (a checkpoint's
    hash, the user's settings): a later call with another one does not resume this file. `judge` decides
    about what only a reader can decide, where the domain asks (`Domain.settle`). `endpoints` tells at the end
    what was asked of them.

    Raises MuaError when NAME.jsonl belongs to another evaluation or another process plays it, and
    InfrastructureError when not one episode could be scored.
    """
    started = time.monotonic()
    tasks = list(tasks)[: settings.tasks]
    repeated = [task_id for task_id, n in Counter(t.id for t in tasks).items() if n > 1]
    if not tasks or repeated:
        what = f"has task '{repeated[0]}' twice" if repeated else "is empty"
        raise MuaError(f"the task list of evaluation '{name}' {what}; choose a split of '{domain.name}'.")
    wanted = [(task, sample) for task in tasks for sample in range(settings.samples)]
    about = _about(domain, tasks, settings, limits, model, identity or {})
    done: dict[tuple[str, int], Trajectory] = {}
    with _file(out, name, about, done) as write:
        slots = asyncio.Semaphore(settings.concurrency)

        async def one(task: Task, sample: int) -> None:
            async with slots:
                trajectory = await _episode(
                    domain, task, sample, make_agent, make_user, settings, limits, judge
                )
            done[task.id, sample] = trajectory
            write(trajectory)
            if on_progress is not None:
                on_progress(len(done), len(wanted), trajectory)

        await _all([one(task, sample) for task, sample in wanted if (task.id, sample) not in done])
        trajectories = [done[task.id, sample] for task, sample in wanted]
        result = _count(name, model, domain, settings, tasks, trajectories, time.monotonic() - started)
        result.endpoints = endpoints()
        if out is not None:
            # In task order at last, so that two equal evaluations are equal files.
            lines = "".join(_line(t) for t in trajectories)
            _replace(out / "eval" / f"{name}.jsonl", lines)
            _replace(out / "eval" / f"{name}.json", json.dumps(result.to_dict(), indent=1) + "\n")
        return result


async def _episode(
    domain: Domain,
    task: Task,
    sample: int,
    make_agent: MakeAgent,
    make_user: MakeUser,
    settings: EvalSettings,
    limits: Limits,
    judge: Ask | None,
) -> Trajectory:
    """One episode, played again after infrastructure failures; the last attempt is what is kept."""
    for attempt in range(1, settings.max_attempts + 1):
        # An attempt is the same episode again, so it has the same seeds: with deterministic parts, a
        # failure does not change what is measured.
        parts = (settings.seed, "eval", task.id, sample)
        session = "/".join(map(str, (*parts, attempt)))
        seed = derive_seed("episode", *parts)
        user = None
        try:
            user = make_user(task, derive_seed("user", *parts))
            agent = make_agent(task, session, derive_seed("agent", *parts))  # closed by `play`
            world = misbehaving(domain, task, settings.faults, derive_seed("faults", *parts))
            trajectory = await play(domain, task, agent, user, limits=limits, seed=seed, world=world)
            if judge is not None and trajectory.reward is not None:
                await domain.settle(task, trajectory, judge)
        except InfrastructureError as exc:  # the agent or the user could not be made, or the judge is down
            trajectory = Trajectory(
                domain.name, task.id, task.kind, task.fingerprint, [], Termination.ENGINE_FAILED, seed
            )
            trajectory.detail, trajectory.reason = str(exc), f"not scored: {exc}"
        finally:
            # Users that hold something in an engine have a `close`; most hold nothing.
            getattr(user, "close", lambda: None)()
        trajectory.sample, trajectory.attempts = sample, attempt
        trajectory.unfaithful = fidelity.check(domain, task, trajectory)
        trajectory.trace = None  # tokens are for training; they would multiply the file's size
        if not trajectory.termination.infrastructure:
            break
    return trajectory  # pyright: ignore[reportPossiblyUnbound] - at least one attempt


async def _all(coroutines: list) -> None:
    """Runs them together; the first exception stops the others and is raised as it is."""
    running = [asyncio.ensure_future(c) for c in coroutines]
    try:
        await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _count(
    name: str,
    model: str,
    domain: Domain,
    settings: EvalSettings,
    tasks: Sequence[Task],
    trajectories: list[Trajectory],
    seconds: float,
) -> EvalResult:
    scored = [t for t in trajectories if t.reward is not None]
    if not scored:
        raise InfrastructureError(
            f"evaluation '{name}': not one of {len(trajectories)} episodes could be scored; the first "
            f"failed with: {trajectories[0].detail} Mend that and run the same command again."
        )
    success, interval = success_rate(outcomes(scored), seed=settings.seed)
    home = {task.id: domain.of(task)[0].name for task in tasks}
    return EvalResult(
        name=name,
        model=model,
        domain=domain.name,
        split=settings.split,
        user=scored[0].user,
        temperature=settings.temperature,
        n=len(outcomes(scored)),
        samples=settings.samples,
        success=success,
        ci95=interval,
        pass_k=pass_k(outcomes(scored)),
        pass_k_ci95=pass_k_intervals(outcomes(scored), seed=settings.seed),
        by_kind=_by(scored, lambda t: t.kind),
        terminations=dict(Counter(t.termination.value for t in trajectories)),
        excluded=len(trajectories) - len(scored),
        seconds=round(seconds, 3),
        agent_tokens_per_episode=sum(t.usage.agent_tokens for t in scored) / len(scored),
        turns=sum(t.usage.user_turns for t in scored) / len(scored),
        user_cost=sum(t.usage.user_cost for t in trajectories),
        agent_cost=sum(t.usage.agent_cost for t in trajectories),
        benchmark=domain.summary(trajectories),
        faults=_faults(settings, scored),
        fidelity=fidelity.rates(t.unfaithful for t in scored),
        by_domain=_by(scored, lambda t: home[t.task_id]) if len(domain.members) > 1 else {},
        by_persona=_by(scored, lambda t: t.persona) if any(t.persona for t in scored) else {},
        audit=audit.figures(domain, tasks, scored),
        trajectories=trajectories,
    )


def _by(scored: Sequence[Trajectory], key: Callable[[Trajectory], str]) -> dict[str, dict[str, float]]:
    """Success and number of tasks of each group of episodes."""
    out = {}
    for name in dict.fromkeys(map(key, scored)):
        found = outcomes([t for t in scored if key(t) == name])
        out[name] = {"success": mean_success(found), "n": len(found)}
    return out


def _faults(settings: EvalSettings, scored: Sequence[Trajectory]) -> dict[str, Any]:
    """What faults did to the scored episodes; empty without any."""
    found = active(settings.faults)
    if found is None:
        return {}
    out: dict[str, Any] = {
        "label": found.label,
        "settings": found.model_dump(mode="json", exclude_defaults=True),
        "counts": counts([t.faults for t in scored]),
    }
    for name, group in (
        ("hit", [t for t in scored if was_hit(t.faults)]),
        ("spared", [t for t in scored if not was_hit(t.faults)]),
    ):
        rate = mean_success(outcomes(group)) if group else None
        out[name] = {"episodes": len(group), "success": rate}
    return out


def _about(
    domain: Domain,
    tasks: list[Task],
    settings: EvalSettings,
    limits: Limits,
    model: str,
    identity: Mapping[str, Any],
) -> dict[str, Any]:
    """What makes two evaluations the same one."""
    content = [(t.id, t.fingerprint, t.scenario.persona) for t in tasks]
    faults = active(settings.faults)
    about = {
        "domain": domain.name,
        "policy": _hash(domain.policy),
        "database": domain.digest(),
        "tools": _hash([[t.schema() for t in domain.tools(s).values()] for s in ("assistant", "user")]),
        "tasks": _hash(content),
        **settings.model_dump(exclude={"concurrency", "tasks", "max_attempts", "faults"}),
        **({"faults": faults.model_dump(mode="json")} if faults else {}),
        **limits.model_dump(),
        "model": model,
        **identity,
    }
    return json.loads(json.dumps(about))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _file(
    out: Path | None, name: str, about: dict[str, Any], done: dict[tuple[str, int], Trajectory]
) -> Iterator[Callable[[Trajectory], object]]:
    """Opens NAME.jsonl for appending, after reading what an earlier call finished into `done`.

    Beside it lies NAME.settings, which says what evaluation the lines belong to. The files are this
    process's own until the context ends: .NAME.lock.
    """
    if out is None:
        yield lambda trajectory: None
        return
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise MuaError(f"'{name}' cannot be the name of an evaluation: use letters, digits, '_', '-' and '.'")
    folder = out / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    path, settings_path = folder / f"{name}.jsonl", folder / f"{name}.settings"
    lock = take_lock(
        folder / f".{name}.lock",
        f"Another process ({{owner}}) is playing evaluation '{name}' into {folder}. Wait for it, stop it, or "
        "give this one another place: --out DIR.",
    )
    with lock:
        if path.exists():
            _check_same(path, settings_path, about)
            _drop_torn_line(path)
            # What infrastructure broke last time gets another chance; the lines in the file are rewritten
            # without it at the end.
            for t in read_trajectories(path):
                if t.reward is not None:
                    done[t.task_id, t.sample] = t
        _replace(settings_path, json.dumps(about, indent=1) + "\n")
        with path.open("ab", buffering=0) as file:
            # One unbuffered write a line: a kill leaves whole lines, or one torn line at the end.
            yield lambda trajectory: file.write(_line(trajectory).encode())


def _check_same(path: Path, settings_path: Path, about: dict[str, Any]) -> None:
    try:
        before = json.loads(settings_path.read_text())
    except (OSError, ValueError):
        before = {}
    changed = sorted(k for k in {*before, *about} if before.get(k) != about.get(k))
    if changed:
        raise MuaError(
            f"{path} holds another evaluation (different: {', '.join(changed)}), and the two must not be "
            "mixed. Give this one another name, or remove that file to start anew."
        )


def _drop_torn_line(path: Path) -> None:
    with path.open("rb+") as file:
        data = file.read()
        if not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)


def _line(trajectory: Trajectory) -> str:
    return json.dumps(trajectory.to_dict(), ensure_ascii=False) + "\n"


def _replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
