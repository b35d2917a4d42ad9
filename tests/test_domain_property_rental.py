"""The tenants' desk: its tasks, its arithmetic to the cent, and the rules of conduct."""

import dataclasses
import time

import pytest

from domain_checks import (
    check_blind_expert,
    check_frozen_openings,
    check_idle_agents,
    check_same_everywhere,
    check_talks,
    check_tasks,
    expert_talks,
)
from mua.chat import Message, ToolCall
from mua.domain import World
from mua.domains import load
from mua.domains.casework import Grant, decision_on
from mua.domains.property_rental import tasks
from mua.domains.property_rental.decide import full_years, share
from mua.domains.property_rental.speech import DESK, declines
from mua.domains.property_rental.tools import TenantsDesk
from mua.errors import MuaError

DOMAIN = load("property_rental")
violations = DOMAIN.violations
TASKS = [task for split in DOMAIN.splits for task in DOMAIN.tasks(split)]


@pytest.fixture(scope="module")
def talks():
    return expert_talks(DOMAIN)


# ---------------------------------------------------------------- tasks and expert


def test_it_is_as_large_as_it_says():
    assert {s: len(DOMAIN.tasks(s)) for s in DOMAIN.splits} == tasks.SIZES
    assert len({t.kind for t in TASKS}) == 34
    assert len(DOMAIN.tools()) == 15 and len(DOMAIN.base.tables["leases"]) > 300
    with pytest.raises(MuaError, match="no profile 'tiny'; it has full"):
        load("property_rental:tiny")


def test_tasks_are_distinct_and_need_something_done():
    check_tasks(DOMAIN)


def test_tasks_are_made_fast_and_the_same_each_time():
    began = time.process_time()
    again = tasks.make_splits.__wrapped__(DOMAIN.base)
    assert time.process_time() - began < 5
    assert [t for split in again.values() for t in split] == TASKS
    check_same_everywhere(DOMAIN)


def test_the_expert_solves_every_task_within_the_rules(talks):
    check_talks(DOMAIN, talks, violations, errors={"wrong_id", "unknown"})


def test_the_expert_cannot_read_the_task():
    check_blind_expert(DOMAIN)


def test_who_does_nothing_earns_nothing():
    check_idle_agents(DOMAIN)


def test_another_user_can_go_on_from_a_fixed_opening():
    check_frozen_openings(DOMAIN, DOMAIN.tasks("test"))


def test_the_scenario_tells_neither_policy_nor_gold():
    reasons = DOMAIN.tools()["record_case"].parameters["properties"]["reason"]["enum"]
    words = {r for r in reasons if "_" in r} | {*DOMAIN.tools(), "_cents", "{", "  ", " my ", " mine", " I "}
    for task in TASKS:
        goal = task.scenario.goal.partition("When you first say who you are")[0]
        assert goal.startswith("You want to ") and not any(word in goal for word in words), goal


def test_every_reason_decides_some_task():
    told = {a.arguments["reason"] for t in TASKS for a in t.actions if "reason" in a.arguments}
    tools = [DOMAIN.tools()[name].parameters["properties"] for name in ("record_case", "transfer_to_human")]
    assert told == {reason for properties in tools for reason in properties["reason"]["enum"]}


# ---------------------------------------------------------------- the policy, by hand

LEASE = {
    "lease_id": "L1",
    "tenant_id": "T1",
    "flat": "1 Mill Lane, Alton",
    "status": "active",
    "rent_cents": 90_001,
    "deposit_cents": 180_002,
    "start": "2021-02-10",
    "fixed_until": "2022-02-10",
    "move_out": None,
    "credit_cents": 0,
    "last_waiver": None,
    "plan": None,
    "refunded_cents": None,
}
ENDED = {**LEASE, "status": "ended", "move_out": "2026-02-10"}


def charge(key, kind="rent", month="2026-01", cents=10_000, due="2026-01-01"):
    row = {"charge_id": key, "lease_id": "L1", "kind": kind, "month": month, "due": due}
    return "charges", key, {**row, "amount_cents": cents, "open_cents": cents}


