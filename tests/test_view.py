"""`mua view`: what it serves, who gets it, and that a page follows its run without reloading.

A real server on a real port; the page in a real browser, where there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from browser import CHROMIUM, needs_chromium, until
from fake_run import make_run
from mua.errors import MuaError
from mua.report import live

SECRET = "sk-abcdefghijklmnop1234567890"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("run"), steps=6, tasks=20, samples=2)
    path = run / "eval" / "rl_t1.jsonl"
    lines = path.read_text().splitlines()
    first = json.loads(lines[0])
    first["messages"][1]["content"] += f" My key is {SECRET}."
    path.write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    return run


@contextlib.contextmanager
def served(run: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """The address of a server in a thread of its own."""
    started: list[Any] = []
    ready = threading.Event()

    async def main() -> None:
        stop = asyncio.Event()
        async with live.serving(run, host) as address:
            started.extend([address, asyncio.get_running_loop(), stop])
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert ready.wait(20)
    address, loop, stop = started
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    with served(run) as found:
        yield found


def get(address: str, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, Any, bytes]:
    """(status, headers, body); header names with _ for -."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=20)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=sent)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def test_the_page_its_data_and_its_conversations(run: Path, address: str):
    status, headers, page = get(address)
    assert status == 200 and b"connect-src 'self'" in page
    assert headers["X-Frame-Options"] == "DENY" and headers["Cross-Origin-Resource-Policy"] == "same-origin"
    _, headers, raw = get(address, "/data.json", Accept_Encoding="gzip")
    assert headers["Content-Encoding"] == "gzip"
    data = json.loads(get(address, "/data.json")[2])
    in_all = sum(len(p.read_text().splitlines()) for p in run.glob("eval/*.jsonl"))
    columns = data["index"]["columns"]
    assert data["index"]["n"] >= in_all and len(raw) < len(json.dumps(data)) / 3
    source, offset = data["sources"][columns["source"][-1]]["id"], columns["offset"][-1]
    shown = json.loads(get(address, f"/conversation/{source}/{offset}")[2])
    assert shown["messages"]
    for path in ("/conversation/0/999999999", "/conversation/77/0", "/conversation/0/..%2f..%2fconfig.yaml"):
        assert get(address, path)[0] == 404, path
    assert get(address, "/", method="POST")[0] == 405


def test_no_secret_leaves(address: str):
    data = json.loads(get(address, "/data.json")[2])
    columns, words, ids = data["index"]["columns"], data["index"]["words"], data["sources"]
    assert SECRET not in json.dumps([columns, words])
    bodies = [
        get(address, f"/conversation/{ids[source]['id']}/{offset}")[2]
        for source, offset in zip(columns["source"], columns["offset"], strict=True)
        if offset == 0
    ]
    assert bodies and any(b"[hidden]" in body for body in bodies)
    assert not any(SECRET.encode() in body for body in bodies)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},  # a name that somebody lets point to 127.0.0.1
        {"Host": "evil.example:8420"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "192.168.1.20"},
        {"Host": "["},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "document"},
    ],
    ids=str,
)
def test_other_sites_get_nothing(address: str, headers: dict[str, str]):
    for path in ("/data.json", "/conversation/0/0", "/events"):
        status, _, body = get(address, path, **headers)
        assert status in (400, 403) and b"messages" not in body, (path, status)


