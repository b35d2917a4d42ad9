"""The endpoint against a real local server: faults, checks, secrets, bounds; user and agent over HTTP."""

import asyncio
import base64
import contextlib
import gzip
import json
import math
import os
import socket
import threading
import traceback
import zlib
from collections import Counter
from dataclasses import replace

import pytest

from fake_server import FakeServer, Reply, chat, error
from mua import transport
from mua.agents import AgentStep
from mua.agents.endpoint import EndpointAgent
from mua.chat import Message, ToolCall
from mua.domain import Scenario
from mua.endpoint import Endpoint, EndpointSettings, wire
from mua.episode import play
from mua.errors import InfrastructureError, MuaError
from mua.gateway import Gateway, Gateways, GatewaySettings
from mua.trajectory import Termination
from mua.transport import retry_after
from mua.users import STOP, UserTurn
from mua.users.llm import GREETING, LlmUser, llm_user_prompt
from toy import ScriptAgent, ScriptUser, toy_domain

KEY = "sk-planted-0123456789"
HI = [{"role": "user", "content": "hi"}]


def settings(server: FakeServer, **changes) -> EndpointSettings:
    values = {"base_url": server.url, "model": "m", "retry_delay": 0.001, "retries": 3, "timeout": 20}
    return EndpointSettings.model_validate({**values, **changes})


def ask(server: FakeServer, **changes):
    async def go():
        endpoint = Endpoint(settings(server, **changes))
        try:
            return await endpoint.chat(HI), endpoint
        finally:
            await endpoint.close()

    return asyncio.run(go())


FAULTS = {
    "500": error(500, "boom"),
    "503": Reply("busy", 503, content_type="text/plain"),
    "429": error(429, "slow down", retry_after_ms="1"),
    "reset": Reply(reset=True),
    "cut body": Reply(chat("half").body, cut=True),
    "broken gzip": Reply(chat("x").body, headers={"content-encoding": "gzip"}),
    "null content": chat(None),
    "blank content": chat("  \n "),
    "cut json": Reply(chat("half").body[:40]),
    "html": Reply("<html><body>Welcome to nginx</body></html>", content_type="text/html"),
    "empty body": Reply(""),
    "no choices": Reply('{"choices": []}'),
    "not an object": Reply("[1]"),
    "null choice": Reply('{"choices": [null]}'),
    "odd content": Reply('{"choices": [{"message": {"content": [{"text": null}, 3]}}]}'),
    "error in a 200": Reply('{"error": {"message": "upstream died"}}'),
}


OF_THE_MODEL = ("null content", "blank content", "no choices", "null choice", "odd content")
"""A chat completion with nothing in it: the same request would get the same again."""


@pytest.mark.parametrize("name", FAULTS)
def test_passing_faults_are_asked_again_with_another_seed_only_where_the_model_answered(name):
    with FakeServer([FAULTS[name], FAULTS[name], chat("fine")]) as server:
        answer, endpoint = ask(server)
    assert answer.text == "fine"
    assert endpoint.requests == len(server.requests) == 3
    same = [server.requests[0]] * 3
    if name in OF_THE_MODEL:
        same = [{**same[0], "seed": seed} for seed in (0, 7_919, 2 * 7_919)]
    assert server.requests == same


