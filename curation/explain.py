"""Why a group is, or is not, in a dataset: the steps of a recipe on this group, told with their numbers.

The steps are taken by the very functions that make the dataset, so that the explanation cannot differ from it.
"""

from statistics import pvariance

from curation.curate import Dropped, down_sample, eligible, of_group, split_draw, split_of
from curation.judged import JudgedGroup
from curation.pairs import Scored
from curation.recipe import KeepAll, Recipe, Shape
from curation.records import kind_of


def steps(group: JudgedGroup, recipe: Recipe) -> list[str]:
    """One sentence for each step, as far as the group comes. Rollouts are numbered from 0, in sampling order."""
    scored_G = eligible(group, recipe)
    told = [
        f"policy version {group.origin.policy_version}; the recipe takes {_range(recipe)}",
        f"judged by {group.origin.verifier}; the recipe asks for {recipe.verifier or 'the newest'}",
        f"{len(scored_G)} of {len(group.rewards_G)} rollouts are let in{_kept_out(group, scored_G, recipe)}",
        f"rewards {_rewards(scored_G) or 'none'}: {kind_of([s.reward for s in scored_G]).value}",
    ]
    outcome = of_group(group, recipe)
    if isinstance(outcome, Dropped):
        return [*told, f"no row: {outcome.value.replace('_', ' ')}"]
    kept_G = down_sample(scored_G, group.origin.group_id, recipe)
    rows = ", ".join(" with ".join(f"#{i}" for i in row.indices) for row in outcome)
    return [
        *told,
        _down_sampled(kept_G, scored_G, recipe),
        f"{_rule(recipe)}: {rows}",
        f"split drew {split_draw(group.origin.prompt_id, recipe):.4f} against {recipe.test_share:g}: "
        f"{split_of(group.origin.prompt_id, recipe).value}",
    ]


def _range(recipe: Recipe) -> str:
    return "all" if recipe.policy_versions is None else "{} to {}".format(*recipe.policy_versions)


def _kept_out(group: JudgedGroup, scored_G: list[Scored], recipe: Recipe) -> str:
    let_in = {s.slot for s in scored_G}
    out = [f"#{i} {_state(group, i)}" for i in range(len(group.rewards_G)) if i not in let_in]
    return f" (not {', '.join(out)})" if out else ""


def _state(group: JudgedGroup, slot: int) -> str:
    truncated = group.rewards_G[slot] is not None and group.truncated_G[slot]
    return "truncated" if truncated else group.outcomes_G[slot].value


def _rewards(scored_G: list[Scored]) -> str:
    return " ".join(f"{s.reward:g}" for s in scored_G)


def _down_sampled(kept_G: list[Scored], scored_G: list[Scored], recipe: Recipe) -> str:
    choice = recipe.down_sampling
    if isinstance(choice, KeepAll) or len(kept_G) == len(scored_G):
        return f"{choice.kind}: all {len(kept_G)}"
    slots = " ".join(f"#{s.slot}" for s in kept_G)
    before, after = (pvariance([s.reward for s in some]) for some in (scored_G, kept_G))
    return f"{choice.kind} keeps {slots}: variance of the rewards {before:.4g} before, {after:.4g} after"


def _rule(recipe: Recipe) -> str:
    return recipe.pairs.kind if recipe.shape is Shape.PAIRS else recipe.shape.value
