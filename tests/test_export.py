"""A run with adapters in all its stages, exported, and loaded by nothing but transformers and peft."""

import asyncio
import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bit_run import start_model
from mua import cli, pipeline
from mua.chat import Message, ToolCall
from mua.config import load_config
from mua.domains import load
from mua.errors import MuaError
from mua.export import export
from mua.formats import ChatFormat, builtin_template
from mua.models import load_model, with_adapters
from mua.train.checkpoint import _sha256

MICRO = [
    "model.tiny.layers=2",
    "model.tiny.vocab_size=600",
    "model.slots=32",
    "model.lora.rank=4",
    "model.lora.targets=[q_proj, v_proj, down_proj]",
    "model.gradient_checkpointing=true",
    "coldstart.conversations=60",
    'coldstart.user_split=""',
    "sft.steps=4",
    "sft.batch_size=2",
    "sft.lr=0.01",
    "user_sft=null",
    "train_user.kind=agenda",
    "eval.same_user=true",
    "train.steps=2",
    "train.lr=0.02",
    "train.checkpoint_every=1",
    "train.rollout.groups=2",
    "train.rollout.group_size=2",
    "train.rollout.refill_rounds=0",
    "train.max_step_tokens=12",
    "train.anomalies.stop_after_no_signal=null",
    "train.processes=1",
    "max_step_tokens=12",
    "limits.turns=3",
    "limits.steps=6",
    "threads=1",
]


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run through cold start, SFT and GRPO, all with adapters and recomputed activations."""
    folder = tmp_path_factory.mktemp("lora") / "run"
    tracked = ["track=[tensorboard]"] if find_spec("tensorboard") else []
    config = load_config("quickstart", MICRO + tracked)

    async def work():
        run = pipeline.open_run(config, folder)
        kept = await pipeline.coldstart(run)
        pipeline.sft(run, kept)
        await pipeline.train(run)
        run.folder.close()

    asyncio.run(work())
    # The model earns nothing in so few steps, and so learns nothing: its adapters are moved by hand.
    place = folder / "checkpoints" / "step_000002"
    adapters = load_file(place / "model" / "adapter_model.safetensors")
    torch.manual_seed(0)
    moved = {name: t + 0.3 * torch.randn_like(t) for name, t in adapters.items()}
    save_file(moved, place / "model" / "adapter_model.safetensors", {"format": "pt"})
    state = json.loads((place / "state.json").read_text())
    state["files"]["model/adapter_model.safetensors"] = _sha256(place / "model" / "adapter_model.safetensors")
    (place / "state.json").write_text(json.dumps(state))
    return folder


def test_sft_with_adapters_leaves_a_plain_model_that_has_learned(run):
    base, cold = (load_file(run / "models" / m / "model.safetensors") for m in ("base", "cold_start"))
    assert base.keys() == cold.keys()
    changed = {name.split(".")[-2] for name in base if not torch.equal(base[name], cold[name])}
    assert changed == {"q_proj", "v_proj", "down_proj"}
    rl = load_file(run / "models" / "rl" / "model.safetensors")
    assert rl.keys() == cold.keys()


def test_the_merged_export_computes_what_the_adapters_compute(run, tmp_path):
    assert export(run, tmp_path / "out").startswith("step 2, mean reward")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert not list((tmp_path / "out").glob("adapter*"))

    export(run, tmp_path / "base", "cold_start")
    assert export(run, tmp_path / "adapter", adapter=True).startswith("step 2")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    ids = tokenizer.encode("I want to renew The Winter Atlas.")
    before = logits(base, ids)
    with_adapter = PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(plain, ids), logits(with_adapter, ids), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(plain, ids), before, atol=1e-2)

    _, ours = load_model(run / "models" / "cold_start")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    format = ChatFormat.of(ours, tool_style="none")
    assert text == format._render([Message("user", "Hello")], {}, generation=True)
    settings = plain.generation_config
    assert settings.eos_token_id == list(format.stop_ids) and settings.do_sample
    assert settings.temperature == 1.0 and settings.max_new_tokens == 12
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    out = plain.generate(**{k: v for k, v in inputs.items() if k != "token_type_ids"})
    assert inputs["input_ids"].shape[1] < out.shape[1] <= inputs["input_ids"].shape[1] + 12


@pytest.mark.parametrize("style", ["none", "schema"])
@pytest.mark.parametrize("system", [True, False])
def test_the_exported_template_writes_what_the_model_was_trained_on(run, style, system):
    """As a plain program calls it, and as mua reads it when the folder is used as a model again."""
    domain = load("library:desk")
    tools = domain.tools()
    call = ToolCall("find_member", {"card": "1é08", "n": [1, {"a": None}]}, "c1")
    messages = [
        *([Message("system", domain.policy)] if system else []),
        Message("user", "Hello, I'm here."),
        Message("assistant", "One moment.", tool_calls=(call, ToolCall("get_loans", {}, "c2"))),
        Message("tool", '{"name": "Ada"}', tool_call_id="c1"),
        Message("tool", "[]", tool_call_id="c2"),
    ]
    _, ours = load_model(run / "models" / "base")
    right = ChatFormat.of(ours, tool_style=style)
    expected = right._render(messages, tools, generation=True)
    _, tokenizer = load_model(run / "models" / "base")
    tokenizer.chat_template = builtin_template(style)
    plain = [m.to_dict() for m in messages]  # arguments as JSON text, as endpoints send them
    assert expected == tokenizer.apply_chat_template(
        plain, tools=[t.schema() for t in tools.values()], tokenize=False, add_generation_prompt=True
    )
    again = ChatFormat.of(tokenizer, tool_style=style)
    assert again.native_tools and again._render(messages, tools, generation=True) == expected
    assert again.stop_ids == right.stop_ids
    assert again._render([*messages, Message("assistant", "Hi")], {}, generation=False) == right._render(
        [*messages, Message("assistant", "Hi")], {}, generation=False
    )


def test_a_model_can_be_stored_in_bfloat16(run, tmp_path):
    export(run, tmp_path / "out", "1", "bfloat16")
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert small.dtype == torch.bfloat16
    export(run, tmp_path / "full", "1")
    full = AutoModelForCausalLM.from_pretrained(tmp_path / "full", dtype="auto")
    assert full.dtype == torch.float32
    for a, b in zip(small.state_dict().values(), full.state_dict().values(), strict=True):
        assert torch.equal(a, b.bfloat16())


@pytest.mark.skipif(not find_spec("tensorboard"), reason="tensorboard is not installed")
def test_the_run_was_tracked(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    told = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    found = [(e.step, e.value) for e in events.Scalars("agent_tokens")]
    assert found == [(line["step"], line["agent_tokens"]) for line in told]


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = load_config("quickstart", ["track=[trackio]"])
    with pytest.raises(MuaError, match=r"trackio is not installed; pip install 'mua\[trackio\]'"):
        asyncio.run(pipeline.preflight(config, tmp_path / "run"))


def test_the_command(run, tmp_path, capsys):
    cli.app(["export", str(run), "--out", str(tmp_path / "out"), "--which", "1"], standalone_mode=False)
    assert capsys.readouterr().out.startswith("step 1, mean reward")
    assert (tmp_path / "out" / "chat_template.jinja").is_file()


def test_best_and_bad_names(run, tmp_path):
    best = int((run / "checkpoints" / "best").resolve().name[-6:])
    assert export(run, tmp_path / "best", "best").startswith(f"step {best},")
    with pytest.raises(MuaError, match="it has steps 1, 2"):
        export(run, tmp_path / "x", "7")
    with pytest.raises(MuaError, match="is no model of a run: last, best"):
        export(run, tmp_path / "x", "lats")
    with pytest.raises(MuaError, match="has no models/user"):
        export(run, tmp_path / "x", "user")
    with pytest.raises(MuaError, match="is there already"):
        export(run, tmp_path / "best")
    with pytest.raises(MuaError, match="is no run folder"):
        export(tmp_path, tmp_path / "x")
    with pytest.raises(MuaError, match=r"cold_start of .* has no adapters"):
        export(run, tmp_path / "x", "cold_start", adapter=True)
    assert not (tmp_path / "x").exists()
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged, symlinks=True)
    (damaged / "checkpoints" / "step_000002" / "rng.safetensors").write_bytes(b"")
    with pytest.raises(MuaError, match=r"is damaged \(rng.safetensors has changed\)"):
        export(damaged, tmp_path / "x", "2")


def test_names_that_no_module_has_are_refused():
    with pytest.raises(MuaError, match=r"model.lora.targets \['qproj'\]"):
        with_adapters(start_model(), 4, 8.0, ["qproj"], 0)
