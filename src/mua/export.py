"""A model of a run as a plain Hugging Face folder: adapters merged, tokenizer, chat template, generation
settings; or its adapters alone, as peft loads them.

Invariant: the folder needs nothing of mua, and computes what the run's model computes.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from .config import Config, load_config
from .distributed.verl import merge
from .errors import MuaError
from .pipeline import STAGES, stages


@dataclasses.dataclass(frozen=True)
class Source:
    """What is exported."""

    folder: Path
    """A model folder, or that of an adapter."""
    base: Path
    """What an adapter belongs to."""
    words: str
    """Which one it is."""

    @property
    def is_adapter(self) -> bool:
        return (self.folder / "adapter_config.json").is_file()


def find(run: Path, which: str) -> Source:
    """`last`, `best`, a step's number, or `base`, `cold_start`, `rl`, `user` of a run folder.

    Raises MuaError when the run has no such model, or its files are damaged.
    """
    from .train import checkpoint

    config = _config_of(run)
    base = run / "models" / stages(config)[-2]
    if which in (*STAGES, "user"):
        folder = run / "models" / which
        if not (folder / "config.json").is_file():
            raise MuaError(f"{run} has no models/{which}: that stage has not been finished.")
        return Source(folder, base, which)
    checkpoints = run / "checkpoints"
    shards = {} if checkpoints.is_dir() else merge.steps(run)
    if shards and (which == "last" or (which.isdecimal() and int(which) in shards)):
        step = max(shards) if which == "last" else int(which)
        whole = merge.merged(run, step)
        adapter = whole / merge.ADAPTER
        return Source(adapter if adapter.is_dir() else whole, whole, f"step {step} of verl")
    if which == "last":
        path = checkpoint.latest(checkpoints) if checkpoints.is_dir() else None
    elif which == "best":
        path = (checkpoints / "best").resolve()
    elif which.isdecimal():
        path = checkpoints / f"step_{int(which):06d}"
    else:
        raise MuaError(
            f"'{which}' is no model of a run: last, best, a step's number, {', '.join(STAGES)}, user."
        )
    if path is None or not path.is_dir():
        there = sorted(shards or (int(p.name[5:]) for p in checkpoints.glob("step_*")))
        known = f"it has steps {', '.join(map(str, there))}" if there else "it has none: mua train makes them"
        raise MuaError(f"{run} has no checkpoint '{which}'; {known}.")
    problem = checkpoint.damage(path)
    if problem is not None:
        raise MuaError(f"{path} is damaged ({problem}); export another one.")
    record = json.loads((path / "state.json").read_text(encoding="utf-8"))
    score = (
        "" if record.get("score") is None else f", mean reward of the steps up to it {record['score']:.3f}"
    )
    return Source(path / "model", base, f"step {record['step']}{score}")


def export(run: Path, out: Path, which: str = "last", dtype: str = "auto", adapter: bool = False) -> str:
    """Writes the folder `out`, which must not exist or be empty; says in words what was exported.

    `dtype` "auto" keeps the one it is stored in. `adapter` writes the adapters alone, to be loaded over the
    model that GRPO started from (`cold_start`). Raises MuaError for what is missing or in the way.
    """
    source = find(run, which)
    out = out.expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MuaError(f"{out} is there already; name a folder that is new or empty.")
    if adapter:
        if not source.is_adapter:
            raise MuaError(f"{source.words} of {run} has no adapters: it was trained without model.lora.")
        shutil.copytree(source.folder, out, dirs_exist_ok=True)
        return source.words
    _write(_config_of(run), source, out, dtype)
    return source.words


def _write(config: Config, source: Source, out: Path, dtype: str) -> None:
    import torch
    from transformers import AutoConfig

    from .formats import ChatFormat, builtin_template
    from .models import load_model, merged, save_model

    folder = source.base if source.is_adapter else source.folder
    # Merged in float32, whatever it is stored in: adding a small change to bfloat16 weights would lose most.
    model, tokenizer = load_model(folder, "float32", "cpu")
    if source.is_adapter:
        from peft import PeftModel

        if not (source.folder / "adapter_model.safetensors").is_file():
            raise MuaError(
                f"{source.folder} has no adapter_model.safetensors; pickled adapters are not read."
            )
        model = merged(PeftModel.from_pretrained(model, source.folder))
    stored = AutoConfig.from_pretrained(folder, local_files_only=True).dtype or torch.float32
    model.to(stored if dtype == "auto" else getattr(torch, dtype))
    format = ChatFormat.of(tokenizer, tool_style=config.model.tool_style, thinking=config.model.thinking)
    if format.template is None:
        tokenizer.chat_template = builtin_template(config.model.tool_style)
    settings = model.generation_config
    settings.eos_token_id = list(format.stop_ids)
    settings.pad_token_id = (
        tokenizer.pad_token_id if tokenizer.pad_token_id is not None else format.stop_ids[0]
    )
    settings.do_sample, settings.temperature = True, config.train.temperature
    settings.top_p, settings.top_k = 1.0, 0  # as it was sampled from in training
    settings.max_new_tokens = config.max_step_tokens
    settings._from_model_config = False  # or it may be made again from the model's
    try:
        save_model(model, tokenizer, out)
    except OSError as exc:
        raise MuaError(f"{out} cannot be written ({exc}).") from exc


def _config_of(run: Path) -> Config:
    if not (run / "config.yaml").is_file():
        raise MuaError(f"{run} is no run folder: it has no config.yaml.")
    return load_config(run / "config.yaml")
