"""The rooms of the house: imports point down, and the lower floors need no torch and no network."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mua

ROOT = Path(mua.__file__).parent

FLOORS = [
    # From the ground up; a module may import from its own floor and from those below.
    ("errors", "seeds", "redaction"),
    ("chat", "database"),
    ("tools",),
    ("domain", "trajectory", "faults"),
    ("audit",),
    # What is spoken between the rooms: protocols and the values that cross them. No implementations.
    ("engines.__init__", "users.__init__", "agents.__init__"),
    ("transport",),
    ("gateway",),
    ("tokenizer", "formats", "endpoint", "models", "runfolder"),
    ("benchmarks.__init__", "benchmarks.store"),
    ("domains",),
    ("benchmarks",),
    ("engines",),
    ("users",),
    ("agents", "serve"),
    ("episode",),
    ("benchmarks.generate",),
    ("rollout", "order"),
    ("coldstart",),
    ("train",),
    ("distributed", "distributed.verl.settings", "exports"),
    ("evaluate",),
    ("transcripts",),
    ("report",),
    ("config",),
    ("pipeline", "display"),
    ("distributed.verl",),
    ("export",),
    ("speakers", "ablate", "plan"),
    ("cli", "__main__"),
    ("testing",),
]
FORBIDDEN = [
    # (who, what): beyond the floors
    ("train", "benchmarks"),
    ("train", "domains"),
    ("rollout", "domains"),
    ("episode", "benchmarks"),
    ("episode", "domains"),
]
HEAVY = ("torch", "transformers", "peft", "accelerate", "aiohttp", "httpx", "vllm", "ray", "verl")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def floor(module: str) -> int:
    """The floor of a module such as `users.llm`: that of its longest listed prefix."""
    parts = module.split(".")
    for n in range(len(parts), 0, -1):
        for number, rooms in enumerate(FLOORS):
            if ".".join(parts[:n]) in rooms:
                return number
    raise AssertionError(f"mua.{module} has no place in FLOORS: give it one, as low as its imports allow")


MODULES = {name_of(p): p for p in sorted(ROOT.rglob("*.py")) if p != ROOT / "__init__.py"}


def imports_of(name: str) -> set[str]:
    """Modules of mua that a module imports anywhere, functions included; packages as `users.__init__`."""
    package = ["mua", *name.split(".")[:-1]]
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            targets = [base, *(f"{base}.{a.name}" for a in node.names)]
        else:
            continue
        for target in targets:
            inner = target.removeprefix("mua.")
            if target == inner:
                continue
            found |= {inner} & MODULES.keys() | {f"{inner}.__init__"} & MODULES.keys()
    return found


def test_the_reader_of_imports_sees_them():
    assert {"users.__init__", "chat", "formats"} <= imports_of("users.local")
    assert {"domain", "domains.mcp.__init__"} <= imports_of("domains.__init__")
    assert "database" in imports_of("domains.library.tools")  # three dots
    assert "train.trainer" in imports_of("pipeline")  # inside a function


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    for other in imports_of(name) - {name}:
        assert floor(other) <= floor(name), f"mua.{name} imports mua.{other} from above"
        for who, what in FORBIDDEN:
            assert (name.split(".")[0], other.split(".")[0]) != (who, what), f"mua.{name} knows mua.{other}"


def test_the_lower_floors_run_without_torch_and_network_libraries():
    low = [n for n in MODULES if floor(n) <= floor("rollout")]
    lower = [n for n in low if n.split(".")[0] not in ("engines", "models")]
    lower += [n for n in MODULES if n.split(".")[0] in ("coldstart", "evaluate", "audit")]
    lower += ["engines.__init__", "train.__init__", "config"]
    assert {"episode", "users.llm", "agents.model", "domains.library.speech", "evaluate.run"} <= set(lower)
    names = [f"mua.{n.removesuffix('.__init__')}" for n in lower]
    script = f"""
import importlib, sys
for name in {HEAVY!r}:
    sys.modules[name] = None
for name in {names!r}:
    importlib.import_module(name)
import asyncio
from mua.coldstart.conversations import play_expert
from mua.domains import load
from mua.episode import Limits
domain = load("library")
print(asyncio.run(play_expert(domain, domain.tasks("dev")[0], 1, Limits())).reward)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout.strip()) == (0, "1.0"), done.stderr[-2000:]
