"""A data set of verified conversations over many domains: played, verified, written with its card.

Invariants:
- A conversation is kept only if a replay of what is stored ends in the gold state, no rule of the policy is
  broken, the user stayed true to its scenario, and no kept conversation is nearly the same.
- Only tasks of the train splits are played, each at most once.
- The same seed, count and domains make the same files, byte for byte. `conversations.jsonl` comes last: where
  it stands, the set is whole.
"""

from __future__ import annotations

import collections
import json
import platform
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from .. import __version__
from ..chat import agent_view
from ..domain import Domain, Task
from ..domains import MCP_EXAMPLES, SYNTHETIC, load
from ..episode import Limits
from ..errors import MuaError
from ..seeds import derive_seed
from ..trajectory import Trajectory
from ..users.fidelity import AS_AGENT, EARLY, INVENTED, LATE, LEAKED, cause, unfaithful
from .conversations import play_expert, verify
from .duplicates import THRESHOLD, Seen

SPLIT = "train"
COUNT = 2400
NOT_GOLD = "end state differs from gold on replay"
RULES = "a rule of the policy was broken"
DUPLICATE = "near-duplicate of another conversation"
CAUSES = {
    NOT_GOLD: "not gold",
    RULES: "policy",
    LEAKED: "leaked",
    INVENTED: "invented",
    EARLY: "too early",
    LATE: "too late",
    AS_AGENT: "as agent",
    DUPLICATE: "duplicate",
}
"""Cause → as the head of a column. Ways in which an episode can end badly come beside them if they occur."""


@dataclass
class Dataset:
    """What was made."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    """Stored trajectories with what else `line` adds."""
    dropped: dict[str, collections.Counter[str]] = field(default_factory=dict)
    """Domain → cause → conversations."""

    def causes(self) -> dict[str, int]:
        """Cause → conversations dropped, over all domains."""
        total = collections.Counter(dict.fromkeys(CAUSES, 0))
        for counts in self.dropped.values():
            total.update(counts)
        return dict(total)

    def kept(self, domain: str) -> list[dict[str, Any]]:
        """The lines of one domain."""
        return [one for one in self.lines if one["domain"] == domain]


def scenarios() -> tuple[list[Domain], str]:
    """The domains that can be played here, and why others are left out, in one line."""
    found, left_out = [load(name) for name in SYNTHETIC], {}
    for name in MCP_EXAMPLES:
        try:
            found.append(load(name))
        except MuaError as exc:
            left_out[name] = str(exc)
    if not left_out:
        return found, ""
    return found, " ".join(f"{', '.join(left_out)}: {next(iter(left_out.values()))}".split())


async def build(
    domains: Sequence[Domain],
    count: int,
    seed: int,
    *,
    limits: Limits = Limits(),
    on_progress: Callable[[str, int, int], None] = lambda domain, done, count: None,
) -> Dataset:
    """`count` conversations in equal shares; what a small domain has no tasks for, the larger ones make."""
    made = Dataset()
    by_size = sorted(domains, key=lambda d: len(d.tasks(SPLIT)))
    for number, domain in enumerate(by_size):
        share = -(-(count - len(made.lines)) // (len(by_size) - number))
        kept, made.dropped[domain.name] = await _play(domain, share, seed, limits, on_progress)
        made.lines += kept
    order = {domain.name: number for number, domain in enumerate(domains)}
    made.lines.sort(key=lambda one: order[one["domain"]])
    made.dropped = {domain.name: made.dropped[domain.name] for domain in domains}
    return made


async def _play(
    domain: Domain, count: int, seed: int, limits: Limits, on_progress: Callable[[str, int, int], None]
) -> tuple[list[dict[str, Any]], collections.Counter[str]]:
    """Up to `count` conversations of one domain, and what was dropped of it."""
    kept: list[dict[str, Any]] = []
    dropped: collections.Counter[str] = collections.Counter()
    seen = Seen()
    tasks = [task for task in domain.tasks(SPLIT) if domain.is_scripted(task)]
    count = min(count, len(tasks))
    random.Random(derive_seed(seed, "order", domain.name)).shuffle(tasks)
    for task in tasks:
        if len(kept) == count:
            break
        own = derive_seed(seed, domain.name, task.id)
        why, one = examine(domain, task, await play_expert(domain, task, own, limits), seen)
        if one is None:
            dropped[why] += 1
        else:
            kept.append(one)
        on_progress(domain.name, len(kept), count)
    return kept, dropped


def examine(
    domain: Domain, task: Task, trajectory: Trajectory, seen: Seen
) -> tuple[str, dict[str, Any] | None]:
    """("", the line) of a conversation that is kept, else (why it is dropped, None)."""
    messages, end = trajectory.messages, trajectory.termination
    world = domain.replay(task, messages) if end.normal else None
    if why := verify(domain, task, trajectory, world):
        return why, None
    if domain.violations and domain.violations(task, messages):
        return RULES, None
    if strayed := unfaithful(task, messages, end, domain.task_tools(task, "user")):
        return cause(strayed[0]), None
    if seen.twin(task.id, messages):
        return DUPLICATE, None
    assert world is not None
    return "", line(domain, task, trajectory, world.db.digest())


def line(domain: Domain, task: Task, trajectory: Trajectory, final: str) -> dict[str, Any]:
    """A trajectory, which `mua score` grades, and what a reader needs who has no mua; `final` is the digest
    of its end state."""
    return {
        **trajectory.to_dict(),
        "persona": task.scenario.persona,
        "goal": task.scenario.goal,
        "facts": dict(task.scenario.facts),
        "tools": [tool.schema() for tool in domain.task_tools(task).values()],
        "gold_digest": domain.gold(task).digest(),
        "final_digest": final,
    }


# ---------------------------------------------------------------- files


def write(made: Dataset, out: Path, command: str, left_out: str = "") -> None:
    """The files of the set, each of them whole or not there."""
    out.mkdir(parents=True, exist_ok=True)
    files = {
        "README.md": [card(made, command, left_out)],
        "dropped.json": [json.dumps(made.causes(), indent=2) + "\n"],
        "sft.jsonl": (_json_line(for_sft(one)) for one in made.lines),
        "conversations.jsonl": map(_json_line, made.lines),
    }
    for name, parts in files.items():
        fresh = out / f".{name}.new"
        with fresh.open("w", encoding="utf-8") as file:
            file.writelines(parts)
        fresh.replace(out / name)


def _json_line(data: Mapping[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False) + "\n"


def for_sft(one: Mapping[str, Any]) -> dict[str, Any]:
    """A line for a trainer of the agent: what the agent saw, up to its last move, and its tools.

    The user's own tool traffic is left out: the agent must not learn from it. The tools are JSON text, as
    data frames would fill up every schema with the keys of all others.
    """
    seen = [m.to_dict() for m in agent_view(Trajectory.from_dict(one).messages)]
    last = max(i for i, m in enumerate(seen) if m["role"] == "assistant")
    keys = ("role", "content", "tool_calls", "tool_call_id")
    messages = [{k: m[k] for k in keys if k in m} for m in seen[: last + 1]]
    return {"messages": messages, "tools": json.dumps(one["tools"], ensure_ascii=False)}


def figures(lines: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Sizes of a set of lines."""
    total: collections.Counter[str] = collections.Counter()
    for one in lines:
        total["conversations"] += 1
        for message in one["messages"]:
            total["messages"] += message["role"] != "system"
            total["turns of the user"] += message["role"] == "user"
            calls = message.get("tool_calls", ())
            total["tool calls"] += len(calls)
            total["characters"] += len(message["content"]) * (message["role"] != "system")
            total["characters"] += sum(len(c["function"]["arguments"]) for c in calls)
    total["distinct tasks"] = len({(one["domain"], one["fingerprint"]) for one in lines})
    return dict(total)


