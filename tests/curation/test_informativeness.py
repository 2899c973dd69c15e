from itertools import product
from math import log
from statistics import fmean, pvariance

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.informativeness import (
    Informativeness,
    expected_pairs,
    mixed_probability,
    outcome_entropy,
    summarize,
    wasted_again,
)
from curation.records import GroupKind

EASY, HARD, INFORMATIVE, UNSCORED = GroupKind.EASY, GroupKind.HARD, GroupKind.INFORMATIVE, GroupKind.UNSCORED

pass_rates = st.floats(0, 1)


def summary_of(rewards_PG: list[list[float]]) -> Informativeness:
    return summarize([reward for rewards_G in rewards_PG for reward in rewards_G], [len(g) for g in rewards_PG])


rewards_of_groups = st.lists(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), max_size=6), max_size=12)


@pytest.mark.parametrize(
    ("pass_rate", "group_size", "mixed"),
    [
        pytest.param(0.01, 8, 0.0773, id="3.5-p.01-G8"),
        pytest.param(0.05, 8, 0.3366, id="3.5-p.05-G8"),
        pytest.param(0.1, 8, 0.5695, id="3.5-p.1-G8"),
        pytest.param(0.3, 8, 0.9423, id="3.5-p.3-G8"),
        pytest.param(0.5, 8, 0.9922, id="3.5-p.5-G8"),
        pytest.param(0.5, 2, 0.5, id="3.5-p.5-G2"),
        pytest.param(0.0, 8, 0.0, id="3.5-never-right"),
        pytest.param(1.0, 8, 0.0, id="3.5-always-right"),
    ],
)
def test_chance_of_a_right_and_a_wrong_one_in_a_group(pass_rate: float, group_size: int, mixed: float) -> None:
    assert mixed_probability(pass_rate, group_size) == pytest.approx(mixed, abs=5e-5)
    assert mixed_probability(1 - pass_rate, group_size) == pytest.approx(mixed, abs=5e-5)


@given(pass_rates, st.integers(1, 7))
def test_that_chance_is_the_sum_over_all_mixed_outcomes(pass_rate: float, group_size: int) -> None:
    outcomes = (o for o in product([True, False], repeat=group_size) if len(set(o)) == 2)

    mixed = mixed_probability(pass_rate, group_size)

    brute = sum(pass_rate ** sum(o) * (1 - pass_rate) ** (group_size - sum(o)) for o in outcomes)
    assert mixed == pytest.approx(brute, abs=1e-12)


@given(pass_rates, st.integers(1, 64))
def test_a_larger_group_is_mixed_more_often(pass_rate: float, group_size: int) -> None:
    mixed = mixed_probability(pass_rate, group_size)

    assert 0 <= mixed <= mixed_probability(pass_rate, group_size + 1) + 1e-15 <= 1 + 1e-15


@pytest.mark.parametrize(("pass_rate", "group_size"), [(-0.1, 8), (1.1, 8), (0.5, 0)])
def test_a_group_that_cannot_be_is_refused(pass_rate: float, group_size: int) -> None:
    with pytest.raises(ValueError, match="no group"):
        mixed_probability(pass_rate, group_size)


@pytest.mark.parametrize("group_size", [pytest.param(2, id="3.5-sum-G2"), pytest.param(8, id="3.5-sum-G8")])
@given(pass_rates_P=st.lists(pass_rates, max_size=20))
def test_expected_pairs_are_the_sum_of_the_chances(group_size: int, pass_rates_P: list[float]) -> None:
    expected = expected_pairs(iter(pass_rates_P), group_size)

    assert expected == pytest.approx(sum(mixed_probability(rate, group_size) for rate in pass_rates_P))
    assert 0 <= expected <= len(pass_rates_P)


@given(pass_rates)
def test_entropy_is_largest_at_one_half_and_gone_at_both_ends(pass_rate: float) -> None:
    entropy = outcome_entropy(pass_rate)

    assert 0 <= entropy <= outcome_entropy(0.5) + 1e-12
    assert entropy == pytest.approx(outcome_entropy(1 - pass_rate), abs=1e-12)
    assert (outcome_entropy(0.0), outcome_entropy(0.5), outcome_entropy(1.0)) == pytest.approx((0, log(2), 0))


