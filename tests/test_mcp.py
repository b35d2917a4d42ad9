"""Domains of MCP servers, with real servers: four examples, wrong domain files, states, faults.

`mcp_server.py` is a real server too (of the official SDK); it misbehaves where published ones do not.
"""

from __future__ import annotations

import asyncio
import gc
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("mcp")

from mua import cli
from mua.chat import Message, ToolCall
from mua.coldstart.conversations import play_expert
from mua.coldstart.verification import verify
from mua.domain import Change, Task, check_no_noop, check_no_overlap
from mua.domains import load
from mua.domains.mcp import servers
from mua.domains.mcp.state import FileState, FolderState, SqliteState
from mua.episode import Limits, play
from mua.errors import InfrastructureError, MuaError
from mua.trajectory import Termination
from mua.users import STOP, UserTurn

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "src/mua/domains/mcp_examples"
SERVER = Path(__file__).with_name("mcp_server.py")
TUTORIAL = ROOT / "docs/wrap-my-mcp-server.md"
npx = pytest.mark.skipif(shutil.which("npx") is None, reason="the filesystem server needs Node.js (npx)")
NAMES = ["shop", "handbook", "meetings", pytest.param("office", marks=npx)]


def example(name: str):
    return load(str(EXAMPLES / f"{name}.yaml"))


@pytest.fixture
def make(tmp_path):
    """Makes a domain of `mcp_server.py`; its pool is closed in the end."""
    made = []

    def domain(text: str = "", **server: object):
        (tmp_path / "start").mkdir(exist_ok=True)
        (tmp_path / "start" / "old.txt").write_text("old\n")
        number = len(made)
        lines = "".join(f"  {k}: {v}\n" for k, v in server.items())
        command = f'  command: [{sys.executable}, {SERVER}, "{{state}}"]\n' if "command" not in server else ""
        path = tmp_path / f"d{number}.yaml"
        path.write_text(
            f"policy: Be kind.\nserver:\n{command}{lines}"
            f"{text or 'state: {kind: folder, initial: start}'}\n"
            "tasks:\n  test:\n    - {id: one, goal: g, calls: [{write: {name: a, text: b}}]}\n"
        )
        made.append(load(str(path)))
        return made[-1]

    yield domain
    for one in made:
        one.pool.close()


def call(world, tool, /, **arguments):
    return world.call("assistant", ToolCall(tool, arguments))


def processes(domain) -> list[psutil.Process]:
    """The running servers of a domain."""
    mine = psutil.Process().children(recursive=True)
    return [p for p in mine if p.status() != "zombie" and str(domain.pool.folder) in " ".join(p.cmdline())]


# ---------------------------------------------------------------- the four examples


@pytest.mark.parametrize("name", NAMES)
def test_every_task_is_sound(name):
    domain = example(name)
    splits = {split: domain.tasks(split) for split in domain.splits}
    assert {s: len(t) for s, t in splits.items()} == {"train": 96, "dev": 24, "test": 48}
    check_no_overlap([*splits["train"], *splits["dev"]], splits["test"], "test")
    every = [t for tasks in splits.values() for t in tasks]
    chosen = every if name in ("shop", "meetings") else every[::4]  # `mua tasks --verify` takes all
    assert {t.kind for t in chosen} == {t.kind for t in every}
    check_no_noop(domain, chosen)
    for task in chosen:
        played = asyncio.run(play_expert(domain, task, 0, Limits()))
        assert played.reward == 1.0, (task.id, task.kind, played.reason)
    assert verify(domain, task, played) == ""  # graded again, from the messages alone


@pytest.mark.parametrize("name", NAMES)
def test_the_experts_need_no_gold_solution(name):
    """Given the same task without it, they do the same."""
    domain = example(name)
    for task in domain.tasks("test")[:12]:
        other = Task("other", task.kind, task.scenario, (), task.setup)
        played = asyncio.run(play_expert(domain, other, 0, Limits()))
        assert [m.tool_calls for m in played.messages if m.tool_calls], task.id
        assert domain.grade(task, played.messages, played.termination).reward == 1.0, task.id


def test_a_wrong_end_is_told_in_words():
    domain = example("shop")
    task = next(t for t in domain.tasks("test") if t.kind == "street")
    world = domain.open(task)
    number = task.scenario.agenda["requests"][0]["data"]["order"]
    call(world, "write_query", query=f"UPDATE orders SET street = 'Nowhere' WHERE number = {number}")
    verdict = domain.grade(task, [], Termination.USER_STOP, world)
    assert verdict.reward == 0.0
    assert re.search(rf'rows.orders/{number}.street: here "Nowhere", there "\d+', verdict.reason)