def rows(made: Dataset) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table: kept, and dropped by cause, by domain."""
    causes = list(made.causes())
    body = []
    for domain, dropped in made.dropped.items():
        numbers = [len(made.kept(domain)), *(dropped[c] for c in causes)]
        body.append([domain, *map(str, numbers)])
    body.append(["all", str(len(made.lines)), *(str(made.causes()[c]) for c in causes)])
    return ["domain", "kept", *(CAUSES.get(c, c) for c in causes)], body


def card(made: Dataset, command: str, left_out: str) -> str:
    """The data set card."""
    columns, body = rows(made)
    sizes = figures(made.lines)
    kinds = []
    for domain in made.dropped:
        counts = collections.Counter(one["kind"] for one in made.kept(domain))
        listed = ", ".join(f"{kind} {n}" for kind, n in sorted(counts.items()))
        kinds.append([domain, str(sum(counts.values())), listed])
    template = files("mua.coldstart").joinpath("card.md").read_text(encoding="utf-8")
    return template.format(
        count=f"{len(made.lines):,}",
        domains=len(made.dropped),
        sizes="\n".join(f"- {name}: {n:,}" for name, n in sizes.items()),
        kinds=_markdown(["domain", "conversations", "kinds of tasks"], kinds),
        command=command,
        mua=__version__,
        python=platform.python_version(),
        datasketch=version("datasketch"),
        left_out=f"\nNot in it: {left_out}\n" if left_out else "",
        dropped=_markdown(columns, body),
        causes="; ".join(f"{short}: {c}" for c, short in CAUSES.items()),
        threshold=THRESHOLD,
    )


def _markdown(columns: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
