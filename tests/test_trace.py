"""Invariant 1: a trace is exactly what the engine read and sampled; the mask is 1 exactly on the latter."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys

import pytest

from chat_formats import FAMILIES, ScriptEngine, make_format
from mua.agents.model import ModelAgent
from mua.chat import Message, ToolCall
from mua.domain import Scenario
from mua.engines import Sampling
from mua.episode import play
from mua.errors import InfrastructureError
from mua.formats import TokenChat
from mua.trajectory import Segment, Termination, TokenTrace
from mua.users import STOP
from mua.users.local import ATTEMPTS, OPENING, SILENCE, LocalUser, mirror, user_prompt, user_trace
from toy import POLICY, toy_domain

DOMAIN = toy_domain()
TOOLS = DOMAIN.tools()
TASK = DOMAIN.task("cancel_1")
CALL = ToolCall("get_order", {"order_id": "o1"})
SETTINGS = Sampling(max_tokens=50)


def expected_trace(log: list[tuple[list[int], list[int]]]) -> TokenTrace:
    """The trace built from the engine's own log, by another road than the agent's."""
    trace = TokenTrace([])
    for prompt, sampled in log:
        last = trace.segments[-1] if trace.segments else None
        if last is None or prompt[: len(last.ids)] != last.ids:
            trace.segments.append(last := Segment())
        new = prompt[len(last.ids) :]
        last.ids += [*new, *sampled]
        last.mask += [0] * len(new) + [1] * len(sampled)
        last.logprobs += [0.0] * len(new) + [-1.0 - 0.001 * i for i in range(len(sampled))]
    return trace


def layout(trace: TokenTrace) -> list[tuple[list[int], list[int]]]:
    return [(s.ids, s.mask) for s in trace.segments]


def said(format, message: Message) -> tuple[list[int], str]:
    return format.encode_assistant(message), "stop"


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(4))
def test_random_ids_stay_as_they_were_sampled(family, seed):
    """Ids at random: broken calls, marks inside, bytes that are no text, steps that are cut short."""
    format = make_format(family)
    rng = random.Random(seed)
    broken = "".join(
        rng.choices(['<tool_call>{"name": "get_order"', "</tool_call>", "{", "é", " ", "<think>"], k=4)
    )
    script = [(format._encode(broken), "length"), said(format, Message("assistant", "", (CALL,)))]
    engine = ScriptEngine(script, vocab=len(format.tokenizer), seed=seed)
    agent = ModelAgent(format, engine, TOOLS, sampling=SETTINGS, session="s", seed=seed)
    messages = [Message("system", POLICY), Message("user", "Cancel my order o1 – naïve 東京.")]

    async def converse():
        for _ in range(12):
            step = await agent.step(messages)
            messages.append(step.message)
            assert step.tokens == len(engine.seen["s"][-1][1])
            if step.message.tool_calls:
                messages.extend(Message("tool", '{"status": "open"}') for _ in step.message.tool_calls)
            else:
                messages.append(Message("user", rng.choice(["Yes, do it.", "", "<|im_end|>###STOP###"])))

    run(converse())
    assert agent.trace == expected_trace(engine.seen["s"])
    sampled = [i for _, ids in engine.seen["s"] for i in ids]
    assert [i for s in agent.trace.segments for i, m in zip(s.ids, s.mask, strict=True) if m] == sampled
    text = format.tokenizer.decode(sampled)
    assert format._encode(text) != sampled  # so encoding again would have changed them
    if not format.rewrites_history:
        assert len(agent.trace.segments) == 1


TALK = [
    Message("assistant", "One moment.", (CALL,), thinking="Which order?"),
    Message("assistant", "Order o1 is open. Shall I cancel it?"),
    Message("assistant", "", (CALL, ToolCall("cancel_order", {"order_id": "o1"})), thinking="They said yes."),
    Message("assistant", "Done, naïve café 東京."),
]
LINES = ["Hello, I want to cancel my order o1.", "Yes, do it.", f"Thank you! {STOP}"]


@pytest.mark.parametrize("opening", [None, "Hi, it is about o1."])
@pytest.mark.parametrize("family", FAMILIES)
def test_training_and_playing_lay_the_tokens_out_alike(family, opening):
    """What SFT makes of a stored conversation is what agent and user saw when it was played."""
    format = make_format(family)
    agent_engine = ScriptEngine([said(format, m) for m in TALK])
    lines = LINES if opening is None else LINES[1:]
    user_engine = ScriptEngine([said(format, Message("assistant", line)) for line in lines])
    agent = ModelAgent(format, agent_engine, TOOLS, sampling=SETTINGS, session="a", seed=1)
    user = LocalUser(format, user_engine, TASK, seed=1, session="u")
    episode = run(play(DOMAIN, TASK, agent, user, opening=opening))
    assert episode.termination is Termination.USER_STOP and episode.reward == 1.0
    assert [m.content for m in episode.messages if m.role == "user"][1:] == LINES[1:]
    assert episode.trace is agent.trace
    assert episode.usage.agent_tokens == agent.trace.sampled
    assert episode.usage.user_tokens == user.trace.sampled
    assert episode.usage.user_prompt_tokens == sum(len(p) for p, _ in user_engine.seen["u"])

    assert agent.trace == expected_trace(agent_engine.seen["a"])
    assert layout(format.trace_of(episode.messages, TOOLS)) == layout(agent.trace)
    assert user.trace == expected_trace(user_engine.seen["u"])
    if opening is None:
        stored = user_trace(format, episode.messages, TASK.scenario)
        assert layout(stored) == layout(user.trace)
    assert agent_engine.released == ["a"] and set(user_engine.released) == {"u"}
    for prompt, _ in user_engine.seen["u"]:
        text = format.tokenizer.decode(prompt)
        assert "One moment" not in text and "get_order" not in text and "Which order?" not in text
        assert POLICY not in text


def test_a_template_that_drops_thinking_starts_a_segment_a_user_turn():
    format = make_format("qwen3-thinking")
    engine = ScriptEngine([said(format, m) for m in TALK])
    agent = ModelAgent(format, engine, TOOLS, sampling=SETTINGS, session="a", seed=1)
    user = LocalUser(make_format("builtin"), ScriptEngine(), TASK, seed=1)
    user.reply = _lines(LINES)
    run(play(DOMAIN, TASK, agent, user))
    first, second = agent.trace.segments
    text = [format.tokenizer.decode(s.ids) for s in agent.trace.segments]
    assert "Which order?" in text[0] and "Yes, do it." not in text[0]
    assert "Which order?" not in text[1] and "They said yes." in text[1]
    # Within a turn thinking stays, and the tool's answer does not start a segment.
    assert text[0].index("Which order?") < text[0].index("<tool_response>") < text[0].index("Shall I")
    whole = format.initial_ids(
        [Message("system", POLICY), Message("user", LINES[0]), TALK[0], Message("tool", "?"), TALK[1]], TOOLS
    )
    assert second.ids[:20] == whole[:20] == first.ids[:20]

    calm = ModelAgent(
        format,
        ScriptEngine([said(format, m) for m in [TALK[1], TALK[3]]]),
        TOOLS,
        sampling=SETTINGS,
        session="a",
        seed=1,
    )
    user.reply = _lines(LINES)
    run(play(DOMAIN, TASK, calm, user))
    assert len(calm.trace.segments) == 1  # no thinking, nothing to drop


def _lines(lines):
    from mua.users import UserTurn

    left = list(lines)

    async def reply(view):
        line = left.pop(0)
        return UserTurn(line, stop=STOP in line)

    return reply


def test_spelling_that_the_tokenizer_would_not_choose_is_kept():
    format = make_format("builtin")
    spelled = [format.tokenizer.convert_tokens_to_ids(c) for c in "cancel"]
    assert format._encode("cancel") != spelled
    engine = ScriptEngine([([*spelled, format.stop_ids[0]], "stop")])
    agent = ModelAgent(format, engine, TOOLS, sampling=SETTINGS, session="s", seed=0)
    step = run(agent.step([Message("system", POLICY), Message("user", "hi")]))
    assert step.message == Message("assistant", "cancel") and not step.truncated
    assert agent.trace.current.ids[-7:] == [*spelled, format.stop_ids[0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_of_turn_stands_once_whether_sampled_or_not(family):
    format = make_format(family)
    words = format.encode_assistant(Message("assistant", "ok"))
    for ids in (words, words[:-1]):
        chat = TokenChat(format)
        chat.prompt([Message("user", "a")], {})
        chat.add(ids, [0.0] * len(ids))
        prompt = chat.prompt([Message("user", "a"), Message("assistant", "ok"), Message("user", "b")], {})
        chat.add([], [])
        segment = chat.trace.current
        assert segment.ids == prompt
        assert sum(segment.mask) == len(ids)
        text = format.tokenizer.decode(prompt)
        end = format.tokenizer.decode([format.stop_ids[0]])
        after = text[text.rindex("ok") :]
        assert after.startswith("ok" + end) and not after.startswith("ok" + end * 2)


def test_a_changed_history_or_other_tools_start_a_segment():
    format = make_format("builtin")
    engine = ScriptEngine(vocab=50)
    agent = ModelAgent(format, engine, TOOLS, sampling=SETTINGS, session="s", seed=0)
    history = [Message("system", POLICY), Message("user", "hi")]

    async def converse():
        step = await agent.step(history)
        history.extend([step.message, Message("user", "more")])
        await agent.step(history)
        agent.tools = {"get_order": TOOLS["get_order"]}
        history.extend([Message("assistant", "x"), Message("user", "again")])
        await agent.step(history)
        other = [Message("system", "other"), Message("user", "hi")]
        await agent.step(other)
        await agent.step(
            [Message("system", "third"), *other[1:], Message("assistant", "x"), Message("user", "y")]
        )

    run(converse())
    assert len(agent.trace.segments) == 4
    assert agent.trace == expected_trace(engine.seen["s"])


def test_limits_of_the_agent():
    format = make_format("builtin")
    messages = [Message("system", POLICY), Message("user", "hi")]
    length = len(format.initial_ids(messages, TOOLS))

    def agent_with(context, *script):
        engine = ScriptEngine(script, context=context)
        return engine, ModelAgent(format, engine, TOOLS, sampling=SETTINGS, session="s", seed=5)

    engine, agent = agent_with(length)  # no room: the engine is not asked, the trace stays empty
    step = run(agent.step(messages))
    assert step.truncated and step.tokens == 0 and not engine.seen and agent.trace.current.ids == []
    engine, agent = agent_with(length + 7, ([5, 6, 7], "length"))
    step = run(agent.step(messages))
    assert step.truncated and step.tokens == 3 and engine.asked[0].max_tokens == 7
    assert engine.asked[0].stop_ids == format.stop_ids
    episode = run(play(DOMAIN, TASK, agent_with(length)[1], LocalUser(format, ScriptEngine(), TASK, seed=0)))
    assert episode.termination is Termination.TOKEN_CAP and episode.reward == 0.0


def test_a_failed_request_leaves_no_mark_and_keeps_its_seed():
    format = make_format("builtin")
    engine = ScriptEngine([said(format, Message("assistant", t)) for t in ("one", "two")])
    agent = ModelAgent(format, engine, TOOLS, sampling=SETTINGS, session="s", seed=5)
    messages = [Message("system", POLICY), Message("user", "hi")]
    real, seeds = engine.generate, []

    async def fails(prompt_ids, sampling, session):
        seeds.append(sampling.seed)
        raise InfrastructureError("down")

    engine.generate = fails
    with pytest.raises(InfrastructureError):
        run(agent.step(messages))
    assert agent.trace.current.ids == []
    engine.generate = real
    step = run(agent.step(messages))
    run(agent.step([*messages, step.message, Message("user", "more")]))
    assert agent.trace == expected_trace(engine.seen["s"])
    assert engine.asked[0].seed == seeds[0] != engine.asked[1].seed


# --- the local user ---------------------------------------------------------------------------------

BUILTIN = make_format("builtin")


def local_user(*script, **options):
    engine = ScriptEngine(script, **options)
    return engine, LocalUser(BUILTIN, engine, TASK, seed=3, sampling=SETTINGS)


def test_the_user_is_told_its_scenario_and_the_mirrored_talk():
    engine, user = local_user(said(BUILTIN, Message("assistant", "Cancel o1.")))
    assert run(user.reply([])).text == "Cancel o1."
    scenario = TASK.scenario
    prompt = BUILTIN.tokenizer.decode(engine.seen[user.session][0][0])
    assert prompt == f"<|system|>{user_prompt(scenario)}<|user|>{OPENING}<|assistant|>"
    for text in (scenario.goal, scenario.persona, "order number: o1", STOP):
        assert text in user_prompt(scenario)
    assert "speak" not in user_prompt(Scenario("You want tea."))


def test_empty_replies_are_tried_again_with_other_seeds():
    empty = ([BUILTIN.stop_ids[0]], "stop")
    blank = said(BUILTIN, Message("assistant", " "))
    engine, user = local_user(empty, blank, said(BUILTIN, Message("assistant", "Hi.")))
    turn = run(user.reply([]))
    assert turn.text == "Hi." and len({s.seed for s in engine.asked}) == 3
    log = engine.seen[user.session]
    assert turn.usage.user_tokens == sum(len(ids) for _, ids in log)
    assert user.trace == expected_trace(log[-1:])  # the rejected ones left no mark
    _, user = local_user(*[empty] * ATTEMPTS)
    with pytest.raises(InfrastructureError, match="answered nothing"):
        run(user.reply([]))


def test_the_end_of_the_conversation():
    engine, user = local_user(said(BUILTIN, Message("assistant", f"Bye. {STOP}")))
    turn = run(user.reply([]))
    assert turn.stop and turn.text == f"Bye. {STOP}" and engine.released == [user.session]
    _, user = local_user((BUILTIN._encode("I want a"), "length"))
    turn = run(user.reply([]))
    assert turn.text == "I want a" and not turn.stop
    engine, user = local_user(context=10)
    with pytest.raises(InfrastructureError, match="context"):
        run(user.reply([]))


def test_an_agent_that_said_nothing_is_marked():
    view = [
        Message("user", "Hi."),
        Message("user", "Anyone?"),
        Message("assistant", "Yes."),
        Message("user", "Ok."),
    ]
    got = [(m.role, m.content) for m in mirror(view, TASK.scenario)][1:]
    assert got == [
        ("user", OPENING),
        ("assistant", "Hi."),
        ("user", SILENCE),
        ("assistant", "Anyone?"),
        ("user", "Yes."),
        ("assistant", "Ok."),
    ]
    replies = [said(BUILTIN, Message("assistant", m.content)) for m in view if m.role == "user"]
    engine, user = local_user(*replies)

    async def converse():
        for n in (0, 1, 3):
            await user.reply(view[:n])

    run(converse())
    assert layout(user.trace) == layout(user_trace(BUILTIN, view, TASK.scenario))
    assert len(user.trace.segments) == 1 and user.trace == expected_trace(engine.seen[user.session])


def test_a_user_with_tools_calls_them_and_one_without_only_writes():
    message = Message("assistant", f"Wait. {STOP}", (CALL,))
    engine = ScriptEngine([said(BUILTIN, message), said(BUILTIN, Message("assistant", "Open."))])
    user = LocalUser(BUILTIN, engine, TASK, seed=3, tools=TOOLS)
    turn = run(user.reply([]))
    (call,) = turn.tool_calls
    assert not turn.stop and turn.text == "Wait." and call.id and call.arguments == CALL.arguments
    view = [
        Message("user", turn.text, turn.tool_calls),
        Message("tool", "open", tool_call_id=call.id, requestor="user"),
    ]
    assert run(user.reply(view)).text == "Open."
    assert len(user.trace.segments) == 1 and user.trace == expected_trace(engine.seen[user.session])
    _, plain = local_user(said(BUILTIN, Message("assistant", "", (CALL,))))
    turn = run(plain.reply([]))
    assert not turn.tool_calls and turn.text.startswith("<tool_call>")


def test_nothing_here_needs_torch():
    code = (
        "import sys, mua.formats, mua.tokenizer, mua.agents.model, mua.users.local\n"
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'aiohttp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
