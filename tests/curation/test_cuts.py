"""What a recipe leaves out after its rule: everything is kept or counted, and a draw depends on its row alone."""

from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation import curate as curation
from curation.contamination import Forbidden, runs_of_words, words_of
from curation.curate import Curated, Dropped
from curation.cuts import Cut, cut, tenth_of
from curation.judged import Row
from curation.pods import advantages
from curation.recipe import AllRightWithWrong, MaxReward, MaxVariance, Recipe, Shape
from curation.records import Completion, Group, Rollout
from tests.builders import a_group, a_prompt, a_rollout, judged
from tests.curation.strategies import group_lists, recipes

limits = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": st.integers(1, 8),
        "max_length_ratio": st.floats(1, 3),
        "unique": st.booleans(),
        "per_prompt": st.integers(1, 3),
        "per_difficulty": st.integers(1, 3),
        "max_pairs": st.integers(1, 5),
    },
)


def curate(groups: list[Group], recipe: Recipe, contaminated: Collection[str] = ()) -> Curated:
    return curation.curate(map(judged, groups), recipe, contaminated)


def curated(history: list[Group], **fields: Any) -> Curated:
    return curate(history, Recipe(runs=("run",), pairs=AllRightWithWrong(), **fields))


def names(rows: list[Row]) -> list[tuple[str, tuple[int, ...]]]:
    return [(row.origin.group_id, row.indices) for row in rows]


@given(group_lists(), recipes, limits, st.sampled_from(Shape))
def test_every_row_is_kept_or_counted_and_every_group_gives_rows_or_is_counted(
    history: list[Group], recipe: Recipe, limits: dict[str, Any], shape: Shape
) -> None:
    recipe = recipe.model_copy(update={"shape": shape, "max_pairs": None})  # past the validators, on purpose
    every = curate(history, recipe)
    some = curate(history, recipe.model_copy(update=limits))

    assert len(some.rows) + some.cut.total() == len(every.rows) + every.cut.total()
    assert [row for row in names(every.rows) if row in names(some.rows)] == names(some.rows)
    assert some.dropped == every.dropped
    with_rows = {one.origin for one in every.rows} | {one.origin for one in every.left_out if one.indices}
    assert len(with_rows) + every.dropped.total() == len(history)


@given(group_lists(), recipes, limits)
def test_what_is_kept_obeys_every_limit(history: list[Group], recipe: Recipe, limits: dict[str, Any]) -> None:
    recipe = recipe.model_copy(update=limits)
    rows = curate(history, recipe).rows

    by_id = {group.id: group for group in history}
    groups = [by_id[row.origin.group_id] for row in rows]
    texts = [[group.rollouts_G[i].text for i in row.indices] for group, row in zip(groups, rows, strict=True)]
    assert all(len(t) <= (recipe.max_tokens or 10**9) for sides in texts for t in sides)
    ratio = recipe.max_length_ratio or 10**9
    assert all(max(map(len, sides)) <= ratio * max(1, min(map(len, sides))) for sides in texts)
    assert max(Counter(row.origin.prompt_id for row in rows).values(), default=0) <= (recipe.per_prompt or 10**9)
    assert max(Counter(tenth_of(row) for row in rows).values(), default=0) <= (recipe.per_difficulty or 10**9)
    if recipe.unique:
        known = [(group.prompt.text, *sides) for group, sides in zip(groups, texts, strict=True)]
        assert len(set(known)) == len(known)


@given(group_lists(), recipes, limits)
def test_a_second_cut_leaves_out_nothing(history: list[Group], recipe: Recipe, limits: dict[str, Any]) -> None:
    recipe = recipe.model_copy(update=limits)
    rows = curate(history, recipe).rows

    assert cut(rows, recipe) == (rows, [])


def test_a_duplicate_stays_where_the_policy_is_newest() -> None:
    old, new = (a_group(1.0, 0.0, visit=version, policy_version=version) for version in (1, 2))

    kept = curated([old, new], unique=True)

    assert names(kept.rows) == [(new.id, (0, 1))]
    assert kept.cut == {Cut.DUPLICATE: 1}


