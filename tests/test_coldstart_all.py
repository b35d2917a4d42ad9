"""`mua coldstart --all`: what verification lets through, what it keeps out, and the files it leaves."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
from types import SimpleNamespace

import pytest

from mua import pipeline
from mua.agents import AgentStep
from mua.agents.retrying import Retrying
from mua.chat import Message, ToolCall
from mua.coldstart import dataset
from mua.coldstart.conversations import Dropped, conversations, play_expert
from mua.coldstart.duplicates import THRESHOLD, Seen, shingles, similarity
from mua.coldstart.verification import CAUSES, DUPLICATE, NOT_GOLD, RULES, Verification
from mua.config import load_config
from mua.database import canonical_text
from mua.domain import Scenario, Task
from mua.domains import load
from mua.episode import Limits
from mua.errors import MuaError
from mua.faults import FaultSettings
from mua.trajectory import Termination, Trajectory
from mua.users.fidelity import AS_AGENT, EARLY, INVENTED, cause, unfaithful, wishes

RENTAL = load("property_rental")


@pytest.fixture
def mua(mua, monkeypatch):
    """Runs a command in this process, without MCP servers: (exit code, standard output, standard error)."""

    monkeypatch.setattr(dataset, "MCP_EXAMPLES", ())
    monkeypatch.setattr(dataset, "smollm2_tokens", lambda: None)  # seconds to load
    return mua


def talk(domain=RENTAL, kind="pay", seed=1, number=0):
    task = [t for t in domain.tasks("train") if t.kind == kind][number]
    return task, asyncio.run(play_expert(domain, task, seed, Limits()))


def changed(played: Trajectory, position: int, **how) -> Trajectory:
    messages = list(played.messages)
    messages[position] = dataclasses.replace(messages[position], **how)
    return dataclasses.replace(played, messages=messages)


def last(played: Trajectory, role: str, calls: bool = False) -> int:
    return max(
        i
        for i, m in enumerate(played.messages)
        if m.role == role and bool(m.tool_calls) == calls and m.content
    )


# ---------------------------------------------------------------- what is dropped


def why(task, played, verification=None) -> str:
    return (verification or Verification(RENTAL)).examine(task, played)[0]


def test_a_good_conversation_is_kept_and_each_planted_fault_is_found():
    task, good = talk()
    assert why(task, good) == ""
    user, agent = last(good, "user"), last(good, "assistant")
    write = max(i for i, m in enumerate(good.messages) if m.tool_calls)
    yes = write - 1

    without = [m for i, m in enumerate(good.messages) if i not in (write, write + 1)]
    assert why(task, dataclasses.replace(good, messages=without)) == NOT_GOLD
    assert why(task, dataclasses.replace(good, termination=Termination.TURN_CAP)) == "turn_cap"
    assert why(task, changed(good, yes, content="Let me think about it.")) == RULES
    told = changed(good, user, content="No. By the way, my flat is number C99999. ###STOP###")
    assert why(task, told) == INVENTED
    assert why(task, changed(good, user, content="Is there anything else I can do for you?")) == AS_AGENT
    asked = changed(good, agent, content="That is done. In which month do you want to pay the rest?")
    assert why(task, asked) == EARLY


def test_near_duplicates_are_found_and_templates_about_other_rows_are_not():
    seen = Verification(RENTAL)
    task, first = talk()
    assert why(task, first, seen) == ""
    assert why(task, first, seen) == DUPLICATE
    reworded = changed(first, last(first, "user"), content="No, that is really all for today. ###STOP###")
    assert why(task, reworded, seen) == DUPLICATE
    assert all(why(*talk(number=n), seen) == "" for n in range(1, 12))


def test_similarity_counts_ids_and_decides_exactly():
    one = [Message("user", "please pay charge C10001 of my lease")]
    other = [Message("user", "please pay charge C10002 of my lease")]
    # five runs of three words each, of which those without the number are shared
    assert similarity(shingles(one), shingles(other)) == pytest.approx(2 / 8)
    words = [f"w{n}" for n in range(100)]
    for cut in range(0, 60, 3):
        pair = [Message("user", " ".join(words))], [Message("user", " ".join(words[cut:]))]
        seen = Seen()
        assert seen.twin("a", pair[0]) is None
        near = similarity(*map(shingles, pair)) >= THRESHOLD
        assert (seen.twin("b", pair[1]) == "a") is near, cut


# ---------------------------------------------------------------- users who stray

SCENARIO = Scenario(
    goal='You want to reserve "Silent Harbour" for a visit. Say who you are only when asked. '
    "After that, you want to change your phone to 5551234.",
    facts={"card": "2104", "name": "Ada Moss"},
    persona="You are brief.",
)


def strayed(*messages: Message, end=Termination.USER_STOP, tools=()) -> list[str]:
    found = unfaithful(Task("t", "k", SCENARIO, ()), messages, end, tools)
    return sorted({cause(finding) for finding in found})


def said(*turns: str, end="No, bye. ###STOP###"):
    """User and agent in turn, up to a goodbye."""
    roles = ("user", "assistant")
    return [*(Message(roles[i % 2], text) for i, text in enumerate(turns)), Message("user", end)]  # type: ignore[arg-type]


HONEST = (
    "Hi! Silent Harbour, could you put a reservation on it? Thanks.",
    "Your card number?",
    "I'm Ada Moss, card 2104.",
    "Reserved at Northside. Anything else?",
    "And my phone should be changed: 5551234.",
    "Done. Anything else?",
)


def test_a_user_in_its_own_words_is_true_to_its_scenario():
    assert wishes(SCENARIO.goal) == ['reserve "Silent Harbour" for a visit', "change your phone to 5551234"]
    assert strayed(*said(*HONEST)) == []
    # what the agent said first is no invention, nor what its own tools answered
    assert strayed(*said(*HONEST, end="Northside it is. No, bye. ###STOP###")) == []
    tool = [
        Message("user", tool_calls=(ToolCall("look", {}, "c1"),)),
        Message("tool", "screen 77 is dark", tool_call_id="c1", requestor="user"),
        Message("user", "Screen 77 is dark."),
    ]
    assert strayed(*tool, *said(*HONEST), tools=("look",)) == []
    assert strayed(*tool, *said(*HONEST)) == [AS_AGENT]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("My card is 2105.", INVENTED),
        ("I was born on 1990-02-01.", INVENTED),
        ("It is for my friend Bob.", INVENTED),
        ("Write to ada@example.org, please.", INVENTED),
        ("it is for my friend bob.", INVENTED),
        ("How can I help you today?", AS_AGENT),
        ("May I see your membership, please?", AS_AGENT),
        ("I will connect you with someone who can.", AS_AGENT),
        ("Unfortunately, our rules do not allow that.", AS_AGENT),
        ("Your reservation has been made.", AS_AGENT),
        ("Shall I go ahead (yes/no)?", AS_AGENT),
        ('<tool_call>{"name": "reserve"}</tool_call>', AS_AGENT),
    ],
)
def test_planted_words_of_a_user_are_found(words, found):
    turns = [*HONEST[:2], f"{HONEST[2]} {words}", *HONEST[3:]]
    assert strayed(*said(*turns)) == [found]


@pytest.mark.parametrize(
    "words",
    [
        "What is your policy on that? I appreciate your kind help.",
        "I can give you my number. I will send you the rest later.",
        "I followed your instructions, what would you like me to do next?",
        "Please transfer me to a human agent, I will get back to you.",
        "Thank you for your help, have a great day!",
        "What do you mean? My friend told me so.",
    ],
)
def test_what_a_person_says_to_a_service_is_not_the_agents(words):
    assert strayed(*said(*HONEST[:2], f"{HONEST[2]} {words}", *HONEST[3:])) == []


def test_leaving_while_the_agent_looks_is_early():
    talk = said(*HONEST[:5], "Just a second, I am checking that.")
    assert strayed(*talk) == [EARLY]


def test_leaving_early_is_found_but_only_when_the_user_left():
    assert strayed(*said(*HONEST[:4])) == [EARLY]  # the second request was never made
    assert strayed(*said(*HONEST[:4]), end=Termination.TURN_CAP) == []
    assert strayed(*said(*HONEST[:5], "Shall I change it to 5551234?")) == [EARLY]
    assert strayed(*said()) == [EARLY]


# ---------------------------------------------------------------- the command


def test_the_whole_command(mua, tmp_path):
    out = tmp_path / "set"
    code, shown, _ = mua("coldstart", "--all", "--out", out, "--conversations", "60", "--seed", "3")
    assert code == 0 and "60 conversations" in shown
    path = out / "conversations.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 60
    assert {one["domain"] for one in lines} == set(dataset.SYNTHETIC)
    assert len({(one["domain"], one["fingerprint"]) for one in lines}) == 60
    for one in lines:
        domain = load(one["domain"])
        assert domain.task(one["task_id"]) in domain.tasks("train")
        assert one["gold_digest"] == one["final_digest"] and one["reward"] == 1.0
        assert {"kind", "user", "persona", "goal", "facts", "seed"} <= one.keys()
        assert [t["function"]["name"] for t in one["tools"]] == list(domain.tools())
        assert one["messages"][0] == {"role": "system", "content": domain.policy.strip()}
    assert json.loads((out / "dropped.json").read_text())[RULES] == 0
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"mua coldstart --all --out {out} --conversations 60 --seed 3" in card
    assert "license: apache-2.0" in card and "| library | 12 |" in card

    behaved = [one for one in lines if one["persona"] not in ("", "plain")]
    assert 20 <= len(behaved) <= 40 and all(one["persona_text"] for one in behaved)
    assert f"| all | 60 | {round(100 * len(behaved) / 60)}% |" in card

    code, shown, _ = mua("score", path)
    assert (code, json.loads(shown.splitlines()[-1])) == (0, {"agree": 60, "disagree": 0})
    code, _, err = mua("score", "library", path)
    assert code == 1 and "mua score course_registration" in err

    for one, line in zip(lines, (out / "sft.jsonl").read_text(encoding="utf-8").splitlines(), strict=True):
        example = json.loads(line)
        assert example["messages"][-1]["role"] == "assistant"
        assert json.loads(example["tools"]) == one["tools"]
        calls = [c["id"] for m in example["messages"] for c in m.get("tool_calls", ())]
        assert calls == [m["tool_call_id"] for m in example["messages"] if m["role"] == "tool"] or (
            one["termination"] == "agent_transfer"
        )
        assert not any(m["role"] == "user" and "tool_calls" in m for m in example["messages"])

    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert before.keys() == {"README.md", "dropped.json", "sft.jsonl", "conversations.jsonl"}
    assert mua("coldstart", "--all", "--out", out, "--conversations", "60", "--seed", "3")[0] == 0
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_calls_that_fail_are_made_again_and_the_conversation_ends_right():
    made = asyncio.run(dataset.build([load("meeting_rooms"), RENTAL], 60, 0))
    kinds = collections.Counter(m["fault"] for one in made.lines for m in one["messages"] if m.get("unrun"))
    assert set(kinds) == {"transient", "timeout", "permission"}
    for one in made.lines:
        calls = {c["id"]: c["function"] for m in one["messages"] for c in m.get("tool_calls", ())}
        answers = [m for m in one["messages"] if m["role"] == "tool"]
        for place, answer in enumerate(answers):
            if answer.get("unrun"):
                later = [calls[a["tool_call_id"]] for a in answers[place + 1 :] if not a.get("unrun")]
                assert calls[answer["tool_call_id"]] in later, one["task_id"]
        lost = sum(bool(a.get("unrun")) for a in answers)
        assert lost == sum(one.get("faults", {}).get(kind, 0) for kind in kinds)
        example = dataset.for_sft(one)["messages"]
        assert not any({"fault", "unrun", "error"} & m.keys() for m in example)
        assert sum("Try again." in m["content"] or "did not answer" in m["content"] for m in example) >= lost


def test_personas_and_faults_are_set_or_turned_off():
    plain = asyncio.run(dataset.build([RENTAL], 12, 0, personas=None, faults=None))
    assert {one["persona"] for one in plain.lines} == {""}
    assert not any("fault" in m for one in plain.lines for m in one["messages"])
    assert [one["persona_text"] for one in plain.lines] == [
        RENTAL.task(one["task_id"]).scenario.persona for one in plain.lines
    ]
    stale = asyncio.run(dataset.build([RENTAL], 40, 0, faults=FaultSettings(stale=0.5)))
    assert len(stale.lines) == 40
    with pytest.raises(MuaError, match=r"set coldstart\.faults\.renamed to 0"):
        asyncio.run(dataset.build([RENTAL], 1, 0, faults=FaultSettings(renamed=0.1)))
    terse = asyncio.run(dataset.build([RENTAL], 12, 0, personas={"terse": 1}, faults=None))
    assert {one["persona"] for one in terse.lines} == {"terse"}
    assert all("as few words as you can" in one["persona_text"] for one in terse.lines)


def test_an_expert_looks_before_it_repeats_a_write_of_unknown_end():
    class Plays:
        trace = None

        def close(self): ...

        async def step(self, messages):
            said = [m.content for m in messages if m.role == "tool"]
            name = "pay_charge" if said and said[-1] == "read" else "get_charge"
            return AgentStep(Message("assistant", tool_calls=(ToolCall(name, {"n": len(said)}),)))

    tools = {"get_charge": SimpleNamespace(effect="read"), "pay_charge": SimpleNamespace(effect="write")}
    agent, messages = Retrying(Plays(), tools), [Message("user", "Pay it.")]  # type: ignore[arg-type]
    timeout = "Error: X did not answer within 30 seconds. It may have been carried out or not; look first."
    refused = "Error: that charge is paid already."
    passing = "Error: X is unavailable for the moment, nothing was changed. Try again."
    called = []
    for answer, error in (
        *((passing, True), ("read", False), (timeout, True), (passing, True), ("read", False)),
        *((passing, True), (refused, True)),
    ):
        step = asyncio.run(agent.step(messages))
        called.append((step.message.tool_calls[0].name, step.message.tool_calls[0].arguments["n"]))
        messages += [step.message, Message("tool", answer, tool_call_id="1", error=error)]
    look, pay = ("get_charge", 0), ("pay_charge", 2)
    assert called == [look, look, pay, look, look, pay, pay]
    # a refusal of the domain's own is for the agent itself
    assert asyncio.run(agent.step(messages)).message.tool_calls[0].arguments == {"n": 7}


# ---------------------------------------------------------------- a run's own cold start


def test_a_run_verifies_as_the_set_does(tmp_path):
    """What `conversations` and a file of somebody else's let through, and the counts that are left."""
    _, good = talk()
    write = max(i for i, m in enumerate(good.messages) if m.tool_calls)
    stored = [good, good, changed(good, write - 1, content="Let me think about it.")]
    stored.append(changed(good, last(good, "user"), content="No. My flat is number C99999. ###STOP###"))
    file = tmp_path / "theirs.jsonl"
    file.write_text("".join(json.dumps(t.to_dict()) + "\n" for t in stored))

    def kept(checks: str) -> tuple[int, dict]:
        settings = [f"coldstart.file={file}", "domain=property_rental", f"coldstart.checks={checks}"]
        out = tmp_path / checks
        run = pipeline.open_run(load_config(None, [*settings, "eval.same_user=true"]), out)
        with run.folder:
            number = len(asyncio.run(pipeline._conversations(run, "coldstart", "train")))
        counts = pipeline.coldstart_counts(out)["coldstart.jsonl"]
        assert counts["kept"] == number
        return number, counts["dropped"]

    assert kept("[rules,user,duplicates]") == (1, {DUPLICATE: 1, RULES: 1, INVENTED: 1})
    assert kept("[user]") == (3, {INVENTED: 1})
    assert kept("[]") == (4, {})


