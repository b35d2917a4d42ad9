"""Domains by name: those that come with mua, benchmarks, and anybody's own from a Python file or module.

Invariant: whatever keeps a domain from being made ends as a `MuaError` that names the file or module, and
the line in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import benchmarks
from ..domain import Domain
from ..errors import MuaError
from . import mixture

NAMES = (
    "library",
    "library:desk",
    "course_registration",
    "meeting_rooms",
    "property_rental",
    "job_application",
)
SYNTHETIC = tuple(name for name in NAMES if ":" not in name)
"""Each family once, in full."""
MCP_EXAMPLES = ("shop", "handbook", "office", "meetings")
"""Domains over real MCP servers (`mcp_examples`); they need the extra `mcp` and those servers."""


def load(name: str) -> Domain:
    """A domain by name, by `name:profile`, a benchmark's by `benchmark/part`, or a mixture of several by
    `mix:name=weight,name=weight`; the same one each time.

    `path/to/file.py`, `path/to/package` and `package.module` name code that has
    `make(profile="full") -> Domain`; without a profile, `make()` is called. Raises MuaError for what is
    unknown, and for what is wrong in that code.
    """
    if name.startswith(mixture.PREFIX):
        return _mixture(name)
    if benchmarks.is_benchmark(name):
        return benchmarks.load(name)
    family, _, profile = name.partition(":")
    if family.endswith((".py", ".yaml")) or "/" in family:
        family = str(Path(family).expanduser().resolve())  # the same file from wherever it is named
    return _load(family, profile)


def comes_with_mua(name: str) -> bool:
    """The domain is one of `NAMES`, in whatever profile, a benchmark's, or a mixture of these: loading it
    runs nobody else's code, and no server. Raises MuaError for a mixture that cannot be read."""
    parts = mixture.parse(name) if name.startswith(mixture.PREFIX) else [name]
    known = {own.partition(":")[0] for own in NAMES}
    return all(benchmarks.is_benchmark(part) or part.partition(":")[0] in known for part in parts)


def load_stored(name: str) -> Domain:
    """`load` of a name that stands in a file of trajectories, which cannot name code to be run. Raises
    MuaError for a domain that does not come with mua."""
    if name not in MCP_EXAMPLES and not comes_with_mua(name):
        raise MuaError(
            f"its domain '{name}' does not come with mua, and a stored conversation cannot name code to be "
            "run; name its domain on the command line."
        )
    return load(name)


@functools.cache
def _mixture(name: str) -> Domain:
    return mixture.make(name, load)


@functools.cache
def _load(family: str, profile: str) -> Domain:
    if family in {name.partition(":")[0] for name in NAMES}:
        return importlib.import_module(f"{__name__}.{family}").make(profile or "full")
    if family in MCP_EXAMPLES:
        return _of_server(Path(__file__).parent / "mcp_examples" / f"{family}.yaml", profile)
    if family.endswith(".yaml"):
        return _of_server(Path(family), profile)
    if Path(family).is_absolute() and (Path(family) / "domain.yaml").is_file():
        return _declared(Path(family), profile)
    if Path(family).is_absolute():
        return _made_by(_file(Path(family)), family, profile)
    if all(part.isidentifier() for part in family.split(".")):
        return _made_by(_module(family), family, profile)
    raise _unknown(family)


def _of_server(path: Path, profile: str) -> Domain:
    """The domain of an MCP server (docs/wrap-my-mcp-server.md)."""
    from . import mcp

    if profile:
        raise MuaError(f"the domain {path} has no profiles; leave out ':{profile}'.")
    with _named(str(path)):
        return mcp.make(path, _file)


def _declared(path: Path, profile: str) -> Domain:
    """The domain of a folder that is all data (docs/draft-a-domain.md)."""
    from . import declared

    if profile:
        raise MuaError(f"the domain {path} has no profiles; leave out ':{profile}'.")
    with _named(str(path)):
        return declared.make(path)


def _unknown(name: str) -> MuaError:
    return MuaError(
        f"there is no domain '{name}'; there are {', '.join(NAMES)}. A domain of your own is named by its "
        "file (path/to/file.py; .yaml for an MCP server), by its folder (path/to/package) or by its module "
        "(package.module, installed or on PYTHONPATH)."
    )


def _file(path: Path) -> ModuleType:
    if (path / "__init__.py").is_file():
        path /= "__init__.py"  # a package: its modules import each other by relative names
    if not path.is_file() or path.suffix != ".py":
        raise MuaError(
            f"there is no domain file {path}; name a Python file that has make(profile='full') -> Domain."
        )
    # The whole path, so that two files of one name do not meet in sys.modules.
    unique = f"mua_domain_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(unique, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module  # dataclasses and pydantic look their module up by name
    try:
        with _named(str(path)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    return module


def _module(name: str) -> ModuleType:
    with _named(name):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as exc:
            if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
                raise _unknown(name) from None
            raise


def _made_by(module: ModuleType, name: str, profile: str) -> Domain:
    make = getattr(module, "make", None)
    if not callable(make):
        raise MuaError(
            f"the domain {name} has no function make; give it one that returns the Domain: "
            "def make(profile='full'). docs/train-my-domain.md has a whole example."
        )
    with _named(name):
        domain = make(profile) if profile else make()
        if not isinstance(domain, Domain):
            raise MuaError(f"make() of the domain {name} must return a mua.domain.Domain, not {domain!r:.60}")
        for side in domain.toolkits:  # a method that cannot be a tool shows now, not in an episode
            domain.tools(side)
    return dataclasses.replace(
        domain,
        load_base=_naming(name, domain.load_base),
        load_split=_naming(name, domain.load_split),
    )


def _naming(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose exceptions name the domain: database and tasks are made when they are needed."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        with _named(name):
            return function(*args)

    return call


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Turns what somebody's code raises into a MuaError that names the domain, and the line if there is one.

    The cause stays chained, for whoever calls this from Python.
    """
    try:
        yield
    except MuaError:
        raise
    except Exception as exc:
        what = f"{type(exc).__name__}: {exc}".removesuffix(": ")
        raise MuaError(f"the domain {name} cannot be used: {what}{place_of(exc)}") from exc


def place_of(exc: Exception) -> str:
    """` (file, line)` of the last frame in somebody's own code; a SyntaxError says its own."""
    if isinstance(exc, SyntaxError):
        return ""
    others = (str(Path(__file__).resolve().parents[1]), str(Path(contextlib.__file__).parent), "<")
    for frame in reversed(traceback.extract_tb(exc.__traceback__)):
        if not frame.filename.startswith(others) and "site-packages" not in frame.filename:
            return f" ({frame.filename}, line {frame.lineno})"
    return ""
