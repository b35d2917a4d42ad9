"""Exports for other trainers: the stepwise episode, and Gymnasium and TRL by their own libraries.

verifiers and OpenEnv pin and bring too much for this environment: `make test-exports` has theirs.
"""

import asyncio
import copy
import dataclasses
import importlib
import json
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from export_cases import Case, Replay, case, cases
from mua.agents import AgentStep
from mua.agents.model import ModelAgent
from mua.chat import Message, agent_view
from mua.coldstart.conversations import play_expert
from mua.domain import Limits
from mua.endpoint import wire
from mua.engines import Completion, Sampling
from mua.engines.local import make_engine
from mua.episode import play
from mua.errors import InfrastructureError, MuaError
from mua.exports import background
from mua.exports.stepwise import Setting, Stepwise, View, outcome, read_move, setting
from mua.formats import ChatFormat
from mua.models import tiny_llama
from mua.rollout import RolloutSettings, play_groups
from mua.seeds import derive_seed
from mua.tokenizer import train_tokenizer
from mua.trajectory import Trajectory
from toy import ScriptUser, toy_domain


async def stepwise(c: Case) -> Trajectory:
    episode = c.setting.episode(c.task, c.seed)
    agent = Replay(c.moves)
    reached = await episode.begin()
    while isinstance(reached, View):
        assert reached.messages[-1].role in ("user", "tool")
        assert reached.tools.keys() == c.setting.domain.task_tools(c.task).keys()
        reached = await episode.move(await agent.step(reached.messages))
    return reached


def test_an_episode_played_from_outside_is_the_same_episode():
    for c in cases():
        assert asyncio.run(stepwise(c)) == c.ours


def test_many_stepwise_episodes_at_once_do_not_meet():
    every = list(cases()) * 5

    async def together() -> list[Trajectory]:
        return await asyncio.gather(*(stepwise(c) for c in every))

    assert asyncio.run(together()) == [c.ours for c in every]


def test_what_fails_outside_the_conversation_is_raised_and_never_rewarded():
    domain = toy_domain()

    async def failing() -> None:
        user = ScriptUser("Cancel o1.", InfrastructureError("the user's endpoint is down"))
        episode = Stepwise(domain, domain.tasks("train")[0], user)
        assert isinstance(await episode.begin(), View)
        with pytest.raises(InfrastructureError, match="user_failed: the user's endpoint is down"):
            await episode.move(read_move("Which order?"))
        with pytest.raises(MuaError, match="the episode is over"):
            await episode.move(read_move("Hello?"))

    asyncio.run(failing())


def test_a_move_out_of_turn_is_refused_and_never_kept_for_later():
    async def impatient() -> None:
        domain, free = toy_domain(), asyncio.Event()

        class Slow(ScriptUser):
            async def reply(self, view):
                if any(m.role == "user" for m in view):
                    await free.wait()
                return await super().reply(view)

        episode = Stepwise(domain, domain.tasks("train")[0], Slow("Cancel o1.", "o1!"))
        await episode.begin()
        first = asyncio.create_task(episode.move(read_move("Which order?")))
        await asyncio.sleep(0)
        with pytest.raises(MuaError, match="not the agent's turn"):
            await episode.move(read_move("Hello?"))
        free.set()
        reached = await first
        assert isinstance(reached, View)
        assert [m.content for m in reached.messages if m.role == "assistant"] == ["Which order?"]
        free.clear()
        with pytest.raises(TimeoutError):  # whoever gives the answer up has lost the episode
            await asyncio.wait_for(episode.move(read_move("Sure?")), 0.01)
        free.set()
        with pytest.raises(MuaError, match="answer was given up"):
            await episode.move(read_move("Sure?"))
        await episode.close()

    asyncio.run(impatient())


def test_a_closed_episode_frees_its_user_and_ends():
    closed = []

    class Held(ScriptUser):
        def close(self) -> None:
            closed.append(self)

    async def leave() -> None:
        domain = toy_domain()
        episode = Stepwise(domain, domain.tasks("train")[0], Held("Cancel o1."))
        with pytest.raises(MuaError, match="has not begun"):
            await episode.move(AgentStep(Message("assistant", "Hi")))
        await episode.begin()
        await episode.close()
        await episode.close()
        with pytest.raises(MuaError, match="is over"):
            await episode.move(AgentStep(Message("assistant", "Hi")))

    asyncio.run(leave())
    assert len(closed) == 1


