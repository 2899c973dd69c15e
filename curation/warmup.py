"""When to stop warming up: which of several harvested policy versions gives the most informative pairs.

The question of G2D (arXiv 2605.21266): a longer warm-up is not always a better one, because a policy that has become
sure of itself gives groups that agree, or nearly do. What the paper computes is not published; this compares what is.

- Versions are compared by a bootstrap over their groups; where the data cannot tell them apart, the advice says so.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum, auto
from math import nan
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from curation.informativeness import outcome_entropy
from curation.keys import seed_for
from curation.records import GroupKind, kind_of

DRAWS = 1000
SURE = 0.95
"""Of the bootstrap draws that must agree on one version."""
FEW_GROUPS = 30
"""With fewer of them in a version, nothing is advised."""

Groups = Sequence[Sequence[float]]
"""Rewards of each group's scored rollouts."""


class Measure(StrEnum):
    PAIR_ENTROPY = auto()
    """Mean outcome entropy H(pass rate) of the informative groups, in nats: how undecided the prompts behind the pairs
    are."""
    GROUP_ENTROPY = auto()
    """The same over all groups: what a sampled group is worth, waste included."""
    PAIR_SHARE = auto()
    """Share of groups that give a pair at all."""


class Measured(NamedTuple):
    """One version, with the middle 95 % of its bootstrap draws."""

    version: int
    groups: int
    """That count for the measure."""
    value: float
    low: float
    high: float
    best: float
    """Share of the draws in which it is the best of all."""


class Advice(NamedTuple):
    measure: Measure
    versions: list[Measured]
    best: int | None
    """None where the evidence is thin."""
    reason: str


def advise(harvests: Mapping[int, Groups], measure: Measure, *, seed: int) -> Advice:
    """Which policy version to harvest pairs from, given the groups of several. Raises ValueError for fewer than two."""
    if len(harvests) < 2:
        raise ValueError("comparing warm-ups takes the groups of at least two policy versions")
    versions = sorted(harvests)
    worth = [np.array([_worth(group, measure) for group in harvests[version]]) for version in versions]
    rng = np.random.default_rng(seed_for(seed, "warm-up", measure.value))
    draws_VD = np.array([_resampled_means(values, rng) for values in worth])
    best_D = draws_VD.argmax(axis=0)  # of equal ones the earliest: the shorter warm-up
    measured = []
    for place, (version, values) in enumerate(zip(versions, worth, strict=True)):
        low, high = (float(np.quantile(draws_VD[place], edge)) for edge in (0.025, 0.975))
        counted = int(np.count_nonzero(~np.isnan(values)))
        measured.append(Measured(version, counted, _mean(values), low, high, float((best_D == place).mean())))
    return Advice(measure, measured, *_conclusion(measured))


def _conclusion(measured: list[Measured]) -> tuple[int | None, str]:
    if scarce := [one for one in measured if one.groups < FEW_GROUPS]:
        told = ", ".join(f"version {one.version} has {one.groups}" for one in scarce)
        return None, f"too few groups: {told}, and it takes {FEW_GROUPS}"
    first, second, *_ = sorted(measured, key=lambda one: -one.best)
    if first.best >= SURE:
        return first.version, f"version {first.version} is the best in {first.best:.1%} of the bootstrap draws"
    return None, (
        f"thin evidence: version {first.version} is the best in {first.best:.1%} of the bootstrap draws and version "
        f"{second.version} in {second.best:.1%}; sample more groups of both"
    )


def _worth(rewards_G: Sequence[float], measure: Measure) -> float:
    """NaN for a group that does not count."""
    informative = kind_of(rewards_G) is GroupKind.INFORMATIVE
    match measure:
        case Measure.PAIR_SHARE:
            return float(informative)
        case Measure.PAIR_ENTROPY if not informative:
            return nan
        case _:
            return outcome_entropy(fmean(rewards_G))


def _resampled_means(values: NDArray[np.float64], rng: np.random.Generator) -> list[float]:
    size = len(values)
    return [_mean(values[rng.integers(size, size=size)]) for _ in range(DRAWS)]


def _mean(values: NDArray[np.float64]) -> float:
    """0 where no group counts."""
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else 0.0
