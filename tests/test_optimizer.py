"""float32 masters: bfloat16 models learn at the paper's rate, and a checkpoint keeps what they learned."""

import copy

import pytest
import torch

from mua.models import tiny_llama
from mua.train import TrainSettings, checkpoint
from mua.train.optimizer import MasterAdamW, adamw

SETTINGS = TrainSettings(lr=1e-6, weight_decay=0.0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return tiny_llama(60, layers=1, hidden=16, heads=2, kv_heads=1, head_dim=8).to(torch.bfloat16)


def backward(model, seed):
    ids = torch.randint(60, (2, 8), generator=torch.Generator().manual_seed(seed))
    model(input_ids=ids, labels=ids).loss.backward()


def weights(model):
    return [p.detach().float().clone() for p in model.parameters()]


def steps(model, optimizer, numbers):
    for n in numbers:
        backward(model, n)
        optimizer.step()
        optimizer.zero_grad()


def test_two_passes_add_up_in_float32_and_move_the_weights_as_plain_adamw_would(model):
    optimizer = adamw(model, SETTINGS)
    twin = [torch.nn.Parameter(w) for w in weights(model)]
    reference = torch.optim.AdamW(twin, lr=SETTINGS.lr, betas=SETTINGS.betas, weight_decay=0.0)
    for number in range(3):
        for p in twin:
            p.grad = torch.zeros_like(p)
        for half in range(2):
            other = copy.deepcopy(model)
            other.zero_grad()
            backward(other, 10 * number + half)
            for p, q in zip(twin, other.parameters(), strict=True):
                p.grad += q.grad.float()
            backward(model, 10 * number + half)
        optimizer.step()
        optimizer.zero_grad()
        reference.step()
    masters = optimizer.param_groups[0]["params"]
    assert all(torch.allclose(m, p, atol=1e-9) for m, p in zip(masters, twin, strict=True))
    assert all(torch.equal(p, m.to(torch.bfloat16)) for p, m in zip(model.parameters(), masters, strict=True))


def test_a_thousand_small_steps_are_not_lost(model):
    before = weights(model)
    numbers = [0] * 400
    plain = copy.deepcopy(model)
    steps(plain, torch.optim.AdamW(plain.parameters(), lr=1e-6, weight_decay=0.0), numbers)
    steps(model, adamw(model, SETTINGS), numbers)

    def moved(now):
        pairs = zip(weights(now), before, strict=True)
        return sum(int((a != b).sum()) for a, b in pairs) / sum(b.numel() for b in before)

    assert moved(model) > 2 * moved(plain) > 0


def test_a_checkpoint_brings_back_what_bfloat16_cannot_hold(model, tmp_path):
    unbroken = copy.deepcopy(model)
    steps(unbroken, adamw(unbroken, SETTINGS), range(6))
    first = copy.deepcopy(model)
    optimizer = adamw(first, SETTINGS)
    steps(first, optimizer, range(3))
    path = checkpoint.save(tmp_path, 3, first, optimizer, state={}, tokenizer=None, keep=1)
    again = adamw(model, SETTINGS)
    assert isinstance(again, MasterAdamW)
    checkpoint.load(path, model, again)
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.param_groups[0]["params"], optimizer.param_groups[0]["params"], strict=True)
    )
    steps(model, again, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(unbroken), strict=True))


def test_a_float32_model_needs_no_copies(model):
    assert type(adamw(model.float(), SETTINGS)) is torch.optim.AdamW
