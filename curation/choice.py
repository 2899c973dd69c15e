"""A user's choice: frozen, strict about unknown fields, told apart by its ``kind``."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

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


Metadata = Annotated[dict[str, Any], AfterValidator(_plain)]
"""A JSON object that has one spelling: no NaN, no lone surrogates, no endless nesting."""
