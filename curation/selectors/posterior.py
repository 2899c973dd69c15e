"""Our own selector: spends a fixed small share of the rollouts on finding out, and the rest where groups will be mixed.

A posterior over each prompt's pass rate (`curation.passrates`) predicts the chance that a group of the actual size is
mixed. A prompt is sampled with probability ``min(1, (s / t)^sharpness)``, where s is that chance plus a bonus for
doubt, and the threshold t is as low as the target share of informative groups allows: what is better than the target
pays for looking at what is not known well.

- A prompt never sampled is sampled.
- Every probability is above 0 and stored: what another selector would have done can be estimated without bias.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from curation.passrates import Floats, Outlook, PassRates
from curation.records import Action, Decision
from curation.selectors.base import NEW, Candidate, Seen, Selector, SelectorSettings, drawn, skip_of, until_full


class Posterior(SelectorSettings):
    """Defaults: chosen on every second prompt of the recorded history that `refinery bench select` replays."""

    kind: Literal["posterior"] = "posterior"
    target: float = Field(0.94, gt=0, lt=1)
    """Share of informative groups to hit, as far as `coverage` allows."""
    coverage: float = Field(0.3, ge=0, le=1)
    """Share of the informative groups a pass could have that it must not pass over: where few prompts are sure to be
    mixed, more of them are sampled than the target asks for, instead of the same few again and again."""
    drift: float = Field(0.4, ge=0.05, le=10)
    """Logits that a pass rate wanders in a pass over the prompts."""
    trend: float = Field(0.05, ge=-2, le=2)
    """Logits that pass rates rise in a pass."""
    optimism: float = Field(0.3, ge=0, le=100)
    """Bonus for doubt, in standard deviations."""
    sharpness: float = Field(12.0, ge=1, le=1000)

    def build(self, *, seed: int, group_size: int) -> "_Posterior":
        return _Posterior(self, seed, group_size)


class _Posterior(Selector):
    def __init__(self, choice: Posterior, seed: int, group_size: int) -> None:
        self._choice = choice
        self._seed = seed
        self._rates = PassRates(group_size=group_size, drift=choice.drift, trend=choice.trend)
        self._epoch = 0
        self._planned: _Plan | None = None
        """None after news."""

    def observe(self, seen: Seen) -> None:
        self._planned = None
        self._epoch = max(self._epoch, seen.epoch)
        if seen.rewards_G:
            self._rates.observe(seen.prompt_id, seen.rewards_G, seen.epoch, seen.policy_version)

    def inherit(self, prompt_id: str, rewards_G: tuple[float, ...], weight: float) -> None:
        self._planned = None
        self._rates.observe(prompt_id, rewards_G, epoch=-1, weight=weight)

    def knobs(self) -> dict[str, float]:
        plan = self._plan()
        return {"threshold": round(plan.threshold, 4), "expected": round(plan.expected, 4)}

    def expects(self) -> float | None:
        """Before every prompt was sampled once, nothing: the new ones are sampled whatever they are."""
        return self._plan().expected if self._epoch else None

    def decide(self, candidates: Sequence[Candidate], room: int) -> list[Decision]:
        known = [c for c in candidates if c.prompt_id in self._rates]
        outlook = self._rates.outlook([c.prompt_id for c in known], candidates[0].epoch)
        keep_P = self._keep(outlook, self._plan().threshold)
        chances = {c.prompt_id: chance for c, *chance in zip(known, outlook.mixed_P, keep_P, strict=True)}
        return until_full((self._decision(c, chances.get(c.prompt_id)) for c in candidates), room)

    def _decision(self, candidate: Candidate, chances: list[float] | None) -> Decision:
        if chances is None:
            return NEW
        mixed, keep = chances
        key = self._seed, "posterior", candidate.prompt_id, candidate.past.visits
        reason = f"mixed with probability {mixed:.3f}"
        latest = candidate.past.latest
        return drawn(float(keep), reason, *key, skip=skip_of(latest.kind) if latest else Action.PASSED_OVER)

    def _plan(self) -> "_Plan":
        """The lowest threshold at which a pass over the known prompts is expected to hit the target, or a lower one, if
        that has too little coverage."""
        if self._planned is None:
            known = len(self._rates) > 0
            self._planned = self._lowest(self._rates.outlook_of_all(self._epoch)) if known else _Plan(1.0, 1.0)
        return self._planned

    def _lowest(self, outlook: Outlook) -> "_Plan":
        def expected(threshold: float) -> float:
            keep_P = self._keep(outlook, threshold)
            return float(keep_P @ outlook.mixed_P / keep_P.sum())

        def covers(threshold: float) -> bool:
            return bool(
                self._keep(outlook, threshold) @ outlook.mixed_P >= self._choice.coverage * outlook.mixed_P.sum()
            )

        threshold = highest = float(self._score(outlook).max())
        if expected(highest) >= self._choice.target:
            threshold = _bisect(lambda t: expected(t) >= self._choice.target, 1e-3, highest)
        if not covers(threshold):
            threshold = _bisect(lambda t: not covers(t), 1e-3, threshold)
        return _Plan(threshold, expected(threshold))

    def _score(self, outlook: Outlook) -> Floats:
        return outlook.mixed_P + self._choice.optimism * outlook.doubt_P

    def _keep(self, outlook: Outlook, threshold: float) -> Floats:
        keep_P: Floats = np.minimum(1.0, self._score(outlook) / threshold) ** self._choice.sharpness
        return keep_P


class _Plan(NamedTuple):
    """Of one round."""

    threshold: float
    expected: float
    """Share of informative groups."""


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The lowest number, as near as matters, from which on `holds` holds; it must at `high`."""
    for _ in range(30):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
