"""The registrar's database, made from a seed: courses, sections, students, enrolments, waiting lists.

Invariants:
- The same seed gives the same tables on any machine, so nothing needs to be stored.
- Nobody is enrolled against the policy: what a task finds wrong is what it asks for.
- `enrolled` of a section is the number of its rows in `enrolments`; the positions on a waiting list are
  1, 2, … without gaps.
"""

from __future__ import annotations

import datetime
import random
from typing import Any

from ..people import full_names
from ..times import clock, minutes
from . import policy

Json = dict[str, Any]
Tables = dict[str, dict[str, Json]]

STUDENTS = 320
_TITLES = {
    "BI": "Cells; Plants; Animals; Genetics; Ecology; Microbes; Evolution; Neurons; Immunity; Field Biology",
    "CS": "Programming; Discrete Structures; Web Basics; Algorithms; Databases; Networks; Compilers; "
    "Machine Learning; Graphics; Distributed Systems",
    "EC": "Markets; Accounting; Money; Trade; Labour; Public Finance; Game Theory; Econometrics; Growth; "
    "Economic Policy",
    "HI": "Antiquity; Middle Ages; Reading Sources; Empires; Revolutions; Cities; Cold War; Oral History; "
    "Archives; Historiography",
    "LI": "Sounds; Words; Sentences; Meaning; Dialects; Writing Systems; Language Contact; Translation; "
    "Speech; Field Linguistics",
    "MA": "Calculus; Linear Algebra; Proofs; Probability; Geometry; Number Theory; Topology; Statistics; "
    "Optimization; Logic",
    "PH": "Mechanics; Waves; Laboratory; Electricity; Heat; Optics; Quanta; Relativity; Solids; Astrophysics",
    "PS": "Perception; Memory; Emotion; Development; Personality; Groups; Cognition; Testing; Therapy; "
    "Consciousness",
}
_NUMBERS = (101, 102, 103, 201, 202, 203, 301, 302, 303, 401)
_DAYS = (("Mon", "Wed"), ("Tue", "Thu"), ("Mon", "Wed", "Fri"), ("Fri",), ("Tue",), ("Thu",))
_STARTS = ("08:00", "09:00", "09:30", "10:30", "11:00", "12:00", "12:30", "14:00", "15:00", "15:30", "16:30")
_CREDITS = (2, 3, 3, 4, 4, 5, 6)


def make_tables(seed: int = 0) -> Tables:
    """All tables as plain JSON values: `{table: {key: row}}`."""
    rng = random.Random(f"course-registration-{seed}")
    courses = _courses(rng)
    sections = _sections(rng, courses)
    students = _students(rng, courses)
    enrolments: dict[str, Json] = {}
    for student in students.values():
        mine = _timetable(rng, student, courses, sections)
        # Few have one section that is not graded by letters, never one of their own department.
        other = [s for s in mine if not s.startswith(student["department"])]
        passing = rng.choice(other) if other and rng.random() < 0.3 else None
        for section in mine:
            enrolments[f"{student['student_id']}/{section}"] = {
                "student_id": student["student_id"],
                "section_id": section,
                "grading": "pass/fail" if section == passing else "letter",
            }
            sections[section]["enrolled"] += 1
    waits = _seats_and_waits(rng, students, courses, sections, enrolments)
    return {
        "courses": courses,
        "sections": sections,
        "students": students,
        "enrolments": enrolments,
        "waits": waits,
        "cases": {},
        "handovers": {},
    }


