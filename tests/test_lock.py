"""The lock file holds the default install: every dependency, in a version that it allows, with hashes."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def test_the_lock_is_of_this_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    locked: dict[str, tuple[str, int]] = {}
    for entry in re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text(encoding="utf-8")):
        name, version = re.match(r"([\w.-]+)==([^\s;\\]+)", entry).groups()
        locked[canonicalize_name(name)] = version, entry.count("--hash=sha256:")
    assert all(hashes for _, hashes in locked.values())
    for text in project["dependencies"]:
        wanted = Requirement(text)
        version, _ = locked[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version), f"{wanted} is locked at {version}: make lock"
