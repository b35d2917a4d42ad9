"""What a stored conversation does not say of itself: which rules it broke, and what its calls changed.

Invariants:
- Both follow from the trajectory and its domain alone: the audit is that of `mua audit`, a change is what a
  fresh world shows when the calls are replayed as `Domain.replay` does.
- A domain is loaded only where it comes with mua, or where the run's own configuration names it: a trajectory
  cannot name code to be run. No server of an MCP domain is started.
- What cannot be replayed is counted with its reason; it never stops a page.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..audit import LAYERS, Audit, audit
from ..audit.events import replayed
from ..database import canonical_text, same
from ..domain import Domain, Task
from ..domains import comes_with_mua, load
from ..errors import InfrastructureError, MuaError
from ..trajectory import Trajectory

SECONDS = 20.0
"""Of computing, that audits and replays may take while a report is built: a busy machine changes nothing."""
MAX_VALUE = 400
"""Characters of a value before or after a change."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """One field of one record that a call changed."""

    record: str
    """`table.key`, or the path of what is no row."""
    field: str
    """Empty where the whole record came or went."""
    before: str | None
    """As JSON; None where there was nothing."""
    after: str | None


def state_diffs(trajectory: Trajectory, domain: Domain) -> dict[tuple[int, int], list[Change]]:
    """What each call changed in the database: (index of its message, its place in it) → changes, in the order
    of the records. Calls that changed nothing are not there; nothing is where a state cannot be compared.

    Raises MuaError when the trajectory is of no such task (or of another one by that name), and what a broken
    tool raises.
    """
    task = _task(trajectory, domain)
    if getattr(domain.of(task)[0], "pool", None) is not None:  # an MCP domain's
        return {}
    found = {
        (at, n): list(_changes(before, after))
        for at, n, before, after in replayed(domain, task, trajectory.messages)
    }
    return {place: changes for place, changes in found.items() if changes}


def _changes(before: Any, after: Any) -> Iterator[Change]:
    if hasattr(after, "overlaid"):  # a `Database`
        for table, key in sorted({*before.overlaid(), *after.overlaid()}):
            yield from _compare(f"{table}.{key}", before.get(table, key), after.get(table, key))
    elif hasattr(after, "originals"):  # τ²-bench's `State`: texts of what differs from the originals
        was, is_ = before.changes(), after.changes()
        for path in sorted({*was, *is_}):
            a, b = (side.get(path, after.originals.text(path)) for side in (was, is_))
            if a != b:
                name = ".".join(path[1:] if path[0] == "agent" else path)
                yield from _compare(name, json.loads(a) if a else None, json.loads(b) if b else None)
    else:
        for words in after.diff(before):
            yield Change(words, "", None, None)


def _compare(record: str, before: Any, after: Any) -> Iterator[Change]:
    """What differs of a record: its fields, where it was there before and still is."""
    if not (_parts(before) and _parts(after)):
        if not same(before, after):
            yield Change(record, "", _text(before), _text(after))
        return
    yield from _fields(record, "", before, after)


def _fields(record: str, path: str, before: Any, after: Any) -> Iterator[Change]:
    was, is_ = _parts(before) or {}, _parts(after) or {}
    for name in dict.fromkeys([*was, *is_]):
        a, b = was.get(name), is_.get(name)
        if name in was and name in is_ and same(a, b):
            continue
        field = f"{path}.{name}" if path else name
        if _parts(a) and _parts(b):
            yield from _fields(record, field, a, b)
        else:
            yield Change(record, field, _text(a), _text(b))


def _parts(value: Any) -> Mapping[str, Any] | None:
    """The named parts of an object, or of a list of objects: these by their id, else by their place."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(x, Mapping) for x in value):
        keys = [k for k in value[0] if k == "id" or k.endswith("_id")]
        names = [str(x.get(keys[0])) if keys else str(n) for n, x in enumerate(value)]
        return dict(zip(names, value, strict=True)) if len(set(names)) == len(names) else None
    return None


def _text(value: Any) -> str | None:
    if value is None:
        return None
    text = canonical_text(value)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}… ({len(text):,} characters)"


