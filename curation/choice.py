"""A user's choice: frozen, strict about unknown fields, told apart by its ``kind``."""

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from curation.keys import canonical_json


class Choice(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        str_min_length=0,  # any limit at all makes pydantic refuse half characters, which nothing could store
    )


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    try:
        canonical_json(value).encode()
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"not plain JSON: {fault}") from None
    return value


def reason_of(error: ValueError) -> str:
    """In a line, also of pydantic's."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
    return str(error)


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except RecursionError:
        raise ValueError("not plain JSON: nested too deeply") from None


Metadata = Annotated[dict[str, Any], BeforeValidator(_parsed), AfterValidator(_plain)]
"""A JSON object, or its text, that has one spelling: no NaN, no lone surrogates, no endless nesting."""
