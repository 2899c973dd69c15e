"""How many rollouts a prompt gets, once it is sampled.

The sizes of a round depend on what was observed before it and on the prompts in it, not on their order.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from curation.choice import Choice
from curation.passrates import RATES_K, Floats, mixed_KN


class Fixed(Choice):
    """The same for all."""

    kind: Literal["fixed"] = "fixed"


class Probe(Choice):
    """SPEED (arXiv 2506.09016): some rollouts first, and the rest only where those are mixed. A group that stops early
    is stored as it is."""

    kind: Literal["probe"] = "probe"
    first: int = Field(4, ge=2, le=1024)


class Knapsack(Choice):
    """Knapsack RL (arXiv 2509.25849): as many rollouts in all as with a fixed size, each where it buys the most: the
    sum of P(mixed) * p (1 - p)^2 over the prompts is as large as it can be, p being what is known of each."""

    kind: Literal["knapsack"] = "knapsack"
    least: int = Field(2, ge=2)
    most: int = Field(32, ge=2, le=1024)
    drift: float = Field(0.4, ge=0.05, le=10)
    trend: float = Field(0.05, ge=-2, le=2)
    """Both as in the selector `posterior`."""

    @model_validator(mode="after")
    def _least_up_to_most(self) -> "Knapsack":
        if self.least > self.most:
            raise ValueError("least must not be above most")
        return self


Allocations = Fixed | Probe | Knapsack
Allocation = Annotated[Allocations, Field(discriminator="kind")]


def knapsack(beliefs_PK: Floats, total: int, *, least: int, most: int) -> list[int]:
    """Rollouts of each prompt, from `least` to `most`, that add up to `total`, or as near as these bounds allow.

    Every further rollout of a prompt is worth less than the one before (P(mixed) is concave in its number), so the best
    rollouts overall are the optimum. Among equals the earlier prompt gets it.
    """
    prompts = len(beliefs_PK)
    spare = min(max(total - prompts * least, 0), prompts * (most - least))
    gains_PN = np.diff(beliefs_PK @ worth_KN(least, most), axis=1)
    # Rounded, so that the last bit of a machine's arithmetic decides nothing; still falling along N after that.
    order = np.argsort(-np.round(gains_PN, 12), axis=None, kind="stable")[:spare]
    taken = np.bincount(order // max(1, most - least), minlength=prompts)
    return [int(n) for n in taken + least]


def worth_KN(least: int, most: int) -> Floats:
    """What a group of `least`, ..., `most` rollouts is worth at each pass rate of the grid."""
    rates_K1 = RATES_K[:, None]
    return mixed_KN(*range(least, most + 1)) * rates_K1 * (1.0 - rates_K1) ** 2


def sizes(allocation: Allocations, beliefs_PK: Floats | None, prompts: int, n: int) -> Sequence[int]:
    """Rollouts of each prompt of a round, `n` on average; a probe may still stop before it has them all."""
    match allocation:
        case Knapsack(least=least, most=most):
            if beliefs_PK is None:
                raise ValueError("a knapsack needs to know the pass rates")
            return knapsack(beliefs_PK, prompts * n, least=least, most=most)
        case _:
            return [n] * prompts
