"""From points to the ratios that are claimed, with intervals over seeds, a verdict and the reason for it.

- Arms are compared seed by seed: with one seed they have the same prompts and the same start.
- An accuracy is the mean of the last three evaluations, so that a lucky one decides nothing.
- An arm that never got where it was to get has a ratio all the same: at least 0, and at most what it would be if it
  got there with its next step. Both ends go into the interval.
- A seed whose yardstick gained nothing can compare nothing; it is told, and left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil, floor
from statistics import fmean, median
from typing import NamedTuple

from benchmarks.papers.arms import Experiment
from benchmarks.papers.cells import Point
from curation.keys import rng_for

SETTLED = 3
"""Evaluations that are taken together."""
GAIN_SHARE = 0.9
"""Of what dynamic sampling gains: the accuracy that rollouts are counted to."""
BEST_SHARE = 0.99
"""Of plain GRPO's best accuracy: what seconds are counted to."""
FEWER_ROLLOUTS, FASTER, COMPUTE_SHARE = 2.4, 1.7, 0.25
DRAWS = 2_000
COVERED = 0.95
FEWEST_SEEDS = 3
"""With fewer there is nothing to draw from."""

Curve = tuple[Point, ...]
"""Of one cell, step by step."""
Curves = Mapping[str, Mapping[int, Curve]]
"""Of one experiment: by arm and seed."""
Cost = Callable[[Point], float]
Statistic = Callable[[Sequence[float]], float]


class Verdict(StrEnum):
    HELD = "held"
    NOT_HELD = "not held"
    UNDECIDED = "undecided"


class Bounds(NamedTuple):
    """What is known of one seed's figure; the two are the same where it could be measured."""

    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Interval:
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True, slots=True)
class Claim:
    key: str
    """Of the figure."""
    text: str
    unit: str
    interval: Interval | None
    """None where no seed can compare anything."""
    verdict: Verdict
    why: str


@dataclass(frozen=True, slots=True)
class Race:
    """An arm against a yardstick, by what each has spent when it is as good as is waited for."""

    seeds: Mapping[int, Bounds]
    """How many times less than the yardstick the arm has spent; without seeds that compare nothing."""
    reached: tuple[int, ...]
    """Seeds in which the arm got there."""
    nothing_gained: tuple[int, ...]
    """Seeds that compare nothing."""

    @property
    def interval(self) -> Interval | None:
        return interval_of(list(self.seeds.values()), median) if self.seeds else None

    @property
    def told(self) -> str:
        count = len(self.seeds)
        told = f"it got there in {len(self.reached)} of {count} seeds"
        if len(self.reached) < count:
            told += ", and where it did not the ratio is taken as anything up to what its whole run cost"
        if self.nothing_gained:
            told += f"; in seed {_listed(self.nothing_gained)} the yardstick gained nothing, which compares nothing"
        return told


def claims_of(curves: Mapping[Experiment, Curves]) -> list[Claim]:
    """Of the experiments that were run."""
    claim = {
        Experiment.GRESO: _greso,
        Experiment.PODS: _pods,
        Experiment.G2D: _g2d,
        Experiment.SEMI_ONLINE: _semi_online,
    }
    return [claim[experiment](of_arms) for experiment, of_arms in curves.items()]


# ---- curves


def settled(curve: Curve) -> Curve:
    """Each accuracy as the mean of the latest ones; before the first step there is only one."""
    return curve[:1] + tuple(
        replace(point, accuracy=fmean(p.accuracy for p in curve[max(1, place - SETTLED + 1) : place + 1]))
        for place, point in enumerate(curve)
        if place
    )


def final(curve: Curve) -> Point:
    return settled(curve)[-1]


def best(curve: Curve) -> Point:
    """The first of the best."""
    return max(settled(curve), key=lambda point: point.accuracy)


def spent_until(curve: Curve, wanted: float, cost: Cost) -> float | None:
    """What it took to be as good as that; None where it never was."""
    return next((cost(point) for point in settled(curve) if point.accuracy >= wanted), None)