def test_a_link_from_elsewhere_opens_the_page(address: str):
    followed = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "document"}
    assert get(address, "/", **followed)[0] == 200
    assert get(address, "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Dest="iframe")[0] == 403
    port = urlsplit(address).port
    for name in ("localhost", "127.0.0.1", "[::1]"):
        assert get(address, "/data.json", Host=f"{name}:{port}")[0] == 200


def test_where_others_can_reach_it_a_token_is_asked_for(run: Path):
    with served(run, "0.0.0.0") as address:
        place = urlsplit(address)
        (token,) = parse_qs(place.query)["token"]
        assert len(token) >= 32
        local = f"http://127.0.0.1:{place.port}"
        name = {"Host": "training-box.example:1234"}  # any name will do: the token is what counts
        for path in ("/", "/data.json", "/events", "/?token=wrong", "/?token=%ff"):
            assert get(local, path, **name)[0] == 403, path
        status, headers, body = get(local, f"/?token={token}", **name)
        assert (status, headers["Location"], body) == (303, "/", b"")
        cookie = headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert get(local, "/data.json", Cookie=cookie.split(";")[0], **name)[0] == 200
        other = cookie.split(";")[0].split("=")[0] + "=" + "x" * len(token)
        assert get(local, "/data.json", Cookie=other, **name)[0] == 403


def test_a_place_that_is_taken_and_a_run_that_is_none(run: Path, address: str, tmp_path: Path):
    async def start(run: Path, port: int) -> None:
        async with live.serving(run, "127.0.0.1", port):
            raise AssertionError("it must not start")

    with pytest.raises(MuaError, match=r"cannot be listened on .*--port"):
        asyncio.run(start(run, urlsplit(address).port or 0))
    with pytest.raises(MuaError, match="is not a folder"):
        asyncio.run(start(tmp_path / "none", 0))


def test_news_of_each_change_and_only_of_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live, "POLL_SECONDS", 0.05)
    run = make_run(tmp_path, steps=3, tasks=6, samples=1)
    with served(run) as address:
        place = urlsplit(address)
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=20)
        connection.request("GET", "/events")
        answer = connection.getresponse()
        assert answer.headers["Content-Type"] == "text/event-stream"

        def until_news() -> bytes:
            while not (line := answer.readline()).startswith(b"data: "):
                assert line is not None
            return line

        seen = {until_news()}  # what there is: something may have changed since the page was made
        steps = json.loads(get(address, "/data.json")[2])["steps"]["done"]
        for more in (1, 2):
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": steps + more, "reward": 0.5}) + "\n")
            seen.add(until_news())
            assert json.loads(get(address, "/data.json")[2])["steps"]["done"] == steps + more
        assert len(seen) == 3
        connection.close()


@needs_chromium
def test_a_page_follows_its_run_without_reloading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    playwright = pytest.importorskip("playwright.sync_api")
    monkeypatch.setattr(live, "POLL_SECONDS", 0.05)
    run = make_run(tmp_path, steps=4, tasks=12, samples=1)
    file = run / "eval" / "rl_t1.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:5]))
    newest = json.loads(lines[5])
    newest["messages"][1]["content"] = "A parrot wants its book back."
    with served(run) as address, playwright.sync_playwright() as start:
        browser = start.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        complaints: list[str] = []
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: complaints.append(str(e)))
        asked: list[str] = []
        page.on("request", lambda r: asked.append(r.url))
        page.goto(address)
        page.wait_for_selector("html[data-ready=true][data-link=up]")
        page.evaluate("window.same = true")
        page.wait_for_selector("#browse .talk")
        page.evaluate("window.first = document.querySelector('#browse .talk').textContent")
        page.locator("#browse [role=option]").nth(1).click()
        until(page, "document.querySelector('#browse .talk')?.textContent !== first")
        page.wait_for_selector("#browse .talk")
        opened = page.locator("#browse .talk").inner_text()
        shown = page.evaluate("ROWS.length")

        with file.open("a") as more:
            more.write(json.dumps(newest) + "\n")
        until(page, f"ROWS.length === {shown + 1}")
        assert page.locator("#browse .talk").inner_text() == opened
        page.get_by_role("searchbox").first.fill("parrot")
        page.wait_for_selector("#browse [role=option] :text('parrot')")
        assert page.evaluate("window.same") is True
        assert complaints == [] and all(url.startswith(address) for url in asked)
        browser.close()


def test_the_command_prints_an_address_and_ends_by_ctrl_c(run: Path):
    command = [sys.executable, "-m", "mua", "view", str(run), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    address = line.split(": ", 1)[1].split(" ")[0]
    assert get(address)[0] == 200
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode in (0, 130) and "Traceback" not in errors
