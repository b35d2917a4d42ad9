"""BFCL multi turn: upstream's verdicts, upstream's rules of an episode, and backends that cannot do harm."""

import asyncio
import collections
import concurrent.futures
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import bfcl_damage
from mua import cli, pipeline
from mua.agents import AgentStep
from mua.benchmarks import load, store
from mua.benchmarks.bfcl import CATEGORIES, child, codec, results, upstream
from mua.benchmarks.bfcl.pool import Pool
from mua.chat import Message, ToolCall
from mua.config import load_config
from mua.domain import check_no_overlap
from mua.episode import play
from mua.errors import InfrastructureError, MuaError
from mua.trajectory import Termination, Trajectory

VERSIONS = ("bfcl", "bfcl-v3")

try:
    for name in VERSIONS:
        store.installed(name)
except MuaError as exc:
    pytest.skip(f"BFCL is not here: {exc}", allow_module_level=True)


def texts(answer):
    return [[[codec.text_of(call) for call in step] for step in turn] for turn in answer]


def valid(version, answers):
    """How many of the answers (by entry) are valid."""
    return sum(v["valid"] for v in upstream(version).verdicts([(i, texts(a)) for i, a in answers.items()]))


def some(answers):
    """A quarter of the entries, of all categories and backends."""
    return {i: a for i, a in answers.items() if int(i.rpartition("_")[2]) % 4 == 1}


# ---------------------------------------------------------------- verdicts


def last_call_dropped(answer):
    turn = max(i for i, steps in enumerate(answer) if steps)
    calls = answer[turn][0][:-1]
    return [*answer[:turn], [calls] if calls else [], *answer[turn + 1 :]]


def last_turn_emptied(answer):
    turn = max(i for i, steps in enumerate(answer) if steps)
    return [*answer[:turn], [], *answer[turn + 1 :]]


def one_argument_changed(answer):
    """The last argument of the last call that has one."""
    places = [(t, c) for t, steps in enumerate(answer) for c in range(len(steps[0] if steps else ()))]
    turn, place = next((t, c) for t, c in reversed(places) if answer[t][0][c].arguments)
    calls = list(answer[turn][0])
    name, given = list(calls[place].arguments.items())[-1]
    match given:
        case bool():
            other = not given
        case int() | float():
            other = given + 1
        case str():
            other = f"{given}_x"
        case list():
            other = [*given, "x"]
        case _:
            other = {**given, "x": 1}
    calls[place] = ToolCall(calls[place].name, {**calls[place].arguments, name: other})
    return [*answer[:turn], [calls], *answer[turn + 1 :]]


READ_ONLY = {
    "GorillaFileSystem": ToolCall("pwd"),
    "MathAPI": ToolCall("add", {"a": 1, "b": 2}),
    "MessageAPI": ToolCall("list_users"),
    "TwitterAPI": ToolCall("posting_get_login_status"),
    "TicketAPI": ToolCall("ticket_get_login_status"),
    "TradingBot": ToolCall("trading_get_login_status"),
    "TravelAPI": ToolCall("travel_get_login_status"),
    "VehicleControlAPI": ToolCall("get_zipcode_based_on_city", {"city": "x"}),
}


def test_ground_truth_and_each_kind_of_damage():
    """The counts are those that upstream gives, as measured by running it; a quarter where all are alike."""
    gold = bfcl_damage.gold("bfcl")
    source = upstream("bfcl")
    assert len(gold) == 800 and valid("bfcl", gold) == 800
    assert valid("bfcl", {i: one_argument_changed(a) for i, a in gold.items()}) == 39
    assert valid("bfcl-v3", some(bfcl_damage.gold("bfcl-v3"))) == 200
    # Upstream's prompt mode drops positional arguments, which ground truth has.
    as_text = [(i, [[f"[{', '.join(calls)}]"] for calls in source.entry(i).gold]) for i in gold]
    assert sum(v["valid"] for v in results.verdicts_on(source, as_text, "prompt")) == 800 - 4 * 24

    gold = some(gold)
    assert valid("bfcl", {i: last_call_dropped(a) for i, a in gold.items()}) == 0
    assert valid("bfcl", {i: last_turn_emptied(a) for i, a in gold.items()}) == 0
    assert valid("bfcl", {i: [[] for _ in a] for i, a in gold.items()}) == 0
    more = {i: [[[READ_ONLY[source.entry(i).classes[0]]], *a[0]], *a[1:]] for i, a in gold.items()}
    assert valid("bfcl", more) == 200


