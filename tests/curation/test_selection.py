from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from math import inf
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmarks.pools import simulate
from curation.history import History, Streak
from curation.keys import rng_for
from curation.records import Action, GroupKind, Visit, ZeroVariance
from curation.selection import Batch, RunState, SelectorChoices, by_name, next_epoch, plan_round, round_size
from curation.selectors.base import Candidate, Seen
from curation.selectors.posterior import Posterior
from curation.selectors.ranking import Learnability, Mopps
from curation.selectors.simple import Band, Everything, Greso, Pools, RandomShare, Retire
from tests.curation.strategies import a_history

Selector = SelectorChoices
Rewards = tuple[float, ...] | None

WANTED = 3
"""Informative groups in a step of the worlds below."""

GRESO = Greso(explore_easy=0.3, explore_hard=0.6, step=0.1)
RELEASE = Greso(floor=0.01, zero_variance=ZeroVariance.RELEASE)

SELECTORS = [
    Everything(),
    RandomShare(share=0.5),
    Greso(),
    GRESO,
    RELEASE,
    Pools(),
    Pools(hard_up_to=0, easy_from=1, keep_hard=0, keep_easy=0),
    Band(),
    Retire(after=1),
    Mopps(),
    Learnability(candidates=3),
    Posterior(target=0.5),
]
selectors = st.sampled_from(SELECTORS)
deciding_alone = st.sampled_from([choice for choice in SELECTORS if not isinstance(choice, Mopps | Learnability)])
prompt_sets = st.integers(1, 10).map(lambda count: [f"p{i}" for i in range(count)])
round_sizes = st.lists(st.integers(1, 6), min_size=1, max_size=10)
seeds = st.integers(0, 10_000)


def earned(visit: Visit, seed: int) -> Rewards:
    """What a made-up policy earns on a visit: failures, unscored groups and every kind of group."""
    if visit.decision.action.is_skip:
        return None
    outcomes: list[Rewards] = [None, (), (0.0, 0.0), (0.0, 0.0), (1.0, 1.0), (1.0, 1.0), (0.0, 0.1), (0.0, 1.0)]
    return rng_for("earned", seed, visit.prompt_id, visit.visit).choice(outcomes)


def seen(visit: Visit, state: RunState, number: int, rewards_G: Rewards) -> Seen:
    return Seen(visit.prompt_id, visit.epoch, state.step, number, visit.decision.action, rewards_G)


def replay(selector: Selector, rows: Sequence[Seen], seed: int = 0) -> RunState:
    return RunState.replay(selector, rows, seed=seed, group_size=2)


def standing(state: RunState) -> tuple[Any, ...]:
    """Everything about a run that can be seen from outside."""
    counters = state.epoch, state.step, state.tally, state.informative, state.round, state.round_kinds
    return state.histories, state.epochs, counters, state.selector.knobs()


def play(selector: Selector, prompt_ids: Sequence[str], sizes: Sequence[int], seed: int) -> Iterator[list[Seen]]:
    """The rows of one round after another of a live run."""
    state = replay(selector, [], seed)
    for number, size in enumerate(sizes):
        if state.informative >= WANTED:
            state.close_step()
        plan = plan_round(prompt_ids, state, size=size)
        rows = [seen(visit, state, number, earned(visit, seed)) for visit in plan]
        for row in rows:
            state.observe(row)
        yield rows


def observed(state: RunState, rows: Sequence[Seen]) -> RunState:
    """A copy of the state that saw these rows too."""
    after = deepcopy(state)
    for row in rows:
        after.observe(row)
    return after


@given(selectors, prompt_sets, round_sizes, seeds)
def test_a_restart_between_any_two_rounds_plans_the_same_next_round(
    selector: Selector, prompt_ids: list[str], sizes: list[int], seed: int
) -> None:
    live = replay(selector, [], seed)
    stored: list[Seen] = []

    for number, size in enumerate(sizes):
        restarted = replay(selector, stored, seed)
        assert standing(restarted) == standing(live)
        for state in (live, restarted):
            if state.informative >= WANTED:
                state.close_step()
        plan = plan_round(prompt_ids, live, size=size)
        assert plan_round(prompt_ids, restarted, size=size) == plan
        assert standing(restarted) == standing(live)

        rows = [seen(visit, live, number, earned(visit, seed)) for visit in plan]
        for row in rows:
            live.observe(row)
        stored += rows


