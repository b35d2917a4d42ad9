"""`mua domain check` finds each planted fault and names it; `mua domain new` makes what passes it."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import pytest

from mua.coldstart import soundness
from mua.coldstart.soundness import check_domain
from mua.domain import Action, Domain, Task
from mua.domains import SYNTHETIC, load
from mua.domains.skeleton import make
from mua.tools import reads

GOOD = dataclasses.replace(make(), load_split=lambda split: make().tasks(split)[:48])


def problems(domain: Domain) -> dict[str, list[str]]:
    """What is wrong, by check."""
    found = asyncio.run(check_domain(domain))
    return {name: check.problems for name, check in found.checks.items() if check.problems}


def with_task(change, kind: str = "book", **how) -> tuple[Domain, Task]:
    """The good domain with one dev task changed, and that task."""
    tasks = list(GOOD.tasks("dev"))
    at = next(i for i, t in enumerate(tasks) if t.kind == kind)
    tasks[at] = change(tasks[at])
    splits = {"train": GOOD.tasks("train"), "dev": tasks, "test": GOOD.tasks("test")}
    return dataclasses.replace(GOOD, load_split=splits.__getitem__, **how), tasks[at]


def test_the_good_domain_is_sound():
    found = asyncio.run(check_domain(GOOD))
    assert found.problems == []
    assert all(check.passed == check.asked > 0 for check in found.checks.values())
    assert len(found.checks) == 7


def test_a_gold_solution_that_fails():
    wrong = Action("cancel_booking", {"customer_id": "K0000", "day": "2026-03-09"})
    domain, task = with_task(lambda t: dataclasses.replace(t, actions=(wrong,)))
    assert list(found := problems(domain)) == [soundness.GOLD]
    assert found[soundness.GOLD][0].startswith(f"dev {task.id}: ")


def test_a_task_that_doing_nothing_solves():
    domain, task = with_task(lambda t: dataclasses.replace(t, actions=()))
    assert problems(domain) == {soundness.NOOP: [f"dev {task.id}: doing nothing solves it"]}


def test_an_expert_that_fails():
    def refused(task: Task) -> Task:
        customer = task.actions[0].arguments["customer_id"]
        case = {"customer_id": customer, "request": "book", "outcome": "refused", "reason": "full"}
        return dataclasses.replace(task, actions=(Action("record_case", case),))

    domain, task = with_task(refused)
    found = problems(domain)
    assert list(found) == [soundness.EXPERT] and len(found[soundness.EXPERT]) == 1
    assert found[soundness.EXPERT][0].startswith(
        f"dev {task.id}: the expert fails: end state differs from gold"
    )
    assert problems(dataclasses.replace(GOOD, expert=None))[soundness.EXPERT] == [
        "the domain has no expert program or no agenda user"
    ]


def test_an_expert_that_breaks_a_rule():
    assert GOOD.violations is not None
    rules, (first, *_) = GOOD.violations, GOOD.tasks("test")
    domain = dataclasses.replace(
        GOOD, violations=lambda task, messages: ["it was rude"] if task is first else rules(task, messages)
    )
    assert problems(domain) == {
        soundness.CONDUCT: [f"test {first.id}: the expert breaks a rule: it was rude"]
    }


def test_a_task_in_two_splits():
    twin = dataclasses.replace(GOOD.tasks("train")[3], id="dev-x")
    domain, _ = with_task(lambda t: twin)
    assert problems(domain) == {soundness.SPLITS: ["dev dev-x: has the content of train train-0003"]}


def test_a_tool_that_nobody_uses():
    class More(GOOD.toolkits["assistant"]):
        @reads
        def look_out_of_the_window(self) -> str:
            """The weather."""
            return "rain"

    found = problems(dataclasses.replace(GOOD, toolkits={"assistant": More}))
    assert found == {
        soundness.TOOLS: ["look_out_of_the_window: no gold solution and no expert's conversation uses it"]
    }


def test_a_schema_that_is_none():
    class Odd(Domain):
        def tools(self, side="assistant"):
            tools = super().tools(side)
            if "get_day" in tools:
                schema = {"type": "object", "properties": {"day": {"type": "text"}}}
                tools = {**tools, "get_day": dataclasses.replace(tools["get_day"], parameters=schema)}
            return tools

    fields = {f.name: getattr(GOOD, f.name) for f in dataclasses.fields(Domain)}
    domain = Odd(**{**fields, "load_split": lambda split: GOOD.tasks(split)[:1]})
    found = asyncio.run(check_domain(domain)).checks[soundness.SCHEMAS].problems
    assert len(found) == 1 and found[0].startswith("get_day: its arguments are no valid JSON Schema: 'text'")


# ---------------------------------------------------------------- the commands


def test_a_new_domain_works_from_its_folder(mua, tmp_path):
    code, out, _ = mua("domain", "new", "gym_desk", "--out", tmp_path)
    assert code == 0 and "mua domain check" in out
    place = tmp_path / "gym_desk"
    assert sorted(p.suffix for p in place.iterdir()) == [".md", *[".py"] * 6, ".yaml"]

    code, out, _ = mua("domain", "check", place, "--json")
    found = json.loads(out)
    assert (code, found["domain"], found["sound"]) == (0, "gym_desk", True)
    assert found["tasks"] == {"train": 240, "dev": 40, "test": 80}
    assert all(c["passed"] == c["asked"] and not c["problems"] for c in found["checks"].values())
    code, out, _ = mua("domain", "check", place / "__init__.py")
    assert code == 0 and out.splitlines()[-1] == "gym_desk is sound"
    assert mua("tasks", place, "--split", "dev", "--verify")[0] == 0


def test_a_new_domain_that_was_broken_is_told(mua, tmp_path):
    mua("domain", "new", "gym_desk", "--out", tmp_path)
    speech = tmp_path / "gym_desk" / "speech.py"
    speech.write_text(speech.read_text(encoding="utf-8").replace('"day": (', '"days": ('), encoding="utf-8")
    code, out, _ = mua("domain", "check", tmp_path / "gym_desk")
    assert code == 1 and out.splitlines()[-1] == "gym_desk is NOT sound"
    no_day = [t.id for t in load(str(tmp_path / "gym_desk")).tasks("test") if t.kind == "no_day"]
    assert no_day and all(f"test {name}: KeyError: 'day'" in out for name in no_day)


@pytest.mark.parametrize("name", ["Gym", "2gym", "gym-desk", "class", "library", "shop"])
def test_names_that_cannot_be(mua, tmp_path, name):
    assert mua("domain", "new", name, "--out", tmp_path)[0] == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(mua, tmp_path):
    (tmp_path / "gym").mkdir()
    code, _, err = mua("domain", "new", "gym", "--out", tmp_path)
    assert code == 1 and "is there already" in err and not list((tmp_path / "gym").iterdir())


@pytest.mark.parametrize("name", SYNTHETIC)
def test_the_domains_of_mua_are_sound(name):
    domain = load(name)
    assert domain.violations is not None
    few = dataclasses.replace(
        domain, load_split=lambda split: domain.tasks(split)[:: 1 if split == "dev" else 9]
    )
    assert asyncio.run(check_domain(few)).problems == []
