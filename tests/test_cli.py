"""The command line: what it prints, how it fails, and that a run survives whatever ends it."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml

from fake_server import FakeServer, Reply, chat
from mua import cli
from mua.coldstart.conversations import conversations
from mua.domains import load
from mua.pipeline import weights_digest
from mua.speakers import user_overrides

MICRO = [
    "model.tiny.layers=2",
    "model.tiny.vocab_size=600",
    "model.slots=32",
    "coldstart.conversations=60",
    "sft.steps=8",
    "sft.batch_size=2",
    "user_sft.steps=8",
    "user_sft.batch_size=2",
    "train.steps=3",
    "train.rollout.groups=2",
    "train.rollout.group_size=2",
    "train.rollout.refill_rounds=0",
    "train.max_step_tokens=12",
    "max_step_tokens=12",
    "train_user.max_tokens=12",
    "train_user.temperature=3.0",  # a user that has hardly learned to speak must not be silent for long
    "limits.turns=8",
    "limits.steps=16",
    "eval.tasks=4",
    "threads=1",
]
"""What makes a quickstart of seconds; it learns nothing."""


def start(*args: str, **how) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mua", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


@pytest.fixture
def mua(monkeypatch, capsys):
    """Runs a command in this process: (exit code, standard output, standard error)."""

    def run(*args: object, typed: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mua", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        try:
            cli.main()
            code = 0
        except SystemExit as exc:
            code = exc.code or 0
        out, err = capsys.readouterr()
        return int(code), out, err

    return run


def the_paragraph(result: tuple[int, str, str]) -> str:
    """The one paragraph of a failed command."""
    code, out, err = result
    assert code == 1, (out, err)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert err.splitlines()[-1:] == lines, err
    assert "Traceback" not in err
    return lines[0]


# ---------------------------------------------------------------- light


@pytest.mark.parametrize("then", ["", "cli.main()"])
def test_help_needs_nothing_heavy(then):
    code = f"""
import sys, atexit
def check():
    heavy = {{"torch", "transformers", "aiohttp", "pydantic", "numpy", "mua.config"}} & set(sys.modules)
    print("heavy:", sorted(heavy))
atexit.register(check)
sys.argv = ["mua", "--help"]
from mua import cli
{then}
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("heavy: []\n")
    assert not then or all(
        f"\n  {c.name or c.callback.__name__} " in out for c in cli.app.registered_commands
    )


# ---------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """A micro quickstart that nobody disturbed."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    process = start("quickstart", "--seed", "3", "--out", str(folder), *MICRO)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert str(folder / "report.html") in out
    assert "cold start" in out
    assert "Warning" not in err
    return folder


def figures(folder: Path) -> dict:
    """The summary without what time and machine decide."""
    summary = json.loads((folder / "summary.json").read_text())
    return {k: v for k, v in summary.items() if k not in ("seconds", "seconds_train", "peak_mb")}


def test_a_quickstart_leaves_a_summary_and_a_report(unbroken):
    summary = json.loads((unbroken / "summary.json").read_text())
    for model in ("base", "cold_start", "rl"):
        assert summary[model].keys() >= {"success", "success_greedy", "ci95", "n"}
        assert summary[model]["n"] == 4
    assert summary["train_user"] == "local:user"
    assert summary["eval_user"] == "agenda"
    assert (summary["seed"], summary["rl_steps"]) == (3, 3)
    assert summary["seconds_train"] > 0
    assert summary["peak_mb"] > 100
    assert (unbroken / "report.html").read_text().lstrip().startswith("<!")


