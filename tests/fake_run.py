"""Run folders as the trainer and the evaluator leave them, made up from a seed: what the report is tested on.

Invariant: every number in `eval/*.json` is computed from the trajectories in the `.jsonl` beside it, so a
test can compare what the page shows with the data.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from mua.chat import Message, ToolCall
from mua.coldstart.conversations import play_expert
from mua.domain import Limits
from mua.domains import load
from mua.trajectory import Segment, Termination, TokenTrace, Trajectory, Usage

POLICY = """# Borrowing desk

You work at the borrowing desk of a public library. Find the member before anything else. Say exactly what
you will do, and ask; act only after a clear yes. Record what is refused or withdrawn. Hand over complaints,
loans from other libraries and fines that the member disputes."""

TITLES = (
    "The Winter Atlas",
    "Salt and Cinders",
    "A Field of Clocks",
    "Nine Rivers",
    "The Paper Lighthouse",
    "Harbour of Glass",
    "Letters to a Cartographer",
    "The Slow Orchard",
)
NAMES = ("Ada Moreno", "Jonas Lind", "Priya Raman", "Tomás Ferreira", "Mei Tanaka", "Élodie Garnier")

# kind: share of the tasks, and how often base, cold start and RL solve it (start and end of the run)
KINDS: dict[str, tuple[float, float, float, float]] = {
    "renew": (12, 0.04, 0.80, 0.97),
    "reserve": (20, 0.06, 0.86, 0.98),
    "no_card": (8, 0.0, 0.62, 0.93),
    "wrong_card": (11, 0.0, 0.24, 0.88),
    "fines": (7, 0.0, 0.20, 0.83),
    "expired": (7, 0.0, 0.26, 0.86),
    "waiting": (7, 0.0, 0.17, 0.71),
    "limit": (7, 0.0, 0.40, 0.62),
    "switch": (13, 0.0, 0.31, 0.90),
    "withdraw": (10, 0.0, 0.15, 0.94),
    "two": (9, 0.0, 0.22, 0.58),
    "handover": (6, 0.02, 0.90, 0.87),
}
REASON = {"fines": "fines", "expired": "expired", "waiting": "waiting", "limit": "limit"}
TOOLS = (
    "find_member_by_card",
    "check_loan",
    "renew_loan",
    "reserve_title",
    "record_case",
    "transfer_to_human",
)


@dataclass(frozen=True)
class FakeTask:
    id: str
    kind: str
    card: str
    name: str
    title: str
    other: str


def make_tasks(count: int, rng: random.Random, split: str = "test") -> list[FakeTask]:
    kinds, weights = list(KINDS), [k[0] for k in KINDS.values()]
    tasks = []
    for n in range(count):
        card = "".join(
            (rng.choice("KMPRT"), rng.choice("23456789"), rng.choice("QWXYZ"), rng.choice("23456789"))
        )
        title, other = rng.sample(TITLES, 2)
        kind = kinds[n] if n < len(kinds) else rng.choices(kinds, weights)[0]
        tasks.append(FakeTask(f"{split}-{n:04d}", kind, card, rng.choice(NAMES), title, other))
    return tasks


class _Talk:
    """Collects the messages of one conversation."""

    def __init__(self, task: FakeTask) -> None:
        self.task = task
        self.messages = [Message("system", POLICY)]
        self.errors = 0

    def user(self, text: str) -> None:
        self.messages.append(Message("user", text))

    def agent(self, text: str) -> None:
        self.messages.append(Message("assistant", text))

    def call(self, name: str, answer: Any, **arguments: Any) -> None:
        number = sum(m.role == "tool" for m in self.messages) + 1
        error = isinstance(answer, str)
        text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
        call_id = f"call_{number}"
        self.messages.append(Message("assistant", tool_calls=(ToolCall(name, arguments, call_id),)))
        self.messages.append(Message("tool", text, tool_call_id=call_id, error=error))
        self.errors += error

    def find(self, card: str | None = None) -> None:
        t = self.task
        if card and card != t.card:
            self.call("find_member_by_card", f"Error: no member has card {card}", card=card)
            return
        status = "expired" if t.kind == "expired" else "active"
        owed = 14.5 if t.kind == "fines" else 0.0
        member = {"card": t.card, "name": t.name, "status": status, "fines_due": owed}
        self.call("find_member_by_card", member, card=t.card)

    def loan(self) -> None:
        t = self.task
        loan = {
            "title": t.title,
            "due": "2026-03-09",
            "renewals": 2 * (t.kind == "limit"),
            "waiting": 3 * (t.kind == "waiting"),
        }
        self.call("check_loan", loan, card=t.card, title=t.title)

    def reserve(self, title: str) -> None:
        self.call("reserve_title", {"reserved": title, "branch": "Central"}, card=self.task.card, title=title)

    def renew(self) -> None:
        t = self.task
        self.call("renew_loan", {"renewed": t.title, "due": "2026-03-23"}, card=t.card, title=t.title)

    def case(self, request: str, outcome: str, reason: str) -> None:
        row = {"card": self.task.card, "request": request, "outcome": outcome, "reason": reason}
        self.call("record_case", {"recorded": f"{outcome}: {reason}"}, **row)

    def bye(self) -> Termination:
        self.agent("Done. Is there anything else?")
        self.user("No, thanks. ###STOP###")
        return Termination.USER_STOP


def converse(task: FakeTask, good: bool, rng: random.Random) -> tuple[_Talk, Termination, str]:
    """One conversation: (messages, termination, the verdict in words)."""
    talk, t, kind = _Talk(task), task, task.kind
    # The user's first words depend on the task only, as with a seeded user.
    opening = random.Random(task.id).choice(("Good morning. ", "Hi. ", "Quick one: "))
    fine = "end state equals gold"
    if kind == "handover":
        talk.user("I was charged for a book I brought back. I want to complain about this desk.")
        if good:
            talk.call(
                "transfer_to_human",
                {"transferred": "complaint"},
                reason="complaint",
                summary="Complaint about a charge",
            )
            return talk, Termination.AGENT_TRANSFER, fine
        talk.agent("I am sorry to hear that. What is your card number?")
        talk.user(f"Card {t.card}. I want to complain, that is all.")
        talk.find()
        talk.agent("Thank you. Shall I reserve a title for you?")
        talk.user("No. I want to speak to somebody. ###STOP###")
        return (
            talk,
            Termination.USER_STOP,
            "end state (here) differs from gold (there): handovers complaint: missing here",
        )
    if not good and rng.random() < 0.10:
        talk.user(f'Hello! Can you renew "{t.title}"?')
        for _ in range(5):
            talk.agent("May I have your card number?")
            talk.user(f"Card {t.card}.")
        return talk, Termination.TURN_CAP, "not scored: the episode ended by turn_cap"
    wants_renewal = kind in ("renew", "waiting", "limit")
    verb = "renew" if wants_renewal else "reserve"
    wish = f'{opening}Please {verb} "{t.title}".'
    swapped = t.card[1] + t.card[0] + t.card[2:]
    if kind == "no_card":
        talk.user(wish)
        talk.agent("Of course. May I have your card number?")
        talk.user(f"Card {t.card}.")
    else:
        talk.user(f"{wish} My card is {swapped if kind == 'wrong_card' else t.card}.")
    if kind == "wrong_card":
        talk.find(swapped)
        if not good:
            for _ in range(rng.randint(1, 3)):
                talk.find(swapped)
            talk.call(
                "transfer_to_human",
                {"transferred": "not_identified"},
                reason="not_identified",
                summary="No such card",
            )
            return (
                talk,
                Termination.AGENT_TRANSFER,
                (
                    f"end state (here) differs from gold (there): reservations {t.card}/{t.title}: "
                    "missing here; handovers not_identified: only here"
                ),
            )
        talk.agent(f"I find no member with card {swapped}. Could you check the number, please?")
        talk.user(f"Oh, my mistake: {t.card}.")
    talk.find()
    if wants_renewal:
        talk.loan()
    reason = REASON.get(kind)
    if reason and good:
        talk.case(verb, "refused", reason)
        talk.agent(
            f'I am sorry, {t.name.split()[0]}, I cannot {verb} "{t.title}": {reason}. Is there anything else?'
        )
        talk.user("That is all. ###STOP###")
        return talk, Termination.USER_STOP, fine
    talk.agent(f'Thank you, {t.name.split()[0]}. Shall I {verb} "{t.title}" for you?')
    if reason:
        talk.user("Yes, go ahead.")
        (talk.renew if wants_renewal else lambda: talk.reserve(t.title))()
        return (
            talk,
            talk.bye(),
            (
                f"end state (here) differs from gold (there): {'loans' if wants_renewal else 'reservations'} "
                f"{t.card}/{t.title}: changed here; cases {t.card}/{verb}: missing here"
            ),
        )
    if kind == "switch":
        talk.user(f'Wait, I meant "{t.other}".')
        if good:
            talk.agent(f'No problem. Shall I reserve "{t.other}" instead?')
            talk.user("Yes, please.")
            talk.reserve(t.other)
            return talk, talk.bye(), fine
        talk.reserve(t.title)
        return (
            talk,
            talk.bye(),
            (
                f"end state (here) differs from gold (there): reservations {t.card}/{t.title}: only here; "
                f"reservations {t.card}/{t.other}: missing here"
            ),
        )
    if kind == "withdraw":
        talk.user("Actually no, leave it.")
        if good:
            talk.case(verb, "withdrawn", "changed_mind")
            talk.agent("That is fine, I changed nothing. Is there anything else?")
            talk.user("No, bye. ###STOP###")
            return talk, Termination.USER_STOP, fine
        talk.reserve(t.title)
        return (
            talk,
            talk.bye(),
            (
                f"end state (here) differs from gold (there): reservations {t.card}/{t.title}: only here; "
                f"cases {t.card}/{verb}: missing here"
            ),
        )
    talk.user("Yes, please.")
    if not good and rng.random() < 0.3:
        for _ in range(10):
            talk.call(
                "reserve_title",
                "Error: reserve_title was not called: 'title' is missing. Usage: reserve_title(card, title)",
                card=t.card,
            )
        return talk, Termination.TOO_MANY_ERRORS, "not scored: the episode ended by too_many_errors"
    if good or kind == "two":
        (talk.renew if wants_renewal else lambda: talk.reserve(t.title))()
        if kind == "two":
            talk.agent("Done. Is there anything else?")
            talk.user(f'Yes. I also want to reserve "{t.other}".')
            if good:
                talk.agent(f'Shall I reserve "{t.other}" too?')
                talk.user("Sure.")
                talk.reserve(t.other)
            else:
                talk.reserve(t.title + "?")
        return (
            talk,
            talk.bye(),
            fine
            if good
            else f"end state (here) differs from gold (there): reservations {t.card}/{t.other}: missing here",
        )
    wrong = rng.choice([x for x in TITLES if x != t.title])
    talk.call(
        f"{verb}_title" if verb == "reserve" else "renew_loan", {"done": wrong}, card=t.card, title=wrong
    )
    return (
        talk,
        talk.bye(),
        (
            f"end state (here) differs from gold (there): reservations {t.card}/{wrong}: only here; "
            f"reservations {t.card}/{t.title}: missing here"
        ),
    )


def play(task: FakeTask, chance: float, rng: random.Random, **where: Any) -> Trajectory:
    """A trajectory that is solved with the given chance; one in 200 has no score (infrastructure)."""
    good = rng.random() < chance
    talk, termination, reason = converse(task, good, rng)
    reward: float | None = float(good)
    detail = ""
    if rng.random() < 0.005:
        termination, reward, detail = (
            Termination.USER_FAILED,
            None,
            "the user endpoint answered 503 three times",
        )
        reason = f"not scored: {detail}"
    steps = sum(m.role == "assistant" for m in talk.messages)
    return Trajectory(
        domain="library:desk",
        task_id=task.id,
        kind=task.kind,
        fingerprint=f"{task.card}-{task.title}",
        messages=talk.messages,
        termination=termination,
        seed=rng.randrange(2**31),
        reward=reward,
        components={"state": reward or 0.0},
        reason=reason,
        detail=detail,
        usage=Usage(
            agent_steps=steps,
            agent_tokens=steps * rng.randint(18, 30),
            user_turns=sum(m.role == "user" for m in talk.messages),
            tool_calls=sum(m.role == "tool" for m in talk.messages),
            tool_errors=talk.errors,
        ),
        **where,
    )


def summarise(
    name: str, model: str, temperature: float, samples: int, *, user: str, played: Sequence[Trajectory]
) -> dict[str, Any]:
    """eval/NAME.json of the trajectories."""
    scored = [t for t in played if t.reward is not None]
    tasks: dict[str, list[float]] = {}
    kinds: dict[str, dict[str, list[float]]] = {}
    for t in scored:
        tasks.setdefault(t.task_id, []).append(t.reward or 0.0)
        kinds.setdefault(t.kind, {}).setdefault(t.task_id, []).append(t.reward or 0.0)
    means = [sum(r) / len(r) for r in tasks.values()]
    success = sum(means) / len(means)
    half = 1.96 * math.sqrt(sum((m - success) ** 2 for m in means) / len(means) / len(means))

    def pass_hat(k: int) -> float:
        return sum(
            math.comb(int(sum(r)), k) / math.comb(len(r), k) for r in tasks.values() if len(r) >= k
        ) / len(tasks)

    return {
        "name": name,
        "model": model,
        "temperature": temperature,
        "n": len(tasks),
        "samples": samples,
        "success": success,
        "ci95": [max(0.0, success - half), min(1.0, success + half)],
        "pass_k": {str(k): pass_hat(k) for k in range(1, samples + 1)},
        "by_kind": {
            k: {"success": sum(sum(r) / len(r) for r in v.values()) / len(v), "n": len(v)}
            for k, v in sorted(kinds.items())
        },
        "terminations": dict(Counter(t.termination.value for t in played)),
        "excluded": len(played) - len(scored),
        "user": user,
        "seconds": 41.5 + 0.11 * len(played),
        "agent_tokens_per_episode": sum(t.usage.agent_tokens for t in scored) / len(scored),
        "turns": sum(t.usage.user_turns for t in scored) / len(scored),
        "split": "test",
        "domain": "library:desk",
    }


def metrics_line(step: int, steps: int, rng: random.Random) -> dict[str, Any]:
    """One line of metrics.jsonl, on the way from cold start to RL."""
    way = 1 - math.exp(-4.0 * step / steps)
    by_kind = {
        k: min(1.0, max(0.0, c + (r - c) * way + rng.gauss(0, 0.06))) for k, (_, _, c, r) in KINDS.items()
    }
    reward = sum(by_kind[k] * KINDS[k][0] for k in KINDS) / sum(v[0] for v in KINDS.values())
    episodes = 128
    calls = {
        "find_member_by_card": 1.15 - 0.1 * way,
        "check_loan": 0.25 + 0.12 * way,
        "renew_loan": 0.22 - 0.08 * way,
        "reserve_title": 0.74 - 0.12 * way,
        "record_case": 0.08 + 0.34 * way,
        "transfer_to_human": 0.27 - 0.18 * way,
    }
    ends = {
        "turn_cap": round(10 * (1 - way) + rng.random() * 3),
        "too_many_errors": round(5 * (1 - way)),
        "token_cap": round(2 * (1 - way) * rng.random()),
    }
    ends["agent_transfer"] = round(episodes * calls["transfer_to_human"] * 0.7)
    if step % 17 == 5:
        ends["user_failed"] = 2
    ends["user_stop"] = episodes - sum(ends.values())
    return {
        "step": step,
        "reward": reward,
        "all_correct": max(0.0, reward - 0.33 + rng.gauss(0, 0.04)),
        "all_wrong": max(0.0, 0.75 - reward * 0.8 + rng.gauss(0, 0.04)),
        "turns": 3.3 + 0.7 * way + rng.gauss(0, 0.08),
        "agent_steps": 5.6 + 1.1 * way + rng.gauss(0, 0.1),
        "tokens_per_step": 24.5 - 1.0 * way + rng.gauss(0, 0.3),
        "tool_calls": {k: max(0.0, v + rng.gauss(0, 0.02)) for k, v in calls.items()},
        "terminations": {k: v for k, v in ends.items() if v},
        "kl": 0.002 + 0.07 * way + abs(rng.gauss(0, 0.004)),
        "entropy": 0.33 - 0.17 * way + rng.gauss(0, 0.01),
        "loss": rng.gauss(0, 0.004),
        "grad_norm": abs(rng.gauss(0.42, 0.08)) + (0.9 if step % 23 == 11 else 0),
        "clip_fraction": abs(rng.gauss(0.004, 0.002)),
        "lr": 5e-5 * min(1.0, step / 5),
        "sampling_gap": abs(rng.gauss(2e-6, 4e-7)),
        "groups_played": 16,
        "groups_trained": round(16 - 6 * abs(reward - 0.5)),
        "excluded": 2 if step % 17 == 5 else 0,
        "retried": 6 if step % 17 == 5 else 0,
        "by_kind": by_kind,
        "seconds_rollout": 21 + rng.gauss(0, 1.2),
        "seconds_update": 8.5 + rng.gauss(0, 0.4),
        "agent_tokens": round(128 * 140 + rng.gauss(0, 300)),
        "user_tokens": 0,
        "user_cost": 0.0,
        "peak_mb": 1480 + min(step, 20) * 6.0,
    }


def sft_line(step: int, steps: int, rng: random.Random, floor: float) -> dict[str, Any]:
    way = step / steps
    loss = floor + 5.2 * math.exp(-9 * way) + 0.5 * math.exp(-3 * way) + abs(rng.gauss(0, 0.03))
    lr = 1.5e-3 * min(1, step / 40) * 0.5 * (1 + math.cos(math.pi * way))
    return {
        "step": step,
        "steps": steps,
        "loss": loss,
        "lr": lr,
        "tokens_per_second": 5200 + rng.gauss(0, 150),
    }


CONFIG = """\
domain: library:desk
seed: 7
model:
  base: tiny
  tiny: {{layers: 6, hidden: 256}}