@pytest.mark.parametrize("version", VERSIONS)
def test_verdicts_texts_and_prompts_are_upstreams(version):
    seen, different = bfcl_damage.compare(version, 60, seed=random.randrange(10**6))
    assert different == [] and seen["None"] < 60
    source = upstream(version)
    steps = {
        "prompt": [
            "[cd(folder='a'), ls()]",
            "cd(folder='a')",
            "```[ls()]```",
            "['ls()']",
            "[[ls()]]",
            "[ls()](now)",
            "[a.b.ls(a=True)]",
            "[f(x=-5, y=+5, z=not 5)]",
            "[f(x=2+3*4, y='a'+'b', z=2**10)]",
            "[f(x=docs, y=a[0], z=(1, 'b'), w=...)]",
            "[f(x={'a': 1, 'b': {'c': 2}}, y={'a': {'c': 2}}, z=g(1), w=g(a=1))]",
            "[f(x={})]",
            "[f(**{'a': 1})]",
            "[f(x={1, 2})]",
            "[f(x=lambda: 0)]",
            "[x for x in y]",
            "[]",
            "I am done.",
            "",
            "[f(x='unclosed)]",
        ],
        "fc": [
            [{"ls": "{}"}],
            [{"ls": '{"a": true}'}, {"cd": {"folder": "x"}}],
            [],
            "words",
            None,
            [{"ls": "x"}],
        ],
        "hermes": [
            '<tool_call>\n{"name": "ls", "arguments": {"a": true}}\n</tool_call>',
            '<tool_call>\n{"name": "ls", "arguments": {}}\n</tool_call>\n<tool_call>\nbroken\n</tool_call>',
            '<tool_call>{"name": "ls", "arguments": {}}</tool_call>',
            "no call",
        ],
    }
    with bfcl_damage.Oracle(source) as oracle:
        for mode, cases in steps.items():
            for step in cases:
                assert codec.decode(step, mode, source.v3) == oracle(decode=step, mode=mode)["texts"], step
        for category, number in (("multi_turn_miss_func", 7), ("multi_turn_long_context", 150)):
            entry_id = f"{category}_{number}"
            native, prompted = (load(f"{version}/{category}{mode}") for mode in ("", ":prompt"))
            shown = oracle(prompts=entry_id, mode="fc")
            task = native.task(entry_id)
            tools = [
                [tool.schema() for tool in native.tools_at(task, turn).values()]
                for turn in range(len(shown["users"]))
            ]
            plain = json.loads(json.dumps(tools))
            if version == "bfcl":  # V3 adds its hint once more to all tools each time that tools appear
                assert plain == shown["tools"]
            assert said(native, task) == shown["users"] and native.system_prompt(task) == ""
            shown = oracle(prompts=entry_id, mode="prompt")
            assert prompted.system_prompt(task) == shown["system"]
            assert said(prompted, task) == shown["users"]


def said(domain, task):
    user = domain.user(task, 0)
    return [asyncio.run(user.reply([])).text for _ in domain.entry(task).turns]


def test_the_same_verdicts_in_any_order_again_and_in_parallel():
    source = upstream("bfcl")
    chosen = [
        i
        for i in bfcl_damage.gold("bfcl")
        if i.startswith(("multi_turn_long_context_1", "multi_turn_base_9"))
    ]
    answers = [(i, texts(bfcl_damage.gold("bfcl")[i])) for i in chosen[:60]]
    answers += [(i, [*turns[:-1], []]) for i, turns in answers[:20]]
    first = [source.verdict(i, turns) for i, turns in answers]
    assert [v["valid"] for v in first] == [True] * 60 + [False] * 20
    order = list(range(len(answers)))
    random.Random(0).shuffle(order)
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        for _ in range(2):
            again = list(threads.map(lambda k: source.verdict(*answers[k]), order))
            assert again == [first[k] for k in order]


