"""Tasks of the applicants' desk, drawn from a seed.

Three of five tasks hold something that must be refused or handed over.

Invariant: wording depends on the content of a request alone, so that no two tasks differ in words only.
"""

from __future__ import annotations

import datetime
import functools
import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ...database import Base, Row, canonical_text, thaw
from ...domain import Change, Task
from ..casework import Desk, Json, gold
from ..drawing import Draw, Wish, deal
from ..pool import GRANTED, HANDED_OVER, REFUSED, Pool
from ..today import in_days
from .data import LEVELS, UNDER_WAY
from .speech import DESK

SIZES = {"train": 936, "dev": 144, "test": 216}
BAD_DOCUMENT = ("unverified_document", "expired_document", "stale_document")
NOT_GOOD_ENOUGH = ("language", "experience")
NOT_NOW = ("already_applied", "too_soon", "limit")
NOT_OPEN = ("closed", "internal", "unknown_position")


# ---------------------------------------------------------------- words

_WANT = {
    "apply": ("apply for {position}", "send in an application for {position}"),
    "replace": (
        "replace {old} in {application} by {new}",
        "have {old} in {application} exchanged for {new}",
    ),
    "withdraw": ("withdraw {application}", "take back {application}"),
    "letter": ("get {letter} of {application}", "be sent {letter} of {application}"),
    "delete": ("have {document} deleted", "delete {document} from {{my}} file"),
    "extend": (
        "hand in a document for {application} after the deadline",
        "have the deadline of {application} extended for {{me}}",
    ),
    "inside": (
        "know the reasons for the decision on {application}",
        "know how many others applied beside {{my}} {application}, and how good they are",
    ),
    "accommodation": ("ask for help at the interview because of {{my}} hearing impairment",),
    "discrimination": ("complain about discrimination in an interview",),
    "privacy": ("have all {{my}} personal data erased under the privacy law",),
    "salary": ("negotiate the salary of a position",),
    "appeal": ("appeal against the decision on {{my}} application",),
}
_TOLD = {
    "position": "position {}",
    "title": "the position {}",
    "application": "application {}",
    "letter": "the {} letter",
    "document": "document {}",
    "old": "document {}",
    "new": "document {}",
}
_UNTOLD = {
    "position": "a position",
    "application": "one of {my} applications",
    "letter": "a letter",
    "document": "a document",
    "new": "a newer document",
}
_LATER = {
    "position": "position {}",
    "application": "it is application {}",
    "letter": "the {} letter",
    "document": "it is document {}",
    "new": "the new one is document {}",
}


def make_wish(data: Json, late: Sequence[str] = (), **more: Any) -> Wish:
    """A request in words; the topics in `late` are told only when the person is asked."""
    told = {k: v for k, v in data.items() if k not in late}
    texts = {k: _TOLD[k].format(told[k]) if k in told else _UNTOLD.get(k, "") for k in _TOLD}
    if "title" in told:
        texts["position"] = texts["title"]
    want = random.Random(canonical_text([data, list(late)])).choice(_WANT[data["do"]])
    must = [str(v) for k, v in told.items() if k != "do"]
    later = {k: (_LATER[k].format(data[k]), {k: data[k]}) for k in late}
    return Wish(want.format(**texts), told, must, later, **more)


# ---------------------------------------------------------------- what there is to ask for


