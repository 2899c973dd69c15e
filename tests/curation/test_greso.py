from math import inf, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation import greso
from curation.greso import (
    Controller,
    Explore,
    StepTally,
    adaptive_round,
    keep_probability,
    steer,
)
from curation.history import History
from curation.records import Action, Decision, GroupKind
from tests.curation.strategies import a_history, histories

EASY, HARD, INFORMATIVE, UNSCORED = GroupKind.EASY, GroupKind.HARD, GroupKind.INFORMATIVE, GroupKind.UNSCORED

shares = st.floats(0, 1)
streaks = st.integers(0, 40)
explores = st.builds(Explore, shares, shares)
prompt_ids = st.text(max_size=4)
seeds = st.integers(0, 1000)


def decide(prompt_id: str, past: History, explore: Explore, *, seed: int, floor: float = 0.0) -> Decision:
    return greso.decide(prompt_id, past.streak, past.visits, explore, seed=seed, floor=floor)


@pytest.mark.parametrize(
    ("explore", "streak", "keep"),
    [
        *(
            pytest.param(0.5, z, keep, id=f"G1-p.5-z{z}")
            for z, keep in enumerate([1, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.01, 0.01])
        ),
        *(pytest.param(0.05, z, keep, id=f"G1-p.05-z{z}") for z, keep in enumerate([1, 0.05, 0.01, 0.01])),
        pytest.param(0.95, 8, 0.66342, id="G1-p.95-z8"),
    ],
)
def test_the_chance_of_another_try_falls_with_the_streak_down_to_a_floor(
    explore: float, streak: int, keep: float
) -> None:
    assert keep_probability(streak, explore, floor=0.01) == pytest.approx(keep, abs=5e-6)


@given(streaks, shares, shares)
def test_the_chance_is_one_factor_per_group_of_the_streak_but_never_below_the_floor(
    streak: int, explore: float, floor: float
) -> None:
    keep = keep_probability(streak, explore, floor)

    assert keep == pytest.approx(max(prod([explore] * streak), floor))


@given(streaks, shares, shares, shares)
def test_a_longer_streak_a_lower_base_or_a_lower_floor_never_raise_the_chance(
    streak: int, explore: float, floor: float, part: float
) -> None:
    keep = keep_probability(streak, explore, floor)

    assert keep_probability(streak + 1, explore, floor) <= keep
    assert keep_probability(streak, explore * part, floor) <= keep
    assert keep_probability(streak, explore, floor * part) <= keep


@pytest.mark.parametrize(("streak", "explore", "floor"), [(-1, 0.5, 0), (1, -0.1, 0), (1, 1.1, 0), (1, 0.5, 1.1)])
def test_a_chance_of_nonsense_is_refused(streak: int, explore: float, floor: float) -> None:
    with pytest.raises(ValueError, match="no probability"):
        keep_probability(streak, explore, floor)


@pytest.mark.parametrize(
    "last",
    [
        pytest.param((), id="G8-never-seen"),
        pytest.param((UNSCORED,), id="G8-never-scored"),
        pytest.param((INFORMATIVE,), id="G8-last-mixed"),
        pytest.param((INFORMATIVE, UNSCORED), id="G8-last-scored-mixed"),
    ],
)
@given(prompt_ids, histories, explores, seeds)
def test_a_prompt_never_seen_or_last_informative_is_never_skipped(
    last: tuple[GroupKind, ...], prompt_id: str, past: History, explore: Explore, seed: int
) -> None:
    now = a_history(past.visits, last)
    if INFORMATIVE in last:
        now = History(past.visits, past.groups_N + now.groups_N)

    decision = decide(prompt_id, now, explore, seed=seed)

    assert (decision.action, decision.keep_probability) == (Action.SAMPLED, 1.0)


