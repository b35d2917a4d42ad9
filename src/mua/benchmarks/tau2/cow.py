"""Copy-on-write views of upstream's pydantic models.

Upstream's functions change the database wherever they reach it: by key, by iteration, through an object
they hold. Here they are given *views*: instances of a subclass of the model's own class, empty at first,
that fetch a field from the shared original when it is read and keep their own copy of whatever could be
changed. `isinstance`, assignment, `model_dump`, `deepcopy` work as on the original. Functions that only
read are given a `Reader`, which hands out the originals themselves: they are frozen.

Invariants:
- An original never changes. A view gives out immutable values, views and copies; whoever tries to write to
  a frozen original gets a `FrozenError`.
- A view costs what was touched: reading a plain field keeps nothing, and `prune` lets go of what was only
  read.
- `plain(view)` is what `model_dump()` of the same model, really changed, would give.
"""

from __future__ import annotations

import abc
import copy
import datetime
import enum
import functools
import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from pydantic import BaseModel

_MISSING = object()
_ORIGINAL = "__pydantic_private__"
"""A slot of every pydantic model that upstream's models leave empty; a view keeps its original there."""


class FrozenError(TypeError):
    """Somebody tried to change what all episodes share."""


_slot: Any = BaseModel.__dict__[_ORIGINAL]
original_of: Callable[[Any], Any] = _slot.__get__
"""The original of a view."""


def view(original: BaseModel) -> Any:
    """A view of a frozen model."""
    self = object.__new__(_view_class(type(original)))
    _slot.__set__(self, original)
    return self


def is_view(value: Any) -> bool:
    return hasattr(type(value), "__mua_view__")


def freeze(value: Any) -> Any:
    """The value with every model, dictionary and list in it made unchangeable; models in place."""
    if isinstance(value, BaseModel):
        fields: Any = value.__dict__
        fields.update({k: freeze(v) for k, v in fields.items()})
        object.__setattr__(value, "__class__", _frozen_class(type(value)))
        return value
    if isinstance(value, dict):
        return _FrozenDict({k: freeze(v) for k, v in value.items()})
    if isinstance(value, list):
        return _FrozenList(map(freeze, value))
    if isinstance(value, tuple):
        return tuple(map(freeze, value))
    return value


def _model(cls: Any, fields: dict[str, Any]) -> Any:
    """A real model with these fields, not validated."""
    made = object.__new__(cls)
    object.__setattr__(made, "__dict__", fields)
    object.__setattr__(made, "__pydantic_fields_set__", set(fields))
    object.__setattr__(made, "__pydantic_extra__", None)
    _slot.__set__(made, None)
    return made


def plain(value: Any) -> Any:
    """The value with models as dictionaries, as pydantic's `model_dump()` gives it; a detached copy.

    Values of another type than their field's stay as they are, as there.
    """
    if isinstance(value, str | int | float) or value is None:
        return value
    if isinstance(value, BaseModel):
        fields = value.__dict__
        if is_view(value):
            fields = {**original_of(value).__dict__, **fields}
        return {k: plain(v) for k, v in fields.items()}
    if isinstance(value, Rows):
        return {k: plain(v) for k, v in value.merged().items()}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, tuple):
        return tuple(plain(v) for v in value)
    return value


def text(value: Any) -> str:
    """The text by which upstream compares states: sorted keys, `str` for dates; 2, 2.0 and True differ."""
    return json.dumps(plain(value), sort_keys=True, default=str)


def real(value: Any) -> Any:
    """A detached deep copy without views: real models, dictionaries and lists."""
    if isinstance(value, BaseModel):
        fields = value.__dict__
        if is_view(value):
            fields = {**original_of(value).__dict__, **fields}
        cls = getattr(type(value), "__mua_model__", type(value))
        return _model(cls, {k: real(v) for k, v in fields.items()})
    if isinstance(value, Rows):
        return {k: real(v) for k, v in value.merged().items()}
    if isinstance(value, dict):
        return {k: real(v) for k, v in value.items()}
    if isinstance(value, list):
        return [real(v) for v in value]
    if isinstance(value, tuple):
        return tuple(real(v) for v in value)
    return value if _immutable(type(value)) else copy.deepcopy(value)


