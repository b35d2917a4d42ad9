"""Simulated users: personas that change no task, fidelity, separation, and the comparison of users."""

import asyncio
import dataclasses
import json
from pathlib import Path

import pytest

from fake_server import FakeServer, chat
from mua import cli, pipeline
from mua.chat import Message
from mua.config import load_config
from mua.domain import Limits, Scenario, Task
from mua.domains import SYNTHETIC, load
from mua.episode import play
from mua.errors import MuaError
from mua.evaluate.run import EvalSettings, evaluate
from mua.rollout import RolloutSettings, play_groups
from mua.trajectory import Termination, Trajectory
from mua.users import ASIDE, STOP, UserTurn
from mua.users.fidelity import CAUSES, EARLY, INVENTED, LATE, LEAKED, cause, rates, unfaithful
from mua.users.llm import llm_user_prompt
from mua.users.personas import BEHAVIOURS, MIXES, ActingUser, draw, mix_name, told, with_personas


async def conversation(domain, task, names, seed=0) -> Trajectory:
    person = ActingUser(domain.agenda_user(task, seed), names, seed)
    world = domain.open(task)
    expert = domain.expert(world, person, seed)
    return await play(domain, task, expert, person, limits=Limits(), seed=seed, world=world)


# ---------------------------------------------------------------- personas


@pytest.mark.parametrize("name", SYNTHETIC)
def test_behaviours_change_no_task_and_stay_true_to_the_scenario(name):
    """Every behaviour, and two together: solved, within the rules of conduct, faithful; and they do act."""
    domain = load(name)
    acted = set()
    for number, task in enumerate(domain.tasks("test")[:70]):
        behaviour = list(BEHAVIOURS)[number % len(BEHAVIOURS)]
        for names in [(behaviour,), ("terse", "confused", behaviour)]:
            if not all(BEHAVIOURS[n].fits(task) for n in names):
                continue
            trajectory = asyncio.run(conversation(domain, task, names))
            plain = asyncio.run(conversation(domain, task, ()))
            assert trajectory.reward == 1.0, (task.id, names, trajectory.reason)
            assert domain.violations is None or domain.violations(task, trajectory.messages) == []
            assert unfaithful(task, trajectory.messages, trajectory.termination, domain.tools("user")) == []
            assert (trajectory.persona, plain.persona) == ("+".join(names), "plain")
            if trajectory.messages != plain.messages:
                acted.add(behaviour)
    assert acted == {n for n in BEHAVIOURS if n != "changes_goal"} | (acted & {"changes_goal"})


def test_a_persona_is_drawn_by_seed_and_task_and_plays_only_what_fits():
    tasks = load("property_rental").tasks("test")
    drawn = [draw(MIXES["all"], t, 5) for t in tasks]
    assert drawn == [draw(MIXES["all"], t, 5) for t in tasks] != [draw(MIXES["all"], t, 6) for t in tasks]
    assert {n for names in drawn for n in names} == set(BEHAVIOURS)
    for task in tasks:
        changes = draw({"changes_goal": 1}, task, 0) == ("changes_goal",)
        assert changes == any({"change", "withdraw"} & r.keys() for r in task.scenario.agenda["requests"])


class Inner:
    """Repeats what it was shown."""

    name = "inner"

    def __init__(self):
        self.views = []

    async def reply(self, view):
        self.views.append([m.content for m in view])
        return UserTurn("I want to renew my book." if not view else "My card is 1234.")


def test_the_inner_user_sees_a_conversation_without_the_act():
    async def talk(answer):
        inner = Inner()
        user = ActingUser(inner, ("emotional", "confused"), 1)
        view = []
        for agent in ("What is your card number?", answer, ""):
            turn = await user.reply(view)
            view += [Message("user", turn.text), Message("assistant", agent)]
        assert user.act == {} or user.act["do"] == ASIDE
        return inner.views, [m.content for m in view[::2]]

    views, said = asyncio.run(talk("I mean: what is your card number?"))
    assert said[0].startswith("I want to renew my book. ") and said[1] in BEHAVIOURS["confused"].asides
    assert views == [[], ["I want to renew my book.", "I mean: what is your card number?"]]
    views, _ = asyncio.run(talk("It stands on the back of it."))  # the question from before stands
    assert views[1] == ["I want to renew my book.", "What is your card number?"]


