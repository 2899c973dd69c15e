import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations, product
from math import comb, inf, nan
from statistics import fmean, pvariance, stdev, variance
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curation.pods import (
    BLOCK_BYTES,
    advantages,
    best_and_worst,
    max_reward,
    max_variance,
    max_variance_many,
    quantiles,
    random_subset,
)

ALTERNATING = [0.0] * 4 + [1.0] * 4

eighths = st.integers(0, 8).map(lambda eighth: eighth / 8)
small_groups = st.lists(eighths, min_size=1, max_size=10)
any_rewards = st.lists(st.floats(0, 1), min_size=1, max_size=10)
binary_rewards = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=16)


def pick(rewards_G: Sequence[float], kept: Sequence[int]) -> list[float]:
    return [rewards_G[i] for i in kept]


def spread(rewards_M: Sequence[float]) -> float:
    """The variance times the squared count: without rounding for rewards in eighths."""
    return len(rewards_M) * sum(r * r for r in rewards_M) - sum(rewards_M) ** 2


def settled(rewards_G: Sequence[float], keep: int) -> list[int]:
    """The rule spelled out: try every split, of the widest take the most balanced, of two the one with fewer high."""
    order = sorted(range(len(rewards_G)), key=lambda i: (rewards_G[i], i))
    splits = [order[: keep - high] + order[len(order) - high :] for high in range(keep + 1)]
    widest = max(spread(pick(rewards_G, split)) for split in splits)
    best = [high for high, split in enumerate(splits) if spread(pick(rewards_G, split)) == widest]
    return sorted(splits[min(best, key=lambda high: abs(high - keep // 2))])


def optimal_sets(rewards_G: Sequence[float], keep: int) -> set[tuple[int, ...]]:
    by_variance = {kept: pvariance(pick(rewards_G, kept)) for kept in combinations(range(len(rewards_G)), keep)}
    best = max(by_variance.values())
    return {kept for kept, spread in by_variance.items() if spread == pytest.approx(best, abs=1e-12)}


@settings(max_examples=600)
@given(small_groups)
def test_no_other_subset_of_that_size_spreads_more(rewards_G: list[float]) -> None:
    for keep in range(1, len(rewards_G) + 1):
        kept = max_variance(rewards_G, keep)

        assert spread(pick(rewards_G, kept)) == max(map(spread, combinations(rewards_G, keep)))
        assert kept == sorted(set(kept))
        assert len(kept) == keep


@settings(max_examples=200)
@given(any_rewards)
def test_no_other_subset_of_uneven_rewards_spreads_more(rewards_G: list[float]) -> None:
    for keep in range(1, len(rewards_G) + 1):
        kept = max_variance(rewards_G, keep)

        best = max(np.var(list(combinations(rewards_G, keep)), axis=1))
        assert np.var(pick(rewards_G, kept)) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("size", range(1, 7))
def test_every_group_of_three_grades_is_settled_by_the_rule(size: int) -> None:
    every_PG = list(product([0.0, 0.5, 1.0], repeat=size))

    for keep in range(1, size + 1):
        kept_PM = max_variance_many(every_PG, keep).tolist()

        assert kept_PM == [settled(rewards_G, keep) for rewards_G in every_PG]


@given(st.lists(eighths, min_size=1, max_size=40), st.data())
def test_ties_go_to_the_most_balanced_split_the_earliest_low_and_the_latest_high(
    rewards_G: list[float], data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, len(rewards_G)))

    kept = max_variance(rewards_G, keep)

    assert kept == settled(rewards_G, keep)


@given(st.lists(eighths, min_size=1, max_size=20), st.data())
def test_the_order_of_the_rollouts_changes_no_kept_reward(rewards_G: list[float], data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(rewards_G)))
    shuffled = data.draw(st.permutations(rewards_G))

    kept, kept_of_shuffled = max_variance(rewards_G, keep), max_variance(shuffled, keep)

    assert sorted(pick(rewards_G, kept)) == sorted(pick(shuffled, kept_of_shuffled))


@pytest.mark.parametrize(
    ("scale", "shift"),
    [
        pytest.param(5.0, 7.0, id="2.9-affine-5r+7"),
        pytest.param(1 / 1024, -3.0, id="2.9-affine-shrunk"),
        pytest.param(1.0, 4096.0, id="2.9-affine-far-from-zero"),
        pytest.param(-1.0, 0.0, id="2.9-affine-mirrored"),
        pytest.param(-2.0, 1e6, id="2.9-affine-mirrored-far-from-zero"),
    ],
)
@given(rewards_G=st.lists(eighths, min_size=1, max_size=20), data=st.data())
def test_another_scale_of_rewards_keeps_a_selection_just_as_wide(
    scale: float, shift: float, rewards_G: list[float], data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, len(rewards_G)))
    scaled = [scale * reward + shift for reward in rewards_G]

    kept, kept_of_scaled = max_variance(rewards_G, keep), max_variance(scaled, keep)

    assert spread(pick(rewards_G, kept_of_scaled)) == spread(pick(rewards_G, kept))
    if scale > 0:
        assert kept_of_scaled == kept


@given(small_groups, eighths, st.data())
def test_one_more_rollout_to_choose_from_never_narrows_the_selection(
    rewards_G: list[float], another: float, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, len(rewards_G)))
    more_G = [*rewards_G, another]

    kept, kept_of_more = max_variance(rewards_G, keep), max_variance(more_G, keep)

    assert spread(pick(more_G, kept_of_more)) >= spread(pick(rewards_G, kept))


