"""The files of a declared domain: what may stand in them, and what keeps them from being one, in words.

Invariant: a file is data. Nothing in it is run, imported, formatted by Python's `format` or taken as a
regular expression; its only moving part is `$name`, which stands for a value. So a domain that a model has
drafted can be read and played like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...errors import MuaError, unreadable

Scalar = str | int | float | bool
Json = Mapping[str, Any]
MOST_BYTES = 1_000_000
MOST_LEVELS = 20
HINT = " docs/draft-a-domain.md has the format."
_NAME = r"^[a-z][a-z0-9_]{0,39}$"
_VALUE = re.compile(r"\$([a-z]\w*)(?:\.([a-z]\w*))?")
_PERSON = re.compile(r"\{(?:my|me|I|am)\}")
"""What stands for the person in a wish: "your" to who is told the goal, "my" when the person says it."""

M = TypeVar("M", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


def _one_of(part: BaseModel, names: Sequence[str]) -> str:
    """The one of these fields that is given. Raises ValueError."""
    given = [name for name in names if name in part.model_fields_set]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(names)}")
    return given[0]


class Maker(_Part):
    """How the value of a field is made; one of these."""

    digits: int = Field(default=0, ge=1, le=12, description="So many digits, as text.")
    prefix: str = Field(default="", description="Before the digits.")
    choose: tuple[Scalar, ...] = Field(default=(), min_length=1, description="One of these.")
    between: tuple[int, int] = Field(default=(0, 0), description="A whole number from … to ….")
    pick: str = Field(default="", description="table.field: as in some row of a table above this one.")
    person: bool = Field(default=False, description="A made-up name.")

    @model_validator(mode="after")
    def _one(self) -> Maker:
        _one_of(self, ("digits", "choose", "between", "pick", "person"))
        return self


class Table(_Part):
    """Rows, given or made from a seed."""

    key: tuple[str, ...] | str = Field(description="The field, or fields, by which a row is found.")
    fields: dict[str, Maker] = {}
    count: int = Field(default=0, ge=0, le=5000, description="Rows to make.")
    rows: tuple[dict[str, Scalar], ...] = Field(default=(), description="Rows as they are.")

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,) if isinstance(self.key, str) else self.key

    @property
    def known(self) -> set[str]:
        """All fields of its rows, as far as the file says."""
        return {*self.keys, *self.fields, *(name for row in self.rows for name in row)}


class Asked(_Part):
    """What must hold of a row's fields."""

    equals: dict[str, Scalar] = {}
    at_least: dict[str, Scalar] = {}
    at_most: dict[str, Scalar] = {}

    def mentions(self) -> Iterator[tuple[str, Scalar]]:
        """(field, value) of everything asked."""
        for part in (self.equals, self.at_least, self.at_most):
            yield from part.items()


Keys = tuple[Scalar, ...] | Scalar | None


class Step(Asked):
    """One thing that a tool does; one of find, list, insert, update, delete names the table."""

    find: str = Field(default="", description="The row must be there, and be as asked; it is the answer.")
    list: str = Field(default="", description="The rows that are as asked are the answer.")
    insert: str = Field(default="", description="A new row; its key must be free.")
    update: str = Field(default="", description="The row must be there, and be as asked; it is changed.")
    delete: str = Field(default="", description="The row must be there, and be as asked; it goes.")
    key: Keys = Field(default=None, description="Default: the arguments that are called as the key is.")
    row: dict[str, Scalar] | None = Field(default=None, description="Of insert; default: the arguments.")
    set: dict[str, Scalar] = Field(default={}, description="Of update: fields and new values.")
    add: dict[str, Scalar] = Field(default={}, description="Of update: fields and what is added to them.")
    show: tuple[str, ...] = Field(default=(), description="Of find and list: only these fields.")
    otherwise: str = Field(default="", description="What the tool answers when this cannot be done.")

    @model_validator(mode="after")
    def _one(self) -> Step:
        _one_of(self, STEPS)
        return self

    @property
    def kind(self) -> str:
        return _one_of(self, STEPS)

    @property
    def table(self) -> str:
        return getattr(self, self.kind)


STEPS = ("find", "list", "insert", "update", "delete")


class Argument(_Part):
    """An argument of a tool."""

    type: Literal["string", "integer", "number", "boolean"] = "string"
    description: str = ""
    enum: tuple[Scalar, ...] | None = Field(default=None, min_length=1)
    minimum: float | None = None
    maximum: float | None = None
    optional: bool = False


class ToolSpec(_Part):
    """A tool of the agent."""

    description: str = Field(min_length=1)
    arguments: dict[str, Argument] = {}
    steps: tuple[Step, ...] = Field(default=(), description="In their order; all of them or none.")
    record: bool = Field(default=False, description="What it is called with becomes a graded row; no steps.")
    ungraded: tuple[str, ...] = Field(default=(), description="Of a record: arguments that do not count.")
    ends: bool = Field(default=False, description="Of a record: it hands the conversation over.")
    after: tuple[str, ...] = Field(default=(), description="Tools without which it must not be called.")
    ask: str = Field(default="", description="What a proposal says, after 'I will'; $argument stands for it.")
    done: str = Field(default="", description="What is said when it is done.")

    @model_validator(mode="after")
    def _whole(self) -> ToolSpec:
        if self.record == bool(self.steps):
            raise ValueError("give either steps, or record: true")
        if (self.ends or self.ungraded) and not self.record:
            raise ValueError("ends and ungraded are of a tool with record: true")
        return self

    @property
    def writes(self) -> bool:
        return self.record or any(step.kind in ("insert", "update", "delete") for step in self.steps)


