"""Agents and users as the command line names them: a folder, a run, an endpoint.

Invariant: a model of a run is spoken to as the run's own configuration says, unless told otherwise; the
name of an evaluation tells how it differs from the run's own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import pipeline
from .chat import Message
from .config import Config
from .domain import Ask, Domain
from .endpoint import EndpointSettings
from .errors import MuaError
from .faults import active
from .rollout import MakeAgent
from .trajectory import Trajectory, read_trajectories

ENDPOINT = "endpoint:"
GATEWAY = "gateway:"
"""Before the name of a gateway in the configuration, or of a YAML file of one."""


@dataclass(frozen=True)
class Speaker:
    """A model that can be the agent."""

    label: str
    """Its name in records and tables: `base`, `cold_start`, `rl`, a folder's or an endpoint model's name."""
    path: str = ""
    """Model folder (or `smollm2`); empty for an endpoint."""
    endpoint: str = ""
    """Model name at the endpoint, or the gateway's; empty for a folder."""
    gateway: str = ""
    """The gateway, where it is one."""
    run: Path | None = None
    """The run folder that the model belongs to."""


def find(name: str) -> list[Speaker]:
    """The models that a name stands for: all those of a run folder, else one. Raises MuaError."""
    from .models import SMOLLM2, check_model

    if served := served_at(name):
        model = served.get("model") or Path(served["gateway"]).stem
        return [Speaker(label=model, endpoint=model, gateway=served.get("gateway", ""))]
    if name == "expert":
        raise MuaError(
            "the expert is a program that reads its partner's goal, so it can only talk to the agenda user; "
            "name a model: its folder, a run folder, or endpoint:NAME."
        )
    folder = Path(name).expanduser()
    if (folder / "config.yaml").is_file():
        there = [
            Speaker(stage, str(folder / "models" / stage), run=folder)
            for stage in pipeline.STAGES
            if (folder / "models" / stage).is_dir()
        ]
        if not there:
            raise MuaError(
                f"the run in {folder} has no model yet; make one with "
                f"`mua quickstart --out {folder}`, or name another folder."
            )
        return there
    if (folder / "state.json").is_file() and (folder / "model").is_dir():  # a checkpoint
        return [Speaker(folder.name, str(folder / "model"), run=_run_of(folder))]
    check_model(name)
    return [Speaker(folder.resolve().name if name != SMOLLM2 else name, name, run=_run_of(folder))]


def served_at(name: str, base_url: str = "", api_key_env: str = "") -> dict[str, Any]:
    """The settings of endpoint:NAME or gateway:NAME that differ from the usual ones; empty for other names.
    Raises MuaError."""
    given = {"base_url": base_url, "api_key_env": api_key_env}
    given = {key: value for key, value in given.items() if value}
    if name.startswith(ENDPOINT):
        if name == ENDPOINT:
            raise MuaError("'endpoint:' lacks the name of the model, as its server knows it: endpoint:NAME.")
        return {"model": name.removeprefix(ENDPOINT), **given}
    if not name.startswith(GATEWAY):
        return {}
    if name == GATEWAY:
        raise MuaError("'gateway:' lacks a name: one of `gateways` in the configuration, or a YAML file.")
    if given:
        raise MuaError(
            f"{name}: a gateway has addresses and keys of its own; leave --base-url and --api-key-env out."
        )
    return {"gateway": name.removeprefix(GATEWAY)}


def _run_of(folder: Path) -> Path | None:
    """The run folder of RUN/models/rl or RUN/checkpoints/step_000005."""
    run = folder.resolve().parent.parent
    return run if (run / "config.yaml").is_file() else None


def run_of(name: str) -> Path | None:
    """The run folder that a name is, or that it lies in."""
    folder = Path(name).expanduser()
    return folder if name and (folder / "config.yaml").is_file() else _run_of(folder)


def user_overrides(name: str, run: Path | None, base_url: str = "", api_key_env: str = "") -> dict[str, Any]:
    """What `--user NAME` changes in a configuration: agenda, endpoint, endpoint:MODEL or a model folder."""
    if name == "agenda":
        return {"eval_user.kind": "agenda"}
    if name == "endpoint":  # as configured: the options speak of endpoint:NAME
        return {"eval_user.kind": "endpoint"}
    if name.startswith(GATEWAY):  # the agent may be an endpoint, whose address and key these are then
        return {"eval_user.kind": "endpoint", "eval_user.endpoint": served_at(name)}
    if served := served_at(name, base_url, api_key_env):
        named = {f"eval_user.endpoint.{key}": value for key, value in served.items()}
        return {"eval_user.kind": "endpoint", **named}
    folder = Path(name).expanduser()
    if (folder / "config.yaml").is_file():
        folder = folder / "models" / "user"
        name = str(folder)
    from .models import check_model

    check_model(name)
    own = run is not None and folder.resolve() == (run / "models" / "user").resolve()
    return {"eval_user.kind": "local", "eval_user.model": "" if own else name}


