"""A tiny domain for tests: a shop whose orders can be read and cancelled.

Small enough that a test can write every call and every end state by hand.
"""

from __future__ import annotations

from collections.abc import Sequence

from mua.agents import AgentStep
from mua.chat import Message, ToolCall
from mua.database import Base, Database
from mua.domain import Action, Change, Domain, Scenario, Task
from mua.tools import ToolError, ends, reads, writes
from mua.trajectory import TokenTrace
from mua.users import STOP, UserTurn

POLICY = """You work for a shop. Look an order up before you change it. Cancel only orders that are open,
and only after the customer said yes. Hand over what you cannot do."""


class Shop:
    """The agent's tools."""

    def __init__(self, db: Database):
        self.db = db

    @reads
    def get_order(self, order_id: str) -> dict:
        """Look an order up.

        Args:
            order_id: Number of the order, such as o1.
        """
        row = self.db.get("orders", order_id)
        if row is None:
            raise ToolError(f"there is no order '{order_id}'")
        return dict(row)

    @writes
    def cancel_order(self, order_id: str, reason: str = "") -> str:
        """Cancel an open order.

        Args:
            order_id: Number of the order.
            reason: Why the customer cancels.
        """
        row = self.get_order(order_id)
        if row["status"] != "open":
            raise ToolError(f"order '{order_id}' is {row['status']}; only open orders can be cancelled")
        self.db.update("orders", order_id, status="cancelled")
        return "cancelled"

    @writes
    def set_items(self, order_id: str, count: int, gift: bool = False) -> str:
        """Change how many items an order has.

        Args:
            order_id: Number of the order.
            count: New number of items.
            gift: Wrap them as a gift.
        """
        self.get_order(order_id)
        self.db.update("orders", order_id, items=count, gift=gift)
        return "changed"

    @ends
    def hand_over(self, summary: str) -> str:
        """Hand the conversation over to a human colleague.

        Args:
            summary: What the customer wants.
        """
        self.db.put("cases", "case", {"summary": summary})
        return "handed over"


def _task(number: int, kind: str = "cancel") -> Task:
    order = f"o{number}"
    actions = (
        (Action("cancel_order", {"order_id": order}),)
        if kind == "cancel"
        else (Action("set_items", {"order_id": order, "count": 5}),)
    )
    goal = f"You want to cancel your order {order}." if kind == "cancel" else f"You want 5 items in {order}."
    return Task(
        id=f"{kind}_{number}",
        kind=kind,
        scenario=Scenario(goal, {"order number": order}, "You are brief.", {"order": order, "kind": kind}),
        actions=actions,
        setup=(Change("orders", order, {"status": "open", "items": 1, "gift": False}),),
    )


def _split(name: str) -> Sequence[Task]:
    if name == "train":
        return [_task(n) for n in range(1, 5)]
    return [_task(n) for n in range(11, 14)] + [_task(n, "items") for n in range(14, 16)]


def toy_domain() -> Domain:
    """A new shop: splits `train` (4 tasks) and `test` (5 tasks of two kinds, cancel_11 … items_15)."""
    return Domain(
        name="toy",
        policy=POLICY,
        load_base=lambda: Base(
            {
                "orders": {f"o{n}": {"status": "sent", "items": n, "gift": False} for n in range(1, 30)},
                "cases": {},
            }
        ),
        load_split=_split,
        splits=("train", "test"),
        toolkits={"assistant": Shop},
    )


class ScriptUser:
    """Says the given lines in order, then stops. A line that is an exception is raised instead."""

    name = "script"

    def __init__(self, *lines: str | Exception):
        self.lines = list(lines)
        self.views: list[list[Message]] = []

    async def reply(self, view: Sequence[Message]) -> UserTurn:
        self.views.append(list(view))
        line = self.lines.pop(0) if self.lines else STOP
        if isinstance(line, Exception):
            raise line
        return UserTurn(line, stop=STOP in line)


class ScriptAgent:
    """Takes the given steps in order: a text, or (tool name, arguments); then says "Done."."""

    trace: TokenTrace | None = None

    def __init__(self, *steps: str | tuple[str, dict] | Exception):
        self.steps = list(steps)
        self.views: list[list[Message]] = []
        self.closed = 0

    async def step(self, messages: Sequence[Message]) -> AgentStep:
        self.views.append(list(messages))
        step = self.steps.pop(0) if self.steps else "Done."
        if isinstance(step, Exception):
            raise step
        if isinstance(step, str):
            return AgentStep(Message("assistant", step), tokens=len(step.split()))
        return AgentStep(Message("assistant", tool_calls=(ToolCall(step[0], step[1]),)), tokens=5)

    def close(self) -> None:
        self.closed += 1
