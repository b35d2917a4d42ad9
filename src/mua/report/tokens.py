"""The exact tokens of a conversation, where its file has them: which were sampled, and how likely each was.

Invariant: ids and mask are those of the trace; a piece is what the run's own tokenizer makes of one id alone
(a character that spans tokens is shown as U+FFFD in each).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..trajectory import TokenTrace

_PLACES = ("models/*/tokenizer.json", "checkpoints/*/model/tokenizer.json", "checkpoints/*/tokenizer.json")


class Pieces:
    """Texts of token ids, by the tokenizer in a run folder; each is made once."""

    def __init__(self, run: Path):
        self._run = run
        self._tokenizer: Any = None
        self._looked = False
        self.known: dict[int, str] = {}

    def note(self, trace: TokenTrace) -> None:
        """Makes the pieces of all ids of a trace; without a tokenizer, there are none."""
        tokenizer = self._load()
        if tokenizer is None:
            return
        for segment in trace.segments:
            for token in set(segment.ids) - self.known.keys():
                self.known[token] = tokenizer.decode([token], skip_special_tokens=False)

    def of(self, trace: TokenTrace) -> dict[str, str]:
        """The pieces of one trace, by id."""
        self.note(trace)
        ids = {token for segment in trace.segments for token in segment.ids}
        return {str(token): self.known[token] for token in sorted(ids & self.known.keys())}

    def _load(self) -> Any:
        if not self._looked:
            self._looked = True
            path = next((p for pattern in _PLACES for p in sorted(self._run.glob(pattern))), None)
            if path is not None:
                from tokenizers import Tokenizer

                try:
                    self._tokenizer = Tokenizer.from_file(str(path))
                except Exception:  # the library raises nothing narrower
                    self._tokenizer = None
        return self._tokenizer


def segments(trace: TokenTrace) -> list[dict[str, list[Any]]]:
    """The segments as the page reads them: `ids`, and `logprobs` with null where a token was not sampled."""
    return [
        {
            "ids": list(s.ids),
            "logprobs": [
                round(p, 4) if sampled else None for p, sampled in zip(s.logprobs, s.mask, strict=False)
            ],
        }
        for s in trace.segments
    ]
