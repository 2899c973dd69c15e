"""What the routers share: the parts of the running service, paging, and the names of jobs."""

from typing import Annotated, cast
from uuid import uuid4

from fastapi import Depends, Header, Query, Request

from curation.keys import digest
from service.parts import Parts


def _parts(request: Request) -> Parts:
    return cast(Parts, request.state.parts)


PartsDep = Annotated[Parts, Depends(_parts)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str | None, Query()]
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=200)]


def job_name(kind: str, on: str, key: str | None) -> str:
    """A new name, or the one that belongs to the client's idempotency key."""
    return "j_" + (uuid4().hex if key is None else digest(kind, on, key))
