"""A data set of verified conversations over many domains: played, verified, written with its card.

Invariants:
- A conversation is kept only if it passes all of `verification.CHECKS`.
- Only tasks of the train splits are played, each at most once.
- The same seed, count and domains make the same files, byte for byte. `conversations.jsonl` comes last: where
  it stands, the set is whole.
"""

from __future__ import annotations

import collections
import json
import platform
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
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
from ..faults import FaultSettings
from ..seeds import derive_seed
from ..trajectory import Trajectory
from ..users.personas import BEHAVIOURS, PLAIN, Mix, told
from .conversations import play_expert
from .duplicates import THRESHOLD
from .verification import CAUSES, Verification

SPLIT = "train"
COUNT = 2400
PERSONAS: Mix = {
    PLAIN: 12.0,
    **dict.fromkeys(BEHAVIOURS, 1.0),
    "impatient+confused": 1.0,
    "rambling+slips": 1.0,
}
"""About half of the people behave plainly; of behaviours that a task does not fit, a part falls away."""
FAULTS = FaultSettings(transient=0.04, timeout=0.02, permission=0.03, added=0.05)
"""In about a third of the conversations a call fails that works when it is tried again."""


@dataclass(frozen=True)
class About:
    """Who played a set, for its card."""

    how: str = (
        "No language model was involved: a program that knows the policy plays the agent, another that "
        "follows the task's agenda plays the person, and the tools ran for real. Only tasks of the train "
        "splits were played, each once. The same command makes the same files."
    )
    licence: str = "Apache-2.0, as mua, whose programs wrote all of it."
    figures: Mapping[str, Any] = field(default_factory=dict)
    """For `teacher.json`; none, no file."""


Count = Callable[[Iterable[str]], int]
"""How many tokens some texts have."""

Taught = Callable[[Domain, int], Awaitable[tuple[list[dict[str, Any]], "collections.Counter[str]"]]]
"""Up to so many lines of one domain, and what was dropped, by somebody else than the programs (`teacher`)."""


