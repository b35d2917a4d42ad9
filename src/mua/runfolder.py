"""The folder of one run: its configuration, where it ran, and its records as whole JSON lines.

Invariants:
- One writer at a time; a folder is only ever continued with the configuration it was made with.
- A reader, or a resumed run, never meets half a line: torn ends are cut, and lines of steps that are
  played again are dropped.
- No secret is written: neither what stands under a secret's name nor the value of one in the environment, as
  it is or as JSON, addresses, HTML and base64 spell it.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import yaml

from . import __version__
from .errors import MuaError
from .redaction import secret_forms

log = logging.getLogger(__name__)

REDACTED = "[redacted]"
SHORTEST_SECRET = 8
"""Shorter values in the environment are not taken for secrets: they would blot out ordinary words."""

_SECRET_WORDS = {
    "token", "secret", "password", "passwd", "passphrase", "credential", "credentials", "authorization",
    "apikey",
}  # fmt: skip
_KEY_OWNERS = {"api", "access", "secret", "private", "auth", "service"}
_HARMLESS_TOKENS = {"pad", "eos", "bos", "unk", "sep", "cls", "mask", "stop", "end", "image", "per", "last"}
_URL_LOGIN = re.compile(r"(?<=://)[^/\s@]+:[^/\s@]*@")


def is_secret_name(name: str) -> bool:
    """Whether a key or variable of that name holds a secret: `api_key`, `HF_TOKEN`, `clientSecret`, …

    Plurals (`max_tokens`), token kinds (`pad_token`) and names of variables (`api_key_env`) do not.
    """
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()
    parts = [w for w in re.split(r"[^a-z0-9]+", words) if w]
    if not parts:
        return False
    before = parts[-2] if len(parts) > 1 else ""
    if parts[-1] == "token":
        return before not in _HARMLESS_TOKENS
    return parts[-1] in _SECRET_WORDS or (parts[-1] == "key" and before in _KEY_OWNERS)


def environment_secrets() -> frozenset[str]:
    """Values of the environment variables that hold secrets."""
    return frozenset(v for k, v in os.environ.items() if is_secret_name(k) and len(v) >= SHORTEST_SECRET)


def redact(value: Any, secrets: Collection[str] = ()) -> Any:
    """A copy of JSON-like data without secrets: texts under a secret's name, logins in URLs, and every
    occurrence of one of `secrets` in any text or key."""
    if isinstance(value, Mapping):
        out = {}
        for key, item in value.items():
            if is_secret_name(str(key)) and isinstance(item, str | list | tuple) and item:
                out[key] = REDACTED
            else:
                out[_scrub(key, secrets) if isinstance(key, str) else key] = redact(item, secrets)
        return out
    if isinstance(value, list | tuple):
        return [redact(item, secrets) for item in value]
    return _scrub(value, secrets) if isinstance(value, str) else value


def _scrub(text: str, secrets: Collection[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return _URL_LOGIN.sub(f"{REDACTED}@", text)


def take_lock(path: Path, refusal: str) -> TextIO:
    """Takes a lock until the returned file is closed, or the process ends, however it does.

    The file stays, with the number of the process that last had it. Raises MuaError with `refusal` when
    another has it, whose number stands for `{owner}` in it, and OSError when there can be no such file.
    """
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise MuaError(refusal.replace("{owner}", owner)) from None
    except OSError:
        file.close()
        raise
    return file


class RunFolder:
    """Creates the folder of a run, or opens it again to go on. Use as a context manager, or `close` it.

    `config` is the whole resolved configuration (JSON values); `facts` goes into the manifest (seeds, data
    hashes). `may_change(key)` tells the settings that are no part of what the run is: where they differ, the
    folder takes the new ones. Raises MuaError when another process writes to it, when it was made with
    another configuration, or when it cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, Any],
        facts: Mapping[str, Any] | None = None,
        may_change: Callable[[str], bool] = lambda key: False,
    ):
        self.path = Path(path).expanduser()
        self._files: dict[str, BinaryIO] = {}
        secrets = environment_secrets() | frozenset(_named_secrets(config))
        forms = {form for secret in secrets for form in secret_forms(secret)}
        self._secrets = sorted(forms, key=lambda form: (-len(form), form))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = take_lock(
                self.path / ".lock",
                f"Another run (process {{owner}}) is writing to {self.path}. Wait for it, stop it, or choose "
                "another run folder.",
            )
        except OSError as exc:
            raise MuaError(f"The run folder {self.path} cannot be used ({exc}). Choose another.") from exc
        try:
            self.resumed = (self.path / "config.yaml").exists()
            """The folder was there already, with this configuration."""
            plain = json.loads(json.dumps(redact(config, self._secrets)))
            other = self.resumed and self._check_config(plain, may_change)
            self._write_manifest(facts or {})
            if not self.resumed or other:  # last: a folder with a config is a folder with all it needs
                text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
                self._replace("config.yaml", text)
        except BaseException:
            self.close()
            raise

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Adds one line to `NAME.jsonl`, whole or not at all. Numbers that are not finite become null."""
        clean = _finite(_scrubbed(line, self._secrets))
        data = (json.dumps(clean, ensure_ascii=False, allow_nan=False) + "\n").encode()
        file = self._file(name)
        before = file.seek(0, os.SEEK_END)
        try:
            written = file.write(data)  # unbuffered: one system call
            if written != len(data):
                raise OSError(f"only {written} of {len(data)} bytes fit")
        except OSError as exc:
            file.truncate(before)
            raise MuaError(
                f"{self.path / name}.jsonl cannot be written ({exc}). Make room on the disk, then run the "
                "same command again to go on from the last checkpoint."
            ) from exc

    def finish(self, name: str) -> None:
        """Closes `NAME.jsonl`; for a record that nothing more is added to."""
        file = self._files.pop(name, None)
        if file is not None:
            file.close()

    def rewind(self, name: str, step: int) -> int:
        """Drops the lines of `NAME.jsonl` from the first that is torn or of a step after `step`.

        What a resumed run will write again. Returns the number of lines kept.
        """
        if not (self.path / f"{name}.jsonl").exists():
            return 0
        file = self._file(name)
        file.seek(0)
        end = kept = 0
        for raw in iter(file.readline, b""):
            try:
                line = json.loads(raw)
                if not raw.endswith(b"\n") or line["step"] > step:
                    break
            except (ValueError, KeyError, TypeError):
                break
            end += len(raw)
            kept += 1
        file.truncate(end)
        return kept

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        """Writes a JSON file of the folder (`eval/base.json`) whole, replacing an older one."""
        clean = _finite(_scrubbed(data, self._secrets))
        self._replace(name, json.dumps(clean, ensure_ascii=False, allow_nan=False, indent=1) + "\n")

    def close(self) -> None:
        """Closes the files and lets another process have the folder."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_config(self, config: Mapping[str, Any], may_change: Callable[[str], bool]) -> bool:
        """Whether the folder has other settings, all of which may change. Raises MuaError for the rest."""
        try:
            stored = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as exc:
            raise MuaError(f"{self.path}/config.yaml cannot be read ({exc}). Use a new run folder.") from exc
        was, now = _flat(stored), _flat(config)
        gone = "(not set)"
        other = [key for key in sorted({*was, *now}) if was.get(key, gone) != now.get(key, gone)]
        changed = [
            f"{key} (was {was.get(key, gone)!r}, now {now.get(key, gone)!r})"
            for key in other
            if not may_change(key)
        ]
        if changed:
            shown = ", ".join(changed[:8]) + (f" and {len(changed) - 8} more" if len(changed) > 8 else "")
            raise MuaError(
                f"The run in {self.path} was made with another configuration: {shown}. Continue it with "
                "the one it has (config.yaml), or choose another run folder."
            )
        return bool(other)

    def _write_manifest(self, facts: Mapping[str, Any]) -> None:
        """Where and with what the run is made; a resumed run adds an entry, and warns of changes."""
        here = {
            "mua": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "transformers", "peft", "numpy")},
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
        }
        path = self.path / "manifest.json"
        if not (self.resumed and path.exists()):
            manifest = {"created": _now(), "versions": here, **redact(facts, self._secrets), "resumed": []}
        else:
            try:
                manifest = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as exc:
                raise MuaError(f"{path} cannot be read ({exc}). Use a new run folder.") from exc
            before = manifest.get("versions", {})
            other = [f"{k} {before.get(k)} → {v}" for k, v in here.items() if before.get(k) != v]
            if other:
                log.warning("resumed on another machine or with other versions: %s", ", ".join(other))
            for key, value in json.loads(json.dumps(redact(facts, self._secrets))).items():
                if manifest.get(key) != value:
                    raise MuaError(
                        f"'{key}' of the run in {self.path} has changed since it was made (manifest.json): "
                        "its data or models are not the same. Restore them, or choose another run folder."
                    )
            manifest.setdefault("resumed", []).append({"at": _now(), "changed": other})
        self._replace("manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")

    def _file(self, name: str) -> BinaryIO:
        """The open file of a record; a torn last line, left by a crash, is cut when it is opened."""
        if name not in self._files:
            path = self.path / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            file = open(path, "r+b", buffering=0)  # noqa: SIM115
            text = file.read()
            if text and not text.endswith(b"\n"):
                file.truncate(text.rfind(b"\n") + 1)
            self._files[name] = file  # type: ignore[assignment]
        return self._files[name]

    def _replace(self, name: str, text: str) -> None:
        path = self.path / name
        fresh = path.with_name(f".{path.name}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(fresh, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError as exc:
            fresh.unlink(missing_ok=True)
            raise MuaError(f"{path} cannot be written ({exc}). Make room on the disk.") from exc


def check_writable(folder: Path) -> None:
    """Before long work and not after it: raises MuaError where a folder cannot be made or written to."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir():
        raise MuaError(f"{folder} cannot be written: {there} is no folder; choose another --out.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise MuaError(f"{folder} cannot be written: {there} is read-only for you; choose another --out.")


def _named_secrets(value: Any) -> list[str]:
    """Texts that stand under a secret's name anywhere in the configuration."""
    if isinstance(value, Mapping):
        found = []
        for key, item in value.items():
            if is_secret_name(str(key)) and isinstance(item, str) and len(item) >= SHORTEST_SECRET:
                found.append(item)
            found += _named_secrets(item)
        return found
    if isinstance(value, list | tuple):
        return [text for item in value for text in _named_secrets(item)]
    return []


def _scrubbed(value: Any, secrets: Collection[str]) -> Any:
    """Records hold what models and tools said, so only known secret values are taken out, not whatever
    stands under a name such as `token`."""
    if isinstance(value, Mapping):
        return {_scrub(str(k), secrets): _scrubbed(v, secrets) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed(item, secrets) for item in value]
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, REDACTED)
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        out: dict[str, Any] = {}
        for key, item in value.items():
            out.update(_flat(item, f"{prefix}.{key}" if prefix else str(key)))
        return out
    return {prefix: value}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