def share_of_gain(yardstick: Curve) -> float:
    start, end = yardstick[0].accuracy, final(yardstick).accuracy
    return start + GAIN_SHARE * (end - start)


def share_of_best(yardstick: Curve) -> float:
    return BEST_SHARE * best(yardstick).accuracy


def race(curves: Curves, arm: str, yardstick: str, wanted: Callable[[Curve], float], cost: Cost) -> Race:
    seeds: dict[int, Bounds] = {}
    reached, nothing_gained = [], []
    for seed, curve in curves[arm].items():
        against = curves[yardstick][seed]
        goal = wanted(against)
        theirs = spent_until(against, goal, cost)
        if goal <= against[0].accuracy or not theirs:
            nothing_gained.append(seed)
            continue
        ours = spent_until(curve, goal, cost)
        if ours:
            reached.append(seed)
            seeds[seed] = Bounds(theirs / ours, theirs / ours)
        else:
            seeds[seed] = Bounds(0.0, theirs / cost(curve[-1]))
    return Race(seeds, tuple(reached), tuple(nothing_gained))


# ---- intervals


def interval_of(seeds: Sequence[Bounds], statistic: Statistic) -> Interval:
    """By a bootstrap over seeds that draws the same every time. Where some seeds have no more than bounds, the value is
    the highest it can be."""
    rng = rng_for("bootstrap", *seeds)
    draws = [rng.choices(seeds, k=len(seeds)) for _ in range(DRAWS)]
    lows = sorted(statistic([one.least for one in draw]) for draw in draws)
    highs = sorted(statistic([one.most for one in draw]) for draw in draws)
    outside = (1 - COVERED) / 2
    return Interval(
        statistic([one.most for one in seeds]),
        lows[floor(outside * DRAWS)],
        highs[ceil((1 - outside) * DRAWS) - 1],
    )


def mean_of(differences: Sequence[float]) -> Interval:
    return interval_of([Bounds(difference, difference) for difference in differences], fmean)


def verdict_of(interval: Interval | None, least: float, seeds: int) -> Verdict:
    """Whether a figure is at least so much."""
    if interval is None or seeds < FEWEST_SEEDS:
        return Verdict.UNDECIDED
    if interval.low >= least:
        return Verdict.HELD
    return Verdict.NOT_HELD if interval.high < least else Verdict.UNDECIDED


def _why(verdict: Verdict, interval: Interval | None, least: float, seeds: int) -> str:
    if interval is None:
        return "no seed can compare anything"
    if seeds < FEWEST_SEEDS:
        return f"{interval} from {seeds} seeds, which are too few for a verdict"
    place = {
        Verdict.HELD: f"lies at or above {least:g}",
        Verdict.NOT_HELD: f"lies below {least:g}",
        Verdict.UNDECIDED: f"holds {least:g}",
    }[verdict]
    return f"{interval} over {seeds} seeds {place}"


# ---- claims


def _greso(curves: Curves) -> Claim:
    found = race(curves, "greso", "dynamic_sampling", share_of_gain, rollouts)
    text = f"GRESO needs at least {FEWER_ROLLOUTS:g} times fewer rollouts than dynamic sampling to be equally good"
    plain = race(curves, "grpo", "dynamic_sampling", share_of_gain, rollouts)
    beside = f"plain GRPO needs {plain.interval} times fewer" if plain.interval else ""
    return _raced("greso_rollout_ratio", text, FEWER_ROLLOUTS, found, beside)


def _pods(curves: Curves) -> Claim:
    found = race(curves, "pods", "grpo", share_of_best, seconds)
    text = f"PODS is {FASTER:g} times faster than plain GRPO to {100 * BEST_SHARE:g} % of its best accuracy"
    drawn = race(curves, "random", "grpo", share_of_best, seconds)
    beside = f"a random choice of as many is {drawn.interval} times as fast" if drawn.interval else ""
    return _raced("pods_time_ratio", text, FASTER, found, beside)


