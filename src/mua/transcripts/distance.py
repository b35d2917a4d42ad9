"""How far the users of some conversations are from those of others, beside the distance that chance makes.

Compared is what the users do: how many turns they take, how long these are, which behaviours they show, their
words (Jensen-Shannon distance of one- and two-word sequences) and what they are about (energy distance of
their conversations in a space of topics: TF-IDF and a truncated SVD by scipy, or the embeddings of a model).

Every distance depends on how much there is to compare. So all are between samples of the same size, drawn
anew many times: the imported conversations fall into two halves, and both the simulated ones and one half are
compared with the other half. The second figure is the floor: what two halves of the same people come to.

Invariant: the same conversations give the same figures; every draw is seeded.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..chat import Message
from ..errors import MuaError
from ..users import STOP
from ..users.personas import BEHAVIOURS, PLAIN
from .behave import behaviours

DRAWS = 200
MOST = 1000
"""Conversations of each side that are compared; of more, this many at random."""
LEAST = 10
TOPICS = 50
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts → one vector each."""


@dataclass(frozen=True)
class Distance:
    """One measure of simulated users against imported ones."""

    measure: str
    here: float | None
    """Of the simulated users, where the measure is a mean; None for distances alone."""
    there: float | None
    """Of the imported ones."""
    distance: float
    low: float
    high: float
    """95 % of the draws."""
    floor: float
    floor_high: float
    """Between two halves of the imported ones: mean, and what 97.5 % of the draws stay below."""

    @property
    def differs(self) -> bool:
        """Farther than chance makes: 97.5 % of the draws are above what 97.5 % of the halves are below."""
        return self.low > self.floor_high

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "differs": self.differs}


def users_words(messages: Sequence[Message]) -> list[str]:
    """What the user of a conversation said, turn by turn, without the sign by which simulated ones end it."""
    said = (m.content.replace(STOP, "").strip() for m in messages if m.role == "user")
    return [text for text in said if text]


def distances(
    simulated: Sequence[Sequence[Message]],
    imported: Sequence[Sequence[Message]],
    seed: int = 0,
    embed: Embed | None = None,
) -> list[Distance]:
    """Every measure of the simulated users against the imported ones.

    Raises MuaError when there are fewer than `LEAST` conversations of the one, or twice that of the other.
    """
    rng = np.random.default_rng(seed)
    ours, theirs = (_some([m for m in side if users_words(m)], rng) for side in (simulated, imported))
    if len(ours) < LEAST or len(theirs) < 2 * LEAST:
        raise MuaError(
            f"{len(ours)} simulated and {len(theirs)} imported conversations are too few to compare; there "
            f"must be {LEAST} and {2 * LEAST} at least. Play more tasks (--tasks), or import more."
        )
    both, n = [*ours, *theirs], len(ours)
    size = min(n, len(theirs) // 2)
    said = [users_words(messages) for messages in both]
    shown = [behaviours(messages) for messages in both]
    draws = [_draw(rng, n, len(theirs), size) for _ in range(DRAWS)]

    out = []
    per_turn = [[len(_WORD.findall(turn)) for turn in turns] for turns in said]
    for measure, values in (
        ("turns", np.array([len(turns) for turns in said], float)),
        ("words a turn", np.array([np.mean(counts) for counts in per_turn])),
        ("words of the first turn", np.array([counts[0] for counts in per_turn], float)),
    ):
        spread = float(values[n:].std()) or 1.0
        found = _wasserstein(values / spread)
        out.append(_measured(measure, draws, found, float(values[:n].mean()), float(values[n:].mean())))
    names = [*BEHAVIOURS, PLAIN]
    table = np.array([[name in (b or (PLAIN,)) for name in names] for b in shown], float)
    out.append(_measured("behaviours", draws, _rates(table)))
    grams = _grams([" ".join(turns) for turns in said])
    out.append(_measured("n-grams", draws, _jensen_shannon(grams)))
    texts = [" ".join(turns) for turns in said]
    vectors = embed(texts) if embed is not None else _topics(grams)
    out.append(_measured("embeddings", draws, _energy(np.asarray(vectors, float))))
    return out


Draw = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Indices of simulated ones, of a half of the imported ones, and of the other half."""
Measure = Callable[[np.ndarray, np.ndarray], float]


def model_embeddings(folder: str) -> Embed:
    """The mean of a local model's last hidden states over each text (its first 512 tokens), on the CPU.

    Raises MuaError when the folder holds no model that transformers can load.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError) as exc:
        first = " ".join(str(exc).split())[:200]
        raise MuaError(f"--embed {folder}: transformers can load no model from it ({first}).") from None

    def embed(texts: Sequence[str]) -> np.ndarray:
        vectors = []
        with torch.inference_mode():
            for text in texts:
                ids = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")["input_ids"]
                vectors.append(model(input_ids=ids).last_hidden_state[0].float().mean(0).numpy())
        return np.stack(vectors)

    return embed


