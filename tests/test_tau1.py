"""τ¹ in the harness: upstream's rewards, upstream's protocol, and a database that never changes."""

import asyncio
import gzip
import hashlib
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tau1_scripts
import tau1_upstream
from mua import cli
from mua.agents import AgentStep
from mua.benchmarks import load, reported_split, store
from mua.benchmarks.calculate import calculate
from mua.benchmarks.tau1 import results
from mua.benchmarks.tau1.data import SPLITS, Data
from mua.benchmarks.tau1.domain import tau1_domain
from mua.benchmarks.tau1.rows import differences
from mua.chat import Message, ToolCall
from mua.database import Base
from mua.episode import play
from mua.errors import MuaError
from mua.trajectory import Termination
from mua.users import UserTurn

SHARED = Path(os.environ.get("MUA_SHARED") or Path(__file__).parents[2] / "shared")
DATA = SHARED / "benchmarks" / "tau1"
if not DATA.is_dir():
    pytest.skip("τ¹'s data is not here; set MUA_SHARED", allow_module_level=True)
CHECKOUT = os.environ.get("MUA_TAU1_CHECKOUT", "")
CONVERSATIONS = SHARED / "conformance" / "tau1" / "airline.jsonl.gz"
DOMAINS = {part: tau1_domain(DATA, part) for part in SPLITS}


@pytest.fixture(autouse=True, scope="module")
def _bases_stay_as_they_are():
    """Invariant 2, after all that the tests of this file do."""
    before = {part: d.base.digest_sum() for part, d in DOMAINS.items()}
    yield
    assert {part: d.base.recompute_sum() for part, d in DOMAINS.items()} == before


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """`tau1` installed from the shared folder, into a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield store.install("tau1", DATA)


def conversation(task, *extra):
    """The task's gold calls, and its outputs said."""
    calls = (ToolCall(a.name, a.arguments, str(n)) for n, a in enumerate(task.actions))
    said = Message("assistant", " ".join(task.outputs))
    return [said, *(Message("assistant", tool_calls=(call,)) for call in calls), *extra]


# ---------------------------------------------------------------- rewards


@pytest.mark.parametrize(
    ("part", "split", "size", "idle", "unchanged"),
    [
        ("retail", "train", 500, 5, 5),
        ("retail", "dev", 20, 1, 1),
        ("retail", "test", 115, 7, 11),
        ("airline", "test", 50, 19, 20),
    ],
)
def test_gold_earns_and_doing_nothing_where_nothing_is_to_do(part, split, size, idle, unchanged):
    domain = DOMAINS[part]
    tasks = domain.tasks(split)
    assert len(tasks) == size
    for task in tasks:
        verdict = domain.grade(task, conversation(task), Termination.USER_STOP)
        assert verdict.reward == 1.0, (task.id, verdict.reason)
        mute = conversation(task)[1:]
        assert domain.grade(task, mute, Termination.USER_STOP).reward == float(not task.outputs)
        assert domain.grade(task, conversation(task), Termination.TURN_CAP).reward == 0.0
    hello = [Message("assistant", "Hello")]
    nothing = [t.id for t in tasks if domain.grade(t, hello, Termination.USER_STOP).reward]
    assert len(nothing) == idle
    assert nothing == [t.id for t in tasks if domain.is_noop(t)]
    # What the paper's code trains on by the end state alone: 11 of 115 and 20 of 50.
    start = domain.base.open()
    assert sum(not differences(domain.gold(t), start) for t in tasks) == unchanged


def test_the_split_that_counts_is_the_test_split(installed):
    assert reported_split(load("tau1/retail")) == "test" != load("tau1/retail").splits[0]


def test_stored_conversations_get_upstreams_verdicts(installed):
    found = list(results.verdicts("tau1", CONVERSATIONS))
    assert len(found) == 100 and all(v["agree"] for v in found)
    assert {v["domain"] for v in found} == {"tau1/airline"}
    assert sum(v["reward"] for v in found) == 49
    assert any("reservations." in v["reason"] and ": here " in v["reason"] for v in found)


