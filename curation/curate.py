"""From stored groups to the rows of a dataset, by a recipe.

- Rows come in the order of (prompt, run, visit), whatever order the groups came in.
- Every group that gives no row is counted under the reason, and every row that is left out again, too; nothing is
  dropped without a trace.
- A rollout that was not scored never enters a row.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum, auto
from typing import assert_never

from curation import pairs as rules
from curation import pods
from curation.cuts import Cut, cut
from curation.keys import rng_for
from curation.pairs import IndexPair, Scored
from curation.recipe import (
    AdvantagesOver,
    AllRightWithWrong,
    BestAndWorst,
    BestWithRandom,
    BestWithWorst,
    FirstRightFirstWrong,
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
from curation.records import Group, GroupKind, Outcome, Pair, Picked, Row, kind_of


class Dropped(StrEnum):
    """Why a group gave no row."""

    OTHER_POLICY_VERSION = auto()
    OTHER_VERIFIER = auto()
    """It has no verdicts of the verifier that the recipe names."""
    CONTAMINATED = auto()
    """Its prompt shares a run of words with an evaluation set."""
    UNSCORED = auto()
    EASY = auto()
    HARD = auto()
    NO_PAIR = auto()
    """Informative, but the pair rule, the margin or the down-sampling left no chosen and rejected side."""
    NONE_RIGHT = auto()
    """Some rewards, but none of a right completion."""
    NEITHER = auto()
    """Some rewards, but none of a right or a wrong completion."""


class Split(StrEnum):
    TRAIN = auto()
    TEST = auto()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A group that gave no row, or a row that was left out again."""

    group: Group
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


def nothing(_: str) -> bool:
    return False


def curate(groups: Iterable[Group], recipe: Recipe, is_contaminated: Callable[[str], bool] = nothing) -> Curated:
    """The rows of the groups, and what became of the rest. `is_contaminated` is asked of a prompt's text.

    Of `Shape.PROMPTS` the rows are the groups that count for each prompt.
    """
    left_out: list[LeftOut] = []
    found: list[Row] = []
    ordered = sorted(groups, key=lambda g: (g.prompt.id, g.run, g.visit, g.id))
    for group in ordered:
        result = Dropped.CONTAMINATED if is_contaminated(group.prompt.text) else of_group(group, recipe)
        if isinstance(result, Dropped):
            left_out.append(LeftOut(group, (), result, _why(result, group, recipe)))
        else:
            found += result
    kept, cuts = cut(found, recipe)
    left_out += [LeftOut(row.group, row.indices, reason, detail) for row, reason, detail in cuts]
    return Curated(kept, left_out, len(ordered))


def _why(reason: Dropped, group: Group, recipe: Recipe) -> str:
    match reason:
        case Dropped.OTHER_POLICY_VERSION:
            return f"policy version {group.policy_version}"
        case Dropped.OTHER_VERIFIER:
            return f"judged by {group.rollouts_G[0].verdict.verifier}"
        case Dropped.CONTAMINATED:
            return "shares a run of words with a set to keep away from"
        case Dropped.UNSCORED:
            return f"none of {len(group.rollouts_G)} rollouts has a reward and is let in"
        case _:
            return "rewards " + " ".join(f"{scored.reward:g}" for scored in eligible(group, recipe))


def of_group(group: Group, recipe: Recipe) -> Sequence[Row] | Dropped:
    """At least one row, or the reason why there is none."""
    return pairs_of(group, recipe) if recipe.shape is Shape.PAIRS else picked_of(group, recipe)


def pairs_of(group: Group, recipe: Recipe) -> list[Pair] | Dropped:
    """At least one pair, or the reason why there is none."""
    if reason := _left_out(group, recipe):
        return reason
    scored_G = eligible(group, recipe)
    if reason := _teaches_nothing(scored_G):
        return reason
    kept_G = down_sample(scored_G, group.id, recipe)
    return [Pair(group, *pair) for pair in _pair(kept_G, group.id, recipe)] or Dropped.NO_PAIR


