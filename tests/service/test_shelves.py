"""Wide rows come in the order of their place, whatever order they came in."""

from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.stages import StoreFailed
from service.store import shelves
from service.store.shelves import in_order

SCHEMA = pa.schema([("place", pa.int64()), ("text", pa.string())])


def batches(places: list[int], each: int) -> list[pa.RecordBatch]:
    parts = [places[start : start + each] for start in range(0, len(places), each)]
    return [pa.record_batch([part, [f"text {place}" for place in part]], schema=SCHEMA) for part in parts]


def ordered(places: list[int], ends: list[int], each: int = 3) -> list[list[str]]:
    with TemporaryDirectory() as folder:
        tables = [table["text"].to_pylist() for table in in_order(batches(places, each), ends, Path(folder))]
        assert list(Path(folder).iterdir()) == []
    return tables


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=9), st.data())
def test_each_part_has_its_rows_in_their_order(sizes: list[int], data: st.DataObject) -> None:
    ends = list(accumulate(sizes))
    places = data.draw(st.permutations(range(ends[-1])))
    few = patch.multiple(shelves, SHELVES=data.draw(st.integers(1, 9)), ROWS_AT_ONCE=data.draw(st.integers(1, 9)))

    with few:
        tables = ordered(places, ends, data.draw(st.integers(1, 9)))

    assert tables == [
        [f"text {place}" for place in range(start, end)] for start, end in zip([0, *ends], ends, strict=False)
    ]


@pytest.mark.parametrize("places", [[0, 1, 1, 2], [0, 2], [], [0, 1]], ids=["twice", "a gap", "nothing", "too few"])
def test_a_row_that_is_missing_or_there_twice_is_an_error(places: list[int]) -> None:
    with pytest.raises(StoreFailed, match="gone or there twice"):
        ordered(places, [3])