def test_same_calls_same_hashes():
    """Commits have fixed dates, so a stored conversation can be replayed, hashes that it names included."""
    domain = example("handbook")
    task = next(t for t in domain.tasks("test") if t.kind == "commit")
    said = []
    for _ in range(2):
        world = domain.open(task)
        said.append([call(world, a.name, **a.arguments).content for a in task.actions])
        time.sleep(1.1)
    assert said[0] == said[1] and "hash" in said[0][-1]


# ---------------------------------------------------------------- episodes


def test_no_episode_sees_what_another_wrote(make):
    """Thirty episodes, interleaved over two servers; each ends with what it wrote, and only that."""
    domain = make(servers=2)
    (task,) = domain.tasks("test")
    worlds = [domain.open(task) for _ in range(30)]
    for text in ("first", "second"):
        for n, world in enumerate(worlds):
            assert not call(world, "write", name=f"{n}.txt", text=f"{text} {n}").error
    for n, world in enumerate(worlds):
        rows = {k: world.db.get("files", k) for k in world.db.keys("files")}
        assert rows == {"old.txt": {"text": "old"}, f"{n}.txt": {"text": f"second {n}"}}
    assert len(processes(domain)) == 2
    del worlds, world
    gc.collect()
    assert not list(domain.pool.parked.iterdir())
    fresh = domain.open(task)
    assert fresh.db.equals(domain.base.open())
    domain.pool.close()
    assert not processes(domain) and not domain.pool.folder.exists()
    with pytest.raises(MuaError, match="closed"):
        call(domain.open(task), "write", name="a", text="b")


def test_a_failed_call_changes_nothing_and_paths_look_the_same_everywhere(make):
    domain = make()
    world = domain.open(domain.tasks("test")[0])
    failed = call(world, "write", name="bad", text="x")
    assert failed.error and "bad name" in failed.content
    assert world.db.equals(domain.base.open())
    assert call(world, "write", name="good", text="x").content == "wrote /data/good"
    wrong = call(world, "write", name="a", txt="b")
    assert wrong.error and "'text' is missing" in wrong.content


def test_paths_lead_nowhere_else(make):
    domain = make("state: {kind: folder, initial: start}\npaths: [name]")
    world = domain.open(domain.tasks("test")[0])
    for path in ("/etc/passwd", "../x", "/data/../etc/x", "/database"):
        assert "is not in /data" in call(world, "write", name=path, text="x").content
    assert call(world, "write", name="/data/a", text="/data/b").content == "wrote /data/a"
    assert world.db.get("files", "a") == {"text": "/data/b"}  # contents are no paths


def test_a_server_that_remembers_is_started_anew(make):
    domain = make(restart="true")
    (task,) = domain.tasks("test")
    one, two = domain.open(task), domain.open(task)
    assert call(one, "remember", word="a").content == "a"
    assert call(two, "remember", word="b").content == "b"
    assert call(one, "remember", word="c").content == "a c"  # its calls were made again
    assert call(two, "remember", word="d").content == "b d"
    assert one.db.get("files", "words") == {"text": "a c"}


def test_over_http(make):
    command = f'[{sys.executable}, {SERVER}, "{{state}}", --port, "{{port}}"]'
    domain = make(command=command, url="http://127.0.0.1:{port}/mcp")
    world = domain.open(domain.tasks("test")[0])
    assert call(world, "write", name="a", text="b").content == "wrote /data/a"
    assert domain.grade(domain.tasks("test")[0], [], Termination.USER_STOP, world).reward == 1.0
    for process in processes(domain):
        process.kill()
    with pytest.raises(InfrastructureError, match="MCP server"):
        call(world, "write", name="a", text="c")
    assert not call(domain.open(world.task), "write", name="a", text="b").error