def teacher_overrides(
    names: Mapping[str, str], base_urls: Mapping[str, str], api_key_envs: Mapping[str, str]
) -> dict[str, Any]:
    """What `--agent`, `--user` and `--judge` of a teacher change in a configuration; all three mappings are
    by role. Where a role has no address of its own, it is the agent's, with the agent's key."""
    found: dict[str, Any] = {}
    for role, name in names.items():
        if not name or (role == "user" and name == "agenda"):
            continue
        if name.startswith(GATEWAY):
            found[f"coldstart.teacher.{role}"] = served_at(name)
            continue
        if not name.removeprefix(ENDPOINT) or not name.startswith(ENDPOINT):
            raise MuaError(
                f"--{role} {name}: a teacher is a model behind an endpoint: endpoint:NAME or gateway:NAME."
            )
        where = role if base_urls.get(role) else "agent"
        given = {
            "model": name.removeprefix(ENDPOINT),
            "base_url": base_urls.get(where),
            "api_key_env": api_key_envs.get(role) or (api_key_envs.get("agent") if where == "agent" else ""),
        }
        found.update({f"coldstart.teacher.{role}.{key}": value for key, value in given.items() if value})
    if not found and any([*base_urls.values(), *api_key_envs.values()]):
        raise MuaError("addresses and keys are those of a teacher; name one: --agent endpoint:NAME.")
    return found


async def agent_makers(
    config: Config,
    domain: Domain,
    speaker: Speaker,
    players: pipeline.Players,
    base_url: str = "",
    api_key_env: str = "",
) -> tuple[Callable[[float], MakeAgent], str]:
    """(temperature → maker of agents, what identifies the weights). An endpoint is asked whether it is there.

    Close `players` afterwards.
    """
    if not speaker.endpoint:
        from .models import SMOLLM2

        format, engine = await pipeline.ready_agent(config, speaker.path, players)
        packaged = speaker.path == SMOLLM2
        identity = speaker.path if packaged else pipeline.weights_digest(Path(speaker.path))
        return lambda t: pipeline.agent_maker(config, domain, format, engine, t), identity
    from .agents.endpoint import EndpointAgent

    name = f"{GATEWAY}{speaker.gateway}" if speaker.gateway else f"{ENDPOINT}{speaker.endpoint}"
    settings = _endpoint_settings(name, config, base_url, api_key_env)
    first = players.endpoint(settings, "agent")
    await first.check(list(domain.task_tools(domain.tasks(config.eval.split)[0]).values()))

    def at(temperature: float) -> MakeAgent:
        endpoint = players.endpoint(settings.model_copy(update={"temperature": temperature}), "agent")
        return lambda task, session, seed: EndpointAgent(endpoint, domain.task_tools(task), seed)

    return at, f"{settings.place} {speaker.endpoint}"


def _endpoint_settings(name: str, config: Config, base_url: str, api_key_env: str) -> EndpointSettings:
    data = {**served_at(name, base_url, api_key_env), "max_tokens": config.max_step_tokens}
    try:
        return EndpointSettings.model_validate(data)
    except ValueError as exc:
        raise MuaError(f"--base-url or --api-key-env: {_first_problem(exc)}") from None


async def judge_maker(
    config: Config, name: str, players: pipeline.Players, base_url: str = "", api_key_env: str = ""
) -> tuple[str, Ask]:
    """(name, judge) of `endpoint:NAME` or `gateway:NAME`, at temperature 0. It is asked once whether it is
    there."""
    return await _asker("judge", config, name, players, base_url, api_key_env, 0.0)


async def teacher_maker(
    config: Config, name: str, players: pipeline.Players, base_url: str = "", api_key_env: str = ""
) -> tuple[str, Ask]:
    """(name, teacher) of `endpoint:NAME` or `gateway:NAME`, who writes texts; no two of its answers have one
    seed."""
    return await _asker("teacher", config, name, players, base_url, api_key_env, 0.7)


async def draftsman(
    name: str, players: pipeline.Players, base_url: str = "", api_key_env: str = ""
) -> tuple[Ask, Any]:
    """(a teacher that writes whole files, its endpoint, which counts what it costs)."""
    config = Config(max_step_tokens=16_384)
    _, ask = await _asker("teacher", config, name, players, base_url, api_key_env, 0.7, timeout=900.0)
    return ask, players.endpoints[-1]


async def _asker(
    role: str,
    config: Config,
    name: str,
    players: pipeline.Players,
    base_url: str,
    api_key_env: str,
    temperature: float,
    **how: Any,
) -> tuple[str, Ask]:
    from .endpoint import wire

    if not served_at(name):
        raise MuaError(
            f"--{role} {name}: a {role} is a model behind an endpoint: endpoint:NAME or gateway:NAME."
        )
    settings = _endpoint_settings(name, config, base_url, api_key_env)
    endpoint = players.endpoint(settings.model_copy(update={"temperature": temperature, **how}), role)
    await endpoint.check([])
    asked = itertools.count()

    async def ask(messages: Sequence[Message]) -> str:
        return (await endpoint.chat(wire(messages), [], next(asked) if temperature else 0)).text

    return f"{settings.place} {settings.model}", ask


def _first_problem(exc: Any) -> str:
    return exc.errors()[0]["msg"].removeprefix("Value error, ") if hasattr(exc, "errors") else str(exc)


