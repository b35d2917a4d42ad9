"""Does a cold start favour its own domains? SFT on the set of all domains against SFT on `library` alone.

    python perf/transfer.py --out runs/transfer [--steps 1200] [--tasks 0] [--json]

A small Llama, made on the spot with a tokenizer of the set of all domains, learns from the conversations of
`mua coldstart --all` (personas and failing calls included), and, from the same start, from those of `library`
alone: as many steps, each of about as many tokens. Both are measured on the test split of every domain:

- live, greedy, with the domain's agenda user, behaving plainly: success;
- on conversations of the expert with that user, each move given all that came before: loss of a token of the
  agent, share of its calls that are right to the last token, and of its words.

Policies and tool descriptions are left out of the prompt (the domain's name stands there): a model from
nothing cannot read them. Every part is kept in OUT, and the same command goes on; `--only all` and
`--only library` may run side by side before it. `--json` ends with one line.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from mua.agents.model import ModelAgent
from mua.coldstart import dataset
from mua.coldstart.conversations import play_expert
from mua.domain import Domain, Limits
from mua.domains import load
from mua.engines import Sampling
from mua.engines.local import make_engine
from mua.evaluate.run import EvalSettings, evaluate
from mua.evaluate.statistics import wilson
from mua.formats import ChatFormat, hermes_text
from mua.models import load_model, save_model, tiny_llama
from mua.seeds import derive_seed
from mua.tokenizer import FRAMES, train_tokenizer
from mua.train import SftSettings, checkpoint
from mua.train.optimizer import adamw
from mua.train.sft import train_sft
from mua.trajectory import Segment, Trajectory, read_trajectories

ALONE = "library"
CONTEXT = 1536
LIMITS = Limits(turns=15, steps=40, errors=6)
CHECKPOINT_SECONDS = 60.0


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def brief(domain: Domain) -> Domain:
    """The domain with its name in place of its policy."""
    return dataclasses.replace(domain, policy=domain.name)


def conversations(path: Path, domains: Sequence[Domain], count: int, seed: int) -> list[Trajectory]:
    """Verified conversations of the domains, from the file or into it."""
    if not path.exists():
        made = asyncio.run(dataset.build(domains, count, seed))
        fresh = path.with_suffix(".new")
        fresh.write_text("".join(json.dumps(line) + "\n" for line in made.lines), encoding="utf-8")
        fresh.replace(path)
        say(f"{path}: {len(made.lines)} conversations")
    return list(read_trajectories(path))


def make_base(folder: Path, kept: Sequence[Trajectory], domains: Sequence[Domain], seed: int) -> None:
    texts = [m.content + hermes_text(m.tool_calls) for t in kept for m in t.messages[1:]]
    tools = dict.fromkeys(name for domain in domains for name in domain.tools())
    tokenizer = train_tokenizer([*texts, *(d.name for d in domains)], 2000, [*FRAMES, *tools])
    model = tiny_llama(
        *(len(tokenizer), 3, 192, 4, 2, 512, CONTEXT, derive_seed(seed, "model")),
        pad_id=tokenizer.pad_token_id,
        eos_id=tokenizer.eos_token_id,
        head_dim=64,
        rope_theta=1e6,
        copying=True,
    )
    save_model(model, tokenizer, folder)


def segments_of(format: ChatFormat, kept: Sequence[Trajectory]) -> list[Segment]:
    """The conversations in tokens, as their agent saw them, without those that the context cannot hold."""
    out = []
    for trajectory in kept:
        system = dataclasses.replace(trajectory.messages[0], content=trajectory.domain)
        (segment,) = format.trace_of([system, *trajectory.messages[1:]], {}).segments
        out += [segment] if len(segment.ids) <= CONTEXT else []
    return out


def train(out: Path, name: str, segments: Sequence[Segment], steps: int, batch: int, seed: int) -> None:
    """`OUT/NAME` from `OUT/base`; a checkpoint a minute."""
    model, tokenizer = load_model(out / "base")
    settings = SftSettings(
        lr=1e-3,
        steps=steps,
        batch_size=batch,
        warmup_steps=30,
        betas=(0.9, 0.98),
        all_tokens_until=0.2,
        seed=derive_seed(seed, "sft"),
    )
    optimizer, checkpoints, start = adamw(model, settings), out / f"checkpoints_{name}", 0
    if (found := checkpoint.latest(checkpoints)) is not None:
        start, _ = checkpoint.load(found, model, optimizer)
    saved = time.monotonic()

    def on_step(line: dict[str, Any]) -> None:
        nonlocal saved
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            checkpoint.save(checkpoints, line["step"], model, optimizer, keep=1)
            saved = time.monotonic()
            say(f"{name}: step {line['step']} of {steps}, loss {line['loss']:.3f}")

    result = train_sft(model, segments, settings, optimizer=optimizer, start_step=start, on_step=on_step)
    save_model(model, tokenizer, out / name)
    say(f"{name}: {steps} steps, {result.tokens:,} tokens in this call, {result.seconds:.0f} s")


# ---------------------------------------------------------------- measuring


def live(out: Path, name: str, domain: Domain, tasks: int, seed: int) -> dict[str, Any]:
    """Success with the agenda user, greedy."""
    model, tokenizer = load_model(out / name)
    format = ChatFormat.of(tokenizer, tool_style="none")
    split = domain.tasks("test")
    engine = make_engine(model, "slots", slots=min(tasks or len(split), 64))
    sampling = Sampling(temperature=0.0, max_tokens=160)
    make_user = domain.agenda_user
    assert make_user is not None

    async def played() -> Any:
        try:
            return await evaluate(
                domain,
                split,
                lambda task, session, seed: ModelAgent(
                    format, engine, domain.task_tools(task), sampling=sampling, session=session, seed=seed
                ),
                make_user,
                EvalSettings(tasks=tasks or None, seed=seed),
                LIMITS,
                out=out,
                name=f"{name}_{domain.name}",
                model=name,
            )
        finally:
            await engine.close()

    result = asyncio.run(played())
    right = sum(r for rewards in result.outcomes.values() for r in rewards)
    count = sum(map(len, result.outcomes.values()))
    return {"n": count, "success": right / count, "ci95": wilson(int(right), count)}


def held_out(domain: Domain, count: int, seed: int) -> list[Trajectory]:
    """The expert's conversations of test tasks."""

    async def play_all() -> list[Trajectory]:
        return [await play_expert(domain, task, seed, Limits()) for task in domain.tasks("test")[:count]]

    return asyncio.run(play_all())


