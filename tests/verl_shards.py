"""Two processes shard a model by FSDP and save it with verl's own checkpoint manager; no GPU needed.

    python tests/verl_shards.py MODEL OUT [--lora] [--fsdp1]

OUT/global_step_3/actor has what verl's trainer would leave; OUT/weights.pt what the shards stand for.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from mua.models import load_model, with_adapters

PROCESSES = 2


def work(rank: int, model_path: str, out: str, lora: bool, first: bool) -> None:
    from omegaconf import OmegaConf
    from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="localhost", RANK=str(rank), WORLD_SIZE=str(PROCESSES))
    dist.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=PROCESSES)
    model, tokenizer = load_model(model_path, "float32", "cpu")
    if lora:
        model = with_adapters(model, 4, 8.0, "all-linear", 0)
    torch.manual_seed(0)
    with (
        torch.no_grad()
    ):  # not what it was loaded with: a merger that read the model's folder would be found out
        for name, weight in model.named_parameters():
            if not lora or "lora_" in name:
                weight.add_(0.01 * torch.randn(weight.shape))
    if rank == 0:
        torch.save(model.state_dict(), Path(out) / "weights.pt")
    mesh = init_device_mesh("cpu", (PROCESSES,), mesh_dim_names=("fsdp",))
    layers = (model.get_base_model() if lora else model).model.layers
    if first:
        policy = ModuleWrapPolicy({type(layers[0])})
        how = {"device_mesh": mesh, "device_id": torch.device("cpu"), "use_orig_params": lora}
        model = FSDP(model, auto_wrap_policy=policy, **how)
    else:
        for layer in (*layers, model):
            fully_shard(layer, mesh=mesh)
    contents = OmegaConf.create({"save_contents": ["model"], "load_contents": ["model"], "async_save": False})
    manager = FSDPCheckpointManager(model=model, processing_class=tokenizer, checkpoint_config=contents)
    manager.save_checkpoint(f"{out}/global_step_3/actor", global_step=3)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _, model, out, *more = sys.argv
    out = str(Path(out).resolve())
    Path(out).mkdir(parents=True, exist_ok=True)
    mp.spawn(work, (model, out, "--lora" in more, "--fsdp1" in more), nprocs=PROCESSES)  # pyright: ignore[reportPrivateImportUsage]
    (Path(out) / "latest_checkpointed_iteration.txt").write_text("3")