@dataclass
class Dataset:
    """What was made."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    """Stored trajectories with what else `line` adds."""
    dropped: dict[str, collections.Counter[str]] = field(default_factory=dict)
    """Domain → cause → conversations."""
    about: About = About()
    endpoints: dict[str, Any] = field(default_factory=dict)
    """Role → what the call that made it asked of a teacher's endpoints."""

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
    personas: Mix | None = PERSONAS,
    faults: FaultSettings | None = FAULTS,
    taught: Taught | None = None,
    on_progress: Callable[[str, int, int], None] = lambda domain, done, count: None,
) -> Dataset:
    """`count` conversations in equal shares; what a small domain has no tasks for, the larger ones make.

    `personas` and `faults` are for the programs; whoever else plays has its own.
    """

    async def play(domain: Domain, task: Task, own: int) -> Trajectory:
        return await play_expert(domain, task, own, limits, personas=personas, faults=faults)

    made = Dataset()
    by_size = sorted(domains, key=lambda d: len(d.tasks(SPLIT)))
    for number, domain in enumerate(by_size):
        share = -(-(count - len(made.lines)) // (len(by_size) - number))
        playing = taught(domain, share) if taught else _play(domain, share, seed, play, on_progress)
        kept, made.dropped[domain.name] = await playing
        made.lines += kept
    order = {domain.name: number for number, domain in enumerate(domains)}
    made.lines.sort(key=lambda one: order[one["domain"]])
    made.dropped = {domain.name: made.dropped[domain.name] for domain in domains}
    return made


async def _play(
    domain: Domain,
    count: int,
    seed: int,
    play: Callable[[Domain, Task, int], Awaitable[Trajectory]],
    on_progress: Callable[[str, int, int], None],
) -> tuple[list[dict[str, Any]], collections.Counter[str]]:
    """Up to `count` conversations of one domain, and what was dropped of it."""
    kept: list[dict[str, Any]] = []
    dropped: collections.Counter[str] = collections.Counter()
    verification = Verification(domain)
    tasks = [task for task in domain.tasks(SPLIT) if domain.is_scripted(task)]
    count = min(count, len(tasks))
    random.Random(derive_seed(seed, "order", domain.name)).shuffle(tasks)
    for task in tasks:
        if len(kept) == count:
            break
        own = derive_seed(seed, domain.name, task.id)
        trajectory = await play(domain, task, own)
        why, world = verification.examine(task, trajectory)
        if world is None:
            dropped[why] += 1
        else:
            kept.append(line(domain, task, trajectory, world.db.digest()))
        on_progress(domain.name, len(kept), count)
    return kept, dropped


def behaviours(persona: str) -> list[str]:
    """The behaviours in a persona's name as trajectories have it."""
    return [name for name in persona.split("+") if name not in ("", PLAIN)]


def line(domain: Domain, task: Task, trajectory: Trajectory, final: str) -> dict[str, Any]:
    """A trajectory, which `mua score` grades, and what a reader needs who has no mua; `final` is the digest
    of its end state."""
    return {
        **trajectory.to_dict(),
        "persona": trajectory.persona,
        "persona_text": told(task, behaviours(trajectory.persona)).scenario.persona,
        "goal": task.scenario.goal,
        "facts": dict(task.scenario.facts),
        "tools": [tool.schema() for tool in domain.task_tools(task).values()],
        "gold_digest": domain.gold(task).digest(),
        "final_digest": final,
    }


# ---------------------------------------------------------------- files


def write(made: Dataset, out: Path, command: str, left_out: str = "", count: Count | None = None) -> None:
    """The files of the set, each of them whole or not there. `count` is for the tokens on its card."""
    out.mkdir(parents=True, exist_ok=True)
    files = {
        "README.md": [card(made, command, left_out, count)],
        "dropped.json": [json.dumps(made.causes(), indent=2) + "\n"],
        **({"teacher.json": [json.dumps(made.about.figures, indent=2) + "\n"]} if made.about.figures else {}),
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


def smollm2_tokens() -> Count | None:
    """Counts tokens as SmolLM2's tokenizer does; None where its package is not installed. Loading it takes
    some seconds."""
    from ..models import SMOLLM2, load_tokenizer

    try:
        tokenizer = load_tokenizer(SMOLLM2)
    except MuaError:
        return None
    return lambda texts: sum(map(len, tokenizer(list(texts), add_special_tokens=False)["input_ids"]))


def tokens(lines: Iterable[Mapping[str, Any]], count: Count) -> dict[str, int]:
    """Tokens by who wrote them; without the marks of a chat template."""
    texts: dict[str, list[str]] = collections.defaultdict(list)
    before: dict[str, int] = {}
    total = 0
    for one in lines:
        for message in one["messages"]:
            calls = [c["function"] for c in message.get("tool_calls", ())]
            words = [message["content"], *(f"{c['name']} {c['arguments']}" for c in calls)]
            if message["role"] != "system":
                texts[message["role"]] += [w for w in words if w]
        prompt = "".join(m["content"] for m in one["messages"] if m["role"] == "system")
        prompt += json.dumps(one["tools"])
        if prompt not in before:
            before[prompt] = count([prompt])
        total += before[prompt]
    found = {role: count(written) for role, written in texts.items()}
    return {
        "tokens of the agent": found.get("assistant", 0),
        "tokens of the people": found.get("user", 0),
        "tokens of tools' answers": found.get("tool", 0),
        "tokens of policies and schemas": total,
    }


def shares(lines: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """(of the people who behave in some way, of the conversations in which a call failed and was made
    again)"""
    acted = sum(bool(behaviours(one.get("persona", ""))) for one in lines)
    retried = sum(any(m.get("unrun") for m in one["messages"]) for one in lines)
    return tuple(f"{n / max(1, len(lines)):.0%}" for n in (acted, retried))  # type: ignore[return-value]


def rows(made: Dataset) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table: kept, with a persona and with calls tried again, and dropped by
    cause."""
    causes = list(made.causes())
    body = []
    for domain, dropped in made.dropped.items():
        kept = made.kept(domain)
        body.append([domain, str(len(kept)), *shares(kept), *(str(dropped[c]) for c in causes)])
    total = made.causes()
    body.append(["all", str(len(made.lines)), *shares(made.lines), *(str(total[c]) for c in causes)])
    return ["domain", "kept", "persona", "retried", *(CAUSES.get(c, c) for c in causes)], body


def card(made: Dataset, command: str, left_out: str, count: Count | None = None) -> str:
    """The data set card."""
    columns, body = rows(made)
    sizes = {**figures(made.lines), **(tokens(made.lines, count) if count else {})}
    personas = _counted(one.get("persona") or "none" for one in made.lines)
    faults = _counted(m["fault"] for one in made.lines for m in one["messages"] if m.get("fault"))
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
        counted="\nTokens are SmolLM2's, without the marks of a chat template.\n" if count else "",
        kinds=_markdown(["domain", "conversations", "kinds of tasks"], kinds),
        personas=_markdown(["persona", "conversations"], personas),
        faults=_markdown(["what happened to a call", "times"], faults),
        command=command,
        how=made.about.how,
        licence=made.about.licence,
        license="other" if made.about.figures else "apache-2.0",
        mua=__version__,
        python=platform.python_version(),
        datasketch=version("datasketch"),
        left_out=f"\nNot in it: {left_out}\n" if left_out else "",
        dropped=_markdown(columns, body),
        causes="; ".join(f"{short}: {c}" for c, short in CAUSES.items()),
        threshold=THRESHOLD,
    )


def _counted(found: Iterable[str]) -> list[list[str]]:
    return [[what, str(n)] for what, n in collections.Counter(found).most_common()]


def _markdown(columns: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
