"""New telecom tasks over upstream's customers: faults of phone, line and account, alone and together.

A task breaks things by upstream's own initialization functions and asserts by upstream's own assertions
that they were mended. What upstream's tasks do not have: other customers and lines, network modes and
amounts, combinations that it leaves out, and requests about the account.

Invariant: what can be mended must be mended. A task that ends in a transfer has a fault beside it whose
repair is asserted, or asked for as an action, so neither doing nothing nor an immediate transfer earns
anything.
"""

from __future__ import annotations

import datetime
import random
from dataclasses import dataclass, field
from typing import Any

from ...domains.script import pick
from .words import Ask, Draft, action, listed, third

Json = dict[str, Any]

TODAY = "2025-02-25"
"""Upstream's clock of this domain, as its policy tells the agent."""
KINDS: dict[str, int] = {
    "service_issue": 6,
    "mobile_data_issue": 28,
    "mms_issue": 38,
    "several": 14,
    "transfer": 7,
    "account": 7,
}
BILL = "B9070001"
"""Id of the overdue bill that a suspension makes; given to upstream's own function."""

_COUNTRIES = (
    "Portugal",
    "Japan",
    "Norway",
    "Chile",
    "Greece",
    "Morocco",
    "Canada",
    "Vietnam",
    "Ireland",
    "Peru",
)
_SINCE = (
    "since this morning",
    "since yesterday evening",
    "for some hours",
    "since {my} last trip",
    "for two days",
)
_COMPLAINTS = {
    "service_issue": (
        "Your phone has had no service {since}.",
        "You cannot call anybody {since}: there is no signal.",
    ),
    "mobile_data_issue": (
        "The internet on your phone is slow or does not work at all {since}, and there is no Wi-Fi where "
        "you are.",
        "Mobile data on your phone has not worked properly {since}; you have no Wi-Fi to fall back on.",
    ),
    "mms_issue": (
        "You cannot send pictures in your messaging app {since}.",
        "Picture messages (MMS) do not leave your phone {since}.",
    ),
}
_WANTS = {
    "service_issue": "have {my} phone service working again",
    "mobile_data_issue": "have {my} mobile data working again, at excellent speed",
    "mms_issue": "be able to send picture messages again",
}
_DONE_WHEN = {
    "service_issue": "when the status bar shows a signal",
    "mobile_data_issue": "when a speed test says that it is excellent, not just good",
    "mms_issue": "when the phone says that it can send MMS",
}
_PHONE_RULES = (
    "Use your phone only as the agent asks you to, one step at a time, and report what it shows; never "
    "make up "
    "what it shows. When a step does not solve the problem, say so and go on."
)


@dataclass
class Fault:
    """One thing that is broken, and what mends it."""

    setup: list[Json]
    fix: list[Json]
    asserted: list[Json] = field(default_factory=list)
    """That it was mended, as far as upstream can say it of this fault alone."""


