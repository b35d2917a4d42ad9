"""Tokenizer, chat formats of every family, and reading of whatever a model writes."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_formats import FAMILIES, make_format, make_tokenizer
from mua.chat import Message, ToolCall
from mua.errors import MuaError
from mua.formats import MAX_CALLS, ChatFormat, describe_tools
from mua.seeds import derive_seed
from mua.tokenizer import MARKS, train_tokenizer
from mua.users import STOP
from toy import toy_domain

TOOLS = toy_domain().tools()
TOKENIZER = make_tokenizer()
CALL = ToolCall("get_order", {"order_id": "o3"})
slow_ok = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])

PIECES = [
    *("<tool_call>", "</tool_call>", "<think>", "</think>", "<|python_tag|>", "}", "{", "[", '"', ",", ";"),
    *(
        '{"name": "get_order"',
        '"arguments": {',
        '"parameters": {"a": 1}',
        "NaN",
        "\\ud800",
        "\\u0000",
        "1e999",
    ),
]
pieces = st.sampled_from([*PIECES, *MARKS, STOP])
messy = st.lists(st.one_of(pieces, st.text(max_size=8)), max_size=20).map("".join)


# --- tokenizer --------------------------------------------------------------------------------------


@slow_ok
@given(st.one_of(st.text(), messy))
def test_tokenizer_is_lossless(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False)) == text


def test_tokenizer_is_deterministic_and_survives_saving(tmp_path):
    from transformers import AutoTokenizer

    text = (
        'Hi , there <tool_call>{"name": "get_order", "arguments": {"order_id": "o3"}}</tool_call>###STOP###'
    )
    assert make_tokenizer().get_vocab() == TOKENIZER.get_vocab()
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.encode(text) == TOKENIZER.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert ChatFormat.of(loaded).stop_ids == ChatFormat.of(TOKENIZER).stop_ids


def test_copied_text_has_the_same_tokens_in_words_and_in_calls():
    """Copying a quoted title, a number or an identifier into a call must be copying tokens."""

    def tokens(text):
        return TOKENIZER.convert_ids_to_tokens(TOKENIZER.encode(text, add_special_tokens=False))

    assert tokens("order is")[0] == "orderĠ"  # a word takes the space after it
    title = tokens("The shop 12 café")
    assert "1" in title and "2" in title
    said = tokens('I want "The shop 12 café"')
    call = tokens(
        '<tool_call>{"name": "get_order", "arguments": {"order_id": "The shop 12 café"}}</tool_call>'
    )
    assert said[-len(title) - 1 : -1] == title
    frame = ['<tool_call>{"name": "', "get_order", '", "arguments": {"', "order_id", '": "']
    assert call == [*frame, *title, '"}}</tool_call>']


def test_every_mark_is_one_token_and_added_names_only_whole_words():
    for mark in (*MARKS, STOP):
        assert len(TOKENIZER.encode(mark)) == 1
    assert "get_order" in TOKENIZER.convert_ids_to_tokens(TOKENIZER.encode("(get_order)"))
    assert "get_order" not in TOKENIZER.convert_ids_to_tokens(TOKENIZER.encode("budget_orders"))


def test_tokenizer_refuses_what_it_cannot_do():
    with pytest.raises(MuaError, match="too small"):
        train_tokenizer(["text"], 200)
    with pytest.raises(MuaError, match="ASCII"):
        train_tokenizer(["text"], 400, ["café"])


def test_seeds_depend_on_every_part():
    seeds = {derive_seed(*p) for p in [(1, "a"), ("1", "a"), (1, "a", 0), ("1a",), (1, "b"), (2, "a")]}
    assert len(seeds) == 6 and all(0 <= s < 2**63 for s in seeds)
    assert derive_seed(1, "a") == 1155254847670415180  # a changed derivation would change every run


# --- families ---------------------------------------------------------------------------------------


def test_families_are_told_apart_and_their_ends_found():
    got = {
        f: (make_format(f).calls, make_format(f).native_tools, sorted(make_format(f).rewrites_on))
        for f in FAMILIES
    }
    assert got == {
        "builtin": ("hermes", False, []),
        "chatml": ("hermes", False, []),
        "qwen25": ("hermes", True, []),
        "qwen3": ("hermes", True, ["user"]),
        "qwen3-thinking": ("hermes", True, ["user"]),
        "llama3": ("llama", True, []),
    }
    ends = {
        f: make_format(f).tokenizer.convert_ids_to_tokens(list(make_format(f).stop_ids)) for f in FAMILIES
    }
    assert ends["builtin"] == ["<|end|>"]
    assert ends["qwen25"] == ["<|im_end|>", "<|endoftext|>"]
    assert ends["llama3"] == ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"]


CONVERSATION = [
    Message("system", "You work for a shop."),
    Message("user", "Cancel my order o3, please."),
    Message("assistant", "", (CALL,)),
    Message("tool", '{"status": "open"}'),
    Message("assistant", "Shall I cancel order o3?"),
    Message("user", "Yes, do it."),
    Message(
        "assistant",
        "",
        (ToolCall("get_order", {"order_id": "o3"}), ToolCall("cancel_order", {"order_id": "o3"})),
    ),
    Message("tool", "cancelled"),
    Message("tool", "cancelled"),
    Message("assistant", "Done."),
]


def text_of(format, segment):
    return format.tokenizer.decode(segment.ids)


@pytest.mark.parametrize("family", ["builtin", "chatml", "qwen25", "llama3"])
def test_a_trace_reads_as_the_template_renders_it(family):
    """Piece by piece gives the same text as the template gives for the whole conversation."""
    format = make_format(family)
    (segment,) = format.trace_of(CONVERSATION, TOOLS).segments
    whole = format.tokenizer.decode(format.initial_ids([*CONVERSATION, Message("user", "next")], TOOLS))
    text = text_of(format, segment)
    assert whole.startswith(text) and "next" in whole[len(text) :]


def test_the_builtin_layout_word_for_word():
    format = make_format("builtin", "none")
    (segment,) = format.trace_of(CONVERSATION[:6] + CONVERSATION[9:], TOOLS).segments
    assert text_of(format, segment) == (
        "<|system|>You work for a shop.\nTools: get_order, cancel_order, set_items, hand_over"
        "<|user|>Cancel my order o3, please.<|assistant|>"
        '<tool_call>{"name": "get_order", "arguments": {"order_id": "o3"}}</tool_call><|end|>'
        '<|tool|>{"status": "open"}<|assistant|>Shall I cancel order o3?<|end|>'
        "<|user|>Yes, do it.<|assistant|>Done.<|end|>"
    )
    sampled = [i for i, m in zip(segment.ids, segment.mask, strict=True) if m]
    assert format.tokenizer.decode(sampled) == (
        '<tool_call>{"name": "get_order", "arguments": {"order_id": "o3"}}</tool_call><|end|>'
        "Shall I cancel order o3?<|end|>Done.<|end|>"
    )


def test_a_template_without_tools_gets_them_in_the_system_prompt_and_answers_from_the_user():
    format = make_format("chatml", "brief")
    text = text_of(format, format.trace_of(CONVERSATION, TOOLS).current)
    assert text.startswith(
        "<|im_start|>system\nYou work for a shop.\n\nTools:\nget_order(order_id: string)\n"
    )
    both = "<tool_response>\ncancelled\n</tool_response>"
    assert f"<|im_start|>user\n{both}\n{both}<|im_end|>\n<|im_start|>assistant\nDone." in text
    alone = format.tokenizer.decode(format.initial_ids([Message("user", "hi")], TOOLS))
    assert alone.startswith("<|im_start|>system\nTools:\n")


def test_tool_descriptions():
    assert describe_tools({}, "schema") == ""
    schemas = describe_tools(TOOLS, "schema").split("<tools>\n")[1].split("\n</tools>")[0].splitlines()
    assert [json.loads(s)["name"] for s in schemas] == list(TOOLS)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_in_a_message_cannot_become_a_mark(family):
    """A tool's answer that spells role marks must not open a turn of its own."""
    format = make_format(family)
    special = set(format.tokenizer.all_special_ids) - {format.tokenizer.convert_tokens_to_ids(STOP)}

    def marks(text):
        messages = [*CONVERSATION[:3], Message("tool", text)]
        ids = format.initial_ids(messages, TOOLS) + format.delta_ids(messages, 3, True)
        return [i for i in ids if i in special]

    hostile = "".join(format.tokenizer.all_special_tokens)
    assert marks(hostile) == marks("harmless")
    said = format.encode_assistant(Message("assistant", hostile, (ToolCall("a", {"b": hostile}),)))
    assert [i for i in said if i in special] == [format.stop_ids[0]]


