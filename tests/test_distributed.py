"""verl's side of the house without verl: samples, seeds, groups, failures, options, rows, checkpoints."""

import asyncio
import dataclasses
import importlib.metadata
import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_formats import make_format
from fake_policy import FakePolicy
from mua.config import load_config
from mua.distributed.verl import dataset, launch, merge
from mua.distributed.verl.engine import ServerEngine
from mua.distributed.verl.groups import Groups, Row, samples
from mua.engines import Sampling
from mua.errors import InfrastructureError, MuaError
from mua.trajectory import Segment, Termination, TokenTrace
from mua.users import STOP, UserTurn
from toy import ScriptUser, toy_domain

PARAMS = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}


def config(*more):
    return load_config(None, ["domain=library:desk", "train.rollout.refill_rounds=0", "seed=3", *more])


def row(session=0, step=1, number=1, **changes):
    task = toy_domain().tasks("train")[number - 1]
    found = Row("uid", session, step, number - 1, task.id, task.fingerprint, "train", False)
    return dataclasses.replace(found, **changes)


class Asker:
    """Asks for its order to be cancelled in words of its seed, then stops."""

    name = "asker"

    def __init__(self, task, seed):
        self.order, self.seed = task.scenario.facts["order number"], seed

    async def reply(self, view):
        said = any(m.role == "user" for m in view)
        return UserTurn(STOP if said else f"{self.seed}: cancel my order {self.order}", stop=said)


def play(policy, *rows, make_user=Asker, settings=(), seen=None):
    """What verl's sessions get when they all ask at once, failures included."""
    made = config("train.max_step_tokens=400", *settings)
    groups = Groups(
        made, toy_domain(), policy.format, make_user, Asker, ([] if seen is None else seen).append
    )

    async def all_of_them():
        engines = [ServerEngine(policy, 4096, PARAMS) for _ in rows]
        asked = (groups.play(r, e, PARAMS) for r, e in zip(rows, engines, strict=True))
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(all_of_them())
    assert not groups._open  # nothing is kept of a group that is through
    return found


# --- samples --------------------------------------------------------------------------------------


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=12), min_size=1, max_size=4
    )
)
def test_samples_are_the_segments_up_to_their_last_sampled_id(drawn):
    trace = TokenTrace([])
    for tokens in drawn:
        segment = trace.start_segment()
        segment.add_context([77])
        for n, (token, is_sampled) in enumerate(tokens):
            if is_sampled:
                segment.add_sampled([token], [-float(n)])
            else:
                segment.add_context([token])
    found = samples(trace, filler=5)
    spoken = [s for s in trace.segments if 1 in s.mask]
    if not spoken:
        assert [(s.prompt, s.response, s.mask, s.logprobs) for s in found] == [([5], [5], [0], [0.0])]
        return
    assert len(found) == len(spoken)
    for sample, segment in zip(found, spoken, strict=True):
        whole = [*sample.prompt, *sample.response]
        assert whole == segment.ids[: len(whole)] and 1 not in segment.mask[len(whole) :]
        assert [0] * len(sample.prompt) + sample.mask == segment.mask[: len(whole)]
        assert sample.logprobs == segment.logprobs[len(sample.prompt) : len(whole)]
        assert sample.prompt and sample.mask[0] == sample.mask[-1] == 1


def test_a_segment_without_a_prompt_is_refused():
    with pytest.raises(ValueError, match="no prompt"):
        samples(TokenTrace([Segment([1], [1], [-1.0])]), 0)


# --- the engine -----------------------------------------------------------------------------------


class Answers:
    def __init__(self, **fields):
        self.fields = {"token_ids": [4, 9], "log_probs": [-1.0, -2.0], "stop_reason": "completed"} | fields
        self.fields.setdefault("num_preempted", None)
        self.fields.setdefault("extra_fields", {})

    async def generate(self, request_id, *, prompt_ids, sampling_params):
        self.asked = (request_id, prompt_ids, sampling_params)
        if "raises" in self.fields:
            raise self.fields["raises"]
        return type("Answer", (), self.fields)()


def ask(server, **how):
    engine = ServerEngine(server, 20, PARAMS, **how)
    sampling = Sampling(temperature=0.5, max_tokens=2, stop_ids=(9, 8), seed=11)
    return engine, asyncio.run(engine.generate([1, 2, 3], sampling, "session"))


