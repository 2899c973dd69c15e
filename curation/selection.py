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
from typing import Annotated, Literal, assert_never

from pydantic import Field, model_validator

from curation.choice import Choice
from curation.greso import Controller, Explore, StepTally, adaptive_round, decide, steer
from curation.history import History
from curation.keys import digest
from curation.records import Action, Decision, GroupKind, Visit, ZeroVariance, kind_of


class Everything(Choice):
    """No selection: every prompt is sampled on every pass."""

    kind: Literal["all"] = "all"


class Greso(Choice):
    """GRESO; the defaults are the paper's."""

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

    @property
    def start(self) -> Explore:
        return Explore(self.explore_easy, self.explore_hard)


SelectorChoice = Annotated[Everything | Greso, Field(discriminator="kind")]


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


@dataclass(slots=True)
class RunState:
    """Where a run stands. Changes only through `observe` and `close_step`."""

    selector: Everything | Greso
    histories: dict[str, History] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    """Last pass that considered the prompt."""
    epoch: int = 0
    step: int = 0
    explore: Explore = field(default_factory=Explore)
    tally: StepTally = field(default_factory=StepTally)
    """Groups rolled out in the current step."""
    informative: int = 0
    """Informative groups of the current step."""
    round: int = 0
    round_kinds: Counter[GroupKind] = field(default_factory=Counter)
    """Kinds of the groups of the latest round of the current step."""

    @classmethod
    def replay(cls, selector: Everything | Greso, seen: Iterable[Seen]) -> "RunState":
        """The state after these visits, oldest first."""
        state = cls(selector, explore=selector.start if isinstance(selector, Greso) else Explore())
        for visit in seen:
            while state.step < visit.step:
                state.close_step()
            state.observe(visit)
        return state

    def history(self, prompt_id: str) -> History:
        return self.histories.get(prompt_id, History())

    def observe(self, seen: Seen) -> None:
        """Takes in one visit, with the rewards of its group if there is one."""
        if seen.round != self.round:
            self.round, self.round_kinds = seen.round, Counter()
        past = self.history(seen.prompt_id)
        kinds = past.kinds_N
        if seen.rewards_G is not None:
            kinds = (*kinds, self._count(seen.rewards_G))
        self.histories[seen.prompt_id] = History(past.visits + 1, kinds)
        self.epochs[seen.prompt_id] = seen.epoch
        self.epoch = max(self.epoch, seen.epoch)
        self.tally = self.tally._replace(epoch=self.epoch)

    def _count(self, rewards_G: tuple[float, ...]) -> GroupKind:
        exact = kind_of(rewards_G)
        self.tally = self.tally._replace(
            easy=self.tally.easy + (exact is GroupKind.EASY),
            hard=self.tally.hard + (exact is GroupKind.HARD),
            total=self.tally.total + (exact is not GroupKind.UNSCORED),
        )
        self.informative += exact is GroupKind.INFORMATIVE
        self.round_kinds[exact] += 1
        match self.selector:
            case Greso(zero_variance=definition):
                return kind_of(rewards_G, definition)
            case _:
                return exact

    def close_step(self) -> None:
        """Ends the training step: the controllers move, the counters start anew."""
        match self.selector:
            case Greso() as g:
                easy = Controller(g.target_easy, g.step, g.lowest, g.highest)
                hard = Controller(g.target_hard, g.step, g.lowest, g.highest)
                self.explore = steer(self.explore, self.tally, easy, hard)
            case Everything():
                pass
            case _:
                assert_never(self.selector)
        self.step += 1
        self.tally = StepTally(epoch=self.epoch)
        self.informative = 0
        self.round_kinds = Counter()


def plan_round(
    prompt_ids: Collection[str], state: RunState, *, size: int, seed: int, through_epoch: int | None = None
) -> list[Visit]:
    """The next visits of a run: up to `size` sampled ones with the skips between them, in order.

    Ends early when a full pass's worth of prompts was considered, before a prompt that is already sampled here, and
    at the end of pass `through_epoch`.
    """
    visits: list[Visit] = []
    sampled: set[str] = set()
    # Within a round the state does not move, but skips of this round are visits all the same.
    considered: dict[str, int] = {}
    for prompt_id, epoch in _upcoming(prompt_ids, state, seed):
        if len(sampled) == size or len(visits) == len(prompt_ids) or prompt_id in sampled:
            break
        if through_epoch is not None and epoch > through_epoch:
            break
        past = state.history(prompt_id)
        past = replace(past, visits=past.visits + considered.get(prompt_id, 0))
        decision = choose(state.selector, prompt_id, past, state.explore, seed=seed)
        visits.append(Visit(prompt_id, past.visits, epoch, decision))
        considered[prompt_id] = considered.get(prompt_id, 0) + 1
        if not decision.action.is_skip:
            sampled.add(prompt_id)
    return visits


def choose(selector: Everything | Greso, prompt_id: str, history: History, explore: Explore, *, seed: int) -> Decision:
    match selector:
        case Everything():
            return Decision(Action.SAMPLED, 1.0, "every prompt is sampled")
        case Greso(floor=floor):
            return decide(prompt_id, history, explore, seed=seed, floor=floor)
        case _:
            assert_never(selector)


def by_name(prompt_ids: Iterable[str], state: RunState) -> list[Visit]:
    """Visits of prompts that were asked for by name: sampled whatever the selector thinks."""
    reason = Decision(Action.SAMPLED, 1.0, "asked for by name")
    return [Visit(p, state.history(p).visits, state.epoch, reason) for p in prompt_ids]


def _upcoming(prompt_ids: Collection[str], state: RunState, seed: int) -> Iterator[tuple[str, int]]:
    """(prompt, epoch): what is left of the current pass, then the next one whole."""
    left = [p for p in prompt_ids if state.epochs.get(p, -1) < state.epoch]
    for epoch, ids in ((state.epoch, left), (state.epoch + 1, prompt_ids)):
        for prompt_id in sorted(ids, key=lambda p: digest(seed, "order", epoch, p)):
            yield prompt_id, epoch


def next_epoch(prompt_ids: Iterable[str], state: RunState) -> int:
    """The pass that the next visit belongs to."""
    return state.epoch + all(state.epochs.get(p, -1) == state.epoch for p in prompt_ids)


def round_size(batch: Batch, state: RunState, *, wanted: int, group_size: int) -> int:
    """Prompts to sample next, when the current step is to hold `wanted` informative groups."""
    rolled_out = state.round_kinds.total()
    if not batch.adaptive or not rolled_out:
        return batch.prompts
    wasted = 1.0 - state.round_kinds[GroupKind.INFORMATIVE] / rolled_out
    missing = max(0, wanted - state.informative) * group_size
    return adaptive_round(
        missing, wasted, group_size=group_size, default=batch.prompts, floor=min(batch.least, batch.prompts)
    ).prompts
