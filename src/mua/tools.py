"""Tools made from typed Python methods, and their strict call.

A toolkit is a class whose public methods are marked `@reads`, `@writes` or `@ends`. The docstring gives
the description (Google style, one line an argument), the annotations give the JSON Schema, nested
models included.

Invariant: arguments reach a tool only when they satisfy its full schema; whatever goes wrong comes
back as a text that the model can act on.
"""

from __future__ import annotations

import functools
import inspect
import json
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Effect = Literal["read", "write", "end"]
"""`end` writes too, and hands the conversation over: the episode ends after the call."""

F = TypeVar("F", bound=Callable[..., Any])


class ToolError(Exception):
    """Raised by a tool to refuse a call; the text goes to the model, the state stays as it was."""


class ArgumentError(ToolError):
    """The arguments satisfy the schema, but not the types it was made from; the tool was not called."""


def reads(fn: F) -> F:
    fn.__mua_effect__ = "read"  # type: ignore[attr-defined]
    return fn


def writes(fn: F) -> F:
    fn.__mua_effect__ = "write"  # type: ignore[attr-defined]
    return fn


def ends(fn: F) -> F:
    fn.__mua_effect__ = "end"  # type: ignore[attr-defined]
    return fn


@dataclass(frozen=True)
class Tool:
    """What a model is told of a tool, and how a call is checked.

    A tool knows no state: `World` binds it to the episode's toolkit when it is called.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON Schema (2020-12) of the arguments: an object, no other keys allowed, no `$ref`."""
    effect: Effect
    convert: Callable[[Mapping[str, Any]], dict[str, Any]]
    """Valid JSON arguments → keyword arguments of the method (nested models built).

    Raises ArgumentError for what the schema lets through and the types do not (1e300 for an integer)."""

    def schema(self) -> dict[str, Any]:
        """The tool as OpenAI's `tools` entry."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": dict(self.parameters),
            },
        }

    @functools.cached_property
    def schema_json(self) -> str:
        """`schema` as JSON text."""
        return json.dumps(self.schema())

    def problems(self, arguments: Mapping[str, Any]) -> list[str]:
        """Every way in which `arguments` break the schema, in words; empty when they are valid."""
        errors = sorted(self._validator.iter_errors(arguments), key=lambda e: [str(p) for p in e.path])
        return list(dict.fromkeys(text for error in errors for text in _in_words(error)))

    def usage(self) -> str:
        """One line that says what the tool takes, for error messages and for short prompts."""
        required = set(self.parameters.get("required", ()))
        parts = []
        for key, spec in self.parameters.get("properties", {}).items():
            kind = "|".join(map(str, spec["enum"])) if "enum" in spec else str(spec.get("type", "any"))
            parts.append(f"{key}: {kind}" + ("" if key in required else " (optional)"))
        return f"{self.name}({', '.join(parts)})"

    @functools.cached_property
    def _validator(self) -> Any:
        import jsonschema

        return jsonschema.Draft202012Validator(self.parameters)


def _in_words(error: Any) -> Iterator[str]:
    """A jsonschema error as short texts that name the place and the problem."""
    where = ".".join(str(p) for p in error.absolute_path)
    prefix = f"{where}." if where else ""
    if error.validator in ("anyOf", "oneOf"):
        # Alternatives of another type say nothing of use: for an optional model, its fields count alone.
        branches: dict[Any, list[Any]] = {}
        for inner in error.context:
            branches.setdefault(inner.schema_path[0], []).append(inner)
        fitting = [b for b in branches.values() if not _other_types(b)]
        if len(fitting) == 1:
            for inner in fitting[0]:
                yield from _in_words(inner)
            return
        if not fitting:
            types = (repr(t) for b in branches.values() for t in _other_types(b))
            yield _at(where, f"{error.instance!r} is not of type {' or '.join(types)}")
            return
    if error.validator == "required":
        missing = [k for k in error.validator_value if k not in error.instance]
        yield from (f"'{prefix}{k}' is missing" for k in missing)
    elif error.validator == "additionalProperties":
        known = error.schema.get("properties", ())
        extra = [repr(f"{prefix}{k}"[:80]) for k in error.instance if k not in known]
        yield f"unknown argument {', '.join(extra[:10])}"
    else:
        yield _at(where, error.message)


def _other_types(branch: Iterable[Any]) -> list[Any]:
    """The types that an alternative wanted, when the value was of none of them."""
    return [e.validator_value for e in branch if e.validator == "type" and not e.path]


def _at(where: str, text: str) -> str:
    """A problem with its place. Long values are cut in the middle: what is wrong stands at the end."""
    text = text if len(text) <= 200 else f"{text[:90]} … {text[-90:]}"
    return f"'{where}': {text}" if where else text


@functools.cache
def toolkit_tools(toolkit: type) -> dict[str, Tool]:
    """The tools of a toolkit class, by name, in the order they are defined."""
    found: dict[str, Tool] = {}
    for cls in reversed(toolkit.__mro__):
        for name, fn in vars(cls).items():
            effect = getattr(fn, "__mua_effect__", None)
            if effect:
                found[name] = tool_from_function(fn, effect=effect)
    return found


def tool_from_function(fn: Callable[..., Any], effect: Effect = "read") -> Tool:
    """A tool from a typed function or method (a first parameter `self` is skipped).

    Raises TypeError when a parameter has no annotation: a schema guessed from nothing would let
    anything through.
    """
    import docstring_parser
    from pydantic import ConfigDict, Field, ValidationError, create_model

    doc = docstring_parser.parse(inspect.getdoc(fn) or "")
    if not doc.short_description:
        raise TypeError(f"{fn.__qualname__} needs a docstring: the model reads it as the tool's description")
    described = {p.arg_name: p.description for p in doc.params}
    hints = typing.get_type_hints(fn, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(fn).parameters.items():
        if name == "self":
            continue
        if name not in hints:
            raise TypeError(f"{fn.__qualname__}: parameter '{name}' has no annotation")
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[name] = (hints[name], Field(default, description=described.get(name)))
    model = create_model(fn.__name__, __config__=ConfigDict(extra="forbid"), **fields)

    def convert(arguments: Mapping[str, Any]) -> dict[str, Any]:
        try:
            value = model.model_validate(arguments)
        except ValidationError as exc:
            errors = exc.errors(include_url=False, include_context=False, include_input=False)
            texts = (f"'{'.'.join(map(str, e['loc']))}': {e['msg']}" for e in errors)
            raise ArgumentError("; ".join(texts)) from None
        return {name: getattr(value, name) for name in model.model_fields}

    description = doc.short_description
    if doc.long_description:
        description += "\n" + doc.long_description
    return Tool(fn.__name__, description, tidy_schema(model.model_json_schema()), effect, convert)


def tidy_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without `$ref`s (inlined) and titles, its objects closed: models read it as text.

    Raises TypeError when it contains itself. The schema is used up.
    """
    definitions = schema.pop("$defs", {})

    def walk(node: Any, inside: tuple[str, ...] = ()) -> Any:
        if isinstance(node, list):
            return [walk(item, inside) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            name = node["$ref"].rsplit("/", 1)[-1]
            if name in inside:
                raise TypeError(f"tool arguments cannot contain themselves: {name}")
            rest = {k: v for k, v in node.items() if k != "$ref"}
            return walk({**definitions[name], **rest}, (*inside, name))
        out = {}
        for key, value in node.items():
            if (key == "title" and isinstance(value, str)) or key == "discriminator":
                continue  # a discriminator only helps validators, by `$ref`s that are gone
            if key == "properties":
                out[key] = {k: walk(v, inside) for k, v in value.items()}
            elif key in ("default", "const", "enum", "examples"):
                out[key] = value  # values, not schemas
            else:
                out[key] = walk(value, inside)
        if out.get("type") == "object" and "properties" in out:
            out.setdefault("additionalProperties", False)
        return out

    return walk(schema)


def render_result(value: Any) -> str:
    """A tool's return value as the text that the model reads: strings as they are, else compact JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"a tool returned {type(value).__name__}, which has no JSON form")