def test_a_published_server_over_http(tmp_path):
    """The shop once more, its server behind mcp-proxy: another transport, the same answers and verdicts."""
    pytest.importorskip("mcp_proxy")
    for name in ("shop.py", "shop.md", "shop.yaml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    text = (tmp_path / "shop.yaml").read_text()
    by_http = text.replace("command: [", 'command: [mcp-proxy, --port, "{port}", --, ').replace(
        "tools: [", "  url: http://127.0.0.1:{port}/mcp\ntools: ["
    )
    (tmp_path / "shop.yaml").write_text(by_http)
    domain, plain = load(str(tmp_path / "shop.yaml")), example("shop")
    assert domain.tools().keys() == plain.tools().keys()
    for task in domain.tasks("test")[:12]:
        a, b = (asyncio.run(play_expert(d, task, 0, Limits())) for d in (domain, plain))
        assert (a.reward, [m.content for m in a.messages]) == (1.0, [m.content for m in b.messages])
    domain.pool.close()


def test_a_server_of_somebody_else(tmp_path):
    """Only an address: its folder is replaced for each episode, and is in the end what it was."""
    folder, port = tmp_path / "its", 18763
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    server = subprocess.Popen([sys.executable, str(SERVER), str(folder), "--port", str(port)])
    try:
        (tmp_path / "d.yaml").write_text(
            f"policy: p\nserver: {{url: 'http://127.0.0.1:{port}/mcp'}}\n"
            f"state: {{kind: folder, path: {folder}}}\n"
            "tasks: {test: [{id: one, goal: g, calls: [{write: {name: a, text: b}}]}]}\n"
        )
        for _ in range(100):
            try:
                domain = load(str(tmp_path / "d.yaml"))
                break
            except MuaError as exc:
                assert "server.url" in str(exc)
                time.sleep(0.2)
        worlds = [domain.open(domain.tasks("test")[0]) for _ in range(3)]
        for n, world in enumerate(worlds):
            call(world, "write", name="mine.txt", text=f"of {n}")
        assert [w.db.get("files", "mine.txt") for w in worlds] == [{"text": f"of {n}"} for n in range(3)]
        domain.pool.close()
        assert (folder / "mine.txt").read_text() == "mine"
    finally:
        server.kill()
        server.wait()


# ---------------------------------------------------------------- faults


class Says:
    """A user who says one thing, and an agent who makes these calls."""

    name = "says"
    trace = None

    def __init__(self, *moves):
        self.moves = list(moves)

    async def reply(self, view):
        return UserTurn(STOP, stop=True) if len(view) > 1 else UserTurn("Hello.")

    async def step(self, messages):
        from mua.agents import AgentStep

        move = self.moves.pop(0) if self.moves else "Done."
        if callable(move):
            move = move()
        return AgentStep(
            Message("assistant", move) if isinstance(move, str) else Message("assistant", tool_calls=(move,))
        )

    def close(self):
        pass


def test_kill_9_in_the_middle_of_an_episode():
    domain = example("shop")
    task = domain.tasks("test")[0]
    read = ToolCall("read_query", {"query": "SELECT 1"})

    def kill():
        for process in processes(domain):
            process.kill()
        return read

    agent = Says(read, kill, read)
    played = asyncio.run(play(domain, task, agent, Says(), limits=Limits()))
    assert played.termination is Termination.TOOLS_FAILED and played.reward is None
    assert "the MCP server of 'shop'" in played.reason
    assert asyncio.run(play_expert(domain, task, 0, Limits())).reward == 1.0  # the next one is not touched


def test_a_query_without_end(tmp_path):
    """The published SQLite server, asked for what it never finishes."""
    for name in ("shop.py", "shop.md"):
        shutil.copy(EXAMPLES / name, tmp_path)
    text = (EXAMPLES / "shop.yaml").read_text()
    (tmp_path / "shop.yaml").write_text(text.replace("tools: [list", "  timeout: 4\ntools: [list"))
    domain = load(str(tmp_path / "shop.yaml"))
    endless = "SELECT (WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT sum(n) FROM t)"
    world, other = domain.open(domain.tasks("test")[0]), domain.open(domain.tasks("test")[1])
    started = time.monotonic()
    with pytest.raises(InfrastructureError, match=r"does not answer within 4 seconds"):
        call(world, "read_query", query=endless)
    assert time.monotonic() - started < 30
    with pytest.raises(InfrastructureError, match="does not answer"):  # lost for good
        call(world, "read_query", query="SELECT 1")
    assert not call(other, "read_query", query="SELECT 1").error
    domain.pool.close()
    deadline = time.monotonic() + 10
    while processes(domain) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes(domain)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("junk", "sends what is no message"),
        ("bytes", "UnicodeDecodeError"),
        ("end", "is gone.*it said: out of memory"),
        ("hang", "does not answer within 5 seconds"),
    ],
)
def test_misbehaviour_is_infrastructure(make, how, words):
    domain = make(timeout=5 if how == "hang" else 60)
    (task,) = domain.tasks("test")
    other = domain.open(task)
    assert not call(other, "write", name="a", text="b").error
    with pytest.raises(InfrastructureError, match=words):
        call(domain.open(task), "misbehave", how=how)
    assert not call(other, "write", name="c", text="d").error  # its state has outlived the server
    assert {*other.db.keys("files")} == {"old.txt", "a", "c"}
    domain.pool.close()
    assert not processes(domain)


