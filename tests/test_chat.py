"""Messages: their stored form, strict reading of what models write, and who sees what."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mua.chat import MAX_DEPTH, Message, ToolCall, agent_view, parse_arguments, strict_json, user_view
from mua.errors import MuaError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
calls = st.builds(ToolCall, texts, st.dictionaries(texts, values, max_size=3), texts) | st.builds(
    ToolCall, texts, st.just({}), texts, texts.filter(bool), texts
)
some_calls = st.lists(calls, max_size=2).map(tuple)
messages = st.one_of(
    st.builds(Message, st.sampled_from(["system", "user"]), texts),
    st.builds(Message, st.sampled_from(["user", "assistant"]), texts, some_calls, thinking=texts),
    st.builds(
        Message,
        st.just("tool"),
        texts,
        tool_call_id=texts,
        requestor=st.sampled_from(["assistant", "user"]),
        error=st.booleans(),
    ),
)


@given(messages)
@settings(max_examples=200, deadline=None)
def test_a_stored_message_is_the_same_message(message):
    line = json.dumps(message.to_dict())
    again = Message.from_dict(json.loads(line))
    assert again == message and json.dumps(again.to_dict()) == line


def test_the_stored_form_is_openais():
    message = Message("assistant", "", (ToolCall("f", {"é": 3.0}, "c1"),), thinking="hm")
    assert message.to_dict() == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"é": 3.0}'}}
        ],
        "reasoning_content": "hm",
    }
    assert Message("tool", "x", tool_call_id="c1").to_dict() == {
        "role": "tool",
        "content": "x",
        "tool_call_id": "c1",
    }


def test_other_spellings_are_read():
    assert Message.from_dict({"role": "user", "content": None}).content == ""
    parts = [{"type": "text", "text": "a"}, {"type": "image_url"}, "junk", {"text": "b"}]
    assert Message.from_dict({"role": "user", "content": parts}).content == "ab"
    assert ToolCall.from_dict({"name": "f", "arguments": {"x": 1}}) == ToolCall("f", {"x": 1})
    assert ToolCall.from_dict({"function": {"name": "f"}}) == ToolCall("f")
    # only what a role can have is taken from it
    assert Message.from_dict({"role": "user", "tool_call_id": "c", "error": True}) == Message("user")
    with pytest.raises(MuaError, match="role 'developer'"):
        Message.from_dict({"role": "developer"})


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        ('{"x": 1', "not valid JSON"),
        ('{"x": NaN}', "NaN is not a JSON number"),
        ('{"x": -Infinity}', "-Infinity is not"),
        ('{"x": 1e999}', "out of range"),
        ('{"x": 1, "x": 2}', "duplicate key 'x'"),
        ('{"a": {"x": 1, "x": 1}}', "duplicate key 'x'"),
        ('{"x": "\\ud800"}', "lone surrogate"),
        ('{"x": ' + "9" * 5000 + "}", "limit"),
        ('{"x":' * 65 + "1" + "}" * 65, "64 levels"),
        ("[" * 100_000, "nested too deeply"),
        ("[1]", "must be a JSON object"),
        ("3", "must be a JSON object"),
        ([1], "must be a JSON object"),
    ],
)
def test_junk_arguments_become_a_call_that_says_why(raw, error):
    call = parse_arguments("f", raw, "c1")
    assert error in call.error and call.arguments == {} and (call.name, call.id) == ("f", "c1")
    assert call.raw == (raw if isinstance(raw, str) else "")
    # kept as it was written
    assert ToolCall.from_dict(json.loads(json.dumps(call.to_dict()))) == call


def test_what_means_no_arguments():
    for raw in ("", "  ", None, "{}", {}):
        assert parse_arguments("f", raw) == ToolCall("f")


@given(values)
@settings(max_examples=100, deadline=None)
def test_strict_json_reads_all_other_json(value):
    for ascii_only in (True, False):
        assert strict_json(json.dumps(value, ensure_ascii=ascii_only)) == value


def test_depth_is_counted_not_brackets():
    assert strict_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    flat = json.dumps([[] for _ in range(500)] + ["[" * 500])
    assert len(strict_json(flat)) == 501


def test_each_side_sees_its_own():
    conversation = [
        Message("system", "policy"),
        Message("user", "hello"),
        Message("user", "", (ToolCall("phone", {}, "u1"),)),
        Message("tool", "off", tool_call_id="u1", requestor="user"),
        Message("user", "look", (ToolCall("phone", {}, "u2"),)),
        Message("tool", "on", tool_call_id="u2", requestor="user"),
        Message("assistant", "let me see", (ToolCall("find", {}, "c1"),), thinking="secret"),
        Message("tool", "found", tool_call_id="c1"),
        Message("assistant", "  "),
        Message("assistant", "Is it on?", thinking="secret"),
    ]
    seen = user_view(conversation)
    assert [(m.role, m.content) for m in seen] == [
        ("user", "hello"),
        ("user", ""),
        ("tool", "off"),
        ("user", "look"),
        ("tool", "on"),
        ("assistant", "Is it on?"),
    ]
    assert [len(m.tool_calls) for m in seen] == [0, 1, 0, 1, 0, 0] and not any(m.thinking for m in seen)
    assert agent_view(conversation) == [
        conversation[0],
        conversation[1],
        Message("user", "look"),
        *conversation[6:],
    ]
