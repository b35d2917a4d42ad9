"""τ²-bench in the harness: upstream's scores, upstream's episode, and databases that never change."""

import asyncio
import copy
import dataclasses
import gzip
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

import tau2_scripts
from fake_server import FakeServer, chat
from mua import cli
from mua.agents import AgentStep
from mua.benchmarks import load, store
from mua.benchmarks.tau2 import GREETING, cow, results, scoring
from mua.chat import Message, ToolCall, agent_view
from mua.episode import play
from mua.errors import MuaError
from mua.trajectory import Termination
from mua.users import UserTurn

try:
    for name in ("tau2", "tau2@0.2"):
        store.installed(name)
except MuaError as exc:
    pytest.skip(f"τ²-bench is not here: {exc}", allow_module_level=True)

SHARED = Path(os.environ.get("MUA_SHARED") or Path(__file__).parents[2] / "shared")
CONVERSATIONS = SHARED / "conformance" / "tau2" / "simulations.jsonl.gz"
needs_shared = pytest.mark.skipif(
    not CONVERSATIONS.is_file(), reason="the stored conversations are not here; set MUA_SHARED"
)
HASHES = {  # upstream's own, of release 1.0.1
    "retail": {"agent": "b25c9cb211f5"},
    "airline": {"agent": "124e39a664b5"},
    "telecom": {"agent": "304cf5ef0598", "user": "e1f3a8637388"},
}


@pytest.fixture(autouse=True, scope="module")
def _bases_stay_as_they_are():
    """Invariant 2, after all that the tests of this file do: no database has changed."""
    yield
    check_bases()


def check_bases():
    """The hashes are upstream's own of the untouched databases."""
    for part, wanted in HASHES.items():
        base = load(f"tau2/{part}").base
        found = {side: digest[:12] for side, digest in base.recompute_hash().items()}
        assert found == wanted, f"the shared database of {part} has changed"


# ---------------------------------------------------------------- equal scores


@needs_shared
def test_stored_conversations_get_upstreams_verdicts(tmp_path):
    seen: Counter = Counter()
    for verdict in results.verdicts("tau2", CONVERSATIONS):
        assert verdict["agree"], verdict
        assert verdict["reward"] == verdict["stored"]
        seen[verdict["domain"]] += 1
    assert seen == {"tau2/airline": 282, "tau2/retail": 96, "tau2/telecom": 53, "tau2/telecom-solo": 51}


@needs_shared
def test_score_command_reads_lines_and_results_files(tmp_path, capsys):
    with gzip.open(CONVERSATIONS, "rt") as file:
        lines = [json.loads(next(file)) for _ in range(3)]
    wrong = {**lines[0], "reward": 1.0 - lines[0]["reward"]}
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in [*lines, wrong]))
    assert results.score("tau2", path) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"agree": 3, "disagree": 1}
    whole = {
        "info": {"environment_info": {"domain_name": lines[0]["domain"]}, "agent_info": {}},
        "tasks": [x["task"] for x in lines],
        "simulations": [
            {
                "task_id": x["task"]["id"],
                "termination_reason": x["termination"],
                "messages": x["messages"],
                "reward_info": {"reward": x["reward"], "db_check": {"db_match": x["db_match"]}},
            }
            for x in lines
        ],
    }
    path = tmp_path / "results.json"
    path.write_text(json.dumps(whole))
    assert results.score("tau2", path) == 0
    whole["simulations"][1].pop("messages")
    path.write_text(json.dumps(whole))
    with pytest.raises(MuaError, match=r"simulation 1: .*'messages' is missing"):
        results.score("tau2", path)


