"""Writes docs/settings.md, the page of all settings, from their definitions: python docs/settings.py

Invariant: the page says what the code says; `test_docs.py` compares the two.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from mua.config import Config

PAGE = Path(__file__).with_name("settings.md")
HEAD = """# All settings

A setting stands in the YAML file of `--config`, or behind a command as `KEY=VALUE`, where values are YAML:

```bash
mua quickstart --out runs/mine train.steps=20 'train_user.personas={plain: 2, terse: 1}' \\
    eval.temperatures=[0.0]
```

A recipe ([quickstart.yaml](../src/mua/recipes/quickstart.yaml), [recipes/](../recipes)) sets some of them;
the defaults below are those of the code. `config.yaml` in a run folder has the values of that run, which goes
on with them. A name that is misspelt is an error. Below a setting whose default is `null` stand those that
count once one of them is set. (`python docs/settings.py` writes this page from the code.)
"""


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The settings classes in a type, such as `dict[str, Price] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from models(part)


def choices(annotation: Any) -> list[str]:
    """The values of the `Literal`s in a type."""
    if typing.get_origin(annotation) is Literal:
        return [str(value) for value in typing.get_args(annotation)]
    return [text for part in typing.get_args(annotation) for text in choices(part)]


def shown(value: Any) -> str:
    """A default as one writes it: YAML in one line."""
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, tuple | frozenset):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return f"`{text.strip().removesuffix('...').strip()}`"


def rows(
    model: type[BaseModel], prefix: str, told: dict[type[BaseModel], str], default: Any = None
) -> Iterator[str]:
    """A line a setting; `default` is what the field that holds them has, where that is not None. Settings in
    `told` (class: where they are listed) are not listed again."""
    for name, field in model.model_fields.items():
        own = isinstance(default, model)
        value = getattr(default, name) if own else field.get_default(call_default_factory=True)
        inner = list(dict.fromkeys(models(field.annotation)))
        words = " ".join((field.description or "").split())
        options = choices(field.annotation)
        if options and not all(option in words for option in options):
            words += f" One of {', '.join(f'`{option}`' for option in options)}."
        again = bool(inner) and value is None and inner[0] in told
        if again:
            words += f" Settings as of `{told[inner[0]]}`."
        if not isinstance(value, BaseModel):
            words = words.replace("|", "\\|").strip()
            yield f"| `{prefix}{name}` | {shown(value)} | {words} |"
        if inner and not again:
            middle, end = {dict: ("NAME.", ""), tuple: ("", "[]"), list: ("", "[]")}.get(
                typing.get_origin(field.annotation), ("", "")
            )
            told.setdefault(inner[0], f"{prefix}{name}")
            yield from rows(inner[0], f"{prefix}{name}{end}.{middle}", told, value)


def page() -> str:
    """The text of docs/settings.md."""
    table = "| setting | default | |\n|---|---|---|"
    plain: list[str] = []
    sections: list[str] = []
    told: dict[type[BaseModel], str] = {}
    for name, field in Config.model_fields.items():
        default = field.get_default(call_default_factory=True)
        words = " ".join((field.description or "").split())
        found = next(models(field.annotation), None)
        if found is None:
            plain.append(f"| `{name}` | {shown(default)} | {words} |")
            continue
        about = words or " ".join((found.__doc__ or "").split("\n\n")[0].split())
        null = " By default `null`." if default is None else ""
        if name in ("user_sft", "eval_user"):
            twin = {"user_sft": "sft", "eval_user": "train_user"}[name]
            sections.append(f"## `{name}`\n\n{about}{null} Settings as of [`{twin}`](#{twin}).")
            continue
        prefix = f"{name}.NAME." if typing.get_origin(field.annotation) is dict else f"{name}."
        lines = rows(found, prefix, told, default)
        sections.append("\n".join([f"## `{name}`", "", f"{about}{null}", "", table, *lines]))
    return "\n".join([HEAD, "## The run", "", table, *plain, "", "\n\n".join(sections), ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