# ---------------------------------------------------------------- the process of the backends


@pytest.mark.parametrize("version", VERSIONS)
def test_a_long_context_world_has_texts_of_its_own(version):
    backends = child.Backends(str(upstream(version).folder))
    fresh = {k: v for k, v in vars(backends.load({}, "long_context")).items() if k[:2] != "__"}
    assert len(fresh) > 10
    one, other = (backends.apart(share_texts=False)["long_context"] for _ in range(2))
    for name, value in fresh.items():
        assert repr(getattr(one, name)) == repr(value)
        if isinstance(value, list | dict):
            for inner in list(getattr(one, name).values()) if isinstance(value, dict) else []:
                if isinstance(inner, list | dict):
                    inner.clear()
            getattr(one, name).clear()
        assert repr(getattr(other, name)) == repr(value)


def test_only_plain_calls_of_public_methods_run(tmp_path):
    """What a model writes is parsed; upstream would evaluate all of these."""
    domain = load("bfcl/multi_turn_base")
    task = domain.tasks("all")[0]
    mark = tmp_path / "mark"
    world = domain.open(task)
    system = f"__import__('os').system('touch {mark}')"
    hostile = [
        ToolCall("__import__", {"name": "os"}),
        ToolCall(system.removesuffix(")")[:-1], {}),
        ToolCall("cd", {f"folder={system}, x": 1}),
        ToolCall("_load_scenario", {"scenario": {}}),
        ToolCall("_current_dir.contents.clear", {}),
        ToolCall("cd.__globals__.clear", {}),
        ToolCall("exit", {}),
        ToolCall("print", {"x": 1}),
        ToolCall("x", {}, error="no call", raw=system),
        ToolCall("x", {}, error="no call", raw=f"cd(folder={system})"),
        ToolCall("x", {}, error="no call", raw="cd(folder=ls())"),
        ToolCall("x", {}, error="no call", raw="(lambda: 1)()"),
        ToolCall("x", {}, error="no call", raw="[" * 100_000),
        ToolCall("x", {}, error="no call", raw="cd(folder=" + "-" * 100_000 + "1)"),
        ToolCall("cd", {"folder": 10**4000}),
        ToolCall("ls", {"a": "\ud800"}),
    ]
    before = world.call("assistant", ToolCall("ls")).content
    for call in hostile[:-1]:
        result = world.call("assistant", call)
        assert result.error and result.content.startswith("Error during execution: "), call.name
    assert not world.call("assistant", hostile[-1]).error
    assert world.call("assistant", ToolCall("ls")).content == before and not mark.exists()
    for step in (
        "[" * 50_000,
        "[f(x=" + "(" * 9_000,
        "[f(x=9**9**9)]",
        "[f(x='a' * 10**12)]",
        f"[f(x=1+{system})]",
    ):
        assert codec.decode(step, "prompt") == []


