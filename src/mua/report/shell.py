"""A page: data and one hashed script in a fixed shell. The report of a run and the comparison of runs are
made with it.

Invariants:
- The content policy forbids the network and every script but this one (a page that is served live may also
  fetch from where it came), and the data cannot leave its block: `<`, `>`, `&` and all non-ASCII characters
  are escaped.
- No secret reaches the page: values under keys such as `api_key` and strings that look like keys are hidden.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import MuaError

NOTHING = "default-src 'none'"
"""The policy of a page that is a file: no network at all."""
SAME_ORIGIN = "default-src 'none'; connect-src 'self'"
"""The policy of a page that is served live: it may fetch from its own server, and nowhere else."""


def render(
    data: Mapping[str, Any],
    *,
    shell: str = "page.html",
    scripts: Sequence[str],
    blocks: Mapping[str, str] | None = None,
    policy: str = NOTHING,
) -> str:
    """The whole page.

    `data` becomes the script's `DATA`; it has at least a `title`. `shell` is a file of this package,
    `scripts` are files of `page/` (without `.js`), put one after the other into one script. `blocks` are
    further texts in base64, by the id of the element that holds them, for what is not needed at once.
    """
    here = files("mua.report")
    css, page = ((here / name).read_text(encoding="utf-8") for name in ("page.css", shell))
    script = "\n".join((here / "page" / f"{name}.js").read_text(encoding="utf-8") for name in scripts)
    parts = {
        "TITLE": _html(f"{data['title']} · mua"),
        "POLICY": f"{policy}; style-src '{_digest(css)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'",
        "STYLE": css,
        "DATA": embed(data),
        "BLOCKS": "\n".join(
            f'<script type="application/octet-stream" id="{name}">{_base64(text)}</script>'
            for name, text in (blocks or {}).items()
        ),
        "SCRIPT": script,
    }
    # One pass, so that a placeholder's name inside the data stays what it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page)


def write_page(page: str, out: Path, what: str = "the report") -> Path:
    """Puts a page at `out`, whole or not at all. Raises MuaError when it cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_name(out.name + ".part")
        part.write_text(page, encoding="utf-8", newline="\n")
        part.replace(out)
    except OSError as exc:
        raise MuaError(f"{what} cannot be written to {out}: {exc.strerror}; choose another place.") from None
    return out


def safe_json(value: Any) -> str:
    """JSON in ASCII (U+2028 and lone surrogates, too) of what is `finite` of a value, secrets hidden."""
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError):  # a NaN, or what is no plain JSON value
        value = finite(value)
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    lower = text.lower()
    if any(mark in lower for mark in _MARKS):
        text = json.dumps(hide_secrets(finite(value)), separators=(",", ":"), allow_nan=False)
    return text


def embed(data: Any) -> str:
    """JSON that can stand in an HTML `<script>` block."""
    text = safe_json(data)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _base64(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9+/=]*", text):
        raise ValueError("a block is not base64")
    return text


def _html(text: str) -> str:
    return "".join(c if c.isascii() and c not in "<>&\"'" else f"&#{ord(c)};" for c in text)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def finite(value: Any) -> Any:
    """The value as JSON can hold it: NaN and infinities, which a diverged run logs, become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


_SECRET_KEY = re.compile(
    r"(api_?key|access_?key|private_?key|secret|passw|credential|authorization|(^|_)token$)", re.I
)
_SECRET_TEXT = re.compile(
    r"\b(?:sk|pk|rk)-[\w-]{16,}|\b(?:hf|ghp|gho|glpat)[_-]\w{16,}|\bBearer\s+[\w.~+/=-]{12,}|(?<=//)[^/\s:@]+:[^/\s@]+(?=@)"
)
_MARKS = (
    *("sk-", "pk-", "rk-", "hf_", "hf-", "ghp_", "ghp-", "gho_", "gho-", "glpat-", "glpat_", "bearer", "//"),
    *("api_key", "apikey", "access_key", "accesskey", "private_key", "privatekey", "secret", "passw"),
    *("credential", "authorization", 'token":'),
)
"""One of these is in the JSON (in lower case) of whatever `hide_secrets` changes: walking it all is slow."""
HIDDEN = "[hidden]"


def hide_secrets(value: Any) -> Any:
    """The value with everything that looks like a key or a password replaced."""
    if isinstance(value, str):
        return _SECRET_TEXT.sub(HIDDEN, value)
    if isinstance(value, dict):
        return {
            hide_secrets(k): HIDDEN if v and isinstance(v, str) and _is_secret(k) else hide_secrets(v)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [hide_secrets(v) for v in value]
    return value


def _is_secret(key: Any) -> bool:
    return bool(_SECRET_KEY.search(str(key))) and not str(key).lower().endswith("_env")
