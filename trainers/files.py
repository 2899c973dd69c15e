"""Files of rows: NDJSON, packed or not, and Parquet."""

import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_BATCH = 256


class NoRow(ValueError):
    """What stands in the place of a row and is none: the reason, and the text itself."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(reason)
        self.text = text


def rows_of(file: Path) -> Iterator[tuple[int, Any]]:
    """(line or row number from 1, value); a NoRow in the place of a line that is none, and where the file breaks off.
    Raises OSError for a file that cannot be opened."""
    rows = _parquet_rows(file) if file.suffix == ".parquet" else _lines(file)
    number = 0
    try:
        for number, row in rows:
            yield number, row
    except (OSError, pa.ArrowException) as error:
        if number == 0:
            raise OSError(error) from error
        yield number + 1, NoRow(f"the file breaks off here: {error}")


def read_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """The same, but what is no row ends the command."""
    try:
        for number, row in rows_of(file):
            if isinstance(row, NoRow):
                sys.exit(f"refinery: {file}:{number}: {row}")
            yield number, row
    except OSError as error:
        sys.exit(f"refinery: {file}: {error}")


def _lines(file: Path) -> Iterator[tuple[int, Any]]:
    with pa.input_stream(str(file), compression="detect", buffer_size=1 << 20) as stream:
        for number, line in enumerate(_split(stream), start=1):
            if line.strip():
                yield number, _value(line)


def _split(stream: Any) -> Iterator[bytes]:
    rest: list[bytes] = []
    while chunk := stream.read(1 << 20):
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for line in others:
            yield b"".join(rest)
            rest = [line]
    yield b"".join(rest)


def _value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return NoRow(f"not UTF-8 text with one JSON value a line: {error}", line.decode(errors="replace"))


def _parquet_rows(file: Path) -> Iterator[tuple[int, Any]]:
    with pq.ParquetFile(file) as parquet:
        rows = chain.from_iterable(batch.to_pylist() for batch in parquet.iter_batches(ROWS_PER_BATCH))
        for number, row in enumerate(rows, start=1):
            yield number, {name: value for name, value in row.items() if value is not None}
