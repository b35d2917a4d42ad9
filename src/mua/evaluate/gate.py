"""The regression gate of `mua compare` and `mua eval`: has anything fallen that must not fall?

Invariants:
- The limit is on the difference itself, in points: -2 lets success fall by two points, 0 by none, 3 asks for
  a gain of three. What is exactly at the limit holds.
- A gate that has nothing to look at is an error and never a pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import MuaError
from .stored import home
from .tables import limit, percent, rounded, signed


@dataclass(frozen=True)
class Gate:
    """When to fail."""

    below: float
    """Points: the difference of success to the baseline below which the gate fails."""
    confident: bool = False
    """Compare the upper end of the difference's 95 % interval with `below`, not the difference itself: fail
    only where chance is no likely reason. Few tasks then fail seldom, however much they fell."""
    names: tuple[str, ...] = ()
    """The domains to look at; none: those that the run did not train on."""

    def check(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """What of a comparison (`compare.compare`) is looked at, and a sentence for each that fell:
        {"below", "confident", "checked": […], "fallen": […]}.

        Raises MuaError where there is nothing to look at, where a domain to look at was not measured, and, if
        `confident`, where an interval is missing.
        """
        if not math.isfinite(self.below):
            raise MuaError(f"--fail-below {self.below}: give a number of points, such as -2.")
        candidates = list(_candidates(found))
        chosen = [c for c in candidates if self._watched(c)]
        missing = [u for u in found["unpaired"] if self._watched(u)]
        if missing:
            raise MuaError(
                f"the gate cannot look at {missing[0]['domain']}: {missing[0]['label']} has no evaluation of "
                "it that goes with the baseline's. Evaluate it on the same split and temperature, or name "
                "what to look at by --gate DOMAIN."
            )
        unknown = [name for name in self.names if not any(_named(name, c["domain"]) for c in candidates)]
        if not candidates or unknown or not chosen:
            there = ", ".join(dict.fromkeys(c["domain"] for c in candidates)) or "nothing"
            why = (
                f"--gate {unknown[0]} names no domain of this comparison"
                if unknown
                else "every domain of this comparison is one that the run trained on"
            )
            raise MuaError(
                f"the gate has nothing to look at: {why}. Compared: {there}. Name what must not fall by "
                "--gate DOMAIN."
            )
        for one in chosen:
            if one["mean"] is None:
                raise MuaError(
                    f"the gate cannot look at {one['domain']} of {one['label']}: no task of it was scored in "
                    "both evaluations, or their conversations (NAME.jsonl) are not there. Evaluate again."
                )
            if self.confident and one["high"] is None:
                raise MuaError(
                    f"the gate cannot be confident about {one['domain']}, {one['label']}: there is no "
                    "interval where the stored conversations (NAME.jsonl) of one are missing, or where the "
                    "tasks are few and all agree. Leave --confident out, or evaluate again."
                )
            measured = one["high"] if self.confident else one["mean"]
            one["holds"] = bool(100 * measured >= self.below - 1e-9)
        return {
            "below": self.below,
            "confident": self.confident,
            "checked": chosen,
            "fallen": [self._sentence(one) for one in chosen if not one["holds"]],
        }

    def _watched(self, candidate: Mapping[str, Any]) -> bool:
        if self.names:
            return any(_named(name, candidate["domain"]) for name in self.names)
        return home(candidate["domain"]) not in (candidate["trained_on"] or ())

    def _sentence(self, one: Mapping[str, Any]) -> str:
        way = "fell" if one["mean"] < 0 else "rose by only" if one["mean"] > 0 else "did not move"
        change = (
            ""
            if one["mean"] == 0
            else f" {'by ' if way == 'fell' else ''}{rounded(abs(100 * one['mean']))} points"
        )
        interval = (
            "no interval"
            if one["high"] is None
            else f"95 % interval {signed(100 * one['low'])} to {signed(100 * one['high'])}, "
            f"{one['tasks']} tasks"
        )
        measured = "the interval's upper end" if self.confident else "the difference"
        return (
            f"{one['title']}: {one['label']} {way}{change} against {one['baseline']} "
            f"({percent(one['success'][1])} after {percent(one['success'][0])}; {interval}); "
            f"{measured} must not be below {limit(self.below)}."
        )


_NOTHING: dict[str, Any] = dict.fromkeys(("mean", "low", "high", "tasks", "left_out"))


def _candidates(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every difference to a baseline: of a domain, or of each domain of a mixture."""
    for comparison in found["comparisons"]:
        baseline, *others = comparison["evaluations"]
        for row in others:
            names = dict.fromkeys([*baseline["domains"], *row["domains"]])
            parts = {n: (row["domains"].get(n), baseline["domains"].get(n)) for n in names}
            for domain, (own, other) in (parts or {comparison["domain"]: (row, baseline)}).items():
                difference = (own["difference"] if own and other else None) or _NOTHING
                part_of = f"{domain} in " if domain != comparison["domain"] else ""
                yield {
                    "domain": domain,
                    "title": part_of + comparison["title"],
                    "label": row["label"],
                    "baseline": baseline["label"],
                    "trained_on": row["trained_on"],
                    "success": difference.get("rates") or [x and x["success"] for x in (other, own)],
                    **{key: difference[key] for key in _NOTHING},
                }


def _named(name: str, domain: str) -> bool:
    return name == domain or home(name) == home(domain)
