"""How an agent's text is read as calls: `[Api(k='v'), Other(n=2)]`, just as leniently as upstream does.

Upstream strips brackets and quotes from both ends, parses the rest as one Python expression, takes keyword
arguments (positional ones are dropped), writes the calls out again and evaluates them. Here the syntax tree
is read and nothing is ever evaluated; an argument is a literal, or a text that stands for what upstream
would have made of it.

Invariants:
- `decode` is total: it returns calls or raises `Undecodable`, whatever the text.
- What it returns is what upstream would run. The exceptions, all of which need model text to be evaluated
  as code, are listed in docs/benchmarks-acebench.md.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST = 100_000
"""Characters of a step that are still parsed."""
_BIGGEST = 10**12
"""Numbers and texts that arithmetic on literals may lead to; beyond, it is refused."""

_BRACKETS = re.compile(r"\[.*\]")
_FIRST_NAME = re.compile(r"\b([a-zA-Z_]\w*)\s*(?=\()")


class Undecodable(Exception):
    """The text is no list of calls. The message says why, for records; no agent is told."""


@dataclass(frozen=True)
class AceCall:
    """One call of an agent's list."""

    name: str
    """Dotted where it was written so; empty where what is called is no name."""
    arguments: Mapping[str, Any]
    """Literals: str, numbers, bool, None, bytes, and lists, tuples and dicts of them."""
    error: str = ""
    """Why running it fails, whatever function it names: an argument that would have to be evaluated."""

    @property
    def source(self) -> str:
        """The call as upstream writes it out before it looks for the function's name in it."""
        return f"{self.name}({', '.join(f'{k}={_source(v)}' for k, v in self.arguments.items())})"

    def target(self, known: Callable[[str], bool]) -> str | None:
        """The function that runs; None when upstream finds none it knows, "" when running it fails.

        Upstream runs the first `word(` of the written call, wherever in it that stands.
        """
        found = _FIRST_NAME.search(self.source)
        if found is None or not known(found[1]):
            return None
        return found[1] if found.start() == 0 and not self.error else ""


@dataclass(frozen=True)
class _Nested:
    """A call, or a dictionary of dictionaries, as an argument: upstream writes it out as a call."""

    source: str


def has_brackets(text: str) -> bool:
    """Whether multi-turn looks for calls in a text at all: brackets that open and close in one line."""
    return _BRACKETS.search(text) is not None


def decode(text: str) -> list[AceCall]:
    """The calls of a step. A text that is some other single expression (`[done]`) gives no calls.

    Raises Undecodable for everything else.
    """
    if not text or len(text) > LONGEST:
        raise Undecodable("it is empty" if not text else f"it is longer than {LONGEST} characters")
    text = text.removeprefix(" ")
    text = text if text.startswith("[") else f"[{text}"
    text = text if text.endswith("]") else f"{text}]"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in strings
            body = ast.parse(text.strip("[]'"), mode="eval").body
        if isinstance(body, ast.Call):
            return [_call(body)]
        if not isinstance(body, ast.Tuple | ast.List):
            return []
        if not all(isinstance(element, ast.Call) for element in body.elts):
            raise Undecodable("the list has something in it that is no call")
        return [_call(element) for element in body.elts if isinstance(element, ast.Call)]
    except (SyntaxError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as exc:
        raise Undecodable(f"{type(exc).__name__}: {exc}") from None


def encode(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as the agent is to write it, without the brackets."""
    return f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"


def _call(node: ast.Call) -> AceCall:
    name, found = _parts(node)
    arguments: dict[str, Any] = {}
    error = ""
    for key, value in found.items():
        if key is None:
            error = "keyword arguments by ** are not possible"
        arguments[str(key)] = value
        if isinstance(value, dict):  # which upstream takes for a call, as the whole of an argument
            arguments[str(key)] = _Nested(_as_call(value))
            error = f"the argument '{key}' is a call; only literals are possible"
        elif _endless(value):
            error = "name 'inf' is not defined"
    return AceCall(name, arguments, error)


def _parts(node: ast.Call) -> tuple[str, dict[str | None, Any]]:
    names = []
    target = node.func
    while isinstance(target, ast.Attribute):
        names.append(target.attr)
        target = target.value
    if isinstance(target, ast.Name):
        names.append(target.id)
    return ".".join(reversed(names)), {k.arg: _value(k.value) for k in node.keywords}


def _value(node: ast.AST) -> Any:
    """What an argument stands for. Raises Undecodable, or what Python raises where upstream's code does."""
    if isinstance(node, ast.Constant):
        return "..." if node.value is Ellipsis else node.value
    if isinstance(node, ast.UnaryOp):
        # Any sign is taken for a minus: `+5` and `not 5` are -5 as well.
        if isinstance(node.operand, ast.Constant) and isinstance(node.operand.value, int | float | complex):
            return -node.operand.value
        raise Undecodable("a sign before something that is no number")
    if isinstance(node, ast.List):
        return [_value(element) for element in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(element) for element in node.elts)
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise Undecodable("a dictionary with **")
        return {_value(k): _value(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    if isinstance(node, ast.BinOp):
        return _arithmetic(node)
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Call):
        if not node.keywords:
            return ast.unparse(node)
        name, arguments = _parts(node)
        return {name: arguments}
    if isinstance(node, ast.Subscript):
        return f"{ast.unparse(node.value)}[{ast.unparse(node.slice)}]"
    raise Undecodable(f"{type(node).__name__} is no literal")


def _as_call(value: dict[Any, Any]) -> str:
    """A dictionary as upstream writes it: its first key as a function, that one's value as arguments."""
    if not value:
        raise Undecodable("an empty dictionary as an argument")
    name, arguments = next(iter(value.items()))
    if not isinstance(arguments, dict):
        raise Undecodable("a dictionary as an argument")
    inner = (f"{k}={_as_call(v) if isinstance(v, dict) else repr(v)}" for k, v in arguments.items())
    return f"{name}({', '.join(inner)})"


def _source(value: Any) -> str:
    return value.source if isinstance(value, _Nested) else repr(value)


def _endless(value: Any) -> bool:
    """An infinite number somewhere in it, which cannot be written out."""
    if isinstance(value, float | complex):
        return any(abs(part) == float("inf") for part in (value.real, value.imag))
    if isinstance(value, dict):
        return any(_endless(k) or _endless(v) for k, v in value.items())
    return isinstance(value, list | tuple) and any(map(_endless, value))


_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def _arithmetic(node: ast.AST) -> Any:
    """The value of sums, products and the like of literal numbers, and of `'a' + 'b'`."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _arithmetic(node.operand)
        return -value if isinstance(node.op, ast.USub) else +value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _arithmetic(node.left), _arithmetic(node.right)
        texts = isinstance(left, str), isinstance(right, str)
        if any(texts) and not (all(texts) and isinstance(node.op, ast.Add)):
            raise Undecodable("arithmetic on texts")
        if not any(texts) and max(abs(left), abs(right)) > _BIGGEST:
            raise Undecodable("arithmetic on very large numbers")
        try:
            return _OPERATORS[type(node.op)](left, right)
        except ZeroDivisionError as exc:
            raise Undecodable(str(exc)) from None
    raise Undecodable("an expression that is no literal")
