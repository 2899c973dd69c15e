"""From the score of a reward model to a reward.

A score is unbounded; it is stored through the logistic function, which keeps the order, so that argmax and argmin are
the same, and makes a score difference of two what Bradley and Terry mean by it. The score itself stands in the detail.
"""

import math
from typing import Any, Self

from pydantic import model_validator

from curation.records import Outcome
from service.verifiers.base import Judgement, Options

ROUNDING = 1e-9


class RangeOptions(Options):
    low: float = 0.0
    high: float = 1.0
    """Rewards run from `low` to `high`; they are stored as 0 to 1."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if not self.low < self.high:
            raise ValueError("low must be below high")
        return self

    def scaled(self, reward: float) -> float:
        scaled = (reward - self.low) / (self.high - self.low)
        # Weights that add up to high do so only up to rounding.
        return next((edge for edge in (0.0, 1.0) if abs(scaled - edge) < ROUNDING), scaled)


class RewardOptions(Options):
    per_character: bool = False
    """Divides the score by the completion's length in characters before anything else."""


class ChatRewardOptions(RewardOptions):
    chat: bool = False
    """Prompt and completion are put into the model's chat template, instead of one after the other."""


def number(said: Any) -> float:
    """What a plug-in gave for a reward. Raises TypeError for text, whatever it spells."""
    if isinstance(said, str | bytes):
        raise TypeError(f"the verifier gave {said!r}, which is no number")
    return float(said)


def rewarded(score: float, text: str, options: RewardOptions) -> Judgement:
    if not math.isfinite(score):
        return Judgement(Outcome.ERROR, None, f"the reward model gave the score {score}")
    return scored(logistic(score / max(1, len(text)) if options.per_character else score), f"{score:.6g}")


def logistic(score: float) -> float:
    """1 / (1 + e^-score), without overflow."""
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


def scored(reward: float, detail: str) -> Judgement:
    if not (math.isfinite(reward) and 0.0 <= reward <= 1.0):
        return Judgement(Outcome.ERROR, None, f"the verifier gave the reward {reward!r}")
    return Judgement(Outcome.SCORED, reward, detail[:500])
