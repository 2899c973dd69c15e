"""Rules that compare the answer as text, as a number or as a letter. Nothing is evaluated: ``70+75`` is not 145."""

import re
from decimal import Decimal, InvalidOperation

from service.verifiers.base import BadReference, NoAnswer, Question
from service.verifiers.extraction import boxed_answer, plain_answer, tagged_answer

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


def choice(question: Question, text: str) -> tuple[float, str]:
    """The letter of a multiple choice: tagged, boxed, after "the answer is", or the last that stands alone."""
    letters = question.options.get("letters", "ABCDEFGHIJ")
    reference = _letter(question.reference, letters) or ""
    if not reference:
        raise BadReference(f"the reference {question.reference[:100]!r} is none of the letters {letters}")
    marked = next((a for a in (tagged_answer(text), boxed_answer(text)) if a is not None), None)
    letter = _letter(marked, letters) if marked is not None else _stated_letter(text, letters)
    if letter is None:
        raise NoAnswer
    return float(letter == reference), letter


def _letter(answer: str, letters: str) -> str | None:
    """Of ``(B)``, ``B.``, ``B) because...`` or ``\\text{B}``."""
    found = re.match(rf"\W*(?:text\w*\W*)?([{re.escape(letters)}])(?![a-zA-Z])", answer.strip())
    return found[1] if found else None


def _stated_letter(text: str, letters: str) -> str | None:
    """After the last "answer is", else the last that is marked: ``(B)``, ``B.``, ``B)``, or alone on its line."""
    one = rf"([{re.escape(letters)}])(?![a-zA-Z'])"
    stated = re.findall(rf"(?i:answer|option|choice)\s*(?i:is|:)?\s*:?\W*{one}", text)
    marked = re.findall(rf"(?<![a-zA-Z]){one}[).:]|^\W*{one}\W*$", text, re.MULTILINE)
    found: list[str] = stated or ["".join(either) for either in marked]
    return found[-1] if found else None


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
