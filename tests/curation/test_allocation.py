from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.allocation import Knapsack, knapsack, worth_KN
from curation.passrates import RATES_K
from curation.records import Action, Decision, Visit
from curation.selection import RunState, group_sizes
from curation.selectors.base import Seen
from curation.selectors.simple import Everything

beliefs = st.lists(
    st.integers(0, len(RATES_K) - 1).map(lambda k: np.eye(len(RATES_K))[k])
    | st.integers(0, 99).map(lambda seed: np.random.default_rng(seed).dirichlet(np.ones(len(RATES_K)))),
    min_size=1,
    max_size=4,
).map(np.stack)


@given(beliefs, st.integers(2, 3), st.integers(0, 3), st.integers(0, 20))
def test_no_other_split_of_the_rollouts_is_worth_more(
    beliefs_PK: np.ndarray, least: int, extra: int, total: int
) -> None:
    most = least + extra
    found = knapsack(beliefs_PK, total, least=least, most=most)

    worth_PN = beliefs_PK @ worth_KN(least, most)
    possible = min(max(total, least * len(found)), most * len(found))

    def worth(sizes: tuple[int, ...]) -> float:
        return float(sum(worth_PN[p, n - least] for p, n in enumerate(sizes)))

    every = [s for s in product(range(least, most + 1), repeat=len(found)) if sum(s) == possible]
    assert sum(found) == possible
    assert all(least <= n <= most for n in found)
    assert worth(tuple(found)) == pytest.approx(max(map(worth, every)), abs=1e-9)


def test_more_rollouts_go_where_right_answers_are_rare_than_where_wrong_ones_are() -> None:
    rare, middle, common = (np.eye(len(RATES_K))[np.abs(RATES_K - rate).argmin()] for rate in (0.05, 0.5, 0.95))

    few, some, none = knapsack(np.stack([rare, middle, common]), 48, least=2, most=40)

    assert few > some > none


def test_a_round_has_as_many_rollouts_as_with_a_fixed_size() -> None:
    state = RunState.replay(Everything(), [], seed=0, group_size=8, allocation=Knapsack())
    for epoch in range(3):
        for number in range(10):
            rewards_G = (1.0,) * 8 if number < 5 else (1.0,) + (0.0,) * 7
            state.observe(Seen(f"p{number}", epoch, 0, epoch, Action.SAMPLED, rewards_G))
    visits = [Visit(f"p{n}", 3, 3, Decision(Action.SAMPLED, 1.0, "")) for n in range(10)]

    sizes = group_sizes(visits, state, 8)

    assert sum(sizes.values()) == 80
    assert max(sizes[f"p{n}"] for n in range(5)) < min(sizes[f"p{n}"] for n in range(5, 10))
    assert sizes == group_sizes(reversed(visits), state, 8)