# ---------------------------------------------------------------- what a file may get wrong


STARTED = "command: [mcp-server-time, --local-timezone, UTC]"
CODE = "code: meetings.py"
WRONG = [
    (
        STARTED,
        "command: [mcp-server-tyme]",
        r"server\.command: there is no program 'mcp-server-tyme'.*pip install",
    ),
    (STARTED, "command: [mcp-server-time, --nonsense]", r"server\.command: .*is gone.*nonsense"),
    (STARTED, "command: [cat, /dev/null]", r"server\.command: the MCP server"),
    (STARTED, "command: [echo, hello]", r"server\.command: the MCP server"),
    (STARTED, "url: http://127.0.0.1:9/mcp", r"server\.url: the MCP server"),
    ("[convert_time]", "[convert_tyme]", r"tools: the server has no tool 'convert_tyme'; it has get_current"),
    (CODE, "code: nothing.py", r"code: there is no .*nothing\.py"),
    (CODE, "", "tasks: there are none"),
    (CODE, f"state: {{kind: sqlite}}\n{CODE}", "state: .*a state of kind sqlite needs a path"),
    (CODE, f"state: {{kind: folder, initial: nowhere}}\n{CODE}", r"state\.initial: there is no .*nowhere"),
    (CODE, f"errors: '('\n{CODE}", "errors: is no pattern"),
    ("policy: meetings.md", "polcy: meetings.md", "polcy: Extra inputs"),
    ("policy: meetings.md", "policy: [", "cannot be read: while parsing"),
    ("record_meeting", "convert_time", r"records\.convert_time: the server has a tool of that name"),
    ("pattern:", "type:", "tools.record_meeting: its schema cannot be used"),
    ("enum: [outside_hours", "enum: [no_hours", "task .*: record_refusal cannot be called so: 'reason'"),
]


@pytest.mark.parametrize(("before", "after", "words"), WRONG)
def test_what_is_wrong_is_named(tmp_path, before, after, words):
    for name in ("meetings.py", "meetings.md"):
        shutil.copy(EXAMPLES / name, tmp_path)
    text = (EXAMPLES / "meetings.yaml").read_text()
    assert before in text
    path = tmp_path / "meetings.yaml"
    path.write_text(text.replace(before, after))
    with pytest.raises(MuaError, match=words) as error:
        load(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(MuaError, match=r"there is no domain file .*x\.yaml"):
        load(str(tmp_path / "x.yaml"))
    with pytest.raises(MuaError, match="has no profiles"):
        load(f"{EXAMPLES}/shop.yaml:small")


# ---------------------------------------------------------------- states


def test_folders_and_repositories_by_meaning(tmp_path):
    def repository(name: str, date: str, message: str = "Second", extra: str = "") -> dict:
        root = tmp_path / name
        (root / "r").mkdir(parents=True)
        env = {
            "PATH": "/usr/bin:/bin",
            "GIT_AUTHOR_DATE": date,
            "GIT_COMMITTER_DATE": date,
            "HOME": str(tmp_path),
        }
        git = ["git", "-C", str(root / "r"), "-c", "user.name=a", "-c", "user.email=b"]

        def run(*words: str) -> None:
            subprocess.run([*git, *words], check=True, env=env, capture_output=True)

        run("init", "--initial-branch=main")
        (root / "r" / "f").write_text("1\n")
        run("add", "f")
        run("commit", "-m", "First")
        (root / "r" / "f").write_text("2")
        run("commit", "-am", message)
        run("branch", "side")
        if extra:
            run(*extra.split())
        return FolderState().read(root)

    one, two = repository("one", "1700000000 +0000"), repository("two", "1800000000 +0100")
    assert one == two
    assert one["git"]["r: HEAD"] == {"at": "main"} and one["files"]["r/f"] == {"text": "2"}
    date = "1700000000 +0000"
    assert repository("message", date, "Other")["git"] != one["git"]
    for number, words in enumerate(
        ("checkout side", "checkout --detach", "branch more", "branch -D side", "rm --cached f", "tag v1")
    ):
        assert repository(f"other{number}", date, extra=words)["git"] != one["git"], words
    amended = repository("amended", date, extra="commit --amend --message=Second --date=1600000000")
    assert amended["git"] == one["git"]


def test_databases_by_rows(tmp_path):
    script = tmp_path / "a.sql"
    script.write_text(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, x, at TEXT);"
        "INSERT INTO t VALUES (1, 2.0, 'now'), (2, NULL, 'n');"
        "CREATE TABLE bag (x); INSERT INTO bag VALUES ('a'), ('a'), (x'00ff'), (9e999);"
    )
    state = SqliteState("s.db", ["t.at"])
    state.make(script, tmp_path)
    rows = state.read(tmp_path)["rows"]
    assert rows["t/1"] == {"id": 1, "x": 2.0} and rows["t/2"] == {"id": 2, "x": None}
    assert sorted(k for k in rows if k.startswith("bag")) == [
        'bag/{"x":"a"}', 'bag/{"x":"a"} #2', 'bag/{"x":"inf"}', 'bag/{"x":{"hex":"00ff"}}'
    ]  # fmt: skip
    state.put(tmp_path, "rows", "t/1", {"id": 1, "x": 3, "at": "z"})
    state.put(tmp_path, "rows", "t/2", None)
    assert {k: v for k, v in state.read(tmp_path)["rows"].items() if k[0] == "t"} == {
        "t/1": {"id": 1, "x": 3}
    }
    with pytest.raises(ValueError, match="no such"):
        state.put(tmp_path, "rows", "nothing/1", {"id": 1})


