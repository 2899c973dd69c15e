"""Reward functions as TRL's GRPOTrainer takes them: ``f(prompts, completions, **columns) -> list of rewards``.

They get one completion at a time, so that one which hangs or raises costs its own verdict only. Columns are the
prompt's metadata, and its reference under the names that TRL's own functions use.
"""

import asyncio
import inspect

from service.verifiers.base import BadReference, Question, Rule, dialogue
from service.verifiers.rewards import RangeOptions, number
from service.verifiers.worker import function_at

REFERENCES = ("reference", "solution", "answer", "ground_truth")
"""Columns in which functions look for the reference answer."""


class FunctionOptions(RangeOptions):
    chat: bool = False
    """Prompts and completions as lists of messages instead of plain text."""


def judging(function: str) -> Rule:
    """`function` is ``package.module:function``."""
    called = function_at(function)
    runner = asyncio.Runner()  # one loop for good: what a function keeps open belongs to it

    def judge(question: Question, text: str) -> tuple[float, str]:
        options = FunctionOptions.model_validate(question.options)
        user, assistant = dialogue(question.prompt, text)
        columns = dict.fromkeys(REFERENCES, question.reference) | question.metadata
        said = called(
            prompts=[[user] if options.chat else question.prompt],
            completions=[[assistant] if options.chat else text],
            **{name: [value] for name, value in columns.items()},
        )
        [reward] = runner.run(said) if inspect.iscoroutine(said) else said
        if reward is None:
            raise BadReference("the function has no reward for this prompt")
        value = number(reward)
        return options.scaled(value), f"{value:g}"

    return judge
