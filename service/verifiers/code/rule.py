"""Unit tests of a program that a completion holds.

- The program runs in one sandbox, the tests in another. Between them go calls and plain results, so that the program
  never sees what is expected of it: exit codes, sentinels and objects that equal everything forge nothing.
- A program that is wrong, raises or gives up gets 0. One that is stopped (time, memory, output) gets no reward.
"""

import re
import textwrap
import time
from functools import partial
from pathlib import Path

from pydantic import Field

from service.verifiers.base import BadReference, NoAnswer, Options, OutOfTime, Question, Rule
from service.verifiers.code.assertions import by_assertions
from service.verifiers.code.examples import by_examples
from service.verifiers.code.sandbox import Sandbox, find
from service.verifiers.code.tests import Tests, defines, tests_of

FENCED = re.compile(r"```(?:python|py|Python)?[ \t]*\n(.*?)```", re.DOTALL)


class CodeOptions(Options):
    partial: bool = False
    """The reward is the share of tests passed, instead of all or nothing."""
    seconds: float = Field(20.0, gt=0, le=600)
    """Wall clock of all tests of one program together."""

    @property
    def wall_seconds(self) -> float:
        return self.seconds + 30.0  # for starting and ending the sandboxes


def judging(*, python: str | None = None, unsafe: bool = False) -> Rule:
    """`python` runs the programs, the system's by default; `unsafe` lets it do so without a sandbox."""

    return partial(_judge, find(Path(python) if python else None, unsafe=unsafe))


def _judge(sandbox: Sandbox, question: Question, text: str) -> tuple[float, str]:
    tests = tests_of(question)
    options = CodeOptions.model_validate(question.options)
    program = _program(question, tests, text)
    deadline = time.monotonic() + options.seconds
    try:
        if tests.inputs:
            score = by_examples(sandbox, program, tests, partial=options.partial, deadline=deadline)
        else:
            score = by_assertions(sandbox, program, question, tests, partial=options.partial, deadline=deadline)
    except TimeoutError:
        raise OutOfTime(f"not done after {options.seconds:g} s") from None
    if score.total == 0:
        raise BadReference("the tests assert nothing")
    detail = f"{score.passed} of {score.total} tests" + (f"; {score.failed}" if score.failed else "")
    return (score.passed / score.total if options.partial else float(score.passed == score.total)), detail[:500]


def _program(question: Question, tests: Tests, text: str) -> str:
    """The code of the completion; behind the prompt where the prompt is the beginning of the program."""
    fenced = FENCED.findall(text)
    code = fenced[-1] if fenced else text
    if not code.strip():
        raise NoAnswer
    if tests.entry_point is None or not defines(question.prompt, tests.entry_point):
        return code
    if fenced and defines(code, tests.entry_point):
        return f"{question.prompt}\n{code}"
    if fenced and not code[0].isspace():
        code = textwrap.indent(code, "    ")
    return question.prompt + code