def test_faults_of_infrastructure_do_not_change_what_seeded_users_say():
    """Twelve users at once whose words depend on all of the request, over two routes that fail in every way:
    each conversation is that of the run without faults. Answers with nothing in them come in both."""
    passing = [FAULTS[name] for name in FAULTS if name not in OF_THE_MODEL] + [Reply(stall=True)]
    task = toy_domain().task("cancel_11")

    def converse(faulty: bool):
        seen, lock = Counter(), threading.Lock()

        def answer(request):
            text = json.dumps(request, sort_keys=True)
            number = zlib.crc32(text.encode())
            with lock:
                seen[text] += 1
                times = seen[text]
            if faulty and times <= number % 3:
                return passing[(number + times) % len(passing)]
            return chat(None if number % 7 == 0 else f"word {number}")

        async def one(endpoint, seed):
            user, view = LlmUser(endpoint, task, seed), []
            for turn in range(4):
                view += [Message("user", (await user.reply(view)).text), Message("assistant", f"So? {turn}")]
            return view

        async def all_of(servers):
            routes = [{"base_url": s.url, "model": "m", "timeout": 0.7} for s in servers]
            told = GatewaySettings.model_validate({"routes": routes, "breaker": {"seconds": 0.05}})
            gateways = Gateways({"g": told})
            words = {"gateway": "g", "temperature": 0.9, "retries": 30, "retry_delay": 0.001}
            how = EndpointSettings.model_validate(words)
            try:
                return await asyncio.gather(*(one(Endpoint(how, "user", gateways), n) for n in range(12)))
            finally:
                await gateways.close()

        with FakeServer(answer) as first, FakeServer(answer) as second:
            said = asyncio.run(all_of((first, second)))
        return said, sum(seen.values()), len(seen)

    calm, _, different = converse(faulty=False)
    assert different > 12 * 4  # some answers held nothing: those were asked for with other seeds
    stormy, sent, again = converse(faulty=True)
    assert stormy == calm and again == different and sent > 1.5 * different


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_lasting_faults_name_endpoint_model_and_cause(fault):
    with FakeServer([fault]) as server, pytest.raises(InfrastructureError) as caught:
        ask(server, retries=2)
    assert server.url in str(caught.value) and "model 'm'" in str(caught.value)
    assert len(server.requests) == 3
    if fault.status != 200:
        assert str(fault.status) in str(caught.value)
    if "nginx" in fault.body:
        assert "Welcome to nginx" in str(caught.value)


def test_a_stalled_request_is_given_up_and_asked_again():
    with FakeServer([Reply(stall=True), chat("fine")]) as server:
        assert ask(server, timeout=0.5, retries=9)[0].text == "fine"
    with (
        FakeServer([Reply(stall=True)]) as server,
        pytest.raises(InfrastructureError, match=r"within 0\.1 s"),
    ):
        ask(server, timeout=0.1, retries=1)
    within = pytest.raises(InfrastructureError, match=r"within 0\.3 s")
    with FakeServer([Reply("x" * 400, drip=True)]) as server, within:  # each read is short, all are long
        ask(server, timeout=0.3, retries=0)


def test_retry_after_is_obeyed_and_an_absurd_one_ends_it():
    given = {
        "7": 7.0,
        "0.5": 0.5,
        "Wed, 21 Oct 2015 07:28:00 GMT": 0.0,
        "soon": None,
        "nan": None,
        "-1": None,
        "1e999": math.inf,
        "Mon, 01 Jan 99999 00:00:00 GMT": None,
    }
    assert {text: retry_after({"retry-after": text}) for text in given} == given
    # By the server's own clock, where it tells: ours may be another one, or jump.
    dates = {"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}
    assert retry_after(dates) == 30.0
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5 and retry_after({}) is None
    assert Gateway._delay(b"x", 0, 1.0, 7.0) == 7.0
    for attempt, most in ((0, 1), (2, 4), (9, 16)):  # full jitter: anything up to the bound, always the same
        drawn = [Gateway._delay(bytes([n]), attempt, 1.0, None) for n in range(200)]
        assert min(drawn) < 0.05 * most and 0.95 * most < max(drawn) <= most and len(set(drawn)) == 200
        assert drawn == [Gateway._delay(bytes([n]), attempt, 1.0, None) for n in range(200)]
    with FakeServer([error(429, "quota", retry_after="86400")]) as server, pytest.raises(InfrastructureError):
        ask(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (error(404, "The model `m` does not exist"), ["404", "does not exist", "set model"]),
        (error(401, "no"), ["401", "api_key_env"]),
        (error(400, "tool choice needs a parser"), ["400", "tool choice needs a parser"]),
    ],
)
def test_lasting_refusals_are_not_retried_and_check_says_what_to_mend(reply, words):
    with FakeServer([reply]) as server:
        with pytest.raises(InfrastructureError):
            ask(server)
        assert len(server.requests) == 1
        with pytest.raises(MuaError) as caught:
            asyncio.run(Endpoint(settings(server), role="judge").check())
    assert str(caught.value).startswith(f"the judge endpoint {server.url} (model 'm')")
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_check_passes_on_a_good_endpoint_and_names_a_refused_connection():
    with FakeServer([chat("yes")]) as server:
        asyncio.run(Endpoint(settings(server)).check(list(toy_domain().tools().values())))
        assert {t["function"]["name"] for t in server.requests[0]["tools"]} >= {"get_order", "hand_over"}
    with pytest.raises(MuaError, match=rf"the user endpoint {server.url} .* is down: .*start it, or set"):
        asyncio.run(Endpoint(settings(server)).check())


