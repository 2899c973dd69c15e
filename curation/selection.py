"""Before sampling: which prompts of a set the next round rolls out.

- The state is folded from stored visits and nothing else, so a restart, a second process or a reader of the log
  derives the same next round.
- Every pass (epoch) considers each prompt once, in an order that depends on (run seed, epoch, prompt) alone:
  a prompt added in the middle of a pass takes its place without moving the others.
- A round never holds a prompt twice: its second draw would not know the outcome of its first.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import takewhile
from math import ceil
from typing import Annotated

import numpy as np
from pydantic import Field

from curation.allocation import Allocations, Fixed, Knapsack, sizes
from curation.choice import Choice
from curation.greso import StepTally, adaptive_round
from curation.history import History, past_group
from curation.keys import digest
from curation.passrates import PassRates
from curation.records import Action, Decision, GroupKind, Visit
from curation.selectors.base import Candidate, Seen, Selector
from curation.selectors.posterior import Posterior
from curation.selectors.ranking import Learnability, Mopps
from curation.selectors.simple import Band, Everything, Greso, Pools, RandomShare, Retire

SelectorChoices = Everything | RandomShare | Greso | Pools | Band | Retire | Mopps | Learnability | Posterior
SelectorChoice = Annotated[SelectorChoices, Field(discriminator="kind")]


class Batch(Choice):
    """How much is rolled out at a time."""

    groups: int = Field(64, ge=1, le=100_000)
    """Informative groups that make one training step; the controllers move after each."""
    prompts: int = Field(96, ge=1, le=100_000)
    """Prompts in the first round of a step, and at most in any."""
    least: int = Field(16, ge=1, le=100_000)
    """Prompts in a round at least; the release has 64."""
    adaptive: bool = True
    """Size later rounds of a step by what is still missing (adaptive batch size)."""


Inherited = Iterable[tuple[str, tuple[float, ...], float]]
"""(prompt, rewards of a group of an earlier run, what it counts), oldest first."""


@dataclass(slots=True, eq=False)
class RunState:
    """Where a run stands. Changes only through `observe`, `inherit` and `close_step`."""

    selector: Selector
    seed: int
    allocation: Allocations = field(default_factory=Fixed)
    rates: PassRates | None = None
    """Only where the allocation asks for them."""
    histories: dict[str, History] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    """Last pass that considered the prompt."""
    epoch: int = 0
    step: int = 0
    tally: StepTally = field(default_factory=StepTally)
    """Groups rolled out in the current step."""
    informative: int = 0
    """Informative groups of the current step."""
    round: int = 0
    round_kinds: Counter[GroupKind] = field(default_factory=Counter)
    """Kinds of the groups of the latest round of the current step."""

    @classmethod
    def replay(
        cls,
        choice: SelectorChoices,
        seen: Iterable[Seen],
        *,
        seed: int,
        group_size: int,
        allocation: Allocations | None = None,
        inherited: Inherited = (),
    ) -> "RunState":
        """The state after these visits, oldest first."""
        state = cls(choice.build(seed=seed, group_size=group_size), seed, allocation or Fixed())
        if isinstance(allocation, Knapsack):
            state.rates = PassRates(group_size=group_size, drift=allocation.drift, trend=allocation.trend)
        for prompt_id, rewards_G, weight in inherited:
            state.inherit(prompt_id, rewards_G, weight)
        for visit in seen:
            while state.step < visit.step:
                state.close_step()
            state.observe(visit)
        return state

    def history(self, prompt_id: str) -> History:
        return self.histories.get(prompt_id, History())

    def inherit(self, prompt_id: str, rewards_G: tuple[float, ...], weight: float) -> None:
        """Takes in a group of an earlier run: evidence, but no visit of this one."""
        past = self.history(prompt_id)
        self.histories[prompt_id] = History(past.visits, (*past.groups_N, past_group(rewards_G, weight)))
        self.selector.inherit(prompt_id, rewards_G, weight)
        if self.rates is not None:
            self.rates.observe(prompt_id, rewards_G, epoch=-1, weight=weight)

    def observe(self, seen: Seen) -> None:
        """Takes in one visit, with the rewards of its group if there is one."""
        if seen.round != self.round:
            self.round, self.round_kinds = seen.round, Counter()
        past = self.history(seen.prompt_id)
        groups = past.groups_N
        if seen.rewards_G is not None:
            groups = (*groups, past_group(seen.rewards_G))
            self._count(groups[-1].kind)
        self.histories[seen.prompt_id] = History(past.visits + 1, groups)
        self.epochs[seen.prompt_id] = seen.epoch
        self.epoch = max(self.epoch, seen.epoch)
        self.tally = self.tally._replace(epoch=self.epoch)
        self.selector.observe(seen)
        if self.rates is not None and seen.rewards_G:
            self.rates.observe(seen.prompt_id, seen.rewards_G, seen.epoch, seen.policy_version)

    def _count(self, kind: GroupKind) -> None:
        self.tally = self.tally._replace(
            easy=self.tally.easy + (kind is GroupKind.EASY),
            hard=self.tally.hard + (kind is GroupKind.HARD),
            total=self.tally.total + (kind is not GroupKind.UNSCORED),
        )
        self.informative += kind is GroupKind.INFORMATIVE
        self.round_kinds[kind] += 1

    def close_step(self) -> None:
        """Ends the training step: the selector steers, the counters start anew."""
        self.selector.end_step(self.tally)
        self.step += 1
        self.tally = StepTally(epoch=self.epoch)
        self.informative = 0
        self.round_kinds = Counter()


def plan_round(
    prompt_ids: Collection[str], state: RunState, *, size: int, through_epoch: int | None = None
) -> list[Visit]:
    """The next visits of a run: up to `size` sampled ones with the skips between them, in order.

    Ends early when a full pass's worth of prompts was considered, before a prompt that is already sampled here, and
    at the end of pass `through_epoch`.
    """
    visits: list[Visit] = []
    sampled: set[str] = set()
    # Within a round the state does not move, but skips of this round are visits all the same.
    considered: Counter[str] = Counter()
    for epoch, ids in _passes(prompt_ids, state):
        if through_epoch is not None and epoch > through_epoch:
            break
        at = 0
        while at < len(ids) and len(sampled) < size and len(visits) < len(prompt_ids):
            room = size - len(sampled)
            turn = ids[at : at + min(state.selector.compares(room), len(prompt_ids) - len(visits))]
            # Its second draw would not know the outcome of its first.
            fresh = list(takewhile(lambda p: p not in sampled, turn))
            if not fresh:
                return visits
            candidates = [Candidate(p, epoch, _with_visits(state.history(p), considered[p])) for p in fresh]
            decisions = state.selector.decide(candidates, room)
            for candidate, decision in zip(candidates, decisions, strict=False):
                visits.append(Visit(candidate.prompt_id, candidate.past.visits, epoch, decision))
                considered[candidate.prompt_id] += 1
                if not decision.action.is_skip:
                    sampled.add(candidate.prompt_id)
            at += len(decisions)
    return visits


def _with_visits(past: History, more: int) -> History:
    return replace(past, visits=past.visits + more) if more else past


def group_sizes(visits: Iterable[Visit], state: RunState, n: int) -> dict[str, int]:
    """Rollouts of each prompt that these visits sample, `n` on average."""
    sampled = sorted((v for v in visits if not v.decision.action.is_skip), key=lambda v: v.prompt_id)
    beliefs = None
    if state.rates is not None and sampled:
        beliefs = np.stack([state.rates.belief(v.prompt_id, v.epoch) for v in sampled])
    found = sizes(state.allocation, beliefs, len(sampled), n) if sampled else []
    return {visit.prompt_id: size for visit, size in zip(sampled, found, strict=True)}


def by_name(prompt_ids: Iterable[str], state: RunState) -> list[Visit]:
    """Visits of prompts that were asked for by name: sampled whatever the selector thinks."""
    reason = Decision(Action.SAMPLED, 1.0, "asked for by name")
    return [Visit(p, state.history(p).visits, state.epoch, reason) for p in prompt_ids]


def _passes(prompt_ids: Collection[str], state: RunState) -> Iterator[tuple[int, list[str]]]:
    """(epoch, prompts in its order): what is left of the current pass, then the next one whole."""
    left = [p for p in prompt_ids if state.epochs.get(p, -1) < state.epoch]
    for epoch, ids in ((state.epoch, left), (state.epoch + 1, prompt_ids)):
        yield epoch, sorted(ids, key=lambda p: digest(state.seed, "order", epoch, p))


def next_epoch(prompt_ids: Iterable[str], state: RunState) -> int:
    """The pass that the next visit belongs to."""
    return state.epoch + all(state.epochs.get(p, -1) == state.epoch for p in prompt_ids)


def round_size(batch: Batch, state: RunState, *, wanted: int, group_size: int) -> int:
    """Prompts to sample next, when the current step is to hold `wanted` informative groups: as many as that takes by
    the selector's own prediction, or else by what the last round gave."""
    least = min(batch.least, batch.prompts)
    expected = state.selector.expects() if batch.adaptive else None
    if expected:
        return min(max(ceil(max(0, wanted - state.informative) / expected), least), batch.prompts)
    rolled_out = state.round_kinds.total()
    if not batch.adaptive or not rolled_out:
        return batch.prompts
    wasted = 1.0 - state.round_kinds[GroupKind.INFORMATIVE] / rolled_out
    missing = max(0, wanted - state.informative) * group_size
    return adaptive_round(missing, wasted, group_size=group_size, default=batch.prompts, floor=least).prompts
