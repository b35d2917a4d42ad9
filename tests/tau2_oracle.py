"""Upstream's own evaluator as an oracle: reads conversations as JSON lines, answers with its verdicts.

Run by an interpreter that has upstream and what it needs (never ours):

    PYTHONPATH=UPSTREAM/src python tests/tau2_oracle.py < conversations.jsonl

Each line holds `domain`, `solo`, `task` (upstream's record), `messages`, `termination` and `nl` (verdicts on
the assertions in natural language, so that no model is asked). An answer holds `reward` and each component,
or `error`. Nothing of mua is imported here.
"""

import json
import sys

from loguru import logger

logger.remove()
from tau2.data_model.message import AssistantMessage, ToolMessage, UserMessage  # noqa: E402
from tau2.data_model.tasks import RewardType, Task  # noqa: E402
from tau2.domains.telecom.user_data_model import PerformanceLevel  # noqa: E402
from tau2.domains.telecom.user_tools import TelecomUserTools  # noqa: E402
from tau2.evaluator.evaluator_action import ActionEvaluator  # noqa: E402
from tau2.evaluator.evaluator_communicate import CommunicateEvaluator  # noqa: E402
from tau2.evaluator.evaluator_env import EnvironmentEvaluator  # noqa: E402

CLASSES = {"assistant": AssistantMessage, "user": UserMessage, "tool": ToolMessage}


def constructor(domain):
    from importlib import import_module

    return import_module(f"tau2.domains.{domain}.environment").get_environment


def verdict(line):
    task = Task.model_validate(line["task"])
    messages = [CLASSES[m["role"]].model_validate(m) for m in line["messages"]]
    # What one evaluation breaks on the class must not reach the next one (see mua's Tau2World).
    TelecomUserTools.default_vpn_details.server_performance = PerformanceLevel.EXCELLENT
    env = EnvironmentEvaluator.calculate_reward(
        environment_constructor=constructor(line["domain"]),
        task=task,
        full_trajectory=messages,
        solo_mode=line["solo"],
        strict_replay=False,
    )
    action = ActionEvaluator.calculate_reward(task=task, full_trajectory=messages)
    said = CommunicateEvaluator.calculate_reward(task=task, full_trajectory=messages)
    basis = set(task.evaluation_criteria.reward_basis)
    reward = 1.0
    if basis & {RewardType.DB, RewardType.ENV_ASSERTION}:
        reward *= env.reward
    if RewardType.ACTION in basis:
        reward *= action.reward
    if RewardType.NL_ASSERTION in basis:
        reward *= float(all(line["nl"]))
    if RewardType.COMMUNICATE in basis:
        reward *= said.reward
    return {
        "reward": reward,
        "db": float(env.db_check.db_match) if env.db_check else None,
        "env_assertion": float(all(c.met for c in env.env_assertions or [])),
        "env_checks": [c.met for c in env.env_assertions or []],
        "action": action.reward,
        "communicate": said.reward,
    }


for text in sys.stdin:
    try:
        answer = verdict(json.loads(text))
    except Exception as exc:
        answer = {"error": f"{type(exc).__name__}: {exc}"[:300]}
    print(json.dumps(answer), flush=True)
