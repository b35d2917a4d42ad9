"""One conversation, from the first word to a termination reason.

Invariants:
- Every episode ends with a `Termination`; whatever fails in it stays in it.
- Only a normal end is scored by the state; an agent's fault scores 0; an infrastructure failure has no
  reward at all.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

from .agents import Agent
from .chat import Message, Side, ToolCall, agent_view, user_view
from .domain import Domain, Limits, Task, ToolResult, World
from .errors import InfrastructureError
from .tools import Tool
from .trajectory import Termination, Trajectory, Usage
from .users import User


async def play(
    domain: Domain,
    task: Task,
    agent: Agent,
    user: User,
    *,
    limits: Limits = Limits(),
    seed: int = 0,
    opening: str | None = None,
    world: World | None = None,
    on_step: Callable[[int], None] = lambda tokens: None,
) -> Trajectory:
    """Plays one episode and grades it.

    `opening` is a first user message fixed beforehand: the paper freezes it for all rollouts of a task.
    `world` is given when somebody else (the expert) must see the same one; it must be fresh. `on_step` hears
    of each step of the agent, and how many tokens it sampled.
    Agent and user are closed at the end, whatever happens.
    """
    agent = domain.agent(task, agent)
    prompt = domain.system_prompt(task)
    messages = [Message("system", prompt)] if prompt else []
    home = domain.of(task)[0]
    if home.greeting:
        messages.append(Message("assistant", home.greeting))
    usage = Usage()
    detail = ""
    try:
        world = world or domain.open(task)
        limits = home.limits or limits
        termination = await _converse(world, agent, user, limits, messages, usage, opening, on_step)
    except _Failure as failure:
        termination, detail = failure.termination, str(failure)
    finally:
        try:
            agent.close()
        finally:
            # Users that hold something (a KV cache) have a `close`; most hold nothing.
            getattr(user, "close", lambda: None)()
    assert world is not None
    trajectory = Trajectory(
        domain=domain.name,
        task_id=task.id,
        kind=task.kind,
        fingerprint=task.fingerprint,
        messages=messages,
        termination=termination,
        seed=seed,
        usage=usage,
        trace=agent.trace,
        detail=detail,
        user=user.name,
        persona=getattr(user, "persona", ""),  # most users have none
        faults=dict(world.faults),  # a plain one: trajectories travel between processes
    )
    if termination.infrastructure:
        trajectory.reason = f"not scored: {detail}"
    else:
        verdict = domain.grade(task, messages, termination, world)
        trajectory.reward = verdict.reward
        trajectory.components = verdict.components
        trajectory.reason = verdict.reason
    return trajectory


class _Failure(Exception):
    def __init__(self, termination: Termination, text: str):
        super().__init__(text)
        self.termination = termination


async def _converse(
    world: World,
    agent: Agent,
    user: User,
    limits: Limits,
    messages: list[Message],
    usage: Usage,
    opening: str | None,
    on_step: Callable[[int], None],
) -> Termination:
    """The state machine: user turn → agent steps until it speaks → user turn → … → an end."""
    tools: Mapping[str, Tool] | None = None
    for turn in range(limits.turns + 1):
        if turn == 0 and opening is not None:
            messages.append(Message("user", opening))
        elif (end := await _user_turn(world, user, limits, messages, usage)) is not None:
            return end
        if (end := world.over(messages)) is not None:
            return end
        if turn == limits.turns:
            return Termination.TURN_CAP
        world.begin_turn(turn)
        for steps in itertools.count():
            if usage.agent_steps >= limits.steps or steps == limits.turn_steps:
                return Termination.TURN_CAP
            tools = _hand_out(world, agent, tools)
            try:
                step = await agent.step(agent_view(messages, world.domain.user_asides))
            except InfrastructureError as exc:
                raise _Failure(Termination.ENGINE_FAILED, str(exc)) from exc
            usage.agent_steps += 1
            usage.agent_tokens += step.tokens
            on_step(step.tokens)
            usage.agent_cost += step.cost
            message = step.message
            if message.tool_calls:
                message = dataclasses.replace(message, tool_calls=_with_ids(message.tool_calls, messages))
            messages.append(message)
            if step.truncated:
                return Termination.TOKEN_CAP
            if (end := world.over(messages)) is not None:
                # Its calls never run, so they are not recorded: a replay would run them.
                messages[-1] = dataclasses.replace(message, tool_calls=())
                return end
            if not message.tool_calls:
                if (end := _capped(world, limits, messages, usage)) is not None:
                    return end
                break
            end = await _run_calls(world, message, messages, usage)
            if end is None:
                end = world.over(messages)
            if end is not None:
                return end
            if (end := _capped(world, limits, messages, usage)) is not None:
                return end
    raise AssertionError("unreachable: the last turn returns")


def _hand_out(world: World, agent: Agent, before: Mapping[str, Tool] | None) -> Mapping[str, Tool]:
    """Tells the agent when its tools have changed; one that never has to know needs no `use_tools`."""
    tools = world.tools()
    if before is not None and tools.keys() != before.keys():
        getattr(agent, "use_tools", lambda tools: None)(tools)
    return tools


def _capped(world: World, limits: Limits, messages: list[Message], usage: Usage) -> Termination | None:
    """The end by a limit that both sides share; asked where the floor changes, and after tools' answers."""
    if usage.tool_errors >= limits.errors:
        return Termination.TOO_MANY_ERRORS
    if limits.hops is not None:
        # A message is a step, and so are the answers to its calls; the greeting is none.
        spoken = sum(1 + bool(m.tool_calls) for m in messages if m.role in ("user", "assistant"))
        if spoken - bool(world.domain.greeting) >= limits.hops:
            return Termination.TURN_CAP
    return None


