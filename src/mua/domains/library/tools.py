"""The tools of the library's borrowing desk.

A tool refuses only what makes no sense in the database (an unknown card, a loan that does not exist).
Whether a request may be granted is the policy's matter and the agent's: a tool lets it make mistakes,
and the end state shows them. Every outcome is a write, refusals and handovers included, so that no
task can be solved by doing nothing.
"""

from __future__ import annotations

import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ...database import Database, Row, thaw
from ...tools import ToolError, ends, reads, writes
from ..records import add_case, add_handover
from .data import BRANCHES, LOAN_DAYS, TODAY

Request = Literal["renew", "reserve", "cancel", "pay", "contact"]
Reason = Literal["fines", "expired", "limit", "waiting", "reference", "changed_mind"]
HandoverReason = Literal[
    "complaint", "interlibrary", "disputed_fine", "damage_fine", "name_change", "not_identified"
]


class Address(BaseModel):
    model_config = ConfigDict(extra="forbid")
    street: str = Field(description="House number and street.")
    city: str
    postcode: str


class Contact(BaseModel):
    """New contact data; only the parts that change."""

    model_config = ConfigDict(extra="forbid")
    email: str | None = Field(None, description="New e-mail address.")
    phone: str | None = Field(None, description="New phone number, digits only.")
    address: Address | None = Field(None, description="New postal address, whole.")