def given_the_rest(out: Path, name: str, segments: Sequence[Segment]) -> dict[str, float]:
    """Each move of the agent, predicted from all that came before."""
    model, tokenizer = load_model(out / name)
    call = tokenizer.encode(FRAMES[0], add_special_tokens=False)[0]
    loss, tokens = 0.0, 0
    moves: dict[str, list[bool]] = {"calls": [], "words": []}
    for segment in segments:
        ids = torch.tensor([segment.ids])
        with torch.inference_mode():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        right = (logprobs.argmax(-1) == ids[0, 1:]).tolist()
        taken = logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()
        at = 1
        while at < len(segment.ids):
            end = at
            while end < len(segment.ids) and segment.mask[end]:
                end += 1
            if end > at:
                kind = "calls" if segment.ids[at] == call else "words"
                moves[kind].append(all(right[at - 1 : end - 1]))
                loss -= sum(taken[at - 1 : end - 1])
                tokens += end - at
            at = max(end, at + 1)
    shares = {kind: sum(found) / max(1, len(found)) for kind, found in moves.items()}
    return {"loss": loss / tokens, **shares, "moves": sum(map(len, moves.values()))}


def measure(out: Path, name: str, domains: Sequence[Domain], tasks: int, seed: int) -> dict[str, Any]:
    """Domain → figures of one model; what stands in OUT/NAME.json is not measured again."""
    path = out / f"{name}.json"
    done = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for domain in domains:
        if domain.name in done:
            continue
        _, tokenizer = load_model(out / name)
        segments = segments_of(ChatFormat.of(tokenizer, tool_style="none"), held_out(domain, 40, seed))
        done[domain.name] = {
            **given_the_rest(out, name, segments),
            **live(out, name, brief(domain), tasks, seed),
        }
        path.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
        say(f"{name} on {domain.name}: {done[domain.name]}")
    return done


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--out", type=Path, default=Path("runs/transfer"))
    options.add_argument("--steps", type=int, default=1200)
    options.add_argument("--batch", type=int, default=4, help="conversations a step, of the set of all")
    options.add_argument("--conversations", type=int, default=dataset.COUNT)
    options.add_argument("--tasks", type=int, default=0, help="live test tasks of each domain; 0: all")
    options.add_argument("--domains", default="", help="only these, with commas; default: all there are")
    options.add_argument("--only", choices=["all", ALONE], help="one of the two: both at the same time")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    torch.set_num_threads(1)
    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    if args.domains:
        domains = [load(name) for name in args.domains.split(",")]
    else:
        domains, left_out = dataset.scenarios()
        if left_out:
            say(f"left out: {left_out}")
    sets = {
        "all": conversations(out / "all.jsonl", domains, args.conversations, args.seed),
        ALONE: conversations(out / f"{ALONE}.jsonl", [load(ALONE)], args.conversations, args.seed),
    }
    if not (out / "base").exists():
        make_base(out / "base", sets["all"], domains, args.seed)
    _, tokenizer = load_model(out / "base")
    format = ChatFormat.of(tokenizer, tool_style="none")
    table: dict[str, Any] = {"steps": args.steps, "models": {}}
    lengths = {}
    for name, kept in sets.items():
        segments = segments_of(format, kept)
        lengths[name] = sum(len(s.ids) for s in segments) / len(segments)
        batch = round(args.batch * lengths["all"] / lengths[name])
        table["models"][name] = {
            "conversations": len(kept),
            "too_long": len(kept) - len(segments),
            "tokens": round(lengths[name] * len(segments)),
            "batch": batch,
            "tokens_read": round(args.steps * batch * lengths[name]),
        }
        if args.only not in (None, name):
            continue
        if not (out / name).exists():
            train(out, name, segments, args.steps, batch, args.seed)
        table["models"][name]["domains"] = measure(out, name, domains, args.tasks, args.seed)
    if args.only:
        return
    show(table, [d.name for d in domains])
    if args.json:
        print(json.dumps(table))


def show(table: dict[str, Any], domains: Sequence[str]) -> None:
    """The two tables in Markdown."""
    models = {"all": "all domains", ALONE: f"{ALONE} alone"}
    print(f"| test split of | {' | '.join(f'{m}: success' for m in models.values())} |", end="")
    print(f" {' | '.join(f'{m}: loss, calls, words' for m in models.values())} |\n|{'---|' * 5}")
    for domain in domains:
        found = [table["models"][m]["domains"][domain] for m in models]
        success = [
            f"{100 * f['success']:.0f} ({100 * f['ci95'][0]:.0f}-{100 * f['ci95'][1]:.0f})" for f in found
        ]
        given = [f"{f['loss']:.2f}, {100 * f['calls']:.0f}, {100 * f['words']:.0f}" for f in found]
        print(f"| {domain} | {' | '.join([*success, *given])} |")


if __name__ == "__main__":
    main()