def fork(value: Any) -> Any:
    """An independent copy with the same originals: what was touched is copied, nothing else."""
    if isinstance(value, BaseModel):
        fields = {k: fork(v) for k, v in value.__dict__.items()}
        if not is_view(value):
            return _model(type(value), fields)
        made = view(original_of(value))
        made.__dict__.update(fields)
        return made
    if isinstance(value, Rows):
        made = Rows(value.original)
        made.own = {k: fork(v) for k, v in value.own.items()}
        made.gone = set(value.gone)
        return made
    if isinstance(value, dict):
        return {k: fork(v) for k, v in value.items()}
    if isinstance(value, list):
        return [fork(v) for v in value]
    return value


def prune(value: Any) -> bool:
    """Lets go of what a view only read; true when nothing in it differs from its original.

    To be called between calls, when nobody holds a part of it.
    """
    own, fields = value.__dict__, original_of(value).__dict__
    for name in [k for k, v in own.items() if _same(v, fields.get(k, _MISSING))]:
        del own[name]
    return not own


class Rows(MutableMapping[Any, Any]):
    """A view of a dictionary of models: a key is looked up in the original until it is touched."""

    __slots__ = ("gone", "original", "own")

    def __init__(self, original: Mapping[Any, Any]):
        self.original = original
        """Never written."""
        self.own: dict[Any, Any] = {}
        """What was touched or set."""
        self.gone: set[Any] = set()
        """Keys of the original that were removed; one that is set anew stands at the end."""

    def merged(self) -> Mapping[Any, Any]:
        """All of it for reading only: what is not touched is the original's own."""
        if not self.own and not self.gone:
            return self.original
        found = dict(self.original)
        for key in self.gone:
            del found[key]
        found.update(self.own)
        return found

    def __getitem__(self, key: Any) -> Any:
        if key in self.own:
            return self.own[key]
        if key in self.gone:
            raise KeyError(key)
        value = self.original[key]
        made = _wrap(value)
        if made is not value:
            self.own[key] = made
        return made

    def __setitem__(self, key: Any, value: Any) -> None:
        self.own[key] = value

    def __delitem__(self, key: Any) -> None:
        if key not in self:
            raise KeyError(key)
        self.own.pop(key, None)
        if key in self.original:
            self.gone.add(key)

    def __contains__(self, key: object) -> bool:
        return key in self.own or (key in self.original and key not in self.gone)

    def __iter__(self) -> Iterator[Any]:
        gone, original = self.gone, self.original
        yield from (k for k in original if k not in gone)
        yield from [k for k in self.own if k not in original or k in gone]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def touched(self) -> list[Any]:
        """Keys whose values may differ from the original's."""
        return [*self.own, *(self.gone - self.own.keys())]


def _wrap(value: Any) -> Any:
    """What a view gives out for an original value: itself if nobody can change it, else a view or a copy."""
    if isinstance(value, str | int | float) or value is None:
        return value
    if isinstance(value, BaseModel):
        return view(value)
    if isinstance(value, dict):
        if any(isinstance(v, BaseModel | dict | list) for v in value.values()):
            return Rows(value)
        return dict(value)
    if isinstance(value, list):
        return [_wrap(v) for v in value]
    if isinstance(value, tuple):
        return tuple(_wrap(v) for v in value)
    return value if _immutable(type(value)) else copy.deepcopy(value)


@functools.cache
def _immutable(cls: type) -> bool:
    return issubclass(cls, enum.Enum | datetime.date | datetime.time | datetime.timedelta | bytes | frozenset)


