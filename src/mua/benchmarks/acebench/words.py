"""What is said in a language: the functions' answers and the prompts, upstream's own where it is installed.

A full checkout (or archive) of upstream holds its wording in source files. They are parsed, never run or
copied: constants are read from the syntax tree and matched with ours by function and order.

Invariant: a wording is upstream's as a whole or ours as a whole, and `source` says which, so that two
results under different words are never taken for the same.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import words_en, words_zh
from .facts import Language


@dataclass(frozen=True)
class Words:
    """The wording of one language."""

    texts: Mapping[str, str]
    """`function.case` → what the function answers; `{}` takes its values in order."""
    prompts: Mapping[str, str]
    source: Literal["mua", "upstream"]


def own(language: Language) -> Words:
    """Our own wording."""
    module = words_en if language == "en" else words_zh
    return Words(module.TEXTS, module.PROMPTS, "mua")


def load(folder: Path, language: Language) -> Words:
    """Upstream's wording from an installed repository, ours where `folder` holds the data only."""
    try:
        found = _Sources(folder / "model_inference", language)
        return Words(found.texts(), found.prompts(), "upstream")
    except (OSError, LookupError, SyntaxError, ValueError):
        return own(language)


_FILES = ("phone_platform/base_api", "phone_platform/message", "phone_platform/reminder")
_FILES += ("phone_platform/food_services", "travel")


class _Sources:
    """Upstream's source files. Raises LookupError where they are not as expected."""

    def __init__(self, root: Path, language: Language):
        self.root = root
        self.language: Language = language

    def _tree(self, name: str) -> ast.Module:
        return ast.parse((self.root / f"{name}.py").read_text(encoding="utf-8"))

    def texts(self) -> dict[str, str]:
        """Our keys with upstream's words. A function that upstream lacks in this language keeps ours."""
        ours = own(self.language).texts
        out = dict(ours)
        for file in _FILES:
            for function in ast.walk(self._tree(f"multi_turn/scenarios{self.language}/{file}")):
                if not isinstance(function, ast.FunctionDef):
                    continue
                keys = [k for k in ours if k.partition(".")[0] == function.name]
                said = list(_said(function)) if keys else []
                if len(said) != len(keys):
                    raise LookupError(f"{function.name} says {len(said)} things, not {len(keys)}")
                out.update(zip(keys, said, strict=True))
        return out

    def prompts(self) -> dict[str, str]:
        L = self.language.upper()
        turn = _constants(self._tree("multi_turn/APIModel_agent"))
        step = _constants(self._tree("multi_step/APIModel_agent"))
        user_tree = self._tree("multi_turn/APIModel_user")
        user = _constants(user_tree)
        rules = _constants(self._tree(f"prompt_{self.language}"))
        return {
            "turn_system": turn[f"MULTI_TURN_AGENT_PROMPT_SYSTEM_{L}"],
            "turn_user": turn[f"MULTI_TURN_AGENT_PROMPT_USER_{L}"],
            "travel": rules[f"TRAVEL_PROMPT_{L}"],
            "base": rules[f"BASE_PROMPT_{L}"],
            "step_system": step[f"MULTI_TURN_AGENT_PROMPT_SYSTEM_{L}"],
            "step_user": step[f"MULTI_TURN_AGENT_PROMPT_USER_{L}"],
            "user_travel": user[f"SYSTEM_PROMPT_TRAVEL_{L}"],
            "user_base": user[f"SYSTEM_PROMPT_BASE_{L}"],
            # The Chinese one stands before the English one.
            "greeting": _contents(user_tree)[self.language == "en"],
            "nudge": next(_assigned(self._tree("multi_step/execution_role_step"), "message")),
        }


def _constants(tree: ast.Module) -> dict[str, str]:
    """The module's names that are texts."""
    return {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }


def _contents(tree: ast.Module) -> list[str]:
    """The constant texts under `"content"` in dictionaries, in the order of the file."""
    found = [
        (value.lineno, value.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "content"
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    ]
    return [text for _, text in sorted(found)]


def _assigned(tree: ast.Module, key: str) -> Iterator[str]:
    """The constant texts that are assigned to `something["key"]`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            at = node.targets[0].slice
            if isinstance(at, ast.Constant) and at.value == key and isinstance(node.value, ast.Constant):
                yield str(node.value.value)


def _said(function: ast.FunctionDef) -> Iterator[str]:
    """What a function can answer, in the order of its lines: returned texts, the `"message"` of returned
    dictionaries, and texts that are appended to a list of answers."""
    found: list[tuple[int, ast.expr]] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "message":
                    found.append((value.lineno, value))
        elif isinstance(node, ast.Return) and node.value is not None:
            found.append((node.lineno, node.value))
        elif isinstance(node, ast.Call) and node.args and getattr(node.func, "attr", "") == "append":
            found.append((node.lineno, node.args[0]))
    for _, value in sorted(found, key=lambda pair: pair[0]):
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield _literal(value.value)
        elif isinstance(value, ast.JoinedStr):
            yield "".join(
                _literal(str(part.value)) if isinstance(part, ast.Constant) else "{}" for part in value.values
            )


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
