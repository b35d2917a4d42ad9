"""A person at the terminal, driven by injected lines and through a real pty."""

import asyncio
import io
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mua.agents.human import HumanAgent
from mua.chat import Message
from mua.episode import play
from mua.tools import Tool
from mua.trajectory import Termination
from mua.users.human import HumanQuit, HumanUser, parse_call
from toy import ScriptAgent, ScriptUser, toy_domain

TOOLS = toy_domain().tools()


class Terminal:
    """Types the given lines, then end of input; `text` is what was shown."""

    def __init__(self, *lines: str):
        self.lines = list(lines)
        self.out = io.StringIO()
        self.show = Console(file=self.out, width=100).print

    def ask(self, prompt: str) -> str:
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)

    @property
    def text(self) -> str:
        return self.out.getvalue()


def play_user(agent: ScriptAgent, *lines: str):
    domain, terminal = toy_domain(), Terminal(*lines)
    task = domain.task("cancel_11")
    user = HumanUser(task, ask=terminal.ask, show=terminal.show)
    return asyncio.run(play(domain, task, agent, user)), terminal


def play_agent(user: ScriptUser, *lines: str):
    domain, terminal = toy_domain(), Terminal(*lines)
    agent = HumanAgent(domain.tools(), ask=terminal.ask, show=terminal.show)
    return asyncio.run(play(domain, domain.task("cancel_11"), agent, user)), terminal


def test_a_person_plays_the_user_and_the_end_is_scored():
    agent = ScriptAgent("Sure?", ("cancel_order", {"order_id": "o11"}), "Cancelled.")
    t, terminal = play_user(agent, "", "/card", "Cancel o11", "yes", "/stop")
    assert (t.reward, t.termination, t.user) == (1.0, Termination.USER_STOP, "human")
    assert [m.content for m in t.messages if m.role == "user"] == ["Cancel o11", "yes", "###STOP###"]
    assert terminal.text.count("You want to cancel your order o11.") == 2
    assert "order number: o11" in terminal.text and "Sure?" in terminal.text
    assert "cancel_order" not in terminal.text and "You work for a shop" not in terminal.text


def test_end_of_input_stops_the_user_and_quit_leaves_unscored():
    t, _ = play_user(ScriptAgent())
    assert (t.termination, t.reward) == (Termination.USER_STOP, 0.0)
    agent = ScriptAgent()
    with pytest.raises(HumanQuit):
        play_user(agent, "hello", "/quit")
    assert agent.closed == 1


def test_text_from_models_is_shown_as_text():
    _, terminal = play_user(ScriptAgent("[bold]hi[/] \x1b[31mred\x07 naïve"), "hello")
    assert "[bold]hi[/] [31mred naïve" in terminal.text and "\x1b[31m" not in terminal.text


def test_a_user_with_tools_calls_them():
    terminal = Terminal("/tools", "/do get_order", "/do get_order order_id=o1")
    user = HumanUser(toy_domain().task("cancel_11"), ask=terminal.ask, show=terminal.show, tools=TOOLS)
    turn = asyncio.run(user.reply([]))
    assert [(c.name, dict(c.arguments)) for c in turn.tool_calls] == [("get_order", {"order_id": "o1"})]
    assert "'order_id' is missing" in terminal.text and "cancel_order(order_id: string" in terminal.text


def test_a_person_plays_the_agent():
    t, terminal = play_agent(
        ScriptUser("Cancel o11!", "yes"),
        "/tools",
        "/policy",
        "get_order order=o11",
        "get_order order_id=o11",
        "/say cancel_order it is?",
        'cancel_order order_id=o11 reason="changed my mind"',
        "Done.",
    )
    assert (t.reward, t.usage.tool_errors) == (1.0, 0)
    calls = [(c.name, dict(c.arguments)) for m in t.messages for c in m.tool_calls]
    assert calls == [
        ("get_order", {"order_id": "o11"}),
        ("cancel_order", {"order_id": "o11", "reason": "changed my mind"}),
    ]
    assert "cancel_order it is?" in [m.content for m in t.messages]
    for shown in ("You work for a shop", "get_order(order_id: string)", "Cancel o11!", '"status": "open"'):
        assert shown in terminal.text
    assert "unknown argument 'order'" in terminal.text


