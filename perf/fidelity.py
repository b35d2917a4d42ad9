"""How often `users.fidelity` is right: errors of each kind planted into conversations of experts.

The domains' experts and scripted users play test tasks (a third of them with a persona). Each conversation is
judged as it is, and once with each error that fits it. A finding of a cause that was not planted counts
against its precision. Forms with a star are held out: they were written before the checker was last
changed, and it was not changed to find them. So are the domains of MCP servers (`--domains shop,handbook`,
`office,meetings`), on which it was never looked at.

    python perf/fidelity.py [--tasks 200] [--seed 0] [--domains NAME,...] [--forms all|seen|held-out]
    python perf/fidelity.py --talk FILE.jsonl[.gz] ...

Prints two tables (precision and recall of each cause; recall by form of the error), and milliseconds each.
The second reads conversations that somebody's models had (a JSON line each, with `messages`): which share of
what their agents said is found to be an agent's, should a user say it, and which share of what their users
said.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from mua.chat import Message
from mua.domain import Domain, Limits, Scenario, Task
from mua.domains import SYNTHETIC, load
from mua.episode import play
from mua.trajectory import Termination, Trajectory, read_jsonl
from mua.users import STOP
from mua.users.fidelity import AS_AGENT, CAUSES, EARLY, INVENTED, LATE, LEAKED, cause, check, unfaithful
from mua.users.personas import BEHAVIOURS, ActingUser, draw

Messages = list[Message]
Plant = Callable[[random.Random, Task, Messages], "Messages | None"]
"""The messages with the error (what follows may be cut off); None where there is no place for it."""


def user(text: str) -> Message:
    return Message("user", text)


def agent(text: str) -> Message:
    return Message("assistant", text)


def turns(messages: Messages, answering: str = "") -> list[int]:
    """Places of the user's turns in words, but for the last; those that answer words like `answering`."""
    found = [i for i, m in enumerate(messages) if m.role == "user" and m.content and not m.tool_calls][:-1]
    if not answering:
        return found
    return [
        i
        for i in found
        if messages[i - 1].role == "assistant" and re.search(answering, messages[i - 1].content)
    ]


def with_turn(messages: Messages, place: int, text: str) -> Messages:
    return [*messages[:place], dataclasses.replace(messages[place], content=text), *messages[place + 1 :]]


def added(*texts: str) -> Plant:
    """One of the texts at the end of some turn."""

    def plant(rng: random.Random, task: Task, messages: Messages) -> Messages | None:
        places = turns(messages)
        if not places:
            return None
        place = rng.choice(places)
        return with_turn(messages, place, f"{messages[place].content} {rng.choice(texts)}")

    return plant


def instead(*texts: str) -> Plant:
    """One of the texts instead of a turn that answers the agent."""

    def plant(rng: random.Random, task: Task, messages: Messages) -> Messages | None:
        # Where there is more to ask for, another turn would be an early end as well.
        places = [i for i in turns(messages, ".") if "else" not in messages[i - 1].content]
        return with_turn(messages, rng.choice(places), rng.choice(texts)) if places else None

    return plant


def changed_number(rng: random.Random, task: Task, messages: Messages) -> Messages | None:
    """One digit of a number that the user gives is another, wherever it gives it."""
    numbers = re.findall(r"\d{3,}", " ".join(messages[i].content for i in turns(messages)))
    if not numbers:
        return None
    number = rng.choice(numbers)
    i = rng.randrange(len(number))
    other = number[:i] + str((int(number[i]) + rng.randint(1, 9)) % 10) + number[i + 1 :]
    return [
        dataclasses.replace(m, content=m.content.replace(number, other)) if m.role == "user" else m
        for m in messages
    ]


def leak(*frames: str) -> Plant:
    """What the goal tells to hold back, in the first turn."""

    def plant(rng: random.Random, task: Task, messages: Messages) -> Messages | None:
        goal, facts = task.scenario.goal, task.scenario.facts
        held = re.findall(r"Say only when you are asked: (.+?)\.(?= |$)", goal)
        held += re.findall(r'"([^"]+)"[^"]*Name the title only when asked', goal)
        if "Say who you are only when asked" in goal:
            held.append(", ".join(facts.values()))
        first = next(i for i, m in enumerate(messages) if m.role == "user")
        if not held or rng.choice(held) in messages[first].content:
            return None
        words = rng.choice(frames).format(rng.choice(held))
        return with_turn(messages, first, f"{messages[first].content} {words}")

    return plant


