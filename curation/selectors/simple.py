"""Selectors that look at a prompt's own past and nothing else."""

from dataclasses import dataclass
from typing import Literal, assert_never

from pydantic import Field, model_validator

from curation.greso import Controller, Explore, StepTally, decide, steer
from curation.records import Action, Decision, GroupKind, ZeroVariance
from curation.selectors.base import NEW, Alone, Candidate, SelectorSettings, drawn, skip_of


class Everything(SelectorSettings):
    """No selection: every prompt is sampled on every pass."""

    kind: Literal["all"] = "all"

    def build(self, *, seed: int, group_size: int) -> "_Everything":
        return _Everything()


class _Everything(Alone):
    def decide_one(self, candidate: Candidate) -> Decision:
        return Decision(Action.SAMPLED, 1.0, "every prompt is sampled")


class RandomShare(SelectorSettings):
    """The control arm: a share of the visits, whatever the prompts earned before. Set it to what another selector
    samples, and both have the same budget."""

    kind: Literal["random"] = "random"
    share: float = Field(gt=0, le=1)

    def build(self, *, seed: int, group_size: int) -> "_RandomShare":
        return _RandomShare(self.share, seed)


@dataclass
class _RandomShare(Alone):
    share: float
    seed: int

    def decide_one(self, candidate: Candidate) -> Decision:
        key = self.seed, "random", candidate.prompt_id, candidate.past.visits
        return drawn(self.share, "a random share", *key)


class Greso(SelectorSettings):
    """GRESO (arXiv 2506.02177): the longer a prompt's groups have agreed, the less likely it is tried. The defaults
    are the paper's."""

    kind: Literal["greso"] = "greso"
    explore_easy: float = Field(0.5, gt=0, lt=1)
    """Base of the keep probability for always-solved prompts, at the start."""
    explore_hard: float = Field(0.5, gt=0, lt=1)
    target_easy: float = Field(0.25 / 3, gt=0, lt=1)
    """Share of easy zero-variance groups to steer towards."""
    target_hard: float = Field(0.5 / 3, gt=0, lt=1)
    step: float = Field(0.01, ge=0, lt=1)
    """How far a base moves after each training step; 0 keeps both bases where they are."""
    lowest: float = Field(0.05, gt=0, lt=1)
    highest: float = Field(0.95, gt=0, lt=1)
    floor: float = Field(0.0, ge=0, le=1)
    """Least keep probability; the release has 0.01."""
    zero_variance: ZeroVariance = ZeroVariance.EXACT

    @model_validator(mode="after")
    def _bases_within_bounds(self) -> "Greso":
        for base in (self.explore_easy, self.explore_hard):
            if not self.lowest <= base <= self.highest:
                raise ValueError(f"explore {base} lies outside lowest {self.lowest} to highest {self.highest}")
        return self

    def build(self, *, seed: int, group_size: int) -> "_Greso":
        return _Greso(self, seed, Explore(self.explore_easy, self.explore_hard))


@dataclass
class _Greso(Alone):
    choice: Greso
    seed: int
    explore: Explore

    def decide_one(self, candidate: Candidate) -> Decision:
        choice, past = self.choice, candidate.past
        streak = past.streak_by(choice.zero_variance)
        return decide(candidate.prompt_id, streak, past.visits, self.explore, seed=self.seed, floor=choice.floor)

    def end_step(self, tally: StepTally) -> None:
        choice = self.choice
        easy = Controller(choice.target_easy, choice.step, choice.lowest, choice.highest)
        hard = Controller(choice.target_hard, choice.step, choice.lowest, choice.highest)
        self.explore = steer(self.explore, tally, easy, hard)

    def knobs(self) -> dict[str, float]:
        return {"easy": round(self.explore.easy, 4), "hard": round(self.explore.hard, 4)}


