"""Request bodies that are lists of rows: JSON, NDJSON or Parquet by Content-Type, all or nothing."""

import io
import json
from collections.abc import Iterator
from typing import Any, TypeVar

import polars as pl
from fastapi import Request
from pydantic import BaseModel, ValidationError

from service.api.errors import TooLarge
from service.stages import Invalid

MOST_REPORTED = 100
"""Rejected rows listed in an answer."""

M = TypeVar("M", bound=BaseModel)


async def read_rows(request: Request, model: type[M], limit_bytes: int) -> list[M]:
    """The rows, every one valid. Raises Invalid with the rejected rows and their reasons."""
    body = await _read(request, limit_bytes)
    rows, rejected = [], []
    for number, row in enumerate(_parse(request.headers.get("content-type", ""), body)):
        try:
            if isinstance(row, ValueError):
                raise row
            rows.append(model.model_validate(row))
        except ValidationError as error:
            reasons = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
            rejected.append({"row": number, "reason": "; ".join(reasons)})
        except ValueError as error:
            rejected.append({"row": number, "reason": str(error)})
    if rejected:
        raise rows_rejected(rejected, len(rows) + len(rejected))
    if not rows:
        raise Invalid("no_rows", "the body holds no rows")
    return rows


def rows_rejected(rejected: list[dict[str, Any]], of: int) -> Invalid:
    """`rejected` holds ``{row, reason}``."""
    first = rejected[0]
    return Invalid(
        "rows_rejected",
        f"{len(rejected)} of {of} rows were rejected and nothing was stored; row {first['row']}: {first['reason']}",
        rejected=rejected[:MOST_REPORTED],
    )


async def _read(request: Request, limit_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise TooLarge("body_too_large", f"the body is larger than {limit_bytes >> 20} MiB; send it in parts")
    return bytes(body)


def _parse(content_type: str, body: bytes) -> Iterator[Any]:
    """Rows as plain values; a ValueError in the place of a line that is no JSON."""
    match content_type.partition(";")[0].strip():
        case "application/x-ndjson" | "application/jsonl":
            return (_json_line(line) for line in body.splitlines() if line.strip())
        case "application/vnd.apache.parquet" | "application/x-parquet":
            return _parquet(body)
        case "application/json" | "":
            return iter(_json_list(body))
        case other:
            raise Invalid(
                "unknown_content_type",
                f"Content-Type {other!r} is none of application/json, application/x-ndjson and "
                "application/vnd.apache.parquet",
            )


def _json_line(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return ValueError(f"not JSON: {error}")


def _json_list(body: bytes) -> list[Any]:
    try:
        rows = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Invalid("not_json", f"the body is not JSON: {error}") from None
    if not isinstance(rows, list):
        raise Invalid("not_a_list", "the body must be a JSON list of rows")
    return rows


def _parquet(body: bytes) -> Iterator[Any]:
    """Null cells count as absent. Columns that hold JSON text (metadata, rollouts) are read as JSON."""
    try:
        frame = pl.read_parquet(io.BytesIO(body))
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise Invalid("not_parquet", f"the body is not readable as Parquet: {error}") from None
    for row in frame.iter_rows(named=True):
        try:
            yield {key: _cell(key, value) for key, value in row.items() if value is not None}
        except ValueError as error:
            yield ValueError(f"not JSON: {error}")


def _cell(key: str, value: Any) -> Any:
    if key in {"metadata", "rollouts"} and isinstance(value, str):
        return json.loads(value)
    return value