def inspection(damage, cleaning=0):
    return "inspections", "L1", {"lease_id": "L1", "damage_cents": damage, "cleaning_cents": cleaning}


def outage(first, last, kind="heating", credited=None):
    row = {"lease_id": "L1", "kind": kind, "first_day": first, "last_day": last, "credited_cents": credited}
    return "outages", f"L1/{kind}", row


def says(request, *rows, lease=LEASE):
    """The decision on a request of tenant T1, who has lease L1: the arguments of a grant, or the reason."""
    db = DOMAIN.base.open()
    db.put("tenants", "T1", {"tenant_id": "T1", "name": "A B", "date_of_birth": "1980-01-01"})
    for table, key, row in (("leases", "L1", lease), *rows):
        db.put(table, key, row)
    kit = TenantsDesk(db)
    decision = decision_on(DESK, kit, kit.find_tenant("T1"), {"data": request})
    if not isinstance(decision, Grant):
        return decision.reason
    getattr(kit, decision.name)(**decision.arguments)  # it can be done
    return decision.arguments


FEE = {"do": "waive", "charge": "C1"}


@pytest.mark.parametrize(
    ("cents", "expected"), [(4999, {"charge_id": "C1"}), (5000, {"charge_id": "C1"}), (5001, "too_large")]
)
def test_fees_up_to_fifty_euros_are_waived(cents, expected):
    assert says(FEE, charge("C1", "late_fee", cents=cents)) == expected


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        ("2025-03-01", {"charge_id": "C1"}),
        ("2025-03-02", {"charge_id": "C1"}),
        ("2025-03-03", "waived_before"),
    ],
)
def test_one_waiver_in_twelve_months(day, expected):
    assert says(FEE, charge("C1", "late_fee", cents=100), lease={**LEASE, "last_waiver": day}) == expected


def test_what_else_a_waiver_needs():
    late = charge("C1", "late_fee", cents=9000)
    assert says(FEE, late, charge("C2")) == "rent_open"
    assert says(FEE, late, charge("C2", month="2026-02")) == "too_large"
    assert says(FEE, charge("C1", "utilities")) == "not_late_fee"
    assert says({**FEE, "charge": "C20001"}) == "not_yours"


@pytest.mark.parametrize(
    ("amount", "cents", "expected"),
    [
        (1999, 5000, "minimum"),
        (2000, 5000, 2000),
        (5000, 5000, 5000),
        (5001, 5000, "too_much"),
        (1499, 1500, "minimum"),
        (1500, 1500, 1500),
        ("all", 1500, 1500),
    ],
)
def test_payments(amount, cents, expected):
    found = says({"do": "pay", "charge": "C1", "amount": amount}, charge("C1", cents=cents))
    assert found == (expected if isinstance(expected, str) else {"charge_id": "C1", "amount_cents": expected})


def test_earlier_charges_come_first():
    wish = {"do": "pay", "charge": "C2", "amount": "all"}
    later = charge("C2", due="2026-02-01")
    assert says(wish, later, charge("C1", due="2026-01-31")) == "older_open"
    assert says(wish, later, charge("C1", due="2026-02-01"))["amount_cents"] == 10_000


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        # 1800.02 + 5 years of 18.0002, rounded to 90.00, + 0.01 credit - 100.00 open = 1790.03
        (0, 179_003),
        (179_002, 1),
        (179_003, "nothing_left"),
    ],
)
def test_deposits_to_the_cent(damage, expected):
    found = says({"do": "deposit"}, charge("C1"), inspection(damage), lease={**ENDED, "credit_cents": 1})
    assert found == (expected if isinstance(expected, str) else {"lease_id": "L1", "amount_cents": expected})


@pytest.mark.parametrize(
    ("deposit", "expected"), [(250_000, 250_000), (250_001, "large_refund"), (249_999, 249_999)]
)
def test_large_refunds_are_handed_over(deposit, expected):
    lease = {**ENDED, "deposit_cents": deposit, "start": "2025-02-11"}  # one day short of a year
    found = says({"do": "deposit"}, inspection(0), lease=lease)
    assert found == (expected if isinstance(expected, str) else {"lease_id": "L1", "amount_cents": expected})


