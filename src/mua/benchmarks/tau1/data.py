"""τ¹'s databases, policies, tasks and texts from where they are installed; read, never run.

Two layouts are understood: a checkout of the public repository (`tau_bench/envs/…`, tasks and tool
descriptions as Python source) and a folder of the same data as JSON (`retail/…`, `airline/…`), which has
neither tool descriptions nor the user's prompt.

Invariant: of Python source only literals are taken; nothing of it is imported or executed.
"""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import MuaError

TABLES = {"retail": ("orders", "users", "products"), "airline": ("flights", "reservations", "users")}
SPLITS = {"retail": ("train", "dev", "test"), "airline": ("test",)}


@dataclass(frozen=True)
class Data:
    """One domain as it is installed."""

    root: Path
    domain: str

    @property
    def _checkout(self) -> bool:
        return (self.root / "tau_bench").is_dir()

    @property
    def _folder(self) -> Path:
        return self.root / "tau_bench" / "envs" / self.domain if self._checkout else self.root / self.domain

    def tables(self) -> dict[str, Any]:
        """The database: rows by key, by table."""
        folder = self._folder / "data" if self._checkout else self._folder
        return {name: _json(folder / f"{name}.json", dict) for name in TABLES[self.domain]}

    def policy(self) -> str:
        """The agent's whole system prompt."""
        return _text(self._folder / ("wiki.md" if self._checkout else "policy.md"))

    def tasks(self, split: str) -> list[dict[str, Any]]:
        """`{user_id, instruction, actions: [{name, kwargs}], outputs}` of each task, in upstream's order."""
        if not self._checkout:
            return [read_task(self._folder, n, t) for n, t in enumerate(_json(self._json_tasks(split), list))]
        path = self._folder / f"tasks_{split}.py"
        for node in _tree(path).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
                return [read_task(path, n, _literal(t, path)) for n, t in enumerate(node.value.elts)]
        raise MuaError(f"{path} has no list of tasks; this is another version than mua knows.")

    def _json_tasks(self, split: str) -> Path:
        return self._folder / f"tasks_{split}.json"

    def tools(self) -> dict[str, dict[str, Any]]:
        """Upstream's description of each tool, in OpenAI's form; empty where the layout has none."""
        found = {}
        folder = self._folder / "tools"
        names = _tree(folder / "__init__.py").body if folder.is_dir() else []
        for node in names:
            if not isinstance(node, ast.ImportFrom) or node.level != 1:
                continue
            path = folder / f"{node.module}.py"
            info = _literal(_returned(path, "get_info"), path)
            found[info["function"]["name"]] = info["function"]
        return found

    def user_greeting(self) -> str:
        """What the simulated user is told that the agent said first; empty where the layout has none."""
        if not self._user.is_file():
            return ""
        for node in ast.walk(_class(self._user, "LLMUserSimulationEnv")):
            if isinstance(node, ast.Dict) and all(isinstance(v, ast.Constant) for v in node.values):
                return str(_literal(node, self._user)["content"])
        raise MuaError(f"{self._user} has no greeting where it was; this is another version than mua knows.")

    @property
    def _user(self) -> Path:
        return self.root / "tau_bench" / "envs" / "user.py"

    def user_prompt(self, instruction: str) -> str:
        """The simulated user's whole system prompt; empty where the layout has none."""
        return _prompt(self._user).replace(_HERE, instruction) if self._user.is_file() else ""


_HERE = "\0instruction\0"


@functools.lru_cache(maxsize=2)
def _prompt(path: Path) -> str:
    """The user's prompt with `_HERE` where the instruction goes."""
    cls = _class(path, "LLMUserSimulationEnv")
    shown = {"instruction": _HERE}
    for node in ast.walk(cls):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.IfExp):
            shown["instruction_display"] = _joined(node.value.body, shown)
    for node in ast.walk(cls):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.JoinedStr):
            return _joined(node.value, shown)
    raise MuaError(f"{path} has no user prompt where it was; this is another version than mua knows.")


def read_task(where: Path, number: int, task: Any) -> dict[str, Any]:
    """`{user_id, instruction, actions, outputs}` of anything that should be a task of τ¹. Raises MuaError
    naming the place and the task's number there."""
    try:
        return {
            "user_id": str(task["user_id"]),
            "instruction": str(task["instruction"]),
            "actions": [{"name": str(a["name"]), "kwargs": dict(a["kwargs"])} for a in task["actions"]],
            "outputs": [str(o) for o in task["outputs"]],
        }
    except (KeyError, TypeError, ValueError) as exc:
        raise MuaError(
            f"{where}, task {number}: this is not a task of τ¹ ({type(exc).__name__}: {exc}); it needs "
            "user_id, instruction, actions (of name and kwargs) and outputs."
        ) from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise MuaError(f"{path} cannot be read: {exc}. Install the benchmark again.") from None


def _json(path: Path, kind: type) -> Any:
    try:
        data = json.loads(_text(path))
    except ValueError as exc:
        raise MuaError(f"{path} is not valid JSON: {exc}. Install the benchmark again.") from None
    if not isinstance(data, kind):
        raise MuaError(f"{path} must hold a JSON {'object' if kind is dict else 'list'} at its top.")
    return data


# ---------------------------------------------------------------- literals of Python source


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(_text(path))
    except SyntaxError as exc:
        raise MuaError(f"{path} is not Python source: {exc}. Install the benchmark again.") from None


def _literal(node: ast.AST, path: Path) -> Any:
    """The value of a literal; `Task(a=1)` counts as `{"a": 1}`."""
    match node:
        case ast.Call(args=[], keywords=keywords):
            return {k.arg: _literal(k.value, path) for k in keywords}
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item, path) for item in items]
        case ast.Dict(keys=keys, values=values) if None not in keys:
            pairs = zip(keys, values, strict=True)
            return {_literal(k, path): _literal(v, path) for k, v in pairs if k is not None}
    try:
        return ast.literal_eval(node)  # type: ignore[arg-type]
    except ValueError:
        line = getattr(node, "lineno", "?")
        raise MuaError(f"{path}, line {line}: a literal is expected; this is another version.") from None


def _returned(path: Path, function: str) -> ast.expr:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            last = node.body[-1]
            if isinstance(last, ast.Return) and last.value is not None:
                return last.value
    raise MuaError(f"{path} has no {function}() that returns a literal; this is another version.")


@functools.lru_cache(maxsize=4)
def _class(path: Path, name: str) -> ast.ClassDef:
    for node in _tree(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    raise MuaError(f"{path} has no class {name}; this is another version than mua knows.")


def _joined(node: ast.expr, names: Mapping[str, str]) -> str:
    """The text of a sum or f-string of constants and `names`."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.FormattedValue(value=value):
            return _joined(value, names)
        case ast.JoinedStr(values=values):
            return "".join(_joined(v, names) for v in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _joined(left, names) + _joined(right, names)
    raise MuaError("upstream's user prompt is put together in a way that mua does not know.")
