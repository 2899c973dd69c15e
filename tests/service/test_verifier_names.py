"""Names of verifiers: one spelling for each choice, and a reason for what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.verifiers.catalogue import Catalogue
from service.verifiers.names import parse

CATALOGUE = Catalogue()


@pytest.mark.parametrize(
    ("name", "spelled", "label"),
    [
        ("math", "math", "math@2"),
        (" math ", "math", "math@2"),
        ("math?literal=false", "math", "math@2"),
        (
            "math?tolerance=1e-3&literal=true",
            "math?literal=true&tolerance=0.001",
            "math@2?literal=true&tolerance=0.001",
        ),
        ("math?extract=boxed,last", "math?extract=boxed,last", "math@2?extract=boxed,last"),
        ("1*math", "math", "math@2"),
        ("0.8*math + 0.2*exact", "0.8*math+0.2*exact", "0.8*math@2+0.2*exact@1"),
        ("choice?letters=ABCD", "choice?letters=ABCD", "choice@1?letters=ABCD"),
    ],
)
def test_a_name_has_one_spelling_and_a_label(name: str, spelled: str, label: str) -> None:
    assert CATALOGUE.spelled(name) == spelled
    assert CATALOGUE.label(name) == label


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "no verifier's name"),
        ("vibes", "there is no verifier 'vibes'; there are choice, code"),
        ("math?literal", "not of the form"),
        ("math?literl=true", "literl: Extra inputs"),
        ("math?tolerance=2", "tolerance: Input should be less than 1"),
        ("math?extract=nowhere", "extract.0: Input should be"),
        ("exact?literal=true", "literal: Extra inputs"),
        ("0*math", "above 0"),
        ("-1*math", "above 0"),
        ("nan*math", "above 0"),
        ("x*math", "above 0"),
        ("math+math", "twice"),
        ("math++exact", "no verifier's name"),
        ("math;drop table", "no verifier's name"),
        ("m" * 2000, "at most 1000 characters"),
    ],
)
def test_what_is_no_name_is_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        CATALOGUE.spelled(name)


TERMS = st.sampled_from(["math", "math?literal=true", "math?percent=true&tolerance=0.01", "exact", "numeric", "code"])
WEIGHTS = st.floats(0.001, 1000).map(lambda w: float(f"{w:g}"))


@given(st.lists(st.tuples(WEIGHTS, TERMS), min_size=1, max_size=5, unique_by=lambda pair: pair[1]))
def test_spelling_is_stable_and_says_the_same(parts: list[tuple[float, str]]) -> None:
    name = " + ".join(f"{weight:g}*{term}" for weight, term in parts)

    spelled = CATALOGUE.spelled(name)

    assert CATALOGUE.spelled(spelled) == spelled
    if len(parts) > 1:
        assert [(t.weight, t.verifier) for t in parse(spelled)] == [(t.weight, t.verifier) for t in parse(name)]


@given(st.text(max_size=60))
def test_no_text_does_worse_than_being_refused(name: str) -> None:
    try:
        spelled = CATALOGUE.spelled(name)
    except ValueError:
        return
    assert CATALOGUE.spelled(spelled) == spelled
