"""Speed of the GRPO update: our padded micro-batches against a naive loop over single sequences.

    python perf/update.py [--json] [--rounds 5]

Both do the same work on the same made-up conversations (one tiny Llama, 4 layers x 192, one thread): forward
with log-probabilities and entropy of the sampled tokens, GRPO loss, backward, AdamW. The naive loop takes
full logits of one sequence at a time, as in `tests/test_grpo.py`. Rounds alternate, so that a busy machine
slows both; what counts is the ratio, of which the least, the median and the greatest are given. The losses
are compared, so that a fast wrong answer does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from mua.models import tiny_llama
from mua.train import TrainSettings
from mua.train.batching import denominators, micro_batches, token_logprobs
from mua.train.grpo import grpo_loss
from mua.train.optimizer import adamw
from mua.trajectory import Segment

VOCAB = 512
SETTINGS = TrainSettings(lr=1e-5)


def conversations(count: int, seed: int) -> list[Segment]:
    """Ragged segments of about 110 to 330 tokens: a prompt, then steps of the agent between answers."""
    rng = random.Random(seed)
    out = []
    for _ in range(count):
        segment = Segment()
        segment.add_context([rng.randrange(VOCAB) for _ in range(rng.randrange(60, 100))])
        for _ in range(rng.randrange(2, 7)):
            ids = [rng.randrange(VOCAB) for _ in range(rng.randrange(8, 24))]
            segment.add_sampled(ids, [-6.2] * len(ids))
            segment.add_context([rng.randrange(VOCAB) for _ in range(rng.randrange(8, 24))])
        out.append(segment)
    return out


def micro_batched(model, segments: list[Segment], advantages: list[float]) -> float:
    batches = micro_batches(segments, SETTINGS.micro_batch_tokens)
    totals = denominators(batches)
    value = 0.0
    for batch in batches:
        logprobs_BT, entropy_BT = token_logprobs(model, batch.ids_BT, batch.mask_BT, entropy=True)
        loss, _ = grpo_loss(
            logprobs_BT,
            batch.old_logprobs_BT,
            None,
            torch.tensor([advantages[row] for row in batch.rows]),
            batch.mask_BT,
            settings=SETTINGS.grpo,
            denominators=totals,
            entropy_BT=entropy_BT,
        )
        loss.backward()
        value += loss.item()
    return value


def naive(model, segments: list[Segment], advantages: list[float]) -> float:
    s, tokens, value = SETTINGS.grpo, sum(sum(x.mask) for x in segments), 0.0
    for segment, advantage in zip(segments, advantages, strict=True):
        logits_TV = model(torch.tensor([segment.ids]), use_cache=False).logits[0, :-1]
        all_TV = torch.log_softmax(logits_TV, -1)
        logprobs_T = all_TV.gather(1, torch.tensor(segment.ids[1:])[:, None])[:, 0]
        entropy_T = -(all_TV.detach().exp() * all_TV.detach()).sum(-1)  # measured, as ours is
        assert entropy_T.isfinite().all()
        ratio_T = torch.exp(logprobs_T - torch.tensor(segment.logprobs[1:]))
        clipped_T = ratio_T.clamp(1 - s.clip_low, 1 + s.clip_high)
        loss_T = torch.maximum(-advantage * ratio_T, -advantage * clipped_T)
        if advantage < 0 and s.dual_clip is not None:
            loss_T = loss_T.clamp(max=-advantage * s.dual_clip)
        loss = (loss_T * torch.tensor(segment.mask[1:])).sum() / tokens
        loss.backward()
        value += loss.item()
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sequences", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = tiny_llama(VOCAB)
    segments = conversations(options.sequences, 0)
    advantages = [random.Random(i).choice([-1.0, 1.0]) for i in range(len(segments))]
    tokens = sum(len(s.ids) for s in segments)
    seconds: dict[str, list[float]] = {"micro_batched": [], "naive": []}
    for number in range(options.rounds + 1):  # the first warms up
        losses = []
        for name, update in (("micro_batched", micro_batched), ("naive", naive)):
            optimizer = adamw(model, SETTINGS)
            before = [p.detach().clone() for p in model.parameters()]
            began = time.perf_counter()
            losses.append(update(model, segments, advantages))
            optimizer.step()
            taken = time.perf_counter() - began
            optimizer.zero_grad()
            with torch.no_grad():  # both start from the same weights
                for p, old in zip(model.parameters(), before, strict=True):
                    p.copy_(old)
            if number:
                seconds[name].append(taken)
        if abs(losses[0] - losses[1]) > 1e-4:
            raise SystemExit(f"the two losses differ: {losses}")
    ratios = sorted(n / m for m, n in zip(seconds["micro_batched"], seconds["naive"], strict=True))
    rate = {name: tokens / statistics.median(times) for name, times in seconds.items()}
    result = {
        "name": "update",
        "tokens": tokens,
        "sampled": sum(sum(s.mask) for s in segments),
        "sequences": len(segments),
        "rounds": options.rounds,
        "tokens_per_second": {name: round(value) for name, value in rate.items()},
        "speedup": {
            "min": round(ratios[0], 3),
            "median": round(statistics.median(ratios), 3),
            "max": round(ratios[-1], 3),
        },
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{tokens} tokens in {len(segments)} sequences, {options.rounds} rounds")
    for name, value in rate.items():
        print(f"  {name:14} {value:8.0f} tokens/s")
    print("  speed-up {min}x / {median}x / {max}x (least, median, greatest)".format(**result["speedup"]))


if __name__ == "__main__":
    main()
