"""Laws of the selectors beyond those that hold for all of them (`test_selection`)."""

from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.pools import DRIFT, ORACLE, simulate
from curation.history import History, past_group
from curation.records import Action
from curation.selection import Batch, RunState, SelectorChoices, plan_round
from curation.selectors.base import Candidate, Seen, Selector
from curation.selectors.posterior import Posterior
from curation.selectors.ranking import Learnability, Mopps, beta_of
from curation.selectors.simple import Band, Everything, Greso, Pools, RandomShare, Retire

RIGHT, WRONG, MIXED = (1.0,) * 8, (0.0,) * 8, (1.0, 0.0) * 4
groups = st.lists(st.sampled_from([RIGHT, WRONG, MIXED, (1.0,) + (0.0,) * 7]), max_size=6)
seeds = st.integers(0, 1000)


def a_candidate(*rewards: tuple[float, ...], prompt_id: str = "p", visits: int | None = None) -> Candidate:
    past = tuple(past_group(rewards_G) for rewards_G in rewards)
    return Candidate(prompt_id, len(past), History(len(past) if visits is None else visits, past))


def decided(choice: SelectorChoices, *rewards: tuple[float, ...], seed: int = 0) -> tuple[Action, float]:
    [decision] = _taught(choice, list(rewards), seed).decide([a_candidate(*rewards)], 1)
    return decision.action, decision.keep_probability


def _taught(choice: SelectorChoices, rewards: list[tuple[float, ...]], seed: int = 0) -> Selector:
    selector = choice.build(seed=seed, group_size=8)
    for epoch, rewards_G in enumerate(rewards):
        selector.observe(Seen("p", epoch, 0, epoch, Action.SAMPLED, rewards_G))
    return selector


@pytest.mark.parametrize(
    "choice", [Everything(), Greso(), Pools(), Band(), Retire(), Posterior()], ids=lambda choice: choice.kind
)
def test_a_prompt_that_was_never_sampled_is_sampled(choice: SelectorChoices) -> None:
    assert decided(choice) == (Action.SAMPLED, 1.0)


# ---- by the prompt's own past


def test_a_random_share_is_the_share_that_was_asked_for() -> None:
    selector = RandomShare(share=0.3).build(seed=1, group_size=8)
    decisions = [selector.decide([a_candidate(prompt_id=f"p{n}")], 1)[0] for n in range(4000)]

    assert fmean(not d.action.is_skip for d in decisions) == pytest.approx(0.3, abs=0.03)
    assert {d.action for d in decisions} == {Action.SAMPLED, Action.PASSED_OVER}


@pytest.mark.parametrize(
    ("last", "keep"),
    [((1.0, 0.0, 0.0, 0.0), 0.2), (WRONG, 0.2), (MIXED, 1.0), ((1.0, 1.0, 1.0, 0.0), 1.0), (RIGHT, 0.2)],
)
def test_pools_weigh_by_the_last_group_alone(last: tuple[float, ...], keep: float) -> None:
    assert decided(Pools(), MIXED, RIGHT, last)[1] == keep


def test_pools_of_the_older_kind_remove_what_is_always_or_never_solved() -> None:
    removed = Pools(hard_up_to=0, easy_from=1, keep_hard=0, keep_easy=0)

    assert decided(removed, RIGHT) == (Action.SKIPPED_EASY, 0.0)
    assert decided(removed, WRONG) == (Action.SKIPPED_HARD, 0.0)
    assert decided(removed, (1.0,) * 7 + (0.0,)) == (Action.SAMPLED, 1.0)


@pytest.mark.parametrize(("right", "keep"), [(0, 0.05), (1, 0.05), (2, 1.0), (6, 1.0), (7, 0.05), (8, 0.05)])
def test_a_band_lets_in_what_lies_inside(right: int, keep: float) -> None:
    assert decided(Band(), (1.0,) * right + (0.0,) * (8 - right))[1] == keep


@given(groups, st.integers(1, 4))
def test_a_prompt_retires_when_it_was_solved_often_enough_in_a_row(past: list[tuple[float, ...]], after: int) -> None:
    action, _ = decided(Retire(after=after), *past)

    solved = len(past) >= after and all(rewards_G == RIGHT for rewards_G in past[len(past) - after :])
    assert action is (Action.SKIPPED_EASY if solved else Action.SAMPLED)


# ---- by comparison


