"""Lists of rows are read bit by bit, and are what they would be if they were read at once."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api import bodies
from service.api.bodies import _json_line, _json_list
from service.stages import Invalid

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def at_once(body: bytes) -> Any:
    """The rows, or the code of the refusal."""
    try:
        rows = json.loads(body)
    except ValueError:
        return "not_json"
    return rows if isinstance(rows, list) else "not_a_list"


def bit_by_bit(body: bytes) -> Any:
    try:
        return list(_json_list(body))
    except Invalid as refused:
        return refused.code


@given(
    st.lists(VALUES, max_size=5) | VALUES,
    st.sampled_from([None, 0, 2]),
    st.sampled_from([",", ", ", " ,\n", ",\r\n\t", ",\x0b"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32-be"]),
)
def test_a_list_is_the_same_however_it_is_spelled(rows: Any, indent: int | None, comma: str, encoding: str) -> None:
    spelled = json.dumps(rows, indent=indent, separators=(comma, " : "), ensure_ascii=False)
    body = f" {spelled}\n".encode(encoding, "surrogatepass")

    assert bit_by_bit(body) == at_once(body)


@given(st.lists(VALUES, max_size=4), st.data())
def test_a_torn_list_is_none(rows: list[Any], data: st.DataObject) -> None:
    whole = json.dumps(rows).encode()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))

    for body in (whole[start:end], whole[:start] + whole[end:], whole + whole[start:end]):
        assert bit_by_bit(body) == at_once(body), body


@pytest.mark.parametrize(
    "body", [b"", b" ", b"[", b"[]]", b"[1,]", b"[,1]", b"[1 2]", b"[1]x", b"\xff", b"[\xff]", b"]"]
)
def test_what_is_no_json_is_none(body: bytes) -> None:
    assert bit_by_bit(body) == at_once(body) == "not_json"


def test_a_row_that_takes_too_long_to_read_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MOST_ROW_BYTES", 10)

    assert _json_line(b'"12345678"') == "12345678"
    assert isinstance(_json_line(b'"123456789"'), ValueError)