def test_a_language_model_is_told_its_behaviour():
    task = Task("t", "t", Scenario("You want X.", persona="You are polite."), ())
    prompt = llm_user_prompt(told(task, ("terse", "slips")).scenario)
    assert (
        "You are polite. You write as few words as you can" in prompt and "swap two of its digits" in prompt
    )
    theirs = dataclasses.replace(task, scenario=Scenario("", prompt="Play a customer."))
    assert told(theirs, ("terse",)).scenario.prompt.startswith(
        "Play a customer.\n\n# How you behave\nYou write"
    )
    made = []
    make = with_personas(lambda t, s: made.append(t) or Inner(), {"terse": 1}, 0, instructed=True)
    user = make(task, 0)
    assert (
        "few words" in made[0].scenario.persona and isinstance(user, ActingUser) and user.persona == "terse"
    )
    assert asyncio.run(user.reply([])).text == "I want to renew my book."  # told, not acted


def test_a_mix_in_the_configuration():
    config = load_config("quickstart", ["eval_user.personas=difficult", "train_user.personas={terse: 2}"])
    assert mix_name(config.eval_user.personas) == "difficult"
    assert pipeline.user_name(config.train_user) == "local:user as terse=2"
    assert load_config("quickstart").eval_user.personas == {}
    for bad in ("rude", "{rude: 1}", "{terse: -1}", "{terse: 0}"):
        with pytest.raises(MuaError, match=r"eval_user.personas"):
            load_config("quickstart", [f"eval_user.personas={bad}"])


# ---------------------------------------------------------------- fidelity

GOAL = "You want to renew your loan. Say who you are only when asked. After that, you want to pay your fines."
CARD = Task("t", "t", Scenario(GOAL, {"card": "1546"}), ())


def strayed(*turns: str, end=Termination.USER_STOP) -> list[str]:
    """Agent and user in turn, the user first."""
    roles = ("user", "assistant")
    messages = [Message(roles[i % 2], text) for i, text in enumerate(turns)]  # type: ignore
    return [cause(f) for f in unfaithful(CARD, messages, end)]


FIRST = ("I want to renew my loan.", "Your card number, please?", "1546.", "Renewed. Anything else?")
REST = ("I want to pay all my fines.", "Paid. Anything else?")


def test_what_the_checker_finds():
    good = (*FIRST, *REST, f"No, thanks. {STOP}")
    assert strayed(*good) == []
    assert strayed(f"{FIRST[0]} My card is 1546.", *good[1:]) == [LEAKED]
    assert strayed(*good[:2], "1547.", *good[3:]) == [INVENTED]
    assert strayed(*good[:2], "1564. Sorry, I got that wrong: 1546.", *good[3:]) == []
    assert strayed(*FIRST, f"Bye. {STOP}") == [EARLY]
    assert strayed(*FIRST, REST[0], "Shall I charge your card?", f"Bye. {STOP}") == [EARLY]
    asks = ("Shall I charge your card?", "I want to pay all my fines.") * 3
    assert strayed(*FIRST, REST[0], *asks[:-1], f"Bye. {STOP}") == []  # it goes in circles
    assert strayed(*good, "Goodbye.", "One more thing: how late are you open?") == [LATE]
    assert strayed(*FIRST, end=Termination.TURN_CAP) == []
    shares = rates([[], [f"{LEAKED}: x", f"{LEAKED}: y"], [f"{LATE}: z", f"{LEAKED}: x"], []])
    assert (shares["faithful"], shares[LEAKED], shares[LATE], shares[EARLY]) == (0.5, 0.5, 0.25, 0.0)
    assert shares.keys() == {"faithful", *CAUSES}


class Liar:
    """Says what nobody knows, in every second episode, and leaves."""

    name = "liar"

    def __init__(self, lies: bool):
        self.lies = lies

    async def reply(self, view):
        return UserTurn(f"{'I was told 99123 euros. ' if self.lies else ''}Bye. {STOP}", stop=True)


