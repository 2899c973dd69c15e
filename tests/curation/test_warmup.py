from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.informativeness import outcome_entropy
from curation.keys import rng_for
from curation.warmup import FEW_GROUPS, Measure, advise


def harvested(rate: float, groups: int, *, seed: int = 0) -> list[tuple[float, ...]]:
    rng = rng_for("harvest", rate, seed)
    return [tuple(float(rng.random() < rate) for _ in range(8)) for _ in range(groups)]


def test_the_version_whose_pairs_are_the_most_undecided_is_advised() -> None:
    advice = advise(
        {1: harvested(0.1, 400), 2: harvested(0.5, 400), 3: harvested(0.9, 400)}, Measure.PAIR_ENTROPY, seed=0
    )

    assert advice.best == 2
    assert [one.version for one in advice.versions] == [1, 2, 3]
    assert advice.versions[1].low > max(advice.versions[0].high, advice.versions[2].high)


def test_versions_that_cannot_be_told_apart_are_thin_evidence() -> None:
    advice = advise({1: harvested(0.5, 60), 2: harvested(0.5, 60, seed=1)}, Measure.PAIR_ENTROPY, seed=0)

    assert advice.best is None
    assert "thin evidence" in advice.reason


def test_too_few_groups_are_said_to_be_too_few() -> None:
    advice = advise({1: harvested(0.1, 400), 2: harvested(0.5, FEW_GROUPS - 1)}, Measure.PAIR_ENTROPY, seed=0)

    assert advice.best is None
    assert f"version 2 has {FEW_GROUPS - 1}" in advice.reason


def test_only_groups_that_count_for_the_measure_are_evidence() -> None:
    few_mixed = [(1.0, 0.0) * 4] * 3 + [(0.0,) * 8] * 400

    advice = advise({1: harvested(0.3, 400), 2: few_mixed}, Measure.PAIR_ENTROPY, seed=0)

    assert advice.best is None
    assert "version 2 has 3" in advice.reason


def test_measures_may_disagree_and_say_which_they_are() -> None:
    sure = [(1.0,) * 8] * 60 + [(1.0, 0.0) * 4] * 40
    unsure = [(1.0,) * 7 + (0.0,)] * 100

    def best(measure: Measure) -> int | None:
        return advise({1: sure, 2: unsure}, measure, seed=0).best

    assert (best(Measure.PAIR_ENTROPY), best(Measure.PAIR_SHARE)) == (1, 2)


@pytest.mark.parametrize("versions", [0, 1])
def test_one_version_cannot_be_compared(versions: int) -> None:
    with pytest.raises(ValueError, match="at least two"):
        advise({key: [(0.0, 1.0)] for key in range(versions)}, Measure.PAIR_SHARE, seed=0)


groups = st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=4), min_size=1, max_size=12)


@given(st.dictionaries(st.integers(0, 5), groups, min_size=2, max_size=3), st.sampled_from(Measure), st.integers(0, 9))
def test_the_same_seed_gives_the_same_advice_and_shares_that_add_up(
    harvests: dict[int, list[list[float]]], measure: Measure, seed: int
) -> None:
    advice = advise(harvests, measure, seed=seed)

    assert advice == advise(dict(reversed(harvests.items())), measure, seed=seed)
    assert sum(one.best for one in advice.versions) == pytest.approx(1.0)
    assert all(one.low <= one.high for one in advice.versions)


def test_what_is_measured_is_the_mean_over_the_groups_that_count() -> None:
    groups = [(1.0, 0.0), (1.0, 0.0, 0.0, 0.0), (1.0, 1.0)]

    def value(measure: Measure) -> float:
        return advise({1: groups, 2: groups}, measure, seed=0).versions[0].value

    entropies = [outcome_entropy(0.5), outcome_entropy(0.25)]
    assert value(Measure.PAIR_ENTROPY) == pytest.approx(fmean(entropies))
    assert value(Measure.GROUP_ENTROPY) == pytest.approx(sum(entropies) / 3)
    assert value(Measure.PAIR_SHARE) == pytest.approx(2 / 3)
