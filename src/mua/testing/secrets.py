"""Whether a secret stands in a file, however it is spelt or packed there.

Invariant: nothing is known of how mua takes secrets out. A file is decoded in every way that may hide one,
and so is what comes of it.
"""

from __future__ import annotations

import base64
import contextlib
import html
import re
import urllib.parse
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_DEEP = 4
"""Times that something is decoded: base64 of deflated JSON with an address in it."""
_LETTERS = re.compile(rb"[A-Za-z0-9+/_-]{11,}")
_ENTITY = re.compile(rb"&(#|quot|amp|lt|gt|apos)")
_ESCAPE = re.compile(rb"\\u([0-9a-fA-F]{4})")
_BINARY = {".safetensors"}
"""Numbers, searched as they are: decoding those finds words of any sort in the long run, and takes long."""


def leaks(folder: Path, secrets: Iterable[str]) -> list[tuple[Path, str]]:
    """(file, secret) wherever one stands in a file of the folder."""
    wanted = [(secret, secret.encode()) for secret in secrets]
    out = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        found: set[str] = set()
        for view in decoded(path.read_bytes(), 0 if path.suffix in _BINARY else _DEEP):
            found.update(secret for secret, raw in wanted if raw in view)
        out += [(path, secret) for secret in sorted(found)]
    return out


def decoded(data: bytes, deep: int = _DEEP) -> Iterator[bytes]:
    """The data, and what it is when it is taken for JSON, an address, HTML, base64, or deflated."""
    yield data
    if not deep:
        return
    if data[:2] == b"\x1f\x8b" or data[:1] == b"\x78":
        with contextlib.suppress(zlib.error):
            yield from decoded(zlib.decompressobj(47).decompress(data), deep - 1)  # gzip and zlib
            return
    if b"\\" in data:
        plain = data.replace(b"\\\\", b"\\").replace(b'\\"', b'"').replace(b"\\/", b"/").replace(b"\\'", b"'")
        plain = _ESCAPE.sub(lambda found: chr(int(found[1], 16)).encode("utf-8", "replace"), plain)
        if plain != data:
            yield from decoded(plain, deep - 1)
    if b"%" in data and (plain := urllib.parse.unquote_to_bytes(data)) != data:
        yield from decoded(plain, deep - 1)
        yield from decoded(urllib.parse.unquote_to_bytes(data.replace(b"+", b" ")), 0)
    if _ENTITY.search(data):
        yield from decoded(
            html.unescape(data.decode("utf-8", "replace")).encode("utf-8", "replace"), deep - 1
        )
    words: list[bytes] = []
    for found in _LETTERS.finditer(data):
        run = found[0].replace(b"-", b"+").replace(b"_", b"/")
        for start in range(4):  # it need not begin where the letters do
            part = run[start : len(run) - ((len(run) - start) % 4 == 1)]
            words.append(base64.b64decode(part + b"=" * (-len(part) % 4)))
    for word in words:
        if word[:2] == b"\x1f\x8b" or word[:1] == b"\x78":
            yield from decoded(word, deep - 1)
    if words:
        yield b"\n".join(words)