def _same(value: Any, original: Any) -> bool:
    """Nothing under `value` differs from `original`, types included. Prunes on the way."""
    if value is original:
        return True
    if isinstance(value, BaseModel):
        return is_view(value) and original_of(value) is original and prune(value)
    if isinstance(value, Rows):
        if value.original is not original:
            return False
        for key in [k for k, v in value.own.items() if k not in value.gone and k in original]:
            if _same(value.own[key], original[key]):
                del value.own[key]
        return not value.own and not value.gone
    if isinstance(value, dict):
        if not isinstance(original, dict) or len(value) != len(original):
            return False
        return all(k in original and _same(v, original[k]) for k, v in value.items())
    for kind in (list, tuple):
        if isinstance(value, kind):
            if not isinstance(original, kind) or len(value) != len(original):
                return False
            return all(_same(a, b) for a, b in zip(value, original, strict=True))
    return type(value) is type(original) and bool(value == original)


class Reader:
    """A view for functions that only read: what is not touched is handed out as it is, frozen."""

    __slots__ = ("_view",)

    def __init__(self, view: Any):
        self._view = view

    def __getattr__(self, name: str) -> Any:
        own = self._view.__dict__
        if name in own:
            value = own[name]
            return value.merged() if isinstance(value, Rows) else value
        if is_view(self._view) and name in original_of(self._view).__dict__:
            return original_of(self._view).__dict__[name]
        return getattr(self._view, name)


# ---------------------------------------------------------------- classes of what is frozen, and of views


def _refuse(self: Any, *args: Any, **options: Any) -> Any:
    raise FrozenError(f"a {type(self).__name__} of the shared database cannot be changed")


class _FrozenDict(dict[Any, Any]):
    """A dictionary that nobody can change; its copies can be."""

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __deepcopy__(self, memo: Any = None) -> Any:
        return real(self)

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


class _FrozenList(list[Any]):
    """A list that nobody can change; its copies can be."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse

    def __deepcopy__(self, memo: Any = None) -> Any:
        return real(self)

    def __reduce__(self) -> Any:
        return list, (list(self),)


def _get(self: Any, name: str) -> Any:
    """`__getattr__`: a field that the view has no own value of."""
    value = original_of(self).__dict__.get(name, _MISSING)
    if value is _MISSING:
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
    made = _wrap(value)
    if made is not value:
        self.__dict__[name] = made
    return made


def _set(self: Any, name: str, value: Any) -> None:
    """`__setattr__`, as pydantic's for a model that does not validate assignments."""
    if name not in original_of(self).__dict__:
        raise ValueError(f'"{type(self).__name__}" object has no field "{name}"')
    self.__dict__[name] = value


def _dump(self: Any, **options: Any) -> dict[str, Any]:
    return real(self).model_dump(**options) if options else plain(self)


def _equal(self: Any, other: Any) -> bool:
    return isinstance(other, BaseModel) and real(self) == real(other)


def _by(method: str) -> Callable[..., Any]:
    """A method that answers for a real copy."""
    return lambda self, *args, **options: getattr(real(self), method)(*args, **options)


_COMMON: dict[str, Any] = {
    "__eq__": _equal,
    "__hash__": None,
    "__copy__": real,
    "__deepcopy__": lambda self, memo=None: real(self),
    "model_dump": _dump,
} | {m: _by(m) for m in ("model_dump_json", "model_copy", "__repr__", "__str__", "__iter__")}


@functools.cache
def _view_class(frozen: Any) -> Any:
    """The class of views of a frozen class."""
    return _subclass(frozen.__mua_model__, {"__mua_view__": True, "__getattr__": _get, "__setattr__": _set})


@functools.cache
def _frozen_class(cls: Any) -> Any:
    return _subclass(cls, {"__setattr__": _refuse, "__delattr__": _refuse})


def _subclass(cls: Any, names: dict[str, Any]) -> Any:
    """A subclass of a model class, past pydantic's own metaclass: it would build a schema for each."""
    about = {k: getattr(cls, k) for k in ("__module__", "__qualname__", "__doc__")}
    return abc.ABCMeta.__new__(
        type(cls), cls.__name__, (cls,), {**about, "__mua_model__": cls, **_COMMON, **names}
    )
