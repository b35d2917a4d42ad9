"""The tools of the applicants' desk.

A tool refuses only what makes no sense in the database (an unknown document, one that is not attached).
Whether documents are good enough, and whether a request may be granted, is the policy's matter and the
agent's: the end state shows mistakes. Every outcome is a write, refusals and handovers included.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ...database import Database, Row, thaw
from ...tools import ToolError, ends, reads, writes
from ..records import add_case, add_handover

Request = Literal["apply", "replace", "withdraw", "letter", "delete", "extend", "inside"]
Kind = Literal["cv", "diploma", "licence", "language_certificate", "background_check", "reference_letter"]
Letter = Literal["receipt", "invitation", "rejection"]
Reason = Literal[
    "not_yours",
    "unknown_position",
    "internal",
    "closed",
    "already_applied",
    "too_soon",
    "limit",
    "missing_document",
    "unverified_document",
    "expired_document",
    "stale_document",
    "language",
    "experience",
    "not_attached",
    "wrong_kind",
    "under_review",
    "finished",
    "not_invited",
    "not_rejected",
    "already_sent",
    "in_use",
    "no_extension",
    "confidential",
    "changed_mind",
]
HandoverReason = Literal[
    "accommodation",
    "discrimination",
    "privacy",
    "salary",
    "appeal",
    "suspected_forgery",
    "name_mismatch",
    "recognition",
    "invited",
    "not_identified",
]
Date = Annotated[str, Field(pattern=r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$")]


class ApplicantsDesk:
    """Tools over the tables of `data.make_tables`."""

    def __init__(self, db: Database):
        self.db = db

    @reads
    def find_applicant(self, applicant_id: str) -> dict:
        """Find an applicant by applicant number.

        Args:
            applicant_id: Applicant number, such as A1234.
        """
        return _summary(self._applicant(applicant_id))

    @reads
    def find_applicant_by_name(self, name: str, date_of_birth: Date) -> dict:
        """Find an applicant by full name and date of birth.

        Args:
            name: First and last name.
            date_of_birth: Date of birth, YYYY-MM-DD.
        """
        for _, row in self.db.where("applicants", name=name):
            if row["date_of_birth"] == date_of_birth:
                return _summary(row)
        raise ToolError(f"no applicant named '{name[:60]}' born on {date_of_birth}")

    @reads
    def search_positions(self, words: str) -> list[dict]:
        """Search positions by words of their titles; at most ten hits, whatever their status.

        Args:
            words: Words that must all occur.
        """
        wanted = words.lower().split()
        hits = []
        for key, row in self.db.where("positions"):
            if wanted and all(w in row["title"].lower() for w in wanted):
                hits.append({"position_id": key, "title": row["title"]})
        return hits[:10]

    @reads
    def get_position(self, position_id: str) -> dict:
        """A position: status, deadline, required documents, language level and years of experience.

        Args:
            position_id: Position number, such as P101.
        """
        return thaw(self._row("positions", position_id, "position"))

    @reads
    def list_applications(self, applicant_id: str) -> list[dict]:
        """All applications of an applicant, with their status, documents and the letters already sent.

        Args:
            applicant_id: Applicant number.
        """
        self._applicant(applicant_id)
        return [thaw(row) for _, row in self.db.where("applications", applicant_id=applicant_id)]

    @reads
    def list_documents(self, applicant_id: str) -> list[dict]:
        """All documents of an applicant: number, kind and date of issue.

        Args:
            applicant_id: Applicant number.
        """
        self._applicant(applicant_id)
        rows = self.db.where("documents", applicant_id=applicant_id)
        return [{k: row[k] for k in ("document_id", "kind", "issued")} for _, row in rows]

    @reads
    def get_document(self, document_id: str) -> dict:
        """A document: whose it is, its status, in which name it is made out, and what it shows.

        Args:
            document_id: Document number, such as D30001.
        """
        return thaw(self._document(document_id))

    @writes
    def submit_application(
        self,
        applicant_id: str,
        position_id: str,
        document_ids: Annotated[list[str], Field(min_length=1, max_length=10)],
    ) -> dict:
        """Apply for a position with documents of the applicant.

        Args:
            applicant_id: Applicant number.
            position_id: Position number.
            document_ids: The documents, in the order in which the position lists their kinds.
        """
        self._applicant(applicant_id)
        position = self._row("positions", position_id, "position")
        for document in document_ids:
            if self._document(document)["applicant_id"] != applicant_id:
                raise ToolError(f"document {document} is not one of {applicant_id}")
        number = 1 + max(int(key[1:]) for key in self.db.keys("applications"))
        row = {
            "application_id": f"N{number}",
            "applicant_id": applicant_id,
            "position_id": position_id,
            "title": position["title"],
            "status": "submitted",
            "decided": None,
            "documents": document_ids,
            "letters": [],
        }
        self.db.put("applications", f"N{number}", row)
        return {"submitted": f"N{number}", "position_id": position_id}

    @writes
    def replace_document(self, application_id: str, old_document_id: str, new_document_id: str) -> dict:
        """Put another document in the place of one that belongs to an application.

        Args:
            application_id: Application number, such as N5001.
            old_document_id: The document that goes.
            new_document_id: The document that takes its place.
        """
        application = self._application(application_id)
        if old_document_id not in application["documents"]:
            raise ToolError(f"document {old_document_id} does not belong to application {application_id}")
        if self._document(new_document_id)["applicant_id"] != application["applicant_id"]:
            raise ToolError(f"document {new_document_id} is not one of {application['applicant_id']}")
        documents = [new_document_id if d == old_document_id else d for d in application["documents"]]
        self.db.update("applications", application_id, documents=documents)
        return {"application_id": application_id, "documents": documents}

    @writes
    def withdraw_application(self, application_id: str) -> dict:
        """Withdraw an application for the applicant.

        Args:
            application_id: Application number.
        """
        if self._application(application_id)["status"] == "withdrawn":
            raise ToolError(f"application {application_id} is already withdrawn")
        self.db.update("applications", application_id, status="withdrawn")
        return {"withdrawn": application_id}

    @writes
    def send_letter(self, application_id: str, letter: Letter) -> dict:
        """Send a letter about an application to the applicant's e-mail address on file.

        Args:
            application_id: Application number.
            letter: Which letter.
        """
        application = self._application(application_id)
        self.db.update("applications", application_id, letters=[*application["letters"], letter])
        return {"sent": letter, "application_id": application_id}

    @writes
    def delete_document(self, document_id: str) -> dict:
        """Delete a document for good.

        Args:
            document_id: Document number.
        """
        self._document(document_id)
        self.db.delete("documents", document_id)
        return {"deleted": document_id}

    @writes
    def record_case(
        self,
        applicant_id: str,
        request: Request,
        outcome: Literal["refused", "withdrawn"],
        reason: Reason,
        document: Kind | None = None,
    ) -> dict:
        """Record a request that was refused or that the applicant withdrew.

        Args:
            applicant_id: The applicant who asked.
            request: What was asked for.
            outcome: How it ended.
            reason: Why.
            document: The kind of document that is missing, or that something is wrong with.
        """
        self._applicant(applicant_id)
        return add_case(
            self.db,
            applicant_id=applicant_id,
            request=request,
            outcome=outcome,
            reason=reason,
            document=document,
        )

    @ends
    def transfer_to_human(self, reason: HandoverReason, summary: str = "") -> dict:
        """Hand the conversation over to a colleague; it ends here.

        Args:
            reason: Why a colleague must take over.
            summary: What the colleague needs to know.
        """
        return add_handover(self.db, reason)

    def _applicant(self, applicant_id: str) -> Row:
        return self._row("applicants", applicant_id, "applicant")

    def _application(self, application_id: str) -> Row:
        return self._row("applications", application_id, "application")

    def _document(self, document_id: str) -> Row:
        return self._row("documents", document_id, "document")

    def _row(self, table: str, key: str, what: str) -> Row:
        row = self.db.get(table, key)
        if row is None:
            raise ToolError(f"there is no {what} with the number {key[:20]}")
        return row


def _summary(row: Row) -> dict:
    return {k: row[k] for k in ("applicant_id", "name", "staff")}
