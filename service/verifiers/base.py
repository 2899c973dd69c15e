"""What a verifier is: a named rule that judges one completion against one question.

Rules (`service.verifiers.rules`) run only in worker processes (`service.verifiers.worker`), where they may hang or
crash without harm; they are plain functions and raise whatever they like. Here are the values that travel, and the
names.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from curation.records import Outcome

REVISIONS = {"math": 1, "exact": 1, "numeric": 1, "reasoning_gym": 1}
"""Every verifier and its revision; a revision is raised when a rule may judge differently than before."""


def full_name(verifier: str) -> str:
    """``"math@1"``: what verdicts are labelled with."""
    return f"{verifier}@{REVISIONS[verifier]}"


@dataclass(frozen=True, slots=True)
class Question:
    """What a completion is held against."""

    verifier: str
    reference: str
    metadata: dict[str, Any] = field(default_factory=dict)


class Judgement(NamedTuple):
    outcome: Outcome
    reward: float | None
    detail: str = ""


class NoAnswer(Exception):
    """The completion holds nothing that could be compared."""


class BadReference(Exception):
    """The reference cannot be read, so nothing can be right."""


Rule = Callable[[Question, str], tuple[float, str]]
"""(reward in 0..1, the answer that was compared). May raise `NoAnswer`, `BadReference` and anything else."""