def test_tasks_come_again_until_there_are_no_other_words():
    tasks = [t for t in RENTAL.tasks("train") if t.kind == "pay"][:3]
    dropped = Dropped()
    kept = asyncio.run(conversations(RENTAL, tasks, 500, 0, dropped=dropped))
    assert 3 < len(kept) < 100 and set(dropped.reasons) == {DUPLICATE}
    again = asyncio.run(conversations(RENTAL, tasks, 30, 0, checks=()))
    assert len(again) == 30


def test_the_quickstarts_teacher_breaks_rules_on_purpose():
    recipe = load_config("quickstart").coldstart
    assert (recipe.hasty, recipe.checks, recipe.personas, recipe.faults) == (0.8, ("user",), {}, None)
    desk = load("library:desk")
    with pytest.raises(MuaError, match=r"leave 'rules' out of coldstart\.checks"):
        asyncio.run(conversations(desk, desk.tasks("cold"), 60, 0, hasty=1.0))


# ---------------------------------------------------------------- files


def test_a_tampered_line_disagrees(mua, tmp_path):
    made = asyncio.run(dataset.build([RENTAL], 3, 0))
    write = next(m for m in reversed(made.lines[1]["messages"]) if m.get("tool_calls"))
    write["tool_calls"][0]["function"]["arguments"] = "{}"
    dataset.write(made, tmp_path, "by hand")
    code, shown, _ = mua("score", tmp_path / "conversations.jsonl")
    assert (code, json.loads(shown.splitlines()[-1])) == (1, {"agree": 2, "disagree": 1})


