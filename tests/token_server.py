"""A real model behind an HTTP server that speaks vLLM's or SGLang's dialect, and misbehaves as told.

Only what the engine uses is there, with the shapes that vLLM 0.32 and SGLang 0.5.23 answer. Sampling is that
of our own slot engine, so that ids can be compared with a local one.
"""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file

from fake_server import FakeServer, Reply, error
from mua.engines import Completion, Sampling
from mua.engines.slots import SlotEngine


async def until(true: Callable[[], Any]) -> None:
    """Waits for something that happens in another thread."""
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


class TokenServer(FakeServer):
    """Use as a context manager. `root` is what the engine takes as its address."""

    def __init__(self, kind: str, model: Any, *, started_with: str = "default"):
        super().__init__(lambda body: Reply())
        self.kind = kind
        self.model = copy.deepcopy(model)
        self.engine = SlotEngine(self.model, slots=16)
        self.root = self.url.removesuffix("/v1")
        self.version = started_with
        self.faults: deque[Reply] = deque()
        """Answers to the next requests for tokens, instead of the model's."""
        self.always: Reply | None = None
        self.bend: Callable[[dict[str, Any]], None] = lambda answer: None
        """Changes an answer before it goes out."""
        self.development = True
        self.asked: list[dict[str, Any]] = []
        """Requests for tokens."""
        self.gate = threading.Event()
        """Requests for tokens wait for it."""
        self.gate.set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        self._loop.call_soon_threadsafe(self._loop.stop)

    def reply(self, path: str, body: dict[str, Any]) -> Reply:
        path = path.partition("?")[0]
        if path == "/v1/models":
            return _json({"data": [{"id": "agent", "max_model_len": self.engine.context}]})
        if path in ("/v1/completions", "/generate"):
            return self._tokens(body)
        if not self.development and self.kind == "vllm":
            return error(404, "Not Found")
        if path in ("/weight_info", "/model_info"):
            return _json({"weight_version": self.version})
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            return self._load(body["kwargs"]["weights_path"]) or _json({"results": [None]})
        if path == "/update_weights_from_disk":
            failed = self._load(body["model_path"])
            self.version = self.version if failed else body["weight_version"]
            return failed or _json({"success": True, "message": "ok", "num_paused_requests": 0})
        if path == "/update_weight_version":
            self.version = body["new_version"]
        if path in ("/pause", "/reset_prefix_cache", "/update_weight_version", "/resume"):
            return _json({"success": True})
        return error(404, f"no {path}")

    def _tokens(self, body: dict[str, Any]) -> Reply:
        with self.lock:
            self.asked.append(body)
            fault = self.faults.popleft() if self.faults else self.always
        self.gate.wait(30)
        if fault is not None:
            return fault
        vllm = self.kind == "vllm"
        how = body if vllm else body["sampling_params"]
        prompt = body["prompt"] if vllm else body["input_ids"]
        sampling = Sampling(
            how["temperature"],
            how["top_p"],
            how["max_tokens" if vllm else "max_new_tokens"],
            tuple(how["stop_token_ids"]),
            how["seed" if vllm else "sampling_seed"],
        )
        work = self.engine.generate(prompt, sampling, f"{prompt}")
        done = asyncio.run_coroutine_threadsafe(work, self._loop).result()
        answer = (vllm_answer if vllm else sglang_answer)(prompt, done)
        self.bend(answer)
        return _json(answer)

    def _load(self, folder: str) -> Reply | None:
        try:
            weights = load_file(f"{folder}/model.safetensors")
        except FileNotFoundError as exc:
            return error(500, f"Call to collective_rpc method failed: {exc}")
        with torch.no_grad():
            self.model.load_state_dict(weights, strict=False)  # a tied head is not written
        self.model.tie_weights()
        self.engine.clear_cache()
        return None


def vllm_answer(prompt: list[int], done: Completion) -> dict[str, Any]:
    choice = {
        "index": 0,
        "text": "",
        "logprobs": {"token_logprobs": done.logprobs, "tokens": ["?"] * len(done.logprobs)},
        "finish_reason": done.stop_reason,
        "stop_reason": done.token_ids[-1] if done.stop_reason == "stop" else None,
        "token_ids": done.token_ids,
        "prompt_token_ids": prompt,
    }
    return {"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": {}}


def sglang_answer(prompt: list[int], done: Completion) -> dict[str, Any]:
    pairs = [[p, i, None] for p, i in zip(done.logprobs, done.token_ids, strict=True)]
    about = {
        "prompt_tokens": len(prompt),
        "completion_tokens": len(done.token_ids),
        "finish_reason": {"type": done.stop_reason},
        "output_token_logprobs": pairs,
    }
    return {"text": "", "output_ids": done.token_ids, "meta_info": about}


def _json(data: Any) -> Reply:
    return Reply(json.dumps(data))
