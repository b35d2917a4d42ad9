"""Run folders and checkpoints on a machine where anything can go wrong: kills, full disks, second writers."""

import importlib.metadata
import json
import os
import resource
from contextlib import contextmanager

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mua.config import may_change
from mua.errors import MuaError
from mua.models import tiny_llama
from mua.runfolder import REDACTED, RunFolder, is_secret_name, redact
from mua.train import TrainSettings, checkpoint
from mua.train.optimizer import adamw

CONFIG = {"train": {"lr": 1e-3, "betas": (0.9, 0.99)}, "domain": "toy", "user": {"model": "m", "extra": {}}}


@contextmanager
def disk_of(size):
    """No file may grow beyond `size` bytes: the kernel refuses the write, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_it_continues_with_the_same_configuration_only(tmp_path):
    with RunFolder(tmp_path / "run", CONFIG, {"seed": 3}) as run:
        assert not run.resumed
    with RunFolder(tmp_path / "run", CONFIG, {"seed": 3}) as run:
        assert run.resumed
    other = {**CONFIG, "train": {"lr": 2e-3, "betas": (0.9, 0.99)}, "domain": "shop", "new": 1}
    with pytest.raises(MuaError) as caught:
        RunFolder(tmp_path / "run", other)
    for part in ("train.lr (was 0.001, now 0.002)", "domain (was 'toy'", "new (was '(not set)', now 1)"):
        assert part in str(caught.value)
    assert "betas" not in str(caught.value)
    with pytest.raises(MuaError, match=r"'seed' of the run .* has changed"):
        RunFolder(tmp_path / "run", CONFIG, {"seed": 4})
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["seed"] == 3 and len(manifest["resumed"]) == 1
    assert manifest["versions"]["torch"] == importlib.metadata.version("torch")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train"]["betas"] == [0.9, 0.99]


def test_where_servers_are_and_what_they_may_cost_can_change(tmp_path):
    def config(seed=0, dollars=1.0, url="http://a"):
        budget = {"budget": {"dollars": dollars}}
        return {
            "seed": seed,
            "gateways": {"people": budget},
            "model": {"servers": {"urls": [url]}, "base": "x"},
        }

    RunFolder(tmp_path, config(), may_change=may_change).close()
    RunFolder(tmp_path, config(dollars=9.0, url="http://b"), may_change=may_change).close()
    stored = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert stored == config(dollars=9.0, url="http://b")
    with pytest.raises(MuaError, match=r"seed \(was 0, now 1\)") as caught:
        RunFolder(tmp_path, config(seed=1), may_change=may_change)
    assert "dollars" not in str(caught.value)
    assert not may_change("model.base") and not may_change("train_user.endpoint.model")


def test_one_writer_at_a_time(tmp_path):
    with RunFolder(tmp_path, CONFIG):
        with pytest.raises(MuaError, match=rf"process {os.getpid()}\) is writing"):
            RunFolder(tmp_path, CONFIG)
        with pytest.raises(MuaError, match=rf"process {os.getpid()}\)"):  # nor did the failure free it
            RunFolder(tmp_path, CONFIG)
    RunFolder(tmp_path, CONFIG).close()


@examples(deadline=None, max_examples=60)
@given(
    cut=st.integers(0, 400),
    step=st.integers(0, 6),
    texts=st.lists(st.text(max_size=20), min_size=5, max_size=5),
)
def test_rewind_keeps_exactly_the_whole_lines_up_to_the_step(tmp_path_factory, cut, step, texts):
    folder = tmp_path_factory.mktemp("run")
    written = [{"step": n, "text": text} for n, text in enumerate(texts, 1) for _ in range(2)]
    with RunFolder(folder, CONFIG) as run:
        for line in written:
            run.append("m", line)
    path = folder / "m.jsonl"
    data = path.read_bytes()
    kept = data[: max(0, len(data) - cut)]
    path.write_bytes(kept)  # a kill may leave any prefix
    whole = kept.count(b"\n")
    with RunFolder(folder, CONFIG) as run:
        expected = [line for line in written[:whole] if line["step"] <= step]
        assert run.rewind("m", step) == len(expected)
        run.append("m", {"step": 9})
    assert [json.loads(x) for x in path.read_text("utf-8").split("\n")[:-1]] == [*expected, {"step": 9}]


def test_a_torn_line_is_cut_before_the_next_is_added(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n{"ste')
    with RunFolder(tmp_path, CONFIG) as run:
        run.append("m", {"step": 2, "loss": float("nan"), "deep": [{"x": float("inf")}]})
        run.write_json("eval/base.json", {"success": float("nan")})
    assert (tmp_path / "m.jsonl").read_text() == (
        '{"step": 1}\n{"step": 2, "loss": null, "deep": [{"x": null}]}\n'
    )
    assert json.loads((tmp_path / "eval" / "base.json").read_text()) == {"success": None}


def test_a_full_disk_leaves_whole_lines(tmp_path):
    with RunFolder(tmp_path, CONFIG) as run:
        run.append("m", {"step": 1})
        with disk_of(200), pytest.raises(MuaError, match="Make room on the disk"):
            run.append("m", {"step": 2, "text": "x" * 1000})
        assert (tmp_path / "m.jsonl").read_text() == '{"step": 1}\n'
        run.append("m", {"step": 2})
    assert (tmp_path / "m.jsonl").read_text().count("\n") == 2


def test_no_secret_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("PROVIDER_API_KEY", "sk-from-the-environment")
    monkeypatch.setenv("TOKEN", "short")
    config = {
        "user": {
            "api_key": "sk-in-the-configuration",
            "base_url": "https://me:hunter2hunter@host/v1",
            "headers": {"Authorization": "Bearer abcdefgh"},
            "api_key_env": "PROVIDER_API_KEY",
            "max_tokens": 16,
        }
    }
    with RunFolder(tmp_path, config, {"note": "with sk-from-the-environment"}) as run:
        said = "the server refused key sk-from-the-environment, not sk-in-the-configuration; a short token"
        run.append("trajectories", {"step": 1, "detail": said, "arguments": {"token": "T1"}})
        run.write_json("summary.json", {"error": said, "sk-in-the-configuration": 1})
    RunFolder(tmp_path, config, {"note": "with sk-from-the-environment"}).close()  # it is still the same run
    for path in tmp_path.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert not any(x in text for x in ("sk-from", "sk-in", "hunter2", "abcdefgh")), path
    stored = yaml.safe_load((tmp_path / "config.yaml").read_text())["user"]
    assert stored["api_key_env"] == "PROVIDER_API_KEY" and stored["max_tokens"] == 16
    assert stored["base_url"] == f"https://{REDACTED}@host/v1"
    line = json.loads((tmp_path / "trajectories.jsonl").read_text())
    assert line["arguments"] == {"token": "T1"} and line["detail"].endswith("a short token")


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *[(n, True) for n in ("api_key", "apiKey", "OPENAI_API_KEY", "HF_TOKEN", "token", "client-secret")],
        *[(n, True) for n in ("AWS_SECRET_ACCESS_KEY", "password", "Authorization", "X-Api-Key", "apikey")],
        *[(n, False) for n in ("max_tokens", "pad_token", "tokens_per_step", "key", "api_key_env", "")],
        *[(n, False) for n in ("micro_batch_tokens", "tokenizer", "keyboard", "secretary", "cost_per_token")],
    ],
)
def test_names_of_secrets(name, secret):
    assert is_secret_name(name) is secret
    assert (redact({name: "value"})[name] == REDACTED) is secret


# --- checkpoints ---------------------------------------------------------------------------------


def trained(steps=2):
    model = tiny_llama(20, layers=1, hidden=16, heads=2, kv_heads=1, intermediate=16, context=32)
    optimizer = adamw(model, TrainSettings(lr=1e-2))
    for _ in range(steps):
        model(torch.tensor([[1, 2, 3]])).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def test_a_checkpoint_brings_everything_back(tmp_path):
    model, optimizer = trained()
    torch.manual_seed(7)
    path = checkpoint.save(tmp_path, 5, model, optimizer, state={"drawn": 12})
    expected = torch.rand(3)
    fresh, other = trained(0)
    assert checkpoint.load(path, fresh, other) == (5, {"drawn": 12})
    assert torch.equal(torch.rand(3), expected)
    for a, b in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)
    for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
        for key, value in optimizer.state[p].items():
            assert torch.equal(value, other.state[q][key]), key
    with pytest.raises(MuaError, match="does not fit the model"):
        bigger = tiny_llama(20, layers=2, hidden=16, heads=2, kv_heads=1, intermediate=16, context=32)
        checkpoint.load(path, bigger, adamw(bigger, TrainSettings()))


def test_the_newest_whole_checkpoint_counts_and_old_ones_go(tmp_path, caplog):
    model, optimizer = trained()
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, step, model, optimizer, keep=3)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step_000002", "step_000003", "step_000004"]
    (tmp_path / "step_000004" / "state.json").write_text('{"step": 4, "fi')
    (tmp_path / "step_000003" / "optimizer.safetensors").unlink()
    (tmp_path / ".tmp-step_000005").mkdir()  # a kill amid a save
    found = checkpoint.latest(tmp_path)
    assert found is not None and found.name == "step_000002"
    assert "step_000004 is damaged" in caplog.text and "step_000003 is damaged" in caplog.text
    checkpoint.save(tmp_path, 3, model, optimizer, keep=3)  # the damaged one is replaced
    assert checkpoint.damage(tmp_path / "step_000003") is None
    assert not list(tmp_path.glob(".tmp-*"))
    assert checkpoint.latest(tmp_path / "none") is None


def test_a_full_disk_costs_no_older_checkpoint(tmp_path):
    model, optimizer = trained()
    checkpoint.save(tmp_path, 1, model, optimizer, keep=1)
    for size in (100, 3000, 10_000):
        with disk_of(size), pytest.raises(MuaError, match=r"step 2 cannot be written.*Earlier checkpoints"):
            checkpoint.save(tmp_path, 2, model, optimizer, keep=1)
        assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]
        assert checkpoint.damage(tmp_path / "step_000001") is None
