"""What a gateway costs: requests a second and milliseconds of CPU a request, as a plain endpoint and as a
gateway with two routes, limits, a budget and a cache; then once more, when all answers are in the cache.

    python perf/gateway.py --json

The servers are one process that answers every request after 0.2 seconds; a request is a conversation of about
6 kB, as a simulated user sends them. 256 are in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

from served import free_port, until_it_listens

from mua.endpoint import Endpoint, EndpointSettings
from mua.gateway import Gateways, GatewaySettings

DELAY = 0.2


def answering(port: int) -> None:
    """A chat endpoint that takes its time."""
    from aiohttp import web

    async def chat(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(DELAY)
        choice = {"message": {"role": "assistant", "content": "Yes, please."}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1500, "completion_tokens": 4}
        return web.json_response({"choices": [choice], "usage": usage})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    web.run_app(app, host="127.0.0.1", port=port, print=lambda *_: None)


async def ask(endpoint: Endpoint, count: int) -> dict[str, float]:
    """Figures of so many requests."""
    turns = [
        {"role": r, "content": "What shall I do about my order? " * 20} for r in ("user", "assistant") * 4
    ]
    slots = asyncio.Semaphore(256)

    async def one(number: int) -> None:
        async with slots:
            await endpoint.chat([{"role": "system", "content": f"You are customer {number}."}, *turns])

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one(n) for n in range(count)))
    seconds = time.perf_counter() - began
    return {
        "requests_per_second": count / seconds,
        "cpu_ms": 1000 * (time.process_time() - cpu) / count,
        "p99": endpoint.meter.figures()["p99"],
    }


async def measure(url: str, count: int, folder: Path) -> dict[str, Any]:
    plain = Endpoint(EndpointSettings(base_url=url, model="m", concurrency=256, timeout=600))
    await plain.check()
    found = {"endpoint": await ask(plain, count)}
    await plain.close()
    limits = {"requests_per_minute": 10**6, "tokens_per_minute": 10**10, "concurrency": 128, "timeout": 600}
    settings = GatewaySettings.model_validate(
        {
            "routes": [{"base_url": url, "model": name, **limits} for name in ("a", "b")],
            "prices": {"a": {"prompt": 1.0}, "b": {"prompt": 1.0}},
            "budget": {"dollars": 10**6},
            "cache": {"folder": str(folder)},
        }
    )
    for name in ("gateway", "gateway, from the cache"):
        gateways = Gateways({"g": settings}, folder / "spent.sqlite")
        endpoint = Endpoint(EndpointSettings.model_validate({"gateway": "g"}), "user", gateways)
        found[name] = await ask(endpoint, count)
        await gateways.close()
    return found


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    port = free_port()
    server = multiprocessing.get_context("spawn").Process(target=answering, args=(port,), daemon=True)
    server.start()
    try:
        until_it_listens(port)
        with tempfile.TemporaryDirectory(prefix="mua-perf-") as folder:
            found = asyncio.run(measure(f"http://127.0.0.1:{port}/v1", options.requests, Path(folder)))
    finally:
        server.terminate()
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, figures in found.items():
        print(
            f"{name}: {figures['requests_per_second']:.0f} requests/s, {figures['cpu_ms']:.2f} ms of CPU each"
        )


if __name__ == "__main__":
    main()
