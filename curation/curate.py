"""From stored groups to the rows of a dataset, by a recipe.

- Rows come in the order of (prompt, run, visit), whatever order the groups came in.
- Every group that gives no pair is counted under the reason; nothing is dropped without a trace.
- A rollout that was not scored never enters a pair.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum, auto
from typing import assert_never

from curation import pairs as rules
from curation import pods
from curation.keys import digest, rng_for
from curation.pairs import IndexPair, Scored
from curation.recipe import (
    AllRightWithWrong,
    BestAndWorst,
    BestWithWorst,
    FirstRightFirstWrong,
    KeepAll,
    KRandomPairs,
    MaxReward,
    MaxVariance,
    OneRandomPair,
    RandomSubset,
    Recipe,
)
from curation.records import Group, GroupKind, Outcome, Pair, kind_of


class Dropped(StrEnum):
    """Why a group gave no pair."""

    OTHER_POLICY_VERSION = auto()
    OTHER_VERIFIER = auto()
    """It has no verdicts of the verifier that the recipe names."""
    UNSCORED = auto()
    EASY = auto()
    HARD = auto()
    NO_PAIR = auto()
    """Informative, but the pair rule, the margin or the down-sampling left no chosen and rejected side."""


class Split(StrEnum):
    TRAIN = auto()
    TEST = auto()


@dataclass(frozen=True, slots=True)
class Curated:
    pairs: list[Pair]
    groups: int
    dropped: Counter[Dropped]
    """Groups that gave no pair, by reason."""
    pairs_over_limit: int
    """Pairs that `max_pairs` left out."""


def curate(groups: Iterable[Group], recipe: Recipe) -> Curated:
    """The pairs of the groups, and what became of the rest."""
    dropped: Counter[Dropped] = Counter()
    found: list[Pair] = []
    ordered = sorted(groups, key=lambda g: (g.prompt.id, g.run, g.visit, g.id))
    for group in ordered:
        result = pairs_of(group, recipe)
        if isinstance(result, Dropped):
            dropped[result] += 1
        else:
            found += result
    kept = _limit(found, recipe)
    return Curated(kept, len(ordered), dropped, len(found) - len(kept))


def pairs_of(group: Group, recipe: Recipe) -> list[Pair] | Dropped:
    """At least one pair, or the reason why there is none."""
    if recipe.policy_versions is not None:
        first, last = recipe.policy_versions
        if not first <= group.policy_version <= last:
            return Dropped.OTHER_POLICY_VERSION
    if recipe.verifier is not None and any(r.verdict.verifier != recipe.verifier for r in group.rollouts_G):
        return Dropped.OTHER_VERIFIER
    scored_G = eligible(group, recipe)
    match kind_of([s.reward for s in scored_G]):
        case GroupKind.UNSCORED:
            return Dropped.UNSCORED
        case GroupKind.EASY:
            return Dropped.EASY
        case GroupKind.HARD:
            return Dropped.HARD
        case GroupKind.INFORMATIVE:
            kept_G = down_sample(scored_G, group.id, recipe)
            return [Pair(group, *pair) for pair in _pair(kept_G, group.id, recipe)] or Dropped.NO_PAIR


def eligible(group: Group, recipe: Recipe) -> list[Scored]:
    """The scored rollouts that the recipe lets in, in sampling order."""
    return [
        Scored(index, rollout.reward)
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
        case MaxVariance(keep=keep):
            kept = pods.max_variance(rewards_G, keep)
        case MaxReward(keep=keep):
            kept = pods.max_reward(rewards_G, keep)
        case BestAndWorst(keep=keep):
            kept = pods.best_and_worst(rewards_G, keep)
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
        case BestWithWorst(margin=margin):
            return rules.best_with_worst(scored_G, margin)
        case AllRightWithWrong():
            return rules.all_right_with_wrong(scored_G)
        case KRandomPairs(k=k):
            return rules.k_random_pairs(scored_G, k, rng)
        case _:
            assert_never(rule)


def _limit(found: list[Pair], recipe: Recipe) -> list[Pair]:
    if recipe.max_pairs is None or len(found) <= recipe.max_pairs:
        return found
    drawn = sorted(
        range(len(found)),
        key=lambda i: digest(recipe.seed, "limit", found[i].group.id, found[i].chosen, found[i].rejected),
    )
    return [found[i] for i in sorted(drawn[: recipe.max_pairs])]


def split_of(prompt_id: str, recipe: Recipe) -> Split:
    """Which split all pairs of this prompt go to."""
    return Split.TEST if rng_for(recipe.seed, "split", prompt_id).random() < recipe.test_share else Split.TRAIN
