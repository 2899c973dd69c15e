"""Errors become HTTP in one table; no route builds an error response, and none describes one by itself."""

from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from service.access import KeysUnreadable
from service.sql.console import SqlFailed, TimedOut
from service.stages import (
    Busy,
    Conflict,
    EngineFailed,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    Overloaded,
    Refused,
    StageError,
    StoreFailed,
    Unknown,
    VerifierFailed,
)


class Ambiguous(Refused):
    """Something in between may have read it as another request than we do, and what comes after it, too."""


class TooLarge(Refused):
    """The body is over the limit."""


class TooSlow(Refused):
    """The body does not come."""


class Closing(Refused):
    """The service ends, and cannot wait for the answer."""


class OutOfRange(Refused):
    """The file ends before the range begins."""

    def __init__(self, size: int) -> None:
        super().__init__("range_not_satisfiable", f"the file has {size} bytes")
        self.size = size


RETRY_AFTER = 5
"""Seconds, where something outside our control failed."""
STATUS: dict[type[Exception], int] = {
    Refused: 400,
    Unknown: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    TooSlow: 408,
    Gone: 410,
    TooLarge: 413,
    OutOfRange: 416,
    Invalid: 422,
    StageError: 500,
    EngineFailed: 503,
    VerifierFailed: 503,
    StoreFailed: 503,
    KeysUnreadable: 503,
    Overloaded: 503,
    Closing: 503,
    SqlFailed: 503,
    TimedOut: 408,
    Busy: 429,
}
METHODS = ("GET", "HEAD", "POST", "DELETE")
PROBLEM = "application/problem+json"
COME_AGAIN = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}},
    416: {"Content-Range": {"required": True, "schema": {"type": "string", "pattern": "^bytes [*]/[0-9]+$"}}},
    429: COME_AGAIN,
    503: COME_AGAIN,
}
"""That say more than the document."""


class Problem(BaseModel):
    """RFC 9457. Some codes bring more members, such as `errors` or `rejected`."""

    model_config = ConfigDict(extra="allow")

    type: Literal["about:blank"]
    title: str
    status: int = Field(ge=400, le=599)
    code: str = Field(pattern="^[a-z][a-z0-9_]*$")
    """Stable, for programs."""
    detail: str
    """For people."""


def status_of(error: Exception) -> int:
    """The status of the most specific class that has one."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def problem(status: int, code: str, detail: str, **extra: Any) -> JSONResponse:
    """As `Problem` says."""
    document = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "code": code}
    return JSONResponse(document | {"detail": detail} | extra, status_code=status, media_type=PROBLEM)


def problems(*errors: type[Exception]) -> dict[int | str, dict[str, Any]]:
    """What is answered to these, for ``responses=``."""
    described: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        status = STATUS[error]
        said = f"{described[status]['description']} Or: " if status in described else ""
        described[status] = {
            "description": said + (error.__doc__ or "").partition("\n")[0],
            "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        if status in HEADERS:
            described[status]["headers"] = HEADERS[status]
    return described


def answer_to(error: Refused | StageError) -> JSONResponse:
    """The problem document of an error that has a name."""
    if isinstance(error, StageError):
        name = type(error).__name__
        code = "".join("_" + c.lower() if c.isupper() else c for c in name).strip("_")
        answer = problem(status_of(error), code, str(error))
        if answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
            answer.headers["retry-after"] = str(RETRY_AFTER)
        return answer
    answer = problem(status_of(error), error.code, str(error), **error.extra)
    if isinstance(error, Unknown):
        answer.headers["www-authenticate"] = "Bearer"
    if isinstance(error, Ambiguous):
        answer.headers["connection"] = "close"
    if isinstance(error, OutOfRange):
        answer.headers["content-range"] = f"bytes */{error.size}"
    if "retry_after" in error.extra:
        answer.headers["retry-after"] = str(error.extra["retry_after"])
    return answer


async def _named(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused | StageError)
    return answer_to(error)


async def _unreadable(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError | ValidationError)
    errors = [{"field": ".".join(map(str, e["loc"])), "reason": e["msg"]} for e in error.errors()]
    detail = "; ".join(f"{e['field']}: {e['reason']}" for e in errors[:3])
    return problem(422, "invalid_request", detail, errors=errors[:100])


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    answer = problem(error.status_code, HTTPStatus(error.status_code).name.lower(), str(error.detail))
    answer.headers.update(error.headers or {})
    if error.status_code == 405:
        answer.headers["allow"] = ", ".join(_methods_at(request))
    return answer


def _methods_at(request: Request) -> list[str]:
    """Of all routes of a path; starlette tells those of the first."""
    return [
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]


def unforeseen(error: Exception) -> JSONResponse:
    return problem(500, "internal", f"nobody foresaw this {type(error).__name__}; the service's log has it")


async def _unheard(_: Request, error: Exception) -> Response:
    """Whoever asked has gone, perhaps before the request was whole: nobody gets this."""
    assert isinstance(error, ClientDisconnect)
    return Response(status_code=499)


def install(app: FastAPI) -> None:
    app.add_exception_handler(Refused, _named)
    app.add_exception_handler(StageError, _named)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(ValidationError, _unreadable)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _unheard)
