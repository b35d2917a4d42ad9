"""How alike the conversations of a domain are: what the threshold of `coldstart.duplicates` was chosen by.

    python perf/near_duplicates.py

plays 600 train tasks of each synthetic domain and prints percentiles of the similarity of each conversation
to its nearest earlier one.
"""

from __future__ import annotations

import asyncio
import random

import numpy as np

from mua.coldstart.conversations import play_expert
from mua.coldstart.duplicates import shingles
from mua.domains import SYNTHETIC, load
from mua.episode import Limits
from mua.seeds import derive_seed

TASKS = 600
THRESHOLDS = (0.6, 0.7, 0.8)


async def nearest(name: str) -> np.ndarray:
    """The similarity of each conversation to its nearest earlier one."""
    domain = load(name)
    tasks = list(domain.tasks("train"))
    random.Random(0).shuffle(tasks)
    talks = [await play_expert(domain, t, derive_seed(0, t.id), Limits()) for t in tasks[:TASKS]]
    sets = [shingles(t.messages) for t in talks]
    columns = {shingle: i for i, shingle in enumerate(sorted(set().union(*sets)))}
    has = np.zeros((len(sets), len(columns)), dtype=np.float32)
    for row, own in zip(has, sets, strict=True):
        row[[columns[s] for s in own]] = 1
    both, sizes = has @ has.T, has.sum(1)
    alike = np.tril(both / (sizes[:, None] + sizes - both), -1)
    return alike.max(1)


if __name__ == "__main__":
    print("domain", "median", "95 %", "99 %", *(f">= {t}" for t in THRESHOLDS), sep="\t")
    for name in SYNTHETIC:
        found = asyncio.run(nearest(name))
        shown = [f"{v:.2f}" for v in np.percentile(found, [50, 95, 99])]
        print(name, *shown, *(int((found >= t).sum()) for t in THRESHOLDS), sep="\t", flush=True)