@given(selectors, prompt_sets, round_sizes, seeds, st.integers(1, 6))
def test_planning_changes_nothing_and_ignores_the_order_of_the_prompts(
    selector: Selector, prompt_ids: list[str], sizes: list[int], seed: int, size: int
) -> None:
    rows = [row for round_rows in play(selector, prompt_ids, sizes, seed) for row in round_rows]
    state = replay(selector, rows, seed)

    first = plan_round(prompt_ids, state, size=size)
    second = plan_round(set(prompt_ids), state, size=size)

    assert first == second
    assert standing(state) == standing(replay(selector, rows, seed))


@given(selectors, prompt_sets, round_sizes, seeds)
def test_a_pass_considers_each_prompt_exactly_once(
    selector: Selector, prompt_ids: list[str], sizes: list[int], seed: int
) -> None:
    rows = [row for round_rows in play(selector, prompt_ids, sizes, seed) for row in round_rows]

    passes = [[row.prompt_id for row in rows if row.epoch == epoch] for epoch in range(rows[-1].epoch + 1)]
    assert all(sorted(considered) == prompt_ids for considered in passes[:-1])
    assert len(set(passes[-1])) == len(passes[-1])
    assert [row.epoch for row in rows] == sorted(row.epoch for row in rows)


@given(selectors, prompt_sets, round_sizes, seeds)
def test_a_round_holds_no_prompt_twice(selector: Selector, prompt_ids: list[str], sizes: list[int], seed: int) -> None:
    for size, rows in zip(sizes, play(selector, prompt_ids, sizes, seed), strict=True):
        sampled = [row.prompt_id for row in rows if not row.action.is_skip]

        assert len(set(sampled)) == len(sampled) <= size
        assert 1 <= len(rows) <= len(prompt_ids)
        for place, row in enumerate(rows):
            assert row.prompt_id not in {earlier.prompt_id for earlier in rows[:place] if not earlier.action.is_skip}


@given(selectors, prompt_sets, round_sizes, seeds, st.integers(1, 6))
def test_a_visit_is_numbered_by_the_visits_before_it(
    selector: Selector, prompt_ids: list[str], sizes: list[int], seed: int, size: int
) -> None:
    rows = [row for round_rows in play(selector, prompt_ids, sizes, seed) for row in round_rows]
    before = Counter(row.prompt_id for row in rows)

    plan = plan_round(prompt_ids, replay(selector, rows, seed), size=size)

    for visit in plan:
        assert visit.visit == before[visit.prompt_id]
        before[visit.prompt_id] += 1


@given(deciding_alone, prompt_sets, round_sizes, seeds)
def test_a_prompt_added_in_the_middle_of_a_pass_does_not_move_the_others(
    selector: Selector, prompt_ids: list[str], sizes: list[int], seed: int
) -> None:
    rows = [row for round_rows in play(selector, prompt_ids, sizes, seed) for row in round_rows]
    state = replay(selector, rows, seed)

    def rest_of_the_pass(ids: Sequence[str]) -> list[Visit]:
        return plan_round(ids, state, size=len(ids), through_epoch=state.epoch)

    before, after = rest_of_the_pass(prompt_ids), rest_of_the_pass([*prompt_ids, "added"])

    assert [visit for visit in after if visit.prompt_id != "added"] == before
    assert [visit.visit for visit in after if visit.prompt_id == "added"] == [0]


@given(selectors, prompt_sets, round_sizes, seeds, st.integers(0, 3))
def test_no_visit_lies_beyond_the_last_pass(
    selector: Selector, prompt_ids: list[str], sizes: list[int], seed: int, last: int
) -> None:
    rows = [row for round_rows in play(selector, prompt_ids, sizes, seed) for row in round_rows]
    state = replay(selector, rows, seed)

    whole = plan_round(prompt_ids, state, size=4)
    limited = plan_round(prompt_ids, state, size=4, through_epoch=last)

    assert limited == [visit for visit in whole if visit.epoch <= last]