@pytest.mark.parametrize("status", [200, 400, 401, 404, 429, 500])
def test_the_key_appears_in_no_error_nor_traceback(monkeypatch, status):
    monkeypatch.setenv("PLANTED", KEY)
    with (
        FakeServer([Reply(f'Bearer {KEY} "{KEY}" {KEY.upper()} x{KEY * 30}', status)]) as server,
        pytest.raises(InfrastructureError) as caught,
    ):
        ask(server, api_key_env="PLANTED", retries=0)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "[key]" in text and KEY[:12].lower() not in text.lower()
    assert caught.value.__context__ is None and caught.value.__cause__ is None


def test_a_key_that_is_handed_over_is_sent_and_stands_nowhere_else():
    before = dict(os.environ)
    with (
        FakeServer([error(400, f"bad Bearer {KEY}")]) as server,
        pytest.raises(InfrastructureError) as caught,
    ):
        endpoint = Endpoint(settings(server, retries=0), key=KEY)
        assert KEY not in repr(endpoint.settings)
        asyncio.run(endpoint.chat([{"role": "user", "content": "Hello!"}]))
    assert server.headers[0]["authorization"] == f"Bearer {KEY}" and dict(os.environ) == before
    assert "bad Bearer [key]" in str(caught.value) and KEY not in str(caught.value)


def test_an_echoed_key_reaches_no_trajectory(monkeypatch):
    monkeypatch.setenv("PLANTED", KEY)
    domain = toy_domain()
    task = domain.task("cancel_11")

    def run(reply: Reply):
        with FakeServer([reply]) as server:
            endpoint = Endpoint(settings(server, api_key_env="PLANTED", retries=0))
            return asyncio.run(play(domain, task, ScriptAgent(), LlmUser(endpoint, task)))

    login = base64.b64encode(f"me:{KEY}".encode()).decode()
    escaped = "".join(f"\\u{ord(c):04x}" if n % 3 else c for n, c in enumerate(KEY))
    strange = chat("it is ###").body.replace("###", rf"{escaped}, \\\\u0041, \/, \u0022")
    assert json.loads(strange)["choices"][0]["message"]["content"] == rf'it is {KEY}, \\u0041, /, "'
    for reply in (error(401, f"bad key Bearer {KEY}"), chat(f"my header is {KEY}"), Reply(strange)):
        assert KEY not in json.dumps(run(reply).to_dict())
    said = next(m.content for m in run(Reply(strange)).messages if m.role == "user")
    assert said == r'it is [key], \\u0041, /, "'
    for reply in (error(401, f"Basic {login}"), chat(f"Basic {login}")):
        assert login[8:-4] not in json.dumps(run(reply).to_dict())