def _task(trajectory: Trajectory, domain: Domain) -> Task:
    task = domain.task(trajectory.task_id)
    if trajectory.fingerprint and trajectory.fingerprint != task.fingerprint:
        raise MuaError("their tasks have other contents by now")
    return task


# ---------------------------------------------------------------- many of them


class Replayer:
    """Audits and changes of a run's conversations, as long as its seconds last."""

    def __init__(self, named: str, seconds: float = SECONDS):
        """`named` is the domain in the run's configuration; it may be empty."""
        self._named = named
        self._domains: dict[str, Domain | str] = {}
        self.seconds = seconds
        self.done = 0
        self.late = 0
        """Left out because the time was up."""
        self.refused: Counter[str] = Counter()
        """Left out for a reason."""

    def domain(self, name: str) -> Domain:
        """Raises MuaError saying why conversations of that domain cannot be replayed."""
        if name not in self._domains:
            try:
                known = name == self._named or comes_with_mua(name)
                self._domains[name] = load(name) if known else "their domain is not the run's"
            except Exception as exc:
                self._domains[name] = f"{type(exc).__name__}: {exc}"
        found = self._domains[name]
        if isinstance(found, str):
            raise MuaError(found)
        return found

    def look(self, trajectory: Trajectory) -> Audit | None:
        """The audit of a conversation; None where there is none, which is counted."""
        if not trajectory.messages:
            return None
        if self.seconds <= 0:
            self.late += 1
            return None
        began = time.thread_time()
        try:
            domain = self.domain(trajectory.domain or self._named)
            found = audit(domain, _task(trajectory, domain), trajectory)
            self.done += 1
            return found
        except Exception as exc:  # whatever stored text does to the rules of a domain, the page stands
            self._refuse(exc)
            return None
        finally:
            self.seconds -= time.thread_time() - began

    def changes(self, trajectory: Trajectory) -> dict[tuple[int, int], list[Change]] | None:
        """`state_diffs`; None where they cannot be had. Nothing is counted: `look` did."""
        if self.seconds <= 0 or not any(m.tool_calls for m in trajectory.messages):
            return None
        began = time.thread_time()
        try:
            return state_diffs(trajectory, self.domain(trajectory.domain or self._named))
        except Exception as exc:
            if not isinstance(exc, (MuaError, InfrastructureError)):
                log.debug("a conversation cannot be replayed", exc_info=True)
            return None
        finally:
            self.seconds -= time.thread_time() - began

    def _refuse(self, exc: Exception) -> None:
        text = str(exc) if isinstance(exc, MuaError) else f"{type(exc).__name__}: {exc}"
        self.refused[text[:300]] += 1

    def notes(self) -> Iterator[str]:
        """What was left out, and why."""
        if self.late:
            yield (
                f"{self.late:,} conversations are without their audit and changes: the time for them was up."
            )
        for reason, n in self.refused.most_common(3):
            yield f"{n:,} conversation{'s' * (n > 1)} could not be audited or replayed: {reason}"


def annotate(
    body: dict[str, Any],
    trajectory: Trajectory,
    found: Audit | None,
    changes: Mapping[tuple[int, int], list[Change]] | None,
) -> None:
    """Puts verdicts and changes into a conversation's body, whose messages lack the system prompt."""
    shift = len(trajectory.messages) - len(body["messages"])
    if found is not None:
        body["audit"] = {
            "layers": {layer: found.layer(layer) for layer in LAYERS},
            "verdicts": [
                {
                    "layer": v.layer,
                    "rule": v.rule,
                    "status": v.status,
                    "at": None if v.at is None else v.at - shift,
                    "evidence": v.evidence,
                }
                for v in found.verdicts
                if v.status != "not_applicable"
            ],
            "behaviour": dict(found.behaviour),
        }
    if changes is not None:
        body["replayed"] = True
        for (at, n), list_ in changes.items():
            body["messages"][at - shift]["calls"][n]["changes"] = [vars(c) for c in list_]


def broken(found: Audit) -> tuple[str, ...]:
    """`layer/rule` of each rule broken but the outcome, which the reward says."""
    return tuple(sorted({f"{v.layer}/{v.rule}" for v in found.violations if v.layer != "outcome"}))
