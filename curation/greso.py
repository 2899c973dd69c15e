"""GRESO (arXiv 2506.02177): skip prompts whose groups keep agreeing, before spending rollouts on them.

- A prompt never seen, or whose last group was informative, is never skipped.
- Skipping changes no prompt's state; only a rolled-out group does.
- The draw of a visit depends on (run seed, prompt, visit) alone: a restart decides the same.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from curation.history import Streak
from curation.keys import rng_for
from curation.records import Action, Decision, GroupKind


def keep_probability(streak: int, explore: float, floor: float = 0.0) -> float:
    """Chance of sampling a prompt after `streak` zero-variance groups in a row: max(explore ** streak, floor).

    The paper has no floor; the release keeps 1 % (``presampling_selector.py``).
    """
    if streak < 0 or not 0.0 <= explore <= 1.0 or not 0.0 <= floor <= 1.0:
        raise ValueError(f"no probability for streak {streak}, explore {explore}, floor {floor}")
    return max(explore**streak, floor) if streak else 1.0


@dataclass(frozen=True, slots=True)
class Explore:
    """The two bases that the controllers steer: how readily easy and hard prompts are tried again."""

    easy: float = 0.5
    hard: float = 0.5


def decide(prompt_id: str, streak: Streak, visits: int, explore: Explore, *, seed: int, floor: float = 0.0) -> Decision:
    """Whether a prompt is sampled that was considered `visits` times before, with its probability and the reason."""
    kind, length = streak
    if length == 0:
        return Decision(Action.SAMPLED, 1.0, "new, or informative when last sampled")
    easy = kind is GroupKind.EASY
    keep = keep_probability(length, explore.easy if easy else explore.hard, floor)
    reason = f"all {'right' if easy else 'wrong'} in the last {length} group{'s' if length > 1 else ''}"
    # Keyed by visits, skips included: keyed by sampled groups, a skipped prompt would draw the same number for ever.
    number = rng_for(seed, "greso", prompt_id, visits).random()
    if number < keep:
        return Decision(Action.SAMPLED, keep, f"{reason}; drew {number:.4f}: tried again")
    return Decision(Action.SKIPPED_EASY if easy else Action.SKIPPED_HARD, keep, f"{reason}; drew {number:.4f}")


@dataclass(frozen=True, slots=True)
class Controller:
    """Steers one base so that the share of wasted groups stays near a target.

    Defaults of the release: steps of 1 % between 5 % and 95 %.
    """

    target: float
    step: float = 0.01
    low: float = 0.05
    high: float = 0.95

    def adjust(self, explore: float, share: float) -> float:
        """The base for the next step: lower (skip more) when the share of this kind reached the target."""
        moved = explore - self.step if share >= self.target else explore + self.step
        return min(max(moved, self.low), self.high)


class StepTally(NamedTuple):
    """The groups rolled out for one training step."""

    easy: int = 0
    hard: int = 0
    total: int = 0
    epoch: int = 0
    """Pass over the prompt set in which the step ended."""


def steer(explore: Explore, tally: StepTally, easy: Controller, hard: Controller) -> Explore:
    """Both bases after a finished step. The first pass has nothing to compare with and moves neither."""
    if tally.epoch == 0 or tally.total == 0:
        return explore
    return replace(
        explore,
        easy=easy.adjust(explore.easy, tally.easy / tally.total),
        hard=hard.adjust(explore.hard, tally.hard / tally.total),
    )


class RoundSize(NamedTuple):
    prompts: int
    is_enough: bool
    """The estimate fits into one round: the release calls such a round final and trains on whatever it gives.
    We report it and go on until the step is full."""


def adaptive_round(
    missing: int, wasted: float, *, group_size: int, default: int, floor: int = 1, slack: float = 1.25
) -> RoundSize:
    """Prompts to roll out next, for `missing` responses when the last round wasted the share `wasted` of its groups.

    ``clip(int(missing / (1 - wasted) / group_size * slack), floor, default)``; the release's floor is 64 prompts.
    A round in which everything was wasted says nothing about the next: the default then.
    """
    if wasted >= 1.0:
        return RoundSize(default, is_enough=False)
    estimate = int(missing / (1.0 - wasted) / group_size * slack)
    return RoundSize(min(max(estimate, floor), default), is_enough=estimate <= default)
