"""Tasks of the registrar's office, made from a seed.

The kinds named `edge_…` lie on the two sides of a limit of the policy: their initial state is set so.

Invariant: a task's gold calls are what `casework.gold` makes of it by the policy; refusals, withdrawals and
handovers are writes too.
"""

from __future__ import annotations

import datetime
import functools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...database import Base, Row, thaw
from ...domain import Change, Task
from ..casework import gold
from ..drawing import Draft, Draw, Wish, deal
from ..times import clock, minutes
from . import policy
from .desk import DESK
from .tools import Registrar

SIZES = {"train": 1190, "dev": 140, "test": 280}
_PAIRS = 12_000
"""How many pairs of a student and a section are looked at for each to be found a reason."""

Json = dict[str, Any]

_HANDOVERS = {
    "grade_dispute": (
        "dispute {my} grade in {title}",
        "have {my} grade in {title} corrected, as {I} {am} sure that it is wrong",
    ),
    "leaving": (
        "leave the university for good",
        "give up {my} place at the university and leave {title} too",
    ),
    "accommodation": (
        "ask for support in {title} because of a disability",
        "get more time in the exam of {title} because of {my} disability",
    ),
    "waiver": (
        "hand in a written permission of {my} teacher to take {title} without what it requires",
        "take {title} without what it requires: {my} teacher has permitted it in writing",
    ),
}


