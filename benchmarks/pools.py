"""Selection on made-up pools: 30 % always right, 40 % always wrong, 30 % one half.

In the static pool that stays so. In the drifting one each prompt changes its class now and then, as if the policy
learned some and unlearned others, so that the shares stay the same. Counted are the prompts rolled out per training
step of 64 informative groups of 8, in rounds of at most 96, over the second half of 30 passes. A simulation of the
GRESO release's own rules gave 274.3 for dynamic sampling, 230.0 with adaptive rounds and 97.4 for GRESO; whoever knows
every pass rate needs 64.5.
"""

import random
from collections.abc import Iterator
from itertools import count
from statistics import fmean
from typing import NamedTuple

from curation.keys import rng_for
from curation.selection import Batch, RunState, SelectorChoices, plan_round, round_size
from curation.selectors.base import Seen

GROUP_SIZE = 8
PASSES = 30
ORACLE = 64.5
PROMPTS = 1000
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


def simulate(choice: SelectorChoices, batch: Batch, *, seed: int, drift: float = 0.0) -> Cost:
    """Surplus groups of a step are thrown away, as a trainer with a fixed batch does."""
    pool = Pool(seed, drift)
    coin = rng_for("coin", seed)
    state = RunState.replay(choice, [], seed=seed, group_size=GROUP_SIZE)
    per_step = [0]
    had = there = 0
    for number in count():
        size = round_size(batch, state, wanted=batch.groups, group_size=GROUP_SIZE)
        visits = plan_round(pool.rate.keys(), state, size=size, through_epoch=PASSES - 1)
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


def _group(rate: float, coin: random.Random) -> tuple[float, ...]:
    return tuple(_tosses(rate, coin))


def _tosses(rate: float, coin: random.Random) -> Iterator[float]:
    for _ in range(GROUP_SIZE):
        yield rate if rate in (0.0, 1.0) else float(coin.random() < rate)
