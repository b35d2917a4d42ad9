"""The loop: it learns, it records what happened, and no kill changes where it ends."""

import asyncio
import json

import pytest
import torch

from bit_run import SETTINGS, BitAgent, Caller, run_and_kill, run_training, start_model
from mua.domain import Change, Scenario, Task
from mua.errors import InfrastructureError, MuaError
from mua.rollout import RolloutSettings, play_groups
from mua.train import GrpoSettings, checkpoint
from mua.train.optimizer import adamw
from mua.train.trainer import model_agents, update
from toy import toy_domain

TIMINGS = {"seconds_rollout", "seconds_update", "peak_mb"}


def lines(folder, name="metrics"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def untimed(folder):
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines(folder)]


def same_weights(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def changed(**changes):
    return SETTINGS.model_copy(update=changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An unbroken run: (folder, model)."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run_training(folder)


@pytest.mark.parametrize(
    ("point", "count"),
    [
        ("episode", 30),
        ("episode", 65),
        ("gradient", 30),
        ("optimizer", 4),
        ("record", 50),
        ("checkpoint file", 4),  # the second checkpoint's last file but one
        ("checkpoint in place", 2),  # before the link to the best is set and old ones go
    ],
)
def test_kill_9_and_resume_change_nothing(whole, tmp_path, point, count):
    assert run_and_kill(tmp_path, point, count) == -9
    before = len(lines(tmp_path))
    assert 0 < before < 6
    with open(tmp_path / "metrics.jsonl", "a") as file:  # what a kill amid a write leaves
        file.write('{"step": 99, "rew')
    model = run_training(tmp_path)
    assert same_weights(model, whole[1])
    assert untimed(tmp_path) == untimed(whole[0])
    assert lines(tmp_path, "trajectories") == lines(whole[0], "trajectories")
    names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert names == {p.name for p in (whole[0] / "checkpoints").iterdir()}


def test_a_damaged_checkpoint_is_skipped_by_name_and_the_end_is_the_same(whole, tmp_path, caplog):
    stops = iter([False] * 4 + [True])
    run_training(tmp_path, should_stop=lambda: next(stops))
    newest = tmp_path / "checkpoints" / "step_000004"
    data = bytearray((newest / "model" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (newest / "model" / "model.safetensors").write_bytes(data)
    model = run_training(tmp_path)
    assert "step_000004 is damaged (model/model.safetensors has changed)" in caplog.text
    assert same_weights(model, whole[1]) and untimed(tmp_path) == untimed(whole[0])


def test_stopping_saves_the_step_and_a_finished_run_does_nothing_more(whole, tmp_path):
    stops = iter([False] * 3 + [True])
    run_training(tmp_path, should_stop=lambda: next(stops))
    assert len(lines(tmp_path)) == 3
    assert (tmp_path / "checkpoints" / "step_000003").is_dir()
    assert same_weights(run_training(tmp_path), whole[1])
    assert same_weights(run_training(tmp_path), whole[1]) and len(lines(tmp_path)) == 6
    kept = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert {"step_000004", "step_000006", "best"} <= kept


def test_the_last_checkpoint_is_an_ordinary_model_folder(whole):
    from transformers import AutoModelForCausalLM

    folder, model = whole
    saved = AutoModelForCausalLM.from_pretrained(folder / "checkpoints" / "step_000006" / "model")
    assert same_weights(saved, model) and not same_weights(saved, start_model())
    assert not list(folder.rglob("*.pt")) and not list(folder.rglob("*.bin"))


def test_records_say_what_happened(whole):
    folder, _ = whole
    metrics, played = lines(folder), lines(folder, "trajectories")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    for line in metrics:
        mine = [t for t in played if t["step"] == line["step"]]
        assert len(mine) == 4 * line["groups_played"]
        assert ["trace" in t for t in mine] == [True] * 4 + [False] * (len(mine) - 4)  # one group's tokens
        assert line["reward"] == pytest.approx(sum(t["reward"] for t in mine) / len(mine))
        assert sum(line["terminations"].values()) == len(mine)
        assert line["agent_tokens"] == sum(t["usage"]["agent_tokens"] for t in mine)
        assert line["tool_calls"]["cancel_order"] == pytest.approx(
            sum(t["usage"]["tool_calls"] for t in mine) / len(mine)
        )
        # the frozen opening is paid once a group, and is a turn of every episode
        assert line["user_tokens"] == sum(t["usage"]["user_tokens"] for t in mine) + line["groups_played"]
        assert line["turns"] == pytest.approx(1 + sum(t["usage"]["user_turns"] for t in mine) / len(mine))
        assert 3 <= line["groups_played"] <= 6 and line["groups_trained"] <= 3
        assert line["by_kind"] == {"cancel": pytest.approx(line["reward"])}
        assert line["sampling_gap"] < 1e-4 and line["clip_fraction"] == 0
        assert line["entropy"] > 0 and line["grad_norm"] > 0 and line["peak_mb"] > 1
        assert line["lr"] == SETTINGS.lr and line["excluded"] == line["retried"] == 0
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-9) and metrics[-1]["kl"] > 1e-6


@pytest.mark.parametrize(
    "grpo",
    [GrpoSettings(), GrpoSettings(ratio="sequence", aggregation="sequence_mean", advantages="leave_one_out")],
    ids=["token", "sequence"],
)
def test_it_learns(tmp_path, grpo):
    rollout = RolloutSettings(groups=4, group_size=8, refill_rounds=0)
    run_training(tmp_path, changed(steps=16, lr=1e-2, checkpoint_every=16, grpo=grpo, rollout=rollout))
    rewards = [line["reward"] for line in lines(tmp_path)]
    assert rewards[0] < 0.75 and sum(rewards[-3:]) / 3 > 0.9


def test_micro_batches_change_nothing(whole, tmp_path):
    run_training(tmp_path, changed(steps=2, micro_batch_tokens=100_000))
    for a, b in zip(lines(tmp_path), lines(whole[0])[:2], strict=True):
        for key in ("loss", "kl", "entropy", "grad_norm"):
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-6), key


def test_without_signal_nothing_is_updated(tmp_path, caplog):
    class Silent(BitAgent):
        async def step(self, messages):
            self.acted = True
            return await super().step(messages)

    model = start_model()
    run_training(
        tmp_path,
        changed(steps=2),
        model,
        make_agent=lambda task, session, seed: Silent(engine(model), task, session, seed),
    )
    assert same_weights(model, start_model())
    for line in lines(tmp_path):
        assert line["reward"] == 0 and line["all_wrong"] == 1 and line["groups_trained"] == 0
        assert line["groups_played"] == 6 and line["loss"] is None and line["grad_norm"] is None
    assert "nothing is learned" in caplog.text


def engine(model):
    from mua.engines.slots import SlotEngine

    if not hasattr(model, "_test_engine"):
        model._test_engine = SlotEngine(model, slots=8)
    return model._test_engine


def test_infrastructure_failures_are_counted_and_leave_the_others_as_they_were(whole, tmp_path):
    def make_agent_for(model):
        def make(task, session, seed):
            *_, sample, _ = session.split("/")
            if sample == "2":
                raise InfrastructureError("engine down")
            return BitAgent(engine(model), task, session, seed)

        return make

    model = start_model()
    run_training(tmp_path, changed(steps=1), model, make_agent=make_agent_for(model))
    (line,) = lines(tmp_path)
    assert line["excluded"] == line["groups_played"] and line["retried"] == 2 * line["groups_played"]
    lost = {2}
    mine = [t for t in lines(tmp_path, "trajectories") if t["seed"]]
    theirs = [t for t in lines(whole[0], "trajectories") if t["step"] == 1 and t["sample"] not in lost]
    first = {(t["task_id"], t["sample"], t["seed"]): t for t in mine}
    shared = [t for t in theirs if (t["task_id"], t["sample"], t["seed"]) in first]
    assert len(shared) >= 9
    for t in shared:
        assert first[t["task_id"], t["sample"], t["seed"]] == t


def test_when_nothing_can_be_played_the_run_stops_and_can_go_on(whole, tmp_path):
    state = {"steps": 0}

    class Down(Caller):
        async def reply(self, view):
            if state["steps"] == 3:
                raise InfrastructureError("no answer from the endpoint")
            return await super().reply(view)

    def on_step(_):
        state["steps"] += 1

    with pytest.raises(InfrastructureError, match="Step 4: not one of 12 episodes"):
        run_training(tmp_path, make_user=lambda task, seed: Down(seed), on_step=on_step)
    assert (tmp_path / "checkpoints" / "step_000003").is_dir()
    assert same_weights(run_training(tmp_path), whole[1]) and untimed(tmp_path) == untimed(whole[0])


def test_it_refuses_tasks_that_must_not_be_trained_on(tmp_path):
    domain = toy_domain()
    leaked = domain.tasks("test")[0]
    renamed = Task("another_name", leaked.kind, leaked.scenario, leaked.actions, leaked.setup)
    with pytest.raises(MuaError, match=r"evaluation split 'test': another_name = cancel_11"):
        run_training(tmp_path / "a", tasks=[renamed], held_out={"test": domain.tasks("test")})
    idle = Task("idle", "cancel", Scenario("Nothing."), (), (Change("orders", "o1", {"status": "sent"}),))
    with pytest.raises(MuaError, match="solved by doing nothing: idle"):
        run_training(tmp_path / "b", tasks=[idle])
    assert not (tmp_path / "a" / "metrics.jsonl").exists()


def test_the_standard_agent_is_trained_on_the_tokens_it_sampled():
    from mua.engines.slots import SlotEngine
    from mua.formats import ChatFormat
    from mua.models import tiny_llama
    from mua.tokenizer import train_tokenizer

    domain = toy_domain()
    words = [domain.policy, "I want to cancel my order o1.", "get_order cancel_order order_id reason"]
    format = ChatFormat.of(train_tokenizer(words, 320), tool_style="none")
    vocab = len(format.tokenizer)
    model = tiny_llama(
        vocab, layers=2, hidden=32, heads=4, kv_heads=2, intermediate=48, initializer_range=0.1
    )
    settings = changed(
        temperature=0.8, max_step_tokens=12, steps=1, rollout=RolloutSettings(groups=2, group_size=3)
    )

    model_engine = SlotEngine(model, slots=8)
    agents = model_agents(format, model_engine, domain, settings)
    groups = asyncio.run(
        play_groups(domain, domain.tasks("train")[:2], agents, lambda t, seed: Caller(seed), settings.rollout)
    )
    for group in groups:  # an untrained model earns nothing: rewards are given here
        for trajectory in group.trajectories:
            trajectory.reward = float(trajectory.sample == 0)
    before = [p.detach().clone() for p in model.parameters()]
    figures = update(model, None, adamw(model, settings), groups, settings=settings, rate=1e-3)
    assert figures["sampling_gap"] < 1e-4 and figures["grad_norm"] > 0 and figures["kl"] is None
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with pytest.raises(ValueError, match="format or make_agent"):
        model_agents(None, model_engine, domain, settings)


def test_an_adapter_is_trained_alone_with_its_base_as_the_reference(tmp_path):
    from peft import LoraConfig, get_peft_model

    def adapted():
        torch.manual_seed(0)
        return get_peft_model(start_model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))

    settings = changed(
        steps=3, lr=1e-2, checkpoint_every=1, rollout=RolloutSettings(groups=2, group_size=4, refill_rounds=0)
    )
    straight = run_training(tmp_path / "a", settings, adapted())
    stops = iter([False, False, True])
    run_training(tmp_path / "b", settings, adapted(), should_stop=lambda: next(stops))
    resumed = run_training(tmp_path / "b", settings, adapted())
    assert same_weights(straight, resumed) and not same_weights(straight, adapted())
    base = straight.get_base_model().model.layers[0].mlp.up_proj.weight
    assert torch.equal(base, start_model().model.layers[0].mlp.up_proj.weight)
    assert lines(tmp_path / "a")[-1]["kl"] > 0
    found = checkpoint.latest(tmp_path / "a" / "checkpoints")
    assert found is not None and (found / "model" / "adapter_model.safetensors").is_file()
