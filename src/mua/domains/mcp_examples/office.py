"""The files of an office: 107 files in five folders, eleven kinds of tasks, over the filesystem server.

Invariant: as of the package; every gold solution follows office.md.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mua.domain import Action, Change, Task
from mua.domains import script
from mua.domains.mcp_examples import NAMES, call, request, splits, task
from mua.domains.script import Call, Refused, Script, ScriptUser

ROOT = "/office"
_FIRMS = (
    "alder",
    "birch",
    "cedar",
    "elm",
    "fir",
    "hazel",
    "larch",
    "maple",
    "oak",
    "pine",
    "rowan",
    "willow",
)
_TOWNS = ("north", "south", "east")
_THINGS = (
    "the boiler",
    "the lift",
    "the roof",
    "parking",
    "the printer",
    "the canteen",
    "the keys",
    "the alarm",
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")


@functools.cache
def files() -> dict[str, str]:
    """Path below the root → text."""
    rng = random.Random("office")
    found = {}
    for number in range(2001, 2041):
        status = rng.choice(("paid", "paid", "open"))
        total = f"{rng.randint(20, 900)}.00"
        text = f"invoice {number}\nfrom: {rng.choice(_FIRMS)}\ntotal: {total}\nstatus: {status}\n"
        found[f"invoices/{number}.txt"] = text
    for firm in _FIRMS:
        for town in _TOWNS:
            text = f"name: {firm} {town}\nphone: {_phone(rng)}\ncity: {town}town\n"
            found[f"contacts/{firm}-{town}.txt"] = text
    for number, thing in enumerate(_THINGS):
        found[f"notes/{_slug(thing)}-{_DAYS[number % 5].lower()}.txt"] = f"Ask about {thing}.\n"
    for firm in _FIRMS:
        found[f"contracts/{firm}.txt"] = f"contract with {firm}\nsigned: yes\nphone: {_phone(rng)}\n"
    for number in range(1990, 2001):
        found[f"archive/{number}.txt"] = f"invoice {number}\nstatus: paid\n"
    return found


def make_state(folder: Path) -> None:
    for name, text in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _phone(rng: random.Random) -> str:
    return f"555-{rng.randint(1000, 9999)}"


def _slug(thing: str) -> str:
    return thing.removeprefix("the ")


# ---------------------------------------------------------------- tasks

Wish = tuple[dict[str, Any], list[Action]]


def archived(path: str) -> dict[str, Any]:
    return {"source": path, "destination": f"{ROOT}/archive/{path.rpartition('/')[2]}"}


def phone_edit(path: str, before: str, phone: str) -> dict[str, Any]:
    return {"path": path, "edits": [{"oldText": f"phone: {before}", "newText": f"phone: {phone}"}]}


def _archive(rng: random.Random, paid: bool) -> Wish:
    chosen = [n for n, t in files().items() if n.startswith("invoices/") and ("status: paid" in t) == paid]
    path = f"{ROOT}/{rng.choice(chosen)}"
    number = Path(path).stem
    wish = request(f"have invoice {number} archived", [number], {"do": "archive", "number": number})
    return wish, [Action("move_file", archived(path))] if paid else [_refusal(path, "unpaid")]


def _change_phone(rng: random.Random, known: bool = True) -> Wish:
    firm, town, phone = rng.choice(_FIRMS), rng.choice(_TOWNS if known else ("west",)), _phone(rng)
    path = f"{ROOT}/contacts/{firm}-{town}.txt"
    say = f"change the phone number of {firm} {town} to {phone}"
    wish = request(
        say, [f"{firm}-{town}", phone], {"do": "phone", "contact": f"{firm}-{town}", "phone": phone}
    )
    if not known:
        return wish, [_refusal(path, "unknown")]
    before = files()[f"contacts/{firm}-{town}.txt"].split("phone: ")[1].split("\n")[0]
    return wish, [Action("edit_file", phone_edit(path, before, phone))]


def _note(rng: random.Random, new: bool = True) -> Wish:
    taken = sorted(n for n in files() if n.startswith("notes/"))
    day, thing = rng.choice(_DAYS), rng.choice(_THINGS)
    name = f"notes/{_slug(thing)}-{day.lower()}.txt" if new else rng.choice(taken)
    if new and name in taken:
        return _note(rng, new)
    path, text = f"{ROOT}/{name}", f"{rng.choice(NAMES)} will see to {thing} on {day}."
    say = f'have a note "{Path(name).stem}" taken down that says "{text}"'
    wish = request(say, [Path(name).stem], {"do": "note", "note": Path(name).stem, "text": text})
    return wish, [call("write_file", path=path, content=text)] if new else [_refusal(path, "exists")]


def _contract(rng: random.Random) -> Wish:
    firm = rng.choice(_FIRMS)
    what = rng.choice(("change the phone number in", "move to the archive"))
    wish = request(f"{what} the contract with {firm}", [], {"do": "contract", "firm": firm, "what": what})
    return wish, [_refusal(f"{ROOT}/contracts/{firm}.txt", "signed")]


def _refusal(path: str, reason: str) -> Action:
    return call("record_refusal", path=path, reason=reason)


def _path(wish: dict[str, Any]) -> str:
    """The file that a request is about."""
    data = wish["data"]
    names = {"archive": "invoices/{number}", "phone": "contacts/{contact}", "note": "notes/{note}"}
    return f"{ROOT}/{names[data['do']].format(**data)}.txt"


def _plain(kind: str, make: Callable[[random.Random], Wish]) -> Callable[[random.Random], Task]:
    def made(rng: random.Random) -> Task:
        wish, actions = make(rng)
        return task(kind, rng.choice(NAMES), [wish], actions, rng)

    return made


def _any(rng: random.Random) -> Wish:
    return rng.choice((lambda r: _archive(r, True), _change_phone, _note))(rng)


def _switch(rng: random.Random) -> Task:
    (first, _), (other, actions) = _any(rng), _any(rng)
    return task("switch", rng.choice(NAMES), [{**first, "change": other}], actions, rng)


def _withdraw(rng: random.Random) -> Task:
    wish, _ = _any(rng)
    return task(
        "withdraw", rng.choice(NAMES), [{**wish, "withdraw": True}], [_refusal(_path(wish), "withdrawn")], rng
    )


def _two(rng: random.Random) -> Task:
    (one, first), (two, second) = _archive(rng, True), rng.choice((_change_phone, _note))(rng)
    return task("two", rng.choice(NAMES), [one, two], [*first, *second], rng)


def _paid_now(rng: random.Random) -> Task:
    """An invoice that this task's state shows as paid, though it is open elsewhere."""
    name = rng.choice([n for n, t in files().items() if n.startswith("invoices/") and "status: open" in t])
    setup = Change("files", name, {"text": files()[name].replace("status: open", "status: paid")})
    number = Path(name).stem
    wish = request(f"have invoice {number} archived", [number], {"do": "archive", "number": number})
    actions = [Action("move_file", archived(f"{ROOT}/{name}"))]
    return task("paid_now", rng.choice(NAMES), [wish], actions, rng, [setup])