def test_the_reasons_come_in_their_order() -> None:
    long = a_group(a_rollout(1.0, "x" * 50), a_rollout(0.0, "no"), prompt=a_prompt("a"))
    uneven = a_group(a_rollout(1.0, "x" * 9), a_rollout(0.0, "no"), prompt=a_prompt("b"))
    twice = a_group(a_rollout(1.0, "yes"), a_rollout(0.0, "no"), a_rollout(0.0, "nay"), prompt=a_prompt("c"))

    kept = curated([long, uneven, twice], max_tokens=20, max_length_ratio=2, per_prompt=1)

    assert kept.cut == {Cut.TOO_LONG: 1, Cut.LENGTH_RATIO: 1, Cut.PER_PROMPT: 1}
    assert len(kept.rows) == 1


def test_tokens_count_where_they_are_known_and_bytes_where_not() -> None:
    without = a_rollout(1.0, "äöü")
    known = Rollout(Completion("a long answer", token_ids_T=(1, 2, 3)), without.verdict)

    def rows(rollout: Rollout, limit: int) -> int:
        return len(curated([a_group(rollout, a_rollout(0.0, "no"))], max_tokens=limit).rows)

    assert [rows(without, limit) for limit in (5, 6)] == [0, 1]
    assert [rows(known, limit) for limit in (2, 3)] == [0, 1]


def test_the_limit_favours_no_prompt_that_a_limit_before_it_thinned_out() -> None:
    crowded = [a_group(*[1.0] * 8, *[0.0] * 8, prompt=a_prompt(f"crowded {n}")) for n in range(100)]
    single = [a_group(1.0, 0.0, prompt=a_prompt(f"single {n}")) for n in range(100)]

    kept = curated([*crowded, *single], per_prompt=1, max_pairs=60).rows

    assert 15 <= sum(row.origin.prompt_id in {group.prompt.id for group in crowded} for row in kept) <= 45


# ---- shapes


@pytest.mark.parametrize("limit", [{"per_prompt": 1}, {"max_pairs": 3}, {"unique": True}, {"max_tokens": 9}])
def test_rows_that_stand_for_prompts_take_no_limits_of_rows(limit: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="shape prompts"):
        Recipe(runs=("run",), shape=Shape.PROMPTS, **limit)


def test_each_shape_takes_what_it_can_use() -> None:
    history = [
        a_group(1.0, 0.0, 0.5, prompt=a_prompt("mixed")),
        a_group(1.0, 1.0, prompt=a_prompt("easy")),
        a_group(0.0, 0.0, prompt=a_prompt("hard")),
        a_group(0.5, 0.5, prompt=a_prompt("between")),
        a_group(None, prompt=a_prompt("unscored")),
    ]

    def rows(shape: Shape) -> tuple[int, dict[Dropped, int]]:
        found = curate(history, Recipe(runs=("run",), shape=shape))
        assert found.cut == ({Cut.NEITHER: 3} if shape is Shape.LABELLED else {})
        return len(found.rows), dict(found.dropped)

    assert rows(Shape.PAIRS) == (1, {Dropped.EASY: 1, Dropped.HARD: 2, Dropped.UNSCORED: 1})
    assert rows(Shape.LABELLED) == (6, {Dropped.UNSCORED: 1})
    assert rows(Shape.RIGHT) == (3, {Dropped.NONE_RIGHT: 2, Dropped.UNSCORED: 1})
    assert rows(Shape.PROMPTS) == (4, {Dropped.UNSCORED: 1})
    assert rows(Shape.GROUPS) == (1, {Dropped.EASY: 1, Dropped.HARD: 2, Dropped.UNSCORED: 1})


def test_a_group_without_text_gives_rows_of_prompts_only_and_is_counted() -> None:
    bare = [replace(judged(a_group(1.0, 0.0)), has_text=False)]

    for shape in Shape:
        found = curation.curate(bare, Recipe(runs=("run",), shape=shape))
        assert (len(found.rows), found.dropped) == ((1, {}) if shape is Shape.PROMPTS else (0, {Dropped.NO_TEXT: 1}))


def test_a_group_without_text_that_teaches_nothing_is_counted_as_that() -> None:
    bare = [replace(judged(a_group(1.0, 1.0)), has_text=False)]

    assert curation.curate(bare, Recipe(runs=("run",))).dropped == {Dropped.EASY: 1}


