"""A run folder as a run of verl: its data set, its agent loop, all options of `main_ppo`, and the start.

Invariant: what a configuration says that verl cannot do is refused by name before anything starts; every
option that is passed exists in verl's own configuration (Hydra refuses others).
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...config import Config
from ...domains import load
from ...errors import MuaError
from ...pipeline import Run, Stopped, stages
from ...seeds import derive_seed
from . import dataset
from .groups import AGENT

VERSIONS = "0.9.1 up to, but not with, 0.10"


@dataclasses.dataclass(frozen=True)
class Launch:
    """What `prepare` has written, and how it is started."""

    folder: Path
    options: dict[str, Any]
    """verl's configuration, dotted; only what differs from its own defaults."""

    @property
    def command(self) -> list[str]:
        return [
            sys.executable,
            "-m",
            "verl.trainer.main_ppo",
            *map(option, self.options, self.options.values()),
        ]

    @property
    def shown(self) -> str:
        """The command for a shell, an option a line."""
        words = [shlex.quote(word) for word in self.command]
        return " \\\n  ".join([" ".join(words[:3]), *words[3:]])


def check(config: Config, tasks: int) -> None:
    """Raises MuaError for what verl cannot do, or this configuration does not say."""
    train, grpo, rollout = config.train, config.train.grpo, config.train.rollout
    lacks = {
        "train.grpo.advantages leave_one_out": grpo.advantages == "leave_one_out",
        "train.grpo.ratio other than token": grpo.ratio != "token",
        "train.grpo.kl_in reward": grpo.kl_in != "loss",
        "train.grpo.credit_discount": grpo.credit_discount != 1.0,
        "train.grpo.failed_call_weight": grpo.failed_call_weight != 0.0,
        "train.grpo.overlong_length": grpo.overlong_length is not None,
        "train.curriculum": train.curriculum is not None,
        "train.staleness (see verl.options trainer.v1.trainer_mode)": train.staleness != 0,
        "train.rollout.refill_rounds other than 0 and null": rollout.refill_rounds not in (0, None),
        "train.rollout.spare_groups": rollout.spare_groups != 0,
        "local user model (serve it: mua serve, and name the endpoint)": config.train_user.kind == "local"
        or (config.verl.validate_every is not None and config.eval_user.kind == "local"),
    }
    found = [name for name, there in lacks.items() if there]
    if found:
        raise MuaError(
            f"verl has no {'; nor '.join(found)}. Leave it out for this engine, or train on one machine."
        )
    if tasks < rollout.groups:
        raise MuaError(
            f"verl fills a step with {rollout.groups} different tasks (train.rollout.groups), but split "
            f"'{config.train_split}' has {tasks}: lower it."
        )
    if rollout.groups % train.minibatches:
        raise MuaError(
            f"train.minibatches={train.minibatches} must divide train.rollout.groups={rollout.groups}."
        )


