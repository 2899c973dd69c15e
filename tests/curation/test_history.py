import random
from itertools import product
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.history import NO_STREAK, Streak, streak
from curation.records import GroupKind, Outcome, Verdict, ZeroVariance, kind_of, release_kind
from tests.builders import a_group, a_rollout
from tests.curation.strategies import a_history

EASY, HARD, INFORMATIVE, UNSCORED = GroupKind.EASY, GroupKind.HARD, GroupKind.INFORMATIVE, GroupKind.UNSCORED

pasts = st.lists(st.sampled_from(GroupKind), max_size=12)
rewards_of_a_group = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]) | st.floats(0, 1), min_size=1, max_size=12)


@given(pasts)
def test_a_streak_is_the_longest_ending_of_one_zero_variance_kind(kinds_N: list[GroupKind]) -> None:
    scored = [kind for kind in kinds_N if kind is not UNSCORED]
    endings = [scored[start:] for start in range(len(scored))]

    kind, length = streak(kinds_N)

    assert length == max((len(e) for e in endings if set(e) == {EASY} or set(e) == {HARD}), default=0)
    assert kind is (scored[-1] if length else INFORMATIVE)


@given(pasts, st.sampled_from([EASY, HARD]))
def test_a_zero_variance_group_lengthens_its_own_streak_and_ends_the_other(
    kinds_N: list[GroupKind], now: GroupKind
) -> None:
    before = streak(kinds_N)

    after = streak([*kinds_N, now])

    assert after == Streak(now, before.length + 1 if before.kind is now else 1)


@pytest.mark.parametrize("last", [pytest.param(INFORMATIVE, id="G8-mixed-sets-z-to-0")])
@given(pasts)
def test_an_informative_group_ends_every_streak(last: GroupKind, kinds_N: list[GroupKind]) -> None:
    assert streak([*kinds_N, last]) == NO_STREAK


@given(pasts, st.integers(0, 12))
def test_a_group_without_scores_says_nothing(kinds_N: list[GroupKind], place: int) -> None:
    with_it = [*kinds_N[:place], UNSCORED, *kinds_N[place:]]

    assert streak(with_it) == streak(kinds_N)


@given(pasts, st.integers(0, 100))
def test_visits_alone_change_no_streak(kinds_N: list[GroupKind], visits: int) -> None:
    assert a_history(visits, kinds_N).streak == streak(kinds_N)


@pytest.mark.parametrize(
    ("means_N", "z_easy", "z_hard"),
    [
        pytest.param([], 0, 0, id="G2-never-seen"),
        pytest.param([1], 1, 0, id="G2-right"),
        pytest.param([1, 1, 0.5, 1], 1, 0, id="G2-right-after-mixed"),
        pytest.param([0.1, 0.1, 1], 1, 0, id="G2-right-after-wrong"),
        pytest.param([1, 0.1, 0.05], 0, 2, id="G2-wrong-after-right"),
        pytest.param([0.1, 0.1, 0.1], 0, 3, id="G2-wrong-three-times"),
        pytest.param([0.8875], 0, 0, id="G2-one-wrong-of-8"),
        pytest.param([0.125], 0, 0, id="G2-one-right-of-8"),
        pytest.param([0], 0, 1, id="G2-no-answer"),
    ],
)
def test_a_trace_of_mean_rewards_has_the_streak_of_the_release(means_N: list[float], z_easy: int, z_hard: int) -> None:
    kind, length = streak([release_kind(mean) for mean in means_N])

    assert (length if kind is EASY else 0, length if kind is HARD else 0) == (z_easy, z_hard)


@pytest.mark.parametrize(
    ("size", "filed_as"),
    [pytest.param(9, INFORMATIVE, id="G3-9-rollouts"), pytest.param(10, HARD, id="G3-10-rollouts")],
)
def test_the_release_files_one_right_among_many_wrong_as_hard(size: int, filed_as: GroupKind) -> None:
    rewards_G = [1.0] + [0.0] * (size - 1)

    kinds = kind_of(rewards_G, ZeroVariance.RELEASE), kind_of(rewards_G, ZeroVariance.EXACT)

    assert kinds == (filed_as, INFORMATIVE)


@given(rewards_of_a_group)
def test_a_group_is_informative_unless_all_its_rewards_agree(rewards_G: list[float]) -> None:
    kind = kind_of(rewards_G)

    assert (kind is INFORMATIVE) == (len(set(rewards_G)) > 1)
    assert kind.is_zero_variance == (len(set(rewards_G)) == 1)
    assert (kind is EASY) == (set(rewards_G) == {rewards_G[0]} and rewards_G[0] > 0.5)


@pytest.mark.parametrize("definition", ZeroVariance)
@given(st.lists(st.sampled_from([0.0, 0.1, 1.0]), max_size=12), st.randoms(use_true_random=False))
def test_the_kind_of_a_group_does_not_depend_on_the_order_of_its_rollouts(
    definition: ZeroVariance, rewards_G: list[float], rng: random.Random
) -> None:
    shuffled = rng.sample(rewards_G, len(rewards_G))

    assert kind_of(shuffled, definition) is kind_of(rewards_G, definition)


@given(rewards_of_a_group)
def test_the_release_looks_at_the_mean_alone(rewards_G: list[float]) -> None:
    assert kind_of(rewards_G, ZeroVariance.RELEASE) is release_kind(fmean(rewards_G))


@pytest.mark.parametrize(
    ("mean", "filed_as"), [(0.11, HARD), (0.1101, INFORMATIVE), (0.9799, INFORMATIVE), (0.98, EASY)]
)
def test_the_thresholds_of_the_release_belong_to_the_wasted_side(mean: float, filed_as: GroupKind) -> None:
    assert release_kind(mean) is filed_as


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_higher_mean_is_never_filed_as_harder_by_the_release(one: float, other: float) -> None:
    ladder = [HARD, INFORMATIVE, EASY]

    low, high = release_kind(min(one, other)), release_kind(max(one, other))

    assert ladder.index(low) <= ladder.index(high)


@pytest.mark.parametrize("definition", ZeroVariance)
def test_a_group_without_rewards_is_unscored(definition: ZeroVariance) -> None:
    assert kind_of([], definition) is UNSCORED


@pytest.mark.parametrize("definition", ZeroVariance)
@pytest.mark.parametrize("size", range(2, 10))
def test_both_definitions_agree_on_right_and_wrong_in_groups_below_ten(size: int, definition: ZeroVariance) -> None:
    for rewards_G in product([0.0, 1.0], repeat=size):
        assert kind_of(rewards_G, definition) is kind_of(rewards_G)


def test_a_group_is_judged_by_its_scored_rollouts() -> None:
    group = a_group(1.0, None, 1.0)

    assert (group.rewards_G, group.kind) == ((1.0, 1.0), EASY)


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("reward", [None, 0.0, 1.0])
def test_a_reward_exists_exactly_where_a_verifier_reached_one(outcome: Outcome, reward: float | None) -> None:
    reached = outcome in {Outcome.SCORED, Outcome.NO_ANSWER}

    if (reward is not None) == reached:
        assert Verdict(outcome, reward, "math@1").reward == reward
    else:
        with pytest.raises(ValueError, match=outcome):
            Verdict(outcome, reward, "math@1")


@given(st.floats().filter(lambda reward: not 0.0 <= reward <= 1.0))
def test_a_reward_outside_0_to_1_is_refused(reward: float) -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        a_rollout(reward)
