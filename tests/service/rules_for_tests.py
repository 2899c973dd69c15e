"""Rules that behave badly, for the worker processes of the tests to import."""

import ctypes
import os
import time
from typing import Any

from service.verifiers.base import Question


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


def says_none(question: Question, text: str) -> tuple[Any, str]:
    return None, text
