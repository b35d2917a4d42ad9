"""`perf/gpu.sh` without a GPU: the same parts at toy sizes, what fails is named, what is missing too."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "perf"))
gpu: Any = importlib.import_module("gpu")
requirements: Any = importlib.import_module("requirements")


def gpu_sh(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "perf" / "gpu.sh"), "--cpu", "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.timeout(900)  # half a minute of work, on a machine that may be busy
def test_everything_runs_on_a_cpu_and_is_exact(tmp_path):
    done = gpu_sh(tmp_path, "--parts", "machine", "exact", "engines", "update", "laptop")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "gpu.json").read_text())
    figures = {name: part["figures"] for name, part in record["parts"].items()}
    assert record["device"] == "cpu"
    assert figures["exact"]["float32"] < 1e-5
    assert figures["exact"]["bfloat16"] < figures["exact"]["bfloat16_naive"]
    assert figures["engines"]["slots_float32"] < 1e-4 and figures["engines"]["continuous_float32"] < 1e-4
    share = figures["update"]["tflops"] / figures["machine"]["bf16_product_tflops"]
    assert figures["update"]["share_of_peak"] == pytest.approx(share) and 0 < share < 1
    assert figures["laptop"]["report_bytes"] > 10_000 and len(figures["laptop"]["reward"]) == 1
    assert (tmp_path / "gpu.md").read_text().count("\n") == 7
    assert "FAILED" not in done.stdout


def test_a_part_that_fails_is_named_and_the_others_are_done(tmp_path, monkeypatch, capsys):
    def fake(name, device, out, limit):
        failed = "not done after 90 s" if name == "exact" else None
        return {"seconds": 1.0, "failed": failed, "figures": {} if failed else {"x": 0.25}}

    monkeypatch.setattr(gpu, "run_part", fake)
    parts = ["--parts", "machine", "exact", "engines"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path), "--device", "cpu", *parts])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 1
    assert "| exact | 1 | FAILED: not done after 90 s |\n| engines | 1 | x 0.25 |" in capsys.readouterr().out


def test_operations_are_those_of_the_layers():
    # One group of one sequence, 3 tokens of prompt and 1 of its own, against a count by hand.
    s = gpu.SHAPES["toy"]  # 64 wide, 4 heads and 2 pairs of keys and values of 16
    linear = 64 * 64 + 2 * (64 * 32) + 64 * 64 + 3 * 64 * 128
    pairs = 3 * 3 / 2 + 1 * 3 + 1 / 2
    forward = s["layers"] * (2 * linear * 4 + 4 * 64 * pairs) + 2 * 64 * 512 * 1
    assert gpu.flops_of("toy", 1, 1, 3, 1, sampled=1) == 4 * forward
    # A second sequence of the group costs its own tokens only.
    more = gpu.flops_of("toy", 1, 2, 3, 1, sampled=2) - gpu.flops_of("toy", 1, 1, 3, 1, sampled=1)
    assert more == 4 * (s["layers"] * (2 * linear + 4 * 64 * 3.5) + 2 * 64 * 512)


def test_what_is_missing_is_named():
    assert requirements.problem("numpy>=1.26") == ""
    assert requirements.problem("numpy>=99").startswith("numpy>=99 (here: ")
    assert requirements.problem("numpy>=1,<1.1").startswith("numpy>=1,<1.1 (here: ")
    assert requirements.problem("no-such-package>=1") == "no-such-package>=1 (not installed)"
    assert requirements.numbers("2.11.0+cu130") == (2, 11, 0)


def test_a_part_that_runs_long_is_stopped_with_all_that_it_started(tmp_path, monkeypatch):
    started, part = tmp_path / "started", tmp_path / "part.sh"
    part.write_text(f"sleep 600 & echo $! > {started}; wait\n", encoding="utf-8")
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    monkeypatch.setattr(gpu, "__file__", str(part))
    (tmp_path / "exact.json").write_text('{"float32": 0.0}', encoding="utf-8")  # an earlier call's
    found = gpu.run_part("exact", "cpu", tmp_path, 2.0)
    assert found["failed"] == "not done after 2 s" and found["figures"] == {}
    child = int(started.read_text())
    until = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "it goes on in the background"
        time.sleep(0.05)


def test_limits_leave_time_for_what_is_wanted_most():
    assert list(gpu.PARTS)[:5] == ["machine", "exact", "engines", "update", "laptop"]
    # Even if each of these took all the time it may, every one of them would have begun.
    limits = [limit for _, limit in gpu.PARTS.values()]
    assert sum(limits[:4]) + 60 < gpu.BUDGET < 480