class Telecom:
    """Draws drafts of telecom tasks. Every customer that has active lines can call."""

    domain = "telecom"
    kinds = KINDS

    def __init__(self, db: Json, taken: set[str]):
        del taken  # telecom has two customers: leakage is told by the family of faults
        self.plans: dict[str, Json] = {p["plan_id"]: p for p in db["plans"]}
        self.lines: dict[str, Json] = {r["line_id"]: r for r in db["lines"]}
        self.overdue: dict[str, list[str]] = {
            c["customer_id"]: [
                b["bill_id"]
                for b in db["bills"]
                if b["bill_id"] in c["bill_ids"] and b["status"] == "Overdue"
            ]
            for c in db["customers"]
        }
        self.callers = [
            (customer, self.lines[line])
            for customer in db["customers"]
            if customer["account_status"] == "Active"
            for line in customer["line_ids"]
            if self.lines[line]["status"] == "Active"
        ]

    def draw(self, rng: random.Random, kind: str) -> Draft | None:
        """A draft of that kind, or None when what was drawn does not go together."""
        customer, line = pick(rng, self.callers)
        draft = Draft(
            kind,
            line["phone_number"],
            (f"{{my}} phone number is {line['phone_number']}", {"phone": line["phone_number"]}),
            [f"You are {customer['full_name']}.", f"Your phone number is {line['phone_number']}."],
            [],
            setup=[
                _init("user", "set_user_info", name=customer["full_name"], phone_number=line["phone_number"])
            ],
            basis=("ENV_ASSERTION",),
        )
        if kind == "account":
            made = self._account(rng, draft, customer, line)
        else:
            trouble = kind if kind in _WANTS else pick(rng, tuple(_WANTS)) if kind == "several" else None
            made = self._trouble(rng, draft, customer, line, trouble)
        if made:
            made.ticket = _ticket(made)
        return made

    # ------------------------------------------------------------ phone trouble

    def _trouble(
        self, rng: random.Random, draft: Draft, customer: Json, line: Json, what: str | None
    ) -> Draft | None:
        final = what is None
        what = what or rng.choice(("service_issue", "service_issue", "mobile_data_issue"))
        faults = self._faults(rng, customer, line, what)
        if final:
            faults = self._unsolvable(rng, faults, customer, line, what)
        if not faults:
            return None
        abroad = any(n.startswith("roaming") for n in faults)
        if not abroad and what != "service_issue" and rng.random() < 0.1:
            draft.setup.append(_init("user", "set_user_location", abroad=False))
        for fault in faults.values():
            draft.setup += fault.setup
            if final:
                draft.assertions += fault.asserted
        gold = [a for fault in faults.values() for a in fault.fix]
        where = f"abroad, in {pick(rng, _COUNTRIES)}" if abroad else "at home in the United States"
        draft.known.append(f"You are {where}.")
        ask = Ask(_WANTS[what], {"do": what}, gold)
        if what != "service_issue":
            ask.later["where"] = (f"{{I}} {{am}} {where}", {"abroad": abroad})
        if "usage" in faults:
            amount = faults["usage"].fix[0]["arguments"]["gb_amount"] if faults["usage"].fix else 0.0
            ask.later["amount"] = _willing(amount)
        draft.asks.append(ask)
        draft.notes.append(f"It is solved for you only {_DONE_WHEN[what]}.")
        if not final:
            draft.assertions += _solved(what)
            for fault in faults.values():
                draft.assertions += [a for a in fault.asserted if a["env_type"] == "assistant"]
        else:
            draft.basis = ("ENV_ASSERTION", "ACTION")
            draft.notes.append("If the agent hands you over to a human, accept that.")
        if "suspended" in faults:
            draft.notes.append("If the agent asks you to pay a bill, you pay it.")
        if draft.kind == "several" and not self._and_account(rng, draft, customer, line):
            return None
        draft.notes.append(_PHONE_RULES)
        since = pick(rng, _SINCE).format(my="your")
        draft.opening = pick(rng, _COMPLAINTS[what]).format(since=since)
        return draft

    def _faults(self, rng: random.Random, customer: Json, line: Json, what: str) -> dict[str, Fault]:
        """A draw of faults that each keep this from working; in an order in which none undoes another."""
        ids = {"customer_id": customer["customer_id"], "line_id": line["line_id"]}
        names: list[str] = [n for n in ("airplane", "sim") if rng.random() < 0.35]
        if what == "service_issue":
            names += [n for n in ("apn", "suspended") if rng.random() < 0.5]
        else:
            names += [n for n in ("data", "usage") if rng.random() < 0.35]
            names += (
                [rng.choice(("roaming_phone", "roaming_line", "roaming_both"))] if rng.random() < 0.5 else []
            )
            names += ["mode"] if rng.random() < 0.5 else []
        if what == "mobile_data_issue":
            names += [n for n in ("saver", "vpn") if rng.random() < 0.5]
        if what == "mms_issue":
            names += [n for n in ("wifi_calling", "mms_apn") if rng.random() < 0.4]
            names += [rng.choice(("sms", "storage", "sms_storage"))] if rng.random() < 0.6 else []
            own = {"mode", "wifi_calling", "mms_apn", "sms", "storage", "sms_storage"}
            if not own & set(names):
                names.append("mms_apn")
        faults = {n: self._fault(rng, n, ids, line, what) for n in names}
        return {n: f for n, f in faults.items() if f is not None}

    def _fault(self, rng: random.Random, name: str, ids: Json, line: Json, what: str) -> Fault | None:
        phone: dict[str, tuple[str, list[str]]] = {
            "airplane": ("turn_airplane_mode_on", ["toggle_airplane_mode"]),
            "sim": ("unseat_sim_card", ["reseat_sim_card"]),
            "apn": ("break_apn_settings", ["reset_apn_settings", "reboot_device"]),
            "data": ("turn_data_off", ["toggle_data"]),
            "saver": ("turn_data_saver_mode_on", ["toggle_data_saver_mode"]),
            "vpn": ("break_vpn", ["disconnect_vpn"]),
            "mms_apn": ("break_apn_mms_setting", ["reset_apn_settings", "reboot_device"]),
        }
        if name in phone:
            breaks, mends = phone[name]
            asserted = {
                "airplane": [_assert("user", "assert_airplane_mode_status", expected_status=False)],
                "saver": [_assert("user", "assert_mobile_data_saver_mode_status", expected_status=False)],
            }
            return Fault([_init("user", breaks)], [action(m, "user") for m in mends], asserted.get(name, []))
        if name in ("sms", "storage", "sms_storage"):
            wanted = name.split("_")
            return Fault(
                [_init("user", "remove_app_permission", app_name="messaging", permission=p) for p in wanted],
                [action("grant_app_permission", "user", app_name="messaging", permission=p) for p in wanted],
            )
        if name == "wifi_calling":
            return Fault(
                [_init("user", "set_wifi_calling", enabled=True, mms_over_wifi=True)],
                [action("toggle_wifi_calling", "user")],
            )
        if name == "mode":
            mode = "2g_only" if what == "mms_issue" else rng.choice(("2g_only", "3g_only", "4g_only"))
            return Fault(
                [_init("user", "set_network_mode_preference", mode=mode)],
                [action("set_network_mode_preference", "user", mode="4g_5g_preferred")],
            )
        if name == "usage":
            return self._used_up(rng, ids, line)
        if name == "suspended":
            return self._suspended(ids)
        phone_on, line_on = name == "roaming_line", name == "roaming_phone"
        fix = [] if line_on else [action("enable_roaming", **ids)]
        fix += [] if phone_on else [action("toggle_roaming", "user")]
        return Fault(
            [
                _init("user", "set_user_location", abroad=True),
                _init("user", "turn_roaming_on" if phone_on else "turn_roaming_off"),
                _init("assistant", "enable_roaming" if line_on else "disable_roaming", **ids),
            ],
            fix,
        )

    def _used_up(self, rng: random.Random, ids: Json, line: Json) -> Fault | None:
        """The plan's data is used up; on an unlimited plan that does not happen."""
        limit = self.plans[line["plan_id"]]["data_limit_gb"]
        if limit > 100:
            return None
        amount = rng.choice((0.5, 1.0, 1.5, 2.0))
        used = round(limit + rng.randint(1, int(amount * 10) - 1) / 10, 1)
        return Fault(
            [_init("assistant", "set_data_usage", **ids, data_used_gb=used)],
            [action("refuel_data", **ids, gb_amount=amount)],
            [_assert("assistant", "assert_data_refueling_amount", **ids, expected_amount=amount)],
        )

    def _suspended(self, ids: Json, contract_ended: bool = False) -> Fault | None:
        """The line is suspended for an overdue bill: a new one, or the one that the customer has."""
        mine = self.overdue[ids["customer_id"]]
        if mine and contract_ended:
            return None
        if mine:
            setup = [_init("assistant", "suspend_line", **ids, reason="overdue bill")]
        else:
            setup = [
                _init(
                    "assistant",
                    "suspend_line_for_overdue_bill",
                    **ids,
                    new_bill_id=BILL,
                    contract_ended=contract_ended,
                )
            ]
        bill = mine[0] if mine else BILL
        return Fault(
            [*setup, _init("user", "simulate_network_search")],
            [
                action("send_payment_request", customer_id=ids["customer_id"], bill_id=bill),
                action("make_payment", "user"),
                action("resume_line", **ids),
                action("reboot_device", "user"),
            ],
            [
                _assert("assistant", "assert_no_overdue_bill", overdue_bill_id=bill),
                _assert("assistant", "assert_line_status", **ids, expected_status="Active"),
            ],
        )

    def _unsolvable(
        self, rng: random.Random, faults: dict[str, Fault], customer: Json, line: Json, what: str
    ) -> dict[str, Fault]:
        """Adds what only a human can mend, beside faults that must be mended all the same (ACTION)."""
        ids = {"customer_id": customer["customer_id"], "line_id": line["line_id"]}
        handover = {**action("transfer_to_human_agents", summary="beyond what I can do"), "compare_args": []}
        end: dict[str, Fault] = {}
        if what == "mobile_data_issue":
            keep = {n: f for n, f in faults.items() if n not in ("usage", "mode", "vpn")}
            used = self._used_up(rng, ids, line)
            if used is None:
                return {}
            end["usage"] = Fault(
                used.setup, [], [_assert("user", "assert_mobile_data_status", expected_status=False)]
            )
        else:
            keep = dict(faults)
            lock = rng.choice(("pin", "puk", "contract"))
            if lock == "contract":
                keep.pop("suspended", None)
                contract = self._suspended(ids, contract_ended=True)
                if contract is None:
                    return {}
                suspended = _assert("assistant", "assert_line_status", **ids, expected_status="Suspended")
                end["contract"] = Fault(contract.setup, [], [suspended])
            else:
                end["lock"] = Fault([_init("user", "lock_sim_card", mode=lock)], [])
            no_service = _assert("user", "assert_service_status", expected_status="no_service")
            end["end"] = Fault([], [], [no_service])
        if not keep:
            return {}
        end["handover"] = Fault([], [handover])
        return {**keep, **end}

    # ------------------------------------------------------------ the account

    def _and_account(self, rng: random.Random, draft: Draft, customer: Json, line: Json) -> bool:
        """Adds a request about the account whose outcome upstream can assert."""
        owner = customer["customer_id"]
        others = [r for c, r in self.callers if c is customer and r is not line]
        if self.overdue[owner] and not any("suspend" in s["func_name"] for s in draft.setup):
            draft.asks.append(self._pay(customer, draft))
            return True
        others = [r for r in others if self.plans[r["plan_id"]]["data_limit_gb"] < 100]
        if not others:
            return False
        draft.asks.append(self._refuel(rng, customer, pick(rng, others), draft))
        return True

    def _account(self, rng: random.Random, draft: Draft, customer: Json, line: Json) -> Draft | None:
        """One to three requests about the account, nothing being wrong with the phone."""
        lines = [r for c, r in self.callers if c is customer]
        limited = [r for r in lines if self.plans[r["plan_id"]]["data_limit_gb"] < 100]
        chosen = [("roaming", r) for r in rng.sample(lines, rng.randint(0, 2))]
        chosen += [("refuel", r) for r in rng.sample(limited, rng.randint(0, len(limited)))]
        chosen += [("pay", line)] if self.overdue[customer["customer_id"]] and rng.random() < 0.5 else []
        rng.shuffle(chosen)
        for what, about in chosen[:3]:
            if what == "pay":
                draft.asks.append(self._pay(customer, draft))
            elif what == "refuel":
                draft.asks.append(self._refuel(rng, customer, about, draft))
            else:
                draft.asks.append(self._roam(rng, customer, about, draft))
        draft.basis = ("ENV_ASSERTION", "ACTION") if draft.assertions else ("ACTION",)
        draft.notes.append("If the agent asks you to pay a bill, you pay it.")
        return draft if draft.asks else None

    def _pay(self, customer: Json, draft: Draft) -> Ask:
        bill = self.overdue[customer["customer_id"]][0]
        draft.assertions.append(_assert("assistant", "assert_no_overdue_bill", overdue_bill_id=bill))
        return Ask(
            "pay {my} overdue bill",
            {"do": "pay"},
            [
                action("send_payment_request", customer_id=customer["customer_id"], bill_id=bill),
                action("make_payment", "user"),
            ],
        )

    def _refuel(self, rng: random.Random, customer: Json, line: Json, draft: Draft) -> Ask:
        ids = {"customer_id": customer["customer_id"], "line_id": line["line_id"]}
        amount = rng.choice((0.5, 1.0, 1.5, 2.0))
        draft.assertions.append(
            _assert("assistant", "assert_data_refueling_amount", **ids, expected_amount=amount)
        )
        return Ask(
            f"add {amount} GB of data to the line with the number {line['phone_number']}",
            {"do": "refuel", "phone": line["phone_number"], "amount": amount},
            [action("refuel_data", **ids, gb_amount=amount)],
        )

    def _roam(self, rng: random.Random, customer: Json, line: Json, draft: Draft) -> Ask:
        ids = {"customer_id": customer["customer_id"], "line_id": line["line_id"]}
        draft.setup.append(_init("assistant", "disable_roaming", **ids))
        country = pick(rng, _COUNTRIES)
        return Ask(
            f"have data roaming enabled for the line with the number {line['phone_number']}, which is in "
            f"{country} "
            "at the moment",
            {"do": "roaming", "phone": line["phone_number"]},
            [action("enable_roaming", **ids)],
        )


