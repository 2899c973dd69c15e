import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.passrates import RATES_K, PassRates

RIGHT, WRONG, MIXED = (1.0,) * 8, (0.0,) * 8, (1.0, 0.0) * 4
groups = st.lists(st.sampled_from([0.0, 0.25, 1.0]), max_size=9).map(tuple)
looks = st.lists(st.tuples(st.sampled_from("abc"), groups, st.sampled_from([None, 1, 2, 3])), max_size=12)


def pass_rates(**choice: float) -> PassRates:
    return PassRates(group_size=8, **{"drift": 0.4, "trend": 0.05} | choice)


def mixed(rates: PassRates, prompt_id: str, epoch: int) -> float:
    return float(rates.outlook([prompt_id], epoch).mixed_P[0])


@given(looks, st.integers(0, 20), st.sampled_from([0.05, 0.4, 10.0]), st.sampled_from([-2.0, 0.0, 2.0]))
def test_a_belief_is_a_distribution_whatever_was_seen(
    seen: list[tuple[str, tuple[float, ...], int | None]], later: int, drift: float, trend: float
) -> None:
    rates = pass_rates(drift=drift, trend=trend)
    for epoch, (prompt_id, rewards_G, version) in enumerate(seen):
        rates.observe(prompt_id, rewards_G, epoch, version)

    for prompt_id in "abc":
        belief_K = rates.belief(prompt_id, len(seen) + later)
        assert belief_K.sum() == pytest.approx(1.0)
        assert (belief_K >= 0).all()
        assert prompt_id in rates or np.allclose(belief_K, belief_K[0])


def test_what_contradicts_everything_before_is_believed_in_the_end() -> None:
    rates = pass_rates()
    rates.observe("p", (1.0,) * 1024, 0, 1)
    for epoch in range(1, 4):
        rates.observe("p", (0.0,) * 1024, epoch, 1)

    assert rates.belief("p", 4) @ RATES_K < 0.4


@given(st.permutations(["x", "y", "z"]))
def test_prompts_do_not_depend_on_the_order_in_which_they_came_up(order: list[str]) -> None:
    rates = pass_rates()
    for epoch in range(6):
        for prompt_id in order:
            rates.observe(prompt_id, WRONG if epoch < 5 else RIGHT, epoch, epoch)

    chances = [mixed(rates, prompt_id, 6) for prompt_id in "xyz"]
    assert chances == pytest.approx([chances[0]] * 3)


def test_nothing_fades_while_the_policy_stands_still() -> None:
    still, moving, unknown = pass_rates(), pass_rates(), pass_rates()
    for epoch in range(10):
        still.observe("other", MIXED, epoch, 1)
        moving.observe("other", MIXED, epoch, epoch)
        unknown.observe("other", MIXED, epoch)
        if epoch == 0:
            for rates, version in ((still, 1), (moving, 0), (unknown, None)):
                rates.observe("p", WRONG, epoch, version)

    assert mixed(still, "p", 10) == mixed(still, "p", 1)
    assert mixed(moving, "p", 10) > 1.4 * mixed(still, "p", 10)
    assert mixed(unknown, "p", 10) == pytest.approx(mixed(moving, "p", 10), rel=0.1)


def test_one_change_of_the_policy_fades_once_however_long_it_lasted() -> None:
    rates = pass_rates()
    rates.observe("p", WRONG, 0, 1)
    for epoch in range(60):
        rates.observe("other", MIXED, epoch, 1 if epoch < 30 else 2)

    before, after, much_later = (mixed(rates, "p", epoch) for epoch in (30, 31, 60))
    assert before < after == much_later


def test_a_group_counts_by_its_weight() -> None:
    whole, part = pass_rates(), pass_rates()
    whole.observe("p", RIGHT, 0, 1)
    part.observe("p", RIGHT, 0, 1, weight=0.25)

    assert mixed(whole, "p", 1) < mixed(part, "p", 1)
