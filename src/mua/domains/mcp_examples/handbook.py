"""The git repository of a handbook: 18 files, five branches, eleven kinds of tasks, over mcp-server-git.

Invariant: as of the package; every gold solution follows handbook.md.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mua.domain import Action, Change, Task
from mua.domains import script
from mua.domains.mcp_examples import NAMES, call, request, splits, task
from mua.domains.script import Call, Script, ScriptUser

REPO = "/data/handbook"
_CHAPTERS = (
    "travel", "holidays", "expenses", "safety", "hiring", "training", "laptops", "parking", "visitors",
    "mail", "keys", "kitchen", "meetings", "phones",
)  # fmt: skip
_PRIVATE = ("salaries", "reviews")
_BRANCHES = ("draft", "review", "print", "archive-2024")
_WORDS = (
    "Please ask first.",
    "It takes two days.",
    "Your manager decides.",
    "Use the form.",
    "Keep the receipt.",
)
_VERBS = ("Update", "Correct", "Reword", "Extend")


def files() -> dict[str, str]:
    found = {f"chapters/{name}.md": f"# {name.title()}\n\nTo be written.\n" for name in _CHAPTERS}
    found |= {f"private/{name}.md": f"# {name.title()}\n\nNot for everybody.\n" for name in _PRIVATE}
    return found | {"README.md": "# Handbook\n", "print/settings.txt": "paper: A4\n"}


def make_state(folder: Path) -> None:
    repo = folder / "handbook"
    repo.mkdir()
    date = "2024-06-01T12:00:00+00:00"
    env = {"PATH": os.environ["PATH"], "GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    env |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}

    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=repo, env=env, check=True, capture_output=True)

    git("init", "--quiet", "--template=", "--initial-branch=main")
    git("config", "user.name", "Handbook")
    git("config", "user.email", "handbook@example.org")
    for name, text in files().items():
        path = repo / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    git("add", "README.md")
    git("commit", "--quiet", "--message", "Begin")
    git("add", ".")
    git("commit", "--quiet", "--message", "Lay out the chapters")
    for branch in _BRANCHES:
        git("branch", branch)
    git("gc", "--quiet")  # few files are copied faster


# ---------------------------------------------------------------- tasks

Wish = tuple[dict[str, Any], list[Action]]


def commit_calls(branch: str, new: bool, names: Sequence[str], message: str) -> list[Action]:
    create = (
        [call("git_create_branch", repo_path=REPO, branch_name=branch, base_branch="main")] if new else []
    )
    return [
        *create,
        call("git_checkout", repo_path=REPO, branch_name=branch),
        call("git_add", repo_path=REPO, files=list(names)),
        call("git_commit", repo_path=REPO, message=message),
    ]


def _refusal(what: str, branch: str, reason: str) -> Action:
    return call("record_refusal", request=what, branch=branch, reason=reason)


def _edits(rng: random.Random, count: int, private: bool = False) -> list[Change]:
    """Changes that somebody made to some files."""
    names = [f"chapters/{n}.md" for n in rng.sample(_CHAPTERS, count)]
    if private:
        names[0] = f"private/{rng.choice(_PRIVATE)}.md"
    return [
        Change("files", f"handbook/{n}", {"text": f"{files()[n]}\n{rng.choice(_WORDS)}\n"}) for n in names
    ]


def _name(change: Change) -> str:
    return change.key.removeprefix("handbook/")


def _commit(rng: random.Random, names: Sequence[str], branch: str = "") -> Wish:
    new = not branch
    topic = Path(names[0]).stem
    branch = branch or f"{topic}-{rng.randint(10, 99)}"
    message = f"{rng.choice(_VERBS)} {' and '.join(Path(n).stem for n in names)}"
    say = f'commit {" and ".join(names)} on the branch {branch} with the message "{message}"'
    data = {"do": "commit", "files": list(names), "branch": branch, "message": message}
    return request(say, [branch, message], data), commit_calls(branch, new, names, message)


def _branch(rng: random.Random, exists: bool = False) -> Wish:
    name = rng.choice(_BRANCHES) if exists else f"{rng.choice(_CHAPTERS)}-{rng.randint(10, 99)}"
    base = rng.choice([b for b in ("main", *_BRANCHES) if b != name])
    wish = request(
        f"create a branch {name} from {base}", [name], {"do": "branch", "branch": name, "base": base}
    )
    if exists:
        return wish, [_refusal("branch", name, "exists")]
    return wish, [call("git_create_branch", repo_path=REPO, branch_name=name, base_branch=base)]


def _committed(kind: str, count: int, known: bool = False) -> Callable[[random.Random], Task]:
    """One file more was changed than is to be committed."""

    def make(rng: random.Random) -> Task:
        edits = _edits(rng, count + 1)
        wish, actions = _commit(
            rng, [_name(e) for e in edits[:count]], rng.choice(_BRANCHES) if known else ""
        )
        return task(kind, rng.choice(NAMES), [wish], actions, rng, edits)

    return make


def _refused(reason: str) -> Callable[[random.Random], Task]:
    def make(rng: random.Random) -> Task:
        edits = _edits(rng, 3, private=reason == "private")
        names = [_name(e) for e in edits[:2]]
        if reason == "unchanged":
            names[1] = next(
                f"chapters/{n}.md" for n in _CHAPTERS if f"chapters/{n}.md" not in map(_name, edits)
            )
        wish, _ = _commit(rng, names, "main" if reason == "main" else "")
        return task(
            reason,
            rng.choice(NAMES),
            [wish],
            [_refusal("commit", wish["data"]["branch"], reason)],
            rng,
            edits,
        )

    return make


def _plain_branch(kind: str, exists: bool) -> Callable[[random.Random], Task]:
    def make(rng: random.Random) -> Task:
        wish, actions = _branch(rng, exists)
        return task(kind, rng.choice(NAMES), [wish], actions, rng, _edits(rng, 1))

    return make


def _switch(rng: random.Random) -> Task:
    edits = _edits(rng, 2)
    first, _ = _commit(rng, [_name(edits[0])])
    other, actions = _commit(rng, [_name(edits[0])], rng.choice(_BRANCHES))
    return task("switch", rng.choice(NAMES), [{**first, "change": other}], actions, rng, edits)


def _withdraw(rng: random.Random) -> Task:
    edits = _edits(rng, 2)
    wish, _ = _commit(rng, [_name(edits[0])])
    record = _refusal("commit", wish["data"]["branch"], "withdrawn")
    return task("withdraw", rng.choice(NAMES), [{**wish, "withdraw": True}], [record], rng, edits)


def _two(rng: random.Random) -> Task:
    edits = _edits(rng, 2)
    (one, first), (two, second) = _branch(rng), _commit(rng, [_name(edits[0])])
    return task("two", rng.choice(NAMES), [one, two], [*first, *second], rng, edits)


def tasks() -> dict[str, list[Task]]:
    return splits(
        "handbook",
        {
            "commit": _committed("commit", 1),
            "commit_two": _committed("commit_two", 2),
            "commit_known": _committed("commit_known", 1, known=True),
            "main": _refused("main"),
            "private": _refused("private"),
            "unchanged": _refused("unchanged"),
            "branch": _plain_branch("branch", False),
            "exists": _plain_branch("exists", True),
            "switch": _switch,
            "withdraw": _withdraw,
            "two": _two,
        },
    )


# ---------------------------------------------------------------- who speaks


class User(ScriptUser):
    topics = {"who": re.compile(r"\byour( full)? name\b", re.I)}  # noqa: RUF012


class Expert(script.Expert):
    """Follows handbook.md."""

    def once(self) -> Script:
        wanted = self.request or {}
        branch, do = wanted["branch"], wanted["do"]
        if do == "commit":
            reason = "main" if branch == "main" else ""
            if not reason and any(n.startswith("private/") for n in wanted["files"]):
                reason = "private"
            if not reason:
                status = yield Call("git_status", {"repo_path": REPO})
                reason = "" if all(f"modified:   {n}" in status for n in wanted["files"]) else "unchanged"
            if reason:
                return (yield from self.refuse(self.refused(reason), f"I must not commit that: {reason}."))
        listed = yield Call("git_branch", {"repo_path": REPO, "branch_type": "local"})
        known = branch in [line.strip("* ") for line in listed.splitlines()]
        if do == "branch":
            if known:
                return (
                    yield from self.refuse(self.refused("exists"), f"there is a branch {branch} already.")
                )
            text = f"I will create the branch {branch} from {wanted['base']}."
            calls = [
                call("git_create_branch", repo_path=REPO, branch_name=branch, base_branch=wanted["base"])
            ]
        else:
            names, message = wanted["files"], wanted["message"]
            where = f"{'' if known else 'new '}branch {branch}"
            text = f'I will commit {" and ".join(names)} on the {where}: "{message}".'
            calls = commit_calls(branch, not known, names, message)
        made = [Call(c.name, dict(c.arguments)) for c in calls]
        return (yield from self.settle(text, made, "Done.", self.refused("withdrawn")))

    def refused(self, reason: str) -> Call:
        wanted = self.request or {}
        return Call("record_refusal", {"request": wanted["do"], "branch": wanted["branch"], "reason": reason})
