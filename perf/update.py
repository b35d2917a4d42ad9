"""Speed of the GRPO update: ours against TRL's GRPOTrainer and a loop over single sequences.

    python perf/update.py --json                           # a Llama of the quickstart's size
    python perf/update.py --model smollm2 --layers 6       # SmolLM2-135M's width and vocabulary
    python perf/update.py --grow growth.svg                # by turns, group size and length of the prompt

The same model and the same tokens for all sides, in one run. Three steps of work:

- `shared`: a group of 8 with a prompt of 1,500 tokens and 500 tokens of its own in each.
- `turns`: 4 groups of 8 under one system prompt of 200 tokens, of 3 to 12 turns.
- `unshared`: 8 conversations of 300 to 700 tokens that share nothing.

In each conversation steps of the agent and answers alternate. Sides:

- `mua`: the trainer's own update.
- `trl`: TRL 1.16, `--rows` sequences a batch, activations kept; `trl_default`: with activation checkpointing,
  as it is by default.
- `naive`: one forward and backward a sequence, with the logits of all its tokens.

Forward, log-probabilities, entropy (measured, without gradient), loss, backward; the optimizer is the same
for all and left out. Times are CPU time (on a GPU: the clock), since other work shares the machine. Rounds
alternate; a ratio is another side's time through ours in one round. Losses and gradients are compared, so
that a fast wrong answer does not count.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from shapes import SHAPES

from mua.models import tiny_llama
from mua.train import GrpoSettings, TrainSettings
from mua.train.activations import recompute
from mua.train.batching import batches_for, denominators
from mua.train.credit import Signals
from mua.train.trainer import accumulator
from mua.trajectory import Segment

SETTINGS = TrainSettings(grpo=GrpoSettings(dual_clip=None, kl_coefficient=0.0))
TARGETS = {"shared": 2.0, "unshared": 1.0}
"""Ratios to TRL that the project asks of itself."""


def conversation(rng: random.Random, vocab: int, prompt: list[int], own: int) -> Segment:
    """A prompt, then steps of the agent and answers, of 20 to 60 tokens each, to `own` tokens in all."""
    segment = Segment()
    segment.add_context(prompt)
    while (left := len(prompt) + own - len(segment.ids)) > 0:
        step = [rng.randrange(vocab) for _ in range(min(left, rng.randint(20, 60)))]
        segment.add_sampled(step, [0.0] * len(step))
        left -= len(step)
        segment.add_context([rng.randrange(vocab) for _ in range(min(left, rng.randint(20, 60)))])
    return segment


def work(kind: str, vocab: int, *, prompt: int = 1500, group: int = 8, turns: int = 6) -> list[Segment]:
    """The conversations of a step; a turn is about 80 tokens."""
    rng = random.Random(kind)

    def words(n: int) -> list[int]:
        return [rng.randrange(vocab) for _ in range(n)]

    if kind == "shared":
        shared = words(prompt)
        return [conversation(rng, vocab, shared, 500) for _ in range(group)]
    if kind == "turns":
        system = words(200)
        return [
            conversation(rng, vocab, opening, 80 * rng.randint(3, 12))
            for opening in ([*system, *words(30)] for _ in range(4))
            for _ in range(group)
        ]
    if kind == "unshared":
        return [
            conversation(rng, vocab, words(rng.randint(100, 200)), rng.randint(200, 500)) for _ in range(8)
        ]
    shared = words(prompt)
    return [conversation(rng, vocab, shared, 80 * turns) for _ in range(group)]


def sides(model: Any, segments: list[Segment], advantages: list[float], args: argparse.Namespace) -> Any:
    """name → what does the forward and backward of the whole step, and gives the loss."""

    def mua() -> float:
        values = [torch.full((sum(s.mask),), a) for s, a in zip(segments, advantages, strict=True)]
        model.eval()
        batches = batches_for(model, segments)
        found = accumulator(model, None, SETTINGS)(batches, Signals(values), denominators(batches))
        return found["loss"]

    def naive() -> float:
        model.eval()
        tokens, value = sum(sum(s.mask) for s in segments), 0.0
        for segment, advantage in zip(segments, advantages, strict=True):
            ids_1T = torch.tensor([segment.ids], device=args.device)
            all_TV = model(ids_1T, use_cache=False).logits[0, :-1].float().log_softmax(-1)
            logprobs_T = all_TV.gather(1, ids_1T[0, 1:, None])[:, 0]
            assert (
                (all_TV.detach().exp() * all_TV.detach()).sum().isfinite()
            )  # the entropy, as all measure it
            ratio_T = (logprobs_T - torch.tensor(segment.logprobs[1:], device=args.device)).exp()
            loss_T = torch.maximum(-advantage * ratio_T, -advantage * ratio_T.clamp(0.8, 1.2))
            loss = (loss_T * torch.tensor(segment.mask[1:], device=args.device)).sum() / tokens
            loss.backward()
            value += loss.item()
        return value

    out: dict[str, Callable[[], float]] = {"mua": mua, "naive": naive}
    if importlib.util.find_spec("trl"):
        import trl_update

        made = trl_update.batches(segments, advantages, args.rows or len(segments), args.device)
        for name, checkpointing in (("trl", False), ("trl_default", True)):
            out[name] = lambda checkpointing=checkpointing: trl_update.update(
                trl_update.switched(model, checkpointing, args.device), made
            )
    return {name: side for name, side in out.items() if name == "mua" or name in args.sides}


def measure(model: Any, segments: list[Segment], args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and ratios of all sides on one step."""
    rng = random.Random(0)
    advantages = [rng.choice([-1.0, 1.0]) for _ in segments]
    _sample(model, segments, rng, args.device)
    seconds: dict[str, list[float]] = {}
    first: tuple[float, list[torch.Tensor]] | None = None
    for number in range(args.rounds + 1):  # the first warms up
        for name, side in sides(model, segments, advantages, args).items():
            model.zero_grad(set_to_none=True)
            recompute(model, False)
            began = _now(args.device)
            loss = side()
            taken = _now(args.device) - began
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            if first is None:
                first = loss, [g.clone() for g in gradients]
            _same(name, loss, gradients, first)
            if number:
                seconds.setdefault(name, []).append(taken)
    tokens = sum(len(s.ids) for s in segments)
    read = sum(batch.read for batch in batches_for(model, segments))
    return {
        "tokens": tokens,
        "sampled": sum(sum(s.mask) for s in segments),
        "read_by_mua": read,
        "tokens_per_second": {name: round(tokens / statistics.median(t), 1) for name, t in seconds.items()},
        "ratio": {
            name: _spread([t / o for t, o in zip(times, seconds["mua"], strict=True)])
            for name, times in seconds.items()
            if name != "mua"
        },
    }