@given(prompt_ids, histories, explores, seeds, shares)
def test_a_decision_names_the_kind_and_the_length_of_the_streak_it_rests_on(
    prompt_id: str, history: History, explore: Explore, seed: int, floor: float
) -> None:
    decision = decide(prompt_id, history, explore, seed=seed, floor=floor)

    kind, length = history.streak
    skipped = {EASY: Action.SKIPPED_EASY, HARD: Action.SKIPPED_HARD}
    base = explore.easy if kind is EASY else explore.hard
    assert decision.keep_probability == keep_probability(length, base, floor)
    assert decision.action in {Action.SAMPLED, skipped.get(kind, Action.SAMPLED)}
    assert str(length or "new") in decision.reason
    assert {EASY: "right", HARD: "wrong", INFORMATIVE: "informative"}[kind] in decision.reason


@given(prompt_ids, histories, explores, seeds)
def test_only_the_trailing_streak_and_the_visit_matter(
    prompt_id: str, history: History, explore: Explore, seed: int
) -> None:
    kind, length = history.streak
    same = a_history(history.visits, (INFORMATIVE, *[kind] * length))

    assert decide(prompt_id, same, explore, seed=seed) == decide(prompt_id, history, explore, seed=seed)


@given(prompt_ids, histories, explores, seeds, shares)
def test_a_prompt_that_is_sampled_would_be_sampled_at_any_higher_chance(
    prompt_id: str, history: History, explore: Explore, seed: int, part: float
) -> None:
    lower = Explore(explore.easy * part, explore.hard * part)

    cautious = decide(prompt_id, history, lower, seed=seed)
    curious = decide(prompt_id, history, explore, seed=seed)

    assert cautious.action.is_skip or not curious.action.is_skip


@given(prompt_ids, histories, explores, seeds)
def test_a_floor_of_one_skips_nothing_and_a_base_of_zero_skips_every_streak(
    prompt_id: str, history: History, explore: Explore, seed: int
) -> None:
    always = decide(prompt_id, history, explore, seed=seed, floor=1.0)
    never = decide(prompt_id, history, Explore(0.0, 0.0), seed=seed)

    assert not always.action.is_skip
    assert never.action.is_skip == (history.streak.length > 0)


def test_a_skipped_prompt_is_drawn_anew_on_its_next_visit() -> None:
    for prompt_id in "abcdefgh":
        visits = [decide(prompt_id, a_history(v, (HARD,)), Explore(), seed=0).action.is_skip for v in range(64)]

        assert set(visits) == {True, False}


@pytest.mark.parametrize(
    ("z", "passes"),
    [pytest.param(z, passes, id=f"G7-z{z}") for z, passes in enumerate([1, 2, 4, 8, 16, 32, 64, 100])],
)
def test_a_streak_is_tried_again_after_so_many_passes_on_average(z: int, passes: int) -> None:
    visits = 400 * passes

    sampled = sum(
        not decide("p", a_history(visit, (EASY,) * z), Explore(), seed=7, floor=0.01).action.is_skip
        for visit in range(visits)
    )

    assert 1 / keep_probability(z, 0.5, 0.01) == passes
    assert visits / sampled == pytest.approx(passes, rel=0.2)


@pytest.mark.parametrize(
    ("steps", "explore"),
    [
        pytest.param(1, 0.49, id="G4-1-step"),
        pytest.param(10, 0.40, id="G4-10-steps"),
        pytest.param(44, 0.06, id="G4-44-steps"),
        pytest.param(45, 0.05, id="G4-45-steps"),
        pytest.param(46, 0.05, id="G4-46-steps"),
        pytest.param(1000, 0.05, id="G4-for-ever"),
    ],
)
def test_a_share_above_the_target_lowers_the_base_step_by_step(steps: int, explore: float) -> None:
    controller, base = Controller(target=0.0833), 0.5

    for _ in range(steps):
        base = controller.adjust(base, share=0.30)

    assert base == pytest.approx(explore, abs=1e-9)


@pytest.mark.parametrize(
    ("before", "share", "after"),
    [
        pytest.param(0.5, 0.0833, 0.49, id="G5-at-the-target"),
        pytest.param(0.5, 0.0833 - 1e-9, 0.51, id="G5-just-below"),
        pytest.param(0.95, 0.0, 0.95, id="G5-at-the-top"),
    ],
)
def test_the_target_itself_lowers_the_base_and_anything_below_raises_it(
    before: float, share: float, after: float
) -> None:
    assert Controller(target=0.0833).adjust(before, share) == pytest.approx(after)