_TROUBLES = {
    "assert_can_send_mms": "picture messages",
    "assert_internet_speed": "mobile data",
    "assert_mobile_data_status": "mobile data",
    "assert_service_status": "service",
}
"""Upstream's assertion → the trouble that it is about."""


def families(task: Json) -> set[str]:
    """What kind of trouble a telecom task is, whosever phone it is and whatever the amounts are: by what is
    broken, and by what mends it. Two tasks that share one of these are solved alike.

    Made of upstream's format, so it tells upstream's own template families too.
    """
    criteria = task["evaluation_criteria"]
    asserted = [a["func_name"] for a in criteria.get("env_assertions") or ()]
    trouble = next((words for name, words in _TROUBLES.items() if name in asserted), "account")
    broken = set()
    for call in (task.get("initial_state") or {}).get("initialization_actions") or ():
        name, arguments = call["func_name"], call["arguments"]
        if name in ("set_user_info", "simulate_network_search") or arguments.get("abroad") is False:
            continue
        name = "suspended" if name.startswith("suspend_line") else name
        told = [arguments.get("permission", ""), "contract" if arguments.get("contract_ended") else ""]
        broken.add(" ".join([name, *told]).strip())
    found = {f"{trouble}, broken: {listed(sorted(broken))}"} if broken else set()
    mends = {f"{a['name']} {a['arguments'].get('permission', '')}" for a in criteria.get("actions") or ()}
    if mends and not any(m.startswith("transfer") for m in mends) and trouble != "account":
        found.add(f"{trouble}, mended: {listed(sorted(m.strip() for m in mends))}")
    return found


