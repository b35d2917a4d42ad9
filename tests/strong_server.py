"""A server that answers like a strong model: it plays, behind the chat API, what expert and agenda user
would.

Whole conversations are made beforehand; a request is answered by the next message of the one that it is the
beginning of. So both sides are stateless, as a model behind an endpoint is, and what is answered depends on
the request alone. On top come faults: each request of a chosen share fails once, in one of many ways.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fake_server import Reply, chat, error
from mua.chat import Message, agent_view
from mua.coldstart.conversations import play_expert
from mua.domain import Domain, Task
from mua.endpoint import wire
from mua.episode import Limits
from mua.users.llm import llm_user_prompt

# None is paid for, so that what a conversation costs does not tell whether a kill came between.
FAULTS: Sequence[Callable[[], Reply]] = (
    lambda: error(429, "slow down", retry_after="0.01"),
    lambda: error(500, "out of order"),
    lambda: error(503, "loading"),
    lambda: Reply(reset=True),
    lambda: dataclasses.replace(chat("never read to its end"), cut=True),
    lambda: Reply(chat("half of it").body[:40]),
    lambda: chat("", usage=(0, 0)),
    lambda: chat(None, usage=(0, 0)),
    lambda: Reply("<html>proxy error</html>", content_type="text/html"),
)


def digest(value: Any) -> int:
    """A number that depends on the value alone."""
    text = json.dumps(value, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def conversation(domain: Domain, task: Task) -> list[Message]:
    """What the experts make of a task."""
    return asyncio.run(play_expert(domain, task, 0, Limits())).messages


class StrongModel:
    """Give it to a `FakeServer`. `variants(task, usual)` gives the conversations that may be played of a
    task; the seed of the request that opens one decides which."""

    def __init__(
        self,
        domains: Sequence[Domain],
        variants: Callable[[Task, list[Message]], list[list[Message]]] = lambda task, usual: [usual],
        faulty: int = 0,
    ):
        """One request in `faulty` fails the first time; 0: none."""
        self._variants = variants
        self._faulty = faulty
        self._seen: set[int] = set()
        self._lock = threading.Lock()
        self._tasks = {
            llm_user_prompt(task.scenario): (domain, task)
            for domain in domains
            for task in domain.tasks("train")
        }
        self._known: dict[str, list[list[Message]]] = {}
        self._next: dict[str, Message] = {}
        self.openings: Counter[str] = Counter()
        """Task id → conversations that were begun."""

    def __call__(self, body: Mapping[str, Any]) -> Reply:
        key = digest({k: v for k, v in body.items() if k != "seed"})
        with self._lock:
            first = key not in self._seen
            self._seen.add(key)
        if first and self._faulty and key % self._faulty == 0:
            return FAULTS[key // self._faulty % len(FAULTS)]()
        messages = body["messages"]
        with self._lock:
            if messages[0]["content"] in self._tasks:
                return spoken(self._user(messages, body["seed"]))
            if len(messages) == 1:
                return chat("ready")  # the check before anything is played
            return spoken(self._next[agent_key(messages)])

    def _user(self, messages: Sequence[Mapping[str, Any]], seed: int) -> Message:
        prompt = messages[0]["content"]
        domain, task = self._tasks[prompt]
        if prompt not in self._known:
            self._known[prompt] = self._variants(task, conversation(domain, task))
            for messages_ in self._known[prompt]:
                self._learn(prompt, messages_)
        own = [m for m in messages if m["role"] == "assistant"]
        if own:
            return self._next[user_key(prompt, own)]
        self.openings[task.id] += 1
        known = self._known[prompt]
        return next(m for m in known[digest(seed) % len(known)] if m.role == "user")

    def _learn(self, prompt: str, messages: list[Message]) -> None:
        seen = agent_view(messages)
        for i, message in enumerate(seen):
            if message.role == "assistant":
                self._next[agent_key(wire(seen[:i]))] = message
        said = [m for m in messages if m.role == "user"]
        for i in range(1, len(said)):
            self._next[user_key(prompt, wire(said[:i], "user"))] = said[i]


def spoken(message: Message) -> Reply:
    """A message as an endpoint answers it."""
    calls = [(c.name, c.raw if c.error else dict(c.arguments)) for c in message.tool_calls]
    return chat(message.content or None, calls)


def agent_key(messages: Sequence[Mapping[str, Any]]) -> str:
    """The beginning of a conversation as an agent sees it; answers of tools follow from what was called."""
    return json.dumps([_said(m) for m in messages if m["role"] != "tool"])


def user_key(prompt: str, own: Sequence[Mapping[str, Any]]) -> str:
    """What a person has said so far."""
    return json.dumps([prompt, *map(_said, own)])


def _said(message: Mapping[str, Any]) -> Any:
    calls = [
        [c["function"]["name"], json.loads(c["function"]["arguments"])]
        for c in message.get("tool_calls") or ()
    ]
    return [message["role"], message["content"] or "", calls]