def test_files_by_value(tmp_path):
    for name, one, other in (
        ("a.json", '{"a": 1, "b": 2}', '{"b": 2,\n"a": 1}'),
        ("a.jsonl", "1\n2\n", "2\n1"),
        ("a.txt", "x", "x\n"),
    ):
        state, seen = FileState(name), []
        for text in (one, other, "3"):
            state.put(tmp_path, "file", name, {"text": text})
            seen.append(state.read(tmp_path))
        assert seen[0] == seen[1] != seen[2]


def test_an_initial_state_that_cannot_be_set(make):
    domain = make()
    (task,) = domain.tasks("test")
    broken = Task("b", "k", task.scenario, task.actions, (Change("files", "../x", {"text": "y"}),))
    with pytest.raises(MuaError, match=r"task 'b'.*cannot be set"):
        domain.gold(broken)


# ---------------------------------------------------------------- the tutorial


def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    text = TUTORIAL.read_text(encoding="utf-8")
    files = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", text, re.M | re.S)
    assert {"clinic.yaml", "clinic.sql"} <= {name for name, _ in files}
    for name, content in files:
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    commands = "\n".join(re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S)).replace("\\\n", " ")
    ran = 0
    for line in commands.splitlines():
        words = shlex.split(line, comments=True)
        if words[:2] != ["mua", "tasks"] or "office" in line:
            continue
        monkeypatch.setattr(
            "sys.argv", [w.replace("src/mua/domains/mcp_examples", "examples") for w in words]
        )
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code, line
        ran += 1
    assert ran >= 3 and "3 tasks, 0 problems" in capsys.readouterr().out


# ---------------------------------------------------------------- what a killed process leaves


def test_folders_of_killed_processes_are_removed_and_no_others(tmp_path, monkeypatch, caplog):
    code = (
        "import os, sys, tempfile\nfrom pathlib import Path\ntempfile.tempdir = sys.argv[1]\n"
        "from mua.domains.mcp.servers import Pool, Start\n"
        "pools = [Pool('a', Start(), None), Pool('b', Start(), None, place=Path(sys.argv[2]))]\n"
        "print(*(pool.folder for pool in pools), sep='\\n', flush=True)\nsys.stdin.read()\n"
    )
    place = tmp_path / "place"
    place.mkdir()
    (place / "precious").write_text("x")
    root = tmp_path / "tmp"
    root.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(root))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", code, str(root), str(place)], **pipes)
    (root / "mua-mcp-old").mkdir()  # nobody says whose it is
    target = tmp_path / "target"
    target.mkdir()
    (target / servers._OWNER).write_text("")
    (root / "mua-mcp-link").symlink_to(target)
    try:
        assert other.stdout is not None
        folder, keeping = (Path(other.stdout.readline().strip()) for _ in range(2))
        first = servers.Pool("c", servers.Start(), None)
        assert folder.exists() and first.folder.exists()
    finally:
        other.kill()
        other.wait()
    second = servers.Pool("d", servers.Start(), None)
    assert not folder.exists() and first.folder.exists()
    assert (keeping / "kept" / "precious").read_text() == "x" and str(keeping) in caplog.text
    first.close()
    second.close()
    assert {p.name for p in root.iterdir()} == {"mua-mcp-old", "mua-mcp-link", keeping.name}
    assert (target / servers._OWNER).exists()
