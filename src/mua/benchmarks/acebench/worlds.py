"""The five worlds of ACEBench Agent, as upstream's behave, faults of their bookkeeping included.

An API object is what an agent's calls reach: each of its public methods is a function of the benchmark,
called with keyword arguments of any literal type. What a method raises is an error that the agent hears of;
what it had changed by then stays changed, as upstream's does.

Invariant: an object shares nothing with another one, and `_state()` shows exactly the attributes that
upstream grades.
"""

from __future__ import annotations

from .phone import BaseApi, FoodPlatform, MessageApi, ReminderApi
from .travel import Travel

CLASSES: dict[str, type[BaseApi]] = {
    c.__name__: c for c in (BaseApi, MessageApi, ReminderApi, FoodPlatform, Travel)
}
"""The worlds by the names that the data use."""