class ApplicantPool(Pool):
    """What applicants could ask for."""

    desk: ClassVar[Desk] = DESK
    table: ClassVar[str] = "applicants"
    number: ClassVar[str] = "applicant number"
    usual: ClassVar[Sequence[str]] = (GRANTED, GRANTED, REFUSED, HANDED_OVER)

    def suggested(self, rng: random.Random, person: str) -> Sequence[Json]:
        applied = [row["position_id"] for _, row in self.applications(person)]
        some = rng.sample(list(self.tables["positions"]), 6)
        out: list[Json] = [{"do": "apply", "position": p} for p in (*some, *applied)]
        titles = [self.tables["positions"][p]["title"] for p in rng.sample(list(self.tables["positions"]), 3)]
        department = rng.choice(("Neurology", "Dermatology", "Urology"))
        titles.append(f"{rng.choice(titles).partition(' (')[0]} ({department})")
        out += [{"do": "apply", "title": t} for t in titles]
        if rng.random() < 0.3:
            out.append({"do": "apply", "position": f"P{rng.randrange(300, 999)}"})
        documents = self.documents(person)
        out += [{"do": "delete", "document": key} for key, _ in documents]
        for key, row in self.applications(person):
            out += [{"do": do, "application": key} for do in ("withdraw", "extend", "inside")]
            out += [
                {"do": "letter", "application": key, "letter": what}
                for what in ("receipt", "invitation", "rejection")
            ]
            for old in row["documents"]:
                kind = self.tables["documents"][old]["kind"]
                same = [k for k, r in documents if r["kind"] == kind and k != old]
                others = [k for k, r in documents if r["kind"] != kind]
                for new in (*same, *rng.sample(others, 1)):
                    out.append({"do": "replace", "application": key, "old": old, "new": new})
            strange = [k for k, _ in documents if k not in row["documents"]]
            if len(strange) > 1:
                old, new = rng.sample(strange, 2)
                out.append({"do": "replace", "application": key, "old": old, "new": new})
        return out

    def wish(self, data: Json, late: Sequence[str] = (), **more: Any) -> Wish:
        return make_wish(data, late, **more)

    def applications(self, applicant: str) -> list[tuple[str, Row]]:
        return self.rows("applications", applicant)

    def documents(self, applicant: str) -> list[tuple[str, Row]]:
        return self.rows("documents", applicant)

    def users(self, applicant: str, document: str) -> list[str]:
        """The applications under way to which a document belongs."""
        rows = self.applications(applicant)
        return [key for key, row in rows if row["status"] in UNDER_WAY and document in row["documents"]]


# ---------------------------------------------------------------- kinds


def make_kinds(base: Base) -> dict[str, Draw]:
    """Every kind of task, by name."""
    pool = ApplicantPool(base)

    def apply_by(key: str) -> Draw:
        def draw(rng: random.Random):
            applicant, data = pool.draw(rng, "apply", GRANTED)
            return pool.draft(applicant, make_wish(data)) if key in data else None

        return draw

    def some(way: str, *requests: str) -> Draw:
        """One of these requests, ending that way."""
        return lambda rng: pool.one(rng.choice(requests), way)(rng)

    def not_yours(rng: random.Random):
        applicant = rng.choice(pool.people)
        owner, data = pool.draw(rng, rng.choice(("withdraw", "letter", "delete", "replace")), GRANTED)
        wish = make_wish(data, insist=rng.random() < 0.5)
        return pool.draft(applicant, wish) if owner != applicant else None

    def missing(rng: random.Random):
        applicant, data = pool.any(rng)
        late = [k for k in data if k in _LATER]
        if not late or data["do"] in ("extend", "inside"):
            return None
        return pool.draft(applicant, make_wish(data, [rng.choice(late)]))

    def change(rng: random.Random):
        do = rng.choice(("apply", "withdraw", "letter", "delete"))
        applicant, data = pool.draw(rng, do, GRANTED)
        others = [d for d in pool.granted[applicant] if d["do"] == do and d != data]
        if not others:
            return None
        return pool.draft(applicant, make_wish(data, change=make_wish(rng.choice(others))))

    def change_to_refused(rng: random.Random):
        """What it would rather have is not to be had."""
        do = rng.choice(("apply", "letter", "delete"))
        applicant, data = pool.draw(rng, do, REFUSED)
        first = [d for d in pool.granted.get(applicant, ()) if d["do"] == do]
        if not first:
            return None
        return pool.draft(applicant, make_wish(rng.choice(first), change=make_wish(data)))

    def clear_the_way(rng: random.Random):
        """An application is withdrawn first: there is room for another one then, or a document is free."""
        do, reason = rng.choice((("apply", "limit"), ("delete", "in_use")))
        applicant, blocked = pool.draw(rng, do, reason)
        mine = [d for d in pool.granted.get(applicant, ()) if d["do"] == "withdraw"]
        if do == "delete":
            users = pool.users(applicant, blocked["document"])
            mine = [d for d in mine if users == [d["application"]]]
        return pool.draft(applicant, make_wish(rng.choice(mine)), make_wish(blocked)) if mine else None

    def replace_then_delete(rng: random.Random):
        """The old document is in use until it is replaced."""
        applicant, data = pool.draw(rng, "replace", GRANTED)
        if len(pool.users(applicant, data["old"])) > 1:
            return None
        return pool.draft(applicant, make_wish(data), make_wish({"do": "delete", "document": data["old"]}))

    return {
        "apply": apply_by("position"),
        "apply_by_title": apply_by("title"),
        "not_open": pool.one("apply", *NOT_OPEN),
        "not_now": pool.one("apply", *NOT_NOW),
        "missing_document": pool.one("apply", "missing_document"),
        "bad_document": pool.one("apply", *BAD_DOCUMENT),
        "not_good_enough": pool.one("apply", *NOT_GOOD_ENOUGH),
        "odd_document": some(HANDED_OVER, "apply", "apply", "replace"),
        "replace": pool.one("replace", GRANTED),
        "replace_refused": pool.one("replace", REFUSED),
        "withdrawal": pool.one("withdraw", GRANTED),
        "withdrawal_refused": pool.one("withdraw", REFUSED),
        "after_invitation": pool.one("withdraw", HANDED_OVER),
        "letter": pool.one("letter", GRANTED),
        "letter_refused": pool.one("letter", REFUSED),
        "delete": pool.one("delete", GRANTED),
        "delete_refused": pool.one("delete", REFUSED),
        "delete_flagged": pool.one("delete", HANDED_OVER),
        "forbidden": some(REFUSED, "extend", "inside"),
        "not_yours": not_yours,
        "missing": missing,
        "change": change,
        "change_to_refused": change_to_refused,
        "clear_the_way": clear_the_way,
        "replace_then_delete": replace_then_delete,
        "boundary_day": _boundary(pool, "deadline", "rejected", "document"),
        "boundary_number": _boundary(pool, "experience", "language_certificate", "limit"),
        **pool.common(),
    }


