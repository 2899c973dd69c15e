"""Selection on made-up pools: 30 % always right, 40 % always wrong, 30 % one half.

In the static pool that stays so. In the drifting one each prompt changes its class now and then, as if the policy
learned some and unlearned others, so that the shares stay the same. Counted are the prompts rolled out per training
step of 64 informative groups of 8, in rounds of at most 96, over the second half of 30 passes. A simulation of the
GRESO release's own rules gave 274.3 for dynamic sampling, 230.0 with adaptive rounds and 97.4 for GRESO; whoever knows
every pass rate needs 64.5. The release reads prompts in chunks of 8 and rolls out all that it keeps of the last chunk,
so its rounds are a little larger than they need be; `chunk` does the same.
"""

import random
from collections.abc import Iterator
from itertools import count
from statistics import fmean
from typing import NamedTuple

from curation.allocation import Allocations, Probe
from curation.keys import rng_for
from curation.records import GroupKind, Visit, kind_of
from curation.selection import Batch, RunState, SelectorChoices, group_sizes, plan_round, round_size
from curation.selectors.base import Seen
from curation.selectors.simple import Everything

GROUP_SIZE = 8
PASSES = 30
ORACLE = 64.5
PROMPTS = 1000
PASSES_OF_A_HARVEST = 10
DRIFT = 0.02
"""Chance that a prompt changes its class in a pass, in the drifting pool."""


class Cost(NamedTuple):
    prompts_per_step: float
    found: float
    """Share of the mixed groups there were to be had that were rolled out, in the second half."""
    knobs: dict[str, float]
    """Where the selector ended."""


class Pool:
    """Pass rates of the prompts, pass by pass."""

    def __init__(self, seed: int, drift: float) -> None:
        self._rng = rng_for("pool", seed)
        self._drift = drift
        self.rate = {f"p{i}": self._rate(i / PROMPTS) for i in range(PROMPTS)}
        self._epoch = 0

    def move_to(self, epoch: int) -> None:
        for _ in range(epoch - self._epoch):
            for prompt_id in self.rate:
                if self._rng.random() < self._drift:
                    self.rate[prompt_id] = self._rate(self._rng.random())
        self._epoch = max(epoch, self._epoch)

    @staticmethod
    def _rate(place: float) -> float:
        return 1.0 if place < 0.3 else 0.0 if place < 0.7 else 0.5


def simulate(choice: SelectorChoices, batch: Batch, *, seed: int, drift: float = 0.0, chunk: int = 1) -> Cost:
    """Surplus groups of a step are thrown away, as a trainer with a fixed batch does."""
    pool = Pool(seed, drift)
    coin = rng_for("coin", seed)
    state = RunState.replay(choice, [], seed=seed, group_size=GROUP_SIZE)
    per_step = [0]
    had = there = 0
    for number in count():
        size = round_size(batch, state, wanted=batch.groups, group_size=GROUP_SIZE)
        planned = plan_round(pool.rate.keys(), state, size=size + chunk - 1, through_epoch=PASSES - 1)
        visits = list(_in_chunks(planned, size, chunk))
        if not visits:
            break
        for visit in visits:
            pool.move_to(visit.epoch)
            rewards_G = None
            mixed = pool.rate[visit.prompt_id] == 0.5
            if not visit.decision.action.is_skip:
                rewards_G = _group(pool.rate[visit.prompt_id], coin)
                per_step[-1] += 1
            if visit.epoch >= PASSES // 2:
                there += mixed
                had += mixed and rewards_G is not None
            state.observe(
                Seen(visit.prompt_id, visit.epoch, state.step, number, visit.decision.action, rewards_G, state.step)
            )
        if state.informative >= batch.groups:
            state.close_step()
            per_step.append(0)
    full = per_step[:-1]
    return Cost(fmean(full[len(full) // 2 :]), had / max(1, there), state.selector.knobs())


def _in_chunks(visits: list[Visit], size: int, chunk: int) -> Iterator[Visit]:
    """Whole chunks of visits, until `size` of them are sampled. Holds for selectors that judge each prompt alone."""
    sampled = 0
    for read, visit in enumerate(visits):
        if sampled >= size and read % chunk == 0:
            return
        sampled += not visit.decision.action.is_skip
        yield visit


class Harvest(NamedTuple):
    """For a thousand rollouts."""

    informative: float
    """Groups."""
    value: float
    """The same, each weighed by p (1 - p)^2 as Knapsack RL does: what is hard and can be done counts most."""


def harvest(allocation: Allocations, *, seed: int) -> Harvest:
    """Of a pool in which every prompt is sampled and pass rates are spread out: many near 0 and 1, the rest in between
    (a Beta of 0.3 and 0.3)."""
    rng = rng_for("spread", seed)
    rates = {f"p{i}": rng.betavariate(0.3, 0.3) for i in range(PROMPTS)}
    state = RunState.replay(Everything(), [], seed=seed, group_size=GROUP_SIZE, allocation=allocation)
    informative: list[float] = []
    rollouts = number = 0
    while visits := plan_round(rates.keys(), state, size=96, through_epoch=PASSES_OF_A_HARVEST - 1):
        sizes = group_sizes(visits, state, GROUP_SIZE)
        for visit in visits:
            rewards_G = _probed(rates[visit.prompt_id], sizes[visit.prompt_id], allocation, rng)
            rollouts += len(rewards_G)
            if kind_of(rewards_G) is GroupKind.INFORMATIVE:
                informative.append(rates[visit.prompt_id])
            state.observe(Seen(visit.prompt_id, visit.epoch, 0, number, visit.decision.action, rewards_G, 1))
        number += 1
    value = sum(rate * (1 - rate) ** 2 for rate in informative)
    return Harvest(1000 * len(informative) / rollouts, 1000 * value / rollouts)


def _probed(rate: float, size: int, allocation: Allocations, coin: random.Random) -> tuple[float, ...]:
    rewards_G = tuple(float(coin.random() < rate) for _ in range(size))
    if isinstance(allocation, Probe) and kind_of(rewards_G[: allocation.first]) is not GroupKind.INFORMATIVE:
        return rewards_G[: allocation.first]
    return rewards_G


def _group(rate: float, coin: random.Random) -> tuple[float, ...]:
    return tuple(_tosses(rate, coin))


def _tosses(rate: float, coin: random.Random) -> Iterator[float]:
    for _ in range(GROUP_SIZE):
        yield rate if rate in (0.0, 1.0) else float(coin.random() < rate)
