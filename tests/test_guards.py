"""What keeps training on benchmarks honest: shared tasks, tasks without anything to do, strict options."""

import dataclasses
import json
import os
import types
from pathlib import Path

import pytest

from mua import cli, pipeline, speakers
from mua.benchmarks import guards, load, store
from mua.benchmarks.guards import Guard, HeldOut, held_out_tasks, leaks
from mua.benchmarks.strict import OPTIONS, tight, worked
from mua.chat import Message, ToolCall
from mua.config import load_config
from mua.domain import Action, Scenario
from mua.errors import MuaError
from mua.trajectory import Termination

SHARED = Path(os.environ.get("MUA_SHARED") or Path(__file__).parents[2] / "shared")
TAU1 = SHARED / "benchmarks" / "tau1"
if not TAU1.is_dir():
    pytest.skip("τ¹'s data is not here; set MUA_SHARED", allow_module_level=True)
try:
    for name in ("tau2", "tau2@0.2"):
        store.installed(name)
except MuaError as exc:
    pytest.skip(f"τ²-bench is not here: {exc}", allow_module_level=True)


@pytest.fixture(autouse=True, scope="module")
def _everything_installed(tmp_path_factory):
    """A cache with τ¹ from the shared folder beside the τ² that is installed."""
    cache = tmp_path_factory.mktemp("cache")
    (cache / "benchmarks").mkdir()
    for name in ("tau2", "tau2@0.2"):
        (cache / "benchmarks" / name).symlink_to(store.cache_folder() / "benchmarks" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUA_CACHE", str(cache))
        store.install("tau1", TAU1)
        yield


def against(name, *others, split="test"):
    domain = load(name)
    return domain, list(held_out_tasks(domain, split, others))


# ---------------------------------------------------------------- shared tasks


@pytest.mark.parametrize(
    ("part", "train", "other", "shared"),
    [
        ("retail", 74, "tau1/retail", 74),  # τ²'s training tasks were τ¹'s test tasks
        ("retail", 74, "tau2/retail", 17),  # and some repeat their own test split
        ("airline", 30, "tau1/airline", 26),
        ("airline", 30, "tau2/airline", 3),
        ("telecom", 74, "tau2/telecom", 8),
    ],
)
def test_shared_tasks_of_versions_and_splits_are_found(part, train, other, shared):
    domain = load(f"tau2/{part}")
    place = load(other)
    held_out = [HeldOut(f"{other} test", place, t) for t in place.tasks("test")]
    found = leaks(domain, domain.tasks("train"), held_out)
    assert (len(domain.tasks("train")), len(found)) == (train, shared)
    assert all(leak.where == f"{other} test" and leak.held_out for leak in found)


def test_synthetic_tasks_of_tau1_are_new_but_for_one():
    domain, held_out = against("tau1/retail", "tau2/retail", "tau2@0.2/retail")
    assert [str(leak) for leak in leaks(domain, domain.tasks("train"), held_out)] == [
        "train_418 = tau1/retail test test_69 (the same calls solve both)"
    ]


def test_telecoms_full_set_has_the_families_of_its_test_split():
    domain, held_out = against("tau2/telecom")
    found = leaks(domain, domain.tasks("full"), held_out)
    same = [leak for leak in found if leak.why == "the same task"]
    assert (len(found), len(same)) == (60, 40)
    assert {leak.why for leak in found} == {"the same task", "of one template family"}
    solo = load("tau2/telecom-solo")
    assert len(leaks(solo, solo.tasks("full"), held_out)) == 60


def test_a_task_in_other_words_or_with_other_calls_is_found_and_a_new_one_is_not():
    domain, held_out = against("tau2/retail")
    task = next(h.task for h in held_out if h.task.id == "5")
    other = Scenario("Something else entirely, said in quite other words than before.")
    reworded = dataclasses.replace(task, id="new", scenario=other)
    recalled = dataclasses.replace(
        task, id="new", actions=(Action("cancel_pending_order", {"order_id": "#W1", "reason": "x"}),)
    )
    both = dataclasses.replace(reworded, actions=recalled.actions)
    whys = [[leak.why for leak in leaks(domain, [t], held_out)] for t in (reworded, recalled, both)]
    assert whys == [["the same calls solve both"], ["nearly the same words"], []]


# ---------------------------------------------------------------- at the start of a run


def test_a_guard_refuses_by_name_drops_or_allows():
    domain, held_out = against("tau2/retail")
    with pytest.raises(MuaError) as refused:
        Guard(domain, held_out, "refuse").allowed("train")
    said = str(refused.value)
    assert "17 training task(s) of 'tau2/retail' train are also in tau2/retail test: " in said
    assert "guards.overlap=drop" in said and " = tau2/retail test " in said
    dropped = Guard(domain, held_out, "drop").allowed("train")
    allowed = Guard(domain, held_out, "allow").allowed("train")
    assert (len(dropped.leaked), len(allowed.leaked)) == (17, 0)
    assert len(dropped.tasks) + len(dropped.leaked) + len(dropped.idle) == 74
    assert not any(domain.is_noop(t) for t in (*dropped.tasks, *allowed.tasks))
    harmless = Guard(domain, held_out, "allow").allowed("train", live=False)
    assert len(harmless.tasks) == 74 and not harmless.idle
    with pytest.raises(MuaError, match="no task of 'tau2/retail' test is left to train on"):
        Guard(domain, held_out, "drop").allowed("test")


def config_of(**more):
    base = {"domain": "tau2/retail", "coldstart.split": "train", "guards.held_out": ["tau2/retail"]}
    base["eval.same_user"] = True
    return load_config(None, (), {**base, **more})


def test_training_on_held_out_tasks_is_refused_before_a_folder_is_made(tmp_path):
    out = tmp_path / "run"
    for more, words in (
        ({}, "also in tau2/retail test"),
        ({"guards.held_out": None, "guards.overlap": "refuse"}, "74 training task(s)"),
        ({"domain": "tau1/retail", "train_split": "test", "eval.split": "dev"}, "tau1/retail test test_0 ("),
        ({"guards.held_out": ["tau2/nowhere"], "guards.overlap": "drop"}, "there is no benchmark"),
    ):
        with pytest.raises(MuaError) as refused:
            pipeline.open_run(config_of(**more), out)
        assert words in str(refused.value), more
        assert not out.exists()


def test_a_run_trains_on_what_is_left_and_says_what_is_not(tmp_path):
    news = []
    config = config_of(**{"guards.overlap": "drop"})
    run = pipeline.open_run(config, tmp_path / "run", report=lambda *n: news.append(n))
    idle = [t.id for t in guards.noops(load("tau2/retail"), "train")]
    left_out = run.allowed["train"]
    assert {t.id for t in left_out.idle} <= set(idle) and left_out.idle
    assert run.tasks("train") == left_out.tasks
    assert news == [
        (
            "tasks train",
            len(left_out.tasks),
            74,
            f"left out: 17 held out, {len(left_out.idle)} solved by doing nothing",
        )
    ]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["left_out"] == {
        "train": [*(leak.task.id for leak in left_out.leaked), *(t.id for t in left_out.idle)]
    }
    # A model of this run is not evaluated on what it has seen, whatever the benchmark calls it.
    seen = pipeline.trained_on(tmp_path / "run")
    assert {h.task.id for h in seen} == {t.id for t in left_out.tasks}
    speaker = speakers.Speaker("rl", "x", run=tmp_path / "run")
    with pytest.raises(MuaError, match="of the 115 tasks of 'tau1/retail' test were trained on: "):
        speakers.check_unseen(
            config.model_copy(update={"domain": "tau1/retail"}), load("tau1/retail"), speaker
        )
    speakers.check_unseen(config, load("tau2/retail"), speaker)
    speakers.check_unseen(config, load("tau1/retail"), dataclasses.replace(speaker, label="base"))


def test_a_file_of_conversations_is_guarded_too(tmp_path):
    domain = load("tau2/retail")
    task = domain.tasks("test")[0]
    line = {"task_id": task.id, "messages": [], "termination": "user_stop"}
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps(line) + "\n")
    config = config_of(**{"coldstart.file": str(path), "guards.overlap": "drop"})
    run = types.SimpleNamespace(domain=domain, guard=pipeline.make_guard(config, domain))
    assert pipeline._held_out_in(run, str(path)) == {task.id}