def test_threads_that_come_first_together_share_one_loop(monkeypatch):
    together, make = threading.Barrier(2, timeout=30), asyncio.new_event_loop

    def slowly():
        together.wait()  # neither has found a loop
        return make()

    async def where():
        return asyncio.get_running_loop()

    monkeypatch.setattr(background, "_loops", {})
    monkeypatch.setattr(background.asyncio, "new_event_loop", slowly)
    before = threading.enumerate()
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(background.run, (where(), where()))
    new = [t for t in threading.enumerate() if t not in before and t.name == "mua-episodes"]
    assert one is other and len(new) == 1
    one.call_soon_threadsafe(one.stop)
    new[0].join(30)
    one.close()


def test_held_out_tasks_are_refused_by_content_unless_one_only_evaluates():
    with pytest.raises(MuaError, match=r"held-out split 'test'.*set evaluate"):
        setting("library:desk", "test")
    assert len(setting("library:desk", "test", evaluate=True).tasks) == 300
    with pytest.raises(MuaError, match="has no split 'none'"):
        setting("library:desk", "none")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"user": "robot"}, "say agenda, or endpoint:MODEL"),
        ({"user": "endpoint:"}, "say agenda, or endpoint:MODEL"),
        ({"base_url": "http://127.0.0.1:1/v1"}, "name its model"),
        ({"user": "endpoint:m", "base_url": "nonsense"}, "'base_url': .*must look like http"),
        ({"user": "endpoint:m", "api_key_env": "MUA_NO_SUCH_KEY"}, "MUA_NO_SUCH_KEY"),
        ({"limits": {"turn": 3}}, "limits: 'turn': Extra inputs"),
        ({"domain": "nowhere"}, "there is no domain 'nowhere'"),
    ],
)
def test_a_setting_that_cannot_be_says_why(words, told):
    with pytest.raises(MuaError, match=told):
        setting(**{"domain": "library:desk", **words})


def test_moves_are_read_as_a_models_are():
    text = 'One moment.<tool_call>{"name": "f", "arguments": {"a": [1]}}</tool_call>'
    message = {"content": "One moment.", "tool_calls": [{"name": "f", "arguments": {"a": [1]}}]}
    for move in (text, message):
        (call,) = read_move(move).message.tool_calls
        assert (call.name, call.arguments, call.error) == ("f", {"a": [1]}, "")
        assert read_move(move).message.content == "One moment."
    wrong = {"tool_calls": [{"function": {"name": "f", "arguments": {"a": float("nan")}}}]}
    assert "NaN" in read_move(wrong).message.tool_calls[0].error
    assert "not valid JSON" in read_move("<tool_call>{</tool_call>").message.tool_calls[0].error
    for junk in ({}, 3, {"content": "x", "tool_calls": ["f"]}, {"tool_calls": 3}):
        with pytest.raises(MuaError, match="move"):
            read_move(junk)  # type: ignore[arg-type]


# ---------------------------------------------------------------- Gymnasium


@pytest.fixture(scope="module")
def gymnasium():
    found = pytest.importorskip(
        "gymnasium", reason="gymnasium is not installed: pip install 'mua[gymnasium]'"
    )
    importlib.import_module("mua.exports.gymnasium")  # registers
    return found


def action(message: Message) -> str | dict:
    """Every second kind of move as a text, the others as a message."""
    if message.content:
        return message.content
    return wire([message])[0]


def test_gymnasium_episodes_end_as_ours_do(gymnasium):
    for c in cases():
        options = {"limits": c.setting.limits.model_dump()}
        env = gymnasium.make("mua/Episode-v0", domain=c.setting.domain.name, **options)
        seen, info = env.reset(seed=c.seed, options={"task": c.task.id})
        assert info == {"task_id": c.task.id, "kind": c.task.kind, "seed": c.seed}
        assert [m["role"] for m in json.loads(seen)["messages"]] == ["system", "user"]
        agent, over = Replay(c.moves), False
        while not over:
            assert env.observation_space.contains(seen)
            step = asyncio.run(agent.step([]))
            seen, reward, terminated, truncated, info = env.step(action(step.message))
            over = terminated or truncated
            assert over or (reward, info) == (0.0, {})
        assert (reward, info) == (c.ours.reward, outcome(c.ours))
        assert truncated == (c.ours.termination.value == "turn_cap") and terminated != truncated
        assert json.loads(seen)["messages"] == wire(agent_view(c.ours.messages))
        env.close()


