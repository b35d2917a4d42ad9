"""verl's real classes: it reads our rows, runs our loop, composes our options, and its loss is ours.

They need verl, in an environment laid over the usual one (`make test-contracts`, which CI runs).
`test_distributed.py` has what can be said without it, `test_verl_ray.py` what needs a cluster.
"""

from __future__ import annotations

import asyncio
import copy
import json
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="verl is missing: make test-contracts")

import hydra
import numpy as np
import torch
from verl.experimental.agent_loop import AgentLoopOutput, AgentLoopWorker
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_add_to_batch
from verl.trainer.ppo.utils import create_rl_dataset, need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.utils.dataset.rl_dataset import collate_fn

from chat_formats import make_format, make_tokenizer
from fake_policy import FakePolicy
from fake_server import FakeServer, chat
from mua.config import load_config
from mua.distributed.verl import agent_loop, dataset, launch
from mua.distributed.verl.groups import Row, figures
from mua.distributed.verl.groups import samples as samples_of
from mua.formats import ChatFormat
from mua.models import save_model, tiny_llama
from mua.pipeline import open_run
from mua.train import GrpoSettings
from mua.train.grpo import Denominators, group_advantages, grpo_loss
from mua.trajectory import read_trajectories
from mua.users import STOP
from toy import toy_domain

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("verl-*.yaml"))


def composed(options):
    """verl's whole configuration with some options, as its command line makes it."""
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", [launch.option(k, v) for k, v in options.items()])


# --- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_recipes_are_configurations_of_verl(recipe):
    config = load_config(recipe)
    launch.check(config, 165)
    found = composed(launch.options(config, Path("/models/x"), Path("/runs/y/verl"), 165))
    checked = copy.deepcopy(found)
    if (
        config.model.lora is not None
    ):  # for vLLM this check imports vLLM, which is not needed for anything else here
        checked.actor_rollout_ref.rollout.name = "sglang"
    validate_config(checked, need_reference_policy(found), need_critic(found))
    actor, rollout = found.actor_rollout_ref.actor, found.actor_rollout_ref.rollout
    for part in (actor, rollout, found.actor_rollout_ref.model, found.algorithm):
        if "path" not in part:
            omega_conf_to_dataclass(part)
    sequence = rollout.prompt_length + rollout.response_length
    assert actor.ppo_max_token_len_per_gpu * actor.ulysses_sequence_parallel_size >= sequence
    assert rollout.max_model_len == sequence and found.trainer.use_v1
    steps_an_epoch = 165 // found.data.train_batch_size
    assert found.trainer.total_epochs * steps_an_epoch >= found.trainer.total_training_steps == 150
    paper = {"verl-8b": "8B", "verl-14b": "14B", "verl-32b": "32B"}.get(recipe.stem)
    if paper:  # arXiv 2508.18669 and its code
        assert config.model.base == f"Qwen3-{paper}"
        assert (found.trainer.nnodes, found.trainer.n_gpus_per_node) == (4, 8)
        assert (rollout.name, rollout.tensor_model_parallel_size) == ("sglang", 2)
        assert (actor.ulysses_sequence_parallel_size, actor.fsdp_config.fsdp_size) == (4, -1)
        assert (rollout.prompt_length, rollout.response_length) == (5000, 27768)
        assert (found.data.train_batch_size, rollout.n, actor.ppo_mini_batch_size) == (32, 8, 32)
        assert (rollout.temperature, rollout.top_p) == (1.0, 1)
        assert (actor.optim.lr, actor.optim.weight_decay, actor.grad_clip) == (1e-6, 0.01, 1.0)
        assert (actor.optim.lr_scheduler_type, actor.entropy_coeff) == ("constant", 0.0)
        assert (actor.clip_ratio_low, actor.clip_ratio_high, actor.clip_ratio_c) == (0.2, 0.2, 3.0)
        assert (actor.use_kl_loss, actor.kl_loss_type, actor.kl_loss_coef) == (True, "low_var_kl", 0.001)
        assert (actor.loss_agg_mode, found.algorithm.norm_adv_by_std_in_grpo) == ("token-mean", True)
        assert (config.max_step_tokens, config.train.max_step_tokens, config.limits.turns) == (1024, 1024, 30)
    if recipe.stem.endswith("lora"):
        model = found.actor_rollout_ref.model
        assert (model.lora_rank, model.lora_alpha, rollout.load_format) == (32, 64, "safetensors")