def options(config: Config, model: Path, folder: Path, tasks: int) -> dict[str, Any]:
    """verl's options for a configuration, dotted as its command line has them.

    `model` is the folder to start from, `folder` where data set, agent loop and checkpoints are, `tasks` the
    rows of the data set. The names of ours that have another meaning there stand in docs/scale-out.md.
    """
    verl, train, grpo, rollout = config.verl, config.train, config.train.grpo, config.train.rollout
    actor, server = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    aggregation = {
        "token_mean": "token-mean",
        "sequence_mean": "seq-mean-token-mean",
        "constant": "seq-mean-token-sum-norm",
    }
    update_tokens = verl.update_tokens or -(-verl.context // verl.sequence_parallel)
    steps_an_epoch = tasks // rollout.groups
    temperature = config.eval.temperatures[0] if config.eval.temperatures else 0.0
    found: dict[str, Any] = {
        "algorithm.adv_estimator": "grpo",
        "algorithm.norm_adv_by_std_in_grpo": grpo.advantages == "std",
        "algorithm.use_kl_in_reward": False,
        "algorithm.filter_groups.enable": rollout.refill_rounds is None,
        "algorithm.rollout_correction.rollout_is": None if grpo.correction == "none" else grpo.correction,
        "algorithm.rollout_correction.rollout_is_threshold": grpo.correction_cap,
        "data.train_files": str(folder / "train.parquet"),
        "data.val_files": str(folder / "val.parquet"),
        "data.train_batch_size": rollout.groups,
        "data.max_prompt_length": verl.prompt_tokens,
        "data.max_response_length": verl.response_tokens,
        "data.dataloader_num_workers": 1,
        "data.seed": derive_seed("verl data", config.seed) % 2**31,
        "actor_rollout_ref.model.path": str(model),
        "actor_rollout_ref.model.use_remove_padding": True,
        "actor_rollout_ref.model.enable_gradient_checkpointing": True,
        f"{actor}.ppo_mini_batch_size": rollout.groups // train.minibatches,
        f"{actor}.ppo_epochs": train.epochs,
        f"{actor}.shuffle": train.minibatches > 1,
        f"{actor}.data_loader_seed": derive_seed("verl actor", config.seed) % 2**31,
        f"{actor}.use_dynamic_bsz": True,
        f"{actor}.ppo_max_token_len_per_gpu": update_tokens,
        f"{actor}.ulysses_sequence_parallel_size": verl.sequence_parallel,
        f"{actor}.clip_ratio": grpo.clip_low,
        f"{actor}.clip_ratio_low": grpo.clip_low,
        f"{actor}.clip_ratio_high": grpo.clip_high,
        f"{actor}.clip_ratio_c": NO_DUAL_CLIP if grpo.dual_clip is None else grpo.dual_clip,
        f"{actor}.loss_agg_mode": aggregation[grpo.aggregation],
        f"{actor}.loss_scale_factor": grpo.constant_length if grpo.aggregation == "constant" else None,
        f"{actor}.entropy_coeff": grpo.entropy_coefficient,
        f"{actor}.use_kl_loss": train.measure_kl or grpo.kl_coefficient > 0,
        f"{actor}.kl_loss_coef": grpo.kl_coefficient,
        f"{actor}.kl_loss_type": {"k1": "kl", "k2": "mse", "k3": "low_var_kl"}[grpo.kl],
        f"{actor}.grad_clip": train.grad_clip,
        f"{actor}.optim.lr": train.lr,
        f"{actor}.optim.lr_warmup_steps": train.warmup_steps,
        f"{actor}.optim.lr_scheduler_type": train.schedule,
        f"{actor}.optim.weight_decay": train.weight_decay,
        f"{actor}.optim.betas": list(train.betas),
        f"{actor}.optim.clip_grad": train.grad_clip,
        f"{actor}.fsdp_config.param_offload": verl.offload,
        f"{actor}.fsdp_config.optimizer_offload": verl.offload,
        "actor_rollout_ref.ref.fsdp_config.param_offload": verl.offload,
        f"{server}.name": verl.server,
        f"{server}.n": rollout.group_size,
        f"{server}.temperature": train.temperature,
        f"{server}.tensor_model_parallel_size": verl.tensor_parallel,
        f"{server}.gpu_memory_utilization": verl.gpu_memory,
        f"{server}.max_model_len": verl.context,
        f"{server}.calculate_log_probs": True,
        f"{server}.agent.num_workers": verl.workers,
        f"{server}.agent.default_agent_loop": AGENT,
        f"{server}.agent.agent_loop_config_path": str(folder / "agent_loop.yaml"),
        f"{server}.val_kwargs.n": config.eval.samples,
        f"{server}.val_kwargs.temperature": temperature,
        f"{server}.val_kwargs.do_sample": temperature > 0,
        "trainer.nnodes": verl.nodes,
        "trainer.n_gpus_per_node": verl.gpus,
        "trainer.total_training_steps": train.steps,
        "trainer.total_epochs": -(-train.steps // steps_an_epoch) + 1,
        "trainer.save_freq": train.checkpoint_every,
        "trainer.max_actor_ckpt_to_keep": train.keep_checkpoints,
        "trainer.test_freq": verl.validate_every or -1,
        "trainer.val_before_train": verl.validate_every is not None,
        "trainer.logger": ["console", "file", *config.track],
        "trainer.project_name": config.track_project,
        "trainer.experiment_name": folder.parent.name,
        "trainer.default_local_dir": str(folder / "checkpoints"),
        # Where the figures go; the process that logs may be on another machine than this one.
        "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl"),
    }
    if config.model.lora is not None:
        lora = config.model.lora
        found["actor_rollout_ref.model.lora_rank"] = lora.rank
        found["actor_rollout_ref.model.lora_alpha"] = lora.alpha
        found["actor_rollout_ref.model.target_modules"] = (
            lora.targets if isinstance(lora.targets, str) else list(lora.targets)
        )
        found[f"{server}.load_format"] = (
            "safetensors"  # the server needs the base weights: only adapters follow
        )
    return found | dict(verl.options)


NO_DUAL_CLIP = 1e8
"""verl always has the bound; no ratio comes near this one."""


def option(name: str, value: Any) -> str:
    """`name=value` in Hydra's grammar."""
    return f"{name}={_hydra(value)}"


def _hydra(value: Any) -> str:
    if isinstance(value, str):
        # Backslashes are themselves but in front of a quote.
        escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
        return f"'{escaped}'"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_hydra, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_hydra(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)  # numbers, true, false, null


def start_model(run: Run) -> Path:
    """The folder that GRPO starts from: the cold start, the base, or without either `model.base` itself."""
    from ...models import SMOLLM2, check_model

    before = run.model_path(stages(run.config)[-2])
    if before.is_dir():
        return before.resolve()
    if run.config.sft is not None:
        raise MuaError(
            f"the run folder {run.path} has no cold-start model yet: mua coldstart and mua sft make it; or "
            "start from model.base with sft=null."
        )
    base = run.config.model.base
    if base in ("tiny", SMOLLM2):
        raise MuaError(f"model.base={base} has no folder yet; run `mua coldstart --out {run.path}` first.")
    check_model(base)
    return Path(base).expanduser().resolve()


def prepare(run: Run) -> Launch:
    """Writes data set and agent loop to RUN/verl; the workers read RUN/config.yaml. Raises MuaError."""
    config, domain = run.config, run.domain
    tasks = run.tasks(config.train_split)
    check(config, len(tasks))
    model = start_model(run)
    folder = (run.path / "verl").resolve()
    held_out = domain.tasks(config.eval.split)[: config.eval.tasks]
    dataset.write(folder / "train.parquet", dataset.rows(domain, tasks, config.train_split, False))
    dataset.write(folder / "val.parquet", dataset.rows(domain, held_out, config.eval.split, True))
    loop = "mua.distributed.verl.agent_loop.EpisodeLoop"
    found = options(config, model, folder, len(tasks))
    texts = {
        "agent_loop.yaml": [{"name": AGENT, "_target_": loop, "folder": str(folder)}],
        "options.yaml": found,
    }
    for name, data in texts.items():
        (folder / name).write_text(
            yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
    return Launch(folder, found)


def check_installed() -> None:
    """Raises MuaError without verl, or with a version that this was not written for."""
    if importlib.util.find_spec("verl") is None or importlib.util.find_spec("ray") is None:
        raise MuaError(dataset.NOT_INSTALLED)
    try:
        version = importlib.metadata.version("verl")
    except importlib.metadata.PackageNotFoundError:  # a checkout on the path
        version = "of unknown version"
    if not ((0, 9, 1) <= tuple(int(p) for p in version.split(".")[:3] if p.isdecimal()) < (0, 10)):
        raise MuaError(
            f"verl {version} is installed; mua is written for {VERSIONS}: pip install 'mua[verl]'."
        )


async def preflight(config: Config, out: Path, dry: bool) -> None:
    """What can be refused before a run folder is made. Raises MuaError."""
    if not dry:
        check_installed()
    check(config, len(load(config.domain).tasks(config.train_split)))


async def train(run: Run, dry: bool = False) -> Launch:
    """Prepares the run and lets verl train, whose last checkpoint becomes `models/rl`; with `dry`, only
    prepares it.

    verl goes on from its last checkpoint when the same command is run again. Raises Stopped when asked to
    stop, and MuaError when verl fails.
    """
    from . import merge

    launch = prepare(run)
    if dry or run.model_path("rl").exists():
        return launch
    process = await asyncio.create_subprocess_exec(
        *launch.command, start_new_session=True, env=dict(os.environ)
    )
    waiting = asyncio.ensure_future(process.wait())
    try:
        while not waiting.done():
            await asyncio.wait([waiting], timeout=1.0)
            if run.should_stop():
                raise Stopped
    finally:
        if not waiting.done():
            process.terminate()
            await asyncio.wait([waiting], timeout=60)
        if not waiting.done():
            process.kill()
            await waiting
    if waiting.result():
        raise MuaError(
            f"verl ended with exit code {waiting.result()}; what it said stands above. The same command goes "
            f"on from the last checkpoint in {launch.folder / 'checkpoints'}."
        )
    merge.to_models(run.path)
    return launch
