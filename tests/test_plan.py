"""Plans: small cases worked out by hand, what must hold for any rates, and the command on a real run."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mua.chat import Message, ToolCall
from mua.config import Config, load_config
from mua.domains import load
from mua.errors import MuaError
from mua.plan.conversations import Conversation, Move, packed, read_conversations
from mua.plan.gather import from_expert
from mua.plan.measure import measure
from mua.plan.rates import (
    EndpointRates,
    EngineRates,
    Latency,
    PlayRates,
    Rates,
    UpdateRates,
    from_device,
    read_rates,
)
from mua.plan.simulate import Stage
from mua.plan.steps import make_plan
from mua.trajectory import Termination, Trajectory, Usage
from test_docs import ROOT, blocks

sys.path.insert(0, str(ROOT / "perf"))
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


ONE = Conversation("t", 100, 10, (Move(110, 11, 0, user_prompt=50, user_tokens=5), Move(5, 11, 0)), 1.0)


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


def words(moves: tuple[Move, ...], *pairs: tuple[int, int]) -> tuple[tuple[bytes, bytes], ...]:
    """One word, over and over, is heard before each move, and another said; behind a prompt of 100."""
    counts = [(m.new - (0 if n else 100), m.sampled - 1) for n, m in enumerate(moves)]
    return tuple(
        (packed([heard] * few), packed([said] * many))
        for (heard, said), (few, many) in zip(pairs, counts, strict=True)
    )


def test_a_shared_prefix_is_trained_on_once_a_group():
    shared = rates(update=UpdateRates(tokens=100.0))
    plan = make_plan(config(), shared, [ONE], signal=1.0)
    # The prompt once in all; openings of 10 tokens are too short to be shared; and of each conversation what
    # it says itself, up to its last token, which nothing follows.
    assert plan.trained_tokens == 100 + 4 * (10 + 11 + 5 + 11 - 1)
    assert plan.update == pytest.approx(plan.trained_tokens / 100)


def test_what_a_group_said_alike_is_trained_on_once():
    """Three episodes of one step: two begin alike, up to the agent's second words."""
    shared = rates(update=UpdateRates(tokens=100.0))
    alike = [
        Conversation("t", 100, 10, ONE.moves, float(last), step=1, words=words(ONE.moves, (1, 2), (3, last)))
        for last in (4, 5)
    ]
    other = Conversation("t", 100, 10, ONE.moves, 0.0, step=1, words=words(ONE.moves, (1, 6), (7, 8)))
    settings = ["domain=library:desk", "train.rollout.groups=1", "train.rollout.group_size=3"]
    three = load_config(None, [*settings, "train.rollout.refill_rounds=0"])
    plan = make_plan(three, shared, [*alike, other], signal=1.0)
    assert plan.trained_tokens == 110 + (11 + 5 + 10 + 10) + (11 + 5 + 10)


def episode(mark: int, reward: float, step: int = 1) -> Conversation:
    """1,200 tokens that no other conversation says, behind a prompt of 100 that all have."""
    moves = (Move(110, 1190, 0),)
    said = words(moves, (9 * mark + 1, 9 * mark + 2))
    return Conversation("t", 100, 10, moves, reward, step=step, words=said)


def test_micro_batches_go_to_processes_in_turn_and_the_longest_share_counts():
    three = load_config(None, ["domain=library:desk", "train.rollout.groups=1", "train.rollout.group_size=3",
                               "train.rollout.refill_rounds=0"])  # fmt: skip
    update = UpdateRates(tokens=1000.0, batch=0.5, base=2.0, serial=0.1, processes=2, most=1300, kept=1300)
    plan = make_plan(three, rates(update=update), [episode(n, float(n)) for n in range(3)], signal=0.0)
    # Three micro-batches of a conversation each; the first process has two of them.
    assert plan.trained_tokens == 3 * 1299
    assert plan.update == pytest.approx(2.0 + 3 * 1300 / 1000 * 0.1 + 2 * (0.5 + 1.299))
    # Too long to keep its activations: a third more time for each.
    again = update.model_copy(update={"kept": 1000, "recomputed": 2000})
    recomputed = make_plan(three, rates(update=again), [episode(n, float(n)) for n in range(3)], signal=0.0)
    assert recomputed.update == pytest.approx(2.0 + 0.39 + 2 * (0.5 + 1.299 * 4 / 3))
    # Two passes: the start and the reference are read once, and only the policy's three parts again.
    twice = three.model_copy(update={"train": three.train.model_copy(update={"epochs": 2})})
    plan = make_plan(twice, rates(update=update), [episode(n, float(n)) for n in range(3)], signal=0.0)
    assert plan.update == pytest.approx(2 * (2.0 + 0.39) + (2 * 3 + 2) / 4 * 2 * (0.5 + 1.299))


