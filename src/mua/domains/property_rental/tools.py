"""The tools of the tenants' desk.

A tool refuses only what makes no sense in the database (an unknown lease, a charge with nothing open).
Which amount is right, and whether a request may be granted, is the policy's matter and the agent's: the
end state shows mistakes. Every outcome is a write, refusals and handovers included.

Invariant: money is whole cents, in arguments, answers and rows.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ...database import Database, Row, thaw
from ...tools import ToolError, ends, reads, writes
from ..records import add_case, add_handover
from ..today import TODAY

Request = Literal["pay", "waive", "deposit", "notice", "plan", "credit"]
Reason = Literal[
    "not_yours",
    "not_open",
    "older_open",
    "too_much",
    "minimum",
    "not_late_fee",
    "rent_open",
    "waived_before",
    "too_large",
    "not_ended",
    "refunded",
    "no_inspection",
    "nothing_left",
    "not_active",
    "too_short",
    "arrears",
    "plan_running",
    "too_small",
    "rates",
    "ongoing",
    "credited",
    "too_brief",
    "too_late",
    "changed_mind",
]
HandoverReason = Literal[
    "legal",
    "complaint",
    "rent_increase",
    "emergency",
    "disputed_damage",
    "large_refund",
    "large_arrears",
    "unrecorded_defect",
    "not_identified",
]
Cents = Annotated[int, Field(ge=1, le=100_000_000)]
Date = Annotated[str, Field(pattern=r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$")]


class TenantsDesk:
    """Tools over the tables of `data.make_tables`."""

    def __init__(self, db: Database):
        self.db = db

    @reads
    def find_tenant(self, tenant_id: str) -> dict:
        """Find a tenant by tenant number, with the leases they have.

        Args:
            tenant_id: Tenant number, such as T1234.
        """
        return self._summary(self._tenant(tenant_id))

    @reads
    def find_tenant_by_name(self, name: str, date_of_birth: Date) -> dict:
        """Find a tenant by full name and date of birth, with the leases they have.

        Args:
            name: First and last name.
            date_of_birth: Date of birth, YYYY-MM-DD.
        """
        for _, row in self.db.where("tenants", name=name):
            if row["date_of_birth"] == date_of_birth:
                return self._summary(row)
        raise ToolError(f"no tenant named '{name[:60]}' born on {date_of_birth}")

    @reads
    def get_lease(self, lease_id: str) -> dict:
        """A lease: rent, deposit, dates, credit, last waiver of a fee, payment plan.

        Args:
            lease_id: Lease number, such as L1001.
        """
        return thaw(self._lease(lease_id))

    @reads
    def get_charge(self, charge_id: str) -> dict:
        """One charge: its lease, what it is for, when it was due, its amount and how much of it is open.

        Args:
            charge_id: Charge number, such as C20001.
        """
        return thaw(self._charge(charge_id))

    @reads
    def list_open_charges(self, lease_id: str) -> list[dict]:
        """All charges of a lease of which something is open, in the order in which they are due.

        Args:
            lease_id: Lease number.
        """
        self._lease(lease_id)
        rows = [thaw(row) for _, row in self.db.where("charges", lease_id=lease_id) if row["open_cents"] > 0]
        return sorted(rows, key=lambda row: row["due"])

    @reads
    def get_inspection(self, lease_id: str) -> dict:
        """Whether the inspection at the end of a lease is recorded, and the costs it found.

        Args:
            lease_id: Lease number.
        """
        self._lease(lease_id)
        row = self.db.get("inspections", lease_id)
        return {"lease_id": lease_id, "recorded": False} if row is None else {**row, "recorded": True}

    @reads
    def list_outages(self, lease_id: str) -> list[dict]:
        """The recorded outages in the flat of a lease; one that is not over has no last day.

        Args:
            lease_id: Lease number.
        """
        self._lease(lease_id)
        return [thaw(row) for _, row in self.db.where("outages", lease_id=lease_id)]

    @writes
    def pay_charge(self, charge_id: str, amount_cents: Cents) -> dict:
        """Take a payment for a charge from the tenant's bank account.

        Args:
            charge_id: Charge number.
            amount_cents: How much, in cents.
        """
        charge = self._open_charge(charge_id)
        rest = charge["open_cents"] - amount_cents
        # Paying too much is a mistake that money makes possible; the surplus shows in the state.
        self.db.update("charges", charge_id, open_cents=rest)
        return {"paid": charge_id, "amount_cents": amount_cents, "open_cents": rest}

    @writes
    def waive_fee(self, charge_id: str) -> dict:
        """Waive the open rest of a charge.

        Args:
            charge_id: Charge number.
        """
        charge = self._open_charge(charge_id)
        self.db.update("charges", charge_id, open_cents=0)
        self.db.update("leases", charge["lease_id"], last_waiver=TODAY.isoformat())
        return {"waived": charge_id, "amount_cents": charge["open_cents"]}

    @writes
    def refund_deposit(self, lease_id: str, amount_cents: Cents) -> dict:
        """Pay the deposit of a lease back to the tenant; this settles the lease's open charges and credit.

        Args:
            lease_id: Lease number.
            amount_cents: What the tenant is paid after all additions and deductions, in cents.
        """
        lease = self._lease(lease_id)
        if lease["refunded_cents"] is not None:
            raise ToolError(f"the deposit of lease {lease_id} is already paid back")
        self.db.update("leases", lease_id, refunded_cents=amount_cents, credit_cents=0)
        for key, row in self.db.where("charges", lease_id=lease_id):
            if row["open_cents"] > 0:
                self.db.update("charges", key, open_cents=0)
        return {"refunded": lease_id, "amount_cents": amount_cents}

    @writes
    def end_lease(
        self, lease_id: str, move_out: Date, fee_cents: Annotated[int, Field(ge=0, le=100_000_000)]
    ) -> dict:
        """End an active lease on a date; a fee becomes a charge of the lease.

        Args:
            lease_id: Lease number.
            move_out: Day of moving out, YYYY-MM-DD.
            fee_cents: Fee for the early end, in cents; 0 when there is none.
        """
        if self._lease(lease_id)["status"] != "active":
            raise ToolError(f"lease {lease_id} is not active")
        self.db.update("leases", lease_id, status="notice", move_out=move_out)
        if fee_cents:
            number = 1 + max(int(key[1:]) for key in self.db.keys("charges"))
            row = {"charge_id": f"C{number}", "lease_id": lease_id, "kind": "end_fee", "month": move_out[:7]}
            money = {"due": move_out, "amount_cents": fee_cents, "open_cents": fee_cents}
            self.db.put("charges", f"C{number}", row | money)
        return {"ended": lease_id, "move_out": move_out, "fee_cents": fee_cents}

    @writes
    def set_payment_plan(
        self,
        lease_id: str,
        rates: Annotated[int, Field(ge=1, le=60)],
        rate_cents: Cents,
        last_rate_cents: Cents,
    ) -> dict:
        """Let the tenant pay the arrears of a lease in monthly rates.

        Args:
            lease_id: Lease number.
            rates: How many rates, the last one included.
            rate_cents: Each rate but the last, in cents.
            last_rate_cents: The last rate, in cents.
        """
        self._lease(lease_id)
        plan = {"rates": rates, "rate_cents": rate_cents, "last_rate_cents": last_rate_cents}
        self.db.update("leases", lease_id, plan=plan)
        return {"plan": lease_id, **plan}

    @writes
    def credit_rent(
        self, lease_id: str, outage: Literal["heating", "hot_water", "lift"], amount_cents: Cents
    ) -> dict:
        """Credit a lease for a recorded outage.

        Args:
            lease_id: Lease number.
            outage: What was out of order.
            amount_cents: The credit, in cents.
        """
        lease = self._lease(lease_id)
        row = self.db.get("outages", f"{lease_id}/{outage}")
        if row is None:
            raise ToolError(f"no outage of {outage} is recorded for lease {lease_id}")
        self.db.update(
            "outages", f"{lease_id}/{outage}", credited_cents=(row["credited_cents"] or 0) + amount_cents
        )
        self.db.update("leases", lease_id, credit_cents=lease["credit_cents"] + amount_cents)
        return {"credited": lease_id, "outage": outage, "amount_cents": amount_cents}

    @writes
    def record_case(
        self, tenant_id: str, request: Request, outcome: Literal["refused", "withdrawn"], reason: Reason
    ) -> dict:
        """Record a request that was refused or that the tenant withdrew.

        Args:
            tenant_id: The tenant who asked.
            request: What was asked for.
            outcome: How it ended.
            reason: Why.
        """
        self._tenant(tenant_id)
        return add_case(self.db, tenant_id=tenant_id, request=request, outcome=outcome, reason=reason)

    @ends
    def transfer_to_human(self, reason: HandoverReason, summary: str = "") -> dict:
        """Hand the conversation over to a colleague; it ends here.

        Args:
            reason: Why a colleague must take over.
            summary: What the colleague needs to know.
        """
        return add_handover(self.db, reason)

    def _tenant(self, tenant_id: str) -> Row:
        return self._row("tenants", tenant_id, "tenant")

    def _lease(self, lease_id: str) -> Row:
        return self._row("leases", lease_id, "lease")

    def _charge(self, charge_id: str) -> Row:
        return self._row("charges", charge_id, "charge")

    def _open_charge(self, charge_id: str) -> Row:
        charge = self._charge(charge_id)
        if charge["open_cents"] <= 0:
            raise ToolError(f"nothing of charge {charge_id} is open")
        return charge

    def _row(self, table: str, key: str, what: str) -> Row:
        row = self.db.get(table, key)
        if row is None:
            raise ToolError(f"there is no {what} with the number {key[:20]}")
        return row

    def _summary(self, row: Row) -> dict:
        leases = [key for key, _ in self.db.where("leases", tenant_id=row["tenant_id"])]
        return {"tenant_id": row["tenant_id"], "name": row["name"], "leases": leases}