def _ticket(draft: Draft) -> str:
    """What somebody who took the call wrote down."""
    parts = [known.replace("Your phone", "Phone") for known in draft.known[:2]]
    parts[0] = parts[0].replace("You are", "Customer:")
    parts += [f"They want to {third(ask.want)}." for ask in draft.asks]
    for ask in draft.asks:
        told = [third(words) for words, _ in ask.later.values()]
        parts += [f"{t[0].upper()}{t[1:]}." for t in told]
        if ask.data["do"] in _DONE_WHEN:
            parts.append(f"It is solved only {_DONE_WHEN[ask.data['do']]}.")
    return " ".join([*parts, "They agree to the fees, and to pay bills that are overdue."])


def _solved(what: str) -> list[Json]:
    if what == "service_issue":
        return [_assert("user", "assert_service_status", expected_status="connected")]
    if what == "mms_issue":
        return [_assert("user", "assert_can_send_mms", expected_status=True)]
    return [
        _assert("user", "assert_mobile_data_status", expected_status=True),
        _assert("user", "assert_internet_speed", expected_speed=200, expected_desc="excellent"),
    ]


def _willing(amount: float) -> tuple[str, Json]:
    if not amount:
        return "{I} {am} not willing to pay for any more data", {"amount": 0}
    return f"{{I}} want to add {amount} GB of data, no more and no less", {"amount": amount}


def _init(side: str, name: str, /, **arguments: Any) -> Json:
    return {"env_type": side, "func_name": name, "arguments": arguments}


def _assert(side: str, name: str, /, **arguments: Any) -> Json:
    return {**_init(side, name, **arguments), "assert_value": True, "message": None}


def contract_over(end: str | None) -> bool:
    """True when a contract's end date lies before upstream's today."""
    return bool(end) and datetime.date.fromisoformat(str(end)) < datetime.date.fromisoformat(TODAY)
