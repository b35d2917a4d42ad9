"""Upstream's ACEBench as an oracle, and what our tests compare with it.

    python tests/acebench_upstream.py CHECKOUT tests/data/acebench_verdicts.jsonl.gz

plays random conversations through upstream's own harness (its model endpoint replaced by a script) and
through ours, and damages answers at random; it stops at the first difference, and writes the verdicts'
hashes: seeds and hashes, nothing of upstream's. The test beside it does the same again without upstream.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import io
import itertools
import json
import os
import random
import re
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from mua.agents import AgentStep
from mua.benchmarks.acebench import checker, data, facts
from mua.chat import Message
from mua.episode import play
from mua.users import UserTurn

SEEDS = 2500
"""Conversations a language."""
DAMAGES = 1000
"""Damaged answers a language."""

# ---------------------------------------------------------------- random conversations

_WORDS: dict[str, tuple[Any, ...]] = {
    "sender_name": (*facts.NAMES, "Zoe", 5, None, ["Eve"]),
    "receiver_name": (*facts.NAMES, "Zoe", ("Eve",)),
    "user_name": (*facts.NAMES, "Nobody", 1.5),
    "username": (*facts.NAMES, "user1", True),
    "password": ("password123", "password456", "password789", "password321", "password654", "no", 0),
    "message": ("hello", 'It\'s "here"', "[x]", "finish conversation", 7, ["a"], "两个字", "a\nb"),
    "keyword": ("call", "the", "MEETING", "", "Pizza", "喜茶", 3),
    "message_id": (1, 2, 3, 4, 5, 6, 7, 8, "3", 3.0, None),
    "reminder_id": (1, 2, 3, 4, 1001, "1"),
    "title": ("To-do list", "Team Meeting", "x", "it's", None, ("a", "b")),
    "description": ("y", "a (b) [c]", 5, {"a": 1}),
    "time": ("2024-07-15 09:30", "now", 20240715, b"x", 1j),
    "user_id": ("user1", "user2", "user3", "user9", "", ["user1"]),
    "reservation_id": ("res_1", "res_2", "res_3", "res_4", "res_5", "res_9", None, 1),
    "flight_no": ("CA1234", "MU5678", "CZ4321", "CZ4352", "MU3561", "CZ1765", "MH2616", "XX0000", None),
    "new_flight_no": ("CA1234", "MU5678", "CZ4321", "CZ4352", "XX0000", None, ""),
    "payment_method": ("cash", "bank", "card", None),
    "new_payment_method": ("cash", "bank", "card", None),
    "add_baggage": (0, 1, 2, 5, 40, -1, "1", 0.5, True),
    "baggage_count": (0, 1, 3, 4, 9, 2.5, "2", -3, False),
    "membership_level": ("regular", "silver", "gold", "none", [1]),
    "amount": (5, -5, 1e9),
    "user": ("user1", None),
    "flight": ("CA1234",),
    "membership": ("gold",),
}
_BY_LANGUAGE: dict[str, dict[str, tuple[Any, ...]]] = {
    "en": {
        "cabin": ("Economy Class", "Business Class", "First", None),
        "city": ("Beijing", "Shanghai", "Nanjing", "Shenzhen", "Chengdu", "Rome", "", None),
        "reason": ("The airline has canceled the flight.", "other plans", None),
    },
    "zh": {
        "cabin": ("经济舱", "商务舱", "头等舱", None),
        "city": ("北京", "上海", "南京", "深圳", "成都", "罗马", "", None),
        "reason": ("航空公司取消航班", "计划有变", None),
    },
}
_FUNCTIONS: dict[str, tuple[str, ...]] = {
    "turn_on_wifi": (),
    "login_device": (),
    "send_message": ("sender_name", "receiver_name", "message"),
    "delete_message": ("message_id",),
    "view_messages_between_users": ("sender_name", "receiver_name"),
    "search_messages": ("user_name", "keyword"),
    "get_all_message_times_with_ids": (),
    "get_latest_message_id": (),
    "get_earliest_message_id": (),
    "view_reminder_by_title": ("title",),
    "add_reminder": ("title", "description", "time"),
    "delete_reminder": ("reminder_id",),
    "view_all_reminders": (),
    "mark_as_notified": ("reminder_id",),
    "search_reminders": ("keyword",),
    "login_food_platform": ("username", "password"),
    "view_logged_in_users": (),
    "check_balance": ("user_name",),
    "add_food_delivery_order": ("username", "merchant_name", "items"),
    "get_products": ("merchant_name",),
    "view_orders": ("user_name",),
    "search_orders": ("keyword",),
    "get_flight_details": ("origin", "destination"),
    "get_user_details": ("user_id", "password"),
    "get_reservation_details": ("reservation_id", "user_id"),
    "authenticate_user": ("user_id", "password"),
    "get_baggage_allowance": ("membership_level", "cabin_class"),
    "find_transfer_flights": ("origin_city", "transfer_city", "destination_city"),
    "calculate_baggage_fee": ("membership_level", "cabin_class", "baggage_count"),
    "update_balance": ("user", "payment_method", "amount"),
    "reserve_flight": ("user_id", "password", "flight_no", "cabin", "payment_method", "baggage_count"),
    "modify_flight": (
        "user_id",
        "reservation_id",
        "new_flight_no",
        "new_cabin",
        "add_baggage",
        "new_payment_method",
    ),
    "cancel_reservation": ("user_id", "reservation_id", "reason"),
    "process_refund": ("user", "amount"),
    "calculate_price_difference": ("flight", "cabin", "new_cabin"),
    "fly_to_the_moon": ("city",),
}
_PHONE = tuple(itertools.takewhile(lambda n: n != "get_flight_details", _FUNCTIONS))
_TRAVEL = tuple(n for n in _FUNCTIONS if n not in _PHONE)
_WORDS_OF_AGENTS = (
    "",
    "Done!",
    "done",
    "[done]",
    "[]",
    "[[turn_on_wifi()]]",
    "Sure: [turn_on_wifi()]",
    "```[turn_on_wifi()]```",
    "[turn_on_wifi()]\n",
    "\n[login_device()]",
    " [turn_on_wifi()]",
    "  [turn_on_wifi()]",
    "[turn_on_wifi()] ",
    "turn_on_wifi()",
    "['turn_on_wifi()']",
    "[turn_on_wifi(), 5]",
    "[5, 6]",
    "[turn_on_wifi()() ]",
    "[(turn_on_wifi(), login_device())]",
    "[turn_on_wifi();login_device()]",
    "[turn_on_wifi(),\nlogin_device()]",
    "[turn_on_wifi(), ]",
    "[api.turn_on_wifi()]",
    "[x().turn_on_wifi()]",
    "[turn_on_wifi(1, 2)]",
    "[turn_on_wifi(*[1])]",
    "[turn_on_wifi(**{'a': 1})]",
    "[delete_message(message_id=-3)]",
    "[delete_message(message_id=+3)]",
    "[delete_message(message_id=1+2)]",
    "[delete_message(message_id=2*3-1)]",
    "[delete_message(message_id=7//2)]",
    "[delete_message(message_id=6/2)]",
    "[delete_message(message_id=not 3)]",
    "[delete_message(message_id=three)]",
    "[delete_message(message_id=[3][0])]",
    "[delete_message(message_id={'a': {'b': 1}})]",
    "[delete_message(message_id={})]",
    "[delete_message(message_id=now())]",
    "[delete_message(message_id=now(a=1))]",
    "[delete_message(message_id=1e999)]",
    "[delete_message(message_id=lambda: 3)]",
    "[delete_message(message_id=3 if 1 else 4)]",
    "[delete_message(message_id=f'3')]",
    "[delete_message(message_id=...)]",
    "[delete_message(message_id=3, message_id=4)]",
    "[delete_message(message_id=3)",
    "delete_message(message_id=3)]",
    "[delete_message(message_id=3)] and [delete_message(message_id=4)]",
    "['a'(b='turn_on_wifi() now')]",
    "[x[0](a=1)]",
    "[login_device(), x[0](a=1)]",
    "[turn_on_wifi(), nothing_known(x=1), login_device()]",
    "[turn_on_wifi(), nothing_known(x='delete_message(3)')]",
    "[发送(message='delete_message(3)')]",
    "[turn_on_wifi(), 发送(message='x')]",
    "[view_all_reminders(), search_reminders(keyword='team')]",
    "[check_balance(user_name='Eve'), unknown()]",
    "[add_reminder(title='a' 'b', description='c' + 'd', time=-1)]",
    "[add_food_delivery_order(username='Eve', merchant_name='Heytea', items=())]",
    "[add_food_delivery_order(username='Eve', merchant_name='喜茶', items=[dict(product='x')])]",
    "I will finish conversation now",
)

_TOKENS = st.sampled_from(
    [
        *"[](){}'\"=,.:*-+/\\ \n#@\0è",
        *("f", "turn_on_wifi", "lambda", "not", "...", "1e999", "0x", "1j", "b'x'", "\\ud800", "a=", "**"),
        *("__import__('os').abort()", "exit(code=3)", "{'exit': {}}", "None", "f'{x}'", ":="),
    ]
)
HOSTILE = st.text(max_size=40) | st.lists(_TOKENS, max_size=25).map("".join)
"""Texts that are near to calls, and what an attacker would put into them."""


def value(rng: random.Random, name: str, language: facts.Language) -> Any:
    """A value for an argument, mostly a fitting one."""
    special = _BY_LANGUAGE[language]
    if name in ("merchant_name", "items"):
        menus = facts.menus(language)
        if name == "merchant_name":
            return rng.choice([*menus, "Nowhere", None])
        products = [p["product"] for menu in menus.values() for p in menu] + ["Soup"]
        lines = [
            {"product": rng.choice(products), "quantity": rng.choice((1, 1, 2, 3, 0, -1, "1", True, 2.0))}
            for _ in range(rng.choice((1, 1, 2, 0)))
        ]
        return rng.choice((lines, lines, lines, [{"product": rng.choice(products)}], "soup", 5, [1]))
    for key in ("cabin", "city", "reason"):
        if key in name or (key == "city" and name in ("origin", "destination")):
            return rng.choice(special[key])
    return rng.choice(_WORDS[name])


def call(rng: random.Random, entry: data.Entry) -> str:
    """A call, mostly of a function that the entry's worlds have."""
    near = _TRAVEL if "Travel" in entry.classes else _PHONE
    name = rng.choice(near if rng.random() < 0.95 else tuple(_FUNCTIONS))
    parts = [(p, value(rng, p, entry.language)) for p in _FUNCTIONS[name]]
    if rng.random() < 0.05:
        parts = parts[:-1]
    if rng.random() < 0.05:
        parts.append(("extra", 1))
    if rng.random() < 0.2:
        rng.shuffle(parts)
    return f"{name}({', '.join(f'{k}={v!r}' for k, v in parts)})"


