"""Runs the steps of an agent on the worlds of one entry.

Invariant: the state after a step, and what the agent hears of it, are upstream's (or, strict, upstream's
without its faults); they depend on the texts of the steps alone.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .codec import AceCall, Undecodable, decode, has_brackets
from .data import Entry, Start
from .phone import BaseApi
from .words import Words
from .worlds import CLASSES

FAILED = "Error during execution: {str(e)}"
"""What upstream says of any failure in multi_turn: it means to fill in the error, and does not."""
_NO_RESULT = "cannot access local variable 'func_call_result' where it is not associated with a value"


@dataclass(frozen=True)
class CallResult:
    """What one call of a step gave."""

    value: Any
    """A JSON value: the answer as it was parsed again, or a text."""
    error: bool = False


@dataclass(frozen=True)
class StepResult:
    """What a step gave."""

    results: tuple[CallResult, ...]
    """One a call, in order, the calls that were not run included; none where the step called nothing."""
    heard: Any
    """What the agent is told: a list, one item a call (or a character, see `FAILED`); or the nudge."""
    decoded: bool = True


class Apis:
    """The worlds of one episode."""

    def __init__(self, entry: Entry, start: Start, words: Words, strict: bool = False):
        self.entry = entry
        self.strict = strict
        self.words = words
        self._worlds: list[BaseApi] = [
            CLASSES[name](entry.language, words.texts, entry.config, start.rows) for name in entry.classes
        ]
        self._functions: dict[str, list[BaseApi]] = {}
        for world in self._worlds:
            for name in type(world)._functions(entry.language):
                self._functions.setdefault(name, []).append(world)
        self._ran = False
        """A step was run to its end; else upstream keeps no states at all."""
        self.steps: list[str] = []
        """The texts of the steps that reached the worlds, which process accuracy looks at."""

    @property
    def states(self) -> list[dict[str, Any]]:
        """The final states as upstream's result file holds them, or none where nothing was run.

        Raises ValueError where upstream could not write that file (bytes as an argument that was kept).
        """
        if not self._ran:
            return []
        whole = [{type(world).__name__: world._state()} for world in self._worlds]
        try:
            return json.loads(json.dumps(whole))
        except TypeError as exc:
            raise ValueError(f"the final states cannot be written as JSON: {exc}") from None

    def is_step(self, text: str) -> bool:
        """Whether a text of the agent reaches the worlds; in multi_turn, what is no call goes to the user."""
        if self.entry.mode == "multi_step":
            return True
        return has_brackets(text) and calls_in(text) is not None

    def run(self, text: str) -> StepResult:
        """Runs the calls of a step."""
        self.steps.append(text)
        calls = calls_in(text)
        if calls is None:
            return StepResult((), self.words.prompts["nudge"], decoded=False)
        turn = self.entry.mode == "multi_turn"
        results: list[CallResult] = []
        last: list[Any] = []
        for call in calls:
            if turn and results and results[-1].error:
                results.append(CallResult("not run: a call before it failed", error=True))
            else:
                results.append(self._call(call, last))
        failed = any(r.error for r in results)
        self._ran = self._ran or not (turn and failed)
        return StepResult(tuple(results), heard(results, turn, self.strict))

    def _call(self, call: AceCall, last: list[Any]) -> CallResult:
        """Runs one call on every world that has the function. `last` keeps the value of the call before."""
        target = call.target(self._functions.__contains__)
        try:
            if target is None and self.strict:
                raise NameError(f"there is no function '{call.name}'")
            if target is None and not last:
                raise UnboundLocalError(_NO_RESULT)
            if target == "":
                raise NameError(call.error or f"there is no function '{call.name}'")
            if target is not None:
                for world in self._functions[target]:
                    last[:] = [getattr(world, target)(**call.arguments)]
            return CallResult(_parsed(last[0]))
        except Exception as exc:  # whatever a world raises, the agent hears of
            return CallResult(f"Error during execution: {exc}", error=True)


@functools.lru_cache(maxsize=512)  # a step is read when it is written, and again when it is run
def calls_in(text: str) -> tuple[AceCall, ...] | None:
    """The calls of a text; None when it cannot be decoded."""
    try:
        return tuple(decode(text))
    except Undecodable:
        return None


def heard(results: Sequence[CallResult], turn: bool, strict: bool) -> list[Any]:
    """What the agent is told of a step's results."""
    failed = next((i for i, r in enumerate(results) if r.error), None)
    if not turn or failed is None:
        return [r.value for r in results]
    if strict:
        return [r.value for r in results[: failed + 1]]
    return list(FAILED)  # character by character


def _parsed(value: Any) -> Any:
    """A function's value after upstream has written it out and read it again."""
    if isinstance(value, Mapping):
        try:
            text = json.dumps(value)
        except (TypeError, ValueError):
            return str(value)
    else:
        text = value if isinstance(value, str) else str(value)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
