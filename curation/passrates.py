"""What is known of every prompt's pass rate, while the policy moves: a posterior on a grid.

- Between two looks the logit of a pass rate walks: it spreads by `drift` and moves up by `trend` for each pass in which
  a new version of the policy was first seen; where nobody says which version it was, for each pass. So old evidence
  fades, and a prompt nobody looks at drifts back towards "may be mixed".
- A group of n rollouts with mean reward m weighs p^(n m) (1 - p)^(n (1 - m)): exact for right and wrong, and the usual
  quasi-likelihood for graded rewards.
- The state is a function of what was observed, in order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from curation.history import past_group

Floats = NDArray[np.float64]

LOGITS = np.linspace(-7.0, 7.0, 41)
RATES_K: Floats = 1.0 / (1.0 + np.exp(-LOGITS))
"""The grid: pass rates from 0.1 % to 99.9 %, evenly spaced in their logit."""
OLDEST = 64
"""Passes after which nothing fades any more."""
LEAST = 1e-12
"""Of a belief, before evidence: nothing is ever ruled out."""


def mixed_KN(*sizes: int) -> Floats:
    """Chance that a group of each of these sizes holds both right and wrong, at each pass rate of the grid."""
    sizes_N, rates_K1 = np.array(sizes), RATES_K[:, None]
    mixed: Floats = 1.0 - rates_K1**sizes_N - (1.0 - rates_K1) ** sizes_N
    return mixed


class Outlook(NamedTuple):
    """What a group of a prompt would be, per prompt."""

    mixed_P: Floats
    """Chance that it holds both right and wrong."""
    doubt_P: Floats
    """Standard deviation of that chance under the posterior."""


class PassRates:
    def __init__(self, *, group_size: int, drift: float, trend: float) -> None:
        away = np.clip(LOGITS + trend, LOGITS[0], LOGITS[-1])[:, None] - LOGITS[None, :]
        kernel = np.exp(-0.5 * (away / drift) ** 2)
        self._step: Floats = kernel / kernel.sum(axis=1, keepdims=True)
        self._mixed_K = mixed_KN(group_size)[:, 0]
        self._walk = [np.eye(len(RATES_K))]
        """Of so many passes, K x K each; made when needed."""
        self._row_of: dict[str, int] = {}
        self._belief_PK: Floats = np.empty((0, len(RATES_K)))
        """As it was when the prompt was last sampled."""
        self._epoch_P = np.empty(0, dtype=np.int64)
        self._newest_version: int | None = None
        self._changes: list[int] = []
        """Passes in which the policy changed, ascending."""

    def __contains__(self, prompt_id: object) -> bool:
        return prompt_id in self._row_of

    def __len__(self) -> int:
        return len(self._row_of)

    def observe(
        self,
        prompt_id: str,
        rewards_G: Sequence[float],
        epoch: int,
        policy_version: int | None = None,
        weight: float = 1.0,
    ) -> None:
        """A group of the prompt; one in which nothing was scored says nothing."""
        group = past_group(rewards_G, weight)
        if not group.size:
            return
        self._note_version(epoch, policy_version)
        row = self._row(prompt_id, epoch)
        right, wrong = group.mean * group.size * weight, (1.0 - group.mean) * group.size * weight
        evidence_K = right * np.log(RATES_K) + wrong * np.log1p(-RATES_K)
        belief_K = np.maximum(self._belief_at(row, epoch), LEAST) * np.exp(evidence_K - evidence_K.max())
        self._belief_PK[row] = belief_K / belief_K.sum()
        self._epoch_P[row] = max(epoch, self._epoch_P[row])

    def _note_version(self, epoch: int, version: int | None) -> None:
        known = self._newest_version
        if version is not None:
            self._newest_version = version if known is None else max(known, version)
        moved = version is None or (known is not None and version > known)
        if moved and (not self._changes or epoch > self._changes[-1]):
            self._changes.append(epoch)

    def belief(self, prompt_id: str, epoch: int) -> Floats:
        """Probability of each of RATES_K in pass `epoch`, K; the same for all where nothing is known."""
        if prompt_id not in self._row_of:
            return np.full(len(RATES_K), 1.0 / len(RATES_K))
        return self._belief_at(self._row_of[prompt_id], epoch)

    def _belief_at(self, row: int, epoch: int) -> Floats:
        [age] = self._ages(np.array([row]), epoch)
        belief_K: Floats = self._belief_PK[row] @ self._walked(int(age))
        return belief_K

    def outlook(self, prompt_ids: Sequence[str], epoch: int) -> Outlook:
        """Of these prompts, which must have been observed, when they are sampled in pass `epoch`."""
        return self._outlook(np.array([self._row_of[p] for p in prompt_ids], dtype=np.int64), epoch)

    def outlook_of_all(self, epoch: int) -> Outlook:
        """Of every observed prompt the next time its turn comes, at or after pass `epoch`."""
        return self._outlook(np.arange(len(self)), epoch)

    def _outlook(self, rows: NDArray[np.int64], epoch: int) -> Outlook:
        ages = self._ages(rows, epoch)
        mixed_P, square_P = np.empty(len(rows)), np.empty(len(rows))
        for age in np.unique(ages):
            these = ages == age
            belief_PK = self._belief_PK[rows[these]]
            walked = self._walked(int(age))
            mixed_P[these] = belief_PK @ (walked @ self._mixed_K)
            square_P[these] = belief_PK @ (walked @ self._mixed_K**2)
        # Rounded, so that the last bit of a machine's arithmetic decides nothing.
        doubt_P: Floats = np.sqrt(np.maximum(square_P - mixed_P**2, 0.0))
        return Outlook(np.round(mixed_P, 9), np.round(doubt_P, 9))

    def _ages(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Passes with a change of the policy since these rows were observed, until they are met in pass `epoch`, or in
        the next if they were met in this one."""
        seen_P = self._epoch_P[rows]
        changes = np.array(self._changes, dtype=np.int64)
        until_P = np.searchsorted(changes, np.maximum(epoch, seen_P + 1))
        ages: NDArray[np.int64] = np.minimum(until_P - np.searchsorted(changes, seen_P), OLDEST)
        return ages

    def _walked(self, passes: int) -> Floats:
        while len(self._walk) <= passes:
            self._walk.append(self._walk[-1] @ self._step)
        return self._walk[passes]

    def _row(self, prompt_id: str, epoch: int) -> int:
        if prompt_id in self._row_of:
            return self._row_of[prompt_id]
        row = self._row_of[prompt_id] = len(self._row_of)
        if row == len(self._belief_PK):
            more = max(64, row)
            even = np.full((more, len(RATES_K)), 1.0 / len(RATES_K))
            self._belief_PK = np.concatenate([self._belief_PK, even])
            self._epoch_P = np.concatenate([self._epoch_P, np.zeros(more, dtype=np.int64)])
        self._epoch_P[row] = epoch
        return row
