"""Experts in an environment that misbehaves: as they are (they never try again), and trying again.

    python tests/fault_experts.py [OUT] [--tasks N] [FAULT=RATE ...]

prints one line a domain and way. OUT/DOMAIN is a run folder for `mua report`, its files for `mua score`.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mua.agents import AgentStep
from mua.chat import Message
from mua.domain import Domain, Task
from mua.domains import load
from mua.evaluate.run import EvalResult, EvalSettings, evaluate
from mua.evaluate.statistics import paired_difference
from mua.faults import FaultSettings

DOMAINS = ("library", "course_registration", "property_rental")
GIVES_UP = "I am sorry, something went wrong. Is there anything else I can help you with?"


class Stubborn:
    """An agent that repeats a call that failed, up to `again` times, before its expert hears of it.

    `agents.retrying.Retrying` reads what failed, and looks before it repeats a write. This one does neither:
    what repeating alone gives is measured here.
    """

    def __init__(self, expert: Any, again: int):
        self.expert, self.again = expert, again
        self.trace = None
        self._tries = 0
        self._lost = False

    def close(self) -> None:
        self.expert.close()

    async def step(self, messages: Sequence[Message]) -> AgentStep:
        last = messages[-1]
        if last.role == "tool" and last.error and self._tries < self.again:
            self._tries += 1
            return AgentStep(Message("assistant", tool_calls=messages[-2].tool_calls))
        self._tries = 0
        if not self._lost:
            try:
                return await self.expert.step(messages)
            except Exception:  # experts know no failing look-up: they are lost then, like their readers
                self._lost = True
        return AgentStep(Message("assistant", GIVES_UP))


async def measure(
    domain: Domain, tasks: int, again: int, faults: FaultSettings | None, out: Path, name: str
) -> EvalResult:
    """One evaluation of the domain's expert, with its agenda user."""
    users: list[Any] = []

    def make_user(task: Task, seed: int) -> Any:
        assert domain.agenda_user is not None
        users[:] = [domain.agenda_user(task, seed)]  # the agent of the same episode is made next
        return users[0]

    def make_agent(task: Task, session: str, seed: int) -> Stubborn:
        assert domain.expert is not None
        return Stubborn(domain.expert(domain.open(task), users[0], seed), again)

    settings = EvalSettings(tasks=tasks, faults=faults)
    model = f"expert, {again + 1} tries" if again else "expert"
    every = domain.tasks("test")
    return await evaluate(domain, every, make_agent, make_user, settings, out=out, name=name, model=model)


def main(out: Path, tasks: int, rates: Mapping[str, float]) -> None:
    faults = FaultSettings(**rates)  # type: ignore[arg-type]
    print(f"{'domain':22}{'tries':>6}{'without':>9}{'with':>8}{'difference':>26}  faults, success if hit")
    for name in DOMAINS:
        domain = load(name)
        for again in (0, 1, 2):
            began = time.perf_counter()
            place = out / name
            plain, bad = (
                asyncio.run(measure(domain, tasks, again, f, place, f"expert{again}_greedy{suffix}"))
                for f, suffix in ((None, ""), (faults, f"_faults-{faults.label}"))
            )
            d = paired_difference(plain.outcomes, bad.outcomes)
            hit = bad.faults["hit"]
            success = "–" if hit["success"] is None else f"{hit['success']:.1%}"
            print(
                f"{name:22}{1 + again:>6}{plain.success:>9.1%}{bad.success:>8.1%}"
                f"{d.mean:>+10.1%} ({d.low:+.1%} to {d.high:+.1%})  {bad.faults['counts']}, "
                f"{hit['episodes']} episodes hit, {success}; {time.perf_counter() - began:.1f} s"
            )


if __name__ == "__main__":
    words = sys.argv[1:]
    number = int(words.pop(words.index("--tasks") + 1)) if "--tasks" in words else 200
    words = [w for w in words if w != "--tasks"]
    given = {k: float(v) for k, v in (w.split("=") for w in words if "=" in w)} or {"transient": 0.1}
    places = [Path(w) for w in words if "=" not in w]
    with tempfile.TemporaryDirectory() as temporary:
        main(places[0] if places else Path(temporary), number, given)
