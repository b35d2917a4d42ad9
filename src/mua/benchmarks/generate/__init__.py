"""New tasks for training, over the databases of an installed τ²: drawn from a seed, proven by replay.

They are splits of the τ² domains under names that say how they are made, so a configuration says all:
`generated` (2,000 tasks, seed 0), `generated:COUNT`, `generated:COUNT:SEED`, or a file that
`mua benchmarks generate` wrote (with the scenarios reworded by a teacher, for example).

`retail`, `airline` and `telecom` draw drafts; their `*_expert` programs know upstream's policies and play
the tasks; `make` keeps what is new, apart from upstream's tasks, and proven.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import tomllib
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...chat import Message, ToolCall
from ...domain import Task, World
from ...errors import MuaError, unreadable
from ...trajectory import Termination

T = TypeVar("T")

if TYPE_CHECKING:
    from ..tau2 import Tau2Domain
    from .make import Generated, Source
    from .script import Expert, ScriptUser

COUNT = 2000
"""Tasks of the split `generated`."""
PARTS = ("retail", "airline", "telecom")

_SPLIT = re.compile(r"generated(?::(?P<count>\d+))?(?::(?P<seed>\d+))?")
_TASK = re.compile(r"(?:retail|airline|telecom)-generated-(?P<seed>\d+)-(?P<number>\d+)")


def attach(domain: Tau2Domain) -> Tau2Domain:
    """The domain with generated tasks and, where somebody plays the user, with who can play them."""
    found = functools.partial(extra, domain.name.removesuffix("-solo"))
    if domain.solo:
        return dataclasses.replace(domain, load_extra=found)
    return dataclasses.replace(domain, load_extra=found, expert=expert, agenda_user=agenda_user)


def extra(domain: str, name: str) -> Sequence[Task] | None:
    """The tasks of a split of this module's kind, or the one generated task of that name; None for others."""
    place = _domain(domain)
    if found := _SPLIT.fullmatch(name):
        made = generate(place, int(found["count"] or COUNT), int(found["seed"] or 0))
        return [place.make_task(t) for t in made.tasks]
    if found := _TASK.fullmatch(name):
        made = generate(place, int(found["number"]) + 1, int(found["seed"]))
        return [place.make_task(made.tasks[-1])] if made.tasks[-1]["id"] == name else None
    if name.endswith(".json"):
        return [place.make_task(t) for t in read(Path(name), place)]
    return None


def expert(world: World, user: Any, seed: int) -> Expert:
    """The expert program of the world's domain."""
    from .airline_expert import AirlineExpert
    from .retail_expert import RetailExpert
    from .telecom_expert import TelecomExpert

    made = {"retail": RetailExpert, "airline": AirlineExpert, "telecom": TelecomExpert}
    return made[_part(world.domain.name)](world, user, seed)


def agenda_user(task: Task, seed: int) -> ScriptUser:
    """The scripted user of a generated task. Raises MuaError for upstream's own tasks."""
    from .script import ScriptUser
    from .telecom_expert import PhoneUser

    if "requests" not in task.scenario.agenda:
        raise MuaError(
            f"task '{task.id}' is upstream's, and has no agenda that a program could follow; let a model "
            "play the user (train_user.kind or eval_user.kind: endpoint, or local), or take generated tasks."
        )
    return (PhoneUser if "phone" in task.scenario.agenda["who"]["data"] else ScriptUser)(task, seed)


# ---------------------------------------------------------------- making and proving


def generate(
    domain: Tau2Domain, count: int, seed: int = 0, on_progress: Callable[[int], object] = lambda done: None
) -> Generated:
    """The first `count` tasks that a seed gives for a τ² domain, every one proven: the gold replayed, doing
    nothing and handing over at once without reward, and the expert's conversation with the scripted user
    with the whole reward. Tasks are kept, so that asking for more, or again, makes only what is missing.
    """
    from .make import Maker

    kept: dict[int, Maker] = domain.caches.setdefault("generated", {})
    if seed not in kept:
        kept[seed] = Maker(source(domain), seed, lambda record: prove(domain, record))
    return kept[seed].upto(count, on_progress)


def prove(domain: Tau2Domain, record: dict[str, Any]) -> str:
    """What is wrong with a task, by replay and by the expert's play; "" when nothing is."""
    return objection(domain, record) or played(domain, record)


