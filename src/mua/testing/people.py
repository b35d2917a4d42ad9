"""A chat endpoint that plays the users of a domain's tasks by its scripts, and misbehaves by a plan.

Invariant: what a healthy answer says depends on the conversation alone, as of a model at temperature 0; so
whoever asks again after a fault is told what it would have been told without.
"""

from __future__ import annotations

import base64
import dataclasses
import email.utils
import threading
import urllib.parse
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..chat import Message
from ..domain import Domain
from ..users.llm import GREETING, SILENCE, llm_user_prompt
from .plan import Dice, FaultPlan
from .server import Reply, chat, error

T = TypeVar("T")


def _done(script: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        script.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("a scripted user waits for something")


class People:
    """Give it to a `FakeServer`: a request of `users.llm` → the person's next words, or a fault."""

    def __init__(self, domain: Domain, plan: FaultPlan, folder: Path | None = None, secret: str = ""):
        """`secret` is the key that is sent with the requests, which a careless server repeats."""
        if domain.agenda_user is None:
            raise ValueError(f"{domain.name} has no scripted user")
        self._domain, self._secret, self._plan = domain, secret, plan
        self._dice = Dice(plan, "user", folder)
        self._lock = threading.Lock()
        self._tasks = {
            llm_user_prompt(task.scenario): task for split in domain.splits for task in domain.tasks(split)
        }

    def knows(self, body: Mapping[str, Any]) -> bool:
        """The request is of one of this domain's people."""
        return body["messages"][0]["content"] in self._tasks

    def __call__(self, body: Mapping[str, Any]) -> Reply:
        with self._lock:
            kind = self._dice.draw(body["messages"])
        if kind:
            return self._fault(kind, body["messages"])
        return chat(self._words(body["messages"]), model=f"people ({self._secret})")

    def _words(self, messages: Sequence[Mapping[str, Any]]) -> str:
        task = self._tasks.get(messages[0]["content"])
        if task is None:
            return "ready"  # the check before anything is played
        view = []
        for message in messages[1:]:
            if message["role"] == "assistant":
                view.append(Message("user", message["content"] or ""))
            elif message["content"] not in (GREETING, SILENCE):
                view.append(Message("assistant", message["content"]))
        return _done(self._turn(task, view))

    async def _turn(self, task: Any, view: Sequence[Message]) -> str:
        assert self._domain.agenda_user is not None
        person = self._domain.agenda_user(task, 0)
        for at, message in enumerate(view):
            if message.role == "user":
                await person.reply(view[:at])
        return (await person.reply(view)).text

    def _fault(self, kind: str, messages: Sequence[Mapping[str, Any]]) -> Reply:
        key, late = self._secret, 1.5 * self._plan.timeout_seconds
        return {
            "stall": lambda: Reply(stall=True),
            "late": lambda: dataclasses.replace(chat(self._words(messages)), after=late),
            "busy": lambda: error(429, f"slow down, {key}"),
            "busy_with_retry_after": lambda: error(429, "slow down", retry_after="0.1"),
            "busy_until": lambda: error(429, "slow down", retry_after=email.utils.formatdate(usegmt=True)),
            "failed": lambda: error(500, f"Traceback: authorization 'Bearer {key}'"),
            "unavailable": lambda: error(503, "loading"),
            "empty": lambda: chat(""),
            "null": lambda: chat(None),
            "half_json": lambda: Reply(chat("half of it").body[:60]),
            "cut": lambda: dataclasses.replace(chat("never read to its end"), cut=True),
            "reset": lambda: Reply(reset=True),
            "html": lambda: Reply(f"<html>{key}</html>", content_type="text/html"),
            "wrong_model": lambda: error(404, "the model does not exist"),
            "echoes_key": lambda: self._echo(key),
        }[kind]()

    @staticmethod
    def _echo(key: str) -> Reply:
        """A refusal that repeats the key: as it is, as a login, in an address, and with JSON's escapes."""
        login = base64.b64encode(f"people:{key}".encode()).decode()
        told = error(401, f"the key {key} is not known; Basic {login}; ?key={urllib.parse.quote_plus(key)}")
        return dataclasses.replace(told, body=told.body.replace("/", r"\/"))
