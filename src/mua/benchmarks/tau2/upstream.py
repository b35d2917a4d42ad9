"""Upstream's domain functions, imported from where the benchmark is installed.

Only models, toolkits and environments are imported; the framework around them (its LLM client, its
server, its command line) is never touched, and its files are never edited. Prompts are read from its
sources as text.

Invariant: nothing of it stays in `sys.path` or `sys.modules`: two versions, or a real installation of the
same package, can live in one process. Nothing of it reaches out of the process (`confined`).
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import MuaError
from ..confined import confine

PACKAGE = "tau2"
_LOCK = threading.Lock()


class _Silent:
    """Stands in for upstream's logger: every method takes anything and does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: None


class Uuids:
    """Stands in for the module `uuid` in upstream's functions, so that a replay makes the same ids again.

    Whoever plays says by `of` which world's ids are to be drawn.
    """

    def __init__(self) -> None:
        self._now = threading.local()

    @contextlib.contextmanager
    def of(self, ids: Ids) -> Iterator[None]:
        before = getattr(self._now, "ids", None)
        self._now.ids = ids
        try:
            yield
        finally:
            self._now.ids = before

    def uuid4(self) -> Any:
        ids: Ids | None = getattr(self._now, "ids", None)
        ids = ids if ids is not None else Ids("none")
        return types.SimpleNamespace(hex=ids.next())


class Ids:
    """The random ids of one world: the same in every replay, others in a gold world."""

    __slots__ = ("count", "kind")

    def __init__(self, kind: str):
        self.kind, self.count = kind, 0

    def next(self) -> str:
        self.count += 1
        return hashlib.sha256(f"{self.kind}/{self.count}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Upstream:
    """The parts of one installed version."""

    root: Path
    """The folder of its package."""
    modules: Mapping[str, types.ModuleType]
    """By name below the package: `domains.retail.tools`, …"""
    ids: Uuids

    def get(self, module: str, name: str) -> Any:
        return getattr(self.modules[module], name)

    def constant(self, file: str, name: str) -> str:
        """A text constant of a source file that is read, not run. Raises MuaError when it is not there."""
        return _constant(self.root / file, name)


@functools.cache
def _constant(path: Path, name: str) -> str:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as exc:
        raise MuaError(f"{path} cannot be read: {exc}. Install the benchmark again.") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == name for t in node.targets):
            value = node.value
            strip = isinstance(value, ast.Call) and getattr(value.func, "attr", "") == "strip"
            if strip:
                value = value.func.value  # type: ignore[attr-defined]
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                return value.value.strip() if strip else value.value
    raise MuaError(f"{path} has no text {name}: this is another version than mua knows.")


_WANTED = (
    "data_model.tasks",
    "environment.tool",
    "environment.toolkit",
    "environment.environment",
    "domains.retail.data_model",
    "domains.retail.tools",
    "domains.airline.data_model",
    "domains.airline.tools",
    "domains.telecom.data_model",
    "domains.telecom.user_data_model",
    "domains.telecom.tools",
    "domains.telecom.user_tools",
    "domains.telecom.environment",
)


def load(root: Path) -> Upstream:
    """Imports the domain functions of the package folder `root` (`…/tau2`). Raises MuaError."""
    ids = Uuids()
    confine(root)
    with _LOCK, _apart(root):
        try:
            modules = {name: importlib.import_module(f"{PACKAGE}.{name}") for name in _WANTED}
        except ImportError as exc:
            need = f"{exc.name or exc}"
            raise MuaError(
                f"the functions of τ²-bench in {root} need '{need}', which is not installed; install the "
                "extra: pip install 'mua[tau]'."
            ) from exc
        except Exception as exc:
            raise MuaError(
                f"the functions of τ²-bench in {root} cannot be imported: {type(exc).__name__}: {exc}. "
                "Install the benchmark again: mua benchmarks install tau2."
            ) from exc
    modules["domains.telecom.tools"].uuid = ids  # type: ignore[attr-defined]
    return Upstream(root, modules, ids)


@contextlib.contextmanager
def _apart(root: Path) -> Iterator[None]:
    """Imports inside see the package at `root` and our stand-ins; afterwards everything is as before."""
    stubs = {
        "loguru": _module("loguru", logger=_Silent()),
        "dotenv": _module("dotenv", load_dotenv=lambda *args, **options: True),  # reads no file
        "deepdiff": _module("deepdiff", DeepDiff=lambda a, b: {}),
        "toml": _module("toml", load=_no_toml, dump=_no_toml),  # data files are read by us
    }
    ours = [n for n in sys.modules if n == PACKAGE or n.startswith(f"{PACKAGE}.") or n in stubs]
    kept = {n: sys.modules.pop(n) for n in ours}
    package = _module(PACKAGE)
    package.__path__ = [str(root)]  # its own __init__ is not run: later versions import everything there
    package.__spec__ = importlib.machinery.ModuleSpec(PACKAGE, None, is_package=True)
    sys.modules.update(stubs, **{PACKAGE: package})
    for inner in ("domains", *(f"domains.{d}" for d in ("retail", "airline", "telecom"))):
        folder = _module(f"{PACKAGE}.{inner}")
        folder.__path__ = [str(root.joinpath(*inner.split(".")))]
        sys.modules[folder.__name__] = folder
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # the cache folder is only read
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        for name in [n for n in sys.modules if n == PACKAGE or n.startswith(f"{PACKAGE}.") or n in stubs]:
            del sys.modules[name]
        sys.modules.update(kept)


def _module(name: str, **names: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__dict__.update(names)
    return made


def _no_toml(*args: Any, **options: Any) -> Any:
    raise MuaError("upstream's own loader of data files is not used here")