def test_an_option_that_verl_does_not_know_is_refused_and_paths_come_through():
    config = load_config(RECIPES[0], ["verl.options={trainer.nodez: 2}"])
    options = launch.options(config, Path("/models/it's = a, {b}"), Path("/runs/y z/verl"), 165)
    texts = ["a\\", "a\\'b'", "\\\\'", "", "x=y,z:{[1]}", "é ü", '"', "null", "1e-3", "~/a b"]
    with pytest.raises(Exception, match="nodez"):
        composed(options)
    del options["trainer.nodez"]
    found = composed(options | {f"+texts.t{n}": text for n, text in enumerate(texts)} | {"+more": texts})
    assert list(found.texts.values()) == texts == list(found.more)
    assert found.actor_rollout_ref.model.path == "/models/it's = a, {b}"
    assert (
        found.ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH == "/runs/y z/verl/metrics.jsonl"
    )


# --- the agent loop -------------------------------------------------------------------------------

SHOP = """
    import dataclasses
    from mua.users import STOP, UserTurn
    from toy import toy_domain

    class Asker:
        name = "asker"
        def __init__(self, task, seed):
            self.order, self.seed = task.scenario.facts["order number"], seed
        async def reply(self, view):
            said = any(m.role == "user" for m in view)
            return UserTurn(STOP if said else f"{self.seed % 100}: cancel my order {self.order}", stop=said)

    def make():
        return dataclasses.replace(toy_domain(), agenda_user=Asker)
"""


class Worker(AgentLoopWorker):
    """verl's own worker up to the point where an output goes into the batch."""

    async def _agent_loop_postprocess(self, output, validate, **kwargs):
        return output


def prepared(root, *more):
    """(folder of a prepared run, verl's configuration of it, format of its model)."""
    root.mkdir(exist_ok=True)
    (root / "shop.py").write_text(textwrap.dedent(SHOP))
    tokenizer = make_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = "<|end|>"
    model = tiny_llama(len(tokenizer), 1, 16, 2, 1, 32, eos_id=tokenizer.eos_token_id)
    save_model(model, tokenizer, root / "m")
    sets = [
        f"domain={root / 'shop.py'}",
        f"model.base={root / 'm'}",
        "sft=null",
        "coldstart.split=train",
        "eval.same_user=true",
        "train={max_step_tokens: 400, rollout: {groups: 2, group_size: 3, refill_rounds: 0}}",
        "verl={gpus: 1, workers: 1, prompt_tokens: 3000, response_tokens: 1000}",
    ]
    run = open_run(load_config(None, [*sets, *more]), root / "run")
    with run.folder:
        made = launch.prepare(run)
    return made.folder, composed(made.options), ChatFormat.of(tokenizer)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("shop"))


def rows_of(shop, count=1, step=1):
    """What verl's loader makes of our data set, one dict of keyword arguments a row."""
    folder, config, _ = shop
    data = create_rl_dataset(str(folder / "train.parquet"), config.data, None, None, is_train=True)
    batch = collate_fn([data[i] for i in range(count)])
    return [
        {**{k: v[i] for k, v in batch.items()}, "uid": f"u{i}", "global_steps": step} for i in range(count)
    ]


def run_rows(shop, policy, rows, samples=3):
    """The outputs of each row's sessions, as verl's worker starts them."""
    _, config, _ = shop
    worker = Worker(config, policy)

    async def all_of_them():
        return await asyncio.gather(
            *(
                worker._run_agent_loop(
                    {
                        "temperature": 1.0,
                        "top_p": 1.0,
                        "top_k": -1,
                        "repetition_penalty": 1.0,
                        "logprobs": True,
                    },
                    {"step": 1, "sample_index": 0, "rollout_n": session, "validate": False},
                    trace=False,
                    session_id=session,
                    **row,
                )
                for row in rows
                for session in range(samples)
            ),
            return_exceptions=True,
        )

    return asyncio.run(all_of_them())


