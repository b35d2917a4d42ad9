"""A desk of lockers as an MCP server over standard input and output, with nothing but the standard library:
it starts in milliseconds, and the campaign starts hundreds.

    python server.py FOLDER        works on FOLDER/lockers.json: name -> number of the locker, 0 for none
"""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

NAME = {"name": {"type": "string", "description": "First name of the person."}}
TOOLS = {
    "find_locker": "Find the locker of a person.",
    "rent_locker": "Rent a locker to a person who has none.",
    "return_locker": "Give the locker of a person back.",
}


def call(path: Path, tool: str, name: str) -> str:
    """Runs a tool. Raises ValueError with what is told for a call that cannot be."""
    lockers = json.loads(path.read_text(encoding="utf-8"))
    if name not in lockers:
        # What a careless server says of itself: no key of it may get any further, nor a login with it.
        key = os.environ.get("LOCKERS_API_KEY", "")
        login = base64.b64encode(f"desk:{key}".encode()).decode()
        raise ValueError(f"nobody is called {name!r} (asked with key {key}, Basic {login})")
    if tool == "find_locker":
        return f"{name} has locker {lockers[name]}." if lockers[name] else f"{name} has no locker."
    if (tool == "rent_locker") == bool(lockers[name]):
        raise ValueError(f"{name} has {'a' if lockers[name] else 'no'} locker")
    lockers[name] = 0 if lockers[name] else max(lockers.values()) + 1
    path.write_text(json.dumps(lockers), encoding="utf-8")
    return f"Locker {lockers[name]}." if lockers[name] else "The locker is free."


def answer(path: Path, method: str, given: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a request; None for what is not known."""
    if method == "initialize":
        about = {"name": "lockers", "version": "1"}
        version = given.get("protocolVersion", "2025-06-18")
        return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": about}
    if method == "tools/list":
        schema = {"type": "object", "properties": NAME, "required": ["name"]}
        return {"tools": [{"name": n, "description": d, "inputSchema": schema} for n, d in TOOLS.items()]}
    if method == "tools/call" and given.get("name") in TOOLS:
        try:
            text, wrong = call(path, given["name"], str((given.get("arguments") or {}).get("name"))), False
        except ValueError as exc:
            text, wrong = str(exc), True
        return {"content": [{"type": "text", "text": text}], "isError": wrong}
    return {} if method == "ping" else None


def main() -> None:
    path = Path(sys.argv[1]) / "lockers.json"
    for line in sys.stdin:
        asked = json.loads(line)
        if "id" not in asked:
            continue  # a notification
        found = answer(path, asked["method"], asked.get("params") or {})
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": asked["id"]}
        if found is None:
            reply["error"] = {"code": -32601, "message": f"no method {asked['method']}"}
        else:
            reply["result"] = found
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