class PersonSpec(_Part):
    """Who is served."""

    table: str
    found_by: str = Field(description="The tool that finds the person.")
    id: str = Field(description="The key of the table, and the argument of tools, that is the person's id.")


class DomainSpec(_Part):
    """domain.yaml"""

    person: PersonSpec
    tables: dict[str, Table] = Field(min_length=1)
    tools: dict[str, ToolSpec] = Field(min_length=1)


class Drawn(_Part):
    """A row that is looked up by what was drawn before."""

    find: str
    key: Keys


class Condition(Asked):
    """What a draw must fulfil."""

    of: str = Field(default="", description="The drawn row that is asked about.")
    exists: str = Field(default="", description="The table must have a row with the key.")
    absent: str = Field(default="", description="The table must have no row with the key.")
    key: Keys = None

    @model_validator(mode="after")
    def _one(self) -> Condition:
        _one_of(self, ("of", "exists", "absent"))
        return self


Calls = tuple[dict[str, dict[str, Scalar]], ...]


class Instead(_Part):
    """What the person wants when it is asked to confirm; without `want`: nothing any more."""

    want: str = ""
    calls: Calls = Field(min_length=1)


class Want(_Part):
    """One request."""

    want: str = Field(min_length=3, description="After 'I want to'.")
    calls: Calls = Field(min_length=1, description="What the agent does: {tool: arguments}, in order.")
    instead: Instead | None = None
    insist: bool = Field(default=False, description="It asks for an exception, once, when it is refused.")


class Kind(_Part):
    """Tasks of one kind: rows are drawn, and what they are asked for, and what is right, follows."""

    draw: dict[str, Drawn | str] = Field(description="Name: a table, of which a row is drawn, or a find.")
    where: tuple[Condition, ...] = ()
    facts: dict[str, str] = Field(
        min_length=1, description="What the person knows; first, who it is. The others it tells when asked."
    )
    wants: tuple[Want, ...] = Field(min_length=1, max_length=3)


class TasksSpec(_Part):
    """tasks.yaml"""

    splits: dict[str, int] = Field(min_length=1)
    kinds: dict[str, Kind] = Field(min_length=1)


# ---------------------------------------------------------------- reading


def read(path: Path, what: type[M]) -> M:
    """A file, checked. Raises MuaError that names file, field and what is wrong."""
    try:
        data = _plain(path.read_bytes())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as exc:
        raise MuaError(f"{path} cannot be read: {unreadable(exc)[:400]}") from None
    try:
        return what.model_validate(data)
    except ValidationError as exc:
        errors = exc.errors(include_url=False, include_input=False)
        said = [f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in errors]
        raise wrong(path, said) from None


def wrong(path: Path, what: Sequence[str]) -> MuaError:
    """All that is wrong with a file, in one paragraph."""
    shown = "; ".join(what[:12]) + (f"; and {len(what) - 12} more" if len(what) > 12 else "")
    return MuaError(f"{path}: {shown}.{HINT}")


class _Loader(yaml.SafeLoader):
    """Plain values only: a date stays the text that it is written as."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _plain(text: bytes) -> Any:
    """YAML without anchors, which could blow a small file up, and without a key that stands twice."""
    if len(text) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_LEVELS:
            raise ValueError(f"line {event.start_mark.line + 1}: more than {MOST_LEVELS} levels deep")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {event.start_mark.line + 1}: anchors and aliases are not for this file")
    node = yaml.compose(text, Loader=_Loader)
    for mapping in _mappings(node):
        keys = [key.value for key, _ in mapping.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"line {mapping.start_mark.line + 1}: the key '{twice[0]}' stands twice")
    return yaml.load(text, Loader=_Loader)


def _mappings(node: Any) -> Iterator[Any]:
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _mappings(value)


# ---------------------------------------------------------------- values


def names_in(value: Any) -> Iterator[tuple[str, str]]:
    """(name, field) of each `$name` or `$name.field` in a value, or in the values of a collection."""
    if isinstance(value, str):
        yield from ((m[1], m[2] or "") for m in _VALUE.finditer(value))
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from names_in(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from names_in(inner)


def filled(value: Any, values: Mapping[str, Any]) -> Any:
    """A value with what `$name` stands for; `values` has the name, or `name.field`.

    Where a text is one name and nothing else, its type is kept.
    """
    if not isinstance(value, str):
        return value
    whole = _VALUE.fullmatch(value)
    if whole:
        return values[whole[0][1:]]
    return _VALUE.sub(lambda m: str(values[m[0][1:]]), value)


def sentence(template: str, values: Mapping[str, Any]) -> str:
    """A wish in words: filled, and with no braces but those that stand for the person."""
    text = str(filled(template, values))
    parts = [unbraced(part) for part in _PERSON.split(text)]
    return "".join(a + b for a, b in zip(parts, [*_PERSON.findall(text), ""], strict=True))


def unbraced(text: str) -> str:
    """A text that `str.format` leaves as it is."""
    return text.replace("{", "(").replace("}", ")")