def test_what_is_dropped_is_made_up_for_and_counted():
    """An expert that takes silence for consent: where people agree, the end state is right all the same."""

    def careless(world, user, seed):
        expert = RENTAL.expert(world, user, seed)  # type: ignore[misc]

        def propose(text):
            expert.withdrawn = False
            return True
            yield

        expert.propose = propose
        return expert

    domain = dataclasses.replace(RENTAL, expert=careless)
    made = asyncio.run(dataset.build([domain, load("library")], 40, 0))
    assert len(made.kept("library")) == 20 == len(made.kept(domain.name))
    dropped = made.dropped[domain.name]
    assert dropped[RULES] > 5 and dropped[NOT_GOLD] > 0
    assert made.causes() == {**dict.fromkeys(CAUSES, 0), **dropped}


def test_a_small_domain_gives_what_it_has_and_the_others_more():
    small = dataclasses.replace(RENTAL, name="small", load_split=lambda s: RENTAL.tasks(s)[:4])
    made = asyncio.run(dataset.build([load("library"), small], 20, 0))
    assert [len(made.kept(d)) for d in ("library", "small")] == [16, 4]


def test_a_write_that_is_cut_off_leaves_no_half_file(tmp_path):
    made = asyncio.run(dataset.build([RENTAL], 2, 0))
    dataset.write(made, tmp_path, "by hand")
    before = (tmp_path / "conversations.jsonl").read_bytes()
    made.lines[1] = {**made.lines[1], "kind": {"no JSON"}}
    with pytest.raises(TypeError):
        dataset.write(made, tmp_path, "by hand")
    assert (tmp_path / "conversations.jsonl").read_bytes() == before