@given(st.data(), st.integers(1, 12), st.integers(0, 12))
def test_many_groups_at_once_are_selected_as_each_alone(data: st.DataObject, size: int, groups: int) -> None:
    keep = data.draw(st.integers(1, size))
    hundredths = st.integers(-100, 100).map(lambda hundredth: hundredth / 100)
    rows = st.lists(hundredths, min_size=size, max_size=size)
    rewards_PG = np.array(data.draw(st.lists(rows, min_size=groups, max_size=groups)), dtype=float)
    before = rewards_PG.copy()

    kept_PM = max_variance_many(rewards_PG.reshape(groups, size), keep)

    assert kept_PM.tolist() == [max_variance(rewards_G.tolist(), keep) for rewards_G in rewards_PG]
    assert kept_PM.shape == (groups, keep)
    assert np.array_equal(rewards_PG, before)


@given(small_groups, st.sampled_from([-1e6, 4096.0, 1e6]), st.data())
def test_a_group_far_from_the_others_is_settled_by_the_same_rule(
    rewards_G: list[float], shift: float, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, len(rewards_G)))
    rewards_PG = [[0.0] * len(rewards_G), [reward + shift for reward in rewards_G]]

    kept_PM = max_variance_many(rewards_PG, keep)

    assert kept_PM[1].tolist() == settled(rewards_G, keep)


def test_minus_zero_is_zero() -> None:
    assert max_variance([-0.0, 0.0, 1.0, 1.0], 2) == max_variance([0.0, -0.0, 1.0, 1.0], 2) == [0, 3]


