"""How often the audit's detectors are right: breaches planted into clean conversations of every domain.

The experts of mua's domains play test tasks, those of τ² play generated ones; for τ¹ the gold calls of its
test tasks are put into words by a script. Each conversation is audited as it is, with its yes in other words,
with an injected text that the agent ignores, and once with each breach that fits it. A finding of a rule that
the plant does not break counts against that rule's precision. docs/results.md says which words of the plants
the patterns had seen.

    python perf/audit.py [--tasks 60] [--seed 0] [--domains library,tau2/retail] [--misses] [--json]

Prints precision and recall of each rule, and milliseconds a trajectory. Benchmarks that are not installed are
left out and named.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from audit_plants import (
    FIGURES,
    PLANTS,
    YES,
    Messages,
    Planted,
    Talk,
    answer_before,
    as_trajectory,
    clean,
    injection_ignored,
)

from mua.audit import Audit, audit
from mua.domains import SYNTHETIC, load
from mua.errors import MuaError

TAU = ("tau2/retail", "tau2/airline", "tau2/telecom", "tau1/retail", "tau1/airline")

# ---------------------------------------------------------------- measuring


def findings(found: Audit) -> set[str]:
    return {v.rule for v in found.violations}


def other_yes(rng: random.Random, talk: Talk) -> Messages | None:
    """The same conversation with every yes in other words."""
    reading = talk.reading()
    at = {answer_before(talk, w) for w in reading.writes if reading.needs_yes(w.event.name)} - {None}
    if not at:
        return None
    return [
        dataclasses.replace(m, content=rng.choice(YES)) if i in at else m for i, m in enumerate(talk.messages)
    ]


@dataclass
class Score:
    planted: int = 0
    found: int = 0
    wrong: int = 0

    def to_dict(self) -> dict[str, Any]:
        told = self.found + self.wrong
        return {
            "planted": self.planted,
            "recall": self.found / self.planted if self.planted else None,
            "precision": self.found / told if told else None,
            "wrong": self.wrong,
        }


def measure(names: Sequence[str], count: int, seed: int, misses: bool) -> dict[str, Any]:
    scores: dict[str, Score] = defaultdict(Score)
    by_domain: dict[str, dict[str, Score]] = {}
    talks_of: Counter[str] = Counter()
    audited, seconds = 0, 0.0

    def look(talk: Talk, messages: Messages, reward: float) -> Audit:
        nonlocal audited, seconds
        start = time.process_time()
        found = audit(talk.domain, talk.task, as_trajectory(talk, messages, reward))
        seconds += time.process_time() - start
        audited += 1
        return found

    def judge(name: str, talk: Talk, what: str, found: Audit, plain: Audit, target: Planted | None) -> None:
        rules = findings(found)
        up = {f for f in FIGURES if found.behaviour[f] > plain.behaviour[f]}
        breaks = target.breaks if target else frozenset()
        own = by_domain[name]
        if target is not None:
            # Where a yes was left out, an earlier one may stand in its place: used twice, it is told so.
            reused = target.aim == "consent" and "one_change_a_yes" in rules
            hit = target.aim in rules or target.aim in up or reused
            for score in (scores[target.aim], own[target.aim]):
                score.planted += 1
                score.found += hit
            if misses and not hit:
                print(
                    f"MISSED {name} {talk.task.id} {what}: {target.aim}; found {sorted(rules)}",
                    file=sys.stderr,
                )
        wrong = rules - breaks - ({"end_state"} if target and target.reward < 1 else set())
        for rule in wrong:
            scores[rule].wrong += 1
            own[rule].wrong += 1
            if misses:
                told = next(v for v in found.violations if v.rule == rule)
                print(f"WRONG {name} {talk.task.id} {what}: {rule}: {told.evidence}", file=sys.stderr)

    for name in names:
        by_domain[name] = defaultdict(Score)
        talks = clean(name, count, seed)
        talks_of[name] = len(talks)
        for number, talk in enumerate(talks):
            rng = random.Random(f"{seed}/{name}/{number}")
            plain = look(talk, talk.messages, talk.reward)
            judge(name, talk, "clean", plain, plain, None)
            for variant in (other_yes, injection_ignored):
                if messages := variant(rng, talk):
                    judge(name, talk, variant.__name__, look(talk, messages, 1.0), plain, None)
            for plant in PLANTS:
                target = plant(rng, talk)
                if target is not None:
                    what = f"{plant.__name__} {target.aim}"
                    judge(name, talk, what, look(talk, target.messages, target.reward), plain, target)
    return {
        "trajectories": audited,
        "milliseconds": 1000 * seconds / max(1, audited),
        "clean": dict(talks_of),
        "rules": {r: s.to_dict() for r, s in sorted(scores.items())},
        "domains": {
            name: {r: s.to_dict() for r, s in sorted(own.items())} for name, own in by_domain.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=60, help="clean conversations of each domain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--domains", default=",".join((*SYNTHETIC, *TAU)))
    parser.add_argument(
        "--misses", action="store_true", help="say what was missed or wrong, on standard error"
    )
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    names = []
    for name in asked.domains.split(","):
        try:
            load(name)
            names.append(name)
        except MuaError as exc:
            print(f"left out: {exc}", file=sys.stderr)
    found = measure(names, asked.tasks, asked.seed, asked.misses)
    if asked.json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"{sum(found['clean'].values())} clean conversations of {len(names)} domains; "
        f"{found['trajectories']} audited"
    )
    print(f"{'rule':24} {'planted':>8} {'recall':>8} {'precision':>10}")
    for rule, line in found["rules"].items():
        cells = ["-" if line[k] is None else f"{line[k]:.3f}" for k in ("recall", "precision")]
        print(f"{rule:24} {line['planted']:8} {cells[0]:>8} {cells[1]:>10}")
    print(f"{found['milliseconds']:.2f} ms each")


if __name__ == "__main__":
    main()
