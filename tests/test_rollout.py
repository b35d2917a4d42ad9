"""Groups of episodes: seeds by name, one opening a group, failures that stay where they happen."""

import asyncio
import random

import pytest

from mua.agents import AgentStep
from mua.chat import Message, ToolCall
from mua.errors import InfrastructureError
from mua.rollout import Group, RolloutSettings, in_time, play_groups
from mua.trajectory import Termination, Usage
from mua.users import STOP, UserTurn
from toy import ScriptAgent, ScriptUser, toy_domain


class Roller:
    """An agent whose every act is drawn from its own seed: it cancels the order in half of its episodes."""

    trace = None

    def __init__(self, task, seed, fail=False):
        self.order, self.rng, self.fail, self.calls = (
            task.scenario.facts["order number"],
            random.Random(seed),
            fail,
            0,
        )

    async def step(self, messages):
        for _ in range(self.rng.randrange(4)):  # episodes overtake each other
            await asyncio.sleep(0)
        self.calls += 1
        if self.calls == 1 and self.rng.random() < 0.5:
            return AgentStep(
                Message("assistant", tool_calls=(ToolCall("cancel_order", {"order_id": self.order}),)),
                tokens=3,
            )
        if self.fail:
            raise InfrastructureError("engine down")
        return AgentStep(Message("assistant", f"said {self.rng.random()}"), tokens=2)

    def close(self):
        pass


class Talker:
    """A user whose words are drawn from its seed; it says two things, then stops."""

    name = "talker"

    def __init__(self, seed, on_reply=lambda view: None):
        self.rng, self.on_reply, self.closed = random.Random(seed), on_reply, False

    async def reply(self, view):
        self.on_reply(list(view))
        await asyncio.sleep(0)
        said = sum(m.role == "user" for m in view)
        usage = Usage(user_tokens=7)
        return UserTurn(STOP if said == 2 else f"word {self.rng.random()}", stop=said == 2, usage=usage)

    def close(self):
        self.closed = True


def play(domain, tasks, make_agent, make_user, seed=1, share=(0, 1), **settings):
    chosen = RolloutSettings(group_size=4, **settings)
    playing = play_groups(domain, tasks, make_agent, make_user, chosen, seed=seed, step=3, share=share)
    return asyncio.run(playing)


def record(group):
    return [t.to_dict() for t in group.trajectories]


def test_episodes_depend_on_nothing_but_their_names():
    domain = toy_domain()
    tasks = domain.tasks("train")

    def run(tasks, **settings):
        return play(
            domain, tasks, lambda t, s, seed: Roller(t, seed), lambda t, seed: Talker(seed), **settings
        )

    groups = run(tasks)
    assert [g.task for g in groups] == list(tasks)
    # another concurrency, or other tasks beside it: the same episodes
    for other in (run(tasks, concurrency=1), run(tasks[::-1])[::-1]):
        assert [record(g) for g in groups] == [record(g) for g in other]
    assert record(run(tasks[2:3])[0]) == record(groups[2])
    assert record(run(tasks, seed=2)[0]) != record(groups[0])
    first = groups[0]
    assert [t.sample for t in first.trajectories] == [0, 1, 2, 3] and first.trajectories[0].step == 3
    assert len({t.seed for g in groups for t in g.trajectories}) == 16
    # a task drawn twice plays other episodes the second time
    twice = run([tasks[0], tasks[0]])
    assert record(twice[0]) == record(first) and record(twice[1]) != record(first)
    # shares, as several processes play them, make up the whole
    odd, even = (run([tasks[0], *tasks, tasks[0]], share=(n, 2)) for n in (1, 0))
    whole = run([tasks[0], *tasks, tasks[0]])
    assert [record(g) for g in odd] == [record(g) for g in whole[1::2]]
    assert [record(g) for g in even] == [record(g) for g in whole[::2]]


def test_a_group_shares_its_opening_and_every_user_sees_it():
    domain, views, users = toy_domain(), [], []

    def make_user(task, seed):
        users.append(Talker(seed, views.append))
        return users[-1]

    tasks = domain.tasks("train")[:2]
    groups = play(domain, tasks, lambda t, s, seed: Roller(t, seed), make_user)
    for group in groups:
        assert {t.messages[1].content for t in group.trajectories} == {group.opening}
        assert group.opening_usage.user_tokens == 7
        # later words differ: only the first message is frozen
        assert len({t.messages[-2].content for t in group.trajectories}) > 1
    assert groups[0].opening != groups[1].opening
    assert sum(view == [] for view in views) == 2
    assert {v[0].content for v in views if v} == {g.opening for g in groups}
    assert len(users) == 2 + 8 and all(u.closed for u in users)

    views.clear()
    free = play(domain, tasks[:1], lambda t, s, seed: Roller(t, seed), make_user, freeze_opening=False)
    assert len({t.messages[1].content for t in free[0].trajectories}) == 4 and free[0].opening is None


