"""The copy-on-write database against plain deep-copied dicts: equality, digests, isolation, cost."""

import copy
import enum
import json
import random
from collections.abc import Mapping
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mua.database import Base, canonical_text, freeze, same, thaw
from mua.errors import MuaError


def value_of(v):
    """An independent notion of what a JSON value is: equal results, equal values."""
    if v is None or isinstance(v, bool | str):
        return (type(v).__name__, v)
    if isinstance(v, int | float):
        return ("number", Fraction(v))
    if isinstance(v, Mapping):
        return ("object", frozenset((k, value_of(x)) for k, x in v.items()))
    return ("list", tuple(map(value_of, v)))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


def respelled(v, rng):
    """The same value written otherwise: whole numbers as floats or ints, keys in another order."""
    if isinstance(v, dict):
        return {k: respelled(v[k], rng) for k in rng.sample(list(v), len(v))}
    if isinstance(v, list):
        return [respelled(x, rng) for x in v]
    if type(v) is int and abs(v) < 2**53:
        return float(v)
    return int(v) if type(v) is float and v.is_integer() else v


@given(a=json_values, b=json_values, seed=st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_equality_and_canonical_text_agree_with_the_values(a, b, seed):
    for x, y in ((a, b), (a, respelled(a, random.Random(seed))), ([a, b], [b, a]), ([a], a), (a, str(a))):
        equal = value_of(x) == value_of(y)
        assert same(freeze(x), freeze(y)) == equal
        assert (canonical_text(x) == canonical_text(y)) == equal
    assert json.loads(json.dumps(thaw(freeze(a)))) == a


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (3, 3.0, True),
        (3, "3", False),
        (1, True, False),
        (0, False, False),
        (1.0, True, False),
        (0.0, -0.0, True),
        (2**53 + 1, float(2**53), False),
        (2**53, float(2**53), True),
        (10**300, 1e300, False),
        (int(1e300), 1e300, True),
        ([1, 2], [2, 1], False),
        ([1], [1.0], True),
        ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}, True),
        ({"a": None}, {}, False),
        ([], {}, False),
        (None, False, False),
        ("", None, False),
        ("é", "e\u0301", False),
    ],
)
def test_json_equality(a, b, equal):
    one, two = Base({"t": {"k": {"f": a}}}).open(), Base({"t": {"k": {"f": b}}}).open()
    assert one.equals(two) == two.equals(one) == equal
    assert (one.digest() == two.digest()) == equal
    # and as an overlay over the same base
    other = one.fork()
    other.put("t", "k", {"f": b})
    assert (other.digest() == one.digest()) == other.equals(one) == (other.touched() == []) == equal
    assert bool(one.where("t", f=b)) == equal


# ---------------------------------------------------------------- random programs

TABLES, KEYS, FIELDS = ("a", "b"), ("k0", "k1", "k2", "k3"), ("f", "g")
VALUES = [0, 1, 1.0, True, "1", None, -0.0, 2**53, 2**53 + 1, float(2**53), [1, 2], [2, 1], {"x": [1.0]}, {}]
rows = st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(VALUES))
START = {
    "a": {"k0": {"f": 1, "g": "1"}, "k1": {"f": True, "g": [1, 2]}, "k2": {"f": 1.0}},
    "b": {"k0": {"f": {"x": [1]}}, "k3": {"f": None, "g": 2**53}},
}
operations = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "update", "delete", "fork", "restore", "undo"]),
        st.integers(0, 2),
        st.integers(0, 2),
        st.sampled_from(TABLES),
        st.sampled_from(KEYS),
        rows,
    ),
    max_size=25,
)


def contents(db):
    """The whole state as values, read row by row."""
    return {t: {k: thaw(db.get(t, k)) for k in db.keys(t)} for t in TABLES}


@given(operations)
@settings(max_examples=150, deadline=None)
def test_random_programs_equal_plain_copies(program):
    base = Base(START)
    before = base.recompute_sum()
    dbs, models = [base.open() for _ in range(3)], [copy.deepcopy(START) for _ in range(3)]
    saved = [(db.fork(), copy.deepcopy(START)) for db in dbs]
    for what, i, j, table, key, row in program:
        db, model = dbs[i], models[i]
        if what == "put":
            db.put(table, key, row)
            model[table][key] = copy.deepcopy(row)
        elif what in ("update", "delete") and key not in model[table]:
            digest = db.digest()
            with pytest.raises(KeyError, match=key):
                db.update(table, key, **row) if what == "update" else db.delete(table, key)
            assert db.digest() == digest
        elif what == "update":
            db.update(table, key, **row)
            model[table][key] |= copy.deepcopy(row)
        elif what == "delete":
            db.delete(table, key)
            del model[table][key]
        elif what == "fork":
            dbs[j], models[j] = db.fork(), copy.deepcopy(model)
            saved[i] = (db.fork(), copy.deepcopy(model))
        elif what == "restore":
            db.restore(saved[i][0])
            models[i] = copy.deepcopy(saved[i][1])
        else:  # back to the start by writing it: other history, same state
            for t in TABLES:
                for k in list(db.keys(t)):
                    db.delete(t, k)
                for k, r in reversed(START[t].items()):
                    db.put(t, k, dict(reversed(r.items())))
            models[i] = copy.deepcopy(START)
        assert value_of(dbs[i].get(table, key)) == value_of(models[i][table].get(key))

    for db, model in zip(dbs, models, strict=True):
        assert value_of(contents(db)) == value_of(model)
        assert all(len(list(db.keys(t))) == len(model[t]) for t in TABLES)
        assert set(db.touched()) == changed(START, model)
        for t, f, v in ((t, f, v) for t in TABLES for f in FIELDS for v in VALUES):
            hits = {k for k, r in model[t].items() if f in r and value_of(r[f]) == value_of(v)}
            found = db.where(t, **{f: v})
            assert {k for k, _ in found} == hits and len(found) == len(hits)
        for other, wanted in zip(dbs, models, strict=True):
            differing = changed(model, wanted)
            named = {tuple(line.split(":")[0].split(".")[:2]) for line in db.diff(other)}
            assert named == differing
            assert db.equals(other) == (db.digest() == other.digest()) == (not differing)
        # a state of its own base compares and hashes alike
        alone = Base(contents(db)).open()
        assert alone.digest() == db.digest() and alone.equals(db) and db.equals(alone)
    assert base.recompute_sum() == before == base.digest_sum()
    assert value_of(base.tables) == value_of(START)


