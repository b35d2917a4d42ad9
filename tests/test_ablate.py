"""Ablations: what arms share, that a failed one loses nothing, and the figures of the table."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mua import ablate, cli
from mua.config import load_config
from mua.errors import MuaError
from mua.evaluate.statistics import t_interval
from mua.pipeline import weights_digest
from test_cli import MICRO

MICRO = [*MICRO, "train.steps=2", "eval.temperatures=[1.0]", "train.processes=1"]
ARMS = """\
faster: {train.lr: 1.0e-3, train.grpo.aggregation: sequence_mean}
nobody: {train_user.model: /no/such/folder}
"""


def run(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mua", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, list[object], subprocess.CompletedProcess[str]]:
    """An ablation over one seed, with an arm that cannot run."""
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "arms.yaml").write_text(ARMS, encoding="utf-8")
    command = ["ablate", "--out", folder / "out", "--seeds", "3", "--arms", folder / "arms.yaml", *MICRO]
    return folder, command, run(*command)


def test_what_arms_share_is_what_each_would_have_made_itself(done, tmp_path):
    out = done[0] / "out" / "seed3"
    both, faster, only = (out / name for name in ("both", "faster", "rl_only"))
    # Taken over, not made again: the same files, and no seconds spent on them.
    for name in ("models/cold_start", "models/user", "models/base"):
        assert os.path.samefile(*(arm / name / "model.safetensors" for arm in (both, faster)))
    assert json.loads((faster / "times.json").read_text()).keys() == {"grpo", "eval"}
    assert json.loads((both / "times.json").read_text()).keys() == {"conversations", "sft", "grpo", "eval"}
    # Without a cold start there is none: RL starts from the base model.
    assert not (only / "models" / "cold_start").exists()
    # (Two steps from nothing earn nothing, so the weights stay what GRPO started from.)
    assert weights_digest(only / "models" / "rl") == weights_digest(both / "models" / "base")
    assert weights_digest(both / "models" / "rl") == weights_digest(both / "models" / "cold_start")
    assert {p.name for p in (only / "eval").glob("*.json")} == {"base_t1.json", "rl_t1.json"}
    # The same arm as a run of its own.
    alone = tmp_path / "alone"
    arm = ["train.lr=1.0e-3", "train.grpo.aggregation=sequence_mean"]
    assert run("quickstart", "--seed", 3, "--out", alone, *MICRO, *arm).returncode == 0
    assert weights_digest(alone / "models" / "rl") == weights_digest(faster / "models" / "rl")
    for name in ("trajectories.jsonl", *(f"eval/{s}_t1.jsonl" for s in ("base", "cold_start", "rl"))):
        assert (alone / name).read_bytes() == (faster / name).read_bytes()


def test_an_arm_that_fails_is_named_and_loses_nothing_of_the_others(done):
    folder, command, first = done
    assert first.returncode == 1
    assert "error: 1 of 4 runs failed; the first, seed3/nobody: " in first.stderr
    assert "/no/such/folder" in first.stderr
    table = json.loads((folder / "out" / "table.json").read_text())
    assert list(table["arms"]) == ["base", "cold_start", "rl_only", "both", "faster", "nobody"]
    assert list(table["failed"]) == ["seed3/nobody"]
    assert {n for n, a in table["arms"].items() if a["success"] is None} == {"nobody"}
    assert table["arms"]["faster"]["episodes"] == 2 * 2 * 2
    assert "Failed: seed3/nobody" in (folder / "out" / "table.md").read_text()
    ElementTree.parse(folder / "out" / "ablation.svg")
    # The same command runs nothing again.
    made = {p: p.stat().st_mtime_ns for p in (folder / "out").glob("seed3/*/models/rl")}
    assert len(made) == 3
    again = run(*command)
    assert again.returncode == 1
    assert {p: p.stat().st_mtime_ns for p in made} == made
    assert json.loads((folder / "out" / "table.json").read_text()) == table


def summary(job: ablate.Job, rl: float, cold: float = 0.5) -> None:
    """What a finished run leaves, as far as the table reads it."""
    job.folder.mkdir(parents=True)
    stages = {"base": 0.0, "cold_start": cold, "rl": rl}
    rows = {k: {"success": v, "success_greedy": None, "n": 200} for k, v in stages.items()}
    text = json.dumps({**rows, "seconds": {"grpo": 60.0}})
    (job.folder / "summary.json").write_text(text, encoding="utf-8")
    lines = "".join(json.dumps({"step": s, "groups_played": 20}) + "\n" for s in (1, 2))
    (job.folder / "metrics.jsonl").write_text(lines, encoding="utf-8")


def test_the_table_has_means_over_seeds_and_differences_by_seed(tmp_path):
    arms = {"both": ablate.PAPER["both"], "no_refill": ablate.VARIANTS["no_refill"]}
    jobs = ablate.plan("quickstart", [], arms, [0, 1, 2], tmp_path)
    assert [job.key for job in jobs] == [f"seed{s}/{n}" for n in arms for s in (0, 1, 2)]
    for job, rl, cold in zip(jobs, (0.7, 0.8, 0.9, 0.65, 0.7), (0.5, 0.4, 0.6, 0.5, 0.4), strict=False):
        summary(job, rl, cold)
    table = ablate.collect(jobs, arms, {})
    assert table["missing"] == ["seed2/no_refill"]
    assert table["tasks"] == [200]
    cold, both, plain = (table["arms"][n] for n in ("cold_start", "both", "no_refill"))
    assert both["success"]["mean"] == pytest.approx(0.8)
    half = 4.302653 * 0.1 / math.sqrt(3)  # the 97.5 % point of Student's t with two degrees of freedom
    assert both["success"]["ci95"] == pytest.approx([0.8 - half, 0.8 + half])
    assert both["success_difference"] is None
    assert both["success_greedy"] is None
    assert cold["success_difference"]["by_seed"] == pytest.approx({"0": -0.2, "1": -0.4, "2": -0.3})
    # Only the seeds that both have: (0.65 - 0.7, 0.7 - 0.8), not the difference of the two means.
    assert plain["success_difference"]["by_seed"] == pytest.approx({"0": -0.05, "1": -0.1})
    assert plain["success_difference"]["mean"] == pytest.approx(-0.075)
    assert (plain["episodes"], plain["seconds_grpo"]) == (2 * 20 * 8, 60.0)
    columns, rows = ablate.write(table, "Title & more", tmp_path)
    assert rows[1][:2] == ["cold start only", "cold start + RL"]
    assert rows[1][2:4] == ["50.0 (25.2 to 74.8)", "-30.0 (-54.8 to -5.2)"]
    assert all(len(row) == len(columns) for row in rows)
    ElementTree.parse(tmp_path / "ablation.svg")


def test_t_interval():
    assert t_interval([1, 2, 3, 4, 5]) == pytest.approx((3 - 1.963243, 3 + 1.963243))
    assert t_interval([0.5]) is None
    assert t_interval([0.5, 0.5]) == (0.5, 0.5)


def test_what_is_shared_depends_on_what_differs():
    def parts(*overrides: str) -> set[str]:
        return {proof for proof, _ in ablate.shared_parts(plain, load_config("quickstart", overrides))}

    plain = load_config("quickstart")
    base = {"models/base", "eval/base_t1.json", "eval/base_greedy.json"}
    cold = {"models/cold_start", "eval/cold_start_t1.json", "eval/cold_start_greedy.json"}
    assert parts("train.lr=1") == parts("train_user.kind=agenda") == {*base, *cold, "models/user"}
    assert parts("sft=null") == parts("sft.lr=1e-4") == {*base, "models/user"}
    assert parts("user_sft.lr=1e-4") == {*base, *cold}
    for other in ("seed=1", "domain=library", "limits.turns=3", "eval.tasks=5", "coldstart.hasty=0"):
        assert not parts(other)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "must hold one arm or more"),
        ("a: 3", "must hold one arm or more"),
        ("both: {train.lr: 1}", "'both' cannot be the name of an arm: it is one of mua's own"),
        ("../a: {train.lr: 1}", "use letters, digits"),
        ("a: {", "cannot be read"),
    ],
)
def test_a_file_of_arms_that_is_no_such_file(text, said, tmp_path):
    (tmp_path / "arms.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(MuaError, match=said):
        ablate.read_arms(tmp_path / "arms.yaml")


def test_what_is_wrong_is_said_before_anything_runs(tmp_path, monkeypatch, capsys):
    for more, said in (
        (["--seeds", "0,x"], "--seeds 0,x: give numbers"),
        (["train.lrr=1"], "did you mean 'train.lr'"),
        (["--arms", str(tmp_path / "arms.yaml")], "arm 'a': quickstart: unknown key 'train.lrr'"),
    ):
        (tmp_path / "arms.yaml").write_text("a: {train.lrr: 1}", encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["mua", "ablate", "--out", str(tmp_path / "out"), *more])
        with pytest.raises(SystemExit):
            cli.main()
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