def test_gymnasium_checks_the_environment(gymnasium):
    from gymnasium.utils.env_checker import check_env

    check_env(gymnasium.make("mua/Episode-v0", domain="library:desk").unwrapped)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_gymnasium_vectors_play_each_episode_as_it_is_alone(gymnasium, mode):
    kwargs = {"shared_memory": False} if mode == "async" else {}
    every = [case("library:desk", number, seed=100 + number) for number in (0, 5)]
    vector = gymnasium.make_vec(
        "mua/Episode-v0", 2, vectorization_mode=mode, vector_kwargs=kwargs, domain="library:desk"
    )
    try:
        seeds = [c.seed for c in every]
        seen, info = vector.reset(seed=seeds)
        tasks = [vector_task(c.setting, s) for c, s in zip(every, seeds, strict=True)]
        assert list(info["task_id"]) == tasks
        views = [json.loads(text)["messages"] for text in seen]
        assert [v[0]["role"] for v in views] == ["system", "system"] and views[0] != views[1]
        moved = vector.step(("Goodbye.", "Sorry?"))
        for number, c in enumerate(every):
            task, said = c.setting.task(tasks[number]), ["Goodbye.", "Sorry?"][number]
            agent = Replay([Message("assistant", said)])
            ours = asyncio.run(play(c.setting.domain, task, agent, c.setting.user(task, c.seed), seed=c.seed))
            # The first messages are those of our own episode, and so is the reward if that was the end.
            shown_now = json.loads(moved[0][number])["messages"]
            assert shown_now == wire(agent_view(ours.messages))[: len(shown_now)] and len(shown_now) == 4
            assert moved[1][number] == (ours.reward if moved[2][number] else 0.0)
    finally:
        vector.close()


def vector_task(made: Setting, seed: int) -> str:
    return made.draw(seed).id


def test_gymnasium_raises_what_is_no_reward(gymnasium):
    env = gymnasium.make(
        "mua/Episode-v0", domain="library:desk", user="endpoint:nobody", base_url="http://127.0.0.1:9/v1"
    )
    env.unwrapped.setting.endpoint.settings = env.unwrapped.setting.endpoint.settings.model_copy(
        update={"retries": 0}
    )
    with pytest.raises(InfrastructureError, match=r"user_failed.*127\.0\.0\.1:9"):
        env.reset(seed=1)
    env.close()
    env = gymnasium.make("mua/Episode-v0", domain="library:desk", max_chars=100)
    with pytest.raises(MuaError, match="max_chars"):
        env.reset(seed=1)


# ---------------------------------------------------------------- TRL


USER = 7


def with_one_user(episodes):
    """The same episodes; all of a task with the same user."""
    made = episodes.setting
    one = lambda task, seed: made.make_user(task, USER)  # noqa: E731
    episodes.setting = dataclasses.replace(made, make_user=one)
    return episodes


class Scripted:
    """An engine that says what the expert would in every second episode of a group, to the user of the seed
    `USER`; in the others goodbye."""

    context = 1 << 20

    def __init__(self, tokenizer, domain: str):
        self.format = ChatFormat.of(tokenizer)
        self.made = setting(domain)
        self.scripts: dict[str, list[Message]] = {}
        self.released: list[str] = []

    async def generate(self, prompt_ids, sampling, session) -> Completion:
        if session not in self.scripts:
            mode, _, task, _, sample, _ = session.split("/")
            assert mode == "train"
            expert = await play_expert(self.made.domain, self.made.task(task), USER, Limits())
            said = [m for m in expert.messages if m.role == "assistant"]
            self.scripts[session] = said if int(sample) % 2 == 0 else []
        said = self.scripts[session]
        message = said.pop(0) if said else Message("assistant", "Goodbye.")
        ids = self.format.encode_assistant(message)
        return Completion(ids, [-0.5] * len(ids), "stop")

    def release(self, session: str) -> None:
        self.released.append(session)

    async def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def trl():
    pytest.importorskip("trl", reason="trl is missing: pip install 'mua[trl]'")
    import os

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import disable_progress_bars
    from trl import GRPOConfig, GRPOTrainer

    disable_progress_bars()

    class Recording(GRPOTrainer):
        batches: list
        logged: list

        def _generate_and_score_completions(self, inputs):
            made = super()._generate_and_score_completions(inputs)
            self.batches.append((inputs, made))
            return made

    def make(folder, episodes, tokenizer, **options):
        model = tiny_llama(len(tokenizer), 1, 32, 2, 1, 48, 2048, head_dim=16)
        options = {"num_generations": 4, "per_device_train_batch_size": 8, "max_steps": 1} | options
        args = GRPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            max_completion_length=24,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **options,
        )
        Recording.batches = []
        return Recording(
            model=model,
            reward_funcs=episodes.reward,
            args=args,
            train_dataset=episodes.dataset(4),
            processing_class=tokenizer,
            rollout_func=episodes.rollout,
        )

    return make


