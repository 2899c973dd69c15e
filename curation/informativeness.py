"""How much a set of groups can teach, as numbers.

The statistic behind G2D's "informativeness" (arXiv 2605.21266) is not published; these are its candidates, each named
for what it is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike, NDArray

from curation.records import GroupKind

Floats = NDArray[np.float64]

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


def summarize(rewards: ArrayLike, sizes_P: ArrayLike) -> Informativeness:
    """Of the rewards of every group's scored rollouts, one group after the other, and how many each group has.

    The same whatever order groups and rollouts come in, to the last bit.
    """
    values, sizes = np.asarray(rewards, dtype=np.float64), np.asarray(sizes_P, dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    facts = [_facts(values[starts[sizes == size, None] + np.arange(size)]) for size in np.unique(sizes[sizes > 0])]
    rates, variances, spreads = np.concatenate([np.empty((3, 0)), *facts], axis=1)
    mixed, high_half = spreads > 0, rates > 0.5
    entropies = -(_xlogx(rates) + _xlogx(1.0 - rates))
    low, high = GOLDILOCKS
    bins = np.bincount(np.minimum(rates * 10, 9).astype(int), minlength=10)
    return Informativeness(
        groups=len(sizes),
        informative=int(mixed.sum()),
        easy=int((~mixed & high_half).sum()),
        hard=int((~mixed & ~high_half).sum()),
        unscored=len(sizes) - len(rates),
        mean_reward=_mean(rates),
        reward_variance=_mean(variances),
        outcome_entropy=_mean(entropies),
        goldilocks_share=_mean((low <= rates) & (rates <= high)),
        pass_rate_histogram=tuple(bins.tolist()),
    )


def _facts(rewards_PG: Floats) -> Floats:
    """Mean, population variance and range of each of these groups of one size, 3 x P."""
    sorted_PG = np.sort(rewards_PG, axis=1)
    return np.stack([sorted_PG.mean(axis=1), sorted_PG.var(axis=1), sorted_PG[:, -1] - sorted_PG[:, 0]])


def _xlogx(rates: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(rates > 0.0, rates * np.log(rates), 0.0)


def _mean(values: ArrayLike) -> float:
    listed = np.asarray(values, dtype=np.float64).tolist()
    return fmean(listed) if listed else 0.0  # rounds once: no order of addition shows