@pytest.mark.parametrize(
    ("part", "counts"),
    [
        ("retail", (114, 6, 6, 114)),
        ("airline", (50, 23, 23, 50)),
        ("telecom", (114, 0, 20, 43)),
        ("telecom-solo", (114, 0, 20, 43)),
    ],
)
def test_controls_score_as_upstream(part, counts):
    """Gold actions, nothing at all, a transfer at once: upstream's counts; and databases after gold."""
    domain = load(f"tau2/{part}")
    found = [0, 0, 0, 0]
    for task in domain.tasks("base"):
        said = list(task.criteria.get("communicate_info") or [])
        assertions = scoring.assertions_of(task)
        transfer = [("assistant", "transfer_to_human_agents", {"summary": "-"})]
        scripts = [(tau2_scripts.gold(task, domain.solo), said), ([], []), (transfer, [])]
        for i, (calls, words) in enumerate(scripts):
            told = [Message.from_dict(m) for m in tau2_scripts.messages(calls, words, domain.solo)]
            scored = domain.score(task, told, [i == 0] * len(assertions))
            found[i] += scored.reward == 1.0
            found[3] += i == 0 and scored.components["db"] == 1.0
    assert tuple(found) == counts


ORACLE, UPSTREAM = os.environ.get("MUA_TAU2_PYTHON", ""), os.environ.get("MUA_TAU2_UPSTREAM", "")


@pytest.mark.skipif(not ORACLE, reason="no upstream to compare with; set MUA_TAU2_PYTHON, MUA_TAU2_UPSTREAM")
def test_perturbed_scripts_score_as_by_upstreams_evaluator():
    counts = dict.fromkeys(tau2_scripts.PARTS, 10)
    tally, wrong = tau2_scripts.compare(ORACLE, UPSTREAM, counts, seed=11)
    assert not wrong, wrong[0]
    assert sum(n for name, n in tally.items() if "equal" in name) >= 30


def test_a_verdict_says_in_words_what_differs():
    domain = load("tau2/retail")
    task = next(t for t in domain.tasks("base") if any("address" in a.name for a in t.actions))
    calls = tau2_scripts.gold(task)
    at = next(i for i, c in enumerate(calls) if c[1].startswith("modify") and c[1].endswith("address"))
    calls[at][2]["city"] = "Nowhere"
    told = [Message.from_dict(m) for m in tau2_scripts.messages(calls, [])]
    verdict = domain.grade(task, told, Termination.USER_STOP)
    assert (verdict.reward, verdict.components["db"]) == (0.0, 0.0)
    assert ".address differs: here {" in verdict.reason and "Nowhere" in verdict.reason
    assert domain.grade(task, told, Termination.TURN_CAP).reward == 0.0


def test_number_types_reach_the_database_as_upstream_lets_them():
    domain = load("tau2/airline")
    calls = ("update_reservation_baggages", "nonfree_baggages")
    task = next(t for t in domain.tasks("base") if any(a.name == calls[0] for a in t.actions))
    for make, reward in ((int, 1.0), (float, 0.0), (str, 0.0)):
        script = copy.deepcopy(tau2_scripts.gold(task))
        for _, name, arguments in script:
            if name == calls[0]:
                arguments["total_baggages"] = make(arguments["total_baggages"])
        said = list(task.criteria.get("communicate_info") or [])
        told = [Message.from_dict(m) for m in tau2_scripts.messages(script, said)]
        assert domain.grade(task, told, Termination.USER_STOP).components["db"] == reward, make


# ---------------------------------------------------------------- copy on write


