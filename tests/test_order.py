"""Which task comes next: shares by weight, the curriculum's chances, and going on after a stop."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bit_run import SETTINGS, run_training
from mua.domains.mixture import make
from mua.errors import MuaError
from mua.order import CurriculumSettings, Order
from test_trainer import lines, untimed
from toy import toy_domain

CURRICULUM = CurriculumSettings(even=0.2, memory=0.5)


def shop(count: int, name: str = "shop"):
    """A domain with as many tasks; the even ones are of one kind, the odd ones of another."""
    (first, *_) = toy_domain().tasks("train")
    tasks = tuple(dataclasses.replace(first, id=f"t{n}", kind=("even", "odd")[n % 2]) for n in range(count))
    return dataclasses.replace(toy_domain(), name=name, load_split=lambda split: tasks)


def mixed(**shares: tuple[int, float]):
    """A mixture of shops: name → (tasks, weight)."""
    name = "mix:" + ",".join(f"{n}={weight}" for n, (_, weight) in shares.items())
    return make(name, lambda name: shop(shares[name][0], name))


def ids(tasks) -> list[str]:
    return [task.id for task in tasks]


def test_every_epoch_draws_every_task_once():
    domain = shop(7)
    drawn = ids(Order(domain, domain.tasks("train"), 3).draw(0, 21))
    epochs = [drawn[:7], drawn[7:14], drawn[14:]]
    assert all(sorted(epoch) == ids(domain.tasks("train")) for epoch in epochs) and epochs[0] != epochs[1]
    assert drawn != ids(Order(domain, domain.tasks("train"), 4).draw(0, 21))
    with pytest.raises(MuaError, match="no tasks of 'shop' to draw from"):
        Order(domain, [], 0)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0.1, 9), min_size=2, max_size=4),
    st.integers(0, 60),
    st.integers(1, 12),
    st.booleans(),
)
def test_each_domain_has_its_share_wherever_one_begins(weights, at, count, with_curriculum):
    domain = mixed(**{f"d{n}": (3 + n, weight) for n, weight in enumerate(weights)})
    tasks, how = domain.tasks("train"), CURRICULUM if with_curriculum else None
    whole = Order(domain, tasks, 1).draw(0, 72)
    for n in (1, 10, 72):
        for name, weight in domain.weights.items():
            own = sum(domain.of(task)[0].name == name for task in whole[:n])
            assert abs(own - n * weight / sum(domain.weights.values())) <= 1 + 1e-9
    # Within a domain, all its tasks before one comes again.
    first = [t.id for t in whole if t.id.startswith("d0/")]
    for start in range(0, len(first) - 2, 3):
        assert len(set(first[start : start + 3])) == 3
    # A draw depends on its position only.
    again = Order(domain, tasks, 1, how).draw(at, count)
    if how is None:
        assert ids(again) == ids(whole[at : at + count])
    assert [domain.of(t)[0].name for t in again] == [domain.of(t)[0].name for t in whole[at : at + count]]


def test_the_draws_of_a_seed_are_these():
    domain = mixed(a=(3, 2), b=(2, 1))
    drawn = ids(Order(domain, domain.tasks("train"), 0).draw(0, 9))
    assert " ".join(drawn) == "a/t0 b/t1 a/t2 a/t1 b/t0 a/t1 a/t0 b/t0 a/t2"
    chosen = Order(domain, domain.tasks("train"), 0, CURRICULUM)
    chosen.observe([(task, [1.0] * 4) for task in domain.tasks("train")[:2]])
    assert " ".join(ids(chosen.draw(0, 5))) == "a/t1 b/t0 a/t2 a/t0 b/t1"


def test_chances_are_what_the_results_say():
    domain = shop(4)
    tasks = domain.tasks("train")
    order = Order(domain, tasks, 0, CURRICULUM)
    assert order.chances("shop") == pytest.approx(dict.fromkeys(ids(tasks), 0.25))
    order.observe([(tasks[0], [1.0] * 8), (tasks[1], [1.0, 0.0, 0.0, 0.0]), (tasks[3], [])])
    order.observe([(tasks[0], [1.0] * 4)])  # what came before counts for half
    even, odd = (8 / 2 + 4 + 1) / (8 / 2 + 4 + 2), (1 + 1) / (4 + 2)  # a kind's prior is 1 of 2
    rates = [(8 / 2 + 4 + 2 * even) / (8 / 2 + 4 + 2), (1 + 2 * odd) / (4 + 2), even, odd]
    assert [order.success(task) for task in tasks] == pytest.approx(rates)
    spread = [p * (1 - p) for p in rates]
    chances = [0.2 / 4 + 0.8 * s / sum(spread) for s in spread]
    assert list(order.chances("shop").values()) == pytest.approx(chances)
    counts = dict.fromkeys(ids(tasks), 0)
    for at in range(4000):
        counts[order.draw(at, 1)[0].id] += 1
    assert [n / 4000 for n in counts.values()] == pytest.approx(chances, abs=0.03)
    # Within one call nothing comes twice while there is anything else.
    assert sorted(ids(order.draw(0, 4))) == ids(tasks)
    assert len(order.draw(0, 6)) == 6


def test_what_was_learned_goes_on_from_its_state():
    domain = mixed(a=(9, 2), b=(5, 1))
    tasks, rng = domain.tasks("train"), random.Random(0)
    whole, drawn = Order(domain, tasks, 7, CURRICULUM), 0
    for _ in range(6):
        picked = whole.draw(drawn, 5)
        drawn += 5
        whole.observe([(task, [float(rng.random() < 0.3) for _ in range(4)]) for task in picked])
    again = Order(domain, tasks, 7, CURRICULUM)
    again.restore(whole.state())
    assert ids(again.draw(drawn, 20)) == ids(whole.draw(drawn, 20))
    fresh = Order(domain, tasks, 7, CURRICULUM)
    assert ids(fresh.draw(drawn, 20)) != ids(whole.draw(drawn, 20))


def shares_with_signal(curriculum: CurriculumSettings | None) -> tuple[float, int]:
    """Of 40 steps of 16 groups of 8, on 120 tasks of which one in six is solved sometimes: the share of the
    later half's groups with a signal, and how many tasks were drawn at all."""
    domain = shop(120)
    tasks = domain.tasks("train")
    rate = {task.id: (0.0, 1.0, 0.0, 1.0, 0.5, 0.0)[n % 6] for n, task in enumerate(tasks)}
    order, rng, seen = Order(domain, tasks, 2, curriculum), random.Random(3), set()
    signals = []
    for step in range(40):
        picked = order.draw(16 * step, 16)
        seen.update(ids(picked))
        groups = [(task, [float(rng.random() < rate[task.id]) for _ in range(8)]) for task in picked]
        order.observe(groups)
        signals += [len(set(rewards)) > 1 for _, rewards in groups]
    return sum(signals[320:]) / 320, len(seen)


