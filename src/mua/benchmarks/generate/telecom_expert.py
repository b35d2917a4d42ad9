"""The expert program of the phone company, and the scripted user with a phone in its hand.

The expert works through upstream's troubleshooting manual: service, then mobile data, then picture
messages; it reads what the person reports and what its own tools say, and hands over only what it cannot
mend.

Invariant: it asks for one step at a time, and acts on the account only where the policy allows it.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from typing import Any

from ...chat import Message, ToolCall
from ...users import UserTurn
from .script import Call, Expert, Refused, Say, Script, ScriptUser
from .telecom import contract_over
from .words import money

Json = dict[str, Any]
Looked = Generator[Say | Call, Any, Any]

STEPS: dict[str, tuple[str, re.Pattern[str]]] = {
    "toggle_airplane_mode": (
        "Please switch airplane mode off.",
        re.compile(r"(switch|turn) .*airplane", re.I),
    ),
    "check_status_bar": (
        "Please look at the status bar at the top of your screen. What does it show?",
        re.compile(r"status bar", re.I),
    ),
    "reseat_sim_card": (
        "Please take your SIM card out and put it back in.",
        re.compile(r"sim .*put it back|reseat", re.I),
    ),
    "check_sim_status": ("Please check the state of your SIM card.", re.compile(r"state of your sim", re.I)),
    "reset_apn_settings": ("Please reset your APN settings.", re.compile(r"reset .*apn", re.I)),
    "check_apn_settings": (
        "Please open your APN settings. What do they show?",
        re.compile(r"apn settings", re.I),
    ),
    "reboot_device": ("Please restart your phone.", re.compile(r"restart your phone|reboot", re.I)),
    "check_network_status": (
        "Please check the network status of your phone.",
        re.compile(r"network status", re.I),
    ),
    "toggle_data": ("Please switch mobile data on.", re.compile(r"(switch|turn) mobile data", re.I)),
    "toggle_roaming": ("Please switch data roaming on.", re.compile(r"(switch|turn) data roaming", re.I)),
    "toggle_data_saver_mode": (
        "Please switch data saver off.",
        re.compile(r"(switch|turn) data saver", re.I),
    ),
    "check_data_restriction_status": (
        "Please check whether data saver is on.",
        re.compile(r"data saver", re.I),
    ),
    "set_network_mode_preference": (
        "Please set the preferred network mode to 4g_5g_preferred.",
        re.compile(r"set the preferred network mode to (?P<mode>\w+)", re.I),
    ),
    "check_network_mode_preference": (
        "Please check which network mode your phone prefers.",
        re.compile(r"which network mode", re.I),
    ),
    "disconnect_vpn": ("Please disconnect the VPN.", re.compile(r"disconnect the vpn", re.I)),
    "check_vpn_status": ("Please check whether a VPN is connected.", re.compile(r"\bvpn\b", re.I)),
    "toggle_wifi_calling": (
        "Please switch Wi-Fi calling off.",
        re.compile(r"(switch|turn) wi-fi calling", re.I),
    ),
    "check_wifi_calling_status": (
        "Please check whether Wi-Fi calling is on.",
        re.compile(r"wi-fi calling", re.I),
    ),
    "grant_app_permission": (
        "Please allow the app messaging to use {permission}.",
        re.compile(r"allow the app (?P<app_name>\w+) to use (?P<permission>\w+)", re.I),
    ),
    "check_app_permissions": (
        "Please check the permissions of the app messaging.",
        re.compile(r"permissions of the app (?P<app_name>\w+)", re.I),
    ),
    "can_send_mms": (
        "Please try whether your phone can send a picture message now.",
        re.compile(r"can send a picture message", re.I),
    ),
    "run_speed_test": ("Please run a speed test.", re.compile(r"speed test", re.I)),
    "check_payment_request": (
        "I sent you a payment request; please check it.",
        re.compile(r"payment request; please check", re.I),
    ),
    "make_payment": ("Please make that payment.", re.compile(r"make that payment", re.I)),
}
"""The person's tool → how the expert asks for it, and how the scripted user hears it; the first that fits."""