def test_a_call_that_takes_too_much_is_given_up_and_the_world_goes_on(monkeypatch):
    domain = load("bfcl/multi_turn_base")
    task = next(t for t in domain.tasks("all") if "MathAPI" in t.kind and "Gorilla" in t.kind)
    source = domain.upstream
    monkeypatch.setattr(source, "pool", Pool(source.folder, source.prefix, seconds=1.0))
    bomb = ToolCall("power", {"base": 9, "exponent": 10**9})
    world = domain.open(task)
    assert world.call("assistant", ToolCall("mkdir", {"dir_name": "kept"})).content == "None"
    step = Message("assistant", "", (ToolCall("touch", {"file_name": "a"}), bomb))
    world.begin_step(step)
    assert world.call("assistant", step.tool_calls[0]).content == "None"
    result = world.call("assistant", bomb)
    assert result.error and "CPU time" in result.content
    listed = world.call("assistant", ToolCall("ls")).content
    assert "kept" in listed and '"a"' in listed
    # Somebody ends the process between two calls, and a second world is served in between.
    os.kill(source.pool.processes[0], signal.SIGKILL)
    assert "kept" not in domain.open(task).call("assistant", ToolCall("ls")).content
    assert world.call("assistant", ToolCall("ls")).content == listed

    good = bfcl_damage.gold("bfcl")[task.id]
    bad = [[[bomb]], *good[1:]]
    found = source.verdicts([(task.id, texts(a)) for a in (good, bad, good)])
    assert [v["error_type"] for v in found] == [None, "mua:limit", None]
    source.pool.close()


def test_a_broken_installation_is_no_verdict(tmp_path):
    with pytest.raises(InfrastructureError, match="out of order"):
        Pool(tmp_path, "BFCL_v4").ask({"answers": [{"entry": "multi_turn_base_0", "turns": []}]})


