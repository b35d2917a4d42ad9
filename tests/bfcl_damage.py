"""Damaged answers to BFCL entries, and the proof that our verdicts on them are upstream's.

    python tests/bfcl_damage.py --count 5000 --seed 0 --benchmark bfcl

Upstream's checker runs in a process of its own (bfcl_upstream.py). Left out on purpose are answers that
we refuse to run and upstream evaluates: calls inside calls, Python's builtins, arithmetic without bounds.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mua.benchmarks.bfcl import CATEGORIES, Upstream, codec, results, upstream
from mua.chat import ToolCall
from mua.domains import load


class Oracle:
    """Upstream in a process of its own; `with` ends it."""

    def __init__(self, source: Upstream):
        script = Path(__file__).with_name("bfcl_upstream.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-B", str(script), str(source.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "upstream's process ended"
        return json.loads(line)

    def __enter__(self) -> Oracle:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()


Answer = list[list[list[ToolCall]]]
"""Turns of steps of calls."""

_WORDS = ("Done.", "I need the folder's name.", "", "[]", "See (below) for ls (all).", "I'm sorry (really)")
_TEXTS = (
    "x",
    "",
    "report.txt",
    "it's",
    'a "b"',
    "a\nb",
    "日本語",
    "call ls() or cd (up)",
    "{}",
    "None",
    "..",
)


def gold(benchmark: str) -> dict[str, Answer]:
    """The ground truth of all entries as native calls, a step a turn."""
    domain = load(f"{benchmark}/multi_turn")
    found = {}
    for task in domain.tasks("all"):
        turns = domain.gold_calls(domain.entry(task))  # type: ignore[attr-defined]
        found[task.id] = [[calls] if calls else [] for calls in turns]
    return found


def value(rng: random.Random, given: Any) -> Any:
    """Another value in the place of one."""
    options: list[Any] = [
        rng.choice(_TEXTS),
        rng.randint(-3, 9),
        rng.random() * 10,
        None,
        True,
        False,
        [],
        {},
    ]
    match given:
        case bool():
            options += [not given] * 6
        case int() | float():
            options += [given + 1, -given, given * 1.0, str(given), given + 0.0] * 2
        case str():
            options += [given + "x", given[:-1], given.upper(), given + " (see ls (1))", given.lower()] * 2
        case list():
            options += [given[:-1], given[::-1], [*given, "x"], str(given)] * 2
        case dict():
            options += [dict(list(given.items())[1:]), {**given, "x": 1}] * 3
    return rng.choice(options)


def damage(rng: random.Random, answer: Answer, others: list[ToolCall]) -> Answer:
    """The answer with one change."""
    answer = copy.deepcopy(answer)
    places = [
        (t, s, c) for t, turn in enumerate(answer) for s, step in enumerate(turn) for c in range(len(step))
    ]
    turn = rng.randrange(len(answer))
    if not places:
        answer[turn].append([rng.choice(others)])
        return answer
    t, s, c = rng.choice(places)
    call = answer[t][s][c]
    arguments = dict(call.arguments)
    name = rng.choice(list(arguments)) if arguments else ""
    other = rng.choice(others)
    match rng.randrange(15):
        case 0 | 1 | 2 if name:
            answer[t][s][c] = ToolCall(call.name, {**arguments, name: value(rng, arguments[name])})
        case 3 if name:
            del arguments[name]
            answer[t][s][c] = ToolCall(call.name, arguments)
        case 4:
            answer[t][s][c] = ToolCall(call.name, {**arguments, rng.choice(("x", "path", "self")): 1})
        case 5:
            answer[t][s][c] = ToolCall(
                rng.choice((other.name, call.name.upper(), "no_such_tool", "run")), arguments
            )
        case 6:
            del answer[t][s][c]
        case 7:
            answer[t][s].insert(c, call)
        case 8:
            answer[t][s].insert(rng.randrange(len(answer[t][s]) + 1), other)
        case 9:
            answer[turn].append([other])
        case 10:
            rng.shuffle(answer[t][s])
        case 11:
            answer[turn].append([answer[t][s].pop(c)])
        case 12:
            answer[t] = [[one] for step in answer[t] for one in step]
        case 13:
            answer[turn] = []
        case 14:
            answer = answer[:-1] if rng.random() < 0.5 else [*answer, [[other]]]
            answer = answer or [[]]
        case _:
            answer[t][s][c] = other
    return answer


def written(rng: random.Random, answer: Answer, mode: str) -> list[list[Any]]:
    """The answer as it stands in a result file, now and then with words or broken steps between."""
    return [
        [piece for step in turn for piece in (*_noise(rng, mode), _step(rng, step, mode))] + _noise(rng, mode)
        for turn in answer
    ]


def _step(rng: random.Random, step: list[ToolCall], mode: str) -> Any:
    if mode == "fc":
        as_text = rng.random() < 0.9
        return [{c.name: json.dumps(dict(c.arguments)) if as_text else dict(c.arguments)} for c in step]
    if mode == "hermes":
        lines = (json.dumps({"name": c.name, "arguments": dict(c.arguments)}) for c in step)
        return "".join(f"<tool_call>\n{line}\n</tool_call>\n" for line in lines)
    text = f"[{', '.join(map(codec.text_of, step))}]"
    forms = [text] * 8
    forms += [
        f"```\n{text}\n```",
        text[1:-1],
        f" {text}\n",
        f"'{text}'",
        f"['{text[1:-1]}']",
        f"Sure: {text}",
        f"{text}.",
    ]
    if rng.random() < 0.1:
        forms.append(text.replace("=", "= 1 + ", 1))
    return rng.choice(forms)


_NOISE: dict[str, tuple[Any, ...]] = {
    "fc": (
        [],
        None,
        [{"ls": "{"}],
        [{"ls": "[]"}],
        ["ls"],
        {"pwd": "{}"},
        [{"ls": '{"a": NaN}'}],
        [{"ls": '{"a": true, "a": false}'}],
        [{"ls": None}],
    ),
    "prompt": (
        "[ls(]",
        "[ls]",
        "[ls(True)]",
        "[cd(folder=docs)]",
        "[cd(folder=-'x')]",
        "[x[0]]",
        "[ls(a=not 1)]",
        "[pwd(), (ls())]",
        "[echo(content='-' * 3 + '>')]",
    ),
    "hermes": (
        "<tool_call>\n{\n</tool_call>",
        "<tool_call>\n[]\n</tool_call>",
        '<tool_call>\n{"name": "ls"}\n</tool_call>',
    ),
}


def _noise(rng: random.Random, mode: str) -> list[Any]:
    return [rng.choice((*_WORDS, *_NOISE[mode]))] if rng.random() < 0.15 else []


def cases(benchmark: str, count: int, seed: int) -> Iterator[tuple[str, list[list[Any]], codec.Mode]]:
    """(entry id, result, mode) of damaged answers; the entries of all categories by turns."""
    rng = random.Random(f"{benchmark} {seed}")
    known = gold(benchmark)
    calls = {
        category: [
            c for i, a in known.items() if i.startswith(category) for turn in a for step in turn for c in step
        ]
        for category in CATEGORIES
    }
    ids = list(known)
    for number in range(count):
        if number % len(ids) == 0:
            rng.shuffle(ids)
        entry_id = ids[number % len(ids)]
        answer = known[entry_id]
        own = [c for turn in answer for step in turn for c in step]
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            others = own if own and rng.random() < 0.7 else calls[entry_id.rpartition("_")[0]]
            answer = damage(rng, answer, others)
        modes: tuple[codec.Mode, ...] = ("fc", "fc", "prompt", "hermes")
        mode = rng.choice(modes)
        yield entry_id, written(rng, answer, mode), mode


def compare(benchmark: str, count: int, seed: int) -> tuple[collections.Counter[str], list[dict[str, Any]]]:
    """(how many of each verdict, the cases in which ours is another)."""
    source = upstream(benchmark)
    seen: collections.Counter[str] = collections.Counter()
    different = []
    with Oracle(source) as oracle:
        for entry_id, result, mode in cases(benchmark, count, seed):
            theirs = oracle(id=entry_id, result=result, mode=mode)
            (ours,) = results.verdicts_on(source, [(entry_id, result)], mode)
            seen[str(ours["error_type"])] += 1
            if "crashed" in theirs or any(theirs[k] != ours[k] for k in ("valid", "error_type")):
                case = {"id": entry_id, "mode": mode, "result": result}
                different.append({**case, "upstream": theirs, "ours": ours})
    return seen, different


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--benchmark", default="bfcl")
    given = parser.parse_args()
    seen, different = compare(given.benchmark, given.count, given.seed)
    for case in different[:20]:
        print(json.dumps(case, ensure_ascii=False))
    print(json.dumps({"answers": given.count, "different": len(different), "verdicts": dict(seen)}))
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
