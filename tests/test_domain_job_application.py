"""The applicants' desk: its tasks, its many ways to say no, and the rules of conduct."""

import dataclasses
import time

import pytest

from domain_checks import (
    check_blind_expert,
    check_frozen_openings,
    check_idle_agents,
    check_same_everywhere,
    check_talks,
    check_tasks,
    expert_talks,
)
from mua.chat import Message, ToolCall
from mua.domain import World
from mua.domains import load
from mua.domains.casework import Grant, Refuse, decision_on
from mua.domains.job_application import tasks
from mua.domains.job_application.speech import DESK
from mua.domains.job_application.tools import ApplicantsDesk
from mua.errors import MuaError

DOMAIN = load("job_application")
violations = DOMAIN.violations
TASKS = [task for split in DOMAIN.splits for task in DOMAIN.tasks(split)]


@pytest.fixture(scope="module")
def talks():
    return expert_talks(DOMAIN)


# ---------------------------------------------------------------- tasks and expert


def test_it_is_as_large_as_it_says():
    assert {s: len(DOMAIN.tasks(s)) for s in DOMAIN.splits} == tasks.SIZES
    assert len({t.kind for t in TASKS}) == 36
    assert len(DOMAIN.tools()) == 14 and len(DOMAIN.base.tables["documents"]) > 1000
    with pytest.raises(MuaError, match="no profile 'tiny'; it has full"):
        load("job_application:tiny")


def test_tasks_are_distinct_and_need_something_done():
    check_tasks(DOMAIN)


def test_tasks_are_made_fast_and_the_same_each_time():
    began = time.process_time()
    again = tasks.make_splits.__wrapped__(DOMAIN.base)
    assert time.process_time() - began < 5
    assert [t for split in again.values() for t in split] == TASKS
    check_same_everywhere(DOMAIN)


def test_the_expert_solves_every_task_within_the_rules(talks):
    # Only a number that does not exist makes a call fail.
    check_talks(DOMAIN, talks, violations, errors={"wrong_id", "unknown", *_with("unknown_position")})


def _with(reason):
    return {t.kind for t in TASKS if any(a.arguments.get("reason") == reason for a in t.actions)}


def test_the_expert_cannot_read_the_task():
    check_blind_expert(DOMAIN)


def test_who_does_nothing_earns_nothing():
    check_idle_agents(DOMAIN)


@pytest.mark.parametrize("split", DOMAIN.splits)
def test_most_tasks_hold_something_to_refuse_or_to_hand_over(split):
    no = [t for t in DOMAIN.tasks(split) if any(_is_no(a) for a in t.actions)]
    assert 0.55 < len(no) / len(DOMAIN.tasks(split)) < 0.7


def _is_no(action):
    return action.name == "transfer_to_human" or action.arguments.get("outcome") == "refused"


def test_another_user_can_go_on_from_a_fixed_opening():
    check_frozen_openings(DOMAIN, DOMAIN.tasks("test"))


def test_the_scenario_tells_neither_policy_nor_gold():
    reasons = DOMAIN.tools()["record_case"].parameters["properties"]["reason"]["enum"]
    words = {r for r in reasons if "_" in r} | {*DOMAIN.tools(), "flagged", "{", "  ", " my ", " mine", " I "}
    for task in TASKS:
        goal = task.scenario.goal.partition("When you first say who you are")[0]
        assert goal.startswith("You want to ") and not any(word in goal for word in words), goal


def test_every_reason_decides_some_task():
    told = {a.arguments["reason"] for t in TASKS for a in t.actions if "reason" in a.arguments}
    tools = [DOMAIN.tools()[name].parameters["properties"] for name in ("record_case", "transfer_to_human")]
    assert told == {reason for properties in tools for reason in properties["reason"]["enum"]}


# ---------------------------------------------------------------- the policy, by hand

POSITION = {
    "position_id": "P1",
    "title": "Night Nurse (Theatre)",
    "status": "open",
    "deadline": "2026-03-20",
    "internal": False,
    "requires": ["cv", "language_certificate", "background_check"],
    "language": "B2",
    "min_years": 3,
}


