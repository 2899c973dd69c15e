"""Unit tests of a program that a completion holds.

- The program runs in one sandbox, the tests in another. Between them go calls and plain results, so that the program
  never sees what is expected of it: exit codes, sentinels and objects that equal everything forge nothing.
- A program that is wrong, raises or gives up gets 0. One that is stopped (time, memory, output) gets no reward.
"""

import ast
import builtins
import json
import re
import textwrap
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from curation.choice import Choice
from service.verifiers.base import BadReference, NoAnswer, Options, OutOfTime, Question
from service.verifiers.sandbox import Box, BoxLimits, Sandbox, find

FENCED = re.compile(r"```(?:python|py|Python)?[ \t]*\n(.*?)```", re.DOTALL)
STOPPED_FOR_TIME = {128 + 24}
"""SIGXCPU"""


class CodeOptions(Options):
    partial: bool = False
    """The reward is the share of tests passed, instead of all or nothing."""
    seconds: float = Field(20.0, gt=0, le=600)
    """Wall clock of all tests of one program together."""

    @property
    def wall_seconds(self) -> float:
        return self.seconds + 30.0  # for starting and ending the sandboxes


class Operator(Choice):
    """What the operator chose."""

    python: Path | None = None
    unsafe: bool = False


class Tests(Choice):
    """Metadata of a prompt: tests in one of three styles."""

    test: str | None = None
    """Source that defines ``check(candidate)`` (HumanEval); needs `entry_point`."""
    entry_point: str | None = None
    test_list: tuple[str, ...] = ()
    """Assertions that call the program's functions by name (MBPP)."""
    test_setup_code: str = ""
    inputs: tuple[Any, ...] = ()
    """Standard inputs, or with `fn_name` lists of arguments (APPS)."""
    outputs: tuple[Any, ...] = ()
    fn_name: str | None = None


class Crashed(Exception):
    """The program was stopped by a signal."""


def judge(question: Question, text: str) -> tuple[float, str]:
    tests = _tests(question)
    options = CodeOptions.model_validate({k: v for k, v in question.options.items() if k in CodeOptions.model_fields})
    operator = Operator.model_validate({k: v for k, v in question.options.items() if k in Operator.model_fields})
    sandbox = find(operator.python, BoxLimits(), unsafe=operator.unsafe)
    program = _program(question, tests, text)
    deadline = time.monotonic() + options.seconds
    try:
        if tests.inputs:
            passed, total, why = _by_examples(sandbox, program, tests, options.partial, deadline)
        else:
            passed, total, why = _by_assertions(sandbox, program, question, tests, options.partial, deadline)
    except TimeoutError:
        raise OutOfTime(f"not done after {options.seconds:g} s") from None
    if total == 0:
        raise BadReference("the tests assert nothing")
    detail = f"{passed} of {total} tests" + (f"; {why}" if why else "")
    return (passed / total if options.partial else float(passed == total)), detail[:500]


def _tests(question: Question) -> Tests:
    known = {key: value for key, value in question.metadata.items() if key in Tests.model_fields}
    try:
        tests = Tests.model_validate(known)
    except ValidationError as error:
        raise BadReference(f"metadata: {error.errors()[0]['msg']}") from None
    if len(tests.inputs) != len(tests.outputs):
        raise BadReference(f"metadata has {len(tests.inputs)} inputs and {len(tests.outputs)} outputs")
    if not (tests.inputs or tests.test_list or (tests.test and tests.entry_point)):
        raise BadReference('metadata has no "test" with "entry_point", no "test_list" and no "inputs" with "outputs"')
    return tests


def _program(question: Question, tests: Tests, text: str) -> str:
    """The code of the completion; behind the prompt where the prompt is the beginning of the program."""
    fenced = FENCED.findall(text)
    code = fenced[-1] if fenced else text
    if not code.strip():
        raise NoAnswer
    if tests.entry_point is None or not _defines(question.prompt, tests.entry_point):
        return code
    if fenced and _defines(code, tests.entry_point):
        return f"{question.prompt}\n{code}"
    if fenced and not code[0].isspace():
        code = textwrap.indent(code, "    ")
    return question.prompt + code