# ---------------------------------------------------------------- tasks without anything to do


def test_tasks_that_doing_nothing_solves_are_counted_as_upstream_counts(capsys):
    retail = load("tau2/retail")
    silent = [Message("assistant", "Hello")]
    unmet = [
        retail.score(t, silent, [False] * len(t.criteria.get("nl_assertions") or ())).reward
        for t in retail.tasks("base")
    ]
    assert sum(unmet) == 6  # with assertions taken as unmet; without a judge they are not looked at:
    assert len(guards.noops(retail, "base")) == 11
    cli.app(["tasks", "tau2/airline", "--noop", "--split", "base"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "base: doing nothing solves 23 of 50 tasks" and len(lines) == 24
    cli.app(["tasks", "tau2/airline", "--leaks"], standalone_mode=False)
    assert capsys.readouterr().out.splitlines()[-1].startswith("train: 26 of 30 tasks are held out: ")


# ---------------------------------------------------------------- strict options


def grade(name, task_id, *calls, said="Hello", ok=True):
    domain = load(name)
    messages = [Message("assistant", said)]
    for n, (side, tool, arguments) in enumerate(calls):
        messages.append(Message(side, tool_calls=(ToolCall(tool, arguments, str(n)),)))
        messages.append(Message("tool", "ok" if ok else "Error: no", tool_call_id=str(n), requestor=side))
    return domain.grade(domain.task(task_id), messages, Termination.USER_STOP)


def gold_calls(task):
    return [(a.requestor, a.name, dict(a.arguments)) for a in task.actions]


@pytest.mark.parametrize(
    ("name", "tool"),
    [("tau1/airline", "book_reservation"), ("tau2/airline", "update_reservation_baggages")],
)
def test_numbers_by_value(name, tool):
    tasks = load(name).tasks("test" if name == "tau1/airline" else "base")
    task = next(t for t in tasks if any(a.name == tool for a in t.actions) and not _said(t))
    calls = [
        (side, called, {**a, "total_baggages": float(a["total_baggages"])} if called == tool else a)
        for side, called, a in gold_calls(task)
    ]
    rewards = {o: grade(name + o, task.id, *calls).reward for o in ("", "+rollback", "+numbers", "+strict")}
    assert rewards == {"": 0.0, "+rollback": 0.0, "+numbers": 1.0, "+strict": 1.0}


def _said(task):
    return getattr(task, "outputs", ()) or (getattr(task, "criteria", None) or {}).get("communicate_info")


def test_whole_schemas_and_no_loopholes():
    domain = load("tau1/airline+arguments")
    task = domain.task("test_0")
    (call,) = gold_calls(task)
    extra = {**call[2], "flights": [{**f, "price": 1} for f in call[2]["flights"]]}
    assert grade("tau1/airline", task.id, (call[0], call[1], extra)).reward == 1.0
    assert grade(domain.name, task.id, (call[0], call[1], extra)).reward == 0.0
    assert grade(domain.name, task.id, call).reward == 1.0
    answer = domain.open(task).call("assistant", ToolCall(call[1], extra))
    assert answer.error and "unknown argument 'flights.0.price'" in answer.content
    strict = load("tau2/airline+arguments")
    told = strict.open(strict.tasks("base")[0]).call("assistant", ToolCall(call[1], extra))
    assert "was not called: unknown argument 'flights.0.price'" in told.content
    loose = {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "object", "additionalProperties": True}]}
    assert tight({"properties": {"a": loose}})["properties"]["a"]["anyOf"] == [{"$ref": "#/$defs/A"}]


