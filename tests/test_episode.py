"""One conversation: how it ends, what is scored, what each side sees, and what the guards catch."""

import asyncio
import dataclasses
import json

import pytest

from mua.agents import AgentStep
from mua.chat import Message, ToolCall
from mua.coldstart.conversations import Dropped, conversations, play_expert
from mua.coldstart.verification import verify
from mua.database import Base
from mua.domain import Change, Domain, Scenario, Task, World, check_no_noop, check_no_overlap
from mua.episode import Limits, play
from mua.errors import InfrastructureError, MuaError
from mua.tools import ToolError, reads, writes
from mua.trajectory import Termination, Trajectory, read_trajectories
from mua.users import STOP, UserTurn
from toy import ScriptAgent, ScriptUser, Shop, toy_domain

CANCEL = ("cancel_order", {"order_id": "o1"})


def run(agent, user, domain=None, task=None, **settings) -> Trajectory:
    domain = domain or toy_domain()
    limits = Limits(**{k: settings.pop(k) for k in ("turns", "steps", "errors") if k in settings})
    return asyncio.run(play(domain, task or domain.tasks("train")[0], agent, user, limits=limits, **settings))


def test_a_conversation_from_first_word_to_verdict():
    agent = ScriptAgent(("get_order", {"order_id": "o1"}), "Cancel o1?", CANCEL, "It is cancelled.")
    user = ScriptUser("Cancel my order o1.", "Yes.")
    t = run(agent, user, seed=7)
    assert (t.reward, t.termination, t.reason) == (1.0, Termination.USER_STOP, "end state equals gold")
    assert [m.role for m in t.messages] == (
        ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "tool", "assistant", "user"]
    )
    assert t.messages[0].content.startswith("You work for a shop.")
    assert [m.tool_call_id for m in t.messages if m.role == "tool"] == ["call_1", "call_2"]
    u = t.usage
    assert (u.agent_steps, u.tool_calls, u.tool_errors, u.user_turns) == (4, 2, 0, 3)
    assert u.agent_tokens == 5 + 2 + 5 + 3 and t.seed == 7 and t.user == "script"
    # the user hears words, the agent sees all so far
    assert [m.content for m in user.views[2]] == [
        "Cancel my order o1.",
        "Cancel o1?",
        "Yes.",
        "It is cancelled.",
    ]
    assert [len(v) for v in agent.views] == [2, 4, 6, 8]
    assert Trajectory.from_dict(json.loads(json.dumps(t.to_dict()))) == t


@pytest.mark.parametrize(
    ("steps", "end", "reward"),
    [
        ([CANCEL], "user_stop", 1.0),
        ([], "user_stop", 0.0),
        ([("set_items", {"order_id": "o1", "count": 2})], "user_stop", 0.0),
        ([CANCEL, ("set_items", {"order_id": "o1", "count": 1.0})], "user_stop", 1.0),  # 1.0 is 1
        ([("hand_over", {"summary": "x"})], "agent_transfer", 0.0),
        ([("cancel_order", {"order_id": "o9"}), CANCEL], "user_stop", 1.0),  # a refused call changed nothing
    ],
)
def test_a_normal_end_is_scored_by_the_state(steps, end, reward):
    t = run(ScriptAgent(*steps), ScriptUser("Cancel o1."))
    assert (t.termination.value, t.reward) == (end, reward)
    assert t.components == {"state": reward}
    if not reward:
        assert "orders.o1.status: here" in t.reason