def test_score_command_reads_results_files_and_says_what_is_wrong(installed, tmp_path, capsys):
    with gzip.open(CONVERSATIONS, "rt") as file:
        first, second = (json.loads(next(file)) for _ in range(2))
    failed = {"task_id": 7, "reward": 0.0, "info": {"error": "no key"}, "traj": [], "trial": 0}
    path = tmp_path / "results.json"
    path.write_text(json.dumps([first, {**second, "reward": 1.0}, failed]))
    with pytest.raises(SystemExit) as done:
        cli.app(["score", "tau1", str(path)])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert done.value.code == 1 and lines[-1] == {"agree": 2, "disagree": 1}
    assert [line.get("agree") for line in lines[:-1]] == [True, False, True]
    path.write_text(json.dumps([{**first, "info": {}}]))
    with pytest.raises(MuaError, match=r"results\.json, record 0: not a tau1 conversation: field 'task'"):
        list(results.verdicts("tau1", path))


def test_trajectories_of_ours_are_graded_again(installed, tmp_path):
    domain = load("tau1/retail")
    task = domain.tasks("dev")[0]
    played = asyncio.run(play(domain, task, Script(conversation(task)), Stops(len(task.actions))))
    assert (played.reward, played.termination) == (1.0, Termination.USER_STOP), played.reason
    path = tmp_path / "ours.jsonl"
    path.write_text(json.dumps(played.to_dict()) + "\n")
    (verdict,) = results.verdicts("tau1", path)
    assert verdict["agree"] and verdict["domain"] == "tau1/retail"


# ---------------------------------------------------------------- upstream as the oracle


@pytest.mark.parametrize("part", sorted(SPLITS))
def test_perturbed_scripts_end_as_in_upstream(part):
    """Rewards, answers and end states that upstream's environment gave (tau1_upstream.py has the rest)."""
    domain = DOMAINS[part]
    tasks = [t for s in domain.splits for t in domain.tasks(s)]
    frozen = json.loads(tau1_upstream.FROZEN.read_text())
    rewards = []
    for seed in range(tau1_upstream.KEPT):
        task, steps = tau1_scripts.script(domain, tasks, seed)
        reward, _, answers, state = tau1_upstream.play_ours(domain, task, steps)
        assert [reward, state, tau1_upstream.text_digest(answers)] == frozen[f"{part}/{seed}"], seed
        rewards.append(reward)
    assert 5 < sum(rewards) < 35


@pytest.mark.skipif(not CHECKOUT, reason="no checkout of τ¹ to compare with; set MUA_TAU1_CHECKOUT")
def test_live_upstream_agrees():
    assert tau1_upstream.compare(Path(CHECKOUT), range(1000, 1012)) == []
    for part, splits in SPLITS.items():
        there = Data(Path(CHECKOUT), part)
        here = Data(DATA, part)
        assert there.policy() == here.policy() and there.tables() == here.tables()
        assert all(there.tasks(split) == here.tasks(split) for split in splits)
        assert set(there.tools()) == set(DOMAINS[part].tools())
        assert there.user_prompt("XYZ").count("Instruction: XYZ\n") == 1
        assert there.user_greeting().startswith("Hi!") and here.user_greeting() == ""


def upstream_hash(value):
    """τ¹'s own, for values of JSON."""

    def form(item):
        if isinstance(item, dict):
            return tuple((key, form(item[key])) for key in sorted(item))
        return tuple(map(form, item)) if isinstance(item, list) else item

    return hashlib.sha256(str(form(value)).encode()).hexdigest()


