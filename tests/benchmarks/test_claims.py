"""From curves to ratios, intervals and verdicts."""

from collections.abc import Sequence
from math import inf, isclose
from statistics import fmean, median

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.papers.arms import Experiment
from benchmarks.papers.cells import Point
from benchmarks.papers.claims import (
    BEST_SHARE,
    FEWEST_SEEDS,
    Bounds,
    Curve,
    Curves,
    Interval,
    Verdict,
    best,
    claims_of,
    final,
    interval_of,
    race,
    rollouts,
    settled,
    share_of_best,
    share_of_gain,
    spent_until,
    verdict_of,
)

accuracies = st.lists(st.sampled_from([0.0, 0.2, 0.3, 0.5, 0.8]), min_size=2, max_size=8)
bounds = st.tuples(st.floats(0, 5), st.floats(0, 5)).map(lambda pair: Bounds(*sorted(pair)))


def curve(*accuracies: float, each: int = 100, compute: int = 1000) -> Curve:
    """Evaluated after every step; a step takes so many rollouts."""
    return tuple(
        Point("greso", "a", 0, "grpo", step, value, 0.01, 200, step * each, step * compute, 0, 1.0 * step, step + 1)
        for step, value in enumerate(accuracies)
    )


def with_seeds(**arms: Sequence[Curve]) -> Curves:
    return {arm: dict(enumerate(curves)) for arm, curves in arms.items()}


def test_an_accuracy_is_that_of_the_last_three_and_never_of_the_start() -> None:
    found = [point.accuracy for point in settled(curve(0.0, 0.3, 0.6, 0.9, 0.3))]

    assert [round(value, 6) for value in found] == [0.0, 0.3, 0.45, 0.6, 0.6]


def test_rollouts_are_counted_to_nine_tenths_of_what_the_yardstick_gains() -> None:
    slow, fast = curve(0.2, *[0.2] * 4, *[0.4] * 4), curve(0.2, *[0.4] * 8, each=50)

    found = race(
        with_seeds(greso=[fast], dynamic_sampling=[slow]), "greso", "dynamic_sampling", share_of_gain, rollouts
    )

    assert isclose(share_of_gain(slow), 0.38)
    assert found.seeds == {0: Bounds(14.0, 14.0)}
    assert found.reached == (0,)


def test_an_arm_that_never_gets_there_has_a_ratio_between_nothing_and_its_whole_run() -> None:
    curves = with_seeds(
        arm=[curve(0.2, 0.2, 0.2), curve(0.2, 0.5, 0.5)], yardstick=[curve(0.2, 0.2, 0.2, 0.2, 0.8)] * 2
    )

    found = race(curves, "arm", "yardstick", lambda _: 0.4, rollouts)

    assert found.seeds == {0: Bounds(0.0, 2.0), 1: Bounds(4.0, 4.0)}
    assert found.reached == (1,)
    assert "1 of 2 seeds" in found.told
    assert found.interval is not None
    assert found.interval.low == 0.0


def test_a_seed_whose_yardstick_gains_nothing_is_told_and_compares_nothing() -> None:
    curves = with_seeds(arm=[curve(0.2, 0.9)] * 2, yardstick=[curve(0.2, 0.1), curve(0.2, 0.8)])

    found = race(curves, "arm", "yardstick", share_of_gain, rollouts)

    assert found.nothing_gained == (0,)
    assert list(found.seeds) == [1]
    assert "in seed 0 the yardstick gained nothing" in found.told


@given(accuracies)
def test_who_is_the_yardstick_gets_there(values: list[float]) -> None:
    learned = curve(*values)

    assert spent_until(learned, share_of_best(learned), rollouts) is not None
    assert best(learned).accuracy >= final(learned).accuracy
    assert share_of_best(learned) <= BEST_SHARE * max(values) + 1e-9
    if final(learned).accuracy > values[0]:
        assert spent_until(learned, share_of_gain(learned), rollouts)


@given(accuracies, st.floats(0, 1), st.floats(0, 1))
def test_more_accuracy_never_costs_less(values: list[float], one: float, other: float) -> None:
    learned = curve(*values)
    easy, hard = (spent_until(learned, wanted, rollouts) for wanted in sorted((one, other)))

    assert (inf if easy is None else easy) <= (inf if hard is None else hard)


@settings(deadline=None, max_examples=30)
@given(st.lists(bounds, min_size=1, max_size=5))
def test_an_interval_is_the_same_every_time_and_holds_its_value(seeds: list[Bounds]) -> None:
    found = interval_of(seeds, median)

    assert found == interval_of(seeds, median)
    assert found.low <= found.value <= found.high
    assert min(one.least for one in seeds) <= found.low
    assert found.high <= max(one.most for one in seeds)


def test_seeds_that_agree_leave_nothing_open() -> None:
    assert interval_of([Bounds(2.0, 2.0)] * 5, fmean) == Interval(2.0, 2.0, 2.0)


@given(st.floats(0, 5), st.floats(0, 5), st.floats(0, 5))
def test_a_verdict_is_sure_only_where_the_interval_is_on_one_side(low: float, high: float, least: float) -> None:
    low, high = sorted((low, high))

    verdict = verdict_of(Interval(low, low, high), least, FEWEST_SEEDS)

    assert (verdict is Verdict.HELD) == (low >= least)
    assert (verdict is Verdict.NOT_HELD) == (high < least)
    assert verdict_of(Interval(low, low, high), least, FEWEST_SEEDS - 1) is Verdict.UNDECIDED


def test_greso_that_never_gets_there_is_not_called_better() -> None:
    hopeless, learned = [curve(*[0.2] * 9)] * 5, [curve(0.2, 0.5, 0.6, 0.6, 0.6)] * 5
    curves = with_seeds(grpo=learned, dynamic_sampling=learned, greso=hopeless, posterior=learned)

    [claim] = claims_of({Experiment.GRESO: curves})

    assert claim.verdict is Verdict.NOT_HELD
    assert "0 of 5 seeds" in claim.why


def test_g2d_is_judged_by_the_longest_warm_up_that_is_cheap_enough() -> None:
    grpo = [curve(0.2, 0.3, 0.4, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5)] * 5
    cheap, dear = [curve(0.2, 0.45)] * 5, [curve(0.2, 0.9, compute=5000)] * 5

    [claim] = claims_of({Experiment.G2D: with_seeds(grpo=grpo, g2d_0=cheap, g2d_4=cheap, g2d_8=dear)})

    assert claim.verdict is Verdict.NOT_HELD
    assert claim.why.startswith("g2d_4 is the longest")
    assert claim.interval is not None
    assert isclose(claim.interval.value, -0.05)


def test_semi_online_holds_where_it_loses_nothing_and_beats_offline() -> None:
    good = [curve(0.2, value) for value in (0.6, 0.7, 0.65, 0.7, 0.6)]
    poor = [curve(0.2, value) for value in (0.3, 0.4, 0.3, 0.4, 0.3)]

    def verdict(s_10: list[Curve]) -> Verdict:
        curves = with_seeds(s_1=good, s_10=s_10, s_100=good, s_inf=poor, grpo=good)
        return claims_of({Experiment.SEMI_ONLINE: curves})[0].verdict

    assert verdict(good) is Verdict.HELD
    assert verdict(poor) is Verdict.NOT_HELD