def test_domains_that_cannot_be_loaded_are_left_out_in_one_line(mua, monkeypatch, tmp_path):
    def refuse(name):
        if name in ("shop", "office"):
            raise MuaError("the server\n cannot be started")
        return load(name)

    monkeypatch.setattr(dataset, "load", refuse)
    monkeypatch.setattr(dataset, "MCP_EXAMPLES", ("shop", "office"))
    code, _, err = mua("coldstart", "--all", "--out", tmp_path, "--conversations", "5")
    assert code == 0
    assert "left out: shop, office: the server cannot be started\n" in err
    assert "Not in it: shop, office: the server cannot be started" in (tmp_path / "README.md").read_text()


def test_options_that_do_not_go_together(mua, tmp_path):
    code, _, err = mua("coldstart", "--all", "--out", tmp_path, "seed=1")
    assert code == 1 and "takes no other settings" in err
    code, _, err = mua("coldstart", "--all", "--out", tmp_path, "limits.turns=3")
    assert code == 1 and "--agent endpoint:NAME" in err
    code, _, err = mua("coldstart", "--out", tmp_path, "--seed", "1")
    assert code == 1 and "go with --all" in err


def test_stored_conversations_are_plain_data():
    made = asyncio.run(dataset.build([load("meeting_rooms")], 8, 1))
    assert canonical_text(json.loads(json.dumps(made.lines))) == canonical_text(made.lines)
    hidden = [m for one in made.lines for m in one["messages"] if m.get("requestor") == "user"]
    assert hidden
    assert not any("requestor" in m for one in made.lines for m in dataset.for_sft(one)["messages"])
