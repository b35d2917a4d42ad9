"""Domains from somebody's own file or module: they work like ours, and what is wrong in them is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mua.domains import load
from mua.errors import MuaError

GOOD = """
import dataclasses
from mua.database import Base
from mua.domain import Action, Domain, Scenario, Task
from mua.tools import writes

@dataclasses.dataclass
class Settings:  # looks its module up in sys.modules
    size: "int"

class Kit:
    def __init__(self, db):
        self.db = db

    @writes
    def tick(self, box: str) -> str:
        \"\"\"Tick a box.

        Args:
            box: Which one.
        \"\"\"
        self.db.put("boxes", box, {"ticked": True})
        return "ticked"

def make(profile="full"):
    size = Settings({"full": 3, "small": 1}[profile]).size
    return Domain(
        name=f"boxes-{profile}",
        policy="Tick what you are told.",
        load_base=lambda: Base({"boxes": {}}),
        load_split=lambda split: [
            Task(f"t{n}", "tick", Scenario(f"Box {n}"), (Action("tick", {"box": str(n)}),))
            for n in range(size)
        ],
        splits=("test",),
        toolkits={"assistant": Kit},
    )
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_file_and_a_module_are_domains(place):
    (place / "boxes.py").write_text(GOOD)
    (place / "pack").mkdir()
    (place / "pack" / "__init__.py").write_text("")
    (place / "pack" / "boxes_again.py").write_text(GOOD)
    for name, size in (
        ("./boxes.py", 3),
        ("boxes.py:small", 1),
        (str(place / "boxes.py"), 3),
        ("pack.boxes_again", 3),
        ("pack.boxes_again:small", 1),
    ):
        domain = load(name)
        tasks = domain.tasks("test")
        assert len(tasks) == size and not domain.is_noop(tasks[0])
        assert load(name) is domain


def test_two_files_of_one_name_are_two_domains(place):
    for folder, text in (("a", GOOD), ("b", GOOD.replace("boxes-", "crates-"))):
        (place / folder).mkdir()
        (place / folder / "boxes.py").write_text(text)
    assert (load("a/boxes.py").name, load("b/boxes.py").name) == ("boxes-full", "crates-full")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("librery", "there is no domain 'librery'; there are library, library:desk"),
        ("nowhere.at_all", "there is no domain 'nowhere.at_all'"),
        ("a b", "there is no domain 'a b'"),
        ("./missing.py", "/missing.py; name a Python file"),
        ("./missing", "/missing; name a Python file"),
        (".", "there is no domain '.'"),
        ("json", "the domain json has no function make"),
    ],
)
def test_what_is_not_there_is_said(place, name, words):
    with pytest.raises(MuaError) as caught:
        load(name)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("def make", "def build"), "has no function make"),
        (("def make(", "def make(("), "SyntaxError"),
        (("import dataclasses", "import dataclasses, no_such_module"), "No module named 'no_such_module'"),
        (("def make(profile", "raise OSError('no data')\ndef make(profile"), "OSError: no data"),
        (("    return Domain(", "    return dict("), "must return a mua.domain.Domain, not {'name':"),
        (("box: str", "box"), "parameter 'box' has no annotation"),
    ],
)
def test_what_is_wrong_in_the_code_is_named(place, change, words):
    (place / "boxes.py").write_text(GOOD.replace(*change))
    with pytest.raises(MuaError, match=r"boxes\.py") as caught:
        load("./boxes.py")
    assert words in str(caught.value)
    (place / "boxes.py").write_text(GOOD)  # mended: nothing of the failure is kept
    assert load("./boxes.py").name == "boxes-full"


def test_a_module_that_imports_what_is_missing_is_not_taken_for_an_unknown_name(place):
    (place / "needy_boxes.py").write_text("import no_such_module\n")
    with pytest.raises(MuaError, match=r"the domain needy_boxes cannot be used: .*no_such_module"):
        load("needy_boxes")


def test_what_fails_later_is_named_with_its_line(place):
    text = GOOD.replace("load_split=lambda split: [", "load_split=lambda split: [][1] + [")
    text = text.replace('Base({"boxes": {}})', 'Base({"boxes": 1 / 0})')
    (place / "boxes.py").write_text(text)
    line = next(n for n, t in enumerate(text.splitlines(), 1) if "[][1]" in t)
    domain = load("boxes.py")
    with pytest.raises(MuaError, match=rf"boxes\.py cannot be used: IndexError: .*boxes\.py, line {line}\)"):
        domain.tasks("test")
    with pytest.raises(MuaError, match="ZeroDivisionError"):
        _ = domain.base


def test_a_profile_that_make_does_not_know_is_an_error_of_the_domain(place):
    (place / "boxes.py").write_text(GOOD)
    with pytest.raises(MuaError, match=r"boxes\.py cannot be used: KeyError: 'large'"):
        load("boxes.py:large")


def test_the_command_line_takes_a_file_and_says_what_is_wrong_in_one_paragraph(place):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mua", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    (place / "boxes.py").write_text(GOOD)
    shown = run("tasks", "./boxes.py:small", "--verify")
    assert shown.returncode == 0 and "1 tasks, 0 problems" in shown.stdout
    (place / "boxes.py").write_text(GOOD.replace("range(size)", "range(sice)"))
    wrong = run("tasks", "./boxes.py")
    assert wrong.returncode == 1 and wrong.stdout == ""
    assert wrong.stderr.startswith(f"error: the domain {place / 'boxes.py'} cannot be used: NameError")
    assert wrong.stderr.count("\n") == 1 and "line" in wrong.stderr
