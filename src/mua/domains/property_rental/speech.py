"""Who speaks at the tenants' desk without a language model: the tenant and the expert."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..casework import Clerk, Desk
from ..script import ScriptUser
from .decide import AT_ONCE, decide
from .tools import TenantsDesk

_MONEY = re.compile(r"(\d[\d,]*)\.(\d\d)\b")


def declines(request: Mapping[str, Any], proposal: str) -> bool:
    """What is proposed costs more than the tenant wants to pay."""
    costs = (100 * int(whole.replace(",", "")) + int(cents) for whole, cents in _MONEY.findall(proposal))
    return "at_most" in request and max(costs, default=0) > request["at_most"]


DESK = Desk(
    toolkit=TenantsDesk,
    person="tenant_id",
    finders={"tenant_id": "find_tenant", "name": "find_tenant_by_name"},
    decide=decide,
    at_once=AT_ONCE,
    declines=declines,
)


class Tenant(ScriptUser):
    """The tenant of a task."""

    topics: ClassVar[Mapping[str, re.Pattern[str]]] = {
        "who": re.compile(r"tenant number|date of birth|who (are you|am i)|your (full )?name", re.I),
        "charge": re.compile(r"which charge|charge number", re.I),
        "amount": re.compile(r"how much|which amount", re.I),
        "lease": re.compile(r"which lease|lease number", re.I),
        "date": re.compile(r"which day|which date|what date|move.?out|when", re.I),
        "rates": re.compile(r"how many", re.I),
        "outage": re.compile(r"out of order|which outage", re.I),
    }

    def _confirm(self, text: str) -> str:
        # Too dear is as good as a change of mind.
        if declines(self.request, text):
            self.request = {**self.request, "withdraw": True}
        return super()._confirm(text)


class TenantsExpert(Clerk):
    """The expert of the tenants' desk."""

    desk: ClassVar[Desk] = DESK
    who_question: ClassVar[Sequence[str]] = (
        "What is your tenant number, or your full name and date of birth?",
        "To find you, I need your tenant number, or your full name and date of birth. Who are you?",
    )
    questions: ClassVar[Mapping[str, Sequence[str]]] = {
        "charge": ("Which charge is it?", "What is the charge number?"),
        "amount": ("How much do you want to pay, all of it or a part?", "How much shall it be?"),
        "lease": ("You have more than one lease. Which lease is it?", "What is the lease number?"),
        "date": ("On which day do you want to move out?", "What is your move-out date?"),
        "rates": ("In how many monthly rates would you like to pay?",),
        "outage": ("What was out of order: the heating, the hot water or the lift?",),
    }
    why: ClassVar[Mapping[str, str]] = {
        "not_yours": "I can only serve you for leases and charges of your own.",
        "not_open": "nothing of that charge is open.",
        "older_open": "an earlier charge of that lease has to be paid first.",
        "too_much": "that is more than what is open.",
        "minimum": "a part payment must be at least 20.00 euros.",
        "not_late_fee": "that charge is no late fee, and only late fees can be waived.",
        "rent_open": "the rent of the same month has to be paid first.",
        "waived_before": "a fee of that lease was already waived within the last twelve months.",
        "too_large": "we do not waive fees above 50.00 euros.",
        "not_ended": "the deposit is paid back only after the lease has ended.",
        "refunded": "that deposit is already paid back.",
        "no_inspection": "no inspection of the flat is recorded yet.",
        "nothing_left": "after all deductions nothing is left of the deposit.",
        "not_active": "that lease is not active, so it cannot be ended.",
        "too_short": "a lease can be ended with 14 days' notice at the least.",
        "arrears": "a lease cannot be ended while more than one month's rent is owed.",
        "plan_running": "a payment plan is already running for that lease.",
        "too_small": "a plan is only possible for arrears of 100.00 euros or more.",
        "rates": "a plan has 2 to 6 rates.",
        "ongoing": "that outage is not over yet.",
        "credited": "that outage is already credited.",
        "too_brief": "an outage of fewer than 3 days is not credited.",
        "too_late": "that outage ended more than 90 days ago.",
    }
