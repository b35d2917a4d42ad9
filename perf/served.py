"""What replicas gain: tokens a second of the served engine over one vLLM and over several.

    make .venv-vllm/.installed
    python perf/served.py --python .venv-vllm/bin/python --replicas 1 2 --json
    python perf/served.py --stand-in --replicas 1 2 4 8 --json

Conversations run at once; each asks for `rounds` steps of `tokens` tokens, and its prompt grows by what came
and by 30 new ones, as in an episode. The model is a random Llama. Each replica has one thread, so on a
machine with fewer free cores than replicas there is nothing to gain. Reported are tokens a second, the share
of prompt tokens that the replicas found in their prefix caches, and the seconds of a weight update of all.

With --stand-in the replicas are programs that wait: 10 ms a token, 8 requests at a time, in vLLM's dialect.
So 800 tokens a second each are what there is to have; the rest is routing, HTTP and this one process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from mua.engines import Sampling
from mua.engines.served import ServerSettings, open_engine
from mua.models import save_model, tiny_llama
from mua.tokenizer import train_tokenizer
from vllm_server import VllmServer


def stand_in(port: int) -> None:
    """A replica that costs time and no CPU."""
    from aiohttp import web

    slots = asyncio.Semaphore(8)

    async def complete(request: web.Request) -> web.Response:
        body = await request.json()
        count = body["max_tokens"]
        async with slots:
            await asyncio.sleep(0.01 * count)
        choice = {
            "token_ids": [(body["seed"] + n) % 200 for n in range(count)],
            "prompt_token_ids": body["prompt"],
            "logprobs": {"token_logprobs": [-0.5] * count},
            "finish_reason": "length",
        }
        return web.json_response({"choices": [choice]})

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "agent", "max_model_len": 4096}]})

    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/completions", complete)
    app.router.add_get("/v1/models", models)
    web.run_app(app, host="127.0.0.1", port=port, print=lambda *_: None)


def until_it_listens(port: int) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


async def measure(urls: list[str], folder: Path, model: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Figures over these servers."""
    engine = await open_engine("vllm", ServerSettings(urls=tuple(urls)), folder=folder)
    loading = None
    if model is not None:
        began = time.perf_counter()
        await engine.load(model)
        loading = time.perf_counter() - began

    async def episode(number: int, rounds: int) -> int:
        ids = [2 + n % 200 for n in range(options.prompt)]
        for turn in range(rounds):
            ids += [2 + (number * 31 + turn * 7 + n) % 200 for n in range(30)]
            sampling = Sampling(max_tokens=options.tokens, seed=number * 100 + turn)
            ids += (await engine.generate(ids, sampling, f"{number}")).token_ids
        return rounds * options.tokens

    await asyncio.gather(*(episode(1000 + n, 1) for n in range(4)))  # what is compiled at first
    began = time.perf_counter()
    tokens = sum(await asyncio.gather(*(episode(n, options.rounds) for n in range(options.conversations))))
    seconds = time.perf_counter() - began
    await engine.close()
    return {"tokens_per_second": tokens / seconds, "seconds": seconds, "update_seconds": loading}


def stood_in(count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Figures over so many replicas that only wait."""
    ports = [free_port() for _ in range(count)]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=stand_in, args=(port,), daemon=True) for port in ports]
    for process in processes:
        process.start()
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    try:
        for port in ports:
            until_it_listens(port)
        runs = [asyncio.run(measure(urls, Path(), None, options)) for _ in range(options.repeats)]
    finally:
        for process in processes:
            process.terminate()
    return max(runs, key=lambda run: run["tokens_per_second"])


def report(options: argparse.Namespace, found: dict[int, dict[str, Any]]) -> None:
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for count, figures in found.items():
            print(f"{count} replicas: {figures['tokens_per_second']:.0f} tokens/s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default=os.environ.get("MUA_VLLM", ""), help="a Python that has vLLM")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--conversations", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=400, help="tokens that all conversations begin with")
    parser.add_argument("--repeats", type=int, default=3, help="the best is reported")
    parser.add_argument("--stand-in", action="store_true", help="replicas that only wait")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.stand_in:
        return report(options, {n: stood_in(n, options) for n in options.replicas})
    if not options.python:
        parser.error("--python names no Python with vLLM; `make test-vllm` installs one in .venv-vllm")
    model = tiny_llama(1024, 4, 256, 4, 2, 768, context=2048, head_dim=64, initializer_range=0.1)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = type(model.lm_head.weight)(model.lm_head.weight.detach().clone())
    found = {}
    with tempfile.TemporaryDirectory(prefix="mua-perf-") as name, ExitStack() as stack:
        folder = Path(name)
        save_model(model, train_tokenizer(["a b c"], 300, []), folder / "model")
        most = max(options.replicas)
        started = [
            VllmServer(options.python, folder / "model", folder / f"{n}.log", context=2048)
            for n in range(most)
        ]
        servers = [stack.enter_context(server) for server in started]
        for count in options.replicas:
            used = servers[:count]
            names = ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total")
            before = [sum(s.metric(n) for s in used) for n in names]
            runs = [
                asyncio.run(measure([s.root for s in used], folder / "w", model, options))
                for _ in range(options.repeats)
            ]
            hits, asked = (sum(s.metric(n) for s in used) - b for n, b in zip(names, before, strict=True))
            best = max(runs, key=lambda run: run["tokens_per_second"])
            found[count] = {**best, "cached": hits / max(1, asked)}
    report(options, found)


if __name__ == "__main__":
    main()
