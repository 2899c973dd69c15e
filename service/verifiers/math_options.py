"""What can be chosen about mathematical equivalence. Apart from the rule, which is heavy to import."""

from enum import StrEnum, auto
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from service.verifiers.base import Options


class Extraction(StrEnum):
    """Where in a completion the answer is looked for."""

    ANSWER = auto()
    """In the last ``<answer>`` tag."""
    BOXED = auto()
    """In ``\\boxed{}``."""
    LAST = auto()
    """Wherever math-verify finds it: after "the answer is", else the last formula, else the last number."""


class Form(StrEnum):
    LATEX = auto()
    EXPR = auto()
    """Numbers and plain expressions outside LaTeX."""


def _listed(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


class MathOptions(Options):
    extract: Annotated[tuple[Extraction, ...], BeforeValidator(_listed), Field(min_length=1)] = tuple(Extraction)
    """The first of these that the completion has decides, readable or not."""
    reads: Annotated[tuple[Form, ...], BeforeValidator(_listed), Field(min_length=1)] = tuple(Form)
    """The forms of references and answers that are understood."""
    decimals: int = Field(6, ge=0, le=15)
    """Places to which numbers are compared that are no exact fractions."""
    relations: bool = False
    """``x in {1, 2}`` may equal ``{1, 2}``."""
    literal: bool = False
    """Where the reference is a number, the answer must be one too: ``70+75`` is not an answer to 145."""
    percent: bool = False
    """An answer a hundred times too large or too small is right: 20 for 20 %, and 0.2."""
    tolerance: float | None = Field(None, gt=0, lt=1)
    """Largest error of a number, relative to the reference; otherwise equal means equal."""
