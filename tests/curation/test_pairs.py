import random
from collections import Counter
from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.judged import row_of
from curation.pairs import (
    IndexPair,
    Scored,
    all_right_with_wrong,
    best_with_random,
    best_with_worst,
    first_right_first_wrong,
    k_random_pairs,
    one_random_pair,
    right,
    wrong,
)
from tests.builders import a_group, a_prompt, judged

Rule = Callable[[list[Scored]], list[IndexPair]]

RULES: dict[str, Rule] = {
    "3.5-first-right-first-wrong": first_right_first_wrong,
    "3.5-one-random-pair": lambda scored_G: one_random_pair(scored_G, random.Random(0)),
    "3.5-all-right-with-wrong": all_right_with_wrong,
    "3.5-k-random-pairs": lambda scored_G: k_random_pairs(scored_G, 3, random.Random(0)),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def scored(*rewards: float | None) -> list[Scored]:
    """The rollouts that have a reward, at their places in the group."""
    return [Scored(index, reward) for index, reward in enumerate(rewards) if reward is not None]


rewards = st.lists(st.sampled_from([None, 0.0, 0.25, 0.5, 1.0]), max_size=8)
groups = rewards.map(lambda drawn: scored(*drawn))
seeds = st.integers(0, 1000)


@given(groups)
def test_right_is_reward_1_wrong_is_reward_0_and_the_rest_is_neither(scored_G: list[Scored]) -> None:
    assert right(scored_G) == [s for s in scored_G if s.reward == 1]
    assert wrong(scored_G) == [s for s in scored_G if s.reward == 0]


@every_rule
@given(groups)
def test_chosen_is_always_right_and_rejected_always_wrong(rule: Rule, scored_G: list[Scored]) -> None:
    reward_of = {s.slot: s.reward for s in scored_G}

    found = rule(scored_G)

    assert all((reward_of[pair.chosen], reward_of[pair.rejected]) == (1.0, 0.0) for pair in found)
    assert len(found) == len(set(found))
    assert bool(found) == (bool(right(scored_G)) and bool(wrong(scored_G)))


@every_rule
@pytest.mark.parametrize("reward", [0.0, 1.0])
@pytest.mark.parametrize("size", [1, 8])
def test_a_prompt_always_right_or_always_wrong_gives_no_pair(rule: Rule, reward: float, size: int) -> None:
    assert rule(scored(*[reward] * size)) == []


@given(groups)
def test_every_right_meets_every_wrong_one(scored_G: list[Scored]) -> None:
    found = all_right_with_wrong(scored_G)

    every = product(scored_G, scored_G)
    assert found == [(a.slot, b.slot) for a, b in every if a.reward == 1 and b.reward == 0]


@given(groups)
def test_the_first_right_and_the_first_wrong_are_the_earliest_of_all_pairs(scored_G: list[Scored]) -> None:
    found = first_right_first_wrong(scored_G)

    assert found == all_right_with_wrong(scored_G)[:1]


@given(groups, seeds)
def test_one_random_pair_is_one_of_all_pairs(scored_G: list[Scored], seed: int) -> None:
    found = one_random_pair(scored_G, random.Random(seed))

    every = all_right_with_wrong(scored_G)
    assert len(found) == min(1, len(every))
    assert set(found) <= set(every)
    assert found == one_random_pair(scored_G, random.Random(seed))


@pytest.mark.parametrize(
    ("rule", "pairs_a_draw"),
    [
        pytest.param(one_random_pair, 1, id="one"),
        pytest.param(lambda scored_G, rng: k_random_pairs(scored_G, 2, rng), 2, id="two"),
    ],
)
def test_every_pair_is_drawn_as_often_as_any_other(
    rule: Callable[[list[Scored], random.Random], list[IndexPair]], pairs_a_draw: int
) -> None:
    scored_G, rng = scored(1.0, 0.0, None, 1.0, 0.0, 0.5, 0.0), random.Random(0)

    drawn = Counter(pair for _ in range(3000) for pair in rule(scored_G, rng))

    assert set(drawn) == set(all_right_with_wrong(scored_G))
    assert all(400 <= times / pairs_a_draw <= 600 for times in drawn.values())


@given(groups, st.integers(1, 20), seeds)
def test_k_random_pairs_are_up_to_k_different_ones_in_sampling_order(scored_G: list[Scored], k: int, seed: int) -> None:
    found = k_random_pairs(scored_G, k, random.Random(seed))

    every = all_right_with_wrong(scored_G)
    assert len(found) == min(k, len(every))
    assert found == sorted(set(found) & set(every))
    assert found == k_random_pairs(scored_G, k, random.Random(seed))
    assert k < len(every) or found == every


@pytest.mark.parametrize("k", [0, -1])
def test_drawing_no_pairs_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"cannot draw {k} pairs"):
        k_random_pairs(scored(1.0, 0.0), k, random.Random(0))


