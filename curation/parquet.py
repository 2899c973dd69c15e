"""Rows of Parquet files from anywhere, as plain values."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_BATCH = 256
UNREADABLE = (OSError, pa.ArrowException, ValueError, OverflowError)
"""What reading a damaged file raises."""


def rows_in(source: Path | IO[bytes], most_bytes: int) -> Iterator[Any]:
    """The rows, and a ValueError in the place of one that holds what is no value (text that is no UTF-8, a date beyond
    all calendars). Raises TooMuch when they take more memory than that, however well they were packed, and one of
    `UNREADABLE` for what is no Parquet file."""
    left = most_bytes
    with pq.ParquetFile(source) as parquet:
        for packed in parquet.iter_batches(ROWS_PER_BATCH):
            columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in packed.columns]
            batch = pa.RecordBatch.from_arrays(columns, names=packed.schema.names)
            left -= batch.nbytes
            if left < 0:
                raise TooMuch
            yield from _plain(batch)


class TooMuch(Exception):
    """More rows than wanted."""


def _plain(batch: pa.RecordBatch) -> list[Any]:
    try:
        rows: list[Any] = batch.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [ValueError(f"not a row of plain values: {error}")]
        return [row for place in range(batch.num_rows) for row in _plain(batch.slice(place, 1))]
    return rows