def test_views_let_nothing_through_to_the_original():
    """Whatever upstream's functions may do to what they are given, the original stays, and says no."""
    base = load("tau2/airline").base
    frozen = base.sides["agent"]
    state = base.open()
    db = state.sides["agent"]
    name = next(iter(db.users))
    user = db.users[name]
    user.name.first_name = "Changed"
    user.reservations.append("NEW")
    user.payment_methods.clear()
    flight = next(f for f in db.flights.values() if f.dates)
    date = next(d for d, s in flight.dates.items() if s.status == "available")
    flight.dates[date].available_seats["economy"] -= 1
    gone = next(iter(db.reservations))
    del db.reservations[gone]
    assert gone not in db.reservations and gone in frozen.reservations
    paths = sorted(path[1:] for path in state.changes())
    assert paths == [("flights", flight.flight_number), ("reservations", gone), ("users", name)]
    # What is read is the original itself; it cannot be written.
    reader = cow.Reader(base.open().sides["agent"])
    assert reader.users is frozen.users
    with pytest.raises(cow.FrozenError):
        reader.users[name].name.first_name = "x"
    with pytest.raises(cow.FrozenError):
        reader.users[name].reservations.append("x")
    with pytest.raises(cow.FrozenError):
        reader.users.pop(name)
    assert copy.deepcopy(frozen.users[name]).reservations is not frozen.users[name].reservations


def test_a_view_dumps_as_the_model_it_stands_for():
    base = load("tau2/telecom").base
    for side, db in base.sides.items():
        view = base.open().sides[side]
        real = cow.real(db)
        assert type(real).__mro__[0] is db.__mua_model__ and view.model_dump() == real.model_dump()
        if side == "agent":
            view.lines[0].data_used_gb = real.lines[0].data_used_gb = 3
            view.bills.append(copy.deepcopy(view.bills[0]))
            real.bills.append(copy.deepcopy(real.bills[0]))
        else:
            view.device.app_statuses["messaging"].permissions.sms = False
            real.device.app_statuses["messaging"].permissions.sms = False
        assert view.model_dump() == real.model_dump()
        assert json.dumps(view.model_dump(), default=str) == json.dumps(real.model_dump(), default=str)


def test_reading_leaves_nothing_behind_and_writing_only_what_was_written():
    domain = load("tau2/retail")
    world = domain.open(domain.tasks("base")[0])
    order = next(k for k, o in domain.base.sides["agent"].orders.items() if o.status == "pending")
    user = domain.base.sides["agent"].orders[order].user_id
    for name, arguments in (("get_order_details", {"order_id": order}), ("list_all_product_types", {})):
        assert not world.call("assistant", ToolCall(name, arguments)).error
    assert not world.db.changes() and not world.db.sides["agent"].__dict__
    address = {k: "x" for k in ("address1", "address2", "city", "state", "country", "zip")}
    call = ToolCall("modify_pending_order_address", {"order_id": order, **address})
    shown = json.loads(world.call("assistant", call).content)
    assert shown["address"]["city"] == "x" and shown["user_id"] == user
    again = world.call("assistant", ToolCall("get_order_details", {"order_id": order}))
    assert json.loads(again.content) == shown
    assert list(world.db.changes()) == [("agent", "orders", order)]
    other = domain.open(domain.tasks("base")[0])
    assert world.db.diff(other.db)[0].startswith(f"orders.{order}.address differs: here")


def test_concurrent_episodes_do_not_meet():
    """The same scripts in many threads give the verdicts that they give one after the other."""
    jobs = []
    for part in tau2_scripts.PARTS:
        jobs += list(tau2_scripts.conversations(part, 12, seed=5))
    alone = [tau2_scripts.ours(line) for line in jobs]
    found: list = [None] * len(jobs)

    def work(start):
        for i in range(start, len(jobs), 4):
            found[i] = tau2_scripts.ours(jobs[i])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone
    check_bases()


def test_breaking_the_vpn_breaks_it_in_one_world_only():
    """Upstream keeps its VPN profile on the class: one broken VPN is broken for the whole process."""
    domain = load("tau2/telecom")
    broken = next(t for t in domain.tasks("full") if "break_vpn" in t.id or "vpn" in t.id)
    whole = next(t for t in domain.tasks("full") if "vpn" not in t.id)

    def performance(task):
        world = domain.open(task)
        for name in ("disconnect_vpn", "connect_vpn"):
            world.call("user", ToolCall(name))
        return world.db.sides["user"].device.vpn_details.server_performance.value

    assert [performance(t) for t in (broken, whole, broken)] == ["poor", "excellent", "poor"]