def test_the_placeholder_may_stand_in_a_message():
    format = make_format("qwen25")
    messages = [Message("user", "hi"), Message("assistant", "yo"), Message("user", "mua-words-mua")]
    text = format.tokenizer.decode(format.delta_ids(messages, 2, False))
    assert text == "<|im_end|>\n<|im_start|>user\nmua-words-mua<|im_end|>\n<|im_start|>assistant\n"


assistants = st.builds(
    Message,
    st.just("assistant"),
    st.text(alphabet="abc é.東", max_size=10).map(str.strip),
    st.lists(
        st.builds(
            ToolCall,
            st.sampled_from(["get_order", "x"]),
            st.dictionaries(
                st.text(max_size=4),
                st.recursive(
                    st.one_of(
                        # A special token in an argument is broken up, on purpose: another test's matter.
                        st.text(max_size=8).filter(lambda s: "<|" not in s),
                        st.integers(),
                        st.booleans(),
                        st.none(),
                        st.just("</tool_call>"),
                    ),
                    lambda s: st.lists(s, max_size=2),
                    max_leaves=3,
                ),
                max_size=2,
            ),
        ),
        max_size=3,
    ).map(tuple),
)


@pytest.mark.parametrize("family", FAMILIES)
@slow_ok
@given(message=assistants)
def test_a_target_decodes_to_its_message(family, message):
    format = make_format(family)
    if format.calls == "llama" and message.tool_calls:
        message = Message("assistant", "", message.tool_calls)  # no words beside calls in this family
    ids = format.encode_assistant(message)
    assert ids[-1] == format.stop_ids[0] and not set(ids[:-1]) & set(format.stop_ids)
    assert format.decode(ids) == message