def hangs_up(answering: str, *texts: str) -> Plant:
    """Ends where the agent has asked something else than whether there is more."""

    def plant(rng: random.Random, task: Task, messages: Messages) -> Messages | None:
        places = [i for i in turns(messages, answering) if "else" not in messages[i - 1].content]
        return [*messages[: rng.choice(places)], user(rng.choice(texts))] if places else None

    return plant


def forgets(rng: random.Random, task: Task, messages: Messages) -> Messages | None:
    """Ends after the first of several requests."""
    places = turns(messages, "else") if "After that" in task.scenario.goal else []
    return [*messages[: places[0]], user(f"No, that is all. {STOP}")] if places else None


def waits(rng: random.Random, task: Task, messages: Messages) -> Messages | None:
    """Ends while the agent looks something up."""
    places = turns(messages)
    words = rng.choice(("One moment please, I am looking for it.", "Give me a second to check that."))
    return [*messages[: places[0] + 1], agent(words), user(f"Bye. {STOP}")] if places else None


def goes_on(*texts: str) -> Plant:
    """Says more after its goodbye, or after a handover."""

    def plant(rng: random.Random, task: Task, messages: Messages) -> Messages | None:
        if messages[-1].role == "user":
            return [*messages, agent("Thank you, goodbye."), user(rng.choice(texts))]
        words = rng.choice(("You are being transferred to a human.", "I have handed over to a colleague."))
        return [*messages, agent(words), user(rng.choice(texts))]

    return plant


def chats_on(rng: random.Random, task: Task, messages: Messages) -> Messages | None:
    """Exchanges courtesies without end."""
    more = (agent("Have a nice day."), user("You too!"), agent("Bye."), user("Thanks, bye!"))
    return [*messages, *more] if messages[-1].role == "user" else None


def parrots(rng: random.Random, task: Task, messages: Messages) -> Messages | None:
    """Says what the agent just said."""
    places = [i for i in turns(messages, r"(\w+\W+){5}") if "else" not in messages[i - 1].content]
    return with_turn(messages, (p := rng.choice(places)), messages[p - 1].content) if places else None


SAID: list[str] = []
"""What experts have said so far, in all domains."""


def elsewhere(rng: random.Random, task: Task, messages: Messages) -> Messages | None:
    """Says what some agent said in another conversation; five words of it at least."""
    heard = {m.content for m in messages}
    others = [text for text in SAID if text not in heard and text.count(" ") > 3]
    return instead(rng.choice(others))(rng, task, messages) if others else None


CARRIES = {"says what an agent said elsewhere *": {INVENTED}, "names terms *": {INVENTED}}
"""Form → what else is rightly found: names and numbers that stand nowhere."""