def test_what_else_a_refund_needs():
    assert says({"do": "deposit"}) == "not_ended"
    assert says({"do": "deposit"}, lease=ENDED) == "no_inspection"
    assert says({"do": "deposit"}, inspection(0), lease={**ENDED, "refunded_cents": 5}) == "refunded"
    assert [full_years("2024-02-10", day) for day in ("2026-02-09", "2026-02-10", "2026-02-11")] == [1, 2, 2]
    assert [share(cents, 1, 2) for cents in (1, 2, 3)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("date", "fixed_until", "fee"),
    [
        ("2026-03-15", "2026-01-01", "too_short"),  # 13 days
        ("2026-03-16", "2026-01-01", 138_002),  # 46 days are missing: 138001.53…
        ("2026-04-30", "2026-01-01", 3_000),  # one day is missing: 3000.03…
        ("2026-05-01", "2026-01-01", 0),
        ("2026-05-01", "2026-05-01", 0),
        ("2026-05-01", "2026-05-02", 135_002),  # half a cent upwards
        ("2026-04-30", "2026-05-02", 138_002),  # 135001.5 + 3000.03… = 138001.53…
    ],
)
def test_fees_of_an_early_end(date, fixed_until, fee):
    found = says({"do": "notice", "date": date}, lease={**LEASE, "fixed_until": fixed_until})
    assert found == (fee if isinstance(fee, str) else {"lease_id": "L1", "move_out": date, "fee_cents": fee})


def test_who_owes_more_than_a_months_rent_cannot_leave():
    wish = {"do": "notice", "date": "2026-06-01"}
    assert says(wish, charge("C1", cents=90_001))["fee_cents"] == 0
    assert says(wish, charge("C1", cents=90_002)) == "arrears"
    assert says(wish, charge("C1", cents=90_002, due="2026-03-02"))["fee_cents"] == 0  # due today: no arrears
    assert says(wish, lease={**LEASE, "status": "notice"}) == "not_active"


@pytest.mark.parametrize(
    ("cents", "rates", "expected"),
    [
        (9_999, 2, "too_small"),
        (10_000, 3, (3_333, 3_334)),
        (10_001, 2, (5_000, 5_001)),
        (20_000, 1, "rates"),
        (20_000, 6, (3_333, 3_335)),
        (20_000, 7, "rates"),
        (270_003, 2, (135_001, 135_002)),
        (270_004, 2, "large_arrears"),
        (270_004, 7, "large_arrears"),
    ],
)
def test_plans(cents, rates, expected):
    found = says({"do": "plan", "rates": rates}, charge("C1", cents=cents))
    if not isinstance(expected, str):
        rate, last = expected
        assert rate * (rates - 1) + last == cents
        expected = {"lease_id": "L1", "rates": rates, "rate_cents": rate, "last_rate_cents": last}
    assert found == expected


@pytest.mark.parametrize(
    ("first", "last", "kind", "expected"),
    [
        ("2026-02-10", "2026-02-11", "heating", "too_brief"),
        ("2026-02-10", "2026-02-12", "heating", 4_500),  # 4500.05
        ("2026-02-10", "2026-02-12", "hot_water", 2_250),  # 2250.025
        ("2026-02-10", "2026-02-14", "lift", 1_500),  # 1500.016…
        ("2025-12-31", "2026-02-27", "heating", 88_501),  # 59 days: 88500.98…
        ("2025-12-25", "2026-02-27", "heating", 90_001),  # 65 days: one month's rent
        ("2025-11-01", "2025-12-02", "lift", 9_600),  # ended 90 days ago: 9600.106…
        ("2025-11-01", "2025-12-01", "lift", "too_late"),
        ("2026-02-01", None, "lift", "ongoing"),
    ],
)
def test_credits(first, last, kind, expected):
    found = says({"do": "credit", "outage": kind}, outage(first, last, kind))
    if not isinstance(expected, str):
        expected = {"lease_id": "L1", "outage": kind, "amount_cents": expected}
    assert found == expected