coldstart: {{split: cold, conversations: 3000}}
sft: {{steps: 1200, batch_size: 32, lr: 0.0015}}
train_user: {{kind: agenda, model: ""}}
eval_user:
  kind: endpoint
  endpoint:
    base_url: https://example.invalid/v1
    api_key: sk-abcdefghijklmnopqrstuvwxyz0123
train:
  steps: {steps}
  lr: 5.0e-05
  rollout: {{groups: 16, group_size: 8}}
"""


def make_run(
    folder: Path,
    *,
    steps: int = 60,
    steps_done: int | None = None,
    tasks: int = 120,
    samples: int = 4,
    seed: int = 7,
    models: Sequence[str] = ("base", "cold_start", "rl"),
    edit: Callable[[str, list[Trajectory]], None] = lambda name, played: None,
) -> Path:
    """Writes a run folder. `steps_done` < `steps` leaves it unfinished (no summary); `edit(name, played)`
    may change the trajectories of an evaluation before its numbers are computed."""
    rng = random.Random(seed)
    done = steps if steps_done is None else steps_done
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    write(folder / "config.yaml", CONFIG.format(steps=steps))
    versions = {"mua": "0.1.0", "python": "3.12.3", "torch": "2.13.0", "transformers": "5.23.0"}
    hashes = {"cold": "9f2c41d07ab3", "train": "77e0b91c55fa", "test": "03d5aa1be2c8"}
    manifest = {
        "run": "quickstart",
        "versions": versions,
        "device": "cpu (2 cores)",
        "seed": seed,
        "git": "a832fa3",
        "data": hashes,
    }
    write(folder / "manifest.json", json.dumps(manifest))
    for name, count, floor in (("sft_agent", 1200, 0.055), ("sft_user", 800, 0.16)):
        write_lines(
            folder / f"{name}.jsonl", [sft_line(s, count, rng, floor) for s in range(10, count + 1, 10)]
        )
    write_lines(folder / "metrics.jsonl", [metrics_line(s, steps, rng) for s in range(1, done + 1)])
    train = make_tasks(16, rng, "train")
    rollouts = [
        play(t, 0.5, rng, step=s, sample=i, user="agenda")
        for s in range(1, done + 1, 10)
        for t in train
        for i in range(2)
    ]
    write_lines(folder / "trajectories.jsonl", [t.to_dict() for t in rollouts])
    test = make_tasks(tasks, rng)
    column = {"base": 1, "cold_start": 2, "rl": 3}
    for model in models:
        for label, temperature, count in (("t1", 1.0, samples), ("greedy", 0.0, 1)):
            name = f"{model}_{label}"
            bonus = 0.04 if temperature == 0 and model != "base" else 0.0
            played = [
                play(t, min(1.0, KINDS[t.kind][column[model]] + bonus), rng, sample=i, user="lm")
                for t in test
                for i in range(count)
            ]
            edit(name, played)
            write_lines(folder / "eval" / f"{name}.jsonl", [t.to_dict() for t in played])
            report = summarise(name, model, temperature, count, user="lm", played=played)
            write(folder / "eval" / f"{name}.json", json.dumps(report))
    if done == steps:
        summary = {
            "run": "quickstart",
            "domain": "library:desk",
            "model": "tiny Llama, made on the spot",
            "parameters": 4_812_032,
            "seed": seed,
            "train_user": "agenda",
            "eval_user": "lm",
            "seconds": {"conversations": 12.7, "sft": 800.0, "grpo": 1500.0, "eval": 100.0},
            "peak_mb": 1612.0,
            "sft_conversations": 3000,
            "rl_steps": steps,
        }
        write(folder / "summary.json", json.dumps(summary))
    return folder


def add_rollouts(folder: Path, count: int, steps: int = 100, seed: int = 3) -> None:
    """Appends so many training rollouts to trajectories.jsonl, over `steps` steps: a few hundred different
    ones, told apart by their tasks."""
    rng = random.Random(seed)
    different = [
        json.dumps(play(t, 0.5, rng, step=-7, sample=rng.randrange(8), user="agenda").to_dict())
        for t in make_tasks(300, rng, "train")
    ]
    with (folder / "trajectories.jsonl").open("a", encoding="utf-8") as file:
        for n in range(count):
            line = different[n % 300].replace('"step": -7', f'"step": {1 + n * steps // count}', 1)
            file.write(line.replace('"task_id": "train-', f'"task_id": "train-{n // 300}-', 1) + "\n")


def real_run(folder: Path, tasks: int = 16) -> Path:
    """A run whose conversations were really played in `library:desk`, so that they can be audited and
    replayed: `cold_start` is the hasty expert, `rl` the good one. Every second rollout has its tokens."""
    domain = load("library:desk")
    test = domain.tasks("test")[:tasks]
    (folder / "eval").mkdir(parents=True)
    write(folder / "config.yaml", "domain: library:desk\nseed: 0\n")

    async def of(hasty: bool) -> list[Trajectory]:
        return [await play_expert(domain, t, n, Limits(), hasty=hasty) for n, t in enumerate(test)]

    with ThreadPoolExecutor() as pool:  # a browser may hold this thread's event loop
        played = {m: pool.submit(asyncio.run, of(m == "cold_start")).result() for m in ("cold_start", "rl")}
    for model, list_ in played.items():
        for t in list_:
            t.trace = None
        write_lines(folder / "eval" / f"{model}_t1.jsonl", [t.to_dict() for t in list_])
        figures = summarise(f"{model}_t1", model, 1.0, 1, user="agenda", played=list_)
        write(folder / "eval" / f"{model}_t1.json", json.dumps(figures))
    for n, t in enumerate(played["rl"]):
        t.step = 1 + n // 4
        t.trace = (
            TokenTrace([Segment([1, 2, 3, 0], [0, 1, 1, 0], [0.0, -0.01, -2.5, 0.0])]) if n % 2 else None
        )
    write_lines(folder / "trajectories.jsonl", [t.to_dict() for t in played["rl"]])
    write_lines(folder / "metrics.jsonl", [metrics_line(s, 4, random.Random(s)) for s in (1, 2, 3, 4)])
    tokenizer = Tokenizer(WordLevel({"<end>": 0, "Hello": 1, " reader": 2, "\n": 3}, unk_token="<end>"))
    (folder / "models" / "rl").mkdir(parents=True)
    tokenizer.save(str(folder / "models" / "rl" / "tokenizer.json"))
    return folder


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    write(path, "".join(json.dumps(line) + "\n" for line in lines))
