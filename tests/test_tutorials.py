"""Every command of the tutorials is run, in the page's order, in a folder with the page's files.

What would take long is made small by settings on top; addresses of model servers become that of a real local
one. The words of a page are otherwise run as they stand, so a page cannot show what does not work.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fake_server import FakeServer, Reply, chat
from mua import cli
from mua.domains.mcp_examples import __path__ as examples
from mua.users import STOP
from test_cli import MICRO
from test_docs import ROOT, blocks, commands

TINY = ["model.tiny.layers=2", "limits.turns=4", "limits.steps=6", "threads=1"]
STEPS = [
    *("model.tiny.vocab_size=600", "coldstart.conversations=40", "sft.steps=4", "user_sft.steps=4"),
    *("train.steps=1", "train.rollout.groups=2", "train.rollout.group_size=2", "train.max_step_tokens=12"),
    *("max_step_tokens=12", "train_user.max_tokens=8", "train_user.temperature=3.0", "eval.tasks=2"),
    *("train.rollout.refill_rounds=0", "eval.temperatures=[1.0]"),
]
RUN = "runs/quickstart-seed0"
"""What pages take for granted: the reader has made the quickstart."""

SMALLER: Mapping[str, Sequence[str]] = {
    "quickstart": [*TINY, *STEPS],
    "coldstart": [*TINY, *STEPS],
    "sft": [],
    "train": [],
    "ablate": [*TINY, *STEPS],
}
"""Settings on top, by command; a stage goes on with those of its run."""


def speaks(body: dict[str, Any]) -> Reply:
    """A model that is polite and brief, on both sides: as the user it leaves."""
    if body.get("tools"):
        return chat("I can do nothing for you here. Goodbye.")
    return chat(f"Never mind. {STOP}")


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer(speaks) as server:
        yield server


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quickstart of seconds."""
    out = tmp_path_factory.mktemp("quickstart") / "run"
    command = [sys.executable, "-m", "mua", "quickstart", "--out", str(out), *MICRO]
    subprocess.run(command, check=True, capture_output=True)
    return out


def smaller(words: list[str], url: str) -> list[str]:
    """The command as it is run here."""
    words = [re.sub(r"https?://(localhost:\d+|api\.\S*?example\.com)/v1|^URL$", url, w) for w in words]
    words += SMALLER.get(words[0], [])
    if words[0] == "score" and not Path(words[2]).exists():  # its name says that fewer tasks were played
        (words[2],) = map(str, Path(words[2]).parent.glob("*x4*.jsonl"))
    if words[0] == "eval" and any(w.startswith("endpoint:") for w in words):
        words += ["--tasks", "1"]
    return words


def run(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> str:
    """The command in this process; what it printed."""
    monkeypatch.setattr("sys.argv", ["mua", *words])
    # A person who says a line, and leaves.
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello.\n"))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    # `play` at the end of its input has been left by its person.
    assert ended.value.code in ((0, None, 130) if words[0] == "play" else (0, None)), (words, out, err)
    return out


def serve(words: list[str]) -> None:
    """`mua serve` and `mua view` until they have said where."""
    at = words.index("--port") + 1 if "--port" in words else len(words) + 1
    words = [*words[: at - 1], "--port", "0", *words[at + 1 :]]
    process = subprocess.Popen([sys.executable, "-m", "mua", *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert "http://127.0.0.1:" in process.stdout.readline(), words
    finally:
        process.terminate()
        process.communicate()


PAGES = ["train-my-domain.md", "wrap-my-mcp-server.md", "evaluate-an-endpoint.md", "read-a-report.md"]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_runs(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    server: FakeServer,
    quickstart: Path,
):
    if page == "wrap-my-mcp-server.md":
        pytest.importorskip("mcp")
    path = ROOT / "docs" / page
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", "a-key-of-mine")
    monkeypatch.setenv("OPENAI_API_KEY", "another-key")
    (tmp_path / "runs").mkdir()
    (tmp_path / RUN).symlink_to(quickstart)
    lay_out(path, tmp_path, server.url)
    for words in commands(path):
        here = smaller(words, server.url)
        if "office" in " ".join(here) and not os.environ.get("MUA_NODE"):
            continue  # needs Node.js and a download; test_mcp.py plays it where they are there
        if here[0] in ("serve", "view"):
            serve(here)
        else:
            run(here, monkeypatch, capsys)
    assert not any("a-key-of-mine" in p.read_text(errors="replace") for p in tmp_path.rglob("*.json*"))


def lay_out(page: Path, folder: Path, url: str) -> None:
    """The files of a page: those that it names, and its configuration by the name its commands use."""
    text = page.read_text(encoding="utf-8")
    for name, content in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", text, re.M | re.S):
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "src/mua/domains").mkdir(parents=True, exist_ok=True)
    (folder / "src/mua/domains/mcp_examples").symlink_to(examples[0])
    if page.name == "train-my-domain.md":
        (python,), (yaml,) = blocks(page, "python"), blocks(page, "yaml")
        (folder / "gym.py").write_text(python, encoding="utf-8")
        (folder / "gym.yaml").write_text(yaml, encoding="utf-8")
    if page.name == "evaluate-an-endpoint.md":
        (yaml,) = blocks(page, "yaml")
        hosted = re.sub(r"https://api\.\S+/v1", url, yaml)
        (folder / "eval-hosted.yaml").write_text(hosted, encoding="utf-8")