def tasks() -> dict[str, list[Task]]:
    return splits(
        "office",
        {
            "archive": _plain("archive", lambda r: _archive(r, True)),
            "unpaid": _plain("unpaid", lambda r: _archive(r, False)),
            "phone": _plain("phone", _change_phone),
            "unknown": _plain("unknown", lambda r: _change_phone(r, False)),
            "note": _plain("note", _note),
            "exists": _plain("exists", lambda r: _note(r, False)),
            "signed": _plain("signed", _contract),
            "switch": _switch,
            "withdraw": _withdraw,
            "two": _two,
            "paid_now": _paid_now,
        },
    )


# ---------------------------------------------------------------- who speaks


class User(ScriptUser):
    topics = {"who": re.compile(r"\byour( full)? name\b", re.I)}  # noqa: RUF012


class Expert(script.Expert):
    """Follows office.md."""

    def once(self) -> Script:
        wanted = self.request or {}
        if wanted["do"] == "contract":
            path = f"{ROOT}/contracts/{wanted['firm']}.txt"
            return (
                yield from self.refuse(self.refused(path, "signed"), f"{path} is signed and stays as it is.")
            )
        path = _path({"data": wanted})
        text = yield Call("read_text_file", {"path": path})
        there = not isinstance(text, Refused)
        if wanted["do"] == "archive":
            if "status: paid" not in str(text):
                return (yield from self.refuse(self.refused(path, "unpaid"), f"{path} is not paid yet."))
            what, write = f"move {path} to {ROOT}/archive", Call("move_file", archived(path))
        elif wanted["do"] == "phone":
            if not there:
                return (yield from self.refuse(self.refused(path, "unknown"), f"there is no {path}."))
            before = str(text).split("phone: ")[1].split("\n")[0]
            what = f"change the phone number in {path} from {before} to {wanted['phone']}"
            write = Call("edit_file", phone_edit(path, before, wanted["phone"]))
        else:
            if there:
                return (
                    yield from self.refuse(self.refused(path, "exists"), f"there is a note {path} already.")
                )
            what = f'write "{wanted["text"]}" to {path}'
            write = Call("write_file", {"path": path, "content": wanted["text"]})
        return (yield from self.settle(f"I will {what}.", [write], "Done.", self.refused(path, "withdrawn")))

    def refused(self, path: str, reason: str) -> Call:
        return Call("record_refusal", {"path": path, "reason": reason})