class PhoneUser(ScriptUser):
    """Plays the person of a telecom task; it does with its phone what it is asked to do."""

    async def reply(self, view: Sequence[Message]) -> UserTurn:
        """Reports what the phone said, does the next step, or speaks by its agenda."""
        if view and view[-1].role == "tool":
            shown = view[-1].content
            self.act = {"do": "report", "text": shown}
            return UserTurn(f"It says: {shown}")
        said = [m.content for m in view if m.role == "assistant"]
        if said and any(m.role == "user" for m in view):
            for name, (_, pattern) in STEPS.items():
                if found := pattern.search(said[-1]):
                    return UserTurn("", (ToolCall(name, found.groupdict()),))
        return await super().reply(view)


class TelecomExpert(Expert):
    """Serves one customer of the phone company."""

    customer: Json
    line: Json

    def identify(self) -> Script:
        """By phone number; asked again until somebody is found."""
        while True:
            if "phone" not in self.who:
                yield Say("What is your phone number?")
                continue
            found = yield Call("get_customer_by_phone", {"phone_number": self.who["phone"]})
            if not isinstance(found, Refused):
                self.customer = found
                self.line = yield from self._line(self.who["phone"])
                return
            self.who = {}
            yield Say("I do not find that number. What is your phone number?")

    def handle(self) -> Script:
        wish = self.request
        assert wish is not None
        if wish["do"] == "pay":
            return (yield from self._pay_overdue())
        if wish["do"] == "refuel":
            line = yield from self._line(wish["phone"])
            return (yield from self._refuel(line, wish["amount"])) or self.sorry("then I leave it as it is.")
        if wish["do"] == "roaming":
            line = yield from self._line(wish["phone"])
            yield Call("enable_roaming", self._ids(line))
            return "Data roaming is enabled for that line, at no cost."
        steps = {
            "service_issue": self._service,
            "mobile_data_issue": self._fast_data,
            "mms_issue": self._pictures,
        }
        blocked = yield from steps[wish["do"]]()
        if blocked:
            yield from self.transfer(blocked)
            return None
        return "Then it works again."

    # ------------------------------------------------------------ looking things up

    def _ids(self, line: Json) -> Json:
        return {"customer_id": self.customer["customer_id"], "line_id": line["line_id"]}

    def _line(self, phone: str) -> Looked:
        for line_id in self.customer["line_ids"]:
            line = yield Call("get_details_by_id", {"id": line_id})
            if line["phone_number"] == phone:
                return line
        return None

    def _step(self, name: str, **values: str) -> Generator[Say | Call, Any, str]:
        """Has the person do one thing with its phone; returns what it showed."""
        act = yield Say(STEPS[name][0].format(**values))
        return str(act.get("text", ""))

    # ------------------------------------------------------------ service

    def _service(self) -> Looked:
        """Mends cellular service; returns why it cannot, or ""."""
        blocked = ""
        bar = yield from self._step("check_status_bar")
        if "Airplane Mode" in bar:
            bar = yield from self._step("toggle_airplane_mode")
        if "No Signal" not in bar:
            return ""
        sim = yield from self._step("check_sim_status")
        if "No SIM" in sim:
            bar = yield from self._step("reseat_sim_card")
            if "No Signal" not in bar:
                return ""
            sim = yield from self._step("check_sim_status")
        if "locked" in sim:
            blocked = "The SIM card is locked."
        apn = yield from self._step("check_apn_settings")
        if "broken" in apn:
            yield from self._step("reset_apn_settings")
            yield from self._step("reboot_device")
        self.line = yield Call("get_details_by_id", {"id": self.line["line_id"]})
        if self.line["status"] == "Suspended":
            blocked = (yield from self._resume()) or blocked
        if blocked:
            return blocked
        bar = yield from self._step("check_status_bar")
        return "There is no signal, and I found no further cause." if "No Signal" in bar else ""

    def _resume(self) -> Looked:
        if contract_over(self.line.get("contract_end_date")):
            return "The line is suspended and its contract has ended."
        yield from self._pay_overdue()
        answer = yield Call("resume_line", self._ids(self.line))
        if isinstance(answer, Refused):
            return f"The line could not be resumed: {answer.text}"
        yield from self._step("reboot_device")
        return ""

    def _pay_overdue(self) -> Looked:
        """Has every overdue bill paid; returns what to say then."""
        owner = self.customer["customer_id"]
        bills = yield Call("get_bills_for_customer", {"customer_id": owner})
        overdue = [b for b in bills if b["status"] == "Overdue"]
        for bill in overdue:
            yield Call("send_payment_request", {"customer_id": owner, "bill_id": bill["bill_id"]})
            yield from self._step("check_payment_request")
            yield from self._step("make_payment")
            after = yield Call("get_details_by_id", {"id": bill["bill_id"]})
            if after["status"] != "Paid":
                return self.sorry(f"bill {bill['bill_id']} is not paid yet.")
        return "Your overdue bill is paid." if overdue else self.sorry("you have no overdue bill.")

    # ------------------------------------------------------------ mobile data

    def _any_data(self) -> Looked:
        """Mends what keeps mobile data from working at all; returns why it cannot, or ""."""
        blocked = yield from self._service()
        if blocked:
            return blocked
        status = yield from self._step("check_network_status")
        if "Mobile Data Enabled: No" in status:
            yield from self._step("toggle_data")
        act = yield Say("Are you abroad at the moment?")
        if act.get("tell", {}).get("abroad"):
            if "Data Roaming Enabled: No" in status:
                yield from self._step("toggle_roaming")
            if not self.line["roaming_enabled"]:
                yield Call("enable_roaming", self._ids(self.line))
        usage = yield Call("get_data_usage", self._ids(self.line))
        if float(usage["data_used_gb"]) >= float(usage["data_limit_gb"]) + float(usage["data_refueling_gb"]):
            act = yield Say(
                "The data of your plan is used up. How much data do you want to add (at most 2 GB)?"
            )
            amount = act.get("tell", {}).get("amount", 0)
            done = amount and (yield from self._refuel(self.line, amount))
            if not done:
                return "The data of the plan is used up, and the customer does not want to add any."
        return ""

    def _refuel(self, line: Json, amount: float) -> Looked:
        """Adds data after the price was confirmed; returns what to say, or None."""
        plan = yield Call("get_details_by_id", {"id": line["plan_id"]})
        price = money(amount * plan["data_refueling_price_per_gb"])
        if not (
            yield from self.propose(f"Adding {amount} GB to line {line['phone_number']} costs ${price}.")
        ):
            return None
        yield Call("refuel_data", {**self._ids(line), "gb_amount": amount})
        return f"{amount} GB were added."

    def _fast_data(self) -> Looked:
        blocked = yield from self._any_data()
        if blocked:
            # Data saver can be mended all the same.
            if "ON" in (yield from self._step("check_data_restriction_status")):
                yield from self._step("toggle_data_saver_mode")
            return blocked
        if "Excellent" in (yield from self._step("run_speed_test")):
            return ""
        if "ON" in (yield from self._step("check_data_restriction_status")):
            yield from self._step("toggle_data_saver_mode")
        mode = yield from self._step("check_network_mode_preference")
        if "5g" not in mode:
            yield from self._step("set_network_mode_preference")
        if "connected." in (yield from self._step("check_vpn_status")):
            yield from self._step("disconnect_vpn")
        speed = yield from self._step("run_speed_test")
        return "" if "Excellent" in speed else f"The speed is still not excellent: {speed}"

    # ------------------------------------------------------------ picture messages

    def _pictures(self) -> Looked:
        blocked = yield from self._any_data()
        if blocked:
            return blocked
        if "cannot" not in (yield from self._step("can_send_mms")):
            return ""
        if "2g" in (yield from self._step("check_network_mode_preference")):
            yield from self._step("set_network_mode_preference")
        if "ON" in (yield from self._step("check_wifi_calling_status")):
            yield from self._step("toggle_wifi_calling")
        if "Not Set" in (yield from self._step("check_apn_settings")):
            yield from self._step("reset_apn_settings")
            yield from self._step("reboot_device")
        granted = yield from self._step("check_app_permissions")
        for permission in ("storage", "sms"):
            if permission not in granted:
                yield from self._step("grant_app_permission", permission=permission)
        works = yield from self._step("can_send_mms")
        return "Picture messages still cannot be sent." if "cannot" in works else ""
