"""The nouns of the product, frozen. Everything else talks in them.

- A reward exists exactly where a verifier reached one: a failure is never a zero.
- Axis suffixes: ``_P`` prompts, ``_G`` rollouts of one group, ``_N`` past visits of one prompt, ``_T`` tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum, auto
from statistics import fmean
from typing import Any


class Outcome(StrEnum):
    """How a verification ended."""

    SCORED = auto()
    NO_ANSWER = auto()
    """The completion holds no extractable answer; counts as reward 0 unless a recipe excludes it."""
    BAD_REFERENCE = auto()
    """The prompt's reference answer cannot be read: the prompt is at fault, not the completion."""
    TIMEOUT = auto()
    ERROR = auto()

    @property
    def has_reward(self) -> bool:
        return self in {Outcome.SCORED, Outcome.NO_ANSWER}


class FinishReason(StrEnum):
    STOP = auto()
    LENGTH = auto()
    """Cut at the token limit."""
    RECORDED = auto()
    """Imported: nobody knows."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the policy is asked, and how its answers are judged. Keyed by content (`curation.keys.prompt_id`)."""

    id: str
    text: str
    reference: str
    verifier: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one verifier concluded about one completion."""

    outcome: Outcome
    reward: float | None
    """Between 0 and 1, 1 means right; None unless `outcome.has_reward`."""
    verifier: str
    """Name and revision (``"math@1"``), so that an old verdict can still be explained."""
    elapsed: float = 0.0
    """Seconds of wall clock."""
    detail: str = ""
    """The answer that was compared, or what went wrong."""

    def __post_init__(self) -> None:
        if (self.reward is not None) != self.outcome.has_reward:
            raise ValueError(f"a verdict that is {self.outcome} cannot carry the reward {self.reward}")
        if self.reward is not None and not 0.0 <= self.reward <= 1.0:
            raise ValueError(f"reward {self.reward} is outside 0..1")


@dataclass(frozen=True, slots=True)
class WeightSpan:
    """Tokens `start` up to `end` (excluded) were sampled from policy version `version`."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer as the engine gave it, not yet judged."""

    text: str
    token_ids_T: tuple[int, ...] = ()
    logprobs_T: tuple[float, ...] = ()
    """Natural log of each sampled token's probability, full softmax at the sampling temperature."""
    finish_reason: FinishReason = FinishReason.RECORDED
    weight_versions: tuple[WeightSpan, ...] = ()


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion with its verdict."""

    completion: Completion
    verdict: Verdict

    @property
    def text(self) -> str:
        return self.completion.text

    @property
    def reward(self) -> float | None:
        return self.verdict.reward

    @property
    def truncated(self) -> bool:
        return self.completion.finish_reason is FinishReason.LENGTH


class GroupKind(StrEnum):
    """What a group teaches."""

    INFORMATIVE = auto()
    EASY = auto()
    """Zero variance, all right."""
    HARD = auto()
    """Zero variance, all wrong."""
    UNSCORED = auto()
    """No rollout has a reward: says nothing about the prompt, and enters no history."""

    @property
    def is_zero_variance(self) -> bool:
        return self in {GroupKind.EASY, GroupKind.HARD}


class ZeroVariance(StrEnum):
    """Which groups count as zero-variance."""

    EXACT = auto()
    """All rewards equal; easy when their mean is above one half."""
    RELEASE = auto()
    """The mean thresholds of the GRESO release (``presampling_selector.py``): easy from 0.98, hard up to 0.11.
    Only right for small groups: from 10 rollouts on, one right answer among zeros is filed as hard."""


def kind_of(rewards_G: Sequence[float], definition: ZeroVariance = ZeroVariance.EXACT) -> GroupKind:
    """The kind of a group with these rewards (of its scored rollouts only)."""
    if not rewards_G:
        return GroupKind.UNSCORED
    if definition is ZeroVariance.RELEASE:
        return release_kind(fmean(rewards_G))
    if max(rewards_G) > min(rewards_G):
        return GroupKind.INFORMATIVE
    return GroupKind.EASY if rewards_G[0] > 0.5 else GroupKind.HARD


def release_kind(mean_reward: float) -> GroupKind:
    """The GRESO release looks at the group's mean alone."""
    if mean_reward >= 0.98:
        return GroupKind.EASY
    if mean_reward <= 0.11:
        return GroupKind.HARD
    return GroupKind.INFORMATIVE


@dataclass(frozen=True, slots=True)
class Group:
    """Every rollout of one prompt from one request: the unit of work, of storage and of curation."""

    id: str
    run: str
    prompt: Prompt
    visit: int
    """Which visit of the prompt in its run this was, from 0."""
    policy_version: int
    """The version that was live when sampling began; tokens carry their own spans."""
    rollouts_G: tuple[Rollout, ...]

    @property
    def rewards_G(self) -> tuple[float, ...]:
        """Rewards of the scored rollouts, in sampling order."""
        return tuple(r.reward for r in self.rollouts_G if r.reward is not None)

    @property
    def kind(self) -> GroupKind:
        return kind_of(self.rewards_G)


class Action(StrEnum):
    """What a selector did with a prompt on one visit."""

    SAMPLED = auto()
    SKIPPED_EASY = auto()
    SKIPPED_HARD = auto()
    PASSED_OVER = auto()
    """Neither known as easy nor as hard: others were wanted more, or chance said so."""

    @property
    def is_skip(self) -> bool:
        return self is not Action.SAMPLED


@dataclass(frozen=True, slots=True)
class Decision:
    """An action with the probability it was drawn with and the reason a reader can check."""

    action: Action
    keep_probability: float
    reason: str


@dataclass(frozen=True, slots=True)
class Visit:
    """One time a prompt was considered in a run, skipped or sampled."""

    prompt_id: str
    visit: int
    """How many visits of this prompt came before, skips included."""
    epoch: int
    """Which pass over the prompt set."""
    decision: Decision
