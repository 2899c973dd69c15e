"""How verifiers are named.

::

    math                                 a verifier
    math?literal=true&tolerance=0.001    with options, which are part of its name
    0.8*math + 0.2*brevity               a weighted mean of several

- A name has one canonical spelling: options sorted, defaults left out. Prompts are keyed by it.
- A label is a name with revisions, ``math@2?literal=true``: what a verdict carries, so that it can be explained later.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")
LONGEST = 1000
"""Characters of a name with everything."""


class Term(NamedTuple):
    """One verifier of a name."""

    weight: float
    verifier: str
    options: dict[str, str]


def parse(name: str) -> tuple[Term, ...]:
    """The verifiers of a name. Raises ValueError for what is none."""
    if len(name) > LONGEST:
        raise ValueError(f"a verifier's name has at most {LONGEST} characters, not {len(name)}")
    terms = tuple(_term(part.strip()) for part in name.split("+"))
    if len({(term.verifier, *sorted(term.options.items())) for term in terms}) < len(terms):
        raise ValueError(f"{name!r} names a verifier twice")
    return terms


def spelled(verifier: str, options: Mapping[str, Any]) -> str:
    """One verifier with the options that are not defaults."""
    given = "&".join(f"{key}={_spelled(value)}" for key, value in sorted(options.items()))
    return f"{verifier}?{given}" if given else verifier


def joined(parts: Iterable[tuple[float, str]]) -> str:
    """Verifiers, or labels, with their weights; one alone needs none."""
    weighted = list(parts)
    if len(weighted) == 1:
        return weighted[0][1]
    return "+".join(f"{weight:g}*{part}" for weight, part in weighted)


def _term(part: str) -> Term:
    weight, star, rest = part.partition("*")
    verifier, _, query = (rest if star else part).strip().partition("?")
    if not NAME.fullmatch(verifier):
        raise ValueError(f"{part!r} is no verifier's name")
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True)) if query else {}
    except ValueError as error:
        raise ValueError(f"the options of {part!r} are not of the form a=b&c=d") from error
    return Term(_weight(weight, part) if star else 1.0, verifier, options)


def _weight(text: str, part: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise ValueError(f"the weight of {part!r} is no number above 0")
    return weight


def _spelled(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case list() | tuple():
            return ",".join(map(_spelled, value))
        case float():
            return f"{value:.12g}".replace("e+", "e")  # a plus would begin the next verifier
        case _:
            return quote(str(value), safe=",")
