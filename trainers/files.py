"""Files of rows: NDJSON, packed or not, and Parquet."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from curation.choice import reason_of
from curation.parquet import UNREADABLE, rows_in

PIECE = 1 << 13
"""Bytes read at once: of a packed file that breaks off, what is lost of the part that can be read."""
LONGEST = 1 << 28
"""Bytes of a line."""
TOLD = 1000
"""Bytes of a line that is no row."""


class NoRow(ValueError):
    """What stands in the place of a row and is none: the reason, and the text itself."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(reason)
        self.text = text

    @classmethod
    def of(cls, error: ValueError) -> "NoRow":
        return error if isinstance(error, NoRow) else cls(reason_of(error))


def rows_of(file: Path) -> Iterator[tuple[int, Any]]:
    """(line or row number from 1, value); a NoRow in the place of what is none, and where the file breaks off. Raises
    OSError for a file that cannot be opened."""
    file.open("rb").close()
    number = 0
    try:
        for number, row in _rows(file):
            yield number, row if not isinstance(row, ValueError) else NoRow.of(row)
    except UNREADABLE as error:
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


def _rows(file: Path) -> Iterator[tuple[int, Any]]:
    match file.suffix:
        case ".parquet":
            return enumerate(rows_in(file, sys.maxsize), start=1)
        case ".json":
            return enumerate(_list(file), start=1)
    return _lines(file)


def _list(file: Path) -> Iterator[Any]:
    try:
        rows = json.loads(file.read_bytes())
    except RecursionError as error:
        raise ValueError(error) from None
    if not isinstance(rows, list):
        raise ValueError("a .json file holds a list of rows; one a line is .jsonl")
    yield from rows


def _lines(file: Path) -> Iterator[tuple[int, Any]]:
    with pa.input_stream(str(file), compression="detect", buffer_size=PIECE) as stream:
        for number, line in enumerate(_split(stream), start=1):
            if len(line) > LONGEST:
                yield (
                    number,
                    NoRow(f"the line is longer than {LONGEST >> 20} MiB", line[:TOLD].decode(errors="replace")),
                )
            elif line.strip():
                yield number, _value(line)


def _split(stream: Any) -> Iterator[bytes]:
    """The lines; of one that is too long only as much as shows that."""
    line = bytearray()
    while piece := stream.read(PIECE):
        *ends, rest = piece.split(b"\n")
        for end in ends:
            yield bytes(line + end)
            line = bytearray()
        if len(line) <= LONGEST:
            line += rest
    yield bytes(line)


def _value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        told = line[:TOLD].decode(errors="replace")
        return NoRow(f"not UTF-8 text with one JSON value a line: {error}", told)
