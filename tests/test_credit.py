"""Rewards and credit of steps, on episodes written out by hand."""

import math

import pytest
import torch

from mua.chat import Message, ToolCall
from mua.domain import Scenario, Task
from mua.errors import MuaError
from mua.rollout import Group
from mua.train import GrpoSettings
from mua.train.credit import failed_calls, kl_penalties, shaped_rewards, token_advantages
from mua.train.grpo import kl_estimate
from mua.trajectory import Segment, Termination, TokenTrace, Trajectory

TASK = Task("t", "kind", Scenario("Goal."), (), ())


def episode(reward, steps, greeting=False, **changes):
    """An episode whose steps are given as the outcomes of their calls: `ok`, `bad`, `fault`, or none.

    Step k samples k + 1 tokens; a second segment begins at step 2, as where a template rewrites history.
    """
    messages = [Message("assistant", "Hello!")] if greeting else []
    messages.append(Message("user", "Do it."))
    segments = [Segment()]
    for k, outcomes in enumerate(steps):
        calls = tuple(ToolCall("tool", {}, f"c{k}.{i}") for i in range(len(outcomes)))
        messages.append(Message("assistant", "" if calls else "Well.", tool_calls=calls))
        for call, outcome in zip(calls, outcomes, strict=True):
            messages.append(
                Message(
                    "tool",
                    outcome,
                    tool_call_id=call.id,
                    error=outcome != "ok",
                    fault="down" if outcome == "fault" else "",
                )
            )
        if k == 2:
            segments.append(Segment())
        segments[-1].add_context([1] * (3 if k == 2 else 1))
        segments[-1].add_sampled([7] * (k + 1), [-0.5] * (k + 1))
    segments[-1].add_context([1, 1])
    return Trajectory(
        "toy", "t", "kind", "f", messages, Termination.USER_STOP, 0, reward,
        trace=TokenTrace(segments), **changes,
    )  # fmt: skip


def lists(advantages):
    return [a.tolist() for a in advantages]


def test_by_default_every_token_has_the_advantage_of_its_episode():
    group = Group(TASK, [episode(1.0, [(), ("bad",), ()]), episode(0.0, [()])])
    s = GrpoSettings(advantages="none")
    assert lists(token_advantages(group, s)) == [[0.5] * 3, [0.5] * 3, [-0.5]]
    assert lists(token_advantages(group, GrpoSettings(advantages="leave_one_out")))[0] == [1.0] * 3
    # The first token of a segment is predicted by nothing, so nothing is trained there.
    bare = episode(1.0, [()])
    bare.trace = TokenTrace([Segment([5, 6], [1, 1], [-1.0, -1.0])])
    assert lists(token_advantages(Group(TASK, [bare, episode(0.0, [()])]), s)) == [[0.5], [-0.5]]


def test_the_outcomes_credit_falls_with_the_steps_to_the_end():
    group = Group(TASK, [episode(1.0, [(), (), ()]), episode(0.0, [(), ()])])
    s = GrpoSettings(advantages="none", credit_discount=0.5)
    assert lists(token_advantages(group, s)) == [
        [0.125, 0.25, 0.25],  # steps 0 and 1, one and two tokens
        [0.5] * 3,  # step 2, in a segment of its own
        [-0.25, -0.5, -0.5],
    ]


def test_a_step_is_blamed_for_its_own_failed_calls():
    group = Group(
        TASK, [episode(1.0, [("ok", "bad"), ("bad",)], greeting=True), episode(0.0, [("fault",), ()])]
    )
    assert failed_calls(group.trajectories[0], 2) == [0.5, 1.0]
    assert failed_calls(group.trajectories[1], 2) == [0.0, 0.0]  # the environment's fault
    s = GrpoSettings(advantages="none", failed_call_weight=0.4)
    # q = -0.5, -1, 0, 0; its mean is -0.375
    first, second = lists(token_advantages(group, s))
    assert first == pytest.approx([0.5 + 0.4 * -0.125, 0.5 + 0.4 * -0.625, 0.5 + 0.4 * -0.625])
    assert second == pytest.approx([-0.5 + 0.4 * 0.375] * 3)
    # Where no call failed, only the outcome counts.
    clean = Group(TASK, [episode(1.0, [("ok",)]), episode(0.0, [("ok",)])])
    assert lists(token_advantages(clean, s)) == [[0.5], [-0.5]]


def test_steps_that_cannot_be_told_apart_are_refused():
    odd = episode(1.0, [("ok",), ()])
    odd.messages = [m for m in odd.messages if m.tool_calls == ()]
    group = Group(TASK, [odd, episode(0.0, [()])])
    with pytest.raises(MuaError, match=r"2 sampled steps, but 1 messages.*failed_call_weight"):
        token_advantages(group, GrpoSettings(failed_call_weight=1.0))
    # A last step without room in the context has a message and no token.
    cut = episode(0.0, [("bad",)])
    cut.messages.append(Message("assistant"))
    assert failed_calls(cut, 1) == [1.0]


def test_soft_overlong_punishment():
    s = GrpoSettings(overlong_length=10, overlong_buffer=4)
    lengths = {6: 0.0, 7: 0.25, 9: 0.75, 10: 1.0, 40: 1.0}
    group = Group(TASK, [episode(1.0, [()]) for _ in lengths])
    for n, trajectory in zip(lengths, group.trajectories, strict=True):
        trajectory.trace = TokenTrace([Segment([1] + [2] * n, [0] + [1] * n, [0.0] * (n + 1))])
    assert shaped_rewards(group, s) == pytest.approx([1.0 - p for p in lengths.values()])
    assert shaped_rewards(group, GrpoSettings()) == [1.0] * len(lengths)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_the_kl_in_the_reward_is_that_of_the_whole_episode(kind):
    s = GrpoSettings(advantages="none", kl=kind, kl_in="reward", kl_coefficient=0.1)
    group = Group(TASK, [episode(1.0, [(), (), ()]), episode(0.0, [()])])
    refs = [torch.tensor([-0.5, -0.7, -0.1]), torch.tensor([-1.0, -0.5, -2.0]), torch.tensor([-0.6])]
    (penalties,) = kl_penalties([group], refs, s)
    engine = torch.tensor(-0.5)
    expected = [0.1 * sum(kl_estimate(engine, r, kind).item() for r in torch.cat(refs[:2]))]
    expected.append(0.1 * kl_estimate(engine, refs[2], kind).item())
    assert penalties == pytest.approx(expected, abs=1e-6)
    (first, *_), _, _ = lists(token_advantages(group, s, penalties))
    assert math.isclose(first, (1 - penalties[0] + penalties[1]) / 2, abs_tol=1e-6)
