"""The arithmetic of upstream's `calculate` tools, without `eval`.

Invariant: same answers as upstream's for sums, differences, products and quotients; whatever else Python
would read in the same characters (powers, calls, tuples) is refused, so no expression can hang or run code.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable
from typing import Any

ALLOWED = frozenset("0123456789+-*/(). ")
"""The characters that upstream lets through."""

_LONGEST = 1000
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def calculate(expression: str) -> str:
    """The value rounded to two digits, as text: `2 + 3` → `5.0`.

    Raises ValueError for other characters and for what is refused, and what Python raises for the rest
    (SyntaxError, ZeroDivisionError, OverflowError).
    """
    if not all(char in ALLOWED for char in expression):
        raise ValueError("Invalid characters in expression")
    if len(expression) > _LONGEST:
        raise ValueError(f"the expression is longer than {_LONGEST} characters")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "0_1", "1.real" and the like cannot occur; "1if" neither
        tree = ast.parse(expression.lstrip(" "), "<string>", "eval")
    return str(round(float(_value(tree.body)), 2))


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left), _value(right))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand))
        case ast.Tuple():  # "()"
            raise TypeError("float() argument must be a string or a real number, not 'tuple'")
    raise ValueError("only numbers, + - * / and parentheses are understood")
