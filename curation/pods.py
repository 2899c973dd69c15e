"""PODS (arXiv 2504.13818): of n rollouts keep the m whose rewards differ most, and its competitors.

- Every function names what it keeps as indices in ascending order and leaves the rewards alone.
- Ties are settled by a rule, not by the sort: the most balanced split first, then the lowest index.
"""

import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK_BYTES = 8 * 1024 * 1024
"""Rows are worked on in blocks: small enough for the cache, large enough that threads seldom wait for each other."""

MAGNITUDE = np.int64(2**63 - 1)
"""Every bit of a float but its sign."""


def max_variance(rewards: Sequence[float], keep: int) -> list[int]:
    """The `keep` rollouts whose rewards have the largest variance, as ascending indices.

    The optimum is always some highest plus some lowest rewards (Lemma 3.1: variance is convex in each element), so
    after one sort only ``keep + 1`` splits are left to compare. Among equal splits the most balanced one wins (of
    two, the one with fewer high rewards); among equal rewards the low side takes the earliest, the high side the
    latest.

    Raises ValueError if `keep` is not in 1..n or a reward is not finite. Made for rewards of ordinary size: squares
    must neither overflow nor vanish.
    """
    matrix = np.array([rewards], dtype=np.float64)
    _check_keep(keep, len(rewards))
    [keys_G], index_bits = _sorted_keys(_at_least_zero(matrix).view(np.int64))
    highs = _high_count((keys_G & ~index_bits).tobytes(), keep)
    slots_G: list[int] = (keys_G & index_bits).tolist()
    return sorted(slots_G[: keep - highs] + slots_G[len(slots_G) - highs :])


@lru_cache(maxsize=4096)
def _high_count(sorted_rewards: bytes, keep: int) -> int:
    """`_best_high_count` of one group. Rewards have few values, so a few sorted groups stand for most."""
    rewards_G1 = np.frombuffer(sorted_rewards)[:, None]
    return int(_best_high_count(rewards_G1[:keep], rewards_G1[len(rewards_G1) - keep :])[0])


