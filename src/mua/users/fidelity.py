"""Whether the user of a conversation stayed true to its scenario.

Ways in which a simulated person spoils a conversation that the end state does not show:

- it tells what it should hold back, before it is asked (where the goal says "only when you are asked");
- it tells what it cannot know: a number, a name or an address that stands neither in its scenario, nor in
  what it heard from the agent, nor in what its own tools answered. A slip that it corrects is none;
- it ends the conversation before its requests were dealt with: it never made one of them, or it leaves while
  the agent asks or looks something up (unless the agent goes in circles);
- it goes on after it was handed over, or after its own goodbye;
- it speaks as the agent (or calls a tool that is not its own).

Invariant: a pure function of the task and the conversation. It knows no domain: it reads the scenario as a
language-model user would, so it judges scripted users and language models alike. `perf/fidelity.py` measures
how often it is right.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

from ..chat import Message
from ..database import canonical_text
from ..domain import Domain, Task
from ..trajectory import Termination, Trajectory
from . import STOP

LEAKED = "the user told before it was asked"
INVENTED = "the user told what is not in its scenario"
EARLY = "the user stopped before its requests were dealt with"
LATE = "the user went on after the end"
AS_AGENT = "the user spoke as the agent"
CAUSES = (LEAKED, INVENTED, EARLY, LATE, AS_AGENT)


def unfaithful(
    task: Task, messages: Sequence[Message], termination: Termination, tools: Collection[str] = ()
) -> list[str]:
    """Every way in which the user strayed, as `(one of CAUSES): what it said`; empty when it did not.

    `tools` are those that the user has.
    """
    return [
        *(f"{LEAKED}: {what}" for what in _leaked(task, messages)),
        *(f"{INVENTED}: {word}" for word in _invented(task, messages)),
        *(f"{EARLY}: {what}" for what in _early(task, messages, termination)),
        *(f"{LATE}: {words}" for words in _late(messages)),
        *(f"{AS_AGENT}: {words}" for words in _agent_talk(messages, tools)),
    ]


def cause(finding: str) -> str:
    """The cause that a finding of `unfaithful` belongs to."""
    return finding.partition(":")[0]


def check(domain: Domain, task: Task, trajectory: Trajectory) -> list[str]:
    """`unfaithful` for an episode. A user that the domain itself prescribes (a benchmark's script) is not
    judged: nothing it says is anybody's choice."""
    if domain.user(task, 0) is not None:
        return []
    own = domain.task_tools(task, "user")
    return unfaithful(task, trajectory.messages, trajectory.termination, own)


def rates(strayed: Iterable[Sequence[str]]) -> dict[str, float]:
    """Findings of some episodes → cause → share of the episodes in which it was found; `faithful` is the
    share with no finding at all."""
    episodes = [{cause(finding) for finding in findings} for findings in strayed]
    counts = Counter(c for causes in episodes for c in causes)
    total = max(1, len(episodes))
    return {
        "faithful": sum(not causes for causes in episodes) / total,
        **{c: counts[c] / total for c in CAUSES},
    }


# ---------------------------------------------------------------- words

_WORD = re.compile(r"[^\W_](?:[\w.,:/@#%+-]*\w)?")
_SENTENCE = re.compile(r"(?<=[.!?:])[\"')]?\s+|\n+")
_DATE = re.compile(r"\b(\d{4})-(\d\d)-(\d\d)\b")
_TIME = re.compile(r"\b(\d\d?):(\d\d)\b")
_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
_SAYS_NOTHING = frozenset(("your", "want", "with", "that", "this", "have", "from", "like", "would", "them"))


def _words(text: str) -> Iterator[str]:
    """Words and numbers as they stand, and the parts of what is joined by marks."""
    for found in _WORD.findall(text):
        word = found.lower().removesuffix("'s")
        yield word
        yield from _parts(word)


def _parts(word: str) -> list[str]:
    return re.split(r"[.,:/@#%+-]+", word)


def _spellings(text: str) -> Iterator[str]:
    """The words of a text, and how people write the dates and times in it."""
    yield from _words(text)
    for year, month, day in _DATE.findall(text):
        name, number = _MONTHS[(int(month) - 1) % 12], int(day)
        yield from (f"{year}-{month}-{day}", name, name[:3], str(int(month)), str(number))
        yield from (f"{number}{suffix}" for suffix in ("st", "nd", "rd", "th"))
    for hour, minute in _TIME.findall(text):
        twelve = str((int(hour) - 1) % 12 + 1)
        yield from (f"{hour}:{minute}", f"{twelve}:{minute}", twelve, f"{twelve}am", f"{twelve}pm")


def _stems(text: str) -> set[str]:
    """What the words of a text are about: beginnings of long words ("renewal" is as good as "renew"), and
    whatever has a digit."""
    return {
        w if any(c.isdigit() for c in w) else w[:5]
        for w in _words(text)
        if any(c.isdigit() for c in w) or (len(w) > 3 and w not in _SAYS_NOTHING)
    }


def _heard(messages: Sequence[Message]) -> list[str]:
    """What the agent said to the user."""
    return [m.content for m in messages if m.role == "assistant" and m.content.strip() and not m.tool_calls]


# ---------------------------------------------------------------- told too soon

_HOLD_BACK_WHO = re.compile(r"\bsay who you are only when (?:you are )?asked", re.I)
_HOLD_BACK = re.compile(r"\bsay only when you are asked: (.+?)\.(?=\s+[A-Z]|$)", re.I)
_HOLD_BACK_NAME = re.compile(r"\"([^\"]+)\"[^.]*\.[^.]*? ?name the \w+ only when asked", re.I)
_PERMISSION = re.compile(
    r"\(yes ?/ ?no\)|\bshall I\b|\bdo you confirm\b|\bplease confirm\b|\bgo ahead\b|\bshould I\b", re.I
)
_ANY_MORE = re.compile(r"(?:anything|something|what|how) else|any(?:thing)? more|any other|further", re.I)
_REQUEST = re.compile(r"\?|\b(?:please|tell me|give me|I need|let me know)\b", re.I)


def _held_back(task: Task) -> Iterator[tuple[str, set[str]]]:
    """What the goal tells to hold back until it is asked for, and the words that give it away."""
    goal = task.scenario.goal
    found = [m[1] for m in _HOLD_BACK.finditer(goal)] + [m[1] for m in _HOLD_BACK_NAME.finditer(goal)]
    rest = _stems(_HOLD_BACK.sub("", goal) if _HOLD_BACK.search(goal) else "")
    for words in found:
        said = _stems(words)
        numbers = {w for w in said if any(c.isdigit() for c in w)}
        if telling := (numbers or said) - rest:
            yield words, telling
    if _HOLD_BACK_WHO.search(goal):
        yield from ((value, set(_words(value))) for value in task.scenario.facts.values())


def _leaked(task: Task, messages: Sequence[Message]) -> Iterator[str]:
    held = list(_held_back(task))
    asked = False
    for message in messages:
        if message.role == "assistant" and not message.tool_calls:
            # Neither "Shall I?" nor "Anything else?" asks for data.
            rest = (s for s in _SENTENCE.split(message.content) if not _ANY_MORE.search(s))
            asked = asked or any(_REQUEST.search(s) and not _PERMISSION.search(s) for s in rest)
        elif message.role == "user" and held:
            said = set(_words(message.content)) | _stems(message.content)
            told = [(words, telling) for words, telling in held if telling <= said]
            held = [item for item in held if item not in told]
            if not asked:
                yield from (words for words, _ in told)
            # What comes later has to be asked for anew.
            asked = asked and not told


# ---------------------------------------------------------------- inventions

_MENDED = re.compile(r"\b(?:sorry|mistake|wrong|misread|mistyped|typo|I mean|I meant|correction)\b", re.I)
_COURTESY = frozenset(("mr", "mrs", "ms", "dr", "ok", "okay", "god", "english", "thanks", "thank", "you"))
_NUMBERS = dict(
    zip(
        (
            *("three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
            *("fifteen", "twenty", "thirty", "forty", "fifty", "sixty"),
        ),
        map(str, (*range(3, 13), 15, 20, 30, 40, 50, 60)),
        strict=True,
    )
)
_WAITING = re.compile(r"\b\d\d? (?:more )?(?:minutes?|mins?|seconds?|questions?|things?|times?)\b", re.I)


def _invented(task: Task, messages: Sequence[Message]) -> Iterator[str]:
    """Data in the user's words that it can have from nowhere."""
    scenario = task.scenario
    source = [scenario.goal, scenario.persona, scenario.prompt, *scenario.facts, *scenario.facts.values()]
    known = set(_spellings(" ".join([*source, canonical_text(dict(scenario.agenda))])))
    told: set[str] = set()
    for place, message in enumerate(messages):
        if message.role == "user":
            for word in _data(message.content):
                if word in told or _is_known(word, known):
                    continue
                told.add(word)
                if not _is_slip(word, known, messages[place:]):
                    yield word
        elif (message.role == "tool" and message.requestor == "user") or (
            message.role == "assistant" and not message.tool_calls
        ):
            known.update(_spellings(message.content))


def _is_known(word: str, known: set[str]) -> bool:
    # An address, a date or a time is not known by its parts.
    whole = "@" in word or _DATE.fullmatch(word) or _TIME.fullmatch(word)
    return word in known or (not whole and known.issuperset(_parts(word)))


def _is_slip(word: str, known: set[str], messages: Sequence[Message]) -> bool:
    """A number with few wrong characters that is taken back, in the same turn or the next."""
    turns = [m.content for m in messages if m.role == "user"][:2]
    for said in turns:
        if _MENDED.search(said):
            for right in known & set(_words(said)):
                if len(right) == len(word) and sum(a != b for a, b in zip(right, word, strict=True)) <= 2:
                    return True
    return False


_RELATIVES = (
    "son|daughter|wife|husband|mother|father|brother|sister|aunt|uncle|cousin|partner|friend|neighbou?r|boss|"
    "colleague|manager|assistant|flatmate"
)
_CALLED = re.compile(
    r"\b(?:name is|named|called|name's) ([a-z]{3,})\b|"
    rf"\bmy (?:{_RELATIVES}),? ([a-z]{{3,}})(?=\s*[,.!?]|\s*$)"
)
"""Where a name stands, in small letters too."""
_NO_NAME = frozenset(
    ("too", "now", "here", "please", "again", "thanks", "there", "though", "instead", "today", "tomorrow")
)


def _data(text: str) -> Iterator[str]:
    """What in the user's words is data: whatever has a digit, and names, by their capital letter or their
    place."""
    for found in _CALLED.findall(text):
        yield from (name for name in found if name and name not in _NO_NAME)
    for sentence in _SENTENCE.split(_WAITING.sub("", text.replace(STOP, ""))):
        for number, word in enumerate(_WORD.findall(sentence)):
            name = number and word[0].isupper() and not word.isupper() and word.lower() not in _COURTESY
            if any(c.isdigit() or c == "@" for c in word) or name:
                yield word.lower().removesuffix("'s")
            elif word.lower() in _NUMBERS:
                yield _NUMBERS[word.lower()]


# ---------------------------------------------------------------- the end

_QUOTED = re.compile(r'"([^"]+)"')
_WISH = re.compile(r"^(?:After that,|Then)? ?(?:you want to )?", re.I)
_LOOKING = re.compile(
    r"\b(?:one|a|just a) (?:moment|second|sec|minute)\b|\bplease (?:wait|hold)\b|\bbear with me\b|"
    r"\b(?:let me|I(?:'ll| will| am|'m)) (?:just |now )?(?:check|look|see|pull|find|search|verify)\w*\b",
    re.I,
)
_HANDED_OVER = re.compile(
    r"\b(?:transferred|handed over|passed on) to (?:a human|a colleague)|please hold on", re.I
)
_GOODBYE = re.compile(
    r"\b(?:good)?bye\b|\bthat (?:is|was|will be) (?:all|everything|it)\b|\bthat's (?:all|everything|it)\b",
    re.I,
)
_COURTEOUS = re.compile(
    r"[\W_]*(?:(?:thanks?|thank you|(?:good)?bye|you too|no|so much|very much|again)[\W_]*)*", re.I
)


def _early(task: Task, messages: Sequence[Message], termination: Termination) -> Iterator[str]:
    """What was left undone when the user ended the conversation; nothing when somebody else did."""
    if termination is not Termination.USER_STOP:
        return
    heard = _heard(messages)
    if _in_circles(heard) or (heard and _HANDED_OVER.search(heard[-1])):
        return
    said = _stems(" ".join(m.content for m in messages if m.role == "user"))
    held = {word for _, telling in _held_back(task) for word in telling}
    everything = said | _stems(" ".join(heard))
    for wish in wishes(task.scenario.goal):
        content = _stems(wish) - held
        # What it is about may have been named by the agent.
        about = {w for w in content if any(c.isdigit() for c in w)} or _stems(" ".join(_QUOTED.findall(wish)))
        if 2 * len(content & said) < len(content) or (about - held and not about & everything):
            yield f"it never asked to {wish}"
    if not heard:
        yield "the agent had said nothing"
    elif not _ANY_MORE.search(heard[-1]) and ("?" in heard[-1] or _LOOKING.search(heard[-1])):
        yield f"the agent had said: {heard[-1]}"


def _in_circles(heard: Sequence[str]) -> bool:
    """The agent has said one thing three times, "anything else?" left aside: a person may leave."""
    said = Counter(" ".join(words.lower().split()) for words in heard if not _ANY_MORE.search(words))
    return max(said.values(), default=0) > 2


def wishes(goal: str) -> list[str]:
    """The requests in a goal: what follows "You want to", "After that, …" and "Then …"."""
    found = []
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", goal):
        start = _WISH.match(sentence)
        if start and start[0]:
            found.append(sentence[start.end() :].rstrip("."))
    return found


def _late(messages: Sequence[Message]) -> Iterator[str]:
    """What the user said after the end (a handover, its own goodbye); one more "thanks, bye" is free."""
    over = False
    courtesies = 0
    for message in messages:
        if message.role == "assistant" and not message.tool_calls:
            over = over or bool(_HANDED_OVER.search(message.content))
        elif message.role == "user" and not message.tool_calls:
            words = message.content.replace(STOP, "").strip()
            if over:
                courtesies += 1
                if not _COURTEOUS.fullmatch(words) or courtesies > 1:
                    yield words
                    return
            over = over or STOP in message.content or bool(_GOODBYE.search(words))


# ---------------------------------------------------------------- the wrong side

_OF_THE_SERVICE = (
    "help assist\\w* time support patience polic\\w+ rules? terms system\\w* records? register files? "
    "end side view supervisor manager boss colleagues? team department company business agency office "
    "desk librar\\w+ branch\\w* store shop airline airport bank hotel school website site app hotline "
    "service\\w* best hands understanding efforts? advice answers? reply message suggestions? "
    "guidance instructions? steps? work attention hours position limitations? calendar database "
    "lists? catalogue? staff prices? fees? offers? recommendations? summary explanation approach "
    "judge?ment threshold clarification confirmation kind\\w* inventory stock fault mistake job day "
    "afternoon morning evening week most cheapest lowest latest prompt quick consideration "
    "flexibility honesty concern category questions? stated "
)
_YOURS = rf"\byour (?!(?:[\w'-]+ ){{0,2}}(?:{'|'.join(_OF_THE_SERVICE.split())})\b)[a-z]"
"""A person says "my loan", and "your" of what belongs to the other side. The list is of that, not of what a
domain is about."""

_ACTS = r"process|offer|issue|authori[sz]e|approve|refund|waive|override|grant|make an? exception"
_TO_THE_OTHER = "tell|give|show|send|let|call|ask|thank|remind|see|email|text|pay|need|assure|promise"
_DID = r"located|retrieved|processed|transferred|updated|cancell?ed|looked up"
_WILL = r"process|transfer|update|look up|cancel|book|issue|arrange"
_AGENT_TALK = re.compile(
    "|".join(
        (
            _YOURS,
            # offers help, and choices
            r"\bwould you (?:still )?like\b(?! m[ey]\b)|\bhow (?:can|may|else can) I (?:help|assist)",
            r"(?:anything|something) else (?:that )?I (?:can|may|could)\b|\bwhat can I do for you\b",
            r"\b(?:I|I'll|can) (?:gladly )?(?:help|assist) you\b|\bassist you\b|\bfeel free to\b",
            r"\bif you(?:'d| would)? (?:need|have|like|prefer|wish)\b[^.?!]{0,400}"
            r"\b(?:feel free|reach out|assist\w*|further|any other questions|like to proceed)\b",
            r"\bdon't hesitate\b|\b(?:available|open|possible|left) (?:to|for) you\b|\bcan offer you\b",
            # asks for data, and for permission
            r"\b(?:may|might) I (?:please )?have\b|\b(?:provide|give|tell) me your\b|\(yes ?/ ?no\)",
            r"do you confirm\b|shall I (?:go ahead|proceed)|\bplease (?:specify|bear with)\b",
            r"\bplease (?:confirm|reply)\b[^.?!]{0,400}\b(?:yes|to proceed|you'?d? (?:would )?like)\b",
            # tells the other what it wants, is and may
            r"(?<!if )(?<!do )(?<!did )(?<!that )(?<!whatever )\byou (?:want|would like|'d like|wanted) to\b",
            r"\bsince you (?:are|have|paid|booked)\b|\byou are (?:an? \w+|entitled|eligible)\b",
            r"\byou (?:currently )?have (?:the following|(?:\d+|two|three|four|several|no) )",
            r"\byou(?:'ll| will| may| should| must) (?:now |then |also |only |still )?"
            r"(?:receive|see|have to|choose)\b|\bin your case\b",
            r"\b(?:which|when|where|how many)\b[^.?!]{0,400}\b(?:you mean|"
            r"(?:do|would) you (?:want|prefer|like))\b(?! me)|"
            r"\bwhat (?:do|would) you (?:want|prefer|like)\b(?! me)|\bso you (?:want|need)\b",
            r"\byou will (?:get|be (?:sent|charged|asked|refunded|notified))\b",
            # acts for the other, or says that it may not
            rf"\b(?:I|we)(?: am|'m| are|'re)? (?:not able to|unable to|cannot|can't) (?:{_ACTS})",
            rf"\bI(?:'ve| have)(?: now| also| just)? (?:{_DID})\b(?! (?:my|it|that I|myself))",
            rf"\bI(?:'ll| will| am going to) (?:now |then )?(?:{_WILL}) (?:you|your)\b",
            r"(?:\bI(?:'ve| have| will|'ll| can)|\blet me)\b(?! got)[^.?!]{0,400}\bfor you\b",
            r"\blet me look\b[^.?!]{0,400}\bup\b|\b(?:has|have) been successfully\b",
            r"\btransfer\w* you\b|\bon your behalf\b",
            # speaks for the house
            r"\byour (?:file|record|request) (?:is|was|has)\b",
            r"\b(?:we|our \w+|a colleague|someone) (?:will |'ll )?get back to you\b",
            r"\bwe (?:are sorry|apologi[sz]e)\b|\bI(?: sincerely)? apologi[sz]e for the inconvenience",
            r"\bour (?:hotline|website|team|rules|polic(?:y|ies)|system|records|inventory|terms)\b",
            rf"\b(?:I(?:'ll| will| can| am going to)|let me) (?!(?:{_TO_THE_OTHER})\b)\w+ you\b",
            r"\bwe(?:'ll| will| can) \w+ you\b|\bspeaking (?:to|with) (?:the|our)\b|\bwhat brings you\b",
            # takes leave
            r"\byou(?:'| a)re (?:very |most )?welcome\b|\b(?:glad|happy) (?:that )?I could\b",
            r"\b(?:happy|glad|pleased|here) to (?:help|assist)\b|\bbe of service\b|\bsafe travels\b",
            r"\bthank(?:s| you) for (?:calling|contacting|waiting|your (?:patience|call|business|inquiry))",
            # is no person
            r"as an AI\b|\blanguage model\b|</?tool_call>|^\s*[\[{]\s*\"|^\s*(?:agent|assistant)\s*:",
        )
    ),
    re.I,
)
"""How the agent's side speaks: of what is the other's, for the other, for the house. A person with tools may
offer to use them, so "would you like me to" is not among it."""


def _agent_talk(messages: Sequence[Message], tools: Collection[str]) -> Iterator[str]:
    heard: set[str] = set()
    for message in messages:
        if message.role == "assistant" and not message.tool_calls:
            heard.add(" ".join(message.content.lower().split()))
        elif message.role == "user":
            if found := _AGENT_TALK.search(message.content.replace("\u2019", "'")):
                yield found[0].strip()
            elif message.content.count(" ") > 3 and " ".join(message.content.lower().split()) in heard:
                yield message.content
            yield from (f"it called {c.name}" for c in message.tool_calls if c.name not in tools)