@given(selectors, prompt_sets, round_sizes, seeds)
def test_the_next_pass_is_the_pass_of_the_next_visit(
    selector: Selector, prompt_ids: list[str], sizes: list[int], seed: int
) -> None:
    rows = [row for round_rows in play(selector, prompt_ids, sizes, seed) for row in round_rows]
    state = replay(selector, rows, seed)

    assert next_epoch(prompt_ids, state) == plan_round(prompt_ids, state, size=1)[0].epoch


def test_every_pass_and_every_run_has_an_order_of_its_own() -> None:
    prompt_ids = [f"p{i}" for i in range(20)]
    seen = [Seen(p, 0, 0, 0, Action.SAMPLED, None) for p in prompt_ids]

    def order_of_a_pass(state: RunState) -> tuple[str, ...]:
        return tuple(visit.prompt_id for visit in plan_round(prompt_ids, state, size=20))

    states = replay(Everything(), [], 0), replay(Everything(), [], 1), replay(Everything(), seen, 0)
    orders = {order_of_a_pass(state) for state in states}

    assert len(orders) == 3


@pytest.mark.parametrize(
    "selector",
    [
        pytest.param(GRESO, id="G8-skips-leave-no-trace-exact"),
        pytest.param(RELEASE, id="G8-skips-leave-no-trace-release"),
    ],
)
@given(prompt_ids=prompt_sets, sizes=round_sizes, seed=seeds)
def test_a_skip_changes_no_streak_and_counts_as_a_visit(
    selector: Greso, prompt_ids: list[str], sizes: list[int], seed: int
) -> None:
    rows = [row for round_rows in play(selector, prompt_ids, sizes, seed) for row in round_rows]
    state = replay(selector, rows, seed)

    after = observed(state, [Seen(p, state.epoch, state.step, 99, Action.SKIPPED_HARD, None) for p in prompt_ids])

    for prompt_id in prompt_ids:
        before, now = state.history(prompt_id), after.history(prompt_id)
        assert now == History(before.visits + 1, before.groups_N)
    assert (after.tally, after.informative) == (state.tally, state.informative)
    assert after.selector.knobs() == state.selector.knobs()


def test_a_skipped_prompt_is_drawn_anew_on_each_visit_and_comes_back() -> None:
    prompt_ids = [f"p{i}" for i in range(50)]
    state = replay(Greso(step=0), [])
    actions: dict[str, list[Action]] = {prompt_id: [] for prompt_id in prompt_ids}

    for number in range(100):
        for visit in plan_round(prompt_ids, state, size=50, through_epoch=39):
            rewards_G = None if visit.decision.action.is_skip else (0.0, 0.0)
            state.observe(seen(visit, state, number, rewards_G))
            actions[visit.prompt_id].append(visit.decision.action)

    for taken in actions.values():
        assert len(taken) == 40
        assert taken[0] is Action.SAMPLED
        assert 2 <= taken.count(Action.SAMPLED) <= 20
        assert set(taken) == {Action.SAMPLED, Action.SKIPPED_HARD}


@pytest.mark.parametrize(
    "selector",
    [
        pytest.param(Everything(), id="G8-groups-counted-DS"),
        pytest.param(GRESO, id="G8-groups-counted-GRESO"),
    ],
)
@given(prompt_ids=prompt_sets, sizes=round_sizes, seed=seeds)
def test_a_step_counts_exactly_the_groups_it_rolled_out(
    selector: Selector, prompt_ids: list[str], sizes: list[int], seed: int
) -> None:
    rounds = list(play(selector, prompt_ids, sizes, seed))

    state = replay(selector, [row for rows in rounds for row in rows], seed)

    in_step = [row.rewards_G for rows in rounds for row in rows if row.step == state.step]
    in_round = [row.rewards_G for row in rounds[-1] if row.rewards_G is not None]
    scored = [rewards_G for rewards_G in in_step if rewards_G]
    assert state.tally.total == len(scored)
    assert state.tally.easy == sum(set(rewards_G) == {1.0} for rewards_G in scored)
    assert state.tally.hard == sum(set(rewards_G) == {0.0} for rewards_G in scored)
    assert state.informative == sum(len(set(rewards_G)) == 2 for rewards_G in scored)
    assert state.round_kinds.total() == len(in_round)
    assert all(row.action is Action.SAMPLED for rows in rounds for row in rows if row.rewards_G is not None)


