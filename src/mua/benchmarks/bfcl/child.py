"""The process that upstream's backends run in: executes calls on them, and checks answers.

`pool` starts this file as a script in an interpreter of its own; it imports nothing of mua. Requests and
replies are JSON, one a line.

Invariants:
- Only a plain call of a public method of the entry's backends runs, with literal arguments. No text of a
  model is ever evaluated.
- Nothing is shared: an answer is checked on modules that nobody has written to, and a world has modules
  of its own. (Upstream's modules hold state that its instances write to, and upstream keeps instances in
  globals, so there a verdict depends on what was scored before.)
- The process reads its pipe and the benchmark's folder, and nothing else: no network where the system
  allows to do without, no files written, no processes started, bounded memory, and a bounded time for each
  request. Whoever exceeds it is ended by the system, and the other side of the pipe says so.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import copy
import datetime
import functools
import json
import marshal
import operator
import os
import pickle
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

FILES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
}
"""The eight backends, and the module (and file of tool descriptions) of each."""

STATELESS = ("MathAPI",)
"""Backends that take no initial state."""

MODEL = "mua"
"""The model's name, as upstream would know it: it puts it into the names that it rewrites calls with."""

_PACKAGE = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
_TEXTS = "long_context"
_FAILED = "Error during execution: "
_LONGEST_RESULT = 8 << 20
_WORLDS = 512
"""Worlds kept at once; one that is asked for again after that is played again from its calls."""

# Upstream refuses these by name before it evaluates a call.
_FORBIDDEN = frozenset(("kill", "exit", "quit", "remove", "unlink", "popen", "Popen", "run"))
_CALLED = re.compile(r"\b([a-zA-Z_]\w*)\s*(?=\()")


class Refused(Exception):
    """The text is no call that may run; the words go to the model."""


# ---------------------------------------------------------------- reading a call


