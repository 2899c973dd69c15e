"""Tests that assert: they run in a sandbox of their own, and what they call runs in the program's."""

import ast
import builtins
import json
from typing import Any

from service.verifiers.base import BadReference, Question
from service.verifiers.code.exchange import Crashed, begin, boxed_source, exchange
from service.verifiers.code.sandbox import Box, BoxLimits, Sandbox
from service.verifiers.code.tests import Score, Tests, defines

TESTS_LIMITS = BoxLimits(cpu_seconds=3600)
"""Of the tests' sandbox, which outlives many programs; the wall clock of each program limits its tests, too."""


def by_assertions(
    sandbox: Sandbox, program: str, question: Question, tests: Tests, *, partial: bool, deadline: float
) -> Score:
    with sandbox.start(boxed_source(), ["program"]) as box:
        refused = begin(box, program, deadline)
        if refused:
            return Score(0, 1, refused)
        task = _task(question, tests, partial)
        try:
            return _relay(box, _TESTS.box(sandbox, task), task, deadline)
        except BaseException:
            _TESTS.end()
            raise


def _relay(box: Box, judge_box: Box, task: dict[str, Any], deadline: float) -> Score:
    judge_box.send(json.dumps(task).encode() + b"\n", deadline)
    while True:
        line = judge_box.line(deadline)
        if not line:
            raise Crashed("the tests were stopped")
        said = json.loads(line)
        if "call" not in said:
            if said["broken"]:
                raise BadReference(f"the tests are broken: {said['broken']}")
            return Score(said["passed"], said["total"], said["failed"])
        answer = exchange(box, line, deadline)
        judge_box.send(json.dumps(answer).encode() + b"\n", deadline)


def _task(question: Question, tests: Tests, partial: bool) -> dict[str, Any]:
    if tests.test and tests.entry_point:
        setup = question.prompt if defines(question.prompt, tests.entry_point) else tests.test_setup_code
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


class _TestsBox:
    """The sandbox that the tests of the last program ran in. The next program with the same tests uses it, too; the
    tests of another prompt, which may be somebody else's, never do."""

    def __init__(self) -> None:
        self._box: Box | None = None
        self._task: dict[str, Any] = {}

    def box(self, sandbox: Sandbox, task: dict[str, Any]) -> Box:
        if self._box is None or task != self._task or not self._box.is_running:
            self.end()
            self._box, self._task = sandbox.start(boxed_source(), ["tests"], TESTS_LIMITS), task
        return self._box

    def end(self) -> None:
        if self._box is not None:
            self._box.end()
            self._box = None


_TESTS = _TestsBox()
"""Of this worker process, which judges one program at a time."""
