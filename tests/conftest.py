"""Threads are capped before anything imports torch: two busy threads on two cores are slower than one."""

import io
import os
import sys

import pytest

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def mua(monkeypatch, capsys):
    """Runs a command in this process: (exit code, standard output, standard error)."""
    from mua import cli

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mua", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        try:
            cli.main()
        except SystemExit as exc:
            return int(exc.code or 0), *capsys.readouterr()
        raise AssertionError("a command ends by SystemExit")

    return run
