"""HTTP to one server, for chat endpoints and for engines: connections, the key, failures in words.

Invariants:
- A failure is a `Fault` that says what went wrong and what to mend; no exception of the HTTP library leaves
  this module, so none carries a key into a traceback.
- The key, read from the environment or handed over, appears in no text that leaves this module.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import MuaError
from .redaction import secret_forms

LONGEST_WAIT = 120.0
"""Seconds; a server that asks for more is treated as down."""
_LONGEST_ANSWER = 64 * 2**20
"""Bytes, unpacked; nobody who is asked for a message or some ids sends as much."""
_SHORTEST_KEY = 8
"""Shorter "keys" are fillers for local servers (`none`, `EMPTY`), not secrets: they are not redacted."""


@dataclass(frozen=True)
class Fault:
    """Why there is no usable answer."""

    what: str
    """What the server did, as the rest of a sentence: "is down: connection refused"."""
    fix: str
    kind: str = "nonsense"
    """`timeout`, `down`, `busy` (429), `failed` (5xx and the like), `refused` (other 4xx), `nonsense`, or
    `open` (not asked: its circuit breaker is open)."""
    retry: bool = True
    wait: float | None = None
    """Seconds that the server asked us to wait."""
    redraw: bool = False
    """The model itself answered, and nothing that can be used: the same request would draw the same again.
    Every other failure says nothing of what the model would say, so the same request goes out again."""
    overflow: bool = False
    """The request is longer than the model's context."""
    usage: tuple[int, int] = (0, 0)
    """Prompt and completion tokens that were paid for all the same."""


@dataclass(frozen=True)
class Reply:
    """What a server answered, the key taken out."""

    status: int
    headers: Mapping[str, str]
    text: str


