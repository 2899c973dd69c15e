"""What a recipe leaves out after its rule has made rows: limits, duplicates, balance.

- Every row is kept or counted under one reason, the first that applies, in the order of `Cut`.
- Where only some of many may stay, the seed draws them. A row has a lot of its own for each limit: with one for all,
  the survivors of crowded prompts would win every later draw.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from enum import StrEnum, auto

from curation.judged import Row
from curation.keys import digest
from curation.recipe import GroupRule, Recipe, Shape

TENTHS = 10


class Cut(StrEnum):
    """Why a row was left out."""

    NEITHER = auto()
    """A completion to be labelled that is neither right nor wrong."""
    TOO_LONG = auto()
    LENGTH_RATIO = auto()
    DUPLICATE = auto()
    PER_PROMPT = auto()
    PER_DIFFICULTY = auto()
    LIMIT = auto()


LeftOutRows = list[tuple[Row, Cut, str]]
"""Each with its reason and the numbers behind it."""
Faults = dict[int, str]
"""What speaks against a row, by its place."""


def cut(rows: Sequence[Row], recipe: Recipe) -> tuple[list[Row], LeftOutRows]:
    """The rows that stay, in their order; and those that do not."""
    kept, left_out = cut_alone(rows, recipe)
    for reason, fates in (
        (Cut.DUPLICATE, _duplicate),
        (Cut.PER_PROMPT, _over_per_prompt),
        (Cut.PER_DIFFICULTY, _over_per_difficulty),
        (Cut.LIMIT, _over_limit),
    ):
        kept, cuts = _parted(kept, reason, fates(kept, recipe))
        left_out += cuts
    return kept, left_out


def cut_alone(rows: Sequence[Row], recipe: GroupRule) -> tuple[list[Row], LeftOutRows]:
    """The same by the limits that look at one row only."""
    kept, left_out = list(rows), LeftOutRows()
    for reason, fates in ((Cut.NEITHER, _neither), (Cut.TOO_LONG, _too_long), (Cut.LENGTH_RATIO, _uneven)):
        kept, cuts = _parted(kept, reason, fates(kept, recipe))
        left_out += cuts
    return kept, left_out


def _parted(rows: list[Row], reason: Cut, faults: Faults) -> tuple[list[Row], LeftOutRows]:
    kept = [row for place, row in enumerate(rows) if place not in faults]
    return kept, [(row, reason, faults[place]) for place, row in enumerate(rows) if place in faults]


def _neither(rows: list[Row], recipe: GroupRule) -> Faults:
    if recipe.shape is not Shape.LABELLED:
        return {}
    return {place: f"reward {row.rewards[0]:g}" for place, row in enumerate(rows) if 0.0 < row.rewards[0] < 1.0}


def _too_long(rows: list[Row], recipe: GroupRule) -> Faults:
    limit = recipe.max_tokens
    if limit is None:
        return {}
    longest = [row.longest for row in rows]
    return {place: f"{length} tokens, at most {limit}" for place, length in enumerate(longest) if length > limit}


def _uneven(rows: list[Row], recipe: GroupRule) -> Faults:
    limit = recipe.max_length_ratio
    if limit is None:
        return {}
    ratios = [max(row.characters) / max(1, min(row.characters)) for row in rows]
    return {place: f"ratio {ratio:.2f}, at most {limit:g}" for place, ratio in enumerate(ratios) if ratio > limit}


def _duplicate(rows: list[Row], recipe: Recipe) -> Faults:
    """Of rows with the same texts that of the newest policy version stays, among those the first."""
    if not recipe.unique:
        return {}
    first: dict[Hashable, int] = {}
    for place in sorted(range(len(rows)), key=lambda i: (-rows[i].origin.policy_version, i)):
        first.setdefault(rows[place].digests, place)
    stays = {place: first[row.digests] for place, row in enumerate(rows)}
    return {place: f"as in {rows[kept].origin.group_id}" for place, kept in stays.items() if place != kept}


def _over_per_prompt(rows: list[Row], recipe: Recipe) -> Faults:
    return _too_many(rows, recipe.per_prompt, lambda row: row.origin.prompt_id, "of this prompt", recipe.seed)


def _over_per_difficulty(rows: list[Row], recipe: Recipe) -> Faults:
    told = "of this tenth of pass rate"
    return _too_many(rows, recipe.per_difficulty, tenth_of, told, recipe.seed)


def tenth_of(row: Row) -> int:
    """Which tenth of the pass rates, from 0, its group lies in; the last includes 1."""
    return min(int(TENTHS * row.pass_rate), TENTHS - 1)


def _over_limit(rows: list[Row], recipe: Recipe) -> Faults:
    return _too_many(rows, recipe.max_pairs, lambda _: None, "limit", recipe.seed)


def _too_many(rows: list[Row], limit: int | None, class_of: Callable[[Row], Hashable], told: str, seed: int) -> Faults:
    """The rows of each class that the seed does not draw; `told` names the class, and its lots."""
    if limit is None:
        return {}
    classes: dict[Hashable, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        classes[class_of(row)].append(place)
    faults: Faults = {}
    for places in classes.values():
        if len(places) > limit:
            by_lot = sorted(places, key=lambda place: _lot(rows[place], told, seed))
            for rank, place in enumerate(by_lot[limit:], start=limit + 1):
                faults[place] = f"its lot is number {rank} of {len(places)} ({told}); {limit} stay"
    return faults


def _lot(row: Row, told: str, seed: int) -> str:
    return digest(seed, told, row.origin.group_id, *row.indices)
