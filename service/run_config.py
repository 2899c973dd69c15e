"""What a user fixes about a run. The same configuration makes the same decisions."""

from enum import StrEnum, auto
from typing import Self

from pydantic import Field, model_validator

from curation.allocation import Allocation, Fixed, Knapsack, Probe
from curation.choice import Choice, Several
from curation.records import GroupKind
from curation.selection import Batch, SelectorChoice
from curation.selectors.posterior import Posterior
from curation.selectors.simple import Everything

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""Names appear in URLs and in file names."""


class Sampling(Choice):
    """How a group is sampled."""

    n: int = Field(8, ge=1, le=1024)
    """Rollouts per group."""
    temperature: float = Field(1.0, ge=0, le=10)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=2**31 - 1)
    """0 considers every token."""
    max_tokens: int = Field(512, ge=1, le=1_000_000)


class Retain(StrEnum):
    """What of a group is kept for ever."""

    INFORMATIVE = auto()
    """Text, tokens and logprobs of informative groups; rewards, lengths and visits of all."""
    ALL = auto()

    def keeps_text(self, kind: GroupKind) -> bool:
        return self is Retain.ALL or kind is GroupKind.INFORMATIVE


class Inherit(Choice):
    """What a run knows before its first visit: the groups of earlier runs."""

    runs: Several[str] = Field(min_length=1)
    weight: float = Field(0.5, gt=0, le=1)
    """What such a group counts, of one of the run's own. Selectors that only look at streaks take it whole."""


class RunConfig(Choice):
    name: str = Field(pattern=NAME)
    policy: str = Field(pattern=NAME)
    prompt_set: str = Field(pattern=NAME)
    sampling: Sampling = Sampling()
    selector: SelectorChoice = Everything()
    batch: Batch = Batch()
    allocation: Allocation = Fixed()
    """How many rollouts a sampled prompt gets."""
    inherit: Inherit | None = None
    retain: Retain = Retain.INFORMATIVE
    seed: int = 0
    imported: bool = False
    """Holds rollouts that were recorded elsewhere; nothing is sampled for it."""

    @property
    def decided_by(self) -> int:
        """Rollouts that decide whether a group is mixed."""
        return self.allocation.first if isinstance(self.allocation, Probe) else self.sampling.n

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        n = self.sampling.n
        match self.allocation:
            case Probe(first=first) if first >= n:
                raise ValueError(f"a probe of {first} leaves nothing of n = {n} for later")
            case Knapsack(least=least, most=most) if not least <= n <= most:
                raise ValueError(f"n = {n} on average cannot be had from {least} to {most} rollouts a prompt")
        if isinstance(self.selector, Posterior) and n < 2:
            raise ValueError("the selector posterior looks for mixed groups, and a group of n = 1 never is one")
        return self