@given(pass_rates, pass_rates)
def test_entropy_grows_towards_one_half(one: float, other: float) -> None:
    nearer, further = sorted([one, other], key=lambda rate: abs(rate - 0.5))

    assert outcome_entropy(nearer) >= outcome_entropy(further) - 1e-12


@pytest.mark.parametrize("pass_rate", [-0.1, 1.1])
def test_entropy_of_no_probability_is_refused(pass_rate: float) -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        outcome_entropy(pass_rate)


@given(st.lists(st.sampled_from(GroupKind), max_size=12))
def test_wasted_again_counts_neighbours_in_what_was_scored(kinds_N: list[GroupKind]) -> None:
    letters = "".join({INFORMATIVE: "i", EASY: "z", HARD: "z", UNSCORED: ""}[kind] for kind in kinds_N)
    neighbours = [letters[i : i + 2] for i in range(len(letters) - 1)]

    assert wasted_again(kinds_N) == (neighbours.count("zz"), neighbours.count("zz") + neighbours.count("zi"))


def test_a_hard_group_after_an_easy_one_is_wasted_again() -> None:
    assert wasted_again([EASY, HARD, UNSCORED, HARD, INFORMATIVE, EASY]) == (2, 3)


@given(rewards_of_groups)
def test_a_summary_counts_every_group_once(rewards_PG: list[list[float]]) -> None:
    found = summary_of(rewards_PG)

    assert found.groups == len(rewards_PG)
    assert found.groups == found.informative + found.easy + found.hard + found.unscored
    assert found.unscored == rewards_PG.count([])
    assert found.informative == sum(len(set(rewards_G)) > 1 for rewards_G in rewards_PG)
    assert found.easy == sum(set(rewards_G) == {1.0} for rewards_G in rewards_PG)
    assert sum(found.pass_rate_histogram) == found.groups - found.unscored


@given(rewards_of_groups.filter(any))
def test_means_of_a_summary_are_over_the_scored_groups(rewards_PG: list[list[float]]) -> None:
    found = summary_of(rewards_PG)

    scored = [rewards_G for rewards_G in rewards_PG if rewards_G]
    rates = [fmean(rewards_G) for rewards_G in scored]
    assert found.mean_reward == pytest.approx(fmean(rates))
    assert found.reward_variance == pytest.approx(fmean(map(pvariance, scored)))
    assert found.outcome_entropy == pytest.approx(fmean(map(outcome_entropy, rates)))
    assert found.goldilocks_share == pytest.approx(sum(0.2 <= rate <= 0.8 for rate in rates) / len(rates))


@given(rewards_of_groups, st.data())
def test_a_summary_does_not_depend_on_the_order_of_groups_and_rollouts(
    rewards_PG: list[list[float]], data: st.DataObject
) -> None:
    shuffled = [data.draw(st.permutations(rewards_G)) for rewards_G in data.draw(st.permutations(rewards_PG))]

    assert summary_of(shuffled) == summary_of(rewards_PG)


def test_every_pass_rate_falls_into_the_bin_of_its_tenth() -> None:
    for size in range(1, 65):
        for right in range(size + 1):
            histogram = summary_of([[1.0] * right + [0.0] * (size - right)]).pass_rate_histogram

            assert histogram.index(1) == min(10 * right // size, 9)


@pytest.mark.parametrize(("right", "share"), [(0, 0.0), (1, 1.0), (4, 1.0), (5, 0.0)])
def test_both_ends_of_the_goldilocks_band_belong_to_it(right: int, share: float) -> None:
    assert summary_of([[1.0] * right + [0.0] * (5 - right)]).goldilocks_share == share


def test_nothing_to_summarize_is_all_zeros() -> None:
    found = summary_of([])

    assert (found.groups, found.mean_reward, found.outcome_entropy) == (0, 0.0, 0.0)
    assert found.pass_rate_histogram == (0,) * 10