def test_groups_as_they_were_played_have_their_own_signal():
    alike = [episode(n, 1.0, step=1) for n in range(2)]
    differ = [episode(n, float(n), step=2) for n in range(2)]
    assert make_plan(config(), rates(), alike, signal=1.0).trained_tokens == 0
    assert make_plan(config(), rates(), differ, signal=0.0).trained_tokens == 4 * 1300


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


GATEWAY = {
    "routes": [
        {"base_url": "http://a/v1", "model": "m", "concurrency": 1, "requests_per_minute": 30},
        {"base_url": "http://a/v1", "model": "m", "concurrency": 1, "requests_per_minute": 30},
    ],
    "prices": {"m": {"prompt": 2.0}},
    "budget": {"dollars": 0.0026},
}


def test_a_gateway_adds_up_its_places_counts_a_key_once_and_its_budget_may_not_last():
    given = config().model_dump(mode="json") | {
        "train_user": {"kind": "endpoint", "endpoint": {"gateway": "users"}},
        "gateways": {"users": GATEWAY},
    }
    user = EndpointRates(latency=Latency(median=0.0, p90=0.0), tokens=1000.0)
    plan = make_plan(Config.model_validate(given), rates(user=user), [ONE], signal=1.0)
    # 30 requests a minute, although two routes have the key: one every two seconds.
    assert plan.user_wait == pytest.approx(0.005 + (0 + 2 + 4 + 6) / 4)
    assert plan.user_cost == pytest.approx(4 * 50 * 2.0 / 1e6) and plan.cost == pytest.approx(0.004)
    (warning,) = plan.warnings
    assert "gateway 'users' (0.0026 dollars) is spent in step 7 of 10; the run takes 0.004" in warning
    GATEWAY_OF_MORE = GATEWAY | {"budget": {"dollars": 0.004, "tokens": 2200}}
    enough = Config.model_validate(given | {"gateways": {"users": GATEWAY_OF_MORE}})
    assert make_plan(enough, rates(user=user), [ONE], signal=1.0).warnings == ()


def test_an_evaluation_is_planned_with_its_own_conversations_users_and_machines():
    playing = PlayRates(agent=EngineRates(forward=0.2, prefill=1000.0), overhead=0.5)
    paid = {"eval_user": {**ENDPOINT, "endpoint": {"model": "m", "completion_price": 1e6}}}
    settings = config().model_dump(mode="json") | paid | {
        "eval": {"tasks": 3, "samples": 2, "concurrency": 2, "temperatures": [1.0]}
    }  # fmt: skip
    given = Config.model_validate(settings)
    assert make_plan(given, rates(), [ONE], signal=1.0, eval_tasks=50).evaluation is None
    user = EndpointRates(latency=Latency(median=1.0, p90=1.0), tokens=5.0)
    known = rates(user=user, evaluation=playing)
    short = Conversation("t", 100, 10, (Move(110, 1, 0, 50, 5), Move(5, 1, 0)), 1.0)
    plan = make_plan(given, known, [ONE], signal=1.0, eval_tasks=50, evaluated=[[short]])
    # Three times two at once. Each pair reads its prompts (the first, the one that all share), hears its user
    # after two seconds, and reads what that has said.
    pair = 0.2 + 2 * (10 / 1000 + 0.5) + 2.0 + 0.2 + 2 * (5 / 1000 + 0.5)
    assert plan.evaluation == pytest.approx(3 * pair + 100 / 1000, abs=1e-6)
    assert plan.evaluations == 3 and plan.evaluation_cost == pytest.approx(6 * 5)
    assert plan.cost == pytest.approx(3 * 30)


