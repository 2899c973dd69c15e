"""A user's choice: frozen, strict about unknown fields, told apart by its ``kind``."""

import json
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from curation.keys import canonical_json

DEEPEST = 50
"""Of lists and objects within each other."""
MOST_FIELDS = 100
"""More than any choice has."""

T = TypeVar("T")
Several = Annotated[tuple[T, ...], Field(fail_fast=True)]
"""What stands behind the first element that is none is not looked at: what is told about each may take a thousand times
its bytes."""


class Bounded(BaseModel):
    """Of few fields: of an object with very many, nothing is told of each."""

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MOST_FIELDS:
            raise ValueError(f"{len(value)} fields are more than any {cls.__name__} has")
        return value


class Choice(Bounded):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        str_min_length=0,  # any limit at all makes pydantic refuse half characters, which nothing could store
    )


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    try:
        canonical_json(value).encode()
    except (ValueError, TypeError, RecursionError) as fault:
        raise ValueError(f"not plain JSON: {fault}") from None
    if _depth(value) > DEEPEST:
        raise ValueError(f"not plain JSON: nested more than {DEEPEST} deep")
    return value


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [part for one in level if isinstance(one, dict | list) for part in _parts(one)]:
        depth += 1
    return depth


def _parts(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def reason_of(error: ValueError) -> str:
    """In a line, also of pydantic's."""
    told = str(error)
    if isinstance(error, ValidationError):
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
    return told.encode(errors="backslashreplace").decode()


def parsed(value: Any) -> Any:
    """What a text says in JSON; other values as they are. Raises ValueError for a text that is no JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except RecursionError:
        raise ValueError("not plain JSON: nested too deeply") from None


Metadata = Annotated[dict[str, Any], BeforeValidator(parsed), AfterValidator(_plain)]
"""A JSON object, or its text, that has one spelling: no NaN, no lone surrogates, no endless nesting."""
