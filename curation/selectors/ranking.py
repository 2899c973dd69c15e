"""Selectors that sample the most promising of several candidates."""

import random
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from curation.history import History
from curation.keys import rng_for
from curation.selectors.base import Candidate, Ranking, SelectorSettings


class Mopps(SelectorSettings):
    """MoPPS (arXiv 2507.04632): one draw from each candidate's Beta posterior; those nearest to the target are
    sampled."""

    kind: Literal["mopps"] = "mopps"
    candidates: float = Field(2.0, ge=1, le=1000)
    """Compared for each one that is sampled."""
    target: float = Field(0.5, gt=0, lt=1)
    keep: float = Field(0.5, ge=0, le=1)
    """What a posterior keeps of itself when a group comes in; 1 never forgets. The release's scripts have 0.5."""

    def build(self, *, seed: int, group_size: int) -> "_Mopps":
        return _Mopps(self, seed)


class _Mopps(Ranking):
    def __init__(self, choice: Mopps, seed: int) -> None:
        super().__init__(choice.candidates)
        self._choice = choice
        self._seed = seed

    def score(self, candidate: Candidate) -> tuple[float, str]:
        past = candidate.past
        beta = beta_of(past, self._choice.keep)
        rng = rng_for(self._seed, "mopps", candidate.prompt_id, past.visits)
        rate = beta.draw(rng)
        return -abs(rate - self._choice.target), f"drew pass rate {rate:.3f} from Beta({beta.a:.2f}, {beta.b:.2f})"


@dataclass(frozen=True, slots=True)
class Beta:
    a: float = 1.0
    b: float = 1.0

    def draw(self, rng: random.Random) -> float:
        return rng.betavariate(self.a, self.b)

    @property
    def mean(self) -> float:
        return self.a / (self.a + self.b)


def beta_of(past: History, keep: float) -> Beta:
    """From Beta(1, 1); each group of G with mean s: a <- keep * a + (1 - keep) + s * G, b likewise with 1 - s
    (``recipe/ours/mopps.py``)."""
    a, b = 1.0, 1.0
    for group in past.groups_N:
        if group.size:
            a = keep * a + (1 - keep) + group.weight * group.mean * group.size
            b = keep * b + (1 - keep) + group.weight * (1 - group.mean) * group.size
    return Beta(a, b)


class Learnability(SelectorSettings):
    """Highest p(1 - p) first (LILO, arXiv 2502.12272), p estimated from the prompt's past groups."""

    kind: Literal["learnability"] = "learnability"
    candidates: float = Field(2.0, ge=1, le=1000)
    keep: float = Field(0.5, ge=0, le=1)
    """As in `Mopps`."""

    def build(self, *, seed: int, group_size: int) -> "_Learnability":
        return _Learnability(self)


class _Learnability(Ranking):
    def __init__(self, choice: Learnability) -> None:
        super().__init__(choice.candidates)
        self._keep = choice.keep

    def score(self, candidate: Candidate) -> tuple[float, str]:
        rate = beta_of(candidate.past, self._keep).mean
        return rate * (1 - rate), f"learnability {rate * (1 - rate):.3f} at pass rate {rate:.3f}"
