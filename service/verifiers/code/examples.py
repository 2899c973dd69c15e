"""Tests that are examples: inputs go in, and what comes out is compared here."""

import json
from typing import Any

from service.verifiers.code.boxed import packed, unpacked
from service.verifiers.code.exchange import begin, boxed_source, exchange, raised_in, status_of
from service.verifiers.code.sandbox import Sandbox
from service.verifiers.code.tests import Score, Tests


def by_examples(sandbox: Sandbox, program: str, tests: Tests, *, partial: bool, deadline: float) -> Score:
    """What comes after a failure is not tried, unless each test counts."""
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
    return Score(passed, len(tests.inputs), why)


def _stdin_example(sandbox: Sandbox, program: str, tests: Tests, given: Any, expected: Any, deadline: float) -> str:
    with sandbox.start(program) as box:
        said = box.rest(_text(given).encode(), deadline)
        status = status_of(box)
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
    name = tests.fn_name or ""
    source = f"{program}\n" + (f"{name} = Solution().{name}\n" if "class Solution" in program else "")
    with sandbox.start(boxed_source(), ["program"]) as box:
        refused = begin(box, source, deadline)
        if refused:
            return refused
        args = given if isinstance(given, list) else [given]
        call = {"call": name, "args": packed(tuple(args)), "kwargs": packed({})}
        answer = exchange(box, json.dumps(call).encode(), deadline)
    if raised := raised_in(answer):
        return raised
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
