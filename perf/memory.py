"""Memory of the GRPO update on one long sequence with SmolLM2's vocabulary: ours against TRL's.

    python perf/memory.py --json                  # SmolLM2-135M's shape, 8,192 tokens
    python perf/memory.py --layers 6              # a fifth of the time
    python perf/memory.py --grow growth.svg       # by the sequence's length

Each side runs in a process of its own: the model, then one forward, loss and backward as in `update.py`, with
what its trainer does by itself (TRL checkpoints activations by default; ours does where they would take more
than 2 GiB). `update_mb` is the peak during the update above what the process held before it, gradients
included; `peak_mb` is all of it. On a CPU that is resident memory, on a GPU what the allocator gave out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
from typing import Any

TARGET = 0.6
"""Of TRL's `update_mb` that ours may be."""


def side(args: argparse.Namespace) -> dict[str, Any]:
    """One side's figures, in this process."""
    import torch
    import trl_update
    from shapes import SHAPES
    from update import SETTINGS, conversation

    from mua.models import tiny_llama
    from mua.train.batching import batches_for, denominators
    from mua.train.credit import Signals
    from mua.train.trainer import accumulator

    torch.set_num_threads(args.threads)
    shape = SHAPES["smollm2"] | ({"layers": args.layers} if args.layers else {})
    model = tiny_llama(**shape, context=args.tokens).to(args.device, getattr(torch, args.dtype))
    rng = random.Random(0)
    vocab = shape["vocab_size"]
    prompt = [rng.randrange(vocab) for _ in range(min(1500, args.tokens // 4))]
    segment = conversation(rng, vocab, prompt, args.tokens - len(prompt))
    # Near what the random model gives: the logarithm of one in as many as the vocabulary has.
    segment.logprobs = [-10.8 * m for m in segment.mask]
    if args.side == "trl":
        made = trl_update.batches([segment], [1.0], 1, args.device)
        trainer = trl_update.switched(model, True, args.device)

        def work() -> None:
            trl_update.update(trainer, made)
    else:

        def work() -> None:
            batches = batches_for(model, [segment])
            signals = Signals([torch.ones(sum(segment.mask))])
            accumulator(model, None, SETTINGS)(batches, signals, denominators(batches))

    with _Peak(args.device) as peak:
        before = peak.now()
        began = time.perf_counter()
        work()
        if args.device != "cpu":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    return {
        "update_mb": round(peak.most - before, 1),
        "peak_mb": round(peak.most, 1),
        "seconds": round(seconds, 1),
        "sampled": sum(segment.mask),
    }


class _Peak:
    """Most memory within the block, in MB."""

    def __init__(self, device: str):
        import psutil

        self.cuda = device != "cpu"
        self.process = psutil.Process()
        self.most = 0.0
        self.ended = threading.Event()

    def now(self) -> float:
        if self.cuda:
            import torch

            return torch.cuda.memory_allocated() / (1 << 20)
        return self.process.memory_info().rss / (1 << 20)

    def _watch(self) -> None:
        while not self.ended.wait(0.002):
            self.most = max(self.most, self.now())

    def __enter__(self) -> _Peak:
        self.most = self.now()
        if self.cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            import torch

            self.most = torch.cuda.max_memory_allocated() / (1 << 20)
        else:
            self.ended.set()
            self.thread.join()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both sides, each in its own process, and the ratio of their updates."""
    out: dict[str, Any] = {"tokens": args.tokens}
    for name in ("mua", "trl"):
        command = [sys.executable, __file__, "--side", name, "--tokens", str(args.tokens)]
        for option in ("layers", "device", "dtype", "threads"):
            value = getattr(args, option)
            command += [f"--{option}", str(value)] if value is not None else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}: exit code {done.returncode} (TRL comes with pip install 'mua[dev]')")
        out[name] = json.loads(done.stdout.splitlines()[-1])
    out["ratio"] = round(out["mua"]["update_mb"] / out["trl"]["update_mb"], 3)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--layers", type=int, help="instead of SmolLM2's 30")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--grow", help="measure at several lengths and draw it into this SVG file")
    parser.add_argument("--side", choices=("mua", "trl"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(side(args)))
        return
    lengths = (1024, 2048, 4096, 8192) if args.grow else (args.tokens,)
    found = []
    for args.tokens in lengths:
        found.append(measure(args))
        print(
            f"{args.tokens:,} tokens: "
            + "   ".join(
                f"{name} {found[-1][name]['update_mb']:,.0f} MB in {found[-1][name]['seconds']:.0f} s"
                for name in ("mua", "trl")
            )
            + f"   ratio {found[-1]['ratio']}"
        )
    if args.grow:
        from plot import Panel, write_svg

        series = {n: [(f["tokens"], f[n]["update_mb"]) for f in found] for n in ("mua", "trl")}
        write_svg(args.grow, "Memory of the update", [Panel("tokens of the sequence", "MB", series)])
    if args.json:
        print(
            json.dumps({"name": "memory", "target": TARGET, **({"grow": found} if args.grow else found[0])})
        )


if __name__ == "__main__":
    main()