def _defines(source: str, name: str) -> bool:
    return re.search(rf"^(?:async\s+)?def\s+{re.escape(name)}\b", source, re.MULTILINE) is not None


# ---- assertions


def _by_assertions(
    sandbox: Sandbox, program: str, question: Question, tests: Tests, partial: bool, deadline: float
) -> tuple[int, int, str]:
    """(passed, total, what failed first)."""
    box = sandbox.start(_boxed(), ["program"])
    try:
        refused = _begin(box, program, deadline)
        if refused:
            return 0, 1, refused
        judge_box = _tests_box(sandbox)
        try:
            return _relay(box, judge_box, _task(question, tests, partial), deadline)
        except BaseException:
            _tests_box.cache_clear()
            judge_box.end()
            raise
    finally:
        box.end()


def _begin(box: Box, program: str, deadline: float) -> str:
    """Hands the program over; what went wrong if it did not even start."""
    said = _exchange(box, json.dumps(program).encode(), deadline)
    return f"{said['raised']}: {said.get('said', '')}" if "raised" in said else ""


def _relay(box: Box, judge_box: Box, task: dict[str, Any], deadline: float) -> tuple[int, int, str]:
    judge_box.send(json.dumps(task).encode() + b"\n", deadline)
    while True:
        line = judge_box.line(deadline)
        if not line:
            raise Crashed("the tests were stopped")
        said = json.loads(line)
        if "call" not in said:
            if said["broken"]:
                raise BadReference(f"the tests are broken: {said['broken']}")
            return said["passed"], said["total"], said["failed"]
        answer = _exchange(box, line, deadline)
        judge_box.send(json.dumps(answer).encode() + b"\n", deadline)


class GaveUp(Exception):
    """The program ended before it had answered."""


def _exchange(box: Box, line: bytes, deadline: float) -> dict[str, Any]:
    """What the program answers to a call: ``{"value": packed}`` or ``{"raised": name, "said": message}``."""
    try:
        box.send(line + b"\n", deadline)
    except BrokenPipeError:
        pass  # it ended: the next read tells how
    said = box.line(deadline)
    if not said:
        return _ended(box)
    try:
        answer = json.loads(said)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict) and answer.get("raised") == "MemoryError":
        raise MemoryError
    if isinstance(answer, dict) and ("value" in answer or isinstance(answer.get("raised"), str)):
        return answer
    return {"value": {"foreign": "no answer"}}


def _ended(box: Box) -> dict[str, Any]:
    """The answer of a program that is no more: none of its own, or an exception here if it was stopped."""
    status = box.end(2.0)
    if status in STOPPED_FOR_TIME:
        raise OutOfTime("the program used up its CPU time")
    if status >= 128:
        raise Crashed(f"the program was stopped by signal {status - 128}")
    return {"raised": "SystemExit", "said": f"the program ended with status {status}"}


def _task(question: Question, tests: Tests, partial: bool) -> dict[str, Any]:
    if tests.test and tests.entry_point:
        setup = question.prompt if _defines(question.prompt, tests.entry_point) else tests.test_setup_code
        return {
            "setup": setup,
            "tests": tests.test,
            "functions": [tests.entry_point],
            "check": True,
            "partial": partial,
        }
    source = "\n".join(tests.test_list)
    return {
        "setup": tests.test_setup_code,
        "tests": source,
        "functions": _called(tests.test_setup_code, source),
        "check": False,
        "partial": partial,
    }