def _raced(key: str, text: str, least: float, found: Race, beside: str) -> Claim:
    verdict = verdict_of(found.interval, least, len(found.seeds))
    reasons = [_why(verdict, found.interval, least, len(found.seeds)), found.told, beside]
    return Claim(key, text, "x", found.interval, verdict, "; ".join(filter(None, reasons)))


def _g2d(curves: Curves) -> Claim:
    """Of the arms that are cheap enough the one with the longest warm-up, which nobody chose by its accuracy."""
    text = f"G2D is at least as accurate as GRPO at its best, with at most {COMPUTE_SHARE:g} of the compute it took"
    shares = {arm: fmean(compute_shares(curves, arm)) for arm in curves if arm.startswith("g2d_")}
    told = ", ".join(f"{arm} {share:.2f}" for arm, share in shares.items())
    fitting = [arm for arm, share in shares.items() if share <= COMPUTE_SHARE]
    if not fitting:
        return Claim("g2d_accuracy_gain", text, "share", None, Verdict.UNDECIDED, f"no arm is cheap enough: {told}")
    arm = max(fitting, key=lambda name: int(name.removeprefix("g2d_")))
    gained = gains(curves, arm, "grpo")
    interval = mean_of(gained)
    verdict = verdict_of(interval, 0.0, len(gained))
    why = (
        f"{arm} is the longest warm-up that is cheap enough; its accuracy less GRPO's best, "
        f"{_why(verdict, interval, 0.0, len(gained))}; share of the compute: {told}"
    )
    return Claim("g2d_accuracy_gain", text, "share", interval, verdict, why)


def compute_shares(curves: Curves, arm: str) -> list[float]:
    """Of what it took GRPO to its best, seed by seed."""
    return [curve[-1].compute / max(1, best(curves["grpo"][seed]).compute) for seed, curve in curves[arm].items()]


def gains(curves: Curves, arm: str, other: str) -> list[float]:
    """Accuracy at the end, less the best of the other."""
    return [final(curve).accuracy - best(curves[other][seed]).accuracy for seed, curve in curves[arm].items()]


def leads(curves: Curves, arm: str, other: str) -> list[float]:
    """Accuracy at the end, less that of the other."""
    return [final(curve).accuracy - final(curves[other][seed]).accuracy for seed, curve in curves[arm].items()]


def _semi_online(curves: Curves) -> Claim:
    """Two claims in one: nothing is lost against online, and something is won against offline. The figure is the
    former, of the arm that loses more."""
    between = [arm for arm in curves if arm.startswith("s_") and arm not in {"s_1", "s_inf"}]
    named = " and ".join(arm.replace("_", " = ") for arm in between)
    text = f"semi-online DPO with {named} is as accurate as online DPO, up to noise, and more accurate than offline DPO"
    seeds = len(curves["s_1"])
    lost = {arm: mean_of(leads(curves, arm, "s_1")) for arm in between}
    won = {arm: mean_of(leads(curves, arm, "s_inf")) for arm in between}
    if seeds < FEWEST_SEEDS:
        verdict = Verdict.UNDECIDED
    elif all(one.high >= 0 for one in lost.values()) and all(one.low > 0 for one in won.values()):
        verdict = Verdict.HELD
    elif any(one.high < 0 for one in lost.values()) or any(one.high <= 0 for one in won.values()):
        verdict = Verdict.NOT_HELD
    else:
        verdict = Verdict.UNDECIDED
    told = [f"{arm} less s_1 {lost[arm]}, less s_inf {won[arm]}" for arm in between]
    why = "; ".join([*told, f"{seeds} seeds"])
    worst = min(lost.values(), key=lambda one: one.value)
    return Claim("semi_online_gap", text, "share", worst, verdict, why)


def rollouts(point: Point) -> float:
    return point.rollouts


def seconds(point: Point) -> float:
    return point.seconds


def compute(point: Point) -> float:
    return point.compute


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
