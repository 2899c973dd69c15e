import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from curation.keys import canonical_json, digest, prompt_id, rng_for, seed_for

texts = st.lists(st.text(), max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=4)


def backwards(value: Any) -> Any:
    """The same JSON value, with the keys of every object in the opposite order."""
    if isinstance(value, dict):
        return {key: backwards(value[key]) for key in reversed(value)}
    return [backwards(inner) for inner in value] if isinstance(value, list) else value


@given(texts, texts)
def test_different_parts_have_different_names(some: list[str], other: list[str]) -> None:
    assert (digest(*some) == digest(*other)) == (some == other)


@given(st.text(), st.text(min_size=1))
def test_a_name_knows_where_one_part_ends_and_the_next_begins(first: str, second: str) -> None:
    names = {digest(first, second), digest(first + second), digest(first, second, ""), digest(second + first, "")}

    assert len(names) == 4


@given(texts, st.integers(1, 64))
def test_a_name_is_hex_of_the_size_that_was_asked_for(parts: list[str], size: int) -> None:
    name = digest(*parts, size=size)

    assert len(bytes.fromhex(name)) == size


def test_half_a_surrogate_pair_has_a_name_too() -> None:
    assert digest("\ud83d") != digest("\ude00")


def test_names_and_draws_outlive_the_process_that_made_them() -> None:
    assert digest("run", 7, 0.5) == "6b21eb8459c9172e2c28c8aea4aa1dca"
    assert seed_for("run", 7) == 1141797834644363414
    assert rng_for("run", 7).random() == 0.8119423384851985
    assert prompt_id("2 + 2?", "4", "math", {"b": [1, None], "a": "ä"}) == "p_c303b64eed60c5fbe94b44f9ef155158"


@given(json_values)
def test_canonical_json_is_the_same_value_spelled_without_regard_to_order(value: Any) -> None:
    text = canonical_json(value)

    assert json.loads(text) == value
    assert canonical_json(backwards(value)) == text
    assert canonical_json(json.loads(text)) == text


@given(json_values, json_values)
def test_different_values_are_spelled_differently(some: Any, other: Any) -> None:
    assume(some != other)

    assert canonical_json(some) != canonical_json(other)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_json_cannot_say_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"share": number})


@given(st.text(), st.text(), st.text(), json_objects)
def test_a_prompt_is_its_content(text: str, reference: str, verifier: str, metadata: dict[str, Any]) -> None:
    name = prompt_id(text, reference, verifier, metadata)

    assert name.startswith("p_")
    assert prompt_id(text, reference, verifier, backwards(metadata)) == name
    changed = {
        prompt_id(text + "!", reference, verifier, metadata),
        prompt_id(text, reference + "!", verifier, metadata),
        prompt_id(text, reference, verifier + "!", metadata),
        prompt_id(text, reference, verifier, {"inside": metadata}),
    }
    assert len(changed - {name}) == 4


@given(texts)
def test_a_seed_fits_a_signed_integer_of_64_bits(parts: list[str]) -> None:
    assert 0 <= seed_for(*parts) < 2**63


@given(texts, texts)
def test_a_draw_does_not_depend_on_the_draws_before_it(parts: list[str], others: list[str]) -> None:
    alone = [rng_for(*parts).random() for _ in range(2)]

    rng_for(*others).random()
    after = rng_for(*parts).random()

    assert alone == [after, after]


def test_first_draws_of_neighbouring_visits_are_spread_evenly() -> None:
    draws = [rng_for(0, "greso", "p_1", visit).random() for visit in range(4000)]

    tenths = [sum(tenth <= draw * 10 < tenth + 1 for draw in draws) for tenth in range(10)]
    assert all(320 <= count <= 480 for count in tenths)
