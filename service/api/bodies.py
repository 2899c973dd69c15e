"""Request bodies that are lists of rows: JSON, NDJSON or Parquet by Content-Type, packed or not."""

import asyncio
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import pyarrow as pa
from fastapi import Request
from pydantic import BaseModel

from curation.choice import reason_of
from curation.parquet import UNREADABLE, TooMuch, rows_in
from service.api.errors import TooLarge
from service.api.gate import PLAIN, Body, coding_of, too_large
from service.stages import Invalid

CODINGS = ("gzip", "zstd")
MOST_ROWS = 1_000_000
"""In one body: what is made of a row takes memory, and what is said about one that is none, however short they are."""
MOST_ROW_BYTES = 32 << 20
"""In JSON: while Python reads one, nothing else goes on."""
MOST_REPORTED = 100
"""Rejected rows listed in an answer."""

M = TypeVar("M", bound=BaseModel)


def rows_of(model: type[BaseModel], *, or_others: bool = False) -> dict[str, Any]:
    """Such a body, for ``openapi_extra=``; `or_others` where a row may also be one of a foreign format."""
    row: dict[str, Any] = {"$ref": f"#/components/schemas/{model.__name__}"}
    if or_others:
        row = {"anyOf": [row, {"type": "object", "description": "A row of another system, by its format."}]}
    content = {
        "application/json": {"schema": {"type": "array", "items": row, "minItems": 1}},
        "application/x-ndjson": {"schema": {"type": "string", "description": "A row a line."}},
        "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
    }
    packed = {"name": "content-encoding", "in": "header", "schema": {"enum": ["identity", *CODINGS]}}
    return {"parameters": [packed], "requestBody": {"required": True, "content": content}}


class Sifted(NamedTuple, Generic[M]):
    """Rows with their numbers from 0, and of those that are none the reasons: ``{row, reason}``."""

    rows: list[tuple[int, M]]
    rejected: list[dict[str, Any]]


async def read_rows(request: Request, model: type[M], limit_bytes: int) -> list[M]:
    """The rows, every one valid. Raises Invalid with the rejected rows and their reasons."""
    rows, rejected = await sift_rows(request, model.model_validate, limit_bytes)
    if rejected:
        raise rows_rejected(rejected, len(rows) + len(rejected))
    return [row for _, row in rows]


async def sift_rows(request: Request, made_of: Callable[[Any], M], limit_bytes: int) -> Sifted[M]:
    """What `made_of` makes of the rows, where it raises no ValueError. Raises Invalid for a body that is none."""
    body = await _read(request, limit_bytes)
    parsed = _parse(request.headers.get("content-type", ""), body, limit_bytes)
    return await asyncio.to_thread(_sifted, parsed, made_of)  # large ones take seconds


def _sifted(parsed: Iterator[Any], made_of: Callable[[Any], M]) -> Sifted[M]:
    sifted: Sifted[M] = Sifted([], [])
    for number, row in enumerate(parsed):
        if number == MOST_ROWS:
            raise TooLarge("too_many_rows", f"the body has more than {MOST_ROWS:,} rows; send them in parts")
        try:
            if isinstance(row, ValueError):
                raise row
            sifted.rows.append((number, made_of(row)))
        except ValueError as error:
            sifted.rejected.append({"row": number, "reason": reason_of(error)})
    if not any(sifted):
        raise Invalid("no_rows", "the body holds no rows")
    return sifted


def rows_rejected(rejected: list[dict[str, Any]], of: int) -> Invalid:
    """`rejected` holds ``{row, reason}``."""
    first = rejected[0]
    return Invalid(
        "rows_rejected",
        f"{len(rejected)} of {of} rows were rejected and nothing was stored; row {first['row']}: {first['reason']}",
        rejected=rejected[:MOST_REPORTED],
    )


async def _read(request: Request, limit_bytes: int) -> bytes:
    body = await request.body()
    coding = coding_of(request.headers)
    if coding == PLAIN:
        return body
    unpacked = await asyncio.to_thread(_unpacked, body, coding, limit_bytes)
    held: Body = request.state.body
    held.let_go(limit_bytes - len(unpacked))
    return unpacked


def _unpacked(body: bytes, coding: str, limit_bytes: int) -> bytes:
    """Never more than the limit, however small it was packed."""
    if coding not in CODINGS:
        raise Invalid("unknown_content_encoding", f"Content-Encoding {coding!r} is none of {', '.join(CODINGS)}")
    try:
        with pa.CompressedInputStream(pa.BufferReader(body), coding) as packed:
            unpacked: bytes = packed.read(limit_bytes + 1)
    except OSError as error:
        raise Invalid("not_unpacked", f"the body cannot be unpacked as {coding}: {error}") from None
    if len(unpacked) > limit_bytes:
        raise too_large(limit_bytes)
    return unpacked


def _parse(content_type: str, body: bytes, limit_bytes: int) -> Iterator[Any]:
    """Rows as plain values; a ValueError in the place of what is none."""
    match content_type.partition(";")[0].strip():
        case "application/x-ndjson" | "application/jsonl":
            return (_json_line(line) for line in io.BytesIO(body) if line.strip())
        case "application/vnd.apache.parquet" | "application/x-parquet":
            return _parquet(body, limit_bytes)
        case "application/json" | "":
            return _json_list(body)
        case other:
            raise Invalid(
                "unknown_content_type",
                f"Content-Type {other!r} is none of application/json, application/x-ndjson and "
                "application/vnd.apache.parquet",
            )


def _json_line(line: bytes) -> Any:
    if len(line) > MOST_ROW_BYTES:
        return ValueError(f"a row in JSON has at most {MOST_ROW_BYTES >> 20} MiB")
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return ValueError(f"not JSON: {error}")


def _json_list(body: bytes) -> Iterator[Any]:
    """Row by row: while Python reads a whole list, nothing else in the process goes on."""
    try:
        text = body.decode(json.detect_encoding(body), "surrogatepass")
        at = _after_space(text, 0)
        if not text.startswith("[", at):
            json.loads(text[at : at + MOST_ROW_BYTES])
            raise Invalid("not_a_list", "the body must be a JSON list of rows")
        at = _after_space(text, at + 1)
        is_over = text.startswith("]", at)
        while not is_over:
            row, at = _DECODER.raw_decode(text, at)
            yield row
            at = _after_space(text, at)
            is_over = text.startswith("]", at)
            if not is_over:
                if not text.startswith(",", at):
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
                at = _after_space(text, at + 1)
        if (end := _after_space(text, at + 1)) < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except (ValueError, RecursionError) as error:
        raise Invalid("not_json", f"the body is not JSON: {error}") from None


_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found  # be it nothing
    return found.end()


def _parquet(body: bytes, limit_bytes: int) -> Iterator[Any]:
    try:
        yield from rows_in(io.BytesIO(body), limit_bytes)
    except TooMuch:
        raise too_large(limit_bytes) from None
    except UNREADABLE as error:
        raise Invalid("not_parquet", f"the body is not readable as Parquet: {error}") from None