# ---------------------------------------------------------------- the episode


class Scripted:
    """Plays a side from a list of words and calls; says what it was shown."""

    name = "script"
    trace = None

    def __init__(self, *moves):
        self.moves = list(moves)
        self.shown = []

    async def step(self, messages):
        self.shown.append(list(messages))
        return AgentStep(self._next("assistant"))

    async def reply(self, view):
        self.shown.append(list(view))
        message = self._next("user")
        return UserTurn(message.content, message.tool_calls)

    def _next(self, role):
        move = self.moves.pop(0) if len(self.moves) > 1 else self.moves[0]
        if isinstance(move, str):
            return Message(role, move)
        words, *calls = move
        return Message(role, words, tuple(ToolCall(name, arguments) for name, arguments in calls))

    def close(self):
        pass


def run(domain, task, agent, user):
    return asyncio.run(play(domain, task, agent, user))


def test_an_episode_by_two_scripts_scores_one_and_the_same_from_its_messages():
    for part in ("retail", "airline", "telecom"):
        domain = load(f"tau2/{part}")
        for task in domain.tasks("test")[:6]:
            words = " ".join(task.criteria.get("communicate_info") or ["Done."])
            agent, user = ["Let me see."], ["Hello."]
            for action in task.actions:
                if action.requestor == "user":
                    agent.append("Please do that.")
                    user += [("", (action.name, action.arguments)), "I did."]
                else:
                    agent.append(("", (action.name, action.arguments)))
            played = run(domain, task, Scripted(*agent, words), Scripted(*user, "Thanks.", "###STOP###"))
            assert played.messages[1].content == GREETING
            assert (played.termination, played.reward) == (Termination.USER_STOP, 1.0), played.reason
            again = domain.grade(task, played.messages, played.termination)
            assert (again.reward, again.components) == (played.reward, played.components)


def test_each_side_sees_its_own_tools_only():
    domain = load("tau2/telecom")
    task = domain.tasks("test")[0]
    agent = Scripted(("", ("get_customer_by_phone", {"phone_number": "555-123-2002"})), "Look at it.", "Bye.")
    user = Scripted("Help!", ("Looking.", ("check_status_bar", {})), "I see bars.", "###STOP###")
    played = run(domain, task, agent, user)
    roles = [(m.role, m.requestor) for m in played.messages if m.role == "tool"]
    assert roles == [("tool", "assistant"), ("tool", "user")]
    hidden = {"check_status_bar", "Looking."}
    last = agent.shown[-1]
    assert not any(c.name in hidden for m in last for c in m.tool_calls)
    assert not any("Looking." in m.content or m.requestor == "user" for m in last)
    assert "Looking." in "".join(m.content for m in agent_view(played.messages))  # elsewhere it is heard
    assert not any(m.requestor == "assistant" and m.role == "tool" for m in user.shown[-1])
    assert "<main_policy>" in played.messages[0].content
    assert set(domain.tools("user")) & set(domain.tools("assistant")) == set()


def test_a_call_on_the_wrong_side_is_an_error_in_upstreams_words():
    domain = load("tau2/telecom")
    world = domain.open(domain.tasks("test")[0])
    for side, name in (("assistant", "toggle_airplane_mode"), ("user", "suspend_line")):
        result = world.call(side, ToolCall(name))
        assert (result.content, result.error) == (f"Error: Tool '{name}' not found.", True)
    missing = world.call("assistant", ToolCall("enable_roaming", {"customer_id": "C1001"}))
    assert "missing 1 required positional argument: 'line_id'" in missing.content


