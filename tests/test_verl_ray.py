"""verl in whole processes: its workers on a local Ray cluster, its checkpoints. `make test-verl`; no GPU.

Minutes, and memory for a cluster: not in CI, which has `test_verl.py`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="verl is missing: make test-verl")

import torch
from omegaconf import OmegaConf

from mua import export
from mua.config import load_config
from mua.pipeline import coldstart, open_run
from mua.trajectory import read_trajectories

ROOT = Path(__file__).resolve().parents[1]


def script(*words, timeout=800):
    """Runs a script in a process of its own, one thread each."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TQ_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    env["PYTHONPATH"] = str(ROOT / "tests")
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=env,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def desk_model(tmp_path_factory):
    """A model of the library's desk with random weights."""
    out = tmp_path_factory.mktemp("desk")
    sets = ["domain=library:desk", "coldstart.conversations=60", "model.tiny.vocab_size=500"]
    run = open_run(load_config("quickstart", sets), out)
    with run.folder:
        asyncio.run(coldstart(run))
    return run.model_path("base")


@pytest.mark.timeout(900)
def test_a_batch_through_verls_workers_on_ray(desk_model, tmp_path):
    """Rewards are coins here, as a random model earns none: they reach the batch after the episodes."""
    out = tmp_path / "figures.json"
    small = ["limits.turns=4", "train.max_step_tokens=16"]
    words = ["--model", desk_model, "--groups", 2, "--samples", 3, "--workers", 1, "--coins"]
    script(ROOT / "perf" / "verl_batch.py", *words, "--folder", tmp_path / "run", "--out", out, *small)
    found = json.loads(out.read_text())
    assert (found["episodes_asked_for"], found["segments"], found["rows_of_padding"]) == (6, 6, 3)
    assert found["groups"] == 2 and found["groups_with_signal"] >= 1 and found["sampled_tokens"] > 20
    assert found["requests"] >= 6
    assert found["advantage_gap"] < 1e-5 and found["loss_gap"] < 1e-5 and found["gradient_gap"] < 1e-5
    assert found["gradient_norm"] > 1e-3
    (kept,) = (tmp_path / "run" / "verl").glob("episodes/*/trajectories.jsonl")
    assert len(list(read_trajectories(kept))) == 6


@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [("--fsdp1",), ("--fsdp1", "--lora"), ("--lora",)], ids=" ".join)
def test_real_shards_become_a_plain_folder(desk_model, tmp_path, how):
    from transformers import AutoModelForCausalLM

    run = tmp_path / "run"
    place = run / "verl" / "checkpoints"
    lora = "--lora" in how
    script(ROOT / "tests" / "verl_shards.py", desk_model, place, *how)
    sets = ["domain=library:desk", *(["model.lora={rank: 4, alpha: 8.0}"] if lora else [])]
    OmegaConf.save(
        OmegaConf.create(load_config("quickstart", sets).model_dump(mode="json")), run / "config.yaml"
    )
    assert export.export(run, tmp_path / "out", dtype="float32") == "step 3 of verl"
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    wanted = torch.load(place / "weights.pt")
    wanted = {name: w.bfloat16().float() for name, w in wanted.items()}  # verl's merger writes bfloat16
    changed = 0
    for name in [n for n in wanted if "lora_" not in n]:
        weight, plain = wanted[name], name.replace("base_model.model.", "").replace("base_layer.", "")
        if "base_layer" in name:
            b, a = (wanted[name.replace("base_layer", f"lora_{x}.default")] for x in "BA")
            weight, changed = weight + 2.0 * b @ a, changed + 1
        assert torch.allclose(made[plain], weight, atol=1e-6), name
    assert bool(changed) == lora and (tmp_path / "out" / "tokenizer.json").is_file()
    assert dataclasses.asdict(export.find(run, "3"))["words"] == "step 3 of verl"
