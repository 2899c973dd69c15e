"""Prompts of the `verifiers` library's environments, as rows of ``POST /v1/prompts``.

A row keeps the environment's own row in its metadata, which is what the environment's rewards are computed from.
"""

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from itertools import islice
from typing import Any

from trainers.client import Json


def prompts_of(environment: str, *, verifier: str, take: int | None, arguments: Mapping[str, Any]) -> Iterator[Json]:
    """The first `take` prompts, or all; `verifier` is the name under which the service knows the environment. Raises
    what loading the environment raises."""
    module = import_module(environment.rpartition("/")[2].partition("@")[0].replace("-", "_").lower())
    load_classic = getattr(module, "load_environment", None)
    rows = load_classic(**arguments).get_dataset() if load_classic else _tasks(environment, arguments)
    for row in islice(rows, take):
        answer = row.get("answer")
        yield {
            "prompt": _text(row),
            "reference": answer if isinstance(answer, str) else "",
            "verifier": verifier,
            "metadata": {"task": row},
        }


def _tasks(environment: str, arguments: Mapping[str, Any]) -> Iterable[Json]:
    from verifiers.v1.utils.loaders import taskset_class, taskset_config_type

    config = taskset_config_type(environment).model_validate({"id": environment} | dict(arguments))
    for task in taskset_class(environment)(config):
        yield task.data.model_dump(mode="json", exclude_unset=True)


def _text(row: Json) -> str:
    """What the policy is asked: the system prompt and the messages, one after the other."""
    asked = row["prompt"]
    said = [asked] if isinstance(asked, str) else [message["content"] for message in asked]
    return "\n\n".join([*([row["system_prompt"]] if row.get("system_prompt") else []), *said])