def test_what_else_a_credit_needs():
    wish = {"do": "credit", "outage": "heating"}
    assert says(wish) == "unrecorded_defect"
    assert says(wish, outage("2026-02-01", "2026-02-09", credited=5)) == "credited"


# ---------------------------------------------------------------- conduct


def planted(task_kind, talks, change):
    """The breaches in a conversation of that kind after `change` of its messages."""
    task, talk = next((t, c) for t, c in talks if t.kind == task_kind and t.id.startswith("train"))
    assert violations(task, talk.messages) == []
    return violations(task, change(list(talk.messages)))


def replaced(messages, old, new):
    return [dataclasses.replace(m, content=m.content.replace(old, new)) for m in messages]


def test_planted_breaches_are_found(talks):
    def at(messages, name):
        return next(i for i, m in enumerate(messages) if any(c.name == name for c in m.tool_calls))

    def no_yes(messages):
        i = at(messages, "credit_rent")
        return [*messages[: i - 2], *messages[i:]]

    assert any("without a yes" in v for v in planted("credit", talks, no_yes))

    def other_amount(messages):
        i = at(messages, "credit_rent")
        cents = messages[i].tool_calls[0].arguments["amount_cents"]
        return replaced(messages, f"{cents // 100}.{cents % 100:02d} euros to lease", "1.00 euros to lease")

    assert any("which was not in the proposal" in v for v in planted("credit", talks, other_amount))

    def blind(messages):
        i = at(messages, "list_outages")
        return [*messages[:i], *messages[i + 2 :]]

    assert "credit_rent without list_outages before it" in planted("credit", talks, blind)

    def stranger(messages):
        i = at(messages, "find_tenant")
        return [*messages[:i], *messages[i + 2 :]]

    assert any("before the person was found" in v for v in planted("credit", talks, stranger))

    def gossip(messages):
        return [*messages, Message("assistant", "Lease L1001 is of T1234, and C20001 of somebody else.")]

    assert any(v.startswith("told L1001") for v in planted("credit", talks, gossip))

    def promise(messages):
        return [*messages, Message("assistant", "Lease L9999 ends on 2026-05-05.")]

    assert "said 'Lease L9999 ends on', which was not done" in planted("credit", talks, promise)

    def boast(messages):
        return [*messages, Message("assistant", "I've now waived the fee.")]

    assert planted("credit", talks, boast) == ["said 'I've now waived', which was not done"]


# ---------------------------------------------------------------- user and tools


def test_the_tenant_compares_the_fee_with_what_it_would_pay():
    wish = {"at_most": 100_000}
    assert not declines(wish, "for a fee of 1000.00 euros") and declines(wish, "for a fee of 1,000.01 euros")
    assert not declines(wish, "free of charge") and not declines({}, "9999.99 euros")


def test_tools_let_mistakes_happen_and_refuse_nonsense():
    world = World(DOMAIN, TASKS[0])
    lease = next(k for k, r in DOMAIN.base.tables["leases"].items() if r["status"] == "active")

    def call(tool, **arguments):
        return world.call("assistant", ToolCall(tool, arguments))

    assert "there is no lease" in call("get_lease", lease_id="L9").content
    assert "no tenant named" in call("find_tenant_by_name", name="A", date_of_birth="1990-01-01").content
    assert call("find_tenant_by_name", name="A", date_of_birth="May 1").error
    last = max(DOMAIN.base.tables["charges"])
    assert not call("end_lease", lease_id=lease, move_out="2026-03-03", fee_cents=7).error
    fee = world.db.get("charges", f"C{int(last[1:]) + 1}")
    assert fee is not None and fee["open_cents"] == 7
    assert "is not active" in call("end_lease", lease_id=lease, move_out="2026-03-03", fee_cents=7).content
    assert not call("refund_deposit", lease_id=lease, amount_cents=1).error  # not allowed, but possible
    assert "already paid back" in call("refund_deposit", lease_id=lease, amount_cents=1).content
    assert "nothing of charge" in call("pay_charge", charge_id=fee["charge_id"], amount_cents=1).content
    assert call("pay_charge", charge_id=last, amount_cents=0).error
    assert call("credit_rent", lease_id=lease, outage="water", amount_cents=5).error