class Server:
    """One server, shared by all that ask it. Connections are opened by the first request of an event loop."""

    def __init__(
        self,
        base_url: str,
        api_key_env: str = "",
        timeout: float = 120.0,
        who: str = "server",
        key: str | None = None,
    ):
        """`timeout` is in seconds for one whole request; `who` names the server in messages. `key` is the key
        itself, for callers that are handed one and must not put it into the environment.

        Raises MuaError when the environment variable that should hold the key is not set.
        """
        self.base_url = base_url
        self.timeout = timeout
        self.api_key_env = api_key_env
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: Any = None
        self._key = key or (os.environ.get(api_key_env, "").strip() if api_key_env else "")
        if api_key_env and not (self._key and self._key.isascii() and self._key.isprintable()):
            raise MuaError(
                f"the {who} {base_url} takes its key from the environment variable {api_key_env}, which is "
                "not set (or holds characters that no key has); export it, or leave api_key_env empty for a "
                "server that wants no key."
            )
        self._echoes: tuple[str, ...] = ()
        """The key in whichever way a server may repeat it, in lower case."""
        if len(self._key) >= _SHORTEST_KEY:
            self._echoes = tuple(dict.fromkeys(form.lower() for form in secret_forms(self._key)))

    def redact(self, text: str) -> str:
        """The text without the key. In JSON, escapes that need not be are taken out first: the key may be
        spelt with any of them."""
        if self._echoes and ("\\u00" in text or "\\/" in text):
            text = _ESCAPE.sub(_plain, text)
        lower = text.lower()
        for form in self._echoes:
            if form in lower:  # a pattern alone would cost milliseconds for each answer
                text = re.sub(re.escape(form), "[key]", text, flags=re.IGNORECASE)
        return text

    async def send(
        self, path: str, body: bytes | None = None, *, method: str = "POST", seconds: float | None = None
    ) -> Reply | Fault:
        """One request: whatever the server answered, or why there is no answer within `seconds` (default:
        `timeout`)."""
        import aiohttp

        await self._bind()
        url = f"{self.base_url}{path}"
        limit = aiohttp.ClientTimeout(total=seconds or self.timeout)
        try:
            async with self._session.request(
                method, url, data=body, proxy=self._proxy, timeout=limit, allow_redirects=False
            ) as response:
                if 300 <= response.status < 400:
                    return self._elsewhere(response.status, response.headers.get("location", ""))
                data = bytearray()
                async for part in response.content.iter_any():
                    data += part
                    if len(data) > _LONGEST_ANSWER:
                        return Fault(
                            f"answered more than {_LONGEST_ANSWER >> 20} MB",
                            "look at what it serves",
                            "nonsense",
                        )
                return Reply(response.status, response.headers, self.redact(data.decode("utf-8", "replace")))
        except TimeoutError:
            return Fault(
                f"gave no answer within {seconds or self.timeout:g} s",
                "raise timeout, or lower concurrency",
                "timeout",
            )
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            cause = self.redact(str(getattr(exc, "os_error", exc)))[:200] or type(exc).__name__
            return Fault(f"is down: {cause}", "start it, or set its address to where it runs", "down")

    def _elsewhere(self, status: int, location: str) -> Fault:
        """A redirect: whoever it leads to would get the conversation, and somebody has to want that."""
        where = "".join(c for c in re.split(r"[?#]", location)[0] if c.isprintable())
        where = self.redact(re.sub(r"//[^/]*@", "//", where))[:200] or "nowhere"
        return Fault(
            f"wants to be asked somewhere else ({status} to {where})",
            "name that address instead, if it is the right one: redirects are not followed",
            "refused",
            retry=False,
        )

    async def close(self) -> None:
        """Closes the connections; the next request opens new ones."""
        session, self._session, self._loop = self._session, None, None
        if session is not None:
            await session.close()

    async def _bind(self) -> None:
        """Connections belong to one event loop; a caller with a new loop gets new ones."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        import aiohttp

        before, self._loop = self._session, loop
        self._proxy = _proxy(self.base_url)
        self._session = aiohttp.ClientSession(
            # No limit but that of whoever asks.
            connector=aiohttp.TCPConnector(
                limit=0, ssl=_tls() if self.base_url.startswith("https") else True
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={
                # Never a key of somebody else's choice: OPENAI_API_KEY must not go to some other server.
                "authorization": f"Bearer {self._key or 'none'}",
                "content-type": "application/json",
                "accept": "application/json",
            },
        )
        if before is not None:
            await before.close()


_ESCAPE = re.compile(r"\\(?:u00([2-7][0-9a-fA-F])|.)", re.DOTALL)


def _plain(found: re.Match[str]) -> str:
    """A character of ASCII instead of its escape, where JSON needs none."""
    char = chr(int(found[1], 16)) if found[1] else "/" if found[0] == r"\/" else ""
    return char if char and char not in '"\\\x7f' else found[0]


_OVERFLOW = re.compile(r"context.{0,3}(length|window|size)|max_model_len|(prompt|input) is too long", re.I)


def status_fault(reply: Reply, api_key_env: str, *, missing: str, refused: str) -> Fault:
    """The fault of an answer whose status is no success; `missing` and `refused` say what to mend for a 404
    and for other refusals."""
    status, said = reply.status, " ".join(reply.text.split())[:300]
    text = f"{status}: {said}" if said else str(status)
    if status in (401, 403):
        fix = "set api_key_env to the NAME of the environment variable that holds the key"
        if api_key_env:
            fix = f"check the key in {api_key_env}, and that it may use this model"
        return Fault(f"refused the key ({text})", fix, "refused", retry=False)
    if status == 404:
        return Fault(f"does not know the model or the path ({text})", missing, "refused", retry=False)
    if status in (400, 413, 422) and _OVERFLOW.search(said):
        return Fault(
            f"says that the conversation is too long ({text})",
            "serve the model with a longer context, or lower max_tokens",
            "refused",
            retry=False,
            overflow=True,
        )
    if status in (408, 409, 429) or status >= 500:
        wait = retry_after(reply.headers)
        fix = (
            "lower concurrency, or check the account's quota" if status == 429 else "look at the server's log"
        )
        kind = "busy" if status == 429 else "failed"
        return Fault(f"failed ({text})", fix, kind, wait is None or wait <= LONGEST_WAIT, wait)
    return Fault(f"refused the request ({text})", refused, "refused", retry=False)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of `retry-after-ms` or `retry-after` (a number or an HTTP date); None when not given."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if seconds >= 0:  # false for NaN
            return seconds
    when = _date(headers, "retry-after")
    if when is None:
        return None
    now = _date(headers, "date")  # the server's own clock: ours may be another, or jump
    return max(0.0, when - (time.time() if now is None else now))


def _date(headers: Mapping[str, str], name: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(headers.get(name, "")).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def checked_url(url: str, like: str = "http://host:port/v1") -> str:
    """The address without a slash at its end. Raises ValueError for one that holds a secret, or is none."""
    if not re.match(r"https?://[^/?#@]+(/[^?#]*)?$", url):
        raise ValueError(
            f"must look like {like}, without user name, password or query; "
            "a key belongs into the environment variable that api_key_env names"
        )
    return url.rstrip("/")


def checked_env(name: str) -> str:
    """The name of an environment variable, or "". Raises ValueError for what cannot be one: a key, mostly."""
    if name and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("must be the NAME of an environment variable, never the key itself")
    return name


def _proxy(url: str) -> str | None:
    """The HTTP proxy that the environment names for an address."""
    import urllib.parse
    import urllib.request

    parts = urllib.parse.urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def _tls() -> Any:
    """The system's certificates and certifi's: not every system has some where Python looks for them."""
    import ssl

    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context
