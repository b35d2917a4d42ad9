"""A whole batch of episodes on verl's own workers on a local Ray cluster, without a GPU; then both losses.

    export OMP_NUM_THREADS=1 TQ_NUM_THREADS=1
    python perf/verl_batch.py --model RUN/models/cold_start --groups 16 --samples 8 --out runs/verl.json

verl's parts, as its V1 trainer uses them: data set and loader, router and `LLMServerClient`,
`AgentLoopManagerTQ` and its workers, TransferQueue, replay buffer, padding of the batch,
`_compute_advantage`, `ppo_loss`. Ours: the agent loop under test, and the engine (`SlotEngine`) in an actor
that speaks the interface of verl's servers. What is missing of a training step is what needs GPUs: vLLM or
SGLang, FSDP, and the way of the weights from one to the other.

Loss and gradient are those of one update of a model whose weights have moved since it sampled, with a
reference.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import hydra
import ray
import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, get_trainer_cls
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.skip import SkipManager
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.router import get_router_handle
from verl.workers.utils.losses import ppo_loss

from mua import pipeline
from mua.config import Config, load_config
from mua.distributed.verl import launch
from mua.engines import Sampling
from mua.models import load_model
from mua.train.batching import batches_for, denominators
from mua.train.credit import Signals, sampled
from mua.train.grpo import group_advantages
from mua.train.trainer import accumulator
from mua.trajectory import Segment

SMALL = [
    "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    "actor_rollout_ref.rollout.full_determinism=true",  # each request has its own seed
    "algorithm.rollout_correction.bypass_mode=true",  # the ratio is to the probabilities of sampling
    "trainer.device=cpu",
    "data.dataloader_num_workers=0",
]


@ray.remote(num_cpus=0)
class Server:
    """Our slot engine behind the interface of verl's rollout servers."""

    def __init__(self, model: str, slots: int):
        from mua.engines.slots import SlotEngine

        torch.set_num_threads(1)
        self.engine = SlotEngine(load_model(model, "float32", "cpu")[0], slots=slots)
        self.requests = 0

    async def generate(
        self,
        request_id: str,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        image_data: Any = None,
        video_data: Any = None,
    ) -> TokenOutput:
        self.requests += 1
        sampling = Sampling(
            temperature=sampling_params["temperature"],
            top_p=sampling_params["top_p"],
            max_tokens=sampling_params["max_tokens"],
            stop_ids=tuple(sampling_params["stop_token_ids"]),
            seed=sampling_params["seed"],
        )
        done = await self.engine.generate(prompt_ids, sampling, request_id)
        return TokenOutput(
            token_ids=done.token_ids,
            log_probs=done.logprobs,
            stop_reason="completed",
            extra_fields={"global_steps": 0},
        )

    async def count(self) -> int:
        return self.requests


def verl_config(options: dict[str, Any]) -> Any:
    """verl's own configuration with our options; unknown ones are refused by Hydra."""
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", [*(launch.option(k, v) for k, v in options.items()), *SMALL])


def prepare(config: Config, model: Path, out: Path) -> launch.Launch:
    """RUN/verl of a run that starts from a model folder."""
    run = pipeline.open_run(config, out)
    with run.folder:
        link = run.model_path("cold_start")
        link.parent.mkdir(exist_ok=True)
        if not link.exists():
            link.symlink_to(model.resolve())
        return launch.prepare(run)


