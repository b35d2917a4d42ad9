"""How fast conversations of many steps are generated: mua's engine, plain `generate`, TRL's `rollout_func`.

    python perf/rollout.py --json                        # a Llama of the quickstart's size
    python perf/rollout.py --model smollm2 --steps 3     # SmolLM2-135M's shape, random weights
    python perf/rollout.py --grow growth.svg             # by turns, group size and length, against `generate`

Every side plays the same script with the same model: 16 conversations at once in groups that share a prompt
of 1,500 tokens; a step is a fixed number of sampled tokens and a scripted answer.

- `mua`: the engine that `make_engine` picks; each conversation asks for its next step when it has its answer.
- `plain`: `generate` over all conversations, left-padded, with the whole history again in each step.
- `trl`: GRPOTrainer of TRL 1.16 with a `rollout_func` that plays the script through the trainer's own
  generation helper, and `trl_paged`: the same with its `use_transformers_continuous_batching`. They are left
  out where TRL is not installed: `pip install trl==1.16.0`.

Sides take turns within a round, so that a busy machine slows all; ratios are taken per round, by the clock
and by the CPU time of the process, which a busy machine does not stretch. Sampling is
greedy, so that every side must come to the same tokens. All of them are checked against one forward of each
conversation without a cache: each token must be the most likely one, and each log-probability that of the
forward (our engine reports them; the other sides' are taken to be those of the forward).
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import numpy as np
import torch
from plot import Panel, write_svg
from shapes import SHAPES

from mua.engines import Sampling
from mua.engines.local import make_engine
from mua.models import tiny_llama

TOLERANCE = 1e-3
"""Of a log-probability, in nats, between a side and the forward that checks it."""
TARGET = 3.0
"""Times as fast as plain `generate` that the engine is to be."""
SIDES = ("mua", "plain", "trl", "trl_paged")


@dataclass(frozen=True)
class Script:
    """What all sides play. Conversation e belongs to group e // group."""

    prompts: list[list[int]]
    answers: list[list[list[int]]]
    """By conversation and step: what its user or tool says after the agent's tokens."""
    tokens: int
    """Sampled in each step."""

    @property
    def steps(self) -> int:
        return len(self.answers[0])

    @property
    def sampled(self) -> int:
        return len(self.prompts) * self.steps * self.tokens

    @property
    def longest(self) -> int:
        """Tokens of the longest conversation."""
        said = (sum(map(len, each)) for each in self.answers)
        return max(map(sum, zip(map(len, self.prompts), said, strict=True))) + self.steps * self.tokens


@dataclass
class Played:
    """One side's conversations: all ids, which are sampled, and their log-probabilities if it has them."""

    ids: list[list[int]]
    mask: list[list[int]]
    logprobs: list[list[float]] | None = None


Side = Callable[[Script], Played]