def wait_for(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    """Until a file has so many lines."""
    for _ in range(20_000):
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    raise AssertionError(f"{path} never came")


def test_a_run_survives_kill_and_interrupt(unbroken, tmp_path):
    folder = tmp_path / "run"
    command = ["quickstart", "--seed", "3", "--out", str(folder), *MICRO]

    process = start(*command)
    wait_for(folder / "sft_agent.jsonl", 2, process)
    process.kill()
    process.communicate()

    process = start(*command)
    wait_for(folder / "models" / "cold_start" / "config.json", 1, process)
    second = start(*command)
    _, err = second.communicate(timeout=100)
    assert second.returncode == 1
    assert f"Another run (process {process.pid}) is writing to {folder}" in err
    wait_for(folder / "metrics.jsonl", 1, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert err.endswith("stopped; run the same command again to go on\n")
    assert "Traceback" not in err
    assert not (folder / "summary.json").exists()

    process = start(*command)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert figures(folder) == figures(unbroken)
    for model in ("base", "user", "cold_start", "rl"):
        assert weights_digest(folder / "models" / model) == weights_digest(unbroken / "models" / model)
    for file in (unbroken / "eval").glob("*.jsonl"):
        assert (folder / "eval" / file.name).read_bytes() == file.read_bytes()


def test_a_killed_run_leaves_no_process_behind(mua, tmp_path):
    """On several cores the user model is trained in a process of its own."""
    folder = tmp_path / "run"
    settings = [*MICRO, "threads=2", "user_sft.steps=5000"]
    code, _, err = mua("coldstart", "--config", "quickstart", "--out", folder, *settings)
    assert code == 0, err
    process = start("sft", "--out", str(folder))  # with the configuration of the folder
    wait_for(folder / "sft_user.jsonl", 2, process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


def test_a_full_disk_loses_nothing(tmp_path):
    """A limit on file sizes fails like a full disk, in the middle of the work."""
    folder = tmp_path / "run"
    command = ["coldstart", "--config", "quickstart", "--out", str(folder), *MICRO]
    limit = 300_000  # the conversations fit, the model does not
    process = start(*command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    out, err = process.communicate(timeout=100)
    assert "no room left to write" in the_paragraph((process.returncode, out, err))
    assert len((folder / "coldstart.jsonl").read_text().splitlines()) == 60
    assert list((folder / "models").iterdir()) == []

    process = start(*command)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert "next: mua sft" in out
    assert (folder / "models" / "base" / "config.json").exists()


def test_a_folder_of_another_configuration_is_refused(unbroken, mua):
    before = figures(unbroken)
    said = the_paragraph(mua("quickstart", "--seed", 3, "--out", unbroken, *MICRO, "train.steps=9"))
    assert "train.steps (was 3, now 9)" in said
    assert "choose another run folder" in said
    assert figures(unbroken) == before


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train.stepz=3"], "unknown key 'train.stepz'; did you mean 'train.steps'?"),
        (["foo=3"], "unknown key 'foo'; the top has domain, seed,"),
        (["train.steps=many"], "'train.steps': input should be a valid integer"),
        (["train.lr=[1"], "the value is not YAML"),
        (["steps"], "write key=value"),
        (["domain=libary"], "there is no domain 'libary'; there are library, library:desk"),
        (["--config", "nope.yaml"], "there is no configuration file nope.yaml, nor a recipe of that name"),
        (["model.base=/no/such/model"], "There is no model folder /no/such/model"),
        (["train_user.model=/no/such/user"], "There is no model folder /no/such/user"),
        (["train_user.kind=endpoint"], "train_user.endpoint must say which one"),
        (["train.rollout.group_size=1"], "GRPO compares the episodes of one task"),
        (["train_split=test"], "training task(s) are also in evaluation split 'test'"),
    ],
)
def test_bad_settings_are_one_paragraph_before_anything_is_made(args, words, mua, tmp_path):
    assert words in the_paragraph(mua("quickstart", "--out", tmp_path / "run", *args))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (None, "is down"),
        (Reply("<html>Welcome!</html>", content_type="text/html"), "answer"),
        (Reply('{"choices": null}'), "answer"),
        (Reply('{"error": "no such model"}', status=404), "does not know the model"),
    ],
)
def test_a_user_endpoint_that_is_no_user_is_told_at_once(reply, words, mua, tmp_path):
    with FakeServer([reply or chat("hello")]) as server:
        url = server.url
        if reply is None:
            server.__exit__()
        settings = [f"base_url={url}", "model=m", "retries=0"]
        said = the_paragraph(
            mua(
                "quickstart",
                "--out",
                tmp_path / "run",
                "train_user.kind=endpoint",
                *(f"train_user.endpoint.{s}" for s in settings),
            )
        )
    assert words in said
    assert f"{url} (model 'm')" in said
    assert list(tmp_path.iterdir()) == []


def test_a_stage_says_what_must_come_first(mua, tmp_path):
    assert f"run `mua coldstart --out {tmp_path}` first" in the_paragraph(mua("sft", "--out", tmp_path))
    assert f"run `mua sft --out {tmp_path}` first" in the_paragraph(mua("train", "--out", tmp_path))


