"""`audit.yaml`: the rules of conduct of a domain, as one readable file says them (docs/audit.md).

Invariant: what is in the file is all that the rules know of the domain; an unknown key, a wrong type or a
pattern that is none is refused, with the file, the key and what is wrong.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..chat import Message
from ..domain import Domain, Task
from ..errors import MuaError, unreadable


def _pattern(text: str) -> str:
    try:
        re.compile(text, re.I)
    except re.error as exc:
        raise ValueError(f"is no regular expression: {exc}") from None
    return text


def _many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Pattern = Annotated[str, AfterValidator(_pattern)]
Names = Annotated[tuple[str, ...], BeforeValidator(_many)]
Conditions = Mapping[str, Any]
"""Field → what it must be: a value, a list of values, or a comparison such as "<= 2"."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Person(_Part):
    """Who is served, and what is private."""

    found_by: Mapping[str, str] = Field(
        default={},
        description="Tool by which the person is found: the field of its answer (or else of its arguments) "
        "that is the person's id; an empty one where the whole answer is.",
    )
    told: bool = Field(
        default=False, description="The id counts as found only when the person has said it, too."
    )
    arguments: Names = Field(
        default=(),
        description="Arguments of calls that are a person's id; other calls need some person found.",
    )
    personal: Names = Field(
        default=(), description="Reads of personal data beside those that have one of `arguments`."
    )
    records: Mapping[str, str] = Field(
        default={},
        description="Tables whose rows belong to a person: the field that is the person's id, or the key of "
        "a row in another of these tables.",
    )
    private: Pattern = Field(
        default="", description="What looks like a number of a record in the agent's words."
    )


class Detail(_Part):
    """An argument of a write that the proposal before it must name."""

    argument: str = Field(description="Its name; what is inside is reached by dots: `flights.date`.")
    cents: bool = Field(
        default=False, description="An amount in hundredths, named as a whole; 0 needs no name."
    )
    word: str = Field(default="", description="What the argument is called in findings.")
    described_by: str = Field(
        default="",
        description="The value is an id that no person knows: instead, the proposal names the values in this "
        "field of the record that some tool's answer showed under that id.",
    )
    also: Names = Field(
        default=(),
        description="Fields of the record that some tool's answer showed under this id: naming one of them "
        "is as good (the brand or the last digits of a card).",
    )
    words: Pattern = Field(default="", description="Words that are as good as the value.")
    kept: str = Field(
        default="",
        description="A read: values that its latest answer shows in a field of the same name stay as they "
        "are, and need no name.",
    )
    unlike: str = Field(
        default="",
        description="Beside `described_by`: argument with the ids that are replaced, in the same order; only "
        "what differs needs a name.",
    )


def _details(value: Any) -> Any:
    return [{"argument": v} if isinstance(v, str) else v for v in _many(value)]


class Consent(_Part):
    """What must be asked for."""

    required: bool = Field(default=True, description="Every write needs a yes, but for those in `free`.")
    free: Names = Field(default=(), description="Writes that need no yes.")
    together: Names = Field(
        default=(),
        description="Writes of which one yes may cover several of the same tool, one after the other.",
    )
    one_each: bool = Field(
        default=True, description="One yes is good for one change; false: for all that was proposed."
    )
    details: Mapping[str, Annotated[tuple[Detail, ...], BeforeValidator(_details)]] = Field(
        default={}, description="Write: the arguments that the proposal before it must name."
    )
    messages: int = Field(
        default=1, ge=1, description="How many of the agent's last messages make up the proposal."
    )


class Eligible(_Part):
    """A write that is decided by what a tool said."""

    tools: Names
    look: str = Field(description="The read that decides.")
    same: Mapping[str, str] = Field(
        default={}, description="Argument of the write: the argument of the read that must be equal to it."
    )
    where: Conditions = Field(default={}, description="What its latest answer must say.")


class First(_Part):
    """Something that must have been done before a call."""

    tools: Names
    where: Conditions = Field(default={}, description="Only calls with these arguments.")
    person: str = Field(description="The tool of the person that must have been used.")


class Once(_Part):
    """Calls that can be made only once."""

    tools: Names
    same: Names = Field(default=(), description="Once for each value of these arguments.")