def test_a_handover_ends_at_once():
    class Hasty(ScriptAgent):
        async def step(self, messages):
            calls = (ToolCall("hand_over", {"summary": "x"}), ToolCall(*CANCEL))
            return AgentStep(Message("assistant", tool_calls=calls))

    user = ScriptUser("Cancel o1.")
    t = run(Hasty(), user)
    assert t.termination is Termination.AGENT_TRANSFER and t.usage.tool_calls == 1
    assert len(user.views) == 1 and t.messages[-1].content == "handed over"
    # and in the replay the call after it does not run either
    domain = toy_domain()
    db = domain.replay(domain.tasks("train")[0], t.messages).db
    assert db.get("orders", "o1")["status"] == "open" and db.get("cases", "case")
    # one that is refused ends nothing
    t = run(ScriptAgent(("hand_over", {"why": 1}), CANCEL), ScriptUser("Cancel o1."))
    assert t.termination is Termination.USER_STOP and t.reward == 1.0


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turn_cap(turns):
    agent = ScriptAgent(CANCEL)
    t = run(agent, ScriptUser(*["go on"] * 50), turns=turns)
    assert (t.termination, t.reward) == (Termination.TURN_CAP, 0.0)
    assert t.reason == "not scored: the episode ended by turn_cap"
    assert sum(m.role == "assistant" and not m.tool_calls for m in t.messages) == turns
    # the user may still end it after the last answer
    t = run(ScriptAgent(CANCEL), ScriptUser(*["go on"] * turns), turns=turns)
    assert (t.termination, t.reward) == (Termination.USER_STOP, 1.0)


def test_step_cap_counts_calls_too():
    agent = ScriptAgent(CANCEL, *[("get_order", {"order_id": "o1"})] * 50)
    t = run(agent, ScriptUser("Cancel o1."), steps=5)
    assert (t.termination, t.reward, t.usage.agent_steps, len(agent.views)) == (
        Termination.TURN_CAP,
        0.0,
        5,
        5,
    )


def test_too_many_errors():
    bad = ("cancel_order", {"order_id": "nope"})
    t = run(ScriptAgent(CANCEL, bad, ("get_order", {}), ("fly", {})), ScriptUser("x"), errors=3)
    assert (t.termination, t.reward, t.usage.tool_errors) == (Termination.TOO_MANY_ERRORS, 0.0, 3)
    assert [m.error for m in t.messages if m.role == "tool"] == [False, True, True, True]
    t = run(ScriptAgent(CANCEL, bad, ("get_order", {})), ScriptUser("x"), errors=3)
    assert (t.termination, t.reward) == (Termination.USER_STOP, 1.0)


def test_a_cut_step_runs_none_of_its_calls():
    class Cut(ScriptAgent):
        async def step(self, messages):
            return AgentStep(Message("assistant", "and", (ToolCall(*CANCEL),)), 9, truncated=True)

    domain = toy_domain()
    world = World(domain, domain.tasks("train")[0])
    t = run(Cut(), ScriptUser("Cancel o1."), domain, world=world)
    assert (t.termination, t.reward, t.usage.tool_calls) == (Termination.TOKEN_CAP, 0.0, 0)
    assert world.db.get("orders", "o1")["status"] == "open"


def test_a_frozen_opening_stands_for_the_users_first_words():
    user = ScriptUser("second")
    t = run(ScriptAgent(), user, opening="first")
    assert [m.content for m in t.messages if m.role == "user"] == ["first", "second", STOP]
    assert [[m.content for m in v] for v in user.views] == [
        ["first", "Done."],
        ["first", "Done.", "second", "Done."],
    ]
    assert t.usage.user_turns == 2


# ---------------------------------------------------------------- infrastructure


class BrokenShop(Shop):
    @writes
    def cancel_order(self, order_id: str, reason: str = "") -> str:
        """Cancel, then break.

        Args:
            order_id: Number.
            reason: Why.
        """
        self.db.update("orders", order_id, status="cancelled")
        raise RuntimeError("disk")


class Closing(ScriptUser):
    closed = 0

    def close(self):
        self.closed += 1


