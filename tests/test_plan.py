"""Plans: small cases worked out by hand, what must hold for any rates, and the command on a real run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mua.chat import Message, ToolCall
from mua.config import Config, load_config
from mua.domains import load
from mua.errors import MuaError
from mua.plan.conversations import Conversation, Move, read_conversations
from mua.plan.rates import EndpointRates, EngineRates, Latency, Rates, UpdateRates, from_device, read_rates
from mua.plan.simulate import make_plan
from mua.trajectory import Termination, Trajectory, Usage
from test_docs import ROOT, blocks

ENDPOINT = {"kind": "endpoint", "endpoint": {"model": "m", "concurrency": 2, "prompt_price": 3.0}}


def config(**train_user: object) -> Config:
    return load_config(
        None,
        [
            *(
                "domain=library:desk",
                "train.steps=10",
                "train.rollout.groups=2",
                "train.rollout.group_size=2",
            ),
            *("train.rollout.refill_rounds=0", "train.rollout.freeze_opening=false"),
        ],
        {"train_user": train_user or {"kind": "agenda"}},
    )


def rates(**more: object) -> Rates:
    engine = EngineRates(forward=0.1, sequence=0.0, context=0.0, prefill=1000.0)
    return Rates.model_validate(
        {"agent": engine, "update": UpdateRates(tokens=100.0, base=1.0, shared_prefix=False), **more}
    )


ONE = Conversation("t", 100, 10, (Move(110, 11, 0, user_prompt=50, user_tokens=5), Move(5, 11, 0)), True)


def test_a_step_worked_out_by_hand():
    plan = make_plan(config(), rates(), [ONE], signal=1.0)
    # Four conversations are read together, their common prompt of 100 tokens once; that gives each its first
    # token, and ten steps of decoding the others. Then the same again.
    first = 0.1 + (110 + 3 * 10) / 1000 + 10 * 0.1
    again = 0.1 + 4 * 5 / 1000 + 10 * 0.1
    assert plan.rollout == pytest.approx(first + again)
    assert (plan.episodes, plan.agent_tokens, plan.trained_tokens) == (4, 88, 4 * 137)
    assert plan.update == pytest.approx(1.0 + 4 * 137 / 100)
    assert plan.step == pytest.approx(plan.rollout + plan.update)
    assert plan.idle == pytest.approx(0.0, abs=1e-9)
    assert plan.hours == pytest.approx(10 * plan.step / 3600)
    assert (plan.user_cost, plan.user_wait) == (0.0, 0.0)


def test_a_shared_prefix_is_trained_on_once_a_group():
    shared = rates(update=UpdateRates(tokens=100.0))
    assert make_plan(config(), shared, [ONE], signal=1.0).trained_tokens == 4 * 137 - 2 * 110


def test_what_a_group_said_alike_is_trained_on_once():
    """Three episodes of one step: two begin alike, up to the agent's second words."""
    shared = rates(update=UpdateRates(tokens=100.0))
    alike = [
        Conversation("t", 100, 10, ONE.moves, True, step=1, marks=((1, 2), (3, last))) for last in (4, 5)
    ]
    other = Conversation("t", 100, 10, ONE.moves, True, step=1, marks=((1, 6), (7, 8)))
    settings = ["domain=library:desk", "train.rollout.groups=1", "train.rollout.group_size=3"]
    three = load_config(None, [*settings, "train.rollout.refill_rounds=0"])
    plan = make_plan(three, shared, [*alike, other], signal=1.0)
    assert plan.trained_tokens == 110 + (11 + 5 + 11 + 11) + (11 + 5 + 11)


def test_an_endpoint_is_a_queue_with_a_price():
    user = EndpointRates(latency=Latency(median=2.0, p90=2.0), tokens=5.0)
    plan = make_plan(config(**ENDPOINT), rates(user=user), [ONE], signal=1.0)
    # Two at once, of four that ask at the same time: 3 s each, the later two wait 3 s before.
    assert plan.user_requests == 4
    assert plan.user_wait == pytest.approx((3 + 3 + 6 + 6) / 4)
    assert plan.user_cost == pytest.approx(4 * 50 * 3.0 / 1e6)
    assert plan.cost == pytest.approx(10 * plan.user_cost)
    assert plan.idle > 0.3
    by_the_minute = user.model_copy(update={"requests_per_minute": 6.0, "concurrency": 100})
    slow = make_plan(config(**ENDPOINT), rates(user=by_the_minute), [ONE], signal=1.0)
    assert slow.user_wait == pytest.approx((3 + 13 + 23 + 33) / 4)
    tokens = user.model_copy(update={"tokens_per_minute": 330.0, "concurrency": 100})
    assert make_plan(config(**ENDPOINT), rates(user=tokens), [ONE], signal=1.0).user_wait == pytest.approx(
        slow.user_wait
    )


def test_refills_are_played_one_round_after_the_other():
    never = config().model_copy(update={"train": load_config(None, [
        "domain=library:desk", "train.rollout.groups=2", "train.rollout.group_size=2",
        "train.rollout.refill_rounds=null", "train.rollout.refill_budget=7",
    ]).train})  # fmt: skip
    plan = make_plan(never, rates(), [ONE], signal=0.0)
    assert (plan.episodes, plan.trained_tokens, plan.update) == (14, 0, 0.0)


