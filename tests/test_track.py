"""Figures in TensorBoard, W&B and Trackio, by the real libraries, read back from what they wrote."""

import contextlib
import importlib.util
import json
import logging
import re
import struct
import subprocess
import sys

import pytest

from mua.runfolder import RunFolder
from mua.train import track
from mua.train.track import Trackers


def needs(name):
    found = importlib.util.find_spec(name) is not None
    return pytest.mark.skipif(not found, reason=f"{name} is not installed (pip install 'mua[{name}]')")


def line(step):
    return {
        "step": step,
        "reward": step / 10,
        "loss": None,
        "kl": float("nan"),
        "tool_calls": {"renew": step + 0.5},
        "problems": ["loss"] if step == 2 else [],
    }


EXPECTED = {"reward", "tool_calls/renew", "problems"}
SECRET = "hunter2-hunter2"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    return tmp_path / "run"


@contextlib.contextmanager
def tracked(folder, *names):
    config = {"train": {"lr": 0.1}, "endpoint": {"api_key": SECRET, "note": f"key {SECRET}"}}
    with RunFolder(folder, config) as run:
        trackers = Trackers(names, run, "project")
        try:
            yield trackers
        finally:
            trackers.close()


def in_two_parts(folder, name):
    """Steps 1 to 3, and after a resume from step 1 steps 2 to 4."""
    with tracked(folder, name) as trackers:
        for step in (1, 2, 3):
            trackers.log(line(step))
    with tracked(folder, name) as trackers:
        for step in (2, 3, 4):
            trackers.log(line(step))
        assert trackers._logs  # it did not fail
    for path in folder.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


@needs("tensorboard")
def test_tensorboard_has_every_step_once_over_a_resume(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    in_two_parts(folder, "tensorboard")
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == EXPECTED
    rewards = [(e.step, round(e.value, 6)) for e in events.Scalars("reward")]
    assert rewards == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert [e.value for e in events.Scalars("problems")] == [0, 1, 0, 0]
    (told,) = events.Tensors("config/text_summary")
    assert b"lr: 0.1" in told.tensor_proto.string_val[0] and b"[redacted]" in told.tensor_proto.string_val[0]


@needs("wandb")
def test_wandb_has_every_step_once_over_a_resume(folder):
    from wandb.proto.wandb_internal_pb2 import Record

    in_two_parts(folder, "wandb")
    steps, ids = [], set()
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in leveldb_log(path.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            if record.WhichOneof("record_type") == "history":
                items = {
                    i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item
                }
                assert {k for k in items if not k.startswith("_")} == EXPECTED
                steps.append((items["_step"], items["reward"]))
    assert steps == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert ids == {json.loads((folder / "track.json").read_text())["id"]}


def leveldb_log(data):
    """The records of a file in LevelDB's log format (doc/log_format.md there), after W&B's header."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block is filled up
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


@needs("trackio")
def test_trackio_has_every_step_once_over_a_resume(folder):
    # The library reads where to write when it is imported, so it is imported anew for that.
    program = """
import sys
from pathlib import Path
import test_track
folder = Path(sys.argv[1])
test_track.in_two_parts(folder, "trackio")
from trackio.sqlite_storage import SQLiteStorage
(run,) = SQLiteStorage.get_runs("project")
for entry in SQLiteStorage.get_logs("project", run):
    print(entry["step"], entry["reward"], *sorted(set(entry) - {"step", "timestamp"}), sep="|")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False,
        cwd=__file__.rsplit("/", 1)[0],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = "|".join(sorted(EXPECTED))
    found = re.findall(r"^\d+\|.*$", done.stdout, re.MULTILINE)
    assert found == [f"{n}|{n / 10}|{names}" for n in (1, 2, 3, 4)]


def test_a_tracker_that_fails_is_one_warning(folder, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    calls = []

    @contextlib.contextmanager
    def breaking(*_):
        def send(step, numbers):
            calls.append(step)
            if step == 2:
                raise ConnectionError("no route to host")

        yield send

    @contextlib.contextmanager
    def closed(*_):
        raise PermissionError("not for you")
        yield

    monkeypatch.setitem(track.OPEN, "wandb", breaking)
    monkeypatch.setitem(track.OPEN, "trackio", closed)
    with tracked(folder, "wandb", "trackio") as trackers:
        for step in (1, 2, 3):
            trackers.log(line(step))
    assert calls == [1, 2]
    assert [r.getMessage() for r in caplog.records] == [
        "tracking by trackio has failed and ends here (PermissionError: not for you)",
        "tracking by wandb has failed and ends here (ConnectionError: no route to host)",
    ]


def test_a_damaged_note_of_what_was_sent_ends_no_run(folder):
    with tracked(folder) as trackers:
        trackers.log(line(1))
    (folder / "track.json").write_text("{")
    with tracked(folder) as trackers:
        trackers.log(line(2))
