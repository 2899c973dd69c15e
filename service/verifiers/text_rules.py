"""Rules that compare the answer as text or as a number. Nothing is evaluated: ``70+75`` is not 145."""

from decimal import Decimal, InvalidOperation

from service.verifiers.base import BadReference, NoAnswer, Question
from service.verifiers.extraction import plain_answer

LONGEST_NUMBER = 1000
"""Characters; a longer one is no answer anybody meant."""


def exact(question: Question, text: str) -> tuple[float, str]:
    """Equal after trimming and folding runs of white space."""
    answer = " ".join(plain_answer(text).split())
    reference = " ".join(question.reference.split())
    if not reference:
        raise BadReference("the reference is empty")
    if not answer:
        raise NoAnswer
    return float(answer == reference), answer


def numeric(question: Question, text: str) -> tuple[float, str]:
    """Equal as decimal numbers; signs, leading zeros, trailing zeros and thousands separators do not matter."""
    try:
        reference = _number(question.reference)
    except ValueError as cause:
        raise BadReference(str(cause)) from None
    answer = plain_answer(text)
    try:
        return float(_number(answer) == reference), answer
    except ValueError:
        raise NoAnswer from None


def _number(text: str) -> Decimal:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} characters")
    try:
        number = Decimal(text.strip().replace(",", ""))
    except InvalidOperation:
        raise ValueError(f"not a number: {text[:100]!r}") from None
    if not number.is_finite():
        raise ValueError(f"not a finite number: {text[:100]!r}")
    return number