def _called(setup: str, source: str) -> list[str]:
    """Names that the tests call and nobody but the program can define."""
    try:
        defined = {n.name for n in ast.walk(ast.parse(setup)) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        calls = {
            n.func.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }
    except SyntaxError as error:
        raise BadReference(f"the tests are broken: {error}") from None
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for n in ast.walk(ast.parse(setup))
        if isinstance(n, ast.Import | ast.ImportFrom)
        for alias in n.names
    }
    return sorted(calls - defined - imported - set(dir(builtins)))


@lru_cache(maxsize=1)
def _tests_box(sandbox: Sandbox) -> Box:
    """One for all programs of a worker: the tests are our user's, and see nothing but plain values."""
    return sandbox.start(_boxed(), ["tests"])


@lru_cache(maxsize=1)
def _boxed() -> str:
    return Path(__file__).with_name("boxed.py").read_text()


# ---- examples


def _by_examples(sandbox: Sandbox, program: str, tests: Tests, partial: bool, deadline: float) -> tuple[int, int, str]:
    """(passed, total, what failed first); the rest is not tried after a failure unless each test counts."""
    run = _call_example if tests.fn_name else _stdin_example
    passed, why = 0, ""
    for number, (given, expected) in enumerate(zip(tests.inputs, tests.outputs, strict=True)):
        failed = run(sandbox, program, tests, given, expected, deadline)
        if not failed:
            passed += 1
            continue
        why = why or f"test {number}: {failed}"
        if not partial:
            break
    return passed, len(tests.inputs), why


def _stdin_example(sandbox: Sandbox, program: str, tests: Tests, given: Any, expected: Any, deadline: float) -> str:
    box = sandbox.start(program)
    try:
        said = box.rest(_text(given).encode(), deadline)
        status = box.end(2.0)
    finally:
        box.end()
    if status in STOPPED_FOR_TIME:
        raise OutOfTime("the program used up its CPU time")
    if status >= 128:
        raise Crashed(f"the program was stopped by signal {status - 128}")
    if status != 0:
        return f"exit status {status}"
    written = said.decode(errors="replace")
    return "" if _lines(written) == _lines(_text(expected)) else f"wrote {written[:100]!r}"


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _lines(text: str) -> list[str]:
    """White space at the ends of lines and of the text does not matter."""
    return [line.rstrip() for line in text.strip().splitlines()]


def _call_example(sandbox: Sandbox, program: str, tests: Tests, given: Any, expected: Any, deadline: float) -> str:
    from service.verifiers.boxed import packed, unpacked

    name = tests.fn_name or ""
    source = f"{program}\n" + (f"{name} = Solution().{name}\n" if "class Solution" in program else "")
    box = sandbox.start(_boxed(), ["program"])
    try:
        refused = _begin(box, source, deadline)
        if refused:
            return refused
        args = given if isinstance(given, list) else [given]
        call = {"call": name, "args": packed(tuple(args)), "kwargs": packed({})}
        answer = _exchange(box, json.dumps(call).encode(), deadline)
    finally:
        box.end()
    if "raised" in answer:
        return f"{answer['raised']}: {answer.get('said', '')}"
    try:
        value = _as_json(unpacked(answer["value"]))
    except (ValueError, TypeError, RecursionError):
        return "no plain value"
    return "" if _is_same(value, expected) else f"returned {str(value)[:100]}"


def _as_json(value: Any) -> Any:
    """Tuples are lists in JSON."""
    match value:
        case list() | tuple():
            return [_as_json(item) for item in value]
        case dict():
            return {key: _as_json(item) for key, item in value.items()}
        case _:
            return value


def _is_same(value: Any, expected: Any) -> bool:
    """Equal with equal types all the way down: 1 is neither 1.0 nor True."""
    if type(value) is not type(expected):
        return False
    match value:
        case list():
            return len(value) == len(expected) and all(map(_is_same, value, expected))
        case dict():
            return value.keys() == expected.keys() and all(_is_same(value[key], expected[key]) for key in value)
        case _:
            return bool(value == expected)
