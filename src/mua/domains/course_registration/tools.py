"""The tools of the registrar's office.

A tool refuses only what makes no sense in the database (an unknown section, dropping what the student does
not have). Whether a request may be granted is the policy's matter and the agent's: a tool enrols into a full
or clashing section, and the end state shows it. Every outcome is a write, refusals and handovers included.
"""

from __future__ import annotations

from typing import Literal

from ...database import Database, Row, thaw
from ...tools import ToolError, ends, reads, writes
from ..records import add_case, add_handover

Request = Literal["enrol", "drop", "swap", "leave_list", "grading"]
Reason = Literal[
    "not_active",
    "hold",
    "passed",
    "duplicate",
    "prerequisite",
    "credits",
    "conflict",
    "full",
    "deadline",
    "minimum",
    "own_department",
    "limit",
    "changed_mind",
]
HandoverReason = Literal["grade_dispute", "leaving", "accommodation", "waiver", "not_identified"]


class Registrar:
    """Tools over the tables of `data.make_tables`."""

    def __init__(self, db: Database):
        self.db = db

    @reads
    def find_student(self, student_id: str, born: str) -> dict:
        """Find a student by student number and date of birth.

        Args:
            student_id: Student number: S and five digits.
            born: Date of birth, such as 2004-03-31.
        """
        row = self.db.get("students", student_id)
        if row is None or row["born"] != born:
            raise ToolError("no student has this number and this date of birth")
        return self._standing(row)

    @reads
    def find_student_by_name(self, name: str, born: str) -> dict:
        """Find a student by full name and date of birth.

        Args:
            name: First and last name.
            born: Date of birth, such as 2004-03-31.
        """
        for _, row in self.db.where("students", name=name, born=born):
            return self._standing(row)
        raise ToolError("no student has this name and this date of birth")

    @reads
    def get_record(self, student_id: str) -> dict:
        """Department, GPA, and the grades of courses taken before this term.

        Args:
            student_id: Student number.
        """
        row = self._student(student_id)
        return {k: thaw(row[k]) for k in ("student_id", "department", "gpa", "grades")}

    @reads
    def get_timetable(self, student_id: str) -> dict:
        """The student's sections this term with their times, the sum of their credits, and the waiting lists.

        Args:
            student_id: Student number.
        """
        self._student(student_id)
        sections = []
        for _, enrolment in self.db.where("enrolments", student_id=student_id):
            row = self._section(enrolment["section_id"])
            times = {k: thaw(row[k]) for k in ("section_id", "course", "days", "start", "end", "campus")}
            credits = self._course(row["course"])["credits"]
            sections.append({**times, "credits": credits, "grading": enrolment["grading"]})
        sections.sort(key=lambda s: s["section_id"])
        waiting = [
            {"section_id": row["section_id"], "position": row["position"]}
            for _, row in self.db.where("waits", student_id=student_id)
        ]
        waiting.sort(key=lambda w: w["section_id"])
        return {"sections": sections, "credits": sum(s["credits"] for s in sections), "waiting": waiting}

    @reads
    def search_courses(self, words: str) -> list[dict]:
        """Search courses by words of the title.

        Args:
            words: Words that must all occur.
        """
        wanted = words.lower().split()
        return [
            {"course": key, "title": row["title"]}
            for key, row in self.db.where("courses")
            if wanted and all(w in row["title"].lower() for w in wanted)
        ]

    @reads
    def get_course(self, course: str) -> dict:
        """A course: title, department, credits, the courses it requires, and its sections this term.

        Args:
            course: Course, such as CS201.
        """
        row = thaw(self._course(course))
        return {**row, "sections": sorted(k for k, _ in self.db.where("sections", course=course))}

    @reads
    def get_section(self, section_id: str) -> dict:
        """A section: days, time, campus, seats, how many are enrolled and wait, and the last day for drops.

        Args:
            section_id: Section, such as CS201-2.
        """
        row = thaw(self._section(section_id))
        return {**row, "waiting": len(self.db.where("waits", section_id=section_id))}

    @writes
    def enrol(self, student_id: str, section_id: str) -> dict:
        """Enrol a student in a section, graded by letters. Takes the student off the section's waiting list.

        Args:
            student_id: Student number.
            section_id: Section.
        """
        self._student(student_id)
        section = self._section(section_id)
        key = f"{student_id}/{section_id}"
        if self.db.get("enrolments", key):
            raise ToolError(f"{student_id} is already enrolled in {section_id}")
        if self.db.get("waits", key):
            self._off_the_list(student_id, section_id)
        self.db.put(
            "enrolments", key, {"student_id": student_id, "section_id": section_id, "grading": "letter"}
        )
        self.db.update("sections", section_id, enrolled=section["enrolled"] + 1)
        return {"enrolled": section_id}

    @writes
    def drop(self, student_id: str, section_id: str) -> dict:
        """Take a student out of a section.

        Args:
            student_id: Student number.
            section_id: Section.
        """
        self._enrolment(student_id, section_id)
        self.db.delete("enrolments", f"{student_id}/{section_id}")
        self.db.update("sections", section_id, enrolled=self._section(section_id)["enrolled"] - 1)
        return {"dropped": section_id}

    @writes
    def swap_section(self, student_id: str, section_id: str, new_section_id: str) -> dict:
        """Move a student to another section of the same course; the grading stays as it is.

        Args:
            student_id: Student number.
            section_id: The section that is given up.
            new_section_id: The section instead.
        """
        grading = self._enrolment(student_id, section_id)["grading"]
        if self._section(new_section_id)["course"] != self._section(section_id)["course"]:
            raise ToolError(f"{new_section_id} is not a section of the same course as {section_id}")
        self.enrol(student_id, new_section_id)
        self.db.update("enrolments", f"{student_id}/{new_section_id}", grading=grading)
        self.drop(student_id, section_id)
        return {"dropped": section_id, "enrolled": new_section_id}

    @writes
    def join_waiting_list(self, student_id: str, section_id: str) -> dict:
        """Put a student at the end of a section's waiting list.

        Args:
            student_id: Student number.
            section_id: Section.
        """
        self._student(student_id)
        self._section(section_id)
        key = f"{student_id}/{section_id}"
        if self.db.get("waits", key):
            raise ToolError(f"{student_id} is already on the waiting list of {section_id}")
        position = len(self.db.where("waits", section_id=section_id)) + 1
        self.db.put("waits", key, {"student_id": student_id, "section_id": section_id, "position": position})
        return {"waiting": section_id, "position": position}

    @writes
    def leave_waiting_list(self, student_id: str, section_id: str) -> dict:
        """Take a student off a section's waiting list; those behind move up.

        Args:
            student_id: Student number.
            section_id: Section.
        """
        self._student(student_id)
        self._section(section_id)
        if not self.db.get("waits", f"{student_id}/{section_id}"):
            raise ToolError(f"{student_id} is not on the waiting list of {section_id}")
        self._off_the_list(student_id, section_id)
        return {"left": section_id}

    @writes
    def set_grading(self, student_id: str, section_id: str, grading: Literal["letter", "pass/fail"]) -> dict:
        """Change how a student is graded in a section.

        Args:
            student_id: Student number.
            section_id: Section.
            grading: The new grading.
        """
        if self._enrolment(student_id, section_id)["grading"] == grading:
            raise ToolError(f"the grading of {section_id} is already {grading}")
        self.db.update("enrolments", f"{student_id}/{section_id}", grading=grading)
        return {"section_id": section_id, "grading": grading}

    @writes
    def record_case(
        self, student_id: str, request: Request, outcome: Literal["refused", "withdrawn"], reason: Reason
    ) -> dict:
        """Record a request that was refused or that the student withdrew.

        Args:
            student_id: Student number.
            request: What was asked for.
            outcome: How it ended.
            reason: Why.
        """
        self._student(student_id)
        return add_case(self.db, student_id=student_id, request=request, outcome=outcome, reason=reason)

    @ends
    def transfer_to_human(self, reason: HandoverReason, summary: str = "") -> dict:
        """Hand the conversation over to a colleague; it ends here.

        Args:
            reason: Why a colleague must take over.
            summary: What the colleague needs to know.
        """
        return add_handover(self.db, reason)

    def _off_the_list(self, student_id: str, section_id: str) -> None:
        gone = self.db.get("waits", f"{student_id}/{section_id}")
        assert gone is not None
        self.db.delete("waits", f"{student_id}/{section_id}")
        for key, row in self.db.where("waits", section_id=section_id):
            if row["position"] > gone["position"]:
                self.db.update("waits", key, position=row["position"] - 1)

    def _student(self, student_id: str) -> Row:
        row = self.db.get("students", student_id)
        if row is None:
            raise ToolError(f"no student has the number {student_id[:20]}")
        return row

    def _course(self, course: str) -> Row:
        row = self.db.get("courses", course)
        if row is None:
            raise ToolError(f"there is no course {course[:20]}; search_courses finds courses by title")
        return row

    def _section(self, section_id: str) -> Row:
        row = self.db.get("sections", section_id)
        if row is None:
            raise ToolError(f"there is no section {section_id[:20]}; get_course lists a course's sections")
        return row

    def _enrolment(self, student_id: str, section_id: str) -> Row:
        self._student(student_id)
        self._section(section_id)
        row = self.db.get("enrolments", f"{student_id}/{section_id}")
        if row is None:
            raise ToolError(f"{student_id} is not enrolled in {section_id}; get_timetable lists the sections")
        return row

    @staticmethod
    def _standing(row: Row) -> dict:
        return {k: row[k] for k in ("student_id", "name", "status", "hold", "full_time")}
