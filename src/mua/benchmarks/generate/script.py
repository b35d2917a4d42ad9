"""The scripted user and the expert of generated tasks, as far as upstream's policies make them special."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from ...domains.script import AGAIN, Call, Refused, Say, Script
from ...domains.script import Expert as PlainExpert
from ...domains.script import ScriptUser as PlainUser

TRANSFERRED = "YOU ARE BEING TRANSFERRED TO A HUMAN AGENT. PLEASE HOLD ON."
"""What upstream's policies make the agent say after a transfer."""


class ScriptUser(PlainUser):
    """Plays the person of a generated task by its agenda."""

    topics: ClassVar[Mapping[str, re.Pattern[str]]] = {
        "who": re.compile(r"e-mail|zip code|user id|phone number|who am i|your (full )?name", re.I),
        "order": re.compile(r"which order|order (number|id)", re.I),
        "reservation": re.compile(r"which reservation|reservation (number|id)", re.I),
        "reason": re.compile(r"reason|why do you", re.I),
        "pay": re.compile(r"payment method|how (do|would) you (want|like) to pay|get the refund", re.I),
        "insurance": re.compile(r"insurance", re.I),
        "bags": re.compile(r"\bbags?\b", re.I),
        "amount": re.compile(r"how much|how many", re.I),
        "where": re.compile(r"abroad|travelling", re.I),
    }
    handed_over: ClassVar[str] = "###TRANSFER###"


class Expert(PlainExpert):
    """An expert program as an agent; the subclasses know the policies."""

    def transfer(self, summary: str) -> Script:
        """Hands the person over as upstream's policies prescribe."""
        yield Call("transfer_to_human_agents", {"summary": summary})
        yield Say(TRANSFERRED)


__all__ = ["AGAIN", "Call", "Expert", "Refused", "Say", "Script", "ScriptUser"]