def test_a_curriculum_finds_the_tasks_that_teach_and_starves_none():
    plain, all_of_them = shares_with_signal(None)
    chosen, still_all = shares_with_signal(CURRICULUM)
    assert plain == pytest.approx(1 / 6, abs=0.03)
    assert chosen > 2 * plain
    assert all_of_them == still_all == 120


def test_a_run_with_a_curriculum_ends_the_same_when_it_was_broken_off(tmp_path):
    chosen = SETTINGS.model_copy(update={"curriculum": CURRICULUM})

    def give_up(line):
        if line["step"] == 3:  # after the checkpoint of step 2
            raise KeyboardInterrupt

    whole = run_training(tmp_path / "whole", chosen)
    with pytest.raises(KeyboardInterrupt):
        run_training(tmp_path / "broken", chosen, on_step=give_up)
    resumed = run_training(tmp_path / "broken", chosen)
    assert untimed(tmp_path / "broken") == untimed(tmp_path / "whole")
    for name in ("metrics", "trajectories"):
        assert len(lines(tmp_path / "broken", name)) == len(lines(tmp_path / "whole", name))
    tasks = [line["task_id"] for line in lines(tmp_path / "whole", "trajectories")]
    assert tasks == [line["task_id"] for line in lines(tmp_path / "broken", "trajectories")]
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    # It has drawn otherwise than a run without one.
    run_training(tmp_path / "plain")
    assert tasks != [line["task_id"] for line in lines(tmp_path / "plain", "trajectories")]
