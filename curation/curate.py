"""From stored groups to the rows of a dataset, by a recipe.

- Rows come in the order of (prompt, run, visit), whatever order the groups came in.
- Groups come without their texts and are let go one by one: what stays is what a row needs.
- Every group that gives no row is counted under the reason, and every row that is left out again, too; nothing is
  dropped without a trace.
- A rollout that was not scored never enters a row.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum, auto
from operator import attrgetter
from typing import assert_never

from curation import pairs as rules
from curation import pods
from curation.cuts import Cut, cut, cut_alone
from curation.judged import JudgedGroup, Origin, Row, row_of
from curation.keys import rng_for
from curation.pairs import IndexPair, Scored
from curation.recipe import (
    AdvantagesOver,
    AllRightWithWrong,
    BestAndWorst,
    BestWithRandom,
    BestWithWorst,
    FirstRightFirstWrong,
    GroupRule,
    KeepAll,
    KRandomPairs,
    MaxReward,
    MaxVariance,
    OneRandomPair,
    Quantiles,
    RandomSubset,
    Recipe,
    Shape,
)
from curation.records import GroupKind, Outcome, kind_of


class Dropped(StrEnum):
    """Why a group gave no row."""

    OTHER_POLICY_VERSION = auto()
    OTHER_VERIFIER = auto()
    """It has no verdicts of the verifier that the recipe names."""
    NO_TEXT = auto()
    """It would give rows, but its run kept the numbers of such groups only."""
    CONTAMINATED = auto()
    """Its prompt shares a run of words with an evaluation set."""
    UNSCORED = auto()
    EASY = auto()
    HARD = auto()
    NO_PAIR = auto()
    """Informative, but the pair rule, the margin or the down-sampling left no chosen and rejected side."""
    NONE_RIGHT = auto()
    """Some rewards, but none of a right completion."""


class Split(StrEnum):
    TRAIN = auto()
    TEST = auto()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A group that gave no row, or a row that was left out again."""

    origin: Origin
    indices: tuple[int, ...]
    """Of the row's rollouts; empty for a group."""
    reason: Dropped | Cut
    detail: str
    """The numbers behind the reason."""


@dataclass(frozen=True, slots=True)
class Curated:
    rows: list[Row]
    left_out: list[LeftOut]
    groups: int

    @property
    def dropped(self) -> Counter[Dropped]:
        """Groups that gave no row, by reason."""
        return Counter(one.reason for one in self.left_out if isinstance(one.reason, Dropped))

    @property
    def cut(self) -> Counter[Cut]:
        """Rows that were left out again, by reason."""
        return Counter(one.reason for one in self.left_out if isinstance(one.reason, Cut))


def curate(groups: Iterable[JudgedGroup], recipe: Recipe, contaminated: Collection[str] = ()) -> Curated:
    """The rows of the groups, and what became of the rest. `contaminated` holds the ids of prompts to keep away from.

    Of `Shape.PROMPTS` the rows are the groups that count for each prompt.
    """
    left_out: list[LeftOut] = []
    found: list[Row] = []
    count = 0
    for group in groups:
        count += 1
        result = Dropped.CONTAMINATED if group.origin.prompt_id in contaminated else of_group(group, recipe)
        if isinstance(result, Dropped):
            left_out.append(LeftOut(group.origin, (), result, _why(result, group, recipe)))
        else:
            found += result
    # Stable: the rows of a group stay in the order of its rule.
    by_origin = attrgetter("origin")
    found.sort(key=by_origin)
    left_out.sort(key=by_origin)
    kept, cuts = cut(found, recipe)
    left_out += [LeftOut(row.origin, row.indices, reason, detail) for row, reason, detail in cuts]
    return Curated(kept, left_out, count)