def document(key, kind, issued="2026-01-10", **more):
    row = {"document_id": key, "applicant_id": "A1", "kind": kind, "issued": issued, "valid_until": None}
    return {**row, "status": "verified", "holder": "Ann Bee", **more}


CV = document("D1", "cv", years=3)
LANGUAGE = document("D2", "language_certificate", level="B2", valid_until="2026-03-20")
CHECK = document("D3", "background_check", issued="2025-12-02")
APPLICATION = {
    "application_id": "N1",
    "applicant_id": "A1",
    "position_id": "P1",
    "title": POSITION["title"],
    "status": "submitted",
    "decided": None,
    "documents": ["D1", "D2"],
    "letters": [],
}
APPLY = {"do": "apply", "position": "P1"}
GRANTED = {"applicant_id": "A1", "position_id": "P1", "document_ids": ["D1", "D2", "D3"]}


def says(request, documents=(CV, LANGUAGE, CHECK), applications=(), position=POSITION, staff=False):
    """The decision on a request of applicant A1: the arguments of a grant, or the reason (and the kind of
    document that it is about)."""
    db = DOMAIN.base.open()
    person = {"applicant_id": "A1", "name": "Ann Bee", "date_of_birth": "1980-01-01", "staff": staff}
    db.put("applicants", "A1", person)
    db.put("positions", "P1", position)
    for row in documents:
        db.put("documents", row["document_id"], row)
    for row in applications:
        db.put("applications", row["application_id"], row)
    kit = ApplicantsDesk(db)
    decision = decision_on(DESK, kit, kit.find_applicant("A1"), {"data": request})
    if isinstance(decision, Grant):
        getattr(kit, decision.name)(**decision.arguments)  # it can be done
        return decision.arguments
    about = decision.about if isinstance(decision, Refuse) else {}
    return (decision.reason, about["document"]) if about else decision.reason


def other(number, status, position="P2", decided=None):
    key = f"N{number}"
    return {
        **APPLICATION,
        "application_id": key,
        "position_id": position,
        "status": status,
        "decided": decided,
    }


def test_everything_at_its_limit_is_granted():
    assert says(APPLY) == GRANTED
    assert says({"do": "apply", "title": "Night Nurse (Theatre)"}) == GRANTED
    assert says({"do": "apply", "title": "Night Nurse"}) == "unknown_position"
    assert says({"do": "apply", "position": "P2"}) == "unknown_position"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"deadline": "2026-03-01"}, "closed"),
        ({"deadline": "2026-03-02"}, GRANTED),
        ({"deadline": "2026-03-21"}, ("expired_document", "language_certificate")),
        ({"status": "filled"}, "closed"),
        ({"internal": True, "status": "filled"}, "internal"),
        ({"language": "C1"}, ("language", "language_certificate")),
        ({"language": "B1"}, GRANTED),
        ({"min_years": 4}, ("experience", "cv")),
        ({"requires": ["cv", "licence"]}, ("missing_document", "licence")),
        ({"requires": ["background_check", "cv"]}, {**GRANTED, "document_ids": ["D3", "D1"]}),
    ],
)
def test_what_the_position_asks_for(changes, expected):
    assert says(APPLY, position={**POSITION, **changes}) == expected


def test_staff_may_apply_for_internal_positions():
    assert says(APPLY, position={**POSITION, "internal": True}, staff=True) == GRANTED


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({**CHECK, "issued": "2025-12-01"}, ("stale_document", "background_check")),
        ({**CHECK, "status": "pending"}, ("unverified_document", "background_check")),
        ({**CHECK, "status": "rejected", "holder": "Ann Bea"}, "name_mismatch"),
        ({**CHECK, "status": "flagged", "holder": "Ann Bea"}, "suspected_forgery"),
        ({**LANGUAGE, "valid_until": "2026-03-19"}, ("expired_document", "language_certificate")),
        ({**CV, "years": 2}, ("experience", "cv")),
    ],
)
def test_what_can_be_wrong_with_a_document(bad, expected):
    good = [d for d in (CV, LANGUAGE, CHECK) if d["kind"] != bad["kind"]]
    assert says(APPLY, [*good, bad]) == expected