def test_a_missing_key_and_keys_in_wrong_places_are_refused_without_being_printed(monkeypatch):
    monkeypatch.delenv("PLANTED", raising=False)
    with pytest.raises(MuaError, match="PLANTED, which is not set"):
        Endpoint(EndpointSettings(model="m", api_key_env="PLANTED"))
    for wrong in (
        {"api_key_env": KEY},
        {"base_url": f"http://me:{KEY}@host/v1"},
        {"base_url": f"http://host/v1?key={KEY}"},
        {"api_key": KEY},
    ):
        with pytest.raises(ValueError) as caught:
            EndpointSettings.model_validate({"model": "m", **wrong})
        assert KEY not in str(caught.value)


def test_the_openai_key_does_not_go_to_another_server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeServer([chat("hi")]) as server:
        ask(server)
    assert KEY not in json.dumps(server.headers)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed_with_the_key_or_the_conversation(monkeypatch, status):
    monkeypatch.setenv("PLANTED", KEY)
    with FakeServer([chat("moved")]) as other:
        there = other.url.replace("http://", f"http://me:{KEY}@") + f"/chat/completions?key={KEY}"
        with (
            FakeServer([Reply("", status, {"location": there})]) as server,
            pytest.raises(InfrastructureError) as caught,
        ):
            ask(server, api_key_env="PLANTED")
    assert f"({status} to {other.url}/chat/completions); name that address instead" in str(caught.value)
    assert not other.paths and len(server.requests) == 1 and KEY not in str(caught.value)


LONG = "x" * 2**20
HOSTILE = {
    "a header of a megabyte": f"HTTP/1.1 200 OK\r\nx-long: {LONG}\r\ncontent-length: 2\r\n\r\n{{}}",
    "a status of a megabyte": f"HTTP/1.1 200 {LONG}\r\ncontent-length: 2\r\n\r\n{{}}",
    "no http": f"{LONG}\r\n\r\n",
    "no status": "HTTP/1.1 abc\r\n\r\n",
    "a negative length": "HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n{}",
    "a length that is never sent": "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999\r\n\r\n{",
    "broken chunks": "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n{",
    "two lengths": "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "an unknown encoding": "HTTP/1.1 200 OK\r\ncontent-encoding: wat\r\ncontent-length: 2\r\n\r\n{}",
    "a redirect to a file": "HTTP/1.1 302 x\r\nlocation: file:///etc/passwd\r\ncontent-length: 0\r\n\r\n",
    "a wait without end": "HTTP/1.1 429 x\r\nretry-after: 1e999\r\ncontent-length: 0\r\n\r\n",
}


def ask_raw(answer: bytes):
    """Asks a server that answers with these bytes."""

    def serve(listener):
        line, _ = listener.accept()
        with line, contextlib.suppress(OSError):
            line.settimeout(5)
            line.recv(65_536)
            line.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        place = FakeServer([])  # never started: only its address is asked
        place.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        return ask(place, retries=0, timeout=10)


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_a_server_that_speaks_no_http_is_told_in_one_paragraph(raw):
    with pytest.raises(InfrastructureError) as caught:
        ask_raw(raw.encode())
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)
    assert caught.value.__context__ is None


def test_no_answer_is_larger_than_memory_or_longer_than_max_tokens(monkeypatch):
    monkeypatch.setattr(transport, "_LONGEST_ANSWER", 2**20)
    packed = gzip.compress(b" " * 2**26)  # 64 MB by 64 kB
    head = f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {len(packed)}\r\n\r\n"
    with pytest.raises(InfrastructureError, match="answered more than 1 MB"):
        ask_raw(head.encode() + packed)
    with (
        FakeServer([Reply(" " * (2**20 + 1))]) as server,
        pytest.raises(InfrastructureError, match="more than 1 MB"),
    ):
        ask(server, retries=0)
    with FakeServer([chat("x" * 2561)]) as server, pytest.raises(InfrastructureError, match="than 10 tokens"):
        ask(server, retries=0, max_tokens=10)
    with FakeServer([chat("x" * 2560)]) as server:
        assert len(ask(server, max_tokens=10)[0].text) == 2560


