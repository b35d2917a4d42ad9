"""The domains that come with mua, by name."""

from __future__ import annotations

import functools

from ..domain import Domain
from ..errors import MuaError

NAMES = ("library", "library:desk")


@functools.cache
def load(name: str) -> Domain:
    """A domain by name, or by `name:profile`. Raises MuaError for an unknown one."""
    family, _, profile = name.partition(":")
    if family == "library":
        from . import library

        return library.make(profile or "full")
    raise MuaError(f"there is no domain '{name}'; there are {', '.join(NAMES)}")
