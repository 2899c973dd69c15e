"""Reward functions as TRL's GRPOTrainer takes them: ``f(prompts, completions, **columns) -> list of rewards``.

They get one completion at a time, so that one which hangs or raises costs its own verdict only. Columns are the
prompt's metadata, and its reference under the names that TRL's own functions use.
"""

import asyncio
import inspect
from typing import Any

from service.verifiers.base import BadReference, Options, Question
from service.verifiers.worker import rule_at

REFERENCES = ("reference", "solution", "answer", "ground_truth")
"""Columns in which functions look for the reference answer."""


class FunctionOptions(Options):
    chat: bool = False
    """Prompts and completions as lists of messages instead of plain text."""
    low: float = 0.0
    high: float = 1.0
    """The function's rewards run from `low` to `high`; they are stored as 0 to 1."""


def judge(question: Question, text: str) -> tuple[float, str]:
    """The operator's `function` is ``package.module:function``."""
    options = FunctionOptions.model_validate(question.options)
    function: Any = rule_at(question.operator["function"])
    columns = dict.fromkeys(REFERENCES, question.reference) | question.metadata
    said = function(
        prompts=[_message("user", question.prompt, options)],
        completions=[_message("assistant", text, options)],
        **{name: [value] for name, value in columns.items()},
    )
    [reward] = asyncio.run(said) if inspect.iscoroutine(said) else said
    if reward is None:
        raise BadReference("the function has no reward for this prompt")
    return (float(reward) - options.low) / (options.high - options.low), f"{float(reward):g}"


def _message(role: str, text: str, options: FunctionOptions) -> Any:
    return [{"role": role, "content": text}] if options.chat else text