def test_a_failed_call_changes_nothing_with_rollback():
    certificate = {"payment_id": "certificate_7504069", "amount": 0}
    for name, there in (("tau1/airline", False), ("tau1/airline+rollback", True)):
        domain = load(name)
        task = domain.task("test_0")
        paid = [certificate, certificate, {"payment_id": "credit_card_4421486", "amount": 255}]
        world = domain.open(task)
        call = ToolCall("book_reservation", {**task.actions[0].arguments, "payment_methods": paid})
        assert world.call("assistant", call).error
        methods = world.db.get("users", "mia_li_3668")["payment_methods"]
        assert ("certificate_7504069" in methods) is there
        assert bool(world.db.touched()) is not there


def test_collateral_damage_in_telecom():
    plain = load("tau2/telecom")
    task = next(t for t in plain.tasks("base") if t.basis == ("ENV_ASSERTION",) and t.actions)
    gold = gold_calls(task)
    mine = {a["customer_id"] for _, _, a in gold if "customer_id" in a}
    people = [c for c in plain.base.sides["agent"].customers if c.customer_id not in mine]
    lines = [{"customer_id": c.customer_id, "line_id": line} for c in people for line in c.line_ids]
    harms = [("assistant", "suspend_line", {**where, "reason": "x"}) for where in lines]
    harm = next(h for h in harms if not plain.open(task).call("assistant", ToolCall(*h[1:])).error)
    name = "tau2/telecom+collateral"
    assert grade(name, task.id, *gold).reward == grade("tau2/telecom", task.id, *gold).reward == 1.0
    assert grade("tau2/telecom", task.id, *gold, harm).reward == 1.0
    found = grade(name, task.id, *gold, harm)
    assert found.reward == 0.0 and found.components["collateral"] == 0.0
    assert "changed beside what the task needs: lines." in found.reason


def test_doing_nothing_earns_nothing_with_idle():
    domain = load("tau2/airline")
    task = guards.noops(domain, "base")[0]
    look = ("assistant", "get_user_details", {"user_id": "mia_li_3668"})
    handover = ("assistant", "transfer_to_human_agents", {"summary": "x"})
    assert grade("tau2/airline", task.id).reward == 1.0
    for calls, ok, reward in (
        ((), True, 0.0),
        ((handover,), True, 0.0),
        ((look,), False, 0.0),
        ((look,), True, 1.0),
    ):
        assert grade("tau2/airline+idle", task.id, *calls, ok=ok).reward == reward
    # A task of which nothing is earned by doing nothing may be trained on.
    assert not load("tau2/airline+idle").is_noop(task) and load("tau2/airline+numbers").is_noop(task)
    assert not worked([Message("assistant", tool_calls=(ToolCall("get_user_details", {}, "1"),))])


def test_variants_are_domains_of_their_own_name():
    assert load("tau2/retail+idle+numbers").name == "tau2/retail+numbers+idle"
    assert (
        load("tau1/retail+strict").name
        == load("tau1/retail+" + "+".join(OPTIONS)).name
        == "tau1/retail+strict"
    )
    assert load("tau2/retail").name == "tau2/retail"
    with pytest.raises(MuaError, match="there is no strict option 'kind'; there are numbers, "):
        load("tau2/retail+kind")
