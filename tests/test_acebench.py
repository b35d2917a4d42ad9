"""ACEBench Agent: upstream's verdicts on the same answers, and the strict reading without its faults.

What upstream gave was recorded by `tests/acebench_upstream.py`, which runs it; here no upstream is needed,
only its data.
"""

import asyncio
import gzip
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import acebench_upstream as upstream
from chat_formats import ScriptEngine, make_format
from fake_server import FakeServer, chat
from mua.agents.endpoint import EndpointAgent
from mua.agents.model import ModelAgent
from mua.benchmarks import load, store
from mua.benchmarks.acebench import checker, data, results, words
from mua.benchmarks.acebench.apis import Apis
from mua.benchmarks.acebench.codec import has_brackets
from mua.benchmarks.acebench.domain import steps
from mua.benchmarks.acebench.oracle import Oracle, solution
from mua.benchmarks.acebench.view import View
from mua.chat import Message
from mua.config import load_config
from mua.domain import check_no_noop, check_no_overlap
from mua.endpoint import Endpoint, EndpointSettings
from mua.engines import Sampling
from mua.episode import play
from mua.errors import MuaError
from mua.evaluate.run import EvalSettings, evaluate
from mua.pipeline import Players, user_maker
from mua.trajectory import Termination, Trajectory
from mua.users.llm import LlmUser

DATA = Path(os.environ.get("MUA_SHARED") or Path(__file__).parents[2] / "shared") / "benchmarks" / "acebench"
RECORDED = Path(__file__).parent / "data" / "acebench_verdicts.jsonl.gz"
if not DATA.is_dir():
    try:
        DATA = store.installed("acebench").path
    except MuaError as exc:
        pytest.skip(f"ACEBench is not at {DATA} (MUA_SHARED), and: {exc}", allow_module_level=True)
