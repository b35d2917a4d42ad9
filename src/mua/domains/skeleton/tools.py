"""The tools of the repair desk.

A tool refuses only what makes no sense in the database. Whether a request may be granted is the policy's
matter and the agent's: a tool lets it make mistakes, and the end state shows them. Refusals and handovers are
writes, so that no task can be solved by doing nothing.
"""

from __future__ import annotations

from typing import Literal

from mua.database import Database
from mua.tools import ToolError, ends, reads, writes

Request = Literal["book", "cancel"]
Outcome = Literal["refused", "withdrawn"]
Reason = Literal["unpaid", "limit", "full", "no_booking", "too_late", "changed_mind"]
HandoverReason = Literal["complaint", "accident", "not_identified"]


class RepairDesk:
    """Tools over the tables of `data.make_tables`."""

    def __init__(self, db: Database):
        self.db = db

    @reads
    def find_customer(self, customer_id: str) -> dict:
        """Find a customer.

        Args:
            customer_id: Customer number, K and four digits.
        """
        row = self.db.get("customers", customer_id)
        if row is None:
            raise ToolError(f"no customer has the number {customer_id[:20]}")
        return dict(row)

    @reads
    def list_bookings(self, customer_id: str) -> list[str]:
        """Days on which a customer has a booking.

        Args:
            customer_id: Customer number.
        """
        self.find_customer(customer_id)
        return sorted(row["day"] for _, row in self.db.where("bookings", customer_id=customer_id))

    @reads
    def get_day(self, day: str) -> dict:
        """Free places of a day.

        Args:
            day: As YYYY-MM-DD.
        """
        row = self.db.get("days", day)
        if row is None:
            raise ToolError(f"{day[:20]} is no day on which the workshop takes bookings")
        return {"day": day, "free": row["places"] - len(self.db.where("bookings", day=day))}

    @writes
    def book_day(self, customer_id: str, day: str) -> dict:
        """Book a repair.

        Args:
            customer_id: Customer number.
            day: As YYYY-MM-DD.
        """
        self.find_customer(customer_id)
        self.get_day(day)
        self.db.put("bookings", f"{customer_id}/{day}", {"customer_id": customer_id, "day": day})
        return {"booked": day}

    @writes
    def cancel_booking(self, customer_id: str, day: str) -> dict:
        """Cancel a booking.

        Args:
            customer_id: Customer number.
            day: As YYYY-MM-DD.
        """
        if self.db.get("bookings", f"{customer_id}/{day}") is None:
            raise ToolError("there is no such booking; list_bookings shows them")
        self.db.delete("bookings", f"{customer_id}/{day}")
        return {"cancelled": day}

    @writes
    def record_case(self, customer_id: str, request: Request, outcome: Outcome, reason: Reason) -> dict:
        """Record a request that was refused or that the customer withdrew.

        Args:
            customer_id: Customer number.
            request: What was asked for.
            outcome: How it ended.
            reason: Why.
        """
        self.find_customer(customer_id)
        key = f"{customer_id}/{request}/{outcome}/{reason}"
        before = self.db.get("cases", key)
        row = {"customer_id": customer_id, "request": request, "outcome": outcome, "reason": reason}
        self.db.put("cases", key, {**row, "count": before["count"] + 1 if before else 1})
        return {"recorded": outcome}

    @ends
    def transfer_to_human(self, reason: HandoverReason) -> dict:
        """Hand the conversation over to a colleague; it ends here.

        Args:
            reason: Why a colleague must take over.
        """
        self.db.put("handovers", reason, {"reason": reason})
        return {"transferred": reason}