@given(groups, st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1))
def test_best_with_worst_is_the_earliest_pair_of_the_widest_gap_if_it_reaches_the_margin(
    scored_G: list[Scored], margin: float
) -> None:
    found = best_with_worst(scored_G, margin)

    gaps = {(a.slot, b.slot): a.reward - b.reward for a, b in product(scored_G, scored_G)}
    widest = max(gaps.values(), default=0.0)
    earliest = [pair for pair in sorted(gaps) if gaps[pair] == widest][:1]
    assert found == (earliest if widest > 0 and widest >= margin else [])


@pytest.mark.parametrize("indices", [(0, 1), (1, 0)])
def test_a_row_with_an_unscored_side_is_refused(indices: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="scored rollouts"):
        row_of(judged(a_group(1.0, None)), indices)


@pytest.mark.parametrize("version", [pytest.param(150, id="3.5-provenance")])
def test_a_row_tells_its_prompt_its_policy_and_its_verifier(version: int) -> None:
    prompt = a_prompt("3 + 3?", "6")

    row = row_of(judged(a_group(0.0, 1.0, prompt=prompt, policy_version=version)), (1, 0))

    assert (row.origin.prompt_id, row.origin.policy_version, row.origin.verifier) == (prompt.id, 150, "math@1")
    assert (row.indices, row.rewards, row.pass_rate) == ((1, 0), (1.0, 0.0), 0.5)


@given(groups, st.floats(0, 1), seeds)
def test_best_with_random_pairs_the_best_with_any_that_is_low_enough(
    scored_G: list[Scored], margin: float, seed: int
) -> None:
    found = best_with_random(scored_G, random.Random(seed), margin)

    best = max((s.reward for s in scored_G), default=0.0)
    lower = [s.slot for s in scored_G if s.reward < best and best - s.reward >= margin - 1e-9]
    assert bool(found) == bool(lower)
    for pair in found:
        assert pair.chosen == next(s.slot for s in scored_G if s.reward == best)
        assert pair.rejected in lower


def test_best_with_random_takes_every_lower_one_now_and_then() -> None:
    scored_G = scored(1.0, 0.0, 0.5, 1.0, 0.25)

    drawn = {best_with_random(scored_G, random.Random(seed))[0].rejected for seed in range(100)}

    assert drawn == {1, 2, 4}


def test_a_length_penalty_ranks_and_does_not_count() -> None:
    scored_G = [Scored(0, 1.0, 3000), Scored(1, 0.9, 100), Scored(2, 0.5, 100), Scored(3, 0.6, 5000)]

    assert best_with_worst(scored_G) == [IndexPair(0, 2)]
    assert best_with_worst(scored_G, penalty=0.1) == [IndexPair(1, 3)]
    assert best_with_worst(scored_G, margin=0.31, penalty=0.1) == []


def test_what_only_the_penalty_tells_apart_is_no_pair() -> None:
    assert best_with_worst([Scored(0, 1.0, 10), Scored(1, 1.0, 5000)], penalty=1.0) == []
