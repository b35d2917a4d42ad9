"""A package for verifiers that binds one domain: what `mua env verifiers` writes.

Invariant: the package holds names only. Episode, user and reward are those of the mua that it depends on.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from .. import __version__
from ..benchmarks import is_benchmark
from ..domains.mixture import PREFIX
from ..errors import MuaError
from .stepwise import setting


def write(domain: str, out: Path, split: str = "train", user: str = "agenda") -> tuple[str, Path]:
    """(id, folder) of the package for `domain`, written to a new folder below `out`.

    Raises MuaError when the domain cannot be trained on as it is named, or the folder is there already.
    """
    for part in domain.removeprefix(PREFIX).split(","):
        named = part.partition("=")[0]
        place = named.partition(":")[0]
        if place.endswith((".py", ".yaml")) or ("/" in place and not is_benchmark(named)):
            raise MuaError(
                f"{place} is a place on this machine, which a package must not depend on; install the domain "
                "as a module of its own and name that: --domain package.module."
            )
    setting(domain, split, user)  # unknown names and held-out tasks show now, not in somebody's run
    package = "mua_" + re.sub(r"[^a-z0-9]+", "_", domain.lower()).strip("_")
    folder = out / package
    if folder.exists():
        raise MuaError(f"{folder} is there already; remove it, or name another --out.")
    files = {
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
        f"{package}/__init__.py": _MODULE,
    }
    values = {
        "PACKAGE": package,
        "DASHED": package.replace("_", "-"),
        "DOMAIN": domain,
        "@DOMAIN": json.dumps(domain),
        "@SPLIT": json.dumps(split),
        "@USER": json.dumps(user),
        "VERSION": __version__,
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        filled = re.sub("@?[A-Z]{4,}", lambda hit: values.get(hit[0], hit[0]), text)
        path.write_text(filled, encoding="utf-8")
    return package, folder


_PYPROJECT = """\
[project]
name = "DASHED"
version = "VERSION"
description = "Conversations with a simulated user over the tools of mua's domain DOMAIN"
requires-python = ">=3.11"
dependencies = ["mua[verifiers]>=VERSION"]

[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[tool.setuptools]
packages = ["PACKAGE"]
"""

_README = """\
# PACKAGE

Episodes of mua's domain `DOMAIN` for verifiers: an agent, tools over a database, a simulated user, and a
reward by the final database. Made by `mua env verifiers`.

    pip install .
    vf-eval PACKAGE -n 5 -r 4 --model MODEL --client.base-url http://127.0.0.1:8000/v1

Settings are `--env.taskset.domain`, `split`, `user`, `base-url`, `api-key-env`, `limits`, `seed` and
`evaluate`. The held-out split is refused unless `--env.taskset.evaluate` is set.
"""

_MODULE = '''\
"""DOMAIN of mua as an environment of verifiers."""

import verifiers.v1 as vf

from mua.exports import verifiers as mua_verifiers
from mua.exports.verifiers import Conversation, Play

__all__ = ["Conversation", "Play", "Tasks", "load_environment"]


class TasksConfig(mua_verifiers.EpisodesConfig):
    """What this package plays unless told otherwise."""

    domain: str = @DOMAIN
    split: str = @SPLIT
    user: str = @USER


class Tasks(mua_verifiers.Episodes, vf.Taskset[mua_verifiers.EpisodeTask, TasksConfig]):
    """The tasks of DOMAIN."""


def load_environment(**taskset) -> Conversation:
    """The environment in this process, with fields of `TasksConfig` by keyword."""
    return mua_verifiers.environment("PACKAGE", **taskset)
'''