def test_a_user_that_opens_with_a_tool_is_not_frozen():
    domain = toy_domain()

    class Opener(Talker):
        async def reply(self, view):
            if not view:
                return UserTurn("", (ToolCall("look", {}, "u1"),))
            return await super().reply(view)

    (group,) = play(
        domain, domain.tasks("train")[:1], lambda t, s, seed: Roller(t, seed), lambda t, seed: Opener(seed)
    )
    assert group.opening is None and len(group.trajectories) == 4


def test_failures_are_played_again_then_left_out_and_change_no_other_episode():
    domain = toy_domain()
    tasks = domain.tasks("train")[:2]

    def run(broken):
        """`broken`: sessions (…/sample/attempt of the first task) whose engine fails."""

        def make_agent(task, session, seed):
            tail = tuple(map(int, session.split("/")[-2:]))
            if task is tasks[0] and tail == (3, 1) and (3, 1) in broken:
                raise InfrastructureError("no engine")
            return Roller(task, seed, fail=task is tasks[0] and tail in broken)

        return play(domain, tasks, make_agent, lambda t, seed: Talker(seed))

    whole = run(set())
    first, second = run({(1, 1), (2, 1), (2, 2), (2, 3), (3, 1)})
    assert record(second) == record(whole[1])
    assert [t.sample for t in first.trajectories] == [0, 1, 3]
    assert record(first)[0] == record(whole[0])[0]
    assert [t.attempts for t in first.trajectories] == [1, 2, 2]
    # An attempt is the same episode again: what it earns does not depend on what broke before.
    again = [{**t, "attempts": 1} for t in record(first)]
    assert again == [t for t in record(whole[0]) if t["sample"] != 2]
    assert (first.excluded, first.retried) == (1, 4)
    (lost,) = first.failed
    assert lost.reward is None and lost.termination is Termination.ENGINE_FAILED and lost.attempts == 3
    assert len(first.rewards) == 3


def test_without_an_opening_the_whole_group_is_left_out():
    domain = toy_domain()

    def make_user(task, seed):
        return ScriptUser(InfrastructureError("down"))

    (group,) = play(domain, domain.tasks("train")[:1], lambda *_: ScriptAgent(), make_user)
    assert (group.excluded, group.retried, group.trajectories) == (4, 2, [])
    assert group.constant and not group.all_correct and not group.all_wrong


def test_a_bug_is_raised_as_it_is():
    domain = toy_domain()
    with pytest.raises(ZeroDivisionError):
        play(
            domain,
            domain.tasks("train"),
            lambda *_: ScriptAgent(ZeroDivisionError()),
            lambda *_: ScriptUser("a"),
        )


def test_concurrency_is_bounded():
    domain, live = toy_domain(), []

    class Counted(Roller):
        def __init__(self, task, seed):
            super().__init__(task, seed)
            live.append((len(live) and live[-1] + 1) or 1)

        def close(self):
            live.append(live[-1] - 1)

    play(
        domain,
        domain.tasks("train"),
        lambda t, s, seed: Counted(t, seed),
        lambda t, seed: Talker(seed),
        concurrency=3,
    )
    assert max(live) == 3 and live[-1] == 0


@pytest.mark.parametrize(
    ("rewards", "constant", "all_correct", "all_wrong"),
    [
        ([1, 0], False, False, False),
        ([1, 1], True, True, False),
        ([0, 0], True, False, True),
        ([1], True, True, False),
        ([], True, False, False),
        ([0.5, 0.5], True, False, False),
    ],
)
def test_signal(rewards, constant, all_correct, all_wrong):
    domain = toy_domain()
    task = domain.tasks("train")[0]
    (group,) = play(domain, [task], lambda *_: ScriptAgent(), lambda *_: ScriptUser("hi"))
    group = Group(task, group.trajectories[: len(rewards)])
    for trajectory, reward in zip(group.trajectories, rewards, strict=True):
        trajectory.reward = reward
    assert (group.constant, group.all_correct, group.all_wrong) == (constant, all_correct, all_wrong)


# Spare episodes and groups


class Sized:
    """An agent whose steps have drawn numbers of tokens, and take as long as `pace` says. It cancels the
    order, as it should, in a quarter of its episodes."""

    trace = None
    live, steps = 0, 0

    def __init__(self, task, seed, pace, fail=False):
        self.rng, self.pace, self.fail = random.Random(seed), pace, fail
        self.order = task.scenario.facts["order number"] if self.rng.random() < 0.25 else None
        Sized.live += 1

    async def step(self, messages):
        for _ in range(self.pace()):
            await asyncio.sleep(0)
        if self.fail:
            raise InfrastructureError("engine down")
        Sized.steps += 1
        call = (ToolCall("cancel_order", {"order_id": self.order}),) if self.order else ()
        self.order = None
        words = "" if call else f"said {self.rng.random()}"
        return AgentStep(Message("assistant", words, tool_calls=call), tokens=self.rng.randrange(1, 90))

    def close(self):
        Sized.live -= 1