def conversation(
    seed: int, language: facts.Language, folder: Path
) -> tuple[data.Entry, list[str], list[str]]:
    """(entry, what the agent writes, what the user says) of a seed; each says its last thing forever."""
    rng = random.Random(f"{language}/{seed}")
    mode: data.Mode = rng.choice(("multi_turn", "multi_turn", "multi_turn", "multi_step", "multi_step"))
    entry = rng.choice(data.entries(folder, mode, language))
    if rng.random() < 0.6:  # the way of the answer, with slips
        steps = [s for s in rng.choice(entry.milestones) if rng.random() < 0.9]
        for _ in range(rng.choice((0, 0, 1, 2))):
            steps.insert(rng.randrange(len(steps) + 1), f"[{call(rng, entry)}]")
    else:
        steps = []
        for _ in range(rng.randrange(1, 14)):
            calls = [call(rng, entry) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
            steps.append(f"[{', '.join(calls)}]")
    for _ in range(rng.choice((0, 0, 1, 2, 4))):
        steps.insert(rng.randrange(len(steps) + 1), rng.choice(_WORDS_OF_AGENTS))
    last = rng.choice(("finish conversation", "finish conversation", "All done.", "[turn_on_wifi()]"))
    said = [
        rng.choice(("Hello", "agent: hm", "user:yes", "Please go on", "是")) for _ in range(rng.randrange(4))
    ]
    ends = rng.choice(("finish conversation", "go on"))
    return entry, [*steps, last], [*said, ends]


def damaged(seed: int, language: facts.Language, folder: Path) -> tuple[data.Entry, list[Any], list[str]]:
    """(entry, final states, steps) of a seed: an answer with some damage, and a part of its way."""
    rng = random.Random(f"states/{language}/{seed}")
    mode: data.Mode = rng.choice(("multi_turn", "multi_step"))
    entry = rng.choice(data.entries(folder, mode, language))
    states = json.loads(json.dumps(entry.gold))
    for _ in range(rng.choice((0, 1, 1, 2))):
        state = rng.choice(states)
        name = next(iter(state))
        attribute = rng.choice(list(state[name]) or ["none"])
        value = state[name].get(attribute)
        kind = rng.randrange(8)
        if kind == 0 and len(states) > 1:
            states.remove(state)
        elif kind == 1:
            state[rng.choice(("ReminderApi", "BaseApi", "Other"))] = state.pop(name)
        elif kind == 2:
            state[name]["extra"] = 1
        elif kind == 3 and attribute in state[name]:
            del state[name][attribute]
        elif kind == 4 and isinstance(value, dict) and value:
            del value[rng.choice(list(value))]
        elif kind == 5 and isinstance(value, dict):
            value["new"] = {"a": 1}
        elif kind == 6 and isinstance(value, list):
            value.append(rng.choice((1, {"a": 1})))
        elif kind == 7 and isinstance(value, bool):
            state[name][attribute] = rng.choice((not value, int(value), None))
    if rng.random() < 0.2:
        rng.shuffle(states)
    steps = [s for s in rng.choice(entry.milestones) if rng.random() < 0.8]
    return entry, states, [*steps, *rng.sample(steps, len(steps) // 2)]


def graded(entry: data.Entry, states: list[Any], steps: list[str]) -> tuple[bool, float]:
    """(valid, process accuracy) by our scorer."""
    valid = checker.end_to_end(entry, states).valid
    return valid, round(checker.process(entry, steps, valid), 3)


# ---------------------------------------------------------------- both harnesses


class Script:
    """Says its lines in order, the last one forever."""

    def __init__(self, lines: list[str]):
        self.lines = lines
        self.at = 0
        self.prompts: list[Any] = []

    def next(self, prompt: Any = None) -> str:
        self.prompts.append(prompt)
        line = self.lines[min(self.at, len(self.lines) - 1)]
        self.at += 1
        return line


class ScriptedAgent:
    """The agent of a script; it notes what it is shown."""

    trace = None

    def __init__(self, script: Script, over_api: bool = False):
        self.script = script
        self.over_api = over_api

    async def step(self, messages: Any) -> AgentStep:
        shown = [{"role": m.role, "content": m.content} for m in messages]
        return AgentStep(Message("assistant", self.script.next(shown)))

    def close(self) -> None:
        pass


class ScriptedUser:
    """The user of a script."""

    name = "script"

    def __init__(self, script: Script):
        self.script = script

    async def reply(self, view: Any) -> UserTurn:
        return UserTurn(self.script.next([(m.role, m.content) for m in view]))


def ours(domain: Any, entry: data.Entry, agent: list[str], user: list[str]) -> dict[str, Any]:
    """What our harness makes of a conversation, in upstream's words."""
    task = domain.task(entry.id)
    script, person = Script(agent), Script(user)
    world = domain.open(task)
    trajectory = asyncio.run(
        play(
            domain,
            task,
            ScriptedAgent(script, over_api=True),
            domain.user(task, 0) or ScriptedUser(person),
            world=world,
        )
    )
    from mua.benchmarks.acebench.domain import steps

    try:
        states = world.apis.states
    except ValueError:
        states = None
    return {
        "states": states,
        "process": steps(trajectory.messages, entry.mode),
        "valid": trajectory.reward == 1.0,
        "share": round(trajectory.components["process"], 3),
        "shown": script.prompts,
        "asked": len(person.prompts),
        "trajectory": trajectory,
    }


def digest(found: dict[str, Any]) -> str:
    """A hash of what is graded in a conversation, whatever words the functions answer in."""
    graded = {k: found[k] for k in ("states", "process", "valid", "share", "asked")}
    return hashlib.sha256(json.dumps(graded, sort_keys=True).encode()).hexdigest()[:12]


class Upstream:
    """Upstream's own code, imported from a checkout, with its endpoint and its files taken away."""

    def __init__(self, checkout: Path, tables: bool = False):
        """With `tables` it also writes its table of each conversation, for which `wcwidth` must be there."""
        self.checkout = checkout
        if tables:
            import wcwidth  # type: ignore[import-not-found]  # noqa: F401
        for name in ("openai", "wcwidth", "tqdm", "dotenv", "pandas", "openpyxl", "openpyxl.styles"):
            module = types.ModuleType(name)
            module.__dict__.update(
                OpenAI=lambda **_: None,
                wcswidth=len,
                tqdm=lambda **_: contextlib.nullcontext(types.SimpleNamespace(update=lambda n: None)),
                load_dotenv=lambda: None,
                Workbook=None,
                Alignment=None,
            )
            if not (tables and name == "wcwidth"):
                sys.modules[name] = module
        sys.path.insert(0, str(checkout))
        self.here = tempfile.TemporaryDirectory()
        os.chdir(self.here.name)  # it writes its tables below the working directory
        import eval_main  # type: ignore[import-not-found]
        from model_inference import apimodel_inference  # type: ignore[import-not-found]

        self.scoring, self.inference = eval_main, apimodel_inference
        eval_main.save_score_as_json = lambda *_: None
        eval_main.OUTPUT_PATH = self.here.name
        for scene in (apimodel_inference.Scene, apimodel_inference.Mulit_Step_Scene):
            if not tables:
                scene.write_message_history = lambda *_: None
        for language in ("en", "zh"):
            Path(self.here.name, "score_all", f"score_{language}", "gpt").mkdir(parents=True)
        self.runs = 0

    def play(
        self, entry: data.Entry, agent: list[str], user: list[str], config: Any = None
    ) -> tuple[dict[str, Any] | None, Script, Script]:
        """(its result or None where it crashes, both scripts with what they were shown)."""
        self.runs += 1
        script, person = Script(agent), Script(user)

        def client(who: Script) -> Any:
            def create(messages: Any, **_: Any) -> Any:
                text = who.next(json.loads(json.dumps(messages)))
                message = types.SimpleNamespace(content=text)
                return types.SimpleNamespace(choices=[types.SimpleNamespace(message=message)])

            return types.SimpleNamespace(
                chat=types.SimpleNamespace(completions=types.SimpleNamespace(create=create))
            )

        model = self.inference.APIModelInference.__new__(self.inference.APIModelInference)
        model.model_name = f"gpt{self.runs}"  # its worlds live in module globals under this name
        model.max_dialog_turns, model.language, model.user_model = 40, entry.language, "gpt"
        clients = {"APIAgent_turn": script, "APIAgent_step": script, "APIUSER": person}
        originals = {name: getattr(self.inference, name) for name in clients}
        for name, who in clients.items():

            def made(*args: Any, _make: Any = originals[name], _who: Script = who, **kwargs: Any) -> Any:
                part = _make(*args, **kwargs)
                part.client = client(_who)
                return part

            setattr(self.inference, name, made)
        try:
            run = getattr(model, f"{entry.mode}_inference")
            number = entry.id.rpartition("_")[2]
            with contextlib.redirect_stdout(io.StringIO()):
                result, process = run(
                    entry.question, config, list(entry.functions), list(entry.classes), number, ""
                )
            # As its result file holds it.
            return json.loads(json.dumps({"result": result, "process": process})), script, person
        except TypeError:  # what cannot be written
            return None, script, person
        finally:
            for name, original in originals.items():
                setattr(self.inference, name, original)
            for module in (
                sys.modules["model_inference.multi_turn.multi_turn_utils"],
                sys.modules["model_inference.multi_step.multi_step_utils"],
            ):
                for name in [n for n in vars(module) if n.startswith("gpt")]:
                    delattr(module, name)

    def grade(self, entry: data.Entry, answer: Any, found: dict[str, Any]) -> tuple[bool, float]:
        """(valid, process accuracy) of a result, by its scorer."""
        vars(self.scoring)["language"] = entry.language
        with contextlib.redirect_stdout(io.StringIO()):
            end, share = self.scoring.agent_eval([found], [{}], [answer], f"agent_{entry.mode}", "gpt")
        return end == 1.0, share


def raw(folder: Path, entry: data.Entry, answers: bool) -> Any:
    """The entry, or its answer, as it stands in upstream's file."""
    place = folder / "data_all" / f"data_{entry.language}"
    path = (place / "possible_answer" if answers else place) / f"data_agent_{entry.mode}.json"
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return next(line for line in lines if line["id"] == entry.id)


def differences(upstream: Upstream, domain: Any, language: facts.Language, seed: int) -> tuple[str, str]:
    """(what differs between the two harnesses on a seed, or "", the digest)."""
    entry, agent, user = conversation(seed, language, upstream.checkout)
    config = raw(upstream.checkout, entry, False)["initial_config"]
    theirs, script, person = upstream.play(entry, agent, user, config)
    found = ours(domain, entry, agent, user)
    mark = digest(found)
    if theirs is None:
        return ("ours has states" if found["states"] is not None else ""), mark
    valid, share = upstream.grade(entry, raw(upstream.checkout, entry, True), theirs)
    pairs = {
        "states": (found["states"], theirs["result"]),
        "process": (found["process"], theirs["process"]),
        "valid": (found["valid"], valid),
        "share": (found["share"], share),
        "shown": (_masked(found["shown"]), _masked(script.prompts)),
        "asked": (found["asked"], len(person.prompts)),
    }
    wrong = [f"{name}: ours {a!r}\n   theirs {b!r}" for name, (a, b) in pairs.items() if a != b]
    return "\n".join(wrong), mark


def _answers(upstream: Upstream, domain: Any, mode: data.Mode) -> tuple[float, float]:
    """Upstream's end-to-end accuracies of the answers themselves, and of their milestones replayed; ours must
    agree on each entry."""
    gold, replayed, entries = 0, 0, data.entries(upstream.checkout, mode, domain.language)
    for entry in entries:
        answer = raw(upstream.checkout, entry, True)
        config = raw(upstream.checkout, entry, False)["initial_config"]
        fed = upstream.grade(entry, answer, {"result": answer["ground_truth"], "process": []})
        script = [*entry.milestones[0], "finish conversation"]
        played, _, _ = upstream.play(entry, script, ["go on"], config)
        assert played is not None
        end = upstream.grade(entry, answer, played)
        found = ours(domain, entry, script, ["go on"])
        assert fed == graded(entry, answer["ground_truth"], [])
        assert end == (found["valid"], found["share"]), entry.id
        gold, replayed = gold + fed[0], replayed + end[0]
    return gold / len(entries), replayed / len(entries)


def _masked(shown: list[Any]) -> str:
    """What an agent was shown, without Python's words for an error, which follow the evaluated code."""
    error = r"""(['"])Error during execution: (?:\\.|(?!\1).)*\1"""
    return "\n".join(re.sub(error, "ERROR", m["content"]) for prompt in shown for m in prompt)


def main(checkout: Path, out: Path) -> None:
    from mua.benchmarks.acebench.domain import make
    from mua.benchmarks.store import Installed

    checkout, out = checkout.resolve(), out.resolve()
    upstream = Upstream(checkout)
    here = Installed("acebench", "upstream", checkout, "")
    lines, tally = [], {"en": 0, "zh": 0}
    for language in ("en", "zh"):
        domain = make("acebench/agent", ("multi_turn", "multi_step"), language, False, here)
        for mode in domain.modes:
            rates = _answers(upstream, domain, mode)
            print(f"{mode}_{language}: answers {rates[0]:.3f}, milestones replayed {rates[1]:.3f}")
        marks, verdicts = [], ""
        for seed in range(SEEDS):
            wrong, mark = differences(upstream, domain, language, seed)
            if wrong:
                print(f"{language} {seed}: {wrong}\n{conversation(seed, language, checkout)[1:]}")
                sys.exit(1)
            marks.append(mark)
            tally[language] += 1
        for seed in range(DAMAGES):
            entry, states, steps = damaged(seed, language, checkout)
            answer = raw(checkout, entry, True)
            theirs = upstream.grade(entry, answer, {"result": states, "process": steps})
            if theirs != graded(entry, states, steps):
                print(f"{language} damage {seed}: {theirs}, ours {graded(entry, states, steps)}\n{states}")
                sys.exit(1)
            verdicts += "01"[theirs[0]]
        lines.append(json.dumps({"language": language, "conversations": marks, "damaged": verdicts}))
    out.parent.mkdir(exist_ok=True)
    with gzip.GzipFile(out, "wb", mtime=0) as file:
        file.write("\n".join(lines).encode())
    print(f"equal on {tally}; wrote {out} ({out.stat().st_size} bytes)")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