def play(made: launch.Launch, model: Path) -> tuple[Any, Any, Any, dict[str, Any]]:
    """(trainer, batch in TransferQueue, verl's configuration, figures) of the first step's episodes."""
    config = verl_config(made.options)
    tq.init(config.transfer_queue)
    SkipManager.init(config)
    trainer = get_trainer_cls("sync")(config)
    trainer._init_tokenizer()
    trainer._init_dataloader()
    server = Server.remote(str(model), slots=256)
    ray.get(server.count.remote())
    router = get_router_handle(servers={"here": server}, full_determinism=True)
    client = LLMServerClient(config, load_balancer_handle=router)
    trainer.agent_loop_manager = AgentLoopManagerTQ.create(config=config, llm_client=client)
    trainer.global_steps = 1
    began = time.perf_counter()
    trainer.prepare_step()
    batch, evicted = trainer.replay_buffer.sample(
        global_steps=1, partition_id="train", batch_size=config.data.train_batch_size
    )
    seconds = time.perf_counter() - began
    return (
        trainer,
        batch,
        config,
        {
            "episodes_asked_for": config.data.train_batch_size * config.actor_rollout_ref.rollout.n,
            "sequences": len(batch),
            "seconds": seconds,
            "requests": ray.get(server.count.remote()),
            **evicted,
        },
    )


def toss(batch: Any) -> None:
    """Replaces the rewards of a batch by coins."""
    where = {"keys": batch.keys, "partition_id": batch.partition_id}
    scores = [
        torch.zeros_like(s)
        for s in tq.kv_batch_get(**where, select_fields=["rm_scores"])["rm_scores"].unbind()
    ]
    for number, score in enumerate(scores):
        score[-1] = number % 2
    tq.kv_batch_put(**where, fields=TensorDict({"rm_scores": jagged(scores)}, batch_size=len(batch)))


def compare(trainer: Any, batch: Any, verl: Any, ours: Config, model: Path) -> dict[str, Any]:
    """Advantages, loss and gradient of verl's functions and ours, on verl's batch."""
    real = len(batch)
    batch = upsample_batch_to_divisible_size(
        batch, real + 3, trainer.tokenizer.eos_token_id
    )  # 3 rows of padding
    metrics: dict[str, Any] = {}
    batch = trainer._compute_old_log_prob(batch, metrics)
    get = {"keys": batch.keys, "partition_id": batch.partition_id}
    data = tq.kv_batch_get(**get, select_fields=["input_ids", "prompts"])
    sampler = load_model(model, "float32", "cpu")[0]
    actor, reference = moved(sampler, 1), moved(sampler, 2)

    nested = [logprobs(reference, ids) for ids in data["input_ids"].unbind()]
    lengths = [len(p) for p in data["prompts"].unbind()]
    ref = [row[n - 1 : -1].detach() for row, n in zip(nested, lengths, strict=True)]
    tq.kv_batch_put(**get, fields=TensorDict({"ref_log_prob": jagged(ref)}, batch_size=len(batch)))
    trainer._compute_advantage(batch, metrics)
    data = tq.kv_batch_get(**get)

    segments, uids, rewards = [], [], []
    for prompt, response, mask, old, scores, uid in zip(
        data["prompts"].unbind(),
        data["responses"].unbind(),
        data["response_mask"].unbind(),
        data["rollout_log_probs"].unbind(),
        data["rm_scores"].unbind(),
        list(data["uid"]),
        strict=True,
    ):
        zeros = [0] * len(prompt)
        ids, kept = [*prompt.tolist(), *response.tolist()], [*zeros, *mask.tolist()]
        segments.append(Segment(ids, kept, [*map(float, zeros), *old.tolist()]))
        uids.append(uid)
        rewards.append(float(scores.sum()))

    theirs_BT = data["advantages"].to_padded_tensor(0.0)
    mask_BT = data["response_mask"].to_padded_tensor(0).bool()
    own_B = advantages(batch.keys, uids, rewards)
    gap = float((torch.where(mask_BT, theirs_BT - own_B[:, None], 0.0)).abs().max())

    # verl: its loss function on plain forwards, a row at a time
    rows = [logprobs(actor, ids) for ids in data["input_ids"].unbind()]
    info = {"dp_size": 1, "batch_num_tokens": int(mask_BT.sum()), "global_batch_size": len(batch)}
    picked = data.select(
        "prompts", "responses", "response_mask", "old_log_probs", "advantages", "ref_log_prob"
    )
    for name, value in info.items():
        picked.set_non_tensor(name, value)
    actor_config = omega_conf_to_dataclass(verl.actor_rollout_ref.actor)
    loss, _ = ppo_loss(actor_config, {"log_probs": jagged(rows)}, picked)
    loss.backward()
    theirs = gradient(actor)

    # ours: as the trainer's update does it, shared prefixes and all
    batches = batches_for(actor, segments)
    values = [torch.full((int(sampled(s).sum()),), float(a)) for s, a in zip(segments, own_B, strict=True)]
    sums = accumulator(actor, reference, ours.train)(batches, Signals(values), denominators(batches))
    ours_too = gradient(actor)
    norm = float(theirs.norm())
    return {
        "rows_of_padding": len(batch) - real,
        "segments": real,
        "sampled_tokens": int(mask_BT.sum()),
        "tokens": sum(len(s.ids) for s in segments),
        "groups": len({u for u in uids[:real]}),
        "groups_with_signal": len({u for u, a in zip(uids, own_B.tolist(), strict=True) if a}),
        "reward": sum(rewards[:real]) / real,
        "advantage_gap": gap,
        "loss_verl": float(loss.detach()),
        "loss_mua": sums["loss"],
        "loss_gap": abs(float(loss.detach()) - sums["loss"]),
        "ratio_max": sums["ratio_max"],
        "clip_fraction": sums["clip_fraction"],
        "gradient_norm": norm,
        "gradient_gap": float((theirs - ours_too).norm()) / norm if norm else 0.0,
    }