def _boundary(pool: ApplicantPool, *limits: str) -> Draw:
    """An application that would be granted, with what one of these limits is about set to just below it, to
    it, or to just above it."""
    tables = pool.tables
    plain = [(a, d) for a, d in pool.requests["apply", "granted"] if "position" in d]

    def row(table: str, key: str, **changes: Any) -> Change:
        return Change(table, key, thaw(tables[table][key]) | changes)

    def application(number: int, applicant: str, position: str, status: str, decided: str | None) -> Change:
        key, title = f"N{number}", tables["positions"][position]["title"]
        new = {"application_id": key, "applicant_id": applicant, "position_id": position, "title": title}
        more = {"status": status, "decided": decided, "documents": [], "letters": []}
        return Change("applications", key, new | more)

    def set_up(rng: random.Random, what: str, step: int, applicant: str, position: str) -> list[Change]:
        home = tables["positions"][position]
        if what == "deadline":
            return [row("positions", position, deadline=in_days(step))]
        if what == "rejected":
            return [application(4999, applicant, position, "rejected", in_days(-181 + step))]
        if what == "limit":
            before = sum(r["status"] in UNDER_WAY for _, r in pool.applications(applicant))
            others = rng.sample([p for p in tables["positions"] if p != position], 3 + min(step, 0) - before)
            states = [(n, p, rng.choice(UNDER_WAY)) for n, p in enumerate(others, 4990)]
            return [application(number, applicant, p, status, None) for number, p, status in states]
        kind = "cv" if what == "experience" else what
        if what == "document":
            dated = ("background_check", "language_certificate", "licence")
            kind = next((k for k in dated if k in home["requires"]), "")
        mine = [key for key, r in pool.documents(applicant) if r["kind"] == kind]
        if len(mine) != 1 or kind not in home["requires"]:
            return []  # of more than one, another might count after the change
        if what == "experience":
            return [row("documents", mine[0], years=max(0, home["min_years"] + step))]
        if what == "language_certificate":
            return [row("documents", mine[0], level=LEVELS[LEVELS.index(home["language"]) + step])]
        if kind == "background_check":
            return [row("documents", mine[0], issued=in_days(-90 + step))]
        last = datetime.date.fromisoformat(home["deadline"]) + datetime.timedelta(days=step)
        return [row("documents", mine[0], valid_until=last.isoformat())]

    def draw(rng: random.Random):
        applicant, data = rng.choice(plain)
        setup = set_up(rng, rng.choice(limits), rng.choice((-1, 0, 1)), applicant, data["position"])
        return pool.draft(applicant, make_wish(data), setup=setup) if setup else None

    return draw


@functools.cache
def make_splits(base: Base) -> Mapping[str, Sequence[Task]]:
    """The tasks of every split."""
    kinds = make_kinds(base)
    return deal(kinds, SIZES, "job-application", lambda draft: gold(DESK, base, draft))