def test_thinking_is_part_of_the_target_only_where_the_mode_is_on():
    message = Message("assistant", "Done.", thinking="hm")
    for family in ("builtin", "chatml", "qwen25", "qwen3-thinking"):
        format = make_format(family)
        assert format.decode(format.encode_assistant(message)) == message
    off = make_format("qwen3")
    assert off.decode(off.encode_assistant(message)) == Message("assistant", "Done.")


def test_a_template_that_opens_the_thinking_itself():
    tokenizer = make_format("qwen25").tokenizer.__class__(
        tokenizer_object=make_tokenizer()._tokenizer,
        eos_token="<|end|>",
        extra_special_tokens=list(MARKS[:4]),
    )
    tokenizer.chat_template = (
        "{%- for m in messages -%}"
        "{{ '<|' + m.role + '|>' + m.content.split('</think>')[-1] + '<|end|>' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|assistant|><think>\n' }}{%- endif -%}"
    )
    format = ChatFormat.of(tokenizer)
    assert format.rewrites_on == {"user", "tool"}
    message = Message("assistant", "Done.", thinking="hm")
    ids = format.encode_assistant(message)
    assert tokenizer.decode(ids) == "hm\n</think>\n\nDone.<|end|>"
    assert format.decode(ids) == message


def test_unusable_tokenizers_are_refused():
    plain = make_tokenizer()
    call = "<tool_call>{{ m.tool_calls[0].function.name }}</tool_call>{{ tools }}"
    plain.chat_template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% if m.tool_calls %}"
        + call
        + "{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    with pytest.raises(MuaError, match="does not read"):
        ChatFormat.of(plain)
    plain.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(MuaError, match="refuses"):
        ChatFormat.of(plain)
    bare = make_tokenizer().__class__(tokenizer_object=_bare())
    with pytest.raises(MuaError, match="no chat template"):
        ChatFormat.of(bare)


def _bare():
    from tokenizers import Tokenizer, models

    return Tokenizer(models.BPE())


# --- reading calls ----------------------------------------------------------------------------------

HERMES, LLAMA = make_format("builtin"), make_format("llama3")


def wrap(body):
    return f"<tool_call>{body}</tool_call>"


@pytest.mark.parametrize(
    "body, name, error",
    [
        ('{"name": "get_order", "arguments": {"a": 1}', "get_order", "not valid JSON"),
        ('{"arguments": {}}', "invalid", 'no "name"'),
        ('{"name": 3}', "invalid", 'no "name"'),
        ("[1]", "invalid", "must be a JSON object"),
        ("", "invalid", "not valid JSON"),
        ('{"name": "get_order", "order_id": "o1"}', "get_order", 'under "arguments"'),
        ('{"name": "get_order", "arguments": [1]}', "get_order", "must be a JSON object"),
        ('{"name": "get_order", "arguments": "{"}', "get_order", "not valid JSON"),
        ('{"name": "a", "name": "b"}', "a", "duplicate key"),
        ('{"name": "a", "arguments": {"x": NaN}}', "a", "not a JSON number"),
        ('{"name": "a", "arguments": ' + '{"x": ' * 80 + "1" + "}" * 80 + "}", "a", "levels deep"),
    ],
)
def test_malformed_calls_say_what_is_wrong(body, name, error):
    (call,) = HERMES.parse("Let me see. " + wrap(body)).tool_calls
    assert call.name == name and error in call.error and call.raw == body and not call.arguments
    assert ToolCall.from_dict(call.to_dict()) == call