class LibraryDesk:
    """Tools over the tables of `data.make_tables`."""

    def __init__(self, db: Database):
        self.db = db

    @reads
    def find_member_by_card(self, card: str) -> dict:
        """Find a member by library card.

        Args:
            card: Card number, four digits.
        """
        return self._summary(self._member(card))

    @reads
    def find_member_by_name(self, name: str, postcode: str) -> dict:
        """Find a member by full name and postcode.

        Args:
            name: First and last name.
            postcode: Postcode of the member's address.
        """
        for _, row in self.db.where("members", name=name):
            if row["address"]["postcode"] == postcode:
                return self._summary(row)
        raise ToolError(f"no member named '{name}' with postcode {postcode}")

    @reads
    def get_contact(self, card: str) -> dict:
        """Contact data of a member.

        Args:
            card: Card number.
        """
        row = self._member(card)
        return {k: thaw(row[k]) for k in ("email", "phone", "address")}

    @reads
    def search_titles(self, words: str) -> list[dict]:
        """Search the catalogue by words of a title or an author; at most ten hits.

        Args:
            words: Words that must all occur.
        """
        wanted = words.lower().split()
        hits = []
        for key in self.db.keys("titles"):
            row = self._title(key)
            if wanted and all(w in f"{key} {row['author']}".lower() for w in wanted):
                hits.append({"title": key, "author": row["author"], "year": row["year"]})
                if len(hits) == 10:
                    break
        return hits

    @reads
    def check_title(self, title: str) -> dict:
        """Catalogue entry of one title: copies, and whether it is for reference only.

        Args:
            title: Exact title.
        """
        row = self._title(title)
        return {k: row[k] for k in ("title", "author", "copies", "reference_only")}

    @reads
    def list_loans(self, card: str) -> list[dict]:
        """All loans of a member.

        Args:
            card: Card number.
        """
        self._member(card)
        return [_without_card(row) for _, row in self.db.where("loans", card=card)]

    @reads
    def check_loan(self, card: str, title: str) -> dict:
        """One loan: due date, renewals so far, and how many members are waiting for the title.

        Args:
            card: Card number.
            title: Exact title.
        """
        return _without_card(self._loan(card, title))

    @reads
    def list_reservations(self, card: str) -> list[dict]:
        """All reservations of a member.

        Args:
            card: Card number.
        """
        self._member(card)
        return [_without_card(row) for _, row in self.db.where("reservations", card=card)]

    @reads
    def list_fines(self, card: str) -> list[dict]:
        """Unpaid fines of a member.

        Args:
            card: Card number.
        """
        self._member(card)
        return [_without_card(row) for _, row in self.db.where("fines", card=card, paid=False)]

    @writes
    def renew_loan(self, card: str, title: str) -> dict:
        """Renew a loan for 21 days from today.

        Args:
            card: Card number.
            title: Exact title.
        """
        loan = self._loan(card, title)
        due = (TODAY + datetime.timedelta(days=LOAN_DAYS)).isoformat()
        self.db.update("loans", f"{card}/{title}", due=due, renewals=loan["renewals"] + 1)
        return {"renewed": title, "due": due}

    @writes
    def reserve_title(
        self, card: str, title: str, branch: Literal["Central", "Northside", "Riverside"] = "Central"
    ) -> dict:
        """Reserve a title for a member.

        Args:
            card: Card number.
            title: Exact title.
            branch: Where the member will collect it.
        """
        self._member(card)
        self._title(title)
        key = f"{card}/{title}"
        if self.db.get("reservations", key):
            raise ToolError(f"card {card} already has '{title}' reserved")
        assert branch in BRANCHES
        self.db.put(
            "reservations", key, {"card": card, "title": title, "branch": branch, "status": "waiting"}
        )
        return {"reserved": title, "branch": branch}

    @writes
    def cancel_reservation(self, card: str, title: str) -> dict:
        """Cancel a reservation.

        Args:
            card: Card number.
            title: Exact title.
        """
        self._member(card)
        if not self.db.get("reservations", f"{card}/{title}"):
            raise ToolError(f"card {card} has no reservation for '{title}'; list_reservations shows them")
        self.db.delete("reservations", f"{card}/{title}")
        return {"cancelled": title}

    @writes
    def pay_fine(self, card: str, fine_id: str) -> dict:
        """Take payment of one fine, in full, by the payment card on file.

        Args:
            card: Card number.
            fine_id: The fine, such as F1003.
        """
        member = self._member(card)
        fine = self.db.get("fines", fine_id)
        if fine is None or fine["card"] != card:
            raise ToolError(f"card {card} has no fine {fine_id}; list_fines shows them")
        if fine["paid"]:
            raise ToolError(f"fine {fine_id} is already paid")
        self.db.update("fines", fine_id, paid=True)
        self.db.update("members", card, fines_due=round(member["fines_due"] - fine["amount"], 2))
        return {"paid": fine_id, "amount": fine["amount"]}

    @writes
    def update_contact(self, card: str, contact: Contact) -> dict:
        """Change contact data of a member.

        Args:
            card: Card number.
            contact: The new data.
        """
        self._member(card)
        changes = contact.model_dump(exclude_none=True)
        if not changes:
            raise ToolError("contact holds nothing to change; give email, phone or address")
        self.db.update("members", card, **changes)
        return {"updated": sorted(changes)}

    @writes
    def record_case(
        self, card: str, request: Request, outcome: Literal["refused", "withdrawn"], reason: Reason
    ) -> dict:
        """Record a request that was refused or that the member withdrew.

        Args:
            card: Card number.
            request: What was asked for.
            outcome: How it ended.
            reason: Why.
        """
        self._member(card)
        return add_case(self.db, card=card, request=request, outcome=outcome, reason=reason)

    @ends
    def transfer_to_human(self, reason: HandoverReason, summary: str = "") -> dict:
        """Hand the conversation over to a colleague; it ends here.

        Args:
            reason: Why a colleague must take over.
            summary: What the colleague needs to know.
        """
        return add_handover(self.db, reason)

    def _member(self, card: str) -> Row:
        row = self.db.get("members", card)
        if row is None:
            raise ToolError(f"no member has card {card[:20]}")
        return row

    def _title(self, title: str) -> Row:
        row = self.db.get("titles", title)
        if row is None:
            raise ToolError(f"no title '{title[:60]}' in the catalogue; search_titles finds titles by words")
        return row

    def _loan(self, card: str, title: str) -> Row:
        self._member(card)
        row = self.db.get("loans", f"{card}/{title}")
        if row is None:
            raise ToolError(f"card {card} has no loan '{title[:60]}'")
        return row

    @staticmethod
    def _summary(row: Row) -> dict:
        return {k: row[k] for k in ("card", "name", "status", "fines_due")}


def _without_card(row: Row) -> dict:
    return {k: thaw(v) for k, v in row.items() if k not in ("card", "paid")}
