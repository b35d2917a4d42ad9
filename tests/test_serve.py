"""Our model behind a real HTTP server, asked by our own endpoint client and by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time

import httpx
import pytest
import uvicorn

from chat_formats import ScriptEngine, make_format
from mua.chat import Message, ToolCall
from mua.endpoint import ContextOverflow, Endpoint, EndpointSettings, wire
from mua.engines import Sampling
from mua.engines.slots import SlotEngine
from mua.errors import InfrastructureError
from mua.models import tiny_llama
from mua.serve import make_app
from toy import toy_domain

FORMAT = make_format("qwen25")
TALK = [Message("system", "You work for a shop."), Message("user", "Cancel o3, naïve café 🙂.")]


@contextlib.contextmanager
def served(engine, format=FORMAT):
    """The address of a server over the engine."""
    taken = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(format, engine, "tiny"), log_level="error"))
    thread = threading.Thread(target=server.run, args=([taken],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(10)


def slots(context=2000):
    vocab = len(FORMAT.tokenizer)
    model = tiny_llama(
        vocab, layers=2, hidden=32, heads=4, kv_heads=2, intermediate=48, context=context, seed=1
    )
    return SlotEngine(model, slots=4)


async def ask(url, requests, **settings):
    """Answers of our client to (messages, tools, seed) requests that are sent all at once."""
    endpoint = Endpoint(EndpointSettings(base_url=url, model="tiny", retry_delay=0, **settings))
    try:
        return await asyncio.gather(
            *(endpoint.chat(wire(messages), tools, seed) for messages, tools, seed in requests)
        )
    finally:
        await endpoint.close()


def test_answers_are_those_of_the_engine_itself():
    tools = toy_domain().tools()
    requests = [(TALK, [], n) for n in range(4)] + [(TALK, [*tools.values()], 9)]
    with served(slots()) as url:
        there = asyncio.run(ask(url, requests, temperature=1.0, max_tokens=12, seed=0))

    async def own():
        engine, prompts, done = slots(), [], []
        for messages, offered, seed in requests:
            prompts.append(FORMAT.initial_ids(messages, {t.name: t for t in offered}))
            how = Sampling(temperature=1.0, max_tokens=12, stop_ids=FORMAT.stop_ids, seed=seed)
            done.append(await engine.generate(prompts[-1], how, str(len(done))))
        await engine.close()
        return prompts, done

    prompts, done = asyncio.run(own())
    for answer, prompt, completion in zip(there, prompts, done, strict=True):
        assert answer.text == FORMAT.decode(completion.token_ids).content.strip()
        assert (answer.prompt_tokens, answer.completion_tokens) == (len(prompt), len(completion.token_ids))
        assert answer.truncated == (completion.stop_reason == "length")
    assert len({a.text for a in there}) > 1


def test_calls_arrive_as_calls():
    said = 'One moment. <tool_call>\n{"name": "get_order", "arguments": {"order_id": "o3"}}\n</tool_call>'
    ids = FORMAT.tokenizer(said, add_special_tokens=False)["input_ids"]
    engine = ScriptEngine([([*ids, FORMAT.stop_ids[0]], "stop")])
    with served(engine) as url:
        (answer,) = asyncio.run(ask(url, [(TALK, [*toy_domain().tools().values()], 0)]))
    (call,) = answer.tool_calls
    assert (call.name, call.arguments) == ("get_order", {"order_id": "o3"}) and call.id
    assert answer.text == "One moment." and not answer.truncated


def test_a_conversation_with_calls_is_laid_out_as_in_an_episode():
    call = ToolCall("get_order", {"order_id": "o3"}, "c1")
    talk = [*TALK, Message("assistant", "", (call,)), Message("tool", "open", tool_call_id="c1")]
    engine = ScriptEngine([(FORMAT.tokenizer("Shall I cancel it?")["input_ids"], "stop")])
    with served(engine) as url:
        asyncio.run(ask(url, [(talk, [*toy_domain().tools().values()], 0)]))
    (((prompt, _),),) = engine.seen.values()
    assert prompt == FORMAT.initial_ids(talk, toy_domain().tools())
    assert engine.released == [*engine.seen]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "must be a JSON object"),
        ({}, "messages must be"),
        ({"messages": []}, "messages must be"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "role 'boss'"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "cannot be read"),
        ({"messages": [{"role": "user", "content": "x"}], "n": 2}, "leave n out"),
        ({"messages": [{"role": "user", "content": "x"}], "stream": "yes"}, "stream must be true or false"),
        ({"messages": [{"role": "user", "content": "x"}], "stream_options": {}}, "goes with stream"),
        ({"messages": [{"role": "user", "content": "x"}], "stream": True, "top_p": 2}, "top_p must be"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": 5}, "tools must be a list"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1e999}', "must be a number"),
        ({"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}, "must be a number"),
        ({"messages": [{"role": "user", "content": "x"}], "temperature": -1}, "temperature must be"),
        ({"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}, "max_tokens must be"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "x"}]}, "each of tools"),
    ],
)
def test_bad_requests_are_refused_in_words_and_the_server_goes_on(body, words):
    with served(slots()) as url, httpx.Client() as client:
        how = {"content": body} if isinstance(body, bytes) else {"json": body}
        reply = client.post(f"{url}/chat/completions", **how)
        fault = reply.json()["error"]
        assert (reply.status_code, fault["type"], fault["param"]) == (400, "invalid_request_error", None)
        assert words in fault["message"]
        good = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
        assert client.post(f"{url}/chat/completions", json=good).status_code == 200
        assert [m["id"] for m in client.get(f"{url}/models").json()["data"]] == ["tiny"]


def test_a_conversation_that_is_too_long_is_told_apart():
    long = [Message("user", "order " * 500)]
    with (
        served(slots(400)) as url,
        pytest.raises(ContextOverflow, match="maximum context length is 400 tokens"),
    ):
        asyncio.run(ask(url, [(long, [], 0)]))


def streamed(url, body):
    """The events of a streamed answer: JSON, but for the last, which is text."""
    with httpx.stream("POST", f"{url}/chat/completions", json={**body, "stream": True}) as reply:
        assert (reply.status_code, reply.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
        text = "".join(reply.iter_text())
    assert text.endswith("\n\n")
    events = [event.removeprefix("data: ") for event in text.removesuffix("\n\n").split("\n\n")]
    return [json.loads(e) if e.startswith("{") else e for e in events]


def joined(events):
    """The message that a client puts together from deltas, and why it ends."""
    message, reasons = {}, []
    for event in events:
        for choice in event["choices"]:
            reasons.append(choice["finish_reason"])
            for key, value in choice["delta"].items():
                if key != "tool_calls":
                    message[key] = message.get(key, "") + value
                    continue
                for part in value:
                    calls = message.setdefault("tool_calls", [])
                    if part["index"] == len(calls):  # its first part names it
                        calls.append({**part, "function": dict(part["function"])})
                        del calls[-1]["index"]
                    else:
                        calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    return message, reasons[-1]


CALL = '<tool_call>\n{"name": "get_order", "arguments": {"order_id": "%s"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("said", "end", "finish"),
    [
        ("Shall I cancel it, naïve café 🙂?", "stop", "stop"),
        ("One moment, I am look", "length", "length"),
        ("One moment. " + CALL % "o3" + "\n" + CALL % "ö4", "stop", "tool_calls"),
        (CALL % "o3", "stop", "tool_calls"),
        ("", "stop", "stop"),
    ],
)
def test_a_streamed_answer_is_the_whole_one_in_parts(said, end, finish):
    ids = FORMAT.tokenizer(said, add_special_tokens=False)["input_ids"] if said else []
    step = ([*ids, FORMAT.stop_ids[0]] if end == "stop" else ids, end)
    tools = [tool.schema() for tool in toy_domain().tools().values()]
    body = {"messages": wire(TALK), "tools": tools, "seed": 5}
    engine = ScriptEngine([step, step, step])
    with served(engine) as url:
        whole = httpx.post(f"{url}/chat/completions", json=body).json()
        plain = streamed(url, body)
        *events, cost, done = streamed(url, {**body, "stream_options": {"include_usage": True}})
    message, reason = joined(events)
    expected = whole["choices"][0]["message"]
    for number, call in enumerate(expected.get("tool_calls", [])):
        call["id"] = f"call_2_{number}"  # of the third request
    assert reason == whole["choices"][0]["finish_reason"] == finish
    assert message == {**expected, "content": expected["content"] or ""}
    assert len(expected.get("tool_calls", [])) == said.count("<tool_call>")
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (cost["choices"], cost["usage"], done) == ([], whole["usage"], "[DONE]")
    assert all(e["usage"] is None for e in events)
    assert {(e["id"], e["object"], e["model"]) for e in [*events, cost]} == {
        ("chatcmpl-2", "chat.completion.chunk", "tiny")
    }
    assert plain[-1] == "[DONE]" and not any("usage" in e for e in plain[:-1])
    assert len(plain) == len(events) + 1 and engine.released == [f"request {n}" for n in range(3)]


def test_what_fails_in_a_stream_is_told_in_it_and_the_server_goes_on():
    class Broken(ScriptEngine):
        async def generate(self, prompt_ids, sampling, session):
            if not self.released:
                raise InfrastructureError("out of memory")
            return await super().generate(prompt_ids, sampling, session)

    body = {"messages": [{"role": "user", "content": "Hello"}]}
    with served(Broken()) as url:
        first, last = streamed(url, body)
        assert first["choices"][0]["delta"]["role"] == "assistant"
        assert last["error"] == {
            "message": "out of memory", "type": "server_error", "param": None, "code": "server_error"
        }  # fmt: skip
        assert streamed(url, body)[-1] == "[DONE]"


def test_other_addresses_and_bugs_get_a_json_error_too():
    class Wrong(ScriptEngine):
        async def generate(self, prompt_ids, sampling, session):
            raise KeyError("a bug of ours")

    body = {"messages": [{"role": "user", "content": "Hello"}]}
    with served(Wrong()) as url, httpx.Client(base_url=url) as client:
        replies = [
            client.post("/completions", json={}),
            client.get("/chat/completions"),
            client.post("/chat/completions", json=body),
        ]
    assert [r.status_code for r in replies] == [404, 405, 500]
    assert "/v1/completions" in replies[0].json()["error"]["message"]
    assert replies[2].json()["error"]["message"] == "the server failed at this"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(stream):
    cancelled = threading.Event()

    class Slow(ScriptEngine):
        async def generate(self, prompt_ids, sampling, session):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise

    body = {"messages": [{"role": "user", "content": "Hello"}], "stream": stream}
    engine = Slow()
    with served(engine) as url:
        began = time.monotonic()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/chat/completions", json=body, timeout=0.3)
        assert cancelled.wait(30) and time.monotonic() - began < 40
    assert engine.released == ["request 0"]
