"""A person at the terminal, driven by injected lines and through a real pty."""

import asyncio
import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from rich.console import Console

from fake_server import FakeServer, Reply, chat
from mua import cli
from mua.agents.human import HumanAgent
from mua.chat import Message
from mua.domains import load
from mua.episode import play
from mua.tools import Tool
from mua.trajectory import Termination, read_trajectories
from mua.users.human import LEFT, HumanQuit, HumanUser, leavable, parse_call
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
    t, _ = play_user(agent, "hello", "/quit")
    assert (t.reward, t.detail, agent.closed) == (None, LEFT, 1)
    assert [m.content for m in t.messages if m.role == "user"] == ["hello"]  # what was said is kept


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
        t, _ = play_agent(ScriptUser("Hi"), *lines)
        assert (t.reward, t.detail, t.messages[-1].content) == (None, LEFT, "Hi")


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
from mua.domains import load
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
    rest, errors = program.communicate(timeout=30)
    assert b"END user_failed None" in shown + rest and not errors


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


# ---------------------------------------------------------------- the command, in a terminal


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


class Window:
    """`mua play` in a pseudo-terminal of its own."""

    def __init__(self, folder: Path, *words: str, columns: int = 100):
        self.ours, theirs = pty.openpty()
        self.resize(columns)
        self.text = ""
        self.program = subprocess.Popen(
            [sys.executable, "-m", "mua", "play", *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            start_new_session=True,
            # So that Ctrl-C reaches it.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
            # Without COLUMNS, which would win over the window's own size.
            env={
                **{k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")},
                **{"TERM": "xterm", "LC_ALL": "C.UTF-8"},
            },
        )
        os.close(theirs)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def read(self) -> bool:
        """Takes in what is shown now; whether the program is still there."""
        try:
            chunk = os.read(self.ours, 65536)
        except OSError:  # how Linux says that the other end closed
            chunk = b""
        self.text += chunk.decode("utf-8", "replace")
        return bool(chunk)

    def until(self, words: str, prompt: str = "") -> str:
        """Waits for these words, whatever line breaks are in them, and then for the prompt; what was shown
        since the last time."""
        end = time.monotonic() + 60
        while words not in flat(self.text) or not flat(self.text).rstrip().endswith(prompt):
            assert time.monotonic() < end, self.text
            assert not select.select([self.ours], [], [], 1)[0] or self.read(), self.text
        shown, self.text = flat(self.text), ""
        return shown

    def type(self, keys: str | bytes) -> None:
        os.write(self.ours, keys.encode() if isinstance(keys, str) else keys)

    def ended(self) -> str:
        """All the rest that is shown; the program has ended well."""
        while select.select([self.ours], [], [], 60)[0] and self.read():
            pass
        os.close(self.ours)
        assert self.program.wait(30) == 0, self.text
        assert "Traceback" not in self.text
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.text)


def test_the_agents_seat_in_a_narrow_window_with_all_mistakes(tmp_path):
    window = Window(tmp_path, "--as", "agent", "--domain", "library:desk", "--task", "test-0213", columns=100)
    window.until("agent>", "agent>")
    window.resize(60)
    for typed, said in (
        ("renew_lone card=1", "did you mean 'renew_loan'?"),
        ("check_everything", "there is no tool 'check_everything'; /tools lists them"),
        ('reserve_title {"card" 1}', "the arguments are not valid JSON"),
        ("reserve_title card=[1", "'title' is missing"),
        ("find_member_by_card card=0000", "Error: no member has card 0000"),
        ("/nonsense", "/quit"),
    ):
        window.type(f"{typed}\n")
        window.until(said, "agent>")
    window.type(b"In the caf\xff \xf0\x9f\x98\x80 \xe2\x80\xae then?\n")
    window.until("─ customer ─", "agent>")
    window.type('reserve_title card=2674 title="Early Kitchen"\n')
    window.until("→", "agent>")
    window.type("\x04")
    shown = window.ended()
    assert "you left the conversation; it was not scored." in shown
    assert max(map(len, re.split(r"[\r\n]+", shown[shown.index("layer") :]))) == 60
    shown = flat(shown)
    assert "consent BROKEN: reserve_title" in shown and "message 6, agent: reserve_title" in shown
    assert "identity_first BROKEN: reserve_title before the person was found" in shown
    (t,) = read_trajectories(tmp_path / "runs/play.jsonl")
    assert (t.reward, t.detail, t.usage.tool_errors) == (None, LEFT, 1)
    assert "caf\ufffd \U0001f600" in t.messages[4].content


def test_the_users_seat_ctrl_c_while_the_agent_thinks_keeps_what_was_said(tmp_path):
    replies = [chat("ready"), chat("Who are you?"), Reply(stall=True)]
    with FakeServer(replies) as server:
        words = ["endpoint:m", "--base-url", server.url, "--domain", "library:desk", "--out", "mine.jsonl"]
        window = Window(tmp_path, *words)
        window.until("you>", "you>")
        window.type("h\u00e9llo [bold]there[/] \u0007\n")
        assert "Who are you?" in window.until("you>", "you>")
        window.type("I am nobody\n")
        window.until("nobody")
        while len(server.requests) < 3:
            time.sleep(0.02)
        window.type("\x03")
        shown = window.ended()
    assert "you left the conversation; it was not scored." in shown and "saved: mine.jsonl" in shown
    (t,) = read_trajectories(tmp_path / "mine.jsonl")
    assert [m.content for m in t.messages[1:]] == [
        "h\u00e9llo [bold]there[/]",
        "Who are you?",
        "I am nobody",
    ]


def test_the_end_is_told_in_words_and_audited(tmp_path):
    replies = [
        chat("ready"),
        chat(calls=[("transfer_to_human", {"reason": "complaint"})]),
    ]
    with FakeServer(replies) as server:
        words = ["endpoint:m", "--base-url", server.url, "--domain", "library:desk", "--task", "test-0213"]
        window = Window(tmp_path, *words)
        window.until("you>", "you>")
        window.type("please reserve something\n")
        shown = window.ended()
    assert "NOT SOLVED: the end state is not what the task asks for:" in shown
    shown = flat(shown)
    assert "cases 2674/reserve/withdrawn/changed_mind is not there, and should be: {" in shown
    assert "is there, and should not be: {" in shown
    assert "outcome end_state BROKEN, as said above" in shown and "saved: runs/play.jsonl" in shown


def test_a_file_that_cannot_be_written_is_told_before_anything_is_played(tmp_path):
    (tmp_path / "there").mkdir()
    words = ["--as", "agent", "--domain", "library:desk", "--out", "there"]
    program = subprocess.run(
        [sys.executable, "-m", "mua", "play", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert program.returncode == 1 and "choose another --out" in program.stderr and not program.stdout


def test_a_tool_that_is_out_of_order_ends_it_without_a_score(tmp_path, monkeypatch, capsys):
    def broken(self, card):
        raise RuntimeError("no disk")

    domain = load("library:desk")
    domain.tools()  # they are found once, by marks that the broken one has not
    monkeypatch.setattr(domain.toolkits["assistant"], "find_member_by_card", broken)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mua", "play", "--as", "agent", "--domain", "library:desk"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("find_member_by_card card=1234\n"))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr().out
    assert not ended.value.code and "the conversation ended by tools_failed" in shown
    assert "not scored: tool 'find_member_by_card' of domain 'library:desk' is broken: RuntimeError" in shown
    (t,) = read_trajectories(tmp_path / "runs/play.jsonl")
    assert (t.reward, [c.name for m in t.messages for c in m.tool_calls]) == (None, ["find_member_by_card"])


def test_only_ctrl_c_leaves():
    async def answer(view):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        asyncio.run(leavable(answer)([]))

    async def cancelled(view):
        raise asyncio.CancelledError

    with pytest.raises(HumanQuit):
        asyncio.run(leavable(cancelled)([]))