def sized(pace_seed, tasks=None, share=(0, 1), wanted=None, broken=(), size=4, **settings):
    """Groups of `Sized` agents; `broken` samples fail each time."""
    domain, pace = toy_domain(), random.Random(pace_seed)
    tasks = tasks or domain.tasks("train")

    def make_agent(task, session, seed):
        sample = int(session.split("/")[-2])
        return Sized(task, seed, lambda: pace.choice([0, 0, 1, 40]), fail=sample in broken)

    Sized.steps = 0
    groups = asyncio.run(
        play_groups(
            domain,
            tasks,
            make_agent,
            lambda task, seed: Talker(seed),
            RolloutSettings(group_size=size, **settings),
            seed=9,
            wanted=wanted,
            share=share,
        )
    )
    assert Sized.live == 0
    return groups


def sizes(group):
    return sorted((t.usage.agent_tokens, t.sample) for t in group.trajectories)


def test_the_shortest_episodes_count_however_fast_they_ran():
    tasks = toy_domain().tasks("train")
    everything = sized(0, size=9)
    total, fewest = Sized.steps, 10**9
    for pace in range(6):
        groups = sized(pace, spare_episodes=5)
        fewest = min(fewest, Sized.steps)
        for group, full in zip(groups, everything, strict=True):
            best = sizes(full)[:4]
            assert sizes(group) == best and group.cut == 5
            assert group.length == best[-1][0]
            by_sample = {t.sample: t.to_dict() for t in full.trajectories}
            assert record(group) == [by_sample[t.sample] for t in group.trajectories]
    assert len(tasks) == len(everything) and fewest < total  # some were stopped on the way


def test_spare_episodes_take_the_places_of_broken_ones():
    everything = sized(0, size=6)
    for pace in range(3):
        groups = sized(pace, spare_episodes=2, broken={1, 2}, max_attempts=2)
        for group, full in zip(groups, everything, strict=True):
            assert sizes(group) == [each for each in sizes(full) if each[1] not in (1, 2)]
            assert (group.excluded, group.cut) == (2, 0)


def test_what_broke_on_the_way_loses_no_race():
    """The tokens of a lost attempt do not count: the shortest episodes are those without failures."""
    domain, failed = toy_domain(), set()

    class Shaky(Sized):
        async def step(self, messages):
            found = await super().step(messages)
            if self.shakes.random() < 0.15:
                failed.add(self.session)
                raise InfrastructureError("engine down")
            return found

    def run(shaky):
        def make_agent(task, session, seed):
            agent = (Shaky if shaky else Sized)(task, seed, lambda: 0)
            agent.session, agent.shakes = session, random.Random(session)
            return agent

        settings = RolloutSettings(group_size=4, spare_episodes=3, max_attempts=30)
        make_user = lambda task, seed: Talker(seed)  # noqa: E731
        found = asyncio.run(
            play_groups(domain, domain.tasks("train"), make_agent, make_user, settings, seed=9)
        )
        return [[(t.sample, t.usage.agent_tokens, t.reward) for t in g.trajectories] for g in found]

    assert run(False) == run(True) and len(failed) > 3


def test_the_shortest_groups_with_a_signal_count_however_fast_they_ran():
    tasks = [*toy_domain().tasks("train"), *toy_domain().tasks("train")]
    everything = sized(0, tasks)
    signals = sorted((g.length, n) for n, g in enumerate(everything) if not g.constant)
    assert 3 < len(signals) < len(tasks)
    total, fewest = Sized.steps, 10**9
    for wanted in (1, 3, len(signals), len(tasks)):
        line = signals[wanted - 1] if wanted <= len(signals) else (10**9, 0)
        want = [
            record(g) if (g.length, n) <= line else [] for n, g in enumerate(everything)
        ]  # groups without a signal count, too, if they came in before the last that is wanted
        for pace in range(4):
            groups = in_time(sized(pace, tasks, wanted=wanted), wanted)
            fewest = min(fewest, Sized.steps)
            assert [record(g) for g in groups] == want
            assert [g.cut for g in groups] == [0 if w else 4 for w in want]
            shares = [sized(pace, tasks, wanted=wanted, share=(n, 2)) for n in (0, 1)]
            together = [g for pair in zip(*shares, strict=True) for g in pair]
            assert [record(g) for g in in_time(together, wanted)] == want
    assert fewest < total


def test_a_cancelled_call_is_no_cut():
    async def go():
        domain = toy_domain()
        playing = asyncio.create_task(
            play_groups(
                domain,
                domain.tasks("train"),
                lambda t, s, seed: Sized(t, seed, lambda: 1000),
                lambda t, seed: Talker(seed),
                RolloutSettings(group_size=4, spare_episodes=2),
                wanted=1,
            )
        )
        await asyncio.sleep(0.01)
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing

    asyncio.run(go())
    assert Sized.live == 0


def test_refilling_without_an_end_is_refused():
    with pytest.raises(ValueError, match="set refill_budget"):
        RolloutSettings(refill_rounds=None)
