"""Single-turn environments of the `verifiers` library: their reward functions, weighted as the environment says.

- A reward function that raises costs the verdict. The library's classic scorer would make it a zero.
- What needs more than one completion (tools, a user, a sandbox, the rest of the group) is refused when the environment
  is loaded, never left out of the sum.

A prompt's metadata may carry the environment's own row under ``task``; without it, prompt and reference are the row.
"""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from importlib import import_module
from importlib.metadata import version
from typing import Any

from service.verifiers.base import Question, Rule, dialogue
from service.verifiers.rewards import RangeOptions

TASK = "task"
"""Metadata that holds the row."""

Scored = Callable[[dict[str, Any], Question, str], Coroutine[Any, Any, float]]
"""From (row, question, completion) to the sum of the weighted rewards."""


class NotSingleTurn(Exception):
    """The environment needs more than a prompt and a completion."""


def judging(environment: str, **arguments: Any) -> Rule:
    """`environment` is its id, as `verifiers` resolves it: ``owner/name@version`` is the installed package ``name``."""
    module = import_module(environment.rpartition("/")[2].partition("@")[0].replace("-", "_").lower())
    load_classic = getattr(module, "load_environment", None)
    scored = _classic(load_classic(**arguments)) if load_classic else _tasks(environment, arguments)

    def judge(question: Question, text: str) -> tuple[float, str]:
        row = {"prompt": question.prompt, "answer": question.reference} | question.metadata.get(TASK, {})
        reward = asyncio.run(scored(row, question, text))
        return RangeOptions.model_validate(question.options).scaled(reward), f"{reward:g}"

    return judge


# ---- tasksets (verifiers 0.4)


def _tasks(environment: str, arguments: dict[str, Any]) -> Scored:
    import verifiers.v1 as vf
    from verifiers.v1.utils.loaders import environment_class, taskset_class, taskset_config_type

    taskset, config_type = taskset_class(environment), taskset_config_type(environment)
    config, kind = config_type.model_validate({"id": environment} | arguments), taskset.task_type()
    _refuse_what_a_completion_alone_cannot_have(environment, environment_class(environment), taskset, kind, config)
    data_type, build = kind.data_type(), vf.VersionInfo(version=version("verifiers"))

    async def scored(row: dict[str, Any], question: Question, text: str) -> float:
        task = kind(data_type.model_validate(row), config.task)
        user, assistant = dialogue(question.prompt, text)
        nodes = [
            vf.MessageNode(message=vf.UserMessage(**user)),
            vf.MessageNode(message=vf.AssistantMessage(**assistant), parent=0, sampled=True),
        ]
        trace = vf.Trace(
            verifiers=build,
            task=vf.TraceTask(type=kind.__name__, data=task.data),
            agent=vf.AgentInfo(config=vf.AgentConfig()),
            nodes=nodes,
            is_completed=True,
            ok=True,
        )
        await task.score(trace)
        return float(trace.reward)

    return scored


def _refuse_what_a_completion_alone_cannot_have(
    name: str, environment: Any, taskset: Any, kind: Any, config: Any
) -> None:
    import verifiers.v1 as vf

    task = kind(kind.data_type().model_construct(), config.task)
    rewards = [*task.hooks("reward"), *(judge.score for judge in task.plugged_judges())]
    runtimes = [inspect.signature(reward).parameters.get("runtime") for reward in rewards]
    reasons = {
        "has an environment class of its own": environment is not vf.SingleAgentEnv,
        "uses tools": bool(taskset.toolsets(config) or kind.toolsets(config.task)),
        "needs a container": kind.NEEDS_CONTAINER,
        "prepares its tasks": kind.setup is not vf.Task.setup or kind.finalize is not vf.Task.finalize,
        "has a reward that needs a runtime": any(one and one.default is one.empty for one in runtimes),
        "has no reward": not rewards,
    }
    _refuse(name, reasons)


# ---- classic environments (verifiers 0.3)


def _classic(environment: Any) -> Scored:
    import verifiers as vf
    from verifiers.types import State
    from verifiers.utils.message_utils import normalize_messages

    rubrics = getattr(environment.rubric, "rubrics", [environment.rubric])
    reasons = {
        "takes more than one turn": not isinstance(environment, vf.SingleTurnEnv),
        "rewards whole groups": environment.rubric.has_group_rewards,
        "has no reward": not any(weight for rubric in rubrics for weight in rubric.weights),
    }
    _refuse(environment.env_id or type(environment).__name__, reasons)

    async def scored(row: dict[str, Any], question: Question, text: str) -> float:
        user, assistant = dialogue(question.prompt, text)
        asked = row["prompt"] if isinstance(row["prompt"], list) else [user]
        state = State(input=row | {"prompt": normalize_messages(asked)})
        state.update(task=row, completion=normalize_messages([assistant]), trajectory=[], is_completed=True)
        return sum([await _weighted(rubric, state) for rubric in rubrics])

    return scored


async def _weighted(rubric: Any, state: Any) -> float:
    """The rubric's rewards in `state`. Functions without a weight are metrics."""
    given = rubric.score_objects(state)
    total = 0.0
    for reward, weight in zip(rubric.funcs, rubric.weights, strict=True):
        if weight:
            takes = inspect.signature(reward).parameters
            takes_all = any(one.kind is one.VAR_KEYWORD for one in takes.values())
            said = reward(**{name: value for name, value in given.items() if takes_all or name in takes})
            total += weight * float(await said if inspect.isawaitable(said) else said)
    return total


def _refuse(name: str, reasons: dict[str, bool]) -> None:
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise NotSingleTurn(f"environment {name} cannot judge a completion by itself: it {' and '.join(found)}")
