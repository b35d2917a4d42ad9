"""The policy of the applicants' desk as code: what to look up, and what it comes to."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Generator, Mapping
from typing import Any

from ..casework import Decision, Grant, HandOver, Json, Need, Refuse, Steps
from ..script import Call, Refused
from ..today import TODAY
from .data import LEVELS, UNDER_WAY

AT_ONCE = frozenset({"accommodation", "discrimination", "privacy", "salary", "appeal"})
MOST_UNDER_WAY = 3
REJECTED_AFTER = "2025-09-02"
CHECK_DAYS = 90

Looked = Generator[Call | Need, Any, Any]


def decide(applicant: Json, request: Json) -> Steps:
    """What the policy says to a request of the applicant who was found."""
    return _POLICIES[request["do"]](applicant, request)


def flaw(document: Json, applicant: Json, position: Json) -> Decision | None:
    """What is wrong with a document that is to go with an application for the position."""
    kind = document["kind"]
    if document["status"] == "flagged":
        return HandOver("suspected_forgery")
    if document["holder"] != applicant["name"]:
        return HandOver("name_mismatch")
    if not document.get("recognised", True):
        return HandOver("recognition")
    about = {"document": kind}
    if document["status"] != "verified":
        return Refuse("unverified_document", about)
    if document["valid_until"] and document["valid_until"] < position["deadline"]:
        return Refuse("expired_document", about)
    oldest = TODAY - datetime.timedelta(days=CHECK_DAYS)
    if kind == "background_check" and document["issued"] < oldest.isoformat():
        return Refuse("stale_document", about)
    if kind == "language_certificate" and LEVELS.index(document["level"]) < LEVELS.index(
        position["language"]
    ):
        return Refuse("language", about)
    if kind == "cv" and document["years"] < position["min_years"]:
        return Refuse("experience", about)
    return None


def _apply(applicant: Json, request: Json) -> Steps:
    position = yield from _position(request)
    if position is None:
        return Refuse("unknown_position")
    if position["internal"] and not applicant["staff"]:
        return Refuse("internal")
    if _closed(position):
        return Refuse("closed")
    me = {"applicant_id": applicant["applicant_id"]}
    applications = yield Call("list_applications", dict(me))
    before = [a for a in applications if a["position_id"] == position["position_id"]]
    if any(a["status"] in UNDER_WAY for a in before):
        return Refuse("already_applied")
    if any(a["status"] == "rejected" and a["decided"] > REJECTED_AFTER for a in before):
        return Refuse("too_soon")
    if sum(a["status"] in UNDER_WAY for a in applications) >= MOST_UNDER_WAY:
        return Refuse("limit")
    mine = yield Call("list_documents", dict(me))
    chosen = []
    for kind in position["requires"]:
        fitting = [d for d in mine if d["kind"] == kind]
        if not fitting:
            return Refuse("missing_document", {"document": kind})
        newest = max(fitting, key=lambda d: (d["issued"], d["document_id"]))
        document = yield Call("get_document", {"document_id": newest["document_id"]})
        if wrong := flaw(document, applicant, position):
            return wrong
        chosen.append(document)
    listed = ", ".join(f"{d['document_id']} ({spoken(d['kind'])})" for d in chosen)
    number = position["position_id"]
    return Grant(
        "submit_application",
        {**me, "position_id": number, "document_ids": [d["document_id"] for d in chosen]},
        f"apply for {position['title']}, {number}, with your documents {listed}",
        f"Your application for {number} is submitted.",
    )


def _position(request: Json) -> Looked:
    """The position that the request is about; None when there is none."""
    if "title" in request:
        hits = yield Call("search_positions", {"words": request["title"]})
        number = next((h["position_id"] for h in hits if h["title"] == request["title"]), None)
        if number is None:
            return None
    else:
        number = request.get("position") or (yield Need("position"))
    position = yield Call("get_position", {"position_id": number})
    return None if isinstance(position, Refused) else position


def _closed(position: Json) -> bool:
    return position["status"] != "open" or position["deadline"] < TODAY.isoformat()


def _replace(applicant: Json, request: Json) -> Steps:
    application = yield from _application(applicant, request)
    if application is None:
        return Refuse("not_yours")
    mine = yield Call("list_documents", {"applicant_id": applicant["applicant_id"]})
    kinds = {d["document_id"]: d["kind"] for d in mine}
    old, new = request["old"], request.get("new") or (yield Need("new"))
    if new not in kinds:
        return Refuse("not_yours")
    if old not in application["documents"]:
        return Refuse("not_attached")
    if kinds.get(old) != kinds[new]:
        return Refuse("wrong_kind")
    if application["status"] != "submitted":
        return Refuse("under_review")
    position = yield Call("get_position", {"position_id": application["position_id"]})
    if _closed(position):
        return Refuse("closed")
    document = yield Call("get_document", {"document_id": new})
    if wrong := flaw(document, applicant, position):
        return wrong
    number = application["application_id"]
    return Grant(
        "replace_document",
        {"application_id": number, "old_document_id": old, "new_document_id": new},
        f"put document {new} in the place of {old} in application {number}",
        f"Application {number} has document {new} now.",
    )


def _withdraw(applicant: Json, request: Json) -> Steps:
    application = yield from _application(applicant, request)
    if application is None:
        return Refuse("not_yours")
    if application["status"] == "invited":
        return HandOver("invited")
    if application["status"] not in UNDER_WAY:
        return Refuse("finished")
    number = application["application_id"]
    return Grant(
        "withdraw_application",
        {"application_id": number},
        f"withdraw application {number}, {application['title']}",
        f"Application {number} is withdrawn.",
    )


def _letter(applicant: Json, request: Json) -> Steps:
    application = yield from _application(applicant, request)
    if application is None:
        return Refuse("not_yours")
    letter, status = request.get("letter") or (yield Need("letter")), application["status"]
    if letter == "receipt" and status not in UNDER_WAY:
        return Refuse("finished")
    if letter == "invitation" and status != "invited":
        return Refuse("not_invited")
    if letter == "rejection" and status != "rejected":
        return Refuse("not_rejected")
    if letter in application["letters"]:
        return Refuse("already_sent")
    number = application["application_id"]
    return Grant(
        "send_letter",
        {"application_id": number, "letter": letter},
        f"send the {letter} letter of application {number} to your e-mail address",
        f"The {letter} letter of {number} is on its way.",
    )


def _delete(applicant: Json, request: Json) -> Steps:
    number = request.get("document") or (yield Need("document"))
    mine = yield Call("list_documents", {"applicant_id": applicant["applicant_id"]})
    if number not in [d["document_id"] for d in mine]:
        return Refuse("not_yours")
    document = yield Call("get_document", {"document_id": number})
    if document["status"] == "flagged":
        return HandOver("suspected_forgery")
    applications = yield Call("list_applications", {"applicant_id": applicant["applicant_id"]})
    if any(number in a["documents"] and a["status"] in UNDER_WAY for a in applications):
        return Refuse("in_use")
    return Grant(
        "delete_document",
        {"document_id": number},
        f"delete document {number} ({spoken(document['kind'])}) for good",
        f"Document {number} is deleted.",
    )


def _always(reason: str) -> Callable[[Json, Json], Steps]:
    def refuse(applicant: Json, request: Json) -> Steps:
        yield from ()
        return Refuse(reason)

    return refuse


def _application(applicant: Json, request: Json) -> Looked:
    """The application that the request is about; None when it is not the applicant's."""
    number = request.get("application") or (yield Need("application"))
    applications = yield Call("list_applications", {"applicant_id": applicant["applicant_id"]})
    return next((a for a in applications if a["application_id"] == number), None)


def spoken(kind: str) -> str:
    """A kind of document in words."""
    return "CV" if kind == "cv" else kind.replace("_", " ")


_POLICIES: Mapping[str, Callable[[Json, Json], Steps]] = {
    "apply": _apply,
    "replace": _replace,
    "withdraw": _withdraw,
    "letter": _letter,
    "delete": _delete,
    "extend": _always("no_extension"),
    "inside": _always("confidential"),
}
