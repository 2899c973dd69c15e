"""Mathematical equivalence by math-verify.

- A gold answer is always wrapped in ``\\boxed{}``: bare, 36 % of the MATH-500 golds parse to nothing or to another
  value.
- math-verify's own alarms are off: they count wall time, answer False, and depend on the load of the machine. The
  worker's limits are the only clock.
- The last item of what math-verify parses is the text it parsed: a parsed object's own text can be huge, or impossible.
"""

import logging
import re
from functools import lru_cache
from typing import Any

from math_verify import parse, verify
from sympy import Expr

from service.verifiers.base import BadReference, NoAnswer, Question
from service.verifiers.extraction import tagged_answer
from service.verifiers.math_options import Extraction, MathOptions

# One warning per call that the alarms are off.
logging.getLogger("math_verify").setLevel(logging.ERROR)

NUMBER = re.compile(
    r"""[-+]?\s*(?:
        \\[dt]?frac\s*\{?\s*[-+]?\d+\s*\}?\s*\{?\s*\d+\s*\}?      # \frac{1}{2}, \frac12
      | \d[\d,\s]*(?:\{,\}\d+)*(?:\.\d*)?                         # 1,234.5
        (?:\s*(?:/|\\[dt]?frac)\s*\{?\d+\}?(?:\{?\d+\}?)?         # 1/2, 1\frac{1}{2}
          |\s*(?:e|(?:\\times|\\cdot|[x*])\s*10\s*\^)\s*\{?[-+]?\d+\}?)?    # 1e5, 1\times10^{5}
      | \.\d+
    )\s*(?:\\?%)?""",
    re.VERBOSE | re.IGNORECASE,
)
"""A number as people write one down, computed to the end."""


def judge(question: Question, text: str) -> tuple[float, str]:
    options = MathOptions.model_validate(question.options)
    gold = _gold(question.reference)
    if not gold:
        raise BadReference(f"math-verify finds nothing in {question.reference[:100]!r}")
    source, answer = _extract(options.extract, text)
    if not answer:
        raise NoAnswer
    written = str(answer[-1])
    detail = f"{source}: {written[:200]}"
    if options.literal and _is_number(question.reference) and not _is_number(written):
        return 0.0, f"{detail} (not a number yet)"
    return float(_is_equal(gold, answer, options)), detail


def _extract(places: tuple[Extraction, ...], text: str) -> tuple[Extraction, list[Any]]:
    """What stands in the first place that the text has. Raises NoAnswer where it has none."""
    for place in places:
        match place:
            case Extraction.ANSWER if (tagged := tagged_answer(text)) is not None:
                return place, _parse(_boxed(tagged))
            case Extraction.BOXED if "\\boxed" in text:
                return place, _parse(text)
            case Extraction.LAST:
                return place, _parse(text)
    raise NoAnswer


def _is_equal(gold: list[Any], answer: list[Any], options: MathOptions) -> bool:
    if _verified(gold, answer):
        return True
    number, said = _real(gold[0]), _real(answer[0])
    if number is None or said is None:
        return False
    scales = (1, 100, 0.01) if options.percent else (1,)
    if options.tolerance is None:
        return any(_verified([number * scale], [said]) for scale in scales[1:])
    return any(abs(said - number * scale) <= options.tolerance * abs(number * scale) for scale in scales)


def _verified(gold: list[Any], answer: list[Any]) -> bool:
    # Order matters to math-verify: gold first.
    return bool(verify(gold, answer, timeout_seconds=None, raise_on_error=True))


def _real(parsed: Any) -> Any:
    """Its value where it is a real number."""
    if isinstance(parsed, Expr) and parsed.is_number and parsed.is_real:
        return parsed.evalf()
    return None


def _is_number(written: str) -> bool:
    bare = re.sub(r"\\boxed|\\left|\\right|\\[,;:! ]|[${}]?\\text\s*\{[^{}]*\}|\$", "", written).strip()
    bare = bare.rpartition("=")[2].strip()
    if bare.startswith("{") and bare.endswith("}"):
        bare = bare[1:-1].strip()
    return NUMBER.fullmatch(bare) is not None


@lru_cache(maxsize=256)
def _gold(reference: str) -> list[Any]:
    return _parse(_boxed(reference))


def _boxed(text: str) -> str:
    return text if "\\boxed" in text else f"\\boxed{{{text}}}"


def _parse(text: str) -> list[Any]:
    return list(parse(text, parsing_timeout=None, raise_on_error=True))
