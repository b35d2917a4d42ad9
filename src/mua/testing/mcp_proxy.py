"""Stands between mua and any MCP server over standard input and output, and spoils some of its calls.

    python -m mua.testing.mcp_proxy PLAN FOLDER -- COMMAND …

Only calls of tools are spoiled: what a server says of itself arrives, so a domain can be loaded.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from .plan import Dice, read_plan
from .spoil import mutated


def main() -> None:
    plan_path, folder, _, *command = sys.argv[1:]
    plan = read_plan(Path(plan_path))
    dice = Dice(plan, "tools", Path(folder))
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None
    rng = random.Random(plan.seed)
    spoiled: dict[str, str] = {}
    """Id of a request on its way → what becomes of its answer."""

    def answers() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            kind = spoiled.pop(_id(line), "")
            _say(_spoil(kind, line, plan.slow_seconds, rng))
            if kind in ("half_line", "crash"):
                os._exit(1)
        os._exit(child.wait())

    threading.Thread(target=answers, daemon=True).start()
    for line in sys.stdin.buffer:
        try:
            asked = json.loads(line)
            spoil = asked.get("method") == "tools/call"
        except ValueError:
            spoil = False
        kind = dice.draw(asked.get("params")) if spoil else ""
        if kind == "hang":
            continue  # it is never asked
        if kind == "crash":
            print("Segmentation fault", file=sys.stderr, flush=True)
            child.kill()
            os._exit(3)
        if kind:
            spoiled[str(asked.get("id"))] = kind
        child.stdin.write(line)
        child.stdin.flush()
    child.kill()


def _id(line: bytes) -> str:
    try:
        return str(json.loads(line).get("id"))
    except (ValueError, AttributeError):
        return ""


def _spoil(kind: str, line: bytes, slow: float, rng: random.Random) -> bytes:
    """What is written in place of an answer."""
    if kind == "slow":
        time.sleep(slow)
    if kind == "mutated":  # still JSON, and nearly the answer
        told = json.loads(line)
        return json.dumps({**told, "result": mutated(rng, told.get("result") or {})}).encode() + b"\n"
    if kind == "garbage":
        return b"Loading plugins ... {done}\n"
    if kind == "no_utf8":
        return b"\xff\xfe\x00{\n"
    if kind == "half_line":
        return line[: len(line) // 2]
    if kind == "echoes":  # the environment, in a message that breaks the protocol
        told = {"id": json.loads(line).get("id"), "result": dict(os.environ)}
        return json.dumps({"jsonrpc": "2.0", **told}).encode() + b"\n"
    return line


def _say(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