def _some(side: list[Any], rng: np.random.Generator) -> list[Any]:
    if len(side) <= MOST:
        return side
    return [side[i] for i in sorted(rng.choice(len(side), MOST, replace=False))]


def _draw(rng: np.random.Generator, ours: int, theirs: int, size: int) -> Draw:
    halves = ours + rng.permutation(theirs)
    return rng.choice(ours, size, replace=False), halves[:size], halves[size : 2 * size]


def _measured(
    measure: str,
    draws: Sequence[Draw],
    between: Measure,
    here: float | None = None,
    there: float | None = None,
) -> Distance:
    far = np.array([between(one, half) for one, half, _ in draws])
    floor = np.array([between(other, half) for _, half, other in draws])
    low, high = np.quantile(far, [0.025, 0.975])
    return Distance(
        measure,
        here,
        there,
        float(far.mean()),
        float(low),
        float(high),
        float(floor.mean()),
        float(np.quantile(floor, 0.975)),
    )


def _wasserstein(values: np.ndarray) -> Measure:
    """Earth mover's distance of one number a conversation, in standard deviations of the imported ones."""
    from scipy.stats import wasserstein_distance

    return lambda a, b: float(wasserstein_distance(values[a], values[b]))


def _rates(table: np.ndarray) -> Measure:
    """Half the sum of the differences of the rates, a number of behaviours by which two people differ."""
    return lambda a, b: float(np.abs(table[a].mean(0) - table[b].mean(0)).sum() / 2)


def _grams(texts: Sequence[str]) -> Any:
    """Counts of one- and two-word sequences, a sparse row for each text."""
    from scipy.sparse import csr_matrix

    places: dict[str, int] = {}
    rows, columns, counts = [], [], []
    for row, text in enumerate(texts):
        words = [w.casefold() for w in _WORD.findall(text)]
        found = Counter(words)
        found.update(f"{a} {b}" for a, b in itertools.pairwise(words))
        for gram, count in found.items():
            rows.append(row)
            columns.append(places.setdefault(gram, len(places)))
            counts.append(float(count))
    return csr_matrix((counts, (rows, columns)), shape=(len(texts), max(1, len(places))))


def _jensen_shannon(grams: Any) -> Measure:
    from scipy.spatial.distance import jensenshannon

    def between(a: np.ndarray, b: np.ndarray) -> float:
        left, right = (np.asarray(grams[side].sum(0)).ravel() for side in (a, b))
        either = (left + right) > 0
        return float(jensenshannon(left[either], right[either], 2)) if either.any() else 0.0

    return between


def _topics(grams: Any) -> np.ndarray:
    """Latent semantic analysis: TF-IDF rows of length 1 in their first `TOPICS` singular directions."""
    from scipy.sparse import diags
    from scipy.sparse.linalg import norm, svds

    documents = grams.shape[0]
    idf = np.log((1 + documents) / (1 + np.asarray((grams > 0).sum(0)).ravel())) + 1
    weighted = grams.copy()
    weighted.data = 1 + np.log(weighted.data)
    weighted = weighted @ diags(idf)
    length = norm(weighted, axis=1)
    weighted = diags(1 / np.where(length > 0, length, 1)) @ weighted
    rank = min(TOPICS, min(weighted.shape) - 1)
    if rank < 1:
        return weighted.toarray()
    u, s, _ = svds(weighted, k=rank, v0=np.ones(min(weighted.shape)))
    return u * s


def _energy(vectors: np.ndarray) -> Measure:
    """Energy distance (Székely and Rizzo 2013), from all pairs at once; 0 exactly where two samples are
    one."""
    from scipy.spatial.distance import cdist

    pairs = cdist(vectors, vectors)

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(pairs[np.ix_(a, b)].mean())

    return lambda a, b: float(np.sqrt(max(0.0, 2 * mean(a, b) - mean(a, a) - mean(b, b))))
