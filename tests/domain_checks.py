"""What every synthetic domain is held to; the tests of each call these."""

import asyncio
import collections
import hashlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

from mua.coldstart.conversations import play_expert
from mua.domain import check_no_noop, check_no_overlap
from mua.episode import Limits, play
from toy import ScriptAgent

DIGEST = """
import hashlib, json, sys
from mua.domains import load
domain = load(sys.argv[1])
tasks = [t for split in domain.splits for t in domain.tasks(split)]
told = [[t.id, t.kind, t.fingerprint, t.scenario.goal, t.scenario.persona] for t in tasks]
print(domain.base.open().digest(), hashlib.sha256(json.dumps(told).encode()).hexdigest())
"""


def every_task(domain):
    return [task for split in domain.splits for task in domain.tasks(split)]


def expert_talks(domain, seed=11):
    """(task, conversation of expert and scripted user) for every task of every split."""

    async def go():
        return [(t, await play_expert(domain, t, seed, Limits())) for t in every_task(domain)]

    return asyncio.run(go())


def check_tasks(domain):
    """Sizes as promised; distinct over all splits; every kind in each; none is solved by doing nothing."""
    tasks = every_task(domain)
    sizes = {split: len(domain.tasks(split)) for split in domain.splits}
    assert len(tasks) >= 1200 and sizes["train"] >= 800 and sizes["dev"] >= 100 and sizes["test"] >= 150
    kinds = {t.kind for t in tasks}
    assert len(kinds) >= 12
    assert all({t.kind for t in domain.tasks(split)} == kinds for split in domain.splits)
    assert len({t.fingerprint for t in tasks}) == len({t.id for t in tasks}) == len(tasks)
    for split in domain.splits:
        others = [t for s in domain.splits if s != split for t in domain.tasks(s)]
        check_no_overlap(domain.tasks(split), others, split)
    check_no_noop(domain, tasks)
    for task in tasks:
        assert task.actions and all(a.name in domain.tools(a.requestor) for a in task.actions)


def check_talks(domain, talks, violations, errors=frozenset()):
    """The expert solves every task without a breach or (but for the kinds in `errors`) a failed call, a
    replay of what is stored agrees, and every tool is used somewhere."""
    used = collections.Counter()
    for task, talk in talks:
        assert talk.reward == 1.0, (task.id, task.kind, talk.reason)
        assert violations(task, talk.messages) == [], task.id
        again = domain.grade(task, talk.messages, talk.termination)
        assert (again.reward, again.reason) == (talk.reward, talk.reason)
        failed = [m.content for m in talk.messages if m.error]
        assert not failed or task.kind in errors, (task.id, task.kind, failed)
        replayed = domain.open(task)
        for message in talk.messages:
            side = "user" if message.role == "user" else "assistant"
            for call in message.tool_calls:
                used[side, call.name] += 1
                assert replayed.call(side, call).error == _failed(talk.messages, call), (task.id, call)
    assert set(used) == {(side, name) for side in domain.toolkits for name in domain.tools(side)}
    assert domain.base.recompute_sum() == domain.base.digest_sum()


def _failed(messages, call):
    return next(m.error for m in messages if m.tool_call_id == call.id)


def check_blind_expert(domain):
    """The expert solves a task of every kind in a world that hides the task; of the user it gets the acts."""

    class Behind:
        name = "behind"

        def __init__(self, user):
            self.__user = user

        @property
        def act(self):
            return self.__user.act

        async def reply(self, view):
            return await self.__user.reply(view)

    first = {t.kind: t for t in reversed(domain.tasks("test"))}
    for task in first.values():
        world, user = domain.open(task), Behind(domain.agenda_user(task, 5))
        world.task = SimpleNamespace(id="hidden")
        expert = domain.expert(world, user, 5)
        talk = asyncio.run(play(domain, task, expert, user, world=world))
        assert talk.reward == 1.0, (task.id, talk.reason)


def check_idle_agents(domain):
    """Who does nothing, or says that it is done, earns nothing."""

    async def reward(task, text):
        agent = ScriptAgent(*[text] * 9)
        talk = await play(domain, task, agent, domain.agenda_user(task, 1), limits=Limits(turns=4))
        return talk.reward

    for text in ("Sorry, I cannot help you. Goodbye!", "Done, it is all taken care of. Anything else?"):
        for task in [*domain.tasks("dev"), *domain.tasks("test")]:
            assert asyncio.run(reward(task, text)) == 0.0, task.id


def check_same_everywhere(domain):
    """Another process makes the same database and the same tasks."""
    tasks = every_task(domain)
    told = [[t.id, t.kind, t.fingerprint, t.scenario.goal, t.scenario.persona] for t in tasks]
    here = f"{domain.base.open().digest()} {hashlib.sha256(json.dumps(told).encode()).hexdigest()}"
    run = subprocess.run(
        [sys.executable, "-c", DIGEST, domain.name],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == here


def check_frozen_openings(domain, tasks):
    """In training the opening is fixed beforehand: another user object goes on from it, and gets there."""

    async def reward(task):
        opening = (await domain.agenda_user(task, 1).reply([])).text
        user, world = domain.agenda_user(task, 2), domain.open(task)
        talk = await play(domain, task, domain.expert(world, user, 2), user, world=world, opening=opening)
        return talk.reward

    assert {task.id: asyncio.run(reward(task)) for task in tasks} == {task.id: 1.0 for task in tasks}