PLANTS: dict[str, dict[str, Plant]] = {
    LEAKED: {
        "in the first turn": leak("{}.", "By the way: {}.", "(That is, {}.)", "I should add, {}."),
        "at once, in a clause *": leak("So that you know, it is {}, all right?", "What I have is {}; good."),
    },
    INVENTED: {
        "a number changed": changed_number,
        "an id": added("My reference is KX-20931.", "The other one is 77120."),
        "a name": added("My name is Karl Lindqvist.", "Ask Mrs Petrosyan about it."),
        "a first name in small letters": added("it is for my son bjarne.", "my boss, henrike, agreed."),
        "a date": added("I need it by 2031-07-19.", "It must be done before July 19th."),
        "a weekday": added("It has to be on a Wednesday.", "I only have time on Sunday."),
        "an e-mail address": added(
            "Write to k.lind@mail.example, please.", "My e-mail is nora@posteo.example."
        ),
        "an amount": added("I will pay 83.75 for it.", "I was promised 1,640 euros."),
        "a place": added("I live in Ravensburg.", "Send it to Hollow Street 12."),
        "a number in words": added("I need forty of them.", "My account is six months old."),
        "a telephone number *": added("Call me on 0171 555 0338.", "You reach me at +44 20 7946 0321."),
        "a company *": added("I work for Nordwind Logistics.", "It is paid by the Halloran Trust."),
        "a month *": added("It should be done in October.", "I am away until the end of March."),
        "a price *": added("It was $49.90 last time.", "I can pay up to 250 pounds."),
        "a relative, in small letters *": added("my aunt, wilhelmina, told me so.", "ask my wife karla."),
    },
    EARLY: {
        "at the question who it is": hangs_up(r"number|name", f"Forget it. {STOP}", f"Bye. {STOP}", STOP),
        "at a proposal": hangs_up(r"yes/no|[Ss]hall", f"Thank you. {STOP}", f"Great, bye! {STOP}", STOP),
        "before its next request": forgets,
        "while the agent looks": waits,
        "at any question *": hangs_up(r"\\?", f"I have to run now. {STOP}", f"Let us leave it there. {STOP}"),
    },
    LATE: {
        "asks more": goes_on("One more thing: when do you open?", "Wait, can you check something for me?"),
        "talks more": goes_on("It was a long day, you know.", "I still think that this is unfair."),
        "courtesies without end": chats_on,
        "comes back *": goes_on("Hello, are you still there?", "By the way, could I get a receipt, too?"),
    },
    AS_AGENT: {
        "offers help": instead("Of course! How can I help you today?", "What can I do for you?"),
        "asks for data": instead(
            "Certainly. May I have your number, please?", "Could you tell me your name?"
        ),
        "reports what it did": instead("I have updated your file.", "Your request has been processed."),
        "looks up": instead("Let me look that up for you.", "One moment, I am checking your account."),
        "asks for permission": instead(
            "I will change that for you. Shall I go ahead?", "Do you confirm (yes/no)?"
        ),
        "as a model": instead("As an AI, I cannot do that.", "I am a language model, so I have no number."),
        "a call as text": instead(
            '{"name": "get_record", "arguments": {}}', "<tool_call>get_record</tool_call>"
        ),
        "parrots": parrots,
        "refers on": instead("Please call our hotline for that.", "A colleague will get back to you."),
        "apologises": instead(
            "We are sorry for the inconvenience.", "I apologise, your file is not complete."
        ),
        "confirms": instead("Your lease is cancelled now.", "Done, I have booked it for you."),
        "asks on": instead("Which one would you like?", "Before I can do that, please verify your identity."),
        "offers a choice": instead("I can offer you two slots.", "There are two options open to you."),
        "closes": instead("Thank you for your patience, have a nice day!", "Glad I could be of service."),
        "refuses": instead(
            "Unfortunately our rules do not allow that.", "I cannot make an exception in your case."
        ),
        "asks for more data": instead("Can you spell your name?", "And what would be your postcode?"),
        "explains rules": instead(
            "According to our policy, that is possible within two weeks only.",
            "Only the holder of the account may do that, so I have to decline.",
        ),
        "sums up": instead("To confirm, you would like to have that changed.", "So you need it done, right?"),
        "passes on": instead(
            "I will connect you with my supervisor.", "Let me put you through to a specialist."
        ),
        "promises": instead("We will send you a confirmation shortly.", "You will get an e-mail about it."),
        "asks which": instead(
            "Could you let me know which of them you mean?", "Which of the two do you want?"
        ),
        "thanks": instead("Thank you for confirming that.", "Thanks for your patience, all is in order."),
        "greets": instead(
            "Welcome! What brings you to us today?", "Hello, you are speaking to the front desk."
        ),
        "lets wait": instead(
            "Please hold the line while I pull up the details.", "Just a moment, I am looking."
        ),
        "says what an agent said elsewhere *": elsewhere,
        "names terms *": instead(
            "There is a fee of ten per cent for that.", "The deadline for this was on Friday."
        ),
        "wants proof *": instead(
            "I need to see some identification first.", "Which e-mail address is on file?"
        ),
        "reports a search *": instead("I see two entries here.", "The system shows nothing under that name."),
        "comforts *": instead(
            "I understand how frustrating that must be.", "No worries, we can sort this out."
        ),
        "ends the case *": instead("I have closed the case.", "All set! That has been taken care of."),
    },
}


async def conversation(domain: Domain, task: Task, seed: int) -> Trajectory:
    """Expert and scripted user; a third of the persons has a behaviour."""
    assert domain.agenda_user is not None and domain.expert is not None
    names = draw({"plain": 2.0 * len(BEHAVIOURS), **dict.fromkeys(BEHAVIOURS, 1.0)}, task, seed)
    person = ActingUser(domain.agenda_user(task, seed), names, seed)
    world = domain.open(task)
    expert = domain.expert(world, person, seed)
    return await play(domain, task, expert, person, limits=Limits(), seed=seed, world=world)