CATEGORIES = [f"{mode}_{language}" for mode, language in data.CATEGORIES]


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory):
    """Installs the data, without upstream's wording, into a cache of this module's own."""
    alone = tmp_path_factory.mktemp("acebench")
    root = DATA / "data_all" if (DATA / "data_all").is_dir() else DATA
    for language in ("en", "zh"):
        shutil.copytree(root / f"data_{language}", alone / f"data_{language}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield store.install("acebench", alone).path


def apis(category, number, strict=False):
    mode, _, language = category.rpartition("_")
    entry = data.entries(DATA, mode, language)[number]
    return Apis(entry, data.start(DATA, language), words.own(language), strict)


def run(domain, task, agent, user=("go on",)):
    """The trajectory of a scripted agent and, in multi_turn, a scripted user."""
    person = domain.user(task, 0) or upstream.ScriptedUser(upstream.Script(list(user)))
    return asyncio.run(play(domain, task, agent, person))


def scripted(*lines, **how):
    return upstream.ScriptedAgent(upstream.Script(list(lines)), **how)


# ---------------------------------------------------------------- equal to upstream


def recorded():
    with gzip.open(RECORDED, "rt") as file:
        return {line["language"]: line for line in map(json.loads, file)}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_random_conversations_end_as_upstream_ended_them(language, folder):
    """States, steps, both accuracies and the number of user turns, by their hashes; every fourth here."""
    marks = recorded()[language]["conversations"]
    assert len(marks) >= 2000
    domain = load(f"acebench/agent_{language}")
    ends = Counter()
    for seed in range(0, len(marks), 4):
        found = upstream.ours(domain, *upstream.conversation(seed, language, folder))
        assert upstream.digest(found) == marks[seed], seed
        ends[found["valid"], found["trajectory"].termination.value] += 1
    # The seeds reach what matters: both verdicts at each kind of end.
    assert {(v, t) for v in (True, False) for t in ("agent_stop", "user_stop", "turn_cap")} <= set(ends)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_damaged_answers_are_judged_as_upstream_judged_them(language, folder):
    wanted = recorded()[language]["damaged"]
    found = "".join(
        "01"[upstream.graded(*upstream.damaged(seed, language, folder))[0]] for seed in range(len(wanted))
    )
    assert found == wanted and min(Counter(wanted).values()) > 100


@pytest.mark.parametrize(
    ("category", "replayed"),
    [("multi_turn_en", 21), ("multi_step_en", 4), ("multi_turn_zh", 29), ("multi_step_zh", 8)],
)
def test_the_figures_of_answers_milestones_and_untouched_worlds(category, replayed):
    mode, _, language = category.rpartition("_")
    met, untouched = 0, {True: [], False: []}
    for number, entry in enumerate(data.entries(DATA, mode, language)):
        for strict in (False, True):
            assert checker.end_to_end(entry, entry.gold, strict).valid
            worlds = apis(category, number, strict)
            assert worlds.states == []
            worlds.run("[done]")  # reaches the worlds and calls nothing
            if checker.end_to_end(entry, worlds.states, strict).valid:
                untouched[strict].append(number)
        worlds = apis(category, number)
        for text in entry.milestones[0]:
            if worlds.is_step(text):
                worlds.run(text)
        met += checker.end_to_end(entry, worlds.states).valid
    assert met == replayed
    assert untouched == {True: [], False: [7] if mode == "multi_turn" else []}


# ---------------------------------------------------------------- the harness


@pytest.mark.parametrize("name", ["acebench", "acebench-strict"])
@pytest.mark.parametrize("category", CATEGORIES)
def test_the_oracle_solves_every_entry_and_replay_agrees(name, category):
    domain = load(f"{name}/{category}")
    for task in domain.tasks("test"):
        agent = Oracle(solution(domain.entry(task), domain.start()))
        played = run(domain, task, agent)
        assert (played.reward, played.termination) == (1.0, Termination.AGENT_STOP), played.reason
        assert played.components == {"end_to_end": 1.0, "process": 1.0}
        stored = Trajectory.from_dict(json.loads(json.dumps(played.to_dict())))
        assert domain.grade(task, stored.messages, stored.termination).reward == 1.0


@settings(max_examples=60, deadline=None)
@given(st.integers(100_000, 10**9), st.sampled_from(["en", "zh"]), st.sampled_from(["", "-strict"]))
@example(161493, "zh", "")  # the last message has calls, and ends the conversation before they run
def test_a_stored_conversation_is_graded_as_it_was_live(seed, language, strict):
    """Whatever an agent writes, the record is UTF-8 JSON and its replay has the live verdict and states."""
    domain = load(f"acebench{strict}/agent_{language}")
    entry, agent, user = upstream.conversation(seed, language, DATA)
    found = upstream.ours(domain, entry, agent, user)
    live = found["trajectory"]
    text = json.dumps(live.to_dict(), ensure_ascii=False).encode("utf-8")
    stored = Trajectory.from_dict(json.loads(text))
    task = domain.task(entry.id)
    verdict = domain.grade(task, stored.messages, stored.termination)
    assert (verdict.reward, verdict.components, verdict.reason) == (live.reward, live.components, live.reason)
    if found["states"] is not None:
        assert domain.replay(task, stored.messages).apis.states == found["states"]


def test_forty_messages_and_the_two_that_cannot_end_it():
    turn, step = load("acebench/multi_turn_en"), load("acebench/multi_step_en")
    told = run(turn, turn.task("agent_multi_turn_0"), scripted("hm"))
    assert told.termination == Termination.TURN_CAP and told.reward == 0.0
    assert len(told.messages) == 2 + 40  # the greeting and the user's first words do not count
    told = run(turn, turn.task("agent_multi_turn_0"), scripted("[turn_on_wifi()]"))
    assert [m.role for m in told.messages[2:]] == ["assistant", "tool"] * 20
    told = run(step, step.task("agent_multi_step_0"), scripted("What now?"))
    assert [m.role for m in told.messages] == ["user", *["assistant", "user"] * 20]
    assert told.components["process"] == 0.0 and len(steps(told.messages, "multi_step")) == 20
    # Either side may end it, but not with the first two messages after the user's own.
    said = "finish conversation"
    told = run(turn, turn.task("agent_multi_turn_0"), scripted(said), [said])
    assert [m.role for m in told.messages[2:]] == ["assistant", "user", "assistant"]
    told = run(turn, turn.task("agent_multi_turn_0"), scripted("hm"), ["a", "b", f"well, {said}"])
    assert told.termination == Termination.USER_STOP and len(told.messages) == 2 + 4
    # Nor does a call run that says it in passing.
    send = "[send_message(sender_name='Eve', receiver_name='Frank', message='finish conversation')]"
    told = run(turn, turn.task("agent_multi_turn_0"), scripted("[turn_on_wifi()]", send))
    assert told.termination == Termination.AGENT_STOP
    assert steps(told.messages, "multi_turn") == ["[turn_on_wifi()]"]


def test_what_the_agent_is_shown():
    domain = load("acebench/agent_en")
    turn = scripted("Which?", "[turn_on_wifi(), get_latest_message_id()]", "[turn_on_wifi()]\n", "ok")
    run(domain, domain.task("agent_multi_turn_0"), turn, ["Hi", "agent"])
    prompt = words.own("en").prompts
    history = turn.script.prompts[3][1]["content"].partition("so far:\n")[2]
    assert turn.script.prompts[3][0]["content"] == prompt["turn_system"] + prompt["base"]
    assert (
        str(domain.entry(domain.task("agent_multi_turn_0")).functions) in turn.script.prompts[0][1]["content"]
    )
    assert history == (
        "user:Hi\nagent:Which?\nuser:agent\nagent:[turn_on_wifi(), get_latest_message_id()]\n"
        "execution:[{'status': True, 'message': 'Wi-Fi is on now'}, {'status': True, 'message': "
        "'The latest message has the id 4', 'message_id': 4}]\n"
        # With its newline the call went to the user, as words.
        "agent:[turn_on_wifi()]\n\nuser:agent\n"
    )
    step = scripted("Well,", "[check_balance(user_name='Eve')]", "[login_device()]")
    task = domain.task("agent_multi_step_0")
    run(domain, task, step)
    history = step.script.prompts[2][1]["content"].partition("so far: ")[2]
    assert history == (
        f"user:{domain.entry(task).question}\nexecution result:{prompt['nudge']}\n"
        "execution result:[500.0]\n\n"
    )


def test_a_model_user_sees_its_own_turns_as_system_messages():
    """The user as upstream prompts it, behind a real socket; the agent behind one too."""
    domain = load("acebench/multi_turn_en")
    task = domain.task("agent_multi_turn_0")
    lines = iter(
        ["I want to send a message.", "[turn_on_wifi()]", " Sent? ", "To Frank.", "finish conversation"]
    )
    with FakeServer(lambda request: chat(next(lines))) as server:

        async def converse():
            settings = EndpointSettings(base_url=server.url, model="m", retries=0)
            one, other = Endpoint(settings), Endpoint(settings, "agent")
            try:
                return await play(domain, task, EndpointAgent(other, {}), LlmUser(one, task))
            finally:
                await one.close()
                await other.close()

        told = asyncio.run(converse())
    asked = [[(m["role"], m["content"]) for m in r["messages"]] for r in server.requests]
    prompts = words.own("en").prompts
    system = prompts["user_base"].format(instruction=task.scenario.goal)
    assert asked[0] == [("system", system), ("user", prompts["greeting"])]
    # What the agent calls, and what that gives, is not for the user; and it reads its own words as "system".
    assert asked[3] == [*asked[0], ("system", "I want to send a message."), ("user", " Sent? ")]
    assert [m["role"] for m in server.requests[1]["messages"]] == ["system", "user"]
    assert not any(r.get("tools") for r in server.requests)
    assert told.messages[4].content == " Sent? " and told.termination == Termination.AGENT_STOP


def test_every_step_of_a_trained_agent_is_a_segment():
    domain = load("acebench/multi_step_zh")
    task = domain.tasks("train")[0]
    format = make_format("chatml")
    texts = ["[turn_on_wifi()]", "<tool_call>no</tool_call>", "[turn_on_wifi("]
    engine = ScriptEngine([(format.encode_assistant(Message("assistant", t)), "stop") for t in texts[:2]])
    engine.script.append((format.tokenizer.encode(texts[2]), "length"))
    done = format.encode_assistant(Message("assistant", "finish conversation"))
    engine.script.append((done, "stop"))
    agent = ModelAgent(format, engine, {}, sampling=Sampling(max_tokens=64), session="s", seed=0)
    told = run(domain, task, agent)
    said = [m.content for m in told.messages if m.role == "assistant"]
    # The text counts to the letter, whatever mua would read in it; and one that was cut goes on.
    assert said == [*texts, "finish conversation"]
    assert told.termination == Termination.AGENT_STOP
    assert len(told.trace.segments) == 4
    for segment, (prompt, ids) in zip(told.trace.segments, engine.seen["s"], strict=True):
        assert segment.ids == [*prompt, *ids]
        assert segment.mask == [0] * len(prompt) + [1] * len(ids)


# ---------------------------------------------------------------- upstream's faults, kept and mended


def test_misspelt_and_wrong_names():
    for category, number in (("multi_turn_en", 7), ("multi_step_zh", 0)):
        worlds = apis(category, number)
        entry = worlds.entry
        right = solution(entry, data.start(DATA, entry.language))
        assert right[-1].startswith("[add_reminder(")
        for last in (right[-1:], []):
            exact, strict = apis(category, number), apis(category, number, True)
            for text in [*right[:-1], *last, "[done]"]:
                exact.run(text)
                strict.run(text)
            # Upstream never looks at the reminders, which the answer files under a name that no world has.
            assert checker.end_to_end(entry, exact.states).valid
            assert checker.end_to_end(entry, strict.states, True).valid == bool(last)
    nonsense = [{"Moon": {}}] * len(worlds.entry.gold)
    assert checker.end_to_end(worlds.entry, nonsense).valid
    assert checker.end_to_end(worlds.entry, nonsense, True).error_type == "wrong classes"
    assert checker.end_to_end(worlds.entry, []).error_type == "wrong number of class"


def test_errors_and_unknown_functions():
    text = "[check_balance(user_name='Eve'), moon(), turn_on_wifi(x=1), login_device()]"
    # Entry 2 of multi_step and 12 of multi_turn have the food platform.
    turn, strict = apis("multi_turn_en", 12), apis("multi_turn_en", 12, True)
    assert turn.run(text).heard == list("Error during execution: {str(e)}")
    assert turn.states == []  # a step that failed leaves no states, as long as none did not
    heard = strict.run(text).heard
    assert heard == [500.0, "Error during execution: there is no function 'moon'"]
    step = apis("multi_step_en", 2).run(text).heard
    assert step[:2] == [500.0, 500.0]  # the unknown function repeats what the one before it gave
    assert step[2].startswith("Error during execution: ") and step[3]["status"] is True
    assert apis("multi_step_en", 2, True).run(text).heard[1].endswith("there is no function 'moon'")
    # As the very first, it is an error for upstream too.
    assert apis("multi_step_en", 2).run("[moon()]").heard[0].startswith("Error during execution: ")


@pytest.mark.parametrize(
    ("name", "over_api", "language"),
    [("acebench", True, "zh"), ("acebench", False, "en"), ("acebench-strict", True, "en")],
)
def test_english_multi_step_over_an_api_is_prompted_in_chinese(name, over_api, language):
    domain = load(f"{name}/multi_step_en")
    agent = scripted("finish conversation", over_api=over_api)
    run(domain, domain.tasks("test")[0], agent)
    assert agent.script.prompts[0][0]["content"] == words.own(language).prompts["step_system"]


# ---------------------------------------------------------------- hostile text


@settings(max_examples=300, deadline=None)
@given(upstream.HOSTILE)
@example("[send_message(message={'exit': {}})]")
@example("[turn_on_wifi(a=__import__('os').abort())]")
@example("[add_reminder(title='\\ud800', description=b'x', time=1j)]")
@example("[exit()]")
def test_no_text_breaks_the_worlds(text):
    """Nothing of it is evaluated (`abort` would end the tests), and the record can be written."""
    for category, number in (("multi_turn_zh", 15), ("multi_step_en", 14)):
        worlds = apis(category, number)
        if worlds.is_step(text):
            result = worlds.run(text)
            view = View(worlds.entry, words.own("en"), False)
            shown = view.read(text)
            assert len(shown) == len(result.results) or (len(shown), len(result.results)) == (1, 0)
            json.dumps([c.to_dict() for c in shown], ensure_ascii=False).encode()
        assert has_brackets(text) or worlds.entry.mode == "multi_step" or not worlds.is_step(text)


# ---------------------------------------------------------------- evaluation, files, training


def test_no_user_is_asked_for_where_nobody_plays_one():
    def usual(domain):
        config = load_config(None, [f"domain={domain}", "eval.split=test"])
        return asyncio.run(user_maker(None, config, config.eval_user, Players()))

    make, name = usual("acebench/multi_step_en")
    task = load("acebench/multi_step_en").tasks("test")[0]
    turn = asyncio.run(make(task, 0).reply([]))
    assert name == "none" and turn.text == task.scenario.goal
    with pytest.raises(MuaError, match="acebench/agent_en' has no agenda user; choose kind"):
        usual("acebench/agent_en")


def test_an_evaluation_has_the_agent_score_and_goes_on_where_it_stopped(tmp_path):
    domain = load("acebench/agent_en")
    made = Counter()

    def agent(task, session, seed):
        made[task.id] += 1
        right = "multi_step" in task.id or task.id.endswith(("0", "5"))
        return Oracle(solution(domain.entry(task), domain.start()) if right else [])

    def user(task, seed):
        return domain.user(task, seed) or upstream.ScriptedUser(upstream.Script(["go on"]))

    tasks = domain.tasks("test")
    wanted = EvalSettings(concurrency=7)
    first = asyncio.run(evaluate(domain, tasks, agent, user, wanted, out=tmp_path, name="ace"))
    assert first.benchmark["end_to_end"] == {"multi_turn": 0.2, "multi_step": 1.0}
    assert first.benchmark["agent_score"] == 0.6 and first.success == 26 / 50  # not the pooled rate
    assert first.benchmark["paper"]["agent_score"]["MUA-RL-32B"] == 82.5
    assert first.benchmark["words"] == "mua" and len(first.benchmark["data_hash"]) == 64
    file = tmp_path / "eval" / "ace.jsonl"
    whole = file.read_bytes()
    file.write_bytes(b"".join(whole.splitlines(keepends=True)[:30]) + b'{"torn')  # killed while it wrote
    made.clear()
    again = asyncio.run(evaluate(domain, tasks, agent, user, wanted, out=tmp_path, name="ace"))
    assert sum(made.values()) == 20 and file.read_bytes() == whole
    assert again.benchmark == first.benchmark
    assert json.loads((tmp_path / "eval" / "ace.json").read_text())["benchmark"]["agent_score"] == 0.6


def test_files_of_states_and_of_calls(tmp_path):
    english, chinese = (data.entries(DATA, "multi_turn", x) for x in ("en", "zh"))
    step = data.entries(DATA, "multi_step", "en")
    lines = [
        {"id": english[0].id, "result": english[0].gold, "process": []},
        {"id": english[7].id, "result": english[7].gold[:2], "process": list(english[7].milestones[0][:2])},
        {"id": english[20].id, "calls": ["Which?", *english[20].milestones[0]]},
        {"id": step[6].id, "calls": ["[add_reminder(title=b'x', description='', time='')]", "hm"]},
        {"id": chinese[0].id, "calls": ["[turn_on_wifi()]"], "language": "zh"},
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = []
    assert results.score("acebench", path, lambda line: out.append(json.loads(line))) == 0
    *verdicts, tally = out
    assert [(v["valid"], v["error_type"]) for v in verdicts] == [
        (True, ""),
        (False, "wrong number of class"),
        (True, ""),
        (False, "class attributes wrong"),
        (False, "class attributes wrong"),
    ]
    assert verdicts[1]["process"] == pytest.approx(2 / 3) and verdicts[3]["process"] == 0.0
    assert (tally["valid"], tally["invalid"], tally["missing"]) == (2, 3, 30 + 20 + 30 - 5)
    assert tally["end_to_end_accuracy"] == {
        "multi_turn_en": 0.667,
        "multi_step_en": 0.0,
        "multi_turn_zh": 0.0,
    }
    assert tally["agent_score"] == {"en": pytest.approx(1 / 3)}
    # Upstream's own file names say the language.
    place = tmp_path / "result_zh" / "gpt" / "data_agent_multi_turn_result.json"
    place.parent.mkdir(parents=True)
    place.write_text("".join(json.dumps({"id": e.id, "result": e.gold}) + "\n" for e in chinese))
    out.clear()
    results.score("acebench-strict", place, lambda line: out.append(json.loads(line)))
    assert out[-1]["end_to_end_accuracy"] == {"multi_turn_zh": 1.0} and out[-1]["missing"] == 0


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"id": "agent_multi_turn_0"}, "line 2: field 'result' is missing"),
        ({"result": []}, "line 2: field 'id' is missing"),
        ({"id": "agent_multi_turn_99", "calls": []}, "line 2: there is no entry 'agent_multi_turn_99'"),
        ({"id": "agent_multi_turn_1", "result": {}}, "line 2: field 'result' must be a list"),
        ({"id": "agent_multi_turn_1", "result": [[1]]}, "line 2: field 'result' must be a list"),
        ({"id": "agent_multi_turn_1", "calls": [1]}, "line 2: field 'calls' must be a list of texts"),
        ({"id": "agent_multi_turn_0", "calls": []}, "line 2: entry 'agent_multi_turn_0' \\(en\\) stands in"),
        ({"id": "agent_multi_turn_1", "calls": [], "language": "fr"}, "line 2: field 'language' is 'fr'"),
        ({"messages": [], "domain": "acebench/agent_en"}, "`mua score acebench/agent_en FILE`"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, why):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"id": "agent_multi_turn_0", "calls": []}) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(MuaError, match=why):
        results.score("acebench", path, lambda line: None)


