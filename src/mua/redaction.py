"""The ways in which a secret may be spelt, for whoever takes it out of a text.

Invariant: where a form stands in a text, the secret does; no form is shorter than most of the secret.
"""

from __future__ import annotations

import base64
import html
import json
import re
import urllib.parse


def secret_forms(secret: str) -> tuple[str, ...]:
    """A secret as it is, and as it stands in JSON, addresses, HTML and base64 at any offset (as in a Basic
    login: without the characters that depend on its neighbours). The longest first."""
    in_json = [json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]]
    data = secret.encode("utf-8", "surrogateescape")
    quoted = [urllib.parse.quote(data, safe="/"), urllib.parse.quote(data, safe="")]
    quoted.append(urllib.parse.quote_plus(data))
    forms = {
        *(secret, html.escape(secret), repr(secret)[1:-1]),
        *in_json,
        *(text.replace("/", r"\/") for text in in_json),
        *(
            re.sub(chars, lambda found: f"\\u{ord(found[0]):04x}", in_json[0])
            for chars in ("[&<>]", "[+&<>'`]")
        ),
        *quoted,
        *(re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), text) for text in quoted),
    }
    for offset in range(3):
        size = offset + len(data)
        text = base64.b64encode(bytes(offset) + data).decode()[(0, 2, 3)[offset] : size // 3 * 4 + size % 3]
        forms |= {text, text.replace("+", "-").replace("/", "_")}
    return tuple(sorted(forms, key=len, reverse=True))
