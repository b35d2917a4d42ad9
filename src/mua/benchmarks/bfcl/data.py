"""BFCL's multi-turn entries, tool descriptions and sentences, read from the package that was installed.

Invariant: nothing here runs upstream's code. What stands in its Python files (the prompts, a table of
types) is read from their syntax trees.
"""

from __future__ import annotations

import ast
import copy
import functools
import json
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import InfrastructureError, MuaError
from ..store import Installed
from .child import FILES
from .pool import Exceeded, Pool

CATEGORIES = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")


Turns = Sequence[Sequence[Sequence[str]]]
"""A decoded answer: turns of steps of call texts."""

_AT_ONCE = 25
"""Answers in one request; if they take too much together, they are asked one by one."""


@dataclass(frozen=True)
class Entry:
    """One entry. Turns are counted from 0."""

    id: str
    turns: tuple[str, ...]
    """What the user says at each turn; empty where held-back tools appear instead."""
    config: Mapping[str, Any]
    classes: tuple[str, ...]
    held_back: Mapping[int, tuple[str, ...]]
    """Turn → the tools that the agent does not have before it."""
    gold: tuple[tuple[str, ...], ...]
    """Call texts by turn."""


class Upstream:
    """An installed version of BFCL."""

    def __init__(self, found: Installed):
        self.name = found.name
        self.version = found.version
        self.data_hash = found.data_hash
        self.folder = found.path
        self._package = found.path / "bfcl_eval"
        names = sorted((self._package / "data").glob("BFCL_v*_multi_turn_base.json"))
        if not names:
            raise self._broken("data/BFCL_v*_multi_turn_base.json")
        self.prefix = names[0].name.removesuffix("_multi_turn_base.json")
        self.v3 = self.prefix == "BFCL_v3"
        """The last version of V3 reads some answers in another way, and writes another prompt."""
        self.pool = Pool(self.folder, self.prefix)
        self._entries: dict[str, dict[str, Entry]] = {}
        self._docs: dict[str, list[dict[str, Any]]] = {}

    def entries(self, category: str) -> dict[str, Entry]:
        """The entries of a category by id, in upstream's order."""
        if category not in CATEGORIES:
            raise MuaError(f"{self.name} has no category '{category}'; it has {', '.join(CATEGORIES)}.")
        if category not in self._entries:
            name = f"{self.prefix}_{category}.json"
            questions = self._lines(f"data/{name}")
            answers = self._lines(f"data/possible_answer/{name}")
            if [q["id"] for q in questions] != [a["id"] for a in answers]:
                raise self._broken(f"data/possible_answer/{name}")
            self._entries[category] = {
                q["id"]: _entry(q, a["ground_truth"]) for q, a in zip(questions, answers, strict=True)
            }
        return self._entries[category]

    def entry(self, entry_id: str) -> Entry:
        """One entry. Raises MuaError when there is none of that id."""
        category = entry_id.rpartition("_")[0]
        found = self.entries(category).get(entry_id) if category in CATEGORIES else None
        if found is None:
            raise MuaError(
                f"{self.name} has no entry '{entry_id}'; ids are those of its {len(CATEGORIES)} files."
            )
        return found

    def functions(self, entry: Entry, turn: int) -> list[dict[str, Any]]:
        """Upstream's descriptions of the tools that the agent has at a turn, in its order."""
        first = [doc for name in entry.classes for doc in self._functions_of(name)]
        later: dict[int, list[dict[str, Any]]] = {}
        for when, names in entry.held_back.items():
            for name in names:
                at = next((i for i, doc in enumerate(first) if doc["name"] == name), None)
                if at is not None:
                    doc = first.pop(at)  # without the hint, which current upstream forgets here
                    later.setdefault(when, []).append(doc if self.v3 else self._plain(doc))
        return first + [doc for when in sorted(later) if when <= turn for doc in later[when]]

    def verdict(self, entry_id: str, turns: Turns) -> dict[str, Any]:
        """Upstream's verdict on a decoded answer: {"valid", "error_type", "error_message"}."""
        return self.verdicts([(entry_id, turns)])[0]

    def verdicts(self, answers: Sequence[tuple[str, Turns]]) -> list[dict[str, Any]]:
        """The verdicts on decoded answers, in their order; many at once cost less than one by one.

        Steps without a call do not count. Raises InfrastructureError when the backends are out of order.
        """
        found: list[dict[str, Any] | None] = []
        asked: list[dict[str, Any]] = []
        for entry_id, turns in answers:
            wanted = len(self.entry(entry_id).gold)
            words = f"the answer has {len(turns)} turns, the entry {wanted}"
            fits = len(turns) == wanted
            found.append(None if fits else _invalid("multi_turn:force_terminated", words))
            if fits:
                steps = [[list(step) for step in turn if step] for turn in turns]
                asked.append({"entry": entry_id, "turns": steps})
        checked = iter(self._checked(asked))
        return [next(checked) if one is None else one for one in found]

    def _checked(self, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        for start in range(0, len(asked), _AT_ONCE):
            part = asked[start : start + _AT_ONCE]
            try:
                out += self.pool.ask({"answers": part})["verdicts"]
            except Exceeded as exc:
                if len(part) == 1:
                    out.append(_invalid("mua:limit", f"the calls took too much: {exc}"))
                else:
                    out += [verdict for one in part for verdict in self._checked([one])]
        return out

    # ------------------------------------------------------------ what is said

    @functools.cached_property
    def turn_steps(self) -> int:
        """Steps that run in one turn: the limit is looked at after the step, and must be exceeded."""
        return int(self._prompts["MAXIMUM_STEP_LIMIT"]) + 1

    @property
    def more_tools(self) -> str:
        """What the user says, in function-calling mode, when held-back tools appear."""
        return self._prompts["DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC"]

    def more_tools_prompted(self, functions: Sequence[Mapping[str, Any]]) -> str:
        """The same in prompt mode, with the tools."""
        shown = [self._plain(f) for f in functions]
        return self._prompts["DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_PROMPTING"].format(functions=shown)

    def system_prompt(self, functions: Sequence[Mapping[str, Any]]) -> str:
        """The default system prompt of prompt mode."""
        said = self._prompts
        if self.v3:
            return said["DEFAULT_SYSTEM_PROMPT"].format(functions=functions)
        form = dict(urllib.parse.parse_qsl(said["DEFAULT_SYSTEM_PROMPT_FORMAT"]))
        style = said["PROMPT_STYLE_TEMPLATES"][form["style"]]
        tagged = form["tool_call_tag"] == "True"
        returned = form["ret_fmt"]
        return said["PROMPT_TEMPLATE_MAPPING"][form["prompt_fmt"]].format(
            persona=style["persona"],
            task=style["task"],
            tool_call_format=style["tool_call_with_tag" if tagged else "tool_call_no_tag"].format(
                output_format=said["OUTPUT_FORMAT_MAPPING"][returned],
                param_types=said["PARAM_TYPE_MAPPING"][returned],
            ),
            multiturn_behavior=style["multiturn_behavior"],
            available_tools=style["available_tools"].format(
                format=form["func_doc_fmt"], functions=json.dumps(functions, indent=4)
            ),
        )

    @functools.cached_property
    def _prompts(self) -> dict[str, Any]:
        return _constants(self._tree("constants/default_prompts.py"))

    # ------------------------------------------------------------ tools

    def openai_function(self, function: Mapping[str, Any]) -> dict[str, Any]:
        """A tool as upstream describes it to an OpenAI-compatible endpoint."""
        types, words = self._openai
        out = copy.deepcopy(dict(function))
        out["name"] = out["name"].replace(".", "_")
        out["parameters"]["type"] = "object"
        _openai_types(out["parameters"]["properties"], types, words)
        return out

    @functools.cached_property
    def _openai(self) -> tuple[dict[str, str], str]:
        """Upstream's names of types in OpenAI's, and what it adds to the description of a float."""
        types = _constants(self._tree("constants/type_mappings.py"))["GORILLA_TO_OPENAPI"]
        return types, self._said_in("_cast_to_openai_type", ast.AugAssign, "model_handler/utils.py")[0]

    def _functions_of(self, name: str) -> list[dict[str, Any]]:
        if name not in self._docs:
            docs = self._lines(f"data/multi_turn_func_doc/{FILES[name]}.json")
            self._docs[name] = [{**d, "description": d["description"] + self._hint} for d in docs]
        return self._docs[name]

    @functools.cached_property
    def _hint(self) -> str:
        """What upstream adds to each description: the syntax that calls are written in."""
        files = ("utils.py", "model_handler/utils.py")
        return self._said_in("_get_language_specific_hint", ast.Return, *files)[-1]

    def _plain(self, function: Mapping[str, Any]) -> dict[str, Any]:
        return {**function, "description": function["description"].removesuffix(self._hint)}

    # ------------------------------------------------------------ files

    def _lines(self, name: str) -> list[dict[str, Any]]:
        try:
            text = (self._package / name).read_text(encoding="utf-8")
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        except (OSError, ValueError) as exc:
            raise self._broken(name, str(exc)) from None

    def _tree(self, name: str) -> ast.Module:
        try:
            return ast.parse((self._package / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError) as exc:
            raise self._broken(name, str(exc)) from None

    def _said_in(self, function: str, within: type, *files: str) -> list[str]:
        """The strings in the statements of one kind in a function, in their order."""
        for name in files:
            if (self._package / name).is_file():
                for node in ast.walk(self._tree(name)):
                    if isinstance(node, ast.FunctionDef) and node.name == function:
                        values = [n.value for n in _statements(node.body) if isinstance(n, within)]  # type: ignore[attr-defined]
                        said = [v.value for v in values if isinstance(v, ast.Constant)]
                        if strings := [s for s in said if isinstance(s, str)]:
                            return strings
        raise self._broken(files[-1], f"it has no {function} with the sentence that is looked for")

    def _broken(self, name: str, why: str = "it is not there") -> MuaError:
        return InfrastructureError(
            f"the benchmark {self.name} in {self.folder} cannot be used: bfcl_eval/{name}: {why}. "
            f"Install it again: `mua benchmarks install {self.name}`."
        )


def _invalid(kind: str, words: str) -> dict[str, Any]:
    return {"valid": False, "error_type": kind, "error_message": words}


def _entry(question: Mapping[str, Any], gold: Sequence[Sequence[str]]) -> Entry:
    held_back = {int(turn): tuple(names) for turn, names in question.get("missed_function", {}).items()}
    return Entry(
        id=question["id"],
        turns=tuple(turn[0]["content"] if turn else "" for turn in question["question"]),
        config=question["initial_config"],
        classes=tuple(question["involved_classes"]),
        held_back=held_back,
        gold=tuple(map(tuple, gold)),
    )


def _openai_types(properties: dict[str, Any], types: Mapping[str, str], float_words: str) -> None:
    """Renames the types of a tool's parameters in place, as deep as upstream does."""
    for value in properties.values():
        kind = value.get("type", "")
        if kind == "float":
            value["format"] = "float"
            value["description"] += float_words
        value["type"] = types.get(kind, "string")
        if value["type"] not in ("array", "object"):
            continue
        if "properties" in value:
            _openai_types(value["properties"], types, float_words)
        elif "items" in value:
            items = value["items"]
            items["type"] = types[items["type"]]
            if items["type"] == "array" and "items" in items:
                items["items"]["type"] = types[items["items"]["type"]]
            elif items["type"] == "object" and "properties" in items:
                _openai_types(items["properties"], types, float_words)


def _statements(body: Sequence[ast.stmt]) -> list[ast.stmt]:
    """All statements, those inside others included, in the order of the text."""
    inner = [n for stmt in body for n in ast.walk(stmt) if isinstance(n, ast.stmt)]
    return sorted(inner, key=lambda node: (node.lineno, node.col_offset))


def _constants(tree: ast.Module) -> dict[str, Any]:
    """The module's constants that are made of literals and of earlier constants."""
    found: dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            try:
                found[statement.targets[0].id] = _constant(statement.value, found)
            except (KeyError, TypeError, ValueError):
                continue  # it is made in another way, so it is none of those we want
    return found


def _constant(node: ast.expr, known: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return known[node.id]
        case ast.BinOp(op=ast.Add()):
            return _constant(node.left, known) + _constant(node.right, known)
        case ast.Dict():
            pairs = zip(node.keys, node.values, strict=True)
            return {_constant(k, known): _constant(v, known) for k, v in pairs if k is not None}
        case ast.List() | ast.Tuple():
            return [_constant(v, known) for v in node.elts]
    raise ValueError("not a constant")