def picked_of(group: Group, recipe: Recipe) -> list[Picked] | Dropped:
    """The rows of a shape other than pairs, or the reason why there are none."""
    if reason := _left_out(group, recipe):
        return reason
    scored_G = eligible(group, recipe)
    if not scored_G:
        return Dropped.UNSCORED
    match recipe.shape:
        case Shape.LABELLED:
            kept_G = down_sample(scored_G, group.id, recipe)
            either = sorted(s.slot for s in [*rules.right(kept_G), *rules.wrong(kept_G)])
            return [Picked(group, (slot,)) for slot in either] or Dropped.NEITHER
        case Shape.RIGHT:
            right = rules.right(down_sample(scored_G, group.id, recipe))
            return [Picked(group, (s.slot,)) for s in right] or Dropped.NONE_RIGHT
        case Shape.GROUPS:
            if reason := _teaches_nothing(scored_G):
                return reason
            kept_G = down_sample(scored_G, group.id, recipe)
            if _teaches_nothing(kept_G):
                return Dropped.NO_PAIR
            return [Picked(group, tuple(s.slot for s in kept_G))]
        case Shape.PROMPTS:
            return [Picked(group, tuple(s.slot for s in scored_G))]
        case Shape.PAIRS:
            raise ValueError("pairs come from pairs_of")
        case _:
            assert_never(recipe.shape)


def advantages_of(row: Picked, recipe: Recipe) -> list[float]:
    """One for each rollout of the row."""
    scored_G = eligible(row.group, recipe)
    reward_of = {s.slot: s.reward for s in scored_G}
    kept = [reward_of[slot] for slot in row.indices]
    if recipe.advantages_over is AdvantagesOver.KEPT:
        return pods.advantages(kept)
    of_slot = dict(zip(reward_of, pods.advantages(list(reward_of.values())), strict=True))
    return [of_slot[slot] for slot in row.indices]


def _left_out(group: Group, recipe: Recipe) -> Dropped | None:
    if recipe.policy_versions is not None:
        first, last = recipe.policy_versions
        if not first <= group.policy_version <= last:
            return Dropped.OTHER_POLICY_VERSION
    if recipe.verifier is not None and any(r.verdict.verifier != recipe.verifier for r in group.rollouts_G):
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


def eligible(group: Group, recipe: Recipe) -> list[Scored]:
    """The scored rollouts that the recipe lets in, in sampling order."""
    return [
        Scored(index, rollout.reward, len(rollout.text))
        for index, rollout in enumerate(group.rollouts_G)
        if rollout.reward is not None
        and (recipe.truncated or not rollout.truncated)
        and (recipe.no_answer_is_wrong or rollout.verdict.outcome is not Outcome.NO_ANSWER)
    ]


def down_sample(scored_G: Sequence[Scored], group_id: str, recipe: Recipe) -> list[Scored]:
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


def _pair(scored_G: Sequence[Scored], group_id: str, recipe: Recipe) -> list[IndexPair]:
    rule = recipe.pairs
    rng = rng_for(recipe.seed, "pairs", group_id)
    match rule:
        case FirstRightFirstWrong():
            return rules.first_right_first_wrong(scored_G)
        case OneRandomPair():
            return rules.one_random_pair(scored_G, rng)
        case BestWithWorst(margin=margin, length_penalty=penalty):
            return rules.best_with_worst(scored_G, margin, penalty)
        case BestWithRandom(margin=margin):
            return rules.best_with_random(scored_G, rng, margin)
        case AllRightWithWrong():
            return rules.all_right_with_wrong(scored_G)
        case KRandomPairs(k=k):
            return rules.k_random_pairs(scored_G, k, rng)
        case _:
            assert_never(rule)


def split_of(prompt_id: str, recipe: Recipe) -> Split:
    """Which split all rows of this prompt go to."""
    return Split.TEST if split_draw(prompt_id, recipe) < recipe.test_share else Split.TRAIN


def split_draw(prompt_id: str, recipe: Recipe) -> float:
    return rng_for(recipe.seed, "split", prompt_id).random()