@pytest.mark.parametrize(
    ("agent", "lines", "end", "words"),
    [
        ((InfrastructureError("engine gone"),), ("hi",), "engine_failed", "engine gone"),
        ((CANCEL, InfrastructureError("engine gone")), ("hi",), "engine_failed", "engine gone"),
        ((), (InfrastructureError("user gone"),), "user_failed", "user gone"),
        ((CANCEL,), ("hi", InfrastructureError("user gone")), "user_failed", "user gone"),
        ((CANCEL,), ("hi",), "tools_failed", "RuntimeError: disk"),
    ],
)
def test_infrastructure_failures_have_no_reward(agent, lines, end, words):
    domain = toy_domain()
    if end == "tools_failed":
        domain = dataclasses.replace(domain, toolkits={"assistant": BrokenShop})
    world = World(domain, domain.tasks("train")[0])
    agent, user = ScriptAgent(*agent), Closing(*lines)
    t = run(agent, user, domain, world=world)
    assert t.termination.value == end and t.termination.infrastructure and not t.termination.normal
    assert t.reward is None and t.components == {}
    assert words in t.detail and t.reason == f"not scored: {t.detail}"
    assert (agent.closed, user.closed) == (1, 1)
    if end == "tools_failed":
        assert world.db.get("orders", "o1")["status"] == "open"
    assert Trajectory.from_dict(t.to_dict()) == t


def test_both_are_closed_whatever_happens():
    class Stubborn(ScriptAgent):
        def close(self):
            raise OSError("cannot close")

    class Sleeper(ScriptAgent):
        async def step(self, messages):
            await asyncio.sleep(3600)
            return await super().step(messages)

    agent, user = ScriptAgent(), Closing("hi")
    assert run(agent, user).termination is Termination.USER_STOP
    assert (agent.closed, user.closed) == (1, 1)

    agent, user = ScriptAgent(ZeroDivisionError()), Closing("hi")  # a bug: raised as it is
    with pytest.raises(ZeroDivisionError):
        run(agent, user)
    assert (agent.closed, user.closed) == (1, 1)

    user = Closing("hi")
    with pytest.raises(OSError, match="cannot close"):
        run(Stubborn(), user)
    assert user.closed == 1

    task = Task("broken", "x", Scenario("x"), (), (Change("nowhere", "x", {}),))
    agent, user = ScriptAgent(), Closing("hi")
    with pytest.raises(MuaError, match="'broken'"):
        run(agent, user, task=task)
    assert (agent.closed, user.closed) == (1, 1)

    async def cancelled(agent, user):
        domain = toy_domain()
        playing = asyncio.create_task(play(domain, domain.tasks("train")[0], agent, user))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing

    agent, user = Sleeper(), Closing("hi")
    asyncio.run(cancelled(agent, user))
    assert (agent.closed, user.closed) == (1, 1)


# ---------------------------------------------------------------- a user with tools


class Phone:
    def __init__(self, db):
        self.db = db

    @reads
    def look(self) -> str:
        """Look at the phone."""
        return self.db.get("phone", "mine")["wifi"]

    @writes
    def switch(self, wifi: str) -> str:
        """Switch wifi.

        Args:
            wifi: on or off.
        """
        if wifi not in ("on", "off"):
            raise ToolError("on or off")
        self.db.update("phone", "mine", wifi=wifi)
        return f"wifi is {wifi}"


class Network:
    def __init__(self, db):
        self.db = db

    @reads
    def status(self) -> str:
        """Network status."""
        return "fine"


class Caller:
    """Plays the given turns: words, or calls."""

    name = "caller"

    def __init__(self, *turns):
        self.turns, self.views = list(turns), []

    async def reply(self, view):
        self.views.append(list(view))
        return self.turns.pop(0)


def phone_domain() -> Domain:
    return Domain(
        name="phone",
        policy="Help.",
        load_base=lambda: Base({"phone": {"mine": {"wifi": "off"}}}),
        load_split=lambda split: [],
        splits=("train",),
        toolkits={"assistant": Network, "user": Phone},
    )