def test_verls_worker_plays_our_episodes(shop):
    policy = FakePolicy(shop[2], lazy=lambda session: session.split("/")[-2] == "2")
    found = run_rows(shop, policy, rows_of(shop, 2))
    assert [len(f) for f in found] == [1] * 6
    outputs = [f[0] for f in found]
    assert [o.reward_score for o in outputs] == [1.0, 1.0, 0.0] * 2
    for output in outputs:
        assert isinstance(output, AgentLoopOutput)
        said = next(
            s for s in policy.said.values() if s[-1][0] + s[-1][1] == output.prompt_ids + output.response_ids
        )
        sampled = [i for i, m in zip(output.response_ids, output.response_mask, strict=True) if m]
        assert output.prompt_ids == said[0][0] and sampled == [i for s in said for i in s[1]]
        assert [x for x, m in zip(output.response_logprobs, output.response_mask, strict=True) if m] == [
            x for s in said for x in s[2]
        ]
        assert all(
            x == 0 for x, m in zip(output.response_logprobs, output.response_mask, strict=True) if not m
        )
        assert output.num_turns == 3 + 2 * (len(said) > 1)  # asked, (called, answered,) done, stop
        assert output.metrics.num_preempted == len(said) and output.metrics.generate_sequences > 0
        more = output.extra_fields
        assert (more["min_global_steps"], more["max_global_steps"]) == (1, len(said))
        assert more["mua"]["termination"] == "user_stop"
        assert more["reward_extra_info"]["outcome"] == output.reward_score
        assert all(isinstance(v, float) for v in more["reward_extra_info"].values())
        tensors = output.as_dict()  # what goes into TransferQueue
        assert tensors["rm_scores"].sum() == output.reward_score
        assert tensors["rollout_log_probs"].shape == tensors["responses"].shape
    assert len({o.extra_fields["mua"]["seed"] for o in outputs}) == 6
    names = {frozenset(o.extra_fields["reward_extra_info"]) for o in outputs}
    assert len(names) == 1 and "policy_violation" in next(iter(names))
    kept = [t for file in shop[0].glob("episodes/*/trajectories.jsonl") for t in read_trajectories(file)]
    assert [t.reward for t in kept].count(1.0) == 4 and all(t.trace is None for t in kept)


def test_a_broken_sample_is_in_no_batch_and_a_lost_group_fails_as_a_whole(shop):
    def gone(session):
        if session.split("/")[-2] == "1" or session.split("/")[-4] == "cancel_2":
            raise ConnectionError("gone")

    found = run_rows(shop, FakePolicy(shop[2], break_at=gone), rows_of(shop, 2))
    assert [f if isinstance(f, Exception) else len(f) for f in found[:3]] == [1, 1, 0]
    # verl ends such a group with the status `failure`: no rows, replaced where its sampler replaces groups
    assert all("0 have a score" in str(f) for f in found[3:])


def test_an_episode_of_several_segments_is_several_rows_with_one_reward(shop):
    """A template that drops the thinking of earlier turns rewrites history: the trace starts anew."""
    config = shop[1]
    policy = FakePolicy(shop[2])
    (output,) = run_rows(shop, policy, rows_of(shop), samples=2)[0]
    task = toy_domain().tasks("train")[0]
    from test_distributed import play, row

    (played, _) = play(FakePolicy(make_format("qwen3")), row(0), row(1))
    trace = played.trajectory.trace
    again = trace.start_segment()
    again.add_context([1, 2])
    again.add_sampled([3], [-0.5])
    two = agent_loop.outputs(played, 0, 7)
    assert [o.reward_score for o in two] == [1.0, 1.0]
    assert (two[1].prompt_ids, two[1].response_ids, two[1].response_logprobs) == ([1, 2], [3], [-0.5])
    assert two[0].extra_fields == two[1].extra_fields and len(samples_of(trace, 0)) == 2
    assert figures(toy_domain(), task, played.trajectory) == two[0].extra_fields["reward_extra_info"]
    assert config.trainer.use_v1 and output.reward_score == 1.0