def advantages(keys: list[str], uids: list[str], rewards: list[float]) -> torch.Tensor:
    """Ours, by row of the batch: a group is what has one uid, an episode what has one session."""
    episodes: dict[str, dict[str, float]] = {}
    sessions = [key.rsplit("_", 1)[0] for key in keys]
    for uid, session, reward in zip(uids, sessions, rewards, strict=True):
        episodes.setdefault(uid, {})[session] = reward
    found = {}
    for group in episodes.values():
        found |= dict(zip(group, group_advantages(list(group.values())).tolist(), strict=True))
    return torch.tensor([found[session] for session in sessions])


def moved(model: Any, seed: int) -> Any:
    """A copy whose weights are a little different, as after some updates."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.02 * weight.std() * torch.randn(weight.shape, generator=generator))
    return other


def logprobs(model: Any, ids_L: torch.Tensor) -> torch.Tensor:
    """[L]: at t the log-probability of the token at t + 1; the last one is 0."""
    logits_LV = model(ids_L[None]).logits[0].float()
    picked = torch.log_softmax(logits_LV[:-1], -1).gather(1, ids_L[1:, None])[:, 0]
    return torch.cat([picked, picked.new_zeros(1)])


def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def gradient(model: Any) -> torch.Tensor:
    """All gradients as one vector; they are taken away from the model."""
    out = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--model", type=Path, required=True, help="A small model folder, such as RUN/models/cold_start."
    )
    parser.add_argument("--domain", default="library:desk")
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/verl"), help="The run folder; must be new.")
    parser.add_argument("--out", type=Path, help="Figures as JSON.")
    parser.add_argument(
        "--coins", action="store_true", help="Coins for rewards: for a model that solves nothing."
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    config = load_config(
        "quickstart",
        [
            f"domain={args.domain}",
            "train_user={kind: agenda}",
            "eval.same_user=true",
            f"train.rollout.groups={args.groups}",
            f"train.rollout.group_size={args.samples}",
            "train.rollout.refill_rounds=0",
            "train.grpo.kl_coefficient=0.01",
            f"verl={{gpus: 1, workers: {args.workers}, prompt_tokens: 384, response_tokens: 384}}",
            *args.overrides,
        ],
    )
    made = prepare(config, args.model, args.folder)
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 * 2**20, logging_level="WARNING")
    try:
        trainer, batch, verl, figures = play(made, args.model)
        if args.coins:
            toss(batch)
        figures |= compare(trainer, batch, verl, config, args.model)
    finally:
        tq.close()
        ray.shutdown()
    text = json.dumps(figures, indent=1)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