@pytest.mark.parametrize(
    "adaptive", [pytest.param(False, id="G8-p1-is-DS"), pytest.param(True, id="G8-p1-is-DS-with-ABS")]
)
@given(prompt_ids=prompt_sets, seed=seeds)
def test_greso_that_always_tries_again_is_dynamic_sampling(adaptive: bool, prompt_ids: list[str], seed: int) -> None:
    batch = Batch(groups=WANTED, prompts=4, least=1, adaptive=adaptive)
    states = replay(Everything(), [], seed), replay(Greso(floor=1.0), [], seed)

    for number in range(8):
        plans = []
        for state in states:
            size = round_size(batch, state, wanted=WANTED, group_size=2)
            plan = plan_round(prompt_ids, state, size=size)
            for visit in plan:
                state.observe(seen(visit, state, number, earned(visit, seed)))
            if state.informative >= WANTED:
                state.close_step()
            plans.append([(visit.prompt_id, visit.visit, visit.epoch) for visit in plan])

        assert plans[0] == plans[1]


def test_each_kind_of_waste_is_held_against_its_own_target() -> None:
    groups = [(1.0, 1.0), (0.0, 0.0), *[(0.0, 1.0)] * 8]
    state = replay(Greso(), [Seen(f"p{i}", 1, 0, 0, Action.SAMPLED, r) for i, r in enumerate(groups)])

    state.close_step()

    assert tuple(state.selector.knobs().values()) == pytest.approx((0.49, 0.51))


def test_a_replay_passes_over_steps_that_left_no_visit() -> None:
    rows = [Seen("p", 1, step, 0, Action.SAMPLED, (0.0, 0.0)) for step in (0, 3)]

    state = replay(GRESO, rows)

    assert (state.step, state.tally.total) == (3, 1)
    assert tuple(state.selector.knobs().values()) == pytest.approx((0.4, 0.5))


@given(st.lists(st.sampled_from(GroupKind), max_size=6), seeds)
def test_without_a_selection_every_prompt_is_sampled(kinds_N: list[GroupKind], seed: int) -> None:
    selector = Everything().build(seed=seed, group_size=8)

    [decision] = selector.decide([Candidate("p", 0, a_history(len(kinds_N), kinds_N))], 1)

    assert (decision.action, decision.keep_probability) == (Action.SAMPLED, 1.0)


@given(prompt_sets, round_sizes, seeds)
def test_a_prompt_asked_for_by_name_is_sampled_whatever_its_past(
    prompt_ids: list[str], sizes: list[int], seed: int
) -> None:
    rows = [row for round_rows in play(GRESO, prompt_ids, sizes, seed) for row in round_rows]
    visits_before = Counter(row.prompt_id for row in rows)

    named = by_name(prompt_ids, replay(GRESO, rows))

    assert [visit.prompt_id for visit in named] == prompt_ids
    assert all(visit.decision.action is Action.SAMPLED for visit in named)
    assert [visit.visit for visit in named] == [visits_before[prompt_id] for prompt_id in prompt_ids]


def test_the_release_files_a_group_as_hard_that_the_step_counts_as_informative() -> None:
    state = replay(RELEASE, [Seen("p", 0, 0, 0, Action.SAMPLED, (0.0, 0.1))])

    assert state.history("p").streak_by(ZeroVariance.RELEASE) == Streak(GroupKind.HARD, 1)
    assert (state.informative, state.tally.hard) == (1, 0)


@pytest.mark.parametrize(
    ("epoch", "rewards_G", "explore"),
    [
        pytest.param(0, (0.0, 0.0), (0.3, 0.6), id="first-pass-moves-none"),
        pytest.param(1, (0.0, 0.0), (0.4, 0.5), id="all-wrong"),
        pytest.param(1, (1.0, 1.0), (0.2, 0.7), id="all-right"),
        pytest.param(1, (0.0, 1.0), (0.4, 0.7), id="mixed"),
        pytest.param(1, (), (0.3, 0.6), id="unscored"),
        pytest.param(1, None, (0.3, 0.6), id="failed"),
    ],
)
def test_the_bases_move_once_at_the_end_of_a_step(epoch: int, rewards_G: Rewards, explore: tuple[float, float]) -> None:
    state = replay(GRESO, [Seen("p", epoch, 0, 0, Action.SAMPLED, rewards_G)])
    before = tuple(state.selector.knobs().values())

    state.close_step()

    assert before == (0.3, 0.6)
    assert tuple(state.selector.knobs().values()) == pytest.approx(explore)
    assert (state.step, state.informative, state.tally.total) == (1, 0, 0)