def test_end_of_input_and_quit_leave_the_agents_seat():
    for lines in ((), ("/quit",)):
        with pytest.raises(HumanQuit):
            play_agent(ScriptUser("Hi"), *lines)


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("set_items order_id=o1 count=5", {"order_id": "o1", "count": 5}),
        ("set_items order_id=5 count=5 gift=true", {"order_id": "5", "count": 5, "gift": True}),
        ('set_items {"order_id": "o 1", "count": 5}', {"order_id": "o 1", "count": 5}),
        (r'set_items  order_id="a \"b\" = c"   count=1 ', {"order_id": 'a "b" = c', "count": 1}),
        ("set_items order_id='it''s' count=1", None),
        ("set_items order_id='x y' count=1", {"order_id": "x y", "count": 1}),
        ("set_items order_id= count=1", {"order_id": "", "count": 1}),
        ('set_items order_id="" count=1', {"order_id": "", "count": 1}),
        ("set_items order_id=o1 count=five", None),
        ('set_items order_id=o1 count="5"', None),
        ("set_items order_id=o1 count=1 count=2", None),
        ("set_items order_id=o1, count 5", None),
        ("set_items {order_id", None),
        ("nothing a=b", None),
    ],
)
def test_calls_are_read_as_typed(line, arguments):
    if arguments is None:
        with pytest.raises(ValueError, match=r"\w"):
            parse_call(line, TOOLS)
    else:
        assert dict(parse_call(line, TOOLS).arguments) == arguments


def test_values_follow_optional_and_nested_schemas():
    schema = {
        "type": "object",
        "properties": {
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "unit": {"enum": ["1", "2"]},
            "ids": {"type": "array", "items": {"type": "integer"}},
        },
    }
    tools = {"t": Tool("t", "d", schema, "read", dict)}
    assert parse_call("t note=null unit=1 ids=[1,2]", tools).arguments == {
        "note": None,
        "unit": "1",
        "ids": [1, 2],
    }
    assert parse_call("t note=12", tools).arguments == {"note": "12"}


PTY_PROGRAM = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from toy import ScriptAgent, toy_domain
from mua.episode import play
from mua.users.human import HumanUser
domain = toy_domain()
task = domain.task("cancel_11")
agent = ScriptAgent("Sure?", ("cancel_order", {"order_id": "o11"}), "Cancelled.")
t = asyncio.run(play(domain, task, agent, HumanUser(task)))
print("END", t.termination.value, t.reward)
"""


@pytest.mark.parametrize(("typed", "end"), [("hi\nyes\n/stop\n", "1.0"), ("hi\n\x04", "0.0")])
def test_on_a_real_terminal(typed, end):
    ours, theirs = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-c", PTY_PROGRAM, str(Path(__file__).parent)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(theirs)
    shown = b""
    for line in typed.splitlines(keepends=True):
        while shown.count(b"you> ") <= typed[: typed.index(line)].count("\n"):
            shown += os.read(ours, 4096)
        os.write(ours, line.encode())
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other end closed
        pass
    os.close(ours)
    assert program.wait(30) == 0, shown.decode()
    assert f"END user_stop {end}" in shown.decode() and b"Traceback" not in shown


def test_ctrl_c_leaves_at_once_inside_an_event_loop():
    program = subprocess.Popen(
        [sys.executable, "-c", PTY_PROGRAM, str(Path(__file__).parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert program.stdout is not None
    shown = b""
    while b"you> " not in shown:
        shown += os.read(program.stdout.fileno(), 4096)
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=30)
    assert b"HumanQuit: you left the conversation" in errors


def test_bytes_that_are_no_utf8_do_not_reach_the_record():
    t, _ = play_user(ScriptAgent(), "caf\udce9")
    assert t.messages[1].content == "caf?"


def test_messages_are_shown_once():
    terminal = Terminal("a", "b")
    user = HumanUser(toy_domain().task("cancel_11"), ask=terminal.ask, show=terminal.show)
    view = [Message("user", "a"), Message("assistant", "First answer")]
    asyncio.run(user.reply(view[:0]))
    asyncio.run(user.reply(view))
    asyncio.run(user.reply([*view, Message("user", "b"), Message("assistant", "Second answer")]))
    assert terminal.text.count("First answer") == terminal.text.count("Second answer") == 1