def test_a_long_queue_is_served_one_by_one():
    stage = Stage(rates(), rates(), np.random.default_rng(0), concurrency=1)
    stage.play([[Conversation("t", 100, 10, (Move(110, 1, 0),), 1.0)]] * 3000)
    assert stage.tally.episodes == 3000
    assert stage.seconds == pytest.approx(0.1 + 3000 * (0.1 + 10 / 1000))


def test_very_large_numbers_end_in_words_or_in_a_plan():
    many = config().model_copy(update={"train": load_config(None, [
        "domain=library:desk", "train.rollout.groups=1000000000", "train.rollout.group_size=8",
    ]).train})  # fmt: skip
    with pytest.raises(MuaError, match="a step of 8,000,000,000 episodes is more than a plan simulates"):
        make_plan(many, rates(), [ONE], signal=1.0)
    # Requests in flight without end, an engine that takes no time, and a user that takes for ever.
    user = EndpointRates(latency=Latency(median=1e-9, p90=1e9), concurrency=10**12)
    quick = EngineRates(forward=1e-12, prefill=1e15)
    plan = make_plan(config(**ENDPOINT), rates(user=user, agent=quick), [ONE], signal=1.0)
    assert math.isfinite(plan.step) and plan.user_requests == 4
    for text in (".inf", ".nan", "-1"):
        with pytest.raises(ValueError, match="prefill"):
            EngineRates.model_validate(yaml.safe_load(f"{{forward: 1, prefill: {text}}}"))


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
            task, 20, 5, tuple(Move(n, s, c, 10 if u else 0, u) for n, s, c, u in moves), 1.0
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
    (found,) = read_conversations(domain, [talk], lambda text: [*map(ord, text)], "none")
    assert (found.prompt, found.reward) == (45, 1.0)
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


@pytest.mark.timeout(900)  # three processes that import PyTorch, on a machine that may be busy
def test_this_machine_is_measured_in_as_many_processes_as_a_run_has(tmp_path: Path):
    tiny = {
        "layers": 1,
        "hidden": 32,
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 16,
        "intermediate": 64,
        "copying": "false",
    }
    given = load_config(None, [
        *("domain=library:desk", "model.tool_style=none", "train_user.kind=agenda", "train.processes=2"),
        *("train.rollout.groups=2", "train.rollout.group_size=2", "train.rollout.refill_rounds=0"),
        *("train.rollout.concurrency=4", "eval.concurrency=4"),
        *(f"model.tiny.{name}={value}" for name, value in tiny.items()),
    ])  # fmt: skip
    found = from_expert(given)
    used = measure(given, found.conversations, 1.0)
    assert used.evaluation is not None
    assert (used.replicas, used.update.processes, used.evaluation.replicas) == (2, 2, 1)
    assert used.update.shared_prefix and used.update.most == 8192
    assert min(used.agent.forward, used.overhead, used.update.base + used.update.serial) > 0
    plan = make_plan(given, used, found.conversations, signal=1.0, eval_tasks=20)
    assert plan.rollout > 0 and plan.update > 0 and plan.evaluation is not None and plan.evaluation > 0
    path = tmp_path / "rates.yaml"
    path.write_text(used.to_yaml(), encoding="utf-8")
    again = make_plan(given, read_rates(path), found.conversations, signal=1.0, eval_tasks=20)
    assert again.step == pytest.approx(plan.step)


def test_errors_of_plans_are_in_percent_of_what_was_measured():
    plans: Any = importlib.import_module("plan")
    found = plans.compare(
        {"rollout": 3.0, "update": 0.5, "evaluation": None, "measured": {"rollout": 4.0, "update": 0.4}}
    )
    assert [found[phase]["error_percent"] for phase in plans.PHASES] == [-25.0, pytest.approx(25.0), None]
