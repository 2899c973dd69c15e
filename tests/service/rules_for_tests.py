"""Rules that behave badly, for the worker processes of the tests to import."""

import ctypes
import os
import signal
import time
from typing import Any

from service.verifiers.base import NoAnswer, Question


def sleeps(question: Question, text: str) -> tuple[float, str]:
    """As many seconds as the completion says."""
    time.sleep(float(text))
    return 1.0, text


def balloon(question: Question, text: str) -> tuple[float, str]:
    return float(len(bytearray(64 << 30))), text


def segfaults(question: Question, text: str) -> tuple[float, str]:
    ctypes.string_at(0)
    return 1.0, text


def exits(question: Question, text: str) -> tuple[float, str]:
    os._exit(3)


def kills_itself(question: Question, text: str) -> tuple[float, str]:
    """As a machine without memory would."""
    os.kill(os.getpid(), signal.SIGKILL)
    return 1.0, text


def says_none(question: Question, text: str) -> tuple[Any, str]:
    return None, text


# ---- reward functions in TRL's style


def trl_style(prompts: list[str], completions: list[str], reference: list[str], **columns: Any) -> list[float]:
    assert prompts == ["?"]
    assert columns.get("color", ["red"]) == ["red"]
    return [float(text == answer) for text, answer in zip(completions, reference, strict=True)]


def slow_style(completions: list[str], **columns: Any) -> list[float]:
    time.sleep(0.01)
    return [1.0]


async def trl_chat(prompts: Any, completions: Any, **columns: Any) -> list[float]:
    assert prompts == [[{"role": "user", "content": "?"}]]
    assert completions == [[{"role": "assistant", "content": "four"}]]
    return [1.0]


def brevity(completions: list[str], **columns: Any) -> list[float]:
    return [1 / (1 + len(text)) for text in completions]


def trl_none(completions: list[str], **columns: Any) -> list[None]:
    return [None]


def trl_raises(completions: list[str], **columns: Any) -> list[float]:
    return [1 / 0]


def trl_large(completions: list[str], **columns: Any) -> list[float]:
    return [7.0]


def trl_huge(completions: list[str], **columns: Any) -> list[float]:
    return [1e308]


def trl_nan(completions: list[str], **columns: Any) -> list[float]:
    return [float("nan")]


def trl_text(completions: list[str], **columns: Any) -> list[str]:
    return ["1"]


def trl_many(completions: list[str], **columns: Any) -> list[float]:
    return [1.0, 1.0]


def trl_nothing(completions: list[str], **columns: Any) -> None:
    pass


# ---- rules that have gone blind


def always_zero(question: Question, text: str) -> tuple[float, str]:
    return 0.0, text


def always_one(question: Question, text: str) -> tuple[float, str]:
    return 1.0, text


def raises(question: Question, text: str) -> tuple[float, str]:
    raise RuntimeError("no")


def no_answer(question: Question, text: str) -> tuple[float, str]:
    raise NoAnswer
