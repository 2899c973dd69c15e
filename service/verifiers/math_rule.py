"""Mathematical equivalence by math-verify.

- A gold answer is always wrapped in ``\\boxed{}``: bare, 36 % of the MATH-500 golds parse to nothing or to another
  value.
- math-verify's own alarms are off: they count wall time, answer False, and depend on the load of the machine. The
  worker pool's hard limit is the only clock.
"""

import logging
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

from service.verifiers.base import BadReference, NoAnswer, Question
from service.verifiers.extraction import tagged_answer

# One warning per call that the alarms are off.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def judge(question: Question, text: str) -> tuple[float, str]:
    gold = _gold(question.reference)
    if not gold:
        raise BadReference(f"math-verify finds nothing in {question.reference[:100]!r}")
    tagged = tagged_answer(text)
    answer = _parse(text if tagged is None else _boxed(tagged))
    if not answer:
        raise NoAnswer
    # The string of a parsed object can be huge, or impossible: the last item is the text it was parsed from.
    return float(verify(gold, answer, timeout_seconds=None, raise_on_error=True)), str(answer[-1])[:200]


@lru_cache(maxsize=256)
def _gold(reference: str) -> list[Any]:
    return _parse(_boxed(reference))


def _boxed(text: str) -> str:
    return text if "\\boxed" in text else f"\\boxed{{{text}}}"


def _parse(text: str) -> list[Any]:
    return list(parse(text, parsing_timeout=None, raise_on_error=True))
