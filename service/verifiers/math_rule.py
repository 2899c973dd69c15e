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

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Expr

from service.verifiers.base import BadReference, NoAnswer, Question
from service.verifiers.extraction import tagged_answer
from service.verifiers.math_options import Extraction, Form, MathOptions

# One warning per call that the alarms are off.
logging.getLogger("math_verify").setLevel(logging.ERROR)

READS = {Form.LATEX: LatexExtractionConfig(), Form.EXPR: ExprExtractionConfig()}
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
    gold = _gold(question.reference, options.reads)
    if not gold:
        raise BadReference(f"math-verify finds nothing in {question.reference[:100]!r}")
    source, answer = _extract(options, text)
    if not answer:
        raise NoAnswer
    written = str(answer[-1])
    detail = f"{source}: {written[:200]}"
    if options.literal and _is_number(question.reference) and not _is_number(written):
        return 0.0, f"{detail} (not a number yet)"
    return float(_is_equal(gold, answer, options)), detail


def _extract(options: MathOptions, text: str) -> tuple[Extraction, list[Any]]:
    """What stands in the first place that the text has. Raises NoAnswer where it has none."""
    for place in options.extract:
        match place:
            case Extraction.ANSWER if (tagged := tagged_answer(text)) is not None:
                return place, _parse(_boxed(tagged), options.reads)
            case Extraction.BOXED if "\\boxed" in text:
                return place, _parse(text, options.reads)
            case Extraction.LAST:
                return place, _parse(text, options.reads)
    raise NoAnswer


def _is_equal(gold: list[Any], answer: list[Any], options: MathOptions) -> bool:
    if gold[-1] == answer[-1] or _verified(gold, answer, options):  # some things, 12:00 say, equal only as text
        return True
    if options.tolerance is None and not options.percent:
        return False
    number, said = _real(gold[0]), _real(answer[0])
    if number is None or said is None:
        return False
    scales = (1, 100, 0.01) if options.percent else (1,)
    if options.tolerance is None:
        return any(_verified([number * scale], [said], options) for scale in scales[1:])
    return any(abs(said - number * scale) <= options.tolerance * abs(number * scale) for scale in scales)


def _verified(gold: list[Any], answer: list[Any], options: MathOptions) -> bool:
    same = verify(  # gold first: the order matters
        gold,
        answer,
        float_rounding=options.decimals,
        allow_set_relation_comp=options.relations,
        timeout_seconds=None,
        raise_on_error=True,
    )
    return bool(same)


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
def _gold(reference: str, forms: tuple[Form, ...]) -> list[Any]:
    return _parse(_boxed(reference) if Form.LATEX in forms else reference, forms)


def _boxed(text: str) -> str:
    return text if "\\boxed" in text else f"\\boxed{{{text}}}"


def _parse(text: str, forms: tuple[Form, ...]) -> list[Any]:
    return list(parse(text, [READS[form] for form in forms], parsing_timeout=None, raise_on_error=True))