@given(
    st.lists(st.sampled_from([(0.0, 0.0), (1.0, 1.0), (0.0, 1.0)]), min_size=1, max_size=20),
    st.integers(1, 24),
    st.integers(1, 40),
)
def test_a_round_is_sized_by_the_latest_round_of_the_step(
    groups: list[tuple[float, ...]], wanted: int, least: int
) -> None:
    batch = Batch(prompts=24, least=least)
    earlier = [Seen("p", 0, 0, 0, Action.SAMPLED, (0.0, 1.0))]
    latest = [Seen(f"p{i}", 0, 0, 1, Action.SAMPLED, rewards_G) for i, rewards_G in enumerate(groups)]
    state = replay(Everything(), earlier + latest)

    size = round_size(batch, state, wanted=wanted, group_size=2)

    mixed = groups.count((0.0, 1.0))
    needed = max(0, wanted - 1 - mixed) * len(groups) / mixed * 1.25 if mixed else inf
    assert min(least, 24) <= size <= 24
    assert size == pytest.approx(min(max(needed, least), 24), abs=1)


@pytest.mark.parametrize(
    ("adaptive", "rows"),
    [
        pytest.param(True, [], id="first-round-of-the-run"),
        pytest.param(True, [Seen("p", 0, 0, 0, Action.SAMPLED, None)], id="nothing-came-back"),
        pytest.param(False, [Seen("p", 0, 0, 0, Action.SAMPLED, (0.0, 1.0))], id="not-adaptive"),
        pytest.param(True, [Seen("p", 0, 0, 0, Action.SAMPLED, (0.0, 0.0))], id="all-wasted"),
    ],
)
def test_a_round_with_nothing_to_go_by_has_the_default_size(adaptive: bool, rows: list[Seen]) -> None:
    batch = Batch(groups=64, prompts=96, least=1, adaptive=adaptive)

    assert round_size(batch, replay(Everything(), rows), wanted=64, group_size=8) == 96


def test_the_first_round_of_each_step_has_the_default_size() -> None:
    state = replay(Everything(), [Seen("p", 0, 0, 0, Action.SAMPLED, (0.0, 1.0))])
    batch = Batch(groups=2, prompts=10, least=1)

    within = round_size(batch, state, wanted=2, group_size=2)
    state.close_step()

    assert (within, round_size(batch, state, wanted=2, group_size=2)) == (1, 10)


@pytest.mark.parametrize(
    ("choice", "fields"),
    [
        (Greso, {"explore_easy": 0.0}),
        (Greso, {"explore_hard": 1.0}),
        (Greso, {"floor": 1.1}),
        (Greso, {"explore": 0.5}),
        (Everything, {"floor": 0.1}),
        (Batch, {"groups": 0}),
        (Batch, {"prompt": 5}),
    ],
)
def test_a_choice_out_of_range_or_misspelled_is_refused(choice: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        choice(**fields)


@pytest.mark.parametrize(
    ("selector", "adaptive", "prompts", "within"),
    [
        pytest.param(Everything(), False, 274.3, 0.04, id="G9-DS"),
        pytest.param(Everything(), True, 230.0, 0.04, id="G9-DS-ABS"),
        # A round of ours ends before a prompt that it already holds; of a fixed size, the next one is a whole round.
        pytest.param(Greso(), False, 97.9, 0.08, id="G9-GRESO-without-ABS"),
        pytest.param(Greso(), True, 97.4, 0.04, id="G9-GRESO"),
    ],
)
def test_a_step_on_a_static_pool_costs_so_many_prompts(
    selector: Selector, adaptive: bool, prompts: float, within: float
) -> None:
    batch = Batch(groups=64, prompts=96, least=16, adaptive=adaptive)

    runs = [simulate(selector, batch, seed=seed) for seed in range(2)]

    assert fmean(run.prompts_per_step for run in runs) == pytest.approx(prompts, rel=within)
    for run in runs:
        steered = (0.58, 0.70) if isinstance(selector, Greso) else ()
        assert tuple(run.knobs.values()) == pytest.approx(steered, abs=0.05)
