"""What a run knows about a prompt: the kinds of its past groups, oldest first.

Derived from stored visits, never kept beside them. A skip adds nothing here, so it neither lengthens nor resets a
streak; a group in which nothing could be scored says nothing about the prompt and adds nothing either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from curation.records import GroupKind


class Streak(NamedTuple):
    """The trailing run of zero-variance groups of one kind."""

    kind: GroupKind
    """EASY or HARD; INFORMATIVE when there is no such run."""
    length: int


NO_STREAK = Streak(GroupKind.INFORMATIVE, 0)


def streak(kinds_N: Sequence[GroupKind]) -> Streak:
    """How many of the most recent groups were zero-variance of the same kind.

    A run that changes from one kind to the other starts anew at 1 (GRESO release, ``presampling_selector.py``).
    """
    scored = [kind for kind in kinds_N if kind is not GroupKind.UNSCORED]
    if not scored or not scored[-1].is_zero_variance:
        return NO_STREAK
    last = scored[-1]
    length = 0
    for kind in reversed(scored):
        if kind is not last:
            break
        length += 1
    return Streak(last, length)


@dataclass(frozen=True, slots=True)
class History:
    """One prompt's past in one run."""

    visits: int = 0
    """Times it was considered, skips included."""
    kinds_N: tuple[GroupKind, ...] = ()

    @property
    def streak(self) -> Streak:
        return streak(self.kinds_N)