def write_script(options: argparse.Namespace, vocabulary: int) -> Script:
    """Groups share all but the last `own` tokens of the prompt with each other, and all of it within."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> list[int]:
        return rng.integers(1, vocabulary, count).tolist()

    own = min(options.own, options.prompt)
    system = draw(options.prompt - own)
    prompts: list[list[int]] = []
    while len(prompts) < options.episodes:
        prompts += [system + draw(own)] * options.group
    prompts = prompts[: options.episodes]
    low, high = options.answer // 2, options.answer * 3 // 2
    answers = [[draw(int(rng.integers(low, high + 1))) for _ in range(options.steps)] for _ in prompts]
    return Script(prompts, answers, options.tokens)


# ---------------------------------------------------------------- the sides


def with_mua(model: Any, episodes: int) -> Side:
    """Every conversation for itself, over one engine."""
    engine: Any = make_engine(model, slots=episodes)

    async def converse(script: Script, number: int, played: Played) -> None:
        ids, mask = list(script.prompts[number]), [0] * len(script.prompts[number])
        logprobs: list[float] = []
        sampling = Sampling(temperature=0, max_tokens=script.tokens)
        for answer in script.answers[number]:
            done = await engine.generate(ids, sampling, str(number))
            ids += done.token_ids + answer
            mask += [1] * len(done.token_ids) + [0] * len(answer)
            logprobs += done.logprobs
        engine.release(str(number))
        played.ids[number], played.mask[number] = ids, mask
        assert played.logprobs is not None
        played.logprobs[number] = logprobs

    def play(script: Script) -> Played:
        count = len(script.prompts)
        played = Played([[]] * count, [[]] * count, [[]] * count)

        async def everybody() -> None:
            await asyncio.gather(*(converse(script, number, played) for number in range(count)))

        engine.clear_cache()  # the weights are others in every step of training
        asyncio.run(everybody())
        return played

    return play


def step_by_step(generate: Callable[[list[list[int]]], list[list[int]]], script: Script) -> Played:
    """All conversations in step; `generate` gets the whole histories and answers with the new tokens."""
    ids = [list(prompt) for prompt in script.prompts]
    mask = [[0] * len(prompt) for prompt in script.prompts]
    for step in range(script.steps):
        for number, sampled in enumerate(generate(ids)):
            answer = script.answers[number][step]
            ids[number] = ids[number] + sampled + answer
            mask[number] += [1] * len(sampled) + [0] * len(answer)
    return Played(ids, mask)


def with_plain(model: Any) -> Side:
    def play(script: Script) -> Played:
        def generate(histories: list[list[int]]) -> list[list[int]]:
            longest = max(map(len, histories))
            padding = [longest - len(ids) for ids in histories]
            with torch.no_grad():
                out = model.generate(
                    input_ids=torch.tensor(
                        [[0] * p + i for p, i in zip(padding, histories, strict=True)], device=model.device
                    ),
                    attention_mask=torch.tensor(
                        [[0] * p + [1] * (longest - p) for p in padding], device=model.device
                    ),
                    max_new_tokens=script.tokens,
                    do_sample=False,
                    pad_token_id=0,
                )
            return out[:, longest:].tolist()

        return step_by_step(generate, script)

    return play


def with_trl(model: Any, script: Script, folder: str, paged: bool) -> Side:
    """TRL's trainer over the same model; what is timed is its `_generate`, which calls the `rollout_func`."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    # The end of a text is an id that the model does not have: every step then has the same number of tokens.
    size = model.config.vocab_size
    words = {"<pad>": 0, **{str(number): number for number in range(1, size)}, "<end>": size}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")), pad_token="<pad>", eos_token="<end>"
    )
    played: list[Played] = []

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        def generate(histories: list[list[int]]) -> list[list[int]]:
            return trainer._generate_single_turn(histories, None, {}, len(prompts))[0]

        played.append(step_by_step(generate, script))
        starts = [len(prompt) for prompt in script.prompts]
        ids, mask = played[-1].ids, played[-1].mask
        return {
            "prompt_ids": script.prompts,
            "completion_ids": [i[start:] for i, start in zip(ids, starts, strict=True)],
            "env_mask": [m[start:] for m, start in zip(mask, starts, strict=True)],
            "logprobs": None,
        }

    count = len(script.prompts)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=folder,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=count,
            num_generations=count,
            max_completion_length=script.tokens,
            generation_kwargs={"do_sample": False},
            use_transformers_continuous_batching=paged,
            # By default it takes most of the memory for pages; here, what the conversations need and a bit.
            transformers_continuous_batching_config={
                "page_size": 64,
                "num_blocks": count * (script.longest // 64 + 2),
                "max_batch_tokens": 4096,
            },
            report_to=[],
        ),
        train_dataset=Dataset.from_list([{"prompt": "1"}]),
        processing_class=tokenizer,
        rollout_func=rollout,
    )

    trainer._generate_single_turn([[1, 2, 3]] * count, None, {}, count)  # allocation, lazy imports

    def play(again: Script) -> Played:
        assert again is script
        trainer._generate(["1"] * count)
        return played.pop()

    return play


# ---------------------------------------------------------------- the check


