"""A benchmark's functions in mua's own process: what they cannot reach, and how long they may take."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import threading
import time
import weakref
from types import SimpleNamespace

import pytest

from mua.benchmarks import confined
from mua.benchmarks.confined import confine, limited
from mua.chat import ToolCall
from mua.domains import load
from mua.errors import MuaError

HOSTILE = """
import ctypes, os, pathlib, shutil, socket, subprocess, tempfile

def read(place): return pathlib.Path(place).read_text()
def write(place): open(place, "w")
def append(place): open(place, "ab")
def low(place): os.open(place, os.O_RDWR)
def path(place): pathlib.Path(place).write_text("x")
def remove(place): os.remove(place)
def rename(place): os.rename(place, place + "2")
def chmod(place): os.chmod(place, 0o777)
def folder(place): os.mkdir(place + "3")
def temporary(place): tempfile.mkdtemp()
def tree(place): shutil.rmtree(place)
def connect(place): socket.create_connection(("127.0.0.1", 9))
def listen(place): socket.socket().bind(("127.0.0.1", 0))
def look_up(place): socket.getaddrinfo("localhost", 80)
def program(place): subprocess.run(["true"])
def shell(place): os.system("true")
def become(place): os.execv("/bin/true", ["true"])
def fork(place): os.fork()
def signal(place): os.kill(os.getpid(), 9)
def library(place): ctypes.CDLL(None)
def evaluated(place): eval("open(place, 'w')", {"place": place})
def called_back(place, call): call()
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> SimpleNamespace:
    place = tmp_path_factory.mktemp("upstream")
    confine(place)
    found: dict = {}
    exec(compile(HOSTILE, str(place / "tools.py"), "exec"), found)
    return SimpleNamespace(**found)


REACHING = [
    line.split("(")[0].removeprefix("def ") for line in HOSTILE.splitlines() if line.startswith("def ")
]
REACHING = [name for name in REACHING if name not in ("read", "called_back")]


@pytest.mark.parametrize("name", REACHING)
def test_confined_code_reaches_nothing_and_other_code_everything(hostile, tmp_path, name):
    place = tmp_path / "file"
    place.write_text("kept")
    with pytest.raises(PermissionError, match=r"not allowed here|cannot be written here"):
        getattr(hostile, name)(str(place))
    assert hostile.read(str(place)) == "kept" and [p.name for p in tmp_path.iterdir()] == ["file"]
    place.write_text("written")  # whoever is not confined


def test_what_runs_by_chance_within_confined_code_is_not_confined(hostile, tmp_path):
    """A finalizer, which the collector may run anywhere."""
    place = tmp_path / "folder"
    place.mkdir()
    one = type("Owner", (), {})()
    weakref.finalize(one, shutil.rmtree, str(place))
    kept = [one]
    del one
    hostile.called_back("", kept.clear)
    assert not place.exists()


def forever() -> None:
    while True:
        try:
            while True:
                pass
        except Exception:
            pass


def test_a_call_that_does_not_end_is_ended_and_nothing_after_it():
    for _ in range(2):
        with pytest.raises(TimeoutError, match=r"more than 0\.1 s of CPU time"):
            limited(forever, 0.1)
        until = time.thread_time() + 0.8
        while time.thread_time() < until:
            assert limited(lambda: 3, 5) == 3
    with pytest.raises(ZeroDivisionError):
        limited(lambda: 1 // 0)
    assert limited(lambda: limited(lambda: 4, 0.0)) == 4  # the outer limit holds
    # Waiting is not working.
    assert limited(functools.partial(time.sleep, 1.2), 0.1) is None
    assert not confined._watch.running


def test_each_thread_has_a_limit_of_its_own():
    ends: dict[int, str] = {}

    def work(n: int) -> None:
        try:
            ends[n] = limited(forever if n % 2 else lambda: "done", 0.1)
        except TimeoutError:
            ends[n] = "ended"

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert ends == {0: "done", 1: "ended", 2: "done", 3: "ended"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_has_its_own_watch():
    limited(lambda: 1)
    code = (
        "import os, sys\nfrom test_confined import forever, limited\nlimited(lambda: 1)\n"
        "if os.fork() == 0:\n"
        "    try:\n        limited(forever, 0.1)\n"
        "    except TimeoutError:\n        os._exit(7)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    here = os.path.dirname(__file__)
    done = subprocess.run([os.sys.executable, "-c", code], cwd=here, check=False, timeout=120)
    assert done.returncode == 7


def test_a_tool_of_tau2_is_bounded(monkeypatch, tmp_path):
    try:
        domain = load("tau2/retail")
    except MuaError as exc:
        pytest.skip(f"τ²-bench is not here: {exc}")
    task = domain.tasks(domain.splits[0])[0]
    kit = type(domain.open(task)._kits["agent"])
    monkeypatch.setattr("mua.benchmarks.tau2.world.limited", functools.partial(limited, seconds=0.1))
    monkeypatch.setattr(kit, "list_all_product_types", lambda self: forever())
    world = domain.open(task)
    answer = world.call("assistant", ToolCall("list_all_product_types", {}))
    assert answer.error and answer.content == "Error: the call took more than 0.1 s of CPU time"
    # Names of ours among the arguments mean nothing.
    for name in ("seconds", "function", "self", "func"):
        answer = world.call("assistant", ToolCall("get_user_details", {"user_id": "x", name: 1e9}))
        assert answer.error and "get_user_details() got" in answer.content
    # What it does, it does as upstream's own code.
    where = str(domain.upstream.root / "patch.py")
    found: dict = {}
    exec(compile(f"def leak(self): open({str(tmp_path / 'x')!r}, 'w')", where, "exec"), found)
    monkeypatch.setattr(kit, "list_all_product_types", found["leak"])
    answer = world.call("assistant", ToolCall("list_all_product_types", {}))
    assert answer.content == "Error: files cannot be written here" and not (tmp_path / "x").exists()
