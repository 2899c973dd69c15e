"""From the scored rollouts of one group to preference pairs.

- A pair's chosen reward is above its rejected reward by at least the margin asked for; never equal.
- Right means reward 1, wrong means reward 0; what lies between is neither, and only the `best_with_...` rules use it.
- Rollouts come in sampling order. Order of completion would favour short answers in every "first" rule.
"""

import random
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

ROUNDING = 1e-9
"""0.7 - 0.4 is a little less than 0.3."""


class Scored(NamedTuple):
    """A rollout that has a reward."""

    slot: int
    """Position in its group."""
    reward: float
    length: int = 0
    """Of its text, in characters."""


class IndexPair(NamedTuple):
    chosen: int
    rejected: int


def right(scored_G: Sequence[Scored]) -> list[Scored]:
    return [s for s in scored_G if s.reward >= 1.0]


def wrong(scored_G: Sequence[Scored]) -> list[Scored]:
    return [s for s in scored_G if s.reward <= 0.0]


def first_right_first_wrong(scored_G: Sequence[Scored]) -> list[IndexPair]:
    """One pair, or none when a side is missing (semi-online DPO release, ``_online_dpo.py``)."""
    return [IndexPair(r.slot, w.slot) for r, w in zip(right(scored_G)[:1], wrong(scored_G)[:1], strict=False)]


def one_random_pair(scored_G: Sequence[Scored], rng: random.Random) -> list[IndexPair]:
    """One right and one wrong drawn uniformly within their sides (as G2D is analysed, arXiv 2605.21266)."""
    sides = right(scored_G), wrong(scored_G)
    if not all(sides):
        return []
    return [IndexPair(*(rng.choice(side).slot for side in sides))]


def best_with_worst(scored_G: Sequence[Scored], margin: float = 0.0, penalty: float = 0.0) -> list[IndexPair]:
    """Highest with lowest reward, the first of each on ties; none unless they differ by `margin` and at all.

    The ranking, but not the margin, is by reward - `penalty` * length / 1000 (RLHFlow's length-penalised max-min).
    """
    if not scored_G:
        return []
    best = max(scored_G, key=lambda s: _penalised(s, penalty))
    worst = min(scored_G, key=lambda s: _penalised(s, penalty))
    return [IndexPair(best.slot, worst.slot)] if _differ(best, worst, margin) else []


def best_with_random(scored_G: Sequence[Scored], rng: random.Random, margin: float = 0.0) -> list[IndexPair]:
    """Highest reward, the first on ties, with any that is lower by `margin` and at all (RLHFlow's max-random)."""
    if not scored_G:
        return []
    best = max(scored_G, key=lambda s: s.reward)
    lower = [s for s in scored_G if _differ(best, s, margin)]
    return [IndexPair(best.slot, rng.choice(lower).slot)] if lower else []


def _penalised(scored: Scored, penalty: float) -> float:
    return scored.reward - penalty * scored.length / 1000


def _differ(better: Scored, worse: Scored, margin: float) -> bool:
    gap = better.reward - worse.reward
    return gap > 0 and gap >= margin - ROUNDING


def all_right_with_wrong(scored_G: Sequence[Scored]) -> list[IndexPair]:
    """Every right with every wrong one (group DPO, ``_group_dpo.py``)."""
    return [IndexPair(r.slot, w.slot) for r, w in product(right(scored_G), wrong(scored_G))]


def k_random_pairs(scored_G: Sequence[Scored], k: int, rng: random.Random) -> list[IndexPair]:
    """Up to `k` different right-with-wrong pairs, drawn without replacement, in sampling order."""
    if k < 1:
        raise ValueError(f"cannot draw {k} pairs")
    every = all_right_with_wrong(scored_G)
    return sorted(rng.sample(every, min(k, len(every))))
