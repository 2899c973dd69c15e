"""Which verifiers there are.

Three sources, none of which a client of the API can add to: those that come with the service, those that installed
packages offer as entry points, and those that the operator declares.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import Any

from pydantic import Field, ValidationError

from curation.choice import Choice, Metadata
from curation.records import Prompt
from service.verifiers import names
from service.verifiers.base import Options, Question
from service.verifiers.code.rule import CodeOptions
from service.verifiers.math_options import MathOptions
from service.verifiers.pool import Check
from service.verifiers.remote import Speaks

ENTRY_POINTS = "rollout_refinery.verifiers"
"""Group in which a package offers `Local` verifiers."""


class ChoiceOptions(Options):
    letters: str = "ABCDEFGHIJ"
    """The options that there are."""


class Canary(Choice):
    """A question with a completion that is right and one that is wrong: whoever sees gives the right one more."""

    right: str
    wrong: str
    reference: str = ""
    prompt: str = ""
    metadata: Metadata = Field(default_factory=dict)
    options: Metadata = Field(default_factory=dict)
    """Of the verifier, where it does not do with its defaults."""


@dataclass(frozen=True, slots=True)
class Local:
    """A verifier whose rule runs in the worker processes."""

    rule: str
    """``package.module:function``, see `service.verifiers.base.Rule`."""
    revision: int = 1
    """Raised when the rule may judge differently than before."""
    options: type[Options] = Options
    operator: Mapping[str, Any] | None = None
    """What the operator chose, no part of the name: then `rule` is a function that makes the rule from these keyword
    arguments. That may take long and counts against no check."""
    is_model: bool = False
    """Whether it needs a worker of its own, with no limit of memory and a slow start."""
    canary: Canary | None = None
    """Shows whether it still sees. A verifier that has one bears an empty completion, too,
    so that questions can be tried before anybody answers them."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A verifier that is a server."""

    url: str
    speaks: Speaks
    revision: int = 1
    options: type[Options] = Options
    canary: Canary | None = None
    """As of a local one."""


Verifier = Local | Remote

BUILT_IN: Mapping[str, Local] = {
    "math": Local(
        "service.verifiers.math_rule:judge",
        2,
        MathOptions,
        canary=Canary(right=r"so it is \boxed{\frac{3}{4}}", wrong=r"so it is \boxed{\frac{4}{3}}", reference="0.75"),
    ),
    "exact": Local(
        "service.verifiers.text_rules:exact",
        canary=Canary(right="forty two", wrong="forty three", reference="forty two"),
    ),
    "numeric": Local(
        "service.verifiers.text_rules:numeric", canary=Canary(right="1,200.0", wrong="1201", reference="1200")
    ),
    "choice": Local(
        "service.verifiers.text_rules:choice",
        options=ChoiceOptions,
        canary=Canary(right="(B)", wrong="(C)", reference="B"),
    ),
    "reasoning_gym": Local(
        "service.verifiers.gym_rule:judge",
        canary=Canary(
            right="141",
            wrong="142",
            metadata={"task": "chain_sum", "entry": {"question": "361 - 220 =", "answer": "141", "metadata": {}}},
        ),
    ),
    "code": Local(
        "service.verifiers.code.rule:judging",
        1,
        CodeOptions,
        operator={},
        canary=Canary(
            right="def f(x):\n    return 2 * x",
            wrong="def f(x):\n    return x",
            metadata={"test_list": ["assert f(2) == 4"]},
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class WeightedCheck:
    verifier: str
    weight: float
    check: Check
    where: Verifier


class Catalogue:
    def __init__(self, verifiers: Mapping[str, Verifier] = BUILT_IN) -> None:
        self._verifiers = dict(verifiers)

    @property
    def known(self) -> list[str]:
        return sorted(self._verifiers)

    def spelled(self, name: str) -> str:
        """The canonical spelling. Raises ValueError, saying why, for what names no verifier with such options."""
        return names.joined((term.weight, _spelled(term.verifier, self._options(term))) for term in names.parse(name))

    def label(self, name: str) -> str:
        """The name with today's revisions: what verdicts are labelled with."""
        return names.joined((term.weight, self._label(term)) for term in names.parse(name))

    def canary(self, verifier: str) -> Canary | None:
        return self._verifiers[verifier].canary

    def checks(self, prompt: Prompt) -> list[WeightedCheck]:
        """What to do with this prompt's completions. Raises ValueError as `spelled` does."""
        return [
            WeightedCheck(term.verifier, term.weight, self._check(term, prompt), self._verifier(term))
            for term in names.parse(prompt.verifier)
        ]

    def _check(self, term: names.Term, prompt: Prompt) -> Check:
        verifier, options = self._verifier(term), self._options(term)
        chosen = options.model_dump(mode="json", exclude_defaults=True)
        rule, operator = (verifier.rule, verifier.operator) if isinstance(verifier, Local) else ("", None)
        question = Question(prompt.text, prompt.reference, prompt.metadata, chosen)
        return Check(self._label(term), rule, question, options.wall_seconds, operator)

    def _label(self, term: names.Term) -> str:
        return _spelled(f"{term.verifier}@{self._verifier(term).revision}", self._options(term))

    def _verifier(self, term: names.Term) -> Verifier:
        if term.verifier not in self._verifiers:
            raise ValueError(f"there is no verifier {term.verifier!r}; there are {', '.join(self.known)}")
        return self._verifiers[term.verifier]

    def _options(self, term: names.Term) -> Options:
        try:
            return self._verifier(term).options.model_validate_strings(term.options)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"verifier {term.verifier!r}: {where}: {first['msg']}") from None


def _spelled(verifier: str, options: Options) -> str:
    return names.spelled(verifier, options.model_dump(mode="json", exclude_defaults=True))


def installed(*, code: Mapping[str, Any]) -> dict[str, Verifier]:
    """Everything that needs no declaration; `code` is what the operator chose about running programs. Raises ValueError
    for a package that takes a name that is taken."""
    found: dict[str, Verifier] = dict(BUILT_IN)
    found["code"] = replace(BUILT_IN["code"], operator=code)
    for point in entry_points(group=ENTRY_POINTS):
        verifier = point.load()
        if not isinstance(verifier, Local):
            raise ValueError(f"entry point {point.name!r} of {ENTRY_POINTS} is no {Local.__name__}: {verifier!r}")
        if point.name in found:
            raise ValueError(f"entry point {point.name!r} of {ENTRY_POINTS}: a verifier has that name already")
        found[point.name] = verifier
    return found