def test_users_behind_an_endpoint_with_personas(tmp_path):
    """They share one opening a group, and each worker has its share of the endpoint's requests."""

    def answer(body):
        spoken = sum(m["role"] != "system" for m in body["messages"])
        return chat(STOP if spoken > 2 else "Please cancel my order o1.")

    with FakeServer(answer) as server:
        endpoint = f"{{base_url: {server.url}, model: u, concurrency: 7}}"
        made = prepared(
            tmp_path / "shop", f"train_user={{kind: endpoint, personas: {{terse: 1}}, endpoint: {endpoint}}}"
        )
        found = run_rows(made, FakePolicy(made[2]), rows_of(made))
        asked = list(server.requests)
    assert [o.reward_score for (o,) in found] == [1.0] * 3
    kept = [t for file in made[0].glob("episodes/*/trajectories.jsonl") for t in read_trajectories(file)]
    assert {t.persona for t in kept} == {"terse"} and {t.user for t in kept} == {"llm:u"}
    # one to see whether it is there, one opening for all three, and an answer for each
    assert len(asked) == 1 + 1 + 3
    config = load_config(made[0].parent / "config.yaml")
    assert agent_loop.shared(config, 3).train_user.endpoint.concurrency == 2
    assert agent_loop.shared(config, 30).train_user.endpoint.concurrency == 1
    assert agent_loop.shared(load_config(None), 4) == load_config(None)


def test_a_gateway_is_shared_out_among_the_workers():
    route = "{base_url: http://a/v1, model: m, concurrency: 9, requests_per_minute: 100}"
    config = load_config(
        None,
        [
            f"gateways.g={{routes: [{route}], prices: {{m: {{}}}}, budget: {{tokens: 1000, dollars: 3.0}}}}",
            "train_user={kind: endpoint, endpoint: {model: m, gateway: g}}",
        ],
    )
    found = agent_loop.shared(config, 4).gateways["g"]
    (one,) = found.routes
    assert (one.concurrency, one.requests_per_minute, one.tokens_per_minute) == (2, 25, None)
    assert (found.budget.tokens, found.budget.dollars) == (250, 0.75)


def test_rows_survive_verls_loader(shop):
    (fields,) = rows_of(shop)
    row = Row.of({**fields, "session_id": 4})
    assert (row.session, row.step, row.index, row.task_id, row.held_out) == (4, 1, 0, "cancel_1", False)
    assert fields["agent_name"] == dataset.AGENT == "mua"


# --- advantages and loss --------------------------------------------------------------------------


