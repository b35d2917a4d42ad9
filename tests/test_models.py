"""The model made on the spot starts with a circuit that copies; saved ones are read as data."""

import pickle
import re
from pathlib import Path

import pytest
import torch

from mua.errors import MuaError
from mua.models import load_model, tiny_llama
from mua.tokenizer import train_tokenizer


def continued(copying: bool) -> float:
    """Share of a repeated random sequence that is among the untrained model's three best guesses."""
    model = tiny_llama(500, 3, 192, 4, 2, 256, 256, head_dim=64, rope_theta=1e6, copying=copying)
    half_BT = torch.randint(0, 500, (16, 30), generator=torch.Generator().manual_seed(0))
    ids_BT = torch.cat([half_BT, half_BT], 1)
    with torch.no_grad():
        logits_BTV = model(ids_BT).logits
    # Tied embeddings make an untrained model favour the token it reads, so that one is left out. From the
    # third repeated token on: the circuit looks at two.
    logits_BTV.scatter_(2, ids_BT[..., None], -torch.inf)
    best_BTK = logits_BTV[:, 32:-1].topk(3).indices
    return (best_BTK == ids_BT[:, 33:, None]).any(-1).float().mean().item()


def test_a_fresh_model_with_the_circuit_continues_what_it_has_seen_once():
    assert continued(copying=True) > 0.35
    assert continued(copying=False) < 0.05


class _Planted:
    """A pickle of it touches a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_in_a_model_folder_is_not_loaded(tmp_path: Path, name: str):
    model = tiny_llama(64, 1, 16, 2, 1, 32, 32)
    model.save_pretrained(tmp_path)
    tokenizer = train_tokenizer(["one two three"], 300, [])
    tokenizer.save_pretrained(tmp_path)
    load_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(pickle.dumps({"weights": _Planted(tmp_path / "owned")}))
    with pytest.raises(MuaError, match=re.escape("*.safetensors")):
        load_model(tmp_path)
    assert not (tmp_path / "owned").exists()
