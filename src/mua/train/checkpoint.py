"""Checkpoints: everything a run needs to go on as if it had never stopped.

A checkpoint is a folder `step_000005/`: `model/` is an ordinary Hugging Face folder (or a PEFT adapter)
that any tool can load; `optimizer.safetensors` and `rng.safetensors` hold tensors, `state.json` the rest
and a hash of every other file. Nothing is pickled.

`best` is a link to the kept checkpoint with the highest score.

Invariant: a folder of that name is complete, or its hashes give it away; saving never touches an older
checkpoint before the new one is whole on disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import MuaError

log = logging.getLogger(__name__)

_HIDDEN = ".tmp-"


def save(
    folder: Path,
    step: int,
    model: Any,
    optimizer: torch.optim.Optimizer,
    *,
    state: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    keep: int = 2,
    score: float | None = None,
    actor: Any = None,
) -> Path:
    """Writes `folder/step_NNNNNN` and removes all but the newest `keep` checkpoints and the best.

    The best has the highest `score` (of equal ones the older); without scores, none is kept for that.
    `state` is the caller's own JSON; `actor` a second model, of older weights, that is played with
    (staleness). Raises MuaError when it cannot be written (a full disk); what was there before is then
    untouched.
    """
    final = folder / f"step_{step:06d}"
    fresh = folder / f"{_HIDDEN}{final.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{_HIDDEN}*"):
            shutil.rmtree(leftover)
        fresh.mkdir()
        with _quiet():
            model.save_pretrained(fresh / "model")
        _name_base(fresh / "model", folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(fresh / "model")
        save_file(_optimizer_tensors(model, optimizer), fresh / "optimizer.safetensors")
        save_file(_random_state(), fresh / "rng.safetensors")
        if actor is not None:
            save_file(_trained(actor), fresh / "actor.safetensors")
        files = {str(p.relative_to(fresh)): _sha256(p) for p in sorted(fresh.rglob("*")) if p.is_file()}
        record = {"step": step, "score": score, "state": dict(state or {}), "files": files}
        text = json.dumps(record, indent=1)
        (fresh / "state.json").write_text(text, encoding="utf-8")
        for path in (*fresh.rglob("*"), fresh):
            _sync(path)
        if final.exists():  # damaged, or it would have been resumed from
            final.rename(folder / f"{_HIDDEN}old-{final.name}")
        fresh.rename(final)
        _sync(folder)
    except (OSError, SafetensorError) as exc:
        shutil.rmtree(fresh, ignore_errors=True)
        raise MuaError(
            f"The checkpoint of step {step} cannot be written to {folder} ({exc}). Earlier checkpoints are "
            "as they were: make room on the disk, then run the same command again to go on from there."
        ) from exc
    kept = _steps(folder)
    best = _best(kept)
    _point(folder / "best", best)
    for old in kept[:-keep]:
        if old == best:
            continue
        # Renamed first: a crash in between must not leave half a checkpoint under a good name.
        hidden = folder / f"{_HIDDEN}old-{old.name}"
        old.rename(hidden)
    for leftover in folder.glob(f"{_HIDDEN}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return final


def _best(checkpoints: Sequence[Path]) -> Path | None:
    found: tuple[float, Path] | None = None
    for path in checkpoints:
        try:
            score = json.loads((path / "state.json").read_text(encoding="utf-8")).get("score")
        except (OSError, ValueError, AttributeError):
            continue  # damaged
        if isinstance(score, int | float) and (found is None or score > found[0]):
            found = score, path
    return found and found[1]


def _point(link: Path, target: Path | None) -> None:
    """Makes `link` lead to a checkpoint beside it, at once."""
    fresh = link.with_name(f".{link.name}.new")
    try:
        if target is None:
            link.unlink(missing_ok=True)
        else:
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(target.name)
            fresh.rename(link)
    except OSError as exc:  # some file systems have no links; the checkpoint is whole without
        log.warning("%s cannot be made (%s)", link, exc)


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint. Damaged ones are skipped, each with a warning that names it."""
    for path in reversed(_steps(folder)):
        problem = damage(path)
        if problem is None:
            return path
        log.warning("checkpoint %s is damaged (%s) and is skipped", path, problem)
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None when every file is as it was written."""
    try:
        record = json.loads((path / "state.json").read_text(encoding="utf-8"))
        for name, digest in record["files"].items():
            if _sha256(path / name) != digest:
                return f"{name} has changed"
        int(record["step"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        return f"{type(exc).__name__}: {exc}"
    return None


def load(
    path: Path, model: Any, optimizer: torch.optim.Optimizer, actor: Any = None
) -> tuple[int, dict[str, Any]]:
    """Puts weights, optimizer state and random state back in place; gives (step, the caller's state).

    `model`, `optimizer` and `actor` must be made as they were for the run. Raises MuaError when they do not
    fit.
    """
    record = json.loads((path / "state.json").read_text(encoding="utf-8"))
    try:
        _load_model(path / "model", model)
        _load_optimizer(load_file(path / "optimizer.safetensors"), model, optimizer)
        if actor is not None:
            actor.load_state_dict(load_file(path / "actor.safetensors"), strict=False)
    except (KeyError, RuntimeError, OSError, SafetensorError) as exc:
        raise MuaError(
            f"The checkpoint {path} does not fit the model ({exc}). Start from the model that the run was "
            "started with, or use another run folder."
        ) from exc
    random_state = load_file(path / "rng.safetensors")
    torch.set_rng_state(random_state.pop("cpu"))
    if torch.cuda.is_available() and len(random_state) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([random_state[f"cuda.{i}"] for i in range(len(random_state))])
    return int(record["step"]), record["state"]


def _name_base(adapter: Path, folder: Path) -> None:
    """An adapter names the model below it by its path in the run folder, which is right on every machine
    (and for peft, from within that folder), in place of where it lay on this one."""
    path = adapter / "adapter_config.json"
    run = next((p for p in folder.resolve().parents if (p / "config.yaml").is_file()), None)
    if run is None or not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    there = config.get("base_model_name_or_path") or ""
    base = Path(there).expanduser().resolve()
    if not there or run not in base.parents:
        return
    config["base_model_name_or_path"] = name = base.relative_to(run).as_posix()
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    card = adapter / "README.md"
    if card.is_file():
        card.write_text(card.read_text(encoding="utf-8").replace(there, name), encoding="utf-8")


def _trained(model: Any) -> dict[str, torch.Tensor]:
    """The weights that training changes, by name."""
    return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def _load_model(folder: Path, model: Any) -> None:
    if (folder / "adapter_config.json").is_file():
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
        return
    # Through from_pretrained, because the names in the files are not always those of the live modules.
    first = next(model.parameters())
    with _quiet():
        saved = type(model).from_pretrained(
            folder, dtype=first.dtype, local_files_only=True, use_safetensors=True
        )
    model.load_state_dict(saved.state_dict())


def _named(model: Any) -> list[str]:
    """Names of the trained parameters in the optimizer's order."""
    return [name for name, p in model.named_parameters() if p.requires_grad]


def _optimizer_tensors(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names = _named(model)
    states = optimizer.state_dict()["state"]
    return {
        f"{names[index]}|{key}": torch.as_tensor(value).detach().contiguous()
        for index, entry in states.items()
        for key, value in entry.items()
    }


def _load_optimizer(
    tensors: Mapping[str, torch.Tensor], model: Any, optimizer: torch.optim.Optimizer
) -> None:
    index = {name: i for i, name in enumerate(_named(model))}
    states: dict[int, dict[str, torch.Tensor]] = {}
    for full, tensor in tensors.items():
        name, _, key = full.rpartition("|")
        states.setdefault(index[name], {})[key] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _random_state() -> dict[str, torch.Tensor]:
    out = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        out.update({f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())})
    return out


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_" + "[0-9]" * 6))


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of transformers: they would break the caller's display."""
    from transformers.utils import logging as library

    shown = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            library.enable_progress_bar()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