@pytest.mark.parametrize(
    "bill",
    ["1e30", "true", "[1]", "-5", "NaN", "Infinity", str(10**30), '"7"', "null", "[" * 500 + "]" * 500],
)
def test_a_bill_that_is_none_counts_as_nothing(bill):
    body = chat("fine").body.replace('"prompt_tokens": 10', f'"prompt_tokens": {bill}')
    with FakeServer([Reply(body, content_type="image/png")]) as server:
        assert ask(server)[0].usage == (0, 5)


def test_the_environments_proxy_is_used_and_passed_by_where_it_says_so(monkeypatch):
    for name in ("all_proxy", "ALL_PROXY", "https_proxy", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "elsewhere.test")
    with FakeServer([chat("by proxy")]) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        server = FakeServer([])  # never started: only its address is asked for, at the proxy
        server.url = "http://model.test/v1"
        assert ask(server)[0].text == "by proxy"
        assert proxy.headers[0]["host"] == "model.test"
        server.url = "http://elsewhere.test/v1"
        with pytest.raises(InfrastructureError, match="is down"):
            ask(server, retries=0)
        assert len(proxy.requests) == 1


def test_a_request_holds_the_tools_schemas_and_the_further_fields():
    tools = list(toy_domain().tools().values())

    def sent(**extra):
        with FakeServer([chat("ok")]) as server:
            endpoint = Endpoint(settings(server, extra_body=extra))
            asyncio.run(endpoint.chat(HI, tools, 5))
        return server.requests[0]

    plain = {"model": "m", "messages": HI, "temperature": 0.0, "max_tokens": 1024, "seed": 5}
    assert sent() == {**plain, "tools": [tool.schema() for tool in tools]}
    assert sent(tools=[], seed=9, top_k=1) == {**plain, "tools": [], "seed": 9, "top_k": 1}


def test_concurrency_is_bounded_and_used():
    bound, opened = 3, threading.Event()

    def answer(request):
        opened.wait(60)
        return chat("ok")

    async def go(server):
        endpoint = Endpoint(settings(server, concurrency=bound, timeout=60))
        asked = asyncio.gather(*(endpoint.chat(HI) for _ in range(4 * bound)))
        while server.in_flight < bound:  # noqa: ASYNC110 - the server is another thread
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # a chance for one too many to arrive
        opened.set()
        await asked
        await endpoint.close()

    with FakeServer(answer) as server:
        asyncio.run(go(server))
    assert server.max_in_flight == bound and len(server.requests) == 4 * bound


def test_an_endpoint_outlives_an_event_loop():
    with FakeServer([chat("ok")]) as server:
        endpoint = Endpoint(settings(server, concurrency=1))
        for _ in range(2):
            assert asyncio.run(endpoint.chat(HI)).text == "ok"


def test_cost_counts_the_unusable_answers_too():
    with FakeServer([chat(None, usage=(100, 7)), chat("ok", usage=(100, 3))]) as server:
        answer, endpoint = ask(server, prompt_price=2.0, completion_price=10.0)
    assert (answer.prompt_tokens, answer.completion_tokens) == (200, 10)
    assert answer.cost == endpoint.cost == pytest.approx((200 * 2 + 10 * 10) / 1e6)


def test_answers_are_read_in_all_their_forms():
    with FakeServer([chat("<think>secret</think> hello")]) as server:
        answer, _ = ask(server)
    assert (answer.text, answer.thinking) == ("hello", "secret")
    with FakeServer([chat("half an emoji \ud83d", reasoning_content="hm")]) as server:
        answer, _ = ask(server)
    assert answer.text == "half an emoji ?" and answer.thinking == "hm"
    calls = [("get_order", {"order_id": "o1"}), ("get_order", '{"order_id": "o1'), ("", "{}"), ("a", "[1]")]
    with FakeServer([chat(None, calls)]) as server:
        answer, _ = ask(server)
    assert [bool(c.error) for c in answer.tool_calls] == [False, True, True, True]
    assert answer.tool_calls[0] == ToolCall("get_order", {"order_id": "o1"}, "c0")
    assert answer.tool_calls[1].raw == '{"order_id": "o1'


