"""Near-duplicates among conversations: MinHash finds the candidates, the exact Jaccard similarity decides.

Compared is what both sides said and what was called, as overlapping runs of three words, with all ids, names
and numbers as they stand: conversations over one template that are about other rows are two conversations.
Answers of tools and the policy are left out; they are alike wherever the same thing was looked up.

MinHash and its index are datasketch's, the usual library for it: one import, pure Python over numpy and
scipy. Comparing all pairs would do for 2,400 conversations, but takes longer than playing them from some ten
thousand on.

Invariant: whether two conversations are near-duplicates never depends on the hashes, only whether they are
compared at all; and pairs as similar as `THRESHOLD` are compared (all but a few in a thousand).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..chat import Message

THRESHOLD = 0.7
"""Chosen on 600 conversations of each synthetic domain (docs/cold-start.md): the nearest neighbour of the
median conversation is at 0.21 to 0.46, that of one in twenty at 0.44 to 0.61 or more; above 0.7 are those of
one person who asks for the same twice, or that say nothing but the template."""
_WORDS = 3
_HASHES = 128
_SLACK = 0.15
"""By how much lower the index looks: its estimates are that far off, and the exact comparison is cheap."""

_WORD = re.compile(r"[^\W_](?:[\w.,:/@#%+-]*\w)?")

Shingles = frozenset[tuple[str, ...]]


def shingles(messages: Sequence[Message]) -> Shingles:
    """What is compared of a conversation."""
    parts: list[str] = []
    for message in messages:
        if message.role in ("user", "assistant"):
            parts.append(message.content)
            parts += [f"{c.name} {' '.join(map(str, c.arguments.values()))}" for c in message.tool_calls]
    words = _WORD.findall(" ".join(parts).lower())
    return frozenset(tuple(words[i : i + _WORDS]) for i in range(max(1, len(words) - _WORDS + 1)))


def similarity(one: Shingles, other: Shingles) -> float:
    """Jaccard: what both have, of what either has."""
    return len(one & other) / max(1, len(one | other))


class Seen:
    """The conversations kept so far, by name."""

    def __init__(self, threshold: float = THRESHOLD):
        from datasketch import MinHashLSH

        self.threshold = threshold
        self._index: Any = MinHashLSH(threshold=threshold - _SLACK, num_perm=_HASHES)
        self._kept: dict[str, Shingles] = {}

    def twin(self, name: str, messages: Sequence[Message]) -> str | None:
        """The name of a conversation that this one is a near-duplicate of; None when there is none, and then
        it belongs to the kept ones itself."""
        from datasketch import MinHash

        own = shingles(messages)
        sketch = MinHash(num_perm=_HASHES)
        sketch.update_batch([" ".join(words).encode() for words in sorted(own)])
        for other in sorted(self._index.query(sketch)):
            if similarity(own, self._kept[other]) >= self.threshold:
                return other
        self._index.insert(name, sketch)
        self._kept[name] = own
        return None