@pytest.mark.parametrize(
    "idle",
    [
        {"shape": "labelled", "pairs": {"kind": "one_random_pair"}},
        {"shape": "pairs", "advantages_over": "all"},
        {"shape": "prompts", "down_sampling": {"kind": "random", "keep": 2}},
        {"pairs": {"kind": "one_random_pair", "margin": 0.5}},
    ],
)
def test_an_option_that_could_do_nothing_is_refused(idle: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each says it in its own words
        Recipe.model_validate({"runs": ["run"], **idle})


def test_the_order_of_the_runs_says_nothing() -> None:
    assert Recipe(runs=("b", "a")).hash == Recipe(runs=("a", "b")).hash


def test_a_group_whose_kept_rollouts_agree_teaches_nothing() -> None:
    recipe = Recipe(runs=("run",), shape=Shape.GROUPS, down_sampling=MaxReward(keep=2))

    assert curate([a_group(1.0, 1.0, 0.0)], recipe).dropped == {Dropped.NO_PAIR: 1}


@pytest.mark.parametrize("over", ["kept", "all"])
def test_advantages_are_measured_against_the_kept_or_against_all(over: str) -> None:
    group = a_group(1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    recipe = Recipe(runs=("run",), shape=Shape.GROUPS, down_sampling=MaxVariance(keep=4), advantages_over=over)

    [row] = curate([group], recipe).rows

    expected = {"kept": [0.865875, -0.865875], "all": [1.619835, -0.539945]}[over]
    assert sorted(set(row.advantages), reverse=True) == pytest.approx(expected, abs=1e-6)
    assert advantages([1.0, 1.0, 0.0, 0.0])[0] == pytest.approx(0.865875, abs=1e-6)


def test_a_draw_among_equals_takes_each_of_them_sometimes_and_the_same_by_the_same_seed() -> None:
    group = a_group(*[1.0] * 4, *[0.0] * 4)

    def kept(seed: int) -> tuple[int, ...]:
        choice = MaxVariance(keep=2, draw_among_equals=True)
        [row] = curate([group], Recipe(runs=("run",), shape=Shape.GROUPS, down_sampling=choice, seed=seed)).rows
        return row.indices

    drawn = [kept(seed) for seed in range(60)]
    assert {index for indices in drawn for index in indices} == set(range(8))
    assert all(len({index // 4 for index in indices}) == 2 for indices in drawn)
    assert drawn == [kept(seed) for seed in range(60)]


# ---- contamination


def test_a_prompt_that_shares_a_run_of_words_is_left_out_and_counted() -> None:
    history = [a_group(1.0, 0.0, prompt=a_prompt(text)) for text in ("How many eggs does Janet sell?", "2 + 2?")]
    forbidden = Forbidden(["Tell me: how many EGGS, does janet sell today"], 5, 5)

    contaminated = {group.prompt.id for group in history if forbidden.is_in(group.prompt.text)}

    found = curate(history, Recipe(runs=("run",)), contaminated)

    assert [row.origin.prompt_id for row in found.rows] == [a_prompt("2 + 2?").id]
    assert found.dropped == {Dropped.CONTAMINATED: 1}


words = st.lists(st.sampled_from(["a", "b", "c"]), max_size=12).map(" ".join)


@given(words, words, st.integers(1, 4), st.integers(1, 5))
def test_two_texts_overlap_when_they_share_a_run(text: str, other: str, count: int, least: int) -> None:
    shared = set(runs_of_words(words_of(text), count)) & set(runs_of_words(words_of(other), count))
    inside = len(other.split()) >= least and f" {other} " in f" {text} "
    long_enough = len(other.split()) >= count

    assert Forbidden([other], count, least).is_in(text) == bool(
        other and (text == other or inside or (long_enough and shared))
    )
    assert all(len(run.split()) == min(count, len(text.split())) for run in runs_of_words(words_of(text), count))


@given(st.lists(words), st.randoms(use_true_random=False))
def test_a_forbidden_set_is_named_by_what_it_holds(texts: list[str], rng: Any) -> None:
    shuffled = rng.sample(texts, len(texts))

    assert Forbidden(texts, 2, 2).digest == Forbidden(shuffled, 2, 2).digest
    assert Forbidden(["x y", *texts], 2, 2).digest != Forbidden(texts, 2, 2).digest
    assert Forbidden(texts, 2, 1).digest != Forbidden(texts, 2, 2).digest


def test_a_short_evaluation_prompt_is_found_where_it_stands_whole() -> None:
    question = "What is the capital city of the country France today?"
    forbidden = Forbidden([question, "Why?"], 13, 8)

    assert forbidden.is_in(f"A riddle. {question} Answer in one word and think about it at length before you do.")
    assert not forbidden.is_in("What is the capital city of the country France?")
    assert forbidden.is_in("why")
    assert not forbidden.is_in("Why is the sky blue?")
