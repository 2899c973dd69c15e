"""What a run knows about a prompt: its past groups, oldest first.

Derived from stored visits, never kept beside them. A skip adds nothing here, so it neither lengthens nor resets a
streak; a group in which nothing could be scored says nothing about the prompt and adds nothing either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from curation.records import GroupKind, ZeroVariance, kind_of, release_kind


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


class PastGroup(NamedTuple):
    """What is left of a group: enough for every selector."""

    kind: GroupKind
    mean: float
    """Of its rewards; 0 where nothing was scored."""
    size: int
    """Scored rollouts."""
    weight: float = 1.0
    """What it counts, where it comes from another run."""

    def kind_by(self, definition: ZeroVariance) -> GroupKind:
        if definition is ZeroVariance.RELEASE and self.size:
            return release_kind(self.mean)
        return self.kind


def past_group(rewards_G: Sequence[float], weight: float = 1.0) -> PastGroup:
    return PastGroup(kind_of(rewards_G), fmean(rewards_G) if rewards_G else 0.0, len(rewards_G), weight)


@dataclass(frozen=True, slots=True)
class History:
    """One prompt's past in one run."""

    visits: int = 0
    """Times it was considered, skips included."""
    groups_N: tuple[PastGroup, ...] = ()

    @property
    def streak(self) -> Streak:
        return self.streak_by(ZeroVariance.EXACT)

    def streak_by(self, definition: ZeroVariance) -> Streak:
        return streak([group.kind_by(definition) for group in self.groups_N])

    @property
    def latest(self) -> PastGroup | None:
        """The newest group in which something was scored."""
        return next((group for group in reversed(self.groups_N) if group.size), None)
