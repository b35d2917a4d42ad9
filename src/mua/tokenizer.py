"""The tokenizer of the small model that is made on the spot.

Byte-level BPE in which a word takes the space after it and digits stand alone: a title or a number then
has the same tokens in a person's words as inside the JSON of a call, so that copying it is copying tokens.

Invariant: `decode(encode(text)) == text` for any text, and the same texts give the same tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .errors import MuaError
from .users import STOP

SYSTEM, USER, ASSISTANT, TOOL, END = "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"
PAD = "<|pad|>"
MARKS = (SYSTEM, USER, ASSISTANT, TOOL, END)
"""The marks of the built-in chat format (`formats.ChatFormat`), one token each."""

FRAMES = (
    '<tool_call>{"name": "',
    '", "arguments": {"',
    '", "arguments": {',
    '": "',
    '", "',
    '"}}</tool_call>',
    "}}</tool_call>",
)
"""Text that stands in nearly every call; as `added` tokens they make a call several times shorter."""

_PIECES = r"\d|[\p{L}\p{M}_]+ ?|[^\s\p{L}\p{M}\p{N}_]+ ?|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int, added: Sequence[str] = ()) -> Any:
    """A `PreTrainedTokenizerFast` of at most `vocab_size` tokens, trained on `texts`.

    `added` texts (see `FRAMES`; tool and argument names) become one token each, wherever they stand;
    those that are identifiers only as whole words. They are ordinary text when decoded.

    Raises MuaError when `vocab_size` is too small, or an added text is not plain ASCII (the byte-level
    decoder would garble it).
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    added = list(dict.fromkeys(a for a in added if a))
    bad = [a for a in added if not a.isascii() or a in (*MARKS, PAD, STOP)]
    if bad:
        raise MuaError(
            f"{bad[0]!r} cannot be an added token: it must be ASCII text, and no mark of the chat format. "
            "Leave it out; the tokenizer spells it from smaller pieces."
        )
    special = [PAD, *MARKS, STOP]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(special) + len(added) + len(alphabet)
    if vocab_size < least:
        raise MuaError(
            f"a vocabulary of {vocab_size} is too small: {len(alphabet)} bytes, {len(special)} marks and "
            f"{len(added)} added tokens need {least}. Raise vocab_size, or add fewer tokens."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(  # type: ignore[call-arg]
        vocab_size=vocab_size - len(added),
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_without(texts, (*special, *added)), trainer)
    tokenizer.add_tokens([AddedToken(a, normalized=False, single_word=a.isidentifier()) for a in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[*(m for m in MARKS if m != END), STOP],
        # Tidying spaces before punctuation would make decoding lossy.
        clean_up_tokenization_spaces=False,
    )


def _without(texts: Iterable[str], tokens: Sequence[str]) -> Iterator[str]:
    """The texts without what is a token already: no merge is spent on it."""
    cut = re.compile("|".join(re.escape(t) for t in sorted(tokens, key=len, reverse=True)))
    for text in texts:
        yield from (piece for piece in cut.split(text) if piece)