@pytest.fixture(scope="module")
def words():
    """A tokenizer of the desk's conversations."""
    made = setting("library:desk")
    texts = [m.content for c in cases()[:3] for m in c.ours.messages] + [made.domain.policy]
    tokenizer = train_tokenizer(texts, 400)
    tokenizer.pad_token = tokenizer.eos_token = tokenizer.convert_ids_to_tokens(
        ChatFormat.of(tokenizer).stop_ids[0]
    )
    return tokenizer


def test_a_step_of_trl_trains_on_our_episodes(trl, words, tmp_path):
    from mua.exports.trl import Episodes

    played: list[Trajectory] = []
    episodes = Episodes(
        "library:desk",
        rollout=RolloutSettings(freeze_opening=False),
        make_engine=lambda model: Scripted(words, "library:desk"),
        on_episode=played.append,
    )
    trainer = trl(tmp_path, with_one_user(episodes), words)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    ((inputs, made),) = trainer.batches
    ours = {(t.task_id, t.sample): t for t in played}
    assert len(ours) == 8 and {t.reward for t in played} == {0.0, 1.0}
    domain = episodes.setting.domain
    for row in range(8):
        t = ours[inputs[row]["mua_task"], row % 4]
        # The reward is that of the episode, and of its messages graded anew.
        assert inputs[row]["mua_reward"] == t.reward == float(row % 2 == 0)
        assert domain.grade(episodes.setting.task(t.task_id), t.messages, t.termination).reward == t.reward
        # Ids and mask are those of the trace: 1 exactly on what was sampled.
        (segment,) = t.trace.segments
        prompt = made["prompt_ids"][row][made["prompt_mask"][row].bool()].tolist()
        kept = made["completion_mask"][row].bool()
        assert prompt + made["completion_ids"][row][kept].tolist() == segment.ids
        assert [0] * len(prompt) + made["tool_mask"][row][kept].tolist() == segment.mask
        sampled = made["completion_ids"][row][(made["tool_mask"][row] * made["completion_mask"][row]).bool()]
        assert len(sampled) == t.trace.sampled
    signs = made["advantages"].reshape(2, 4).sign().tolist()
    assert signs == [[1, -1, 1, -1]] * 2
    assert any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())
    assert trainer.state.log_history[0]["rewards/reward/mean"] == 0.5


