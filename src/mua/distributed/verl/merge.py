"""verl's checkpoints, which lie in shards of the GPUs that made them, as plain model folders.

Invariant: the merging is verl's own (`verl.model_merger`, of the version that wrote the shards); a merged
folder is there whole or not at all. verl's merger writes bfloat16, whatever the shards hold.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from ...errors import MuaError

ADAPTER = "lora_adapter"
"""Where verl's merger puts adapters, inside the folder of the model that they belong to."""


def steps(run: Path) -> dict[int, Path]:
    """Step → the folder of the actor's shards, of the checkpoints that verl has finished in a run folder."""
    place = run / "verl" / "checkpoints"
    found = {
        int(match[1]): path / "actor"
        for path in place.glob("global_step_*")
        if (match := re.fullmatch(r"global_step_(\d+)", path.name))
        and (path / "actor" / "fsdp_config.json").is_file()
    }
    try:  # verl writes this when a checkpoint is whole
        last = int((place / "latest_checkpointed_iteration.txt").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return {}
    return {step: found[step] for step in sorted(found) if step <= last}


def merged(run: Path, step: int) -> Path:
    """The plain folder of a step's checkpoint (for LoRA: of the model below the adapters), made on first use.

    Raises MuaError when verl is not installed or cannot read the shards.
    """
    shards = steps(run)[step]
    out = run / "verl" / "merged" / f"global_step_{step}"
    if out.is_dir():
        return out
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
    done = subprocess.run(
        [*command, "--local_dir", str(shards), "--target_dir", str(fresh)],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode or not (fresh / "config.json").is_file():
        shutil.rmtree(fresh, ignore_errors=True)
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise MuaError(
            f"verl's merger cannot read {shards}: {lines[-1] if lines else 'it said nothing'}. "
            "It needs the environment that verl is installed in (pip install 'mua[verl]'), and the shards of "
            "all machines in that folder."
        )
    fresh.replace(out)
    return out


def to_models(run: Path) -> None:
    """`models/rl` of a run that verl has finished: its last checkpoint, adapters merged."""
    from ...models import load_model, save_model
    from ...models import merged as plain

    known = steps(run)
    if not known:
        raise MuaError(f"verl ended well but left no checkpoint in {run / 'verl' / 'checkpoints'}.")
    folder = merged(run, max(known))
    # Adapters are added in float32: a small change to bfloat16 weights would be lost.
    adapted = (folder / ADAPTER).is_dir()
    model, tokenizer = load_model(folder, "float32" if adapted else "bfloat16", "cpu")
    if adapted:
        import torch
        from peft import PeftModel

        model = plain(PeftModel.from_pretrained(model, folder / ADAPTER)).to(torch.bfloat16)
    save_model(model, tokenizer, run / "models" / "rl")