def check(model: Any, played: dict[str, Played], episodes: Sequence[int]) -> dict[str, Any]:
    """How far each side is from a forward without a cache, over the given conversations; ends the program
    when a side is wrong."""
    found: dict[str, Any] = {}
    first = next(iter(played.values()))
    for name, side in played.items():
        short, off = 0.0, 0.0
        for number in episodes:
            ids = torch.tensor([side.ids[number]], device=model.device)
            at = np.flatnonzero(side.mask[number])
            with torch.no_grad():
                hidden = model.model(ids).last_hidden_state[0, at - 1]
                table = model.lm_head(hidden).float().log_softmax(-1)
            chosen = table.gather(1, ids[0, at][:, None])[:, 0]
            short = max(short, float((table.max(-1).values - chosen).max()))
            if side.logprobs is not None:
                reported = torch.tensor(side.logprobs[number], device=model.device)
                off = max(off, float((reported - chosen).abs().max()))
        same = [a == b for a, b in zip(side.ids, first.ids, strict=True)]
        found[name] = {
            "least_likely": round(short, 7),
            "same_conversations": sum(same) / len(same),
            **({"logprob_error": round(off, 7)} if side.logprobs is not None else {}),
        }
        if max(short, off) > TOLERANCE:
            raise SystemExit(
                f"{name} is wrong by {max(short, off):.4f} nats, so its speed counts for nothing"
            )
    return found


# ---------------------------------------------------------------- the measurement


def measure(options: argparse.Namespace, wanted: Sequence[str]) -> dict[str, Any]:
    """Tokens per second of each side, sampled ones only, and the ratios of ours to the others."""
    shape = SHAPES[options.model]
    longest = options.prompt + options.steps * (options.tokens + options.answer * 3 // 2 + 1)
    # Wide initial weights give clear maxima, so that sides can be compared token for token.
    model: Any = tiny_llama(**shape, context=max(8192, longest), initializer_range=0.08, pad_id=0)  # type: ignore[arg-type]
    if torch.cuda.is_available():
        model.to("cuda")
    script = write_script(options, shape["vocab_size"])
    warm = write_script(
        argparse.Namespace(**{**vars(options), "prompt": 40, "steps": 1, "tokens": 2}), shape["vocab_size"]
    )
    seconds: dict[str, list[float]] = {name: [] for name in wanted}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in wanted}
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Side] = {}
        for name in wanted:
            if name == "mua":
                sides[name] = with_mua(model, options.episodes)
            elif name == "plain":
                sides[name] = with_plain(model)
            else:
                sides[name] = with_trl(model, script, folder, paged=name == "trl_paged")
            if not name.startswith("trl"):
                sides[name](warm)  # allocation, lazy imports
        model.eval()
        played: dict[str, Played] = {}
        for number in range(options.rounds):
            for name, play in sides.items():
                began, cpu = time.perf_counter(), time.process_time()
                played[name] = play(script)
                seconds[name].append(time.perf_counter() - began)
                cpu_seconds[name].append(time.process_time() - cpu)
                model.eval()  # TRL leaves the model in training mode
                took = f"{seconds[name][-1]:.1f} s, {cpu_seconds[name][-1]:.1f} s of CPU"
                print(f"round {number + 1}: {name} {took}", file=sys.stderr)
    some = np.linspace(0, options.episodes - 1, min(options.episodes, options.check)).astype(int).tolist()
    checked = check(model, played, some)
    return {
        "name": "rollout",
        "model": options.model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "episodes": options.episodes,
        "group": options.group,
        "steps": options.steps,
        "prompt": options.prompt,
        "tokens": script.sampled,
        "context_tokens": sum(map(len, script.prompts))
        + sum(len(a) for each in script.answers for a in each),
        "rounds": options.rounds,
        "tokens_per_second": {
            name: spread([script.sampled / s for s in times]) for name, times in seconds.items()
        },
        "tokens_per_cpu_second": {
            name: spread([script.sampled / s for s in times]) for name, times in cpu_seconds.items()
        },
        "ratios": ratios(seconds),
        "cpu_ratios": ratios(cpu_seconds),
        "target": {"mua_to_plain": TARGET},
        "check": checked,
        "checked_conversations": len(some),
    }


def ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Times as fast as each other side, round by round."""
    return {
        f"mua_to_{name}": spread([theirs / ours for ours, theirs in zip(seconds["mua"], times, strict=True)])
        for name, times in seconds.items()
        if name != "mua"
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "min": round(min(values), 2),
        "median": round(statistics.median(values), 2),
        "max": round(max(values), 2),
    }


GROWTH: dict[str, tuple[str, Sequence[int]]] = {
    "steps": ("turns", (2, 5, 10, 20)),
    "group": ("group size", (1, 2, 4, 8, 16)),
    "prompt": ("tokens of the prompt", (250, 500, 1000, 1500, 3000)),
}


def grow(options: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Ours against plain `generate` where one size grows and the others stay; the plot of it."""
    table: dict[str, list[dict[str, Any]]] = {}
    for size, (_, values) in GROWTH.items():
        table[size] = []
        for value in values:
            # Groups of one share nothing but the system prompt: their prompts differ in `own` tokens.
            print(f"{size} = {value}", file=sys.stderr)
            row = measure(argparse.Namespace(**{**vars(options), size: value}), ("mua", "plain"))
            keys = ("tokens_per_cpu_second", "cpu_ratios")
            table[size].append({size: value, **{key: row[key] for key in keys}})
    panels = []
    for size, (label, _) in GROWTH.items():
        points = [
            (row[size], *(row["cpu_ratios"]["mua_to_plain"][key] for key in ("median", "min", "max")))
            for row in table[size]
        ]
        name = "mua : plain generate, times as fast"
        panels.append(Panel(label, "times as fast", {name: points}, line=TARGET, log_x=True))
    write_svg(path, "Rollouts of many steps: mua against plain generate", panels)
    return {"name": "rollout_growth", "model": options.model, "growth": table}


def show(result: dict[str, Any]) -> None:
    print(
        "{episodes} conversations in groups of {group}, {steps} steps, prompt of {prompt} tokens, {tokens} "
        "sampled; {parameters} parameters, {threads} thread(s), {rounds} round(s)".format(**result)
    )
    for title in ("tokens_per_second", "tokens_per_cpu_second", "ratios", "cpu_ratios"):
        print(f"{title:<22}{'min':>10}{'median':>10}{'max':>10}")
        for name, row in result[title].items():
            print(f"  {name:<20}{row['min']:>10}{row['median']:>10}{row['max']:>10}")
    for name, row in result["check"].items():
        print(f"  checked {name}: {row}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=sorted(SHAPES), default="quickstart")
    parser.add_argument("--steps", type=int, default=20, help="of each conversation")
    parser.add_argument("--episodes", type=int, default=16, help="conversations at once")
    parser.add_argument("--group", type=int, default=8, help="conversations with the same prompt")
    parser.add_argument("--prompt", type=int, default=1500, help="tokens of the prompt")
    parser.add_argument("--own", type=int, default=100, help="of them, tokens that other groups do not have")
    parser.add_argument("--tokens", type=int, default=32, help="sampled in a step")
    parser.add_argument("--answer", type=int, default=32, help="tokens of an answer, on average")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--check", type=int, default=4, help="conversations checked by a plain forward")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="who plays, beside mua")
    parser.add_argument("--grow", metavar="SVG", type=Path, help="measure the growth, and plot it there")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    if options.grow is not None:
        result = grow(options, options.grow)
    else:
        wanted = ["mua", *(side for side in options.sides if side != "mua")]
        if importlib.util.find_spec("trl") is None and any(side.startswith("trl") for side in wanted):
            print("TRL is not installed, so it is left out: pip install trl==1.16.0", file=sys.stderr)
            wanted = [side for side in wanted if not side.startswith("trl")]
        result = measure(options, wanted)
        if not options.json:
            show(result)
    if options.json or options.grow is not None:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