def eval_name(speaker: Speaker, config: Config, usual: Config, temperature: float) -> str:
    """The name of an evaluation: model and temperature, then what differs from the `usual` one."""
    parts = [pipeline.eval_name(speaker.label, temperature)]
    if config.domain != usual.domain:
        parts.append(config.domain)
    if config.eval.split != usual.eval.split:
        parts.append(config.eval.split)
    if config.eval_user != usual.eval_user:
        parts.append(pipeline.user_name(config.eval_user))
    if config.eval.samples != usual.eval.samples:
        parts.append(f"x{config.eval.samples}")
    if config.eval.tasks != usual.eval.tasks:
        parts.append(f"n{config.eval.tasks or 'all'}")
    faults = active(config.eval.faults)
    if faults != active(usual.eval.faults):
        parts.append(f"faults-{faults.label}" if faults else "no-faults")
    return "".join(c if c.isalnum() or c in "_.-" else "-" for c in "_".join(parts)).lstrip("-.")


def check_unseen(config: Config, domain: Domain, speaker: Speaker) -> None:
    """Refuses to evaluate a trained model on tasks of a benchmark that it has learned from."""
    from .benchmarks import guards, is_benchmark

    if speaker.run is None or speaker.label == "base" or config.guards.overlap == "allow":
        return
    if any(is_benchmark(part.name) for part in domain.members):
        guards.check_unseen(domain, config.eval.split, pipeline.trained_on(speaker.run))


def with_personas(name: str) -> tuple[str, dict[str, Any]]:
    """(user, what its personas change in a configuration) of USER or USER+PERSONAS: `agenda+difficult`."""
    from .users.personas import check_mix

    user, plus, mix = name.partition("+")
    if not plus:
        return name, {}
    try:
        return user, {"eval_user.personas": check_mix(mix)}
    except ValueError as exc:
        raise MuaError(f"--users {name}: {exc}.") from None


async def compare(
    settings: Mapping[str, Config],
    usual: Config,
    speaker: Speaker,
    out: Path,
    **how: Any,
) -> dict[str, list[Any]]:
    """`evaluate` of one agent with several users: name of a user → its `EvalResult`s; `settings` has the
    configuration of each. All of them play the same tasks. The figures go to OUT/eval/users_AGENT.json."""
    results = {}
    for name, config in settings.items():
        results[name] = await evaluate(config, usual, [speaker], out, **how)
    path = out / "eval" / f"users_{speaker.label.replace('/', '-')}.json"
    data = {name: [r.to_dict() for r in found] for name, found in results.items()}
    path.write_text(json.dumps({"agent": speaker.label, "users": data}, indent=1) + "\n", encoding="utf-8")
    return results


def against_imported(
    results: Mapping[str, list[Any]], agent: str, out: Path, imported: Sequence[Trajectory], embed: str = ""
) -> dict[str, list[Any]]:
    """How far the users of `compare` are from imported ones: user → its `transcripts.distance.Distance`s,
    over all its episodes. They stand in OUT/eval/users_AGENT.json, too. `embed` is a model's folder."""
    from .transcripts.distance import distances, model_embeddings

    vectors = model_embeddings(embed) if embed else None
    theirs = [t.messages for t in imported]
    far = {}
    for name, found in results.items():
        ours = [t.messages for r in found for t in read_trajectories(out / "eval" / f"{r.name}.jsonl")]
        far[name] = distances(ours, theirs, embed=vectors)
    path = out / "eval" / f"users_{agent.replace('/', '-')}.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["imported"] = {name: [d.to_dict() for d in found] for name, found in far.items()}
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return far


async def evaluate(
    config: Config,
    usual: Config,
    speakers: Sequence[Speaker],
    out: Path,
    *,
    base_url: str = "",
    api_key_env: str = "",
    judge: str = "",
    report: pipeline.Report = pipeline.silent,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Any]:
    """Evaluates each speaker at each temperature of `config.eval`, into OUT/eval; resumes what is there.

    `usual` is the configuration that names are short for; `judge` names the endpoint that decides what only
    a reader can decide. Returns `EvalResult`s; raises Stopped.
    """
    from .domains import load

    domain = load(config.domain)
    results = []
    for speaker in speakers:
        check_unseen(config, domain, speaker)
        players = pipeline.Players.of(config, out)
        try:
            make_user, user = await pipeline.user_maker(speaker.run, config, config.eval_user, players)
            at, weights = await agent_makers(config, domain, speaker, players, base_url, api_key_env)
            ask = await judge_maker(config, judge, players, base_url, api_key_env) if judge else None
            for temperature in config.eval.temperatures:
                results.append(
                    await pipeline.evaluate_agent(
                        config,
                        out,
                        at(temperature),
                        make_user,
                        temperature=temperature,
                        name=eval_name(speaker, config, usual, temperature),
                        model=speaker.label,
                        user=user,
                        weights=weights,
                        judge=ask,
                        report=report,
                        should_stop=should_stop,
                        endpoints=players.figures,
                    )
                )
        finally:
            await players.close()
    return results