def test_entries_can_be_trained_on_and_the_guard_knows_them():
    for part in ("multi_turn_en", "multi_step_zh", "agent_zh"):
        exact, strict = load(f"acebench/{part}"), load(f"acebench-strict/{part}")
        train, dev = exact.tasks("train"), exact.tasks("dev")
        check_no_noop(exact, train)
        check_no_overlap(train, dev, "dev")
        assert not {t.scenario.goal for t in train} & {t.scenario.goal for t in dev}
        for held_out in (exact.tasks("test"), strict.tasks("test")):
            with pytest.raises(MuaError, match="training task"):
                check_no_overlap(train, held_out, "test")
        twins = len(exact.tasks("test")) - len({t.fingerprint for t in exact.tasks("test")})
        assert twins == (part == "multi_turn_en")  # two English entries are the same but for their names
    with pytest.raises(MuaError, match="solved by doing nothing: agent_multi_turn_7"):
        check_no_noop(load("acebench/multi_turn_en"), load("acebench/multi_turn_en").tasks("test"))


def test_nothing_is_there_before_it_is_installed(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MUA_CACHE", str(tmp_path))
    for name in ("acebench/agent_en", "acebench-strict/agent_en"):
        with pytest.raises(MuaError, match="mua benchmarks install acebench"):
            load(name)
    with pytest.raises(MuaError, match="not the benchmark 'acebench'; it has no data_en"):
        store.install("acebench", tmp_path)
    broken = tmp_path / "broken"
    for language in ("en", "zh"):
        for place in (f"data_{language}", f"data_{language}/possible_answer"):
            (broken / place).mkdir(parents=True)
            for mode in ("multi_turn", "multi_step"):
                name = f"data_agent_{mode}.json"
                (broken / place / name).write_text((folder / place / name).read_text())
    file = broken / "data_en" / "data_agent_multi_turn.json"
    file.write_text(file.read_text().replace('"involved_classes"', '"classes"', 1))
    with pytest.raises(MuaError, match=r"agent_multi_turn_0: it is not as expected \(KeyError"):
        data.entries(broken, "multi_turn", "en")