def source(domain: Tau2Domain) -> Source:
    """Upstream's data of a domain, as it is installed."""
    from ..tau2.tasks import read_json
    from .make import Source

    part, tasks = _part(domain.name), domain.tasks_source
    if part == "telecom":
        db = tomllib.loads((tasks.folder / "db.toml").read_text(encoding="utf-8"))
    else:
        db = read_json(tasks.folder / "db.json")
    held_out = frozenset(map(str, tasks.splits.get("test", ())))
    return Source(part, db, [dict(r) for r in tasks.records.values()], held_out)


def objection(domain: Tau2Domain, record: dict[str, Any]) -> str:
    """What is wrong with a task, found by replay on fresh worlds; "" when it is sound."""
    task = domain.make_task(record)
    world = domain.open(task)
    before = world.db.digest()
    told = " ".join(record["evaluation_criteria"]["communicate_info"] or ())
    perfect: list[Message] = [Message("assistant", domain.greeting), Message("user", "Hello.")]
    for number, a in enumerate(task.actions):
        call = ToolCall(a.name, a.arguments, f"gold_{number}")
        result = world.call(a.requestor, call)
        if result.error:
            return f"a gold action fails: {a.name}"
        perfect.append(Message("user" if a.requestor == "user" else "assistant", "", (call,)))
    perfect.append(Message("assistant", told))
    if world.db.digest() == before:
        return "the gold changes nothing"
    if domain.grade(task, perfect, Termination.USER_STOP).reward < 1:
        return "the gold does not earn the reward"
    if domain.is_noop(task):
        return "doing nothing earns the reward"
    handover = ToolCall("transfer_to_human_agents", {"summary": "?"}, "handover")
    at_once = [*perfect[:2], Message("assistant", "", (handover,))]
    if domain.grade(task, at_once, Termination.USER_STOP).reward > 0:
        return "handing over at once earns the reward"
    return ""


def played(domain: Tau2Domain, record: dict[str, Any], seed: int = 0) -> str:
    """Why the expert does not solve a task with its scripted user; "" when it does."""
    from ...episode import play

    task = domain.make_task(record)
    world, user = domain.open(task), agenda_user(task, seed)
    agent = expert(world, user, seed)
    trajectory = _run(play(domain, task, agent, user, world=world, seed=seed))
    return "" if trajectory.reward == 1.0 else f"the expert fails: {trajectory.reason}"


# ---------------------------------------------------------------- files


def write(path: Path, tasks: Sequence[dict[str, Any]]) -> None:
    """Writes tasks as one JSON list in upstream's format of a task file; ours stands under the key `mua`."""
    fresh = path.with_name(f".{path.name}.new")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh.write_text(json.dumps(tasks, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def read(path: Path, domain: Tau2Domain) -> list[dict[str, Any]]:
    """The tasks of a file that `write` wrote, for this domain.

    Raises MuaError when it is none, and when a task in it has the content of an upstream task, or of a
    held-out telecom family, whatever it is called and however it is worded.
    """
    from .make import Guard

    how = f"make one by `mua benchmarks generate {domain.name} --out FILE`"
    try:
        tasks = json.loads(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise MuaError(f"the tasks in {path} cannot be read ({unreadable(exc)}); {how}.") from None
    if not isinstance(tasks, list) or not all(isinstance(t, dict) and "mua" in t for t in tasks):
        raise MuaError(f"{path} is no file of generated tasks (a JSON list, each with the key 'mua'); {how}.")
    part = _part(domain.name)
    other = {t["user_scenario"]["instructions"]["domain"] for t in tasks} - {part}
    if other:
        raise MuaError(f"the tasks in {path} are of {', '.join(sorted(other))}, not of {part}; {how}.")
    guard = Guard(source(domain))
    for task in tasks:
        if why := guard.objection(task):
            raise MuaError(
                f"task '{task['id']}' in {path} is {why}: training on it would make the evaluation "
                "worthless; take it out."
            )
        guard.add(task)
    return tasks


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing: no loop is needed, and one may be running."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("an expert and a scripted user wait for nobody")


def _domain(name: str) -> Tau2Domain:
    from .. import load

    return load(name)  # type: ignore[return-value]


def _part(domain: str) -> str:
    return domain.partition("/")[2].partition("+")[0].removesuffix("-solo")