def test_the_server_is_asked_as_the_engine_was_and_its_answer_is_handed_on():
    server = Answers()
    engine, done = ask(server, seeded=True)
    wanted = {**PARAMS, "temperature": 0.5, "max_tokens": 2, "stop_token_ids": [9, 8], "seed": 11}
    assert server.asked == ("session", [1, 2, 3], wanted)
    assert (done.token_ids, done.logprobs, done.stop_reason) == ([4, 9], [-1.0, -2.0], "stop")
    assert engine.context == 19  # SGLang keeps one token free
    assert "seed" not in ask(server)[0]._client.asked[2]
    assert ask(Answers(token_ids=[4, 5]))[1].stop_reason == "length"
    assert (
        ask(Answers(token_ids=[5], log_probs=[0.0]))[1].stop_reason == "stop"
    )  # an end that only the server knows


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"raises": RuntimeError("actor died")}, "RuntimeError: actor died"),
        ({"stop_reason": "aborted"}, "no tokens"),
        ({"token_ids": [], "log_probs": []}, "no tokens"),
        ({"log_probs": None}, "calculate_log_probs"),
        ({"log_probs": [-1.0]}, "2 tokens without a sound log-probability"),
        ({"log_probs": [-1.0, float("nan")]}, "without a sound"),
        ({"token_ids": [1, 2, 3], "log_probs": [0.0] * 3}, "3 tokens where 2 were asked for"),
    ],
)
def test_whatever_a_server_does_wrong_is_an_infrastructure_failure(fields, words):
    with pytest.raises(InfrastructureError, match=words):
        ask(Answers(**fields))


# --- groups ---------------------------------------------------------------------------------------


def test_the_sessions_of_a_row_play_one_group():
    policy = FakePolicy(make_format("qwen3"), lazy=lambda session: int(session.split("/")[-2]) % 2 == 1)
    seen = []
    found = play(policy, *(row(session) for session in (2, 0, 1, 3)), seen=seen)
    assert [p.reward for p in found] == [1.0, 1.0, 0.0, 0.0]  # sessions 2, 0, 1, 3: the odd ones only talk
    assert len(seen) == 4 and {t.step for t in seen} == {1}
    openings = {t.messages[1].content for t in seen}
    assert len(openings) == 1 and len({t.seed for t in seen}) == 4
    for played in found:
        (sample,) = samples(played.trajectory.trace, 0)
        said = next(s for s in policy.said.values() if s[-1][0] + s[-1][1] == sample.prompt + sample.response)
        assert sample.prompt == said[0][0]
        assert [i for i, m in zip(sample.response, sample.mask, strict=True) if m] == [
            i for s in said for i in s[1]
        ]
        kept = [x for x, m in zip(sample.logprobs, sample.mask, strict=True) if m]
        assert kept == [x for s in said for x in s[2]]
        spent = played.spent
        assert (spent.preempted, spent.first_version, spent.last_version) == (len(said), 1, len(said))
        assert played.figures["agent_steps"] == len(said) and played.figures["normal_end"] == 1.0


def test_the_same_row_and_step_give_the_same_episodes_and_others_do_not():
    def seeds(*rows, settings=()):
        policy = FakePolicy(make_format("qwen3"))
        found = play(policy, *rows, settings=settings)
        return [(p.trajectory.seed, p.trajectory.messages[1].content) for p in found]

    first = seeds(row(0), row(1))
    assert first == seeds(row(0, uid="other"), row(1, uid="other"))
    others = [
        seeds(row(0, step=2)),
        seeds(row(0, index=9)),
        seeds(row(0, number=2)),
        seeds(row(0), settings=["seed=4"]),
    ]
    assert len({first[0], *(o[0] for o in others)}) == 5


def test_a_failure_that_stays_leaves_its_episode_out_and_changes_no_other():
    def gone(session):
        if session.split("/")[-2] == "1":
            raise ConnectionError("server 7 is gone")

    whole = play(FakePolicy(make_format("qwen3")), *map(row, range(4)))
    broken = FakePolicy(make_format("qwen3"), break_at=gone)
    found = play(broken, *map(row, range(4)))
    assert [p and p.trajectory.seed for p in found] == [*(whole[i].trajectory.seed for i in (0, 2, 3)), None]
    assert sum(session.split("/")[-2] == "1" for session, *_ in broken.asked) == 3  # tried three times


