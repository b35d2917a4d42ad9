"""What a model said, as call texts: upstream's rules for its two modes and for Hermes tags.

A call text is what upstream would evaluate, such as `cd(folder='docs')`. Here it is only ever parsed.

Invariants:
- A step decodes to the call texts that upstream's handler decodes it to, or to none where that raises.
- Nothing is evaluated: arithmetic between literals, which upstream evaluates, is worked out by hand and
  within bounds; anything else that is not a value makes the step undecodable.
"""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from ...chat import ToolCall
from .child import Refused, plain_call

Mode = Literal["fc", "prompt", "hermes"]
"""How a result file's steps are written: as native calls, as a Python list in text, or in Hermes tags."""

LONGEST = 200_000
"""Characters of a step that are looked at; a longer one is no call."""

_LARGEST = 1 << 512
_WRONG = (SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError)
"""What decoding raises for text that is no call; and, of the interpreter's limits:"""
_TOO_MUCH = (MemoryError, RecursionError, OverflowError, ZeroDivisionError)


def decode(step: Any, mode: Mode, v3: bool = False) -> list[str]:
    """The call texts of one step; [] when it is words, or cannot be read: both end the turn.

    `v3` reads as the last version of V3 does, which was more generous to lists and less to broken tags.
    """
    try:
        match mode:
            case "fc":
                return fc_texts([step] if type(step) is dict else step)
            case "prompt":
                return _prompt_texts(step, v3)
            case "hermes":
                return fc_texts({c["name"]: c["arguments"]} for c in _tagged(step, v3))
    except (*_WRONG, *_TOO_MUCH):
        return []


def mode_of(results: Iterable[Any]) -> Mode:
    """The mode that a file's results are written in: native if any step is a list or an object."""
    hermes = False
    for turns in results:
        for steps in turns if isinstance(turns, list) else ():
            for step in steps if isinstance(steps, list) else ():
                if isinstance(step, list | dict):
                    return "fc"
                hermes = hermes or (isinstance(step, str) and "<tool_call>" in step)
    return "hermes" if hermes else "prompt"


# ---------------------------------------------------------------- native calls


def fc_texts(calls: Iterable[Mapping[str, Any]]) -> list[str]:
    """The texts of `{name: arguments}` objects, whose arguments may be JSON text. Raises for others."""
    texts = []
    for call in calls:
        for name, arguments in call.items():
            given = json.loads(arguments) if type(arguments) is str else arguments
            texts.append(f"{name}({','.join(f'{k}={v!r}' for k, v in given.items())})")
    return texts


def _tagged(step: str, v3: bool) -> list[dict[str, Any]]:
    """The JSON of each `<tool_call>`. What is no JSON is passed over, or makes all of it void in V3.

    Raises for JSON that is no object.
    """
    found = []
    for body in re.findall(r"<tool_call>\n(.*?)\n</tool_call>", step, re.DOTALL):
        try:
            found.append(json.loads(body))
        except (ValueError, RecursionError):
            if v3:
                return []
    if not all(type(call) is dict for call in found):
        raise TypeError("a call must be a JSON object")
    return found


# ---------------------------------------------------------------- prompt mode


def _prompt_texts(step: str, v3: bool) -> list[str]:
    if len(step) > LONGEST:
        raise ValueError("too long")
    text = step.strip("`\n ")
    text = text if text.startswith("[") else f"[{text}"
    text = text if text.endswith("]") else f"{text}]"
    body = ast.parse(text.strip("[]'") if v3 else text.strip().strip("'"), mode="eval").body
    calls: Sequence[ast.expr] = [body] if isinstance(body, ast.Call) else body.elts  # type: ignore[attr-defined]
    if not all(isinstance(call, ast.Call) for call in calls):
        raise TypeError("not a list of calls")
    # Upstream reads all of the list before it writes any of it.
    return [_text(name, arguments) for name, arguments in [_call(c) for c in calls]]  # type: ignore[arg-type]


