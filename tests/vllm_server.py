"""A real vLLM in a process of its own, for `make test-vllm` and perf/served.py."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

BLOCK = 32
"""Tokens of a cached block; its CPU attention takes multiples of 32."""
START = 420.0
"""Seconds that a start may take: on a CPU it compiles some things first."""


class VllmServer:
    """Use as a context manager; `root` is its address. `python` has vLLM, which serves `model` as "agent"."""

    def __init__(
        self,
        python: str,
        model: Path,
        log: Path,
        *,
        context: int = 512,
        adapters: Mapping[str, Path] | None = None,
    ):
        """`adapters` (name → folder as peft writes it) are served beside the model."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.root = f"http://127.0.0.1:{port}"
        self._log = log
        environment = {
            **os.environ,
            "VLLM_SERVER_DEV_MODE": "1",  # weights can be updated
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        how = {
            "--model": model,
            "--served-model-name": "agent",
            "--host": "127.0.0.1",
            "--port": port,
            "--dtype": "float32",
            "--max-model-len": context,
            "--max-num-seqs": 64,
            "--block-size": BLOCK,
            "--logprobs-mode": "processed_logprobs",
            "--generation-config": "vllm",
        }
        # Not the command `vllm`: of the package vllm-cpu it asks for the version of a package vllm.
        words = [python, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
        words += [str(part) for pair in how.items() for part in pair]
        if adapters:
            words += ["--enable-lora", "--max-lora-rank", "8", "--lora-modules"]
            words += [f"{name}={folder}" for name, folder in adapters.items()]
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                words, stdout=out, stderr=out, env=environment, start_new_session=True
            )

    def __enter__(self) -> VllmServer:
        until = time.monotonic() + START
        while time.monotonic() < until and self._process.poll() is None:
            try:
                self.get("/health")
                return self
            except (OSError, urllib.error.URLError):
                time.sleep(0.5)
        self.__exit__()
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        causes = [line[-300:] for line in lines if re.search(r"[A-Z]\w+Error: ", line)] or lines[-20:]
        raise RuntimeError(
            f"vLLM did not start (within {START:g} s); from {self._log}:\n" + "\n".join(causes[:10])
        )

    def __exit__(self, *exc: object) -> None:
        for how in (signal.SIGTERM, signal.SIGKILL):  # with its workers
            try:
                os.killpg(self._process.pid, how)
                self._process.wait(20)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.root + path, timeout=5) as answer:
            return answer.read().decode()

    def metric(self, name: str) -> float:
        """The sum of a counter, such as vllm:prefix_cache_hits_total."""
        found = re.findall(rf"^{re.escape(name)}{{[^}}]*}} (\S+)$", self.get("/metrics"), re.M)
        return sum(map(float, found))