def test_limits_and_stop_words_end_an_episode_as_upstream():
    domain = load("tau2/telecom")
    task = domain.tasks("test")[0]
    for word in ("###STOP###", "Well. ###TRANSFER###", "###OUT-OF-SCOPE### then"):
        assert run(domain, task, Scripted("Hm."), Scripted("Hi", word)).termination == Termination.USER_STOP
    # 200 steps: each message is one, and so are the answers to its calls.
    played = run(domain, task, Scripted("Hm."), Scripted("Hi"))
    assert (played.termination, played.reward) == (Termination.TURN_CAP, 0.0)
    assert sum(m.role in ("user", "assistant") for m in played.messages) == 200 + 1  # and the greeting
    look = ("", ("check_status_bar", {}))
    played = run(domain, task, Scripted("Hm."), Scripted(look))
    assert played.termination == Termination.TURN_CAP
    assert sum(m.role == "user" for m in played.messages) == 100
    # A limit that is reached in the step of the user's stop counts more.
    for hops, end in ((3, Termination.TURN_CAP), (4, Termination.USER_STOP)):
        short = dataclasses.replace(domain, limits=domain.limits.model_copy(update={"hops": hops}))
        assert run(short, task, Scripted("Hm."), Scripted("Hi", "###STOP###")).termination == end
    # Ten failed calls, of both sides together.
    bad = ("", ("nonsense", {}))
    played = run(domain, task, Scripted(bad, bad, bad, bad, "Hm.", bad), Scripted("Hi", *[bad] * 5, "Well."))
    assert (played.termination, played.usage.tool_errors) == (Termination.TOO_MANY_ERRORS, 10)


def test_solo_work_ends_by_done_and_never_by_words():
    domain = load("tau2/telecom-solo")
    task = domain.tasks("test")[0]
    calls = [("", (a.name, a.arguments)) for a in task.actions]
    done = run(domain, task, Scripted(*calls, ("", ("done", {}))), domain.user(task, 0))
    assert (done.termination, done.reward) == (Termination.AGENT_STOP, 1.0), done.reason
    assert "<ticket>" in done.messages[0].content and task.data["ticket"] in done.messages[0].content
    words = run(domain, task, Scripted(*calls, "It is done."), domain.user(task, 0))
    assert words.reward == 0.0 and "instead of using its tools" in words.reason


def test_prompts_are_upstreams_own_and_whole():
    for part in ("retail", "telecom"):
        domain = load(f"tau2/{part}")
        task = domain.tasks("test")[0]
        prompt = domain.system_prompt(task)
        assert domain.policy in prompt and "{" not in prompt.split("<policy>")[0]
        scenario = task.scenario.prompt
        assert "###STOP###" in scenario and "<scenario>" in scenario and "{" not in scenario
        assert task.scenario.goal.splitlines()[0] in scenario
    assert "tool" in load("tau2/telecom").tasks("test")[0].scenario.prompt.lower()


