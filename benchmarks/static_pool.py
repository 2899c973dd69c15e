"""Selection on a pool whose pass rates do not move: 30 % always right, 40 % always wrong, 30 % one half.

Prompts rolled out per training step of 64 informative groups of 8, in rounds of at most 96, over the second half of
30 passes. A simulation of the release's own rules gave 274.3 for dynamic sampling and 97.4 for GRESO; an oracle
needs 64.5.
"""

from itertools import count
from statistics import fmean
from typing import NamedTuple

from curation.greso import Explore
from curation.keys import rng_for
from curation.selection import Batch, Everything, Greso, RunState, Seen, plan_round, round_size

GROUP_SIZE = 8
PASSES = 30
ORACLE = 64.5


class Cost(NamedTuple):
    prompts_per_step: float
    explore: Explore
    """Where the controllers ended."""


def simulate(selector: Everything | Greso, batch: Batch, *, seed: int) -> Cost:
    """Surplus groups of a step are thrown away, as a trainer with a fixed batch does."""
    settled = [(1.0,) * GROUP_SIZE] * 300 + [(0.0,) * GROUP_SIZE] * 400 + [None] * 300
    pool = {f"p{i}": rewards_G for i, rewards_G in enumerate(settled)}
    coin = rng_for("coin", seed)
    state = RunState.replay(selector, [])
    per_step = [0]

    for number in count():
        size = round_size(batch, state, wanted=batch.groups, group_size=GROUP_SIZE)
        visits = plan_round(pool.keys(), state, size=size, seed=seed, through_epoch=PASSES - 1)
        if not visits:
            break
        for visit in visits:
            rewards_G = None
            if not visit.decision.action.is_skip:
                tossed = tuple(float(coin.getrandbits(1)) for _ in range(GROUP_SIZE))
                rewards_G = pool[visit.prompt_id] or tossed
                per_step[-1] += 1
            state.observe(Seen(visit.prompt_id, visit.epoch, state.step, number, visit.decision.action, rewards_G))
        if state.informative >= batch.groups:
            state.close_step()
            per_step.append(0)

    full = per_step[:-1]
    return Cost(fmean(full[len(full) // 2 :]), state.explore)
