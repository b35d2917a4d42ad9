"""Four domains of real MCP servers, each a YAML file with the Python file that makes its tasks:

shop (mcp-server-sqlite), handbook (mcp-server-git), office (@modelcontextprotocol/server-filesystem) and
meetings (mcp-server-time). Here is what they share.

Invariant: the same seed makes the same tasks; no two tasks of a domain have the same content.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...domain import Action, Change, Scenario, Task

SIZES = {"train": 96, "dev": 24, "test": 48}
NAMES = ("Ada Moss", "Ben Ruiz", "Cleo Park", "Dan Weiss", "Eva Lund", "Finn Okoye", "Gail Sato", "Hugo Roy")
_PERSONAS = ("You are brief.", "You are polite.", "You are in a hurry.", "You like to chat.")


def call(name: str, **arguments: Any) -> Action:
    return Action(name, arguments)


def request(say: str, must: Sequence[str], data: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A request of a scripted user (`domains.script`)."""
    return {"say": say, "data": dict(data), "must": list(must), **more}


def task(
    kind: str,
    who: str,
    requests: Sequence[Mapping[str, Any]],
    actions: Sequence[Action],
    rng: random.Random,
    setup: Sequence[Change] = (),
) -> Task:
    """A task of a person who has these requests, one after the other."""
    goal = " Then you want to ".join(
        [f"You want to {requests[0]['say']}.", *(f"{r['say']}." for r in requests[1:])]
    )
    for one in requests:
        if "change" in one:
            goal += (
                f" When you are asked to confirm, you change your mind: you want to {one['change']['say']}."
            )
        if one.get("withdraw"):
            goal += " When you are asked to confirm, you change your mind and want nothing at all."
        for told in one.get("later", {}).values():
            goal += f" If asked, and only then, you say: {told['say']}."
    agenda = {"who": {"say": f"I am {who}", "data": {"name": who}}, "requests": list(requests)}
    scenario = Scenario(goal, {"name": who}, rng.choice(_PERSONAS), agenda)
    return Task("", kind, scenario, tuple(actions), tuple(setup))


def splits(seed: str, kinds: Mapping[str, Callable[[random.Random], Task]]) -> dict[str, list[Task]]:
    """Tasks of all kinds in turn, none of them twice."""
    rng = random.Random(seed)
    seen: set[str] = set()
    found: dict[str, list[Task]] = {}
    for split, size in SIZES.items():
        made = found.setdefault(split, [])
        while len(made) < size:
            kind = list(kinds)[len(made) % len(kinds)]
            new = kinds[kind](rng)
            if new.fingerprint not in seen:
                seen.add(new.fingerprint)
                made.append(Task(f"{split}-{len(made)}", kind, new.scenario, new.actions, new.setup))
    return found