def max_variance_many(rewards_PG: ArrayLike, keep: int) -> NDArray[np.int64]:
    """`max_variance` for P groups of the same size G: ascending indices, P x keep."""
    matrix = np.ascontiguousarray(rewards_PG, dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"rewards must be P x G, not {matrix.shape}")
    groups, size = matrix.shape
    _check_keep(keep, size)
    kept_PM = np.empty((groups, keep), dtype=np.int64)
    rows = max(1, BLOCK_BYTES // (8 * size))

    def select(start: int) -> None:
        block = slice(start, start + rows)
        _select(_at_least_zero(matrix[block]).view(np.int64), kept_PM[block])

    starts = range(0, groups, rows)
    if len(starts) == 1:
        select(0)
    elif starts:
        # numpy lets go of the interpreter while it sorts and adds: threads share the cores.
        with ThreadPoolExecutor(min(len(starts), os.cpu_count() or 1)) as threads:
            list(threads.map(select, starts))
    return kept_PM


def _at_least_zero(rewards_PG: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rewards, none below 0; a row with negative ones is shifted up by its own lowest.

    By that row alone, or its neighbours would decide its ties.
    """
    _check_finite(rewards_PG)
    if rewards_PG.min() >= 0.0:
        return rewards_PG
    shifted_PG: NDArray[np.float64] = rewards_PG - np.minimum(rewards_PG.min(axis=1, keepdims=True), 0.0)
    return shifted_PG


def _sorted_keys(bits_PG: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Keys for the bits of rewards that are all at least 0, each group's ascending; and the bits that are an index.

    Such a float sorts like its bits. Its last bits give way to the index, so that one sort orders the rewards,
    carries the indices along and settles ties; rewards closer than 2 ** (log2 G - 52) of their size become ties.
    """
    size = bits_PG.shape[1]
    index_bits = (1 << (size - 1).bit_length()) - 1
    keys_PG = bits_PG & (MAGNITUDE & ~index_bits)  # without the sign of -0.0
    keys_PG |= np.arange(size)
    keys_PG.sort(axis=1)
    return keys_PG, index_bits


def _select(bits_PG: NDArray[np.int64], kept_PM: NDArray[np.int64]) -> None:
    """Fills in the selection for the bits of rewards that are all at least 0."""
    size, keep = bits_PG.shape[1], kept_PM.shape[1]
    keys_PG, index_bits = _sorted_keys(bits_PG)
    # M x P from here on: every step runs along contiguous groups.
    low_MP = np.ascontiguousarray(keys_PG[:, :keep].T)
    high_MP = np.ascontiguousarray(keys_PG[:, size - keep :].T)
    lows_P = keep - _best_high_count((low_MP & ~index_bits).view(np.float64), (high_MP & ~index_bits).view(np.float64))
    for rank in range(keep):
        np.copyto(low_MP[rank], high_MP[rank], where=lows_P <= rank)
    np.bitwise_and(low_MP.T, index_bits, out=kept_PM)
    kept_PM.sort(axis=1)


def _best_high_count(low_MP: NDArray[np.float64], high_MP: NDArray[np.float64]) -> NDArray[np.int32]:
    """How many of its highest rewards each group keeps, given its M lowest and M highest, both ascending.

    Going from k to k + 1 high ones swaps a low reward l for a high one h and changes the variance by
    ``(h - l) * (m * (h + l) - S_k - S_k+1) / m ** 2``, with S_k the sum of split k. The second factor never grows
    with k, so the variance climbs, stays level and falls: the best splits are those from the last climb to the
    first fall, and the most balanced of them is kept.
    """
    keep, groups = low_MP.shape
    # Centred at the lowest reward: next to a large mean, differences of sums would drown in rounding.
    low_MP, high_MP = low_MP - low_MP[0], high_MP - low_MP[0]
    tolerance_P = 1e-12 * keep * high_MP[-1] ** 2
    last_climb_P = np.zeros(groups, dtype=np.int32)
    fallen_P = np.zeros(groups, dtype=np.bool_)
    after_fall_P = np.zeros(groups, dtype=np.int32)
    sum_P = low_MP.sum(axis=0)
    for k in range(keep):
        low_P, high_P = low_MP[keep - 1 - k], high_MP[keep - 1 - k]
        gain_P = high_P - low_P
        change_P = high_P + low_P
        change_P *= keep
        change_P -= sum_P
        sum_P += gain_P
        change_P -= sum_P
        change_P *= gain_P
        np.copyto(last_climb_P, k + 1, where=change_P > tolerance_P)
        fallen_P |= change_P < -tolerance_P
        after_fall_P += fallen_P
    best_P: NDArray[np.int32] = np.minimum(np.maximum(keep // 2, last_climb_P), keep - after_fall_P)
    return best_P


def max_reward(rewards: Sequence[float], keep: int) -> list[int]:
    """The `keep` highest rewards: the competitor that fails, since it throws the contrast away."""
    _check(rewards, keep)
    ranked = sorted(range(len(rewards)), key=lambda i: (-rewards[i], i))
    return sorted(ranked[:keep])


def best_and_worst(rewards: Sequence[float], keep: int) -> list[int]:
    """Half the highest and half the lowest (one more low for an odd `keep`). Optimal for binary rewards only."""
    _check(rewards, keep)
    ranked = sorted(range(len(rewards)), key=lambda i: (rewards[i], i))
    high = keep // 2
    return sorted(ranked[: keep - high] + ranked[len(ranked) - high :])


def quantiles(rewards: Sequence[float], keep: int) -> list[int]:
    """The rewards at `keep` evenly spaced ranks, from the lowest to the highest: diverse where rewards are graded."""
    _check(rewards, keep)
    ranked = sorted(range(len(rewards)), key=lambda i: (rewards[i], i))
    last = len(ranked) - 1
    places = [round(place * last / (keep - 1)) for place in range(keep)] if keep > 1 else [last]
    return sorted(ranked[place] for place in places)


def random_subset(rewards: Sequence[float], keep: int, rng: random.Random) -> list[int]:
    """`keep` rollouts without looking at the rewards: the control arm at equal budget."""
    _check(rewards, keep)
    return sorted(rng.sample(range(len(rewards)), keep))


def advantages(rewards: Sequence[float], epsilon: float = 1e-4) -> list[float]:
    """(r - mean) / (sample std + epsilon), over the rewards given: select first, then normalise.

    Rewards that agree, or a single one, have no spread to compare with: their advantages are 0, whatever the mean is
    rounded to.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if len(set(rewards)) < 2:
        return [0.0] * len(values)
    return [float(a) for a in (values - values.mean()) / (values.std(ddof=1) + epsilon)]


def _check(rewards: Sequence[float], keep: int) -> None:
    _check_keep(keep, len(rewards))
    _check_finite(np.asarray(rewards, dtype=np.float64))


def _check_keep(keep: int, size: int) -> None:
    if not 0 < keep <= size:
        raise ValueError(f"cannot keep {keep} of {size} rollouts")


def _check_finite(rewards: NDArray[np.float64]) -> None:
    if not np.isfinite([rewards.min(), rewards.max()]).all():
        raise ValueError("every reward must be a finite number")
