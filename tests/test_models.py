"""The model made on the spot starts with a circuit that copies."""

import torch

from mua.models import tiny_llama


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
