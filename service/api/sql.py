"""/v1/sql: questions in SQL over everything that is stored."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from curation.choice import Bounded
from service.api.errors import problems
from service.api.routes import ASKS_SQL, CallerDep, PartsDep
from service.parts import Parts
from service.sql.console import Format, Question, TimedOut
from service.sql.views import NAMES
from service.stages import Busy, Invalid

router = APIRouter(prefix="/v1/sql", tags=["sql"], responses=problems(Busy, TimedOut))

MEDIA_TYPES = {
    Format.JSON: "application/json",
    Format.CSV: "text/csv",
    Format.NDJSON: "application/x-ndjson",
    Format.ARROW: "application/vnd.apache.arrow.stream",
    Format.PARQUET: "application/vnd.apache.parquet",
}
FORMATS = {media_type: name for name, media_type in MEDIA_TYPES.items()}
JSON_ROWS, MOST_JSON_ROWS = 1000, 100_000
MOST_PARAMS = 1000
LOOK_SECONDS = 0.25
"""Between two looks whether whoever asked is still there."""
Scalar = str | int | float | bool | None


class SqlOut(BaseModel):
    """The answer in JSON; the process that answers writes it."""

    columns: list[str]
    types: list[str]
    rows: list[list[Any]]
    truncated: bool
    next: str | None
    """Pass it as `cursor` to get the following rows, if there are more."""


ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"model": SqlOut, "content": {media_type: {} for media_type in FORMATS}}
}


def _few(params: Any) -> Any:
    if isinstance(params, list | dict) and len(params) > MOST_PARAMS:
        raise ValueError(f"a question has at most {MOST_PARAMS} parameters")
    return params


class SqlIn(Bounded):
    model_config = ConfigDict(extra="forbid")

    sql: str
    """One SELECT over the published views."""
    params: Annotated[list[Scalar] | dict[str, Scalar], BeforeValidator(_few)] = Field(default_factory=list)
    """For ``?`` in order, or for ``$name`` by name."""
    limit: Annotated[int | None, Field(ge=0, le=2**53)] = None
    """Rows; in JSON 1,000 by default and 100,000 at most, in the other formats all of them."""
    cursor: Annotated[str | None, Field(pattern="^[0-9]{1,15}$")] = None
    """What `next` said. The rows follow one another only if the question orders them."""
    timeout_ms: Annotated[int, Field(ge=1, le=3_600_000)] = 10_000
    """Then the question is ended; the operator's limit holds, too."""
    format: Format | None = None
    """Instead of the header Accept."""


@router.post("", response_class=StreamingResponse, responses=ANSWERS, dependencies=[ASKS_SQL])
async def ask(
    body: SqlIn, parts: PartsDep, caller: CallerDep, request: Request, accept: Annotated[str, Header()] = ""
) -> Response:
    """Answers a question about everything that was stored two seconds ago or before. By Accept as JSON, `{columns,
    types, rows, truncated, next}` with a row limit, or whole: as CSV, NDJSON, an Arrow stream or Parquet."""
    chosen = body.format or _format_of(accept)
    limit = body.limit
    if chosen is Format.JSON:
        limit = min(JSON_ROWS if limit is None else limit, MOST_JSON_ROWS)
    question = Question(
        sql=body.sql,
        params=body.params,
        format=chosen,
        limit=limit,
        offset=int(body.cursor or 0),
        seconds=min(body.timeout_ms / 1000, parts.settings.sql_seconds),
        reaches=caller.reaches if caller.names else None,
        asker=caller.name,
    )
    return await _answer(question, parts, request)


@router.get("", response_class=StreamingResponse, responses=ANSWERS, dependencies=[ASKS_SQL])
async def ask_by_url(
    q: str,
    parts: PartsDep,
    caller: CallerDep,
    request: Request,
    limit: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    cursor: Annotated[str | None, Query(pattern="^[0-9]{1,15}$")] = None,
    timeout_ms: Annotated[int, Query(ge=1, le=3_600_000)] = 10_000,
    format: Format | None = None,
    accept: Annotated[str, Header()] = "",
) -> Response:
    """The same as a link. Every other parameter of the URL is a parameter of the question: ``&run=r`` for ``$run``."""
    own = {"q", "limit", "cursor", "timeout_ms", "format"}
    params: dict[str, Any] = {name: value for name, value in request.query_params.items() if name not in own}
    body = SqlIn(sql=q, params=params, limit=limit, cursor=cursor, timeout_ms=timeout_ms, format=format)
    return await ask(body, parts, caller, request, accept)


@router.get("/views", dependencies=[ASKS_SQL])
async def get_views(parts: PartsDep) -> dict[str, dict[str, str]]:
    """The published views, with the type of each column."""
    sql = " union all ".join(f"select '{view}', column_name, column_type from (describe {view})" for view in NAMES)
    question = Question(sql, seconds=parts.settings.sql_seconds)
    told = json.loads(b"".join([chunk async for chunk in parts.console.ask(question)]))
    described: dict[str, dict[str, str]] = {view: {} for view in NAMES}
    for view, column, kind in told["rows"]:
        described[view][column] = kind
    return described


def _format_of(accept: str) -> Format:
    """The first that is asked for by name; JSON where anything goes. Raises Invalid for what cannot be had."""
    asked = [part.partition(";")[0].strip().lower() for part in accept.split(",") if part.strip()]
    for media_type in asked:
        if media_type in FORMATS:
            return FORMATS[media_type]
    if not asked or any(media_type in ("*/*", "application/*") for media_type in asked):
        return Format.JSON
    raise Invalid("not_acceptable", f"answers come as {', '.join(FORMATS)}")


async def _answer(question: Question, parts: Parts, request: Request) -> Response:
    chunks = parts.console.ask(question)
    # Begun before the status is sent: what is wrong with a question shows by then.
    began = asyncio.ensure_future(anext(chunks, b""))
    try:
        while not began.done():
            await asyncio.wait({began}, timeout=LOOK_SECONDS)
            if not began.done() and await request.is_disconnected():
                return Response(status_code=499)
    finally:
        if not began.done():
            began.cancel()  # which ends the question
            await asyncio.gather(began, return_exceptions=True)
    return StreamingResponse(_rest(began.result(), chunks), media_type=MEDIA_TYPES[question.format])


async def _rest(first: bytes, chunks: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(chunks):
        yield first
        async for chunk in chunks:
            yield chunk
