"""What a rule is: a function that judges one completion against one question.

Rules run only in worker processes (`service.verifiers.worker`), where they may hang or crash without harm; they are
plain functions and raise whatever they like. Here are the values that travel.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from curation.choice import Choice
from curation.records import Outcome


class Options(Choice):
    """What can be chosen about a verifier, as part of its name."""

    @property
    def wall_seconds(self) -> float | None:
        """Of one check, where the rule needs other than the pool's limit."""
        return None


@dataclass(frozen=True, slots=True)
class Question:
    """What a completion is held against."""

    prompt: str
    reference: str
    metadata: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    """Of the verifier, checked against its options model; those left out have their defaults."""


class Judgement(NamedTuple):
    outcome: Outcome
    reward: float | None
    detail: str = ""


class NoAnswer(Exception):
    """The completion holds nothing that could be compared."""


class BadReference(Exception):
    """The question itself cannot be read, so nothing can be right."""


class OutOfTime(Exception):
    """The check's own clock ran out: a timeout, without a worker being killed for it."""


Rule = Callable[[Question, str], tuple[float, str]]
"""(reward in 0..1, the answer that was compared). May raise the exceptions above and anything else."""


def dialogue(prompt: str, text: str) -> list[dict[str, str]]:
    """A prompt and its completion as messages."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]


def storable(detail: str) -> str:
    """Without half characters, which programs under test and servers may say and nobody can store."""
    return detail.encode(errors="replace").decode()
