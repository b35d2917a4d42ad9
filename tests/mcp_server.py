"""A server made with the official SDK, over standard input and output or (with --port) streamable HTTP, that
does on request what servers should not: talk on its output, end abruptly, hang, remember things.

    python mcp_server.py FOLDER [--port PORT]
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from mcp.server.fastmcp import FastMCP

folder = Path(sys.argv[1])
port = int(sys.argv[3]) if "--port" in sys.argv else 0
server = FastMCP("test", port=port or 8000, log_level="ERROR")
remembered: list[str] = []


@server.tool()
def write(name: str, text: str) -> str:
    """Write a file, then fail if its name is 'bad'."""
    (folder / name).write_text(text)
    if name == "bad":
        raise ValueError("bad name")
    return f"wrote {folder / name}"


@server.tool()
def remember(word: str) -> str:
    """Remember a word in the process and write all words to a file."""
    remembered.append(word)
    (folder / "words").write_text(" ".join(remembered))
    return " ".join(remembered)


@server.tool()
def misbehave(how: str) -> str:
    """Do what a server should not."""
    if how == "junk":
        os.write(1, b"Loading plugins ...\n")
    elif how == "bytes":
        os.write(1, b"\xff\xfe\x00\n")
    elif how == "end":
        print("out of memory", file=sys.stderr, flush=True)
        os._exit(3)
    elif how == "hang":
        time.sleep(3600)
    return "done"


server.run("streamable-http" if port else "stdio")
