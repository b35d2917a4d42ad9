"""Times of a day as the tables write them ("09:30"), and as numbers to compute with."""

from __future__ import annotations


def minutes(clock_time: str) -> int:
    """Minutes since midnight of "09:30"."""
    hours, rest = clock_time.split(":")
    return 60 * int(hours) + int(rest)


def clock(since_midnight: int) -> str:
    """The other way round."""
    return f"{since_midnight // 60:02}:{since_midnight % 60:02}"