def phone_task() -> Task:
    from mua.domain import Action

    gold = (Action("switch", {"wifi": "on"}, "user"),)
    return Task("wifi", "wifi", Scenario("No network."), gold)


def test_a_user_with_tools_acts_in_the_same_world():
    user = Caller(
        UserTurn("No network."),
        UserTurn("", (ToolCall("look"), ToolCall("switch", {"wifi": "maybe"}))),
        UserTurn("wait", (ToolCall("switch", {"wifi": "on"}, "mine"),)),
        UserTurn("It is on now."),
        UserTurn("bye", (ToolCall("switch", {"wifi": "off"}),), stop=True),
    )
    agent = ScriptAgent(("status", {}), "Switch wifi on.", ("switch", {"wifi": "off"}), "Good.")
    domain, task = phone_domain(), phone_task()
    t = run(agent, user, domain, task)
    # the agent has no phone; calls beside a stop do not run; both hold again in a replay
    assert (t.reward, t.usage.tool_errors, t.usage.user_turns) == (1.0, 1, 5)
    assert domain.replay(task, t.messages).db.equals(domain.gold(task))
    assert not t.messages[-1].tool_calls
    # every call has an id of its own, and its answer names it
    asked = [c.id for m in t.messages for c in m.tool_calls]
    answered = [m.tool_call_id for m in t.messages if m.role == "tool"]
    assert asked == answered and len(set(asked)) == 5 and all(asked) and "mine" in asked
    # the user saw its own traffic and the agent's words, the agent its own and the user's words
    for view in user.views:
        assert not any(m.role == "tool" and m.requestor != "user" for m in view)
        assert not any(m.role == "system" or (m.role == "assistant" and m.tool_calls) for m in view)
    assert [m.content for m in user.views[3]] == [
        "No network.",
        "Switch wifi on.",
        "",
        "off",
        "Error: on or off",
        "wait",
        "wifi is on",
    ]
    assert [(m.role, m.content) for m in agent.views[-1]] == [
        ("system", "Help."),
        ("user", "No network."),
        ("assistant", ""),
        ("tool", "fine"),
        ("assistant", "Switch wifi on."),
        ("user", "wait"),
        ("user", "It is on now."),
        ("assistant", ""),
        ("tool", "Error: there is no tool 'switch'. The tools are: status."),
    ]


def test_a_user_that_only_calls_is_out_of_order():
    user = Caller(UserTurn("hi"), *[UserTurn("", (ToolCall("look"),))] * 30)
    t = run(ScriptAgent(), user, phone_domain(), phone_task())
    assert t.termination is Termination.USER_FAILED and t.reward is None and "20 rounds" in t.detail


def test_ids_that_come_again_are_replaced():
    class Same(ScriptAgent):
        async def step(self, messages):
            if len(self.views) < 2:
                self.views.append(messages)
                return AgentStep(
                    Message(
                        "assistant",
                        tool_calls=(
                            ToolCall("get_order", {"order_id": "o1"}, "call_2"),
                            ToolCall("get_order", {"order_id": "o2"}, "call_2"),
                            ToolCall("get_order", {"order_id": "o3"}),
                        ),
                    )
                )
            return AgentStep(Message("assistant", "Done."))

    t = run(Same(), ScriptUser("x"))
    ids = [c.id for m in t.messages for c in m.tool_calls]
    assert len(set(ids)) == 6 and ids[0] == "call_2"
    assert [m.tool_call_id for m in t.messages if m.role == "tool"] == ids


# ---------------------------------------------------------------- many at once


