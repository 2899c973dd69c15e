"""What every selector is.

- A selector is a function of the visits it was told of: the same visits make the same decisions, after a restart too.
- Those that go by what a prompt earned sample it when it never was sampled: nothing is known against it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from curation.choice import Choice
from curation.greso import StepTally
from curation.history import History
from curation.keys import rng_for
from curation.records import Action, Decision, GroupKind

NEW = Decision(Action.SAMPLED, 1.0, "never sampled before")
TOGETHER = 256
"""Candidates that are decided in one call, where each is decided alone."""


class Candidate(NamedTuple):
    """A prompt whose turn has come."""

    prompt_id: str
    epoch: int
    past: History


@dataclass(frozen=True, slots=True)
class Seen:
    """What the store tells about one past visit."""

    prompt_id: str
    epoch: int
    step: int
    round: int
    action: Action
    rewards_G: tuple[float, ...] | None
    """None when the visit was skipped, or its group failed or is not there yet."""
    policy_version: int | None = None
    """That sampled the group; None where there is none, or nobody knows."""


class Selector(ABC):
    def observe(self, seen: Seen) -> None:
        """Takes in one visit."""
        return

    def inherit(self, prompt_id: str, rewards_G: tuple[float, ...], weight: float) -> None:
        """Takes in a group of an earlier run, worth the share `weight` of one of this run's own."""
        return

    def end_step(self, tally: StepTally) -> None:
        """A training step is complete, with these groups."""
        return

    def knobs(self) -> dict[str, float]:
        """What it steers by now, for people."""
        return {}

    def expects(self) -> float | None:
        """Share of informative groups among what it would sample now; None if it does not predict any."""
        return None

    def compares(self, room: int) -> int:
        """How many candidates are looked at together to fill `room`."""
        return TOGETHER

    @abstractmethod
    def decide(self, candidates: Sequence[Candidate], room: int) -> list[Decision]:
        """Decisions for the first candidates, in their order: for all of them, or up to the one that fills the room."""


class Alone(Selector):
    """Decides each prompt without looking at the others."""

    @abstractmethod
    def decide_one(self, candidate: Candidate) -> Decision: ...

    def decide(self, candidates: Sequence[Candidate], room: int) -> list[Decision]:
        return until_full(map(self.decide_one, candidates), room)


class Ranking(Selector):
    """Samples the best of several candidates for each place, by a score.

    Every candidate of a comparison has been considered, chosen or not.
    """

    def __init__(self, candidates: float) -> None:
        self._candidates = candidates

    def compares(self, room: int) -> int:
        return max(room, round(self._candidates * room))

    @abstractmethod
    def score(self, candidate: Candidate) -> tuple[float, str]:
        """(how much it is wanted, why)"""

    def decide(self, candidates: Sequence[Candidate], room: int) -> list[Decision]:
        scored = [self.score(candidate) for candidate in candidates]
        ranked = sorted(range(len(scored)), key=lambda i: (-scored[i][0], candidates[i].prompt_id))
        rank_of = {index: rank for rank, index in enumerate(ranked, start=1)}
        # Fewer come up than there is room for: still only the better part of them.
        places = min(room, max(1, round(len(ranked) / self._candidates)))
        return [self._decision(reason, rank_of[i], len(ranked), places) for i, (_, reason) in enumerate(scored)]

    @staticmethod
    def _decision(reason: str, rank: int, among: int, places: int) -> Decision:
        told = f"{reason}; {rank} of {among}, of which {places} are sampled"
        return Decision(Action.SAMPLED, 1.0, told) if rank <= places else Decision(Action.PASSED_OVER, 0.0, told)


class SelectorSettings(Choice, ABC):
    """What a user writes down about a selector."""

    @abstractmethod
    def build(self, *, seed: int, group_size: int) -> Selector:
        """A selector that has seen nothing; `group_size` rollouts are sampled of a prompt."""


def until_full(decisions: Iterable[Decision], room: int) -> list[Decision]:
    """The first of these decisions, up to the one that fills the room."""
    made: list[Decision] = []
    for decision in decisions:
        made.append(decision)
        room -= not decision.action.is_skip
        if room == 0:
            break
    return made


def drawn(keep: float, reason: str, *key: object, skip: Action = Action.PASSED_OVER) -> Decision:
    """Sampled with probability `keep`; the draw depends on the key alone."""
    if keep >= 1.0:
        return Decision(Action.SAMPLED, 1.0, reason)
    number = rng_for(*key).random()
    return Decision(Action.SAMPLED if number < keep else skip, keep, f"{reason}; drew {number:.4f}")


def skip_of(kind: GroupKind) -> Action:
    """How a prompt is skipped whose groups were of this kind."""
    match kind:
        case GroupKind.EASY:
            return Action.SKIPPED_EASY
        case GroupKind.HARD:
            return Action.SKIPPED_HARD
        case _:
            return Action.PASSED_OVER
