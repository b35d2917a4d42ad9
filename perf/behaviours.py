"""How often the rules of `transcripts.behave` recognise a behaviour of a user whose behaviour is known.

    python perf/behaviours.py [TASKS]

Each behaviour is played by the agenda user over tasks of five domains, beside plain users of the same
tasks. A
behaviour counts where it was played out: where the user's words differ from the plain user's. Recall is over
those, precision over all that were recognised with none played but it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter

from mua.coldstart.conversations import play_expert
from mua.domains import SYNTHETIC, load
from mua.episode import Limits
from mua.transcripts.behave import behaviours
from mua.transcripts.distance import users_words
from mua.users.personas import BEHAVIOURS


def main(count: int) -> None:
    right: Counter[str] = Counter()
    played: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    plain = 0
    for name in SYNTHETIC:
        domain = load(name)
        for number, task in enumerate(domain.tasks("test")[:count]):
            usual = asyncio.run(play_expert(domain, task, number, Limits()))
            before = behaviours(usual.messages)
            plain += 1
            wrong.update(before)
            for behaviour in BEHAVIOURS:
                acted = asyncio.run(play_expert(domain, task, number, Limits(), personas={behaviour: 1.0}))
                differs = users_words(acted.messages) != users_words(usual.messages)
                if acted.persona == behaviour and differs and behaviour not in before:
                    played[behaviour] += 1
                    right[behaviour] += behaviour in behaviours(acted.messages)
    print(f"{plain} plain conversations")
    for behaviour in BEHAVIOURS:
        n = played[behaviour]
        print(
            f"{behaviour:<20} recall {right[behaviour] / max(1, n):.3f} of {n:<5} "
            f"of plain users {wrong[behaviour] / plain:.3f}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
