"""Whole training runs with faults everywhere, and what is promised of them.

A campaign trains twice with one seed, at the same time: with nothing wrong, and under a fault plan, started
again whenever the plan ended it. Then it looks for

- `completes`: the run came to its end, each process within its time, and never silent for too long;
- `rewards`: every stored reward is what grading the stored messages again gives, and nothing that
  infrastructure broke has one;
- `whole`: no episode that was finished is missing, none is there twice, and no line is torn;
- `equal`: every episode that both runs completed has the same messages and the same reward in both;
- `secrets`: no planted key is in any file or in anything a process said, however it is spelt or packed;
- `processes`: nothing that was started is left running.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..domain import Domain
from ..domains import load
from ..errors import MuaError
from ..trajectory import Trajectory, read_trajectories
from .people import People
from .plan import FaultPlan, read_plan
from .secrets import leaks
from .server import FakeServer

HERE = Path(__file__).parent / "lockers"
SECRETS = {
    "MUA_CHAOS_KEY": "sk-planted/for+the=endpoint-4f9X",
    "MUA_CHAOS_PASSWORD": 'planted "in" the/environment\'s & <all>-8aQ',
}
"""Planted in the environment of every run: the endpoint's key, and one that nobody has any business with.
Their characters are those that JSON, addresses and HTML spell in another way."""
IN_THE_DOMAIN = "planted/in+the=domain-file-7Q"
"""Planted in lockers/domain.yaml, as the key of its server."""
IN_A_URL = "planted-in-a-url-2kW"
"""Planted in the environment as part of an address with a login."""
SPARE_STARTS = 6
"""Times that a run may be started again though the plan did not end it."""
SILENCE = 180.0
"""Seconds without a byte in the folder of a run, besides those of a stalled endpoint, after which it counts
as hanging: no wait of the run is half as long, but a busy machine needs a minute to import PyTorch."""


@dataclass
class Finding:
    """What one run came to."""

    name: str
    seconds: float = 0.0
    starts: list[dict[str, Any]] = field(default_factory=list)
    faults: dict[str, dict[str, int]] = field(default_factory=dict)
    """Part → what went wrong there, and how often."""
    longest_silence: float = 0.0
    problems: dict[str, list[str]] = field(default_factory=dict)
    """Promise → how it was broken."""
    figures: dict[str, Any] = field(default_factory=dict)

    def problem(self, promise: str, what: str) -> None:
        self.problems.setdefault(promise, []).append(what[:500])


def campaign(plan_path: Path, out: Path, config: Path = HERE / "run.yaml", minutes: float = 20.0) -> dict:
    """Both runs and all checks; what was found, which is also in OUT/chaos.json. OUT must be new or empty."""
    plan = read_plan(plan_path)
    if out.exists() and any(out.iterdir()):
        raise MuaError(f"{out} is not empty; name another folder for the campaign.")
    out.mkdir(parents=True, exist_ok=True)
    (out / "plan.yaml").write_text(plan_path.read_text(encoding="utf-8"), encoding="utf-8")
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    lockers = str(HERE / "domain.yaml")
    settings["domain"] = settings.get("domain", lockers).replace("LOCKERS", lockers)
    domain = load(settings["domain"])
    began = time.monotonic()

    def run(name: str, its: FaultPlan) -> Finding:
        return _run(name, its, settings, domain, out, minutes * 60)

    with concurrent.futures.ThreadPoolExecutor() as both:
        quiet = both.submit(run, "quiet", plan.without_faults())
        runs = {"faulty": run("faulty", plan), "quiet": quiet.result()}
    for name, found in runs.items():
        check_records(found, domain, out / name / "run")
        check_secrets(found, out / name)
    compare(runs["faulty"], out / "quiet" / "run", out / "faulty" / "run")
    result = {
        "plan": plan.model_dump(mode="json"),
        "seconds": time.monotonic() - began,
        "runs": {name: dataclasses.asdict(found) for name, found in runs.items()},
        "passed": not any(found.problems for found in runs.values()),
    }
    (out / "chaos.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _run(
    name: str, plan: FaultPlan, settings: Mapping[str, Any], domain: Domain, out: Path, seconds: float
) -> Finding:
    """One run, started again until it is through."""
    found, folder = Finding(name), out / name
    folder.mkdir()
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan.model_dump(mode="json")), encoding="utf-8")
    began = time.monotonic()
    # A run may end for a fault of the endpoint at its start, where it is asked whether it is there.
    spare = SPARE_STARTS if plan.user.rate else 0
    people = People(domain, plan, folder, SECRETS["MUA_CHAOS_KEY"])
    with FakeServer(people, stall=plan.stall_seconds) as server:
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump({**settings, **_users(server.url, plan)}), encoding="utf-8")
        while True:
            start = _start(found, folder, config, plan, seconds - (time.monotonic() - began))
            if start["exit"] == 0 or found.problems or len(found.starts) > len(plan.interruptions) + spare:
                break
        found.figures["requests"] = len(server.requests)
    found.seconds = time.monotonic() - began
    if found.starts[-1]["exit"] != 0:
        found.problem("completes", f"it did not come to its end: {found.starts[-1]}")
    found.faults = _counted(folder / "faults.jsonl")
    return found


def _users(url: str, plan: FaultPlan) -> dict[str, Any]:
    endpoint = {
        "base_url": url,
        "model": "people",
        "api_key_env": "MUA_CHAOS_KEY",
        "timeout": plan.timeout_seconds,
        "retries": 4,
        "retry_delay": 0.05,
        "concurrency": 16,
    }
    user = {"kind": "endpoint", "endpoint": endpoint}
    return {"train_user": user, "eval_user": user}


def _start(found: Finding, folder: Path, config: Path, plan: FaultPlan, seconds: float) -> dict[str, Any]:
    """One process, until it ends or hangs."""
    number = len(found.starts)
    ended = sum(_counted(folder / "faults.jsonl").get("process", {}).values())
    log = folder / f"said-{number}.txt"
    arguments = ["quickstart", "--config", str(config), "--out", str(folder / "run")]
    command = [sys.executable, "-m", "mua.testing.child", str(folder / "plan.yaml"), str(folder), str(ended)]
    environment = {
        **os.environ,
        **SECRETS,
        "MUA_CHAOS_URL": f"postgres://desk:{IN_A_URL}@localhost/lockers",
        "MUA_CHAOS_RUN": str(folder),
        "COLUMNS": "200",
    }
    began = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--", *arguments], stdout=file, stderr=file, env=environment, start_new_session=True
        )
        silence, seen, since = 0.0, -1, began
        while process.poll() is None:
            time.sleep(0.1)
            now, size = time.monotonic(), _size(folder)
            if size != seen:
                seen, since = size, now
            silence = max(silence, now - since)
            if silence > SILENCE + plan.stall_seconds or now - began > seconds:
                process.kill()
                process.wait()
                found.problem("completes", f"start {number}: silent for {silence:.0f} s")
    words = log.read_text(encoding="utf-8", errors="replace")
    start = {
        "exit": process.returncode,
        "seconds": round(time.monotonic() - began, 1),
        "silence": round(silence, 1),
        "said": words.strip().splitlines()[-1][:300] if words.strip() else "",
    }
    found.starts.append(start)
    found.longest_silence = max(found.longest_silence, silence)
    if "Traceback" in words:
        at = words.rindex("Traceback")
        found.problem("completes", f"start {number} ended with a traceback: {words[at:][-400:]}")
    if process.returncode == 1 and "error: " not in words:
        found.problem("completes", f"start {number} ended without a reason: {words[-300:]}")
    for left in _left_running(folder):
        found.problem("processes", f"start {number} left {left}")
    return start


def _size(folder: Path) -> int:
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                at = os.stat(os.path.join(place, name))
            except OSError:
                continue
            total += at.st_size + at.st_mtime_ns
    return total


def _left_running(folder: Path) -> list[str]:
    """Processes of a run that are still there some seconds after it ended."""
    import psutil

    def those() -> list[Any]:
        mine = []
        for process in psutil.process_iter():
            try:
                if process.status() != "zombie" and process.environ().get("MUA_CHAOS_RUN") == str(folder):
                    mine.append(process)
            except psutil.Error:
                continue
        return mine

    deadline = time.monotonic() + 15
    while (alive := those()) and time.monotonic() < deadline:
        time.sleep(0.2)
    out = [" ".join(p.cmdline())[:200] for p in alive]
    for process in alive:
        process.kill()
    return out


def _counted(path: Path) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        data = json.loads(line)
        counts.setdefault(data["part"], Counter())[data["kind"]] += 1
    return {part: dict(sorted(kinds.items())) for part, kinds in sorted(counts.items())}


# ---------------------------------------------------------------- what is promised


def _episodes(run: Path) -> dict[tuple[str, int, str, int], Trajectory]:
    """(file, step, task, seed) → every stored episode of training and evaluation."""
    files = [run / "trajectories.jsonl", *sorted((run / "eval").glob("*.jsonl"))]
    out: dict[tuple[str, int, str, int], Trajectory] = {}
    for file in files:
        for t in read_trajectories(file) if file.exists() else ():
            key = (file.name, t.step, t.task_id, t.seed)
            if key in out:
                raise MuaError(f"{file} has the episode {key} twice")
            out[key] = t
    return out


def check_records(found: Finding, domain: Domain, run: Path) -> None:
    """Promises `rewards` and `whole`, of the records of a finished run."""
    if not (run / "metrics.jsonl").exists():
        return found.problem("whole", "there are no records")
    try:
        episodes = _episodes(run)
    except MuaError as exc:
        return found.problem("whole", str(exc))
    wrong = 0
    for key, t in episodes.items():
        if t.reward is None:
            continue
        again = domain.grade(domain.task(t.task_id), t.messages, t.termination)
        if again.reward != t.reward or t.termination.infrastructure:
            wrong += 1
            found.problem(
                "rewards", f"{key}: stored {t.reward}, graded again {again.reward} ({again.reason})"
            )
    raw = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [json.loads(line) for line in raw]
    if [line["step"] for line in lines] != list(range(1, len(lines) + 1)):
        found.problem("whole", f"the steps are {[line['step'] for line in lines]}")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    size = config["train"]["rollout"]["group_size"]
    if len(lines) != config["train"]["steps"]:
        found.problem("whole", f"{len(lines)} steps of {config['train']['steps']}")
    scored = Counter(
        key[1] for key, t in episodes.items() if key[0] == "trajectories.jsonl" and t.reward is not None
    )
    for line in lines:
        there = scored[line["step"]] + line["excluded"] + line["cut"] + line["unfaithful"]
        if there != line["groups_played"] * size:
            found.problem(
                "whole", f"step {line['step']} has {there} episodes of {line['groups_played'] * size}"
            )
    played = [key for key in episodes if key[0] != "trajectories.jsonl"]
    evals = len(list((run / "eval").glob("*.jsonl")))
    if evals == 0 or len(played) != evals * config["eval"]["tasks"] * config["eval"]["samples"]:
        found.problem("whole", f"{len(played)} episodes in {evals} evaluations")
    if not (run / "report.html").exists() or not (run / "summary.json").exists():
        found.problem("whole", "there is no report")
    rewards = [t.reward for t in episodes.values() if t.reward is not None]
    found.figures |= {
        "episodes": len(episodes),
        "scored": len(rewards),
        "mean_reward": sum(rewards) / max(1, len(rewards)),
        "graded_again": len(rewards),
        "disagreements": wrong,
        "excluded": sum(line["excluded"] for line in lines),
        "retried": sum(line["retried"] for line in lines),
        "attempts": sum(t.attempts for t in episodes.values()),
    }


def compare(found: Finding, without: Path, under: Path) -> None:
    """Promise `equal`: episode by episode, those that both runs completed."""
    try:
        quiet, faulty = _episodes(without), _episodes(under)
    except MuaError as exc:
        return found.problem("equal", str(exc))
    both = [k for k in quiet if k in faulty and quiet[k].reward is not None and faulty[k].reward is not None]
    rewards = [k for k in both if quiet[k].reward != faulty[k].reward]
    words = [k for k in both if quiet[k].messages != faulty[k].messages]
    alone = sorted(k for k in faulty if k not in quiet)
    for key in rewards[:5]:
        found.problem("equal", f"{key}: reward {quiet[key].reward} without faults, {faulty[key].reward} with")
    for key in [*alone[:5]]:
        found.problem("equal", f"{key} is no episode of the run without faults")
    found.figures |= {
        "compared": len(both),
        "other_rewards": len(rewards),
        "other_messages": len(words),
        "not_completed": len(quiet) - len(both),
        "same_weights": _weights(without) == _weights(under),
    }


def _weights(run: Path) -> bytes:
    file = run / "models" / "rl" / "model.safetensors"
    return file.read_bytes() if file.exists() else b""


def check_secrets(found: Finding, folder: Path, more: Sequence[str] = ()) -> None:
    """Promise `secrets`, of everything in a folder; our own plans and logs of faults are in there, too."""
    for path, secret in leaks(folder, [*SECRETS.values(), IN_THE_DOMAIN, IN_A_URL, *more]):
        found.problem("secrets", f"{path.relative_to(folder)} has {secret}")
    found.figures["files_searched"] = sum(1 for p in folder.rglob("*") if p.is_file())
