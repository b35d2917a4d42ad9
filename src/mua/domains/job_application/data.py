"""The database of the applicants' desk, made from a seed: applicants, positions, documents, applications.

Invariant: applications refer to documents by number, and the same seed gives the same tables on any machine.
"""

from __future__ import annotations

import functools
import random
from typing import Any

from ...database import Base
from ..people import birthday, full_names
from ..today import in_days

APPLICANTS = 330
LEVELS = ("A1", "A2", "B1", "B2", "C1", "C2")
UNDER_WAY = ("submitted", "in_review", "invited")

Tables = dict[str, dict[str, dict[str, Any]]]

_ROLES: dict[str, tuple[str, ...]] = {
    "Ward Nurse": ("cv", "diploma", "licence", "language_certificate", "background_check"),
    "Head Nurse": ("cv", "diploma", "licence", "reference_letter"),
    "Care Assistant": ("cv", "language_certificate", "background_check"),
    "Physiotherapist": ("cv", "diploma", "licence", "language_certificate"),
    "Laboratory Technician": ("cv", "diploma", "language_certificate"),
    "Receptionist": ("cv", "language_certificate"),
    "Driver": ("cv", "licence", "background_check"),
    "Accountant": ("cv", "diploma", "reference_letter"),
    "Cook": ("cv", "reference_letter"),
    "Porter": ("cv", "background_check"),
    "Archivist": ("cv", "diploma"),
    "Trainee": ("cv", "language_certificate"),
}
_DEPARTMENTS = ("Surgery", "Cardiology", "Paediatrics", "Oncology", "Radiology", "Emergency", "Geriatrics")


@functools.cache
def base() -> Base:
    """The tables as all episodes share them."""
    return Base(make_tables())


def make_tables(seed: int = 0) -> Tables:
    """All tables as plain JSON values: `{table: {key: row}}`."""
    rng = random.Random(f"job-application-{seed}")
    tables: Tables = {
        name: {} for name in ("applicants", "positions", "documents", "applications", "cases", "handovers")
    }
    for department in _DEPARTMENTS:
        for role, requires in _ROLES.items():
            _add_position(tables, rng, f"{role} ({department})", requires)
    names = full_names(rng)
    for number, name in zip(sorted(rng.sample(range(1000, 10000), APPLICANTS)), names, strict=False):
        applicant = f"A{number}"
        tables["applicants"][applicant] = {
            "applicant_id": applicant,
            "name": name,
            "date_of_birth": birthday(rng),
            "email": f"{name.lower().replace(' ', '.')}@example.org",
            "staff": rng.random() < 0.2,
        }
        other = rng.choice(names)
        for kind in (
            "cv",
            "diploma",
            "licence",
            "language_certificate",
            "background_check",
            "reference_letter",
        ):
            for _ in range(rng.choice((1, 1, 2) if kind == "cv" else (0, 1, 1, 2, 2))):
                _add_document(tables, rng, applicant, kind, name if rng.random() < 0.97 else other)
        _add_applications(tables, rng, applicant)
    return tables


def _add_position(tables: Tables, rng: random.Random, title: str, requires: tuple[str, ...]) -> None:
    position = f"P{101 + len(tables['positions'])}"
    tables["positions"][position] = {
        "position_id": position,
        "title": title,
        "status": rng.choice((*["open"] * 6, "closed", "filled")),
        "deadline": in_days(rng.choice((-20, 0, 7, 12, 20, 28, 35, 42, 60))),
        "internal": rng.random() < 0.12,
        "requires": list(requires),
        "language": rng.choice(("A2", "B1", "B2", "C1")) if "language_certificate" in requires else None,
        "min_years": rng.choice((0, 0, 1, 2, 3, 5)),
    }


def _add_document(tables: Tables, rng: random.Random, applicant: str, kind: str, holder: str) -> None:
    document = f"D{30001 + len(tables['documents'])}"
    age = rng.randrange(5, 150) if kind == "background_check" else rng.randrange(5, 2500)
    expires = kind in ("licence", "language_certificate")
    row = {
        "document_id": document,
        "applicant_id": applicant,
        "kind": kind,
        "issued": in_days(-age),
        "valid_until": in_days(rng.choice((-30, 10, 30, 200, 700, 900, 1200))) if expires else None,
        "status": rng.choice((*["verified"] * 20, "pending", "pending", "rejected", "flagged")),
        "holder": holder,
    }
    if kind == "cv":
        row["years"] = rng.randrange(0, 16)
    elif kind == "diploma":
        row["recognised"] = rng.random() < 0.93
    elif kind == "language_certificate":
        row["level"] = rng.choice(LEVELS[1:])
    tables["documents"][document] = row


def _add_applications(tables: Tables, rng: random.Random, applicant: str) -> None:
    mine = {}
    for key, row in tables["documents"].items():
        if row["applicant_id"] == applicant:
            mine.setdefault(row["kind"], key)
    positions = rng.sample(list(tables["positions"]), rng.choice((0, 1, 1, 2, 3, 4)))
    for position in positions:
        row = tables["positions"][position]
        status = rng.choice((*["submitted"] * 4, "in_review", "invited", "rejected", "withdrawn"))
        decided = in_days(-rng.randrange(10, 360)) if status == "rejected" else None
        letters = ["receipt"] if rng.random() < 0.3 else []
        if status == "rejected" and rng.random() < 0.3:
            letters.append("rejection")
        if status == "invited" and rng.random() < 0.3:
            letters.append("invitation")
        application = f"N{5001 + len(tables['applications'])}"
        tables["applications"][application] = {
            "application_id": application,
            "applicant_id": applicant,
            "position_id": position,
            "title": row["title"],
            "status": status,
            "decided": decided,
            "documents": [mine[kind] for kind in row["requires"] if kind in mine],
            "letters": letters,
        }