@pytest.mark.parametrize(
    "controller",
    [
        pytest.param(Controller(0.25 / 3), id="G8-p-within-bounds-easy"),
        pytest.param(Controller(0.5 / 3, step=0.3, low=0.2, high=0.6), id="G8-p-within-bounds-hard"),
    ],
)
@given(shares, st.lists(shares, min_size=1, max_size=30))
def test_a_base_never_leaves_its_bounds(controller: Controller, base: float, observed: list[float]) -> None:
    for share in observed:
        before, base = base, controller.adjust(base, share)

        assert controller.low <= base <= controller.high
        if controller.low <= before <= controller.high:
            assert abs(base - before) <= controller.step + 1e-12
            assert base <= before if share >= controller.target else base >= before


tallies = st.builds(
    lambda easy, hard, mixed, epoch: StepTally(easy, hard, easy + hard + mixed, epoch),
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(0, 3),
)


@given(explores, tallies)
def test_each_base_follows_the_share_of_its_own_kind(explore: Explore, tally: StepTally) -> None:
    easy, hard = Controller(0.25 / 3), Controller(0.5 / 3)

    steered = steer(explore, tally, easy, hard)

    if tally.epoch == 0 or tally.total == 0:
        assert steered == explore
    else:
        assert steered.easy == easy.adjust(explore.easy, tally.easy / tally.total)
        assert steered.hard == hard.adjust(explore.hard, tally.hard / tally.total)


@given(explores, tallies)
def test_the_first_pass_moves_no_base(explore: Explore, tally: StepTally) -> None:
    first = tally._replace(epoch=0)

    assert steer(explore, first, Controller(0.1), Controller(0.1)) == explore


@pytest.mark.parametrize(
    ("missing", "wasted", "prompts", "is_enough"),
    [
        pytest.param(2048, 0.0, 320, True, id="G6-nothing-wasted"),
        pytest.param(1024, 0.5, 320, True, id="G6-half-wasted"),
        pytest.param(1024, 0.25, 213, True, id="G6-a-quarter-wasted"),
        pytest.param(512, 0.8, 384, False, id="G6-capped"),
        pytest.param(8, 0.0, 64, True, id="G6-raised-to-the-floor"),
        pytest.param(2048, 0.9, 384, False, id="G6-far-too-much"),
        pytest.param(2048, 1.0, 384, False, id="G6-all-wasted"),
    ],
)
def test_a_later_round_is_sized_by_what_is_missing_and_what_was_wasted(
    missing: int, wasted: float, prompts: int, is_enough: bool
) -> None:
    assert adaptive_round(missing, wasted, group_size=8, default=384, floor=64) == (prompts, is_enough)


@given(st.integers(0, 5000), shares, st.integers(1, 64), st.integers(1, 500), st.integers(1, 500))
def test_a_round_lies_between_floor_and_default_and_says_when_that_is_enough(
    missing: int, wasted: float, group_size: int, default: int, floor: int
) -> None:
    floor = min(floor, default)

    size = adaptive_round(missing, wasted, group_size=group_size, default=default, floor=floor)

    needed = missing / (1 - wasted) / group_size * 1.25 if wasted < 1 else inf
    assert floor <= size.prompts <= default
    assert size.is_enough == (needed < default + 1)
    if floor < size.prompts < default:
        assert size.prompts <= needed < size.prompts + 1


@given(st.integers(0, 5000), st.integers(0, 5000), shares, shares)
def test_more_missing_or_more_wasted_never_makes_a_smaller_round(
    missing: int, more: int, wasted: float, worse: float
) -> None:
    size = adaptive_round(missing, min(wasted, worse), group_size=8, default=384)

    assert adaptive_round(missing + more, max(wasted, worse), group_size=8, default=384).prompts >= size.prompts
