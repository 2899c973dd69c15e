"""What if: a selector on recorded history, shown only what it would have seen.

Visit t of every prompt makes pass t. Of a visit that the selector samples it is told the recorded rewards, of one that
it skips nothing; what its choice would have changed about the policy is not in the record and is not guessed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt
from statistics import fmean, stdev
from typing import Any, NamedTuple

from pydantic import Field, field_validator

from curation.choice import Choice, Several
from curation.records import GroupKind, kind_of
from curation.selection import Batch, RunState, SelectorChoice, SelectorChoices, plan_round, round_size
from curation.selectors.base import Seen


class Then(NamedTuple):
    """One visit as it was recorded."""

    rewards_G: tuple[float, ...]
    policy_version: int | None = None
    """None where the record does not say: then every pass counts as another policy."""


def then_of(mean: float, group_size: int) -> Then:
    """A group with right and wrong answers that has about this mean reward: all right or all wrong only for 1 and 0.
    Raises ValueError for a mean of none."""
    if isinstance(mean, bool) or not isinstance(mean, int | float) or not 0.0 <= mean <= 1.0:
        raise ValueError(f"{mean!r} is no mean of rewards from 0 to 1")
    right = min(max(round(mean * group_size), mean > 0), group_size - (mean < 1))
    return Then((1.0,) * right + (0.0,) * (group_size - right))


Recorded = Mapping[str, Sequence[Then]]
"""The visits of each prompt, in their order."""


class Question(Choice):
    """Which selectors to replay, and how."""

    selectors: Several[SelectorChoice] = Field(max_length=32)
    seeds: int = Field(5, ge=1, le=100)
    """Each selector is replayed with the seeds 0, 1, ..."""
    batch: Batch | None = None
    """Groups of a training step and prompts of a round; as in the run, where there is one."""

    @field_validator("selectors")
    @classmethod
    def _each_once(cls, selectors: tuple[SelectorChoices, ...]) -> tuple[SelectorChoices, ...]:
        if not selectors:
            raise ValueError("name at least one")
        if len(set(selectors)) < len(selectors):
            raise ValueError("a selector is named twice")
        return selectors


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval (normal); both ends are the mean where there is one seed."""

    mean: float
    low: float
    high: float

    def within(self, least: float, most: float) -> "Estimate":
        return Estimate(self.mean, max(self.low, least), min(self.high, most))


class Summary(NamedTuple):
    """One selector over all seeds."""

    selector: SelectorChoices
    precision: Estimate
    recall: Estimate
    sampled: Estimate
    """Groups."""
    groups_per_informative: Estimate | None
    """None where no informative group was sampled."""


class Replayed(NamedTuple):
    visits: int
    sampled: int
    """Visits that the selector would have spent a group on."""
    informative: int
    """Of the sampled ones."""
    there: int
    """Informative visits in the whole record."""
    knobs: dict[str, float]
    """What the selector steered by at the end."""

    @property
    def precision(self) -> float:
        """Share of the sampled visits that are informative."""
        return self.informative / self.sampled if self.sampled else 0.0

    @property
    def recall(self) -> float:
        """Share of the informative visits that are sampled."""
        return self.informative / self.there if self.there else 0.0

    @property
    def cost(self) -> float:
        """Groups sampled per informative one."""
        return self.sampled / self.informative if self.informative else float("inf")


def replay(choice: SelectorChoices, recorded: Recorded, *, seed: int, batch: Batch | None = None) -> Replayed:
    """The choice, from its first visit to the end of the record. Training steps end as in a run."""
    batch = batch or Batch()
    group_size = max((len(then.rewards_G) for visits in recorded.values() for then in visits), default=1)
    state = RunState.replay(choice, [], seed=seed, group_size=group_size)
    visits = sampled = informative = number = 0
    for epoch in range(max(map(len, recorded.values()), default=0)):
        there_now = [prompt_id for prompt_id, past in recorded.items() if len(past) > epoch]
        while planned := plan_round(
            there_now,
            state,
            size=round_size(batch, state, wanted=batch.groups, group_size=group_size),
            through_epoch=epoch,
        ):
            number += 1
            for visit in planned:
                seen = Seen(visit.prompt_id, epoch, state.step, number, visit.decision.action, None)
                visits += 1
                if not visit.decision.action.is_skip:
                    then = recorded[visit.prompt_id][epoch]
                    seen = replace(seen, rewards_G=then.rewards_G, policy_version=then.policy_version)
                    sampled += 1
                    informative += kind_of(then.rewards_G) is GroupKind.INFORMATIVE
                state.observe(seen)
            if state.informative >= batch.groups:
                state.close_step()
    return Replayed(visits, sampled, informative, informative_in(recorded), state.selector.knobs())


def informative_in(recorded: Recorded) -> int:
    """Informative visits of the whole record."""
    return sum(kind_of(then.rewards_G) is GroupKind.INFORMATIVE for past in recorded.values() for then in past)


def document(summary: Summary) -> dict[str, Any]:
    """As JSON; of the selector, what is not the default."""
    choice, cost = summary.selector, summary.groups_per_informative
    return {
        "selector": {"kind": choice.kind} | choice.model_dump(mode="json", exclude_defaults=True),
        "precision": summary.precision._asdict(),
        "recall": summary.recall._asdict(),
        "sampled": summary.sampled._asdict(),
        "groups_per_informative": cost and cost._asdict(),
    }


def compare(question: Question, recorded: Recorded) -> list[Summary]:
    """Every selector of the question on the same record."""
    return [
        summary(choice, [replay(choice, recorded, seed=seed, batch=question.batch) for seed in range(question.seeds)])
        for choice in question.selectors
    ]


def summary(choice: SelectorChoices, runs: Sequence[Replayed]) -> Summary:
    """Of its replays, one a seed."""
    return Summary(
        choice,
        precision=estimate([run.precision for run in runs]).within(0, 1),
        recall=estimate([run.recall for run in runs]).within(0, 1),
        sampled=estimate([run.sampled for run in runs]),
        groups_per_informative=estimate([run.cost for run in runs]) if all(run.informative for run in runs) else None,
    )


def estimate(values: Sequence[float]) -> Estimate:
    mean = fmean(values)
    half = 1.96 * stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(mean, mean - half, mean + half)