scalars = st.sampled_from([None, True, False, 0, 1, 2, 0.0, 2.0, "", "1", "2", "None", "a'b", "(1,)"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
rows = st.dictionaries(st.sampled_from("xyz"), values, max_size=3)


@given(
    st.dictionaries(st.sampled_from("pq"), rows), st.lists(st.tuples(st.sampled_from("pqr"), rows)), st.data()
)
@settings(max_examples=150, deadline=None)
def test_states_differ_exactly_when_upstreams_hashes_do(start, puts, data):
    base = Base({"t": start})
    ends = [base.open(), base.open()]
    for key, row in puts:
        for db in ends if data.draw(st.booleans()) else ends[:1]:
            db.put("t", key, data.draw(st.just(row) | st.just(dict(reversed(row.items())))))
    whole = [upstream_hash({"t": {k: _plain(db.get("t", k)) for k in db.keys("t")}}) for db in ends]
    assert (whole[0] == whole[1]) == (not differences(*ends))


def _plain(value):
    from mua.database import thaw

    return thaw(value)


# ---------------------------------------------------------------- protocol


class Script:
    """An agent that says and calls what it was given, then says that it is done."""

    trace = None

    def __init__(self, messages):
        self.messages = list(messages)

    async def step(self, messages):
        return AgentStep(self.messages.pop(0) if self.messages else Message("assistant", "Done?"))

    def close(self):
        pass


class Stops:
    """A user that speaks first and stops at its `after`-th answer."""

    name = "stops"

    def __init__(self, after):
        self.left = after

    async def reply(self, view):
        said = sum(m.role == "assistant" for m in view)
        return UserTurn("###STOP###" if said > 1 or said >= self.left else "Hi", stop=False)


def test_only_the_first_call_of_a_message_counts():
    domain = DOMAINS["retail"]
    task = next(t for t in domain.tasks("dev") if len(t.actions) == 1)
    gold = ToolCall(task.actions[0].name, task.actions[0].arguments, "a")
    look = ToolCall("list_all_product_types", {}, "b")
    for calls, reward in (((gold, look), 1.0), ((look, gold), 0.0)):
        agent = Script([Message("assistant", tool_calls=calls)])
        played = asyncio.run(play(domain, task, agent, Stops(1)))
        assert played.reward == reward
        assert [len(m.tool_calls) for m in played.messages if m.tool_calls] == [1]
        # Stored with both calls, it is graded as it would have run.
        whole = [Message("assistant", tool_calls=calls)]
        assert domain.grade(task, whole, Termination.USER_STOP).reward == reward


def test_thirty_steps_and_the_users_answer_to_the_last():
    domain = DOMAINS["airline"]
    task = next(t for t in domain.tasks("test") if domain.is_noop(t))
    thought = Message("assistant", tool_calls=(ToolCall("think", {"thought": "…"}),))

    def steps(thoughts):
        played = asyncio.run(play(domain, task, Script([thought] * thoughts), Stops(1)))
        return played.usage.agent_steps, played.termination, played.reward

    assert steps(29) == (30, Termination.USER_STOP, 1.0)
    assert steps(30) == (30, Termination.TURN_CAP, 0.0)


def test_a_handover_ends_the_episode_whatever_its_arguments():
    domain = DOMAINS["airline"]
    task = next(t for t in domain.tasks("test") if domain.is_noop(t))
    call = ToolCall("transfer_to_human_agents", {"why": "x"}, "a")
    played = asyncio.run(play(domain, task, Script([Message("assistant", tool_calls=(call,))]), Stops(9)))
    assert (played.termination, played.reward) == (Termination.AGENT_TRANSFER, 1.0)
    assert played.messages[-1].content.startswith("Error: TransferToHumanAgents.invoke() ")


def test_what_fails_midway_stays_and_types_count():
    domain = DOMAINS["airline"]
    task = domain.tasks("test")[0]
    gold = task.actions[0].arguments
    world = domain.open(task)
    assert not world.call("assistant", ToolCall("book_reservation", gold)).error
    assert not differences(world.db, domain.gold(task))
    for key in ("total_baggages", "nonfree_baggages"):  # 0 and 0.0 are two states
        world = domain.open(task)
        assert not world.call(
            "assistant", ToolCall("book_reservation", {**gold, key: float(gold[key])})
        ).error
        assert [key in line for line in differences(world.db, domain.gold(task))] == [True]
    certificate = {"payment_id": "certificate_7504069", "amount": 0}
    paid = [certificate, certificate, {"payment_id": "credit_card_4421486", "amount": 255}]
    world = domain.open(task)
    answer = world.call("assistant", ToolCall("book_reservation", {**gold, "payment_methods": paid}))
    assert answer.error and answer.content == "Error: 'certificate_7504069'"
    methods = world.db.get("users", "mia_li_3668")["payment_methods"]
    assert "certificate_7504069" not in methods and world.db.get("reservations", "HATHAT") is None


def test_worlds_of_one_base_do_not_meet():
    domain, rng = DOMAINS["retail"], random.Random(0)
    tasks = domain.tasks("dev")
    open_worlds = [(t, domain.open(t), list(t.actions)) for t in tasks for _ in range(3)]
    while open_worlds:
        task, world, left = rng.choice(open_worlds)
        if left:
            action = left.pop(0)
            world.call("assistant", ToolCall(action.name, action.arguments))
        else:
            assert not differences(world.db, domain.gold(task))
            open_worlds.remove((task, world, left))


# ---------------------------------------------------------------- arithmetic


def test_powers_are_refused_at_once_and_the_rest_is_upstreams():
    for text in ("9**9**9", "(1)(2)", "()", "1" * 1001, "a", "1,2"):
        with pytest.raises((ValueError, TypeError)):
            calculate(text)
    assert calculate(" 7 // 2 - 0.126") == "2.87"


@given(
    st.lists(
        st.sampled_from(["0", "1", "2.5", "13", "(", ")", "+", "-", "*", "/", "//", "."]), max_size=9
    ).map(" ".join)
)
@settings(max_examples=300, deadline=None)
def test_sums_are_those_of_eval(text):
    try:
        wanted = str(round(float(eval(text, {"__builtins__": None}, {})), 2))
    except Exception:
        with pytest.raises(Exception):  # noqa: B017 - which one is Python's affair
            calculate(text)
    else:
        assert calculate(text) == wanted


# ---------------------------------------------------------------- where the data comes from


def test_source_of_a_checkout_is_read_but_never_run(tmp_path):
    folder = tmp_path / "tau_bench" / "envs" / "airline"
    (folder / "tools").mkdir(parents=True)
    (folder / "tasks_test.py").write_text(
        "raise SystemExit('run!')\n"
        "TASKS = [Task(annotator='0', user_id='u', instruction='go ' 'on', outputs=['1'],\n"
        "              actions=[Action(name='think', kwargs={'thought': [1, -2.0, None]})])]\n"
    )
    (folder / "wiki.md").write_text("rules\n")
    (folder / "tools" / "__init__.py").write_text("from .a import A\nboom()\n")
    info = "{'type': 'function', 'function': {'name': 'think', 'description': ('a ' 'b'), 'parameters': {}}}"
    (folder / "tools" / "a.py").write_text(
        f"class A:\n    @staticmethod\n    def get_info():\n        return {info}\n"
    )
    data = Data(tmp_path, "airline")
    assert data.tasks("test") == [
        {
            "user_id": "u",
            "instruction": "go on",
            "actions": [{"name": "think", "kwargs": {"thought": [1, -2.0, None]}}],
            "outputs": ["1"],
        }
    ]
    assert data.tools() == {"think": {"name": "think", "description": "a b", "parameters": {}}}
    assert data.policy() == "rules\n"
    (folder / "tasks_test.py").write_text("TASKS = [Task(user_id=open('x'))]\n")
    with pytest.raises(MuaError, match=r"tasks_test\.py, line 1: a literal is expected"):
        data.tasks("test")


def test_bad_data_is_named(tmp_path):
    for part in ("retail", "airline"):
        (tmp_path / part).mkdir()
    (tmp_path / "retail" / "orders.json").write_text("[]")
    (tmp_path / "airline" / "tasks_test.json").write_text('[{"user_id": "u"}]')
    with pytest.raises(MuaError, match=r"orders\.json must hold a JSON object"):
        Data(tmp_path, "retail").tables()
    with pytest.raises(MuaError, match=r"airline, task 0: this is not a task of τ¹ \(KeyError"):
        Data(tmp_path, "airline").tasks("test")
    with pytest.raises(MuaError, match=r"policy\.md cannot be read"):
        tau1_domain(tmp_path, "retail")
