"""ACEBench's syntax of calls, and the wording that is read from upstream's sources; no data needed."""

import ast
import keyword
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acebench_upstream import HOSTILE
from mua.benchmarks.acebench import words
from mua.benchmarks.acebench.codec import AceCall, Undecodable, decode, encode


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("[f(a='x', b=[1, {'k': (2.5, None)}])]", [("f", {"a": "x", "b": [1, {"k": (2.5, None)}]})]),
        ("[f(), g.h(a=True)]", [("f", {}), ("g.h", {"a": True})]),
        ("f(1, *x, a=wifi, b=not 5, c=2*3+1, d=x[0], e=g(), a=3)", None),
        ("['f()']", [("f", {})]),
        ("[done]", []),
        ("[f(a={})]", Undecodable),
        ("[f(a={'x': 1})]", Undecodable),
        ("[f(), 5]", Undecodable),
        ("[f()]\n", Undecodable),
        ("Sure: [f()]", Undecodable),
        ("```[f()]```", Undecodable),
        ("[f(a=10**9**9)]", Undecodable),
        ("[f(a='x' * 10**9)]", Undecodable),
        ("", Undecodable),
        ("[" * 100_000, Undecodable),
        ("f(" * 5000, Undecodable),
        ("[f(a=" + "-" * 50_000 + "1)]", Undecodable),
        ("[f(a=" + "1+" * 20_000 + "1)]", Undecodable),
        ("[f(a=" + "b." * 20_000 + "c)]", Undecodable),
        ("[f(a='\0')]", Undecodable),
    ],
)
def test_decode(text, calls):
    if calls is Undecodable:
        with pytest.raises(Undecodable):
            decode(text)
    elif calls is None:
        wanted = {"a": 3, "b": -5, "c": 7, "d": "x[0]", "e": "g()"}
        assert [(c.name, dict(c.arguments)) for c in decode(text)] == [("f", wanted)]
    else:
        assert [(c.name, dict(c.arguments)) for c in decode(text)] == calls


literals = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
        | st.lists(st.dictionaries(st.text(max_size=3), inner, max_size=2), min_size=1, max_size=2)
    ),
    max_leaves=6,
)
names = st.from_regex(r"[a-z_]{1,6}", fullmatch=True).filter(lambda n: not keyword.iskeyword(n))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(names, st.dictionaries(names, literals, max_size=3)), min_size=1, max_size=3))
def test_what_is_written_out_is_read_back(calls):
    text = f"[{', '.join(encode(*call) for call in calls)}]"
    assert [(c.name, dict(c.arguments)) for c in decode(text)] == calls


@settings(max_examples=400, deadline=None)
@given(HOSTILE)
def test_any_text_is_calls_or_undecodable(text):
    """Nothing of it is evaluated: `abort` among the tokens would end the tests."""
    try:
        calls = decode(text)
    except Undecodable:
        return
    assert all(isinstance(call, AceCall) and isinstance(call.source, str) for call in calls)


def test_upstreams_wording_is_found_in_its_syntax_tree():
    """Of a function made up here; the real ones are compared by `acebench_upstream.py`."""
    tree = ast.parse(
        "def f(self, x):\n"
        "    '''Not this.'''\n"
        "    if x: return {'status': False, 'message': f'No {x} {{in}} {self.y}.'}\n"
        "    out.append(f'Paid {-x}')\n"
        "    if not out: out.append('Nothing')\n"
        "    return ' '.join(out)\n"
    )
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    assert list(words._said(function)) == ["No {} {{in}} {}.", "Paid {}", "Nothing"]
    for language in ("en", "zh"):
        assert words.load(Path("nowhere"), language).source == "mua"
        assert set(words.own(language).texts) == set(words.own("en").texts)
        assert set(words.own(language).prompts) == set(words.own("en").prompts)