def _why(reason: Dropped, group: JudgedGroup, recipe: GroupRule) -> str:
    match reason:
        case Dropped.OTHER_POLICY_VERSION:
            return f"policy version {group.origin.policy_version}"
        case Dropped.OTHER_VERIFIER:
            return f"judged by {group.origin.verifier}"
        case Dropped.CONTAMINATED:
            return "shares a run of words with a set to keep away from"
        case Dropped.NO_TEXT:
            return "the run retains informative groups"
        case Dropped.UNSCORED:
            return f"none of {len(group.rewards_G)} rollouts has a reward and is let in"
        case _:
            return "rewards " + " ".join(f"{scored.reward:g}" for scored in eligible(group, recipe))


def of_group(group: JudgedGroup, recipe: GroupRule) -> list[Row] | Dropped:
    """At least one row, or the reason why there is none."""
    if reason := _left_out(group, recipe):
        return reason
    found = _rows(group, recipe)
    # Of all shapes only prompts need no text.
    return found if isinstance(found, Dropped) or group.has_text or recipe.shape is Shape.PROMPTS else Dropped.NO_TEXT


def rows_alone(group: JudgedGroup, recipe: GroupRule) -> list[Row]:
    """The rows that a dataset would hold of the group, whatever other groups there are; maybe none."""
    found = of_group(group, recipe)
    return [] if isinstance(found, Dropped) else cut_alone(found, recipe)[0]


def _rows(group: JudgedGroup, recipe: GroupRule) -> list[Row] | Dropped:
    scored_G = eligible(group, recipe)
    match recipe.shape:
        case Shape.PROMPTS:
            return [row_of(group, _slots(scored_G))] if scored_G else Dropped.UNSCORED
        case Shape.GROUPS if recipe.zero_variance:
            kept_G = down_sample(scored_G, group.origin.group_id, recipe)
            return [_whole(group, kept_G, scored_G, recipe)] if scored_G else Dropped.UNSCORED
        case Shape.PAIRS | Shape.GROUPS:
            return _teaches_nothing(scored_G) or _contrasts(group, scored_G, recipe) or Dropped.NO_PAIR
        case Shape.LABELLED | Shape.RIGHT:
            return _singles(group, scored_G, recipe) if scored_G else Dropped.UNSCORED
        case _:
            assert_never(recipe.shape)


def _contrasts(group: JudgedGroup, scored_G: Sequence[Scored], recipe: GroupRule) -> list[Row]:
    """Rows that hold different rewards; none where down-sampling or the rule left no difference."""
    kept_G = down_sample(scored_G, group.origin.group_id, recipe)
    if recipe.shape is Shape.PAIRS:
        return [row_of(group, pair) for pair in _pair(kept_G, group.origin.group_id, recipe)]
    return [] if _teaches_nothing(kept_G) else [_whole(group, kept_G, scored_G, recipe)]


def _whole(group: JudgedGroup, kept_G: Sequence[Scored], scored_G: Sequence[Scored], recipe: GroupRule) -> Row:
    """Everything that is kept of the group as one row."""
    return row_of(group, _slots(kept_G), _advantages(kept_G, scored_G, recipe))


def _singles(group: JudgedGroup, scored_G: Sequence[Scored], recipe: GroupRule) -> list[Row] | Dropped:
    """A row for each kept rollout, or each that is right."""
    kept_G = down_sample(scored_G, group.origin.group_id, recipe)
    if recipe.shape is Shape.RIGHT:
        return [row_of(group, (s.slot,)) for s in rules.right(kept_G)] or Dropped.NONE_RIGHT
    return [row_of(group, (s.slot,)) for s in kept_G]


def _slots(scored_G: Sequence[Scored]) -> list[int]:
    return [scored.slot for scored in scored_G]


def _advantages(kept_G: Sequence[Scored], scored_G: Sequence[Scored], recipe: GroupRule) -> list[float]:
    """One for each kept rollout."""
    if recipe.advantages_over is AdvantagesOver.KEPT:
        return pods.advantages([s.reward for s in kept_G])
    of_slot = dict(zip(_slots(scored_G), pods.advantages([s.reward for s in scored_G]), strict=True))
    return [of_slot[s.slot] for s in kept_G]


