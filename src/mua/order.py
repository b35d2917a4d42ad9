"""Which task comes next: an endless sequence over the tasks of one domain or, by weight, of several.

Invariants:
- A draw depends on the tasks, the seed, its position and (with a curriculum) the results so far, and on
  nothing else; a run that is resumed with the count of its draws and `state` goes on as it would have.
- Of several domains, after n draws each has had its share of them, to within one draw a domain.
- A curriculum leaves no task out: a share of the draws is taken evenly from all tasks.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from .domain import Domain, Task
from .errors import MuaError
from .seeds import derive_seed


class CurriculumSettings(BaseModel):
    """Tasks that the model solves sometimes are drawn more often: a group whose rewards are all equal teaches
    nothing. How hard a task is, is measured by the episodes of the run itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    even: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="Share of the draws that is taken evenly from all tasks; the rest by p (1 - p), with p "
        "the estimated rate of success.",
    )
    memory: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="What earlier results of a task still count for, each time that it is played again: the "
        "model changes.",
    )


PRIOR = 2.0
"""Episodes that the success of a task's kind counts for in the estimate of the task, and an even chance in
that of the kind."""


class Order:
    """The sequence of tasks of one run. `label` tells sequences of one seed apart."""

    def __init__(
        self,
        domain: Domain,
        tasks: Sequence[Task],
        seed: int,
        curriculum: CurriculumSettings | None = None,
        label: str = "tasks",
    ):
        """Raises MuaError when there are no tasks."""
        if not tasks:
            raise MuaError(
                f"there are no tasks of '{domain.name}' to draw from; choose a split that has some"
            )
        self._seed, self._label, self._curriculum = seed, label, curriculum
        self._parts: dict[str, list[Task]] = {}
        self._home: dict[str, str] = {}
        for task in tasks:
            self._home[task.id] = domain.of(task)[0].name
            self._parts.setdefault(self._home[task.id], []).append(task)
        self._weights = {name: domain.weights.get(name, 1.0) for name in self._parts}
        self._epochs: dict[str, tuple[int, list[int]]] = {}
        self._turns: list[tuple[str, int]] = []
        self._counts = dict.fromkeys(self._parts, 0)
        self._results: dict[str, tuple[float, float]] = {}
        """Successes and episodes of each task (`task ID`) and kind (`kind PART KIND`), faded by `memory`."""

    def draw(self, at: int, count: int) -> list[Task]:
        """The tasks at positions `at` to `at + count - 1`. With a curriculum, no task comes twice among
        them while its domain has others."""
        out: list[Task] = []
        chances: dict[str, dict[str, float]] = {}
        for position in range(at, at + count):
            part, number = self._turn(position)
            tasks, seed = self._parts[part], self._seed
            if len(self._parts) > 1:
                seed = derive_seed(seed, part)
            if self._curriculum is None:
                epoch, place = divmod(number, len(tasks))
                out.append(tasks[self._epoch(part, seed, epoch)[place]])
                continue
            if part not in chances:
                chances[part] = self.chances(part)
            taken = {task.id for task in out}
            left = [task for task in tasks if task.id not in taken] or tasks
            rng = random.Random(derive_seed(seed, self._label, "curriculum", number))
            out += rng.choices(left, [chances[part][task.id] for task in left])
        return out

    def _epoch(self, part: str, seed: int, epoch: int) -> list[int]:
        """Without a curriculum, every epoch is a new shuffle of all tasks."""
        known = self._epochs.get(part)
        if known is None or known[0] != epoch:
            order = list(range(len(self._parts[part])))
            random.Random(derive_seed(seed, self._label, epoch)).shuffle(order)
            self._epochs[part] = known = (epoch, order)
        return known[1]

    def _turn(self, position: int) -> tuple[str, int]:
        """The domain whose turn it is, and how often it has been before: the one that is furthest behind its
        share."""
        whole = sum(self._weights.values())
        while len(self._turns) <= position:
            due = len(self._turns) + 1
            part = max(self._parts, key=lambda p: self._weights[p] / whole * due - self._counts[p])
            self._turns.append((part, self._counts[part]))
            self._counts[part] += 1
        return self._turns[position]

    # ------------------------------------------------------------ curriculum

    def observe(self, results: Iterable[tuple[Task, Sequence[float]]]) -> None:
        """Notes the rewards of the groups of one step, in their order; without a curriculum, nothing."""
        if self._curriculum is None:
            return
        new: dict[str, list[float]] = {}
        for task, rewards in results:
            for key in (f"task {task.id}", self._kind(task)):
                new.setdefault(key, []).extend(min(1.0, max(0.0, reward)) for reward in rewards)
        for key, rewards in new.items():
            if rewards:
                won, played = self._results.get(key, (0.0, 0.0))
                fade = self._curriculum.memory
                self._results[key] = (fade * won + sum(rewards), fade * played + len(rewards))

    def success(self, task: Task) -> float:
        """The estimated rate of success: of the task's own results, drawn towards those of its kind."""
        won, played = self._results.get(self._kind(task), (0.0, 0.0))
        kind = (won + PRIOR / 2) / (played + PRIOR)
        won, played = self._results.get(f"task {task.id}", (0.0, 0.0))
        return (won + PRIOR * kind) / (played + PRIOR)

    def chances(self, part: str) -> dict[str, float]:
        """The chance of each task of a domain (by name) to be drawn when it is the domain's turn."""
        assert self._curriculum is not None
        tasks, even = self._parts[part], self._curriculum.even
        spread = [p * (1 - p) for p in map(self.success, tasks)]  # never 0: see PRIOR
        whole = sum(spread)
        return {t.id: even / len(tasks) + (1 - even) * s / whole for t, s in zip(tasks, spread, strict=True)}

    def _kind(self, task: Task) -> str:
        return f"kind {self._home[task.id]} {task.kind}"

    def state(self) -> dict[str, list[float]]:
        """What a checkpoint keeps beside the count of draws; empty without a curriculum."""
        return {key: list(pair) for key, pair in self._results.items()}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Goes on from `state`."""
        self._results = {key: (pair[0], pair[1]) for key, pair in state.items()}