def changed(one, two):
    return {
        (t, k)
        for t in TABLES
        for k in {*one[t], *two[t]}
        if value_of(one[t].get(k, "none")) != value_of(two[t].get(k, "none"))
    }


# ---------------------------------------------------------------- what cannot happen


def test_rows_cannot_be_changed_in_place():
    given_row = {"list": [1, {"deep": 2}], "object": {"x": 1}}
    base = Base({"t": {"k": given_row}})
    db = base.open()
    db.put("t", "new", given_row)
    before = db.digest()
    for row in (base.tables["t"]["k"], db.get("t", "new")):
        for change in (
            lambda r: r.__setitem__("x", 1),
            lambda r: r["object"].__setitem__("x", 2),
            lambda r: r["list"].__setitem__(0, 2),
            lambda r: r["list"][1].__setitem__("deep", 3),
            lambda r: r["object"].__delitem__("x"),
        ):
            with pytest.raises((TypeError, AttributeError)):
                change(row)
    for mapping in (base.tables, base.tables["t"]):
        with pytest.raises(TypeError):
            mapping["t"] = {}
    given_row["list"].append(3)  # what was handed in is the caller's own
    given_row["object"]["x"] = 9
    assert db.digest() == before and base.recompute_sum() == base.digest_sum()


def test_a_saved_state_can_be_gone_back_to_more_than_once():
    db = Base({"t": {"k": {"x": 1}}}).open()
    saved = db.fork()
    for x in (2, 3):
        db.update("t", "k", x=x)
        db.restore(saved)
        assert db.get("t", "k") == {"x": 1} and saved.touched() == []


class Status(enum.StrEnum):
    OPEN = "open"


class Level(enum.IntEnum):
    LOW = 1


def test_subclasses_of_plain_values_are_stored_as_plain_values():
    base = Base({"t": {"k": {"s": "open", "n": 1}}})
    db = base.open()
    db.put("t", "k", {"s": Status.OPEN, "n": Level.LOW})
    assert db.equals(base.open()) and db.digest() == base.open().digest()
    assert type(db.get("t", "k")["s"]) is str and type(db.get("t", "k")["n"]) is int
    assert db.where("t", s=Status.OPEN)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), {1, 2}, {1: 2}, b"x", object()])
def test_what_json_cannot_hold_is_refused(junk):
    db = Base({"t": {"k": {"x": 1}}}).open()
    before = db.digest()
    with pytest.raises(TypeError):
        db.put("t", "k", {"x": [junk]})
    with pytest.raises(TypeError):
        db.update("t", "k", x=junk)
    assert db.digest() == before
    with pytest.raises(MuaError, match="table 't'"):
        Base({"t": {"k": {"x": junk}}})


def test_wrong_shapes_are_refused():
    db = Base({"t": {"k": {"x": 1}}}).open()
    for row in (None, [1], "row"):
        with pytest.raises(TypeError, match="must be an object"):
            db.put("t", "k", row)
    with pytest.raises(TypeError):
        db.put("t", 1, {})
    for table in ({"k": [1]}, {"k": None}, [{"x": 1}], {1: {}}):
        with pytest.raises(MuaError, match="table 't'"):
            Base({"t": table})
    for access in (lambda: db.get("u", "k"), lambda: db.put("u", "k", {}), lambda: list(db.keys("u"))):
        with pytest.raises(KeyError, match="no table 'u'; the tables are t"):
            access()


class Counted(dict):
    """A table that counts which rows are read."""

    def __init__(self, rows):
        super().__init__(rows)
        self.reads = []

    def get(self, key, default=None):
        self.reads.append(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self.reads.append(key)
        return super().__getitem__(key)

    def _scan(self, *_):
        raise AssertionError("the whole table was read")

    __iter__ = items = values = keys = _scan


def test_work_is_in_proportion_to_what_was_touched():
    base = Base({"t": {f"k{i}": {"n": i, "group": i % 100} for i in range(1000)}})
    base.digest_sum()
    base.index("t", "group")
    base.tables = {"t": (table := Counted(base.tables["t"]))}
    one, two = base.open(), base.open()
    one.update("t", "k7", n=0)
    two.delete("t", "k8")
    two.put("t", "new", {"n": 1, "group": 7})
    three = two.fork()
    one.restore(one.fork())
    assert len(one.diff(two)) == 3 and two.equals(three) and one.digest() != two.digest()
    assert one.touched() == [("t", "k7")]
    assert set(table.reads) <= {"k7", "k8", "new"} and len(table.reads) < 40
    table.reads.clear()
    assert len(two.where("t", group=7)) == 11
    assert len(table.reads) <= 12
