"""Single-turn environments of the `verifiers` library: their reward functions, weighted as the environment says.

- A reward function that raises costs the verdict. The library's classic scorer would make it a zero.
- What needs more than one completion (tools, a user, a sandbox, the rest of the group) is refused when the environment
  is loaded, never left out of the sum.
- Everything runs in this process, under its limits: a rubric's own pool of processes is replaced.

A prompt's metadata may carry the environment's own row under ``task``; without it, prompt and reference are the row.
"""

import asyncio
import inspect
import json
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from importlib import import_module
from importlib.metadata import version
from typing import Any

from service.verifiers.base import Question, Rule, dialogue
from service.verifiers.rewards import RangeOptions, number

TASK = "task"
"""Metadata that holds the row."""

Scored = Callable[[Question, str], Coroutine[Any, Any, float]]
"""From (question, completion) to the sum of the weighted rewards."""


class NotSingleTurn(Exception):
    """The environment needs more than a prompt and a completion."""


def judging(environment: str, arguments: Mapping[str, Any]) -> Rule:
    """`environment` is its id, as `verifiers` resolves it: ``owner/name@version`` is the installed package ``name``;
    `arguments` is what it is loaded with."""
    module = import_module(environment.rpartition("/")[2].partition("@")[0].replace("-", "_").lower())
    load_classic = getattr(module, "load_environment", None)
    scored = _classic(load_classic(**arguments)) if load_classic else _tasks(environment, arguments)
    runner = asyncio.Runner()  # one loop for good: clients of judges keep connections that belong to it

    def judge(question: Question, text: str) -> tuple[float, str]:
        reward = runner.run(scored(question, text))
        return RangeOptions.model_validate(question.options).scaled(reward), f"{reward:g}"

    return judge


def _row(question: Question, has: Callable[[str], bool]) -> dict[str, Any]:
    """The environment's row: what the prompt carries, and prompt and reference where that lacks them."""
    given = {"prompt": question.prompt} | ({"answer": question.reference} if question.reference else {})
    row: dict[str, Any] = {name: value for name, value in given.items() if has(name)}
    row |= question.metadata.get(TASK, {})
    return row


# ---- tasksets (verifiers 0.4)


def _tasks(environment: str, arguments: Mapping[str, Any]) -> Scored:
    import verifiers.v1 as vf
    from verifiers.v1.utils.loaders import environment_class, taskset_class, taskset_config_type

    taskset, config_type = taskset_class(environment), taskset_config_type(environment)
    config, kind = config_type.model_validate({"id": environment} | dict(arguments)), taskset.task_type()
    _refuse_what_a_completion_alone_cannot_have(environment, environment_class(environment), taskset, kind, config)
    data_type, build = kind.data_type(), vf.VersionInfo(version=version("verifiers"))

    async def scored(question: Question, text: str) -> float:
        task = kind(data_type.model_validate(_row(question, data_type.model_fields.__contains__)), config.task)
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

    rubrics = list(_rubrics(environment.rubric))
    reasons = {
        "takes more than one turn": not isinstance(environment, vf.SingleTurnEnv),
        "prepares its tasks": type(environment).setup_state is not vf.MultiTurnEnv.setup_state,
        "rewards whole groups": environment.rubric.has_group_rewards,
        "has no reward": not any(weight for rubric in rubrics for weight in rubric.weights),
    }
    _refuse(environment.env_id or type(environment).__name__, reasons)
    vf.Rubric._call_individual_reward_func = _reward  # the library's own makes a zero of what raises
    for rubric in rubrics:
        for name, value in vars(rubric).items():
            if isinstance(value, ProcessPoolExecutor):
                setattr(rubric, name, _InThisProcess())

    async def scored(question: Question, text: str) -> float:
        user, assistant = dialogue(question.prompt, text)
        row = {"answer": question.reference} | _row(question, lambda _: True)
        asked = row["prompt"] if isinstance(row["prompt"], list) else [user]
        info = row.get("info", {})
        row |= {"prompt": normalize_messages(asked), "info": json.loads(info) if isinstance(info, str) else info}
        state = State(input=row)
        state.update(task=row, completion=normalize_messages([assistant]), trajectory=[], is_completed=True)
        await environment.rubric.score_rollout(state)
        return float(state["reward"])

    return scored


def _rubrics(rubric: Any) -> Iterator[Any]:
    """The rubric and every one inside it."""
    import verifiers as vf

    yield rubric
    for value in vars(rubric).values():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, vf.Rubric):
                yield from _rubrics(inner)


async def _reward(rubric: Any, func: Callable[..., Any], state: Any) -> float:
    """In the place of ``Rubric._call_individual_reward_func``, with its arguments."""
    given = rubric.score_objects(state)
    takes = inspect.signature(func).parameters
    takes_all = any(one.kind is one.VAR_KEYWORD for one in takes.values())
    said = func(**{name: value for name, value in given.items() if takes_all or name in takes})
    return number(await said if inspect.isawaitable(said) else said)


class _InThisProcess(Executor):
    """Runs what it is given at once: a worker must have no children that outlive its limits."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as fault:  # noqa: BLE001 - it is the caller's
            future.set_exception(fault)
        return future


def _refuse(name: str, reasons: dict[str, bool]) -> None:
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise NotSingleTurn(f"environment {name} cannot judge a completion by itself: it {' and '.join(found)}")