conversations = st.lists(
    st.builds(
        lambda task, moves: Conversation(
            task, 20, 5, tuple(Move(n, s, c, 10 if u else 0, u) for n, s, c, u in moves), True
        ),
        st.sampled_from("ab"),
        st.lists(
            st.tuples(st.integers(1, 50), st.integers(1, 30), st.integers(0, 2), st.integers(0, 9)),
            min_size=1,
            max_size=5,
        ),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(talks=conversations, places=st.integers(1, 6), replicas=st.integers(1, 3), patience=st.integers(0, 16))
def test_whatever_is_played_the_books_balance(
    talks: list[Conversation], places: int, replicas: int, patience: int
):
    engine = EngineRates(forward=0.02, sequence=0.001, context=0.01, prefill=500.0, patience=patience)
    given_rates = rates(
        replicas=replicas,
        agent=engine,
        user_engine=engine,
        tools=Latency(median=0.1, p90=0.4),
        user=EndpointRates(latency=Latency(median=0.5, p90=2.0), concurrency=places),
    )
    for kind in ({"kind": "agenda"}, {"kind": "local", "model": "x"}, ENDPOINT):
        made = make_plan(config(**kind), given_rates, talks, signal=1.0, steps=2)
        assert made == make_plan(config(**kind), given_rates, talks, signal=1.0, steps=2)
        assert made.episodes == 4
        assert 0 <= made.idle < 1 and made.rollout > 0 and math.isfinite(made.step)
        # No engine is faster than all its sequences together would be, nor slower than one by one.
        assert made.rollout >= made.agent_tokens * 0.001 / replicas


def test_lengths_come_from_what_was_recorded():
    domain = load("library:desk")
    task = domain.tasks("train")[0]
    messages = [
        Message("system", "p" * 40),
        Message("user", "u" * 20),
        Message("assistant", "", (ToolCall("c", "check_loan", {"card": "1"}),)),
        Message("tool", "t" * 30, tool_call_id="c"),
        Message("assistant", "a" * 10),
        Message("user", "u" * 10),
        Message("assistant", "b" * 10),
    ]
    usage = Usage(agent_steps=3, agent_tokens=60, user_turns=2, user_tokens=20, user_prompt_tokens=100)
    talk = Trajectory(
        domain.name,
        task.id,
        task.kind,
        task.fingerprint,
        messages,
        Termination.USER_STOP,
        0,
        1.0,
        usage=usage,
    )
    (found,) = read_conversations(domain, [talk], len, "none")
    assert (found.prompt, found.solved) == (45, True)
    assert sum(m.sampled for m in found.moves) == 60
    assert [m.calls for m in found.moves] == [1, 0, 0]
    assert [bool(m.user_tokens) for m in found.moves] == [False, True, False]
    # Of the user's 20 tokens, 5/8 are its opening (25 of 40 characters with their frames).
    assert (found.opening, found.moves[1].user_tokens, found.moves[1].user_prompt) == (13, 8, 50)
    assert [m.new for m in found.moves] == [45 + 25, 35, 15]


def test_rates_go_through_a_file_and_mistakes_are_named(tmp_path: Path):
    from mua.plan.rates import ModelSize

    made = from_device("H100", ModelSize(8.2e9, 147_456), 8, 2)
    path = tmp_path / "rates.yaml"
    path.write_text(made.to_yaml(), encoding="utf-8")
    assert read_rates(path) == made
    assert made.replicas == 4
    # 16.4 GB of weights over 60 % of two cards' 3.35 TB/s.
    assert made.agent.forward == pytest.approx(16.4e9 / (2 * 0.6 * 3.35e12))
    path.write_text(made.to_yaml().replace("prefill:", "prefil:"), encoding="utf-8")
    with pytest.raises(MuaError, match=r"rates\.yaml: .*'agent\.prefill' is missing.*did you mean"):
        read_rates(path)
    (shown,) = blocks(ROOT / "docs" / "plan.md", "yaml rates")
    path.write_text(shown, encoding="utf-8")
    assert read_rates(path).user is not None
    with pytest.raises(MuaError, match="no data sheet of 'abacus'"):
        from_device("abacus", ModelSize(1, 1))
    with pytest.raises(MuaError, match="rates say nothing of it"):
        make_plan(config(**ENDPOINT), rates(), [ONE], signal=1.0)


def test_the_command_plans_from_programs_of_the_domain(mua, tmp_path: Path):
    path = tmp_path / "rates.yaml"
    path.write_text(rates(tools=Latency(median=0.01, p90=0.02)).to_yaml(), encoding="utf-8")
    arguments = ("plan", "domain=library:desk", "train_user.kind=agenda", "--rates", str(path), "--json")
    code, out, err = mua(*arguments)
    assert code == 0, err
    found = json.loads(out)
    assert found["episodes"] >= 128 and found["step"] > 0
    assert any("expert program" in text for text in found["assumed"])
    code, out, _ = mua(*arguments[:-1])
    assert code == 0 and "devices wait" in out
    code, _, err = mua(*arguments, "--from", str(tmp_path / "nothing"))
    assert code == 1 and "is not there" in err