def test_two_hundred_episodes_share_one_base():
    domain = toy_domain()
    before = domain.base.recompute_sum()
    tasks = domain.tasks("test")

    class Roaming(ScriptAgent):
        async def step(self, messages):
            await asyncio.sleep(0)
            return await super().step(messages)

    def episode(i):
        task = tasks[i % len(tasks)]
        order = task.scenario.facts["order number"]
        right = {
            "cancel": ("cancel_order", {"order_id": order}),
            "items": ("set_items", {"order_id": order, "count": 5}),
        }
        noise = ("cancel_order", {"order_id": f"o{i}"})
        wrong = ("set_items", {"order_id": order, "count": 1000 + i})
        steps = [noise, right[task.kind], *([wrong] if i % 2 else [])]
        return play(domain, task, Roaming(*steps), ScriptUser("a", "b"))

    async def together():
        return await asyncio.gather(*map(episode, range(200)))

    results = asyncio.run(together())
    assert [t.reward for t in results] == [1.0 - i % 2 for i in range(200)]
    assert domain.base.recompute_sum() == before == domain.base.digest_sum()
    for i, t in enumerate(results):  # the verdict of the stored messages is the live one
        task = tasks[i % len(tasks)]
        again = domain.grade(task, t.messages, t.termination)
        assert (again.reward, again.reason) == (t.reward, t.reason)


# ---------------------------------------------------------------- guards


def test_training_on_held_out_tasks_is_refused_by_content():
    domain = toy_domain()
    train, test = domain.tasks("train"), domain.tasks("test")
    check_no_overlap(train, test, "split 'test'")
    stolen = test[1]
    respelled = [
        dataclasses.replace(c, row=dict(reversed(c.row.items())) | {"items": 1.0}) for c in stolen.setup
    ]
    copy = dataclasses.replace(
        stolen,
        id="new",
        kind="other",
        setup=tuple(respelled),
        scenario=dataclasses.replace(stolen.scenario, persona="You are loud.", goal="In other words."),
    )
    with pytest.raises(MuaError, match=r"1 training task\(s\) .* split 'test': new = cancel_12"):
        check_no_overlap([*train, copy], test, "split 'test'")
    for changed in (
        dataclasses.replace(copy, actions=()),
        dataclasses.replace(copy, setup=()),
        dataclasses.replace(copy, scenario=dataclasses.replace(copy.scenario, facts={})),
        dataclasses.replace(copy, scenario=dataclasses.replace(copy.scenario, agenda={"x": 1})),
    ):
        check_no_overlap([*train, changed], test, "split 'test'")


def test_tasks_solved_by_doing_nothing_are_named():
    domain = toy_domain()
    tasks = domain.tasks("train")
    check_no_noop(domain, tasks)
    # reading only, nothing at all, and writing what is there already
    idle = [
        dataclasses.replace(tasks[0], id="reads", actions=()),
        dataclasses.replace(
            tasks[1],
            id="same",
            actions=tuple(
                dataclasses.replace(a, name="set_items", arguments={"order_id": "o2", "count": 1.0})
                for a in tasks[1].actions
            ),
        ),
    ]
    with pytest.raises(MuaError, match=r"2 task\(s\) of domain 'toy' .*: reads, same\."):
        check_no_noop(domain, [*tasks, *idle])
    broken = dataclasses.replace(
        tasks[0], id="bad", actions=(dataclasses.replace(tasks[0].actions[0], arguments={}),)
    )
    with pytest.raises(MuaError, match=r"task 'bad' .* gold action cancel_order fails"):
        check_no_noop(domain, [broken])


# ---------------------------------------------------------------- verified conversations


def expert_domain(tamper=lambda number: False) -> Domain:
    """The shop with an expert that cancels the right order, but for the episodes that `tamper` names."""
    number = 0

    def expert(world, user, seed):
        nonlocal number
        number += 1
        order = world.task.scenario.facts["order number"]
        return ScriptAgent("Sure?") if tamper(number) else ScriptAgent(("cancel_order", {"order_id": order}))

    return dataclasses.replace(
        toy_domain(), expert=expert, agenda_user=lambda task, seed: ScriptUser(f"Hello {seed}.")
    )