@given(st.lists(groups, min_size=1, max_size=12), st.integers(1, 8), seeds)
def test_a_comparison_samples_the_best_and_passes_over_the_rest(
    pasts: list[list[tuple[float, ...]]], room: int, seed: int
) -> None:
    selector = Learnability().build(seed=seed, group_size=8)
    candidates = [a_candidate(*past, prompt_id=f"p{n}") for n, past in enumerate(pasts)]

    decisions = selector.decide(candidates, room)

    rates = [beta_of(candidate.past, 0.5).mean for candidate in candidates]
    worth = [rate * (1 - rate) for rate in rates]
    chosen = [w for w, d in zip(worth, decisions, strict=True) if not d.action.is_skip]
    assert len(chosen) == min(room, max(1, round(len(candidates) / 2)))
    assert sorted(chosen) == sorted(worth)[-len(chosen) :]
    assert {d.action for d in decisions} <= {Action.SAMPLED, Action.PASSED_OVER}


@pytest.mark.parametrize(
    ("keep", "a", "b"), [(1.0, 1 + 8 + 4, 1 + 0 + 4), (0.5, 0.5 * (0.5 + 0.5 + 8) + 0.5 + 4, 0.5 * 1 + 0.5 + 4)]
)
def test_a_beta_posterior_fades_as_the_release_lets_it(keep: float, a: float, b: float) -> None:
    beta = beta_of(a_candidate(RIGHT, MIXED).past, keep)

    assert (beta.a, beta.b) == pytest.approx((a, b))


def test_mopps_prefers_prompts_near_its_target() -> None:
    selector = Mopps().build(seed=0, group_size=8)
    pasts = {"easy": [RIGHT] * 4, "hard": [WRONG] * 4, "middle": [MIXED] * 4}
    candidates = [a_candidate(*past, prompt_id=f"{k} {n}") for n in range(50) for k, past in pasts.items()]

    decisions = selector.decide(candidates, 50)

    assert len(candidates) == 150
    chosen = [c.prompt_id for c, d in zip(candidates, decisions, strict=True) if not d.action.is_skip]
    assert sum(name.startswith("middle") for name in chosen) >= 45


# ---- ours


@given(groups.filter(bool), seeds)
def test_every_chance_is_above_zero_and_told(past: list[tuple[float, ...]], seed: int) -> None:
    [decision] = _taught(Posterior(), past, seed).decide([a_candidate(*past)], 1)

    assert 0.0 < decision.keep_probability <= 1.0
    assert "mixed with probability" in decision.reason


def test_what_was_mixed_is_preferred_and_a_long_streak_counts_more_than_a_short_one() -> None:
    selector = Posterior().build(seed=0, group_size=8)
    pasts = {"mixed": [MIXED] * 3, "once": [MIXED, MIXED, RIGHT], "thrice": [RIGHT] * 3}
    for epoch in range(3):
        for name, past in pasts.items():
            selector.observe(Seen(name, epoch, epoch, epoch, Action.SAMPLED, past[epoch]))

    candidates = [a_candidate(*past, prompt_id=name) for name, past in pasts.items()]
    mixed, once, thrice = (d.keep_probability for d in selector.decide(candidates, 3))

    assert mixed > once > thrice


def test_a_prompt_nobody_looks_at_comes_back() -> None:
    selector = Posterior().build(seed=0, group_size=8)
    selector.observe(Seen("p", 0, 0, 0, Action.SAMPLED, WRONG))
    for epoch in range(20):
        selector.observe(Seen("sure", epoch, epoch, epoch, Action.SAMPLED, MIXED))

    chances = [selector.decide([Candidate("p", epoch, a_candidate(WRONG).past)], 1)[0] for epoch in (1, 5, 20, 60)]

    keeps = [d.keep_probability for d in chances]
    assert keeps == sorted(keeps)
    assert keeps[-1] > 20 * keeps[0]


@pytest.mark.parametrize("weight", [0.1, 1.0])
def test_an_earlier_run_counts_as_much_as_its_weight_says(weight: float) -> None:
    def chance(inherited: list[tuple[str, tuple[float, ...], float]]) -> float:
        state = RunState.replay(Posterior(), [], seed=0, group_size=8, inherited=inherited)
        for epoch in range(3):
            state.observe(Seen("sure", epoch, 0, 0, Action.SAMPLED, MIXED))
        [visit] = plan_round(["p"], state, size=1)
        return visit.decision.keep_probability

    assert chance([]) == 1.0
    assert chance([("p", RIGHT, weight)] * 3) < 1.0
    assert chance([("p", RIGHT, 1.0)] * 3) <= chance([("p", RIGHT, weight)] * 3)


@pytest.mark.parametrize("drift", [0.0, DRIFT], ids=["static", "drifting"])
def test_a_step_costs_at_most_a_tenth_more_than_the_oracles(drift: float) -> None:
    batch = Batch(groups=64, prompts=96, least=1)

    cost = fmean(simulate(Posterior(), batch, seed=seed, drift=drift).prompts_per_step for seed in range(2))

    assert cost <= 1.10 * ORACLE
