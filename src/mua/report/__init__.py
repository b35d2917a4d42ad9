"""A run → one HTML file that needs nothing else.

Invariants:
- The page never asks the network for anything, and nothing that a run recorded can run as script.
- Same run folder, same bytes.
"""

from .build import build_report

__all__ = ["build_report"]
