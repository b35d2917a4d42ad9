"""Our episodes inside TRL's GRPOTrainer, by its `rollout_func`: for users who stay there.

    episodes = Episodes("library:desk")
    GRPOTrainer(model, episodes.reward, args, train_dataset=episodes.dataset(),
                rollout_func=episodes.rollout, …)

docs/other-trainers.md has the whole example, and the limits: one process, no vLLM.

Invariants:
- Episodes are played by `rollout.play_groups`, from the trainer's own weights. The mask is 1 exactly on
  sampled ids.
- An episode that infrastructure broke has no reward and no trained token: TRL then leaves it out of its
  group's mean.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

from ..agents.model import ModelAgent
from ..domain import Task
from ..engines import Engine, Sampling
from ..engines.local import make_engine
from ..errors import InfrastructureError, MuaError
from ..formats import ChatFormat, ToolStyle
from ..rollout import Group, RolloutSettings, play_groups
from ..seeds import derive_seed
from ..trajectory import Trajectory
from .background import run
from .stepwise import setting


class Episodes:
    """The episodes of one domain's split, for one trainer.

    `settings` are keywords of `stepwise.setting`. `rollout` says how many times a broken episode is
    played, how many run at once, and whether a group shares its opening; its sizes are TRL's.
    `tool_style` and `thinking` are those of `ChatFormat.of`: give what the model was trained with.
    `make_engine` makes the generator for the trainer's model.
    """

    def __init__(
        self,
        domain: str = "library",
        split: str = "train",
        user: str = "agenda",
        *,
        seed: int = 0,
        rollout: RolloutSettings | None = None,
        tool_style: ToolStyle = "schema",
        thinking: bool = False,
        make_engine: Callable[[Any], Engine] = make_engine,
        on_episode: Callable[[Trajectory], None] | None = None,
        **settings: Any,
    ):
        self.setting = setting(domain, split, user, **settings)
        self.seed = seed
        self.settings = rollout or RolloutSettings()
        self.on_episode = on_episode
        self._make_engine = make_engine
        self._style: dict[str, Any] = {"tool_style": tool_style, "thinking": thinking}
        self._made: tuple[Any, Engine, ChatFormat] | None = None
        self._tasks = {task.id: task for task in self.setting.tasks}
        self._calls: collections.Counter[tuple[str, int]] = collections.Counter()

    def dataset(self, count: int | None = None) -> Any:
        """The tasks as a `datasets.Dataset`; a task's prompt is its name, which `rollout` looks up. `count`
        takes the first so many."""
        from datasets import Dataset

        return Dataset.from_dict({"prompt": list(self._tasks)[:count]})

    def rollout(self, prompts: Sequence[str], trainer: Any) -> dict[str, list[Any]]:
        """TRL's `rollout_func`: plays a group for each run of equal prompts. Raises MuaError for what
        cannot be trained so."""
        _check(trainer)
        training = trainer.model.training
        size = trainer.num_generations if training else trainer.num_generations_eval
        engine, format = self._of(trainer)
        groups = self._play(self._named(prompts, size), engine, format, trainer, size)
        if not any(group.trajectories for group in groups):
            why = next((t.detail for group in groups for t in group.failed), "nobody could be asked")
            raise InfrastructureError(f"not one episode of this step could be played: {why}")
        if not any(t.trace and t.trace.sampled for group in groups for t in group.trajectories):
            raise MuaError(
                f"no prompt of this step leaves room in the model's context of {engine.context} tokens; "
                "describe the tools as the model knows them (tool_style), or take another model."
            )
        rows: dict[str, list[Any]] = {key: [] for key in _KEYS}
        for group in groups:
            for trajectory in (*group.trajectories, *[None] * (size - len(group.trajectories))):
                for key, value in _row(trajectory, format, group).items():
                    rows[key].append(value)
        return rows

    def reward(
        self, completions: Sequence[Any], mua_reward: Sequence[float | None], **_: Any
    ) -> list[float | None]:
        """TRL's reward function: what `rollout` found. None: not scored."""
        return list(mua_reward)

    def _named(self, prompts: Sequence[str], size: int) -> list[str]:
        """The task of each group. TRL repeats a prompt for every episode of its group."""
        names = list(prompts[::size])
        if list(prompts) != [name for name in names for _ in range(size)] or len(prompts) % size:
            raise MuaError(
                f"TRL gave prompts that are not groups of {size}: let per_device_train_batch_size × "
                "gradient_accumulation_steps (or generation_batch_size) be a multiple of num_generations."
            )
        unknown = [name for name in names if name not in self._tasks]
        if unknown:
            raise MuaError(
                f"'{str(unknown[0])[:60]}' is no task of this split: take the dataset of Episodes.dataset()."
            )
        return names

    def _play(
        self, names: Sequence[str], engine: Engine, format: ChatFormat, trainer: Any, size: int
    ) -> list[Group]:
        sampling = Sampling(
            temperature=trainer.temperature,
            top_p=trainer.args.top_p,
            max_tokens=trainer.max_completion_length,
        )
        model = trainer.accelerator.unwrap_model(trainer.model)
        training = model.training
        step = int(trainer.state.global_step)
        mode = "train" if training else "eval"
        call = self._calls[mode, step]
        self._calls[mode, step] += 1
        domain = self.setting.domain

        def agent(task: Task, session: str, seed: int) -> ModelAgent:
            tools = domain.task_tools(task)
            return ModelAgent(
                format, engine, tools, sampling=sampling, session=f"{mode}/{session}", seed=seed
            )

        playing = play_groups(
            domain,
            [self._tasks[name] for name in names],
            agent,
            self.setting.make_user,
            self.settings.model_copy(update={"group_size": size}),
            limits=self.setting.limits,
            seed=derive_seed(self.seed, "trl", mode, step, call),
            step=step,
            on_episode=self.on_episode,
        )
        model.eval()
        try:
            return run(playing)
        finally:
            model.train(training)

    def _of(self, trainer: Any) -> tuple[Engine, ChatFormat]:
        """The engine and the format for the trainer's model; made once."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        if self._made is None or self._made[0] is not model:
            format = ChatFormat.of(trainer.processing_class, **self._style)
            self._made = (model, self._make_engine(model), format)
        return self._made[1:]


_KEYS = ("prompt_ids", "completion_ids", "env_mask", "logprobs", "mua_reward", "mua_termination", "mua_task")


def _check(trainer: Any) -> None:
    """Refuses settings that would be ignored, and so train on something else than what was sampled."""
    args = trainer.args
    wrong = {
        "use_vllm": bool(args.use_vllm),
        "top_k": args.top_k not in (None, 0),
        "min_p": bool(args.min_p),
        "repetition_penalty": args.repetition_penalty != 1.0,
        "generation_kwargs": bool(args.generation_kwargs),
        "mask_truncated_completions": bool(args.mask_truncated_completions),
    }
    found = [name for name, set_ in wrong.items() if set_]
    if found:
        raise MuaError(
            f"GRPOConfig.{', '.join(found)}: episodes are generated by mua's engine with temperature and "
            "top_p alone; leave the others out (docs/other-trainers.md)."
        )
    if trainer.accelerator.num_processes > 1:
        raise MuaError("episodes inside TRL are played in one process; for more, see docs/other-trainers.md.")


def _row(trajectory: Trajectory | None, format: ChatFormat, group: Group) -> dict[str, Any]:
    """One episode as TRL wants it: the ids up to the first sampled one are the prompt."""
    told = {
        "mua_reward": None,
        "mua_termination": trajectory.termination.value if trajectory else "",
        "mua_task": group.task.id,
    }
    end = format.stop_ids[0]
    # TRL takes every row: one without sampled ids has a token that its mask leaves out.
    empty = {"prompt_ids": [end], "completion_ids": [end], "env_mask": [0], "logprobs": [0.0]}
    if trajectory is None or trajectory.trace is None:
        return {**empty, **told}
    told["mua_reward"] = trajectory.reward if trajectory.shaped is None else trajectory.shaped
    if len(trajectory.trace.segments) > 1:
        raise MuaError(
            f"the chat template rewrote the conversation of '{group.task.id}' (thinking that is dropped, "
            "or tools that change), and a row of TRL is one sequence; take others."
        )
    segment = trajectory.trace.current
    if 1 not in segment.mask:  # the prompt left no room: earns nothing, teaches nothing
        return {**empty, **told}
    start = segment.mask.index(1)
    return {
        "prompt_ids": segment.ids[:start],
        "completion_ids": segment.ids[start:],
        "env_mask": segment.mask[start:],
        "logprobs": segment.logprobs[start:],
        **told,
    }
