"""Plays perturbed scripts in upstream's own τ¹ environment and in ours, and compares everything.

    python tests/tau1_upstream.py CHECKOUT --count 1000 [--write]

CHECKOUT is a folder of the public repository sierra-research/tau-bench; it is run as an oracle, with a stub
in place of its LLM client. `--write` keeps what upstream did with the first scripts in data/tau1_oracle.json,
so that the suite can hold us to it without upstream. Ends with one JSON line.
"""

import argparse
import gc
import hashlib
import json
import pickle
import sys
import types
from pathlib import Path

import tau1_scripts
from mua.benchmarks.tau1.domain import tau1_domain
from mua.benchmarks.tau1.rows import hashable
from mua.chat import Message, ToolCall
from mua.trajectory import Termination

FROZEN = Path(__file__).parent / "data" / "tau1_oracle.json"
KEPT = 40
"""Scripts of each domain whose results the suite checks."""


def play_ours(domain, task, steps):
    """What `play_upstream` returns, by our domain: the calls run as far as an episode would run them."""
    messages, observations, ended = [], [], False
    world = domain.open(task)
    for n, step in enumerate(steps):
        if step["name"] == "respond":
            messages.append(Message("assistant", step["kwargs"].get("content") or ""))
            continue
        call = ToolCall(step["name"], step["kwargs"], id=str(n))
        messages.append(Message("assistant", tool_calls=(call,)))
        result = world.call("assistant", call)
        observations.append(result.content)
        if ended := result.ends:
            break
    end = Termination.AGENT_TRANSFER if ended else Termination.USER_STOP
    verdict = domain.grade(task, messages, end)
    assert domain.grade(task, messages, end, world) == verdict  # live and replayed
    changed = {(t, k): world.db.get(t, k) for t, k in world.db.touched()}
    return verdict.reward, verdict.components, observations, _digest(changed)


def _digest(rows):
    """SHA-256 of the rows that differ from the start, as upstream's hash sees rows."""
    return hashlib.sha256(str([(k, hashable(rows[k])) for k in sorted(rows)]).encode()).hexdigest()


class Upstream:
    """The environment of one domain, with its database loaded once."""

    def __init__(self, checkout, part):
        stub = types.ModuleType("litellm")
        stub.completion = None
        sys.modules.setdefault("litellm", stub)
        if str(checkout) not in sys.path:
            sys.path.insert(0, str(checkout))
        module = __import__(f"tau_bench.envs.{part}.env", fromlist=["env"])
        data = __import__(f"tau_bench.envs.{part}.data", fromlist=["data"])
        base = __import__("tau_bench.envs.base", fromlist=["base"])
        kind = {"retail": "MockRetailDomainEnv", "airline": "MockAirlineDomainEnv"}[part]
        base.load_user = lambda **_: types.SimpleNamespace(
            reset=lambda instruction: "Hi", step=lambda content: "ok", get_total_cost=lambda: 0.0
        )
        self.make = lambda split: getattr(module, kind)(task_split=split, task_index=0)
        self.start = data.load_data()
        self.frozen = pickle.dumps(self.start)
        self.types = __import__("tau_bench.types", fromlist=["types"])
        self.text = lambda row: str(base.to_hashable(row))
        self.texts = {(t, k): self.text(row) for t, rows in self.start.items() for k, row in rows.items()}
        self.envs = {}

    def play(self, split, index, steps):
        """(reward, its parts, the tools' answers, digest of the rows that the script changed)."""
        env = self.envs.setdefault(split, self.make(split))
        env.data_load_func = lambda: pickle.loads(self.frozen)
        env.reset(index)
        observations, ended = [], {}
        graded = type(env).calculate_reward

        def calculate_reward():
            ended["data"] = env.data  # grading replaces it by a fresh one, for the gold calls
            return graded(env)

        env.calculate_reward = calculate_reward
        for step in steps:
            answer = env.step(self.types.Action(**step))
            if step["name"] != "respond":
                observations.append(answer.observation)
            if answer.done:
                result = answer.info.reward_info
                break
        else:
            result = env.calculate_reward()
        return result.reward, result.info.model_dump(), observations, self._state(ended["data"])

    def _state(self, data):
        changed = {}
        for table, rows in data.items():
            for key, row in rows.items():
                if row != self.start[table].get(key) or self.text(row) != self.texts[table, key]:
                    changed[table, key] = row
        return _digest(changed)


def compare(checkout, seeds, frozen=None, rewards=None):
    """[part, seed, what differs] of each script that does not end alike."""
    gc.disable()  # it would walk whole databases again and again; they hold no cycles
    different = []
    for part in ("retail", "airline"):
        domain, upstream = tau1_domain(checkout, part), Upstream(checkout, part)
        tasks = [t for s in domain.splits for t in domain.tasks(s)]
        for seed in seeds:
            task, steps = tau1_scripts.script(domain, tasks, seed)
            split, _, index = task.id.partition("_")
            theirs = upstream.play(split, int(index), json.loads(json.dumps(steps)))
            ours = play_ours(domain, task, steps)
            info, parts = theirs[1], ours[1]
            equal = {
                "reward": theirs[0] == ours[0],
                "state": theirs[3] == ours[3],
                "answers": [a or "" for a in theirs[2]] == ours[2],
                "component": float(info.get("r_actions", parts["state"])) == parts["state"]
                and info.get("r_outputs", parts.get("outputs")) == parts.get("outputs"),
            }
            if not all(equal.values()):
                different.append([part, seed, [k for k, v in equal.items() if not v]])
                calls = [s for s in steps if s["name"] != "respond"]
                shown = zip(calls, theirs[2], ours[2], strict=False)
                print(different[-1], *[x for x in shown if x[1] != x[2]][:2], sep="\n")
            if rewards is not None and seed % 50 == 49:
                print(part, seed + 1, "played,", len(different), "different", flush=True)
            if rewards is not None:
                rewards[part] = rewards.get(part, 0) + theirs[0]
            if frozen is not None and seed < KEPT:
                frozen[f"{part}/{seed}"] = [theirs[0], theirs[3], text_digest(theirs[2])]
    return different


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--count", type=int, default=100, help="scripts of each domain")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    frozen, rewards = {}, {}
    different = compare(args.checkout, range(args.start, args.start + args.count), frozen, rewards)
    if args.write:
        FROZEN.parent.mkdir(exist_ok=True)
        FROZEN.write_text(json.dumps(frozen, indent=0) + "\n")
    print(json.dumps({"scripts": 2 * args.count, "different": len(different), "earned": rewards}))


def text_digest(texts):
    return hashlib.sha256("\0".join(t or "" for t in texts).encode()).hexdigest()


if __name__ == "__main__":
    main()
