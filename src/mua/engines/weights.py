"""Notices that a model's weights were changed, so that no cache outlives them."""

from __future__ import annotations

from typing import Any


def fingerprint(model: Any) -> tuple[int, int]:
    """Changes whenever a parameter is written in place (PyTorch counts writes) or replaced.

    Writes through `.data` or from another process are not seen: call `clear_cache()` after those.
    """
    version = identity = 0
    for parameter in model.parameters():
        identity ^= id(parameter)
        version += 0 if parameter.is_inference() else parameter._version
    return version, identity