def test_wire_is_strict_openai_and_mirrors_the_user():
    bad = ToolCall("wéird name", {}, "c1", "not JSON", "{oops")
    words = [
        Message("system", "s"),
        Message("user", "u"),
        Message("assistant", "", (bad,), thinking="t"),
        Message("tool", "Error", tool_call_id="c1", error=True),
        Message("assistant", "a"),
    ]
    out = wire(words)
    assert out[2] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "w_ird_name", "arguments": "{}"}}
        ],
    }
    assert out[3] == {"role": "tool", "tool_call_id": "c1", "content": "Error"}
    mirrored = wire([words[0], words[1], words[4]], speaker="user")
    assert [m["role"] for m in mirrored] == ["system", "assistant", "user"]


# --- the user ---------------------------------------------------------------------------------------


def one_turn(reply: Reply, view, **user):
    task = toy_domain().task("cancel_11")
    with FakeServer([reply]) as server:
        turn = asyncio.run(LlmUser(Endpoint(settings(server, retries=0)), task, **user).reply(view))
    return turn, server.requests[0]


def test_the_user_opens_in_its_role_and_hears_the_agent_as_the_other_side():
    turn, request = one_turn(chat("I want to cancel."), [])
    assert (turn.text, turn.stop) == ("I want to cancel.", False)
    assert turn.usage.user_prompt_tokens == 10 and turn.usage.user_tokens == 5
    prompt, first = request["messages"]
    assert (
        "You want to cancel your order o11." in prompt["content"] and "order number: o11" in prompt["content"]
    )
    assert first == {"role": "user", "content": GREETING} and "tools" not in request
    view = [Message("user", "I want to cancel."), Message("assistant", "Which order?")]
    _, request = one_turn(chat("o11"), view)
    assert [m["role"] for m in request["messages"]] == ["system", "user", "assistant", "user"]


