"""A run with adapters in all its stages, exported, and loaded by nothing but transformers and peft."""

import asyncio
import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bit_run import start_model
from lora_run import lora_run
from mua import cli, pipeline
from mua.chat import Message, ToolCall
from mua.config import load_config
from mua.domains import load
from mua.errors import MuaError
from mua.export import export
from mua.formats import ChatFormat, builtin_template
from mua.models import load_model, with_adapters


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return lora_run(tmp_path_factory.mktemp("lora") / "run")


def test_sft_with_adapters_leaves_a_plain_model_that_has_learned(run):
    base, cold = (load_file(run / "models" / m / "model.safetensors") for m in ("base", "cold_start"))
    assert base.keys() == cold.keys()
    changed = {name.split(".")[-2] for name in base if not torch.equal(base[name], cold[name])}
    assert changed == {"q_proj", "v_proj", "down_proj"}
    rl = load_file(run / "models" / "rl" / "model.safetensors")
    assert rl.keys() == cold.keys()


def test_an_adapter_names_its_base_by_a_path_that_holds_on_every_machine(run, tmp_path, monkeypatch):
    export(run, tmp_path / "adapter", adapter=True)
    for folder in (*run.glob("checkpoints/step_*/model"), tmp_path / "adapter"):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "models/cold_start"
        assert str(run).encode() not in b"".join(p.read_bytes() for p in folder.iterdir())
    shutil.copytree(run, tmp_path / "elsewhere", symlinks=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    ids = [1, 5, 9, 20]
    base = AutoModelForCausalLM.from_pretrained(run / "models" / "cold_start")
    before = logits(base, ids)
    after = logits(PeftModel.from_pretrained(base, tmp_path / "adapter"), ids)
    assert torch.equal(logits(found, ids), after) and not torch.allclose(before, after, atol=1e-2)


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