@torch.no_grad()
def _sample(model: Any, segments: list[Segment], rng: random.Random, device: str) -> None:
    """Old log-probabilities near the model's, as an engine would have given them."""
    for segment in segments:
        ids_1T = torch.tensor([segment.ids], device=device)
        all_TV = model(ids_1T, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        found = all_TV.gather(1, ids_1T[0, 1:, None])[:, 0].tolist()
        segment.logprobs = [
            (x + rng.uniform(-0.3, 0.3)) * m for x, m in zip([0.0, *found], segment.mask, strict=True)
        ]


def _same(name: str, loss: float, gradients: Sequence[torch.Tensor], first: Any) -> None:
    tolerance = 1e-3 if gradients[0].dtype == torch.float32 else 5e-2
    scale = max(float(g.abs().max()) for g in first[1])
    apart = max(float((a - b).abs().max()) for a, b in zip(gradients, first[1], strict=True)) / scale
    if abs(loss - first[0]) > tolerance or apart > tolerance:
        raise SystemExit(
            f"{name}: loss {loss} and gradient differ from {first[0]} (by {apart:.2g} of the largest)"
        )


def _now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _spread(values: Sequence[float]) -> dict[str, float]:
    found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: round(value, 3) for name, value in found.items()}


def grow(model: Any, vocab: int, args: argparse.Namespace) -> dict[str, Any]:
    """Ratios to TRL as one thing grows and the others stay as in `shared`."""
    from plot import Panel, write_svg

    axes: dict[str, tuple[str, Sequence[int]]] = {
        "turns": ("turns", (1, 3, 6, 12)),
        "episodes of a group": ("group", (2, 4, 8, 16)),
        "tokens of the shared prompt": ("prompt", (100, 500, 1500, 3000)),
    }
    out: dict[str, Any] = {}
    panels = []
    for label, (name, values) in axes.items():
        series: dict[str, list[Any]] = {}
        out[name] = {}
        for value in values:
            found = measure(model, work("grown", vocab, **{name: value}), args)
            out[name][value] = found
            for side, ratio in found["ratio"].items():
                series.setdefault(f"{side} : mua", []).append(
                    (value, *(ratio[k] for k in ("median", "min", "max")))
                )
        panels.append(Panel(label, "times as fast", series, line=1.0))
    write_svg(args.grow, "Update: time of the other sides through ours", panels)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", choices=sorted(SHAPES), default="quickstart")
    parser.add_argument("--layers", type=int, help="instead of the model's own")
    parser.add_argument("--work", nargs="+", default=["shared", "turns", "unshared"])
    parser.add_argument("--sides", nargs="+", default=["trl", "trl_default", "naive"])
    parser.add_argument("--rows", type=int, default=8, help="sequences of a batch of TRL's; 0: all at once")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--grow", help="measure growth and draw it into this SVG file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = SHAPES[args.model] | ({"layers": args.layers} if args.layers else {})
    model = tiny_llama(**shape, context=8192, initializer_range=0.05)
    model = model.to(args.device, getattr(torch, args.dtype))
    result: dict[str, Any] = {"name": "update", "model": shape, "rounds": args.rounds, "device": args.device}
    if not importlib.util.find_spec("trl"):
        result["trl"] = "not installed: pip install 'mua[dev]'"
        print(result["trl"])
    if args.grow:
        result["grow"] = grow(model, shape["vocab_size"], args)
    else:
        for kind in args.work:
            result[kind] = found = measure(model, work(kind, shape["vocab_size"]), args)
            print(f"{kind}: {found['tokens']:,} tokens, of which mua reads {found['read_by_mua']:,}")
            for name, rate in found["tokens_per_second"].items():
                ratio = found["ratio"].get(name)
                words = (
                    f"   {ratio['median']:5.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""
                )
                print(f"  {name:12} {rate:10,.0f} tokens/s{words}")
        result["targets"] = TARGETS
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