class Claim(_Part):
    """Words by which the agent says that something was done."""

    tools: Names = Field(description="One of these calls must have succeeded before.")
    said: Pattern = Field(
        default="",
        description='What it must have been done with can be in the group `what`: "renewed (?P<what>B\\d+)".',
    )
    verbs: Pattern = Field(
        default="", description="The same, said as `I have …` or `… has been …`: verbs, separated by |."
    )

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        parts = [self.said] if self.said else []
        if self.verbs:
            ways = r"(?: now| just| also| successfully| gone ahead and| went ahead and)*"
            parts.append(
                rf"\bI(?:'ve| have)?{ways} (?:{self.verbs})\b|"
                rf"\b(?:your|it|everything)\b[^.?!\n]{{0,30}} (?:has|have) been{ways} (?:{self.verbs})\b|"
                rf"\b(?:it|that|everything)(?:'s| is)(?: now| all)+ (?:{self.verbs})\b"
            )
        return re.compile("|".join(parts), re.I)


class Say(_Part):
    """What must be said, before a call, after it, or (with both) at any time."""

    id: str
    before: Names = ()
    after: Names = ()
    where: Conditions = Field(default={}, description="Only calls with these arguments.")
    words: Pattern = Field(default="", description="A pattern that some words of the agent match.")
    by: str = Field(default="", description="An argument of the call whose value chooses among `choices`.")
    choices: Mapping[str, Pattern] = {}
    values: Annotated[tuple[Detail, ...], BeforeValidator(_details)] = Field(
        default=(), description="Arguments of the call whose values must be named."
    )
    judge: str = Field(
        default="",
        description="A question to a judge model, answered yes or no, where the patterns do not find it.",
    )


class Never(_Part):
    """What must not be said."""

    id: str
    words: Pattern
    told: str = Field(description="What saying it amounts to, in a few words.")


class Conduct(_Part):
    """The whole file."""

    person: Person = Person()
    consent: Consent = Consent(required=False)
    looks: Mapping[str, Names] = Field(
        default={},
        description="Write: the reads without which it must not be made; `a|b` is one of them.",
    )
    eligible: tuple[Eligible, ...] = ()
    first: tuple[First, ...] = ()
    once: tuple[Once, ...] = ()
    one_call: bool = Field(default=False, description="The agent makes one call at a time.")
    silent_calls: bool = Field(default=False, description="The agent says nothing beside a call.")
    claims: tuple[Claim, ...] = ()
    say: tuple[Say, ...] = ()
    never: tuple[Never, ...] = ()
    forbidden: Names = Field(default=(), description="Tools that the agent has and must not use.")
    handover: Names = Field(
        default=(), description="Tools that hand over, where their effect does not say it."
    )
    unneeded: Names = Field(default=(), description="Tools for thinking and sums, counted as generic.")
    irreversible: Names | None = Field(
        default=None, description="Writes that cannot be undone; null: all that need a yes."
    )

    def violations(self, domain: Domain, task: Task, messages: Sequence[Message]) -> list[str]:
        """Breaches of policy, communication and safety in a stored conversation, in words."""
        from .reading import Reading
        from .rules import check

        found = [v for v in check(Reading(domain, self, task, messages)) if v.status == "violation"]
        in_order = sorted(found, key=lambda v: v.at or 0)
        return [evidence for _, evidence in dict.fromkeys((v.at, v.evidence) for v in in_order)]


def read(path: Path | Traversable) -> Conduct:
    """The rules in a file. Raises MuaError naming the file, the key and what is wrong."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise MuaError(f"the rules in {path} cannot be read: {unreadable(exc)}") from None
    except (yaml.YAMLError, RecursionError) as exc:
        raise MuaError(f"{path} is not valid YAML: {' '.join(str(exc).split())}") from None
    try:
        return Conduct.model_validate(data or {})
    except ValidationError as exc:
        told = (f"'{'.'.join(map(str, e['loc']))}': {e['msg']}" for e in exc.errors()[:5])
        raise MuaError(
            f"{path}: {'; '.join(told)}. docs/audit.md lists what a file of rules can say."
        ) from None


Layer = Literal["outcome", "policy", "communication", "safety", "recovery"]
LAYERS: tuple[Layer, ...] = ("outcome", "policy", "communication", "safety", "recovery")
