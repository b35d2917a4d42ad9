"""One conversation in the terminal: `mua play`.

Invariant: what was said is saved before it is judged, and is saved whole.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import MuaError
from .options import AnyConfig, ApiKeyEnv, BaseUrl, DomainName, Overrides, UserName
from .running import configure, first_lines
from .tasks import of_kind

if TYPE_CHECKING:
    from ..domain import Domain, Task


def play(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="The agent you talk to: a model folder, a run folder (its last model), or endpoint:NAME.",
            show_default=False,
        ),
    ] = "",
    overrides: Overrides = None,
    side: Annotated[
        Literal["user", "agent"],
        typer.Option("--as", help="Who you are: the user of MODEL, or the agent of a simulated user."),
    ] = "user",
    domain: DomainName = "",
    split: Annotated[str, typer.Option(help="Split that the task is drawn from.")] = "test",
    kind: Annotated[str, typer.Option(help="Only tasks of this kind.", show_default=False)] = "",
    task: Annotated[str, typer.Option(metavar="ID", help="This task, instead of a random one.")] = "",
    user: UserName = "",
    config: AnyConfig = "",
    temperature: Annotated[float, typer.Option(min=0, help="Of MODEL.")] = 0.0,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.jsonl", help="The conversation is added to it.")
    ] = Path("runs/play.jsonl"),
    base_url: BaseUrl = "",
    api_key_env: ApiKeyEnv = "",
) -> None:
    """One conversation in the terminal, you on one side; saved, graded and audited at its end."""
    import asyncio
    import json
    import random

    from .. import pipeline, speakers
    from ..agents.human import HumanAgent
    from ..domains import load
    from ..episode import play as play_episode
    from ..users.human import LEFT, HumanUser, leavable

    if side == "agent" and "=" in model:  # no model is named then, so the first override stands there
        model, overrides = "", [model, *(overrides or ())]
    if side == "user" and not model:
        raise MuaError(
            "name the one model that you want to talk to: its folder, a run folder, or endpoint:NAME. "
            "To be the agent yourself: `mua play --as agent`."
        )
    if side == "agent" and model:
        raise MuaError(f"you are the agent, so there is no place for '{model}'; name the user by --user.")
    if side == "user" and user:
        raise MuaError("you are the user yourself; leave --user out, or be the agent: --as agent.")
    speaker = speakers.find(model)[-1] if model else None
    run = speaker.run if speaker else speakers.run_of(user)
    more = speakers.user_overrides(user, run, base_url, api_key_env) if user else {}
    if domain:
        more["domain"] = domain
    settings = configure(config or (run and run / "config.yaml"), overrides, more)
    place = load(settings.domain)
    chosen = place.task(task) if task else _random_task(place, split, kind)
    seed = random.randrange(2**31)

    async def converse() -> Any:
        players = pipeline.Players.of(settings)
        try:
            if speaker:
                at, _ = await speakers.agent_makers(settings, place, speaker, players, base_url, api_key_env)
                agent: Any = at(temperature)(chosen, "play", seed)
                customer: Any = HumanUser(chosen, tools=place.task_tools(chosen, "user"))
                agent.step = leavable(agent.step)
            else:
                make_user, _ = await pipeline.user_maker(run, settings, settings.eval_user, players)
                agent, customer = HumanAgent(place.task_tools(chosen)), make_user(chosen, seed)
                customer.reply = leavable(customer.reply)
            return await play_episode(place, chosen, agent, customer, limits=settings.limits, seed=seed)
        finally:
            await players.close()

    _line_editing()
    with _added_to(out) as add:
        try:
            played = asyncio.run(converse())
        except KeyboardInterrupt:  # before anything was said, or a second time
            print(f"\n{LEFT}; it was not scored.")
            return
        add(json.dumps(played.to_dict(), ensure_ascii=False))
    _played(place, chosen, played)
    print(f"saved: {out}")


def _line_editing() -> None:
    """Lines as people type them: edited, of any length, and with bytes that are no text replaced."""
    with contextlib.suppress(ImportError):  # not every Python has it
        import readline  # noqa: F401
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]


@contextlib.contextmanager
def _added_to(path: Path) -> Iterator[Callable[[str], None]]:
    """Adds whole lines to a file. It is opened first: that it cannot be written shows before the work."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab", buffering=0)
    except OSError as exc:
        raise MuaError(f"{path} cannot be written ({exc}); choose another --out.") from None

    def add(line: str) -> None:
        file.write(f"{line}\n".encode("utf-8", "backslashreplace"))

    with file:
        yield add
    if not path.stat().st_size:
        path.unlink()  # nothing was added


def _played(place: Domain, task: Task, played: Any) -> None:
    """What became of a conversation: its verdict, the state that is not as it should be, the audit."""
    from .. import display
    from ..audit import audit as audit_one
    from ..evaluate.audit import missed
    from ..users.human import LEFT

    print(f"\ntask {task.id} ({task.kind}); the conversation ended by {played.termination.value}")
    if played.reward is None:
        print(f"{LEFT}; it was not scored." if played.detail == LEFT else played.reason)
    else:
        differences = missed(place, played) if played.termination.normal and played.reward < 1 else []
        why = "the end state is not what the task asks for:" if differences else played.reason
        why = why.removeprefix("not scored: ")
        print(f"{'SOLVED' if played.reward >= 1 else 'NOT SOLVED'}: {why}")
        first_lines([f"  {words}" for words in differences], 10)
    if any(m.role == "user" for m in played.messages):
        display.conversation_audit(audit_one(place, task, played), played.messages)


def _random_task(domain: Domain, split: str, kind: str) -> Task:
    import random

    return random.choice(of_kind(domain, split, kind))