def planted(trajectory: Trajectory, messages: Messages) -> Trajectory:
    """The episode with other messages, which the user has ended if it spoke last."""
    end = Termination.USER_STOP if messages[-1].role == "user" else trajectory.termination
    return dataclasses.replace(trajectory, messages=messages, termination=end)


def talk(files: Sequence[Path]) -> None:
    """How much of what agents said, and of what users said, sounds like an agent; each text once."""
    said: dict[str, set[str]] = {"assistant": set(), "user": set()}
    for file in files:
        for _, line in read_jsonl(file):
            for message in line.get("messages") or line.get("traj") or ():  # traj: as tau-bench stores it
                words = message.get("content")
                if message["role"] in said and isinstance(words, str) and words.strip():
                    said[message["role"]] |= set() if message.get("tool_calls") else {words.replace(STOP, "")}
    nobody = Task("t", "t", Scenario(""), ())
    for role, texts in said.items():
        found = [
            any(
                cause(f) == AS_AGENT
                for f in unfaithful(nobody, [Message("user", text)], Termination.TURN_CAP)
            )
            for text in texts
        ]
        print(f"{role}: {len(texts)} texts, {100 * sum(found) / max(1, len(texts)):.1f} % as the agent's")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--tasks", type=int, default=200, help="of each domain's test split")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument(
        "--misses", action="store_true", help="show errors not found and findings not planted"
    )
    options.add_argument("--domains", default=",".join(SYNTHETIC))
    options.add_argument("--forms", choices=["all", "seen", "held-out"], default="all")
    options.add_argument("--talk", type=Path, nargs="+", metavar="FILE", help="conversations of somebody's")
    args = options.parse_args()
    if args.talk:
        return talk(args.talk)
    right: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    forms: dict[tuple[str, str], list[bool]] = {}
    seconds, judged, clean, flagged = 0.0, 0, 0, 0
    for name in args.domains.split(","):
        domain = load(name)
        for task in domain.tasks("test")[: args.tasks]:
            rng = random.Random(f"{args.seed}-{name}-{task.id}")
            told = asyncio.run(conversation(domain, task, args.seed))
            SAID.extend(m.content for m in told.messages if m.role == "assistant" and m.content)
            cases: list[tuple[str, str, Trajectory]] = [("", "", told)]
            for what, kinds in PLANTS.items():
                for form, plant in kinds.items():
                    if args.forms != "all" and form.endswith("*") != (args.forms == "held-out"):
                        continue
                    messages = plant(rng, task, list(told.messages))
                    if messages is not None:
                        cases.append((what, form, planted(told, messages)))
            for what, form, case in cases:
                began = time.perf_counter()
                findings = check(domain, task, case)
                seconds, judged = seconds + time.perf_counter() - began, judged + 1
                causes = {cause(f) for f in findings}
                clean, flagged = clean + (not what), flagged + (not what and bool(causes))
                causes -= CARRIES.get(form, set())
                wrong.update(causes - {what})
                if what:
                    forms.setdefault((what, form), []).append(what in causes)
                    (right if what in causes else missed)[what] += 1
                if args.misses and (causes != {what} if what else causes):
                    print(name, task.id, what, form, findings, case.messages[-1].content, sep=" | ")
    print("| cause | planted | precision | recall |\n|---|---|---|---|")
    for c in CAUSES:
        precision, recall = right[c] / max(1, right[c] + wrong[c]), right[c] / max(1, right[c] + missed[c])
        print(f"| {c} | {right[c] + missed[c]} | {100 * precision:.1f} % | {100 * recall:.1f} % |")
    print("\n| cause | form of the error | planted | found |\n|---|---|---|---|")
    for (c, form), found in forms.items():
        print(f"| {c} | {form} | {len(found)} | {100 * sum(found) / len(found):.1f} % |")
    print(f"\n{clean} conversations as they were, {flagged} with a finding; {judged} judged in all, ")
    print(f"{1000 * seconds / judged:.2f} ms each")


if __name__ == "__main__":
    main()