def plain_call(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """(name, positional arguments, keyword arguments) of a call with literal arguments.

    The name is dotted when the text's is. Raises Refused for anything else, with the words of Python where
    upstream, which evaluates the text, would have shown those.
    """
    try:
        node = ast.parse(text.lstrip(" \t"), "<string>", "eval").body
        if not isinstance(node, ast.Call):
            raise Refused(_undefined(node) or "only calls can be run")
        name = _dotted(node.func)
        arguments = [_literal(arg) for arg in node.args]
        named: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                raise Refused("only plain calls can be run, without ** arguments")
            if keyword.arg in named:
                raise Refused(f"keyword argument repeated: {keyword.arg} (<string>, line 1)")
            named[keyword.arg] = _literal(keyword.value)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as exc:
        raise Refused(str(exc) or type(exc).__name__) from None
    return name, arguments, named


def _dotted(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise Refused("only calls of a named function can be run")
    return ".".join((node.id, *reversed(parts)))


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise Refused(_undefined(node) or "the arguments must be literal values") from None


def _undefined(node: ast.expr) -> str:
    """What Python says of a name that means nothing: NaN and true come from JSON."""
    return f"name '{node.id[:80]}' is not defined" if isinstance(node, ast.Name) else ""


# ---------------------------------------------------------------- the backends


class Backends:
    """Upstream's backend modules of one folder, run in namespaces that can be thrown away."""

    def __init__(self, folder: str):
        self._source = os.path.join(folder, *_PACKAGE.split("."))
        self._code: dict[str, types.CodeType] = {}
        self._modules: dict[str, types.ModuleType] = {}
        self._texts: dict[str, types.ModuleType] = {}
        self._copies: dict[str, Callable[[], Any]] = {}
        self._pristine: dict[str, list[Kept]] = {}
        self._used: tuple[str, ...] = ()
        self._methods: dict[str, tuple[str, ...]] = {}

    def load(self, modules: dict[str, types.ModuleType], name: str) -> types.ModuleType:
        """The module `name`, run once for each dictionary `modules`."""
        if name not in modules:
            if name not in self._code:
                path = os.path.join(self._source, f"{name}.py")
                with open(path, encoding="utf-8") as file:
                    self._code[name] = compile(file.read(), path, "exec")
            module = types.ModuleType(f"{_PACKAGE}.{name}")
            builtins = types.ModuleType("builtins")  # a module, so that it is not taken for the module's data
            vars(builtins).update(vars(_builtins))
            builtins.__import__ = lambda *args, **named: self._import(modules, *args, **named)  # type: ignore
            vars(module)["__builtins__"] = builtins
            modules[name] = module
            exec(self._code[name], vars(module))  # upstream's own code, from the folder that was installed
        return modules[name]

    def _import(self, modules: dict[str, types.ModuleType], name: str, *rest: Any, **named: Any) -> Any:
        """Upstream's modules import each other: they get those of the same namespaces."""
        package, _, last = name.rpartition(".")
        if package == _PACKAGE:
            return self.load(modules, last)
        if name == "subprocess":  # one imports it, none uses it
            return types.ModuleType(name)
        return __import__(name, *rest, **named)

    def methods(self, name: str, cls: type) -> tuple[str, ...]:
        """The public methods of a backend. Kept by name: each set of modules has classes of its own."""
        if name not in self._methods:
            named = (n for n in dir(cls) if not n.startswith("_"))
            self._methods[name] = tuple(n for n in named if isinstance(getattr(cls, n), types.FunctionType))
        return self._methods[name]

    def apart(self, share_texts: bool) -> dict[str, types.ModuleType]:
        """A place for modules of one's own; with `share_texts`, the texts of long context are everybody's."""
        if share_texts:
            return {_TEXTS: self.load(self._texts, _TEXTS)}
        if not self._copies:
            texts = vars(self.load({}, _TEXTS))  # run for this, and written to by nobody
            self._copies = {name: _copies(value) for name, value in texts.items() if name[:2] != "__"}
        return {_TEXTS: Texts(self._copies)}

    def shared(self, names: Sequence[str]) -> dict[str, types.ModuleType]:
        """Modules that hold these, and that are as they were when they were run."""
        if any(kept.changed() for name in self._used for kept in self._pristine.get(name, ())):
            self._modules = {}  # all of them: they hold each other's data
            self._pristine = {}
        for name in names:
            self.load(self._modules, name)
        for name in self._modules.keys() - self._pristine.keys():
            held = (v for v in vars(self._modules[name]).values() if type(v) in (dict, list, set))
            self._pristine[name] = list(map(Kept, held))
        self._used = tuple(names)
        return self._modules


class Texts(types.ModuleType):
    """The texts of long context for one world: a copy, made of what is asked for. To run their module again
    would take longer than all calls of a world."""

    def __init__(self, copies: Mapping[str, Callable[[], Any]]):
        super().__init__(f"{_PACKAGE}.{_TEXTS}")
        self._copies = copies

    def __getattr__(self, name: str) -> Any:
        if name not in self._copies:
            raise AttributeError(name)
        setattr(self, name, self._copies[name]())
        return vars(self)[name]


def _copies(value: Any) -> Callable[[], Any]:
    """What makes copies of a value that nobody writes to."""
    if type(value) in (str, int, float):
        return lambda: value
    if type(value) is list and all(type(v) in (str, int, float) for v in value):
        return value.copy
    return functools.partial(pickle.loads, pickle.dumps(value))


class Kept:
    """Data that a module holds, and what it was at first: to the type, since 1 is written unlike 1.0."""

    def __init__(self, value: Any):
        self._value = value
        self._first = copy.deepcopy(value)
        self._bytes: bytes | None = None
        # The copy of a flat list has the same elements, so they are compared by address.
        self._flat = type(value) is list and all(map(operator.is_, value, self._first))
        if not self._flat:
            with contextlib.suppress(ValueError):  # it holds objects: a default state, copied before its use
                self._bytes = marshal.dumps(value, 2)

    def changed(self) -> bool:
        if self._flat:
            same = len(self._value) == len(self._first) and all(map(operator.is_, self._value, self._first))
            return not same
        if self._bytes is None:
            return self._value != self._first
        return marshal.dumps(self._value, 2) != self._bytes


class Instances:
    """The backends of one side of one entry."""

    def __init__(self, backends: Backends, modules: dict[str, types.ModuleType], entry: Entry, side: str):
        self.of: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        self._methods: dict[str, Callable[..., Any]] = {}
        for name in entry.classes:
            instance = getattr(backends.load(modules, FILES[name]), name)()
            if name not in STATELESS:
                instance._load_scenario(pickle.loads(entry.state[name]), long_context=entry.long_context)
            self.of[name] = instance
        known = re.sub(r"[-./:]", "_", f"{side}_{entry.id}")
        for name, instance in self.of.items():
            for method in backends.methods(name, type(instance)):
                self._names[method] = f"{known}_{name}_instance"
                self._methods[f"{known}_{name}_instance.{method}"] = getattr(instance, method)

    def run(self, text: str) -> str:
        """Runs one call; its result, or what went wrong, as the text that upstream makes of it."""
        # Upstream puts the instance before each name that a parenthesis follows, inside strings too.
        text = _CALLED.sub(self._rewritten, text)
        called = text.split("(")[0] if "(" in text else text
        called = called.split(".")[1] if "." in called else called
        try:
            if called in _FORBIDDEN:
                raise Refused(f"Function call {called} is not allowed.")
            name, arguments, named = plain_call(text)
            method = self._methods.get(name)
            if method is None:
                raise Refused(f"name '{name.split('.')[0][:80]}' is not defined")
            result = method(*arguments, **named)
            if type(result) is str:
                return result
            if type(result) is dict:
                try:
                    return json.dumps(result)
                except Exception:
                    return str(result)
            return str(result)
        except Exception as exc:
            return f"{_FAILED}{exc}"

    def _rewritten(self, match: re.Match[str]) -> str:
        name = match[1]
        return f"{self._names[name]}.{name}" if name in self._names else name


class Entry:
    """What the checker needs of one entry."""

    def __init__(self, question: Mapping[str, Any], gold: list[list[str]]):
        self.id: str = question["id"]
        self.classes: list[str] = question["involved_classes"]
        config = question["initial_config"]
        self.state = {name: pickle.dumps(config.get(name, {})) for name in self.classes}
        self.long_context = "long_context" in self.id
        self.gold = gold


class Data:
    """Entries by category, read when one is asked for."""

    def __init__(self, folder: str, prefix: str):
        self._folder = os.path.join(folder, "bfcl_eval", "data")
        self._prefix = prefix
        self._entries: dict[str, dict[str, Entry]] = {}

    def entry(self, entry_id: str) -> Entry:
        category = entry_id.rsplit("_", 1)[0]
        if category not in self._entries:
            name = f"{self._prefix}_{category}.json"
            questions = _lines(os.path.join(self._folder, name))
            answers = _lines(os.path.join(self._folder, "possible_answer", name))
            self._entries[category] = {
                q["id"]: Entry(q, a["ground_truth"]) for q, a in zip(questions, answers, strict=True)
            }
        return self._entries[category][entry_id]


def _lines(path: str) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


# ---------------------------------------------------------------- checking


def check(backends: Backends, entry: Entry, turns: Sequence[Sequence[Sequence[str]]]) -> dict[str, Any]:
    """Upstream's verdict on an answer: {"valid", "error_type", "error_message"}.

    `turns` are decoded: turns of steps of call texts, steps without a call left out. There are as many as
    the gold has.
    """
    modules = backends.shared([FILES[name] for name in entry.classes])
    model: Instances | None = None
    gold: Instances | None = None
    outputs: collections.Counter[str] = collections.Counter()
    for number, (steps, wanted) in enumerate(zip(turns, entry.gold, strict=True)):
        for step in steps:
            model = model or Instances(backends, modules, entry, f"{MODEL}_eval")
            outputs.update(map(model.run, step))
        gold = gold or Instances(backends, modules, entry, f"{MODEL}_ground_truth_eval")
        expected = collections.Counter(map(gold.run, wanted))
        if not wanted:
            continue  # nothing can be done yet: whatever was called is judged by what follows
        if not steps or model is None:
            return _invalid("empty_turn_model_response", f"turn {number}: no call, where gold has some")
        for name, instance in gold.of.items():
            differing = _differing(model.of[name], instance)
            if differing:
                words = f"turn {number}: the state of {name} differs from gold in {', '.join(differing)}"
                return _invalid("instance_state_mismatch", words)
        if missing := list((expected - outputs).elements()):
            words = f"turn {number}: no call so far gave {len(missing)} of gold's results: {missing[0][:200]}"
            return _invalid("execution_response_mismatch", words)
    return {"valid": True, "error_type": None, "error_message": ""}


def _differing(instance: Any, gold: Any) -> list[str]:
    """The public attributes in which two instances differ."""
    return [
        name
        for name, value in vars(gold).items()
        if not name.startswith("_") and _differs(getattr(instance, name, _MISSING), value)
    ]


_MISSING = object()


def _differs(value: Any, gold: Any) -> bool:
    try:
        return value != gold  # its classes define what it means
    except Exception:  # the answer made something that cannot be compared, such as a folder inside itself
        return True


def _invalid(kind: str, words: str) -> dict[str, Any]:
    return {"valid": False, "error_type": f"multi_turn:{kind}", "error_message": words}


# ---------------------------------------------------------------- the process


class Server:
    """Answers requests.

    {"answers": [{"entry", "turns"}]} → {"verdicts"}. {"entry", "world", "done", "calls"} → {"results"} of the
    calls in a world where `done` calls were made before, or {"again": true} when that world is not here:
    then the same is asked with those calls as "history".
    """

    def __init__(self, folder: str, prefix: str):
        self.backends = Backends(folder)
        self.data = Data(folder, prefix)
        self._worlds: collections.OrderedDict[str, tuple[int, Instances]] = collections.OrderedDict()

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if "answers" in request:
            entries = [(self.data.entry(answer["entry"]), answer["turns"]) for answer in request["answers"]]
            return {"verdicts": [check(self.backends, entry, turns) for entry, turns in entries]}
        entry = self.data.entry(request["entry"])
        key, done, texts = request["world"], request["done"], request["calls"]
        count, instances = self._worlds.pop(key, (-1, None))
        if instances is None or count != done:
            history = request.get("history")
            if done and history is None:
                return {"again": True}
            # Modules that this world has alone, but for the large one that only long context writes to.
            modules = self.backends.apart(share_texts=not entry.long_context)
            instances = Instances(self.backends, modules, entry, MODEL)
            for earlier in history or ():
                instances.run(earlier)
        results = [_shortened(instances.run(text)) for text in texts]
        self._worlds[key] = (done + len(texts), instances)
        if len(self._worlds) > _WORLDS:
            self._worlds.popitem(last=False)
        return {"results": results}


def _shortened(result: str) -> str:
    if len(result) <= _LONGEST_RESULT:
        return result
    return f"{_FAILED}the result is longer than {_LONGEST_RESULT >> 20} MiB"


def main(folder: str, prefix: str, seconds: float, memory: int) -> None:
    """Serves until its input ends. `seconds` of CPU time a request, `memory` in bytes."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):  # what a backend prints is no reply
        os.dup2(nothing, number)
    _confine(memory)
    server = Server(folder, prefix)
    replies.write(b'{"ready": true}\n')
    replies.flush()
    os.dup2(nothing, 2)  # nobody reads it from here on: a full pipe would block
    for line in requests:
        _limit(seconds)
        try:
            reply = server.answer(json.loads(line))
            text = json.dumps(reply)
        except (MemoryError, RecursionError) as exc:
            text = json.dumps({"exceeded": type(exc).__name__})
        except Exception as exc:  # upstream's code, or data that is not what it should be
            text = json.dumps({"failed": f"{type(exc).__name__}: {exc}"[:500]})
        _limit(0.0)
        replies.write(text.encode() + b"\n")
        replies.flush()


def _limit(seconds: float) -> None:
    """The system ends this process after so much CPU time; 0 lifts the limit."""
    import signal

    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _confine(memory: int) -> None:
    """Gives up what the backends do not need. What the system does not offer is left out."""
    datetime.datetime.strptime("2000", "%Y")  # imports a part of itself at its first call
    try:
        import resource

        for what, amount in (("RLIMIT_AS", memory), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
            resource.setrlimit(getattr(resource, what), (amount, amount))
    except (ImportError, AttributeError, ValueError, OSError):
        pass
    try:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        # CLONE_NEWUSER | CLONE_NEWNET, or the second alone: a network without devices.
        if libc.unshare(0x10000000 | 0x40000000):
            libc.unshare(0x40000000)
    except (ImportError, AttributeError, OSError):
        pass
    sys.addaudithook(_audit)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if words := refused(event, args):
        raise PermissionError(words)


def refused(event: str, args: tuple[Any, ...]) -> str:
    """Why what an audit hook is told of may not be: it would reach out of the process, whichever way it were
    asked for. Empty for what may."""
    reaches = event.startswith(("os.", "socket.", "subprocess.", "shutil.", "ctypes."))
    if reaches and event not in ("os.listdir", "os.scandir"):  # imports look around
        return f"{event} is not allowed here"
    if event == "open" and _writes(args[1], args[2]):
        return "files cannot be written here"
    return ""


def _writes(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str) and set(mode) & set("wxa+"):
        return True
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


_builtins = sys.modules["builtins"]

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