def test_tampered_conversations_do_not_pass():
    domain = expert_domain()
    task = domain.tasks("train")[0]
    whole = asyncio.run(play_expert(domain, task, 1, Limits()))
    assert verify(domain, task, whole) == ""
    at = next(i for i, m in enumerate(whole.messages) if m.tool_calls)

    def with_calls(*calls):
        message = dataclasses.replace(whole.messages[at], tool_calls=calls)
        return dataclasses.replace(whole, messages=[*whole.messages[:at], message, *whole.messages[at + 1 :]])

    (call,) = whole.messages[at].tool_calls
    differs = "end state differs from gold on replay"
    for altered in (
        with_calls(),
        with_calls(dataclasses.replace(call, arguments={"order_id": "o9"})),
        with_calls(dataclasses.replace(call, name="get_order")),
        with_calls(dataclasses.replace(call, error="unreadable")),
        with_calls(call, ToolCall("set_items", {"order_id": "o1", "count": 2})),
        with_calls(ToolCall("hand_over", {"summary": ""}), call),
    ):
        assert altered.reward == 1.0  # what the file claims does not count
        assert verify(domain, task, altered) == differs
    assert verify(domain, task, with_calls(call, call)) == ""  # refused the second time: nothing changed
    cut = dataclasses.replace(whole, termination=Termination.TURN_CAP)
    assert verify(domain, task, cut) == "turn_cap"


def test_failed_conversations_are_dropped_and_counted():
    domain, dropped, progress = expert_domain(lambda n: n % 3 == 0), Dropped(), []
    tasks = domain.tasks("train")
    kept = asyncio.run(
        conversations(domain, tasks, 10, 5, checks=(), dropped=dropped, on_progress=progress.append)
    )
    assert len(kept) == 10 and progress == list(range(1, 11))
    assert dropped.reasons == {"end state differs from gold on replay": 4}
    assert all(t.reward == 1.0 for t in kept)
    # more conversations than tasks: each task comes again, in other words
    assert {t.task_id for t in kept} == {t.id for t in tasks}
    assert len({t.messages[1].content for t in kept}) == 10

    with pytest.raises(MuaError, match=r"fails too often: .*'end state differs.*last on task 'cancel_"):
        asyncio.run(conversations(expert_domain(lambda n: True), tasks, 10, 5))
    with pytest.raises(MuaError, match="no expert program"):
        asyncio.run(conversations(toy_domain(), tasks, 1, 5))
    with pytest.raises(MuaError, match="no tasks"):
        asyncio.run(conversations(expert_domain(), [], 1, 5))


def test_conversations_depend_on_the_seed_only():
    def texts(seed):
        domain = expert_domain()
        kept = asyncio.run(conversations(domain, domain.tasks("train"), 6, seed, checks=()))
        return [json.dumps(t.to_dict()) for t in kept]

    assert texts(1) == texts(1) != texts(2)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not valid JSON"),
        ("[1]", "a JSON object is expected"),
        ('{"task_id": "x", "messages": []}', "field 'termination' is missing"),
        ('{"task_id": "x", "messages": [], "termination": "tired"}', "tired"),
        ('{"task_id": "x", "messages": ["hi"], "termination": "user_stop"}', "not a trajectory"),
        ('{"task_id": "x", "messages": [{"role": "x"}], "termination": "user_stop"}', "role 'x'"),
        ('{"task_id": "x", "messages": [], "termination": "user_stop", "usage": {"x": 1}}', "unexpected"),
    ],
)
def test_a_line_that_is_no_trajectory_is_named(tmp_path, line, words):
    good = '{"task_id": "x", "messages": [], "termination": "user_stop"}\n\n'
    (tmp_path / "t.jsonl").write_text(good + line + "\n")
    with pytest.raises(MuaError, match=r"t\.jsonl, line 3: ") as caught:
        list(read_trajectories(tmp_path / "t.jsonl"))
    assert words in str(caught.value)
