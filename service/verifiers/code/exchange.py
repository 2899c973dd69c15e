"""Talking to a program under test: calls in, plain results out, and how it ended if it did."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from service.verifiers.base import OutOfTime
from service.verifiers.code.sandbox import Box

STOPPED_FOR_TIME = 128 + 24
"""SIGXCPU"""


class Crashed(Exception):
    """The program was stopped by a signal."""


@lru_cache(maxsize=1)
def boxed_source() -> str:
    """What runs inside."""
    return Path(__file__).with_name("boxed.py").read_text()


def begin(box: Box, program: str, deadline: float) -> str:
    """Hands the program over; what went wrong if it did not even start."""
    return raised_in(exchange(box, json.dumps(program).encode(), deadline))


def raised_in(answer: dict[str, Any]) -> str:
    """The exception that an answer tells of, in words; empty without one."""
    return f"{answer['raised']}: {answer.get('said', '')}" if "raised" in answer else ""


def exchange(box: Box, line: bytes, deadline: float) -> dict[str, Any]:
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


def status_of(box: Box) -> int:
    """The exit status of a program that is about to end. Raises OutOfTime and Crashed for one that was stopped."""
    status = box.end(2.0)
    if status == STOPPED_FOR_TIME:
        raise OutOfTime("the program used up its CPU time")
    if status >= 128:
        raise Crashed(f"the program was stopped by signal {status - 128}")
    return status


def _ended(box: Box) -> dict[str, Any]:
    """The answer of a program that is no more."""
    return {"raised": "SystemExit", "said": f"the program ended with status {status_of(box)}"}
