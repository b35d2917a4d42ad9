"""BFCL's harness as its user runs it: a model behind an OpenAI-compatible endpoint, results written, scored.

    python perf/bfcl_client.py server SCRIPT.json                       # prints its port
    UPSTREAM-PYTHON perf/bfcl_client.py upstream CATEGORY THREADS FOLDER URL
    python perf/bfcl_client.py mua BENCHMARK/CATEGORY CONCURRENCY FOLDER URL

`perf/bfcl.py` starts these and compares them. Both sides get the same answers from the same server, which
tells by the conversation where in the script it is. Each side runs a whole category in a process of its own,
as its commands do (`bfcl generate` and `bfcl evaluate`; `mua eval`), with all modules imported beforehand,
and prints {"clock", "cpu"} in seconds, its child processes included, and {"accuracy"}.

Nothing is imported at the top but the standard library: the server must be light, and upstream's interpreter
has no mua.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import inspect
import io
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MODEL = "mua-FC"


# ---------------------------------------------------------------- the model


def serve(script: Path) -> None:
    """Answers a conversation with the next step of its entry, at once.

    The script is a list of {"users": lines, "turns": steps by turn}; a step is words, or [name, arguments]
    pairs. Unknown conversations get a word: a client may ask first whether somebody is there.
    """
    replies: dict[tuple[tuple[str, ...], int], bytes] = {}
    for entry in json.loads(script.read_text(encoding="utf-8")):
        for turn, steps in enumerate(entry["turns"]):
            for number, step in enumerate(steps):
                replies.setdefault((tuple(entry["users"][: turn + 1]), number), _http(step))

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport, self.received = transport, b""

        def data_received(self, data: bytes) -> None:
            self.received += data
            head, found, body = self.received.partition(b"\r\n\r\n")
            if found and len(body) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]):
                self.received = b""
                self.transport.write(replies.get(_place(body.decode())) or _http("Hello."))

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)  # until whoever started it is gone

    asyncio.run(run())


def _place(body: str) -> tuple[tuple[str, ...], int]:
    """(what the user has said, steps of the agent since). Reads the messages only: tools are most of it."""
    start = body.index("[", body.index('"messages":'))
    messages = json.JSONDecoder().raw_decode(body, start)[0]
    said: list[str] = []
    steps = 0
    for message in messages:
        if message["role"] == "user":
            said.append(message["content"])
            steps = 0
        elif message["role"] == "assistant":
            steps += 1
    return tuple(said), steps


def _http(step: Any) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": step}
    if not isinstance(step, str):
        functions = [{"name": name, "arguments": arguments} for name, arguments in step]
        calls = [{"id": f"call_{i}", "type": "function", "function": f} for i, f in enumerate(functions)]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
    finish = "tool_calls" if "tool_calls" in message else "stop"
    data = {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    body = json.dumps(data).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


# ---------------------------------------------------------------- the two sides


def upstream(category: str, threads: int, folder: Path) -> dict[str, Any]:
    """Upstream's `generate` and `evaluate`, with its OpenAI handler and the real client.

    The model is added to upstream's table of models, as its instructions for a new one say.
    """
    os.environ["BFCL_PROJECT_ROOT"] = str(folder)
    import openai.resources.chat.completions  # noqa: F401 - as below
    from bfcl_eval._llm_response_generation import main as generate
    from bfcl_eval.constants.eval_config import RESULT_PATH, SCORE_PATH
    from bfcl_eval.constants.model_config import MODEL_CONFIG_MAPPING, ModelConfig
    from bfcl_eval.eval_checker.eval_runner import main as evaluate
    from bfcl_eval.model_handler.api_inference.openai_completion import OpenAICompletionsHandler

    about = {"url": "", "org": "", "license": "", "input_price": None, "output_price": None}
    MODEL_CONFIG_MAPPING[MODEL] = ModelConfig(
        model_name=MODEL,
        display_name=MODEL,
        model_handler=OpenAICompletionsHandler,
        is_fc_model=True,
        underscore_to_dot=True,
        **about,
    )
    # What the command line of the current version passes, and all that V3's passes; the rest is ignored.
    arguments = SimpleNamespace(
        model=[MODEL],
        test_category=[category],
        temperature=0.001,
        include_input_log=False,
        exclude_state_log=False,
        num_gpus=1,
        num_threads=threads,
        gpu_memory_utilization=0.9,
        backend="sglang",
        skip_server_setup=False,
        local_model_path=None,
        result_dir=RESULT_PATH,
        allow_overwrite=False,
        run_ids=False,
        enable_lora=False,
        max_lora_rank=None,
        lora_modules=None,
    )
    scoring = [[MODEL], [category], None, None, False][: len(inspect.signature(evaluate).parameters)]

    def work() -> None:
        generate(arguments)
        evaluate(*scoring)

    found = _timed(work)
    (score,) = Path(SCORE_PATH).rglob(f"*_{category}_score.json")
    accuracy = json.loads(score.read_text(encoding="utf-8").splitlines()[0])["accuracy"]
    versions = {name: importlib.metadata.version(name) for name in ("bfcl-eval", "openai")}
    return {**found, "accuracy": accuracy, "versions": versions}


def mua(benchmark: str, concurrency: int, folder: Path, url: str) -> dict[str, Any]:
    """The function behind `mua eval endpoint:MODEL --benchmark BENCHMARK`."""
    import aiohttp  # noqa: F401 - what is imported at the first use belongs to the start, not to the entries

    from mua import cli, display, pipeline, speakers  # noqa: F401
    from mua.agents import endpoint  # noqa: F401
    from mua.benchmarks.bfcl import upstream
    from mua.evaluate import run  # noqa: F401

    def work() -> None:
        # 512 tokens a step are asked for; the scripted model does not look at it.
        settings = [f"eval.concurrency={concurrency}", "max_step_tokens=512"]
        cli.evaluate(f"endpoint:{MODEL}", settings, benchmark=benchmark, out=folder, base_url=url)
        upstream(benchmark.partition("/")[0]).pool.close()  # ended, so that its CPU time is counted

    found = _timed(work)
    (figures,) = (folder / "eval").glob("*.json")
    return {**found, "accuracy": json.loads(figures.read_text(encoding="utf-8"))["success"]}


def _timed(work: Callable[[], object]) -> dict[str, float]:
    """Seconds on the clock and of CPU; what it prints goes nowhere."""
    began, worked = time.perf_counter(), _cpu()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        work()
    return {"clock": time.perf_counter() - began, "cpu": _cpu() - worked}


def _cpu() -> float:
    """CPU seconds of this process and of its children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    side, *rest = sys.argv[1:]
    if side == "server":
        return serve(Path(rest[0]))
    what, number, folder, url = rest
    os.environ |= {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none"}  # how upstream is told
    if side == "upstream":
        found = upstream(what, int(number), Path(folder))
    else:
        found = mua(what, int(number), Path(folder), url)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