def test_nothing_of_upstream_or_of_its_framework_stays_imported():
    script = """
import sys
from mua.benchmarks import load
load("tau2/telecom"), load("tau2@0.2/retail")
heavy = {"litellm", "loguru", "deepdiff", "dotenv", "toml", "torch", "openai", "pandas", "fastapi"}
print(sorted(m for m in sys.modules if m.partition(".")[0] in heavy | {"tau2"}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr[-1000:]


def test_noops_are_found_and_gold_is_not_one_of_them():
    domain = load("tau2/airline")
    idle = [t for t in domain.tasks("base") if domain.is_noop(t)]
    assert len(idle) == 23
    assert not any(load("tau2/telecom").is_noop(t) for t in load("tau2/telecom").tasks("test"))


def test_a_judge_decides_about_assertions_in_words():
    domain = load("tau2/retail")
    task = next(t for t in domain.tasks("base") if len(scoring.assertions_of(t)) > 0)
    calls = [("", (a.name, a.arguments)) for a in task.actions]
    asked = []

    def judge(*met):
        async def ask(messages):
            asked.append(messages)
            found = [{"expectedOutcome": "-", "reasoning": "-", "metExpectation": m} for m in met]
            return "Here it is:\n" + json.dumps({"results": found})

        return ask

    count = len(scoring.assertions_of(task))
    for verdicts, reward in (([True] * count, 1.0), ([False] * count, 0.0), ([], 1.0)):
        played = run(domain, task, Scripted(*calls, "Done."), Scripted("Hi", "###STOP###"))
        assert played.reward == 1.0 and "not judged" in played.reason
        asyncio.run(domain.settle(task, played, judge(*verdicts)))
        assert (played.reward, played.components["nl_assertion"]) == (reward, reward)
    assert scoring.assertions_of(task)[0] in asked[0][1].content


def test_completion_rate_counts_criteria():
    domain = load("tau2/telecom")
    task = next(t for t in domain.tasks("base") if len(t.criteria["env_assertions"]) > 1)
    nothing = run(domain, task, Scripted("Hm."), Scripted("Hi", "###STOP###"))
    assert nothing.components["criteria"] == len(task.criteria["env_assertions"])
    summary = domain.summary([nothing])
    met = nothing.components["criteria_met"]
    assert summary["task_completion_rate"] == met / nothing.components["criteria"]
    assert summary["paper"]["task_completion_rate"]["MUA-RL-32B"] == 45.1
    assert summary["paper"]["success"]["MUA-RL-32B"] == 28.3


def test_eval_command_over_an_endpoint_resumes_and_stands_beside_the_paper(tmp_path, capsys):
    """An endpoint that knows every gold action as the agent, another as the user, a third as the judge."""
    domain = load("tau2/retail")
    tasks = domain.tasks("base")[:3]
    by_prompt = {t.scenario.prompt: t for t in tasks}
    by_id = {t.id: t for t in tasks}

    def answer(request):
        told = request["messages"]
        if request["model"] == "judge":
            # One verdict for any number of assertions stands for all of them.
            return chat('{"results": [{"metExpectation": true}]}')
        if len(told) == 1:
            return chat("hello")  # the question whether it is there
        if request["model"] == "user":
            task = by_prompt[told[0]["content"]]
            assert told[1]["content"] == GREETING
            return chat("###STOP###" if len(told) > 2 else f"task {task.id}")
        task = by_id[next(m["content"] for m in told if m["role"] == "user").removeprefix("task ")]
        made = sum(m["role"] == "tool" for m in told)
        if made == len(task.actions):
            return chat(" ".join(task.criteria.get("communicate_info") or ["Done."]))
        action = task.actions[made]
        return chat(calls=[(action.name, action.arguments)])

    with FakeServer(answer) as server:
        command = ["eval", "--benchmark", "tau2/retail", "--agent", "endpoint:agent"]
        command += ["--user", "endpoint:user", "--judge", "endpoint:judge", "--base-url", server.url]
        command += ["--trials", "2", "--tasks", "3", "--out", str(tmp_path)]
        cli.app(command, standalone_mode=False)
        asked = len(server.requests)
        first = capsys.readouterr().out
        cli.app(command, standalone_mode=False)
        played = [r for r in server.requests[asked:] if len(r["messages"]) > 1]
        assert played == []  # resumed: nothing was played again
    assert "MUA-RL-32B" in first and "67.3" in first
    assert "user llm:user, the paper's gpt-4.1; episodes a task 2" in first
    path = next((tmp_path / "eval").glob("*.json"))
    figures = json.loads(path.read_text())
    assert (figures["success"], figures["pass_k"]) == (1.0, {"1": 1.0, "2": 1.0})
    assert figures["benchmark"]["database"]["agent"].startswith(HASHES["retail"]["agent"])
    assert figures["benchmark"]["paper"]["success"]["GPT-4.1"] == 70.2
    assert figures["split"] == "base" and figures["benchmark"]["components"]["db"] == 1.0
    # The stored trajectories are graded again, by name.
    assert results.score("tau2", path.with_suffix(".jsonl"), write=lambda line: None) == 0
