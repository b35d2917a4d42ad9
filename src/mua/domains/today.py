"""The day on which the desks of made-up domains are open."""

from __future__ import annotations

import datetime

TODAY = datetime.date(2026, 3, 2)


def in_days(days: int) -> str:
    """A date by its distance from today."""
    return (TODAY + datetime.timedelta(days=days)).isoformat()
