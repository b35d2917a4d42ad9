"""What the pages for people say is true: the tutorial runs, commands and settings exist, links lead on."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer

from fake_server import FakeServer, chat
from mua import cli
from mua.config import Config, load_config
from mua.domain import check_no_noop, check_no_overlap
from mua.domains import load
from mua.errors import MuaError
from mua.trajectory import read_trajectories

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TUTORIAL = ROOT / "docs" / "train-my-domain.md"


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page that are in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    """The words after `mua` of every command of a page, in its order."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [words[1:] for line in lines if (words := shlex.split(line, comments=True))[:1] == ["mua"]]


def parsed(words: list[str]) -> dict:
    """The parameters of a command. Raises click's UsageError for one that does not exist."""
    group = typer.main.get_command(cli.app)
    name = words[0]
    assert name in group.commands, f"mua has no command {name}"  # type: ignore[attr-defined]
    return group.commands[name].make_context(name, list(words[1:])).params  # type: ignore[attr-defined]


@pytest.fixture
def gym(tmp_path, monkeypatch) -> Path:
    """A folder with the two files of the tutorial."""
    (python,), (yaml,) = blocks(TUTORIAL, "python"), blocks(TUTORIAL, "yaml")
    (tmp_path / "gym.py").write_text(python, encoding="utf-8")
    (tmp_path / "gym.yaml").write_text(yaml, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch, words: list[str]) -> None:
    monkeypatch.setattr("sys.argv", ["mua", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, words


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_and_settings_exist(page, tmp_path):
    for words in commands(page):
        if words == ["--help"]:
            continue
        try:
            load_config(None, parsed(words).get("overrides") or ())
        except MuaError as exc:  # half a user is fine: the file beside it has the other half
            assert "is missing" in str(exc), (words, exc)
    for text in blocks(page, "yaml"):
        (tmp_path / "page.yaml").write_text(text, encoding="utf-8")
        load_config(tmp_path / "page.yaml")


def test_the_page_of_settings_says_what_the_code_says():
    page = runpy.run_path(str(ROOT / "docs" / "settings.py"))
    assert page["PAGE"].read_text(encoding="utf-8") == page["page"](), "run python docs/settings.py"
    listed = set(re.findall(r"^\| `([^`]+)` \|", page["page"](), re.M))
    # Of what stands in a whole configuration, nothing is missing but the twins.
    config = Config().model_dump(exclude={"user_sft", "eval_user"})

    def keys(value, prefix=""):
        for name, inner in value.items():
            yield from (
                keys(inner, f"{prefix}{name}.") if isinstance(inner, dict) and inner else [prefix + name]
            )

    assert set(keys(config)) - listed == {"gateways"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_named_tests_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for file, name in re.findall(r"`(test_\w+\.py)::(test_\w+)`", text):
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{name}"


def test_the_tutorials_domain_is_sound(gym, monkeypatch, capsys):
    domain = load("./gym.py")
    splits = {name: domain.tasks(name) for name in domain.splits}
    check_no_noop(domain, [t for tasks in splits.values() for t in tasks])
    check_no_overlap([*splits["cold"], *splits["train"]], splits["test"], "test")
    for words in commands(TUTORIAL):
        if words[0] in ("tasks", "domain"):
            run(monkeypatch, words)
    shown = capsys.readouterr().out
    assert f"{len(splits['test'])} tasks, 0 problems" in shown
    assert "gym is sound" in shown and "repair_desk is sound" in shown
    assert {t.kind for t in splits["test"]} == {"book", "no_number", "owes", "full", "switch"}


def test_the_tutorials_first_run_runs(gym, monkeypatch):
    (words,) = [w for w in commands(TUTORIAL) if "runs/gym-try" in w]
    small = ["threads=1", "model.tiny.layers=2", "eval.temperatures=[0.0]", "limits.turns=4"]
    small += ["max_step_tokens=16", "train.max_step_tokens=16"]
    run(monkeypatch, [*words, *small])
    summary = json.loads((gym / "runs/gym-try/summary.json").read_text())
    assert (summary["rl"]["n"], summary["rl_steps"], summary["train_user"]) == (4, 2, "agenda")
    assert (gym / "runs/gym-try/report.html").stat().st_size > 10_000


def test_the_transcripts_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "from-transcripts.md"
    (python,) = blocks(page, "python")
    exec(compile(python.replace("[:150]", "[:60]"), "stand_in.py", "exec"), {})
    drafted = {"goal": "You want help.", "facts": {}, "behaviours": []}
    small = ["coldstart.conversations=40", "sft.steps=2", "user_sft.steps=2", "train.steps=1", "threads=1"]
    small += ["model.tiny.layers=2", "eval.tasks=4", "limits.turns=3", "max_step_tokens=16"]
    small += ["train.max_step_tokens=16", "train.rollout.group_size=2", "train.rollout.groups=4"]
    small += ["eval.temperatures=[0.0]", "train.rollout.refill_rounds=0", "train.processes=1"]
    done = []
    with FakeServer(lambda body: chat(f"Sorry? {json.dumps(drafted)}")) as server:
        for words in commands(page):
            here = [server.url if word.startswith("http://localhost") else word for word in words]
            capsys.readouterr()
            run(monkeypatch, [*here, *(small if words[0] == "quickstart" else ())])
            done.append(words[0])
            if words[0] == "tasks":
                listed = capsys.readouterr().out.splitlines()
                assert len(listed) > 40 and all(line.startswith("imported-") for line in listed)
    assert done == ["import", "quickstart", "coldstart", "tasks", "import", "users"]
    mix = json.loads(Path("runs/imported/personas.json").read_text())["personas"]
    wanted = {name: float(one["count"]) for name, one in mix.items()}
    for place, user in (("like_them", "coldstart"), ("trained", "train_user")):
        assert load_config(Path("runs") / place / "config.yaml").model_dump()[user]["personas"] == wanted
    played = read_trajectories(Path("runs/like_them/coldstart.jsonl"))
    assert {b for t in played for b in t.persona.split("+")} >= {"plain", "emotional"}
    taught = json.loads(Path("runs/taught/scenarios.json").read_text())["scenarios"]
    assert {s["goal"] for s in taught} == {"You want help."}
    far = json.loads(Path("runs/compared/eval/users_NAME.json").read_text())["imported"]
    assert list(far) == ["agenda", "agenda+runs/imported/personas.json"]
    behaviours = [{d["measure"]: d for d in found}["behaviours"]["distance"] for found in far.values()]
    assert behaviours[1] < behaviours[0]