def test_groups_beyond_one_block_are_selected_as_each_alone() -> None:
    size = 256
    groups = 2 * (BLOCK_BYTES // (8 * size)) + 3
    rewards_PG = np.random.default_rng(0).integers(0, 11, (groups, size)) / 10

    kept_PM = max_variance_many(rewards_PG, 7)

    assert kept_PM.tolist() == [max_variance(rewards_G, 7) for rewards_G in rewards_PG.tolist()]


@pytest.mark.parametrize(
    ("rewards_G", "keep", "best", "sets"),
    [
        pytest.param(ALTERNATING, 4, 0.25, 36, id="P1"),
        pytest.param([1.0] * 7 + [0.0], 4, 0.1875, 35, id="P2"),
        pytest.param([0.0] * 7 + [1.0], 4, 0.1875, 35, id="P3"),
        pytest.param([0.7] * 6, 3, 0.0, 20, id="P4"),
        pytest.param(ALTERNATING, 5, 0.24, 48, id="P5"),
        pytest.param([0, 0.05, 0.1, 0.15, 0.2, 1], 3, 0.211667, 1, id="P6"),
        pytest.param([0, 0, 0, 0, 0.25, 1], 4, 0.1875, 4, id="P7"),
        pytest.param([0, 0.2, 1, 1.2, 2, 2.2, 3, 3], 4, 2.1075, 1, id="P8"),
        pytest.param([-1, 1, 1, -1, -1, 1, -1, 1], 4, 1.0, 36, id="P9"),
        pytest.param([0.3, 0.9, 0.1], 1, 0.0, 3, id="P10"),
        pytest.param([0.3, 0.9, 0.1], 3, 0.115556, 1, id="P11"),
        pytest.param([0.3, 0.9, 0.1, 0.5, 0.7], 2, 0.16, 1, id="P12"),
        pytest.param([0.1, 0.1, 0, 0.1, 1, 0.1, 0, 1], 4, 0.25, 1, id="P13"),
        pytest.param([0.1, 0.4, 1, 0, 1, 0, 0, 1], 3, 0.2222, 18, id="P14"),
        pytest.param([1.0] * 2 + [0.0] * 14, 8, 0.1875, 3003, id="P17-2-right-14-wrong"),
        pytest.param([1.0] * 10 + [0.0] * 2, 6, 0.222222, 210, id="P17-10-right-2-wrong"),
        pytest.param([0.0] * 8, 4, 0.0, 70, id="P17-0-right-8-wrong"),
    ],
)
def test_the_selection_is_one_of_the_widest(rewards_G: list[float], keep: int, best: float, sets: int) -> None:
    optimal = optimal_sets(rewards_G, keep)

    kept = max_variance(rewards_G, keep)

    assert tuple(kept) in optimal
    assert len(optimal) == sets
    assert pvariance(pick(rewards_G, kept)) == pytest.approx(best, abs=5e-5 if best == 0.2222 else 5e-7)


@pytest.mark.parametrize(
    ("rewards_G", "keep", "high"),
    [
        pytest.param(ALTERNATING, 4, 2, id="P1"),
        pytest.param([1.0] * 7 + [0.0], 4, 3, id="P2-contains-the-wrong-one"),
        pytest.param([0.0] * 7 + [1.0], 4, 1, id="P3-contains-the-right-one"),
        pytest.param(ALTERNATING, 5, 2, id="P5-fewer-high-of-two"),
        pytest.param([0, 0, 0, 0, 0.25, 1], 4, 1, id="P7-not-halves"),
    ],
)
def test_the_selection_keeps_so_many_right_ones(rewards_G: list[float], keep: int, high: int) -> None:
    kept = max_variance(rewards_G, keep)

    assert Counter(pick(rewards_G, kept)) == {1.0: high, 0.0: keep - high}


@pytest.mark.parametrize(
    ("rewards_G", "keep", "kept"),
    [
        pytest.param([0, 0.05, 0.1, 0.15, 0.2, 1], 3, [0, 1, 5], id="P6"),
        pytest.param([0, 0.2, 1, 1.2, 2, 2.2, 3, 3], 4, [0, 1, 6, 7], id="P8"),
        pytest.param([7, 8, 12, 13, 17, 18, 22, 22], 4, [0, 1, 6, 7], id="P8-5r+7"),
        pytest.param([0, -0.2, -1, -1.2, -2, -2.2, -3, -3], 4, [0, 1, 6, 7], id="P8-mirrored"),
        pytest.param([0.3, 0.9, 0.1], 3, [0, 1, 2], id="P11"),
        pytest.param([0.3, 0.9, 0.1, 0.5, 0.7], 2, [1, 2], id="P12"),
        pytest.param([0.1, 0.1, 0, 0.1, 1, 0.1, 0, 1], 4, [2, 4, 6, 7], id="P13"),
        pytest.param([0.7] * 6, 3, [0, 1, 5], id="P4-earliest-low-latest-high"),
    ],
)
def test_the_selection_is_exactly(rewards_G: list[float], keep: int, kept: list[int]) -> None:
    assert max_variance(rewards_G, keep) == kept


@pytest.mark.parametrize("rewards_M", [pytest.param([0, 0.05, 1], id="P6")])
def test_sample_variance_of_the_selection(rewards_M: list[float]) -> None:
    assert variance(rewards_M) == pytest.approx(0.3175)


@pytest.mark.parametrize("rewards_G", [pytest.param([0, 0, 0, 0, 0.25, 1], id="P7")])
def test_halves_are_not_widest_for_graded_rewards(rewards_G: list[float]) -> None:
    halves = best_and_worst(rewards_G, 4)

    assert pvariance(pick(rewards_G, halves)) == pytest.approx(0.167969, abs=5e-7)


@pytest.mark.parametrize("rewards_G", [pytest.param([0.1, 0.4, 1, 0, 1, 0, 0, 1], id="P14")])
def test_the_rewards_furthest_from_the_mean_are_not_the_widest(rewards_G: list[float]) -> None:
    mean = fmean(rewards_G)
    furthest = sorted(rewards_G, key=lambda reward: -abs(reward - mean))[:3]

    kept = max_variance(rewards_G, 3)

    assert pvariance(furthest) == 0
    assert pvariance(pick(rewards_G, kept)) == pytest.approx(2 / 9)


@pytest.mark.parametrize("dtype", [pytest.param(np.float32, id="P15-float32"), pytest.param(float, id="P15-float64")])
def test_a_large_mean_does_not_drown_the_spread(dtype: type) -> None:
    rewards_G: NDArray[Any] = np.array([4096.0] * 4 + [4097.0] * 4, dtype=dtype)

    kept = max_variance_many([rewards_G], 4)[0]

    assert kept.tolist() == max_variance(list(rewards_G), 4) == [0, 1, 6, 7]
    assert np.var(rewards_G[kept]) == 0.25


@pytest.mark.parametrize("rewards_G", [pytest.param([0, 1, 0, 0, 1, 0, 0, 0], id="P16")])
def test_advantages_are_taken_over_the_kept_rewards(rewards_G: list[float]) -> None:
    kept_M = pick(rewards_G, max_variance(rewards_G, 4))

    right = {r: a for r, a in zip(kept_M, advantages(kept_M), strict=True)}
    over_all = {r: a for r, a in zip(rewards_G, advantages(rewards_G), strict=True)}

    assert sorted(kept_M) == [0, 0, 1, 1]
    assert right == pytest.approx({1: 0.865875, 0: -0.865875}, abs=5e-7)
    assert over_all == pytest.approx({1: 1.619835, 0: -0.539945}, abs=5e-7)


@pytest.mark.parametrize(
    "rewards_M",
    [
        pytest.param([0.7] * 3, id="P4"),
        pytest.param([0.1] * 3, id="P4-mean-rounded-up"),
        pytest.param([0.3], id="P10"),
        pytest.param([], id="none"),
    ],
)
def test_rewards_without_spread_have_no_advantage_and_no_nan(rewards_M: list[float]) -> None:
    assert advantages(rewards_M) == pytest.approx([0.0] * len(rewards_M), abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.floats(1e-6, 1))
def test_advantages_are_deviations_in_units_of_the_sample_deviation(rewards_M: list[float], epsilon: float) -> None:
    found = advantages(rewards_M, epsilon)

    mean, unit = fmean(rewards_M), stdev(rewards_M) + epsilon
    assert found == pytest.approx([(reward - mean) / unit for reward in rewards_M], abs=1e-7)


@given(binary_rewards, st.data())
def test_of_right_and_wrong_ones_half_and_half_is_kept_as_far_as_they_go(
    rewards_G: list[float], data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, len(rewards_G)))
    right, wrong = rewards_G.count(1.0), rewards_G.count(0.0)

    kept = max_variance(rewards_G, keep)

    high = min(max(keep // 2, keep - wrong), right)
    assert sum(pick(rewards_G, kept)) == high
    assert spread(pick(rewards_G, best_and_worst(rewards_G, keep))) == spread(pick(rewards_G, kept))


@given(small_groups, st.data())
def test_the_highest_rewards_sum_to_the_most_and_the_earliest_win_ties(
    rewards_G: list[float], data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, len(rewards_G)))

    kept = max_reward(rewards_G, keep)

    every = list(combinations(range(len(rewards_G)), keep))
    most = max(sum(pick(rewards_G, subset)) for subset in every)
    assert tuple(kept) == min(subset for subset in every if sum(pick(rewards_G, subset)) == most)


@given(small_groups, st.data())
def test_best_and_worst_are_half_the_highest_and_half_the_lowest(rewards_G: list[float], data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(rewards_G)))
    ascending = sorted(rewards_G)

    kept = best_and_worst(rewards_G, keep)

    low, high = ascending[: keep - keep // 2], ascending[len(ascending) - keep // 2 :]
    assert sorted(pick(rewards_G, kept)) == sorted(low + high)
    assert kept == sorted(set(kept))


@given(small_groups, st.data(), st.integers(0, 1000))
def test_a_random_subset_is_drawn_without_looking_at_the_rewards(
    rewards_G: list[float], data: st.DataObject, seed: int
) -> None:
    keep = data.draw(st.integers(1, len(rewards_G)))

    kept = random_subset(rewards_G, keep, random.Random(seed))

    assert len(kept) == keep
    assert kept == sorted(set(kept) & set(range(len(rewards_G))))
    assert kept == random_subset([0.0] * len(rewards_G), keep, random.Random(seed))


def test_every_random_subset_is_as_likely_as_any_other() -> None:
    rng = random.Random(0)

    drawn = Counter(tuple(random_subset([0.0] * 5, 2, rng)) for _ in range(5000))

    assert len(drawn) == comb(5, 2)
    assert all(400 <= times <= 600 for times in drawn.values())


def a_random_subset(rewards_G: Sequence[float], keep: int) -> list[int]:
    return random_subset(rewards_G, keep, random.Random(0))


every_rule = pytest.mark.parametrize("rule", [max_variance, max_reward, best_and_worst, quantiles, a_random_subset])


@every_rule
@given(small_groups, st.data())
def test_the_same_rewards_give_the_same_selection_and_stay_as_they_are(
    rule: Callable[[Sequence[float], int], list[int]], rewards_G: list[float], data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, len(rewards_G)))
    before = list(rewards_G)

    first, second = rule(rewards_G, keep), rule(rewards_G, keep)

    assert first == second
    assert rewards_G == before


