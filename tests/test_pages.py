"""What a reader does with a report's conversations, in a real browser: filters, search, links, keys, two side
by side, tokens, paper; ten thousand of them; hostile ones. Every page is watched: no error, no request.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import Watched, chromium, needs_chromium, until
from fake_run import add_rollouts, make_run, real_run, write_lines
from mua.audit.events import state_changes
from mua.domains import load
from mua.evaluate import audit as auditing
from mua.report import build, build_report
from mua.trajectory import Trajectory, read_trajectories

pytestmark = needs_chromium
MODIFIERS = "\u202eevil\u2066\x07\x1b[31m\ud800\u200b"
MARKUP = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real_run(tmp_path_factory.mktemp("played") / "run")


@pytest.fixture(scope="module")
def path(run: Path) -> Path:
    return build_report(run)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def reader(path: Path, browser: Any) -> Iterator[Any]:
    """The report, opened."""
    watched = Watched(browser)
    yield watched.open(path)
    watched.close(path)


def stored(run: Path, name: str) -> list[Trajectory]:
    return list(read_trajectories(run / f"{name}.jsonl"))


def everything_in(run: Path) -> list[Trajectory]:
    return [t for name in ("eval/cold_start_t1", "eval/rl_t1", "trajectories") for t in stored(run, name)]


def choose(page: Any, name: str, text: str) -> None:
    """Sets the filter to the option that begins with the text."""
    options = page.get_by_label(name, exact=True).locator("option")
    value = options.evaluate_all("(all, t) => all.find((o) => o.text.startsWith(t))?.value", text)
    assert value is not None, (name, text)
    page.get_by_label(name, exact=True).select_option(value)


def found(page: Any) -> int:
    return int(page.locator("[data-figure=found]").inner_text().split()[0].replace(",", ""))


def opened(page: Any) -> str:
    return page.locator("#browse .talk").get_attribute("data-conversation")


# ---------------------------------------------------------------- finding


def test_filters_show_what_fits_them(run: Path, reader: Any):
    everything = [
        *stored(run, "eval/cold_start_t1"),
        *stored(run, "eval/rl_t1"),
        *stored(run, "trajectories"),
    ]
    assert found(reader) == 16  # the last model's
    reader.get_by_role("button", name="Clear filters").click()
    assert found(reader) == len(everything) == 48
    choose(reader, "Outcome", "Failed")
    assert found(reader) == sum(t.reward == 0 for t in everything)
    choose(reader, "Outcome", "all")
    domain = load("library:desk")
    broken = [
        {v.rule for v in auditing.audit(domain, domain.task(t.task_id), t).violations if v.layer == "safety"}
        for t in everything
    ]
    choose(reader, "Rule broken", "Safety: any rule")
    assert found(reader) == sum(map(bool, broken)) > 0
    choose(reader, "Rule broken", "no rule broken")
    assert 0 < found(reader) < len(everything)
    choose(reader, "Rule broken", "all")
    choose(reader, "Tool called", "renew_loan")
    called = [any(c.name == "renew_loan" for m in t.messages for c in m.tool_calls) for t in everything]
    assert found(reader) == sum(called) > 0
    choose(reader, "Tool called", "all")
    reader.get_by_label("First step").fill("2")
    reader.get_by_label("Last step").fill("3")
    assert found(reader) == sum(2 <= t.step <= 3 for t in everything) == 8
    kind = everything[0].kind
    reader.get_by_role("button", name="Clear filters").click()
    reader.locator("[data-table=kinds] button", has_text=kind).first.click()  # from the table to its talks
    assert found(reader) == sum(t.kind == kind for t in everything)


def test_search_reads_everything_that_was_said(run: Path, reader: Any):
    reader.get_by_role("button", name="Clear filters").click()
    everything = [
        *stored(run, "eval/cold_start_t1"),
        *stored(run, "eval/rl_t1"),
        *stored(run, "trajectories"),
    ]
    wanted = next(m.content for m in everything[20].messages if m.role == "tool")[:40]
    box = reader.get_by_role("searchbox", name="Search")
    box.fill(wanted.upper())
    expected = sum(any(wanted.lower() in m.content.lower() for m in t.messages) for t in everything)
    until(reader, f"document.querySelector('[data-figure=found]').textContent.startsWith('{expected} ')")
    box.fill("nobody ever said this")
    reader.get_by_text("Nothing fits these filters.").wait_for()
    box.press("Escape")
    assert found(reader) == len(everything) and box.input_value() == ""
    reader.keyboard.press("/")
    assert box.evaluate("(x) => x === document.activeElement")


# ---------------------------------------------------------------- reading


def test_a_write_shows_what_it_changed_and_which_rules_it_broke(run: Path, path: Path, browser: Any):
    domain = load("library:desk")
    watched = Watched(browser)
    offset = 0
    seen = {"changes": 0, "rules": 0}
    for line, t in zip(
        (run / "eval/cold_start_t1.jsonl").open("rb"), stored(run, "eval/cold_start_t1"), strict=True
    ):
        if offset < 6000:
            page = watched.open(path, f"#c=eval-cold_start_t1/{offset}")
            page.locator("#browse .verdict").wait_for()
            changes = state_changes(domain, domain.task(t.task_id), t.messages)
            # One for a record that came or went, one for each field of one that was changed.
            boxes = page.locator("#browse .change")
            fields = boxes.locator(".arrow").count()
            shown = fields + boxes.filter(has_not=page.locator(".arrow")).count()
            assert shown == sum(map(len, changes.values()))
            violations = auditing.audit(domain, domain.task(t.task_id), t).violations
            rules = {(v.rule, v.evidence) for v in violations if v.layer != "outcome"}
            told = page.locator("#browse .ruling.bad")
            assert told.count() == len(rules)
            for rule, evidence in rules:
                assert page.locator(f"#browse .ruling[data-rule={rule}]", has_text=evidence).count() == 1
            seen["changes"] += shown
            seen["rules"] += len(rules)
        offset += len(line)
    watched.close(path)
    assert min(seen.values()) > 3


def test_two_of_a_task_side_by_side(run: Path, reader: Any, path: Path):
    before, after = (stored(run, f"eval/{m}_t1") for m in ("cold_start", "rl"))
    pairs = {a.task_id for a, b in zip(before, after, strict=True) if b.reward == 1 and a.reward == 0}
    task = reader.locator("#compare .talk header .hint").first.inner_text().split(" · ")[1]
    assert task in pairs
    columns = reader.locator("#compare .talk")
    assert columns.evaluate_all("(c) => c.map((x) => x.dataset.stage)") == ["cold_start", "rl"]
    assert "the two part here" in columns.first.inner_text()
    reader.locator("#compare").get_by_role("button", name="Next").click()
    header = "document.querySelector('#compare .talk header').textContent"
    until(reader, f"!{header}.includes({json.dumps(task)})")
    # Any two: the open conversation with one of its rollouts in training.
    reader.locator("#compare-with").select_option(index=2)
    until(reader, "location.hash.startsWith('#task=')")
    link = reader.evaluate("location.hash")
    labels = ["RL · temperature 1", "Training rollouts"]
    reader.reload()
    reader.wait_for_selector("#compare .talk")
    assert reader.evaluate("location.hash") == link
    headers = "[...document.querySelectorAll('#compare .talk header b')].map((x) => x.textContent)"
    until(reader, f"{headers}.join() === {json.dumps(','.join(labels))}")


def test_links_open_what_they_name_and_follow_the_reader(run: Path, path: Path, browser: Any):
    lines = (run / "trajectories.jsonl").read_bytes().splitlines(keepends=True)
    offset = sum(map(len, lines[:9]))
    told = json.loads(lines[9])
    watched = Watched(browser)
    page = watched.open(path, f"#c=training/{offset}")
    page.locator("#browse .talk").wait_for()
    assert opened(page) == f"training/{offset}"
    header = page.locator("#browse .talk header").inner_text()
    assert told["task_id"] in header and f"step {told['step']}" in header
    page.reload()
    page.wait_for_selector("#browse .talk")
    assert opened(page) == f"training/{offset}"
    page.keyboard.press("j")
    until(page, f"location.hash !== '#c=training/{offset}'")
    following = page.evaluate("decodeURIComponent(location.hash)")
    assert following == f"#c=training/{offset + len(lines[9])}" == f"#c={opened(page)}"
    page.locator("#browse [role=listbox]").focus()
    for key, expected in (("Home", 0), ("ArrowDown", 1), ("End", 47), ("ArrowUp", 46)):
        page.keyboard.press(key)
        selected = page.locator("#browse [aria-selected=true]")
        assert selected.get_attribute("aria-posinset") == str(expected + 1)
        assert (
            page.locator("#browse [role=listbox]").get_attribute("aria-activedescendant")
            == f"option-{expected}"
        )
    page.goto(path.as_uri() + "#c=training/7")
    page.get_by_text("The linked conversation is not in this page").wait_for()
    page.keyboard.press("?")
    assert page.locator("dialog[open]").count() == 1
    watched.close(path)


def test_tokens_are_shown_where_they_were_stored(reader: Any):
    reader.get_by_role("button", name="Clear filters").click()
    choose(reader, "Model", "Training rollouts")
    tokens = reader.get_by_role("button", name="Tokens")
    reader.locator("#browse [role=option]").nth(0).click()
    assert tokens.is_disabled()
    reader.locator("#browse [role=option]").nth(1).click()
    until(reader, "!document.getElementById('tokens').disabled")
    reader.keyboard.press("t")
    spans = reader.locator(".stream .tok")
    spans.first.wait_for()
    assert [s.replace("\n", "") for s in spans.all_text_contents()] == ["Hello", " reader", "\u23ce", "<end>"]
    assert reader.locator(".stream .sampled").count() == 2
    shades = reader.locator(".stream .sampled").evaluate_all(
        "(s) => s.map((x) => parseFloat(x.style.getPropertyValue('--surprise')))"
    )
    assert shades[0] < shades[1]  # the less likely token stands out
    spans.nth(2).hover()
    assert "8.2%" in reader.locator("#tip").inner_text()  # exp(-2.5)
    reader.keyboard.press("t")
    reader.locator("#browse .verdict").wait_for()


def test_on_paper_there_is_everything_but_the_controls(reader: Any):
    reader.emulate_media(media="print")
    calls = reader.locator("#browse .talk details:has(b)").count()
    shown = "document.querySelectorAll('#browse .talk details[open]:has(b) pre').length"
    # What is printed is what stands there when the event is over.
    assert reader.evaluate(f"(dispatchEvent(new Event('beforeprint')), {shown})") == 2 * calls > 0
    for hidden in (".bar", "#browse [role=listbox]", "#browse .find", "#compare .picker", "#browse .picker"):
        assert not reader.locator(hidden).first.is_visible(), hidden
    for there in ("#results", "#behaviour", "#browse .talk", "#compare .talk", "#browse .talk details pre"):
        assert reader.locator(there).first.is_visible(), there
    reader.evaluate("dispatchEvent(new Event('afterprint'))")
    assert reader.locator("#browse .talk details[open]").count() == 0


# ---------------------------------------------------------------- a page that is updated


def test_new_data_redraws_what_changed_and_leaves_the_rest(
    run: Path, path: Path, browser: Any, tmp_path: Path
):
    copy = shutil.copytree(run, tmp_path / "run")
    report = build_report(copy)
    old = build.collect(copy)
    with (copy / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "reward": 0.75, "problems": ["kl"]}) + "\n")
    new = build.collect(copy)
    watched = Watched(browser)
    page = watched.open(report)
    page.locator("#theme").click()
    choose(page, "Outcome", "Solved")
    page.locator("#browse [role=option]").nth(2).click()
    conversation = opened(page)
    page.locator("[data-chart=queries]").scroll_into_view_if_needed()
    page.locator(".legend button", has_text="all wrong").click()
    page.locator("#browse").evaluate(
        "(x) => { x.scrollIntoView({behavior: 'instant'}); window.kept = x.querySelector('.talk'); }"
    )
    top = page.evaluate("document.querySelector('#browse').getBoundingClientRect().top")
    take = "([data, index]) => update(data, () => index && readIndex(index))"
    del old["index"], new["index"]
    assert page.evaluate(take, [old, None]) == []
    changed = page.evaluate(take, [new, None])
    assert {"hero", "training", "cost"} <= set(changed) and not {"results", "kinds", "compare"} & set(changed)
    assert page.locator("[data-chart=reward]").get_attribute("aria-valuetext") == "step 5: 0.75"
    assert "step 5" in page.locator("[data-figure=problems]").inner_text().lower()
    assert page.locator(".legend button", has_text="all wrong").get_attribute("aria-pressed") == "false"
    assert (
        opened(page) == conversation and page.get_by_label("Outcome", exact=True).input_value() == "=Solved"
    )
    assert page.evaluate("window.kept.isConnected")
    assert abs(page.evaluate("document.querySelector('#browse').getBoundingClientRect().top") - top) < 2
    assert page.locator("html").get_attribute("data-theme") == "dark"
    watched.close(report)


# ---------------------------------------------------------------- many, and hostile ones


def test_ten_thousand_conversations(browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path / "run", steps=30, tasks=12, samples=1)
    add_rollouts(run, 10_000)
    with (run / "trajectories.jsonl").open("a") as file:
        last = json.loads((run / "trajectories.jsonl").read_text().splitlines()[-1])
        last["messages"][-1]["content"] = "There is a needle here."
        file.write(json.dumps(last) + "\n")
    path = build_report(run)
    watched = Watched(browser)
    began = time.perf_counter()
    page = watched.open(path)
    page.locator("#browse .talk").wait_for()
    ready = time.perf_counter() - began
    assert ready < 10  # under 2 s on a machine with nothing else to do: perf/report.py
    page.get_by_role("button", name="Clear filters").click()
    assert found(page) > 10_000
    assert page.locator("#browse [role=option]").count() < 60
    began = time.perf_counter()
    page.locator("#browse [role=listbox]").evaluate("(x) => (x.scrollTop = x.scrollHeight)")
    until(page, f"document.querySelector('#browse [aria-posinset=\"{found(page)}\"]')")
    scrolled = time.perf_counter() - began
    began = time.perf_counter()
    page.get_by_role("searchbox", name="Search").fill("needle")
    until(page, "document.querySelector('[data-figure=found]').textContent.startsWith('1 ')")
    until(page, "document.querySelector('#browse progress').hidden")
    searched = time.perf_counter() - began
    page.locator("#browse .talk", has_text="There is a needle here.").wait_for()
    watched.close(path)
    with capsys.disabled():
        print(
            f" [10,000: ready {ready:.2f} s, to the end {scrolled:.2f} s, searched {searched:.2f} s] ", end=""
        )


def test_hostile_text_is_shown_and_never_run(browser: Any, tmp_path: Path):
    nasty = f"{MARKUP} {MODIFIERS}"
    long = "x" * 1_000_000 + MARKUP

    def poison(name: str, played: list[Trajectory]) -> None:
        for n, t in enumerate(played):
            t.kind, t.task_id, t.persona = nasty, nasty + t.task_id, nasty
            t.detail, t.reason, t.unfaithful = nasty, f"differs: {nasty}; {nasty}", [nasty]
            said = [m for m in t.messages if m.role in ("user", "assistant") and not m.tool_calls]
            object.__setattr__(said[0], "content", long if n == 0 else nasty)
            for m in t.messages:
                if m.role == "tool":
                    object.__setattr__(m, "content", nasty)

    run = make_run(tmp_path / "run", steps=3, tasks=8, samples=1, edit=poison)
    path = build_report(run)
    watched = Watched(browser)
    page = watched.open(path)
    page.locator("#browse .talk").wait_for()
    page.get_by_role("button", name="Clear filters").click()
    page.evaluate("browser.openKey('eval-rl_t1/0')")
    page.get_by_role("button", name="Show all 1,000,").first.wait_for()
    assert len(page.locator("#browse .talk").inner_text()) < 20_000
    page.locator("#browse").get_by_role("button", name="Show all 1,000,").click()
    assert page.locator("#browse .say").first.inner_text().rstrip().endswith(MARKUP)
    page.keyboard.press("j")
    page.locator(
        "#browse .talk .say", has_text="[U+202E]evil[U+2066][U+0007][U+001B][31m[U+D800]"
    ).first.wait_for()
    for box in page.locator("#browse .talk details summary").all():
        box.click()
    page.get_by_role("searchbox", name="Search").fill("onerror=")
    until(page, "document.querySelector('[data-figure=found]').textContent.startsWith('48 ')")
    page.evaluate("comparer.show(ROWS[0], ROWS[1], {})")
    page.wait_for_timeout(200)
    assert page.title() == "quickstart · mua"
    assert page.locator("img").count() == 0 and page.locator("script:not([type])").count() == 1
    assert "\u202e" not in page.locator("body").inner_text()
    watched.close(path)


def test_a_conversation_of_an_odd_form_costs_itself_only(browser: Any, run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "run")
    file = copy / "eval" / "rl_t1.jsonl"
    odd = [json.loads(line) for line in file.read_text().splitlines()]
    odd[0]["usage"] = dict.fromkeys(odd[0]["usage"])  # costs that cannot be added
    odd[1]["usage"]["agent_steps"] = None  # a count that cannot be shown
    write_lines(file, odd)
    path = build_report(copy)
    watched = Watched(browser)
    page = watched.open(path)
    assert "1 conversation cannot be read, left out." in page.locator("#setup").inner_text()
    assert found(page) == 15
    page.locator("#browse").get_by_text("This conversation cannot be shown").wait_for()
    page.keyboard.press("j")
    page.locator("#browse .talk").wait_for()
    assert page.locator("html").get_attribute("data-ready") == "true"
    watched.close(path)