def test_a_group_with_one_episode_left_is_left_out_whole():
    def gone(session):
        if session.split("/")[-2] != "1":
            raise ConnectionError("server 7 is gone")

    found = play(FakePolicy(make_format("qwen3"), break_at=gone), *map(row, range(3)))
    assert all(isinstance(e, InfrastructureError) for e in found)
    assert "of 3 episodes of cancel_1 1 have a score (2 broken" in str(found[0]) and "server 7" in str(
        found[0]
    )
    held_out = play(
        FakePolicy(make_format("qwen3"), break_at=gone), *(row(s, held_out=True) for s in range(3))
    )
    assert [p and p.reward for p in held_out] == [1.0, None, None]


def test_an_episode_in_which_the_agent_never_spoke_counts_and_trains_nothing():
    found = play(
        FakePolicy(make_format("qwen3")),
        row(0),
        row(1),
        make_user=lambda task, seed: ScriptUser(),
        settings=["train.rollout.freeze_opening=false"],
    )
    assert [p.reward for p in found] == [0.0, 0.0]
    assert found[0].trajectory.termination is Termination.USER_STOP
    assert [s.mask for s in samples(found[0].trajectory.trace, 3)] == [[0]]


def test_rows_of_others_are_refused_by_name():
    good = {"index": 0, "task_id": "a", "fingerprint": "f", "split": "train", "held_out": False}
    fields = {"uid": "u", "session_id": 1, "global_steps": 4, "extra_info": good}
    assert Row.of(fields) == Row("u", 1, 4, 0, "a", "f", "train", False)
    with pytest.raises(MuaError, match=r"V1 trainer"):
        Row.of({k: v for k, v in fields.items() if k != "session_id"})
    with pytest.raises(MuaError, match="not of a data set that mua wrote"):
        Row.of(fields | {"extra_info": {"index": 0}})
    (other,) = play(FakePolicy(make_format("qwen3")), row(fingerprint="old"))
    assert isinstance(other, MuaError) and "another task of that name" in str(other)
    (missing,) = play(FakePolicy(make_format("qwen3")), row(task_id="cancel_99"))
    assert isinstance(missing, MuaError) and "has no such task" in str(missing)


# --- options, data set, checkpoints ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.grpo.advantages=leave_one_out", "leave_one_out"),
        ("train.grpo.ratio=sequence", "ratio"),
        ("train.grpo.kl_in=reward", "kl_in"),
        ("train.grpo.credit_discount=0.9", "credit_discount"),
        ("train.grpo.failed_call_weight=0.1", "failed_call_weight"),
        ("train.grpo.overlong_length=100", "overlong_length"),
        ("train.curriculum={}", "curriculum"),
        ("train.staleness=1", "staleness"),
        ("train.rollout.refill_rounds=1", "refill_rounds"),
        ("train.rollout.spare_groups=1", "spare_groups"),
        ("train_user={kind: local, model: somewhere}", "mua serve"),
        ("train.rollout.groups=99", "has 40"),
        ("train.minibatches=3", "must divide"),
    ],
)
def test_what_verl_cannot_do_is_refused_by_name(override, words):
    launch.check(config(), 40)
    with pytest.raises(MuaError, match=words):
        launch.check(config(override), 40)


