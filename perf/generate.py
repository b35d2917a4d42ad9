"""How fast the local engines generate: slot engine, plain left-padded `generate`, continuous batching.

Every round all conversations ask for the same number of greedy tokens; the next round's prompts are the
last ones, the answers and some new ids, as in an episode. All engines get the same prompts and the same
number of tokens to make. A ratio is taken per round, so that what else the machine does hits both sides.

    python perf/generate.py --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from typing import Any

MODELS: dict[str, Any] = {
    "small": {"layers": 4, "hidden": 192},
    "medium": {"layers": 6, "hidden": 384, "intermediate": 1024},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each conversation")
    parser.add_argument("--size", choices=sorted(MODELS), default="small", help="model")
    parser.add_argument("--rows", type=int, default=64, help="conversations at once")
    parser.add_argument("--prompt", type=int, default=200, help="tokens of the first prompts, on average")
    parser.add_argument("--tokens", type=int, default=24, help="tokens to generate a turn")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch threads")
    parser.add_argument("--no-continuous", action="store_true", help="leave the slowest of the three out")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # before torch is imported
    result = asyncio.run(measure(args))
    show(result)
    if args.json:
        print(json.dumps(result))


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of each engine and round, and their ratios."""
    import numpy as np
    import torch

    from mua.engines import Sampling
    from mua.engines.continuous import ContinuousEngine
    from mua.engines.slots import SlotEngine
    from mua.models import tiny_llama

    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    vocabulary = 1500
    # Wide initial weights: clear maxima, so that engines can be compared token for token.
    model: Any = tiny_llama(vocabulary, context=2048, initializer_range=0.1, pad_id=0, **MODELS[args.size])
    engines: dict[str, Any] = {"slots": SlotEngine(model, slots=args.rows)}
    if not args.no_continuous:
        engines["continuous"] = ContinuousEngine(model)
    system = rng.integers(1, vocabulary, args.prompt // 2).tolist()
    spread = args.prompt // 4
    prompts = [
        system
        + rng.integers(1, vocabulary, args.prompt // 2 + int(rng.integers(-spread, spread + 1))).tolist()
        for _ in range(args.rows)
    ]
    sampling = Sampling(temperature=0, max_tokens=args.tokens)

    async def with_engine(engine: Any, prompts: list[list[int]]) -> list[list[int]]:
        jobs = (engine.generate(prompt, sampling, f"s{i}") for i, prompt in enumerate(prompts))
        return [done.token_ids for done in await asyncio.gather(*jobs)]

    def with_plain(prompts: list[list[int]]) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=args.tokens,
                min_new_tokens=args.tokens,
                do_sample=False,
            )
        return out[:, longest:].tolist()

    # A first small call each: allocation, lazy imports.
    for engine in engines.values():
        await with_engine(engine, [[1, 2, 3]])
        engine.clear_cache()
    with_plain([[1, 2, 3]])

    speed: dict[str, list[float]] = {name: [] for name in (*engines, "plain")}
    same: dict[str, list[float]] = {name: [] for name in speed if name != "slots"}
    for _ in range(args.rounds):
        answers: dict[str, list[list[int]]] = {}
        for name, speeds in speed.items():
            started = time.perf_counter()
            if name == "plain":
                answers[name] = with_plain(prompts)
            else:
                answers[name] = await with_engine(engines[name], prompts)
            speeds.append(args.rows * args.tokens / (time.perf_counter() - started))
        for name, shares in same.items():
            pairs = zip(answers["slots"], answers[name], strict=True)
            shares.append(sum(a == b for a, b in pairs) / args.rows)
        prompts = [
            prompt + answer + rng.integers(1, vocabulary, 16).tolist()
            for prompt, answer in zip(prompts, answers["slots"], strict=True)
        ]
    for engine in engines.values():
        await engine.close()
    ratios = {
        f"slots_to_{name}": spread_of([a / b for a, b in zip(speed["slots"], speed[name], strict=True)])
        for name in same
    }
    return {
        "rows": args.rows,
        "tokens": args.tokens,
        "rounds": args.rounds,
        "threads": args.threads,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_second": {name: spread_of(values) for name, values in speed.items()},
        "same_completions": {name: min(values) for name, values in same.items()},
        "ratios": ratios,
    }


def spread_of(values: list[float]) -> dict[str, float]:
    return {
        "min": round(min(values), 2),
        "median": round(statistics.median(values), 2),
        "max": round(max(values), 2),
    }


def show(result: dict[str, Any]) -> None:
    out = sys.stdout
    out.write(
        f"{result['rows']} conversations, {result['rounds']} rounds of {result['tokens']} tokens, "
        f"{result['parameters'] / 1e6:.1f} M parameters, {result['threads']} thread(s)\n"
    )
    for title, table in (("tokens/s", result["tokens_per_second"]), ("ratio", result["ratios"])):
        out.write(f"{title:<22}{'min':>9}{'median':>9}{'max':>9}\n")
        for name, row in table.items():
            out.write(f"  {name:<20}{row['min']:>9}{row['median']:>9}{row['max']:>9}\n")
    out.write(f"completions equal to the slot engine's, worst round: {result['same_completions']}\n")


if __name__ == "__main__":
    main()