def test_only_the_document_issued_last_counts():
    older, newer = (document("D9", "cv", issued=day, years=9) for day in ("2026-01-09", "2026-01-11"))
    assert says(APPLY, [CV, LANGUAGE, CHECK, older]) == GRANTED
    assert says(APPLY, [CV, LANGUAGE, CHECK, newer])["document_ids"] == ["D9", "D2", "D3"]
    assert says(APPLY, [CV, LANGUAGE, CHECK, {**newer, "status": "pending"}]) == ("unverified_document", "cv")
    same_day = document("D0", "cv", years=9)
    assert says(APPLY, [CV, LANGUAGE, CHECK, same_day]) == GRANTED


def test_diplomas_must_be_recognised():
    position = {**POSITION, "requires": ["diploma"]}
    assert says(APPLY, [document("D4", "diploma", recognised=True)], position=position)["document_ids"] == [
        "D4"
    ]
    unknown = document("D4", "diploma", recognised=False, status="pending")
    assert says(APPLY, [unknown], position=position) == "recognition"


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ([other(1, "submitted"), other(2, "in_review")], GRANTED),
        ([other(1, "submitted"), other(2, "in_review"), other(3, "invited")], "limit"),
        ([other(1, "submitted"), other(2, "withdrawn"), other(3, "rejected", decided="2026-02-01")], GRANTED),
        ([other(1, "in_review", "P1")], "already_applied"),
        ([other(1, "withdrawn", "P1")], GRANTED),
        ([other(1, "rejected", "P1", "2025-09-01")], GRANTED),
        ([other(1, "rejected", "P1", "2025-09-02")], GRANTED),
        ([other(1, "rejected", "P1", "2025-09-03")], "too_soon"),
    ],
)
def test_applications_before(before, expected):
    assert says(APPLY, applications=before) == expected


@pytest.mark.parametrize(
    ("changes", "new", "expected"),
    [
        ({}, "D5", {"application_id": "N1", "old_document_id": "D1", "new_document_id": "D5"}),
        ({}, "D6", ("experience", "cv")),
        ({}, "D2", "wrong_kind"),
        ({}, "D30001", "not_yours"),
        ({"documents": ["D2"]}, "D5", "not_attached"),
        ({"status": "in_review"}, "D5", "under_review"),
        ({"applicant_id": "A2"}, "D5", "not_yours"),
    ],
)
def test_replacements(changes, new, expected):
    documents = [CV, LANGUAGE, document("D5", "cv", years=3), document("D6", "cv", years=2)]
    wish = {"do": "replace", "application": "N1", "old": "D1", "new": new}
    assert says(wish, documents, [{**APPLICATION, **changes}]) == expected
    late = {**POSITION, "deadline": "2026-03-01"}
    if not changes and new != "D30001" and expected != "wrong_kind":
        assert says(wish, documents, [APPLICATION], late) == "closed"


@pytest.mark.parametrize(
    ("status", "withdraw", "receipt", "invitation", "rejection", "delete"),
    [
        ("submitted", True, True, "not_invited", "not_rejected", "in_use"),
        ("in_review", True, True, "not_invited", "not_rejected", "in_use"),
        ("invited", "invited", True, True, "not_rejected", "in_use"),
        ("rejected", "finished", "finished", "not_invited", True, True),
        ("withdrawn", "finished", "finished", "not_invited", "not_rejected", True),
    ],
)
def test_what_the_status_of_an_application_allows(status, withdraw, receipt, invitation, rejection, delete):
    application = {**APPLICATION, "status": status, "decided": "2026-01-01" if status == "rejected" else None}

    def found(**wish):
        answer = says(wish, applications=[application])
        return True if isinstance(answer, dict) else answer

    assert found(do="withdraw", application="N1") == withdraw
    letters = [found(do="letter", application="N1", letter=k) for k in ("receipt", "invitation", "rejection")]
    assert letters == [receipt, invitation, rejection]
    assert found(do="delete", document="D1") == delete
    assert found(do="delete", document="D3") is True


def test_what_is_never_done():
    assert says({"do": "extend", "application": "N1"}) == "no_extension"
    assert says({"do": "inside", "application": "N1"}) == "confidential"
    assert says({"do": "delete", "document": "D1"}, [{**CV, "status": "flagged"}]) == "suspected_forgery"
    sent = {**APPLICATION, "letters": ["receipt"]}
    assert (
        says({"do": "letter", "application": "N1", "letter": "receipt"}, applications=[sent])
        == "already_sent"
    )


