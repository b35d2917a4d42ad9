"""A teacher drafts a domain: data only (`domains.declared`), checked, and sent back with what is wrong.

Invariants:
- Nothing that the teacher writes is run; it becomes three files that are read as data.
- A draft stands under its name only when all checks pass. Until then it is PLACE.not_accepted, with the list
  of what is wrong and every answer of the teacher, so that a person, or a later call, goes on from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ..chat import Message
from ..domain import Ask
from ..domains.declared import FILES, make
from ..domains.declared.spec import HINT
from ..errors import MuaError
from .soundness import OnProgress, check_domain

PROBLEMS = "PROBLEMS.md"
LEAST_KINDS = 3
SPLITS = ("train", "test")
_SHOWN = 4
"""Problems of one check that the teacher is told; the others are mostly the same."""

_FENCE = re.compile(r"^```+[ \t]*([^\n`]*)\n(.*?)^```+[ \t]*$", re.M | re.S)
_MOST = 400_000
"""Characters of an answer."""


@dataclass(frozen=True)
class Drafted:
    """How it ended."""

    place: Path
    """The domain, or the draft that was not accepted."""
    problems: list[str]
    """What is wrong; empty when it was accepted."""
    rounds: int


def unfinished(place: Path) -> Path:
    """Where the draft of a domain is until it is accepted."""
    return place.with_name(f"{place.name}.not_accepted")


async def draft(
    about: str,
    place: Path,
    ask: Ask,
    rounds: int,
    on_round: Callable[[int, int], None] = lambda number, problems: None,
    on_progress: OnProgress = lambda *news: None,
) -> Drafted:
    """Lets the teacher draft the domain of `about` into `place`, in up to `rounds` answers; goes on with a
    draft that was not accepted. Raises InfrastructureError when the teacher fails, MuaError when `place` is
    taken."""
    work, before = _begin(place)
    wrong = await problems(work, on_progress) if _there(work) else []
    if _there(work) and not wrong:  # a person has mended it
        return _accepted(work, place, 0)
    for number in range(1, rounds + 1):
        answer = await ask(
            [Message("system", _instructions()), Message("user", _request(about, work, wrong))]
        )
        (work / "answers" / f"{before + number}.md").write_text(answer, encoding="utf-8")
        found, wrong = read(answer)
        for name, text in found.items():
            (work / name).write_text(text, encoding="utf-8")
        wrong = wrong or await problems(work, on_progress)
        (work / PROBLEMS).write_text(_listed(about, wrong), encoding="utf-8")
        on_round(number, len(wrong))
        if not wrong:
            return _accepted(work, place, number)
    return Drafted(work, wrong, rounds)


def _begin(place: Path) -> tuple[Path, int]:
    """The folder to work in, and how many answers it has."""
    if place.exists():
        raise MuaError(f"{place} is there already; take another --out.")
    answers = unfinished(place) / "answers"
    answers.mkdir(parents=True, exist_ok=True)
    return answers.parent, len(list(answers.iterdir()))


def read(answer: str) -> tuple[dict[str, str], list[str]]:
    """The files in an answer, by name, and what is wrong with its form."""
    found: dict[str, str] = {}
    for block in _FENCE.finditer(answer[:_MOST]):
        before = answer[: block.start()].rstrip().rpartition("\n")[2]
        named = [name for name in FILES if name in block[1]] or [name for name in FILES if name in before]
        if len(named) == 1:
            found[named[0]] = block[2]
    if not found:
        return {}, [
            "your answer held no file; write each of the files whole, as a block that begins with "
            "```domain.yaml (```policy.md, ```tasks.yaml) on a line of its own and ends with ```"
        ]
    return found, []


async def problems(folder: Path, on_progress: OnProgress = lambda *news: None) -> list[str]:
    """What is wrong with a draft: all that `mua domain check` finds, and what makes it too small to be it."""
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        return [f"{', '.join(missing)}: not written yet"]
    try:
        domain = make(folder)
        found = await check_domain(domain, on_progress)
    except MuaError as exc:
        return [str(exc).replace(f"{folder}/", "").replace(HINT, "")]
    wrong = []
    for name, check in found.checks.items():
        wrong += [f"{name}: {problem}" for problem in check.problems[:_SHOWN]]
        if len(check.problems) > _SHOWN:
            wrong.append(f"{name}: {len(check.problems)} problems in all, of {check.asked}")
    if missing := [split for split in SPLITS if split not in domain.splits]:
        wrong.append(f"tasks.yaml, splits: {' and '.join(missing)} missing")
    if len(kinds := {kind for kind, _ in found.sound}) < LEAST_KINDS:
        wrong.append(f"tasks.yaml, kinds: {len(kinds)}; a domain has at least {LEAST_KINDS}")
    return wrong


def _there(work: Path) -> bool:
    return any((work / name).is_file() for name in FILES)


def _accepted(work: Path, place: Path, number: int) -> Drafted:
    fresh = place.with_name(f".{place.name}.new")
    fresh.mkdir(exist_ok=True)
    for name in FILES:
        (work / name).replace(fresh / name)
    fresh.replace(place)
    for left in [*(work / "answers").iterdir(), work / PROBLEMS]:
        left.unlink(missing_ok=True)
    (work / "answers").rmdir()
    if not any(work.iterdir()):  # what somebody else has put there stays
        work.rmdir()
    return Drafted(place, [], number)


def _listed(about: str, wrong: list[str]) -> str:
    lines = "".join(f"- {problem}\n" for problem in wrong) or "None.\n"
    return f"# Draft of: {about}\n\nWhat `mua domain check` and the rules for drafts say:\n\n{lines}"


# ---------------------------------------------------------------- what the teacher is asked


_TASK = """\
You design small, complete domains in which agents that serve people over tools are trained: a policy, a
database, tools, and tasks with gold solutions. A program checks what you write: it makes the database, draws
the tasks, replays the gold solutions and plays every task; what it finds wrong is sent back to you.

# The format

{format}
# An example: a campsite

{example}

# Your answer

Each file whole, as a block like those of the example, with the file's name after the opening fence. When you
mend a draft, only the files that change. No other text is read."""


def _instructions() -> str:
    home = files("mua.domains.declared")
    parts = [_block(name, (home / "example" / name).read_text(encoding="utf-8")) for name in FILES]
    format = (home / "format.md").read_text(encoding="utf-8")
    return _TASK.format(format=format, example="\n\n".join(parts))


def _block(name: str, text: str) -> str:
    return f"```{name}\n{text.rstrip()}\n```"


def _request(about: str, work: Path, wrong: list[str]) -> str:
    parts = [f"The domain: {about}"]
    for name in FILES:
        if (work / name).is_file():
            parts.append(_block(name, (work / name).read_text(encoding="utf-8")))
    if wrong:
        parts.append("This draft is not accepted yet. Mend it:\n" + "\n".join(f"- {p}" for p in wrong))
    return "\n\n".join(parts)