def test_trl_plays_the_episodes_that_our_own_rollout_plays_with_these_weights(trl, words, tmp_path):
    from mua.exports.trl import Episodes

    played: list[Trajectory] = []
    episodes = Episodes("library:desk", limits={"turns": 3}, on_episode=played.append, seed=5)
    trainer = trl(tmp_path, episodes, words, max_steps=2, temperature=0.9, top_p=0.95)
    start = copy.deepcopy(trainer.model).eval()
    trainer.train()
    assert len(trainer.batches) == 2 and trainer.model.training
    names = [row["mua_task"] for row in trainer.batches[0][0]][::4]
    format, engine = ChatFormat.of(words), make_engine(start)
    groups = asyncio.run(
        play_groups(
            episodes.setting.domain,
            [episodes.setting.task(name) for name in names],
            lambda task, session, seed: ModelAgent(
                format,
                engine,
                episodes.setting.domain.task_tools(task),
                sampling=Sampling(temperature=0.9, top_p=0.95, max_tokens=24),
                session=session,
                seed=seed,
            ),
            episodes.setting.make_user,
            RolloutSettings(group_size=4),
            limits=episodes.setting.limits,
            seed=derive_seed(5, "trl", "train", 0, 0),
            step=0,
        )
    )
    key = lambda t: (t.task_id, t.sample)  # noqa: E731
    ours = sorted((t for group in groups for t in group.trajectories), key=key)
    theirs = sorted((t for t in played if t.step == 0), key=key)
    assert len(ours) == 8
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.messages, mine.reward, mine.seed) == (other.messages, other.reward, other.seed)
        (a,), (b,) = mine.trace.segments, other.trace.segments
        assert (a.ids, a.mask) == (b.ids, b.mask) and a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_trl_leaves_out_what_infrastructure_broke_and_refuses_what_it_cannot_do(trl, words, tmp_path):
    from mua.exports.trl import Episodes

    class Flaky(Scripted):
        async def generate(self, prompt_ids, sampling, session):
            if session.split("/")[4] == "1":
                raise InfrastructureError("the engine is out of order")
            return await super().generate(prompt_ids, sampling, session)

    def made(engine, **how):
        rollout = RolloutSettings(freeze_opening=False, max_attempts=2)
        return with_one_user(
            Episodes("library:desk", rollout=rollout, make_engine=lambda model: engine, **how)
        )

    trainer = trl(tmp_path, made(Flaky(words, "library:desk")), words)
    trainer.train()
    ((inputs, batch),) = trainer.batches
    lost = [row for row in range(8) if inputs[row]["mua_reward"] is None]
    assert lost == [3, 7]
    for row in lost:
        assert (batch["tool_mask"][row] * batch["completion_mask"][row]).sum() == 0
        assert batch["advantages"][row] == 0
    rewards = torch.tensor([1.0, 1.0, 0.0])  # of samples 0, 2 and 3; the lost one is in no mean
    kept = batch["advantages"].reshape(2, 4)[0, :3]
    assert torch.allclose(kept, (rewards - 2 / 3) / (rewards.std() + 1e-4), atol=1e-3)

    class Down(Scripted):
        async def generate(self, prompt_ids, sampling, session):
            raise InfrastructureError("the engine is down")

    with pytest.raises(InfrastructureError, match=r"not one episode .* the engine is down"):
        trl(tmp_path, made(Down(words, "library:desk")), words).train()
    engine = Scripted(words, "library:desk")
    with pytest.raises(MuaError, match=r"GRPOConfig\.top_k, repetition_penalty"):
        trl(tmp_path, made(engine), words, top_k=5, repetition_penalty=1.1).train()
    episodes = made(engine)
    trainer = trl(tmp_path, episodes, words)
    with pytest.raises(MuaError, match="not groups of 4"):
        episodes.rollout(["train-0000"] * 3, trainer)
    with pytest.raises(MuaError, match="'nobody' is no task of this split"):
        episodes.rollout(["nobody"] * 4, trainer)
    with pytest.raises(MuaError, match="held-out split 'test'"):
        Episodes("library:desk", "test")


def test_the_commands_write_and_refuse(mua, tmp_path):
    code, said, _ = mua("env", "verifiers", "--domain", "library:desk", "--out", tmp_path)
    folder = tmp_path / "mua_library_desk"
    assert code == 0 and f"pip install {folder}" in said and "its id is mua_library_desk" in said
    module = (folder / "mua_library_desk" / "__init__.py").read_text(encoding="utf-8")
    compile(module, "package", "exec")
    assert 'domain: str = "library:desk"' in module and "PACKAGE" not in module and "DOMAIN" not in module
    assert tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    for arguments, told in (
        (("verifiers", "--domain", "library:desk", "--out", tmp_path), "is there already"),
        (("verifiers", "--domain", "library:desk", "--split", "test", "--out", tmp_path / "b"), "held-out"),
        (("verifiers", "--domain", "mine.py", "--out", tmp_path), "a place on this machine"),
        (("openenv", "--domain", "library:desk", "--split", "test"), "held-out"),
        (("openenv", "--domain", "library:desk", "--user", "robot"), "say agenda, or endpoint:MODEL"),
    ):
        code, _, said = mua("env", *arguments)
        assert code == 1 and told in " ".join(said.split()), said
    assert not (tmp_path / "b").exists()
