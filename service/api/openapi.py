"""The OpenAPI document: what FastAPI reads off the routes, and here, once, what is true of all of them.

- A client that knows the document meets no answer that is not in it. ``tests/service/test_openapi.py`` asks every
  route for everything and holds the service to that.
"""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from curation.recorded import GroupIn
from service.access import KeysUnreadable
from service.api.errors import Problem, TooLarge, TooSlow, problems
from service.api.gate import OPEN
from service.api.wire import JobEventOut, PromptIn
from service.stages import (
    Busy,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    Overloaded,
    Refused,
    StageError,
    StoreFailed,
    Unknown,
)

ASKED_FOR = "Not asked for while the service has no keys at all."
SECURITY = {
    "key": {"type": "http", "scheme": "bearer", "description": f"An API key. {ASKED_FOR}"},
    "password": {
        "type": "http",
        "scheme": "basic",
        "description": f"An API key as the password of anybody, for readers of plain URLs. {ASKED_FOR}",
    },
}
UNSEEN: list[tuple[type[BaseModel], JsonSchemaMode]] = [
    (Problem, "serialization"),
    (PromptIn, "validation"),
    (GroupIn, "validation"),
    (JobEventOut, "serialization"),
]
"""What FastAPI does not see, because it is no whole answer, and no parameter."""
MOVED = {
    "description": "To the version that is `latest` now.",
    "headers": {"Location": {"required": True, "schema": {"type": "string"}}},
}


class Described(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            _complete(super().openapi())
        assert self.openapi_schema is not None
        return self.openapi_schema


def _complete(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    schemas |= models_json_schema(UNSEEN, ref_template="#/components/schemas/{model}")[1]["$defs"]
    for unused in ("HTTPValidationError", "ValidationError"):  # of FastAPI's own answers, which are none of ours
        schemas.pop(unused, None)
    document["components"]["securitySchemes"] = SECURITY
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete_operation(path, method, operation)


def _complete_operation(path: str, method: str, operation: dict[str, Any]) -> None:
    operation["security"] = [] if path in OPEN else [{scheme: []} for scheme in SECURITY]
    answers = operation["responses"]
    answers.pop("422", None)  # in FastAPI's words
    for status, answer in problems(*_refusals(path, method, operation)).items():
        answers.setdefault(str(status), answer)
    if "{version}" in path and method in {"get", "head"}:
        answers["307"] = MOVED
    if method == "head":
        for answer in answers.values():
            answer.pop("content", None)
    operation["responses"] = dict(sorted(answers.items()))


def _refusals(path: str, method: str, operation: dict[str, Any]) -> Iterator[type[Exception]]:
    """What may befall any request of this kind; what else a route raises it tells itself."""
    yield from (Refused, Forbidden, TooLarge, Busy, StageError, StoreFailed, Overloaded)
    if path not in OPEN:
        yield from (Unknown, KeysUnreadable)
    if "parameters" in operation or "requestBody" in operation:
        yield Invalid
    if "requestBody" in operation:
        yield TooSlow
    if "{" in path or method == "post":
        yield NotFound
    if "{version}" in path:
        yield Gone
    if method == "post":
        yield Conflict
