"""Installing benchmarks: what is fetched is what is pinned, and whatever goes wrong leaves nothing behind."""

import hashlib
import io
import multiprocessing
import tarfile
import zipfile

import pytest

from mua.benchmarks import store
from mua.errors import MuaError

FILES = {"toy/__init__.py": b"X = 1\n", "toy/data/tasks.json": b"[]"}


def wheel(folder, files=FILES, links=()):
    """A wheel of the package toy 1.0, and its SHA-256."""
    path = folder / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for name in links:
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "/etc/passwd")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MUA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setattr(store, "SOURCES", {})
    return folder


def source(digest, **more):
    return store.Source(version="1", parts=(store.Wheel("toy", "1.0", digest),), **more)


def left(cache):
    return sorted(p.name for p in (cache / "benchmarks" / "toy").glob("*") if p.name != ".lock")


def test_a_wheel_is_unpacked_once_and_found_again(cache, wheels):
    store.SOURCES["toy"] = source(wheel(wheels))
    with pytest.raises(MuaError, match="mua benchmarks install toy"):
        store.installed("toy")
    found = store.install("toy", wheels)
    assert {p.relative_to(found.path).as_posix() for p in found.path.rglob("*") if p.is_file()} == set(FILES)
    assert (found.version, found.data_hash) == ("1", store.tree_hash(found.path))
    assert store.install("toy") == store.installed("toy") == found  # nothing is fetched again


def test_a_wrong_hash_leaves_nothing_behind(cache, wheels):
    wheel(wheels)
    store.SOURCES["toy"] = source("0" * 64)
    with pytest.raises(MuaError, match="SHA-256"):
        store.install("toy", wheels)
    assert left(cache) == [] and not list((cache / "benchmarks" / "toy").glob(".part-*"))
    with pytest.raises(MuaError, match="not installed"):
        store.installed("toy")


def test_a_failed_install_keeps_the_one_before(cache, wheels):
    store.SOURCES["toy"] = source(wheel(wheels))
    before = store.install("toy", wheels)
    wheel(wheels, {"toy/__init__.py": b"X = 2\n"})
    with pytest.raises(MuaError, match="SHA-256"):
        store.install("toy", wheels)
    assert store.installed("toy") == before


@pytest.mark.parametrize("name", ["../out.py", "/out.py", "toy/../../out.py", "C:/out.py", "..\\out.py"])
def test_nothing_is_unpacked_outside(cache, wheels, name):
    store.SOURCES["toy"] = source(wheel(wheels, {**FILES, name: b"!"}))
    with pytest.raises(MuaError, match="outside"):
        store.install("toy", wheels)
    assert left(cache) == [] and not list(cache.rglob("out.py"))


def test_links_are_refused(cache, wheels, tmp_path):
    store.SOURCES["toy"] = source(wheel(wheels, links=["toy/passwd"]))
    with pytest.raises(MuaError, match="link"):
        store.install("toy", wheels)
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("top/x")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    digest = hashlib.sha256(b"").hexdigest()
    store.SOURCES["toy"] = store.Source("1", (store.Archive(path.as_uri(), digest),))
    with pytest.raises(MuaError, match="no plain file"):
        store.install("toy")


def test_an_archive_is_checked_by_its_content_and_loses_its_top_folder(cache, wheels, tmp_path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in FILES.items():
            info = tarfile.TarInfo(f"repository-abc/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    for name, content in FILES.items():
        target = tmp_path / "same" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    good = store.tree_hash(tmp_path / "same")
    store.SOURCES["toy"] = store.Source("1", (store.Archive(path.as_uri(), "0" * 64),))
    with pytest.raises(MuaError, match="other content"):
        store.install("toy")
    assert left(cache) == []
    store.SOURCES["toy"] = store.Source("1", (store.Archive(path.as_uri(), good),))
    assert store.install("toy").data_hash == good


def test_a_folder_must_be_the_benchmark(cache, wheels, tmp_path):
    folder = tmp_path / "mine"
    (folder / "toy").mkdir(parents=True)
    (folder / "toy" / "a.json").write_text("1")
    (folder / "big.bin").write_text("not wanted")
    (folder / "toy" / "secret").symlink_to("/etc/passwd")
    store.SOURCES["toy"] = store.Source("1", needs=("toy/b.json|toy/a.json",), takes=("toy/*",))
    found = store.install("toy", folder)
    assert [p.name for p in found.path.rglob("*") if p.is_file()] == ["a.json"]
    assert found.version == "1 from mine"
    with pytest.raises(MuaError, match=r"no toy/b\.json or toy/a\.json"):
        store.install("toy", wheels)
    with pytest.raises(MuaError, match="--from DIR"):
        store.SOURCES["toy"] = store.Source("2")
        store.install("toy")


def _install(folder, digest, barrier, results):
    store.SOURCES["toy"] = source(digest)
    barrier.wait()
    results.put(store.install("toy", folder).data_hash)


def test_two_processes_at_once(cache, wheels):
    digest = wheel(wheels, {f"toy/{i}.txt": bytes(5000) for i in range(50)})
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    running = [context.Process(target=_install, args=(wheels, digest, barrier, results)) for _ in range(2)]
    for process in running:
        process.start()
    assert results.get(timeout=60) == results.get(timeout=60)
    for process in running:
        process.join()
    assert len(left(cache)) == 2  # the folder and the pointer to it


def test_an_unknown_benchmark_is_named_with_the_known_ones():
    with pytest.raises(MuaError, match="there is no benchmark 'tau3'; there are tau2"):
        store.installed("tau3")