def _call(node: ast.Call) -> tuple[str, dict[Any, Any]]:
    """(name, keyword arguments). Positional arguments are dropped, as upstream does."""
    parts: list[str] = []
    at = node.func
    while isinstance(at, ast.Attribute):
        parts.append(at.attr)
        at = at.value
    if isinstance(at, ast.Name):
        parts.append(at.id)
    return ".".join(reversed(parts)), {k.arg: _value(k.value) for k in node.keywords}


def _value(node: ast.expr | None) -> Any:
    """An argument as upstream reads it; a nested call is {name: arguments}. Raises for the rest."""
    match node:
        case ast.Constant():
            return "..." if node.value is Ellipsis else node.value
        case ast.UnaryOp(operand=ast.Constant(value=value)):
            return -value  # whichever the operator  # type: ignore[operator]
        case ast.List():
            return [_value(v) for v in node.elts]
        case ast.Tuple():
            return tuple(_value(v) for v in node.elts)
        case ast.Dict():
            return {_value(k): _value(v) for k, v in zip(node.keys, node.values, strict=True)}
        case ast.BinOp():
            return _sum(node)
        case ast.Name():
            return node.id
        case ast.Call() if node.keywords:
            name, arguments = _call(node)
            return {name: arguments}
        case ast.Call():
            return ast.unparse(node)
        case ast.Subscript():
            return f"{ast.unparse(node.value)}[{ast.unparse(node.slice)}]"
    raise ValueError("not a value")


_OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


def _sum(node: ast.expr) -> Any:
    """Arithmetic between literals. Raises ValueError for anything else, and for what would grow large."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, str, bool):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _sum(node.operand)
        return -value if isinstance(node.op, ast.USub) else +value
    if not isinstance(node, ast.BinOp) or type(node.op) not in _OPERATORS:
        raise ValueError("not a value")
    left, right = _sum(node.left), _sum(node.right)
    small = all(not isinstance(v, int) or abs(v) < _LARGEST for v in (left, right))
    if isinstance(left, str) or isinstance(right, str):
        counts = [v for v in (left, right) if isinstance(v, int)]
        words = [v for v in (left, right) if isinstance(v, str)]
        small = isinstance(node.op, ast.Add) or (
            isinstance(node.op, ast.Mult) and bool(counts) and len(words[0]) * max(counts) <= LONGEST
        )
    elif isinstance(node.op, ast.Pow):
        small = abs(right) <= 512
    if not small:
        raise ValueError("too large")
    return _OPERATORS[type(node.op)](left, right)


def _text(name: str, arguments: Mapping[Any, Any]) -> str:
    return f"{name}({', '.join(f'{k}={_written(v)}' for k, v in arguments.items())})"


def _written(value: Any) -> str:
    """An argument as upstream writes it: an object of objects only is taken for a nested call."""
    if not isinstance(value, dict):
        return repr(value)
    if all(isinstance(v, dict) for v in value.values()):
        name = next(iter(value.items()), None)
        if name is None:
            raise IndexError("an empty object")
        return _text(*name)
    return "{" + ", ".join(f"'{k}': {_written(v)}" for k, v in value.items()) + "}"


# ---------------------------------------------------------------- texts and calls


def call_of(text: str) -> ToolCall:
    """A call text as a tool call; one that is no plain call keeps its text in `raw`."""
    try:
        name, arguments, named = plain_call(text)
        if arguments:
            raise Refused("arguments must be named")
        if json.loads(json.dumps(named, allow_nan=False)) != named:
            raise Refused("arguments must be JSON values")
    except (Refused, *_WRONG, *_TOO_MUCH) as exc:
        return ToolCall("invalid", {}, error=str(exc) or type(exc).__name__, raw=text)
    return ToolCall(name, named)


def text_of(call: ToolCall) -> str:
    """The call text of a tool call."""
    return call.raw if call.error else fc_texts([{call.name: dict(call.arguments)}])[0]
