"""What a recipe leaves out after its rule has made rows: limits, duplicates, balance.

- Every row is kept or counted under one reason, the first that applies, in the order of `Cut`.
- Where only some of many may stay, the seed draws them; the draw of a row depends on nothing but the row.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from enum import StrEnum, auto

from curation.keys import digest
from curation.recipe import Recipe
from curation.records import Group, Row

TENTHS = 10


class Cut(StrEnum):
    """Why a row was left out."""

    TOO_LONG = auto()
    LENGTH_RATIO = auto()
    DUPLICATE = auto()
    PER_PROMPT = auto()
    PER_DIFFICULTY = auto()
    LIMIT = auto()


def cut(rows: Sequence[Row], recipe: Recipe) -> tuple[list[Row], Counter[Cut]]:
    """The rows that stay, in their order, and what became of the others."""
    kept = list(rows)
    reasons: Counter[Cut] = Counter()
    for reason, stays in (
        (Cut.TOO_LONG, _short_enough),
        (Cut.LENGTH_RATIO, _even_enough),
        (Cut.DUPLICATE, _first_of_their_kind),
        (Cut.PER_PROMPT, _few_of_a_prompt),
        (Cut.PER_DIFFICULTY, _few_of_a_difficulty),
        (Cut.LIMIT, _few_at_all),
    ):
        left = stays(kept, recipe)
        if len(left) < len(kept):
            reasons[reason] = len(kept) - len(left)
        kept = left
    return kept, reasons


def length_of(group: Group, index: int) -> int:
    """Tokens of a completion; where they were not recorded its bytes, of which there are at least as many."""
    completion = group.rollouts_G[index].completion
    return len(completion.token_ids_T) or len(completion.text.encode())


def _short_enough(rows: list[Row], recipe: Recipe) -> list[Row]:
    limit = recipe.max_tokens
    if limit is None:
        return rows
    return [row for row in rows if all(length_of(row.group, i) <= limit for i in row.indices)]


def _even_enough(rows: list[Row], recipe: Recipe) -> list[Row]:
    limit = recipe.max_length_ratio
    if limit is None:
        return rows
    return [row for row in rows if _ratio([len(row.group.rollouts_G[i].text) for i in row.indices]) <= limit]


def _ratio(lengths: Sequence[int]) -> float:
    return max(lengths) / max(1, min(lengths))


def _first_of_their_kind(rows: list[Row], recipe: Recipe) -> list[Row]:
    """Of rows with the same texts that of the newest policy version, among those the first."""
    if not recipe.unique:
        return rows
    newest: dict[Hashable, int] = {}
    for place in sorted(range(len(rows)), key=lambda i: (-rows[i].group.policy_version, i)):
        newest.setdefault(_texts(rows[place]), place)
    return [rows[place] for place in sorted(newest.values())]


def _texts(row: Row) -> Hashable:
    return row.group.prompt.text, tuple(row.group.rollouts_G[i].text for i in row.indices)


def _few_of_a_prompt(rows: list[Row], recipe: Recipe) -> list[Row]:
    return _few_of_each(rows, recipe.per_prompt, lambda row: row.group.prompt.id, recipe.seed)


def _few_of_a_difficulty(rows: list[Row], recipe: Recipe) -> list[Row]:
    return _few_of_each(rows, recipe.per_difficulty, lambda row: tenth_of(row.group), recipe.seed)


def tenth_of(group: Group) -> int:
    """Which tenth of the pass rates, from 0, the group lies in; the last includes 1."""
    rewards_G = group.rewards_G
    return min(int(TENTHS * sum(rewards_G) / len(rewards_G)), TENTHS - 1) if rewards_G else 0


def _few_at_all(rows: list[Row], recipe: Recipe) -> list[Row]:
    return _few_of_each(rows, recipe.max_pairs, lambda _: None, recipe.seed)


def _few_of_each(rows: list[Row], limit: int | None, class_of: Callable[[Row], Hashable], seed: int) -> list[Row]:
    if limit is None:
        return rows
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[class_of(row)].append(place)
    drawn = (_drawn(rows, some, limit, seed) for some in places.values())
    return [rows[place] for place in sorted(place for some in drawn for place in some)]


def _drawn(rows: Sequence[Row], places: Sequence[int], limit: int, seed: int) -> Iterable[int]:
    if len(places) <= limit:
        return places
    return sorted(places, key=lambda place: draw_of(rows[place], seed))[:limit]


def draw_of(row: Row, seed: int) -> str:
    """The row's lot: the lowest stay."""
    return digest(seed, "limit", row.group.id, *row.indices)