async def _user_turn(
    world: World, user: User, limits: Limits, messages: list[Message], usage: Usage
) -> Termination | None:
    """Lets the user speak (and use its own tools first); how the conversation ends, when it ends here."""
    for _ in range(limits.hops or 20):
        try:
            turn = await user.reply(user_view(messages))
        except InfrastructureError as exc:
            raise _Failure(Termination.USER_FAILED, str(exc)) from exc
        usage.user_turns += 1
        usage.user_prompt_tokens += turn.usage.user_prompt_tokens
        usage.user_tokens += turn.usage.user_tokens
        usage.user_cost += turn.usage.user_cost
        stop = turn.stop or any(marker in turn.text for marker in world.domain.stop_markers)
        # Calls beside a stop never run, so they are not recorded: a replay would run them.
        calls = () if stop else _with_ids(turn.tool_calls, messages)
        messages.append(Message("user", turn.text, tool_calls=calls))
        if stop:  # a step limit that is reached in the same step counts more, as in τ²-bench
            return _capped(world, limits, messages, usage) or Termination.USER_STOP
        if not calls:
            return _capped(world, limits, messages, usage)
        for call in calls:
            result = await _call(world, "user", call)
            usage.tool_errors += result.error and world.domain.user_errors
            messages.append(
                Message("tool", result.content, tool_call_id=call.id, requestor="user", error=result.error)
            )
        if (end := _capped(world, limits, messages, usage)) is not None:
            return end
    raise _Failure(Termination.USER_FAILED, "the user made 20 rounds of tool calls without a word")


def _with_ids(calls: Sequence[ToolCall], messages: Sequence[Message]) -> tuple[ToolCall, ...]:
    """The calls with ids that no earlier call has: some servers leave them out, some start anew each time."""
    used = {call.id for message in messages for call in message.tool_calls}
    out = []
    for call in calls:
        number = len(used) + 1
        call_id = call.id
        while not call_id or call_id in used:
            call_id, number = f"call_{number}", number + 1
        used.add(call_id)
        out.append(dataclasses.replace(call, id=call_id))
    return tuple(out)


async def _run_calls(
    world: World, message: Message, messages: list[Message], usage: Usage
) -> Termination | None:
    """Runs the calls of one step in order; how the episode ends, when one of them handed over."""
    world.begin_step(message)
    for call in message.tool_calls:
        result = await _call(world, "assistant", call)
        usage.tool_calls += 1
        usage.tool_errors += result.error and not result.fault  # a fault is no mistake of the agent's
        messages.append(
            Message(
                "tool",
                result.content,
                tool_call_id=call.id,
                error=result.error,
                fault=result.fault,
                unrun=result.unrun,
            )
        )
        if result.ends and not result.error:
            return Termination.AGENT_STOP if result.done else Termination.AGENT_TRANSFER
    return None


async def _call(world: World, side: Side, call: ToolCall) -> ToolResult:
    try:
        return await world.perform(side, call)
    except InfrastructureError as exc:
        raise _Failure(Termination.TOOLS_FAILED, str(exc)) from exc
