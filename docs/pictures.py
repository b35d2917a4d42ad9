"""Makes the pictures of the tutorials: terminals as SVG, pages as PNG.

    python docs/pictures.py --run runs/quickstart-seed0 [--gym runs/gym] [--only NAME …]

Commands are those of the pages, run in a folder with the pages' files; `--run` is a finished quickstart, and
`--gym` one of docs/train-my-domain.md. Needs the extra `dev` and, for pages, a Chromium.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

DOCS = Path(__file__).resolve().parent
OUT = DOCS / "pictures"
COLUMNS = 96


def terminal(command: str, folder: Path, most: int = 40) -> Text:
    """What a terminal shows after a command: its colours, the last `most` lines."""
    words = [sys.executable, "-m", *command.split()]
    shown = bytearray()
    main, second = pty.openpty()
    environment = {
        **os.environ,
        "COLUMNS": str(COLUMNS),
        "TERM": "xterm-256color",
        "PYTHONWARNINGS": "ignore",
    }
    # Progress goes to standard error and is not part of the picture.
    process = subprocess.Popen(
        words, cwd=folder, stdin=subprocess.DEVNULL, stdout=second, stderr=subprocess.DEVNULL, env=environment
    )
    os.close(second)
    with contextlib.suppress(OSError):
        while part := os.read(main, 65536):
            shown += part
    if process.wait():
        raise SystemExit(f"{command} ended with {process.returncode}")
    lines = shown.decode().replace("\r\n", "\n").rstrip().split("\n")
    left_out = ["…"] if len(lines) > most else []
    return Text.from_ansi("\n".join([*left_out, *lines[-most:]]))


def picture(name: str, command: str, text: Text) -> None:
    """`OUT/NAME.svg`: a terminal with the command and what it printed."""
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(Text.assemble(("$ ", "dim"), (command, "bold")))
    console.print(text)
    svg = console.export_svg(title="")
    # Fonts of the reader's own machine: a picture must not ask the network for any.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)
    (OUT / f"{name}.svg").write_text(svg, encoding="utf-8")
    print(OUT / f"{name}.svg")


REPORT = {
    "report-behaviour": ("#behaviour", "light", ""),
    "report-compare": ("#compare", "light", ""),
    "report-browse": (
        "#browse",
        "dark",
        "browser.go({Model: DATA.sources.find((s) => s.key === 'eval-cold_start_t1').label, 'Rule broken': "
        "'policy/consent'})",
    ),
}
"""Parts of a quickstart's report: element, theme, what is done first."""
TOKENS = "browser.go({Model: 'Training rollouts'}); document.querySelector('#tokens').click()"


def part(name: str, run: Path, element: str, theme: str, act: str) -> None:
    """`OUT/NAME.png`: one part of a run's report."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as start:
        browser = start.chromium.launch(executable_path=found, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1180, "height": 900})
        tab.goto((run / "report.html").resolve().as_uri() + f"#theme={theme}")
        tab.wait_for_selector("html[data-ready=true]")
        for step in filter(None, act.split("; ")):
            tab.wait_for_timeout(500)
            tab.evaluate(step)
        tab.wait_for_timeout(800)
        tab.evaluate("document.querySelector('.bar').style.display = 'none'")
        tab.evaluate("scrollTo({top: 0, behavior: 'instant'})")
        box = tab.locator(element).bounding_box()
        assert box
        above = 16 if " " in element else -36  # a section begins with room of its own
        size = {"width": box["width"] + 40, "height": box["height"] + above + 16}
        clip = {"x": box["x"] - 20, "y": box["y"] - above, **size}
        tab.screenshot(path=OUT / f"{name}.png", full_page=True, clip=clip)
        browser.close()
    shrink(OUT / f"{name}.png")
    print(OUT / f"{name}.png")


def shrink(path: Path) -> None:
    """At most 256 colours, which is all these pages have use for."""
    from PIL import Image

    with Image.open(path) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def page(name: str, url: str, height: int = 900, act: str = "") -> None:
    """`OUT/NAME.png`: a page in headless Chromium; `act` is a selector to click first."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as start:
        browser = start.chromium.launch(executable_path=found, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1180, "height": height})
        tab.goto(url)
        tab.wait_for_selector("html[data-ready=true]")
        if act:
            tab.click(act)
        tab.wait_for_timeout(1000)
        tab.screenshot(path=OUT / f"{name}.png")
        browser.close()
    print(OUT / f"{name}.png")


def lay_out(folder: Path) -> None:
    """The files of the tutorials' domains."""
    text = (DOCS / "train-my-domain.md").read_text(encoding="utf-8")
    for name, language in (("gym.py", "python"), ("gym.yaml", "yaml")):
        found = re.search(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
        assert found
        (folder / name).write_text(found[1], encoding="utf-8")
    text = (DOCS / "from-transcripts.md").read_text(encoding="utf-8")
    found = re.search(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert found
    (folder / "stand_in.py").write_text(found[1], encoding="utf-8")
    text = (DOCS / "wrap-my-mcp-server.md").read_text(encoding="utf-8")
    for name, content in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", text, re.M | re.S):
        (folder / name).write_text(content, encoding="utf-8")


@contextlib.contextmanager
def served(run: Path) -> Iterator[str]:
    """A run's last model behind the chat API."""
    command = [sys.executable, "-m", "mua", "serve", str(run), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found
        yield found[0]
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--run", type=Path, required=True)
    options.add_argument("--gym", type=Path)
    options.add_argument("--only", nargs="*", default=[])
    args = options.parse_args()
    OUT.mkdir(exist_ok=True)

    def wanted(name: str) -> bool:
        return not args.only or name in args.only

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        lay_out(folder)
        if wanted("domain-check"):
            command = "mua domain check ./gym.py"
            picture("domain-check", command, terminal(command, folder))
        if wanted("mcp-verify"):
            command = "mua tasks ./clinic.yaml --verify"
            picture("mcp-verify", command, terminal(command, folder))
        if wanted("import"):
            subprocess.run([sys.executable, "stand_in.py"], cwd=folder, check=True)
            command = "mua import transcripts.jsonl --domain library --out runs/imported --database keep"
            picture("import", command, terminal(command, folder, most=47))
        if wanted("eval-endpoint"):
            with served(args.run.resolve()) as address:
                url = "http://localhost:8000/v1"
                shown = f"mua eval endpoint:rl --base-url {url} --domain library:desk --samples 4 --tasks 40"
                text = terminal(shown.replace(url, address) + " max_step_tokens=48", folder)
            picture("eval-endpoint", shown, text)
        if any(wanted(name) for name in (*REPORT, "report-tokens", "report")):
            subprocess.run([sys.executable, "-m", "mua", "report", str(args.run)], check=True)
        if wanted("report"):
            page("../report", (args.run / "report.html").resolve().as_uri() + "#theme=light")
            shrink(DOCS / "report.png")
        for name, (element, theme, act) in REPORT.items():
            if wanted(name):
                part(name, args.run, element, theme, act)
        if wanted("report-tokens"):
            part("report-tokens", args.run, "#browse .pane", "light", TOKENS)
        if args.gym is not None and wanted("gym-report"):
            subprocess.run([sys.executable, "-m", "mua", "report", str(args.gym)], check=True)
            page("gym-report", (args.gym / "report.html").resolve().as_uri() + "#theme=light")


if __name__ == "__main__":
    main()