def test_the_process_cannot_reach_out(tmp_path):
    script = f"""
import runpy, socket, subprocess, os
child = runpy.run_path({child.__file__!r})
child["_confine"](1 << 30)
for reach in (
    lambda: socket.socket(), lambda: subprocess.run(["true"]), lambda: os.system("true"), lambda: os.fork(),
    lambda: open({str(tmp_path / "x")!r}, "w"), lambda: os.remove({str(tmp_path)!r}),
    lambda: os.open({str(tmp_path / "x")!r}, os.O_CREAT | os.O_WRONLY),
):
    try:
        reach()
    except PermissionError:
        print("refused")
try:
    bytes(2 << 30)
except MemoryError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused"] * 8 and not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the episode


class Says:
    """An agent that writes what a function makes of (its number of steps so far, the messages)."""

    trace = None

    def __init__(self, write):
        self.write, self.steps, self.tools = write, 0, []

    def use_tools(self, tools):
        self.tools.append((self.steps, tools))

    async def step(self, messages):
        self.steps += 1
        found = self.write(self.steps - 1, messages)
        return found if isinstance(found, AgentStep) else AgentStep(found)

    def close(self):
        pass


def played(domain, task, agent):
    return asyncio.run(play(domain, task, agent, domain.user(task, 0)))


@pytest.mark.parametrize("mode", ["", ":prompt"])
@pytest.mark.parametrize("category", CATEGORIES)
def test_ground_truth_through_the_episode(category, mode):
    domain = load(f"bfcl/{category}{mode}")
    for number in (0, 38, 110, 199):  # one of them has more calls in a turn than a turn has steps
        task = domain.task(f"{category}_{number}")
        trajectory = played(domain, task, domain.gold_agent(task))
        assert (trajectory.reward, trajectory.termination) == (1.0, Termination.USER_STOP), trajectory.reason
        stored = Trajectory.from_dict(json.loads(json.dumps(trajectory.to_dict())))
        assert domain.grade(task, stored.messages, stored.termination).reward == 1.0
        users = [i for i, m in enumerate(stored.messages) if m.role == "user"]
        cut = stored.messages[: users[1]]
        assert domain.grade(task, cut, Termination.TURN_CAP).reason.startswith("multi_turn:force_terminated")


def test_tools_appear_at_their_turn():
    domain = load("bfcl/multi_turn_miss_func")
    task = domain.tasks("all")[0]
    entry = domain.entry(task)
    ((turn, held_back),) = entry.held_back.items()
    agent = Says(lambda n, messages: Message("assistant", "I cannot."))
    trajectory = played(domain, task, agent)
    ((step, tools),) = agent.tools
    assert step == turn and list(tools)[-len(held_back) :] == list(held_back)
    assert not set(held_back) & set(domain.task_tools(task))
    users = [m.content for m in trajectory.messages if m.role == "user"]
    assert users[turn] == domain.upstream.more_tools and len(users) == len(entry.turns) + 1
    assert trajectory.reason.startswith("multi_turn:empty_turn_model_response")


def test_a_turn_has_21_steps():
    domain = load("bfcl/multi_turn_base")
    task = next(t for t in domain.tasks("all") if "Gorilla" in t.kind)
    calls = domain.gold_calls(domain.entry(task))
    look = Message("assistant", "", (ToolCall("pwd"),))

    def endless_from(last):
        """The ground truth of a turn at once; from the `last` turn on, no end of looking around."""

        def write(n, messages):
            turn = sum(m.role == "user" for m in messages) - 1
            if messages[-1].role == "user":
                return Message("assistant", "", tuple(calls[turn]))
            return look if turn >= last else Message("assistant", "Done.")

        return write

    first = played(domain, task, Says(endless_from(0)))
    assert first.termination is Termination.TURN_CAP and first.usage.agent_steps == 21
    assert first.reward == 0.0 and first.reason.startswith("multi_turn:force_terminated")
    last = played(domain, task, Says(endless_from(len(calls) - 1)))
    assert last.termination is Termination.TURN_CAP and last.reward == 1.0


def test_what_cannot_be_read_ends_the_turn():
    """A call that is no JSON, and a step that was cut: words like any others. Without room: over."""
    domain = load("bfcl/multi_turn_base")
    task = domain.tasks("all")[0]
    broken = ToolCall("ls", {}, error="not JSON", raw='{"a": ')
    agent = Says(
        lambda n, messages: AgentStep(Message("assistant", "", (ToolCall("pwd"), broken)), 5, n == 0)
    )
    trajectory = played(domain, task, agent)
    assert trajectory.termination is Termination.USER_STOP and trajectory.usage.tool_calls == 0
    assert agent.steps == len(domain.entry(task).turns)
    assert trajectory.messages[1].content and not trajectory.messages[1].tool_calls
    full = played(domain, task, Says(lambda n, messages: AgentStep(Message("assistant"), truncated=True)))
    assert full.termination is Termination.TOKEN_CAP and "inference_error" in full.reason


def test_prompt_mode_shows_results_as_upstream_does():
    domain = load("bfcl/multi_turn_base:prompt")
    task = domain.tasks("all")[0]
    seen = []

    def write(n, messages):
        seen.append(list(messages))
        return AgentStep(Message("assistant", "[ls(a=True), nothing(x=1)]" if n == 0 else "Done."), text=None)

    trajectory = played(domain, task, Says(write))
    assert [m.role for m in seen[1]] == ["system", "user", "assistant", "user"] and not seen[1][2].tool_calls
    results_shown = eval(seen[1][3].content, {"__builtins__": {}})  # our own text, of a list of dicts
    assert [r["name"] for r in results_shown] == ["ls(a=True)", "nothing(x=1)"]
    assert "current_directory_content" in results_shown[0]["content"]
    assert results_shown[1]["content"] == "Error during execution: name 'nothing' is not defined"
    assert trajectory.messages[2].content == "[ls(a=True), nothing(x=1)]"


# ---------------------------------------------------------------- files, training, evaluation


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def score(args, capsys):
    code = cli.app(["score", *map(str, args)], standalone_mode=False)
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_score_reads_upstreams_result_files(tmp_path, capsys):
    gold = bfcl_damage.gold("bfcl")
    source = upstream("bfcl")
    ids = [f"multi_turn_base_{i}" for i in range(8)]

    def native(answer):
        return [
            [*([{c.name: json.dumps(dict(c.arguments))} for c in s] for s in turn), "Done."]
            for turn in answer
        ]

    lines = [{"id": i, "result": native(gold[i])} for i in ids]
    lines[1]["result"] = "Error during inference: 500"
    lines[2]["result"] = lines[2]["result"][:-1]
    lines[3]["result"][0] = ["[pwd()]"]  # text in a file of native calls is no call
    file = write_lines(tmp_path / "BFCL_v4_multi_turn_base_result.json", lines)
    code, out = score(["bfcl", file, "--category", "multi_turn_base"], capsys)
    kinds = {line["id"]: line["error_type"] for line in out[:-1]}
    assert code == 0 and [line["valid"] for line in out[:-1]] == [True, *[False] * 3, *[True] * 4]
    assert [kinds[i] for i in ids[1:4]] == [
        "multi_turn:inference_error",
        "multi_turn:force_terminated",
        "multi_turn:empty_turn_model_response",
    ]
    tally = out[-1]
    assert (tally["valid"], tally["invalid"], tally["accuracy"], tally["missing"]) == (5, 3, 5 / 8, 192)
    assert (tally["version"], tally["data_hash"]) == (source.version, source.data_hash)

    text = [{"id": i, "result": [[f"[{', '.join(t)}]", "ok"] for t in source.entry(i).gold]} for i in ids[1:]]
    text += [{"id": "multi_turn_miss_func_0", "result": []}]
    code, out = score(["bfcl", write_lines(tmp_path / "text.json", text)], capsys)
    assert all(line["valid"] for line in out[:7]) and out[-1]["accuracy"] == 0.5  # the mean of two categories

    for line, words in (({"id": "multi_turn_base_0"}, "result"), ({"id": "x_1", "result": []}, "x_1")):
        with pytest.raises(MuaError, match=f"line 1.*{words}"):
            list(results.verdicts(source, write_lines(tmp_path / "bad.json", [line])))
    with pytest.raises(MuaError, match="no entry of multi_turn_miss_func"):
        list(results.verdicts(source, file, "multi_turn_miss_func"))


def test_training_and_evaluation_are_kept_apart(tmp_path):
    base, long = load("bfcl/multi_turn_base"), load("bfcl/multi_turn_long_context")
    for other in (base, long):
        check_no_overlap(base.tasks("train"), other.tasks("test"), "test")
        with pytest.raises(MuaError, match=r"(100|86) training task.*multi_turn_base_0 = multi_turn_\w+_0, "):
            check_no_overlap(base.tasks("train"), other.tasks("all"), "all")
    settings = ["domain=bfcl/multi_turn_base", "coldstart.conversations=3"]
    run = pipeline.open_run(load_config(None, settings), tmp_path / "run")
    assert len(run.domain.tasks("train")) == 100
    kept = asyncio.run(pipeline._conversations(run, "coldstart", "train"))
    assert [t.reward for t in kept] == [1.0] * 3
    with pytest.raises(MuaError, match="100 training task"):
        pipeline.open_run(load_config(None, [*settings, "eval.split=all"]), tmp_path / "other")


def test_the_figure_is_the_unweighted_mean_of_the_categories():
    domain = load("bfcl/multi_turn")
    tasks = domain.tasks("all")
    assert [t.id for t in tasks[:4]] == [f"{category}_0" for category in CATEGORIES]
    assert collections.Counter(t.kind for t in tasks) == dict.fromkeys(CATEGORIES, 200)
    rewards = {"multi_turn_base_0": 1.0, "multi_turn_base_1": 0.0, "multi_turn_miss_func_0": 1.0}
    trajectories = [
        Trajectory(domain.name, i, "", "", [], Termination.USER_STOP, 0, reward=r, reason="why")
        for i, r in rewards.items()
    ]
    found = domain.summary(trajectories)
    assert found["mean_of_categories"] == 0.75 and found["verdicts"] == dict.fromkeys(rewards, "why")
    assert (found["version"], found["data_hash"]) == (domain.upstream.version, domain.upstream.data_hash)
    assert load("bfcl-v3/multi_turn").summary([])["paper"]["mean_of_categories"]["MUA-RL-32B"] == 28.4


def test_the_installed_folder_is_not_written_to():
    for version in VERSIONS:
        found = store.installed(version)
        assert store.tree_hash(found.path) == found.data_hash
        assert not list(Path(found.path).rglob("__pycache__"))
