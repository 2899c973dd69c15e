"""How much a set of groups can teach, as numbers.

The statistic behind G2D's "informativeness" (arXiv 2605.21266) is not published; these are its candidates, each named
for what it is.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from statistics import fmean, pvariance

from curation.records import GroupKind, kind_of

GOLDILOCKS = (0.2, 0.8)
"""Pass rates neither too easy nor too hard (online difficulty filtering, arXiv 2504.03380)."""


def mixed_probability(pass_rate: float, group_size: int) -> float:
    """Chance that a group of independent rollouts holds both a right and a wrong one: 1 - p^G - (1-p)^G."""
    if not 0.0 <= pass_rate <= 1.0 or group_size < 1:
        raise ValueError(f"no group of {group_size} at pass rate {pass_rate}")
    # Floating point lets p ** 1 + (1 - p) ** 1 pass 1 by an ulp.
    return max(0.0, 1.0 - pass_rate**group_size - (1.0 - pass_rate) ** group_size)


def expected_pairs(pass_rates_P: Iterable[float], group_size: int) -> float:
    """Prompts expected to give a pair, at one pair a prompt."""
    return sum(mixed_probability(rate, group_size) for rate in pass_rates_P)


def outcome_entropy(pass_rate: float) -> float:
    """H(p) = -p ln p - (1-p) ln(1-p), in nats; largest (ln 2) at one half."""
    if not 0.0 <= pass_rate <= 1.0:
        raise ValueError(f"pass rate {pass_rate} is outside 0..1")
    return -sum(p * log(p) for p in (pass_rate, 1.0 - pass_rate) if p > 0.0)


def wasted_again(kinds_N: Sequence[GroupKind]) -> tuple[int, int]:
    """(zero-variance after zero-variance, groups after zero-variance) along one prompt's history."""
    scored = [kind for kind in kinds_N if kind is not GroupKind.UNSCORED]
    after = [now for before, now in pairwise(scored) if before.is_zero_variance]
    return sum(kind.is_zero_variance for kind in after), len(after)


@dataclass(frozen=True, slots=True)
class Informativeness:
    """Summary of groups; every mean is over the groups in which something was scored."""

    groups: int
    informative: int
    easy: int
    hard: int
    unscored: int
    mean_reward: float
    reward_variance: float
    """Mean over groups of the population variance of the rewards."""
    outcome_entropy: float
    """Mean over groups of H(mean reward), nats."""
    goldilocks_share: float
    """Share of groups with a mean reward within GOLDILOCKS."""
    pass_rate_histogram: tuple[int, ...]
    """Groups by mean reward: ten bins of 0.1; the last includes 1."""


def summarize(rewards_PG: Sequence[Sequence[float]]) -> Informativeness:
    """Of the rewards of each group's scored rollouts; a group may be empty, and sizes may differ."""
    kinds = Counter(kind_of(rewards_G) for rewards_G in rewards_PG)
    scored = [rewards_G for rewards_G in rewards_PG if rewards_G]
    rates = [fmean(rewards_G) for rewards_G in scored]
    bins = Counter(min(int(rate * 10), 9) for rate in rates)
    low, high = GOLDILOCKS
    return Informativeness(
        groups=len(rewards_PG),
        informative=kinds[GroupKind.INFORMATIVE],
        easy=kinds[GroupKind.EASY],
        hard=kinds[GroupKind.HARD],
        unscored=kinds[GroupKind.UNSCORED],
        mean_reward=_mean(rates),
        reward_variance=_mean([pvariance(rewards_G) for rewards_G in scored]),
        outcome_entropy=_mean([outcome_entropy(rate) for rate in rates]),
        goldilocks_share=_mean([low <= rate <= high for rate in rates]),
        pass_rate_histogram=tuple(bins[b] for b in range(10)),
    )


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
