"""What the routers share: the parts of the running service, and paging."""

from typing import Annotated, cast

from fastapi import Depends, Query, Request

from service.parts import Parts


def _parts(request: Request) -> Parts:
    return cast(Parts, request.state.parts)


PartsDep = Annotated[Parts, Depends(_parts)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str | None, Query()]
