"""The report page: its numbers are the run's, any part may be missing, and nothing recorded can run.

What a browser must show is checked in a real headless Chromium; without one those tests are skipped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from decimal import ROUND_HALF_UP, Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_run import make_run, write, write_lines
from mua.chat import Message, ToolCall
from mua.errors import MuaError
from mua.report import build_report
from mua.report import conversations as talks
from mua.report.build import collect, embed

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found to open the report in")
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<!--<script>\u2028\u2029 {{DATA}} \U0001f600"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), steps=12, tasks=30, samples=2)


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def data_in(page: Path):
    """The data block as a browser's parser would cut it out."""
    text = page.read_text(encoding="utf-8")
    return json.loads(text.split('id="data">')[1].split("</script")[0])


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
    shell = re.sub(r'(id="data">).*?(</script)', r"\1\2", page, flags=re.S)
    assert set(re.findall(r"https?://[^\s\"'`]+", shell)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(
        r"<(link|iframe|object|base)\b|\bsrc=|url\(|@import|\bfetch\(|XMLHttp|import\(", shell
    )
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
    talk = data["conversations"]
    assert data["pairs"]
    for pair in data["pairs"]:
        a, b = talk[pair["before"]], talk[pair["after"]]
        assert a["task"] == b["task"]
        assert (a["reward"], b["reward"]) == ((0, 1) if pair["gained"] else (1, 0))
        assert (data["evals"][a["eval"]]["model"], data["evals"][b["eval"]]["model"]) == ("cold_start", "rl")
    assert len({talk[p["before"]]["kind"] for p in data["pairs"] if p["gained"]}) > 3


def test_interval_of_the_gain_only_where_both_files_have_the_tasks(tmp_path: Path):
    run = make_run(tmp_path, steps=2, tasks=14, samples=1)
    path = run / "eval" / "rl_greedy.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[3:]))
    greedy = next(g for g in collect(run)["groups"] if g["title"] == "Greedy")
    assert greedy["gain"]["points"] is not None
    assert greedy["gain"]["low"] is None and greedy["gain"]["high"] is None


def test_embedded_conversations_are_capped_and_counted(run: Path, monkeypatch: pytest.MonkeyPatch):
    in_all = sum(len(p.read_text().splitlines()) for p in (run / "eval").glob("*.jsonl"))
    assert collect(run)["conversations_in_all"] == len(collect(run)["conversations"]) == in_all
    monkeypatch.setattr(talks, "MAX_SHOWN", 60)
    data = collect(run)
    assert (len(data["conversations"]), data["conversations_in_all"]) == (60, in_all)
    assert data["pairs"] and max(max(p["before"], p["after"]) for p in data["pairs"]) < 60
    monkeypatch.setattr(talks, "MAX_CHARACTERS", 20_000)
    few = collect(run)
    assert 0 < len(few["conversations"]) < 60


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
        read = path.suffix == ".jsonl" and path.name != "trajectories.jsonl"  # there are evaluations
        if how in ("junk", "torn") and read:
            assert any(path.name in note for note in data["notes"]), path.name


def test_figures_of_the_wrong_type_do_not_stop_the_page(tmp_path: Path):
    (tmp_path / "eval").mkdir()
    odd = {"model": "rl", "success": 0.5, "ci95": ["a", None], "by_kind": {"x": 3}, "pass_k": [], "n": "many"}
    write(tmp_path / "eval" / "rl_t1.json", json.dumps(odd))
    write(tmp_path / "eval" / "base_t1.json", json.dumps({"model": "base", "success": math.nan}))
    write_lines(
        tmp_path / "metrics.jsonl",
        [{"step": 1, "reward": math.nan, "kl": math.inf}, {"step": 1, "reward": 0.5}],
    )
    data = data_in(build_report(tmp_path))
    assert [e["name"] for e in data["evals"]] == ["rl_t1"]
    assert data["evals"][0]["ci95"] is None
    assert data["metrics"] == [{"step": 1, "reward": 0.5}]  # the second of two lines of one step counts
    assert "base_t1.json has no success rate" in " ".join(data["notes"])


def test_run_in_progress_shows_its_last_rollouts(tmp_path: Path):
    data = data_in(build_report(make_run(tmp_path, steps=30, steps_done=12, models=())))
    assert not data["finished"] and data["steps"] == {"done": 12, "planned": 30}
    assert data["headline"]["text"].startswith("RL has done step 12 of 30")
    steps = [c["step"] for c in data["conversations"]]
    assert data["tail_only"] and steps[0] == 11 and steps == sorted(steps, reverse=True)


def test_no_secret_reaches_the_page(run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "run")
    write(
        copy / "manifest.json",
        json.dumps({"env": {"HF_TOKEN": "abc", "eos_tokens": 3, "api_key_env": "MY_KEY"}}),
    )
    write(copy / "summary.json", json.dumps({"note": "Bearer abcdef0123456789 at http://me:pw@host/"}))
    page = build_report(copy).read_text(encoding="utf-8")
    for secret in ("sk-abcdefghij", '"abc"', "abcdef0123456789", "me:pw"):
        assert secret not in page
    assert "MY_KEY" in page and "eos_tokens" in page


def test_a_run_that_is_no_folder_is_refused(tmp_path: Path):
    with pytest.raises(MuaError, match="not a folder"):
        build_report(tmp_path / "nothing")


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
@settings(max_examples=150, deadline=None)
def test_embedding_escapes_everything_and_loses_nothing(value):
    text = embed(value)
    assert text.isascii() and not set("<>&") & set(text)
    assert json.loads(text) == value


def test_a_lone_surrogate_survives():
    assert json.loads(embed({"said": "\ud800"})) == {"said": "\ud800"}


# ---------------------------------------------------------------- in a browser


class Dom(HTMLParser):
    """Elements of a page in document order: (tag, attributes, text of the element and all inside it)."""

    VOID = frozenset(["meta", "input", "br", "img", "link", "hr"])

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict, list[str]]] = []
        self._open: list[tuple[str, dict, list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        element = (tag, dict(attrs), [])
        self.elements.append(element)
        if tag not in self.VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for element in self._open:
            element[2].append(data)

    def find(self, **wanted: str) -> list[str]:
        """Texts of the elements with these attributes; `data_figure` means `data-figure`."""
        keys = {k.replace("_", "-"): v for k, v in wanted.items()}
        return [
            "".join(text)
            for _, attrs, text in self.elements
            if all(attrs.get(k) == v for k, v in keys.items())
        ]

    def tags(self, name: str) -> list[dict]:
        return [attrs for tag, attrs, _ in self.elements if tag == name]

    def rows(self, table: str) -> list[list[str]]:
        """The body of a `data-table`, cell by cell."""
        at = next(i for i, (_, a, _) in enumerate(self.elements) if a.get("data-table") == table)
        out: list[list[str]] = []
        for tag, _, text in self.elements[at + 1 :]:
            if tag == "table":
                break
            if tag == "tr":
                out.append([])
            elif tag in ("th", "td") and out:
                out[-1].append("".join(text))
        return out[1:]


def open_page(page: Path, tmp_path: Path) -> str:
    """The page's DOM after its script has run, as HTML."""
    assert CHROMIUM
    switches = (
        "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        "disable-component-update disable-sync window-size=1200,900 virtual-time-budget=4000 dump-dom"
    )
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [CHROMIUM, profile, *(f"--{s}" for s in switches.split()), page.as_uri()]
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    return done.stdout


def with_script(page: Path, script: str) -> Path:
    """A copy whose policy also allows this script, which plays the reader."""
    text = page.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = text.replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    head, tail = text.rsplit("</body>", 1)
    copy = page.with_name("played.html")
    copy.write_text(f"{head}<script>{script}</script></body>{tail}", encoding="utf-8")
    return copy


def shown(x: float) -> str:
    return f"{Decimal(100 * x).quantize(Decimal('0.1'), ROUND_HALF_UP)}%"


def four(x: float) -> str:
    """The page's form of a small number: four significant digits at most."""
    return f"{float(f'{x:.4g}'):g}"


def gained(x: float) -> str:
    text = shown(x).rstrip("%")
    if float(text) == 0:
        return "0.0"
    return text.replace("-", "\u2212") if x < 0 else f"+{text}"


@needs_chromium
def test_browser_shows_the_numbers_of_the_run(run: Path, tmp_path: Path):
    page = build_report(run, tmp_path / "r.html")
    dom = Dom(open_page(page, tmp_path))
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

    facts = dict(zip(dom_texts(dom, "dt"), dom_texts(dom, "dd"), strict=True))
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


def dom_texts(dom: Dom, tag: str) -> list[str]:
    return ["".join(text) for name, _, text in dom.elements if name == tag]


@needs_chromium
@pytest.mark.parametrize("policy", ["with its policy", "without its policy"])
def test_browser_runs_nothing_that_a_run_recorded(tmp_path: Path, policy: str):
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
    opened = "document.querySelectorAll('details').forEach((d) => (d.open = true));"
    dom = Dom(open_page(with_script(page, opened), tmp_path))
    assert dom.tags("html")[0].get("data-ready") == "true"
    assert dom_texts(dom, "title")[0] == f"{HOSTILE} · mua"
    assert not dom.tags("img") and len(dom.tags("script")) == 3  # data, page, the reader above
    said = [t for t in dom_texts(dom, "div") if t.startswith("</script><script>")]
    assert said and HOSTILE in said[0]


@needs_chromium
def test_browser_shows_an_empty_run_without_a_stumble(tmp_path: Path):
    (tmp_path / "run").mkdir()
    dom = Dom(open_page(build_report(tmp_path / "run"), tmp_path))
    text = "".join(dom_texts(dom, "main"))
    assert dom.tags("html")[0].get("data-ready") == "true"
    assert "Nothing measured yet." in text and "No evaluation has finished yet" in text
    assert not re.search(r"\b(null|undefined|NaN)\b|\[object", text)


READER = """{
const seen = {};
const key = (node, name) => node.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
const chart = (name) => document.querySelector(`[data-chart=${name}]`);
key(chart("reward"), "Home");
key(chart("reward"), "ArrowRight");
seen.reward = chart("reward").getAttribute("aria-valuetext");
seen.linked = chart("kl").getAttribute("aria-valuenow");
seen.other = chart("sft_agent").getAttribute("aria-valuenow");
seen.tip = document.getElementById("tip").textContent;
key(chart("reward"), "Escape");
seen.hidden = document.getElementById("tip").hidden;
const list = document.querySelector("[role=listbox]");
const [model, kind, outcome] = document.querySelectorAll("#browse select");
const set = (node, value) => { node.value = value; node.dispatchEvent(new Event("change")); };
set(model, [...model.options].find((o) => o.text.startsWith("Cold start · greedy")).value);
set(outcome, "=Failed");
seen.listed = list.querySelectorAll("[role=option]").length;
key(list, "ArrowDown");
seen.chosen = [...list.children].findIndex((o) => o.getAttribute("aria-selected") === "true");
seen.read = document.querySelector("#browse .talk .verdict").textContent;
const heads = [...document.querySelectorAll("[data-table=kinds] thead button")];
heads.find((b) => b.textContent === "kind").click();
seen.kinds = [...document.querySelectorAll("[data-table=kinds] tbody tr")].map((r) => r.dataset.kind);
const task = () => document.querySelector("#compare .talk header .hint").textContent;
seen.pair = [task()];
[...document.querySelectorAll("#compare button")].at(-1).click();
seen.pair.push(task());
document.getElementById("theme").click();
seen.theme = document.documentElement.dataset.theme;
seen.background = getComputedStyle(document.body).backgroundColor;
const out = Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify(seen) });
document.body.append(out);
}
"""


@needs_chromium
def test_browser_answers_keyboard_filters_and_buttons(run: Path, tmp_path: Path):
    page = with_script(build_report(run, tmp_path / "r.html"), READER)
    seen = json.loads(Dom(open_page(page, tmp_path)).find(id="seen")[0])
    second = json.loads((run / "metrics.jsonl").read_text().splitlines()[1])
    value = four(second["reward"])
    assert seen["reward"] == f"step 2: {value}" and value in seen["tip"]
    assert seen["linked"] == "2" and seen["other"] != "2" and seen["hidden"]
    failed = [
        json.loads(line) for line in (run / "eval" / "cold_start_greedy.jsonl").read_text().splitlines()
    ]
    assert seen["listed"] == sum(t["reward"] == 0 for t in failed)
    assert seen["chosen"] == 1 and "Failed · reward 0" in seen["read"]
    assert seen["kinds"] == sorted(seen["kinds"])
    assert seen["pair"][0] != seen["pair"][1]
    assert seen["theme"] == "dark" and seen["background"] == "rgb(20, 22, 26)"


@needs_chromium
def test_browser_fits_a_phone(run: Path, tmp_path: Path):
    tell = "parent.postMessage([innerWidth, document.documentElement.scrollWidth], '*');"
    page = with_script(build_report(run, tmp_path / "r.html"), tell)
    frame = tmp_path / "phone.html"
    listen = "addEventListener('message', (e) => (document.title = e.data.join()));"
    write(
        frame,
        f"<script>{listen}</script><iframe width=390 height=800 style='border:0' src='{page.name}'></iframe>",
    )
    inner, content = map(int, dom_texts(Dom(open_page(frame, tmp_path)), "title")[0].split(","))
    assert inner == 390 and content <= inner