def test_readable_hermes_text():
    read = HERMES.parse
    call = '{"name": "get_order", "arguments": {"order_id": "o3"}}'
    got = read(f"<think>\nhm <tool_call>\n</think>\n\nOne moment. {wrap(call)}\n{wrap(call)}")
    assert got == Message("assistant", "One moment.", (CALL, CALL), thinking="hm <tool_call>")
    assert read(wrap(call), calls=False) == Message("assistant", wrap(call))
    assert read(wrap('{"name": "x"}')).tool_calls == (ToolCall("x"),)
    assert read(wrap('{"name": "get_order", "arguments": "{\\"order_id\\": \\"o3\\"}"}')).tool_calls == (
        CALL,
    )
    assert read("a thought</think>words") == Message("assistant", "words", thinking="a thought")
    assert read("<think>never closed " + wrap(call)).tool_calls == ()
    inside = {"order_id": "</tool_call><think>x</think><tool_call>"}
    assert read(wrap(json.dumps({"name": "x", "arguments": inside}))).tool_calls == (ToolCall("x", inside),)
    (unclosed,) = read(f"<tool_call>{call}").tool_calls
    assert unclosed.name == "get_order" and "not closed" in unclosed.error
    good, bad = read(wrap(call) + wrap("{")).tool_calls
    assert good == CALL and bad.error
    assert read("just words, with {braces}").tool_calls == ()


def test_readable_llama_text():
    read = LLAMA.parse
    call = '{"name": "get_order", "parameters": {"order_id": "o3"}}'
    assert read(call) == Message("assistant", "", (CALL,))
    assert read(f"One moment.<|python_tag|>{call}; {call}") == Message(
        "assistant", "One moment.", (CALL, CALL)
    )
    assert read('{"status": "open"}') == Message("assistant", '{"status": "open"}')
    assert read("{not a call}").tool_calls == ()
    (bad,) = read('{"name": "get_order", "parameters": {').tool_calls
    assert bad.name == "get_order" and "not valid JSON" in bad.error
    for text in ("<|python_tag|>", "<|python_tag|>get_order.call(x=1)"):
        assert read(text).tool_calls[0].error
    assert read(call + " I looked it up.") == Message("assistant", "I looked it up.", (CALL,))


@slow_ok
@given(messy, st.booleans())
def test_reading_never_raises_and_its_result_can_be_stored(text, calls):
    for format in (HERMES, LLAMA):
        message = format.parse(text, calls)
        assert len(message.tool_calls) <= MAX_CALLS + 1
        json.dumps(message.to_dict()).encode()
        assert Message.from_dict(message.to_dict()) == message
        ids = format.encode_assistant(message)
        assert ids[-1] == format.stop_ids[0]


@slow_ok
@given(st.lists(st.integers(0, len(LLAMA.tokenizer) - 1), max_size=40))
def test_any_ids_decode(ids):
    for family in ("builtin", "llama3", "qwen3-thinking"):
        format = make_format(family)
        known = [i for i in ids if i < len(format.tokenizer)]
        json.dumps(format.decode(known).to_dict()).encode()


HOSTILE = {
    "open brackets": "[" * 10**6,
    "open calls": "<tool_call>" * 10**5,
    "open strings": '<tool_call>["' * 10**5,
    "broken calls": wrap("[" * 5) * 10**5,
    "open thoughts": "<think>" * 10**5,
    "closed thoughts": "</think>" * 10**5,
    "open objects": "<tool_call>" + '{"a":' * 2 * 10**5,
    "names": '{"name": "a' * 10**5,
    "many calls": '{"name": "a"};' * 10**5,
    "spaces": "<tool_call>" + " " * 10**6,
    "a long number": wrap('{"name": "a", "arguments": {"n": ' + "9" * 10**6 + "}}"),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_megabyte_of_hostile_text_is_read(text):
    """Each takes well under a second; reading that looks back would run into the suite's time limit."""
    for format in (HERMES, LLAMA):
        assert len(format.parse(text).tool_calls) <= MAX_CALLS + 1