class Drawer:
    """Draws drafts, from students and sections sorted by what the policy says to them."""

    def __init__(self, base: Base):
        self.tables = base.tables
        desk = Registrar(base.open())
        self.records = {s: desk.get_record(s) for s in self.tables["students"]}
        self.timetables = {s: desk.get_timetable(s) for s in self.tables["students"]}
        self.courses = {c: desk.get_course(c) for c in self.tables["courses"]}
        self.sections = {s: desk.get_section(s) for s in self.tables["sections"]}
        students = self.tables["students"]
        self.good = [s for s, row in students.items() if policy.standing(row) is None]
        self.bad = [s for s in students if s not in set(self.good)]
        self.mine = [(s, row) for s in self.good for row in self.timetables[s]["sections"]]
        """A student of good standing, and one of its sections as in its timetable."""
        self.least = [
            (s, row) for s, row in self.mine if self.timetables[s]["credits"] - row["credits"] in (8, 9)
        ]
        self.listed = [
            (row["student_id"], row["section_id"], row["position"]) for row in self.tables["waits"].values()
        ]
        self.pairs: dict[str | None, list[tuple[str, str]]] = {}
        """Reason (None: granted) → pairs of a student of good standing and a section."""
        rng = random.Random("course-registration-pairs")
        names = list(self.sections)
        for _ in range(_PAIRS):
            student, section = rng.choice(self.good), rng.choice(names)
            self.pairs.setdefault(self.reason(student, section), []).append((student, section))

    def reason(self, student: str, section: str, **changed: Any) -> str | None:
        """Why enrolling is refused, with these fields of the student or the section changed."""
        record = {**self.records[student], **changed}
        known = {**self.sections[section], **changed}
        return policy.enrol_refusal(record, self.timetables[student], self.courses[known["course"]], known)

    # ------------------------------------------------------------ parts of a draft

    def draft(self, student: str, *wishes: Wish, setup: Sequence[Change] = (), by: str = "number") -> Draft:
        """The student asks for this."""
        row = self.tables["students"][student]
        number = (
            f"my student number is {student}, born {row['born']}",
            {"student_id": student, "born": row["born"]},
        )
        name = (f"I am {row['name']}, born {row['born']}", {"name": row["name"], "born": row["born"]})
        facts = {"student number": student, "name": row["name"], "date of birth": row["born"]}
        if by == "number":
            return Draft(number, facts, wishes, setup=setup)
        del facts["student number"]
        return Draft(name, facts, wishes, setup=setup, notes=["You do not remember your student number."])

    def title(self, section: str) -> str:
        return self.courses[self.sections[section]["course"]]["title"]

    def enrolling(self, section: str, wait: bool | None = None, **how: Any) -> Wish:
        """To enrol in a section; `wait`: on its list, if it is full (None: it cannot come to that)."""
        if wait is not None:
            how |= {"more": {"wait": wait}, "note": _wait_note(wait)}
        want = f"enrol in section {section} of {self.title(section)}"
        return Wish(want, {"do": "enrol", "section": section}, must=[section], **how)

    def dropping(self, section: str, **how: Any) -> Wish:
        want = f"drop {{my}} section {section} of {self.title(section)}"
        return Wish(want, {"do": "drop", "section": section}, must=[section], **how)

    def swapping(self, section: str, new: str) -> Wish:
        want = f"change from {{my}} section {section} of {self.title(section)} to section {new}"
        return Wish(want, {"do": "swap", "section": section, "new": new}, must=[section, new])

    def grading(self, section: str, grading: str) -> Wish:
        want = f"be graded {'by letters' if grading == 'letter' else grading} in {{my}} section {section}"
        return Wish(want, {"do": "grading", "section": section, "grading": grading}, must=[section, grading])

    def leaving(self, section: str) -> Wish:
        want = f"leave the waiting list of section {section} of {self.title(section)}"
        return Wish(want, {"do": "leave_list", "section": section}, must=[section])

    def pair(self, rng: random.Random, reason: str | None) -> tuple[str, str]:
        """A student and a section for which this is the reason."""
        return rng.choice(self.pairs[reason])

    def other_wish(self, rng: random.Random, student: str, section: str) -> Wish | None:
        """Something else that is granted to a student who asks for `section` too."""
        row = self.tables["students"][student]
        timetable = self.timetables[student]
        chosen = rng.choice(timetable["sections"])
        mine = chosen["section_id"]
        what = rng.choice(("drop", "grading", "leave"))
        if what == "drop" and policy.drop_refusal(row, timetable, self.sections[mine]) is None:
            return self.dropping(mine)
        if what == "grading":
            return self.regraded(student, chosen, refused=False)
        waiting = [w["section_id"] for w in timetable["waiting"] if w["section_id"] != section]
        return self.leaving(rng.choice(waiting)) if waiting else None

    def regraded(self, student: str, chosen: Json, refused: bool) -> Wish | None:
        """The other grading of a section, if that is refused or not as wanted."""
        section = chosen["section_id"]
        grading = "letter" if chosen["grading"] == "pass/fail" else "pass/fail"
        course = self.courses[chosen["course"]]
        record, timetable = self.records[student], self.timetables[student]
        reason = policy.grading_refusal(record, timetable, course, section, grading)
        return self.grading(section, grading) if refused == bool(reason) else None

    # ------------------------------------------------------------ kinds: granted

    def enrol(self, rng: random.Random) -> Draft:
        student, section = self.pair(rng, None)
        return self.draft(student, self.enrolling(section, wait=rng.choice((None, None, True, False))))

    def course(self, rng: random.Random) -> Draft | None:
        """The student names a course; only one or some of its sections may be granted."""
        student, section = self.pair(rng, rng.choice((None, None, "conflict", "full")))
        return self._by_course(rng, student, section, title=False)

    def title_only(self, rng: random.Random) -> Draft | None:
        student, section = self.pair(rng, None)
        found = [c for c in self.courses.values() if self.title(section).lower() in c["title"].lower()]
        return self._by_course(rng, student, section, title=True) if len(found) == 1 else None

    def _by_course(self, rng: random.Random, student: str, section: str, title: bool) -> Draft | None:
        course = self.courses[self.sections[section]["course"]]
        if len(course["sections"]) == 1:
            return None
        wait = rng.random() < 0.5
        named = {"title": course["title"]} if title else {"course": course["course"]}
        want = course["title"] if title else f"{course['title']} ({course['course']})"
        want = f"take {want}, in whichever section there is"
        wish = Wish(
            want,
            {"do": "enrol", **named},
            must=[course["course"]],
            more={"wait": wait},
            note=_wait_note(wait),
        )
        return self.draft(student, wish)

    def which(self, rng: random.Random) -> Draft:
        """What it is about is told when asked."""
        if rng.random() < 0.5:
            student, section = self.pair(rng, None)
            wish = Wish("enrol in a section", {"do": "enrol"}, must=[section])
        else:
            student, mine = rng.choice(self.mine)
            section = mine["section_id"]
            wish = Wish("drop one of {my} sections", {"do": "drop"}, must=[section])
        wish.later = {"section": (f"it is section {section}", {"section": section})}
        return self.draft(student, wish)

    def by_name(self, rng: random.Random) -> Draft:
        student, section = self.pair(rng, rng.choice((None, None, "credits", "conflict")))
        return self.draft(student, self.enrolling(section), by="name")

    def wrong_number(self, rng: random.Random) -> Draft | None:
        student, section = self.pair(rng, None)
        i = rng.randrange(1, 5)
        mistake = student[:i] + student[i + 1] + student[i] + student[i + 2 :]  # as people swap digits
        if mistake in self.tables["students"]:
            return None
        draft = self.draft(student, self.enrolling(section))
        born = self.tables["students"][student]["born"]
        draft.wrong = (
            f"my student number is {mistake}, born {born}",
            {"student_id": mistake, "born": born},
        )
        return draft

    def from_list(self, rng: random.Random) -> Draft | None:
        """Places became free, for those who wait: enough for the student, or one too few."""
        student, section, position = rng.choice(self.listed)
        if student not in self.good or self.reason(student, section) not in (None, "full"):
            return None
        left = position + rng.choice((-1, 0, 1))
        setup = self.section_set(section, seats=self.sections[section]["enrolled"] + left)
        return self.draft(student, self.enrolling(section), setup=[setup])

    def drop(self, rng: random.Random) -> Draft | None:
        return self._drop(rng, refused=False)

    def swap(self, rng: random.Random) -> Draft | None:
        return self._swap(rng, refused=False)

    def leave_list(self, rng: random.Random) -> Draft:
        student, section, _ = rng.choice(self.listed)
        return self.draft(student, self.leaving(section))

    def grade(self, rng: random.Random) -> Draft | None:
        student, mine = rng.choice(self.mine)
        wish = self.regraded(student, mine, refused=False)
        return self.draft(student, wish) if wish else None

    def change(self, rng: random.Random) -> Draft | None:
        """Another section at the confirmation, for which all is checked again."""
        student, section = self.pair(rng, None)
        other, other_section = self.pair(rng, rng.choice((None, "conflict", "prerequisite")))
        again = self.reason(student, other_section)
        if other_section == section or again == "full" or (other != student and again == "duplicate"):
            return None
        return self.draft(student, self.enrolling(section, change=self.enrolling(other_section)))

    def withdraw(self, rng: random.Random) -> Draft | None:
        if rng.random() < 0.5:
            student, section = self.pair(rng, None)
            return self.draft(student, self.enrolling(section, withdraw=True))
        draft = self.drop(rng)
        if draft:
            draft.wishes[0].withdraw = True
        return draft

    def two(self, rng: random.Random) -> Draft | None:
        student, section = self.pair(rng, None)
        other = self.other_wish(rng, student, section)
        if other is None:
            return None
        wishes = [self.enrolling(section, wait=False), other]
        rng.shuffle(wishes)
        return self.draft(student, *wishes)

    def make_room(self, rng: random.Random) -> Draft | None:
        """What conflicts must be dropped first; the student knows that, or learns it."""
        student, section = self.pair(rng, rng.choice(("conflict", "credits")))
        row, timetable = self.tables["students"][student], self.timetables[student]
        for mine in timetable["sections"]:
            rest = [m for m in timetable["sections"] if m is not mine]
            left = {**timetable, "sections": rest, "credits": timetable["credits"] - mine["credits"]}
            name = mine["section_id"]
            free = policy.enrol_refusal(
                self.records[student],
                left,
                self.courses[self.sections[section]["course"]],
                self.sections[section],
            )
            if free is None and policy.drop_refusal(row, timetable, self.sections[name]) is None:
                first = [self.enrolling(section)] if rng.random() < 0.5 else []
                return self.draft(student, *first, self.dropping(name), self.enrolling(section))
        return None

    # ------------------------------------------------------------ kinds: refused

    def standing(self, rng: random.Random) -> Draft | None:
        """Not in good standing; what such a student may do all the same comes in between."""
        student = rng.choice(self.bad)
        timetable = self.timetables[student]
        mine = rng.choice(timetable["sections"])
        what = rng.choice(("enrol", "enrol", "grading", "drop"))
        if what == "enrol":
            return self.draft(student, self.enrolling(rng.choice(list(self.sections)), wait=True))
        if what == "drop":
            return self.draft(student, self.dropping(mine["section_id"]))
        grading = "letter" if mine["grading"] == "pass/fail" else "pass/fail"
        return self.draft(student, self.grading(mine["section_id"], grading))

    def refused(self, reason: str) -> Draw:
        def draw(rng: random.Random) -> Draft:
            student, section = self.pair(rng, reason)
            return self.draft(student, self.enrolling(section, wait=rng.choice((None, None, True, False))))

        return draw

    def insist(self, rng: random.Random) -> Draft:
        reason = rng.choice(("passed", "prerequisite", "credits", "conflict"))
        student, section = self.pair(rng, reason)
        return self.draft(student, self.enrolling(section, insist=True))

    def full_wait(self, rng: random.Random) -> Draft:
        student, section = self.pair(rng, "full")
        return self.draft(student, self.enrolling(section, wait=True))

    def full_no(self, rng: random.Random) -> Draft:
        student, section = self.pair(rng, "full")
        return self.draft(student, self.enrolling(section, wait=False))

    def drop_refused(self, rng: random.Random) -> Draft | None:
        return self._drop(rng, refused=True)

    def _drop(self, rng: random.Random, refused: bool) -> Draft | None:
        student, mine = rng.choice(self.mine)
        section = self.sections[mine["section_id"]]
        reason = policy.drop_refusal(self.tables["students"][student], self.timetables[student], section)
        if refused != bool(reason):
            return None
        return self.draft(student, self.dropping(section["section_id"]))

    def swap_refused(self, rng: random.Random) -> Draft | None:
        return self._swap(rng, refused=True)

    def _swap(self, rng: random.Random, refused: bool) -> Draft | None:
        student, mine = rng.choice(self.mine)
        old = mine["section_id"]
        others = [s for s in self.courses[mine["course"]]["sections"] if s != old]
        if not others:
            return None
        new = rng.choice(others)
        reason = policy.swap_refusal(self.timetables[student], old, self.sections[new])
        return self.draft(student, self.swapping(old, new)) if refused == bool(reason) else None

    def grade_refused(self, rng: random.Random) -> Draft | None:
        student, mine = rng.choice(self.mine)
        wish = self.regraded(student, mine, refused=True)
        return self.draft(student, wish) if wish else None

    # ------------------------------------------------------------ kinds: handed over

    def handover(self, rng: random.Random) -> Draft:
        student, section = rng.choice(self.good), rng.choice(list(self.sections))
        reason = rng.choice(list(_HANDOVERS))
        want = rng.choice(_HANDOVERS[reason]).replace("{title}", self.title(section))
        return self.draft(student, Wish(want, {"do": reason}))

    def late_handover(self, rng: random.Random) -> Draft:
        """What was asked for before is done first."""
        student, section = self.pair(rng, rng.choice((None, "credits")))
        last = self.handover(rng).wishes[0]
        return self.draft(student, self.enrolling(section), last)

    def unknown(self, rng: random.Random) -> Draft | None:
        """Nobody whom the university knows, and sure that it does."""
        student, section = self.pair(rng, None)
        number = f"S{rng.randint(10000, 99999)}"
        born = (datetime.date(2000, 1, 1) + datetime.timedelta(days=rng.randrange(2500))).isoformat()
        if number in self.tables["students"] or self.tables["students"][student]["born"] == born:
            return None
        return Draft(
            (f"my student number is {number}, born {born}", {"student_id": number, "born": born}),
            {"student number": number, "date of birth": born},
            [self.enrolling(section)],
            notes=["You insist that this number and this date are right."],
        )

    # ------------------------------------------------------------ kinds: on the edge of a rule

    def edge_time(self, rng: random.Random) -> Draft | None:
        """Back to back or one minute over; 30 minutes between two campuses, or one less."""
        student, name = self.pair(rng, rng.choice((None, "conflict")))
        mine = rng.choice(self.timetables[student]["sections"])
        campus = rng.choice(("North", "South"))
        gap = (0 if campus == mine["campus"] else 30) - rng.choice((0, 1))
        if rng.random() < 0.5:
            start = minutes(mine["end"]) + gap
            end = start + 60
        else:
            end = minutes(mine["start"]) - gap
            start = end - 60
        times = {"start": clock(start), "end": clock(end)}
        moved = {**times, "days": mine["days"][:1], "campus": campus}
        if any(policy.clash(m, moved) for m in self.timetables[student]["sections"] if m is not mine):
            return None
        if self.reason(student, name, **moved) not in (None, "conflict"):
            return None
        setup = self.section_set(name, **moved)
        return self.draft(student, self.enrolling(name), setup=[setup])

    def edge_credits(self, rng: random.Random) -> Draft | None:
        """At the limit or one above it; a GPA of 3.50 or 3.49."""
        student, section = self.pair(rng, rng.choice((None, "credits")))
        course = self.courses[self.sections[section]["course"]]
        total = self.timetables[student]["credits"] + course["credits"]
        gpa = rng.choice((3.49, 3.5))
        if total not in (18, 19, 21, 22):
            return None
        if self.reason(student, section, gpa=gpa) not in (None, "credits"):
            return None
        return self.draft(student, self.enrolling(section), setup=[self.student_set(student, gpa=gpa)])

    def edge_seats(self, rng: random.Random) -> Draft:
        """The last place, none, or places for those who wait only."""
        student, section = self.pair(rng, rng.choice((None, "full")))
        known = self.sections[section]
        left = rng.choice((0, known["waiting"], known["waiting"] + 1))
        setup = self.section_set(section, seats=known["enrolled"] + left)
        return self.draft(student, self.enrolling(section, wait=rng.random() < 0.5), setup=[setup])

    def edge_grade(self, rng: random.Random) -> Draft | None:
        """A required course, or the course itself, with C or with D."""
        student, section = self.pair(rng, None)
        course = self.courses[self.sections[section]["course"]]
        if not course["requires"] and rng.random() < 0.8:
            return None
        which = rng.choice([course["course"], *course["requires"]])
        grades = {**self.records[student]["grades"], which: rng.choice("CD")}
        return self.draft(student, self.enrolling(section), setup=[self.student_set(student, grades=grades)])

    def edge_drop(self, rng: random.Random) -> Draft | None:
        """The last day for drops or the day after; 9 credits left or 8."""
        late = rng.random() < 0.4
        student, mine = rng.choice(self.mine if late else self.least)
        day = policy.TODAY - datetime.timedelta(days=int(late and rng.random() < 0.5))
        setup = [self.section_set(mine["section_id"], drop_until=day.isoformat())]
        if not late:
            setup.append(self.student_set(student, full_time=rng.random() < 0.7))
        return self.draft(student, self.dropping(mine["section_id"]), setup=setup)

    def section_set(self, section: str, **fields: Any) -> Change:
        return _set("sections", section, self.tables["sections"][section], fields)

    def student_set(self, student: str, **fields: Any) -> Change:
        return _set("students", student, self.tables["students"][student], fields)

    # ------------------------------------------------------------ all of them

    def kinds(self) -> dict[str, Callable[[random.Random], Draft | None]]:
        """Every kind of task, by name."""
        return {
            "enrol": self.enrol,
            "course": self.course,
            "title": self.title_only,
            "which": self.which,
            "by_name": self.by_name,
            "wrong_number": self.wrong_number,
            "from_list": self.from_list,
            "drop": self.drop,
            "swap": self.swap,
            "leave_list": self.leave_list,
            "grading": self.grade,
            "change": self.change,
            "withdraw": self.withdraw,
            "two": self.two,
            "make_room": self.make_room,
            "standing": self.standing,
            "passed": self.refused("passed"),
            "duplicate": self.refused("duplicate"),
            "prerequisite": self.refused("prerequisite"),
            "credits": self.refused("credits"),
            "conflict": self.refused("conflict"),
            "insist": self.insist,
            "full_wait": self.full_wait,
            "full_no": self.full_no,
            "drop_refused": self.drop_refused,
            "swap_refused": self.swap_refused,
            "grading_refused": self.grade_refused,
            "handover": self.handover,
            "late_handover": self.late_handover,
            "unknown": self.unknown,
            "edge_time": self.edge_time,
            "edge_credits": self.edge_credits,
            "edge_seats": self.edge_seats,
            "edge_grade": self.edge_grade,
            "edge_drop": self.edge_drop,
        }


def _wait_note(wait: bool) -> str:
    return f"If no place is free, you {'want' if wait else 'do not want'} to go on the waiting list."


def _set(table: str, key: str, row: Row, fields: Mapping[str, Any]) -> Change:
    return Change(table, key, {**thaw(row), **fields})


@functools.cache
def all_tasks(base: Base) -> Mapping[str, Sequence[Task]]:
    """The tasks of every split."""
    drawer = Drawer(base)
    return deal(drawer.kinds(), SIZES, "course-registration-tasks", lambda draft: gold(DESK, base, draft))