class Silent:
    trace = None

    def close(self): ...


def test_unfaithful_episodes_can_be_left_out_of_training():
    domain = load("library:desk")
    settings = RolloutSettings(groups=1, group_size=6, freeze_opening=False)

    def groups(unfaithful: str):
        users = iter([True, False] * 3)
        (group,) = asyncio.run(
            play_groups(
                domain,
                domain.tasks("train")[:1],
                lambda *_: Silent(),  # type: ignore[arg-type,return-value]
                lambda task, seed: Liar(next(users)),
                settings.model_copy(update={"unfaithful": unfaithful}),
            )
        )
        return group

    kept, dropped = groups("keep"), groups("drop")
    assert (len(kept.trajectories), len(kept.unfaithful)) == (6, 0)
    # All of them leave too early, too: nothing is left to learn from.
    assert (len(dropped.trajectories), len(dropped.unfaithful), dropped.excluded) == (0, 6, 0)
    stored = Trajectory.from_dict(dropped.unfaithful[0].to_dict())
    assert stored.unfaithful and stored.reward == 0.0 and stored == dropped.unfaithful[0]


def test_an_evaluation_counts_fidelity_and_personas(tmp_path: Path):
    domain = load("library")
    make = with_personas(domain.agenda_user, {"plain": 1, "terse": 1}, 0, instructed=False)  # type: ignore

    class Rude:
        trace = None

        def close(self): ...

        async def step(self, messages):
            from mua.agents import AgentStep

            return AgentStep(Message("assistant", "No. Anything else?"))

    result = asyncio.run(
        evaluate(domain, domain.tasks("test"), lambda *_: Rude(), make, EvalSettings(tasks=20), out=tmp_path)
    )
    data = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert set(data["by_persona"]) == {"plain", "terse"}
    assert sum(p["n"] for p in data["by_persona"].values()) == 20
    assert data["fidelity"]["faithful"] == result.fidelity["faithful"] > 0.9


# ---------------------------------------------------------------- separation


def test_one_simulator_for_training_and_evaluation_is_refused(tmp_path):
    one = ["train_user.kind=agenda"]
    with pytest.raises(MuaError, match=r"same simulator \(agenda\).*eval.same_user=true"):
        pipeline.open_run(load_config("quickstart", one), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # How it behaves makes it no other one.
    with pytest.raises(MuaError, match="same simulator"):
        pipeline.open_run(load_config("quickstart", [*one, "eval_user.personas=all"]), tmp_path / "run")
    pipeline.check_separation(load_config("quickstart"), load("library:desk"))
    pipeline.check_separation(load_config("quickstart", [*one, "eval.same_user=true"]), load("library:desk"))
    for recipe in ("laptop", "paper-8b"):
        path = Path(__file__).parents[1] / "recipes" / f"{recipe}.yaml"
        pipeline.check_separation(load_config(path), load("library"))


# ---------------------------------------------------------------- comparing users


def test_users_compare(tmp_path, monkeypatch, capsys):
    with FakeServer(
        lambda body: chat(f"I am done. {STOP}" if body["model"] == "u" else "Anything else?")
    ) as s:
        words = [
            "users",
            "compare",
            "endpoint:a",
            "--domain",
            "library",
            "--tasks",
            "3",
            "--out",
            str(tmp_path),
        ]
        words += ["--users", "agenda, agenda+injects,endpoint:u", "--base-url", s.url]
        monkeypatch.setattr("sys.argv", ["mua", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    out = capsys.readouterr()
    assert not ended.value.code, out.err
    data = json.loads((tmp_path / "eval" / "users_a.json").read_text())
    assert list(data["users"]) == ["agenda", "agenda+injects", "endpoint:u"]
    assert [found[0]["n"] for found in data["users"].values()] == [3, 3, 3]
    assert data["users"]["agenda+injects"][0]["by_persona"]["injects"]["n"] == 3
    assert data["users"]["endpoint:u"][0]["fidelity"]["faithful"] == 0.0
    assert "too early" in out.out