def _left_out(group: JudgedGroup, recipe: GroupRule) -> Dropped | None:
    if recipe.policy_versions is not None:
        first, last = recipe.policy_versions
        if not first <= group.origin.policy_version <= last:
            return Dropped.OTHER_POLICY_VERSION
    if recipe.verifier not in {None, group.origin.verifier}:
        return Dropped.OTHER_VERIFIER
    return None


def _teaches_nothing(scored_G: Sequence[Scored]) -> Dropped | None:
    match kind_of([s.reward for s in scored_G]):
        case GroupKind.UNSCORED:
            return Dropped.UNSCORED
        case GroupKind.EASY:
            return Dropped.EASY
        case GroupKind.HARD:
            return Dropped.HARD
        case GroupKind.INFORMATIVE:
            return None


def eligible(group: JudgedGroup, recipe: GroupRule) -> list[Scored]:
    """The scored rollouts that the recipe lets in, in sampling order."""
    columns = zip(group.rewards_G, group.outcomes_G, group.truncated_G, group.characters_G, strict=True)
    return [
        Scored(slot, reward, length)
        for slot, (reward, outcome, truncated, length) in enumerate(columns)
        if reward is not None
        and (recipe.truncated or not truncated)
        and (recipe.no_answer_is_wrong or outcome is not Outcome.NO_ANSWER)
    ]


def down_sample(scored_G: Sequence[Scored], group_id: str, recipe: GroupRule) -> list[Scored]:
    """The rollouts that are kept; a group that is not larger than `keep` is kept whole."""
    choice = recipe.down_sampling
    if isinstance(choice, KeepAll) or choice.keep >= len(scored_G):
        return list(scored_G)
    rewards_G = [s.reward for s in scored_G]
    match choice:
        case MaxVariance(keep=keep, draw_among_equals=False):
            kept = pods.max_variance(rewards_G, keep)
        case MaxVariance(keep=keep):
            order = rng_for(recipe.seed, "equals", group_id).sample(range(len(rewards_G)), len(rewards_G))
            kept = sorted(order[i] for i in pods.max_variance([rewards_G[i] for i in order], keep))
        case MaxReward(keep=keep):
            kept = pods.max_reward(rewards_G, keep)
        case BestAndWorst(keep=keep):
            kept = pods.best_and_worst(rewards_G, keep)
        case Quantiles(keep=keep):
            kept = pods.quantiles(rewards_G, keep)
        case RandomSubset(keep=keep):
            kept = pods.random_subset(rewards_G, keep, rng_for(recipe.seed, "down-sampling", group_id))
        case _:
            assert_never(choice)
    return [scored_G[i] for i in kept]


def _pair(scored_G: Sequence[Scored], group_id: str, recipe: GroupRule) -> list[IndexPair]:
    rule = recipe.pairs
    match rule:
        case FirstRightFirstWrong():
            return rules.first_right_first_wrong(scored_G)
        case BestWithWorst(margin=margin, length_penalty=penalty):
            return rules.best_with_worst(scored_G, margin, penalty)
        case AllRightWithWrong():
            return rules.all_right_with_wrong(scored_G)
    rng = rng_for(recipe.seed, "pairs", group_id)
    match rule:
        case OneRandomPair():
            return rules.one_random_pair(scored_G, rng)
        case BestWithRandom(margin=margin):
            return rules.best_with_random(scored_G, rng, margin)
        case KRandomPairs(k=k):
            return rules.k_random_pairs(scored_G, k, rng)
        case _:
            assert_never(rule)


def split_of(prompt_id: str, recipe: Recipe) -> Split:
    """Which split all rows of this prompt go to."""
    return Split.TEST if split_draw(prompt_id, recipe) < recipe.test_share else Split.TRAIN


def split_draw(prompt_id: str, recipe: Recipe) -> float:
    return rng_for(recipe.seed, "split", prompt_id).random()