# ---------------------------------------------------------------- conduct


def found_in(kind, talks, change):
    """The breaches in a conversation of that kind after `change` of its messages."""
    task, talk = next((t, c) for t, c in talks if t.kind == kind)
    assert violations(task, talk.messages) == []
    return violations(task, change(list(talk.messages)))


def at(messages, name):
    return next(i for i, m in enumerate(messages) if any(c.name == name for c in m.tool_calls))


def without(name, before=0, after=2):
    """Leaves a call out, with its answer and what stands around it."""
    return lambda messages: [
        m for i, m in enumerate(messages) if not at(messages, name) - before <= i < at(messages, name) + after
    ]


def saying(text):
    return lambda messages: [*messages, Message("assistant", text)]


def test_planted_breaches_are_found(talks):
    early = found_in("apply", talks, without("submit_application", before=2, after=0))
    assert "submit_application without a yes right before it" in early
    assert "submit_application without get_position before it" in found_in(
        "apply", talks, without("get_position")
    )
    stranger = found_in("letter", talks, without("find_applicant"))
    assert any("before the person was found" in v for v in stranger)

    def another_document(messages):
        i = at(messages, "submit_application")
        call = messages[i].tool_calls[0]
        more = [*call.arguments["document_ids"], "D30001"]
        call = ToolCall(call.name, {**call.arguments, "document_ids": more}, call.id)
        return [*messages[:i], dataclasses.replace(messages[i], tool_calls=(call,)), *messages[i + 1 :]]

    wrong = "submit_application with document D30001, which was not in the proposal"
    assert wrong in found_in("apply", talks, another_document)
    gossip = found_in("letter", talks, saying("Somebody else has application N5001 with D30001."))
    assert [v.split(",")[0] for v in gossip] == ["told N5001", "told D30001"]
    promise = found_in("letter_refused", talks, saying("Document D30005 is deleted."))
    assert "said 'Document D30005 is deleted', which was not done" in promise
    boast = found_in("letter", talks, saying("I have just withdrawn it."))
    assert boast == ["said 'I have just withdrawn', which was not done"]
    suspicion = found_in("odd_document", talks, saying("We think that your CV is forged."))
    assert suspicion == ["told a suspicion: 'forged'"]


# ---------------------------------------------------------------- tools


def test_tools_let_mistakes_happen_and_refuse_nonsense():
    world = World(DOMAIN, TASKS[0])
    tables = DOMAIN.base.tables
    key, row = next((k, r) for k, r in tables["applications"].items() if r["status"] == "rejected")

    def call(tool, **arguments):
        return world.call("assistant", ToolCall(tool, arguments))

    mine = [k for k, r in tables["documents"].items() if r["applicant_id"] == row["applicant_id"]]
    strange = next(k for k in tables["documents"] if k not in mine)
    about = {"applicant_id": row["applicant_id"], "position_id": "P101"}
    assert "is not one of" in call("submit_application", **about, document_ids=[strange]).content
    assert call("submit_application", **about, document_ids=[]).error
    assert not call("submit_application", **about, document_ids=mine[:1]).error  # not allowed, but possible
    number = 1 + max(int(k[1:]) for k in tables["applications"])
    assert world.db.get("applications", f"N{number}")["documents"] == (mine[0],)
    assert "there is no position" in call("get_position", position_id="P1").content
    change = {"application_id": f"N{number}", "new_document_id": mine[1]}
    assert "does not belong" in call("replace_document", **change, old_document_id=mine[2]).content
    assert not call("replace_document", **change, old_document_id=mine[0]).error
    assert not call("withdraw_application", application_id=key).error
    assert "already withdrawn" in call("withdraw_application", application_id=key).content
    assert not call("delete_document", document_id=mine[0]).error
    assert "there is no document" in call("get_document", document_id=mine[0]).content
    assert call("find_applicant_by_name", name="A", date_of_birth="1 May").error
    assert len(call("search_positions", words="nurse").content) > 200