def test_a_bug_is_a_traceback(mua, monkeypatch):
    monkeypatch.setattr("mua.domains.load", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mua("tasks", "library")


# ---------------------------------------------------------------- score


@pytest.fixture(scope="module")
def graded(tmp_path_factory) -> Path:
    """Conversations of the library's expert, as a file."""
    domain = load("library")
    talks = asyncio.run(conversations(domain, domain.tasks("dev"), 4, seed=1))
    path = tmp_path_factory.mktemp("graded") / "talks.jsonl"
    path.write_text("".join(json.dumps(t.to_dict()) + "\n" for t in talks))
    return path


def test_score_agrees_and_disagrees(graded, mua, tmp_path):
    code, out, _ = mua("score", "library", graded)
    *verdicts, last = map(json.loads, out.splitlines())
    assert (code, last) == (0, {"agree": 4, "disagree": 0})
    assert all(v["reward"] == 1.0 and v["components"] and v["reason"] for v in verdicts)

    first, *others = map(json.loads, graded.read_text().splitlines())
    first["reward"] = 0.0
    packed = tmp_path / "flipped.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(map(json.dumps, [first, *others])).encode()))
    code, out, _ = mua("score", "library", packed)
    assert (code, json.loads(out.splitlines()[-1])) == (1, {"agree": 3, "disagree": 1})


def test_score_names_the_line_that_cannot_be_read(graded, mua, tmp_path):
    text = graded.read_text()
    broken = tmp_path / "broken.jsonl"
    broken.write_text(text[: len(text) - 100])
    assert f"{broken}, line 4: not valid JSON" in the_paragraph(mua("score", "library", broken))
    broken.write_text('{"task_id": "x"}\n')
    assert "field 'messages' is missing" in the_paragraph(mua("score", "library", broken))
    packed = tmp_path / "broken.jsonl.gz"
    packed.write_bytes(gzip.compress(text.encode())[:-200])
    assert f"{packed} cannot be read" in the_paragraph(mua("score", "library", packed))
    assert "cannot be read" in the_paragraph(mua("score", "library", tmp_path / "none.jsonl"))
    assert "mua score library" in the_paragraph(mua("score", "library:desk", graded))
    odd = tmp_path / "odd.jsonl"
    odd.write_bytes(text.encode("utf-16"))
    assert "it is UTF-16; save it as UTF-8" in the_paragraph(mua("score", "library", odd))
    assert "it is UTF-16; save it as UTF-8" in the_paragraph(mua("quickstart", "--config", odd))
    odd.write_bytes(b"\x00\xe5\x00")
    assert "it is not UTF-8 text (byte 1)" in the_paragraph(mua("audit", odd))
    odd.write_bytes(b"")
    assert "no conversation to grade" in the_paragraph(mua("score", "library", odd))
    assert "no conversation in" in the_paragraph(mua("audit", odd))


def test_a_place_that_cannot_be_written_is_one_paragraph(mua, tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    folder.mkdir()
    # Before anything is played: there are nine domains' conversations, and a dozen runs, to lose.
    assert f"{file} is no folder" in the_paragraph(mua("coldstart", "--all", "--out", file / "set"))
    assert f"{file} is no folder" in the_paragraph(mua("ablate", "--out", file))
    assert "Not a directory" in the_paragraph(mua("domain", "new", "gym_desk", "--out", file))
    trail = mua("audit", file, "--out", folder)
    assert f"{folder}, which is a folder" in the_paragraph(trail)


# ---------------------------------------------------------------- eval and play


def test_eval_of_a_run_takes_what_is_there_and_adds_what_is_not(unbroken, mua):
    stored = {f.name: f.read_bytes() for f in (unbroken / "eval").glob("*.jsonl")}
    code, out, err = mua("eval", unbroken)
    assert code == 0, err
    assert "cold_start" in out
    assert "eval " not in err  # nothing was played
    assert {f.name: f.read_bytes() for f in (unbroken / "eval").glob("*.jsonl")} == stored

    options = ["--split", "dev", "--tasks", 2, "--samples", 2, "--temperature", 1]
    code, out, err = mua("eval", unbroken / "models" / "rl", *options)
    assert code == 0, err
    assert "pass^2" in out
    figures = json.loads((unbroken / "eval" / "rl_t1_dev_x2_n2.json").read_text())
    assert (figures["split"], figures["n"], figures["samples"]) == ("dev", 2, 2)


def test_a_run_is_its_user_model_too(unbroken):
    """Its own user model is spoken to as the run did; that of another run is a folder like any other."""
    assert user_overrides(str(unbroken), unbroken) == {"eval_user.kind": "local", "eval_user.model": ""}
    folder = str(unbroken / "models" / "user")
    assert user_overrides(folder, None) == {"eval_user.kind": "local", "eval_user.model": folder}


def test_an_endpoint_can_be_the_agent(mua, tmp_path):
    def answer(request):
        if request["messages"][-1]["role"] == "tool":
            return chat("done")
        return chat(calls=[("transfer_to_human", {"reason": "handover"})])

    with FakeServer(answer) as server:
        code, _, err = mua(
            "eval",
            "endpoint:m",
            "--base-url",
            server.url,
            "--domain",
            "library:desk",
            "--tasks",
            3,
            "--out",
            tmp_path,
        )
    assert code == 0, err
    stored = json.loads((tmp_path / "eval" / "m_greedy_library-desk_n3.json").read_text())
    assert (stored["model"], stored["temperature"], stored["n"]) == ("m", 0.0, 3)


def test_one_evaluation_is_played_by_one_process_at_a_time(tmp_path):
    asked, go_on = threading.Event(), threading.Event()

    def answer(request):
        if any(m["role"] == "tool" for m in request["messages"]):
            return chat("done")
        if request["messages"][0]["role"] == "system":  # not the question whether the model is there
            asked.set()
            go_on.wait(200)
        return chat(calls=[("transfer_to_human", {"reason": "handover"})])

    with FakeServer(answer) as server:
        command = ["eval", "endpoint:m", "--base-url", server.url, "--domain", "library:desk"]
        command += ["--tasks", "1", "--out", str(tmp_path)]
        first = start(*command)
        try:
            assert asked.wait(200)
            second = start(*command)
            _, err = second.communicate(timeout=200)
            assert second.returncode == 1, err
            assert f"process ({first.pid}) is playing evaluation 'm_greedy_library-desk_n1' into" in err
            assert "--out DIR" in err and "Traceback" not in err
            # Another evaluation has files of its own, in the same folder.
            go_on.set()
            other = start(*command, "--samples", "2")
            assert other.wait(200) == 0 and first.wait(200) == 0
        finally:
            first.kill()
        again = start(*command)  # nothing is left to play, and nobody has the lock any more
        assert again.wait(200) == 0
    for name, lines in (("m_greedy_library-desk_n1", 1), ("m_greedy_library-desk_x2_n1", 2)):
        assert len((tmp_path / "eval" / f"{name}.jsonl").read_text().splitlines()) == lines


def test_you_are_the_user_of_a_trained_agent(unbroken, mua, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = mua("play", unbroken, "--kind", "renew", typed="good morning\n/stop\n")
    assert code == 0
    assert "you are the customer" in out
    assert "NOT SOLVED" in out
    code, out, _ = mua("play", unbroken, typed="/quit\n")
    assert code == 0
    assert "it was not scored" in out


def test_you_are_the_agent_of_a_simulated_user(mua, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = next(
        t for t in load("library").tasks("test") if [a.name for a in t.actions] == ["transfer_to_human"]
    )
    call = f"transfer_to_human {json.dumps(task.actions[0].arguments, default=dict)}\n"
    typed = f"/policy\ntransfer_to_human\n{call}"  # the second line is refused and asked for again
    code, out, err = mua("play", "--as", "agent", "--task", task.id, typed=typed)
    assert code == 0, err
    assert "SOLVED: end state equals gold" in out
    assert "NOT SOLVED" not in out


def test_the_expert_talks_to_no_person(mua):
    said = the_paragraph(mua("play", "expert"))
    assert "can only talk to the agenda user" in said


# ---------------------------------------------------------------- tasks


def test_tasks_lists_and_verifies(mua, monkeypatch):
    assert "library:desk" in mua("tasks")[1]
    code, out, _ = mua("tasks", "library", "--split", "dev", "--kind", "renew")
    assert code == 0
    ids = [line.split()[0] for line in out.splitlines()]
    assert ids
    code, out, _ = mua("tasks", "library", "--show", ids[0])
    assert "gold solution\n  renew_loan" in out
    code, out, _ = mua("tasks", "library", "--split", "dev", "--verify")
    assert (code, out.splitlines()[-1]) == (0, "120 tasks, 0 problems")

    domain = load("library")
    monkeypatch.setattr(type(domain), "is_noop", lambda self, task: task.id == ids[0])
    code, out, _ = mua("tasks", "library", "--split", "dev", "--verify")
    assert (code, out.splitlines()[-1]) == (1, "120 tasks, 1 problems")
    assert f"dev {ids[0]}: doing nothing solves it" in out


def test_a_packaged_recipe_is_whole():
    from mua.config import load_config, recipes

    for name in recipes():
        config = load_config(name)
        again = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
        assert type(config).model_validate(again) == config
