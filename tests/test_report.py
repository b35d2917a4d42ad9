"""The report page: its numbers are the run's, any part may be missing, and nothing recorded can run.

What a reader does with the conversations in it is in `test_pages.py`.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from browser import Dom, Watched, chromium, needs_chromium, open_page, shown
from fake_run import make_run, real_run, write, write_lines
from mua.chat import Message, ToolCall
from mua.domains import load
from mua.errors import MuaError
from mua.evaluate import audit as auditing
from mua.report import build_report, packing, replay
from mua.report import conversations as talks
from mua.report.build import Source, collect
from mua.report.shell import embed, hide_secrets, safe_json
from mua.trajectory import read_trajectories

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<!--<script>\u2028\u2029 {{DATA}} \U0001f600"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), steps=12, tasks=30, samples=2)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def data_in(page: Path):
    """The data block as a browser's parser would cut it out."""
    text = page.read_text(encoding="utf-8")
    return json.loads(text.split('id="data">')[1].split("</script")[0])


def block_in(page: Path, name: str):
    """A compressed block, as the page inflates it."""
    found = re.search(rf'id="{name}">([^<]*)<', page.read_text(encoding="utf-8"))
    assert found, name
    return json.loads(zlib.decompress(base64.b64decode(found[1])))


def rows_in(index: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an index, which is by column."""
    words, columns = index["words"], index["columns"]
    return [
        {k: words[k][v[i]] if k in words and v[i] >= 0 else v[i] for k, v in columns.items()}
        for i in range(index["n"])
    ]


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


# ---------------------------------------------------------------- without a browser


def test_building_needs_no_torch(run: Path, tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from mua.report import build_report;"
        f"build_report(Path({str(run)!r}), Path({str(tmp_path / 'r.html')!r}));"
        "print([m for m in ('torch', 'transformers', 'aiohttp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_same_run_same_bytes(run: Path, tmp_path: Path):
    first, second = (build_report(run, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_page_asks_for_nothing_from_outside(run: Path, tmp_path: Path):
    page = build_report(run, tmp_path / "r.html").read_text(encoding="utf-8")
    shell = re.sub(r'(id="\w+">)[^<]*(</script)', r"\1\2", page)
    assert set(re.findall(r"https?://[^\s\"'`]+", shell)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link|iframe|object|base)\b|\bsrc=|url\(|@import|XMLHttp|import\(", shell)
    # Only a page that is served live asks for anything, and its policy lets it ask its own server only.
    assert re.findall(r"\b(?:fetch|EventSource)\([^)]*\)", shell) == [
        'fetch(path, { cache: "no-store" })',
        'EventSource("events")',
    ]
    assert "innerHTML" not in shell and "insertAdjacentHTML" not in shell
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy and policy[1].startswith("default-src 'none'; ") and "unsafe" not in policy[1]


def test_gain_kinds_and_pairs_are_the_evaluations(run: Path):
    data = collect(run)
    before, after = (read_json(run / "eval" / f"{m}_t1.json") for m in ("cold_start", "rl"))
    main = data["groups"][0]
    assert (data["evals"][main["before"]]["name"], data["evals"][main["after"]]["name"]) == (
        "cold_start_t1",
        "rl_t1",
    )
    assert main["gain"]["points"] == after["success"] - before["success"]
    assert main["gain"]["low"] < main["gain"]["points"] < main["gain"]["high"]
    gains = {k: after["by_kind"][k]["success"] - before["by_kind"][k]["success"] for k in after["by_kind"]}
    assert {r["kind"]: r["gain"] for r in main["kinds"]} == gains
    assert [r["gain"] for r in main["kinds"]] == sorted(gains.values(), reverse=True)
    rows = {(r["source"], r["offset"]): r for r in rows_in(data["index"])}
    assert data["pairs"]
    for pair in data["pairs"]:
        a, b = (rows[tuple(pair[side])] for side in ("before", "after"))
        assert a["task"] == b["task"] == pair["task"]
        assert (a["reward"], b["reward"]) == ((0, 1) if pair["gained"] else (1, 0))
        models = [data["evals"][data["sources"][r["source"]]["eval"]]["model"] for r in (a, b)]
        assert models == ["cold_start", "rl"]
    assert len({p["kind"] for p in data["pairs"] if p["gained"]}) > 3


def test_parts_of_the_gain_add_up_to_it(run: Path):
    main = collect(run)["groups"][0]
    assert sum(r["share"] for r in main["kinds"]) == pytest.approx(main["gain"]["points"])
    assert all(r["share"] == pytest.approx(r["gain"] * r["n"] / 30) for r in main["kinds"])


def test_interval_of_the_gain_only_where_both_files_have_the_tasks(tmp_path: Path):
    run = make_run(tmp_path, steps=2, tasks=14, samples=1)
    path = run / "eval" / "rl_greedy.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[3:]))
    greedy = next(g for g in collect(run)["groups"] if g["title"] == "Greedy")
    assert greedy["gain"]["points"] is not None
    assert greedy["gain"]["low"] is None and greedy["gain"]["high"] is None


def test_every_conversation_is_in_the_page_as_it_was_stored(run: Path, tmp_path: Path):
    page = build_report(run, tmp_path / "r.html")
    data, index = data_in(page), block_in(page, "index")
    rows, blocks = rows_in(index), {}
    files = {f"eval-{p.stem}": p for p in (run / "eval").glob("*.jsonl")}
    files["training"] = run / "trajectories.jsonl"
    stored = {key: path.read_bytes() for key, path in files.items()}
    assert len(rows) == data["conversations_in_all"] == sum(raw.count(b"\n") for raw in stored.values())
    for row in rows:
        raw = stored[data["sources"][row["source"]]["key"]][row["offset"] :].split(b"\n", 1)[0]
        told = json.loads(raw)
        assert (row["task"], row["sample"], row["step"]) == (told["task_id"], told["sample"], told["step"])
        assert (row["reward"], row["termination"]) == (told["reward"], told["termination"])
        name = f"b{row['block']}"
        body = blocks.setdefault(name, block_in(page, name))[row["place"]]
        said = [(m["role"], m["text"]) for m in body["messages"]]
        assert said == [(m["role"], m["content"]) for m in told["messages"] if m["role"] != "system"]
        assert index["prompts"][body["prompt"]] == told["messages"][0]["content"]


def test_what_does_not_fit_is_left_out_and_counted(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(packing, "MAX_CHARACTERS", 16_000)
    monkeypatch.setattr(packing, "BLOCK", 20_000)
    page = build_report(run, tmp_path / "r.html")
    data, rows = data_in(page), rows_in(block_in(page, "index"))
    in_all = sum(
        len(p.read_text().splitlines()) for p in [*run.glob("eval/*.jsonl"), run / "trajectories.jsonl"]
    )
    assert data["conversations_in_all"] == in_all and 40 < len(rows) < in_all
    text = page.read_text(encoding="utf-8")
    assert sum(len(b) for b in re.findall(r'id="b\d+">([^<]*)<', text)) <= 16_000
    here = {(r["source"], r["offset"]) for r in rows}
    assert all(tuple(p[side]) in here for p in data["pairs"] for side in ("before", "after"))
    samples = {r["sample"] for r in rows if r["step"] < 0}
    assert samples == {0}  # every task of every model comes before a second try at one


def test_of_a_large_file_evenly_spread_steps_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = make_run(tmp_path, steps=101, tasks=6, samples=1, models=())
    whole = len((run / "trajectories.jsonl").read_text().splitlines())
    monkeypatch.setattr(talks, "MAX_LINES", whole // 2)
    data = Source(run).collect()
    steps = sorted({r["step"] for r in rows_in(data["index"])})
    assert data["index"]["n"] <= whole // 2 < whole == data["conversations_in_all"]
    assert steps[0] == 1 and steps[-1] == 101 and max(b - a for a, b in itertools.pairwise(steps)) <= 30


@given(st.integers(0, 200))
def test_spread_is_an_order_of_all(n: int):
    order = talks.spread(range(n))
    assert sorted(order) == list(range(n)) and order[:2] == ([n - 1, 0] if n > 1 else list(range(n)))


@pytest.mark.parametrize("how", ["absent", "empty", "junk", "torn"])
def test_any_part_may_be_missing_or_broken(tmp_path: Path, how: str):
    run = make_run(tmp_path / "run", steps=2, tasks=13, samples=2, models=("cold_start", "rl"))
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        copy = tmp_path / f"without {path.name}"
        shutil.copytree(run, copy)
        part = copy / path.relative_to(run)
        raw = part.read_bytes()
        match how:
            case "absent":
                part.unlink()
            case "empty":
                part.write_bytes(b"")
            case "junk":
                part.write_bytes(b'\xff\xfe[1, "\n{"step": "x", "task_id": 3, "messages": 4}\n[2]\n')
            case "torn":
                part.write_bytes(raw[: len(raw) * 2 // 3])
        data = data_in(build_report(copy))
        assert data["headline"]["text"]
        read = path.suffix == ".jsonl"
        if how in ("junk", "torn") and read:
            assert any(path.name in note for note in data["notes"]), path.name


def test_figures_of_the_wrong_type_do_not_stop_the_page(tmp_path: Path):
    (tmp_path / "eval").mkdir()
    odd = {"model": "rl", "success": 0.5, "ci95": ["a", None], "by_kind": {"x": 3}, "pass_k": [], "n": "many"}
    write(tmp_path / "eval" / "rl_t1.json", json.dumps(odd))
    write(tmp_path / "eval" / "base_t1.json", json.dumps({"model": "base", "success": math.nan}))
    write_lines(
        tmp_path / "metrics.jsonl",
        [{"step": 1, "reward": math.nan, "kl": math.inf}, {"step": 1, "reward": 0.5}, {"step": 10**400}],
    )
    data = data_in(build_report(tmp_path))
    assert [e["name"] for e in data["evals"]] == ["rl_t1"]
    assert data["evals"][0]["ci95"] is None
    assert data["metrics"] == [{"step": 1, "reward": 0.5}]  # the second of two lines of one step counts
    assert "base_t1.json has no success rate" in " ".join(data["notes"])


def test_run_in_progress_shows_its_rollouts(tmp_path: Path):
    data = collect(make_run(tmp_path, steps=30, steps_done=12, models=()))
    assert not data["finished"] and data["steps"] == {"done": 12, "planned": 30}
    assert data["headline"]["text"].startswith("RL has done step 12 of 30")
    assert [s["key"] for s in data["sources"]] == ["training"]
    assert {r["step"] for r in rows_in(data["index"])} == {1, 11}


def test_reading_again_reads_what_was_added(tmp_path: Path):
    run = make_run(tmp_path, steps=3, tasks=12, samples=1)
    path = run / "trajectories.jsonl"
    raw = path.read_bytes()
    cut = raw.index(b"\n", len(raw) // 2) + 200  # within a line
    path.write_bytes(raw[:cut])
    source = Source(run)
    first = source.collect()
    assert any("trajectories.jsonl: 1 line cut off" in note for note in first["notes"])
    path.write_bytes(raw)
    second = source.collect()
    fresh = collect(run)
    assert second["index"] == fresh["index"] and second["index"]["n"] > first["index"]["n"]
    assert second["notes"] == fresh["notes"]
    number = {s["key"]: s["id"] for s in first["sources"]}
    assert {s["key"]: s["id"] for s in second["sources"]} == number  # an open page may still ask
    row = rows_in(second["index"])[-1]
    told = source.body(second["sources"][row["source"]]["id"], row["offset"])
    assert (
        told and told["messages"][-1]["text"] == json.loads(raw.splitlines()[-1])["messages"][-1]["content"]
    )
    assert source.body(0, 1) is None and source.body(99, 0) is None
    path.write_bytes(b"")  # a run that was started again
    assert "training" in {s["key"] for s in source.collect()["sources"]}
    assert all(r["step"] < 0 for r in rows_in(source.collect()["index"]))


def test_no_secret_reaches_the_page(run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "run")
    write(
        copy / "manifest.json",
        json.dumps({"env": {"HF_TOKEN": "abc", "eos_tokens": 3, "api_key_env": "MY_KEY"}}),
    )
    write(copy / "summary.json", json.dumps({"note": "Bearer abcdef0123456789 at http://me:pw@host/"}))
    line = json.loads((copy / "trajectories.jsonl").read_text().splitlines()[0])
    line["messages"][1]["content"] = "I am sk-thiskeyisnotforyou0123, look me up"
    with (copy / "trajectories.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    path = build_report(copy)
    rows = rows_in(block_in(path, "index"))
    assert rows[-1]["first"] == "I am [hidden], look me up"
    body = block_in(path, f"b{rows[-1]['block']}")[rows[-1]["place"]]
    assert body["messages"][0]["text"] == "I am [hidden], look me up"
    page = path.read_text(encoding="utf-8")
    for secret in ("sk-abcdefghij", '"abc"', "abcdef0123456789", "me:pw"):
        assert secret not in page
    assert "MY_KEY" in page and "eos_tokens" in page


@pytest.fixture(scope="module")
def whole(played: Path) -> list[str]:
    """One line with tokens."""
    return (played / "trajectories.jsonl").read_text().splitlines()[1:2]


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_line_of_any_form_costs_that_line_only(whole: list[str], tmp_path: Path, data: st.DataObject):
    odd = place = json.loads(whole[0])
    for _ in range(data.draw(st.integers(0, 4))):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        inner = place[data.draw(st.sampled_from(keys))] if keys else None
        if not isinstance(inner, (dict, list)) or not inner:
            break
        place = inner
    key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
    place[key] = data.draw(json_values | st.just(10**400))
    (tmp_path / "trajectories.jsonl").write_text("\n".join([json.dumps(odd), *whole]) + "\n")
    source = Source(tmp_path)
    found = source.pack()[0]
    assert found["conversations_in_all"] in (1, 2)
    rows = rows_in(source.collect()["index"])
    assert [r["offset"] for r in rows][-1] == len(json.dumps(odd)) + 1
    source.body(0, 0)


def test_a_run_that_is_no_folder_is_refused(tmp_path: Path):
    with pytest.raises(MuaError, match="not a folder"):
        build_report(tmp_path / "nothing")


@given(json_values)
@settings(max_examples=150, deadline=None)
def test_embedding_escapes_everything_and_loses_nothing(value):
    text = embed(value)
    assert text.isascii() and not set("<>&") & set(text)
    assert json.loads(text) == value


def test_a_lone_surrogate_survives():
    assert json.loads(embed({"said": "\ud800"})) == {"said": "\ud800"}


# ---------------------------------------------------------------- what a replay shows


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real_run(tmp_path_factory.mktemp("played") / "run")


def test_figures_of_the_layers_are_those_of_the_audit(played: Path):
    domain = load("library:desk")
    data, _ = Source(played).pack()
    assert data["audited"] == data["conversations_in_all"] == 48 and data["notes"] == []
    for e in data["evals"]:  # eval/*.json of this run has none, so the page's are computed
        stored = list(read_trajectories(played / "eval" / f"{e['name']}.jsonl"))
        told = auditing.figures(domain, domain.tasks("test"), stored)
        assert {k: (v["rate"], v["n"]) for k, v in e["audit"]["layers"].items()} == {
            k: (v["rate"], v["n"]) for k, v in told["layers"].items() if v
        }
        for rule in e["audit"]["rules"]:
            assert rule["breaches"] == told["rules"][rule["layer"]][rule["rule"]]["breaches"]
    assert [e["audit"] for e in collect(played)["evals"]] == [e["audit"] for e in data["evals"]]


def test_without_time_nothing_is_audited_and_the_page_says_so(played: Path):
    data, _ = Source(played, seconds=0.0).pack()
    assert data["audited"] == 0 and any(
        "48 conversations are without their audit" in n for n in data["notes"]
    )


def test_changes_are_field_by_field(played: Path):
    t = next(
        t
        for t in read_trajectories(played / "eval" / "rl_t1.jsonl")
        if any(c.name == "renew_loan" for m in t.messages for c in m.tool_calls)
    )
    found = replay.state_diffs(t, load("library:desk"))
    ((at, n), (change, *_)) = next(
        (place, changes) for place, changes in found.items() if changes[0].record.startswith("loans.")
    )
    assert t.messages[at].tool_calls[n].name == "renew_loan"
    assert change.field and change.before != change.after and None not in (change.before, change.after)


def test_a_change_names_what_is_inside_a_record():
    before = {"address": {"city": "Rome", "zip": "1"}, "bills": [{"bill_id": "B1", "due": 3}], "tags": ["a"]}
    after = {"address": {"city": "Oslo", "zip": "1"}, "bills": [{"bill_id": "B1", "due": 3.0}], "tags": []}
    found = list(replay._compare("users.u1", before, after))
    assert [(c.record, c.field, c.before, c.after) for c in found] == [
        ("users.u1", "address.city", '"Rome"', '"Oslo"'),
        ("users.u1", "tags", '["a"]', "[]"),
    ]
    (paid,) = replay._compare("users.u1", before, {**before, "bills": [{"bill_id": "B1"}]})
    assert (paid.field, paid.before, paid.after) == ("bills.B1.due", "3", None)
    (gone,) = replay._compare("users.u1", before, None)
    assert gone.field == "" and gone.after is None


def test_a_trajectory_cannot_name_code_to_be_run(played: Path, tmp_path: Path):
    """A domain that only a trajectory names is not loaded."""
    copy = shutil.copytree(played, tmp_path / "run")
    trap = tmp_path / "trap.py"
    trap.write_text(f"from pathlib import Path\nPath({str(tmp_path / 'sprung')!r}).touch()\n")
    lines = list(read_trajectories(copy / "eval" / "rl_t1.jsonl"))
    for t in lines:
        t.domain = str(trap)
    write_lines(copy / "eval/rl_t1.jsonl", [t.to_dict() for t in lines])
    data, _ = Source(copy).pack()
    assert not (tmp_path / "sprung").exists()
    assert any("16 conversations could not be audited" in note for note in data["notes"])


# ---------------------------------------------------------------- in a browser


def four(x: float) -> str:
    """The page's form of a small number: four significant digits at most."""
    return f"{float(f'{x:.4g}'):g}"


def gained(x: float) -> str:
    text = shown(x).rstrip("%")
    if float(text) == 0:
        return "0.0"
    return text.replace("-", "\u2212") if x < 0 else f"+{text}"


@needs_chromium
def test_browser_shows_the_numbers_of_the_run(run: Path, tmp_path: Path, browser: Any):
    page = build_report(run, tmp_path / "r.html")
    dom = Dom(open_page(page, browser))
    assert dom.tags("html")[0].get("data-ready") == "true", "the page's script did not run to its end"
    evals = {p.stem: read_json(p) for p in (run / "eval").glob("*.json")}
    for name, e in evals.items():
        assert dom.find(data_figure=name) == [shown(e["success"])]
    gain = evals["rl_t1"]["success"] - evals["cold_start_t1"]["success"]
    assert dom.find(data_figure="gain") == [f"{gained(gain)} points"]
    assert f"RL solves {shown(evals['rl_t1']['success'])} of 30 test tasks" in dom.find(id="hero")[0]

    table = {row[0]: row[1:] for row in dom.rows("pass_k")}
    for label, model in (("Base", "base"), ("Cold start", "cold_start"), ("RL", "rl")):
        assert table[label] == [shown(evals[f"{model}_t1"]["pass_k"][k]) for k in ("1", "2")]
    for row in dom.rows("evals"):
        e = evals[row[0]]
        assert row[1:4] == [shown(e["success"]), " to ".join(map(shown, e["ci95"])), str(e["n"])]
    kinds = dom.rows("kinds")
    parts = [evals[f"{m}_t1"]["by_kind"] for m in ("base", "cold_start", "rl")]
    assert {r[0] for r in kinds} == set(parts[2])
    for kind, n, _, *cells in kinds:
        a, b, c = (part[kind]["success"] for part in parts)
        assert [n, *cells] == [str(parts[2][kind]["n"]), shown(a), shown(b), shown(c), gained(c - b)]

    facts = dict(zip(dom.texts("dt"), dom.texts("dd"), strict=True))
    assert facts["Domain"] == "library:desk" and facts["Parameters"] == "4.81 M"
    assert facts["Wall time"] == "40 min" and facts["Peak memory"] == "1.6 GiB" and facts["Seed"] == "7"
    assert (facts["Training user"], facts["Evaluation user"]) == ("agenda", "lm")

    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    spoken = {a["data-chart"]: a["aria-valuetext"] for a in dom.tags("svg") if "data-chart" in a}
    assert spoken["reward"] == f"step 12: {four(last['reward'])}"
    assert (
        spoken["queries"]
        == f"step 12: all correct {shown(last['all_correct'])}, all wrong {shown(last['all_wrong'])}"
    )
    for name, calls in last["tool_calls"].items():
        assert f"{name} {four(calls)}" in spoken["tool_calls"]
    for name, n in last["terminations"].items():
        assert f"{name.replace('_', ' ')} {n} ({shown(n / 128)})" in spoken["terminations"]
    assert {"turns", "tokens_per_step", "kl", "entropy", "grad_norm", "clip_fraction"} <= set(spoken)
    assert {"groups", "infrastructure", "seconds", "sft_agent", "sft_user"} <= set(spoken)


@needs_chromium
@pytest.mark.parametrize("policy", ["with its policy", "without its policy"])
def test_browser_runs_nothing_that_a_run_recorded(tmp_path: Path, policy: str, browser: Any):
    def poison(name: str, played: list) -> None:
        for t in played:
            call = ToolCall(HOSTILE, {HOSTILE: HOSTILE}, "c1")
            answer = Message("tool", json.dumps([HOSTILE]), tool_call_id="c1")
            t.messages[1:] = [Message("user", HOSTILE), Message("assistant", HOSTILE, (call,)), answer]
            t.kind, t.reason, t.task_id = HOSTILE, f"differs: {HOSTILE}; {HOSTILE}", HOSTILE + t.task_id

    run = make_run(tmp_path / "run", steps=3, tasks=14, samples=1, edit=poison)
    write(run / "summary.json", json.dumps({"run": HOSTILE, "model": HOSTILE, HOSTILE: 1}))
    line = {
        "step": 4,
        "reward": 0.5,
        "tool_calls": {HOSTILE: 1},
        "terminations": {HOSTILE: 2},
        "by_kind": {HOSTILE: 1, "x": 0},
    }
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    page = build_report(run)
    if policy == "without its policy":  # the escaping must hold on its own
        text = page.read_text(encoding="utf-8")
        page.write_text(re.sub(r'<meta http-equiv="Content-Security[^>]*>', "", text), encoding="utf-8")
    watched = Watched(browser)
    opened = watched.open(page)
    opened.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    opened.wait_for_timeout(200)
    dom = Dom(opened.content())
    watched.close(page)
    assert dom.tags("html")[0].get("data-ready") == "true"
    assert dom.texts("title")[0] == f"{HOSTILE} · mua"
    assert not dom.tags("img")
    assert all(
        s.get("type") in ("application/json", "application/octet-stream", None) for s in dom.tags("script")
    )
    assert sum("type" not in s for s in dom.tags("script")) == 1
    said = [t for t in dom.texts("div") if t.startswith("</script><script>")]
    assert said and HOSTILE in said[0]


@needs_chromium
def test_browser_shows_an_empty_run_without_a_stumble(tmp_path: Path, browser: Any):
    (tmp_path / "run").mkdir()
    dom = Dom(open_page(build_report(tmp_path / "run"), browser))
    text = "".join(dom.texts("main"))
    assert dom.tags("html")[0].get("data-ready") == "true"
    assert "Nothing measured yet." in text and "No evaluation has finished yet" in text
    assert not re.search(r"\b(null|undefined|NaN)\b|\[object", text)


@needs_chromium
def test_browser_answers_keyboard_and_buttons(run: Path, tmp_path: Path, browser: Any):
    path = build_report(run, tmp_path / "r.html")
    watched = Watched(browser, color_scheme="light")
    page = watched.open(path)

    def chart(name: str) -> Any:
        return page.locator(f"[data-chart={name}]")

    chart("reward").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    second = json.loads((run / "metrics.jsonl").read_text().splitlines()[1])
    value = four(second["reward"])
    assert chart("reward").get_attribute("aria-valuetext") == f"step 2: {value}"
    assert chart("kl").get_attribute("aria-valuenow") == "2"  # the charts of a phase show the same step
    assert chart("sft_agent").get_attribute("aria-valuenow") != "2"
    assert value in page.locator("#tip").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()
    page.locator("[data-table=kinds] thead button", has_text="kind").click()
    kinds = page.locator("[data-table=kinds] tbody tr").evaluate_all("(r) => r.map((x) => x.dataset.kind)")
    assert kinds == sorted(kinds) and len(kinds) > 3
    page.locator("#theme").click()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    watched.close(path)


@needs_chromium
@pytest.mark.parametrize("width", [390, 760])
def test_browser_fits_a_phone(run: Path, tmp_path: Path, width: int, browser: Any):
    path = build_report(run, tmp_path / "r.html")
    watched = Watched(browser, viewport={"width": width, "height": 800})
    page = watched.open(path)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    watched.close(path)


secrets = st.sampled_from(
    [
        "sk-abcdefgh12345678",
        "HF_abcdefgh1234567890",
        "hf_abcdefgh1234567890",
        "bearer abcdefghijkl",
        "http://a:b@c",
    ]
)


@given(
    st.tuples(st.text(), secrets, st.text()), st.sampled_from(["said", "api_key", "hub_token", "Passwort"])
)
def test_secrets_are_hidden_wherever_they_stand(parts: tuple[str, str, str], key: str):
    value = {"a": [{key: "".join(parts)}], "b": "".join(parts)}
    assert json.loads(safe_json(value)) == hide_secrets(value)


def test_a_broken_line_is_counted_once_while_its_file_grows(tmp_path: Path):
    path = tmp_path / "trajectories.jsonl"
    good = {"task_id": "t", "messages": [], "termination": "user_stop"}
    path.write_text("[]\n")
    file = talks.File(0, "training", path)
    for n in range(3):
        with path.open("a") as end:
            end.write(json.dumps(good) + "\n")
        file.refresh()
        assert (file.broken, len(file), len(file.lines)) == (1, n + 1, n + 1)