def test_sides_alternate_also_around_an_agent_that_said_nothing():
    view = [Message("user", "Hello"), Message("user", "Anybody?")]  # `user_view` hides empty words
    roles = [m["role"] for m in one_turn(chat("Hm."), view)[1]["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]


def test_the_prompt_holds_the_scenario_and_nothing_of_the_gold():
    scenario = Scenario("You want X.", {"card": "1234"}, "Terse.", {"secret": "agenda"})
    prompt = llm_user_prompt(scenario)
    assert all(part in prompt for part in ("You want X.", "card: 1234", "Terse.", STOP))
    assert "agenda" not in prompt


@pytest.mark.parametrize(("text", "stop"), [(STOP, True), (f"Bye. “{STOP}”", True), ("## STOP", False)])
def test_stop_is_a_substring(text, stop):
    assert one_turn(chat(text), [])[0].stop is stop


def test_a_user_with_tools_calls_them_before_it_stops():
    tools = toy_domain().tools()
    turn, request = one_turn(
        chat(STOP, [("get_order", {"order_id": "o1"})]), [Message("assistant", "Look.")], tools=tools
    )
    assert [t["function"]["name"] for t in request["tools"]] == list(tools)
    assert (turn.stop, turn.text) == (False, "") and turn.tool_calls[0].name == "get_order"


def test_a_user_that_only_thought_is_an_infrastructure_failure():
    with pytest.raises(InfrastructureError, match="max_tokens"):
        one_turn(chat("", finish="length", reasoning_content="hmm"), [])


# --- whole episodes over HTTP -----------------------------------------------------------------------


def both_sides(user_lines, agent_replies):
    """Scripts both models; each side's turn is told from how much it has said already."""

    def answer(request):
        said = [m for m in request["messages"] if m["role"] == "assistant"]
        if request["model"] == "user":
            return chat(user_lines[len(said)]) if len(said) < len(user_lines) else chat(STOP)
        return agent_replies[len(said)]

    return answer


def episode(task_id, user_lines, agent_replies):
    domain = toy_domain()
    task = domain.task(task_id)

    async def go(server):
        user = Endpoint(settings(server, model="user"))
        agent = Endpoint(settings(server, model="agent", retries=1), role="agent")
        return await play(domain, task, EndpointAgent(agent, domain.tools(), 1), LlmUser(user, task, 2))

    with FakeServer(both_sides(user_lines, agent_replies)) as server:
        return asyncio.run(go(server)), server


def test_a_whole_conversation_over_http_is_scored():
    t, server = episode(
        "cancel_11",
        ["Cancel my order, please.", "o11.", "Yes."],
        [
            chat("Which order?"),
            chat(None, [("get_order", '{"order_id": "o11')]),
            chat("One moment.", [("get_order", {"order_id": "o11"})]),
            chat("Cancel o11?", reasoning_content="careful"),
            chat(None, [("cancel_order", {"order_id": "o11"})]),
            chat("It is cancelled."),
        ],
    )
    assert (t.reward, t.termination, t.user) == (1.0, Termination.USER_STOP, "llm:user")
    assert (t.usage.agent_steps, t.usage.tool_calls, t.usage.tool_errors, t.usage.user_turns) == (6, 3, 1, 4)
    assert t.usage.agent_tokens == 30 and t.usage.user_tokens == 20
    assert [m.thinking for m in t.messages if m.thinking] == ["careful"]
    heard = [r["messages"] for r in server.requests if r["model"] == "user"]
    assert "get_order" not in json.dumps(heard) and "careful" not in json.dumps(heard)
    assert "One moment." not in json.dumps(heard)
    assert server.requests[-2]["messages"][0]["content"].startswith("You work for a shop")


@pytest.mark.parametrize(
    ("reply", "end", "reward"),
    [
        (chat("I am just about to", finish="length"), Termination.TOKEN_CAP, 0.0),
        (error(400, "maximum context length is 4096 tokens"), Termination.TOKEN_CAP, 0.0),
        (error(500, "boom"), Termination.ENGINE_FAILED, None),
    ],
)
def test_the_agents_faults_score_0_and_the_endpoints_are_not_scored(reply, end, reward):
    t, _ = episode("cancel_11", ["Cancel it."], [reply])
    assert (t.termination, t.reward) == (end, reward)


def test_a_failing_user_endpoint_ends_the_episode_as_infrastructure():
    domain = toy_domain()
    task = domain.task("cancel_11")
    with FakeServer([Reply("<html>down</html>")]) as server:
        user = LlmUser(Endpoint(settings(server, retries=1)), task)
        t = asyncio.run(play(domain, task, ScriptAgent(), user))
    assert (t.termination, t.reward) == (Termination.USER_FAILED, None) and "<html>down" in t.detail


def test_calls_after_a_handover_and_beside_a_stop_do_not_count_in_a_replay():
    # Found while writing `mua score`: live episode and replay disagreed about these calls.
    domain = toy_domain()
    domain = replace(domain, toolkits={**domain.toolkits, "user": domain.toolkits["assistant"]})
    task = domain.task("cancel_11")
    cancel = ToolCall("cancel_order", {"order_id": "o11"}, "c")

    class Agent(ScriptAgent):
        async def step(self, messages):
            hand_over = ToolCall("hand_over", {"summary": "x"})
            return AgentStep(Message("assistant", tool_calls=(hand_over, cancel)))

    class StoppingUser(ScriptUser):
        async def reply(self, view):
            return UserTurn(STOP, (cancel,), stop=True)

    for agent, user in ((Agent(), ScriptUser("Cancel it.")), (ScriptAgent(), StoppingUser())):
        t = asyncio.run(play(domain, task, agent, user))
        world = domain.replay(task, t.messages)
        assert world.db.get("orders", "o11") == {"status": "open", "items": 1, "gift": False}
        assert t.termination.normal and t.reward == 0.0