def _courses(rng: random.Random) -> dict[str, Json]:
    courses: dict[str, Json] = {}
    for department, titles in _TITLES.items():
        for number, title in zip(_NUMBERS, titles.split("; "), strict=True):
            below = [f"{department}{n}" for n in _NUMBERS if n // 100 == number // 100 - 1]
            requires = rng.sample(below, rng.choice((1, 1, 2)) if number < 400 else 2) if below else []
            course = f"{department}{number}"
            courses[course] = {
                "course": course,
                "title": title,
                "department": department,
                "credits": rng.choice(_CREDITS),
                "requires": sorted(requires),
            }
    return courses


def _sections(rng: random.Random, courses: dict[str, Json]) -> dict[str, Json]:
    sections: dict[str, Json] = {}
    for course in courses:
        for number in range(1, rng.choice((1, 2, 2, 3, 3, 4)) + 1):
            start = minutes(rng.choice(_STARTS))
            last_drop = policy.TODAY + datetime.timedelta(days=rng.choice((-6, -3, -1, 0, 0, 4, 9, 18)))
            sections[f"{course}-{number}"] = {
                "section_id": f"{course}-{number}",
                "course": course,
                "days": list(rng.choice(_DAYS)),
                "start": clock(start),
                "end": clock(start + rng.choice((60, 60, 90, 90, 120))),
                "campus": rng.choice(("North", "North", "South")),
                "seats": 0,
                "enrolled": 0,
                "drop_until": last_drop.isoformat(),
            }
    return sections


def _students(rng: random.Random, courses: dict[str, Json]) -> dict[str, Json]:
    students: dict[str, Json] = {}
    names = full_names(rng)[:STUDENTS]
    for number, name in zip(rng.sample(range(10000, 100000), STUDENTS), names, strict=True):
        department = rng.choice(list(_TITLES))
        year = rng.randint(1, 4)
        grades: dict[str, str] = {}
        for course, row in courses.items():
            level = int(course[2])
            own = row["department"] == department
            if level < year and rng.random() < (0.8 if own else 0.25):
                grades[course] = rng.choice("AABBBCCCDF")
        born = datetime.date(2007 - year, 1, 1) + datetime.timedelta(days=rng.randrange(700))
        students[f"S{number}"] = {
            "student_id": f"S{number}",
            "name": name,
            "born": born.isoformat(),
            "department": department,
            "status": rng.choice(("active",) * 14 + ("on_leave", "suspended")),
            "hold": rng.choice(("none",) * 12 + ("unpaid_fees", "missing_papers")),
            "full_time": rng.random() < 0.8,
            "gpa": rng.choice((2.1, 2.6, 2.9, 3.2, 3.4, 3.49, 3.5, 3.5, 3.7, 3.9)),
            "grades": grades,
        }
    return students


def _timetable(
    rng: random.Random, student: Json, courses: dict[str, Json], sections: dict[str, Json]
) -> list[str]:
    """Sections of one student, three to six courses that fit together."""
    grades = {"grades": student["grades"], "gpa": student["gpa"]}
    mine: list[Json] = []
    credits, wanted = 0, rng.randint(3, 6)
    names = list(sections)
    rng.shuffle(names)
    names.sort(key=lambda s: not s.startswith(student["department"]) and rng.random() < 0.7)
    for name in names:
        course = courses[sections[name]["course"]]
        table = {"sections": mine, "credits": credits, "waiting": []}
        empty = {**sections[name], "seats": 1, "enrolled": 0, "waiting": 0}
        if policy.enrol_refusal(grades, table, course, empty) is None:
            mine.append({**sections[name], "credits": course["credits"]})
            credits += course["credits"]
        if len(mine) == wanted:
            break
    return sorted(s["section_id"] for s in mine)


def _seats_and_waits(
    rng: random.Random,
    students: dict[str, Json],
    courses: dict[str, Json],
    sections: dict[str, Json],
    enrolments: dict[str, Json],
) -> dict[str, Json]:
    """Sets how many seats there are, and who waits for one; returns the waiting lists."""
    waits: dict[str, Json] = {}
    lists = dict.fromkeys(students, 0)
    taken = {(e["student_id"], sections[e["section_id"]]["course"]) for e in enrolments.values()}
    for section, row in sections.items():
        left = rng.choice((0, 0, 0, 1, 1, 2, 3, 5, 9))
        row["seats"] = row["enrolled"] + left
        length = rng.choice((0, 1, 2, 4, 5)) if left == 0 else rng.choice((0, 0, 0, 1, 2)) if left < 3 else 0
        course = courses[row["course"]]
        able = [
            s
            for s in students
            if lists[s] < policy.MAX_LISTS
            and (s, row["course"]) not in taken
            and not policy.not_ready(students[s], course)
        ]
        for position, student in enumerate(rng.sample(able, min(length, len(able))), start=1):
            lists[student] += 1
            waits[f"{student}/{section}"] = {
                "student_id": student,
                "section_id": section,
                "position": position,
            }
    return waits