def test_options_say_what_the_configuration_says(tmp_path):
    made = config(
        "train.grpo={preset: dapo, aggregation: constant, constant_length: 500, correction: token}",
        "train.rollout={groups: 8, group_size: 4, refill_rounds: null, refill_budget: 20}",
        "train.minibatches=2",
        "train.steps=9",
        "verl={gpus: 4, sequence_parallel: 2, prompt_tokens: 100, response_tokens: 201}",
        "verl.options={trainer.device: npu, +new.one: [a, 1, null]}",
    )
    found = launch.options(made, tmp_path / "model", tmp_path, 16)
    actor = "actor_rollout_ref.actor"
    expected = {
        f"{actor}.clip_ratio_low": 0.2,
        f"{actor}.clip_ratio_high": 0.28,
        f"{actor}.clip_ratio_c": 1e8,
        f"{actor}.loss_agg_mode": "seq-mean-token-sum-norm",
        f"{actor}.loss_scale_factor": 500,
        f"{actor}.ppo_mini_batch_size": 4,
        f"{actor}.ppo_max_token_len_per_gpu": 151,
        f"{actor}.kl_loss_coef": 0.0,
        "algorithm.rollout_correction.rollout_is": "token",
        "algorithm.filter_groups.enable": True,
        "data.train_batch_size": 8,
        "actor_rollout_ref.rollout.n": 4,
        "actor_rollout_ref.rollout.max_model_len": 301,
        "trainer.total_epochs": 6,
        "trainer.device": "npu",
        "+new.one": ["a", 1, None],
    }
    assert {name: found[name] for name in expected} == expected
    assert launch.option("+new.one", found["+new.one"]) == "+new.one=['a',1,null]"
    assert launch.option("a", {"b": "it's", "c": 1e-06}) == "a={b:'it\\'s',c:1e-06}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("verl={nodes: 3, gpus: 8, tensor_parallel: 16}", "does not divide"),
        ("verl={update_tokens: 100}", "a conversation may have 32768 tokens"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(text, words):
    with pytest.raises(MuaError, match=words):
        config(text)


def test_a_dry_run_writes_what_verl_reads_and_prints_its_command(mua, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    run, base = tmp_path / "run", tmp_path / "a base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    words = ["train", "--engine", "verl", "--dry-run", "--out", run]
    sets = [f"model.base='{base}'", "sft=null", "train_user.kind=agenda", "eval.same_user=true"]
    sets += ["train.rollout.refill_rounds=0", "eval.tasks=5", "verl.gpus=1"]
    code, out, error = mua(*words, *sets)
    assert code == 0, error
    command = shlex.split(out)
    assert command[1:3] == ["-m", "verl.trainer.main_ppo"]
    assert f"actor_rollout_ref.model.path='{base}'" in command
    table = {
        name: parquet.read_table(run / "verl" / f"{name}.parquet").to_pylist() for name in ("train", "val")
    }
    (loop,) = json.loads(json.dumps(__import__("yaml").safe_load((run / "verl/agent_loop.yaml").read_text())))
    assert loop["folder"] == str(run / "verl") and loop["name"] == table["train"][0]["agent_name"]
    assert len(table["val"]) == 5 and all(r["extra_info"]["held_out"] for r in table["val"])
    info = [r["extra_info"] for r in table["train"]]
    assert [i["index"] for i in info] == list(range(len(info))) and not any(i["held_out"] for i in info)
    text = (run / "verl" / "train.parquet").read_bytes()
    domain = __import__("mua.domains", fromlist=["load"]).load("library:desk")
    for task in domain.tasks("train")[:20]:  # nothing that solves it
        assert task.scenario.goal.encode() not in text
    code, _, error = mua(*words[:-1], tmp_path / "leak", *sets, "train_split=test")
    assert code != 0 and "evaluation split 'test'" in error and not (tmp_path / "leak").exists()
    code, _, error = mua("train", "--dry-run", "--out", tmp_path / "no", "--config", "quickstart")
    assert code != 0 and "--dry-run is for --engine verl" in error
    code, _, error = mua(*words[:-1], tmp_path / "no", *sets, "train.curriculum={}")
    assert code != 0 and "verl has no train.curriculum" in error and not (tmp_path / "no").exists()
    code, _, error = mua(*words, *sets, "train.steps=3")
    assert code != 0 and "another configuration" in error


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("0.9.1", ""),
        ("0.9.4.dev0", ""),
        ("0.9.0", "verl 0.9.0 is installed"),
        ("0.10.0", "verl 0.10.0"),
        (None, "of unknown"),
    ],
)
def test_another_verl_is_refused(monkeypatch, version, words):
    def installed(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(launch.importlib.metadata, "version", installed)
    if not words:
        return launch.check_installed()
    with pytest.raises(MuaError, match=words):
        launch.check_installed()


def test_only_whole_checkpoints_of_verl_count(tmp_path):
    place = tmp_path / "verl" / "checkpoints"
    for step in (5, 10, 15):
        (place / f"global_step_{step}" / "actor").mkdir(parents=True)
        (place / f"global_step_{step}" / "actor" / "fsdp_config.json").write_text("{}")
    (place / "global_step_10" / "actor" / "fsdp_config.json").unlink()
    assert merge.steps(tmp_path) == {}
    (place / "latest_checkpointed_iteration.txt").write_text("10")
    assert list(merge.steps(tmp_path)) == [5]  # 10 has no shards, and 15 was being written
    with pytest.raises(MuaError, match=r"verl's merger cannot read .*global_step_5/actor"):
        merge.merged(tmp_path, 5)
    assert not list((tmp_path / "verl" / "merged").iterdir())


def test_rows_name_tasks_by_content():
    domain = toy_domain()
    (first, *_) = dataset.rows(domain, domain.tasks("test"), "test", True)
    assert first["extra_info"] == {
        "index": 0,
        "domain": "toy",
        "split": "test",
        "task_id": "cancel_11",
        "kind": "cancel",
        "fingerprint": domain.tasks("test")[0].fingerprint,
        "held_out": True,
    }