@every_rule
@pytest.mark.parametrize("keep", [-1, 0, 4])
def test_keeping_none_or_more_than_there_are_is_refused(
    rule: Callable[[Sequence[float], int], list[int]], keep: int
) -> None:
    with pytest.raises(ValueError, match=f"cannot keep {keep} of 3"):
        rule([0.0, 0.5, 1.0], keep)


@every_rule
@pytest.mark.parametrize("reward", [nan, inf, -inf])
def test_a_reward_that_is_no_number_is_refused(
    rule: Callable[[Sequence[float], int], list[int]], reward: float
) -> None:
    with pytest.raises(ValueError, match="finite"):
        rule([0.0, reward, 1.0], 2)


@pytest.mark.parametrize("rewards", [[0.0, 1.0], [[[0.0, 1.0]]], 1.0])
def test_rewards_of_many_groups_are_a_matrix(rewards: Any) -> None:
    with pytest.raises(ValueError, match="P x G"):
        max_variance_many(rewards, 1)


def test_no_groups_give_an_empty_selection() -> None:
    assert max_variance_many(np.empty((0, 8)), 4).shape == (0, 4)


@pytest.mark.parametrize(
    ("rewards_G", "keep", "kept"),
    [
        ([0.0, 0.25, 0.5, 0.75, 1.0], 3, [0, 2, 4]),
        ([1.0, 0.75, 0.5, 0.25, 0.0], 2, [0, 4]),
        ([0.0, 0.0, 0.0, 1.0], 2, [0, 3]),
        ([0.1, 0.9, 0.5], 1, [1]),
        ([0.3, 0.1, 0.2], 3, [0, 1, 2]),
    ],
)
def test_quantiles_are_evenly_spaced_ranks(rewards_G: list[float], keep: int, kept: list[int]) -> None:
    assert quantiles(rewards_G, keep) == kept
