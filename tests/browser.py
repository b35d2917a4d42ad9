"""A headless Chromium for the tests of pages, driven by Playwright; where either is missing, those tests are
skipped with one line that says so."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import time
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_MISSING = [
    *(["a Chromium on the path"] if CHROMIUM is None else []),
    *(["playwright (pip install playwright)"] if importlib.util.find_spec("playwright") is None else []),
]
needs_chromium = pytest.mark.skipif(bool(_MISSING), reason=f"pages are opened with {' and '.join(_MISSING)}")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser. While it is open, no other event loop can run in this thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as start:
        browser = start.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page of a browser, with whatever it complained of, asked for, or was asked by it."""

    def __init__(self, browser: Any, **context: Any):
        context.setdefault("viewport", {"width": 1200, "height": 900})
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type != "log" else None)
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("dialog", lambda d: (self.complaints.append(f"dialog {d.message}"), d.dismiss()))
        self.page.on("request", lambda r: self.asked.append(r.url))

    def open(self, path: Path, link: str = "") -> Any:
        """The page, once its script has drawn it."""
        self.page.goto(path.as_uri() + link)
        self.page.wait_for_selector("html[data-ready]")
        return self.page

    def close(self, path: Path) -> None:
        """Ends it; fails where it complained, or asked for anything but its own file."""
        self.context.close()
        assert self.complaints == []
        assert {url.split("#")[0] for url in self.asked} == {path.as_uri()}


def until(page: Any, expression: str, seconds: float = 20.0) -> None:
    """Waits for a JavaScript expression to be true. (`page.wait_for_function` evaluates text within the page,
    which the page's policy forbids.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"not within {seconds} s: {expression}"
        page.wait_for_timeout(20)


def open_page(path: Path, browser: Any = None) -> str:
    """The page's DOM after its script has run, as HTML."""
    with contextlib.nullcontext(browser) if browser else chromium() as opened:
        watched = Watched(opened)
        page = watched.open(path)
        page.wait_for_timeout(200)
        html = page.content()
        watched.close(path)
    return html


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

    def texts(self, tag: str) -> list[str]:
        return ["".join(text) for name, _, text in self.elements if name == tag]

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


def shown(x: float) -> str:
    """The page's form of a share."""
    return f"{Decimal(100 * x).quantize(Decimal('0.1'), ROUND_HALF_UP)}%"
