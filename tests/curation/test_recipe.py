import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from curation.keys import digest
from curation.recipe import RULES, BestWithWorst, GroupRule, KRandomPairs, MaxVariance, OneRandomPair, Recipe, Shape
from tests.curation.strategies import recipes

A_RECIPE = Recipe(runs=("a", "b"), policy_versions=(1, 4), down_sampling=MaxVariance(keep=4), pairs=KRandomPairs(k=2))

PLAIN = Recipe(runs=("a",))
OF_GROUPS = Recipe(runs=("a",), shape=Shape.GROUPS)
ANOTHER: dict[str, list[Any]] = {
    "runs": [("a",), ("a", "c"), ("a", "b", "c"), ("ab",)],
    "policy_versions": [None, (0, 4), (1, 5)],
    "down_sampling": [{"kind": "keep_all"}, {"kind": "max_variance", "keep": 5}, {"kind": "max_reward", "keep": 4}],
    "pairs": [OneRandomPair(), BestWithWorst(), KRandomPairs(k=3), BestWithWorst(margin=0.5)],
    "no_answer_is_wrong": [False],
    "truncated": [True],
    "verifier": ["math@1", "math@2", "math@1?literal=true"],
    "shape": ["labelled", "right", "prompts", "groups"],
    "decontaminate": [{"prompt_sets": ["test"]}, {"prompt_sets": ["test"], "words": 8}],
    "advantages_over": ["all"],
    "zero_variance": [True],
    "format": ["conversational"],
    "max_tokens": [100, 200],
    "max_length_ratio": [1.5, 2.0],
    "unique": [True],
    "per_prompt": [1, 2],
    "per_difficulty": [1, 2],
    "max_pairs": [1, 1000],
    "test_share": [0.1, 0.2],
    "seed": [1, 2, -1],
}


@st.composite
def spellings(draw: st.DrawFn, value: Any) -> str:
    """The JSON value with its fields in any order and any white space between them."""
    space = st.text(" \n\t", max_size=2)

    def spell(inner: Any) -> str:
        if isinstance(inner, dict):
            keys = draw(st.permutations(list(inner)))
            fields = [f"{draw(space)}{json.dumps(key)}{draw(space)}:{spell(inner[key])}" for key in keys]
            return "{" + ",".join(fields) + "}"
        text = "[" + ",".join(map(spell, inner)) + "]" if isinstance(inner, list) else json.dumps(inner)
        return draw(space) + text + draw(space)

    return spell(value)


@given(recipes, st.data())
def test_the_hash_does_not_depend_on_how_the_recipe_was_spelled(recipe: Recipe, data: st.DataObject) -> None:
    text = data.draw(spellings(recipe.model_dump(mode="json")))

    parsed = Recipe.model_validate_json(text)

    assert parsed == recipe
    assert parsed.hash == recipe.hash


def test_a_default_spelled_out_is_the_same_recipe() -> None:
    short = Recipe.model_validate_json('{"runs": ["a"]}')
    long = Recipe.model_validate_json(
        '{"seed": 0, "test_share": 0, "runs": ["a"], "down_sampling": {"kind": "keep_all"}, "max_pairs": null,'
        ' "policy_versions": null, "pairs": {"kind": "first_right_first_wrong"}}'
    )

    assert long.hash == short.hash


@given(recipes, recipes, st.sampled_from(sorted(Recipe.model_fields)))
def test_two_recipes_have_one_hash_exactly_when_they_are_equal(some: Recipe, other: Recipe, field: str) -> None:
    mixed = some.model_copy(update={field: getattr(other, field)})

    assert (mixed.hash == some.hash) == (getattr(some, field) == getattr(other, field))
    assert (other.hash == some.hash) == (other == some)


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in ANOTHER.items() for value in values])
def test_a_recipe_that_differs_in_one_field_has_another_hash(field: str, value: Any) -> None:
    recipe = {"shape": PLAIN, "advantages_over": OF_GROUPS, "zero_variance": OF_GROUPS}.get(field, A_RECIPE)
    changed = Recipe.model_validate({**recipe.model_dump(), field: value})

    assert changed.hash != recipe.hash


def test_no_field_escapes_the_hash() -> None:
    assert set(ANOTHER) == set(Recipe.model_fields)


def test_a_recipe_from_before_a_field_was_there_keeps_its_hash() -> None:
    assert A_RECIPE.hash == "a6a9dbafaf356eec2a9ac72bf93d2a02"
    assert OF_GROUPS.hash == "d91167accb04776c9a5abf778680a03d"


@pytest.mark.parametrize("shape", [shape for shape in Shape if shape is not Shape.GROUPS])
def test_groups_that_agree_are_rows_of_shape_groups_only(shape: Shape) -> None:
    with pytest.raises(ValidationError, match="zero_variance is for shape groups"):
        GroupRule(shape=shape, zero_variance=True)


@given(recipes, st.integers(0, 1000), st.integers(0, 1000))
def test_a_dataset_is_named_by_its_recipe_what_it_saw_and_the_rules(recipe: Recipe, seen: int, later: int) -> None:
    name = recipe.dataset_id(seen)

    assert name == digest(recipe.hash, seen, RULES)
    assert (recipe.dataset_id(later) == name) == (later == seen)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"shuffle": True}, id="recipe"),
        pytest.param({"pairs": {"kind": "one_random_pair", "k": 2}}, id="pair-rule"),
        pytest.param({"down_sampling": {"kind": "keep_all", "keep": 4}}, id="down-sampling"),
    ],
)
def test_an_unknown_field_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Recipe.model_validate({"runs": ["a"], **fields})


@pytest.mark.parametrize("field", ["pairs", "down_sampling"])
def test_an_unknown_kind_is_refused(field: str) -> None:
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        Recipe.model_validate({"runs": ["a"], field: {"kind": "magic"}})


def test_a_run_named_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="named twice"):
        Recipe(runs=("a", "b", "a"))


def test_versions_that_end_before_they_begin_are_refused() -> None:
    with pytest.raises(ValidationError, match="end before they begin"):
        Recipe(runs=("a",), policy_versions=(3, 2))


def test_a_single_version_is_a_range() -> None:
    assert Recipe(runs=("a",), policy_versions=(3, 3)).policy_versions == (3, 3)


@pytest.mark.parametrize(
    "fields",
    [
        {"runs": []},
        {"max_pairs": 0},
        {"test_share": 1.0},
        {"test_share": -0.1},
        {"test_share": float("nan")},
        {"pairs": {"kind": "best_with_worst", "margin": 1.1}},
        {"pairs": {"kind": "k_random_pairs", "k": 0}},
        {"down_sampling": {"kind": "max_variance", "keep": 1}},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate({"runs": ["a"], **fields})


@pytest.mark.parametrize("field", sorted(Recipe.model_fields))
def test_a_recipe_cannot_be_changed_after_it_was_hashed(field: str) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(A_RECIPE, field, getattr(A_RECIPE, field))