class Pools(SelectorSettings):
    """Difficulty pools by the mean reward of a prompt's last group (prime-rl ``orchestrator/curriculum``, its
    defaults). There the weights draw with replacement; here they are chances per pass.

    The older form, ``orchestrator/buffer.py``, removes what is always or never solved: ``hard_up_to=0, easy_from=1,
    keep_hard=0, keep_easy=0``.
    """

    kind: Literal["pools"] = "pools"
    hard_up_to: float = Field(0.25, ge=0, le=1)
    easy_from: float = Field(0.75, ge=0, le=1)
    """Above it; at 1, from it."""
    keep_hard: float = Field(0.2, ge=0, le=1)
    keep_easy: float = Field(0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _pools_do_not_overlap(self) -> "Pools":
        if self.hard_up_to >= self.easy_from:
            raise ValueError("hard_up_to must lie below easy_from")
        return self

    def build(self, *, seed: int, group_size: int) -> "_Pools":
        return _Pools(self, seed)


@dataclass
class _Pools(Alone):
    choice: Pools
    seed: int

    def decide_one(self, candidate: Candidate) -> Decision:
        latest = candidate.past.latest
        if latest is None:
            return NEW
        pool, keep = self._pool(latest.mean)
        reason = f"mean reward {latest.mean:.2f} when last sampled"
        key = self.seed, "pools", candidate.prompt_id, candidate.past.visits
        return drawn(keep, reason, *key, skip=skip_of(pool))

    def _pool(self, mean: float) -> tuple[GroupKind, float]:
        choice = self.choice
        if mean <= choice.hard_up_to:
            return GroupKind.HARD, choice.keep_hard
        if mean > choice.easy_from or mean >= 1.0:
            return GroupKind.EASY, choice.keep_easy
        return GroupKind.INFORMATIVE, 1.0


class Band(SelectorSettings):
    """Prompts whose last group had a mean reward within a band (online difficulty filtering, arXiv 2504.03380); the
    others come back with a small chance."""

    kind: Literal["band"] = "band"
    low: float = Field(0.2, ge=0, le=1)
    high: float = Field(0.8, ge=0, le=1)
    again: float = Field(0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _low_below_high(self) -> "Band":
        if self.low >= self.high:
            raise ValueError("low must lie below high")
        return self

    def build(self, *, seed: int, group_size: int) -> "_Band":
        return _Band(self, seed)


@dataclass
class _Band(Alone):
    choice: Band
    seed: int

    def decide_one(self, candidate: Candidate) -> Decision:
        latest, choice = candidate.past.latest, self.choice
        if latest is None:
            return NEW
        inside = choice.low <= latest.mean <= choice.high
        place = "inside" if inside else "outside"
        reason = f"mean reward {latest.mean:.2f} is {place} {choice.low:g} to {choice.high:g}"
        skip = Action.SKIPPED_EASY if latest.mean > choice.high else Action.SKIPPED_HARD
        key = self.seed, "band", candidate.prompt_id, candidate.past.visits
        return drawn(1.0 if inside else choice.again, reason, *key, skip=skip)


class Retire(SelectorSettings):
    """A prompt that was solved by all several times in a row is not sampled again (arXiv 2606.00135: after 1 or 2)."""

    kind: Literal["retire"] = "retire"
    after: int = Field(2, ge=1, le=1_000_000)

    def build(self, *, seed: int, group_size: int) -> "_Retire":
        return _Retire(self.after)


@dataclass
class _Retire(Alone):
    after: int

    def decide_one(self, candidate: Candidate) -> Decision:
        kind, length = candidate.past.streak
        match kind:
            case GroupKind.EASY if length >= self.after:
                return Decision(Action.SKIPPED_EASY, 0.0, f"retired: solved in {length} groups in a row")
            case GroupKind.EASY | GroupKind.HARD | GroupKind.INFORMATIVE:
                return Decision(Action.SAMPLED, 1.0, "not solved for good")
            case GroupKind.UNSCORED:
                raise AssertionError("an unscored group makes no streak")
            case _:
                assert_never(kind)