def batch(rows=12, length=9, seed=0):
    """(rewards, groups, mask, old, new, reference) of a step."""
    rng = torch.Generator().manual_seed(seed)
    rewards = torch.randint(0, 2, (rows,), generator=rng).float()
    mask = torch.rand(rows, length, generator=rng) < 0.6
    mask[:, -1] |= ~mask.any(1)
    old = -3 * torch.rand(rows, length, generator=rng)
    new = (old + 0.5 * torch.randn(rows, length, generator=rng)).requires_grad_()
    reference = old + 0.3 * torch.randn(rows, length, generator=rng)
    return rewards, np.repeat(["a", "b", "c"], rows // 3), mask, old, new, reference


@pytest.mark.parametrize("norm", [True, False])
def test_advantages_are_verls(norm):
    rewards, groups, mask, *_ = batch()
    scores = torch.zeros(mask.shape)
    scores[:, -1] = rewards
    theirs, _ = core_algos.compute_grpo_outcome_advantage(
        scores, mask.float(), groups, norm_adv_by_std_in_grpo=norm, config=AlgoConfig()
    )
    for name in "abc":
        own = group_advantages(rewards[groups == name], "std" if norm else "none")
        assert torch.allclose(theirs[groups == name], own[:, None] * mask[groups == name], atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clip_high": 0.28, "dual_clip": None},
        {"aggregation": "sequence_mean", "kl": "k2", "kl_coefficient": 0.1},
        {"aggregation": "constant", "constant_length": 7, "kl_coefficient": 0.2},
        {"kl": "k1", "kl_coefficient": 0.3, "clip_low": 0.1},
        {"correction": "token", "correction_cap": 1.3},
        {"correction": "sequence", "correction_cap": 1.5},
        {"entropy_coefficient": 0.05},
    ],
    ids=str,
)
def test_loss_and_gradient_are_verls(settings):
    rewards, _, mask, old, new, reference = batch()
    own = GrpoSettings(**settings)
    config = load_config(RECIPES[0], [f"train.grpo={json.dumps(settings)}"])
    found = composed(launch.options(config, Path("/m"), Path("/f"), 165))
    actor = omega_conf_to_dataclass(found.actor_rollout_ref.actor)
    tokens, rows = int(mask.sum()), len(mask)
    actor.global_batch_info.update(
        dp_size=1, batch_num_tokens=tokens, global_batch_size=rows, loss_scale_factor=actor.loss_scale_factor
    )
    advantages = group_advantages(rewards)
    entropy = (new**2).detach().requires_grad_()
    start, weights = old, None
    if own.correction != "none":  # the trainer's own probabilities before the update are others
        start = (old + 0.2 * torch.randn(old.shape, generator=torch.Generator().manual_seed(5))).detach()
        from verl import DataProto

        data = DataProto.from_dict(
            {"old_log_probs": start, "rollout_log_probs": old, "response_mask": mask.long()}
        )
        data, _ = compute_rollout_correction_and_add_to_batch(data, found.algorithm.rollout_correction)
        weights = data.batch["rollout_is_weights"]
    theirs, _ = core_algos.get_policy_loss_fn(actor.policy_loss.loss_mode)(
        old_log_prob=start,
        log_prob=new,
        advantages=advantages[:, None].expand_as(new),
        response_mask=mask,
        loss_agg_mode=actor.loss_agg_mode,
        config=actor,
        rollout_is_weights=weights,
    )
    how = {"loss_mask": mask, "loss_agg_mode": actor.loss_agg_mode, **actor.global_batch_info}
    theirs = theirs - actor.entropy_coeff * core_algos.agg_loss(loss_mat=entropy, **how)
    kl = core_algos.kl_penalty(new, reference, actor.kl_loss_type)
    theirs = theirs + actor.kl_loss_coef * core_algos.agg_loss(loss_mat=kl, **how)
    gradients = torch.autograd.grad(theirs, (new, entropy), allow_unused=True)

    loss, _ = grpo_loss(
        new,
        old,
        reference,
        advantages,
        mask,
        settings=own,
        denominators=Denominators(tokens, rows),
        entropy_BT=entropy,
        start_logprobs_BT=None if own.correction == "none" else start,
    )
    ours = torch.autograd.grad(loss, (new, entropy), allow_unused=True)
    assert float(loss.detach()) == pytest.approx(float(theirs.detach()), abs=1e-5)
    for one, other in zip(ours, gradients, strict=True):
        assert torch.allclose(
            torch.zeros(()) if one is None else one, torch.zeros(()) if other is None else other, atol=1e-5
        )
    assert float(gradients[0].abs().max()) > 1e-3


def test_one_survivor_would_have_its_reward_for_an_advantage():
    """Why a group with fewer than two episodes is left out: in verl it is not without a signal."""
    scores, mask = torch.tensor([[1.0]]), torch.ones(1, 1)
    theirs, _ = core_algos.compute_grpo_outcome_advantage(scores, mask, np.array(["a"]), config=AlgoConfig())
    assert float(theirs) == pytest.approx(1.0, abs=1e-5) and group_advantages([1.0]).tolist() == [0.0]
