"""Answers as bytes, in frames: a letter, a length in four bytes and so many bytes.

`h` is the header: the answer begins. `d` is data, `z` the end, `e` a refusal, or an end that is none.
"""

import base64
import csv
import datetime
import decimal
import io
import itertools
import json
import math
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa

ROWS_PER_BATCH = 2048
ROWS_PER_ROW_GROUP, BYTES_PER_ROW_GROUP = 122_880, 1 << 25
"""Of a Parquet answer."""
BYTES_PER_FRAME = 1 << 20
FRAME = struct.Struct(">cI")

Batches = Iterable[pa.RecordBatch]
Request = dict[str, Any]


def send(kind: bytes, payload: bytes = b"") -> None:
    sys.stdout.buffer.write(FRAME.pack(kind, len(payload)))
    sys.stdout.buffer.write(payload)
    sys.stdout.buffer.flush()


def refuse(code: str, detail: str) -> None:
    send(b"e", json.dumps({"code": code, "detail": detail[:2000]}).encode())


def answer(connection: Any, request: Request) -> None:
    """Runs the question and sends what it gives."""
    reader = connection.execute(request["sql"], request["params"] or None).to_arrow_reader(ROWS_PER_BATCH)
    schema = _with_names_of_their_own(reader.schema)
    batches = (pa.RecordBatch.from_arrays(batch.columns, schema=schema) for batch in reader)
    rows = _Rows(batches, request["offset"], request["limit"])
    for number, chunk in enumerate(FORMATS[request["format"]](schema, rows, request)):
        if number == 0:  # an error before the first bytes is still a proper answer
            send(b"h")
        for start in range(0, len(chunk), BYTES_PER_FRAME):
            send(b"d", chunk[start : start + BYTES_PER_FRAME])
    send(b"z")


def _with_names_of_their_own(schema: pa.Schema) -> pa.Schema:
    """Columns of a join may share a name, which no format but SQL has: the second ``seq`` becomes ``seq_1``."""
    taken: set[str] = set()
    fields = []
    for field in schema:
        names = itertools.chain([field.name], (f"{field.name}_{i}" for i in itertools.count(1)))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        fields.append(field.with_name(name))
    return pa.schema(fields)


class _Rows:
    """The batches from an offset, up to a limit; afterwards, whether there were more. They come once, like any
    iterator's, so that a second loop goes on where the first one stopped."""

    def __init__(self, batches: Batches, offset: int, limit: int | None) -> None:
        self.are_cut = False
        self._parts = self._cut(batches, offset, math.inf if limit is None else limit)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self._parts

    def _cut(self, batches: Batches, skip: int, left: float) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            rest = batch.slice(min(skip, batch.num_rows))
            skip -= batch.num_rows - rest.num_rows
            if rest.num_rows > left:
                self.are_cut = True
                rest = rest.slice(0, int(left))
            left -= rest.num_rows
            if rest.num_rows:
                yield rest
            if self.are_cut:
                return


def _json(schema: pa.Schema, batches: _Rows, request: Request) -> Iterator[bytes]:
    """Whole or not at all: what goes wrong late is still an error and no half an answer."""
    rows, size, is_full = [], 0, False
    for row in _values(batches):
        text = json.dumps([_plain(value) for value in row], allow_nan=False)
        size += len(text) + 2
        is_full = size > request["bytes"]
        if is_full:
            break
        rows.append(text)
    if is_full and not rows:
        raise ValueError(f"a single row has more than {request['bytes']} bytes; ask for it as NDJSON, Arrow or Parquet")
    is_cut = is_full or batches.are_cut
    head = {
        "columns": schema.names,
        "types": [str(field.type) for field in schema],
        "truncated": is_cut,
        "next": str(request["offset"] + len(rows)) if is_cut else None,
    }
    yield (json.dumps(head)[:-1] + ', "rows": [').encode()
    for start in range(0, len(rows), ROWS_PER_BATCH):
        yield ((",\n" if start else "") + ",\n".join(rows[start : start + ROWS_PER_BATCH])).encode()
    yield b"]}\n"


def _ndjson(schema: pa.Schema, batches: _Rows, _: Request) -> Iterator[bytes]:
    for batch in batches:
        lines = (dict(zip(schema.names, map(_plain, row), strict=True)) for row in _values([batch]))
        yield "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode()
    yield b""


def _csv(schema: pa.Schema, batches: _Rows, _: Request) -> Iterator[bytes]:
    def text_of(rows: Iterable[Iterable[Any]]) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue().encode(errors="replace")

    cells = (map(_cell, row) for row in _values(itertools.islice(batches, 1)))
    yield text_of(itertools.chain([schema.names], cells))
    for batch in batches:
        yield text_of(map(_cell, row) for row in _values([batch]))


def _arrow(schema: pa.Schema, batches: _Rows, _: Request) -> Iterator[bytes]:
    return _written(batches, lambda sink: pa.ipc.new_stream(sink, schema))


def _parquet(schema: pa.Schema, batches: _Rows, _: Request) -> Iterator[bytes]:
    import pyarrow.parquet as pq

    return _written(_row_groups(batches), lambda sink: pq.ParquetWriter(sink, schema, compression="zstd"))


FORMATS = {"json": _json, "ndjson": _ndjson, "csv": _csv, "arrow": _arrow, "parquet": _parquet}


def _written(parts: Iterable[Any], make_writer: Callable[["_Sink"], Any]) -> Iterator[bytes]:
    sink = _Sink()
    writer = make_writer(sink)
    for part in parts:
        writer.write(part)
        yield sink.taken()
    writer.close()
    yield sink.taken()


def _row_groups(batches: Batches) -> Iterator[pa.Table]:
    """Tables worth a row group of a Parquet file each."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        held.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= ROWS_PER_ROW_GROUP or size >= BYTES_PER_ROW_GROUP:
            yield pa.Table.from_batches(held)
            held, rows, size = [], 0, 0
    if held:
        yield pa.Table.from_batches(held)


class _Sink(io.RawIOBase):
    """Keeps what was written until it is taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def _values(batches: Batches) -> Iterator[tuple[Any, ...]]:
    for batch in batches:
        columns = [column.to_pylist(maps_as_pydicts="lossy") for column in batch.columns]
        yield from zip(*columns, strict=True)


def _plain(value: Any) -> Any:
    """As JSON has it. What is no number there is null: NaN and the infinities."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case decimal.Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case dict():
            return {str(name): _plain(member) for name, member in value.items()}
        case list() | tuple():
            return [_plain(member) for member in value]
        case bytes():
            return base64.b64encode(value).decode()
    return str(value)


def _cell(value: Any) -> Any:
    """Of a CSV file."""
    told = _plain(value)
    if isinstance(told, bool | list | dict):
        return json.dumps(told)
    return "" if told is None else told
